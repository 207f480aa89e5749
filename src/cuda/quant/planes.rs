//! Quantised rows rearranged for the device: from a file's blocks, or NF4's flat codes, to the planes
//! that `cuda/include/quant_blocks.h` describes. Rows by themselves, on all cores.

use super::super::params;
use super::kernels::NAMES;
use puna_cpu::quant::nf4::{Nested, Nf4Matrix};
use puna_cpu::quant::{BlockType, q2_k, q3_k, q4_0, q4_k, q5_0, q5_k, q6_k, q8_0};
use rayon::prelude::*;
use std::ops::Range;

/// Weights of a chunk.
pub const CHUNK: usize = params::QUANT_CHUNK as usize;
/// Weights that share an NF4 scale, and scales that share a `largest`.
pub const NF4_BLOCK: usize = params::QUANT_NF4_BLOCK as usize;
/// Bytes that rows of most planes are a multiple of.
const ALIGN: usize = 16;

/// A quantised format as kernels know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// NF4, rows of whole blocks, f32 scales.
    Nf4,
    /// NF4, rows of whole blocks, scales quantised too.
    Nf4Double,
    /// NF4 whose blocks begin inside rows.
    Nf4Ragged,
    /// One of GGUF's.
    Block(BlockType),
}

impl Format {
    /// The kernels' number, and a place in their tables.
    pub fn id(self) -> usize {
        let id = match self {
            Format::Nf4 => params::QUANT_NF4,
            Format::Nf4Double => params::QUANT_NF4_DOUBLE,
            Format::Nf4Ragged => params::QUANT_NF4_RAGGED,
            Format::Block(BlockType::Q4_0) => params::QUANT_Q4_0,
            Format::Block(BlockType::Q4_1) => params::QUANT_Q4_1,
            Format::Block(BlockType::Q5_0) => params::QUANT_Q5_0,
            Format::Block(BlockType::Q5_1) => params::QUANT_Q5_1,
            Format::Block(BlockType::Q8_0) => params::QUANT_Q8_0,
            Format::Block(BlockType::Q2_K) => params::QUANT_Q2_K,
            Format::Block(BlockType::Q3_K) => params::QUANT_Q3_K,
            Format::Block(BlockType::Q4_K) => params::QUANT_Q4_K,
            Format::Block(BlockType::Q5_K) => params::QUANT_Q5_K,
            Format::Block(BlockType::Q6_K) => params::QUANT_Q6_K,
        };
        id as usize
    }

    /// Whether most models that are quantised have it, so that it has all kinds of kernels.
    pub fn is_common(self) -> bool {
        NAMES[self.id()].common
    }

    /// Bits of a code in the plane of codes, and in that of high bits.
    fn bits(self) -> (usize, usize) {
        match self {
            Format::Nf4 | Format::Nf4Double | Format::Nf4Ragged => (4, 0),
            Format::Block(BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q4_K) => (4, 0),
            Format::Block(BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5_K) => (4, 1),
            Format::Block(BlockType::Q8_0) => (8, 0),
            Format::Block(BlockType::Q2_K) => (2, 0),
            Format::Block(BlockType::Q3_K) => (2, 1),
            Format::Block(BlockType::Q6_K) => (4, 2),
        }
    }
}

/// Bytes between the rows of each plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    pub codes: usize,
    pub high: usize,
    pub scales: usize,
    pub supers: usize,
}

impl Strides {
    /// Those of rows of `k` weights.
    pub fn of(format: Format, k: usize) -> Strides {
        let (low, high) = format.bits();
        // 16 bytes hold the bits of 128 / bits weights.
        let plane = |bits: usize| match bits {
            0 => 0,
            8 => k.next_multiple_of(CHUNK),
            bits => k.div_ceil(128 / bits) * ALIGN,
        };
        let blocks = k / NF4_BLOCK;
        let (scales, supers) = match format {
            Format::Nf4 => ((4 * blocks).next_multiple_of(ALIGN), 0),
            // Four of a unit are copied at once. Supers, like ragged scales, have no rows.
            Format::Nf4Double => (blocks.next_multiple_of(4), 0),
            Format::Nf4Ragged => (0, 0),
            Format::Block(BlockType::Q4_1 | BlockType::Q5_1) => {
                ((k / CHUNK * 4).next_multiple_of(ALIGN), 0)
            }
            Format::Block(BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0) => {
                ((k / CHUNK * 2).next_multiple_of(ALIGN), 0)
            }
            Format::Block(_) => (k / CHUNK * 2, k / 256 * 4),
        };
        Strides { codes: plane(low), high: plane(high), scales, supers }
    }
}

