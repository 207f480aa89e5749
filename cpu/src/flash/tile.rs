//! One block of query rows against one tile of keys: products, probabilities and their slopes.
//!
//! A row of the block is a position and one of the heads that share the KV head, heads innermost.
//! What rows do not see is never part of a sum but where it shares a register tile with what they
//! see; there it has the probability and the slope 0. Rows beyond the block and keys beyond the
//! tile hold whatever an earlier tile left: they give results that nobody reads.

use super::KEYS;
use crate::simd::{Kernel, Vector, exp};
use std::ops::Range;

/// Which keys of a tile the rows of a block see.
#[derive(Clone, Copy)]
pub(super) struct Band {
    /// Position of the block's first row in the span.
    pub(super) first_pos: usize,
    /// Rows of a position.
    pub(super) group: usize,
    pub(super) n_rows: usize,
    /// Position of the tile's first key in the span.
    pub(super) first_key: usize,
    /// At most `KEYS`.
    pub(super) n_keys: usize,
    pub(super) window: usize,
}

impl Band {
    /// Keys that any of `rows` sees, counted in the tile. `rows` starts below `n_rows`.
    #[inline(always)]
    fn keys(&self, rows: Range<usize>) -> Range<usize> {
        let first = self.first_pos + rows.start / self.group;
        let last = self.first_pos + (rows.end.min(self.n_rows) - 1) / self.group;
        let lo = (first + 1).saturating_sub(self.window).saturating_sub(self.first_key);
        let hi = (last + 1).saturating_sub(self.first_key).min(self.n_keys);
        lo.min(hi)..hi
    }

    /// Rows that see any of `keys`. `keys` starts below `n_keys`.
    #[inline(always)]
    fn rows(&self, keys: Range<usize>) -> Range<usize> {
        let first = self.first_key + keys.start;
        let last = self.first_key + keys.end.min(self.n_keys) - 1;
        let lo = first.saturating_sub(self.first_pos).saturating_mul(self.group);
        let end = last.saturating_add(self.window).saturating_sub(self.first_pos);
        let hi = end.saturating_mul(self.group).min(self.n_rows);
        lo.min(hi)..hi
    }

    /// `keys` rounded out to whole vectors: what is written of each of the rows.
    #[inline(always)]
    fn written<V: Vector>(&self, rows: Range<usize>) -> Range<usize> {
        let keys = self.keys(rows);
        if keys.is_empty() {
            return 0..0;
        }
        keys.start / V::LANES * V::LANES..keys.end.next_multiple_of(V::LANES)
    }
}

/// `to[d, key] = from[key, d]`.
pub(super) struct Transpose<'a> {
    /// `[width, KEYS]`.
    pub(super) to: &'a mut [f32],
    /// `[KEYS, width]`.
    pub(super) from: &'a [f32],
    pub(super) width: usize,
    pub(super) n_keys: usize,
}

impl Kernel for Transpose<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Transpose { to, from, width, n_keys } = self;
        assert!(n_keys <= KEYS && width.is_multiple_of(16));
        assert!(to.len() >= width * KEYS && from.len() >= width * KEYS);
        for key in (0..n_keys).step_by(V::LANES) {
            for d in (0..width).step_by(V::LANES) {
                let mut x = [V::splat(0.0); 16];
                for i in 0..V::LANES {
                    // SAFETY: key + i < KEYS and d + LANES <= width: both are steps of LANES, of
                    // which KEYS and the width are multiples.
                    x[i] = unsafe { V::load(from.as_ptr().add((key + i) * width + d)) };
                }
                // Each round shifts the bits of an element's place (row, lane) by one to the
                // left, around the end: after log2(LANES) rounds row and lane have changed places.
                let mut n = 1;
                while n < V::LANES {
                    let mut y = x;
                    for i in 0..V::LANES / 2 {
                        (y[2 * i], y[2 * i + 1]) = x[i].zip(x[i + V::LANES / 2]);
                    }
                    x = y;
                    n *= 2;
                }
                for i in 0..V::LANES {
                    // SAFETY: as above.
                    unsafe { x[i].store(to.as_mut_ptr().add((d + i) * KEYS + key)) };
                }
            }
        }
    }
}

