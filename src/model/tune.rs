//! A model whose weights or adapter are trained: parameters, one pass over packed rows with
//! gradients, and what it writes in the end.

use crate::autograd::{Cx, Dropout, Mode, Var, checkpoint, sweep};
use crate::error::{Error, Result};
use crate::format::peft::Target;
use crate::kernels::Cpu;
use crate::kernels::Scratch;
use crate::kernels::rows::Rotations;
use crate::model::block::{self, Shape};
use crate::model::checkpoint::GenerationDefaults;
use crate::model::config::Config;
use crate::model::rope::{Frequencies, append_angles, clear_angles};
use crate::model::weights::{Block, Weights};
use crate::ops;
use crate::tensor::{DType, Grads, Params, Pool};
use crate::text::TextParts;
use std::path::PathBuf;
use std::sync::Arc;

pub use crate::format::peft::{LoraSpec, Target as LoraTarget};
pub use crate::kernels::matmul::Precision;
pub use crate::ops::Loss as SliceLoss;

/// What is trained.
#[derive(Clone, Debug)]
pub enum TuneMethod {
    /// Every weight.
    Full,
    /// A low-rank adapter; the weights stay as they are.
    Lora {
        /// Rank, scale, targets.
        spec: LoraSpec,
        /// Start from this adapter, whose settings replace `spec`'s.
        adapter: Option<PathBuf>,
    },
}

/// How to open a model for training.
#[derive(Clone, Debug)]
pub struct TuneOptions {
    /// Members of the worker team, at least 1.
    pub threads: usize,
    /// Products and activations in f32 or bf16; sums, optimiser and trained values are f32.
    pub precision: Precision,
    /// What is trained.
    pub method: TuneMethod,
    /// Keep only the input of each block and run it again in the backward pass.
    pub gradient_checkpointing: bool,
    /// Seed of what starts at random.
    pub seed: u64,
}

/// Rows packed one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// For each position the token to be predicted there, the one after it; `None`: not scored.
    pub labels: &'a [Option<u32>],
    /// Lengths of the sequences, which do not see each other; their sum is the number of ids.
    pub spans: &'a [usize],
}

/// A model in training.
pub struct TuneModel {
    /// Sizes and settings.
    pub config: Config,
    /// Tokenizer and chat template; `None` for a checkpoint without.
    pub text: Option<TextParts>,
    /// What the checkpoint says of sampling and of its end.
    pub generation: GenerationDefaults,
    /// What an optimiser changes.
    pub params: Params,
    pub(super) weights: Weights,
    pub(super) options: TuneOptions,
    /// The adapter's settings; `None` where the weights themselves are trained.
    pub(super) adapter: Option<LoraSpec>,
    /// Block and layer of each pair of parameters of the adapter, in their order.
    pub(super) adapter_places: Vec<(usize, Target)>,
    pub(super) base: PathBuf,
    pub(super) cpu: Cpu,
    pub(super) pool: Pool,
    pub(super) scratch: Scratch,
}

impl TuneModel {
    /// The device that it runs on.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Bytes of memory that activations and kernels have reserved so far.
    pub fn working_bytes(&self) -> usize {
        self.pool.bytes() + self.scratch.bytes()
    }

    /// Scores the rows; with `grads`, adds `scale` times the gradient of the summed loss to them.
    /// `dropout` chooses the dropout masks of this pass; without `grads` nothing is dropped.
    ///
    /// # Errors
    /// When lengths do not fit together or an id is outside the vocabulary.
    pub fn run(
        &mut self,
        slice: &Slice<'_>,
        grads: Option<(&mut Grads, f32)>,
        dropout: Dropout,
    ) -> Result<SliceLoss> {
        self.check(slice)?;
        self.pool.expect_rows(slice.ids.len());
        let scored: Vec<usize> =
            (0..slice.ids.len()).filter(|&i| slice.labels[i].is_some()).collect();
        if scored.is_empty() {
            return Ok(SliceLoss::default());
        }
        let labels: Vec<Option<u32>> = scored.iter().map(|&i| slice.labels[i]).collect();
        let angles = Arc::new(self.rotations(slice.spans));
        let config = &self.config;
        let pass = Pass {
            shape: Shape::of(config),
            angles,
            spans: slice.spans.into(),
            keep: scored.into(),
        };
        let mode = Mode::Train(self.options.precision);
        let mut cx = Cx::new(&self.cpu, &self.pool, &self.params, &mut self.scratch, mode);
        let mut scale = 0.0;
        if let Some((grads, factor)) = grads {
            cx.record(grads);
            cx.dropout = Some(dropout);
            scale = factor;
        }
        let mut x = ops::embedding(&mut cx, &self.weights.tok_emb, slice.ids)?;
        let last = self.weights.blocks.len().wrapping_sub(1);
        for (layer, block) in self.weights.blocks.iter().enumerate() {
            let is_last = layer == last;
            x = if self.options.gradient_checkpointing {
                let pass = pass.clone();
                checkpoint(&mut cx, x, Box::new(move |cx, x| pass.block(cx, block, x, is_last)))?
            } else {
                pass.block(&mut cx, block, x, is_last)?
            };
        }
        let h = ops::rms_norm(&mut cx, &x, &self.weights.out_norm, config.norm_eps);
        drop(x);
        let head = &self.weights.lm_head.w;
        let (loss, node) = ops::cross_entropy(&mut cx, &h, head, &labels, scale)?;
        drop(h);
        if let Some(node) = node {
            // The loss's derivative with respect to itself is already in what the node keeps.
            let one = cx.take_f32(1, 1);
            sweep(&mut cx, vec![(node, one)])?;
        }
        Ok(loss)
    }

    fn check(&self, slice: &Slice<'_>) -> Result<()> {
        let n = slice.ids.len();
        if slice.labels.len() != n || slice.spans.iter().sum::<usize>() != n {
            return Err(Error::Shape {
                op: "training pass".into(),
                expected: format!("labels and spans of {n} tokens"),
                got: format!(
                    "{} labels, spans of {}",
                    slice.labels.len(),
                    slice.spans.iter().sum::<usize>()
                ),
            });
        }
        let vocab = self.config.vocab_size;
        match slice.labels.iter().flatten().find(|&&id| id as usize >= vocab) {
            Some(id) => {
                Err(Error::config("label", id, format!("the vocabulary has {vocab} tokens")))
            }
            None => Ok(()),
        }
    }

    fn rotations(&self, spans: &[usize]) -> Rotations {
        let (rope, head_dim) = (&self.config.rope, self.config.head_dim);
        let (mut angles, mut freqs) = (Rotations::default(), Frequencies::default());
        clear_angles(&mut angles, rope, head_dim);
        for &len in spans {
            append_angles(&mut angles, &mut freqs, rope, head_dim, 0..len, len);
        }
        angles
    }

    /// The element type in which activations are kept.
    pub fn activation_dtype(&self) -> DType {
        match self.options.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }
}

/// What all blocks of a pass share.
#[derive(Clone)]
struct Pass {
    shape: Shape,
    angles: Arc<Rotations>,
    spans: Arc<[usize]>,
    keep: Arc<[usize]>,
}

impl Pass {
    fn block<'w>(
        &self,
        cx: &mut Cx<'_, 'w>,
        block: &'w Block,
        x: Var<'w>,
        is_last: bool,
    ) -> Result<Var<'w>> {
        let keep = is_last.then_some(&self.keep[..]);
        block::forward(cx, block, &self.shape, x, &self.angles, keep, |cx, qkv| {
            Ok(ops::attention(cx, self.shape.heads, qkv, &self.spans))
        })
    }
}
