//! Writes a model: as a Hugging Face directory, or as a GGUF file.
//!
//! The weights come from a [`WeightSource`] piece by piece, so a model larger than memory can be
//! written. The output appears under its name only when it is complete.

use std::path::Path;

use crate::error::{Error, Result};
use crate::format::gguf::GgufWriter;
use crate::format::safetensors_write::{SHARD_BYTES, ShardedWriter, TensorSpec};
use crate::format::stage::{StagedDir, refuse_existing, sync_dir, write_file};
use crate::format::{FileDType, gguf::MetaValue};
use crate::model::checkpoint::{Checkpoint, GenerationDefaults, Layout};
use crate::model::config::{Head, RopePairing};
use crate::model::encode::encode_weight;
use crate::model::gguf_meta;
use crate::model::hf_json::{config_json, generation_json};
use crate::model::names::{GGUF_ROPE_FREQS, Weight};
use crate::model::source::WeightSource;
use crate::model::text::gguf_vocab;
use crate::text::{GgufVocabBuf, HfTokenizer};
use puna_cpu::quant::BlockType;

/// Files of a Hugging Face directory that belong to the tokenizer and are copied as they are.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// What comes along with the weights.
#[derive(Clone, Copy)]
pub struct Extras<'a> {
    /// The model, as messages and `general.name` call it.
    pub name: &'a Path,
    /// Special tokens and suggestions for sampling.
    pub generation: &'a GenerationDefaults,
    /// Where the tokenizer comes from.
    pub text: TextSource<'a>,
}

/// A tokenizer to be written along.
#[derive(Clone, Copy)]
pub enum TextSource<'a> {
    /// None.
    None,
    /// The files of a Hugging Face directory.
    Dir(&'a Path),
    /// The metadata of a GGUF checkpoint.
    Gguf(&'a Checkpoint),
}

impl<'a> Extras<'a> {
    /// What a checkpoint has beside its weights.
    pub fn of(checkpoint: &'a Checkpoint) -> Extras<'a> {
        let text = match checkpoint.gguf {
            Some(_) => TextSource::Gguf(checkpoint),
            None => TextSource::Dir(&checkpoint.path),
        };
        Extras { name: &checkpoint.path, generation: &checkpoint.generation, text }
    }
}

/// How to write.
#[derive(Clone, Copy)]
pub struct WriteOptions<'a> {
    /// Replace what is at the output's path.
    pub overwrite: bool,
    /// Most bytes of a safetensors file.
    pub shard_bytes: u64,
    /// Is told after every piece how many bytes of weights are written, and of how many; an error
    /// (such as [`Error::Cancelled`]) ends the work and leaves nothing behind.
    pub progress: &'a dyn Fn(u64, u64) -> Result<()>,
}

impl Default for WriteOptions<'_> {
    fn default() -> Self {
        WriteOptions { overwrite: false, shard_bytes: SHARD_BYTES, progress: &|_, _| Ok(()) }
    }
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// Tensors.
    pub n_tensors: usize,
    /// Their elements.
    pub n_parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Tensors of each element type, in the order of their first.
    pub types: Vec<(FileDType, usize)>,
    /// What the user should know: departures from what was asked.
    pub notes: Vec<String>,
}

impl Written {
    fn count(&mut self, dtype: FileDType, shape: &[usize]) -> Result<()> {
        let dims: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
        let bytes = dtype.tensor_bytes(&dims).map_err(|what| Error::Shape {
            op: format!("a tensor of type {dtype}"),
            expected: "a size that can be written".into(),
            got: what,
        })?;
        self.n_tensors += 1;
        self.n_parameters += dims.iter().product::<u64>();
        self.bytes += bytes;
        match self.types.iter_mut().find(|(known, _)| *known == dtype) {
            Some((_, n)) => *n += 1,
            None => self.types.push((dtype, 1)),
        }
        Ok(())
    }
}

/// Whether a name is one of those that [`write_hf`] writes: only a directory of such files is
/// replaced.
fn is_model_file(name: &str) -> bool {
    let weights = name.starts_with("model") && name.contains(".safetensors");
    weights || [CONFIG, GENERATION_CONFIG].contains(&name) || TOKENIZER_FILES.contains(&name)
}

