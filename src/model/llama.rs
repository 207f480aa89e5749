//! The forward pass: one code path for prompts, single tokens and batches of sequences.
//!
//! A batch is a list of segments, each some consecutive tokens of one sequence. Every row is
//! computed by the same operations in the same order whatever else is in the batch, so a
//! sequence's logits have the same bits however its prompt is split and whoever shares the batch.

use crate::autograd::{Cx, Mode, Var};
use crate::error::{Error, Result};
use crate::kernels::rows::Rotations;
use crate::kernels::{Cpu, Scratch};
use crate::model::adapter::read_adapter;
use crate::model::block::{self, Shape};
use crate::model::checkpoint::{Checkpoint, GenerationDefaults};
use crate::model::config::Config;
use crate::model::rope::{append_angles, clear_angles};
use crate::model::text::text_parts;
use crate::model::tune_open::attach_fixed;
use crate::model::weights::Weights;
use crate::ops::{self, CachedRows};
use crate::tensor::{Params, Pool, Rows};
use crate::text::TextParts;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::model::kv_cache::{KvCache, KvType};

/// How to open a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Members of the worker team, at least 1.
    pub threads: usize,
    /// Multiply weights with f32 activations, unrounded: slower, for verification.
    pub exact: bool,
    /// Adapters to add, in this order.
    pub adapters: Vec<PathBuf>,
}

/// A model ready to run: immutable, shared by all its sequences.
pub struct Model {
    /// Sizes and settings.
    pub config: Config,
    /// Tokenizer and chat template; `None` for a checkpoint without.
    pub text: Option<TextParts>,
    /// What the checkpoint says of sampling and of its end.
    pub generation: GenerationDefaults,
    weights: Weights,
    params: Params, // none: nothing is trained while serving
    cpu: Arc<Cpu>,
    exact: bool,
}

/// Which rows of a segment get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// No row.
    None,
    /// The last row.
    Last,
    /// Every row.
    All,
}

/// Consecutive tokens of one sequence, to be appended to its cache.
pub struct Segment<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// The sequence's cache.
    pub cache: &'a mut KvCache,
    /// Which rows get logits.
    pub logits: LogitsFor,
    /// Length that the sequence will have when its whole prompt is in, for a prompt that comes
    /// in pieces (dynamic RoPE looks at it); `None`: its length after this segment.
    pub rope_len: Option<usize>,
}

/// Buffers of a forward pass, made for [`Model::MAX_ROWS`] rows at most, grown on first use.
pub struct Workspace {
    pool: Pool,
    scratch: Scratch,
    angles: Arc<Rotations>,
    logits: Option<Rows>, // [wanted rows, vocab]
    wanted: Vec<usize>,   // rows that get logits
}

impl Workspace {
    /// Logits `[vocab_size]` of the `row`-th row that was asked for, counted over all segments.
    ///
    /// # Panics
    /// When fewer rows were asked for in the last forward pass.
    pub fn logits(&self, row: usize) -> &[f32] {
        let logits = self.logits.as_ref();
        let (all, vocab) = logits.map_or((&[][..], 0), |rows| (rows.f32(), rows.width()));
        &all[row * vocab..(row + 1) * vocab]
    }
}

impl Model {
    /// Rows that one forward pass takes at most.
    pub const MAX_ROWS: usize = 512;

