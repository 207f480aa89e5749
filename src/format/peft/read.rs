//! Reads an adapter directory, refusing by key and value whatever would change the computation in
//! a way that Puna does not follow.

use std::collections::HashSet;
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value};

use super::{
    AdapterFile, CONFIG_NAME, LinearShapes, LoraPair, LoraSpec, SCORE_KEY, Target, WEIGHTS_NAME,
};
use crate::error::{Error, Result};
use crate::format::hf_config::read_limited;
use crate::format::mmap::Access;
use crate::format::{FileDType, TensorFile, TensorInfo, safetensors};

/// Longest settings file accepted, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Keys that must be absent, null, false or empty, and what a value there asks for.
const MUST_BE_OFF: [(&str, &str); 18] = [
    ("use_dora", "DoRA, which scales the columns of the adapted weight, is not computed"),
    ("use_qalora", "QA-LoRA pools the input in groups, which is not computed"),
    ("use_bdlora", "block-diagonal LoRA is not computed"),
    ("fan_in_fan_out", "the linear layers of LLaMA store [out, in]"),
    ("lora_bias", "a bias on lora_B is not computed"),
    ("trainable_token_indices", "trained embeddings beside the adapter are not read"),
    ("target_parameters", "only linear layers can have an adapter"),
    ("rank_pattern", "one rank for all layers is wanted"),
    ("alpha_pattern", "one lora_alpha for all layers is wanted"),
    ("layers_to_transform", "an adapter on every block is wanted"),
    ("layers_pattern", "an adapter on every block is wanted"),
    ("layer_replication", "repeated blocks are not computed"),
    ("exclude_modules", "name the adapted layers in target_modules instead"),
    ("alora_invocation_tokens", "an adapter that begins at a token is not computed"),
    ("arrow_config", "routing between adapters is not computed"),
    ("kasa_config", "KaSA is not computed"),
    ("monteclora_config", "MonteCLoRA is not computed"),
    ("velora_config", "VeLoRA is not computed"),
];

/// Ways to start an adapter that leave the base model as it is. The others (PiSSA, OLoRA, CorDA,
/// LoftQ and the like) change the base, so their matrices do not fit the model on disk.
const HARMLESS_INIT: [&str; 4] = ["gaussian", "orthogonal", "eva", "true"];

/// Reads an adapter; its rows stay in Hugging Face's order.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] for a file that breaks its format, a missing, unknown or
/// misshapen tensor, and values that are not finite; [`Error::Config`] for settings of the wrong
/// kind; [`Error::Unsupported`] for those that are not computed, and for pickled weights.
pub fn read(dir: &Path, shapes: &LinearShapes) -> Result<AdapterFile> {
    let (spec, has_score) = read_settings(dir)?;
    let weights = dir.join(WEIGHTS_NAME);
    if !weights.exists() {
        let pickle = dir.join("adapter_model.bin");
        return Err(match pickle.exists() {
            true => Error::Unsupported(format!(
                "{}: pickled weights can run code when read and are never opened; save them as safetensors",
                pickle.display()
            )),
            false => Error::format(dir, format!("no {WEIGHTS_NAME} in this directory")),
        });
    }
    let files = safetensors::open(&weights, Access::Map)?;
    let score = match has_score {
        true => {
            let missing = || Error::format(&weights, format!("tensor {SCORE_KEY} is missing"));
            let tensor = files.get(SCORE_KEY).ok_or_else(missing)?;
            Some(values(&weights, &files, tensor, &[1, shapes.dim])?)
        }
        false => None,
    };
    let pairs = read_pairs(&weights, &files, &spec, shapes, has_score)?;
    Ok(AdapterFile { spec, pairs, score })
}

/// Reads the settings alone.
///
/// # Errors
/// As [`read`].
pub fn read_spec(dir: &Path) -> Result<LoraSpec> {
    Ok(read_settings(dir)?.0)
}

/// The settings, and whether the head of a reward model lies beside the matrices.
fn read_settings(dir: &Path) -> Result<(LoraSpec, bool)> {
    let path = dir.join(CONFIG_NAME);
    if dir.is_dir() && !path.exists() {
        return Err(Error::format(dir, format!("no {CONFIG_NAME} in this directory")));
    }
    let bytes = read_limited(&path, MAX_CONFIG_BYTES)?;
    let map = serde_json::from_slice(&bytes)
        .map_err(|e| Error::format(&path, format!("not a JSON object: {e}")))?;
    let settings = Settings { path: &path, map };
    Ok((settings.spec()?, settings.has_score()?))
}

struct Settings<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

