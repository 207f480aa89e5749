//! `puna eval nll`: negative log-likelihood and perplexity of a text, or LMFlow's nll of a set.
//!
//! Of a set: the sum over the scored tokens of each sample, and the mean of these sums. A text_only
//! sample is scored whole, of text2text the output behind its input; both are encoded apart and
//! without special tokens. A sample without a token to score (a text of one token, an output of
//! none) has a sum of 0: it counts among the samples, and a warning says how many there are.
//!
//! The file of sums has a line for each sample, in order, written as soon as the samples before it
//! are scored too. What an earlier run left is checked by the samples' places and numbers of scored
//! tokens: data or flags that change these are noticed, others are not.

use super::args::{Common, HELP, ModelArgs, Threads, check_token_ids, positive, token_ids};
use super::eval::{Better, against, mean, number, put_interval, range, shown_against};
use super::failure::Failure;
use super::instances::Instances;
use super::interrupt;
use super::session::{Session, context_limit};
use super::terminal::print_line;
use crate::data::{Record, Source, write_atomically};
use crate::error::{Error, Result};
use crate::eval::likelihood::{Likelihood, Sample, likelihoods, n_scored};
use crate::eval::perplexity::{PerplexityOptions, perplexity};
use crate::model::llama::KvType;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Longest window of a text unless told otherwise.
const WINDOW: usize = 2048;
/// Longest window of a set's samples unless told otherwise: LMFlow's.
const SET_WINDOW: usize = 1024;
/// From window to window of a set's samples unless told otherwise: LMFlow's block size.
const SET_STRIDE: usize = 512;

/// Flags of `puna eval nll`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna eval nll MODEL --text FILE [flags]")]
#[command(after_help = "Example: puna eval nll smollm2.gguf --text book.txt --window 1024")]
pub struct NllArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Threads.
    #[command(flatten)]
    pub threads: Threads,
    /// What to score.
    #[command(flatten)]
    pub source: TextSource,
    /// A set instead: text_only or text2text
    #[arg(long, value_name = "DIR", alias = "dataset-path", group = "TextSource")]
    pub dataset: Option<PathBuf>,
    /// Window [default: to 2048, of a set to 1024]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub window: Option<usize>,
    /// From window to window [default: half; set: 512]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub stride: Option<usize>,
    /// Where each token's value goes (JSON array)
    #[arg(long, value_name = "FILE")]
    pub per_token: Option<PathBuf>,
    /// Print the text's ids on stderr
    #[arg(long)]
    pub verbose_prompt: bool,
    /// Set: begin samples with BOS, unlike LMFlow
    #[arg(long)]
    pub add_bos: bool,
    /// Set: where each sample's sum goes (JSON lines)
    #[arg(long, value_name = "FILE")]
    pub per_instance: Option<PathBuf>,
    /// Set: go on with that file
    #[arg(long)]
    pub resume: bool,
    /// Set: compare with this model
    #[arg(long, value_name = "MODEL")]
    pub against: Option<PathBuf>,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// What to score: one of these.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub struct TextSource {
    /// A text file
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Ids instead: 1,2,3 or @FILE.json
    #[arg(long, value_name = "IDS")]
    pub tokens: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and what loading, reading and scoring return.
pub fn run(args: &NllArgs) -> Result<(), Failure> {
    let refuse = |what: String, hint: &str| Err(Failure::Usage(what, Some(hint.to_owned())));
    if let Some(data) = args.dataset.as_deref() {
        if args.per_token.is_some() {
            return refuse("--per-token with --dataset".into(), "--per-instance has its samples");
        }
        if args.resume && args.per_instance.is_none() {
            return refuse("--resume alone".into(), "--per-instance FILE has the sums so far");
        }
        return of_set(args, data);
    }
    let only_sets = [
        (args.add_bos, "--add-bos"),
        (args.per_instance.is_some(), "--per-instance"),
        (args.resume, "--resume"),
        (args.against.is_some(), "--against"),
    ];
    if let Some((_, flag)) = only_sets.iter().find(|(given, _)| *given) {
        return refuse(format!("{flag} without --dataset"), "it is for the samples of a set");
    }
    if args.source.text.is_none() && args.source.tokens.is_none() {
        return refuse("nothing to score".into(), "give --text FILE, --tokens or --dataset DIR");
    }
    check_token_ids(args.source.tokens.as_deref())?;
    of_text(args)
}

