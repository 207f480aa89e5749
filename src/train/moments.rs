//! The optimiser's state in a checkpoint: one tensor for each entry, named `ENTRY.PARAMETER` with
//! the parameter's number.

use super::optimizer::Optimizer;
use super::tensors::{self, View};
use crate::error::{Error, Result};
use std::path::Path;

/// Writes the state.
///
/// # Errors
/// What the system and the format refuse; a GPU that failed.
pub fn write(path: &Path, optimizer: &dyn Optimizer) -> Result<()> {
    let mut views = vec![];
    for (name, index, values) in optimizer.state() {
        views.push(View { name: format!("{name}.{index}"), shape: vec![values.len()], values });
    }
    tensors::write(path, &views)
}

/// Reads it back.
///
/// # Errors
/// A file that cannot be read, or another optimiser's.
pub fn read(path: &Path, optimizer: &mut dyn Optimizer) -> Result<()> {
    let mut all = vec![];
    tensors::read(path, |name, shape, fill| {
        let parts = name.rsplit_once('.').and_then(|(name, n)| Some((name, n.parse().ok()?)));
        let Some((entry, index)) = parts else {
            return Err(Error::format(path, format!("{name}: wanted NAME.NUMBER")));
        };
        let mut values = vec![0.0; shape.iter().product()];
        fill(&mut values)?;
        all.push((entry.to_owned(), index, values));
        Ok(())
    })?;
    optimizer.load_state(all)
}
