//! A checkpoint on disk: configuration, tensor list and what its maker says about generation.
//!
//! Opening reads headers only and checks them completely: every weight that the configuration asks
//! for is there, with its shape, in an element type that is computed with. The weights themselves
//! are read when the model is built.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::gguf::{self, Metadata, keys};
use crate::format::hf_config::{HfConfig, HfGenerationConfig};
use crate::format::mmap::{Access, FileBytes};
use crate::format::{FileDType, TensorFile, TensorInfo, safetensors};

use super::builtin;
use super::config::{Config, Head};
pub use super::names::Layout;
use super::names::{GGUF_ROPE_FREQS, Weight};

/// Suggestions of the model's maker for sampling, and its special tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Keep this many of the likeliest tokens.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens up to this total probability.
    pub top_p: Option<f32>,
    /// Keep tokens of at least this share of the likeliest one's probability.
    pub min_p: Option<f32>,
    /// Penalty on tokens that occurred.
    pub repetition_penalty: Option<f32>,
    /// Sample, or take the likeliest token.
    pub do_sample: Option<bool>,
    /// Tokens that end a sequence.
    pub eos_ids: Vec<u32>,
    /// Begin of sequence.
    pub bos_id: Option<u32>,
}

/// An opened checkpoint. Its [`Config`] and its weights agree.
#[derive(Debug)]
pub struct Checkpoint {
    /// The directory or file as it was given.
    pub path: PathBuf,
    /// The validated configuration.
    pub config: Config,
    /// The tensors.
    pub files: Arc<TensorFile>,
    /// Who names and orders them.
    pub layout: Layout,
    /// Suggestions for generation.
    pub generation: GenerationDefaults,
    /// GGUF metadata; `None` for a directory.
    pub gguf: Option<Metadata>,
}

/// The tokenizer inside a GGUF file, as plain values that borrow from the file. Absent keys are
/// `None`. Lists have one element per token.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTokenizer<'a> {
    /// `llama` (SentencePiece) or `gpt2` (byte-level BPE).
    pub model: &'a str,
    /// Name of the pre-tokenizer.
    pub pre: Option<&'a str>,
    /// Texts, by id.
    pub tokens: Vec<&'a str>,
    /// Scores, by id.
    pub scores: Option<Vec<f32>>,
    /// Types, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// Merges, in order of rank: two texts with a space between.
    pub merges: Option<Vec<&'a str>>,
    /// Begin of sequence.
    pub bos_id: Option<u32>,
    /// End of sequence.
    pub eos_id: Option<u32>,
    /// End of turn.
    pub eot_id: Option<u32>,
    /// Unknown token.
    pub unk_id: Option<u32>,
    /// Padding.
    pub pad_id: Option<u32>,
    /// Whether a sequence begins with BOS.
    pub add_bos: Option<bool>,
    /// Whether a sequence ends with EOS.
    pub add_eos: Option<bool>,
    /// Whether a space is put before the text.
    pub add_space_prefix: Option<bool>,
    /// Chat template in Jinja.
    pub chat_template: Option<&'a str>,
}

