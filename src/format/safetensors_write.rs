//! Writes safetensors: header first, then each tensor's bytes as they come, in one file or, above
//! a size, in shards with `model.safetensors.index.json`.
//!
//! The header is what the Python library writes: `{"__metadata__":{"format":"pt"}, ..}` without
//! spaces, tensors in the order of their data, padded with spaces so that the data begins on a
//! multiple of 8 bytes. Every file appears under its name only when complete.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::FileDType;
use super::safetensors::{INDEX_NAME, MAX_HEADER_BYTES, SINGLE_NAME};
use super::stage::{StagedFile, write_file};
use crate::error::{Error, Result};

/// Most bytes of tensors in one shard, unless told otherwise; transformers' own limit.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// F32, F16 or BF16.
    pub dtype: FileDType,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    fn bytes(&self) -> Result<u64, String> {
        if !matches!(self.dtype, FileDType::F32 | FileDType::F16 | FileDType::BF16) {
            return Err(format!("element type {}, wanted F32, F16 or BF16", self.dtype));
        }
        let shape: Vec<u64> = self.shape.iter().map(|&d| d as u64).collect();
        self.dtype.tensor_bytes(&shape)
    }
}

/// Takes the bytes of one file's tensors, in the order of the list.
#[derive(Debug)]
pub struct SafetensorsWriter {
    out: StagedFile,
    lens: Vec<(String, u64)>,
    current: usize,
    /// Bytes of the current tensor that were written.
    written: u64,
}

impl SafetensorsWriter {
    /// Writes the header of `path` and waits for the data.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for a list that a reader would refuse: a repeated or
    /// reserved name, an element type or a size that the format does not have.
    pub fn start(path: &Path, tensors: &[TensorSpec]) -> Result<SafetensorsWriter> {
        let mut header = String::from(r#"{"__metadata__":{"format":"pt"}"#);
        let mut names = HashSet::new();
        let mut lens = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for tensor in tensors {
            let refuse = |what: String| {
                Error::format(path, format!("cannot write tensor {:?}: {what}", tensor.name))
            };
            if tensor.name == "__metadata__" || !names.insert(&tensor.name) {
                return Err(refuse("its name is reserved or repeated".into()));
            }
            let len = tensor.bytes().map_err(refuse)?;
            let end = offset
                .checked_add(len)
                .ok_or_else(|| refuse("the sizes add up past 2^64 bytes".into()))?;
            let entry = json!({
                "dtype": tensor.dtype.name(),
                "shape": tensor.shape,
                "data_offsets": [offset, end],
            });
            header.push_str(&format!(",{}:{entry}", json!(tensor.name)));
            lens.push((tensor.name.clone(), len));
            offset = end;
        }
        header.push('}');
        let padded = header.len().next_multiple_of(8);
        header.extend(std::iter::repeat_n(' ', padded - header.len()));
        if header.len() as u64 > MAX_HEADER_BYTES {
            let what =
                format!("a header of {padded} bytes, at most {MAX_HEADER_BYTES} are allowed");
            return Err(Error::format(path, what));
        }
        let mut out = StagedFile::create(path)?;
        out.write(&(padded as u64).to_le_bytes())?;
        out.write(header.as_bytes())?;
        let mut writer = SafetensorsWriter { out, lens, current: 0, written: 0 };
        writer.skip_full();
        Ok(writer)
    }

    /// The tensor whose bytes come next, and how many of them are missing; `None` when all are
    /// written.
    pub fn expects(&self) -> Option<(&str, u64)> {
        self.lens.get(self.current).map(|(name, len)| (name.as_str(), len - self.written))
    }

    /// Appends bytes of the current tensor; when it is complete, the next one begins.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for more bytes than the current tensor has left.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let (name, left) = self.expects().unwrap_or(("the last tensor", 0));
        if bytes.len() as u64 > left {
            let what = format!("{} bytes for {name}, which takes {left} more", bytes.len());
            return Err(Error::format(self.out.path(), what));
        }
        self.out.write(bytes)?;
        self.written += bytes.len() as u64;
        self.skip_full();
        Ok(())
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] if a tensor's bytes are missing.
    pub fn finish(self) -> Result<()> {
        if let Some((name, left)) = self.expects() {
            let what = format!("{left} bytes of {name} were not written");
            return Err(Error::format(self.out.path(), what));
        }
        self.out.commit()
    }

