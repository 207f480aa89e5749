//! Linear layers with low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on the device, forward
//! and backward: `y = x wᵀ + s (x aᵀ) bᵀ + bias`. Source: `cuda/lora.cu`, `cuda/lora_quant_*.cu`, `cuda/lora_grads.cu`,
//! `cuda/matmul_bf16.cu`, `cuda/quant_tile_*.cu`.
//!
//! Forward is one kernel where everything is bf16, aligned, and of a rank up to 64 that is a
//! multiple of 8 (two kernels for few rows, at the speed of the weight's memory), the weight being
//! bf16 too or quantised in a format that most models have; otherwise it is separate products.
//! Backward is one kernel for the input's derivative, likewise, and two for the adapter's.
//!
//! **Bits.** The first way gives a row the same bits in any number of rows and beside rows of any
//! adapters; without an adapter they are those of the plain product. So does the second way (which
//! [`forward_rows`] computes in unrounded f32 beside a plain product). Types, alignment and rank
//! alone decide which way it is; between the two the last places differ.

mod fused;
mod grads;

use super::matmul::{self, Factor, Precision, Product, Shape, Source, flags};
use super::params::{self, LoraRowsParams};
use super::quant::{self, QuantMatrix};
use super::{
    DeviceBuffer, DeviceSlice, DeviceSliceMut, Floats, FloatsMut, Function, Gpu, Launch, Modules,
    arg, expect_len, u32_of,
};
use crate::{Error, Result};
use fused::{Fused, fused, fused_quant, fused_rank};

/// The kernels.
pub(crate) struct Lora {
    /// Ranks up to 16, 32, 64.
    fused: [Function; 3],
    /// Likewise.
    back: [Function; 3],
    skinny_shrink: Function,
    /// Wide, narrow.
    skinny: [Function; 2],
    shrink: Function,
    expand_acc: Function,
    grads: grads::Grads,
}

impl Lora {
    pub fn load(modules: &Modules) -> Result<Self> {
        Ok(Lora {
            fused: [
                modules.function("lora_bf16_r16")?,
                modules.function("lora_bf16_r32")?,
                modules.function("lora_bf16_r64")?,
            ],
            back: [
                modules.function("lora_bwd_bf16_r16")?,
                modules.function("lora_bwd_bf16_r32")?,
                modules.function("lora_bwd_bf16_r64")?,
            ],
            skinny_shrink: modules.function("lora_skinny_shrink")?,
            skinny: [
                modules.function("lora_skinny_wide")?,
                modules.function("lora_skinny_narrow")?,
            ],
            shrink: modules.function("lora_shrink")?,
            expand_acc: modules.function("lora_expand_acc")?,
            grads: grads::Grads::load(modules)?,
        })
    }
}

/// The weight [n, k] of a layer.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// Numbers, stored plainly.
    Stored(Factor<'a>),
    /// Quantised ones.
    Quant(&'a QuantMatrix),
}

impl<'a> Weight<'a> {
    /// Sizes of `y = x wᵀ`.
    fn shape(&self, op: &str, y: &FloatsMut<'_>, x: &Factor<'_>) -> Result<Shape> {
        match self {
            Weight::Stored(w) => Shape::of(op, y, x, &w.t()),
            Weight::Quant(w) => quant::shape_of(y, x, w.n(), w.k()),
        }
    }

    /// Sizes of `dx = dy w`.
    fn shape_back(&self, op: &str, dx: &FloatsMut<'_>, dy: &Factor<'_>) -> Result<Shape> {
        match self {
            Weight::Stored(w) => Shape::of(op, dx, dy, w),
            Weight::Quant(w) => quant::shape_of(dx, dy, w.k(), w.n()),
        }
    }

    /// `y = x wᵀ + bias`; overwrites. f32 sums.
    ///
    /// # Errors
    /// When shapes do not fit each other, or a launch fails.
    pub fn product(
        self,
        gpu: &Gpu,
        precision: Precision,
        y: FloatsMut<'_>,
        x: Factor<'_>,
        bias: Option<Floats<'_>>,
    ) -> Result<()> {
        match self {
            Weight::Stored(w) => {
                matmul::gemm(gpu, Product { bias, ..Product::new(precision, y, x, w.t()) })
            }
            Weight::Quant(w) => {
                let product = quant::Product::nt(precision, y, x, w);
                quant::gemm(gpu, quant::Product { bias, ..product })
            }
        }
    }

    /// Whether there is a fused kernel for it.
    fn is_fused(&self) -> bool {
        match self {
            Weight::Stored(w) => w.is_aligned_bf16() && !w.transposed,
            Weight::Quant(w) => w.format().is_common(),
        }
    }
}

/// A layer with one adapter: in training, and where all rows share an adapter.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// [n, k].
    pub w: Weight<'a>,
    /// `[n]`.
    pub bias: Option<Floats<'a>>,
    /// [r, k].
    pub a: Factor<'a>,
    /// [n, r].
    pub b: Factor<'a>,
    /// s.
    pub scale: f32,
    /// Of the products.
    pub precision: Precision,
}

