//! What a token costs: operations and bytes, from the sizes of the model.
//!
//! Two operations a weight and token, four a visible position, query head and dimension (scores
//! and weighted values). The output head counts where logits are wanted: for single tokens each
//! time, for a prompt once, in training everywhere. Rows of the last block that nobody reads count
//! like the others, as in other programs, though they are not computed.

use crate::model::config::Config;
use puna_cpu::isa::Isa;
use puna_cpu::limits::Unit;
use puna_cpu::matmul::{Dense, wants_bf16};

/// Sizes that decide.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Weights of all blocks' matrices.
    blocks: f64,
    /// Weights of the head.
    head: f64,
    /// Operations of attention for a token and a position that it sees, forward.
    attention: f64,
    window: usize,
}

impl Sizes {
    /// Of a model.
    pub fn of(config: &Config) -> Sizes {
        let [dim, hidden, layers] =
            [config.dim, config.hidden_dim, config.n_layers].map(|n| n as f64);
        let q = (config.n_heads * config.head_dim) as f64;
        let kv = (config.n_kv_heads * config.head_dim) as f64;
        Sizes {
            blocks: layers * dim * (2.0 * q + 2.0 * kv + 3.0 * hidden),
            head: config.vocab_size as f64 * dim,
            attention: 4.0 * layers * q,
            window: config.sliding_window.unwrap_or(usize::MAX),
        }
    }

    /// Positions that `n` tokens from position `first` on see, all together.
    pub fn visible(&self, first: usize, n: usize) -> f64 {
        (first..first + n).map(|at| (at + 1).min(self.window) as f64).sum()
    }

    /// Operations a token of a prompt of `n` tokens behind `depth` positions.
    pub fn prompt_ops(&self, depth: usize, n: usize) -> f64 {
        let attention = self.attention * self.visible(depth, n);
        2.0 * self.blocks + (2.0 * self.head + attention) / n.max(1) as f64
    }

    /// Operations of one of `n` single tokens behind `depth` positions, on average.
    pub fn token_ops(&self, depth: usize, n: usize) -> f64 {
        let attention = self.attention * self.visible(depth, n) / n.max(1) as f64;
        2.0 * (self.blocks + self.head) + attention
    }

    /// Operations a token of a row of `n` tokens in training: three times those of the forward
    /// pass with weights that are trained, twice with frozen ones (their gradient is not computed),
    /// `adapter` weights besides; seven products of attention, two of them forward.
    pub fn train_ops(&self, n: usize, trained: bool, adapter: usize) -> f64 {
        let passes = if trained { 3.0 } else { 2.0 };
        let attention = 3.5 * self.attention * self.visible(0, n) / n.max(1) as f64;
        2.0 * passes * (self.blocks + self.head) + 6.0 * adapter as f64 + attention
    }
}

/// The unit that multiplies weights of a type, named as GGUF spells it.
pub fn unit(isa: Isa, type_name: &str, exact: bool) -> Unit {
    let dense = |dtype| if wants_bf16(isa, dtype) { Unit::Bf16 } else { Unit::F32 };
    match type_name {
        _ if exact => Unit::F32,
        "F32" => dense(Dense::F32),
        "F16" => dense(Dense::F16),
        "BF16" => dense(Dense::BF16),
        _ => Unit::Int8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TinyLlama's shape: 968.9 million weights in blocks, 65.5 in the head.
    fn tiny() -> Sizes {
        let kv = 4.0 * 64.0;
        Sizes {
            blocks: 22.0 * 2048.0 * (2.0 * 2048.0 + 2.0 * kv + 3.0 * 5632.0),
            head: 32000.0 * 2048.0,
            attention: 4.0 * 22.0 * 2048.0,
            window: usize::MAX,
        }
    }

    #[test]
    fn costs_of_a_known_shape() {
        let sizes = tiny();
        assert_eq!(sizes.blocks, 968_884_224.0);
        assert_eq!(sizes.visible(0, 512), 131_328.0);
        assert_eq!(sizes.visible(2048, 2), 2049.0 + 2050.0);
        let windowed = Sizes { window: 100, ..sizes };
        assert_eq!(windowed.visible(98, 4), 99.0 + 3.0 * 100.0);
        let want = 2.0 * 968_884_224.0 + 2.0 * 65_536_000.0 / 512.0 + 180_224.0 * 256.5;
        assert!((sizes.prompt_ops(0, 512) - want).abs() < 1.0);
        let want = 2.0 * 1_034_420_224.0 + 180_224.0;
        assert_eq!(sizes.token_ops(0, 1), want);
        assert!(sizes.train_ops(512, true, 0) > sizes.train_ops(512, false, 1000));
    }

    #[test]
    fn units() {
        for isa in Isa::available() {
            assert_eq!(unit(isa, "Q4_0", false), Unit::Int8);
            assert_eq!(unit(isa, "Q4_0", true), Unit::F32);
            assert_eq!(unit(isa, "F32", false), Unit::F32);
            assert_eq!(unit(isa, "BF16", false) == Unit::Bf16, isa.has_bf16());
        }
    }
}
