//! Tokenizers from GGUF metadata to Hugging Face's files and back: the same ids, and what either
//! side cannot express is refused by name.

use puna::text::{GgufVocab, GgufVocabBuf, HfTokenizer, TextParts, Tokenizer};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
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
        add_bos: Some(true),
        add_eos: Some(pre == "smollm"),
        chat_template: Some("{{ bos_token }}{{ messages[0].content }}"),
        ..GgufVocab::default()
    }
}

/// The SentencePiece fixture; its unused pieces become what `unused` says.
fn spm_vocab(golden: &Value, unused: i32) -> GgufVocab<'_> {
    let pieces = golden["pieces"].as_array().unwrap();
    let kind = |p: &Value| match p[2].as_i64().unwrap() as i32 {
        5 => unused,
        kind => kind,
    };
    GgufVocab {
        model: "llama",
        tokens: pieces.iter().map(|p| p[0].as_str().unwrap()).collect(),
        scores: Some(pieces.iter().map(|p| p[1].as_f64().unwrap() as f32).collect()),
        token_types: Some(pieces.iter().map(kind).collect()),
        bos_id: Some(1),
        eos_id: Some(2),
        unk_id: Some(0),
        add_bos: Some(true),
        add_eos: Some(false),
        add_space_prefix: Some(true),
        ..GgufVocab::default()
    }
}

/// A directory with the two files of a tokenizer.
fn saved(tokenizer: &HfTokenizer) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), &tokenizer.json).unwrap();
    let config = tokenizer.config(64).to_string();
    fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    dir
}

