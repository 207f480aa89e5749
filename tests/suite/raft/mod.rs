//! `puna raft`, `puna ppo` and `puna grpo` as a user meets them: what a run leaves and whether it
//! is true, rewards of all sources, errors that lose nothing, runs that were killed or interrupted.

mod kill;
mod learn;
mod refused;

use crate::support::fixture::{ids, numbers};
use crate::support::program::{Run, command, finish};
use crate::support::train::{number, tensors};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PROMPTS: [&str; 4] = [
    "Once upon a time, there was a little",
    "The dog ran to the",
    "Mia has a red ball. Tom has",
    "One day, the girl saw a",
];
/// The data's own answer, where they have one.
const ANSWER: &str = "big cat.";

/// Two iterations of four answers to each of four prompts.
const RAFT: &[&str] = &[
    "--num-raft-iteration=2",
    "--raft-batch-size=4",
    "--top-reward-percentage=0.25",
    "--max-new-tokens=8",
];
const LENGTH: &str = "--reward-rule=length:3-6";
const VOWEL: &str = "--reward-rule=regex:[aeiou]n";
/// Bytes of what the program reads for an answer.
const COUNT: &str = "LC_ALL=C awk '{print length($0)}'";
const TEMPLATE: &str = "--conversation-template=chatml";

const SUMMARY_KEYS: [&str; 15] = [
    "end",
    "iterations",
    "total_iterations",
    "steps",
    "train_loss",
    "tokens",
    "tokens_seen",
    "reward_mean",
    "reward_best",
    "kept",
    "ppl",
    "seconds",
    "peak_bytes",
    "trained_parameters",
    "output",
];
const ITERATION_KEYS: [&str; 20] = [
    "iteration",
    "step",
    "answers",
    "kept",
    "reward_mean",
    "reward_first",
    "reward_best",
    "reward_selected",
    "length",
    "ended",
    "ppl",
    "msttr_100",
    "distinct_1",
    "distinct_2",
    "unique_1",
    "unique_2",
    "sample_s",
    "score_s",
    "train_s",
    "sample_tok_per_s",
];
/// What a clock or the memory decides.
const CLOCK_KEYS: [&str; 6] =
    ["tok_per_s", "peak_bytes", "sample_s", "score_s", "train_s", "sample_tok_per_s"];

/// The prompts as a data set; of the conversations one has a system text, one an answer.
fn prompts(kind: &str) -> Value {
    let user = |text: &str| json!({"role": "user", "content": text});
    let one = |(at, text): (usize, &&str)| match (kind, at) {
        ("text_only", _) => json!({"text": text}),
        ("text2text", _) => json!({"input": text, "output": ANSWER}),
        (_, 0) => json!({"system": "Be brief.", "messages": [user(text)]}),
        (_, 1) => {
            json!({"messages": [user(text), {"role": "assistant", "content": ANSWER}]})
        }
        _ => json!({"messages": [user(text)]}),
    };
    let instances: Vec<Value> = PROMPTS.iter().enumerate().map(one).collect();
    json!({"type": kind, "instances": instances})
}

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    args.iter().chain(more).copied().collect()
}

/// A folder with prompts, a cache and outputs of its own.
struct Place(TempDir);

impl Place {
    fn new(prompts: &Value) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        place.write("prompts.json", &prompts.to_string());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Any command line.
    fn plain(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    /// `puna METHOD builtin` on the prompts, ready to run.
    fn command(&self, method: &str, out: &str, args: &[&str]) -> Command {
        let (data, out) = (self.text("prompts.json"), self.text(out));
        let all = [method, "builtin", "--dataset", &data, "--output", &out];
        let all = with(&all, &["--method=lora", "--threads=2"]);
        self.plain(&with(&all, args))
    }

    fn run(&self, method: &str, out: &str, args: &[&str]) -> Run {
        finish(self.command(method, out, args))
    }

    fn metrics(&self, out: &str) -> Vec<Value> {
        lines(&self.path(out).join("metrics.jsonl"))
    }

    fn iterations(&self, out: &str) -> Vec<Value> {
        let all = self.metrics(out).into_iter();
        all.filter(|line| line.get("iteration").is_some()).collect()
    }

    fn steps(&self, out: &str) -> Vec<Value> {
        let all = self.metrics(out).into_iter();
        all.filter(|line| line.get("loss").is_some()).collect()
    }

    /// The scored answers of an iteration, which counts from 1.
    fn samples(&self, out: &str, iteration: usize) -> Vec<Value> {
        lines(&self.path(out).join(format!("iterations/{iteration:04}/samples.jsonl")))
    }

    /// Where the answers of the first iteration are until they are scored.
    fn drawn(&self, out: &str) -> PathBuf {
        self.path(out).join("iterations/0001/drawn.jsonl")
    }

    /// The answers that were learnt in an iteration, which counts from 0.
    fn train_set(&self, out: &str, iteration: usize) -> Option<Value> {
        let path = self.path(out).join(format!("train_set_{iteration}.json"));
        let text = fs::read_to_string(path).ok()?;
        Some(serde_json::from_str(&text).unwrap())
    }
}

/// The values of a file of JSON lines.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn text_of<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} of {value}"))
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let all: Vec<f64> = values.collect();
    all.iter().sum::<f64>() / all.len() as f64
}

