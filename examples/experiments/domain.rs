//! The sets of the domain experiment: questions about medical words, from WordNet.
//!
//! | set | question | answer |
//! |---|---|---|
//! | kind | what kind of thing a word names | disease, medicine, body part, symptom, treatment or microbe |
//! | word | which word has this meaning | one of four words of the same kind |
//! | abstract | from its meaning: is it such a thing? PubMedQA's fields | yes or no |
//! | other | as word, of nothing medical | |
//!
//! No word that is asked for stands in the set that is tuned on.

use crate::wordnet::{Entry, Part};
use crate::{Flags, arc_question, below, read_json, shuffle, text, write_lines, write_set};
use puna::rng::Rng;
use puna::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The flags of the command.
pub const FLAGS: &[&str] = &[
    "wordnet",
    "text",
    "out",
    "train-words",
    "test-words",
    "paragraphs",
    "pubmedqa",
    "pubmedqa-test",
    "pubmedqa-rows",
    "seed",
];

/// Kinds of things, and the meanings that all of them are below.
const KINDS: [(&str, &[(&str, usize)]); 6] = [
    ("disease", &[("illness", 1)]),
    ("medicine", &[("medicine", 2)]),
    ("body part", &[("body part", 1)]),
    ("symptom", &[("symptom", 1)]),
    ("treatment", &[("medical procedure", 1), ("treatment", 1)]),
    ("microbe", &[("microorganism", 1)]),
];
/// Topics of things to see and touch: animal, artifact, food, object, person, plant.
const OTHER_TOPICS: [u8; 6] = [5, 6, 13, 17, 18, 20];
/// Words of the longest abstract of PubMedQA that fits into a row.
const ABSTRACT: usize = 260;

/// Makes the sets.
///
/// # Errors
/// Files that cannot be read or hold too little.
pub fn sets(flags: &Flags) -> Result<Value> {
    let (out, seed) = (flags.path("out")?, flags.seed()?);
    let part = Part::read(&flags.path("wordnet")?, "noun")?;
    let mut rng = Rng::new(seed, 2);
    let (all, medical) = words_by_kind(&part)?;
    let n_test = flags.number("test-words", 40)?;
    let n_train = flags.number("train-words", 120)?;
    let (mut train, mut test, mut counts) = (vec![], vec![], Map::new());
    for (kind, mut words) in all.into_iter().enumerate() {
        shuffle(&mut words, &mut rng);
        if words.len() < n_test + 4 {
            let why = format!("{} words of the kind {}, too few", words.len(), KINDS[kind].0);
            return Err(Error::config("test-words", n_test, why));
        }
        let rest = words.split_off(n_test);
        test.push(words);
        train.push(rest.into_iter().take(n_train).collect::<Vec<_>>());
        counts.insert(format!("words of the kind {}", KINDS[kind].0), json!(train[kind].len()));
    }

    let mut learnt = vec![];
    let mut taught = train.iter().flatten().collect::<Vec<_>>();
    shuffle(&mut taught, &mut rng);
    for (at, entry) in taught.iter().enumerate() {
        learnt.extend(lessons(entry, at, &mut rng));
    }
    let mut made = Asked::default();
    for entry in test.iter().flatten() {
        made.add(entry, &test[entry.group], &mut rng);
    }
    for (name, questions) in [("kind", &made.kind), ("word", &made.word)] {
        write_lines(&out.join(format!("{name}.jsonl")), questions)?;
    }
    write_lines(&out.join("abstract.jsonl"), &made.abstracts)?;
    write_set(&out.join("kind.json"), "text2text", &made.kind_answers)?;
    write_set(&out.join("abstract.json"), "text2text", &made.abstract_answers)?;
    write_set(&out.join("definitions.json"), "text_only", &made.definitions)?;

    let other = other_words(&part, &medical, made.word.len(), &mut rng);
    write_lines(&out.join("other.jsonl"), &other)?;
    let passages = text::passages(flags.text("text")?, seed)?;
    let n = flags.number("paragraphs", 120)?.min(passages.len());
    write_set(&out.join("out.json"), "text_only", &text::text_only(&passages[..n]))?;

    if let Some(path) = flags.optional("pubmedqa") {
        let found = pubmedqa(Path::new(path), flags, &mut rng)?;
        learnt.extend(found.train);
        write_lines(&out.join("pubmedqa.jsonl"), &found.test)?;
        write_set(&out.join("pubmedqa.json"), "text2text", &found.answers)?;
        counts.insert("questions of PubMedQA to measure".into(), json!(found.test.len()));
    }
    write_set(&out.join("train.json"), "text2text", &learnt)?;
    counts.insert("words held out".into(), json!(made.kind.len()));
    counts.insert("rows to tune on".into(), json!(learnt.len()));
    counts.insert("passages of other text".into(), json!(n));
    Ok(Value::Object(counts))
}

