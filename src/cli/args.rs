//! The command line: flags that commands share, and how values are read.
//!
//! A flag's field name is also its name in a `--config` file. Nothing is marked as required here,
//! because the file may supply it: each command checks what it needs.

use super::bench::BenchArgs;
use super::chat::ChatArgs;
use super::convert::{ConvertArgs, MergeArgs, QuantizeArgs};
use super::dpo::DpoArgs;
use super::eval::EvalArgs;
use super::failure::Failure;
use super::generate::GenerateArgs;
use super::info::InfoArgs;
use super::iterative_dpo::IterativeDpoArgs;
use super::ppo::{GrpoArgs, PpoArgs};
use super::quickstart::QuickstartArgs;
use super::raft::RaftArgs;
use super::reward::RewardArgs;
use super::terminal::Log;
use super::train_args::TrainArgs;
use super::verify::VerifyArgs;
use super::vocab::VocabArgs;
use crate::error::{Error, Result};
use crate::kernels::{self, Place};
use crate::model::builtin;
use crate::model::llama::KvType;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Help of a command in few lines: what it does, usage, flags, an example.
pub const HELP: &str = "{about}\n\nUsage: {usage}\n\n{positionals}\n{options}{after-help}";
/// Help of a command that has commands of its own.
pub const HELP_OF_GROUP: &str = "{about}\n\nUsage: {usage}\n\n{subcommands}\n{after-help}";

/// Everything after `puna`.
#[derive(Debug, Parser)]
#[command(name = "puna", version, about = "A LLaMA engine for CPUs")]
#[command(help_template = HELP_OF_GROUP, override_usage = "puna COMMAND [MODEL] [flags]")]
#[command(max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "`puna COMMAND --help` shows a command's flags and an example.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure, tune, measure again: the built-in model in a minute
    Quickstart(QuickstartArgs),
    /// Show a model, the memory it needs, or this machine
    Info(InfoArgs),
    /// Continue a text, or answer a data set
    Generate(Box<GenerateArgs>),
    /// Talk with a model in the terminal
    Chat(Box<ChatArgs>),
    /// Score a model on a text
    Eval(EvalArgs),
    /// Tune a model, or an adapter, on a data set
    Train(Box<TrainArgs>),
    /// Train a reward model on preferences
    Reward(Box<RewardArgs>),
    /// Tune a model on preferences between answers
    Dpo(Box<DpoArgs>),
    /// The same on its own answers, drawn and scored on the way
    IterativeDpo(Box<IterativeDpoArgs>),
    /// Tune a model on the best of its own answers
    Raft(Box<RaftArgs>),
    /// Tune a model by rewards of its answers, with a value head
    Ppo(Box<PpoArgs>),
    /// The same by comparing answers to a prompt
    Grpo(Box<GrpoArgs>),
    /// Measure speed, beside what the machine can do
    Bench(Box<BenchArgs>),
    /// Compare the logits of two models
    Verify(VerifyArgs),
    /// Turn a Hugging Face directory into GGUF, or back
    Convert(ConvertArgs),
    /// Write a model as GGUF in fewer bits
    Quantize(QuantizeArgs),
    /// Add an adapter to a model's weights
    Merge(MergeArgs),
    /// Make a tokenizer from a corpus
    Vocab(VocabArgs),
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// auto, cpu or cuda (cuda:N)
    #[arg(long, value_name = "D", default_value = "auto", hide_default_value = true)]
    pub device: Device,
    /// Seed of everything random [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub seed: u64,
    /// Result as JSON
    #[arg(long)]
    pub json: bool,
    /// No warnings, no progress
    #[arg(long)]
    pub quiet: bool,
    /// More detail on stderr
    #[arg(short, long)]
    pub verbose: bool,
    /// Flags from a .json or .yaml file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl Common {
    /// How loud to be on stderr.
    pub fn log(&self) -> Log {
        Log { quiet: self.quiet, verbose: self.verbose }
    }
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The CPU, until the kernels for GPUs have been seen to work on one.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
    /// CUDA's kernels, run on the CPU for tests.
    #[cfg(feature = "cuda-host")]
    Harness,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            #[cfg(feature = "cuda-host")]
            "harness" => Ok(Device::Harness),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(|| "wanted auto, cpu or cuda[:N]".to_owned()),
        }
    }
}

/// Why a build without the feature "cuda" refuses a GPU.
const CPU_ONLY: &str = "this build computes on the CPU only";

impl Device {
    /// Refuses all but the CPU, for commands that compute there only.
    ///
    /// # Errors
    /// For CUDA.
    pub fn check(self) -> Result<()> {
        match (self, cfg!(feature = "cuda")) {
            (Device::Auto | Device::Cpu, _) => Ok(()),
            (Device::Cuda(_), false) => self.check_build(),
            _ => {
                let why = "this command computes on the CPU".into();
                Err(Error::Device { wanted: self.to_string(), why })
            }
        }
    }

    /// Refuses a device that this build has no kernels for.
    ///
    /// # Errors
    /// For CUDA, in a build without it.
    pub fn check_build(self) -> Result<()> {
        match self {
            Device::Cuda(_) if !cfg!(feature = "cuda") => {
                Err(Error::Device { wanted: self.to_string(), why: CPU_ONLY.into() })
            }
            _ => Ok(()),
        }
    }

