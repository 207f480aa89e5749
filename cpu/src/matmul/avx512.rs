//! AVX-512 products with dense weights: register tiles of output rows by activation rows, lanes
//! along the inputs.

use super::{Chunk, Dense};
use crate::team::SharedMut;
use std::arch::asm;
use std::arch::x86_64::*;

/// Output rows of a tile.
const N: usize = 4;
/// Activation rows of a tile: 24 accumulators leave room for the operands in 32 registers.
const M: usize = 6;

/// Output rows side by side for a single activation row: it is bound by memory, which likes one
/// stream best (two were measured at 0.8 of its speed).
pub const SINGLE: usize = 1;

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
            let cols = (chunk.rows.end - n).min(if rows == 1 { SINGLE } else { N });
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

/// Bytes and inputs that one step of a type takes: a vector of weights.
const fn step_of(t: u8) -> (usize, usize) {
    match t {
        F32 => (64, 16),
        BF16_PAIRS => (64, 32),
        _ => (32, 16),
    }
}

/// One step of a tile: a vector of each weight row times the same inputs of each activation row;
/// `n` of the step's inputs exist.
///
/// # Safety
/// The features of `T`; the addresses hold `n` inputs.
#[inline(always)]
unsafe fn step<const T: u8, const N: usize, const M: usize>(
    acc: &mut [[__m512; N]; M],
    w: [*const u8; N],
    x: [*const u8; M],
    n: usize,
) {
    // SAFETY: masked loads touch only the inputs that exist; the rest by the caller's contract.
    unsafe {
        if T == BF16_PAIRS {
            let mask = ((1u64 << n) - 1) as u32;
            let mut v = [_mm512_setzero_si512(); N];
            for c in 0..N {
                v[c] = _mm512_maskz_loadu_epi16(mask, w[c].cast());
            }
            for m in 0..M {
                let x = _mm512_maskz_loadu_epi16(mask, x[m].cast());
                for c in 0..N {
                    acc[m][c] = _mm512_dpbf16_ps(
                        acc[m][c],
                        std::mem::transmute::<__m512i, __m512bh>(v[c]),
                        std::mem::transmute::<__m512i, __m512bh>(x),
                    );
                }
            }
        } else {
            let mask = ((1u32 << n) - 1) as u16;
            let mut v = [_mm512_setzero_ps(); N];
            for c in 0..N {
                let p = w[c];
                v[c] = match T {
                    F32 => _mm512_maskz_loadu_ps(mask, p.cast()),
                    F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p.cast())),
                    _ => {
                        let half = _mm256_maskz_loadu_epi16(mask, p.cast());
                        let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half));
                        _mm512_castsi512_ps(wide)
                    }
                };
            }
            for m in 0..M {
                let x = _mm512_maskz_loadu_ps(mask, x[m].cast());
                for c in 0..N {
                    acc[m][c] = _mm512_fmadd_ps(v[c], x, acc[m][c]);
                }
            }
        }
    }
}

