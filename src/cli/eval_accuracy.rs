//! `puna eval accuracy`: how many questions of a set a model answers rightly, as LMFlow counts.
//!
//! What the model writes behind a prompt, greedily and without penalties, is searched for the
//! answer by its type. Correct answers are divided by the number of all questions: one whose
//! prompt leaves no room for an answer is not asked and counts as wrong.
//!
//! The file of answers has a line for each question, in order, written as soon as the questions
//! before it are answered. Each line follows from the question, the flags and the output alone, so
//! what an earlier run left is checked by making its lines again.

use super::args::{Common, HELP, ModelArgs, Sampling, Threads, positive};
use super::eval::{Better, against, mean, number, put_interval, range, shown_against};
use super::failure::Failure;
use super::generate::chat_messages;
use super::instances::Instances;
use super::interrupt;
use super::session::{Session, context_limit};
use super::terminal::print_line;
use crate::data::{Record, Source};
use crate::error::{Error, Result};
use crate::eval::accuracy::{PromptStructure, judge};
use crate::eval::answers::AnswerType;
use crate::infer::{Context, Generation, Prompts, generate_batch};
use crate::model::llama::KvType;
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Most tokens of an answer unless told otherwise.
const MAX_NEW_TOKENS: usize = 100;
/// Questions at a time unless told otherwise.
const BATCH_SIZE: usize = 16;
/// Most bytes that their caches may take together, unless the user says how many at a time.
const CACHE_BYTES: usize = 2 << 30;

/// Flags of `puna eval accuracy`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP)]
#[command(override_usage = "puna eval accuracy MODEL --dataset DIR --answer-type TYPE [flags]")]
#[command(after_help = "Example: puna eval accuracy smollm2.gguf --dataset gsm8k \
                        --answer-type gsm8k")]
pub struct AccuracyArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Threads.
    #[command(flatten)]
    pub threads: Threads,
    /// Questions with answers (text2text)
    #[arg(long, value_name = "DIR", alias = "dataset-path")]
    pub dataset: Option<PathBuf>,
    /// gsm8k, csqa, pubmedqa, ... or text
    #[arg(long, value_name = "TYPE", value_parser = answer_type)]
    pub answer_type: Option<AnswerType>,
    /// Prompt around a question [default: {input}]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt_structure: Option<String>,
    /// Most tokens of an answer [default: 100]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_new_tokens: Option<usize>,
    /// Questions at a time [default: 16]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub batch_size: Option<usize>,
    /// The first N questions only
    #[arg(long, value_name = "N", value_parser = positive)]
    pub limit: Option<usize>,
    /// Where each answer goes (JSON lines)
    #[arg(long, value_name = "FILE")]
    pub per_instance: Option<PathBuf>,
    /// Go on with that file
    #[arg(long)]
    pub resume: bool,
    /// Compare with this model
    #[arg(long, value_name = "MODEL")]
    pub against: Option<PathBuf>,
    /// Context size [default: as needed]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub ctx: Option<usize>,
    /// Ask as a user in a chat
    #[arg(long)]
    pub chat: bool,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

fn answer_type(text: &str) -> Result<AnswerType, String> {
    let wanted = || format!("wanted one of {}", AnswerType::NAMES.join(", "));
    AnswerType::named(text).ok_or_else(wanted)
}

/// A question of the set.
struct Question {
    /// Where it stands.
    place: String,
    /// What is asked, the structure around it.
    prompt: String,
    /// The right answer.
    wanted: String,
}

/// What is asked of every model.
struct Exam {
    kind: AnswerType,
    questions: Vec<Question>,
}

/// Ids of every prompt; none for one that is too long to be asked.
type Ids = Vec<Option<Vec<u32>>>;

