//! Products with NF4 weights while serving, plainly: rows are decoded to f32, some at a time, and
//! multiplied as dense ones. Every result has the bits of the product with the decoded matrix.

use super::{Dense, DenseActs, DenseMatrix, DenseScratch, dense_product};
use crate::buffer::Buffer;
use crate::convert;
use crate::isa::Isa;
use crate::quant::nf4::Nf4Matrix;
use crate::team::SharedMut;
use std::ops::Range;

/// Output rows that are decoded together.
const GROUP: usize = 16;

/// What one thread needs for [`nf4_product`], grown on first use.
#[derive(Default)]
pub struct Nf4Scratch {
    /// Decoded rows [GROUP, k].
    weights: Buffer<f32>,
    /// Their results [m, GROUP].
    out: Buffer<f32>,
}

impl Nf4Scratch {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * (self.weights.len() + self.out.len())
    }

    /// Bytes held at most after products of up to `m` rows of up to `k` inputs.
    pub const fn bytes_of(m: usize, k: usize) -> usize {
        4 * GROUP * (m + k)
    }
}

/// Columns `rows` of `x wᵀ` into `out` [m, n]; overwrites. `x` is [m, k].
///
/// # Safety
/// No other thread uses these columns of `out` meanwhile.
///
/// # Panics
/// When lengths do not fit together.
pub unsafe fn nf4_product(
    isa: Isa,
    out: &SharedMut<'_, f32>,
    w: &Nf4Matrix,
    x: &[f32],
    rows: Range<usize>,
    scratch: &mut Nf4Scratch,
    dense: &mut DenseScratch,
) {
    let (n, k) = (w.n(), w.k());
    assert!(k > 0 && x.len().is_multiple_of(k), "whole rows of {k} inputs");
    let m = x.len() / k;
    assert!(out.len() >= m * n && rows.end <= n, "output of {m} rows by {n}");
    let weights = room(&mut scratch.weights, GROUP * k);
    let results = room(&mut scratch.out, m * GROUP);
    for first in rows.clone().step_by(GROUP) {
        let some = GROUP.min(rows.end - first);
        let (weights, results) = (&mut weights[..some * k], &mut results[..m * some]);
        w.decode(isa, weights, first * k);
        let bytes = convert::f32_bytes(weights);
        let part = DenseMatrix { bytes, dtype: Dense::F32, n: some, k };
        let acts = DenseActs { f32: x, bf16: None };
        // SAFETY: the results are this thread's own.
        unsafe { dense_product(isa, &SharedMut::new(results), part, acts, 0..some, dense) };
        for (i, results) in results.chunks_exact(some).enumerate() {
            let at = i * n + first;
            // SAFETY: columns of ours by this function's contract.
            unsafe { out.slice(at..at + some) }.copy_from_slice(results);
        }
    }
}

/// The first `len` numbers, there from now on.
fn room(buffer: &mut Buffer<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        // The old one goes first: both together could be much.
        *buffer = Buffer::default();
        *buffer = Buffer::zeroed(len);
    }
    &mut buffer[..len]
}
