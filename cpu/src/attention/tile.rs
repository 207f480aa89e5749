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
use crate::simd::{Vector, exp};
use std::ops::Range;

/// Maximum and sum of a row's chunk; `o` lies beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    pub(super) m: f32,
    pub(super) l: f32,
}

/// The query rows and the places for results of one tile.
pub(super) struct Tile<'a> {
    /// `[head_dim, R]`: the tile's rows, scaled, side by side.
    pub(super) q: &'a [f32],
    /// Visible positions of each row inside the chunk, counted from its start; maybe empty.
    pub(super) visible: &'a [Range<usize>],
    /// `[R, CHUNK]`: scores, then probabilities.
    pub(super) s: &'a mut [f32],
    /// `[R, width]`: sums of values.
    pub(super) o: &'a mut [f32],
    /// One per row; unset for a row without visible positions.
    pub(super) stats: &'a mut [Stat],
    pub(super) head_dim: usize,
    pub(super) width: usize,
}

/// Accumulators of one register tile: enough to hide the latency of a multiply-add, few enough to
/// leave registers for operands.
const fn accumulators<V: Vector>() -> usize {
    2 * V::TILE_ROWS
}

impl Tile<'_> {
    /// Computes the tile against the chunk that starts at position `start`; R is at least the
    /// number of rows.
    ///
    /// # Panics
    /// When a buffer is shorter than R rows demand.
    ///
    /// # Safety
    /// `kv` is one head with `head_dim` and `width` of this tile, whose capacity is a multiple of
    /// 64 and covers `start + visible.end` of every row; `start` is a multiple of CHUNK.
    #[inline(always)]
    pub(super) unsafe fn run<V: Vector, F: Format, const R: usize>(&mut self, kv: F, start: usize) {
        let rows = self.visible.len();
        assert!(rows <= R && rows <= self.stats.len());
        assert!(self.q.len() >= self.head_dim * R);
        assert!(self.s.len() >= R * CHUNK && self.o.len() >= R * self.width);
        let seen = || self.visible.iter().filter(|range| !range.is_empty());
        let (Some(lo), Some(hi)) =
            (seen().map(|range| range.start).min(), seen().map(|range| range.end).max())
        else {
            return;
        };
        assert!(hi <= CHUNK && self.width.is_multiple_of(16) && self.width >= self.head_dim);

        // SAFETY: lengths by the assertions above, positions by the caller's promise.
        unsafe { self.scores::<V, F, R>(kv, start, lo..hi) };
        for row in 0..rows {
            let range = self.visible[row].clone();
            if !range.is_empty() {
                self.stats[row] = soften::<V>(&mut self.s[row * CHUNK..][..CHUNK], range);
            }
        }

        self.o[..R * self.width].fill(0.0);
        let first = self.visible.iter().map(|range| range.start).max().unwrap_or(0);
        let last = self.visible.iter().map(|range| range.end).min().unwrap_or(0);
        // The positions that all rows see go through the wide tile, those before and behind
        // through narrow ones: each row meets its own positions in order, and no others.
        let common = first..last.max(first);
        for row in 0..rows {
            let range = self.visible[row].clone();
            let end = if common.is_empty() { range.end } else { common.start };
            // SAFETY: as above; `row < R`.
            unsafe { self.values::<V, F, 1>(kv, row, start, range.start..end) };
        }
        if common.is_empty() {
            return;
        }
        // SAFETY: as above.
        unsafe { self.values::<V, F, R>(kv, 0, start, common.clone()) };
        for row in 0..rows {
            // SAFETY: as above; `row < R`.
            unsafe { self.values::<V, F, 1>(kv, row, start, common.end..self.visible[row].end) };
        }
    }

    /// Scores of R rows for the positions of `range`, rounded out to whole register tiles.
    ///
    /// # Safety
    /// As for `run`, whose assertions hold.
    #[inline(always)]
    unsafe fn scores<V: Vector, F: Format, const R: usize>(
        &mut self,
        kv: F,
        start: usize,
        range: Range<usize>,
    ) {
        // At most 4 blocks: a tile then never reaches beyond a capacity in steps of 64.
        let vectors = (accumulators::<V>() / R).min(4 * BLOCK / V::LANES);
        let step = vectors * V::LANES;
        for at in (range.start / step * step..range.end).step_by(step) {
            // SAFETY: at + step <= CHUNK and start + at + step <= capacity, since both are
            // multiples of step beyond a position in range.
            unsafe {
                match vectors {
                    8 => self.score_tile::<V, F, R, 8>(kv, start, at),
                    4 => self.score_tile::<V, F, R, 4>(kv, start, at),
                    _ => self.score_tile::<V, F, R, 2>(kv, start, at),
                }
            }
        }
    }

    /// Scores of R rows for NV vectors of positions from `start + at` on.
    ///
    /// # Safety
    /// As for `run`, whose assertions hold; `at + NV * LANES` is within CHUNK and, from start, the
    /// capacity.
    #[inline(always)]
    unsafe fn score_tile<V: Vector, F: Format, const R: usize, const NV: usize>(
        &mut self,
        kv: F,
        start: usize,
        at: usize,
    ) {
        let block = (start + at) / BLOCK;
        let place = |n: usize| (block + n * V::LANES / BLOCK, n * V::LANES % BLOCK);
        let mut acc = [[V::splat(0.0); NV]; R];
        let (mut d, mut group) = (0, 0);
        while d < self.head_dim {
            let end = d.saturating_add(F::GROUP).min(self.head_dim);
            let mut scale = [V::splat(1.0); NV];
            for (n, scale) in scale.iter_mut().enumerate() {
                let (block, lane) = place(n);
                // SAFETY: the block lies within the capacity by the caller's promise.
                *scale = unsafe { kv.k_scale(block, group, lane) };
            }
            for d in d..end {
                let mut k = [V::splat(0.0); NV];
                for n in 0..NV {
                    let (block, lane) = place(n);
                    // SAFETY: the block lies within the capacity, d within the head.
                    k[n] = unsafe { kv.k(block, d, lane, scale[n]) };
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: q holds head_dim * R elements (assertion in `run`).
                    let q = V::splat(unsafe { *self.q.get_unchecked(d * R + r) });
                    for n in 0..NV {
                        acc[n] = q.mul_add(k[n], acc[n]);
                    }
                }
            }
            (d, group) = (end, group + 1);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (n, acc) in acc.iter().enumerate() {
                // SAFETY: s holds R rows of CHUNK, and at + NV * LANES <= CHUNK.
                unsafe { acc.store(self.s.as_mut_ptr().add(r * CHUNK + at + n * V::LANES)) };
            }
        }
    }

    /// Adds `p[j] v[j]` for the positions j of `range` to the sums of R rows from `row` on.
    ///
    /// # Safety
    /// As for `run`, whose assertions hold for `row + R` rows; range is within CHUNK and, from
    /// start, the capacity.
    #[inline(always)]
    unsafe fn values<V: Vector, F: Format, const R: usize>(
        &mut self,
        kv: F,
        row: usize,
        start: usize,
        range: Range<usize>,
    ) {
        if range.is_empty() {
            return;
        }
        let vectors = (accumulators::<V>() / R).min(8);
        let mut d = 0;
        while d < self.width {
            let left = (self.width - d) / V::LANES;
            let range = range.clone();
            // SAFETY: the vectors from d on, as many as each branch takes, lie within the width.
            unsafe {
                if vectors >= 8 && left >= 8 {
                    self.value_tile::<V, F, R, 8>(kv, row, start, range, d);
                    d += 8 * V::LANES;
                } else if vectors >= 4 && left >= 4 {
                    self.value_tile::<V, F, R, 4>(kv, row, start, range, d);
                    d += 4 * V::LANES;
                } else if left >= 2 {
                    self.value_tile::<V, F, R, 2>(kv, row, start, range, d);
                    d += 2 * V::LANES;
                } else {
                    self.value_tile::<V, F, R, 1>(kv, row, start, range, d);
                    d += V::LANES;
                }
            }
        }
    }

    /// `values` for NV vectors of dimensions from `d` on.
    ///
    /// # Safety
    /// As for `values`; `d + NV * LANES` is within the width.
    #[inline(always)]
    unsafe fn value_tile<V: Vector, F: Format, const R: usize, const NV: usize>(
        &mut self,
        kv: F,
        row: usize,
        start: usize,
        range: Range<usize>,
        d: usize,
    ) {
        // SAFETY: o holds `row + R` rows of the width, s as many of CHUNK.
        let (o, p) = unsafe {
            (self.o.as_mut_ptr().add(row * self.width + d), self.s.as_ptr().add(row * CHUNK))
        };
        let width = self.width;
        let mut acc = [[V::splat(0.0); NV]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (n, acc) in acc.iter_mut().enumerate() {
                // SAFETY: row r of o, below the width.
                *acc = unsafe { V::load(o.add(r * width + n * V::LANES)) };
            }
        }
        for j in range {
            let mut v = [V::splat(0.0); NV];
            for (n, v) in v.iter_mut().enumerate() {
                // SAFETY: the position lies within the capacity, the vector within the width.
                *v = unsafe { kv.v(start + j, d + n * V::LANES) };
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: row r of s, j below CHUNK.
                let p = V::splat(unsafe { *p.add(r * CHUNK + j) });
                for n in 0..NV {
                    acc[n] = p.mul_add(v[n], acc[n]);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (n, acc) in acc.iter().enumerate() {
                // SAFETY: row r of o, below the width.
                unsafe { acc.store(o.add(r * width + n * V::LANES)) };
            }
        }
    }
}

/// Turns the scores of a row's visible positions into `exp(s - max)`.
#[inline(always)]
fn soften<V: Vector>(s: &mut [f32], visible: Range<usize>) -> Stat {
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

/// Takes a row's next chunk into the running result of the chunks before it.
#[inline(always)]
pub(super) fn merge<V: Vector>(total: &mut Stat, sums: &mut [f32], part: Stat, o: &[f32]) {
    let m = if part.m > total.m { part.m } else { total.m };
    let old = exp(V::splat(total.m - m));
    let new = exp(V::splat(part.m - m));
    total.l = total.l * old.max_lane() + part.l * new.max_lane();
    total.m = m;
    for (sum, o) in sums.chunks_exact_mut(V::LANES).zip(o.chunks_exact(V::LANES)) {
        // SAFETY: both slices hold LANES elements.
        unsafe {
            let x = V::load(sum.as_ptr()).mul(old);
            V::load(o.as_ptr()).mul_add(new, x).store(sum.as_mut_ptr());
        }
    }
}
