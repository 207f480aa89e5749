//! The optimisers' updates on the device against f64 over several steps, and the sum of squares.

use half::bf16;
use puna::cuda::optim::{AdamW, AdamWTensor, Sgd, SgdTensor, adamw, sgd, sum_of_squares};
use puna::rng::Rng;
use puna_cpu::reference;

use crate::support::{EPS_F32, Failures, gpu, guarded, normals};

const STEPS: i32 = 3;
/// Nothing, one, tails of a thread's eight and of a block's 2048.
const SIZES: &[usize] = &[0, 1, 7, 8, 61, 2048, 2057];

fn low_of(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

fn adamw_at(t: i32, weight_decay: f64) -> AdamW {
    let (beta1, beta2) = (0.9, 0.999);
    AdamW {
        lr: 1e-2,
        beta1,
        beta2,
        eps: 1e-8,
        weight_decay,
        bias_correction1: 1.0 - f64::powi(beta1, t),
        bias_correction2: 1.0 - f64::powi(beta2, t),
        grad_scale: 0.5,
    }
}

#[test]
fn adamw_follows_the_reference_for_some_steps() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    let cases = SIZES.iter().flat_map(|n| [(n, 0.0, 0), (n, 0.1, 0), (n, 0.1, 1)]);
    for (&n, weight_decay, skip) in cases {
        let case = format!("{n} decay {weight_decay} +{skip}");
        let mut rng = Rng::new(16, n as u64);
        let start = normals(&mut rng, skip + n);
        let of = || skip..skip + n;
        // Two runs, with and without `low`, have the same bits.
        let [mut w, mut plain] = [&start, &start].map(|x| guarded(&gpu, x));
        let zeroes = vec![0f32; skip + n];
        let [mut m, mut v] = [&zeroes, &zeroes].map(|x| guarded(&gpu, x));
        let [mut m2, mut v2] = [&zeroes, &zeroes].map(|x| guarded(&gpu, x));
        let mut low = guarded(&gpu, &vec![bf16::ONE; skip + n]);
        let mut want: Vec<_> = start[skip..].iter().map(|&w| (f64::from(w), 0.0, 0.0)).collect();
        let (mut moved, mut most) = (vec![0.0; n], 0f64);
        for t in 1..=STEPS {
            let g = normals(&mut rng, skip + n);
            let grad = guarded(&gpu, &g);
            let hyper = adamw_at(t, weight_decay);
            let with = AdamWTensor {
                value: w.slice_mut().range_mut(of()),
                low: Some(low.slice_mut().range_mut(of())),
                m: m.slice_mut().range_mut(of()),
                v: v.slice_mut().range_mut(of()),
                grad: grad.slice().range(of()),
                hyper,
            };
            let without = AdamWTensor {
                value: plain.slice_mut().range_mut(of()),
                low: None,
                m: m2.slice_mut().range_mut(of()),
                v: v2.slice_mut().range_mut(of()),
                grad: grad.slice().range(of()),
                hyper,
            };
            adamw(&gpu, [with, without]).unwrap();
            grad.check();
            for ((want, &g), moved) in want.iter_mut().zip(&g[skip..]).zip(&mut moved) {
                let (before, g) = (want.0, 0.5 * f64::from(g));
                let rates = (hyper.lr, weight_decay);
                *want = reference::adamw(*want, g, rates, (0.9, 0.999, 1e-8), t);
                *moved += (want.0 - before).abs() + hyper.lr;
                most = most.max(g.abs());
            }
        }
        let (w, m, v) = (w.check(), m.check(), v.check());
        failures.compare_bits(&format!("low {case}"), &low.check()[skip..], &low_of(&w[skip..]));
        failures.compare_bits(&format!("without low {case}"), &plain.check(), &w);
        failures.compare_bits(&format!("in front {case}"), &w[..skip], &start[..skip]);
        let steps = 2.0 * f64::from(STEPS) * EPS_F32;
        let [ws, ms, vs]: [Vec<f64>; 3] = [
            want.iter().map(|x| x.0).collect(),
            want.iter().map(|x| x.1).collect(),
            want.iter().map(|x| x.2).collect(),
        ];
        failures.compare(&format!("m {case}"), &m[skip..], &ms, |_| steps * 3.0 * most);
        failures.compare(&format!("v {case}"), &v[skip..], &vs, |i| steps * 4.0 * vs[i]);
        failures.compare(&format!("w {case}"), &w[skip..], &ws, |i| {
            steps * (ws[i].abs() + 12.0 * moved[i])
        });
    }
    failures.end();
}

