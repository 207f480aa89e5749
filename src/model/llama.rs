//! The forward pass: one code path for prompts, single tokens and batches of sequences.
//!
//! A batch is a list of segments, each some consecutive tokens of one sequence. Every row is
//! computed by the same operations in the same order whatever else is in the batch, so a
//! sequence's logits have the same bits however its prompt is split and whoever shares the batch.
//! A pass that was run once allocates nothing when it, or a smaller one, runs again.

use crate::autograd::{Cx, Mode};
use crate::error::{Error, Result};
use crate::kernels::rows::{Rotations, Selection};
use crate::kernels::{Device, List, Scratch};
use crate::model::adapter::read_adapter;
use crate::model::block::{self, Shape};
use crate::model::checkpoint::{Checkpoint, GenerationDefaults};
use crate::model::config::{Config, Head};
use crate::model::logits::read_once;
#[cfg(feature = "cuda")]
use crate::model::replay::Replay;
use crate::model::rope::{Frequencies, append_angles, clear_angles};
use crate::model::text::text_parts;
use crate::model::tune_open::attach_fixed;
use crate::model::weights::Weights;
#[cfg(feature = "cuda")]
use crate::model::weights_cuda::move_weights;
use crate::ops::{self, CachedRows};
use crate::tensor::{Params, Pool, Rows};
use crate::text::{TextParts, Tokenizer};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

pub use crate::kernels::{Place, Seat, Team, TeamOptions, pin_current_thread};
pub use crate::model::kv_cache::{KvCache, KvType};
pub use crate::model::logits::{Choice, Kept, Logits};
pub use crate::model::memory::Memory;

/// How to open a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The worker team: how many threads, their name, their cores, how long they spin.
    pub team: TeamOptions,
    /// Multiply weights with f32 activations, unrounded: slower, for verification.
    pub exact: bool,
    /// Adapters to add, in this order.
    pub adapters: Vec<PathBuf>,
    /// Keep rearranged weights of a GGUF file in `FILE.panels` beside it, and start from there
    /// next time: several times as fast, and processes share the memory. Of no use to a GPU.
    pub cache_weights: bool,
    /// Where to compute.
    pub place: Place,
}

impl LoadOptions {
    /// A team of `threads` members, all else as usual.
    pub fn threads(threads: usize) -> LoadOptions {
        LoadOptions { team: TeamOptions::threads(threads), ..LoadOptions::default() }
    }
}

/// A model ready to run: immutable, shared by all its sequences.
///
/// ```
/// use puna::model::llama::{KvType, LoadOptions, Model};
///
/// let model = Model::load("builtin".as_ref(), &LoadOptions::threads(1))?;
/// let memory = model.memory(256, KvType::F16)?;
/// assert!(memory.weights_bytes > memory.cache_bytes);
/// # Ok::<(), puna::Error>(())
/// ```
pub struct Model {
    /// Sizes and settings.
    pub config: Config,
    /// Tokenizer and chat template; `None` for a checkpoint without.
    pub text: Option<TextParts>,
    /// What the checkpoint says of sampling and of its end.
    pub generation: GenerationDefaults,
    pub(super) weights: Weights,
    pub(super) params: Params, // none: nothing is trained while serving
    pub(super) device: Arc<Device>,
    pub(super) exact: bool,
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

/// What one forward pass runs: some segments, the same ones in the same order at each call. Lists
/// of segments are one; who keeps caches elsewhere can hand them out from there.
pub trait Batch {
    /// The segments.
    fn segments(&mut self) -> impl Iterator<Item = Segment<'_>>;

    /// Whether the pass should end; looked at before every block.
    fn cancelled(&self) -> bool {
        false
    }
}

impl Batch for [Segment<'_>] {
    fn segments(&mut self) -> impl Iterator<Item = Segment<'_>> {
        self.iter_mut().map(Segment::borrowed)
    }
}

/// Segments, and when to give them up.
struct Unless<'s, 'a> {
    segments: &'s mut [Segment<'a>],
    cancel: &'s AtomicBool,
}

impl Batch for Unless<'_, '_> {
    fn segments(&mut self) -> impl Iterator<Item = Segment<'_>> {
        self.segments.iter_mut().map(Segment::borrowed)
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

impl Segment<'_> {
    /// The same segment for a shorter time.
    fn borrowed(&mut self) -> Segment<'_> {
        let Segment { tokens, cache, logits, rope_len } = self;
        Segment { tokens, cache, logits: *logits, rope_len: *rope_len }
    }
}

/// What is held, or a new one where others hold it too.
pub(super) fn own<T: Default>(held: &mut Arc<T>) -> &mut T {
    if Arc::get_mut(held).is_none() {
        *held = Arc::default();
    }
    Arc::get_mut(held).expect("nobody else holds what was just made")
}

