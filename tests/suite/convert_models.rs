//! Models from one form into another and back: equal bits, equal logits; adapters added to weights
//! against what PEFT computes; nothing half-written left where it cannot be finished.

use crate::support::engine::{append, load};
use crate::support::toy;
use puna::format::mmap::Access;
use puna::format::{FileDType, safetensors};
use puna::model::checkpoint::Checkpoint;
use puna::model::config::{RopePairing, RopeScaling};
use puna::model::convert::{convert, merge, quantize};
use puna::model::export::{WriteOptions, write_hf};
use puna::model::llama::KvType;
use puna::model::names::Weight;
use puna::model::source::WeightSource;
use puna_cpu::quant::BlockType;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MODELS: [&str; 7] = [
    "mini-bf16-sharded",
    "mini-dynamic",
    "mini-gqa",
    "mini-headdim-bias",
    "mini-linear",
    "mini-llama3rope",
    "mini-mha",
];

/// f32 arithmetic in another order: the promise of the contract, relative to the largest logit.
const F32_BOUND: f64 = 1e-4;

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model)
}

/// The first reference sequence of a model.
fn prompt(model: &str) -> Vec<u32> {
    let text = fs::read(fixture(model).join("inputs.json")).unwrap();
    let inputs: Value = serde_json::from_slice(&text).unwrap();
    let ids = inputs["logits"][0].as_array().unwrap().iter();
    ids.map(|id| id.as_u64().unwrap() as u32).collect()
}

/// What a run of the program left: exit status, standard output, standard error.
fn puna(words: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_puna")).args(words).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The JSON object that a run which must succeed prints.
fn result(words: &[&str]) -> Value {
    let (status, stdout, stderr) = puna(words);
    assert_eq!(status, Some(0), "{words:?}: {stderr}");
    serde_json::from_str(&stdout).unwrap()
}

fn options() -> WriteOptions<'static> {
    WriteOptions::default()
}

/// Logits of the model's first reference sequence.
fn logits(path: &Path, model: &str) -> Vec<f32> {
    let tokens = prompt(model);
    let loaded = load(path, 1, true);
    let mut cache = loaded.new_cache(tokens.len(), KvType::F32).expect("room for a short sequence");
    let mut ws = loaded.workspace();
    append(&loaded, &mut ws, &mut cache, &tokens)
}

/// Largest difference, relative to the largest reference value.
fn apart(got: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let most = wanted.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let worst = got.iter().zip(wanted).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(most > 0.0 && !worst.is_nan());
    f64::from(worst / most)
}

/// A weight's values as f32, in the file's order.
fn values(checkpoint: &Checkpoint, weight: Weight) -> Vec<f32> {
    let shape = checkpoint.shape(weight);
    let mut out = vec![0.0; shape.iter().product()];
    checkpoint.rows(weight, 0..shape[0], &mut out).unwrap();
    out
}

/// Every weight has the same bits in both.
fn same_weights(a: &Path, b: &Path) {
    let (a, b) = (Checkpoint::open(a).unwrap(), Checkpoint::open(b).unwrap());
    assert_eq!(a.config.rope.pairing, b.config.rope.pairing);
    assert!(a.config.weights().eq(b.config.weights()));
    for weight in a.config.weights() {
        let bits =
            |c: &Checkpoint| values(c, weight).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&a) == bits(&b), "{weight}");
    }
}

#[test]
fn there_and_back_gives_equal_bits_and_equal_logits() {
    for model in MODELS {
        let scratch = tempfile::tempdir().unwrap();
        let (gguf, back) = (scratch.path().join("m.gguf"), scratch.path().join("back"));
        let source = fixture(model);
        if model == "mini-dynamic" {
            let error = convert(&source, &gguf, None, &options()).unwrap_err().to_string();
            assert!(error.contains("\"dynamic\"") && error.contains(model), "{error}");
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
            // Directory to directory is still a way.
            convert(&source, &back, None, &options()).unwrap();
        } else {
            for dtype in [Some(FileDType::F32), None] {
                let options = WriteOptions { overwrite: true, ..options() };
                convert(&source, &gguf, dtype, &options).unwrap();
                convert(&gguf, &back, dtype, &options).unwrap();
                same_weights(&source, &back);
            }
            let config = Checkpoint::open(&gguf).unwrap().config;
            assert_eq!(config.rope.pairing, RopePairing::Interleaved);
            assert!(apart(&logits(&gguf, model), &logits(&source, model)) <= F32_BOUND, "{model}");
        }
        same_weights(&source, &back);
        let config = |path: &Path| Checkpoint::open(path).unwrap().config;
        assert_eq!(config(&back), config(&source), "{model}");
        assert!(logits(&back, model) == logits(&source, model), "{model}: other bits");
    }
}

