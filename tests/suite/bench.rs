//! `puna bench` as its users read it: every format holds the same results, shares are those of
//! limits measured beside the run, and `--compare` fails exactly where a test got slower.

use crate::support::program::puna;
use crate::support::toy;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Six short tests of the built-in model, without the machine's limits.
const QUICK: [&str; 14] =
    ["bench", "builtin", "-p", "4", "-n", "3", "-d", "0,5", "-b", "1,2", "-r", "2", "-t", "1"];
const NAMES: [&str; 6] = ["pp4", "tg3", "tg3 b2", "pp4 @ d5", "tg3 @ d5", "tg3 b2 @ d5"];

fn quick(format: &str) -> String {
    puna(&[&QUICK[..], &["--no-limits", "-o", format]].concat()).done().stdout
}

fn object(text: &str) -> Map<String, Value> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => map,
        other => panic!("{text}: {other:?}"),
    }
}

fn results(run: &Value) -> &[Value] {
    run["results"].as_array().map_or(&[][..], Vec::as_slice)
}

/// Lines of RFC 4180.
fn csv_lines(text: &str) -> Vec<Vec<String>> {
    let (mut lines, mut line, mut cell, mut quoted) = (vec![], vec![], String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => cell.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => line.push(std::mem::take(&mut cell)),
            '\n' if !quoted => {
                line.push(std::mem::take(&mut cell));
                lines.push(std::mem::take(&mut line));
            }
            c => cell.push(c),
        }
    }
    assert!(!quoted && cell.is_empty() && line.is_empty(), "an unfinished line");
    lines
}

#[test]
fn json_names_every_test_and_what_it_took() {
    let run: Value = serde_json::from_str(&quick("json")).unwrap();
    assert_eq!((&run["model"], &run["schema"]), (&json!("builtin"), &json!(1)));
    assert_eq!((&run["type"], &run["kv_type"]), (&json!("Q6_K"), &json!("f16")));
    assert_eq!(run["limits"], json!([]));
    let names: Vec<&str> = results(&run).iter().filter_map(|row| row["test"].as_str()).collect();
    assert_eq!(names, NAMES);
    for row in results(&run) {
        let number = |key: &str| row[key].as_f64().unwrap_or(-1.0);
        assert_eq!(row["samples_ts"].as_array().map(Vec::len), Some(2), "{row}");
        for key in ["avg_ts", "gop_per_token", "gop_per_s"] {
            assert!(number(key) > 0.0, "{key}: {row}");
        }
        assert!(["int8", "f32"].map(Value::from).contains(&row["unit"]), "{row}");
        for key in ["read_gb_per_s", "read_percent", "peak_gop_per_s", "peak_percent"] {
            assert_eq!(row[key], Value::Null, "{key}: no limits were measured");
        }
        assert!(row["joules_per_token"].is_null() || number("joules_per_token") > 0.0);
        assert!(number("peak_bytes") > 1e6, "{row}");
        let tokens = number("n_gen") > 0.0;
        assert_eq!(row["first_token_ms"].is_null(), tokens, "{row}");
        for key in ["token_ms", "bytes_per_token", "gb_per_s"] {
            assert_eq!(row[key].is_null(), !tokens, "{key}: {row}");
        }
        if tokens {
            let of =
                ["p50", "p99", "p999", "max"].map(|key| row["token_ms"][key].as_f64().unwrap());
            assert!(of.is_sorted() && of[0] > 0.0, "{of:?}");
        }
    }
    let bytes = |at: usize| results(&run)[at]["bytes_per_token"].as_u64().unwrap();
    let weights = run["weight_bytes_per_token"].as_u64().unwrap();
    assert!(bytes(1) > weights, "keys and values count");
    assert!(bytes(4) > bytes(1), "more of them at depth");
    assert!(bytes(2) < bytes(1) && bytes(2) > weights / 2, "two sequences share the weights");
}

