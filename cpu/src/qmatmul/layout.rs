//! Where everything lies in a packed matrix.
//!
//! Sixteen output rows make a panel. A panel is one stream, read front to back, of groups of
//! eight 32-weight blocks (the last group may be shorter):
//!
//! ```text
//! group = header (k-quants) | scales [blocks][scale_bytes] | codes [blocks][code_bytes]
//! ```
//!
//! Codes are unsigned. "Group" g of a block is the inputs 4g..4g+4, g = 0..8. A 64-byte vector
//! holds sixteen rows times four neighbouring inputs, the operand shape of `vpdpbusd`. Planes of
//! a block, in this order, each present or not by format:
//!
//! * `nibbles`, 4 vectors: byte (r, i) of vector g has group g in its low, group g + 4 in its high half;
//! * `pairs`, 2 vectors: byte (r, i) of vector h has groups h, h + 2, h + 4, h + 6 at bits 0, 2, 4, 6;
//! * `bits`, 8 words of 64 bits: bit 4r + i of word g belongs to group g;
//! * `bytes`, 8 vectors: byte (r, i) of vector g is group g.
//!
//! Formats and value of a weight (c the code; d, m f16 in the scales or the header):
//!
//! | format | planes | scales of a block, 16 rows each | header of 256 | value |
//! |---|---|---|---|---|
//! | Q4_0 | nibbles | d | | (c - 8) d |
//! | Q4_1 | nibbles | d, m | | c d + m |
//! | Q5_0 | nibbles, bits | d | | (c - 16) d |
//! | Q5_1 | nibbles, bits | d, m | | c d + m |
//! | Q8_0 | bytes | d | | (c - 128) d |
//! | Q2_K | pairs | u8 per 16 inputs: scale low, minimum high nibble | d, m | c d s - m u |
//! | Q3_K | pairs, bits | i8 s per 16 inputs | d | (c - 4) d s |
//! | Q4_K | nibbles | u8 s, u8 u | d, m | c d s - m u |
//! | Q5_K | nibbles, bits | u8 s, u8 u | d, m | c d s - m u |
//! | Q6_K | nibbles, pairs (bits 4, 5) | i8 s per 16 inputs | d | (c - 32) d s |

use crate::quant::BlockType;

/// Output rows of a panel: the lanes of a 512-bit vector of f32.
pub const ROWS: usize = 16;
/// Inputs of a block: activations are rounded with one scale for these.
pub const BLOCK: usize = 32;
/// Groups of four inputs in a block.
pub const GROUPS: usize = BLOCK / 4;
/// Bytes of one vector: sixteen rows times four inputs.
pub const VECTOR: usize = 64;
/// Codes of one panel's block, unpacked to bytes.
pub const CODES: usize = GROUPS * VECTOR;
/// Blocks of a k-quant super-block.
pub const SUPER: usize = 8;

/// How the codes of a block are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    /// Four vectors of 4-bit halves.
    pub nibbles: bool,
    /// Two vectors of 2-bit quarters.
    pub pairs: bool,
    /// Eight 64-bit words.
    pub bits: bool,
    /// Eight vectors of whole codes.
    pub bytes: bool,
}

/// Sizes and meanings of one format's panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Planes of the codes.
    pub planes: Planes,
    /// Bytes of a panel's codes per block.
    pub code_bytes: usize,
    /// Bytes of a panel's scales per block.
    pub scale_bytes: usize,
    /// Bytes of a panel's header per eight blocks; 0 without super-blocks.
    pub header_bytes: usize,
    /// log2 of what is subtracted from each code; `None` for formats with minima instead.
    pub offset_shift: Option<u32>,
    /// Whether each sixteen inputs have their own scale.
    pub half_scales: bool,
}

