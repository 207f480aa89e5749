//! The backward pass: one member's items, then the sums of their shares.

use super::plan::{Item, Plan, deal};
use super::rows::{Dots, Factor, Load, SharedFloats, Store};
use super::tile::{Band, Scores, Slopes, Sums, Transpose};
use super::{KEYS, ROW_STEP, Scratch, Shape, members, take};
use crate::buffer::Buffer;
use crate::floats::{Floats, FloatsMut};
use crate::isa::Isa;
use crate::simd::{self, Elem, Kernel, Vector, put};
use crate::team::{SharedMut, Team, part};
use half::bf16;
use std::ops::Range;

/// Gradients of [`forward`](super::forward): `dq`, `dk` and `dv` from `dout`, laid out as q, k, v
/// and out there, each f32 or bf16; `out` and `lse` as `forward` gave them. Overwrites.
///
/// Probabilities are computed again from q, k and `lse`, tile by tile, in f32. The same bits for
/// any team, and for a span whatever it is packed with.
///
/// # Panics
/// When lengths do not fit, heads do not divide, or the window is 0.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    isa: Isa,
    team: &Team,
    shape: &Shape<'_>,
    dq: FloatsMut<'_>,
    dk: FloatsMut<'_>,
    dv: FloatsMut<'_>,
    dout: Floats<'_>,
    q: Floats<'_>,
    k: Floats<'_>,
    v: Floats<'_>,
    out: Floats<'_>,
    lse: &[f32],
    scratch: &mut Scratch,
) {
    let plan = Plan::new(shape);
    for (name, len) in [("dq", dq.len()), ("dout", dout.len()), ("q", q.len()), ("out", out.len())]
    {
        plan.check(name, len, shape.n_heads);
    }
    for (name, len) in [("dk", dk.len()), ("dv", dv.len()), ("k", k.len()), ("v", v.len())] {
        plan.check(name, len, shape.n_kv_heads);
    }
    assert_eq!(lse.len(), plan.t * shape.n_heads, "attention: length of lse");

    let members = members(&plan, 5, team.len());
    scratch.grow(members, memory(&plan));
    let n_sums = plan.part_items(&mut scratch.items);
    deal(&mut scratch.items, &mut scratch.order, members);
    if scratch.sums.as_ref().is_none_or(|sums| sums.len() < n_sums) {
        scratch.sums = Some(Buffer::zeroed(n_sums));
    }
    let Some(sums) = &mut scratch.sums else { return };

    let (dq, dk, dv) = (SharedFloats::new(dq), SharedFloats::new(dk), SharedFloats::new(dv));
    let memory = SharedMut::new(&mut scratch.members);
    let shared = SharedMut::new(sums);
    let items = &scratch.items[..];
    let job = |member: usize| {
        // SAFETY: each member takes its own element.
        let memory = &mut unsafe { memory.slice(member..member + 1) }[0];
        let (plan, dq, sums) = (&plan, &dq, &shared);
        let share = Share { plan, dq, sums, dout, q, k, v, out, lse, items, member, memory };
        simd::run(isa, share);
    };
    run(team, members, &job);

    let sums = &sums[..];
    let job = |member: usize| {
        let rows = part(plan.t, 1, member, members);
        for (to, is_dv) in [(&dk, false), (&dv, true)] {
            simd::run(isa, Gather { plan: &plan, items, sums, to, is_dv, rows: rows.clone() });
        }
    };
    run(team, members, &job);
}

fn run(team: &Team, members: usize, job: &(dyn Fn(usize) + Sync)) {
    if members == 1 { job(0) } else { team.run(job) }
}

/// Elements of a member's tiles.
fn memory(plan: &Plan<'_>) -> usize {
    let (rows, width) = (plan.rows(), plan.width);
    rows * (3 * width + 2 * KEYS) + 4 * KEYS * width + 2 * rows
}

