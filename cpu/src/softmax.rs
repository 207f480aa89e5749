//! Softmax and its normaliser over one row.

use crate::isa::Isa;
use crate::simd::{self, Kernel, Vector, exp, get_or, put};

/// `x = exp(x - max) / sum(exp(x - max))` over the whole slice.
///
/// f32; the sum runs in one vector of partial sums, so its order depends on the length alone.
/// Overwrites. -inf gives exactly 0; a row of nothing but -inf gives zeros; NaN anywhere gives
/// NaN. Error: `n / 8 + 8 + |x - max|` epsilons of each element (`tests/elementwise.rs`).
pub fn softmax(isa: Isa, x: &mut [f32]) {
    simd::run(isa, Softmax { x });
}

/// `ln(sum(exp(x)))`, computed as `max + ln(sum(exp(x - max)))`: no overflow. -inf when empty.
pub fn log_sum_exp(isa: Isa, x: &[f32]) -> f32 {
    simd::run(isa, LogSumExp { x })
}

struct Softmax<'a> {
    x: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let max = max::<V>(self.x);
        if max == f32::NEG_INFINITY {
            let nan = self.x.iter().any(|x| x.is_nan());
            self.x.fill(if nan { f32::NAN } else { 0.0 });
            return;
        }
        let shift = V::splat(max);
        let mut sum = V::splat(0.0);
        for x in self.x.chunks_mut(V::LANES) {
            let p = exp(get_or::<V>(x, f32::NEG_INFINITY).sub(shift));
            sum = sum.add(p);
            put(x, p);
        }
        let factor = V::splat(1.0 / sum.sum());
        for x in self.x.chunks_mut(V::LANES) {
            put(x, get_or::<V>(x, 0.0).mul(factor));
        }
    }
}

struct LogSumExp<'a> {
    x: &'a [f32],
}

impl Kernel for LogSumExp<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        let max = max::<V>(self.x);
        if max.is_infinite() && !self.x.iter().any(|x| x.is_nan()) {
            return max;
        }
        let shift = V::splat(max);
        let mut sum = V::splat(0.0);
        for x in self.x.chunks(V::LANES) {
            sum = sum.add(exp(get_or::<V>(x, f32::NEG_INFINITY).sub(shift)));
        }
        max + sum.sum().ln()
    }
}

#[inline(always)]
fn max<V: Vector>(x: &[f32]) -> f32 {
    let mut max = V::splat(f32::NEG_INFINITY);
    for x in x.chunks(V::LANES) {
        // `max` last: a NaN leaves it as it is.
        max = get_or::<V>(x, f32::NEG_INFINITY).max(max);
    }
    max.max_lane()
}