/// `N` output rows from `n`, `M` activation rows from `m`.
///
/// # Safety
/// The features of `T`; no other thread uses these elements of `out`.
#[inline(always)]
unsafe fn tile<const T: u8, const N: usize, const M: usize>(
    out: &SharedMut<'_, f32>,
    chunk: &Chunk<'_>,
    n: usize,
    m: usize,
) {
    let (bytes, inputs) = step_of(T);
    let x_bytes = if T == BF16_PAIRS { 2 } else { 4 };
    let w: [*const u8; N] = std::array::from_fn(|i| chunk.weights(n + i));
    let x: [*const u8; M] = std::array::from_fn(|j| {
        if T == BF16_PAIRS { chunk.x_bf16(m + j).cast() } else { chunk.x(m + j).cast() }
    });
    // SAFETY: all addresses below are within `len` inputs of a row; features by the callers.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); N]; M];
        let whole = chunk.len / inputs;
        let mut done = 0;
        if let Some(full) = as_full(&mut acc)
            && T != BF16
        {
            let strides = [chunk.w.k * chunk.w.dtype.bytes(), chunk.w.k * x_bytes];
            match T {
                F32 => full_tile_f32(full, w[0], x[0], strides, whole),
                F16 => full_tile_f16(full, w[0], x[0], strides, whole),
                _ => full_tile_bf16(full, w[0], x[0], strides, whole),
            }
            done = whole;
        }
        let ahead = chunk.ahead(N);
        while done < whole {
            for p in w {
                _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(ahead(done * bytes)).cast());
            }
            let w = w.map(|p| p.add(done * bytes));
            step::<T, N, M>(&mut acc, w, x.map(|p| p.add(done * inputs * x_bytes)), inputs);
            done += 1;
        }
        if whole * inputs < chunk.len {
            let w = w.map(|p| p.add(whole * bytes));
            let x = x.map(|p| p.add(whole * inputs * x_bytes));
            step::<T, N, M>(&mut acc, w, x, chunk.len - whole * inputs);
        }
        for (j, acc) in acc.iter().enumerate() {
            let mut four = [_mm512_setzero_ps(); 4];
            // Not copy_from_slice: that becomes a call, which stores and reloads the vectors.
            #[allow(clippy::manual_memcpy)]
            for c in 0..N {
                four[c] = acc[c];
            }
            let sums = sum_lanes(four);
            let at = (m + j) * chunk.w.n + n;
            let to = out.slice(at..at + N);
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = if chunk.from == 0 { sum } else { *to + sum };
            }
        }
    }
}

/// The accumulators of a whole tile, which the loops below take.
#[inline(always)]
fn as_full<const N2: usize, const M2: usize>(
    acc: &mut [[__m512; N2]; M2],
) -> Option<&mut [[__m512; N]; M]> {
    // The same memory, if the sizes are those of a whole tile.
    (N2 == N && M2 == M).then(|| {
        // SAFETY: the types are equal when the sizes are.
        unsafe { &mut *(std::ptr::from_mut(acc).cast()) }
    })
}