#[test]
fn every_format_holds_the_same_columns() {
    let lines: Vec<Map<String, Value>> = quick("jsonl").lines().map(object).collect();
    assert_eq!(lines.len(), NAMES.len());
    let keys: Vec<&String> = lines[0].keys().collect();
    for (line, name) in lines.iter().zip(NAMES) {
        assert_eq!(line.keys().collect::<Vec<_>>(), keys, "{name}");
        assert_eq!((&line["test"], &line["model"]), (&json!(name), &json!("builtin")));
        assert!(line["samples_ts"].is_array() && !line.values().any(Value::is_object), "{line:?}");
    }

    let lines = csv_lines(&quick("csv"));
    assert_eq!(lines.len(), 1 + NAMES.len());
    assert_eq!(lines[0].iter().collect::<Vec<_>>(), keys);
    let column = |name: &str| lines[0].iter().position(|one| one == name).unwrap();
    for (line, name) in lines[1..].iter().zip(NAMES) {
        assert_eq!(line.len(), keys.len(), "{line:?}");
        assert_eq!(line[column("test")], name);
        assert!(line[column("avg_ts")].parse::<f64>().unwrap() > 0.0);
        let samples: Vec<f64> = serde_json::from_str(&line[column("samples_ts")]).unwrap();
        assert_eq!(samples.len(), 2);
        assert_eq!(line[column("token_ms_p50")].is_empty(), name.starts_with("pp"));
    }

    let sql = quick("sql");
    let (create, inserts) = sql.split_once(");\n").unwrap();
    let names: Vec<&str> = create
        .strip_prefix("CREATE TABLE IF NOT EXISTS bench (\n")
        .unwrap()
        .lines()
        .filter_map(|line| line.trim().split(' ').next())
        .collect();
    assert_eq!(names.iter().collect::<Vec<_>>(), keys.iter().collect::<Vec<_>>());
    let inserts: Vec<&str> = inserts.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(inserts.len(), NAMES.len());
    for (line, name) in inserts.iter().zip(NAMES) {
        let head = format!(
            "INSERT INTO bench ({}) VALUES ('builtin', 'Q6_K', 'f16', 0, ",
            names.join(", ")
        );
        assert!(line.starts_with(&head) && line.ends_with(");"), "{line}");
        assert!(line.contains(&format!("'{name}'")) && line.contains("NULL"), "{line}");
    }

    let table = quick("md");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 2 + NAMES.len(), "{table}");
    let cells = rows[0].matches('|').count();
    assert!(rows.iter().all(|row| row.matches('|').count() == cells), "{table}");
    assert!(!table.contains("% of"), "no limits, no shares: {table}");
}

#[test]
fn results_are_shares_of_limits_measured_beside_them() {
    let args = ["bench", "builtin", "-p", "8", "-n", "4", "-r", "2", "-t", "1,2", "-o", "json"];
    let run: Value = serde_json::from_str(&puna(&args).done().stdout).unwrap();
    let limits = run["limits"].as_array().unwrap();
    assert_eq!(
        limits.iter().map(|one| &one["threads"]).collect::<Vec<_>>(),
        [&json!(1), &json!(2)]
    );
    for (row, at) in results(&run).iter().zip([0, 0, 1, 1]) {
        let number = |key: &str| row[key].as_f64();
        assert_eq!(row["read_gb_per_s"], limits[at]["read_gb_per_s"], "{row}");
        let unit = row["unit"].as_str().unwrap();
        assert_eq!(row["peak_gop_per_s"], limits[at][format!("{unit}_gop_per_s")], "{row}");
        let near = |a: f64, b: f64| (a - b).abs() < 1e-3 * b;
        if let Some(rate) = number("gb_per_s") {
            let want = 100.0 * rate / number("read_gb_per_s").unwrap();
            assert!(near(number("read_percent").unwrap(), want), "{row}");
        }
        if let Some(peak) = number("peak_gop_per_s") {
            let want = 100.0 * number("gop_per_s").unwrap() / peak;
            assert!(near(number("peak_percent").unwrap(), want), "{row}");
        }
    }
}

#[test]
fn the_machine_alone() {
    let run: Value =
        serde_json::from_str(&puna(&["bench", "--machine", "-t", "1", "-o", "json"]).done().stdout)
            .unwrap();
    assert!(run["machine"]["caches"].is_array() && run["machine"]["isa"].is_string());
    let limits = run["limits"].as_array().unwrap();
    let available = run["machine"]["isa_available"].as_array().unwrap();
    assert_eq!(
        limits.iter().map(|row| &row["isa"]).collect::<Vec<_>>(),
        available.iter().collect::<Vec<_>>()
    );
    for row in limits {
        assert!(row["f32_gop_per_s"].as_f64().unwrap() > 0.0, "{row}");
        let chosen = row["isa"] == run["machine"]["isa"];
        assert_eq!(row["chosen"], json!(chosen));
        assert_eq!(row["read_gb_per_s"].as_f64().is_some_and(|rate| rate > 0.0), chosen, "{row}");
    }
}

