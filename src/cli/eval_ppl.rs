//! `puna eval ppl`: LMFlow's perplexity of the texts of a set, which are joined by empty lines and
//! read as one.
//!
//! The value is `exp` of the mean over windows of each window's mean; beside it stands that of the
//! mean over all scored tokens, `ppl_token`, which is the perplexity of `puna eval nll` with the
//! same windows. Two models are compared by the means of their windows in nats, where both cut the
//! text into the same tokens and windows; else only their values are shown.

use super::args::{Common, HELP, ModelArgs, Threads, positive};
use super::eval::{Better, against, number, range, shown_against};
use super::eval_nll::warn_of_window;
use super::failure::Failure;
use super::interrupt;
use super::session::{Session, context_limit};
use super::terminal::print_line;
use crate::data::{Record, Source};
use crate::error::{Error, Result};
use crate::eval::bootstrap::interval;
use crate::eval::likelihood::{window_means, windowed_ppl};
use crate::eval::perplexity::{Perplexity, PerplexityOptions, Window, perplexity, windows};
use crate::model::llama::KvType;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Longest window unless told otherwise: LMFlow's for models of the LLaMA family.
const WINDOW: usize = 1024;
/// From window to window unless told otherwise.
const BLOCK_SIZE: usize = 512;
/// What stands between two texts.
const BETWEEN: &str = "\n\n";

/// Flags of `puna eval ppl`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna eval ppl MODEL --dataset DIR [flags]")]
#[command(after_help = "Example: puna eval ppl smollm2.gguf --dataset wikitext-2 --block-size 512")]
pub struct PplArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Threads.
    #[command(flatten)]
    pub threads: Threads,
    /// What to score.
    #[command(flatten)]
    pub source: PplSource,
    /// From window to window [default: 512 or less]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub block_size: Option<usize>,
    /// Window [default: the model's, to 1024]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub window: Option<usize>,
    /// Compare with this model
    #[arg(long, value_name = "MODEL")]
    pub against: Option<PathBuf>,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// What to score: one of these.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub struct PplSource {
    /// Texts (text_only)
    #[arg(long, value_name = "DIR", alias = "dataset-path")]
    pub dataset: Option<PathBuf>,
    /// A text file instead
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, data that are no texts, and what loading and scoring return.
pub fn run(args: &PplArgs) -> Result<(), Failure> {
    let text = match (args.source.dataset.as_deref(), args.source.text.as_deref()) {
        (Some(data), _) => joined(data)?,
        (None, Some(file)) => {
            std::fs::read_to_string(file).map_err(|source| Error::io(file, source))?
        }
        (None, None) => {
            let hint = "give --dataset DIR or --text FILE".to_owned();
            return Err(Failure::Usage("nothing to score".into(), Some(hint)));
        }
    };
    let found = score(args, &args.model, &text)?;
    let other = match &args.against {
        Some(path) => {
            let model =
                ModelArgs { model: Some(path.clone()), adapter: vec![], ..args.model.clone() };
            Some(score(args, &model, &text)?)
        }
        None => None,
    };
    let value = summary(args, &found, other.as_ref());
    Ok(print_line(&if args.common.json { value.to_string() } else { shown(&value) })?)
}

/// The texts of a set as one.
fn joined(data: &Path) -> Result<String> {
    let source = Source::open(data)?;
    let mut texts = vec![];
    source.for_each(&mut |instance| match instance.record {
        Record::TextOnly(text) => {
            texts.push(text);
            Ok(())
        }
        other => {
            let what = format!("records of type \"{}\", wanted text_only", other.kind().name());
            Err(Error::Data { place: source.name(instance.place), what })
        }
    })?;
    Ok(texts.join(BETWEEN))
}

/// What a model gives a text.
struct Found {
    ids: Vec<u32>,
    windows: Vec<Window>,
    window: usize,
    stride: usize,
    tokens: Perplexity,
    /// Mean of each window, in nats.
    means: Vec<f64>,
}

fn score(args: &PplArgs, model: &ModelArgs, text: &str) -> Result<Found, Failure> {
    let mut session = Session::load(model, args.threads.count(), &args.common)?;
    let ids = session.encode(text)?;
    let window = args.window.unwrap_or(WINDOW.min(context_limit(&session.model.config)));
    warn_of_window(&session, window);
    let stride = args.block_size.unwrap_or(BLOCK_SIZE.min(window));
    if stride > window {
        let why = format!("wanted at most the window's {window}, or tokens would be passed over");
        return Err(Error::config("block-size", stride, why).into());
    }
    let options = PerplexityOptions { window, stride, kv: model.kv(KvType::F32) };
    let bar = session.log.bar(ids.len().saturating_sub(1), "tokens");
    let Session { model, workspace, .. } = &mut session;
    let mut progress = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let tokens = perplexity(model, workspace, &ids, options, interrupt::flag(), &mut progress);
    bar.finish_and_clear();
    let tokens = tokens?;
    let windows = windows(ids.len(), window, stride)?;
    let means = window_means(&tokens.nll, &windows);
    Ok(Found { ids, windows, window, stride, tokens, means })
}

fn summary(args: &PplArgs, found: &Found, other: Option<&Found>) -> Value {
    let seed = args.common.seed;
    let mut value = json!({
        "metric": "ppl",
        "value": windowed_ppl(&found.means),
        "ppl_token": found.tokens.ppl(),
        "n": found.means.len(),
        "tokens": found.tokens.tokens(),
        "window": found.window,
        "block_size": found.stride,
    });
    if let Some(found) = interval(&found.means, seed) {
        value["low"] = json!(found.low.exp());
        value["high"] = json!(found.high.exp());
    }
    if let Some(other) = other {
        let same = found.ids == other.ids && found.windows == other.windows;
        if !same {
            args.common.log().warn(
                "the models cut the text into other tokens or windows: their perplexities are not \
                 of the same things, and no test compares them",
            );
        }
        let others: &[f64] = if same { &other.means } else { &[] };
        let ppl = windowed_ppl(&other.means);
        let mut against = against(ppl, [&found.means, others], Better::Lower, seed);
        against["ppl_token"] = json!(other.tokens.ppl());
        value["against"] = against;
    }
    value
}

/// The summary for people.
fn shown(value: &Value) -> String {
    format!(
        "perplexity {:.4}{}, mean of {} windows; {:.4} by token, {} tokens scored (window {}, \
         block size {}){}",
        number(&value["value"]),
        range(value),
        value["n"],
        number(&value["ppl_token"]),
        value["tokens"],
        value["window"],
        value["block_size"],
        shown_against(&value["against"], " nats a window")
    )
}
