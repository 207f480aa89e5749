//! Pairs of answers as rows of a training run.

use super::reference::each_slice;
use crate::data::{NOT_SCORED, Pairs, Row};
use crate::error::{Error, Result};
use crate::model::tune::{Slice, TuneModel};
use crate::train::job::digest;

use crate::train::trainee::Tuned;
use crate::train::{Rows, Trainee, budget};
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

impl PairRows {
    /// Rows of `n` pairs each, for losses that look at a whole group: of each pair in turn the chosen
    /// answer, the rejected one, and its prompt with the chosen answer of the next pair. A single
    /// pair that is left over joins the last row.
    ///
    /// # Errors
    /// Fewer than two pairs.
    pub fn grouped(self, n: usize) -> Result<PairRows> {
        let PairRows(Pairs { rows, places, first, instances, skipped, truncated, .. }) = self;
        if rows.len() < 2 {
            let what = format!("{} pairs, wanted at least 2 that are compared", rows.len());
            return Err(Error::Data { place: "preference data".into(), what });
        }
        let mut ends: Vec<usize> = (n.max(2)..rows.len()).step_by(n.max(2)).collect();
        ends.pop_if(|end| rows.len() - *end < 2);
        ends.push(rows.len());
        let (mut grouped, mut start) = (Pairs::default(), 0);
        for end in ends {
            let mut all = Row::default();
            for at in start..end {
                let next = if at + 1 < end { at + 1 } else { start };
                let [chosen, rejected] = documents(&rows[at]);
                let [other, _] = documents(&rows[next]);
                append(&mut all, &chosen, number(&rows[at]));
                append(&mut all, &rejected, number(&rows[at]));
                append(&mut all, &mismatch(&chosen, &other), number(&rows[at]));
            }
            grouped.rows.push(all);
            grouped.margins.push(0.0);
            grouped.places.push(places[start..end].join("; "));
            start = end;
        }
        Ok(PairRows(Pairs { first, instances, skipped, truncated, ..grouped }))
    }
}

/// Ids and labels of a document.
type Document = (Vec<u32>, Vec<i32>);

/// Chosen and rejected of a pair's row.
fn documents(row: &Row) -> [Document; 2] {
    let (a, b) = row.ids.split_at(row.spans[0] as usize);
    let (of_a, of_b) = row.labels.split_at(row.spans[0] as usize);
    [(a.to_vec(), of_a.to_vec()), (b.to_vec(), of_b.to_vec())]
}

/// The prompt of one document with the answer of another.
fn mismatch(one: &Document, other: &Document) -> Document {
    let prompt =
        |document: &Document| document.1.iter().take_while(|&&label| label == NOT_SCORED).count();
    let (n, from) = (prompt(one), prompt(other));
    let ids = [&one.0[..n], &other.0[from..]].concat();
    let labels = [&one.1[..n], &other.1[from..]].concat();
    (ids, labels)
}

fn append(row: &mut Row, document: &Document, number: usize) {
    row.ids.extend(&document.0);
    row.labels.extend(&document.1);
    row.spans.push(document.0.len() as u32);
    row.source.push(number as u32);
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

/// What hears a slice of rows and the log-probabilities of its labels.
type EachSlice<'a> = dyn FnMut(&Slice<'_>, &[f32]) -> Result<()> + 'a;

/// Runs all sets through the model without its adapter. `progress` is told how many rows are done;
/// `false` when told to stop meanwhile.
pub(super) fn under_reference(
    model: &mut TuneModel,
    sets: &[&PairRows],
    slice_tokens: Option<usize>,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(usize),
    each: &mut EachSlice<'_>,
) -> Result<bool> {
    let longest = sets.iter().map(|set| set.longest()).max().unwrap_or(0);
    let budget = budget(slice_tokens, longest);
    let mut done = 0;
    for set in sets {
        let before = done;
        let whole = each_slice(&set.0.rows, budget, stop, |first, slice| {
            each(slice, &model.log_probs(slice, false)?)?;
            done = before + first;
            progress(done);
            Ok(())
        })?;
        if !whole {
            return Ok(false);
        }
        done = before + set.n_rows();
        progress(done);
    }
    Ok(true)
}

/// Adds both of a pair.
pub(super) fn add(sums: &mut [f64; 2], values: [f64; 2]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// A model in training on pairs.
pub trait PairTrainee: Trainee + Tuned {
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
