//! Cross-entropy on the device against f64, with and without gradients, and its odd rows.

use puna::cuda::cross_entropy::{SCORES, cross_entropy, log_sum_exp};
use puna::rng::Rng;
use puna_cpu::cross_entropy::cross_entropy_rows;
use puna_cpu::isa::Isa;
use puna_cpu::reference;

use crate::support::{EPS_F32, Failures, gpu, guarded, normals};

/// Rows and logits of a row: one, tails of a thread's four, of a block's 2048, a real vocabulary.
const SIZES: &[(usize, usize)] =
    &[(0, 8), (1, 1), (3, 2), (4, 7), (3, 64), (5, 513), (2, 2048), (2, 2051), (2, 32003)];

struct Case {
    logits: Vec<f32>,
    labels: Vec<i32>,
    factors: Vec<f32>,
}

/// Logits of a spread of some units; labels, one in four missing, some of them the largest logit's.
fn case(rows: usize, v: usize) -> Case {
    let mut rng = Rng::new(15, (rows * 100_000 + v) as u64);
    let mut logits: Vec<f32> = normals(&mut rng, rows * v).iter().map(|x| 4.0 * x).collect();
    let mut labels: Vec<i32> = (0..rows).map(|_| (rng.next_u32() as usize % v) as i32).collect();
    for (row, label) in labels.iter_mut().enumerate() {
        match row % 4 {
            1 => *label = -1,
            // Far above the others: exponentials that would overflow.
            2 => logits[row * v + *label as usize] = 300.0,
            _ => {}
        }
    }
    Case { logits, labels, factors: normals(&mut rng, rows) }
}

#[test]
fn scores_and_gradients_are_the_formulas() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (&(rows, v), skip) in SIZES.iter().flat_map(|size| [(size, 0), (size, 1)]) {
        let Case { logits, labels, factors } = case(rows, v);
        let at = format!("[{rows}, {v}] +{skip}");
        let content = [vec![0.0; skip], logits.clone()].concat();
        let [mut kept, mut turned] = [&content, &content].map(|x| guarded(&gpu, x));
        let [mut scores, mut with] = [3.0f32, 5.0].map(|x| guarded(&gpu, &vec![x; rows * SCORES]));
        let (device_labels, device_factors) = (guarded(&gpu, &labels), guarded(&gpu, &factors));
        let of = skip..skip + rows * v;
        let (l, f) = (device_labels.slice(), device_factors.slice());
        let x = kept.slice_mut().range_mut(of.clone());
        cross_entropy(&gpu, x, scores.slice_mut(), l, None).unwrap();
        let x = turned.slice_mut().range_mut(of.clone());
        cross_entropy(&gpu, x, with.slice_mut(), l, Some(f)).unwrap();
        let mut sums = guarded(&gpu, &vec![3.0f32; rows]);
        log_sum_exp(&gpu, sums.slice_mut(), kept.slice().range(of)).unwrap();

        let got = scores.check();
        failures.compare_bits(&format!("with gradient {at}"), &with.check(), &got);
        failures.compare_bits(&format!("logits stay {at}"), &kept.check(), &content);
        let gradients = turned.check().split_off(skip);
        let sums = sums.check();
        for (row, x) in logits.chunks(v).enumerate() {
            let at = format!("{at} row {row}");
            let total = reference::log_sum_exp(x);
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // ln of a sum that an exponential of 2 ulp and four additions have made.
            failures.compare(&format!("log sum {at}"), &sums[row..=row], &[total], |_| {
                16.0 * EPS_F32 + 2.0 * EPS_F32 * total.abs()
            });
            let (own, dx) = (&got[row * SCORES..][..SCORES], &gradients[row * v..][..v]);
            let Ok(label) = usize::try_from(labels[row]) else {
                failures.compare_bits(&format!("no label {at}"), own, &[0.0; SCORES]);
                failures.compare_bits(&format!("no label {at}"), dx, &vec![0.0; v]);
                continue;
            };
            let nll = total - f64::from(x[label]);
            failures.compare(&format!("nll {at}"), &own[..1], &[nll], |_| {
                16.0 * EPS_F32 + 2.0 * EPS_F32 * nll
            });
            let first = x.iter().position(|&x| x == largest);
            let correct = if first == Some(label) { 1.0 } else { 0.0 };
            failures.compare_bits(&format!("correct {at}"), &own[1..], &[correct]);
            let factor = f64::from(factors[row]);
            let softmax: Vec<f64> = x.iter().map(|&x| (f64::from(x) - total).exp()).collect();
            let mut want: Vec<f64> = softmax.iter().map(|p| p * factor).collect();
            want[label] -= factor;
            failures.compare(&format!("gradient {at}"), dx, &want, |i| {
                // The distance to the largest is rounded before the exponential.
                let distance = f64::from(largest - x[i]);
                let label = if i == label { 2.0 * factor.abs() } else { 0.0 };
                let p = softmax[i] * factor.abs();
                // Below the smallest normal number nothing is promised.
                EPS_F32 * ((24.0 + 2.0 * distance) * p + label) + 1e-37
            });
        }
        device_labels.check();
        device_factors.check();
    }
    failures.end();
}

