//! The tokenizer that the rest of Puna sees: text to ids and back, whatever file it came from.
//!
//! Holds the common part (special tokens, BOS and EOS, decoding by bytes); the files are read in
//! `gguf`, `hf` and `sentencepiece`, SentencePiece merging is in `spm`, byte-level BPE and
//! everything in a `tokenizer.json` is the tokenizers crate's.

use super::alphabet;
use super::hf::Hf;
use super::marks::{Marks, Span};
use super::spm::{Kind, Spm};
use super::stream::{StreamDecoder, StreamState};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};

/// Tokens that end a turn or a text in the chat formats in use; one of these in the vocabulary, as
/// a special token, ends generation.
pub(super) const END_TOKENS: [&str; 11] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<EOT>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

/// Longest text that is taken at once, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 30;

/// Ids with a meaning, and whether they are added by themselves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Specials {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
}

/// Byte-level BPE from GGUF: the crate merges, special tokens are ours.
pub(super) struct ByteBpe {
    pub(super) core: tokenizers::Tokenizer,
    pub(super) kinds: Box<[Kind]>,
    /// Bytes that have a token of their own; a text with any other would lose it.
    pub(super) has_byte: [bool; 256],
}

pub(super) enum Engine {
    Spm(Box<Spm>),
    ByteBpe(Box<ByteBpe>),
    Hf(Box<Hf>),
}

/// A model's tokenizer.
pub struct Tokenizer {
    pub(super) engine: Engine,
    /// Tokens recognised in a text (the engine `Hf` knows its own).
    marks: Marks,
    pub(super) specials: Specials,
    /// Ids that end a generation, EOS first.
    ends: Vec<u32>,
    about: String,
}

impl Tokenizer {
    pub(super) fn assemble(
        engine: Engine,
        marks: Marks,
        specials: Specials,
        about: String,
    ) -> Result<Self> {
        let mut tokenizer = Tokenizer { engine, marks, specials, ends: Vec::new(), about };
        for (name, add, id) in
            [("BOS", specials.add_bos, specials.bos), ("EOS", specials.add_eos, specials.eos)]
        {
            if add && id.is_none() {
                return Err(Error::Tokenizer(format!(
                    "{name} is to be added, but no token is named for it"
                )));
            }
        }
        tokenizer.find_ends();
        Ok(tokenizer)
    }

    fn find_ends(&mut self) {
        let mut ends: Vec<u32> = self.specials.eos.into_iter().collect();
        for token in END_TOKENS {
            if let Some(id) = self.token_to_id(token)
                && !ends.contains(&id)
                && self.is_special(id)
            {
                ends.push(id);
            }
        }
        self.ends = ends;
    }

    /// Names BOS and EOS for a tokenizer whose own files name none (a `tokenizer.json` alone); an
    /// id beyond the vocabulary is not taken.
    pub fn fill_ids(&mut self, bos: Option<u32>, eos: Option<u32>) {
        let n = self.vocab_size();
        let known = |id: Option<u32>| id.filter(|&id| (id as usize) < n);
        self.specials.bos = self.specials.bos.or(known(bos));
        self.specials.eos = self.specials.eos.or(known(eos));
        self.find_ends();
    }

