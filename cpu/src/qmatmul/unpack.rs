//! Plain unpacking of a panel's block: codes to bytes, scales to f32. The portable level, the
//! AVX2 level (whose compiler vectorises it), row look-ups and f32 products are built on it.

use super::layout::{BLOCK, CODES, GROUPS, Layout, ROWS, VECTOR};
use crate::quant::BlockType;
use half::f16;

/// One block of one panel, unpacked.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Unpacked {
    /// Codes [group 8][row 16][input 4].
    pub codes: [u8; CODES],
    /// Scale of each row, for inputs 0..16 and 16..32 of the block.
    pub scales: [[f32; ROWS]; 2],
    /// What each weight has subtracted after scaling, likewise; 0 where the format has none.
    pub mins: [[f32; ROWS]; 2],
}

impl Default for Unpacked {
    fn default() -> Self {
        Unpacked { codes: [0; CODES], scales: [[0.0; ROWS]; 2], mins: [[0.0; ROWS]; 2] }
    }
}

/// Unpacks block `b` of a panel with `n_blocks` blocks a row.
#[inline(always)]
pub fn unpack(block: BlockType, out: &mut Unpacked, panel: &[u8], n_blocks: usize, b: usize) {
    let layout = Layout::of(block);
    let at = layout.at(n_blocks, b);
    unpack_codes(&layout, &mut out.codes, &panel[at.codes..][..layout.code_bytes]);
    let scales = &panel[at.scales..][..layout.scale_bytes];
    unpack_scales(block, out, scales, &panel[at.header..][..layout.header_bytes]);
}

#[inline(always)]
fn unpack_codes(layout: &Layout, codes: &mut [u8; CODES], src: &[u8]) {
    let mut at = 0;
    if layout.planes.bytes {
        codes.copy_from_slice(&src[..CODES]);
        return;
    }
    if layout.planes.nibbles {
        let (low, high) = codes.split_at_mut(CODES / 2);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(&src[..CODES / 2]) {
            *low = byte & 15;
            *high = byte >> 4;
        }
        at += 4 * VECTOR;
    } else {
        codes.fill(0);
    }
    if layout.planes.pairs {
        // Above the nibbles where there are any, else the lowest two bits.
        let shift = if layout.planes.nibbles { 4 } else { 0 };
        for (quarter, codes) in codes.chunks_exact_mut(2 * VECTOR).enumerate() {
            for (code, &byte) in codes.iter_mut().zip(&src[at..at + 2 * VECTOR]) {
                *code |= ((byte >> (2 * quarter)) & 3) << shift;
            }
        }
        at += 2 * VECTOR;
    }
    if layout.planes.bits {
        let shift = if layout.planes.nibbles { 4 } else { 2 };
        for (codes, &byte) in codes.chunks_exact_mut(8).zip(&src[at..at + VECTOR]) {
            for (i, code) in codes.iter_mut().enumerate() {
                *code |= ((byte >> i) & 1) << shift;
            }
        }
    }
}

#[inline(always)]
fn unpack_scales(block: BlockType, out: &mut Unpacked, scales: &[u8], header: &[u8]) {
    let half =
        |bytes: &[u8], r: usize| f16::from_le_bytes([bytes[2 * r], bytes[2 * r + 1]]).to_f32();
    for r in 0..ROWS {
        let (scale, min) = match block {
            BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => ([half(scales, r); 2], [0.0; 2]),
            // A minimum is added there: its negative is subtracted here.
            BlockType::Q4_1 | BlockType::Q5_1 => {
                ([half(scales, r); 2], [-half(&scales[32..], r); 2])
            }
            BlockType::Q4_K | BlockType::Q5_K => (
                [half(header, r) * scales[r] as f32; 2],
                [half(&header[32..], r) * scales[ROWS + r] as f32; 2],
            ),
            BlockType::Q2_K => {
                let (d, m) = (half(header, r), half(&header[32..], r));
                let (a, b) = (scales[r], scales[ROWS + r]);
                (
                    [d * (a & 15) as f32, d * (b & 15) as f32],
                    [m * (a >> 4) as f32, m * (b >> 4) as f32],
                )
            }
            BlockType::Q3_K | BlockType::Q6_K => {
                let d = half(header, r);
                ([d * scales[r] as i8 as f32, d * scales[ROWS + r] as i8 as f32], [0.0; 2])
            }
        };
        for h in 0..2 {
            out.scales[h][r] = scale[h];
            out.mins[h][r] = min[h];
        }
    }
}

/// The weights of a block in f32, `out[input][row]`.
pub fn block_weights(block: BlockType, out: &mut [[f32; ROWS]; BLOCK], from: &Unpacked) {
    let offset = Layout::of(block).offset_shift.map_or(0, |shift| 1i32 << shift);
    for g in 0..GROUPS {
        for r in 0..ROWS {
            for i in 0..4 {
                let code = from.codes[g * VECTOR + 4 * r + i] as i32 - offset;
                let h = g / 4;
                out[4 * g + i][r] = code as f32 * from.scales[h][r] - from.mins[h][r];
            }
        }
    }
}
