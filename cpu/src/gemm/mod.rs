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
use crate::team::{SharedMut, Team, part};
use pack::{Unit, View, pack};
use stage::Out;
use std::ops::Range;

/// The numbers of a factor.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Numbers of training.
    Floats(Floats<'a>),
    /// F32, F16 or BF16 bytes of any alignment.
    Dense(DenseMatrix<'a>),
    /// A quantised weight, decoded tile by tile.
    Packed(&'a PackedMatrix),
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
        len(&self.a) + self.members.iter().map(|m| len(&m.b) + c(&m.c)).sum::<usize>()
    }
}

/// What one member of the team needs for itself: a stripe of `b`, and a block of results.
#[derive(Default)]
struct Member {
    b: Option<Buffer<u32>>,
    c: Option<Buffer<f32>>,
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
    let size = Size::of(isa, unit);
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

/// Sixteenths of a cycle that an element costs which passes through a transposed block.
const STAGED_COST: usize = 16;
/// Tiles that a slab has at most: a chunk of them stays in the second-level cache.
const SLAB_TILES: usize = 48;
/// Bytes of packed tiles of a slab, at most (but for eight tiles).
const SLAB_BYTES: usize = 16 << 20;
/// Stripes of columns whose results are completed together.
const BLOCK_STRIPES: usize = 16;
/// Below so many products of numbers waking the team costs more than it saves.
const ALONE: usize = 1 << 16;
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
    fn of(isa: Isa, _unit: Unit) -> Size {
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

/// A product under way. `a` gives the tiles' rows, `b` the stripes' columns.
struct Job<'a> {
    isa: Isa,
    unit: Unit,
    size: Size,
    a: View<'a>,
    b: View<'a>,
    out: Out<'a>,
    /// Whether results pass through a member's block.
    staged: bool,
    acc: bool,
    alpha: f32,
    k: usize,
    chunk: usize,
}

/// A member's share of a slab.
struct Share<'a> {
    /// Rows of the slab.
    rows: Range<usize>,
    /// Packed tiles, [chunk][tile][unit][row], from tile `first_packed` on.
    packed: &'a [u32],
    first_packed: usize,
    n_packed: usize,
    tiles: Range<usize>,
    stripes: Range<usize>,
}

impl Job<'_> {
    fn n_chunks(&self) -> usize {
        self.k.div_ceil(self.chunk)
    }

    /// Inputs of chunk `c`.
    fn inputs(&self, c: usize) -> Range<usize> {
        c * self.chunk..((c + 1) * self.chunk).min(self.k)
    }

    /// Units of chunk `c`.
    fn units(&self, c: usize) -> usize {
        self.inputs(c).len().div_ceil(self.unit.inputs())
    }

    /// Where tile `i` of `n_packed` lies in the packed tiles' chunk `c`.
    fn packed_at(&self, c: usize, i: usize, n_packed: usize) -> Range<usize> {
        let before = c * self.chunk / self.unit.inputs() * n_packed;
        let at = (before + i * self.units(c)) * self.size.rows;
        at..at + self.units(c) * self.size.rows
    }

    /// Rows of tile `t` of a slab.
    fn tile_rows(&self, slab: &Range<usize>, t: usize) -> Range<usize> {
        let from = slab.start + t * self.size.rows;
        from..(from + self.size.rows).min(slab.end)
    }

    fn slab(&self, team: &Team, scratch: &mut Scratch, rows: Range<usize>) {
        let Size { rows: tile_rows, grain, cols, .. } = self.size;
        let tiles = rows.len().div_ceil(tile_rows);
        // A tile whose rows are not all there cannot be read where it lies.
        let first_packed = match self.a.rows_in_place(self.unit) {
            Some(_) if rows.len().is_multiple_of(grain) => tiles,
            Some(_) => tiles - 1,
            None => 0,
        };
        let n_packed = tiles - first_packed;
        let len = self.k.div_ceil(self.unit.inputs()) * n_packed * tile_rows;
        let packed = grow(&mut scratch.a, len);
        let alone = team.len() == 1 || rows.len() * self.b.lanes * self.k < ALONE;
        let shared = SharedMut::new(packed);
        let fill = |items: Range<usize>| {
            for item in items {
                let (c, i) = (item / n_packed, item % n_packed);
                // SAFETY: each item is one member's, and items lie apart.
                let to = unsafe { shared.slice(self.packed_at(c, i, n_packed)) };
                let lanes = self.tile_rows(&rows, first_packed + i);
                pack(self.isa, self.unit, to, tile_rows, &self.a, lanes, self.inputs(c));
            }
        };
        let items = n_packed * self.n_chunks();
        if alone || n_packed < 4 {
            fill(0..items);
        } else {
            team.split(items, 1, &|_, items| fill(items));
        }

        let members = if alone { 1 } else { team.len() };
        scratch.members.resize_with(team.len(), Member::default);
        let scratches = SharedMut::new(&mut scratch.members);
        let stripes = self.b.lanes.div_ceil(cols);
        let by_stripes = stripes.div_ceil(members) * tiles <= tiles.div_ceil(members) * stripes;
        let packed: &[u32] = packed;
        let work = |member: usize| {
            let (tiles, stripes) = if by_stripes {
                (0..tiles, part(stripes, 1, member, members))
            } else {
                (part(tiles, 1, member, members), 0..stripes)
            };
            let rows = rows.clone();
            let share = Share { rows, packed, first_packed, n_packed, tiles, stripes };
            // SAFETY: one scratch a member.
            let scratch = &mut unsafe { scratches.slice(member..member + 1) }[0];
            if !share.tiles.is_empty() {
                // SAFETY: members have stripes or tiles of their own.
                unsafe { self.compute(&share, scratch) };
            }
        };
        if members == 1 {
            work(0);
        } else {
            team.run(&work);
        }
    }

    /// Computes a share.
    ///
    /// # Safety
    /// No other thread uses these rows and columns of `out` meanwhile.
    unsafe fn compute(&self, share: &Share<'_>, member: &mut Member) {
        let Size { rows: tile_rows, cols, narrow, .. } = self.size;
        let n = self.b.lanes;
        let b_in_place = self.size.stripes_in_place(self.unit, share.rows.len(), &self.b);
        let b_in_place = self.b.columns_in_place(self.unit).filter(|_| b_in_place);
        let own = self.tile_rows(&share.rows, share.tiles.start).start
            ..self.tile_rows(&share.rows, share.tiles.end - 1).end;
        for first in share.stripes.clone().step_by(BLOCK_STRIPES) {
            let block = first..(first + BLOCK_STRIPES).min(share.stripes.end);
            let block_cols = block.start * cols..(block.end * cols).min(n);
            let stage_row = block.len() * cols;
            if self.staged {
                let stage = grow(&mut member.c, share.tiles.len() * tile_rows * stage_row);
                if self.acc {
                    // SAFETY: rows and columns of ours.
                    unsafe { self.out.read(self.isa, stage, stage_row, &own, &block_cols) };
                }
            }
            for c in 0..self.n_chunks() {
                for stripe in block.clone() {
                    let stripe_cols = stripe * cols..((stripe + 1) * cols).min(n);
                    let width = if stripe_cols.len() <= narrow { narrow } else { cols };
                    let (b, b_step) = match b_in_place {
                        Some(place) if stripe_cols.len() == width => {
                            (place.at(stripe_cols.start, c * self.chunk), place.unit_bytes)
                        }
                        _ => {
                            let to = grow(&mut member.b, self.chunk * cols);
                            let lanes = stripe_cols.clone();
                            let inputs = self.inputs(c);
                            pack(self.isa, self.unit, to, width, &self.b, lanes, inputs);
                            (to.as_ptr().cast::<u8>(), 4 * width)
                        }
                    };
                    let to = member.c.as_deref_mut().filter(|_| self.staged).map(|stage| {
                        (stage[(stripe - block.start) * cols..].as_mut_ptr(), stage_row)
                    });
                    let stripe = Stripe { c, b, b_step, cols: stripe_cols, width };
                    // SAFETY: the stripe was packed above or lies whole in `b`.
                    unsafe { self.tiles(share, &stripe, to) };
                }
            }
            if self.staged {
                let stage = grow(&mut member.c, share.tiles.len() * tile_rows * stage_row);
                // SAFETY: rows and columns of ours.
                unsafe { self.out.write(self.isa, stage, stage_row, &own, &block_cols) };
            }
        }
    }

    /// All tiles of a share with one stripe; `stage` is where its first result goes and the
    /// distance of rows, if not to `out`.
    ///
    /// # Safety
    /// The stripe holds the chunk's units; no other thread uses these rows and columns of `out`;
    /// `stage` has whole tiles.
    unsafe fn tiles(&self, share: &Share<'_>, s: &Stripe, stage: Option<(*mut f32, usize)>) {
        let Size { rows: tile_rows, grain, .. } = self.size;
        let in_place = self.a.rows_in_place(self.unit);
        let steps = self.units(s.c);
        let add = self.acc || s.c > 0;
        for t in share.tiles.clone() {
            let rows = self.tile_rows(&share.rows, t);
            let (a, a_row, a_step) = match in_place {
                Some(place) if t < share.first_packed => {
                    (place.at(rows.start, s.c * self.chunk), place.lane_bytes, place.unit_bytes)
                }
                _ => {
                    let at = self.packed_at(s.c, t - share.first_packed, share.n_packed);
                    (share.packed[at].as_ptr().cast::<u8>(), 4, 4 * tile_rows)
                }
            };
            let computed = rows.len().next_multiple_of(grain);
            let whole = computed == rows.len() && s.width == s.cols.len();
            let alpha = self.alpha;
            let mut tile = Tile {
                a,
                a_row,
                a_step,
                b: s.b,
                b_step: s.b_step,
                steps,
                c: std::ptr::null_mut(),
                c_row: s.width,
                alpha,
                add,
            };
            if let Some((first, row)) = stage {
                // SAFETY: the stage has whole tiles, by this function's contract.
                tile.c = unsafe { first.add((t - share.tiles.start) * tile_rows * row) };
                tile.c_row = row;
                // SAFETY: as below.
                unsafe { self.tile(computed, s.width, &tile) };
            } else if whole {
                tile.c = self.out.f32_at(rows.start, s.cols.start);
                tile.c_row = self.b.lanes;
                // SAFETY: the rows and columns lie inside `out` and are ours; `a` and `b` hold
                // `steps` units of `computed` rows and `width` columns.
                unsafe { self.tile(computed, s.width, &tile) };
            } else {
                let mut edge = Edge([0.0; MOST_TILE]);
                let row = |r: usize| self.out.f32_at(rows.start + r, s.cols.start);
                tile.c = edge.0.as_mut_ptr();
                // SAFETY: copies between the edge, which holds a whole tile, and elements of
                // `out` that are ours; the tile as above.
                unsafe {
                    for r in 0..rows.len() {
                        let to = tile.c.add(r * s.width);
                        std::ptr::copy_nonoverlapping(row(r), to, s.cols.len());
                    }
                    self.tile(computed, s.width, &tile);
                    for r in 0..rows.len() {
                        let from = tile.c.add(r * s.width);
                        std::ptr::copy_nonoverlapping(from, row(r), s.cols.len());
                    }
                }
            }
        }
    }

    /// One tile of `rows` by `width`.
    ///
    /// # Safety
    /// As the tile's fields say.
    #[inline]
    unsafe fn tile(&self, rows: usize, width: usize, tile: &Tile) {
        match self.isa.level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Isa of this level exists only where its features were detected, pairs
            // only with has_bf16; the rest is this function's contract.
            Level::Avx512 => unsafe {
                avx512::tile(self.unit == Unit::Pairs, rows, width == self.size.cols, tile);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: likewise.
            Level::Avx2 => unsafe { avx2::tile(rows, width == self.size.cols, tile) },
            // SAFETY: this function's contract.
            _ => unsafe { portable::tile(rows, width, tile) },
        }
    }
}

/// A stripe of `b`, for chunk `c`.
struct Stripe {
    c: usize,
    b: *const u8,
    b_step: usize,
    cols: Range<usize>,
    /// Columns that are computed.
    width: usize,
}

/// The largest tile.
const MOST_TILE: usize = 12 * 32;

/// A tile whose rows or columns are not all in `out`.
#[repr(align(64))]
struct Edge([f32; MOST_TILE]);

/// Operands and result of one tile: `c = alpha a b`, or with `add` `c += alpha a b`.
struct Tile {
    /// Unit 0 of row 0.
    a: *const u8,
    /// Bytes to the next row's unit.
    a_row: usize,
    /// Bytes to the next unit.
    a_step: usize,
    /// Unit 0 of all columns, neighbours.
    b: *const u8,
    /// Bytes to the next unit.
    b_step: usize,
    /// Units, at least 1.
    steps: usize,
    c: *mut f32,
    /// Elements to the next row of `c`.
    c_row: usize,
    alpha: f32,
    add: bool,
}