fn of_text(args: &NllArgs) -> Result<(), Failure> {
    let mut session = Session::load(&args.model, args.threads.count(), &args.common)?;
    let ids = read_ids(args, &session)?;
    if args.verbose_prompt {
        session.show_prompt(&ids);
    }
    let window = args.window.unwrap_or(session.model.config.max_seq_len.min(WINDOW));
    warn_of_window(&session, window);
    let stride = args.stride.unwrap_or((window / 2).max(1));
    let options = PerplexityOptions { window, stride, kv: args.model.kv(KvType::F32) };
    let bar = session.log.bar(ids.len().saturating_sub(1), "tokens");
    let Session { model, workspace, .. } = &mut session;
    let mut progress = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let score = perplexity(model, workspace, &ids, options, interrupt::flag(), &mut progress);
    bar.finish_and_clear();
    let score = score?;
    if let Some(file) = &args.per_token {
        write_atomically(file, json!(score.nll).to_string().as_bytes())?;
    }
    let (mean, ppl, tokens) = (score.mean(), score.ppl(), score.tokens());
    if args.common.json {
        let value = json!({
            "nll": mean, "ppl": ppl, "tokens": tokens, "window": window, "stride": stride,
        });
        print_line(&value.to_string())?;
    } else {
        print_line(&format!(
            "nll {mean:.6} nats a token, perplexity {ppl:.4}, {tokens} tokens scored \
             (window {window}, stride {stride})"
        ))?;
    }
    Ok(())
}

/// Says so where a window is longer than the model's context.
pub fn warn_of_window(session: &Session, window: usize) {
    let limit = context_limit(&session.model.config);
    if window > limit {
        session.log.warn(format!("--window {window}: the model was made for {limit} positions"));
    }
}

fn read_ids(args: &NllArgs, session: &Session) -> Result<Vec<u32>> {
    match (&args.source.text, &args.source.tokens) {
        (_, Some(tokens)) => token_ids(tokens),
        (Some(file), None) => {
            let text = std::fs::read_to_string(file).map_err(|source| Error::io(file, source))?;
            session.encode(&text)
        }
        (None, None) => Ok(vec![]),
    }
}

/// What a model gives the samples of a set.
struct Found {
    each: Vec<Likelihood>,
    window: usize,
    stride: usize,
}

impl Found {
    fn sums(&self) -> Vec<f64> {
        self.each.iter().map(|one| one.nll).collect()
    }

    fn tokens(&self) -> usize {
        self.each.iter().map(|one| one.tokens).sum()
    }

    /// Mean over all scored tokens.
    fn per_token(&self) -> f64 {
        self.sums().iter().sum::<f64>() / self.tokens() as f64
    }

    fn unscored(&self) -> usize {
        self.each.iter().filter(|one| one.tokens == 0).count()
    }
}

fn of_set(args: &NllArgs, data: &Path) -> Result<(), Failure> {
    let found = score(args, &args.model, data, args.per_instance.as_deref())?;
    let other = match &args.against {
        Some(path) => {
            let model =
                ModelArgs { model: Some(path.clone()), adapter: vec![], ..args.model.clone() };
            Some(score(args, &model, data, None)?)
        }
        None => None,
    };
    let value = summary(args, &found, other.as_ref());
    Ok(print_line(&if args.common.json { value.to_string() } else { shown(&value) })?)
}

/// Lets one model score the samples. With a file their sums go there.
fn score(
    args: &NllArgs,
    model: &ModelArgs,
    data: &Path,
    file: Option<&Path>,
) -> Result<Found, Failure> {
    let mut session = Session::load(model, args.threads.count(), &args.common)?;
    let samples = samples(data, &session, args.add_bos)?;
    if args.verbose_prompt {
        samples.iter().for_each(|sample| session.show_prompt(&sample.ids));
    }
    let limit = context_limit(&session.model.config);
    let window = args.window.unwrap_or(SET_WINDOW.min(limit));
    warn_of_window(&session, window);
    let stride = args.stride.unwrap_or(SET_STRIDE.min(window));
    let options = PerplexityOptions { window, stride, kv: model.kv(KvType::F32) };
    let tokens = samples.iter().map(|sample| n_scored(sample, &options));
    let tokens: Vec<usize> = tokens.collect::<Result<_>>()?;
    // What cannot be scored leaves the file as it was.
    if tokens.iter().all(|&n| n == 0) {
        let what = "no sample has a token to score, wanted at least one".to_owned();
        return Err(Error::Data { place: data.display().to_string(), what }.into());
    }
    let mut each: Vec<Likelihood> = Vec::with_capacity(samples.len());
    let mut file = match file {
        None => None,
        Some(path) if args.resume => {
            let check = &mut |at: usize, line: &Value| -> Result<(), String> {
                each.push(known(&samples, &tokens, at, line)?);
                Ok(())
            };
            Some(Instances::resume(path, check)?.0)
        }
        Some(path) => Some(Instances::create(path)?),
    };
    let n_kept = each.len();
    let rest = &samples[n_kept..];
    let (log, name) = (session.log, session.name.clone());
    let bar = log.bar(samples.len(), "samples");
    let mut settle = |done: &[Likelihood]| -> Result<()> {
        for (one, sample) in done.iter().zip(rest).skip(each.len() - n_kept) {
            if let Some(file) = &mut file {
                file.write(&line(sample, one))?;
            }
            each.push(*one);
        }
        bar.set_position(each.len() as u64);
        Ok(())
    };
    let Session { model, workspace, .. } = &mut session;
    let end = likelihoods(model, workspace, rest, options, interrupt::flag(), &mut settle);
    bar.finish_and_clear();
    if let (Err(Error::Cancelled), Some(_)) = (&end, &file) {
        let (done, all) = (each.len(), samples.len());
        log.remark(format!("{done} of {all} samples are in the file; --resume goes on from there"));
    }
    end?;
    let found = Found { each, window, stride };
    if found.unscored() > 0 {
        let (n, all) = (found.unscored(), found.each.len());
        log.warn(format!("{name}: {n} of {all} samples have no token to score and count as 0"));
    }
    Ok(found)
}

