//! Rotary embedding on the device against the CPU crate's f64 reference.

use puna::cuda::rope::{Angles, Pairing, rope};
use puna::rng::Rng;
use puna_cpu::reference;
use puna_cpu::testing::{Storage, Stored};

use crate::stored::OnDevice;
use crate::support::{EPS_F32, Failures, gpu, guarded, normals, to_f64};

/// Rows, heads, head_dim, half: nothing, one pair, heads that are rotated in part, widths that no
/// vector fits, real heads, more pairs than a block has threads.
const SIZES: &[(usize, usize, usize, usize)] = &[
    (0, 2, 8, 4),
    (1, 1, 2, 1),
    (3, 2, 7, 3),
    (2, 3, 16, 0),
    (2, 3, 32, 8),
    (5, 2, 24, 12),
    (3, 1, 64, 32),
    (2, 2, 80, 40),
    (2, 2, 96, 16),
    (3, 33, 128, 64),
    (2, 300, 6, 2),
    (1, 2, 256, 128),
];

#[test]
fn rotation_is_the_formula_and_leaves_the_rest() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    let ways = [Pairing::Half, Pairing::Interleaved].map(|pairing| [(pairing, 1), (pairing, -1)]);
    for &(rows, heads, head_dim, half) in SIZES {
        let width = heads * head_dim;
        let mut rng = Rng::new(4, (rows * 1_000_003 + width * 1009 + half) as u64);
        let x = normals(&mut rng, rows * width);
        let angles = normals(&mut rng, rows * half);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let [device_cos, device_sin] = [&cos, &sin].map(|x| guarded(&gpu, x));
        let (cos_of, sin_of) = (device_cos.slice(), device_sin.slice());
        let angles = Angles { cos: cos_of, sin: sin_of, half };
        let cases = ways.iter().flatten().flat_map(|way| Storage::ALL.map(|s| (way, s)));
        for ((&(pairing, sign), storage), skip) in cases.flat_map(|case| [(case, 0), (case, 1)]) {
            let case = format!(
                "[{rows}, {heads}, {head_dim}] half {half} {pairing:?} {sign} {storage:?} +{skip}"
            );
            let before = Stored::new(storage, &x).to_f32();
            let mut device = OnDevice::new(&gpu, storage, &x, skip);
            rope(&gpu, device.floats_mut(), width, head_dim, angles, pairing, sign < 0).unwrap();
            let got = device.get();

            let mut want = vec![];
            let mut size = vec![];
            for row in 0..rows {
                let of = row * half..(row + 1) * half;
                let turned: Vec<f32> = sin[of.clone()].iter().map(|s| s * sign as f32).collect();
                let is_half = pairing == Pairing::Half;
                let row = &before[row * width..(row + 1) * width];
                want.extend(reference::rope(row, head_dim, &cos[of], &turned, is_half));
                // The largest two of a head are no smaller than those of a pair.
                for head in row.chunks(head_dim) {
                    let largest = head.iter().fold(0f32, |m, x| m.max(x.abs()));
                    size.extend(vec![2.0 * f64::from(largest); head_dim]);
                }
            }
            // Two products and a sum, each rounded, and the result's own type.
            failures.compare(&case, &got, &want, |i| {
                3.0 * EPS_F32 * size[i] + storage.rounding(want[i])
            });
            let rest = |x: &[f32]| -> Vec<f32> {
                x.chunks(head_dim).flat_map(|head| head[2 * half..].to_vec()).collect()
            };
            failures.compare_bits(&format!("rest {case}"), &rest(&got), &rest(&before));
        }
        for table in [device_cos, device_sin] {
            table.check();
        }
    }
    failures.end();
}

#[test]
fn back_and_forth_is_where_it_was() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    let (rows, width, head_dim, half) = (3, 96, 48, 20);
    let mut rng = Rng::new(5, 0);
    let x = normals(&mut rng, rows * width);
    let angles = normals(&mut rng, rows * half);
    let cos = gpu.upload(&angles.iter().map(|a| a.cos()).collect::<Vec<_>>()).unwrap();
    let sin = gpu.upload(&angles.iter().map(|a| a.sin()).collect::<Vec<_>>()).unwrap();
    let angles = Angles { cos: cos.slice(), sin: sin.slice(), half };
    for pairing in [Pairing::Half, Pairing::Interleaved] {
        let mut device = OnDevice::new(&gpu, Storage::F32, &x, 0);
        for inverse in [false, true] {
            let x = device.floats_mut();
            rope(&gpu, x, width, head_dim, angles, pairing, inverse).unwrap();
        }
        // Two rotations by tables whose squares miss 1 by two roundings; numbers are below 5.
        let tolerance = 5.0 * 16.0 * EPS_F32;
        failures.compare(&format!("{pairing:?}"), &device.get(), &to_f64(&x), |_| tolerance);
    }
    failures.end();
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let table = gpu.upload(&[1f32; 8]).unwrap();
    let refused = |len, width, head_dim, half, pairs: usize, words: &str| {
        let mut x = OnDevice::new(&gpu, Storage::F32, &vec![1.0; len], 0);
        let cos = table.slice().range(0..pairs);
        let angles = Angles { cos, sin: table.slice().range(0..4), half };
        let x = x.floats_mut();
        let error = rope(&gpu, x, width, head_dim, angles, Pairing::Half, false).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(17, 8, 4, 2, 4, "wanted rows of 8 elements");
    refused(16, 8, 3, 2, 4, "heads: shape 8 elements, wanted rows of 3");
    refused(16, 8, 4, 3, 4, "wanted at most 2 pairs in a head of 4");
    refused(16, 8, 4, 2, 3, "cos: shape 3 elements, wanted 4");
    refused(24, 8, 4, 2, 6, "sin: shape 4 elements, wanted 6");
}