impl Checkpoint {
    /// Opens a Hugging Face directory or a GGUF file, mapping its weights, or the built-in model.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], [`Error::Config`], [`Error::Unsupported`]: a path that is
    /// neither, pickled weights, and whatever the formats forbid or the configuration contradicts.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Checkpoint::open_with(path, Access::Map)
    }

    /// As [`Checkpoint::open`], with a choice between mapping and copying; see [`Access`].
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_with(path: &Path, access: Access) -> Result<Checkpoint> {
        if builtin::is_builtin(path) {
            let bytes = FileBytes::of_program(builtin::NAME, builtin::GGUF);
            let checkpoint = of_gguf(path, gguf::read(bytes)?)?;
            checkpoint.check_weights()?;
            return Ok(checkpoint);
        }
        let found = std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
        let checkpoint = match found.is_dir() {
            true => open_dir(path, access)?,
            false => open_file(path, access)?,
        };
        checkpoint.check_weights()?;
        Ok(checkpoint)
    }

    /// The tensor of a weight, with the shape that the configuration asks for, in a computable
    /// type. For tied embeddings, [`Weight::LmHead`] is the embeddings' tensor.
    ///
    /// # Errors
    /// [`Error::Format`] for a missing tensor or another shape (biases included: ask for those
    /// with [`Checkpoint::weight_opt`]), [`Error::Unsupported`] for the element type.
    pub fn weight(&self, weight: Weight) -> Result<&TensorInfo> {
        let stored = match weight {
            Weight::LmHead if self.config.tie_embeddings => Weight::TokEmb,
            weight => weight,
        };
        let name = stored.file_name(self.layout);
        let tensor = self.files.get(&name).ok_or_else(|| {
            Error::format(&self.path, format!("tensor {name} ({weight}) is missing"))
        })?;
        let wanted = self.shape(stored);
        let fault = |what: String| {
            Error::format_at(
                self.files.path_of(tensor),
                tensor.offset,
                format!("tensor {name} ({weight}): {what}"),
            )
        };
        if tensor.shape != wanted {
            return Err(fault(format!("shape {:?}, wanted {wanted:?}", tensor.shape)));
        }
        match tensor.dtype {
            FileDType::Other(dtype) => Err(Error::Unsupported(format!(
                "{}: tensor {name} has element type {dtype}, wanted F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, \
                 Q8_0, Q2_K, Q3_K, Q4_K, Q5_K or Q6_K",
                self.files.path_of(tensor).display()
            ))),
            FileDType::Block(_) if wanted.len() == 1 => Err(fault(format!(
                "element type {}, wanted plain numbers for a vector",
                tensor.dtype
            ))),
            _ => Ok(tensor),
        }
    }

    /// As [`Checkpoint::weight`], but `None` for a bias or a head that the model does not have.
    ///
    /// # Errors
    /// As [`Checkpoint::weight`].
    pub fn weight_opt(&self, weight: Weight) -> Result<Option<&TensorInfo>> {
        let absent = match weight {
            Weight::Block(_, w) if w.is_attention_bias() => !self.config.attention_bias,
            Weight::Block(_, w) if w.is_mlp_bias() => !self.config.mlp_bias,
            Weight::LmHead => self.config.head != Head::Tokens,
            Weight::Score => self.config.head != Head::Score,
            _ => return self.weight(weight).map(Some),
        };
        // In GGUF each bias stands alone: a file may have them for Q, K and V only.
        let stands_alone = self.layout == Layout::Gguf && matches!(weight, Weight::Block(..));
        if absent || (stands_alone && self.files.get(&weight.file_name(self.layout)).is_none()) {
            return Ok(None);
        }
        self.weight(weight).map(Some)
    }

    /// The shape that the configuration gives a weight, outermost first.
    pub fn shape(&self, weight: Weight) -> Vec<usize> {
        self.config.shape(weight)
    }

    /// The tokenizer of a GGUF file; `None` for a directory or a file without one.
    ///
    /// # Errors
    /// [`Error::Format`] for a value of the wrong type or a list of another length than the tokens.
    pub fn gguf_tokenizer(&self) -> Result<Option<GgufTokenizer<'_>>> {
        let Some(meta) = &self.gguf else { return Ok(None) };
        let (Some(model), Some(tokens)) =
            (meta.str(keys::TOKENIZER_MODEL)?, meta.strings(keys::TOKENS)?)
        else {
            return Ok(None);
        };
        Ok(Some(GgufTokenizer {
            model,
            pre: meta.str(keys::TOKENIZER_PRE)?,
            scores: meta.f32s(keys::SCORES)?,
            token_types: meta.i32s(keys::TOKEN_TYPES)?,
            merges: meta.strings(keys::MERGES)?,
            bos_id: token_id(meta, keys::BOS_ID, tokens.len())?,
            eos_id: token_id(meta, keys::EOS_ID, tokens.len())?,
            eot_id: token_id(meta, keys::EOT_ID, tokens.len())?,
            unk_id: token_id(meta, keys::UNK_ID, tokens.len())?,
            pad_id: token_id(meta, keys::PAD_ID, tokens.len())?,
            add_bos: meta.bool(keys::ADD_BOS)?,
            add_eos: meta.bool(keys::ADD_EOS)?,
            add_space_prefix: meta.bool(keys::ADD_SPACE_PREFIX)?,
            chat_template: meta.str(keys::CHAT_TEMPLATE)?,
            tokens,
        }))
    }

    fn check_weights(&self) -> Result<()> {
        for weight in Weight::all(self.config.n_layers) {
            self.weight_opt(weight)?;
        }
        if self.layout == Layout::Hf {
            // Like transformers, which leaves tensors alone that its model does not name.
            return Ok(());
        }
        // A GGUF tensor that we would not read (a norm on Q and K, a layer too many) would change
        // the result, so its file is not the model that its metadata describes.
        let known: std::collections::HashSet<String> = Weight::all(self.config.n_layers)
            .filter(|weight| *weight != Weight::Score)
            .map(|weight| weight.file_name(self.layout))
            .collect();
        let harmless = |name: &str| {
            name == GGUF_ROPE_FREQS
                || name.ends_with(".rope_freqs")
                || name.ends_with(".attn_rot_embd")
        };
        match self.files.tensors().iter().find(|t| !known.contains(&t.name) && !harmless(&t.name)) {
            Some(tensor) => Err(Error::Unsupported(format!(
                "{}: tensor {} is not part of a LLaMA of {} blocks",
                self.path.display(),
                tensor.name,
                self.config.n_layers
            ))),
            None => Ok(()),
        }
    }
}

