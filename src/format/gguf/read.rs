//! Reads a GGUF file's header: metadata and tensor list. No tensor data is touched.
//!
//! Every count and length is compared with the bytes that are left before anything is allocated or
//! skipped, and every sum and product that a file can influence is checked.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::super::mmap::{Access, FileBytes};
use super::super::{FileDType, TensorFile, TensorInfo, usize_shape};
use super::{DEFAULT_ALIGNMENT, Metadata, Value, keys, scalar, scalar_bytes, type_name};
use crate::error::{Error, Result};

/// Longest string of any kind, in bytes.
const MAX_STRING_BYTES: u64 = 1 << 30;
/// Longest key, in bytes.
const MAX_KEY_BYTES: u64 = u16::MAX as u64;
/// Most elements of an array.
const MAX_ARRAY_LEN: u64 = 1 << 30;
/// A tensor name is shorter than this many bytes (ggml's `GGML_MAX_NAME`).
const MAX_NAME_BYTES: u64 = 64;
/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// Fewest bytes of a metadata entry: key length, a key of one byte, type, a value of one byte.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Fewest bytes of a tensor: name length, a name of one byte, dimensions, type and offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// An opened GGUF file.
#[derive(Debug)]
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    /// Alignment of tensor data in bytes.
    pub alignment: u64,
    /// Metadata.
    pub metadata: Metadata,
    /// Tensors; shapes are outermost first, the reverse of the file's order.
    pub tensors: TensorFile,
}

/// Opens a GGUF file of version 2 or 3.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] with the byte offset for whatever the format forbids.
pub fn open(path: &Path, access: Access) -> Result<Gguf> {
    read(FileBytes::open(path, access)?)
}

/// Reads GGUF bytes of version 2 or 3.
///
/// # Errors
/// [`Error::Format`] with the byte offset for whatever the format forbids.
pub fn read(file: FileBytes) -> Result<Gguf> {
    let file = Arc::new(file);
    let path = file.path();
    let mut cursor = Cursor { path, bytes: file.bytes(), at: 0 };

    let magic = cursor.take(4, "magic")?;
    if magic != b"GGUF" {
        return Err(cursor.fault(0, format!("magic {magic:02x?}, wanted \"GGUF\"")));
    }
    let version = cursor.u32("version")?;
    if version.swap_bytes() < 0x1_0000 && version >= 0x1_0000 {
        return Err(cursor.fault(4, "the file is big-endian, wanted little-endian".to_string()));
    }
    if version != 2 && version != 3 {
        return Err(cursor.fault(4, format!("GGUF version {version}, wanted 2 or 3")));
    }
    let n_tensors = cursor.count("tensors", MIN_TENSOR_BYTES)?;
    let n_entries = cursor.count("metadata entries", MIN_ENTRY_BYTES)?;
    let metadata = read_metadata(&mut cursor, &file, n_entries)?;
    let alignment = read_alignment(&metadata)?;
    let tensors = read_tensors(&mut cursor, &file, n_tensors, alignment)?;
    Ok(Gguf { version, alignment, metadata, tensors })
}

fn read_metadata(cursor: &mut Cursor, file: &Arc<FileBytes>, n_entries: u64) -> Result<Metadata> {
    // `count` compared this number with the bytes that are left, so it fits memory.
    let mut entries = Vec::with_capacity(n_entries as usize);
    let mut by_key = HashMap::with_capacity(n_entries as usize);
    for i in 0..n_entries {
        let at = cursor.at;
        let (start, len) = cursor.string("key", MAX_KEY_BYTES)?;
        if len == 0 {
            return Err(cursor.fault(at, format!("metadata entry {i} has an empty key")));
        }
        let key = cursor.utf8(start, len, "key")?.to_string();
        let value = cursor.value(&key)?;
        if by_key.insert(key.clone(), entries.len()).is_some() {
            return Err(cursor.fault(at, format!("key {key:?} occurs twice")));
        }
        entries.push((key, value));
    }
    Ok(Metadata { bytes: Arc::clone(file), entries, by_key })
}

