//! Promise: a hostile or broken model file is refused with an error that says what is wrong, and
//! never panics. Each table takes a valid file and breaks it in one way.

use std::path::Path;

use puna::format::hf_config::HfConfig;
use puna::format::mmap::Access;
use puna::format::{gguf, safetensors};
use puna::model::checkpoint::Checkpoint;
use puna::model::config::Config;
use puna::rng::Rng;

/// A GGUF file in parts, so that a test can break one of them.
#[derive(Clone)]
struct Draft {
    magic: [u8; 4],
    version: u32,
    n_tensors: Option<u64>,
    n_entries: Option<u64>,
    /// Key bytes, value type, value bytes.
    entries: Vec<(Vec<u8>, u32, Vec<u8>)>,
    tensors: Vec<DraftTensor>,
    alignment: usize,
}

#[derive(Clone)]
struct DraftTensor {
    name: Vec<u8>,
    /// Fastest first, as in the file.
    dims: Vec<u64>,
    ty: u32,
    offset: u64,
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

fn strings(texts: &[&str]) -> Vec<u8> {
    let mut out = 8u32.to_le_bytes().to_vec();
    out.extend((texts.len() as u64).to_le_bytes());
    texts.iter().for_each(|text| out.extend(string(text.as_bytes())));
    out
}

fn array(ty: u32, count: u64, bytes: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat()
}

impl Draft {
    /// A LLaMA of one block: dim 4, 2 heads of width 2, 1 key/value head, hidden 6, 5 tokens; F32.
    fn llama() -> Draft {
        let mut draft = Draft {
            magic: *b"GGUF",
            version: 3,
            n_tensors: None,
            n_entries: None,
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
        };
        draft.set("general.architecture", 8, &string(b"llama"));
        for (key, n) in [
            ("llama.embedding_length", 4u32),
            ("llama.feed_forward_length", 6),
            ("llama.block_count", 1),
            ("llama.attention.head_count", 2),
            ("llama.attention.head_count_kv", 1),
            ("llama.context_length", 16),
            ("tokenizer.ggml.bos_token_id", 1),
            ("tokenizer.ggml.eos_token_id", 2),
        ] {
            draft.set(key, 4, &n.to_le_bytes());
        }
        draft.set("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
        draft.set("tokenizer.ggml.model", 8, &string(b"llama"));
        draft.set("tokenizer.ggml.tokens", 9, &strings(&["<unk>", "<s>", "</s>", "a", "b"]));
        draft.set("tokenizer.ggml.scores", 9, &array(6, 5, &[0; 20]));
        draft.set("tokenizer.ggml.token_type", 9, &array(5, 5, &[1; 20]));
        for (name, dims) in [
            ("token_embd.weight", vec![4, 5]),
            ("blk.0.attn_norm.weight", vec![4]),
            ("blk.0.attn_q.weight", vec![4, 4]),
            ("blk.0.attn_k.weight", vec![4, 2]),
            ("blk.0.attn_v.weight", vec![4, 2]),
            ("blk.0.attn_output.weight", vec![4, 4]),
            ("blk.0.ffn_norm.weight", vec![4]),
            ("blk.0.ffn_gate.weight", vec![4, 6]),
            ("blk.0.ffn_up.weight", vec![4, 6]),
            ("blk.0.ffn_down.weight", vec![6, 4]),
            ("output_norm.weight", vec![4]),
        ] {
            draft.tensor(name, dims, 0);
        }
        draft
    }

    fn set(&mut self, key: &str, ty: u32, value: &[u8]) {
        self.entries.retain(|entry| entry.0 != key.as_bytes());
        self.entries.push((key.into(), ty, value.to_vec()));
    }

    fn remove(&mut self, key: &str) {
        self.entries.retain(|entry| entry.0 != key.as_bytes());
    }

    /// Adds a tensor where the one before ends; sizes as for F32.
    fn tensor(&mut self, name: &str, dims: Vec<u64>, ty: u32) {
        let offset = self.tensors.last().map_or(0, |t| {
            t.offset + (t.dims.iter().product::<u64>() * 4).next_multiple_of(self.alignment as u64)
        });
        self.tensors.push(DraftTensor { name: name.into(), dims, ty, offset });
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_entries.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, ty, value) in &self.entries {
            out.extend(string(key));
            out.extend(ty.to_le_bytes());
            out.extend(value);
        }
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.ty.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment.max(1)), 0);
        let len = Draft::llama_data_bytes();
        out.extend((0..len).map(|i| i as u8));
        out
    }

    fn llama_data_bytes() -> usize {
        // 80 + 16 + 64 + 32 + 32 + 64 + 16 + 96 + 96 + 96 bytes, each up to 32, and the last 16.
        96 + 32 + 64 + 32 + 32 + 64 + 32 + 96 + 96 + 96 + 16
    }
}

