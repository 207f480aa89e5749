//! Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300): the advantage of an answer
//! is its reward among those of the other answers to the same prompt, so no value is learnt.

use super::advantage::{Kl, group_advantages};
use super::clipped::{PolicyLoss, Stats};
use super::online::{Lesson, Method, Round};
use super::ppo::{all_rows, known, longest, scaled};
use super::reference::{Reference, by_sequence, each_slice};
use crate::autograd::Dropout;
use crate::error::{Error, Result};
use crate::model::tune::{Slice, SliceLoss, TuneModel};
use crate::tensor::Grads;
use crate::train::budget;
use crate::train::trainee::{Measures, Trainee, Tuned};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::atomic::AtomicBool;

/// What the loss of a step is a mean over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mean {
    /// All tokens alike.
    Tokens,
    /// Answers, each the mean over its tokens, as in the paper.
    Answers,
}

impl Mean {
    /// All of them.
    pub const ALL: [Mean; 2] = [Mean::Tokens, Mean::Answers];

    /// The name in commands and files: TRL's names of the losses.
    pub const fn name(self) -> &'static str {
        match self {
            Mean::Tokens => "bnpo",
            Mean::Answers => "grpo",
        }
    }
}

/// Constants of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GrpoSettings {
    /// Clipping.
    pub policy: PolicyLoss,
    /// Weight of the divergence from the reference; 0: none.
    pub beta: f64,
    /// Whether advantages are divided by the group's standard deviation.
    pub scale_rewards: bool,
    /// What the loss is a mean over.
    pub mean: Mean,
}

impl GrpoSettings {
    /// Refuses constants that mean nothing.
    ///
    /// # Errors
    /// Name, value, what was wanted.
    pub fn check(&self) -> Result<()> {
        self.policy.check()?;
        if !(self.beta >= 0.0 && self.beta.is_finite()) {
            return Err(Error::config("beta", self.beta, "wanted a number of at least 0"));
        }
        Ok(())
    }
}

/// What is known of an answer when its steps begin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Known {
    log_probs: Vec<f64>,
    /// Empty where the loss has no use for it.
    reference: Vec<f64>,
    advantage: f64,
}

/// A policy in training.
pub struct Grpo {
    model: TuneModel,
    settings: GrpoSettings,
    reference: Option<Reference>,
    slice_tokens: Option<usize>,
    known: Vec<Known>,
    sums: Sums,
}

/// Sums over tokens since they were last asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    kl: f64,
    stats: Stats,
}

impl Grpo {
    /// For a model; `reference` where there is a `beta`.
    ///
    /// # Errors
    /// Constants that mean nothing.
    pub fn new(
        model: TuneModel,
        settings: GrpoSettings,
        reference: Option<Reference>,
        slice_tokens: Option<usize>,
    ) -> Result<Grpo> {
        settings.check()?;
        let (known, sums) = (vec![], Sums::default());
        Ok(Grpo { model, settings, reference, slice_tokens, known, sums })
    }

    fn cost(
        settings: &GrpoSettings,
        known: &[Known],
        slice: &Slice<'_>,
        log_probs: &[f32],
        sums: &mut Sums,
    ) -> (SliceLoss, Vec<f64>) {
        let mut loss = SliceLoss::default();
        let mut d = Vec::with_capacity(log_probs.len());
        let mut rest = log_probs;
        for &number in slice.sources {
            let one = &known[number as usize];
            let (own, after) = rest.split_at(one.log_probs.len().min(rest.len()));
            rest = after;
            let weight = match settings.mean {
                Mean::Tokens => 1.0,
                Mean::Answers => 1.0 / own.len().max(1) as f64,
            };
            for (at, &new) in own.iter().enumerate() {
                let (new, old) = (f64::from(new), one.log_probs[at]);
                let reference = one.reference.get(at).copied().unwrap_or(new);
                let (value, slope, clipped) = settings.policy.token_with_kl(
                    new,
                    old,
                    reference,
                    one.advantage,
                    settings.beta,
                );
                loss.nll += weight * value;
                loss.correct += usize::from(!clipped);
                sums.kl += Kl::K3.of(new, reference);
                sums.stats.add(new, old, clipped);
                d.push(weight * slope);
            }
            loss.scored += match settings.mean {
                Mean::Tokens => own.len(),
                Mean::Answers => 1,
            };
        }
        (loss, d)
    }
}

