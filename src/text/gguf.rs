//! Tokenizers from GGUF metadata: family `llama` (SentencePiece BPE with scores and byte tokens)
//! and family `gpt2` (byte-level BPE with a named pre-tokenizer).
//!
//! Holds what the metadata means; reading the file is the caller's. Defaults and the meaning of
//! `tokenizer.ggml.pre` are those of llama.cpp. In particular `smollm` cuts every digit off before
//! anything else, so that `"\n\n1"` is one token of two newlines and a digit; a converter that
//! drops that step gives two newline tokens there.

use super::alphabet;
use super::marks::Marks;
use super::spm::{Kind, Piece, Rules, Spm};
use super::tokenizer::{ByteBpe, Engine, Specials, Tokenizer};
use crate::error::{Error, Result};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// The tokenizer's metadata of a GGUF file (`tokenizer.*`), as it stands there.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab<'a> {
    /// `tokenizer.ggml.model`: `llama` or `gpt2`.
    pub model: &'a str,
    /// `tokenizer.ggml.pre`, for `gpt2`.
    pub pre: Option<&'a str>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<&'a str>,
    /// `tokenizer.ggml.scores`, one a token; `llama` needs them.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.token_type`, one a token: 1 normal, 2 unknown, 3 control, 4 user-defined,
    /// 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// `tokenizer.ggml.merges`, best first, each two tokens with a space between; for `gpt2`.
    pub merges: Option<Vec<&'a str>>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos_id: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos_id: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk_id: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad_id: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`, for `llama`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<&'a str>,
}

/// Contractions, words, numbers, punctuation and white space as LLaMA 3 cuts them.
const LLAMA3_REGEX: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Words by letter case, single digits, punctuation and white space as Mistral's Tekken cuts them.
const TEKKEN_REGEX: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a named pre-tokenizer works.
pub(super) struct Pre {
    pub(super) name: &'static str,
    pub(super) steps: Vec<PreTokenizerWrapper>,
    pub(super) ignore_merges: bool,
    add_bos: bool,
}

fn split(regex: &str) -> Result<PreTokenizerWrapper> {
    Split::new(SplitPattern::Regex(regex.into()), SplitDelimiterBehavior::Isolated, false)
        .map(PreTokenizerWrapper::Split)
        .map_err(|e| Error::Tokenizer(format!("pre-tokenizer: {e}")))
}

/// Turns bytes into the alphabet; with `regex` it first cuts as GPT-2 does.
fn byte_level(regex: bool) -> PreTokenizerWrapper {
    PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, regex))
}

/// Names of the pre-tokenizers, each once.
pub(super) const fn pre_names() -> [&'static str; 5] {
    ["gpt-2", "smollm", "llama-bpe", "tekken", "default"]
}

pub(super) fn pre_tokenizer(name: Option<&str>) -> Result<Pre> {
    let pre = |name, steps| Pre { name, steps, ignore_merges: false, add_bos: false };
    Ok(match name {
        None | Some("" | "default") => pre(
            "default",
            vec![
                split(r"[\p{P}\$\+<=>\^~\|]+")?,
                byte_level_regex()?,
                split(r"\p{N}+")?,
                split("[0-9][0-9][0-9]")?,
                byte_level(false),
            ],
        ),
        Some("gpt-2") => pre("gpt-2", vec![byte_level(true)]),
        Some("smollm") => {
            pre("smollm", vec![PreTokenizerWrapper::Digits(Digits::new(true)), byte_level(true)])
        }
        Some("llama-bpe" | "llama3" | "llama-v3") => Pre {
            ignore_merges: true,
            add_bos: true,
            ..pre("llama-bpe", vec![split(LLAMA3_REGEX)?, byte_level(false)])
        },
        Some("tekken") => Pre {
            ignore_merges: true,
            add_bos: true,
            ..pre("tekken", vec![split(TEKKEN_REGEX)?, byte_level(false)])
        },
        Some(other) => {
            return Err(Error::Unsupported(format!(
                "tokenizer.ggml.pre {other:?}; known: default, gpt-2, llama-bpe, llama3, llama-v3, smollm, tekken"
            )));
        }
    })
}

