//! Reads SentencePiece's `tokenizer.model`: a protocol-buffers message. Only the fields that
//! matter for BPE encoding are taken; every length is checked against the bytes that are left.
//!
//! Source: the message definition of SentencePiece (`ModelProto`: 1 pieces, 2 trainer, 3
//! normaliser; a piece: 1 text, 2 score, 3 type) and the protocol-buffers wire format.

use super::spm::{Kind, Piece, Rules};
use crate::error::{Error, Result};
use std::path::Path;

/// What a `tokenizer.model` says.
pub(super) struct Model {
    pub(super) pieces: Vec<Piece>,
    pub(super) rules: Rules,
    pub(super) byte_fallback: bool,
    pub(super) unk: Option<u32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) pad: Option<u32>,
}

/// A field's value on the wire.
enum Value<'b> {
    Number(u64),
    Float(f32),
    Bytes(&'b [u8]),
}

/// A bounded reader over one message; `base` is its place in the file, for error messages.
struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    base: usize,
}

type Fault = (usize, String);

impl<'b> Reader<'b> {
    fn fault(&self, what: impl Into<String>) -> Fault {
        (self.base + self.at, what.into())
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(self.fault("the file ends inside a number"));
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.fault("a number longer than 10 bytes"))
    }

    fn take(&mut self, n: u64) -> Result<&'b [u8], Fault> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(n).ok().filter(|&n| n <= left) {
            Some(n) => {
                let bytes = &self.bytes[self.at..self.at + n];
                self.at += n;
                Ok(bytes)
            }
            None => Err(self.fault(format!("a field of {n} bytes, but {left} are left"))),
        }
    }

    /// The next field: number, value, and where the value's bytes begin.
    fn field(&mut self) -> Result<Option<(u64, Value<'b>, usize)>, Fault> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let n = self.varint()?;
                let at = self.base + self.at;
                return Ok(Some((key >> 3, Value::Bytes(self.take(n)?), at)));
            }
            5 => {
                let raw = self.take(4)?;
                Value::Float(f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]))
            }
            other => return Err(self.fault(format!("wire type {other}, wanted 0, 1, 2 or 5"))),
        };
        Ok(Some((key >> 3, value, self.base + self.at)))
    }
}

#[derive(Default)]
struct Trainer {
    /// 1 unigram (the format's default), 2 BPE, 3 word, 4 char.
    model_type: Option<u64>,
    byte_fallback: bool,
    suffix_spaces: bool,
    unk: Option<i64>,
    bos: Option<i64>,
    eos: Option<i64>,
    pad: Option<i64>,
}

struct Normalizer {
    charsmap_bytes: usize,
    add_dummy_prefix: bool,
    remove_extra_spaces: bool,
    escape_spaces: bool,
}

/// Parses the bytes of a `tokenizer.model`; `path` is for error messages.
///
/// # Errors
/// [`Error::Format`] with the byte offset for anything that breaks the wire format;
/// [`Error::Unsupported`] for models other than BPE or with a normaliser of their own.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Model> {
    let (pieces, trainer, normalizer) =
        read(bytes).map_err(|(at, what)| Error::format_at(path, at as u64, what))?;
    let refuse = |what: &str| Err(Error::Unsupported(format!("{}: {what}", path.display())));
    match trainer.model_type.unwrap_or(1) {
        2 => {}
        1 => return refuse("a SentencePiece unigram model; LLaMA models have a BPE one"),
        other => return refuse(&format!("SentencePiece model type {other}, wanted BPE (2)")),
    }
    if normalizer.charsmap_bytes > 0 {
        return refuse("a SentencePiece model with a character normaliser (only identity is read)");
    }
    if trainer.suffix_spaces || !normalizer.escape_spaces {
        return refuse("a SentencePiece model that writes spaces as suffixes or unescaped");
    }
    if pieces.is_empty() {
        return Err(Error::format(path, "no pieces, wanted a SentencePiece model"));
    }
    let n = pieces.len();
    // An id of -1 means: none. The format's defaults are 0, 1, 2 and none.
    let id = |field: &str, value: Option<i64>, default: i64| match value.unwrap_or(default) {
        id if id < 0 => Ok(None),
        id if (id as u64) < n as u64 => Ok(Some(id as u32)),
        id => Err(Error::format(path, format!("{field} {id}, but there are {n} pieces"))),
    };
    let unk = id("unk_id", trainer.unk, 0)?;
    let bos = id("bos_id", trainer.bos, 1)?;
    let eos = id("eos_id", trainer.eos, 2)?;
    let pad = id("pad_id", trainer.pad, -1)?;
    let rules = Rules {
        add_space_prefix: normalizer.add_dummy_prefix,
        prefix_after_special: true,
        remove_extra_spaces: normalizer.remove_extra_spaces,
    };
    Ok(Model { pieces, rules, byte_fallback: trainer.byte_fallback, unk, bos, eos, pad })
}