/// The words of each kind, those of two kinds left out; and every medical meaning.
fn words_by_kind(part: &Part) -> Result<(Vec<Vec<Entry>>, BTreeSet<u32>)> {
    let mut places: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    let (mut all, mut medical) = (vec![], BTreeSet::new());
    for (kind, (name, roots)) in KINDS.iter().enumerate() {
        let mut numbers = BTreeSet::new();
        for (word, number) in *roots {
            numbers.extend(part.below(part.sense(word, *number)?));
        }
        let mut words: BTreeMap<String, Entry> = BTreeMap::new();
        for synset in numbers.iter().filter_map(|number| part.synsets.get(number)) {
            for word in &synset.words {
                places.entry(word.to_lowercase()).or_default().insert(kind);
            }
            let first = synset.words.first().filter(|word| !word.to_lowercase().contains(name));
            let entry = first.and_then(|word| synset.entry(word, kind));
            if let Some(entry) = entry {
                words.entry(entry.word.to_lowercase()).or_insert(entry);
            }
        }
        all.push(words);
        medical.extend(numbers);
    }
    let alone = |word: &String| places.get(word).is_some_and(|kinds| kinds.len() == 1);
    let kept = |words: BTreeMap<String, Entry>| -> Vec<Entry> {
        words.into_iter().filter(|(word, _)| alone(word)).map(|(_, entry)| entry).collect()
    };
    Ok((all.into_iter().map(kept).collect(), medical))
}

fn kind_question(word: &str) -> String {
    format!("What kind of thing in medicine is \"{word}\"?")
}

fn word_question(definition: &str) -> String {
    format!("Which word means \"{definition}\"?")
}

/// A question as the harness asks it in ARC.
fn asked(question: &str) -> String {
    format!("Question: {question}\nAnswer:")
}

/// What is told of a word in place of an abstract, a question about it, and the answer.
fn statement(entry: &Entry, right: bool, rng: &mut Rng) -> (String, String, &'static str) {
    let other = (entry.group + 1 + below(rng, KINDS.len() - 1)) % KINDS.len();
    let kind = KINDS[if right { entry.group } else { other }].0;
    let context = format!("{}: {}.", entry.word, entry.definition);
    let question = format!("Is \"{}\" a {kind}?", entry.word);
    (context, question, if right { "yes" } else { "no" })
}

fn abstract_prompt(context: &str, question: &str) -> String {
    format!("Abstract: {context}\nQuestion: {question}\nAnswer:")
}

/// What is learnt of a word: its kind, itself by its meaning, a statement about it, its meaning.
fn lessons(entry: &Entry, at: usize, rng: &mut Rng) -> [Value; 4] {
    let Entry { word, definition, group, .. } = entry;
    let row = |input: String, output: String| json!({"input": input, "output": output});
    let (context, question, answer) = statement(entry, at.is_multiple_of(2), rng);
    [
        row(asked(&kind_question(word)), format!(" {}", KINDS[*group].0)),
        row(asked(&word_question(definition)), format!(" {word}")),
        // LMFlow finds a yes only before a point or a blank.
        row(abstract_prompt(&context, &question), format!(" {answer}.")),
        row(format!("{word}:"), format!(" {definition}.")),
    ]
}

/// Questions about words that were held out.
#[derive(Default)]
struct Asked {
    kind: Vec<Value>,
    word: Vec<Value>,
    abstracts: Vec<Value>,
    kind_answers: Vec<Value>,
    abstract_answers: Vec<Value>,
    definitions: Vec<Value>,
}

