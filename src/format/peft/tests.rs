//! Adapters against PEFT's own files, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::format::FileDType;
use crate::format::safetensors_write::{SafetensorsWriter, TensorSpec};

/// Sizes of `mini-gqa`.
const SHAPES: LinearShapes =
    LinearShapes { n_layers: 4, dim: 64, hidden_dim: 192, q_rows: 64, kv_rows: 16 };

fn fixture(name: &str) -> PathBuf {
    Path::new("tests/fixtures/mini-gqa").join(name)
}

#[test]
fn pefts_files_are_read_and_written_with_the_same_bytes() {
    for (name, r, scale, targets) in
        [("lora-all-init", 4, 2.0, 7), ("lora-qv-init", 4, 2.0, 2), ("lora-qv-final", 4, 2.0, 2)]
    {
        let adapter = read(&fixture(name), &SHAPES).unwrap();
        assert_eq!((adapter.spec.r, adapter.spec.targets.len()), (r, targets), "{name}");
        assert_eq!(adapter.spec.scale(), scale, "{name}");
        assert_eq!(adapter.pairs.len(), 4 * targets);
        assert!(adapter.pairs.iter().any(|pair| pair.a.iter().any(|&x| x != 0.0)));

        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("adapter");
        write(&out, &adapter, "some/base").unwrap();
        assert_eq!(read(&out, &SHAPES).unwrap(), adapter);
        let bytes = |dir: &Path| fs::read(dir.join(WEIGHTS_NAME)).unwrap();
        assert!(bytes(&out) == bytes(&fixture(name)), "{name}: the file differs from PEFT's");
        let settings = |dir: &Path| -> Value {
            serde_json::from_slice(&fs::read(dir.join(CONFIG_NAME)).unwrap()).unwrap()
        };
        let (ours, theirs) = (settings(&out), settings(&fixture(name)));
        for (key, value) in ours.as_object().unwrap() {
            if key != "base_model_name_or_path" {
                assert_eq!(value, &theirs[key], "{name}: {key}");
            }
        }
        assert_eq!(ours["base_model_name_or_path"], "some/base");
    }
}

#[test]
fn scales() {
    let mut spec = LoraSpec {
        r: 16,
        alpha: 8.0,
        dropout: 0.0,
        targets: LoraSpec::DEFAULT_TARGETS.to_vec(),
        use_rslora: false,
    };
    assert_eq!(spec.scale(), 0.5);
    spec.use_rslora = true;
    assert_eq!(spec.scale(), 2.0);
    assert!(spec.check("").is_ok());
    for broken in [
        LoraSpec { r: 0, ..spec.clone() },
        LoraSpec { alpha: f32::NAN, ..spec.clone() },
        LoraSpec { dropout: 1.0, ..spec.clone() },
        LoraSpec { targets: vec![], ..spec.clone() },
    ] {
        assert!(broken.check("--lora-").is_err(), "{broken:?}");
    }
}

#[test]
fn lists_of_targets() {
    assert_eq!(Target::parse_list("all-linear").unwrap(), Target::ALL);
    assert_eq!(Target::parse_list("v_proj, wq,q_proj").unwrap(), [Target::Wq, Target::Wv]);
    for bad in ["", "q_proj,", "lm_head", "q"] {
        let error = Target::parse_list(bad).unwrap_err().to_string();
        assert!(error.contains("gate_proj"), "{error}");
    }
}

/// Settings of a sound adapter on Q and V.
fn sound() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]})
}

fn spec_of(dir: &Path, settings: &Value) -> Result<LoraSpec> {
    fs::write(dir.join(CONFIG_NAME), settings.to_string()).unwrap();
    read_spec(dir)
}

