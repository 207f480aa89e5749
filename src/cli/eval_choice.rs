//! `puna eval choice`: multiple choice as lm-evaluation-harness asks and scores it.

use super::args::{Common, HELP, ModelArgs, Threads};
use super::failure::Failure;
use super::instances::Instances;
use super::interrupt;
use super::session::{Session, context_limit};
use super::terminal::print_line;
use crate::error::{Error, Result};
use crate::eval::bootstrap::{interval, paired};
use crate::eval::choice::{Asker, Item, Scored, Task, item, score, with_shots};
use crate::model::llama::KvType;
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Longest question with examples and answer, if the model takes it.
const LONGEST: usize = 4096;

/// Flags of `puna eval choice`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP)]
#[command(override_usage = "puna eval choice MODEL --task NAME --dataset FILE [flags]")]
#[command(
    after_help = "Example: puna eval choice smollm2.gguf --task arc_easy --dataset arc.jsonl"
)]
pub struct ChoiceArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Threads.
    #[command(flatten)]
    pub threads: Threads,
    /// arc_easy, hellaswag, mmlu, medqa, ...
    #[arg(long, value_name = "NAME", value_parser = task)]
    pub task: Option<Task>,
    /// Questions, a line each (.jsonl)
    #[arg(long, value_name = "FILE")]
    pub dataset: Option<PathBuf>,
    /// Examples before each question [default: 0]
    #[arg(long, value_name = "N")]
    pub num_fewshot: Option<usize>,
    /// Where these come from: its first lines
    #[arg(long, value_name = "FILE")]
    pub fewshot_dataset: Option<PathBuf>,
    /// A text before all
    #[arg(long, value_name = "FILE")]
    pub prefix: Option<PathBuf>,
    /// The first N questions only
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Begin with BOS, unlike the harness
    #[arg(long)]
    pub add_bos: bool,
    /// Compare with this model on the same questions
    #[arg(long, value_name = "MODEL")]
    pub against: Option<PathBuf>,
    /// Where each question's scores go (JSON lines)
    #[arg(long, value_name = "FILE")]
    pub per_instance: Option<PathBuf>,
    /// Go on with that file
    #[arg(long)]
    pub resume: bool,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

fn task(text: &str) -> Result<Task, String> {
    Task::named(text).ok_or_else(|| format!("wanted one of {}", Task::NAMES.join(", ")))
}

