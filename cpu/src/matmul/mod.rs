//! Products with F32, F16 and BF16 weights, used in place as the file stores them.
//!
//! Weights are [n, k] row-major bytes (no alignment needed), activations [m, k], `y = x wᵀ`.
//! Each result is, in this order whatever the tile it is computed in:
//!
//! ```text
//! y = sum over chunks of some inputs (`chunk_of`), left to right, of
//!         the lanes' sums, added in a fixed tree, of
//!             one chain of fused multiply-adds per lane, over the chunk's inputs
//! ```
//!
//! so a row has the same bits alone, in a batch, and for any split of the output rows.
//! With AVX-512 BF16, BF16 weights meet activations rounded to BF16 (as the instruction wants);
//! everywhere else, and on request, activations stay f32.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod nf4;
mod portable;
#[cfg(target_arch = "x86_64")]
mod tiles;

#[cfg(test)]
mod tests;

pub use nf4::{Nf4Scratch, nf4_product};

use crate::buffer::Buffer;
use crate::convert;
use crate::isa::{Isa, Level};
use crate::team::{SharedMut, Team};
use half::bf16;
use std::ops::Range;

/// Inputs of one chunk: a tile of six activation rows, the weights it meets and those that come
/// next stay in the first-level cache together.
const fn chunk_of(dtype: Dense) -> usize {
    match dtype {
        Dense::BF16 => K_CHUNK,
        Dense::F32 | Dense::F16 => K_CHUNK / 2,
    }
}

/// The longest chunk.
const K_CHUNK: usize = 2048;
/// Output rows whose chunk stays in the second-level cache while all activations pass.
const ROW_BLOCK: usize = 64;

/// Activation rows that one tile takes at most.
const FEW: usize = 6;

/// How far ahead of their use the rows of a tile are asked for, together: a memory latency's
/// worth of lines. The machine measured here brings nothing by itself.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096;

/// Element type of dense weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dense {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    BF16,
}

impl Dense {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Dense::F32 => 4,
            Dense::F16 | Dense::BF16 => 2,
        }
    }
}

/// A weight matrix [n, k] as stored.
#[derive(Clone, Copy)]
pub struct DenseMatrix<'a> {
    /// Little-endian elements, n * k of them.
    pub bytes: &'a [u8],
    /// Their type.
    pub dtype: Dense,
    /// Output rows.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

/// Activations [m, k].
#[derive(Clone, Copy)]
pub struct DenseActs<'a> {
    /// The activations.
    pub f32: &'a [f32],
    /// The same in BF16, from [`Bf16Acts::round`] on this machine; `None` to multiply with f32.
    pub bf16: Option<&'a Bf16Acts>,
}

/// Activations rounded to the nearest BF16, laid out for the kernel that will read them: rows, or
/// packed tiles where there are more than a few.
#[derive(Default)]
pub struct Bf16Acts {
    data: Vec<bf16>,
    m: usize,
    k: usize,
}

impl Bf16Acts {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        2 * self.data.capacity()
    }

    /// Bytes that `m` rows of `k` inputs take at most.
    pub fn bytes_of(m: usize, k: usize) -> usize {
        2 * m.next_multiple_of(FEW) * k.next_multiple_of(32)
    }

    /// Rounds `x` [m, k], shared by the team where that pays.
    ///
    /// # Panics
    /// Where [`wants_bf16`] says no.
    pub fn round(&mut self, isa: Isa, team: &Team, x: &[f32], m: usize, k: usize) {
        assert!(wants_bf16(isa, Dense::BF16) && x.len() == m * k, "activations [{m}, {k}]");
        (self.m, self.k) = (m, k);
        #[cfg(target_arch = "x86_64")]
        if self.is_packed() {
            let len = tiles::tile_len(k);
            let all = self.room(m.div_ceil(tiles::M) * len);
            team.split_rows(all, len, 1, &|which, out| {
                for (t, out) in which.zip(out.chunks_exact_mut(len)) {
                    let rows = t * tiles::M * k..m.min((t + 1) * tiles::M) * k;
                    // SAFETY: wants_bf16 implies these features.
                    unsafe { tiles::pack_acts(out, &x[rows], k) };
                }
            });
            return;
        }
        convert::f32_to_bf16(isa, self.room(m * k), x);
    }

    /// The first `len` elements, there from now on.
    fn room(&mut self, len: usize) -> &mut [bf16] {
        if self.data.len() < len {
            self.data.resize(len, bf16::ZERO);
        }
        &mut self.data[..len]
    }

    fn is_packed(&self) -> bool {
        self.m > FEW
    }
}

/// What one thread needs for [`dense_product`], grown on first use.
#[derive(Default)]
pub struct DenseScratch {
    packed: Buffer<bf16>,
}