/// A matrix by its first element and the elements from row to row.
#[derive(Clone, Copy)]
struct At<P> {
    p: P,
    step: usize,
}

/// `c = a b`, or `c += a b` if ADD: R rows by N vectors, the sum in the order of `depth`. `a` is
/// `[R, depth]`, or `[depth, R]` if TURNED; b is `[depth, N vectors]`.
///
/// # Safety
/// The matrices are readable, and `c` writable, over these extents.
#[inline(always)]
unsafe fn product<
    V: Vector,
    const R: usize,
    const N: usize,
    const TURNED: bool,
    const ADD: bool,
>(
    c: At<*mut f32>,
    a: At<*const f32>,
    b: At<*const f32>,
    depth: usize,
) {
    let mut acc = [[V::splat(0.0); N]; R];
    if ADD {
        for r in 0..R {
            for n in 0..N {
                // SAFETY: the caller's promise.
                acc[r][n] = unsafe { V::load(c.p.add(r * c.step + n * V::LANES)) };
            }
        }
    }
    for d in 0..depth {
        let mut row = [V::splat(0.0); N];
        for n in 0..N {
            // SAFETY: the caller's promise.
            row[n] = unsafe { V::load(b.p.add(d * b.step + n * V::LANES)) };
        }
        for r in 0..R {
            let at = if TURNED { d * a.step + r } else { r * a.step + d };
            // SAFETY: the caller's promise.
            let x = V::splat(unsafe { *a.p.add(at) });
            for n in 0..N {
                acc[r][n] = x.mul_add(row[n], acc[r][n]);
            }
        }
    }
    for r in 0..R {
        for n in 0..N {
            // SAFETY: the caller's promise.
            unsafe { acc[r][n].store(c.p.add(r * c.step + n * V::LANES)) };
        }
    }
}

/// `s[row, key] = sum over d of a[row, d] b[d, key]` where rows see keys, and around.
pub(super) struct Scores<'a> {
    /// `[rows, KEYS]`.
    pub(super) s: &'a mut [f32],
    /// `[rows, width]`.
    pub(super) a: &'a [f32],
    /// `[width, KEYS]`.
    pub(super) b: &'a [f32],
    pub(super) width: usize,
    /// Dimensions to sum: the width of a head.
    pub(super) depth: usize,
    pub(super) band: Band,
}

impl Scores<'_> {
    #[inline(always)]
    pub(super) fn enter<V: Vector>(self) {
        if V::TILE_ROWS == 8 {
            V::enter(ScoresBy::<8>(self))
        } else {
            V::enter(ScoresBy::<4>(self))
        }
    }
}

struct ScoresBy<'a, const R: usize>(Scores<'a>);

impl<const R: usize> Kernel for ScoresBy<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Scores { s, a, b, width, depth, band } = self.0;
        let rows = band.n_rows.next_multiple_of(R);
        assert!(depth <= width && band.n_keys <= KEYS);
        assert!(s.len() >= rows * KEYS && a.len() >= rows * width && b.len() >= width * KEYS);
        for row in (0..band.n_rows).step_by(R) {
            let written = band.written::<V>(row..row + R);
            // SAFETY: row + R <= rows, within s and a (asserted above).
            let (s, a) = unsafe { (s.as_mut_ptr().add(row * KEYS), a.as_ptr().add(row * width)) };
            let mut key = written.start;
            while key < written.end {
                // SAFETY: `written` ends at most at KEYS, a multiple of LANES, and both it and
                // key are multiples of LANES: the vectors lie in a row of s and of b.
                unsafe {
                    let a = At { p: a, step: width };
                    let b = At { p: b.as_ptr().add(key), step: KEYS };
                    let s = At { p: s.add(key), step: KEYS };
                    if written.end - key > V::LANES {
                        product::<V, R, 2, false, false>(s, a, b, depth);
                        key += 2 * V::LANES;
                    } else {
                        product::<V, R, 1, false, false>(s, a, b, depth);
                        key += V::LANES;
                    }
                }
            }
        }
    }
}

