//! Root-mean-square normalisation on the device, forward and backward. Source: `cuda/rms_norm.cu`,
//! twin of `puna_cpu::rms_norm`.

use super::floats::expect_dtype;
use super::params::{self, RmsNormParams};
use super::{
    DeviceSlice, DeviceSliceMut, Floats, FloatsMut, Function, Gpu, Launch, Modules, aligned, arg,
    expect_len, u32_of,
};
use crate::{Error, Result};

/// The kernels, by the type of x: f32, bf16; backward last bf16 with gradients in f32.
pub(crate) struct RmsNorm {
    fwd: [Function; 2],
    bwd: [Function; 3],
    dw: [Function; 3],
    dw_acc: Function,
}

impl RmsNorm {
    pub fn load(modules: &Modules) -> Result<Self> {
        let pair = |names: [&'static str; 2]| -> Result<[Function; 2]> {
            Ok([modules.function(names[0])?, modules.function(names[1])?])
        };
        Ok(RmsNorm {
            fwd: pair(["rms_norm_f32", "rms_norm_bf16"])?,
            bwd: [
                modules.function("rms_norm_bwd_f32")?,
                modules.function("rms_norm_bwd_bf16")?,
                modules.function("rms_norm_bwd_f32_bf16")?,
            ],
            dw: [
                modules.function("rms_norm_dw_f32")?,
                modules.function("rms_norm_dw_bf16")?,
                modules.function("rms_norm_dw_f32_bf16")?,
            ],
            dw_acc: modules.function("rms_norm_dw_acc")?,
        })
    }
}

/// Which of a pair.
fn instance(x: &Floats<'_>) -> usize {
    match x {
        Floats::F32(_) => 0,
        Floats::Bf16(_) => 1,
    }
}

/// Rows of `dim` in `len` elements.
fn rows_of(op: &str, len: usize, dim: usize) -> Result<usize> {
    if dim > 0 && len.is_multiple_of(dim) {
        return Ok(len / dim);
    }
    Err(Error::Shape {
        op: op.to_owned(),
        expected: format!("rows of {dim} elements, at least one"),
        got: format!("{len} elements"),
    })
}

/// The scalars, given every buffer of rows: address and bytes of an element.
fn scalars(rows: usize, dim: usize, eps: f32, of_rows: &[(u64, usize)]) -> Result<RmsNormParams> {
    let vectors = of_rows.iter().all(|&(address, bytes)| aligned(address, dim * bytes));
    Ok(RmsNormParams {
        rows: rows as u64,
        dim: u32_of("elements of a row of rms_norm", dim)?,
        eps,
        vectors: vectors.into(),
        dx_acc: 0,
    })
}

/// One block a row.
fn by_rows(rows: usize) -> Result<Launch> {
    let grid = [u32_of("rows of rms_norm", rows)?, 1, 1];
    Ok(Launch { grid, block: params::RMS_NORM_THREADS, shared_bytes: 0 })
}

/// One thread a column, `blocks` times.
fn by_columns(dim: usize, blocks: usize) -> Result<Launch> {
    let block = params::RMS_NORM_COLUMN_THREADS;
    let columns = u32_of("columns of rms_norm", dim.div_ceil(block as usize))?;
    let grid = [columns, u32_of("blocks of rows of rms_norm", blocks)?, 1];
    Ok(Launch { grid, block, shared_bytes: 0 })
}

/// `out = w * (x / sqrt(mean(x^2) + eps))` for every row of `w.len()` elements; overwrites.
///
/// `out` and `x` of one type; f32 in between. A row's bits depend on its content and length alone.
/// Error: at most `(n / 256 + 24)` epsilons of each element for rows of n, and one more rounding for
/// bf16 (`tests/cuda_vs_cpu/rms_norm.rs`).
///
/// # Errors
/// When lengths or types do not fit each other, or the launch fails.
pub fn rms_norm(
    gpu: &Gpu,
    out: FloatsMut<'_>,
    x: Floats<'_>,
    w: DeviceSlice<'_, f32>,
    eps: f32,
) -> Result<()> {
    let (op, dim) = ("rms_norm", w.len());
    expect_len(op, "out", out.len(), x.len())?;
    expect_dtype(op, "out", out.dtype(), x.dtype())?;
    if x.is_empty() {
        return Ok(());
    }
    let rows = rows_of(op, x.len(), dim)?;
    let bytes = x.element_bytes();
    let of_rows = [(out.address(), bytes), (x.address(), bytes)];
    let mut p = scalars(rows, dim, eps, &of_rows)?;
    let (mut to, mut from, mut weights) = (out.address(), x.address(), w.address());
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut weights), arg(&mut p)];
    let function = &gpu.rms_norm.fwd[instance(&x)];
    // SAFETY: `out` and `x` have `rows` times `dim` elements of the instance's type and `w` has
    // `dim`, all compared above; `vectors` is set by their addresses.
    unsafe { gpu.launch(function, by_rows(rows)?, &mut args) }
}

