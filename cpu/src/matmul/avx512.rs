//! AVX-512 products with dense weights: register tiles of output rows by activation rows, lanes
//! along the inputs.

use super::{Chunk, Dense};
use crate::team::SharedMut;
use std::arch::x86_64::*;

/// Output rows of a tile.
const N: usize = 4;
/// Activation rows of a tile: 24 accumulators leave room for the operands in 32 registers.
const M: usize = 6;

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;
/// BF16 weights times BF16 activations, pairs of inputs a lane.
const BF16_PAIRS: u8 = 3;

/// One chunk, all its rows.
///
/// # Safety
/// AVX-512 F, BW, VL, DQ, and BF16 if `has_bf16`; the chunk's addresses hold `len` inputs; no
/// other thread uses its columns of `out`.
pub unsafe fn chunk(has_bf16: bool, out: &SharedMut<'_, f32>, chunk: &Chunk<'_>) {
    // SAFETY: by this function's contract.
    unsafe {
        match chunk.w.dtype {
            Dense::F32 => plain::<F32>(out, chunk),
            Dense::F16 => plain::<F16>(out, chunk),
            Dense::BF16 if has_bf16 && chunk.acts.bf16.is_some() => pairs(out, chunk),
            Dense::BF16 => plain::<BF16>(out, chunk),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn plain<const T: u8>(out: &SharedMut<'_, f32>, chunk: &Chunk<'_>) {
    // SAFETY: the caller's contract, passed on.
    unsafe { tiles::<T>(out, chunk) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pairs(out: &SharedMut<'_, f32>, chunk: &Chunk<'_>) {
    // SAFETY: the caller's contract, passed on.
    unsafe { tiles::<BF16_PAIRS>(out, chunk) }
}

#[inline(always)]
unsafe fn tiles<const T: u8>(out: &SharedMut<'_, f32>, chunk: &Chunk<'_>) {
    let mut m = 0;
    while m < chunk.m {
        let rows = (chunk.m - m).min(M);
        let mut n = chunk.rows.start;
        while n < chunk.rows.end {
            let cols = (chunk.rows.end - n).min(N);
            macro_rules! by_size {
                ($($cols:literal: $($rows:literal)*;)*) => {
                    match (cols, rows) {
                        // SAFETY: the caller's contract; rows and columns exist.
                        $($(($cols, $rows) => unsafe { tile::<T, $cols, $rows>(out, chunk, n, m) },)*)*
                        _ => {}
                    }
                };
            }
            by_size!(
                4: 1 2 3 4 5 6;
                3: 1 2 3 4 5 6;
                2: 1 2 3 4 5 6;
                1: 1 2 3 4 5 6;
            );
            n += cols;
        }
        m += rows;
    }
}

/// `N` output rows from `n`, `M` activation rows from `m`.
#[inline(always)]
unsafe fn tile<const T: u8, const N: usize, const M: usize>(
    out: &SharedMut<'_, f32>,
    chunk: &Chunk<'_>,
    n: usize,
    m: usize,
) {
    let w: [*const u8; N] = std::array::from_fn(|i| chunk.weights(n + i));
    // SAFETY: all addresses below are within `len` inputs of a row; features by the callers.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); N]; M];
        if T == BF16_PAIRS {
            const STEP: usize = 32;
            let x: [*const half::bf16; M] = std::array::from_fn(|j| chunk.x_bf16(m + j));
            let mut step = |i: usize, mask: __mmask32| {
                let load = |p: *const u8| _mm512_maskz_loadu_epi16(mask, p.cast());
                let mut wv = [_mm512_setzero_si512(); N];
                for (v, w) in wv.iter_mut().zip(w) {
                    *v = load(w.add(2 * i));
                }
                for j in 0..M {
                    let xv = load(x[j].add(i).cast());
                    for c in 0..N {
                        acc[j][c] = _mm512_dpbf16_ps(
                            acc[j][c],
                            std::mem::transmute::<__m512i, __m512bh>(wv[c]),
                            std::mem::transmute::<__m512i, __m512bh>(xv),
                        );
                    }
                }
            };
            let whole = chunk.len / STEP * STEP;
            for i in (0..whole).step_by(STEP) {
                step(i, !0);
            }
            if whole < chunk.len {
                step(whole, (1u32 << (chunk.len - whole)) - 1);
            }
        } else {
            const STEP: usize = 16;
            let x: [*const f32; M] = std::array::from_fn(|j| chunk.x(m + j));
            let mut step = |i: usize, mask: __mmask16| {
                let mut wv = [_mm512_setzero_ps(); N];
                for (v, w) in wv.iter_mut().zip(w) {
                    *v = match T {
                        F32 => _mm512_maskz_loadu_ps(mask, w.add(4 * i).cast()),
                        F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, w.add(2 * i).cast())),
                        _ => {
                            let half = _mm256_maskz_loadu_epi16(mask, w.add(2 * i).cast());
                            let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half));
                            _mm512_castsi512_ps(wide)
                        }
                    };
                }
                for j in 0..M {
                    let xv = _mm512_maskz_loadu_ps(mask, x[j].add(i));
                    for c in 0..N {
                        acc[j][c] = _mm512_fmadd_ps(wv[c], xv, acc[j][c]);
                    }
                }
            };
            let whole = chunk.len / STEP * STEP;
            for i in (0..whole).step_by(STEP) {
                step(i, !0);
            }
            if whole < chunk.len {
                step(whole, (1u16 << (chunk.len - whole)) - 1);
            }
        }
        for (j, acc) in acc.iter().enumerate() {
            let mut four = [_mm512_setzero_ps(); 4];
            four[..N].copy_from_slice(acc);
            let sums = sum_lanes(four);
            let at = (m + j) * chunk.w.n + n;
            let to = out.slice(at..at + N);
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = if chunk.from == 0 { sum } else { *to + sum };
            }
        }
    }
}

/// Sums of the sixteen lanes of four vectors, each in the same tree: lane i + lane i + 8, then
/// neighbours, then neighbours of those, then the two halves.
///
/// # Safety
/// AVX-512 F and DQ.
#[inline(always)]
unsafe fn sum_lanes(v: [__m512; 4]) -> [f32; 4] {
    // SAFETY: by this function's contract.
    unsafe {
        let [a, b, c, d] =
            v.map(|v| _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)));
        let quads = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let sums = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps::<1>(quads));
        let mut out = [0.0f32; 4];
        _mm_storeu_ps(out.as_mut_ptr(), sums);
        out
    }
}
