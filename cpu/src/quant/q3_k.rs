//! Q3_K: 256 weights of 3 bits, 16 sub-blocks of 16: 110 bytes, 3.4375 bits a weight.
//!
//! Fields: hmask: \[u8; 32\], qs: \[u8; 64\], scales: \[u8; 12\], d: f16. A weight is
//! `d (s - 32) (q - 4)`. The low two bits of the codes lie as in Q2_K; the third bit of weight
//! `32 i + l` is bit `i` of `hmask[l]`.

use super::lanes::nearest;
use super::q2_k::{put_two_bits, two_bits};
use super::search::{Fit, fit_q3, requantise};
use super::{SUPER_BLOCK, f16_at, put_f16};

/// Bytes of a block.
pub const BYTES: usize = 110;
/// First byte of the third bits.
pub const HMASK: usize = 0;
/// First byte of the low two bits.
pub const QS: usize = 32;
/// First byte of the packed scales.
pub const SCALES: usize = 96;
/// First byte of the scale of scales.
pub const D: usize = 108;
const _: () = assert!(HMASK + SUPER_BLOCK / 8 == QS && QS + SUPER_BLOCK / 4 == SCALES);
const _: () = assert!(SCALES + SCALE_BYTES == D && D + 2 == BYTES);

/// Sub-blocks of a block.
pub const SUB_BLOCKS: usize = 16;
/// Weights of a sub-block.
pub const SUB_BLOCK: usize = 16;
/// Bytes that hold the sixteen 6-bit scales.
pub const SCALE_BYTES: usize = 12;

/// Signed scale (-32 to 31) of sub-block `j` from the 12 packed bytes.
///
/// The low four bits lie in bytes 0-7 (low halves first, then high halves), the top two in bytes
/// 8-11: byte `8 + j % 4`, bit `2 (j / 4)`.
pub fn scale(packed: &[u8; SCALE_BYTES], j: usize) -> i8 {
    let low = packed[j % 8] >> (j / 8 * 4) & 15;
    let high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// The inverse of [`scale`] for all sub-blocks.
fn pack_scales(scales: &[i8; SUB_BLOCKS]) -> [u8; SCALE_BYTES] {
    let mut packed = [0; SCALE_BYTES];
    for (j, s) in scales.iter().enumerate() {
        let s = (s + 32) as u8;
        packed[j % 8] |= (s & 15) << (j / 8 * 4);
        packed[8 + j % 4] |= (s >> 4) << (j / 4 * 2);
    }
    packed
}

/// Decodes one block; overwrites `out`.
pub fn decode(out: &mut [f32; SUPER_BLOCK], block: &[u8; BYTES]) {
    let d = f16_at(block, D);
    let packed = block[SCALES..].first_chunk().expect("a block is longer than its scales");
    for (j, out) in out.as_chunks_mut::<SUB_BLOCK>().0.iter_mut().enumerate() {
        let scale = d * scale(packed, j) as f32;
        let (qs, shift) = two_bits(&block[QS..SCALES], j);
        let hmask = &block[HMASK + j % 2 * SUB_BLOCK..];
        for ((out, qs), hmask) in out.iter_mut().zip(qs).zip(hmask) {
            let q = qs >> shift & 3 | (hmask >> (j / 2) & 1) << 2;
            *out = scale * (q as i32 - 4) as f32;
        }
    }
}

/// Encodes one block.
pub fn encode(block: &mut [u8; BYTES], x: &[f32; SUPER_BLOCK]) {
    let Fit { scales, mut codes, .. } = fit_q3::<SUB_BLOCKS>(x);
    let extreme = scales.iter().fold(0.0f32, |max, &s| if s.abs() > max.abs() { s } else { max });
    // the largest scale becomes -32, so the other side ends at 31
    let inverse = -32.0 / extreme;
    let (d, scales) = if extreme == 0.0 {
        (0.0, [-32; SUB_BLOCKS])
    } else {
        (1.0 / inverse, scales.map(|s| (nearest(inverse * s) as i8).clamp(-32, 31)))
    };
    let d = put_f16(block, D, d);
    block[SCALES..D].copy_from_slice(&pack_scales(&scales));
    for (j, (codes, x)) in codes.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0).enumerate() {
        let (codes, x): (&mut [i8; SUB_BLOCK], &[f32; SUB_BLOCK]) = (codes, x);
        requantise(codes, x, d * scales[j] as f32, 0.0, -4, 3);
    }
    put_two_bits(&mut block[QS..SCALES], &codes);
    let hmask = &mut block[HMASK..QS];
    hmask.fill(0);
    for (i, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        for (hmask, &q) in hmask.iter_mut().zip(codes) {
            *hmask |= (q as u8 >> 2) << i;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_unpack_by_hand() {
        let mut packed = [0; SCALE_BYTES];
        packed[1] = 0xa5; // low bits of scale 1: 5, of scale 9: 10
        packed[9] = 0b00_11_00_01; // top bits of scale 1: 1, of scale 9: 3
        assert_eq!((scale(&packed, 1), scale(&packed, 9)), (21 - 32, 58 - 32));
        assert_eq!((scale(&packed, 5), scale(&packed, 13)), (-32, -32));
    }

    #[test]
    fn pack_is_the_inverse_of_unpack() {
        let scales = std::array::from_fn(|j| (j * 29 % 64) as i8 - 32);
        let packed = pack_scales(&scales);
        for (j, &s) in scales.iter().enumerate() {
            assert_eq!(scale(&packed, j), s, "{j}");
        }
    }

    #[test]
    fn decodes_by_hand() {
        let mut block = [0; BYTES];
        put_f16(&mut block, D, 0.5);
        let mut scales = [0; SUB_BLOCKS];
        (scales[0], scales[15]) = (2, -32);
        block[SCALES..D].copy_from_slice(&pack_scales(&scales));
        block[QS + 1] = 0b11; // weight 1: low bits 3
        block[HMASK + 2] = 1; // weight 2: third bit
        block[QS + 32 + 31] = 0b01_00_00_00; // weight 255: low bits 1
        block[HMASK + 31] = 0x80; // weight 255: third bit
        let mut out = [f32::NAN; SUPER_BLOCK];
        decode(&mut out, &block);
        assert_eq!((out[0], out[1], out[2]), (-4.0, -1.0, 0.0));
        assert_eq!((out[255], out[254], out[16]), (-16.0, 64.0, 0.0));
    }
}
