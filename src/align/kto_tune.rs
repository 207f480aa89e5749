//! A model in training by KTO: every row is a group of pairs, because an answer's loss is about how
//! far the policy has moved on the whole group.
//!
//! The chosen answers are the desirable ones, the rejected ones the undesirable. How far the policy
//! has moved is measured on prompts with the answer to another: the next one of the group.

use super::kto::{Kto, baseline};
use super::pairs::{PairRows, PairTrainee, under_reference};
use super::reference::by_sequence;
use crate::autograd::Dropout;
use crate::error::Result;
use crate::model::tune::{Slice, SliceLoss, TuneModel};
use crate::tensor::Grads;
use crate::train::trainee::{Measures, Trainee, Tuned};
use std::sync::atomic::AtomicBool;

/// Documents of a pair: chosen, rejected, and the prompt with another's answer.
pub(super) const DOCUMENTS: usize = 3;

/// A model in training on groups of pairs.
pub struct KtoTuned {
    model: TuneModel,
    known: Known,
    sums: Sums,
}

/// The loss, and what it knows of the pairs by their numbers.
struct Known {
    kto: Kto,
    /// The reference's summed log-probabilities of a pair's documents.
    reference: Vec<[f64; DOCUMENTS]>,
    /// The row that a pair is in.
    group: Vec<usize>,
}

/// Sums over pairs since they were last asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    pairs: usize,
    right: usize,
    rewards: [f64; 2],
    baselines: f64,
}

impl KtoTuned {
    /// A model for the groups of these sets; the reference is not known yet.
    ///
    /// # Errors
    /// Constants that mean nothing.
    pub fn new(model: TuneModel, kto: Kto, sets: &[&PairRows]) -> Result<KtoTuned> {
        kto.check()?;
        let rows = || sets.iter().flat_map(|set| &set.0.rows);
        let n = rows().flat_map(|row| &row.source).map(|&id| id as usize + 1).max().unwrap_or(0);
        let mut group = vec![0; n];
        for (at, row) in rows().enumerate() {
            row.source.iter().for_each(|&id| group[id as usize] = at);
        }
        let known = Known { kto, reference: vec![[0.0; DOCUMENTS]; n], group };
        Ok(KtoTuned { model, known, sums: Sums::default() })
    }
}

impl Known {
    /// Loss of a slice's groups, and its derivatives with respect to each document's summed
    /// log-probability.
    fn cost(&self, slice: &Slice<'_>, sums: &[f64], seen: &mut Sums) -> (SliceLoss, Vec<f64>) {
        let mut loss = SliceLoss::default();
        let mut d = vec![0.0; sums.len()];
        // Log-ratios to the reference, three a pair.
        let of = |(at, sum): (usize, &f64)| {
            sum - self.reference[slice.sources[at] as usize][at % DOCUMENTS]
        };
        let ratios: Vec<f64> = sums.iter().enumerate().map(of).collect();
        let mut start = 0;
        while start < ratios.len() {
            let row = |at: usize| self.group[slice.sources[at] as usize];
            let end = (start..ratios.len()).find(|&at| row(at) != row(start));
            let documents = start..end.unwrap_or(ratios.len());
            let moved: Vec<f64> = documents
                .clone()
                .skip(DOCUMENTS - 1)
                .step_by(DOCUMENTS)
                .map(|at| ratios[at])
                .collect();
            let base = baseline(&moved);
            for first in documents.clone().step_by(DOCUMENTS) {
                let (chosen, dc) = self.kto.cost(ratios[first], true, base);
                let (rejected, dr) = self.kto.cost(ratios[first + 1], false, base);
                let right = ratios[first] > ratios[first + 1];
                d[first] = 0.5 * dc;
                d[first + 1] = 0.5 * dr;
                loss.nll += 0.5 * (chosen + rejected);
                loss.scored += 1;
                loss.correct += usize::from(right);
                seen.pairs += 1;
                seen.right += usize::from(right);
                seen.rewards[0] += self.kto.beta * ratios[first];
                seen.rewards[1] += self.kto.beta * ratios[first + 1];
                seen.baselines += base;
            }
            start = documents.end;
        }
        (loss, d)
    }
}

/// Summed log-probabilities of each document of a slice, and how many tokens they are of.
fn sums_of(slice: &Slice<'_>, log_probs: &[f32]) -> Result<(Vec<f64>, Vec<usize>)> {
    let lists = by_sequence(slice, log_probs)?;
    Ok(lists.iter().map(|own| (own.iter().sum::<f64>(), own.len())).unzip())
}

impl PairTrainee for KtoTuned {
    fn prepare(
        &mut self,
        sets: &[&PairRows],
        slice_tokens: Option<usize>,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<bool> {
        let KtoTuned { model, known, .. } = self;
        under_reference(model, sets, slice_tokens, stop, progress, &mut |slice, log_probs| {
            for (at, sum) in sums_of(slice, log_probs)?.0.into_iter().enumerate() {
                known.reference[slice.sources[at] as usize][at % DOCUMENTS] = sum;
            }
            Ok(())
        })
    }
}

impl Tuned for KtoTuned {
    fn tuned(&self) -> &TuneModel {
        &self.model
    }

    fn tuned_mut(&mut self) -> &mut TuneModel {
        &mut self.model
    }
}

impl Trainee for KtoTuned {
    fn run(
        &mut self,
        slice: &Slice<'_>,
        grads: Option<(&mut Grads, f32)>,
        dropout: Dropout,
    ) -> Result<SliceLoss> {
        let KtoTuned { model, known, sums } = self;
        let Some((grads, scale)) = grads else {
            let (of_documents, _) = sums_of(slice, &model.log_probs(slice, true)?)?;
            return Ok(known.cost(slice, &of_documents, sums).0);
        };
        let mut found = Ok(SliceLoss::default());
        model.run_log_probs(slice, grads, dropout, &mut |log_probs| {
            let (of_documents, counts) = match sums_of(slice, log_probs) {
                Ok(both) => both,
                Err(error) => {
                    found = Err(error);
                    return vec![0.0; log_probs.len()];
                }
            };
            let (loss, d) = known.cost(slice, &of_documents, sums);
            found = Ok(loss);
            let each = d.iter().zip(counts);
            each.flat_map(|(&d, n)| std::iter::repeat_n(scale * d as f32, n)).collect()
        })?;
        found
    }

    fn units(&self, slice: &Slice<'_>) -> usize {
        slice.spans.len() / DOCUMENTS
    }

    fn scores_tokens(&self) -> bool {
        false
    }

    fn measures(&mut self) -> Measures {
        let Sums { pairs, right, rewards, baselines } = std::mem::take(&mut self.sums);
        let n = pairs.max(1) as f64;
        Measures::from([
            ("reward_accuracy".into(), right as f64 / n),
            ("reward_chosen".into(), rewards[0] / n),
            ("reward_rejected".into(), rewards[1] / n),
            ("reward_margin".into(), (rewards[0] - rewards[1]) / n),
            ("kl_baseline".into(), baselines / n),
        ])
    }
}
