//! A file's bytes: mapped into memory, or copied where the file may change under us.
//!
//! The only unsafe code of the format floor is the one call that maps a file: the operating system
//! cannot promise that nobody else writes to or shortens a mapped file, so the call is unsafe and
//! the crate-wide ban is lifted for this module alone. [`Access::Copy`] is the way without it.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// How a file's bytes are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Mapped: opening costs nothing and pages are shared with the system's cache. If another
    /// process *shortens* the file meanwhile, touching the lost pages ends this process (SIGBUS);
    /// if it overwrites the file, the weights change. Right for files that you own.
    #[default]
    Map,
    /// Read once into memory: nothing that happens to the file later matters. Right for untrusted
    /// or network file systems; costs the file's size in memory.
    Copy,
}

enum Data {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
    /// Part of the program.
    Static(&'static [u8]),
}

/// An open file of fixed length.
pub struct FileBytes {
    path: PathBuf,
    /// Where mapped bytes come from; `None` for bytes that are no file's.
    file: Option<File>,
    data: Data,
}

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileBytes({}, {} bytes)", self.path.display(), self.bytes().len())
    }
}

impl FileBytes {
    /// Opens a regular file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or mapped, or is a directory, pipe or device.
    pub fn open(path: &Path, access: Access) -> Result<FileBytes> {
        let fail = |source| Error::io(path, source);
        // Asked before opening: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(fail)?.is_file() {
            return Err(fail(std::io::Error::other("not a regular file")));
        }
        let mut file = File::open(path).map_err(fail)?;
        let len = file.metadata().map_err(fail)?.len();
        let data = match access {
            // A mapping of no bytes is an error on most systems.
            _ if len == 0 => Data::Owned(Vec::new()),
            Access::Map => {
                // SAFETY: the mapping is read-only and private to this struct, which keeps it until
                // it is dropped. That the file is not shortened or rewritten while mapped cannot be
                // checked here; `Access` documents it as the condition of choosing `Map`, and every
                // reader validates bytes after reading them, never trusting an earlier look.
                Data::Mapped(unsafe { memmap2::Mmap::map(&file) }.map_err(fail)?)
            }
            Access::Copy => {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut bytes).map_err(fail)?;
                Data::Owned(bytes)
            }
        };
        Ok(FileBytes { path: path.to_path_buf(), file: Some(file), data })
    }

    /// Bytes inside the program, under a name for messages.
    pub fn of_program(name: &str, bytes: &'static [u8]) -> FileBytes {
        FileBytes { path: name.into(), file: None, data: Data::Static(bytes) }
    }

    /// Has the system map the pages of a range now, where it can: advice, which changes nothing but
    /// speed. Nothing happens to bytes that are not mapped.
    pub fn bring_in(&self, range: std::ops::Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Data::Mapped(map) = &self.data {
            let range = range.start.min(map.len())..range.end.min(map.len());
            // Older systems do not know it.
            let _ = map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len());
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }

    /// The file's path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Mapped(map) => map,
            Data::Owned(bytes) => bytes,
            Data::Static(bytes) => bytes,
        }
    }

    /// Fills `out` from byte `offset` on, by a positioned read where the bytes are mapped.
    ///
    /// # Errors
    /// [`Error::Io`] if the read fails or the file ends before `out` is full.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        #[cfg(unix)]
        if let (Data::Mapped(_), Some(file)) = (&self.data, &self.file) {
            use std::os::unix::fs::FileExt;
            return file.read_exact_at(out, offset).map_err(|source| Error::io(&self.path, source));
        }
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(out.len())?));
        match range.and_then(|range| self.bytes().get(range)) {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::io(&self.path, std::io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Length in bytes when it was opened.
    pub fn file_len(&self) -> u64 {
        self.bytes().len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_show_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"hello world").unwrap();
        for access in [Access::Map, Access::Copy] {
            let file = FileBytes::open(&path, access).unwrap();
            assert_eq!(file.bytes(), b"hello world");
            let mut word = [0; 5];
            file.read_at(6, &mut word).unwrap();
            assert_eq!(&word, b"world");
            assert!(file.read_at(7, &mut word).is_err());
            assert!(file.read_at(u64::MAX, &mut word).is_err());
        }
    }

    #[test]
    fn empty_files_open_and_directories_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(FileBytes::open(&path, Access::Map).unwrap().file_len(), 0);
        assert!(FileBytes::open(dir.path(), Access::Map).is_err());
        assert!(FileBytes::open(&dir.path().join("absent"), Access::Map).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_cut_short_later_fails_the_read_and_not_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, vec![7u8; 100_000]).unwrap();
        let file = FileBytes::open(&path, Access::Map).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
        let mut out = [0; 16];
        assert!(file.read_at(50_000, &mut out).is_err());
    }
}
