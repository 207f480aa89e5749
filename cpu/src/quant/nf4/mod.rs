//! NF4: weights as 4-bit quantiles of a normal distribution, the format of QLoRA (Dettmers et al.,
//! 2023, arXiv:2305.14314) as bitsandbytes stores it. No GGUF type: a matrix of it is made at load.
//!
//! A matrix is flattened row by row. Blocks of 64 run over the flat array, so that one may begin in
//! a row and end in the next; the last may be short.
//!
//! ```text
//! scale  = the largest magnitude of the block                                          f32
//! weight = CODE[code] scale
//! byte i = code of weight 2i in the upper half, of weight 2i + 1 in the lower
//! ```
//!
//! 4.5 bits a weight; 4.127 with scales that are quantised too (`nested.rs`). The codes and scales
//! are bitsandbytes' bit for bit; a matrix of them, decoded as it is multiplied, is in `matrix.rs`.
//!
//! **Non-finite weights** give their block some codes and a scale that is not finite
//! ([`Nf4Matrix::is_finite`]); other blocks of the matrix keep theirs.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod matrix;
mod nested;

#[cfg(test)]
mod tests;

pub use matrix::Nf4Matrix;
pub use nested::{NESTED_BLOCK, NESTED_CODE, Nested};

use super::reciprocal;

/// Weights of a block.
pub const BLOCK: usize = 64;
/// Bytes of a block's codes.
pub const BLOCK_BYTES: usize = 32;
/// Thousandths of a bit that a weight of a whole number of blocks takes, with and without double
/// quantisation.
const MILLIBITS: [usize; 2] = [
    1000 * 8 * (BLOCK_BYTES + 1) / BLOCK + 1000 * 8 * 4 / (BLOCK * NESTED_BLOCK),
    1000 * 8 * (BLOCK_BYTES + 4) / BLOCK,
];
const _: () = assert!(2 * BLOCK_BYTES == BLOCK && MILLIBITS[0] == 4126 && MILLIBITS[1] == 4500);

/// What the codes stand for: quantiles of the normal distribution scaled into [-1, 1], zero among
/// them (the paper's appendix E).
#[allow(clippy::excessive_precision)]
pub const CODE: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// The code of zero, which fills the last byte of an odd number of weights.
pub const ZERO: u8 = 7;
const _: () = assert!(CODE[ZERO as usize] == 0.0);

/// Halfway between neighbouring codes: above it the upper one is nearer.
const MIDPOINTS: [f32; 15] = {
    let mut midpoints = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        midpoints[i] = (CODE[i] + CODE[i + 1]) / 2.0;
        i += 1;
    }
    midpoints
};

/// The nearest code of each weight of a block of at most [`BLOCK`], packed, and the block's scale.
/// Overwrites `codes`, of which what no weight needs is filled with codes of zero.
///
/// # Panics
/// When there are more weights than a block has.
pub fn encode_block(codes: &mut [u8; BLOCK_BYTES], w: &[f32]) -> f32 {
    assert!(w.len() <= BLOCK, "{} weights of a block of {BLOCK}", w.len());
    let mut x = [0.0; BLOCK];
    x[..w.len()].copy_from_slice(w);
    // Magnitudes order as their bits do, and a NaN is above all of them: none is overlooked.
    let largest = x.iter().fold(0, |most: u32, x| most.max(x.abs().to_bits()));
    let scale = f32::from_bits(largest);
    // A product with the reciprocal, not a quotient: the two round differently.
    let inverse = reciprocal(scale);
    let mut nearest = [0u32; BLOCK];
    // Eight side by side, which compile to vector instructions.
    for (codes, x) in nearest.as_chunks_mut::<8>().0.iter_mut().zip(x.as_chunks::<8>().0) {
        for midpoint in MIDPOINTS {
            codes.iter_mut().zip(x).for_each(|(c, x)| *c += u32::from(x * inverse > midpoint));
        }
    }
    for (byte, [even, odd]) in codes.iter_mut().zip(nearest.as_chunks().0) {
        *byte = (even << 4 | odd) as u8;
    }
    scale
}

/// Weights `first..first + out.len()` of the blocks with these codes, all of one block, whose scale
/// this is. Overwrites `out`.
#[inline(always)]
fn decode_plain(out: &mut [f32], codes: &[u8], first: usize, scale: f32) {
    for (i, out) in (first..).zip(out) {
        let code = codes[i / 2] >> (4 - 4 * (i % 2)) & 15;
        *out = CODE[code as usize] * scale;
    }
}