/// Some rows of the planes that have rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rows {
    pub codes: Vec<u8>,
    pub high: Vec<u8>,
    pub scales: Vec<u8>,
    pub supers: Vec<u8>,
}

impl Rows {
    fn zeroed(strides: &Strides, n: usize) -> Rows {
        Rows {
            codes: vec![0; n * strides.codes],
            high: vec![0; n * strides.high],
            scales: vec![0; n * strides.scales],
            supers: vec![0; n * strides.supers],
        }
    }

    /// Hands each row's part of the planes to `fill`, on all cores.
    fn each(&mut self, strides: &Strides, fill: impl Fn(usize, RowMut<'_>) + Sync) {
        let Rows { codes, high, scales, supers } = self;
        let n = codes.len() / strides.codes.max(1);
        let codes = codes.par_chunks_mut(strides.codes.max(1));
        let parts = [(high, strides.high), (scales, strides.scales), (supers, strides.supers)].map(
            |(plane, stride)| match stride {
                0 => (0..n).map(|_| &mut [][..]).collect::<Vec<&mut [u8]>>(),
                stride => plane.chunks_mut(stride).collect(),
            },
        );
        let [high, scales, supers] = parts;
        let rest = high.into_par_iter().zip(scales).zip(supers);
        codes.zip(rest).enumerate().for_each(|(row, (codes, ((high, scales), supers)))| {
            fill(row, RowMut { codes, high, scales, supers });
        });
    }
}

/// A row's part of the planes.
struct RowMut<'a> {
    codes: &'a mut [u8],
    high: &'a mut [u8],
    scales: &'a mut [u8],
    supers: &'a mut [u8],
}

/// Where, among 32 weights, those of word `t` and pair `p` stand.
const fn place(t: usize, p: usize) -> usize {
    8 * p + 2 * t
}

impl RowMut<'_> {
    fn put_codes(&mut self, (low, high): (usize, usize), chunk: usize, codes: &[u8; CHUNK]) {
        if low == 8 {
            let words = &mut self.codes[CHUNK * chunk..][..CHUNK];
            for (t, words) in words.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                for p in 0..4 {
                    (words[p], words[4 + p]) = (codes[place(t, p)], codes[place(t, p) + 1]);
                }
            }
        } else {
            put_bits(self.codes, low, 0, chunk, codes);
        }
        if high > 0 {
            put_bits(self.high, high, low, chunk, codes);
        }
    }
}

/// Bits `shift .. shift + bits` of a chunk's codes, to a row of a plane that was zero.
fn put_bits(row: &mut [u8], bits: usize, shift: usize, chunk: usize, codes: &[u8; CHUNK]) {
    let (chunks, mask) = (4 / bits, (1u8 << bits) - 1);
    let to = &mut row[chunk / chunks * ALIGN..][..ALIGN];
    let first = chunk % chunks * 2 * bits;
    for (i, byte) in to.iter_mut().enumerate() {
        let at = place(i / 4, i % 4);
        let (even, odd) = (codes[at] >> shift & mask, codes[at + 1] >> shift & mask);
        *byte |= (even | odd << bits) << first;
    }
}

/// Rows of `k` weights in a file's blocks.
///
/// # Panics
/// When `bytes` are not whole rows.
pub fn of_blocks(block: BlockType, k: usize, bytes: &[u8]) -> Rows {
    let (format, row_bytes) = (Format::Block(block), block.row_bytes(k));
    if row_bytes == 0 {
        return Rows::default();
    }
    assert!(bytes.len().is_multiple_of(row_bytes), "{} bytes of rows of {row_bytes}", bytes.len());
    let strides = Strides::of(format, k);
    let mut rows = Rows::zeroed(&strides, bytes.len() / row_bytes);
    rows.each(&strides, |row, mut to| {
        let mut codes = [0; 256];
        let blocks = bytes[row * row_bytes..][..row_bytes].chunks_exact(block.block_bytes());
        for (i, bytes) in blocks.enumerate() {
            let codes = &mut codes[..block.block_len()];
            let Unpacked { scales, n_scales, supers } = unpack(block, codes, bytes);
            to.scales[i * n_scales..][..n_scales].copy_from_slice(&scales[..n_scales]);
            if let Some(supers) = supers {
                to.supers[4 * i..][..4].copy_from_slice(&supers);
            }
            let chunks = block.block_len() / CHUNK;
            for (j, codes) in codes.as_chunks::<CHUNK>().0.iter().enumerate() {
                to.put_codes(format.bits(), i * chunks + j, codes);
            }
        }
    });
    rows
}

