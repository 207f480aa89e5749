//! The gated activation on the device against f64, forward and backward, in all mixtures of types.

use puna::cuda::swiglu::{swiglu, swiglu_bwd};
use puna::rng::Rng;
use puna_cpu::reference;
use puna_cpu::testing::{Storage, Stored};

use crate::stored::{OnDevice, pairs};
use crate::support::{EPS_F32, Failures, gpu, normals};

/// Nothing, one, tails of a thread's eight and of a block's 2048.
const SIZES: &[usize] = &[0, 1, 7, 8, 9, 61, 2047, 2048, 2057, 4099];

/// Gates from where the activation vanishes to where it is the identity, exponentials that overflow
/// among them.
fn gates(rng: &mut Rng, n: usize) -> Vec<f32> {
    let mut x: Vec<f32> = normals(rng, n).iter().map(|x| 3.0 * x).collect();
    for (x, extreme) in x.iter_mut().skip(1).step_by(17).zip([-100.0, 100.0, -88.0, 0.0, -0.0]) {
        *x = extreme;
    }
    x
}

#[test]
fn forward_is_the_formula() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (&n, skip) in SIZES.iter().flat_map(|n| [(n, 0), (n, 1)]) {
        let mut rng = Rng::new(6, n as u64);
        let (gate, up) = (gates(&mut rng, n), normals(&mut rng, n));
        for (to, from) in pairs() {
            let [g, u] = [&gate, &up].map(|x| OnDevice::new(&gpu, from, x, skip));
            let mut out = OnDevice::new(&gpu, to, &vec![3.0; n], skip);
            swiglu(&gpu, out.floats_mut(), g.floats(), u.floats()).unwrap();
            let [g, u] = [&gate, &up].map(|x| Stored::new(from, x).to_f32());
            let want = reference::swiglu(&g, &u);
            let case = format!("{n} {from:?} to {to:?} +{skip}");
            // An exponential of 2 ulp, and the roundings of sum, quotient, product; below the
            // smallest normal number there is nothing to be right about.
            failures.compare(&case, &out.get(), &want, |i| {
                24.0 * EPS_F32 * want[i].abs() + 1e-37 + to.rounding(want[i])
            });
        }
    }
    failures.end();
}

#[test]
fn backward_is_the_derivative() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (&n, skip) in SIZES.iter().flat_map(|n| [(n, 0), (n, 1)]) {
        let mut rng = Rng::new(7, n as u64);
        let (gate, up) = (gates(&mut rng, n), normals(&mut rng, n));
        let dout = normals(&mut rng, n);
        for ((to, from), of) in pairs().into_iter().flat_map(|p| Storage::ALL.map(|s| (p, s))) {
            let [g, u] = [&gate, &up].map(|x| OnDevice::new(&gpu, from, x, skip));
            let d = OnDevice::new(&gpu, of, &dout, skip);
            let [mut dgate, mut dup] =
                [3.0, 5.0].map(|x| OnDevice::new(&gpu, to, &vec![x; n], skip));
            let outs = [dgate.floats_mut(), dup.floats_mut()];
            swiglu_bwd(&gpu, outs, d.floats(), g.floats(), u.floats()).unwrap();

            let [g, u] = [&gate, &up].map(|x| Stored::new(from, x).to_f32());
            let d = Stored::new(of, &dout).to_f32();
            let (mut want_gate, mut want_up, mut size) = (vec![], vec![], vec![]);
            for ((g, u), d) in g.iter().zip(&u).zip(&d) {
                let [g, u, d] = [g, u, d].map(|&x| f64::from(x));
                let s = 1.0 / (1.0 + (-g).exp());
                want_up.push(d * g * s);
                want_gate.push(d * u * s * (1.0 + g * (1.0 - s)));
                size.push((d * u).abs() * s * (1.0 + g.abs()));
            }
            let case = format!("{n} {of:?}, {from:?} to {to:?} +{skip}");
            failures.compare(&format!("dup {case}"), &dup.get(), &want_up, |i| {
                28.0 * EPS_F32 * want_up[i].abs() + 1e-37 + to.rounding(want_up[i])
            });
            failures.compare(&format!("dgate {case}"), &dgate.get(), &want_gate, |i| {
                48.0 * EPS_F32 * size[i] + 1e-37 + to.rounding(want_gate[i])
            });
        }
    }
    failures.end();
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let [eight, seven] = [8, 7].map(|n| OnDevice::new(&gpu, Storage::F32, &vec![1.0; n], 0));
    let low = OnDevice::new(&gpu, Storage::Bf16, &[1.0; 8], 0);
    let mut out = OnDevice::new(&gpu, Storage::F32, &[1.0; 8], 0);
    let error = swiglu(&gpu, out.floats_mut(), eight.floats(), seven.floats()).unwrap_err();
    assert!(error.to_string().contains("up: shape 7 elements, wanted 8"), "{error}");
    let error = swiglu(&gpu, out.floats_mut(), eight.floats(), low.floats()).unwrap_err();
    assert!(error.to_string().contains("up: element type bf16, wanted f32"), "{error}");
    let mut other = OnDevice::new(&gpu, Storage::Bf16, &[1.0; 8], 0);
    let outs = [out.floats_mut(), other.floats_mut()];
    let x = eight.floats();
    let error = swiglu_bwd(&gpu, outs, x, x, x).unwrap_err();
    assert!(error.to_string().contains("dup: element type bf16, wanted f32"), "{error}");
}
