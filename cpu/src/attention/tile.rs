//! One tile: a few query rows of one KV head against one chunk of positions.
//!
//! For each row, whatever rows share its tile:
//!
//! ```text
//! s[j] = sum over d of q[d] k[j, d]          d ascending
//! m    = max s[j]                            over the row's visible positions j of the chunk
//! p[j] = exp(s[j] - m)
//! l    = sum p[j]                            lane by lane, then across lanes
//! o[d] = sum p[j] v[j, d]                    j ascending over the visible positions alone
//! ```
//!
//! A score beyond the visible positions is replaced, never multiplied away, and no value there is
//! read: what a shortened cache has left behind cannot reach a result, not even as a NaN.

use super::CHUNK;
use super::format::Format;
use super::kv::BLOCK;
use crate::simd::{Kernel, Vector, exp, prefetch};
use std::ops::Range;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Maximum and sum of a row's chunk; `o` lies beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    pub(super) m: f32,
    pub(super) l: f32,
}

/// The query rows and the places for results of one tile.
pub(super) struct Tile<'a> {
    /// `[head_dim, r]`: the tile's rows, scaled, side by side; r is the number of rows rounded up
    /// to a power of two.
    pub(super) q: &'a [f32],
    /// Visible positions of each row inside the chunk, counted from its start; maybe empty.
    pub(super) visible: &'a [Range<usize>],
    /// `[r, CHUNK]`: scores, then probabilities.
    pub(super) s: &'a mut [f32],
    /// `[r, width]`: sums of values.
    pub(super) o: &'a mut [f32],
    /// One per row; unset for a row without visible positions.
    pub(super) stats: &'a mut [Stat],
    pub(super) head_dim: usize,
    pub(super) width: usize,
    /// Whether keys and values are to be asked for ahead of their use: they are not in a cache yet.
    pub(super) fetch: bool,
}

impl Tile<'_> {
    /// Computes the tile against the chunk that starts at position `start`.
    ///
    /// # Panics
    /// When there are more than `V::TILE_ROWS` rows, or a buffer is shorter than they demand.
    ///
    /// # Safety
    /// `kv` is one head with `head_dim` and `width` of this tile, whose capacity is a multiple of
    /// 64 and covers `start + visible.end` of every row; `start` is a multiple of CHUNK.
    #[inline(always)]
    pub(super) unsafe fn run<V: Vector, F: Format>(&mut self, kv: F, start: usize) {
        let rows = self.visible.len();
        let r = rows.next_power_of_two();
        assert!(r <= V::TILE_ROWS && rows <= self.stats.len());
        assert!(self.q.len() >= self.head_dim * r);
        assert!(self.s.len() >= r * CHUNK && self.o.len() >= r * self.width);
        let seen = || self.visible.iter().filter(|range| !range.is_empty());
        let (Some(lo), Some(hi)) =
            (seen().map(|range| range.start).min(), seen().map(|range| range.end).max())
        else {
            return;
        };
        assert!(hi <= CHUNK && self.width.is_multiple_of(16) && self.width >= self.head_dim);

        self.scores::<V, F>(kv, r, start, lo..hi);
        for row in 0..rows {
            let range = self.visible[row].clone();
            if !range.is_empty() {
                let s = &mut self.s[row * CHUNK..][..CHUNK];
                self.stats[row] = V::enter(Soften { s, visible: range });
            }
        }

        self.o[..r * self.width].fill(0.0);
        let first = self.visible.iter().map(|range| range.start).max().unwrap_or(0);
        let last = self.visible.iter().map(|range| range.end).min().unwrap_or(0);
        // The positions that all rows see go through the wide tile, those before and behind
        // through narrow ones: each row meets its own positions in order, and no others.
        let common = first..last.max(first);
        for row in 0..rows {
            let range = self.visible[row].clone();
            let end = if common.is_empty() { range.end } else { common.start };
            self.values::<V, F>(kv, row, 1, start, range.start..end);
        }
        if common.is_empty() {
            return;
        }
        self.values::<V, F>(kv, 0, r, start, common.clone());
        for row in 0..rows {
            self.values::<V, F>(kv, row, 1, start, common.end..self.visible[row].end);
        }
    }

    /// Scores of r rows for the positions of `range`, rounded out to whole register tiles. About
    /// `2 * TILE_ROWS` accumulators: enough to hide the latency of a multiply-add, few enough to
    /// leave registers for operands.
    #[inline(always)]
    fn scores<V: Vector, F: Format>(&mut self, kv: F, r: usize, start: usize, range: Range<usize>) {
        let (head_dim, fetch) = (self.head_dim, self.fetch);
        let (q, s) = (self.q, &mut *self.s);
        match r {
            1 => V::enter(Scores::<F, 1, 4> { kv, q, s, head_dim, start, range, fetch }),
            2 => V::enter(Scores::<F, 2, 4> { kv, q, s, head_dim, start, range, fetch }),
            4 if V::TILE_ROWS == 8 => {
                V::enter(Scores::<F, 4, 4> { kv, q, s, head_dim, start, range, fetch })
            }
            4 => V::enter(Scores::<F, 4, 2> { kv, q, s, head_dim, start, range, fetch }),
            _ if V::TILE_ROWS == 8 => {
                V::enter(Scores::<F, 8, 2> { kv, q, s, head_dim, start, range, fetch })
            }
            _ => {}
        }
    }

    /// Adds `p[j] v[j]` for the positions j of `range` to the sums of r rows from `row` on.
    #[inline(always)]
    fn values<V: Vector, F: Format>(
        &mut self,
        kv: F,
        row: usize,
        r: usize,
        start: usize,
        range: Range<usize>,
    ) {
        if range.is_empty() {
            return;
        }
        let width = self.width;
        let (p, o) = (&self.s[row * CHUNK..], &mut self.o[row * width..]);
        match r {
            1 => V::enter(Values::<F, 1, 4> { kv, p, o, width, start, range }),
            2 => V::enter(Values::<F, 2, 4> { kv, p, o, width, start, range }),
            4 if V::TILE_ROWS == 8 => V::enter(Values::<F, 4, 4> { kv, p, o, width, start, range }),
            4 => V::enter(Values::<F, 4, 2> { kv, p, o, width, start, range }),
            _ if V::TILE_ROWS == 8 => V::enter(Values::<F, 8, 2> { kv, p, o, width, start, range }),
            _ => {}
        }
    }
}