/// Opens bytes as a GGUF checkpoint and goes through everything that it offers.
fn open_gguf(dir: &Path, bytes: &[u8], access: Access) -> puna::Result<Checkpoint> {
    let path = dir.join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open_with(&path, access)?;
    checkpoint.gguf_tokenizer()?;
    for tensor in checkpoint.files.tensors() {
        assert_eq!(checkpoint.files.bytes(tensor)?.len(), tensor.len);
    }
    Ok(checkpoint)
}

/// Reports every row of a table whose error is absent or lacks its words.
fn report(failures: &[String]) {
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn judge(failures: &mut Vec<String>, row: &str, words: &[&str], result: puna::Result<()>) {
    match result {
        Ok(()) => failures.push(format!("{row}: accepted")),
        Err(error) => {
            let text = error.to_string();
            for word in words.iter().filter(|word| !text.contains(**word)) {
                failures.push(format!("{row}: {text:?} lacks {word:?}"));
            }
        }
    }
}

#[test]
fn the_unbroken_gguf_opens_in_both_versions_and_ways() {
    let dir = tempfile::tempdir().unwrap();
    for (version, access) in [(2, Access::Map), (3, Access::Map), (3, Access::Copy)] {
        let draft = Draft { version, ..Draft::llama() };
        let checkpoint = open_gguf(dir.path(), &draft.bytes(), access).unwrap();
        assert_eq!((checkpoint.config.dim, checkpoint.config.vocab_size), (4, 5));
        assert!(checkpoint.config.tie_embeddings);
        let tokenizer = checkpoint.gguf_tokenizer().unwrap().unwrap();
        assert_eq!(tokenizer.tokens, ["<unk>", "<s>", "</s>", "a", "b"]);
        assert_eq!(tokenizer.token_types.unwrap(), [0x0101_0101; 5]);
        assert_eq!((tokenizer.bos_id, tokenizer.eos_id), (Some(1), Some(2)));
    }
}

type Break = fn(&mut Draft);

/// Each way to break the format, and words that the refusal must contain.
const GGUF_FORMAT: &[(&str, Break, &[&str])] = &[
    ("magic", |d| d.magic = *b"GGML", &["magic", "GGUF", "at byte 0"]),
    ("version 1", |d| d.version = 1, &["version 1", "2 or 3", "at byte 4"]),
    ("version 4", |d| d.version = 4, &["version 4"]),
    ("big-endian", |d| d.version = 3u32.swap_bytes(), &["big-endian"]),
    ("tensor count", |d| d.n_tensors = Some(u64::MAX), &["18446744073709551615 tensors", "byte 8"]),
    ("entry count", |d| d.n_entries = Some(1 << 40), &["metadata entries", "byte 16"]),
    ("one entry too many", |d| d.n_entries = Some(d.entries.len() as u64 + 1), &["at byte"]),
    ("empty key", |d| d.entries[3].0.clear(), &["empty key"]),
    ("key not UTF-8", |d| d.entries[3].0[2] = 0xff, &["UTF-8"]),
    ("long key", |d| d.entries[3].0 = vec![b'k'; 70_000], &["key of 70000 bytes"]),
    (
        "duplicate key",
        |d| d.entries.push(d.entries[1].clone()),
        &["llama.embedding_length", "twice"],
    ),
    ("value type", |d| d.entries[1].1 = 13, &["value type 13", "unknown"]),
    (
        "string too long",
        |d| d.entries[0].2[..8].copy_from_slice(&[255; 8]),
        &["general.architecture of"],
    ),
    (
        "string of 2 GiB",
        |d| d.entries[0].2[..8].copy_from_slice(&(1u64 << 31).to_le_bytes()),
        &["2147483648"],
    ),
    ("bool of 2", |d| d.set("x.flag", 7, &[2]), &["bool of value 2"]),
    ("bools of 9", |d| d.set("x.flags", 9, &array(7, 2, &[1, 9])), &["bool of value 9"]),
    ("nested array", |d| d.set("x.list", 9, &array(9, 1, &array(4, 0, &[]))), &["array of arrays"]),
    ("element type", |d| d.set("x.list", 9, &array(99, 1, &[0; 8])), &["element type 99"]),
    ("array length", |d| d.set("x.list", 9, &array(4, 1 << 31, &[])), &["array of 2147483648 u32"]),
    ("array overflow", |d| d.set("x.list", 9, &array(10, 1 << 61, &[])), &["array of"]),
    ("string array length", |d| d.set("x.list", 9, &array(8, 1 << 40, &[])), &["array of"]),
    (
        "alignment 0",
        |d| d.set("general.alignment", 4, &[0; 4]),
        &["general.alignment is 0", "power of two"],
    ),
    (
        "alignment 24",
        |d| d.set("general.alignment", 4, &[24, 0, 0, 0]),
        &["general.alignment is 24"],
    ),
    (
        "alignment text",
        |d| d.set("general.alignment", 8, &string(b"32")),
        &["general.alignment is string"],
    ),
    ("tensor name empty", |d| d.tensors[1].name.clear(), &["empty name"]),
    ("tensor name of 64", |d| d.tensors[1].name = vec![b'n'; 64], &["tensor name of 64 bytes"]),
    ("tensor name not UTF-8", |d| d.tensors[1].name[0] = 0xc0, &["UTF-8"]),
    (
        "tensor twice",
        |d| d.tensors[6].name = d.tensors[1].name.clone(),
        &["blk.0.attn_norm.weight", "twice"],
    ),
    ("no dims", |d| d.tensors[1].dims.clear(), &["0 dimensions"]),
    ("5 dims", |d| d.tensors[1].dims = vec![1; 5], &["5 dimensions"]),
    ("dim 0", |d| d.tensors[1].dims[0] = 0, &["dimension 0"]),
    ("dim negative", |d| d.tensors[1].dims[0] = u64::MAX, &["dimension -1"]),
    ("elements overflow", |d| d.tensors[0].dims = vec![1 << 33, 1 << 33], &["2^64"]),
    ("bytes overflow", |d| d.tensors[0].dims = vec![1 << 62], &["2^64"]),
    (
        "sum overflows",
        |d| {
            d.tensors[0].dims = vec![(1 << 62) - 8];
            d.tensors[1].offset = (1u64 << 62).wrapping_sub(8).wrapping_mul(4);
            d.tensors[1].dims = vec![8];
        },
        &["2^64"],
    ),
    (
        "padding overflows",
        |d| {
            d.tensors.truncate(1);
            d.tensors[0].ty = 24;
            d.tensors[0].dims = vec![(1 << 63) - 1, 2];
            d.set("general.alignment", 4, &(1u32 << 31).to_le_bytes());
        },
        &["2^64"],
    ),
    ("type unknown", |d| d.tensors[2].ty = 200, &["blk.0.attn_q.weight", "type id 200", "unknown"]),
    ("type 4", |d| d.tensors[2].ty = 4, &["type id 4", "removed"]),
    ("type 5", |d| d.tensors[2].ty = 5, &["type id 5", "removed"]),
    ("type 31", |d| d.tensors[2].ty = 31, &["type id 31", "removed"]),
    ("type 33", |d| d.tensors[2].ty = 33, &["type id 33", "removed"]),
    ("type 36", |d| d.tensors[2].ty = 36, &["type id 36", "removed"]),
    ("type 38", |d| d.tensors[2].ty = 38, &["type id 38", "removed"]),
    ("row no whole block", |d| d.tensors[2].ty = 2, &["row of 4", "multiple of 32", "Q4_0"]),
    ("row of an unknown block", |d| d.tensors[2].ty = 23, &["multiple of 256", "IQ4_XS"]),
    (
        "offset unaligned",
        |d| d.tensors[2].offset += 4,
        &["blk.0.attn_q.weight", "offset 132", "wanted 128"],
    ),
    ("offset overlaps", |d| d.tensors[2].offset = 0, &["offset 0, wanted 128"]),
    ("offset far", |d| d.tensors[10].offset = u64::MAX - 31, &["output_norm.weight", "wanted"]),
    ("end beyond the file", |d| d.tensors[10].dims[0] = 5, &["output_norm.weight", "ends at byte"]),
];

#[test]
fn every_breach_of_gguf_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    for (row, damage, words) in GGUF_FORMAT {
        let mut draft = Draft::llama();
        damage(&mut draft);
        for access in [Access::Map, Access::Copy] {
            let result = open_gguf(dir.path(), &draft.bytes(), access).map(drop);
            judge(&mut failures, row, words, result);
        }
    }
    report(&failures);
}