#[test]
fn shards_hold_the_same_model() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("sharded");
    let source = Checkpoint::open(&fixture("mini-gqa")).unwrap();
    let small = WriteOptions { shard_bytes: 200_000, ..options() };
    let extras = puna::model::export::Extras::of(&source);
    write_hf(&out, &source, extras, FileDType::F32, &small).unwrap();
    let shards = fs::read_dir(&out).unwrap().filter(|entry| {
        entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".safetensors")
    });
    assert!(shards.count() > 3);
    same_weights(&fixture("mini-gqa"), &out);
}

/// Tensor `name` of the adapter's reference logits.
fn reference(name: &str) -> Option<Vec<u8>> {
    let path = fixture("mini-gqa").join("lora-all-init-logits.safetensors");
    let files = safetensors::open(&path, Access::Map).unwrap();
    Some(files.bytes(files.get(name)?).unwrap().to_vec())
}

fn reference_logits(name: &str) -> Vec<f32> {
    let bytes = reference(name).unwrap();
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

#[test]
fn merged_logits_are_those_of_peft_from_every_form() {
    let scratch = tempfile::tempdir().unwrap();
    let base = fixture("mini-gqa");
    let adapter = base.join("lora-all-init");
    let at = |name: &str| scratch.path().join(name);
    convert(&base, &at("base.gguf"), None, &options()).unwrap();
    let forms: [(PathBuf, PathBuf); 4] = [
        (base.clone(), at("merged-hf")),
        (base.clone(), at("merged.gguf")),
        (at("base.gguf"), at("merged-of-gguf")),
        (at("base.gguf"), at("merged-of-gguf.gguf")),
    ];
    for (model, out) in &forms {
        let (_, merged) = merge(model, &adapter, out, None, &options()).unwrap();
        assert_eq!(merged, 28);
        let loaded = load(out, 1, true);
        let mut i = 0;
        while let Some(bytes) = reference(&format!("input_ids.{i}")) {
            let tokens: Vec<u32> =
                bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as u32).collect();
            let mut cache = loaded.new_cache(tokens.len(), KvType::F32).unwrap();
            let mut ws = loaded.workspace();
            let got = append(&loaded, &mut ws, &mut cache, &tokens);
            let wanted = reference_logits(&format!("merged_logits.{i}"));
            let off = apart(&got, &wanted);
            println!("{}: sequence {i}: {off:.2e}", out.display());
            assert!(off <= F32_BOUND, "{}: sequence {i}: {off:e}", out.display());
            i += 1;
        }
        assert!(i > 1);
    }
    // The two orders of rows lead to the same sums.
    same_weights(&at("merged-hf"), &at("merged-of-gguf"));
    // And the adapter does change the model.
    assert!(apart(&logits(&at("merged-hf"), "mini-gqa"), &logits(&base, "mini-gqa")) > 1e-2);
}

