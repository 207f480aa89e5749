//! Pairs of answers as rows of a training run.

use crate::data::{Pairs, Row};
use crate::error::{Error, Result};
use crate::model::tune::TuneModel;
use crate::train::job::digest;
use crate::train::{Rows, Trainee};
use std::sync::atomic::AtomicBool;

/// Pairs as a training run takes them.
pub struct PairRows(pub Pairs);

impl PairRows {
    /// SHA-256 of ids, labels and margins, in hexadecimal.
    ///
    /// # Errors
    /// None: rows are in memory.
    pub fn digest(&self) -> Result<String> {
        let margins = self.0.margins.iter().flat_map(|margin| margin.to_le_bytes());
        digest(self.0.rows.iter().map(|row| Ok(row.clone())), margins)
    }

    /// Tokens of all pairs.
    pub fn n_tokens(&self) -> usize {
        self.0.rows.iter().map(|row| row.ids.len()).sum()
    }

    /// Scored tokens of all pairs.
    pub fn n_scored(&self) -> usize {
        // Each document's first label is none, so every label is a target.
        let scored = |row: &Row| row.labels.iter().filter(|&&label| label >= 0).count();
        self.0.rows.iter().map(scored).sum()
    }
}

impl Rows for PairRows {
    fn n_rows(&self) -> usize {
        self.0.rows.len()
    }

    fn longest(&self) -> usize {
        self.0.rows.iter().map(|row| row.ids.len()).max().unwrap_or(0)
    }

    fn row(&self, index: usize) -> Result<Row> {
        self.0.rows.get(index).cloned().ok_or_else(|| Error::Shape {
            op: "reading a pair".into(),
            expected: format!("one of {}", self.0.rows.len()),
            got: index.to_string(),
        })
    }

    fn place(&self, instance: u32) -> String {
        let at = self.0.rows.iter().position(|row| row.source.contains(&instance));
        let place = at.and_then(|at| self.0.places.get(at));
        place.cloned().unwrap_or_else(|| format!("pair {instance}"))
    }
}

/// The number of a pair's row.
fn number(row: &Row) -> usize {
    row.source.first().map_or(0, |&number| number as usize)
}

/// The margin of every pair of these sets, by its number.
pub(super) fn margins(sets: &[&PairRows]) -> Vec<f64> {
    let rows = || sets.iter().flat_map(|set| set.0.rows.iter().zip(&set.0.margins));
    let n = rows().map(|(row, _)| number(row) + 1).max().unwrap_or(0);
    let mut all = vec![0.0; n];
    for (row, &margin) in rows() {
        all[number(row)] = margin;
    }
    all
}

/// Adds both of a pair.
pub(super) fn add(sums: &mut [f64; 2], values: [f64; 2]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// A model in training on pairs.
pub trait PairTrainee: Trainee {
    /// The model inside.
    fn tuned(&self) -> &TuneModel;

    /// What is to be done before the first step, over all sets; `progress` is told how many pairs
    /// are done. `false` when told to stop meanwhile.
    ///
    /// # Errors
    /// Pairs that the model cannot take.
    fn prepare(
        &mut self,
        sets: &[&PairRows],
        slice_tokens: Option<usize>,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<bool> {
        let _ = (sets, slice_tokens, stop, progress);
        Ok(true)
    }
}
