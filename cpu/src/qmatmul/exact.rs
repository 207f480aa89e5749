//! Products of packed panels and f32 activations that are not rounded: for verification
//! (`--exact`). Lanes are output rows; each result is one chain over the inputs in order.

use super::layout::{BLOCK, ROWS};
use super::unpack::{Unpacked, block_weights, unpack};
use crate::isa::{Isa, Level};
use crate::quant::BlockType;

/// Results of all rows of `x` [m, k] for one panel: `put(m, results)`.
pub fn panel_exact(
    isa: Isa,
    block: BlockType,
    panel: &[u8],
    x: &[f32],
    k: usize,
    put: &mut dyn FnMut(usize, &[f32; ROWS]),
) {
    // Few enough rows that their sums stay in the first-level cache beside a block's weights.
    const ROWS_AT_ONCE: usize = 64;
    let n_blocks = k / BLOCK;
    let mut u = Unpacked::default();
    let mut w = [[0.0f32; ROWS]; BLOCK];
    for (chunk, x) in x.chunks(ROWS_AT_ONCE * k).enumerate() {
        let mut sums = [[0.0f32; ROWS]; ROWS_AT_ONCE];
        for b in 0..n_blocks {
            unpack(block, &mut u, panel, n_blocks, b);
            block_weights(block, &mut w, &u);
            for (row, sum) in x.chunks_exact(k).zip(&mut sums) {
                add(isa, sum, &w, &row[b * BLOCK..][..BLOCK]);
            }
        }
        for (m, sum) in sums.iter().take(x.len() / k).enumerate() {
            put(chunk * ROWS_AT_ONCE + m, sum);
        }
    }
}

fn add(isa: Isa, sum: &mut [f32; ROWS], w: &[[f32; ROWS]; BLOCK], x: &[f32]) {
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an Isa of this level exists only where the features were detected.
        Level::Avx512 => unsafe { add_avx512(sum, w, x) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: likewise.
        Level::Avx2 => unsafe { add_avx2(sum, w, x) },
        _ => {
            for (w, &x) in w.iter().zip(x) {
                for (sum, w) in sum.iter_mut().zip(w) {
                    *sum += w * x;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn add_avx512(sum: &mut [f32; ROWS], w: &[[f32; ROWS]; BLOCK], x: &[f32]) {
    add_fused(sum, w, x);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn add_avx2(sum: &mut [f32; ROWS], w: &[[f32; ROWS]; BLOCK], x: &[f32]) {
    add_fused(sum, w, x);
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn add_fused(sum: &mut [f32; ROWS], w: &[[f32; ROWS]; BLOCK], x: &[f32]) {
    let mut lanes = *sum;
    for (w, &x) in w.iter().zip(x) {
        for (lane, &w) in lanes.iter_mut().zip(w) {
            *lane = w.mul_add(x, *lane);
        }
    }
    *sum = lanes;
}