/// Many tensors of two settings, some of them empty, some with `low`, one unaligned: more than one block
/// to each and several to some.
#[test]
fn tensors_have_the_bits_together_that_they_have_alone() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    let sizes: Vec<usize> = SIZES.iter().copied().chain([5000, 3, 0, 4096, 1]).collect();
    let mut rng = Rng::new(19, 0);
    let mut draw = |n: usize| normals(&mut rng, n + 1);
    let numbers: Vec<_> = sizes.iter().map(|&n| [draw(n), draw(n)]).collect();
    let run = |together: bool| {
        let of = |(i, &n): (usize, &usize)| {
            let skip = usize::from(i == 4);
            skip..skip + n
        };
        let ranges: Vec<_> = sizes.iter().enumerate().map(of).collect();
        let mut values: Vec<_> = numbers.iter().map(|[w, _]| guarded(&gpu, w)).collect();
        let grads: Vec<_> = numbers.iter().map(|[_, g]| guarded(&gpu, g)).collect();
        let zeroes =
            || -> Vec<_> { sizes.iter().map(|&n| guarded(&gpu, &vec![0f32; n + 1])).collect() };
        let (mut m, mut v) = (zeroes(), zeroes());
        let low = sizes.iter().map(|&n| guarded(&gpu, &vec![bf16::ONE; n + 1]));
        let mut low: Vec<_> = low.collect();
        for t in 1..=2 {
            let moments = m.iter_mut().zip(&mut v).zip(&mut low);
            let all = values.iter_mut().zip(&grads).zip(moments).zip(&ranges).enumerate();
            let tensors = all.map(|(i, (((w, g), ((m, v), low)), of))| AdamWTensor {
                value: w.slice_mut().range_mut(of.clone()),
                low: (i % 3 == 0).then(|| low.slice_mut().range_mut(of.clone())),
                m: m.slice_mut().range_mut(of.clone()),
                v: v.slice_mut().range_mut(of.clone()),
                grad: g.slice().range(of.clone()),
                hyper: adamw_at(t, if i % 2 == 0 { 0.1 } else { 0.0 }),
            });
            if together {
                adamw(&gpu, tensors).unwrap();
            } else {
                tensors.for_each(|tensor| adamw(&gpu, [tensor]).unwrap());
            }
        }
        let values: Vec<_> = values.iter().map(|x| x.check()).collect();
        (values, low.iter().map(|x| x.check()).collect::<Vec<_>>())
    };
    let (together, alone) = (run(true), run(false));
    for (i, (found, wanted)) in together.0.iter().zip(&alone.0).enumerate() {
        failures.compare_bits(&format!("tensor {i} of {}", sizes[i]), found, wanted);
        if sizes[i] > 0 && *found == numbers[i][0] {
            failures.note(format!("tensor {i} did not move"));
        }
    }
    for (i, (found, wanted)) in together.1.iter().zip(&alone.1).enumerate() {
        failures.compare_bits(&format!("low {i} of {}", sizes[i]), found, wanted);
    }
    failures.end();
}

