//! Q5_K: 256 weights of 5 bits, 8 sub-blocks of 32: 176 bytes, 5.5 bits a weight.
//!
//! Fields: d, dmin: f16, scales: \[u8; 12\], qh: \[u8; 32\], qs: \[u8; 128\]. As Q4_K, scales
//! included, with a fifth bit: that of weight `l` of sub-block `j` is bit `j` of `qh[l]`.

use super::q4_k::{self, SCALE_BYTES, SCALES, SUB_BLOCK, scale_bytes, scale_min};
use super::search::Steps;
use super::{SUPER_BLOCK, f16_at};

/// Bytes of a block.
pub const BYTES: usize = 176;
/// First byte of the fifth bits, after the scales.
pub const QH: usize = 16;
/// First byte of the low four bits.
pub const QS: usize = 48;
const _: () = assert!(
    SCALES + SCALE_BYTES == QH && QH + SUPER_BLOCK / 8 == QS && QS + SUPER_BLOCK / 2 == BYTES
);

/// Decodes one block; overwrites `out`.
pub fn decode(out: &mut [f32; SUPER_BLOCK], block: &[u8; BYTES]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let packed = scale_bytes(block);
    let qh = &block[QH..QS];
    for (j, out) in out.as_chunks_mut::<SUB_BLOCK>().0.iter_mut().enumerate() {
        let (s, m) = scale_min(packed, j);
        let (scale, min) = (d * s as f32, dmin * m as f32);
        let qs = &block[QS + j / 2 * SUB_BLOCK..];
        for ((out, qs), qh) in out.iter_mut().zip(qs).zip(qh) {
            let q = qs >> (j % 2 * 4) & 15 | (qh >> j & 1) << 4;
            *out = scale * q as f32 - min;
        }
    }
}

/// Encodes one block.
pub fn encode(block: &mut [u8; BYTES], x: &[f32; SUPER_BLOCK]) {
    let steps = Steps { max_code: 31.0, first: -0.5, step: 0.1, last: 15 };
    let codes = q4_k::put_scales_and_codes(block, x, &steps);
    let (qh, qs) = block[QH..].split_at_mut(QS - QH);
    qh.fill(0);
    for (j, codes) in codes.as_chunks::<SUB_BLOCK>().0.iter().enumerate() {
        for (qh, &q) in qh.iter_mut().zip(codes) {
            *qh |= (q as u8 >> 4) << j;
        }
    }
    for (qs, codes) in qs.chunks_exact_mut(SUB_BLOCK).zip(codes.as_chunks::<64>().0) {
        for (l, qs) in qs.iter_mut().enumerate() {
            *qs = codes[l] as u8 & 15 | (codes[l + SUB_BLOCK] as u8) << 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::put_f16;
    use super::*;

    #[test]
    fn decodes_by_hand() {
        let mut block = [0; BYTES];
        put_f16(&mut block, 0, 1.0);
        put_f16(&mut block, 2, 2.0);
        block[SCALES] = 3; // scale of sub-block 0
        block[SCALES + 3] = 0x40; // top bits of the scale of sub-block 7: 16
        block[SCALES + 7] = 0x80; // top bits of the minimum of sub-block 7: 32
        block[QH + 5] = 0b1000_0001; // fifth bit of weight 5 of sub-blocks 0 and 7
        block[QS + 5] = 0x07; // weight 5: code 23
        block[QS + 96 + 5] = 0x10; // weight 229: code 17
        let mut out = [f32::NAN; SUPER_BLOCK];
        decode(&mut out, &block);
        assert_eq!((out[4], out[5], out[37]), (0.0, 69.0, 0.0));
        assert_eq!((out[228], out[229]), (-64.0, 208.0));
    }
}
