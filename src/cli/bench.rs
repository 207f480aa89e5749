//! `puna bench`: speed of prompts (pp) and of single tokens (tg), as llama-bench measures them.
//!
//! Every test runs once to warm up and then `-r` times on random token ids. A test at depth D
//! first fills D positions of the cache, which is not timed. Sampling is not part of it. GB/s is
//! the weights that one token reads times the tokens a second, without keys and values.

use super::args::{Common, HELP, ModelArgs, positive};
use super::failure::Failure;
use super::interrupt;
use super::machine::{Machine, physical_cores};
use super::output::percentiles_json;
use super::session::Session;
use super::terminal::print_line;
use crate::error::{Error, Result};
use crate::infer::Percentiles;
use crate::infer::timing::per_second;
use crate::model::llama::{KvCache, KvType, LogitsFor, Model, Segment, Workspace};
use crate::model::shapes;
use crate::rng::Rng;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Tokens of the warm-up of a token test.
const WARM_UP_TOKENS: usize = 8;

/// Flags of `puna bench`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna bench MODEL [flags]")]
#[command(after_help = "Example: puna bench smollm2.gguf -p 512 -n 64 -d 0,2048 -t 1,2")]
pub struct BenchArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Not MODEL but random weights: llama-7b, ...
    #[arg(long, value_name = "NAME")]
    pub shape: Option<String>,
    /// Their type [default: Q4_0]
    #[arg(long = "type", value_name = "T")]
    pub r#type: Option<String>,
    /// Keep that model as a GGUF file
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Prompt lengths; 0: none [default: 512]
    #[arg(short = 'p', long, value_name = "N[,N]", value_delimiter = ',')]
    pub n_prompt: Vec<usize>,
    /// Numbers of tokens; 0: none [default: 128]
    #[arg(short = 'n', long, value_name = "N[,N]", value_delimiter = ',')]
    pub n_gen: Vec<usize>,
    /// Positions filled before [default: 0]
    #[arg(short = 'd', long, value_name = "N[,N]", value_delimiter = ',')]
    pub n_depth: Vec<usize>,
    /// Repetitions of each test [default: 5]
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub repetitions: Option<usize>,
    /// Thread counts [default: physical cores]
    #[arg(short, long, value_name = "N[,N]", value_delimiter = ',', value_parser = positive)]
    pub threads: Vec<usize>,
    /// Table or JSON: md or json [default: md]
    #[arg(short, long, value_name = "FORMAT", hide_possible_values = true)]
    pub output: Option<Format>,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A Markdown table.
    Md,
    /// One object.
    Json,
}

/// One kind of measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Test {
    /// Tokens of the prompt, 0 for a token test.
    n_prompt: usize,
    /// Single tokens, 0 for a prompt test.
    n_gen: usize,
    /// Positions filled before.
    depth: usize,
}

impl Test {
    /// llama-bench's name: `pp512`, `tg64 @ d2048`.
    fn name(self) -> String {
        let name = match self.n_gen {
            0 => format!("pp{}", self.n_prompt),
            n => format!("tg{n}"),
        };
        if self.depth == 0 { name } else { format!("{name} @ d{}", self.depth) }
    }

    fn n_tokens(self) -> usize {
        self.n_prompt + self.n_gen
    }
}

