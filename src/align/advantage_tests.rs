use super::*;

const REWARDS: [f64; 5] = [-0.1, 0.25, -0.05, 0.0, 1.5];
const VALUES: [f64; 5] = [0.4, 0.1, -0.3, 0.9, 0.7];

/// A few additions of numbers near 1.
const ROUNDING: f64 = 1e-12;

fn all_near(ours: &[f64], wanted: &[f64]) {
    assert_eq!(ours.len(), wanted.len());
    let near = ours.iter().zip(wanted).all(|(a, b)| (a - b).abs() <= ROUNDING);
    assert!(near, "{ours:?} {wanted:?}");
}

/// The errors of one step, `d_t`.
fn deltas(gamma: f64) -> Vec<f64> {
    let value = |t: usize| VALUES.get(t).copied().unwrap_or(0.0);
    (0..5).map(|t| REWARDS[t] + gamma * value(t + 1) - value(t)).collect()
}

#[test]
fn advantages_are_the_discounted_sum_of_errors() {
    for gamma in [1.0f64, 0.9, 0.0] {
        for lambda in [1.0f64, 0.95, 0.5, 0.0] {
            let deltas = deltas(gamma);
            let mut wanted = vec![];
            for t in 0..5 {
                let rest = deltas[t..].iter().enumerate();
                wanted.push(rest.map(|(l, d)| (gamma * lambda).powi(l as i32) * d).sum::<f64>());
            }
            all_near(&gae(&REWARDS, &VALUES, gamma, lambda), &wanted);
        }
    }
    assert!(gae(&[], &[], 1.0, 0.95).is_empty());
}

#[test]
fn lambda_goes_from_the_error_of_a_step_to_the_whole_return() {
    let gamma = 0.9f64;
    all_near(&gae(&REWARDS, &VALUES, gamma, 0.0), &deltas(gamma));
    let mut to_come = vec![];
    for t in 0..5 {
        let rest = REWARDS[t..].iter().enumerate();
        to_come.push(rest.map(|(l, r)| gamma.powi(l as i32) * r).sum::<f64>());
    }
    let advantages = gae(&REWARDS, &VALUES, gamma, 1.0);
    let less: Vec<f64> = to_come.iter().zip(VALUES).map(|(r, v)| r - v).collect();
    all_near(&advantages, &less);
    all_near(&returns(&advantages, &VALUES), &to_come);
}

#[test]
fn a_score_one_place_later_comes_to_the_same_where_its_value_is_known() {
    let (kl, score) = ([-0.1, 0.25, -0.05, 0.0, -0.3], 1.8);
    let mut ours = kl;
    ours[4] += score;
    let later = [&kl[..], &[score]].concat();
    let values = [&VALUES[..], &[score]].concat();
    let theirs = gae(&later, &values, 1.0, 0.95);
    all_near(&gae(&ours, &VALUES, 1.0, 0.95), &theirs[..5]);
    // Not so before: the estimate of the state after the end is then part of every advantage.
    let values = [&VALUES[..], &[0.0]].concat();
    let theirs = gae(&later, &values, 1.0, 0.95);
    assert!((gae(&ours, &VALUES, 1.0, 0.95)[4] - theirs[4]).abs() > 0.01);
}

#[test]
fn rewards_are_the_penalty_and_the_score_at_the_end() {
    let (policy, reference) = ([-1.0, -2.0, -0.5], [-1.5, -1.0, -0.5]);
    all_near(&token_rewards(&policy, &reference, 3.0, 0.1, Kl::K1), &[-0.05, 0.1, 3.0]);
    // e^-0.5 - 1 + 0.5 and e - 1 - 1.
    let k3 = [(-0.5f64).exp() - 0.5, std::f64::consts::E - 2.0];
    let wanted = [-0.1 * k3[0], -0.1 * k3[1], 3.0];
    all_near(&token_rewards(&policy, &reference, 3.0, 0.1, Kl::K3), &wanted);
    assert!(token_rewards(&[], &[], 3.0, 0.1, Kl::K1).is_empty());
}

