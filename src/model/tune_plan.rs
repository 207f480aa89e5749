//! Memory that a training run takes, planned from the shapes: the most that the process holds at
//! any time of a step, item by item.
//!
//! ```text
//! weights      trained: f32; frozen: as the file's pages, packed panels, NF4, or rounded to bf16
//! adapter      f32
//! gradients    f32, one for each trained number
//! optimiser    its state, f32
//! activations  what the pool holds after a pass: the pass is walked through in sizes
//! kernels      packed tiles, shares of sums
//! program      code, threads, tokenizer
//! bf16 copies  on a GPU: of what is trained, and of derivatives on their way into products
//! ```
//!
//! Loading takes less than the first step: files are read in pieces into what stays.

mod device;
mod ledger;
#[cfg(test)]
mod tests;
mod walk;

pub use device::device_plan;

use crate::error::Result;
use crate::format::FileDType;
use crate::kernels::linear::derivative_dtype;
use crate::kernels::loss::{HOST_LOGIT_BYTES, logit_bytes};
use crate::model::adapter::target_of;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::Config;
use crate::model::names::Weight;
use crate::model::tune::{Precision, TuneMethod, TuneModel, TuneOptions};
use crate::ops::chunk_rows;
use crate::tensor::DType;
use puna_cpu::qmatmul::PackedMatrix;
use puna_cpu::quant::nf4::Nf4Matrix;
use std::path::Path;
use walk::Walk;

/// What a process holds besides all that depends on the model: code, the allocator, stacks.
const PROGRAM_BYTES: u64 = 9 << 20;
/// What a tokenizer takes for each token, reading its file included.
const TOKEN_BYTES: u64 = 350;

/// Bytes of a checkpoint's weights by how a frozen base holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// F32 matrices: pages of the file, or rounded to bf16.
    pub f32: u64,
    /// F16 and BF16 matrices: pages of the file.
    pub half: u64,
    /// Quantised matrices that are multiplied: rearranged panels.
    pub packed: u64,
    /// A quantised table that is only looked up: pages of the file.
    pub blocks: u64,
    /// Norms and biases, widened to f32.
    pub vectors: u64,
    /// Of all these, the linear layers of the blocks.
    pub linear: LinearBytes,
}

/// The linear layers of the blocks, which NF4 replaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearBytes {
    /// Of F32 matrices.
    pub f32: u64,
    /// Of F16 and BF16 matrices.
    pub half: u64,
    /// Of quantised matrices, which stay what they are.
    pub packed: u64,
    /// What the others take in NF4.
    pub nf4: u64,
    /// Likewise with scales that are quantised.
    pub nf4_double: u64,
}

impl WeightBytes {
    /// Those of a checkpoint, from its headers.
    ///
    /// # Errors
    /// A weight that is missing or of a type that cannot be used.
    pub fn of(checkpoint: &Checkpoint) -> Result<WeightBytes> {
        let mut bytes = WeightBytes::default();
        let tied = checkpoint.config.tie_embeddings;
        for weight in checkpoint.config.weights() {
            let Some(tensor) = checkpoint.weight_opt(weight)? else { continue };
            let len = tensor.len as u64;
            let looked_up = weight == Weight::TokEmb && !tied;
            if let (Some(_), &[n, k]) = (target_of(weight), &tensor.shape[..]) {
                bytes.linear.add(tensor.dtype, len, [n, k]);
            }
            match (&tensor.shape[..], tensor.dtype) {
                (&[_, _], FileDType::F32) => bytes.f32 += len,
                (&[n, k], FileDType::Block(block)) if !looked_up => {
                    bytes.packed += PackedMatrix::bytes_of(block, n, k) as u64;
                }
                (&[_, _], FileDType::Block(_)) => bytes.blocks += len,
                (&[_, _], _) => bytes.half += len,
                _ => bytes.vectors += 4 * tensor.n_elements() as u64,
            }
        }
        Ok(bytes)
    }

    /// Whether a base of NF4 can be made of them: none of the layers is quantised already.
    pub fn can_be_nf4(&self) -> bool {
        self.linear.packed == 0
    }

    /// What a frozen base holds; `nf4` as in the method, of a base that is encoded.
    fn frozen(&self, precision: Precision, nf4: Option<bool>) -> u64 {
        let (replaced, encoded) = match nf4 {
            None => (LinearBytes::default(), 0),
            Some(false) => (self.linear, self.linear.nf4),
            Some(true) => (self.linear, self.linear.nf4_double),
        };
        let f32 = self.f32 - replaced.f32;
        let dense = match precision {
            Precision::F32 => f32,
            Precision::Bf16 => f32 / 2,
        };
        let half = self.half - replaced.half;
        dense + half + self.packed + encoded + self.blocks + self.vectors
    }
}