/// Each way in which a well-formed GGUF can contradict itself or ask for what is not computed.
const GGUF_MODEL: &[(&str, Break, &[&str])] = &[
    ("architecture", |d| d.set("general.architecture", 8, &string(b"qwen2")), &["qwen2", "llama"]),
    ("no architecture", |d| d.remove("general.architecture"), &["general.architecture is missing"]),
    ("architecture a number", |d| d.set("general.architecture", 4, &[0; 4]), &["wanted a string"]),
    ("no width", |d| d.remove("llama.embedding_length"), &["llama.embedding_length is missing"]),
    (
        "width a string",
        |d| d.set("llama.embedding_length", 8, &string(b"4")),
        &["embedding_length", "integer"],
    ),
    (
        "width negative",
        |d| d.set("llama.embedding_length", 5, &(-4i32).to_le_bytes()),
        &["integer -4"],
    ),
    ("no blocks", |d| d.set("llama.block_count", 4, &[0; 4]), &["llama.block_count = 0"]),
    (
        "too many blocks",
        |d| d.set("llama.block_count", 4, &[2, 0, 0, 0]),
        &["blk.1.attn_norm.weight", "missing"],
    ),
    (
        "very many blocks",
        |d| d.set("llama.block_count", 10, &(1u64 << 60).to_le_bytes()),
        &["block_count"],
    ),
    (
        "heads 0",
        |d| d.set("llama.attention.head_count", 4, &[0; 4]),
        &["llama.attention.head_count = 0"],
    ),
    ("heads 3", |d| d.set("llama.attention.head_count", 4, &[3, 0, 0, 0]), &["head_count = 3"]),
    (
        "heads per layer",
        |d| d.set("llama.attention.head_count", 9, &array(4, 1, &[2, 0, 0, 0])),
        &["array of 1 u32"],
    ),
    ("kv heads 0", |d| d.set("llama.attention.head_count_kv", 4, &[0; 4]), &["head_count_kv = 0"]),
    (
        "kv heads 3",
        |d| d.set("llama.attention.head_count_kv", 4, &[3, 0, 0, 0]),
        &["head_count_kv = 3", "divisor"],
    ),
    (
        "head width odd",
        |d| d.set("llama.attention.key_length", 4, &[3, 0, 0, 0]),
        &["key_length = 3", "even"],
    ),
    (
        "value width",
        |d| d.set("llama.attention.value_length", 4, &[8, 0, 0, 0]),
        &["value_length = 8"],
    ),
    (
        "rope wider than head",
        |d| d.set("llama.rope.dimension_count", 4, &[4, 0, 0, 0]),
        &["dimension_count = 4"],
    ),
    (
        "rope odd",
        |d| d.set("llama.rope.dimension_count", 4, &[1, 0, 0, 0]),
        &["dimension_count = 1"],
    ),
    (
        "eps NaN",
        |d| d.set("llama.attention.layer_norm_rms_epsilon", 6, &f32::NAN.to_le_bytes()),
        &["epsilon = NaN"],
    ),
    ("eps 0", |d| d.set("llama.attention.layer_norm_rms_epsilon", 6, &[0; 4]), &["epsilon = 0"]),
    (
        "theta infinite",
        |d| d.set("llama.rope.freq_base", 6, &f32::INFINITY.to_le_bytes()),
        &["freq_base = inf"],
    ),
    (
        "theta negative",
        |d| d.set("llama.rope.freq_base", 6, &(-1f32).to_le_bytes()),
        &["freq_base = -1"],
    ),
    (
        "scaling unknown",
        |d| d.set("llama.rope.scaling.type", 8, &string(b"longrope")),
        &["longrope", "yarn"],
    ),
    (
        "yarn without factor",
        |d| d.set("llama.rope.scaling.type", 8, &string(b"yarn")),
        &["scaling.factor is missing"],
    ),
    (
        "factor NaN",
        |d| d.set("llama.rope.scaling.factor", 6, &f32::NAN.to_le_bytes()),
        &["scaling.factor = NaN"],
    ),
    ("experts", |d| d.set("llama.expert_count", 4, &[8, 0, 0, 0]), &["llama.expert_count 8"]),
    (
        "tokens",
        |d| d.set("tokenizer.ggml.tokens", 9, &strings(&["a", "b"])),
        &["tokens = 2", "rows, 5"],
    ),
    ("vocab size", |d| d.set("llama.vocab_size", 4, &[6, 0, 0, 0]), &["vocab_size = 6", "rows, 5"]),
    (
        "scores",
        |d| d.set("tokenizer.ggml.scores", 9, &array(6, 4, &[0; 16])),
        &["scores has 4 elements, wanted 5"],
    ),
    (
        "types",
        |d| d.set("tokenizer.ggml.token_type", 9, &array(5, 6, &[0; 24])),
        &["token_type has 6"],
    ),
    (
        "types of strings",
        |d| d.set("tokenizer.ggml.token_type", 9, &strings(&["1"; 5])),
        &["token_type is array of 5 string"],
    ),
    (
        "token not UTF-8",
        |d| {
            d.set("tokenizer.ggml.tokens", 9, &{
                let mut bytes = strings(&["a", "b", "c", "d", "e"]);
                *bytes.last_mut().unwrap() = 0xff;
                bytes
            })
        },
        &["tokenizer.ggml.tokens", "UTF-8"],
    ),
    (
        "bos",
        |d| d.set("tokenizer.ggml.bos_token_id", 4, &[5, 0, 0, 0]),
        &["bos_token_id = 5", "less than"],
    ),
    ("eos", |d| d.set("tokenizer.ggml.eos_token_id", 4, &[255; 4]), &["eos_token_id = 4294967295"]),
    (
        "no embeddings",
        |d| d.tensors[0].name = b"token_embd.x".to_vec(),
        &["token_embd.weight is missing"],
    ),
    (
        "shape",
        |d| d.tensors[2].dims = vec![2, 8],
        &["blk.0.attn_q.weight", "[8, 2], wanted [4, 4]"],
    ),
    (
        "element type",
        |d| {
            d.tensors[10].ty = 26;
        },
        &["output_norm.weight", "I32", "F32"],
    ),
    ("unknown tensor", |d| d.tensor("blk.0.attn_q_norm.weight", vec![1], 24), &["attn_q_norm"]),
    (
        "rope factors",
        |d| d.tensor("rope_freqs.weight", vec![1, 1], 0),
        &["rope_freqs.weight", "F32 of shape [1, 1], wanted F32 of [1]"],
    ),
];

