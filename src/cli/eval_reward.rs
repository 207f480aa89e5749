//! `puna eval reward`: what a reward model gives answers, or how often it prefers what is preferred.
//!
//! The file of scores has a line for each instance, in order, written as soon as its texts are
//! scored. A line follows from the instance's place, the lengths of its texts in tokens and its
//! scores, so what an earlier run left is checked by making its lines again: data or flags that
//! change a length are noticed, others are not.

use super::args::{Common, HELP, ModelArgs, Threads, positive};
use super::eval::{Better, against, mean, number, put_interval, range, shown_against};
use super::failure::Failure;
use super::instances::Instances;
use super::interrupt;
use super::session::{Session, context_limit};
use super::terminal::print_line;
use super::train_setup::usage;
use crate::data::{
    Answered, Choice, Kind, PairOptions, Pairs, Row, Rules, Source, answered, pairs, write_floats,
    write_scored,
};
use crate::error::{Error, Result};
use crate::eval::reward::{check_scores, scores};
use crate::model::llama::KvType;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Longest prompt with an answer unless told otherwise, if the model takes it.
const MAX_LENGTH: usize = 1024;

/// Flags of `puna eval reward`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna eval reward MODEL --dataset DIR [flags]")]
#[command(after_help = "Example: puna eval reward judge --dataset answers --output scored.json")]
pub struct RewardEvalArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Threads.
    #[command(flatten)]
    pub threads: Threads,
    /// Answers, conversations or texts, or pairs
    #[arg(long, value_name = "DIR", alias = "dataset-path")]
    pub dataset: Option<PathBuf>,
    /// Where the answers go with their scores
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Where each instance's scores go (JSON lines)
    #[arg(long, value_name = "FILE")]
    pub per_instance: Option<PathBuf>,
    /// Go on with that file
    #[arg(long)]
    pub resume: bool,
    /// Compare with this model
    #[arg(long, value_name = "MODEL")]
    pub against: Option<PathBuf>,
    /// Prompt with answer [default: 1024 or less]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_length: Option<usize>,
    /// No EOS after answers
    #[arg(long)]
    pub no_eos: bool,
    /// LMFlow's special tokens
    #[arg(long)]
    pub lmflow_compat: bool,
    /// Preset, not the model's template
    #[arg(long, value_name = "T")]
    pub conversation_template: Option<String>,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// A set as one model reads it.
struct Set {
    /// Whether each instance is a pair: the chosen answer, then the rejected one.
    paired: bool,
    /// Of pairs only the ids and the place.
    instances: Vec<Answered>,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, a file of scores of other data, and what loading, reading and scoring return.
pub fn run(args: &RewardEvalArgs) -> Result<(), Failure> {
    let refuse = |what: &str, hint: &str| Err(Failure::Usage(what.into(), Some(hint.into())));
    let Some(data) = args.dataset.as_deref() else {
        return refuse("no data named", "--dataset DIR names answers or pairs");
    };
    if args.resume && args.per_instance.is_none() {
        return refuse("--resume alone", "--per-instance FILE has the scores so far");
    }
    std::fs::metadata(data).map_err(|source| Error::io(data, source))?;
    let paired = matches!(kind_of(data)?, Kind::PairedTextToText | Kind::PairedConversation);
    if paired && args.output.is_some() {
        let what = "--output with pairs: they have no scores to be written beside";
        return Err(Failure::usage(what));
    }
    let (set, found) = ask(args, &args.model, data, paired, args.per_instance.as_deref())?;
    if let Some(output) = &args.output {
        write(output, &set, &found)?;
    }
    let other = match &args.against {
        Some(path) => {
            let model =
                ModelArgs { model: Some(path.clone()), adapter: vec![], ..args.model.clone() };
            let (set, found) = ask(args, &model, data, paired, None)?;
            Some(set.values(&found))
        }
        None => None,
    };
    let value = summary(args, set.metric(), &set.values(&found), other.as_deref());
    Ok(print_line(&if args.common.json { value.to_string() } else { shown(&value) })?)
}

/// The type of the first record.
fn kind_of(data: &Path) -> Result<Kind> {
    let mut kind = None;
    let found = Source::open(data)?.for_each(&mut |instance| {
        kind = Some(instance.record.kind());
        Err(Error::Cancelled)
    });
    match (kind, found) {
        (Some(kind), _) => Ok(kind),
        (None, found) => found,
    }
}

impl Set {
    fn read(args: &RewardEvalArgs, session: &Session, data: &Path, paired: bool) -> Result<Set> {
        let model = &session.model;
        let limit = context_limit(&model.config);
        let max_length = args.max_length.unwrap_or(MAX_LENGTH.min(limit));
        let options = PairOptions {
            rules: Rules {
                no_eos: args.no_eos,
                lmflow_compat: args.lmflow_compat,
                train_on_prompt: false,
                conversation_template: args.conversation_template.clone(),
            },
            max_length,
            max_prompt_length: max_length / 2,
            choice: Choice::MaxMin,
            length_penalty: 0.0,
            margin_scale: 1.0,
            seed: args.common.seed,
            skip_bad_instances: false,
            first: 0,
        };
        let (text, vocab_size) = (model.text.as_ref(), model.config.vocab_size);
        let instances = match paired {
            true => both_answers(pairs(data, text, vocab_size, &options)?),
            false => answered(data, text, vocab_size, &options)?,
        };
        Ok(Set { paired, instances })
    }