/// A block's scales as the planes have them; `supers`: d and dmin, or d and zero.
struct Unpacked {
    scales: [u8; 16],
    n_scales: usize,
    supers: Option<[u8; 4]>,
}

/// The codes of a block, in order, each with all of its bits and without a sign.
fn unpack(block: BlockType, codes: &mut [u8], bytes: &[u8]) -> Unpacked {
    let mut scales = [0; 16];
    let mut plain = |n: usize| {
        scales[..n].copy_from_slice(&bytes[..n]);
        Unpacked { scales, n_scales: n, supers: None }
    };
    let four = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    let two = |at: usize| [bytes[at], bytes[at + 1], 0, 0];
    match block {
        BlockType::Q4_0 => {
            halves(codes, &bytes[q4_0::Q4_0_QS..]);
            plain(2)
        }
        BlockType::Q4_1 => {
            halves(codes, &bytes[q4_0::Q4_1_QS..]);
            plain(4)
        }
        BlockType::Q5_0 | BlockType::Q5_1 => {
            let (qh, n) =
                if block == BlockType::Q5_0 { (q5_0::Q5_0_QH, 2) } else { (q5_0::Q5_1_QH, 4) };
            halves(codes, &bytes[qh + 4..]);
            codes
                .iter_mut()
                .enumerate()
                .for_each(|(i, q)| *q |= (bytes[qh + i / 8] >> (i % 8) & 1) << 4);
            plain(n)
        }
        BlockType::Q8_0 => {
            codes.iter_mut().zip(&bytes[q8_0::QS..]).for_each(|(q, byte)| *q = byte ^ 0x80);
            plain(2)
        }
        BlockType::Q2_K => {
            quarters(codes, &bytes[q2_k::QS..]);
            scales.copy_from_slice(&bytes[q2_k::SCALES..][..16]);
            Unpacked { scales, n_scales: 16, supers: Some(four(q2_k::D)) }
        }
        BlockType::Q3_K => {
            quarters(codes, &bytes[q3_k::QS..]);
            let hmask = &bytes[q3_k::HMASK..];
            codes
                .iter_mut()
                .enumerate()
                .for_each(|(i, q)| *q |= (hmask[i % 32] >> (i / 32) & 1) << 2);
            let packed = bytes[q3_k::SCALES..].first_chunk().expect("a block is longer");
            scales = std::array::from_fn(|j| q3_k::scale(packed, j) as u8);
            Unpacked { scales, n_scales: 16, supers: Some(two(q3_k::D)) }
        }
        BlockType::Q4_K | BlockType::Q5_K => {
            let qs = if block == BlockType::Q4_K { q4_k::QS } else { q5_k::QS };
            for (codes, qs) in codes.chunks_exact_mut(64).zip(bytes[qs..].chunks_exact(32)) {
                let (low, high) = codes.split_at_mut(32);
                for ((low, high), byte) in low.iter_mut().zip(high).zip(qs) {
                    (*low, *high) = (byte & 15, byte >> 4);
                }
            }
            if block == BlockType::Q5_K {
                let qh = &bytes[q5_k::QH..];
                codes
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, q)| *q |= (qh[i % 32] >> (i / 32) & 1) << 4);
            }
            let packed = bytes[q4_k::SCALES..].first_chunk().expect("a block is longer");
            for (j, to) in scales.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                *to = q4_k::scale_min(packed, j).into();
            }
            Unpacked { scales, n_scales: 16, supers: Some(four(0)) }
        }
        BlockType::Q6_K => {
            for (half, codes) in codes.as_chunks_mut::<128>().0.iter_mut().enumerate() {
                let (ql, qh) = (&bytes[q6_k::QL + 64 * half..], &bytes[q6_k::QH + 32 * half..]);
                for (i, q) in codes.iter_mut().enumerate() {
                    let (quarter, l) = (i / 32, i % 32);
                    let low = ql[quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
                    *q = low | (qh[l] >> (2 * quarter) & 3) << 4;
                }
            }
            scales.copy_from_slice(&bytes[q6_k::SCALES..][..16]);
            Unpacked { scales, n_scales: 16, supers: Some(two(q6_k::D)) }
        }
    }
}

