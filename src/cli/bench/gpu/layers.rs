//! Products and the kernels that go over rows once: buffers, one look at the result, the time.

use super::numbers::{EPS_BF16, EPS_F32, expect, get};
use super::{Bench, Bound, Job};
use crate::cuda::matmul::{FEW_ROWS, Factor, Precision, Product, gemm};
use crate::cuda::{
    DeviceBuffer, cross_entropy as loss, lora as adapter, optim, rms_norm as norm,
    swiglu as activation,
};
use crate::error::Result;
use half::bf16;
use puna_cpu::optim::AdamW;

/// How the factors of a product are stored, the second letter for the second: plainly or transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The gradient of a layer's input, `dy w`.
    Nn,
    /// A layer, `x wᵀ`.
    Nt,
    /// The gradient of its weight, `dyᵀ x`.
    Tn,
}

/// Buffer to buffer: the bound of what memory bounds, read and written bytes both counted.
pub fn copy(bench: &mut Bench<'_>) -> Result<()> {
    let (gpu, bytes) = (bench.gpu, bench.sizes.copy_bytes);
    let from = bench.pool.take::<f32>(gpu, bytes / 4)?;
    let mut to = gpu.alloc::<f32>(bytes / 4)?;
    gpu.copy(&mut to.slice_mut(), &from.slice())?;
    for i in bench.pool.some(bytes / 4) {
        expect("copy", i, get(gpu, to.slice(), i)?, bench.pool.at(&from, i), 0.0)?;
    }
    let job = Job {
        name: format!("copy {bytes}"),
        op: format!("copy {bytes}"),
        amount: 2.0 * bytes as f64,
        bound: Bound::Copy,
    };
    bench.measure(job, &mut || gpu.copy(&mut to.slice_mut(), &from.slice()))
}

/// `out [m, n]` of factors stored as the form says, all bf16.
pub fn product(bench: &mut Bench<'_>, form: Form, m: usize, n: usize, k: usize) -> Result<()> {
    let gpu = bench.gpu;
    let (a, b) = (bench.pool.take::<bf16>(gpu, m * k)?, bench.pool.take::<bf16>(gpu, k * n)?);
    let mut out = gpu.alloc::<bf16>(m * n)?;
    let (turned_a, turned_b) = (form == Form::Tn, form == Form::Nt);
    let factor = |x, turned, rows, cols| {
        if turned { Factor::plain(x, cols, rows).t() } else { Factor::plain(x, rows, cols) }
    };
    let (a_stored, b_stored) =
        (factor(a.floats(), turned_a, m, k), factor(b.floats(), turned_b, k, n));
    let call = |out: &mut DeviceBuffer<bf16>| {
        gemm(gpu, Product::new(Precision::Bf16, out.slice_mut().into(), a_stored, b_stored))
    };
    call(&mut out)?;
    let form = format!("{form:?}").to_lowercase();
    let name = format!("matmul {form} bf16 {m} x {n} x {k}");
    for at in bench.pool.some(m * n) {
        let (i, j) = (at / n, at % n);
        let terms = (0..k).map(|l| {
            let x = bench.pool.at(&a, if turned_a { l * m + i } else { i * k + l });
            x * bench.pool.at(&b, if turned_b { j * k + l } else { l * n + j })
        });
        let (wanted, sizes) = terms.fold((0.0, 0.0), |(sum, all), x| (sum + x, all + x.abs()));
        // Every order of f32 sums is within this of the truth; then the result is rounded.
        let tolerance = k as f64 * EPS_F32 * sizes + EPS_BF16 * wanted.abs();
        expect(&name, at, get(gpu, out.slice(), at)?, wanted, tolerance)?;
    }
    let (amount, bound) = match m {
        ..=FEW_ROWS => (2.0 * (m * k + k * n + m * n) as f64, Bound::Copy),
        _ => (2.0 * (m * n) as f64 * k as f64, Bound::Tensor),
    };
    let job = Job { op: format!("matmul {form} {m} {n} {k}"), name, amount, bound };
    bench.measure(job, &mut || call(&mut out))
}

