//! Memory that training would take, planned from a model's sizes: by method and element type.

use super::args::{Threads, positive};
use super::failure::Failure;
use super::terminal::human_bytes;
use super::train_setup::{LORA_ALPHA, LORA_DROPOUT, LORA_R, usage};
use crate::error::Result;
use crate::model::config::Config;
use crate::model::tune::{LoraSpec, LoraTarget, Precision, TuneMethod, TuneOptions};
use crate::model::tune_plan::{MemoryPlan, RunSize, SliceSize, WeightBytes, memory_plan};
use crate::tensor::Params;
use crate::train::optimizer::{OptimArgs, make};
use clap::Args;
use serde_json::{Value, json};

/// What decides how much memory training takes, as `puna train` names it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Memory to train")]
pub struct TrainMemoryArgs {
    /// Rows at a time [default: 1]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub batch_size: Option<usize>,
    /// Tokens of a row [default: 512]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub block_size: Option<usize>,
    /// Rank of the adapter [default: 8]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub lora_r: Option<usize>,
    /// Its layers, or all-linear
    #[arg(long, value_name = "L")]
    pub lora_target_modules: Option<String>,
    /// With gradient checkpointing
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// Threads.
    #[command(flatten)]
    pub threads: Threads,
}

/// Plans of training one model.
#[derive(Clone, Debug)]
pub struct TrainMemory {
    batch_size: usize,
    block_size: usize,
    lora_r: usize,
    gradient_checkpointing: bool,
    /// Method, element type, plan.
    plans: Vec<(&'static str, &'static str, MemoryPlan)>,
}

/// The largest slice of batches of this many rows: `even` ones, all of the longest's length, or
/// rows of many lengths.
pub fn slice_size(batch: usize, longest: usize, told: Option<usize>, even: bool) -> SliceSize {
    let longest = longest.max(1);
    let budget = crate::train::budget(told, longest);
    let whole = (budget / longest).min(batch.max(1)) * longest;
    let tokens = if even { whole } else { budget.min(longest.saturating_mul(batch)) };
    SliceSize { tokens, longest }
}

/// Bytes that an optimiser keeps for each trained number.
///
/// # Errors
/// A name or setting that is none.
pub fn state_bytes(name: &str, args: &OptimArgs) -> Result<usize> {
    Ok(make(name, args, &Params::default())?.state_bytes_per_element())
}

impl TrainMemory {
    /// Plans AdamW for each method and element type.
    ///
    /// # Errors
    /// Targets that no adapter has.
    pub fn new(
        config: &Config,
        weights: &WeightBytes,
        has_tokenizer: bool,
        args: &TrainMemoryArgs,
    ) -> Result<TrainMemory, Failure> {
        let targets = match &args.lora_target_modules {
            Some(names) => LoraTarget::parse_list(names).map_err(usage)?,
            None => LoraSpec::DEFAULT_TARGETS.to_vec(),
        };
        let (alpha, dropout) = (LORA_ALPHA as f32, LORA_DROPOUT as f32);
        let r = args.lora_r.unwrap_or(LORA_R);
        let spec = LoraSpec { r, alpha, dropout, targets, use_rslora: false };
        let lora = TuneMethod::Lora { spec: spec.clone(), adapter: None };
        let qlora = TuneMethod::QLora { spec, adapter: None, double_quant: true };
        let mut methods = vec![("full", TuneMethod::Full), ("lora", lora)];
        methods.extend(weights.can_be_nf4().then_some(("qlora", qlora)));
        let (batch_size, block_size) =
            (args.batch_size.unwrap_or(1), args.block_size.unwrap_or(512));
        let slice = slice_size(batch_size, block_size, None, true);
        let state_bytes = state_bytes("adamw", &OptimArgs::default())?;
        let n_tokens = if has_tokenizer { config.vocab_size } else { 0 };
        let run = RunSize { slice, state_bytes, n_tokens };
        let mut plans = vec![];
        for (name, method) in methods {
            for (dtype, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
                let options = TuneOptions {
                    threads: args.threads.count(),
                    precision,
                    method: method.clone(),
                    gradient_checkpointing: args.gradient_checkpointing,
                    score: false,
                    value: false,
                    seed: 0,
                };
                plans.push((name, dtype, memory_plan(config, weights, &options, &run)));
            }
        }
        let gradient_checkpointing = args.gradient_checkpointing;
        Ok(TrainMemory { batch_size, block_size, lora_r: r, gradient_checkpointing, plans })
    }

    /// One object a plan.
    pub fn json(&self) -> Value {
        let plan = |(method, dtype, plan): &(&str, &str, MemoryPlan)| {
            json!({
                "method": method,
                "dtype": dtype,
                "batch_size": self.batch_size,
                "block_size": self.block_size,
                "gradient_checkpointing": self.gradient_checkpointing,
                "bytes": plan.total(),
                "items": items(plan),
            })
        };
        self.plans.iter().map(plan).collect()
    }

    /// Name and text of each line for people.
    pub fn lines(&self, ram_bytes: Option<u64>) -> Vec<(&'static str, String)> {
        let mut lines: Vec<(&'static str, String)> = vec![];
        for (method, dtype, plan) in &self.plans {
            let name = if lines.is_empty() { "to train" } else { "" };
            let fits = match ram_bytes {
                Some(ram) if plan.total() > ram => ", more than this machine has",
                _ => "",
            };
            lines.push((name, format!("{} {method} {dtype}{fits}", human_bytes(plan.total()))));
        }
        let again = if self.gradient_checkpointing { ", gradient checkpointing" } else { "" };
        let (batch, block, r) = (self.batch_size, self.block_size, self.lora_r);
        lines.push(("", format!("(AdamW, {batch} rows of {block} tokens, rank {r}{again})")));
        lines
    }
}

/// The items of a plan by name.
pub fn items(plan: &MemoryPlan) -> Value {
    let item = |(name, bytes): &(&'static str, u64)| (name.to_string(), json!(bytes));
    Value::Object(plan.items.iter().map(item).collect())
}
