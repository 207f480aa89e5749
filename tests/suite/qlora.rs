//! NF4 against bitsandbytes, and tuning an adapter on weights that are held in it. The series of a
//! whole run is in `train_parity`, gradients are in `gradients`.

use crate::support::engine::append;
use crate::support::program::puna;
use crate::support::train::{Place, Row, number, tensors};
use crate::support::{fixture, toy};
use puna::align::reference::Reference;
use puna::format::peft::read_spec;
use puna::model::llama::KvType;
use puna::model::tune::{LoraSpec, Precision, Slice, TuneMethod, TuneModel, TuneOptions};
use puna_cpu::isa::Isa;
use puna_cpu::quant::nf4::{BLOCK, CODE, NESTED_CODE, Nested, Nf4Matrix};
use puna_cpu::team::Team;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// Matrices of the fixture with all values, and one without decoded weights.
const MATRICES: [&str; 6] = ["wide", "tail", "zeros", "edges", "outliers.bfloat16", "uniform"];

/// What bitsandbytes made of some matrices.
struct Golden<'a>(SafeTensors<'a>);

impl Golden<'_> {
    fn numbers(&self, name: &str) -> Option<Vec<f32>> {
        let tensor = self.0.tensor(name).ok()?;
        let values = tensor.data();
        Some(match tensor.dtype() {
            Dtype::F32 => values.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::BF16 => {
                let halves = values.as_chunks().0.iter();
                halves.map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
            }
            other => panic!("{name} is {other:?}"),
        })
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.numbers(name).unwrap_or_else(|| panic!("no {name}"))
    }

    fn u8(&self, name: &str) -> &[u8] {
        self.0.tensor(name).unwrap_or_else(|_| panic!("no {name}")).data()
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn codes_scales_and_weights_have_the_bits_of_bitsandbytes() {
    let bytes = fs::read(fixture::dir("nf4.safetensors")).expect("a fixture");
    let golden = Golden(SafeTensors::deserialize(&bytes).expect("a fixture"));
    assert_eq!(bits(&CODE), bits(&golden.f32("nf4_code")));
    assert_eq!(bits(&NESTED_CODE), bits(&golden.f32("nested_code")));
    let team = Team::new(2).expect("two threads");
    let mut n_decoded = 0;
    for name in MATRICES {
        let of = |part: &str| format!("{name}.{part}");
        let shape = golden.0.tensor(&of("w")).expect("weights").shape().to_vec();
        let (w, low) = (golden.f32(&of("w")), name.ends_with("bfloat16"));
        for double_quant in [false, true] {
            let matrix = Nf4Matrix::of(&team, &w, [shape[0], shape[1]], double_quant);
            assert_eq!(matrix.codes(), golden.u8(&of("packed")), "{name}");
            let scales: Vec<f32> = (0..w.len().div_ceil(BLOCK)).map(|b| matrix.scale(b)).collect();
            let (wanted, weights) = match double_quant {
                false => ("absmax", "dequant_single"),
                true => ("absmax_double", "dequant_double"),
            };
            if let Some(wanted) = golden.numbers(&of(wanted)) {
                assert_eq!(bits(&scales), bits(&wanted), "{name}");
            }
            if let Some(nested) = matrix.nested() {
                assert_eq!(nested.codes[..], *golden.u8(&of("absmax_u8")), "{name}");
                assert_eq!(bits(&nested.largest), bits(&golden.f32(&of("nested_absmax"))));
                assert_eq!(bits(&[nested.offset]), bits(&golden.f32(&of("nested_offset"))));
            }
            let Some(wanted) = golden.numbers(&of(weights)) else { continue };
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; w.len()];
                matrix.decode(isa, &mut out, 0);
                if low {
                    // Its weights are rounded to the type of the checkpoint.
                    let round = |x: &mut f32| *x = half::bf16::from_f32(*x).to_f32();
                    out.iter_mut().for_each(round);
                }
                assert_eq!(bits(&out), bits(&wanted), "{name} on {isa}");
                n_decoded += 1;
            }
        }
    }
    assert_eq!(n_decoded, 10 * Isa::available().len());
}

#[test]
fn many_scales_have_the_nearest_codes() {
    let bytes = fs::read(fixture::dir("nf4.safetensors")).expect("a fixture");
    let golden = Golden(SafeTensors::deserialize(&bytes).expect("a fixture"));
    let nested = Nested::encode(&golden.f32("scales.absmax"));
    assert_eq!(nested.codes[..], *golden.u8("scales.u8_nearest"));
    assert_eq!(bits(&nested.largest), bits(&golden.f32("scales.nested_absmax")));
    assert_eq!(bits(&[nested.offset]), bits(&golden.f32("scales.nested_offset")));
    // The library's own table of 65536 entries gives others, so the two can be told apart.
    assert_ne!(nested.codes[..], *golden.u8("scales.u8_table"));
}

