//! The output directory as a whole: what a run leaves in it, and putting the result there.

use super::checkpoint;
use super::metrics::METRICS_NAME;
use super::report::REPORT_NAME;
use super::state::Setting;
use crate::error::{Error, Result};
use crate::format::stage::{StagedDir, sync_dir, write_file};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

/// Name of the file that says that a run is done.
pub const SUMMARY_NAME: &str = "train_results.json";

/// The end of a run that is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// What the run told its user.
    pub summary: Value,
    /// What it was told.
    pub settings: Vec<Setting>,
}

/// What runs that learn from their own answers leave beside a result.
const ANSWERS_NAMES: [&str; 2] = ["answers.json", "iterations"];

fn is_train_set(name: &str) -> bool {
    let number = name.strip_prefix("train_set_").and_then(|rest| rest.strip_suffix(".json"));
    number.is_some_and(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
}

/// Files that make a directory one with a result.
fn is_result(name: &str) -> bool {
    matches!(name, SUMMARY_NAME | "adapter_model.safetensors" | "adapter_config.json")
        || is_weights(name)
}

fn is_weights(name: &str) -> bool {
    let shard = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let shard = shard.and_then(|rest| rest.split_once("-of-"));
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    matches!(name, "model.safetensors" | "model.safetensors.index.json")
        || shard.is_some_and(|(i, n)| digits(i) && digits(n))
}

/// What stands in the way of a new run in `output`: a checkpoint, a result or metrics.
///
/// # Errors
/// A directory that cannot be read.
pub fn occupied(output: &Path) -> Result<Option<String>> {
    if let Some(step) = checkpoint::steps(output)?.last() {
        return Ok(Some(format!("checkpoint-{step}")));
    }
    let found = names(output)?.into_iter().find(|name| is_result(name) || name == METRICS_NAME);
    Ok(found)
}

/// Deletes what an earlier run left in `output`, and nothing else.
///
/// # Errors
/// What the system refuses.
pub fn wipe(output: &Path) -> Result<()> {
    for step in checkpoint::steps(output)? {
        checkpoint::remove(output, step)?;
    }
    // The sign that the run is done goes first.
    forget_done(output)?;
    let ours = |name: &String| {
        is_result(name)
            || is_train_set(name)
            || name == METRICS_NAME
            || name == REPORT_NAME
            || name == ANSWERS_NAMES[0]
    };
    let answers = output.join(ANSWERS_NAMES[1]);
    match fs::remove_dir_all(&answers) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            return Err(Error::io(answers, source));
        }
        _ => {}
    }
    for name in names(output)?.iter().filter(|name| ours(name)) {
        let path = output.join(name);
        fs::remove_file(&path).map_err(|source| Error::io(&path, source))?;
    }
    Ok(())
}

/// Names of the files of a directory; none where it is not there.
fn names(dir: &Path) -> Result<Vec<String>> {
    let io = |source| Error::io(dir, source);
    let entries = match fs::read_dir(dir) {
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(io)?,
    };
    let mut names = vec![];
    for entry in entries {
        let entry = entry.map_err(io)?;
        if entry.file_type().map_err(io)?.is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Puts a result into `output`: `fill` writes it into the directory that it is given, and each
/// file appears in `output` complete. Files of other names stay.
///
/// # Errors
/// What `fill` and the system refuse; then nothing of the result is in `output` unless moving it
/// there failed.
pub fn publish(output: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    // Never committed: its files move out of it, and dropping it removes what is left.
    let staged = StagedDir::create(&output.join("result"), None)?;
    fill(staged.dir())?;
    let new = names(staged.dir())?;
    for name in &new {
        let path = staged.dir().join(name);
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|source| Error::io(&path, source))?;
    }
    // Shards of an earlier model, or its index, would be taken for a part of this one.
    for old in names(output)?.iter().filter(|name| is_weights(name) && !new.contains(name)) {
        let path = output.join(old);
        fs::remove_file(&path).map_err(|source| Error::io(&path, source))?;
    }
    for name in &new {
        let to = output.join(name);
        fs::rename(staged.dir().join(name), &to).map_err(|source| Error::io(&to, source))?;
    }
    sync_dir(output)
}

/// Says that the run is done.
///
/// # Errors
/// What the system refuses.
pub fn write_done(output: &Path, done: &Done) -> Result<()> {
    let path = output.join(SUMMARY_NAME);
    let text = serde_json::to_string_pretty(done).map_err(|e| Error::io(&path, e.into()))?;
    write_file(&path, format!("{text}\n").as_bytes())
}

/// The end of the run in `output`, if it is done.
///
/// # Errors
/// A file that cannot be read.
pub fn read_done(output: &Path) -> Result<Option<Done>> {
    let path = output.join(SUMMARY_NAME);
    match fs::read(&path) {
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io(&path, source)),
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| Error::format(&path, error.to_string())),
    }
}

/// Takes the sign back that the run is done, because it goes on.
///
/// # Errors
/// What the system refuses.
pub fn forget_done(output: &Path) -> Result<()> {
    let path = output.join(SUMMARY_NAME);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::io(&path, source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_told_by_their_names() {
        for name in ["model.safetensors", "model-00001-of-00012.safetensors"] {
            assert!(is_weights(name), "{name}");
        }
        for name in ["model-1-of-2.safetensors", "mymodel.safetensors", "model-x.safetensors", "m"]
        {
            assert!(!is_weights(name), "{name}");
        }
    }

    #[test]
    fn a_result_appears_and_what_is_not_ours_stays() {
        let out = tempfile::tempdir().unwrap();
        let out = out.path();
        assert_eq!(occupied(&out.join("none")).unwrap(), None);
        for name in ["thesis.txt", "model-00001-of-00002.safetensors", "config.json"] {
            fs::write(out.join(name), "old").unwrap();
        }
        let fill = |dir: &Path| {
            for name in ["model.safetensors", "config.json"] {
                fs::write(dir.join(name), "new").unwrap();
            }
            Ok(())
        };
        publish(out, fill).unwrap();
        assert_eq!(names(out).unwrap(), ["config.json", "model.safetensors", "thesis.txt"]);
        assert_eq!(fs::read_dir(out).unwrap().count(), 3, "no directory is left");
        assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "new");
        assert_eq!(fs::read_to_string(out.join("thesis.txt")).unwrap(), "old");
        assert_eq!(occupied(out).unwrap(), Some("model.safetensors".into()));
        wipe(out).unwrap();
        assert_eq!(names(out).unwrap(), ["config.json", "thesis.txt"]);
        assert_eq!(occupied(out).unwrap(), None);
        let failed = publish(out, |dir| {
            fs::write(dir.join("model.safetensors"), "half").unwrap();
            Err(Error::Unsupported("full".into()))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(out).unwrap().count(), 2);
    }

    #[test]
    fn done_comes_back() {
        let out = tempfile::tempdir().unwrap();
        let done = Done {
            summary: serde_json::json!({"steps": 3}),
            settings: vec![("batch_size".into(), "8".into())],
        };
        assert_eq!(read_done(out.path()).unwrap(), None);
        write_done(out.path(), &done).unwrap();
        assert_eq!(read_done(out.path()).unwrap(), Some(done));
        assert_eq!(occupied(out.path()).unwrap(), Some(SUMMARY_NAME.into()));
        forget_done(out.path()).unwrap();
        forget_done(out.path()).unwrap();
        assert_eq!(read_done(out.path()).unwrap(), None);
    }
}