fn ids_agree(a: &Tokenizer, b: &Tokenizer, texts: &[&str]) {
    assert!(!texts.is_empty());
    let mut failures = vec![];
    for text in texts {
        for (add, parse) in [(false, false), (true, true)] {
            let (x, y) = (a.encode(text, add, parse).unwrap(), b.encode(text, add, parse).unwrap());
            if x != y {
                failures.push(format!("{text:?} {add} {parse}: {x:?} and {y:?}"));
            } else if a.decode(&x, true).unwrap() != b.decode(&x, true).unwrap() {
                failures.push(format!("{text:?} is decoded in two ways"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let ids = |t: &Tokenizer| (t.bos_id(), t.eos_id(), t.unk_id(), t.pad_id());
    assert_eq!(ids(a), ids(b));
}

#[test]
fn byte_level_vocabularies_go_both_ways() {
    let golden = read(&fixture("byte-level/golden.json"));
    let mut texts = strings(&golden["texts"]);
    texts.push("<|begin|>x<|end|> y");
    for pre in ["default", "gpt-2", "smollm", "llama-bpe", "tekken"] {
        let vocab = bpe_vocab(&golden, pre);
        let gguf = Tokenizer::from_gguf(&vocab).unwrap();
        let dir = saved(&HfTokenizer::from_gguf(&vocab).unwrap());
        let parts = TextParts::from_hf_dir(dir.path()).unwrap();
        ids_agree(&gguf, &parts.tokenizer, &texts);
        assert_eq!(parts.template.unwrap().source(), vocab.chat_template);

        let back = GgufVocabBuf::from_hf_dir(dir.path(), vocab.tokens.len() + 3).unwrap().unwrap();
        let view = back.view();
        assert_eq!((view.model, view.pre), ("gpt2", Some(pre)));
        let n = vocab.tokens.len();
        assert_eq!(view.tokens[..n], vocab.tokens[..]);
        assert_eq!(
            view.token_types.as_ref().unwrap()[..n],
            vocab.token_types.as_ref().unwrap()[..]
        );
        assert_eq!(view.token_types.as_ref().unwrap()[n..], [5, 5, 5]);
        assert_eq!(view.merges, vocab.merges);
        assert_eq!((view.add_bos, view.add_eos), (vocab.add_bos, vocab.add_eos));
        assert_eq!(view.chat_template, vocab.chat_template);
    }
}

#[test]
fn sentencepiece_vocabularies_go_both_ways() {
    let golden = read(&fixture("spm/golden.json"));
    // A user-defined piece cuts a text in GGUF and in tokenizer.json alike.
    let texts: Vec<&str> =
        golden["cases"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    let vocab = spm_vocab(&golden, 1);
    let gguf = Tokenizer::from_gguf(&vocab).unwrap();
    let dir = saved(&HfTokenizer::from_gguf(&vocab).unwrap());
    let hf = TextParts::from_hf_dir(dir.path()).unwrap().tokenizer;
    ids_agree(&gguf, &hf, &texts);

    let back = GgufVocabBuf::from_hf_dir(dir.path(), vocab.tokens.len()).unwrap().unwrap();
    let view = back.view();
    assert_eq!(
        (view.model, view.add_space_prefix, view.add_bos),
        ("llama", Some(true), Some(true))
    );
    assert_eq!((&view.tokens, &view.token_types), (&vocab.tokens, &vocab.token_types));
    ids_agree(&gguf, &Tokenizer::from_gguf(&view).unwrap(), &texts);

    let error = HfTokenizer::from_gguf(&spm_vocab(&golden, 5)).unwrap_err().to_string();
    assert!(error.contains("is unused"), "{error}");
}

#[test]
fn tokenizer_model_becomes_metadata_with_its_scores() {
    let golden = read(&fixture("spm/golden.json"));
    let vocab = GgufVocabBuf::from_hf_dir(&fixture("spm"), 650).unwrap().unwrap();
    let (view, wanted) = (vocab.view(), spm_vocab(&golden, 5));
    let n = wanted.tokens.len();
    assert_eq!(view.tokens[..n], wanted.tokens[..]);
    assert_eq!(view.scores.as_ref().unwrap()[..n], wanted.scores.as_ref().unwrap()[..]);
    assert_eq!(view.token_types.as_ref().unwrap()[..n], wanted.token_types.as_ref().unwrap()[..]);
    assert_eq!((view.bos_id, view.eos_id, view.unk_id), (Some(1), Some(2), Some(0)));
    assert!(Tokenizer::from_gguf(&view).is_ok());
    let error = GgufVocabBuf::from_hf_dir(&fixture("spm"), 639).unwrap_err().to_string();
    assert!(error.contains("640 tokens") && error.contains("639"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    assert!(GgufVocabBuf::from_hf_dir(empty.path(), 10).unwrap().is_none());
}

#[test]
fn what_gguf_cannot_express_is_refused_by_name() {
    type Change = fn(&mut Value);
    let byte_level: [(Change, &str); 7] = [
        (|j| j["normalizer"] = json!({"type": "NFC"}), "NFC"),
        (
            |j| j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("\\w+"),
            "pre-tokenizer",
        ),
        (
            |j| j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true),
            "pre-tokenizer",
        ),
        (|j| j["added_tokens"][2]["lstrip"] = json!(true), "lstrip"),
        (|j| j["model"]["end_of_word_suffix"] = json!("@"), "end_of_word_suffix"),
        (|j| j["model"]["vocab"]["!"] = json!(9000), "ids up to 9000"),
        (
            |j| {
                j["model"]["ignore_merges"] = json!(false);
                j["model"]["merges"].as_array_mut().unwrap().pop();
            },
            "ignore_merges",
        ),
    ];
    let golden = read(&fixture("spm/golden.json"));
    let spm: Value =
        serde_json::from_str(&HfTokenizer::from_gguf(&spm_vocab(&golden, 1)).unwrap().json)
            .unwrap();
    let sentencepiece: [(Change, &str); 4] = [
        (|j| drop(j["model"]["merges"].as_array_mut().unwrap().remove(5)), "but no merge"),
        (
            |j| {
                let merges = j["model"]["merges"].as_array_mut().unwrap();
                // Two ways to one token, apart.
                let joined =
                    |m: &Value| format!("{}{}", m[0].as_str().unwrap(), m[1].as_str().unwrap());
                let at = (1..merges.len()).find(|&i| joined(&merges[i]) == joined(&merges[i - 1]));
                let moved = merges.remove(at.unwrap());
                merges.push(moved);
            },
            "in two places",
        ),
        (|j| j["normalizer"] = json!({"type": "Lowercase"}), "Lowercase"),
        (|j| j["model"]["dropout"] = json!(0.5), "dropout"),
    ];
    let bpe = read(&fixture("byte-level/tokenizer.json"));
    let cases = byte_level.iter().map(|c| (&bpe, c)).chain(sentencepiece.iter().map(|c| (&spm, c)));
    let mut failures = vec![];
    for (sound, (change, wanted)) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut value = sound.clone();
        let write = |value: &Value| {
            fs::write(dir.path().join("tokenizer.json"), value.to_string()).unwrap()
        };
        write(&value);
        assert!(GgufVocabBuf::from_hf_dir(dir.path(), 20_000).unwrap().is_some());
        change(&mut value);
        write(&value);
        match GgufVocabBuf::from_hf_dir(dir.path(), 20_000) {
            Err(error) if error.to_string().contains(wanted) => {}
            Err(error) => failures.push(format!("{wanted}: {error}")),
            Ok(_) => failures.push(format!("{wanted}: taken")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
