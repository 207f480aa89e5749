//! Rearranged weights beside the model's file, for those who start often: mapped instead of read,
//! rearranged and held in memory of their own.
//!
//! `MODEL.gguf.panels`, little-endian:
//!
//! ```text
//! magic [8] | length of the list, u64 | SHA-256 of the list [32] | list, JSON | panels ...
//! ```
//!
//! The list names the matrices and where each one's panels begin, at multiples of 4096, and holds the
//! key of the file they came from. A cache of another key, and one that is malformed, is written
//! anew; who alters its panels alters the model's weights, as who alters the model's file does.

use crate::error::{Error, Result};
use crate::format::mmap::{Access, FileBytes};
use crate::format::stage::StagedFile;
use crate::kernels::Cpu;
use crate::model::checkpoint::Checkpoint;
use puna_cpu::qmatmul::{PACKING, PackedMatrix};
use puna_cpu::quant::BlockType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

const MAGIC: &[u8; 8] = b"PUNAPNL1";
/// Magic, length, hash.
const HEAD: usize = 8 + 8 + 32;
/// Where panels begin: at pages.
const ALIGN: usize = 4096;
/// Bytes of the model's file that the key covers: its beginning, and samples over all of it.
const FRONT: usize = 64 << 10;
const SAMPLE: usize = 4 << 10;
const SAMPLES: u64 = 16;
/// Rows and inputs of a matrix at most, far beyond any model: their product does not overflow.
const MOST: usize = 1 << 28;

#[derive(Serialize, Deserialize)]
struct List {
    key: String,
    matrices: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    r#type: String,
    n: usize,
    k: usize,
    offset: usize,
}

/// A cache that belongs to its model.
pub struct PanelCache {
    file: Arc<FileBytes>,
    list: List,
}

/// Panels inside a mapped cache, kept alive with it.
struct Panels {
    file: Arc<FileBytes>,
    offset: usize,
    bytes: usize,
}

impl AsRef<[u8]> for Panels {
    fn as_ref(&self) -> &[u8] {
        // Checked when the cache was opened; the mapping does not change.
        &self.file.bytes()[self.offset..self.offset + self.bytes]
    }
}

/// Where the cache of a model's file lies.
pub fn beside(model: &Path) -> PathBuf {
    let mut name = model.file_name().unwrap_or_default().to_owned();
    name.push(".panels");
    model.with_file_name(name)
}

/// Likewise of a checkpoint; `None` for models that are not one GGUF file.
pub fn path_of(checkpoint: &Checkpoint) -> Option<PathBuf> {
    // The built-in model is GGUF, too, and no file.
    let is_file = checkpoint.gguf.is_some() && checkpoint.path.is_file();
    is_file.then(|| beside(&checkpoint.path))
}

