use super::*;
use crate::isa::Isa;
use crate::reference::{nf4_decode, nf4_encode, nf4_nested};
use crate::team::Team;
use crate::testing::Gen;

/// Sizes whose rows are and are not whole blocks, even and odd, empty and of several pieces.
const SHAPES: [[usize; 2]; 10] =
    [[0, 5], [1, 1], [1, 63], [3, 64], [5, 37], [7, 96], [40, 200], [9, 65], [2, 1], [70, 1000]];

/// Weights of very different sizes, some of them zero.
fn weights(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = Gen::new(seed);
    let mut weight = |i: usize| match i % 300 {
        0..64 => 0.0,
        64 => 30.0 * rng.normal(),
        _ => 0.02 * rng.normal(),
    };
    (0..n).map(&mut weight).collect()
}

fn unpacked(w: &Nf4Matrix) -> Vec<u8> {
    let pairs = w.codes().iter().flat_map(|byte| [byte >> 4, byte & 15]);
    pairs.take(w.n() * w.k()).collect()
}

#[test]
fn codes_and_scales_are_those_of_the_formulae() {
    for (seed, [n, k]) in SHAPES.into_iter().enumerate() {
        let w = weights(seed as u64, n * k);
        let (codes, scales) = nf4_encode(&w);
        for threads in [1, 3] {
            let team = Team::new(threads).unwrap();
            let single = Nf4Matrix::of(&team, &w, [n, k], false);
            assert!(unpacked(&single) == codes, "[{n}, {k}]");
            assert!((0..scales.len()).all(|b| single.scale(b).to_bits() == scales[b].to_bits()));
            assert_eq!(single.bytes(), codes.len().div_ceil(64) * 32 + 4 * scales.len());
            let double = Nf4Matrix::of(&team, &w, [n, k], true);
            assert!(double.codes() == single.codes());
            let nested = double.nested().unwrap();
            let (wanted, largest) = nf4_nested(&scales, nested.offset);
            assert!(nested.codes[..] == wanted && nested.largest[..] == largest, "[{n}, {k}]");
            if !scales.is_empty() {
                let mean = scales.iter().map(|&s| f64::from(s)).sum::<f64>() / scales.len() as f64;
                // Sums of positive numbers: a rounding a level and lane.
                let far = (f64::from(nested.offset) - mean).abs();
                assert!(far <= 64.0 * f64::from(f32::EPSILON) * mean, "[{n}, {k}]");
            }
        }
        if n * k % 2 == 1 {
            let team = Team::new(1).unwrap();
            let w = Nf4Matrix::of(&team, &w, [n, k], true);
            assert_eq!(w.codes().last().map(|byte| byte & 15), Some(ZERO));
        }
    }
}

#[test]
fn every_level_decodes_every_part_to_the_same_bits() {
    let team = Team::new(2).unwrap();
    for (seed, [n, k]) in SHAPES.into_iter().enumerate() {
        let w = weights(seed as u64, n * k);
        let (codes, scales) = nf4_encode(&w);
        for double_quant in [false, true] {
            let matrix = Nf4Matrix::of(&team, &w, [n, k], double_quant);
            let held: Vec<f32> = (0..scales.len()).map(|b| matrix.scale(b)).collect();
            let wanted = nf4_decode(&codes, &held);
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; n * k];
                matrix.decode(isa, &mut out, 0);
                assert!(out == wanted, "{isa} [{n}, {k}]");
                for first in [1, 2, 31, 32, 63, 64, 67, 130] {
                    for len in [0, 1, 2, 15, 16, 17, 33, 64, 129] {
                        if first + len > n * k {
                            continue;
                        }
                        let mut out = vec![f32::NAN; len];
                        matrix.decode(isa, &mut out, first);
                        assert!(out == wanted[first..first + len], "{isa} {first}..+{len}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_code_is_the_nearest_and_the_largest_weight_is_kept() {
    let w = weights(5, 4096);
    let matrix = Nf4Matrix::of(&Team::new(1).unwrap(), &w, [64, 64], false);
    let mut out = vec![0.0; w.len()];
    matrix.decode(Isa::best(), &mut out, 0);
    for (block, out) in w.chunks(BLOCK).zip(out.chunks(BLOCK)) {
        let scale = block.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        // Half of the widest gap between codes, that between the two smallest.
        let bound = scale * ((CODE[1] - CODE[0]) / 2.0) * (1.0 + 4.0 * f32::EPSILON);
        for (w, out) in block.iter().zip(out) {
            assert!((w - out).abs() <= bound, "{w} became {out}");
            assert!(w.abs() < scale || w == out, "the largest, {w}, became {out}");
        }
    }
}

#[test]
fn the_codes_of_scales_ascend_and_a_scale_moves_little() {
    assert!(NESTED_CODE.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!((NESTED_CODE[127], NESTED_CODE[255]), (0.0, 1.0));
    let scales: Vec<f32> = Gen::new(3).normals(1000).iter().map(|x| x.abs()).collect();
    let nested = Nested::encode(&scales);
    for (i, scale) in scales.iter().enumerate() {
        let far = (nested.scale(i) - scale).abs() / nested.largest[i / NESTED_BLOCK];
        // Half of the widest gap, that between the last midpoint and one.
        assert!(far <= 0.0071, "{scale}: {far}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_told() {
    let team = Team::new(1).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for double_quant in [false, true] {
            let mut w = weights(6, 640);
            assert!(Nf4Matrix::of(&team, &w, [10, 64], double_quant).is_finite());
            w[300] = bad;
            assert!(!Nf4Matrix::of(&team, &w, [10, 64], double_quant).is_finite(), "{bad}");
        }
    }
}
