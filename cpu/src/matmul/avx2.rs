//! AVX2 products with dense weights: as `avx512.rs` on eight lanes and smaller tiles.

use super::{Chunk, Dense};
use crate::team::SharedMut;
use std::arch::x86_64::*;

/// Output rows of a tile.
const N: usize = 3;
/// Activation rows of a tile: 12 accumulators leave room for the operands in 16 registers.
const M: usize = 4;
const LANES: usize = 8;
/// Bytes of a cache line.
const LINE: usize = 64;

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// One chunk, all its rows.
///
/// # Safety
/// AVX2, FMA, F16C; the chunk's addresses hold `len` inputs; no other thread uses its columns.
pub unsafe fn chunk(out: &SharedMut<'_, f32>, chunk: &Chunk<'_>) {
    // SAFETY: by this function's contract.
    unsafe {
        match chunk.w.dtype {
            Dense::F32 => tiles::<F32>(out, chunk),
            Dense::F16 => tiles::<F16>(out, chunk),
            Dense::BF16 => tiles::<BF16>(out, chunk),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
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
            by_size!(3: 1 2 3 4; 2: 1 2 3 4; 1: 1 2 3 4;);
            n += cols;
        }
        m += rows;
    }
}

/// Eight weights from input `i` of the row at `w`, in f32; `n` of them exist, the rest are 0.
#[inline(always)]
unsafe fn weights<const T: u8>(w: *const u8, i: usize, n: usize) -> __m256 {
    // SAFETY: `n` inputs from `i` on are readable, by the caller's contract; a short end is
    // copied first.
    unsafe {
        let size = if T == F32 { 4 } else { 2 };
        let mut copy = [0u8; 32];
        let mut p = w.add(size * i);
        if n < LANES {
            std::ptr::copy_nonoverlapping(p, copy.as_mut_ptr(), n * size);
            p = copy.as_ptr();
        }
        match T {
            F32 => _mm256_loadu_ps(p.cast()),
            F16 => _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            _ => {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        }
    }
}

/// One step of a tile: eight weights of each row at `w` times the same inputs of each activation
/// row at `x`; `n` of them exist.
///
/// # Safety
/// AVX2, FMA, F16C; the addresses hold `n` inputs.
#[inline(always)]
unsafe fn step<const T: u8, const N: usize, const M: usize>(
    acc: &mut [[__m256; N]; M],
    w: [*const u8; N],
    x: [*const f32; M],
    i: usize,
    n: usize,
) {
    // SAFETY: this function's contract.
    unsafe {
        let mut v = [_mm256_setzero_ps(); N];
        for c in 0..N {
            v[c] = weights::<T>(w[c], i, n);
        }
        for m in 0..M {
            let x = weights::<F32>(x[m].cast(), i, n);
            for c in 0..N {
                acc[m][c] = _mm256_fmadd_ps(v[c], x, acc[m][c]);
            }
        }
    }
}

/// `N` output rows from `n`, `M` activation rows from `m`.
///
/// # Safety
/// AVX2, FMA, F16C; no other thread uses these elements of `out`.
#[inline(always)]
unsafe fn tile<const T: u8, const N: usize, const M: usize>(
    out: &SharedMut<'_, f32>,
    chunk: &Chunk<'_>,
    n: usize,
    m: usize,
) {
    let w: [*const u8; N] = std::array::from_fn(|i| chunk.weights(n + i));
    let x: [*const f32; M] = std::array::from_fn(|j| chunk.x(m + j));
    // SAFETY: all addresses below are within `len` inputs of a row; features by the caller.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); N]; M];
        let whole = chunk.len / LANES * LANES;
        let size = chunk.w.dtype.bytes();
        let ahead = chunk.ahead(N);
        for i in (0..whole).step_by(LANES) {
            // A line at a time: every second step of 32 bytes, every fourth of 16.
            if (i * size).is_multiple_of(LINE) {
                for p in w {
                    _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(ahead(i * size)).cast());
                }
            }
            step::<T, N, M>(&mut acc, w, x, i, LANES);
        }
        if whole < chunk.len {
            step::<T, N, M>(&mut acc, w, x, whole, chunk.len - whole);
        }
        for (j, acc) in acc.iter().enumerate() {
            for (c, &v) in acc.iter().enumerate() {
                let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let pairs = _mm_add_ps(half, _mm_movehl_ps(half, half));
                let sum = _mm_add_ss(pairs, _mm_shuffle_ps::<1>(pairs, pairs));
                chunk.put(out, m + j, n + c, _mm_cvtss_f32(sum));
            }
        }
    }
}
