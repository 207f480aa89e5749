//! (interfaces agreed on; bodies being written)
#![allow(missing_docs, unused_variables, clippy::all)]
use crate::error::Result;
use crate::text::TextParts;
use std::path::Path;

/// Storage type of the key/value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    F16,
    Bf16,
    F32,
    Q8_0,
}

pub struct LoadOptions {
    pub threads: usize,
    pub exact: bool,
}

pub struct ModelConfig {
    pub dim: usize,
    pub hidden_dim: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_seq_len: usize,
}

pub struct GenerationDefaults {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub do_sample: Option<bool>,
    pub eos_ids: Vec<u32>,
    pub bos_id: Option<u32>,
}

/// An opened model: weights ready to run, with tokenizer where the checkpoint has one.
pub struct Model {
    pub config: ModelConfig,
    pub text: Option<TextParts>,
    pub generation: GenerationDefaults,
}

/// Key/value cache of one sequence.
pub struct KvCache;
impl KvCache {
    pub fn len(&self) -> usize {
        todo!()
    }
    pub fn capacity(&self) -> usize {
        todo!()
    }
    pub fn truncate(&mut self, len: usize) {
        todo!()
    }
    /// A copy that goes on independently.
    pub fn fork(&self) -> KvCache {
        todo!()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LogitsFor {
    None,
    Last,
    All,
}

/// Consecutive tokens of one sequence, appended to its cache.
pub struct Segment<'a> {
    pub tokens: &'a [u32],
    pub cache: &'a mut KvCache,
    pub logits: LogitsFor,
    /// Whole length that the sequence will have after its prompt is in (dynamic RoPE looks at it when a prompt comes in chunks); None: cache.len() + tokens.len().
    pub rope_len: Option<usize>,
}

/// Buffers of a forward pass, grown on first use and then reused.
pub struct Workspace;
impl Workspace {
    /// Logits of the i-th row asked for, in order over all segments; [vocab_size].
    pub fn logits(&self, row: usize) -> &[f32] {
        todo!()
    }
}

impl Model {
    /// Most rows of one segment of a forward pass.
    pub const MAX_ROWS: usize = 512;
    /// Weight bytes read for one token: everything but the rows of the embedding that are not looked up.
    pub fn bytes_per_token(&self) -> u64 {
        todo!()
    }
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Model> {
        todo!()
    }
    pub fn new_cache(&self, capacity: usize, kv: KvType) -> Result<KvCache> {
        todo!()
    }
    pub fn workspace(&self) -> Workspace {
        todo!()
    }
    /// Runs all segments in one batch; the rows of a segment are at most `Model::MAX_ROWS` (longer prompts are split by the caller: see infer).
    pub fn forward(&self, ws: &mut Workspace, segments: &mut [Segment<'_>]) -> Result<()> {
        todo!()
    }
}
