//! The metadata of a model as GGUF states it.

use std::path::Path;

use crate::error::{Error, Result};
use crate::format::gguf::{GgufWriter, MetaValue, Metadata, Value, keys};
use crate::model::checkpoint::GenerationDefaults;
use crate::model::config::{Config, RopeScaling};
use crate::model::rope::{Yarn, freq_factors};
use crate::text::GgufVocab;

/// Puts a configuration into the metadata. What comes back is the part that GGUF keeps in a tensor:
/// the divisors of the RoPE frequencies, where there are any.
///
/// # Errors
/// [`Error::Unsupported`] for a RoPE scaling that GGUF has no words for. `path` names the model.
pub(super) fn describe(
    writer: &mut GgufWriter,
    path: &Path,
    config: &Config,
    name: &str,
) -> Result<Option<Vec<f32>>> {
    let c = config;
    let size = |key: &'static str, n: usize| match u32::try_from(n) {
        Ok(n) => Ok((key, MetaValue::U32(n))),
        Err(_) => Err(Error::config(key, n, "wanted a number of 32 bits")),
    };
    writer.meta(keys::ARCHITECTURE, MetaValue::Str(keys::LLAMA.into()));
    writer.meta(keys::NAME, MetaValue::Str(name.into()));
    for entry in [
        size(keys::MAX_SEQ_LEN, c.max_seq_len),
        size(keys::DIM, c.dim),
        size(keys::N_LAYERS, c.n_layers),
        size(keys::HIDDEN_DIM, c.hidden_dim),
        size(keys::N_HEADS, c.n_heads),
        size(keys::N_KV_HEADS, c.n_kv_heads),
        size(keys::KEY_LENGTH, c.head_dim),
        size(keys::VALUE_LENGTH, c.head_dim),
        size(keys::ROPE_DIM, c.rope.dim),
        size(keys::VOCAB_SIZE, c.vocab_size),
    ] {
        let (key, value) = entry?;
        writer.meta(key, value);
    }
    if let Some(window) = c.sliding_window {
        let (key, value) = size(keys::SLIDING_WINDOW, window)?;
        writer.meta(key, value);
    }
    writer.meta(keys::NORM_EPS, MetaValue::F32(c.norm_eps));
    writer.meta(keys::ROPE_THETA, MetaValue::F32(c.rope.theta as f32));
    let refuse = |what: &str| Err(Error::Unsupported(format!("{}: {what}", path.display())));
    let kind = |writer: &mut GgufWriter, kind: &str, factor: f64| {
        writer.meta(keys::ROPE_SCALING_TYPE, MetaValue::Str(kind.into()));
        writer.meta(keys::ROPE_SCALING_FACTOR, MetaValue::F32(factor as f32));
    };
    match &c.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => kind(writer, "linear", *factor),
        RopeScaling::Dynamic { .. } => {
            return refuse("RoPE scaling \"dynamic\", which GGUF has no words for");
        }
        RopeScaling::Llama3 { .. } if c.rope.freq_factors.is_some() => {
            return refuse("RoPE scaling \"llama3\" on top of divisors of the frequencies");
        }
        scaling @ RopeScaling::Llama3 { .. } => return Ok(Some(freq_factors(&c.rope, scaling))),
        RopeScaling::Yarn(yarn) if !yarn.truncate => {
            return refuse(
                "RoPE scaling \"yarn\" with truncate false, which GGUF has no words for",
            );
        }
        RopeScaling::Yarn(yarn) => {
            kind(writer, "yarn", yarn.factor);
            let (key, value) = size(keys::ROPE_ORIGINAL_CONTEXT, yarn.original_max_seq_len)?;
            writer.meta(key, value);
            writer.meta(keys::ROPE_YARN_BETA_FAST, MetaValue::F32(yarn.beta_fast as f32));
            writer.meta(keys::ROPE_YARN_BETA_SLOW, MetaValue::F32(yarn.beta_slow as f32));
            // GGUF's factor multiplies the usual scale; Hugging Face's replaces it.
            let usual =
                Yarn { attention_factor: None, mscale: None, mscale_all_dim: None, ..*yarn };
            let on_top = yarn.attention_scale() / usual.attention_scale();
            if on_top != 1.0 {
                writer.meta(keys::ROPE_YARN_ATTN_FACTOR, MetaValue::F32(on_top as f32));
            }
        }
    }
    Ok(c.rope.freq_factors.clone())
}

