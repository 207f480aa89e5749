//! What theory says a method comes to, and what it came to.

use super::*;
use crate::align::advantage::Kl;
use crate::align::clipped::{PolicyLoss, ValueLoss};
use crate::align::grpo::{Grpo, GrpoSettings, Mean};
use crate::align::online::Sample;
use crate::align::ppo::{Ppo, PpoSettings};
use crate::align::raft::{Raft, RaftSettings};
use crate::align::reference::Reference;
use crate::align::select::Strategy;
use crate::train::Silent;

fn learn<M: Method>(model: &mut M, settings: &OnlineSettings) -> Vec<IterationLine> {
    let out = tempfile::tempdir().unwrap();
    let (stop, prompts) = (AtomicBool::new(false), [prompt(&PROMPT)]);
    go(model, settings, &prompts, out.path(), &stop, false, &mut Silent).unwrap();
    iterations(out.path())
}

fn reference(model: &TuneModel) -> Reference {
    Reference::of(model, Path::new(DIR), None).unwrap()
}

#[test]
fn raft_keeps_the_best_of_k_and_comes_to_the_best_token() {
    let choice = RaftSettings {
        strategy: Strategy::Local,
        share: 0.125,
        kl_coef: 0.0,
        lmflow_compat: false,
    };
    let mut raft = Raft::new(open(false), choice, None, None).unwrap();
    let start = policy(raft.tuned_mut());
    // The best of 8 independent draws: P(best <= w) = P(one <= w)^8, over tokens by their worth.
    let mut order: Vec<u32> = (0..VOCAB as u32).collect();
    order.sort_by(|&a, &b| worth(a).total_cmp(&worth(b)));
    let (mut below, mut best, mut square) = (0.0f64, 0.0, 0.0);
    for id in order {
        let with = below + start[id as usize];
        let p = with.powi(8) - below.powi(8);
        best += p * worth(id);
        square += p * worth(id) * worth(id);
        below = with;
    }
    let mut how = settings(30, 64, 8);
    how.train.length = Length::Epochs(4.0);
    let lines = learn(&mut raft, &how);
    // Five standard errors of 64 prompts.
    let error = 5.0 * ((square - best * best) / 64.0).sqrt();
    let selected = lines[0].reward_selected.unwrap();
    assert!((selected - best).abs() < error, "{selected}, wanted {best} within {error}");
    assert_eq!(selected, lines[0].reward_best);
    let mean = expected(&start, worth);
    let error =
        5.0 * (expected(&start, |id| worth(id).powi(2)) - mean * mean).sqrt() / 512f64.sqrt();
    assert!((lines[0].reward_mean - mean).abs() < error, "{}, {mean}", lines[0].reward_mean);
    let end = expected(&policy(raft.tuned_mut()), worth);
    // The best token of all is worth 1; what is left of the others after 120 steps is worth under 0.02.
    assert!(mean < 0.7 && end > 0.98, "from {mean} to {end}");
}

#[test]
fn answers_are_drawn_from_the_policy() {
    let choice = RaftSettings {
        strategy: Strategy::Local,
        share: 0.0625,
        kl_coef: 0.0,
        lmflow_compat: false,
    };
    let mut raft = Raft::new(open(false), choice, None, None).unwrap();
    let start = policy(raft.tuned_mut());
    let (out, stop) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
    let how = settings(1, 512, 16);
    go(&mut raft, &how, &[prompt(&PROMPT)], out.path(), &stop, false, &mut Silent).unwrap();
    let text = std::fs::read_to_string(out.path().join("iterations/0001/samples.jsonl")).unwrap();
    let samples: Vec<Sample> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let n = samples.len() as f64;
    assert_eq!(samples.len(), 512 * 16);
    // Tokens that are expected less than five times count together.
    let (mut cells, mut rest) = (vec![], (0.0, 0.0));
    for (id, p) in start.iter().enumerate() {
        let seen = samples.iter().filter(|one| one.ids == [id as u32]).count() as f64;
        if p * n < 5.0 {
            rest = (rest.0 + seen, rest.1 + p * n);
        } else {
            cells.push((seen, p * n));
        }
    }
    if rest.1 > 0.0 {
        cells.push(rest);
    }
    let squares = cells.iter().map(|(seen, wanted)| (seen - wanted).powi(2) / wanted).sum::<f64>();
    let freedom = cells.len() as f64 - 1.0;
    // Mean and five standard deviations of the chi-square distribution.
    assert!(
        cells.len() > 20 && squares < freedom + 5.0 * (2.0 * freedom).sqrt(),
        "{squares} {freedom}"
    );
}

#[test]
fn raft_with_a_penalty_stays_nearer() {
    let run = |kl_coef: f64| {
        let choice =
            RaftSettings { strategy: Strategy::Top, share: 0.25, kl_coef, lmflow_compat: false };
        let model = open(false);
        let reference = (kl_coef > 0.0).then(|| reference(&model));
        let mut raft = Raft::new(model, choice, reference, None).unwrap();
        let start = policy(raft.tuned_mut());
        learn(&mut raft, &settings(20, 256, 1));
        let end = policy(raft.tuned_mut());
        (expected(&end, worth), kl(&end, &start))
    };
    let (free, near) = (run(0.0), run(0.5));
    // That it is nearer is the claim; by three tenths, so that the noise of draws cannot feign it.
    assert!(near.1 < 0.7 * free.1, "{free:?}, {near:?}");
}

