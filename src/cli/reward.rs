//! `puna reward`: trains a reward model on preferences.

use super::failure::Failure;
use super::pair_run::{self, PairArgs, PairRun, Usual};
use super::train_args::not_negative;
use super::train_setup::usage;
use crate::align::reward::{Reward, RewardLoss};
use crate::error::Result;
use clap::Args;

/// Help of the command: its flags stand under headings.
const HELP: &str = "{about}\n\nUsage: {usage}\n\n{all-args}{after-help}";
/// Rates of LMFlow's reward models.
pub const USUAL: Usual = Usual { learning_rate: 5e-6, lora_learning_rate: 3e-5, epochs: 1.0 };

/// Flags of `puna reward`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP)]
#[command(override_usage = "puna reward MODEL --dataset DIR --output DIR [flags]")]
#[command(after_help = "Example: puna reward tuned --dataset pairs --output judge --method lora")]
pub struct RewardArgs {
    /// Loss.
    #[command(flatten)]
    pub loss: RewardFlags,
    /// The run.
    #[command(flatten)]
    pub run: PairArgs,
}

/// What a pair of scores costs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Loss")]
pub struct RewardFlags {
    /// Scores differ by a pair's margin
    #[arg(long)]
    pub margin: bool,
    /// Keep scores around 0 [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub center_rewards_coefficient: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and those of [`pair_run::run`].
pub fn run(args: &RewardArgs) -> Result<(), Failure> {
    let loss = RewardLoss {
        margin: args.loss.margin,
        centre: args.loss.center_rewards_coefficient.unwrap_or(0.0),
    };
    loss.check().map_err(usage)?;
    let settings = vec![
        ("margin", loss.margin.to_string()),
        ("center_rewards_coefficient", loss.centre.to_string()),
    ];
    let kind = PairRun { name: "reward", usual: USUAL, score: true, grouped: false, settings };
    pair_run::run(&args.run, &kind, |model, sets| Reward::new(model, loss, sets))
}
