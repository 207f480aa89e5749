//! `config.json` and `generation_config.json` of a Hugging Face directory, typed but not yet judged.
//!
//! Two layouts of `config.json` exist: transformers 5 writes `rope_parameters` (with `rope_theta`
//! inside) and `dtype`; older versions write `rope_theta`, `rope_scaling` and `torch_dtype` side by
//! side. Both read into one [`HfConfig`]. Names are those of the files; `model::config` judges the
//! values. Source: the configuration classes and RoPE utilities of transformers.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Longest JSON configuration accepted, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The whole file, refused if longer than `max_bytes`.
pub(crate) fn read_limited(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let fail = |source| Error::io(path, source);
    let found = std::fs::metadata(path).map_err(fail)?;
    if !found.is_file() {
        return Err(fail(std::io::Error::other("not a regular file")));
    }
    if found.len() > max_bytes {
        return Err(Error::format(
            path,
            format!("{} bytes, wanted at most {max_bytes}", found.len()),
        ));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(fail)?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, max_bytes), &mut bytes)
        .map_err(fail)?;
    Ok(bytes)
}

/// A JSON object with typed, error-naming access.
struct Object {
    path: PathBuf,
    /// Prefix of keys in messages, for nested objects.
    prefix: String,
    map: Map<String, Value>,
}

impl Object {
    fn read(path: &Path) -> Result<Object> {
        let bytes = read_limited(path, MAX_CONFIG_BYTES)?;
        let map = serde_json::from_slice(&bytes)
            .map_err(|e| Error::format(path, format!("not a JSON object: {e}")))?;
        Ok(Object { path: path.to_path_buf(), prefix: String::new(), map })
    }

    /// The value of a key; `null` counts as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn bad(&self, key: &str, value: &Value, wanted: &str) -> Error {
        // A nested value could be long; the message only needs to show what it is.
        let shown: String = value.to_string().chars().take(80).collect();
        Error::config(
            format!("{}: {}{key}", self.path.display(), self.prefix),
            shown,
            format!("wanted {wanted}"),
        )
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(key)
            .map(|value| convert(value).ok_or_else(|| self.bad(key, value, wanted)))
            .transpose()
    }

    fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number of at least 0", |v| {
            v.as_u64().and_then(|v| v.try_into().ok())
        })
    }

    fn needed(&self, key: &str) -> Result<usize> {
        self.usize(key)?
            .ok_or_else(|| Error::format(&self.path, format!("{}{key} is missing", self.prefix)))
    }

    fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn string(&self, key: &str) -> Result<Option<String>> {
        self.typed(key, "a string", |v| v.as_str().map(str::to_string))
    }

    fn id(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a token id", as_id)
    }

    /// One token id or a list of them.
    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let ids = self.typed(key, "a token id or a list of them", |v| match v {
            Value::Array(ids) => ids.iter().map(as_id).collect(),
            id => as_id(id).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    fn object(&self, key: &str) -> Result<Option<Object>> {
        let map = self.typed(key, "an object", |v| v.as_object().cloned())?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok(map.map(|map| Object { path: self.path.clone(), prefix, map }))
    }
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| id.try_into().ok())
}

/// RoPE settings of either layout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HfRope {
    /// `rope_type`, or `type` of old files; "default" where there is none.
    pub rope_type: String,
    /// `rope_theta`, from wherever the layout keeps it.
    pub rope_theta: Option<f64>,
    /// `factor`.
    pub factor: Option<f64>,
    /// `original_max_position_embeddings`, of the whole configuration or of the RoPE settings.
    pub original_max_position_embeddings: Option<usize>,
    /// `attention_factor` (YaRN).
    pub attention_factor: Option<f64>,
    /// `beta_fast` (YaRN).
    pub beta_fast: Option<f64>,
    /// `beta_slow` (YaRN).
    pub beta_slow: Option<f64>,
    /// `mscale` (YaRN).
    pub mscale: Option<f64>,
    /// `mscale_all_dim` (YaRN).
    pub mscale_all_dim: Option<f64>,
    /// `truncate` (YaRN).
    pub truncate: Option<bool>,
    /// `low_freq_factor` (llama3).
    pub low_freq_factor: Option<f64>,
    /// `high_freq_factor` (llama3).
    pub high_freq_factor: Option<f64>,
    /// `partial_rotary_factor`.
    pub partial_rotary_factor: Option<f64>,
}