#[test]
fn every_contradiction_in_a_gguf_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    for (row, damage, words) in GGUF_MODEL {
        let mut draft = Draft::llama();
        damage(&mut draft);
        let mut bytes = draft.bytes();
        if ["unknown tensor", "rope factors"].contains(row) {
            bytes.extend([0; 64]);
        }
        judge(&mut failures, row, words, open_gguf(dir.path(), &bytes, Access::Map).map(drop));
    }
    report(&failures);
}

/// A safetensors file of one header and `n` data bytes.
fn st(header: &str, n: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend((0..n).map(|i| i as u8));
    out
}

#[test]
fn every_breach_of_safetensors_is_refused_with_its_tensor() {
    let t = |name: &str, dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let one = |entry: String| format!("{{{entry}}}");
    let two = |a: String, b: String| format!("{{{a},{b}}}");
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    let huge = ((100_000_001u64).to_le_bytes().to_vec(), "wanted 2 to 100000000");
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty file", vec![], "0 bytes"),
        ("7 bytes", vec![0; 7], "7 bytes"),
        ("header of 0", st("", 0), "header of 0 bytes"),
        ("header of 1", st("{", 0), "header of 1 bytes"),
        ("header over 100 MB", huge.0, huge.1),
        (
            "header past the end",
            [&1000u64.to_le_bytes()[..], b"{}"].concat(),
            "header of 1000 bytes in a file of 10",
        ),
        ("array", st("[1,2]", 0), "wanted '{'"),
        ("leading space", st(" {}", 0), "wanted '{'"),
        ("not JSON", st("{nope}", 0), "header:"),
        (
            "not UTF-8",
            {
                let mut b = st("{\"a\":1}", 0);
                b[10] = 0xff;
                b
            },
            "header:",
        ),
        ("deep", st(&deep, 0), "header:"),
        ("text after the object", st("{}x", 0), "header:"),
        ("entry no object", st(r#"{"a":3}"#, 0), "\"a\""),
        ("no dtype", st(r#"{"a":{"shape":[1],"data_offsets":[0,4]}}"#, 4), "dtype"),
        ("dtype unknown", st(&one(t("a", "F33", "[1]", 0, 4)), 4), "element type \"F33\""),
        ("dtype of GGUF", st(&one(t("a", "Q4_0", "[32]", 0, 18)), 18), "element type \"Q4_0\""),
        ("shape negative", st(&one(t("a", "F32", "[-1]", 0, 4)), 4), "\"a\""),
        ("shape fraction", st(&one(t("a", "F32", "[1.5]", 0, 4)), 4), "\"a\""),
        ("elements overflow", st(&one(t("a", "F32", "[4294967296,4294967296]", 0, 4)), 4), "2^64"),
        ("bytes overflow", st(&one(t("a", "F32", "[4611686018427387904]", 0, 0)), 0), "2^64"),
        ("span short", st(&one(t("a", "F32", "[2]", 0, 4)), 4), "wanted a span of 8 bytes"),
        ("span long", st(&one(t("a", "F32", "[2]", 0, 12)), 12), "wanted a span of 8 bytes"),
        ("span reversed", st(&one(t("a", "F32", "[1]", 8, 4)), 8), "[8, 4]"),
        ("end past the file", st(&one(t("a", "F32", "[2]", 0, 8)), 4), "ends at 8 of 4"),
        ("offsets near 2^64", st(&one(t("a", "F32", "[1]", u64::MAX - 4, u64::MAX)), 4), "ends at"),
        ("hole at the start", st(&one(t("a", "F32", "[1]", 4, 8)), 8), "leaves a hole"),
        (
            "hole between",
            st(&two(t("a", "F32", "[1]", 0, 4), t("b", "F32", "[1]", 8, 12)), 12),
            "leaves a hole",
        ),
        (
            "overlap",
            st(&two(t("a", "F32", "[2]", 0, 8), t("b", "F32", "[2]", 4, 12)), 12),
            "overlaps",
        ),
        (
            "same span",
            st(&two(t("a", "F32", "[2]", 0, 8), t("b", "F32", "[2]", 0, 8)), 8),
            "overlaps",
        ),
        (
            "bytes after the end",
            st(&one(t("a", "F32", "[1]", 0, 4)), 5),
            "the last tensor ends here",
        ),
        (
            "tensor twice",
            st(&two(t("a", "F32", "[1]", 0, 4), t("a", "F32", "[1]", 4, 8)), 8),
            "occurs twice",
        ),
        ("metadata twice", st(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "occurs twice"),
        ("metadata key twice", st(r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0), "occurs twice"),
        ("metadata of numbers", st(r#"{"__metadata__":{"a":1}}"#, 0), "header:"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let mut failures = Vec::new();
    for (row, bytes, word) in table {
        std::fs::write(&path, bytes).unwrap();
        judge(&mut failures, row, &[word], safetensors::open(&path, Access::Map).map(drop));
    }
    report(&failures);
    std::fs::write(&path, st(&one(t("a", "F32", "[1]", 0, 4)), 4)).unwrap();
    assert!(safetensors::open(&path, Access::Map).is_ok(), "the unbroken file");
}

#[test]
fn every_breach_of_the_shard_index_is_refused() {
    let shard = st(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4);
    let map = |entries: &str| format!(r#"{{"weight_map":{{{entries}}}}}"#);
    let table = [
        ("valid", map(r#""a":"s.safetensors""#), ""),
        ("not JSON", "{".to_string(), "not an index"),
        ("no map", "{}".to_string(), "weight_map"),
        ("empty map", map(""), "weight_map is empty"),
        ("parent", map(r#""a":"../s.safetensors""#), "beside the index"),
        ("hidden parent", map(r#""a":"x/../../s.safetensors""#), "beside the index"),
        ("absolute", map(r#""a":"/etc/s.safetensors""#), "beside the index"),
        ("backslash", map(r#""a":"..\\s.safetensors""#), "beside the index"),
        ("drive", map(r#""a":"C:s.safetensors""#), "beside the index"),
        ("empty name", map(r#""a":"""#), "beside the index"),
        ("dot", map(r#""a":".""#), "beside the index"),
        ("other file", map(r#""a":"pytorch_model.bin""#), ".safetensors"),
        ("shard missing", map(r#""a":"t.safetensors""#), "t.safetensors"),
        (
            "tensor missing",
            map(r#""a":"s.safetensors","b":"s.safetensors""#),
            "tensor \"b\" is not in s.safetensors",
        ),
        ("tensor twice", map(r#""a":"s.safetensors","a":"s.safetensors""#), "occurs twice"),
        ("shard a number", map(r#""a":7"#), "not an index"),
    ];
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("s.safetensors"), shard).unwrap();
    let mut failures = Vec::new();
    for (row, index, word) in table {
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        let result = safetensors::open_dir(dir.path(), Access::Map).map(drop);
        match row {
            "valid" => assert!(result.is_ok(), "{result:?}"),
            _ => judge(&mut failures, row, &[word], result),
        }
    }
    report(&failures);
}

#[test]
fn every_contradiction_in_config_json_is_refused_by_key() {
    let text = std::fs::read_to_string("tests/fixtures/mini-llama3rope/config.json").unwrap();
    let valid: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rope = |change: &str| format!(r#"{{"rope_parameters":{change}}}"#);
    // A patch replaces top-level keys; `"-"` removes one.
    let table: Vec<(String, &str)> = vec![
        (r#"{"architectures":["GPT2LMHeadModel"]}"#.into(), "GPT2LMHeadModel"),
        (
            r#"{"architectures":["LlamaForSequenceClassification"]}"#.into(),
            "LlamaForSequenceClassification",
        ),
        (r#"{"architectures":7}"#.into(), "architectures = 7"),
        (r#"{"architectures":"-","model_type":"qwen2"}"#.into(), "qwen2"),
        (
            r#"{"architectures":"-","model_type":"-"}"#.into(),
            "neither architectures nor model_type",
        ),
        (r#"{"hidden_size":"-"}"#.into(), "hidden_size is missing"),
        (r#"{"hidden_size":0}"#.into(), "hidden_size = 0"),
        (r#"{"hidden_size":-48}"#.into(), "hidden_size = -48"),
        (r#"{"hidden_size":48.5}"#.into(), "hidden_size = 48.5"),
        (r#"{"hidden_size":1e300}"#.into(), "hidden_size = 1e"),
        (r#"{"hidden_size":18446744073709551615}"#.into(), "hidden_size = 18446744073709551615"),
        (r#"{"intermediate_size":0}"#.into(), "intermediate_size = 0"),
        (r#"{"num_hidden_layers":0}"#.into(), "num_hidden_layers = 0"),
        (r#"{"num_attention_heads":0}"#.into(), "num_attention_heads = 0"),
        (r#"{"num_attention_heads":5,"head_dim":"-"}"#.into(), "num_attention_heads = 5"),
        (r#"{"num_attention_heads":0,"head_dim":"-"}"#.into(), "num_attention_heads = 0"),
        (r#"{"num_key_value_heads":0}"#.into(), "num_key_value_heads = 0"),
        (r#"{"num_key_value_heads":3}"#.into(), "num_key_value_heads = 3"),
        (r#"{"head_dim":7}"#.into(), "head_dim = 7"),
        (r#"{"head_dim":2147483648}"#.into(), "head_dim = 2147483648"),
        (r#"{"vocab_size":0}"#.into(), "vocab_size = 0"),
        (r#"{"vocab_size":2}"#.into(), "eos_token_id = 2"),
        (r#"{"max_position_embeddings":0}"#.into(), "max_position_embeddings = 0"),
        (r#"{"rms_norm_eps":0}"#.into(), "rms_norm_eps = 0"),
        (r#"{"rms_norm_eps":-1e-6}"#.into(), "rms_norm_eps = -"),
        (r#"{"rms_norm_eps":1e300}"#.into(), "rms_norm_eps = 1"),
        (r#"{"rms_norm_eps":"tiny"}"#.into(), "wanted a number"),
        (r#"{"hidden_act":"gelu"}"#.into(), "gelu"),
        (r#"{"tie_word_embeddings":1}"#.into(), "tie_word_embeddings = 1"),
        (r#"{"bos_token_id":160}"#.into(), "bos_token_id = 160"),
        (r#"{"bos_token_id":-1}"#.into(), "bos_token_id = -1"),
        (r#"{"eos_token_id":[2,160]}"#.into(), "eos_token_id = 160"),
        (r#"{"eos_token_id":[2,"x"]}"#.into(), "eos_token_id"),
        (r#"{"quantization_config":{"quant_method":"gptq"}}"#.into(), "gptq"),
        (r#"{"partial_rotary_factor":0.5}"#.into(), "partial_rotary_factor 0.5"),
        (rope(r#"{"rope_type":"longrope"}"#), "longrope"),
        (rope(r#"{"full_attention":{"rope_type":"default"}}"#), "full_attention"),
        (rope(r#"{"rope_type":"linear"}"#), "factor"),
        (rope(r#"{"rope_type":"linear","factor":0}"#), "factor = 0"),
        (rope(r#"{"rope_type":"linear","factor":-2}"#), "factor = -2"),
        (rope(r#"{"rope_type":"dynamic","factor":"2"}"#), "factor = \"2\""),
        (rope(r#"{"rope_type":"llama3","factor":8,"low_freq_factor":1}"#), "high_freq_factor"),
        (
            rope(r#"{"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4}"#),
            "high_freq_factor = 4",
        ),
        (
            rope(r#"{"rope_type":"yarn","factor":4,"original_max_position_embeddings":0}"#),
            "original_max_position_embeddings = 0",
        ),
        (rope(r#"{"rope_type":"yarn","factor":4,"beta_fast":-1}"#), "beta_fast = -1"),
        (rope(r#"{"rope_type":"yarn","factor":4,"mscale":-1}"#), "mscale = -1"),
        (rope(r#"{"rope_type":"default","rope_theta":0}"#), "rope_theta = 0"),
        (rope(r#"{"rope_type":"default","rope_theta":0.5}"#), "rope_theta = 0.5"),
        (rope("[]"), "rope_parameters = []"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let mut failures = Vec::new();
    for (patch, word) in &table {
        let mut config = valid.clone();
        let changes: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(patch).unwrap();
        for (key, value) in changes {
            if value == "-" {
                config.as_object_mut().unwrap().remove(&key);
            } else {
                config[key] = value;
            }
        }
        std::fs::write(&path, config.to_string()).unwrap();
        let result = HfConfig::read(&path).and_then(|hf| Config::from_hf(&hf)).map(drop);
        judge(&mut failures, patch, &[word, "config.json"], result);
    }
    for text in ["", "[]", "null", "{", "\u{0}", "{\"a\":"] {
        std::fs::write(&path, text).unwrap();
        judge(&mut failures, text, &["not a JSON object"], HfConfig::read(&path).map(drop));
    }
    report(&failures);
}

#[test]
fn paths_that_are_no_model_are_refused_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, files: &[&str]| {
        let sub = dir.path().join(name);
        std::fs::create_dir(&sub).unwrap();
        files.iter().for_each(|file| std::fs::write(sub.join(file), b"{}").unwrap());
        sub
    };
    let pickled = make("pickled", &["config.json", "pytorch_model.bin"]);
    let empty = make("empty", &[]);
    let gguf_inside = make("gguf", &["model.gguf"]);
    let no_weights = make("config-only", &["config.json"]);
    let files = make("files", &["a.bin", "a.pt", "a.txt", "a", "a.safetensors", "a.gguf"]);
    let mut failures = Vec::new();
    for (path, word) in [
        (dir.path().join("absent"), "absent"),
        (pickled, "pickled"),
        (empty, "no config.json"),
        (gguf_inside, "name the file itself"),
        (no_weights, "neither model.safetensors"),
        (files.join("a.bin"), "pickled"),
        (files.join("a.pt"), "pickled"),
        (files.join("a.txt"), "wanted a .gguf file"),
        (files.join("a"), "wanted a .gguf file"),
        (files.join("a.safetensors"), "name the directory"),
        (files.join("a.gguf"), "file ends inside magic"),
    ] {
        let row = path.display().to_string();
        judge(&mut failures, &row, &[word], Checkpoint::open(&path).map(drop));
    }
    report(&failures);
}

#[test]
fn a_directory_whose_weights_contradict_its_config_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        std::fs::copy(format!("tests/fixtures/mini-linear/{name}"), dir.path().join(name)).unwrap();
    };
    copy("model.safetensors");
    let text = std::fs::read_to_string("tests/fixtures/mini-linear/config.json").unwrap();
    let mut failures = Vec::new();
    for (from, to, word) in [
        ("\"vocab_size\": 160", "\"vocab_size\": 161", "[160, 48], wanted [161, 48]"),
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            "model.layers.2.input_layernorm.weight",
        ),
        ("\"intermediate_size\": 128", "\"intermediate_size\": 64", "mlp.gate_proj.weight"),
        ("\"attention_bias\": false", "\"attention_bias\": true", "q_proj.bias"),
        ("\"mlp_bias\": false", "\"mlp_bias\": true", "gate_proj.bias"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(dir.path().join("config.json"), text.replace(from, to)).unwrap();
        judge(&mut failures, to, &[word], Checkpoint::open(dir.path()).map(drop));
    }
    copy("config.json");
    for (bytes, word) in [
        (r#"{"eos_token_id":160}"#, "160"),
        (r#"{"temperature":-1}"#, "temperature = -1"),
        (r#"{"top_p":1.5}"#, "top_p = 1.5"),
        (r#"{"top_k":"many"}"#, "top_k"),
    ] {
        std::fs::write(dir.path().join("generation_config.json"), bytes).unwrap();
        judge(
            &mut failures,
            bytes,
            &[word, "generation_config.json"],
            Checkpoint::open(dir.path()).map(drop),
        );
    }
    report(&failures);
    std::fs::write(
        dir.path().join("generation_config.json"),
        r#"{"eos_token_id":[2,3],"top_k":40}"#,
    )
    .unwrap();
    let generation = Checkpoint::open(dir.path()).unwrap().generation;
    assert_eq!(
        (generation.eos_ids, generation.top_k, generation.bos_id),
        (vec![2, 3], Some(40), Some(1))
    );
}

#[test]
fn a_gguf_cut_at_any_byte_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = Draft::llama().bytes();
    for n in 0..bytes.len() {
        assert!(
            open_gguf(dir.path(), &bytes[..n], Access::Map).is_err(),
            "cut at {n} of {}",
            bytes.len()
        );
    }
}

/// A safetensors file with two tensors and metadata, small enough to cut at every byte.
fn small_safetensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;
    st(header, 32)
}

#[test]
fn a_safetensors_file_cut_at_any_byte_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let bytes = small_safetensors();
    for n in 0..=bytes.len() {
        std::fs::write(&path, &bytes[..n]).unwrap();
        assert_eq!(safetensors::open(&path, Access::Copy).is_ok(), n == bytes.len(), "cut at {n}");
    }
}

/// Flips one to four random bytes of `bytes`, `n` times, and hands every result to `open`.
fn flip(bytes: &[u8], n: usize, seed: u64, mut open: impl FnMut(&[u8])) {
    let mut rng = Rng::new(seed, 0);
    for _ in 0..n {
        let mut broken = bytes.to_vec();
        for _ in 0..=rng.next_u32() % 4 {
            let at = rng.next_u32() as usize % broken.len();
            broken[at] ^= (1 + rng.next_u32() % 255) as u8;
        }
        open(&broken);
    }
}

#[test]
fn random_flips_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (mut accepted, mut refused) = (0, 0);
    let header_bytes = Draft::llama().bytes().len() - Draft::llama_data_bytes();
    let valid = Draft::llama().bytes();
    flip(&valid[..header_bytes], 3000, 1, |broken| {
        let whole = [broken, &valid[header_bytes..]].concat();
        match open_gguf(dir.path(), &whole, Access::Map) {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
    });
    // Most flips hit a length, a name or a type; some hit a score or a token's text.
    assert!(refused > accepted && accepted > 0, "{refused} refused, {accepted} accepted");

    let path = dir.path().join("x.safetensors");
    flip(&small_safetensors(), 3000, 2, |broken| {
        std::fs::write(&path, broken).unwrap();
        if let Ok(files) = safetensors::open(&path, Access::Map) {
            files.tensors().iter().for_each(|t| assert_eq!(files.bytes(t).unwrap().len(), t.len));
        }
    });

    let config = std::fs::read("tests/fixtures/mini-llama3rope/config.json").unwrap();
    let path = dir.path().join("config.json");
    flip(&config, 3000, 3, |broken| {
        std::fs::write(&path, broken).unwrap();
        if let Ok(config) = HfConfig::read(&path).and_then(|hf| Config::from_hf(&hf)) {
            let (freqs, _) =
                puna::model::rope::inv_freq(&config.rope, config.head_dim.min(64), 100);
            assert!(freqs.iter().all(|f| !f.is_nan()), "{config:?}");
        }
    });
}

#[test]
fn reads_outside_a_tensor_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, Draft::llama().bytes()).unwrap();
    let file = gguf::open(&path, Access::Map).unwrap();
    let norm = file.tensors.get("output_norm.weight").unwrap();
    let mut out = [0; 8];
    file.tensors.read_at(norm, 8, &mut out).unwrap();
    assert_eq!(out, file.tensors.bytes(norm).unwrap()[8..]);
    assert!(file.tensors.read_at(norm, 9, &mut out).is_err());
    assert!(file.tensors.read_at(norm, usize::MAX, &mut out).is_err());
}
