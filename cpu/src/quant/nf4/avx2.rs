//! AVX2: 16 weights from 8 bytes, looked up in two registers.

use super::{CODE, decode_plain};
use std::arch::x86_64::*;

/// Weights that one look-up decodes.
const AT_ONCE: usize = 16;

/// As [`decode_plain`].
#[target_feature(enable = "avx2,fma,f16c")]
pub fn decode(out: &mut [f32], codes: &[u8], first: usize, scale: f32) {
    if !first.is_multiple_of(2) {
        return decode_plain(out, codes, first, scale);
    }
    // SAFETY: eight f32 each.
    let (lower, upper) =
        unsafe { (_mm256_loadu_ps(CODE.as_ptr()), _mm256_loadu_ps(CODE[8..].as_ptr())) };
    let scales = _mm256_set1_ps(scale);
    let look_up = |index: __m256i| {
        // The look-ups take the lower three bits of an index; the fourth, moved to the sign,
        // chooses between them.
        let chosen = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
        let (a, b) =
            (_mm256_permutevar8x32_ps(lower, index), _mm256_permutevar8x32_ps(upper, index));
        _mm256_mul_ps(_mm256_blendv_ps(a, b, chosen), scales)
    };
    let n_bytes = out.len() / 2;
    let (outs, rest) = out.as_chunks_mut::<AT_ONCE>();
    let bytes = codes[first / 2..][..n_bytes].as_chunks::<{ AT_ONCE / 2 }>().0;
    for (out, bytes) in outs.iter_mut().zip(bytes) {
        let pairs = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)));
        let (even, odd) = (look_up(_mm256_srli_epi32::<4>(pairs)), look_up(pairs));
        // Weights 0 .. 3 and 8 .. 11, and 4 .. 7 and 12 .. 15.
        let (a, b) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
        // SAFETY: 16 f32, eight each.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_permute2f128_ps::<0x20>(a, b));
            _mm256_storeu_ps(out.as_mut_ptr().add(8), _mm256_permute2f128_ps::<0x31>(a, b));
        }
    }
    decode_plain(rest, codes, first + outs.len() * AT_ONCE, scale);
}
