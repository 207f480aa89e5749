//! RMSNorm on the device against f64, forward and backward.

use half::bf16;
use puna::cuda::rms_norm::{RmsNormSaved, rms_norm, rms_norm_bwd};
use puna::cuda::{Floats, FloatsMut, Gpu};
use puna::rng::Rng;

use crate::support::{
    EPS_BF16, EPS_F32, Failures, from_bf16, gpu, guarded, normals, to_bf16, to_f64,
};

const NORM_EPS: f32 = 1e-5;

/// Rows and their length: nothing, one, tails of a chunk (4 or 8), of a warp and of a block, rows in
/// more than one block of `RMS_NORM_GRAD_ROWS`, a real width.
const SIZES: &[(usize, usize)] = &[
    (0, 8),
    (1, 1),
    (3, 7),
    (2, 8),
    (2, 64),
    (5, 33),
    (64, 24),
    (65, 48),
    (129, 17),
    (2, 1031),
    (2, 2056),
    (3, 4096),
    (1, 5000),
];

/// Operations of a chain: a thread's share of a row of n, the sums of warp and block, and the dozen
/// around them.
fn chain(n: usize) -> f64 {
    (n / 256 + 32) as f64
}

/// Numbers of both types with the same values, so that one reference serves; `skip` elements in front
/// of them break the alignment.
struct Input {
    values: Vec<f64>,
    f32: Vec<f32>,
    bf16: Vec<bf16>,
}

fn input(rng: &mut Rng, n: usize, skip: usize) -> Input {
    let bf16 = to_bf16(&normals(rng, skip + n));
    let f32 = from_bf16(&bf16);
    Input { values: to_f64(&f32[skip..]), f32, bf16 }
}

/// Calls `f` with the numbers on the device, as f32 and as bf16, the elements in front left out.
macro_rules! both_types {
    ($gpu:expr, $skip:expr, [$($name:ident),*], |$bf:ident| $body:expr) => {{
        {
            let $bf = false;
            $(let $name = guarded($gpu, &$name.f32);
              let range = $skip..$name.slice().len();
              let $name = Floats::F32($name.slice().range(range));)*
            $body
        }
        {
            let $bf = true;
            $(let $name = guarded($gpu, &$name.bf16);
              let range = $skip..$name.slice().len();
              let $name = Floats::Bf16($name.slice().range(range));)*
            $body
        }
    }};
}

/// A buffer of either type, `skip` elements in front; what `write` leaves in it behind them.
fn written(
    gpu: &Gpu,
    as_bf16: bool,
    old: &[f32],
    skip: usize,
    write: impl FnOnce(FloatsMut<'_>),
) -> Vec<f32> {
    let len = old.len();
    if as_bf16 {
        let mut out = guarded(gpu, &to_bf16(old));
        write(FloatsMut::Bf16(out.slice_mut().range_mut(skip..len)));
        from_bf16(&out.check()[skip..])
    } else {
        let mut out = guarded(gpu, old);
        write(FloatsMut::F32(out.slice_mut().range_mut(skip..len)));
        out.check()[skip..].to_vec()
    }
}

#[test]
fn forward_is_the_formula() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (&(rows, dim), skip) in SIZES.iter().flat_map(|size| [(size, 0), (size, 1)]) {
        let mut rng = Rng::new(1, (rows * 10_000 + dim) as u64);
        let x = input(&mut rng, rows * dim, skip);
        let w = normals(&mut rng, dim);
        let mut want = vec![];
        for row in x.values.chunks(dim) {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / dim as f64;
            let r = 1.0 / (mean + f64::from(NORM_EPS)).sqrt();
            want.extend(row.iter().zip(&w).map(|(x, &w)| x * r * f64::from(w)));
        }
        let device_w = gpu.upload(&w).unwrap();
        both_types!(&gpu, skip, [x], |bf| {
            let old = vec![3.0; skip + rows * dim];
            let got = written(&gpu, bf, &old, skip, |out| {
                rms_norm(&gpu, out, x, device_w.slice(), NORM_EPS).unwrap();
            });
            let eps = chain(dim) * EPS_F32 + if bf { EPS_BF16 } else { 0.0 };
            let case = format!("[{rows}, {dim}] skip {skip} bf16 {bf}");
            failures.compare(&case, &got, &want, |i| eps * want[i].abs());
        });
    }
    failures.end();
}

/// dx and dw in f64, each with the sum of its absolute terms, which its error is measured by.
struct Gradients {
    dx: Vec<f64>,
    dx_size: Vec<f64>,
    dw: Vec<f64>,
    dw_size: Vec<f64>,
}

