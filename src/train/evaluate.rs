//! The loss of a model on a set of rows.

use super::batch::{Total, pack};
use super::job::Rows;
use super::trainee::Trainee;
use crate::autograd::Dropout;
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs all rows in their order, in slices of at most `budget` tokens; `None` when told to stop
/// meanwhile.
///
/// # Errors
/// Rows that cannot be read or that the model cannot take; no scored token in all of them.
pub fn evaluate<M: Trainee>(
    model: &mut M,
    rows: &dyn Rows,
    budget: usize,
    stop: &AtomicBool,
) -> Result<Option<Total>> {
    let (mut total, mut held, mut n_held) = (Total::default(), vec![], 0);
    for index in 0..=rows.n_rows() {
        let row = (index < rows.n_rows()).then(|| rows.row(index)).transpose()?;
        let len = row.as_ref().map_or(0, |row| row.ids.len());
        if row.is_none() || n_held + len > budget {
            for packed in pack(&held, budget) {
                let loss = model.run(&packed.slice(), None, Dropout::default())?;
                total.add(&loss, &packed);
            }
            held.clear();
            n_held = 0;
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        n_held += len;
        held.extend(row);
    }
    if total.n_units == 0 {
        let what = "no scored token, wanted at least one".to_owned();
        return Err(Error::Data { place: "evaluation set".to_owned(), what });
    }
    Ok(Some(total))
}
