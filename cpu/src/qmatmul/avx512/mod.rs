//! AVX-512 VNNI products of packed panels and rounded activations.
//!
//! Lanes are the sixteen output rows of a panel. For every block, in order of the inputs:
//!
//! ```text
//! i   = -offset * sum(a) + sum over the block of code * a          exact, i32
//! t   = f32(i) * scale        (two half-blocks: t = i0 * s0; t = fma(i1, s1, t))
//! acc = fma(t, d_a, acc);     with minima: acc = acc - min * (d_a * sum(a)), fused
//! ```
//!
//! The few-row kernel unpacks in registers, the many-row kernel from a scratch of bytes that it
//! fills once per pair of panels; both do these operations in this order, so a row's result does
//! not depend on how many rows are computed with it.

mod codec;
mod many;

pub use many::{Scratch, panels_many};

use super::acts::{BlockMeta, QActs};
use super::fetch_ahead;
use super::layout::{BLOCK, GROUPS, ROWS, id_of};
use crate::quant::BlockType;
use codec::Codec;
use std::arch::x86_64::*;

/// Rows of activations that the few-row kernel takes at most.
pub const FEW: usize = 8;
/// Four neighbouring activations in every lane.
///
/// # Safety
/// AVX-512 F; `p` points to four readable bytes.
#[inline(always)]
unsafe fn quad(p: *const i8) -> __m512i {
    // SAFETY: as the function's contract.
    unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
}

/// Adds the scaled integer sums of half `h` of a block to those before it; of a whole one where
/// it has one scale.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn scaled(before: __m512, sums: __m512i, scale: __m512, h: usize) -> __m512 {
    // SAFETY: as the function's contract.
    unsafe {
        let sums = _mm512_cvtepi32_ps(sums);
        if h == 0 { _mm512_mul_ps(sums, scale) } else { _mm512_fmadd_ps(sums, scale, before) }
    }
}

/// Adds a block's scaled sums to the accumulator.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn add_scaled<const HALVES: bool, const MINS: bool>(
    acc: __m512,
    t: __m512,
    mins: [__m512; 2],
    meta: &BlockMeta,
) -> __m512 {
    // SAFETY: as the function's contract.
    unsafe {
        let mut acc = _mm512_fmadd_ps(t, _mm512_set1_ps(meta.d), acc);
        if MINS && HALVES {
            acc = _mm512_fnmadd_ps(mins[0], _mm512_set1_ps(meta.d_sum[0]), acc);
            acc = _mm512_fnmadd_ps(mins[1], _mm512_set1_ps(meta.d_sum[1]), acc);
        } else if MINS {
            acc = _mm512_fnmadd_ps(mins[0], _mm512_set1_ps(meta.d_sum_all), acc);
        }
        acc
    }
}

/// Folds the integer sums of one block into the accumulator: the operations and their order that
/// both kernels share.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn fold<const HALVES: bool, const MINS: bool>(
    acc: __m512,
    sums: [__m512i; 2],
    scales: [__m512; 2],
    mins: [__m512; 2],
    meta: &BlockMeta,
) -> __m512 {
    // SAFETY: as the function's contract.
    unsafe {
        let mut t = scaled(_mm512_setzero_ps(), sums[0], scales[0], 0);
        if HALVES {
            t = scaled(t, sums[1], scales[1], 1);
        }
        add_scaled::<HALVES, MINS>(acc, t, mins, meta)
    }
}

/// Where the integer sums of a block begin: minus the offset times the activations' sum.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn begin<const HALVES: bool, const MINS: bool>(
    meta: &BlockMeta,
    shift: __m128i,
) -> [__m512i; 2] {
    // SAFETY: as the function's contract.
    unsafe {
        if MINS {
            [_mm512_setzero_si512(); 2]
        } else if HALVES {
            let [a, b] = meta.neg_sum;
            [
                _mm512_sll_epi32(_mm512_set1_epi32(a), shift),
                _mm512_sll_epi32(_mm512_set1_epi32(b), shift),
            ]
        } else {
            let all = _mm512_sll_epi32(_mm512_set1_epi32(meta.neg_sum_all), shift);
            [all, all]
        }
    }
}