fn line(sample: &Sample, one: &Likelihood) -> Value {
    json!({"place": sample.place, "nll": one.nll, "tokens": one.tokens})
}

/// What the line of a sample says that it got, or why it is not that line. `tokens` has how many
/// are scored of each sample.
fn known(
    samples: &[Sample],
    tokens: &[usize],
    at: usize,
    line: &Value,
) -> Result<Likelihood, String> {
    let (Some(sample), Some(&tokens)) = (samples.get(at), tokens.get(at)) else {
        return Err(format!("one more, wanted at most {} samples", samples.len()));
    };
    for (key, wanted) in [("place", json!(sample.place)), ("tokens", json!(tokens))] {
        if line[key] != wanted {
            return Err(format!("{key} {}, wanted {wanted}", line[key]));
        }
    }
    match line["nll"].as_f64() {
        Some(nll) => Ok(Likelihood { nll, tokens }),
        None => Err(format!("nll {}, wanted a number", line["nll"])),
    }
}

/// The samples of a set.
fn samples(data: &Path, session: &Session, add_bos: bool) -> Result<Vec<Sample>> {
    let tokenizer = session.tokenizer()?;
    let bos = tokenizer.bos_id().filter(|_| add_bos);
    if add_bos && bos.is_none() {
        return Err(Error::config("add-bos", true, "the model's tokenizer has no BOS token"));
    }
    let source = Source::open(data)?;
    let mut samples = vec![];
    source.for_each(&mut |instance| {
        let place = source.name(instance.place);
        let fault = |what: String| Error::Data { place: place.clone(), what };
        let (input, output) = match &instance.record {
            Record::TextOnly(text) => ("", text),
            Record::Text2Text { input, output } => (input.as_str(), output),
            other => {
                let kind = other.kind().name();
                let what = format!("records of type \"{kind}\", wanted text_only or text2text");
                return Err(fault(what));
            }
        };
        let encode = |text: &str| match tokenizer.encode(text, false, true) {
            Err(Error::Tokenizer(what)) => Err(fault(what)),
            ids => ids,
        };
        let mut ids: Vec<u32> = bos.into_iter().collect();
        if !input.is_empty() {
            ids.append(&mut encode(input)?);
        }
        let first_scored = ids.len();
        if !output.is_empty() {
            ids.append(&mut encode(output)?);
        }
        samples.push(Sample { ids, first_scored, place });
        Ok(())
    })?;
    Ok(samples)
}

fn summary(args: &NllArgs, found: &Found, other: Option<&Found>) -> Value {
    let (sums, seed) = (found.sums(), args.common.seed);
    let per_token = found.per_token();
    let mut value = json!({
        "metric": "nll",
        "value": mean(&sums),
        "n": sums.len(),
        "tokens": found.tokens(),
        "nll_per_token": per_token,
        "ppl": per_token.exp(),
        "unscored": found.unscored(),
        "window": found.window,
        "stride": found.stride,
    });
    put_interval(&mut value, &sums, seed);
    if let Some(other) = other {
        let others = other.sums();
        let mut against = against(mean(&others), [&sums, &others], Better::Lower, seed);
        against["tokens"] = json!(other.tokens());
        against["nll_per_token"] = json!(other.per_token());
        value["against"] = against;
    }
    value
}

/// The summary for people.
fn shown(value: &Value) -> String {
    format!(
        "nll {:.4}{} nats a sample, {} samples; {} tokens at {:.6} nats, perplexity {:.4}{}",
        number(&value["value"]),
        range(value),
        value["n"],
        value["tokens"],
        number(&value["nll_per_token"]),
        number(&value["ppl"]),
        shown_against(&value["against"], " nats a sample")
    )
}