/// One member's part of a call. Its items are its own: no other member has their rows of dq or
/// their shares.
struct Share<'a> {
    plan: &'a Plan<'a>,
    dq: &'a SharedFloats<'a>,
    sums: &'a SharedMut<'a, f32>,
    dout: Floats<'a>,
    q: Floats<'a>,
    k: Floats<'a>,
    v: Floats<'a>,
    out: Floats<'a>,
    lse: &'a [f32],
    items: &'a [Item],
    member: usize,
    /// `memory(plan)` elements, at least.
    memory: &'a mut [f32],
}

/// The tiles of a member.
struct Tiles<'a> {
    /// `[rows, width]`: scaled queries.
    q: &'a mut [f32],
    /// `[rows, width]`.
    dout: &'a mut [f32],
    /// `[rows, width]`.
    dq: &'a mut [f32],
    /// `[rows, KEYS]`: scores, probabilities.
    s: &'a mut [f32],
    /// `[rows, KEYS]`: slopes of the probabilities, of the scores.
    ds: &'a mut [f32],
    /// `[KEYS, width]`.
    k: &'a mut [f32],
    /// `[KEYS, width]`.
    v: &'a mut [f32],
    /// `[width, KEYS]`.
    kt: &'a mut [f32],
    /// `[width, KEYS]`.
    vt: &'a mut [f32],
    lse: &'a mut [f32],
    d: &'a mut [f32],
}

impl Kernel for Share<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let (rows, width) = (self.plan.rows(), self.plan.width);
        let memory = &mut std::mem::take(&mut self.memory);
        let mut tiles = Tiles {
            q: take(memory, rows * width),
            dout: take(memory, rows * width),
            dq: take(memory, rows * width),
            s: take(memory, rows * KEYS),
            ds: take(memory, rows * KEYS),
            k: take(memory, KEYS * width),
            v: take(memory, KEYS * width),
            kt: take(memory, KEYS * width),
            vt: take(memory, KEYS * width),
            lse: take(memory, rows),
            d: take(memory, rows),
        };
        for item in self.items.iter().filter(|item| item.member == self.member) {
            let len = self.plan.share_len(item);
            // SAFETY: an item's shares are this member's, see `Share`.
            let sums = unsafe { self.sums.slice(item.sums..item.sums + 2 * len) };
            sums.fill(0.0);
            let (dk, dv) = sums.split_at_mut(len);
            for pos in self.plan.blocks(&item.pos) {
                self.block::<V>(item, pos, dk, dv, &mut tiles);
            }
        }
    }
}

