//! The cut of a call into items of work, from its shapes alone, and which member computes which.

use super::rows::Place;
use super::{KEYS, ROW_STEP, ROWS, Shape};
use std::cmp::Reverse;
use std::ops::Range;

/// Parts that the queries of a span are cut into at most: bounds the memory for shares of dk and
/// dv to this many times their size.
pub(super) const MAX_PARTS: usize = 8;
/// Positions that make another part worth while.
const PART: usize = 128;
/// What a query costs besides its keys, in keys.
const EXTRA: usize = 32;

/// The shapes of one call, checked.
pub(super) struct Plan<'a> {
    pub(super) shape: Shape<'a>,
    /// Rows of the packed block.
    pub(super) t: usize,
    /// Query heads of a KV head.
    pub(super) group: usize,
    /// Elements of a tile's row: the head rounded up to whole vectors of every level.
    pub(super) width: usize,
    pub(super) window: usize,
    /// Positions of a block of queries at most.
    block: usize,
}

/// Some queries of one span and KV head.
pub(super) struct Item {
    /// Where the span starts in the packed block.
    pub(super) span: usize,
    /// Length of the span.
    pub(super) len: usize,
    /// KV head.
    pub(super) head: usize,
    /// Positions in the span; never empty.
    pub(super) pos: Range<usize>,
    /// Where its shares of dk and dv start; backward only.
    pub(super) sums: usize,
    pub(super) member: usize,
    cost: usize,
}

impl<'a> Plan<'a> {
    /// # Panics
    /// When a size is 0, heads do not divide, or the sum of the spans overflows.
    pub(super) fn new(shape: &Shape<'a>) -> Self {
        let &Shape { n_heads, n_kv_heads, head_dim, spans, .. } = shape;
        assert!(
            n_kv_heads > 0 && n_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
            "attention: {n_heads} heads over {n_kv_heads} KV heads"
        );
        assert!(head_dim > 0, "attention: heads of width 0");
        let window = shape.window.unwrap_or(usize::MAX);
        assert!(window > 0, "attention: a window of 0 positions");
        let group = n_heads / n_kv_heads;
        Plan {
            shape: *shape,
            t: spans.iter().sum(),
            group,
            width: head_dim.next_multiple_of(16),
            window,
            block: (ROWS / group).max(1),
        }
    }

    /// Panics unless `len` is the size of t rows of `heads` heads.
    pub(super) fn check(&self, name: &str, len: usize, heads: usize) {
        let (t, dim) = (self.t, heads * self.shape.head_dim);
        assert_eq!(len, t * dim, "attention: {name} is not [{t}, {dim}]");
    }

    /// Rows of a block's tiles, at most.
    pub(super) fn rows(&self) -> usize {
        (self.block * self.group).next_multiple_of(ROW_STEP)
    }

    /// Multiply-adds of a call with this many products.
    pub(super) fn multiply_adds(&self, products: usize) -> usize {
        let keys: usize = self.shape.spans.iter().map(|&n| self.cost(0..n)).sum();
        products * self.shape.n_heads * self.shape.head_dim * keys
    }

    /// Keys that the queries at these positions see, and `EXTRA` for each.
    fn cost(&self, pos: Range<usize>) -> usize {
        pos.map(|p| (p + 1).min(self.window) + EXTRA).sum()
    }

    /// First key that the query at `pos` sees.
    pub(super) fn first_key(&self, pos: usize) -> usize {
        (pos + 1).saturating_sub(self.window)
    }

    /// The tiles of keys that queries at these positions see, by their first key.
    pub(super) fn tiles(&self, pos: &Range<usize>) -> impl Iterator<Item = usize> + use<> {
        (self.first_key(pos.start) / KEYS * KEYS..pos.end).step_by(KEYS)
    }

    /// Rows of q, out and their gradients for an item's queries at `pos`.
    pub(super) fn q_place(&self, item: &Item, pos: &Range<usize>) -> Place {
        let Shape { n_heads, head_dim, .. } = self.shape;
        Place {
            first: ((item.span + pos.start) * n_heads + item.head * self.group) * head_dim,
            step: n_heads * head_dim,
            group: self.group,
            n_pos: pos.len(),
            head_dim,
        }
    }

    /// Rows of k, v and their gradients for `n` keys of an item from `first` on.
    pub(super) fn kv_place(&self, item: &Item, first: usize, n: usize) -> Place {
        let Shape { n_kv_heads, head_dim, .. } = self.shape;
        Place {
            first: ((item.span + first) * n_kv_heads + item.head) * head_dim,
            step: n_kv_heads * head_dim,
            group: 1,
            n_pos: n,
            head_dim,
        }
    }

    /// Elements of lse for the queries at `pos` of a head of the item's group.
    pub(super) fn lse_rows(&self, item: &Item, head: usize, pos: &Range<usize>) -> Range<usize> {
        let span = (item.head * self.group + head) * self.t + item.span;
        span + pos.start..span + pos.end
    }

