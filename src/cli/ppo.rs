//! `puna ppo` and `puna grpo`: reinforcement learning from rewards of whole answers.

use super::args::positive;
use super::failure::Failure;
use super::online_run::{self, OnlineArgs, OnlineRun, OnlineUsual};
use super::train_args::{above_zero, not_negative};
use super::train_setup::usage;
use crate::align::advantage::Kl;
use crate::align::clipped::{PolicyLoss, ValueLoss};
use crate::align::grpo::{Grpo, GrpoSettings, Mean};
use crate::align::ppo::{Ppo, PpoSettings};
use crate::error::Error;
use clap::Args;

/// Help of the commands: their flags stand under headings.
const HELP: &str = "{about}\n\nUsage: {usage}\n\n{all-args}{after-help}";
/// TRL's rates; adapters want more.
pub const USUAL: OnlineUsual = OnlineUsual::new(3e-6, 3e-5, 4.0);
/// See [`USUAL`].
pub const GRPO_USUAL: OnlineUsual = OnlineUsual::new(1e-6, 1e-5, 1.0);
/// Iterations, and prompts of one.
const ITERATIONS: usize = 100;
const N_PROMPTS: usize = 32;
/// TRL's number of answers to a prompt of a group.
const GENERATIONS: usize = 8;
/// Answers over which the controller follows: that of Ziegler et al.
const HORIZON: f64 = 10_000.0;

/// Flags of `puna ppo`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP)]
#[command(override_usage = "puna ppo MODEL --dataset DIR --reward-model DIR --output DIR [flags]")]
#[command(after_help = "Example: puna ppo tuned --dataset prompts --reward-model judge \
                        --output better --method lora")]
pub struct PpoArgs {
    /// Loss.
    #[command(flatten)]
    pub loss: PpoFlags,
    /// The run.
    #[command(flatten)]
    pub run: OnlineArgs,
}

/// Rewards of tokens, and the loss.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Loss")]
pub struct PpoFlags {
    /// Iterations [default: 100]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub iterations: Option<usize>,
    /// Answers of an iteration [default: 32]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub num_prompts: Option<usize>,
    /// Cost of a nat off the base [default: 0.05]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub kl_coef: Option<f64>,
    /// Move --kl-coef so that an answer is X off
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = above_zero)]
    pub kl_target: Option<f64>,
    /// Answers in which it moves [default: 10000]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = above_zero)]
    pub kl_horizon: Option<f64>,
    /// k1 or k3 [default: k1]
    #[arg(long, value_name = "NAME", value_parser = kl)]
    pub kl_estimator: Option<Kl>,
    /// Clipping of ratios [default: 0.2]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = above_zero)]
    pub cliprange: Option<f64>,
    /// Clipping of values; 0: none [default: 0.2]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub cliprange_value: Option<f64>,
    /// Weight of the value's loss [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub vf_coef: Option<f64>,
    /// Discount [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = not_negative)]
    pub gamma: Option<f64>,
    /// Lambda of the advantages [default: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = not_negative)]
    pub lam: Option<f64>,
    /// Tokens' rewards to variance 1
    #[arg(long)]
    pub whiten_rewards: bool,
    /// Cost of an answer without end [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub missing_eos_penalty: Option<f64>,
}

/// Flags of `puna grpo`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP)]
#[command(override_usage = "puna grpo MODEL --dataset DIR --reward-rule RULE --output DIR [flags]")]
#[command(after_help = "Example: puna grpo tuned --dataset sums --reward-rule exact:gsm8k \
                        --output better --method lora")]
pub struct GrpoArgs {
    /// Loss.
    #[command(flatten)]
    pub loss: GrpoFlags,
    /// The run.
    #[command(flatten)]
    pub run: OnlineArgs,
}

/// Groups of answers, and the loss.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Loss")]
pub struct GrpoFlags {
    /// Iterations [default: 100]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub iterations: Option<usize>,
    /// Prompts of an iteration [default: 32]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub num_prompts: Option<usize>,
    /// Answers to each [default: 8]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub num_generations: Option<usize>,
    /// Cost of a nat off the base [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub beta: Option<f64>,
    /// Clipping of ratios [default: 0.2]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = above_zero)]
    pub epsilon: Option<f64>,
    /// Clipping above [default: --epsilon]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = above_zero)]
    pub epsilon_high: Option<f64>,
    /// Mean over tokens (bnpo) or answers (grpo)
    #[arg(long, value_name = "NAME", value_parser = mean)]
    pub loss_type: Option<Mean>,
    /// Do not divide by a group's deviation
    #[arg(long)]
    pub no_scale_rewards: bool,
}

