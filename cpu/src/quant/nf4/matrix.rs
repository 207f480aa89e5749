//! A weight matrix in NF4, its codes as they are encoded: row after row, two a byte.

use super::{BLOCK, BLOCK_BYTES, Nested, decode_plain, encode_block};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::buffer::Buffer;
use crate::isa::{Isa, Level};
use crate::team::{SharedMut, Team};
use std::ops::Range;

/// Blocks that a thread reads and encodes at once: 256 KiB of f32 weights.
const PIECE_BLOCKS: usize = 1024;

/// Scales of the blocks.
enum Scales {
    /// As they are.
    Single(Buffer<f32>),
    /// Quantised.
    Double(Nested),
}

/// A weight matrix [n, k] in NF4.
pub struct Nf4Matrix {
    n: usize,
    k: usize,
    /// Of whole blocks.
    codes: Buffer<u8>,
    scales: Scales,
}

impl Nf4Matrix {
    /// Encodes a matrix whose weights `read` gives, as f32 and some at a time: from weight `first`
    /// of the flat matrix on, as many as there is room for. The same codes for any team.
    ///
    /// # Panics
    /// When the size overflows.
    pub fn encode(
        team: &Team,
        [n, k]: [usize; 2],
        double_quant: bool,
        read: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Nf4Matrix {
        let len = n.checked_mul(k).expect("number of weights overflows");
        let n_blocks = len.div_ceil(BLOCK);
        let mut codes = Buffer::<u8>::zeroed(n_blocks * BLOCK_BYTES);
        let mut scales = Buffer::<f32>::zeroed(n_blocks);
        let shared = SharedMut::new(&mut scales);
        team.split_rows(&mut codes, BLOCK_BYTES, 2, &|blocks, codes| {
            let mut piece = vec![0.0; BLOCK * PIECE_BLOCKS.min(blocks.len())];
            // SAFETY: split_rows hands every block to one member only.
            let scales = unsafe { shared.slice(blocks.clone()) };
            let pieces = codes.chunks_mut(PIECE_BLOCKS * BLOCK_BYTES);
            for (i, (codes, scales)) in pieces.zip(scales.chunks_mut(PIECE_BLOCKS)).enumerate() {
                let first = (blocks.start + i * PIECE_BLOCKS) * BLOCK;
                let piece = &mut piece[..(scales.len() * BLOCK).min(len - first)];
                read(first, piece);
                let codes = codes.as_chunks_mut().0.iter_mut();
                for ((codes, scale), w) in codes.zip(scales).zip(piece.chunks(BLOCK)) {
                    *scale = encode_block(codes, w);
                }
            }
        });
        let scales = match double_quant {
            true => Scales::Double(Nested::encode(&scales)),
            false => Scales::Single(scales),
        };
        Nf4Matrix { n, k, codes, scales }
    }

    /// The matrix [n, k] of these weights.
    ///
    /// # Panics
    /// When their number is another.
    pub fn of(team: &Team, w: &[f32], [n, k]: [usize; 2], double_quant: bool) -> Nf4Matrix {
        assert_eq!(Some(w.len()), n.checked_mul(k), "weights of [{n}, {k}]");
        let read = |first: usize, out: &mut [f32]| out.copy_from_slice(&w[first..][..out.len()]);
        Self::encode(team, [n, k], double_quant, &read)
    }

    /// Bytes of codes and scales of such a matrix.
    pub const fn bytes_of(n: usize, k: usize, double_quant: bool) -> usize {
        let n_blocks = (n * k).div_ceil(BLOCK);
        let scales = if double_quant { Nested::bytes_of(n_blocks) } else { 4 * n_blocks };
        n_blocks * BLOCK_BYTES + scales
    }

    /// Output rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes of codes and scales.
    pub fn bytes(&self) -> usize {
        Self::bytes_of(self.n, self.k, self.nested().is_some())
    }

    /// The codes, two a byte.
    pub fn codes(&self) -> &[u8] {
        &self.codes[..(self.n * self.k).div_ceil(2)]
    }

    /// The scales that are quantised, if they are.
    pub fn nested(&self) -> Option<&Nested> {
        match &self.scales {
            Scales::Single(_) => None,
            Scales::Double(nested) => Some(nested),
        }
    }

    /// The scale of a block as its weights are multiplied with it.
    #[inline(always)]
    pub fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            Scales::Single(scales) => scales[block],
            Scales::Double(nested) => nested.scale(block),
        }
    }

    /// Whether all scales are finite: no weight was NaN or infinite.
    pub fn is_finite(&self) -> bool {
        match &self.scales {
            Scales::Single(scales) => scales.iter().all(|scale| scale.is_finite()),
            // A scale that is not finite makes the mean so.
            Scales::Double(nested) => nested.offset.is_finite(),
        }
    }

    /// The bytes of the codes of some inputs of a row.
    pub(crate) fn row_part(&self, row: usize, inputs: &Range<usize>) -> &[u8] {
        let (first, end) = (row * self.k + inputs.start, row * self.k + inputs.end);
        &self.codes[first / 2..end.div_ceil(2)]
    }

    /// Weights `first..first + out.len()` of the flat matrix as f32. The same bits at every level.
    /// Overwrites `out`.
    ///
    /// # Panics
    /// When the matrix has fewer.
    pub fn decode(&self, isa: Isa, out: &mut [f32], first: usize) {
        let end = first + out.len();
        assert!(end <= self.n * self.k, "weights {first}..{end} of [{}, {}]", self.n, self.k);
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let len = (BLOCK - at % BLOCK).min(rest.len());
            let (some, after) = rest.split_at_mut(len);
            let scale = self.scale(at / BLOCK);
            match isa.level() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an Isa of this level exists only where its features were detected.
                Level::Avx512 => unsafe { avx512::decode(some, &self.codes, at, scale) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: likewise.
                Level::Avx2 => unsafe { avx2::decode(some, &self.codes, at, scale) },
                _ => decode_plain(some, &self.codes, at, scale),
            }
            (at, rest) = (at + len, after);
        }
    }
}
