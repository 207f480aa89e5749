//! `puna train` as a user meets it: help, a look at the data, the plan, flags from a file, what a
//! run leaves, errors.

use crate::support::program::puna;
use crate::support::train::{Place, Row, number};
use crate::support::{fixture, toy, train};
use serde_json::{Value, json};
use std::fs;

fn rows(n: usize) -> Vec<Row> {
    let row = |i: usize| {
        let ids: Vec<u32> = (0..6 + i % 5).map(|j| ((i * 31 + j * 17) % 317 + 3) as u32).collect();
        let label = |(j, &id): (usize, &u32)| if j < 2 { -100 } else { i64::from(id) };
        let labels = ids.iter().enumerate().map(label).collect();
        (ids, labels)
    };
    (0..n).map(row).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn the_help_is_narrow_and_shows_an_example() {
    let run = puna(&["train", "--help"]).done();
    let widest = run.stdout.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{widest:?} columns");
    for part in ["Example: puna train", "Data:", "Optimiser:", "Evaluation:", "lora 1e-4"] {
        assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
    }
    assert_eq!(run.stderr, "");
}

#[test]
fn a_run_leaves_what_it_promises() {
    let place = Place::new(&rows(24));
    let args = [
        "--method=lora",
        "--num-train-epochs=2",
        "--batch-size=4",
        "--validation-split-percentage=25",
        "--eval-on-start",
        "--learning-rate=0.01",
        "--save-steps=4",
        "--json",
    ];
    let run = place.train(&fixture::dir("mini-gqa"), "out", &args).done();
    let out = place.path("out");
    for name in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "metrics.jsonl",
        "report.html",
        "train_results.json",
        "checkpoint-4/manifest.json",
        "checkpoint-4/adapter_model.safetensors",
        "checkpoint-4/optimizer.safetensors",
        "checkpoint-4/state.json",
    ] {
        assert!(out.join(name).exists(), "{name}");
    }
    let lines = place.metrics("out");
    let wanted = ["step", "epoch", "loss", "lr", "grad_norm", "tokens", "tok_per_s", "peak_bytes"];
    let steps = place.steps("out");
    assert_eq!((keys(&steps[0]), steps.len()), (wanted.to_vec(), 10));
    let evals: Vec<&Value> = lines.iter().filter(|line| line.get("eval_loss").is_some()).collect();
    let wanted = ["step", "eval_loss", "eval_accuracy", "eval_ppl", "eval_tokens"];
    assert_eq!(keys(evals[0]), wanted);
    let at: Vec<f64> = evals.iter().map(|line| number(line, "step")).collect();
    assert_eq!(at, [0.0, 5.0, 10.0], "before, and after each epoch");
    assert!(number(&steps[9], "loss") < number(&steps[0], "loss"));
    assert!((number(evals[0], "eval_ppl").ln() - number(evals[0], "eval_loss")).abs() < 1e-9);
    let found = run.json();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0]["end"].as_str(), found[0]["steps"].as_u64()),
        (Some("complete"), Some(10))
    );
    assert_eq!(found[0]["method"], "lora");
    assert!(run.stderr.contains("step 10/10"), "{}", run.stderr);
    let page = fs::read_to_string(out.join("report.html")).expect("a report");
    assert!(page.contains("<svg") && page.contains("lora_alpha") && !page.contains("<script"));
}

#[test]
fn texts_are_shown_with_their_mask() {
    let place = Place::new(&[]);
    let model = place.path("model");
    fs::create_dir(&model).expect("a folder");
    toy::make(&model);
    fs::remove_file(place.path("data/rows.jsonl")).expect("no rows");
    let instances = json!([{"input": "aa bb", "output": "cc"}, {"input": "b", "output": "a"}]);
    let set = json!({"type": "text2text", "instances": instances});
    fs::write(place.path("data/set.json"), set.to_string()).expect("a set");
    let run =
        place.train(&model, "out", &["--show-batch=5", "--no-shuffle", "--no-packing"]).done();
    assert!(run.stdout.contains("row 1 of 2") && run.stdout.contains('['), "{}", run.stdout);
    assert!(!place.path("out").exists(), "nothing is written");
}