/// `max E[r] - beta KL(policy, reference)`: `reference exp(r / beta)`, normalised.
fn boltzmann(reference: &[f64], beta: f64) -> Vec<f64> {
    let all: Vec<f64> =
        reference.iter().zip(0..).map(|(p, id)| p * (worth(id) / beta).exp()).collect();
    let sum: f64 = all.iter().sum();
    all.into_iter().map(|p| p / sum).collect()
}

#[test]
fn ppo_comes_to_the_policy_of_its_regularised_optimum() {
    let beta = 0.25;
    let constants = PpoSettings {
        policy: PolicyLoss { clip: 0.2, clip_high: None },
        value: ValueLoss { clip: None, coef: 0.1 },
        gamma: 1.0,
        lambda: 0.95,
        kl_coef: beta,
        kl_target: None,
        kl: Kl::K1,
        whiten_rewards: false,
        missing_eos_penalty: 0.0,
    };
    let model = open(true);
    let reference = reference(&model);
    let mut ppo = Ppo::new(model, constants, reference, None).unwrap();
    let start = policy(ppo.tuned_mut());
    let optimum = boltzmann(&start, beta);
    let mut how = settings(120, 256, 1);
    how.train.length = Length::Epochs(2.0);
    how.train.learning_rate = 3e-4;
    let lines = learn(&mut ppo, &how);
    let end = policy(ppo.tuned_mut());
    let worth_of = |p: &[f64]| expected(p, worth) - beta * kl(p, &start);
    let (from, to, most) = (worth_of(&start), worth_of(&end), worth_of(&optimum));
    // A finite number of steps stops short of the optimum: nine tenths of what there is to gain.
    assert!(to > from + 0.9 * (most - from), "{from} to {to}, at most {most}");
    assert!(kl(&end, &optimum) < 0.15 * kl(&start, &optimum), "{}", kl(&end, &optimum));
    // What it says of the divergence is what it is: log-ratios of a deviation near 1, so that five
    // standard errors of 256 draws are 0.3.
    let said = lines.last().unwrap().measures["kl"];
    assert!((said - kl(&end, &start)).abs() < 0.3, "{said}, {}", kl(&end, &start));
}

/// `max E[r] - beta KL(reference, policy)`, which the gradient of GRPO's k3 belongs to (its mean over
/// answers that the policy drew): `beta reference / (top - r)`, `top` such that it sums to 1.
fn forward_optimum(reference: &[f64], beta: f64) -> Vec<f64> {
    let at = |top: f64| -> Vec<f64> {
        reference.iter().zip(0..).map(|(p, id)| beta * p / (top - worth(id))).collect()
    };
    let (mut low, mut high) = (1.0 + 1e-12, 1.0 + 10.0 * beta);
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if at(middle).iter().sum::<f64>() > 1.0 { low = middle } else { high = middle }
    }
    at(high)
}

#[test]
fn grpo_comes_to_the_policy_of_its_optimum() {
    let beta = 0.25;
    let constants = GrpoSettings {
        policy: PolicyLoss { clip: 0.2, clip_high: None },
        beta,
        scale_rewards: false,
        mean: Mean::Tokens,
    };
    let model = open(false);
    let reference = reference(&model);
    let mut grpo = Grpo::new(model, constants, Some(reference), None).unwrap();
    let start = policy(grpo.tuned_mut());
    let optimum = forward_optimum(&start, beta);
    assert!((optimum.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    let mut how = settings(120, 32, 8);
    how.train.batch_size = 256;
    learn(&mut grpo, &how);
    let end = policy(grpo.tuned_mut());
    // A group's mean holds the answer's own reward: advantages are (K - 1) / K of the true ones.
    let beta = beta * 8.0 / 7.0;
    let optimum = forward_optimum(&start, beta);
    let worth_of = |p: &[f64]| expected(p, worth) - beta * kl(&start, p);
    let (from, to, most) = (worth_of(&start), worth_of(&end), worth_of(&optimum));
    // As for ppo: nine tenths of what there is to gain.
    assert!(to > from + 0.9 * (most - from), "{from} to {to}, at most {most}");
}

#[test]
fn grpo_without_a_penalty_comes_to_the_best_token() {
    let constants = GrpoSettings {
        policy: PolicyLoss { clip: 0.2, clip_high: Some(0.28) },
        beta: 0.0,
        scale_rewards: true,
        mean: Mean::Answers,
    };
    let mut grpo = Grpo::new(open(false), constants, None, None).unwrap();
    learn(&mut grpo, &settings(100, 32, 8));
    let end = expected(&policy(grpo.tuned_mut()), worth);
    // Of at most 1, after 100 steps.
    assert!(end > 0.97, "{end}");
}
