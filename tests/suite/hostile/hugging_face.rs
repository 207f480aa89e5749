//! Hugging Face directories: safetensors, the shard index, `config.json`, `generation_config.json`.

use puna::format::hf_config::HfConfig;
use puna::format::mmap::Access;
use puna::format::safetensors;
use puna::model::checkpoint::Checkpoint;
use puna::model::config::Config;

use super::{judge, report};

/// A safetensors file of one header and `n` data bytes.
pub fn st(header: &str, n: usize) -> Vec<u8> {
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
            r#"{"architectures":["LlamaForTokenClassification"]}"#.into(),
            "LlamaForTokenClassification",
        ),
        // A reward model has one label; two are transformers' default.
        (
            r#"{"architectures":["LlamaForSequenceClassification"]}"#.into(),
            "num_labels = 2: wanted 1",
        ),
        (
            r#"{"architectures":["LlamaForSequenceClassification"],"id2label":{"0":"a","1":"b","2":"c"}}"#
                .into(),
            "num_labels = 3: wanted 1",
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

/// A safetensors file with two tensors and metadata, small enough to cut at every byte.
pub fn small_safetensors() -> Vec<u8> {
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
