//! `manifest.json`: name, size and SHA-256 of every file of a checkpoint, written when all of them
//! are on the disk. A directory whose manifest verifies is whole.

use crate::error::{Error, Result};
use crate::format::stage::write_file;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// Name of the file in a checkpoint.
pub const MANIFEST_NAME: &str = "manifest.json";
/// The only layout so far.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Manifest {
    version: u32,
    files: Vec<Entry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    name: String,
    bytes: u64,
    sha256: String,
}

/// Brings every file of `dir` to the disk, then writes their manifest.
///
/// # Errors
/// What the system refuses; a directory inside `dir`.
pub fn seal(dir: &Path) -> Result<()> {
    let mut files = vec![];
    for name in names(dir)? {
        let path = dir.join(&name);
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|source| Error::io(&path, source))?;
        files.push(entry(&path, name)?);
    }
    let manifest = Manifest { version: VERSION, files };
    let text = serde_json::to_string_pretty(&manifest)
        .map_err(|error| Error::io(dir.join(MANIFEST_NAME), error.into()))?;
    write_file(&dir.join(MANIFEST_NAME), text.as_bytes())
}

/// Checks every file of `dir` against its manifest.
///
/// # Errors
/// No manifest, or one that cannot be read; a file that is missing, too many, or other than it was.
pub fn verify(dir: &Path) -> Result<()> {
    let path = dir.join(MANIFEST_NAME);
    let text = fs::read(&path).map_err(|source| Error::io(&path, source))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| Error::format(&path, error.to_string()))?;
    if manifest.version != VERSION {
        let what = format!("version {}, wanted {VERSION}", manifest.version);
        return Err(Error::format(&path, what));
    }
    let found = names(dir)?;
    if let Some(extra) = found.iter().find(|name| manifest.files.iter().all(|f| f.name != **name)) {
        return Err(Error::format(dir.join(extra), "not in the manifest"));
    }
    for wanted in &manifest.files {
        let path = dir.join(&wanted.name);
        if !found.contains(&wanted.name) {
            return Err(Error::format(&path, "in the manifest, but not there"));
        }
        let bytes = fs::metadata(&path).map_err(|source| Error::io(&path, source))?.len();
        if bytes != wanted.bytes {
            let what = format!("{bytes} bytes, wanted {} as in the manifest", wanted.bytes);
            return Err(Error::format(&path, what));
        }
        let found = entry(&path, wanted.name.clone())?;
        if found != *wanted {
            let what = format!("SHA-256 {}, wanted {}", found.sha256, wanted.sha256);
            return Err(Error::format(&path, what));
        }
    }
    Ok(())
}

/// Names of the files in `dir` except the manifest, in order.
fn names(dir: &Path) -> Result<Vec<String>> {
    let io = |source| Error::io(dir, source);
    let mut names = vec![];
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !entry.file_type().map_err(io)?.is_file() {
            return Err(Error::format(entry.path(), "not a file, wanted only files here"));
        }
        if name != MANIFEST_NAME {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn entry(path: &Path, name: String) -> Result<Entry> {
    let io = |source| Error::io(path, source);
    let mut file = File::open(path).map_err(io)?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut piece = vec![0; 1 << 18];
    loop {
        let n = file.read(&mut piece).map_err(io)?;
        if n == 0 {
            break;
        }
        hash.update(&piece[..n]);
        bytes += n as u64;
    }
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Entry { name, bytes, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "abc").unwrap();
        fs::write(dir.path().join("b"), vec![7; 300_000]).unwrap();
        seal(dir.path()).unwrap();
        dir
    }

    #[test]
    fn sizes_and_hashes_are_written() {
        let dir = sealed();
        verify(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join(MANIFEST_NAME)).unwrap();
        // The test vector of FIPS 180-2, appendix B.1.
        assert!(text.contains("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
        assert!(text.contains("\"bytes\": 300000"), "{text}");
    }

    #[test]
    fn every_change_is_found() {
        type Change = fn(&Path);
        let cases: [(Change, &str); 7] = [
            (|d| fs::write(d.join("a"), "abd").unwrap(), "SHA-256"),
            (|d| fs::write(d.join("a"), "ab").unwrap(), "2 bytes, wanted 3"),
            (|d| fs::remove_file(d.join("b")).unwrap(), "not there"),
            (|d| fs::write(d.join("c"), "").unwrap(), "not in the manifest"),
            (|d| fs::remove_file(d.join(MANIFEST_NAME)).unwrap(), MANIFEST_NAME),
            (|d| fs::write(d.join(MANIFEST_NAME), "{").unwrap(), MANIFEST_NAME),
            (
                |d| fs::write(d.join(MANIFEST_NAME), r#"{"version":2,"files":[]}"#).unwrap(),
                "version 2",
            ),
        ];
        for (change, part) in cases {
            let dir = sealed();
            change(dir.path());
            let error = verify(dir.path()).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
