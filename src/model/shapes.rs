//! Models of well-known shapes with random weights, for measuring speed: the same file serves
//! Puna and whoever it is compared with.

use crate::error::{Error, Result};
use crate::format::FileDType;
use crate::format::gguf::{GgufWriter, MetaValue, keys};
use crate::model::names::{BlockWeight, Layout, Weight};
use crate::rng::Rng;
use half::{bf16, f16};
use puna_cpu::quant::{self, BlockType};
use rayon::prelude::*;
use std::path::Path;

/// Sizes of a named model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// The name that `--shape` takes.
    pub name: &'static str,
    /// Residual width.
    pub dim: usize,
    /// Inner width of the feed-forward.
    pub hidden_dim: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Vocabulary.
    pub vocab_size: usize,
    /// Longest context.
    pub max_seq_len: usize,
    /// RoPE base.
    pub rope_theta: f32,
    /// Whether the output head is the embedding table.
    pub tied: bool,
}

/// The shapes that `--shape` knows, as their makers published them.
pub const SHAPES: [Shape; 5] = [
    Shape {
        name: "tinyllama-1.1b",
        dim: 2048,
        hidden_dim: 5632,
        n_layers: 22,
        n_heads: 32,
        n_kv_heads: 4,
        vocab_size: 32000,
        max_seq_len: 16384, // 2048 there; longer here, so that depth can be measured
        rope_theta: 1e4,
        tied: false,
    },
    Shape {
        name: "llama-7b",
        dim: 4096,
        hidden_dim: 11008,
        n_layers: 32,
        n_heads: 32,
        n_kv_heads: 32,
        vocab_size: 32000,
        max_seq_len: 4096,
        rope_theta: 1e4,
        tied: false,
    },
    Shape {
        name: "llama3.2-1b",
        dim: 2048,
        hidden_dim: 8192,
        n_layers: 16,
        n_heads: 32,
        n_kv_heads: 8,
        vocab_size: 128256,
        max_seq_len: 131072,
        rope_theta: 5e5,
        tied: true,
    },
    Shape {
        name: "llama3-8b",
        dim: 4096,
        hidden_dim: 14336,
        n_layers: 32,
        n_heads: 32,
        n_kv_heads: 8,
        vocab_size: 128256,
        max_seq_len: 8192,
        rope_theta: 5e5,
        tied: false,
    },
    Shape {
        name: "smollm2-135m",
        dim: 576,
        hidden_dim: 1536,
        n_layers: 30,
        n_heads: 9,
        n_kv_heads: 3,
        vocab_size: 49152,
        max_seq_len: 8192,
        rope_theta: 1e5,
        tied: true,
    },
];

/// Standard deviation of the weights, that of LLaMA's initialisation.
const DEVIATION: f64 = 0.02;
/// Normal draws that all tensors take their weights from, each at its own offset.
const POOL: usize = (1 << 20) + 7;
/// Weights of one piece that is encoded and written at once.
const PIECE: usize = 1 << 24;

/// The shape of this name.
///
/// # Errors
/// When there is none.
pub fn named(name: &str) -> Result<Shape> {
    SHAPES.into_iter().find(|shape| shape.name == name).ok_or_else(|| {
        let known = SHAPES.map(|shape| shape.name).join(", ");
        Error::config("shape", name, format!("wanted one of {known}"))
    })
}

/// The element type of this name: F32, F16, BF16, or a quantised type of GGUF.
///
/// # Errors
/// When there is none.
pub fn dtype_named(name: &str) -> Result<FileDType> {
    match name.to_ascii_uppercase().as_str() {
        "F32" => Ok(FileDType::F32),
        "F16" => Ok(FileDType::F16),
        "BF16" => Ok(FileDType::BF16),
        other => BlockType::from_name(other).map(FileDType::Block).ok_or_else(|| {
            let blocks = BlockType::ALL.map(BlockType::name).join(", ");
            Error::config("type", name, format!("wanted F32, F16, BF16, {blocks}"))
        }),
    }
}

impl Shape {
    /// Shape of a weight, outermost first.
    fn of(&self, weight: Weight) -> Vec<usize> {
        let (dim, hidden) = (self.dim, self.hidden_dim);
        let kv = dim / self.n_heads * self.n_kv_heads;
        match weight {
            Weight::TokEmb | Weight::LmHead => vec![self.vocab_size, dim],
            Weight::Block(_, BlockWeight::Wq | BlockWeight::Wo) => vec![dim, dim],
            Weight::Block(_, BlockWeight::Wk | BlockWeight::Wv) => vec![kv, dim],
            Weight::Block(_, BlockWeight::W1 | BlockWeight::W3) => vec![hidden, dim],
            Weight::Block(_, BlockWeight::W2) => vec![dim, hidden],
            _ => vec![dim],
        }
    }

    /// The weights such a model has.
    fn weights(&self) -> impl Iterator<Item = Weight> {
        use BlockWeight::{B1, B2, B3, Bk, Bo, Bq, Bv};
        let tied = self.tied;
        Weight::all(self.n_layers).filter(move |weight| match weight {
            Weight::Block(_, w) => !matches!(w, Bq | Bk | Bv | Bo | B1 | B2 | B3),
            Weight::LmHead => !tied,
            Weight::Score => false,
            _ => true,
        })
    }

