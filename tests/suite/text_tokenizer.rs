//! Tokenizers against ids of SentencePiece and of the tokenizers library: SentencePiece models from
//! `tokenizer.model` and from GGUF metadata, byte-level BPE from GGUF metadata and from
//! `tokenizer.json`; decoding whole and as a stream.

use puna::text::{GgufVocab, TextParts, Tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

/// GGUF metadata with the pieces of the SentencePiece fixture.
fn spm_vocab(golden: &Value) -> GgufVocab<'_> {
    let pieces = golden["pieces"].as_array().unwrap();
    GgufVocab {
        model: "llama",
        tokens: pieces.iter().map(|p| p[0].as_str().unwrap()).collect(),
        scores: Some(pieces.iter().map(|p| p[1].as_f64().unwrap() as f32).collect()),
        token_types: Some(pieces.iter().map(|p| p[2].as_i64().unwrap() as i32).collect()),
        ..GgufVocab::default()
    }
}

fn bpe_vocab<'a>(golden: &'a Value, pre: &'a str) -> GgufVocab<'a> {
    let tokens = strings(&golden["tokens"]);
    GgufVocab {
        model: "gpt2",
        pre: Some(pre),
        token_types: Some((0..tokens.len()).map(|id| if id < 3 { 3 } else { 1 }).collect()),
        tokens,
        merges: Some(strings(&golden["merges"])),
        bos_id: Some(0),
        eos_id: Some(1),
        pad_id: Some(2),
        ..GgufVocab::default()
    }
}

fn check(failures: &mut Vec<String>, what: &str, got: Vec<u32>, want: Vec<u32>) {
    if got != want {
        failures.push(format!("{what}\n   got {got:?}\n  want {want:?}"));
    }
}

/// The text of a stream is the text of the whole, and never half a character.
fn stream_agrees(tokenizer: &Tokenizer, ids: &[u32]) {
    for skip in [true, false] {
        let whole = tokenizer.decode(ids, skip).unwrap();
        let mut stream = tokenizer.stream(skip);
        let mut text = String::new();
        for &id in ids {
            let new = stream.push(id).unwrap();
            assert!(whole[text.len()..].starts_with(&new), "{text:?} + {new:?} of {whole:?}");
            text.push_str(&new);
        }
        text.push_str(&stream.finish().unwrap());
        assert_eq!(text, whole);
    }
}