/// One panel times `M` rows of activations; `out[m]` are the panel's sixteen results of row m.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn few<const B: u8, const HALVES: bool, const MINS: bool, const M: usize>(
    out: &mut [[f32; ROWS]; FEW],
    panel: &[u8],
    acts: &QActs,
    first: usize,
) {
    let layout = Codec::<B>::LAYOUT;
    let n_blocks = acts.n_blocks();
    assert!(panel.len() >= layout.panel_bytes(n_blocks));
    let codes: [&[i8]; M] = std::array::from_fn(|m| acts.codes(first + m));
    let metas: [&[BlockMeta]; M] = std::array::from_fn(|m| acts.meta(first + m));
    let shift = _mm_cvtsi32_si128(layout.offset_shift.unwrap_or(0) as i32);
    let mut acc = [_mm512_setzero_ps(); M];
    for b in 0..n_blocks {
        // SAFETY: b < n_blocks, so codes, scales and header of block b lie inside the panel, and
        // 32 codes and a meta inside each row of activations; the features are enabled here.
        unsafe {
            let p = panel.as_ptr();
            let at = layout.at(n_blocks, b);
            fetch_ahead(&layout, p, b);
            let w = Codec::<B>::codes(p.add(at.codes));
            let (scale, min) = Codec::<B>::scales(p.add(at.scales), p.add(at.header));
            for m in 0..M {
                let meta = metas[m].get_unchecked(b);
                let a = codes[m].as_ptr().add(b * BLOCK);
                let mut sums = begin::<HALVES, MINS>(meta, shift);
                if HALVES {
                    for g in 0..4 {
                        sums[0] = _mm512_dpbusd_epi32(sums[0], w[g], quad(a.add(4 * g)));
                        sums[1] = _mm512_dpbusd_epi32(sums[1], w[g + 4], quad(a.add(4 * g + 16)));
                    }
                } else {
                    for g in 0..GROUPS {
                        sums[0] = _mm512_dpbusd_epi32(sums[0], w[g], quad(a.add(4 * g)));
                    }
                }
                acc[m] = fold::<HALVES, MINS>(acc[m], sums, scale, min, meta);
            }
        }
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: `out` is sixteen f32.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), acc) };
    }
}

/// `m` (at most [`FEW`]) rows from `first` on, one panel.
///
/// # Safety
/// AVX-512 F, BW, VL, DQ and VNNI.
pub unsafe fn panel_few(
    block: BlockType,
    out: &mut [[f32; ROWS]; FEW],
    panel: &[u8],
    acts: &QActs,
    first: usize,
    m: usize,
) {
    macro_rules! by_rows {
        ($b:expr, $halves:expr, $mins:expr) => {{
            const B: u8 = id_of($b);
            // SAFETY: the caller vouches for the features.
            unsafe {
                match m {
                    1 => few::<B, $halves, $mins, 1>(out, panel, acts, first),
                    2 => few::<B, $halves, $mins, 2>(out, panel, acts, first),
                    3 => few::<B, $halves, $mins, 3>(out, panel, acts, first),
                    4 => few::<B, $halves, $mins, 4>(out, panel, acts, first),
                    5 => few::<B, $halves, $mins, 5>(out, panel, acts, first),
                    6 => few::<B, $halves, $mins, 6>(out, panel, acts, first),
                    7 => few::<B, $halves, $mins, 7>(out, panel, acts, first),
                    8 => few::<B, $halves, $mins, 8>(out, panel, acts, first),
                    _ => panic!("{m} rows, wanted 1 to {FEW}"),
                }
            }
        }};
    }
    match block {
        BlockType::Q4_0 => by_rows!(BlockType::Q4_0, false, false),
        BlockType::Q4_1 => by_rows!(BlockType::Q4_1, false, true),
        BlockType::Q5_0 => by_rows!(BlockType::Q5_0, false, false),
        BlockType::Q5_1 => by_rows!(BlockType::Q5_1, false, true),
        BlockType::Q8_0 => by_rows!(BlockType::Q8_0, false, false),
        BlockType::Q2_K => by_rows!(BlockType::Q2_K, true, true),
        BlockType::Q3_K => by_rows!(BlockType::Q3_K, true, false),
        BlockType::Q4_K => by_rows!(BlockType::Q4_K, false, true),
        BlockType::Q5_K => by_rows!(BlockType::Q5_K, false, true),
        BlockType::Q6_K => by_rows!(BlockType::Q6_K, true, false),
    }
}

/// The weights of block `b` of a panel in f32, `out[input][row]`.
///
/// # Safety
/// AVX-512 F, BW, VL, DQ; the panel has `n_blocks` blocks, and `b` is one.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub unsafe fn block_weights(
    block: BlockType,
    out: &mut [[f32; ROWS]; BLOCK],
    panel: &[u8],
    n_blocks: usize,
    b: usize,
) {
    macro_rules! weights_as {
        ($($t:ident),*) => {
            match block {
                $(BlockType::$t => {
                    const B: u8 = id_of(BlockType::$t);
                    // SAFETY: this function's contract.
                    unsafe { Codec::<B>::weights(out, panel.as_ptr(), n_blocks, b) }
                })*
            }
        };
    }
    weights_as!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K);
}
