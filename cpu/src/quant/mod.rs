//! GGUF block formats: layout, encode, decode. One file a format family; this file names them.
//! [`nf4`], which is none of GGUF's, stands by itself.
//!
//! A row of `k` weights is `k / block_len` blocks of `block_bytes` bytes, without gaps. Scales are
//! IEEE half precision, everything is little-endian, and no field is aligned. Layouts follow the
//! GGUF block definitions of ggml (`ggml-common.h`).
//!
//! The encoders compute what ggml's reference encoders (`quantize_row_*_ref`) compute, bit for
//! bit: f32 throughout, sums in index order, no fused multiply-add. (A ggml whose compiler was let
//! fuse them departs from its own bits in Q2_K, Q4_K, Q5_K and Q6_K.) `golden` holds blocks that
//! were made by ggml itself.
//!
//! **Non-finite or extreme input to [`encode_row`]** never panics and never touches another block
//! than its own: the codes of that block are then some codes of the format, and its scales may be
//! infinite or NaN (also where a finite weight is too large for a half precision scale). Who must
//! refuse such weights checks them before encoding. A block so small that the reciprocal of its
//! scale overflows f32 is coded as zeros.

mod extent;
mod lanes;
pub mod nf4;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_k;
pub mod q5_0;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
mod search;

#[cfg(test)]
mod golden;

use half::f16;

/// A quantised block format of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum BlockType {
    /// 32 weights, 4 bits, one scale.
    Q4_0,
    /// 32 weights, 4 bits, scale and minimum.
    Q4_1,
    /// 32 weights, 5 bits, one scale.
    Q5_0,
    /// 32 weights, 5 bits, scale and minimum.
    Q5_1,
    /// 32 weights, 8 bits, one scale.
    Q8_0,
    /// 256 weights, 2 bits, 16 scales and minima of 4 bits.
    Q2_K,
    /// 256 weights, 3 bits, 16 scales of 6 bits.
    Q3_K,
    /// 256 weights, 4 bits, 8 scales and minima of 6 bits.
    Q4_K,
    /// 256 weights, 5 bits, 8 scales and minima of 6 bits.
    Q5_K,
    /// 256 weights, 6 bits, 16 scales of 8 bits.
    Q6_K,
}

impl BlockType {
    /// Every format, in the order of their GGUF ids.
    pub const ALL: [BlockType; 10] = [
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q2_K,
        BlockType::Q3_K,
        BlockType::Q4_K,
        BlockType::Q5_K,
        BlockType::Q6_K,
    ];

    /// Weights in a block: 32 or 256.
    pub const fn block_len(self) -> usize {
        match self {
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 => BLOCK,
            BlockType::Q8_0 => BLOCK,
            BlockType::Q2_K | BlockType::Q3_K | BlockType::Q4_K => SUPER_BLOCK,
            BlockType::Q5_K | BlockType::Q6_K => SUPER_BLOCK,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            BlockType::Q4_0 => q4_0::Q4_0_BYTES,
            BlockType::Q4_1 => q4_0::Q4_1_BYTES,
            BlockType::Q5_0 => q5_0::Q5_0_BYTES,
            BlockType::Q5_1 => q5_0::Q5_1_BYTES,
            BlockType::Q8_0 => q8_0::BYTES,
            BlockType::Q2_K => q2_k::BYTES,
            BlockType::Q3_K => q3_k::BYTES,
            BlockType::Q4_K => q4_k::BYTES,
            BlockType::Q5_K => q5_k::BYTES,
            BlockType::Q6_K => q6_k::BYTES,
        }
    }

    /// The name that GGUF tools use, for example `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q5_0 => "Q5_0",
            BlockType::Q5_1 => "Q5_1",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q2_K => "Q2_K",
            BlockType::Q3_K => "Q3_K",
            BlockType::Q4_K => "Q4_K",
            BlockType::Q5_K => "Q5_K",
            BlockType::Q6_K => "Q6_K",
        }
    }

    /// The tensor type number in a GGUF file.
    pub const fn ggml_id(self) -> u32 {
        match self {
            BlockType::Q4_0 => 2,
            BlockType::Q4_1 => 3,
            BlockType::Q5_0 => 6,
            BlockType::Q5_1 => 7,
            BlockType::Q8_0 => 8,
            BlockType::Q2_K => 10,
            BlockType::Q3_K => 11,
            BlockType::Q4_K => 12,
            BlockType::Q5_K => 13,
            BlockType::Q6_K => 14,
        }
    }

    /// The format of a GGUF tensor type number; `None` for every other number.
    pub fn from_ggml_id(id: u32) -> Option<BlockType> {
        Self::ALL.into_iter().find(|ty| ty.ggml_id() == id)
    }

    /// The format of that name, in upper or lower case.
    pub fn from_name(name: &str) -> Option<BlockType> {
        Self::ALL.into_iter().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `k` weights.
    ///
    /// # Panics
    /// If `k` is not a multiple of [`block_len`](Self::block_len).
    pub const fn row_bytes(self, k: usize) -> usize {
        assert!(k.is_multiple_of(self.block_len()), "a row is a whole number of blocks");
        k / self.block_len() * self.block_bytes()
    }
}

