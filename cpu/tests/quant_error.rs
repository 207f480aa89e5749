//! What each block format loses on normal weights, and that no encoder loses more than it may.

use puna_cpu::isa::Isa;
use puna_cpu::quant::nf4::Nf4Matrix;
use puna_cpu::quant::{BlockType, decode_row, encode_row};
use puna_cpu::team::Team;

// Root mean square error over root mean square, N(0, 1) weights. These are the errors of ggml's
// reference encoders, whose bits ours have; another encoder may only be better.
const Q4_0_ERROR: f64 = 0.0858;
const Q4_1_ERROR: f64 = 0.0782;
const Q5_0_ERROR: f64 = 0.0427;
const Q5_1_ERROR: f64 = 0.0378;
const Q8_0_ERROR: f64 = 0.00535;
const Q2_K_ERROR: f64 = 0.2962;
const Q3_K_ERROR: f64 = 0.1507;
const Q4_K_ERROR: f64 = 0.0713;
const Q5_K_ERROR: f64 = 0.0362;
const Q6_K_ERROR: f64 = 0.01775;
/// Of the definition, computed apart from this code: 16 quantiles under the largest of 64 weights.
const NF4_ERROR: f64 = 0.0919;

/// What another seed may change: the mean square of 2^18 errors has a spread of about 0.3 %, which
/// the square root halves; five times that, and the last digit of the constants.
const SAMPLING: f64 = 0.01;

// Root mean square of the largest magnitude, and of the range, of 16 and of 32 normal numbers
// (from 200 000 draws each).
const LARGEST_OF_16: f64 = 2.133;
const LARGEST_OF_32: f64 = 2.389;
const RANGE_OF_16: f64 = 3.610;
const RANGE_OF_32: f64 = 4.195;

/// A format, its error, the extent its scale covers and in how many steps.
///
/// Codes a step apart err by step / sqrt(12). That explains each constant: the error lies below
/// this rule (the extremes themselves are hit, the K formats fit their scales), but not far below.
const TABLE: [(BlockType, f64, f64, f64); 10] = [
    (BlockType::Q4_0, Q4_0_ERROR, LARGEST_OF_32, 8.0),
    (BlockType::Q4_1, Q4_1_ERROR, RANGE_OF_32, 15.0),
    (BlockType::Q5_0, Q5_0_ERROR, LARGEST_OF_32, 16.0),
    (BlockType::Q5_1, Q5_1_ERROR, RANGE_OF_32, 31.0),
    (BlockType::Q8_0, Q8_0_ERROR, LARGEST_OF_32, 127.0),
    (BlockType::Q2_K, Q2_K_ERROR, RANGE_OF_16, 3.0),
    (BlockType::Q3_K, Q3_K_ERROR, LARGEST_OF_16, 4.0),
    (BlockType::Q4_K, Q4_K_ERROR, RANGE_OF_32, 15.0),
    (BlockType::Q5_K, Q5_K_ERROR, RANGE_OF_32, 31.0),
    (BlockType::Q6_K, Q6_K_ERROR, LARGEST_OF_16, 32.0),
];

/// Normal numbers (Box and Muller's method over splitmix64).
fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..n)
        .map(|_| {
            let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
        })
        .collect()
}

fn relative_error(x: &[f32], y: &[f32]) -> f64 {
    let error: f64 = x.iter().zip(y).map(|(x, y)| (*x as f64 - *y as f64).powi(2)).sum();
    let power: f64 = x.iter().map(|x| (*x as f64).powi(2)).sum();
    (error / power).sqrt()
}

fn round_trip(ty: BlockType, x: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; ty.row_bytes(x.len())];
    encode_row(ty, &mut bytes, x);
    let mut y = vec![f32::NAN; x.len()];
    decode_row(ty, &mut y, &bytes);
    y
}

#[test]
fn normal_weights_lose_what_the_format_implies() {
    let x = normal(1, 1 << 18);
    let mut wrong = Vec::new();
    for (ty, error, extent, steps) in TABLE {
        let found = relative_error(&x, &round_trip(ty, &x));
        let rule = extent / steps / 12f64.sqrt();
        let as_measured = (found / error - 1.0).abs() < SAMPLING;
        if !as_measured || found > rule || found < 0.8 * rule {
            wrong.push((ty.name(), found, error, rule));
        }
    }
    assert!(wrong.is_empty(), "(format, error found, expected, rule): {wrong:?}");
}

/// Scales in a byte each add an error of their own: steps of 0.9 / 64 of their largest distance from
/// the mean, itself half a scale, are 0.2 % of a weight over sqrt(12), which beside the codes' 9 % is
/// less than what another seed changes.
#[test]
fn nf4_loses_what_its_quantiles_imply() {
    let x = normal(5, 1 << 18);
    let team = Team::new(1).unwrap();
    for double_quant in [false, true] {
        let mut y = vec![f32::NAN; x.len()];
        Nf4Matrix::of(&team, &x, [512, 512], double_quant).decode(Isa::PORTABLE, &mut y, 0);
        let found = relative_error(&x, &y);
        assert!((found / NF4_ERROR - 1.0).abs() < SAMPLING, "{double_quant}: {found}");
    }
}

#[test]
fn zeros_would_fail() {
    let x = normal(2, 4096);
    let lost = relative_error(&x, &vec![0.0; x.len()]);
    for (ty, error, ..) in TABLE {
        assert!(lost > 3.0 * error, "{}: {lost}", ty.name());
    }
}

/// Real weights have a standard deviation of about 0.02. The error follows them, save the rounding
/// of half precision scales, whose steps are coarse only below 6e-5.
#[test]
fn the_error_follows_the_size_of_the_weights() {
    let x: Vec<f32> = normal(3, 1 << 16).iter().map(|v| v * 0.02).collect();
    for (ty, error, ..) in TABLE {
        let found = relative_error(&x, &round_trip(ty, &x));
        assert!((found / error - 1.0).abs() < 0.03, "{}: {found} {error}", ty.name());
    }
}

/// One weight in 64 thirty times larger: a format with fewer bits a weight is never better than
/// the next of its family, and all keep more than zeros would.
#[test]
fn outliers_keep_the_order_of_the_formats() {
    let mut x = normal(4, 1 << 16);
    x.iter_mut().step_by(64).for_each(|v| *v *= 30.0);
    let error = |ty| relative_error(&x, &round_trip(ty, &x));
    let families: [&[BlockType]; 3] = [
        &[BlockType::Q4_0, BlockType::Q5_0, BlockType::Q8_0],
        &[BlockType::Q4_1, BlockType::Q5_1],
        &[BlockType::Q2_K, BlockType::Q3_K, BlockType::Q4_K, BlockType::Q5_K, BlockType::Q6_K],
    ];
    for family in families {
        let errors: Vec<f64> = family.iter().map(|&ty| error(ty)).collect();
        assert!(errors.is_sorted_by(|a, b| a > b), "{family:?}: {errors:?}");
        assert!(errors[0] < 0.5, "{family:?}: {errors:?}");
    }
}
