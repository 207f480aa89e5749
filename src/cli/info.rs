//! `puna info`: what a model is and what it needs, and what this machine has.

use super::args::{Common, HELP, model_path};
use super::failure::Failure;
use super::machine::Machine;
use super::terminal::{human_bytes, human_count, print_line};
use super::train_memory::{TrainMemory, TrainMemoryArgs};
use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::Config;
use crate::model::text::text_parts;
use crate::model::tune_plan::WeightBytes;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Contexts for which the memory is told, besides the model's longest.
const CONTEXTS: [usize; 2] = [2048, 8192];

/// Flags of `puna info`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna info MODEL | puna info --machine")]
#[command(after_help = "Example: puna info smollm2.gguf")]
pub struct InfoArgs {
    /// Hugging Face directory or .gguf file
    pub model: Option<PathBuf>,
    /// Processor, instruction sets, caches, memory
    #[arg(long)]
    pub machine: bool,
    /// Memory to train.
    #[command(flatten)]
    pub train: TrainMemoryArgs,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and a model that cannot be opened.
pub fn run(args: &InfoArgs) -> Result<(), Failure> {
    let machine = Machine::detect()?;
    let summary = match &args.model {
        None if args.machine => None,
        model => Some(summarize(model_path(model.as_deref()))?),
    };
    let train = match &summary {
        Some(summary) => {
            let has_tokenizer = summary.tokenizer.is_some();
            let (config, weights) = (&summary.config, &summary.weights);
            Some(TrainMemory::new(config, weights, has_tokenizer, &args.train)?)
        }
        None => None,
    };
    if args.common.json {
        let mut value = summary.as_ref().map_or_else(|| json!({}), ModelSummary::json);
        if let Some(train) = &train {
            value["train_memory"] = train.json();
        }
        if args.machine {
            value["machine"] = machine.json();
        } else {
            value["machine"] = json!({"ram_bytes": machine.ram_bytes});
        }
        print_line(&value.to_string())?;
        return Ok(());
    }
    let mut lines = vec![];
    if let Some(summary) = &summary {
        lines.extend(summary.lines(machine.ram_bytes));
    }
    if let Some(train) = &train {
        lines.extend(train.lines(machine.ram_bytes));
    }
    if args.machine {
        lines.extend(machine_lines(&machine));
    }
    for (name, text) in lines {
        print_line(&format!("{name:<14}{text}"))?;
    }
    Ok(())
}

/// Tensors of one element type.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeCount {
    /// Name of the type.
    pub name: &'static str,
    /// Tensors.
    pub n_tensors: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What a checkpoint is, from its headers and tokenizer.
#[derive(Clone, Debug)]
pub struct ModelSummary {
    /// As the user named it.
    pub path: String,
    /// `gguf` or `huggingface`.
    pub format: &'static str,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// The same by how a frozen base holds them.
    pub weights: WeightBytes,
    /// By element type, the one with most bytes first.
    pub types: Vec<TypeCount>,
    /// Sizes and settings.
    pub config: Config,
    /// The tokenizer in one line; `None` for a model without.
    pub tokenizer: Option<String>,
    /// Whether the model has a chat template of its own.
    pub template: bool,
}

/// Opens the checkpoint's headers and its tokenizer; no weight is read.
///
/// # Errors
/// A checkpoint that is not there or broken.
pub fn summarize(path: &Path) -> Result<ModelSummary> {
    let checkpoint = Checkpoint::open(path)?;
    let text = text_parts(&checkpoint)?;
    let (mut parameters, mut weight_bytes) = (0u64, 0u64);
    let mut types: Vec<TypeCount> = vec![];
    for tensor in checkpoint.files.tensors() {
        let bytes = tensor.len as u64;
        parameters = parameters.saturating_add(tensor.n_elements() as u64);
        weight_bytes = weight_bytes.saturating_add(bytes);
        let name = tensor.dtype.name();
        match types.iter_mut().find(|t| t.name == name) {
            Some(found) => {
                found.n_tensors += 1;
                found.bytes += bytes;
            }
            None => types.push(TypeCount { name, n_tensors: 1, bytes }),
        }
    }
    types.sort_by_key(|t| std::cmp::Reverse(t.bytes));
    Ok(ModelSummary {
        path: path.display().to_string(),
        format: if checkpoint.gguf.is_some() { "gguf" } else { "huggingface" },
        parameters,
        weight_bytes,
        weights: WeightBytes::of(&checkpoint)?,
        types,
        tokenizer: text.as_ref().map(|parts| parts.tokenizer.describe()),
        template: text.as_ref().is_some_and(|parts| parts.template.is_some()),
        config: checkpoint.config,
    })
}

/// Bytes of keys and values in f16 for a context of `ctx` positions.
fn kv_bytes(config: &Config, ctx: usize) -> u64 {
    let per_position = 2 * 2 * config.n_layers * config.n_kv_heads * config.head_dim;
    (per_position as u64).saturating_mul(ctx as u64)
}

impl ModelSummary {
    /// Contexts with the memory that weights, keys and values take together.
    fn memory(&self) -> Vec<(usize, u64)> {
        let longest = self.config.max_seq_len;
        let mut contexts: Vec<usize> =
            CONTEXTS.iter().copied().filter(|&ctx| ctx < longest).collect();
        contexts.push(longest);
        contexts
            .into_iter()
            .map(|ctx| (ctx, self.weight_bytes.saturating_add(kv_bytes(&self.config, ctx))))
            .collect()
    }