    fn skip_full(&mut self) {
        while let Some((_, 0)) = self.expects() {
            self.current += 1;
            self.written = 0;
        }
    }
}

/// Takes the bytes of a model's tensors, in the order of the list: `model.safetensors`, or shards
/// and their index. Dropped before [`ShardedWriter::finish`], it removes what it wrote.
#[derive(Debug)]
pub struct ShardedWriter {
    dir: PathBuf,
    shards: Vec<Vec<TensorSpec>>,
    current: usize,
    /// The shard being written; `None` when all are.
    writer: Option<SafetensorsWriter>,
    finished: bool,
}

impl ShardedWriter {
    /// Plans the shards of `dir`, none of more than `shard_bytes` unless a single tensor is, and
    /// begins the first.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::start`].
    pub fn start(dir: &Path, tensors: &[TensorSpec], shard_bytes: u64) -> Result<ShardedWriter> {
        let mut shards: Vec<Vec<TensorSpec>> = vec![vec![]];
        let mut in_shard = 0u64;
        for tensor in tensors {
            let len = tensor.bytes().map_err(|what| {
                Error::format(dir, format!("cannot write tensor {:?}: {what}", tensor.name))
            })?;
            let full = in_shard.checked_add(len).is_none_or(|sum| sum > shard_bytes);
            if full && shards.last().is_some_and(|shard| !shard.is_empty()) {
                shards.push(vec![]);
                in_shard = 0;
            }
            in_shard += len;
            if let Some(shard) = shards.last_mut() {
                shard.push(tensor.clone());
            }
        }
        let mut sharded = ShardedWriter {
            dir: dir.to_path_buf(),
            shards,
            current: 0,
            writer: None,
            finished: false,
        };
        sharded.writer = sharded.begin()?;
        Ok(sharded)
    }

    /// Appends bytes of the current tensor; one call's bytes are of one tensor.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::write`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(writer) = &mut self.writer else {
            return Err(Error::format(&self.dir, "more bytes than the tensors have"));
        };
        writer.write(bytes)?;
        if writer.expects().is_none() && self.current + 1 < self.shards.len() {
            self.end_shard()?;
            self.current += 1;
            self.writer = self.begin()?;
        }
        Ok(())
    }

    /// Completes the last file and writes the index, if there are shards.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] if a tensor's bytes are missing.
    pub fn finish(mut self) -> Result<()> {
        self.end_shard()?;
        let index = self.dir.join(INDEX_NAME);
        if self.shards.len() > 1 {
            write_file(&index, self.index().as_bytes())?;
        } else if index.exists() {
            // Left by an earlier model in this directory, it would hide the new file.
            std::fs::remove_file(&index).map_err(|source| Error::io(&index, source))?;
        }
        self.finished = true;
        Ok(())
    }

    fn path(&self, shard: usize) -> PathBuf {
        let n = self.shards.len();
        self.dir.join(match n {
            1 => SINGLE_NAME.to_string(),
            _ => shard_name(shard, n),
        })
    }

    fn begin(&self) -> Result<Option<SafetensorsWriter>> {
        let tensors = &self.shards[self.current];
        SafetensorsWriter::start(&self.path(self.current), tensors).map(Some)
    }

    fn end_shard(&mut self) -> Result<()> {
        self.writer.take().map_or(Ok(()), SafetensorsWriter::finish)
    }

    fn index(&self) -> String {
        let (mut bytes, mut parameters) = (0u64, 0u64);
        let mut map = BTreeMap::new();
        for (i, shard) in self.shards.iter().enumerate() {
            for tensor in shard {
                // Both were computed before, when the shards were planned.
                bytes += tensor.bytes().unwrap_or(0);
                parameters += tensor.shape.iter().map(|&d| d as u64).product::<u64>();
                map.insert(&tensor.name, shard_name(i, self.shards.len()));
            }
        }
        let metadata = json!({"total_parameters": parameters, "total_size": bytes});
        format!("{:#}\n", json!({"metadata": metadata, "weight_map": map}))
    }
}

impl Drop for ShardedWriter {
    fn drop(&mut self) {
        if !self.finished {
            for shard in 0..self.current {
                // Nothing useful can be done about a failure here.
                let _ = std::fs::remove_file(self.path(shard));
            }
        }
    }
}

