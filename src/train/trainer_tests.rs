//! The loop on a model so small that its gradient is one line: a table of logits, one row for each
//! preceding token.

use super::*;
use crate::autograd::Dropout;
use crate::data::NOT_SCORED;
use crate::data::Row;
use crate::kernels::Device;
use crate::model::tune::{Slice, SliceLoss};
use crate::rng::Rng;
use crate::tensor::{Buffer, Grads, Param, Params};
use crate::train::Holder;
use crate::train::job::Rows;
use crate::train::optimizer::OptimArgs;
use crate::train::plan::Length;
use crate::train::schedule::Schedule;
use crate::train::settings::Settings;
use crate::train::watch::Silent;
use crate::train::{metrics, output, report};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;

const VOCAB: usize = 11;

/// Logits of the token after `id`: row `id` of a table [VOCAB, VOCAB].
struct Bigram {
    device: Device,
    params: Params,
    /// Runs with gradients so far; on the one with this number the loss is not a number.
    poison: Option<usize>,
    n_runs: usize,
    /// Gradients get a factor that comes from the dropout key.
    noisy: bool,
    /// Set when so many runs are done.
    stop_at: Option<(usize, &'static AtomicBool)>,
}

impl Bigram {
    fn new() -> Bigram {
        let mut rng = Rng::new(3, 0);
        let table: Vec<f32> = (0..VOCAB * VOCAB).map(|_| rng.normal() as f32).collect();
        let mut params = Params::default();
        let value = Buffer::from_slice(&table).into();
        let (name, shape) = ("table".to_owned(), vec![VOCAB, VOCAB]);
        params.push(Param { name, shape, decay: true, value, low: None });
        let device = Device::new(1).unwrap();
        Bigram { device, params, poison: None, n_runs: 0, noisy: true, stop_at: None }
    }

    fn table(&self) -> &[f32] {
        self.params.0[0].value.host().expect("on the host")
    }

    fn bits(&self) -> Vec<u32> {
        self.table().iter().map(|value| value.to_bits()).collect()
    }
}

impl Holder for Bigram {
    fn device(&self) -> &Device {
        &self.device
    }

    fn params(&self) -> &Params {
        &self.params
    }

    fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let bytes: Vec<u8> = self.bits().iter().flat_map(|bits| bits.to_le_bytes()).collect();
        fs::write(dir.join("model.safetensors"), bytes).unwrap();
        Ok(())
    }
}

impl Trainee for Bigram {
    fn run(
        &mut self,
        slice: &Slice<'_>,
        mut grads: Option<(&mut Grads, f32)>,
        dropout: Dropout,
    ) -> Result<SliceLoss> {
        assert_eq!(slice.spans.iter().sum::<usize>(), slice.ids.len());
        let mut loss = SliceLoss { nll: 0.0, scored: 0, correct: 0 };
        for (&id, label) in slice.ids.iter().zip(slice.labels) {
            let Some(label) = label.map(|label| label as usize) else { continue };
            let start = id as usize * VOCAB;
            let row: Vec<f32> = self.table()[start..start + VOCAB].to_vec();
            let top = row.iter().fold(f32::MIN, |a, &b| a.max(b));
            let sum: f32 = row.iter().map(|x| (x - top).exp()).sum();
            loss.nll += f64::from(top + sum.ln() - row[label]);
            loss.scored += 1;
            loss.correct += usize::from(row[label] == top);
            if let Some((grads, scale)) = &mut grads {
                // The key stands for dropout: it must come back the same in a resumed run.
                let noise = if self.noisy {
                    1.0 + 0.1 * unit(dropout.key ^ dropout.first_row)
                } else {
                    1.0
                } * *scale;
                let grad = &mut grads.0[0].host_mut().expect("on the host")[start..];
                for (i, (d, x)) in grad.iter_mut().zip(&row).enumerate() {
                    *d += noise * ((x - top).exp() / sum - f32::from(u8::from(i == label)));
                }
            }
        }
        if grads.is_some() {
            self.n_runs += 1;
            if self.poison == Some(self.n_runs) {
                loss.nll = f64::NAN;
            }
        }
        if let Some((_, stop)) = self.stop_at.filter(|(at, _)| *at == self.n_runs) {
            stop.store(true, Ordering::Relaxed);
        }
        Ok(loss)
    }
}

