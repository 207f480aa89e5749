//! `config.json` and `generation_config.json` of a model, as transformers reads them.
//!
//! RoPE stands there in both layouts: `rope_parameters` for transformers 5, `rope_theta` beside
//! `rope_scaling` for what is older; so does the element type.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::format::FileDType;
use crate::model::checkpoint::GenerationDefaults;
use crate::model::config::{Config, Head, RopeScaling};
use crate::model::rope::{Yarn, llama3_of_factors};

/// The name of an element type in `config.json`.
fn dtype_name(dtype: FileDType) -> &'static str {
    match dtype {
        FileDType::F16 => "float16",
        FileDType::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// The f64 that has the shortest decimal form of `x`, so that JSON says `1e-5` and not its nearest
/// f32.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// `config.json` for weights of type `dtype`. `path` is for error messages.
///
/// # Errors
/// [`Error::Unsupported`] for what Hugging Face's files cannot say: RoPE divisors that are not
/// those of Llama 3, a sliding window together with biases.
pub fn config_json(path: &Path, config: &Config, dtype: FileDType) -> Result<Value> {
    let refuse = |what: &str| Err(Error::Unsupported(format!("{}: {what}", path.display())));
    let mistral = config.sliding_window.is_some();
    if mistral && (config.attention_bias || config.mlp_bias) {
        return refuse("a sliding window and biases: neither Llama nor Mistral has both");
    }
    let scaling = match (&config.rope.freq_factors, &config.rope.scaling) {
        (None, scaling) => scaling.clone(),
        (Some(factors), RopeScaling::None) => match llama3_of_factors(&config.rope, factors) {
            Some(scaling) => scaling,
            None => return refuse("rope_freqs.weight holds divisors that are not Llama 3's"),
        },
        _ => return refuse("rope_freqs.weight together with another RoPE scaling"),
    };
    let model_type = if mistral { "mistral" } else { "llama" };
    let name = match (mistral, config.head) {
        (true, Head::Tokens) => "MistralForCausalLM",
        (false, Head::Tokens) => "LlamaForCausalLM",
        (true, Head::Score) => "MistralForSequenceClassification",
        (false, Head::Score) => "LlamaForSequenceClassification",
    };
    let rope = rope_json(&scaling);
    let mut parameters = Map::new();
    parameters.insert("rope_theta".into(), json!(config.rope.theta));
    parameters.extend(rope.clone());
    let plain = matches!(scaling, RopeScaling::None);
    let mut value = json!({
        "architectures": [name],
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_id,
        "dtype": dtype_name(dtype),
        "eos_token_id": ids_json(&config.eos_ids),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "initializer_range": 0.02,
        "intermediate_size": config.hidden_dim,
        "max_position_embeddings": config.max_seq_len,
        "model_type": model_type,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
        "rms_norm_eps": shortest(config.norm_eps),
        "rope_parameters": parameters,
        "rope_scaling": if plain { Value::Null } else { Value::Object(rope) },
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype_name(dtype),
        "use_cache": true,
        "vocab_size": config.vocab_size,
    });
    if config.head == Head::Score {
        // No padding token: with EOS in its place transformers would read a text that ends with
        // EOS one token too early.
        value["id2label"] = json!({"0": "LABEL_0"});
        value["label2id"] = json!({"LABEL_0": 0});
    }
    if mistral {
        value["sliding_window"] = json!(config.sliding_window);
    } else {
        value["attention_bias"] = json!(config.attention_bias);
        value["mlp_bias"] = json!(config.mlp_bias);
    }
    Ok(value)
}

/// The settings of a scaling, `rope_type` first.
fn rope_json(scaling: &RopeScaling) -> Map<String, Value> {
    let value = match scaling {
        RopeScaling::None => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Dynamic { factor, .. } => json!({"rope_type": "dynamic", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_seq_len } => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_seq_len,
            })
        }
        RopeScaling::Yarn(yarn) => yarn_json(yarn),
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn yarn_json(yarn: &Yarn) -> Value {
    let mut value = json!({
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_max_seq_len,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
    });
    for (key, given) in [
        ("attention_factor", yarn.attention_factor),
        ("mscale", yarn.mscale),
        ("mscale_all_dim", yarn.mscale_all_dim),
    ] {
        if let Some(given) = given {
            value[key] = json!(given);
        }
    }
    if !yarn.truncate {
        value["truncate"] = json!(false);
    }
    value
}

/// One id, a list of several, or null.
fn ids_json(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

/// `generation_config.json`; keys without a value are left out.
pub fn generation_json(generation: &GenerationDefaults) -> Value {
    let g = generation;
    let mut map = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            map.insert(key.into(), value);
        }
    };
    put("bos_token_id", g.bos_id.map(|id| json!(id)));
    put("do_sample", g.do_sample.map(|yes| json!(yes)));
    put("eos_token_id", Some(ids_json(&g.eos_ids)).filter(|ids| !ids.is_null()));
    put("min_p", g.min_p.map(|x| json!(shortest(x))));
    put("repetition_penalty", g.repetition_penalty.map(|x| json!(shortest(x))));
    put("temperature", g.temperature.map(|x| json!(shortest(x))));
    put("top_k", g.top_k.map(|k| json!(k)));
    put("top_p", g.top_p.map(|x| json!(shortest(x))));
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::hf_config::HfConfig;

    /// Reads what was written, whole or with one of the two layouts of RoPE taken out.
    fn read_back(mut value: Value, without: &[&str]) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        if let Value::Object(map) = &mut value {
            without.iter().for_each(|key| drop(map.remove(*key)));
        }
        std::fs::write(&path, value.to_string()).unwrap();
        Config::from_hf(&HfConfig::read(&path).unwrap()).unwrap()
    }

    #[test]
    fn every_configuration_comes_back_in_both_layouts() {
        let fixture = Path::new("tests/fixtures/mini-mha/config.json");
        let plain = Config::from_hf(&HfConfig::read(fixture).unwrap()).unwrap();
        let yarn = Yarn {
            factor: 4.0,
            original_max_seq_len: 40,
            attention_factor: Some(1.25),
            beta_fast: 16.0,
            beta_slow: 2.0,
            mscale: Some(0.5),
            mscale_all_dim: None,
            truncate: false,
        };
        let scalings = [
            RopeScaling::None,
            RopeScaling::Linear { factor: 2.5 },
            RopeScaling::Dynamic { factor: 2.0, max_seq_len: plain.max_seq_len },
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_seq_len: 64,
            },
            RopeScaling::Yarn(yarn),
        ];
        for scaling in scalings {
            let mut config = plain.clone();
            config.rope.scaling = scaling;
            config.norm_eps = 1e-5;
            config.eos_ids = vec![2, 3];
            config.tie_embeddings = true;
            let value = config_json(fixture, &config, FileDType::BF16).unwrap();
            assert_eq!(value["rms_norm_eps"].to_string(), "0.00001");
            assert_eq!(
                (&value["dtype"], &value["torch_dtype"]),
                (&json!("bfloat16"), &json!("bfloat16"))
            );
            for without in [&[][..], &["rope_parameters"], &["rope_scaling", "rope_theta"]] {
                assert_eq!(read_back(value.clone(), without), config, "{without:?}");
            }
        }
        let mut window = plain.clone();
        window.sliding_window = Some(7);
        let value = config_json(fixture, &window, FileDType::F32).unwrap();
        assert_eq!(read_back(value, &[]), window);
        window.mlp_bias = true;
        assert!(config_json(fixture, &window, FileDType::F32).is_err());
    }

    #[test]
    fn generation_settings_are_short_numbers() {
        let generation = GenerationDefaults {
            temperature: Some(0.6),
            top_p: Some(0.9),
            do_sample: Some(true),
            eos_ids: vec![2],
            ..GenerationDefaults::default()
        };
        let wanted = r#"{"do_sample":true,"eos_token_id":2,"temperature":0.6,"top_p":0.9}"#;
        assert_eq!(generation_json(&generation).to_string(), wanted);
    }
}
