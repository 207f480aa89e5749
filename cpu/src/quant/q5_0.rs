//! Q5_0 and Q5_1: 32 weights of 5 bits.
//!
//! | format | bytes (bits a weight) | fields | weight of code `q` |
//! |---|---|---|---|
//! | Q5_0 | 22 (5.5) | d: f16, qh: u32, qs: \[u8; 16\] | `(q - 16) d` |
//! | Q5_1 | 24 (6.0) | d, m: f16, qh: u32, qs: \[u8; 16\] | `q d + m` |
//!
//! The low four bits of code `j` are the low half of `qs[j]`, of code `j + 16` the high half; the
//! fifth bit of code `i` is bit `i` of `qh`.

use super::extent::{extreme, range};
use super::{BLOCK, f16_at, put_f16, reciprocal};

/// Bytes of a Q5_0 block.
pub const Q5_0_BYTES: usize = 22;
/// Bytes of a Q5_1 block.
pub const Q5_1_BYTES: usize = 24;
/// First byte of the fifth bits in a Q5_0 block; the low bits follow.
pub const Q5_0_QH: usize = 2;
/// First byte of the fifth bits in a Q5_1 block; the low bits follow.
pub const Q5_1_QH: usize = 4;
const _: () =
    assert!(Q5_0_QH + 4 + BLOCK / 2 == Q5_0_BYTES && Q5_1_QH + 4 + BLOCK / 2 == Q5_1_BYTES);

/// Decodes one Q5_0 block; overwrites `out`.
pub fn decode_q5_0(out: &mut [f32; BLOCK], block: &[u8; Q5_0_BYTES]) {
    let d = f16_at(block, 0);
    let codes = unpack(&block[Q5_0_QH..]);
    for (out, q) in out.iter_mut().zip(codes) {
        *out = (q as i32 - 16) as f32 * d;
    }
}

/// Decodes one Q5_1 block; overwrites `out`.
pub fn decode_q5_1(out: &mut [f32; BLOCK], block: &[u8; Q5_1_BYTES]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let codes = unpack(&block[Q5_1_QH..]);
    for (out, q) in out.iter_mut().zip(codes) {
        *out = q as f32 * d + m;
    }
}

/// Encodes one Q5_0 block: the weight of largest magnitude becomes code 0, weight `-16 d`.
pub fn encode_q5_0(block: &mut [u8; Q5_0_BYTES], x: &[f32; BLOCK]) {
    let d = extreme(x) / -16.0;
    let inverse = reciprocal(d);
    put_f16(block, 0, d);
    pack(&mut block[Q5_0_QH..], &x.map(|v| code(v * inverse + 16.5)));
}

/// Encodes one Q5_1 block: the smallest weight becomes code 0, the largest code 31.
pub fn encode_q5_1(block: &mut [u8; Q5_1_BYTES], x: &[f32; BLOCK]) {
    let (min, max) = range(x);
    let d = (max - min) / 31.0;
    let inverse = reciprocal(d);
    put_f16(block, 0, d);
    put_f16(block, 2, min);
    pack(&mut block[Q5_1_QH..], &x.map(|v| code((v - min) * inverse + 0.5)));
}

/// Rounds down to a code of 5 bits; the conversion saturates, and NaN becomes 0.
fn code(v: f32) -> u8 {
    (v as i32).clamp(0, 31) as u8
}

/// Codes from `qh` and `qs`, which follow each other.
fn unpack(bits: &[u8]) -> [u8; BLOCK] {
    let (qh, qs) = bits.split_at(4);
    std::array::from_fn(|i| {
        let low = if i < BLOCK / 2 { qs[i] & 15 } else { qs[i - BLOCK / 2] >> 4 };
        low | (qh[i / 8] >> (i % 8) & 1) << 4
    })
}

/// Writes codes as `qh` and `qs`, which follow each other.
fn pack(bits: &mut [u8], codes: &[u8; BLOCK]) {
    let (qh, qs) = bits.split_at_mut(4);
    for (qh, codes) in qh.iter_mut().zip(codes.as_chunks::<8>().0) {
        *qh = codes.iter().enumerate().fold(0, |byte, (i, q)| byte | (q >> 4) << i);
    }
    for (j, qs) in qs.iter_mut().enumerate() {
        *qs = codes[j] & 15 | codes[j + BLOCK / 2] << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifth_bits_lie_in_order() {
        let mut block = [0; Q5_0_BYTES];
        put_f16(&mut block, 0, 2.0);
        block[Q5_0_QH + 1] = 0b10; // weight 9
        block[Q5_0_QH + 3] = 0x80; // weight 31
        block[Q5_0_QH + 4 + 9] = 0x03; // weight 9: 19, weight 25: 0
        block[Q5_0_QH + 4 + 15] = 0xf0; // weight 31: 31, weight 15: 0
        let mut out = [f32::NAN; BLOCK];
        decode_q5_0(&mut out, &block);
        assert_eq!((out[9], out[25], out[31], out[15]), (6.0, -32.0, 30.0, -32.0));
    }

    #[test]
    fn q5_1_adds_the_minimum_and_ends_are_exact() {
        let x: [f32; BLOCK] = std::array::from_fn(|i| i as f32 * 0.5 - 3.0);
        let mut block = [0; Q5_1_BYTES];
        encode_q5_1(&mut block, &x);
        assert_eq!((f16_at(&block, 0), f16_at(&block, 2)), (0.5, -3.0));
        let mut out = [0.0; BLOCK];
        decode_q5_1(&mut out, &block);
        assert_eq!(out, x);
    }

    #[test]
    fn q5_0_scale_takes_the_sign_of_the_extreme() {
        let mut x = [0.0; BLOCK];
        (x[0], x[31]) = (8.0, -8.0);
        let mut block = [0; Q5_0_BYTES];
        encode_q5_0(&mut block, &x);
        assert_eq!(f16_at(&block, 0), -0.5);
        let codes = unpack(&block[Q5_0_QH..]);
        assert_eq!((codes[0], codes[1], codes[31]), (0, 16, 31));
    }

    #[test]
    fn pack_and_unpack_are_inverse() {
        let codes = std::array::from_fn(|i| (i * 13 % 32) as u8);
        let mut bits = [0xff; 20];
        pack(&mut bits, &codes);
        assert_eq!(unpack(&bits), codes);
    }
}
