//! What tells one way of learning from one's own answers from another: what is learnt of them.

use super::sample::Sample;
use crate::align::rewards::Rewards;
use crate::data::{NOT_SCORED, Prompt, Question, Row};
use crate::error::{Error, Result};
use crate::infer::GenerateOptions;
use crate::model::llama::{KvType, Model};
use crate::train::state::Setting;
use crate::train::trainee::{Measures, Tuned};
use crate::train::{Rows, Settings, Trainee};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// A model that learns from its own answers.
pub trait Method: Trainee + Tuned {
    /// What is to be learnt of an iteration's answers; `None` when told to stop meanwhile.
    ///
    /// # Errors
    /// Answers that the model cannot take.
    fn lesson(&mut self, round: &Round<'_>, stop: &AtomicBool) -> Result<Option<Lesson>>;

    /// Told before the steps of a lesson, also of one that was made before the run was cut short.
    ///
    /// # Errors
    /// A lesson that is not its own.
    fn begin(&mut self, lesson: &Lesson) -> Result<()> {
        let _ = lesson;
        Ok(())
    }

    /// Told when the lesson is learnt.
    fn learnt(&mut self) {}

    /// What it keeps from iteration to iteration beside the weights.
    fn memory(&self) -> Vec<f64> {
        vec![]
    }

    /// Takes up what [`Method::memory`] gave.
    fn remember(&mut self, memory: &[f64]) {
        let _ = memory;
    }
}

/// The answers of an iteration.
pub struct Round<'a> {
    /// Iterations before it.
    pub iteration: usize,
    /// Its prompts.
    pub prompts: &'a [&'a Prompt],
    /// All answers, those to one prompt together.
    pub samples: &'a [Sample],
    /// Answers to each prompt.
    pub n_samples: usize,
}

/// What is learnt in an iteration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lesson {
    /// Rows; [`Row::source`] names answers by their number.
    pub rows: Vec<Row>,
    /// The answers that are learnt from.
    pub chosen: Vec<usize>,
    /// Numbers for the iteration's line.
    pub measures: Measures,
    /// Perplexity of the chosen answers, where it is known.
    pub ppl: Option<f64>,
    /// The chosen answers as a data set.
    pub train_set: Option<Value>,
    /// What the method has to know of the rows beside them.
    pub known: Value,
}

/// How answers are drawn, and how often.
#[derive(Clone, Debug)]
pub struct OnlineSettings {
    /// Iterations.
    pub iterations: usize,
    /// Prompts of an iteration.
    pub n_prompts: usize,
    /// Answers to each.
    pub n_samples: usize,
    /// How tokens are chosen and when an answer ends.
    pub generate: GenerateOptions,
    /// The length of a prompt's answers is drawn from here, in place of that of `generate`.
    pub lengths: Option<Range<usize>>,
    /// Sequences at a time.
    pub width: usize,
    /// Storage of keys and values.
    pub kv: KvType,
    /// Begin again when all prompts were asked; else the run ends there.
    pub wrap: bool,
    /// Prompts whose answers the report shows.
    pub n_shown: usize,
    /// Saves every so many iterations, at least 1.
    pub save_iterations: usize,
    /// Steps of an iteration.
    pub train: Settings,
}

/// What is to be done.
pub struct Online<'a, M: Method> {
    /// The model, as it is before the first step.
    pub model: &'a mut M,
    /// What is asked.
    pub prompts: &'a [Prompt],
    /// What answers are worth.
    pub rewards: &'a mut Rewards,
    /// Rows whose perplexity is measured after each iteration.
    pub eval: Option<&'a dyn Rows>,
    /// How.
    pub settings: &'a OnlineSettings,
    /// What decides the numbers beside the settings.
    pub identity: Vec<Setting>,
    /// Name of the run in the report, and all settings that the report shows.
    pub title: String,
    /// See `title`.
    pub shown: Vec<(String, String)>,
    /// Where everything goes.
    pub output: &'a Path,
    /// Set from outside: ends the run as soon as nothing is lost.
    pub stop: &'a AtomicBool,
}