fn open_dir(dir: &Path, access: Access) -> Result<Checkpoint> {
    let config_path = dir.join("config.json");
    let entries = std::fs::read_dir(dir).map_err(|source| Error::io(dir, source))?;
    let names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    let ending_in =
        |ends: &[&str]| names.iter().find(|name| ends.iter().any(|end| name.ends_with(end)));
    if !config_path.is_file() {
        let hint = match ending_in(&[".gguf"]) {
            Some(gguf) => format!("; to use {gguf}, name the file itself"),
            None => String::new(),
        };
        return Err(Error::format(dir, format!("no config.json in this directory{hint}")));
    }
    let has = |name: &str| names.iter().any(|n| n == name);
    if !has(safetensors::INDEX_NAME) && !has(safetensors::SINGLE_NAME) {
        return Err(match ending_in(&[".bin", ".pt", ".pth", ".ckpt", ".pkl"]) {
            Some(pickle) => pickle_refused(&dir.join(pickle)),
            None => Error::format(
                dir,
                format!(
                    "neither {} nor {} in this directory",
                    safetensors::SINGLE_NAME,
                    safetensors::INDEX_NAME
                ),
            ),
        });
    }
    let config = Config::from_hf(&HfConfig::read(&config_path)?)?;
    let generation_path = dir.join("generation_config.json");
    let suggested = match generation_path.is_file() {
        true => HfGenerationConfig::read(&generation_path)?,
        false => HfGenerationConfig::default(),
    };
    let generation = generation_defaults(&generation_path, suggested, &config)?;
    let files = safetensors::open_dir(dir, access)?;
    let layout = Layout::Hf;
    let files = Arc::new(files);
    Ok(Checkpoint { path: dir.to_path_buf(), config, files, layout, generation, gguf: None })
}

/// What `generation_config.json` says, completed by `config.json`.
fn generation_defaults(
    path: &Path,
    hf: HfGenerationConfig,
    config: &Config,
) -> Result<GenerationDefaults> {
    let number = |key: &str, value: Option<f64>, most: f64| match value {
        Some(v) if !(0.0..=most).contains(&v) => {
            let field = format!("{}: {key}", path.display());
            Err(Error::config(field, v, format!("wanted a number from 0 to {most}")))
        }
        value => Ok(value.map(|v| v as f32)),
    };
    for &id in hf.eos_token_ids.iter().chain(&hf.bos_token_id) {
        if id as usize >= config.vocab_size {
            let field = format!("{}: bos_token_id or eos_token_id", path.display());
            return Err(Error::config(
                field,
                id,
                format!("wanted less than {}", config.vocab_size),
            ));
        }
    }
    let eos_ids =
        if hf.eos_token_ids.is_empty() { config.eos_ids.clone() } else { hf.eos_token_ids };
    Ok(GenerationDefaults {
        temperature: number("temperature", hf.temperature, f64::from(f32::MAX))?,
        top_k: hf.top_k,
        top_p: number("top_p", hf.top_p, 1.0)?,
        min_p: number("min_p", hf.min_p, 1.0)?,
        repetition_penalty: number(
            "repetition_penalty",
            hf.repetition_penalty,
            f64::from(f32::MAX),
        )?,
        do_sample: hf.do_sample,
        eos_ids,
        bos_id: hf.bos_token_id.or(config.bos_id),
    })
}