fn gradients(x: &[f64], dout: &[f64], w: &[f32]) -> Gradients {
    let dim = w.len();
    let mut g =
        Gradients { dx: vec![], dx_size: vec![], dw: vec![0.0; dim], dw_size: vec![0.0; dim] };
    for (x, dout) in x.chunks(dim).zip(dout.chunks(dim)) {
        let n = dim as f64;
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / n + f64::from(NORM_EPS)).sqrt();
        let terms = || (0..dim).map(|i| dout[i] * f64::from(w[i]) * x[i]);
        let dot: f64 = terms().sum::<f64>() / n;
        let dot_size: f64 = terms().map(f64::abs).sum::<f64>() / n;
        for i in 0..dim {
            let direct = dout[i] * f64::from(w[i]);
            g.dx.push(r * (direct - x[i] * r * r * dot));
            g.dx_size.push(r * (direct.abs() + (x[i] * r * r).abs() * dot_size));
            g.dw[i] += dout[i] * x[i] * r;
            g.dw_size[i] += (dout[i] * x[i] * r).abs();
        }
    }
    g
}

#[test]
fn backward_is_the_derivative_and_adds_where_it_should() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (&(rows, dim), skip) in SIZES.iter().flat_map(|size| [(size, 0), (size, 1)]) {
        let mut rng = Rng::new(2, (rows * 10_000 + dim) as u64);
        let x = input(&mut rng, rows * dim, skip);
        let dout = input(&mut rng, rows * dim, skip);
        let w = normals(&mut rng, dim);
        let want = gradients(&x.values, &dout.values, &w);
        let device_w = gpu.upload(&w).unwrap();
        both_types!(&gpu, skip, [x, dout], |bf| {
            let saved = RmsNormSaved { dout, x, w: device_w.slice(), eps: NORM_EPS };
            let round = if bf { EPS_BF16 } else { EPS_F32 };
            for (acc, calls) in [(false, 1), (true, 2)] {
                let case = format!("[{rows}, {dim}] skip {skip} bf16 {bf} acc {acc}");
                let old = vec![0.5; skip + rows * dim];
                let mut dw = guarded(&gpu, &vec![0.25f32; dim]);
                let dx = written(&gpu, bf, &old, skip, |mut dx| {
                    for _ in 0..calls {
                        let dw = Some(dw.slice_mut());
                        rms_norm_bwd(&gpu, dx.reborrow(), acc, dw, saved).unwrap();
                    }
                });
                let (times, before) = if acc { (2.0, 0.5) } else { (1.0, 0.0) };
                let want_dx: Vec<f64> = want.dx.iter().map(|d| before + times * d).collect();
                failures.compare(&format!("dx {case}"), &dx, &want_dx, |i| {
                    let sum = times * want.dx_size[i];
                    chain(dim) * EPS_F32 * sum + times * round * (before + sum)
                });
                // A row after the other within a block of rows, then a block after the other.
                let steps = chain(dim) + 64.0 + (rows / 64) as f64;
                let calls = f64::from(calls);
                let want_dw: Vec<f64> = want.dw.iter().map(|d| 0.25 + calls * d).collect();
                failures.compare(&format!("dw {case}"), &dw.check(), &want_dw, |i| {
                    steps * EPS_F32 * (0.25 + calls * want.dw_size[i])
                });
                // Without dw the same dx.
                let again = written(&gpu, bf, &old, skip, |mut dx| {
                    for _ in 0..calls as usize {
                        rms_norm_bwd(&gpu, dx.reborrow(), acc, None, saved).unwrap();
                    }
                });
                failures.compare_bits(&format!("dx without dw {case}"), &again, &dx);
            }
        });
    }
    failures.end();
}

#[test]
fn bits_depend_neither_on_alignment_nor_on_company() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(3, 0);
    let (rows, dim) = (3, 264);
    let x = normals(&mut rng, rows * dim);
    let w = gpu.upload(&normals(&mut rng, dim)).unwrap();
    let run = |x: &[f32], skip: usize| {
        let shifted = gpu.upload(&[vec![9.0; skip], x.to_vec()].concat()).unwrap();
        let from = Floats::F32(shifted.slice().range(skip..skip + x.len()));
        written(&gpu, false, &vec![0.0; skip + x.len()], skip, |out| {
            rms_norm(&gpu, out, from, w.slice(), NORM_EPS).unwrap();
        })
    };
    let mut failures = Failures::default();
    let all = run(&x, 0);
    failures.compare_bits("shifted", &run(&x, 1), &all);
    for (row, of_all) in x.chunks(dim).zip(all.chunks(dim)) {
        failures.compare_bits("alone", &run(row, 0), of_all);
    }
    failures.end();
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut out = gpu.upload(&[0f32; 8]).unwrap();
    let x = gpu.upload(&[0f32; 8]).unwrap();
    let low = gpu.upload(&[bf16::ZERO; 8]).unwrap();
    let w = gpu.upload(&[1f32; 8]).unwrap();
    let mut refused = |len: usize, x: Floats<'_>, dim: usize, words: &str| {
        let out = FloatsMut::F32(out.slice_mut().range_mut(0..len));
        let error = rms_norm(&gpu, out, x, w.slice().range(0..dim), NORM_EPS).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(7, Floats::F32(x.slice()), 8, "shape 7 elements, wanted 8 elements");
    refused(8, Floats::F32(x.slice()), 3, "wanted rows of 3 elements");
    refused(8, Floats::F32(x.slice()), 0, "wanted rows of 0 elements, at least one");
    refused(8, Floats::Bf16(low.slice()), 8, "element type f32, wanted bf16");
}
