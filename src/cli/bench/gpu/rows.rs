//! What is measured: one line a row.

use super::Bench;
use super::attention::{backward, forward};
use super::layers::{Form, adamw, copy, cross_entropy, lora, product, rms_norm, swiglu};
use super::quantised::{Stored, token};
use crate::error::Result;
use crate::model::shapes::Shape;

/// Sizes of the rows.
pub struct Sizes {
    /// Bytes that are copied.
    pub copy_bytes: usize,
    /// Sequences of a batch, and their length.
    pub attention: Vec<(usize, usize)>,
    pub n_heads: usize,
    pub head_dim: usize,
    /// Sides of square products.
    pub squares: Vec<usize>,
    /// Rows of a prompt, or of a training slice.
    pub tokens: usize,
    pub dim: usize,
    pub hidden_dim: usize,
    pub vocab_size: usize,
    /// Rows whose logits are scored at once.
    pub scored: usize,
    pub rank: usize,
    /// Random numbers.
    pub pool: usize,
    pub flush_bytes: usize,
}

impl Sizes {
    /// Those of a model. Attention's are those of FlashAttention's published measurements: 16 heads,
    /// 16,384 tokens.
    pub fn of(shape: &Shape) -> Sizes {
        Sizes {
            copy_bytes: 1 << 30,
            attention: vec![(4, 4096), (1, 16384)],
            n_heads: 16,
            head_dim: 128,
            squares: vec![4096, 8192],
            tokens: 4096,
            dim: shape.dim,
            hidden_dim: shape.hidden_dim,
            vocab_size: shape.vocab_size,
            scored: 1024,
            rank: 16,
            // A prime, so that no two rows of a matrix are alike.
            pool: 1_048_583,
            flush_bytes: usize::MAX,
        }
    }

    /// What the harness can do.
    pub fn tiny() -> Sizes {
        Sizes {
            copy_bytes: 1 << 12,
            attention: vec![(2, 40), (1, 70)],
            n_heads: 2,
            head_dim: 128,
            squares: vec![64],
            tokens: 72,
            dim: 64,
            hidden_dim: 96,
            vocab_size: 149,
            scored: 5,
            rank: 16,
            pool: 1031,
            flush_bytes: 1 << 10,
        }
    }
}

/// Measures all rows.
///
/// # Errors
/// When a result is wrong, or the device failed.
pub fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let Sizes { tokens, dim, hidden_dim, vocab_size, .. } = *bench.sizes;
    copy(bench)?;
    for (batch, len) in bench.sizes.attention.clone() {
        forward(bench, batch, len)?;
        backward(bench, batch, len)?;
    }
    for side in bench.sizes.squares.clone() {
        product(bench, Form::Nt, side, side, side)?;
    }
    // A layer's product, its input's gradient and its weight's: [m, n, k] as each computes it.
    for (n, k) in [(dim, dim), (hidden_dim, dim), (dim, hidden_dim)] {
        product(bench, Form::Nt, tokens, n, k)?;
        product(bench, Form::Nn, tokens, k, n)?;
        product(bench, Form::Tn, n, k, tokens)?;
    }
    // A token's products: attention's, the feed-forward's, the head's.
    product(bench, Form::Nt, 1, dim, dim)?;
    product(bench, Form::Nt, 1, hidden_dim, dim)?;
    product(bench, Form::Nt, 1, dim, hidden_dim)?;
    product(bench, Form::Nt, 1, vocab_size, dim)?;
    // Of whole blocks, which rows of models are; those of the harness are not.
    let whole = |k: usize| k.next_multiple_of(256);
    let mut sizes = vec![(dim, whole(dim)), (hidden_dim, whole(dim)), (dim, whole(hidden_dim))];
    sizes.sort_unstable();
    sizes.dedup();
    for stored in [Stored::Nf4, Stored::Q4K] {
        for &(n, k) in &sizes {
            token(bench, stored, n, k)?;
        }
    }
    lora(bench, tokens, dim, dim)?;
    rms_norm(bench, tokens, dim)?;
    swiglu(bench, tokens, hidden_dim)?;
    cross_entropy(bench, bench.sizes.scored, vocab_size)?;
    adamw(bench, dim * hidden_dim)
}