fn rows(n: usize) -> Vec<Row> {
    let row = |i: usize| {
        let ids: Vec<u32> = (0..6 + i % 9).map(|j| ((i * 31 + j * 17) % 317 + 3) as u32).collect();
        let labels = ids.iter().map(|&id| i64::from(id)).collect();
        (ids, labels)
    };
    (0..n).map(row).collect()
}

fn adapter() -> String {
    format!("--adapter={}", fixture::dir("mini-gqa").join("qlora-all-init").display())
}

/// Losses of a short run that starts from the same adapter.
fn losses(place: &Place, model: &Path, out: &str, flags: &[&str]) -> Vec<f64> {
    let adapter = adapter();
    let usual = [&adapter, "--batch-size=4", "--max-steps=3", "--learning-rate=0.01", "--quiet"];
    place.train(model, out, &[&usual[..], flags].concat()).done();
    place.steps(out).iter().map(|step| number(step, "loss")).collect()
}

#[test]
fn the_way_in_which_weights_are_held_shows_in_the_loss() {
    let model = fixture::dir("mini-gqa");
    let place = Place::new(&rows(12));
    let run = |out: &str, flags: &[&str]| losses(&place, &model, out, flags);
    let lora = run("lora", &["--method=lora"]);
    let double = run("double", &["--method=qlora"]);
    let single = run("single", &["--method=qlora", "--double-quant=false"]);
    // Between the roundings of f32 (1e-6) and the steps of the codes.
    let apart =
        |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    for (a, b) in [(&lora, &double), (&lora, &single), (&double, &single)] {
        assert!((1e-4..0.3).contains(&apart(a, b)), "{a:?} and {b:?}");
    }
    let told = run("told", &["--method=qlora", "--double-quant=true"]);
    assert!(told == double, "double quantisation is the default");
    // Threads, accumulation of memory and time change no bit.
    let again = run("again", &["--method=qlora", "--threads=1", "--gradient-checkpointing"]);
    assert!(again == double);
    let low = run("low", &["--method=qlora", "--dtype=bf16"]);
    // Eight bits of every activation, a dozen operations in a row.
    assert!(apart(&low, &double) < 0.05 && low != double, "{low:?} and {double:?}");
    // An adapter like any other: A moved, and B, which was zero.
    let found = tensors(&place.path("double/adapter_model.safetensors"));
    assert_eq!(found.len(), 2 * 7 * 4);
    assert!(found.values().all(|values| values.iter().any(|&x| x != 0.0)));
}

#[test]
fn a_file_of_another_kind_and_type_is_encoded_as_well() {
    let place = Place::new(&rows(12));
    let model = fixture::dir("mini-gqa");
    let single = ["--method=qlora", "--double-quant=false"];
    let wanted = losses(&place, &model, "out", &single);
    let convert = |from: &Path, out: &str, dtype: &str| -> PathBuf {
        let path = place.path(out);
        let [from, to] = [from, &path].map(|path| path.to_str().expect("UTF-8"));
        puna(&["convert", from, to, "--dtype", dtype]).done();
        path
    };
    // Rows of Q and K change places; with rows of whole blocks the codes go with them.
    let gguf = losses(&place, &convert(&model, "model.gguf", "f32"), "gguf", &single);
    for (found, wanted) in gguf.iter().zip(&wanted) {
        assert!((found - wanted).abs() < 1e-5, "{gguf:?}, wanted {wanted}");
    }
    // Halves are encoded as the numbers that they are.
    for dtype in ["f16", "bf16"] {
        let low = convert(&model, dtype, dtype);
        let wide = convert(&low, &format!("{dtype}-wide"), "f32");
        let of = |path: &Path| losses(&place, path, &format!("{}-out", path.display()), &single);
        let (found, wide) = (of(&low), of(&wide));
        assert!(found == wide && found != wanted, "{dtype}: {found:?}, wanted {wide:?}");
    }
}

