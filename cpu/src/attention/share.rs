//! What one member of the team does: its items of rows and chunks, and the merging of chunks.

use super::format::Format;
use super::tile::{Merge, Stat, Tile};
use super::{AttentionArgs, CHUNK, ITEMS_PER_MEMBER, ScratchArgs, TILES};
use crate::isa::{Isa, Level};
use crate::simd::{Kernel, Vector, get, put};
use crate::team::SharedMut;
use std::ops::Range;

/// The cut of one call into items, tiles and chunks, from its shapes alone.
pub(super) struct Plan {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    width: usize,
    scale: f32,
    window: usize,
    first_pos: usize,
    /// Rows of one KV head: tokens times the heads of a group, tokens outermost.
    rows: usize,
    /// Rows of a full tile.
    tile_rows: usize,
}

impl Plan {
    /// # Panics
    /// As `attention` says.
    pub(super) fn new(isa: Isa, args: &AttentionArgs<'_>, q_len: usize) -> Self {
        let shape = args.kv.shape();
        let n_heads = args.n_heads;
        assert!(
            n_heads > 0 && n_heads.is_multiple_of(shape.n_kv_heads),
            "attention: {n_heads} heads over {} KV heads",
            shape.n_kv_heads
        );
        let row = n_heads * shape.head_dim;
        assert!(q_len.is_multiple_of(row), "attention: {q_len} elements are not rows of {row}");
        let tokens = q_len / row;
        assert!(
            args.first_pos + tokens <= args.kv.capacity(),
            "attention: {tokens} tokens from position {} in a cache of {}",
            args.first_pos,
            args.kv.capacity()
        );
        let of = ScratchArgs { shape, capacity: args.kv.capacity(), n_heads, window: args.window };
        Plan::of(isa, &of, args.scale, args.first_pos, tokens)
    }

    /// That of `tokens` rows from `first_pos` on.
    ///
    /// # Panics
    /// When the window is 0.
    pub(super) fn of(
        isa: Isa,
        args: &ScratchArgs,
        scale: f32,
        first_pos: usize,
        tokens: usize,
    ) -> Self {
        let ScratchArgs { shape, n_heads, .. } = *args;
        let window = args.window.unwrap_or(usize::MAX);
        assert!(window > 0, "attention: a window of 0 positions");
        Plan {
            n_heads,
            n_kv_heads: shape.n_kv_heads,
            head_dim: shape.head_dim,
            width: shape.width(),
            scale,
            window,
            first_pos,
            rows: tokens * (n_heads / shape.n_kv_heads),
            tile_rows: if isa.level() == Level::Avx512 { 8 } else { 4 },
        }
    }

    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    fn item_rows(&self) -> usize {
        self.tile_rows * TILES
    }

    fn items_per_head(&self) -> usize {
        self.rows.div_ceil(self.item_rows())
    }

    /// KV heads times blocks of rows.
    pub(super) fn n_items(&self) -> usize {
        self.n_kv_heads * self.items_per_head()
    }

    /// Multiply-adds of the call, windows left out of account.
    pub(super) fn multiply_adds(&self) -> usize {
        let tokens = self.rows / self.group();
        let visible = (self.first_pos + tokens).min(self.window);
        2 * self.rows * self.n_kv_heads * visible * self.head_dim
    }

    /// Visible positions of a row.
    fn visible(&self, row: usize) -> Range<usize> {
        let end = self.first_pos + row / self.group() + 1;
        end.saturating_sub(self.window)..end
    }

    /// Visible positions of a row in a chunk, counted from its start.
    fn visible_in(&self, row: usize, chunk: usize) -> Range<usize> {
        let start = chunk * CHUNK;
        let range = self.visible(row);
        let within = |pos: usize| pos.saturating_sub(start).min(CHUNK);
        within(range.start)..within(range.end)
    }

