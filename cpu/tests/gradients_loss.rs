//! The loss, the gradient of the embedding table, and dropout, at every level.

use puna_cpu::cross_entropy::cross_entropy_rows;
use puna_cpu::dropout::dropout;
use puna_cpu::embedding::{embedding_bwd_acc, embedding_bwd_acc_team};
use puna_cpu::floats::{Floats, FloatsMut};
use puna_cpu::isa::Isa;
use puna_cpu::reference;
use puna_cpu::team::Team;
use puna_cpu::testing::{EPS, Gen, Storage, Stored, compare, lengths};

fn report(failures: Vec<String>) {
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Logits of three rows, of which the middle one has no label.
fn rows(v: usize, seed: u64, size: f32) -> (Vec<f32>, [Option<u32>; 3]) {
    let mut random = Gen::new(seed);
    let x = (0..3 * v).map(|_| size * random.normal()).collect();
    (x, [Some(random.bits() % v as u32), None, Some(random.bits() % v as u32)])
}

/// What the documented bounds allow for logit i of a row: `(80 + |x - max|)` epsilons of the
/// probability, and one of the label.
fn grad_tolerance(x: &[f64], label: usize, scale: f64) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::MIN, f64::max);
    let total = reference::log_sum_exp(x);
    let tol = |i: usize| {
        let p = (x[i] - total).exp();
        let at_label = if i == label { scale.abs() } else { 0.0 };
        ((80.0 + (x[i] - max).abs()) * p * scale.abs() + at_label) * EPS + 1e-37
    };
    (0..x.len()).map(tol).collect()
}

#[test]
fn cross_entropy_matches_the_reference_and_its_differences() {
    let mut failures = vec![];
    let scale = 0.375;
    for v in lengths(16).into_iter().filter(|&v| v > 0) {
        let (x, labels) = rows(v, v as u64, 6.0);
        let wide_x = wide(&x);
        let want_nll = reference::cross_entropy(&wide_x, v, &labels);
        // Differences where they are cheap; the formula in f64 beyond.
        let mut want = vec![];
        for (row, label) in wide_x.chunks(v).zip(labels) {
            let Some(label) = label else {
                want.extend(vec![0.0; v]);
                continue;
            };
            if v <= 257 {
                let loss = |x: &[f64]| scale * reference::cross_entropy(x, v, &[Some(label)])[0];
                want.extend(reference::differences(row, loss));
            } else {
                let total = reference::log_sum_exp(row);
                want.extend(row.iter().map(|x| scale * (x - total).exp()));
                let at = want.len() - v + label as usize;
                want[at] -= scale;
            }
        }
        for isa in Isa::available() {
            let mut logits = vec![99.0; 1];
            logits.extend(&x);
            logits.extend([99.0; 3]);
            let (mut nll, mut correct) = ([7.0; 3], [true; 3]);
            let scale32 = scale as f32;
            let mut run = |logits: &mut [f32], want_grad| {
                let inside = &mut logits[1..1 + 3 * v];
                let (nll, correct) = (&mut nll, &mut correct);
                cross_entropy_rows(isa, inside, &labels, scale32, nll, correct, want_grad);
                (*nll, *correct)
            };
            let without = run(&mut logits, false);
            if logits[1..1 + 3 * v] != x {
                failures.push(format!("{isa} {v}: logits changed without want_grad"));
            }
            let (nll, correct) = run(&mut logits, true);
            if without != (nll, correct) {
                failures.push(format!("{isa} {v}: another loss without want_grad"));
            }
            for row in 0..3 {
                let range = row * v..(row + 1) * v;
                let x = &wide_x[range.clone()];
                let max = x.iter().copied().fold(f64::MIN, f64::max);
                let Some(label) = labels[row] else {
                    let zero = logits[1..][range].iter().all(|&d| d == 0.0);
                    if !zero || nll[row] != 0.0 || correct[row] {
                        failures.push(format!("{isa} {v}: the row without label"));
                    }
                    continue;
                };
                let label = label as usize;
                let far = (f64::from(nll[row]) - want_nll[row]).abs();
                if far > (80.0 + 2.0 * (x[label] - max).abs() + want_nll[row]) * EPS {
                    failures.push(format!("{isa} {v}: nll {} not {}", nll[row], want_nll[row]));
                }
                if correct[row] != (x[label] == max) {
                    failures.push(format!("{isa} {v}: correct is {}", correct[row]));
                }
                let tol = grad_tolerance(x, label, scale);
                let got = &logits[1..][range.clone()];
                let allowed = |i: usize| tol[i] + 1e-9;
                if v > 1 && compare(&vec![0.0; v], &want[range.clone()], allowed).is_ok() {
                    failures.push(format!("{v} row {row}: zeros would pass"));
                }
                if let Err(e) = compare(got, &want[range], allowed) {
                    failures.push(format!("{isa} {v} row {row}: {e}"));
                }
            }
            if logits[0] != 99.0 || logits[1 + 3 * v..] != [99.0; 3] {
                failures.push(format!("{isa} {v}: wrote outside"));
            }
        }
    }
    report(failures);
}