impl DenseScratch {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        2 * self.packed.len()
    }

    /// Bytes held at most after products of up to `k` inputs.
    pub const fn bytes_of(k: usize) -> usize {
        let k = k.next_multiple_of(32);
        2 * ROW_BLOCK * if k < K_CHUNK { k } else { K_CHUNK }
    }
}

/// Whether products with such weights are computed from BF16 activations.
pub fn wants_bf16(isa: Isa, dtype: Dense) -> bool {
    isa.has_bf16() && dtype == Dense::BF16
}

/// Output rows that a thread should take at once.
pub const ROW_GRAIN: usize = 16;

/// Columns `rows` of `x wᵀ` into `out` [m, n]; overwrites.
///
/// # Safety
/// No other thread uses these columns of `out` meanwhile.
///
/// # Panics
/// When lengths do not fit together.
pub unsafe fn dense_product(
    isa: Isa,
    out: &SharedMut<'_, f32>,
    w: DenseMatrix<'_>,
    acts: DenseActs<'_>,
    rows: Range<usize>,
    scratch: &mut DenseScratch,
) {
    let (n, k) = (w.n, w.k);
    assert_eq!(w.bytes.len(), n * k * w.dtype.bytes(), "bytes of weights [{n}, {k}]");
    assert!(k > 0 && acts.f32.len().is_multiple_of(k), "whole rows of {k} inputs");
    let m = acts.f32.len() / k;
    assert!(out.len() >= m * n && rows.end <= n, "output of {m} rows by {n}");
    if let Some(x) = acts.bf16 {
        assert_eq!((x.m, x.k), (m, k), "BF16 activations");
        #[cfg(target_arch = "x86_64")]
        if x.is_packed() {
            assert!(wants_bf16(isa, w.dtype), "BF16 activations for {:?} weights", w.dtype);
            // SAFETY: wants_bf16 implies the features and the type; lengths were checked, columns
            // are ours by this function's contract.
            return unsafe { tiles::product(out, w, &x.data, m, rows, &mut scratch.packed) };
        }
    }
    // Few activation rows pass once: then weights are read as they lie, tile by tile.
    let row_block = match isa.level() {
        _ if m > FEW => ROW_BLOCK,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if m == 1 => avx512::SINGLE,
        Level::Avx2 => 3,
        _ => 4,
    };
    for block in rows.clone().step_by(row_block) {
        let block = block..(block + row_block).min(rows.end);
        for from in (0..k).step_by(chunk_of(w.dtype)) {
            let len = chunk_of(w.dtype).min(k - from);
            let chunk = Chunk { w, acts, m, rows: block.clone(), from, len };
            match isa.level() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an Isa of this level exists only where its features were detected (BF16
                // activations come only with has_bf16); lengths were checked above.
                Level::Avx512 => unsafe { avx512::chunk(isa.has_bf16(), out, &chunk) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: likewise.
                Level::Avx2 => unsafe { avx2::chunk(out, &chunk) },
                // SAFETY: columns of ours by this function's contract.
                _ => unsafe { portable::chunk(out, &chunk) },
            }
        }
    }
}

/// Inputs `from..from + len` of some output rows and all activations.
struct Chunk<'a> {
    w: DenseMatrix<'a>,
    acts: DenseActs<'a>,
    m: usize,
    rows: Range<usize>,
    from: usize,
    len: usize,
}

impl Chunk<'_> {
    /// Where to ask for weights that come `AHEAD` bytes after those at an offset of a row, if `rows`
    /// of them are read side by side: in the same row, or at the start of the next tile's.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn ahead(&self, rows: usize) -> impl Fn(usize) -> usize {
        let size = self.w.dtype.bytes();
        let left = (self.w.k - self.from) * size;
        let next = rows * self.w.k * size - self.from * size;
        move |offset| {
            let ahead = offset + AHEAD / rows;
            if ahead < left { ahead } else { ahead - left + next }
        }
    }

    /// Address of the first input of output row `n`.
    fn weights(&self, n: usize) -> *const u8 {
        let at = (n * self.w.k + self.from) * self.w.dtype.bytes();
        self.w.bytes[at..].as_ptr()
    }

    /// Address of the first input of activation row `m`.
    fn x(&self, m: usize) -> *const f32 {
        self.acts.f32[m * self.w.k + self.from..].as_ptr()
    }

    /// Likewise in BF16.
    fn x_bf16(&self, m: usize) -> *const bf16 {
        let row = |x: &Bf16Acts| x.data[m * self.w.k + self.from..].as_ptr();
        self.acts.bf16.map_or(std::ptr::null(), row)
    }

    /// Stores or, after the first chunk, adds one result.
    ///
    /// # Safety
    /// No other thread uses this element of `out`.
    unsafe fn put(&self, out: &SharedMut<'_, f32>, m: usize, n: usize, value: f32) {
        let at = m * self.w.n + n;
        // SAFETY: this function's contract.
        let to = unsafe { &mut out.slice(at..at + 1)[0] };
        *to = if self.from == 0 { value } else { *to + value };
    }
}
