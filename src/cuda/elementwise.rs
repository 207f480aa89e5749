//! Element-wise sums, their column sums backward, scaling, conversion and dropout on the device.
//! Source: `cuda/elementwise.cu`, twin of `puna_cpu::elementwise` and `puna_cpu::dropout`.

use std::ffi::c_void;

use super::elements::{
    Pair, by_elements, by_rows, instance, pair, pairs, rows_of, wide, wide_rows,
};
use super::params::{self, BiasParams, DropoutParams, ElementsParams};
use super::{
    DeviceSlice, DeviceSliceMut, Floats, FloatsMut, Function, Gpu, Launch, Modules, arg,
    expect_len, u32_of,
};
use crate::{Error, Result};
use puna_cpu::dropout::Mask;

/// The kernels; where there are two types, by that of the result, then of the input.
pub(crate) struct Elementwise {
    scale: Function,
    fill: Pair,
    add_acc: [Pair; 2],
    /// To bf16; to f32.
    narrow: Function,
    widen: Function,
    add_bias_acc: Pair,
    bias_bwd_acc: Pair,
    dropout: [Pair; 2],
}

impl Elementwise {
    pub fn load(modules: &Modules) -> Result<Self> {
        Ok(Elementwise {
            scale: modules.function("scale_f32")?,
            fill: pair(modules, ["fill_f32", "fill_bf16"])?,
            add_acc: pairs(
                modules,
                ["add_acc_f32_f32", "add_acc_f32_bf16", "add_acc_bf16_f32", "add_acc_bf16_bf16"],
            )?,
            narrow: modules.function("convert_bf16_f32")?,
            widen: modules.function("convert_f32_bf16")?,
            add_bias_acc: pair(modules, ["add_bias_acc_f32", "add_bias_acc_bf16"])?,
            bias_bwd_acc: pair(modules, ["bias_bwd_acc_f32", "bias_bwd_acc_bf16"])?,
            dropout: pairs(
                modules,
                ["dropout_f32_f32", "dropout_f32_bf16", "dropout_bf16_f32", "dropout_bf16_bf16"],
            )?,
        })
    }
}

/// The scalars of a kernel over `n` elements of arrays at these addresses.
fn scalars(n: usize, value: f32, addresses: &[u64]) -> ElementsParams {
    ElementsParams { n: n as u64, value, wide: wide(addresses).into() }
}

/// Launches a kernel over `n` elements, of which there are some.
///
/// # Safety
/// As of [`Gpu::launch`], for a kernel that touches no element from `n` on.
unsafe fn launch(gpu: &Gpu, function: &Function, n: usize, args: &mut [*mut c_void]) -> Result<()> {
    let shape = by_elements("elements of an array", n, params::ELEMENTWISE_THREADS)?;
    // SAFETY: the caller's promise.
    unsafe { gpu.launch(function, shape, args) }
}

/// `x += y`, element by element, of numbers of either type. Adds in f32; rounded once, to the type of
/// x: the CPU's bits (`tests/cuda_vs_cpu/elementwise.rs`).
///
/// # Errors
/// When the lengths differ, or the launch fails.
pub fn add_acc(gpu: &Gpu, x: FloatsMut<'_>, y: Floats<'_>) -> Result<()> {
    let n = x.len();
    expect_len("add_acc", "y", y.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let function = &gpu.elementwise.add_acc[instance(&x.as_floats())][instance(&y)];
    let [mut to, mut from] = [x.address(), y.address()];
    let mut p = scalars(n, 0.0, &[to, from]);
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut p)];
    // SAFETY: both have `n` elements of the instance's types, compared above.
    unsafe { launch(gpu, function, n, &mut args) }
}

/// `out = x`: exact, or rounded to nearest even; within a type the bits are copied. Overwrites.
///
/// # Errors
/// When the lengths differ, or the launch fails.
pub fn convert(gpu: &Gpu, out: FloatsMut<'_>, x: Floats<'_>) -> Result<()> {
    let n = out.len();
    expect_len("convert", "x", x.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let (function, mut to, mut from) = match (out, x) {
        (FloatsMut::F32(mut out), Floats::F32(x)) => return gpu.copy(&mut out, &x),
        (FloatsMut::Bf16(mut out), Floats::Bf16(x)) => return gpu.copy(&mut out, &x),
        (FloatsMut::F32(out), Floats::Bf16(x)) => {
            (&gpu.elementwise.widen, out.address(), x.address())
        }
        (FloatsMut::Bf16(out), Floats::F32(x)) => {
            (&gpu.elementwise.narrow, out.address(), x.address())
        }
    };
    let mut p = scalars(n, 0.0, &[to, from]);
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut p)];
    // SAFETY: both have `n` elements of the instance's types, compared above.
    unsafe { launch(gpu, function, n, &mut args) }
}

