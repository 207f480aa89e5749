//! `puna train` against curves and weights that transformers and PEFT computed from the same
//! weights and rows: loss, gradient norm and rate of every step, and the weights in the end.

use crate::support::fixture;
use crate::support::train::{Place, Row, number, tensors};
use serde_json::Value;
use std::collections::BTreeMap;

/// What the references' own floor (1e-6, other kernels of the same library) leaves room for.
const LOSS_TOLERANCE: f64 = 1e-5;
const WEIGHT_TOLERANCE: f64 = 1e-4;

/// Every series that there is.
const SERIES: &[(&str, &str)] = &[
    ("mini-gqa", "train-full"),
    ("mini-gqa", "train-full-accum2"),
    ("mini-gqa", "train-lora-qv"),
    ("mini-gqa", "train-lora-all"),
    ("mini-gqa", "train-qlora-all"),
    ("mini-mha", "train-full"),
    ("mini-mha", "train-full-accum2"),
    ("mini-mha", "train-lora-qv"),
    ("mini-mha", "train-lora-all"),
    ("mini-dynamic", "train-full"),
    ("mini-dynamic", "train-lora-qv"),
    ("mini-headdim-bias", "train-full"),
    ("mini-headdim-bias", "train-lora-qv"),
    ("mini-linear", "train-full"),
    ("mini-linear", "train-lora-qv"),
    ("mini-llama3rope", "train-full"),
    ("mini-llama3rope", "train-lora-qv"),
];

/// The rows of all batches, and how many a batch has.
fn rows(series: &Value) -> (Vec<Row>, usize) {
    let batches = series["batches"].as_array().expect("batches");
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let mut rows = vec![];
    let mut size = None;
    for batch in batches {
        let (ids, labels) = (list(&batch["input_ids"]), list(&batch["labels"]));
        assert_eq!(*size.get_or_insert(ids.len()), ids.len());
        for (ids, labels) in ids.iter().zip(&labels) {
            let labels = list(labels).iter().map(|l| l.as_i64().expect("a label")).collect();
            rows.push((fixture::ids(ids), labels));
        }
    }
    (rows, size.expect("at least one batch"))
}