    /// The blocks of `pos`, of about one size.
    pub(super) fn blocks(&self, pos: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (start, end) = (pos.start, pos.end);
        let n = (end - start).div_ceil(self.block).max(1);
        let size = (end - start).div_ceil(n).max(1);
        (start..end).step_by(size).map(move |from| from..(from + size).min(end))
    }

    /// Where each span starts, and its length; empty ones left out.
    fn spans(&self) -> impl Iterator<Item = (usize, usize)> {
        let starts = self.shape.spans.iter().scan(0, |next, &len| {
            let start = *next;
            *next += len;
            Some((start, len))
        });
        starts.filter(|&(_, len)| len > 0)
    }

    /// One item for each block of queries of each KV head.
    pub(super) fn block_items(&self, items: &mut Vec<Item>) {
        items.clear();
        for (span, len) in self.spans() {
            for pos in self.blocks(&(0..len)) {
                let cost = self.cost(pos.clone());
                for head in 0..self.shape.n_kv_heads {
                    items.push(Item {
                        span,
                        len,
                        head,
                        pos: pos.clone(),
                        sums: 0,
                        member: 0,
                        cost,
                    });
                }
            }
        }
    }

    /// One item for each part of the queries of each KV head: those of one span and head side by
    /// side, in order. Returns the elements that all shares of dk and dv take.
    pub(super) fn part_items(&self, items: &mut Vec<Item>) -> usize {
        items.clear();
        let mut sums = 0;
        for (span, len) in self.spans() {
            let parts = len.div_ceil(PART).min(MAX_PARTS);
            let total = self.cost(0..len);
            for head in 0..self.shape.n_kv_heads {
                let (mut start, mut cost, mut done, mut n) = (0, 0, 0, 0);
                for end in 1..=len {
                    cost += self.cost(end - 1..end);
                    let full = (done + cost) * parts >= total * (n + 1);
                    if end == len || (full && end.is_multiple_of(ROW_STEP)) {
                        let item = Item { span, len, head, pos: start..end, sums, member: 0, cost };
                        sums += 2 * self.share_len(&item);
                        items.push(item);
                        (start, done, n, cost) = (end, done + cost, n + 1, 0);
                    }
                }
            }
        }
        sums
    }

    /// Keys that an item has shares of dk and dv for: from a tile's first on, rounded up.
    pub(super) fn share_keys(&self, item: &Item) -> Range<usize> {
        let first = self.first_key(item.pos.start) / KEYS * KEYS;
        first..first + (item.pos.end - first).next_multiple_of(ROW_STEP)
    }

    /// Elements of an item's share of dk, and of its share of dv behind it.
    pub(super) fn share_len(&self, item: &Item) -> usize {
        self.share_keys(item).len() * self.width
    }
}

/// Gives every item to a member: the costliest first, each to the member with the least so far.
/// Leaves the order of the items as it is.
pub(super) fn deal(items: &mut [Item], order: &mut Vec<usize>, members: usize) {
    order.clear();
    order.extend(0..items.len());
    order.sort_by_key(|&i| Reverse(items[i].cost));
    let mut loads = vec![0; members];
    for &i in order.iter() {
        let member = (0..members).min_by_key(|&m| loads[m]).unwrap_or(0);
        items[i].member = member;
        loads[member] += items[i].cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(spans: &[usize]) -> Shape<'_> {
        Shape { n_heads: 9, n_kv_heads: 3, head_dim: 64, scale: 1.0, window: None, spans }
    }

    #[test]
    fn items_cover_every_query_once_and_members_get_equal_work() {
        for (spans, window) in [(vec![512], None), (vec![1, 0, 700, 33], Some(50)), (vec![], None)]
        {
            let plan = Plan::new(&Shape { window, ..shape(&spans) });
            let (mut items, mut order) = (vec![], vec![]);
            for parts in [false, true] {
                if parts {
                    plan.part_items(&mut items);
                } else {
                    plan.block_items(&mut items);
                }
                deal(&mut items, &mut order, 2);
                let mut seen = vec![0; 3 * plan.t];
                for item in &items {
                    assert!(item.pos.end <= item.len);
                    for block in plan.blocks(&item.pos) {
                        assert!(block.len() * plan.group <= plan.rows());
                        for pos in block {
                            seen[item.head * plan.t + item.span + pos] += 1;
                        }
                    }
                }
                assert!(seen.iter().all(|&n| n == 1), "{spans:?}, parts: {parts}");
                let load = |m| -> usize {
                    items.iter().filter(|item| item.member == m).map(|item| item.cost).sum()
                };
                let (a, b) = (load(0), load(1));
                assert!(a.abs_diff(b) * 20 <= a + b, "{spans:?}: {a} and {b}");
            }
        }
    }

    #[test]
    fn shares_take_memory_linear_in_the_length() {
        for len in [512, 4096, 32768] {
            let spans = [len];
            let plan = Plan::new(&shape(&spans));
            let sums = plan.part_items(&mut vec![]);
            assert!(sums <= 2 * 3 * 64 * MAX_PARTS * (len + KEYS), "{len}: {sums}");
        }
    }
}
