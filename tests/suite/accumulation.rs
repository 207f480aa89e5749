//! The cut of a step into micro-batches, the threads and gradient checkpointing change nothing
//! that a user sees.

use crate::support::fixture;
use crate::support::train::{Place, Row, number};
use std::fs;

/// Rows of many lengths with prompts of many lengths.
fn rows(n: usize) -> Vec<Row> {
    let row = |i: usize| {
        let len = 5 + (i * 7) % 29;
        let ids: Vec<u32> =
            (0..len).map(|j| ((i * 31 + j * j * 17 + j * 5) % 317 + 3) as u32).collect();
        let prompt = 1 + i % 4;
        let label = |(j, &id): (usize, &u32)| if j < prompt { -100 } else { i64::from(id) };
        let labels = ids.iter().enumerate().map(label).collect();
        (ids, labels)
    };
    (0..n).map(row).collect()
}

const COMMON: [&str; 4] = ["--num-train-epochs=2", "--learning-rate=0.002", "--seed=3", "--quiet"];

#[test]
fn micro_batches_make_the_same_steps() {
    let place = Place::new(&rows(32));
    let model = fixture::dir("mini-gqa");
    for method in [
        &["--method=full"][..],
        &["--method=lora", "--lora-dropout=0"][..],
        &["--method=lora", "--lora-dropout=0.3", "--lora-target-modules=all-linear"][..],
    ] {
        let mut all = vec![];
        for (size, accumulation) in [(8, 1), (4, 2), (2, 4), (1, 8)] {
            let sizes = [
                format!("--batch-size={size}"),
                format!("--gradient-accumulation-steps={accumulation}"),
                "--overwrite".into(),
            ];
            let mut args: Vec<&str> = COMMON.to_vec();
            args.extend(method);
            args.extend(sizes.iter().map(String::as_str));
            place.train(&model, "out", &args).done();
            all.push(place.steps("out"));
        }
        let first = &all[0];
        assert_eq!(first.len(), 8);
        assert!(number(&first[7], "loss") < number(&first[0], "loss"));
        for other in &all[1..] {
            assert_eq!(other.len(), first.len());
            for (a, b) in first.iter().zip(other) {
                for key in ["loss", "lr", "grad_norm", "tokens", "epoch"] {
                    let (a, b) = (number(a, key), number(b, key));
                    // f32 sums in another order.
                    assert!((a - b).abs() <= 1e-5 * a.abs(), "{method:?} {key}: {a} and {b}");
                }
            }
        }
    }
}

#[test]
fn threads_and_checkpointing_leave_the_same_bits() {
    let place = Place::new(&rows(16));
    let model = fixture::dir("mini-gqa");
    for method in [
        &["--method=full"][..],
        &["--method=lora", "--lora-target-modules=all-linear"][..],
        &["--method=lora", "--dtype=bf16"][..],
        &["--method=full", "--dtype=bf16"][..],
    ] {
        let mut results = vec![];
        for extra in [
            &["--threads=1"][..],
            &["--threads=2"][..],
            &["--threads=3"][..],
            &["--threads=2", "--gradient-checkpointing"][..],
        ] {
            let mut args: Vec<&str> = COMMON.to_vec();
            args.extend(method);
            args.extend(extra);
            args.push("--overwrite");
            place.train(&model, "out", &args).done();
            let full = place.path("out").join("model.safetensors");
            let file = if full.exists() {
                full
            } else {
                place.path("out").join("adapter_model.safetensors")
            };
            results.push(fs::read(file).expect("a result"));
        }
        assert!(results.iter().all(|one| *one == results[0]), "{method:?}");
    }
}

#[test]
fn the_last_micro_batches_of_an_epoch_are_a_step() {
    let place = Place::new(&rows(11));
    let args = ["--batch-size=2", "--gradient-accumulation-steps=4", "--num-train-epochs=2"];
    place.train(&fixture::dir("mini-gqa"), "out", &args).done();
    let steps = place.steps("out");
    let epochs: Vec<f64> = steps.iter().map(|line| number(line, "epoch")).collect();
    // Six micro-batches: four and two.
    assert_eq!(epochs.len(), 4);
    assert!((epochs[0] - 4.0 / 6.0).abs() < 1e-12 && epochs[1] == 1.0 && epochs[3] == 2.0);
    let scored: f64 = steps[..2].iter().map(|line| number(line, "tokens")).sum();
    let wanted: usize =
        rows(11).iter().map(|(_, l)| l.iter().skip(1).filter(|&&l| l != -100).count()).sum();
    assert_eq!(scored, wanted as f64);
}