#[test]
fn every_type_quantises_and_rows_that_do_not_fit_fall_back() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("q.gguf");
    let replace = WriteOptions { overwrite: true, ..options() };
    let model = fixture("mini-gqa"); // rows of 64 and 192
    let exact = scratch.path().join("exact.gguf");
    convert(&model, &exact, None, &options()).unwrap();
    let source = Checkpoint::open(&exact).unwrap();
    for block in BlockType::ALL {
        let written = quantize(&model, &out, FileDType::Block(block), &replace).unwrap();
        let checkpoint = Checkpoint::open(&out).unwrap();
        let fits = block.block_len() == 32;
        let wanted = if fits { block } else { BlockType::Q8_0 };
        for weight in checkpoint.config.weights() {
            let dtype = checkpoint.weight(weight).unwrap().dtype;
            let matrix = checkpoint.shape(weight).len() == 2;
            assert_eq!(dtype, if matrix { FileDType::Block(wanted) } else { FileDType::F32 });
        }
        assert_eq!(written.notes.is_empty(), fits, "{block:?}: {:?}", written.notes);
        // The worst format here, Q4_0, has steps of an eighth of a block's largest weight, about
        // two standard deviations: an error of 1/8 * 2 / sqrt(12). Zeros would be off by 1, rows in
        // another order by sqrt(2).
        for weight in checkpoint.config.weights().filter(|&w| checkpoint.shape(w).len() == 2) {
            let (got, wanted) = (values(&checkpoint, weight), values(&source, weight));
            let square = |x: f32| f64::from(x) * f64::from(x);
            let error: f64 = got.iter().zip(&wanted).map(|(a, b)| square(a - b)).sum();
            let off = (error / wanted.iter().map(|&x| square(x)).sum::<f64>()).sqrt();
            assert!(off > 0.0 && off < 0.12, "{block:?}: {weight}: {off}");
        }
    }
    // Rows of 42 fit no block.
    let written =
        quantize(&fixture("mini-headdim-bias"), &out, FileDType::Block(BlockType::Q4_K), &replace)
            .unwrap();
    assert!(written.notes.iter().any(|note| note.contains("F16")), "{:?}", written.notes);
    // A quantised model becomes a directory again, rounded once more.
    let back = scratch.path().join("back");
    quantize(&model, &out, FileDType::Block(BlockType::Q8_0), &replace).unwrap();
    let written = convert(&out, &back, None, &options()).unwrap();
    assert_eq!(written.types[0].0, FileDType::BF16);
    assert!(written.notes.iter().any(|note| note.contains("Q8_0")));
    convert(&out, &back, Some(FileDType::F32), &replace).unwrap();
    assert!(apart(&logits(&back, "mini-gqa"), &logits(&out, "mini-gqa")) <= F32_BOUND);
    let q4 = Some(FileDType::Block(BlockType::Q4_0));
    let error = convert(&out, &back, q4, &replace).unwrap_err().to_string();
    assert!(error.contains("Q4_0") && error.contains(".gguf"), "{error}");
}

#[test]
fn merging_into_a_quantised_file_keeps_what_it_does_not_touch() {
    let scratch = tempfile::tempdir().unwrap();
    let (base, out) = (scratch.path().join("q.gguf"), scratch.path().join("out.gguf"));
    let model = fixture("mini-gqa");
    // A sum is not rounded to fewer than eight bits.
    for (block, summed) in [
        (BlockType::Q4_0, BlockType::Q8_0),
        (BlockType::Q5_1, BlockType::Q8_0),
        (BlockType::Q8_0, BlockType::Q8_0),
    ] {
        let replace = WriteOptions { overwrite: true, ..options() };
        quantize(&model, &base, FileDType::Block(block), &replace).unwrap();
        merge(&base, &model.join("lora-qv-final"), &out, None, &replace).unwrap();
        let (a, b) = (Checkpoint::open(&base).unwrap(), Checkpoint::open(&out).unwrap());
        let mut changed = 0;
        for weight in a.config.weights() {
            let (x, y) = (a.weight(weight).unwrap(), b.weight(weight).unwrap());
            let equal = a.files.bytes(x).unwrap() == b.files.bytes(y).unwrap();
            let adapted = x.name.contains("attn_q.") || x.name.contains("attn_v.");
            let wanted = if adapted { FileDType::Block(summed) } else { x.dtype };
            assert_eq!(y.dtype, wanted, "{weight}");
            assert!(adapted || equal, "{weight} has no adapter");
            changed += usize::from(!equal);
        }
        assert_eq!(changed, 8);
    }
}

#[test]
fn llama3_scaling_survives_as_divisors() {
    let scratch = tempfile::tempdir().unwrap();
    let gguf = scratch.path().join("m.gguf");
    convert(&fixture("mini-llama3rope"), &gguf, None, &options()).unwrap();
    let rope = Checkpoint::open(&gguf).unwrap().config.rope;
    assert_eq!(rope.scaling, RopeScaling::None);
    let factors = rope.freq_factors.unwrap();
    assert_eq!((factors[0], *factors.last().unwrap()), (1.0, 4.0));
    // From GGUF to GGUF they stay.
    let again = scratch.path().join("again.gguf");
    convert(&gguf, &again, None, &options()).unwrap();
    assert_eq!(Checkpoint::open(&again).unwrap().config.rope.freq_factors, Some(factors));
}

