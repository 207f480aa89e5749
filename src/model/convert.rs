//! Models from one form into another: convert, quantise, merge. The form of the output follows its
//! name: `.gguf` is a GGUF file, everything else a Hugging Face directory.

use std::path::Path;

use puna_cpu::quant::BlockType;

use crate::error::{Error, Result};
use crate::format::FileDType;
use crate::model::adapter::read_adapter;
use crate::model::checkpoint::Checkpoint;
use crate::model::export::{Extras, WriteOptions, Written, write_gguf, write_hf};
use crate::model::names::{BlockWeight, Weight};
use crate::model::source::{Merged, WeightSource};

/// The form of a model on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A Hugging Face directory.
    HuggingFace,
    /// A GGUF file.
    Gguf,
}

impl Form {
    /// The form that a name asks for.
    pub fn of(path: &Path) -> Form {
        match path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) {
            true => Form::Gguf,
            false => Form::HuggingFace,
        }
    }

    /// The name that `puna info --json` uses too.
    pub const fn name(self) -> &'static str {
        match self {
            Form::HuggingFace => "huggingface",
            Form::Gguf => "gguf",
        }
    }
}

/// The element type of the matrices of a checkpoint, by its first query projection.
fn main_dtype(source: &dyn WeightSource) -> Result<FileDType> {
    Ok(source.dtype(Weight::Block(0, BlockWeight::Wq))?.unwrap_or(FileDType::F32))
}

fn kept(source: &dyn WeightSource, weight: Weight) -> Result<FileDType> {
    Ok(source.dtype(weight)?.unwrap_or(FileDType::F32))
}

/// The type in which a sum keeps what was added to weights of type `base`. Weights of few bits
/// stand on a coarse grid; what an adapter adds is mostly less than half of its step, so that
/// rounding to the same grid would take all of it away.
fn holding(base: FileDType) -> FileDType {
    match base {
        FileDType::Block(block) if block.row_bytes(256) < BlockType::Q8_0.row_bytes(256) => {
            FileDType::Block(BlockType::Q8_0)
        }
        other => other,
    }
}

/// Writes a source in the form that `out` asks for. Without `dtype` weights keep the type that they
/// have; in a directory, which has one type for all and no blocks, quantised ones become BF16.
fn write(
    out: &Path,
    source: &dyn WeightSource,
    extras: Extras<'_>,
    dtype: Option<FileDType>,
    options: &WriteOptions<'_>,
) -> Result<Written> {
    match Form::of(out) {
        Form::Gguf => {
            let kept = |weight| kept(source, weight);
            let chosen = |weight| dtype.map_or_else(|| kept(weight), Ok);
            write_gguf(out, source, extras, &chosen, options)
        }
        Form::HuggingFace => {
            let kept = main_dtype(source)?;
            let dtype = match dtype.unwrap_or(kept) {
                FileDType::Block(block) if dtype.is_some() => {
                    return Err(Error::Unsupported(format!(
                        "{}: a Hugging Face directory holds F32, F16 or BF16, not {}; \
                         name the output .gguf",
                        out.display(),
                        block.name()
                    )));
                }
                FileDType::Block(_) | FileDType::Other(_) => FileDType::BF16,
                plain => plain,
            };
            let mut written = write_hf(out, source, extras, dtype, options)?;
            if let FileDType::Block(block) = kept {
                let what = format!("{} weights were widened and rounded to {dtype}", block.name());
                written.notes.push(what);
            }
            Ok(written)
        }
    }
}

/// Converts a model between a Hugging Face directory and a GGUF file. With `dtype`, all matrices
/// (in a directory also the vectors) get that type.
///
/// # Errors
/// What opening and writing return: see [`Checkpoint::open`], [`write_hf`], [`write_gguf`].
pub fn convert(
    input: &Path,
    out: &Path,
    dtype: Option<FileDType>,
    options: &WriteOptions<'_>,
) -> Result<Written> {
    let checkpoint = Checkpoint::open(input)?;
    write(out, &checkpoint, Extras::of(&checkpoint), dtype, options)
}

/// Writes a model as GGUF with all matrices of type `dtype`.
///
/// # Errors
/// As [`convert`]; [`Error::Config`] for an output that is not called `.gguf`.
pub fn quantize(
    input: &Path,
    out: &Path,
    dtype: FileDType,
    options: &WriteOptions<'_>,
) -> Result<Written> {
    if Form::of(out) != Form::Gguf {
        return Err(Error::config("output", out.display(), "wanted a name that ends in .gguf"));
    }
    convert(input, out, Some(dtype), options)
}

/// Adds an adapter to a model's weights, `W + scale B A` in f32, and writes the sum. Without
/// `dtype` weights keep the type of the base: in a GGUF file those that the adapter does not touch
/// are copied, the others are Q8_0 where the base has fewer bits, which could not hold the sum.
///
/// # Errors
/// As [`convert`], and what [`read_adapter`] returns.
pub fn merge(
    model: &Path,
    adapter: &Path,
    out: &Path,
    dtype: Option<FileDType>,
    options: &WriteOptions<'_>,
) -> Result<(Written, usize)> {
    let checkpoint = Checkpoint::open(model)?;
    let adapter = read_adapter(adapter, &checkpoint.config)?;
    let merged = Merged::new(&checkpoint, &adapter);
    let extras = Extras::of(&checkpoint);
    let written = match (Form::of(out), dtype) {
        (Form::Gguf, None) => {
            let chosen = |weight| match merged.touches(weight) {
                true => Ok(holding(kept(&merged, weight)?)),
                false => kept(&merged, weight),
            };
            let mut written = write_gguf(out, &merged, extras, &chosen, options)?;
            let base = main_dtype(&merged)?;
            if holding(base) != base {
                let what = format!(
                    "matrices with the adapter added are {}: rounding them to {base} again would \
                     undo most of it (--dtype {base} does so)",
                    holding(base)
                );
                written.notes.push(what);
            }
            written
        }
        _ => write(out, &merged, extras, dtype, options)?,
    };
    Ok((written, adapter.pairs.len()))
}