/// `y [m, n] = x wᵀ + s u bᵀ + bias` and `u [m, r] = x aᵀ`, which the backward pass wants.
///
/// Overwrites both. f32 sums; in bf16 precision u is rounded to bf16 when it meets b (times s where
/// the kernel is the fused one). With dropout, u is of other rows than `x`: callers compute it by
/// themselves.
///
/// # Errors
/// When shapes do not fit each other, or a launch fails.
pub fn forward(
    gpu: &Gpu,
    mut y: FloatsMut<'_>,
    mut u: DeviceSliceMut<'_, f32>,
    x: Factor<'_>,
    layer: &Layer<'_>,
) -> Result<()> {
    let &Layer { w, bias, a, b, scale, precision } = layer;
    let shape = w.shape("adapted layer", &y, &x)?;
    let r = a.rows;
    let u_len = u.len();
    expect_len("adapted layer", "u", u_len, shape.m * r)?;
    expect_len("adapter", "columns of b", b.cols, r)?;
    if (a.cols, b.rows) != (shape.k, shape.n) {
        return Err(Error::Shape {
            op: "adapter".into(),
            expected: format!("a [{r}, {}], b [{}, {r}]", shape.k, shape.n),
            got: format!("a [{}, {}], b [{}, {}]", a.rows, a.cols, b.rows, b.cols),
        });
    }
    // The kernel stores u two at a time.
    let pairs = u.address().is_multiple_of(8);
    let fits = fused_rank(r).is_some() && precision == Precision::Bf16 && pairs;
    if fits && w.is_fused() && [x, a, b].iter().all(|f| f.is_aligned_bf16() && !f.transposed) {
        let job = Fused { shape, r, bias, scale, scales: None, rows: None };
        return match w {
            Weight::Stored(w) => fused(gpu, y, Some(u), [x, w, a, b], &job),
            Weight::Quant(w) => fused_quant(gpu, y, u, w, [x, a, b], &job),
        };
    }
    w.product(gpu, precision, y.reborrow(), x, bias)?;
    matmul::gemm(gpu, Product::new(precision, FloatsMut::F32(u.reborrow()), x, a.t()))?;
    let u = Factor::plain(Floats::F32(u.as_slice()), shape.m, r);
    matmul::gemm(gpu, Product { acc: true, alpha: scale, ..Product::new(precision, y, u, b.t()) })
}

/// What the backward pass of an adapted layer writes. Every part may be left out.
pub struct Gradients<'a> {
    /// [r, k], f32; added to.
    pub da: Option<DeviceSliceMut<'a, f32>>,
    /// [n, r], f32; added to.
    pub db: Option<DeviceSliceMut<'a, f32>>,
    /// [m, k].
    pub dx: Option<FloatsMut<'a>>,
    /// Whether `dx` is added to.
    pub dx_acc: bool,
}