#[test]
fn sentencepiece_ids_from_tokenizer_model_and_gguf() {
    let golden = json("spm/golden.json");
    let model = TextParts::from_hf_dir(&fixture("spm")).unwrap().tokenizer;
    let gguf = Tokenizer::from_gguf(&spm_vocab(&golden)).unwrap();
    assert_eq!((gguf.bos_id(), gguf.eos_id(), gguf.unk_id()), (Some(1), Some(2), Some(0)));
    assert_eq!((model.bos_id(), model.eos_id(), model.unk_id()), (Some(1), Some(2), Some(0)));
    let mut failures = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let want = ids(&case["ids"]);
        check(
            &mut failures,
            &format!("model {text:?}"),
            model.encode(text, false, false).unwrap(),
            want.clone(),
        );
        // In GGUF a user-defined token cuts the text and the next part gets a space of its own.
        if !text.contains("===") && !text.contains("<sep>") {
            check(
                &mut failures,
                &format!("gguf {text:?}"),
                gguf.encode(text, false, false).unwrap(),
                want.clone(),
            );
        }
        let decoded = case["decoded"].as_str().unwrap();
        for t in [&model, &gguf] {
            let got = t.decode(&want, true).unwrap();
            if got != decoded {
                failures.push(format!("decode {text:?}: {got:?}, want {decoded:?}"));
            }
            stream_agrees(t, &want);
        }
        let mut with_bos = vec![1];
        with_bos.extend(&want);
        assert_eq!(model.encode(text, true, false).unwrap(), with_bos);
        assert_eq!(model.decode(&with_bos, true).unwrap(), decoded);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn sentencepiece_special_tokens_only_when_asked() {
    let golden = json("spm/golden.json");
    let t = Tokenizer::from_gguf(&spm_vocab(&golden)).unwrap();
    let hello = t.encode("Hello", false, false).unwrap();
    let mut want = vec![1];
    want.extend(&hello);
    want.push(2);
    want.extend(&hello);
    assert_eq!(t.encode("<s>Hello</s>Hello", false, true).unwrap(), want);
    assert_ne!(t.encode("<s>Hello</s>Hello", false, false).unwrap(), want);
    assert!(t.is_special(1) && !t.is_special(hello[0]));
    assert_eq!(t.decode(&want, false).unwrap(), "<s> Hello</s> Hello");
    assert_eq!(t.eos_ids(), [2]);
    // Ids that go on after a prompt keep the space of their first word.
    let mut stream = t.stream_continuation(true);
    let text: String = hello.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(text, " Hello");
}

#[test]
fn sentencepiece_without_prefix_and_with_eos() {
    let golden = json("spm/golden.json");
    let vocab = GgufVocab {
        add_space_prefix: Some(false),
        add_bos: Some(false),
        add_eos: Some(true),
        ..spm_vocab(&golden)
    };
    let t = Tokenizer::from_gguf(&vocab).unwrap();
    let got = t.encode("the", true, false).unwrap();
    assert_eq!(got.last(), Some(&2));
    assert_ne!(got[..got.len() - 1], t.encode(" the", false, false).unwrap());
    assert_eq!(t.decode(&got, true).unwrap(), "the");
}

#[test]
fn half_a_character_waits_and_broken_bytes_are_replaced() {
    let golden = json("spm/golden.json");
    let t = Tokenizer::from_gguf(&spm_vocab(&golden)).unwrap();
    let byte = |b: u8| t.token_to_id(&format!("<0x{b:02X}>")).unwrap();
    let mut stream = t.stream(true);
    let face = "😀".as_bytes();
    for &b in &face[..3] {
        assert_eq!(stream.push(byte(b)).unwrap(), "");
    }
    assert_eq!(stream.push(byte(face[3])).unwrap(), "😀");
    assert_eq!(stream.push(byte(face[0])).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    let broken = [byte(0xff), byte(b'a'), byte(0xe2), byte(0x82), byte(b'b'), byte(0xf0)];
    assert_eq!(t.decode(&broken, true).unwrap(), "\u{fffd}a\u{fffd}b\u{fffd}");
    stream_agrees(&t, &broken);
    assert!(t.decode(&[1_000_000], true).is_err());
}

#[test]
fn byte_level_ids_of_every_pre_tokenizer() {
    let golden = json("byte-level/golden.json");
    let mut failures = Vec::new();
    for (pre, same) in [
        ("gpt-2", "gpt-2"),
        ("smollm", "smollm"),
        ("llama-bpe", "llama-bpe"),
        ("llama3", "llama-bpe"),
        ("llama-v3", "llama-bpe"),
        ("tekken", "tekken"),
    ] {
        let t = Tokenizer::from_gguf(&bpe_vocab(&golden, pre)).unwrap();
        for (text, want) in
            strings(&golden["texts"]).iter().zip(golden["ids"][same].as_array().unwrap())
        {
            let want = ids(want);
            check(
                &mut failures,
                &format!("{pre} {text:?}"),
                t.encode(text, false, true).unwrap(),
                want.clone(),
            );
            assert_eq!(&t.decode(&want, false).unwrap(), text);
            stream_agrees(&t, &want);
        }
        let bos = t.encode("x", true, false).unwrap()[0] == 0;
        assert_eq!(bos, pre.starts_with("llama") || pre == "tekken", "{pre}");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The default cuts punctuation off first, then GPT-2's words, then digits by threes.
#[test]
fn default_pre_tokenizer() {
    let golden = json("byte-level/golden.json");
    let vocab = GgufVocab { pre: None, ..bpe_vocab(&golden, "") };
    let t = Tokenizer::from_gguf(&vocab).unwrap();
    let gpt2 = Tokenizer::from_gguf(&bpe_vocab(&golden, "gpt-2")).unwrap();
    assert!(t.describe().contains("default"), "{}", t.describe());
    let parts = |list: &[&str]| -> Vec<u32> {
        list.iter().flat_map(|p| gpt2.encode(p, false, false).unwrap()).collect()
    };
    for (text, cuts) in [
        ("the (with) it", &["the", " ", "(", "with", ")", " it"][..]),
        ("x 12345", &["x", " ", "123", "45"]),
        ("a b", &["a", " b"]),
    ] {
        assert_eq!(t.encode(text, false, false).unwrap(), parts(cuts), "{text:?}");
    }
}

#[test]
fn a_token_without_its_bytes_is_an_error_not_a_loss() {
    let golden = json("byte-level/golden.json");
    let mut vocab = bpe_vocab(&golden, "gpt-2");
    let at = vocab.tokens.iter().position(|&t| t == "x").unwrap();
    vocab.tokens[at] = "no longer";
    vocab.merges = Some(Vec::new());
    let t = Tokenizer::from_gguf(&vocab).unwrap();
    let error = t.encode("axb", false, false).unwrap_err().to_string();
    assert!(error.contains("0x78"), "{error}");
}

#[test]
fn hugging_face_directory() {
    let golden = json("byte-level/golden.json");
    let parts = TextParts::from_hf_dir(&fixture("byte-level")).unwrap();
    let t = &parts.tokenizer;
    assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (Some(0), Some(1), Some(2)));
    assert_eq!(t.vocab_size(), golden["tokens"].as_array().unwrap().len());
    for (text, want) in
        strings(&golden["texts"]).iter().zip(golden["ids"]["llama-bpe"].as_array().unwrap())
    {
        let mut want = ids(want);
        assert_eq!(t.encode(text, false, true).unwrap(), want, "{text:?}");
        assert_eq!(&t.decode(&want, false).unwrap(), text);
        stream_agrees(t, &want);
        want.insert(0, 0);
        assert_eq!(t.encode(text, true, true).unwrap(), want, "{text:?}");
    }
    let as_text = t.encode("<|begin|>hi", false, false).unwrap();
    assert!(!as_text.contains(&0));
    assert_eq!(t.decode(&as_text, true).unwrap(), "<|begin|>hi");
    assert_eq!(t.encode("<|begin|>hi", false, true).unwrap()[0], 0);
    assert!(t.is_special(0) && !t.is_special(10));
    assert_eq!(t.eos_ids(), [1]);
    assert!(parts.template.is_some());
    let line = t.describe();
    assert!(line.contains("byte-level BPE") && line.contains("<|begin|>"), "{line}");
}

/// A `tokenizer.json` in the manner of LLaMA 2: spaces as U+2581, bytes, one space stripped.
#[test]
fn sentencepiece_style_tokenizer_json() {
    let dir = tempfile::tempdir().unwrap();
    let mut vocab = serde_json::Map::new();
    for (i, token) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        vocab.insert((*token).into(), i.into());
    }
    for b in 0..256 {
        vocab.insert(format!("<0x{b:02X}>"), (b + 3).into());
    }
    for (i, token) in ["▁", "h", "i", "hi", "▁hi"].iter().enumerate() {
        vocab.insert((*token).into(), (i + 259).into());
    }
    let special = |id: u32, text: &str| serde_json::json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": ["h i", "▁ hi"]}
    });
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    let mut t = TextParts::from_hf_dir(dir.path()).unwrap().tokenizer;
    let got = t.encode("hi é", true, true).unwrap();
    assert_eq!(got, [1, 263, 259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(t.decode(&got, true).unwrap(), "hi é");
    assert_eq!(t.decode(&got, false).unwrap(), "<s> hi é");
    stream_agrees(&t, &got);
    assert_eq!((t.bos_id(), t.eos_id()), (None, None));
    t.fill_ids(Some(1), Some(9999));
    assert_eq!((t.bos_id(), t.eos_id()), (Some(1), None));
    t.fill_ids(Some(2), Some(2));
    assert_eq!((t.bos_id(), t.eos_id(), t.eos_ids()), (Some(1), Some(2), &[2][..]));
}

#[test]
fn tokenizer_model_with_added_tokens_and_flags() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("spm/tokenizer.model"), dir.path().join("tokenizer.model")).unwrap();
    let config = r#"{"bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>", "add_bos_token": false,
        "add_eos_token": true, "legacy": false,
        "added_tokens_decoder": {"640": {"content": "<|im_start|>", "special": true},
        "641": {"content": "<|im_end|>", "special": true}, "1": {"content": "<s>", "special": true}}}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ messages|length }}").unwrap();
    let parts = TextParts::from_hf_dir(dir.path()).unwrap();
    let t = parts.tokenizer;
    assert_eq!((t.vocab_size(), t.bos_id(), t.eos_id()), (642, Some(1), Some(641)));
    let plain = TextParts::from_hf_dir(&fixture("spm")).unwrap().tokenizer;
    let mut want = plain.encode("Hello", false, false).unwrap();
    assert_eq!(t.encode("Hello", true, true).unwrap(), [want.as_slice(), &[641]].concat());
    // Not legacy: no space of its own after a special token.
    want.insert(0, 640);
    assert_ne!(t.encode("<|im_start|>Hello", false, true).unwrap(), want);
    assert_eq!(
        t.decode(&t.encode("<|im_start|>Hello", false, true).unwrap(), true).unwrap(),
        "Hello"
    );
    assert!(parts.template.is_some());
}
