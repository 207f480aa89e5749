//! AVX2 products of packed panels and rounded activations.
//!
//! The operations and their order are those of `avx512.rs`, on two vectors of eight rows. The
//! multiply-add of bytes (`vpmaddubsw`) adds pairs in saturating i16, which caps what may be
//! summed before widening:
//!
//! * codes below 32: four products of at most 2 * 31 * 127 fit (31,496 of 32,767);
//! * codes below 64: two (32,004);
//! * 8-bit codes do not fit at all: the sign of the weight moves to the activation, and
//!   |w| * |a| pairs are at most 2 * 128 * 127 = 32,512.

use super::acts::QActs;
use super::layout::{BLOCK, Layout, ROWS, VECTOR};
use super::unpack::{Unpacked, unpack};
use crate::quant::BlockType;
use std::arch::x86_64::*;

/// Rows of activations that the few-row kernel takes at most.
pub const FEW: usize = 4;

/// How many i16 products are added before widening; 0 stands for signed 8-bit codes.
const fn run_of(block: BlockType) -> usize {
    match block {
        BlockType::Q8_0 => 0,
        BlockType::Q6_K => 2,
        _ => 4,
    }
}

/// Integer sums of half a block (four groups from `g0`) for eight rows (`v`: first or second).
///
/// # Safety
/// AVX2; `a` points to the 32 codes of the block's activations.
#[inline(always)]
unsafe fn half_sum<const RUN: usize>(u: &Unpacked, v: usize, g0: usize, a: *const i8) -> __m256i {
    // SAFETY: g0 is 0 or 4 and v 0 or 1, so loads stay inside the 512 codes; the activations are
    // the caller's promise.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut sum = _mm256_setzero_si256();
        let mut pending = _mm256_setzero_si256();
        for g in g0..g0 + 4 {
            let w = _mm256_loadu_si256(u.codes.as_ptr().add(g * VECTOR + v * 32).cast());
            let x = _mm256_set1_epi32(a.add(4 * g).cast::<i32>().read_unaligned());
            if RUN == 0 {
                let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                let product = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(product, ones));
            } else {
                pending = _mm256_add_epi16(pending, _mm256_maddubs_epi16(w, x));
                if (g + 1).is_multiple_of(RUN) {
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pending, ones));
                    pending = _mm256_setzero_si256();
                }
            }
        }
        sum
    }
}

