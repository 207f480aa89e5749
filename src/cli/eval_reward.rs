//! `puna eval reward`: what a reward model gives answers, or how often it prefers what is preferred.

use super::args::{Common, HELP, ModelArgs, Threads, positive};
use super::failure::Failure;
use super::interrupt;
use super::session::{Session, context_limit};
use super::terminal::print_line;
use super::train_setup::usage;
use crate::data::{
    Answered, Choice, Kind, PairOptions, Rules, Source, answered, pairs, write_atomically,
    write_floats, write_scored,
};
use crate::error::{Error, Result};
use crate::eval::reward::scores;
use crate::model::llama::KvType;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Longest prompt with an answer unless told otherwise, if the model takes it.
const MAX_LENGTH: usize = 1024;

/// Flags of `puna eval reward`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna eval reward MODEL --dataset DIR [flags]")]
#[command(after_help = "Example: puna eval reward judge --dataset answers --output scored.json")]
pub struct RewardEvalArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Threads.
    #[command(flatten)]
    pub threads: Threads,
    /// Answers, conversations or texts, or pairs
    #[arg(long, value_name = "DIR", alias = "dataset-path")]
    pub dataset: Option<PathBuf>,
    /// Where the answers go with their scores
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Where each instance's scores go (JSON lines)
    #[arg(long, value_name = "FILE")]
    pub per_instance: Option<PathBuf>,
    /// Prompt with answer [default: 1024 or less]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_length: Option<usize>,
    /// No EOS after answers
    #[arg(long)]
    pub no_eos: bool,
    /// LMFlow's special tokens
    #[arg(long)]
    pub lmflow_compat: bool,
    /// Preset, not the model's template
    #[arg(long, value_name = "T")]
    pub conversation_template: Option<String>,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and what loading, reading and scoring return.
pub fn run(args: &RewardEvalArgs) -> Result<(), Failure> {
    let Some(data) = args.dataset.as_deref() else {
        let hint = "--dataset DIR names answers or pairs".to_owned();
        return Err(Failure::Usage("no data named".into(), Some(hint)));
    };
    std::fs::metadata(data).map_err(|source| Error::io(data, source))?;
    let mut session = Session::load_any(&args.model, args.threads.count(), &args.common)?;
    let limit = context_limit(&session.model.config);
    let max_length = args.max_length.unwrap_or(MAX_LENGTH.min(limit));
    let options = PairOptions {
        rules: Rules {
            no_eos: args.no_eos,
            lmflow_compat: args.lmflow_compat,
            train_on_prompt: false,
            conversation_template: args.conversation_template.clone(),
        },
        max_length,
        max_prompt_length: max_length / 2,
        choice: Choice::MaxMin,
        length_penalty: 0.0,
        margin_scale: 1.0,
        seed: args.common.seed,
        skip_bad_instances: false,
        first: 0,
    };
    match kind_of(data)? {
        Kind::PairedTextToText | Kind::PairedConversation => {
            if args.output.is_some() {
                let what = "--output with pairs: they have no scores to be written beside";
                return Err(Failure::usage(what));
            }
            of_pairs(args, &mut session, data, &options)
        }
        _ => of_answers(args, &mut session, data, &options),
    }
}

/// The type of the first record.
fn kind_of(data: &Path) -> Result<Kind> {
    let mut kind = None;
    let found = Source::open(data)?.for_each(&mut |instance| {
        kind = Some(instance.record.kind());
        Err(Error::Cancelled)
    });
    match (kind, found) {
        (Some(kind), _) => Ok(kind),
        (None, found) => found,
    }
}

fn score(args: &RewardEvalArgs, session: &mut Session, texts: &[&[u32]]) -> Result<Vec<f32>> {
    let bar = session.log.bar(texts.len(), "texts");
    let Session { model, workspace, .. } = session;
    let told = &mut |done: usize| bar.set_position(done as u64);
    let kv = args.model.kv(KvType::F32);
    let found = scores(model, workspace, texts, kv, interrupt::flag(), told);
    bar.finish_and_clear();
    found
}

fn of_answers(
    args: &RewardEvalArgs,
    session: &mut Session,
    data: &Path,
    options: &PairOptions,
) -> Result<(), Failure> {
    let model = &session.model;
    let all = answered(data, model.text.as_ref(), model.config.vocab_size, options);
    let all = all.map_err(usage)?;
    let texts: Vec<&[u32]> =
        all.iter().flat_map(|one| one.ids.iter().map(|ids| &ids[..])).collect();
    let found = score(args, session, &texts)?;
    let mut rest = found.as_slice();
    let mut of = |one: &Answered| {
        let (own, after) = rest.split_at(one.ids.len());
        rest = after;
        own.to_vec()
    };
    let each: Vec<Vec<f32>> = all.iter().map(&mut of).collect();
    let whole = all.iter().all(|one| one.whole);
    if let Some(output) = args.output.as_ref().filter(|_| whole) {
        write_floats(output, &found)?;
    } else if let Some(output) = &args.output {
        let mut records = vec![];
        for (one, scores) in all.iter().zip(&each) {
            let texts = one.outputs.iter().map(String::as_str);
            records.push((one.input.as_str(), scores.iter().copied().zip(texts).collect()));
        }
        write_scored(output, &records)?;
    }
    let lines = all
        .iter()
        .zip(&each)
        .map(|(one, scores)| json!({"place": one.place, "scores": scores, "best": best(scores)}));
    finish(args, "reward", &found, lines)
}

/// The first of the highest.
fn best(scores: &[f32]) -> Option<usize> {
    let better = |&a: &usize, &b: &usize| scores[a].total_cmp(&scores[b]).then(b.cmp(&a));
    (0..scores.len()).max_by(better)
}

fn of_pairs(
    args: &RewardEvalArgs,
    session: &mut Session,
    data: &Path,
    options: &PairOptions,
) -> Result<(), Failure> {
    let model = &session.model;
    let all = pairs(data, model.text.as_ref(), model.config.vocab_size, options).map_err(usage)?;
    let mut texts: Vec<&[u32]> = vec![];
    for row in &all.rows {
        let (chosen, rejected) = row.ids.split_at(row.spans[0] as usize);
        texts.extend([chosen, rejected]);
    }
    let found = score(args, session, &texts)?;
    let (both, _) = found.as_chunks::<2>();
    let right: Vec<f32> = both.iter().map(|[c, r]| if c > r { 1.0 } else { 0.0 }).collect();
    let lines = both.iter().zip(&all.places).map(|([chosen, rejected], place)| {
        json!({"place": place, "chosen": chosen, "rejected": rejected, "correct": chosen > rejected})
    });
    finish(args, "reward_accuracy", &right, lines)
}

/// Writes what was asked for, and prints the mean.
fn finish(
    args: &RewardEvalArgs,
    metric: &str,
    values: &[f32],
    lines: impl Iterator<Item = Value>,
) -> Result<(), Failure> {
    if let Some(file) = &args.per_instance {
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        write_atomically(file, text.as_bytes())?;
    }
    let n = values.len();
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n.max(1) as f64;
    let value = json!({"metric": metric, "value": mean, "n": n});
    match args.common.json {
        true => print_line(&value.to_string())?,
        false => print_line(&format!("{metric} {mean:.4}, mean of {n}"))?,
    }
    Ok(())
}