/// Buffers of a forward pass, made for [`Model::MAX_ROWS`] rows at most, grown on first use.
pub struct Workspace {
    /// Activations: every block has room for the longest pass so far.
    pub(super) pool: Pool,
    /// Logits, apart: few rows get them, and each is long.
    pub(super) heads: Pool,
    scratch: Scratch,
    pub(super) angles: Arc<Rotations>,
    frequencies: Frequencies,
    pub(super) tokens: List, // of all segments
    logits: Option<Rows>,    // [wanted rows, vocab]
    /// The logits of a GPU, once somebody has read them.
    copy: OnceLock<Vec<f32>>,
    device: Arc<Device>,
    #[cfg(feature = "cuda")]
    pub(super) replay: Replay,
    pub(super) wanted: Arc<Selection>, // rows that get logits
}

impl Workspace {
    /// Bytes held, written or not.
    pub fn bytes(&self) -> usize {
        let angles = 4 * (self.angles.cos.capacity() + self.angles.sin.capacity());
        let lists = 4 * self.tokens.capacity() + self.wanted.bytes();
        self.pool.bytes() + self.heads.bytes() + self.scratch.bytes() + angles + lists
    }

    /// Passes that a GPU ran from a recording.
    #[cfg(feature = "cuda")]
    pub fn replays(&self) -> usize {
        self.replay.count
    }

    /// Logits `[vocab_size]` of the `row`-th row that was asked for, counted over all segments.
    ///
    /// Those of a GPU are copied when the first of a pass is read.
    ///
    /// # Errors
    /// When a GPU failed.
    ///
    /// # Panics
    /// When fewer rows were asked for in the last forward pass.
    pub fn logits(&self, row: usize) -> Result<&[f32]> {
        let (all, vocab) = match &self.logits {
            Some(rows) => (read_once(rows, &self.copy)?, rows.width()),
            None => (&[][..], 0),
        };
        Ok(&all[row * vocab..(row + 1) * vocab])
    }