/// Writes a Hugging Face directory, whole or not at all; all weights as `dtype` (F32, F16 or
/// BF16).
///
/// # Errors
/// [`Error::Io`], also where something is at `out` (unless it is a model's directory that is to be
/// overwritten); [`Error::Unsupported`] for what the format cannot say; what the source returns.
pub fn write_hf(
    out: &Path,
    source: &dyn WeightSource,
    extras: Extras<'_>,
    dtype: FileDType,
    options: &WriteOptions<'_>,
) -> Result<Written> {
    let staged = StagedDir::create(out, options.overwrite.then_some(is_model_file))?;
    let written = write_hf_files(staged.dir(), source, extras, dtype, options)?;
    staged.commit()?;
    Ok(written)
}

/// Writes the files of [`write_hf`] into a directory that is there, each whole or not at all.
///
/// # Errors
/// As [`write_hf`].
pub fn write_hf_files(
    dir: &Path,
    source: &dyn WeightSource,
    extras: Extras<'_>,
    dtype: FileDType,
    options: &WriteOptions<'_>,
) -> Result<Written> {
    let config = source.config();
    let config_text = format!("{:#}\n", config_json(extras.name, config, dtype)?);
    let text_files = text_files(extras)?;
    let weights: Vec<Weight> = config.weights().collect();
    let mut written = Written::default();
    let mut specs = Vec::with_capacity(weights.len());
    for &weight in &weights {
        let shape = config.shape(weight);
        written.count(dtype, &shape)?;
        specs.push(TensorSpec { name: weight.file_name(Layout::Hf), dtype, shape });
    }
    let mut file = ShardedWriter::start(dir, &specs, options.shard_bytes)?;
    let mut put = |bytes: &[u8]| file.write(bytes);
    let order = (dtype, RopePairing::Half);
    write_weights(source, &weights, &|_| order.0, order.1, &mut put, written.bytes, options)?;
    file.finish()?;
    for (name, bytes) in text_files {
        write_file(&dir.join(name), &bytes)?;
    }
    // Last, because a directory without it is no model.
    write_file(&dir.join(CONFIG), config_text.as_bytes())?;
    sync_dir(dir)?;
    Ok(written)
}

/// Names and contents of `generation_config.json` and the tokenizer's files.
fn text_files(extras: Extras<'_>) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![];
    let mut generation = None;
    match extras.text {
        TextSource::None => {}
        TextSource::Dir(dir) => {
            let read = |name: &str| match std::fs::read(dir.join(name)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(Error::io(dir.join(name), source)),
            };
            for name in TOKENIZER_FILES {
                files.extend(read(name)?.map(|bytes| (name.to_string(), bytes)));
            }
            generation = read(GENERATION_CONFIG)?;
        }
        TextSource::Gguf(checkpoint) => {
            if let Some(vocab) = gguf_vocab(checkpoint)? {
                let tokenizer = HfTokenizer::from_gguf(&vocab)?;
                let config = tokenizer.config(checkpoint.config.max_seq_len);
                files.push(("tokenizer.json".into(), tokenizer.json.into_bytes()));
                files.push(("tokenizer_config.json".into(), format!("{config:#}\n").into_bytes()));
            }
        }
    }
    let generation = generation
        .unwrap_or_else(|| format!("{:#}\n", generation_json(extras.generation)).into_bytes());
    files.push((GENERATION_CONFIG.into(), generation));
    Ok(files)
}

