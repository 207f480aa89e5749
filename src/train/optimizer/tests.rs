//! Every optimiser against plain loops in f64, for any number of threads, and its state's way to
//! a later run.

use super::*;
use crate::tensor::{Buffer, Low, Number, Numbers, Param};

/// Sizes with one chunk of work, several, and an odd rest; the last is marked for no decay.
const SIZES: [usize; 4] = [5, 200_003, 1, 300];

fn wave(n: usize, phase: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.731 + phase).sin()).collect()
}

fn params(bf16: bool) -> Params {
    let mut params = Params::default();
    for (i, n) in SIZES.into_iter().enumerate() {
        let value = Buffer::from_slice(&wave(n, i as f32)).into();
        let low = bf16.then(|| Low::new(&value).expect("room on the host"));
        let (name, shape) = (format!("p{i}"), vec![n]);
        params.push(Param { name, shape, decay: i != 3, value, low });
    }
    params
}

fn grads(step: usize) -> Grads {
    let grad = |(i, n)| Buffer::from_slice(&wave(n, 10.0 + (7 * step + i) as f32)).into();
    Grads(SIZES.into_iter().enumerate().map(grad).collect())
}

fn args(momentum: f64, decay_all: bool) -> OptimArgs {
    OptimArgs { momentum, decay_all, weight_decay: 0.1, beta2: 0.95, ..OptimArgs::default() }
}

const RATES: [f32; 4] = [0.0, 0.02, 0.05, 0.03];
const CLIP: f32 = 0.5;

fn run(optimizer: &mut dyn Optimizer, params: &mut Params, threads: usize, from: usize) {
    let device = Device::new(threads).expect("a team");
    for (step, lr) in RATES.into_iter().enumerate().skip(from) {
        optimizer.step(&device, params, &grads(step), lr, CLIP).expect("a step");
    }
}

/// The numbers of the host.
fn host<T: Number>(numbers: &Numbers<T>) -> &[T] {
    numbers.host().expect("on the host")
}

/// All weights as bits.
fn bits(params: &Params) -> Vec<u32> {
    params.0.iter().flat_map(|p| host(&p.value)).map(|w| w.to_bits()).collect()
}

/// The weights after all steps by the formulae, in f64.
fn expected(name: &str, args: &OptimArgs) -> Vec<f64> {
    let mut all = vec![];
    for (i, param) in params(false).0.iter().enumerate() {
        let decay = if param.decay || args.decay_all { args.weight_decay } else { 0.0 };
        for (j, &w) in host(&param.value).iter().enumerate() {
            let (mut w, mut m, mut v) = (f64::from(w), 0.0, 0.0);
            for (step, lr) in RATES.into_iter().enumerate() {
                let phase = 10.0 + (7 * step + i) as f32;
                let g = f64::from(CLIP) * f64::from((j as f32 * 0.731 + phase).sin());
                let (lr, t) = (f64::from(lr), step as i32 + 1);
                if name == "sgd" {
                    m = args.momentum * m + g + decay * w;
                    w -= lr * m;
                    continue;
                }
                w -= lr * decay * w;
                m = args.beta1 * m + (1.0 - args.beta1) * g;
                v = args.beta2 * v + (1.0 - args.beta2) * g * g;
                let (mean, var) = (m / (1.0 - args.beta1.powi(t)), v / (1.0 - args.beta2.powi(t)));
                w -= lr * mean / (var.sqrt() + args.eps);
            }
            all.push(w);
        }
    }
    all
}

/// Name and settings of every case.
fn cases() -> Vec<(&'static str, OptimArgs)> {
    let mut all = vec![];
    for name in NAMES {
        for (momentum, decay_all) in [(0.0, false), (0.9, false), (0.9, true)] {
            all.push((*name, args(momentum, decay_all)));
        }
    }
    all
}

#[test]
fn every_optimizer_follows_its_formula_whatever_the_threads() {
    for (name, args) in cases() {
        let want = expected(name, &args);
        let mut first = None;
        for threads in [1, 2, 3] {
            let mut params = params(false);
            let mut optimizer = make(name, &args, &params).expect("an optimizer");
            run(optimizer.as_mut(), &mut params, threads, 0);
            let bits = bits(&params);
            for (i, (&bits, want)) in bits.iter().zip(&want).enumerate() {
                let got = f64::from(f32::from_bits(bits));
                // Weights of size 1 that move by 0.1: a few epsilons; a step of 1 % too much
                // would be a thousand times that.
                assert!((got - want).abs() < 1e-6, "{name} {args:?} {i}: {got}, want {want}");
            }
            assert!(
                *first.get_or_insert_with(|| bits.clone()) == bits,
                "{name}: {threads} threads"
            );
        }
    }
}

