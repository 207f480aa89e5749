use crate::model::names::BlockWeight;
use std::path::{Path, PathBuf};

use puna_cpu::quant::BlockType;

use super::*;
use crate::format::gguf::{GgufWriter, MetaValue};
use crate::model::config::{RopePairing, RopeScaling};

fn fixture(model: &str) -> Checkpoint {
    Checkpoint::open(&Path::new("tests/fixtures").join(model)).unwrap()
}

/// Writes a Hugging Face checkpoint as a GGUF of the same element types. Rows of Q and K keep their
/// order, so the file is good for comparing configurations and bytes, not for running.
fn to_gguf(hf: &Checkpoint, path: &Path, change: impl FnOnce(&mut GgufWriter)) {
    let c = &hf.config;
    let mut writer = GgufWriter::new();
    writer.meta(keys::ARCHITECTURE, MetaValue::Str("llama".into()));
    for (key, n) in [
        (keys::DIM, c.dim),
        (keys::HIDDEN_DIM, c.hidden_dim),
        (keys::N_LAYERS, c.n_layers),
        (keys::N_HEADS, c.n_heads),
        (keys::N_KV_HEADS, c.n_kv_heads),
        (keys::KEY_LENGTH, c.head_dim),
        (keys::MAX_SEQ_LEN, c.max_seq_len),
    ] {
        writer.meta(key, MetaValue::U32(n as u32));
    }
    writer.meta(keys::NORM_EPS, MetaValue::F32(c.norm_eps));
    writer.meta(keys::ROPE_THETA, MetaValue::F32(c.rope.theta as f32));
    if let Some(id) = c.bos_id {
        writer.meta(keys::BOS_ID, MetaValue::U32(id));
    }
    if let Some(&id) = c.eos_ids.first() {
        writer.meta(keys::EOS_ID, MetaValue::U32(id));
    }
    let weights: Vec<(Weight, &TensorInfo)> = Weight::all(c.n_layers)
        .filter(|&weight| weight != Weight::LmHead || !c.tie_embeddings)
        .filter_map(|weight| Some((weight, hf.weight_opt(weight).unwrap()?)))
        .collect();
    for (weight, tensor) in &weights {
        writer.tensor(weight.file_name(Layout::Gguf), tensor.dtype, &tensor.shape);
    }
    change(&mut writer);
    let mut out = writer.start(path).unwrap();
    for (_, tensor) in &weights {
        // In pieces that fit no tensor's length, as a writer of large files would.
        for piece in hf.files.bytes(tensor).unwrap().chunks(1000) {
            out.write(piece).unwrap();
        }
    }
    if let Some((_, left)) = out.expects() {
        out.write(&1f32.to_le_bytes().repeat(left as usize / 4)).unwrap();
    }
    out.finish().unwrap();
}

fn temp() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    (dir, path)
}

#[test]
fn a_gguf_of_a_directory_is_the_same_model() {
    for model in ["mini-bf16-sharded", "mini-gqa", "mini-headdim-bias", "mini-mha"] {
        let hf = fixture(model);
        let (_dir, path) = temp();
        to_gguf(&hf, &path, |_| {});
        assert!(!path.with_extension("gguf.partial").exists());
        let gguf = Checkpoint::open(&path).unwrap();
        let mut config = gguf.config.clone();
        assert_eq!(config.rope.pairing, RopePairing::Interleaved);
        config.rope.pairing = RopePairing::Half;
        assert_eq!(config, hf.config, "{model}");
        for weight in Weight::all(hf.config.n_layers) {
            let (a, b) = (hf.weight_opt(weight).unwrap(), gguf.weight_opt(weight).unwrap());
            assert_eq!(a.is_some(), b.is_some(), "{model} {weight}");
            let (Some(a), Some(b)) = (a, b) else { continue };
            assert_eq!(
                hf.files.bytes(a).unwrap(),
                gguf.files.bytes(b).unwrap(),
                "{model} {weight}"
            );
            let mut read = vec![0; b.len];
            gguf.files.read_at(b, 0, &mut read).unwrap();
            assert_eq!(read, gguf.files.bytes(b).unwrap());
            assert_eq!(b.offset % 32, 0);
        }
    }
}