fn open_file(path: &Path, access: Access) -> Result<Checkpoint> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some("gguf") => {}
        Some("bin" | "pt" | "pth" | "ckpt" | "pkl") => return Err(pickle_refused(path)),
        Some("safetensors") => {
            return Err(Error::format(
                path,
                "weights without a config; name the directory that holds both",
            ));
        }
        _ => {
            return Err(Error::format(
                path,
                "not a model: wanted a .gguf file or a directory with config.json",
            ));
        }
    }
    of_gguf(path, gguf::open(path, access)?)
}

fn of_gguf(path: &Path, gguf: gguf::Gguf) -> Result<Checkpoint> {
    let gguf::Gguf { metadata, tensors: files, .. } = gguf;
    let mut config = Config::from_gguf(&metadata, &files)?;
    config.rope.freq_factors = freq_factors(path, &files, config.rope.dim)?;
    check_token_lists(&metadata, config.vocab_size)?;
    let generation = GenerationDefaults {
        eos_ids: config.eos_ids.clone(),
        bos_id: config.bos_id,
        ..GenerationDefaults::default()
    };
    let layout = Layout::Gguf;
    Ok(Checkpoint {
        path: path.to_path_buf(),
        config,
        files: Arc::new(files),
        layout,
        generation,
        gguf: Some(metadata),
    })
}

fn freq_factors(path: &Path, files: &TensorFile, rope_dim: usize) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = files.get(GGUF_ROPE_FREQS) else { return Ok(None) };
    let fault =
        |what: String| Error::format_at(path, tensor.offset, format!("{GGUF_ROPE_FREQS}: {what}"));
    if tensor.dtype != FileDType::F32 || tensor.shape != [rope_dim / 2] {
        let found = format!("{} of shape {:?}", tensor.dtype, tensor.shape);
        return Err(fault(format!("{found}, wanted F32 of [{}]", rope_dim / 2)));
    }
    let mut bytes = vec![0; tensor.len];
    files.read_at(tensor, 0, &mut bytes)?;
    let (chunks, _) = bytes.as_chunks::<4>();
    let factors: Vec<f32> = chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
    match factors.iter().find(|factor| !factor.is_normal() || **factor <= 0.0) {
        Some(factor) => Err(fault(format!("factor {factor}, wanted finite numbers above 0"))),
        None => Ok(Some(factors)),
    }
}

/// Lists by token must be as long as the vocabulary, and special ids inside it. Reads counts only.
fn check_token_lists(meta: &Metadata, vocab_size: usize) -> Result<()> {
    for key in [keys::TOKENS, keys::SCORES, keys::TOKEN_TYPES] {
        if let Some(n) = meta.array_len(key)?.filter(|&n| n != vocab_size) {
            let what = format!("{key} has {n} elements, wanted {vocab_size}, one a token");
            return Err(Error::format(meta.path(), what));
        }
    }
    for key in [keys::BOS_ID, keys::EOS_ID, keys::EOT_ID, keys::EOM_ID, keys::UNK_ID, keys::PAD_ID]
    {
        token_id(meta, key, vocab_size)?;
    }
    Ok(())
}

fn token_id(meta: &Metadata, key: &str, vocab_size: usize) -> Result<Option<u32>> {
    match meta.u64(key)? {
        None => Ok(None),
        Some(id) if id < vocab_size as u64 && u32::try_from(id).is_ok() => Ok(Some(id as u32)),
        Some(id) => {
            let what = format!("{key} is {id}, wanted less than the vocabulary's {vocab_size}");
            Err(Error::format(meta.path(), what))
        }
    }
}

fn pickle_refused(path: &Path) -> Error {
    Error::Unsupported(format!(
        "{}: pickled weights can run code when read and are never opened; save them as safetensors",
        path.display()
    ))
}

#[cfg(test)]
mod tests;
