//! `puna dpo`: tunes a model on preferences.

use super::failure::Failure;
use super::pair_run::{self, PairArgs, PairRun, Usual};
use super::train_args::{above_zero, finite, not_negative};
use super::train_setup::usage;
use crate::align::dpo::Dpo;
use crate::align::kto::Kto;
use crate::align::kto_tune::KtoTuned;
use crate::align::preference::{Loss, Objective};
use crate::error::{Error, Result};
use clap::Args;

/// Help of the command: its flags stand under headings.
const HELP: &str = "{about}\n\nUsage: {usage}\n\n{all-args}{after-help}";
/// The loss that is not one of pairs.
const KTO: &str = "kto";
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
    /// sigmoid (default), ipo, kto, simpo, orpo, ...
    #[arg(long, value_name = "NAME", value_parser = loss)]
    pub loss: Option<LossFlag>,
    /// Sharpness; of orpo the odds' weight [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = above_zero)]
    pub beta: Option<f64>,
    /// Share of flipped preferences [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = not_negative)]
    pub label_smoothing: Option<f64>,
    /// Margin of simpo [default: 0.5]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite)]
    pub simpo_gamma: Option<f64>,
    /// Weight of chosen answers in kto [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub desirable_weight: Option<f64>,
    /// Weight of rejected ones [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub undesirable_weight: Option<f64>,
    /// Cost of each token more [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub length_penalty: Option<f64>,
}

/// A loss by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossFlag {
    /// Of a pair.
    Pair(Loss),
    /// Of a group of pairs.
    Kto,
}

fn loss(text: &str) -> Result<LossFlag, String> {
    if text == KTO {
        return Ok(LossFlag::Kto);
    }
    let known = Loss::ALL.into_iter().find(|loss| loss.name() == text).map(LossFlag::Pair);
    known.ok_or_else(|| format!("wanted one of {}, {KTO}", Loss::ALL.map(Loss::name).join(", ")))
}

impl LossFlags {
    /// The loss that the flags say.
    ///
    /// # Errors
    /// Constants that mean nothing.
    pub fn objective(&self, ipo_of_sums: bool) -> Result<Objective> {
        let weights = [
            ("desirable-weight", self.desirable_weight),
            ("undesirable-weight", self.undesirable_weight),
        ];
        if let Some((name, Some(weight))) = weights.into_iter().find(|(_, told)| told.is_some()) {
            return Err(Error::config(name, weight, "only --loss kto weighs answers"));
        }
        let objective = Objective {
            loss: match self.loss.unwrap_or(LossFlag::Pair(Loss::Sigmoid)) {
                LossFlag::Pair(loss) => loss,
                LossFlag::Kto => {
                    let why = "wanted a loss of pairs: kto is for `puna dpo`";
                    return Err(Error::config("loss", KTO, why));
                }
            },
            beta: self.beta.unwrap_or(BETA),
            label_smoothing: self.label_smoothing.unwrap_or(0.0),
            gamma: self.simpo_gamma.unwrap_or(GAMMA),
            length_penalty: self.length_penalty.unwrap_or(0.0),
            ipo_of_sums,
        };
        objective.check()?;
        Ok(objective)
    }

    /// The constants of kto.
    ///
    /// # Errors
    /// Constants that mean nothing, or belong to other losses.
    fn kto(&self) -> Result<Kto> {
        let others = [
            ("label-smoothing", self.label_smoothing),
            ("simpo-gamma", self.simpo_gamma),
            ("length-penalty", self.length_penalty),
        ];
        if let Some((name, Some(value))) = others.into_iter().find(|(_, told)| told.is_some()) {
            return Err(Error::config(name, value, "kto has no such constant"));
        }
        let kto = Kto {
            beta: self.beta.unwrap_or(BETA),
            desirable_weight: self.desirable_weight.unwrap_or(1.0),
            undesirable_weight: self.undesirable_weight.unwrap_or(1.0),
        };
        kto.check()?;
        Ok(kto)
    }

    /// What decides the numbers.
    pub fn settings(objective: &Objective) -> Vec<(&'static str, String)> {
        vec![
            ("loss", objective.loss.name().to_owned()),
            ("beta", objective.beta.to_string()),
            ("label_smoothing", objective.label_smoothing.to_string()),
            ("simpo_gamma", objective.gamma.to_string()),
            ("length_penalty", objective.length_penalty.to_string()),
            ("ipo_of_sums", objective.ipo_of_sums.to_string()),
        ]
    }
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and those of [`pair_run::run`].
pub fn run(args: &DpoArgs) -> Result<(), Failure> {
    if args.loss.loss == Some(LossFlag::Kto) {
        let kto = args.loss.kto().map_err(usage)?;
        let settings = vec![("loss", KTO.to_owned()), ("kto", format!("{kto:?}"))];
        let kind = PairRun { name: "dpo", usual: USUAL, score: false, grouped: true, settings };
        return pair_run::run(&args.run, &kind, |model, sets| KtoTuned::new(model, kto, sets));
    }
    let objective = args.loss.objective(args.run.pairs.lmflow_compat).map_err(usage)?;
    let settings = LossFlags::settings(&objective);
    let kind = PairRun { name: "dpo", usual: USUAL, score: false, grouped: false, settings };
    pair_run::run(&args.run, &kind, |model, sets| Dpo::new(model, objective, sets))
}