/// Writes a GGUF file, whole or not at all. Matrices get the type that `dtype` names, vectors F32;
/// a matrix whose rows are no whole number of blocks becomes Q8_0 or else F16, which the notes
/// say.
///
/// # Errors
/// [`Error::Io`], also where something is at `out` that is not to be overwritten;
/// [`Error::Unsupported`] for a RoPE scaling or a tokenizer that GGUF cannot express; what the
/// source returns.
pub fn write_gguf(
    out: &Path,
    source: &dyn WeightSource,
    extras: Extras<'_>,
    dtype: &dyn Fn(Weight) -> Result<FileDType>,
    options: &WriteOptions<'_>,
) -> Result<Written> {
    if !options.overwrite {
        refuse_existing(out)?;
    } else if out.is_dir() {
        let what = "is a directory, which a file does not replace";
        return Err(Error::io(out, std::io::Error::other(what)));
    }
    let config = source.config();
    if config.head != Head::Tokens {
        let what = "a reward model as GGUF; a Hugging Face directory can hold it";
        return Err(Error::Unsupported(format!("{}: {what}", extras.name.display())));
    }
    let mut writer = GgufWriter::new();
    let mut written = Written::default();
    let name = extras.name.file_stem().unwrap_or_default().to_string_lossy();
    let freqs = gguf_meta::describe(&mut writer, extras.name, config, &name)?;
    write_vocabulary(&mut writer, extras, config.vocab_size, &mut written.notes)?;

    let mut types = Vec::with_capacity(config.n_layers * 9 + 3);
    for weight in config.weights() {
        let shape = config.shape(weight);
        let asked = if shape.len() == 1 { FileDType::F32 } else { dtype(weight)? };
        types.push((weight, fitting(asked, &shape), asked));
    }
    note_departures(&types, &mut written.notes);
    if types.iter().any(|(_, dtype, _)| matches!(dtype, FileDType::Block(_))) {
        writer.meta("general.quantization_version", MetaValue::U32(2));
    }
    // Before the weights, where other readers look for it among the first tensors.
    if let Some(freqs) = &freqs {
        writer.tensor(GGUF_ROPE_FREQS, FileDType::F32, &[freqs.len()]);
    }
    for &(weight, dtype, _) in &types {
        let shape = config.shape(weight);
        written.count(dtype, &shape)?;
        writer.tensor(weight.file_name(Layout::Gguf), dtype, &shape);
    }
    let mut file = writer.start(out)?;
    if let Some(freqs) = &freqs {
        file.write(&freqs.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    let weights: Vec<Weight> = types.iter().map(|&(weight, ..)| weight).collect();
    let chosen = |i: usize| types[i].1;
    let pairing = RopePairing::Interleaved;
    let mut put = |bytes: &[u8]| file.write(bytes);
    write_weights(source, &weights, &chosen, pairing, &mut put, written.bytes, options)?;
    file.finish()?;
    Ok(written)
}

/// The type itself, or the next best whose blocks fit the rows.
fn fitting(asked: FileDType, shape: &[usize]) -> FileDType {
    let width = shape.last().copied().unwrap_or(1);
    let q8 = FileDType::Block(BlockType::Q8_0);
    match asked {
        FileDType::Block(_) if width.is_multiple_of(asked.block_len()) => asked,
        FileDType::Block(_) if width.is_multiple_of(q8.block_len()) => q8,
        FileDType::Block(_) => FileDType::F16,
        plain => plain,
    }
}

/// One note for each type that stands in for another.
fn note_departures(types: &[(Weight, FileDType, FileDType)], notes: &mut Vec<String>) {
    let mut seen: Vec<(FileDType, FileDType, usize)> = vec![];
    for &(_, dtype, asked) in types.iter().filter(|(_, dtype, asked)| dtype != asked) {
        match seen.iter_mut().find(|(d, a, _)| (*d, *a) == (dtype, asked)) {
            Some((.., n)) => *n += 1,
            None => seen.push((dtype, asked, 1)),
        }
    }
    for (dtype, asked, n) in seen {
        notes.push(format!(
            "{n} matrices are {dtype}: their rows are no multiple of {}, the block of {asked}",
            asked.block_len()
        ));
    }
}

fn write_vocabulary(
    writer: &mut GgufWriter,
    extras: Extras<'_>,
    vocab_size: usize,
    notes: &mut Vec<String>,
) -> Result<()> {
    let homeless = match extras.text {
        TextSource::None => gguf_meta::special_ids(writer, extras.generation, None),
        TextSource::Gguf(checkpoint) => {
            match &checkpoint.gguf {
                Some(metadata) => gguf_meta::copy_tokenizer(writer, metadata)?,
                None => drop(gguf_meta::special_ids(writer, extras.generation, None)),
            }
            0
        }
        TextSource::Dir(dir) => match GgufVocabBuf::from_hf_dir(dir, vocab_size)? {
            None => gguf_meta::special_ids(writer, extras.generation, None),
            Some(vocab) => {
                let view = vocab.view();
                gguf_meta::vocabulary(writer, &view);
                notes.extend(vocab.notes.iter().cloned());
                gguf_meta::special_ids(writer, extras.generation, Some(&view))
            }
        },
    };
    if homeless > 0 {
        notes.push(format!("GGUF names three tokens that end a sequence; {homeless} are left out"));
    }
    Ok(())
}

fn write_weights(
    source: &dyn WeightSource,
    weights: &[Weight],
    dtype: &dyn Fn(usize) -> FileDType,
    pairing: RopePairing,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
    total_bytes: u64,
    options: &WriteOptions<'_>,
) -> Result<()> {
    let mut done = 0u64;
    for (i, &weight) in weights.iter().enumerate() {
        encode_weight(source, weight, dtype(i), pairing, &mut |bytes| {
            put(bytes)?;
            done += bytes.len() as u64;
            (options.progress)(done, total_bytes)
        })?;
    }
    Ok(())
}