/// A value for a message, cut where it is long.
fn shown(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

impl Settings<'_> {
    /// The value of a key; null counts as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn bad(&self, key: &str, value: &Value, wanted: &str) -> Error {
        let field = format!("{}: {key}", self.path.display());
        Error::config(field, shown(value), format!("wanted {wanted}"))
    }

    fn unsupported(&self, key: &str, value: &Value, why: &str) -> Error {
        Error::Unsupported(format!("{}: {key} {}: {why}", self.path.display(), shown(value)))
    }

    fn missing(&self, key: &str) -> Error {
        Error::format(self.path, format!("{key} is missing"))
    }

    fn number(&self, key: &str, default: Option<f32>) -> Result<f32> {
        let wanted = "a finite number";
        match (self.get(key), default) {
            (Some(value), _) => {
                let number = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
                number.ok_or_else(|| self.bad(key, value, wanted))
            }
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.missing(key)),
        }
    }

    fn spec(&self) -> Result<LoraSpec> {
        match self.get("peft_type") {
            Some(Value::String(name)) if name == "LORA" => {}
            Some(other) => {
                return Err(self.unsupported("peft_type", other, "only LORA is computed"));
            }
            None => return Err(self.missing("peft_type")),
        }
        self.refuse_the_rest()?;
        let r = match self.get("r") {
            Some(value) => value
                .as_u64()
                .and_then(|r| usize::try_from(r).ok())
                .ok_or_else(|| self.bad("r", value, "a rank of at least 1"))?,
            None => return Err(self.missing("r")),
        };
        let use_rslora = match self.get("use_rslora") {
            None => false,
            Some(value) => {
                value.as_bool().ok_or_else(|| self.bad("use_rslora", value, "true or false"))?
            }
        };
        let spec = LoraSpec {
            r,
            alpha: self.number("lora_alpha", None)?,
            dropout: self.number("lora_dropout", Some(0.0))?,
            targets: self.targets()?,
            use_rslora,
        };
        spec.check(&format!("{}: lora_", self.path.display()))?;
        Ok(spec)
    }

    /// Whether `modules_to_save` is the head of a reward model. PEFT also lists `classifier`, which
    /// no LLaMA has.
    fn has_score(&self) -> Result<bool> {
        let Some(value) = self.get("modules_to_save") else { return Ok(false) };
        let names: Option<Vec<&str>> =
            value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        match names.as_deref() {
            Some([]) => Ok(false),
            Some(names) if names.iter().all(|name| ["score", "classifier"].contains(name)) => {
                Ok(true)
            }
            _ => {
                let why = "of whole modules beside the adapter only \"score\" is read";
                Err(self.unsupported("modules_to_save", value, why))
            }
        }
    }

    fn refuse_the_rest(&self) -> Result<()> {
        let off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        for (key, why) in MUST_BE_OFF {
            if let Some(value) = self.map.get(key).filter(|value| !off(value)) {
                return Err(self.unsupported(key, value, why));
            }
        }
        match self.get("bias") {
            None => {}
            Some(Value::String(bias)) if bias == "none" => {}
            Some(other) => {
                return Err(self.unsupported("bias", other, "trained biases are not read"));
            }
        }
        if let Some(init) = self.get("init_lora_weights") {
            let name = match init {
                Value::Bool(_) => "true",
                Value::String(name) => name,
                _ => "",
            };
            if !HARMLESS_INIT.contains(&name) {
                let why = "this start changes the base model, so the adapter does not fit it; \
                           convert the adapter to plain LoRA when saving";
                return Err(self.unsupported("init_lora_weights", init, why));
            }
        }
        // A switch that this version does not know of, turned on, changes what is computed.
        let known = ["use_rslora", "use_dora", "use_qalora", "use_bdlora"];
        let unknown = self.map.iter().find(|(key, value)| {
            key.starts_with("use_") && !known.contains(&key.as_str()) && !off(value)
        });
        match unknown {
            Some((key, value)) => Err(self.unsupported(key, value, "an unknown variant of LoRA")),
            None => Ok(()),
        }
    }

    fn targets(&self) -> Result<Vec<Target>> {
        let value = self.get("target_modules").ok_or_else(|| self.missing("target_modules"))?;
        let target = |text: &str| {
            module(text).ok_or_else(|| {
                let known = Target::ALL.map(Target::hf_name).join(", ");
                let why = format!("{text:?} is no linear layer of every block; known: {known}");
                self.unsupported("target_modules", value, &why)
            })
        };
        let targets: Vec<Target> = match value {
            Value::String(text) if text == "all-linear" => return Ok(Target::ALL.to_vec()),
            Value::String(pattern) => {
                let names = alternatives(pattern).ok_or_else(|| {
                    let why = "of regular expressions, only .*NAME and .*(NAME|NAME) are read";
                    self.unsupported("target_modules", value, why)
                })?;
                names.into_iter().map(target).collect::<Result<_>>()?
            }
            Value::Array(list) => list
                .iter()
                .map(|name| match name.as_str() {
                    Some(name) => target(name),
                    None => Err(self.bad("target_modules", value, "a list of names")),
                })
                .collect::<Result<_>>()?,
            _ => return Err(self.bad("target_modules", value, "a list of names")),
        };
        if targets.is_empty() {
            return Err(self.bad("target_modules", value, "at least one linear layer"));
        }
        Ok(super::in_order(targets))
    }
}

