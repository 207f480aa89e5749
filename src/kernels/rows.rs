//! Row-wise operations: normalisation, rotation, activation, addition. Rows are shared among
//! the team when there are many.

use super::Cpu;
use puna_cpu::{elementwise, rms_norm, rope, swiglu};

pub use puna_cpu::rope::Pairing;

/// From this many rows on the team shares them.
const ROWS_TO_SHARE: usize = 8;

/// `out = w * x / rms(x)` for each row of `x` [m, dim]; overwrites.
pub fn rms_norm(cpu: &Cpu, out: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let dim = w.len();
    cpu.team.split_rows(out, dim, ROWS_TO_SHARE, &|rows, out| {
        rms_norm::rms_norm(cpu.isa, out, &x[rows.start * dim..rows.end * dim], w, eps);
    });
}

/// `x += y`, elementwise; rows of `dim` values.
pub fn add_acc(cpu: &Cpu, x: &mut [f32], y: &[f32], dim: usize) {
    cpu.team.split_rows(x, dim, ROWS_TO_SHARE, &|rows, x| {
        elementwise::add_acc(cpu.isa, x, &y[rows.start * dim..rows.end * dim]);
    });
}

/// `x += bias` for each row.
pub fn add_bias_acc(cpu: &Cpu, x: &mut [f32], bias: &[f32]) {
    cpu.team.split_rows(x, bias.len(), ROWS_TO_SHARE, &|_, x| {
        elementwise::add_bias_acc(cpu.isa, x, bias);
    });
}

/// `out = silu(gate) * up`; rows of `hidden` values; overwrites.
pub fn swiglu(cpu: &Cpu, out: &mut [f32], gate: &[f32], up: &[f32], hidden: usize) {
    cpu.team.split_rows(out, hidden, ROWS_TO_SHARE, &|rows, out| {
        let range = rows.start * hidden..rows.end * hidden;
        swiglu::swiglu(cpu.isa, out, &gate[range.clone()], &up[range]);
    });
}

/// Angles of some rows' rotations, each [m, rotated dimensions / 2].
#[derive(Clone, Copy)]
pub struct Angles<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Values of a row.
    pub half: usize,
}

/// Rotates the heads of each row of `x` [m, width], whole heads of `head_dim`, by its angles.
pub fn rope(
    cpu: &Cpu,
    x: &mut [f32],
    width: usize,
    head_dim: usize,
    angles: Angles<'_>,
    pairing: Pairing,
) {
    let Angles { cos, sin, half } = angles;
    cpu.team.split_rows(x, width, ROWS_TO_SHARE, &|rows, x| {
        for (row, x) in rows.zip(x.chunks_exact_mut(width)) {
            let row = row * half..(row + 1) * half;
            rope::rope(cpu.isa, x, head_dim, &cos[row.clone()], &sin[row], pairing);
        }
    });
}
