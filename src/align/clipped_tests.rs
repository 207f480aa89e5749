use super::*;
use std::hint::black_box;

/// Central differences: the third derivative times the step squared, and the rounding of f64 over
/// the step.
const BOUND: f64 = 1e-8;

fn slope(f: impl Fn(f64) -> f64, at: f64) -> f64 {
    let step = 1e-5;
    (f(at + step) - f(at - step)) / (2.0 * step)
}

fn losses() -> [PolicyLoss; 2] {
    [PolicyLoss { clip: 0.2, clip_high: None }, PolicyLoss { clip: 0.2, clip_high: Some(0.28) }]
}

#[test]
fn derivatives_of_the_policy_are_those_of_its_values() {
    let mut clipped_tokens = [0, 0];
    for (i, loss) in losses().into_iter().enumerate() {
        // The kinks are at -0.223, 0.182 and 0.247.
        for off in [-0.9, -0.3, -0.1, 0.0, 0.1, 0.21, 0.4] {
            for advantage in [-2.0, -0.5, 0.0, 0.7, 1.5] {
                let (old, new) = (-1.5, -1.5 + off);
                let (value, d, clipped) = loss.token(new, old, advantage);
                let numeric = slope(|x| loss.token(x, old, advantage).0, new);
                assert!((d - numeric).abs() <= BOUND, "{off} {advantage}: {d} {numeric}");
                let ratio: f64 = (new - old).exp();
                let cut = ratio.clamp(0.8, 1.0 + loss.clip_high.unwrap_or(0.2));
                let wanted = -(ratio * advantage).min(cut * advantage);
                assert!((value - wanted).abs() <= 1e-14, "{off} {advantage}: {value} {wanted}");
                assert_eq!(clipped, cut * advantage < ratio * advantage);
                clipped_tokens[i] += usize::from(clipped);
                for reference in [-1.0, -1.5, -3.0] {
                    let of = |x: f64| loss.token_with_kl(x, old, reference, advantage, 0.04);
                    let (_, d, same) = of(new);
                    let numeric = slope(|x| of(x).0, new);
                    assert!((d - numeric).abs() <= BOUND, "{off} {reference}: {d} {numeric}");
                    assert_eq!(same, clipped);
                }
            }
        }
    }
    // Advantages above 0 at 0.21 and 0.4, below 0 at -0.9 and -0.3; the higher bound is beyond
    // 0.21.
    assert_eq!(clipped_tokens, [8, 6]);
}

#[test]
fn only_the_side_that_the_advantage_pushes_to_is_clipped() {
    // Differences and bounds without rounding: 1 + clip and 1 - clip are the ratios to the last
    // bit, as long as every exponential is taken when the test runs.
    let ratio = |off: f64| black_box(off).exp();
    let token = |loss: &PolicyLoss, off: f64, a: f64| loss.token(black_box(off), 0.0, a);
    let (up, down) = (ratio(0.15), ratio(-0.15));
    let upper = PolicyLoss { clip: 0.5, clip_high: Some(up - 1.0) };
    let lower = PolicyLoss { clip: 1.0 - down, clip_high: Some(0.5) };
    let tiny = 1e-9;
    for advantage in [0.5, 2.0] {
        // At the bound and within, the slope of the uncut side; beyond, none.
        let at = -advantage * up;
        assert_eq!(token(&upper, 0.15, advantage), (at, at, false));
        let (_, d, clipped) = token(&upper, 0.15 - tiny, advantage);
        assert!((d - at).abs() < 1e-8 && !clipped);
        assert_eq!(token(&upper, 0.15 + tiny, advantage), (at, 0.0, true));
        assert_eq!(token(&upper, 3.0, advantage), (at, 0.0, true));
        let at = advantage * down;
        assert_eq!(token(&lower, -0.15, -advantage), (at, at, false));
        let (_, d, clipped) = token(&lower, -0.15 + tiny, -advantage);
        assert!((d - at).abs() < 1e-8 && !clipped);
        assert_eq!(token(&lower, -0.15 - tiny, -advantage), (at, 0.0, true));
        assert_eq!(token(&lower, -3.0, -advantage), (at, 0.0, true));
        // The other sign is pulled back from any distance.
        let far = advantage * ratio(3.0);
        assert_eq!(token(&upper, 3.0, -advantage), (far, far, false));
        let far = -advantage * ratio(-3.0);
        assert_eq!(token(&lower, -3.0, advantage), (far, far, false));
    }
}

