//! The model's configuration: sizes, RoPE, norms and special tokens, validated.
//!
//! A [`Config`] that exists is consistent: sizes are positive and divide, numbers are finite, token
//! ids are inside the vocabulary. It is made from `config.json` or from GGUF metadata; whatever
//! either asks for that Puna does not compute is refused by name.

use std::path::Path;

use crate::error::{Error, Result};
use crate::format::TensorFile;
use crate::format::gguf::{Metadata, keys};
use crate::format::hf_config::{Given, HfConfig, HfRope};

use super::names::{BlockWeight, Layout, Weight};
use super::rope::Yarn;

/// Which dimensions of a head RoPE turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// Neighbours: `2 i` with `2 i + 1` (GGUF).
    Interleaved,
    /// Halves: `i` with `i + dim / 2` (Hugging Face).
    Half,
}

/// How RoPE is stretched to contexts longer than those of the first training.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// The base grows with the sequence once it is longer than the context.
    Dynamic {
        /// Growth per context.
        factor: f64,
        /// The length from which on it grows.
        max_seq_len: usize,
    },
    /// YaRN.
    Yarn(Yarn),
    /// Llama 3.1: low frequencies divided, high ones kept, a blend between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_seq_len` / this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_seq_len` / this are high frequencies.
        high_freq_factor: f64,
        /// Context of the first training.
        original_max_seq_len: usize,
    },
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Dimensions of a head that turn; equal to `head_dim`.
    pub dim: usize,
    /// Which of them turn together, in the order in which the *file* stores Q and K.
    pub pairing: RopePairing,
    /// Stretching.
    pub scaling: RopeScaling,
    /// Divisors of the frequencies, `[dim / 2]` (GGUF's `rope_freqs.weight`).
    pub freq_factors: Option<Vec<f32>>,
}

/// What a model computes from the last norm's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Head {
    /// Logits of the next token.
    #[default]
    Tokens,
    /// One number: a reward model.
    Score,
}

/// Everything about a model but its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Residual width.
    pub dim: usize,
    /// Inner width of the feed-forward.
    pub hidden_dim: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Longest context that the model was made for.
    pub max_seq_len: usize,
    /// Vocabulary.
    pub vocab_size: usize,
    /// RMSNorm epsilon.
    pub norm_eps: f32,
    /// Whether the embeddings are also the output projection.
    pub tie_embeddings: bool,
    /// What the head computes.
    pub head: Head,
    /// Whether attention's projections have biases (in GGUF: whether any of them has one).
    pub attention_bias: bool,
    /// The same for the feed-forward.
    pub mlp_bias: bool,
    /// RoPE.
    pub rope: RopeConfig,
    /// A position sees this many positions, itself included; `None`: all before it.
    pub sliding_window: Option<usize>,
    /// Begin of sequence.
    pub bos_id: Option<u32>,
    /// Tokens that end a sequence.
    pub eos_ids: Vec<u32>,
}

/// Largest size accepted for one axis or count: far above any model, far below overflow.
const MAX_SIZE: usize = 1 << 31;

/// The head that `architectures` names.
fn hf_head(source: &Source<'_>, hf: &HfConfig) -> Result<Head> {
    if !hf.architectures.iter().any(|name| name.ends_with("ForSequenceClassification")) {
        return Ok(Head::Tokens);
    }
    match hf.num_labels {
        Some(1) => Ok(Head::Score),
        // The library's default.
        None => Err(source.bad("num_labels", 2, "wanted 1 label: a reward model")),
        Some(n) => Err(source.bad("num_labels", n, "wanted 1 label: a reward model")),
    }
}

/// Names the file and the keys in messages about one configuration.
struct Source<'a> {
    path: &'a Path,
    layout: Layout,
}

impl Source<'_> {
    fn bad(&self, key: &str, value: impl std::fmt::Display, wanted: impl Into<String>) -> Error {
        Error::config(format!("{}: {key}", self.path.display()), value, wanted)
    }

    fn missing(&self, key: &str) -> Error {
        Error::format(self.path, format!("{key} is missing"))
    }

    fn unsupported(&self, what: String) -> Error {
        Error::Unsupported(format!("{}: {what}", self.path.display()))
    }

    /// A number that stays finite and above zero as f32.
    fn positive(&self, key: &str, value: f64) -> Result<f64> {
        match (value as f32).is_normal() && value > 0.0 {
            true => Ok(value),
            false => Err(self.bad(key, value, "wanted a finite number above 0")),
        }
    }

    /// The key of a size in this layout.
    fn key(&self, hf: &'static str, gguf: &'static str) -> &'static str {
        match self.layout {
            Layout::Hf => hf,
            Layout::Gguf => gguf,
        }
    }
}

