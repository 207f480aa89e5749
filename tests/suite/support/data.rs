//! Small data sets in directories of their own, and tokenizers for them.

use puna::data::{DataOptions, Layout, Prepared, Row, Rules, prepare};
use puna::text::{ChatTemplate, GgufVocab, TextParts, Tokenizer};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A data set and a cache in a directory of their own.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new(files: &[(&str, &str)]) -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.data()).unwrap();
        for (name, text) in files {
            fs::write(place.data().join(name), text).unwrap();
        }
        place
    }

    pub fn container(kind: &str, instances: &Value) -> Place {
        Place::new(&[("x.json", &json!({"type": kind, "instances": instances}).to_string())])
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub fn options(&self) -> DataOptions {
        let block_size = Some(64);
        DataOptions { cache_dir: Some(self.cache()), block_size, ..DataOptions::default() }
    }

    pub fn prepare(&self, text: &TextParts, options: &DataOptions) -> puna::Result<Prepared> {
        let vocab_size = text.tokenizer.vocab_size();
        prepare(&self.data(), Some(text), vocab_size, 4096, options, &mut |_| {})
    }

    /// Rows of the whole set, one a document.
    pub fn blocks(&self, text: &TextParts, rules: Rules) -> Vec<Row> {
        let options = DataOptions { rules, layout: Layout::Blocks, ..self.options() };
        rows(&self.prepare(text, &options).unwrap())
    }
}

pub fn rows(prepared: &Prepared) -> Vec<Row> {
    (0..prepared.train.len()).map(|i| prepared.train.row(i).unwrap()).collect()
}

pub fn fixture(name: &str) -> TextParts {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name);
    TextParts::from_hf_dir(&dir).unwrap()
}

/// One token a byte (its value and two), BOS 0 and EOS 1; BOS is added by itself.
pub fn bytes_with(template: Option<&str>) -> TextParts {
    let names: Vec<String> = (0..=255u32)
        .map(|b| match b {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => b,
            0..=0x20 => 0x100 + b,
            0x7f..=0xa0 => 0x121 + b - 0x7f,
            _ => 0x143,
        })
        .map(|c| char::from_u32(c).unwrap().to_string())
        .collect();
    let tokens: Vec<&str> = ["<B>", "<E>"].into_iter().chain(names.iter().map(|n| &**n)).collect();
    let vocab = GgufVocab {
        model: "gpt2",
        pre: Some("gpt-2"),
        token_types: Some((0..tokens.len()).map(|id| if id < 2 { 3 } else { 1 }).collect()),
        tokens,
        merges: Some(vec![]),
        bos_id: Some(0),
        eos_id: Some(1),
        add_bos: Some(true),
        ..GgufVocab::default()
    };
    TextParts {
        tokenizer: Tokenizer::from_gguf(&vocab).unwrap(),
        template: template.map(|source| ChatTemplate::jinja(source).unwrap()),
    }
}

pub fn bytes() -> TextParts {
    bytes_with(None)
}
