//! One transformer block. The same code serves prompts, single tokens, training and recomputation:
//! what differs is the tape of the context and where attention finds keys and values.

use crate::autograd::{Cx, Var};
use crate::error::Result;
use crate::kernels::rows::{Pairing, Rotations, Selection};
use crate::model::config::{Config, RopePairing};
use crate::model::weights::Block;
use crate::ops::{self, Heads};
use std::sync::Arc;

/// What blocks need of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Heads of the attention.
    pub heads: Heads,
    /// Which dimensions of a head turn together.
    pub pairing: Pairing,
    /// RMSNorm epsilon.
    pub norm_eps: f32,
}

impl Shape {
    /// That of a model.
    pub fn of(config: &Config) -> Shape {
        let heads = Heads {
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            window: config.sliding_window,
        };
        let pairing = match config.rope.pairing {
            RopePairing::Half => Pairing::Half,
            RopePairing::Interleaved => Pairing::Interleaved,
        };
        Shape { heads, pairing, norm_eps: config.norm_eps }
    }
}

/// Runs `x` [m, dim] through a block. `attend` gets queries, keys and values, the first two
/// rotated. With `keep` only those rows go on after attention, and the result has only them.
///
/// # Errors
/// When shapes do not fit.
pub fn forward<'w>(
    cx: &mut Cx<'_, 'w>,
    block: &'w Block,
    shape: &Shape,
    x: Var<'w>,
    angles: &Arc<Rotations>,
    keep: Option<&Arc<Selection>>,
    attend: impl FnOnce(&mut Cx<'_, 'w>, [Var<'w>; 3]) -> Result<Var<'w>>,
) -> Result<Var<'w>> {
    let (head_dim, pairing, eps) = (shape.heads.head_dim, shape.pairing, shape.norm_eps);
    let h = ops::rms_norm(cx, &x, &block.attn_norm, eps)?; // [m, dim]
    let [q, k, v] = ops::linears(cx, &h, [&block.wq, &block.wk, &block.wv])?;
    drop(h);
    let q = ops::rope(cx, q, head_dim, angles, pairing)?; // [m, n_heads * head_dim]
    let k = ops::rope(cx, k, head_dim, angles, pairing)?; // [m, n_kv_heads * head_dim]
    let mut attended = attend(cx, [q, k, v])?; // [m, n_heads * head_dim]
    let mut x = x;
    let dropout = cx.dropout;
    if let Some(keep) = keep {
        if let Some(dropout) = &mut cx.dropout {
            dropout.first_row = dropout.first_kept;
        }
        attended = ops::select(cx, attended, keep)?;
        x = ops::select(cx, x, keep)?;
    }
    let x = ops::linear_add(cx, x, attended, &block.wo)?; // [m, dim]

    let h = ops::rms_norm(cx, &x, &block.ffn_norm, eps)?;
    let act = ops::gated(cx, h, [&block.w1, &block.w3])?; // [m, hidden_dim]
    let out = ops::last_linear_add(cx, x, act, &block.w2)?;
    cx.dropout = dropout;
    Ok(out)
}
