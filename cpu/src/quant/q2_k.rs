//! Q2_K: 256 weights of 2 bits, 16 sub-blocks of 16: 84 bytes, 2.625 bits a weight.
//!
//! Fields: scales: \[u8; 16\] (scale in the low half, minimum in the high half), qs: \[u8; 64\],
//! d, dmin: f16. A weight is `d s q - dmin m`. Each half of 128 weights has 32 bytes of `qs`;
//! quarter `k` (32 weights) of a half lies at bit `2 k`, one weight a byte.

use super::lanes::nearest;
use super::search::{Fit, Steps, fit_affine, requantise};
use super::{SUPER_BLOCK, f16_at, put_f16};

/// Bytes of a block.
pub const BYTES: usize = 84;
/// First byte of the scales and minima.
pub const SCALES: usize = 0;
/// First byte of the codes.
pub const QS: usize = 16;
/// First byte of the scale of scales.
pub const D: usize = 80;
/// First byte of the scale of minima.
pub const DMIN: usize = 82;
const _: () = assert!(SCALES + SUB_BLOCKS == QS && QS + SUPER_BLOCK / 4 == D && DMIN + 2 == BYTES);

/// Sub-blocks of a block.
pub const SUB_BLOCKS: usize = 16;
/// Weights of a sub-block.
pub const SUB_BLOCK: usize = 16;
/// Largest 4-bit scale.
const MAX_SCALE: f32 = 15.0;

/// Decodes one block; overwrites `out`.
pub fn decode(out: &mut [f32; SUPER_BLOCK], block: &[u8; BYTES]) {
    let (d, dmin) = (f16_at(block, D), f16_at(block, DMIN));
    for (j, out) in out.as_chunks_mut::<SUB_BLOCK>().0.iter_mut().enumerate() {
        let scale_min = block[SCALES + j];
        let (scale, min) = (d * (scale_min & 15) as f32, dmin * (scale_min >> 4) as f32);
        let (qs, shift) = two_bits(&block[QS..D], j);
        for (out, qs) in out.iter_mut().zip(qs) {
            *out = scale * (qs >> shift & 3) as f32 - min;
        }
    }
}

/// The bytes that hold sub-block `j` (Q2_K, Q3_K: 64 bytes a block), and where in each of them.
pub(super) fn two_bits(qs: &[u8], j: usize) -> (&[u8], usize) {
    let from = j / 8 * 32 + j % 2 * SUB_BLOCK;
    (&qs[from..from + SUB_BLOCK], j / 2 % 4 * 2)
}

/// Writes the low two bits of every code (Q2_K, Q3_K: 64 bytes a block).
pub(super) fn put_two_bits(qs: &mut [u8], codes: &[i8; SUPER_BLOCK]) {
    for (qs, codes) in qs.chunks_exact_mut(32).zip(codes.as_chunks::<128>().0) {
        for (l, qs) in qs.iter_mut().enumerate() {
            *qs = (0..4).fold(0, |byte, k| byte | (codes[32 * k + l] as u8 & 3) << (2 * k));
        }
    }
}

/// Encodes one block.
pub fn encode(block: &mut [u8; BYTES], x: &[f32; SUPER_BLOCK]) {
    let steps = Steps { max_code: 3.0, first: -0.5, step: 0.1, last: 15 };
    let Fit { scales, mins, mut codes } = fit_affine::<SUB_BLOCK, SUB_BLOCKS, true>(x, &steps);
    let (max_scale, scales) = four_bits(&scales);
    let (max_min, mins) = four_bits(&mins);
    let d = put_f16(block, D, max_scale / MAX_SCALE);
    let dmin = put_f16(block, DMIN, max_min / MAX_SCALE);
    for (j, (codes, x)) in codes.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0).enumerate() {
        let (codes, x): (&mut [i8; SUB_BLOCK], &[f32; SUB_BLOCK]) = (codes, x);
        block[SCALES + j] = scales[j] | mins[j] << 4;
        requantise(codes, x, d * scales[j] as f32, dmin * mins[j] as f32, 0, 3);
    }
    put_two_bits(&mut block[QS..D], &codes);
}

/// The largest of `values` (at least 0), and each as a share of it in 15ths.
fn four_bits(values: &[f32; SUB_BLOCKS]) -> (f32, [u8; SUB_BLOCKS]) {
    let max = values.iter().fold(0.0, |max, &v| if v > max { v } else { max });
    let inverse = if max > 0.0 { MAX_SCALE / max } else { 0.0 };
    (max, values.map(|v| nearest(inverse * v) as u8 & 15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_by_hand() {
        let mut block = [0; BYTES];
        put_f16(&mut block, D, 2.0);
        put_f16(&mut block, DMIN, 0.5);
        block[SCALES + 1] = 0x31; // weights 16-31: scale 1, minimum 3
        block[SCALES + 14] = 0x0f; // weights 224-239: scale 15
        block[QS + 16] = 0b11; // weight 16
        block[QS + 32] = 0b10_00_00_00; // weight 224
        let mut out = [f32::NAN; SUPER_BLOCK];
        decode(&mut out, &block);
        assert_eq!((out[16], out[17], out[0]), (4.5, -1.5, 0.0));
        assert_eq!((out[224], out[225], out[128]), (60.0, 0.0, 0.0));
    }

    #[test]
    fn two_bit_codes_come_back() {
        let codes = std::array::from_fn(|i| (i * 7 % 4) as i8);
        let mut qs = [0xff; 64];
        put_two_bits(&mut qs, &codes);
        for j in 0..SUB_BLOCKS {
            let (bytes, shift) = two_bits(&qs, j);
            for (l, byte) in bytes.iter().enumerate() {
                assert_eq!((byte >> shift & 3) as i8, codes[j * SUB_BLOCK + l], "{j} {l}");
            }
        }
    }
}
