//! The forward pass: one code path for prompts, single tokens and batches of sequences.
//!
//! A batch is a list of segments, each some consecutive tokens of one sequence. Every row is
//! computed by the same operations in the same order whatever else is in the batch, so a
//! sequence's logits have the same bits however its prompt is split and whoever shares the batch.

use crate::error::{Error, Result};
use crate::kernels::attention::{AttentionArgs, AttentionScratch, attention};
use crate::kernels::matmul::{MatmulScratch, product, products};
use crate::kernels::rows::{Angles, Pairing, add_acc, add_bias_acc, rms_norm, rope, swiglu};
use crate::kernels::{Cpu, embedding};
use crate::model::checkpoint::{Checkpoint, GenerationDefaults};
use crate::model::config::{Config, RopePairing};
use crate::model::rope::inv_freq;
use crate::model::text::text_parts;
use crate::model::weights::{Linear, Weights};
use crate::text::TextParts;
use puna_cpu::buffer::Buffer;
use std::path::Path;

pub use crate::model::kv_cache::{KvCache, KvType};

/// How to open a model.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Members of the worker team, at least 1.
    pub threads: usize,
    /// Multiply weights with f32 activations, unrounded: slower, for verification.
    pub exact: bool,
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
    cpu: Cpu,
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
    x: Buffer<f32>,     // [m, dim]
    h: Buffer<f32>,     // [m, dim]
    q: Buffer<f32>,     // [m, n_heads * head_dim]
    k: Buffer<f32>,     // [m, n_kv_heads * head_dim]
    v: Buffer<f32>,     // [m, n_kv_heads * head_dim]
    att: Buffer<f32>,   // [m, n_heads * head_dim]
    gate: Buffer<f32>,  // [m, hidden_dim]
    up: Buffer<f32>,    // [m, hidden_dim]
    act: Buffer<f32>,   // [m, hidden_dim]
    logits: Vec<f32>,   // [wanted rows, vocab]
    cos: Vec<f32>,      // [m, rotated / 2]
    sin: Vec<f32>,      // [m, rotated / 2]
    wanted: Vec<usize>, // rows that get logits
    rows: usize,
    vocab: usize,
    matmul: MatmulScratch,
    attention: AttentionScratch,
}

impl Workspace {
    /// Logits `[vocab_size]` of the `row`-th row that was asked for, counted over all segments.
    ///
    /// # Panics
    /// When fewer rows were asked for in the last forward pass.
    pub fn logits(&self, row: usize) -> &[f32] {
        &self.logits[row * self.vocab..(row + 1) * self.vocab]
    }

    fn reserve(&mut self, config: &Config, m: usize) {
        if m <= self.rows {
            return;
        }
        let (dim, hidden) = (config.dim, config.hidden_dim);
        let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        self.rows = m;
        self.x = Buffer::zeroed(m * dim);
        self.h = Buffer::zeroed(m * dim);
        self.q = Buffer::zeroed(m * q);
        self.k = Buffer::zeroed(m * kv);
        self.v = Buffer::zeroed(m * kv);
        self.att = Buffer::zeroed(m * q);
        self.gate = Buffer::zeroed(m * hidden);
        self.up = Buffer::zeroed(m * hidden);
        self.act = Buffer::zeroed(m * hidden);
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
        let cpu = Cpu::new(options.threads)?;
        // The tokenizer is built while the weights load.
        let (text, weights) = std::thread::scope(|scope| {
            let text = scope.spawn(|| text_parts(&checkpoint));
            let weights = Weights::load(&cpu, &checkpoint);
            let text = text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (text, weights)
        });
        let Checkpoint { config, generation, .. } = checkpoint;
        Ok(Model { config, text: text?, generation, weights: weights?, cpu, exact: options.exact })
    }

