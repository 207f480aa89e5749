//! Causal attention of packed sequences and its gradient, row by row.

/// Shapes of [`attention_rows`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionRowsShape<'a> {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads: a divisor of `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Key j is visible to the query at p when `p - window < j <= p`.
    pub window: Option<usize>,
    /// Lengths of the sequences packed one after the other.
    pub spans: &'a [usize],
}

impl AttentionRowsShape<'_> {
    /// For each row of each head: where its query starts, where the keys it sees start.
    fn rows(&self) -> Vec<(usize, Vec<usize>)> {
        let (mut rows, mut start) = (vec![], 0);
        for &len in self.spans {
            for pos in 0..len {
                let first = self.window.map_or(0, |w| (pos + 1).saturating_sub(w));
                for head in 0..self.n_heads {
                    let kv = head / (self.n_heads / self.n_kv_heads);
                    let key = |j| ((start + j) * self.n_kv_heads + kv) * self.head_dim;
                    let query = ((start + pos) * self.n_heads + head) * self.head_dim;
                    rows.push((query, (first..=pos).map(key).collect()));
                }
            }
            start += len;
        }
        rows
    }

    /// The logarithm of the sum of a row's exponentials, and its probabilities.
    fn softmax(&self, q: &[f64], k: &[f64], query: usize, keys: &[usize]) -> (f64, Vec<f64>) {
        let scores: Vec<f64> =
            keys.iter().map(|&key| self.scale * self.dot(&q[query..], &k[key..])).collect();
        let max = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
        let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
        (lse, scores.iter().map(|s| (s - lse).exp()).collect())
    }

    fn dot(&self, a: &[f64], b: &[f64]) -> f64 {
        a[..self.head_dim].iter().zip(b).map(|(a, b)| a * b).sum()
    }
}

/// `out` `[t, n_heads, head_dim]` and `lse` `[n_heads, t]` of q `[t, n_heads, head_dim]`, k and v
/// `[t, n_kv_heads, head_dim]`.
pub fn attention_rows(
    shape: &AttentionRowsShape<'_>,
    q: &[f64],
    k: &[f64],
    v: &[f64],
) -> [Vec<f64>; 2] {
    let t: usize = shape.spans.iter().sum();
    let (mut out, mut lses) = (vec![0.0; q.len()], vec![0.0; t * shape.n_heads]);
    for (row, (query, keys)) in shape.rows().into_iter().enumerate() {
        let (lse, p) = shape.softmax(q, k, query, &keys);
        lses[row % shape.n_heads * t + row / shape.n_heads] = lse;
        for (key, p) in keys.into_iter().zip(p) {
            for d in 0..shape.head_dim {
                out[query + d] += p * v[key + d];
            }
        }
    }
    [out, lses]
}

/// Gradients dq, dk and dv of [`attention_rows`] for the gradient `dout` of its out.
///
/// `ds[j] = p[j] (dp[j] - sum of p dp)` with `dp[j] = dout . v[j]`: the derivative of softmax.
pub fn attention_rows_bwd(
    shape: &AttentionRowsShape<'_>,
    dout: &[f64],
    q: &[f64],
    k: &[f64],
    v: &[f64],
) -> [Vec<f64>; 3] {
    gradients(shape, [dout, q, k, v], -1.0, std::convert::identity)
}

/// The sums of [`attention_rows_bwd`] with the absolute values of all terms: what the rounding
/// errors of a gradient are multiples of.
pub fn attention_rows_bwd_sizes(
    shape: &AttentionRowsShape<'_>,
    dout: &[f64],
    q: &[f64],
    k: &[f64],
    v: &[f64],
) -> [Vec<f64>; 3] {
    gradients(shape, [dout, q, k, v], 1.0, f64::abs)
}

fn gradients(
    shape: &AttentionRowsShape<'_>,
    [dout, q, k, v]: [&[f64]; 4],
    sign: f64,
    term: fn(f64) -> f64,
) -> [Vec<f64>; 3] {
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for (query, keys) in shape.rows() {
        let (_, p) = shape.softmax(q, k, query, &keys);
        let dot = |key: &usize| -> f64 {
            let terms = dout[query..].iter().zip(&v[*key..]).take(shape.head_dim);
            terms.map(|(a, b)| term(a * b)).sum()
        };
        let dp: Vec<f64> = keys.iter().map(dot).collect();
        let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
        for ((&key, p), dp) in keys.iter().zip(p).zip(dp) {
            let ds = p * (dp + sign * mean) * shape.scale;
            for d in 0..shape.head_dim {
                dv[key + d] += term(p * dout[query + d]);
                dq[query + d] += term(ds * k[key + d]);
                dk[key + d] += term(ds * q[query + d]);
            }
        }
    }
    [dq, dk, dv]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Gen;

    #[test]
    fn the_gradient_agrees_with_central_differences() {
        let shape = AttentionRowsShape {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 3,
            scale: 0.7,
            window: Some(4),
            spans: &[1, 7, 3],
        };
        let mut data = Gen::new(5);
        let mut numbers = |n: usize| -> Vec<f64> { (0..n).map(|_| data.normal().into()).collect() };
        let (n, m) = (11 * 4 * 3, 11 * 2 * 3);
        let dout = numbers(n);
        let mut inputs = [numbers(n), numbers(m), numbers(m)];
        let [q, k, v] = &inputs;
        let grads = attention_rows_bwd(&shape, &dout, q, k, v);
        let loss = |[q, k, v]: &[Vec<f64>; 3]| -> f64 {
            let [out, _] = attention_rows(&shape, q, k, v);
            out.iter().zip(&dout).map(|(a, b)| a * b).sum()
        };
        let h = 1e-5;
        for which in 0..3 {
            let size = grads[which].iter().fold(0.0f64, |m, g| m.max(g.abs()));
            assert!(size > 0.1, "gradient {which} is as good as zero");
            for i in 0..inputs[which].len() {
                let x = inputs[which][i];
                inputs[which][i] = x + h;
                let above = loss(&inputs);
                inputs[which][i] = x - h;
                let below = loss(&inputs);
                inputs[which][i] = x;
                let want = (above - below) / (2.0 * h);
                // The error of the differences is h^2 times third derivatives, which are of
                // the order of 100 here, and 1e-15 / h of rounding.
                let far = (grads[which][i] - want).abs();
                assert!(far < 1e-7, "input {which}, [{i}]: {} and {want}", grads[which][i]);
            }
        }
    }
}
