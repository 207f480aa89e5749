//! `puna convert`, `puna quantize` and `puna merge`: models from one form into another.

use super::args::{Common, HELP};
use super::failure::Failure;
use super::interrupt;
use super::terminal::{human_bytes, human_count, print_line};
use crate::error::Error;
use crate::format::FileDType;
use crate::model::convert::{self, Form};
use crate::model::export::{WriteOptions, Written};
use crate::model::shapes::dtype_named;
use clap::{Args, ValueEnum};
use serde_json::{Map, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Element types that a converted model can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl From<DType> for FileDType {
    fn from(dtype: DType) -> FileDType {
        match dtype {
            DType::F32 => FileDType::F32,
            DType::F16 => FileDType::F16,
            DType::Bf16 => FileDType::BF16,
        }
    }
}

/// Flags of `puna convert`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna convert MODEL OUT [flags]")]
#[command(after_help = "Example: puna convert smollm2.gguf smollm2-hf --dtype bf16")]
pub struct ConvertArgs {
    /// Hugging Face directory or .gguf file
    pub model: Option<PathBuf>,
    /// A name ending in .gguf, else a directory
    pub output: Option<PathBuf>,
    /// f32, f16 or bf16 [default: as they are]
    #[arg(long, value_name = "T", hide_possible_values = true)]
    pub dtype: Option<DType>,
    /// Replace OUT
    #[arg(long)]
    pub overwrite: bool,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `puna quantize`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna quantize MODEL OUT.gguf --type T [flags]")]
#[command(after_help = "Example: puna quantize smollm2-hf smollm2-q4.gguf --type Q4_K")]
pub struct QuantizeArgs {
    /// Hugging Face directory or .gguf file
    pub model: Option<PathBuf>,
    /// A name ending in .gguf
    pub output: Option<PathBuf>,
    /// Q4_K, Q8_0 or another type of GGUF
    #[arg(long = "type", value_name = "T", alias = "dtype")]
    pub r#type: Option<String>,
    /// Replace OUT
    #[arg(long)]
    pub overwrite: bool,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `puna merge`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna merge MODEL OUT --adapter DIR [flags]")]
#[command(after_help = "Example: puna merge smollm2.gguf tuned.gguf --adapter my-lora")]
pub struct MergeArgs {
    /// Hugging Face directory or .gguf file
    pub model: Option<PathBuf>,
    /// A name ending in .gguf, else a directory
    pub output: Option<PathBuf>,
    /// Directory of the adapter (PEFT)
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// f32, f16, bf16; in a .gguf also Q8_0 and its like [default: the model's, from 8 bits on]
    #[arg(long, value_name = "T", alias = "type")]
    pub dtype: Option<String>,
    /// Replace OUT
    #[arg(long)]
    pub overwrite: bool,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// Runs `puna convert`.
///
/// # Errors
/// Wrong usage, and what reading and writing models return.
pub fn run_convert(args: &ConvertArgs) -> Result<(), Failure> {
    let (model, out) = paths(args.model.as_deref(), args.output.as_deref())?;
    let dtype = args.dtype.map(FileDType::from);
    let job = Job { out, overwrite: args.overwrite, common: &args.common };
    job.run(None, |options| Ok((convert::convert(model, out, dtype, options)?, None)))
}

/// Runs `puna quantize`.
///
/// # Errors
/// Wrong usage, and what reading and writing models return.
pub fn run_quantize(args: &QuantizeArgs) -> Result<(), Failure> {
    let (model, out) = paths(args.model.as_deref(), args.output.as_deref())?;
    let Some(name) = &args.r#type else {
        return Err(missing("no type named", "--type Q4_K is a good start"));
    };
    let dtype = named(name)?;
    if Form::of(out) != Form::Gguf {
        let what = format!("{}: quantised models are .gguf files", out.display());
        return Err(missing(&what, "name the output something.gguf"));
    }
    let job = Job { out, overwrite: args.overwrite, common: &args.common };
    job.run(None, |options| Ok((convert::quantize(model, out, dtype, options)?, None)))
}

/// Runs `puna merge`.
///
/// # Errors
/// Wrong usage, and what reading and writing models return.
pub fn run_merge(args: &MergeArgs) -> Result<(), Failure> {
    let (model, out) = paths(args.model.as_deref(), args.output.as_deref())?;
    let Some(adapter) = args.adapter.as_deref() else {
        return Err(missing("no adapter named", "give --adapter DIR"));
    };
    let dtype = args.dtype.as_deref().map(named).transpose()?;
    let job = Job { out, overwrite: args.overwrite, common: &args.common };
    job.run(Some(adapter), |options| {
        let (written, merged) = convert::merge(model, adapter, out, dtype, options)?;
        Ok((written, Some(merged)))
    })
}

fn named(name: &str) -> Result<FileDType, Failure> {
    dtype_named(name).map_err(|error| Failure::usage(error.to_string()))
}

fn missing(what: &str, hint: &str) -> Failure {
    Failure::Usage(what.into(), Some(hint.into()))
}

fn paths<'a>(
    model: Option<&'a Path>,
    out: Option<&'a Path>,
) -> Result<(&'a Path, &'a Path), Failure> {
    let hint = "name what is to be written, then the output";
    let model = model.ok_or_else(|| missing("no model named", hint))?;
    let out = out.ok_or_else(|| missing("no output named", "name it after the model"))?;
    Ok((model, out))
}

/// What the three commands share.
struct Job<'a> {
    out: &'a Path,
    overwrite: bool,
    common: &'a Common,
}

impl Job<'_> {
    fn run(
        &self,
        adapter: Option<&Path>,
        work: impl FnOnce(&WriteOptions<'_>) -> crate::Result<(Written, Option<usize>)>,
    ) -> Result<(), Failure> {
        self.common.device.check()?;
        let log = self.common.log();
        let bar = log.bar(0, "MB");
        let cancel = interrupt::flag();
        let progress = |done: u64, total: u64| {
            bar.set_length(total / 1_000_000);
            bar.set_position(done / 1_000_000);
            match cancel.load(Ordering::Relaxed) {
                true => Err(Error::Cancelled),
                false => Ok(()),
            }
        };
        let options = WriteOptions {
            overwrite: self.overwrite,
            progress: &progress,
            ..WriteOptions::default()
        };
        let done = work(&options);
        bar.finish_and_clear();
        let (written, merged) = done?;
        for note in &written.notes {
            log.warn(note);
        }
        self.report(&written, adapter.zip(merged))?;
        Ok(())
    }

    fn report(&self, written: &Written, merged: Option<(&Path, usize)>) -> crate::Result<()> {
        let form = Form::of(self.out);
        let Written { n_tensors, n_parameters, bytes, types, notes } = written;
        if self.common.json {
            let types: Map<_, _> =
                types.iter().map(|(dtype, n)| (dtype.name().to_string(), json!(n))).collect();
            let mut value = json!({
                "output": self.out.display().to_string(),
                "format": form.name(),
                "parameters": n_parameters,
                "tensors": n_tensors,
                "weight_bytes": bytes,
                "tensor_types": types,
                "notes": notes,
            });
            if let Some((adapter, merged)) = merged {
                value["adapter"] = json!(adapter.display().to_string());
                value["merged"] = json!(merged);
            }
            return print_line(&value.to_string());
        }
        let types: Vec<String> = types.iter().map(|(dtype, n)| format!("{n} {dtype}")).collect();
        let merged = merged.map_or(String::new(), |(adapter, n)| {
            format!(", {n} matrices with {} added", adapter.display())
        });
        print_line(&format!(
            "{} ({}): {} parameters in {n_tensors} tensors ({}), {}{merged}",
            self.out.display(),
            form.name(),
            human_count(*n_parameters),
            types.join(", "),
            human_bytes(*bytes),
        ))
    }
}