impl LinearBytes {
    fn add(&mut self, dtype: FileDType, len: u64, [n, k]: [usize; 2]) {
        match dtype {
            FileDType::F32 => self.f32 += len,
            FileDType::Block(block) => {
                self.packed += PackedMatrix::bytes_of(block, n, k) as u64;
                return;
            }
            _ => self.half += len,
        }
        self.nf4 += Nf4Matrix::bytes_of(n, k, false) as u64;
        self.nf4_double += Nf4Matrix::bytes_of(n, k, true) as u64;
    }
}

/// What of a run decides its memory besides the model and how it is tuned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunSize {
    /// The rows of a step.
    pub slice: SliceSize,
    /// Bytes that the optimiser keeps for each trained number.
    pub state_bytes: usize,
    /// Tokens of the tokenizer; 0 without one.
    pub n_tokens: usize,
}

/// The rows of a step as they decide its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceSize {
    /// Tokens of the largest slice.
    pub tokens: usize,
    /// Length of its sequences; the largest slice holds `tokens / longest` of them.
    pub longest: usize,
}

/// The memory of a run, item by item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Name and bytes of each item.
    pub items: Vec<(&'static str, u64)>,
}

impl MemoryPlan {
    /// Bytes of all items.
    pub fn total(&self) -> u64 {
        self.items.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Bytes of what is there once the model is opened: its weights, frozen or trained.
    pub fn weights(&self) -> u64 {
        let weights = self.items.iter().filter(|(name, _)| [FROZEN, TRAINED].contains(name));
        weights.fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }
}

/// Names of the items that are weights.
const FROZEN: &str = "frozen weights";
const TRAINED: &str = "trained weights";

/// Plans the memory of training a model of this configuration with these weights.
pub fn memory_plan(
    config: &Config,
    weights: &WeightBytes,
    options: &TuneOptions,
    run: &RunSize,
) -> MemoryPlan {
    let slice = run.slice;
    let base = match options.method {
        TuneMethod::Full => 0,
        _ => weights.frozen(options.precision, nf4_of(options)),
    };
    let trained = n_trained(config, options);
    let items = vec![
        (FROZEN, base),
        (TRAINED, trained.saturating_mul(4)),
        ("gradients", trained.saturating_mul(4)),
        ("optimiser", trained.saturating_mul(run.state_bytes as u64)),
        ("activations", activations(config, options, slice).written() as u64),
        ("kernels", kernels(config, options, slice)),
        ("program", PROGRAM_BYTES + TOKEN_BYTES * run.n_tokens as u64),
    ];
    MemoryPlan { items: items.into_iter().filter(|(_, bytes)| *bytes > 0).collect() }
}

/// How a base of NF4 has its scales; `None` for another base.
fn nf4_of(options: &TuneOptions) -> Option<bool> {
    match options.method {
        TuneMethod::QLora { double_quant, .. } => Some(double_quant),
        _ => None,
    }
}

/// Numbers that are trained.
fn n_trained(config: &Config, options: &TuneOptions) -> u64 {
    let Some((spec, _)) = options.method.adapter() else { return n_parameters(config) };
    let pair = |target| {
        let (n, k) = walk::sizes(config, target);
        (spec.r as u64).saturating_mul((n + k) as u64)
    };
    let block: u64 = spec.targets.iter().map(|&target| pair(target)).sum();
    block.saturating_mul(config.n_layers as u64)
}

fn n_parameters(config: &Config) -> u64 {
    let numbers = |weight| config.shape(weight).iter().map(|&n| n as u64).product::<u64>();
    config.weights().map(numbers).sum()
}

/// What the pool holds after a pass. The last token of a sequence has nothing to predict.
fn activations(config: &Config, options: &TuneOptions, slice: SliceSize) -> ledger::Ledger {
    let dtype = match options.precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::Bf16,
    };
    let mut walk = Walk::new(config, dtype);
    walk.checkpointing = options.gradient_checkpointing;
    match options.method.adapter() {
        None => walk.full = true,
        Some((spec, _)) => {
            walk.lora = Some((spec.r, &spec.targets));
            walk.dropout = spec.dropout > 0.0;
        }
    }
    let sequences = slice.tokens.div_ceil(slice.longest.max(1));
    walk.run(slice.tokens, slice.tokens.saturating_sub(sequences).max(1));
    walk.ledger
}