fn read_alignment(metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.u64(keys::ALIGNMENT)?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() && alignment <= u32::MAX.into() {
        return Ok(alignment);
    }
    let what = format!("{} is {alignment}, wanted a power of two", keys::ALIGNMENT);
    Err(Error::format(metadata.path(), what))
}

fn read_tensors(
    cursor: &mut Cursor,
    file: &Arc<FileBytes>,
    n_tensors: u64,
    alignment: u64,
) -> Result<TensorFile> {
    let mut files = TensorFile::default();
    let part = files.push_part(Arc::clone(file));
    // Where the next tensor must begin, relative to the data; and where in the header each one is
    // described, because the data's own place is known only after the list.
    let mut next = 0u64;
    let mut found = Vec::with_capacity(n_tensors as usize);
    for i in 0..n_tensors {
        let at = cursor.at;
        let (start, len) = cursor.string("tensor name", MAX_NAME_BYTES - 1)?;
        let name = cursor.utf8(start, len, "tensor name")?.to_string();
        let place = format!("tensor {i} ({name:?})");
        if name.is_empty() {
            return Err(cursor.fault(at, format!("{place} has an empty name")));
        }
        let dims_at = cursor.at;
        let n_dims = cursor.u32("number of dimensions")?;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return Err(
                cursor.fault(dims_at, format!("{place}: {n_dims} dimensions, wanted 1 to 4"))
            );
        }
        let mut shape = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            let dim = cursor.u64("dimension")?;
            if dim == 0 || i64::try_from(dim).is_err() {
                let what = format!("{place}: dimension {}, wanted at least 1", dim as i64);
                return Err(cursor.fault(dims_at, what));
            }
            shape.push(dim);
        }
        shape.reverse();
        let type_at = cursor.at;
        let id = cursor.u32("tensor type")?;
        let dtype = FileDType::from_ggml_id(id).ok_or_else(|| {
            let kind = match id {
                4 | 5 | 31..=33 | 36..=38 => "was removed from the format",
                _ => "is unknown",
            };
            cursor.fault(type_at, format!("{place}: type id {id} {kind}"))
        })?;
        // Rows of every block type must be whole blocks, known to the kernels or not.
        let row = shape[n_dims as usize - 1];
        if !row.is_multiple_of(dtype.block_len() as u64) {
            let what = format!(
                "{place}: row of {row}, wanted a multiple of {} ({dtype})",
                dtype.block_len()
            );
            return Err(cursor.fault(dims_at, what));
        }
        let n_bytes = dtype
            .tensor_bytes(&shape)
            .map_err(|what| cursor.fault(dims_at, format!("{place}: {what}")))?;
        let offset_at = cursor.at;
        let offset = cursor.u64("tensor offset")?;
        if offset != next {
            let what =
                format!("{place}: offset {offset}, wanted {next}, where the one before ends");
            return Err(cursor.fault(offset_at, what));
        }
        next =
            align_up(n_bytes, alignment).and_then(|padded| next.checked_add(padded)).ok_or_else(
                || cursor.fault(dims_at, format!("{place}: sizes add up past 2^64 bytes")),
            )?;
        let shape = usize_shape(&shape)
            .map_err(|what| cursor.fault(dims_at, format!("{place}: {what}")))?;
        found.push((at, n_bytes, TensorInfo { name, dtype, shape, part, offset, len: 0 }));
    }

    let file_len = cursor.bytes.len() as u64;
    let data_start = align_up(cursor.at as u64, alignment)
        .ok_or_else(|| cursor.fault(cursor.at, "alignment past the address space".to_string()))?;
    for (at, n_bytes, mut tensor) in found {
        let begin = data_start.checked_add(tensor.offset);
        let end = begin.and_then(|begin| begin.checked_add(n_bytes));
        let (Some(begin), Some(end)) = (begin, end) else {
            return Err(cursor.fault(at, format!("tensor {:?} ends past 2^64", tensor.name)));
        };
        if end > file_len {
            let what = format!(
                "tensor {:?} ends at byte {end} of {file_len}; is the file cut short?",
                tensor.name
            );
            return Err(cursor.fault(at, what));
        }
        tensor.offset = begin;
        // `end <= file_len`, which is a slice's length.
        tensor.len = n_bytes as usize;
        let name = tensor.name.clone();
        if !files.push(tensor) {
            return Err(cursor.fault(at, format!("tensor {name:?} occurs twice")));
        }
    }
    Ok(files)
}