/// Adds block `b` of one panel for `M` rows of activations.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_block<const RUN: usize, const HALVES: bool, const MINS: bool, const M: usize>(
    acc: &mut [[__m256; 2]; M],
    u: &Unpacked,
    acts: &QActs,
    first: usize,
    b: usize,
    shift: u32,
) {
    for (m, acc) in acc.iter_mut().enumerate() {
        let meta = &acts.meta(first + m)[b];
        let a = acts.codes(first + m)[b * BLOCK..][..BLOCK].as_ptr();
        for (v, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `a` was sliced to 32 codes; rows are eight lanes of the sixteen; AVX2 is
            // enabled here.
            unsafe {
                let lanes = |x: &[f32; ROWS]| _mm256_loadu_ps(x.as_ptr().add(8 * v));
                // Signed codes need no offset: the integer is the same either way.
                let begin = |sum: i32| {
                    let sum = if MINS || RUN == 0 { 0 } else { sum << shift };
                    _mm256_set1_epi32(sum)
                };
                let (s0, s1) = (half_sum::<RUN>(u, v, 0, a), half_sum::<RUN>(u, v, 4, a));
                let mut t;
                if HALVES {
                    let s0 = _mm256_add_epi32(s0, begin(meta.neg_sum[0]));
                    let s1 = _mm256_add_epi32(s1, begin(meta.neg_sum[1]));
                    t = _mm256_mul_ps(_mm256_cvtepi32_ps(s0), lanes(&u.scales[0]));
                    t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s1), lanes(&u.scales[1]), t);
                } else {
                    let s = _mm256_add_epi32(_mm256_add_epi32(s0, s1), begin(meta.neg_sum_all));
                    t = _mm256_mul_ps(_mm256_cvtepi32_ps(s), lanes(&u.scales[0]));
                }
                *acc = _mm256_fmadd_ps(t, _mm256_set1_ps(meta.d), *acc);
                if MINS && HALVES {
                    for h in 0..2 {
                        let sum = _mm256_set1_ps(meta.d_sum[h]);
                        *acc = _mm256_fnmadd_ps(lanes(&u.mins[h]), sum, *acc);
                    }
                } else if MINS {
                    let sum = _mm256_set1_ps(meta.d_sum_all);
                    *acc = _mm256_fnmadd_ps(lanes(&u.mins[0]), sum, *acc);
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn store<const M: usize>(out: &mut [[f32; ROWS]], acc: [[__m256; 2]; M]) {
    for (out, acc) in out[..M].iter_mut().zip(acc) {
        for (v, acc) in acc.into_iter().enumerate() {
            // SAFETY: v is 0 or 1, so eight lanes from 8 v lie inside the sixteen.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * v), acc) };
        }
    }
}

/// Unpacks block by block on the way: for few rows.
macro_rules! few {
    ($t:ident, $halves:expr, $mins:expr, $m:expr, $out:expr, $panel:expr, $acts:expr, $first:expr) => {{
        #[target_feature(enable = "avx2,fma,f16c")]
        fn few(out: &mut [[f32; ROWS]], panel: &[u8], acts: &QActs, first: usize) {
            const RUN: usize = run_of(BlockType::$t);
            let shift = Layout::of(BlockType::$t).offset_shift.unwrap_or(0);
            let mut u = Unpacked::default();
            let mut acc = [[_mm256_setzero_ps(); 2]; $m];
            for b in 0..acts.n_blocks() {
                unpack(BlockType::$t, &mut u, panel, acts.n_blocks(), b);
                add_block::<RUN, $halves, $mins, $m>(&mut acc, &u, acts, first, b, shift);
            }
            store(out, acc);
        }
        few($out, $panel, $acts, $first)
    }};
}

/// `m` (at most [`FEW`]) rows from `first` on, one panel.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn panel_few(
    block: BlockType,
    out: &mut [[f32; ROWS]],
    panel: &[u8],
    acts: &QActs,
    first: usize,
    m: usize,
) {
    macro_rules! by_rows {
        ($t:ident, $halves:expr, $mins:expr) => {
            match m {
                1 => few!($t, $halves, $mins, 1, out, panel, acts, first),
                2 => few!($t, $halves, $mins, 2, out, panel, acts, first),
                3 => few!($t, $halves, $mins, 3, out, panel, acts, first),
                4 => few!($t, $halves, $mins, 4, out, panel, acts, first),
                _ => panic!("{m} rows, wanted 1 to {FEW}"),
            }
        };
    }
    match block {
        BlockType::Q4_0 => by_rows!(Q4_0, false, false),
        BlockType::Q4_1 => by_rows!(Q4_1, false, true),
        BlockType::Q5_0 => by_rows!(Q5_0, false, false),
        BlockType::Q5_1 => by_rows!(Q5_1, false, true),
        BlockType::Q8_0 => by_rows!(Q8_0, false, false),
        BlockType::Q2_K => by_rows!(Q2_K, true, true),
        BlockType::Q3_K => by_rows!(Q3_K, true, false),
        BlockType::Q4_K => by_rows!(Q4_K, false, true),
        BlockType::Q5_K => by_rows!(Q5_K, false, true),
        BlockType::Q6_K => by_rows!(Q6_K, true, false),
    }
}

/// Unpacks a whole panel, for the many-row kernel.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn unpack_panel(block: BlockType, blocks: &mut [Unpacked], panel: &[u8]) {
    let n_blocks = blocks.len();
    macro_rules! each {
        ($($t:ident),*) => {
            match block {
                $(BlockType::$t => {
                    for (b, u) in blocks.iter_mut().enumerate() {
                        unpack(BlockType::$t, u, panel, n_blocks, b);
                    }
                })*
            }
        };
    }
    each!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K);
}

/// `m` (at most [`FEW`]) rows from `first` on, one unpacked panel.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn unpacked_few(
    block: BlockType,
    out: &mut [[f32; ROWS]],
    blocks: &[Unpacked],
    acts: &QActs,
    first: usize,
    m: usize,
) {
    let shift = Layout::of(block).offset_shift.unwrap_or(0);
    macro_rules! rows {
        ($run:expr, $halves:expr, $mins:expr, $m:expr) => {{
            let mut acc = [[_mm256_setzero_ps(); 2]; $m];
            for (b, u) in blocks.iter().enumerate() {
                add_block::<$run, $halves, $mins, $m>(&mut acc, u, acts, first, b, shift);
            }
            store(out, acc);
        }};
    }
    macro_rules! by_rows {
        ($run:expr, $halves:expr, $mins:expr) => {
            match m {
                1 => rows!($run, $halves, $mins, 1),
                2 => rows!($run, $halves, $mins, 2),
                3 => rows!($run, $halves, $mins, 3),
                4 => rows!($run, $halves, $mins, 4),
                _ => panic!("{m} rows, wanted 1 to {FEW}"),
            }
        };
    }
    match block {
        BlockType::Q4_0 | BlockType::Q5_0 => by_rows!(4, false, false),
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => {
            by_rows!(4, false, true)
        }
        BlockType::Q8_0 => by_rows!(0, false, false),
        BlockType::Q2_K => by_rows!(4, true, true),
        BlockType::Q3_K => by_rows!(4, true, false),
        BlockType::Q6_K => by_rows!(2, true, false),
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