/// Runs the command.
///
/// # Errors
/// Wrong usage, data that are no questions with answers, a file of answers to other questions, and
/// what loading and generating return.
pub fn run(args: &AccuracyArgs) -> Result<(), Failure> {
    let refuse = |what: &str, hint: &str| Err(Failure::Usage(what.into(), Some(hint.into())));
    let Some(data) = args.dataset.as_deref() else {
        return refuse("no data named", "--dataset DIR names questions with answers");
    };
    let Some(kind) = args.answer_type else {
        let hint = format!("--answer-type is one of {}", AnswerType::NAMES.join(", "));
        return refuse("no type of answers named", &hint);
    };
    if args.resume && args.per_instance.is_none() {
        return refuse("--resume alone", "--per-instance FILE has the answers so far");
    }
    let structure = args.prompt_structure.as_deref().unwrap_or(PromptStructure::PLACE);
    let structure = PromptStructure::new(structure).map_err(|e| Failure::usage(e.to_string()))?;
    let exam = Exam { kind, questions: questions(data, &structure, args.limit)? };
    let found = ask(args, &args.model, &exam, args.per_instance.as_deref())?;
    let other = match &args.against {
        Some(path) => {
            let model =
                ModelArgs { model: Some(path.clone()), adapter: vec![], ..args.model.clone() };
            Some(ask(args, &model, &exam, None)?)
        }
        None => None,
    };
    let value = summary(args, kind, &found, other.as_ref());
    Ok(print_line(&if args.common.json { value.to_string() } else { shown(&value) })?)
}

/// The first questions of a set, at most `limit`.
fn questions(
    data: &Path,
    structure: &PromptStructure,
    limit: Option<usize>,
) -> Result<Vec<Question>> {
    let source = Source::open(data)?;
    let limit = limit.unwrap_or(usize::MAX);
    let mut found = vec![];
    source.for_each(&mut |instance| {
        let place = source.name(instance.place);
        match instance.record {
            Record::Text2Text { input, output } => {
                if found.len() < limit {
                    let prompt = structure.prompt(&input);
                    found.push(Question { place, prompt, wanted: output });
                }
                Ok(())
            }
            other => {
                let kind = other.kind().name();
                let what = format!("records of type \"{kind}\", wanted text2text");
                Err(Error::Data { place, what })
            }
        }
    })?;
    Ok(found)
}

impl Exam {
    /// The line of an answered question, and whether the answer is right; without an output, of
    /// one that was not asked.
    fn line(&self, at: usize, output: Option<&str>) -> (Value, bool) {
        let Question { place, prompt, wanted } = &self.questions[at];
        let text = output.unwrap_or_default();
        let judged = judge(self.kind, text, wanted);
        // An empty answer that was never given is not right where an empty one is wanted.
        let correct = judged.correct && output.is_some();
        let mut line = json!({
            "place": place,
            "input": prompt,
            "output": text,
            "answer": judged.answer,
            "wanted": wanted,
            "correct": correct,
        });
        if output.is_none() {
            line["skipped"] = json!(true);
        }
        (line, correct)
    }

    /// Whether `line` is what this exam makes of the output that it holds, and else why not.
    fn check(&self, at: usize, line: &Value, ids: &Ids) -> Result<(), String> {
        let (Some(question), Some(ids)) = (self.questions.get(at), ids.get(at)) else {
            return Err(format!("one more, wanted at most {} answers", self.questions.len()));
        };
        for (key, wanted) in [("place", &question.place), ("input", &question.prompt)] {
            if line[key].as_str() != Some(wanted.as_str()) {
                return Err(format!("{key} {}, wanted {}", line[key], json!(wanted)));
            }
        }
        let Some(output) = line["output"].as_str() else {
            return Err(format!("output {}, wanted a string", line["output"]));
        };
        let (wanted, _) = self.line(at, ids.as_ref().map(|_| output));
        match *line == wanted {
            true => Ok(()),
            false => Err(format!("{line}, wanted {wanted} of that output, with these flags")),
        }
    }
}

/// What a model got.
struct Found {
    /// 1 for each right answer, 0 for every other.
    values: Vec<f64>,
    /// Questions that were not asked.
    skipped: usize,
}

