//! `puna verify` through the binary: equal models pass, unequal ones are told apart and fail a bound.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder of a reference model.
fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model)
}

fn puna(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_puna")).args(args).output().expect("the binary runs")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of the checkout")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("an object on stdout")
}

const TOKENS: &str = "3,17,42,9,101,55,7,3,88,120,64,31";

#[test]
fn a_model_equals_itself_and_its_merged_adapter() {
    let base = fixture("mini-gqa");
    let adapter = base.join("lora-all-init");
    let out = puna(&["verify", path(&base), path(&base), "--tokens", TOKENS, "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let found = json(&out);
    assert_eq!(found["max_difference"], 0.0);
    assert_eq!((&found["top1_agreement"], &found["positions"]), (&1.0.into(), &12.into()));

    let dir = tempfile::tempdir().unwrap();
    let merged = dir.path().join("merged");
    let out = puna(&["merge", path(&base), "--adapter", path(&adapter), path(&merged)]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let out = puna(&[
        "verify",
        path(&base),
        "--adapter",
        path(&adapter),
        path(&merged),
        "--tokens",
        TOKENS,
        "--json",
        "--max-kl",
        "1e-6",
        "--min-agreement",
        "1",
    ]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let found = json(&out);
    let relative =
        found["max_difference"].as_f64().unwrap() / found["largest_logit"].as_f64().unwrap();
    assert!(relative > 0.0 && relative < 1e-4, "{found}");
}

#[test]
fn a_difference_is_shown_and_a_bound_that_it_passes_fails() {
    let base = fixture("mini-gqa");
    let adapter = base.join("lora-all-init");
    let (base, adapter) = (path(&base), path(&adapter));
    let common = ["verify", base, base, "--adapter-b", adapter, "--tokens", TOKENS];
    for (flag, bound) in [("--max-difference", "1e-3"), ("--max-kl", "1e-9")] {
        let out = puna(&[&common[..], &[flag, bound]].concat());
        assert_eq!(out.status.code(), Some(1), "{flag}");
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(text.contains("wanted within"), "{text}");
        assert!(!out.stdout.is_empty(), "the numbers are printed all the same");
    }
    let out = puna(&["verify", base]);
    assert_eq!(out.status.code(), Some(2));
    let out = puna(&["verify", base, path(&fixture("mini-mha")), "--tokens", "1,2"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("vocabulary"));
}

#[test]
fn a_merge_into_weights_of_few_bits_keeps_the_adapter() {
    let base = fixture("mini-gqa");
    let adapter = base.join("lora-all-init");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let run = |args: &[&str]| {
        let out = puna(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        out
    };
    run(&["quantize", path(&base), path(&at("q4.gguf")), "--type", "q4_0"]);
    let q4 = at("q4.gguf");
    let merge = ["merge", path(&q4), "--adapter", path(&adapter)];
    let out = run(&[&merge[..], &[path(&at("kept.gguf")), "--json"]].concat());
    let types = &json(&out)["tensor_types"];
    assert!(types.get("Q4_0").is_none_or(|n| n == 1) && types["Q8_0"] == 28, "{types}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("Q4_0"), "it says so");
    run(&[&merge[..], &[path(&at("rounded.gguf")), "--dtype", "q4_0"]].concat());
    let kl = |merged: &str| {
        let other = at(merged);
        let args = ["verify", path(&q4), path(&other), "--adapter", path(&adapter)];
        let out = run(&[&args[..], &["--tokens", TOKENS, "--json"]].concat());
        json(&out)["kl"].as_f64().expect("a number")
    };
    let (kept, rounded) = (kl("kept.gguf"), kl("rounded.gguf"));
    assert!(kept < rounded / 10.0, "{kept} and {rounded}");
}