    /// Ids of `text`. `add_special`: BOS and EOS are added exactly as the model's own
    /// configuration says. Special tokens written in the text are recognised iff `parse_special`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when a character has no token.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(Error::Tokenizer(format!(
                "a text of {} bytes, at most {MAX_TEXT_BYTES} are taken at once",
                text.len()
            )));
        }
        if let Engine::Hf(hf) = &self.engine {
            return hf.encode(text, add_special, parse_special);
        }
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if add_special && self.specials.add_bos {
            ids.extend(self.specials.bos);
        }
        let mut first = true;
        let mut after_special = true;
        for span in self.marks.split(text, parse_special) {
            match span {
                Span::Token(id) => {
                    ids.push(id);
                    after_special = true;
                }
                Span::Text(text) => {
                    match &self.engine {
                        Engine::Spm(spm) => spm.encode(text, first, after_special, &mut ids)?,
                        Engine::ByteBpe(bpe) => bpe.encode(text, &mut ids)?,
                        Engine::Hf(_) => {}
                    }
                    after_special = false;
                }
            }
            first = false;
        }
        if add_special && self.specials.add_eos {
            ids.extend(self.specials.eos);
        }
        Ok(ids)
    }

    /// Text of `ids`; special tokens are left out if `skip_special`. Bytes that are no UTF-8
    /// become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for an id beyond the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut stream = self.stream(skip_special);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(id)?);
        }
        text.push_str(&stream.finish()?);
        Ok(text)
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        match &self.engine {
            Engine::Spm(spm) => spm.len(),
            Engine::ByteBpe(bpe) => bpe.kinds.len(),
            Engine::Hf(hf) => hf.vocab_size(),
        }
    }

    /// The token that begins a text, if there is one.
    pub fn bos_id(&self) -> Option<u32> {
        self.specials.bos
    }

    /// The token that ends a text, if there is one.
    pub fn eos_id(&self) -> Option<u32> {
        self.specials.eos
    }

    /// The token that stands for what is not in the vocabulary.
    pub fn unk_id(&self) -> Option<u32> {
        self.specials.unk
    }

    /// The token that fills up short rows.
    pub fn pad_id(&self) -> Option<u32> {
        self.specials.pad
    }

    /// All ids that end a generation: EOS first, then the vocabulary's other end-of-turn and
    /// end-of-text tokens.
    pub fn eos_ids(&self) -> &[u32] {
        &self.ends
    }

    /// Whether `id` is a control token: never part of the text, left out by `skip_special`.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.engine {
            Engine::Spm(spm) => {
                spm.piece(id).is_some_and(|p| matches!(p.kind, Kind::Control | Kind::Unknown))
            }
            Engine::ByteBpe(bpe) => bpe.is_special(id),
            Engine::Hf(hf) => hf.is_special(id),
        }
    }

    /// The id whose token has exactly this text (in the vocabulary's own spelling: `▁the`, `Ġthe`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.engine {
            Engine::Spm(spm) => spm.id(token),
            Engine::ByteBpe(bpe) => bpe.core.token_to_id(token),
            Engine::Hf(hf) => hf.token_to_id(token),
        }
    }

    /// The token's text in the vocabulary's own spelling.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        match &self.engine {
            Engine::Spm(spm) => spm.piece(id).map(|p| p.text.to_string()),
            Engine::ByteBpe(bpe) => bpe.core.id_to_token(id),
            Engine::Hf(hf) => hf.id_to_token(id),
        }
    }

    /// The bytes that one token stands for in the middle of a text; they need not be whole
    /// characters. A control token gives its own spelling.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for an id beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.push_bytes(id, false, false, &mut bytes)?;
        Ok(bytes)
    }

    /// SHA-256, in hexadecimal, over everything that decides which ids a text gets.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the vocabulary cannot be written out.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(format!("{}\0{:?}\0", self.about, self.specials));
        match &self.engine {
            Engine::Spm(spm) => {
                hash.update(format!("{:?}\0", spm.rules()));
                for piece in (0..spm.len() as u32).filter_map(|id| spm.piece(id)) {
                    hash.update((piece.text.len() as u64).to_le_bytes());
                    hash.update(piece.text.as_bytes());
                    hash.update(piece.score.to_bits().to_le_bytes());
                    hash.update(format!("{:?}\0", piece.kind));
                }
            }
            Engine::ByteBpe(bpe) => {
                hash.update(format!("{:?}\0", bpe.kinds));
                let core = bpe.core.to_string(false);
                hash.update(core.map_err(|e| Error::Tokenizer(format!("fingerprint: {e}")))?);
            }
            Engine::Hf(hf) => hash.update(hf.to_json()?),
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// One line for `puna info`: family, pre-tokenizer, sizes, special tokens.
    pub fn describe(&self) -> String {
        let mut line = self.about.clone();
        let s = &self.specials;
        let own = matches!(self.engine, Engine::Hf(_));
        for (name, id, added) in [("BOS", s.bos, s.add_bos), ("EOS", s.eos, s.add_eos)] {
            if let Some(id) = id {
                let token = self.id_to_token(id).unwrap_or_default();
                let how = match (own, added) {
                    (true, _) => "",
                    (false, true) => " (added)",
                    (false, false) => " (not added)",
                };
                line.push_str(&format!(", {name} {id} {token}{how}"));
            }
        }
        line
    }

    /// Incremental decoder of a whole text: `push(id)` returns the text that is now complete
    /// (never half a UTF-8 character), `finish()` the rest. In total the same as
    /// [`decode`](Self::decode).
    pub fn stream(&self, skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder::new(self, skip_special, self.strip_left())
    }

    /// The state of [`stream`](Self::stream), for those who keep the tokenizer elsewhere.
    pub fn stream_state(&self, skip_special: bool) -> StreamState {
        StreamState::new(skip_special, self.strip_left())
    }

    /// Spaces that a text begins with and its ids do not mean.
    fn strip_left(&self) -> usize {
        match &self.engine {
            Engine::Spm(spm) => usize::from(spm.rules().add_space_prefix),
            Engine::ByteBpe(_) => 0,
            Engine::Hf(hf) => hf.strip_left(),
        }
    }

    /// As [`stream`](Self::stream), for ids that go on after a prompt: the space in front of the
    /// first word is kept.
    pub fn stream_continuation(&self, skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder::new(self, skip_special, 0)
    }

    /// Appends the bytes that `id` stands for; `first`: nothing was decoded before it.
    pub(super) fn push_bytes(
        &self,
        id: u32,
        first: bool,
        skip_special: bool,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let unknown = || {
            Error::Tokenizer(format!("id {id} is beyond the vocabulary of {}", self.vocab_size()))
        };
        match &self.engine {
            Engine::Spm(spm) => {
                spm.push_text(spm.piece(id).ok_or_else(unknown)?, skip_special, out);
            }
            Engine::ByteBpe(bpe) => {
                let kind = *bpe.kinds.get(id as usize).ok_or_else(unknown)?;
                match kind {
                    Kind::Control | Kind::Unknown if skip_special => {}
                    _ => {
                        let token = bpe.core.id_to_token(id).ok_or_else(unknown)?;
                        match kind {
                            Kind::Byte(byte) => out.push(byte),
                            Kind::Normal | Kind::Unused => alphabet::push_token(&token, out),
                            // Written out as they are, not in the byte alphabet.
                            _ => out.extend_from_slice(token.as_bytes()),
                        }
                    }
                }
            }
            Engine::Hf(hf) => hf.push_bytes(id, first, skip_special, out)?.ok_or_else(unknown)?,
        }
        Ok(())
    }
}

impl ByteBpe {
    fn is_special(&self, id: u32) -> bool {
        matches!(self.kinds.get(id as usize), Some(Kind::Control | Kind::Unknown))
    }

    fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        if let Some(byte) = text.bytes().find(|&b| !self.has_byte[usize::from(b)]) {
            return Err(Error::Tokenizer(format!(
                "the vocabulary has no token for byte {byte:#04x}"
            )));
        }
        let encoding = self
            .core
            .encode_fast(text, false)
            .map_err(|e| Error::Tokenizer(format!("encoding failed: {e}")))?;
        out.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}