impl Layout {
    /// The layout of a format.
    pub const fn of(block: BlockType) -> Layout {
        const fn planes(nibbles: bool, pairs: bool, bits: bool, bytes: bool) -> Planes {
            Planes { nibbles, pairs, bits, bytes }
        }
        let (planes, scale_bytes, header_bytes, offset_shift, half_scales) = match block {
            BlockType::Q4_0 => (planes(true, false, false, false), 32, 0, Some(3), false),
            BlockType::Q4_1 => (planes(true, false, false, false), 64, 0, None, false),
            BlockType::Q5_0 => (planes(true, false, true, false), 32, 0, Some(4), false),
            BlockType::Q5_1 => (planes(true, false, true, false), 64, 0, None, false),
            BlockType::Q8_0 => (planes(false, false, false, true), 32, 0, Some(7), false),
            BlockType::Q2_K => (planes(false, true, false, false), 32, 64, None, true),
            BlockType::Q3_K => (planes(false, true, true, false), 32, 32, Some(2), true),
            BlockType::Q4_K => (planes(true, false, false, false), 32, 64, None, false),
            BlockType::Q5_K => (planes(true, false, true, false), 32, 64, None, false),
            BlockType::Q6_K => (planes(true, true, false, false), 32, 32, Some(5), true),
        };
        let code_bytes = VECTOR
            * (4 * planes.nibbles as usize
                + 2 * planes.pairs as usize
                + planes.bits as usize
                + 8 * planes.bytes as usize);
        Layout { planes, code_bytes, scale_bytes, header_bytes, offset_shift, half_scales }
    }

    /// Bytes of a whole group of eight blocks.
    const fn group_bytes(&self) -> usize {
        self.header_bytes + SUPER * (self.scale_bytes + self.code_bytes)
    }

    /// Where block `b` of `n_blocks` lies in a panel.
    #[inline(always)]
    pub const fn at(&self, n_blocks: usize, b: usize) -> At {
        let (group, i) = (b / SUPER, b % SUPER);
        let left = n_blocks - group * SUPER;
        let blocks = if left < SUPER { left } else { SUPER };
        let header = group * self.group_bytes();
        let scales = header + self.header_bytes;
        At {
            header,
            scales: scales + i * self.scale_bytes,
            codes: scales + blocks * self.scale_bytes + i * self.code_bytes,
        }
    }

    /// Bytes of a panel, a multiple of a vector.
    pub const fn panel_bytes(&self, n_blocks: usize) -> usize {
        let groups = if self.header_bytes == 0 { 0 } else { n_blocks / SUPER };
        (groups * self.header_bytes + n_blocks * self.stream_bytes()).next_multiple_of(VECTOR)
    }

    /// Bytes of the stream a block, if headers are spread evenly.
    pub const fn share_bytes(&self) -> usize {
        self.group_bytes() / SUPER
    }

    /// Bytes of a block's codes and scales.
    pub const fn stream_bytes(&self) -> usize {
        self.scale_bytes + self.code_bytes
    }
}

/// Byte offsets of a block's parts in its panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Header of the block's group.
    pub header: usize,
    /// The block's scales.
    pub scales: usize,
    /// The block's codes.
    pub codes: usize,
}

/// The format with this number.
pub const fn block_of(b: u8) -> BlockType {
    match b {
        0 => BlockType::Q4_0,
        1 => BlockType::Q4_1,
        2 => BlockType::Q5_0,
        3 => BlockType::Q5_1,
        4 => BlockType::Q8_0,
        5 => BlockType::Q2_K,
        6 => BlockType::Q3_K,
        7 => BlockType::Q4_K,
        8 => BlockType::Q5_K,
        _ => BlockType::Q6_K,
    }
}

/// A number for a format, since a kernel's parameter must be a number.
pub const fn id_of(block: BlockType) -> u8 {
    match block {
        BlockType::Q4_0 => 0,
        BlockType::Q4_1 => 1,
        BlockType::Q5_0 => 2,
        BlockType::Q5_1 => 3,
        BlockType::Q8_0 => 4,
        BlockType::Q2_K => 5,
        BlockType::Q3_K => 6,
        BlockType::Q4_K => 7,
        BlockType::Q5_K => 8,
        BlockType::Q6_K => 9,
    }
}
