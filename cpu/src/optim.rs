//! Updates of the optimisers, element by element, and the sum of squares that clipping needs.

use crate::isa::Isa;
use crate::simd::{self, Kernel, Sink, Source, Vector};

/// Settings of one [`adamw`] update. They are f64 because `1 - beta2` of a beta2 rounded to f32
/// would be wrong in the fifth digit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Part of each weight that a rate of 1 would take away.
    pub weight_decay: f64,
    /// `1 - beta1^t` at step t = 1, 2, ...
    pub bias_correction1: f64,
    /// `1 - beta2^t`.
    pub bias_correction2: f64,
    /// Factor of the gradients: that of clipping.
    pub grad_scale: f32,
}

/// Settings of one [`sgd`] update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the momentum.
    pub momentum: f64,
    /// Factor of the weights that are added to the gradients.
    pub weight_decay: f64,
    /// Factor of the gradients: that of clipping.
    pub grad_scale: f32,
}

/// One step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) as PyTorch takes it, with g
/// multiplied by `grad_scale`:
///
/// `w -= lr weight_decay w; m += (1 - beta1) (g - m); v = beta2 v + (1 - beta2) g^2;
/// w -= lr / bias_correction1 * m / (sqrt(v / bias_correction2) + eps)`.
///
/// f32; factors are formed in f64 and rounded once. Overwrites w, m and v. Element by element, so
/// any split gives the same bits. Error: 3 epsilons of `|m| + |g|` in m, 4 of v, and in w one of
/// itself and 12 of the update (`tests/optim.rs`).
///
/// # Panics
/// When the lengths differ.
pub fn adamw(isa: Isa, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], hyper: &AdamW) {
    assert_eq!(w.len(), g.len(), "adamw: w and g differ in length");
    assert_eq!(m.len(), g.len(), "adamw: m and g differ in length");
    assert_eq!(v.len(), g.len(), "adamw: v and g differ in length");
    simd::run(isa, AdamWKernel { w, m, v, g, hyper });
}

/// One step of gradient descent as PyTorch takes it, with g multiplied by `grad_scale`:
///
/// `g += weight_decay w; momentum = hyper.momentum * momentum + g; w -= lr * momentum`,
///
/// or `w -= lr * g` without momentum, whose first value is 0.
///
/// f32. Overwrites w and momentum. Error: 3 epsilons of the terms of momentum, and in w one of
/// itself and 5 of the update's terms (`tests/optim.rs`).
///
/// # Panics
/// When the lengths differ.
pub fn sgd(isa: Isa, w: &mut [f32], momentum: Option<&mut [f32]>, g: &[f32], hyper: &Sgd) {
    assert_eq!(w.len(), g.len(), "sgd: w and g differ in length");
    if let Some(momentum) = &momentum {
        assert_eq!(momentum.len(), g.len(), "sgd: momentum and g differ in length");
    }
    simd::run(isa, SgdKernel { w, momentum, g, hyper });
}

/// `sum(x^2)`: in f32 in four vectors of partial sums over each 1024 elements, and over those
/// blocks in f64. Its order depends on the length alone, and slices of whole blocks can be summed
/// apart. Error: 40 epsilons of f32 (`tests/optim.rs`).
pub fn sum_of_squares(isa: Isa, x: &[f32]) -> f64 {
    simd::run(isa, SumOfSquares { x })
}

struct AdamWKernel<'a> {
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    g: &'a [f32],
    hyper: &'a AdamW,
}

impl Kernel for AdamWKernel<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let AdamWKernel { mut w, mut m, mut v, g, hyper } = self;
        let splat = |x: f64| V::splat(x as f32);
        let grad_scale = V::splat(hyper.grad_scale);
        let keep = splat(1.0 - hyper.lr * hyper.weight_decay);
        let (new1, beta2, new2) =
            (splat(1.0 - hyper.beta1), splat(hyper.beta2), splat(1.0 - hyper.beta2));
        let root = splat(1.0 / hyper.bias_correction2.sqrt());
        let eps = splat(hyper.eps);
        let step = splat(-hyper.lr / hyper.bias_correction1);
        for at in (0..g.len()).step_by(V::LANES) {
            let g = g.load::<V>(at).mul(grad_scale);
            let old = m.load::<V>(at);
            let first = g.sub(old).mul_add(new1, old);
            let second = v.load::<V>(at).mul(beta2).add(g.mul(g).mul(new2));
            m.store(at, first);
            v.store(at, second);
            let direction = first.div(second.sqrt().mul_add(root, eps));
            w.store(at, direction.mul_add(step, w.load::<V>(at).mul(keep)));
        }
    }
}

struct SgdKernel<'a> {
    w: &'a mut [f32],
    momentum: Option<&'a mut [f32]>,
    g: &'a [f32],
    hyper: &'a Sgd,
}

impl Kernel for SgdKernel<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let SgdKernel { mut w, mut momentum, g, hyper } = self;
        let splat = |x: f64| V::splat(x as f32);
        let grad_scale = V::splat(hyper.grad_scale);
        let (decay, keep, step) =
            (splat(hyper.weight_decay), splat(hyper.momentum), splat(-hyper.lr));
        for at in (0..g.len()).step_by(V::LANES) {
            let old = w.load::<V>(at);
            let mut direction = old.mul_add(decay, g.load::<V>(at).mul(grad_scale));
            if let Some(momentum) = &mut momentum {
                direction = momentum.load::<V>(at).mul_add(keep, direction);
                momentum.store(at, direction);
            }
            w.store(at, direction.mul_add(step, old));
        }
    }
}

struct SumOfSquares<'a> {
    x: &'a [f32],
}

impl Kernel for SumOfSquares<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<V: Vector>(self) -> f64 {
        let mut total = 0.0;
        for block in self.x.chunks(1024) {
            let mut sums = [V::splat(0.0); 4];
            for quad in block.chunks(4 * V::LANES) {
                for (sum, x) in sums.iter_mut().zip(quad.chunks(V::LANES)) {
                    let x = simd::get::<V>(x);
                    *sum = x.mul_add(x, *sum);
                }
            }
            let [a, b, c, d] = sums;
            total += f64::from(a.add(b).add(c.add(d)).sum());
        }
        total
    }
}