#[test]
fn a_run_goes_on_with_the_same_bits_and_as_it_was_begun() {
    let model = fixture::dir("mini-gqa");
    let place = Place::new(&rows(20));
    let args = [
        "--method=qlora",
        "--lora-target-modules=all-linear",
        "--learning-rate=0.01",
        "--batch-size=2",
        "--max-steps=8",
        "--save-steps=3",
        "--seed=7",
        "--quiet",
    ];
    place.train(&model, "whole", &args).done();
    let wanted = fs::read(place.path("whole/adapter_model.safetensors")).expect("an adapter");
    place.train(&model, "out", &args).done();
    // As if it had been stopped after step 3.
    for name in ["train_results.json", "adapter_model.safetensors", "adapter_config.json"] {
        fs::remove_file(place.path("out").join(name)).expect("it was done");
    }
    for entry in fs::read_dir(place.path("out")).expect("an output").flatten() {
        let name = entry.file_name().into_string().expect("UTF-8");
        if name.starts_with("checkpoint-") && name != "checkpoint-3" {
            fs::remove_dir_all(entry.path()).expect("a checkpoint");
        }
    }
    for (flags, parts) in [
        (&["--double-quant=false"][..], &["double_quant = false", "begun with true"][..]),
        (&["--method=lora"], &["method = lora", "begun with qlora"]),
    ] {
        let all = [&args[..], flags, &["--resume"]].concat();
        let given =
            |flag: &&str| flags.iter().any(|f| f.split('=').next() == flag.split('=').next());
        let all: Vec<&str> =
            all.iter().copied().filter(|flag| flags.contains(flag) || !given(flag)).collect();
        let run = place.train(&model, "out", &all);
        assert_eq!(run.status, Some(1), "{flags:?}: {}", run.stderr);
        assert!(parts.iter().all(|part| run.stderr.contains(part)), "{}", run.stderr);
    }
    place.train(&model, "out", &[&args[..], &["--resume"]].concat()).done();
    let found = fs::read(place.path("out/adapter_model.safetensors")).expect("an adapter");
    assert!(found == wanted);
}

#[test]
fn what_is_quantised_already_is_not_quantised_again() {
    let place = Place::new(&rows(4));
    let run = place.train(Path::new("builtin"), "out", &["--method=qlora", "--max-steps=1"]);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    for part in ["method = qlora", "blk.0.attn_q.weight", "Q6_K already", "--method lora"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    let lone = place.path("config.json");
    fs::copy(fixture::dir("mini-gqa").join("config.json"), &lone).expect("a configuration");
    let run = place.train(&lone, "out", &["--method=qlora", "--max-steps=1"]);
    assert!(run.status == Some(1) && run.stderr.contains("random weights"), "{}", run.stderr);
    let model = fixture::dir("mini-gqa");
    let run = place.train(&model, "out", &["--method=lora", "--double-quant=true"]);
    assert_eq!(run.status, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("--double-quant with --method lora"), "{}", run.stderr);
    assert!(!place.path("out").exists());
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    let place = Place::new(&rows(4));
    let bad = place.path("bad");
    fs::create_dir(&bad).expect("a folder");
    let good = fixture::dir("mini-gqa");
    fs::copy(good.join("config.json"), bad.join("config.json")).expect("a configuration");
    let mut bytes = fs::read(good.join("model.safetensors")).expect("weights");
    let name = "model.layers.2.mlp.up_proj.weight";
    let file = SafeTensors::deserialize(&bytes).expect("weights");
    let at = file.tensor(name).expect("a layer").data().as_ptr() as usize - bytes.as_ptr() as usize;
    bytes[at + 400..at + 404].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(bad.join("model.safetensors"), bytes).expect("weights");
    let run = place.train(&bad, "out", &["--method=qlora", "--max-steps=1"]);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    for part in [name, "not finite", "model.safetensors"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
}

/// A model of the fixtures with an adapter that has an effect.
fn open(double_quant: bool) -> (TuneModel, PathBuf) {
    let dir = fixture::dir("mini-gqa").join("lora-all-init");
    let spec: LoraSpec = read_spec(&dir).expect("an adapter");
    let options = TuneOptions {
        threads: 2,
        precision: Precision::F32,
        method: TuneMethod::QLora { spec, adapter: Some(dir.clone()), double_quant },
        gradient_checkpointing: false,
        seed: 0,
        score: false,
        value: false,
    };
    (TuneModel::open(&fixture::dir("mini-gqa"), &options).expect("a fixture"), dir)
}

#[test]
fn a_policy_speaks_and_starts_with_the_weights_that_it_trains() {
    let ids: Vec<u32> = (0..40u32).map(|i| i * 7 % 300 + 3).collect();
    let label = |i: usize| ids.get(i + 1).copied().filter(|_| i % 20 != 19);
    let labels: Vec<Option<u32>> = (0..40).map(label).collect();
    let slice = Slice { ids: &ids, labels: &labels, spans: &[20, 20], sources: &[] };
    for double_quant in [false, true] {
        let (mut policy, adapter) = open(double_quant);
        let learnt = policy.log_probs(&slice, true).expect("a pass");
        let base = policy.log_probs(&slice, false).expect("a pass");
        // Those of the pass that answers, which multiplies in another way: f32 in another order.
        let model = policy.model();
        assert_eq!(model.weight_type(), "NF4");
        let mut said = vec![];
        for (ids, labels) in ids.chunks(20).zip(labels.chunks(20)) {
            let mut cache = model.new_cache(20, KvType::F32).expect("a cache");
            let mut ws = model.workspace();
            // A prompt, then token by token.
            let mut logits = append(model, &mut ws, &mut cache, &ids[..13]);
            for id in ids[13..].chunks(1) {
                logits.extend(append(model, &mut ws, &mut cache, id));
            }
            for (logits, label) in logits.chunks(320).zip(labels) {
                let Some(label) = label else { continue };
                let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
                said.push((f64::from(logits[*label as usize]) - sum.ln()) as f32);
            }
        }
        let apart = |a: &[f32], b: &[f32]| {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()))
        };
        assert!(apart(&said, &learnt) < 1e-4, "{}", apart(&said, &learnt));
        // Where it goes on from an adapter, the reference is that adapter on the same codes.
        let path = fixture::dir("mini-gqa");
        let mut reference = Reference::of(&policy, &path, Some(&adapter)).expect("a reference");
        let found = reference.log_probs(&mut policy, &slice).expect("a pass");
        assert!(apart(&found, &learnt) < 1e-4, "{}", apart(&found, &learnt));
        let mut reference = Reference::of(&policy, &path, None).expect("a reference");
        let found = reference.log_probs(&mut policy, &slice).expect("a pass");
        assert!(found == base && apart(&found, &learnt) > 0.1);
        // Codes and scales of 4.13 bits, or 4.5, and what is not encoded.
        let weights = model_bytes(&policy);
        let linear: usize = 4 * (2 * 64 * 64 + 2 * 16 * 64 + 3 * 192 * 64);
        let bits = if double_quant { 4.126 } else { 4.5 };
        let wanted = linear as f64 * bits / 8.0 + 4.0 * (320.0 * 64.0 + 9.0 * 64.0);
        let adapters = 4 * 4 * 4 * (4 * 64 + 2 * (64 + 16) + 3 * (64 + 192));
        let off = (weights - adapters) as f64 / wanted;
        assert!((0.99..1.01).contains(&off), "{weights} bytes, wanted {wanted}");
    }
}