impl Config {
    /// The configuration that `config.json` describes.
    ///
    /// # Errors
    /// [`Error::Config`] naming file, key, value and what was wanted; [`Error::Unsupported`] for an
    /// activation, quantisation or RoPE type that Puna does not compute.
    pub fn from_hf(hf: &HfConfig) -> Result<Config> {
        let source = Source { path: &hf.path, layout: Layout::Hf };
        let mistral = hf.model_type.as_deref() == Some("mistral")
            || (hf.model_type.is_none()
                && hf.architectures.iter().any(|a| a.starts_with("Mistral")));
        match hf.hidden_act.as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => {
                return Err(source.unsupported(format!("hidden_act {other:?}, wanted \"silu\"")));
            }
        }
        if let Some(method) = &hf.quant_method {
            return Err(source.unsupported(format!(
                "quantization_config with quant_method {method:?}, wanted weights in F32, F16 or BF16"
            )));
        }
        if let Some(partial) = hf.rope.partial_rotary_factor.filter(|&factor| factor != 1.0) {
            return Err(source.unsupported(format!("partial_rotary_factor {partial}, wanted 1")));
        }
        // Defaults of absent keys are those of the library's LlamaConfig and MistralConfig.
        let n_kv_heads =
            hf.num_key_value_heads.unwrap_or(if mistral { 8 } else { hf.num_attention_heads });
        let max_seq_len =
            hf.max_position_embeddings.unwrap_or(if mistral { 131_072 } else { 2048 });
        // The window is Mistral's own: LLaMA's code never reads the key.
        let sliding_window = match hf.sliding_window {
            Given::Value(n) if mistral => Some(n),
            Given::Absent if mistral => Some(4096),
            _ => None,
        };
        let head_dim = match hf.head_dim {
            Some(n) => n,
            None => default_head_dim(&source, hf.hidden_size, hf.num_attention_heads)?,
        };
        Config {
            dim: hf.hidden_size,
            hidden_dim: hf.intermediate_size,
            n_layers: hf.num_hidden_layers,
            n_heads: hf.num_attention_heads,
            n_kv_heads,
            head_dim,
            max_seq_len,
            vocab_size: hf.vocab_size,
            norm_eps: source.positive("rms_norm_eps", hf.rms_norm_eps.unwrap_or(1e-6))? as f32,
            tie_embeddings: hf.tie_word_embeddings.unwrap_or(false),
            head: hf_head(&source, hf)?,
            attention_bias: !mistral && hf.attention_bias.unwrap_or(false),
            mlp_bias: !mistral && hf.mlp_bias.unwrap_or(false),
            rope: RopeConfig {
                theta: source.positive("rope_theta", hf.rope.rope_theta.unwrap_or(10_000.0))?,
                dim: head_dim,
                pairing: RopePairing::Half,
                scaling: hf_scaling(&source, &hf.rope, max_seq_len)?,
                freq_factors: None,
            },
            sliding_window,
            bos_id: hf.bos_token_id,
            eos_ids: hf.eos_token_ids.clone(),
        }
        .validated(&source)
    }

    /// The configuration that a GGUF file's metadata and tensor list describe. The values of
    /// `rope_freqs.weight` are data, not header; the caller puts them into `rope.freq_factors`.
    ///
    /// # Errors
    /// As [`Config::from_hf`]; another `general.architecture` is refused by its name.
    pub fn from_gguf(meta: &Metadata, tensors: &TensorFile) -> Result<Config> {
        let source = Source { path: meta.path(), layout: Layout::Gguf };
        match meta.str(keys::ARCHITECTURE)? {
            Some(keys::LLAMA) => {}
            Some(other) => {
                return Err(source
                    .unsupported(format!("{} {other:?}, wanted \"llama\"", keys::ARCHITECTURE)));
            }
            None => return Err(source.missing(keys::ARCHITECTURE)),
        }
        for (key, neutral) in keys::NEUTRAL {
            if let Some(value) = meta.f64(key)?.filter(|&value| value != neutral) {
                return Err(
                    source.unsupported(format!("{key} {value}, wanted {neutral} or no such key"))
                );
            }
        }
        let size = |key: &str| match meta.u64(key)? {
            Some(n) => {
                usize::try_from(n).map(Some).map_err(|_| source.bad(key, n, "wanted a size"))
            }
            None => Ok(None),
        };
        let needed = |key: &str| size(key)?.ok_or_else(|| source.missing(key));

        let (dim, n_heads) = (needed(keys::DIM)?, needed(keys::N_HEADS)?);
        let head_dim = match size(keys::KEY_LENGTH)? {
            Some(n) => n,
            None => default_head_dim(&source, dim, n_heads)?,
        };
        if let Some(other) = size(keys::VALUE_LENGTH)?.filter(|&n| n != head_dim) {
            return Err(source.bad(
                keys::VALUE_LENGTH,
                other,
                format!("wanted the key length, {head_dim}"),
            ));
        }
        let max_seq_len = needed(keys::MAX_SEQ_LEN)?;
        let norm_eps = meta.f64(keys::NORM_EPS)?.ok_or_else(|| source.missing(keys::NORM_EPS))?;
        let theta = meta.f64(keys::ROPE_THETA)?.unwrap_or(10_000.0);
        let n_layers = needed(keys::N_LAYERS)?;
        let id = |key: &str| match meta.u64(key)? {
            Some(n) => {
                u32::try_from(n).map(Some).map_err(|_| source.bad(key, n, "wanted a token id"))
            }
            None => Ok(None),
        };
        let mut eos_ids = Vec::new();
        for key in [keys::EOS_ID, keys::EOT_ID, keys::EOM_ID] {
            eos_ids.extend(id(key)?.filter(|id| !eos_ids.contains(id)));
        }
        let any_bias = |wanted: fn(BlockWeight) -> bool| {
            let mut names =
                Weight::all(1).filter(|weight| matches!(weight, Weight::Block(_, w) if wanted(*w)));
            names.any(|weight| tensors.get(&weight.file_name(Layout::Gguf)).is_some())
        };
        Config {
            dim,
            hidden_dim: needed(keys::HIDDEN_DIM)?,
            n_layers,
            n_heads,
            n_kv_heads: size(keys::N_KV_HEADS)?.unwrap_or(n_heads),
            head_dim,
            max_seq_len,
            vocab_size: gguf_vocab_size(&source, meta, tensors)?,
            norm_eps: source.positive(keys::NORM_EPS, norm_eps)? as f32,
            tie_embeddings: tensors.get(&Weight::LmHead.file_name(Layout::Gguf)).is_none(),
            head: Head::Tokens,
            attention_bias: any_bias(BlockWeight::is_attention_bias),
            mlp_bias: any_bias(BlockWeight::is_mlp_bias),
            rope: RopeConfig {
                theta: source.positive(keys::ROPE_THETA, theta)?,
                dim: size(keys::ROPE_DIM)?.unwrap_or(head_dim),
                pairing: RopePairing::Interleaved,
                scaling: gguf_scaling(&source, meta, max_seq_len)?,
                freq_factors: None,
            },
            sliding_window: size(keys::SLIDING_WINDOW)?.filter(|&n| n != 0),
            bos_id: id(keys::BOS_ID)?,
            eos_ids,
        }
        .validated(&source)
    }

    /// Checks what holds in either layout, naming the layout's own keys.
    fn validated(self, source: &Source) -> Result<Config> {
        let heads_key = source.key("num_attention_heads", keys::N_HEADS);
        let kv_key = source.key("num_key_value_heads", keys::N_KV_HEADS);
        let head_dim_key = source.key("head_dim", keys::KEY_LENGTH);
        for (key, n) in [
            (source.key("hidden_size", keys::DIM), self.dim),
            (source.key("intermediate_size", keys::HIDDEN_DIM), self.hidden_dim),
            (source.key("num_hidden_layers", keys::N_LAYERS), self.n_layers),
            (heads_key, self.n_heads),
            (kv_key, self.n_kv_heads),
            (head_dim_key, self.head_dim),
            (source.key("max_position_embeddings", keys::MAX_SEQ_LEN), self.max_seq_len),
            (source.key("vocab_size", keys::TOKENS), self.vocab_size),
            (source.key("sliding_window", keys::SLIDING_WINDOW), self.sliding_window.unwrap_or(1)),
        ] {
            if !(1..=MAX_SIZE).contains(&n) {
                return Err(source.bad(key, n, format!("wanted 1 to {MAX_SIZE}")));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let wanted = format!("wanted a divisor of the {} query heads", self.n_heads);
            return Err(source.bad(kv_key, self.n_kv_heads, wanted));
        }
        let rows = (self.n_heads as u64).checked_mul(self.head_dim as u64);
        if rows.is_none_or(|rows| rows > MAX_SIZE as u64) {
            let wanted = format!("wanted at most {MAX_SIZE} rows over {} heads", self.n_heads);
            return Err(source.bad(head_dim_key, self.head_dim, wanted));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(source.bad(
                head_dim_key,
                self.head_dim,
                "wanted an even number, RoPE turns pairs",
            ));
        }
        if self.rope.dim != self.head_dim {
            let wanted = format!("wanted the head's width, {}", self.head_dim);
            return Err(source.bad(keys::ROPE_DIM, self.rope.dim, wanted));
        }
        if self.rope.theta <= 1.0 {
            let key = source.key("rope_theta", keys::ROPE_THETA);
            return Err(source.bad(key, self.rope.theta, "wanted a number above 1"));
        }
        let bos = self.bos_id.map(|id| (source.key("bos_token_id", keys::BOS_ID), id));
        let eos = self.eos_ids.iter().map(|&id| (source.key("eos_token_id", keys::EOS_ID), id));
        for (key, id) in bos.into_iter().chain(eos) {
            if id as usize >= self.vocab_size {
                return Err(source.bad(
                    key,
                    id,
                    format!("wanted less than the vocabulary's {}", self.vocab_size),
                ));
            }
        }
        Ok(self)
    }
}

