//! The memory that `puna info` plans for training against what runs of the program then take.

use crate::support::program::puna;
use crate::support::train::{Place, Row, number};
use serde_json::{Value, json};
use std::path::Path;

const VOCAB: u32 = 8192;
const LENGTH: usize = 256;
/// How far a plan may be off.
const TOLERANCE: f64 = 0.10;

fn rows(n: usize) -> Vec<Row> {
    let row = |i: usize| {
        let ids: Vec<u32> =
            (0..LENGTH).map(|j| ((i * 7919 + j * 104_729) as u32) % (VOCAB - 8) + 8).collect();
        let labels = ids.iter().map(|&id| i64::from(id)).collect();
        (ids, labels)
    };
    (0..n).map(row).collect()
}

/// Rows of many lengths, one of them the longest.
fn varied(n: usize) -> Vec<Row> {
    let mut rows = rows(n);
    for (i, (ids, labels)) in rows.iter_mut().enumerate() {
        let len = LENGTH - i * 37 % 200;
        ids.truncate(len);
        labels.truncate(len);
        labels[..len / 4].fill(-100);
    }
    rows
}

/// A model whose weights, gradients, moments and activations all count, yet a step takes moments.
fn config(place: &Place) -> std::path::PathBuf {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512,
        "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false
    });
    let dir = place.path("random");
    std::fs::create_dir_all(&dir).expect("a folder");
    std::fs::write(dir.join("config.json"), config.to_string()).expect("a configuration");
    dir.join("config.json")
}

/// Trains two steps and returns the most bytes that the process held.
fn peak(place: &Place, model: &Path, out: &str, flags: &[&str]) -> f64 {
    let mut args = vec!["--save-steps=0", "--threads=2", "--quiet"];
    args.extend(flags);
    if !flags.iter().any(|flag| flag.starts_with("--max-steps")) {
        args.push("--max-steps=2");
    }
    place.train(model, out, &args).done();
    place.steps(out).iter().map(|step| number(step, "peak_bytes")).fold(0.0, f64::max)
}

/// What `puna info` plans.
fn plans(model: &Path, flags: &[&str]) -> Vec<Value> {
    let mut args = vec!["info", model.to_str().expect("UTF-8"), "--json", "--threads=2"];
    args.extend(flags);
    let value = puna(&args).done().json().remove(0);
    value["train_memory"].as_array().expect("plans").clone()
}

fn planned<'a>(plans: &'a [Value], method: &str, dtype: &str) -> &'a Value {
    let found = plans.iter().find(|plan| plan["method"] == method && plan["dtype"] == dtype);
    found.unwrap_or_else(|| panic!("no plan of {method} in {dtype}: {plans:?}"))
}

