//! Numbers in memory, of several types, as vectors of f32: what lets a kernel be written once for
//! f32, for bf16 and for operands of both.

use super::{Vector, get, put};
use crate::floats::{Floats, FloatsMut};
use half::{bf16, f16};
use std::ops::Range;

/// A type that vectors load and store.
pub(crate) trait Elem: Copy {
    /// Its zero.
    const ZERO: Self;
    /// # Safety
    /// `LANES` elements must be readable at `p`, at any alignment.
    unsafe fn load<V: Vector>(p: *const Self) -> V;
    /// Rounds to nearest even.
    /// # Safety
    /// `LANES` elements must be writable at `p`, at any alignment.
    unsafe fn store<V: Vector>(v: V, p: *mut Self);
}

impl Elem for f32 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(p) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, p: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { v.store(p) }
    }
}

impl Elem for f16 {
    const ZERO: Self = f16::ZERO;
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(p) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, p: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { v.store_f16(p) }
    }
}

impl Elem for bf16 {
    const ZERO: Self = bf16::ZERO;
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, p: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { v.store_bf16(p) }
    }
}

/// Numbers to read: a slice of one type, or [`Floats`], whose type is looked up at every load.
/// Kernels of several operands take slices where all have one type, the common case, and `Floats`
/// for every mixture.
pub(crate) trait Source: Copy {
    /// How many numbers.
    fn len(self) -> usize;
    /// Those of a range.
    fn part(self, range: Range<usize>) -> Self;
    /// Up to `LANES` numbers from `at` (at most the length) on, zeros in the lanes beyond.
    fn load<V: Vector>(self, at: usize) -> V;
}

impl<E: Elem> Source for &[E] {
    #[inline(always)]
    fn len(self) -> usize {
        <[E]>::len(self)
    }
    #[inline(always)]
    fn part(self, range: Range<usize>) -> Self {
        &self[range]
    }
    #[inline(always)]
    fn load<V: Vector>(self, at: usize) -> V {
        get(&self[at..])
    }
}

impl Source for Floats<'_> {
    #[inline(always)]
    fn len(self) -> usize {
        Floats::len(&self)
    }
    #[inline(always)]
    fn part(self, range: Range<usize>) -> Self {
        match self {
            Floats::F32(x) => Floats::F32(&x[range]),
            Floats::Bf16(x) => Floats::Bf16(&x[range]),
        }
    }
    #[inline(always)]
    fn load<V: Vector>(self, at: usize) -> V {
        match self {
            Floats::F32(x) => x.load(at),
            Floats::Bf16(x) => x.load(at),
        }
    }
}

/// Numbers to write, as [`Source`] is to read.
pub(crate) trait Sink {
    /// The numbers of a range.
    type Part<'b>: Sink
    where
        Self: 'b;
    /// Those of a range.
    fn part(&mut self, range: Range<usize>) -> Self::Part<'_>;
    /// Up to `LANES` numbers from `at` (at most the length) on, zeros in the lanes beyond.
    fn load<V: Vector>(&self, at: usize) -> V;
    /// Writes the first lanes of `v` from `at` on, as many as there is room for.
    fn store<V: Vector>(&mut self, at: usize, v: V);
}

impl<E: Elem> Sink for &mut [E] {
    type Part<'b>
        = &'b mut [E]
    where
        Self: 'b;
    #[inline(always)]
    fn part(&mut self, range: Range<usize>) -> &mut [E] {
        &mut self[range]
    }
    #[inline(always)]
    fn load<V: Vector>(&self, at: usize) -> V {
        get(&self[at..])
    }
    #[inline(always)]
    fn store<V: Vector>(&mut self, at: usize, v: V) {
        put(&mut self[at..], v);
    }
}

impl Sink for FloatsMut<'_> {
    type Part<'b>
        = FloatsMut<'b>
    where
        Self: 'b;
    #[inline(always)]
    fn part(&mut self, range: Range<usize>) -> FloatsMut<'_> {
        match self {
            FloatsMut::F32(x) => FloatsMut::F32(&mut x[range]),
            FloatsMut::Bf16(x) => FloatsMut::Bf16(&mut x[range]),
        }
    }
    #[inline(always)]
    fn load<V: Vector>(&self, at: usize) -> V {
        match self {
            FloatsMut::F32(x) => get(&x[at..]),
            FloatsMut::Bf16(x) => get(&x[at..]),
        }
    }
    #[inline(always)]
    fn store<V: Vector>(&mut self, at: usize, v: V) {
        match self {
            FloatsMut::F32(x) => put(&mut x[at..], v),
            FloatsMut::Bf16(x) => put(&mut x[at..], v),
        }
    }
}