/// GPT-2's cuts on plain text, for a step that is followed by others.
fn byte_level_regex() -> Result<PreTokenizerWrapper> {
    split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
}

impl Tokenizer {
    /// A tokenizer from GGUF metadata.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another family or pre-tokenizer, by name;
    /// [`Error::Tokenizer`] for metadata that contradicts itself.
    pub fn from_gguf(vocab: &GgufVocab<'_>) -> Result<Tokenizer> {
        let n = vocab.tokens.len();
        let same_length = |key: &str, got: Option<usize>| match got {
            Some(got) if got != n => Err(Error::Tokenizer(format!(
                "tokenizer.ggml.{key} has {got} entries, but there are {n} tokens"
            ))),
            _ => Ok(()),
        };
        if n == 0 || u32::try_from(n).is_err() {
            return Err(Error::Tokenizer(format!("tokenizer.ggml.tokens has {n} entries")));
        }
        same_length("scores", vocab.scores.as_ref().map(Vec::len))?;
        same_length("token_type", vocab.token_types.as_ref().map(Vec::len))?;
        for (key, id) in [
            ("bos", vocab.bos_id),
            ("eos", vocab.eos_id),
            ("unknown", vocab.unk_id),
            ("padding", vocab.pad_id),
        ] {
            if let Some(id) = id.filter(|&id| id as usize >= n) {
                return Err(Error::Tokenizer(format!(
                    "tokenizer.ggml.{key}_token_id is {id}, but there are {n} tokens"
                )));
            }
        }
        let kinds: Vec<Kind> = match &vocab.token_types {
            Some(types) => (types.iter().zip(&vocab.tokens))
                .map(|(&code, text)| Kind::from_code(i64::from(code), text))
                .collect(),
            None => vec![Kind::Normal; n],
        };
        match vocab.model {
            "llama" => llama(vocab, kinds),
            "gpt2" => gpt2(vocab, &kinds),
            other => Err(Error::Unsupported(format!(
                "tokenizer.ggml.model {other:?}; known: llama, gpt2"
            ))),
        }
    }
}

/// Tokens that are recognised in a text: control ones when asked, user-defined ones always.
fn marks(vocab: &GgufVocab<'_>, kinds: &[Kind]) -> Result<Marks> {
    let mut marks = Marks::new();
    for (id, (&kind, text)) in kinds.iter().zip(&vocab.tokens).enumerate() {
        match kind {
            Kind::Control | Kind::Unknown => marks.add(text, id as u32, true)?,
            Kind::UserDefined => marks.add(text, id as u32, false)?,
            Kind::Normal | Kind::Unused | Kind::Byte(_) => {}
        }
    }
    Ok(marks)
}

