//! `puna bench`: speed as a number, and as a share of what the machine can do.
//!
//! Prompts (pp) and single tokens (tg) are measured as llama-bench does: every test runs once to
//! warm up and then `-r` times on random token ids; a test at depth D first fills D positions of
//! the cache, which is not timed; sampling is not part of it. `limits` measures the machine beside
//! the run, `work` says what a token costs, `report` writes, `compare` judges against an older run.

mod compare;
#[cfg(feature = "cuda")]
mod gpu;
mod kernels;
mod limits;
mod measure;
mod plan;
mod report;
mod stats;
#[cfg(test)]
mod tests;
mod train;
mod usage;
mod work;

use super::args::{Common, HELP, ModelArgs, positive};
use super::failure::Failure;
use super::terminal::print_line;
use super::train_args::{DTypeFlag, Method};
use clap::Args;
use compare::Comparison;
use serde_json::Value;
use std::path::PathBuf;

pub use report::Format;

/// Repetitions unless told otherwise.
const REPETITIONS: usize = 5;
/// Version of the JSON that this writes and `--compare` reads.
const SCHEMA: u64 = 1;

/// Flags of `puna bench`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP)]
#[command(override_usage = "puna bench MODEL [flags] | puna bench --machine|--kernels [flags]")]
#[command(after_help = "Example: puna bench smollm2.gguf -p 512 -n 64 -d 0,2048 -t 1,2")]
pub struct BenchArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Not MODEL but random weights: llama-7b, ...
    #[arg(long, value_name = "NAME")]
    pub shape: Option<String>,
    /// Their type [default: Q4_0]
    #[arg(long = "type", value_name = "T")]
    pub r#type: Option<String>,
    /// Keep that model as a GGUF file
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Prompt lengths; 0: none [default: 512]
    #[arg(short = 'p', long, value_name = "N[,N]", value_delimiter = ',')]
    pub n_prompt: Vec<usize>,
    /// Numbers of tokens; 0: none [default: 128]
    #[arg(short = 'n', long, value_name = "N[,N]", value_delimiter = ',')]
    pub n_gen: Vec<usize>,
    /// Positions filled before [default: 0]
    #[arg(short = 'd', long, value_name = "N[,N]", value_delimiter = ',')]
    pub n_depth: Vec<usize>,
    /// Sequences decoded together [default: 1]
    #[arg(short, long, value_name = "N[,N]", value_delimiter = ',', value_parser = positive)]
    pub batch: Vec<usize>,
    /// Repetitions of each test [default: 5]
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub repetitions: Option<usize>,
    /// Thread counts [default: physical cores]
    #[arg(short, long, value_name = "N[,N]", value_delimiter = ',', value_parser = positive)]
    pub threads: Vec<usize>,
    /// md, csv, json, jsonl or sql [default: md]
    #[arg(short, long, value_name = "FORMAT", hide_possible_values = true)]
    pub output: Option<Format>,
    /// Do not measure the machine's limits
    #[arg(long)]
    pub no_limits: bool,
    /// Measure the machine's limits only
    #[arg(long)]
    pub machine: bool,
    /// Each kernel beside its bound
    #[arg(long)]
    pub kernels: bool,
    /// Training steps on rows of -p tokens, -b a step
    #[arg(long)]
    pub train: bool,
    /// With --train: full, lora or qlora [default: full]
    #[arg(long, value_name = "M", hide_possible_values = true)]
    pub method: Option<Method>,
    /// With --train: f32 or bf16 [default: f32]
    #[arg(long, value_name = "T", hide_possible_values = true)]
    pub dtype: Option<DTypeFlag>,
    /// Fail where a test is slower than in this JSON
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Compare this JSON, measure nothing
    #[arg(long, value_name = "FILE")]
    pub results: Option<PathBuf>,
    /// Percent slower that is allowed [default: 3]
    #[arg(long, value_name = "X", value_parser = percent)]
    pub tolerance: Option<f64>,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if (0.0..100.0).contains(&x) => Ok(x),
        _ => Err("wanted a number from 0 to below 100".to_owned()),
    }
}

impl BenchArgs {
    fn repetitions(&self) -> usize {
        self.repetitions.unwrap_or(REPETITIONS)
    }

    /// The thread counts to measure with.
    fn thread_counts(&self) -> Vec<usize> {
        match &self.threads[..] {
            [] => vec![super::machine::physical_cores()],
            given => given.to_vec(),
        }
    }

    fn format(&self) -> Format {
        let usual = if self.common.json { Format::Json } else { Format::Md };
        self.output.unwrap_or(usual)
    }
}