#[test]
fn the_tokenizer_travels_with_the_model() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    fs::create_dir(at("toy")).unwrap();
    toy::make(Path::new(&at("toy")));
    result(&["convert", &at("toy"), &at("toy.gguf"), "--json"]);
    result(&["convert", &at("toy.gguf"), &at("back"), "--json"]);
    let answer = |model: &str, more: &[&str]| {
        let model = at(model);
        let words = ["generate", &model, "--json", "--max-new-tokens", "8", "-p"];
        let value = result(&[&words[..], more].concat());
        [value["prompt_tokens"].clone(), value["tokens"].clone(), value["text"].clone()]
    };
    // With --chat the prompt passes through the template, which came along.
    for more in [&["Hello 12345, the\n\nworld"][..], &["Hi", "--chat"]] {
        let first = answer("toy", more);
        assert!(first[0].as_array().unwrap().len() > 3);
        assert_eq!(answer("toy.gguf", more), first);
        assert_eq!(answer("back", more), first);
    }
}

#[test]
fn nothing_half_written_is_left_and_nothing_is_replaced_unasked() {
    let scratch = tempfile::tempdir().unwrap();
    let model = fixture("mini-mha");
    let file = scratch.path().join("file");
    fs::write(&file, "mine").unwrap();
    let names = || {
        let entries = fs::read_dir(scratch.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for out in [file.join("out"), file.join("out.gguf"), scratch.path().join("no/such/out.gguf")] {
        let error = convert(&model, &out, None, &options()).unwrap_err();
        assert!(matches!(error, puna::Error::Io { .. }), "{error}");
        assert!(error.to_string().contains("out"), "{error}");
        assert_eq!(names(), ["file"]);
    }
    // Cancelled in the middle.
    let stop = |done: u64, total: u64| match done > total / 2 {
        true => Err(puna::Error::Cancelled),
        false => Ok(()),
    };
    for out in ["out", "out.gguf"] {
        let cancelled = WriteOptions { progress: &stop, ..options() };
        let out = scratch.path().join(out);
        assert!(matches!(convert(&model, &out, None, &cancelled), Err(puna::Error::Cancelled)));
        assert_eq!(names(), ["file"]);
    }
    for out in ["out", "out.gguf"] {
        let out = scratch.path().join(out);
        convert(&model, &out, None, &options()).unwrap();
        let error = convert(&model, &out, None, &options()).unwrap_err().to_string();
        assert!(error.contains("--overwrite"), "{error}");
        convert(&model, &out, None, &WriteOptions { overwrite: true, ..options() }).unwrap();
    }
    fs::write(scratch.path().join("out/thesis.txt"), "mine").unwrap();
    let replace = WriteOptions { overwrite: true, ..options() };
    let error =
        convert(&model, &scratch.path().join("out"), None, &replace).unwrap_err().to_string();
    assert!(error.contains("thesis.txt"), "{error}");
    assert_eq!(names(), ["file", "out", "out.gguf"]);
}

#[test]
fn the_commands_report_and_refuse() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    let model = fixture("mini-gqa").display().to_string();
    let adapter = fixture("mini-gqa").join("lora-all-init").display().to_string();

    let value =
        result(&["merge", &model, "--adapter", &adapter, &at("m"), "--dtype", "bf16", "--json"]);
    assert_eq!((&value["format"], &value["merged"]), (&"huggingface".into(), &28.into()));
    assert_eq!(value["tensor_types"]["BF16"], value["tensors"]);
    let (status, stdout, stderr) = puna(&["quantize", &at("m"), &at("q.gguf"), "--type", "q4_k"]);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stdout.contains("Q8_0") && stderr.contains("Q4_K"), "{stdout}{stderr}");

    let cases: [(&[&str], i32, &str); 8] = [
        (&["convert", &model], 2, "no output named"),
        (&["convert"], 2, "no model named"),
        (&["quantize", &model, &at("x.gguf")], 2, "no type named"),
        (&["quantize", &model, &at("x.gguf"), "--type", "Q9"], 2, "Q9"),
        (&["quantize", &model, &at("x"), "--type", "Q4_0"], 2, "are .gguf files"),
        (&["merge", &model, &at("x")], 2, "no adapter named"),
        (&["merge", &model, &at("x"), "--adapter", &model], 1, "adapter_config.json"),
        (&["convert", &model, &at("q.gguf")], 1, "--overwrite"),
    ];
    for (words, status, wanted) in cases {
        let (code, stdout, stderr) = puna(words);
        assert_eq!(code, Some(status), "{words:?}: {stderr}");
        assert!(stderr.contains(wanted) && stdout.is_empty(), "{words:?}: {stderr}");
    }
    assert!(!scratch.path().join("x").exists() && !scratch.path().join("x.gguf").exists());
}
