//! Files of records: LMFlow's container and JSON lines, read; text_to_textlist, written.
//!
//! A directory is read file by file in order of name: every `*.json` (one object with `type` and
//! `instances`) and `*.jsonl` directly in it. A single file works too. All must have one type.

use super::parse::{Object, describe, fault};
use super::record::{Conversation, Kind, Record, TextList};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

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
    let mut all: Option<(DataSet, PathBuf)> = None;
    for file in files_of(path)? {
        let part =
            if has_extension(&file, "jsonl") { read_lines(&file)? } else { read_object(&file)? };
        let Some(part) = part else { continue };
        match &mut all {
            None => all = Some((part, file)),
            Some((set, _)) if set.kind == part.kind => set.records.extend(part.records),
            Some((set, first)) => {
                let what = format!(
                    "type \"{}\", wanted \"{}\" as in {}: all files must have one type",
                    part.kind.name(),
                    set.kind.name(),
                    first.display()
                );
                return Err(fault(&file.display().to_string(), what));
            }
        }
    }
    let set = all.map(|(set, _)| set).filter(|set| !set.records.is_empty());
    set.ok_or_else(|| fault(&path.display().to_string(), "no records, wanted at least one"))
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e == extension)
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| Error::io(path, source);
    if !fs::metadata(path).map_err(io)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = vec![];
    for entry in fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if (has_extension(&file, "json") || has_extension(&file, "jsonl")) && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        let what = "no *.json or *.jsonl file in this directory, wanted at least one";
        return Err(fault(&path.display().to_string(), what));
    }
    Ok(files)
}

/// Reads one object `{"type": .., "instances": [..]}`.
fn read_object(file: &Path) -> Result<Option<DataSet>> {
    let name = file.display().to_string();
    let bytes = fs::read(file).map_err(|source| Error::io(file, source))?;
    let value: Value = serde_json::from_slice(strip_bom(&bytes))
        .map_err(|error| fault(&name, format!("not JSON: {error}")))?;
    let Value::Object(map) = &value else {
        let what = format!("{}, wanted an object with type and instances", describe(&value));
        return Err(fault(&name, what));
    };
    let key = |key: &str, wanted: &str| {
        map.get(key)
            .ok_or_else(|| fault(&name, format!("key \"{key}\" not there, wanted {wanted}")))
    };
    let kind = kind_named(&name, key("type", "one of the container's types")?)?;
    let instances = key("instances", "a list")?;
    let Value::Array(instances) = instances else {
        let what = format!("key \"instances\": {}, wanted a list", describe(instances));
        return Err(fault(&name, what));
    };
    let record = |(index, instance): (usize, &Value)| {
        let place = format!("{name}, instance {index}");
        Object::new(&place, "", instance)?.record(kind)
    };
    let records = instances.iter().enumerate().map(record).collect::<Result<_>>()?;
    Ok(Some(DataSet { kind, records }))
}

fn kind_named(place: &str, value: &Value) -> Result<Kind> {
    let Some(name) = value.as_str() else {
        return Err(fault(place, format!("key \"type\": {}, wanted a string", describe(value))));
    };
    if name == "image_text" {
        return Err(Error::Unsupported(format!("{place}: records of type image_text")));
    }
    let in_container = Kind::ALL.iter().copied().filter(|kind| *kind != Kind::Tokenized);
    in_container.clone().find(|kind| kind.name() == name).ok_or_else(|| {
        let names: Vec<&str> = in_container.map(Kind::name).collect();
        fault(place, format!("key \"type\": \"{name}\", wanted one of {}", names.join(", ")))
    })
}

/// Reads one JSON object a line; empty lines are passed over. `None` where there is no record.
fn read_lines(file: &Path) -> Result<Option<DataSet>> {
    let bytes = fs::read(file).map_err(|source| Error::io(file, source))?;
    let mut set: Option<DataSet> = None;
    for (index, line) in strip_bom(&bytes).split(|&byte| byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let place = format!("{}, line {}", file.display(), index + 1);
        let value: Value = serde_json::from_slice(line).map_err(|error| {
            // serde_json counts lines inside this one line only.
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            fault(&place, format!("not JSON: {what} at column {}", error.column()))
        })?;
        let object = Object::new(&place, "", &value)?;
        let kind = object.kind_by_keys()?;
        match &mut set {
            None => set = Some(DataSet { kind, records: vec![object.record(kind)?] }),
            Some(set) if set.kind == kind => set.records.push(object.record(kind)?),
            Some(set) => {
                let what = format!(
                    "its keys are those of \"{}\", wanted \"{}\" as in the lines before",
                    kind.name(),
                    set.kind.name()
                );
                return Err(fault(&place, what));
            }
        }
    }
    Ok(set)
}

fn strip_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Writes a container of type text_to_textlist, whole or not at all.
///
/// # Errors
/// What the system refuses.
pub fn write_textlist(path: &Path, records: &[TextList]) -> Result<()> {
    let instances = records.iter().map(|r| json!({"input": r.input, "output": r.output})).collect();
    write_container(path, Kind::TextToTextlist, instances)
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