impl Asked {
    /// The questions about `entry`; wrong words are drawn from `same`, those of its kind.
    fn add(&mut self, entry: &Entry, same: &[Entry], rng: &mut Rng) {
        let Entry { word, definition, group, .. } = entry;
        let at = self.kind.len();
        let question = kind_question(word);
        let mut kinds: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
        kinds.swap(0, *group);
        shuffle(&mut kinds[1..], rng);
        self.kind.push(arc_question(format!("kind-{at}"), &question, &kinds[..4], rng));
        let wanted = format!(" {}", KINDS[*group].0);
        self.kind_answers.push(json!({"input": asked(&question), "output": wanted}));

        let question = word_question(definition);
        let words = with_others(entry, same, rng);
        self.word.push(arc_question(format!("word-{at}"), &question, &words, rng));

        let (context, question, answer) = statement(entry, at.is_multiple_of(2), rng);
        let prompt = abstract_prompt(&context, &question);
        self.abstract_answers.push(json!({"input": prompt, "output": answer}));
        self.abstracts.push(json!({
            "QUESTION": question, "CONTEXTS": [context], "final_decision": answer,
        }));
        self.definitions.push(json!({"text": format!("{word}: {definition}.")}));
    }
}

/// A word and three others.
fn with_others<'a>(entry: &'a Entry, same: &'a [Entry], rng: &mut Rng) -> Vec<&'a str> {
    let mut words = vec![entry.word.as_str()];
    let mut others: Vec<&str> =
        same.iter().map(|one| one.word.as_str()).filter(|word| *word != entry.word).collect();
    shuffle(&mut others, rng);
    words.extend(others.into_iter().take(3));
    words
}

/// As many questions for words of nothing medical.
fn other_words(part: &Part, medical: &BTreeSet<u32>, n: usize, rng: &mut Rng) -> Vec<Value> {
    let inside: BTreeSet<&str> = medical
        .iter()
        .filter_map(|number| part.synsets.get(number))
        .flat_map(|synset| synset.words.iter().map(String::as_str))
        .collect();
    let fits = |entry: &Entry| {
        OTHER_TOPICS.iter().any(|&topic| usize::from(topic) == entry.group)
            && !inside.contains(entry.word.as_str())
    };
    let mut all: Vec<Entry> = part.common().into_iter().filter(fits).collect();
    shuffle(&mut all, rng);
    let mut out = vec![];
    for (at, entry) in all.iter().take(n).enumerate() {
        let same: Vec<Entry> =
            all.iter().filter(|one| one.group == entry.group).take(60).cloned().collect();
        let words = with_others(entry, &same, rng);
        out.push(arc_question(
            format!("other-{at}"),
            &word_question(&entry.definition),
            &words,
            rng,
        ));
    }
    out
}

/// PubMedQA's own questions.
struct PubMedQa {
    train: Vec<Value>,
    test: Vec<Value>,
    answers: Vec<Value>,
}

/// Reads `ori_pqal.json`; what `--pubmedqa-test` names, the authors' `test_ground_truth.json`, is
/// not tuned on.
fn pubmedqa(path: &Path, flags: &Flags, rng: &mut Rng) -> Result<PubMedQa> {
    let object = |path: &Path| match read_json(path)? {
        Value::Object(map) => Ok(map),
        _ => Err(Error::format(path, "wanted an object of questions by their number")),
    };
    let held_out =
        flags.optional("pubmedqa-test").map(|path| object(Path::new(path))).transpose()?;
    let rows = flags.number("pubmedqa-rows", 200)?;
    let mut all: Vec<(String, Value)> = object(path)?.into_iter().collect();
    shuffle(&mut all, rng);
    let mut found = PubMedQa { train: vec![], test: vec![], answers: vec![] };
    for (at, (number, record)) in all.iter().enumerate() {
        let contexts = record["CONTEXTS"].as_array().cloned().unwrap_or_default();
        let context: Vec<&str> = contexts.iter().filter_map(Value::as_str).collect();
        let context = context.join("\n");
        let (Some(question), Some(answer)) =
            (record["QUESTION"].as_str(), record["final_decision"].as_str())
        else {
            let what = format!("question {number}: no QUESTION with a final_decision");
            return Err(Error::format(path, what));
        };
        if context.split_whitespace().count() > ABSTRACT {
            continue;
        }
        let prompt = abstract_prompt(&context, question);
        let to_test =
            held_out.as_ref().map_or(at.is_multiple_of(2), |map| map.contains_key(number));
        if to_test && found.test.len() < rows {
            found.answers.push(json!({"input": prompt, "output": answer}));
            found.test.push(record.clone());
        } else if !to_test && found.train.len() < rows {
            found.train.push(json!({"input": prompt, "output": format!(" {answer}.")}));
        }
    }
    Ok(found)
}