    /// The same row, to be chosen from where it is.
    pub fn row(&self, row: usize) -> Logits<'_> {
        Logits::Pass(self, row)
    }

    /// The logits [rows, vocab_size], where a GPU has them.
    pub(super) fn on_gpu(&self) -> Option<(&Device, &Rows)> {
        let rows = self.logits.as_ref().filter(|rows| !rows.is_host())?;
        Some((&self.device, rows))
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
        let checkpoint = Checkpoint::open(path)?;
        let device = Device::with_options(&options.team)?.at(options.place)?;
        Model::from_checkpoint(checkpoint, options, Arc::new(device))
    }

    /// Opens a model where `self` computes, whose work the team of `self` will do; the team and the
    /// place of the options do not count. Two teams would fight for the cores.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_beside(&self, path: &Path, options: &LoadOptions) -> Result<Model> {
        Model::from_checkpoint(Checkpoint::open(path)?, options, Arc::clone(&self.device))
    }

    /// Opens a model to be run by a team that is there already, such as one of threads that the
    /// caller lends; the team of the options does not count.
    ///
    /// ```
    /// use puna::model::llama::{LoadOptions, Model, Team, TeamOptions};
    ///
    /// let (team, seats) = Team::lent(&TeamOptions::threads(2)).unwrap();
    /// let mine: Vec<_> = seats
    ///     .into_iter()
    ///     .map(|seat| std::thread::spawn(move || seat.work()))
    ///     .collect();
    /// let model = Model::load_with_team("builtin".as_ref(), &LoadOptions::default(), team)?;
    /// // ... the threads work for the model until it is dropped:
    /// drop(model);
    /// mine.into_iter().for_each(|thread| thread.join().unwrap());
    /// # Ok::<(), puna::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with_team(path: &Path, options: &LoadOptions, team: Team) -> Result<Model> {
        let device = Device::with_team(team)?.at(options.place)?;
        Model::from_checkpoint(Checkpoint::open(path)?, options, Arc::new(device))
    }

    fn from_checkpoint(
        checkpoint: Checkpoint,
        options: &LoadOptions,
        device: Arc<Device>,
    ) -> Result<Model> {
        // The tokenizer is built while the weights load.
        let (text, weights) = std::thread::scope(|scope| {
            let text = scope.spawn(|| text_parts(&checkpoint));
            let weights = if device.is_gpu() {
                Weights::load_blocks(&device.cpu, &checkpoint, false, false)
            } else if options.cache_weights {
                Weights::load_cached(&device.cpu, &checkpoint)
            } else {
                Weights::load(&device.cpu, &checkpoint)
            };
            let text = text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (text, weights)
        });
        let mut weights = weights?;
        let mut config = checkpoint.config.clone();
        for dir in &options.adapters {
            let adapter = read_adapter(dir, &checkpoint.config)?;
            attach_fixed(&mut weights, &adapter);
            if adapter.score.is_some() {
                config.head = Head::Score;
            }
        }
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &device.gpu {
            move_weights(&mut weights, gpu)?;
        }
        let Checkpoint { generation, .. } = checkpoint;
        let (params, exact) = (Params::default(), options.exact);
        Ok(Model { config, text: text?, generation, weights, params, device, exact })
    }

    /// Refuses a model whose head gives no logits of tokens.
    ///
    /// # Errors
    /// A reward model.
    pub fn check_speaks(&self) -> Result<()> {
        match self.config.head {
            Head::Tokens => Ok(()),
            Head::Score => {
                let what =
                    "a reward model gives scores, no tokens: `puna eval reward` asks for them";
                Err(Error::Unsupported(what.into()))
            }
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// The checkpoint came without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let none = || Error::Tokenizer("the model came without one; token ids are needed".into());
        Ok(&self.text.as_ref().ok_or_else(none)?.tokenizer)
    }

    /// Tokens that end a text: those that the checkpoint names, else the tokenizer's.
    pub fn end_ids(&self) -> Vec<u32> {
        let mut ids = self.generation.eos_ids.clone();
        if let (true, Some(text)) = (ids.is_empty(), &self.text) {
            ids.extend(text.tokenizer.eos_id());
        }
        ids
    }

    /// Bytes of weights that computing one token reads.
    pub fn bytes_per_token(&self) -> usize {
        self.weights.bytes_per_token()
    }

    /// The element type of most of these bytes, as GGUF spells it.
    pub fn weight_type(&self) -> &'static str {
        self.weights.main_type()
    }

    /// Whether a GPU computes.
    pub fn is_on_gpu(&self) -> bool {
        self.device.is_gpu()
    }

    /// Waits until a GPU has done all that it was asked for: before a clock is read.
    ///
    /// # Errors
    /// When it failed.
    pub fn sync(&self) -> Result<()> {
        self.device.sync()
    }

    /// What computes: the instruction set in use, or the GPU by its maker's name.
    pub fn device_name(&self) -> String {
        self.device.name()
    }

    /// Room for a row of logits where the model computes.
    ///
    /// # Errors
    /// When a GPU has none.
    pub fn room_for_logits(&self) -> Result<Kept> {
        Kept::new(&self.device, self.config.vocab_size)
    }

    /// An empty cache for `capacity` positions.
    ///
    /// # Errors
    /// When the capacity is 0 or too large to address.
    pub fn new_cache(&self, capacity: usize, kv_type: KvType) -> Result<KvCache> {
        let cache = KvCache::new(&self.config, capacity, kv_type, &self.device.home());
        // A GPU alone tells what is free: what is neither the weights' nor somebody else's.
        cache.map_err(|e| {
            e.with_hint(|free, used| {
                let weights = self.memory(capacity, kv_type).ok()?.weights_bytes;
                self.session_hint(capacity, kv_type, free + used.saturating_sub(weights))
            })
        })
    }

    /// Buffers for forward passes; one per thread that calls [`Model::forward`].
    pub fn workspace(&self) -> Workspace {
        Workspace {
            pool: Pool::keeping(self.device.home()),
            heads: Pool::keeping(self.device.home()),
            scratch: Scratch::default(),
            angles: Arc::default(),
            frequencies: Frequencies::default(),
            tokens: List::default(),
            logits: None,
            copy: OnceLock::new(),
            device: Arc::clone(&self.device),
            #[cfg(feature = "cuda")]
            replay: Replay::default(),
            wanted: Arc::default(),
        }
    }

    /// Runs all segments in one batch: appends their tokens to the caches and computes the
    /// logits asked for.
    ///
    /// # Errors
    /// When a cache is full, a token id is outside the vocabulary, or the batch has more than
    /// [`Model::MAX_ROWS`] rows. The caches are then as before.
    pub fn forward(&self, ws: &mut Workspace, segments: &mut [Segment<'_>]) -> Result<()> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        self.forward_unless(ws, segments, &NEVER)
    }

    /// [`Model::forward`], given up within a block of the moment when `cancel` is set.
    ///
    /// # Errors
    /// [`Error::Cancelled`], and as [`Model::forward`]. The caches are then as before.
    pub fn forward_unless(
        &self,
        ws: &mut Workspace,
        segments: &mut [Segment<'_>],
        cancel: &AtomicBool,
    ) -> Result<()> {
        self.forward_batch(ws, &mut Unless { segments, cancel })
    }

    /// [`Model::forward`] over whatever hands out segments.
    ///
    /// # Errors
    /// [`Error::Cancelled`] where the batch says so, and as [`Model::forward`]. The caches are then
    /// as before.
    pub fn forward_batch<B: Batch + ?Sized>(
        &self,
        ws: &mut Workspace,
        batch: &mut B,
    ) -> Result<()> {
        let m: usize = batch.segments().map(|s| s.tokens.len()).sum();
        if m > Self::MAX_ROWS {
            return Err(Error::Shape {
                op: "forward".into(),
                expected: format!("at most {} tokens", Self::MAX_ROWS),
                got: m.to_string(),
            });
        }
        for s in batch.segments() {
            let needed = s.cache.len() + s.tokens.len();
            if needed > s.cache.capacity() {
                return Err(Error::ContextFull { needed, capacity: s.cache.capacity() });
            }
        }
        self.prepare(ws, batch);
        ws.logits = None;
        ws.copy.take();
        ws.pool.expect_rows(m);
        ws.heads.expect_rows(ws.wanted.len());
        ws.logits = self.run_where_it_is(ws, batch)?;
        // Last of all: what was given up has changed no length.
        for Segment { tokens, cache, .. } in batch.segments() {
            cache.advance(tokens.len());
        }
        Ok(())
    }

    fn run_where_it_is<B: Batch + ?Sized>(
        &self,
        ws: &mut Workspace,
        batch: &mut B,
    ) -> Result<Option<Rows>> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.device.gpu() {
            return self.run_on_gpu(gpu, ws, batch);
        }
        self.run(ws, batch)
    }

    /// The pass itself; returns the logits asked for.
    pub(super) fn run<B: Batch + ?Sized>(
        &self,
        ws: &mut Workspace,
        batch: &mut B,
    ) -> Result<Option<Rows>> {
        let config = &self.config;
        let (pool, heads, params) = (ws.pool.clone(), ws.heads.clone(), &self.params);
        let mode = Mode::Serve { exact: self.exact };
        let mut cx = Cx::new(&self.device, &pool, params, &mut ws.scratch, mode);
        let mut x = ops::embedding(&mut cx, &self.weights.tok_emb, ws.tokens.listed())?;
        let shape = Shape::of(config);
        let last = self.weights.blocks.len().wrapping_sub(1);
        for (layer, block) in self.weights.blocks.iter().enumerate() {
            if batch.cancelled() {
                return Err(Error::Cancelled);
            }
            let keep = (layer == last).then_some(&ws.wanted);
            x = block::forward(&mut cx, block, &shape, x, &ws.angles, keep, |cx, qkv| {
                #[cfg(feature = "cuda")]
                if cx.device.is_gpu() {
                    let pass = &mut ws.replay.attention;
                    return ops::attention_prepared(cx, shape.heads, qkv, pass, layer);
                }
                let parts = batch.segments().map(|s| {
                    let Segment { tokens, cache, .. } = s;
                    let (first_pos, n_rows) = (cache.len(), tokens.len());
                    CachedRows { first_pos, n_rows, kv: &mut cache.layers[layer] }
                });
                ops::attention_cached(cx, shape.heads, qkv, parts)
            })?;
        }
        if ws.wanted.is_empty() {
            return Ok(None);
        }
        if batch.cancelled() {
            return Err(Error::Cancelled);
        }
        let h = ops::rms_norm(&mut cx, &x, &self.weights.out_norm, config.norm_eps)?;
        cx.pool = &heads;
        Ok(Some(ops::linear(&mut cx, &h, &self.weights.lm_head)?.rows))
    }

    /// Tokens, rows with logits and angles of a batch.
    fn prepare<B: Batch + ?Sized>(&self, ws: &mut Workspace, batch: &mut B) {
        let Workspace { angles, frequencies, tokens, wanted, .. } = ws;
        let (rope, head_dim) = (&self.config.rope, self.config.head_dim);
        // Nobody else holds angles and rows while nothing is recorded.
        let (angles, wanted) = (own(angles), own(wanted).rows_mut());
        clear_angles(angles, rope, head_dim);
        let tokens = tokens.edit();
        tokens.clear();
        wanted.clear();
        for s in batch.segments() {
            let rows = tokens.len()..tokens.len() + s.tokens.len();
            let wants = match s.logits {
                LogitsFor::None => 0,
                LogitsFor::Last => rows.len().min(1),
                LogitsFor::All => rows.len(),
            };
            wanted.extend(rows.end - wants..rows.end);
            tokens.extend_from_slice(s.tokens);
            let end = s.cache.len() + s.tokens.len();
            let len = s.rope_len.unwrap_or(end).max(end);
            append_angles(angles, frequencies, rope, head_dim, s.cache.len()..end, len);
        }
    }
}