/// The layer that an entry of `target_modules` names in every block: `q_proj` or
/// `self_attn.q_proj`.
fn module(text: &str) -> Option<Target> {
    let (parent, name) = match text.rsplit_once('.') {
        Some((parent, name)) => (Some(parent), name),
        None => (None, text),
    };
    let target = Target::ALL.into_iter().find(|target| target.hf_name() == name)?;
    parent.is_none_or(|parent| parent == target.hf_parent()).then_some(target)
}

/// The names in a pattern of the form `.*NAME` or `.*(NAME|NAME)`, `\.` before them allowed.
fn alternatives(pattern: &str) -> Option<Vec<&str>> {
    let rest = pattern.strip_prefix('^').unwrap_or(pattern).strip_prefix(".*")?;
    let rest = rest.strip_prefix("\\.").unwrap_or(rest);
    let rest = rest.strip_suffix('$').unwrap_or(rest);
    let inside = match rest.strip_prefix('(') {
        Some(inside) => inside.strip_suffix(')')?.trim_start_matches("?:"),
        None => rest,
    };
    Some(inside.split('|').collect())
}

fn read_pairs(
    path: &Path,
    files: &TensorFile,
    spec: &LoraSpec,
    shapes: &LinearShapes,
    has_score: bool,
) -> Result<Vec<LoraPair>> {
    let mut wanted: HashSet<String> = has_score.then(|| SCORE_KEY.to_owned()).into_iter().collect();
    let mut pairs = Vec::with_capacity(shapes.n_layers * spec.targets.len());
    for layer in 0..shapes.n_layers {
        for &target in &spec.targets {
            let (out, inner) = shapes.of(target);
            let mut half = |half: &str, shape: [usize; 2]| {
                let key = target.key(layer, half);
                let tensor = files.get(&key).ok_or_else(|| missing(path, files, &key, layer))?;
                let values = values(path, files, tensor, &shape)?;
                wanted.insert(key);
                Ok::<_, Error>(values)
            };
            let (a, b) = (half("lora_A", [spec.r, inner])?, half("lora_B", [out, spec.r])?);
            pairs.push(LoraPair { layer, target, a, b });
        }
    }
    match files.tensors().iter().find(|tensor| !wanted.contains(&tensor.name)) {
        Some(tensor) => {
            let targets: Vec<&str> = spec.targets.iter().map(|target| target.hf_name()).collect();
            let what = format!(
                "tensor {:?} is no part of a LoRA on {} of {} blocks",
                tensor.name,
                targets.join(", "),
                shapes.n_layers
            );
            Err(Error::format_at(path, tensor.offset, what))
        }
        None => Ok(pairs),
    }
}

fn missing(path: &Path, files: &TensorFile, key: &str, layer: usize) -> Error {
    let other = match key.contains(".lora_A.") {
        true => key.replace(".lora_A.", ".lora_B."),
        false => key.replace(".lora_B.", ".lora_A."),
    };
    let hint = match files.get(&other) {
        Some(_) => "; its other half is there".to_string(),
        None => format!("; {CONFIG_NAME} and the model ask for it in block {layer}"),
    };
    Error::format(path, format!("tensor {key} is missing{hint}"))
}

/// A matrix as f32, refused where its shape, type or values cannot be used.
fn values(
    path: &Path,
    files: &TensorFile,
    tensor: &TensorInfo,
    shape: &[usize],
) -> Result<Vec<f32>> {
    let fault = |what: String| {
        Error::format_at(path, tensor.offset, format!("tensor {}: {what}", tensor.name))
    };
    if tensor.shape != shape {
        return Err(fault(format!(
            "shape {:?}, wanted {shape:?} for this model and the rank in {CONFIG_NAME}",
            tensor.shape
        )));
    }
    let bytes = files.bytes(tensor)?;
    let halves = || bytes.as_chunks::<2>().0.iter();
    let values: Vec<f32> = match tensor.dtype {
        FileDType::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        FileDType::F16 => halves().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        FileDType::BF16 => halves().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        other => return Err(fault(format!("element type {other}, wanted F32, F16 or BF16"))),
    };
    match values.iter().find(|x| !x.is_finite()) {
        Some(x) => Err(fault(format!("value {x}, wanted finite numbers"))),
        None => Ok(values),
    }
}
