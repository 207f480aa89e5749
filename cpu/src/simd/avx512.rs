//! Sixteen lanes of AVX-512 F, BW, VL and DQ.

use super::{Kernel, Vector, avx2};
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::ops::Range;

/// Reaches a kernel only through `simd::run`, inlined into a function with the features of
/// `Level::Avx512`; the safety of every block below rests on that.
#[derive(Clone, Copy)]
pub(super) struct F32x16(__m512);

/// Bit i is set for the lanes i of the range.
#[inline(always)]
fn mask(lanes: Range<usize>) -> __mmask16 {
    let below = |n: usize| (1u32 << n) - 1;
    (below(lanes.end) & !below(lanes.start)) as __mmask16
}

/// The upper halves of the lanes, rounded to nearest even; NaN keeps its sign and becomes quiet.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn to_bf16(x: __m512) -> __m256i {
    let bits = _mm512_castps_si512(x);
    let upper = _mm512_srli_epi32::<16>(bits);
    let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    let rounded = _mm512_srli_epi32::<16>(rounded);
    let quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, quiet))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn halves(x: __m512) -> (__m256, __m256) {
    (_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
#[inline]
fn sum(x: __m512) -> f32 {
    let (lo, hi) = halves(x);
    avx2::sum(_mm256_add_ps(lo, hi))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
#[inline]
fn max_lane(x: __m512) -> f32 {
    let (lo, hi) = halves(x);
    avx2::max_lane(_mm256_max_ps(lo, hi))
}

/// Picks lanes by index from the 32 of `(a, b)`.
#[target_feature(enable = "avx512f")]
#[inline]
fn pick(a: __m512, b: __m512, index: [i32; 16]) -> __m512 {
    // SAFETY: the array holds 64 bytes.
    let index = unsafe { _mm512_loadu_si512(index.as_ptr().cast()) };
    _mm512_permutex2var_ps(a, index, b)
}

const EVEN: [i32; 16] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];
const ODD: [i32; 16] = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31];
const LOWER: [i32; 16] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
const UPPER: [i32; 16] = [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31];

impl Vector for F32x16 {
    #[inline(always)]
    fn enter<K: Kernel>(kernel: K) -> K::Out {
        // SAFETY: see the type.
        unsafe { super::run_avx512(kernel) }
    }

    const LANES: usize = 16;
    const TILE_ROWS: usize = 8;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the type; the caller gives 16 readable elements.
        F32x16(unsafe { _mm512_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the type; the caller gives 16 writable elements.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: see the type; the caller gives 32 readable bytes.
        F32x16(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) })
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16) {
        // SAFETY: see the type; the caller gives 32 writable bytes.
        unsafe {
            _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: see the type; the caller gives 32 readable bytes.
        F32x16(unsafe {
            let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
        })
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16) {
        // SAFETY: see the type; the caller gives 32 writable bytes.
        unsafe { _mm256_storeu_si256(p.cast(), to_bf16(self.0)) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: see the type; the caller gives 16 readable bytes.
        F32x16(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) })
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe { _mm512_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
        })
    }
    #[inline(always)]
    fn scale_pow2(self, n: Self) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe { _mm512_scalef_ps(self.0, n.0) })
    }
    #[inline(always)]
    fn keep(self, lanes: Range<usize>, other: Self) -> Self {
        // SAFETY: see the type.
        F32x16(unsafe { _mm512_mask_blend_ps(mask(lanes), other.0, self.0) })
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
        let (even, odd) = unsafe { (pick(self.0, next.0, EVEN), pick(self.0, next.0, ODD)) };
        (F32x16(even), F32x16(odd))
    }
    #[inline(always)]
    fn zip(self, odd: Self) -> (Self, Self) {
        // SAFETY: see the type.
        let (lo, hi) = unsafe { (pick(self.0, odd.0, LOWER), pick(self.0, odd.0, UPPER)) };
        (F32x16(lo), F32x16(hi))
    }
}