    fn json(&self) -> Value {
        let c = &self.config;
        let types = self.types.iter();
        let types: Vec<Value> = types
            .map(|t| json!({"type": t.name, "tensors": t.n_tensors, "bytes": t.bytes}))
            .collect();
        let memory = self.memory().into_iter();
        let memory: Vec<Value> =
            memory.map(|(ctx, bytes)| json!({"ctx": ctx, "bytes": bytes})).collect();
        json!({
            "model": self.path,
            "format": self.format,
            "architecture": "llama",
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "tensor_types": types,
            "dim": c.dim,
            "hidden_dim": c.hidden_dim,
            "n_layers": c.n_layers,
            "n_heads": c.n_heads,
            "n_kv_heads": c.n_kv_heads,
            "head_dim": c.head_dim,
            "vocab_size": c.vocab_size,
            "max_seq_len": c.max_seq_len,
            "tokenizer": self.tokenizer,
            "chat_template": self.template,
            "infer_memory": memory,
        })
    }

    /// Name and text of each line for people.
    fn lines(&self, ram_bytes: Option<u64>) -> Vec<(&'static str, String)> {
        let c = &self.config;
        let types = self.types.iter();
        let types: Vec<String> = types
            .map(|t| format!("{} ({} tensors, {})", t.name, t.n_tensors, human_bytes(t.bytes)))
            .collect();
        let mut lines = vec![
            ("model", format!("{} ({})", self.path, self.format)),
            ("architecture", "llama".to_owned()),
            (
                "parameters",
                format!("{}, {}", human_count(self.parameters), human_bytes(self.weight_bytes)),
            ),
            ("tensors", types.join(", ")),
            (
                "sizes",
                format!(
                    "{} layers, width {}, feed-forward {}, {} heads ({} key/value) of {}",
                    c.n_layers, c.dim, c.hidden_dim, c.n_heads, c.n_kv_heads, c.head_dim
                ),
            ),
            ("context", format!("{} positions", c.max_seq_len)),
            ("vocabulary", c.vocab_size.to_string()),
            ("tokenizer", self.tokenizer.clone().unwrap_or_else(|| "none: use --tokens".into())),
            ("template", if self.template { "its own" } else { "none" }.to_owned()),
        ];
        for (index, (ctx, bytes)) in self.memory().into_iter().enumerate() {
            let name = if index == 0 { "memory" } else { "" };
            let fits = match ram_bytes {
                Some(ram) if bytes > ram => ", more than this machine has",
                _ => "",
            };
            lines.push((name, format!("{} at context {ctx}{fits}", human_bytes(bytes))));
        }
        if let Some(ram) = ram_bytes {
            lines
                .push(("", format!("(weights and f16 cache; this machine: {})", human_bytes(ram))));
        }
        lines
    }
}

pub(super) fn machine_lines(machine: &Machine) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    let bytes = |value: Option<u64>| value.map_or_else(unknown, human_bytes);
    let caches = machine.caches.iter();
    let caches: Vec<String> = caches
        .map(|c| format!("L{} {} {}", c.level, c.kind.to_lowercase(), human_bytes(c.bytes)))
        .collect();
    let (physical, logical) = (machine.physical_cores, machine.logical_cores);
    vec![
        ("processor", machine.cpu.clone().unwrap_or_else(unknown)),
        ("cores", format!("{physical} physical, {logical} hardware threads")),
        ("kernels", format!("{} (PUNA_ISA chooses another)", machine.isa)),
        ("available", machine.isa_available.join(", ")),
        ("caches", if caches.is_empty() { unknown() } else { caches.join(", ") }),
        (
            "RAM",
            format!(
                "{}, {} available",
                bytes(machine.ram_bytes),
                bytes(machine.ram_available_bytes)
            ),
        ),
    ]
}