    /// Chunks that some of the rows see.
    fn chunks_of(&self, rows: &Range<usize>) -> Range<usize> {
        self.visible(rows.start).start / CHUNK..self.visible(rows.end - 1).end.div_ceil(CHUNK)
    }

    /// Chunks that any row sees.
    pub(super) fn chunks(&self) -> Range<usize> {
        self.chunks_of(&(0..self.rows))
    }

    /// KV head and rows of an item.
    fn item(&self, index: usize) -> (usize, Range<usize>) {
        let start = index % self.items_per_head() * self.item_rows();
        (index / self.items_per_head(), start..(start + self.item_rows()).min(self.rows))
    }

    /// Where a row of a KV head lies in q and out.
    fn place(&self, head: usize, row: usize) -> Range<usize> {
        let group = self.group();
        let start = (row / group * self.n_heads + head * group + row % group) * self.head_dim;
        start..start + self.head_dim
    }

    /// Elements of memory that a member works in.
    pub(super) fn memory(&self) -> usize {
        self.item_rows() * (self.head_dim + self.width + 2) + self.tile_rows * (CHUNK + self.width)
    }

    /// Elements of a chunk's result of one row: the sums, m and l.
    pub(super) fn record(&self) -> usize {
        self.width + 2
    }

    /// One for each row of each KV head and chunk.
    pub(super) fn n_records(&self) -> usize {
        self.n_kv_heads * self.rows * self.chunks().len()
    }

    /// Elements of the partial results of any call with no more rows than this one over a cache of
    /// `capacity` positions, by a team of `members`.
    pub(super) fn most_partials(&self, capacity: usize, members: usize) -> usize {
        if members < 2 {
            return 0;
        }
        // Calls of more items than these are not cut by chunks.
        let items_per_head = (ITEMS_PER_MEMBER * members - 1) / self.n_kv_heads;
        let rows = self.rows.min(items_per_head * self.item_rows());
        // A window's ends lie in chunks that it does not fill.
        let seen = self.window.saturating_add(rows / self.group());
        let chunks = capacity.div_ceil(CHUNK).min(seen / CHUNK + 2);
        // Saturating: the sum is also formed for caches that nobody can have.
        [rows, chunks, self.record()].into_iter().fold(self.n_kv_heads, usize::saturating_mul)
    }

    fn record_at(&self, head: usize, row: usize, chunk: usize) -> Range<usize> {
        let chunks = self.chunks();
        let index = (head * self.rows + row) * chunks.len() + chunk - chunks.start;
        index * self.record()..(index + 1) * self.record()
    }
}

/// One member's part of a call.
pub(super) struct Share<'a, F> {
    pub(super) plan: &'a Plan,
    pub(super) kv: F,
    pub(super) q: &'a [f32],
    pub(super) out: &'a SharedMut<'a, f32>,
    /// At least `plan.memory()` elements.
    pub(super) memory: &'a mut [f32],
    /// Where the results of single chunks go when the call is also cut by chunks.
    pub(super) partials: Option<&'a SharedMut<'a, f32>>,
    /// The member's part of the pairs of item and chunk, for a call cut by chunks.
    pub(super) range: Range<usize>,
    /// The member and the number of members, for a call cut by rows alone.
    pub(super) turn: (usize, usize),
}

impl<F: Format> Kernel for Share<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Share { plan, kv, q, out, memory, partials, range, turn } = self;
        debug_assert_eq!(plan.tile_rows, V::TILE_ROWS);
        let (packed, rest) = memory.split_at_mut(plan.item_rows() * plan.head_dim);
        let (sums, rest) = rest.split_at_mut(plan.item_rows() * plan.width);
        let (s, rest) = rest.split_at_mut(plan.tile_rows * CHUNK);
        let (o, _) = rest.split_at_mut(plan.tile_rows * plan.width);
        let mut work = Work { plan, kv, q, packed, s, o, _vector: std::marker::PhantomData::<V> };
        match partials {
            None => {
                let (member, members) = turn;
                // Dealt forth and back, since items grow along the rows.
                for index in 0..plan.n_items() {
                    let (round, seat) = (index / members, index % members);
                    let seat = if round.is_multiple_of(2) { seat } else { members - 1 - seat };
                    if seat == member {
                        work.rows(index, sums, out);
                    }
                }
            }
            Some(partials) => work.chunks(range, partials),
        }
    }
}

