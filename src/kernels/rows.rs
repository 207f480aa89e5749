//! Row-wise operations: normalisation, rotation, activation, addition, selection; forward beside
//! backward. On the CPU rows are shared among the team when there are many.

use super::{Cpu, Device, Floats, FloatsMut, Scratch};
use crate::error::Result;
use crate::tensor::Rows;
use puna_cpu::floats as host;
use puna_cpu::share::share;
use puna_cpu::{dropout, elementwise, rms_norm, rope, swiglu};
use std::ops::Range;

#[cfg(feature = "cuda")]
use crate::cuda;

pub use super::rotations::{Pairing, Rotations};
pub use super::selection::Selection;

/// From this many rows on the team shares them.
const ROWS_TO_SHARE: usize = 8;
/// Rows whose contributions to a weight's gradient are summed first: a constant, so that the sum
/// does not depend on the team.
const GRAD_ROWS: usize = 64;

/// Calls `f` with ranges of rows and the rows of `out`, each `width` values.
fn by_rows(
    cpu: &Cpu,
    out: host::FloatsMut<'_>,
    width: usize,
    f: &(dyn Fn(Range<usize>, host::FloatsMut<'_>) + Sync),
) {
    let n = out.len().checked_div(width).unwrap_or(0);
    if n < ROWS_TO_SHARE {
        if n > 0 {
            f(0..n, out);
        }
        return;
    }
    share(&cpu.team, n, [(out, width)], &|rows, [out]| f(rows, out));
}

/// `out = w * x / rms(x)` for each row of `x` [m, dim]; overwrites.
///
/// # Errors
/// Operands of another device, or one that fails.
pub fn rms_norm(
    device: &Device,
    out: FloatsMut<'_>,
    x: Floats<'_>,
    w: Floats<'_>,
    eps: f32,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        return cuda::rms_norm::rms_norm(gpu, out.cuda()?, x.cuda()?, w.cuda_f32()?, eps);
    }
    let (cpu, out, x, w) = (&device.cpu, out.host()?, x.host()?, w.host_f32()?);
    let dim = w.len();
    by_rows(cpu, out, dim, &|rows, out| {
        let x = x.slice(rows.start * dim..rows.end * dim);
        rms_norm::rms_norm_floats(cpu.isa, out, x, w, eps);
    });
    Ok(())
}

/// Gradients of [`rms_norm()`]: `dx` is overwritten, or added to with `dx_acc`; `dw` is added to.
///
/// # Errors
/// As [`rms_norm()`].
#[allow(clippy::too_many_arguments)]
pub fn rms_norm_bwd(
    device: &Device,
    scratch: &mut Scratch,
    dx: FloatsMut<'_>,
    dx_acc: bool,
    dw: Option<FloatsMut<'_>>,
    dout: Floats<'_>,
    x: Floats<'_>,
    w: Floats<'_>,
    eps: f32,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let (dout, x, w) = (dout.cuda()?, x.cuda()?, w.cuda_f32()?);
        let saved = cuda::rms_norm::RmsNormSaved { dout, x, w, eps };
        let dw = dw.map(FloatsMut::cuda_f32).transpose()?;
        return cuda::rms_norm::rms_norm_bwd(gpu, dx.cuda()?, dx_acc, dw, saved);
    }
    let cpu = &device.cpu;
    let (dx, dout, x, w) = (dx.host()?, dout.host()?, x.host()?, w.host_f32()?);
    let dw = dw.map(FloatsMut::host_f32).transpose()?;
    let dim = w.len();
    let m = x.len() / dim;
    let n_blocks = m.div_ceil(GRAD_ROWS);
    let partials = &mut scratch.partials;
    partials.clear();
    partials.resize(if dw.is_some() { n_blocks * dim } else { 0 }, 0.0);
    let with_dw = dw.is_some();
    let of_partials = (host::FloatsMut::F32(partials), if with_dw { dim } else { 0 });
    let outs = [(dx, GRAD_ROWS * dim), of_partials];
    share(&cpu.team, n_blocks, outs, &|blocks, [mut dx, partials]| {
        let host::FloatsMut::F32(partials) = partials else { return };
        let first = blocks.start * GRAD_ROWS;
        for block in blocks.clone() {
            let rows = block * GRAD_ROWS..((block + 1) * GRAD_ROWS).min(m);
            let own = (rows.start - first) * dim..(rows.end - first) * dim;
            let dx = dx.slice_mut(own);
            let rows = rows.start * dim..rows.end * dim;
            let at = block - blocks.start;
            let dw = with_dw.then(|| &mut partials[at * dim..(at + 1) * dim]);
            let (dout, x) = (dout.slice(rows.clone()), x.slice(rows));
            rms_norm::rms_norm_bwd(cpu.isa, dx, dx_acc, dw, dout, x, w, eps);
        }
    });
    if let Some(dw) = dw {
        for partial in partials.chunks_exact(dim) {
            elementwise::add_acc(cpu.isa, dw, partial);
        }
    }
    Ok(())
}

