//! RAFT: reward-ranked fine-tuning (Dong et al. 2023, arXiv 2304.06767). Of a model's own answers the
//! best are kept, and it is tuned on them as on any others.
//!
//! With a weight `kl_coef` an answer's reward is what the paper calls regularised:
//! `r - kl_coef (log policy(y | x) - log reference(y | x))`.

use super::online::{Lesson, Method, Round, Sample, answer_row, train_set};
use super::reference::{Reference, by_sequence, each_slice};
use super::select::{Strategy, local, top};
use crate::autograd::Dropout;
use crate::data::{Prompt, Row};
use crate::error::{Error, Result};
use crate::model::tune::{Slice, SliceLoss, TuneModel};
use crate::tensor::Grads;
use crate::train::budget;
use crate::train::trainee::{Measures, Trainee, Tuned};
use std::sync::atomic::AtomicBool;

/// Characters of the shortest answer that LMFlow takes for one.
const SHORTEST: usize = 2;

/// How answers are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RaftSettings {
    /// Of which.
    pub strategy: Strategy,
    /// The share of all answers that is kept.
    pub share: f64,
    /// Weight of the log-ratio to the reference; 0: none.
    pub kl_coef: f64,
    /// LMFlow's texts: cleaned, learnt whole with their prompts, without EOS.
    pub lmflow_compat: bool,
}

impl RaftSettings {
    /// Refuses constants that mean nothing.
    ///
    /// # Errors
    /// Name, value, what was wanted.
    pub fn check(&self) -> Result<()> {
        if !(self.share > 0.0 && self.share <= 1.0) {
            let why = "wanted a number above 0, at most 1";
            return Err(Error::config("top_reward_percentage", self.share, why));
        }
        if !(self.kl_coef >= 0.0 && self.kl_coef.is_finite()) {
            return Err(Error::config("kl_coef", self.kl_coef, "wanted a number of at least 0"));
        }
        Ok(())
    }
}

/// A model that learns from its best answers.
pub struct Raft {
    model: TuneModel,
    settings: RaftSettings,
    reference: Option<Reference>,
    slice_tokens: Option<usize>,
}

impl Raft {
    /// For a model; `reference` where there is a `kl_coef`.
    ///
    /// # Errors
    /// Constants that mean nothing; LMFlow's texts of a model without tokenizer.
    pub fn new(
        model: TuneModel,
        settings: RaftSettings,
        reference: Option<Reference>,
        slice_tokens: Option<usize>,
    ) -> Result<Raft> {
        settings.check()?;
        if settings.lmflow_compat && model.text().is_none() {
            return Err(Error::Tokenizer("the model has none; its answers are no texts".into()));
        }
        Ok(Raft { model, settings, reference, slice_tokens })
    }

    /// The reward by which each answer is chosen; none of those that are discarded.
    fn merits(&self, samples: &[Sample], texts: &[String], ratios: Option<&[f64]>) -> Merits {
        let compat = self.settings.lmflow_compat;
        let merit = |(at, (sample, text)): (usize, (&Sample, &String))| {
            let is_none = match compat {
                true => text.chars().count() < SHORTEST || text.contains('#'),
                false => text.trim().is_empty(),
            };
            let penalty = ratios.map_or(0.0, |ratios| self.settings.kl_coef * ratios[at]);
            (!is_none).then_some(sample.reward - penalty)
        };
        samples.iter().zip(texts).enumerate().map(merit).collect()
    }

    /// The answer's text as it is learnt.
    fn text(&self, sample: &Sample) -> String {
        if self.settings.lmflow_compat { cleaned(&sample.text) } else { sample.text.clone() }
    }

    fn row(&self, prompt: &Prompt, sample: &Sample, text: &str, number: usize) -> Result<Row> {
        if !self.settings.lmflow_compat {
            return Ok(answer_row(prompt, sample, number));
        }
        let parts = self.model.text();
        let Some(parts) = parts else { return Ok(Row::default()) };
        let mut ids = parts.tokenizer.encode(&format!("{}{text}", prompt.text), true, true)?;
        ids.pop_if(|last| Some(*last) == parts.tokenizer.eos_id());
        let labels = ids.iter().map(|&id| id as i32).collect();
        Ok(Row { spans: vec![ids.len() as u32], labels, ids, source: vec![number as u32] })
    }

