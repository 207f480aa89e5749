//! The schedules against values worked out from their formulae, and against the rates of recorded
//! runs.

use super::*;
use std::path::Path;

fn schedule(name: &str, kwargs: &str) -> Schedule {
    Schedule::parse(name, (!kwargs.is_empty()).then_some(kwargs)).expect("a schedule")
}

#[test]
fn rates_are_those_of_the_formulae() {
    const R: f64 = 0.01;
    // name, arguments, step, warm-up, total, rate
    let table: &[(&str, &str, usize, usize, usize, f64)] = &[
        ("linear", "", 0, 4, 20, 0.0),
        ("linear", "", 1, 4, 20, 0.0025),
        ("linear", "", 4, 4, 20, 0.01),
        ("linear", "", 12, 4, 20, 0.005),
        ("linear", "", 19, 4, 20, 0.000_625),
        ("linear", "", 20, 4, 20, 0.0),
        ("linear", "", 23, 4, 20, 0.0),
        ("linear", "", 0, 0, 0, 0.0),
        ("linear", "", 5, 5, 5, 0.0),
        // A warm-up longer than the run.
        ("linear", "", 3, 8, 4, 0.003_75),
        ("cosine", "", 2, 4, 20, 0.005),
        ("cosine", "", 4, 4, 20, 0.01),
        ("cosine", "", 8, 4, 20, 0.008_535_533_905_932_738),
        ("cosine", "", 12, 4, 20, 0.005),
        ("cosine", "", 20, 4, 20, 0.0),
        // Past the end the wave rises again.
        ("cosine", "", 28, 4, 20, 0.005),
        ("cosine", r#"{"num_cycles": 1}"#, 12, 4, 20, 0.0),
        ("cosine", r#"{"num_cycles": 1.0}"#, 20, 4, 20, 0.01),
        ("constant", "", 0, 4, 20, 0.01),
        ("constant", "", 99, 4, 20, 0.01),
        ("constant_with_warmup", "", 0, 4, 20, 0.0),
        ("constant_with_warmup", "", 3, 4, 20, 0.0075),
        ("constant_with_warmup", "", 4, 4, 20, 0.01),
        ("constant_with_warmup", "", 99, 4, 20, 0.01),
        ("cosine_with_min_lr", r#"{"min_lr": 0.002}"#, 3, 4, 20, 0.0075),
        ("cosine_with_min_lr", r#"{"min_lr": 0.002}"#, 12, 4, 20, 0.006),
        ("cosine_with_min_lr", r#"{"min_lr_rate": 0.2}"#, 12, 4, 20, 0.006),
        ("cosine_with_min_lr", r#"{"min_lr": null, "min_lr_rate": 0.2}"#, 20, 4, 20, 0.002),
        ("cosine_with_min_lr", r#"{"min_lr": 0.002, "num_cycles": 1}"#, 12, 4, 20, 0.002),
        ("polynomial", "", 1, 4, 20, 0.0025),
        ("polynomial", "", 12, 4, 20, 0.005_000_05),
        ("polynomial", "", 20, 4, 20, 1e-7),
        ("polynomial", "", 25, 4, 20, 1e-7),
        ("polynomial", "", 4, 4, 4, 1e-7),
        ("polynomial", r#"{"lr_end": 0.002, "power": 2}"#, 12, 4, 20, 0.004),
        ("polynomial", r#"{"lr_end": 0, "power": 0.5}"#, 16, 4, 20, 0.005),
        ("inverse_sqrt", "", 1, 4, 20, 0.0025),
        ("inverse_sqrt", "", 4, 4, 20, 0.01),
        ("inverse_sqrt", "", 16, 4, 20, 0.005),
        ("inverse_sqrt", "", 64, 4, 20, 0.0025),
        ("inverse_sqrt", "", 30_000, 0, 20, 0.005),
        // (40 - 4 + 12) / 12 = 4.
        ("inverse_sqrt", r#"{"timescale": 12}"#, 40, 4, 20, 0.005),
    ];
    let mut failures = vec![];
    for &(name, kwargs, step, warmup, total, want) in table {
        let got = schedule(name, kwargs).rate(R, step, warmup, total);
        if (got - want).abs() > 1e-15 {
            failures.push(format!("{name} {kwargs} step {step} of {total}: {got}, want {want}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn rates_of_recorded_runs_are_met() {
    for file in [
        "mini-mha/train-full.json",
        "mini-mha/train-full-accum2.json",
        "mini-mha/train-lora-all.json",
        "mini-mha/train-lora-qv.json",
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file);
        let text = std::fs::read_to_string(&path).expect("a fixture is part of the checkout");
        let run: Value = serde_json::from_str(&text).expect("a fixture is JSON");
        let (hyper, curve) = (&run["hyper"], run["curve"].as_array().expect("a curve"));
        let name = hyper["schedule"].as_str().expect("a name");
        let base = hyper["lr"].as_f64().expect("a rate");
        let warmup = hyper["warmup"].as_u64().expect("steps") as usize;
        assert!(curve.len() >= 6, "{file}");
        for (step, line) in curve.iter().enumerate() {
            let want = line["lr"].as_f64().expect("a rate");
            let got = schedule(name, "").rate(base, step, warmup, curve.len());
            assert!((got - want).abs() < 1e-15 * base.max(1.0), "{file} {step}: {got}, {want}");
        }
    }
}

#[test]
fn warm_up_by_ratio_rounds_up() {
    for (ratio, total, want) in [(0.0, 100, 0), (0.03, 100, 3), (0.03, 101, 4), (1.0, 7, 7)] {
        assert_eq!(warmup_steps(ratio, total), want, "{ratio} of {total}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    for (name, kwargs, word) in [
        ("cosin", None, "inverse_sqrt"),
        ("linear", Some(r#"{"power": 2}"#), "power"),
        ("linear", Some("power=2"), "JSON"),
        ("polynomial", Some(r#"{"pow": 2}"#), "lr_end, power"),
        ("polynomial", Some(r#"{"power": "two"}"#), "two"),
        ("polynomial", Some(r#"{"power": -1}"#), "-1"),
        ("cosine_with_min_lr", None, "min_lr_rate"),
        ("cosine_with_min_lr", Some(r#"{"min_lr": 1e-5, "min_lr_rate": 0.1}"#), "min_lr_rate"),
        ("inverse_sqrt", Some(r#"{"timescale": 0}"#), "above 0"),
    ] {
        let error = Schedule::parse(name, kwargs).expect_err(name).to_string();
        assert!(error.contains(word), "{name} {kwargs:?}: {error}");
    }
    assert!(schedule("polynomial", "").check(1e-8).is_err());
    assert!(schedule("polynomial", "").check(1e-3).is_ok());
}