/// `dim / n_heads`, where the file does not state the heads' width.
fn default_head_dim(source: &Source, dim: usize, n_heads: usize) -> Result<usize> {
    match dim.checked_rem(n_heads) {
        Some(0) => Ok(dim / n_heads),
        _ => {
            let key = source.key("num_attention_heads", keys::N_HEADS);
            Err(source.bad(
                key,
                n_heads,
                format!("wanted a divisor of the width {dim}, or an explicit head width"),
            ))
        }
    }
}

/// All of the token list, the explicit size and the embedding's rows that exist must agree.
fn gguf_vocab_size(source: &Source, meta: &Metadata, tensors: &TensorFile) -> Result<usize> {
    let embeddings = Weight::TokEmb.file_name(Layout::Gguf);
    let rows = tensors.get(&embeddings).ok_or_else(|| source.missing(&embeddings))?.shape[0];
    let stated = meta.u64(keys::VOCAB_SIZE)?.map(|n| (keys::VOCAB_SIZE, n));
    let tokens = meta.array_len(keys::TOKENS)?.map(|n| (keys::TOKENS, n as u64));
    for (key, n) in [stated, tokens].into_iter().flatten() {
        if n != rows as u64 {
            return Err(source.bad(
                key,
                n,
                format!("wanted as many as {embeddings} has rows, {rows}"),
            ));
        }
    }
    Ok(rows)
}

