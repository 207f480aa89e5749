//! Promise: a hostile or broken model file is refused with an error that says what is wrong, and
//! never panics. Each table takes a valid file and breaks it in one way.

mod draft;
mod hugging_face;

use std::path::Path;

use self::draft::{Draft, array, string, strings};
use self::hugging_face::small_safetensors;

use puna::format::hf_config::HfConfig;
use puna::format::mmap::Access;
use puna::format::{gguf, safetensors};
use puna::model::checkpoint::Checkpoint;
use puna::model::config::Config;
use puna::rng::Rng;

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
