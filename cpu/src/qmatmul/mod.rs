//! Products with quantised weights.
//!
//! A [`PackedMatrix`] holds the weights in panels of sixteen output rows (see `layout.rs`), made
//! from GGUF blocks once at load. [`QActs`] holds activations rounded to int8 per 32 inputs.
//! [`panels_product`] computes some panels for all rows; callers split panels among threads.

mod acts;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod exact;
mod layout;
mod pack;
mod portable;
mod unpack;

#[cfg(test)]
mod tests;

pub use acts::{BlockMeta, QActs, quantize};
pub use layout::{BLOCK, ROWS};

use crate::buffer::Buffer;
use crate::isa::{Isa, Level};
use crate::quant::BlockType;
use crate::team::SharedMut;
use layout::Layout;
use std::ops::Range;
use std::sync::Arc;

/// A quantised weight matrix [n, k], rearranged for the kernels.
pub struct PackedMatrix {
    block: BlockType,
    n: usize,
    k: usize,
    panels: Panels,
}

/// Who owns the panels' bytes.
enum Panels {
    /// This matrix.
    Own(Buffer<u8>),
    /// Somebody who keeps them alive: a mapped file.
    Shared(Arc<dyn AsRef<[u8]> + Send + Sync>),
}

/// Number of the way in which panels are laid out; another one for every change of it, so that
/// panels that were kept in a file are known to be old.
pub const PACKING: u32 = 1;

impl PackedMatrix {
    /// Room for a matrix of `n` output rows and `k` inputs, all zero.
    ///
    /// # Panics
    /// When `k` is not a multiple of the format's block.
    pub fn zeroed(block: BlockType, n: usize, k: usize) -> Self {
        assert!(
            k > 0 && k.is_multiple_of(block.block_len()),
            "inputs {k} must be a multiple of {}",
            block.block_len()
        );
        let bytes = Self::bytes_of(block, n, k);
        PackedMatrix { block, n, k, panels: Panels::Own(Buffer::zeroed(bytes)) }
    }

    /// Bytes of the panels of such a matrix.
    pub fn bytes_of(block: BlockType, n: usize, k: usize) -> usize {
        Layout::of(block).panel_bytes(k / BLOCK) * n.div_ceil(ROWS)
    }

    /// The matrix with these GGUF blocks, row after row.
    pub fn from_blocks(block: BlockType, n: usize, k: usize, rows: &[u8]) -> Self {
        let mut matrix = Self::zeroed(block, n, k);
        let row_bytes = block.row_bytes(k);
        assert_eq!(rows.len(), n * row_bytes, "bytes of {n} rows");
        let panel_bytes = matrix.panel_bytes();
        for (panel, rows) in
            matrix.panels_mut().chunks_exact_mut(panel_bytes).zip(rows.chunks(ROWS * row_bytes))
        {
            pack::pack_panel(block, panel, rows, k / BLOCK);
        }
        matrix
    }

    /// The matrix whose panels, of this [`PACKING`], somebody else owns.
    ///
    /// # Panics
    /// When they are not [`bytes_of`](Self::bytes_of) bytes, which must not change later.
    pub fn from_panels(
        block: BlockType,
        n: usize,
        k: usize,
        panels: Arc<dyn AsRef<[u8]> + Send + Sync>,
    ) -> Self {
        assert_eq!((*panels).as_ref().len(), Self::bytes_of(block, n, k), "bytes of panels");
        PackedMatrix { block, n, k, panels: Panels::Shared(panels) }
    }

    /// The panels' bytes.
    pub fn panels(&self) -> &[u8] {
        match &self.panels {
            Panels::Own(bytes) => bytes,
            Panels::Shared(bytes) => (**bytes).as_ref(),
        }
    }

    /// The panels' bytes, for filling by [`pack_panels`] from several threads.
    ///
    /// # Panics
    /// When somebody else owns them.
    pub fn panels_mut(&mut self) -> &mut [u8] {
        match &mut self.panels {
            Panels::Own(bytes) => bytes,
            Panels::Shared(_) => panic!("panels that are shared are not written"),
        }
    }

    /// Format of the blocks.
    pub fn block(&self) -> BlockType {
        self.block
    }

    /// Output rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Panels, of sixteen rows each but for the end.
    pub fn n_panels(&self) -> usize {
        self.n.div_ceil(ROWS)
    }

    /// Bytes of one panel.
    pub fn panel_bytes(&self) -> usize {
        Layout::of(self.block).panel_bytes(self.k / BLOCK)
    }

    /// Bytes of all panels.
    pub fn bytes(&self) -> usize {
        self.panels().len()
    }

    fn panel(&self, p: usize) -> &[u8] {
        let bytes = self.panel_bytes();
        &self.panels()[p * bytes..(p + 1) * bytes]
    }

