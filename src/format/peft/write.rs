//! Writes an adapter directory as PEFT does, so that PEFT loads it.

use std::path::Path;

use serde_json::{Value, json};

use super::{AdapterFile, CONFIG_NAME, LoraSpec, SCORE_KEY, WEIGHTS_NAME};
use crate::error::{Error, Result};
use crate::format::FileDType;
use crate::format::safetensors_write::{SafetensorsWriter, TensorSpec};
use crate::format::stage::{sync_dir, write_file};

/// Writes an adapter whose rows are in Hugging Face's order into `dir`, which is made if it is not
/// there: the weights, then the settings, each whole or not at all. `base` is the model's name or
/// path, for whoever looks for it later.
///
/// # Errors
/// [`Error::Io`]; [`Error::Shape`] for matrices that are not of the adapter's rank.
pub fn write(dir: &Path, adapter: &AdapterFile, base: &str) -> Result<()> {
    let mut tensors = Vec::with_capacity(2 * adapter.pairs.len() + 1);
    if let Some(score) = &adapter.score {
        let (name, shape) = (SCORE_KEY.to_owned(), vec![1, score.len()]);
        tensors.push((TensorSpec { name, dtype: FileDType::F32, shape }, score));
    }
    for pair in &adapter.pairs {
        for (half, values) in [("lora_A", &pair.a), ("lora_B", &pair.b)] {
            let key = pair.target.key(pair.layer, half);
            let r = adapter.spec.r;
            if r == 0 || values.is_empty() || !values.len().is_multiple_of(r) {
                return Err(Error::Shape {
                    op: key,
                    expected: format!("a matrix of rank {r}"),
                    got: format!("{} values", values.len()),
                });
            }
            let width = values.len() / r;
            let shape = if half == "lora_A" { vec![r, width] } else { vec![width, r] };
            tensors.push((TensorSpec { name: key, dtype: FileDType::F32, shape }, values));
        }
    }
    // The order in which the Python library stores tensors of one type.
    tensors.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();

    let made = !dir.exists();
    if made {
        std::fs::create_dir(dir).map_err(|source| Error::io(dir, source))?;
    }
    let written = (|| {
        let mut file = SafetensorsWriter::start(&dir.join(WEIGHTS_NAME), &specs)?;
        for (_, values) in &tensors {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            file.write(&bytes)?;
        }
        file.finish()?;
        let settings = format!("{:#}\n", settings(&adapter.spec, base, adapter.score.is_some()));
        write_file(&dir.join(CONFIG_NAME), settings.as_bytes())?;
        sync_dir(dir)
    })();
    if written.is_err() && made {
        // The first error is the one to report.
        let _ = std::fs::remove_dir_all(dir);
    }
    written
}

/// The settings with the keys that every version of PEFT with rsLoRA knows.
fn settings(spec: &LoraSpec, base: &str, has_score: bool) -> Value {
    let mut targets: Vec<&str> = spec.targets.iter().map(|target| target.hf_name()).collect();
    targets.sort_unstable();
    json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": number(spec.alpha),
        "lora_dropout": number_of(spec.dropout),
        "modules_to_save": if has_score { json!(["score"]) } else { Value::Null },
        "peft_type": "LORA",
        "r": spec.r,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets,
        "task_type": if has_score { "SEQ_CLS" } else { "CAUSAL_LM" },
        "use_dora": false,
        "use_rslora": spec.use_rslora,
    })
}

/// The shortest decimal number that is `x` in f32; a whole number without a point.
fn number(x: f32) -> Value {
    match x == x.trunc() && x.abs() < 1e9 {
        true => json!(x as i64),
        false => number_of(x),
    }
}

fn number_of(x: f32) -> Value {
    json!(x.to_string().parse::<f64>().unwrap_or(f64::from(x)))
}
