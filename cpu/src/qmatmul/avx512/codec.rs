//! Unpacking of a panel's block in registers: one instance a format.

use crate::qmatmul::layout::{BLOCK, GROUPS, Layout, ROWS, VECTOR, block_of};
use crate::quant::BlockType;
use std::arch::x86_64::*;

/// Unpacks codes and scales of one format in registers. `B` is the number of a [`BlockType`]
/// ([`crate::qmatmul::layout::id_of`]).
pub struct Codec<const B: u8>;

impl<const B: u8> Codec<B> {
    pub const BLOCK_TYPE: BlockType = block_of(B);
    pub const LAYOUT: Layout = Layout::of(Self::BLOCK_TYPE);

    /// The codes of a block, one vector a group.
    ///
    /// # Safety
    /// AVX-512 F and BW; `p` points to `LAYOUT.code_bytes` readable bytes.
    #[inline(always)]
    pub unsafe fn codes(p: *const u8) -> [__m512i; GROUPS] {
        let planes = Self::LAYOUT.planes;
        // SAFETY: the offsets below stay inside the planes of this layout, which make up
        // `code_bytes`; the instructions are those the caller vouches for.
        unsafe {
            let load = |i: usize| _mm512_loadu_si512(p.add(i * VECTOR).cast());
            let mut out = [_mm512_setzero_si512(); GROUPS];
            let mut at = 0;
            if planes.bytes {
                for (g, out) in out.iter_mut().enumerate() {
                    *out = load(g);
                }
            }
            if planes.nibbles {
                let low = _mm512_set1_epi8(15);
                for g in 0..4 {
                    let v = load(g);
                    out[g] = _mm512_and_si512(v, low);
                    out[g + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(v), low);
                }
                at = 4;
            }
            if planes.pairs {
                for h in 0..2 {
                    let v = load(at + h);
                    if planes.nibbles {
                        let m = _mm512_set1_epi8(0x30);
                        let quarters = [
                            _mm512_slli_epi16::<4>(v),
                            _mm512_slli_epi16::<2>(v),
                            v,
                            _mm512_srli_epi16::<2>(v),
                        ];
                        for (q, v) in quarters.into_iter().enumerate() {
                            out[2 * q + h] =
                                _mm512_or_si512(out[2 * q + h], _mm512_and_si512(v, m));
                        }
                    } else {
                        let m = _mm512_set1_epi8(3);
                        let quarters = [
                            v,
                            _mm512_srli_epi16::<2>(v),
                            _mm512_srli_epi16::<4>(v),
                            _mm512_srli_epi16::<6>(v),
                        ];
                        for (q, v) in quarters.into_iter().enumerate() {
                            out[2 * q + h] = _mm512_and_si512(v, m);
                        }
                    }
                }
                at += 2;
            }
            if planes.bits {
                let top = _mm512_set1_epi8(if planes.nibbles { 16 } else { 4 });
                let words = p.add(at * VECTOR).cast::<u64>();
                for (g, out) in out.iter_mut().enumerate() {
                    let mask = words.add(g).read_unaligned();
                    *out = _mm512_mask_add_epi8(*out, mask, *out, top);
                }
            }
            out
        }
    }

    /// Scales and minima of a block, per half of the block (both the same where the format has
    /// one for all).
    ///
    /// # Safety
    /// AVX-512 F and BW; `s` points to `LAYOUT.scale_bytes`, `h` to `LAYOUT.header_bytes`
    /// readable bytes.
    #[inline(always)]
    pub unsafe fn scales(s: *const u8, h: *const u8) -> ([__m512; 2], [__m512; 2]) {
        // SAFETY: each load stays inside the bytes that the layout gives to scales or header.
        unsafe {
            let half = |p: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
            let unsigned =
                |p: *const u8| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())));
            let signed =
                |p: *const u8| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())));
            let none = _mm512_setzero_ps();
            match Self::BLOCK_TYPE {
                BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => ([half(s); 2], [none; 2]),
                BlockType::Q4_1 | BlockType::Q5_1 => {
                    // A minimum is added there: its negative is subtracted here.
                    let min = _mm512_xor_ps(half(s.add(32)), _mm512_set1_ps(-0.0));
                    ([half(s); 2], [min; 2])
                }
                BlockType::Q4_K | BlockType::Q5_K => {
                    let scale = _mm512_mul_ps(half(h), unsigned(s));
                    let min = _mm512_mul_ps(half(h.add(32)), unsigned(s.add(ROWS)));
                    ([scale; 2], [min; 2])
                }
                BlockType::Q2_K => {
                    let (d, m) = (half(h), half(h.add(32)));
                    let low = _mm512_set1_epi32(15);
                    let (mut scale, mut min) = ([none; 2], [none; 2]);
                    // Not a map: a closure here would become a call.
                    for i in 0..2 {
                        let v = _mm512_cvtepu8_epi32(_mm_loadu_si128(s.add(i * ROWS).cast()));
                        let (a, b) = (_mm512_and_si512(v, low), _mm512_srli_epi32::<4>(v));
                        scale[i] = _mm512_mul_ps(d, _mm512_cvtepi32_ps(a));
                        min[i] = _mm512_mul_ps(m, _mm512_cvtepi32_ps(b));
                    }
                    (scale, min)
                }
                BlockType::Q3_K | BlockType::Q6_K => {
                    let d = half(h);
                    (
                        [_mm512_mul_ps(d, signed(s)), _mm512_mul_ps(d, signed(s.add(ROWS)))],
                        [none; 2],
                    )
                }
            }
        }
    }

    /// The weights of block `b` of a panel in f32, `out[input][row]`, with the roundings of the
    /// plain unpacking.
    ///
    /// # Safety
    /// AVX-512 F and BW; the panel has `n_blocks` blocks, and `b` is one.
    #[inline(always)]
    pub unsafe fn weights(
        out: &mut [[f32; ROWS]; BLOCK],
        panel: *const u8,
        n_blocks: usize,
        b: usize,
    ) {
        // SAFETY: the block's parts lie in the panel; the instructions are the caller's.
        unsafe {
            let at = Self::LAYOUT.at(n_blocks, b);
            let codes = Self::codes(panel.add(at.codes));
            let (scales, mins) = Self::scales(panel.add(at.scales), panel.add(at.header));
            let offset = Self::LAYOUT.offset_shift.map_or(0, |shift| 1i32 << shift);
            let (offset, low) = (_mm512_set1_epi32(offset), _mm512_set1_epi32(255));
            for g in 0..GROUPS {
                let h = g / (GROUPS / 2);
                let c = codes[g];
                let four = [
                    _mm512_and_si512(c, low),
                    _mm512_and_si512(_mm512_srli_epi32::<8>(c), low),
                    _mm512_and_si512(_mm512_srli_epi32::<16>(c), low),
                    _mm512_srli_epi32::<24>(c),
                ];
                for i in 0..4 {
                    let code = _mm512_cvtepi32_ps(_mm512_sub_epi32(four[i], offset));
                    let w = _mm512_sub_ps(_mm512_mul_ps(code, scales[h]), mins[h]);
                    _mm512_storeu_ps(out[4 * g + i].as_mut_ptr(), w);
                }
            }
        }
    }
}
