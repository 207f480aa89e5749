//! GGUF, versions 2 and 3: reader, streaming writer and metadata access.
//!
//! Layout, little-endian: magic `GGUF`, u32 version, u64 tensor count, u64 metadata count; the
//! metadata (key, u32 type, value); the tensor list (name, u32 number of dimensions, u64
//! dimensions *fastest first*, u32 type, u64 offset into the data); padding to
//! `general.alignment`; the data, every tensor padded to it. Source: `docs/gguf.md` of ggml.
//!
//! Strings and arrays of the metadata stay in the file: a [`Value`] remembers where they lie, so
//! opening a file with a vocabulary of 128,000 tokens copies none of them.

pub mod keys;
mod read;
mod write;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::mmap::FileBytes;
use crate::error::{Error, Result};

pub use read::{Gguf, open, read};
pub use write::{GgufWriter, MetaValue, TensorWriter};

/// Alignment of the data where `general.alignment` is absent, in bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// Names of the value types, by number.
const TYPE_NAMES: [&str; 13] =
    ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"];

fn type_name(ty: u32) -> &'static str {
    TYPE_NAMES.get(ty as usize).copied().unwrap_or("unknown")
}

/// Bytes of a value of fixed size; `None` for strings, arrays and unknown types.
fn scalar_bytes(ty: u32) -> Option<usize> {
    match ty {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// One metadata value. Integers of any width are one variant, as are floats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// An integer.
    Int(i128),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string: first byte and length in the file.
    String {
        /// First byte.
        start: usize,
        /// Length in bytes.
        len: usize,
    },
    /// An array of scalars or strings, by place.
    Array {
        /// Type number of the elements.
        ty: u32,
        /// Number of elements.
        count: usize,
        /// First byte of the first element.
        start: usize,
        /// First byte after the last element.
        end: usize,
    },
}

impl Value {
    fn kind(&self) -> String {
        match self {
            Value::Int(v) => format!("integer {v}"),
            Value::Float(v) => format!("float {v}"),
            Value::Bool(v) => format!("bool {v}"),
            Value::String { len, .. } => format!("string of {len} bytes"),
            Value::Array { ty, count, .. } => format!("array of {count} {}", type_name(*ty)),
        }
    }
}

/// A scalar of type `ty` at the beginning of `bytes`; `None` if there are too few bytes, for other
/// types, and for a bool that is neither 0 nor 1.
fn scalar(ty: u32, bytes: &[u8]) -> Option<Value> {
    Some(match ty {
        0 => Value::Int((*bytes.first()?).into()),
        1 => Value::Int(i8::from_le_bytes(*bytes.first_chunk()?).into()),
        2 => Value::Int(u16::from_le_bytes(*bytes.first_chunk()?).into()),
        3 => Value::Int(i16::from_le_bytes(*bytes.first_chunk()?).into()),
        4 => Value::Int(u32::from_le_bytes(*bytes.first_chunk()?).into()),
        5 => Value::Int(i32::from_le_bytes(*bytes.first_chunk()?).into()),
        6 => Value::Float(f32::from_le_bytes(*bytes.first_chunk()?).into()),
        7 => Value::Bool(match bytes.first()? {
            0 => false,
            1 => true,
            _ => return None,
        }),
        10 => Value::Int(u64::from_le_bytes(*bytes.first_chunk()?).into()),
        11 => Value::Int(i64::from_le_bytes(*bytes.first_chunk()?).into()),
        12 => Value::Float(f64::from_le_bytes(*bytes.first_chunk()?)),
        _ => return None,
    })
}

/// The metadata of a GGUF file. A getter returns `Ok(None)` where the key is absent, and an error
/// naming file and key where its value has another type.
#[derive(Debug)]
pub struct Metadata {
    bytes: Arc<FileBytes>,
    entries: Vec<(String, Value)>,
    by_key: HashMap<String, usize>,
}

impl Metadata {
    /// All keys with their values, in the order of the file.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|&i| &self.entries[i].1)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.bytes.path()
    }

    /// A non-negative integer of any width.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Int(v)) if u64::try_from(*v).is_ok() => Ok(Some(*v as u64)),
            Some(other) => Err(self.mismatch(key, other, "an integer of at least 0")),
        }
    }

    /// A number: float of any width, or integer.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(v)) => Ok(Some(*v)),
            Some(Value::Int(v)) => Ok(Some(*v as f64)),
            Some(other) => Err(self.mismatch(key, other, "a number")),
        }
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(other) => Err(self.mismatch(key, other, "a bool")),
        }
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String { start, len }) => self.text(key, *start, *len).map(Some),
            Some(other) => Err(self.mismatch(key, other, "a string")),
        }
    }

    /// Number of elements of an array.
    pub fn array_len(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array { count, .. }) => Ok(Some(*count)),
            Some(other) => Err(self.mismatch(key, other, "an array")),
        }
    }

    /// An array of strings; the strings lie in the file.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let (count, mut at) = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array { ty: keys::TYPE_STRING, count, start, .. }) => (*count, *start),
            Some(other) => return Err(self.mismatch(key, other, "an array of strings")),
        };
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            let len = self
                .bytes
                .bytes()
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .and_then(|len| usize::try_from(u64::from_le_bytes(*len)).ok())
                .ok_or_else(|| self.fault(key, at, "ends inside a string".to_string()))?;
            out.push(self.text(key, at + 8, len)?);
            at += 8 + len;
        }
        Ok(Some(out))
    }

    /// An array of floats.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.scalars(key, "an array of floats", |value| match value {
            Value::Float(v) => Some(v as f32),
            _ => None,
        })
    }

    /// An array of integers that fit 32 bits with sign.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.scalars(key, "an array of 32-bit integers", |value| match value {
            Value::Int(v) => i32::try_from(v).ok(),
            _ => None,
        })
    }

    fn scalars<T>(
        &self,
        key: &str,
        wanted: &str,
        convert: impl Fn(Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let &Value::Array { ty, start, end, .. } = value else {
            return Err(self.mismatch(key, value, wanted));
        };
        let width = scalar_bytes(ty).ok_or_else(|| self.mismatch(key, value, wanted))?;
        let bytes = self.bytes.bytes().get(start..end).unwrap_or_default();
        bytes
            .chunks_exact(width)
            .map(|chunk| scalar(ty, chunk).and_then(&convert))
            .collect::<Option<Vec<T>>>()
            .map(Some)
            .ok_or_else(|| self.mismatch(key, value, wanted))
    }

    fn text(&self, key: &str, start: usize, len: usize) -> Result<&str> {
        let bytes = start.checked_add(len).and_then(|end| self.bytes.bytes().get(start..end));
        let bytes = bytes.ok_or_else(|| self.fault(key, start, "leaves the file".to_string()))?;
        std::str::from_utf8(bytes)
            .map_err(|e| self.fault(key, start + e.valid_up_to(), "is not UTF-8".to_string()))
    }

    fn fault(&self, key: &str, at: usize, what: String) -> Error {
        Error::format_at(self.bytes.path(), at as u64, format!("{key}: {what}"))
    }

    fn mismatch(&self, key: &str, found: &Value, wanted: &str) -> Error {
        Error::format(self.bytes.path(), format!("{key} is {}, wanted {wanted}", found.kind()))
    }
}
