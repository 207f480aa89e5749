//! Rows on disk: written once as a stream, then read by index.
//!
//! ```text
//! 128 bytes    header: magic, version, key, number of rows, words of rows, bytes of notes, checksum
//! words        the rows, one after the other (the form of `rows`)
//! n + 1 u64    first word of each row, and the end of the last
//! bytes        notes: JSON that belongs to the whole
//! ```
//!
//! All numbers are little-endian. The checksum is SHA-256 over everything behind the header and
//! then the header up to the checksum. A file is written under a temporary name, synced and
//! renamed; on opening its length and checksum are verified, so that one which was cut short or
//! altered is made again. Rows are read with positioned reads, so they take no memory.

use super::rows::Row;
use crate::error::{Error, Result};
use crate::format::mmap::{Access, FileBytes};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const MAGIC: [u8; 8] = *b"PUNAROWS";

/// Version of the file's form and of the meaning of rows. It is part of every key.
pub(super) const VERSION: u32 = 1;

const HEADER_BYTES: usize = 128;
/// The header up to its checksum: magic, version, a zero, key, three lengths.
const CHECKED_BYTES: usize = 8 + 4 + 4 + 32 + 3 * 8;

/// What the rows depend on, hashed.
pub(super) type Key = [u8; 32];

/// The key in hexadecimal, for file names.
pub(super) fn hex(key: &Key) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header(key: &Key, n_rows: u64, n_words: u64, n_notes: u64) -> [u8; CHECKED_BYTES] {
    let mut out = [0; CHECKED_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[16..48].copy_from_slice(key);
    for (slot, value) in out[48..].chunks_exact_mut(8).zip([n_rows, n_words, n_notes]) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    out
}

/// A file that is being written.
pub(super) struct Writer {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
    hash: Sha256,
    key: Key,
    /// First word of each row; the last one is the end.
    offsets: Vec<u64>,
    words: Vec<u32>,
    bytes: Vec<u8>,
}

/// Makes temporary names of one process differ.
static SERIAL: AtomicU64 = AtomicU64::new(0);

impl Writer {
    /// Begins the file that will be at `path`.
    ///
    /// # Errors
    /// What the system refuses.
    pub(super) fn create(path: &Path, key: Key) -> Result<Writer> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!(".{name}.{}-{serial}.tmp", std::process::id()));
        let file = File::create(&temporary).map_err(|source| Error::io(&temporary, source))?;
        let mut writer = Writer {
            path: path.to_owned(),
            temporary,
            file: Some(BufWriter::with_capacity(1 << 20, file)),
            hash: Sha256::new(),
            key,
            offsets: vec![0],
            words: vec![],
            bytes: vec![],
        };
        writer.put(&[0; HEADER_BYTES])?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Ok(()),
        };
        written.map_err(|source| Error::io(&self.temporary, source))
    }

    fn put_hashed(&mut self) -> Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        self.hash.update(&bytes);
        let done = self.put(&bytes);
        self.bytes = bytes;
        self.bytes.clear();
        done
    }

    /// Number of rows so far.
    pub(super) fn n_rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Appends a row.
    ///
    /// # Errors
    /// What the system refuses.
    pub(super) fn push(&mut self, row: &Row) -> Result<()> {
        self.words.clear();
        row.write(&mut self.words);
        self.bytes.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        let end = self.offsets[self.offsets.len() - 1] + self.words.len() as u64;
        self.offsets.push(end);
        self.put_hashed()
    }

    /// Ends the file, syncs it and gives it its name.
    ///
    /// # Errors
    /// What the system refuses; the old file, if there was one, is then untouched.
    pub(super) fn finish(mut self, notes: &[u8]) -> Result<()> {
        let n_words = self.offsets[self.offsets.len() - 1];
        let offsets = std::mem::take(&mut self.offsets);
        for part in offsets.chunks(1 << 16) {
            self.bytes.extend(part.iter().flat_map(|offset| offset.to_le_bytes()));
            self.put_hashed()?;
        }
        self.bytes.extend_from_slice(notes);
        self.put_hashed()?;
        let header = header(&self.key, offsets.len() as u64 - 1, n_words, notes.len() as u64);
        self.hash.update(header);
        let checksum = self.hash.finalize_reset();
        let Some(buffered) = self.file.take() else { return Ok(()) };
        let finish = || -> std::io::Result<()> {
            let mut file = buffered.into_inner().map_err(|e| e.into_error())?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header)?;
            file.write_all(&checksum)?;
            file.sync_all()?;
            fs::rename(&self.temporary, &self.path)
        };
        finish().map_err(|source| Error::io(&self.path, source))
    }
}

impl Drop for Writer {
    /// A file that was not finished is taken away; after `finish` there is none of that name.
    fn drop(&mut self) {
        self.file = None;
        let _ = fs::remove_file(&self.temporary);
    }
}

/// A finished file.
#[derive(Debug)]
pub(super) struct Reader {
    file: FileBytes,
    n_rows: u64,
    n_words: u64,
    notes: Vec<u8>,
}