/// `c[row] += sum over keys of p[row, key] b[key]`, or turned
/// `c[key] += sum over rows of p[row, key] b[row]`.
pub(super) struct Sums<'a> {
    /// `[rows, width]`, or turned `[keys, width]`.
    pub(super) c: &'a mut [f32],
    /// `[rows, KEYS]`.
    pub(super) p: &'a [f32],
    /// `[KEYS, width]`, or turned `[rows, width]`.
    pub(super) b: &'a [f32],
    pub(super) width: usize,
    pub(super) band: Band,
}

impl Sums<'_> {
    #[inline(always)]
    pub(super) fn enter<V: Vector>(self) {
        if V::TILE_ROWS == 8 {
            V::enter(SumsBy::<8, false>(self))
        } else {
            V::enter(SumsBy::<4, false>(self))
        }
    }

    #[inline(always)]
    pub(super) fn enter_turned<V: Vector>(self) {
        if V::TILE_ROWS == 8 {
            V::enter(SumsBy::<8, true>(self))
        } else {
            V::enter(SumsBy::<4, true>(self))
        }
    }
}

struct SumsBy<'a, const R: usize, const TURNED: bool>(Sums<'a>);

impl<const R: usize, const TURNED: bool> Kernel for SumsBy<'_, R, TURNED> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Sums { c, p, b, width, band } = self.0;
        let n = if TURNED { band.n_keys } else { band.n_rows };
        let b_rows = if TURNED { band.n_rows } else { band.n_keys };
        assert!(band.n_keys <= KEYS && width.is_multiple_of(16));
        assert!(c.len() >= n.next_multiple_of(R) * width && b.len() >= b_rows * width);
        assert!(p.len() >= band.n_rows.next_multiple_of(R) * KEYS);
        for i in (0..n).step_by(R) {
            let depth = if TURNED { band.rows(i..i + R) } else { band.keys(i..i + R) };
            if depth.is_empty() {
                continue;
            }
            let at = if TURNED { depth.start * KEYS + i } else { i * KEYS + depth.start };
            let mut d = 0;
            while d < width {
                // SAFETY: rows i..i + R of c, and `depth` of b, are within the lengths asserted
                // above; the rows or keys of p likewise (KEYS is a multiple of R); d and the width
                // are multiples of LANES.
                unsafe {
                    let c = At { p: c.as_mut_ptr().add(i * width + d), step: width };
                    let p = At { p: p.as_ptr().add(at), step: KEYS };
                    let b = At { p: b.as_ptr().add(depth.start * width + d), step: width };
                    if width - d > V::LANES {
                        product::<V, R, 2, TURNED, true>(c, p, b, depth.len());
                        d += 2 * V::LANES;
                    } else {
                        product::<V, R, 1, TURNED, true>(c, p, b, depth.len());
                        d += V::LANES;
                    }
                }
            }
        }
    }
}

/// Takes the scores of a tile into the running maximum `m` and sum `l` of each row:
/// `p = exp(s - m)`, 0 where the row sees nothing; what was summed before is scaled to the new
/// maximum.
pub(super) struct Soften<'a> {
    /// `[rows, KEYS]`: scores, then probabilities.
    pub(super) s: &'a mut [f32],
    /// `[rows, width]`: sums of values.
    pub(super) o: &'a mut [f32],
    pub(super) width: usize,
    /// `[rows]`, -inf before the first tile.
    pub(super) m: &'a mut [f32],
    /// `[rows]`, 0 before the first tile.
    pub(super) l: &'a mut [f32],
    pub(super) band: Band,
}