/// The numbers given for a flag, or the usual one.
fn or_usual(given: &[usize], usual: usize) -> Vec<usize> {
    if given.is_empty() { vec![usual] } else { given.to_vec() }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Tests,
    Machine,
    Kernels,
    Train,
    Results,
}

/// The mode, with every flag refused that would do nothing in it.
fn mode(args: &BenchArgs) -> Result<Mode, Failure> {
    let modes = [
        ("--machine", args.machine, Mode::Machine),
        ("--kernels", args.kernels, Mode::Kernels),
        ("--train", args.train, Mode::Train),
        ("--results", args.results.is_some(), Mode::Results),
    ];
    let mut asked = modes.iter().filter(|(_, asked, _)| *asked);
    let (name, mode) = asked.next().map_or(("", Mode::Tests), |(name, _, mode)| (*name, *mode));
    if let Some((other, ..)) = asked.next() {
        return Err(Failure::usage(format!("both {name} and {other} are given")));
    }
    use Mode::{Kernels, Machine, Results, Tests, Train};
    let flags: [(&str, bool, &[Mode]); 18] = [
        ("MODEL", args.model.model.is_some(), &[Tests, Train]),
        ("--shape", args.shape.is_some(), &[Tests, Train, Kernels]),
        ("--type", args.r#type.is_some(), &[Tests, Train, Kernels]),
        ("--save", args.save.is_some(), &[Tests, Train]),
        ("--kv-type", args.model.kv_type.is_some(), &[Tests]),
        ("--adapter", !args.model.adapter.is_empty(), &[Tests]),
        ("--exact", args.model.exact, &[Tests]),
        ("-p", !args.n_prompt.is_empty(), &[Tests, Train]),
        ("-n", !args.n_gen.is_empty(), &[Tests]),
        ("-d", !args.n_depth.is_empty(), &[Tests]),
        ("-b", !args.batch.is_empty(), &[Tests, Train]),
        ("-r", args.repetitions.is_some(), &[Tests, Train, Kernels]),
        ("-t", !args.threads.is_empty(), &[Tests, Train, Kernels, Machine]),
        ("--no-limits", args.no_limits, &[Tests, Train, Kernels]),
        ("--method", args.method.is_some(), &[Train]),
        ("--dtype", args.dtype.is_some(), &[Train]),
        ("--compare", args.compare.is_some(), &[Tests, Train, Kernels, Results]),
        ("--tolerance", args.tolerance.is_some(), &[Tests, Train, Kernels, Results]),
    ];
    for (flag, given, modes) in flags {
        if given && !modes.contains(&mode) {
            return Err(Failure::usage(match (modes, mode) {
                ([Train], _) => format!("{flag} without --train"),
                _ => format!("{flag} with {name}"),
            }));
        }
    }
    if args.compare.is_none() {
        for (flag, given) in
            [("--tolerance", args.tolerance.is_some()), ("--results", mode == Results)]
        {
            if given {
                return Err(Failure::usage(format!("{flag} without --compare")));
            }
        }
    } else if !matches!(args.format(), Format::Md | Format::Json) {
        return Err(Failure::usage("--compare writes md or json, no other format"));
    }
    Ok(mode)
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, what loading and computing return, files of `--compare` that are none of ours, and
/// tests that got slower than they were there.
pub fn run(args: &BenchArgs) -> Result<(), Failure> {
    let mode = mode(args)?;
    let old = args.compare.as_deref().map(compare::read).transpose()?;
    let measured = match (mode, &args.results) {
        (Mode::Results, Some(file)) => compare::read(file)?,
        (Mode::Machine, _) => limits::machine(args)?,
        (Mode::Kernels, _) => kernels::run(args)?,
        (Mode::Train, _) => train::run(args)?,
        _ => measure::run(args)?,
    };
    let mut json = match mode {
        Mode::Results => Value::Object(Default::default()),
        _ => measured.clone(),
    };
    let comparison = match (&old, &args.compare) {
        (Some(old), Some(file)) => {
            let tolerance = args.tolerance.unwrap_or(compare::TOLERANCE_PERCENT);
            Some((Comparison::new(old, &measured, tolerance)?, file))
        }
        _ => None,
    };
    if let Some((comparison, _)) = &comparison {
        if let Some(warning) = comparison.warning(old.as_ref().unwrap_or(&Value::Null), &measured) {
            args.common.log().warn(warning);
        }
        json["comparison"] = comparison.json();
        if args.format() == Format::Md {
            print_line(&comparison.table())?;
        }
    }
    if args.format() == Format::Json {
        print_line(&json.to_string())?;
    }
    match comparison {
        Some((comparison, file)) => Ok(comparison.verdict(file)?),
        None => Ok(()),
    }
}
