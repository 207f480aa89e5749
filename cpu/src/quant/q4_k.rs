//! Q4_K: 256 weights of 4 bits, 8 sub-blocks of 32: 144 bytes, 4.5 bits a weight.
//!
//! Fields: d, dmin: f16, scales: \[u8; 12\], qs: \[u8; 128\]. With the 6-bit scale `s` and minimum
//! `m` of its sub-block, a weight is `d s q - dmin m`. The 32 bytes `qs[32 i..]` hold sub-block
//! `2 i` in their low halves and `2 i + 1` in their high halves.

use super::lanes::nearest;
use super::search::{Fit, Steps, fit_affine, requantise};
use super::{SUPER_BLOCK, f16_at, put_f16};

/// Bytes of a block.
pub const BYTES: usize = 144;
/// First byte of the packed scales and minima, after d and dmin.
pub const SCALES: usize = 4;
/// First byte of the codes.
pub const QS: usize = 16;
const _: () = assert!(SCALES + SCALE_BYTES == QS && QS + SUPER_BLOCK / 2 == BYTES);

/// Sub-blocks of a Q4_K or Q5_K block.
pub const SUB_BLOCKS: usize = 8;
/// Weights of a sub-block of Q4_K or Q5_K.
pub const SUB_BLOCK: usize = 32;
/// Bytes that hold the eight 6-bit scales and eight 6-bit minima of Q4_K and Q5_K.
pub const SCALE_BYTES: usize = 12;
/// Largest 6-bit scale.
const MAX_SCALE: f32 = 63.0;

/// Scale and minimum of sub-block `j` from the 12 packed bytes.
///
/// The first four lie in the low six bits of bytes 0-3 (scales) and 4-7 (minima). Of the last
/// four, bytes 8-11 hold the low four bits (scale low, minimum high), and the top bits of bytes
/// 0-7 hold the rest.
pub fn scale_min(packed: &[u8; SCALE_BYTES], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let low = packed[j + 4];
        (low & 15 | packed[j - 4] >> 6 << 4, low >> 4 | packed[j] >> 6 << 4)
    }
}

/// The inverse of [`scale_min`] for all sub-blocks. Numbers are below 64.
fn pack_scales(scales: &[u8; SUB_BLOCKS], mins: &[u8; SUB_BLOCKS]) -> [u8; SCALE_BYTES] {
    std::array::from_fn(|i| match i {
        0..4 => scales[i] | scales[i + 4] >> 4 << 6,
        4..8 => mins[i - 4] | mins[i] >> 4 << 6,
        _ => scales[i - 4] & 15 | mins[i - 4] << 4,
    })
}

/// The packed scales of a Q4_K or Q5_K block, which keep them at the same place.
pub(super) fn scale_bytes(block: &[u8]) -> &[u8; SCALE_BYTES] {
    block[SCALES..].first_chunk().expect("a block is longer than its scales")
}

/// Decodes one block; overwrites `out`.
pub fn decode(out: &mut [f32; SUPER_BLOCK], block: &[u8; BYTES]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let packed = scale_bytes(block);
    for (j, out) in out.as_chunks_mut::<SUB_BLOCK>().0.iter_mut().enumerate() {
        let (s, m) = scale_min(packed, j);
        let (scale, min) = (d * s as f32, dmin * m as f32);
        let qs = &block[QS + j / 2 * SUB_BLOCK..];
        for (out, qs) in out.iter_mut().zip(qs) {
            *out = scale * (qs >> (j % 2 * 4) & 15) as f32 - min;
        }
    }
}

/// Encodes one block.
pub fn encode(block: &mut [u8; BYTES], x: &[f32; SUPER_BLOCK]) {
    let steps = Steps { max_code: 15.0, first: -1.0, step: 0.1, last: 20 };
    let codes = put_scales_and_codes(block, x, &steps);
    for (qs, codes) in block[QS..].chunks_exact_mut(SUB_BLOCK).zip(codes.as_chunks::<64>().0) {
        for (j, qs) in qs.iter_mut().enumerate() {
            *qs = codes[j] as u8 | (codes[j + SUB_BLOCK] as u8) << 4;
        }
    }
}