/// `x += y`, elementwise; rows of `dim` values.
///
/// # Errors
/// As [`rms_norm()`].
pub fn add_acc(device: &Device, x: FloatsMut<'_>, y: Floats<'_>, dim: usize) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        return cuda::elementwise::add_acc(gpu, x.cuda()?, y.cuda()?);
    }
    let (cpu, x, y) = (&device.cpu, x.host()?, y.host()?);
    by_rows(cpu, x, dim, &|rows, x| {
        elementwise::add_floats_acc(cpu.isa, x, y.slice(rows.start * dim..rows.end * dim));
    });
    Ok(())
}

/// `out = x`, converted; rows of `dim` values.
///
/// # Errors
/// As [`rms_norm()`].
pub fn convert(device: &Device, out: FloatsMut<'_>, x: Floats<'_>, dim: usize) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        return cuda::elementwise::convert(gpu, out.cuda()?, x.cuda()?);
    }
    let (cpu, out, x) = (&device.cpu, out.host()?, x.host()?);
    by_rows(cpu, out, dim, &|rows, out| {
        elementwise::convert_floats(cpu.isa, out, x.slice(rows.start * dim..rows.end * dim));
    });
    Ok(())
}

/// `x *= factor`, of f32.
///
/// # Errors
/// As [`rms_norm()`]; bf16.
pub fn scale(device: &Device, x: FloatsMut<'_>, factor: f32) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        return cuda::elementwise::scale(gpu, x.cuda_f32()?, factor);
    }
    elementwise::scale(device.cpu.isa, x.host_f32()?, factor);
    Ok(())
}

/// `x += bias` for each row.
///
/// # Errors
/// As [`rms_norm()`].
pub fn add_bias_acc(device: &Device, x: FloatsMut<'_>, bias: Floats<'_>) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        return cuda::elementwise::add_bias_acc(gpu, x.cuda()?, bias.cuda_f32()?);
    }
    let (cpu, x, bias) = (&device.cpu, x.host()?, bias.host_f32()?);
    by_rows(cpu, x, bias.len(), &|_, x| elementwise::add_bias_floats_acc(cpu.isa, x, bias));
    Ok(())
}

/// `dbias += ` the sum of the rows of `dout`, in their order.
///
/// # Errors
/// As [`rms_norm()`].
pub fn bias_bwd_acc(device: &Device, dbias: FloatsMut<'_>, dout: Floats<'_>) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        return cuda::elementwise::bias_bwd_acc(gpu, dbias.cuda_f32()?, dout.cuda()?);
    }
    elementwise::bias_bwd_acc(device.cpu.isa, dbias.host_f32()?, dout.host()?);
    Ok(())
}

/// `out = silu(gate) * up`; rows of `hidden` values; overwrites.
///
/// # Errors
/// As [`rms_norm()`].
pub fn swiglu(
    device: &Device,
    out: FloatsMut<'_>,
    gate: Floats<'_>,
    up: Floats<'_>,
    hidden: usize,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        return cuda::swiglu::swiglu(gpu, out.cuda()?, gate.cuda()?, up.cuda()?);
    }
    let (cpu, out, gate, up) = (&device.cpu, out.host()?, gate.host()?, up.host()?);
    by_rows(cpu, out, hidden, &|rows, out| {
        let range = rows.start * hidden..rows.end * hidden;
        swiglu::swiglu_floats(cpu.isa, out, gate.slice(range.clone()), up.slice(range));
    });
    Ok(())
}

/// Gradients of [`swiglu()`]; overwrites.
///
/// # Errors
/// As [`rms_norm()`].
pub fn swiglu_bwd(
    device: &Device,
    [dgate, dup]: [FloatsMut<'_>; 2],
    dout: Floats<'_>,
    gate: Floats<'_>,
    up: Floats<'_>,
    hidden: usize,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let outs = [dgate.cuda()?, dup.cuda()?];
        return cuda::swiglu::swiglu_bwd(gpu, outs, dout.cuda()?, gate.cuda()?, up.cuda()?);
    }
    let cpu = &device.cpu;
    let (dgate, dup) = (dgate.host()?, dup.host()?);
    let (dout, gate, up) = (dout.host()?, gate.host()?, up.host()?);
    let n = dout.len().checked_div(hidden).unwrap_or(0);
    share(&cpu.team, n, [(dgate, hidden), (dup, hidden)], &|rows, [dgate, dup]| {
        let at = rows.start * hidden..rows.end * hidden;
        let (dout, gate, up) = (dout.slice(at.clone()), gate.slice(at.clone()), up.slice(at));
        swiglu::swiglu_bwd(cpu.isa, dgate, dup, dout, gate, up);
    });
    Ok(())
}