fn hf_scaling(source: &Source, rope: &HfRope, max_seq_len: usize) -> Result<RopeScaling> {
    let given = |key: &str, value: Option<f64>| match value {
        Some(value) => source.positive(&format!("rope {key}"), value),
        None => {
            Err(source.missing(&format!("rope {key} (needed by rope_type {:?})", rope.rope_type)))
        }
    };
    let optional = |key: &str, value: Option<f64>| value.map(|_| given(key, value)).transpose();
    let original_max_seq_len = rope.original_max_position_embeddings.unwrap_or(max_seq_len);
    if !(1..=MAX_SIZE).contains(&original_max_seq_len) {
        let key = "original_max_position_embeddings";
        return Err(source.bad(key, original_max_seq_len, format!("wanted 1 to {MAX_SIZE}")));
    }
    match rope.rope_type.as_str() {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: given("factor", rope.factor)? }),
        "dynamic" => {
            Ok(RopeScaling::Dynamic { factor: given("factor", rope.factor)?, max_seq_len })
        }
        "yarn" => {
            let ratio = max_seq_len as f64 / original_max_seq_len as f64;
            let weight = |key: &str, value: Option<f64>| match value {
                Some(value) if !value.is_finite() || value < 0.0 => {
                    Err(source.bad(key, value, "wanted a finite number of at least 0"))
                }
                value => Ok(value),
            };
            // Zero means the default for the betas and no weight for the mscales, as in transformers.
            let beta = |key: &str, value: Option<f64>, default: f64| {
                optional(key, value.filter(|&v| v != 0.0)).map(|value| value.unwrap_or(default))
            };
            Ok(RopeScaling::Yarn(Yarn {
                factor: given("factor", rope.factor.or(Some(ratio)))?,
                original_max_seq_len,
                attention_factor: optional("attention_factor", rope.attention_factor)?,
                beta_fast: beta("beta_fast", rope.beta_fast, 32.0)?,
                beta_slow: beta("beta_slow", rope.beta_slow, 1.0)?,
                mscale: weight("mscale", rope.mscale)?,
                mscale_all_dim: weight("mscale_all_dim", rope.mscale_all_dim)?,
                truncate: rope.truncate.unwrap_or(true),
            }))
        }
        "llama3" => {
            let low_freq_factor = given("low_freq_factor", rope.low_freq_factor)?;
            let high_freq_factor = given("high_freq_factor", rope.high_freq_factor)?;
            if high_freq_factor <= low_freq_factor {
                let wanted = format!("wanted more than low_freq_factor, {low_freq_factor}");
                return Err(source.bad("rope high_freq_factor", high_freq_factor, wanted));
            }
            let factor = given("factor", rope.factor)?;
            Ok(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_seq_len,
            })
        }
        other => Err(source.unsupported(format!(
            "rope_type {other:?}, wanted default, linear, dynamic, yarn or llama3"
        ))),
    }
}