/// `y = x wᵀ + s (x aᵀ) bᵀ`: a layer with its adapter, x [m, k], w [n, k], all bf16.
pub fn lora(bench: &mut Bench<'_>, m: usize, n: usize, k: usize) -> Result<()> {
    let (gpu, r, scale) = (bench.gpu, bench.sizes.rank, 0.5);
    let [x, w] = [m * k, n * k].map(|len| bench.pool.take::<bf16>(gpu, len));
    let [a, b] = [r * k, n * r].map(|len| bench.pool.take::<bf16>(gpu, len));
    let (x, w, a, b) = (x?, w?, a?, b?);
    let (mut y, mut u) = (gpu.alloc::<bf16>(m * n)?, gpu.alloc::<f32>(m * r)?);
    let layer = adapter::Layer {
        w: adapter::Weight::Stored(Factor::plain(w.floats(), n, k)),
        bias: None,
        a: Factor::plain(a.floats(), r, k),
        b: Factor::plain(b.floats(), n, r),
        scale,
        precision: Precision::Bf16,
    };
    let rows = Factor::plain(x.floats(), m, k);
    adapter::forward(gpu, y.slice_mut().into(), u.slice_mut(), rows, &layer)?;
    let name = format!("lora bf16 r {r} {m} x {n} x {k}");
    for at in bench.pool.some(m * n) {
        let (i, j) = (at / n, at % n);
        let pool = &bench.pool;
        let dot = |f: &dyn Fn(usize) -> f64| {
            (0..k).map(f).fold((0.0, 0.0), |(sum, all), x| (sum + x, all + x.abs()))
        };
        let (own, own_sizes) = dot(&|l| pool.at(&x, i * k + l) * pool.at(&w, j * k + l));
        let (mut wanted, mut sizes, mut roundings) = (own, own_sizes, 0.0);
        for c in 0..r {
            let (inner, inner_sizes) = dot(&|l| pool.at(&x, i * k + l) * pool.at(&a, c * k + l));
            let by = f64::from(scale) * pool.at(&b, j * r + c);
            wanted += inner * by;
            sizes += inner_sizes * by.abs();
            roundings += (inner * by).abs();
        }
        // As of a product; and x aᵀ is rounded before it meets b.
        let tolerance = (k + r) as f64 * EPS_F32 * sizes + EPS_BF16 * (roundings + wanted.abs());
        expect(&name, at, get(gpu, y.slice(), at)?, wanted, tolerance)?;
    }
    let job = Job {
        op: format!("lora {r} {m} {n} {k}"),
        name,
        amount: 2.0 * m as f64 * (n * k + r * k + r * n) as f64,
        bound: Bound::Tensor,
    };
    bench.measure(job, &mut || {
        adapter::forward(gpu, y.slice_mut().into(), u.slice_mut(), rows, &layer)
    })
}

/// Rows of bf16.
pub fn rms_norm(bench: &mut Bench<'_>, rows: usize, dim: usize) -> Result<()> {
    let (gpu, eps) = (bench.gpu, 1e-5);
    let x = bench.pool.take::<bf16>(gpu, rows * dim)?;
    let w = bench.pool.take::<f32>(gpu, dim)?;
    let mut out = gpu.alloc::<bf16>(rows * dim)?;
    norm::rms_norm(gpu, out.slice_mut().into(), x.floats(), w.slice(), eps)?;
    let name = format!("rms_norm bf16 {rows} x {dim}");
    for at in bench.pool.some(rows * dim) {
        let row = at / dim * dim;
        let squares = (row..row + dim).map(|i| bench.pool.at(&x, i).powi(2)).sum::<f64>();
        let root = (squares / dim as f64 + f64::from(eps)).sqrt();
        let wanted = bench.pool.at(&w, at % dim) * bench.pool.at(&x, at) / root;
        // The bound that `rms_norm` states.
        let tolerance = (EPS_BF16 + (dim as f64 / 256.0 + 24.0) * EPS_F32) * wanted.abs();
        expect(&name, at, get(gpu, out.slice(), at)?, wanted, tolerance)?;
    }
    let job = Job {
        op: format!("rms_norm {rows} {dim}"),
        name,
        amount: (4 * rows * dim) as f64,
        bound: Bound::Copy,
    };
    bench.measure(job, &mut || {
        norm::rms_norm(gpu, out.slice_mut().into(), x.floats(), w.slice(), eps)
    })
}

/// Rows of bf16.
pub fn swiglu(bench: &mut Bench<'_>, rows: usize, dim: usize) -> Result<()> {
    let (gpu, n) = (bench.gpu, rows * dim);
    let [gate, up] = [n, n].map(|len| bench.pool.take::<bf16>(gpu, len));
    let (gate, up) = (gate?, up?);
    let mut out = gpu.alloc::<bf16>(n)?;
    activation::swiglu(gpu, out.slice_mut().into(), gate.floats(), up.floats())?;
    let name = format!("swiglu bf16 {rows} x {dim}");
    for at in bench.pool.some(n) {
        let x = bench.pool.at(&gate, at);
        let wanted = x / (1.0 + (-x).exp()) * bench.pool.at(&up, at);
        // The bound that `swiglu` states.
        let tolerance = (EPS_BF16 + 12.0 * EPS_F32) * wanted.abs();
        expect(&name, at, get(gpu, out.slice(), at)?, wanted, tolerance)?;
    }
    let job = Job {
        op: format!("swiglu {rows} {dim}"),
        name,
        amount: (6 * n) as f64,
        bound: Bound::Copy,
    };
    bench.measure(job, &mut || {
        activation::swiglu(gpu, out.slice_mut().into(), gate.floats(), up.floats())
    })
}

