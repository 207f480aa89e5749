//! Tokenizer files that lie: every one is refused with an error, none panics.

use puna::text::{GgufVocab, TextParts, Tokenizer};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name)
}

/// A small fixed-seed generator (SplitMix64).
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

fn llama() -> GgufVocab<'static> {
    GgufVocab {
        model: "llama",
        tokens: vec!["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"],
        scores: Some(vec![0.0, 0.0, 0.0, -4.0, -3.0, -2.0, -1.0, -0.5]),
        token_types: Some(vec![2, 3, 3, 1, 1, 1, 1, 1]),
        ..GgufVocab::default()
    }
}

fn gpt2() -> GgufVocab<'static> {
    GgufVocab {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: vec!["a", "b", "ab", "<|end|>"],
        merges: Some(vec!["a b"]),
        token_types: Some(vec![1, 1, 1, 3]),
        ..GgufVocab::default()
    }
}

#[test]
fn gguf_metadata_that_contradicts_itself() {
    assert!(Tokenizer::from_gguf(&llama()).is_ok() && Tokenizer::from_gguf(&gpt2()).is_ok());
    let long: &'static str = Box::leak("x".repeat(5000).into_boxed_str());
    let cases: Vec<(&str, GgufVocab<'_>, &str)> = vec![
        ("no tokens", GgufVocab { tokens: vec![], ..llama() }, "tokens"),
        ("family", GgufVocab { model: "bert", ..llama() }, "bert"),
        ("no scores", GgufVocab { scores: None, ..llama() }, "scores"),
        ("few scores", GgufVocab { scores: Some(vec![0.0; 7]), ..llama() }, "scores has 7"),
        ("score NaN", GgufVocab { scores: Some(vec![f32::NAN; 8]), ..llama() }, "NaN"),
        ("many types", GgufVocab { token_types: Some(vec![1; 9]), ..llama() }, "token_type has 9"),
        ("bos", GgufVocab { bos_id: Some(8), ..llama() }, "bos_token_id is 8"),
        ("eos", GgufVocab { eos_id: Some(u32::MAX), ..llama() }, "eos_token_id"),
        ("unk", GgufVocab { unk_id: Some(100), ..gpt2() }, "unknown_token_id"),
        ("pad", GgufVocab { pad_id: Some(4), ..gpt2() }, "padding_token_id"),
        (
            "twice the same",
            GgufVocab {
                tokens: vec!["<unk>", "<s>", "</s>", "▁", "a", "a", "ab", "x"], ..llama()
            },
            "same text",
        ),
        ("twice the same", GgufVocab { tokens: vec!["a", "b", "ab", "ab"], ..gpt2() }, "same text"),
        ("no merges", GgufVocab { merges: None, ..gpt2() }, "merges"),
        ("merge of one", GgufVocab { merges: Some(vec!["ab"]), ..gpt2() }, "merges[0]"),
        ("empty merge", GgufVocab { merges: Some(vec!["a b", ""]), ..gpt2() }, "merges[1]"),
        ("merge of unknown", GgufVocab { merges: Some(vec!["a z"]), ..gpt2() }, "merges"),
        ("merge to unknown", GgufVocab { merges: Some(vec!["b a"]), ..gpt2() }, "merges"),
        ("pre", GgufVocab { pre: Some("qwen99"), ..gpt2() }, "qwen99"),
        ("bos to add", GgufVocab { add_bos: Some(true), ..gpt2() }, "BOS"),
        (
            "endless special token",
            GgufVocab { tokens: vec!["a", "b", "ab", long], ..gpt2() },
            "5000 bytes",
        ),
    ];
    let mut failures = Vec::new();
    for (name, vocab, want) in cases {
        match Tokenizer::from_gguf(&vocab) {
            Ok(_) => failures.push(format!("{name}: accepted")),
            Err(e) if !e.to_string().contains(want) => failures.push(format!("{name}: {e}")),
            Err(_) => {}
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn text_without_any_token() {
    let vocab = GgufVocab {
        tokens: vec!["▁", "a", "b"],
        scores: Some(vec![0.0; 3]),
        token_types: Some(vec![1; 3]),
        bos_id: None,
        add_bos: Some(false),
        unk_id: None,
        ..llama()
    };
    // The family's usual ids are taken where the file names none: unknown is token 0 here.
    let t = Tokenizer::from_gguf(&vocab).unwrap();
    assert_eq!(t.encode("aé!b", false, false).unwrap(), [0, 1, 0, 2]);
}

#[test]
fn directories_without_or_with_broken_files() {
    let dir = tempfile::tempdir().unwrap();
    let error = TextParts::from_hf_dir(dir.path()).err().unwrap().to_string();
    assert!(error.contains("tokenizer.model"), "{error}");
    for text in ["", "{", "[]", "{\"version\":\"1.0\"}", "null", "{\"model\":{}}"] {
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        assert!(TextParts::from_hf_dir(dir.path()).is_err(), "{text:?}");
    }
    std::fs::copy(fixture("byte-level/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    assert!(TextParts::from_hf_dir(dir.path()).is_ok());
    std::fs::write(dir.path().join("tokenizer_config.json"), "[1]").unwrap();
    assert!(TextParts::from_hf_dir(dir.path()).is_err());
}

/// Whatever a damaged file still decodes to must survive use.
fn use_it(parts: &TextParts) {
    let t = &parts.tokenizer;
    let text = "Hello the with\n\n 123 é <s><|begin|>";
    for (special, parse) in [(true, true), (false, false)] {
        if let Ok(ids) = t.encode(text, special, parse) {
            let _ = t.decode(&ids, special);
        }
    }
    let _ = t.decode(&[0, 1, 2, 300, 600], false);
    let _ = t.describe();
}

#[test]
fn every_truncation_and_seeded_flips_of_tokenizer_model() {
    let good = std::fs::read(fixture("spm/tokenizer.model")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.model");
    let mut refused = 0;
    let mut run = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match TextParts::from_hf_dir(dir.path()) {
            Ok(parts) => use_it(&parts),
            Err(_) => refused += 1,
        }
    };
    for i in 0..64 {
        run(&good[..good.len() * i / 64]);
    }
    let mut seeded = Seeded(7);
    for _ in 0..2000 {
        let mut bytes = good.clone();
        for _ in 0..=seeded.below(3) {
            let at = seeded.below(bytes.len());
            bytes[at] ^= 1 << seeded.below(8);
        }
        run(&bytes);
    }
    assert!(refused > 200, "only {refused} were refused");
}

#[test]
fn truncations_and_seeded_flips_of_tokenizer_json() {
    let good = std::fs::read(fixture("byte-level/tokenizer.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut refused = 0;
    let mut run = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match TextParts::from_hf_dir(dir.path()) {
            Ok(parts) => use_it(&parts),
            Err(_) => refused += 1,
        }
    };
    for i in 0..64 {
        run(&good[..good.len() * i / 64]);
    }
    let mut seeded = Seeded(11);
    for _ in 0..1000 {
        let mut bytes = good.clone();
        let at = seeded.below(bytes.len());
        bytes[at] ^= 1 << seeded.below(8);
        run(&bytes);
    }
    assert!(refused > 200, "only {refused} were refused");
}

#[test]
fn lengths_in_a_protobuf_beyond_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.model");
    for bytes in [
        &b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"[..],
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a\x05\x0a\x7fab",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0b\x0c",
        b"\x0d\x00\x00",
        b"",
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert!(TextParts::from_hf_dir(dir.path()).is_err(), "{bytes:?}");
    }
}