fn llama(vocab: &GgufVocab<'_>, mut kinds: Vec<Kind>) -> Result<Tokenizer> {
    let Some(scores) = &vocab.scores else {
        return Err(Error::Tokenizer(
            "tokenizer.ggml.scores is missing; the family llama merges by score".into(),
        ));
    };
    let n = vocab.tokens.len() as u32;
    // The family's own ids where the file gives none.
    let id = |given: Option<u32>, usual: u32| given.or((usual < n).then_some(usual));
    let (bos, eos, unk) = (id(vocab.bos_id, 1), id(vocab.eos_id, 2), id(vocab.unk_id, 0));
    if vocab.token_types.is_none() {
        for (kind, text) in kinds.iter_mut().zip(&vocab.tokens) {
            if let Some(byte) = super::spm::byte_value(text) {
                *kind = Kind::Byte(byte);
            }
        }
        for (id, kind) in [(bos, Kind::Control), (eos, Kind::Control), (unk, Kind::Unknown)] {
            if let Some(slot) = id.and_then(|id| kinds.get_mut(id as usize)) {
                *slot = kind;
            }
        }
    }
    let marks = marks(vocab, &kinds)?;
    let pieces = (vocab.tokens.iter().zip(scores).zip(&kinds))
        .map(|((&text, &score), &kind)| Piece { text: text.into(), score, kind })
        .collect();
    let rules = Rules {
        add_space_prefix: vocab.add_space_prefix.unwrap_or(true),
        prefix_after_special: true,
        remove_extra_spaces: false,
    };
    let spm = Spm::new(pieces, unk, false, rules)?;
    let specials = Specials {
        bos,
        eos,
        unk,
        pad: vocab.pad_id,
        add_bos: vocab.add_bos.unwrap_or(true),
        add_eos: vocab.add_eos.unwrap_or(false),
    };
    let about = format!(
        "SentencePiece BPE (GGUF llama{}), {n} tokens",
        if spm.has_byte_fallback() { ", byte fallback" } else { "" }
    );
    Tokenizer::assemble(Engine::Spm(Box::new(spm)), marks, specials, about)
}

fn gpt2(vocab: &GgufVocab<'_>, kinds: &[Kind]) -> Result<Tokenizer> {
    let Some(merges) = &vocab.merges else {
        return Err(Error::Tokenizer(
            "tokenizer.ggml.merges is missing; the family gpt2 merges by it".into(),
        ));
    };
    let pre = pre_tokenizer(vocab.pre)?;
    let marks = marks(vocab, kinds)?;
    let mut ids = Vocab::with_capacity(vocab.tokens.len());
    for (id, &text) in vocab.tokens.iter().enumerate() {
        let id = id as u32;
        let text = if text.is_empty() { format!("[EMPTY_{id}]") } else { text.to_string() };
        if let Some(first) = ids.insert(text, id) {
            return Err(Error::Tokenizer(format!(
                "tokens {first} and {id} have the same text {:?}",
                vocab.tokens[id as usize]
            )));
        }
    }
    let mut has_byte = [false; 256];
    for (byte, has) in (0..=255u8).zip(&mut has_byte) {
        *has = ids.contains_key(alphabet::char_of(byte).encode_utf8(&mut [0; 4]) as &str);
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (i, merge) in merges.iter().enumerate() {
        // The first part may itself begin with the separating space's character, but not be empty.
        let cut = merge.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(at, _)| at);
        let Some((left, right)) = cut.map(|at| (&merge[..at], &merge[at + 1..])) else {
            return Err(Error::Tokenizer(format!(
                "tokenizer.ggml.merges[{i}] is {merge:?}, wanted two tokens with a space between"
            )));
        };
        pairs.push((left.to_string(), right.to_string()));
    }
    let n_merges = pairs.len();
    let model = BPE::builder()
        .vocab_and_merges(ids, pairs)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(|e| Error::Tokenizer(format!("tokenizer.ggml.merges: {e}")))?;
    let mut core = tokenizers::Tokenizer::new(model);
    core.with_pre_tokenizer(Some(Sequence::new(pre.steps)));
    let specials = Specials {
        bos: vocab.bos_id,
        eos: vocab.eos_id,
        unk: vocab.unk_id,
        pad: vocab.pad_id,
        add_bos: vocab.add_bos.unwrap_or(pre.add_bos),
        add_eos: vocab.add_eos.unwrap_or(false),
    };
    let about = format!(
        "byte-level BPE (GGUF gpt2), pre-tokenizer {}, {} tokens, {n_merges} merges",
        pre.name,
        vocab.tokens.len()
    );
    let bpe = ByteBpe { core, kinds: kinds.into(), has_byte };
    Tokenizer::assemble(Engine::ByteBpe(Box::new(bpe)), marks, specials, about)
}
