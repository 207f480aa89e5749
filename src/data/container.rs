//! Whole data sets in memory, read; containers, written. Sets that may be larger than memory are
//! read through [`Source`].

use super::record::{Conversation, Kind, Record, TextList};
use super::source::Source;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Records of one type.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSet {
    /// Their type.
    pub kind: Kind,
    /// The records, file by file in order of name.
    pub records: Vec<Record>,
}

/// Reads the data set at `path`.
///
/// # Errors
/// Files that cannot be read or are not JSON, types that are unknown, unsupported or mixed, and
/// records that break their type: by file, instance or line, and key.
pub fn read(path: &Path) -> Result<DataSet> {
    let mut records = vec![];
    let kind = Source::open(path)?.for_each(&mut |instance| {
        records.push(instance.record);
        Ok(())
    })?;
    Ok(DataSet { kind, records })
}

/// Writes a container of type text_to_textlist, whole or not at all.
///
/// # Errors
/// What the system refuses.
pub fn write_textlist(path: &Path, records: &[TextList]) -> Result<()> {
    let instances = records.iter().map(|r| json!({"input": r.input, "output": r.output})).collect();
    write_container(path, Kind::TextToTextlist, instances)
}

/// Writes a container of type text_to_scored_textlist, whole or not at all: of each record the input,
/// and score and text of each answer.
///
/// # Errors
/// What the system refuses.
pub fn write_scored(path: &Path, records: &[(&str, Vec<(f32, &str)>)]) -> Result<()> {
    let one = |(input, output): &(&str, Vec<(f32, &str)>)| {
        let output: Vec<Value> =
            output.iter().map(|(score, text)| json!({"score": score, "text": text})).collect();
        json!({"input": input, "output": output})
    };
    write_container(path, Kind::TextToScoredTextlist, records.iter().map(one).collect())
}

/// Writes a container with one conversation, whole or not at all.
///
/// # Errors
/// What the system refuses.
pub fn write_conversation(path: &Path, conversation: &Conversation) -> Result<()> {
    let mut instance = Map::new();
    if let Some(system) = &conversation.system {
        instance.insert("system".into(), json!(system));
    }
    let messages = conversation.messages.iter();
    let messages: Vec<Value> =
        messages.map(|m| json!({"role": m.role, "content": m.content})).collect();
    instance.insert("messages".into(), messages.into());
    write_container(path, Kind::Conversation, vec![instance.into()])
}

/// Writes numbers as a float_only set.
///
/// # Errors
/// What the system refuses.
pub fn write_floats(path: &Path, values: &[f32]) -> Result<()> {
    let instances = values.iter().map(|value| json!({"value": value})).collect();
    write_container(path, Kind::FloatOnly, instances)
}

fn write_container(path: &Path, kind: Kind, instances: Vec<Value>) -> Result<()> {
    let value = json!({"type": kind.name(), "instances": instances});
    write_atomically(path, format!("{value:#}\n").as_bytes())
}

/// Writes `bytes` under a temporary name beside `path`, syncs and renames.
///
/// # Errors
/// What the system refuses.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        // The first error is the one to report; the temporary file may not even exist.
        let _ = fs::remove_file(&temporary);
        Error::io(path, source)
    })
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