fn shard_name(shard: usize, n: usize) -> String {
    format!("model-{:05}-of-{n:05}.safetensors", shard + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::mmap::Access;
    use crate::format::safetensors;

    fn specs() -> Vec<TensorSpec> {
        let spec = |name: &str, dtype, shape: &[usize]| TensorSpec {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        };
        vec![
            spec("a \"b\"", FileDType::F32, &[2, 3]),
            spec("empty", FileDType::F16, &[0, 4]),
            spec("c", FileDType::BF16, &[5]),
            spec("scalar", FileDType::F32, &[]),
        ]
    }

    const DATA: [&[u8]; 4] = [&[1; 24], &[], &[2; 10], &[3; 4]];

    #[test]
    fn what_is_written_is_read_again_and_by_the_crate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut writer = SafetensorsWriter::start(&path, &specs()).unwrap();
        assert_eq!(writer.expects(), Some(("a \"b\"", 24)));
        for piece in [&DATA[0][..5], &DATA[0][5..], DATA[2], DATA[3]] {
            writer.write(piece).unwrap();
        }
        assert_eq!(writer.expects(), None);
        writer.finish().unwrap();

        let bytes = std::fs::read(&path).unwrap();
        let header_len = u64::from_le_bytes(*bytes.first_chunk().unwrap());
        assert_eq!(header_len % 8, 0);
        let (_, metadata) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let read = safetensors::open(&path, Access::Map).unwrap();
        for (spec, data) in specs().iter().zip(DATA) {
            let tensor = read.get(&spec.name).unwrap();
            assert_eq!((tensor.dtype, &tensor.shape), (spec.dtype, &spec.shape));
            assert_eq!(read.bytes(tensor).unwrap(), data);
        }
    }

    #[test]
    fn shards_split_between_tensors_and_carry_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let write = |shard_bytes| {
            let mut writer = ShardedWriter::start(dir.path(), &specs(), shard_bytes).unwrap();
            for data in DATA.iter().filter(|data| !data.is_empty()) {
                writer.write(data).unwrap();
            }
            writer.finish().unwrap();
        };
        write(24);
        let names: Vec<_> = (0..2).map(|i| shard_name(i, 2)).collect();
        assert!(names.iter().all(|name| dir.path().join(name).exists()));
        let read = safetensors::open_dir(dir.path(), Access::Map).unwrap();
        for (spec, data) in specs().iter().zip(DATA) {
            assert_eq!(read.bytes(read.get(&spec.name).unwrap()).unwrap(), data);
        }
        let index = std::fs::read(dir.path().join(INDEX_NAME)).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["metadata"]["total_size"], 38);
        assert_eq!(index["metadata"]["total_parameters"], 12);
        assert_eq!(index["weight_map"]["c"], names[1].as_str());

        write(SHARD_BYTES);
        assert!(!dir.path().join(INDEX_NAME).exists(), "an old index would hide the new file");
        assert!(dir.path().join(SINGLE_NAME).exists());
    }

    #[test]
    fn refusals_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let start = |change: fn(&mut Vec<TensorSpec>)| {
            let mut list = specs();
            change(&mut list);
            SafetensorsWriter::start(&path, &list).unwrap_err().to_string()
        };
        assert!(start(|list| list[2].name = "empty".into()).contains("repeated"));
        assert!(start(|list| list[0].name = "__metadata__".into()).contains("reserved"));
        assert!(start(|list| list[0].dtype = FileDType::Other("I64")).contains("I64"));
        assert!(start(|list| list[0].shape = vec![1 << 40, 1 << 40]).contains("2^64"));

        let mut writer = SafetensorsWriter::start(&path, &specs()).unwrap();
        let error = writer.write(&[0; 25]).unwrap_err().to_string();
        assert!(error.contains("takes 24 more"), "{error}");
        writer.write(&[0; 20]).unwrap();
        let error = writer.finish().unwrap_err().to_string();
        assert!(error.contains("4 bytes of a"), "{error}");

        let mut shards = ShardedWriter::start(dir.path(), &specs(), 24).unwrap();
        shards.write(DATA[0]).unwrap();
        shards.write(DATA[2]).unwrap();
        drop(shards);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
