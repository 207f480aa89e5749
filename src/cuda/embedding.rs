//! Rows by number on the device: look-up in a table, the table's gradient, and writing rows to their
//! places. Source: `cuda/embedding.cu`, twin of `puna_cpu::embedding` and of what `ops::select` does.

use half::f16;

use super::elements::{Pair, by_rows, instance, pair, rows_of, wide_rows};
use super::floats::expect_dtype;
use super::params::{self, EmbeddingParams};
use super::{
    DeviceBuffer, DeviceSlice, DeviceSliceMut, Floats, FloatsMut, Gpu, Modules, arg, expect_len,
    u32_of,
};
use crate::{Error, Result};

/// The kernels.
pub(crate) struct Embedding {
    /// By the type of the table (f32, bf16, f16), then of the result.
    gather: [Pair; 3],
    scatter_rows: Pair,
    bwd_acc: Pair,
}

impl Embedding {
    pub fn load(modules: &Modules) -> Result<Self> {
        Ok(Embedding {
            gather: [
                pair(modules, ["gather_f32_f32", "gather_bf16_f32"])?,
                pair(modules, ["gather_f32_bf16", "gather_bf16_bf16"])?,
                pair(modules, ["gather_f32_f16", "gather_bf16_f16"])?,
            ],
            scatter_rows: pair(modules, ["scatter_rows_f32", "scatter_rows_bf16"])?,
            bwd_acc: pair(modules, ["embedding_bwd_acc_f32", "embedding_bwd_acc_bf16"])?,
        })
    }
}

/// A table of rows.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// Of either type that activations have.
    Floats(Floats<'a>),
    /// IEEE binary16, as files have it.
    F16(DeviceSlice<'a, f16>),
}

impl Table<'_> {
    fn len(&self) -> usize {
        match self {
            Table::Floats(x) => x.len(),
            Table::F16(x) => x.len(),
        }
    }

    fn address(&self) -> u64 {
        match self {
            Table::Floats(x) => x.address(),
            Table::F16(x) => x.address(),
        }
    }
}

/// The scalars of a kernel over rows of `dim` elements.
fn scalars(dim: usize, n_rows: usize, addresses: &[u64]) -> Result<EmbeddingParams> {
    Ok(EmbeddingParams {
        dim: u32_of("elements of a row", dim)?,
        n_rows: u32_of("rows of a table", n_rows)?,
        wide: wide_rows(dim, addresses).into(),
    })
}

/// `out[i] = table[ids[i]]`, rows of `dim` elements; overwrites. Exact, or rounded once.
///
/// Ids are not looked at before the device does: the row of an id outside of the table is NaN.
///
/// # Errors
/// When lengths do not fit each other, or the launch fails.
pub fn gather(
    gpu: &Gpu,
    out: FloatsMut<'_>,
    table: Table<'_>,
    dim: usize,
    ids: DeviceSlice<'_, u32>,
) -> Result<()> {
    if ids.is_empty() || dim == 0 {
        return expect_len("gather", "out", out.len(), 0);
    }
    expect_len("gather", "out", out.len(), ids.len().saturating_mul(dim))?;
    let n_rows = rows_of("gather", table.len(), dim)?;
    let [mut to, mut from, mut rows] = [out.address(), table.address(), ids.address()];
    let mut p = scalars(dim, n_rows, &[to, from])?;
    let shape = by_rows("rows of gather", ids.len(), dim, params::EMBEDDING_THREADS)?;
    let of_table = match table {
        Table::Floats(x) => instance(&x),
        Table::F16(_) => 2,
    };
    let function = &gpu.embedding.gather[of_table][instance(&out.as_floats())];
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut rows), arg(&mut p)];
    // SAFETY: `out` has a row of `dim` for each id and the table `n_rows`, of the instance's types,
    // checked above; the kernel compares each id with `n_rows`; `wide` is set by addresses and `dim`.
    unsafe { gpu.launch(function, shape, &mut args) }
}

/// `out[i] = x[keep[i]]`, rows of `width` elements of one type; overwrites. As [`gather`].
///
/// # Errors
/// When lengths or types do not fit each other, or the launch fails.
pub fn select_rows(
    gpu: &Gpu,
    out: FloatsMut<'_>,
    x: Floats<'_>,
    width: usize,
    keep: DeviceSlice<'_, u32>,
) -> Result<()> {
    expect_dtype("select_rows", "out", out.dtype(), x.dtype())?;
    gather(gpu, out, Table::Floats(x), width, keep)
}

