use super::*;

fn read(path: &str) -> Config {
    Config::from_hf(&HfConfig::read(Path::new(path)).unwrap()).unwrap()
}

fn write(text: &str) -> Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    Config::from_hf(&HfConfig::read(&path)?)
}

/// A small LLaMA with more keys behind.
fn small(model: &str, more: &str) -> String {
    format!(
        r#"{{"model_type":"{model}","hidden_size":32,"intermediate_size":64,"num_hidden_layers":2,
        "num_attention_heads":16,"vocab_size":10{more}}}"#
    )
}

#[test]
fn both_layouts_of_every_model_are_one_config() {
    for model in [
        "mini-bf16-sharded",
        "mini-dynamic",
        "mini-gqa",
        "mini-headdim-bias",
        "mini-linear",
        "mini-llama3rope",
        "mini-mha",
    ] {
        let new = read(&format!("tests/fixtures/{model}/config.json"));
        let old = read(&format!("tests/fixtures/{model}/config.legacy.json"));
        assert_eq!(new, old, "{model}");
    }
}

#[test]
fn every_key_reaches_its_field() {
    let c = read("tests/fixtures/mini-headdim-bias/config.json");
    assert_eq!((c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads), (42, 104, 2, 3, 1));
    assert_eq!((c.head_dim, c.max_seq_len, c.vocab_size, c.norm_eps), (16, 128, 150, 1e-6));
    assert!(c.attention_bias && c.mlp_bias && !c.tie_embeddings);
    assert_eq!((c.bos_id, c.eos_ids, c.sliding_window), (Some(1), vec![2], None));
    assert_eq!(c.rope.scaling, RopeScaling::None);
    let c = read("tests/fixtures/mini-linear/config.legacy.json");
    assert_eq!((c.rope.theta, c.rope.scaling), (20_000.0, RopeScaling::Linear { factor: 2.0 }));
    let c = read("tests/fixtures/mini-llama3rope/config.legacy.json");
    let wanted = RopeScaling::Llama3 {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_seq_len: 48,
    };
    assert_eq!(c.rope.scaling, wanted);
    assert!(read("tests/fixtures/mini-gqa/config.json").tie_embeddings);
}

#[test]
fn absent_keys_take_the_defaults_of_their_model_type() {
    let llama = write(&small("llama", r#","sliding_window":7"#)).unwrap();
    assert_eq!((llama.n_kv_heads, llama.head_dim, llama.max_seq_len), (16, 2, 2048));
    assert_eq!((llama.norm_eps, llama.rope.theta, llama.sliding_window), (1e-6, 1e4, None));
    let mistral = write(&small("mistral", "")).unwrap();
    assert_eq!((mistral.n_kv_heads, mistral.sliding_window), (8, Some(4096)));
    assert_eq!(mistral.max_seq_len, 131_072);
    let open = write(&small("mistral", r#","sliding_window":null"#)).unwrap();
    assert_eq!(open.sliding_window, None);
    let narrow = write(&small("mistral", r#","sliding_window":7"#)).unwrap();
    assert_eq!(narrow.sliding_window, Some(7));
}

#[test]
fn yarn_settings_are_read_and_completed() {
    let yarn = |more: &str| match write(&small("llama", more)).unwrap().rope.scaling {
        RopeScaling::Yarn(yarn) => yarn,
        other => panic!("{other:?} is not YaRN"),
    };
    let full = yarn(
        r#","max_position_embeddings":400,"rope_scaling":{"type":"yarn","factor":4.0,
        "original_max_position_embeddings":100,"attention_factor":0.9,"beta_fast":16,
        "beta_slow":2,"mscale":0.7,"mscale_all_dim":0.8,"truncate":false}"#,
    );
    let wanted = Yarn {
        factor: 4.0,
        original_max_seq_len: 100,
        attention_factor: Some(0.9),
        beta_fast: 16.0,
        beta_slow: 2.0,
        mscale: Some(0.7),
        mscale_all_dim: Some(0.8),
        truncate: false,
    };
    assert_eq!(full, wanted);
    let bare = yarn(
        r#","max_position_embeddings":400,"rope_parameters":{"rope_type":"yarn",
        "rope_theta":5e5,"original_max_position_embeddings":100}"#,
    );
    assert_eq!(
        (bare.factor, bare.beta_fast, bare.beta_slow, bare.truncate),
        (4.0, 32.0, 1.0, true)
    );
}

#[test]
fn the_base_inside_the_settings_that_count_comes_first() {
    let theta = |more: &str| write(&small("llama", more)).unwrap().rope.theta;
    assert_eq!(
        theta(r#","rope_theta":5.0,"rope_parameters":{"rope_type":"default","rope_theta":7.0}"#),
        7.0
    );
    assert_eq!(theta(r#","rope_theta":5.0,"rope_scaling":{"type":"linear","factor":2.0}"#), 5.0);
    assert_eq!(theta(r#","rope_theta":5.0,"rope_scaling":null"#), 5.0);
    assert_eq!(
        theta(
            r#","rope_scaling":{"type":"linear","factor":2.0},"rope_parameters":{"rope_theta":7.0}"#
        ),
        7.0
    );
}
