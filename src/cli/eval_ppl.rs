//! `puna eval ppl`: LMFlow's perplexity of the texts of a set, which are joined by empty lines and
//! read as one.
//!
//! The value is `exp` of the mean over windows of each window's mean; beside it stands that of the
//! mean over all scored tokens, `ppl_token`, which is the perplexity of `puna eval nll` with the
//! same windows but for rounding: here the windows' sums are added up, there the tokens' values.
//! Two models are compared by the means of their windows in nats, where both cut the text into the
//! same tokens and windows; else only their values are shown.
//!
//! The file of sums has a line for each window, in order, written as soon as it is scored: its
//! place (`tokens 1..48`, those that it scores, counted from 0 and without the last one), the sum
//! over these and their number. All results follow from the lines, so a run that goes on with
//! those of an earlier one ends with the same bits. They are checked by the windows' places and
//! numbers of tokens: a text or flags that change these are noticed, others are not.

use super::args::{Common, HELP, ModelArgs, Threads, positive};
use super::eval::{Better, against, number, range, shown_against};
use super::eval_nll::warn_of_window;
use super::failure::Failure;
use super::instances::Instances;
use super::interrupt;
use super::session::{Session, context_limit};
use super::terminal::print_line;
use crate::data::{Record, Source};
use crate::error::{Error, Result};
use crate::eval::bootstrap::interval;
use crate::eval::likelihood::{Likelihood, window_likelihoods, windowed_ppl};
use crate::eval::perplexity::{Window, windows};
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
    /// Where each window's sum goes (JSON lines)
    #[arg(long, value_name = "FILE")]
    pub per_instance: Option<PathBuf>,
    /// Go on with that file
    #[arg(long)]
    pub resume: bool,
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
    if args.resume && args.per_instance.is_none() {
        let hint = "--per-instance FILE has the sums so far".to_owned();
        return Err(Failure::Usage("--resume alone".into(), Some(hint)));
    }
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
    let found = score(args, &args.model, &text, args.per_instance.as_deref())?;
    let other = match &args.against {
        Some(path) => {
            let model =
                ModelArgs { model: Some(path.clone()), adapter: vec![], ..args.model.clone() };
            Some(score(args, &model, &text, None)?)
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
    /// What each window got.
    each: Vec<Likelihood>,
}

impl Found {
    /// Mean of each window, in nats.
    fn means(&self) -> Vec<f64> {
        self.each.iter().map(|one| one.nll / one.tokens as f64).collect()
    }

    fn tokens(&self) -> usize {
        self.each.iter().map(|one| one.tokens).sum()
    }

    /// `exp` of the mean over all scored tokens. What is added up are the windows' sums, because a
    /// file of an earlier run has no more, and its bits are to come out again.
    fn ppl_token(&self) -> f64 {
        (self.each.iter().map(|one| one.nll).sum::<f64>() / self.tokens() as f64).exp()
    }
}

/// Lets one model score the text. With a file the windows' sums go there.
fn score(
    args: &PplArgs,
    model: &ModelArgs,
    text: &str,
    file: Option<&Path>,
) -> Result<Found, Failure> {
    let mut session = Session::load(model, args.threads.count(), &args.common)?;
    let ids = session.encode(text)?;
    let window = args.window.unwrap_or(WINDOW.min(context_limit(&session.model.config)));
    warn_of_window(&session, window);
    let stride = args.block_size.unwrap_or(BLOCK_SIZE.min(window));
    if stride > window {
        let why = format!("wanted at most the window's {window}, or tokens would be passed over");
        return Err(Error::config("block-size", stride, why).into());
    }
    // What cannot be cut leaves the file as it was.
    let windows = windows(ids.len(), window, stride)?;
    let each = sums(args, &mut session, &ids, &windows, model.kv(KvType::F32), file)?;
    Ok(Found { ids, windows, window, stride, each })
}

/// What each window gets: as the file says that an earlier run left, else from the model.
fn sums(
    args: &PplArgs,
    session: &mut Session,
    ids: &[u32],
    windows: &[Window],
    kv: KvType,
    file: Option<&Path>,
) -> Result<Vec<Likelihood>, Failure> {
    let mut each: Vec<Likelihood> = Vec::with_capacity(windows.len());
    let mut file = match file {
        None => None,
        Some(path) if args.resume => {
            let check = &mut |at: usize, line: &Value| -> Result<(), String> {
                each.push(known(windows, at, line)?);
                Ok(())
            };
            Some(Instances::resume(path, check)?.0)
        }
        Some(path) => Some(Instances::create(path)?),
    };
    let n_kept = each.len();
    let rest = &windows[n_kept..];
    let log = session.log;
    let bar = log.bar(windows.len(), "windows");
    let mut settle = |done: &[Likelihood]| -> Result<()> {
        for (one, window) in done.iter().zip(rest).skip(each.len() - n_kept) {
            if let Some(file) = &mut file {
                file.write(&line(window, one))?;
            }
            each.push(*one);
        }
        bar.set_position(each.len() as u64);
        Ok(())
    };
    let Session { model, workspace, .. } = session;
    let cancel = interrupt::flag();
    let end = window_likelihoods(model, workspace, ids, rest, kv, cancel, &mut settle);
    bar.finish_and_clear();
    if let (Err(Error::Cancelled), Some(_)) = (&end, &file) {
        let (done, all) = (each.len(), windows.len());
        log.remark(format!("{done} of {all} windows are in the file; --resume goes on from there"));
    }
    end?;
    Ok(each)
}

fn line(window: &Window, one: &Likelihood) -> Value {
    json!({"place": place(window), "nll": one.nll, "tokens": one.tokens})
}

/// The tokens that a window scores, for people.
fn place(window: &Window) -> String {
    format!("tokens {}..{}", window.first_scored, window.end)
}

/// What the line of a window says that it got, or why it is not that line.
fn known(windows: &[Window], at: usize, line: &Value) -> Result<Likelihood, String> {
    let Some(window) = windows.get(at) else {
        return Err(format!("one more, wanted at most {} windows", windows.len()));
    };
    let tokens = window.end - window.first_scored;
    for (key, wanted) in [("place", json!(place(window))), ("tokens", json!(tokens))] {
        if line[key] != wanted {
            return Err(format!("{key} {}, wanted {wanted}", line[key]));
        }
    }
    // JSON has no numbers but finite ones.
    match line["nll"].as_f64() {
        Some(nll) => Ok(Likelihood { nll, tokens }),
        None => Err(format!("nll {}, wanted a number", line["nll"])),
    }
}

fn summary(args: &PplArgs, found: &Found, other: Option<&Found>) -> Value {
    let (means, seed) = (found.means(), args.common.seed);
    let mut value = json!({
        "metric": "ppl",
        "value": windowed_ppl(&means),
        "ppl_token": found.ppl_token(),
        "n": means.len(),
        "tokens": found.tokens(),
        "window": found.window,
        "block_size": found.stride,
    });
    if let Some(found) = interval(&means, seed) {
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
        let theirs = other.means();
        let others: &[f64] = if same { &theirs } else { &[] };
        let ppl = windowed_ppl(&theirs);
        let mut against = against(ppl, [&means, others], Better::Lower, seed);
        against["ppl_token"] = json!(other.ppl_token());
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
