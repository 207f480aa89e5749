//! Proximal policy optimisation of a language model (Schulman et al. 2017, arXiv 1707.06347; Ziegler
//! et al. 2019, 1909.08593; Ouyang et al. 2022, 2203.02155), with TRL's constants.
//!
//! ```text
//! reward of a token    -kl_coef kl_t, and the answer's score on the last
//! advantage            generalised advantage estimation, whitened over the iteration
//! loss of a token      clipped policy loss + value_coef x clipped value loss
//! ```
//!
//! The value of a state is a second head on the policy's own last layer, so one model is trained.

use super::advantage::{AdaptiveKl, Kl, gae, returns, token_rewards, whiten};
use super::clipped::{PolicyLoss, Stats, ValueLoss};
use super::online::{Lesson, Method, Round, answer_row};
use super::reference::{Reference, by_sequence, each_slice};
use crate::autograd::Dropout;
use crate::data::Row;
use crate::error::{Error, Result};
use crate::model::tune::{Slice, SliceLoss, TuneModel};
use crate::tensor::Grads;
use crate::train::budget;
use crate::train::trainee::{Measures, Trainee, Tuned};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::atomic::AtomicBool;

/// Constants of the loss and of the rewards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PpoSettings {
    /// Clipping of the policy's loss.
    pub policy: PolicyLoss,
    /// Clipping and weight of the value's loss.
    pub value: ValueLoss,
    /// Discount of a later token's reward.
    pub gamma: f64,
    /// Mixing of estimates of all lengths.
    pub lambda: f64,
    /// Weight of the divergence from the reference, where it starts.
    pub kl_coef: f64,
    /// Divergence of an answer that the weight is moved towards, and over how many answers; none:
    /// the weight stays.
    pub kl_target: Option<(f64, f64)>,
    /// How the divergence is estimated.
    pub kl: Kl,
    /// Whether the tokens' rewards are scaled to variance 1.
    pub whiten_rewards: bool,
    /// Taken from the score of an answer that did not end by itself.
    pub missing_eos_penalty: f64,
}

impl PpoSettings {
    /// Refuses constants that mean nothing.
    ///
    /// # Errors
    /// Name, value, what was wanted.
    pub fn check(&self) -> Result<()> {
        self.policy.check()?;
        self.value.check()?;
        for (name, value) in [("gamma", self.gamma), ("lam", self.lambda)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::config(name, value, "wanted a number from 0 to 1"));
            }
        }
        for (name, value) in
            [("kl_coef", self.kl_coef), ("missing_eos_penalty", self.missing_eos_penalty)]
        {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::config(name, value, "wanted a number of at least 0"));
            }
        }
        match self.controller() {
            Some(controller) => controller.check(),
            None => Ok(()),
        }
    }

    fn controller(&self) -> Option<AdaptiveKl> {
        let (target, horizon) = self.kl_target?;
        Some(AdaptiveKl { coef: self.kl_coef, target, horizon })
    }
}

/// What is known of an answer when its steps begin, a number a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Known {
    log_probs: Vec<f64>,
    values: Vec<f64>,
    advantages: Vec<f64>,
    returns: Vec<f64>,
}

/// A policy with a value head in training.
pub struct Ppo {
    model: TuneModel,
    settings: PpoSettings,
    reference: Reference,
    slice_tokens: Option<usize>,
    kl_coef: f64,
    /// Mean divergence of the present iteration's answers, and how many there are.
    divergence: (f64, usize),
    /// By the number of the answer.
    known: Vec<Known>,
    sums: Sums,
}

/// Sums over tokens since they were last asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    policy: f64,
    value: f64,
    value_clipped: usize,
    stats: Stats,
}

impl Ppo {
    /// For a model that was opened with a value head.
    ///
    /// # Errors
    /// Constants that mean nothing.
    pub fn new(
        model: TuneModel,
        settings: PpoSettings,
        reference: Reference,
        slice_tokens: Option<usize>,
    ) -> Result<Ppo> {
        settings.check()?;
        Ok(Ppo {
            model,
            settings,
            reference,
            slice_tokens,
            kl_coef: settings.kl_coef,
            divergence: (0.0, 0),
            known: vec![],
            sums: Sums::default(),
        })
    }

