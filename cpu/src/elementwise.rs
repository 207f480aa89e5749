//! Element-wise sums, their column sums backward, scaling, and conversion between the types that
//! training stores.

use crate::floats::{Floats, FloatsMut};
use crate::isa::Isa;
use crate::simd::{self, Kernel, Sink, Source, Vector};

/// `x += y`, element by element, f32. Adds; rounded once.
///
/// # Panics
/// When the lengths differ.
pub fn add_acc(isa: Isa, x: &mut [f32], y: &[f32]) {
    add_floats_acc(isa, FloatsMut::F32(x), Floats::F32(y));
}

/// `x += y`, element by element, of numbers stored in either type. Adds in f32; rounded once, to
/// the type of x.
///
/// # Panics
/// When the lengths differ.
pub fn add_floats_acc(isa: Isa, x: FloatsMut<'_>, y: Floats<'_>) {
    assert_eq!(x.len(), y.len(), "add_acc: lengths differ");
    match (x, y) {
        (FloatsMut::F32(x), Floats::F32(y)) => simd::run(isa, Add { x, y }),
        (FloatsMut::F32(x), Floats::Bf16(y)) => simd::run(isa, Add { x, y }),
        (FloatsMut::Bf16(x), Floats::F32(y)) => simd::run(isa, Add { x, y }),
        (FloatsMut::Bf16(x), Floats::Bf16(y)) => simd::run(isa, Add { x, y }),
    }
}

/// `x[row] += bias` for every row of `bias.len()` elements, f32. Adds; rounded once.
///
/// # Panics
/// When `x` is not whole rows.
pub fn add_bias_acc(isa: Isa, x: &mut [f32], bias: &[f32]) {
    add_bias_floats_acc(isa, FloatsMut::F32(x), bias);
}

/// `x[row] += bias` for every row of `bias.len()` elements stored in either type. Adds in f32;
/// rounded once.
///
/// # Panics
/// When `x` is not whole rows.
pub fn add_bias_floats_acc(isa: Isa, x: FloatsMut<'_>, bias: &[f32]) {
    if x.is_empty() {
        return;
    }
    check_rows("add_bias_acc", x.len(), bias.len());
    match x {
        FloatsMut::F32(x) => simd::run(isa, AddBias { n_rows: x.len() / bias.len(), x, bias }),
        FloatsMut::Bf16(x) => simd::run(isa, AddBias { n_rows: x.len() / bias.len(), x, bias }),
    }
}

/// The gradient of a bias: `dbias += sum over rows(dout)`, rows of `dbias.len()` elements.
///
/// Adds in f32, row after row, so callers that share rows among threads hand in one partial
/// `dbias` for each fixed block of rows. Error: an epsilon a row of the sum of absolute terms
/// (`tests/gradients_rows.rs`).
///
/// # Panics
/// When `dout` is not whole rows.
pub fn bias_bwd_acc(isa: Isa, dbias: &mut [f32], dout: Floats<'_>) {
    if dout.is_empty() {
        return;
    }
    check_rows("bias_bwd_acc", dout.len(), dbias.len());
    match dout {
        Floats::F32(dout) => simd::run(isa, BiasBwd { dbias, dout }),
        Floats::Bf16(dout) => simd::run(isa, BiasBwd { dbias, dout }),
    }
}

/// `x = x * factor`, f32. Overwrites; rounded once.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    simd::run(isa, Scale { x, factor });
}

/// `out = x`. Widening is exact; narrowing rounds to nearest even; within a type the bits are
/// copied. Overwrites.
///
/// # Panics
/// When the lengths differ.
pub fn convert_floats(isa: Isa, out: FloatsMut<'_>, x: Floats<'_>) {
    assert_eq!(out.len(), x.len(), "convert_floats: lengths differ");
    match (out, x) {
        (FloatsMut::F32(out), Floats::F32(x)) => out.copy_from_slice(x),
        (FloatsMut::Bf16(out), Floats::Bf16(x)) => out.copy_from_slice(x),
        (FloatsMut::F32(out), Floats::Bf16(x)) => simd::run(isa, Convert { out, x }),
        (FloatsMut::Bf16(out), Floats::F32(x)) => simd::run(isa, Convert { out, x }),
    }
}

fn check_rows(what: &str, len: usize, n: usize) {
    assert!(n > 0 && len.is_multiple_of(n), "{what}: {len} elements are not rows of {n}");
}

struct Add<X, Y> {
    x: X,
    y: Y,
}

impl<X: Sink, Y: Source> Kernel for Add<X, Y> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(mut self) {
        for at in (0..self.y.len()).step_by(V::LANES) {
            let sum = self.x.load::<V>(at).add(self.y.load(at));
            self.x.store(at, sum);
        }
    }
}

struct AddBias<'a, X> {
    x: X,
    bias: &'a [f32],
    n_rows: usize,
}

impl<X: Sink> Kernel for AddBias<'_, X> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let n = self.bias.len();
        for row in 0..self.n_rows {
            Add { x: self.x.part(row * n..(row + 1) * n), y: self.bias }.run::<V>();
        }
    }
}

struct BiasBwd<'a, G> {
    dbias: &'a mut [f32],
    dout: G,
}

impl<G: Source> Kernel for BiasBwd<'_, G> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let n = self.dbias.len();
        for row in 0..self.dout.len() / n {
            let y = self.dout.part(row * n..(row + 1) * n);
            Add { x: &mut *self.dbias, y }.run::<V>();
        }
    }
}

struct Scale<'a> {
    x: &'a mut [f32],
    factor: f32,
}

impl Kernel for Scale<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let factor = V::splat(self.factor);
        for at in (0..self.x.len()).step_by(V::LANES) {
            let scaled = self.x.load::<V>(at).mul(factor);
            self.x.store(at, scaled);
        }
    }
}

struct Convert<O, X> {
    out: O,
    x: X,
}

impl<O: Sink, X: Source> Kernel for Convert<O, X> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(mut self) {
        for at in (0..self.x.len()).step_by(V::LANES) {
            self.out.store(at, self.x.load::<V>(at));
        }
    }
}
