//! Row kernels on numbers stored as f32 and as bf16, forward against the f64 reference and
//! backward against its central differences, at every level: all tails, offsets that break
//! alignment, random upstream gradients, and every accumulation twice.

use puna_cpu::isa::Isa;
use puna_cpu::rope::{Pairing, rope_floats};
use puna_cpu::testing::{EPS, Gen, OFFSETS, Storage, Stored, compare, lengths};
use puna_cpu::{elementwise, reference, rms_norm, swiglu};

/// Rows of a block.
const ROWS: usize = 3;
const EPS_NORM: f32 = 1e-5;

/// Lengths up to what central differences can afford.
fn short_lengths() -> Vec<usize> {
    lengths(16).into_iter().filter(|&n| n <= 257).collect()
}

/// Every pair of types, for a result and an operand.
fn pairs() -> impl Iterator<Item = (Storage, Storage)> {
    Storage::ALL.into_iter().flat_map(|a| Storage::ALL.map(|b| (a, b)))
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Numbers that bf16 holds, so that both types store the same ones.
fn brains(random: &mut Gen, n: usize) -> Vec<f32> {
    Stored::new(Storage::Bf16, &random.normals(n)).to_f32()
}

/// The values in the middle of a block, which must end in three untouched numbers and begin with
/// `offset` of them.
fn inside(block: &Stored, offset: usize) -> Result<Vec<f32>, String> {
    let all = block.to_f32();
    let n = all.len() - offset - 3;
    let outside = all[..offset].iter().chain(&all[offset + n..]);
    if outside.copied().any(|x| x != SENTINEL) {
        return Err("wrote outside".into());
    }
    Ok(all[offset..offset + n].to_vec())
}

const SENTINEL: f32 = 12288.0;

fn block(storage: Storage, offset: usize, values: &[f32]) -> Stored {
    let mut all = vec![SENTINEL; offset];
    all.extend(values);
    all.extend([SENTINEL; 3]);
    Stored::new(storage, &all)
}

/// Whether a result of nothing but zeros is within the tolerance.
fn zeros_pass(want: &[f64], tol: impl Fn(usize) -> f64) -> bool {
    compare(&vec![0.0; want.len()], want, tol).is_ok()
}

fn report(failures: Vec<String>) {
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn rms_norm_of_both_types_matches_the_reference() {
    let mut failures = vec![];
    for n in short_lengths() {
        let mut random = Gen::new(n as u64);
        let (x, w) = (brains(&mut random, ROWS * n), random.normals(n));
        let want = reference::rms_norm(&x, &w, EPS_NORM);
        for (isa, offset) in every_level() {
            for (to, from) in pairs() {
                let mut out = block(to, offset, &vec![SENTINEL; ROWS * n]);
                let x = block(from, offset, &x);
                let from_x = slice(&x, offset, ROWS * n);
                let to_out = out.floats_mut(offset, ROWS * n);
                rms_norm::rms_norm_floats(isa, to_out, from_x.floats(0), &w, EPS_NORM);
                let tol =
                    |i: usize| (n as f64 / 32.0 + 8.0) * EPS * want[i].abs() + to.rounding(want[i]);
                if let Err(e) = inside(&out, offset).and_then(|got| compare(&got, &want, tol)) {
                    failures.push(format!("{isa} {n} {to:?} {from:?}: {e}"));
                }
            }
        }
    }
    report(failures);
}

fn every_level() -> Vec<(Isa, usize)> {
    Isa::available().into_iter().flat_map(|isa| OFFSETS.map(|offset| (isa, offset))).collect()
}

/// A copy of `n` elements from `first` on, itself off alignment by `first`'s parity.
fn slice(block: &Stored, first: usize, n: usize) -> Stored {
    match block {
        Stored::F32(x) => Stored::F32(x[first..first + n].to_vec()),
        Stored::Bf16(x) => Stored::Bf16(x[first..first + n].to_vec()),
    }
}

#[test]
fn rms_norm_bwd_matches_central_differences() {
    let mut failures = vec![];
    for n in short_lengths() {
        let mut random = Gen::new(n as u64 + 7);
        let (x, w) = (brains(&mut random, ROWS * n), random.normals(n));
        let dout = brains(&mut random, ROWS * n);
        let (x64, w64, dout64) = (wide(&x), wide(&w), wide(&dout));
        let mut want_dx = vec![];
        for (x, dout) in x64.chunks(n.max(1)).zip(dout64.chunks(n.max(1))) {
            let loss = |x: &[f64]| dot(&reference::rms_norm(x, &w64, EPS_NORM), dout);
            want_dx.extend(reference::differences(x, loss));
        }
        let loss = |w: &[f64]| dot(&reference::rms_norm(&x64, w, EPS_NORM), &dout64);
        let want_dw = reference::differences(&w64, loss);
        let (size_dx, size_dw) = norm_sizes(&x64, &w64, &dout64);
        // For n = 1 the gradient of x all but vanishes.
        for (want, size) in [(&want_dx, &size_dx), (&want_dw, &size_dw)] {
            if n > 1 && zeros_pass(want, |i| size[i] / 100.0) {
                failures.push(format!("{n}: a gradient of zeros would pass"));
            }
        }
        for isa in Isa::available() {
            for (to, from) in pairs() {
                // The types of x and dout are swept apart from each other.
                for from_x in Storage::ALL {
                    let mut dx = Stored::new(to, &vec![0.5; ROWS * n]);
                    let mut dw = vec![0.25; n];
                    let (x, dout) = (Stored::new(from_x, &x), Stored::new(from, &dout));
                    for acc in [false, true] {
                        rms_norm::rms_norm_bwd(
                            isa,
                            dx.floats_mut(0, ROWS * n),
                            acc,
                            Some(&mut dw),
                            dout.floats(0),
                            x.floats(0),
                            &w,
                            EPS_NORM,
                        );
                        let times = if acc { 2.0 } else { 1.0 };
                        let want: Vec<f64> = want_dx.iter().map(|d| times * d).collect();
                        let tol = |i: usize| {
                            let size = size_dx[i] * times;
                            (n as f64 / 32.0 + 12.0) * EPS * size
                                + 1e-8 * size
                                + times * to.rounding(want[i])
                        };
                        let result = compare(&dx.to_f32(), &want, tol);
                        let want: Vec<f64> = want_dw.iter().map(|d| 0.25 + times * d).collect();
                        let tol = |i: usize| {
                            let size = 0.25 + size_dw[i] * times;
                            (n as f64 / 32.0 + 3.0 + 8.0) * EPS * size + 1e-8 * size
                        };
                        if let Err(e) = result.and_then(|()| compare(&dw, &want, tol)) {
                            failures
                                .push(format!("{isa} {n} {to:?} {from:?} {from_x:?} {acc}: {e}"));
                        }
                    }
                    let mut alone = Stored::new(to, &vec![0.5; ROWS * n]);
                    let to_alone = alone.floats_mut(0, ROWS * n);
                    let (dout, x) = (dout.floats(0), x.floats(0));
                    rms_norm::rms_norm_bwd(isa, to_alone, false, None, dout, x, &w, EPS_NORM);
                    let again = alone.floats_mut(0, ROWS * n);
                    rms_norm::rms_norm_bwd(isa, again, true, None, dout, x, &w, EPS_NORM);
                    if alone.to_f32() != dx.to_f32() {
                        failures.push(format!("{isa} {n}: dx without dw has other bits"));
                    }
                }
            }
        }
    }
    report(failures);
}

/// The sums of absolute terms that the error bounds of the norm's gradients are stated in.
fn norm_sizes(x: &[f64], w: &[f64], dout: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let n = w.len();
    let (mut dx, mut dw) = (vec![], vec![0.0; n]);
    for (x, dout) in x.chunks(n.max(1)).zip(dout.chunks(n.max(1))) {
        let r = 1.0 / (dot(x, x) / n as f64 + f64::from(EPS_NORM)).sqrt();
        let sum: f64 = (0..n).map(|i| (w[i] * dout[i] * x[i]).abs()).sum::<f64>() / n as f64;
        dx.extend((0..n).map(|i| r * ((w[i] * dout[i]).abs() + x[i].abs() * r * r * sum)));
        (0..n).for_each(|i| dw[i] += (dout[i] * x[i] * r).abs());
    }
    (dx, dw)
}

#[test]
fn swiglu_and_its_gradients_match_the_reference() {
    let mut failures = vec![];
    for n in lengths(16) {
        let mut random = Gen::new(n as u64 + 2);
        let gate: Vec<f32> = brains(&mut random, n).iter().map(|x| 4.0 * x).collect();
        let (up, dout) = (brains(&mut random, n), brains(&mut random, n));
        let want = reference::swiglu(&gate, &up);
        // Element by element, so each is a function of two numbers.
        let (mut want_dgate, mut want_dup) = (vec![], vec![]);
        for ((&g, &u), &d) in gate.iter().zip(&up).zip(&dout) {
            let loss = |at: &[f64]| f64::from(d) * reference::swiglu(&at[..1], &at[1..])[0];
            let slopes = reference::differences(&[f64::from(g), f64::from(u)], loss);
            want_dgate.push(slopes[0]);
            want_dup.push(slopes[1]);
        }
        let sigmoid = |i: usize| 1.0 / (1.0 + (-f64::from(gate[i])).exp());
        let size_dgate: Vec<f64> = (0..n)
            .map(|i| f64::from((dout[i] * up[i]).abs()) * sigmoid(i))
            .zip(&gate)
            .map(|(size, gate)| size * (1.0 + f64::from(gate.abs())))
            .collect();
        if n > 0 && (zeros_pass(&want_dgate, |_| 1e-3) || zeros_pass(&want_dup, |_| 1e-3)) {
            failures.push(format!("{n}: a gradient of zeros would pass"));
        }
        for isa in Isa::available() {
            for (to, from) in pairs() {
                let [g, u, d] = [&gate, &up, &dout].map(|x| Stored::new(from, x));
                // One operand of the other type takes the path of mixtures.
                for mixed in [false, true] {
                    let other = Storage::ALL.into_iter().find(|s| mixed == (*s != from));
                    let u = Stored::new(other.unwrap_or(from), &u.to_f32());
                    let mut out = block(to, 1, &vec![SENTINEL; n]);
                    let to_out = out.floats_mut(1, n);
                    swiglu::swiglu_floats(isa, to_out, g.floats(0), u.floats(0));
                    let tol = |i: usize| 6.0 * EPS * want[i].abs() + to.rounding(want[i]) + 1e-36;
                    let mut results =
                        vec![inside(&out, 1).and_then(|got| compare(&got, &want, tol))];
                    let mut dgate = block(to, 1, &vec![SENTINEL; n]);
                    let mut dup = block(to, 3, &vec![SENTINEL; n]);
                    let (to_dgate, to_dup) = (dgate.floats_mut(1, n), dup.floats_mut(3, n));
                    let (d, g, u) = (d.floats(0), g.floats(0), u.floats(0));
                    swiglu::swiglu_bwd(isa, to_dgate, to_dup, d, g, u);
                    let tol = |i: usize| {
                        (12.0 * EPS + 1e-8) * size_dgate[i] + to.rounding(want_dgate[i]) + 1e-10
                    };
                    results.push(inside(&dgate, 1).and_then(|g| compare(&g, &want_dgate, tol)));
                    let tol = |i: usize| {
                        (7.0 * EPS + 1e-8) * want_dup[i].abs() + to.rounding(want_dup[i]) + 1e-10
                    };
                    results.push(inside(&dup, 3).and_then(|g| compare(&g, &want_dup, tol)));
                    for e in results.into_iter().filter_map(Result::err) {
                        failures.push(format!("{isa} {n} {to:?} {from:?} mixed {mixed}: {e}"));
                    }
                }
            }
        }
    }
    report(failures);
}

#[test]
fn the_gradient_of_swiglu_is_finite_for_every_finite_gate() {
    use puna_cpu::floats::{Floats, FloatsMut};
    let gate = [f32::MAX, f32::MIN, 100.0, -100.0, 88.8, -88.8, -90.0, 0.0, -0.0, 1e-40, -1e4];
    let want_dgate = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.0];
    for isa in Isa::available() {
        let (mut dgate, mut dup) = ([9.0; 11], [9.0; 11]);
        let one = [1.0; 11];
        swiglu::swiglu_bwd(
            isa,
            FloatsMut::F32(&mut dgate),
            FloatsMut::F32(&mut dup),
            Floats::F32(&one),
            Floats::F32(&gate),
            Floats::F32(&one),
        );
        compare(&dgate, &want_dgate, |_| 4.0 * EPS).unwrap_or_else(|e| panic!("{isa}: {e}"));
        let want_dup = reference::swiglu(&gate, &one);
        compare(&dup, &want_dup, |i| 7.0 * EPS * want_dup[i].abs() + 1e-36)
            .unwrap_or_else(|e| panic!("{isa}: {e}"));
    }
}

#[test]
fn rope_turns_back_and_that_is_its_gradient() {
    let mut failures = vec![];
    for head_dim in [2, 8, 24, 64, 66, 80, 128] {
        for n_pairs in [0, 1, head_dim / 4, head_dim / 2] {
            let mut random = Gen::new((head_dim * 1000 + n_pairs) as u64);
            let x = brains(&mut random, 3 * head_dim);
            let dout = brains(&mut random, 3 * head_dim);
            let angles: Vec<f32> = (0..n_pairs).map(|_| 9.0 * random.normal()).collect();
            let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
            for pairing in [Pairing::Half, Pairing::Interleaved] {
                let half = pairing == Pairing::Half;
                let forth = reference::rope(&x, head_dim, &cos, &sin, half);
                let loss =
                    |x: &[f64]| dot(&reference::rope(x, head_dim, &cos, &sin, half), &wide(&dout));
                let back = reference::differences(&wide(&x), loss);
                for isa in Isa::available() {
                    for storage in Storage::ALL {
                        for (start, want, inverse) in [(&x, &forth, false), (&dout, &back, true)] {
                            let mut got = block(storage, 1, start);
                            let row = got.floats_mut(1, 3 * head_dim);
                            rope_floats(isa, row, head_dim, &cos, &sin, pairing, inverse);
                            let tol = |i: usize| 12.0 * EPS + storage.rounding(want[i]) + 1e-8;
                            if let Err(e) = inside(&got, 1).and_then(|g| compare(&g, want, tol)) {
                                failures.push(format!(
                                    "{isa} {head_dim} {n_pairs} {pairing:?} {storage:?} \
                                     inverse {inverse}: {e}"
                                ));
                            }
                        }
                    }
                }
            }
        }
    }
    report(failures);
}

#[test]
fn sums_of_both_types_are_rounded_once_and_columns_sum_in_order() {
    let mut failures = vec![];
    for n in lengths(16) {
        let mut random = Gen::new(n as u64 + 5);
        let (x, y) = (brains(&mut random, ROWS * n), brains(&mut random, ROWS * n));
        let bias = random.normals(n);
        for (isa, offset) in every_level() {
            for (to, from) in pairs() {
                let mut check = |what: &str, got: Result<Vec<f32>, String>, want: Vec<f32>| {
                    let want = Stored::new(to, &want).to_f32();
                    if got.as_ref() != Ok(&want) {
                        failures.push(format!("{isa} {n} {to:?} {from:?}: {what}"));
                    }
                };
                let (mut sum, other) = (block(to, offset, &x), Stored::new(from, &y));
                let to_sum = sum.floats_mut(offset, ROWS * n);
                elementwise::add_floats_acc(isa, to_sum, other.floats(0));
                let want = x.iter().zip(&y).map(|(x, y)| x + y).collect();
                check("add_floats_acc", inside(&sum, offset), want);

                let mut sum = block(to, offset, &x);
                elementwise::add_bias_floats_acc(isa, sum.floats_mut(offset, ROWS * n), &bias);
                let want = x.iter().zip(bias.iter().cycle()).map(|(x, b)| x + b).collect();
                check("add_bias_floats_acc", inside(&sum, offset), want);

                let mut out = block(to, offset, &vec![SENTINEL; ROWS * n]);
                let to_out = out.floats_mut(offset, ROWS * n);
                let mut x = Stored::new(from, &x);
                if from == Storage::F32 {
                    // Numbers that bf16 does not hold.
                    x = Stored::new(from, &random.normals(ROWS * n));
                }
                elementwise::convert_floats(isa, to_out, x.floats(0));
                check("convert_floats", inside(&out, offset), x.to_f32());
            }
            for from in Storage::ALL {
                let dout = Stored::new(from, &x);
                let mut got = vec![SENTINEL; offset];
                got.extend(&bias);
                let mut want = bias.clone();
                for _ in 0..2 {
                    elementwise::bias_bwd_acc(isa, &mut got[offset..], dout.floats(0));
                    for row in x.chunks(n.max(1)) {
                        want.iter_mut().zip(row).for_each(|(want, x)| *want += x);
                    }
                }
                if got[offset..] != want || got[..offset].iter().any(|&x| x != SENTINEL) {
                    failures.push(format!("{isa} {n} {from:?}: bias_bwd_acc"));
                }
            }
        }
    }
    report(failures);
}