#[test]
fn the_loss_of_a_large_vocabulary_keeps_its_error() {
    let v = 128_256;
    let (x, labels) = rows(v, 3, 1.0);
    let wide_x = wide(&x);
    let want = reference::cross_entropy(&wide_x, v, &labels);
    for isa in Isa::available() {
        let (mut nll, mut correct) = ([0.0; 3], [true; 3]);
        let mut logits = x.clone();
        cross_entropy_rows(isa, &mut logits, &labels, 1.0, &mut nll, &mut correct, true);
        compare(&nll, &want, |i| (80.0 + 20.0 + want[i]) * EPS)
            .unwrap_or_else(|e| panic!("{isa}: {e}"));
        for row in [0, 2] {
            let sum: f64 = logits[row * v..(row + 1) * v].iter().map(|&d| f64::from(d)).sum();
            assert!(sum.abs() < 100.0 * EPS, "{isa}: a row's gradient sums to {sum}");
        }
    }
}

#[test]
fn the_loss_knows_its_ends() {
    let inf = f32::INFINITY;
    for isa in Isa::available() {
        let one = |mut x: Vec<f32>, label: u32| {
            let (mut nll, mut correct) = ([7.0], [true]);
            let labels = [Some(label)];
            cross_entropy_rows(isa, &mut x, &labels, 1.0, &mut nll, &mut correct, true);
            (x, nll[0], correct[0])
        };
        // Far from overflow, and far from each other.
        let (d, nll, correct) = one(vec![3e38, 3e38, -3e38], 1);
        assert_eq!((d, correct), (vec![0.5, -0.5, 0.0], false), "{isa}: the first of equals wins");
        assert!((nll - 2f32.ln()).abs() < 1e-6, "{isa}: {nll}");
        assert!(one(vec![5.0, 5.0], 0).2, "{isa}: the first of equals wins");
        let (d, nll, correct) = one(vec![1000.0, 0.0, -1000.0], 1);
        assert_eq!((d, nll, correct), (vec![1.0, -1.0, 0.0], 1000.0, false), "{isa}");
        // A masked token of probability zero.
        let (d, nll, correct) = one(vec![-inf, 2.0], 1);
        assert_eq!((d, nll, correct), (vec![0.0, 0.0], 0.0, true), "{isa}");
        assert_eq!(one(vec![-inf, 2.0], 0).1, inf, "{isa}");
        for bad in [vec![f32::NAN, 1.0], vec![inf, 1.0], vec![-inf, -inf]] {
            let (d, nll, _) = one(bad.clone(), 1);
            assert!(nll.is_nan() && d.iter().all(|d| d.is_nan()), "{isa}: {bad:?} {d:?} {nll}");
        }
        cross_entropy_rows(isa, &mut [], &[], 1.0, &mut [], &mut [], true);
    }
}

#[test]
fn embedding_rows_add_in_order_for_any_team() {
    let mut failures = vec![];
    for dim in lengths(16).into_iter().filter(|&dim| dim > 0) {
        let mut random = Gen::new(dim as u64);
        // Ids that repeat, one of them in a row, and a row that nobody has.
        let ids = [2u32, 0, 2, 2, 4, 0, 2];
        let table = random.normals(5 * dim);
        let values = Stored::new(Storage::Bf16, &random.normals(ids.len() * dim)).to_f32();
        let mut want = wide(&table);
        let mut size: Vec<f64> = want.iter().map(|x| x.abs()).collect();
        for _ in 0..2 {
            for (i, &id) in ids.iter().enumerate() {
                for j in 0..dim {
                    let d = f64::from(values[i * dim + j]);
                    want[id as usize * dim + j] += d;
                    size[id as usize * dim + j] += d.abs();
                }
            }
        }
        for isa in Isa::available() {
            for storage in Storage::ALL {
                let dout = Stored::new(storage, &values);
                let mut got = table.clone();
                for _ in 0..2 {
                    embedding_bwd_acc(isa, &mut got, dim, &ids, dout.floats(0));
                }
                if let Err(e) = compare(&got, &want, |i| 8.0 * EPS * size[i]) {
                    failures.push(format!("{isa} {dim} {storage:?}: {e}"));
                }
                for threads in [1, 2, 3] {
                    let team = Team::new(threads).expect("a team");
                    let mut shared = table.clone();
                    for _ in 0..2 {
                        let dout = dout.floats(0);
                        embedding_bwd_acc_team(isa, &team, &mut shared, dim, &ids, dout);
                    }
                    if shared != got {
                        failures.push(format!("{isa} {dim} {storage:?}: {threads} threads"));
                    }
                }
            }
        }
    }
    report(failures);
}

