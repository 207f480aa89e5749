//! One record of a data set to one question. Fields have the names that the data sets have on
//! Hugging Face; the prompts are those of the harness's task configurations.

use super::{Item, Task};
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// The letters of answers that the prompt lists.
const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// The answers of PubMedQA.
const DECISIONS: [&str; 3] = ["yes", "no", "maybe"];

/// The question in `value`, a JSON object of the task's data set; `place` is where it stands, for
/// messages.
///
/// # Errors
/// [`Error::Data`] for a value that is no object, fields that are missing or of another type, and
/// answers that are none of the choices, as in the parts of a data set that hide them.
pub fn item(task: Task, value: &Value, place: &str) -> Result<Item> {
    let record = Fields::new(place, String::new(), value)?;
    match task {
        Task::ArcEasy | Task::ArcChallenge => arc(&record),
        Task::HellaSwag => hellaswag(&record),
        Task::Mmlu => mmlu(&record),
        Task::TruthfulQaMc1 => truthfulqa(&record, "mc1_targets"),
        Task::TruthfulQaMc2 => truthfulqa(&record, "mc2_targets"),
        Task::PubMedQa => pubmedqa(&record),
        Task::MedQa => medqa(&record),
        Task::MedMcQa => medmcqa(&record),
    }
}

fn arc(record: &Fields<'_>) -> Result<Item> {
    let context = format!("Question: {}\nAnswer:", record.text("question")?);
    let choices = record.inner("choices")?;
    let texts = choices.texts("text")?;
    let labels = choices.texts("label")?;
    choices.same_length("label", labels.len(), "text", texts.len())?;
    let right = record.one_of("answerKey", &labels)?;
    Ok(one_right(context, &texts, right, None))
}

fn hellaswag(record: &Fields<'_>) -> Result<Item> {
    // Without the two parts, `ctx` has them joined already, its second part not capitalised.
    let text = if record.has("ctx_a") || !record.has("ctx") {
        format!("{} {}", record.text("ctx_a")?, capitalised(record.text("ctx_b")?))
    } else {
        record.text("ctx")?.to_owned()
    };
    let context = tidy(&format!("{}: {text}", record.text("activity_label")?));
    let endings: Vec<String> = record.texts("endings")?.into_iter().map(tidy).collect();
    let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
    let right = record.index("label", endings.len())?;
    Ok(one_right(context, &endings, right, None))
}

/// The first letter large and all others small, names and all: what the harness does, by Python's
/// `capitalize`.
fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().collect::<String>() + &letters.as_str().to_lowercase(),
        None => String::new(),
    }
}

