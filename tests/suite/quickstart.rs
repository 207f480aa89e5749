//! `puna quickstart` as a new user runs it: the accuracy rises, and what it names is there.

use serde_json::Value;
use std::process::Command;

#[test]
fn accuracy_rises_from_near_nothing_to_above_eighty_percent() {
    let dir = tempfile::tempdir().unwrap();
    let run = |extra: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_puna"))
            .args(["quickstart", "--output", "first"])
            .args(extra)
            .current_dir(dir.path())
            .output()
            .expect("the binary runs")
    };
    let out = run(&["--json"]);
    let errors = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{errors}");
    let found: Value = serde_json::from_slice(&out.stdout).expect("an object on stdout");
    let number = |key: &str| found[key].as_f64().unwrap();
    assert!(number("accuracy_before") < 0.05, "{found}");
    assert!(number("accuracy_after") > 0.8, "{found}");
    assert_eq!(found["answers"].as_array().unwrap().len(), 3);
    let first = dir.path().join("first");
    for file in ["adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "report.html"]
    {
        assert!(first.join(file).is_file(), "{file}");
    }
    // What it says to try next works, and a directory of somebody else's is left alone.
    let out = Command::new(env!("CARGO_BIN_EXE_puna"))
        .args(["generate", "builtin", "--adapter", "first", "--chat", "--temperature", "0"])
        .args(["-p", "Ben has a green hat. What color is the hat?"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(out.status.success());
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "green");
    std::fs::remove_file(first.join(".quickstart")).unwrap();
    let out = run(&[]);
    assert_eq!(out.status.code(), Some(2));
    assert!(first.join("adapter_model.safetensors").is_file());
}
