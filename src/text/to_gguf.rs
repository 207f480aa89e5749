//! The tokenizer of a Hugging Face directory as GGUF metadata, where GGUF can express it: byte-level
//! BPE with one of the known pre-tokenizers, and SentencePiece.
//!
//! What GGUF has no words for is refused by name, because a file with a slightly other tokenizer is
//! worse than none.

use super::gguf::{pre_names, pre_tokenizer};
use super::hf::Hf;
use super::spm::{self, Kind, Spm};
use super::tokenizer::{Engine, Tokenizer};
use super::{GgufVocab, TextParts};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// A [`GgufVocab`] that owns its texts.
#[derive(Clone, Debug, Default)]
pub struct GgufVocabBuf {
    model: &'static str,
    pre: Option<&'static str>,
    tokens: Vec<String>,
    scores: Option<Vec<f32>>,
    types: Vec<i32>,
    merges: Option<Vec<String>>,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    unk_id: Option<u32>,
    pad_id: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: Option<bool>,
    chat_template: Option<String>,
    /// What the user should know about the result.
    pub notes: Vec<String>,
}

/// Token types of GGUF.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

fn refuse<T>(what: impl std::fmt::Display) -> Result<T> {
    Err(Error::Unsupported(format!("GGUF cannot express this tokenizer: {what}")))
}

impl GgufVocabBuf {
    /// The vocabulary as the metadata states it.
    pub fn view(&self) -> GgufVocab<'_> {
        fn texts(list: &[String]) -> Vec<&str> {
            list.iter().map(String::as_str).collect()
        }
        GgufVocab {
            model: self.model,
            pre: self.pre,
            tokens: texts(&self.tokens),
            scores: self.scores.clone(),
            token_types: Some(self.types.clone()),
            merges: self.merges.as_deref().map(texts),
            bos_id: self.bos_id,
            eos_id: self.eos_id,
            unk_id: self.unk_id,
            pad_id: self.pad_id,
            add_bos: Some(self.add_bos),
            add_eos: Some(self.add_eos),
            add_space_prefix: self.add_space_prefix,
            chat_template: self.chat_template.as_deref(),
        }
    }

    /// The tokenizer of a directory for a model with `vocab_size` embeddings; `None` where there is
    /// no tokenizer. Embeddings beyond the tokenizer's ids get unused tokens.
    ///
    /// # Errors
    /// As [`TextParts::from_hf_dir`]; [`Error::Unsupported`] for what GGUF cannot express.
    pub fn from_hf_dir(dir: &Path, vocab_size: usize) -> Result<Option<GgufVocabBuf>> {
        let model_file = dir.join("tokenizer.model");
        if !dir.join("tokenizer.json").exists() && !model_file.exists() {
            return Ok(None);
        }
        let TextParts { tokenizer, template } = TextParts::from_hf_dir(dir)?;
        let mut vocab = match &tokenizer.engine {
            Engine::Spm(spm) => of_spm(spm)?,
            Engine::Hf(hf) if hf.is_byte_level() => of_byte_level(hf)?,
            // The scores are in the other file.
            Engine::Hf(_) if model_file.exists() => match TextParts::from_hf_model(dir)?.engine {
                Engine::Spm(spm) => of_spm(&spm)?,
                _ => return refuse("tokenizer.model beside tokenizer.json"),
            },
            Engine::Hf(hf) if hf.is_spm() => of_spm_json(&hf.json()?)?,
            Engine::Hf(_) | Engine::ByteBpe(_) => {
                return refuse("neither byte-level BPE nor SentencePiece");
            }
        };
        let n = vocab.tokens.len();
        if n > vocab_size {
            return refuse(format!("{n} tokens for a model with {vocab_size} embeddings"));
        }
        for id in n..vocab_size {
            vocab.tokens.push(format!("[PAD{id}]"));
            vocab.types.push(UNUSED);
            if let Some(scores) = &mut vocab.scores {
                scores.push(-1e6);
            }
        }
        vocab.bos_id = tokenizer.bos_id();
        vocab.eos_id = tokenizer.eos_id();
        vocab.unk_id = tokenizer.unk_id();
        vocab.pad_id = tokenizer.pad_id();
        vocab.take_ends(&tokenizer)?;
        vocab.chat_template = template.and_then(|t| t.source().map(str::to_string));
        Ok(Some(vocab))
    }

    /// Finds out what is put around a text.
    fn take_ends(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        let plain = tokenizer.encode("a", false, false)?;
        let whole = tokenizer.encode("a", true, false)?;
        let at = whole.windows(plain.len().max(1)).position(|part| part == plain);
        let (before, after) = match at {
            Some(at) => (&whole[..at], &whole[at + plain.len()..]),
            None => return refuse(format!("\"a\" becomes {plain:?}, in a sequence {whole:?}")),
        };
        let one = |name: &str, found: &[u32], named: Option<u32>| match (found, named) {
            ([], named) => Ok((named, false)),
            (&[id], None) => Ok((Some(id), true)),
            (&[id], Some(named)) if id == named => Ok((Some(id), true)),
            _ => refuse(format!("tokens {found:?} are put around a text, and {name} is {named:?}")),
        };
        (self.bos_id, self.add_bos) = one("BOS", before, self.bos_id)?;
        (self.eos_id, self.add_eos) = one("EOS", after, self.eos_id)?;
        Ok(())
    }
}