/// Takes the marks of WikiHow's headings out of a text of HellaSwag.
fn tidy(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let inside = &rest[open + 1..];
        out.push_str(&rest[..open]);
        // What is in brackets goes, but only within a line.
        match inside.find([']', '\n']) {
            Some(end) if inside[end..].starts_with(']') => rest = &inside[end + 1..],
            _ => {
                out.push('[');
                rest = inside;
            }
        }
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

fn mmlu(record: &Fields<'_>) -> Result<Item> {
    let options = <[&str; 4]>::try_from(record.texts("choices")?).map_err(|found| {
        record.wrong("choices", &format!("{} of them", found.len()), "4 choices")
    })?;
    let question = record.text("question")?.trim();
    let context = format!("{question}\n{}Answer:", lettered(options));
    let right = record.index("answer", LETTERS.len())?;
    let subject = record.text("subject")?.to_owned();
    Ok(one_right(context, &LETTERS, right, Some(subject)))
}

fn truthfulqa(record: &Fields<'_>, key: &str) -> Result<Item> {
    let context = format!("Q: {}\nA:", record.text("question")?);
    let targets = record.inner(key)?;
    let texts = targets.texts("choices")?;
    let labels = targets.list("labels")?;
    targets.same_length("labels", labels.len(), "choices", texts.len())?;
    let mut correct = vec![];
    for (at, label) in labels.iter().enumerate() {
        correct.push(match label.as_i64() {
            Some(0) => false,
            Some(1) => true,
            _ => return Err(targets.wrong(&format!("labels[{at}]"), &label.to_string(), "0 or 1")),
        });
    }
    let n_right = correct.iter().filter(|correct| **correct).count();
    let (enough, wanted) = match key {
        "mc1_targets" => (n_right == 1, "one"),
        _ => (n_right > 0, "at least one"),
    };
    if !enough {
        return Err(targets.wrong("labels", &format!("{n_right} of them are 1"), wanted));
    }
    Ok(Item {
        context,
        choices: texts.into_iter().map(delimited).collect(),
        correct,
        subject: None,
    })
}

fn pubmedqa(record: &Fields<'_>) -> Result<Item> {
    // The authors' own files, which the harness reads, have their keys in capitals.
    let (question, contexts) = if record.has("CONTEXTS") || record.has("QUESTION") {
        (record.text("QUESTION")?, record.texts("CONTEXTS")?)
    } else {
        (record.text("question")?, record.inner("context")?.texts("contexts")?)
    };
    let abstract_text = contexts.join("\n");
    let context = format!("Abstract: {abstract_text}\nQuestion: {question}\nAnswer:");
    let right = record.one_of("final_decision", &DECISIONS)?;
    Ok(one_right(context, &DECISIONS, right, None))
}

fn medqa(record: &Fields<'_>) -> Result<Item> {
    let (question, options, right) = if record.has("options") {
        let options = record.inner("options")?;
        if options.map.len() != LETTERS.len() {
            let found = format!("{} of them", options.map.len());
            return Err(record.wrong("options", &found, "A, B, C and D"));
        }
        let right = record.one_of("answer_idx", &LETTERS)?;
        (record.text("question")?, options.four(LETTERS)?, right)
    } else {
        let options = record.four(["ending0", "ending1", "ending2", "ending3"])?;
        (record.text("sent1")?, options, record.index("label", LETTERS.len())?)
    };
    let context = format!("Question: {question}\n{}Answer:", lettered(options));
    Ok(one_right(context, &LETTERS, right, None))
}

fn medmcqa(record: &Fields<'_>) -> Result<Item> {
    let question = record.text("question")?;
    let options = lettered(record.four(["opa", "opb", "opc", "opd"])?);
    let context = format!("Question: {question}\nChoices:\n{options}Answer:");
    // From 0, as on Hugging Face; the authors' own files count from 1, and their 4 is refused.
    let right = record.index("cop", LETTERS.len())?;
    let subject = match record.has("subject_name") {
        true => Some(record.text("subject_name")?.to_owned()),
        false => None,
    };
    Ok(one_right(context, &LETTERS, right, subject))
}

/// A line for each option, with its letter.
fn lettered(options: [&str; 4]) -> String {
    LETTERS.iter().zip(options).map(|(letter, option)| format!("{letter}. {option}\n")).collect()
}

/// A question with one right answer.
fn one_right(context: String, choices: &[&str], right: usize, subject: Option<String>) -> Item {
    Item {
        context,
        choices: choices.iter().map(|choice| delimited(choice)).collect(),
        correct: (0..choices.len()).map(|at| at == right).collect(),
        subject,
    }
}

fn delimited(choice: &str) -> String {
    format!(" {choice}")
}

/// A JSON object together with where it stands, for messages.
struct Fields<'a> {
    place: &'a str,
    /// Keys that lead here from the record, each followed by a dot; empty at the record itself.
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn new(place: &'a str, path: String, value: &'a Value) -> Result<Fields<'a>> {
        let Value::Object(map) = value else {
            let name = if path.is_empty() { "record" } else { path.trim_end_matches('.') };
            let what = format!("{name}: {}, wanted an object", describe(value));
            return Err(Error::Data { place: place.to_owned(), what });
        };
        Ok(Fields { place, path, map })
    }

    fn wrong(&self, key: &str, found: &str, wanted: &str) -> Error {
        let what = format!("key \"{}{key}\": {found}, wanted {wanted}", self.path);
        Error::Data { place: self.place.to_owned(), what }
    }

    /// Whether the key is there with a value.
    fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    fn value(&self, key: &str, wanted: &str) -> Result<&'a Value> {
        self.map.get(key).ok_or_else(|| {
            let keys: Vec<String> = self.map.keys().map(|key| format!("\"{key}\"")).collect();
            let found = if keys.is_empty() { "no keys".into() } else { keys.join(", ") };
            self.wrong(key, &format!("not there (found {found})"), wanted)
        })
    }

    fn text(&self, key: &str) -> Result<&'a str> {
        let value = self.value(key, "a string")?;
        value.as_str().ok_or_else(|| self.wrong(key, describe(value), "a string"))
    }

    fn list(&self, key: &str) -> Result<&'a [Value]> {
        let value = self.value(key, "a list")?;
        let list = value.as_array().ok_or_else(|| self.wrong(key, describe(value), "a list"))?;
        Ok(list)
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>> {
        let text = |(at, value): (usize, &'a Value)| {
            let wrong = || self.wrong(&format!("{key}[{at}]"), describe(value), "a string");
            value.as_str().ok_or_else(wrong)
        };
        self.list(key)?.iter().enumerate().map(text).collect()
    }

    fn four(&self, keys: [&str; 4]) -> Result<[&'a str; 4]> {
        let [a, b, c, d] = keys;
        Ok([self.text(a)?, self.text(b)?, self.text(c)?, self.text(d)?])
    }

    fn inner(&self, key: &str) -> Result<Fields<'a>> {
        Fields::new(self.place, format!("{}{key}.", self.path), self.value(key, "an object")?)
    }

    /// A place among `n`, as a number or as a string of one.
    fn index(&self, key: &str, n: usize) -> Result<usize> {
        let wanted = format!("a whole number from 0, less than {n}");
        let value = self.value(key, &wanted)?;
        let number = match value {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64().and_then(|number| usize::try_from(number).ok()),
        };
        number.filter(|at| *at < n).ok_or_else(|| self.wrong(key, &value.to_string(), &wanted))
    }

    /// The place of the field's text in `names`.
    fn one_of(&self, key: &str, names: &[&str]) -> Result<usize> {
        let text = self.text(key)?;
        names.iter().position(|name| *name == text).ok_or_else(|| {
            self.wrong(key, &format!("\"{text}\""), &format!("one of {}", names.join(", ")))
        })
    }

    fn same_length(&self, key: &str, n: usize, other: &str, wanted: usize) -> Result<()> {
        if n == wanted {
            return Ok(());
        }
        let wanted = format!("as many as \"{}{other}\" has, {wanted}", self.path);
        Err(self.wrong(key, &format!("{n} of them"), &wanted))
    }
}

/// What a JSON value is, in words.
fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