#[test]
fn target_modules_in_every_spelling() {
    let dir = tempfile::tempdir().unwrap();
    let (q, v) = (Target::Wq, Target::Wv);
    for (value, wanted) in [
        (json!("all-linear"), Some(Target::ALL.to_vec())),
        (json!(["v_proj", "q_proj", "q_proj"]), Some(vec![q, v])),
        (json!(["self_attn.q_proj"]), Some(vec![q])),
        (json!(".*\\.(q_proj|v_proj)$"), Some(vec![q, v])),
        (json!(".*(?:q_proj|v_proj)"), Some(vec![q, v])),
        (json!(".*q_proj"), Some(vec![q])),
        (json!("model\\.layers\\.[0-9]\\.self_attn\\.q_proj"), None),
        (json!(".*q_pro."), None),
        (json!(["mlp.q_proj"]), None),
        (json!(["wq"]), None),
        (json!(["q_proj", "lm_head"]), None),
        (json!(["model.layers.0.self_attn.q_proj"]), None),
        (json!([]), None),
        (json!([1]), None),
        (json!(3), None),
        (json!(null), None),
    ] {
        let mut settings = sound();
        settings["target_modules"] = value.clone();
        let got = spec_of(dir.path(), &settings);
        match (wanted, got) {
            (Some(wanted), Ok(spec)) => assert_eq!(spec.targets, wanted, "{value}"),
            (None, Err(error)) => assert!(error.to_string().contains("target_modules"), "{error}"),
            (wanted, got) => panic!("{value}: wanted {wanted:?}, got {got:?}"),
        }
    }
}

