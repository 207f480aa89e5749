//! The sets of the instruction experiment: conversations to tune on, and multiple choice in the
//! fields of ARC, HellaSwag, MMLU and TruthfulQA for those who have not the data sets themselves.
//!
//! | set | question | from |
//! |---|---|---|
//! | arc | which word has this meaning | WordNet |
//! | hellaswag | how a text goes on | the text |
//! | mmlu | what a word means, by letters | WordNet |
//! | truthfulqa | what is a kind of what; one true answer, or several | WordNet |
//!
//! No word, thing or passage that is asked for stands in the conversations.

use crate::text::{Passage, passages};
use crate::wordnet::{Entry, Part};
use crate::{Flags, arc_question, below, shuffle, write_lines, write_set};
use puna::rng::Rng;
use puna::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// The flags of the command.
pub const FLAGS: &[&str] = &["wordnet", "text", "out", "rows", "test", "instructions", "seed"];

/// Parts of speech, and MMLU's subject for them.
const PARTS: [(&str, &str); 3] = [("noun", "nouns"), ("verb", "verbs"), ("adj", "adjectives")];
/// Examples before a question that a set has beside its questions.
const SHOTS: usize = 25;
/// Kinds of a thing that is asked about, at least and at most.
const N_KINDS: [usize; 2] = [5, 60];
/// Groups of words of different parts of speech do not meet.
const PART_STEP: usize = 100;

/// A thing with kinds of it.
struct Thing {
    word: String,
    kinds: Vec<String>,
    /// All that is below it, to know what is false.
    all: Vec<String>,
}

/// Makes the sets.
///
/// # Errors
/// Files that cannot be read or hold too little.
pub fn sets(flags: &Flags) -> Result<Value> {
    let (out, seed) = (flags.path("out")?, flags.seed()?);
    let (n_test, n_rows) = (flags.number("test", 200)?, flags.number("rows", 1500)?);
    let mut rng = Rng::new(seed, 3);
    let (mut words, things) = words_and_things(&flags.path("wordnet")?, &mut rng)?;
    let all = passages(flags.text("text")?, seed)?;
    // The first few of each are examples, the next are asked for, and the rest is learnt from.
    let held_out = n_test + SHOTS;
    let n_things = held_out.min(things.len() / 2);
    for (name, found, wanted) in [
        ("wordnet", words.len(), 2 * held_out + n_rows / 4),
        ("wordnet", things.len(), 40),
        ("text", all.len(), held_out + 8),
    ] {
        if found < wanted {
            let why = format!("{found} of what is wanted in it, wanted {wanted}");
            return Err(Error::config(name, flags.text(name)?, why));
        }
    }
    let learnt_words = words.split_off(2 * held_out);
    let (for_arc, for_mmlu) = words.split_at(held_out);
    let (asked_things, learnt_things) = things.split_at(n_things);
    let (asked_text, learnt_text) = all.split_at(held_out);

    let write = |name: &str, questions: Vec<Value>| -> Result<()> {
        let (shots, asked) = questions.split_at(SHOTS.min(questions.len() / 2));
        write_lines(&out.join(format!("{name}-examples.jsonl")), shots)?;
        write_lines(&out.join(format!("{name}.jsonl")), asked)
    };
    write("arc", arc(for_arc, &learnt_words, &mut rng))?;
    write("mmlu", mmlu(for_mmlu, &learnt_words, &mut rng))?;
    write("hellaswag", hellaswag(asked_text, &mut rng))?;
    write("truthfulqa", truthfulqa(asked_things, &mut rng))?;

    let (source, rows) = match flags.optional("instructions") {
        Some(path) => ("a file", read_instructions(Path::new(path), n_rows, &mut rng)?),
        None => {
            let mut rows = from_words(&learnt_words, learnt_things, learnt_text, &mut rng);
            rows.truncate(n_rows);
            ("WordNet and the text", rows)
        }
    };
    let conversations: Vec<Value> = rows
        .iter()
        .map(|(user, assistant)| {
            json!({"messages": [
                {"role": "user", "content": user},
                {"role": "assistant", "content": assistant},
            ]})
        })
        .collect();
    write_set(&out.join("train.json"), "conversation", &conversations)?;
    Ok(json!({
        "conversations from": source,
        "conversations": conversations.len(),
        "words": learnt_words.len(),
        "things with kinds": learnt_things.len(),
        "passages": learnt_text.len(),
        "made questions of each set": n_test,
    }))
}

