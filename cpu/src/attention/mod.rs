//! Causal attention over a KV cache: prompts, single tokens, grouped heads, sliding windows.
//!
//! ```text
//! out[i, h] = sum over visible j of softmax_j(scale q[i, h] . k[j, h / group]) v[j, h / group]
//! ```
//!
//! A row's positions are cut into chunks of `CHUNK` on a grid that starts at position 0. Each
//! chunk gives a maximum, a sum and a vector (`tile`); a row's chunks are merged from left to
//! right. The grid and the order within a chunk are the same for every number of rows, threads
//! and tokens at a time, so a row has the same bits whatever it is computed with.
//!
//! The work is cut by shape alone: into items of one KV head and up to `TILES` tiles of rows
//! (tokens times the heads that share the KV head), dealt to the members of the team in turns;
//! or, where those are too few for the team, into items of one chunk more, whose results the
//! calling thread merges.
//!
//! Sources: Milakov and Gimelshein 2018 (arXiv 1805.02867) for the running maximum; Dao et al. 2022
//! (arXiv 2205.14135) for the merging of chunks.

mod format;
mod kv;
mod share;
mod tile;

pub use kv::{KvLayer, KvShape, KvType};

use crate::buffer::Buffer;
use crate::isa::Isa;
use crate::simd;
use crate::team::{SharedMut, Team, part};
use format::{Format, Scaled, Unscaled};
use kv::Planes;
use share::{Finish, Plan, Share};

/// Positions in a chunk of the fixed grid.
const CHUNK: usize = 256;
/// Tiles of rows in an item: how often a chunk is used while it is in the cache.
const TILES: usize = 4;
/// Below this many items a member, items are also cut by chunks.
const ITEMS_PER_MEMBER: usize = 8;
/// Multiply-adds below which waking the team costs more than it gains (about 2 us of one core).
const SMALL: usize = 100_000;

/// What [`attention`] takes besides queries and team.
#[derive(Clone, Copy)]
pub struct AttentionArgs<'a> {
    /// Keys and values of positions `0..first_pos + t`, at least.
    pub kv: &'a KvLayer,
    /// Query heads: a multiple of the KV heads. Head h reads KV head `h / (n_heads / n_kv_heads)`.
    pub n_heads: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Key j is visible to the query at p when `p - window < j <= p`; `None` shows all `j <= p`.
    pub window: Option<usize>,
    /// Position of the first query row.
    pub first_pos: usize,
}

/// Memory that [`attention`] works in. A call makes room for every later call of no more rows over
/// a cache of no more positions, wherever it stands: a sequence that grows needs nothing new. What
/// is not written takes no memory.
#[derive(Default)]
pub struct AttentionScratch {
    members: Vec<Vec<f32>>,
    partials: Buffer<f32>,
}

impl AttentionScratch {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes held, written or not.
    pub fn bytes(&self) -> usize {
        let members: usize = self.members.iter().map(Vec::capacity).sum();
        4 * (members + self.partials.len())
    }

    /// Bytes held at most after calls of up to `tokens` query rows by a team of `members`.
    pub fn most_bytes(isa: Isa, args: &ScratchArgs, tokens: usize, members: usize) -> usize {
        let plan = Plan::of(isa, args, 1.0, 0, tokens);
        let partials = plan.most_partials(args.capacity, members);
        (members * plan.memory()).saturating_add(partials).saturating_mul(4)
    }
}

/// What the size of [`AttentionScratch`] depends on.
#[derive(Clone, Copy, Debug)]
pub struct ScratchArgs {
    /// Keys and values.
    pub shape: KvShape,
    /// Positions of the cache.
    pub capacity: usize,
    /// Query heads.
    pub n_heads: usize,
    /// As in [`AttentionArgs`].
    pub window: Option<usize>,
}

/// Causal attention of `t` query rows at positions `first_pos..first_pos + t`.
///
/// `out` and `q` are `[t, n_heads, head_dim]`, f32, queries after RoPE; keys and values as the
/// cache holds them, accumulated in f32. Overwrites. The same bits for any team, and for any
/// split of the rows into calls. Error bound: `tests/attention_bits.rs`.
///
/// # Panics
/// When lengths do not fit, heads do not divide, the window is 0, or a position is beyond the
/// cache's capacity.
pub fn attention(
    isa: Isa,
    team: &Team,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
    q: &[f32],
    scratch: &mut AttentionScratch,
) {
    let shape = args.kv.shape();
    let (dims, width) = (shape.head_dim, shape.width());
    match &args.kv.planes {
        Planes::F16(pair) => {
            compute(isa, team, args, Unscaled::new(pair, dims, width), out, q, scratch)
        }
        Planes::Bf16(pair) => {
            compute(isa, team, args, Unscaled::new(pair, dims, width), out, q, scratch)
        }
        Planes::F32(pair) => {
            compute(isa, team, args, Unscaled::new(pair, dims, width), out, q, scratch)
        }
        Planes::Q8 { codes, scales } => {
            compute(isa, team, args, Scaled::new(codes, scales, dims, width), out, q, scratch)
        }
    }
}

fn compute<F: Format>(
    isa: Isa,
    team: &Team,
    args: &AttentionArgs<'_>,
    kv: F,
    out: &mut [f32],
    q: &[f32],
    scratch: &mut AttentionScratch,
) {
    assert_eq!(out.len(), q.len(), "attention: out and q differ in length");
    if q.is_empty() {
        return;
    }
    let plan = Plan::new(isa, args, q.len());
    let members = if plan.multiply_adds() < SMALL { 1 } else { team.len() };
    let chunks = plan.chunks();
    let split = members > 1 && chunks.len() > 1 && plan.n_items() < ITEMS_PER_MEMBER * members;

    // Sized by the whole team and cache, though this call may need less: the next may need more.
    if scratch.members.len() < team.len() {
        scratch.members.resize_with(team.len(), Vec::new);
    }
    for memory in &mut scratch.members[..team.len()] {
        if memory.len() < plan.memory() {
            memory.resize(plan.memory(), 0.0);
        }
    }
    let partials = plan.most_partials(args.kv.capacity(), team.len());
    if scratch.partials.len() < partials {
        scratch.partials = Buffer::zeroed(partials);
    }
    debug_assert!(!split || plan.n_records() * plan.record() <= scratch.partials.len());

    let out = SharedMut::new(out);
    let memory = SharedMut::new(&mut scratch.members);
    let partials = SharedMut::new(&mut scratch.partials);
    let job = |member: usize| {
        // SAFETY: each member takes its own element.
        let memory = &mut unsafe { memory.slice(member..member + 1) }[0];
        let partials = if split { Some(&partials) } else { None };
        let range = part(plan.n_items() * chunks.len(), 1, member, members);
        let turn = (member, members);
        simd::run(isa, Share { plan: &plan, kv, q, out: &out, memory, partials, range, turn });
    };
    if members == 1 {
        job(0)
    } else {
        team.run(&job)
    }
    if split {
        simd::run(isa, Finish { plan: &plan, out: &out, partials: &mut scratch.partials });
    }
}
