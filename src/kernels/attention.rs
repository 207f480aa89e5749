//! Attention of new rows over one sequence's cache.

use super::Cpu;
pub use puna_cpu::attention::{AttentionArgs, AttentionScratch, KvLayer, KvShape, KvType};

/// `out = softmax(q kᵀ * scale) v` for each row and head; `out` and `q` are
/// [t, n_heads * head_dim]; the rows' own keys and values are already in the cache.
pub fn attention(
    cpu: &Cpu,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
    q: &[f32],
    scratch: &mut AttentionScratch,
) {
    puna_cpu::attention::attention(cpu.isa, &cpu.team, args, out, q, scratch);
}
