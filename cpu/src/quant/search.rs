//! The searches for scale (and minimum) of the K formats' sub-blocks.
//!
//! Each finds `x ~ scale * code (- min)` by weighted least squares over a few candidate code
//! assignments, as ggml's reference encoders do (`make_qkx2_quants`, `make_q3_quants`,
//! `make_qx_quants` of `ggml-quants.c`). Eight sub-blocks run side by side, one a lane. A lane
//! takes or leaves a candidate by a mask, so that every lane makes the decisions a loop over its
//! sub-block alone would make. The bits depend on the order of every sum and product below: a
//! product of three is taken left to right.

use super::SUPER_BLOCK;
use super::lanes::{F32x8, LANES, nearest};

/// Largest magnitude of a sub-block that still counts as all zeros.
pub const ALL_ZERO: f32 = 1e-15;

/// Scales, minima and codes of the `S` sub-blocks of a block of 256.
pub struct Fit<const S: usize> {
    /// Scale of each sub-block: weight ~ scale * code - min.
    pub scales: [f32; S],
    /// What to subtract, not negative; zero for the formats without minimum.
    pub mins: [f32; S],
    /// Codes of the unrounded scales, in the order of the weights.
    pub codes: [i8; SUPER_BLOCK],
}

/// How [`fit_affine`] steps through its candidates: inverse scales `(first + step * i + max_code)
/// / range` for `i` in `0..=last`.
pub struct Steps {
    pub max_code: f32,
    pub first: f32,
    pub step: f32,
    pub last: usize,
}

/// Fits of eight sub-blocks of `N`.
struct Lanes8<const N: usize> {
    scales: F32x8,
    mins: F32x8,
    codes: [F32x8; N],
}

/// Codes `0..=max_code`, scale and minimum (Q2_K, Q4_K, Q5_K).
///
/// `ABSOLUTE` weighs each error by |x| and takes its magnitude (Q2_K); otherwise the weight is the
/// sub-block's root mean square plus |x|, and the error is squared.
pub fn fit_affine<const N: usize, const S: usize, const ABSOLUTE: bool>(
    x: &[f32; SUPER_BLOCK],
    steps: &Steps,
) -> Fit<S> {
    fit(x, |x| affine::<N, ABSOLUTE>(x, steps))
}

/// Codes `-4..=3` moved up to `0..=7`, scale only, refined weight by weight (Q3_K).
pub fn fit_q3<const S: usize>(x: &[f32; SUPER_BLOCK]) -> Fit<S> {
    fit::<16, S>(x, q3)
}

/// Codes `-32..=31` moved up to `0..=63`, scale only, best of 19 scales (Q6_K).
pub fn fit_q6<const S: usize>(x: &[f32; SUPER_BLOCK]) -> Fit<S> {
    fit::<16, S>(x, q6)
}

/// Runs `search` on all sub-blocks of `N` weights, eight at a time.
fn fit<const N: usize, const S: usize>(
    x: &[f32; SUPER_BLOCK],
    search: impl Fn(&[F32x8; N]) -> Lanes8<N>,
) -> Fit<S> {
    const { assert!(N * S == SUPER_BLOCK && S.is_multiple_of(LANES)) };
    let mut fit = Fit { scales: [0.0; S], mins: [0.0; S], codes: [0; SUPER_BLOCK] };
    for first in (0..S).step_by(LANES) {
        // [n, lane]: weight i of eight neighbouring sub-blocks
        let columns =
            std::array::from_fn(|i| F32x8(std::array::from_fn(|g| x[(first + g) * N + i])));
        let found = search(&columns);
        fit.scales[first..first + LANES].copy_from_slice(&found.scales.0);
        fit.mins[first..first + LANES].copy_from_slice(&found.mins.0);
        for (i, codes) in found.codes.iter().enumerate() {
            for g in 0..LANES {
                fit.codes[(first + g) * N + i] = codes.0[g] as i8;
            }
        }
    }
    fit
}

