//! GGUF block formats: layout, encode, decode. One file a format; this file names them.

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
