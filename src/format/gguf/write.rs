//! Writes GGUF version 3: header first, then each tensor's bytes as they come.
//!
//! [`GgufWriter`] collects metadata and the tensor list; [`GgufWriter::start`] writes the header and
//! hands out a [`TensorWriter`], which takes the data in the list's order, in pieces of any size, so
//! a file larger than memory can be written. The file appears under its name only when complete.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::super::FileDType;
use super::read::align_up;
use super::{DEFAULT_ALIGNMENT, keys};
use crate::error::{Error, Result};

/// A metadata value to write.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    /// u32.
    U32(u32),
    /// i32.
    I32(i32),
    /// u64.
    U64(u64),
    /// f32.
    F32(f32),
    /// bool.
    Bool(bool),
    /// String.
    Str(String),
    /// Array of strings.
    Strs(Vec<String>),
    /// Array of f32.
    F32s(Vec<f32>),
    /// Array of i32.
    I32s(Vec<i32>),
}

impl MetaValue {
    fn encode(&self, out: &mut Vec<u8>) {
        fn tag(out: &mut Vec<u8>, ty: u32) {
            out.extend(ty.to_le_bytes());
        }
        fn array(out: &mut Vec<u8>, ty: u32, len: usize) {
            tag(out, keys::TYPE_ARRAY);
            tag(out, ty);
            out.extend((len as u64).to_le_bytes());
        }
        match self {
            MetaValue::U32(v) => {
                tag(out, 4);
                out.extend(v.to_le_bytes());
            }
            MetaValue::I32(v) => {
                tag(out, 5);
                out.extend(v.to_le_bytes());
            }
            MetaValue::F32(v) => {
                tag(out, 6);
                out.extend(v.to_le_bytes());
            }
            MetaValue::Bool(v) => {
                tag(out, 7);
                out.push(u8::from(*v));
            }
            MetaValue::Str(v) => {
                tag(out, keys::TYPE_STRING);
                encode_str(out, v);
            }
            MetaValue::U64(v) => {
                tag(out, 10);
                out.extend(v.to_le_bytes());
            }
            MetaValue::Strs(v) => {
                array(out, keys::TYPE_STRING, v.len());
                v.iter().for_each(|text| encode_str(out, text));
            }
            MetaValue::F32s(v) => {
                array(out, 6, v.len());
                v.iter().for_each(|x| out.extend(x.to_le_bytes()));
            }
            MetaValue::I32s(v) => {
                array(out, 5, v.len());
                v.iter().for_each(|x| out.extend(x.to_le_bytes()));
            }
        }
    }
}

