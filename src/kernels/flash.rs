//! Attention inside packed sequences, forward and backward: what training uses.

use super::{Cpu, Scratch};
use crate::tensor::Rows;

pub use puna_cpu::flash::Shape;

/// Causal attention of every row over its own sequence. `out` and `q` are
/// [t, n_heads * head_dim], `k` and `v` [t, n_kv_heads * head_dim], `lse` [n_heads, t].
pub fn forward(
    cpu: &Cpu,
    scratch: &mut Scratch,
    shape: &Shape<'_>,
    out: &mut Rows,
    lse: &mut Rows,
    [q, k, v]: [&Rows; 3],
) {
    puna_cpu::flash::forward(
        cpu.isa,
        &cpu.team,
        shape,
        out.floats_mut(),
        lse.f32_mut(),
        q.floats(),
        k.floats(),
        v.floats(),
        &mut scratch.flash,
    );
}

/// What the backward pass of attention reads.
pub struct Forward<'a> {
    /// Queries.
    pub q: &'a Rows,
    /// Keys.
    pub k: &'a Rows,
    /// Values.
    pub v: &'a Rows,
    /// The result.
    pub out: &'a Rows,
    /// Logarithms of the sums of exponentials.
    pub lse: &'a Rows,
}

/// Gradients of queries, keys and values; overwrites.
pub fn backward(
    cpu: &Cpu,
    scratch: &mut Scratch,
    shape: &Shape<'_>,
    [dq, dk, dv]: [&mut Rows; 3],
    dout: &Rows,
    saved: &Forward<'_>,
) {
    puna_cpu::flash::backward(
        cpu.isa,
        &cpu.team,
        shape,
        dq.floats_mut(),
        dk.floats_mut(),
        dv.floats_mut(),
        dout.floats(),
        saved.q.floats(),
        saved.k.floats(),
        saved.v.floats(),
        saved.out.floats(),
        saved.lse.f32(),
        &mut scratch.flash,
    );
}