    fn metric(&self) -> &'static str {
        if self.paired { "reward_accuracy" } else { "reward" }
    }

    /// The score of every answer; of every pair 1 where the chosen one's is higher, else 0.
    fn values(&self, found: &[Vec<f32>]) -> Vec<f64> {
        let right = |scores: &Vec<f32>| if scores[0] > scores[1] { 1.0 } else { 0.0 };
        match self.paired {
            true => found.iter().map(right).collect(),
            false => found.iter().flatten().map(|&score| f64::from(score)).collect(),
        }
    }

    /// The line of an instance whose texts have these scores.
    fn line(&self, at: usize, scores: &[f32]) -> Value {
        let one = &self.instances[at];
        match (self.paired, scores) {
            (true, [chosen, rejected]) => json!({
                "place": one.place,
                "chosen": chosen,
                "rejected": rejected,
                "correct": chosen > rejected,
                "tokens": n_tokens(one),
            }),
            _ => json!({
                "place": one.place,
                "scores": scores,
                "best": best(scores),
                "tokens": n_tokens(one),
            }),
        }
    }

    /// The scores in the line of an instance, or why it is not that. A score that is no finite
    /// number is written as null and not known again.
    fn known(&self, at: usize, line: &Value) -> Result<Vec<f32>, String> {
        let Some(one) = self.instances.get(at) else {
            return Err(format!("one more, wanted at most {} instances", self.instances.len()));
        };
        for (key, wanted) in [("place", json!(one.place)), ("tokens", json!(n_tokens(one)))] {
            if line[key] != wanted {
                return Err(format!("{key} {}, wanted {wanted}", line[key]));
            }
        }
        let found: Vec<&Value> = match self.paired {
            true => vec![&line["chosen"], &line["rejected"]],
            false => line["scores"].as_array().into_iter().flatten().collect(),
        };
        // What was written is the f32 as f64, which comes back as it was.
        let scores = found.iter().map(|score| score.as_f64().map(|score| score as f32));
        let scores: Option<Vec<f32>> = scores.collect();
        let Some(scores) = scores.filter(|scores| scores.len() == one.ids.len()) else {
            return Err(format!("{line}, wanted a score of each of {} texts", one.ids.len()));
        };
        let wanted = self.line(at, &scores);
        match *line == wanted {
            true => Ok(scores),
            false => Err(format!("{line}, wanted {wanted} of those scores")),
        }
    }
}

/// Pairs as instances of two texts.
fn both_answers(all: Pairs) -> Vec<Answered> {
    let one = |(row, place): (Row, String)| {
        let (chosen, rejected) = row.ids.split_at(row.spans[0] as usize);
        Answered { ids: vec![chosen.to_vec(), rejected.to_vec()], place, ..Answered::default() }
    };
    all.rows.into_iter().zip(all.places).map(one).collect()
}

/// Tokens of each text.
fn n_tokens(one: &Answered) -> Vec<usize> {
    one.ids.iter().map(Vec::len).collect()
}

/// The first of the highest.
fn best(scores: &[f32]) -> Option<usize> {
    let better = |&a: &usize, &b: &usize| scores[a].total_cmp(&scores[b]).then(b.cmp(&a));
    (0..scores.len()).max_by(better)
}

/// One model's scores of every instance's texts. With a file they go there.
fn ask(
    args: &RewardEvalArgs,
    model: &ModelArgs,
    data: &Path,
    paired: bool,
    file: Option<&Path>,
) -> Result<(Set, Vec<Vec<f32>>), Failure> {
    let mut session = Session::load_any(model, args.threads.count(), &args.common)?;
    check_scores(&session.model)?;
    let set = Set::read(args, &session, data, paired).map_err(usage)?;
    let mut found: Vec<Vec<f32>> = Vec::with_capacity(set.instances.len());
    let mut file = match file {
        None => None,
        Some(path) if args.resume => {
            let check = &mut |at: usize, line: &Value| -> Result<(), String> {
                found.push(set.known(at, line)?);
                Ok(())
            };
            Some(Instances::resume(path, check)?.0)
        }
        Some(path) => Some(Instances::create(path)?),
    };
    let rest = &set.instances[found.len()..];
    let texts: Vec<&[u32]> =
        rest.iter().flat_map(|one| one.ids.iter().map(Vec::as_slice)).collect();
    let (log, kv) = (session.log, model.kv(KvType::F32));
    let bar = log.bar(set.instances.len(), "instances");
    let mut n_settled = 0;
    // Takes the scores so far to all instances that they are enough for.
    let mut settle = |scores: &[f32]| -> Result<()> {
        while let Some(one) = set.instances.get(found.len()) {
            let Some(own) = scores.get(n_settled..n_settled + one.ids.len()) else { break };
            if let Some(file) = &mut file {
                file.write(&set.line(found.len(), own))?;
            }
            n_settled += own.len();
            found.push(own.to_vec());
        }
        bar.set_position(found.len() as u64);
        Ok(())
    };
    let Session { model, workspace, .. } = &mut session;
    let end = scores(model, workspace, &texts, kv, interrupt::flag(), &mut settle);
    bar.finish_and_clear();
    if let (Err(Error::Cancelled), Some(_)) = (&end, &file) {
        let (done, all) = (found.len(), set.instances.len());
        log.remark(format!(
            "the scores of {done} of {all} instances are in the file; --resume goes on from there"
        ));
    }
    end?;
    Ok((set, found))
}

