//! Memory that a training run takes on a GPU: the same items as on the machine, with what differs
//! there. Weights lie as `weights_cuda` puts them; activations take what is held at once, since a
//! block may lie where others lay; kernels keep little beside their operands.

use super::{
    FROZEN, MemoryPlan, RunSize, SliceSize, TRAINED, WeightBytes, activations, n_trained, nf4_of,
};
use crate::model::config::Config;
use crate::model::tune::{Precision, TuneMethod, TuneOptions};

/// Rows whose sums a norm's backward keeps apart (`cuda/include/rms_norm.h`).
const NORM_ROWS: u64 = 64;
/// Rows whose part of an adapter's gradients is kept apart (`cuda/include/lora_grads.h`).
const GRADS_ROWS: u64 = 512;
/// Ids, labels, spans and lists of tiles and tokens, for a token at most.
const LIST_BYTES: u64 = 128;
/// Sums of norms, plans, and what each of many small buffers is rounded up by: not reckoned but taken
/// from the harness, where a pass in bf16 of a model of 3.6 MB takes 30 KiB beyond 256.
const SMALL_BYTES: u64 = 320 << 10;

impl WeightBytes {
    /// What a frozen base holds on a GPU: quantised matrices and NF4 stay so there, in rows that begin at
    /// whole words of 16 bytes.
    fn frozen_on_device(&self, precision: Precision, nf4: Option<bool>) -> u64 {
        let encoded = match nf4 {
            None => 0,
            Some(false) => self.linear.nf4,
            Some(true) => self.linear.nf4_double,
        };
        let quantised = self.packed.saturating_add(self.blocks).saturating_add(encoded);
        self.frozen(precision, nf4).saturating_add(quantised / 16)
    }
}

/// Plans the memory of training on a GPU a model of this configuration with these weights.
pub fn device_plan(
    config: &Config,
    weights: &WeightBytes,
    options: &TuneOptions,
    run: &RunSize,
) -> MemoryPlan {
    let slice = run.slice;
    let base = match options.method {
        TuneMethod::Full => 0,
        _ => weights.frozen_on_device(options.precision, nf4_of(options)),
    };
    let trained = n_trained(config, options);
    let held = activations(config, options, slice).peak() as u64;
    let items = vec![
        (FROZEN, base),
        (TRAINED, trained.saturating_mul(4)),
        ("gradients", trained.saturating_mul(4)),
        ("optimiser", trained.saturating_mul(run.state_bytes as u64)),
        // Blocks of the arena are up to a thirty-second larger than what they hold.
        ("activations", held.saturating_add(held / 32)),
        ("kernels", kernels(config, options, slice)),
    ];
    MemoryPlan { items: items.into_iter().filter(|(_, bytes)| *bytes > 0).collect() }
}

/// What kernels keep beside their operands while they run, the most that one of them does.
fn kernels(config: &Config, options: &TuneOptions, slice: SliceSize) -> u64 {
    let t = slice.tokens as u64;
    let (heads, head_dim, dim) = (config.n_heads as u64, config.head_dim as u64, config.dim as u64);
    // Attention's backward: a sum a row and head, and in bf16 its gradient rounded.
    let attention =
        4 * heads + if options.precision == Precision::Bf16 { 2 * heads * head_dim } else { 0 };
    // A norm's: a number a row, and sums over `NORM_ROWS` rows each.
    let norm = 4 + (4 * dim).div_ceil(NORM_ROWS);
    let rank = options.method.adapter().map_or(0, |(spec, _)| spec.r as u64);
    let lora = 2 * rank;
    // An adapter's gradients: parts of its two matrices.
    let widest = dim.max(heads * head_dim) + dim.max(config.hidden_dim as u64);
    let parts = t.div_ceil(GRADS_ROWS).saturating_mul(4 * rank * widest);
    // Cosines and sines stay for the whole pass.
    let angles = 4 * head_dim;
    let row = attention.max(norm).max(lora) + angles + LIST_BYTES;
    let rows = t.saturating_mul(row).saturating_add(parts);
    rows.saturating_add(4 * dim).saturating_add(SMALL_BYTES)
}