#[test]
fn sgd_follows_the_reference_for_some_steps() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    let lr = 0.05;
    let settings = [(0.0, 0.0), (0.0, 0.1), (0.9, 0.0), (0.9, 0.1)];
    let cases = SIZES.iter().flat_map(|n| settings.map(|s| (n, s)));
    for ((&n, (momentum, weight_decay)), with_low) in cases.flat_map(|c| [(c, false), (c, true)]) {
        let case = format!("{n} momentum {momentum} decay {weight_decay} low {with_low}");
        let mut rng = Rng::new(17, n as u64);
        let start = normals(&mut rng, n);
        let mut w = guarded(&gpu, &start);
        let mut buffer = guarded(&gpu, &vec![0f32; n]);
        let mut low = guarded(&gpu, &low_of(&start));
        let mut want: Vec<_> = start.iter().map(|&w| (f64::from(w), 0.0)).collect();
        let (mut size, mut most) = (0f64, 0f64);
        for _ in 0..STEPS {
            let g = normals(&mut rng, n);
            let grad = guarded(&gpu, &g);
            let tensor = SgdTensor {
                value: w.slice_mut(),
                low: with_low.then(|| low.slice_mut()),
                momentum: (momentum > 0.0).then(|| buffer.slice_mut()),
                grad: grad.slice(),
                hyper: Sgd { lr, momentum, weight_decay, grad_scale: 0.5 },
            };
            sgd(&gpu, [tensor]).unwrap();
            for (want, &g) in want.iter_mut().zip(&g) {
                *want = reference::sgd(*want, 0.5 * f64::from(g), lr, momentum, weight_decay);
                size = size.max(want.0.abs());
                most = most.max(want.1.abs()).max(f64::from(g).abs());
            }
        }
        let w = w.check();
        if with_low {
            failures.compare_bits(&format!("low {case}"), &low.check(), &low_of(&w));
        }
        let (ws, buffers): (Vec<f64>, Vec<f64>) = want.into_iter().unzip();
        let steps = 2.0 * f64::from(STEPS) * EPS_F32;
        failures.compare(&case, &w, &ws, |_| steps * (size + 5.0 * lr * 2.0 * most));
        if momentum > 0.0 {
            let got = buffer.check();
            failures.compare(&format!("buffer {case}"), &got, &buffers, |_| {
                steps * 3.0 * (2.0 * most + size)
            });
        }
    }
    failures.end();
}

#[test]
fn squares_are_summed_to_few_epsilons_over_all_tensors() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for sizes in [&[][..], &[0], &[1], &[7, 0, 8], &[2049, 3], &[16384], &[16385, 5, 50_000]] {
        for skip in [0, 1] {
            let mut rng = Rng::new(18, sizes.len() as u64);
            let tensors: Vec<Vec<f32>> = sizes
                .iter()
                .map(|n| normals(&mut rng, skip + n).iter().map(|x| 1e3 * x).collect())
                .collect();
            let device: Vec<_> = tensors.iter().map(|x| guarded(&gpu, x)).collect();
            let slices: Vec<_> =
                device.iter().map(|x| x.slice().range(skip..x.slice().len())).collect();
            let got = sum_of_squares(&gpu, &slices).unwrap();
            let squares = tensors.iter().flat_map(|x| &x[skip..]).map(|&x| f64::from(x).powi(2));
            let want: f64 = squares.sum();
            // A square and its additions to seven others in f32.
            if (got - want).abs() > 16.0 * EPS_F32 * want {
                failures.note(format!("{sizes:?} +{skip}: got {got}, wanted {want}"));
            }
            let again = sum_of_squares(&gpu, &slices).unwrap();
            if again.to_bits() != got.to_bits() {
                failures.note(format!("{sizes:?} +{skip}: {got}, then {again}"));
            }
        }
    }
    failures.end();
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let [mut w, mut m, mut v, g] = [8, 8, 7, 8].map(|n| gpu.upload(&vec![0f32; n]).unwrap());
    let tensor = AdamWTensor {
        value: w.slice_mut(),
        low: None,
        m: m.slice_mut(),
        v: v.slice_mut(),
        grad: g.slice(),
        hyper: adamw_at(1, 0.0),
    };
    let error = adamw(&gpu, [tensor]).unwrap_err();
    assert!(error.to_string().contains("v: shape 7 elements, wanted 8"), "{error}");
    let tensor = SgdTensor {
        value: w.slice_mut(),
        low: None,
        momentum: Some(v.slice_mut()),
        grad: g.slice(),
        hyper: Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.0, grad_scale: 1.0 },
    };
    let error = sgd(&gpu, [tensor]).unwrap_err();
    assert!(error.to_string().contains("momentum: shape 7 elements, wanted 8"), "{error}");
}