    /// The device, with a team of `threads` for what the CPU does.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(self, threads: usize) -> Result<kernels::Device> {
        kernels::Device::new(threads)?.at(self.place())
    }

    /// Where models are to be opened.
    pub fn place(self) -> Place {
        match self {
            Device::Auto | Device::Cpu => Place::Cpu,
            Device::Cuda(number) => Place::Cuda(number),
            #[cfg(feature = "cuda-host")]
            Device::Harness => Place::Harness,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
            #[cfg(feature = "cuda-host")]
            Device::Harness => f.write_str("harness"),
        }
    }
}

/// Storage of keys and values, as a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvTypeFlag {
    /// Half precision.
    #[value(name = "f16")]
    F16,
    /// bfloat16.
    #[value(name = "bf16")]
    Bf16,
    /// Single precision.
    #[value(name = "f32")]
    F32,
    /// 8-bit blocks of 32 with a scale.
    #[value(name = "q8_0")]
    Q8_0,
}

/// The model and how it computes.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// Hugging Face directory or .gguf file
    pub model: Option<PathBuf>,
    /// Cache type: f16, bf16, f32 or q8_0
    #[arg(long, value_name = "T", hide_possible_values = true)]
    pub kv_type: Option<KvTypeFlag>,
    /// Add this adapter (PEFT); may be repeated
    #[arg(long, value_name = "DIR")]
    pub adapter: Vec<PathBuf>,
    /// Quantised weights times f32 activations
    #[arg(long)]
    pub exact: bool,
    /// Keep rearranged weights beside MODEL
    #[arg(long)]
    pub cache_weights: bool,
}

impl ModelArgs {
    /// Storage of keys and values: as told, else f32 with `--exact`, else `usual`.
    pub fn kv(&self, usual: KvType) -> KvType {
        match self.kv_type {
            Some(KvTypeFlag::F16) => KvType::F16,
            Some(KvTypeFlag::Bf16) => KvType::Bf16,
            Some(KvTypeFlag::F32) => KvType::F32,
            Some(KvTypeFlag::Q8_0) => KvType::Q8_0,
            None if self.exact => KvType::F32,
            None => usual,
        }
    }
}

/// How many threads compute.
#[derive(Args, Clone, Copy, Debug)]
pub struct Threads {
    /// Threads [default: physical cores]
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
}

impl Threads {
    /// As told, else one for each physical core.
    pub fn count(self) -> usize {
        self.threads.unwrap_or_else(super::machine::physical_cores)
    }
}

/// The path of the model: the built-in one where none is named.
pub fn model_path(model: Option<&Path>) -> &Path {
    model.unwrap_or(Path::new(builtin::NAME))
}

/// How tokens are chosen and when a text ends.
#[derive(Args, Clone, Debug, Default)]
pub struct Sampling {
    /// 0: greedy [default: the model's, else 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Draw from the K likeliest; 0: all
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draw from the likeliest worth P together
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Drop what is below P of the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Make repeated tokens less likely; 1: off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// End before this text (may be repeated)
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Most tokens to write
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// Go on past the end token
    #[arg(long)]
    pub ignore_eos: bool,
}

/// Reads a number of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("wanted a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// Reads `1,2,3` or `@FILE.json`, a JSON array of token ids.
///
/// # Errors
/// A file that cannot be read, or anything but token ids.
pub fn token_ids(text: &str) -> Result<Vec<u32>> {
    let Some(file) = text.strip_prefix('@') else {
        let id = |part: &str| {
            let found = part.trim();
            let why = "wanted ids as in 1,2,3, or @FILE.json";
            found.parse().map_err(|_| Error::config("tokens", format!("\"{found}\""), why))
        };
        return text.split(',').map(id).collect();
    };
    let bytes = std::fs::read(file).map_err(|source| Error::io(file, source))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::format(file, format!("{error}; wanted an array of token ids")))
}

/// Refuses a list of ids that cannot be read, as wrong usage and before a model is loaded. What
/// `@FILE.json` holds is found out later.
///
/// # Errors
/// Anything but token ids.
pub fn check_token_ids(text: Option<&str>) -> Result<(), Failure> {
    match text.filter(|text| !text.starts_with('@')).map(token_ids) {
        Some(Err(error)) => Err(Failure::usage(error.to_string())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert!("gpu".parse::<Device>().is_err() && "cuda:x".parse::<Device>().is_err());
        assert!(Device::Auto.check().is_ok() && Device::Cpu.check().is_ok());
        let error = Device::Cuda(1).check().unwrap_err().to_string();
        let with_cuda = cfg!(feature = "cuda");
        assert_eq!(error.contains("this build computes on the CPU only"), !with_cuda, "{error}");
        assert_eq!(Device::Cuda(1).check_build().is_ok(), with_cuda);
    }

    #[test]
    fn token_lists() {
        assert_eq!(token_ids("1, 2,30").unwrap(), [1, 2, 30]);
        for bad in ["", "1,,2", "a", "-1", "1.5"] {
            assert!(token_ids(bad).is_err(), "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ids.json");
        std::fs::write(&file, "[4, 5]").unwrap();
        let name = format!("@{}", file.display());
        assert_eq!(token_ids(&name).unwrap(), [4, 5]);
        std::fs::write(&file, "[4, -5]").unwrap();
        let error = token_ids(&name).unwrap_err().to_string();
        assert!(error.contains("ids.json") && error.contains("wanted an array"), "{error}");
        assert!(matches!(token_ids("@/no/such/file"), Err(Error::Io { .. })));
    }

    #[test]
    fn no_name_means_the_builtin_model() {
        assert_eq!(model_path(None), Path::new("builtin"));
        assert_eq!(model_path(Some(Path::new("x"))), Path::new("x"));
    }
}
