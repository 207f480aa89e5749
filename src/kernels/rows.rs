//! Row-wise operations: normalisation, rotation, activation, addition; forward beside backward.
//! Rows are shared among the team when there are many.

use super::{Cpu, Floats, FloatsMut, Scratch};
use puna_cpu::share::share;
use puna_cpu::{dropout, elementwise, rms_norm, rope, swiglu};

pub use puna_cpu::rope::Pairing;

/// From this many rows on the team shares them.
const ROWS_TO_SHARE: usize = 8;
/// Rows whose contributions to a weight's gradient are summed first: a constant, so that the sum
/// does not depend on the team.
const GRAD_ROWS: usize = 64;

/// Calls `f` with ranges of rows and the rows of `out`, each `width` values.
fn by_rows(
    cpu: &Cpu,
    out: FloatsMut<'_>,
    width: usize,
    f: &(dyn Fn(std::ops::Range<usize>, FloatsMut<'_>) + Sync),
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
pub fn rms_norm(cpu: &Cpu, out: FloatsMut<'_>, x: Floats<'_>, w: &[f32], eps: f32) {
    let dim = w.len();
    by_rows(cpu, out, dim, &|rows, out| {
        let x = x.slice(rows.start * dim..rows.end * dim);
        rms_norm::rms_norm_floats(cpu.isa, out, x, w, eps);
    });
}

/// Gradients of [`rms_norm()`]: `dx` is overwritten, or added to with `dx_acc`; `dw` is added to.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm_bwd(
    cpu: &Cpu,
    scratch: &mut Scratch,
    dx: FloatsMut<'_>,
    dx_acc: bool,
    dw: Option<&mut [f32]>,
    dout: Floats<'_>,
    x: Floats<'_>,
    w: &[f32],
    eps: f32,
) {
    let dim = w.len();
    let m = x.len() / dim;
    let n_blocks = m.div_ceil(GRAD_ROWS);
    let partials = &mut scratch.partials;
    partials.clear();
    partials.resize(if dw.is_some() { n_blocks * dim } else { 0 }, 0.0);
    let with_dw = dw.is_some();
    let outs = [(dx, GRAD_ROWS * dim), (FloatsMut::F32(partials), if with_dw { dim } else { 0 })];
    share(&cpu.team, n_blocks, outs, &|blocks, [mut dx, partials]| {
        let FloatsMut::F32(partials) = partials else { return };
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
}

/// `x += y`, elementwise; rows of `dim` values.
pub fn add_acc(cpu: &Cpu, x: FloatsMut<'_>, y: Floats<'_>, dim: usize) {
    by_rows(cpu, x, dim, &|rows, x| {
        elementwise::add_floats_acc(cpu.isa, x, y.slice(rows.start * dim..rows.end * dim));
    });
}

/// `out = x`, converted; rows of `dim` values.
pub fn convert(cpu: &Cpu, out: FloatsMut<'_>, x: Floats<'_>, dim: usize) {
    by_rows(cpu, out, dim, &|rows, out| {
        elementwise::convert_floats(cpu.isa, out, x.slice(rows.start * dim..rows.end * dim));
    });
}

/// `x *= factor`.
pub fn scale(cpu: &Cpu, x: &mut [f32], factor: f32) {
    elementwise::scale(cpu.isa, x, factor);
}

/// `x += bias` for each row.
pub fn add_bias_acc(cpu: &Cpu, x: FloatsMut<'_>, bias: &[f32]) {
    by_rows(cpu, x, bias.len(), &|_, x| elementwise::add_bias_floats_acc(cpu.isa, x, bias));
}

/// `dbias += ` the sum of the rows of `dout`, in their order.
pub fn bias_bwd_acc(cpu: &Cpu, dbias: &mut [f32], dout: Floats<'_>) {
    elementwise::bias_bwd_acc(cpu.isa, dbias, dout);
}

/// `out = silu(gate) * up`; rows of `hidden` values; overwrites.
pub fn swiglu(cpu: &Cpu, out: FloatsMut<'_>, gate: Floats<'_>, up: Floats<'_>, hidden: usize) {
    by_rows(cpu, out, hidden, &|rows, out| {
        let range = rows.start * hidden..rows.end * hidden;
        swiglu::swiglu_floats(cpu.isa, out, gate.slice(range.clone()), up.slice(range));
    });
}

/// Gradients of [`swiglu()`]; overwrites.
pub fn swiglu_bwd(
    cpu: &Cpu,
    [dgate, dup]: [FloatsMut<'_>; 2],
    dout: Floats<'_>,
    gate: Floats<'_>,
    up: Floats<'_>,
    hidden: usize,
) {
    let n = dout.len().checked_div(hidden).unwrap_or(0);
    share(&cpu.team, n, [(dgate, hidden), (dup, hidden)], &|rows, [dgate, dup]| {
        let at = rows.start * hidden..rows.end * hidden;
        let (dout, gate, up) = (dout.slice(at.clone()), gate.slice(at.clone()), up.slice(at));
        swiglu::swiglu_bwd(cpu.isa, dgate, dup, dout, gate, up);
    });
}

/// Angles of some rows' rotations, each [m, half].
#[derive(Default)]
pub struct Rotations {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
    /// Values of a row: rotated dimensions / 2.
    pub half: usize,
}

/// Rotates the heads of each row of `x` [m, width], whole heads of `head_dim`, by its angles; with
/// `inverse` back, which is the gradient.
pub fn rope(
    cpu: &Cpu,
    x: FloatsMut<'_>,
    width: usize,
    head_dim: usize,
    angles: &Rotations,
    pairing: Pairing,
    inverse: bool,
) {
    let Rotations { cos, sin, half } = angles;
    by_rows(cpu, x, width, &|rows, mut x| {
        let first = rows.start;
        for row in rows {
            let at = (row - first) * width;
            let angles = row * half..(row + 1) * half;
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            let x = x.slice_mut(at..at + width);
            rope::rope_floats(cpu.isa, x, head_dim, cos, sin, pairing, inverse);
        }
    });
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
pub fn dropout(cpu: &Cpu, out: FloatsMut<'_>, x: Floats<'_>, width: usize, mask: Mask) {
    let Mask { p, key, first_row } = mask;
    by_rows(cpu, out, width, &|rows, out| {
        let x = x.slice(rows.start * width..rows.end * width);
        let first = (first_row + rows.start as u64) * width as u64;
        dropout::dropout(cpu.isa, out, x, p, key, first);
    });
}
