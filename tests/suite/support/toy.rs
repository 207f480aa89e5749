//! A model that speaks: random weights under a real tokenizer and chat template.

use puna::rng::Rng;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::path::Path;

const VOCAB: usize = 521;
const DIM: usize = 32;
const KV_DIM: usize = 16;
const HIDDEN_DIM: usize = 64;
const N_LAYERS: usize = 2;

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "vocab_size": 521, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": false}"#;

/// Makes it in `dir`.
pub fn make(dir: &Path) {
    let fixtures =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/byte-level");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixtures.join(file), dir.join(file)).expect("a fixture is copied");
    }
    std::fs::write(dir.join("config.json"), CONFIG).expect("a small file is written");
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, DIM]),
        ("lm_head.weight".to_owned(), vec![VOCAB, DIM]),
        ("model.norm.weight".to_owned(), vec![DIM]),
    ];
    for layer in 0..N_LAYERS {
        let inner = [
            ("input_layernorm", vec![DIM]),
            ("post_attention_layernorm", vec![DIM]),
            ("self_attn.q_proj", vec![DIM, DIM]),
            ("self_attn.k_proj", vec![KV_DIM, DIM]),
            ("self_attn.v_proj", vec![KV_DIM, DIM]),
            ("self_attn.o_proj", vec![DIM, DIM]),
            ("mlp.gate_proj", vec![HIDDEN_DIM, DIM]),
            ("mlp.up_proj", vec![HIDDEN_DIM, DIM]),
            ("mlp.down_proj", vec![DIM, HIDDEN_DIM]),
        ];
        let named = |(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape);
        shapes.extend(inner.map(named));
    }
    let mut rng = Rng::new(5, 0);
    let bytes: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(_, shape)| {
            let n: usize = shape.iter().product();
            let value = |_| if shape.len() == 1 { 1.0 } else { 0.3 * rng.normal() as f32 };
            (0..n).map(value).flat_map(f32::to_le_bytes).collect()
        })
        .collect();
    let views = shapes.iter().zip(&bytes).map(|((name, shape), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("sizes agree");
        (name.clone(), view)
    });
    serialize_to_file(views, None, &dir.join("model.safetensors"))
        .expect("the weights are written");
}