/// Common words of all parts of speech, and nouns with kinds of them, in any order.
fn words_and_things(dir: &Path, rng: &mut Rng) -> Result<(Vec<Entry>, Vec<Thing>)> {
    let (mut words, mut things) = (vec![], vec![]);
    for (number, (name, _)) in PARTS.iter().enumerate() {
        let part = Part::read(dir, name)?;
        for mut entry in part.common() {
            entry.group += number * PART_STEP;
            words.push(entry);
        }
        if number == 0 {
            things = things_of(&part);
        }
    }
    shuffle(&mut words, rng);
    shuffle(&mut things, rng);
    Ok((words, things))
}

fn things_of(part: &Part) -> Vec<Thing> {
    let simple = |word: &str| word.chars().all(|c| c.is_ascii_lowercase() || c == ' ');
    let mut out = vec![];
    for (word, (numbers, n_met)) in &part.index {
        let Some(root) = numbers.first().filter(|_| *n_met > 0 && simple(word)) else { continue };
        let Some(synset) = part.synsets.get(root) else { continue };
        let first = |number: &u32| part.synsets.get(number)?.words.first().cloned();
        let mut kinds: Vec<String> = synset.kinds.iter().filter_map(first).collect();
        kinds.retain(|kind| simple(kind) && !kind.contains(word.as_str()));
        kinds.dedup();
        if kinds.len() < N_KINDS[0] || kinds.len() > N_KINDS[1] {
            continue;
        }
        let all = part.below(*root);
        let all = all.iter().filter_map(|number| part.synsets.get(number));
        let all = all.flat_map(|synset| synset.words.iter().cloned()).collect();
        out.push(Thing { word: word.clone(), kinds, all });
    }
    out
}

fn meaning_question(word: &str) -> String {
    format!("What does the word \"{word}\" mean?")
}

/// Three others that may be mixed up with `entry`, of `from`.
fn three<'a>(entry: &Entry, from: &'a [Entry], rng: &mut Rng) -> Vec<&'a Entry> {
    let mut same: Vec<&Entry> = from
        .iter()
        .filter(|one| one.group == entry.group && one.word != entry.word)
        .take(80)
        .collect();
    shuffle(&mut same, rng);
    same.truncate(3);
    same
}

fn arc(words: &[Entry], others: &[Entry], rng: &mut Rng) -> Vec<Value> {
    let mut out = vec![];
    for (at, entry) in words.iter().enumerate() {
        let mut texts = vec![entry.word.as_str()];
        texts.extend(three(entry, others, rng).iter().map(|one| one.word.as_str()));
        let question = format!("Which word means \"{}\"?", entry.definition);
        out.push(arc_question(format!("word-{at}"), &question, &texts, rng));
    }
    out
}

fn mmlu(words: &[Entry], others: &[Entry], rng: &mut Rng) -> Vec<Value> {
    let mut out = vec![];
    for entry in words {
        let wrong = three(entry, others, rng);
        if wrong.len() < 3 {
            continue;
        }
        let mut choices: Vec<&str> = wrong.iter().map(|one| one.definition.as_str()).collect();
        let answer = below(rng, 4);
        choices.insert(answer, &entry.definition);
        let subject = PARTS[entry.group / PART_STEP].1;
        out.push(json!({
            "question": meaning_question(&entry.word),
            "subject": subject,
            "choices": choices,
            "answer": answer,
        }));
    }
    out
}

fn hellaswag(passages: &[Passage], rng: &mut Rng) -> Vec<Value> {
    let mut out = vec![];
    for (at, one) in passages.iter().enumerate() {
        let mut endings: Vec<&str> = vec![];
        while endings.len() < 3 {
            let other = below(rng, passages.len());
            let text = passages[other].answer.trim();
            if other != at && !endings.contains(&text) {
                endings.push(text);
            }
        }
        let label = below(rng, 4);
        endings.insert(label, one.answer.trim());
        out.push(json!({
            "ind": at,
            "activity_label": "Reading on",
            "ctx": one.prompt,
            "endings": endings,
            "label": label.to_string(),
        }));
    }
    out
}

fn truthfulqa(things: &[Thing], rng: &mut Rng) -> Vec<Value> {
    let mut out = vec![];
    for (at, thing) in things.iter().enumerate() {
        let mut right: Vec<&str> = thing.kinds.iter().map(String::as_str).collect();
        shuffle(&mut right, rng);
        right.truncate(3);
        let mut wrong: Vec<&str> = vec![];
        // A few tries: what is drawn may be below it as well.
        for _ in 0..200 {
            let other = &things[below(rng, things.len())];
            let kind = other.kinds[below(rng, other.kinds.len())].as_str();
            let is_true = kind == thing.word || thing.all.iter().any(|word| word == kind);
            if wrong.len() < 4 && !is_true && !wrong.contains(&kind) {
                wrong.push(kind);
            }
        }
        let one = targets(thing, &right[..1], &wrong, rng);
        let several = targets(thing, &right, &wrong, rng);
        out.push(json!({
            "question": format!("What is a kind of {}?", thing.word),
            "mc1_targets": one,
            "mc2_targets": several,
            "number": at,
        }));
    }
    out
}