fn encode_str(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// What a file will hold.
#[derive(Debug, Default)]
pub struct GgufWriter {
    metadata: Vec<(String, MetaValue)>,
    tensors: Vec<(String, FileDType, Vec<usize>)>,
}

impl GgufWriter {
    /// An empty list.
    pub fn new() -> GgufWriter {
        GgufWriter::default()
    }

    /// Adds a metadata entry.
    pub fn meta(&mut self, key: impl Into<String>, value: MetaValue) -> &mut GgufWriter {
        self.metadata.push((key.into(), value));
        self
    }

    /// Adds a tensor; `shape` outermost first.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        dtype: FileDType,
        shape: &[usize],
    ) -> &mut GgufWriter {
        self.tensors.push((name.into(), dtype, shape.to_vec()));
        self
    }

    /// Writes the header and waits for the data, in the order in which tensors were added.
    ///
    /// # Errors
    /// [`Error::Io`]; or [`Error::Format`] for what a reader would refuse: an empty or repeated key
    /// or name, a name of 64 bytes or more, a shape without 1 to 4 positive dimensions, a row that
    /// is no whole number of blocks, an element type that GGUF does not have.
    pub fn start(&self, path: &Path) -> Result<TensorWriter> {
        let refuse = |what: String| Error::format(path, what);
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.metadata.len() as u64).to_le_bytes());
        let mut seen = HashSet::new();
        for (key, value) in &self.metadata {
            if key.is_empty() || key == keys::ALIGNMENT || !seen.insert(key) {
                return Err(refuse(format!(
                    "cannot write metadata key {key:?}: empty, reserved or repeated"
                )));
            }
            encode_str(&mut header, key);
            value.encode(&mut header);
        }
        let mut offset = 0u64;
        let mut lens = Vec::with_capacity(self.tensors.len());
        let mut names = HashSet::new();
        for (name, dtype, shape) in &self.tensors {
            let refuse = |what: &str| refuse(format!("cannot write tensor {name:?}: {what}"));
            if name.is_empty() || name.len() >= 64 || !names.insert(name) {
                return Err(refuse("its name is empty, repeated or longer than 63 bytes"));
            }
            if shape.is_empty() || shape.len() > 4 || shape.contains(&0) {
                return Err(refuse(&format!(
                    "shape {shape:?}, wanted 1 to 4 dimensions of at least 1"
                )));
            }
            let id = dtype.ggml_id().ok_or_else(|| refuse(&format!("GGUF has no type {dtype}")))?;
            let dims: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
            let len = dtype.tensor_bytes(&dims).map_err(|what| refuse(&what))?;
            encode_str(&mut header, name);
            header.extend((dims.len() as u32).to_le_bytes());
            dims.iter().rev().for_each(|d| header.extend(d.to_le_bytes()));
            header.extend(id.to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset = align_up(len, DEFAULT_ALIGNMENT)
                .and_then(|padded| offset.checked_add(padded))
                .ok_or_else(|| refuse("the sizes add up past 2^64 bytes"))?;
            lens.push((name.clone(), len));
        }
        header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);

        let mut partial = path.as_os_str().to_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(|source| Error::io(&partial, source))?;
        let mut writer = TensorWriter {
            path: path.to_path_buf(),
            partial,
            file: Some(BufWriter::with_capacity(1 << 20, file)),
            lens,
            current: 0,
            written: 0,
        };
        writer.put(&header)?;
        writer.skip_full()?;
        Ok(writer)
    }
}

/// Takes the tensors' bytes. Dropped before [`TensorWriter::finish`], it removes what it wrote.
#[derive(Debug)]
pub struct TensorWriter {
    path: PathBuf,
    partial: PathBuf,
    /// `None` once finished.
    file: Option<BufWriter<File>>,
    lens: Vec<(String, u64)>,
    current: usize,
    /// Bytes of the current tensor that were written.
    written: u64,
}

impl TensorWriter {
    /// The tensor whose bytes come next, and how many of them are missing; `None` when all are written.
    pub fn expects(&self) -> Option<(&str, u64)> {
        self.lens.get(self.current).map(|(name, len)| (name.as_str(), len - self.written))
    }

    /// Appends bytes of the current tensor; when it is complete, the next one begins.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for more bytes than the current tensor has left.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.expects().map_or(0, |(_, left)| left);
        if bytes.len() as u64 > left {
            let name = self.expects().map_or("the last tensor", |(name, _)| name);
            let what = format!("{} bytes for {name}, which takes {left} more", bytes.len());
            return Err(Error::format(&self.path, what));
        }
        self.put(bytes)?;
        self.written += bytes.len() as u64;
        self.skip_full()
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] if a tensor's bytes are missing.
    pub fn finish(mut self) -> Result<()> {
        if let Some((name, left)) = self.expects() {
            return Err(Error::format(
                &self.path,
                format!("{left} bytes of {name} were not written"),
            ));
        }
        if let Some(mut file) = self.file.take() {
            let written = file.flush().and_then(|()| file.get_ref().sync_all());
            if let Err(source) = written.and_then(|()| std::fs::rename(&self.partial, &self.path)) {
                // Put back, so that dropping `self` removes the unfinished file.
                self.file = Some(file);
                return Err(Error::io(&self.path, source));
            }
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(|source| Error::io(&self.partial, source)),
            None => Ok(()),
        }
    }

    fn skip_full(&mut self) -> Result<()> {
        while let Some((_, 0)) = self.expects() {
            let len = self.written;
            let padding = len.next_multiple_of(DEFAULT_ALIGNMENT) - len;
            self.put(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize])?;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }
}

impl Drop for TensorWriter {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nothing useful can be done about a failure here: the unfinished file then stays.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}
