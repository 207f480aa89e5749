//! From rows of GGUF blocks to panels, at load: once per weight, so copying speed matters, and
//! the formats people use most take the shortest path (their nibbles lie as panels want them).

use super::layout::{BLOCK, GROUPS, Layout, ROWS, SUPER, VECTOR};
use crate::quant::BlockType;

/// The codes of 32 weights of one row, as the planes of the layout store them.
#[derive(Clone, Copy)]
struct RowCodes {
    /// Byte j: code j low, code j + 16 high (their lower four bits).
    nibbles: [u8; 16],
    /// Byte j: codes j, j + 8, j + 16, j + 24 at bits 0, 2, 4, 6.
    pairs: [u8; 8],
    /// Bit j: the topmost bit of code j.
    bits: u32,
    /// Whole codes.
    bytes: [u8; 32],
}

const NO_CODES: RowCodes = RowCodes { nibbles: [0; 16], pairs: [0; 8], bits: 0, bytes: [0; 32] };

/// Rearranges `rows` (at most 16 rows of `n_blocks` blocks of 32 weights each, as GGUF stores
/// them, one after the other) into one panel. Missing rows become zeros.
///
/// # Panics
/// When a length does not fit.
pub fn pack_panel(block: BlockType, panel: &mut [u8], rows: &[u8], n_blocks: usize) {
    let layout = Layout::of(block);
    assert_eq!(panel.len(), layout.panel_bytes(n_blocks), "panel length");
    let row_bytes = block.row_bytes(n_blocks * BLOCK);
    assert!(rows.len().is_multiple_of(row_bytes), "whole rows");
    let n_rows = rows.len() / row_bytes;
    assert!(n_rows <= ROWS, "at most {ROWS} rows");
    if n_rows < ROWS {
        panel.fill(0);
    }
    for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
        for (s, src) in row.chunks_exact(block.block_bytes()).enumerate() {
            if layout.header_bytes == 0 {
                let at = layout.at(n_blocks, s);
                let (scale, codes) = panel.split_at_mut(at.codes);
                let scale = &mut scale[at.scales..][..layout.scale_bytes];
                let codes = &mut codes[..layout.code_bytes];
                pack_small(block, &layout, r, codes, scale, src);
            } else {
                let at = layout.at(n_blocks, s * SUPER);
                let (front, codes) = panel.split_at_mut(at.codes);
                let (header, scale) = front[at.header..].split_at_mut(layout.header_bytes);
                let codes = &mut codes[..SUPER * layout.code_bytes];
                pack_super(block, &layout, r, codes, scale, header, src);
            }
        }
    }
}

/// One block of a format with 32 weights a block.
fn pack_small(
    block: BlockType,
    layout: &Layout,
    r: usize,
    dst: &mut [u8],
    scale: &mut [u8],
    src: &[u8],
) {
    let mut codes = NO_CODES;
    scale[2 * r..2 * r + 2].copy_from_slice(&src[..2]);
    if layout.scale_bytes == 64 {
        scale[32 + 2 * r..34 + 2 * r].copy_from_slice(&src[2..4]);
    }
    let body = &src[layout.scale_bytes / 16..];
    match block {
        BlockType::Q8_0 => {
            for (code, &q) in codes.bytes.iter_mut().zip(body) {
                *code = q ^ 0x80;
            }
        }
        _ => {
            let nibbles = if layout.planes.bits {
                codes.bits = u32::from_le_bytes([body[0], body[1], body[2], body[3]]);
                &body[4..]
            } else {
                body
            };
            codes.nibbles.copy_from_slice(nibbles);
        }
    }
    scatter(layout, r, dst, &codes);
}