/// A loop over whole vectors of four weight rows and six activation rows, with the accumulators
/// in registers that the compiler may not move: it would load weights early and spill them.
macro_rules! full_tile {
    ($name:ident, $features:literal, $load:literal, $w_vector:literal, $w_bytes:literal, $multiply:literal) => {
        /// `acc += w xᵀ` over `steps` vectors; rows of weights and activations `strides` bytes
        /// apart.
        ///
        /// # Safety
        /// The rows hold that many vectors.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn $name(
            acc: &mut [[__m512; N]; M],
            w: *const u8,
            x: *const u8,
            strides: [usize; 2],
            steps: usize,
        ) {
            if steps == 0 {
                return;
            }
            macro_rules! row {
                ($x:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
                    concat!(
                        "vmovups {xv}, zmmword ptr [", $x, "]\n",
                        $multiply, " {", $a, "}, {w0}, {xv}\n",
                        $multiply, " {", $b, "}, {w1}, {xv}\n",
                        $multiply, " {", $c, "}, {w2}, {xv}\n",
                        $multiply, " {", $d, "}, {w3}, {xv}\n",
                    )
                };
            }
            let [a0, a1, a2, a3, a4, a5] = acc;
            let ([a00, a01, a02, a03], [a10, a11, a12, a13]) = (a0, a1);
            let ([a20, a21, a22, a23], [a30, a31, a32, a33]) = (a2, a3);
            let ([a40, a41, a42, a43], [a50, a51, a52, a53]) = (a4, a5);
            // Scratch registers need a type to get a vector's name.
            let mut _scratch: __m512;
            // SAFETY: reads `steps` vectors of each row, which the caller vouches for; prefetches
            // of what lies behind are harmless.
            unsafe {
                asm!(
                    "2:",
                    concat!($load, " {w0}, ", $w_vector, " ptr [{w}]"),
                    concat!($load, " {w1}, ", $w_vector, " ptr [{w} + {s}]"),
                    concat!($load, " {w2}, ", $w_vector, " ptr [{w} + 2 * {s}]"),
                    concat!($load, " {w3}, ", $w_vector, " ptr [{v}]"),
                    "prefetcht0 [{w} + 768]",
                    "prefetcht0 [{w} + {s} + 768]",
                    "prefetcht0 [{w} + 2 * {s} + 768]",
                    "prefetcht0 [{v} + 768]",
                    row!("{x}", "a00", "a01", "a02", "a03"),
                    row!("{x} + {t}", "a10", "a11", "a12", "a13"),
                    row!("{x} + 2 * {t}", "a20", "a21", "a22", "a23"),
                    row!("{y}", "a30", "a31", "a32", "a33"),
                    row!("{y} + {t}", "a40", "a41", "a42", "a43"),
                    row!("{y} + 2 * {t}", "a50", "a51", "a52", "a53"),
                    concat!("add {w}, ", $w_bytes),
                    concat!("add {v}, ", $w_bytes),
                    "add {x}, 64",
                    "add {y}, 64",
                    "dec {steps}",
                    "jnz 2b",
                    w = inout(reg) w => _,
                    v = inout(reg) w.add(3 * strides[0]) => _,
                    s = in(reg) strides[0],
                    x = inout(reg) x => _,
                    y = inout(reg) x.add(3 * strides[1]) => _,
                    t = in(reg) strides[1],
                    steps = inout(reg) steps => _,
                    w0 = out(zmm_reg) _scratch,
                    w1 = out(zmm_reg) _scratch,
                    w2 = out(zmm_reg) _scratch,
                    w3 = out(zmm_reg) _scratch,
                    xv = out(zmm_reg) _scratch,
                    a00 = inout(zmm_reg) *a00, a01 = inout(zmm_reg) *a01,
                    a02 = inout(zmm_reg) *a02, a03 = inout(zmm_reg) *a03,
                    a10 = inout(zmm_reg) *a10, a11 = inout(zmm_reg) *a11,
                    a12 = inout(zmm_reg) *a12, a13 = inout(zmm_reg) *a13,
                    a20 = inout(zmm_reg) *a20, a21 = inout(zmm_reg) *a21,
                    a22 = inout(zmm_reg) *a22, a23 = inout(zmm_reg) *a23,
                    a30 = inout(zmm_reg) *a30, a31 = inout(zmm_reg) *a31,
                    a32 = inout(zmm_reg) *a32, a33 = inout(zmm_reg) *a33,
                    a40 = inout(zmm_reg) *a40, a41 = inout(zmm_reg) *a41,
                    a42 = inout(zmm_reg) *a42, a43 = inout(zmm_reg) *a43,
                    a50 = inout(zmm_reg) *a50, a51 = inout(zmm_reg) *a51,
                    a52 = inout(zmm_reg) *a52, a53 = inout(zmm_reg) *a53,
                    options(nostack, readonly),
                );
            }
        }
    };
}

full_tile!(full_tile_f32, "avx512f", "vmovups", "zmmword", "64", "vfmadd231ps");
full_tile!(full_tile_f16, "avx512f", "vcvtph2ps", "ymmword", "32", "vfmadd231ps");
full_tile!(full_tile_bf16, "avx512f,avx512bf16", "vmovups", "zmmword", "64", "vdpbf16ps");

/// Sums of the sixteen lanes of four vectors, each in the same tree: lane i + lane i + 8, then
/// neighbours, then neighbours of those, then the two halves.
///
/// # Safety
/// AVX-512 F and DQ.
#[inline(always)]
unsafe fn sum_lanes(v: [__m512; 4]) -> [f32; 4] {
    // SAFETY: by this function's contract.
    unsafe {
        // Written out: a closure here would become a call that passes vectors through memory.
        macro_rules! halves {
            ($v:expr) => {
                _mm256_add_ps(_mm512_castps512_ps256($v), _mm512_extractf32x8_ps::<1>($v))
            };
        }
        let (a, b) = (halves!(v[0]), halves!(v[1]));
        let (c, d) = (halves!(v[2]), halves!(v[3]));
        let quads = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let sums = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps::<1>(quads));
        let mut out = [0.0f32; 4];
        _mm_storeu_ps(out.as_mut_ptr(), sums);
        out
    }
}
