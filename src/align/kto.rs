//! The loss of single answers that are called desirable or not, with its derivative.
//!
//! With `r` an answer's summed log-probability under the policy less that under the reference, and
//! `z` a baseline that is not trained through,
//!
//! ```text
//! desirable    desirable_weight   (1 - sigmoid(beta (r - z)))
//! undesirable  undesirable_weight (1 - sigmoid(beta (z - r)))
//! z = max(0, mean of r' over the batch)
//! ```
//!
//! where `r'` is of an answer to another prompt of the batch, so that `z` estimates how far the
//! policy went from the reference on the whole.
//!
//! Source: Ethayarajh et al. 2024 (arXiv 2402.01306), as TRL's KTOTrainer computes it.

use super::preference::sigmoid;
use crate::error::{Error, Result};

/// The constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kto {
    /// Sharpness.
    pub beta: f64,
    /// Weight of an answer that is wanted.
    pub desirable_weight: f64,
    /// Weight of one that is not.
    pub undesirable_weight: f64,
}

impl Kto {
    /// Refuses constants that mean nothing.
    ///
    /// # Errors
    /// The first: name, value, what was wanted.
    pub fn check(&self) -> Result<()> {
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return Err(Error::config("beta", self.beta, "wanted a number above 0"));
        }
        let weights = [
            ("desirable_weight", self.desirable_weight),
            ("undesirable_weight", self.undesirable_weight),
        ];
        for (name, weight) in weights {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(Error::config(name, weight, "wanted a number, at least 0"));
            }
        }
        Ok(())
    }

    /// An answer's loss and its derivative with respect to `ratio`, which is `r`.
    pub fn cost(&self, ratio: f64, desirable: bool, baseline: f64) -> (f64, f64) {
        let x = self.beta * (ratio - baseline);
        let (weight, sign) = match desirable {
            true => (self.desirable_weight, 1.0),
            false => (self.undesirable_weight, -1.0),
        };
        // 1 - sigmoid(y) = sigmoid(-y), without the loss of digits where y is large.
        let miss = sigmoid(-sign * x);
        (weight * miss, -sign * weight * self.beta * miss * sigmoid(sign * x))
    }
}

/// The baseline of a batch, of the `r'` of its mismatched answers; 0 without any.
pub fn baseline(ratios: &[f64]) -> f64 {
    let mean = ratios.iter().sum::<f64>() / ratios.len().max(1) as f64;
    // Not max, which would turn what is not a number into 0.
    if mean < 0.0 { 0.0 } else { mean }
}

#[cfg(test)]
#[path = "kto_tests.rs"]
mod tests;