/// The gradients of [`forward`] from `dy` [m, n], its `x` and its `u`; `du` [m, r] is room for
/// `s dy b`, in bf16 for the fused kernel's sake or in f32.
///
/// ```text
/// du = s dy b, dx (+)= dy w + du a     one kernel where the forward pass is one
/// da += duᵀ x, db += s dyᵀ u           one kernel, and one that adds its parts, where dy and x are bf16
/// ```
///
/// # Errors
/// When shapes do not fit each other, or a launch fails.
pub fn backward(
    gpu: &Gpu,
    grads: Gradients<'_>,
    mut du: FloatsMut<'_>,
    dy: Factor<'_>,
    x: Factor<'_>,
    u: Factor<'_>,
    layer: &Layer<'_>,
) -> Result<()> {
    let &Layer { w, a, b, scale, precision, .. } = layer;
    let (m, r) = (dy.rows, a.rows);
    let back = fused::Back { dy, w, a, b, scale };
    let mut dx = grads.dx;
    // With it comes du.
    if precision == Precision::Bf16 && back.fits(&du) && dx.is_some() {
        if let Some(dx) = dx.take() {
            back.input(gpu, dx, grads.dx_acc, du.reborrow())?;
        }
    } else {
        let product = Product::new(precision, du.reborrow(), dy, b);
        matmul::gemm(gpu, Product { alpha: scale, ..product })?;
    }
    let du = Factor::plain(du.as_floats(), m, r);
    let parts = grads::Parts { dy, x, u, du, scale };
    match (grads.da, grads.db) {
        (Some(da), Some(db)) if precision == Precision::Bf16 && parts.fit() => {
            parts.add(gpu, da, db)?;
        }
        (da, db) => {
            let product = |out, a, b, alpha| {
                let product = Product::new(precision, FloatsMut::F32(out), a, b);
                matmul::gemm(gpu, Product { acc: true, alpha, ..product })
            };
            if let Some(db) = db {
                product(db, dy.t(), u, scale)?;
            }
            if let Some(da) = da {
                product(da, du.t(), x, 1.0)?;
            }
        }
    }
    let Some(mut dx) = dx else { return Ok(()) };
    let w = match w {
        Weight::Stored(w) => w,
        Weight::Quant(w) => {
            let product = quant::Product::nn(precision, dx, dy, w);
            let (acc, second) = (grads.dx_acc, Some([du, a]));
            return quant::gemm(gpu, quant::Product { acc, second, ..product });
        }
    };
    if precision == Precision::Bf16 {
        return matmul::gemm_two(gpu, dx, grads.dx_acc, 1.0, [dy, w], [du, a]);
    }
    matmul::gemm(
        gpu,
        Product { acc: grads.dx_acc, ..Product::new(precision, dx.reborrow(), dy, w) },
    )?;
    matmul::gemm(gpu, Product { acc: true, ..Product::new(precision, dx, du, a) })
}

/// Adapters of one layer, stacked, all padded with zeros to one rank.
#[derive(Clone, Copy)]
pub struct Adapters<'a> {
    /// [adapters, r, k].
    pub a: Source<'a>,
    /// [adapters, n, r].
    pub b: Source<'a>,
    /// `[adapters]`.
    pub scales: DeviceSlice<'a, f32>,
    /// Inner width.
    pub r: usize,
}

/// Which row of a batch has which adapter, as kernels read it.
pub struct RowAdapters {
    /// By row; negative: none.
    adapter_of: DeviceBuffer<i32>,
    /// Rows, grouped by adapter.
    rows: DeviceBuffer<i32>,
    /// [tiles, 4]: `LoraTile`s.
    tiles: DeviceBuffer<i32>,
    n_adapters: usize,
}

