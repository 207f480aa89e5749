//! File formats: safetensors, GGUF, and the JSON files beside Hugging Face weights.
//!
//! Both weight formats end in one [`TensorFile`]: a list of named, typed, shaped byte ranges whose
//! bounds were checked against the real length of the file. Nothing here knows what a weight
//! means; that is `model`. Every parser refuses what it cannot prove: it returns
//! [`Error::Format`] with file, byte offset, the value found and the value wanted, allocates no
//! more than the file's own length justifies, and never panics on a file's content.

pub mod gguf;
pub mod hf_config;
pub mod mmap;
pub mod peft;
pub mod safetensors;
pub mod safetensors_write;
pub mod stage;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use puna_cpu::quant::BlockType;

use crate::error::{Error, Result};
use mmap::FileBytes;

/// Element type of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileDType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// Upper half of binary32.
    BF16,
    /// A GGUF block format that the kernels know.
    Block(BlockType),
    /// A type that is well-formed but that no kernel takes; the name is as its format spells it.
    Other(&'static str),
}

/// Name, GGUF id, elements of a block and bytes of a block, of the types that Puna computes with.
/// The block sizes are those of ggml's `block_q*` structures.
const KNOWN: [(FileDType, &str, u32, usize, usize); 13] = [
    (FileDType::F32, "F32", 0, 1, 4),
    (FileDType::F16, "F16", 1, 1, 2),
    (FileDType::BF16, "BF16", 30, 1, 2),
    (FileDType::Block(BlockType::Q4_0), "Q4_0", 2, 32, 18),
    (FileDType::Block(BlockType::Q4_1), "Q4_1", 3, 32, 20),
    (FileDType::Block(BlockType::Q5_0), "Q5_0", 6, 32, 22),
    (FileDType::Block(BlockType::Q5_1), "Q5_1", 7, 32, 24),
    (FileDType::Block(BlockType::Q8_0), "Q8_0", 8, 32, 34),
    (FileDType::Block(BlockType::Q2_K), "Q2_K", 10, 256, 84),
    (FileDType::Block(BlockType::Q3_K), "Q3_K", 11, 256, 110),
    (FileDType::Block(BlockType::Q4_K), "Q4_K", 12, 256, 144),
    (FileDType::Block(BlockType::Q5_K), "Q5_K", 13, 256, 176),
    (FileDType::Block(BlockType::Q6_K), "Q6_K", 14, 256, 210),
];

/// No GGUF id: the type occurs in safetensors only.
const NO_ID: u32 = u32::MAX;

/// The same columns for types that can be listed but not computed with.
const OTHERS: [(&str, u32, usize, usize); 33] = [
    ("Q8_1", 9, 32, 36),
    ("Q8_K", 15, 256, 292),
    ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98),
    ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18),
    ("IQ3_S", 21, 256, 110),
    ("IQ2_S", 22, 256, 82),
    ("IQ4_XS", 23, 256, 136),
    ("I8", 24, 1, 1),
    ("I16", 25, 1, 2),
    ("I32", 26, 1, 4),
    ("I64", 27, 1, 8),
    ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
    ("MXFP4", 39, 32, 17),
    ("BOOL", NO_ID, 1, 1),
    ("U8", NO_ID, 1, 1),
    ("U16", NO_ID, 1, 2),
    ("U32", NO_ID, 1, 4),
    ("U64", NO_ID, 1, 8),
    ("C64", NO_ID, 1, 8),
    ("F8_E5M2", NO_ID, 1, 1),
    ("F8_E4M3", NO_ID, 1, 1),
    ("F8_E8M0", NO_ID, 1, 1),
    ("F8_E5M2FNUZ", NO_ID, 1, 1),
    ("F8_E4M3FNUZ", NO_ID, 1, 1),
    ("F4", NO_ID, 2, 1),
    ("F6_E2M3", NO_ID, 4, 3),
    ("F6_E3M2", NO_ID, 4, 3),
];

impl FileDType {
    fn row(self) -> (&'static str, u32, usize, usize) {
        let known = KNOWN.iter().find(|row| row.0 == self).map(|row| (row.1, row.2, row.3, row.4));
        let other = || match self {
            FileDType::Other(name) => OTHERS.iter().find(|row| row.0 == name).copied(),
            _ => None,
        };
        // A name outside both tables can only be made by a caller, never by a reader.
        known.or_else(other).unwrap_or(("?", NO_ID, 1, 1))
    }

