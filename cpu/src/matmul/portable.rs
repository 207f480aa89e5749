//! Plain products with dense weights, on eight lanes that the compiler may vectorise.

use super::{Chunk, Dense};
use crate::team::SharedMut;
use half::{bf16, f16};

const LANES: usize = 8;

/// One chunk, all its rows.
///
/// # Safety
/// No other thread uses the chunk's columns of `out`.
pub unsafe fn chunk(out: &SharedMut<'_, f32>, chunk: &Chunk<'_>) {
    let size = chunk.w.dtype.bytes();
    let mut row = [0.0f32; super::K_CHUNK];
    for n in chunk.rows.clone() {
        let at = (n * chunk.w.k + chunk.from) * size;
        widen(&mut row[..chunk.len], &chunk.w.bytes[at..at + chunk.len * size], chunk.w.dtype);
        for m in 0..chunk.m {
            let x = &chunk.acts.f32[m * chunk.w.k + chunk.from..][..chunk.len];
            // SAFETY: by this function's contract.
            unsafe { chunk.put(out, m, n, dot(&row[..chunk.len], x)) };
        }
    }
}

fn widen(out: &mut [f32], bytes: &[u8], dtype: Dense) {
    match dtype {
        Dense::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        Dense::F16 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        Dense::BF16 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
    }
}

fn dot(w: &[f32], x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (w_lanes, w_tail) = w.split_at(w.len() - w.len() % LANES);
    let (x_lanes, x_tail) = x.split_at(w_lanes.len());
    for (w, x) in w_lanes.chunks_exact(LANES).zip(x_lanes.chunks_exact(LANES)) {
        for i in 0..LANES {
            lanes[i] += w[i] * x[i];
        }
    }
    for (i, (w, x)) in w_tail.iter().zip(x_tail).enumerate() {
        lanes[i] += w * x;
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}
