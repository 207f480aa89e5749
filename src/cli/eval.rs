//! `puna eval nll`: negative log-likelihood and perplexity of a text.

use super::args::{
    Common, HELP, HELP_OF_GROUP, ModelArgs, Threads, check_token_ids, positive, token_ids,
};
use super::eval_choice::{self, ChoiceArgs};
use super::eval_diversity::{self, DiversityArgs};
use super::eval_reward::{self, RewardEvalArgs};
use super::failure::Failure;
use super::interrupt;
use super::session::{Session, context_limit};
use super::terminal::print_line;
use crate::data::write_atomically;
use crate::error::{Error, Result};
use crate::eval::perplexity::{PerplexityOptions, perplexity};
use crate::model::llama::KvType;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;

/// Longest window unless told otherwise.
const WINDOW: usize = 2048;

/// Flags of `puna eval`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP_OF_GROUP, override_usage = "puna eval METRIC MODEL [flags]")]
#[command(disable_help_subcommand = true)]
#[command(after_help = "Example: puna eval nll smollm2.gguf --text book.txt")]
pub struct EvalArgs {
    /// The metric.
    #[command(subcommand)]
    pub metric: Metric,
}

/// What to measure.
#[derive(Clone, Debug, Subcommand)]
pub enum Metric {
    /// Negative log-likelihood and perplexity of a text, in sliding windows
    Nll(Box<NllArgs>),
    /// Multiple choice, as lm-evaluation-harness scores it
    Choice(Box<ChoiceArgs>),
    /// How varied answers are: distinct and unique words, msttr-100
    Diversity(Box<DiversityArgs>),
    /// Scores of answers, or accuracy on pairs, under a reward model
    Reward(Box<RewardEvalArgs>),
}

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
    /// Window [default: the model's, to 2048]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub window: Option<usize>,
    /// From window to window [default: half of it]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub stride: Option<usize>,
    /// Where each token's value goes (JSON array)
    #[arg(long, value_name = "FILE")]
    pub per_token: Option<PathBuf>,
    /// Print the text's ids on stderr
    #[arg(long)]
    pub verbose_prompt: bool,
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
/// Wrong usage, and what loading and scoring return.
pub fn run(args: &EvalArgs) -> Result<(), Failure> {
    match &args.metric {
        Metric::Nll(args) => nll(args),
        Metric::Choice(args) => eval_choice::run(args),
        Metric::Diversity(args) => eval_diversity::run(args),
        Metric::Reward(args) => eval_reward::run(args),
    }
}

fn nll(args: &NllArgs) -> Result<(), Failure> {
    if args.source.text.is_none() && args.source.tokens.is_none() {
        let hint = "give --text FILE, or --tokens".to_owned();
        return Err(Failure::Usage("nothing to score".into(), Some(hint)));
    }
    check_token_ids(args.source.tokens.as_deref())?;
    let mut session = Session::load(&args.model, args.threads.count(), &args.common)?;
    let ids = read_ids(args, &session)?;
    if args.verbose_prompt {
        session.show_prompt(&ids);
    }
    let window = args.window.unwrap_or(session.model.config.max_seq_len.min(WINDOW));
    let limit = context_limit(&session.model.config);
    if window > limit {
        session.log.warn(format!("--window {window}: the model was made for {limit} positions"));
    }
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