    /// Row `row` as f32, into `out` `[k]`.
    ///
    /// # Panics
    /// When the row does not exist or `out` has another length.
    pub fn decode_row(&self, out: &mut [f32], row: usize) {
        assert!(
            row < self.n && out.len() == self.k,
            "row {row} of {}, {} values",
            self.n,
            out.len()
        );
        let mut u = unpack::Unpacked::default();
        let mut w = [[0.0f32; ROWS]; BLOCK];
        let panel = self.panel(row / ROWS);
        for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            unpack::unpack(self.block, &mut u, panel, self.k / BLOCK, b);
            unpack::block_weights(self.block, &mut w, &u);
            for (out, w) in out.iter_mut().zip(&w) {
                *out = w[row % ROWS];
            }
        }
    }
}

impl PackedMatrix {
    /// About the bytes of some blocks of a panel: those that lie there if headers and scales are
    /// spread evenly.
    pub(crate) fn panel_part(&self, panel: usize, blocks: &Range<usize>) -> &[u8] {
        let (panel, n_blocks) = (self.panel(panel), self.k / BLOCK);
        let at = |b: usize| panel.len() * b.min(n_blocks) / n_blocks;
        &panel[at(blocks.start)..at(blocks.end)]
    }

    /// Inputs `32 b` and following of the sixteen rows of a panel as f32, `out[input][row]`: the
    /// values of [`PackedMatrix::decode_row`].
    ///
    /// # Panics
    /// When there is no such panel or block.
    pub(crate) fn decode_block(
        &self,
        isa: Isa,
        out: &mut [[f32; ROWS]; BLOCK],
        panel: usize,
        b: usize,
    ) {
        let (panel, n_blocks) = (self.panel(panel), self.k / BLOCK);
        assert!(b < n_blocks, "block {b} of {n_blocks}");
        match isa.level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this Isa exists only where the features were detected.
            Level::Avx512 => unsafe { avx512::block_weights(self.block, out, panel, n_blocks, b) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: likewise.
            Level::Avx2 => unsafe { avx2::block_weights(self.block, out, panel, n_blocks, b) },
            _ => {
                let mut u = unpack::Unpacked::default();
                unpack::unpack(self.block, &mut u, panel, n_blocks, b);
                unpack::block_weights(self.block, out, &u);
            }
        }
    }
}

/// Packs `rows` (whole GGUF rows; as many as the panels hold, but for a short end) into `panels`.
pub fn pack_panels(block: BlockType, panels: &mut [u8], rows: &[u8], k: usize) {
    let panel_bytes = Layout::of(block).panel_bytes(k / BLOCK);
    assert!(panels.len().is_multiple_of(panel_bytes), "whole panels");
    let per_panel = ROWS * block.row_bytes(k);
    for (panel, rows) in panels.chunks_exact_mut(panel_bytes).zip(rows.chunks(per_panel)) {
        pack::pack_panel(block, panel, rows, k / BLOCK);
    }
}

/// What one thread needs besides the operands; grown on first use, then reused.
#[derive(Default)]
pub struct PanelScratch {
    #[cfg(target_arch = "x86_64")]
    pairs: avx512::Scratch,
    #[cfg(target_arch = "x86_64")]
    blocks: Vec<unpack::Unpacked>,
}

impl PanelScratch {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        {
            self.pairs.bytes() + self.blocks.capacity() * size_of::<unpack::Unpacked>()
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            0
        }
    }

    /// Bytes that products of `k` inputs need, at any level.
    pub fn bytes_of(k: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        {
            let n_blocks = k.div_ceil(BLOCK);
            let blocks = n_blocks * size_of::<unpack::Unpacked>();
            blocks.max(avx512::Scratch::bytes_of(n_blocks))
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = k;
            0
        }
    }
}

/// How far ahead of its use a panel's stream is asked for: a memory latency's worth of lines.
/// The machine measured here brings nothing by itself.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096;

/// Asks for block `b`'s share of the stream, `AHEAD` bytes further than where that share is in
/// `panel`; past a panel's end the next one follows. Shares are even, so that every line of header,
/// scales and codes belongs to one, wherever it lies in the group.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fetch_ahead(layout: &Layout, panel: *const u8, b: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let share = layout.share_bytes();
    for line in 0..share.div_ceil(layout::VECTOR) {
        let p = panel.wrapping_add(b * share + AHEAD + line * layout::VECTOR);
        // SAFETY: a hint, never a fault, at any address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
    }
}

/// Panels that a thread should take at once: the many-row kernel works on pairs.
pub const PANEL_GRAIN: usize = 2;