/// 32 codes of 4 bits, the first half of them in the lower halves of 16 bytes.
fn halves(codes: &mut [u8], qs: &[u8]) {
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(qs) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// 256 codes of 2 bits: 32 bytes have 128 of them, quarter after quarter.
fn quarters(codes: &mut [u8], qs: &[u8]) {
    for (codes, qs) in codes.chunks_exact_mut(128).zip(qs.chunks_exact(32)) {
        codes.iter_mut().enumerate().for_each(|(i, q)| *q = qs[i % 32] >> (i / 32 * 2) & 3);
    }
}

/// The format that a matrix in NF4 of rows of `k` weights has on the device.
pub fn nf4_format(k: usize, double_quant: bool) -> Format {
    match double_quant {
        _ if !k.is_multiple_of(NF4_BLOCK) => Format::Nf4Ragged,
        true => Format::Nf4Double,
        false => Format::Nf4,
    }
}

/// Bytes of a row of NF4's codes.
pub fn code_bytes(k: usize) -> usize {
    Strides::of(nf4_format(k, false), k).codes
}

/// Rows of a matrix in NF4, without their scales.
pub fn of_nf4(w: &Nf4Matrix, of: Range<usize>) -> Rows {
    let (format, k) = (nf4_format(w.k(), w.nested().is_some()), w.k());
    let strides = Strides { scales: 0, ..Strides::of(format, k) };
    let mut rows = Rows::zeroed(&strides, of.len());
    let source = w.codes();
    rows.each(&strides, |row, mut to| {
        let row = of.start + row;
        for chunk in 0..k.div_ceil(CHUNK) {
            let mut codes = [puna_cpu::quant::nf4::ZERO; CHUNK];
            let first = row * k + chunk * CHUNK;
            let len = (k - chunk * CHUNK).min(CHUNK);
            for (i, code) in (first..).zip(&mut codes[..len]) {
                *code = source[i / 2] >> (4 - 4 * (i % 2)) & 15;
            }
            to.put_codes(format.bits(), chunk, &codes);
        }
    });
    rows
}

/// The scales of a matrix in NF4.
pub struct Nf4Scales<'a> {
    /// Where they were quantised.
    pub nested: Option<&'a Nested>,
    /// Of a block, as its weights are multiplied with it.
    pub scale: &'a dyn Fn(usize) -> f32,
}

