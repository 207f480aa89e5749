//! Answers of an iteration, and the files that keep them: what was drawn is on the disk before it is
//! scored, what was scored before it is learnt.
//!
//! ```text
//! iterations/0001/drawn.jsonl     a line a prompt: its answers, as they come
//! iterations/0001/samples.jsonl   a line an answer, with its reward, once all are scored
//! iterations/0001/lesson.json     what is learnt of them, until it is learnt; its SHA-256 before it
//! ```

use super::method::Lesson;
use crate::data::{Prompt, write_atomically};
use crate::error::{Error, Result};
use crate::train::checkpoint;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Folder of all iterations in the output directory.
pub const ITERATIONS_NAME: &str = "iterations";

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Which of the iteration's prompts it answers.
    pub prompt: usize,
    /// Tokens drawn, the end token included.
    pub ids: Vec<u32>,
    /// Their text, without special tokens.
    pub text: String,
    /// Whether it ended by itself, and not for want of room.
    pub ended: bool,
    /// Its reward, once it is scored.
    #[serde(default)]
    pub reward: f64,
    /// What each source of rewards gave it.
    #[serde(default)]
    pub parts: Vec<f64>,
}

/// The files of one iteration.
pub struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// Makes the folder of an iteration (counted from 0) where it is not there.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn of(output: &Path, iteration: usize) -> Result<Folder> {
        let dir = output.join(ITERATIONS_NAME).join(format!("{:04}", iteration + 1));
        fs::create_dir_all(&dir).map_err(|source| Error::io(&dir, source))?;
        checkpoint::clean(&dir)?;
        Ok(Folder { dir })
    }

    /// Where answers go as they are drawn.
    pub fn drawn_path(&self) -> PathBuf {
        self.dir.join("drawn.jsonl")
    }

    /// Where the scored answers go.
    pub fn scored_path(&self) -> PathBuf {
        self.dir.join("samples.jsonl")
    }

    /// The answers drawn so far, by prompt. A line that was cut off by a kill is taken away.
    ///
    /// # Errors
    /// A file that cannot be read, or a whole line that is none of ours.
    pub fn drawn(&self) -> Result<BTreeMap<usize, Vec<Sample>>> {
        let path = self.drawn_path();
        let io = |source| Error::io(&path, source);
        let bytes = match fs::read(&path) {
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(BTreeMap::new());
            }
            bytes => bytes.map_err(io)?,
        };
        // A line that was cut off may end inside a character.
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let text = std::str::from_utf8(&bytes[..whole])
            .map_err(|error| Error::format(&path, error.to_string()))?;
        if whole < bytes.len() {
            let file = OpenOptions::new().write(true).open(&path).map_err(io)?;
            file.set_len(whole as u64).map_err(io)?;
        }
        let mut groups = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let group: Vec<Sample> = parsed(&path, number, line)?;
            if let Some(first) = group.first() {
                groups.insert(first.prompt, group);
            }
        }
        Ok(groups)
    }

    /// Opens the file of drawn answers for more of them.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn appending(&self) -> Result<Appending> {
        let path = self.drawn_path();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(|source| Error::io(&path, source))?;
        Ok(Appending { path, file })
    }

    /// All answers with their rewards; `None` where they are not scored yet.
    ///
    /// # Errors
    /// As [`Folder::drawn`].
    pub fn scored(&self) -> Result<Option<Vec<Sample>>> {
        let path = self.scored_path();
        let Some(text) = text_of(&path)? else { return Ok(None) };
        let lines = text.lines().enumerate();
        lines.map(|(number, line)| parsed(&path, number, line)).collect::<Result<_>>().map(Some)
    }

    fn lesson_path(&self) -> PathBuf {
        self.dir.join("lesson.json")
    }

    /// What was to be learnt of them; `None` where that is not known yet.
    ///
    /// # Errors
    /// As [`Folder::drawn`].
    pub fn lesson(&self) -> Result<Option<Lesson>> {
        let path = self.lesson_path();
        let Some(text) = text_of(&path)? else { return Ok(None) };
        // Its numbers index one another, so it is taken as it was written or not at all.
        let (sum, text) = text.split_once('\n').unwrap_or_default();
        if sum != sum_of(text) {
            let what = "another SHA-256 than its first line says; --overwrite starts anew";
            return Err(Error::format(&path, what));
        }
        let lesson = serde_json::from_str(text);
        lesson.map(Some).map_err(|error| Error::format(&path, error.to_string()))
    }

    /// Writes what is to be learnt.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn write_lesson(&self, lesson: &Lesson) -> Result<()> {
        let text = json!(lesson).to_string();
        let whole = format!("{}\n{text}", sum_of(&text));
        write_atomically(&self.lesson_path(), whole.as_bytes())
    }

    /// Takes away what is of no use once the iteration is done.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn close(&self) -> Result<()> {
        remove(&self.lesson_path())
    }

    /// Writes all answers with their rewards, their prompts beside them, whole or not at all.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn write_scored(
        &self,
        samples: &[Sample],
        prompts: &[&Prompt],
        names: &[String],
    ) -> Result<()> {
        let path = self.scored_path();
        let mut out = String::new();
        for sample in samples {
            let prompt = prompts[sample.prompt];
            let mut line = json!(sample);
            line["place"] = json!(prompt.place);
            line["input"] = json!(prompt.text);
            line["sources"] = json!(names);
            out += &format!("{line}\n");
        }
        write_atomically(&path, out.as_bytes())?;
        remove(&self.drawn_path())
    }
}

/// The file of drawn answers, open.
pub struct Appending {
    path: PathBuf,
    file: File,
}

impl Appending {
    /// Adds the answers to one prompt.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn add(&mut self, group: &[Sample]) -> Result<()> {
        let text = format!("{}\n", json!(group));
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush());
        written.map_err(|source| Error::io(&self.path, source))
    }
}

/// SHA-256 in hexadecimal.
fn sum_of(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(path, source))
        }
        _ => Ok(()),
    }
}

/// A file's text; `None` where it is not there.
fn text_of(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io(path, source)),
    }
}

fn parsed<T: for<'de> Deserialize<'de>>(path: &Path, number: usize, line: &str) -> Result<T> {
    serde_json::from_str(line)
        .map_err(|error| Error::format(path, format!("line {}: {error}", number + 1)))
}
