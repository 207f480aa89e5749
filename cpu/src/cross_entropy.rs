//! Cross-entropy of rows of logits with one right answer each, fused with its gradient.

use crate::isa::Isa;
use crate::simd::{self, Kernel, Vector, exp, get_or, put};

/// Logits whose exponentials are summed in f32 before the sum goes on in f64: keeps the error of a
/// row free of the vocabulary's size.
const BLOCK: usize = 2048;

/// For each row of `logits` [rows, v] with label l: `nll = ln(sum(exp(x))) - x[l]`, `correct` =
/// whether l is the first of the largest logits, and with `want_grad` the logits become their
/// gradient `(softmax(x) - onehot(l)) * scale`. Rows with label `None` give 0 and false, and
/// gradients of zero. Without `want_grad` the logits stay.
///
/// f32; `ln(sum(exp(x - max))) + max`, so no logit is too large. The sum runs in four vectors of
/// partial sums over each 2048 logits and over those blocks in f64: its order depends on v alone.
/// Overwrites. Error of nll: `80 + 2 |x[l] - max|` epsilons plus one of itself; of a gradient:
/// `(80 + |x - max|)` epsilons of `softmax(x) * scale`, and one of `scale` at the label
/// (`tests/gradients_loss.rs`). A NaN, an infinity, or nothing but -inf makes `nll` and the row's
/// gradient NaN.
///
/// # Panics
/// When the lengths do not fit each other, or a label is not below v.
pub fn cross_entropy_rows(
    isa: Isa,
    logits: &mut [f32],
    labels: &[Option<u32>],
    scale: f32,
    nll: &mut [f32],
    correct: &mut [bool],
    want_grad: bool,
) {
    let n_rows = labels.len();
    assert_eq!(nll.len(), n_rows, "cross_entropy_rows: nll and labels differ in length");
    assert_eq!(correct.len(), n_rows, "cross_entropy_rows: correct and labels differ in length");
    if n_rows == 0 {
        assert!(logits.is_empty(), "cross_entropy_rows: logits without labels");
        return;
    }
    assert!(
        logits.len().is_multiple_of(n_rows),
        "cross_entropy_rows: {} logits are not {n_rows} rows",
        logits.len()
    );
    let v = logits.len() / n_rows;
    for (row, &label) in labels.iter().enumerate() {
        let x = &mut logits[row * v..(row + 1) * v];
        (nll[row], correct[row]) = match label {
            None => {
                if want_grad {
                    x.fill(0.0);
                }
                (0.0, false)
            }
            Some(label) => {
                let label = label as usize;
                assert!(label < v, "cross_entropy_rows: label {label} of {v} logits");
                simd::run(isa, CrossEntropy { x, label, scale, want_grad })
            }
        };
    }
}

struct CrossEntropy<'a> {
    x: &'a mut [f32],
    label: usize,
    scale: f32,
    want_grad: bool,
}

impl Kernel for CrossEntropy<'_> {
    /// Negative log-likelihood; whether the label is the prediction.
    type Out = (f32, bool);
    #[inline(always)]
    fn run<V: Vector>(self) -> (f32, bool) {
        let CrossEntropy { x, label, scale, want_grad } = self;
        let max = max::<V>(x);
        let at_label = x[label];
        let correct = at_label == max && !x[..label].contains(&max);
        let mut sum = 0.0f64;
        for block in x.chunks_mut(BLOCK) {
            sum += f64::from(exponentials::<V>(block, max, want_grad));
        }
        let nll = ((f64::from(max) - f64::from(at_label)) + sum.ln()) as f32;
        if want_grad {
            let factor = V::splat((f64::from(scale) / sum) as f32);
            for x in x.chunks_mut(V::LANES) {
                put(x, get_or::<V>(x, 0.0).mul(factor));
            }
            x[label] -= scale;
        }
        (nll, correct)
    }
}

/// `sum(exp(x - max))`; with `keep` the terms replace x.
#[inline(always)]
fn exponentials<V: Vector>(x: &mut [f32], max: f32, keep: bool) -> f32 {
    let shift = V::splat(max);
    let mut sums = [V::splat(0.0); 4];
    for quad in x.chunks_mut(4 * V::LANES) {
        for (sum, x) in sums.iter_mut().zip(quad.chunks_mut(V::LANES)) {
            let term = exp(get_or::<V>(x, f32::NEG_INFINITY).sub(shift));
            *sum = sum.add(term);
            if keep {
                put(x, term);
            }
        }
    }
    let [a, b, c, d] = sums;
    a.add(b).add(c.add(d)).sum()
}

#[inline(always)]
fn max<V: Vector>(x: &[f32]) -> f32 {
    let mut maxima = [V::splat(f32::NEG_INFINITY); 4];
    for quad in x.chunks(4 * V::LANES) {
        for (max, x) in maxima.iter_mut().zip(quad.chunks(V::LANES)) {
            *max = get_or::<V>(x, f32::NEG_INFINITY).max(*max);
        }
    }
    let [a, b, c, d] = maxima;
    a.max(b).max(c.max(d)).max_lane()
}
