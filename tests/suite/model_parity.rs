//! Every reference model gives the logits, greedy text and likelihoods that transformers computes
//! for it, from its Hugging Face directory in both layouts of `config.json` and from GGUF files of
//! the same weights.

use crate::support::engine::{append, load};
use crate::support::fixture;
use crate::support::fixture::{ids, json, numbers};
use crate::support::gguf::Draft;
use half::{bf16, f16};
use puna::eval::perplexity::{PerplexityOptions, perplexity};
use puna::format::mmap::Access;
use puna::format::{FileDType, safetensors};
use puna::model::checkpoint::Checkpoint;
use puna::model::config::RopeScaling;
use puna::model::llama::{KvType, Model};
use puna::model::names::Weight;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;

const MODELS: [&str; 7] = [
    "mini-bf16-sharded",
    "mini-dynamic",
    "mini-gqa",
    "mini-headdim-bias",
    "mini-linear",
    "mini-llama3rope",
    "mini-mha",
];

/// f32 arithmetic in another order: the promise of the contract.
const F32_BOUND: f64 = 1e-4;
/// Half precision rounds by at most this, relatively: it has 11 significant bits.
const F16_ROUNDING: f64 = 1.0 / 2048.0;
/// bfloat16 has 8 significant bits.
const BF16_ROUNDING: f64 = 1.0 / 256.0;
/// What is rounded in a format is worth this many whole roundings of a logit. A row of a matrix
/// sums dozens of roundings of either sign, which mostly cancel, but each of up to four blocks adds
/// its own and the norms magnify them. One constant for every format and model: a format that is
/// computed worse than it rounds breaks it.
const ROUNDINGS: f64 = 8.0;

/// A file or directory of a model, and the element type of its matrices.
struct Form {
    name: String,
    path: PathBuf,
    dtype: FileDType,
    /// Whether its weights are those of the reference, bit for bit.
    same_weights: bool,
}

/// The model as it was given.
fn stored(model: &str) -> Form {
    let dtype = if model == "mini-bf16-sharded" { FileDType::BF16 } else { FileDType::F32 };
    Form {
        name: format!("{model}, directory"),
        path: fixture::dir(model),
        dtype,
        same_weights: true,
    }
}

/// The same directory with the older layout of `config.json`.
fn legacy(model: &str, scratch: &Path) -> Form {
    let path = scratch.join("legacy");
    std::fs::create_dir(&path).unwrap();
    for entry in std::fs::read_dir(fixture::dir(model)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("model") {
            std::fs::copy(entry.path(), path.join(name)).unwrap();
        }
    }
    std::fs::copy(fixture::dir(model).join("config.legacy.json"), path.join("config.json"))
        .unwrap();
    Form { name: format!("{model}, older config.json"), path, ..stored(model) }
}

