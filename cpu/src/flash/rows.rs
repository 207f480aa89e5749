//! Heads of a packed block into tiles and back, between the stored type and f32.

use crate::floats::{Floats, FloatsMut};
use crate::simd::{Elem, Kernel, Vector, get, put};
use crate::team::SharedMut;
use half::bf16;
use std::ops::Range;

/// Where rows lie in a packed block: `group` heads side by side for each position.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Element of the first row.
    pub(super) first: usize,
    /// Elements from one position to the next.
    pub(super) step: usize,
    pub(super) group: usize,
    pub(super) n_pos: usize,
    pub(super) head_dim: usize,
}

impl Place {
    /// The heads of a position.
    #[inline(always)]
    pub(super) fn heads(&self, pos: usize) -> Range<usize> {
        let start = self.first + pos * self.step;
        start..start + self.group * self.head_dim
    }
}

/// `tile[row] = factor * from[row]`, zeros up to the width.
pub(super) struct Load<'a> {
    /// `[rows, width]`.
    pub(super) tile: &'a mut [f32],
    pub(super) width: usize,
    pub(super) from: Floats<'a>,
    pub(super) place: Place,
    pub(super) factor: f32,
}

impl Kernel for Load<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        match self.from {
            Floats::F32(x) => self.rows::<V, f32>(x),
            Floats::Bf16(x) => self.rows::<V, bf16>(x),
        }
    }
}

impl Load<'_> {
    #[inline(always)]
    fn rows<V: Vector, N: Elem>(self, x: &[N]) {
        let Load { tile, width, place, .. } = self;
        let factor = V::splat(self.factor);
        let mut rows = tile.chunks_exact_mut(width);
        for pos in 0..place.n_pos {
            for x in x[place.heads(pos)].chunks_exact(place.head_dim) {
                let Some(row) = rows.next() else { return };
                let (vectors, tail) = row.split_at_mut(place.head_dim / V::LANES * V::LANES);
                let whole = x.chunks_exact(V::LANES);
                let rest = whole.remainder();
                for (to, x) in vectors.chunks_exact_mut(V::LANES).zip(whole) {
                    // SAFETY: both slices hold LANES elements.
                    unsafe { N::load::<V>(x.as_ptr()).mul(factor).store(to.as_mut_ptr()) };
                }
                for (i, to) in tail.chunks_exact_mut(V::LANES).enumerate() {
                    let x = if i == 0 { get::<V>(rest).mul(factor) } else { V::splat(0.0) };
                    // SAFETY: the slice holds LANES elements.
                    unsafe { x.store(to.as_mut_ptr()) };
                }
            }
        }
    }
}

/// A packed block that members write disjoint rows of.
pub(super) enum SharedFloats<'a> {
    F32(SharedMut<'a, f32>),
    Bf16(SharedMut<'a, bf16>),
}

impl<'a> SharedFloats<'a> {
    pub(super) fn new(x: FloatsMut<'a>) -> Self {
        match x {
            FloatsMut::F32(x) => SharedFloats::F32(SharedMut::new(x)),
            FloatsMut::Bf16(x) => SharedFloats::Bf16(SharedMut::new(x)),
        }
    }
}

/// What the rows of a tile are multiplied by when they are stored.
#[derive(Clone, Copy)]
pub(super) enum Factor<'a> {
    One(f32),
    /// One a row.
    Each(&'a [f32]),
}

/// `to[row] = factor * tile[row]`. Made by [`Store::new`].
pub(super) struct Store<'a> {
    to: &'a SharedFloats<'a>,
    place: Place,
    /// `[rows, width]`.
    tile: &'a [f32],
    width: usize,
    factor: Factor<'a>,
}

impl<'a> Store<'a> {
    /// # Safety
    /// No other thread uses the rows of `place` while the value lives.
    pub(super) unsafe fn new(
        to: &'a SharedFloats<'a>,
        place: Place,
        tile: &'a [f32],
        width: usize,
        factor: Factor<'a>,
    ) -> Self {
        Store { to, place, tile, width, factor }
    }
}

impl Kernel for Store<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        match self.to {
            SharedFloats::F32(to) => self.rows::<V, f32>(to),
            SharedFloats::Bf16(to) => self.rows::<V, bf16>(to),
        }
    }
}

impl Store<'_> {
    #[inline(always)]
    fn rows<V: Vector, N: Elem>(&self, to: &SharedMut<'_, N>) {
        let place = self.place;
        for pos in 0..place.n_pos {
            // SAFETY: the rows are this thread's by the promise to `new`, one position at a time.
            let heads = unsafe { to.slice(place.heads(pos)) };
            for (head, to) in heads.chunks_exact_mut(place.head_dim).enumerate() {
                let row = pos * place.group + head;
                let factor = match self.factor {
                    Factor::One(factor) => V::splat(factor),
                    Factor::Each(factors) => V::splat(factors[row]),
                };
                let x = &self.tile[row * self.width..][..self.width];
                for (to, x) in to.chunks_mut(V::LANES).zip(x.chunks_exact(V::LANES)) {
                    // SAFETY: the slice holds LANES elements.
                    put(to, unsafe { V::load(x.as_ptr()) }.mul(factor));
                }
            }
        }
    }
}

/// `out[row] = a[row] . b[row]`.
pub(super) struct Dots<'a> {
    pub(super) out: &'a mut [f32],
    /// `[rows, width]`.
    pub(super) a: &'a [f32],
    /// `[rows, width]`.
    pub(super) b: &'a [f32],
    pub(super) width: usize,
}

impl Kernel for Dots<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let rows = self.a.chunks_exact(self.width).zip(self.b.chunks_exact(self.width));
        for (out, (a, b)) in self.out.iter_mut().zip(rows) {
            let mut sum = V::splat(0.0);
            for (a, b) in a.chunks_exact(V::LANES).zip(b.chunks_exact(V::LANES)) {
                // SAFETY: both slices hold LANES elements.
                sum = unsafe { V::load(a.as_ptr()).mul_add(V::load(b.as_ptr()), sum) };
            }
            *out = sum.sum();
        }
    }
}