/// Ids with a meaning. GGUF has places for three that end a sequence; the number of those that
/// found none comes back.
pub(super) fn special_ids(
    writer: &mut GgufWriter,
    generation: &GenerationDefaults,
    vocab: Option<&GgufVocab<'_>>,
) -> usize {
    let id = |writer: &mut GgufWriter, key: &str, id: Option<u32>| {
        if let Some(id) = id {
            writer.meta(key, MetaValue::U32(id));
        }
    };
    let (bos, eos) = vocab.map_or((None, None), |vocab| (vocab.bos_id, vocab.eos_id));
    id(writer, keys::BOS_ID, bos.or(generation.bos_id));
    let mut ends: Vec<u32> = generation.eos_ids.clone();
    if let Some(eos) = eos.filter(|eos| !ends.contains(eos)) {
        ends.insert(0, eos);
    }
    for (key, &end) in [keys::EOS_ID, keys::EOT_ID, keys::EOM_ID].into_iter().zip(&ends) {
        id(writer, key, Some(end));
    }
    if let Some(vocab) = vocab {
        id(writer, keys::UNK_ID, vocab.unk_id);
        id(writer, keys::PAD_ID, vocab.pad_id);
    }
    ends.len().saturating_sub(3)
}

/// A vocabulary, without its special ids.
pub(super) fn vocabulary(writer: &mut GgufWriter, vocab: &GgufVocab<'_>) {
    let texts = |list: &[&str]| MetaValue::Strs(list.iter().map(|&text| text.into()).collect());
    writer.meta(keys::TOKENIZER_MODEL, MetaValue::Str(vocab.model.into()));
    if let Some(pre) = vocab.pre {
        writer.meta(keys::TOKENIZER_PRE, MetaValue::Str(pre.into()));
    }
    writer.meta(keys::TOKENS, texts(&vocab.tokens));
    if let Some(scores) = &vocab.scores {
        writer.meta(keys::SCORES, MetaValue::F32s(scores.clone()));
    }
    if let Some(types) = &vocab.token_types {
        writer.meta(keys::TOKEN_TYPES, MetaValue::I32s(types.clone()));
    }
    if let Some(merges) = &vocab.merges {
        writer.meta(keys::MERGES, texts(merges));
    }
    for (key, flag) in [
        (keys::ADD_BOS, vocab.add_bos),
        (keys::ADD_EOS, vocab.add_eos),
        (keys::ADD_SPACE_PREFIX, vocab.add_space_prefix),
    ] {
        if let Some(flag) = flag {
            writer.meta(key, MetaValue::Bool(flag));
        }
    }
    if let Some(template) = vocab.chat_template {
        writer.meta(keys::CHAT_TEMPLATE, MetaValue::Str(template.into()));
    }
}

/// Everything that a GGUF file says of its tokenizer, as it says it.
///
/// # Errors
/// [`Error::Format`] for strings that are not UTF-8.
pub(super) fn copy_tokenizer(writer: &mut GgufWriter, from: &Metadata) -> Result<()> {
    for (key, value) in from.entries().filter(|(key, _)| key.starts_with("tokenizer.")) {
        let copied = match value {
            Value::Int(v) => match (u32::try_from(*v), i32::try_from(*v), u64::try_from(*v)) {
                (Ok(v), ..) => Some(MetaValue::U32(v)),
                (_, Ok(v), _) => Some(MetaValue::I32(v)),
                (_, _, Ok(v)) => Some(MetaValue::U64(v)),
                _ => None,
            },
            Value::Float(v) => Some(MetaValue::F32(*v as f32)),
            Value::Bool(v) => Some(MetaValue::Bool(*v)),
            Value::String { .. } => from.str(key)?.map(|text| MetaValue::Str(text.into())),
            Value::Array { ty: keys::TYPE_STRING, .. } => from
                .strings(key)?
                .map(|list| MetaValue::Strs(list.into_iter().map(str::to_string).collect())),
            Value::Array { ty: 6 | 12, .. } => from.f32s(key)?.map(MetaValue::F32s),
            // Lists that nobody reads by id, such as a table of normalisation bytes.
            Value::Array { .. } => from.i32s(key).ok().flatten().map(MetaValue::I32s),
        };
        if let Some(copied) = copied {
            writer.meta(key, copied);
        }
    }
    Ok(())
}