/// Rows of f32 logits, scored and turned into their gradient in place.
pub fn cross_entropy(bench: &mut Bench<'_>, rows: usize, vocab: usize) -> Result<()> {
    let (gpu, factor) = (bench.gpu, 0.25f32);
    let mut logits = bench.pool.take::<f32>(gpu, rows * vocab)?;
    let labels: Vec<i32> = (0..rows).map(|_| bench.pool.any(vocab) as i32).collect();
    let (on_gpu, factors) = (gpu.upload(&labels)?, gpu.upload(&vec![factor; rows])?);
    let mut scores = gpu.alloc::<f32>(rows * loss::SCORES)?;
    let call = |logits: &mut DeviceBuffer<f32>, scores: &mut DeviceBuffer<f32>| {
        let factors = Some(factors.slice());
        loss::cross_entropy(gpu, logits.slice_mut(), scores.slice_mut(), on_gpu.slice(), factors)
    };
    call(&mut logits.buffer, &mut scores)?;
    let name = format!("cross_entropy f32 {rows} x {vocab}");
    for row in [0, rows / 2, rows - 1] {
        let x = |i: usize| bench.pool.at(&logits, row * vocab + i);
        let sum: f64 = (0..vocab).map(|i| x(i).exp()).sum();
        let most = (0..vocab).map(x).fold(f64::NEG_INFINITY, f64::max);
        let label = labels[row] as usize;
        let nll = sum.ln() - x(label);
        // The bounds that `cross_entropy` states.
        let tolerance = (16.0 + 2.0 * (x(label) - most).abs() + nll) * EPS_F32;
        let got = get(gpu, scores.slice(), row * loss::SCORES)?;
        expect(&name, row, got, nll, tolerance)?;
        for i in [label, 0, vocab - 1] {
            let share = f64::from(factor) * x(i).exp() / sum;
            let one = if i == label { f64::from(factor) } else { 0.0 };
            let at = row * vocab + i;
            let tolerance = EPS_F32 * ((24.0 + 2.0 * (x(i) - most).abs()) * share + 2.0 * one);
            let got = get(gpu, logits.slice(), at)?;
            expect(&name, at, got, share - one, tolerance)?;
        }
    }
    let job = Job {
        op: format!("cross_entropy {rows} {vocab}"),
        name,
        amount: (8 * rows * vocab) as f64,
        bound: Bound::Copy,
    };
    bench.measure(job, &mut || call(&mut logits.buffer, &mut scores))
}

/// One tensor of `n` weights, all f32.
pub fn adamw(bench: &mut Bench<'_>, n: usize) -> Result<()> {
    let gpu = bench.gpu;
    let mut w = bench.pool.take::<f32>(gpu, n)?;
    let grad = bench.pool.take::<f32>(gpu, n)?;
    let (mut m, mut v) = (gpu.alloc::<f32>(n)?, gpu.alloc::<f32>(n)?);
    gpu.fill_zero(&mut m.slice_mut())?;
    gpu.fill_zero(&mut v.slice_mut())?;
    let hyper = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        bias_correction1: 1.0 - 0.9,
        bias_correction2: 1.0 - 0.999,
        grad_scale: 1.0,
    };
    let call = |[value, m, v]: [&mut DeviceBuffer<f32>; 3]| {
        let [value, m, v] = [value, m, v].map(DeviceBuffer::slice_mut);
        let tensor = optim::AdamWTensor { value, low: None, m, v, grad: grad.slice(), hyper };
        optim::adamw(gpu, [tensor])
    };
    call([&mut w.buffer, &mut m, &mut v])?;
    let name = format!("adamw f32 {n}");
    for i in bench.pool.some(n) {
        let (before, g) = (bench.pool.at(&w, i), bench.pool.at(&grad, i));
        // The first step's moments, corrected, are the gradient and its square.
        let step = hyper.lr * g / (g.abs() + hyper.eps);
        let wanted = before * (1.0 - hyper.lr * hyper.weight_decay) - step;
        // The bound that `puna_cpu::optim::adamw` states.
        let tolerance = EPS_F32 * (wanted.abs() + 12.0 * step.abs());
        expect(&name, i, get(gpu, w.slice(), i)?, wanted, tolerance)?;
    }
    let job = Job { op: format!("adamw {n}"), name, amount: (28 * n) as f64, bound: Bound::Copy };
    bench.measure(job, &mut || call([&mut w.buffer, &mut m, &mut v]))
}
