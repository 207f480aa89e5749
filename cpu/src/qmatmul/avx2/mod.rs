//! AVX2 products of packed panels and rounded activations.
//!
//! The operations and their order are those of `avx512`, on two vectors of eight rows. The
//! multiply-add of bytes (`vpmaddubsw`) adds pairs in saturating i16, which caps what may be
//! summed before widening ([`groups_at_once`]).

mod codec;
mod few;
mod many;

pub use few::panel_few;
pub use many::panel_many;

use super::acts::BlockMeta;
use super::layout::{BLOCK, GROUPS, ROWS};
use super::unpack::{Unpacked, unpack};
use crate::quant::BlockType;
use codec::Codec;
use std::arch::x86_64::*;

/// Rows of activations that the few-row kernel takes at most.
pub const FEW: usize = 4;

/// How many groups' pairs of products an i16 holds the sum of:
///
/// * codes below 16: eight, at most 8 * 2 * 15 * 127 = 30,480 of 32,767;
/// * codes below 32: four (31,496);
/// * codes below 64: two (32,004);
/// * 8-bit codes: 0, they do not fit at all. The sign of the weight moves to the activation, and
///   one pair |w| * |a| is at most 2 * 128 * 127 = 32,512.
const fn groups_at_once(block: BlockType) -> usize {
    match block {
        BlockType::Q8_0 => 0,
        BlockType::Q6_K => 2,
        BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5_K => 4,
        _ => 8,
    }
}

/// Integer sums over a block for eight rows: of its halves where these have scales of their own,
/// else of all twice.
///
/// # Safety
/// AVX2; `a` points to the 32 codes of the block's activations.
#[inline(always)]
unsafe fn sums<const B: u8>(w: &[__m256i; GROUPS], a: *const i8) -> [__m256i; 2] {
    // SAFETY: the activations are the caller's promise.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let quad = |g: usize| _mm256_set1_epi32(a.add(4 * g).cast::<i32>().read_unaligned());
        let parts = if Codec::<B>::LAYOUT.half_scales { 2 } else { 1 };
        let run = groups_at_once(Codec::<B>::BLOCK_TYPE);
        let mut out = [_mm256_setzero_si256(); 2];
        for part in 0..parts {
            let (from, to) = (part * GROUPS / parts, (part + 1) * GROUPS / parts);
            let mut sum = _mm256_setzero_si256();
            let mut pending = _mm256_setzero_si256();
            for g in from..to {
                if run == 0 {
                    let w = _mm256_xor_si256(w[g], _mm256_set1_epi8(-128));
                    let a = _mm256_sign_epi8(quad(g), w);
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), a);
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                } else {
                    pending = _mm256_add_epi16(pending, _mm256_maddubs_epi16(w[g], quad(g)));
                    if (g + 1).is_multiple_of(run) || g + 1 == to {
                        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pending, ones));
                        pending = _mm256_setzero_si256();
                    }
                }
            }
            out[part] = sum;
        }
        if parts == 1 {
            out[1] = out[0];
        }
        out
    }
}

/// A block's sums less the offset of the codes times the activations' sum.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn begin<const B: u8>(sums: [__m256i; 2], meta: &BlockMeta) -> [__m256i; 2] {
    // SAFETY: as the function's contract.
    unsafe {
        let layout = Codec::<B>::LAYOUT;
        // Signed codes need no offset: the integer is the same either way.
        let Some(shift) = layout.offset_shift else { return sums };
        if groups_at_once(Codec::<B>::BLOCK_TYPE) == 0 {
            sums
        } else if layout.half_scales {
            let [a, b] = meta.neg_sum.map(|sum| sum << shift);
            [
                _mm256_add_epi32(sums[0], _mm256_set1_epi32(a)),
                _mm256_add_epi32(sums[1], _mm256_set1_epi32(b)),
            ]
        } else {
            let all = _mm256_set1_epi32(meta.neg_sum_all << shift);
            [_mm256_add_epi32(sums[0], all); 2]
        }
    }
}

/// Folds the integer sums of one block into the accumulator: the operations and their order that
/// both kernels share.
///
/// # Safety
/// AVX2 and FMA.
#[inline(always)]
unsafe fn fold<const B: u8>(
    acc: __m256,
    sums: [__m256i; 2],
    scales: [__m256; 2],
    mins: [__m256; 2],
    meta: &BlockMeta,
) -> __m256 {
    let layout = Codec::<B>::LAYOUT;
    // SAFETY: as the function's contract.
    unsafe {
        let mut t = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[0]), scales[0]);
        if layout.half_scales {
            t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[1]), scales[1], t);
        }
        let mut acc = _mm256_fmadd_ps(t, _mm256_set1_ps(meta.d), acc);
        if layout.offset_shift.is_none() && layout.half_scales {
            acc = _mm256_fnmadd_ps(mins[0], _mm256_set1_ps(meta.d_sum[0]), acc);
            acc = _mm256_fnmadd_ps(mins[1], _mm256_set1_ps(meta.d_sum[1]), acc);
        } else if layout.offset_shift.is_none() {
            acc = _mm256_fnmadd_ps(mins[0], _mm256_set1_ps(meta.d_sum_all), acc);
        }
        acc
    }
}

/// The weights of block `b` of a panel in f32, `out[input][row]`.
///
/// # Safety
/// AVX2, FMA, F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn block_weights(
    block: BlockType,
    out: &mut [[f32; ROWS]; BLOCK],
    panel: &[u8],
    n_blocks: usize,
    b: usize,
) {
    let mut u = Unpacked::default();
    unpack(block, &mut u, panel, n_blocks, b);
    super::unpack::block_weights(block, out, &u);
}
