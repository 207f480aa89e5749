//! Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467).

use crate::isa::Isa;
use crate::simd::{self, Kernel, Vector, get, put};

/// `out = w * (x / sqrt(mean(x^2) + eps))` for every row of `w.len()` elements.
///
/// f32 in, out and in between; the sum of squares runs in four vectors of partial sums, so its
/// order depends on the row's length alone. Overwrites. Error: at most
/// `(n / 32 + 8)` epsilons of each element for rows of n (`tests/elementwise.rs`).
///
/// # Panics
/// When `out` and `x` differ in length or are not whole rows.
pub fn rms_norm(isa: Isa, out: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    assert_eq!(out.len(), x.len(), "rms_norm: out and x differ in length");
    if x.is_empty() {
        return;
    }
    assert!(
        !w.is_empty() && x.len().is_multiple_of(w.len()),
        "rms_norm: {} elements are not rows of {}",
        x.len(),
        w.len()
    );
    simd::run(isa, RmsNorm { out, x, w, eps });
}

struct RmsNorm<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let n = self.w.len();
        for (out, x) in self.out.chunks_exact_mut(n).zip(self.x.chunks_exact(n)) {
            let mean = sum_of_squares::<V>(x) / n as f32;
            let factor = V::splat(1.0 / (mean + self.eps).sqrt());
            let rows = out.chunks_mut(V::LANES).zip(x.chunks(V::LANES));
            for ((out, x), w) in rows.zip(self.w.chunks(V::LANES)) {
                put(out, get::<V>(x).mul(factor).mul(get(w)));
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares<V: Vector>(x: &[f32]) -> f32 {
    let mut sums = [V::splat(0.0); 4];
    for quad in x.chunks(4 * V::LANES) {
        for (sum, x) in sums.iter_mut().zip(quad.chunks(V::LANES)) {
            let x = get::<V>(x);
            *sum = x.mul_add(x, *sum);
        }
    }
    let [a, b, c, d] = sums;
    a.add(b).add(c.add(d)).sum()
}
