//! The flags of `puna train`, by what they are about. Names and defaults are those of transformers'
//! TrainingArguments, PEFT's LoraConfig and LMFlow.

use super::args::{Common, Threads, positive};
use clap::{ArgAction, Args, ValueEnum};
use std::path::PathBuf;

/// Help of the command: its flags stand under headings.
const HELP: &str = "{about}\n\nUsage: {usage}\n\n{all-args}{after-help}";

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Every weight.
    Full,
    /// A low-rank adapter.
    Lora,
    /// The same on weights held in 4 bits.
    Qlora,
}

impl Method {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Method::Full => "full",
            Method::Lora => "lora",
            Method::Qlora => "qlora",
        }
    }
}

/// In what activations and products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DTypeFlag {
    /// Single precision.
    #[value(name = "f32", alias = "float32")]
    F32,
    /// bfloat16, with f32 sums, weights and moments.
    #[value(name = "bf16", alias = "bfloat16")]
    Bf16,
}

/// Which end of a text is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// The end.
    Right,
    /// The beginning.
    Left,
}

/// Flags of `puna train`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP)]
#[command(override_usage = "puna train MODEL --dataset DIR --output DIR [flags]")]
#[command(
    after_help = "Example: puna train smollm2.gguf --dataset data --output tuned --method lora"
)]
pub struct TrainArgs {
    /// Hugging Face directory, .gguf, or a config.json to start at random
    pub model: Option<PathBuf>,
    /// Method.
    #[command(flatten)]
    pub method: MethodArgs,
    /// Data.
    #[command(flatten)]
    pub data: DataArgs,
    /// Steps.
    #[command(flatten)]
    pub steps: StepArgs,
    /// Optimiser.
    #[command(flatten)]
    pub optim: OptimFlags,
    /// Evaluation.
    #[command(flatten)]
    pub eval: EvalFlags,
    /// What is saved.
    #[command(flatten)]
    pub save: SaveFlags,
    /// Threads.
    #[command(flatten, next_help_heading = "Common")]
    pub threads: Threads,
    /// Common flags.
    #[command(flatten, next_help_heading = "Common")]
    pub common: Common,
}

/// What is trained, and how it computes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Method")]
pub struct MethodArgs {
    /// full, lora or qlora [default: full]
    #[arg(long, value_name = "M", hide_possible_values = true)]
    pub method: Option<Method>,
    /// f32 or bf16 [default: f32]
    #[arg(long, value_name = "T", hide_possible_values = true)]
    pub dtype: Option<DTypeFlag>,
    /// Rank of the adapter [default: 8]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub lora_r: Option<usize>,
    /// Scale times the rank [default: 32]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite)]
    pub lora_alpha: Option<f64>,
    /// Inputs dropped [default: 0.1]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = below_one)]
    pub lora_dropout: Option<f64>,
    /// [default: q_proj,v_proj] or all-linear
    #[arg(long, value_name = "NAMES")]
    pub lora_target_modules: Option<String>,
    /// Scale over the root of the rank instead
    #[arg(long)]
    pub use_rslora: bool,
    /// Start from this adapter
    #[arg(long, value_name = "DIR", alias = "lora-model-path")]
    pub adapter: Option<PathBuf>,
    /// qlora: scales in 8 bits [default: true]
    #[arg(
        long,
        value_name = "B",
        alias = "bnb-4bit-use-double-quant",
        action = ArgAction::Set,
        hide_possible_values = true
    )]
    pub double_quant: Option<bool>,
    /// Less memory, more work, the same bits
    #[arg(long)]
    pub gradient_checkpointing: bool,
}

/// Where rows come from.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Data: *.json or *.jsonl
    #[arg(long, value_name = "DIR", alias = "dataset-path")]
    pub dataset: Option<PathBuf>,
    /// Longest row [default: 1024 or less]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub block_size: Option<usize>,
    /// One instance a row, cut to size
    #[arg(long, conflicts_with = "group_texts")]
    pub no_packing: bool,
    /// Join instances and cut, as LMFlow
    #[arg(long)]
    pub group_texts: bool,
    /// Instances joined [default: 1000]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub group_texts_batch_size: Option<usize>,
    /// Drop what is left of each join
    #[arg(long)]
    pub drop_remainder: bool,
    /// End that is lost [default: right]
    #[arg(long, value_name = "S", hide_possible_values = true)]
    pub truncation_side: Option<Side>,
    /// false: rows beyond the model's length
    #[arg(long, value_name = "B", action = ArgAction::Set, hide_possible_values = true)]
    pub truncate_to_model_max_length: Option<bool>,
    /// Score prompts too
    #[arg(long)]
    pub train_on_prompt: bool,
    /// No EOS after texts and answers
    #[arg(long)]
    pub no_eos: bool,
    /// LMFlow's special tokens
    #[arg(long)]
    pub lmflow_compat: bool,
    /// Preset, not the model's template
    #[arg(long, value_name = "T")]
    pub conversation_template: Option<String>,
    /// Leave out what teaches nothing
    #[arg(long)]
    pub skip_bad_instances: bool,
    /// Rows in the order of the data
    #[arg(long)]
    pub no_shuffle: bool,
    /// Tokenise again
    #[arg(long)]
    pub overwrite_cache: bool,
    /// Print N rows with their mask
    #[arg(long, value_name = "N", value_parser = positive)]
    pub show_batch: Option<usize>,
}