    /// Opens a Hugging Face directory or a GGUF file.
    ///
    /// # Errors
    /// When the checkpoint is not there, is broken, or needs something that Puna does not do.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Model> {
        Model::load_on(path, options, Arc::new(Cpu::new(options.threads)?))
    }

    /// Opens a model whose work the threads of `self` will do. Two teams would fight for the cores.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_beside(&self, path: &Path, options: &LoadOptions) -> Result<Model> {
        Model::load_on(path, options, Arc::clone(&self.cpu))
    }

    fn load_on(path: &Path, options: &LoadOptions, cpu: Arc<Cpu>) -> Result<Model> {
        let checkpoint = Checkpoint::open(path)?;
        // The tokenizer is built while the weights load.
        let (text, weights) = std::thread::scope(|scope| {
            let text = scope.spawn(|| text_parts(&checkpoint));
            let weights = Weights::load(&cpu, &checkpoint);
            let text = text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (text, weights)
        });
        let mut weights = weights?;
        for dir in &options.adapters {
            attach_fixed(&mut weights, &read_adapter(dir, &checkpoint.config)?);
        }
        let Checkpoint { config, generation, .. } = checkpoint;
        let (params, exact) = (Params::default(), options.exact);
        Ok(Model { config, text: text?, generation, weights, params, cpu, exact })
    }

    /// Bytes of weights that computing one token reads.
    pub fn bytes_per_token(&self) -> usize {
        self.weights.bytes_per_token()
    }

    /// The element type of most of these bytes, as GGUF spells it.
    pub fn weight_type(&self) -> &'static str {
        self.weights.main_type()
    }

    /// The instruction set in use.
    pub fn isa_name(&self) -> String {
        self.cpu.isa.to_string()
    }

    /// An empty cache for `capacity` positions.
    ///
    /// # Errors
    /// When the capacity is 0 or too large to address.
    pub fn new_cache(&self, capacity: usize, kv_type: KvType) -> Result<KvCache> {
        KvCache::new(&self.config, capacity, kv_type)
    }

    /// Buffers for forward passes; one per thread that calls [`Model::forward`].
    pub fn workspace(&self) -> Workspace {
        Workspace {
            pool: Pool::default(),
            scratch: Scratch::default(),
            angles: Arc::default(),
            logits: None,
            wanted: Vec::new(),
        }
    }

    /// Runs all segments in one batch: appends their tokens to the caches and computes the
    /// logits asked for.
    ///
    /// # Errors
    /// When a cache is full, a token id is outside the vocabulary, or the batch has more than
    /// [`Model::MAX_ROWS`] rows. The caches are then as before.
    pub fn forward(&self, ws: &mut Workspace, segments: &mut [Segment<'_>]) -> Result<()> {
        let config = &self.config;
        let m: usize = segments.iter().map(|s| s.tokens.len()).sum();
        if m > Self::MAX_ROWS {
            return Err(Error::Shape {
                op: "forward".into(),
                expected: format!("at most {} tokens", Self::MAX_ROWS),
                got: m.to_string(),
            });
        }
        for s in segments.iter() {
            let needed = s.cache.len() + s.tokens.len();
            if needed > s.cache.capacity() {
                return Err(Error::ContextFull { needed, capacity: s.cache.capacity() });
            }
        }
        find_wanted(&mut ws.wanted, segments);
        self.rotations(&mut ws.angles, segments);
        ws.logits = None;
        let (pool, params) = (ws.pool.clone(), &self.params);
        let mode = Mode::Serve { exact: self.exact };
        let mut cx = Cx::new(&self.cpu, &pool, params, &mut ws.scratch, mode);
        let mut x = self.embed(&mut cx, segments)?;
        let shape = Shape::of(config);
        let last = self.weights.blocks.len().wrapping_sub(1);
        for (layer, block) in self.weights.blocks.iter().enumerate() {
            let keep = (layer == last).then_some(&ws.wanted[..]);
            x = block::forward(&mut cx, block, &shape, x, &ws.angles, keep, |cx, qkv| {
                let parts = segments.iter_mut().map(|s| CachedRows {
                    first_pos: s.cache.len(),
                    n_rows: s.tokens.len(),
                    kv: &mut s.cache.layers[layer],
                });
                Ok(ops::attention_cached(cx, shape.heads, qkv, parts))
            })?;
        }
        for s in segments.iter_mut() {
            s.cache.advance(s.tokens.len());
        }
        if !ws.wanted.is_empty() {
            let h = ops::rms_norm(&mut cx, &x, &self.weights.out_norm, config.norm_eps);
            ws.logits = Some(ops::linear(&mut cx, &h, &self.weights.lm_head)?.rows);
        }
        Ok(())
    }

    fn embed<'w>(&'w self, cx: &mut Cx<'_, 'w>, segments: &[Segment<'_>]) -> Result<Var<'w>> {
        let table = &self.weights.tok_emb;
        if let [one] = segments {
            return ops::embedding(cx, table, one.tokens);
        }
        let tokens: Vec<u32> = segments.iter().flat_map(|s| s.tokens).copied().collect();
        ops::embedding(cx, table, &tokens)
    }

    /// Angles of every row's rotations.
    fn rotations(&self, angles: &mut Arc<Rotations>, segments: &[Segment<'_>]) {
        let (rope, head_dim) = (&self.config.rope, self.config.head_dim);
        let fill = |rotations: &mut Rotations| {
            clear_angles(rotations, rope, head_dim);
            for s in segments {
                let end = s.cache.len() + s.tokens.len();
                let len = s.rope_len.unwrap_or(end).max(end);
                append_angles(rotations, rope, head_dim, s.cache.len()..end, len);
            }
        };
        match Arc::get_mut(angles) {
            Some(rotations) => fill(rotations),
            None => {
                let mut fresh = Rotations::default();
                fill(&mut fresh);
                *angles = Arc::new(fresh);
            }
        }
    }
}

fn find_wanted(wanted: &mut Vec<usize>, segments: &[Segment<'_>]) {
    wanted.clear();
    let mut row = 0;
    for s in segments {
        let t = s.tokens.len();
        match s.logits {
            LogitsFor::None => {}
            LogitsFor::Last if t > 0 => wanted.push(row + t - 1),
            LogitsFor::Last => {}
            LogitsFor::All => wanted.extend(row..row + t),
        }
        row += t;
    }
}