fn near(found: f64, wanted: f64) -> bool {
    (found - wanted).abs() <= 1e-9 * wanted.abs().max(1.0)
}

/// `length:3-6`, written as the smaller of two straight lines.
fn length_rule(text: &str) -> f64 {
    let n = text.split_whitespace().count() as f64;
    (n / 3.0).min(1.0).min((2.0 - n / 6.0).max(0.0))
}

/// `regex:[aeiou]n`.
fn vowel_rule(text: &str) -> f64 {
    let found = text.as_bytes().windows(2).any(|two| b"aeiou".contains(&two[0]) && two[1] == b'n');
    f64::from(u8::from(found))
}

/// The reward of each answer that can be learnt from.
fn merits(samples: &[Value]) -> Vec<Option<f64>> {
    let merit = |one: &Value| {
        let blank = text_of(one, "text").trim().is_empty();
        (!blank).then(|| number(one, "reward"))
    };
    samples.iter().map(merit).collect()
}

/// The numbers of the `n` best, of equal ones the first, in order.
fn best(merits: &[Option<f64>], n: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..merits.len()).filter(|&at| merits[at].is_some()).collect();
    all.sort_by(|&a, &b| merits[b].partial_cmp(&merits[a]).unwrap());
    all.truncate(n);
    all.sort_unstable();
    all
}

/// The best of each group of `k`.
fn best_of_each(merits: &[Option<f64>], k: usize) -> Vec<usize> {
    let groups = merits.chunks(k).enumerate();
    let own = |(group, merits): (usize, &[Option<f64>])| -> Vec<usize> {
        best(merits, 1).into_iter().map(|at| group * k + at).collect()
    };
    groups.flat_map(own).collect()
}

/// An answer as an instance of a training set.
fn instance(kind: &str, sample: &Value) -> Value {
    if kind != "conversation" {
        return json!({"input": sample["input"], "output": sample["text"]});
    }
    let all = prompts(kind);
    let mut asked = all["instances"].as_array().unwrap().iter();
    let asked = asked.find(|one| one["messages"][0]["content"] == sample["input"]);
    let mut one = asked.expect("a prompt of the data").clone();
    let messages = one["messages"].as_array_mut().unwrap();
    messages.truncate(1);
    // Without the blank that a template may write itself.
    let text = text_of(sample, "text");
    let content = text.strip_prefix(' ').unwrap_or(text);
    messages.push(json!({"role": "assistant", "content": content}));
    one
}

/// What the program reads of an answer to a text2text prompt.
fn n_bytes(sample: &Value) -> f64 {
    let (prompt, response) = (&sample["input"], &sample["text"]);
    let line = json!({"prompt": prompt, "response": response, "answer": ANSWER});
    line.to_string().len() as f64
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn has(dir: &Path, prefix: &str) -> bool {
    entries(dir).iter().any(|name| name.starts_with(prefix))
}

fn n_lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.matches('\n').count())
}

/// The metrics without what a clock or the memory decides.
fn facts(place: &Place, out: &str) -> Vec<String> {
    let fact = |mut line: Value| {
        let map = line.as_object_mut().expect("an object");
        for key in CLOCK_KEYS {
            map.remove(key);
        }
        line.to_string()
    };
    place.metrics(out).into_iter().map(fact).collect()
}

/// Two runs of two iterations came to the same in all that they left.
fn assert_same(place: &Place, found: &str, wanted: &str) {
    assert_eq!(facts(place, found), facts(place, wanted));
    let (found, wanted) = (place.path(found), place.path(wanted));
    for name in [
        "adapter_model.safetensors",
        "train_set_0.json",
        "train_set_1.json",
        "iterations/0001/samples.jsonl",
        "iterations/0002/samples.jsonl",
    ] {
        let read = |dir: &Path| fs::read(dir.join(name)).ok();
        assert!(read(&found) == read(&wanted), "{}: {name}", found.display());
    }
    assert!(found.join("adapter_model.safetensors").is_file());
    let left = entries(&found);
    let hidden: Vec<&String> = left.iter().filter(|name| name.starts_with('.')).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}
