//! safetensors: one file, or shards named by `model.safetensors.index.json`.
//!
//! A file is an unsigned 64-bit header length, the header (one JSON object: tensor name to
//! `dtype`, `shape`, `data_offsets`; optionally `__metadata__`), then the data. The header is
//! parsed here and not by the `safetensors` crate, because a map type hides a key that occurs
//! twice, and because a refusal here says which tensor and which byte.
//! Source: the format description in the safetensors repository's README.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::hf_config::read_limited;
use super::mmap::{Access, FileBytes};
use super::{FileDType, TensorFile, TensorInfo, usize_shape};
use crate::error::{Error, Result};

/// The longest header that the format allows.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The longest index file accepted; those of the largest public checkpoints stay below 10 MB.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// Name of the index of a sharded checkpoint.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// Name of the weights where there is one file.
pub const SINGLE_NAME: &str = "model.safetensors";

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A JSON object as a list that refuses a key occurring twice.
struct UniqueMap<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Pairs<V> {
            type Value = UniqueMap<V>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut pairs = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!("key {key:?} occurs twice")));
                    }
                    pairs.push((key, map.next_value()?));
                }
                Ok(UniqueMap(pairs))
            }
        }
        deserializer.deserialize_map(Pairs(std::marker::PhantomData))
    }
}

