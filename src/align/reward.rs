//! Reward models: a score for a text, trained so that the preferred one of two scores higher
//! (Ouyang et al. 2022, arXiv 2203.02155).
//!
//! ```text
//! loss = -log sigmoid(s_c - s_r - margin) + centre (s_c + s_r)²
//! ```
//!
//! The second part (Eisenstein et al. 2023, arXiv 2312.09244) keeps scores around 0; margins are
//! those of Touvron et al. 2023 (arXiv 2307.09288). A score is read at a text's last token; there is
//! no padding that could be taken for it.

use super::pairs::{PairRows, PairTrainee, add, margins};
use super::preference::{log_sigmoid, sigmoid};
use crate::autograd::Dropout;
use crate::error::{Error, Result};
use crate::model::tune::{Slice, SliceLoss, TuneModel};
use crate::tensor::Grads;
use crate::train::trainee::{Measures, Trainee, Tuned};

/// What a pair of scores costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RewardLoss {
    /// Whether a pair's margin counts.
    pub margin: bool,
    /// Weight of the square of the scores' sum.
    pub centre: f64,
}

impl RewardLoss {
    /// The loss of the scores `[chosen, rejected]` of a pair, and its derivatives.
    pub fn cost(&self, [c, r]: [f64; 2], margin: f64) -> (f64, [f64; 2]) {
        let x = c - r - if self.margin { margin } else { 0.0 };
        let (pull, push) = (sigmoid(-x), 2.0 * self.centre * (c + r));
        let value = -log_sigmoid(x) + self.centre * (c + r) * (c + r);
        (value, [push - pull, push + pull])
    }

    /// Refuses constants that mean nothing.
    ///
    /// # Errors
    /// Name, value, what was wanted.
    pub fn check(&self) -> Result<()> {
        match self.centre >= 0.0 && self.centre.is_finite() {
            true => Ok(()),
            false => Err(Error::config("centre", self.centre, "wanted a number of at least 0")),
        }
    }
}

/// A reward model in training on pairs.
pub struct Reward {
    model: TuneModel,
    loss: RewardLoss,
    /// Of every pair, by its number.
    margins: Vec<f64>,
    sums: Sums,
}

/// Sums over pairs since they were last asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    pairs: usize,
    right: usize,
    scores: [f64; 2],
    squares: [f64; 2],
}

impl Reward {
    /// A model for the pairs of these sets, whose numbers differ.
    ///
    /// # Errors
    /// Constants of the loss that mean nothing.
    pub fn new(model: TuneModel, loss: RewardLoss, sets: &[&PairRows]) -> Result<Reward> {
        loss.check()?;
        Ok(Reward { model, loss, margins: margins(sets), sums: Sums::default() })
    }

    fn cost(
        loss: &RewardLoss,
        margins: &[f64],
        slice: &Slice<'_>,
        scores: &[f32],
        sums: &mut Sums,
        each: &mut dyn FnMut([f64; 2]),
    ) -> SliceLoss {
        let mut total = SliceLoss::default();
        for (both, ids) in scores.chunks_exact(2).zip(slice.sources.chunks_exact(2)) {
            let scores = [f64::from(both[0]), f64::from(both[1])];
            let (value, d) = loss.cost(scores, margins[ids[0] as usize]);
            let right = scores[0] > scores[1];
            total.nll += value;
            total.scored += 1;
            total.correct += usize::from(right);
            sums.pairs += 1;
            sums.right += usize::from(right);
            add(&mut sums.scores, scores);
            add(&mut sums.squares, scores.map(|score| score * score));
            each(d);
        }
        total
    }
}

impl PairTrainee for Reward {}

impl Tuned for Reward {
    fn tuned(&self) -> &TuneModel {
        &self.model
    }

    fn tuned_mut(&mut self) -> &mut TuneModel {
        &mut self.model
    }
}

impl Trainee for Reward {
    fn run(
        &mut self,
        slice: &Slice<'_>,
        grads: Option<(&mut Grads, f32)>,
        dropout: Dropout,
    ) -> Result<SliceLoss> {
        let Reward { model, loss, margins, sums } = self;
        let Some((grads, scale)) = grads else {
            let scores = model.scores(slice)?;
            return Ok(Reward::cost(loss, margins, slice, &scores, sums, &mut |_| ()));
        };
        let mut total = SliceLoss::default();
        model.run_scores(slice, grads, dropout, &mut |scores| {
            let mut d = Vec::with_capacity(scores.len());
            total = Reward::cost(loss, margins, slice, scores, sums, &mut |of_pair| {
                d.extend(of_pair.map(|d| scale * d as f32));
            });
            d
        })?;
        Ok(total)
    }

    fn units(&self, slice: &Slice<'_>) -> usize {
        slice.spans.len() / 2
    }

    fn kept(&self, slice: &Slice<'_>) -> usize {
        slice.spans.len()
    }

    fn scores_tokens(&self) -> bool {
        false
    }

    fn measures(&mut self) -> Measures {
        let Sums { pairs, right, scores, squares } = std::mem::take(&mut self.sums);
        let n = pairs.max(1) as f64;
        let mean = (scores[0] + scores[1]) / (2.0 * n);
        let variance = (squares[0] + squares[1]) / (2.0 * n) - mean * mean;
        Measures::from([
            ("reward_accuracy".into(), right as f64 / n),
            ("reward_chosen".into(), scores[0] / n),
            ("reward_rejected".into(), scores[1] / n),
            ("reward_margin".into(), (scores[0] - scores[1]) / n),
            ("reward_deviation".into(), variance.max(0.0).sqrt()),
        ])
    }
}

#[cfg(test)]
#[path = "reward_tests.rs"]
mod tests;
