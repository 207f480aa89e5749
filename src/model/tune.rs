//! A model whose weights or adapter are trained: parameters, one pass over packed rows with
//! gradients, and what it writes in the end.

use crate::autograd::{Cx, Dropout, Mode, NodeId, Var, checkpoint, sweep};
use crate::error::{Error, Result};
use crate::format::peft::Target;
use crate::kernels::rows::{Rotations, Selection};
use crate::kernels::{Device, Scratch, linear};
use crate::model::block::{self, Shape};
use crate::model::config::{Config, Head};
use crate::model::llama::Model;
use crate::model::rope::{Frequencies, append_angles, clear_angles};
use crate::model::weights::Block;
use crate::ops;
use crate::tensor::{DType, Grads, Matrix, Params, Pool};
use crate::text::TextParts;
use std::path::{Path, PathBuf};
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
    /// The same on a base whose blocks' linear layers are held in NF4.
    QLora {
        /// As for [`TuneMethod::Lora`].
        spec: LoraSpec,
        /// As for [`TuneMethod::Lora`].
        adapter: Option<PathBuf>,
        /// Whether NF4's scales are quantised too.
        double_quant: bool,
    },
}

impl TuneMethod {
    /// Settings of the adapter that is trained, and where it starts from if not anew.
    pub fn adapter(&self) -> Option<(&LoraSpec, Option<&Path>)> {
        match self {
            TuneMethod::Full => None,
            TuneMethod::Lora { spec, adapter } | TuneMethod::QLora { spec, adapter, .. } => {
                Some((spec, adapter.as_deref()))
            }
        }
    }
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
    /// A reward model: a head of one number, in place of the tokens' where the checkpoint has that.
    pub score: bool,
    /// A second head, of one number, beside that of the tokens: what a state is worth. It starts at
    /// zero and is not part of what is saved as the model.
    pub value: bool,
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
    /// The instance that each sequence comes from, for losses that know more of it; may be empty.
    pub sources: &'a [u32],
}

/// Derivatives of a loss with respect to log-probabilities and values, of these.
pub type PolicyObjective<'a> = dyn FnMut(&[f32], &[f32]) -> [Vec<f32>; 2] + 'a;

/// A model in training.
pub struct TuneModel {
    /// The weights, trained ones among them, behind inference.
    pub(super) model: Model,
    pub(super) options: TuneOptions,
    /// The value head, a parameter [1, dim].
    pub(super) value: Option<Matrix>,
    /// The adapter's settings; `None` where the weights themselves are trained.
    pub(super) adapter: Option<LoraSpec>,
    /// Block and layer of each pair of parameters of the adapter, in their order.
    pub(super) adapter_places: Vec<(usize, Target)>,
    pub(super) base: PathBuf,
    pub(super) pool: Pool,
    pub(super) scratch: Scratch,
    /// Of the last pass, with the lengths of its sequences.
    pub(super) angles: Option<(Box<[usize]>, Arc<Rotations>)>,
}