pub(super) fn align_up(n: u64, alignment: u64) -> Option<u64> {
    n.checked_next_multiple_of(alignment)
}

/// A place in the file that only moves over bytes that exist.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn fault(&self, at: usize, what: String) -> Error {
        Error::format_at(self.path, at as u64, what)
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let bytes = self.bytes[self.at..].get(..n).ok_or_else(|| {
            self.fault(
                self.at,
                format!("the file ends inside {what}: {n} bytes wanted, {} left", self.left()),
            )
        })?;
        self.at += n;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things of at least `min_bytes` each, which the rest of the file could hold.
    fn count(&mut self, what: &str, min_bytes: u64) -> Result<u64> {
        let at = self.at;
        let n = self.u64(what)?;
        let most = self.left() / min_bytes;
        if n > most {
            let what = format!("{n} {what}, but the file has room for at most {most}");
            return Err(self.fault(at, what));
        }
        Ok(n)
    }

    /// Skips a string of at most `max` bytes; its first byte and length.
    fn string(&mut self, what: &str, max: u64) -> Result<(usize, usize)> {
        let at = self.at;
        let len = self.u64(what)?;
        if len > max || len > self.left() {
            let most = max.min(self.left());
            return Err(self.fault(at, format!("{what} of {len} bytes, wanted at most {most}")));
        }
        let start = self.at;
        // `len <= left()`, a slice's length.
        self.at += len as usize;
        Ok((start, len as usize))
    }

    fn utf8(&self, start: usize, len: usize, what: &str) -> Result<&'a str> {
        std::str::from_utf8(&self.bytes[start..start + len])
            .map_err(|e| self.fault(start + e.valid_up_to(), format!("{what} is not UTF-8")))
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let at = self.at;
        let ty = self.u32("value type")?;
        match ty {
            keys::TYPE_STRING => {
                let (start, len) = self.string(key, MAX_STRING_BYTES)?;
                Ok(Value::String { start, len })
            }
            keys::TYPE_ARRAY => self.array_value(key),
            _ => {
                let width = scalar_bytes(ty)
                    .ok_or_else(|| self.fault(at, format!("{key}: value type {ty} is unknown")))?;
                let value_at = self.at;
                let bytes = self.take(width, key)?;
                // With enough bytes the only scalar without a value is a bool that is not 0 or 1.
                scalar(ty, bytes).ok_or_else(|| {
                    self.fault(
                        value_at,
                        format!("{key}: bool of value {}, wanted 0 or 1", bytes[0]),
                    )
                })
            }
        }
    }

    fn array_value(&mut self, key: &str) -> Result<Value> {
        let at = self.at;
        let ty = self.u32("element type")?;
        let count_at = self.at;
        let count = self.u64("array length")?;
        let min_bytes = match ty {
            keys::TYPE_ARRAY => {
                return Err(self.fault(at, format!("{key}: array of arrays, wanted a flat array")));
            }
            keys::TYPE_STRING => 8,
            _ => scalar_bytes(ty)
                .ok_or_else(|| self.fault(at, format!("{key}: element type {ty} is unknown")))?,
        };
        if count > MAX_ARRAY_LEN || count > self.left() / min_bytes as u64 {
            let most = MAX_ARRAY_LEN.min(self.left() / min_bytes as u64);
            let what =
                format!("{key}: array of {count} {}, room for at most {most}", type_name(ty));
            return Err(self.fault(count_at, what));
        }
        let start = self.at;
        if ty == keys::TYPE_STRING {
            for _ in 0..count {
                self.string(key, MAX_STRING_BYTES)?;
            }
        } else {
            let bytes = self.take(count as usize * min_bytes, key)?;
            if ty == 7
                && let Some(i) = bytes.iter().position(|&b| b > 1)
            {
                let what = format!("{key}: bool of value {}, wanted 0 or 1", bytes[i]);
                return Err(self.fault(start + i, what));
            }
        }
        Ok(Value::Array { ty, count: count as usize, start, end: self.at })
    }
}
