//! Direct preference optimisation and its relatives: a model in training whose rows are pairs.
//!
//! The reference is the model as it was: under an adapter in training the base without it, else the
//! weights before the first step. Its log-probabilities are computed once, before training, so no
//! second model is held and no pair costs more than one pass each way.

use super::pairs::{PairRows, PairTrainee, add, margins, under_reference};
use super::preference::{Objective, Pair};
use crate::autograd::Dropout;
use crate::error::Result;
use crate::model::tune::{Slice, SliceLoss, TuneModel};
use crate::tensor::Grads;
use crate::train::trainee::{Measures, Trainee, Tuned};
use std::sync::atomic::AtomicBool;

/// A model in training on pairs.
pub struct Dpo {
    model: TuneModel,
    objective: Objective,
    /// Of every pair, by its number: margin, and the reference's log-probabilities.
    known: Vec<Known>,
    sums: Sums,
}

/// What is known of a pair before training.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    margin: f64,
    reference: [f64; 2],
}

/// Sums over pairs since they were last asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    pairs: usize,
    right: usize,
    rewards: [f64; 2],
    log_probs: [f64; 2],
}

impl Dpo {
    /// A model for the pairs of these sets, whose numbers differ; the reference is not known yet.
    ///
    /// # Errors
    /// Constants of the objective that mean nothing.
    pub fn new(model: TuneModel, objective: Objective, sets: &[&PairRows]) -> Result<Dpo> {
        objective.check()?;
        let known = margins(sets).into_iter().map(|margin| Known { margin, ..Known::default() });
        Ok(Dpo { model, objective, known: known.collect(), sums: Sums::default() })
    }

    /// Forgets all pairs; from now on these are known, by their numbers: the reference's summed
    /// log-probabilities of chosen and rejected, and the margin.
    pub(super) fn know(&mut self, pairs: impl Iterator<Item = ([f64; 2], f64)>) {
        self.known = pairs.map(|(reference, margin)| Known { margin, reference }).collect();
    }

    /// Whether the loss is about a reference.
    pub(super) fn needs_reference(&self) -> bool {
        self.objective.needs_reference()
    }

    /// Cost of each pair of a slice; with it what is counted.
    fn cost(
        objective: &Objective,
        known: &[Known],
        slice: &Slice<'_>,
        log_probs: &[f32],
        sums: &mut Sums,
        each: &mut dyn FnMut([f64; 2]),
    ) -> SliceLoss {
        let mut loss = SliceLoss::default();
        let tokens = tokens_of(slice);
        for ((pair, policy), tokens) in sums_of(slice, log_probs).zip(tokens.chunks_exact(2)) {
            let Known { margin, reference } = known[pair];
            let tokens = [tokens[0].max(1) as f64, tokens[1].max(1) as f64];
            let cost = objective.cost(&Pair { policy, reference, tokens, margin });
            let right = cost.rewards[0] > cost.rewards[1];
            loss.nll += cost.value;
            loss.scored += 1;
            loss.correct += usize::from(right);
            sums.pairs += 1;
            sums.right += usize::from(right);
            add(&mut sums.rewards, cost.rewards);
            add(&mut sums.log_probs, policy);
            each(cost.d);
        }
        loss
    }
}

/// Scored tokens of each document.
fn tokens_of(slice: &Slice<'_>) -> Vec<usize> {
    let mut rest = slice.labels;
    let count = |&len: &usize| {
        let (document, after) = rest.split_at(len);
        rest = after;
        document.iter().flatten().count()
    };
    slice.spans.iter().map(count).collect()
}

/// Number and summed log-probabilities, chosen and rejected, of each pair of a slice.
fn sums_of(slice: &Slice<'_>, log_probs: &[f32]) -> impl Iterator<Item = (usize, [f64; 2])> {
    let mut rest = log_probs;
    let sum = |n: usize| {
        let (document, after) = rest.split_at(n);
        rest = after;
        document.iter().map(|&x| f64::from(x)).sum::<f64>()
    };
    let sums: Vec<f64> = tokens_of(slice).into_iter().map(sum).collect();
    let pairs = slice.sources.chunks_exact(2).map(|both| both[0] as usize);
    pairs.zip(sums.chunks_exact(2).map(|both| [both[0], both[1]]).collect::<Vec<_>>())
}

impl PairTrainee for Dpo {
    /// Computes the reference's log-probabilities, where the loss needs them.
    fn prepare(
        &mut self,
        sets: &[&PairRows],
        slice_tokens: Option<usize>,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<bool> {
        if !self.objective.needs_reference() {
            return Ok(true);
        }
        let Dpo { model, known, .. } = self;
        under_reference(model, sets, slice_tokens, stop, progress, &mut |slice, log_probs| {
            for (pair, sums) in sums_of(slice, log_probs) {
                known[pair].reference = sums;
            }
            Ok(())
        })
    }
}

impl Tuned for Dpo {
    fn tuned(&self) -> &TuneModel {
        &self.model
    }

    fn tuned_mut(&mut self) -> &mut TuneModel {
        &mut self.model
    }
}

impl Trainee for Dpo {
    fn run(
        &mut self,
        slice: &Slice<'_>,
        grads: Option<(&mut Grads, f32)>,
        dropout: Dropout,
    ) -> Result<SliceLoss> {
        let Dpo { model, objective, known, sums } = self;
        let Some((grads, scale)) = grads else {
            let log_probs = model.log_probs(slice, true)?;
            return Ok(Dpo::cost(objective, known, slice, &log_probs, sums, &mut |_| ()));
        };
        let mut loss = SliceLoss::default();
        let tokens = tokens_of(slice);
        model.run_log_probs(slice, grads, dropout, &mut |log_probs| {
            let mut d = Vec::with_capacity(log_probs.len());
            let mut counts = tokens.chunks_exact(2);
            loss = Dpo::cost(objective, known, slice, log_probs, sums, &mut |of_pair| {
                for (&n, of_sum) in counts.next().into_iter().flatten().zip(of_pair) {
                    d.extend(std::iter::repeat_n(scale * of_sum as f32, n));
                }
            });
            d
        })?;
        Ok(loss)
    }

    fn units(&self, slice: &Slice<'_>) -> usize {
        slice.spans.len() / 2
    }

    fn scores_tokens(&self) -> bool {
        false
    }

    fn measures(&mut self) -> Measures {
        let Sums { pairs, right, rewards, log_probs } = std::mem::take(&mut self.sums);
        let n = pairs.max(1) as f64;
        Measures::from([
            ("reward_accuracy".into(), right as f64 / n),
            ("reward_chosen".into(), rewards[0] / n),
            ("reward_rejected".into(), rewards[1] / n),
            ("reward_margin".into(), (rewards[0] - rewards[1]) / n),
            ("log_prob_chosen".into(), log_probs[0] / n),
            ("log_prob_rejected".into(), log_probs[1] / n),
        ])
    }
}

#[cfg(test)]
#[path = "dpo_tests.rs"]
mod tests;
