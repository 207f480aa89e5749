//! Plain products of packed panels and rounded activations: the operations and their order are
//! those of `avx512.rs`, with a product and a sum where that has one fused multiply-add.

use super::acts::QActs;
use super::layout::{BLOCK, GROUPS, Layout, ROWS, VECTOR};
use super::unpack::{Unpacked, unpack};
use crate::quant::BlockType;

/// One row `m` of activations, one panel.
pub fn panel_row(block: BlockType, out: &mut [f32; ROWS], panel: &[u8], acts: &QActs, m: usize) {
    let layout = Layout::of(block);
    let (codes, metas) = (acts.codes(m), acts.meta(m));
    let mut u = Unpacked::default();
    *out = [0.0; ROWS];
    for (b, meta) in metas.iter().enumerate() {
        unpack(block, &mut u, panel, metas.len(), b);
        let a = &codes[b * BLOCK..][..BLOCK];
        let begin = match layout.offset_shift {
            Some(shift) => meta.neg_sum.map(|sum| sum << shift),
            None => [0; 2],
        };
        let mut sums = [[begin[0]; ROWS], [begin[1]; ROWS]];
        for g in 0..GROUPS {
            let sums = &mut sums[g / (GROUPS / 2)];
            for (r, sum) in sums.iter_mut().enumerate() {
                let w = &u.codes[g * VECTOR + 4 * r..][..4];
                for i in 0..4 {
                    *sum += w[i] as i32 * a[4 * g + i] as i32;
                }
            }
        }
        for (r, out) in out.iter_mut().enumerate() {
            let t = if layout.half_scales {
                sums[0][r] as f32 * u.scales[0][r] + sums[1][r] as f32 * u.scales[1][r]
            } else {
                (sums[0][r] + sums[1][r]) as f32 * u.scales[0][r]
            };
            *out += t * meta.d;
            if layout.offset_shift.is_none() {
                if layout.half_scales {
                    *out -= u.mins[0][r] * meta.d_sum[0];
                    *out -= u.mins[1][r] * meta.d_sum[1];
                } else {
                    *out -= u.mins[0][r] * meta.d_sum_all;
                }
            }
        }
    }
}