impl Kernel for Soften<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Soften { s, o, width, m, l, band } = self;
        let outside = V::splat(f32::NEG_INFINITY);
        for first in (0..band.n_rows).step_by(V::TILE_ROWS) {
            let written = band.written::<V>(first..first + V::TILE_ROWS);
            if written.is_empty() {
                continue;
            }
            for row in first..(first + V::TILE_ROWS).min(band.n_rows) {
                let s = &mut s[row * KEYS..][written.clone()];
                let keys = band.keys(row..row + 1);
                if keys.is_empty() {
                    s.fill(0.0);
                    continue;
                }
                let mut max = outside;
                for (i, s) in s.chunks_exact_mut(V::LANES).enumerate() {
                    let at = written.start + i * V::LANES;
                    // SAFETY: the slice holds LANES elements.
                    let mut x = unsafe { V::load(s.as_ptr()) };
                    if at < keys.start || at + V::LANES > keys.end {
                        x = x.keep(inside::<V>(at, &keys), outside);
                        // SAFETY: the slice holds LANES elements.
                        unsafe { x.store(s.as_mut_ptr()) };
                    }
                    max = x.max(max);
                }
                let new = max.max_lane();
                let old = m[row];
                if new > old {
                    m[row] = new;
                    // Before the first tile there is nothing to scale.
                    if old > f32::NEG_INFINITY {
                        let factor = exp(V::splat(old - new));
                        l[row] *= factor.max_lane();
                        for o in o[row * width..][..width].chunks_exact_mut(V::LANES) {
                            // SAFETY: the slice holds LANES elements.
                            unsafe { V::load(o.as_ptr()).mul(factor).store(o.as_mut_ptr()) };
                        }
                    }
                }
                let shift = V::splat(m[row]);
                let mut sum = V::splat(0.0);
                for s in s.chunks_exact_mut(V::LANES) {
                    // SAFETY: the slice holds LANES elements.
                    let p = exp(unsafe { V::load(s.as_ptr()) }.sub(shift));
                    sum = sum.add(p);
                    // SAFETY: the slice holds LANES elements.
                    unsafe { p.store(s.as_mut_ptr()) };
                }
                l[row] += sum.sum();
            }
        }
    }
}

/// The lanes of the vector at `at` that lie in `keys`.
#[inline(always)]
fn inside<V: Vector>(at: usize, keys: &Range<usize>) -> Range<usize> {
    let end = keys.end.saturating_sub(at).min(V::LANES);
    keys.start.saturating_sub(at).min(end)..end
}

/// `p = exp(s - lse)` and `ds = p (dp - d)`, both 0 where the row sees nothing.
pub(super) struct Slopes<'a> {
    /// `[rows, KEYS]`: scores, then probabilities.
    pub(super) s: &'a mut [f32],
    /// `[rows, KEYS]`: slopes of the probabilities, then of the scores.
    pub(super) dp: &'a mut [f32],
    /// `[rows]`.
    pub(super) lse: &'a [f32],
    /// `[rows]`.
    pub(super) d: &'a [f32],
    pub(super) band: Band,
}

impl Kernel for Slopes<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Slopes { s, dp, lse, d, band } = self;
        let zero = V::splat(0.0);
        for first in (0..band.n_rows).step_by(V::TILE_ROWS) {
            let written = band.written::<V>(first..first + V::TILE_ROWS);
            for row in first..(first + V::TILE_ROWS).min(band.n_rows) {
                let s = &mut s[row * KEYS..][written.clone()];
                let dp = &mut dp[row * KEYS..][written.clone()];
                let keys = band.keys(row..row + 1);
                let (lse, d) = (V::splat(lse[row]), V::splat(d[row]));
                let vectors = s.chunks_exact_mut(V::LANES).zip(dp.chunks_exact_mut(V::LANES));
                for (i, (s, dp)) in vectors.enumerate() {
                    let at = written.start + i * V::LANES;
                    // SAFETY: both slices hold LANES elements.
                    let (x, y) = unsafe { (V::load(s.as_ptr()), V::load(dp.as_ptr())) };
                    let mut p = exp(x.sub(lse));
                    let mut ds = p.mul(y.sub(d));
                    if at < keys.start || at + V::LANES > keys.end {
                        let lanes = inside::<V>(at, &keys);
                        p = p.keep(lanes.clone(), zero);
                        ds = ds.keep(lanes, zero);
                    }
                    // SAFETY: both slices hold LANES elements.
                    unsafe {
                        p.store(s.as_mut_ptr());
                        ds.store(dp.as_mut_ptr());
                    }
                }
            }
        }
    }
}