/// An F32 tensor of a reference model's `logits.safetensors`; `None` where it has none of the name.
fn tensor(model: &str, name: &str) -> Option<Vec<f32>> {
    let files = safetensors::open(&fixture::dir(model).join("logits.safetensors"), Access::Map)
        .expect("a fixture opens");
    let bytes = files.bytes(files.get(name)?).expect("a tensor lies in its file");
    Some(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

/// The weights of a directory, with the RoPE scaling that GGUF expresses as divisors.
fn draft(model: &str) -> Draft {
    let checkpoint = Checkpoint::open(&fixture::dir(model)).unwrap();
    let config = checkpoint.config.clone();
    let tied = config.tie_embeddings;
    let weights = Weight::all(config.n_layers)
        .filter(|&weight| !(tied && weight == Weight::LmHead))
        .filter_map(|weight| {
            let tensor = checkpoint.weight_opt(weight).unwrap()?;
            let bytes = checkpoint.files.bytes(tensor).unwrap();
            let values = match tensor.dtype {
                FileDType::F32 => {
                    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
                }
                FileDType::BF16 => {
                    bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
                }
                other => panic!("{model}: {other}"),
            };
            Some((weight, tensor.shape.clone(), values))
        })
        .collect();
    let llama3 = matches!(config.rope.scaling, RopeScaling::Llama3 { .. });
    let rope_freqs = llama3.then(|| {
        let scaled = tensor(model, "rope.inv_freq").unwrap();
        let plain = |i: usize| config.rope.theta.powf(-2.0 * i as f64 / config.head_dim as f64);
        scaled.iter().enumerate().map(|(i, &f)| (plain(i) / f64::from(f)) as f32).collect()
    });
    Draft { config, weights, rope_freqs }
}

/// GGUF cannot say that the base of RoPE grows with the sequence.
fn has_gguf(model: &str) -> bool {
    model != "mini-dynamic"
}

fn gguf_form(model: &str, scratch: &Path, dtype: FileDType) -> Form {
    let path = scratch.join(format!("{dtype}.gguf"));
    draft(model).write(&path, dtype);
    let same_weights = dtype == FileDType::F32 || dtype == stored(model).dtype;
    Form { name: format!("{model}, GGUF {dtype}"), path, dtype, same_weights }
}

/// Every form of a model.
fn forms(model: &str, scratch: &Path) -> Vec<Form> {
    let mut forms = vec![stored(model), legacy(model, scratch)];
    if has_gguf(model) {
        let dtypes = [FileDType::F32, FileDType::F16, FileDType::BF16];
        forms.extend(dtypes.map(|dtype| gguf_form(model, scratch, dtype)));
    }
    forms
}

impl Form {
    /// Largest error of a logit, relative to the largest logit of its sequence.
    fn bound(&self, exact: bool, kv: KvType) -> f64 {
        let weights = match self.dtype {
            _ if self.same_weights => 0.0,
            FileDType::F16 => F16_ROUNDING,
            _ => BF16_ROUNDING,
        };
        // Machines with AVX-512 BF16 round activations too, unless asked not to.
        let activations = match self.dtype {
            FileDType::BF16 if !exact => BF16_ROUNDING,
            _ => 0.0,
        };
        let cache = if kv == KvType::F32 { 0.0 } else { F16_ROUNDING };
        F32_BOUND + ROUNDINGS * (weights + activations + cache)
    }
}

fn logits(model: &Model, tokens: &[u32], kv: KvType) -> Vec<f32> {
    let mut cache = model.new_cache(tokens.len(), kv).unwrap();
    append(model, &mut model.workspace(), &mut cache, tokens)
}

/// Largest difference, relative to the largest value wanted.
fn distance(got: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().fold(0f32, |max, x| max.max(x.abs()));
    let differences = got.iter().zip(wanted).map(|(g, w)| f64::from((g - w).abs()));
    // A NaN must not hide behind `max`.
    differences.fold(0.0, |max: f64, d| if d > max || d.is_nan() { d } else { max })
        / f64::from(largest)
}

fn report(failures: &[String]) {
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn logits_are_those_of_transformers() {
    let mut failures = vec![];
    for model in MODELS {
        let scratch = TempDir::new().unwrap();
        let sequences: Vec<Vec<u32>> =
            json(model, "inputs.json")["logits"].as_array().unwrap().iter().map(ids).collect();
        let wanted: Vec<Vec<f32>> =
            (0..sequences.len()).map(|i| tensor(model, &format!("logits.{i}")).unwrap()).collect();
        for form in forms(model, scratch.path()) {
            for exact in [true, false] {
                let engine = load(&form.path, 1, exact);
                for kv in [KvType::F32, KvType::F16] {
                    let bound = form.bound(exact, kv);
                    let worst = sequences
                        .iter()
                        .zip(&wanted)
                        .map(|(tokens, wanted)| distance(&logits(&engine, tokens, kv), wanted))
                        .fold(0.0, |max: f64, d| if d > max || d.is_nan() { d } else { max });
                    let row = format!(
                        "{} exact {exact} {kv:?}: {worst:.2e}, bound {bound:.2e}",
                        form.name
                    );
                    println!("{row}");
                    if worst.is_nan() || worst > bound {
                        failures.push(row);
                    }
                }
            }
        }
    }
    report(&failures);
}

/// Converted weights are computed with as stored: a file of F16 or BF16 gives what a file of F32
/// with the same, already rounded, values gives.
#[test]
fn sixteen_bit_files_are_computed_as_their_widened_values() {
    let mut failures = vec![];
    for model in MODELS.into_iter().filter(|model| has_gguf(model)) {
        let scratch = TempDir::new().unwrap();
        let tokens = ids(&json(model, "inputs.json")["logits"][2]);
        for dtype in [FileDType::F16, FileDType::BF16] {
            let narrow = gguf_form(model, scratch.path(), dtype);
            let mut rounded = draft(model);
            for (_, shape, values) in &mut rounded.weights {
                let matrix = shape.len() == 2;
                for x in values.iter_mut().filter(|_| matrix) {
                    *x = match dtype {
                        FileDType::F16 => f16::from_f32(*x).to_f32(),
                        _ => bf16::from_f32(*x).to_f32(),
                    };
                }
            }
            let wide = scratch.path().join("wide.gguf");
            rounded.write(&wide, FileDType::F32);
            let run = |path: &Path| logits(&load(path, 1, true), &tokens, KvType::F32);
            let found = distance(&run(&narrow.path), &run(&wide));
            println!("{}: {found:.2e}", narrow.name);
            if found.is_nan() || found > F32_BOUND {
                failures.push(format!("{}: {found:.2e}, bound {F32_BOUND:.0e}", narrow.name));
            }
        }
    }
    report(&failures);
}

/// The likeliest token, `n` times, each from a cache of all before it.
fn greedy(model: &Model, prompt: &[u32], n: usize, kv: KvType) -> Vec<u32> {
    let mut ws = model.workspace();
    let mut cache = model.new_cache(prompt.len() + n, kv).unwrap();
    let mut next = prompt.to_vec();
    let mut out = vec![];
    for _ in 0..n {
        let all = append(model, &mut ws, &mut cache, &next);
        let last = &all[all.len() - model.config.vocab_size..];
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap() as u32;
        out.push(best);
        next = vec![best];
    }
    out
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let mut failures = vec![];
    for model in MODELS {
        let scratch = TempDir::new().unwrap();
        let rows = json(model, "greedy.json")["rows"].as_array().unwrap().clone();
        for form in forms(model, scratch.path()).iter().filter(|form| form.same_weights) {
            // BF16 activations may choose otherwise where two tokens are close.
            let engine = load(&form.path, 1, true);
            for kv in [KvType::F32, KvType::F16] {
                for (i, row) in rows.iter().enumerate() {
                    let wanted = ids(&row["continuation"]);
                    let got = greedy(&engine, &ids(&row["prompt"]), wanted.len(), kv);
                    if got != wanted {
                        failures.push(format!(
                            "{} {kv:?} row {i}: {got:?}, wanted {wanted:?}",
                            form.name
                        ));
                    }
                }
            }
        }
    }
    report(&failures);
}

/// With activations rounded to bfloat16 the text may part from the reference, but only where the
/// two likeliest tokens are closer than the rounding can move them.
#[test]
fn rounded_activations_change_greedy_text_only_at_near_ties() {
    let model = "mini-bf16-sharded";
    let form = stored(model);
    let engine = load(&form.path, 1, false);
    let largest = (0..3)
        .flat_map(|i| tensor(model, &format!("logits.{i}")).unwrap())
        .fold(0f32, |max, x| max.max(x.abs()));
    // Both of the two may move, towards each other.
    let close = 2.0 * form.bound(false, KvType::F16) * f64::from(largest);
    for (i, row) in json(model, "greedy.json")["rows"].as_array().unwrap().iter().enumerate() {
        let (wanted, gaps) = (ids(&row["continuation"]), numbers(&row["top2_gaps"]));
        let got = greedy(&engine, &ids(&row["prompt"]), wanted.len(), KvType::F16);
        match (0..wanted.len()).find(|&at| got[at] != wanted[at]) {
            None => println!("row {i}: all {} tokens equal", wanted.len()),
            Some(at) => {
                println!("row {i}: differs at {at}, gap {}, close is {close:.3}", gaps[at]);
                assert!(gaps[at] < close, "row {i}: {got:?}, wanted {wanted:?}");
            }
        }
    }
}

#[test]
fn likelihoods_are_those_of_transformers() {
    let mut failures = vec![];
    for model in MODELS {
        let scratch = TempDir::new().unwrap();
        let reference = json(model, "ppl.json");
        let wanted = numbers(&reference["nll"]);
        let size = |key: &str| reference[key].as_u64().unwrap() as usize;
        let options =
            PerplexityOptions { window: size("window"), stride: size("stride"), kv: KvType::F32 };
        for form in forms(model, scratch.path()).iter().filter(|form| form.same_weights) {
            let engine = load(&form.path, 1, true);
            let mut ws = engine.workspace();
            let tokens = ids(&reference["ids"]);
            let (cancel, mut silent) = (AtomicBool::new(false), |_: usize, _: usize| ());
            let got = perplexity(&engine, &mut ws, &tokens, options, &cancel, &mut silent).unwrap();
            assert_eq!(got.nll.len(), wanted.len(), "{}", form.name);
            let worst = got
                .nll
                .iter()
                .zip(&wanted)
                .map(|(got, wanted)| (got - wanted).abs() / wanted)
                .fold(0.0, |max: f64, d| if d > max || d.is_nan() { d } else { max });
            let row = format!("{}: {worst:.2e}, bound {F32_BOUND:.0e}", form.name);
            println!("{row}");
            if worst.is_nan() || worst > F32_BOUND {
                failures.push(row);
            }
            let whole = got.ppl() / reference["perplexity"].as_f64().unwrap() - 1.0;
            if whole.is_nan() || whole.abs() > F32_BOUND {
                failures.push(format!("{}: perplexity off by {whole:.2e}", form.name));
            }
        }
    }
    report(&failures);
}