fn of_spm(spm: &Spm) -> Result<GgufVocabBuf> {
    let rules = spm.rules();
    if rules.remove_extra_spaces {
        return refuse("SentencePiece with remove_extra_whitespaces");
    }
    let mut vocab = GgufVocabBuf {
        model: "llama",
        scores: Some(Vec::with_capacity(spm.len())),
        add_space_prefix: Some(rules.add_space_prefix),
        ..GgufVocabBuf::default()
    };
    if rules.add_space_prefix && !rules.prefix_after_special {
        vocab.notes.push(
            "legacy false: in GGUF a text after a special token gets a space in front".into(),
        );
    }
    for id in 0..spm.len() as u32 {
        let Some(piece) = spm.piece(id) else { continue };
        vocab.tokens.push(piece.text.to_string());
        vocab.types.push(match piece.kind {
            Kind::Normal => NORMAL,
            Kind::Unknown => UNKNOWN,
            Kind::Control => CONTROL,
            Kind::UserDefined => USER_DEFINED,
            Kind::Unused => UNUSED,
            Kind::Byte(_) => BYTE,
        });
        if let Some(scores) = &mut vocab.scores {
            scores.push(piece.score);
        }
    }
    Ok(vocab)
}

/// The parts of a `tokenizer.json` that both families share.
struct Json {
    /// Texts by id, those of the added tokens included.
    tokens: Vec<String>,
    types: Vec<i32>,
    /// Pairs in order of rank.
    merges: Vec<(String, String)>,
}

fn of_json(json: &Value) -> Result<Json> {
    let model = &json["model"];
    if model["type"] != "BPE" {
        return refuse(format!("model {}, wanted BPE", model["type"]));
    }
    for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        if !model[key].is_null() && model[key] != "" {
            return refuse(format!("{key} {}", model[key]));
        }
    }
    let mut texts: HashMap<u64, (&str, i32)> = HashMap::new();
    for (text, id) in model["vocab"].as_object().into_iter().flatten() {
        texts.insert(id.as_u64().unwrap_or(u64::MAX), (text, NORMAL));
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let text = token["content"].as_str().unwrap_or_default();
        if let Some(key) = ["single_word", "lstrip", "rstrip"].iter().find(|&&k| token[k] == true) {
            return refuse(format!("added token {text:?} with {key}"));
        }
        let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
        texts.insert(token["id"].as_u64().unwrap_or(u64::MAX), (text, kind));
    }
    let n = texts.keys().max().map_or(0, |&id| id.saturating_add(1));
    // A vocabulary of far apart ids is not worth the tokens between.
    if n > 2 * texts.len() as u64 {
        return refuse(format!("{} tokens with ids up to {}", texts.len(), n - 1));
    }
    let (mut tokens, mut types) = (vec![], vec![]);
    for id in 0..n {
        let (text, kind) = match texts.get(&id) {
            Some(&(text, kind)) => (text.to_string(), kind),
            None => (format!("[PAD{id}]"), UNUSED),
        };
        tokens.push(text);
        types.push(kind);
    }
    let merges = model["merges"].as_array().into_iter().flatten().map(|merge| {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            _ => merge[0].as_str().zip(merge[1].as_str()),
        };
        match pair.filter(|(a, b)| !a.is_empty() && !a.contains(' ') && !b.contains(' ')) {
            Some((a, b)) => Ok((a.to_string(), b.to_string())),
            None => refuse(format!("merge {merge}")),
        }
    });
    let merges = merges.collect::<Result<_>>()?;
    Ok(Json { tokens, types, merges })
}

fn of_byte_level(hf: &Hf) -> Result<GgufVocabBuf> {
    let json = hf.json()?;
    if !json["normalizer"].is_null() {
        return refuse(format!("normaliser {}", json["normalizer"]));
    }
    let wanted = steps(&json["pre_tokenizer"]);
    let mut found = None;
    for name in pre_names() {
        let pre = pre_tokenizer(Some(name))?;
        let ours = serde_json::to_value(&pre.steps)
            .map_err(|e| Error::Tokenizer(format!("pre-tokenizer {name}: {e}")))?;
        if steps(&ours) == wanted {
            found = Some(pre);
            break;
        }
    }
    let Some(pre) = found else {
        let known = pre_names().join(", ");
        return refuse(format!(
            "pre-tokenizer {}, which is none of {known}",
            json["pre_tokenizer"].to_string().chars().take(300).collect::<String>()
        ));
    };
    let Json { tokens, types, merges } = of_json(&json)?;
    if json["model"]["byte_fallback"] == true {
        return refuse("byte_fallback in a byte-level vocabulary");
    }
    let ignore = json["model"]["ignore_merges"] == true;
    if ignore != pre.ignore_merges
        && let Some(token) = hf.unmerged_token()?
    {
        return refuse(format!(
            "ignore_merges {ignore} with pre-tokenizer {}, which makes a difference for the token {token:?}",
            pre.name
        ));
    }
    Ok(GgufVocabBuf {
        model: "gpt2",
        pre: Some(pre.name),
        tokens,
        types,
        merges: Some(merges.into_iter().map(|(a, b)| format!("{a} {b}")).collect()),
        ..GgufVocabBuf::default()
    })
}