impl Method for Grpo {
    fn lesson(&mut self, round: &Round<'_>, stop: &AtomicBool) -> Result<Option<Lesson>> {
        let mut rows = all_rows(round);
        let budget = budget(self.slice_tokens, longest(&rows));
        let mut answers = vec![Known::default(); rows.len()];
        let Grpo { model, reference, .. } = self;
        let whole = each_slice(&rows, budget, stop, |first, slice| {
            let log_probs = model.log_probs(slice, true)?;
            for (at, log_probs) in by_sequence(slice, &log_probs)?.into_iter().enumerate() {
                answers[first + at].log_probs = log_probs;
            }
            if let Some(reference) = reference {
                let log_probs = reference.log_probs(model, slice)?;
                for (at, log_probs) in by_sequence(slice, &log_probs)?.into_iter().enumerate() {
                    answers[first + at].reference = log_probs;
                }
            }
            Ok(())
        })?;
        if !whole {
            return Ok(None);
        }
        let rewards: Vec<f64> = round.samples.iter().map(|one| one.reward).collect();
        let groups = rewards.chunks(round.n_samples.max(1));
        let advantages =
            groups.clone().flat_map(|group| group_advantages(group, self.settings.scale_rewards));
        for (one, advantage) in answers.iter_mut().zip(advantages) {
            one.advantage = advantage;
        }
        let flat = groups.clone().filter(|group| group.iter().all(|r| *r == group[0])).count();
        let n_groups = groups.len().max(1) as f64;
        let n_tokens = answers.iter().map(|one| one.log_probs.len()).sum::<usize>();
        let of_policy: f64 = answers.iter().flat_map(|one| &one.log_probs).sum();
        let mut measures = Measures::from([("equal_groups".to_owned(), flat as f64 / n_groups)]);
        if self.reference.is_some() {
            let both = answers.iter().flat_map(|one| one.log_probs.iter().zip(&one.reference));
            let sum: f64 = both.map(|(&policy, &known)| Kl::K1.of(policy, known)).sum();
            measures.insert("kl".to_owned(), sum / rows.len().max(1) as f64);
        }
        // Where all answers are worth the same there is nothing to learn, except to stay near.
        let learns = |at: usize| answers[at].advantage != 0.0 || self.settings.beta > 0.0;
        let chosen: Vec<usize> = (0..rows.len()).filter(|&at| learns(at)).collect();
        let mut number = 0;
        rows.retain(|_| {
            number += 1;
            learns(number - 1)
        });
        let ppl = (n_tokens > 0).then(|| (-of_policy / n_tokens as f64).exp());
        let known = json!({ "answers": answers });
        Ok(Some(Lesson { rows, chosen, measures, ppl, train_set: None, known }))
    }

    fn begin(&mut self, lesson: &Lesson) -> Result<()> {
        self.known = known(&lesson.known["answers"])?;
        Ok(())
    }
}

impl Tuned for Grpo {
    fn tuned(&self) -> &TuneModel {
        &self.model
    }

    fn tuned_mut(&mut self) -> &mut TuneModel {
        &mut self.model
    }
}

impl Trainee for Grpo {
    fn run(
        &mut self,
        slice: &Slice<'_>,
        grads: Option<(&mut Grads, f32)>,
        dropout: Dropout,
    ) -> Result<SliceLoss> {
        let Grpo { model, settings, known, sums, .. } = self;
        let Some((grads, scale)) = grads else {
            let log_probs = model.log_probs(slice, true)?;
            return Ok(Grpo::cost(settings, known, slice, &log_probs, sums).0);
        };
        let mut loss = SliceLoss::default();
        model.run_log_probs(slice, grads, dropout, &mut |log_probs| {
            let (found, d) = Grpo::cost(settings, known, slice, log_probs, sums);
            loss = found;
            scaled(&d, scale)
        })?;
        Ok(loss)
    }

    fn units(&self, slice: &Slice<'_>) -> usize {
        match self.settings.mean {
            Mean::Tokens => slice.labels.iter().flatten().count(),
            Mean::Answers => slice.spans.len(),
        }
    }

    fn scores_tokens(&self) -> bool {
        false
    }

    fn measures(&mut self) -> Measures {
        let Sums { kl, stats } = std::mem::take(&mut self.sums);
        let n = stats.tokens().max(1) as f64;
        let mut measures = Measures::from([
            ("approx_kl".into(), stats.approx_kl()),
            ("clip_fraction".into(), stats.clip_fraction()),
            ("ratio".into(), stats.mean_ratio()),
        ]);
        if self.reference.is_some() {
            measures.insert("kl_to_reference".into(), kl / n);
        }
        measures
    }
}