    /// Writes a GGUF file of this shape: random matrices in `dtype`, norms of one, a made-up
    /// vocabulary. The same seed gives the same file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path, dtype: FileDType, seed: u64) -> Result<()> {
        let mut writer = GgufWriter::new();
        self.describe(&mut writer);
        for weight in self.weights() {
            let shape = self.of(weight);
            let dtype = if shape.len() == 1 { FileDType::F32 } else { dtype };
            writer.tensor(weight.file_name(Layout::Gguf), dtype, &shape);
        }
        let mut out = writer.start(path)?;
        let mut rng = Rng::new(seed, 0);
        let pool: Vec<f32> = (0..POOL).map(|_| (rng.normal() * DEVIATION) as f32).collect();
        for weight in self.weights() {
            let shape = self.of(weight);
            let &[n, k] = &shape[..] else {
                out.write(&1.0f32.to_le_bytes().repeat(self.dim))?;
                continue;
            };
            let offset = rng.next_u32() as usize;
            let rows_at_once = (PIECE / k).max(1);
            for first in (0..n).step_by(rows_at_once) {
                let rows = rows_at_once.min(n - first);
                let mut bytes = vec![0u8; rows * row_bytes(dtype, k)];
                bytes.par_chunks_mut(row_bytes(dtype, k)).enumerate().for_each(|(r, bytes)| {
                    let start = offset.wrapping_add((first + r).wrapping_mul(k));
                    let row: Vec<f32> =
                        (0..k).map(|i| pool[start.wrapping_add(i) % POOL]).collect();
                    encode(dtype, bytes, &row);
                });
                out.write(&bytes)?;
            }
        }
        out.finish()
    }

    fn describe(&self, writer: &mut GgufWriter) {
        let count = |n: usize| MetaValue::U32(n as u32);
        writer
            .meta(keys::ARCHITECTURE, MetaValue::Str(keys::LLAMA.into()))
            .meta(keys::NAME, MetaValue::Str(format!("{} (random weights)", self.name)))
            .meta(keys::DIM, count(self.dim))
            .meta(keys::HIDDEN_DIM, count(self.hidden_dim))
            .meta(keys::N_LAYERS, count(self.n_layers))
            .meta(keys::N_HEADS, count(self.n_heads))
            .meta(keys::N_KV_HEADS, count(self.n_kv_heads))
            .meta(keys::MAX_SEQ_LEN, count(self.max_seq_len))
            .meta(keys::VOCAB_SIZE, count(self.vocab_size))
            .meta(keys::NORM_EPS, MetaValue::F32(1e-5))
            .meta(keys::ROPE_THETA, MetaValue::F32(self.rope_theta))
            .meta(keys::ROPE_DIM, count(self.dim / self.n_heads));
        // Unknown, begin, end, the bytes, and words that no text will ever need.
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
        tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        tokens.extend((tokens.len()..self.vocab_size).map(|id| format!("\u{2581}word{id}")));
        let types = (0..self.vocab_size).map(|id| match id {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        });
        let scores = (0..self.vocab_size).map(|id| if id < 259 { 0.0 } else { -(id as f32) });
        writer
            .meta(keys::TOKENIZER_MODEL, MetaValue::Str("llama".into()))
            .meta(keys::TOKENS, MetaValue::Strs(tokens))
            .meta(keys::SCORES, MetaValue::F32s(scores.collect()))
            .meta(keys::TOKEN_TYPES, MetaValue::I32s(types.collect()))
            .meta("tokenizer.ggml.bos_token_id", MetaValue::U32(1))
            .meta("tokenizer.ggml.eos_token_id", MetaValue::U32(2))
            .meta("tokenizer.ggml.unknown_token_id", MetaValue::U32(0));
    }
}

fn row_bytes(dtype: FileDType, k: usize) -> usize {
    k / dtype.block_len() * dtype.block_bytes()
}

fn encode(dtype: FileDType, out: &mut [u8], row: &[f32]) {
    match dtype {
        FileDType::Block(block) => quant::encode_row(block, out, row),
        FileDType::F16 => {
            for (out, &x) in out.chunks_exact_mut(2).zip(row) {
                out.copy_from_slice(&f16::from_f32(x).to_le_bytes());
            }
        }
        FileDType::BF16 => {
            for (out, &x) in out.chunks_exact_mut(2).zip(row) {
                out.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
            }
        }
        _ => {
            for (out, &x) in out.chunks_exact_mut(4).zip(row) {
                out.copy_from_slice(&x.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::checkpoint::Checkpoint;

    #[test]
    fn names_are_found_and_wrong_ones_listed() {
        assert_eq!(named("llama-7b").unwrap().n_layers, 32);
        let error = named("llama-8b").unwrap_err().to_string();
        assert!(error.contains("llama-8b") && error.contains("llama3-8b"), "{error}");
        assert_eq!(dtype_named("q4_k").unwrap(), FileDType::Block(BlockType::Q4_K));
        assert!(dtype_named("Q9").unwrap_err().to_string().contains("Q4_0"));
    }

    #[test]
    fn a_saved_model_opens_and_a_seed_repeats_it() {
        let dir = tempfile::tempdir().unwrap();
        let small = Shape { dim: 256, hidden_dim: 512, n_layers: 2, vocab_size: 300, ..SHAPES[0] };
        for dtype in ["Q4_0", "Q6_K", "BF16", "F32"].map(|name| dtype_named(name).unwrap()) {
            let (a, b) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
            small.save(&a, dtype, 3).unwrap();
            small.save(&b, dtype, 3).unwrap();
            assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
            let checkpoint = Checkpoint::open(&a).unwrap();
            assert_eq!(checkpoint.config.vocab_size, 300);
            assert_eq!(checkpoint.weight(Weight::LmHead).unwrap().dtype, dtype);
        }
    }
}
