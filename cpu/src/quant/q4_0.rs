//! Q4_0 and Q4_1: 32 weights of 4 bits.
//!
//! | format | bytes (bits a weight) | fields | weight of code `q` |
//! |---|---|---|---|
//! | Q4_0 | 18 (4.5) | d: f16, qs: \[u8; 16\] | `(q - 8) d` |
//! | Q4_1 | 20 (5.0) | d, m: f16, qs: \[u8; 16\] | `q d + m` |
//!
//! Code `j` is the low half of `qs[j]`, code `j + 16` the high half.

use super::extent::{extreme, range};
use super::{BLOCK, f16_at, put_f16, reciprocal};

/// Bytes of a Q4_0 block.
pub const Q4_0_BYTES: usize = 18;
/// Bytes of a Q4_1 block.
pub const Q4_1_BYTES: usize = 20;
/// First byte of the codes in a Q4_0 block, after the scale.
pub const Q4_0_QS: usize = 2;
/// First byte of the codes in a Q4_1 block, after scale and minimum.
pub const Q4_1_QS: usize = 4;
const _: () = assert!(Q4_0_QS + BLOCK / 2 == Q4_0_BYTES && Q4_1_QS + BLOCK / 2 == Q4_1_BYTES);

/// Decodes one Q4_0 block; overwrites `out`.
pub fn decode_q4_0(out: &mut [f32; BLOCK], block: &[u8; Q4_0_BYTES]) {
    let d = f16_at(block, 0);
    for (j, qs) in block[Q4_0_QS..].iter().enumerate() {
        out[j] = ((qs & 15) as i32 - 8) as f32 * d;
        out[j + BLOCK / 2] = ((qs >> 4) as i32 - 8) as f32 * d;
    }
}

/// Decodes one Q4_1 block; overwrites `out`.
pub fn decode_q4_1(out: &mut [f32; BLOCK], block: &[u8; Q4_1_BYTES]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (j, qs) in block[Q4_1_QS..].iter().enumerate() {
        out[j] = (qs & 15) as f32 * d + m;
        out[j + BLOCK / 2] = (qs >> 4) as f32 * d + m;
    }
}

/// Encodes one Q4_0 block: the weight of largest magnitude becomes code 0, weight `-8 d`.
pub fn encode_q4_0(block: &mut [u8; Q4_0_BYTES], x: &[f32; BLOCK]) {
    let d = extreme(x) / -8.0;
    let inverse = reciprocal(d);
    put_f16(block, 0, d);
    let (low, high) = x.split_at(BLOCK / 2);
    for ((qs, low), high) in block[Q4_0_QS..].iter_mut().zip(low).zip(high) {
        *qs = code(low * inverse + 8.5) | code(high * inverse + 8.5) << 4;
    }
}

/// Encodes one Q4_1 block: the smallest weight becomes code 0, the largest code 15.
pub fn encode_q4_1(block: &mut [u8; Q4_1_BYTES], x: &[f32; BLOCK]) {
    let (min, max) = range(x);
    let d = (max - min) / 15.0;
    let inverse = reciprocal(d);
    put_f16(block, 0, d);
    put_f16(block, 2, min);
    let (low, high) = x.split_at(BLOCK / 2);
    for ((qs, low), high) in block[Q4_1_QS..].iter_mut().zip(low).zip(high) {
        *qs = code((low - min) * inverse + 0.5) | code((high - min) * inverse + 0.5) << 4;
    }
}

/// Rounds down to a code of 4 bits; the conversion saturates, and NaN becomes 0.
fn code(v: f32) -> u8 {
    (v as i32).clamp(0, 15) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q4_0_codes_map_to_halves() {
        let mut block = [0; Q4_0_BYTES];
        put_f16(&mut block, 0, -0.5);
        block[Q4_0_QS] = 0xf0; // weight 0: code 0, weight 16: code 15
        block[Q4_0_QS + 15] = 0x98; // weight 15: code 8, weight 31: code 9
        let mut out = [f32::NAN; BLOCK];
        decode_q4_0(&mut out, &block);
        assert_eq!((out[0], out[16], out[15], out[31]), (4.0, -3.5, 0.0, -0.5));
        assert_eq!(out[1], 4.0);
    }

    #[test]
    fn q4_1_adds_the_minimum() {
        let mut block = [0; Q4_1_BYTES];
        put_f16(&mut block, 0, 0.25);
        put_f16(&mut block, 2, -1.0);
        block[Q4_1_QS + 3] = 0x2f;
        let mut out = [f32::NAN; BLOCK];
        decode_q4_1(&mut out, &block);
        assert_eq!((out[3], out[19], out[4]), (2.75, -0.5, -1.0));
    }

    #[test]
    fn q4_0_scale_takes_the_sign_of_the_first_extreme() {
        let mut x = [0.0; BLOCK];
        (x[3], x[20]) = (-4.0, 4.0);
        let mut block = [0; Q4_0_BYTES];
        encode_q4_0(&mut block, &x);
        assert_eq!(f16_at(&block, 0), 0.5);
        assert_eq!(block[Q4_0_QS + 3] & 15, 0);
        assert_eq!(block[Q4_0_QS + 4] >> 4, 15, "4.0 would be code 16 and is held at 15");
        assert_eq!(block[Q4_0_QS], 0x88);
    }

    #[test]
    fn q4_1_ends_are_exact() {
        let x: [f32; BLOCK] = std::array::from_fn(|i| (i % 16) as f32 - 4.0);
        let mut block = [0; Q4_1_BYTES];
        encode_q4_1(&mut block, &x);
        let mut out = [0.0; BLOCK];
        decode_q4_1(&mut out, &block);
        assert_eq!(out, x);
    }

    #[test]
    fn a_scale_without_reciprocal_gives_zeros() {
        let mut block = [0; Q4_0_BYTES];
        encode_q4_0(&mut block, &[1e-40; BLOCK]);
        assert_eq!(f16_at(&block, 0), 0.0);
        assert!(block[Q4_0_QS..].iter().all(|&qs| qs == 0x88));
    }
}
