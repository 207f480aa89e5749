//! `puna dpo`: tunes a model on preferences.

use super::failure::Failure;
use super::pair_run::{self, PairArgs, PairRun, Usual};
use super::train_args::{above_zero, finite, not_negative};
use super::train_setup::usage;
use crate::align::dpo::Dpo;
use crate::align::preference::{Loss, Objective};
use crate::error::Result;
use clap::Args;

/// Help of the command: its flags stand under headings.
const HELP: &str = "{about}\n\nUsage: {usage}\n\n{all-args}{after-help}";
/// Sharpness: TRL's.
const BETA: f64 = 0.1;
/// Margin of simpo: TRL's.
const GAMMA: f64 = 0.5;
/// TRL's rate; adapters want more.
pub const USUAL: Usual = Usual { learning_rate: 1e-6, lora_learning_rate: 1e-5, epochs: 1.0 };

/// Flags of `puna dpo`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP)]
#[command(override_usage = "puna dpo MODEL --dataset DIR --output DIR [flags]")]
#[command(after_help = "Example: puna dpo tuned --dataset pairs --output better --method lora")]
pub struct DpoArgs {
    /// Loss.
    #[command(flatten)]
    pub loss: LossFlags,
    /// The run.
    #[command(flatten)]
    pub run: PairArgs,
}

/// What a pair costs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Loss")]
pub struct LossFlags {
    /// sigmoid (default), ipo, simpo, orpo, ...
    #[arg(long, value_name = "NAME", value_parser = loss)]
    pub loss: Option<Loss>,
    /// Sharpness; of orpo the odds' weight [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = above_zero)]
    pub beta: Option<f64>,
    /// Share of flipped preferences [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = not_negative)]
    pub label_smoothing: Option<f64>,
    /// Margin of simpo [default: 0.5]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite)]
    pub simpo_gamma: Option<f64>,
    /// Cost of each token more [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub length_penalty: Option<f64>,
}

fn loss(text: &str) -> Result<Loss, String> {
    let known = Loss::ALL.into_iter().find(|loss| loss.name() == text);
    known.ok_or_else(|| format!("wanted one of {}", Loss::ALL.map(Loss::name).join(", ")))
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and those of [`pair_run::run`].
pub fn run(args: &DpoArgs) -> Result<(), Failure> {
    let flags = &args.loss;
    let objective = Objective {
        loss: flags.loss.unwrap_or(Loss::Sigmoid),
        beta: flags.beta.unwrap_or(BETA),
        label_smoothing: flags.label_smoothing.unwrap_or(0.0),
        gamma: flags.simpo_gamma.unwrap_or(GAMMA),
        length_penalty: flags.length_penalty.unwrap_or(0.0),
        ipo_of_sums: args.run.pairs.lmflow_compat,
    };
    objective.check().map_err(usage)?;
    let settings = vec![
        ("loss", objective.loss.name().to_owned()),
        ("beta", objective.beta.to_string()),
        ("label_smoothing", objective.label_smoothing.to_string()),
        ("simpo_gamma", objective.gamma.to_string()),
        ("length_penalty", objective.length_penalty.to_string()),
        ("ipo_of_sums", objective.ipo_of_sums.to_string()),
    ];
    let kind = PairRun { name: "dpo", usual: USUAL, score: false, settings };
    pair_run::run(&args.run, &kind, |model, sets| Dpo::new(model, objective, sets))
}