/// The header: tensors and metadata told apart by the key.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Header;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!("key {key:?} occurs twice")));
                    }
                    if key == "__metadata__" {
                        map.next_value::<UniqueMap<String>>()?;
                    } else {
                        let entry = map
                            .next_value::<Entry>()
                            .map_err(|e| A::Error::custom(format!("tensor {key:?}: {e}")))?;
                        entries.push((key, entry));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// Opens one safetensors file.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] for everything that the format forbids: a header shorter
/// than 2 or longer than 100,000,000 bytes or than the file, that is no JSON object, with a key
/// twice; an unknown element type; a byte span that is not shape times size; spans that overlap,
/// leave a hole or do not end with the file.
pub fn open(path: &Path, access: Access) -> Result<TensorFile> {
    let mut files = TensorFile::default();
    for tensor in append(&mut files, path, access)? {
        files.push(tensor);
    }
    Ok(files)
}

/// Opens the weights of a Hugging Face directory: the index's shards, or the single file.
///
/// # Errors
/// As [`open`]; and for an index that is no such object, names a path outside the directory, or a
/// tensor that its shard does not have.
pub fn open_dir(dir: &Path, access: Access) -> Result<TensorFile> {
    let index = dir.join(INDEX_NAME);
    if !index.exists() {
        return open(&dir.join(SINGLE_NAME), access);
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: UniqueMap<String>,
    }
    let text = read_limited(&index, MAX_INDEX_BYTES)?;
    let Index { weight_map } = serde_json::from_slice(&text)
        .map_err(|e| Error::format(&index, format!("not an index of shards: {e}")))?;

    let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map.0 {
        check_shard_name(&index, tensor, shard)?;
        by_shard.entry(shard).or_default().push(tensor);
    }
    if by_shard.is_empty() {
        return Err(Error::format(&index, "weight_map is empty, wanted at least one tensor"));
    }
    let mut files = TensorFile::default();
    for (shard, wanted) in by_shard {
        let path = dir.join(shard);
        let mut found: HashMap<String, TensorInfo> = append(&mut files, &path, access)?
            .into_iter()
            .map(|tensor| (tensor.name.clone(), tensor))
            .collect();
        let mut taken = Vec::with_capacity(wanted.len());
        for name in wanted {
            taken.push(found.remove(name).ok_or_else(|| {
                Error::format(
                    &index,
                    format!("tensor {name:?} is not in {shard}, where the index puts it"),
                )
            })?);
        }
        taken.sort_by_key(|tensor| tensor.offset);
        for tensor in taken {
            files.push(tensor);
        }
    }
    Ok(files)
}

/// A shard is a plain file name beside the index: nothing that could lead elsewhere.
fn check_shard_name(index: &Path, tensor: &str, shard: &str) -> Result<()> {
    let mut parts = Path::new(shard).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    if !plain || shard.contains(['/', '\\', ':', '\0']) || !shard.ends_with(".safetensors") {
        return Err(Error::format(
            index,
            format!(
                "tensor {tensor:?} is in {shard:?}, wanted the name of a .safetensors file beside the index"
            ),
        ));
    }
    Ok(())
}

/// Opens `path` as the next part of `files`; the tensors it holds, ordered by offset.
fn append(files: &mut TensorFile, path: &Path, access: Access) -> Result<Vec<TensorInfo>> {
    let bytes = Arc::new(FileBytes::open(path, access)?);
    let part = files.push_part(Arc::clone(&bytes));
    parse(path, bytes.bytes(), part)
}

fn parse(path: &Path, bytes: &[u8], part: usize) -> Result<Vec<TensorInfo>> {
    let bad = |offset: u64, what: String| Error::format_at(path, offset, what);
    let file_len = bytes.len() as u64;
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(bad(
            0,
            format!("{file_len} bytes, wanted at least the 8 of the header length"),
        ));
    };
    let header_len = u64::from_le_bytes(*length);
    if !(2..=MAX_HEADER_BYTES).contains(&header_len) {
        return Err(bad(
            0,
            format!("header of {header_len} bytes, wanted 2 to {MAX_HEADER_BYTES}"),
        ));
    }
    let (header, data) = usize::try_from(header_len)
        .ok()
        .and_then(|n| rest.split_at_checked(n))
        .ok_or_else(|| bad(0, format!("header of {header_len} bytes in a file of {file_len}")))?;
    if header[0] != b'{' {
        return Err(bad(8, format!("header begins with byte {:#04x}, wanted '{{'", header[0])));
    }
    let Header(entries) = serde_json::from_slice(header).map_err(|e| {
        // The header is one line, so the column is the byte, counted from 1.
        let at = if e.line() == 1 { 7 + e.column() as u64 } else { 8 };
        bad(at.max(8), format!("header: {e}"))
    })?;

    let data_start = 8 + header_len;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let (begin, end) = entry.data_offsets;
        let fault = |what: String| {
            bad(data_start.saturating_add(begin), format!("tensor {name:?}: {what}"))
        };
        let dtype = FileDType::from_safetensors(&entry.dtype)
            .ok_or_else(|| fault(format!("unknown element type {:?}", entry.dtype)))?;
        let wanted = dtype.tensor_bytes(&entry.shape).map_err(&fault)?;
        if end.checked_sub(begin) != Some(wanted) {
            return Err(fault(format!(
                "data_offsets [{begin}, {end}], wanted a span of {wanted} bytes for shape {:?} of {dtype}",
                entry.shape
            )));
        }
        if end > data.len() as u64 {
            return Err(fault(format!("ends at {end} of {} data bytes", data.len())));
        }
        let shape = usize_shape(&entry.shape).map_err(&fault)?;
        // `end <= data.len()`, so both sums stay inside the file's length.
        tensors.push(TensorInfo {
            dtype,
            shape,
            part,
            offset: data_start + begin,
            len: wanted as usize,
            name,
        });
    }
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
    let mut next = data_start;
    for tensor in &tensors {
        if tensor.offset != next {
            let kind =
                if tensor.offset < next { "overlaps the one before" } else { "leaves a hole" };
            return Err(bad(
                tensor.offset,
                format!(
                    "tensor {:?} {kind}: begins at data byte {}, wanted {}",
                    tensor.name,
                    tensor.offset - data_start,
                    next - data_start
                ),
            ));
        }
        next += tensor.len as u64;
    }
    if next != file_len {
        return Err(bad(next, format!("the last tensor ends here, the file at byte {file_len}")));
    }
    Ok(tensors)
}