    /// Loss of a slice's tokens, and its derivatives with respect to log-probabilities and values.
    fn cost(
        settings: &PpoSettings,
        known: &[Known],
        slice: &Slice<'_>,
        log_probs: &[f32],
        values: &[f32],
        sums: &mut Sums,
    ) -> (SliceLoss, [Vec<f64>; 2]) {
        let known = slice.sources.iter().map(|&number| &known[number as usize]);
        let tokens = known.flat_map(|one| (0..one.log_probs.len()).map(move |at| (one, at)));
        let mut loss = SliceLoss::default();
        let (mut d_log_probs, mut d_values) = (vec![], vec![]);
        for ((one, at), (&new, &value)) in tokens.zip(log_probs.iter().zip(values)) {
            let (new, value, old) = (f64::from(new), f64::from(value), one.log_probs[at]);
            let (policy, d_policy, clipped) = settings.policy.token(new, old, one.advantages[at]);
            let (worth, d_value, value_clipped) =
                settings.value.token(value, one.values[at], one.returns[at]);
            loss.nll += policy + worth;
            loss.scored += 1;
            loss.correct += usize::from(!clipped);
            sums.policy += policy;
            sums.value += worth;
            sums.value_clipped += usize::from(value_clipped);
            sums.stats.add(new, old, clipped);
            d_log_probs.push(d_policy);
            d_values.push(d_value);
        }
        (loss, [d_log_probs, d_values])
    }
}

/// Every answer of a round as a row.
pub(super) fn all_rows(round: &Round<'_>) -> Vec<Row> {
    let row = |(at, sample)| -> Row {
        let sample: &super::online::Sample = sample;
        answer_row(round.prompts[sample.prompt], sample, at)
    };
    round.samples.iter().enumerate().map(row).collect()
}

/// Tokens of the longest row.
pub(super) fn longest(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.ids.len()).max().unwrap_or(0)
}

/// Derivatives as the tape takes them, scaled.
pub(super) fn scaled(d: &[f64], scale: f32) -> Vec<f32> {
    d.iter().map(|&d| (f64::from(scale) * d) as f32).collect()
}

impl Method for Ppo {
    fn lesson(&mut self, round: &Round<'_>, stop: &AtomicBool) -> Result<Option<Lesson>> {
        let rows = all_rows(round);
        let budget = budget(self.slice_tokens, longest(&rows));
        let mut known = vec![Known::default(); rows.len()];
        let mut of_reference = vec![vec![]; rows.len()];
        let Ppo { model, reference, .. } = self;
        let whole = each_slice(&rows, budget, stop, |first, slice| {
            let (log_probs, values) = model.policy(slice)?;
            let found = by_sequence(slice, &log_probs)?.into_iter();
            for (at, (log_probs, values)) in found.zip(by_sequence(slice, &values)?).enumerate() {
                known[first + at] = Known { log_probs, values, ..Known::default() };
            }
            let log_probs = reference.log_probs(model, slice)?;
            for (at, log_probs) in by_sequence(slice, &log_probs)?.into_iter().enumerate() {
                of_reference[first + at] = log_probs;
            }
            Ok(())
        })?;
        if !whole {
            return Ok(None);
        }
        let settings = self.settings;
        let mut divergence = 0.0;
        let mut rewards = Vec::with_capacity(rows.len());
        for ((one, reference), sample) in known.iter().zip(&of_reference).zip(round.samples) {
            let tokens = one.log_probs.iter().zip(reference);
            divergence += tokens.map(|(&policy, &known)| Kl::K1.of(policy, known)).sum::<f64>();
            let penalty = if sample.ended { 0.0 } else { settings.missing_eos_penalty };
            let score = sample.reward - penalty;
            rewards.push(token_rewards(
                &one.log_probs,
                reference,
                score,
                self.kl_coef,
                settings.kl,
            ));
        }
        if settings.whiten_rewards {
            whiten(&mut rewards, false);
        }
        let mut advantages = vec![];
        let (mut n_tokens, mut worth, mut wanted) = (0, 0.0, 0.0);
        for (one, rewards) in known.iter_mut().zip(&rewards) {
            let own = gae(rewards, &one.values, settings.gamma, settings.lambda);
            one.returns = returns(&own, &one.values);
            n_tokens += own.len();
            worth += one.values.iter().sum::<f64>();
            wanted += one.returns.iter().sum::<f64>();
            advantages.push(own);
        }
        whiten(&mut advantages, true);
        for (one, advantages) in known.iter_mut().zip(advantages) {
            one.advantages = advantages;
        }
        let n = rows.len().max(1) as f64;
        let tokens = n_tokens.max(1) as f64;
        let of_policy: f64 = known.iter().flat_map(|one| &one.log_probs).sum();
        let measures = Measures::from([
            ("kl".to_owned(), divergence / n),
            ("kl_coef".to_owned(), self.kl_coef),
            ("value_mean".to_owned(), worth / tokens),
            ("return_mean".to_owned(), wanted / tokens),
        ]);
        let chosen = (0..rows.len()).collect();
        let ppl = (n_tokens > 0).then(|| (-of_policy / tokens).exp());
        let known = json!({"kl": divergence / n, "answers": known});
        Ok(Some(Lesson { rows, chosen, measures, ppl, train_set: None, known }))
    }

