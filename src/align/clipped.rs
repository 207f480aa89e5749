//! The clipped losses of a token in policy optimisation, with their derivatives.
//!
//! ```text
//! ratio  = e^(new_logp - old_logp)
//! policy = -min(ratio A, cut(ratio, 1 - clip, 1 + clip_high) A)
//! value  = coef max((v - R)², (cut(v, old - clip, old + clip) - R)²) / 2
//! ```
//!
//! A token counts as clipped where the cut side is the larger loss, strictly, as TRL counts; it
//! then pulls at nothing. At a bound itself the slope is that of the uncut side, as torch has it.
//! Every function is one token's; the caller divides sums by its count of tokens.
//!
//! Sources: Schulman et al. 2017 (arXiv 1707.06347), equation 7; Shao et al. 2024 (2402.03300) for
//! the divergence in the loss; Yu et al. 2025 (2503.14476) for the higher upper bound; the clipped
//! value loss and the statistics are TRL's.

use super::advantage::Kl;
use crate::error::{Error, Result};

/// Refuses what is no number above 0.
fn above_zero(name: &str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(name, value, "wanted a number above 0"))
}

/// What a token of the policy costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyLoss {
    /// How far below 1 the ratio still counts, and above 1 too without [`PolicyLoss::clip_high`].
    pub clip: f64,
    /// How far above 1 it counts.
    pub clip_high: Option<f64>,
}

impl PolicyLoss {
    /// Refuses constants that mean nothing.
    ///
    /// # Errors
    /// The first: name, value, what was wanted.
    pub fn check(&self) -> Result<()> {
        above_zero("clip", self.clip)?;
        self.clip_high.map_or(Ok(()), |high| above_zero("clip_high", high))
    }

    /// A token's loss, its derivative with respect to `new_logp`, and whether it is clipped.
    pub fn token(&self, new_logp: f64, old_logp: f64, advantage: f64) -> (f64, f64, bool) {
        let ratio = (new_logp - old_logp).exp();
        let high = 1.0 + self.clip_high.unwrap_or(self.clip);
        let uncut = -advantage * ratio;
        // max and min, as clamp would panic where a bound is not a number.
        let cut = -advantage * ratio.max(1.0 - self.clip).min(high);
        // The exponential is its own derivative.
        if cut > uncut { (cut, 0.0, true) } else { (uncut, uncut, false) }
    }

    /// The same with `beta` times the k3 divergence from the reference: GRPO's token. A `beta` of 0
    /// leaves `reference_logp` unread.
    pub fn token_with_kl(
        &self,
        new_logp: f64,
        old_logp: f64,
        reference_logp: f64,
        advantage: f64,
        beta: f64,
    ) -> (f64, f64, bool) {
        let (loss, d, clipped) = self.token(new_logp, old_logp, advantage);
        if beta == 0.0 {
            return (loss, d, clipped);
        }
        let kl = Kl::K3.of(new_logp, reference_logp);
        let slope = Kl::K3.slope(new_logp, reference_logp);
        (loss + beta * kl, d + beta * slope, clipped)
    }
}

/// What a token of the value head costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueLoss {
    /// How far a value may go from that of the rollout; nothing for any distance.
    pub clip: Option<f64>,
    /// Weight beside the policy's loss.
    pub coef: f64,
}

impl ValueLoss {
    /// Refuses constants that mean nothing.
    ///
    /// # Errors
    /// The first: name, value, what was wanted.
    pub fn check(&self) -> Result<()> {
        if !(self.coef >= 0.0 && self.coef.is_finite()) {
            return Err(Error::config("value_coef", self.coef, "wanted a number, at least 0"));
        }
        self.clip.map_or(Ok(()), |clip| above_zero("value_clip", clip))
    }

    /// A token's loss, its derivative with respect to `new_value`, and whether it is clipped. `ret`
    /// is the return, `old_value` what the rollout's value head said.
    pub fn token(&self, new_value: f64, old_value: f64, ret: f64) -> (f64, f64, bool) {
        let off = new_value - ret;
        if let Some(clip) = self.clip {
            let cut = new_value.max(old_value - clip).min(old_value + clip) - ret;
            if cut * cut > off * off {
                return (0.5 * self.coef * cut * cut, 0.0, true);
            }
        }
        (0.5 * self.coef * off * off, self.coef * off, false)
    }
}

/// How far the policy went from that of the rollout, over tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Tokens counted.
    tokens: usize,
    /// Of them, clipped.
    clipped: usize,
    /// Sum of squares of `new_logp - old_logp`.
    squares: f64,
    /// Sum of ratios.
    ratios: f64,
}

impl Stats {
    /// Counts a token; `clipped` as [`PolicyLoss::token`] says.
    pub fn add(&mut self, new_logp: f64, old_logp: f64, clipped: bool) {
        let off = new_logp - old_logp;
        self.tokens += 1;
        self.clipped += usize::from(clipped);
        self.squares += off * off;
        self.ratios += off.exp();
    }

    /// Counts what another counted.
    pub fn merge(&mut self, other: &Stats) {
        self.tokens += other.tokens;
        self.clipped += other.clipped;
        self.squares += other.squares;
        self.ratios += other.ratios;
    }

    /// Tokens counted.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Divergence from the rollout's policy: half the mean square of `new_logp - old_logp`; 0
    /// without tokens, as the other means.
    pub fn approx_kl(&self) -> f64 {
        0.5 * self.mean(self.squares)
    }

    /// Share of tokens that are clipped.
    pub fn clip_fraction(&self) -> f64 {
        self.mean(self.clipped as f64)
    }

    /// Mean ratio; near 1 where the log-probabilities of rollout and training agree.
    pub fn mean_ratio(&self) -> f64 {
        self.mean(self.ratios)
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.tokens.max(1) as f64
    }
}

#[cfg(test)]
#[path = "clipped_tests.rs"]
mod tests;
