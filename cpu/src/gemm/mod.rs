//! Matrix products of training: `out = alpha a b` and `out += alpha a b`, factors in any
//! orientation and storage, near the machine's arithmetic peak.
//!
//! ```text
//! for slab of rows of a                          what stays in the second-level cache
//!   pack the slab's tiles of a                   shared by the team, where they must be packed
//!   for block of columns of b                    each member has rows or columns of its own
//!     for chunk of inputs                        `chunk` of them, a function of k alone
//!       for stripe of columns                    packed, then in the first-level cache
//!         for tile of rows                       out tile += alpha * (a tile) (b stripe)
//! ```
//!
//! A tile's sums are kept in registers, one chain of fused multiply-adds an element over the
//! chunk's inputs in order (pairs of inputs with bf16 instructions); chunks are added to `out` in
//! order. So an element has the same bits for any number of threads and of rows. A product is
//! computed as its transpose where that costs less; that changes no bit.
//!
//! Factors that tiles can read as they lie are not copied (`pack.rs`); results that are bf16 or
//! transposed pass through a block of f32 (`stage.rs`).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod job;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pack_avx512;
mod portable;
mod stage;

#[cfg(test)]
mod tests;

use crate::buffer::{Buffer, Plain};
use crate::floats::{Floats, FloatsMut};
use crate::isa::{Isa, Level};
use crate::matmul::DenseMatrix;
use crate::qmatmul::PackedMatrix;
use crate::quant::nf4::Nf4Matrix;
use crate::team::Team;
use job::{Job, Tile};
use pack::{Unit, View};
use stage::Out;

/// The numbers of a factor.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Numbers of training.
    Floats(Floats<'a>),
    /// F32, F16 or BF16 bytes of any alignment.
    Dense(DenseMatrix<'a>),
    /// A quantised weight, decoded tile by tile.
    Packed(&'a PackedMatrix),
    /// A weight in NF4, likewise.
    Nf4(&'a Nf4Matrix),
}

/// A factor of a product as it is stored: `rows` x `cols`, row-major.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    /// The numbers.
    pub source: Source<'a>,
    /// Stored rows.
    pub rows: usize,
    /// Stored columns.
    pub cols: usize,
    /// Whether the factor is the transpose of what is stored, [cols, rows].
    pub transposed: bool,
}

impl<'a> Factor<'a> {
    /// The block `x` [rows, cols].
    pub fn plain(x: Floats<'a>, rows: usize, cols: usize) -> Self {
        Factor { source: Source::Floats(x), rows, cols, transposed: false }
    }

    /// The weights [n, k].
    pub fn dense(w: DenseMatrix<'a>) -> Self {
        Factor { source: Source::Dense(w), rows: w.n, cols: w.k, transposed: false }
    }

    /// The quantised weights [n, k].
    pub fn packed(w: &'a PackedMatrix) -> Self {
        Factor { source: Source::Packed(w), rows: w.n(), cols: w.k(), transposed: false }
    }

    /// The NF4 weights [n, k].
    pub fn nf4(w: &'a Nf4Matrix) -> Self {
        Factor { source: Source::Nf4(w), rows: w.n(), cols: w.k(), transposed: false }
    }

    /// The transpose.
    #[must_use]
    pub fn t(mut self) -> Self {
        self.transposed = !self.transposed;
        self
    }

    /// Rows and columns as the product sees them.
    pub fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    fn check(&self) {
        let (rows, cols) = (self.rows, self.cols);
        match self.source {
            Source::Floats(x) => assert_eq!(x.len(), rows * cols, "numbers of [{rows}, {cols}]"),
            Source::Dense(w) => {
                assert_eq!((w.n, w.k), (rows, cols), "shape of the weights");
                let bytes = rows * cols * w.dtype.bytes();
                assert_eq!(w.bytes.len(), bytes, "bytes of weights [{rows}, {cols}]");
            }
            Source::Packed(w) => assert_eq!((w.n(), w.k()), (rows, cols), "shape of the weights"),
            Source::Nf4(w) => assert_eq!((w.n(), w.k()), (rows, cols), "shape of the weights"),
        }
    }
}

/// What the factors are rounded to before they are multiplied. Sums are f32 in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Nothing: single precision.
    F32,
    /// bf16, to nearest even. With the bf16 instructions numbers below the smallest normal one
    /// count as zero.
    Bf16,
}

/// Packed panels and results under way, grown on first use and then reused.
#[derive(Default)]
pub struct Scratch {
    a: Option<Buffer<u32>>,
    members: Vec<Member>,
}

impl Scratch {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let len = |b: &Option<Buffer<u32>>| 4 * b.as_ref().map_or(0, |b| b.len());
        let c = |b: &Option<Buffer<f32>>| 4 * b.as_ref().map_or(0, |b| b.len());
        len(&self.a)
            + self
                .members
                .iter()
                .map(|m| len(&m.b) + c(&m.c) + 8 * m.ahead.capacity())
                .sum::<usize>()
    }
}

/// What one member of the team needs for itself: a stripe of `b`, and a block of results.
#[derive(Default)]
struct Member {
    b: Option<Buffer<u32>>,
    c: Option<Buffer<f32>>,
    /// Addresses of the lines that the next stripe is packed from.
    ahead: Vec<usize>,
}

/// At least `len` numbers, whatever they are.
fn grow<T: Plain>(buffer: &mut Option<Buffer<T>>, len: usize) -> &mut [T] {
    if buffer.as_ref().is_none_or(|b| b.len() < len) {
        // The old one goes first: both together could be much.
        *buffer = None;
    }
    &mut buffer.get_or_insert_with(|| Buffer::zeroed(len))[..len]
}

