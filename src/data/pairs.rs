//! Preference data: two answers to one prompt, one of them preferred, as one row of two documents.
//!
//! | type | prompt | answers |
//! |---|---|---|
//! | paired_text_to_text | `prompt` | `chosen`, `rejected` |
//! | paired_conversation | all before the last message of the assistant | that message |
//! | text_to_scored_textlist | `input` | two of `output`, by [`Choice`] |
//!
//! Only the answers are scored. A rejected answer may be empty, as those are that a model ended at
//! once: its EOS is what is scored then. A pair that is too long loses the beginning of its prompt first,
//! then the ends of its answers.

use super::order::{Epochs, below};
use super::prompts::{Asking, Question};
use super::record::{Conversation, Kind, Record, TextList};
use super::render::{Rendered, Renderer, Rules};
use super::rows::{NOT_SCORED, Row};
use super::source::Source;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::text::TextParts;
use std::collections::BTreeSet;
use std::path::Path;

/// Stream of a seed that pairs are drawn from.
const CHOICE_STREAM: u64 = 1 << 42;

/// The order by which pairs are held back; no epoch of training has this number.
const HOLDOUT_EPOCH: u64 = u64::MAX;

/// Which two answers of a scored list become a pair; the one with the higher score is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Any two.
    Random,
    /// The best and the worst.
    MaxMin,
    /// The best and the second best.
    MaxMax,
    /// The best and any other.
    MaxRandom,
}

/// How preference data become pairs.
#[derive(Clone, Debug)]
pub struct PairOptions {
    /// What is written around texts.
    pub rules: Rules,
    /// Most tokens of a prompt with an answer.
    pub max_length: usize,
    /// What is left of the prompt of a pair that is longer.
    pub max_prompt_length: usize,
    /// Which answers of a scored list meet.
    pub choice: Choice,
    /// Taken from an answer's score for each of its characters, before two are chosen.
    pub length_penalty: f64,
    /// Factor of the difference of two scores, which is the pair's margin.
    pub margin_scale: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// Leave out and count what is no pair.
    pub skip_bad_instances: bool,
    /// The number of the first pair: [`Row::source`] counts from it.
    pub first: u32,
}

/// Pairs of a data set.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    /// Chosen and rejected as the two documents of a row; [`Row::source`] names the pair twice.
    pub rows: Vec<Row>,
    /// By how much each is preferred, 0 where nothing is said.
    pub margins: Vec<f64>,
    /// Where each stands, for people.
    pub places: Vec<String>,
    /// The number of the first pair.
    pub first: u32,
    /// Instances read.
    pub instances: usize,
    /// Left out, with the first one's place and reason.
    pub skipped: (usize, Option<String>),
    /// Pairs that lost tokens.
    pub truncated: usize,
}

impl Pairs {
    /// Takes some of the pairs out, chosen by `seed`: this many in a hundred, rounded, at least one.
    ///
    /// # Errors
    /// A set of which nothing would be left.
    pub fn hold_out(&mut self, percent: f64, seed: u64) -> Result<Pairs> {
        let n = self.rows.len();
        let n_out = ((n as f64 * percent / 100.0).round() as usize).max(1);
        if n_out >= n {
            let what = format!("{percent} % of {n} pairs held back leaves nothing to train on");
            return Err(Error::Data { place: "preference data".into(), what });
        }
        let order = Epochs::new(n, seed, true);
        let chosen: BTreeSet<usize> = (0..n_out).map(|at| order.index(HOLDOUT_EPOCH, at)).collect();
        let mut held_out = Pairs { first: self.first, ..Pairs::default() };
        let all = std::mem::take(&mut self.rows).into_iter().zip(std::mem::take(&mut self.margins));
        for (at, ((row, margin), place)) in all.zip(std::mem::take(&mut self.places)).enumerate() {
            let to = if chosen.contains(&at) { &mut held_out } else { &mut *self };
            to.rows.push(row);
            to.margins.push(margin);
            to.places.push(place);
        }
        Ok(held_out)
    }
}

/// An answer with its prompt.
struct Side {
    ids: Vec<u32>,
    /// Tokens of the prompt.
    n_prompt: usize,
}

impl Side {
    /// Takes away the beginning of a long prompt, then the end of the answer.
    fn cut(&mut self, options: &PairOptions) {
        let drop = self.n_prompt.saturating_sub(options.max_prompt_length);
        self.ids.drain(..drop);
        self.n_prompt -= drop;
        self.ids.truncate(options.max_length.max(self.n_prompt + 1));
    }
}

