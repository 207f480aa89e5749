//! The memory that a model and a sequence take, told before it is taken.

use crate::error::{Error, Result};
use crate::kernels::Scratch;
use crate::kernels::attention::{KvShape, ScratchArgs};
use crate::model::kv_cache::{KvCache, KvType};
use crate::model::llama::Model;
use crate::ops::{Linear, Lora};
use crate::tensor::{MatrixData, Vector, size_class};
use std::collections::BTreeSet;

/// What a sampler holds for a token of the vocabulary: a candidate, and whether it was seen.
const SAMPLER_BYTES: usize = 13;

/// Bytes of a model and one session on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Weights as they are used, adapters included. Dense ones lie in the mapped file: the system
    /// may drop and read them again. Shared by all sessions.
    pub weights_bytes: usize,
    /// Keys and values; pages are taken as the sequence grows.
    pub cache_bytes: usize,
    /// At most, for passes as long as the context allows: activations, kernels' buffers, logits,
    /// tokens, what a sampler works in. What shorter passes do not write is not taken. Text that a
    /// session keeps is not counted.
    pub workspace_bytes: usize,
}

impl Memory {
    /// Weights, cache and workspace.
    pub fn total_bytes(&self) -> usize {
        self.weights_bytes + self.cache_bytes + self.workspace_bytes
    }
}

impl Model {
    /// The memory that the weights take, and that one session with `ctx` positions will take at
    /// most. Allocates nothing of it.
    ///
    /// # Errors
    /// [`Error::Config`] when the context is 0 or too large to address.
    pub fn memory(&self, ctx: usize, kv_type: KvType) -> Result<Memory> {
        Ok(Memory {
            weights_bytes: self.weights_bytes(),
            cache_bytes: KvCache::bytes_of(&self.config, ctx, kv_type, &self.device.home())?,
            workspace_bytes: self.workspace_bytes(ctx, kv_type)?,
        })
    }

    /// The settings by which a session of `ctx` positions, which took more, fits into `room` bytes
    /// beside the weights: for the error of a device that is full.
    pub fn session_hint(&self, ctx: usize, kv_type: KvType, room: usize) -> Option<String> {
        let fits = |ctx: usize, kv_type: KvType| {
            let memory = self.memory(ctx, kv_type).ok();
            memory.is_some_and(|m| m.cache_bytes.saturating_add(m.workspace_bytes) <= room)
        };
        // A longer context never takes less.
        let (mut least, mut most) = (0, ctx);
        while least < most {
            let middle = least + (most - least).div_ceil(2);
            match fits(middle, kv_type) {
                true => least = middle,
                false => most = middle - 1,
            }
        }
        let narrower = kv_type != KvType::Q8_0 && least < ctx && fits(ctx, KvType::Q8_0);
        match (narrower, least) {
            (true, 0) => Some("--kv-type q8_0 would fit".into()),
            (true, n) => Some(format!("--kv-type q8_0 or --ctx {n} would fit")),
            (false, 0) => {
                Some("no context fits beside the weights: 4-bit weights need less".into())
            }
            (false, n) => Some(format!("--ctx {n} would fit")),
        }
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let blocks = self.weights.blocks.iter();
        blocks.flat_map(|b| [&b.wq, &b.wk, &b.wv, &b.wo, &b.w1, &b.w2, &b.w3])
    }

    fn loras(&self) -> impl Iterator<Item = &Lora> {
        self.linears().flat_map(|linear| &linear.loras)
    }

    fn weights_bytes(&self) -> usize {
        let weights = &self.weights;
        let vector = |v: &Vector| size_of::<f32>() * v.values(&self.params).len();
        let linear = |l: &Linear| l.w.bytes() + l.bias.as_ref().map_or(0, vector);
        let tied = self.config.tie_embeddings;
        let table = if tied { 0 } else { weights.tok_emb.bytes() };
        let norms = weights.blocks.iter().map(|b| vector(&b.attn_norm) + vector(&b.ffn_norm));
        self.linears().map(linear).sum::<usize>()
            + self.loras().map(|lora| lora.a.bytes() + lora.b.bytes()).sum::<usize>()
            + norms.sum::<usize>()
            + vector(&weights.out_norm)
            + linear(&weights.lm_head)
            + table
    }

    fn workspace_bytes(&self, ctx: usize, kv_type: KvType) -> Result<usize> {
        let c = &self.config;
        let rows = ctx.min(Model::MAX_ROWS);
        let (q, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let block = |width: usize| 4 * size_class(rows * width);
        // How many blocks of each width live at once in `block::forward`: the residual and its norm
        // or product, queries and attention's result, keys and values, gate, up and their product.
        let activations = 2 * block(c.dim) + 2 * block(q) + 2 * block(kv) + 3 * block(c.hidden_dim);
        let low_rank: BTreeSet<usize> = self.loras().flat_map(|l| [l.a.n, l.b.n]).collect();
        let adapters: usize = low_rank.into_iter().map(block).sum();
        // In the workspace, and in the session.
        let logits = 4 * (size_class(c.vocab_size) + c.vocab_size);
        let choosing = SAMPLER_BYTES * c.vocab_size + 4 * (ctx + 1);
        // Cosine and sine, tokens, and the row with logits; lists may hold twice their length.
        let lists = 2 * (4 * rows * c.head_dim + 4 * rows) + 64;
        let cache = ScratchArgs {
            shape: KvShape { n_kv_heads: c.n_kv_heads, head_dim: c.head_dim, kv_type },
            capacity: ctx,
            n_heads: c.n_heads,
            window: c.sliding_window,
        };
        let inputs = c.dim.max(q).max(c.hidden_dim);
        let nf4 = self.linears().any(|linear| matches!(linear.w.data, MatrixData::Nf4(_)));
        let kernels = Scratch::most_serving_bytes(&self.device.cpu, rows, inputs, nf4, &cache);
        [activations, adapters, logits, choosing, lists, kernels]
            .into_iter()
            .try_fold(0usize, usize::checked_add)
            .ok_or_else(|| Error::config("ctx", ctx, "more than memory can address"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::llama::LoadOptions;

    #[test]
    fn a_context_that_is_said_to_fit_does() {
        let model = Model::load("builtin".as_ref(), &LoadOptions::threads(1)).unwrap();
        let takes = |ctx, kv_type| {
            let memory = model.memory(ctx, kv_type).unwrap();
            memory.cache_bytes + memory.workspace_bytes
        };
        let hint = |room| model.session_hint(4096, KvType::F16, room).unwrap();
        assert_eq!(hint(0), "no context fits beside the weights: 4-bit weights need less");
        let text = hint(takes(1000, KvType::F16));
        let ctx: usize =
            text.strip_prefix("--ctx ").unwrap().split(' ').next().unwrap().parse().unwrap();
        // Caches grow in blocks of positions, so some more may fit.
        assert!(ctx >= 1000 && takes(ctx, KvType::F16) <= takes(1000, KvType::F16), "{text}");
        assert!(takes(ctx + 1, KvType::F16) > takes(1000, KvType::F16), "{text}");
        let text = hint(takes(4096, KvType::Q8_0));
        assert!(text.starts_with("--kv-type q8_0 or --ctx "), "{text}");
    }
}
