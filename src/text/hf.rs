//! Tokenizers of a Hugging Face directory: `tokenizer.json` through the tokenizers crate, or a
//! SentencePiece `tokenizer.model` through our own code; with `tokenizer_config.json`,
//! `special_tokens_map.json`, `added_tokens.json` and `chat_template.jinja` where they are there.
//!
//! With a `tokenizer.json`, BOS and EOS are added by its own post-processor and nothing else.

use super::TextParts;
use super::alphabet;
use super::marks::Marks;
use super::sentencepiece;
use super::spm::{self, Kind, Piece, Spm};
use super::template::ChatTemplate;
use super::tokenizer::{Engine, Specials, Tokenizer};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use tokenizers::{Model, ModelWrapper};

/// Largest tokenizer file that is read; the largest public ones have about 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Largest configuration or template file that is read.
const MAX_CONFIG_BYTES: u64 = 32 << 20;

/// Most tokens that `added_tokens` may add to a SentencePiece vocabulary.
const MAX_ADDED_TOKENS: usize = 1 << 20;

/// How tokens become text again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Decoding {
    /// Characters of the byte alphabet.
    ByteLevel,
    /// U+2581 for spaces, `<0x..>` for bytes; that many spaces stripped from the beginning.
    Spm { bytes: bool, strip: usize },
    /// Tokens with spaces between (no decoder in the file).
    Spaced,
}

/// A `tokenizer.json`.
pub(super) struct Hf {
    /// Whether special tokens in a text are recognised is a switch inside the crate's tokenizer,
    /// hence the lock: shared while the switch stands right, exclusive to turn it.
    core: RwLock<tokenizers::Tokenizer>,
    special: HashSet<u32>,
    decoding: Decoding,
    vocab_size: usize,
}

/// Runs a call into the tokenizers crate; a panic there on a malformed file is an error here.
fn guarded<T>(what: &str, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| Error::Tokenizer(format!("{what}: {e}"))),
        Err(_) => Err(Error::Tokenizer(format!("{what}: the file's parts contradict each other"))),
    }
}

impl Hf {
    pub(super) fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>> {
        let run = |core: &tokenizers::Tokenizer| {
            guarded("encoding failed", || core.encode_fast(text, add_special))
                .map(|encoding| encoding.get_ids().to_vec())
        };
        {
            let core = self.core.read().unwrap_or_else(PoisonError::into_inner);
            if core.get_encode_special_tokens() != parse_special {
                return run(&core);
            }
        }
        let mut core = self.core.write().unwrap_or_else(PoisonError::into_inner);
        // The crate's switch means: treat special tokens in a text as ordinary characters.
        core.set_encode_special_tokens(!parse_special);
        run(&core)
    }

    /// The tokenizer as its own file would hold it.
    pub(super) fn to_json(&self) -> Result<String> {
        let core = self.core.read().unwrap_or_else(PoisonError::into_inner);
        guarded("fingerprint", || core.to_string(false))
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.core.read().unwrap_or_else(PoisonError::into_inner).token_to_id(token)
    }

    pub(super) fn id_to_token(&self, id: u32) -> Option<String> {
        self.core.read().unwrap_or_else(PoisonError::into_inner).id_to_token(id)
    }

    pub(super) fn is_byte_level(&self) -> bool {
        self.decoding == Decoding::ByteLevel
    }

    /// Whether spaces are escaped as in SentencePiece.
    pub(super) fn is_spm(&self) -> bool {
        matches!(self.decoding, Decoding::Spm { .. })
    }

    /// The file's content as it was understood.
    pub(super) fn json(&self) -> Result<Value> {
        let core = self.core.read().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_value(&*core).map_err(|e| Error::Tokenizer(format!("tokenizer.json: {e}")))
    }