fn read(bytes: &[u8]) -> Result<(Vec<Piece>, Trainer, Normalizer), Fault> {
    let mut pieces = Vec::new();
    let mut trainer = Trainer::default();
    let mut normalizer = Normalizer {
        charsmap_bytes: 0,
        add_dummy_prefix: true,
        remove_extra_spaces: true,
        escape_spaces: true,
    };
    let mut reader = Reader { bytes, at: 0, base: 0 };
    while let Some((number, value, base)) = reader.field()? {
        let Value::Bytes(bytes) = value else { continue };
        let inner = Reader { bytes, at: 0, base };
        match number {
            1 => pieces.push(piece(inner)?),
            2 => read_trainer(inner, &mut trainer)?,
            3 => read_normalizer(inner, &mut normalizer)?,
            _ => {}
        }
    }
    Ok((pieces, trainer, normalizer))
}

fn piece(mut reader: Reader<'_>) -> Result<Piece, Fault> {
    let (mut text, mut score, mut code) = ("", 0.0, 1i64);
    while let Some((number, value, base)) = reader.field()? {
        match (number, value) {
            (1, Value::Bytes(raw)) => {
                text = std::str::from_utf8(raw)
                    .map_err(|_| (base, "a piece that is not UTF-8".to_string()))?;
            }
            (2, Value::Float(value)) => score = value,
            (3, Value::Number(value)) => {
                code = i64::try_from(value)
                    .ok()
                    .filter(|code| (1..=6).contains(code))
                    .ok_or_else(|| (base, format!("piece type {value}, wanted 1 to 6")))?;
            }
            _ => {}
        }
    }
    if code == 6 && super::spm::byte_value(text).is_none() {
        return Err((reader.base, format!("byte piece {text:?}, wanted <0x00> to <0xFF>")));
    }
    Ok(Piece { text: text.into(), score, kind: Kind::from_code(code, text) })
}

fn read_trainer(mut reader: Reader<'_>, trainer: &mut Trainer) -> Result<(), Fault> {
    while let Some((number, value, _)) = reader.field()? {
        let Value::Number(value) = value else { continue };
        // Negative 32-bit values are written sign-extended to 64 bits.
        match number {
            3 => trainer.model_type = Some(value),
            24 => trainer.suffix_spaces = value != 0,
            35 => trainer.byte_fallback = value != 0,
            40 => trainer.unk = Some(value as i64),
            41 => trainer.bos = Some(value as i64),
            42 => trainer.eos = Some(value as i64),
            43 => trainer.pad = Some(value as i64),
            _ => {}
        }
    }
    Ok(())
}

fn read_normalizer(mut reader: Reader<'_>, normalizer: &mut Normalizer) -> Result<(), Fault> {
    while let Some((number, value, _)) = reader.field()? {
        match (number, value) {
            (2, Value::Bytes(bytes)) => normalizer.charsmap_bytes = bytes.len(),
            (3, Value::Number(value)) => normalizer.add_dummy_prefix = value != 0,
            (4, Value::Number(value)) => normalizer.remove_extra_spaces = value != 0,
            (5, Value::Number(value)) => normalizer.escape_spaces = value != 0,
            _ => {}
        }
    }
    Ok(())
}
