//! A GGUF vocabulary as `tokenizer.json` and `tokenizer_config.json`.
//!
//! Byte-level BPE is what the tokenizers crate holds already. SentencePiece becomes BPE with byte
//! fallback: the merges are all ways to join two tokens to a third, best score first, which gives
//! the same ids as long as no two scores are equal.

use super::GgufVocab;
use super::spm::{self, Kind, Spm};
use super::tokenizer::{ByteBpe, Engine, Specials, Tokenizer};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// A tokenizer as Hugging Face's files.
#[derive(Clone, Debug)]
pub struct HfTokenizer {
    /// `tokenizer.json`.
    pub json: String,
    /// Texts of the tokens with a meaning, by their keys of `tokenizer_config.json`.
    named: Vec<(&'static str, String)>,
    add_bos: bool,
    add_eos: bool,
    chat_template: Option<String>,
}

fn refuse<T>(what: impl std::fmt::Display) -> Result<T> {
    Err(Error::Unsupported(format!("tokenizer.json cannot express this tokenizer: {what}")))
}

impl HfTokenizer {
    /// The files of a vocabulary.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`]; [`Error::Unsupported`] for what they cannot express.
    pub fn from_gguf(vocab: &GgufVocab<'_>) -> Result<HfTokenizer> {
        let tokenizer = Tokenizer::from_gguf(vocab)?;
        let specials = tokenizer.specials;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
        let mut json = match &tokenizer.engine {
            Engine::ByteBpe(bpe) => byte_level(bpe)?,
            Engine::Spm(spm) => sentencepiece(spm, specials.unk)?,
            Engine::Hf(_) => return refuse("it is one already"),
        };
        json["post_processor"] = ends(&specials, text(specials.bos), text(specials.eos));
        let named = [
            ("bos_token", specials.bos),
            ("eos_token", specials.eos),
            ("unk_token", specials.unk),
            ("pad_token", specials.pad),
        ];
        let named = named.into_iter().filter_map(|(key, id)| Some((key, text(id)?))).collect();
        Ok(HfTokenizer {
            json: json.to_string(),
            named,
            add_bos: specials.add_bos,
            add_eos: specials.add_eos,
            chat_template: vocab.chat_template.map(str::to_string),
        })
    }

