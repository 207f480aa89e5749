//! Q8_0: 32 weights of 8 bits and one scale: 34 bytes, 8.5 bits a weight.
//!
//! Fields: d: f16, qs: \[i8; 32\]. Weight `j` is `qs[j] d`.

use super::extent::largest;
use super::{BLOCK, f16_at, put_f16, reciprocal};

/// Bytes of a block.
pub const BYTES: usize = 34;
/// First byte of the codes, after the scale.
pub const QS: usize = 2;
const _: () = assert!(QS + BLOCK == BYTES);

/// Decodes one block; overwrites `out`.
pub fn decode(out: &mut [f32; BLOCK], block: &[u8; BYTES]) {
    let d = f16_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[QS..]) {
        *out = q as i8 as f32 * d;
    }
}

/// Encodes one block: the weight of largest magnitude becomes code 127 or -127. Halves round away
/// from zero.
pub fn encode(block: &mut [u8; BYTES], x: &[f32; BLOCK]) {
    let d = largest(x) / 127.0;
    let inverse = reciprocal(d);
    put_f16(block, 0, d);
    for (q, v) in block[QS..].iter_mut().zip(x) {
        *q = round(v * inverse) as i8 as u8;
    }
}

/// The nearest integer, halves away from zero, for |v| < 2^23; saturates, and NaN becomes 0.
///
/// Truncation after adding the largest f32 below one half: one half itself would carry the number
/// just below 0.5 up to 1.
fn round(v: f32) -> i32 {
    (v + 0.5f32.next_down().copysign(v)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_signed() {
        let mut block = [0; BYTES];
        put_f16(&mut block, 0, 0.5);
        (block[QS], block[QS + 31]) = (0x80, 0x7f);
        let mut out = [f32::NAN; BLOCK];
        decode(&mut out, &block);
        assert_eq!((out[0], out[1], out[31]), (-64.0, 0.0, 63.5));
    }

    #[test]
    fn halves_round_away_from_zero() {
        let mut x = [0.0; BLOCK];
        x[..6].copy_from_slice(&[127.0, 0.5, -0.5, 1.5, -2.5, 0.5f32.next_down()]);
        let mut block = [0; BYTES];
        encode(&mut block, &x);
        assert_eq!(f16_at(&block, 0), 1.0);
        let codes: Vec<i8> = block[QS..QS + 6].iter().map(|&q| q as i8).collect();
        assert_eq!(codes, [127, 1, -1, 2, -3, 0]);
    }

    #[test]
    fn round_is_the_round_of_the_standard_library() {
        for i in -520_000..520_000 {
            let v = i as f32 / 4096.0;
            for v in [v, v.next_up(), v.next_down()] {
                assert_eq!(round(v), v.round() as i32, "{v}");
            }
        }
    }
}