#[test]
fn tied_embeddings_and_sharded_files_are_found() {
    let tied = fixture("mini-gqa");
    assert_eq!(tied.weight(Weight::LmHead).unwrap(), tied.weight(Weight::TokEmb).unwrap());
    let sharded = fixture("mini-bf16-sharded");
    assert_eq!(sharded.files.paths().count(), 3);
    assert_eq!(sharded.files.total_bytes(), 196_512);
    let head = sharded.weight(Weight::LmHead).unwrap();
    assert_eq!((head.dtype, head.shape.as_slice()), (FileDType::BF16, &[180, 48][..]));
    assert!(sharded.files.path_of(head).ends_with("model-00003-of-00003.safetensors"));
    assert!(sharded.gguf_tokenizer().unwrap().is_none());
}

#[test]
fn rope_keys_and_factors_of_gguf_reach_the_config() {
    let hf = fixture("mini-mha");
    let (_dir, path) = temp();
    let scaling = |change: &dyn Fn(&mut GgufWriter)| {
        to_gguf(&hf, &path, |writer| change(writer));
        Checkpoint::open(&path).unwrap().config.rope
    };
    let number = |writer: &mut GgufWriter, key: &str, x: f32| {
        writer.meta(key, MetaValue::F32(x));
    };
    let name = |writer: &mut GgufWriter, name: &str| {
        writer.meta(keys::ROPE_SCALING_TYPE, MetaValue::Str(name.into()));
    };
    let linear = RopeScaling::Linear { factor: 2.0 };
    assert_eq!(scaling(&|w| number(w, keys::ROPE_SCALE_LINEAR, 2.0)).scaling, linear);
    assert_eq!(scaling(&|w| number(w, keys::ROPE_SCALING_FACTOR, 2.0)).scaling, linear);
    let none = scaling(&|w| {
        name(w, "none");
        number(w, keys::ROPE_SCALING_FACTOR, 2.0);
    });
    assert_eq!(none.scaling, RopeScaling::None);
    let yarn = scaling(&|w| {
        name(w, "yarn");
        number(w, keys::ROPE_SCALING_FACTOR, 4.0);
        number(w, keys::ROPE_YARN_BETA_FAST, 16.0);
        number(w, keys::ROPE_ATTN_FACTOR, 0.5);
        w.meta(keys::ROPE_ORIGINAL_CONTEXT, MetaValue::U32(40));
    });
    let RopeScaling::Yarn(yarn) = yarn.scaling else { panic!("{yarn:?}") };
    assert_eq!((yarn.factor, yarn.beta_fast, yarn.beta_slow), (4.0, 16.0, 1.0));
    assert_eq!(yarn.original_max_seq_len, 40);
    assert!((yarn.attention_scale() - 0.5 * (1.0 + 0.1 * 4f64.ln())).abs() < 1e-12);
    let factors = scaling(&|w| {
        w.tensor(GGUF_ROPE_FREQS, FileDType::F32, &[8]);
    });
    assert_eq!(factors.freq_factors, Some(vec![1.0; 8]));
}

#[test]
fn rope_factors_of_another_length_are_refused() {
    let hf = fixture("mini-mha");
    let (_dir, path) = temp();
    to_gguf(&hf, &path, |writer| {
        writer.tensor(GGUF_ROPE_FREQS, FileDType::F32, &[9]);
    });
    let text = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(text.contains("F32 of shape [9], wanted F32 of [8]"), "{text}");
}

#[test]
fn the_writer_refuses_what_a_reader_would() {
    let (_dir, path) = temp();
    type Damage = fn(&mut GgufWriter) -> &mut GgufWriter;
    const Q4: FileDType = FileDType::Block(BlockType::Q4_0);
    let table: [(&str, Damage); 8] = [
        ("repeated", |w| w.meta("a", MetaValue::Bool(true)).meta("a", MetaValue::I32(1))),
        ("empty", |w| w.meta("", MetaValue::U64(1))),
        ("repeated", |w| w.tensor("t", Q4, &[32]).tensor("t", Q4, &[32])),
        ("63 bytes", |w| w.tensor("t".repeat(64), Q4, &[32])),
        ("1 to 4 dimensions", |w| w.tensor("t", Q4, &[])),
        ("1 to 4 dimensions", |w| w.tensor("t", Q4, &[0, 32])),
        ("multiple of 32", |w| w.tensor("t", Q4, &[32, 16])),
        ("no type U8", |w| w.tensor("t", FileDType::Other("U8"), &[32])),
    ];
    for (word, damage) in table {
        let mut writer = GgufWriter::new();
        damage(&mut writer);
        let text = writer.start(&path).unwrap_err().to_string();
        assert!(text.contains(word), "{text:?} lacks {word:?}");
    }
    let mut writer = GgufWriter::new();
    writer.tensor("t", Q4, &[32]);
    let mut out = writer.start(&path).unwrap();
    assert_eq!(out.expects(), Some(("t", 18)));
    assert!(out.write(&[0; 19]).is_err(), "too many bytes");
    out.write(&[0; 17]).unwrap();
    assert!(out.finish().is_err(), "a byte is missing");
    assert_eq!(
        std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
        0,
        "nothing stays behind"
    );
}