/// A number in [0, 1) from a key.
fn unit(key: u64) -> f32 {
    (key >> 40) as f32 / (1u64 << 24) as f32
}

/// Sentences in which each token tells the next.
struct Sentences(Vec<Row>);

impl Sentences {
    fn new(n: usize) -> Sentences {
        let mut rng = Rng::new(9, 0);
        let row = |index: usize| {
            let len = 3 + rng.next_u32() as usize % 9;
            let first = rng.next_u32();
            let ids: Vec<u32> =
                (0..len as u32).map(|i| (first % 5 + 2 * i) % VOCAB as u32).collect();
            let label = |(i, id): (usize, &u32)| if i < 2 { NOT_SCORED } else { *id as i32 };
            let labels = ids.iter().enumerate().map(label).collect();
            Row { ids, labels, spans: vec![len as u32], source: vec![index as u32] }
        };
        Sentences((0..n).map(row).collect())
    }
}

impl Rows for Sentences {
    fn n_rows(&self) -> usize {
        self.0.len()
    }

    fn longest(&self) -> usize {
        self.0.iter().map(|row| row.ids.len()).max().unwrap_or(0)
    }

    fn row(&self, index: usize) -> Result<Row> {
        Ok(self.0[index].clone())
    }

    fn place(&self, instance: u32) -> String {
        format!("data.json, instance {instance}")
    }
}

fn settings() -> Settings {
    Settings {
        batch_size: 4,
        accumulation: 2,
        length: Length::Epochs(3.0),
        optim: "adamw".into(),
        optim_args: OptimArgs::default(),
        learning_rate: 0.05,
        schedule: Schedule::Linear,
        warmup_steps: 2,
        warmup_ratio: 0.0,
        max_grad_norm: 1.0,
        seed: 7,
        shuffle: true,
        slice_tokens: Some(16),
        eval_steps: None,
        eval_on_start: false,
        keep_best: false,
        patience: None,
        threshold: 0.0,
        save_steps: 0,
        save_total_limit: None,
    }
}

struct Given<'a> {
    rows: &'a Sentences,
    eval: Option<&'a Sentences>,
    settings: Settings,
    resume: bool,
    stop: &'a AtomicBool,
}

fn given(rows: &Sentences, settings: Settings) -> Given<'_> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    Given { rows, eval: None, settings, resume: false, stop: &NEVER }
}

fn run(model: &mut Bigram, out: &Path, given: Given<'_>) -> Result<Outcome> {
    let job = Job {
        model,
        train: given.rows,
        eval: given.eval.map(|rows| rows as &dyn Rows),
        settings: &given.settings,
        identity: vec![("model".into(), "bigram".into())],
        title: "bigram".into(),
        shown: vec![],
        output: out,
        stop: given.stop,
    };
    train(job, given.resume, &mut Silent)
}

/// Losses, rates and norms of the steps in the metrics.
fn series(out: &Path) -> Vec<(usize, f64, f64, f64)> {
    let lines = metrics::read(out).unwrap();
    let step = |line| match line {
        Line::Step(line) => Some((line.step, line.loss, line.lr, line.grad_norm)),
        Line::Eval(_) | Line::Iteration(_) => None,
    };
    lines.into_iter().filter_map(step).collect()
}

fn evals(out: &Path) -> Vec<EvalLine> {
    let lines = metrics::read(out).unwrap();
    lines
        .into_iter()
        .filter_map(|line| if let Line::Eval(e) = line { Some(e) } else { None })
        .collect()
}

