//! Attention of packed sequences of one length, causal, bf16, forward and backward.
//!
//! Operations are counted as FlashAttention's authors do: four a score of a triangle forward, two and
//! a half times as many backward.

use super::numbers::{EPS_BF16, EPS_F32, Numbers, expect, get};
use super::{Bench, Bound, Job};
use crate::cuda::flash::{self, Plan, Saved, Shape};
use crate::cuda::{DeviceBuffer, Gpu};
use crate::error::Result;
use half::bf16;

/// Rows of queries, and keys, that are looked at.
const LOOKS: usize = 6;
/// Roundings are independent of each other: a sum is off by the root of their squares, hardly ever by
/// more than eight times as much.
const DEVIATIONS: f64 = 8.0;

/// Inputs, and what the forward pass left.
struct Case {
    len: usize,
    n_heads: usize,
    head_dim: usize,
    scale: f64,
    plan: Plan,
    q: Numbers<bf16>,
    k: Numbers<bf16>,
    v: Numbers<bf16>,
    out: DeviceBuffer<bf16>,
    lse: DeviceBuffer<f32>,
}

impl Case {
    fn new(bench: &mut Bench<'_>, batch: usize, len: usize) -> Result<Case> {
        let (gpu, n_heads, head_dim) = (bench.gpu, bench.sizes.n_heads, bench.sizes.head_dim);
        let (t, scale) = (batch * len, 1.0 / (head_dim as f32).sqrt());
        let spans = vec![len; batch];
        let shape =
            Shape { n_heads, n_kv_heads: n_heads, head_dim, scale, window: None, spans: &spans };
        let n = t * n_heads * head_dim;
        let mut numbers = || bench.pool.take::<bf16>(gpu, n);
        let (q, k, v) = (numbers()?, numbers()?, numbers()?);
        let plan = Plan::new(gpu, &shape, true)?;
        let (out, lse) = (gpu.alloc(n)?, gpu.alloc(t * n_heads)?);
        let scale = scale.into();
        let mut case = Case { len, n_heads, head_dim, scale, plan, q, k, v, out, lse };
        case.run(gpu)?;
        Ok(case)
    }

    fn run(&mut self, gpu: &Gpu) -> Result<()> {
        let rows = [self.q.floats(), self.k.floats(), self.v.floats()];
        let (out, lse) = (self.out.slice_mut().into(), self.lse.slice_mut());
        flash::forward(gpu, &self.plan, out, lse, rows)
    }

    fn rows(&self) -> usize {
        self.plan.rows()
    }

    /// Where a row's numbers of a head begin.
    fn at(&self, row: usize, head: usize) -> usize {
        (row * self.n_heads + head) * self.head_dim
    }

    /// Some rows and heads; the last row among them, and the first of the last sequence.
    fn looks(&self, bench: &mut Bench<'_>) -> Vec<(usize, usize)> {
        let t = self.rows();
        let mut looks = vec![(t - 1, self.n_heads - 1), (t - self.len, 0)];
        looks.extend((2..LOOKS).map(|_| (bench.pool.any(t), bench.pool.any(self.n_heads))));
        looks
    }

    /// Scaled score of query `i` and key `j`.
    fn score(&self, bench: &Bench<'_>, i: usize, j: usize, head: usize) -> f64 {
        let (a, b) = (self.at(i, head), self.at(j, head));
        let pool = &bench.pool;
        let dot = (0..self.head_dim).map(|d| pool.at(&self.q, a + d) * pool.at(&self.k, b + d));
        self.scale * dot.sum::<f64>()
    }

    /// Probabilities of the keys that row `i` sees, the first key first, and the sum's logarithm.
    fn probabilities(&self, bench: &Bench<'_>, i: usize, head: usize) -> (usize, Vec<f64>, f64) {
        let first = i / self.len * self.len;
        let scores: Vec<f64> = (first..=i).map(|j| self.score(bench, i, j, head)).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = most + scores.iter().map(|s| (s - most).exp()).sum::<f64>().ln();
        (first, scores.into_iter().map(|s| (s - lse).exp()).collect(), lse)
    }

    /// Looks at the forward pass' result.
    fn check(&self, bench: &mut Bench<'_>, name: &str) -> Result<()> {
        let gpu = bench.gpu;
        for (i, head) in self.looks(bench) {
            let (first, p, lse) = self.probabilities(bench, i, head);
            let at = head * self.rows() + i;
            // Scores are below 20 in size, exponentials and sums f32.
            expect(name, at, get(gpu, self.lse.slice(), at)?, lse, 64.0 * EPS_F32)?;
            for d in 0..self.head_dim {
                let terms = p
                    .iter()
                    .enumerate()
                    .map(|(j, p)| p * bench.pool.at(&self.v, self.at(first + j, head) + d));
                let (wanted, squares) = sums(terms);
                let at = self.at(i, head) + d;
                let got = get(gpu, self.out.slice(), at)?;
                expect(name, at, got, wanted, rounded(wanted, squares))?;
            }
        }
        Ok(())
    }
}

/// The sum, and that of the squares.
fn sums(terms: impl Iterator<Item = f64>) -> (f64, f64) {
    terms.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x))
}

/// How far a sum may be off whose terms were rounded to bf16, and then itself.
fn rounded(sum: f64, squares: f64) -> f64 {
    EPS_BF16 * (sum.abs() + DEVIATIONS * squares.sqrt())
}

