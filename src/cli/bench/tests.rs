//! The flags of `puna bench` and what follows from them.

use super::measure::{Outcome, row};
use super::plan::{Test, plan};
use super::*;
use crate::cli::args::{Cli, Command};
use crate::infer::Percentiles;
use clap::Parser;
use puna_cpu::limits::Unit;
use serde_json::json;

fn parse(args: &[&str]) -> BenchArgs {
    let all = ["puna", "bench"].iter().chain(args);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Bench(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn names(args: &[&str]) -> Vec<String> {
    plan(&parse(args)).map(|tests| tests.into_iter().map(Test::name).collect()).unwrap_or_default()
}

#[test]
fn tests_are_those_of_llama_bench() {
    assert_eq!(names(&["m"]), ["pp512", "tg128"]);
    assert_eq!(names(&["m", "-p", "0", "-n", "64", "-d", "0,2048"]), ["tg64", "tg64 @ d2048"]);
    assert_eq!(names(&["m", "-p", "16,32", "-n", "0"]), ["pp16", "pp32"]);
    assert_eq!(
        names(&["-b", "1,4", "-n", "8", "-d", "9"]),
        ["pp512 @ d9", "tg8 @ d9", "tg8 b4 @ d9"]
    );
    assert!(names(&["m", "-p", "0", "-n", "0"]).is_empty());
    assert!(plan(&parse(&["-b", "513"])).is_err());
}

#[test]
fn flags_that_would_do_nothing_are_refused() {
    let cases: [(&[&str], &str); 14] = [
        (&["m", "--method", "lora"], "--method without --train"),
        (&["m", "--dtype", "bf16"], "--dtype without --train"),
        (&["m", "--tolerance", "2"], "--tolerance without --compare"),
        (&["--results", "a.json"], "--results without --compare"),
        (&["m", "--machine"], "MODEL with --machine"),
        (&["--machine", "-n", "3"], "-n with --machine"),
        (&["--machine", "--compare", "a.json"], "--compare with --machine"),
        (&["m", "--kernels"], "MODEL with --kernels"),
        (&["--kernels", "--exact"], "--exact with --kernels"),
        (&["--train", "-d", "5"], "-d with --train"),
        (&["--train", "--kernels"], "both --kernels and --train are given"),
        (&["--results", "a.json", "--compare", "b.json", "-t", "2"], "-t with --results"),
        (&["m", "--compare", "a.json", "-o", "csv"], "--compare writes md or json"),
        (&["m", "--compare", "a.json", "-o", "sql"], "--compare writes md or json"),
    ];
    for (words, want) in cases {
        match mode(&parse(words)) {
            Err(Failure::Usage(text, _)) => assert!(text.contains(want), "{words:?}: {text}"),
            other => panic!("{words:?}: {other:?}"),
        }
    }
    let modes: [(&[&str], Mode); 6] = [
        (&["m", "-b", "2", "--compare", "a.json"], Mode::Tests),
        (&["--machine", "-t", "1,2"], Mode::Machine),
        (&["--kernels", "--shape", "llama-7b", "--type", "Q8_0"], Mode::Kernels),
        (&["--train", "--method", "lora", "--dtype", "bf16", "-p", "64", "-b", "2"], Mode::Train),
        (&["--results", "a.json", "--compare", "b.json", "--tolerance", "5"], Mode::Results),
        (&[], Mode::Tests),
    ];
    for (words, want) in modes {
        assert_eq!(mode(&parse(words)).ok(), Some(want), "{words:?}");
    }
}

#[test]
fn formats() {
    assert_eq!(parse(&[]).format(), Format::Md);
    assert_eq!(parse(&["--json"]).format(), Format::Json);
    assert_eq!(parse(&["-o", "sql"]).format(), Format::Sql);
}

#[test]
fn a_row_knows_its_shares_only_where_there_are_limits() {
    let outcome = Outcome {
        test: Test { n_prompt: 0, n_gen: 4, depth: 0, batch: 1 },
        threads: 2,
        tok_per_s: vec![10.0, 12.0],
        token_ms: Some(Percentiles { p50_ms: 1.0, p99_ms: 2.0, p999_ms: 3.0, max_ms: 4.0 }),
        first_token_ms: None,
        bytes_per_token: Some(1e9),
        ops_per_token: 2e9,
        unit: Some(Unit::Int8),
        peak_bytes: Some(7),
        joules_per_token: None,
    };
    let row = row(&outcome, None);
    assert_eq!(
        (&row["test"], &row["avg_ts"], &row["gb_per_s"]),
        (&json!("tg4"), &json!(11.0), &json!(11.0))
    );
    assert_eq!((&row["gop_per_s"], &row["unit"]), (&json!(22.0), &json!("int8")));
    for key in
        ["read_gb_per_s", "read_percent", "peak_gop_per_s", "peak_percent", "joules_per_token"]
    {
        assert_eq!(row[key], Value::Null, "{key}");
    }
    assert_eq!(row["token_ms"]["p999"], 3.0);
    let prompt = Outcome { token_ms: None, bytes_per_token: None, ..outcome };
    let row = super::measure::row(&prompt, None);
    assert_eq!((&row["token_ms"], &row["gb_per_s"]), (&Value::Null, &Value::Null));
}