    fn begin(&mut self, lesson: &Lesson) -> Result<()> {
        self.known = known(&lesson.known["answers"])?;
        let kl = lesson.known["kl"].as_f64().unwrap_or(0.0);
        self.divergence = (kl, lesson.rows.len());
        Ok(())
    }

    fn learnt(&mut self) {
        if let Some(mut controller) = self.settings.controller() {
            controller.coef = self.kl_coef;
            let (kl, n) = self.divergence;
            controller.update(kl, n);
            self.kl_coef = controller.coef;
        }
    }

    fn memory(&self) -> Vec<f64> {
        vec![self.kl_coef]
    }

    fn remember(&mut self, memory: &[f64]) {
        if let [kl_coef] = memory {
            self.kl_coef = *kl_coef;
        }
    }
}

/// What a lesson says of its answers.
pub(super) fn known<T: for<'de> Deserialize<'de>>(value: &serde_json::Value) -> Result<Vec<T>> {
    Vec::<T>::deserialize(value).map_err(|error| Error::Data {
        place: "lesson".into(),
        what: format!("what is known of its answers: {error}"),
    })
}

impl Tuned for Ppo {
    fn tuned(&self) -> &TuneModel {
        &self.model
    }

    fn tuned_mut(&mut self) -> &mut TuneModel {
        &mut self.model
    }
}

impl Trainee for Ppo {
    fn run(
        &mut self,
        slice: &Slice<'_>,
        grads: Option<(&mut Grads, f32)>,
        dropout: Dropout,
    ) -> Result<SliceLoss> {
        let Ppo { model, settings, known, sums, .. } = self;
        let Some((grads, scale)) = grads else {
            let (log_probs, values) = model.policy(slice)?;
            return Ok(Ppo::cost(settings, known, slice, &log_probs, &values, sums).0);
        };
        let mut loss = SliceLoss::default();
        model.run_policy(slice, grads, dropout, &mut |log_probs, values| {
            let (found, [d_log_probs, d_values]) =
                Ppo::cost(settings, known, slice, log_probs, values, sums);
            loss = found;
            [scaled(&d_log_probs, scale), scaled(&d_values, scale)]
        })?;
        Ok(loss)
    }

    fn scores_tokens(&self) -> bool {
        false
    }

    fn measures(&mut self) -> Measures {
        let Sums { policy, value, value_clipped, stats } = std::mem::take(&mut self.sums);
        let n = stats.tokens().max(1) as f64;
        Measures::from([
            ("policy_loss".into(), policy / n),
            ("value_loss".into(), value / n),
            ("approx_kl".into(), stats.approx_kl()),
            ("clip_fraction".into(), stats.clip_fraction()),
            ("value_clip_fraction".into(), value_clipped as f64 / n),
            ("ratio".into(), stats.mean_ratio()),
        ])
    }
}