fn job(bench: &Bench<'_>, what: &str, batch: usize, len: usize, times: f64) -> Job {
    let (n_heads, head_dim) = (bench.sizes.n_heads, bench.sizes.head_dim);
    Job {
        name: format!(
            "attention {what} bf16 causal {batch} x {len}, {n_heads} heads of {head_dim}"
        ),
        op: format!("attention_{what} {batch} {len} {n_heads} {head_dim}"),
        amount: times * 2.0 * (batch * n_heads * head_dim) as f64 * (len as f64).powi(2),
        bound: Bound::Tensor,
    }
}

/// Forward.
pub fn forward(bench: &mut Bench<'_>, batch: usize, len: usize) -> Result<()> {
    let gpu = bench.gpu;
    let mut case = Case::new(bench, batch, len)?;
    let job = job(bench, "forward", batch, len, 1.0);
    case.check(bench, &job.name)?;
    bench.measure(job, &mut || case.run(gpu))
}

/// Backward, from the gradient of the result in bf16 to those of queries, keys and values in f32.
pub fn backward(bench: &mut Bench<'_>, batch: usize, len: usize) -> Result<()> {
    let gpu = bench.gpu;
    let case = Case::new(bench, batch, len)?;
    let n = case.q.buffer.len();
    let dout = bench.pool.take::<bf16>(gpu, n)?;
    let mut grads = [gpu.alloc::<f32>(n)?, gpu.alloc::<f32>(n)?, gpu.alloc::<f32>(n)?];
    let saved = Saved {
        q: case.q.floats(),
        k: case.k.floats(),
        v: case.v.floats(),
        out: case.out.slice().into(),
        lse: case.lse.slice(),
    };
    let call = |grads: &mut [DeviceBuffer<f32>; 3]| {
        let to = grads.each_mut().map(DeviceBuffer::slice_mut);
        flash::backward(gpu, &case.plan, to, dout.floats(), saved)
    };
    call(&mut grads)?;
    let job = job(bench, "backward", batch, len, 2.5);
    Gradients::new(&case, bench, &dout)?.check(bench, &job.name, &grads)?;
    bench.measure(job, &mut || call(&mut grads))
}

/// What the gradients should be.
struct Gradients<'a> {
    case: &'a Case,
    dout: &'a Numbers<bf16>,
    /// The device's own, looked at already.
    out: Vec<bf16>,
    lse: Vec<f32>,
}

impl<'a> Gradients<'a> {
    fn new(case: &'a Case, bench: &Bench<'_>, dout: &'a Numbers<bf16>) -> Result<Gradients<'a>> {
        let mut out = vec![bf16::ZERO; case.out.len()];
        let mut lse = vec![0.0; case.lse.len()];
        bench.gpu.download(&case.out.slice(), &mut out)?;
        bench.gpu.download(&case.lse.slice(), &mut lse)?;
        Ok(Gradients { case, dout, out, lse })
    }

    /// Probability of key `j` for query `i`, and the derivative of its score.
    fn slope(&self, bench: &Bench<'_>, i: usize, j: usize, head: usize) -> (f64, f64) {
        let Gradients { case, dout, .. } = self;
        let pool = &bench.pool;
        let lse: f64 = self.lse[head * case.rows() + i].into();
        let p = (case.score(bench, i, j, head) - lse).exp();
        let (a, b) = (case.at(i, head), case.at(j, head));
        let terms = (0..case.head_dim).map(|d| {
            let difference = pool.at(&case.v, b + d) - f64::from(self.out[a + d]);
            pool.at(dout, a + d) * difference
        });
        (p, p * case.scale * terms.sum::<f64>())
    }

    fn check(
        &self,
        bench: &mut Bench<'_>,
        name: &str,
        [dq, dk, dv]: &[DeviceBuffer<f32>; 3],
    ) -> Result<()> {
        let Gradients { case, dout, .. } = self;
        let gpu = bench.gpu;
        for (i, head) in case.looks(bench) {
            let first = i / case.len * case.len;
            let keys: Vec<(f64, f64)> =
                (first..=i).map(|j| self.slope(bench, i, j, head)).collect();
            let last = first + case.len;
            let queries: Vec<(f64, f64)> =
                (i..last).map(|query| self.slope(bench, query, i, head)).collect();
            for d in 0..case.head_dim {
                let at = case.at(i, head) + d;
                let pool = &bench.pool;
                let k = |j: usize| pool.at(&case.k, case.at(first + j, head) + d);
                let q = |j: usize| pool.at(&case.q, case.at(i + j, head) + d);
                let douts = |j: usize| pool.at(dout, case.at(i + j, head) + d);
                let of_dq = sums(keys.iter().enumerate().map(|(j, (_, slope))| slope * k(j)));
                let of_dk = sums(queries.iter().enumerate().map(|(j, (_, slope))| slope * q(j)));
                let of_dv = sums(queries.iter().enumerate().map(|(j, (p, _))| p * douts(j)));
                for (what, of, (wanted, squares)) in
                    [("dq", dq, of_dq), ("dk", dk, of_dk), ("dv", dv, of_dv)]
                {
                    let got = get(gpu, of.slice(), at)?;
                    // A slope is the difference of two f32 sums over a head's width, which may be
                    // zero where both are not.
                    let slopes = case.head_dim as f64 * f64::from(f32::EPSILON);
                    let tolerance = rounded(wanted, squares) + slopes;
                    expect(&format!("{name}, {what}"), at, got, wanted, tolerance)?;
                }
            }
        }
        Ok(())
    }
}
