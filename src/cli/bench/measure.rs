//! Prompts and tokens: runs the tests and works out what they say about the machine.

use super::limits::{self, Limits};
use super::plan::{Test, make_model, plan};
use super::report::{Column, Report, column, rounded};
use super::stats::{deviation, mean, median};
use super::usage::{Energy, POWERCAP, PeakMemory};
use super::work::{self, Sizes};
use super::{BenchArgs, SCHEMA};
use crate::cli::failure::Failure;
use crate::cli::interrupt;
use crate::cli::machine::Machine;
use crate::cli::output::percentiles_json;
use crate::cli::session::Session;
use crate::error::{Error, Result};
use crate::infer::Percentiles;
use crate::infer::timing::per_second;
use crate::kernels::chosen_isa;
use crate::model::llama::{KvCache, KvType, LogitsFor, Model, Segment, Workspace};
use crate::rng::Rng;
use puna_cpu::limits::Unit;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Tokens of the warm-up of a token test.
const WARM_UP_TOKENS: usize = 8;

/// What a test gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The test.
    pub test: Test,
    /// Its threads.
    pub threads: usize,
    /// Tokens per second of each repetition, of all sequences together.
    pub tok_per_s: Vec<f64>,
    /// Over all steps of all repetitions; token tests only.
    pub token_ms: Option<Percentiles>,
    /// Median time of the whole prompt; prompt tests only.
    pub first_token_ms: Option<f64>,
    /// Bytes of weights, keys and values that a token reads; token tests only.
    pub bytes_per_token: Option<f64>,
    /// Operations of a token.
    pub ops_per_token: f64,
    /// What multiplies the weights; `None` on a GPU, whose peak nobody has measured here.
    pub unit: Option<Unit>,
    /// Most memory resident.
    pub peak_bytes: Option<u64>,
    /// Energy of the whole processor.
    pub joules_per_token: Option<f64>,
}

/// Runs the tests.
///
/// # Errors
/// Wrong usage, and what loading and computing return.
pub fn run(args: &BenchArgs) -> Result<Value, Failure> {
    let tests = plan(args)?;
    let made = make_model(args)?;
    let mut model_args = args.model.clone();
    if let Some(file) = &made {
        model_args.model = Some(file.path.clone());
    }
    let machine = Machine::detect()?;
    let energy = Energy::open(Path::new(POWERCAP));
    let repetitions = args.repetitions();
    let mut report = Report::new(args.format(), "bench", columns(args, &tests, energy.is_some()));
    let mut head = Map::new();
    let mut all_limits: Vec<Limits> = vec![];
    let mut cached = false;
    for threads in args.thread_counts() {
        let mut session = Session::load(&model_args, threads, &args.common)?;
        // The CPU's limits say nothing of a GPU's tokens.
        let wanted = !args.no_limits && !session.model.is_on_gpu();
        if wanted && limits::with_threads(&all_limits, threads).is_none() {
            all_limits.push(Limits::measure(threads)?);
        }
        if head.is_empty() {
            if let Some(made) = &made {
                session.name = made.name.to_owned();
            }
            head = describe(args, &session, &machine);
            report.begin(&intro(&machine, &session), common(&head))?;
        }
        let bar = session.log.bar(tests.len() * (repetitions + 1), "runs");
        let Session { model, workspace, .. } = &mut session;
        for &test in &tests {
            let memory = PeakMemory::begin(all_limits.is_empty());
            let mut bench = Bench::new(model, workspace, test, args)?;
            let mut outcome =
                bench.measure(threads, repetitions, energy.as_ref(), &mut || bar.inc(1))?;
            outcome.peak_bytes = memory.bytes();
            let row = row(&outcome, limits::with_threads(&all_limits, threads));
            cached |= row["read_percent"].as_f64().is_some_and(|percent| percent > 100.0);
            bar.suspend(|| report.row(row))?;
        }
        bar.finish_and_clear();
    }
    let mut note = limits::paragraph(&all_limits);
    if cached {
        note += "\nMore than 100 % of read: weights, keys and values that a cache holds.";
    }
    report.note(&note)?;
    head.insert("limits".into(), all_limits.iter().map(Limits::json).collect());
    head.insert("results".into(), report.into_rows());
    Ok(Value::Object(head))
}