fn affine<const N: usize, const ABSOLUTE: bool>(x: &[F32x8; N], steps: &Steps) -> Lanes8<N> {
    let weights: [F32x8; N] = if ABSOLUTE {
        x.map(F32x8::abs)
    } else {
        let squares = x.iter().fold(F32x8::ZERO, |sum, &v| sum + v * v);
        let rms = (squares / F32x8::splat(N as f32)).sqrt();
        x.map(|v| rms + v.abs())
    };
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for i in 1..N {
        min = min.gt(x[i]).pick(x[i], min);
        max = x[i].gt(max).pick(x[i], max);
        sum_w = sum_w + weights[i];
        sum_x = sum_x + weights[i] * x[i];
    }
    // a minimum is subtracted, never added: sub-blocks above zero start at zero
    min = min.gt(F32x8::ZERO).pick(F32x8::ZERO, min);
    let flat = max.eq(min);
    let flat_min = min;

    let error = |scale: F32x8, min: F32x8, codes: &[F32x8; N]| {
        let mut sum = F32x8::ZERO;
        for i in 0..N {
            let diff = scale * codes[i] + min - x[i];
            let diff = if ABSOLUTE { diff.abs() } else { diff * diff };
            sum = sum + weights[i] * diff;
        }
        sum
    };
    let codes_of =
        |inverse: F32x8, min: F32x8| x.map(|v| (inverse * (v - min)).code(0.0, steps.max_code));

    let inverse = F32x8::splat(steps.max_code) / (max - min);
    let mut scale = F32x8::splat(1.0) / inverse;
    let mut best_error = error(scale, min, &codes_of(inverse, min));
    // the codes in force are those of this inverse scale and minimum
    let (mut best_inverse, mut best_origin) = (inverse, min);

    for i in 0..=steps.last {
        let levels = steps.first + steps.step * i as f32 + steps.max_code;
        let inverse = F32x8::splat(levels) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (F32x8::ZERO, F32x8::ZERO, F32x8::ZERO);
        let mut codes = [F32x8::ZERO; N];
        for i in 0..N {
            let l = (inverse * (x[i] - min)).code(0.0, steps.max_code);
            codes[i] = l;
            let wl = weights[i] * l;
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * l;
            sum_xl = sum_xl + wl * x[i];
        }
        // weighted least squares for (scale, min); a positive minimum falls back to scale alone
        let det = sum_w * sum_l2 - sum_l * sum_l;
        let new_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        let new_scale = (sum_w * sum_xl - sum_x * sum_l) / det;
        let positive = new_min.gt(F32x8::ZERO);
        let new_scale = positive.pick(sum_xl / sum_l2, new_scale);
        let new_min = positive.pick(F32x8::ZERO, new_min);

        let new_error = error(new_scale, new_min, &codes);
        let better = det.gt(F32x8::ZERO).and(best_error.gt(new_error));
        best_inverse = better.pick(inverse, best_inverse);
        best_origin = better.pick(min, best_origin);
        best_error = better.pick(new_error, best_error);
        scale = better.pick(new_scale, scale);
        min = better.pick(new_min, min);
    }

    let codes = codes_of(best_inverse, best_origin);
    Lanes8 {
        scales: flat.pick(F32x8::ZERO, scale),
        mins: -flat.pick(flat_min, min),
        codes: codes.map(|l| flat.pick(F32x8::ZERO, l)),
    }
}

/// The first weight of the largest magnitude, with its sign, a lane.
fn extreme<const N: usize>(x: &[F32x8; N]) -> F32x8 {
    let mut extreme = F32x8::ZERO;
    for &v in x {
        extreme = v.abs().gt(extreme.abs()).pick(v, extreme);
    }
    extreme
}

/// Sums of `w x l` and `w l l` with `w = x x`, for codes `l` at one inverse scale.
fn moments<const N: usize>(x: &[F32x8; N], codes: &[F32x8; N]) -> (F32x8, F32x8) {
    let (mut sum_xl, mut sum_l2) = (F32x8::ZERO, F32x8::ZERO);
    for i in 0..N {
        let w = x[i] * x[i];
        sum_xl = sum_xl + w * x[i] * codes[i];
        sum_l2 = sum_l2 + w * codes[i] * codes[i];
    }
    (sum_xl, sum_l2)
}