#[test]
fn copies_in_bf16_are_the_weights_rounded() {
    for (name, args) in cases() {
        let mut params = params(true);
        assert!(params.0.iter().all(|param| param.low().is_none()), "nothing is rounded yet");
        let mut optimizer = make(name, &args, &params).expect("an optimizer");
        run(optimizer.as_mut(), &mut params, 2, 0);
        for param in &params.0 {
            let low = param.low().expect("made with copies");
            let mut pairs = host(&param.value).iter().zip(host(low));
            assert!(pairs.all(|(w, low)| half::bf16::from_f32(*w) == *low), "{name}");
        }
        let first = &mut params.0[0];
        first.value.clear().expect("on the host");
        assert!(first.low().is_none(), "the copy is of other weights");
    }
}

#[test]
fn a_run_goes_on_from_saved_state_with_the_same_bits() {
    for (name, args) in cases() {
        let mut whole = params(false);
        let mut optimizer = make(name, &args, &whole).expect("an optimizer");
        run(optimizer.as_mut(), &mut whole, 1, 0);

        let mut parts = params(false);
        let device = Device::new(1).expect("a team");
        let mut before = make(name, &args, &parts).expect("an optimizer");
        for (step, lr) in RATES.into_iter().enumerate().take(2) {
            before.step(&device, &mut parts, &grads(step), lr, CLIP).expect("a step");
        }
        let saved = before.state();
        let numbers: usize = saved.iter().filter(|e| e.0 != "step").map(|e| e.2.len()).sum();
        assert_eq!(4 * numbers, before.state_bytes_per_element() * parts.n_elements(), "{name}");
        assert!(saved.iter().all(|e| before.state_names().contains(&e.0.as_str())), "{name}");
        // Backwards: the order does not matter.
        let saved = saved.iter().rev().map(|(name, i, x)| (name.clone(), *i, host(x).to_vec()));
        let mut after = make(name, &args, &parts).expect("an optimizer");
        after.load_state(saved.collect()).expect("its own state");
        run(after.as_mut(), &mut parts, 1, 2);
        assert!(bits(&parts) == bits(&whole), "{name} {args:?}");
    }
}

type Entry = StateEntry<Vec<f32>>;

#[test]
fn state_that_does_not_fit_is_refused_and_changes_nothing() {
    let params = params(false);
    let mut optimizer = make("adamw", &args(0.0, false), &params).expect("an optimizer");
    let good: Vec<_> = optimizer
        .state()
        .iter()
        .map(|(name, i, x)| (name.clone(), *i, vec![0.5; x.len()]))
        .collect();
    let step = good.len() - 1;
    let mut cases = vec![("missing", good[1..].to_vec()), ("missing", good[..step].to_vec())];
    let mut case = |word, f: fn(&mut [Entry])| {
        let mut bad = good.clone();
        bad[step].2 = vec![3.0];
        f(&mut bad);
        cases.push((word, bad));
    };
    case("wanted 200003", |bad| bad[1].2.truncate(7));
    case("no such entry", |bad| bad[0].0 = "momentum_buffer".into());
    case("no such entry", |bad| bad[0].1 = 4);
    case("found twice", |bad| bad[0] = (bad[4].0.clone(), bad[4].1, vec![0.0; 5]));
    case("no number of steps", |bad| bad[8].2 = vec![1.5]);
    for (word, bad) in cases {
        let error = optimizer.load_state(bad).expect_err(word).to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(optimizer.state().iter().all(|(_, _, x)| host(x).iter().all(|&x| x == 0.0)));
}

#[test]
fn unknown_names_and_settings_are_refused() {
    let params = params(false);
    let error = |name: &str, args: &OptimArgs| match make(name, args, &params) {
        Ok(_) => panic!("{name} {args:?} is taken"),
        Err(error) => error.to_string(),
    };
    assert!(error("adamax", &OptimArgs::default()).contains("adamw, adamw_torch, sgd"));
    let bad = OptimArgs { beta2: 1.0, ..OptimArgs::default() };
    assert!(error("adamw", &bad).contains("adam_beta2 = 1"));
    let bad = OptimArgs { weight_decay: f64::NAN, ..OptimArgs::default() };
    assert!(error("sgd", &bad).contains("weight_decay"));
}