/// Identifies the contents of a model's file, without reading all of it, and the way of packing.
///
/// # Errors
/// [`Error::Io`].
pub fn key_of(model: &Path) -> Result<String> {
    let file = FileBytes::open(model, Access::Map)?;
    let modified = std::fs::metadata(model).and_then(|meta| meta.modified());
    let modified = modified.map_err(|source| Error::io(model, source))?;
    // A time before 1970 is as good as any other to tell files apart.
    let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let len = file.file_len();
    let mut hash = Sha256::new();
    hash.update(PACKING.to_le_bytes());
    hash.update(len.to_le_bytes());
    hash.update(modified.to_le_bytes());
    let mut part = |offset: u64, bytes: usize| -> Result<()> {
        let mut part = vec![0; bytes.min(usize::try_from(len - offset).unwrap_or(usize::MAX))];
        file.read_at(offset, &mut part)?;
        hash.update(&part);
        Ok(())
    };
    part(0, FRONT)?;
    for i in 1..=SAMPLES {
        part(len / SAMPLES * i - len / SAMPLES / 2, SAMPLE)?;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl PanelCache {
    /// Opens the cache at `path` if it has this key and is whole.
    pub fn open(path: &Path, key: &str) -> Option<PanelCache> {
        let file = FileBytes::open(path, Access::Map).ok()?;
        let bytes = file.bytes();
        let len = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
        let end = HEAD.checked_add(usize::try_from(len).ok()?)?;
        let text = bytes.get(HEAD..end)?;
        if bytes[..8] != *MAGIC || bytes[16..HEAD] != *Sha256::digest(text) {
            return None;
        }
        let list: List = serde_json::from_slice(text).ok()?;
        let whole = |entry: &Entry| {
            let block = BlockType::from_name(&entry.r#type)?;
            let sizes = entry.n < MOST && entry.k < MOST && entry.k > 0;
            let fits = sizes && entry.k.is_multiple_of(block.block_len());
            let bytes_wanted = fits.then(|| PackedMatrix::bytes_of(block, entry.n, entry.k))?;
            let end = entry.offset.checked_add(bytes_wanted)?;
            (entry.offset.is_multiple_of(ALIGN) && end <= bytes.len()).then_some(())
        };
        (list.key == key && list.matrices.iter().all(|entry| whole(entry).is_some()))
            .then(|| PanelCache { file: Arc::new(file), list })
    }

    /// Has the system enter the whole file into this process's page tables, each member of the team a
    /// part: faults one by one would cost the first token several times as much.
    pub fn bring_in(&self, cpu: &Cpu) {
        let len = self.file.bytes().len();
        cpu.team.split(len.div_ceil(ALIGN), 1 << 9, &|_, pages| {
            self.file.bring_in(pages.start * ALIGN..len.min(pages.end * ALIGN));
        });
    }

    /// The matrix of this name, if it is here with this type and shape.
    pub fn get(&self, name: &str, block: BlockType, n: usize, k: usize) -> Option<PackedMatrix> {
        let entry = self.list.matrices.iter().find(|entry| entry.name == name)?;
        if (entry.r#type.as_str(), entry.n, entry.k) != (block.name(), n, k) {
            return None;
        }
        let bytes = PackedMatrix::bytes_of(block, n, k);
        let panels = Panels { file: Arc::clone(&self.file), offset: entry.offset, bytes };
        Some(PackedMatrix::from_panels(block, n, k, Arc::new(panels)))
    }
}

/// Writes a cache of these matrices: whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub fn write(path: &Path, key: &str, matrices: &[(String, Arc<PackedMatrix>)]) -> Result<()> {
    let list = |first: usize| {
        let mut at = first;
        let mut entry = |(name, w): &(String, Arc<PackedMatrix>)| {
            let offset = at;
            at = (at + w.bytes()).next_multiple_of(ALIGN);
            let (n, k) = (w.n(), w.k());
            Entry { name: name.clone(), r#type: w.block().name().into(), n, k, offset }
        };
        let matrices = matrices.iter().map(&mut entry).collect();
        serde_json::to_vec(&List { key: key.to_owned(), matrices }).unwrap_or_default()
    };
    // Room for a list with longer numbers than it will have.
    let first = (HEAD + list(1 << 50).len()).next_multiple_of(ALIGN);
    let text = list(first);
    let mut file = StagedFile::create(path)?;
    file.write(MAGIC)?;
    file.write(&(text.len() as u64).to_le_bytes())?;
    file.write(&Sha256::digest(&text))?;
    file.write(&text)?;
    // Many matrices leave more than a page.
    file.write(&vec![0u8; first - HEAD - text.len()])?;
    let padding = [0u8; ALIGN];
    for (_, w) in matrices {
        file.write(w.panels())?;
        file.write(&padding[..w.bytes().next_multiple_of(ALIGN) - w.bytes()])?;
    }
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(seed: u8) -> Arc<PackedMatrix> {
        let (block, n, k) = (BlockType::Q4_0, 21, 64);
        let bytes: Vec<u8> = (0..n * block.row_bytes(k)).map(|i| (i as u8) ^ seed).collect();
        Arc::new(PackedMatrix::from_blocks(block, n, k, &bytes))
    }

    #[test]
    fn what_was_written_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf.panels");
        let all = [("a".to_owned(), matrix(1)), ("b".to_owned(), matrix(2))];
        write(&path, "key", &all).unwrap();
        assert!(PanelCache::open(&path, "another key").is_none());
        let cache = PanelCache::open(&path, "key").expect("it is whole");
        for (name, w) in &all {
            let found = cache.get(name, w.block(), w.n(), w.k()).expect("it is there");
            assert_eq!(found.panels(), w.panels());
            assert!(found.panels().as_ptr().addr().is_multiple_of(64));
        }
        assert!(cache.get("a", BlockType::Q4_1, 21, 64).is_none());
        assert!(cache.get("a", BlockType::Q4_0, 20, 64).is_none());
        assert!(cache.get("c", BlockType::Q4_0, 21, 64).is_none());
    }

    #[test]
    fn a_list_may_leave_more_than_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf.panels");
        // Room is made for offsets of sixteen digits; these have four to seven.
        let name = |i: usize| format!("blk.{i}.ffn_down.weight");
        for n in [226, 500, 900] {
            let all: Vec<_> = (0..n).map(|i| (name(i), matrix(i as u8))).collect();
            write(&path, "key", &all).unwrap();
            let cache = PanelCache::open(&path, "key").expect("it is whole");
            for (name, w) in [&all[0], &all[n - 1]] {
                let found = cache.get(name, w.block(), w.n(), w.k()).expect("it is there");
                assert_eq!(found.panels(), w.panels());
            }
        }
    }

    #[test]
    fn whatever_is_cut_or_changed_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf.panels");
        write(&path, "key", &[("a".to_owned(), matrix(1))]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let list = u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
        for len in [0, 7, 15, 40, HEAD, HEAD + list - 1, HEAD + list, 4096, whole.len() - 4096] {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(PanelCache::open(&path, "key").is_none(), "{len} of {} bytes", whole.len());
        }
        for at in [0, 8, 15, 16, 47, HEAD, HEAD + list / 2] {
            let mut changed = whole.clone();
            changed[at] ^= 0x11;
            std::fs::write(&path, &changed).unwrap();
            assert!(PanelCache::open(&path, "key").is_none(), "byte {at}");
        }
        // A list that is sound in itself and lies about the file.
        for (n, k, offset) in [(21, 64, 1 << 40), (1 << 27, 1 << 27, 4096), (21, 63, 4096)] {
            let entry = Entry { name: "a".into(), r#type: "Q4_0".into(), n, k, offset };
            let list = List { key: "key".into(), matrices: vec![entry] };
            let text = serde_json::to_vec(&list).unwrap();
            let mut bytes = MAGIC.to_vec();
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(Sha256::digest(&text));
            bytes.extend(text);
            bytes.resize(8192, 0);
            std::fs::write(&path, &bytes).unwrap();
            assert!(PanelCache::open(&path, "key").is_none(), "[{n}, {k}] at {offset}");
        }
    }

    #[test]
    fn a_key_is_of_the_contents_and_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let set = |byte: u8, at: usize| {
            let mut bytes = vec![3u8; 200_000];
            bytes[at] = byte;
            std::fs::write(&path, &bytes).unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(UNIX_EPOCH).unwrap();
            key_of(&path).unwrap()
        };
        assert_eq!(set(3, 9), set(3, 9));
        assert_ne!(set(3, 9), set(4, 9));
        assert_eq!(set(3, 9).len(), 64);
        let before = set(3, 9);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(UNIX_EPOCH + std::time::Duration::from_nanos(100)).unwrap();
        assert_ne!(key_of(&path).unwrap(), before);
    }
}