/// A member's buffers.
struct Work<'a, V, F> {
    plan: &'a Plan,
    kv: F,
    q: &'a [f32],
    /// `[tiles, head_dim, R]`: the queries of an item, scaled, a tile's rows side by side.
    packed: &'a mut [f32],
    /// `[tile_rows, CHUNK]`.
    s: &'a mut [f32],
    /// `[tile_rows, width]`.
    o: &'a mut [f32],
    _vector: std::marker::PhantomData<V>,
}

/// The results of the largest tile.
const MAX_ROWS: usize = 8;
const NOTHING: Stat = Stat { m: f32::NEG_INFINITY, l: 0.0 };

impl<V: Vector, F: Format> Work<'_, V, F> {
    /// An item over all of its chunks.
    #[inline(always)]
    fn rows(&mut self, index: usize, sums: &mut [f32], out: &SharedMut<'_, f32>) {
        let plan = self.plan;
        let (head, rows) = plan.item(index);
        self.pack(head, rows.clone());
        let mut totals = [None; MAX_ROWS * TILES];
        for chunk in plan.chunks_of(&rows) {
            for (tile, first) in rows.clone().step_by(plan.tile_rows).enumerate() {
                let tile_rows = first..(first + plan.tile_rows).min(rows.end);
                let stats = self.tile(head, tile, tile_rows.clone(), chunk);
                for (i, row) in tile_rows.enumerate() {
                    if plan.visible_in(row, chunk).is_empty() {
                        continue;
                    }
                    let o = &self.o[i * plan.width..][..plan.width];
                    let sums = &mut sums[(row - rows.start) * plan.width..][..plan.width];
                    take::<V>(&mut totals[row - rows.start], sums, stats[i], o);
                }
            }
        }
        for (i, row) in rows.enumerate() {
            // SAFETY: a row of a head belongs to one item, an item to one member.
            let out = unsafe { out.slice(plan.place(head, row)) };
            finish::<V>(out, totals[i].unwrap_or(NOTHING), &sums[i * plan.width..]);
        }
    }

    /// Pairs of item and chunk, chunks innermost; the results go to `partials`.
    #[inline(always)]
    fn chunks(&mut self, range: Range<usize>, partials: &SharedMut<'_, f32>) {
        let plan = self.plan;
        let chunks = plan.chunks();
        let mut packed = None;
        for pair in range {
            let (index, chunk) = (pair / chunks.len(), chunks.start + pair % chunks.len());
            let (head, rows) = plan.item(index);
            if packed != Some(index) {
                self.pack(head, rows.clone());
                packed = Some(index);
            }
            for (tile, first) in rows.clone().step_by(plan.tile_rows).enumerate() {
                let tile_rows = first..(first + plan.tile_rows).min(rows.end);
                let stats = self.tile(head, tile, tile_rows.clone(), chunk);
                for (i, row) in tile_rows.enumerate() {
                    if plan.visible_in(row, chunk).is_empty() {
                        continue;
                    }
                    // SAFETY: a row's chunk belongs to one pair, a pair to one member.
                    let record = unsafe { partials.slice(plan.record_at(head, row, chunk)) };
                    let (o, stat) = record.split_at_mut(plan.width);
                    o.copy_from_slice(&self.o[i * plan.width..][..plan.width]);
                    stat.copy_from_slice(&[stats[i].m, stats[i].l]);
                }
            }
        }
    }

    /// Rows side by side: a tile of n rows takes n rounded up to a power of two, with zeros.
    #[inline(always)]
    fn pack(&mut self, head: usize, rows: Range<usize>) {
        let plan = self.plan;
        let room = plan.tile_rows * plan.head_dim;
        for (packed, first) in
            self.packed.chunks_exact_mut(room).zip(rows.clone().step_by(plan.tile_rows))
        {
            let n = plan.tile_rows.min(rows.end - first);
            let r = n.next_power_of_two();
            for i in 0..r {
                let steps = packed[i..].iter_mut().step_by(r);
                if i < n {
                    let q = &self.q[plan.place(head, first + i)];
                    for (to, q) in steps.zip(q) {
                        *to = q * plan.scale;
                    }
                } else {
                    for to in steps.take(plan.head_dim) {
                        *to = 0.0;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn tile(
        &mut self,
        head: usize,
        tile: usize,
        rows: Range<usize>,
        chunk: usize,
    ) -> [Stat; MAX_ROWS] {
        let plan = self.plan;
        let mut stats = [NOTHING; MAX_ROWS];
        let mut visible = [const { 0..0 }; MAX_ROWS];
        let n = rows.len();
        for (visible, row) in visible.iter_mut().zip(rows) {
            *visible = plan.visible_in(row, chunk);
        }
        let kv = self.kv.head(head, plan.n_kv_heads);
        let mut job = Tile {
            q: &self.packed[tile * plan.tile_rows * plan.head_dim..],
            visible: &visible[..n],
            s: self.s,
            o: self.o,
            stats: &mut stats,
            head_dim: plan.head_dim,
            width: plan.width,
            fetch: tile == 0,
        };
        let start = chunk * CHUNK;
        // SAFETY: kv is one head of the cache that the plan's sizes come from; every visible
        // position is below first_pos + tokens, which `Plan::new` holds to the capacity, and
        // `KvLayer::new` makes that a multiple of 64.
        unsafe { job.run::<V, F>(kv, start) };
        stats
    }
}

/// The first chunk as it is, later ones merged.
#[inline(always)]
fn take<V: Vector>(total: &mut Option<Stat>, sums: &mut [f32], part: Stat, o: &[f32]) {
    match total {
        None => {
            sums.copy_from_slice(o);
            *total = Some(part);
        }
        Some(total) => *total = V::enter(Merge { total: *total, sums, part, o }),
    }
}

/// `out = sums / l`.
#[inline(always)]
fn finish<V: Vector>(out: &mut [f32], total: Stat, sums: &[f32]) {
    let factor = V::splat(1.0 / total.l);
    for (out, sum) in out.chunks_mut(V::LANES).zip(sums.chunks(V::LANES)) {
        put(out, get::<V>(sum).mul(factor));
    }
}

/// Merges the chunks of every row, for a call that was cut by chunks.
pub(super) struct Finish<'a> {
    pub(super) plan: &'a Plan,
    pub(super) out: &'a SharedMut<'a, f32>,
    pub(super) partials: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Finish { plan, out, partials } = self;
        for head in 0..plan.n_kv_heads {
            for row in 0..plan.rows {
                let chunks = plan.chunks_of(&(row..row + 1));
                // The first chunk's record becomes the running result.
                let first = plan.record_at(head, row, chunks.start);
                let rest = plan.record_at(head, row, chunks.end - 1).end;
                let (total, rest) = partials[first.start..rest].split_at_mut(plan.record());
                let (sums, stat) = total.split_at_mut(plan.width);
                let mut total = Some(Stat { m: stat[0], l: stat[1] });
                for record in rest.chunks_exact(plan.record()) {
                    let (o, stat) = record.split_at(plan.width);
                    take::<V>(&mut total, sums, Stat { m: stat[0], l: stat[1] }, o);
                }
                // SAFETY: the members are done; each row is written once.
                let out = unsafe { out.slice(plan.place(head, row)) };
                finish::<V>(out, total.unwrap_or(NOTHING), sums);
            }
        }
    }
}