/// The mask of some elements as 0 and 1.
fn mask(isa: Isa, n: usize, p: f32, key: u64, first: u64) -> Vec<f64> {
    let mut out = vec![9.0; n];
    dropout(isa, FloatsMut::F32(&mut out), Floats::F32(&vec![1.0; n]), p, key, first);
    let kept = (1.0 / (1.0 - f64::from(p))) as f32;
    assert!(out.iter().all(|&x| x == 0.0 || x == kept), "values are 0 or 1 / (1 - p)");
    out.iter().map(|&x| if x == 0.0 { 0.0 } else { 1.0 }).collect()
}

#[test]
fn a_mask_depends_on_key_and_position_alone() {
    let (key, first) = (77, (1 << 32) - 500);
    let whole = mask(Isa::PORTABLE, 1100, 0.3, key, first);
    let mut random = Gen::new(1);
    let values = random.normals(1100);
    for isa in Isa::available() {
        for n in lengths(16) {
            let start = 1100 - n.max(60);
            assert_eq!(
                mask(isa, n, 0.3, key, first + start as u64),
                whole[start..start + n],
                "{isa}: {n} elements from {start}"
            );
        }
        for (to, from) in [
            (Storage::F32, Storage::F32),
            (Storage::F32, Storage::Bf16),
            (Storage::Bf16, Storage::F32),
            (Storage::Bf16, Storage::Bf16),
        ] {
            for p in [0.0, 0.3] {
                let x = Stored::new(from, &values);
                let mut out = Stored::new(to, &vec![9.0; 1100]);
                dropout(isa, out.floats_mut(0, 1100), x.floats(0), p, key, first);
                let factor = (1.0 / (1.0 - f64::from(p))) as f32;
                let want: Vec<f32> = x
                    .to_f32()
                    .iter()
                    .zip(&whole)
                    .map(|(x, kept)| x * if p == 0.0 || *kept == 1.0 { factor } else { 0.0 })
                    .collect();
                assert_eq!(out.to_f32(), Stored::new(to, &want).to_f32(), "{isa} {to:?} {from:?}");
            }
        }
    }
}

#[test]
fn masks_look_independent() {
    let n = 1 << 18;
    for p in [0.05f32, 0.1, 0.5, 0.9] {
        let (keep, p64) = (1.0 - f64::from(p), f64::from(p));
        // A kept share of n independent draws has this deviation, a share of agreeing pairs of
        // unrelated masks at most its double; 5 of them are met by chance once in 10^6.
        let deviation = (p64 * keep / n as f64).sqrt();
        let masks: Vec<Vec<f64>> =
            [0, 1, 2, 1 << 32, 1 << 63].map(|key| mask(Isa::best(), n, p, key, 0)).into();
        for (k, a) in masks.iter().enumerate() {
            let mean = a.iter().sum::<f64>() / n as f64;
            assert!((mean - keep).abs() < 5.0 * deviation, "p {p} key {k}: keeps {mean}");
            // Blocks of 64 keep as many as a binomial would: its variance, not only its mean.
            let kept: Vec<f64> = a.chunks(64).map(|b| b.iter().sum()).collect();
            let variance = kept.iter().map(|s| (s - 64.0 * keep).powi(2)).sum::<f64>()
                / kept.len() as f64
                / (64.0 * p64 * keep);
            assert!((variance - 1.0).abs() < 0.12, "p {p} key {k}: variance {variance}");
            let correlation = |a: &[f64], b: &[f64]| {
                let sum: f64 = a.iter().zip(b).map(|(a, b)| (a - keep) * (b - keep)).sum();
                sum / (a.len() as f64 * p64 * keep)
            };
            for lag in [1, 2, 3, 4, 7, 8, 16, 64, 1024, 4096, 65536] {
                let c = correlation(&a[..n - lag], &a[lag..]);
                assert!(c.abs() < 5.0 / ((n - lag) as f64).sqrt(), "p {p} key {k} lag {lag}: {c}");
            }
            for (l, b) in masks.iter().enumerate().skip(k + 1) {
                // Also with neighbours swapped, as keys that differ in a bit might give.
                let swapped: Vec<f64> = b.chunks(2).flat_map(|x| [x[1], x[0]]).collect();
                for (name, b) in [("", b), ("swapped", &swapped)] {
                    let c = correlation(a, b);
                    let bound = 5.0 / (n as f64).sqrt();
                    assert!(c.abs() < bound, "p {p} keys {k} and {l} {name}: {c}");
                }
            }
        }
    }
}