#[test]
fn the_loss_falls_and_everything_is_left_behind() {
    let rows = Sentences::new(30);
    let out = TempDir::new().unwrap();
    let mut model = Bigram::new();
    let mut settings = settings();
    settings.learning_rate = 0.3;
    settings.length = Length::Epochs(10.0);
    let outcome = run(&mut model, out.path(), given(&rows, settings)).unwrap();
    assert_eq!((outcome.end, outcome.state.step, outcome.total_steps), (End::Complete, 40, 40));
    let series = series(out.path());
    assert_eq!(series.iter().map(|s| s.0).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
    assert!(series[39].1 < 0.5 * series[0].1, "{} to {}", series[0].1, series[39].1);
    assert_eq!((series[0].2, series[1].2, series[2].2), (0.0, 0.15, 0.3));
    let bytes = fs::read(out.path().join("model.safetensors")).unwrap();
    assert_eq!(bytes.len(), 4 * VOCAB * VOCAB);
    let page = fs::read_to_string(out.path().join(report::REPORT_NAME)).unwrap();
    assert!(page.contains("<svg") && page.contains("bigram"));
    let done = output::read_done(out.path()).unwrap().unwrap();
    assert_eq!(done.summary["steps"], 40);
    assert_eq!(checkpoint::steps(out.path()).unwrap(), Vec::<usize>::new());
}

#[test]
fn the_cut_into_micro_batches_changes_nothing() {
    let rows = Sentences::new(32);
    let mut all = vec![];
    for (batch_size, accumulation) in [(8, 1), (4, 2), (2, 4), (1, 8)] {
        let out = TempDir::new().unwrap();
        let settings = Settings { batch_size, accumulation, ..settings() };
        let mut model = Bigram { noisy: false, ..Bigram::new() };
        run(&mut model, out.path(), given(&rows, settings)).unwrap();
        all.push(series(out.path()));
    }
    for other in &all[1..] {
        assert_eq!(other.len(), all[0].len());
        for (a, b) in all[0].iter().zip(other) {
            // The order of summation differs, nothing else: a few roundings of f32 a step.
            assert!((a.1 - b.1).abs() <= 1e-5 * a.1, "{} {}", a.1, b.1);
            assert!((a.3 - b.3).abs() <= 1e-4 * a.3, "{} {}", a.3, b.3);
        }
    }
    assert_ne!(all[0][0].1, all[0][11].1);
}

#[test]
fn a_resumed_run_gives_the_same_bits_wherever_it_was_interrupted() {
    let rows = Sentences::new(30);
    let eval = Sentences::new(7);
    let told = || Settings {
        eval_steps: Some(2),
        keep_best: true,
        save_steps: 3,
        save_total_limit: Some(2),
        ..settings()
    };
    let whole = TempDir::new().unwrap();
    let mut model = Bigram::new();
    let plain = Given { eval: Some(&eval), ..given(&rows, told()) };
    run(&mut model, whole.path(), plain).unwrap();
    let (wanted, n_runs) = (model.bits(), model.n_runs);
    static STOP: AtomicBool = AtomicBool::new(false);
    for at in (1..n_runs).step_by(3) {
        let out = TempDir::new().unwrap();
        let mut first = Bigram { stop_at: Some((at, &STOP)), ..Bigram::new() };
        let part = Given { eval: Some(&eval), stop: &STOP, ..given(&rows, told()) };
        let outcome = run(&mut first, out.path(), part).unwrap();
        let stopped = STOP.swap(false, Ordering::Relaxed);
        assert!(stopped);
        // A stop during the last step lets the run finish.
        if outcome.end == End::Interrupted {
            assert!(checkpoint::steps(out.path()).unwrap().contains(&outcome.state.step));
        }
        let mut second = Bigram::new();
        let rest = Given { eval: Some(&eval), resume: true, ..given(&rows, told()) };
        let outcome = run(&mut second, out.path(), rest).unwrap();
        if outcome.end != End::AlreadyDone {
            assert_eq!(second.bits(), wanted, "interrupted in run {at}");
        }
        assert_eq!(series(out.path()), series(whole.path()));
        assert_eq!(evals(out.path()), evals(whole.path()));
        let result = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
        assert_eq!(result(out.path()), result(whole.path()));
    }
}

#[test]
fn the_best_evaluation_is_the_result_and_waiting_ends() {
    let rows = Sentences::new(30);
    // What is evaluated has other successors, so that training makes it worse.
    let mut eval = Sentences::new(5);
    for row in &mut eval.0 {
        row.ids.reverse();
        row.labels = row.ids.iter().map(|&id| id as i32).collect();
    }
    let out = TempDir::new().unwrap();
    let mut model = Bigram::new();
    let before = model.bits();
    let told = Settings {
        eval_steps: Some(1),
        eval_on_start: true,
        keep_best: true,
        patience: Some(3),
        learning_rate: 0.5,
        warmup_steps: 0,
        save_total_limit: Some(1),
        save_steps: 1,
        ..settings()
    };
    let outcome =
        run(&mut model, out.path(), Given { eval: Some(&eval), ..given(&rows, told) }).unwrap();
    assert_eq!((outcome.end, outcome.state.step), (End::EarlyStop, 3));
    assert_eq!(outcome.state.best.seen.map(|seen| seen.step), Some(0));
    assert_eq!(model.bits(), before, "the result is that of step 0");
    let losses: Vec<f64> = evals(out.path()).iter().map(|line| line.eval_loss).collect();
    assert!(losses.len() == 4 && losses.windows(2).all(|pair| pair[0] < pair[1]), "{losses:?}");
    assert_eq!(checkpoint::steps(out.path()).unwrap(), [0, 3], "the best and the newest stay");
}

#[test]
fn a_better_evaluation_takes_the_former_ones_checkpoint_away() {
    let rows = Sentences::new(30);
    let out = TempDir::new().unwrap();
    let told = Settings {
        eval_steps: Some(2),
        keep_best: true,
        learning_rate: 0.2,
        save_steps: 5,
        ..settings()
    };
    let given = Given { eval: Some(&rows), ..given(&rows, told) };
    let outcome = run(&mut Bigram::new(), out.path(), given).unwrap();
    // What was trained on is evaluated: each evaluation is better than the one before.
    assert_eq!(outcome.state.best.seen.map(|seen| seen.step), Some(12));
    assert_eq!(checkpoint::steps(out.path()).unwrap(), [5, 10, 12]);
}

#[test]
fn what_is_not_finite_ends_the_run_before_it_is_saved() {
    let rows = Sentences::new(30);
    let out = TempDir::new().unwrap();
    let mut model = Bigram { poison: Some(30), ..Bigram::new() };
    let told = Settings { save_steps: 2, batch_size: 1, accumulation: 8, ..settings() };
    let error = run(&mut model, out.path(), given(&rows, told.clone())).unwrap_err();
    let Error::NotFinite { step, batch, checkpoint, .. } = &error else { panic!("{error}") };
    // Eight micro-batches a step, each a slice: run 30 is the sixth of step 4.
    assert_eq!(*step, 4);
    assert!(batch.starts_with("data.json, instance ") && checkpoint.ends_with("checkpoint-2"));
    assert_eq!(checkpoint::steps(out.path()).unwrap(), [2]);
    assert_eq!(series(out.path()).len(), 3);
    assert!(!out.path().join("model.safetensors").exists());

    // Without the poison the run goes on and ends as it should have.
    let mut model = Bigram::new();
    run(&mut model, out.path(), Given { resume: true, ..given(&rows, told.clone()) }).unwrap();
    let clean = TempDir::new().unwrap();
    let mut other = Bigram::new();
    run(&mut other, clean.path(), given(&rows, told)).unwrap();
    assert_eq!(model.bits(), other.bits());
}

#[test]
fn other_settings_are_refused_and_a_finished_run_is_left_alone() {
    let rows = Sentences::new(16);
    let out = TempDir::new().unwrap();
    let told = Settings { save_steps: 2, ..settings() };
    run(&mut Bigram::new(), out.path(), given(&rows, told.clone())).unwrap();
    let again = Given { resume: true, ..given(&rows, told.clone()) };
    let outcome = run(&mut Bigram::new(), out.path(), again).unwrap();
    assert_eq!(outcome.end, End::AlreadyDone);
    for remove_done in [false, true] {
        if remove_done {
            output::forget_done(out.path()).unwrap();
        }
        let changed = Settings { learning_rate: 0.1, ..told.clone() };
        let changed = Given { resume: true, ..given(&rows, changed) };
        let error = run(&mut Bigram::new(), out.path(), changed).unwrap_err().to_string();
        assert!(error.starts_with("learning_rate = 0.1") && error.contains("0.05"), "{error}");
    }
}

#[test]
fn a_step_needs_something_to_learn() {
    let mut rows = Sentences::new(8);
    rows.0.iter_mut().for_each(|row| row.labels.fill(NOT_SCORED));
    let out = TempDir::new().unwrap();
    let error = run(&mut Bigram::new(), out.path(), given(&rows, settings())).unwrap_err();
    assert!(error.to_string().contains("no scored token"), "{error}");
    let told = Settings { keep_best: true, ..settings() };
    let rows = Sentences::new(8);
    let error = run(&mut Bigram::new(), out.path(), given(&rows, told)).unwrap_err();
    assert!(error.to_string().starts_with("load_best_model_at_end"), "{error}");
}