/// The flags that say what the reference did.
fn flags(model: &str, name: &str, hyper: &Value, batch: usize) -> Vec<String> {
    let text = |key: &str| match &hyper[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut flags: Vec<String> = vec!["--no-shuffle".into(), "--num-train-epochs=1".into()];
    let mut add = |flag: &str, value: String| flags.push(format!("--{flag}={value}"));
    add("batch-size", batch.to_string());
    add("gradient-accumulation-steps", text("accum"));
    add("learning-rate", text("lr"));
    add("adam-beta1", text("beta1"));
    add("adam-beta2", text("beta2"));
    add("adam-epsilon", text("eps"));
    add("weight-decay", text("weight_decay"));
    add("max-grad-norm", text("clip"));
    add("warmup-steps", text("warmup"));
    add("lr-scheduler-type", text("schedule"));
    add("method", text("tune"));
    if text("tune").contains("lora") {
        let init = fixture::dir(model).join(name.replace("train-", "") + "-init");
        add("adapter", init.to_str().expect("UTF-8").into());
    }
    if text("tune") == "qlora" {
        add("double-quant", text("double_quant"));
    }
    if hyper["no_decay_norms"] == false {
        flags.push("--decay-all".into());
    }
    flags
}

/// Faults of one series.
fn compare(model: &str, name: &str) -> Vec<String> {
    let series = fixture::json(model, &format!("{name}.json"));
    let (rows, batch) = rows(&series);
    let place = Place::new(&rows);
    let flags = flags(model, name, &series["hyper"], batch);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let run = place.train(&fixture::dir(model), "out", &flags);
    if run.status != Some(0) {
        return vec![format!("{model} {name}: {}", run.stderr)];
    }
    let mut faults = vec![];
    let mut check = |what: &str, found: f64, wanted: f64, tolerance: f64| {
        if (found - wanted).abs() > tolerance || !found.is_finite() {
            faults.push(format!("{model} {name}: {what} {found}, wanted {wanted}"));
        }
    };
    let curve = series["curve"].as_array().expect("a curve");
    let steps = place.steps("out");
    assert_eq!(steps.len(), curve.len(), "{model} {name}");
    for (found, wanted) in steps.iter().zip(curve) {
        let step = &wanted["step"];
        let both = |key: &str| (number(found, key), number(wanted, key));
        let (loss, wanted_loss) = both("loss");
        check(&format!("step {step}: loss"), loss, wanted_loss, LOSS_TOLERANCE);
        let (norm, wanted_norm) = both("grad_norm");
        check(&format!("step {step}: norm"), norm, wanted_norm, 1e-4 * wanted_norm);
        let (lr, wanted_lr) = both("lr");
        check(&format!("step {step}: rate"), lr, wanted_lr, 1e-12);
        let scored = number(wanted, "scored_tokens");
        check(&format!("step {step}: tokens"), number(found, "tokens"), scored, 0.0);
    }
    let file = match name.contains("lora") {
        true => "adapter_model.safetensors",
        false => "model.safetensors",
    };
    let found = tensors(&place.path("out").join(file));
    for (name, wanted) in series["final"].as_object().expect("tensors") {
        let name = name.replace(".default.", ".");
        let Some(found) = found.get(&name) else {
            check(&format!("{name} is not there:"), 0.0, 1.0, 0.0);
            continue;
        };
        let l2 = found.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let wanted_l2 = number(wanted, "l2");
        check(&format!("{name}: l2"), l2, wanted_l2, WEIGHT_TOLERANCE * wanted_l2);
        let sum = found.iter().map(|&x| f64::from(x)).sum::<f64>();
        let room = WEIGHT_TOLERANCE * number(wanted, "abs_sum");
        check(&format!("{name}: sum"), sum, number(wanted, "sum"), room);
        let first = fixture::numbers(&wanted["first8"]);
        for (i, (found, wanted)) in found.iter().zip(&first).enumerate() {
            let size = wanted_l2 / (number_of(&wanted_shape(&series, &name)) as f64).sqrt();
            let room = WEIGHT_TOLERANCE * (size + wanted.abs());
            check(&format!("{name}[{i}]"), f64::from(*found), *wanted, room);
        }
    }
    faults
}

fn wanted_shape(series: &Value, name: &str) -> Vec<u32> {
    let all = series["final"].as_object().expect("tensors");
    let tensor = all.iter().find(|(n, _)| n.replace(".default.", ".") == name);
    fixture::ids(&tensor.expect("a tensor").1["shape"])
}

fn number_of(shape: &[u32]) -> u32 {
    shape.iter().product()
}

#[test]
fn every_series_is_that_of_the_reference() {
    let faults: Vec<String> =
        SERIES.iter().flat_map(|(model, name)| compare(model, name)).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Norm of the difference over the norm of what is wanted, over all tensors together.
fn distance(found: &BTreeMap<String, Vec<f32>>, wanted: &BTreeMap<String, Vec<f32>>) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    for (name, wanted) in wanted {
        let found = found.get(name).unwrap_or_else(|| panic!("{name} is not there"));
        assert_eq!(found.len(), wanted.len(), "{name}");
        for (found, wanted) in found.iter().zip(wanted) {
            difference += (f64::from(*found) - f64::from(*wanted)).powi(2);
            size += f64::from(*wanted).powi(2);
        }
    }
    (difference / size).sqrt()
}

#[test]
fn all_weights_are_those_of_the_reference() {
    let cases = [
        ("mini-mha", "train-full", "model.safetensors", "train-full-final.safetensors"),
        ("mini-mha", "train-lora-qv", "adapter_model.safetensors", "lora-qv-final"),
        ("mini-mha", "train-lora-all", "adapter_model.safetensors", "lora-all-final"),
        ("mini-gqa", "train-lora-qv", "adapter_model.safetensors", "lora-qv-final"),
        ("mini-gqa", "train-lora-all", "adapter_model.safetensors", "lora-all-final"),
    ];
    for (model, name, file, wanted) in cases {
        let series = fixture::json(model, &format!("{name}.json"));
        let (rows, batch) = rows(&series);
        let place = Place::new(&rows);
        let flags = flags(model, name, &series["hyper"], batch);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        place.train(&fixture::dir(model), "out", &flags).done();
        let found = tensors(&place.path("out").join(file));
        let wanted = fixture::dir(model).join(wanted);
        let wanted = if wanted.is_dir() { wanted.join(file) } else { wanted };
        let distance = distance(&found, &tensors(&wanted));
        assert!(distance < WEIGHT_TOLERANCE, "{model} {name}: {distance:.2e}");
        // What training began with is further away, so the test can fail.
        if name.contains("lora") {
            let init = fixture::dir(model).join(name.replace("train-", "") + "-init").join(file);
            assert!(self::distance(&tensors(&init), &tensors(&wanted)) > 1e-2, "{model} {name}");
        }
    }
}