fn kl(text: &str) -> Result<Kl, String> {
    let known = Kl::ALL.into_iter().find(|one| one.name() == text);
    known.ok_or_else(|| "wanted k1 or k3".to_owned())
}

fn mean(text: &str) -> Result<Mean, String> {
    let known = Mean::ALL.into_iter().find(|one| one.name() == text);
    known.ok_or_else(|| "wanted bnpo or grpo".to_owned())
}

/// Runs `puna ppo`.
///
/// # Errors
/// Wrong usage, and those of [`online_run::run`].
pub fn run(args: &PpoArgs) -> Result<(), Failure> {
    let flags = &args.loss;
    let value_clip = flags.cliprange_value.unwrap_or(0.2);
    if flags.kl_horizon.is_some() && flags.kl_target.is_none() {
        let hint = "--kl-target says what the divergence is to be".to_owned();
        return Err(Failure::Usage("--kl-horizon without --kl-target".into(), Some(hint)));
    }
    let settings = PpoSettings {
        policy: PolicyLoss { clip: flags.cliprange.unwrap_or(0.2), clip_high: None },
        value: ValueLoss {
            clip: (value_clip > 0.0).then_some(value_clip),
            coef: flags.vf_coef.unwrap_or(0.1),
        },
        gamma: flags.gamma.unwrap_or(1.0),
        lambda: flags.lam.unwrap_or(0.95),
        kl_coef: flags.kl_coef.unwrap_or(0.05),
        kl_target: flags.kl_target.map(|target| (target, flags.kl_horizon.unwrap_or(HORIZON))),
        kl: flags.kl_estimator.unwrap_or(Kl::K1),
        whiten_rewards: flags.whiten_rewards,
        missing_eos_penalty: flags.missing_eos_penalty.unwrap_or(0.0),
    };
    settings.check().map_err(usage)?;
    let kind = OnlineRun {
        name: "ppo",
        usual: USUAL,
        iterations: flags.iterations.unwrap_or(ITERATIONS),
        sizes: (flags.num_prompts.unwrap_or(N_PROMPTS), 1),
        lengths: None,
        wrap: true,
        value: true,
        reference: true,
        settings: vec![("ppo", format!("{settings:?}"))],
    };
    online_run::run(&args.run, &kind, |model, reference| match reference {
        Some(reference) => Ppo::new(model, settings, reference, None),
        None => Err(Error::Unsupported("ppo without a reference".into())),
    })
}

/// Runs `puna grpo`.
///
/// # Errors
/// Wrong usage, and those of [`online_run::run`].
pub fn run_grpo(args: &GrpoArgs) -> Result<(), Failure> {
    let flags = &args.loss;
    let settings = GrpoSettings {
        policy: PolicyLoss { clip: flags.epsilon.unwrap_or(0.2), clip_high: flags.epsilon_high },
        beta: flags.beta.unwrap_or(0.0),
        scale_rewards: !flags.no_scale_rewards,
        mean: flags.loss_type.unwrap_or(Mean::Tokens),
    };
    settings.check().map_err(usage)?;
    let n_samples = flags.num_generations.unwrap_or(GENERATIONS);
    if n_samples < 2 {
        let what = "--num-generations 1: wanted at least 2 answers to compare";
        return Err(Failure::usage(what));
    }
    let kind = OnlineRun {
        name: "grpo",
        usual: GRPO_USUAL,
        iterations: flags.iterations.unwrap_or(ITERATIONS),
        sizes: (flags.num_prompts.unwrap_or(N_PROMPTS), n_samples),
        lengths: None,
        wrap: true,
        value: false,
        reference: settings.beta > 0.0,
        settings: vec![("grpo", format!("{settings:?}"))],
    };
    online_run::run(&args.run, &kind, |model, reference| {
        Grpo::new(model, settings, reference, None)
    })
}