    /// A token of a BPE vocabulary that its merges do not make from its own text; `None` where
    /// there is none, so that looking a whole word up first changes nothing.
    pub(super) fn unmerged_token(&self) -> Result<Option<String>> {
        let core = self.core.read().unwrap_or_else(PoisonError::into_inner);
        let ModelWrapper::BPE(model) = core.get_model() else { return Ok(None) };
        let added = core.get_added_tokens_decoder();
        let mut merging = model.clone();
        merging.ignore_merges = false;
        for (text, id) in merging.get_vocab() {
            if added.contains_key(&id) {
                continue;
            }
            let made = guarded("merging", || merging.tokenize(&text))?;
            if made.len() != 1 || made[0].id != id {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    pub(super) fn strip_left(&self) -> usize {
        match self.decoding {
            Decoding::Spm { strip, .. } => strip,
            Decoding::ByteLevel | Decoding::Spaced => 0,
        }
    }

    /// Appends the bytes of a token; `None`: there is no such id.
    pub(super) fn push_bytes(
        &self,
        id: u32,
        first: bool,
        skip_special: bool,
        out: &mut Vec<u8>,
    ) -> Result<Option<()>> {
        let Some(token) = self.id_to_token(id) else { return Ok(None) };
        if skip_special && self.is_special(id) {
            return Ok(Some(()));
        }
        match self.decoding {
            Decoding::ByteLevel => alphabet::push_token(&token, out),
            Decoding::Spm { bytes, .. } => match spm::byte_value(&token).filter(|_| bytes) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(token.replace(spm::SPACE, " ").as_bytes()),
            },
            Decoding::Spaced => {
                if !first {
                    out.push(b' ');
                }
                out.extend_from_slice(token.as_bytes());
            }
        }
        Ok(Some(()))
    }
}

/// What the decoder of a `tokenizer.json` does, from its JSON form.
fn decoding(decoder: &Value) -> Result<Decoding, String> {
    let kind = |step: &Value| step["type"].as_str().unwrap_or_default().to_string();
    let single = std::slice::from_ref(decoder);
    let steps = match decoder {
        Value::Null => return Ok(Decoding::Spaced),
        _ if kind(decoder) == "Sequence" => {
            decoder["decoders"].as_array().map_or(single, Vec::as_slice)
        }
        _ => single,
    };
    if let [step] = steps
        && kind(step) == "ByteLevel"
    {
        return Ok(Decoding::ByteLevel);
    }
    let (mut bytes, mut strip, mut spaces) = (false, 0, false);
    for step in steps {
        match kind(step).as_str() {
            "Replace"
                if step["pattern"]["String"] == spm::SPACE && step["content"] == " " && !spaces =>
            {
                spaces = true;
            }
            "Metaspace" if step["replacement"] == spm::SPACE && !spaces => {
                spaces = true;
                strip = usize::from(step["prepend_scheme"] != "never");
            }
            "ByteFallback" => bytes = true,
            "Fuse" => {}
            "Strip" if step["content"] == " " && step["stop"] == 0 => {
                strip = step["start"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            }
            other => return Err(format!("decoder step {other} with these settings")),
        }
    }
    if spaces { Ok(Decoding::Spm { bytes, strip }) } else { Err("this decoder".into()) }
}

fn read_file(path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > max => {
            Err(Error::format(path, format!("{} bytes, at most {max} are read", meta.len())))
        }
        Ok(_) => std::fs::read(path).map(Some).map_err(|e| Error::io(path, e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// A JSON object of the directory; an absent file is an empty object.
fn read_config(path: &Path) -> Result<Value> {
    let Some(bytes) = read_file(path, MAX_CONFIG_BYTES)? else {
        return Ok(Value::Object(serde_json::Map::new()));
    };
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::format(path, e.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(Error::format(path, "not a JSON object")) }
}

/// The text of a token that is given as a string or as an object with `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

struct Configs {
    tokenizer: Value,
    special_map: Value,
}

impl Configs {
    fn read(dir: &Path) -> Result<Configs> {
        Ok(Configs {
            tokenizer: read_config(&dir.join("tokenizer_config.json"))?,
            special_map: read_config(&dir.join("special_tokens_map.json"))?,
        })
    }

    /// The token named `bos_token` and the like.
    fn named(&self, key: &str) -> Option<&str> {
        token_text(&self.tokenizer[key]).or_else(|| token_text(&self.special_map[key]))
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.tokenizer[key].as_bool()
    }
}

impl TextParts {
    /// Tokenizer and chat template of a Hugging Face directory.
    ///
    /// # Errors
    /// [`Error::Format`] when neither `tokenizer.json` nor `tokenizer.model` is there, or a file
    /// breaks its format; [`Error::Unsupported`] for a tokenizer of another kind.
    pub fn from_hf_dir(dir: &Path) -> Result<TextParts> {
        let configs = Configs::read(dir)?;
        let json = dir.join("tokenizer.json");
        let model = dir.join("tokenizer.model");
        let tokenizer = if let Some(bytes) = read_file(&json, MAX_TOKENIZER_BYTES)? {
            from_json(&bytes, &json, &configs)?
        } else if let Some(bytes) = read_file(&model, MAX_TOKENIZER_BYTES)? {
            from_model(&bytes, &model, dir, &configs)?
        } else {
            return Err(Error::format(dir, "neither tokenizer.json nor tokenizer.model is there"));
        };
        Ok(TextParts { tokenizer, template: template(dir, &configs)? })
    }
}

impl TextParts {
    /// The tokenizer of `tokenizer.model`, whether or not a `tokenizer.json` stands beside it.
    ///
    /// # Errors
    /// As [`TextParts::from_hf_dir`].
    pub(super) fn from_hf_model(dir: &Path) -> Result<Tokenizer> {
        let configs = Configs::read(dir)?;
        let path = dir.join("tokenizer.model");
        match read_file(&path, MAX_TOKENIZER_BYTES)? {
            Some(bytes) => from_model(&bytes, &path, dir, &configs),
            None => Err(Error::format(dir, "no tokenizer.model is there")),
        }
    }
}

fn template(dir: &Path, configs: &Configs) -> Result<Option<ChatTemplate>> {
    let path = dir.join("chat_template.jinja");
    if let Some(bytes) = read_file(&path, MAX_CONFIG_BYTES)? {
        let source = String::from_utf8(bytes).map_err(|_| Error::format(&path, "not UTF-8"))?;
        return ChatTemplate::jinja(source).map(Some);
    }
    let source = match &configs.tokenizer["chat_template"] {
        Value::String(source) => Some(source.as_str()),
        Value::Array(named) => {
            named.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str())
        }
        _ => None,
    };
    source.map(ChatTemplate::jinja).transpose()
}

fn from_json(bytes: &[u8], path: &Path, configs: &Configs) -> Result<Tokenizer> {
    let fault = |e: Error| Error::format(path, e.to_string());
    let mut core =
        guarded("tokenizer.json", || tokenizers::Tokenizer::from_bytes(bytes)).map_err(fault)?;
    // Settings of some past run; here nothing is cut or filled up behind the user's back.
    guarded("truncation", || core.with_truncation(None).map(|_| ())).map_err(fault)?;
    core.with_padding(None);
    let decoder =
        serde_json::to_value(core.get_decoder()).map_err(|e| Error::format(path, e.to_string()))?;
    let decoding = decoding(&decoder)
        .map_err(|what| Error::Unsupported(format!("{}: {what}", path.display())))?;
    let added = core.get_added_tokens_decoder();
    let special: HashSet<u32> =
        added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
    let family = match core.get_model() {
        ModelWrapper::BPE(_) => "BPE",
        ModelWrapper::Unigram(_) => "unigram",
        ModelWrapper::WordLevel(_) => "word-level",
        ModelWrapper::WordPiece(_) => "WordPiece",
    };
    let style = match decoding {
        Decoding::ByteLevel => "byte-level ",
        Decoding::Spm { bytes: true, .. } => "SentencePiece-style byte-fallback ",
        Decoding::Spm { .. } => "SentencePiece-style ",
        Decoding::Spaced => "",
    };
    let last = added.keys().max().map_or(0, |&id| id as usize + 1);
    let vocab_size = core.get_vocab_size(true).max(last);
    let about =
        format!("{style}{family} (tokenizer.json), {vocab_size} tokens, {} added", added.len());
    let id = |key: &str| configs.named(key).and_then(|token| core.token_to_id(token));
    let specials = Specials {
        bos: id("bos_token"),
        eos: id("eos_token"),
        unk: id("unk_token"),
        pad: id("pad_token"),
        add_bos: false,
        add_eos: false,
    };
    let hf = Hf { core: RwLock::new(core), special, decoding, vocab_size };
    Tokenizer::assemble(Engine::Hf(Box::new(hf)), Marks::new(), specials, about)
}

/// Tokens added beside a `tokenizer.model`: id, text, special.
fn added_tokens(dir: &Path, configs: &Configs) -> Result<Vec<(u64, String, bool)>> {
    let mut added = Vec::new();
    if let Some(by_id) = configs.tokenizer["added_tokens_decoder"].as_object() {
        for (id, token) in by_id {
            if let (Ok(id), Some(text)) = (id.parse(), token_text(token)) {
                added.push((id, text.to_string(), token["special"] == true));
            }
        }
    } else if let Some(ids) = read_config(&dir.join("added_tokens.json"))?.as_object() {
        let special = |text: &str| {
            let map = &configs.special_map;
            map["additional_special_tokens"]
                .as_array()
                .is_some_and(|list| list.iter().any(|t| token_text(t) == Some(text)))
                || ["bos_token", "eos_token", "unk_token", "pad_token"]
                    .iter()
                    .any(|key| configs.named(key) == Some(text))
        };
        for (text, id) in ids {
            if let Some(id) = id.as_u64() {
                added.push((id, text.clone(), special(text)));
            }
        }
    }
    added.sort_by_key(|&(id, ..)| id);
    Ok(added)
}

fn from_model(bytes: &[u8], path: &Path, dir: &Path, configs: &Configs) -> Result<Tokenizer> {
    let model = sentencepiece::parse(bytes, path)?;
    let (mut pieces, mut rules) = (model.pieces, model.rules);
    let n_model = pieces.len();
    let mut marks = Marks::new();
    for (id, piece) in pieces.iter().enumerate() {
        if matches!(piece.kind, Kind::Control | Kind::Unknown) {
            marks.add(&piece.text, id as u32, true)?;
        }
    }
    let added = added_tokens(dir, configs)?;
    for (id, text, special) in &added {
        let at = usize::try_from(*id).ok().filter(|&at| at < n_model + MAX_ADDED_TOKENS);
        let Some(at) = at.filter(|&at| at <= pieces.len()) else {
            return Err(Error::format(
                path,
                format!("added token {text:?} has id {id}, but the tokens end at {}", pieces.len()),
            ));
        };
        let kind = if *special { Kind::Control } else { Kind::UserDefined };
        if at == pieces.len() {
            pieces.push(Piece { text: text.as_str().into(), score: 0.0, kind });
        } else if *pieces[at].text != **text {
            return Err(Error::format(
                path,
                format!("added token {text:?} has id {id}, which is {:?}", pieces[at].text),
            ));
        }
        marks.add(text, at as u32, *special)?;
    }
    rules.prefix_after_special = configs.flag("legacy") != Some(false);
    rules.add_space_prefix &= configs.flag("add_prefix_space") != Some(false);
    let n = pieces.len();
    let spm =
        Spm::new(pieces, model.unk, true, rules).map_err(|e| Error::format(path, e.to_string()))?;
    if model.byte_fallback && !spm.has_byte_fallback() {
        return Err(Error::format(path, "byte fallback without all 256 byte pieces"));
    }
    let id = |key: &str, own: Option<u32>| configs.named(key).and_then(|t| spm.id(t)).or(own);
    let bos = id("bos_token", model.bos);
    let specials = Specials {
        bos,
        eos: id("eos_token", model.eos),
        unk: id("unk_token", model.unk),
        pad: id("pad_token", model.pad),
        add_bos: configs.flag("add_bos_token").unwrap_or(bos.is_some()),
        add_eos: configs.flag("add_eos_token").unwrap_or(false),
    };
    let about = format!(
        "SentencePiece BPE (tokenizer.model{}), {n} tokens",
        if spm.has_byte_fallback() { ", byte fallback" } else { "" }
    );
    Tokenizer::assemble(Engine::Spm(Box::new(spm)), marks, specials, about)
}