/// Reads the pairs of the data set at `path`.
///
/// # Errors
/// Files that cannot be read or hold something else; a model without tokenizer; unless they are to
/// be skipped, instances that are no pair; a set without any.
pub fn pairs(
    path: &Path,
    text: Option<&TextParts>,
    vocab_size: usize,
    options: &PairOptions,
) -> Result<Pairs> {
    let source = Source::open(path)?;
    let mut out = Pairs { first: options.first, ..Pairs::default() };
    let mut rng = Rng::new(options.seed, CHOICE_STREAM);
    let mut renderer: Option<Renderer<'_>> = None;
    source.for_each(&mut |instance| {
        let place = source.name(instance.place);
        out.instances += 1;
        let kind = rendered_kind(instance.record.kind(), &place)?;
        let renderer = match &mut renderer {
            Some(renderer) => renderer,
            none => none.insert(Renderer::new(&options.rules, text, kind, vocab_size, &place)?),
        };
        let named = |error: Error| match error {
            Error::Tokenizer(what) => Error::Data { place: place.clone(), what },
            other => other,
        };
        let found = pair_of(renderer, instance.record, options, &mut rng).map_err(named)?;
        match found {
            Ok((chosen, rejected, margin)) => {
                let id = options.first + out.rows.len() as u32;
                let (row, was_cut) = row(chosen, rejected, options, id);
                out.truncated += usize::from(was_cut);
                out.rows.push(row);
                out.margins.push(margin);
                out.places.push(place);
            }
            Err(what) if options.skip_bad_instances => {
                out.skipped.0 += 1;
                out.skipped.1.get_or_insert(format!("{place}: {what}"));
            }
            Err(what) => return Err(Error::Data { place, what }),
        }
        Ok(())
    })?;
    if out.rows.is_empty() {
        let what = "no pair in it, wanted at least one".to_owned();
        return Err(Error::Data { place: path.display().to_string(), what });
    }
    Ok(out)
}

/// An input with its answers, each as the ids of both together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answered {
    /// What was asked.
    pub input: String,
    /// The answers.
    pub outputs: Vec<String>,
    /// Ids of the input with each of them.
    pub ids: Vec<Vec<u32>>,
    /// Whether it is one text or conversation, which is scored as a whole.
    pub whole: bool,
    /// Where it stands, for people.
    pub place: String,
}

/// Reads a set of answers (text_to_textlist, text_to_scored_textlist, whose scores are not looked
/// at, or text2text with one each), or of texts and conversations as they stand, written as pairs
/// are.
///
/// # Errors
/// As [`pairs`].
pub fn answered(
    path: &Path,
    text: Option<&TextParts>,
    vocab_size: usize,
    options: &PairOptions,
) -> Result<Vec<Answered>> {
    let source = Source::open(path)?;
    let mut renderer: Option<Renderer<'_>> = None;
    let mut out = vec![];
    source.for_each(&mut |instance| {
        let place = source.name(instance.place);
        let answer = |input: &str, output: &String| Record::Text2Text {
            input: input.to_owned(),
            output: output.clone(),
        };
        let whole = matches!(instance.record, Record::TextOnly(_) | Record::Conversation(_));
        let kind = if whole { instance.record.kind() } else { Kind::Text2Text };
        let (input, outputs, records) = match instance.record {
            Record::TextToTextlist(TextList { input, output }) => {
                let records = output.iter().map(|one| answer(&input, one)).collect();
                (input, output, records)
            }
            Record::TextToScoredTextlist { input, output } => {
                let output: Vec<String> = output.into_iter().map(|(_, text)| text).collect();
                let records = output.iter().map(|one| answer(&input, one)).collect();
                (input, output, records)
            }
            Record::Text2Text { input, output } => {
                let records = vec![answer(&input, &output)];
                (input, vec![output], records)
            }
            record if whole => (String::new(), vec![], vec![record]),
            other => {
                let what = format!(
                    "records of type \"{}\", wanted one of text_to_textlist, \
                     text_to_scored_textlist, text2text, text_only, conversation",
                    other.kind().name()
                );
                return Err(Error::Data { place, what });
            }
        };
        let renderer = match &mut renderer {
            Some(renderer) => renderer,
            none => none.insert(Renderer::new(&options.rules, text, kind, vocab_size, &place)?),
        };
        let records: Vec<Record> = records;
        let mut ids = Vec::with_capacity(records.len());
        for record in &records {
            match renderer.render_answer(record)? {
                Rendered::Document { ids: all, labels, .. } => {
                    let n_prompt = labels.len() - last_scored(&labels);
                    let mut side = Side { ids: all, n_prompt };
                    if side.ids.len() > options.max_length {
                        side.cut(options);
                    }
                    ids.push(side.ids);
                }
                Rendered::Nothing(_) if outputs.get(ids.len()).is_some_and(String::is_empty) => {
                    // Rules without EOS leave nothing of it, but it is to be scored.
                    let asking = Asking::new(&options.rules, text, vocab_size, &place)?;
                    ids.push(asking.answered(&Question::Text(input.clone()), "")?);
                }
                Rendered::Nothing(what) => return Err(Error::Data { place, what }),
            }
        }
        out.push(Answered { input, outputs, ids, whole, place });
        Ok(())
    })?;
    Ok(out)
}

