//! Element-wise sums and scaling.

use crate::isa::Isa;
use crate::simd::{self, Kernel, Vector, get, put};

/// `x += y`, element by element, f32. Adds; rounded once.
///
/// # Panics
/// When the lengths differ.
pub fn add_acc(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "add_acc: lengths differ");
    simd::run(isa, Add { x, y });
}

/// `x[row] += bias` for every row of `bias.len()` elements, f32. Adds; rounded once.
///
/// # Panics
/// When `x` is not whole rows.
pub fn add_bias_acc(isa: Isa, x: &mut [f32], bias: &[f32]) {
    if x.is_empty() {
        return;
    }
    assert!(
        !bias.is_empty() && x.len().is_multiple_of(bias.len()),
        "add_bias_acc: {} elements are not rows of {}",
        x.len(),
        bias.len()
    );
    simd::run(isa, AddBias { x, bias });
}

/// `x = x * factor`, f32. Overwrites; rounded once.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    simd::run(isa, Scale { x, factor });
}

struct Add<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Kernel for Add<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (x, y) in self.x.chunks_mut(V::LANES).zip(self.y.chunks(V::LANES)) {
            put(x, get::<V>(x).add(get(y)));
        }
    }
}

struct AddBias<'a> {
    x: &'a mut [f32],
    bias: &'a [f32],
}

impl Kernel for AddBias<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for row in self.x.chunks_exact_mut(self.bias.len()) {
            Add { x: row, y: self.bias }.run::<V>();
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
    fn run<V: Vector>(self) {
        let factor = V::splat(self.factor);
        for x in self.x.chunks_mut(V::LANES) {
            put(x, get::<V>(x).mul(factor));
        }
    }
}
