//! Which weights a run started from, so that it is not resumed on others: a digest of the sizes,
//! beginnings and ends of the files, quick even for files of many gigabytes.

use crate::error::{Error, Result};
use crate::model::builtin;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes hashed at each end of a file.
const END_BYTES: u64 = 1 << 16;

/// Digest of a model: a file, or the configuration and weights of a directory.
///
/// # Errors
/// What the system refuses.
pub fn weights_digest(model: &Path) -> Result<String> {
    if builtin::is_builtin(model) {
        return Ok(hex(Sha256::digest(builtin::GGUF).as_slice()));
    }
    let files = if model.is_dir() { files_of(model, "config.json")? } else { vec![model.into()] };
    digest(&files)
}

/// Digest of an adapter.
///
/// # Errors
/// What the system refuses.
pub fn adapter_digest(dir: &Path) -> Result<String> {
    digest(&files_of(dir, "adapter_config.json")?)
}

/// The file of settings and all weights in `dir`.
fn files_of(dir: &Path, settings: &str) -> Result<Vec<PathBuf>> {
    let io = |source| Error::io(dir, source);
    let mut files = vec![];
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let weights = path.extension().is_some_and(|e| e == "safetensors");
        if path.is_file() && (weights || path.file_name().is_some_and(|name| name == settings)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files {
        let io = |source| Error::io(path, source);
        let mut file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        hash.update(len.to_le_bytes());
        let mut part = vec![];
        for start in [0, len.saturating_sub(END_BYTES)] {
            part.clear();
            file.seek(SeekFrom::Start(start)).map_err(io)?;
            (&mut file).take(END_BYTES).read_to_end(&mut part).map_err(io)?;
            hash.update(&part);
        }
    }
    Ok(hex(hash.finalize().as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_weights_have_another_digest_and_moving_them_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, last: u8| {
            let dir = dir.path().join(name);
            fs::create_dir(&dir).unwrap();
            let mut bytes = vec![1; 300_000];
            *bytes.last_mut().unwrap() = last;
            fs::write(dir.join("model.safetensors"), bytes).unwrap();
            fs::write(dir.join("config.json"), "{}").unwrap();
            fs::write(dir.join("README.md"), name).unwrap();
            weights_digest(&dir).unwrap()
        };
        let (a, b, c) = (make("a", 1), make("b", 1), make("c", 2));
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_ne!(weights_digest(&dir.path().join("a/model.safetensors")).unwrap(), a);
        assert!(weights_digest(&dir.path().join("none")).is_err());
    }
}
