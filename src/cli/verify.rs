//! `puna verify`: logits of two models on the same text.

use super::args::{Common, HELP, Threads, check_token_ids, positive, token_ids};
use super::eval::TextSource;
use super::failure::Failure;
use super::interrupt;
use super::terminal::print_line;
use crate::error::{Error, Result};
use crate::eval::compare::compare;
use crate::model::llama::{LoadOptions, Model};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Longest window unless told otherwise.
const WINDOW: usize = 512;
/// What is compared on where no text is given.
const TEXT: &str = "The old lighthouse stood on a rock at the end of the bay. Every evening a woman \
climbed its stairs, lit the lamp and wrote the weather into a book. On the fourth of March the book \
says: wind from the north-west, 12 ships, no fog. \"Why do you write it down?\" a child once asked. \
\"Because tomorrow I will have forgotten,\" she said, \"and somebody may want to know.\"\n\n\
for i in range(10):\n    print(i * i)\n";

/// Flags of `puna verify`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna verify A B [flags]")]
#[command(after_help = "Example: puna verify base --adapter out merged --max-kl 1e-6")]
pub struct VerifyArgs {
    /// The first model, which is the measure
    pub a: Option<PathBuf>,
    /// The second model
    pub b: Option<PathBuf>,
    /// Adapter on A; may be repeated
    #[arg(long, value_name = "DIR")]
    pub adapter: Vec<PathBuf>,
    /// Adapter on B; may be repeated
    #[arg(long, value_name = "DIR")]
    pub adapter_b: Vec<PathBuf>,
    /// The text.
    #[command(flatten)]
    pub source: TextSource,
    /// Tokens seen at once [default: 512]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub window: Option<usize>,
    /// Quantised weights as the kernels of inference use them, activations rounded to int8
    #[arg(long)]
    pub rounded: bool,
    /// Fail above this difference of logits
    #[arg(long, value_name = "X")]
    pub max_difference: Option<f64>,
    /// Fail above this mean divergence (nats)
    #[arg(long, value_name = "X")]
    pub max_kl: Option<f64>,
    /// Fail below this share of equal top tokens
    #[arg(long, value_name = "X")]
    pub min_agreement: Option<f64>,
    /// Threads.
    #[command(flatten)]
    pub threads: Threads,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, what loading and comparing return, and a bound that is passed.
pub fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let (Some(a), Some(b)) = (&args.a, &args.b) else {
        let hint = "puna verify A B compares model B with model A".to_owned();
        return Err(Failure::Usage("two models are needed".into(), Some(hint)));
    };
    check_token_ids(args.source.tokens.as_deref())?;
    for (name, bound) in [
        ("--max-difference", args.max_difference),
        ("--max-kl", args.max_kl),
        ("--min-agreement", args.min_agreement),
    ] {
        if bound.is_some_and(|x| x.is_nan() || x < 0.0) {
            return Err(Failure::usage(format!("{name}: found {bound:?}, wanted 0 or more")));
        }
    }
    args.common.device.check_build()?;
    let place = args.common.device.place();
    let log = args.common.log();
    let load = |path: &Path, adapters: &[PathBuf]| {
        let (threads, exact) = (args.threads.count(), !args.rounded);
        let adapters = adapters.to_vec();
        Model::load(path, &LoadOptions { exact, adapters, place, ..LoadOptions::threads(threads) })
    };
    let (first, second) = (load(a, &args.adapter)?, load(b, &args.adapter_b)?);
    first.check_speaks()?;
    second.check_speaks()?;
    let ids = read_ids(args, &first, a)?;
    let bar = log.bar(ids.len(), "positions");
    let window = args.window.unwrap_or(WINDOW).min(first.config.max_seq_len);
    let mut progress = |done: usize| bar.set_position(done as u64);
    let found = compare([&first, &second], &ids, window, interrupt::flag(), &mut progress);
    bar.finish_and_clear();
    let found = found?;
    if args.common.json {
        let value = json!({
            "max_difference": found.max_difference, "mean_difference": found.mean_difference,
            "largest_logit": found.largest_logit, "kl": found.kl, "max_kl": found.max_kl,
            "top1_agreement": found.agreement, "positions": found.positions,
        });
        print_line(&value.to_string())?;
    } else {
        print_line(&format!(
            "{} positions: logits differ by {:.3e} at most, {:.3e} on average (largest logit {:.2}); \
             KL {:.3e} nats on average, {:.3e} at most; same top token at {:.2} %",
            found.positions,
            found.max_difference,
            found.mean_difference,
            found.largest_logit,
            found.kl,
            found.max_kl,
            100.0 * found.agreement
        ))?;
    }
    // Written so that NaN is beyond every bound.
    let beyond =
        |value: f64, bound: Option<f64>| bound.is_some_and(|bound| value.is_nan() || value > bound);
    let breach = if beyond(found.max_difference, args.max_difference) {
        Some(("largest difference", found.max_difference, args.max_difference))
    } else if beyond(found.kl, args.max_kl) {
        Some(("mean divergence", found.kl, args.max_kl))
    } else if beyond(-found.agreement, args.min_agreement.map(|x| -x)) {
        Some(("share of equal top tokens", found.agreement, args.min_agreement))
    } else {
        None
    };
    match breach {
        None if found.max_difference.is_nan() => Err(different("logits are not numbers".into())),
        None => Ok(()),
        Some((what, value, bound)) => {
            let bound = bound.unwrap_or_default();
            Err(different(format!("{what} {value:.4e}, wanted within {bound:e}")))
        }
    }
}

fn different(what: String) -> Failure {
    Failure::Failed(Error::Data { place: "verify".into(), what })
}

fn read_ids(args: &VerifyArgs, model: &Model, path: &Path) -> Result<Vec<u32>> {
    if let Some(tokens) = &args.source.tokens {
        return token_ids(tokens);
    }
    let text = match &args.source.text {
        Some(file) => std::fs::read_to_string(file).map_err(|source| Error::io(file, source))?,
        None => TEXT.to_owned(),
    };
    let Some(parts) = &model.text else {
        let what = "has no tokenizer; give --tokens".to_owned();
        return Err(Error::Data { place: path.display().to_string(), what });
    };
    parts.tokenizer.encode(&text, true, true)
}