#[test]
fn a_dry_run_tells_the_plan_and_writes_nothing() {
    let place = Place::new(&rows(24));
    let args = ["--dry-run", "--batch-size=4", "--gradient-accumulation-steps=2", "--json"];
    let run = place.train(&fixture::dir("mini-gqa"), "out", &args).done();
    let plan = &run.json()[0];
    assert_eq!((plan["steps"].as_u64(), plan["rows"].as_u64()), (Some(9), Some(24)));
    let tokens: usize = rows(24).iter().map(|(ids, _)| ids.len()).sum();
    assert_eq!(plan["tokens"].as_u64(), Some(3 * tokens as u64));
    for key in ["tok_per_s", "seconds", "trained_parameters", "probe_peak_bytes"] {
        assert!(number(plan, key) > 0.0, "{key}");
    }
    assert!(!place.path("out").exists(), "nothing is written");
    let run = place.train(&fixture::dir("mini-gqa"), "out", &["--dry-run"]).done();
    assert!(run.stdout.contains("steps") && run.stdout.contains("memory"), "{}", run.stdout);
}

#[test]
fn flags_come_from_a_file_and_the_command_line_wins() {
    let place = Place::new(&rows(16));
    let config = place.path("run.yaml");
    let text = "per_device_train_batch_size: 4\nmax_steps: 3\nlearning_rate: 0.001\nlr_scheduler_type: constant\n\
                no_shuffle: true\nlora_target_modules: [q_proj, o_proj]\nmethod: lora\n";
    fs::write(&config, text).expect("a file");
    let args = ["--config", config.to_str().expect("UTF-8"), "--max-steps", "2", "--quiet"];
    place.train(&fixture::dir("mini-gqa"), "out", &args).done();
    let steps = place.steps("out");
    assert_eq!(steps.len(), 2);
    assert!(steps.iter().all(|line| number(line, "lr") == 0.001));
    let adapter = train::tensors(&place.path("out/adapter_model.safetensors"));
    assert!(adapter.keys().any(|name| name.contains("o_proj")));
    assert!(adapter.keys().all(|name| !name.contains("v_proj")));
}

#[test]
fn weights_can_start_at_random() {
    let place = Place::new(&rows(16));
    let config = place.path("config.json");
    fs::copy(fixture::dir("mini-gqa").join("config.json"), &config).expect("a config");
    let args = ["--max-steps=2", "--batch-size=4", "--quiet", "--learning-rate=0.001"];
    place.train(&config, "out", &args).done();
    assert!(place.path("out/model.safetensors").exists());
    assert!(place.path("out/config.json").exists());
    // The seed decides them.
    place.train(&config, "same", &args).done();
    let seed = [&args[..], &["--seed=9"]].concat();
    place.train(&config, "other", &seed).done();
    let read = |out: &str| fs::read(place.path(out).join("model.safetensors")).expect("weights");
    assert!(read("out") == read("same") && read("out") != read("other"));
}

#[test]
fn what_cannot_be_trained_on_is_refused_with_its_place() {
    let model = fixture::dir("mini-gqa");
    let mut rows = rows(6);
    rows[3].1.fill(-100);
    let place = Place::new(&rows);
    let run = place.train(&model, "out", &["--max-steps=1"]);
    assert_eq!(run.status, Some(1));
    assert!(run.stderr.contains("rows.jsonl"), "{}", run.stderr);
    assert!(!place.path("out/metrics.jsonl").exists());
    let args = ["--max-steps=1", "--skip-bad-instances"];
    let run = place.train(&model, "out", &args).done();
    assert!(run.stderr.contains("1 instances left out"), "{}", run.stderr);
    let run = place.train(&model, "other", &["--device=cuda"]);
    assert!(run.status == Some(1) && run.stderr.contains("device cuda:0"), "{}", run.stderr);
    let run = place.train(&place.path("none"), "other", &[]);
    assert!(run.status == Some(1) && run.stderr.contains("none"), "{}", run.stderr);
}