fn gguf_scaling(source: &Source, meta: &Metadata, max_seq_len: usize) -> Result<RopeScaling> {
    let number = |key: &str| match meta.f64(key)? {
        // Zero stands for "not set" in llama.cpp's keys.
        Some(value) if value != 0.0 => source.positive(key, value).map(Some),
        _ => Ok(None),
    };
    let factor = match number(keys::ROPE_SCALING_FACTOR)? {
        Some(factor) => Some(factor),
        None => number(keys::ROPE_SCALE_LINEAR)?,
    };
    // A factor without a type means linear.
    match (meta.str(keys::ROPE_SCALING_TYPE)?, factor) {
        (Some("none"), _) | (None | Some("linear"), None) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
        (Some("yarn"), factor) => {
            let factor = factor.ok_or_else(|| source.missing(keys::ROPE_SCALING_FACTOR))?;
            if let Some(share) = number(keys::ROPE_YARN_EXT_FACTOR)?.filter(|&share| share != 1.0) {
                return Err(
                    source.unsupported(format!("{} {share}, wanted 1", keys::ROPE_YARN_EXT_FACTOR))
                );
            }
            let original = match meta.u64(keys::ROPE_ORIGINAL_CONTEXT)? {
                Some(n) if (1..=MAX_SIZE as u64).contains(&n) => n as usize,
                Some(n) => {
                    return Err(source.bad(keys::ROPE_ORIGINAL_CONTEXT, n, "wanted a length"));
                }
                None => max_seq_len,
            };
            let on_top = match number(keys::ROPE_YARN_ATTN_FACTOR)? {
                Some(value) => Some(value),
                None => number(keys::ROPE_ATTN_FACTOR)?,
            };
            let mut yarn = Yarn {
                factor,
                original_max_seq_len: original,
                attention_factor: None,
                beta_fast: number(keys::ROPE_YARN_BETA_FAST)?.unwrap_or(32.0),
                beta_slow: number(keys::ROPE_YARN_BETA_SLOW)?.unwrap_or(1.0),
                mscale: None,
                mscale_all_dim: None,
                truncate: true,
            };
            // GGUF's factor multiplies the usual scale; Hugging Face's replaces it.
            yarn.attention_factor = on_top.map(|factor| factor * yarn.attention_scale());
            Ok(RopeScaling::Yarn(yarn))
        }
        (Some(other), _) => {
            let what =
                format!("{} {other:?}, wanted none, linear or yarn", keys::ROPE_SCALING_TYPE);
            Err(source.unsupported(what))
        }
    }
}

#[cfg(test)]
mod tests;
