//! `--train`: the speed of training steps (forward, backward, clipping, AdamW) on rows of random
//! ids, as a share of the arithmetic peak of the precision.

use super::limits::{self, Limits};
use super::measure::stop_if_interrupted;
use super::plan::make_model;
use super::report::{Report, column, rounded};
use super::stats::{deviation, mean};
use super::usage::{Energy, POWERCAP, PeakMemory};
use super::work::{Sizes, unit};
use super::{BenchArgs, SCHEMA, or_usual};
use crate::autograd::Dropout;
use crate::cli::args::model_path;
use crate::cli::failure::Failure;
use crate::cli::machine::Machine;
use crate::cli::output::percentiles_json;
use crate::cli::train_args::{DTypeFlag, Method};
use crate::cli::train_setup::{LORA_ALPHA, LORA_R};
use crate::error::Result;
use crate::infer::Percentiles;
use crate::kernels::Place;
use crate::model::tune::{LoraSpec, Precision, Slice, TuneMethod, TuneModel, TuneOptions};
use crate::rng::Rng;
use crate::tensor::Grads;
use crate::train::clip::{clip_factor, global_norm};
use crate::train::optimizer::{OptimArgs, Optimizer, make};
use crate::train::{Holder, budget};
use puna_cpu::limits::Unit;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Tokens of a row unless told otherwise.
const ROW_TOKENS: usize = 512;
/// Small, so that the weights stay what they are however many steps are timed.
const LEARNING_RATE: f32 = 1e-6;
const MAX_GRAD_NORM: f64 = 1.0;

/// Steps on one set of rows.
struct Steps<'a> {
    model: &'a mut TuneModel,
    optimizer: &'a mut dyn Optimizer,
    grads: &'a mut Grads,
    /// Of all rows, one after the other.
    ids: Vec<u32>,
    row_tokens: usize,
}

impl Steps<'_> {
    /// Takes a step; returns the mean loss of a scored token.
    fn step(&mut self, key: u64) -> Result<f64> {
        let row_tokens = self.row_tokens;
        let n_scored = self.ids.len() / row_tokens * (row_tokens - 1);
        let rows_at_once = (budget(None, row_tokens) / row_tokens).max(1);
        let mut dropout = Dropout { key, ..Dropout::default() };
        let mut nll = 0.0;
        self.grads.clear()?;
        for ids in self.ids.chunks(rows_at_once * row_tokens) {
            stop_if_interrupted()?;
            let labels: Vec<Option<u32>> = ids
                .chunks(row_tokens)
                .flat_map(|row| row[1..].iter().copied().map(Some).chain([None]))
                .collect();
            let spans = vec![row_tokens; ids.len() / row_tokens];
            let slice = Slice { ids, labels: &labels, spans: &spans, sources: &[] };
            let grads = Some((&mut *self.grads, 1.0 / n_scored as f32));
            nll += self.model.run(&slice, grads, dropout)?.nll;
            dropout.first_row += ids.len() as u64;
            dropout.first_kept += (ids.len() - spans.len()) as u64;
        }
        let factor = clip_factor(global_norm(self.model.device(), self.grads)?, MAX_GRAD_NORM);
        let (optimizer, grads) = (&mut *self.optimizer, &*self.grads);
        self.model.with_params(|device, params| {
            optimizer.step(device, params, grads, LEARNING_RATE, factor)?;
            device.sync()
        })?;
        Ok(nll / n_scored as f64)
    }
}

fn options(args: &BenchArgs, threads: usize) -> TuneOptions {
    let spec = LoraSpec {
        r: LORA_R,
        alpha: LORA_ALPHA as f32,
        dropout: 0.0,
        targets: LoraSpec::DEFAULT_TARGETS.to_vec(),
        use_rslora: false,
    };
    TuneOptions {
        threads,
        precision: match args.dtype {
            Some(DTypeFlag::Bf16) => Precision::Bf16,
            Some(DTypeFlag::F32) | None => Precision::F32,
        },
        method: match args.method {
            Some(Method::Lora) => TuneMethod::Lora { spec, adapter: None },
            Some(Method::Qlora) => TuneMethod::QLora { spec, adapter: None, double_quant: true },
            Some(Method::Full) | None => TuneMethod::Full,
        },
        gradient_checkpointing: false,
        score: false,
        value: false,
        seed: args.common.seed,
    }
}

