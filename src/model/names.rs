//! The weights of a model under our names, and what the two file layouts call them.

use std::fmt;

/// A weight of the model. Matrices are `[out_features, in_features]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weight {
    /// Token embeddings, `[vocab_size, dim]`.
    TokEmb,
    /// Gain of the norm after the last block, `[dim]`.
    OutNorm,
    /// Output projection, `[vocab_size, dim]`; the embeddings themselves where they are tied.
    LmHead,
    /// What a reward model has in place of [`Weight::LmHead`], `[1, dim]`.
    Score,
    /// A weight of block `.0`.
    Block(usize, BlockWeight),
}

/// A weight of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockWeight {
    /// Gain of the norm before attention, `[dim]`.
    AttnNorm,
    /// Query projection, `[n_heads * head_dim, dim]`.
    Wq,
    /// Key projection, `[n_kv_heads * head_dim, dim]`.
    Wk,
    /// Value projection, `[n_kv_heads * head_dim, dim]`.
    Wv,
    /// Output projection of attention, `[dim, n_heads * head_dim]`.
    Wo,
    /// Gain of the norm before the feed-forward, `[dim]`.
    FfnNorm,
    /// Gate projection, `[hidden_dim, dim]`.
    W1,
    /// Down projection, `[dim, hidden_dim]`.
    W2,
    /// Up projection, `[hidden_dim, dim]`.
    W3,
    /// Bias of [`BlockWeight::Wq`].
    Bq,
    /// Bias of [`BlockWeight::Wk`].
    Bk,
    /// Bias of [`BlockWeight::Wv`].
    Bv,
    /// Bias of [`BlockWeight::Wo`].
    Bo,
    /// Bias of [`BlockWeight::W1`].
    B1,
    /// Bias of [`BlockWeight::W2`].
    B2,
    /// Bias of [`BlockWeight::W3`].
    B3,
}

/// Which kind of checkpoint names and orders the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A Hugging Face directory: RoPE pairs `i` with `i + head_dim / 2`.
    Hf,
    /// A GGUF file: rows of Q and K are permuted so that RoPE pairs neighbours.
    Gguf,
}

impl BlockWeight {
    /// All weights of a block, biases last.
    pub const ALL: [BlockWeight; 16] = {
        use BlockWeight::*;
        [AttnNorm, Wq, Wk, Wv, Wo, FfnNorm, W1, W2, W3, Bq, Bk, Bv, Bo, B1, B2, B3]
    };

    /// Whether this is a bias of the attention's projections.
    pub fn is_attention_bias(self) -> bool {
        matches!(self, BlockWeight::Bq | BlockWeight::Bk | BlockWeight::Bv | BlockWeight::Bo)
    }

    /// Whether this is a bias of the feed-forward's projections.
    pub fn is_mlp_bias(self) -> bool {
        matches!(self, BlockWeight::B1 | BlockWeight::B2 | BlockWeight::B3)
    }

    /// Our name, and the file names inside a block.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            BlockWeight::AttnNorm => ("attn_norm", "input_layernorm.weight", "attn_norm.weight"),
            BlockWeight::Wq => ("wq", "self_attn.q_proj.weight", "attn_q.weight"),
            BlockWeight::Wk => ("wk", "self_attn.k_proj.weight", "attn_k.weight"),
            BlockWeight::Wv => ("wv", "self_attn.v_proj.weight", "attn_v.weight"),
            BlockWeight::Wo => ("wo", "self_attn.o_proj.weight", "attn_output.weight"),
            BlockWeight::FfnNorm => {
                ("ffn_norm", "post_attention_layernorm.weight", "ffn_norm.weight")
            }
            BlockWeight::W1 => ("w1", "mlp.gate_proj.weight", "ffn_gate.weight"),
            BlockWeight::W2 => ("w2", "mlp.down_proj.weight", "ffn_down.weight"),
            BlockWeight::W3 => ("w3", "mlp.up_proj.weight", "ffn_up.weight"),
            BlockWeight::Bq => ("bq", "self_attn.q_proj.bias", "attn_q.bias"),
            BlockWeight::Bk => ("bk", "self_attn.k_proj.bias", "attn_k.bias"),
            BlockWeight::Bv => ("bv", "self_attn.v_proj.bias", "attn_v.bias"),
            BlockWeight::Bo => ("bo", "self_attn.o_proj.bias", "attn_output.bias"),
            BlockWeight::B1 => ("b1", "mlp.gate_proj.bias", "ffn_gate.bias"),
            BlockWeight::B2 => ("b2", "mlp.down_proj.bias", "ffn_down.bias"),
            BlockWeight::B3 => ("b3", "mlp.up_proj.bias", "ffn_up.bias"),
        }
    }
}

impl Weight {
    /// All weights of a model of `n_layers` blocks, in the order of the computation.
    pub fn all(n_layers: usize) -> impl Iterator<Item = Weight> {
        let blocks = (0..n_layers)
            .flat_map(|layer| BlockWeight::ALL.map(|weight| Weight::Block(layer, weight)));
        std::iter::once(Weight::TokEmb).chain(blocks).chain([
            Weight::OutNorm,
            Weight::LmHead,
            Weight::Score,
        ])
    }

    /// The tensor's name in a checkpoint of this layout.
    pub fn file_name(self, layout: Layout) -> String {
        let fixed = |hf: &str, gguf: &str| match layout {
            Layout::Hf => hf.to_string(),
            Layout::Gguf => gguf.to_string(),
        };
        match self {
            Weight::TokEmb => fixed("model.embed_tokens.weight", "token_embd.weight"),
            Weight::OutNorm => fixed("model.norm.weight", "output_norm.weight"),
            Weight::LmHead => fixed("lm_head.weight", "output.weight"),
            Weight::Score => fixed("score.weight", "cls.output.weight"),
            Weight::Block(layer, weight) => {
                let (_, hf, gguf) = weight.names();
                match layout {
                    Layout::Hf => format!("model.layers.{layer}.{hf}"),
                    Layout::Gguf => format!("blk.{layer}.{gguf}"),
                }
            }
        }
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Weight::TokEmb => f.write_str("tok_emb"),
            Weight::OutNorm => f.write_str("out_norm"),
            Weight::LmHead => f.write_str("lm_head"),
            Weight::Score => f.write_str("score"),
            Weight::Block(layer, weight) => write!(f, "{} of block {layer}", weight.names().0),
        }
    }
}

/// GGUF's tensor of factors that divide the RoPE frequencies, `[rope_dim / 2]`.
pub const GGUF_ROPE_FREQS: &str = "rope_freqs.weight";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_files() {
        let wq = Weight::Block(3, BlockWeight::Wq);
        assert_eq!(wq.file_name(Layout::Hf), "model.layers.3.self_attn.q_proj.weight");
        assert_eq!(wq.file_name(Layout::Gguf), "blk.3.attn_q.weight");
        assert_eq!(Weight::LmHead.file_name(Layout::Gguf), "output.weight");
        assert_eq!(wq.to_string(), "wq of block 3");
    }

    #[test]
    fn every_weight_has_its_own_name() {
        for layout in [Layout::Hf, Layout::Gguf] {
            let names: Vec<String> = Weight::all(2).map(|w| w.file_name(layout)).collect();
            let distinct: std::collections::HashSet<&String> = names.iter().collect();
            assert_eq!((names.len(), distinct.len()), (36, 36));
        }
    }
}