/// Asks one model. With a file the answers go there.
fn ask(
    args: &AccuracyArgs,
    model: &ModelArgs,
    exam: &Exam,
    file: Option<&Path>,
) -> Result<Found, Failure> {
    let mut session = Session::load(model, args.threads.count(), &args.common)?;
    if args.chat {
        session.choose_template(None)?;
    }
    let max_new_tokens = args.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
    let context = args.ctx.unwrap_or(context_limit(&session.model.config));
    let ids = encode(args, &session, exam, context.saturating_sub(max_new_tokens))?;
    let (file, kept) = match file {
        None => (None, vec![]),
        Some(path) if args.resume => {
            let check = &mut |at: usize, line: &Value| exam.check(at, line, &ids);
            let (file, kept) = Instances::resume(path, check)?;
            (Some(file), kept)
        }
        Some(path) => (Some(Instances::create(path)?), vec![]),
    };
    let correct = kept.iter().map(|line| line["correct"] == true).collect();
    let early = BTreeMap::new();
    let mut answers = Answers { exam, ids: &ids, correct, early, file };
    answer(args, model, &mut session, &mut answers, max_new_tokens)?;
    let value = |&right: &bool| if right { 1.0 } else { 0.0 };
    let values = answers.correct.iter().map(value).collect();
    Ok(Found { values, skipped: ids.iter().filter(|ids| ids.is_none()).count() })
}

/// Ids of all prompts that have at most `longest`.
fn encode(args: &AccuracyArgs, session: &Session, exam: &Exam, longest: usize) -> Result<Ids> {
    let mut all: Ids = Vec::with_capacity(exam.questions.len());
    for Question { place, prompt, .. } in &exam.questions {
        let ids = match args.chat {
            true => session.encode_messages(&chat_messages(None, prompt))?,
            false => session.encode(prompt)?,
        };
        if ids.is_empty() {
            let what = "a prompt without tokens, wanted at least one".to_owned();
            return Err(Error::Data { place: place.clone(), what });
        }
        all.push((ids.len() <= longest).then_some(ids));
    }
    let n_skipped = all.iter().filter(|ids| ids.is_none()).count();
    if n_skipped > 0 {
        session.log.warn(format!(
            "{n_skipped} of {} prompts are longer than the {longest} tokens that an answer leaves \
             of the context: not asked, counted as wrong",
            all.len()
        ));
    }
    Ok(all)
}

/// Answers, judged and written in the order of the questions.
struct Answers<'a> {
    exam: &'a Exam,
    ids: &'a Ids,
    /// Of the first questions, whether the answer is right.
    correct: Vec<bool>,
    /// Outputs that wait for an earlier question's.
    early: BTreeMap<usize, String>,
    file: Option<Instances>,
}

impl Answers<'_> {
    /// Judges and writes all whose turn it is.
    fn settle(&mut self) -> Result<()> {
        loop {
            let at = self.correct.len();
            let output = match self.ids.get(at) {
                None => return Ok(()),
                Some(None) => None,
                Some(Some(_)) => match self.early.remove(&at) {
                    None => return Ok(()),
                    output => output,
                },
            };
            let (line, correct) = self.exam.line(at, output.as_deref());
            if let Some(file) = &mut self.file {
                file.write(&line)?;
            }
            self.correct.push(correct);
        }
    }
}

/// Lets the model answer what is not answered yet.
fn answer(
    args: &AccuracyArgs,
    model: &ModelArgs,
    session: &mut Session,
    answers: &mut Answers<'_>,
    max_new_tokens: usize,
) -> Result<(), Failure> {
    answers.settle()?;
    let (all, n_kept) = (answers.ids, answers.correct.len());
    let asked = |at: &usize| all[*at].is_some();
    let numbers: Vec<usize> = (n_kept..all.len()).filter(asked).collect();
    let ids: Vec<&[u32]> = numbers.iter().filter_map(|&at| all[at].as_deref()).collect();
    let Some(longest) = ids.iter().map(|ids| ids.len()).max() else { return Ok(()) };
    let needed = longest.saturating_add(max_new_tokens);
    let capacity = session.capacity(args.ctx, needed).min(needed);
    let sampling =
        Sampling { temperature: Some(0.0), repetition_penalty: Some(1.0), ..Sampling::default() };
    let options = session.options(&sampling, &args.common, args.chat, max_new_tokens)?;
    let mut context = Context::new(&session.model, capacity, model.kv(KvType::F16))?;
    let fits = (CACHE_BYTES / context.bytes().max(1)).clamp(1, BATCH_SIZE);
    let width = args.batch_size.unwrap_or(fits);
    let prompts = Prompts { ids: &ids, width, ..Prompts::default() };
    let log = session.log;
    let bar = log.bar(all.len(), "questions");
    bar.set_position(n_kept as u64);
    let mut done = |index: usize, generation: Generation| -> Result<()> {
        let first = generation.sequences.into_iter().next();
        answers.early.insert(numbers[index], first.map(|one| one.text).unwrap_or_default());
        bar.inc(1);
        answers.settle()
    };
    let Session { model, workspace, .. } = session;
    let cancel = interrupt::flag();
    let end = generate_batch(model, workspace, &mut context, &prompts, &options, cancel, &mut done);
    bar.finish_and_clear();
    if let (Err(Error::Cancelled), Some(_)) = (&end, &answers.file) {
        let (done, all) = (answers.correct.len(), all.len());
        log.remark(format!("{done} of {all} answers are in the file; --resume goes on from there"));
    }
    Ok(end?)
}