/// A key that may be absent, `null`, or set; the model types' defaults tell the three apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given<T> {
    /// The key is not there.
    Absent,
    /// The key is `null`.
    Null,
    /// The key has a value.
    Value(T),
}

/// `config.json` in either layout; field names are the file's.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // each field is the key of the same name
pub struct HfConfig {
    /// The file.
    pub path: PathBuf,
    pub architectures: Vec<String>,
    pub model_type: Option<String>,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub vocab_size: usize,
    pub max_position_embeddings: Option<usize>,
    pub rms_norm_eps: Option<f64>,
    pub hidden_act: Option<String>,
    pub tie_word_embeddings: Option<bool>,
    pub attention_bias: Option<bool>,
    pub mlp_bias: Option<bool>,
    pub sliding_window: Given<usize>,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
    /// `num_labels`, or the length of `id2label`.
    pub num_labels: Option<usize>,
    /// `dtype`, or `torch_dtype` of old files.
    pub dtype: Option<String>,
    /// `quant_method` of `quantization_config`, where there is one.
    pub quant_method: Option<String>,
    pub rope: HfRope,
}

impl HfConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for a file that is no JSON object or lacks a needed key;
    /// [`Error::Config`] for a value of the wrong type. Architectures are not looked at.
    pub fn read(path: &Path) -> Result<HfConfig> {
        let object = Object::read(path)?;
        // Checked before the sizes: another architecture has other keys, and its name says more
        // than a missing key would.
        let architectures: Vec<String> = object
            .typed("architectures", "a list of strings", |v| {
                v.as_array()?.iter().map(|name| name.as_str().map(str::to_string)).collect()
            })?
            .unwrap_or_default();
        let model_type = object.string("model_type")?;
        refuse_other(path, &architectures, model_type.as_deref())?;
        Ok(HfConfig {
            path: path.to_path_buf(),
            architectures,
            model_type,
            hidden_size: object.needed("hidden_size")?,
            intermediate_size: object.needed("intermediate_size")?,
            num_hidden_layers: object.needed("num_hidden_layers")?,
            num_attention_heads: object.needed("num_attention_heads")?,
            num_key_value_heads: object.usize("num_key_value_heads")?,
            head_dim: object.usize("head_dim")?,
            vocab_size: object.needed("vocab_size")?,
            max_position_embeddings: object.usize("max_position_embeddings")?,
            rms_norm_eps: object.f64("rms_norm_eps")?,
            hidden_act: object.string("hidden_act")?,
            tie_word_embeddings: object.bool("tie_word_embeddings")?,
            attention_bias: object.bool("attention_bias")?,
            mlp_bias: object.bool("mlp_bias")?,
            sliding_window: match object.map.get("sliding_window") {
                None => Given::Absent,
                Some(Value::Null) => Given::Null,
                Some(_) => object.usize("sliding_window")?.map_or(Given::Null, Given::Value),
            },
            bos_token_id: object.id("bos_token_id")?,
            eos_token_ids: object.ids("eos_token_id")?,
            num_labels: match object.usize("num_labels")? {
                None => object.typed("id2label", "an object", |v| Some(v.as_object()?.len()))?,
                told => told,
            },
            dtype: match object.string("dtype")? {
                Some(dtype) => Some(dtype),
                None => object.string("torch_dtype")?,
            },
            quant_method: match object.object("quantization_config")? {
                Some(quant) => {
                    Some(quant.string("quant_method")?.unwrap_or_else(|| "unnamed".into()))
                }
                None => None,
            },
            rope: read_rope(&object)?,
        })
    }
}