/// `out[m, n] = alpha a b`, or with `acc` `out += alpha a b`; `a` is [m, k], `b` [k, n].
///
/// A bf16 `out` is computed in f32 and rounded once. The same bits for any number of threads, and
/// for a row whatever the others.
///
/// # Panics
/// When a shape does not fit.
#[allow(clippy::too_many_arguments)]
pub fn gemm(
    isa: Isa,
    team: &Team,
    scratch: &mut Scratch,
    precision: Precision,
    out: FloatsMut<'_>,
    acc: bool,
    alpha: f32,
    a: Factor<'_>,
    b: Factor<'_>,
) {
    let ((m, k), (b_rows, n)) = (a.shape(), b.shape());
    assert_eq!(k, b_rows, "columns of the first factor, rows of the second");
    assert_eq!(out.len(), m * n, "numbers of the product [{m}, {n}]");
    a.check();
    b.check();
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !acc {
            match out {
                FloatsMut::F32(out) => out.fill(0.0),
                FloatsMut::Bf16(out) => out.fill(half::bf16::ZERO),
            }
        }
        return;
    }
    let unit = Unit::of(isa, precision);
    let (a, b) = (View::of_rows(&a), View::of_columns(&b));
    let size = Size::of(isa);
    let swapped = size.cost(unit, &b, &a) + STAGED_COST * m * n < size.cost(unit, &a, &b);
    let staged = swapped || matches!(out, FloatsMut::Bf16(_));
    let (a, b) = if swapped { (b, a) } else { (a, b) };
    let out = Out::new(out, swapped, n);
    let chunk = size.chunk(unit, k);
    let job = Job { isa, unit, size, a, b, out, staged, acc, alpha, k, chunk };
    let tiles = job.a.lanes.div_ceil(size.rows);
    let per_slab = size.tiles_of_slab(unit, &job.a);
    let per_slab = tiles.div_ceil(tiles.div_ceil(per_slab));
    for from in (0..job.a.lanes).step_by(per_slab * size.rows) {
        job.slab(team, scratch, from..(from + per_slab * size.rows).min(job.a.lanes));
    }
}

/// Sixteenths of a cycle that an element costs which is transposed on its way out.
const STAGED_COST: usize = 8;
/// Tiles that a slab has at most: a chunk of them stays in the second-level cache.
const SLAB_TILES: usize = 48;
/// Bytes of packed tiles of a slab, at most (but for eight tiles).
const SLAB_BYTES: usize = 16 << 20;
/// Inputs of a chunk are a multiple of this: whole blocks of quantised weights.
const CHUNK_GRAIN: usize = 32;

/// The sizes of a level's tiles.
#[derive(Clone, Copy)]
struct Size {
    /// Rows of a tile.
    rows: usize,
    /// A tile's rows are computed in multiples of this.
    grain: usize,
    /// Columns of a stripe.
    cols: usize,
    /// Columns of a stripe that is the last and narrow.
    narrow: usize,
    /// Units (see [`Unit`]) of a chunk at most: a stripe of them stays in the first-level cache.
    units: usize,
}

impl Size {
    fn of(isa: Isa) -> Size {
        match isa.level() {
            Level::Avx512 => Size { rows: 12, grain: 4, cols: 32, narrow: 16, units: 288 },
            Level::Avx2 => Size { rows: 6, grain: 1, cols: 16, narrow: 8, units: 288 },
            Level::Portable => Size { rows: 4, grain: 1, cols: 16, narrow: 8, units: 288 },
        }
    }

    /// Inputs of a chunk: `k` in equal parts.
    fn chunk(&self, unit: Unit, k: usize) -> usize {
        let parts = k.div_ceil(self.units * unit.inputs());
        k.div_ceil(parts).next_multiple_of(CHUNK_GRAIN)
    }

    /// Tiles of `a` that a slab has at most.
    fn tiles_of_slab(&self, unit: Unit, a: &View<'_>) -> usize {
        if a.rows_in_place(unit).is_some() {
            return SLAB_TILES;
        }
        let tile_bytes = 4 * self.rows * a.k.div_ceil(unit.inputs());
        (SLAB_BYTES / tile_bytes).clamp(8, SLAB_TILES)
    }

    /// What a product costs, in sixteenths of a cycle of AVX-512: tiles with what they waste, and
    /// packing.
    fn cost(&self, unit: Unit, a: &View<'_>, b: &View<'_>) -> usize {
        let (m, n, k) = (a.lanes, b.lanes, a.k);
        let tiles = m.next_multiple_of(self.grain) * n.next_multiple_of(self.narrow) * k;
        let packing = |v: &View<'_>| v.lanes * k * if v.k_inner() { 8 } else { 4 };
        let slabs = m.div_ceil(self.rows * self.tiles_of_slab(unit, a));
        let pack_a = if a.rows_in_place(unit).is_some() { 0 } else { packing(a) };
        let pack_b = if self.stripes_in_place(unit, m, b) { 0 } else { slabs * packing(b) };
        tiles / (2 * unit.inputs()) + pack_a + pack_b
    }

    /// Whether whole stripes of `b` are read where they lie: when few tiles of rows meet them.
    fn stripes_in_place(&self, unit: Unit, m: usize, b: &View<'_>) -> bool {
        m <= 2 * self.rows && b.columns_in_place(unit).is_some()
    }
}
