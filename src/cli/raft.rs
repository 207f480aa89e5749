//! `puna raft`: tunes a model on the best of its own answers.

use super::args::positive;
use super::failure::Failure;
use super::online_run::{self, OnlineArgs, OnlineRun, OnlineUsual};
use super::train_args::{above_zero, not_negative};
use super::train_setup::usage;
use crate::align::raft::{Raft, RaftSettings};
use crate::align::select::Strategy;
use clap::Args;

/// Help of the command: its flags stand under headings.
const HELP: &str = "{about}\n\nUsage: {usage}\n\n{all-args}{after-help}";
/// LMFlow's iterations.
const ITERATIONS: usize = 20;
/// LMFlow's rate and temperature; adapters want more.
pub const USUAL: OnlineUsual =
    OnlineUsual { temperature: 0.85, ..OnlineUsual::new(2e-5, 1e-4, 2.0) };
/// LMFlow's shortest answer, where lengths are drawn.
const MIN_LENGTH: usize = 64;
/// LMFlow's longest prompt.
const COMPAT_PROMPT: usize = 256;

/// Flags of `puna raft`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP)]
#[command(override_usage = "puna raft MODEL --dataset DIR --reward-model DIR --output DIR [flags]")]
#[command(after_help = "Example: puna raft tuned --dataset prompts --reward-model judge \
                        --output better --method lora")]
pub struct RaftArgs {
    /// Choice.
    #[command(flatten)]
    pub choice: RaftFlags,
    /// The run.
    #[command(flatten)]
    pub run: OnlineArgs,
}

/// Which answers are learnt.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Choice")]
pub struct RaftFlags {
    /// Iterations [default: 20]
    #[arg(long, value_name = "N", value_parser = positive, alias = "iterations")]
    pub num_raft_iteration: Option<usize>,
    /// local: best of a prompt's; top: of all
    #[arg(long, value_name = "NAME", value_parser = strategy)]
    pub collection_strategy: Option<Strategy>,
    /// Answers learnt an iteration [default: 64]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub raft_batch_size: Option<usize>,
    /// They are this share of all [default: 0.125]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = above_zero)]
    pub top_reward_percentage: Option<f64>,
    /// Off a reward, per nat off the base [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub kl_coef: Option<f64>,
    /// Shortest drawn length, with --lmflow-compat
    #[arg(long, value_name = "N", value_parser = positive)]
    pub output_min_length: Option<usize>,
    /// LMFlow's defaults, texts and lengths
    #[arg(long)]
    pub lmflow_compat: bool,
}

fn strategy(text: &str) -> Result<Strategy, String> {
    let known = Strategy::ALL.into_iter().find(|one| one.name() == text);
    known.ok_or_else(|| "wanted local or top".to_owned())
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and those of [`online_run::run`].
pub fn run(args: &RaftArgs) -> Result<(), Failure> {
    let flags = &args.choice;
    let compat = flags.lmflow_compat;
    let of = |ours: f64, theirs: f64| if compat { theirs } else { ours };
    let count = |ours: usize, theirs: usize| if compat { theirs } else { ours };
    let usually = if compat { Strategy::Top } else { Strategy::Local };
    let settings = RaftSettings {
        strategy: flags.collection_strategy.unwrap_or(usually),
        share: flags.top_reward_percentage.unwrap_or(of(0.125, 0.2)),
        kl_coef: flags.kl_coef.unwrap_or(0.0),
        lmflow_compat: compat,
    };
    settings.check().map_err(usage)?;
    let batch = flags.raft_batch_size.unwrap_or(count(64, 1024));
    let usual = OnlineUsual {
        epochs: of(USUAL.epochs, 4.0),
        max_prompt_length: count(USUAL.max_prompt_length, COMPAT_PROMPT),
        ..USUAL
    };
    let lengths = match (compat, flags.output_min_length) {
        (false, Some(_)) => {
            let hint = "answers end by themselves or at --max-new-tokens".to_owned();
            let what = "--output-min-length without --lmflow-compat".to_owned();
            return Err(Failure::Usage(what, Some(hint)));
        }
        (false, None) => None,
        (true, least) => {
            let least = least.unwrap_or(MIN_LENGTH);
            let most = args.run.asking.max_new_tokens.unwrap_or(usual.max_new_tokens);
            if least >= most {
                return Err(Failure::usage(format!(
                    "--output-min-length {least}: wanted less than the {most} of --max-new-tokens"
                )));
            }
            Some(least..most)
        }
    };
    let kind = OnlineRun {
        name: "raft",
        usual,
        iterations: flags.num_raft_iteration.unwrap_or(ITERATIONS),
        sizes: settings.strategy.sizes(batch, settings.share),
        lengths,
        wrap: !compat,
        value: false,
        reference: settings.kl_coef > 0.0,
        settings: vec![
            ("collection_strategy", settings.strategy.name().to_owned()),
            ("top_reward_percentage", settings.share.to_string()),
            ("kl_coef", settings.kl_coef.to_string()),
            ("lmflow_compat", compat.to_string()),
        ],
    };
    online_run::run(&args.run, &kind, |model, reference| {
        Raft::new(model, settings, reference, None)
    })
}