impl Reader {
    /// Opens the file of `key` at `path`; `None` when there is none, or it is of another key or
    /// version, cut short or altered.
    pub(super) fn open(path: &Path, key: &Key) -> Option<Reader> {
        let file = FileBytes::open(path, Access::Map).ok()?;
        let mut head = [0; HEADER_BYTES];
        file.read_at(0, &mut head).ok()?;
        let number = |at: usize| {
            let bytes = head[at..at + 8].try_into().unwrap_or([0; 8]);
            u64::from_le_bytes(bytes)
        };
        let (n_rows, n_words, n_notes) = (number(48), number(56), number(64));
        if head[..CHECKED_BYTES] != header(key, n_rows, n_words, n_notes) {
            return None;
        }
        let offsets = n_rows.checked_add(1)?.checked_mul(8)?;
        let body = n_words.checked_mul(4)?.checked_add(offsets)?.checked_add(n_notes)?;
        if body.checked_add(HEADER_BYTES as u64)? != file.file_len() {
            return None;
        }
        if checksum(path, &head[..CHECKED_BYTES])? != head[CHECKED_BYTES..CHECKED_BYTES + 32] {
            return None;
        }
        let mut notes = vec![0; usize::try_from(n_notes).ok()?];
        file.read_at(HEADER_BYTES as u64 + body - n_notes, &mut notes).ok()?;
        Some(Reader { file, n_rows, n_words, notes })
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.n_rows as usize
    }

    /// What was given to [`Writer::finish`].
    pub(super) fn notes(&self) -> &[u8] {
        &self.notes
    }

    /// A row by its index.
    ///
    /// # Errors
    /// [`Error::Shape`] beyond the last row; a failing read; a file that changed since it was
    /// opened.
    pub(super) fn row(&self, index: usize) -> Result<Row> {
        if index as u64 >= self.n_rows {
            return Err(Error::Shape {
                op: "row of the data set".into(),
                expected: format!("an index below {}", self.n_rows),
                got: index.to_string(),
            });
        }
        let changed = || Error::format(self.file.path(), "changed while it was being read");
        let data = HEADER_BYTES as u64;
        let mut ends = [0; 16];
        self.file.read_at(data + self.n_words * 4 + index as u64 * 8, &mut ends)?;
        let end = |at: usize| u64::from_le_bytes(ends[at..at + 8].try_into().unwrap_or([0; 8]));
        let (start, end) = (end(0), end(8));
        if start > end || end > self.n_words {
            return Err(changed());
        }
        let mut bytes = vec![0; usize::try_from((end - start) * 4).map_err(|_| changed())?];
        self.file.read_at(data + start * 4, &mut bytes)?;
        let words: Vec<u32> = bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        Row::read(&words).ok_or_else(changed)
    }
}

/// The checksum of the file, read in parts.
fn checksum(path: &Path, header: &[u8]) -> Option<[u8; 32]> {
    let mut file = File::open(path).ok()?;
    file.seek(SeekFrom::Start(HEADER_BYTES as u64)).ok()?;
    let mut hash = Sha256::new();
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part).ok()? {
            0 => break,
            n => hash.update(&part[..n]),
        }
    }
    hash.update(header);
    Some(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: u32) -> Row {
        Row {
            ids: (0..n).collect(),
            labels: (0..n as i32).collect(),
            spans: vec![n],
            source: vec![n],
        }
    }

    fn written(dir: &Path, key: Key) -> PathBuf {
        let path = dir.join("x.rows");
        let mut writer = Writer::create(&path, key).unwrap();
        for n in [3, 1, 40] {
            writer.push(&row(n)).unwrap();
        }
        assert_eq!(writer.n_rows(), 3);
        writer.finish(b"notes").unwrap();
        path
    }

    #[test]
    fn rows_come_back_by_index() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), [7; 32]);
        let reader = Reader::open(&path, &[7; 32]).unwrap();
        assert_eq!((reader.len(), reader.notes()), (3, &b"notes"[..]));
        for (index, n) in [(2, 40), (0, 3), (1, 1)] {
            assert_eq!(reader.row(index).unwrap(), row(n));
        }
        assert!(reader.row(3).is_err());
        assert!(Reader::open(&path, &[8; 32]).is_none(), "another key");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn every_altered_byte_and_every_lost_end_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), [7; 32]);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            // Between the checksum and the rows nothing is kept.
            if (CHECKED_BYTES + 32..HEADER_BYTES).contains(&at) {
                continue;
            }
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(Reader::open(&path, &[7; 32]).is_none(), "byte {at}");
        }
        for n in 0..whole.len() {
            fs::write(&path, &whole[..n]).unwrap();
            assert!(Reader::open(&path, &[7; 32]).is_none(), "{n} bytes");
        }
        fs::write(&path, &whole).unwrap();
        assert!(Reader::open(&path, &[7; 32]).is_some());
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(&dir.path().join("x.rows"), [0; 32]).unwrap();
        writer.push(&row(3)).unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Writer::create(&dir.path().join("no/x.rows"), [0; 32]).is_err());
    }
}
