//! The program with `--device`: the same texts, likelihoods and tuned weights as on the CPU, a run that
//! was killed and goes on, and the refusal where there is no driver.

use puna::cuda::Gpu;
use puna::kernels::Place;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{fixture, place, program};

/// What `--device` says to compute where the tests do; `None` without a GPU.
fn device() -> Option<String> {
    Some(match place()? {
        Place::Cuda(number) => format!("cuda:{number}"),
        _ => "harness".to_owned(),
    })
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).stdin(Stdio::null());
    // What computes takes a number of threads; what converts files has none.
    if args.first() != Some(&"quantize") {
        command.arg("--threads=1");
    }
    command
}

fn run(args: &[&str]) -> Output {
    let output = command(args).output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {text}");
    output
}

fn json(args: &[&str]) -> Value {
    serde_json::from_slice(&run(args).stdout).expect("one JSON value")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

#[test]
fn texts_and_likelihoods_are_those_of_the_cpu() {
    let Some(device) = device() else { return };
    let model = fixture("mini-gqa");
    let (model, on) = (path(&model), format!("--device={device}"));
    let text = ["generate", model, "--tokens=5,9,33,2", "--max-new-tokens=12", "--ignore-eos"];
    for more in [&["--temperature=0", "--exact"][..], &["--temperature=0.7", "--seed=4", "--exact"]]
    {
        let args = [&text[..], more, &["--json"]].concat();
        let [cpu, gpu] = [json(&args), json(&[&args[..], &[&on]].concat())];
        assert_eq!(gpu["tokens"], cpu["tokens"], "{more:?}");
    }
    let ids: Vec<String> = (0..40).map(|i| ((i * 37 + 11) % 149).to_string()).collect();
    let tokens = format!("--tokens={}", ids.join(","));
    let args = ["eval", "nll", model, &tokens, "--exact", "--json"];
    let [cpu, gpu] = [json(&args), json(&[&args[..], &[&on]].concat())];
    let [cpu, gpu] = [&cpu, &gpu].map(|found| found["nll"].as_f64().expect("a number"));
    assert!((gpu - cpu).abs() < 1e-5 * cpu, "{gpu} {cpu}");
    let bench =
        json(&["bench", model, "-p", "8", "-n", "3", "-r", "1", "--json", &on, "--no-limits"]);
    assert_eq!(bench["results"].as_array().map(Vec::len), Some(2), "{bench}");
}

#[test]
fn quantised_files_are_read_as_they_are() {
    let Some(device) = device() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let (model, on) = (fixture("mini-gqa"), format!("--device={device}"));
    let ids: Vec<String> = (0..40).map(|i| ((i * 37 + 11) % 149).to_string()).collect();
    let tokens = format!("--tokens={}", ids.join(","));
    for kind in ["q4_0", "q8_0"] {
        let file = dir.path().join(format!("{kind}.gguf"));
        run(&["quantize", path(&model), path(&file), "--type", kind]);
        let args = ["eval", "nll", path(&file), &tokens, "--json"];
        let nll = |more: &[&str]| {
            let found = json(&[&args[..], more].concat());
            found["nll"].as_f64().expect("a number")
        };
        let exact = nll(&["--exact"]);
        let off = |found: f64| (found - exact).abs() / exact;
        // In f32 but for the order of sums.
        assert!(off(nll(&["--exact", &on])) < 1e-5, "{kind}: {} {exact}", nll(&["--exact", &on]));
        // Activations of 8 bits there, weights and activations of bf16 here: both are near.
        let rounded = nll(&[&on]);
        assert!(off(rounded) < 5e-3 && rounded != exact, "{kind}: {rounded} {exact}");
    }
}

/// Rows of many lengths, as tokenised JSONL.
fn data(dir: &Path) -> PathBuf {
    let row = |i: usize| {
        let ids: Vec<u32> =
            (0..4 + i * 5 % 13).map(|j| ((i * 31 + j * j * 17 + j * 5) % 140 + 3) as u32).collect();
        format!("{}\n", serde_json::json!({ "input_ids": ids }))
    };
    let file = dir.join("rows.jsonl");
    fs::write(&file, (0..24).map(row).collect::<String>()).expect("a file");
    file
}

const TRAIN: [&str; 8] = [
    "--method=lora",
    "--lora-target-modules=all-linear",
    "--lora-dropout=0.1",
    "--learning-rate=0.01",
    "--batch-size=2",
    "--save-steps=1",
    "--seed=11",
    "--quiet",
];

fn train<'a>(model: &'a str, data: &'a str, out: &'a str, on: &'a str) -> Vec<&'a str> {
    [&["train", model, "--dataset", data, "--output", out, on][..], &TRAIN].concat()
}

fn losses(out: &Path) -> Vec<f64> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    lines.filter_map(|line: Value| line["loss"].as_f64()).collect()
}

#[test]
fn a_run_that_was_killed_ends_with_the_same_bits() {
    let Some(device) = device() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data) = (fixture("mini-gqa"), data(dir.path()));
    let on = format!("--device={device}");
    let at = |name: &str| dir.path().join(name);
    let steps = "--max-steps=8";
    let [whole, cut, cpu] = ["whole", "cut", "cpu"].map(at);
    run(&[&train(path(&model), path(&data), path(&whole), &on)[..], &[steps]].concat());
    // The series is the CPU's, but for the order of sums.
    run(&[&train(path(&model), path(&data), path(&cpu), "--device=cpu")[..], &[steps]].concat());
    let (by_gpu, by_cpu) = (losses(&whole), losses(&cpu));
    assert_eq!(by_gpu.len(), 8);
    for (gpu, cpu) in by_gpu.iter().zip(&by_cpu) {
        assert!((gpu - cpu).abs() < 1e-3 * cpu, "{by_gpu:?} {by_cpu:?}");
    }

    let again = [&train(path(&model), path(&data), path(&cut), &on)[..], &[steps]].concat();
    let mut killed = command(&again).stderr(Stdio::null()).spawn().expect("the program starts");
    let (start, mark) = (Instant::now(), cut.join("checkpoint-2"));
    while !mark.exists() && killed.try_wait().expect("a child").is_none() {
        assert!(start.elapsed() < Duration::from_secs(300), "no checkpoint came");
        std::thread::sleep(Duration::from_millis(2));
    }
    killed.kill().expect("it runs");
    killed.wait().expect("it ends");
    assert!(!cut.join("adapter_model.safetensors").exists(), "it was killed in the middle");
    run(&[&again[..], &["--resume"]].concat());
    let read = |dir: &Path| fs::read(dir.join("adapter_model.safetensors")).expect("an adapter");
    assert!(read(&cut) == read(&whole), "other bits after the cut");
    assert_eq!(losses(&cut), by_gpu);
}

#[test]
fn without_a_driver_it_says_so() {
    if Gpu::open(0).is_ok() {
        return;
    }
    let model = fixture("mini-gqa");
    let model = path(&model);
    for args in [
        &["generate", model, "--tokens=1,2", "--device=cuda"][..],
        &["bench", model, "--device=cuda"],
        &["eval", "nll", model, "--tokens=1,2,3", "--device=cuda:3"],
        &["train", model, "--dataset=/nowhere", "--output=/nowhere/out", "--device=cuda"],
    ] {
        let output = command(args).output().expect("the program starts");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("cuda:") || text.contains("/nowhere"), "{args:?}: {text}");
        assert_eq!(output.stdout, b"", "{args:?}");
    }
}
