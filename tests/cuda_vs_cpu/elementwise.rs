//! Sums, scaling, conversion and dropout on the device: the CPU crate's bits. Column sums, whose order
//! is another: against f64.

use puna::cuda::elementwise::{add_acc, add_bias_acc, bias_bwd_acc, convert, dropout, fill, scale};
use puna::cuda::{DeviceSliceMut, FloatsMut};
use puna::rng::Rng;
use puna_cpu::isa::Isa;
use puna_cpu::testing::{Storage, Stored};
use puna_cpu::{dropout as cpu_dropout, elementwise as cpu};

use crate::stored::{OnDevice, pairs};
use crate::support::{EPS_F32, Failures, gpu, guarded, normals};

/// Nothing, one, tails of a thread's eight and of a block's 2048.
const SIZES: &[usize] = &[0, 1, 7, 8, 9, 61, 2047, 2048, 2057, 4099];

/// Rows and columns.
const ROWS: &[(usize, usize)] =
    &[(0, 8), (1, 1), (3, 7), (2, 8), (5, 33), (64, 24), (65, 48), (129, 17), (2100, 3), (2, 2056)];

fn f32_mut<'a>(x: &'a mut OnDevice<'_>) -> DeviceSliceMut<'a, f32> {
    match x.floats_mut() {
        FloatsMut::F32(x) => x,
        FloatsMut::Bf16(_) => panic!("f32 is asked for"),
    }
}

#[test]
fn sums_scaling_and_conversion_have_the_cpus_bits() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (&n, skip) in SIZES.iter().flat_map(|n| [(n, 0), (n, 1)]) {
        let mut rng = Rng::new(8, n as u64);
        let (x, y) = (normals(&mut rng, n), normals(&mut rng, n));
        for (to, from) in pairs() {
            let case = format!("{n} {from:?} to {to:?} +{skip}");
            let on_cpu = Stored::new(from, &y);
            let mut want = Stored::new(to, &x);
            let mut got = OnDevice::new(&gpu, to, &x, skip);
            let other = OnDevice::new(&gpu, from, &y, skip);
            for _ in 0..2 {
                cpu::add_floats_acc(Isa::PORTABLE, want.floats_mut(0, n), on_cpu.floats(0));
                add_acc(&gpu, got.floats_mut(), other.floats()).unwrap();
            }
            failures.compare_bits(&format!("add {case}"), &got.get(), &want.to_f32());
            cpu::convert_floats(Isa::PORTABLE, want.floats_mut(0, n), on_cpu.floats(0));
            convert(&gpu, got.floats_mut(), other.floats()).unwrap();
            failures.compare_bits(&format!("convert {case}"), &got.get(), &want.to_f32());
        }
        let mut want = x.clone();
        cpu::scale(Isa::PORTABLE, &mut want, 0.3);
        let mut got = OnDevice::new(&gpu, Storage::F32, &x, skip);
        scale(&gpu, f32_mut(&mut got), 0.3).unwrap();
        failures.compare_bits(&format!("scale {n} +{skip}"), &got.get(), &want);
        for storage in Storage::ALL {
            let mut got = OnDevice::new(&gpu, storage, &x, skip);
            fill(&gpu, got.floats_mut(), 0.3).unwrap();
            let want = Stored::new(storage, &vec![0.3; n]).to_f32();
            failures.compare_bits(&format!("fill {n} {storage:?}"), &got.get(), &want);
        }
    }
    failures.end();
}

#[test]
fn narrowing_rounds_to_even_and_keeps_what_is_no_number() {
    let Some(gpu) = gpu() else { return };
    // Ties with an even and an odd neighbour below, their neighbours, what becomes infinite, the
    // smallest numbers.
    let bits: [u32; 14] = [
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_7fff,
        0x3f80_8001,
        0x7f7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0x0000_0001,
        0x0000_8000,
        0x0000_8001,
        0x8000_0000,
        0x0080_0000,
        0x807f_ffff,
        0x0000_0000,
    ];
    let mut x = bits.map(f32::from_bits).to_vec();
    let mut want = Stored::new(Storage::Bf16, &x).to_f32();
    x.push(f32::NAN);
    let input = OnDevice::new(&gpu, Storage::F32, &x, 0);
    let mut low = OnDevice::new(&gpu, Storage::Bf16, &vec![1.0; x.len()], 0);
    convert(&gpu, low.floats_mut(), input.floats()).unwrap();
    let mut got = low.get();
    assert!(got.pop().is_some_and(f32::is_nan));
    let mut wide = OnDevice::new(&gpu, Storage::F32, &vec![1.0; x.len()], 0);
    convert(&gpu, wide.floats_mut(), low.floats()).unwrap();
    let mut back = wide.get();
    assert!(back.pop().is_some_and(f32::is_nan));
    let mut failures = Failures::default();
    failures.compare_bits("narrowed", &got, &want);
    failures.compare_bits("widened", &back, &want);
    want.clear();
    failures.end();
}