impl Nf4Scales<'_> {
    /// The planes of scales and supers of a matrix [n, k].
    pub fn planes(&self, [n, k]: [usize; 2]) -> [Vec<u8>; 2] {
        let format = nf4_format(k, self.nested.is_some());
        let (stride, blocks) = (Strides::of(format, k).scales, k / NF4_BLOCK);
        let mut rows = vec![0; n * stride];
        let each = |rows: &mut Vec<u8>, fill: &dyn Fn(usize, &mut [u8])| {
            for (row, to) in rows.chunks_mut(stride.max(1)).enumerate() {
                fill(row * blocks, to);
            }
        };
        match (format, self.nested) {
            (Format::Nf4Double, Some(nested)) => {
                each(&mut rows, &|first, to| {
                    to[..blocks].copy_from_slice(&nested.codes[first..][..blocks]);
                });
                [rows, nested.largest.iter().flat_map(|x| x.to_le_bytes()).collect()]
            }
            (Format::Nf4, _) => {
                each(&mut rows, &|first, to| {
                    for (i, to) in to.as_chunks_mut::<4>().0[..blocks].iter_mut().enumerate() {
                        *to = (self.scale)(first + i).to_le_bytes();
                    }
                });
                [rows, vec![]]
            }
            _ => {
                let n_blocks = (n * k).div_ceil(NF4_BLOCK);
                [
                    (0..n_blocks).flat_map(|block| (self.scale)(block).to_le_bytes()).collect(),
                    vec![],
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use puna_cpu::quant::decode_row;

    /// A row's codes read back from its planes.
    fn codes_of(format: Format, k: usize, rows: &Rows) -> Vec<u8> {
        let (low, high) = format.bits();
        let field = |plane: &[u8], bits: usize, i: usize| {
            let (chunk, at) = (i / CHUNK, i % CHUNK);
            let (p, t, odd) = (at / 8, at % 8 / 2, at % 2);
            if bits == 8 {
                return plane[CHUNK * chunk + 8 * t + 4 * odd + p];
            }
            let byte = plane[chunk / (4 / bits) * 16 + 4 * t + p];
            byte >> (chunk % (4 / bits) * 2 * bits + bits * odd) & ((1 << bits) - 1)
        };
        let code = |i| {
            let top = if high > 0 { field(&rows.high, high, i) << low } else { 0 };
            field(&rows.codes, low, i) | top
        };
        (0..k).map(code).collect()
    }

    #[test]
    fn every_format_comes_back_from_its_planes() {
        for block in BlockType::ALL {
            let k = 2 * block.block_len();
            // Any bits but scales that are not finite.
            let mut bytes: Vec<u8> = (0..block.row_bytes(k)).map(|i| (i * 89 + 31) as u8).collect();
            for at in (0..bytes.len()).step_by(block.block_bytes()) {
                let f16_places: &[usize] = match block {
                    BlockType::Q2_K => &[80, 82],
                    BlockType::Q3_K => &[108],
                    BlockType::Q6_K => &[208],
                    BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => &[0],
                    _ => &[0, 2],
                };
                for &place in f16_places {
                    bytes[at + place..][..2].copy_from_slice(&f16::from_f32(0.37).to_le_bytes());
                }
            }
            let mut want = vec![0.0; k];
            decode_row(block, &mut want, &bytes);
            let rows = of_blocks(block, k, &bytes);
            let codes = codes_of(Format::Block(block), k, &rows);
            let half = |plane: &[u8], at| f16::from_le_bytes([plane[at], plane[at + 1]]).to_f32();
            for (i, (&q, want)) in codes.iter().zip(&want).enumerate() {
                let (q, chunk, group) = (f32::from(q), i / 32, i / 16);
                let d = |at| half(&rows.supers, i / 256 * 4 + at);
                let byte = |at: usize| rows.scales[at];
                let got = match block {
                    BlockType::Q4_0 => (q - 8.0) * half(&rows.scales, 2 * chunk),
                    BlockType::Q5_0 => (q - 16.0) * half(&rows.scales, 2 * chunk),
                    BlockType::Q8_0 => (q - 128.0) * half(&rows.scales, 2 * chunk),
                    BlockType::Q4_1 | BlockType::Q5_1 => {
                        q * half(&rows.scales, 4 * chunk) + half(&rows.scales, 4 * chunk + 2)
                    }
                    BlockType::Q4_K | BlockType::Q5_K => {
                        let (s, m) = (f32::from(byte(2 * chunk)), f32::from(byte(2 * chunk + 1)));
                        d(0) * s * q - d(2) * m
                    }
                    BlockType::Q2_K => {
                        let both = byte(group);
                        d(0) * f32::from(both & 15) * q - d(2) * f32::from(both >> 4)
                    }
                    BlockType::Q3_K => d(0) * f32::from(byte(group) as i8) * (q - 4.0),
                    BlockType::Q6_K => d(0) * f32::from(byte(group) as i8) * (q - 32.0),
                };
                assert_eq!(got, *want, "{} [{i}]", block.name());
            }
        }
    }

    #[test]
    fn planes_add_few_bytes_to_the_blocks() {
        for block in BlockType::ALL {
            let strides = Strides::of(Format::Block(block), 4096);
            let bytes = strides.codes + strides.high + strides.scales + strides.supers;
            // Scales of 6 bits become bytes, and d gets company: of Q3_K 116 bytes instead of 110.
            assert!(bytes <= block.row_bytes(4096) * 106 / 100, "{}: {bytes}", block.name());
        }
    }
}