/// Measures the steps.
///
/// # Errors
/// Wrong usage, and what opening and training return.
pub fn run(args: &BenchArgs) -> Result<Value, Failure> {
    let rows = or_usual(&args.n_prompt, ROW_TOKENS);
    if let Some(len) = rows.iter().find(|&&len| len < 2) {
        return Err(Failure::usage(format!("-p {len}: wanted rows of at least 2 tokens")));
    }
    args.common.device.check_build()?;
    let made = make_model(args)?;
    let path = match &made {
        Some(made) => made.path.as_path(),
        None => model_path(args.model.model.as_deref()),
    };
    let name = match &made {
        Some(made) => made.name.to_owned(),
        None => path.display().to_string(),
    };
    let method = args.method.unwrap_or(Method::Full).name();
    let (dtype, in_bf16) = match args.dtype {
        Some(DTypeFlag::Bf16) => ("bf16", true),
        Some(DTypeFlag::F32) | None => ("f32", false),
    };
    let machine = Machine::detect()?;
    let energy = Energy::open(Path::new(POWERCAP));
    let mut columns = vec![
        column("test", "test", 0),
        column("threads", "threads", 0),
        column("tok/s", "avg_ts", 1),
        column("ms a step p50", "step_ms/p50", 1),
        column("max", "step_ms/max", 1),
        column("GOP/s", "gop_per_s", 0),
        column("unit", "unit", 0),
        column("% of peak", "peak_percent", 1),
        column("peak MB", "peak_bytes", 0).per(1e6),
        column("J a token", "joules_per_token", 4),
    ];
    columns.retain(|column| match column.key() {
        "peak_percent" => !args.no_limits,
        "joules_per_token" => energy.is_some(),
        _ => true,
    });
    let mut report = Report::new(args.format(), "bench_train", columns);
    let head = [("model", json!(name)), ("method", json!(method)), ("dtype", json!(dtype))];
    let cpu = machine.cpu.as_deref().unwrap_or("unknown processor");
    let intro = format!("{name}, {method}, {dtype}; {cpu}, {}", machine.isa);
    let own = [("cpu", json!(machine.cpu)), ("isa", json!(machine.isa))];
    report.begin(&intro, head.iter().cloned().chain(own).collect())?;

    let repetitions = args.repetitions();
    let mut all_limits: Vec<Limits> = vec![];
    for threads in args.thread_counts() {
        // The CPU's limits say nothing of a GPU's steps.
        let wanted = !args.no_limits && matches!(args.common.device.place(), Place::Cpu);
        if wanted && limits::with_threads(&all_limits, threads).is_none() {
            all_limits.push(Limits::measure(threads)?);
        }
        // Opening counts: it may hold more than training does.
        let memory = PeakMemory::begin(all_limits.is_empty());
        let device = args.common.device.open(threads)?;
        let mut model = TuneModel::open_on(path, &options(args, threads), device)?;
        let mut optimizer = make("adamw", &OptimArgs::default(), model.params())?;
        let mut grads = Grads::zeros(model.params())?;
        let sizes = Sizes::of(model.config());
        let adapter = if method != "full" { model.params().n_elements() } else { 0 };
        let device = model.device();
        let type_name = if in_bf16 { "BF16" } else { "F32" };
        let unit = (!device.is_gpu()).then(|| unit(device.cpu.isa, type_name, false));
        let limit = limits::with_threads(&all_limits, threads);
        let bar = args
            .common
            .log()
            .bar(rows.len() * or_usual(&args.batch, 1).len() * (repetitions + 1), "steps");
        for &row_tokens in &rows {
            for batch in or_usual(&args.batch, 1) {
                let mut rng = Rng::new(args.common.seed, 0);
                let vocab_size = model.config().vocab_size as u32;
                let n_tokens = row_tokens * batch;
                let ids = (0..n_tokens).map(|_| rng.next_u32() % vocab_size).collect();
                let mut steps = Steps {
                    model: &mut model,
                    optimizer: &mut *optimizer,
                    grads: &mut grads,
                    ids,
                    row_tokens,
                };
                steps.step(0)?;
                bar.inc(1);
                let (mut step_ms, mut loss) = (vec![], 0.0);
                let before = energy.as_ref().and_then(Energy::read);
                for key in 1..=repetitions {
                    let start = Instant::now();
                    loss = steps.step(key as u64)?;
                    step_ms.push(start.elapsed().as_secs_f64() * 1000.0);
                    bar.inc(1);
                }
                let joules =
                    energy.as_ref().zip(before).and_then(|(one, before)| one.joules_since(&before));
                let tok_per_s: Vec<f64> =
                    step_ms.iter().map(|ms| n_tokens as f64 * 1000.0 / ms.max(1e-6)).collect();
                let ops = sizes.train_ops(row_tokens, method == "full", adapter);
                let ops_per_s = ops * mean(&tok_per_s);
                let peak = limit.zip(unit).and_then(|(limits, unit)| limits.peak(unit));
                let row = json!({
                    "test": format!("{method} {dtype} p{row_tokens} b{batch}"),
                    "n_prompt": row_tokens,
                    "batch": batch,
                    "threads": threads,
                    "avg_ts": mean(&tok_per_s),
                    "stddev_ts": deviation(&tok_per_s),
                    "samples_ts": tok_per_s,
                    "step_ms": Percentiles::of(&mut step_ms).map(|p| percentiles_json(&p)),
                    "loss": rounded(Some(loss)),
                    "gop_per_token": rounded(Some(ops / 1e9)),
                    "gop_per_s": rounded(Some(ops_per_s / 1e9)),
                    "unit": unit.map(Unit::name),
                    "peak_gop_per_s": rounded(peak.map(|ops| ops / 1e9)),
                    "peak_percent": rounded(peak.map(|peak| 100.0 * ops_per_s / peak)),
                    "peak_bytes": memory.bytes(),
                    "joules_per_token":
                        rounded(joules.map(|joules| joules / (n_tokens * repetitions) as f64)),
                });
                bar.suspend(|| report.row(row))?;
            }
        }
        bar.finish_and_clear();
    }
    report.note(&limits::paragraph(&all_limits))?;
    let mut all = json!({
        "program": concat!("puna ", env!("CARGO_PKG_VERSION")),
        "schema": SCHEMA,
        "repetitions": repetitions,
        "machine": machine.json(),
        "limits": all_limits.iter().map(Limits::json).collect::<Vec<Value>>(),
        "results": report.into_rows(),
    });
    for (key, value) in head {
        all[key] = value;
    }
    Ok(all)
}