#[test]
fn odd_rows_are_as_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let (v, nan, inf) = (13, f32::NAN, f32::INFINITY);
    let put = |at: &[(usize, f32)]| {
        let mut x = vec![-1.0f32; v];
        at.iter().for_each(|&(i, value)| x[i] = value);
        x
    };
    let rows = [
        // The largest twice: the first one is the prediction.
        (put(&[(3, 2.0), (9, 2.0)]), 3),
        (put(&[(3, 2.0), (9, 2.0)]), 9),
        (vec![-1.0; v], 0),
        (vec![-1.0; v], 12),
        // 0 and -0 are equal.
        (put(&[(2, -0.0), (5, 0.0)]), 2),
        (put(&[(2, -0.0), (5, 0.0)]), 5),
        (put(&[(4, -inf)]), 4),
        (put(&[(4, -inf)]), 0),
        (put(&[(7, 3e38), (8, -3e38)]), 8),
        (put(&[(7, nan)]), 0),
        (put(&[(7, inf)]), 7),
        (vec![-inf; v], 1),
    ];
    let logits: Vec<f32> = rows.iter().flat_map(|(x, _)| x.clone()).collect();
    let labels: Vec<i32> = rows.iter().map(|&(_, label)| label).collect();
    let mut device = guarded(&gpu, &logits);
    let mut scores = guarded(&gpu, &vec![3.0; rows.len() * SCORES]);
    let device_labels = gpu.upload(&labels).unwrap();
    let factors = gpu.upload(&vec![0.5f32; rows.len()]).unwrap();
    let (to, l, f) = (scores.slice_mut(), device_labels.slice(), factors.slice());
    cross_entropy(&gpu, device.slice_mut(), to, l, Some(f)).unwrap();
    let (scores, gradients) = (scores.check(), device.check());
    let mut failures = Failures::default();
    for (row, (x, label)) in rows.iter().enumerate() {
        let mut want_dx = x.clone();
        let (mut nll, mut correct) = ([0.0], [false]);
        let wanted = [Some(*label as u32)];
        let isa = Isa::PORTABLE;
        cross_entropy_rows(isa, &mut want_dx, &wanted, 0.5, &mut nll, &mut correct, true);
        let got = &scores[row * SCORES..][..SCORES];
        let near = |a: f32, b: f32| {
            (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= 1e-6 * b.abs().max(1.0)
        };
        let same = near(got[0], nll[0])
            && (nll[0].is_nan() || (got[1] == 1.0) == correct[0])
            && gradients[row * v..][..v].iter().zip(&want_dx).all(|(&a, &b)| near(a, b));
        if !same {
            let dx = &gradients[row * v..][..v];
            failures.note(format!(
                "row {row}: got {got:?} and {dx:?}, wanted {nll:?}, {correct:?} and {want_dx:?}"
            ));
        }
    }
    failures.end();
}

#[test]
fn a_label_that_is_no_logits_gives_nan_and_reads_nothing() {
    let Some(gpu) = gpu() else { return };
    let mut logits = guarded(&gpu, &[1f32; 6]);
    let mut scores = guarded(&gpu, &[3f32; 4]);
    let labels = gpu.upload(&[3i32, 1]).unwrap();
    let factors = gpu.upload(&[1f32; 2]).unwrap();
    let (to, l, f) = (scores.slice_mut(), labels.slice(), factors.slice());
    cross_entropy(&gpu, logits.slice_mut(), to, l, Some(f)).unwrap();
    let (scores, logits) = (scores.check(), logits.check());
    assert!(scores[0].is_nan() && scores[1] == 0.0 && scores[2].is_finite(), "{scores:?}");
    assert!(logits[..3].iter().all(|x| x.is_nan()), "{logits:?}");
    assert!(logits[3..].iter().all(|x| x.is_finite()), "{logits:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut logits = gpu.upload(&[1f32; 8]).unwrap();
    let mut scores = gpu.upload(&[1f32; 6]).unwrap();
    let labels = gpu.upload(&[0i32; 3]).unwrap();
    let factors = gpu.upload(&[1f32; 2]).unwrap();
    let mut refused = |n: usize, rows: usize, with: bool, words: &str| {
        let x = logits.slice_mut().range_mut(0..n);
        let factors = with.then(|| factors.slice());
        let labels = labels.slice().range(0..rows);
        let error = cross_entropy(&gpu, x, scores.slice_mut(), labels, factors).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(8, 3, false, "shape 8 elements, wanted 3 rows of one length");
    refused(0, 3, false, "shape 0, wanted 1 to 2147483647 logits a row");
    refused(6, 2, false, "scores: shape 6 elements, wanted 4");
    refused(6, 3, true, "factors: shape 2 elements, wanted 3");
}