fn model_bytes(policy: &TuneModel) -> usize {
    policy.model().memory(16, KvType::F32).expect("a plan").weights_bytes
}

#[test]
fn pairs_and_answers_are_learnt_on_it_too() {
    let place = Place::new(&[]);
    let model = place.path("model");
    fs::create_dir(&model).expect("a folder");
    toy::make(&model);
    let train = |command: &str, instances: serde_json::Value, kind: &str, flags: &[&str]| {
        let data = place.path(&format!("data-{command}"));
        fs::create_dir(&data).expect("a folder");
        let set = json!({"type": kind, "instances": instances});
        fs::write(data.join("set.json"), set.to_string()).expect("a set");
        let out = place.path(&format!("out-{command}"));
        let [model, data, to] = [&model, &data, &out].map(|path| path.to_str().expect("UTF-8"));
        let usual = [command, model, "--dataset", data, "--output", to, "--method=qlora"];
        puna(&[&usual[..], &["--learning-rate=0.01", "--quiet"], flags].concat()).done();
        tensors(&out.join("adapter_model.safetensors"))
    };
    let say = |text: &str| {
        json!({"messages": [{"role": "user", "content": "aa"},
                            {"role": "assistant", "content": text}]})
    };
    let pairs = json!([{"chosen": say("bb"), "rejected": say("ccc")}]);
    let found = train("dpo", pairs.clone(), "paired_conversation", &["--max-steps=2"]);
    assert!(found.len() == 8, "{:?}", found.keys());
    let found = train("reward", pairs, "paired_conversation", &["--max-steps=2"]);
    assert!(found.len() == 9, "with a head: {:?}", found.keys());
    let prompts = json!([{"text": "aa b"}, {"text": "c"}]);
    let few = [
        "--num-raft-iteration=1",
        "--raft-batch-size=2",
        "--max-new-tokens=4",
        "--reward-rule=length:1-9",
    ];
    let found = train("raft", prompts, "text_only", &few);
    assert!(found.len() == 8, "{:?}", found.keys());
}