/// What a test gave.
#[derive(Clone, Debug)]
struct Outcome {
    test: Test,
    threads: usize,
    /// Tokens per second of each repetition.
    tok_per_s: Vec<f64>,
    /// Over all tokens of all repetitions; token tests only.
    token_ms: Option<Percentiles>,
    /// Weights read in GB/s; token tests only.
    gb_per_s: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and what loading and computing return.
pub fn run(args: &BenchArgs) -> Result<(), Failure> {
    let made = make_model(args)?;
    let mut args = args.clone();
    if let Some(file) = &made {
        args.model.model = Some(file.path.clone());
    }
    let args = &args;
    let tests = plan(args);
    if tests.is_empty() {
        let hint = "-p and -n are both 0".to_owned();
        return Err(Failure::Usage("nothing to measure".into(), Some(hint)));
    }
    let all_threads =
        if args.threads.is_empty() { vec![physical_cores()] } else { args.threads.clone() };
    let machine = Machine::detect()?;
    let repetitions = args.repetitions.unwrap_or(5);
    let json = args.common.json || args.output == Some(Format::Json);
    let mut outcomes = vec![];
    let mut head = Value::Null;
    for &threads in &all_threads {
        let mut session = Session::load(&args.model, threads, &args.common)?;
        let name = session.name.clone();
        if head.is_null() {
            let kv_type = format!("{:?}", args.model.kv(KvType::F16)).to_lowercase();
            head = json!({
                "model": name,
                "load_ms": session.load_ms,
                "weight_bytes_per_token": session.model.bytes_per_token(),
                "kv_type": kv_type,
                "exact": args.model.exact,
                "repetitions": repetitions,
                "machine": machine.json(),
            });
            if !json {
                print_line(&table_head(&machine, &session))?;
            }
        }
        let bar = session.log.bar(tests.len() * (repetitions + 1), "runs");
        let Session { model, workspace, .. } = &mut session;
        for &test in &tests {
            let mut bench = Bench::new(model, workspace, test, args)?;
            let outcome = bench.measure(threads, repetitions, &mut || bar.inc(1))?;
            if !json {
                bar.suspend(|| print_line(&table_row(&name, &outcome)))?;
            }
            outcomes.push(outcome);
        }
        bar.finish_and_clear();
    }
    if json {
        head["results"] = outcomes.iter().map(outcome_json).collect();
        print_line(&head.to_string())?;
    }
    Ok(())
}

/// A model made for this run; removed with it unless it was to be kept.
struct MadeModel {
    path: PathBuf,
    keep: bool,
}

impl Drop for MadeModel {
    fn drop(&mut self) {
        if !self.keep {
            // A file that somebody else removed is as gone as it should be.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes the random model that `--shape` asks for.
fn make_model(args: &BenchArgs) -> Result<Option<MadeModel>, Failure> {
    let Some(name) = &args.shape else {
        let without = |flag: &str| Failure::Usage(format!("{flag} without --shape"), None);
        return match (&args.save, &args.r#type) {
            (Some(_), _) => Err(without("--save")),
            (_, Some(_)) => Err(without("--type")),
            _ => Ok(None),
        };
    };
    if args.model.model.is_some() {
        return Err(Failure::Usage("both MODEL and --shape are given".into(), None));
    }
    let shape = shapes::named(name)?;
    let type_name = args.r#type.as_deref().unwrap_or("Q4_0");
    let dtype = shapes::dtype_named(type_name)?;
    let path = args.save.clone().unwrap_or_else(|| {
        let file = format!("puna-{}-{name}-{type_name}.gguf", std::process::id());
        std::env::temp_dir().join(file)
    });
    args.common
        .log()
        .remark(format!("writing {name} with random {type_name} weights: {}", path.display()));
    let made = MadeModel { path, keep: args.save.is_some() };
    shape.save(&made.path, dtype, args.common.seed)?;
    Ok(Some(made))
}

/// The tests in llama-bench's order: at each depth the prompts, then the tokens.
fn plan(args: &BenchArgs) -> Vec<Test> {
    let or = |given: &[usize], usual: usize| match given {
        [] => vec![usual],
        given => given.to_vec(),
    };
    let (prompts, gens) = (or(&args.n_prompt, 512), or(&args.n_gen, 128));
    let mut tests = vec![];
    for depth in or(&args.n_depth, 0) {
        tests.extend(prompts.iter().map(|&n_prompt| Test { n_prompt, n_gen: 0, depth }));
        tests.extend(gens.iter().map(|&n_gen| Test { n_prompt: 0, n_gen, depth }));
    }
    tests.retain(|test| test.n_tokens() > 0);
    tests
}

/// One test on a loaded model.
struct Bench<'a> {
    model: &'a Model,
    ws: &'a mut Workspace,
    cache: KvCache,
    /// Random ids: the depth first, then the tokens of the test.
    ids: Vec<u32>,
    test: Test,
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
        let cache = model.new_cache(n, args.model.kv(KvType::F16))?;
        Ok(Bench { model, ws, cache, ids, test })
    }

    fn measure(
        &mut self,
        threads: usize,
        repetitions: usize,
        tick: &mut dyn FnMut(),
    ) -> Result<Outcome> {
        let Test { n_gen, depth, .. } = self.test;
        self.forward(0, depth, LogitsFor::None)?;
        let warm_up = self.test.n_prompt + n_gen.min(WARM_UP_TOKENS);
        self.repetition(warm_up, &mut vec![])?;
        tick();
        let mut tok_per_s = Vec::with_capacity(repetitions);
        let mut token_ms = Vec::with_capacity(repetitions * n_gen);
        for _ in 0..repetitions {
            tok_per_s.push(self.repetition(self.test.n_tokens(), &mut token_ms)?);
            tick();
        }
        let bytes = self.model.bytes_per_token() as f64;
        let gb_per_s = (n_gen > 0).then(|| mean(&tok_per_s) * bytes / 1e9);
        let token_ms = Percentiles::of(&mut token_ms);
        Ok(Outcome { test: self.test, threads, tok_per_s, token_ms, gb_per_s })
    }

    /// Runs `n` tokens of the test after its depth; returns tokens per second.
    fn repetition(&mut self, n: usize, token_ms: &mut Vec<f64>) -> Result<f64> {
        let Test { n_gen, depth, .. } = self.test;
        self.cache.truncate(depth);
        let start = Instant::now();
        if n_gen == 0 {
            self.forward(depth, depth + n, LogitsFor::Last)?;
        } else {
            for at in depth..depth + n {
                let begin = Instant::now();
                self.forward(at, at + 1, LogitsFor::Last)?;
                token_ms.push(begin.elapsed().as_secs_f64() * 1000.0);
            }
        }
        Ok(per_second(n, start.elapsed().as_secs_f64() * 1000.0))
    }

    /// Appends the ids `begin..end` to the cache, with logits for the last one if any.
    fn forward(&mut self, begin: usize, end: usize, logits: LogitsFor) -> Result<()> {
        let mut at = begin;
        while at < end {
            if interrupt::flag().load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let next = end.min(at + Model::MAX_ROWS);
            let logits = if next == end { logits } else { LogitsFor::None };
            let segment = Segment {
                tokens: &self.ids[at..next],
                cache: &mut self.cache,
                logits,
                rope_len: Some(end),
            };
            self.model.forward(self.ws, &mut [segment])?;
            at = next;
        }
        Ok(())
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation of a sample (divided by n - 1); 0 of a single value.
fn deviation(values: &[f64]) -> f64 {
    let m = mean(values);
    let sum: f64 = values.iter().map(|v| (v - m).powi(2)).sum();
    if values.len() < 2 { 0.0 } else { (sum / (values.len() - 1) as f64).sqrt() }
}

fn table_head(machine: &Machine, session: &Session) -> String {
    let cpu = machine.cpu.as_deref().unwrap_or("unknown processor");
    format!(
        "{cpu}, {} cores, {}; {} MB of weights a token\n\n\
         | model | threads | test | tok/s | ms a token p50 | p99 | p99.9 | max | GB/s |\n\
         | :-- | --: | --: | --: | --: | --: | --: | --: | --: |",
        machine.physical_cores,
        machine.isa,
        session.model.bytes_per_token() / 1_000_000,
    )
}

fn table_row(name: &str, outcome: &Outcome) -> String {
    let name = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
    let speed = format!("{:.2} ± {:.2}", mean(&outcome.tok_per_s), deviation(&outcome.tok_per_s));
    let times = match &outcome.token_ms {
        Some(p) => {
            format!("{:.3} | {:.3} | {:.3} | {:.3}", p.p50_ms, p.p99_ms, p.p999_ms, p.max_ms)
        }
        None => " |  |  | ".to_owned(),
    };
    let rate = outcome.gb_per_s.map(|rate| format!("{rate:.2}")).unwrap_or_default();
    format!(
        "| {name} | {} | {} | {speed} | {times} | {rate} |",
        outcome.threads,
        outcome.test.name()
    )
}

fn outcome_json(outcome: &Outcome) -> Value {
    let Test { n_prompt, n_gen, depth } = outcome.test;
    json!({
        "test": outcome.test.name(),
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": depth,
        "threads": outcome.threads,
        "avg_ts": mean(&outcome.tok_per_s),
        "stddev_ts": deviation(&outcome.tok_per_s),
        "samples_ts": outcome.tok_per_s,
        "token_ms": outcome.token_ms.map(|p| percentiles_json(&p)),
        "gb_per_s": outcome.gb_per_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser;

    fn names(args: &[&str]) -> Vec<String> {
        let all = ["puna", "bench", "m"].iter().chain(args);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Bench(args) => plan(&args).into_iter().map(Test::name).collect(),
            _ => vec![],
        }
    }

    #[test]
    fn tests_are_those_of_llama_bench() {
        assert_eq!(names(&[]), ["pp512", "tg128"]);
        assert_eq!(names(&["-p", "0", "-n", "64", "-d", "0,2048"]), ["tg64", "tg64 @ d2048"]);
        assert_eq!(names(&["-p", "16,32", "-n", "0"]), ["pp16", "pp32"]);
        assert!(names(&["-p", "0", "-n", "0"]).is_empty());
    }

    #[test]
    fn spread_of_a_sample() {
        assert_eq!((mean(&[2.0, 4.0]), deviation(&[2.0, 4.0])), (3.0, 2f64.sqrt()));
        assert_eq!(deviation(&[2.0]), 0.0);
    }

    #[test]
    fn rows_have_as_many_cells_as_the_head() {
        let p = Percentiles { p50_ms: 1.0, p99_ms: 2.0, p999_ms: 3.0, max_ms: 4.0 };
        let test = Test { n_prompt: 0, n_gen: 4, depth: 0 };
        let tokens = Outcome {
            test,
            threads: 2,
            tok_per_s: vec![10.0, 12.0],
            token_ms: Some(p),
            gb_per_s: Some(1.5),
        };
        let row = table_row("some/dir/m.gguf", &tokens);
        let wanted = "| m.gguf | 2 | tg4 | 11.00 ± 1.41 | 1.000 | 2.000 | 3.000 | 4.000 | 1.50 |";
        assert_eq!(row, wanted);
        let prompt = Outcome { token_ms: None, gb_per_s: None, ..tokens };
        let row = table_row("m", &prompt);
        assert_eq!(row.matches('|').count(), wanted.matches('|').count());
        assert_eq!(outcome_json(&prompt)["token_ms"], Value::Null);
    }
}