/// Every metadata type written is read back; lists keep their order.
#[test]
fn metadata_survives_the_round_trip() {
    let (_dir, path) = temp();
    let mut writer = GgufWriter::new();
    writer
        .meta("a.u32", MetaValue::U32(u32::MAX))
        .meta("a.i32", MetaValue::I32(-5))
        .meta("a.u64", MetaValue::U64(u64::MAX))
        .meta("a.f32", MetaValue::F32(0.1))
        .meta("a.bool", MetaValue::Bool(true))
        .meta("a.str", MetaValue::Str("größe".into()))
        .meta("a.strs", MetaValue::Strs(vec!["".into(), "▁x".into()]))
        .meta("a.f32s", MetaValue::F32s(vec![1.5, -2.0]))
        .meta("a.i32s", MetaValue::I32s(vec![-1, 7]));
    writer.start(&path).unwrap().finish().unwrap();
    let file = gguf::open(&path, Access::Map).unwrap();
    let meta = &file.metadata;
    assert_eq!((file.version, file.alignment, file.tensors.tensors().len()), (3, 32, 0));
    assert_eq!(meta.u64("a.u32").unwrap(), Some(u32::MAX.into()));
    assert_eq!(meta.f64("a.i32").unwrap(), Some(-5.0));
    assert!(meta.u64("a.i32").is_err(), "negative");
    assert_eq!(meta.u64("a.u64").unwrap(), Some(u64::MAX));
    assert_eq!(meta.f64("a.f32").unwrap(), Some(f64::from(0.1f32)));
    assert_eq!(meta.bool("a.bool").unwrap(), Some(true));
    assert_eq!(meta.str("a.str").unwrap(), Some("größe"));
    assert_eq!(meta.strings("a.strs").unwrap(), Some(vec!["", "▁x"]));
    assert_eq!(meta.f32s("a.f32s").unwrap(), Some(vec![1.5, -2.0]));
    assert_eq!(meta.i32s("a.i32s").unwrap(), Some(vec![-1, 7]));
    assert_eq!(meta.str("absent").unwrap(), None);
    let order: Vec<&str> = meta.entries().map(|(key, _)| key).collect();
    assert_eq!((order.len(), order[0], order[8]), (9, "a.u32", "a.i32s"));
}

/// Runs where the environment names SmolLM2's GGUF file.
#[test]
fn smollm2_opens() {
    let Some(path) = std::env::var_os("PUNA_SMOLLM2") else {
        eprintln!("SKIPPED: PUNA_SMOLLM2 names no file");
        return;
    };
    let checkpoint = Checkpoint::open(Path::new(&path)).unwrap();
    let c = &checkpoint.config;
    assert_eq!((c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads), (576, 1536, 30, 9, 3));
    assert_eq!((c.head_dim, c.vocab_size, c.max_seq_len, c.rope.theta), (64, 49_152, 8192, 1e5));
    assert!(c.tie_embeddings && !c.attention_bias);
    assert_eq!((c.bos_id, c.eos_ids.as_slice()), (Some(1), &[2][..]));
    let head = checkpoint.weight(Weight::LmHead).unwrap();
    assert_eq!(head.dtype, FileDType::Block(BlockType::Q8_0));
    let wq = checkpoint.weight(Weight::Block(0, BlockWeight::Wq)).unwrap();
    assert_eq!((wq.dtype, wq.row_bytes()), (FileDType::Block(BlockType::Q4_1), 576 / 32 * 20));
    let tokenizer = checkpoint.gguf_tokenizer().unwrap().unwrap();
    assert_eq!((tokenizer.model, tokenizer.pre), ("gpt2", Some("smollm")));
    assert_eq!(tokenizer.tokens[..2], ["<|endoftext|>", "<|im_start|>"]);
    assert_eq!(tokenizer.merges.unwrap().len(), 48_900);
    assert_eq!((tokenizer.add_bos, tokenizer.add_space_prefix), (Some(false), Some(false)));
}