/// `rope_scaling` counts before `rope_parameters`, as in transformers, which keeps the old key working.
fn read_rope(config: &Object) -> Result<HfRope> {
    let new = config.object("rope_parameters")?;
    let rope = match config.object("rope_scaling")? {
        Some(old) if !old.map.is_empty() => Some(old),
        _ => None,
    };
    // The base inside the settings that count comes first, then the one beside them, then the one
    // inside settings that were passed over.
    let inner = |object: &Option<Object>| object.as_ref().map_or(Ok(None), |o| o.f64("rope_theta"));
    let (old_theta, new_theta, beside) = (inner(&rope)?, inner(&new)?, config.f64("rope_theta")?);
    let theta = match rope {
        Some(_) => old_theta.or(beside).or(new_theta),
        None => new_theta.or(beside),
    };
    let Some(rope) = rope.or(new) else {
        let partial_rotary_factor = config.f64("partial_rotary_factor")?;
        let rope_type = "default".to_string();
        return Ok(HfRope {
            rope_type,
            rope_theta: theta,
            partial_rotary_factor,
            ..HfRope::default()
        });
    };
    if let Some((key, value)) = rope.map.iter().find(|(_, value)| value.is_object()) {
        return Err(rope.bad(key, value, "one set of RoPE settings for all layers"));
    }
    let rope_type = match rope.string("rope_type")? {
        Some(name) => name,
        None => rope.string("type")?.unwrap_or_else(|| "default".to_string()),
    };
    const ORIGINAL: &str = "original_max_position_embeddings";
    Ok(HfRope {
        rope_type,
        rope_theta: theta,
        factor: rope.f64("factor")?,
        original_max_position_embeddings: match config.usize(ORIGINAL)? {
            Some(n) => Some(n),
            None => rope.usize(ORIGINAL)?,
        },
        attention_factor: rope.f64("attention_factor")?,
        beta_fast: rope.f64("beta_fast")?,
        beta_slow: rope.f64("beta_slow")?,
        mscale: rope.f64("mscale")?,
        mscale_all_dim: rope.f64("mscale_all_dim")?,
        truncate: rope.bool("truncate")?,
        low_freq_factor: rope.f64("low_freq_factor")?,
        high_freq_factor: rope.f64("high_freq_factor")?,
        partial_rotary_factor: match config.f64("partial_rotary_factor")? {
            Some(factor) => Some(factor),
            None => rope.f64("partial_rotary_factor")?,
        },
    })
}

/// Refuses a model that is no LLaMA, by its own name.
fn refuse_other(path: &Path, architectures: &[String], model_type: Option<&str>) -> Result<()> {
    let known = [
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "LlamaForSequenceClassification",
        "MistralForSequenceClassification",
    ];
    let refused = |key: &str, name: &str, wanted: &str| {
        Err(Error::Unsupported(format!("{}: {key} {name:?}, wanted {wanted}", path.display())))
    };
    if let Some(other) = architectures.iter().find(|name| !known.contains(&name.as_str())) {
        return refused(
            "architecture",
            other,
            "LlamaForCausalLM, MistralForCausalLM, or one ForSequenceClassification",
        );
    }
    match model_type {
        Some("llama" | "mistral") => Ok(()),
        Some(other) => refused("model_type", other, "llama or mistral"),
        None if architectures.is_empty() => Err(Error::format(
            path,
            "neither architectures nor model_type is there, wanted LlamaForCausalLM",
        )),
        None => Ok(()),
    }
}

/// `generation_config.json`: what the model's maker suggests for sampling. Absent keys are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)] // each field is the key of the same name
pub struct HfGenerationConfig {
    pub temperature: Option<f64>,
    pub top_k: Option<usize>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub do_sample: Option<bool>,
    pub eos_token_ids: Vec<u32>,
    pub bos_token_id: Option<u32>,
}

impl HfGenerationConfig {
    /// Reads `generation_config.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], [`Error::Config`] as [`HfConfig::read`].
    pub fn read(path: &Path) -> Result<HfGenerationConfig> {
        let object = Object::read(path)?;
        Ok(HfGenerationConfig {
            temperature: object.f64("temperature")?,
            top_k: object.usize("top_k")?,
            top_p: object.f64("top_p")?,
            min_p: object.f64("min_p")?,
            repetition_penalty: object.f64("repetition_penalty")?,
            do_sample: object.bool("do_sample")?,
            eos_token_ids: object.ids("eos_token_id")?,
            bos_token_id: object.id("bos_token_id")?,
        })
    }
}