    /// `tokenizer_config.json` for a model with a context of `max_seq_len`.
    pub fn config(&self, max_seq_len: usize) -> Value {
        let mut map = Map::new();
        map.insert("add_bos_token".into(), self.add_bos.into());
        map.insert("add_eos_token".into(), self.add_eos.into());
        for (key, text) in &self.named {
            map.insert((*key).into(), text.as_str().into());
        }
        map.insert("clean_up_tokenization_spaces".into(), false.into());
        map.insert("model_max_length".into(), max_seq_len.into());
        map.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        if let Some(template) = &self.chat_template {
            map.insert("chat_template".into(), template.as_str().into());
        }
        Value::Object(map)
    }
}

fn added_token(id: usize, text: &str, special: bool) -> Value {
    json!({
        "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}

/// The tokens that are recognised in a text.
fn added_tokens<'a>(tokens: impl Iterator<Item = (Kind, &'a str)>) -> Vec<Value> {
    let recognised = tokens.enumerate().filter_map(|(id, (kind, text))| match kind {
        _ if text.is_empty() => None,
        Kind::Control | Kind::Unknown => Some(added_token(id, text, true)),
        Kind::UserDefined => Some(added_token(id, text, false)),
        Kind::Normal | Kind::Unused | Kind::Byte(_) => None,
    });
    recognised.collect()
}

/// What puts BOS and EOS around a text; null where nothing does.
fn ends(specials: &Specials, bos: Option<String>, eos: Option<String>) -> Value {
    let bos = specials.bos.zip(bos).filter(|_| specials.add_bos);
    let eos = specials.eos.zip(eos).filter(|_| specials.add_eos);
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |(_, text): &(u32, String), type_id: u32| json!({"SpecialToken": {"id": text, "type_id": type_id}});
    let around = |name: &str, type_id: u32| {
        let mut pieces: Vec<Value> = bos.iter().map(|token| special(token, type_id)).collect();
        pieces.push(json!({"Sequence": {"id": name, "type_id": type_id}}));
        pieces.extend(eos.iter().map(|token| special(token, type_id)));
        pieces
    };
    let mut tokens = Map::new();
    for (id, text) in bos.iter().chain(&eos) {
        tokens.insert(text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    })
}

fn byte_level(bpe: &ByteBpe) -> Result<Value> {
    if bpe.kinds.iter().any(|kind| matches!(kind, Kind::Byte(_))) {
        return refuse("byte tokens in a byte-level vocabulary");
    }
    let mut json = serde_json::to_value(&bpe.core)
        .map_err(|e| Error::Tokenizer(format!("tokenizer.json: {e}")))?;
    let texts: Vec<String> = (0..bpe.kinds.len() as u32)
        .map(|id| bpe.core.id_to_token(id).unwrap_or_default())
        .collect();
    let tokens = bpe.kinds.iter().copied().zip(texts.iter().map(String::as_str));
    json["added_tokens"] = added_tokens(tokens).into();
    json["decoder"] = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    Ok(json)
}

fn sentencepiece(spm: &Spm, unk: Option<u32>) -> Result<Value> {
    let bytes = spm.has_byte_fallback();
    let mut vocab = Map::new();
    let mut tokens = Vec::with_capacity(spm.len());
    for id in 0..spm.len() as u32 {
        let Some(piece) = spm.piece(id) else { continue };
        let empty = format!("[EMPTY_{id}]");
        let text = if piece.text.is_empty() { &*empty } else { &*piece.text };
        vocab.insert(text.into(), id.into());
        tokens.push((piece.kind, &*piece.text));
    }
    let unk = unk.and_then(|id| spm.piece(id)).map(|piece| piece.text.to_string());
    if unk.is_none() && !bytes {
        return refuse("neither byte tokens nor an unknown token");
    }
    let mut normalizers = vec![];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": spm::SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if spm.rules().add_space_prefix {
        normalizers.push(json!({"type": "Prepend", "prepend": spm::SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": spm::SPACE}));
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(tokens.into_iter()),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unk,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": bytes,
            "byte_fallback": bytes,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges(spm)?,
        },
    }))
}

/// Every way to join two tokens to a third, best score first.
fn merges(spm: &Spm) -> Result<Vec<Value>> {
    let mergeable = |text: &str| {
        let piece = spm.id(text).and_then(|id| spm.piece(id))?;
        let joins = match piece.kind {
            Kind::Normal | Kind::Unused => true,
            // Found in the text before anything is joined, unless it is spelled with the escape.
            Kind::UserDefined => text.contains(spm::SPACE),
            Kind::Unknown | Kind::Control | Kind::Byte(_) => false,
        };
        joins.then_some(())
    };
    let mut products = vec![];
    for id in 0..spm.len() as u32 {
        let Some(piece) = spm.piece(id) else { continue };
        if mergeable(&piece.text).is_none() {
            continue;
        }
        let splits = piece.text.char_indices().skip(1).map(|(at, _)| piece.text.split_at(at));
        let pairs: Vec<(&str, &str)> =
            splits.filter(|(a, b)| mergeable(a).is_some() && mergeable(b).is_some()).collect();
        if pairs.is_empty() {
            continue;
        }
        if piece.kind == Kind::Unused {
            return refuse(format!("token {id}, {:?}, is unused but merging makes it", piece.text));
        }
        products.push((piece.score, &piece.text, pairs));
    }
    products.sort_by(|a, b| b.0.total_cmp(&a.0));
    if let Some(two) = products.windows(2).find(|two| two[0].0 == two[1].0) {
        let (score, a, _) = &two[0];
        return refuse(format!("tokens {a:?} and {:?} have one score, {score}", two[1].1));
    }
    Ok(products.into_iter().flat_map(|(.., pairs)| pairs).map(|(a, b)| json!([a, b])).collect())
}