fn q3<const N: usize>(x: &[F32x8; N]) -> Lanes8<N> {
    const ROUNDS: usize = 5;
    let (low, high) = (-4.0, 3.0);
    let extreme = extreme(x);
    let zero = F32x8::splat(ALL_ZERO).gt(extreme.abs());
    let inverse = F32x8::splat(low) / extreme;
    let mut codes = x.map(|v| (inverse * v).code(low, high));
    let (mut sum_xl, mut sum_l2) = moments(x, &codes);
    // Moves one weight at a time to its best code for the scale the others imply. A round that
    // changes nothing would be followed by equal ones, so lanes may go on after they are done.
    for _ in 0..ROUNDS {
        let before = codes.map(|l| l.0);
        for i in 0..N {
            let w = x[i] * x[i];
            let wx = w * x[i];
            let rest_xl = sum_xl - wx * codes[i];
            let rest_l2 = sum_l2 - w * codes[i] * codes[i];
            let l = (x[i] * rest_l2 / rest_xl).code(low, high);
            let new_xl = rest_xl + wx * l;
            let new_l2 = rest_l2 + w * l * l;
            let better = rest_xl
                .gt(F32x8::ZERO)
                .and(l.eq(codes[i]).not())
                .and(new_l2.gt(F32x8::ZERO))
                .and((new_xl * new_xl * sum_l2).gt(sum_xl * sum_xl * new_l2));
            codes[i] = better.pick(l, codes[i]);
            sum_xl = better.pick(new_xl, sum_xl);
            sum_l2 = better.pick(new_l2, sum_l2);
        }
        if before == codes.map(|l| l.0) {
            break;
        }
    }
    let scales = sum_l2.gt(F32x8::ZERO).pick(sum_xl / sum_l2, F32x8::ZERO);
    Lanes8 {
        scales: zero.pick(F32x8::ZERO, scales),
        mins: F32x8::ZERO,
        codes: codes.map(|l| zero.pick(F32x8::ZERO, l - F32x8::splat(low))),
    }
}

fn q6<const N: usize>(x: &[F32x8; N]) -> Lanes8<N> {
    let (low, high) = (-32.0, 31.0);
    let extreme = extreme(x);
    let zero = F32x8::splat(ALL_ZERO).gt(extreme.abs());
    let codes_of = |inverse: F32x8| x.map(|v| (inverse * v).code(low, high));

    let mut best_inverse = F32x8::splat(low) / extreme;
    let (sum_xl, sum_l2) = moments(x, &codes_of(best_inverse));
    let mut scale = sum_l2.eq(F32x8::ZERO).pick(F32x8::ZERO, sum_xl / sum_l2);
    let mut best = scale * sum_xl;
    for i in (-9..=9).filter(|&i| i != 0) {
        let inverse = F32x8::splat(-(32.0 + 0.1 * i as f32)) / extreme;
        let (sum_xl, sum_l2) = moments(x, &codes_of(inverse));
        let better = sum_l2.gt(F32x8::ZERO).and((sum_xl * sum_xl).gt(best * sum_l2));
        best_inverse = better.pick(inverse, best_inverse);
        scale = better.pick(sum_xl / sum_l2, scale);
        best = better.pick(scale * sum_xl, best);
    }
    Lanes8 {
        scales: zero.pick(F32x8::ZERO, scale),
        mins: F32x8::ZERO,
        codes: codes_of(best_inverse).map(|l| zero.pick(F32x8::ZERO, l - F32x8::splat(low))),
    }
}

/// Codes of sub-block `x` once its scale `d` and minimum `m` are the rounded ones a decoder reads:
/// `nearest((x + m) / d)` held to `low..=high`, less `low`. A scale of zero leaves the codes.
pub fn requantise(codes: &mut [i8], x: &[f32], d: f32, m: f32, low: i32, high: i32) {
    if d == 0.0 {
        return;
    }
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (nearest((x + m) / d).clamp(low, high) - low) as i8;
    }
}
