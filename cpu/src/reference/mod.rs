//! Every kernel as plain loops in f64: the truth that tests measure the fast ones against.
//!
//! Functions that tests differentiate take f32 or f64, so that steps can be finer than f32.

mod attention_rows;
mod nf4;
mod training;

pub use attention_rows::{
    AttentionRowsShape, attention_rows, attention_rows_bwd, attention_rows_bwd_sizes,
};
pub use nf4::{nf4_decode, nf4_encode, nf4_nested};
pub use training::{adamw, cross_entropy, differences, sgd};

/// `out[m, n] = x[m, k] w[n, k]^T`.
///
/// # Panics
/// When the lengths do not fit `k` and each other.
pub fn matmul(out: &mut [f64], x: &[f32], w: &[f32], k: usize) {
    assert!(k > 0 && x.len().is_multiple_of(k) && w.len().is_multiple_of(k));
    let n = w.len() / k;
    assert_eq!(out.len(), x.len() / k * n);
    for (i, row) in x.chunks(k).enumerate() {
        for (j, col) in w.chunks(k).enumerate() {
            out[i * n + j] = row.iter().zip(col).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        }
    }
}

/// `w * x / sqrt(mean(x^2) + eps)` for each row of `w.len()` elements.
pub fn rms_norm<T: Into<f64> + Copy>(x: &[T], w: &[T], eps: f32) -> Vec<f64> {
    let mut out = vec![];
    for row in x.chunks(w.len().max(1)) {
        let squares: f64 = row.iter().map(|&x| x.into() * x.into()).sum();
        let norm = (squares / row.len() as f64 + f64::from(eps)).sqrt();
        out.extend(row.iter().zip(w).map(|(&x, &w)| x.into() / norm * w.into()));
    }
    out
}

/// `gate / (1 + exp(-gate)) * up`.
pub fn swiglu<T: Into<f64> + Copy>(gate: &[T], up: &[T]) -> Vec<f64> {
    let one = |(&g, &u): (&T, &T)| {
        let g: f64 = g.into();
        g / (1.0 + (-g).exp()) * u.into()
    };
    gate.iter().zip(up).map(one).collect()
}

/// `exp(x) / sum(exp(x))`.
pub fn softmax(x: &[f32]) -> Vec<f64> {
    let total = log_sum_exp(x);
    x.iter().map(|&x| (f64::from(x) - total).exp()).collect()
}

/// `ln(sum(exp(x)))`.
pub fn log_sum_exp<T: Into<f64> + Copy>(x: &[T]) -> f64 {
    let max = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x.into()));
    let sum: f64 = x.iter().map(|&x| (x.into() - max).exp()).sum();
    max + sum.ln()
}

/// Rotates each pair of each head by its angle, given as cosine and sine; `half` says whether the
/// partner of element j is `j + rope_dim / 2` or the neighbour.
pub fn rope<T: Into<f64> + Copy>(
    x: &[T],
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
    half: bool,
) -> Vec<f64> {
    let mut out: Vec<f64> = x.iter().map(|&x| x.into()).collect();
    for head in out.chunks_mut(head_dim) {
        for j in 0..cos.len() {
            let (a, b) = if half { (j, j + cos.len()) } else { (2 * j, 2 * j + 1) };
            let (c, s) = (f64::from(cos[j]), f64::from(sin[j]));
            (head[a], head[b]) = (head[a] * c - head[b] * s, head[b] * c + head[a] * s);
        }
    }
    out
}

/// What [`attention`] takes besides queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads: a divisor of `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Key j is visible to the query at p when `p - window < j <= p`.
    pub window: Option<usize>,
    /// Position of the first query.
    pub first_pos: usize,
}

/// Causal attention: q `[t, n_heads, head_dim]`, k and v `[s, n_kv_heads, head_dim]` with
/// `s >= first_pos + t`; gives `[t, n_heads, head_dim]`.
pub fn attention(shape: &AttentionShape, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let &AttentionShape { n_heads, n_kv_heads, head_dim, scale, window, first_pos } = shape;
    let mut out = vec![0.0; q.len()];
    for (row, (q, out)) in q.chunks(head_dim).zip(out.chunks_mut(head_dim)).enumerate() {
        let pos = first_pos + row / n_heads;
        let head = row % n_heads / (n_heads / n_kv_heads);
        let first = window.map_or(0, |w| (pos + 1).saturating_sub(w));
        let at =
            |x: &[f32], j: usize, d: usize| f64::from(x[(j * n_kv_heads + head) * head_dim + d]);
        let dot = |j| (0..head_dim).map(|d| f64::from(q[d]) * at(k, j, d)).sum::<f64>();
        let scores: Vec<f64> = (first..=pos).map(|j| dot(j) * f64::from(scale)).collect();
        let max = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        for (j, s) in (first..=pos).zip(&scores) {
            for (d, o) in out.iter_mut().enumerate() {
                *o += (s - max).exp() / sum * at(v, j, d);
            }
        }
    }
    out
}