/// The steps of a pre-tokenizer, in a form that can be compared.
fn steps(pre: &Value) -> Vec<Value> {
    let list = match pre {
        Value::Array(list) => list.clone(),
        _ => match pre["pretokenizers"].as_array() {
            Some(list) => list.clone(),
            None => vec![pre.clone()],
        },
    };
    let comparable = |mut step: Value| {
        if let Value::Object(map) = &mut step {
            // Of no influence on ids.
            map.remove("trim_offsets");
        }
        step
    };
    list.into_iter().map(comparable).collect()
}

/// SentencePiece without its own file: the scores are the ranks of the merges, which is sound where
/// the merges are what a converter made of scores. That is checked: every way to join two tokens to
/// a third is a merge, and the merges to one token stand together.
fn of_spm_json(json: &Value) -> Result<GgufVocabBuf> {
    let add_space_prefix = space_prefix(json)?;
    let Json { tokens, mut types, merges } = of_json(json)?;
    let model = &json["model"];
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
    let mut rank: HashMap<usize, usize> = HashMap::new();
    let mut last = None;
    for (a, b) in &merges {
        let joined = format!("{a}{b}");
        let Some(&id) = ids.get(joined.as_str()) else {
            return refuse(format!("merge of {a:?} and {b:?} to no token"));
        };
        if last != Some(id) {
            if rank.insert(id, rank.len()).is_some() {
                return refuse(format!("merges to {joined:?} in two places"));
            }
            last = Some(id);
        }
    }
    let listed: std::collections::HashSet<(&str, &str)> =
        merges.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let mut scores = vec![0.0f32; tokens.len()];
    let unk = model["unk_token"].as_str();
    for (id, text) in tokens.iter().enumerate() {
        if Some(text.as_str()) == unk {
            types[id] = UNKNOWN;
        } else if spm::byte_value(text).is_some() && model["byte_fallback"] == true {
            types[id] = BYTE;
        }
        if !joins(text, types[id]) {
            continue;
        }
        match rank.get(&id) {
            Some(&rank) => scores[id] = -(rank as f32),
            // A character, or a token that no merge makes: below all others.
            None => scores[id] = -(rank.len() as f32) - 1.0,
        }
        for (at, _) in text.char_indices().skip(1) {
            let (a, b) = text.split_at(at);
            let mergeable = |part: &str| ids.get(part).is_some_and(|&id| joins(part, types[id]));
            if mergeable(a) && mergeable(b) && !listed.contains(&(a, b)) {
                return refuse(format!(
                    "{a:?} and {b:?} are tokens and so is {text:?}, but no merge"
                ));
            }
        }
    }
    Ok(GgufVocabBuf {
        model: "llama",
        tokens,
        types,
        scores: Some(scores),
        add_space_prefix: Some(add_space_prefix),
        ..GgufVocabBuf::default()
    })
}

/// Whether merging makes or takes a token: one that the user defined is found in the text before,
/// unless it is spelled with the escaped space.
fn joins(text: &str, kind: i32) -> bool {
    kind == NORMAL || kind == USER_DEFINED && text.contains(spm::SPACE)
}

/// Whether a space is put in front of a text, from the normaliser or the pre-tokenizer.
fn space_prefix(json: &Value) -> Result<bool> {
    let (normalizer, pre) = (&json["normalizer"], &json["pre_tokenizer"]);
    if normalizer.is_null() && pre["type"] == "Metaspace" && pre["replacement"] == spm::SPACE {
        return match pre["prepend_scheme"].as_str() {
            Some("always") => Ok(true),
            Some("never") => Ok(false),
            other => refuse(format!("Metaspace with prepend_scheme {other:?}")),
        };
    }
    if !pre.is_null() {
        return refuse(format!("pre-tokenizer {pre}"));
    }
    let single = std::slice::from_ref(normalizer);
    let steps = normalizer["normalizers"].as_array().map_or(single, Vec::as_slice);
    let is_replace = |step: &Value| {
        step["type"] == "Replace"
            && step["pattern"]["String"] == " "
            && step["content"] == spm::SPACE
    };
    match steps {
        [replace] if is_replace(replace) => Ok(false),
        [prepend, replace]
            if prepend["type"] == "Prepend"
                && prepend["prepend"] == spm::SPACE
                && is_replace(replace) =>
        {
            Ok(true)
        }
        _ => refuse(format!("normaliser {normalizer}")),
    }
}