impl RowAdapters {
    /// Uploads the list: by row the index of its adapter among `n_adapters`, or none.
    ///
    /// # Errors
    /// When an index is too large, or the device has no memory.
    pub fn new(gpu: &Gpu, list: &[Option<usize>], n_adapters: usize) -> Result<Self> {
        if let Some(index) = list.iter().flatten().find(|&&index| index >= n_adapters) {
            return Err(Error::Shape {
                op: "adapters of rows".into(),
                expected: format!("indices below {n_adapters}"),
                got: format!("index {index}"),
            });
        }
        matmul::size(list.len())?;
        matmul::size(n_adapters)?;
        let number = |i: &Option<usize>| i.map_or(-1, |i| i as i32);
        let adapter_of: Vec<i32> = list.iter().map(number).collect();
        let (rows, tiles) = grouped(&adapter_of);
        Ok(RowAdapters {
            adapter_of: gpu.upload(&adapter_of)?,
            rows: gpu.upload(&rows)?,
            tiles: gpu.upload(&tiles)?,
            n_adapters,
        })
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.adapter_of.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Rows in groups of one adapter, each in rising order, and the groups cut into tiles.
fn grouped(adapter_of: &[i32]) -> (Vec<i32>, Vec<i32>) {
    let mut rows: Vec<i32> = (0..adapter_of.len() as i32).collect();
    rows.sort_by_key(|&row| adapter_of[row as usize]);
    let mut tiles = Vec::new();
    let mut first = 0;
    for group in rows.chunk_by(|&a, &b| adapter_of[a as usize] == adapter_of[b as usize]) {
        for tile in group.chunks(params::LORA_TILE as usize) {
            tiles.extend([adapter_of[tile[0] as usize], first, tile.len() as i32, 0]);
            first += tile.len() as i32;
        }
    }
    (rows, tiles)
}

/// `y[i] = x[i] wᵀ + s u[i] bᵀ + bias` with the adapter of row i, for serving; `u` [m, r] is room
/// for `x aᵀ`. In bf16 precision.
///
/// Overwrites y. Aligned bf16 takes the fused kernels, tiles of rows grouped by adapter; otherwise,
/// and beside quantised weights, the weight's product is one for all rows, and what adapters add, in unrounded f32, comes after
/// it.
///
/// # Errors
/// When shapes do not fit each other, or a launch fails.
#[allow(clippy::too_many_arguments)]
pub fn forward_rows(
    gpu: &Gpu,
    mut y: FloatsMut<'_>,
    u: DeviceSliceMut<'_, f32>,
    x: Factor<'_>,
    w: Weight<'_>,
    bias: Option<Floats<'_>>,
    adapters: &Adapters<'_>,
    rows: &RowAdapters,
) -> Result<()> {
    let &Adapters { a, b, scales, r } = adapters;
    let shape = w.shape("adapted layer", &y, &x)?;
    let count = rows.n_adapters;
    let op = "rows with adapters";
    expect_len(op, "rows", rows.len(), shape.m)?;
    expect_len(op, "u", u.len(), shape.m * r)?;
    expect_len(op, "a", a.len(), count * r * shape.k)?;
    expect_len(op, "b", b.len(), count * r * shape.n)?;
    expect_len(op, "scales", scales.len(), count)?;
    if x.transposed || matches!(w, Weight::Stored(w) if w.transposed) {
        return Err(Error::Unsupported("an adapted layer of transposed factors".into()));
    }
    if count == 0 || r == 0 {
        return w.product(gpu, Precision::Bf16, y, x, bias);
    }
    let (a, b) = (Factor::plain(a, count * r, shape.k), Factor::plain(b, count * shape.n, r));
    if let Weight::Stored(w) = w
        && [x, w, a, b].iter().all(Factor::is_aligned_bf16)
        && fused_rank(r).is_some()
    {
        let job = Fused { shape, r, bias, scale: 0.0, scales: Some(scales), rows: Some(rows) };
        return fused(gpu, y, None, [x, w, a, b], &job);
    }
    w.product(gpu, Precision::Bf16, y.reborrow(), x, bias)?;
    add_rows(gpu, y, u, x, shape, [a, b], adapters, rows)
}

/// The adapters' part of [`forward_rows`], added to `y`.
#[allow(clippy::too_many_arguments)]
fn add_rows(
    gpu: &Gpu,
    y: FloatsMut<'_>,
    u: DeviceSliceMut<'_, f32>,
    x: Factor<'_>,
    shape: Shape,
    [a, b]: [Factor<'_>; 2],
    adapters: &Adapters<'_>,
    rows: &RowAdapters,
) -> Result<()> {
    let r = adapters.r;
    if shape.is_empty() {
        return Ok(());
    }
    let params = |adapter: &Factor<'_>| -> Result<LoraRowsParams> {
        Ok(LoraRowsParams {
            m: matmul::size(shape.m)?,
            n: matmul::size(shape.n)?,
            k: matmul::size(shape.k)?,
            r: matmul::size(r)?,
            flags: flags(&y, false, shape.n, Some(&x), Some(adapter)),
            x_type: x.source.tag(),
            adapter_type: adapter.source.tag(),
            pad_: 0,
        })
    };
    let (mut p_a, mut p_b) = (params(&a)?, params(&b)?);
    let launch = |per_row: usize| -> Result<Launch> {
        let blocks = u32_of("blocks of adapters", shape.m * per_row)?;
        Ok(Launch { grid: [blocks, 1, 1], block: params::LORA_ROW_THREADS, shared_bytes: 0 })
    };
    let threads = params::LORA_ROW_THREADS as usize;
    let mut adapter_of = rows.adapter_of.slice().address();
    let (mut to, mut from, mut weights) = (u.address(), x.source.address(), a.source.address());
    let mut args =
        [arg(&mut to), arg(&mut from), arg(&mut weights), arg(&mut adapter_of), arg(&mut p_a)];
    // SAFETY: `forward_rows`, the only caller, compared the lengths of u, x, a and the list with
    // the sizes in `p_a`; `RowAdapters::new` that no index is beyond the adapters; the arguments
    // are the kernel's.
    unsafe { gpu.launch(&gpu.lora.shrink, launch(r.div_ceil(threads / 32))?, &mut args) }?;
    let (mut to, mut from, mut weights) = (y.address(), u.address(), b.source.address());
    let mut scales = adapters.scales.address();
    let mut args = [
        arg(&mut to),
        arg(&mut from),
        arg(&mut weights),
        arg(&mut scales),
        arg(&mut adapter_of),
        arg(&mut p_b),
    ];
    // SAFETY: as above, for y, u, b and the scales.
    unsafe { gpu.launch(&gpu.lora.expand_acc, launch(shape.n.div_ceil(threads))?, &mut args) }
}

/// Whether [`forward`] of aligned bf16 rows is the fused kernel with this weight [n, k], a [r, k] and
/// b [n, r].
pub fn is_fused(w: &Weight<'_>, a: &Factor<'_>, b: &Factor<'_>) -> bool {
    let plain = |f: &&Factor<'_>| f.is_aligned_bf16() && !f.transposed;
    fused_rank(a.rows).is_some() && w.is_fused() && [a, b].iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_grouped_by_adapter_and_cut_into_tiles() {
        let (rows, tiles) = grouped(&[1, -1, 0, 1, 1]);
        assert_eq!(rows, [1, 2, 0, 3, 4]);
        assert_eq!(tiles, [-1, 0, 1, 0, 0, 1, 1, 0, 1, 2, 3, 0]);
        let (rows, tiles) = grouped(&[0; 200]);
        assert!(rows.iter().enumerate().all(|(i, &row)| i as i32 == row));
        assert_eq!(tiles, [0, 0, 128, 0, 0, 128, 72, 0]);
        assert_eq!(grouped(&[]), (vec![], vec![]));
    }

    #[test]
    fn ranks_find_the_instance_with_room() {
        let rooms = [8, 16, 24, 40, 64].map(|r| fused_rank(r).map(|(_, room)| room));
        assert_eq!(rooms, [Some(16), Some(16), Some(32), Some(64), Some(64)]);
        assert!([0, 4, 12, 72].iter().all(|&r| fused_rank(r).is_none()));
    }
}
