//! The loops of a product: slabs, the team's shares of them, stripes and tiles.

use super::pack::{Unit, View, pack};
use super::stage::Out;
use super::{Member, Scratch, Size, grow, portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::isa::{Isa, Level};
use crate::team::{SharedMut, Team, part};
use std::ops::Range;

/// Stripes of columns whose results are completed together.
const BLOCK_STRIPES: usize = 16;
/// Tiles that are packed side by side, and inputs of one after which comes the other: whole cache
/// lines of a row are used up while they are near.
const GROUP: usize = 4;
const RUN: usize = 64;
/// Below so many products of numbers waking the team costs more than it saves.
const ALONE: usize = 1 << 16;
/// Tiles from which on what the next stripe needs is asked for during this one's.
const TILES_TO_FETCH: usize = 3;

/// A product under way. `a` gives the tiles' rows, `b` the stripes' columns.
pub struct Job<'a> {
    pub isa: Isa,
    pub unit: Unit,
    pub size: Size,
    pub a: View<'a>,
    pub b: View<'a>,
    pub out: Out<'a>,
    /// Whether results pass through a member's block.
    pub staged: bool,
    pub acc: bool,
    pub alpha: f32,
    pub k: usize,
    pub chunk: usize,
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

    /// Computes some rows of the tiles.
    pub fn slab(&self, team: &Team, scratch: &mut Scratch, rows: Range<usize>) {
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
        let groups = n_packed.div_ceil(GROUP);
        let fill = |items: Range<usize>| {
            for item in items {
                let (c, group) = (item / groups, item % groups);
                let group = group * GROUP..((group + 1) * GROUP).min(n_packed);
                let inputs = self.inputs(c);
                for from in inputs.clone().step_by(RUN) {
                    let run = from..(from + RUN).min(inputs.end);
                    let before = (from - inputs.start) / self.unit.inputs() * tile_rows;
                    let next = run.end..(run.end + RUN).min(inputs.end);
                    if !next.is_empty() {
                        let first = self.tile_rows(&rows, first_packed + group.start).start;
                        let last = self.tile_rows(&rows, first_packed + group.end - 1).end;
                        self.a.fetch(first..last, next);
                    }
                    for i in group.clone() {
                        let to = self.packed_at(c, i, n_packed);
                        let end = before + run.len().div_ceil(self.unit.inputs()) * tile_rows;
                        // SAFETY: each item is one member's, and items lie apart.
                        let to = unsafe { shared.slice(to.start + before..to.start + end) };
                        let lanes = self.tile_rows(&rows, first_packed + i);
                        pack(self.isa, self.unit, to, tile_rows, &self.a, lanes, run.clone());
                    }
                }
            }
        };
        let items = groups * self.n_chunks();
        if alone || items < 2 {
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
        let own = self.own(share);
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
                    let next = match b_in_place {
                        Some(_) => None,
                        None if stripe + 1 < block.end => Some((c, stripe + 1)),
                        None if c + 1 < self.n_chunks() => Some((c + 1, block.start)),
                        None => Some((0, block.end)),
                    };
                    let next = next.filter(|next| next.1 < share.stripes.end);
                    member.ahead.clear();
                    if share.tiles.len() >= TILES_TO_FETCH {
                        if let Some((c, stripe)) = next {
                            let from = stripe * cols;
                            let lanes = from..(from + cols).min(n);
                            self.b.lines(lanes, self.inputs(c), &mut member.ahead);
                        }
                        let i = stripe - block.start;
                        let last = block.end == share.stripes.end;
                        self.rows_ahead(share, c, last, i, block.len(), &mut member.ahead);
                    }
                    let ahead = member.ahead.len().div_ceil(share.tiles.len());
                    // Each tile asks for its part, and then, until its steps are done, for others.
                    let list = ahead * share.tiles.len() + self.units(0);
                    member.ahead.resize(list, b as usize);
                    let to = member.c.as_deref_mut().filter(|_| self.staged).map(|stage| {
                        (stage[(stripe - block.start) * cols..].as_mut_ptr(), stage_row)
                    });
                    let stripe = Stripe {
                        c,
                        b,
                        b_step,
                        cols: stripe_cols,
                        width,
                        lines: &member.ahead,
                        ahead,
                    };
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

    /// Lists the lines of part `i` of `parts` of the rows that come after those of chunk `c`: of
    /// the next chunk, or of the next slab after the `last` block.
    fn rows_ahead(
        &self,
        share: &Share<'_>,
        c: usize,
        last: bool,
        i: usize,
        parts: usize,
        lines: &mut Vec<usize>,
    ) {
        let one = self.n_chunks() == 1;
        let (c, shift) = match c + 1 {
            next if next < self.n_chunks() => (next, 0),
            _ if !last && one => return,
            _ if !last => (0, 0),
            _ => (0, share.rows.len()),
        };
        let own = self.own(share);
        let rows = part(own.len(), 1, i, parts);
        let (from, to) = (own.start + shift + rows.start, own.start + shift + rows.end);
        let (from, to) = (from.min(self.a.lanes), to.min(self.a.lanes));
        if self.a.rows_in_place(self.unit).is_some() {
            self.a.lines(from..to, self.inputs(c), lines);
        }
    }

    /// A share's rows.
    fn own(&self, share: &Share<'_>) -> Range<usize> {
        let first = self.tile_rows(&share.rows, share.tiles.start);
        first.start..self.tile_rows(&share.rows, share.tiles.end - 1).end
    }

    /// All tiles of a share with one stripe; `stage` is where its first result goes and the
    /// distance of rows, if not to `out`.
    ///
    /// # Safety
    /// The stripe holds the chunk's units; no other thread uses these rows and columns of `out`;
    /// `stage` has whole tiles.
    unsafe fn tiles(&self, share: &Share<'_>, s: &Stripe<'_>, stage: Option<(*mut f32, usize)>) {
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
                ahead: s.lines[(t - share.tiles.start) * s.ahead..].as_ptr(),
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
struct Stripe<'a> {
    c: usize,
    b: *const u8,
    b_step: usize,
    cols: Range<usize>,
    /// Columns that are computed.
    width: usize,
    /// Addresses to ask for meanwhile, `ahead` of them by each tile.
    lines: &'a [usize],
    ahead: usize,
}

/// The largest tile.
const MOST_TILE: usize = 12 * 32;

/// A tile whose rows or columns are not all in `out`.
#[repr(align(64))]
struct Edge([f32; MOST_TILE]);

/// Operands and result of one tile: `c = alpha a b`, or with `add` `c += alpha a b`.
pub struct Tile {
    /// Unit 0 of row 0.
    pub a: *const u8,
    /// Bytes to the next row's unit.
    pub a_row: usize,
    /// Bytes to the next unit.
    pub a_step: usize,
    /// Unit 0 of all columns, neighbours.
    pub b: *const u8,
    /// Bytes to the next unit.
    pub b_step: usize,
    /// Units, at least 1.
    pub steps: usize,
    pub c: *mut f32,
    /// Elements to the next row of `c`.
    pub c_row: usize,
    pub alpha: f32,
    pub add: bool,
    /// `steps` addresses to ask the second-level cache for; any will do.
    pub ahead: *const usize,
}
