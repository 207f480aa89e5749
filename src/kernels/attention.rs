//! Attention of new rows over one sequence's cache.

use super::{Device, Scratch};
pub use puna_cpu::attention::{AttentionArgs, KvLayer, KvShape, KvType, ScratchArgs};

/// `out = softmax(q kᵀ * scale) v` for each row and head; `out` and `q` are
/// [t, n_heads * head_dim]; the rows' own keys and values are already in the cache.
pub fn attention(
    device: &Device,
    scratch: &mut Scratch,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
    q: &[f32],
) {
    let cpu = &device.cpu;
    puna_cpu::attention::attention(cpu.isa, &cpu.team, args, out, q, &mut scratch.attention);
}

/// Appends rows of keys and values at `first_pos` and on.
pub fn append(device: &Device, kv: &mut KvLayer, first_pos: usize, k: &[f32], v: &[f32]) {
    let shape = kv.shape();
    let width = shape.n_kv_heads * shape.head_dim;
    for (i, (k, v)) in k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate() {
        kv.append(device.cpu.isa, first_pos + i, k, v);
    }
}
