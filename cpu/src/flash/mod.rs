//! Causal attention for training: forward, and a backward that keeps no probabilities.
//!
//! ```text
//! s[i, j] = scale q[i, h] . k[j, h / group]         over the keys j that i sees
//! lse[i]  = ln(sum over j of exp(s[i, j]))
//! out[i]  = sum over j of p[i, j] v[j],             p[i, j] = exp(s[i, j] - lse[i])
//!
//! d[i]    = dout[i] . out[i]
//! ds[i,j] = p[i, j] (dout[i] . v[j] - d[i])
//! dq[i]   = scale sum over j of ds[i, j] k[j]
//! dk[j]   = scale sum over i, h of ds[i, j] q[i]
//! dv[j]   = sum over i, h of p[i, j] dout[i]
//! ```
//!
//! Queries, keys and values are row-major blocks of packed sequences ("spans"), unlike those of
//! `attention`, which serves a cache. The heads that share a KV head are rows of one block of
//! queries (`ROWS`), which meets the keys in tiles (`KEYS`); the five products are register tiles
//! of one kernel (`tile`). Everything is computed in f32; bf16 is widened into a member's tiles.
//!
//! Work is cut by the length of a span alone (`plan`): a span has the same bits whatever it is
//! packed with and however many members the team has. Backward, the queries of a span and KV head
//! are cut into parts of equal work, at most `plan::MAX_PARTS`; each part owns its dq and sums
//! its share of dk and dv in memory of its own, and the shares are added in the order of the parts.
//!
//! Source: Dao 2023 (arXiv 2307.08691), algorithms 1 and 2.

mod backward;
mod forward;
mod plan;
mod rows;
mod tile;

pub use backward::backward;
pub use forward::forward;

use crate::buffer::Buffer;
use plan::{Item, Plan};

/// Rows (positions times the heads of a group) of a block of queries, about.
const ROWS: usize = 192;
/// Keys in a tile, counted from the start of their span.
const KEYS: usize = 64;
/// Rows that tiles are rounded up to: the most that a register tile has.
const ROW_STEP: usize = 8;
/// Multiply-adds below which waking the team costs more than it gains.
const SMALL: usize = 100_000;

/// What attention takes besides its numbers.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Query heads: a multiple of the KV heads. Head h reads KV head `h / (n_heads / n_kv_heads)`.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Key j is visible to the query at p when `p - window < j <= p`; `None` shows all `j <= p`
    /// of the same span.
    pub window: Option<usize>,
    /// Lengths of the sequences packed one after the other; their sum is t.
    pub spans: &'a [usize],
}

/// Memory that attention works in; grown when a call needs more than any before it, linear in t.
#[derive(Default)]
pub struct Scratch {
    members: Vec<Buffer<f32>>,
    /// Shares of dk and dv.
    sums: Option<Buffer<f32>>,
    items: Vec<Item>,
    order: Vec<usize>,
}

impl Scratch {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Size of everything held, in bytes.
    pub fn bytes(&self) -> usize {
        let floats =
            self.members.iter().chain(&self.sums).map(|buffer| buffer.len()).sum::<usize>();
        floats * size_of::<f32>()
            + self.items.capacity() * size_of::<Item>()
            + self.order.capacity() * size_of::<usize>()
    }

    /// Room for `n` numbers for each of `members`.
    fn grow(&mut self, members: usize, n: usize) {
        for memory in self.members.iter_mut().take(members) {
            if memory.len() < n {
                *memory = Buffer::zeroed(n);
            }
        }
        while self.members.len() < members {
            self.members.push(Buffer::zeroed(n));
        }
    }
}

/// The first `n` elements of `memory`, which keeps the rest.
fn take<'a>(memory: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (first, rest) = std::mem::take(memory).split_at_mut(n);
    *memory = rest;
    first
}

/// How many members work on a call.
fn members(plan: &Plan<'_>, products: usize, team_len: usize) -> usize {
    if plan.multiply_adds(products) < SMALL { 1 } else { team_len }
}

#[cfg(test)]
mod tests;
