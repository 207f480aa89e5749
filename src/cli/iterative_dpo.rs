//! `puna iterative-dpo`: tunes a model on preferences between its own answers.

use super::args::positive;
use super::dpo::LossFlags;
use super::failure::Failure;
use super::online_run::{self, OnlineArgs, OnlineRun, OnlineUsual};
use super::pair_run::ChoiceFlag;
use super::train_args::finite;
use super::train_setup::usage;
use crate::align::dpo::Dpo;
use crate::align::dpo_rounds::{DpoRounds, PairChoice};
use clap::Args;

/// Help of the command: its flags stand under headings.
const HELP: &str = "{about}\n\nUsage: {usage}\n\n{all-args}{after-help}";
/// LMFlow's rate and passes; adapters want more.
pub const USUAL: OnlineUsual = OnlineUsual::new(5e-7, 1e-5, 2.0);
const ITERATIONS: usize = 3;
const N_PROMPTS: usize = 64;
/// LMFlow's number of answers to a prompt.
const N_SAMPLES: usize = 8;

/// Flags of `puna iterative-dpo`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP)]
#[command(override_usage = "puna iterative-dpo MODEL --dataset DIR --output DIR [flags]")]
#[command(after_help = "Example: puna iterative-dpo tuned --dataset prompts --reward-model judge \
                        --output better --method lora")]
pub struct IterativeDpoArgs {
    /// Pairs.
    #[command(flatten)]
    pub pairs: RoundFlags,
    /// Loss.
    #[command(flatten)]
    pub loss: LossFlags,
    /// The run.
    #[command(flatten)]
    pub run: OnlineArgs,
}

/// Which answers meet.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pairs")]
pub struct RoundFlags {
    /// Iterations [default: 3]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub iterations: Option<usize>,
    /// Prompts of an iteration [default: 64]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub num_prompts: Option<usize>,
    /// Answers to each [default: 8]
    #[arg(long, value_name = "N", value_parser = positive, alias = "num-output-sequences")]
    pub num_generations: Option<usize>,
    /// Which two of them [default: max_min]
    #[arg(
        long,
        value_name = "NAME",
        alias = "sampling-paired-method",
        hide_possible_values = true
    )]
    pub pair_choice: Option<ChoiceFlag>,
    /// Off a reward, per character [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite)]
    pub score_penalty: Option<f64>,
    /// Factor of their margins [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite)]
    pub margin_scale: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and those of [`online_run::run`].
pub fn run(args: &IterativeDpoArgs) -> Result<(), Failure> {
    let flags = &args.pairs;
    let objective = args.loss.objective(false).map_err(usage)?;
    let n_samples = flags.num_generations.unwrap_or(N_SAMPLES);
    if n_samples < 2 {
        let what = "--num-generations 1: wanted at least 2 answers, of which a pair is made";
        return Err(Failure::usage(what));
    }
    let pairs = PairChoice {
        choice: flags.pair_choice.unwrap_or(ChoiceFlag::MaxMin).choice(),
        length_penalty: flags.score_penalty.unwrap_or(0.0),
        margin_scale: flags.margin_scale.unwrap_or(1.0),
        seed: args.run.common.seed,
    };
    let mut settings = LossFlags::settings(&objective);
    settings.push(("pairs", format!("{pairs:?}")));
    let kind = OnlineRun {
        name: "iterative-dpo",
        usual: USUAL,
        iterations: flags.iterations.unwrap_or(ITERATIONS),
        sizes: (flags.num_prompts.unwrap_or(N_PROMPTS), n_samples),
        lengths: None,
        wrap: true,
        value: false,
        reference: objective.needs_reference(),
        settings,
    };
    online_run::run(&args.run, &kind, |model, reference| {
        Ok(DpoRounds::new(Dpo::new(model, objective, &[])?, pairs, reference, None))
    })
}