fn targets(thing: &Thing, right: &[&str], wrong: &[&str], rng: &mut Rng) -> Value {
    let mut all: Vec<(&str, u8)> = right.iter().map(|text| (*text, 1)).collect();
    all.extend(wrong.iter().map(|text| (*text, 0)));
    shuffle(&mut all, rng);
    let texts: Vec<String> = all.iter().map(|(text, _)| sentence(text, &thing.word)).collect();
    let labels: Vec<u8> = all.iter().map(|(_, label)| *label).collect();
    json!({"choices": texts, "labels": labels})
}

fn sentence(kind: &str, word: &str) -> String {
    format!("{} is a kind of {word}.", capital(kind))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + letters.as_str()
    })
}

/// Instructions with answers of six sorts, in turn, a word for each.
fn from_words(
    words: &[Entry],
    things: &[Thing],
    text: &[Passage],
    rng: &mut Rng,
) -> Vec<(String, String)> {
    let mut out = vec![];
    for (at, entry) in words.iter().enumerate() {
        let Entry { word, definition, example, .. } = entry;
        let round = at / 6;
        out.push(match at % 6 {
            0 => (meaning_question(word), format!("{}.", capital(definition))),
            1 => (format!("Which word means \"{definition}\"?"), capital(word)),
            2 => by_letters(entry, words, rng),
            3 => {
                let thing = &things[round % things.len()];
                let mut kinds: Vec<&str> = thing.kinds.iter().map(String::as_str).collect();
                shuffle(&mut kinds, rng);
                (format!("Name three kinds of {}.", thing.word), listed(&kinds[..3]))
            }
            4 => match example {
                Some(text) => {
                    let sentence = format!("{}.", capital(text.trim_end_matches(['.', '!', '?'])));
                    (format!("Use the word \"{word}\" in a sentence."), sentence)
                }
                None => {
                    (format!("Explain the word \"{word}\"."), format!("{}.", capital(definition)))
                }
            },
            _ => {
                let one = &text[round % text.len()];
                (format!("Continue this text: {}", one.prompt), one.answer.trim().to_owned())
            }
        });
    }
    out
}

/// `A, b and c.`
fn listed(words: &[&str]) -> String {
    match words {
        [all @ .., last] if !all.is_empty() => {
            format!("{} and {last}.", capital(&all.join(", ")))
        }
        _ => capital(&words.join("")),
    }
}

/// A question whose answer is a letter.
fn by_letters(entry: &Entry, words: &[Entry], rng: &mut Rng) -> (String, String) {
    const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
    let mut choices: Vec<&str> =
        three(entry, words, rng).iter().map(|one| one.definition.as_str()).collect();
    let right = below(rng, choices.len() + 1);
    choices.insert(right, &entry.definition);
    let mut question = format!("{}\n", meaning_question(&entry.word));
    for (letter, choice) in LETTERS.iter().zip(&choices) {
        question += &format!("{letter}. {choice}\n");
    }
    (question + "Answer with the letter.", LETTERS[right].to_owned())
}

/// Instructions with answers of a public data set: a JSON array or JSON lines of objects with the
/// fields of Alpaca (`instruction`, `input`, `output`) or Dolly (`context`, `response`).
fn read_instructions(path: &Path, n: usize, rng: &mut Rng) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    let fault = |what: String| Error::format(path, what);
    let mut all: Vec<Value> = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?,
        false => {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            let parsed: std::result::Result<Vec<Value>, serde_json::Error> =
                lines.map(serde_json::from_str).collect();
            parsed.map_err(|error| fault(error.to_string()))?
        }
    };
    shuffle(&mut all, rng);
    let mut out = vec![];
    for one in &all {
        let field = |names: [&str; 2]| names.iter().find_map(|name| one[*name].as_str());
        let asked = field(["instruction", "question"]);
        let answer = field(["output", "response"]);
        let (Some(asked), Some(answer)) = (asked, answer) else {
            return Err(fault(format!("{one}: wanted an instruction with an output or response")));
        };
        if answer.trim().is_empty() {
            continue;
        }
        let more = field(["input", "context"]).filter(|text| !text.is_empty());
        let user = more.map_or(asked.to_owned(), |more| format!("{asked}\n\n{more}"));
        out.push((user, answer.trim().to_owned()));
        if out.len() == n {
            break;
        }
    }
    Ok(out)
}