impl TuneModel {
    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        &self.model.device
    }

    /// The model as it is now, for inference: no copy, and what is trained next is seen next.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Sizes and settings.
    pub fn config(&self) -> &Config {
        &self.model.config
    }

    /// Tokenizer and chat template; `None` for a checkpoint without.
    pub fn text(&self) -> Option<&TextParts> {
        self.model.text.as_ref()
    }

    /// What an optimiser changes.
    pub fn params(&self) -> &Params {
        &self.model.params
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> &mut Params {
        &mut self.model.params
    }

    /// Whether an adapter is trained, and not the weights.
    pub fn has_adapter(&self) -> bool {
        self.adapter.is_some()
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
        let (scored, labels) = self.scored(slice)?;
        if scored.is_empty() {
            return Ok(SliceLoss::default());
        }
        let labels: Vec<Option<u32>> = labels.into_iter().map(Some).collect();
        let (grads, scale) = grads.map_or((None, 0.0), |(grads, scale)| (Some(grads), scale));
        let grads = grads.map(|grads| (grads, dropout));
        let Hidden { mut cx, h, head, .. } = self.hidden(slice, scored, grads, true)?;
        let (loss, node) = ops::cross_entropy(&mut cx, &h, head, &labels, scale)?;
        drop(h);
        // The loss's derivative with respect to itself is already in what the node keeps.
        sweep_from(&mut cx, [node])?;
        Ok(loss)
    }

    /// Logarithms of the probabilities of the labels, in the order of their positions. Without
    /// `adapters` those of the model under the adapter.
    ///
    /// # Errors
    /// As [`TuneModel::run`].
    pub fn log_probs(&mut self, slice: &Slice<'_>, adapters: bool) -> Result<Vec<f32>> {
        let (scored, labels) = self.scored(slice)?;
        if scored.is_empty() {
            return Ok(vec![]);
        }
        let Hidden { mut cx, h, head, .. } = self.hidden(slice, scored, None, adapters)?;
        ops::log_probs(&mut cx, &h, head, &labels)
    }

    /// Adds to `grads` the gradient of any loss that is a function of the labels' log-probabilities:
    /// `objective` is given these and returns the loss's derivatives with respect to them.
    ///
    /// # Errors
    /// As [`TuneModel::run`].
    ///
    /// # Panics
    /// When `objective` returns another number of derivatives.
    pub fn run_log_probs(
        &mut self,
        slice: &Slice<'_>,
        grads: &mut Grads,
        dropout: Dropout,
        objective: &mut dyn FnMut(&[f32]) -> Vec<f32>,
    ) -> Result<()> {
        let (scored, labels) = self.scored(slice)?;
        if scored.is_empty() {
            objective(&[]);
            return Ok(());
        }
        let grads = Some((grads, dropout));
        let Hidden { mut cx, h, head, .. } = self.hidden(slice, scored, grads, true)?;
        let log_probs = ops::log_probs(&mut cx, &h, head, &labels)?;
        let d = objective(&log_probs);
        assert_eq!(d.len(), labels.len(), "a derivative a label");
        let node = ops::log_probs_backward(&mut cx, &h, head, &labels, &d)?;
        drop(h);
        sweep_from(&mut cx, [node])
    }

    /// What [`TuneModel::log_probs`] gives and, of each position with a label, what the value head
    /// says of it: of the state before the label.
    ///
    /// # Errors
    /// As [`TuneModel::run`]; no value head.
    pub fn policy(&mut self, slice: &Slice<'_>) -> Result<(Vec<f32>, Vec<f32>)> {
        let (scored, labels) = self.scored(slice)?;
        if scored.is_empty() {
            return Ok((vec![], vec![]));
        }
        let Hidden { mut cx, h, head, value } = self.hidden(slice, scored, None, true)?;
        let values = ops::score(&mut cx, &h, valued(value)?)?;
        Ok((ops::log_probs(&mut cx, &h, head, &labels)?, values))
    }

    /// [`TuneModel::run_log_probs`] for a loss of log-probabilities and values: `objective` is given
    /// both and returns the derivatives with respect to both.
    ///
    /// # Errors
    /// As [`TuneModel::policy`].
    ///
    /// # Panics
    /// When `objective` returns another number of derivatives.
    pub fn run_policy(
        &mut self,
        slice: &Slice<'_>,
        grads: &mut Grads,
        dropout: Dropout,
        objective: &mut PolicyObjective<'_>,
    ) -> Result<()> {
        let (scored, labels) = self.scored(slice)?;
        if scored.is_empty() {
            objective(&[], &[]);
            return Ok(());
        }
        let grads = Some((grads, dropout));
        let Hidden { mut cx, h, head, value } = self.hidden(slice, scored, grads, true)?;
        let value = valued(value)?;
        let log_probs = ops::log_probs(&mut cx, &h, head, &labels)?;
        let values = ops::score(&mut cx, &h, value)?;
        let [d_log_probs, d_values] = objective(&log_probs, &values);
        assert_eq!([d_log_probs.len(), d_values.len()], [labels.len(); 2], "derivatives a label");
        let policy = ops::log_probs_backward(&mut cx, &h, head, &labels, &d_log_probs)?;
        let value = ops::score_backward(&mut cx, &h, value, &d_values)?;
        drop(h);
        sweep_from(&mut cx, [policy, value])
    }

    /// The score of each sequence, read at its last token.
    ///
    /// # Errors
    /// As [`TuneModel::run`].
    pub fn scores(&mut self, slice: &Slice<'_>) -> Result<Vec<f32>> {
        let last = self.last(slice)?;
        let Hidden { mut cx, h, head, .. } = self.hidden(slice, last, None, true)?;
        ops::score(&mut cx, &h, head)
    }

    /// Adds to `grads` the gradient of any loss that is a function of the scores: `objective` is
    /// given these and returns the loss's derivatives with respect to them.
    ///
    /// # Errors
    /// As [`TuneModel::run`].
    ///
    /// # Panics
    /// When `objective` returns another number of derivatives.
    pub fn run_scores(
        &mut self,
        slice: &Slice<'_>,
        grads: &mut Grads,
        dropout: Dropout,
        objective: &mut dyn FnMut(&[f32]) -> Vec<f32>,
    ) -> Result<()> {
        let last = self.last(slice)?;
        let grads = Some((grads, dropout));
        let Hidden { mut cx, h, head, .. } = self.hidden(slice, last, grads, true)?;
        let scores = ops::score(&mut cx, &h, head)?;
        let d = objective(&scores);
        let node = ops::score_backward(&mut cx, &h, head, &d)?;
        drop(h);
        sweep_from(&mut cx, [node])
    }

    /// The position of each sequence's last token.
    fn last(&self, slice: &Slice<'_>) -> Result<Vec<usize>> {
        self.check(slice)?;
        if self.model.config.head != Head::Score {
            return Err(Error::Unsupported("scores of a model with a head for tokens".into()));
        }
        let mut end = 0;
        let last = |&len: &usize| {
            end += len;
            end - 1
        };
        Ok(slice.spans.iter().filter(|&&len| len > 0).map(last).collect())
    }

    /// Positions with a label, and the labels.
    fn scored(&self, slice: &Slice<'_>) -> Result<(Vec<usize>, Vec<u32>)> {
        self.check(slice)?;
        if self.model.config.head != Head::Tokens {
            return Err(Error::Unsupported("log-probabilities of a reward model".into()));
        }
        let labels = slice.labels.iter().enumerate();
        Ok(labels.filter_map(|(at, label)| Some((at, (*label)?))).unzip())
    }

    /// The rows `keep` of what the heads read. The tape is on where there are gradients.
    fn hidden<'a>(
        &'a mut self,
        slice: &Slice<'_>,
        keep: Vec<usize>,
        grads: Option<(&'a mut Grads, Dropout)>,
        adapters: bool,
    ) -> Result<Hidden<'a>> {
        self.pool.expect_rows(slice.ids.len());
        let angles = self.rotations(slice.spans);
        linear::renew_low(&self.model.device, &mut self.model.params)?;
        let TuneModel { model, options, value, pool, scratch, .. } = self;
        let Model { config, weights, params, device, .. } = model;
        let shape = Shape::of(config);
        let pass = Pass { shape, angles, spans: slice.spans.into(), keep: Arc::new(keep.into()) };
        let mode = Mode::Train(options.precision);
        let mut cx = Cx::new(device, pool, params, scratch, mode);
        cx.adapters = adapters;
        if let Some((grads, dropout)) = grads {
            cx.record(grads);
            cx.dropout = Some(dropout);
        }
        let mut x = ops::embedding(&mut cx, &weights.tok_emb, slice.ids.into())?;
        let last = weights.blocks.len().wrapping_sub(1);
        for (layer, block) in weights.blocks.iter().enumerate() {
            let is_last = layer == last;
            x = if options.gradient_checkpointing {
                let pass = pass.clone();
                checkpoint(&mut cx, x, Box::new(move |cx, x| pass.block(cx, block, x, is_last)))?
            } else {
                pass.block(&mut cx, block, x, is_last)?
            };
        }
        let h = ops::rms_norm(&mut cx, &x, &weights.out_norm, config.norm_eps)?;
        Ok(Hidden { cx, h, head: &weights.lm_head.w, value: value.as_ref() })
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
        let vocab = self.model.config.vocab_size;
        match slice.labels.iter().flatten().find(|&&id| id as usize >= vocab) {
            Some(id) => {
                Err(Error::config("label", id, format!("the vocabulary has {vocab} tokens")))
            }
            None => Ok(()),
        }
    }

    /// The angles of packed sequences, those of the last pass if it had the same.
    fn rotations(&mut self, spans: &[usize]) -> Arc<Rotations> {
        if let Some((known, angles)) = &self.angles
            && **known == *spans
        {
            return Arc::clone(angles);
        }
        let (rope, head_dim) = (&self.model.config.rope, self.model.config.head_dim);
        let (mut angles, mut freqs) = (Rotations::default(), Frequencies::default());
        clear_angles(&mut angles, rope, head_dim);
        for &len in spans {
            append_angles(&mut angles, &mut freqs, rope, head_dim, 0..len, len);
        }
        let angles = Arc::new(angles);
        self.angles = Some((spans.into(), Arc::clone(&angles)));
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

/// What comes before the heads.
struct Hidden<'a> {
    /// The context that it was computed in.
    cx: Cx<'a, 'a>,
    /// The rows that the heads read.
    h: Var<'a>,
    /// The head of tokens, or of scores.
    head: &'a Matrix,
    /// The value head.
    value: Option<&'a Matrix>,
}