    /// The type's name as GGUF or safetensors spells it.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Elements that share one block; 1 for plain numbers.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes of one block; of one element for plain numbers.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// GGUF's type id; `None` for a type that GGUF does not have.
    pub fn ggml_id(self) -> Option<u32> {
        Some(self.row().1).filter(|&id| id != NO_ID)
    }

    /// The type of a GGUF id; `None` for an unknown or removed one.
    pub fn from_ggml_id(id: u32) -> Option<FileDType> {
        let known = KNOWN.iter().find(|row| row.2 == id).map(|row| row.0);
        let other = || OTHERS.iter().find(|row| row.1 == id && id != NO_ID);
        known.or_else(|| other().map(|row| FileDType::Other(row.0)))
    }

    /// The type of a safetensors name; `None` for an unknown one.
    pub fn from_safetensors(name: &str) -> Option<FileDType> {
        match name {
            "F32" => Some(FileDType::F32),
            "F16" => Some(FileDType::F16),
            "BF16" => Some(FileDType::BF16),
            // The integers and F64 are common to both formats; the block formats are GGUF's own.
            _ => OTHERS
                .iter()
                .find(|row| row.0 == name && (row.1 == NO_ID || (24..=28).contains(&row.1)))
                .map(|row| FileDType::Other(row.0)),
        }
    }

    /// Bytes of a tensor of this shape, outermost axis first.
    ///
    /// # Errors
    /// A text naming the fault: a product that overflows, or a size that is no whole number of blocks.
    pub fn tensor_bytes(self, shape: &[u64]) -> Result<u64, String> {
        let (name, _, block_len, block_bytes) = self.row();
        let n = shape
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d))
            .ok_or_else(|| format!("shape {shape:?} has more than 2^64 elements"))?;
        // Rows of a block format start on a block; F4 and F6 of safetensors are packed over the whole.
        let unit = match self {
            FileDType::Block(_) => shape.last().copied().unwrap_or(1),
            _ => n,
        };
        if !unit.is_multiple_of(block_len as u64) {
            return Err(format!(
                "row of {unit} elements, wanted a multiple of {block_len} ({name})"
            ));
        }
        (n / block_len as u64)
            .checked_mul(block_bytes as u64)
            .ok_or_else(|| format!("shape {shape:?} of {name} takes more than 2^64 bytes"))
    }
}

impl std::fmt::Display for FileDType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor of a file. Its byte range was checked against the file's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name as the file spells it.
    pub name: String,
    /// Element type.
    pub dtype: FileDType,
    /// Axes, outermost first; the last one is contiguous.
    pub shape: Vec<usize>,
    /// Which file of a sharded checkpoint holds it.
    pub part: usize,
    /// First byte, from the start of that file.
    pub offset: u64,
    /// Bytes.
    pub len: usize,
}

impl TensorInfo {
    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of one row (the last axis); all of a tensor without axes.
    pub fn row_bytes(&self) -> usize {
        let row = self.shape.last().copied().unwrap_or(1);
        row / self.dtype.block_len() * self.dtype.block_bytes()
    }
}

/// The tensors of one GGUF file or of all shards of a safetensors checkpoint.
#[derive(Debug, Default)]
pub struct TensorFile {
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    parts: Vec<Arc<FileBytes>>,
}

