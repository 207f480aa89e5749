//! The forward pass: one member's items, block by block.

use super::plan::{Item, Plan, deal};
use super::rows::{Factor, Load, Place, SharedFloats, Store};
use super::tile::{Band, Scores, Soften, Sums, Transpose};
use super::{KEYS, ROW_STEP, Scratch, Shape, members, take};
use crate::floats::{Floats, FloatsMut};
use crate::isa::Isa;
use crate::simd::{self, Kernel, Vector};
use crate::team::{SharedMut, Team};

/// Causal attention inside each span; spans do not see each other.
///
/// `out` and `q` are `[t, n_heads * head_dim]`, `k` and `v` `[t, n_kv_heads * head_dim]`, each f32
/// or bf16, queries and keys after RoPE; `lse` is `[n_heads, t]`: the logarithm of the sum of the
/// exponentials of a row's scaled scores, which `backward` takes. Accumulates in f32; overwrites.
/// The same bits for any team, and for a span whatever it is packed with. Error: a multiple of
/// `head_dim + keys` epsilons of the sums of absolute terms (`tests`).
///
/// # Panics
/// When lengths do not fit, heads do not divide, or the window is 0.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    isa: Isa,
    team: &Team,
    shape: &Shape<'_>,
    out: FloatsMut<'_>,
    lse: &mut [f32],
    q: Floats<'_>,
    k: Floats<'_>,
    v: Floats<'_>,
    scratch: &mut Scratch,
) {
    let plan = Plan::new(shape);
    plan.check("out", out.len(), shape.n_heads);
    plan.check("q", q.len(), shape.n_heads);
    plan.check("k", k.len(), shape.n_kv_heads);
    plan.check("v", v.len(), shape.n_kv_heads);
    assert_eq!(lse.len(), plan.t * shape.n_heads, "attention: length of lse");

    let members = members(&plan, 2, team.len());
    scratch.grow(members, memory(&plan));
    plan.block_items(&mut scratch.items);
    deal(&mut scratch.items, &mut scratch.order, members);

    let (out, lse) = (SharedFloats::new(out), SharedMut::new(lse));
    let memory = SharedMut::new(&mut scratch.members);
    let items = &scratch.items;
    let job = |member: usize| {
        // SAFETY: each member takes its own element.
        let memory = &mut unsafe { memory.slice(member..member + 1) }[0];
        let (plan, out, lse) = (&plan, &out, &lse);
        simd::run(isa, Share { plan, out, lse, q, k, v, items, member, memory });
    };
    if members == 1 { job(0) } else { team.run(&job) }
}

/// Elements of a member's tiles.
fn memory(plan: &Plan<'_>) -> usize {
    let (rows, width) = (plan.rows(), plan.width);
    rows * (2 * width + KEYS) + 3 * KEYS * width + 3 * rows
}

/// One member's part of a call. Its items are its own: no other member has their rows.
struct Share<'a> {
    plan: &'a Plan<'a>,
    out: &'a SharedFloats<'a>,
    lse: &'a SharedMut<'a, f32>,
    q: Floats<'a>,
    k: Floats<'a>,
    v: Floats<'a>,
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
    o: &'a mut [f32],
    /// `[rows, KEYS]`.
    s: &'a mut [f32],
    /// `[KEYS, width]`.
    k: &'a mut [f32],
    /// `[KEYS, width]`.
    v: &'a mut [f32],
    /// `[width, KEYS]`.
    kt: &'a mut [f32],
    m: &'a mut [f32],
    l: &'a mut [f32],
    /// `1 / l`.
    factors: &'a mut [f32],
}

impl Kernel for Share<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let (rows, width) = (self.plan.rows(), self.plan.width);
        let memory = &mut std::mem::take(&mut self.memory);
        let mut tiles = Tiles {
            q: take(memory, rows * width),
            o: take(memory, rows * width),
            k: take(memory, KEYS * width),
            v: take(memory, KEYS * width),
            kt: take(memory, KEYS * width),
            s: take(memory, rows * KEYS),
            m: take(memory, rows),
            l: take(memory, rows),
            factors: take(memory, rows),
        };
        for item in self.items.iter().filter(|item| item.member == self.member) {
            self.item::<V>(item, &mut tiles);
        }
    }
}

impl Share<'_> {
    #[inline(always)]
    fn item<V: Vector>(&self, item: &Item, tiles: &mut Tiles<'_>) {
        let plan = self.plan;
        let (width, scale) = (plan.width, plan.shape.scale);
        let place = plan.q_place(item, &item.pos);
        let n_rows = place.n_pos * plan.group;
        V::enter(Load { tile: tiles.q, width, from: self.q, place, factor: scale });
        tiles.o[..n_rows.next_multiple_of(ROW_STEP) * width].fill(0.0);
        tiles.m.fill(f32::NEG_INFINITY);
        tiles.l.fill(0.0);
        for first_key in plan.tiles(&item.pos) {
            let n_keys = (item.pos.end - first_key).min(KEYS);
            let keys = plan.kv_place(item, first_key, n_keys);
            V::enter(Load { tile: tiles.k, width, from: self.k, place: keys, factor: 1.0 });
            V::enter(Load { tile: tiles.v, width, from: self.v, place: keys, factor: 1.0 });
            V::enter(Transpose { to: tiles.kt, from: tiles.k, width, n_keys });
            let band = Band {
                first_pos: item.pos.start,
                group: plan.group,
                n_rows,
                first_key,
                n_keys,
                window: plan.window,
            };
            let depth = plan.shape.head_dim;
            Scores { s: tiles.s, a: tiles.q, b: tiles.kt, width, depth, band }.enter::<V>();
            V::enter(Soften { s: tiles.s, o: tiles.o, width, m: tiles.m, l: tiles.l, band });
            Sums { c: tiles.o, p: tiles.s, b: tiles.v, width, band }.enter::<V>();
        }
        self.finish::<V>(item, place, tiles);
    }

    #[inline(always)]
    fn finish<V: Vector>(&self, item: &Item, place: Place, tiles: &mut Tiles<'_>) {
        let plan = self.plan;
        for (factor, l) in tiles.factors.iter_mut().zip(&*tiles.l) {
            *factor = 1.0 / l;
        }
        // SAFETY: the rows are this member's, see `Share`.
        let store = unsafe {
            Store::new(self.out, place, tiles.o, plan.width, Factor::Each(tiles.factors))
        };
        V::enter(store);
        for head in 0..plan.group {
            // SAFETY: these rows of this head are this member's, see `Share`.
            let lse = unsafe { self.lse.slice(plan.lse_rows(item, head, &item.pos)) };
            for (pos, lse) in lse.iter_mut().enumerate() {
                let row = pos * plan.group + head;
                *lse = tiles.m[row] + tiles.l[row].ln();
            }
        }
    }
}