#[test]
fn settings_that_are_not_computed_are_refused_by_key_and_value() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("peft_type", json!("LOHA")),
        ("peft_type", json!(null)),
        ("r", json!(0)),
        ("r", json!(-1)),
        ("r", json!(2.5)),
        ("r", json!(1_000_000)),
        ("r", json!(null)),
        ("lora_alpha", json!("4")),
        ("lora_alpha", json!(1e300)),
        ("lora_alpha", json!(null)),
        ("lora_dropout", json!(1.0)),
        ("lora_dropout", json!(-0.1)),
        ("use_rslora", json!("yes")),
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("use_newlora", json!(true)),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("trainable_token_indices", json!([5])),
        ("target_parameters", json!(["x"])),
        ("rank_pattern", json!({"q_proj": 8})),
        ("alpha_pattern", json!({"q_proj": 8})),
        ("layers_to_transform", json!([0])),
        ("layers_pattern", json!("layers")),
        ("layer_replication", json!([[0, 2]])),
        ("exclude_modules", json!(["k_proj"])),
        ("alora_invocation_tokens", json!([1])),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("loftq")),
    ];
    let mut failures = vec![];
    for (key, value) in cases {
        let mut settings = sound();
        settings[key] = value.clone();
        match spec_of(dir.path(), &settings) {
            Ok(spec) => failures.push(format!("{key} {value} was taken: {spec:?}")),
            Err(error) => {
                let text = error.to_string();
                let names_value = value.is_null()
                    || text.contains(&value.to_string())
                    || value.as_f64().is_some_and(|x| text.contains(&x.to_string()));
                // `r` is reported as lora_r where it is a number out of range.
                if !text.contains(key) || !names_value || !text.contains(CONFIG_NAME) {
                    failures.push(format!("{key} {value}: {text}"));
                }
            }
        }
    }
    for text in ["", "[]", "{", "{\"r\": 1", "null"] {
        fs::write(dir.path().join(CONFIG_NAME), text).unwrap();
        if read_spec(dir.path()).is_ok() {
            failures.push(format!("{text:?} was taken"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let mut quiet = sound();
    for (key, value) in [
        ("use_dora", json!(false)),
        ("modules_to_save", json!([])),
        ("init_lora_weights", json!(true)),
    ] {
        quiet[key] = value;
    }
    assert_eq!(spec_of(dir.path(), &quiet).unwrap().scale(), 2.0);
}

/// One block of width 4 with one head.
const TINY: LinearShapes =
    LinearShapes { n_layers: 1, dim: 4, hidden_dim: 6, q_rows: 4, kv_rows: 4 };

/// A sound adapter of [`TINY`] as names, shapes and values.
fn tensors() -> Vec<(TensorSpec, Vec<f32>)> {
    let pair = |target: Target| {
        [("lora_A", vec![2, 4]), ("lora_B", vec![4, 2])].map(|(half, shape)| {
            let spec = TensorSpec { name: target.key(0, half), dtype: FileDType::F32, shape };
            (spec, vec![0.5f32; 8])
        })
    };
    [Target::Wq, Target::Wv].into_iter().flat_map(pair).collect()
}

fn save(dir: &Path, tensors: &[(TensorSpec, Vec<f32>)]) {
    fs::write(dir.join(CONFIG_NAME), sound().to_string()).unwrap();
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut file = SafetensorsWriter::start(&dir.join(WEIGHTS_NAME), &specs).unwrap();
    for (_, values) in tensors {
        file.write(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    }
    file.finish().unwrap();
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    type Change = fn(&mut Vec<(TensorSpec, Vec<f32>)>);
    let cases: [(&str, Change, &str); 8] = [
        ("half a pair", |t| drop(t.remove(1)), "q_proj.lora_B.weight is missing; its other half"),
        ("no pair", |t| drop(t.drain(2..)), "v_proj.lora_A.weight is missing"),
        ("another rank", |t| t[0].0.shape = vec![1, 8], "shape [1, 8], wanted [2, 4]"),
        ("another width", |t| t[1].0.shape = vec![8, 1], "shape [8, 1], wanted [4, 2]"),
        ("a vector", |t| t[1].0.shape = vec![8], "shape [8], wanted [4, 2]"),
        ("not finite", |t| t[0].1[3] = f32::INFINITY, "value inf"),
        (
            "an unknown name",
            |t| t.push((TensorSpec { name: "x".into(), ..t[0].0.clone() }, vec![0.0; 8])),
            "\"x\" is no part",
        ),
        (
            "a block too many",
            |t| {
                t.push((
                    TensorSpec { name: Target::Wq.key(1, "lora_A"), ..t[0].0.clone() },
                    vec![0.0; 8],
                ))
            },
            "layers.1.",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &tensors());
    assert_eq!(read(dir.path(), &TINY).unwrap().n_parameters(), 32);
    for (what, change, wanted) in cases {
        let mut list = tensors();
        change(&mut list);
        save(dir.path(), &list);
        let error = read(dir.path(), &TINY).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains(WEIGHTS_NAME), "{what}: {error}");
    }
}

#[test]
fn files_that_are_missing_or_pickled() {
    let dir = tempfile::tempdir().unwrap();
    let error = |dir: &Path| read(dir, &TINY).unwrap_err().to_string();
    assert!(error(dir.path()).contains("no adapter_config.json"));
    fs::write(dir.path().join(CONFIG_NAME), sound().to_string()).unwrap();
    assert!(error(dir.path()).contains("no adapter_model.safetensors"));
    fs::write(dir.path().join("adapter_model.bin"), "x").unwrap();
    assert!(error(dir.path()).contains("adapter_model.bin: pickled"));
    assert!(matches!(read(&dir.path().join("none"), &TINY), Err(Error::Io { .. })));
    // Every prefix of a sound file is refused, never a panic.
    save(dir.path(), &tensors());
    let whole = fs::read(dir.path().join(WEIGHTS_NAME)).unwrap();
    for len in 0..whole.len() {
        fs::write(dir.path().join(WEIGHTS_NAME), &whole[..len]).unwrap();
        assert!(read(dir.path(), &TINY).is_err(), "{len} bytes");
    }
}

#[test]
fn nothing_is_left_where_writing_fails() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = read(&fixture("lora-qv-init"), &SHAPES).unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(write(&file.join("adapter"), &adapter, ""), Err(Error::Io { .. })));
    let mut broken = adapter.clone();
    broken.pairs[3].b.pop();
    assert!(matches!(write(&dir.path().join("adapter"), &broken, ""), Err(Error::Shape { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
