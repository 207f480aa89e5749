//! Against TRL on a model of the fixtures: log-probabilities, losses, gradients, and a short run.

use super::*;
use crate::align::preference::Loss;
use crate::data::{NOT_SCORED, Pairs, Row};
use crate::model::tune::{LoraSpec, Precision, TuneMethod, TuneOptions};
use crate::train::optimizer::OptimArgs;
use crate::train::schedule::Schedule;
use crate::train::watch::Silent;
use crate::train::{Holder, Job, Length, Packed, Rows, Settings, metrics, slices, train};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::Path;

const DIR: &str = "tests/fixtures/mini-gqa";

fn reference() -> Value {
    let text = std::fs::read_to_string(Path::new(DIR).join("dpo.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The pairs of the fixture, numbered from `first`.
fn pair_rows(first: u32) -> PairRows {
    let mut pairs = Pairs { first, ..Pairs::default() };
    for (at, pair) in reference()["pairs"].as_array().unwrap().iter().enumerate() {
        let mut row = Row::default();
        for side in ["chosen_ids", "rejected_ids"] {
            let (prompt, answer) = (ids(&pair["prompt_ids"]), ids(&pair[side]));
            row.labels.extend(prompt.iter().map(|_| NOT_SCORED));
            row.labels.extend(answer.iter().map(|&id| id as i32));
            row.spans.push((prompt.len() + answer.len()) as u32);
            row.source.push(first + at as u32);
            row.ids.extend(prompt);
            row.ids.extend(answer);
        }
        pairs.rows.push(row);
        pairs.margins.push(0.0);
        pairs.places.push(format!("pair {at}"));
    }
    PairRows(pairs)
}

fn open(threads: usize, checkpointing: bool) -> TuneModel {
    let adapter = Path::new(DIR).join("lora-all-init");
    let spec: LoraSpec = crate::format::peft::read_spec(&adapter).unwrap();
    open_with(TuneMethod::Lora { spec, adapter: Some(adapter) }, threads, checkpointing)
}

fn open_with(method: TuneMethod, threads: usize, checkpointing: bool) -> TuneModel {
    let options = TuneOptions {
        threads,
        precision: Precision::F32,
        method,
        gradient_checkpointing: checkpointing,
        seed: 0,
        score: false,
        value: false,
    };
    TuneModel::open(Path::new(DIR), &options).unwrap()
}

fn objective(loss: Loss, beta: f64) -> Objective {
    Objective {
        loss,
        beta,
        label_smoothing: 0.0,
        gamma: 0.5,
        length_penalty: 0.0,
        ipo_of_sums: false,
    }
}

fn dpo(objective: Objective, sets: &[&PairRows]) -> Dpo {
    let mut dpo = Dpo::new(open(2, false), objective, sets).unwrap();
    // A budget of one pair at a time, so that several passes are made.
    let stop = AtomicBool::new(false);
    let mut seen = 0;
    let told = &mut |done| seen = done;
    assert!(dpo.prepare(sets, Some(1), &stop, told).unwrap());
    if dpo.objective.needs_reference() {
        assert_eq!(seen, sets.iter().map(|set| set.n_rows()).sum::<usize>());
    }
    dpo
}

fn assert_near(ours: f64, theirs: f64, bound: f64, what: &str) {
    assert!((ours - theirs).abs() <= bound, "{what}: {ours}, wanted {theirs}");
}

#[test]
fn log_probabilities_and_losses_equal_those_of_trl() {
    let rows = pair_rows(0);
    let file = reference();
    let wanted = |name: &str| numbers(&file["logps"][name]);
    let of_reference = [wanted("ref_chosen"), wanted("ref_rejected")];
    let of_policy = [wanted("policy_chosen"), wanted("policy_rejected")];
    let packed = Packed::new(&rows.0.rows);
    let mut prepared = dpo(objective(Loss::Sigmoid, 0.1), &[&rows]);
    let log_probs = prepared.model.log_probs(&packed.slice(), true).unwrap();
    for (pair, sums) in sums_of(&packed.slice(), &log_probs) {
        for side in 0..2 {
            // Sums of a dozen f32 logarithms.
            let ours = prepared.known[pair].reference[side];
            assert_near(ours, of_reference[side][pair], 1e-4, "reference");
            assert_near(sums[side], of_policy[side][pair], 1e-4, "policy");
        }
    }
    let smoothing = file["label_smoothing"].as_f64().unwrap();
    for (beta, losses) in file["losses_by_beta"].as_object().unwrap() {
        let beta: f64 = beta.parse().unwrap();
        for (name, smooth, loss) in [
            ("sigmoid", 0.0, Loss::Sigmoid),
            ("sigmoid_label_smoothing", smoothing, Loss::Sigmoid),
            ("robust", smoothing, Loss::Robust),
            ("hinge", 0.0, Loss::Hinge),
            ("ipo", 0.0, Loss::Ipo),
        ] {
            let objective = Objective { label_smoothing: smooth, ..objective(loss, beta) };
            let mut dpo = dpo(objective, &[&rows]);
            let found = dpo.run(&packed.slice(), None, Dropout::default()).unwrap();
            assert_eq!(found.scored, rows.n_rows());
            let theirs = losses[name]["mean"].as_f64().unwrap();
            let ours = found.nll / found.scored as f64;
            assert_near(ours, theirs, 2e-4 * theirs.abs().max(1.0), &format!("{name} {beta}"));
        }
    }
}

#[test]
fn gradients_equal_those_of_trl_whatever_the_cut() {
    let rows = pair_rows(0);
    let bytes = std::fs::read(Path::new(DIR).join("dpo-grads.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for budget in [1usize, 60, 1000] {
        let mut dpo = dpo(objective(Loss::Sigmoid, 0.1), &[&rows]);
        let mut grads = Grads::zeros(dpo.params()).unwrap();
        let lens: Vec<usize> = rows.0.rows.iter().map(|row| row.ids.len()).collect();
        for range in slices(&lens, budget) {
            let packed = Packed::new(&rows.0.rows[range]);
            let scale = 1.0 / rows.n_rows() as f32;
            dpo.run(&packed.slice(), Some((&mut grads, scale)), Dropout::default()).unwrap();
        }
        for (param, grad) in dpo.params().0.iter().zip(&grads.0) {
            let wanted = tensors.tensor(&format!("grad.{}", param.name)).unwrap();
            let wanted: Vec<f32> = wanted
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            let square = |x: f32| f64::from(x) * f64::from(x);
            let grad = grad.host().unwrap();
            let error: f64 = grad.iter().zip(&wanted).map(|(&a, &b)| square(a - b)).sum();
            let norm: f64 = wanted.iter().map(|&b| square(b)).sum();
            let error = (error / norm).sqrt();
            assert!(error < 1e-4, "{} at a budget of {budget}: {error:.2e}", param.name);
        }
        let n = tensors.names().iter().filter(|name| name.starts_with("grad.")).count();
        assert_eq!(dpo.params().0.len(), n);
    }
}

#[test]
fn checkpointing_changes_no_bit_of_a_gradient() {
    let rows = pair_rows(0);
    let packed = Packed::new(&rows.0.rows);
    let bits = |checkpointing| -> Vec<u32> {
        let model = open(1, checkpointing);
        let mut dpo = Dpo::new(model, objective(Loss::Simpo, 2.0), &[&rows]).unwrap();
        let mut grads = Grads::zeros(dpo.params()).unwrap();
        dpo.run(&packed.slice(), Some((&mut grads, 0.25)), Dropout::default()).unwrap();
        grads.0.iter().flat_map(|grad| grad.host().unwrap()).map(|x| x.to_bits()).collect()
    };
    assert_eq!(bits(false), bits(true));
}

fn settings(steps: usize) -> Settings {
    Settings {
        batch_size: 4,
        accumulation: 1,
        length: Length::Steps(steps),
        optim: "adamw".into(),
        optim_args: OptimArgs::default(),
        learning_rate: 1e-3,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        warmup_ratio: 0.0,
        max_grad_norm: 0.0,
        seed: 0,
        shuffle: false,
        slice_tokens: Some(40),
        eval_steps: Some(4),
        eval_on_start: false,
        keep_best: false,
        patience: None,
        threshold: 0.0,
        save_steps: 5,
        save_total_limit: None,
    }
}

fn run(out: &Path, stop: &AtomicBool, resume: bool) -> Vec<metrics::Line> {
    let (rows, eval) = (pair_rows(0), pair_rows(4));
    let mut dpo = dpo(objective(Loss::Sigmoid, 0.1), &[&rows, &eval]);
    let settings = settings(8);
    let job = Job {
        model: &mut dpo,
        train: &rows,
        eval: Some(&eval),
        settings: &settings,
        identity: vec![],
        title: "dpo".into(),
        shown: vec![],
        output: out,
        stop,
    };
    train(job, resume, &mut Silent).unwrap();
    metrics::read(out).unwrap()
}

#[test]
fn a_run_follows_the_curve_of_trl_and_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let lines = run(dir.path(), &AtomicBool::new(false), false);
    let curve = numbers(&reference()["train"]["curve"]);
    let mut step = 0;
    for line in &lines {
        match line {
            metrics::Line::Step(line) => {
                // The bound of the curves of supervised training: differences grow with the steps.
                assert_near(line.loss, curve[step], 2e-3, &format!("step {}", line.step));
                assert!(line.measures["reward_accuracy"] <= 1.0);
                step += 1;
            }
            metrics::Line::Iteration(_) => panic!("a run without iterations"),
            metrics::Line::Eval(line) => {
                // The pairs are those that are trained on.
                assert_eq!(line.eval_ppl, None);
                assert!(line.eval_loss < curve[0] && line.eval_accuracy == 1.0, "{line:?}");
                assert!(line.measures["eval_reward_margin"] > 0.0);
            }
        }
    }
    assert_eq!(step, curve.len());

    // Told to stop at once: nothing is trained, and going on gives the same weights.
    let other = tempfile::tempdir().unwrap();
    run(other.path(), &AtomicBool::new(true), false);
    run(other.path(), &AtomicBool::new(false), true);
    let bytes = |dir: &Path| std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
    assert_eq!(bytes(dir.path()), bytes(other.path()));
}

/// Tokens that can answer a prompt, and what Bradley and Terry's law weighs them with: `exp(reward)`.
const ANSWERS: [(u32, u32); 4] = [(11, 1), (42, 2), (77, 3), (130, 4)];

/// The prompt with an answer behind it, which alone is scored.
fn answered(answer: u32) -> Row {
    let ids = vec![1, 50, 9, answer];
    let labels = vec![NOT_SCORED, NOT_SCORED, NOT_SCORED, answer as i32];
    Row { ids, labels, spans: vec![4], source: vec![0] }
}

/// Of every two answers each is preferred as often as its weight says.
fn by_weight() -> PairRows {
    let mut pairs = Pairs::default();
    for (chosen, weight) in ANSWERS {
        for (rejected, _) in ANSWERS.into_iter().filter(|(other, _)| *other != chosen) {
            for _ in 0..weight {
                let number = pairs.rows.len() as u32;
                let (mut row, rejected) = (answered(chosen), answered(rejected));
                row.ids.extend(rejected.ids);
                row.labels.extend(rejected.labels);
                (row.spans, row.source) = (vec![4, 4], vec![number, number]);
                pairs.rows.push(row);
                pairs.margins.push(0.0);
                pairs.places.push(format!("pair {number}"));
            }
        }
    }
    PairRows(pairs)
}

fn log_probs_of_answers(model: &mut TuneModel) -> Vec<f32> {
    let packed = Packed::new(&ANSWERS.map(|(answer, _)| answered(answer)));
    model.log_probs(&packed.slice(), true).unwrap()
}

#[test]
fn preferences_by_a_reward_come_to_the_policy_of_its_regularised_optimum() {
    // `reference exp(r / beta)`, normalised: between two answers the log-ratios to the reference
    // differ by the difference of their rewards over beta (Rafailov et al. 2023, equation 5).
    let beta = 0.5;
    let rows = by_weight();
    assert_eq!(rows.n_rows(), 30);
    let model = open_with(TuneMethod::Full, 2, false);
    let mut dpo = Dpo::new(model, objective(Loss::Sigmoid, beta), &[&rows]).unwrap();
    let stop = AtomicBool::new(false);
    assert!(dpo.prepare(&[&rows], None, &stop, &mut |_| ()).unwrap());
    let start = log_probs_of_answers(dpo.tuned_mut());
    let settings = Settings {
        batch_size: 30,
        slice_tokens: None,
        eval_steps: None,
        save_steps: 0,
        ..settings(300)
    };
    let dir = tempfile::tempdir().unwrap();
    let job = Job {
        model: &mut dpo,
        train: &rows,
        eval: None,
        settings: &settings,
        identity: vec![],
        title: "dpo".into(),
        shown: vec![],
        output: dir.path(),
        stop: &stop,
    };
    train(job, false, &mut Silent).unwrap();
    let end = log_probs_of_answers(dpo.tuned_mut());
    let ratio = |at: usize| f64::from(end[at] - start[at]);
    for (at, (_, weight)) in ANSWERS.into_iter().enumerate().skip(1) {
        let wanted = (f64::from(weight) / f64::from(ANSWERS[0].1)).ln() / beta;
        // Of differences between 1.4 and 2.8; what is left is Adam's last steps of 1e-3.
        assert_near(ratio(at) - ratio(0), wanted, 0.1, &format!("answer {at}"));
    }
}