/// What [`rms_norm_bwd`] reads: `dout` and `x` [rows, dim], `dout` of the type of `x` or f32, `w`
/// [dim].
#[derive(Clone, Copy)]
pub struct RmsNormSaved<'a> {
    /// Gradient of the result.
    pub dout: Floats<'a>,
    /// The forward pass's input.
    pub x: Floats<'a>,
    /// Weights.
    pub w: DeviceSlice<'a, f32>,
    /// As in the forward pass.
    pub eps: f32,
}

/// The gradients of [`rms_norm`]: with `r = 1 / sqrt(mean(x^2) + eps)` of a row and `xhat = x r`,
///
/// `dx = r (w dout - xhat mean(w dout xhat))` and `dw = sum over rows(dout xhat)`.
///
/// `dx`, of the type of `dout`, is overwritten, or added to with `dx_acc`; `dw` is added to. The rows of `dw`'s sum are added
/// in blocks of `RMS_NORM_GRAD_ROWS`, block after block, so its bits do not depend on the launch.
///
/// # Errors
/// When lengths or types do not fit each other, or a launch fails.
pub fn rms_norm_bwd(
    gpu: &Gpu,
    dx: FloatsMut<'_>,
    dx_acc: bool,
    dw: Option<DeviceSliceMut<'_, f32>>,
    saved: RmsNormSaved<'_>,
) -> Result<()> {
    let RmsNormSaved { dout, x, w, eps } = saved;
    let (op, dim) = ("rms_norm_bwd", w.len());
    for (name, len) in [("dx", dx.len()), ("dout", dout.len())] {
        expect_len(op, name, len, x.len())?;
    }
    expect_dtype(op, "dx", dx.dtype(), dout.dtype())?;
    let instance = match (&dout, &x) {
        (Floats::F32(_), Floats::F32(_)) => 0,
        (Floats::Bf16(_), _) => {
            expect_dtype(op, "x", x.dtype(), dout.dtype())?;
            1
        }
        (Floats::F32(_), Floats::Bf16(_)) => 2,
    };
    if let Some(dw) = &dw {
        expect_len(op, "dw", dw.len(), dim)?;
    }
    if x.is_empty() {
        return Ok(());
    }
    let rows = rows_of(op, x.len(), dim)?;
    let (bytes, of_d) = (x.element_bytes(), dout.element_bytes());
    let of_rows = [(dx.address(), of_d), (dout.address(), of_d), (x.address(), bytes)];
    let mut p = scalars(rows, dim, eps, &of_rows)?;
    p.dx_acc = dx_acc.into();
    let n_blocks = rows.div_ceil(params::RMS_NORM_GRAD_ROWS as usize);
    let (rstd, partials) = match &dw {
        Some(_) => (gpu.alloc::<f32>(rows)?, gpu.alloc::<f32>(n_blocks * dim)?),
        None => (gpu.alloc(0)?, gpu.alloc(0)?),
    };
    // Null where no `dw` is asked for.
    let mut rstd = rstd.slice().address();
    let mut partials = partials.slice().address();
    let (mut to, mut douts, mut xs) = (dx.address(), dout.address(), x.address());
    let mut weights = w.address();
    let mut args = [
        arg(&mut to),
        arg(&mut rstd),
        arg(&mut douts),
        arg(&mut xs),
        arg(&mut weights),
        arg(&mut p),
    ];
    // SAFETY: dx, dout and x have `rows` times `dim` elements of the instance's types and w has `dim`,
    // all compared above; rstd has `rows` or is null; `vectors` is set by the addresses.
    unsafe { gpu.launch(&gpu.rms_norm.bwd[instance], by_rows(rows)?, &mut args) }?;
    let Some(dw) = dw else { return Ok(()) };
    // The grid's second side ends at 65535 blocks: 4 million rows.
    let mut args = [arg(&mut partials), arg(&mut douts), arg(&mut xs), arg(&mut rstd), arg(&mut p)];
    let shape = by_columns(dim, n_blocks)?;
    // SAFETY: as above; partials has `n_blocks` times `dim` elements.
    unsafe { gpu.launch(&gpu.rms_norm.dw[instance], shape, &mut args) }?;
    let mut to = dw.address();
    let mut args = [arg(&mut to), arg(&mut partials), arg(&mut p)];
    // SAFETY: dw has `dim` elements, compared above; partials as before.
    unsafe { gpu.launch(&gpu.rms_norm.dw_acc, by_columns(dim, 1)?, &mut args) }
}