/// Rotates the heads of each row of `x` [m, width], whole heads of `head_dim`, by its angles; with
/// `inverse` back, which is the gradient.
///
/// # Errors
/// As [`rms_norm()`].
pub fn rope(
    device: &Device,
    x: FloatsMut<'_>,
    width: usize,
    head_dim: usize,
    angles: &Rotations,
    pairing: Pairing,
    inverse: bool,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let angles = angles.on(gpu)?;
        return cuda::rope::rope(gpu, x.cuda()?, width, head_dim, angles, pairing, inverse);
    }
    let cpu = &device.cpu;
    let Rotations { cos, sin, half, .. } = angles;
    by_rows(cpu, x.host()?, width, &|rows, mut x| {
        let first = rows.start;
        for row in rows {
            let at = (row - first) * width;
            let angles = row * half..(row + 1) * half;
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            let x = x.slice_mut(at..at + width);
            rope::rope_floats(cpu.isa, x, head_dim, cos, sin, pairing, inverse);
        }
    });
    Ok(())
}

/// A dropout mask: a function of the key and of an element's place, so that applying it to a
/// gradient needs no memory.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// Probability with which an element is dropped.
    pub p: f32,
    /// Chooses the mask.
    pub key: u64,
    /// The mask's row that the first row meets.
    pub first_row: u64,
}

/// Zeroes elements as the mask says and scales the others by `1 / (1 - p)`.
///
/// # Errors
/// As [`rms_norm()`].
pub fn dropout(
    device: &Device,
    out: FloatsMut<'_>,
    x: Floats<'_>,
    width: usize,
    mask: Mask,
) -> Result<()> {
    let Mask { p, key, first_row } = mask;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let first = first_row * width as u64;
        return cuda::elementwise::dropout(gpu, out.cuda()?, x.cuda()?, p, key, first);
    }
    let (cpu, out, x) = (&device.cpu, out.host()?, x.host()?);
    by_rows(cpu, out, width, &|rows, out| {
        let x = x.slice(rows.start * width..rows.end * width);
        let first = (first_row + rows.start as u64) * width as u64;
        dropout::dropout(cpu.isa, out, x, p, key, first);
    });
    Ok(())
}

/// `out[i] = x[keep[i]]`, rows of `width` values.
///
/// # Errors
/// As [`rms_norm()`].
///
/// # Panics
/// When an index is outside.
pub fn select(
    device: &Device,
    out: FloatsMut<'_>,
    x: Floats<'_>,
    keep: &Selection,
    width: usize,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let (out, x) = (out.cuda()?, x.cuda()?);
        return cuda::embedding::select_rows(gpu, out, x, width, keep.on(gpu)?);
    }
    let (_, keep) = (device, keep.rows());
    match (out.host()?, x.host()?) {
        (host::FloatsMut::F32(out), host::Floats::F32(x)) => copy_rows(out, x, keep, width),
        (host::FloatsMut::Bf16(out), host::Floats::Bf16(x)) => copy_rows(out, x, keep, width),
        _ => unreachable!("the result has the type of x"),
    }
    Ok(())
}

/// Row `from` of `x` becomes `out`, [1, width]; both f32.
///
/// # Errors
/// As [`rms_norm()`].
///
/// # Panics
/// When there is no such row, or widths or types differ.
pub fn copy_row(device: &Device, out: &mut Rows, x: &Rows, from: usize) -> Result<()> {
    let width = x.width();
    assert_eq!(out.dims2(), [1, width], "one row of the same width");
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let x = x.floats().cuda_f32()?.range(from * width..(from + 1) * width);
        return gpu.copy(&mut out.floats_mut().cuda_f32()?, &x);
    }
    let _ = device;
    out.f32_mut().copy_from_slice(&x.f32()[from * width..(from + 1) * width]);
    Ok(())
}

fn copy_rows<T: Copy>(out: &mut [T], x: &[T], keep: &[usize], width: usize) {
    for (to, &from) in keep.iter().enumerate() {
        let from = &x[from * width..(from + 1) * width];
        out[to * width..(to + 1) * width].copy_from_slice(from);
    }
}

/// The gradient of [`select()`]: `dx[keep[i]] = dout[i]`, and zeros elsewhere; `keep` has no index
/// twice.
///
/// # Errors
/// As [`rms_norm()`]; bf16.
///
/// # Panics
/// When an index is outside.
pub fn select_bwd(
    device: &Device,
    dx: FloatsMut<'_>,
    dout: Floats<'_>,
    keep: &Selection,
    width: usize,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let (dx, dout) = (dx.cuda()?, dout.cuda()?);
        return cuda::embedding::scatter_rows(gpu, dx, dout, width, keep.on(gpu)?);
    }
    let _ = device;
    let (dx, dout) = (dx.host_f32()?, dout.host_f32()?);
    dx.fill(0.0);
    for (from, &to) in keep.rows().iter().enumerate() {
        let from = &dout[from * width..(from + 1) * width];
        dx[to * width..(to + 1) * width].copy_from_slice(from);
    }
    Ok(())
}
