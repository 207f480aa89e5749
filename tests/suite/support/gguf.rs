//! GGUF files made from weights in memory, by the rules of the format: names, metadata, and rows
//! of Q and K in the order in which RoPE turns neighbours.

use half::{bf16, f16};
use puna::format::FileDType;
use puna::format::gguf::{GgufWriter, MetaValue, keys};
use puna::model::config::{Config, RopeScaling};
use puna::model::names::{BlockWeight, GGUF_ROPE_FREQS, Layout, Weight};
use puna_cpu::quant::encode_row;
use std::path::Path;

/// A model in memory, rows of Q and K as Hugging Face orders them.
pub struct Draft {
    /// Sizes; Llama 3's RoPE scaling travels as `rope_freqs`.
    pub config: Config,
    /// Weight, shape, values.
    pub weights: Vec<(Weight, Vec<usize>, Vec<f32>)>,
    /// Divisors of the RoPE frequencies.
    pub rope_freqs: Option<Vec<f32>>,
}

impl Draft {
    /// Writes the file; matrices as `dtype`, vectors as F32.
    pub fn write(&self, path: &Path, dtype: FileDType) {
        let mut writer = GgufWriter::new();
        self.metadata(&mut writer);
        let mut data = vec![];
        for (weight, shape, values) in &self.weights {
            let dtype = if shape.len() == 1 { FileDType::F32 } else { dtype };
            writer.tensor(weight.file_name(Layout::Gguf), dtype, shape);
            data.push(encode(dtype, &self.ordered(*weight, values), shape[shape.len() - 1]));
        }
        if let Some(freqs) = &self.rope_freqs {
            writer.tensor(GGUF_ROPE_FREQS, FileDType::F32, &[freqs.len()]);
            data.push(encode(FileDType::F32, freqs, freqs.len()));
        }
        let mut file = writer.start(path).expect("a draft that the format can hold");
        for bytes in data {
            file.write(&bytes).expect("as many bytes as the header says");
        }
        file.finish().expect("the file is complete");
    }

    fn metadata(&self, writer: &mut GgufWriter) {
        let c = &self.config;
        let sizes = [
            (keys::DIM, c.dim),
            (keys::HIDDEN_DIM, c.hidden_dim),
            (keys::N_LAYERS, c.n_layers),
            (keys::N_HEADS, c.n_heads),
            (keys::N_KV_HEADS, c.n_kv_heads),
            (keys::KEY_LENGTH, c.head_dim),
            (keys::VALUE_LENGTH, c.head_dim),
            (keys::ROPE_DIM, c.head_dim),
            (keys::MAX_SEQ_LEN, c.max_seq_len),
            (keys::VOCAB_SIZE, c.vocab_size),
        ];
        writer.meta(keys::ARCHITECTURE, MetaValue::Str(keys::LLAMA.into()));
        for (key, size) in sizes {
            writer.meta(key, MetaValue::U32(size as u32));
        }
        writer.meta(keys::NORM_EPS, MetaValue::F32(c.norm_eps));
        writer.meta(keys::ROPE_THETA, MetaValue::F32(c.rope.theta as f32));
        if let Some(window) = c.sliding_window {
            writer.meta(keys::SLIDING_WINDOW, MetaValue::U32(window as u32));
        }
        match c.rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => {
                writer.meta(keys::ROPE_SCALING_TYPE, MetaValue::Str("linear".into()));
                writer.meta(keys::ROPE_SCALING_FACTOR, MetaValue::F32(factor as f32));
            }
            RopeScaling::Llama3 { .. } if self.rope_freqs.is_some() => {}
            ref other => panic!("GGUF has no words for {other:?}"),
        }
    }

    /// Rows of a head from `(2, head_dim / 2)` to `(head_dim / 2, 2)` where RoPE turns them.
    fn ordered(&self, weight: Weight, values: &[f32]) -> Vec<f32> {
        use BlockWeight::{Bk, Bq, Wk, Wq};
        let width = match weight {
            Weight::Block(_, Wq | Wk) => self.config.dim,
            Weight::Block(_, Bq | Bk) => 1,
            _ => return values.to_vec(),
        };
        let half = self.config.head_dim / 2;
        let mut out = Vec::with_capacity(values.len());
        for head in values.chunks(2 * half * width) {
            for pair in 0..half {
                for row in [pair, pair + half] {
                    out.extend_from_slice(&head[row * width..(row + 1) * width]);
                }
            }
        }
        out
    }
}

/// Values as the bytes of an element type; `row` values to a row.
fn encode(dtype: FileDType, values: &[f32], row: usize) -> Vec<u8> {
    match dtype {
        FileDType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        FileDType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        FileDType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        FileDType::Block(block) => {
            let mut bytes = vec![0; values.len() / row * block.row_bytes(row)];
            let rows = bytes.chunks_mut(block.row_bytes(row)).zip(values.chunks(row));
            rows.for_each(|(out, x)| encode_row(block, out, x));
            bytes
        }
        FileDType::Other(name) => panic!("no encoder for {name}"),
    }
}