/// Scores of R rows, NV vectors of positions at a time. Built by [`Tile::run`] alone, whose
/// assertions and whose caller's promise the blocks below rest on.
struct Scores<'a, F, const R: usize, const NV: usize> {
    kv: F,
    /// `[head_dim, R]`.
    q: &'a [f32],
    /// `[R, CHUNK]`.
    s: &'a mut [f32],
    head_dim: usize,
    start: usize,
    range: Range<usize>,
    fetch: bool,
}

impl<F: Format, const R: usize, const NV: usize> Kernel for Scores<'_, F, R, NV> {
    type Out = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Scores { kv, q, s, head_dim, start, range, fetch } = self;
        // 1, 2 or 4 blocks: `at + step` then is beyond neither CHUNK nor a capacity in steps of
        // 64 when `at` is below a visible position.
        let step = NV * V::LANES;
        assert!(step <= 4 * BLOCK && range.end <= CHUNK);
        assert!(q.len() >= head_dim * R && s.len() >= R * CHUNK);
        for at in (range.start / step * step..range.end).step_by(step) {
            let block = (start + at) / BLOCK;
            let place = |n: usize| (block + n * V::LANES / BLOCK, n * V::LANES % BLOCK);
            let mut acc = [[V::splat(0.0); NV]; R];
            // Of the next step's keys and of this step's values a share with every dimension.
            let share = step * F::BYTES;
            let ahead = (kv.k_at(block + step / BLOCK), kv.v_at(start + at));
            let (mut d, mut group) = (0, 0);
            while d < head_dim {
                let end = d.saturating_add(F::GROUP).min(head_dim);
                let mut scale = [V::splat(1.0); NV];
                for (n, scale) in scale.iter_mut().enumerate() {
                    let (block, lane) = place(n);
                    // SAFETY: the block lies within the capacity (see above).
                    *scale = unsafe { kv.k_scale(block, group, lane) };
                }
                for d in d..end {
                    if fetch {
                        for line in (0..share).step_by(LINE) {
                            prefetch(ahead.0.wrapping_add(d * share + line));
                            prefetch(ahead.1.wrapping_add(d * share + line));
                        }
                    }
                    let mut k = scale;
                    for (n, k) in k.iter_mut().enumerate() {
                        let (block, lane) = place(n);
                        // SAFETY: the block lies within the capacity, d within the head.
                        *k = unsafe { kv.k(block, d, lane, scale[n]) };
                    }
                    for (r, acc) in acc.iter_mut().enumerate() {
                        // SAFETY: q holds head_dim * R elements (asserted above).
                        let q = V::splat(unsafe { *q.get_unchecked(d * R + r) });
                        for (acc, k) in acc.iter_mut().zip(k) {
                            *acc = q.mul_add(k, *acc);
                        }
                    }
                }
                (d, group) = (end, group + 1);
            }
            for (r, acc) in acc.iter().enumerate() {
                for (n, acc) in acc.iter().enumerate() {
                    // SAFETY: s holds R rows of CHUNK (asserted above), at + step <= CHUNK.
                    unsafe { acc.store(s.as_mut_ptr().add(r * CHUNK + at + n * V::LANES)) };
                }
            }
        }
    }
}

/// Adds `p[j] v[j]` to the sums of R rows, up to NV vectors of dimensions at a time. Built by
/// [`Tile::run`] alone, whose assertions and whose caller's promise the blocks below rest on.
struct Values<'a, F, const R: usize, const NV: usize> {
    kv: F,
    /// `[R, CHUNK]`.
    p: &'a [f32],
    /// `[R, width]`.
    o: &'a mut [f32],
    width: usize,
    start: usize,
    range: Range<usize>,
}