    /// `log policy - log reference` of each answer; `None` when told to stop meanwhile.
    fn ratios(&mut self, round: &Round<'_>, stop: &AtomicBool) -> Result<Option<Vec<f64>>> {
        let rows: Vec<Row> = round
            .samples
            .iter()
            .enumerate()
            .map(|(at, sample)| answer_row(round.prompts[sample.prompt], sample, at))
            .collect();
        let budget = budget(self.slice_tokens, longest(&rows));
        let mut ratios = vec![0.0; rows.len()];
        let Raft { model, reference, .. } = self;
        let Some(reference) = reference else { return Ok(Some(ratios)) };
        let whole = each_slice(&rows, budget, stop, |first, slice| {
            let sums = |values: Vec<f32>| -> Result<Vec<f64>> {
                Ok(by_sequence(slice, &values)?.iter().map(|own| own.iter().sum()).collect())
            };
            let policy = sums(model.log_probs(slice, true)?)?;
            let known = sums(reference.log_probs(model, slice)?)?;
            for (at, (policy, known)) in policy.iter().zip(&known).enumerate() {
                ratios[first + at] = policy - known;
            }
            Ok(())
        })?;
        Ok(whole.then_some(ratios))
    }

    /// Perplexity of rows; `None` when told to stop meanwhile.
    fn perplexity(&mut self, rows: &[Row], stop: &AtomicBool) -> Result<Option<f64>> {
        let budget = budget(self.slice_tokens, longest(rows));
        let (mut sum, mut n) = (0.0, 0);
        let whole = each_slice(rows, budget, stop, |_, slice| {
            let loss = self.model.run(slice, None, Dropout::default())?;
            sum += loss.nll;
            n += loss.scored;
            Ok(())
        })?;
        Ok(whole.then(|| (sum / f64::from(n.max(1) as u32)).exp()))
    }
}

/// By what each answer is chosen.
type Merits = Vec<Option<f64>>;

fn longest(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.ids.len()).max().unwrap_or(0)
}

/// LMFlow's cleaning: the first piece before "###Human" that is not empty, without blanks and then
/// without number signs around it. A text of nothing else is empty.
fn cleaned(text: &str) -> String {
    let piece = text.split("###Human").find(|piece| !piece.is_empty()).unwrap_or_default();
    piece.trim().trim_matches('#').to_owned()
}

impl Method for Raft {
    fn lesson(&mut self, round: &Round<'_>, stop: &AtomicBool) -> Result<Option<Lesson>> {
        let texts: Vec<String> = round.samples.iter().map(|one| self.text(one)).collect();
        let ratios = match self.reference {
            Some(_) => match self.ratios(round, stop)? {
                Some(ratios) => Some(ratios),
                None => return Ok(None),
            },
            None => None,
        };
        let merits = self.merits(round.samples, &texts, ratios.as_deref());
        let chosen = match self.settings.strategy {
            Strategy::Local => local(&merits, round.n_samples),
            Strategy::Top => top(&merits, self.settings.share),
        };
        let prompt = |at: usize| round.prompts[round.samples[at].prompt];
        let rows = chosen
            .iter()
            .map(|&at| self.row(prompt(at), &round.samples[at], &texts[at], at))
            .collect::<Result<Vec<Row>>>()?;
        let Some(ppl) = self.perplexity(&rows, stop)? else { return Ok(None) };
        let discarded = merits.iter().filter(|merit| merit.is_none()).count();
        let mut measures = Measures::from([("discarded".to_owned(), discarded as f64)]);
        if let Some(ratios) = &ratios {
            let mean = ratios.iter().sum::<f64>() / ratios.len().max(1) as f64;
            measures.insert("kl".to_owned(), mean);
        }
        let pairs = chosen.iter().map(|&at| (prompt(at), texts[at].as_str()));
        let train_set = train_set(pairs, self.settings.lmflow_compat);
        let ppl = (!rows.is_empty()).then_some(ppl);
        Ok(Some(Lesson { rows, chosen, measures, ppl, train_set, ..Lesson::default() }))
    }
}

impl Tuned for Raft {
    fn tuned(&self) -> &TuneModel {
        &self.model
    }

    fn tuned_mut(&mut self) -> &mut TuneModel {
        &mut self.model
    }
}

impl Trainee for Raft {
    fn run(
        &mut self,
        slice: &Slice<'_>,
        grads: Option<(&mut Grads, f32)>,
        dropout: Dropout,
    ) -> Result<SliceLoss> {
        self.model.run(slice, grads, dropout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cleaned_as_lmflow_does() {
        for (text, wanted) in [
            (" yes ", "yes"),
            ("yes###Human: and?", "yes"),
            ("###Human###Human: x", ": x"),
            ("  ## a # b ##  ", " a # b "),
            ("", ""),
            ("###Human", ""),
        ] {
            assert_eq!(cleaned(text), wanted, "{text:?}");
        }
    }
}