/// `x *= factor`; the CPU's bits.
///
/// # Errors
/// When the launch fails.
pub fn scale(gpu: &Gpu, x: DeviceSliceMut<'_, f32>, factor: f32) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let mut to = x.address();
    let mut p = scalars(x.len(), factor, &[to]);
    // SAFETY: `x` has `n` elements, its own length.
    unsafe { launch(gpu, &gpu.elementwise.scale, x.len(), &mut [arg(&mut to), arg(&mut p)]) }
}

/// `x = value`, rounded to its type. Overwrites.
///
/// # Errors
/// When the launch fails.
pub fn fill(gpu: &Gpu, x: FloatsMut<'_>, value: f32) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let mut to = x.address();
    let mut p = scalars(x.len(), value, &[to]);
    let function = &gpu.elementwise.fill[instance(&x.as_floats())];
    // SAFETY: `x` has `n` elements of the instance's type, its own length.
    unsafe { launch(gpu, function, x.len(), &mut [arg(&mut to), arg(&mut p)]) }
}

/// `x[row] += bias` for each row of `bias.len()` elements; f32 in between, rounded once: the CPU's
/// bits.
///
/// # Errors
/// When `x` is not whole rows, or the launch fails.
pub fn add_bias_acc(gpu: &Gpu, x: FloatsMut<'_>, bias: DeviceSlice<'_, f32>) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let columns = bias.len();
    let rows = rows_of("add_bias_acc", x.len(), columns)?;
    let [mut to, mut from] = [x.address(), bias.address()];
    let mut p = BiasParams {
        rows: rows as u64,
        columns: u32_of("columns of add_bias_acc", columns)?,
        wide: wide_rows(columns, &[to, from]).into(),
    };
    let threads = params::ELEMENTWISE_THREADS;
    let shape = by_rows("rows of add_bias_acc", rows, columns, threads)?;
    let function = &gpu.elementwise.add_bias_acc[instance(&x.as_floats())];
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut p)];
    // SAFETY: `x` has `rows` rows of the length of `bias`, of the instance's type; `wide` is set by
    // addresses and length.
    unsafe { gpu.launch(function, shape, &mut args) }
}

/// `dbias += ` the sum of the rows of `dout`, each `dbias.len()` elements.
///
/// Rows are added one after the other in blocks of `BIAS_GRAD_ROWS`, and the blocks' sums in their
/// order, so the bits depend on the number of rows alone. Error: an epsilon for each addition of a
/// chain (`rows / 64 + 64` at most) of the sum of absolute terms (`tests/cuda_vs_cpu/elementwise.rs`).
///
/// # Errors
/// When `dout` is not whole rows, or the launch fails.
pub fn bias_bwd_acc(gpu: &Gpu, dbias: DeviceSliceMut<'_, f32>, dout: Floats<'_>) -> Result<()> {
    if dout.is_empty() {
        return Ok(());
    }
    let columns = dbias.len();
    let rows = rows_of("bias_bwd_acc", dout.len(), columns)?;
    let mut p = BiasParams {
        rows: rows as u64,
        columns: u32_of("columns of bias_bwd_acc", columns)?,
        wide: 0,
    };
    let blocks = columns.div_ceil(params::BIAS_COLUMNS as usize);
    let grid = [u32_of("columns of bias_bwd_acc", blocks)?, 1, 1];
    let shape = Launch { grid, block: params::BIAS_COLUMNS * params::BIAS_WARPS, shared_bytes: 0 };
    let [mut to, mut from] = [dbias.address(), dout.address()];
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut p)];
    // SAFETY: `dout` has `rows` rows of the length of `dbias`, of the instance's type.
    unsafe { gpu.launch(&gpu.elementwise.bias_bwd_acc[instance(&dout)], shape, &mut args) }
}

/// `out[i] = x[i] / (1 - p)` where element `first + i` of the mask of `key` is kept, else
/// `x[i] * 0`; overwrites. The mask and the bits are those of `puna_cpu::dropout::dropout`.
///
/// # Errors
/// When the lengths differ, p is not in [0, 1), or the launch fails.
pub fn dropout(
    gpu: &Gpu,
    out: FloatsMut<'_>,
    x: Floats<'_>,
    p: f32,
    key: u64,
    first: u64,
) -> Result<()> {
    let n = out.len();
    expect_len("dropout", "x", x.len(), n)?;
    if !(0.0..1.0).contains(&p) {
        return Err(Error::config("dropout", p, "wanted at least 0 and less than 1"));
    }
    if n == 0 {
        return Ok(());
    }
    let Mask { key, limit, factor } = Mask::new(p, key);
    let function = &gpu.elementwise.dropout[instance(&out.as_floats())][instance(&x)];
    let [mut to, mut from] = [out.address(), x.address()];
    let wide = wide(&[to, from]).into();
    let mut scalars = DropoutParams { n: n as u64, first, key, limit, factor, wide, pad_: 0 };
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut scalars)];
    // SAFETY: both have `n` elements of the instance's types, compared above.
    unsafe { launch(gpu, function, n, &mut args) }
}