/// The kind whose rendering answers to pairs of `kind` are given.
fn rendered_kind(kind: Kind, place: &str) -> Result<Kind> {
    match kind {
        Kind::PairedTextToText | Kind::TextToScoredTextlist => Ok(Kind::Text2Text),
        Kind::PairedConversation => Ok(Kind::Conversation),
        other => Err(Error::Data {
            place: place.to_owned(),
            what: format!(
                "records of type \"{}\", wanted one of paired_text_to_text, paired_conversation, \
                 text_to_scored_textlist",
                other.name()
            ),
        }),
    }
}

/// Chosen, rejected and margin of a record, or why there are none.
fn pair_of(
    renderer: &Renderer<'_>,
    record: Record,
    options: &PairOptions,
    rng: &mut Rng,
) -> Result<Result<(Side, Side, f64), String>> {
    let answer = |input: &str, output: String| Record::Text2Text { input: input.into(), output };
    let (chosen, rejected, margin) = match record {
        Record::PairedTextToText { prompt, chosen, rejected, margin } => {
            (answer(&prompt, chosen), answer(&prompt, rejected), margin.unwrap_or(0.0))
        }
        Record::PairedConversation { chosen, rejected } => {
            (Record::Conversation(chosen), Record::Conversation(rejected), 0.0)
        }
        Record::TextToScoredTextlist { input, output } => {
            let scores: Vec<f64> = output
                .iter()
                .map(|(score, text)| score - options.length_penalty * text.chars().count() as f64)
                .collect();
            let Some([best, other]) = choose(&scores, options.choice, rng) else {
                let what = format!("key \"output\": {} answers, wanted two", output.len());
                return Ok(Err(what));
            };
            let margin = (output[best].0 - output[other].0) * options.margin_scale;
            let text = |at: usize| answer(&input, output[at].1.clone());
            (text(best), text(other), margin)
        }
        _ => return Err(Error::Unsupported("a record of another type than the set's".into())),
    };
    let side = |name: &str, record: Record| -> Result<Result<Side, String>> {
        let has_answer = match &record {
            Record::Conversation(conversation) => ends_with_answer(conversation),
            _ => true,
        };
        if !has_answer {
            return Ok(Err(format!("key \"{name}\": the last message is not the assistant's")));
        }
        // What ended at once can be worse than another answer; nobody wants to learn it.
        let rendered = match name {
            "rejected" => renderer.render_answer(&record)?,
            _ => renderer.render(&record)?,
        };
        Ok(match rendered {
            Rendered::Document { ids, labels, .. } => {
                let n_prompt = labels.len() - last_scored(&labels);
                Ok(Side { ids, n_prompt })
            }
            Rendered::Nothing(what) => {
                // Texts are rendered as the output of an input.
                let what = what.strip_prefix("key \"output\": ").unwrap_or(&what);
                Err(format!("key \"{name}\": {what}"))
            }
        })
    };
    let (chosen, rejected) = (side("chosen", chosen)?, side("rejected", rejected)?);
    Ok(chosen.and_then(|chosen| Ok((chosen, rejected?, margin))))
}

fn ends_with_answer(conversation: &Conversation) -> bool {
    conversation.messages.last().is_some_and(|message| message.role == "assistant")
}

/// Labels from the first of the last run of scored ones on; what follows the run belongs to it.
fn last_scored(labels: &[i32]) -> usize {
    let is_scored = |label: &&i32| **label != NOT_SCORED;
    let after = labels.iter().rev().take_while(|label| !is_scored(label)).count();
    let run = labels.iter().rev().skip(after).take_while(is_scored).count();
    after + run
}

/// Two answers, the better one first; `None` where there are not two.
pub(crate) fn choose(scores: &[f64], choice: Choice, rng: &mut Rng) -> Option<[usize; 2]> {
    if scores.len() < 2 {
        return None;
    }
    // The first of equals, as a stable sort gives it.
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let n = scores.len() as u32;
    let (a, b) = match choice {
        Choice::Random => {
            let a = below(rng, n) as usize;
            let b = below(rng, n - 1) as usize;
            (a, if b < a { b } else { b + 1 })
        }
        Choice::MaxMin => (order[0], order[order.len() - 1]),
        Choice::MaxMax => (order[0], order[1]),
        Choice::MaxRandom => (order[0], order[1 + below(rng, n - 1) as usize]),
    };
    Some(if scores[b] > scores[a] { [b, a] } else { [a, b] })
}

