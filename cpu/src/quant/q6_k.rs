//! Q6_K: 256 weights of 6 bits, 16 sub-blocks of 16: 210 bytes, 6.5625 bits a weight.
//!
//! Fields: ql: \[u8; 128\], qh: \[u8; 64\], scales: \[i8; 16\], d: f16. A weight is
//! `d s (q - 32)` with its sub-block's signed scale `s`. Each half of 128 weights has 64 bytes of
//! `ql` and 32 of `qh`; quarter `k` (32 weights) of a half has its low bits in `ql[32 (k % 2)..]`,
//! low halves for `k < 2`, else high halves, and its two top bits at bit `2 k` of `qh`.

use super::lanes::nearest;
use super::search::{ALL_ZERO, Fit, fit_q6, requantise};
use super::{SUPER_BLOCK, f16_at, put_f16};

/// Bytes of a block.
pub const BYTES: usize = 210;
/// First byte of the low four bits.
pub const QL: usize = 0;
/// First byte of the top two bits.
pub const QH: usize = 128;
/// First byte of the signed scales.
pub const SCALES: usize = 192;
/// First byte of the scale of scales.
pub const D: usize = 208;
const _: () = assert!(QL + SUPER_BLOCK / 2 == QH && QH + SUPER_BLOCK / 4 == SCALES);
const _: () = assert!(SCALES + SUB_BLOCKS == D && D + 2 == BYTES);

/// Sub-blocks of a block.
pub const SUB_BLOCKS: usize = 16;
/// Weights of a sub-block.
pub const SUB_BLOCK: usize = 16;

/// Decodes one block; overwrites `out`.
pub fn decode(out: &mut [f32; SUPER_BLOCK], block: &[u8; BYTES]) {
    let d = f16_at(block, D);
    for (quarter, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, k) = (quarter / 4, quarter % 4);
        let ql = &block[QL + half * 64 + k % 2 * 32..];
        let qh = &block[QH + half * 32..];
        let scales = &block[SCALES + quarter * 2..];
        for (l, out) in out.iter_mut().enumerate() {
            let q = ql[l] >> (k / 2 * 4) & 15 | (qh[l] >> (2 * k) & 3) << 4;
            let scale = d * scales[l / SUB_BLOCK] as i8 as f32;
            *out = scale * (q as i32 - 32) as f32;
        }
    }
}

/// Encodes one block.
pub fn encode(block: &mut [u8; BYTES], x: &[f32; SUPER_BLOCK]) {
    let Fit { scales, mut codes, .. } = fit_q6::<SUB_BLOCKS>(x);
    block.fill(0);
    let extreme = scales.iter().fold(0.0f32, |max, &s| if s.abs() > max.abs() { s } else { max });
    if extreme.abs() < ALL_ZERO {
        return;
    }
    // the largest scale becomes -128, so the positive side ends at 127
    let inverse = -128.0 / extreme;
    let d = put_f16(block, D, 1.0 / inverse);
    for (j, (codes, x)) in codes.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0).enumerate() {
        let (codes, x): (&mut [i8; SUB_BLOCK], &[f32; SUB_BLOCK]) = (codes, x);
        let scale = nearest(inverse * scales[j]).min(127) as i8;
        block[SCALES + j] = scale as u8;
        requantise(codes, x, d * scale as f32, 0.0, -32, 31);
    }
    for (quarter, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        let (half, k) = (quarter / 4, quarter % 4);
        for (l, &q) in codes.iter().enumerate() {
            block[QL + half * 64 + k % 2 * 32 + l] |= (q as u8 & 15) << (k / 2 * 4);
            block[QH + half * 32 + l] |= (q as u8 >> 4) << (2 * k);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_by_hand() {
        let mut block = [0; BYTES];
        put_f16(&mut block, D, 0.5);
        block[SCALES] = 2; // weights 0-15
        block[SCALES + 7] = -4i8 as u8; // weights 112-127
        block[SCALES + 10] = 1; // weights 160-175
        block[QL + 3] = 0x0f;
        block[QH + 3] = 0b11; // weight 3: code 63
        block[QL + 32 + 31] = 0x50;
        block[QH + 31] = 0b1000_0000; // weight 127: code 37
        block[QL + 64 + 32] = 0x01;
        block[QH + 32] = 0b0100; // weight 160: code 17
        let mut out = [f32::NAN; SUPER_BLOCK];
        decode(&mut out, &block);
        assert_eq!((out[3], out[0]), (31.0, -32.0));
        assert_eq!((out[127], out[126]), (-10.0, 64.0));
        assert_eq!((out[160], out[161]), (-7.5, -16.0));
        assert_eq!(out[16], 0.0);
    }

    #[test]
    fn the_largest_scale_is_minus_128() {
        let x: [f32; SUPER_BLOCK] = std::array::from_fn(|i| (i % 64) as f32 - 32.0);
        let mut block = [0xff; BYTES];
        encode(&mut block, &x);
        assert!(block[SCALES..D].contains(&0x80));
        let mut zeros = [0xff; BYTES];
        encode(&mut zeros, &[0.0; SUPER_BLOCK]);
        assert_eq!(zeros, [0; BYTES]);
    }
}
