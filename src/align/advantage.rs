//! From scores of answers to advantages of tokens: penalties for leaving the reference, generalised
//! advantage estimation, whitening, groups, and the controller of the penalty's weight.
//!
//! Pure arithmetic in f64 on the tokens of answers; no model and no padding, so where TRL masks,
//! lists here are shorter.
//!
//! Sources: Schulman et al. 2015 (arXiv 1506.02438) for the estimation, Ziegler et al. 2019
//! (1909.08593) for penalty and controller, Schulman 2020 (Approximating KL Divergence,
//! joschu.net/blog/kl-approx.html) for k1 and k3, Shao et al. 2024 (2402.03300) and Liu et al. 2025
//! (2503.20783) for groups. Constants are TRL's.

use crate::error::{Error, Result};

/// What whitening adds to a variance.
const WHITEN_EPS: f64 = 1e-8;
/// What a group's standard deviation is raised by.
const GROUP_EPS: f64 = 1e-4;
/// The most that the controller takes the divergence to be off, as a share of the target.
const MOST_ERROR: f64 = 0.2;

/// How a token's divergence from the reference is estimated. With `l = logp - ref` both have the
/// mean `KL(policy, reference)` over tokens that the policy sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kl {
    /// `l`: of either sign.
    K1,
    /// `e^-l - 1 + l`: never below 0, and of smaller variance where the two are near.
    K3,
}

impl Kl {
    /// All of them.
    pub const ALL: [Kl; 2] = [Kl::K1, Kl::K3];

    /// The name in commands and files.
    pub const fn name(self) -> &'static str {
        match self {
            Kl::K1 => "k1",
            Kl::K3 => "k3",
        }
    }

    /// The estimate for a token of these log-probabilities.
    pub fn of(self, logp: f64, reference: f64) -> f64 {
        match self {
            Kl::K1 => logp - reference,
            // exp_m1: what is left near 0 is of second order, and exp would have rounded it away.
            Kl::K3 => (reference - logp).exp_m1() - (reference - logp),
        }
    }

    /// Its derivative with respect to `logp`.
    pub fn slope(self, logp: f64, reference: f64) -> f64 {
        match self {
            Kl::K1 => 1.0,
            Kl::K3 => -(reference - logp).exp_m1(),
        }
    }
}

/// Rewards of the tokens of one answer: `-kl_coef kl_t`, and the answer's score on the last. An
/// answer without tokens has none.
///
/// TRL puts the score one place later where a batch has room for it, on the state after the answer,
/// whose value its head then has to learn as well; both have the same advantages once it knows that
/// value to be the score (without discount).
///
/// # Panics
/// Where the lists differ in length.
pub fn token_rewards(
    policy_log_probs: &[f64],
    reference_log_probs: &[f64],
    score: f64,
    kl_coef: f64,
    estimator: Kl,
) -> Vec<f64> {
    assert_eq!(policy_log_probs.len(), reference_log_probs.len(), "tokens of policy and reference");
    let pairs = policy_log_probs.iter().zip(reference_log_probs);
    let mut rewards: Vec<f64> = pairs.map(|(&p, &r)| -kl_coef * estimator.of(p, r)).collect();
    if let Some(last) = rewards.last_mut() {
        *last += score;
    }
    rewards
}

/// Advantages of the tokens of one answer: `A_t = d_t + gamma lambda A_(t+1)` with
/// `d_t = r_t + gamma V_(t+1) - V_t`, and nothing after the last token.
///
/// # Panics
/// Where the lists differ in length.
pub fn gae(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> Vec<f64> {
    assert_eq!(rewards.len(), values.len(), "rewards and values of one answer");
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next_advantage) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let delta = rewards[t] + gamma * next_value - values[t];
        next_advantage = delta + gamma * lambda * next_advantage;
        next_value = values[t];
        advantages[t] = next_advantage;
    }
    advantages
}

/// What the value head should have said: `A_t + V_t`, of advantages before they are whitened.
///
/// # Panics
/// Where the lists differ in length.
pub fn returns(advantages: &[f64], values: &[f64]) -> Vec<f64> {
    assert_eq!(advantages.len(), values.len(), "advantages and values of one answer");
    advantages.iter().zip(values).map(|(a, v)| a + v).collect()
}

/// Scales the tokens of a whole batch, one list an answer, to variance 1, and shifts them to mean 0
/// if `shift_mean`; they keep their mean otherwise. The variance is the unbiased one, raised by
/// 1e-8. A single token has variance 0, where TRL divides by zero.
pub fn whiten(batch: &mut [Vec<f64>], shift_mean: bool) {
    let (mean, variance) = moments(batch.iter().flatten().copied());
    let scale = 1.0 / (variance + WHITEN_EPS).sqrt();
    let kept = if shift_mean { 0.0 } else { mean };
    for value in batch.iter_mut().flatten() {
        *value = (*value - mean) * scale + kept;
    }
}

/// Advantages of the answers to one prompt: `(r - mean) / (std + 1e-4)`, with the unbiased standard
/// deviation; `r - mean` without `scale` (Dr. GRPO). Answers of equal reward have exactly 0, and so
/// has a group of one.
pub fn group_advantages(rewards: &[f64], scale: bool) -> Vec<f64> {
    let (mean, variance) = moments(rewards.iter().copied());
    let divisor = if scale { variance.sqrt() + GROUP_EPS } else { 1.0 };
    rewards.iter().map(|r| (r - mean) / divisor).collect()
}

/// Mean and unbiased variance; a variance of 0 for fewer than two values.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let Some(first) = values.clone().next() else { return (0.0, 0.0) };
    let n = values.clone().count() as f64;
    // Counted from the first, so that the mean of equal values is that value to the last bit.
    let mean = first + values.clone().map(|x| x - first).sum::<f64>() / n;
    let squares: f64 = values.map(|x| (x - mean) * (x - mean)).sum();
    (mean, squares / (n - 1.0).max(1.0))
}

/// Moves the weight of the penalty so that the divergence comes to a target. The weight is all that
/// changes, so it is all that a checkpoint needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptiveKl {
    /// The weight now.
    pub coef: f64,
    /// The divergence wanted, summed over an answer's tokens.
    pub target: f64,
    /// Answers over which the weight follows.
    pub horizon: f64,
}

impl AdaptiveKl {
    /// Refuses constants that mean nothing.
    ///
    /// # Errors
    /// The first: name, value, what was wanted.
    pub fn check(&self) -> Result<()> {
        let constants =
            [("kl_coef", self.coef), ("kl_target", self.target), ("kl_horizon", self.horizon)];
        for (name, value) in constants {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::config(name, value, "wanted a number above 0"));
            }
        }
        Ok(())
    }

    /// After `n_steps` answers whose mean divergence was `current_kl`:
    /// `coef *= 1 + e n_steps / horizon`, `e = current_kl / target - 1` cut to ±0.2. Fewer than
    /// five horizons at once, or the weight could fall to 0 and below.
    pub fn update(&mut self, current_kl: f64, n_steps: usize) {
        let error = (current_kl / self.target - 1.0).clamp(-MOST_ERROR, MOST_ERROR);
        self.coef *= 1.0 + error * n_steps as f64 / self.horizon;
    }
}

#[cfg(test)]
#[path = "advantage_tests.rs"]
mod tests;