/// Columns of panels `panels` of `x wᵀ`, for `m` rows, into `out` [m, n] row-major.
///
/// The same bits for any `m`, any split of the panels.
///
/// # Safety
/// No other thread uses the columns of these panels in `out` meanwhile.
///
/// # Panics
/// When lengths do not fit together.
pub unsafe fn panels_product(
    isa: Isa,
    out: &SharedMut<'_, f32>,
    w: &PackedMatrix,
    acts: &QActs,
    m: usize,
    panels: Range<usize>,
    scratch: &mut PanelScratch,
) {
    assert!(out.len() >= m * w.n, "output of {m} rows by {}", w.n);
    assert_eq!(acts.n_blocks() * BLOCK, w.k, "inputs of activations and weights");
    assert!(panels.end <= w.n_panels(), "panels {panels:?} of {}", w.n_panels());
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if isa.has_vnni() => {
            if m <= avx512::FEW {
                let mut block = [[0.0f32; ROWS]; avx512::FEW];
                for p in panels {
                    // SAFETY: this Isa exists only where the features were detected.
                    unsafe { avx512::panel_few(w.block, &mut block, w.panel(p), acts, 0, m) };
                    for (row, values) in block[..m].iter().enumerate() {
                        // SAFETY: columns of a panel of ours, by this function's contract.
                        unsafe { put(out, w, row, p, values) };
                    }
                }
                return;
            }
            let mut p = panels.start;
            while p < panels.end {
                let pair = p + 1 < panels.end;
                let columns = if pair { 2 * ROWS } else { ROWS }.min(w.n - p * ROWS);
                let both = [Some(w.panel(p)), pair.then(|| w.panel(p + 1))];
                // SAFETY: rows 0..m of these columns lie inside `out` by the first assertion and
                // are ours by this function's contract; the features as above.
                unsafe {
                    let to = out.as_ptr().add(p * ROWS);
                    let scratch = &mut scratch.pairs;
                    avx512::panels_many(w.block, to, w.n, columns, both, scratch, acts, m);
                }
                p += 2;
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx2 if m <= avx2::FEW => {
            let mut block = [[0.0f32; ROWS]; avx2::FEW];
            for p in panels {
                // SAFETY: this Isa exists only where the features were detected.
                unsafe { avx2::panel_few(w.block, &mut block, w.panel(p), acts, 0, m) };
                for (row, values) in block[..m].iter().enumerate() {
                    // SAFETY: columns of a panel of ours, by this function's contract.
                    unsafe { put(out, w, row, p, values) };
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx2 => {
            let n_blocks = acts.n_blocks();
            if scratch.blocks.len() < n_blocks {
                scratch.blocks.resize(n_blocks, unpack::Unpacked::default());
            }
            for p in panels {
                let columns = ROWS.min(w.n - p * ROWS);
                // SAFETY: rows 0..m of these columns lie inside `out` by the first assertion and
                // are ours by this function's contract; this Isa exists only where the features
                // were detected.
                unsafe {
                    let to = out.as_ptr().add(p * ROWS);
                    let blocks = &mut scratch.blocks[..n_blocks];
                    avx2::panel_many(w.block, to, w.n, columns, w.panel(p), blocks, acts, m);
                }
            }
        }
        _ => {
            let mut values = [0.0; ROWS];
            for p in panels {
                for row in 0..m {
                    portable::panel_row(w.block, &mut values, w.panel(p), acts, row);
                    // SAFETY: columns of a panel of ours, by this function's contract.
                    unsafe { put(out, w, row, p, &values) };
                }
            }
        }
    }
}

/// As [`panels_product`], with f32 activations `x` [m, k] that are not rounded.
///
/// # Safety
/// As there.
pub unsafe fn panels_product_exact(
    isa: Isa,
    out: &SharedMut<'_, f32>,
    w: &PackedMatrix,
    x: &[f32],
    panels: Range<usize>,
) {
    assert!(out.len() >= x.len() / w.k * w.n, "output of {} rows by {}", x.len() / w.k, w.n);
    for p in panels {
        exact::panel_exact(isa, w.block, w.panel(p), x, w.k, &mut |row, values| {
            // SAFETY: columns of a panel of the caller's, by this function's contract.
            unsafe { put(out, w, row, p, values) };
        });
    }
}

/// Writes one row of a panel's results.
///
/// # Safety
/// No other thread uses these columns of `out` meanwhile.
unsafe fn put(
    out: &SharedMut<'_, f32>,
    w: &PackedMatrix,
    row: usize,
    panel: usize,
    values: &[f32; ROWS],
) {
    let columns = ROWS.min(w.n - panel * ROWS);
    let at = row * w.n + panel * ROWS;
    // SAFETY: by this function's contract.
    unsafe { out.slice(at..at + columns) }.copy_from_slice(&values[..columns]);
}