/// Weights of a block of the plain formats.
pub const BLOCK: usize = 32;
/// Weights of a block of the K formats.
pub const SUPER_BLOCK: usize = 256;

/// Decodes a row: `out[i]` = weight `i`, f32, in the operation order of each format's formula.
/// Overwrites `out`. Any bytes decode to something: a scale may be infinite or NaN.
///
/// # Panics
/// If `out.len()` is not a whole number of blocks or `bytes.len() != ty.row_bytes(out.len())`.
pub fn decode_row(ty: BlockType, out: &mut [f32], bytes: &[u8]) {
    assert_eq!(bytes.len(), ty.row_bytes(out.len()), "{} bytes for {}", ty.name(), out.len());
    match ty {
        BlockType::Q4_0 => each_decoded(out, bytes, q4_0::decode_q4_0),
        BlockType::Q4_1 => each_decoded(out, bytes, q4_0::decode_q4_1),
        BlockType::Q5_0 => each_decoded(out, bytes, q5_0::decode_q5_0),
        BlockType::Q5_1 => each_decoded(out, bytes, q5_0::decode_q5_1),
        BlockType::Q8_0 => each_decoded(out, bytes, q8_0::decode),
        BlockType::Q2_K => each_decoded(out, bytes, q2_k::decode),
        BlockType::Q3_K => each_decoded(out, bytes, q3_k::decode),
        BlockType::Q4_K => each_decoded(out, bytes, q4_k::decode),
        BlockType::Q5_K => each_decoded(out, bytes, q5_k::decode),
        BlockType::Q6_K => each_decoded(out, bytes, q6_k::decode),
    }
}

/// Encodes a row, each block by itself, with the bits of ggml's reference encoder.
/// Overwrites `out`. See the module's notes for non-finite weights.
///
/// # Panics
/// If `x.len()` is not a whole number of blocks or `out.len() != ty.row_bytes(x.len())`.
pub fn encode_row(ty: BlockType, out: &mut [u8], x: &[f32]) {
    assert_eq!(out.len(), ty.row_bytes(x.len()), "{} bytes for {}", ty.name(), x.len());
    match ty {
        BlockType::Q4_0 => each_encoded(out, x, q4_0::encode_q4_0),
        BlockType::Q4_1 => each_encoded(out, x, q4_0::encode_q4_1),
        BlockType::Q5_0 => each_encoded(out, x, q5_0::encode_q5_0),
        BlockType::Q5_1 => each_encoded(out, x, q5_0::encode_q5_1),
        BlockType::Q8_0 => each_encoded(out, x, q8_0::encode),
        BlockType::Q2_K => each_encoded(out, x, q2_k::encode),
        BlockType::Q3_K => each_encoded(out, x, q3_k::encode),
        BlockType::Q4_K => each_encoded(out, x, q4_k::encode),
        BlockType::Q5_K => each_encoded(out, x, q5_k::encode),
        BlockType::Q6_K => each_encoded(out, x, q6_k::encode),
    }
}

/// One pass over a row in blocks of `N` weights and `B` bytes; `decode_row` checked the lengths.
fn each_decoded<const N: usize, const B: usize>(
    out: &mut [f32],
    bytes: &[u8],
    decode: impl Fn(&mut [f32; N], &[u8; B]),
) {
    for (out, block) in out.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
        decode(out, block);
    }
}

/// One pass over a row in blocks of `N` weights and `B` bytes; `encode_row` checked the lengths.
fn each_encoded<const N: usize, const B: usize>(
    out: &mut [u8],
    x: &[f32],
    encode: impl Fn(&mut [u8; B], &[f32; N]),
) {
    for (block, x) in out.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
        encode(block, x);
    }
}

/// The half precision number at byte `at` of a block, widened (exact).
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Stores `value` at byte `at` of a block, rounded to the nearest half, ties to even, and returns
/// what a decoder will read there.
fn put_f16(block: &mut [u8], at: usize, value: f32) -> f32 {
    let rounded = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&rounded.to_le_bytes());
    rounded.to_f32()
}

/// `1 / d`, or 0 where that is not finite: a scale of zero, or one so small that its reciprocal
/// overflows. Such a scale is zero in half precision, so every code decodes to zero.
fn reciprocal(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_infinite() { 0.0 } else { inverse }
}

#[cfg(test)]
mod tests;