/// The row of a pair, and whether something was cut.
fn row(mut chosen: Side, mut rejected: Side, options: &PairOptions, id: u32) -> (Row, bool) {
    let too_long = chosen.ids.len().max(rejected.ids.len()) > options.max_length;
    if too_long {
        // Both prompts are cut to one length, so that the answers still answer the same.
        chosen.cut(options);
        rejected.cut(options);
    }
    let mut row = Row::default();
    for side in [chosen, rejected] {
        let label = |(at, &id): (usize, &u32)| {
            // Nothing comes before a first token that could predict it.
            if at < side.n_prompt || at == 0 { NOT_SCORED } else { id as i32 }
        };
        row.labels.extend(side.ids.iter().enumerate().map(label));
        row.spans.push(side.ids.len() as u32);
        row.source.push(id);
        row.ids.extend(side.ids);
    }
    (row, too_long)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> PairOptions {
        PairOptions {
            rules: Rules::default(),
            max_length: 8,
            max_prompt_length: 3,
            choice: Choice::MaxMin,
            length_penalty: 0.0,
            margin_scale: 1.0,
            seed: 0,
            skip_bad_instances: false,
            first: 0,
        }
    }

    #[test]
    fn only_the_last_answer_is_scored() {
        assert_eq!(last_scored(&[-100, 1, 2, -100, 3, 4]), 2);
        assert_eq!(last_scored(&[-100, 1, 2, -100, 3, 4, -100]), 3);
        assert_eq!(last_scored(&[5, 6]), 2);
    }

    #[test]
    fn a_long_pair_loses_its_prompt_first() {
        let side = |n_prompt, n| Side { ids: (1..=n).collect(), n_prompt };
        let (row, cut) = row(side(5, 7), side(5, 12), &options(), 4);
        assert!(cut);
        assert_eq!(row.spans, [5, 8]);
        assert_eq!(row.ids, [3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 8, 9, 10]);
        let no = NOT_SCORED;
        assert_eq!(row.labels, [no, no, no, 6, 7, no, no, no, 6, 7, 8, 9, 10]);
        assert_eq!(row.source, [4, 4]);
        let (row, cut) = super::row(side(0, 3), side(0, 2), &options(), 0);
        assert!(!cut);
        assert_eq!(row.labels, [no, 2, 3, no, 2]);
    }

    #[test]
    fn pairs_held_back_are_gone_from_the_rest() {
        let set = |n: u32| Pairs {
            rows: (0..n).map(|id| Row { source: vec![id, id], ..Row::default() }).collect(),
            margins: (0..n).map(f64::from).collect(),
            places: (0..n).map(|id| id.to_string()).collect(),
            ..Pairs::default()
        };
        let mut rest = set(20);
        let held = rest.hold_out(10.0, 3).unwrap();
        assert_eq!((rest.rows.len(), held.rows.len()), (18, 2));
        for part in [&rest, &held] {
            for ((row, margin), place) in part.rows.iter().zip(&part.margins).zip(&part.places) {
                assert_eq!((f64::from(row.source[0]), place), (*margin, &margin.to_string()));
            }
        }
        assert!(held.rows.iter().all(|row| !rest.rows.contains(row)));
        assert!(set(1).hold_out(10.0, 3).is_err());
    }

    #[test]
    fn answers_are_chosen_by_their_scores() {
        let scores = [0.5, 2.0, -1.0, 2.0];
        let mut rng = Rng::new(1, 0);
        assert_eq!(choose(&scores, Choice::MaxMin, &mut rng), Some([1, 2]));
        assert_eq!(choose(&scores, Choice::MaxMax, &mut rng), Some([1, 3]));
        assert_eq!(choose(&scores[..1], Choice::Random, &mut rng), None);
        let mut seen = [[0; 4]; 4];
        for _ in 0..600 {
            let [a, b] = choose(&scores, Choice::Random, &mut rng).unwrap();
            assert!(a != b && scores[a] >= scores[b]);
            seen[a.min(b)][a.max(b)] += 1;
            let [a, b] = choose(&scores, Choice::MaxRandom, &mut rng).unwrap();
            assert!(a == 1 && b != 1);
        }
        // Six pairs, each expected 100 times with a deviation of 9.1: five of them are allowed.
        let all = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];
        assert!(all.iter().all(|&(a, b)| (54..=146).contains(&seen[a][b])), "{seen:?}");
    }
}
