//! AVX-512 packing: rows of lanes are widened or rounded vector by vector; where a lane's inputs
//! are neighbours, blocks of sixteen lanes by sixteen units are transposed in registers.

use super::pack::{Strided, Unit};
use crate::matmul::Dense;
use std::arch::x86_64::*;

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

const ROUNDED: u8 = 1;
const PAIRS: u8 = 2;

/// Packs `len` inputs of `lanes` lanes into `to` `[unit][width]`.
///
/// # Safety
/// AVX-512 F, BW, VL, DQ, and BF16 if `has_bf16`, without which there are no pairs; `from` and
/// `to` hold that much.
pub unsafe fn strided(
    has_bf16: bool,
    unit: Unit,
    to: &mut [u32],
    width: usize,
    from: Strided<'_>,
    lanes: usize,
    len: usize,
) {
    let panel = Panel { to: to.as_mut_ptr(), width, lanes, len };
    // SAFETY: this function's contract.
    unsafe {
        match (unit, from.dtype) {
            (Unit::F32, Dense::F32) => singles::<F32, 0>(&panel, from),
            (Unit::F32, Dense::F16) => singles::<F16, 0>(&panel, from),
            (Unit::F32 | Unit::Rounded, Dense::BF16) => singles::<BF16, 0>(&panel, from),
            (Unit::Rounded, Dense::F32) => singles::<F32, ROUNDED>(&panel, from),
            (Unit::Rounded, Dense::F16) => singles::<F16, ROUNDED>(&panel, from),
            (Unit::Pairs, dtype) => {
                assert!(has_bf16, "pairs without their instructions");
                match dtype {
                    Dense::F32 => pairs::<F32>(&panel, from),
                    Dense::F16 => pairs::<F16>(&panel, from),
                    Dense::BF16 => pairs::<BF16>(&panel, from),
                }
            }
        }
    }
}

/// What is filled.
struct Panel {
    to: *mut u32,
    width: usize,
    lanes: usize,
    len: usize,
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn singles<const T: u8, const U: u8>(panel: &Panel, from: Strided<'_>) {
    // SAFETY: the caller's contract, passed on.
    unsafe { fill::<T, U>(panel, from) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pairs<const T: u8>(panel: &Panel, from: Strided<'_>) {
    // SAFETY: the caller's contract, passed on.
    unsafe { fill::<T, PAIRS>(panel, from) }
}

#[inline(always)]
unsafe fn fill<const T: u8, const U: u8>(panel: &Panel, from: Strided<'_>) {
    // SAFETY: the caller's contract, passed on.
    unsafe {
        if from.k_inner { transposed::<T, U>(panel, from) } else { copied::<T, U>(panel, from) }
    }
}

/// The mask of the first `n` of sixteen.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    if n >= 16 { u16::MAX } else { (1u16 << n) - 1 }
}

const fn size_of_type(t: u8) -> usize {
    if t == F32 { 4 } else { 2 }
}

/// The masked ones of sixteen numbers, in f32.
#[inline(always)]
unsafe fn load<const T: u8>(mask: __mmask16, p: *const u8) -> __m512 {
    // SAFETY: masked loads touch only what exists, by the caller's contract.
    unsafe {
        match T {
            F32 => _mm512_maskz_loadu_ps(mask, p.cast()),
            F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p.cast())),
            _ => {
                let half = _mm256_maskz_loadu_epi16(mask, p.cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
            }
        }
    }
}

/// Rounds to bf16, to nearest even; NaN stays NaN.
#[inline(always)]
unsafe fn round(x: __m512) -> __m512i {
    // SAFETY: the caller's features.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        let bits = _mm512_mask_mov_epi32(up, nan, quiet);
        _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000u32 as i32))
    }
}

/// The masked ones of sixteen numbers as bits of bf16, one a 32-bit lane.
#[inline(always)]
unsafe fn load_bits<const T: u8>(mask: __mmask16, p: *const u8) -> __m512i {
    // SAFETY: as in `load`.
    unsafe {
        let half = if T == BF16 {
            _mm256_maskz_loadu_epi16(mask, p.cast())
        } else {
            std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(load::<T>(mask, p)))
        };
        _mm512_cvtepu16_epi32(half)
    }
}

/// Stores the first `n` of sixteen units: those of whole tiles without a mask, which is slow.
#[inline(always)]
unsafe fn store(to: *mut u32, n: usize, v: __m512i) {
    // SAFETY: `n` units are the caller's.
    unsafe {
        match n {
            16 => _mm512_storeu_si512(to.cast(), v),
            12 => {
                _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(v));
                _mm_storeu_si128(to.add(8).cast(), _mm512_extracti32x4_epi32::<2>(v));
            }
            8 => _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(v)),
            _ => _mm512_mask_storeu_epi32(to.cast(), first(n), v),
        }
    }
}

/// Sixteen units of one lane, whose inputs are neighbours; `n` inputs exist, the rest are 0.
#[inline(always)]
unsafe fn units<const T: u8, const U: u8>(p: *const u8, n: usize) -> __m512i {
    // SAFETY: as in `load`; a second vector is only touched where it exists.
    unsafe {
        match (U, T) {
            (PAIRS, BF16) => {
                let mask = if n >= 32 { u32::MAX } else { (1u32 << n) - 1 };
                _mm512_maskz_loadu_epi16(mask, p.cast())
            }
            (PAIRS, _) => {
                let low = load::<T>(first(n), p);
                let mut high = _mm512_setzero_ps();
                if n > 16 {
                    high = load::<T>(first(n - 16), p.wrapping_add(16 * size_of_type(T)));
                }
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
            }
            (ROUNDED, _) => round(load::<T>(first(n), p)),
            _ => _mm512_castps_si512(load::<T>(first(n), p)),
        }
    }
}