impl<F: Format, const R: usize, const NV: usize> Kernel for Values<'_, F, R, NV> {
    type Out = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        assert!(self.p.len() >= R * CHUNK && self.range.end <= CHUNK);
        assert!(self.o.len() >= R * self.width && self.width.is_multiple_of(16));
        let mut d = 0;
        while d < self.width {
            let left = (self.width - d) / V::LANES;
            let n = if left >= NV {
                self.pass::<V, NV>(d)
            } else if NV > 2 && left >= 2 {
                self.pass::<V, 2>(d)
            } else {
                self.pass::<V, 1>(d)
            };
            d += n * V::LANES;
        }
    }
}

impl<F: Format, const R: usize, const NV: usize> Values<'_, F, R, NV> {
    /// The N vectors of dimensions from `d` on, all within the width; returns N.
    #[inline(always)]
    fn pass<V: Vector, const N: usize>(&mut self, d: usize) -> usize {
        let (width, p) = (self.width, self.p);
        let o = self.o[d..].as_mut_ptr();
        let mut acc = [[V::splat(0.0); N]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (n, acc) in acc.iter_mut().enumerate() {
                // SAFETY: o holds R rows of the width (asserted in `run`).
                *acc = unsafe { V::load(o.add(r * width + n * V::LANES)) };
            }
        }
        for j in self.range.clone() {
            let mut v = [V::splat(0.0); N];
            for (n, v) in v.iter_mut().enumerate() {
                // SAFETY: a visible position, so within the capacity; the vector is within the
                // width.
                *v = unsafe { self.kv.v(self.start + j, d + n * V::LANES) };
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: p holds R rows of CHUNK, j is below CHUNK (asserted in `run`).
                let p = V::splat(unsafe { *p.get_unchecked(r * CHUNK + j) });
                for (acc, v) in acc.iter_mut().zip(v) {
                    *acc = p.mul_add(v, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (n, acc) in acc.iter().enumerate() {
                // SAFETY: o holds R rows of the width (asserted in `run`).
                unsafe { acc.store(o.add(r * width + n * V::LANES)) };
            }
        }
        N
    }
}

/// Turns the scores of a row's visible positions into `exp(s - max)`.
struct Soften<'a> {
    /// `[CHUNK]`.
    s: &'a mut [f32],
    /// Not empty.
    visible: Range<usize>,
}

impl Kernel for Soften<'_> {
    type Out = Stat;

    #[inline(always)]
    fn run<V: Vector>(self) -> Stat {
        let Soften { s, visible } = self;
        let start = visible.start / V::LANES * V::LANES;
        let end = visible.end.next_multiple_of(V::LANES);
        let outside = V::splat(f32::NEG_INFINITY);
        let mut max = outside;
        for (i, s) in s[start..end].chunks_exact_mut(V::LANES).enumerate() {
            let at = start + i * V::LANES;
            // SAFETY: the slice holds LANES elements.
            let mut x = unsafe { V::load(s.as_ptr()) };
            if at < visible.start || at + V::LANES > visible.end {
                let lanes = visible.start.max(at) - at..(visible.end - at).min(V::LANES);
                x = x.keep(lanes, outside);
                // SAFETY: the slice holds LANES elements.
                unsafe { x.store(s.as_mut_ptr()) };
            }
            max = x.max(max);
        }
        let m = max.max_lane();
        let shift = V::splat(m);
        let mut sum = V::splat(0.0);
        for s in s[start..end].chunks_exact_mut(V::LANES) {
            // SAFETY: the slice holds LANES elements.
            let p = exp(unsafe { V::load(s.as_ptr()) }.sub(shift));
            sum = sum.add(p);
            // SAFETY: the slice holds LANES elements.
            unsafe { p.store(s.as_mut_ptr()) };
        }
        Stat { m, l: sum.sum() }
    }
}

/// Takes a row's next chunk into the running result of the chunks before it; returns that.
pub(super) struct Merge<'a> {
    pub(super) total: Stat,
    /// `[width]`: the running sums.
    pub(super) sums: &'a mut [f32],
    pub(super) part: Stat,
    /// `[width]`: the chunk's sums.
    pub(super) o: &'a [f32],
}

impl Kernel for Merge<'_> {
    type Out = Stat;

    #[inline(always)]
    fn run<V: Vector>(self) -> Stat {
        let Merge { total, sums, part, o } = self;
        let m = if part.m > total.m { part.m } else { total.m };
        let old = exp(V::splat(total.m - m));
        let new = exp(V::splat(part.m - m));
        for (sum, o) in sums.chunks_exact_mut(V::LANES).zip(o.chunks_exact(V::LANES)) {
            // SAFETY: both slices hold LANES elements.
            unsafe {
                let x = V::load(sum.as_ptr()).mul(old);
                V::load(o.as_ptr()).mul_add(new, x).store(sum.as_mut_ptr());
            }
        }
        Stat { m, l: total.l * old.max_lane() + part.l * new.max_lane() }
    }
}