fn valued(value: Option<&Matrix>) -> Result<&Matrix> {
    value.ok_or_else(|| Error::Unsupported("values of a model without a value head".into()))
}

/// Runs the tape backward from the heads' nodes.
fn sweep_from<const N: usize>(cx: &mut Cx<'_, '_>, nodes: [Option<NodeId>; N]) -> Result<()> {
    let seed = |node| Ok((node, cx.take_f32(1, 1)?));
    let from = nodes.into_iter().flatten().map(seed).collect::<Result<Vec<_>>>()?;
    if !from.is_empty() {
        sweep(cx, from)?;
    }
    Ok(())
}

/// What all blocks of a pass share.
#[derive(Clone)]
struct Pass {
    shape: Shape,
    angles: Arc<Rotations>,
    spans: Arc<[usize]>,
    keep: Arc<Selection>,
}

impl Pass {
    fn block<'w>(
        &self,
        cx: &mut Cx<'_, 'w>,
        block: &'w Block,
        x: Var<'w>,
        is_last: bool,
    ) -> Result<Var<'w>> {
        let keep = is_last.then_some(&self.keep);
        block::forward(cx, block, &self.shape, x, &self.angles, keep, |cx, qkv| {
            ops::attention(cx, self.shape.heads, qkv, &self.spans)
        })
    }
}
