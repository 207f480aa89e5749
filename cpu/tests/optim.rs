//! The optimisers' updates against f64 over several steps, and the sum of squares, at every level.

use puna_cpu::isa::Isa;
use puna_cpu::optim::{AdamW, Sgd, adamw, sgd, sum_of_squares};
use puna_cpu::reference;
use puna_cpu::testing::{EPS, Gen, OFFSETS, compare, lengths};

const STEPS: i32 = 5;

fn report(failures: Vec<String>) {
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn adamw_follows_the_reference_for_some_steps() {
    let mut failures = vec![];
    let (lr, beta1, beta2, eps) = (1e-2, 0.9, 0.999, 1e-8);
    for n in lengths(16) {
        for weight_decay in [0.0, 0.1] {
            for (isa, offset) in
                Isa::available().into_iter().flat_map(|isa| OFFSETS.map(|offset| (isa, offset)))
            {
                let mut random = Gen::new(n as u64);
                let mut w = random.normals(n + offset);
                let [mut m, mut v] = [vec![0.0; n + offset], vec![0.0; n + offset]];
                let mut want: Vec<_> =
                    w[offset..].iter().map(|&w| (f64::from(w), 0.0, 0.0)).collect();
                let mut moved = vec![0.0; n];
                for t in 1..=STEPS {
                    let g = random.normals(n);
                    let hyper = AdamW {
                        lr,
                        beta1,
                        beta2,
                        eps,
                        weight_decay,
                        bias_correction1: 1.0 - beta1.powi(t),
                        bias_correction2: 1.0 - beta2.powi(t),
                        grad_scale: 0.5,
                    };
                    let [w, m, v] = [&mut w, &mut m, &mut v].map(|x| &mut x[offset..]);
                    adamw(isa, w, m, v, &g, &hyper);
                    for ((want, g), moved) in want.iter_mut().zip(&g).zip(&mut moved) {
                        let before = want.0;
                        let (rates, moments) = ((lr, weight_decay), (beta1, beta2, eps));
                        *want = reference::adamw(*want, 0.5 * f64::from(*g), rates, moments, t);
                        *moved += (want.0 - before).abs() + lr;
                    }
                }
                let steps = f64::from(STEPS);
                let (ws, (ms, vs)): (Vec<f64>, (Vec<f64>, Vec<f64>)) =
                    want.iter().map(|&(w, m, v)| (w, (m, v))).unzip();
                // The moments forget their first errors more slowly than they make new ones;
                // gradients are below 1.5.
                let checks = [
                    ("m", compare(&m[offset..], &ms, |_| steps * 3.0 * 1.5 * EPS)),
                    ("v", compare(&v[offset..], &vs, |i| steps * 4.0 * EPS * vs[i])),
                    (
                        "w",
                        compare(&w[offset..], &ws, |i| {
                            steps * EPS * ws[i].abs() + 12.0 * steps * EPS * moved[i]
                        }),
                    ),
                ];
                for (name, result) in checks {
                    if let Err(e) = result {
                        failures.push(format!("{isa} {n} decay {weight_decay} {name}: {e}"));
                    }
                }
                let outside = m[..offset].iter().chain(&v[..offset]);
                if outside.copied().any(|x| x != 0.0) {
                    failures.push(format!("{isa} {n}: wrote outside"));
                }
            }
        }
    }
    report(failures);
}

#[test]
fn adamw_with_rate_zero_moves_only_its_moments() {
    let hyper = AdamW {
        lr: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        bias_correction1: 0.1,
        bias_correction2: 0.001,
        grad_scale: 1.0,
    };
    for isa in Isa::available() {
        let (mut w, mut m, mut v) = ([1.5f32; 21], [0.0; 21], [0.0; 21]);
        adamw(isa, &mut w, &mut m, &mut v, &[2.0; 21], &hyper);
        assert_eq!(w, [1.5; 21], "{isa}");
        assert!(m.iter().all(|&m| m > 0.19) && v.iter().all(|&v| v > 0.0039), "{isa}");
    }
}

#[test]
fn sgd_follows_the_reference_for_some_steps() {
    let mut failures = vec![];
    let lr = 0.05;
    for n in lengths(16) {
        for (momentum, weight_decay) in [(0.0, 0.0), (0.0, 0.1), (0.9, 0.0), (0.9, 0.1)] {
            for isa in Isa::available() {
                let mut random = Gen::new(n as u64);
                let mut w = random.normals(n);
                let mut buffer = vec![0.0; n];
                let mut want: Vec<_> = w.iter().map(|&w| (f64::from(w), 0.0)).collect();
                let hyper = Sgd { lr, momentum, weight_decay, grad_scale: 0.5 };
                for _ in 0..STEPS {
                    let g = random.normals(n);
                    let with = (momentum > 0.0).then_some(&mut buffer[..]);
                    sgd(isa, &mut w, with, &g, &hyper);
                    for (want, g) in want.iter_mut().zip(&g) {
                        let g = 0.5 * f64::from(*g);
                        *want = reference::sgd(*want, g, lr, momentum, weight_decay);
                    }
                }
                // Weights stay below 4, momenta and their terms below 8.
                let steps = f64::from(STEPS);
                let (ws, buffers): (Vec<f64>, Vec<f64>) = want.into_iter().unzip();
                let mut result = compare(&w, &ws, |_| steps * (4.0 + 5.0 * lr * 8.0) * EPS);
                if momentum > 0.0 {
                    let tol = |_| steps * 3.0 * 8.0 * EPS;
                    result = result.and_then(|()| compare(&buffer, &buffers, tol));
                }
                if let Err(e) = result {
                    failures.push(format!("{isa} {n} {momentum} {weight_decay}: {e}"));
                }
            }
        }
    }
    report(failures);
}

#[test]
fn squares_are_summed_to_few_epsilons_and_in_blocks() {
    for isa in Isa::available() {
        for n in lengths(16).into_iter().chain([100_003]) {
            let mut random = Gen::new(n as u64);
            let x: Vec<f32> = random.normals(n + 1).iter().map(|x| 1e3 * x).collect();
            let want: f64 = x[1..].iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let got = sum_of_squares(isa, &x[1..]);
            assert!((got - want).abs() <= 40.0 * EPS * want, "{isa} {n}: {got}, want {want}");
        }
        let x = Gen::new(1).normals(4096 + 77);
        let whole = sum_of_squares(isa, &x);
        let ones: f64 = x.chunks(1024).map(|x| sum_of_squares(isa, x)).sum();
        assert_eq!(whole, ones, "{isa}: whole blocks apart");
        // Large and small blocks: a sum in f32 alone would lose the small ones.
        let mut x = vec![1e-3f32; 1 << 20];
        x[0] = 1e4;
        let want = 1e8 + f64::from((1 << 20) - 1) * (f64::from(1e-3f32) * f64::from(1e-3f32));
        let got = sum_of_squares(isa, &x);
        assert!((got - want).abs() < 1e-2, "{isa}: {got}, want {want}");
    }
}