#[test]
fn a_run_takes_what_was_planned() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let place = Place::new(&rows(8));
    let random = config(&place);
    let mut failures = vec![];
    let mut check = |what: &str, plan: &Value, peak: f64| {
        let bytes = number(plan, "bytes");
        let off = bytes / peak - 1.0;
        let line = format!(
            "{what}: planned {:.1} MB, took {:.1} MB, {:+.1} %: {}",
            bytes / 1e6,
            peak / 1e6,
            100.0 * off,
            plan["items"]
        );
        println!("{line}");
        if off.abs() > TOLERANCE {
            failures.push(line);
        }
    };
    // The model that is written first is the base of the adapters.
    let first = peak(&place, &random, "full-f32", &["--method=full", "--batch-size=4"]);
    let base = place.path("full-f32");
    let slices = ["--block-size=256", "--batch-size=4"];
    let plain = plans(&base, &slices);
    let again = plans(&base, &[&slices[..], &["--gradient-checkpointing"]].concat());
    check("full f32", planned(&plain, "full", "f32"), first);
    for method in ["full", "lora", "qlora"] {
        for dtype in ["f32", "bf16"] {
            for (name, plans) in [("plain", &plain), ("again", &again)] {
                if (method, dtype, name) == ("full", "f32", "plain") {
                    continue;
                }
                let model = if method == "full" { &random } else { &base };
                let what = format!("{method}-{dtype}-{name}");
                let (method_flag, dtype_flag) =
                    (format!("--method={method}"), format!("--dtype={dtype}"));
                let mut flags = vec!["--batch-size=4", &method_flag, &dtype_flag];
                flags.extend((name == "again").then_some("--gradient-checkpointing"));
                let peak = peak(&place, model, &what, &flags);
                check(&what, planned(plans, method, dtype), peak);
            }
        }
    }
    // Rows of many lengths take no more than those of the longest.
    place.write("data", &varied(32));
    let peak = peak(&place, &random, "varied", &["--batch-size=1", "--max-steps=24"]);
    let plans = plans(&base, &["--block-size=256", "--batch-size=1"]);
    check("rows of many lengths", planned(&plans, "full", "f32"), peak);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn plans_follow_their_flags() {
    let place = Place::new(&rows(4));
    let random = config(&place);
    let args = ["--method=full", "--max-steps=1", "--batch-size=1", "--quiet"];
    place.train(&random, "model", &args).done();
    let model = place.path("model");
    let bytes = |flags: &[&str], method: &str, dtype: &str| {
        number(planned(&plans(&model, flags), method, dtype), "bytes")
    };
    let usual = bytes(&[], "lora", "f32");
    assert!(bytes(&[], "lora", "bf16") < usual);
    assert!(bytes(&[], "qlora", "f32") < usual);
    assert!(bytes(&[], "qlora", "bf16") < bytes(&[], "lora", "bf16"));
    assert!(usual < bytes(&[], "full", "f32"));
    assert!(bytes(&["--gradient-checkpointing"], "lora", "f32") < usual);
    assert!(bytes(&["--block-size=1024"], "lora", "f32") > usual);
    assert!(bytes(&["--block-size=128"], "lora", "f32") < usual);
    assert!(bytes(&["--lora-target-modules=all-linear"], "lora", "f32") > usual);
    // A step takes its rows in slices of at most 512 tokens, so more rows take no more.
    assert_eq!(bytes(&["--batch-size=9"], "lora", "f32"), usual);
    let more = bytes(&["--batch-size=2", "--block-size=128"], "lora", "f32");
    assert!(more > bytes(&["--block-size=128"], "lora", "f32"));

    let plan = &plans(&model, &[])[0];
    let items = plan["items"].as_object().expect("items by name");
    let sum: u64 = items.values().filter_map(Value::as_u64).sum();
    assert_eq!(Some(sum), plan["bytes"].as_u64());
    let model = model.to_str().expect("UTF-8");
    let text = puna(&["info", model]).done().stdout;
    assert!(text.contains("to train") && text.contains("qlora f32"), "{text}");
    // What is quantised already has no such plan.
    let text = puna(&["info", "builtin"]).done().stdout;
    assert!(text.contains("lora f32") && !text.contains("qlora"), "{text}");
}

#[test]
fn a_dry_run_tells_the_plan() {
    let place = Place::new(&rows(4));
    let random = config(&place);
    let args = ["--method=full", "--dry-run", "--batch-size=2", "--max-steps=1"];
    let json = place.train(&random, "out", &[&args[..], &["--json"]].concat()).done();
    let plan = json.json().remove(0);
    let (planned, probed) = (number(&plan, "planned_bytes"), number(&plan, "probe_peak_bytes"));
    assert!((planned / probed - 1.0).abs() < TOLERANCE, "{planned} and {probed}");
    let told = place.train(&random, "out", &[&args[..], &["-v"]].concat()).done();
    assert!(told.stdout.contains(" planned, "), "{}", told.stdout);
    for item in ["activations", "gradients", "optimiser"] {
        assert!(told.stderr.contains(item), "{}", told.stderr);
    }
}