impl TensorFile {
    /// All tensors, in the order of the file (of the shards' names, where there are several).
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The files behind the tensors.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.path())
    }

    /// The file that holds `tensor`.
    pub fn path_of(&self, tensor: &TensorInfo) -> &Path {
        self.parts.get(tensor.part).map_or(Path::new(""), |part| part.path())
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.len as u64).sum()
    }

    /// All bytes of a tensor, without copying. Little-endian, and without any alignment: the
    /// formats promise none.
    ///
    /// # Errors
    /// `tensor` does not come from this file.
    pub fn bytes(&self, tensor: &TensorInfo) -> Result<&[u8]> {
        let part = self.part(tensor)?;
        let start = usize::try_from(tensor.offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(tensor.len)?));
        range
            .and_then(|range| part.bytes().get(range))
            .ok_or_else(|| foreign(tensor, "a byte range inside the file"))
    }

    /// Copies `out.len()` bytes of a tensor from `offset_bytes` on, with a positioned read: the
    /// pages do not become part of this process's memory, as those of [`TensorFile::bytes`] do.
    ///
    /// # Errors
    /// A range beyond the tensor; a failing read; a file that became shorter since it was opened.
    pub fn read_at(&self, tensor: &TensorInfo, offset_bytes: usize, out: &mut [u8]) -> Result<()> {
        let end = offset_bytes.checked_add(out.len());
        if end.is_none_or(|end| end > tensor.len) {
            return Err(Error::Shape {
                op: format!("reading {}", tensor.name),
                expected: format!("bytes 0..{}", tensor.len),
                got: format!("{} bytes from {offset_bytes}", out.len()),
            });
        }
        self.part(tensor)?.read_at(tensor.offset + offset_bytes as u64, out)
    }

    fn part(&self, tensor: &TensorInfo) -> Result<&FileBytes> {
        self.parts
            .get(tensor.part)
            .map(Arc::as_ref)
            .ok_or_else(|| foreign(tensor, "a tensor of this file"))
    }

    fn push_part(&mut self, part: Arc<FileBytes>) -> usize {
        self.parts.push(part);
        self.parts.len() - 1
    }

    /// Adds a tensor; `false` if the name is taken.
    fn push(&mut self, tensor: TensorInfo) -> bool {
        let next = self.tensors.len();
        match self.by_name.entry(tensor.name.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(next);
                self.tensors.push(tensor);
                true
            }
        }
    }
}

fn foreign(tensor: &TensorInfo, expected: &str) -> Error {
    Error::Shape {
        op: tensor.name.clone(),
        expected: expected.to_string(),
        got: format!("{} bytes at {} of file {}", tensor.len, tensor.offset, tensor.part),
    }
}

/// A shape as `usize`s, or the text of the refusal.
fn usize_shape(shape: &[u64]) -> Result<Vec<usize>, String> {
    shape
        .iter()
        .map(|&d| {
            usize::try_from(d).map_err(|_| format!("dimension {d} exceeds the address space"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_one_row_and_one_id() {
        for row in KNOWN {
            assert_eq!(row.0.name(), row.1);
            assert_eq!(FileDType::from_ggml_id(row.2), Some(row.0));
            assert_eq!(row.0.ggml_id(), Some(row.2));
        }
        for row in OTHERS {
            assert_eq!(FileDType::Other(row.0).row(), row);
            if row.1 != NO_ID {
                assert_eq!(FileDType::from_ggml_id(row.1), Some(FileDType::Other(row.0)));
            }
        }
        for removed in [4, 5, 31, 32, 33, 36, 37, 38, 1000, NO_ID] {
            assert_eq!(FileDType::from_ggml_id(removed), None, "id {removed}");
        }
    }

    #[test]
    fn safetensors_names_do_not_include_block_formats() {
        assert_eq!(FileDType::from_safetensors("I64"), Some(FileDType::Other("I64")));
        assert_eq!(FileDType::from_safetensors("U8"), Some(FileDType::Other("U8")));
        for name in ["Q4_0", "IQ4_NL", "MXFP4", "f32", ""] {
            assert_eq!(FileDType::from_safetensors(name), None, "{name}");
        }
    }

    #[test]
    fn tensor_bytes_checks_rows_and_overflow() {
        let q4 = FileDType::Block(BlockType::Q4_0);
        assert_eq!(q4.tensor_bytes(&[3, 64]), Ok(3 * 2 * 18));
        assert!(q4.tensor_bytes(&[32, 3]).is_err(), "a row of 3 is no whole block");
        assert!(FileDType::F32.tensor_bytes(&[1 << 40, 1 << 40]).is_err());
        assert!(FileDType::F32.tensor_bytes(&[1 << 62, 2]).is_err(), "bytes overflow");
        assert_eq!(FileDType::F32.tensor_bytes(&[]), Ok(4));
    }
}