/// Rows of a packed tile of a product, tiles that are packed together at most, bytes of them at
/// most, and bytes of results that a thread holds back.
const TILE_ROWS: f64 = 12.0;
const SLAB_TILES: f64 = 48.0;
const SLAB_BYTES: f64 = 16.0 * 1048576.0;
const STAGE_BYTES: f64 = SLAB_TILES * TILE_ROWS * 512.0 * 4.0;
/// Rows of queries and keys of a tile of attention, and parts that a sequence's queries are cut
/// into.
const QUERY_ROWS: f64 = 192.0;
const KEYS: f64 = 64.0;
const PART: usize = 128;
const MAX_PARTS: usize = 8;

/// What kernels work in, about: packed tiles of products, tiles and sums of attention.
fn kernels(config: &Config, options: &TuneOptions, slice: SliceSize) -> u64 {
    let chunk = chunk_rows(HOST_LOGIT_BYTES, config.vocab_size).min(slice.tokens) as f64;
    let (t, vocab) = (slice.tokens as f64, config.vocab_size as f64);
    let packed = |lanes: f64, inputs: f64| {
        let tile = match options.precision {
            Precision::F32 => 4.0 * TILE_ROWS * inputs,
            Precision::Bf16 => 2.0 * TILE_ROWS * inputs,
        };
        let most = (SLAB_BYTES / tile).clamp(8.0, SLAB_TILES);
        (lanes / TILE_ROWS).ceil().min(most) * tile
    };
    // f32 rows are read where they lie, but for the gradients' transposed ones; in bf16 the f32
    // derivatives of logits and of the feed-forward are rounded on the way.
    let widest = config.hidden_dim.max(config.dim).max(config.n_heads * config.head_dim) as f64;
    let slab = match options.precision {
        Precision::F32 => packed(f64::MAX, t),
        Precision::Bf16 => packed(t, widest).max(packed(chunk, vocab)),
    };
    let width = config.head_dim.next_multiple_of(16) as f64;
    let attention = QUERY_ROWS * (3.0 * width + 2.0 * KEYS) + 4.0 * KEYS * width;
    let a_thread = STAGE_BYTES + 4.0 * attention;
    // Part i of p ends where i / p of the causal triangle does: at sqrt(i / p) of the sequence.
    let parts = slice.longest.div_ceil(PART).clamp(1, MAX_PARTS);
    let ends: f64 = (1..=parts).map(|i| (i as f64 / parts as f64).sqrt()).sum();
    let sums = 8.0 * config.n_kv_heads as f64 * width * ends * t;
    (slab + options.threads as f64 * a_thread + sums) as u64
}

impl TuneModel {
    /// Plans the memory of training this model where it computes: the machine's, as [`memory_plan`]
    /// does, or a GPU's, as [`device_plan`] does.
    ///
    /// # Errors
    /// A base that is gone.
    pub fn memory_plan(&self, state_bytes: usize, slice: SliceSize) -> Result<MemoryPlan> {
        let weights = match self.has_adapter() {
            false => WeightBytes::default(),
            true => WeightBytes::of(&Checkpoint::open(&self.base)?)?,
        };
        let n_tokens = if self.text().is_some() { self.config().vocab_size } else { 0 };
        let run = RunSize { slice, state_bytes, n_tokens };
        let plan = if self.device().is_gpu() { device_plan } else { memory_plan };
        let mut plan = plan(self.config(), &weights, &self.options, &run);
        let copies = self.copies(slice) as u64;
        plan.items.extend((copies > 0).then_some(("bf16 copies", copies)));
        Ok(plan)
    }

    /// Bytes that a pass on a GPU takes beyond one on the CPU: the bf16 copies of parameters, that of
    /// one layer's derivative at a time, and the logits of a larger chunk with theirs.
    fn copies(&self, slice: SliceSize) -> usize {
        let (device, config) = (self.device(), self.config());
        let chunk =
            |bytes| chunk_rows(bytes, config.vocab_size).min(slice.tokens) * config.vocab_size;
        let (host, own) = (chunk(HOST_LOGIT_BYTES), chunk(logit_bytes(device)));
        let mut bytes = size_of::<f32>() * (own - host);
        if derivative_dtype(device, self.options.precision) == DType::Bf16 {
            let trained = self.params().0.iter().filter(|param| param.low.is_some());
            let trained: usize = trained.map(|param| param.value.len()).sum();
            let widest = config.hidden_dim.max(config.dim).max(config.n_heads * config.head_dim);
            // The derivatives of gate and up are there at once.
            let copied = trained.saturating_add(slice.tokens.saturating_mul(2 * widest).max(own));
            bytes = copied.saturating_mul(DType::Bf16.bytes()).saturating_add(bytes);
        }
        bytes
    }

    /// How it was opened.
    pub fn options(&self) -> &TuneOptions {
        &self.options
    }

    /// What it was opened from.
    pub fn base(&self) -> &Path {
        &self.base
    }
}