/// Writes the answers with their scores; of texts that were scored as they stand the scores alone.
fn write(output: &Path, set: &Set, found: &[Vec<f32>]) -> Result<()> {
    if set.instances.iter().all(|one| one.whole) {
        return write_floats(output, &found.concat());
    }
    let mut records = vec![];
    for (one, scores) in set.instances.iter().zip(found) {
        let texts = one.outputs.iter().map(String::as_str);
        records.push((one.input.as_str(), scores.iter().copied().zip(texts).collect()));
    }
    write_scored(output, &records)
}

fn summary(args: &RewardEvalArgs, metric: &str, values: &[f64], other: Option<&[f64]>) -> Value {
    let seed = args.common.seed;
    let mut value = json!({"metric": metric, "value": mean(values), "n": values.len()});
    put_interval(&mut value, values, seed);
    if let Some(others) = other {
        value["against"] = against(mean(others), [values, others], Better::Higher, seed);
    }
    value
}

/// The summary for people.
fn shown(value: &Value) -> String {
    format!(
        "{} {:.4}{}, mean of {}{}",
        value["metric"].as_str().unwrap_or_default(),
        number(&value["value"]),
        range(value),
        value["n"],
        shown_against(&value["against"], "")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(paired: bool) -> Set {
        let instance = |place: &str, lengths: [usize; 2]| Answered {
            ids: lengths.iter().map(|&n| vec![1; n]).collect(),
            place: place.into(),
            ..Answered::default()
        };
        Set { paired, instances: vec![instance("a", [3, 4]), instance("b", [5, 2])] }
    }

    #[test]
    fn scores_come_back_from_their_line_as_they_were() {
        for paired in [false, true] {
            let set = set(paired);
            for scores in [[0.1f32, -1e-30], [f32::MIN_POSITIVE, 16_777_216.0], [-0.0, 1.0 / 3.0]] {
                let text = set.line(1, &scores).to_string();
                let found = set.known(1, &serde_json::from_str(&text).unwrap()).unwrap();
                assert_eq!(found.len(), 2);
                for (found, wanted) in found.iter().zip(scores) {
                    assert_eq!(found.to_bits(), wanted.to_bits(), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_line_of_another_instance_is_refused() {
        let (answers, pairs) = (set(false), set(true));
        let (scored, compared) = (answers.line(0, &[1.0, 2.0]), pairs.line(0, &[1.0, 2.0]));
        let wanted = json!({"place": "a", "scores": [1.0, 2.0], "best": 1, "tokens": [3, 4]});
        assert_eq!(scored, wanted);
        let wanted = json!({"place": "a", "chosen": 1.0, "rejected": 2.0, "correct": false,
            "tokens": [3, 4]});
        assert_eq!(compared, wanted);
        let with = |line: &Value, key: &str, value: Value| {
            let mut line = line.clone();
            line[key] = value;
            line
        };
        let cases = [
            (&answers, 1, scored.clone(), "place \"a\", wanted \"b\""),
            (&answers, 2, scored.clone(), "at most 2 instances"),
            (&answers, 0, with(&scored, "tokens", json!([3, 5])), "tokens [3,5], wanted [3,4]"),
            (&answers, 0, with(&scored, "scores", json!([1.0])), "each of 2 texts"),
            (&answers, 0, with(&scored, "scores", json!([1.0, null])), "each of 2 texts"),
            (&answers, 0, with(&scored, "best", json!(0)), "of those scores"),
            (&answers, 0, compared.clone(), "each of 2 texts"),
            (&pairs, 0, with(&compared, "chosen", Value::Null), "each of 2 texts"),
            (&pairs, 0, with(&compared, "chosen", json!(2.5)), "of those scores"),
            (&pairs, 0, with(&compared, "correct", json!(true)), "of those scores"),
            (&pairs, 0, json!([1]), "place null, wanted \"a\""),
        ];
        for (set, at, line, part) in cases {
            let found = set.known(at, &line).unwrap_err();
            assert!(found.contains(part), "{found}");
        }
    }
}
