//! What training adds to the reference: the loss, the optimisers' updates, and gradients by
//! central differences.

use super::log_sum_exp;

/// The gradient of `f` at `x` by central differences, with steps of 1e-5 of each element (of 1 at
/// least): about 9 digits for functions of moderate size and curvature.
pub fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut at = x.to_vec();
    let mut slope = |i: usize| {
        let step = 1e-5 * x[i].abs().max(1.0);
        at[i] = x[i] + step;
        let above = f(&at);
        at[i] = x[i] - step;
        let below = f(&at);
        at[i] = x[i];
        (above - below) / (2.0 * step)
    };
    (0..x.len()).map(&mut slope).collect()
}

/// `ln(sum(exp(x))) - x[label]` for each row of v logits; 0 where there is no label.
pub fn cross_entropy<T: Into<f64> + Copy>(
    logits: &[T],
    v: usize,
    labels: &[Option<u32>],
) -> Vec<f64> {
    let row = |(row, label): (&[T], &Option<u32>)| match label {
        Some(label) => log_sum_exp(row) - row[*label as usize].into(),
        None => 0.0,
    };
    logits.chunks(v).zip(labels).map(row).collect()
}

/// One step of AdamW on one weight: `(w, m, v)` before and after. `t` counts from 1.
pub fn adamw(
    state: (f64, f64, f64),
    g: f64,
    (lr, weight_decay): (f64, f64),
    (beta1, beta2, eps): (f64, f64, f64),
    t: i32,
) -> (f64, f64, f64) {
    let (mut w, m, v) = state;
    w -= lr * weight_decay * w;
    let m = beta1 * m + (1.0 - beta1) * g;
    let v = beta2 * v + (1.0 - beta2) * g * g;
    let (first, second) = (m / (1.0 - beta1.powi(t)), v / (1.0 - beta2.powi(t)));
    (w - lr * first / (second.sqrt() + eps), m, v)
}

/// One step of gradient descent on one weight: `(w, momentum)` before and after.
pub fn sgd(
    (w, buffer): (f64, f64),
    g: f64,
    lr: f64,
    momentum: f64,
    weight_decay: f64,
) -> (f64, f64) {
    let buffer = momentum * buffer + g + weight_decay * w;
    (w - lr * buffer, buffer)
}