#[test]
fn a_group_loss_adds_the_divergence() {
    let [loss, _] = losses();
    // New = old: -A, and k3 of ref - new = 1.
    let (value, d, clipped) = loss.token_with_kl(-2.0, -2.0, -1.0, 1.5, 0.1);
    let e = std::f64::consts::E;
    assert!((value - (-1.5 + 0.1 * (e - 2.0))).abs() <= 1e-14, "{value}");
    assert!((d - (-1.5 - 0.1 * (e - 1.0))).abs() <= 1e-14, "{d}");
    assert!(!clipped);
    assert_eq!(loss.token_with_kl(-2.0, -2.0, f64::NAN, 1.5, 0.0), (-1.5, -1.5, false));
}

#[test]
fn derivatives_of_the_value_are_those_of_its_values() {
    for clip in [None, Some(0.2)] {
        let loss = ValueLoss { clip, coef: 0.1 };
        let mut clipped_tokens = 0;
        for new in [-1.0, 0.3, 0.7, 0.95, 1.1, 1.5, 4.0] {
            for ret in [-2.0, 0.5, 1.05, 1.9, 6.0] {
                let (value, d, clipped) = loss.token(new, 1.0, ret);
                let numeric = slope(|x| loss.token(x, 1.0, ret).0, new);
                assert!((d - numeric).abs() <= BOUND, "{new} {ret}: {d} {numeric}");
                let cut = clip.map_or(new, |_| new.clamp(0.8, 1.2));
                let wanted = 0.05 * (new - ret).powi(2).max((cut - ret).powi(2));
                assert!((value - wanted).abs() <= 1e-13, "{new} {ret}: {value} {wanted}");
                clipped_tokens += usize::from(clipped);
            }
        }
        // Beyond the bound and nearer to the return: -1 (1 return), 0.3 (2), 0.7 (2), 1.5 (2),
        // 4 (1).
        assert_eq!(clipped_tokens, if clip.is_some() { 8 } else { 0 });
    }
}

#[test]
fn a_value_that_went_too_far_towards_its_return_is_left_there() {
    // 1 + clip without rounding.
    let loss = ValueLoss { clip: Some(0.25), coef: 1.0 };
    // Towards the return: free up to the bound, then nothing more to gain.
    assert_eq!(loss.token(1.25, 1.0, 2.0), (0.28125, -0.75, false));
    assert_eq!(loss.token(1.25 + 1e-9, 1.0, 2.0), (0.28125, 0.0, true));
    assert_eq!(loss.token(1.5, 1.0, 2.0), (0.28125, 0.0, true));
    assert_eq!(loss.token(0.75, 1.0, 0.0), (0.28125, 0.75, false));
    assert_eq!(loss.token(0.5, 1.0, 0.0), (0.28125, 0.0, true));
    // Away from it: pulled back from any distance.
    assert_eq!(loss.token(1.5, 1.0, 0.0), (1.125, 1.5, false));
    assert_eq!(ValueLoss { clip: None, coef: 0.5 }.token(1.5, 1.0, 2.0), (0.0625, -0.25, false));
}

#[test]
fn what_is_not_a_number_stays_so() {
    let [loss, _] = losses();
    assert!(loss.token(f64::NAN, -1.0, 1.0).0.is_nan());
    assert!(loss.token(-1.0, -1.0, f64::NAN).0.is_nan());
    assert!(ValueLoss { clip: Some(0.2), coef: 1.0 }.token(f64::NAN, 1.0, 1.0).0.is_nan());
}

#[test]
fn statistics_are_means_over_tokens() {
    let mut stats = Stats::default();
    assert_eq!((stats.approx_kl(), stats.clip_fraction(), stats.mean_ratio()), (0.0, 0.0, 0.0));
    stats.add(-1.0, -1.0, false);
    stats.add(-2.0, -1.0, true);
    let mut more = Stats::default();
    more.add(-0.5, -1.0, false);
    more.add(-1.0, -1.0, false);
    stats.merge(&more);
    assert_eq!(stats.tokens(), 4);
    // (0 + 1 + 0.25 + 0) / 4 / 2.
    assert_eq!(stats.approx_kl(), 0.15625);
    assert_eq!(stats.clip_fraction(), 0.25);
    let ratio = (2.0 + (-1.0f64).exp() + 0.5f64.exp()) / 4.0;
    assert!((stats.mean_ratio() - ratio).abs() <= 1e-14);
}

#[test]
fn constants_that_mean_nothing_are_refused() {
    for loss in losses() {
        assert!(loss.check().is_ok());
        assert!(PolicyLoss { clip: 0.0, ..loss }.check().is_err());
        assert!(PolicyLoss { clip_high: Some(f64::NAN), ..loss }.check().is_err());
    }
    for (clip, coef, fine) in [
        (None, 0.0, true),
        (Some(0.2), 0.1, true),
        (Some(0.0), 0.1, false),
        (Some(f64::INFINITY), 0.1, false),
        (None, -0.1, false),
        (None, f64::NAN, false),
    ] {
        assert_eq!(ValueLoss { clip, coef }.check().is_ok(), fine, "{clip:?} {coef}");
    }
}