    /// Bytes of weights that computing one token reads.
    pub fn bytes_per_token(&self) -> usize {
        self.weights.bytes_per_token()
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
        let empty = || Buffer::zeroed(0);
        Workspace {
            x: empty(),
            h: empty(),
            q: empty(),
            k: empty(),
            v: empty(),
            att: empty(),
            gate: empty(),
            up: empty(),
            act: empty(),
            logits: Vec::new(),
            cos: Vec::new(),
            sin: Vec::new(),
            wanted: Vec::new(),
            rows: 0,
            vocab: self.config.vocab_size,
            matmul: MatmulScratch::default(),
            attention: AttentionScratch::default(),
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
        ws.reserve(config, m);
        self.embed(ws, segments)?;
        self.angles(ws, segments);
        find_wanted(&mut ws.wanted, segments);
        let n_blocks = self.weights.blocks.len();
        for layer in 0..n_blocks {
            self.attend(ws, segments, layer, m)?;
            let rows = if layer + 1 == n_blocks { self.keep_wanted(ws, m) } else { m };
            if rows > 0 {
                self.after_attention(ws, layer, rows)?;
            }
        }
        for s in segments.iter_mut() {
            s.cache.advance(s.tokens.len());
        }
        self.head(ws)
    }

    fn embed(&self, ws: &mut Workspace, segments: &[Segment<'_>]) -> Result<()> {
        let dim = self.config.dim;
        let mut row = 0;
        for s in segments {
            let out = &mut ws.x[row * dim..(row + s.tokens.len()) * dim];
            embedding::gather(&self.cpu, out, &self.weights.tok_emb, s.tokens)?;
            row += s.tokens.len();
        }
        Ok(())
    }

    /// Cosine and sine of every row's rotations, rounded as transformers rounds them: the angle
    /// to f32 before, the values after.
    fn angles(&self, ws: &mut Workspace, segments: &[Segment<'_>]) {
        let config = &self.config;
        ws.cos.clear();
        ws.sin.clear();
        for s in segments {
            let end = s.cache.len() + s.tokens.len();
            let len = s.rope_len.unwrap_or(end).max(end);
            let (freqs, scale) = inv_freq(&config.rope, config.head_dim, len);
            for pos in s.cache.len()..end {
                for freq in &freqs {
                    let (sin, cos) = f64::from(pos as f32 * freq).sin_cos();
                    ws.cos.push(cos as f32 * scale);
                    ws.sin.push(sin as f32 * scale);
                }
            }
        }
    }

    /// Norm, projections, rotation, cache and attention of one block; result in `ws.att`.
    fn attend(
        &self,
        ws: &mut Workspace,
        segments: &mut [Segment<'_>],
        layer: usize,
        m: usize,
    ) -> Result<()> {
        let (config, cpu) = (&self.config, &self.cpu);
        let block = &self.weights.blocks[layer];
        let (dim, head_dim) = (config.dim, config.head_dim);
        let (q_dim, kv_dim) = (config.n_heads * head_dim, config.n_kv_heads * head_dim);
        rms_norm(cpu, &mut ws.h[..m * dim], &ws.x[..m * dim], &block.attn_norm, config.norm_eps);
        let (q, k, v) = (&mut ws.q[..m * q_dim], &mut ws.k[..m * kv_dim], &mut ws.v[..m * kv_dim]);
        let list =
            &mut [product(&block.wq.w, q)?, product(&block.wk.w, k)?, product(&block.wv.w, v)?];
        products(cpu, &mut ws.matmul, &ws.h[..m * dim], m, self.exact, list)?;
        let (q, k, v) = (&mut ws.q[..m * q_dim], &mut ws.k[..m * kv_dim], &mut ws.v[..m * kv_dim]);
        self.add_bias(&block.wq, q);
        self.add_bias(&block.wk, k);
        self.add_bias(&block.wv, v);
        let pairing = match config.rope.pairing {
            RopePairing::Half => Pairing::Half,
            RopePairing::Interleaved => Pairing::Interleaved,
        };
        let angles = Angles { cos: &ws.cos, sin: &ws.sin, half: ws.cos.len() / m.max(1) };
        rope(cpu, q, q_dim, head_dim, angles, pairing);
        rope(cpu, k, kv_dim, head_dim, angles, pairing);
        let mut row = 0;
        for s in segments.iter_mut() {
            let t = s.tokens.len();
            let first_pos = s.cache.len();
            let kv = &mut s.cache.layers[layer];
            for i in 0..t {
                let at = (row + i) * kv_dim..(row + i + 1) * kv_dim;
                kv.append(cpu.isa, first_pos + i, &k[at.clone()], &v[at]);
            }
            let args = AttentionArgs {
                kv,
                n_heads: config.n_heads,
                scale: 1.0 / (head_dim as f32).sqrt(),
                window: config.sliding_window,
                first_pos,
            };
            let at = row * q_dim..(row + t) * q_dim;
            attention(cpu, &args, &mut ws.att[at.clone()], &q[at], &mut ws.attention);
            row += t;
        }
        Ok(())
    }

    /// Moves the rows that get logits to the front: after the last block's attention nothing
    /// else is needed. Returns how many they are.
    fn keep_wanted(&self, ws: &mut Workspace, m: usize) -> usize {
        if ws.wanted.len() < m {
            let (dim, q_dim) = (self.config.dim, self.config.n_heads * self.config.head_dim);
            for (to, &from) in ws.wanted.iter().enumerate() {
                ws.x.copy_within(from * dim..(from + 1) * dim, to * dim);
                ws.att.copy_within(from * q_dim..(from + 1) * q_dim, to * q_dim);
            }
        }
        ws.wanted.len()
    }

    /// Output projection and feed-forward of one block, both added to `ws.x`.
    fn after_attention(&self, ws: &mut Workspace, layer: usize, m: usize) -> Result<()> {
        let (config, cpu) = (&self.config, &self.cpu);
        let block = &self.weights.blocks[layer];
        let (dim, hidden) = (config.dim, config.hidden_dim);
        let q_dim = config.n_heads * config.head_dim;
        let (x, h) = (&mut ws.x[..m * dim], &mut ws.h[..m * dim]);
        let (gate, up) = (&mut ws.gate[..m * hidden], &mut ws.up[..m * hidden]);

        let list = &mut [product(&block.wo.w, h)?];
        products(cpu, &mut ws.matmul, &ws.att[..m * q_dim], m, self.exact, list)?;
        self.add_bias(&block.wo, h);
        add_acc(cpu, x, h, dim);

        rms_norm(cpu, h, x, &block.ffn_norm, config.norm_eps);
        let list = &mut [product(&block.w1.w, gate)?, product(&block.w3.w, up)?];
        products(cpu, &mut ws.matmul, h, m, self.exact, list)?;
        self.add_bias(&block.w1, gate);
        self.add_bias(&block.w3, up);
        let act = &mut ws.act[..m * hidden];
        swiglu(cpu, act, gate, up, hidden);
        let list = &mut [product(&block.w2.w, h)?];
        products(cpu, &mut ws.matmul, act, m, self.exact, list)?;
        self.add_bias(&block.w2, h);
        add_acc(cpu, x, h, dim);
        Ok(())
    }

    fn add_bias(&self, linear: &Linear, rows: &mut [f32]) {
        if let Some(bias) = &linear.bias {
            add_bias_acc(&self.cpu, rows, bias);
        }
    }

    /// Final norm and logits of the rows that want them.
    fn head(&self, ws: &mut Workspace) -> Result<()> {
        let (config, m) = (&self.config, ws.wanted.len());
        let (dim, vocab) = (config.dim, config.vocab_size);
        if ws.logits.len() < m * vocab {
            ws.logits.resize(m * vocab, 0.0);
        }
        if m == 0 {
            return Ok(());
        }
        let (x, h) = (&ws.x[..m * dim], &mut ws.h[..m * dim]);
        rms_norm(&self.cpu, h, x, &self.weights.out_norm, config.norm_eps);
        let list = &mut [product(&self.weights.lm_head, &mut ws.logits[..m * vocab])?];
        products(&self.cpu, &mut ws.matmul, h, m, self.exact, list)
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