#[test]
fn both_estimates_average_to_the_divergence() {
    let (p, q) = ([0.5f64, 0.3, 0.15, 0.05], [0.25f64, 0.25, 0.4, 0.1]);
    let truth: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
    for kl in Kl::ALL {
        let mean: f64 = p.iter().zip(q).map(|(p, q)| p * kl.of(p.ln(), q.ln())).sum();
        assert!((mean - truth).abs() <= ROUNDING, "{}: {mean} {truth}", kl.name());
    }
    assert!(p.iter().zip(q).all(|(p, q)| Kl::K3.of(p.ln(), q.ln()) > 0.0));
    assert_eq!(Kl::K3.of(-1.25, -1.25), 0.0);
    // Half the square of the difference, where exp(x) - 1 - x would have no digit left.
    assert!((Kl::K3.of(1e-7, 0.0) / 5e-15 - 1.0).abs() < 1e-6);
    assert_eq!(Kl::ALL.map(Kl::name), ["k1", "k3"]);
}

#[test]
fn slopes_of_the_estimates_are_those_of_their_values() {
    for kl in Kl::ALL {
        for (logp, reference) in [(-1.0, -2.5), (-0.3, -0.3), (-2.0, -0.75)] {
            let step = 1e-5;
            let rise = kl.of(logp + step, reference) - kl.of(logp - step, reference);
            let (ours, slope) = (kl.slope(logp, reference), rise / (2.0 * step));
            // The third derivative times the step squared, and the rounding of f64 over the step.
            assert!((ours - slope).abs() <= 1e-8, "{} {logp}: {ours} {slope}", kl.name());
        }
    }
}

#[test]
fn whitened_tokens_have_mean_0_and_variance_1() {
    // Mean 4, squares 9 + 4 + 1 + 0 + 36 over 4.
    let batch = vec![vec![1.0, 2.0, 3.0], vec![4.0], vec![], vec![10.0]];
    let mut moved = batch.clone();
    whiten(&mut moved, true);
    let (mean, variance) = moments(moved.iter().flatten().copied());
    assert!(mean.abs() <= ROUNDING, "{mean}");
    assert!((variance - 12.5 / (12.5 + 1e-8)).abs() <= ROUNDING, "{variance}");
    assert!((moved[0][0] + 3.0 / (12.5f64 + 1e-8).sqrt()).abs() <= ROUNDING);
    let mut kept = batch;
    whiten(&mut kept, false);
    let lifted: Vec<f64> = moved.iter().flatten().map(|x| x + 4.0).collect();
    all_near(&kept.concat(), &lifted);
}

#[test]
fn tokens_without_variance_are_not_scaled_up() {
    for (batch, mean) in [(vec![vec![0.1; 3], vec![0.1]], 0.1), (vec![vec![7.0]], 7.0)] {
        for (shift, wanted) in [(true, 0.0), (false, mean)] {
            let mut batch = batch.clone();
            whiten(&mut batch, shift);
            assert!(batch.iter().flatten().all(|&x| x == wanted), "{batch:?}");
        }
    }
    whiten(&mut [], true);
    whiten(&mut [vec![]], true);
}

#[test]
fn a_group_is_measured_against_itself() {
    // Mean 3, squares 4 + 1 + 0 + 9 over 3.
    let rewards = [1.0, 2.0, 3.0, 6.0];
    let off = [-2.0, -1.0, 0.0, 3.0];
    all_near(&group_advantages(&rewards, false), &off);
    all_near(&group_advantages(&rewards, true), &off.map(|x| x / ((14.0f64 / 3.0).sqrt() + 1e-4)));
    for scale in [false, true] {
        assert_eq!(group_advantages(&[5.0], scale), [0.0]);
        assert_eq!(group_advantages(&[0.1; 3], scale), [0.0; 3]);
        assert!(group_advantages(&[], scale).is_empty());
    }
}

#[test]
fn the_weight_of_the_penalty_follows_the_divergence() {
    let start = AdaptiveKl { coef: 0.2, target: 6.0, horizon: 10_000.0 };
    start.check().unwrap();
    // Divergence, answers, factor: cut above, cut below, within, at the target.
    for (current, n_steps, factor) in [
        (12.0, 256, 1.00512),
        (3.0, 256, 0.99488),
        (-1.0, 256, 0.99488),
        (6.6, 500, 1.005),
        (6.0, 256, 1.0),
        (12.0, 0, 1.0),
    ] {
        let mut kl = start;
        kl.update(current, n_steps);
        assert!((kl.coef - 0.2 * factor).abs() <= ROUNDING, "{current}: {}", kl.coef);
        assert_eq!(AdaptiveKl { coef: start.coef, ..kl }, start);
    }
    for wrong in [
        AdaptiveKl { coef: -0.1, ..start },
        AdaptiveKl { target: 0.0, ..start },
        AdaptiveKl { horizon: f64::NAN, ..start },
    ] {
        assert!(wrong.check().is_err(), "{wrong:?}");
    }
}