/// An input's lanes are neighbours.
#[inline(always)]
unsafe fn copied<const T: u8, const U: u8>(panel: &Panel, from: Strided<'_>) {
    let (size, per) = (size_of_type(T), if U == PAIRS { 2 } else { 1 });
    let row = from.stride * size;
    let mut p = from.bytes.as_ptr();
    let mut to = panel.to;
    // SAFETY: loads and stores are masked to the panel's lanes; a pair's second input is read
    // only where it exists.
    unsafe {
        for unit in 0..panel.len.div_ceil(per) {
            let second = U == PAIRS && 2 * unit + 1 < panel.len;
            let mut lane = 0;
            while lane < panel.lanes {
                let mask = first(panel.lanes - lane);
                let p = p.wrapping_add(lane * size);
                let v = match U {
                    PAIRS => {
                        let low = load_bits::<T>(mask, p);
                        let mut high = _mm512_setzero_si512();
                        if second {
                            high = load_bits::<T>(mask, p.wrapping_add(row));
                        }
                        _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
                    }
                    ROUNDED => round(load::<T>(mask, p)),
                    _ => _mm512_castps_si512(load::<T>(mask, p)),
                };
                store(to.wrapping_add(lane), (panel.lanes - lane).min(16), v);
                lane += 16;
            }
            p = p.wrapping_add(per * row);
            to = to.wrapping_add(panel.width);
        }
    }
}

/// A lane's inputs are neighbours.
#[inline(always)]
unsafe fn transposed<const T: u8, const U: u8>(panel: &Panel, from: Strided<'_>) {
    let (size, per) = (size_of_type(T), if U == PAIRS { 2 } else { 1 });
    let row = from.stride * size;
    let n_units = panel.len.div_ceil(per);
    // SAFETY: lanes and inputs that do not exist are neither read nor written.
    unsafe {
        for lane in (0..panel.lanes).step_by(16) {
            let lanes = (panel.lanes - lane).min(16);
            for unit in (0..n_units).step_by(16) {
                let n = panel.len - unit * per;
                let p = from.bytes.as_ptr().wrapping_add(lane * row + unit * per * size);
                let mut rows = [_mm512_setzero_si512(); 16];
                if lanes == 16 && n >= 16 * per {
                    for i in 0..16 {
                        rows[i] = units::<T, U>(p.wrapping_add(i * row), 16 * per);
                    }
                } else {
                    // Not masked to nothing: that is slow where no memory is mapped.
                    for i in 0..lanes {
                        rows[i] = units::<T, U>(p.wrapping_add(i * row), n);
                    }
                }
                transpose(&mut rows);
                let to = panel.to.wrapping_add(unit * panel.width + lane);
                let some = (n_units - unit).min(16);
                if some == 16 {
                    for i in 0..16 {
                        let to = to.wrapping_add(i * panel.width);
                        store(to, lanes, rows[i]);
                    }
                } else {
                    for i in 0..some {
                        let to = to.wrapping_add(i * panel.width);
                        store(to, lanes, rows[i]);
                    }
                }
            }
        }
    }
}

/// Transposes sixteen rows of sixteen: within the quarters of four rows each, then the quarters.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn transpose(rows: &mut [__m512i; 16]) {
    // SAFETY: this function's contract.
    unsafe {
        // Quarter L of fours[4 g + j] is column 4 L + j of rows 4 g .. 4 g + 4.
        let mut fours = [_mm512_setzero_si512(); 16];
        for g in 0..4 {
            let a = _mm512_unpacklo_epi32(rows[4 * g], rows[4 * g + 1]);
            let b = _mm512_unpackhi_epi32(rows[4 * g], rows[4 * g + 1]);
            let c = _mm512_unpacklo_epi32(rows[4 * g + 2], rows[4 * g + 3]);
            let d = _mm512_unpackhi_epi32(rows[4 * g + 2], rows[4 * g + 3]);
            fours[4 * g] = _mm512_unpacklo_epi64(a, c);
            fours[4 * g + 1] = _mm512_unpackhi_epi64(a, c);
            fours[4 * g + 2] = _mm512_unpacklo_epi64(b, d);
            fours[4 * g + 3] = _mm512_unpackhi_epi64(b, d);
        }
        for j in 0..4 {
            let a = _mm512_shuffle_i32x4::<0x88>(fours[j], fours[4 + j]);
            let b = _mm512_shuffle_i32x4::<0x88>(fours[8 + j], fours[12 + j]);
            let c = _mm512_shuffle_i32x4::<0xdd>(fours[j], fours[4 + j]);
            let d = _mm512_shuffle_i32x4::<0xdd>(fours[8 + j], fours[12 + j]);
            rows[j] = _mm512_shuffle_i32x4::<0x88>(a, b);
            rows[8 + j] = _mm512_shuffle_i32x4::<0xdd>(a, b);
            rows[4 + j] = _mm512_shuffle_i32x4::<0x88>(c, d);
            rows[12 + j] = _mm512_shuffle_i32x4::<0xdd>(c, d);
        }
    }
}
