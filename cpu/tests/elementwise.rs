//! Every element-wise and row kernel at every level against the f64 reference: all tails, and
//! offsets that break alignment.

use half::{bf16, f16};
use puna_cpu::isa::Isa;
use puna_cpu::rope::{Pairing, rope};
use puna_cpu::testing::{EPS, Gen, OFFSETS, compare, lengths, ulps};
use puna_cpu::{convert, elementwise, reference, rms_norm, softmax, swiglu};

/// Every level, length and offset; `f` describes a failure.
fn sweep(f: impl Fn(Isa, usize, usize) -> Result<(), String>) {
    let mut failures = vec![];
    for isa in Isa::available() {
        for n in lengths(16) {
            for offset in OFFSETS {
                if let Err(message) = f(isa, n, offset) {
                    failures.push(format!("{isa}, length {n}, offset {offset}: {message}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

const SENTINEL: f32 = 12345.0;

/// A buffer of `n` sentinels at `offset`, with three more behind.
fn output(n: usize, offset: usize) -> Vec<f32> {
    vec![SENTINEL; n + offset + 3]
}

fn check_sentinels(buffer: &[f32], n: usize, offset: usize) -> Result<(), String> {
    let outside = buffer[..offset].iter().chain(&buffer[offset + n..]);
    if outside.copied().all(|x| x == SENTINEL) { Ok(()) } else { Err("wrote outside".into()) }
}

#[test]
fn sums_and_scaling_are_rounded_once() {
    sweep(|isa, n, offset| {
        let mut random = Gen::new(n as u64);
        let (x, y) = (random.normals(n), random.normals(n + offset));
        let y = &y[offset..];
        let mut out = output(n, offset);
        out[offset..offset + n].copy_from_slice(&x);
        elementwise::add_acc(isa, &mut out[offset..offset + n], y);
        let sums: Vec<f32> = x.iter().zip(y).map(|(x, y)| x + y).collect();
        if out[offset..offset + n] != sums {
            return Err("add_acc".into());
        }
        elementwise::scale(isa, &mut out[offset..offset + n], 1.7);
        let scaled: Vec<f32> = sums.iter().map(|x| x * 1.7).collect();
        if out[offset..offset + n] != scaled {
            return Err("scale".into());
        }
        check_sentinels(&out, n, offset)?;
        let mut rows = [x.clone(), x.clone(), x.clone()].concat();
        elementwise::add_bias_acc(isa, &mut rows, y);
        if rows.chunks(n.max(1)).any(|row| row != sums) {
            return Err("add_bias_acc".into());
        }
        Ok(())
    });
}

#[test]
fn rms_norm_matches_the_reference() {
    sweep(|isa, n, offset| {
        let mut random = Gen::new(n as u64 + 1);
        let (x, w) = (random.normals(3 * n + offset), random.normals(n));
        let x = &x[offset..];
        let mut out = output(3 * n, offset);
        rms_norm::rms_norm(isa, &mut out[offset..offset + 3 * n], x, &w, 1e-5);
        check_sentinels(&out, 3 * n, offset)?;
        let want = reference::rms_norm(x, &w, 1e-5);
        // Partial sums of n / 32 terms and their tree, the root, the quotient, two products.
        let rel = (n as f64 / 32.0 + 8.0) * EPS;
        compare(&out[offset..offset + 3 * n], &want, |i| rel * want[i].abs())?;
        let mut alone = vec![0.0; n];
        rms_norm::rms_norm(isa, &mut alone, &x[n..2 * n], &w, 1e-5);
        if alone != out[offset + n..offset + 2 * n] {
            return Err("a row alone has other bits than among others".into());
        }
        Ok(())
    });
}

#[test]
fn swiglu_matches_the_reference() {
    sweep(|isa, n, offset| {
        let mut random = Gen::new(n as u64 + 2);
        let gate: Vec<f32> = (0..n + offset).map(|_| 20.0 * random.normal()).collect();
        let up = random.normals(n);
        let mut out = output(n, offset);
        swiglu::swiglu(isa, &mut out[offset..offset + n], &gate[offset..], &up);
        check_sentinels(&out, n, offset)?;
        let want = reference::swiglu(&gate[offset..], &up);
        compare(&out[offset..offset + n], &want, |i| 6.0 * EPS * want[i].abs() + 1e-36)
    });
}

#[test]
fn swiglu_is_stable_for_every_finite_gate() {
    let gate = [f32::MAX, f32::MIN, 100.0, -100.0, 88.8, -88.8, -90.0, 0.0, -0.0, 1e-40, -1e4];
    for isa in Isa::available() {
        let mut out = [0.0; 11];
        swiglu::swiglu(isa, &mut out, &gate, &[1.0; 11]);
        let want = reference::swiglu(&gate, &[1.0; 11]);
        compare(&out, &want, |i| 6.0 * EPS * want[i].abs() + 1e-36)
            .unwrap_or_else(|e| panic!("{isa}: {e}"));
    }
}

#[test]
fn softmax_matches_the_reference() {
    sweep(|isa, n, offset| {
        let mut random = Gen::new(n as u64 + 3);
        let x: Vec<f32> = (0..n).map(|_| 10.0 * random.normal()).collect();
        let mut out = output(n, offset);
        out[offset..offset + n].copy_from_slice(&x);
        softmax::softmax(isa, &mut out[offset..offset + n]);
        check_sentinels(&out, n, offset)?;
        let want = reference::softmax(&x);
        let max = x.iter().copied().fold(f32::MIN, f32::max);
        let tol = |i: usize| {
            let shift = f64::from(max - x[i]);
            (n as f64 / 8.0 + 8.0 + shift) * EPS * want[i]
        };
        compare(&out[offset..offset + n], &want, tol)?;
        if n > 0 {
            let got = f64::from(softmax::log_sum_exp(isa, &x));
            let want = reference::log_sum_exp(&x);
            if (got - want).abs() > (n as f64 / 8.0 + 8.0 + want.abs()) * EPS {
                return Err(format!("log_sum_exp: {got}, want {want}"));
            }
        }
        Ok(())
    });
}

#[test]
fn softmax_knows_its_ends() {
    let inf = f32::INFINITY;
    for isa in Isa::available() {
        let mut x = [-inf, 1000.0, -inf, 1000.0];
        softmax::softmax(isa, &mut x);
        assert_eq!(x, [0.0, 0.5, 0.0, 0.5], "{isa}");
        let mut x = [-inf; 19];
        softmax::softmax(isa, &mut x);
        assert_eq!(x, [0.0; 19], "{isa}");
        let mut x = [0.0, f32::NAN, 0.0];
        softmax::softmax(isa, &mut x);
        assert!(x.iter().all(|x| x.is_nan()), "{isa}: {x:?}");
        assert_eq!(softmax::log_sum_exp(isa, &[]), -inf, "{isa}");
        assert_eq!(softmax::log_sum_exp(isa, &[-inf, -inf]), -inf, "{isa}");
        assert_eq!(softmax::log_sum_exp(isa, &[inf, 0.0]), inf, "{isa}");
        assert!(softmax::log_sum_exp(isa, &[f32::NAN, 0.0]).is_nan(), "{isa}");
        assert_eq!(softmax::log_sum_exp(isa, &[500.0]), 500.0, "{isa}");
    }
}

#[test]
fn rope_matches_the_reference() {
    let mut failures = vec![];
    for isa in Isa::available() {
        for head_dim in [2, 8, 12, 16, 24, 64, 66, 80, 96, 128, 256] {
            for pairs in [0, 1, head_dim / 4, head_dim / 2] {
                let mut random = Gen::new((head_dim * 1000 + pairs) as u64);
                let x = random.normals(3 * head_dim);
                let angles: Vec<f32> = (0..pairs).map(|_| 9.0 * random.normal()).collect();
                let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
                let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
                for pairing in [Pairing::Half, Pairing::Interleaved] {
                    let half = pairing == Pairing::Half;
                    let want = reference::rope(&x, head_dim, &cos, &sin, half);
                    let mut got = x.clone();
                    rope(isa, &mut got, head_dim, &cos, &sin, pairing);
                    // |cos| and |sin| are at most 1, both elements at most 3.
                    if let Err(e) = compare(&got, &want, |_| 2.0 * EPS * 6.0) {
                        failures.push(format!("{isa} {head_dim} {pairs} {pairing:?}: {e}"));
                    }
                    let rest = |x: &[f32]| -> Vec<f32> {
                        x.chunks(head_dim).flat_map(|h| h[2 * pairs..].to_vec()).collect()
                    };
                    if rest(&got) != rest(&x) {
                        failures.push(format!("{isa} {head_dim} {pairs}: rest changed"));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_16_bit_number_widens_exactly() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(|bits| bits.to_le_bytes()).collect();
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    // Byte sources also start one byte off.
    let shifted: Vec<u8> = [&[0], &bytes[..]].concat();
    for isa in Isa::available() {
        for n in lengths(16).into_iter().chain([1 << 16]) {
            let mut out = [vec![0.0; n], vec![0.0; n], vec![0.0; n], vec![0.0; n]];
            let [a, b, c, d] = &mut out;
            convert::f16_to_f32(isa, a, &halves[..n]);
            convert::f16_bytes_to_f32(isa, b, &shifted[1..1 + 2 * n]);
            convert::bf16_to_f32(isa, c, &brains[..n]);
            convert::bf16_bytes_to_f32(isa, d, &shifted[1..1 + 2 * n]);
            for i in 0..n {
                for got in [a[i], b[i]] {
                    assert_eq!(ulps(got, halves[i].to_f64()), 0.0, "{isa}: f16 {i:#x}: {got}");
                }
                for got in [c[i], d[i]] {
                    assert_eq!(ulps(got, brains[i].to_f64()), 0.0, "{isa}: bf16 {i:#x}: {got}");
                }
            }
        }
    }
}

#[test]
fn narrowing_rounds_to_nearest_even() {
    let mut x = vec![65504.0, 65519.9, 65520.0, -1e9, f32::INFINITY, 6e-8, 2.9e-8, 3e-8, f32::MAX];
    // Every f16 and the exact middles between neighbours, where ties go to even.
    for bits in (0..0x7c00u16).step_by(7) {
        let (a, b) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
        x.extend([a, -a, (a + b) / 2.0, -(a + b) / 2.0]);
    }
    for i in (0..0x7f80_0000u32).step_by(70_001) {
        x.extend([f32::from_bits(i), f32::from_bits(i & !0x7fff | 0x8000)]);
    }
    x.push(f32::NAN);
    for isa in Isa::available() {
        let mut halves = vec![f16::ZERO; x.len()];
        let mut brains = vec![bf16::ZERO; x.len()];
        convert::f32_to_f16(isa, &mut halves, &x);
        convert::f32_to_bf16(isa, &mut brains, &x);
        for (i, &x) in x.iter().enumerate() {
            let (h, b) = (f16::from_f32(x), bf16::from_f32(x));
            assert!(halves[i] == h || x.is_nan() && halves[i].is_nan(), "{isa}: {x}");
            assert!(brains[i] == b || x.is_nan() && brains[i].is_nan(), "{isa}: {x}");
        }
        for n in lengths(16).into_iter().filter(|&n| n < 1000) {
            let mut out = vec![f16::ONE; n + 1];
            convert::f32_to_f16(isa, &mut out[..n], &x[..n]);
            assert_eq!(out[..n], halves[..n], "{isa}: length {n}");
            assert_eq!(out[n], f16::ONE, "{isa}: wrote past length {n}");
        }
    }
}
