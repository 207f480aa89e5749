//! Direct preference optimisation on a model's own answers, drawn and scored anew in every iteration
//! (Xiong et al. 2023, arXiv 2312.11456). The reference stays the model that training started from.

use super::dpo::Dpo;
use super::online::{Lesson, Method, Round};
use super::ppo::{known, longest};
use super::reference::{Reference, by_sequence, each_slice};
use crate::autograd::Dropout;
use crate::data::pairs::choose;
use crate::data::{Choice, NOT_SCORED, Prompt, Question, Row};
use crate::error::Result;
use crate::model::tune::{Slice, SliceLoss, TuneModel};
use crate::rng::Rng;
use crate::tensor::Grads;
use crate::train::budget;
use crate::train::trainee::{Measures, Trainee, Tuned};
use serde_json::{Value, json};
use std::sync::atomic::AtomicBool;

/// Stream of a seed that pairs are drawn from, one an iteration from here on.
const CHOICE_STREAM: u64 = 1 << 44;

/// Which answers of a prompt become a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairChoice {
    /// Which two.
    pub choice: Choice,
    /// Taken from an answer's reward for each of its characters, before two are chosen.
    pub length_penalty: f64,
    /// Factor of the difference of two rewards, which is the pair's margin.
    pub margin_scale: f64,
    /// Seed of the draws.
    pub seed: u64,
}

/// A model in training on pairs of its own answers.
pub struct DpoRounds {
    dpo: Dpo,
    pairs: PairChoice,
    reference: Option<Reference>,
    slice_tokens: Option<usize>,
}

impl DpoRounds {
    /// For a model in training; `reference` where its loss needs one.
    pub fn new(
        dpo: Dpo,
        pairs: PairChoice,
        reference: Option<Reference>,
        slice_tokens: Option<usize>,
    ) -> DpoRounds {
        DpoRounds { dpo, pairs, reference, slice_tokens }
    }

    /// Chosen and rejected answer of every prompt whose answers differ in reward.
    fn choose(&self, round: &Round<'_>) -> Vec<[usize; 2]> {
        let PairChoice { choice, length_penalty, seed, .. } = self.pairs;
        let mut rng = Rng::new(seed, CHOICE_STREAM + round.iteration as u64);
        let pair = |(group, samples): (usize, &[super::online::Sample])| {
            let score = |one: &super::online::Sample| {
                one.reward - length_penalty * one.text.chars().count() as f64
            };
            let scores: Vec<f64> = samples.iter().map(score).collect();
            let [best, other] = choose(&scores, choice, &mut rng)?;
            let at = |index: usize| group * round.n_samples + index;
            (scores[best] > scores[other]).then(|| [at(best), at(other)])
        };
        round.samples.chunks(round.n_samples.max(1)).enumerate().filter_map(pair).collect()
    }
}

/// A pair's row: two documents, of which the answers are scored.
fn pair_row(round: &Round<'_>, pair: [usize; 2], number: usize) -> Row {
    let mut row = Row::default();
    for at in pair {
        let (sample, start) = (&round.samples[at], row.ids.len());
        let prompt = &round.prompts[sample.prompt].ids;
        row.ids.extend(prompt.iter().chain(&sample.ids));
        row.labels.extend(prompt.iter().map(|_| NOT_SCORED));
        row.labels.extend(sample.ids.iter().map(|&id| id as i32));
        row.spans.push((row.ids.len() - start) as u32);
        row.source.push(number as u32);
    }
    row
}

/// The pairs as a data set for `puna dpo`.
fn train_set(round: &Round<'_>, pairs: &[[usize; 2]]) -> Option<Value> {
    let mut kind = "paired_text_to_text";
    let mut one = |&[best, other]: &[usize; 2]| {
        let prompt: &Prompt = round.prompts[round.samples[best].prompt];
        let texts = [best, other].map(|at| round.samples[at].text.as_str());
        match &prompt.question {
            Question::Text(input) => {
                json!({"prompt": input, "chosen": texts[0], "rejected": texts[1]})
            }
            Question::Conversation(conversation) => {
                kind = "paired_conversation";
                let message = |role: &str, content: &str| json!({"role": role, "content": content});
                let [chosen, rejected] = texts.map(|text| {
                    let all = conversation.messages.iter();
                    let all = all.map(|one| message(&one.role, &one.content));
                    let all: Vec<Value> = all.chain([message("assistant", text)]).collect();
                    match &conversation.system {
                        Some(system) => json!({"system": system, "messages": all}),
                        None => json!({"messages": all}),
                    }
                });
                json!({"chosen": chosen, "rejected": rejected})
            }
        }
    };
    let instances: Vec<Value> = pairs.iter().map(&mut one).collect();
    (!instances.is_empty()).then(|| json!({"type": kind, "instances": instances}))
}

impl Method for DpoRounds {
    fn lesson(&mut self, round: &Round<'_>, stop: &AtomicBool) -> Result<Option<Lesson>> {
        let pairs = self.choose(round);
        let row = |(number, pair): (usize, &[usize; 2])| pair_row(round, *pair, number);
        let rows: Vec<Row> = pairs.iter().enumerate().map(row).collect();
        let mut of_reference = vec![[0.0; 2]; rows.len()];
        if let Some(reference) = self.reference.as_mut().filter(|_| self.dpo.needs_reference()) {
            let budget = budget(self.slice_tokens, longest(&rows));
            let model = self.dpo.tuned_mut();
            let whole = each_slice(&rows, budget, stop, |first, slice| {
                let log_probs = reference.log_probs(model, slice)?;
                let sums: Vec<f64> =
                    by_sequence(slice, &log_probs)?.iter().map(|own| own.iter().sum()).collect();
                for (at, both) in sums.chunks_exact(2).enumerate() {
                    of_reference[first + at] = [both[0], both[1]];
                }
                Ok(())
            })?;
            if !whole {
                return Ok(None);
            }
        }
        let margin = |pair: &[usize; 2]| {
            let [best, other] = pair.map(|at| round.samples[at].reward);
            (best - other) * self.pairs.margin_scale
        };
        let known: Vec<([f64; 2], f64)> =
            of_reference.into_iter().zip(pairs.iter().map(margin)).collect();
        let equal = round.prompts.len() - pairs.len();
        let measures = Measures::from([("without_pair".to_owned(), equal as f64)]);
        let train_set = train_set(round, &pairs);
        let chosen = pairs.iter().map(|pair| pair[0]).collect();
        let known = json!({ "pairs": known });
        Ok(Some(Lesson { rows, chosen, measures, ppl: None, train_set, known }))
    }

    fn begin(&mut self, lesson: &Lesson) -> Result<()> {
        let pairs: Vec<([f64; 2], f64)> = known(&lesson.known["pairs"])?;
        self.dpo.know(pairs.into_iter());
        Ok(())
    }
}

impl Tuned for DpoRounds {
    fn tuned(&self) -> &TuneModel {
        self.dpo.tuned()
    }

    fn tuned_mut(&mut self) -> &mut TuneModel {
        self.dpo.tuned_mut()
    }
}

impl Trainee for DpoRounds {
    fn run(
        &mut self,
        slice: &Slice<'_>,
        grads: Option<(&mut Grads, f32)>,
        dropout: Dropout,
    ) -> Result<SliceLoss> {
        self.dpo.run(slice, grads, dropout)
    }

    fn units(&self, slice: &Slice<'_>) -> usize {
        self.dpo.units(slice)
    }

    fn scores_tokens(&self) -> bool {
        false
    }

    fn measures(&mut self) -> Measures {
        self.dpo.measures()
    }
}