/// How many rows a step takes, and how many steps there are.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Steps")]
pub struct StepArgs {
    /// Rows of a micro-batch [default: 8]
    #[arg(long, value_name = "N", value_parser = positive, alias = "per-device-train-batch-size")]
    pub batch_size: Option<usize>,
    /// Micro-batches of a step [default: 1]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub gradient_accumulation_steps: Option<usize>,
    /// Passes over the data [default: 3]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = above_zero)]
    pub num_train_epochs: Option<f64>,
    /// Steps, in place of passes
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = steps)]
    pub max_steps: Option<i64>,
    /// Check all, print the plan, and end
    #[arg(long)]
    pub dry_run: bool,
}

/// The optimiser and its rate.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Optimiser")]
pub struct OptimFlags {
    /// Highest rate [default: 5e-5, lora 1e-4]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub learning_rate: Option<f64>,
    /// adamw or sgd [default: adamw]
    #[arg(long, value_name = "NAME")]
    pub optim: Option<String>,
    /// linear (default), cosine, constant, ...
    #[arg(long, value_name = "NAME")]
    pub lr_scheduler_type: Option<String>,
    /// Its numbers: {"min_lr": 1e-6}
    #[arg(long, value_name = "JSON")]
    pub lr_scheduler_kwargs: Option<String>,
    /// Steps in which the rate rises [default: 0]
    #[arg(long, value_name = "N")]
    pub warmup_steps: Option<usize>,
    /// The same as a share of all steps
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = share)]
    pub warmup_ratio: Option<f64>,
    /// Decay of weights [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub weight_decay: Option<f64>,
    /// Norms and biases decay too
    #[arg(long)]
    pub decay_all: bool,
    /// [default: 0.9]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = below_one)]
    pub adam_beta1: Option<f64>,
    /// [default: 0.999]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = below_one)]
    pub adam_beta2: Option<f64>,
    /// [default: 1e-8]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub adam_epsilon: Option<f64>,
    /// Momentum of sgd [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = below_one)]
    pub momentum: Option<f64>,
    /// Clip gradients; 0: never [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub max_grad_norm: Option<f64>,
}

/// What is measured on the way.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Evaluation")]
#[group(skip)]
pub struct EvalFlags {
    /// Data to evaluate on
    #[arg(long, value_name = "DIR", alias = "eval-dataset-path")]
    pub eval_dataset: Option<PathBuf>,
    /// Hold back so much of the data instead
    #[arg(
        long,
        value_name = "P",
        allow_negative_numbers = true,
        value_parser = percent,
        conflicts_with = "eval_dataset"
    )]
    pub validation_split_percentage: Option<f64>,
    /// Every N steps [default: each epoch]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub eval_steps: Option<usize>,
    /// Before the first step too
    #[arg(long)]
    pub eval_on_start: bool,
    /// Result: that of the lowest loss
    #[arg(long)]
    pub load_best_model_at_end: bool,
    /// Stop after N evaluations without gain
    #[arg(long, value_name = "N", value_parser = positive)]
    pub early_stopping_patience: Option<usize>,
    /// What counts as gain [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub early_stopping_threshold: Option<f64>,
}

/// What is left on the disk, and shown.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct SaveFlags {
    /// Result, checkpoints, metrics.jsonl, report.html
    #[arg(long, value_name = "DIR", alias = "output-dir", alias = "output-model-path")]
    pub output: Option<PathBuf>,
    /// Checkpoint every N steps; 0: none [default: 500]
    #[arg(long, value_name = "N")]
    pub save_steps: Option<usize>,
    /// Most checkpoints to keep
    #[arg(long, value_name = "N", value_parser = positive)]
    pub save_total_limit: Option<usize>,
    /// Go on from the newest checkpoint in --output
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Delete what an earlier run left there
    #[arg(long)]
    pub overwrite: bool,
    /// Log every N steps [default: 10]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub logging_steps: Option<usize>,
}

/// Reads a number that `fits`.
fn number(text: &str, wanted: &str, fits: impl Fn(f64) -> bool) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if fits(number) => Ok(number),
        _ => Err(format!("wanted {wanted}")),
    }
}

pub(super) fn finite(text: &str) -> Result<f64, String> {
    number(text, "a number", f64::is_finite)
}

pub(super) fn not_negative(text: &str) -> Result<f64, String> {
    number(text, "a number of at least 0", |x| x >= 0.0 && x.is_finite())
}

pub(super) fn above_zero(text: &str) -> Result<f64, String> {
    number(text, "a number above 0", |x| x > 0.0 && x.is_finite())
}

fn below_one(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to below 1", |x| (0.0..1.0).contains(&x))
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))
}

fn percent(text: &str) -> Result<f64, String> {
    number(text, "a number above 0 and below 100", |x| x > 0.0 && x < 100.0)
}

/// Reads a number of steps; -1, transformers' default, is none.
fn steps(text: &str) -> Result<i64, String> {
    match text.parse() {
        Ok(number) if number == -1 || number > 0 => Ok(number),
        _ => Err("wanted a whole number of at least 1, or -1 for none".to_owned()),
    }
}
