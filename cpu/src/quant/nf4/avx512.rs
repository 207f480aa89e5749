//! AVX-512: 32 weights from 16 bytes, looked up in a register.

use super::{CODE, decode_plain};
use std::arch::x86_64::*;

/// Weights that one look-up decodes.
const AT_ONCE: usize = 32;

/// As [`decode_plain`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub fn decode(out: &mut [f32], codes: &[u8], first: usize, scale: f32) {
    if !first.is_multiple_of(2) {
        return decode_plain(out, codes, first, scale);
    }
    // SAFETY: sixteen f32.
    let table = unsafe { _mm512_loadu_ps(CODE.as_ptr()) };
    let scales = _mm512_set1_ps(scale);
    // Even weights of the lower and the upper half of the bytes, each followed by its neighbour.
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    let n_bytes = out.len() / 2;
    let (outs, rest) = out.as_chunks_mut::<AT_ONCE>();
    let bytes = codes[first / 2..][..n_bytes].as_chunks::<{ AT_ONCE / 2 }>().0;
    for (out, bytes) in outs.iter_mut().zip(bytes) {
        // SAFETY: sixteen bytes.
        let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        let pairs = _mm512_cvtepu8_epi32(bytes);
        // The look-up takes the lower four bits of an index.
        let even = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(pairs), table);
        let odd = _mm512_permutexvar_ps(pairs, table);
        let (a, b) = (
            _mm512_mul_ps(_mm512_permutex2var_ps(even, low, odd), scales),
            _mm512_mul_ps(_mm512_permutex2var_ps(even, high, odd), scales),
        );
        // SAFETY: 32 f32, sixteen each.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), a);
            _mm512_storeu_ps(out.as_mut_ptr().add(AT_ONCE / 2), b);
        }
    }
    decode_plain(rest, codes, first + outs.len() * AT_ONCE, scale);
}