/// Columns of the table: those that can hold something.
fn columns(args: &BenchArgs, tests: &[Test], energy: bool) -> Vec<Column> {
    let all = [
        column("test", "test", 0),
        column("threads", "threads", 0),
        column("tok/s", "avg_ts", 2),
        column("first token ms", "first_token_ms", 1),
        column("ms a token p50", "token_ms/p50", 3),
        column("p99", "token_ms/p99", 3),
        column("p99.9", "token_ms/p999", 3),
        column("max", "token_ms/max", 3),
        column("GB/s", "gb_per_s", 2),
        column("% of read", "read_percent", 1),
        column("GOP/s", "gop_per_s", 0),
        column("unit", "unit", 0),
        column("% of peak", "peak_percent", 1),
        column("peak MB", "peak_bytes", 0).per(1e6),
        column("J a token", "joules_per_token", 4),
    ];
    let prompts = tests.iter().any(|test| test.n_prompt > 0);
    let tokens = tests.iter().any(|test| test.n_gen > 0);
    let shown = |column: &Column| match column.key() {
        "first_token_ms" => prompts,
        "gb_per_s" => tokens,
        "read_percent" => tokens && !args.no_limits,
        "peak_percent" => !args.no_limits,
        "joules_per_token" => energy,
        key => tokens || !key.starts_with("token_ms"),
    };
    all.into_iter().filter(shown).collect()
}

fn describe(args: &BenchArgs, session: &Session, machine: &Machine) -> Map<String, Value> {
    let kv_type = format!("{:?}", args.model.kv(KvType::F16)).to_lowercase();
    let head = json!({
        "program": concat!("puna ", env!("CARGO_PKG_VERSION")),
        "schema": SCHEMA,
        "model": session.name,
        "type": session.model.weight_type(),
        "load_ms": session.load_ms,
        "weight_bytes_per_token": session.model.bytes_per_token(),
        "kv_type": kv_type,
        "exact": args.model.exact,
        "repetitions": args.repetitions(),
        "machine": machine.json(),
        "device": session.model.device_name(),
    });
    match head {
        Value::Object(head) => head,
        _ => Map::new(),
    }
}

/// What rows of formats without a head begin with.
fn common(head: &Map<String, Value>) -> Vec<(&'static str, Value)> {
    let own = ["model", "type", "kv_type", "exact"].map(|key| (key, head[key].clone()));
    let machine = ["cpu", "isa"].map(|key| (key, head["machine"][key].clone()));
    own.into_iter().chain(machine).collect()
}

fn intro(machine: &Machine, session: &Session) -> String {
    let name = session.name.trim_end_matches('/');
    format!(
        "{}, {}; {}, {} cores, {}; {} MB of weights a token",
        name.rsplit('/').next().unwrap_or(name),
        session.model.weight_type(),
        machine.cpu.as_deref().unwrap_or("unknown processor"),
        machine.physical_cores,
        session.model.device_name(),
        session.model.bytes_per_token() / 1_000_000,
    )
}

/// A result as an object: what was measured, and which share of the limits it is.
pub fn row(outcome: &Outcome, limits: Option<&Limits>) -> Value {
    let Test { n_prompt, n_gen, depth, batch } = outcome.test;
    let tok_per_s = mean(&outcome.tok_per_s);
    let bytes_per_s = outcome.bytes_per_token.map(|bytes| bytes * tok_per_s);
    let ops_per_s = outcome.ops_per_token * tok_per_s;
    let read = limits.and_then(Limits::read);
    let peak = limits.zip(outcome.unit).and_then(|(limits, unit)| limits.peak(unit));
    let giga = |value: Option<f64>| rounded(value.map(|x| x / 1e9));
    let share = |part: Option<f64>, whole: Option<f64>| {
        rounded(part.zip(whole).map(|(part, whole)| 100.0 * part / whole))
    };
    json!({
        "test": outcome.test.name(),
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": depth,
        "batch": batch,
        "threads": outcome.threads,
        "avg_ts": tok_per_s,
        "stddev_ts": deviation(&outcome.tok_per_s),
        "samples_ts": outcome.tok_per_s,
        "token_ms": outcome.token_ms.map(|p| percentiles_json(&p)),
        "first_token_ms": rounded(outcome.first_token_ms),
        "bytes_per_token": outcome.bytes_per_token.map(|bytes| bytes.round() as u64),
        "gb_per_s": giga(bytes_per_s),
        "read_gb_per_s": giga(read),
        "read_percent": share(bytes_per_s, read),
        "gop_per_token": giga(Some(outcome.ops_per_token)),
        "gop_per_s": giga(Some(ops_per_s)),
        "unit": outcome.unit.map(Unit::name),
        "peak_gop_per_s": giga(peak),
        "peak_percent": share(Some(ops_per_s), peak),
        "peak_bytes": outcome.peak_bytes,
        "joules_per_token": rounded(outcome.joules_per_token),
    })
}

/// One test on a loaded model.
struct Bench<'a> {
    model: &'a Model,
    ws: &'a mut Workspace,
    /// One a sequence.
    caches: Vec<KvCache>,
    /// Random ids: the depth first, then the tokens of the test.
    ids: Vec<u32>,
    test: Test,
    unit: Option<Unit>,
}