/// A folder with results of two tests, as a run would have written them.
struct Results(TempDir);

impl Results {
    fn new() -> Results {
        Results(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file of tests with these samples.
    fn write(&self, name: &str, tests: &[(&str, &[f64])]) -> PathBuf {
        let row = |(test, samples): &(&str, &[f64])| json!({"test": test, "threads": 2, "samples_ts": samples});
        let run = json!({
            "program": "puna 0.1.0", "schema": 1, "model": "m.gguf", "type": "Q4_0",
            "machine": {"cpu": "c", "isa": "i"},
            "results": tests.iter().map(row).collect::<Vec<Value>>(),
        });
        std::fs::write(self.path(name), run.to_string()).unwrap();
        self.path(name)
    }
}

fn compare(old: &Path, new: &Path, more: &[&str]) -> crate::support::program::Run {
    let paths = [old, new].map(|path| path.to_str().unwrap());
    puna(&[&["bench", "--compare", paths[0], "--results", paths[1]][..], more].concat())
}

#[test]
fn slower_beyond_interval_and_tolerance_fails() {
    let files = Results::new();
    let old =
        files.write("old.json", &[("pp8", &[100.0, 101.0, 99.0]), ("tg8", &[50.0, 50.5, 49.5])]);
    // Samples of tg8, more flags, exit status, verdict.
    let cases: [(&[f64], &[&str], i32, &str); 6] = [
        (&[40.0, 40.4, 39.6], &[], 1, "slower"),
        (&[40.0, 40.4, 39.6], &["--tolerance", "30"], 0, "same"),
        (&[60.0, 60.4, 59.6], &[], 0, "faster"),
        (&[50.0, 49.0, 51.0], &[], 0, "same"),
        (&[20.0, 90.0, 30.0], &[], 0, "same"),
        (&[40.0], &[], 0, "one repetition tells no spread"),
    ];
    for (samples, more, status, verdict) in cases {
        let new = files.write("new.json", &[("pp8", &[100.0, 100.5, 99.5]), ("tg8", samples)]);
        let run = compare(&old, &new, more);
        assert_eq!(run.status, Some(status), "{samples:?}: {}", run.stderr);
        let line = run.stdout.lines().find(|line| line.contains("tg8")).unwrap_or_default();
        assert!(line.ends_with(&format!("| {verdict} |")), "{samples:?}: {}", run.stdout);
        if status == 1 {
            for part in ["old.json", "1 of 2 tests", "m.gguf Q4_0 tg8, 2 threads", "3 %"] {
                assert!(run.stderr.contains(part), "{}", run.stderr);
            }
        }
        let json = &compare(&old, &new, &[more, &["-o", "json"]].concat()).json()[0]["comparison"];
        assert_eq!(json["tests"][1]["verdict"], verdict, "{json}");
        assert_eq!(json["tests"][0]["verdict"], "same", "{json}");
    }
}

#[test]
fn tests_of_one_side_are_named() {
    let files = Results::new();
    let old = files.write("old.json", &[("pp8", &[1.0, 1.0]), ("tg8", &[1.0, 1.0])]);
    let new = files.write("new.json", &[("pp8", &[1.0, 1.0]), ("tg9", &[1.0, 1.0])]);
    let text = compare(&old, &new, &[]).done().stdout;
    assert!(text.contains("Only in the older run: m.gguf Q4_0 tg8, 2 threads"), "{text}");
    assert!(text.contains("Only in the newer run: m.gguf Q4_0 tg9, 2 threads"), "{text}");
    let new = files.write("new.json", &[("tg9", &[1.0, 1.0])]);
    let run = compare(&old, &new, &[]);
    assert_eq!(run.status, Some(1));
    assert!(run.stderr.contains("no test in common"), "{}", run.stderr);
}

#[test]
fn files_that_are_none_of_ours_are_refused() {
    let files = Results::new();
    let good = files.write("good.json", &[("pp8", &[1.0, 1.0])]);
    let cases = [
        ("", "not JSON"),
        ("[]", "an array without"),
        ("3", "a single value without"),
        ("{}", "an object without \"program\""),
        (r#"{"program": "x", "results": 3}"#, "an object without"),
        (r#"{"program": "x", "results": [], "schema": 99}"#, "schema 99, this program reads 1"),
        (r#"{"program": "x", "results": []}"#, "schema null"),
        (r#"{"program": "x", "schema": 1, "results": [{}]}"#, "result 0 without a \"test\""),
        (
            r#"{"program": "x", "schema": 1, "results": [{"test": "pp8", "samples_ts": [0]}]}"#,
            "result 0 (pp8): samples_ts [0], wanted numbers above 0",
        ),
    ];
    for (text, want) in cases {
        let file = files.path("foreign.json");
        std::fs::write(&file, text).unwrap();
        for run in [compare(&file, &good, &[]), compare(&good, &file, &[])] {
            assert_eq!(run.status, Some(1), "{text}");
            for part in ["foreign.json", want, "wanted the one object that `puna bench -o json`"] {
                assert!(run.stderr.contains(part), "{text}: {}", run.stderr);
            }
        }
    }
    // Refused before anything is measured.
    let run =
        puna(&[&QUICK[..], &["--compare", files.path("none.json").to_str().unwrap()]].concat());
    assert_eq!((run.status, run.stdout.as_str()), (Some(1), ""), "{}", run.stderr);
}

#[test]
fn a_run_compares_itself_with_an_older_one() {
    let files = Results::new();
    let mut old: Value = serde_json::from_str(&quick("json")).unwrap();
    let fast = files.path("fast.json");
    for row in old["results"].as_array_mut().unwrap() {
        row["samples_ts"] = json!([1e9, 1.01e9]);
    }
    std::fs::write(&fast, old.to_string()).unwrap();
    let args = [&QUICK[..], &["--no-limits", "--compare", fast.to_str().unwrap()]].concat();
    let run = puna(&args);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("6 of 6 tests slower"), "{}", run.stderr);
    let all = puna(&[&args[..], &["-o", "json"]].concat()).json().remove(0);
    assert_eq!(results(&all).len(), 6, "results stand beside the comparison");
    assert_eq!(all["comparison"]["tests"].as_array().map(Vec::len), Some(6));
}

#[test]
fn kernels_beside_their_bounds() {
    let args = ["bench", "--kernels", "--type", "Q4_0", "-t", "1", "-r", "2", "-o", "json"];
    let run: Value = serde_json::from_str(&puna(&args).done().stdout).unwrap();
    let families = [
        "product Q4_0 1 x",
        "product Q4_0 512 x",
        "attention f16 1 row",
        "attention q8_0",
        "attention f16 512",
        "rms_norm",
        "rope",
        "swiglu",
        "softmax",
        "training weight gradient BF16",
    ];
    for family in families {
        let named =
            |row: &&Value| row["test"].as_str().is_some_and(|test| test.starts_with(family));
        let row = results(&run).iter().find(named).unwrap_or_else(|| panic!("no {family}"));
        assert!(row["rate"].as_f64().is_some_and(|rate| rate > 0.0), "{row}");
        assert_eq!(row["percent"].is_null(), row["bound_rate"].is_null(), "{row}");
        assert!(["GB/s", "GOP/s"].map(Value::from).contains(&row["rate_unit"]), "{row}");
    }
}

#[test]
fn training_steps() {
    let dir = TempDir::new().unwrap();
    toy::make(dir.path());
    let model = dir.path().to_str().unwrap();
    for method in ["full", "lora"] {
        for dtype in ["f32", "bf16"] {
            let args = [
                "bench",
                model,
                "--train",
                "--method",
                method,
                "--dtype",
                dtype,
                "-p",
                "16,40",
                "-b",
                "3",
                "-r",
                "2",
                "-t",
                "1",
                "--no-limits",
                "-o",
                "json",
            ];
            let run: Value = serde_json::from_str(&puna(&args).done().stdout).unwrap();
            assert_eq!((&run["method"], &run["dtype"]), (&json!(method), &json!(dtype)));
            let names: Vec<&Value> = results(&run).iter().map(|row| &row["test"]).collect();
            let name = |len: usize| json!(format!("{method} {dtype} p{len} b3"));
            assert_eq!(names, [&name(16), &name(40)]);
            for row in results(&run) {
                for key in ["avg_ts", "gop_per_s", "peak_bytes", "loss"] {
                    assert!(row[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {row}");
                }
                // Random ids: about ln(521) nats.
                assert!((4.0..12.0).contains(&row["loss"].as_f64().unwrap()), "{row}");
            }
        }
    }
    let run = puna(&["bench", model, "--train", "-p", "1"]);
    assert_eq!(run.status, Some(2));
    assert!(run.stderr.contains("at least 2 tokens"), "{}", run.stderr);
}
