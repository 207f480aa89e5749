//! Unpacking of eight rows of a panel's block in registers: one instance a format.

use crate::qmatmul::layout::{GROUPS, Layout, ROWS, VECTOR, block_of};
use crate::quant::BlockType;
use std::arch::x86_64::*;

/// Rows of a 256-bit vector; a panel has twice as many.
pub const LANES: usize = ROWS / 2;

/// Unpacks codes and scales of one format in registers. `B` is the number of a [`BlockType`]
/// ([`crate::qmatmul::layout::id_of`]), `v` says which eight rows: first (0) or second (1).
pub struct Codec<const B: u8>;

impl<const B: u8> Codec<B> {
    pub const BLOCK_TYPE: BlockType = block_of(B);
    pub const LAYOUT: Layout = Layout::of(Self::BLOCK_TYPE);

    /// The codes of eight rows of a block, one vector a group.
    ///
    /// # Safety
    /// AVX2; `p` points to `LAYOUT.code_bytes` readable bytes; `v` is 0 or 1.
    #[inline(always)]
    pub unsafe fn codes(p: *const u8, v: usize) -> [__m256i; GROUPS] {
        let planes = Self::LAYOUT.planes;
        // SAFETY: the offsets below stay inside the planes of this layout, which make up
        // `code_bytes`; the instructions are those the caller vouches for.
        unsafe {
            let load = |i: usize| _mm256_loadu_si256(p.add(i * VECTOR + v * VECTOR / 2).cast());
            let mut out = [_mm256_setzero_si256(); GROUPS];
            let mut at = 0;
            if planes.bytes {
                for (g, out) in out.iter_mut().enumerate() {
                    *out = load(g);
                }
            }
            if planes.nibbles {
                let low = _mm256_set1_epi8(15);
                for g in 0..4 {
                    let codes = load(g);
                    out[g] = _mm256_and_si256(codes, low);
                    out[g + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low);
                }
                at = 4;
            }
            if planes.pairs {
                for h in 0..2 {
                    let codes = load(at + h);
                    if planes.nibbles {
                        let bits = _mm256_set1_epi8(0x30);
                        let quarters = [
                            _mm256_slli_epi16::<4>(codes),
                            _mm256_slli_epi16::<2>(codes),
                            codes,
                            _mm256_srli_epi16::<2>(codes),
                        ];
                        for (q, quarter) in quarters.into_iter().enumerate() {
                            let top = _mm256_and_si256(quarter, bits);
                            out[2 * q + h] = _mm256_or_si256(out[2 * q + h], top);
                        }
                    } else {
                        let bits = _mm256_set1_epi8(3);
                        let quarters = [
                            codes,
                            _mm256_srli_epi16::<2>(codes),
                            _mm256_srli_epi16::<4>(codes),
                            _mm256_srli_epi16::<6>(codes),
                        ];
                        for (q, quarter) in quarters.into_iter().enumerate() {
                            out[2 * q + h] = _mm256_and_si256(quarter, bits);
                        }
                    }
                }
                at += 2;
            }
            if planes.bits {
                let top = _mm256_set1_epi8(if planes.nibbles { 16 } else { 4 });
                // Byte j of a vector takes byte j / 8 of the four, and of it bit j % 8.
                let spread = _mm256_set_epi64x(
                    0x0303_0303_0303_0303,
                    0x0202_0202_0202_0202,
                    0x0101_0101_0101_0101,
                    0,
                );
                let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
                let words = p.add(at * VECTOR).cast::<i32>();
                for (g, out) in out.iter_mut().enumerate() {
                    let word = _mm256_set1_epi32(words.add(2 * g + v).read_unaligned());
                    let set = _mm256_and_si256(_mm256_shuffle_epi8(word, spread), bit);
                    let set = _mm256_cmpeq_epi8(set, bit);
                    *out = _mm256_or_si256(*out, _mm256_and_si256(set, top));
                }
            }
            out
        }
    }

    /// Scales and minima of eight rows of a block, per half of the block (both the same where the
    /// format has one for all).
    ///
    /// # Safety
    /// AVX2 and F16C; `s` points to `LAYOUT.scale_bytes`, `h` to `LAYOUT.header_bytes` readable
    /// bytes; `v` is 0 or 1.
    #[inline(always)]
    pub unsafe fn scales(s: *const u8, h: *const u8, v: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: each load stays inside the bytes that the layout gives to scales or header.
        unsafe {
            let half = |p: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(p.add(2 * LANES * v).cast()));
            let bytes = |p: *const u8| _mm_loadl_epi64(p.add(LANES * v).cast());
            let unsigned = |p: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes(p)));
            let signed = |p: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(p)));
            let none = _mm256_setzero_ps();
            match Self::BLOCK_TYPE {
                BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => ([half(s); 2], [none; 2]),
                BlockType::Q4_1 | BlockType::Q5_1 => {
                    // A minimum is added there: its negative is subtracted here.
                    let min = _mm256_xor_ps(half(s.add(32)), _mm256_set1_ps(-0.0));
                    ([half(s); 2], [min; 2])
                }
                BlockType::Q4_K | BlockType::Q5_K => {
                    let scale = _mm256_mul_ps(half(h), unsigned(s));
                    let min = _mm256_mul_ps(half(h.add(32)), unsigned(s.add(ROWS)));
                    ([scale; 2], [min; 2])
                }
                BlockType::Q2_K => {
                    let (d, m) = (half(h), half(h.add(32)));
                    let low = _mm256_set1_epi32(15);
                    let (mut scale, mut min) = ([none; 2], [none; 2]);
                    // Not a map: a closure here would become a call.
                    for i in 0..2 {
                        let both = _mm256_cvtepu8_epi32(bytes(s.add(i * ROWS)));
                        let (a, b) = (_mm256_and_si256(both, low), _mm256_srli_epi32::<4>(both));
                        scale[i] = _mm256_mul_ps(d, _mm256_cvtepi32_ps(a));
                        min[i] = _mm256_mul_ps(m, _mm256_cvtepi32_ps(b));
                    }
                    (scale, min)
                }
                BlockType::Q3_K | BlockType::Q6_K => {
                    let d = half(h);
                    (
                        [_mm256_mul_ps(d, signed(s)), _mm256_mul_ps(d, signed(s.add(ROWS)))],
                        [none; 2],
                    )
                }
            }
        }
    }
}
