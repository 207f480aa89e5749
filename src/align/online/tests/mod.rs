//! The loop on a policy that can be enumerated: answers of one token, of which there are 200.

mod optimum;
mod resume;

use super::{Method, Online, OnlineOutcome, OnlineSettings, run};
use crate::align::rewards::{Asked, Reward, Rewards};
use crate::data::{Prompt, Question};
use crate::error::Result;
use crate::infer::{GenerateOptions, SamplerConfig};
use crate::model::llama::KvType;
use crate::model::tune::{Precision, Slice, TuneMethod, TuneModel, TuneOptions};
use crate::train::metrics::{self, IterationLine, Line};
use crate::train::optimizer::OptimArgs;
use crate::train::schedule::Schedule;
use crate::train::trainee::Tuned;
use crate::train::watch::Watch;
use crate::train::{Length, Settings};
use std::path::Path;
use std::sync::atomic::AtomicBool;

const DIR: &str = "tests/fixtures/mini-mha";
const VOCAB: usize = 200;
const PROMPT: [u32; 3] = [1, 50, 9];

/// Every weight in training.
fn open(value: bool) -> TuneModel {
    open_with(TuneMethod::Full, value)
}

fn open_with(method: TuneMethod, value: bool) -> TuneModel {
    let options = TuneOptions {
        threads: 2,
        precision: Precision::F32,
        method,
        gradient_checkpointing: false,
        seed: 0,
        score: false,
        value,
    };
    TuneModel::open(Path::new(DIR), &options).unwrap()
}

/// What a token is worth: no order among the ids, from 0 to 1.
fn worth(id: u32) -> f64 {
    0.5 + 0.5 * (f64::from(id) * 2.399).sin()
}

/// The sum of what its tokens are worth.
struct Worth;

impl Reward for Worth {
    fn name(&self) -> String {
        "worth".into()
    }

    fn scores(&mut self, asked: &[Asked<'_>], _: &AtomicBool) -> Result<Vec<f64>> {
        let score = |one: &Asked<'_>| {
            let ids = one.answer.split(' ').map(|id| id.parse::<u32>().unwrap());
            ids.map(worth).sum::<f64>()
        };
        Ok(asked.iter().map(score).collect())
    }
}

fn prompt(ids: &[u32]) -> Prompt {
    Prompt {
        question: Question::Text(String::new()),
        ids: ids.to_vec(),
        text: String::new(),
        answer: None,
        place: format!("prompt {ids:?}"),
    }
}

fn settings(iterations: usize, n_prompts: usize, n_samples: usize) -> OnlineSettings {
    OnlineSettings {
        iterations,
        n_prompts,
        n_samples,
        generate: GenerateOptions {
            sampler: SamplerConfig { temperature: 1.0, seed: 5, ..SamplerConfig::GREEDY },
            max_new_tokens: 1,
            stop: vec![],
            end_ids: vec![],
            ignore_eos: true,
            n: 1,
            logprobs: None,
        },
        lengths: None,
        width: 16,
        kv: KvType::F32,
        wrap: true,
        n_shown: 1,
        save_iterations: 1,
        train: Settings {
            batch_size: 64,
            accumulation: 1,
            length: Length::Epochs(1.0),
            optim: "adamw".into(),
            optim_args: OptimArgs::default(),
            learning_rate: 1e-3,
            schedule: Schedule::parse("constant", None).unwrap(),
            warmup_steps: 0,
            warmup_ratio: 0.0,
            max_grad_norm: 1.0,
            seed: 5,
            shuffle: true,
            slice_tokens: None,
            eval_steps: None,
            eval_on_start: false,
            keep_best: false,
            patience: None,
            threshold: 0.0,
            save_steps: 0,
            save_total_limit: None,
        },
    }
}

/// Runs a method on the prompts.
fn go<M: Method>(
    model: &mut M,
    settings: &OnlineSettings,
    prompts: &[Prompt],
    output: &Path,
    stop: &AtomicBool,
    resume: bool,
    watch: &mut dyn Watch,
) -> Result<OnlineOutcome> {
    let mut rewards = Rewards::new(vec![(Box::new(Worth), 1.0)]).unwrap();
    let job = Online {
        model,
        prompts,
        rewards: &mut rewards,
        eval: None,
        settings,
        identity: vec![],
        title: "toy".into(),
        shown: vec![],
        output,
        stop,
    };
    run(job, resume, watch)
}

/// Probability of every one-token answer to [`PROMPT`].
fn policy(model: &mut TuneModel) -> Vec<f64> {
    let n = PROMPT.len() + 1;
    let (mut ids, mut labels) = (vec![], vec![]);
    for id in 0..VOCAB as u32 {
        ids.extend(PROMPT);
        ids.push(id);
        labels.extend([None, None, Some(id), None]);
    }
    let spans = vec![n; VOCAB];
    let slice = Slice { ids: &ids, labels: &labels, spans: &spans, sources: &[] };
    let log_probs = model.log_probs(&slice, true).unwrap();
    let all: Vec<f64> = log_probs.iter().map(|&log_prob| f64::from(log_prob).exp()).collect();
    // Two hundred exponentials of logarithms in f32, each within some 1e-6 of its value.
    assert!((all.iter().sum::<f64>() - 1.0).abs() < 1e-4);
    all
}

fn expected(policy: &[f64], value: impl Fn(u32) -> f64) -> f64 {
    policy.iter().zip(0..).map(|(p, id)| p * value(id)).sum()
}

fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| if *p > 0.0 { p * (p / q).ln() } else { 0.0 }).sum()
}

fn iterations(output: &Path) -> Vec<IterationLine> {
    let line = |line| match line {
        Line::Iteration(line) => Some(line),
        Line::Step(_) | Line::Eval(_) => None,
    };
    metrics::read(output).unwrap().into_iter().filter_map(line).collect()
}