#[test]
fn biases_are_added_with_the_cpus_bits() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (&(rows, columns), skip) in ROWS.iter().flat_map(|size| [(size, 0), (size, 1)]) {
        let mut rng = Rng::new(9, (rows * 10_000 + columns) as u64);
        let x = normals(&mut rng, rows * columns);
        let bias = normals(&mut rng, columns);
        let device_bias = guarded(&gpu, &bias);
        for storage in Storage::ALL {
            let mut want = Stored::new(storage, &x);
            let mut got = OnDevice::new(&gpu, storage, &x, skip);
            for _ in 0..2 {
                let want = want.floats_mut(0, x.len());
                cpu::add_bias_floats_acc(Isa::PORTABLE, want, &bias);
                add_bias_acc(&gpu, got.floats_mut(), device_bias.slice()).unwrap();
            }
            let case = format!("[{rows}, {columns}] {storage:?} +{skip}");
            failures.compare_bits(&case, &got.get(), &want.to_f32());
        }
        device_bias.check();
    }
    failures.end();
}

#[test]
fn a_biass_gradient_is_the_sum_of_rows() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for &(rows, columns) in ROWS {
        let mut rng = Rng::new(10, (rows * 10_000 + columns) as u64);
        let dout = normals(&mut rng, rows * columns);
        let before = normals(&mut rng, columns);
        for storage in Storage::ALL {
            let device = OnDevice::new(&gpu, storage, &dout, 0);
            let run = |calls| {
                let mut dbias = guarded(&gpu, &before);
                for _ in 0..calls {
                    bias_bwd_acc(&gpu, dbias.slice_mut(), device.floats()).unwrap();
                }
                dbias.check()
            };
            let dout = Stored::new(storage, &dout).to_f32();
            let mut want: Vec<f64> = before.iter().map(|&x| x.into()).collect();
            let mut size: Vec<f64> = want.iter().map(|x| x.abs()).collect();
            for row in dout.chunks(columns) {
                for (j, &d) in row.iter().enumerate() {
                    want[j] += 2.0 * f64::from(d);
                    size[j] += 2.0 * f64::from(d).abs();
                }
            }
            let case = format!("[{rows}, {columns}] {storage:?}");
            // The additions of two calls that one row's value goes through at most.
            let steps = (rows.min(64) + 2 * rows.div_ceil(64)) as f64;
            let got = run(2);
            failures.compare(&case, &got, &want, |i| steps * EPS_F32 * size[i]);
            failures.compare_bits(&format!("again {case}"), &run(2), &got);
        }
    }
    failures.end();
}

#[test]
fn dropout_has_the_cpus_mask_and_bits() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    // Places beyond 32 bits, and a mask whose lower half wraps within the array.
    let masks = [
        (0.0, 1, 0),
        (0.1, 2, 3),
        (0.5, u64::MAX, (1 << 32) - 5),
        (0.999, 1 << 40, u64::MAX - 4),
        (0.25, 77, 1 << 45),
    ];
    for (&n, skip) in SIZES.iter().flat_map(|n| [(n, 0), (n, 1)]) {
        let x = normals(&mut Rng::new(11, n as u64), n);
        let cases = pairs().into_iter().flat_map(|pair| masks.map(|mask| (pair, mask)));
        for ((to, from), (p, key, first)) in cases {
            let mut want = Stored::new(to, &vec![3.0; n]);
            let on_cpu = Stored::new(from, &x);
            let (out, input) = (want.floats_mut(0, n), on_cpu.floats(0));
            cpu_dropout::dropout(Isa::PORTABLE, out, input, p, key, first);
            let input = OnDevice::new(&gpu, from, &x, skip);
            let mut got = OnDevice::new(&gpu, to, &vec![3.0; n], skip);
            dropout(&gpu, got.floats_mut(), input.floats(), p, key, first).unwrap();
            let case = format!("{n} {from:?} to {to:?} p {p} key {key} first {first} +{skip}");
            failures.compare_bits(&case, &got.get(), &want.to_f32());
        }
    }
    failures.end();
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let [mut eight, mut seven] =
        [8, 7].map(|n| OnDevice::new(&gpu, Storage::F32, &vec![1.0; n], 0));
    let low = OnDevice::new(&gpu, Storage::Bf16, &[1.0; 8], 0);
    let bias = gpu.upload(&[1f32; 3]).unwrap();
    let says = |result: puna::Result<()>, words: &str| {
        let error = result.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    says(add_acc(&gpu, seven.floats_mut(), low.floats()), "y: shape 8 elements, wanted 7");
    says(convert(&gpu, seven.floats_mut(), low.floats()), "x: shape 8 elements, wanted 7");
    says(add_bias_acc(&gpu, eight.floats_mut(), bias.slice()), "wanted rows of 3 elements");
    let out = seven.floats_mut();
    says(dropout(&gpu, out, low.floats(), 0.5, 0, 0), "x: shape 8 elements, wanted 7");
    for p in [-0.1, 1.0, f32::NAN] {
        let out = eight.floats_mut();
        says(dropout(&gpu, out, low.floats(), p, 0, 0), "wanted at least 0 and less than 1");
    }
}