/// What Q4_K and Q5_K share: fits the sub-blocks, writes d, dmin and the packed scales, and
/// returns the codes under those rounded scales.
pub(super) fn put_scales_and_codes(
    block: &mut [u8],
    x: &[f32; SUPER_BLOCK],
    steps: &Steps,
) -> [i8; SUPER_BLOCK] {
    let Fit { scales, mins, mut codes } = fit_affine::<SUB_BLOCK, SUB_BLOCKS, false>(x, steps);
    let (max_scale, scales) = six_bits(&scales);
    let (max_min, mins) = six_bits(&mins);
    let d = put_f16(block, 0, max_scale / MAX_SCALE);
    let dmin = put_f16(block, 2, max_min / MAX_SCALE);
    block[SCALES..QS].copy_from_slice(&pack_scales(&scales, &mins));
    for (j, (codes, x)) in
        codes.as_chunks_mut::<SUB_BLOCK>().0.iter_mut().zip(x.as_chunks().0).enumerate()
    {
        let x: &[f32; SUB_BLOCK] = x;
        let (d, m) = (d * scales[j] as f32, dmin * mins[j] as f32);
        requantise(codes, x, d, m, 0, steps.max_code as i32);
    }
    codes
}

/// The largest of `values` (at least 0), and each as a share of it in 63rds.
fn six_bits(values: &[f32; SUB_BLOCKS]) -> (f32, [u8; SUB_BLOCKS]) {
    let max = values.iter().fold(0.0, |max, &v| if v > max { v } else { max });
    let inverse = if max > 0.0 { MAX_SCALE / max } else { 0.0 };
    (max, values.map(|v| (nearest(inverse * v) as u8).min(MAX_SCALE as u8)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_unpack_by_hand() {
        let mut packed = [0; SCALE_BYTES];
        packed[0] = 0b10_000101; // scale 0 = 5, top bits of scale 4 = 2
        packed[4] = 0b01_111111; // min 0 = 63, top bits of min 4 = 1
        packed[8] = 0b0011_1001; // low bits of scale 4 = 9, of min 4 = 3
        assert_eq!(scale_min(&packed, 0), (5, 63));
        assert_eq!(scale_min(&packed, 4), (41, 19));
        assert_eq!(scale_min(&packed, 1), (0, 0));
        assert_eq!(scale_min(&packed, 7), (0, 0));
    }

    #[test]
    fn pack_is_the_inverse_of_unpack() {
        let scales = [0, 63, 17, 42, 63, 0, 33, 21];
        let mins = [63, 0, 9, 50, 1, 62, 16, 15];
        let packed = pack_scales(&scales, &mins);
        for j in 0..SUB_BLOCKS {
            assert_eq!(scale_min(&packed, j), (scales[j], mins[j]), "{j}");
        }
    }

    #[test]
    fn decodes_by_hand() {
        let mut block = [0; BYTES];
        put_f16(&mut block, 0, 0.5);
        put_f16(&mut block, 2, 0.25);
        let scales = [1, 2, 0, 0, 0, 0, 0, 40];
        let mins = [4, 8, 0, 0, 0, 0, 0, 63];
        block[SCALES..QS].copy_from_slice(&pack_scales(&scales, &mins));
        block[QS + 1] = 0x3f; // weight 1: code 15; weight 33: code 3
        block[QS + 96 + 31] = 0x90; // weight 223: code 0; weight 255: code 9
        let mut out = [f32::NAN; SUPER_BLOCK];
        decode(&mut out, &block);
        assert_eq!((out[0], out[1], out[32], out[33]), (-1.0, 6.5, -2.0, 1.0));
        assert_eq!((out[223], out[224], out[255]), (0.0, -15.75, 164.25));
    }
}
