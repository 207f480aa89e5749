//! Data sets for the experiments in `examples/experiments`, made from plain text and WordNet, and
//! the tables of their reports. The scripts there call it; by hand:
//!
//! ```sh
//! experiment_data text     --text PATH[,PATH] --out DIR --sft N --reward N --prompts N --test N
//! experiment_data answers  --answers FILE --out FILE
//! experiment_data pairs    --dataset FILE --answers FILE --out DIR --held-out N
//! experiment_data domain   --wordnet DIR --text PATH[,PATH] --out DIR --train-words N --test-words N
//! experiment_data instruct --wordnet DIR --text PATH[,PATH] --out DIR --rows N --test N
//! experiment_data report   --experiment domain|instruct|raft --dir DIR
//! ```
//!
//! The same flags and files give the same sets. What was made is told as JSON on standard output;
//! a report is Markdown.

#[path = "experiments/domain.rs"]
mod domain;
#[path = "experiments/instruct.rs"]
mod instruct;
#[path = "experiments/report.rs"]
mod report;
#[path = "experiments/text.rs"]
mod text;
#[path = "experiments/wordnet.rs"]
mod wordnet;

use puna::rng::Rng;
use puna::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Flags of a command, by name.
pub struct Flags(BTreeMap<String, String>);

impl Flags {
    fn parse(mut words: impl Iterator<Item = String>, known: &[&str]) -> Result<Flags> {
        let mut flags = BTreeMap::new();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--").filter(|name| known.contains(name)) else {
                let why = format!("wanted one of --{}", known.join(", --"));
                return Err(Error::config("argument", &word, why));
            };
            let Some(value) = words.next() else {
                return Err(Error::config(name, "", "wanted a value behind it"));
            };
            flags.insert(name.to_owned(), value);
        }
        Ok(Flags(flags))
    }

    /// The value of a flag; an empty one counts as none.
    pub fn optional(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value of a flag that is needed.
    ///
    /// # Errors
    /// It is not there.
    pub fn text(&self, name: &str) -> Result<&str> {
        self.optional(name)
            .ok_or_else(|| Error::config(name, "", "wanted, see the head of the file"))
    }

    /// A path that is needed.
    ///
    /// # Errors
    /// It is not there.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    /// A number, `usual` where it is not told.
    ///
    /// # Errors
    /// Anything but a whole number.
    pub fn number(&self, name: &str, usual: usize) -> Result<usize> {
        let Some(text) = self.optional(name) else { return Ok(usual) };
        text.parse().map_err(|_| Error::config(name, text, "wanted a whole number"))
    }

    /// The seed, 1 where none is told.
    ///
    /// # Errors
    /// Anything but a whole number.
    pub fn seed(&self) -> Result<u64> {
        self.number("seed", 1).map(|seed| seed as u64)
    }
}

/// Any number below `n`, which is at least 1.
pub fn below(rng: &mut Rng, n: usize) -> usize {
    ((rng.uniform() * n as f64) as usize).min(n.saturating_sub(1))
}

/// Puts a list into any order.
pub fn shuffle<T>(list: &mut [T], rng: &mut Rng) {
    for at in (1..list.len()).rev() {
        let other = below(rng, at + 1);
        list.swap(at, other);
    }
}

/// What stands in a JSON file.
///
/// # Errors
/// A file that cannot be read or is not JSON.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    serde_json::from_str(&text).map_err(|error| Error::format(path, error.to_string()))
}

/// The instances of one of LMFlow's data sets.
///
/// # Errors
/// As [`read_json`]; another kind of file.
pub fn instances(path: &Path) -> Result<Vec<Value>> {
    let mut value = read_json(path)?;
    match value.get_mut("instances").map(Value::take) {
        Some(Value::Array(list)) => Ok(list),
        _ => Err(Error::format(path, "no list \"instances\", wanted one of LMFlow's data sets")),
    }
}

/// Writes a file, its folder too.
///
/// # Errors
/// What the system refuses.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let io = |source| Error::io(path, source);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    std::fs::write(path, text).map_err(io)
}

/// Writes one of LMFlow's data sets.
///
/// # Errors
/// What the system refuses.
pub fn write_set(path: &Path, kind: &str, instances: &[Value]) -> Result<()> {
    write(path, &format!("{:#}\n", json!({"type": kind, "instances": instances})))
}

/// Writes a file of JSON lines.
///
/// # Errors
/// What the system refuses.
pub fn write_lines(path: &Path, values: &[Value]) -> Result<()> {
    let text: String = values.iter().map(|value| format!("{value}\n")).collect();
    write(path, &text)
}

/// A question of ARC's form. The right one of `texts` is the first; they are put into any order.
pub fn arc_question(id: String, question: &str, texts: &[&str], rng: &mut Rng) -> Value {
    const LETTERS: [&str; 6] = ["A", "B", "C", "D", "E", "F"];
    let mut order: Vec<usize> = (0..texts.len().min(LETTERS.len())).collect();
    shuffle(&mut order, rng);
    let right = order.iter().position(|&at| at == 0).unwrap_or(0);
    let shown: Vec<&str> = order.iter().map(|&at| texts[at]).collect();
    json!({
        "id": id,
        "question": question,
        "choices": {"text": shown, "label": &LETTERS[..shown.len()]},
        "answerKey": LETTERS[right],
    })
}

fn run() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let flags = |known: &[&str]| Flags::parse(words, known);
    let made = match command.as_str() {
        "text" => {
            text::sets(&flags(&["text", "out", "sft", "reward", "prompts", "test", "seed"])?)?
        }
        "pairs" => text::pairs(&flags(&["dataset", "answers", "out", "held-out"])?)?,
        "domain" => domain::sets(&flags(domain::FLAGS)?)?,
        "instruct" => instruct::sets(&flags(instruct::FLAGS)?)?,
        "report" => {
            let flags = flags(&["experiment", "dir"])?;
            print!("{}", report::report(flags.text("experiment")?, &flags.path("dir")?)?);
            return Ok(());
        }
        other => {
            let why = "wanted text, pairs, domain, instruct or report";
            return Err(Error::config("command", other, why));
        }
    };
    println!("{made}");
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("experiment_data: {error}");
        std::process::exit(1);
    }
}