impl Share<'_> {
    /// The queries at `pos`: their dq, and their part of the item's shares.
    #[inline(always)]
    fn block<V: Vector>(
        &self,
        item: &Item,
        pos: Range<usize>,
        dk: &mut [f32],
        dv: &mut [f32],
        tiles: &mut Tiles<'_>,
    ) {
        let plan = self.plan;
        let (width, scale, group) = (plan.width, plan.shape.scale, plan.group);
        let place = plan.q_place(item, &pos);
        let n_rows = place.n_pos * group;
        V::enter(Load { tile: tiles.q, width, from: self.q, place, factor: scale });
        V::enter(Load { tile: tiles.dout, width, from: self.dout, place, factor: 1.0 });
        // Until its sums begin, dq's tile holds the rows of out.
        V::enter(Load { tile: tiles.dq, width, from: self.out, place, factor: 1.0 });
        V::enter(Dots { out: &mut tiles.d[..n_rows], a: tiles.dout, b: tiles.dq, width });
        tiles.dq[..n_rows.next_multiple_of(ROW_STEP) * width].fill(0.0);
        for head in 0..group {
            for (i, lse) in self.lse[plan.lse_rows(item, head, &pos)].iter().enumerate() {
                tiles.lse[i * group + head] = *lse;
            }
        }
        let first_share = plan.share_keys(item).start;
        for first_key in plan.tiles(&pos) {
            let n_keys = (pos.end - first_key).min(KEYS);
            let keys = plan.kv_place(item, first_key, n_keys);
            V::enter(Load { tile: tiles.k, width, from: self.k, place: keys, factor: 1.0 });
            V::enter(Load { tile: tiles.v, width, from: self.v, place: keys, factor: 1.0 });
            V::enter(Transpose { to: tiles.kt, from: tiles.k, width, n_keys });
            V::enter(Transpose { to: tiles.vt, from: tiles.v, width, n_keys });
            let window = plan.window;
            let band = Band { first_pos: pos.start, group, n_rows, first_key, n_keys, window };
            let depth = plan.shape.head_dim;
            Scores { s: tiles.s, a: tiles.q, b: tiles.kt, width, depth, band }.enter::<V>();
            Scores { s: tiles.ds, a: tiles.dout, b: tiles.vt, width, depth, band }.enter::<V>();
            V::enter(Slopes { s: tiles.s, dp: tiles.ds, lse: tiles.lse, d: tiles.d, band });
            let share = (first_key - first_share) * width;
            // Queries are scaled already, keys are not.
            Sums { c: &mut dv[share..], p: tiles.s, b: tiles.dout, width, band }
                .enter_turned::<V>();
            Sums { c: &mut dk[share..], p: tiles.ds, b: tiles.q, width, band }.enter_turned::<V>();
            Sums { c: tiles.dq, p: tiles.ds, b: tiles.k, width, band }.enter::<V>();
        }
        // SAFETY: the rows are this member's, see `Share`.
        let store = unsafe { Store::new(self.dq, place, tiles.dq, width, Factor::One(scale)) };
        V::enter(store);
    }
}

/// `to[row] = sum of the shares that have the row`, in the order of the parts, for the packed
/// block's rows `rows`, which no other thread uses.
struct Gather<'a> {
    plan: &'a Plan<'a>,
    items: &'a [Item],
    sums: &'a [f32],
    to: &'a SharedFloats<'a>,
    /// Whether the shares are those of dv; else of dk.
    is_dv: bool,
    rows: Range<usize>,
}

impl Kernel for Gather<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        match self.to {
            SharedFloats::F32(to) => self.rows::<V, f32>(to),
            SharedFloats::Bf16(to) => self.rows::<V, bf16>(to),
        }
    }
}

impl Gather<'_> {
    #[inline(always)]
    fn rows<V: Vector, N: Elem>(&self, to: &SharedMut<'_, N>) {
        let same_keys = |a: &Item, b: &Item| (a.span, a.head) == (b.span, b.head);
        for parts in self.items.chunk_by(same_keys) {
            let first = &parts[0];
            let within = |row: usize| row.clamp(first.span, first.span + first.len) - first.span;
            for key in within(self.rows.start)..within(self.rows.end) {
                let at = self.plan.kv_place(first, key, 1).heads(0);
                // SAFETY: the row is this thread's, see `Gather`; one head of it at a time.
                let to = unsafe { to.slice(at) };
                for (i, to) in to.chunks_mut(V::LANES).enumerate() {
                    let mut sum = V::splat(0.0);
                    for item in parts {
                        if let Some(row) = self.row(item, key) {
                            // SAFETY: the row holds the width, of which LANES is a divisor.
                            sum = sum.add(unsafe { V::load(row[i * V::LANES..].as_ptr()) });
                        }
                    }
                    put(to, sum);
                }
            }
        }
    }

    /// The row of `key` in the item's share, if it has one.
    #[inline(always)]
    fn row(&self, item: &Item, key: usize) -> Option<&[f32]> {
        let keys = self.plan.share_keys(item);
        if !keys.contains(&key) {
            return None;
        }
        let (width, len) = (self.plan.width, self.plan.share_len(item));
        let start = item.sums + if self.is_dv { len } else { 0 };
        Some(&self.sums[start + (key - keys.start) * width..][..width])
    }
}