/// Most answers of an iteration: what is held of them stays within a few gigabytes.
const MOST_ANSWERS: usize = 1 << 20;

impl OnlineSettings {
    /// Refuses numbers of prompts, of answers to each and of sequences at a time that no run can have.
    ///
    /// # Errors
    /// The first: name, value, what was wanted.
    pub fn check_sizes(n_prompts: usize, n_samples: usize, width: usize) -> Result<()> {
        // The answers to one prompt are drawn together, in one pass a token.
        let rows = Model::MAX_ROWS;
        let wanted = format!("wanted 1 to {rows}");
        for (name, value) in [("answers to a prompt", n_samples), ("inference_batch_size", width)] {
            if !(1..=rows).contains(&value) {
                return Err(Error::config(name, value, wanted));
            }
        }
        let most = MOST_ANSWERS / n_samples;
        if !(1..=most).contains(&n_prompts) {
            let why = format!("wanted 1 to {most}, with {n_samples} answers to each");
            return Err(Error::config("prompts of an iteration", n_prompts, why));
        }
        Ok(())
    }

    /// The settings that decide which weights come out.
    pub fn fingerprint(&self) -> Vec<Setting> {
        let GenerateOptions { sampler, max_new_tokens, end_ids, .. } = &self.generate;
        let mut list: Vec<Setting> = vec![];
        let mut add = |name: &str, value: String| list.push((name.to_owned(), value));
        add("iterations", self.iterations.to_string());
        add("prompts_of_an_iteration", self.n_prompts.to_string());
        add("answers_to_a_prompt", self.n_samples.to_string());
        add("temperature", sampler.temperature.to_string());
        add("top_k", sampler.top_k.to_string());
        add("top_p", sampler.top_p.to_string());
        add("max_new_tokens", max_new_tokens.to_string());
        add("end_ids", format!("{end_ids:?}"));
        if let Some(lengths) = &self.lengths {
            add("lengths", format!("{}..{}", lengths.start, lengths.end));
        }
        add("wrap", self.wrap.to_string());
        list.extend(self.train.fingerprint(self.iterations));
        // Passes over the rows of an iteration; its steps depend on what was chosen.
        list.retain(|(name, _)| name != "steps");
        list.push(("length_of_an_iteration".into(), format!("{:?}", self.train.length)));
        list
    }
}

/// A prompt with its answer as a row that scores the answer; `number` is the answer's.
pub fn answer_row(prompt: &Prompt, sample: &Sample, number: usize) -> Row {
    let (n_prompt, n) = (prompt.ids.len(), prompt.ids.len() + sample.ids.len());
    let mut labels = vec![NOT_SCORED; n_prompt];
    labels.extend(sample.ids.iter().map(|&id| id as i32));
    let ids = [&prompt.ids[..], &sample.ids].concat();
    Row { ids, labels, spans: vec![n as u32], source: vec![number as u32] }
}

/// Chosen answers as a data set for `puna train`: text2text, conversations, or with `joined` texts
/// of prompt and answer.
pub fn train_set<'a>(
    chosen: impl Iterator<Item = (&'a Prompt, &'a str)>,
    joined: bool,
) -> Option<Value> {
    let (mut kind, mut instances) = ("text2text", vec![]);
    for (prompt, answer) in chosen {
        instances.push(match &prompt.question {
            _ if joined => {
                kind = "text_only";
                json!({"text": format!("{}{answer}", prompt.text)})
            }
            Question::Text(input) => json!({"input": input, "output": answer}),
            Question::Conversation(conversation) => {
                kind = "conversation";
                let message = |role: &str, content: &str| json!({"role": role, "content": content});
                let all = conversation.messages.iter().map(|m| message(&m.role, &m.content));
                // Many templates write a blank before an answer; those that do not lose nothing.
                let answer = answer.strip_prefix(' ').unwrap_or(answer);
                let all: Vec<Value> = all.chain([message("assistant", answer)]).collect();
                match &conversation.system {
                    Some(system) => json!({"system": system, "messages": all}),
                    None => json!({"messages": all}),
                }
            }
        });
    }
    (!instances.is_empty()).then(|| json!({"type": kind, "instances": instances}))
}
