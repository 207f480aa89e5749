//! Training runs of the program on already tokenised rows.

use super::program::{Run, command, finish};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A row: ids and labels.
pub type Row = (Vec<u32>, Vec<i64>);

/// A folder with a data set, a cache and outputs of its own.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// With these rows as its data set.
    pub fn new(rows: &[Row]) -> Place {
        let place = Place { dir: tempfile::tempdir().expect("a temporary folder") };
        place.write("data", rows);
        place
    }

    /// Another data set.
    pub fn write(&self, name: &str, rows: &[Row]) {
        fs::create_dir_all(self.path(name)).expect("a folder");
        let line =
            |(ids, labels): &Row| format!("{}\n", json!({"input_ids": ids, "labels": labels}));
        let text: String = rows.iter().map(line).collect();
        fs::write(self.path(name).join("rows.jsonl"), text).expect("rows");
    }

    /// A name in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `puna train MODEL --dataset data --output OUT ARGS`, ready to run.
    pub fn command(&self, model: &Path, out: &str, args: &[&str]) -> Command {
        let (data, out) = (self.path("data"), self.path(out));
        let paths = [model, &data, &out].map(|path| path.to_str().expect("UTF-8"));
        let mut all = vec!["train", paths[0], "--dataset", paths[1], "--output", paths[2]];
        all.extend(args);
        let mut command = command(&all);
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    /// Runs it to its end.
    pub fn train(&self, model: &Path, out: &str, args: &[&str]) -> Run {
        finish(self.command(model, out, args))
    }

    /// Lines of the run's metrics that are steps.
    pub fn steps(&self, out: &str) -> Vec<Value> {
        let lines = self.metrics(out).into_iter();
        lines.filter(|line| line.get("loss").is_some()).collect()
    }

    /// All lines of the run's metrics.
    pub fn metrics(&self, out: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(out).join("metrics.jsonl")).expect("metrics");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

/// A number of a line.
pub fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("{key} of {line}"))
}

/// All F32 tensors of a file.
pub fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let values = |data: &[u8]| {
        data.chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
            .collect()
    };
    file.iter()
        .map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
            (name.to_owned(), values(tensor.data()))
        })
        .collect()
}