/// `out[at[i]] = x[i]`, rows of `width` elements of one type, and zeroes in every other row: the
/// gradient of [`select_rows`]. Overwrites all of `out`.
///
/// The numbers in `at` differ from each other; one that is no row's is passed over.
///
/// # Errors
/// When lengths or types do not fit each other, or a launch fails.
pub fn scatter_rows(
    gpu: &Gpu,
    mut out: FloatsMut<'_>,
    x: Floats<'_>,
    width: usize,
    at: DeviceSlice<'_, u32>,
) -> Result<()> {
    let op = "scatter_rows";
    expect_dtype(op, "out", out.dtype(), x.dtype())?;
    expect_len(op, "x", x.len(), at.len().saturating_mul(width))?;
    if out.is_empty() {
        return Ok(());
    }
    let n_rows = rows_of(op, out.len(), width)?;
    match &mut out {
        FloatsMut::F32(out) => gpu.fill_zero(out)?,
        FloatsMut::Bf16(out) => gpu.fill_zero(out)?,
    }
    if at.is_empty() {
        return Ok(());
    }
    let [mut to, mut from, mut rows] = [out.address(), x.address(), at.address()];
    let mut p = scalars(width, n_rows, &[to, from])?;
    let shape = by_rows("rows of scatter_rows", at.len(), width, params::EMBEDDING_THREADS)?;
    let function = &gpu.embedding.scatter_rows[instance(&x)];
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut rows), arg(&mut p)];
    // SAFETY: `x` has a row of `width` for each number and `out` `n_rows`, of the instance's type,
    // checked above; the kernel compares each number with `n_rows`.
    unsafe { gpu.launch(function, shape, &mut args) }
}

/// Positions of a batch's ids, sorted by id: what makes the table's gradient a fixed sum a row.
#[derive(Debug)]
pub struct Occurrences {
    /// The ids that occur, ascending, [n_rows].
    rows: DeviceBuffer<u32>,
    /// Where each one's positions begin in `order`, and the end, [n_rows + 1].
    starts: DeviceBuffer<u32>,
    /// Positions by id, ascending for each, [n].
    order: DeviceBuffer<u32>,
    /// The largest id, if any.
    largest: Option<u32>,
}

impl Occurrences {
    /// Sorts the ids of a batch and takes them to the device.
    ///
    /// # Errors
    /// When the device's memory is full.
    pub fn new(gpu: &Gpu, ids: &[u32]) -> Result<Occurrences> {
        let n = u32_of("ids of a batch", ids.len())?;
        let mut order: Vec<u32> = (0..n).collect();
        // Stable: positions of one id stay in their order.
        order.sort_by_key(|&i| ids[i as usize]);
        let (mut rows, mut starts) = (vec![], vec![]);
        for (at, &i) in (0..n).zip(&order) {
            let id = ids[i as usize];
            if rows.last() != Some(&id) {
                rows.push(id);
                starts.push(at);
            }
        }
        starts.push(n);
        let largest = rows.last().copied();
        let [rows, starts, order] = [gpu.upload(&rows)?, gpu.upload(&starts)?, gpu.upload(&order)?];
        Ok(Occurrences { rows, starts, order, largest })
    }
}

/// `dtable[ids[i]] += dout[i]` for each i in order, rows of `dim` elements, of the ids that `of` was
/// made of. Adds in f32, each row's terms one after the other: the CPU's bits
/// (`tests/cuda_vs_cpu/embedding.rs`).
///
/// # Errors
/// When lengths do not fit each other, an id is outside of the table, or the launch fails.
pub fn embedding_bwd_acc(
    gpu: &Gpu,
    dtable: DeviceSliceMut<'_, f32>,
    dim: usize,
    of: &Occurrences,
    dout: Floats<'_>,
) -> Result<()> {
    let op = "embedding_bwd_acc";
    expect_len(op, "dout", dout.len(), of.order.len().saturating_mul(dim))?;
    let Some(largest) = of.largest.filter(|_| dim > 0) else { return Ok(()) };
    let n_rows = rows_of(op, dtable.len(), dim)?;
    if largest as usize >= n_rows {
        let why = format!("the table has {n_rows} rows");
        return Err(Error::config("token id", largest, why));
    }
    let [mut to, mut from] = [dtable.address(), dout.address()];
    let [mut rows, mut starts, mut order] =
        [&of.rows, &of.starts, &of.order].map(|x| x.slice().address());
    let mut p = scalars(dim, n_rows, &[to, from])?;
    let shape = by_rows("ids of a batch", of.rows.len(), dim, params::EMBEDDING_THREADS)?;
    let function = &gpu.embedding.bwd_acc[instance(&dout)];
    let mut args = [
        arg(&mut to),
        arg(&mut from),
        arg(&mut rows),
        arg(&mut starts),
        arg(&mut order),
        arg(&mut p),
    ];
    // SAFETY: `dout` has a row of `dim` for each position and `dtable` `n_rows`, of the instance's
    // types, checked above; `Occurrences::new` made `starts` one longer than `rows`, ascending and
    // ending at the length of `order`, which holds positions below that length.
    unsafe { gpu.launch(function, shape, &mut args) }
}