impl<'a> Bench<'a> {
    fn new(
        model: &'a Model,
        ws: &'a mut Workspace,
        test: Test,
        args: &BenchArgs,
    ) -> Result<Bench<'a>> {
        let mut rng = Rng::new(args.common.seed, 0);
        let vocab_size = model.config.vocab_size as u32;
        let n = test.depth + test.n_tokens();
        let ids = (0..n).map(|_| rng.next_u32() % vocab_size).collect();
        let caches = vec![model.new_cache(n, args.model.kv(KvType::F16))?];
        let of_cpu = || -> Result<Unit> {
            Ok(work::unit(chosen_isa()?, model.weight_type(), args.model.exact))
        };
        let unit = if model.is_on_gpu() { None } else { Some(of_cpu()?) };
        Ok(Bench { model, ws, caches, ids, test, unit })
    }

    fn measure(
        &mut self,
        threads: usize,
        repetitions: usize,
        energy: Option<&Energy>,
        tick: &mut dyn FnMut(),
    ) -> Result<Outcome> {
        let Test { n_prompt, n_gen, depth, batch } = self.test;
        self.append(0, depth, LogitsFor::None)?;
        for _ in 1..batch {
            self.caches.push(self.caches[0].fork()?);
        }
        let warm_up = n_prompt + n_gen.min(WARM_UP_TOKENS);
        self.repetition(warm_up, &mut vec![])?;
        tick();
        let mut all_ms = Vec::with_capacity(repetitions);
        let mut token_ms = Vec::with_capacity(repetitions * n_gen);
        let before = energy.and_then(Energy::read);
        for _ in 0..repetitions {
            all_ms.push(self.repetition(self.test.n_tokens(), &mut token_ms)?);
            tick();
        }
        let joules = energy.zip(before).and_then(|(energy, before)| energy.joules_since(&before));
        let n_tokens = self.test.n_tokens() * batch;
        let sizes = Sizes::of(&self.model.config);
        let bytes_per_token = (n_gen > 0).then(|| {
            let weights = self.model.bytes_per_token() as f64 / batch as f64;
            let position = self.caches[0].position_bytes() as f64;
            weights + position * sizes.visible(depth, n_gen) / n_gen as f64
        });
        let ops_per_token = match n_gen {
            0 => sizes.prompt_ops(depth, n_prompt),
            n => sizes.token_ops(depth, n),
        };
        Ok(Outcome {
            test: self.test,
            threads,
            tok_per_s: all_ms.iter().map(|&ms| per_second(n_tokens, ms)).collect(),
            token_ms: Percentiles::of(&mut token_ms),
            first_token_ms: median(&all_ms).filter(|_| n_prompt > 0),
            bytes_per_token,
            ops_per_token,
            unit: self.unit,
            peak_bytes: None,
            joules_per_token: joules.map(|joules| joules / (n_tokens * repetitions) as f64),
        })
    }

    /// Runs `n` tokens of the test after its depth, in each sequence; returns milliseconds.
    fn repetition(&mut self, n: usize, token_ms: &mut Vec<f64>) -> Result<f64> {
        let Test { n_gen, depth, .. } = self.test;
        for cache in &mut self.caches {
            cache.truncate(depth);
        }
        let start = Instant::now();
        if n_gen == 0 {
            self.append(depth, depth + n, LogitsFor::Last)?;
            self.model.sync()?;
        } else {
            for at in depth..depth + n {
                let begin = Instant::now();
                self.step(at)?;
                token_ms.push(begin.elapsed().as_secs_f64() * 1000.0);
            }
        }
        Ok(start.elapsed().as_secs_f64() * 1000.0)
    }

    /// Appends a token at position `at` to every sequence, with logits.
    fn step(&mut self, at: usize) -> Result<()> {
        stop_if_interrupted()?;
        let ids = &self.ids;
        let mut segments: Vec<Segment<'_>> = self
            .caches
            .iter_mut()
            .enumerate()
            .map(|(index, cache)| {
                // Each sequence has tokens of its own.
                let id = (at + index) % ids.len();
                let tokens = &ids[id..id + 1];
                Segment { tokens, cache, logits: LogitsFor::Last, rope_len: Some(at + 1) }
            })
            .collect();
        self.model.forward(self.ws, &mut segments)?;
        // A token is there when a GPU says so.
        self.model.sync()
    }

    /// Appends the ids `begin..end` to the first sequence, with logits for the last one if any.
    fn append(&mut self, begin: usize, end: usize, logits: LogitsFor) -> Result<()> {
        let mut at = begin;
        while at < end {
            stop_if_interrupted()?;
            let next = end.min(at + Model::MAX_ROWS);
            let logits = if next == end { logits } else { LogitsFor::None };
            let segment = Segment {
                tokens: &self.ids[at..next],
                cache: &mut self.caches[0],
                logits,
                rope_len: Some(end),
            };
            self.model.forward(self.ws, &mut [segment])?;
            at = next;
        }
        Ok(())
    }
}

/// The error of an interrupted run, when a signal came.
///
/// # Errors
/// Then.
pub fn stop_if_interrupted() -> Result<()> {
    match interrupt::flag().load(Ordering::Relaxed) {
        true => Err(Error::Cancelled),
        false => Ok(()),
    }
}