fn summary(args: &AccuracyArgs, kind: AnswerType, found: &Found, other: Option<&Found>) -> Value {
    let (values, seed) = (&found.values, args.common.seed);
    let mut value = json!({
        "metric": "accuracy",
        "value": mean(values),
        "n": values.len(),
        "correct": values.iter().filter(|value| **value == 1.0).count(),
        "skipped": found.skipped,
        "answer_type": kind.name(),
    });
    put_interval(&mut value, values, seed);
    if let Some(other) = other {
        let others = &other.values;
        value["against"] = against(mean(others), [values, others], Better::Higher, seed);
        value["against"]["skipped"] = json!(other.skipped);
    }
    value
}

/// The summary for people.
fn shown(value: &Value) -> String {
    format!(
        "accuracy {:.4}{}, {} of {} answers correct{}",
        number(&value["value"]),
        range(value),
        value["correct"],
        value["n"],
        shown_against(&value["against"], "")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exam() -> Exam {
        let question = |place: &str, wanted: &str| Question {
            place: place.into(),
            prompt: format!("why {place}?"),
            wanted: wanted.into(),
        };
        let questions = vec![question("a", "7"), question("b", "8"), question("c", "")];
        Exam { kind: AnswerType::Gsm8k, questions }
    }

    fn ids() -> Ids {
        vec![Some(vec![1]), Some(vec![2]), None]
    }

    #[test]
    fn answers_are_settled_in_order_and_what_was_not_asked_is_wrong() {
        let (exam, ids) = (exam(), ids());
        let (correct, early) = (vec![], BTreeMap::new());
        let mut answers = Answers { exam: &exam, ids: &ids, correct, early, file: None };
        answers.early.insert(1, "so 9".into());
        answers.settle().unwrap();
        assert_eq!(answers.correct, [false; 0]);
        answers.early.insert(0, "so 7".into());
        answers.settle().unwrap();
        assert_eq!(answers.correct, [true, false, false]);
        assert!(answers.early.is_empty());
    }

    #[test]
    fn a_line_is_made_again_from_its_output() {
        let (exam, ids) = (exam(), ids());
        let (line, correct) = exam.line(0, Some("it is 7."));
        let wanted = json!({"place": "a", "input": "why a?", "output": "it is 7.", "answer": "7",
            "wanted": "7", "correct": true});
        assert_eq!((&line, correct), (&wanted, true));
        let check = |at: usize, line: &Value| match exam.check(at, line, &ids) {
            Ok(()) => "fine".to_owned(),
            Err(what) => what,
        };
        assert_eq!(check(0, &line), "fine");
        let (skipped, correct) = exam.line(2, None);
        assert!(skipped["skipped"] == true && !correct);
        assert_eq!(check(2, &skipped), "fine");
        let with = |key: &str, value: Value| {
            let mut line = line.clone();
            line[key] = value;
            line
        };
        let cases = [
            (1, line.clone(), "place \"a\", wanted \"b\""),
            (0, with("input", json!("what?")), "input \"what?\", wanted \"why a?\""),
            (0, with("output", json!(1)), "output 1, wanted a string"),
            (0, with("output", json!("8")), "with these flags"),
            (0, with("skipped", json!(true)), "with these flags"),
            (2, exam.line(2, Some("")).0, "with these flags"),
            (3, line.clone(), "at most 3 answers"),
            (0, json!([1]), "place null, wanted \"a\""),
        ];
        for (at, line, part) in cases {
            let found = check(at, &line);
            assert!(found.contains(part), "{found}");
        }
    }
}