/// One super-block of 256 weights of a k-quant.
fn pack_super(
    block: BlockType,
    layout: &Layout,
    r: usize,
    dst: &mut [u8],
    scale: &mut [u8],
    header: &mut [u8],
    src: &[u8],
) {
    // Bytes of `src` by field, in the order of GGUF's blocks.
    let (d_at, min_at) = match block {
        BlockType::Q2_K => (80, Some(82)),
        BlockType::Q3_K => (108, None),
        BlockType::Q6_K => (208, None),
        _ => (0, Some(2)),
    };
    header[2 * r..2 * r + 2].copy_from_slice(&src[d_at..d_at + 2]);
    if let Some(at) = min_at {
        header[32 + 2 * r..34 + 2 * r].copy_from_slice(&src[at..at + 2]);
    }
    for b in 0..SUPER {
        let mut codes = NO_CODES;
        // The two scale bytes of this row and block: (scale, minimum), or one per 16 inputs.
        let pair = match block {
            BlockType::Q2_K => {
                let quarters = &src[16 + 32 * (b / 4)..][..32];
                pack_pairs(&mut codes.pairs, |j| quarters[j] >> (2 * (b % 4)));
                [src[2 * b], src[2 * b + 1]]
            }
            BlockType::Q3_K => {
                let quarters = &src[32 + 32 * (b / 4)..][..32];
                pack_pairs(&mut codes.pairs, |j| quarters[j] >> (2 * (b % 4)));
                codes.bits = gather_bits(|j| src[j] >> b);
                let six = |j: usize| {
                    let low = (src[96 + j % 8] >> (4 * (j / 8))) & 15;
                    let high = (src[104 + j % 4] >> (2 * (j / 4))) & 3;
                    (low | high << 4).wrapping_sub(32)
                };
                [six(2 * b), six(2 * b + 1)]
            }
            BlockType::Q6_K => {
                let half = b / 4;
                let (ql, qh) = (&src[64 * half..][..64], &src[128 + 32 * half..][..32]);
                let low = &ql[32 * (b % 2)..][..32];
                let shift = 4 * (b % 4 / 2);
                pack_nibbles(&mut codes.nibbles, |j| (low[j] >> shift) & 15);
                pack_pairs(&mut codes.pairs, |j| qh[j] >> (2 * (b % 4)));
                [src[192 + 2 * b], src[193 + 2 * b]]
            }
            _ => {
                let nibbles_at = if block == BlockType::Q5_K { 48 } else { 16 };
                let quads = &src[nibbles_at + 32 * (b / 2)..][..32];
                let shift = 4 * (b % 2);
                pack_nibbles(&mut codes.nibbles, |j| (quads[j] >> shift) & 15);
                if block == BlockType::Q5_K {
                    codes.bits = gather_bits(|j| src[16 + j] >> b);
                }
                six_bit_pair(&src[4..16], b)
            }
        };
        // Scales and minima lie in two runs of sixteen rows.
        scale[b * layout.scale_bytes + r] = pair[0];
        scale[b * layout.scale_bytes + ROWS + r] = pair[1];
        scatter(layout, r, &mut dst[b * layout.code_bytes..][..layout.code_bytes], &codes);
    }
}

/// Scale and minimum of sub-block `b` from the twelve bytes that Q4_K and Q5_K share.
fn six_bit_pair(k: &[u8], b: usize) -> [u8; 2] {
    if b < 4 {
        [k[b] & 63, k[b + 4] & 63]
    } else {
        [(k[b + 4] & 15) | (k[b - 4] >> 6) << 4, (k[b + 4] >> 4) | (k[b] >> 6) << 4]
    }
}

fn pack_nibbles(out: &mut [u8; 16], code: impl Fn(usize) -> u8) {
    for (j, byte) in out.iter_mut().enumerate() {
        *byte = code(j) | code(j + 16) << 4;
    }
}

fn pack_pairs(out: &mut [u8; 8], code: impl Fn(usize) -> u8) {
    for (j, byte) in out.iter_mut().enumerate() {
        *byte = (code(j) & 3)
            | (code(j + 8) & 3) << 2
            | (code(j + 16) & 3) << 4
            | (code(j + 24) & 3) << 6;
    }
}

fn gather_bits(code: impl Fn(usize) -> u8) -> u32 {
    (0..BLOCK).fold(0, |word, j| word | ((code(j) & 1) as u32) << j)
}

/// Writes row `r`'s codes into the planes of one block.
fn scatter(layout: &Layout, r: usize, dst: &mut [u8], codes: &RowCodes) {
    let mut at = 0;
    if layout.planes.nibbles {
        for (g, quad) in codes.nibbles.chunks_exact(4).enumerate() {
            dst[at + g * VECTOR + 4 * r..][..4].copy_from_slice(quad);
        }
        at += 4 * VECTOR;
    }
    if layout.planes.pairs {
        for (h, quad) in codes.pairs.chunks_exact(4).enumerate() {
            dst[at + h * VECTOR + 4 * r..][..4].copy_from_slice(quad);
        }
        at += 2 * VECTOR;
    }
    if layout.planes.bits {
        for g in 0..GROUPS {
            // Rows 2q and 2q + 1 share a byte of each word.
            let four = ((codes.bits >> (4 * g)) & 15) as u8;
            let byte = &mut dst[at + 8 * g + r / 2];
            *byte = if r.is_multiple_of(2) {
                (*byte & 0xf0) | four
            } else {
                (*byte & 0x0f) | four << 4
            };
        }
        at += VECTOR;
    }
    if layout.planes.bytes {
        for (g, quad) in codes.bytes.chunks_exact(4).enumerate() {
            dst[at + g * VECTOR + 4 * r..][..4].copy_from_slice(quad);
        }
    }
}
