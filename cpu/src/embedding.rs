//! The gradient of a table's rows that were looked up.

use crate::floats::Floats;
use crate::isa::Isa;
use crate::simd::{self, Kernel, Source, Vector};
use crate::team::{SharedMut, Team};
use std::ops::Range;

/// Columns that a member of a team takes at least, and in multiples of: two cache lines.
const COLUMNS: usize = 32;

/// `dtable[ids[i]] += dout[i]` for each i in order; `dtable` is [rows, dim], `dout` is
/// [ids.len(), dim].
///
/// Adds in f32. Error: an epsilon an addition of the sum of absolute terms
/// (`tests/gradients_loss.rs`).
///
/// # Panics
/// When the lengths do not fit, or an id is not below the table's rows.
pub fn embedding_bwd_acc(isa: Isa, dtable: &mut [f32], dim: usize, ids: &[u32], dout: Floats<'_>) {
    check(dtable, dim, ids, dout);
    add_columns(isa, &SharedMut::new(dtable), dim, 0..dim, ids, dout);
}

/// [`embedding_bwd_acc`] with the columns shared among the team: the same bits for any team.
///
/// # Panics
/// As [`embedding_bwd_acc`].
pub fn embedding_bwd_acc_team(
    isa: Isa,
    team: &Team,
    dtable: &mut [f32],
    dim: usize,
    ids: &[u32],
    dout: Floats<'_>,
) {
    check(dtable, dim, ids, dout);
    let dtable = SharedMut::new(dtable);
    team.split(dim, COLUMNS, &|_, columns| add_columns(isa, &dtable, dim, columns, ids, dout));
}

fn check(dtable: &[f32], dim: usize, ids: &[u32], dout: Floats<'_>) {
    assert_eq!(
        ids.len().checked_mul(dim),
        Some(dout.len()),
        "embedding_bwd_acc: {} ids of width {dim}, {} elements",
        ids.len(),
        dout.len()
    );
    let n_rows = dtable.len().checked_div(dim).unwrap_or(0);
    for &id in ids {
        assert!((id as usize) < n_rows, "embedding_bwd_acc: id {id} of {n_rows} rows");
    }
}

/// Adds the columns of a range. `check` has passed, and no other call that overlaps in time has
/// any of these columns.
fn add_columns(
    isa: Isa,
    dtable: &SharedMut<'_, f32>,
    dim: usize,
    columns: Range<usize>,
    ids: &[u32],
    dout: Floats<'_>,
) {
    match dout {
        Floats::F32(dout) => simd::run(isa, AddRows { dtable, dim, columns, ids, dout }),
        Floats::Bf16(dout) => simd::run(isa, AddRows { dtable, dim, columns, ids, dout }),
    }
}

struct AddRows<'a, G> {
    dtable: &'a SharedMut<'a, f32>,
    dim: usize,
    columns: Range<usize>,
    ids: &'a [u32],
    dout: G,
}

impl<G: Source> Kernel for AddRows<'_, G> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Range { start, end } = self.columns;
        for (i, &id) in self.ids.iter().enumerate() {
            let first = id as usize * self.dim;
            // SAFETY: the row is the only part of the table that this call holds, and the columns
            // belong to this call alone: the whole table in `embedding_bwd_acc`, disjoint ranges
            // of `Team::split` in `embedding_bwd_acc_team`.
            let row = unsafe { self.dtable.slice(first + start..first + end) };
            let dout = self.dout.part(i * self.dim + start..i * self.dim + end);
            for at in (0..end - start).step_by(V::LANES) {
                let sum = simd::get::<V>(&row[at..]).add(dout.load(at));
                simd::put(&mut row[at..], sum);
            }
        }
    }
}