/// What is asked of every model.
struct Questions {
    task: Task,
    items: Vec<Item>,
    places: Vec<String>,
    prompts: Vec<String>,
    add_bos: bool,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, questions that are none, and what loading and scoring return.
pub fn run(args: &ChoiceArgs) -> Result<(), Failure> {
    let refuse = |what: &str, hint: &str| Err(Failure::Usage(what.into(), Some(hint.into())));
    let (Some(task), Some(data)) = (args.task, args.dataset.as_deref()) else {
        let hint = "--task says how they are asked, --dataset FILE where they are";
        return refuse("no questions named", hint);
    };
    if args.resume && args.per_instance.is_none() {
        return refuse("--resume alone", "--per-instance FILE has the scores so far");
    }
    let n_shots = args.num_fewshot.unwrap_or(0);
    let shots = match (&args.fewshot_dataset, n_shots) {
        (None, 0) => vec![],
        (Some(_), 0) => return refuse("--fewshot-dataset alone", "--num-fewshot N says how many"),
        (None, _) => {
            return refuse("--num-fewshot alone", "--fewshot-dataset FILE has the examples");
        }
        (Some(file), n) => {
            let (items, _) = read(task, file, Some(n))?;
            if items.len() < n {
                let what = format!("{} examples, wanted {n}", items.len());
                return Err(Error::Data { place: file.display().to_string(), what }.into());
            }
            items
        }
    };
    let (items, places) = read(task, data, args.limit)?;
    let io = |file: &Path, source| Error::io(file, source);
    let prefix = args.prefix.as_ref();
    let prefix = prefix.map(|file| std::fs::read_to_string(file).map_err(|e| io(file, e)));
    let prefix = prefix.transpose()?;
    let prompt = |one: &Item| with_shots(task, prefix.as_deref().map(str::trim_end), &shots, one);
    let prompts = items.iter().map(prompt).collect();
    let questions = Questions { task, items, places, prompts, add_bos: args.add_bos };
    let found = ask(args, &args.model, &questions, args.per_instance.as_deref())?;
    let other = match &args.against {
        Some(path) => {
            let model =
                ModelArgs { model: Some(path.clone()), adapter: vec![], ..args.model.clone() };
            Some(ask(args, &model, &questions, None)?)
        }
        None => None,
    };
    let value = summary(args, &questions, &found, other.as_deref());
    Ok(print_line(&if args.common.json { value.to_string() } else { shown(&value) })?)
}

/// The questions of a file of lines, at most `limit`, and where each stands.
fn read(task: Task, file: &Path, limit: Option<usize>) -> Result<(Vec<Item>, Vec<String>)> {
    let text = std::fs::read_to_string(file).map_err(|source| Error::io(file, source))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (mut items, mut places) = (vec![], vec![]);
    for (number, line) in lines.take(limit.unwrap_or(usize::MAX)) {
        let place = format!("{}, line {}", file.display(), number + 1);
        let value: Value = serde_json::from_str(line)
            .map_err(|e| Error::Data { place: place.clone(), what: format!("not JSON: {e}") })?;
        items.push(item(task, &value, &place)?);
        places.push(place);
    }
    if items.is_empty() {
        let what = "no question in it, wanted at least one".to_owned();
        return Err(Error::Data { place: file.display().to_string(), what });
    }
    Ok((items, places))
}

/// One model's scores, and the log-probabilities that they come from.
type Answers = Vec<(Scored, Vec<f64>)>;

/// Asks one model. With a file the scores go there.
fn ask(
    args: &ChoiceArgs,
    model: &ModelArgs,
    questions: &Questions,
    file: Option<&Path>,
) -> Result<Answers, Failure> {
    let session = Session::load(model, args.threads.count(), &args.common)?;
    let limit = context_limit(&session.model.config).min(LONGEST);
    let tokenizer = session.tokenizer()?;
    let mut asker = Asker::new(&session.model, limit, model.kv(KvType::F32))?;
    let bar = session.log.bar(questions.items.len(), "questions");
    let mut found = Vec::with_capacity(questions.items.len());
    let mut file = match file {
        None => None,
        Some(path) if args.resume => {
            let check = &mut |at: usize, line: &Value| -> Result<(), String> {
                let logprobs = known(questions, at, line)?;
                found.push((score(questions.task, &questions.items[at], &logprobs), logprobs));
                Ok(())
            };
            Some(Instances::resume(path, check)?.0)
        }
        Some(path) => Some(Instances::create(path)?),
    };
    let n_kept = found.len();
    bar.inc(n_kept as u64);
    let all = questions.items.iter().zip(&questions.prompts).zip(&questions.places);
    for ((one, prompt), place) in all.skip(n_kept) {
        // The harness leaves blanks at a prompt's end to the answer.
        let context = prompt.trim_end();
        let blanks = &prompt[context.len()..];
        let bos = tokenizer.bos_id().filter(|_| questions.add_bos);
        let encode = |text: &str| -> Result<Vec<u32>> {
            Ok(bos.into_iter().chain(tokenizer.encode(text, false, true)?).collect())
        };
        let n_context = encode(context)?.len();
        let mut logprobs = Vec::with_capacity(one.choices.len());
        for choice in &one.choices {
            if interrupt::flag().load(Ordering::Relaxed) {
                return Err(Failure::Interrupted);
            }
            let tokens = encode(&format!("{context}{blanks}{choice}"))?;
            let logprob = asker.log_prob(&tokens, n_context).map_err(|error| match error {
                Error::Data { what, .. } => Error::Data { place: place.clone(), what },
                other => other,
            })?;
            logprobs.push(logprob);
        }
        let scored = score(questions.task, one, &logprobs);
        if let Some(file) = &mut file {
            file.write(&line(place, &scored, &logprobs))?;
        }
        found.push((scored, logprobs));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(found)
}

fn line(place: &str, scored: &Scored, logprobs: &[f64]) -> Value {
    json!({
        "place": place,
        "acc": scored.acc,
        "acc_norm": scored.acc_norm,
        "mc2": scored.mc2,
        "chosen": scored.chosen,
        "log_probs": logprobs,
    })
}

/// The log-probabilities in the line of a question, or why it is not that.
fn known(questions: &Questions, at: usize, line: &Value) -> Result<Vec<f64>, String> {
    let (Some(item), Some(place)) = (questions.items.get(at), questions.places.get(at)) else {
        return Err(format!("one more, wanted at most {} questions", questions.items.len()));
    };
    if line["place"].as_str() != Some(place) {
        return Err(format!("place {}, wanted {}", line["place"], json!(place)));
    }
    let found = line["log_probs"].as_array().into_iter().flatten();
    let logprobs: Option<Vec<f64>> = found.map(Value::as_f64).collect();
    match logprobs.filter(|found| found.len() == item.choices.len()) {
        Some(logprobs) => Ok(logprobs),
        None => {
            let (found, n) = (&line["log_probs"], item.choices.len());
            Err(format!("log_probs {found}, wanted {n} numbers"))
        }
    }
}

/// The measure that the harness reports first.
fn first(scored: &Scored) -> f64 {
    scored.mc2.unwrap_or(scored.acc)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn summary(
    args: &ChoiceArgs,
    questions: &Questions,
    found: &Answers,
    other: Option<&[(Scored, Vec<f64>)]>,
) -> Value {
    let seed = args.common.seed;
    let of = |scores: &[(Scored, Vec<f64>)]| -> Vec<f64> {
        scores.iter().map(|(scored, _)| first(scored)).collect()
    };
    let values = of(found);
    let metric = if questions.task == Task::TruthfulQaMc2 { "mc2" } else { "acc" };
    let mut value = json!({
        "task": questions.task.name(),
        "metric": metric,
        "value": mean(&values),
        "n": values.len(),
        "num_fewshot": args.num_fewshot.unwrap_or(0),
    });
    if let Some(found) = interval(&values, seed) {
        value["low"] = json!(found.low);
        value["high"] = json!(found.high);
    }
    let norms: Vec<f64> = found.iter().filter_map(|(scored, _)| scored.acc_norm).collect();
    if !norms.is_empty() {
        value["acc_norm"] = json!(mean(&norms));
    }
    let mut subjects: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (one, &value) in questions.items.iter().zip(&values) {
        if let Some(subject) = &one.subject {
            subjects.entry(subject).or_default().push(value);
        }
    }
    if subjects.len() > 1 {
        let subjects: Map<String, Value> = subjects
            .iter()
            .map(|(name, values)| ((*name).to_owned(), json!(mean(values))))
            .collect();
        value["subjects"] = Value::Object(subjects);
    }
    if let Some(other) = other {
        let others = of(other);
        let mut against = json!({"value": mean(&others)});
        if let Some(test) = paired(&values, &others, seed) {
            against["difference"] = json!(test.difference);
            against["low"] = json!(test.interval.low);
            against["high"] = json!(test.interval.high);
            against["p_value"] = json!(test.p_value);
            against["wins"] = json!(test.wins);
            against["losses"] = json!(test.losses);
            against["ties"] = json!(test.ties);
        }
        value["against"] = against;
    }
    value
}

/// The summary for people.
fn shown(value: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let range = |value: &Value| match (value["low"].as_f64(), value["high"].as_f64()) {
        (Some(low), Some(high)) => format!(" ({low:.4} to {high:.4})"),
        _ => String::new(),
    };
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let mut out = format!(
        "{} {} {:.4}{}, {} questions",
        text("task"),
        text("metric"),
        number(&value["value"]),
        range(value),
        value["n"]
    );
    if let Some(norm) = value["acc_norm"].as_f64() {
        out += &format!(", acc_norm {norm:.4}");
    }
    let against = &value["against"];
    if against.is_object() {
        out += &format!("\nthe other {:.4}", number(&against["value"]));
        if let Some(difference) = against["difference"].as_f64() {
            out += &format!(
                ": difference {difference:.4}{}, p = {:.4}",
                range(against),
                number(&against["p_value"])
            );
        }
    }
    out
}
