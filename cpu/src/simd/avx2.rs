//! Eight lanes of AVX2, FMA and F16C.

use super::{Kernel, Vector};
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::ops::Range;

/// Reaches a kernel only through `simd::run`, inlined into a function with the features of
/// `Level::Avx2`; the safety of every block below rests on that.
#[derive(Clone, Copy)]
pub(super) struct F32x8(__m256);

/// Sum of 8 lanes: upper half added to lower half, until one is left.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn sum(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn max_lane(x: __m256) -> f32 {
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn scale_pow2(x: __m256, n: __m256) -> __m256 {
    // In two factors, each a normal number.
    let n = _mm256_cvtps_epi32(n);
    let first = _mm256_srai_epi32::<1>(n);
    let second = _mm256_sub_epi32(n, first);
    let bias = _mm256_set1_epi32(127);
    let first = _mm256_slli_epi32::<23>(_mm256_add_epi32(first, bias));
    let second = _mm256_slli_epi32::<23>(_mm256_add_epi32(second, bias));
    let x = _mm256_mul_ps(x, _mm256_castsi256_ps(first));
    _mm256_mul_ps(x, _mm256_castsi256_ps(second))
}

#[target_feature(enable = "avx2")]
#[inline]
fn keep(x: __m256, lanes: Range<usize>, other: __m256) -> __m256 {
    let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let from = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(lanes.start as i32 - 1));
    let below = _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes.end as i32), lane);
    let mask = _mm256_castsi256_ps(_mm256_and_si256(from, below));
    _mm256_blendv_ps(other, x, mask)
}

/// The upper halves of the lanes, rounded to nearest even; NaN keeps its sign and becomes quiet.
#[target_feature(enable = "avx2")]
#[inline]
fn to_bf16(x: __m256) -> __m128i {
    let bits = _mm256_castps_si256(x);
    let upper = _mm256_srli_epi32::<16>(bits);
    let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    let rounded = _mm256_srli_epi32::<16>(rounded);
    let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    let out = _mm256_blendv_epi8(rounded, quiet, nan);
    _mm_packus_epi32(_mm256_castsi256_si128(out), _mm256_extracti128_si256::<1>(out))
}

#[target_feature(enable = "avx2")]
#[inline]
fn unzip(a: __m256, b: __m256) -> (__m256, __m256) {
    // The shuffle works within 128-bit halves: pairs of lanes come out as a0 b0 a1 b1.
    let order =
        |x: __m256| _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(x)));
    let even = _mm256_shuffle_ps::<0b10_00_10_00>(a, b);
    let odd = _mm256_shuffle_ps::<0b11_01_11_01>(a, b);
    (order(even), order(odd))
}

#[target_feature(enable = "avx2")]
#[inline]
fn zip(even: __m256, odd: __m256) -> (__m256, __m256) {
    let lo = _mm256_unpacklo_ps(even, odd);
    let hi = _mm256_unpackhi_ps(even, odd);
    (_mm256_permute2f128_ps::<0x20>(lo, hi), _mm256_permute2f128_ps::<0x31>(lo, hi))
}

impl Vector for F32x8 {
    #[inline(always)]
    fn enter<K: Kernel>(kernel: K) -> K::Out {
        // SAFETY: see the type.
        unsafe { super::run_avx2(kernel) }
    }

    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the type; the caller gives 8 readable elements.
        F32x8(unsafe { _mm256_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the type; the caller gives 8 writable elements.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: see the type; the caller gives 16 readable bytes.
        F32x8(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) })
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16) {
        // SAFETY: see the type; the caller gives 16 writable bytes.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: see the type; the caller gives 16 readable bytes.
        F32x8(unsafe {
            let x = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
        })
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16) {
        // SAFETY: see the type; the caller gives 16 writable bytes.
        unsafe { _mm_storeu_si128(p.cast(), to_bf16(self.0)) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: see the type; the caller gives 8 readable bytes.
        F32x8(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) })
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe { _mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe { _mm256_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe { _mm256_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe { _mm256_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe { _mm256_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe { _mm256_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe { _mm256_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
        })
    }
    #[inline(always)]
    fn scale_pow2(self, n: Self) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe { scale_pow2(self.0, n.0) })
    }
    #[inline(always)]
    fn keep(self, lanes: Range<usize>, other: Self) -> Self {
        // SAFETY: see the type.
        F32x8(unsafe { keep(self.0, lanes, other.0) })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see the type.
        unsafe { sum(self.0) }
    }
    #[inline(always)]
    fn max_lane(self) -> f32 {
        // SAFETY: see the type.
        unsafe { max_lane(self.0) }
    }
    #[inline(always)]
    fn unzip(self, next: Self) -> (Self, Self) {
        // SAFETY: see the type.
        let (even, odd) = unsafe { unzip(self.0, next.0) };
        (F32x8(even), F32x8(odd))
    }
    #[inline(always)]
    fn zip(self, odd: Self) -> (Self, Self) {
        // SAFETY: see the type.
        let (lo, hi) = unsafe { zip(self.0, odd.0) };
        (F32x8(lo), F32x8(hi))
    }
}
