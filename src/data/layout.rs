//! Documents to rows: one a row, packed without seeing each other, or grouped as LMFlow does.
//!
//! Packing is best-fit decreasing within a window of documents: the longest first, each into the
//! row whose free room it fills best, the earliest row among equals. Rows and the documents in
//! them are then put in the order of the data. It depends on the lengths alone. A window ends
//! after [`WINDOW_DOCUMENTS`] documents or [`WINDOW_TOKENS`] tokens, whichever comes first.

use super::rows::{Document, Row, n_targets};
use crate::error::Result;
use std::collections::BTreeSet;

/// Most documents that are packed together.
const WINDOW_DOCUMENTS: usize = 16 * 1024;

/// Tokens after which a window ends.
const WINDOW_TOKENS: usize = 4 << 20;

/// How documents become rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Whole documents side by side in rows of at most the block size, without seeing each other.
    #[default]
    Packed,
    /// One document a row, cut at the block size.
    Blocks,
    /// Runs of documents concatenated and cut every block size; what comes later sees what came
    /// before, whatever document it was.
    Group,
}

/// Which end of a document is lost when it is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TruncationSide {
    /// The end; the head is kept.
    #[default]
    Right,
    /// The head; the end is kept.
    Left,
}

/// The pieces of one document.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Cut {
    pub(super) pieces: Vec<Document>,
    /// Tokens that are in no piece.
    pub(super) n_lost: usize,
}

/// Cuts a document to what the layout takes. `divisible`: packed rows may hold it in pieces, of
/// which none is lost; another one loses what is beyond the block size.
pub(super) fn cut(
    mut document: Document,
    divisible: bool,
    layout: Layout,
    block_size: usize,
    side: TruncationSide,
) -> Cut {
    let n = document.ids.len();
    if n <= block_size || layout == Layout::Group {
        return Cut { pieces: vec![document], n_lost: 0 };
    }
    if divisible && layout == Layout::Packed {
        let mut pieces = vec![];
        let mut start = 0;
        while start < n {
            // A last piece of one token would have no target: the one before gives it a second.
            let left = n - start;
            let short = usize::from(left == block_size + 1 && block_size > 2);
            let end = start + left.min(block_size - short);
            pieces.push(Document {
                ids: document.ids[start..end].to_vec(),
                labels: document.labels[start..end].to_vec(),
                source: document.source,
            });
            start = end;
        }
        return Cut { pieces, n_lost: 0 };
    }
    match side {
        TruncationSide::Right => {
            document.ids.truncate(block_size);
            document.labels.truncate(block_size);
        }
        TruncationSide::Left => {
            document.ids.drain(..n - block_size);
            document.labels.drain(..n - block_size);
        }
    }
    Cut { pieces: vec![document], n_lost: n - block_size }
}

/// What takes finished rows.
pub(super) type Emit<'a> = &'a mut dyn FnMut(Row) -> Result<()>;

/// Makes rows of documents as they come.
#[derive(Debug)]
pub(super) struct Arranger {
    layout: Layout,
    block_size: usize,
    run_length: usize,
    drop_remainder: bool,
    window: Vec<Document>,
    window_tokens: usize,
    group: Row,
    n_in_run: usize,
    /// Tokens that were dropped with a run's remainder.
    pub(super) n_dropped: usize,
    /// Rows without a target.
    pub(super) n_without_targets: usize,
}

impl Arranger {
    /// `run_length` documents are grouped together; `drop_remainder`: what a run leaves over short
    /// of a block is dropped.
    pub(super) fn new(
        layout: Layout,
        block_size: usize,
        run_length: usize,
        drop_remainder: bool,
    ) -> Arranger {
        Arranger {
            layout,
            block_size,
            run_length,
            drop_remainder,
            window: vec![],
            window_tokens: 0,
            group: Row::default(),
            n_in_run: 0,
            n_dropped: 0,
            n_without_targets: 0,
        }
    }

    /// Takes the next document; no longer than the block size unless rows are grouped.
    pub(super) fn push(&mut self, document: Document, emit: Emit<'_>) -> Result<()> {
        match self.layout {
            Layout::Blocks => {
                let mut row = Row::default();
                row.append(&document);
                self.emit(row, emit)
            }
            Layout::Packed => {
                self.window_tokens += document.ids.len();
                self.window.push(document);
                if self.window.len() >= WINDOW_DOCUMENTS || self.window_tokens >= WINDOW_TOKENS {
                    self.pack(emit)?;
                }
                Ok(())
            }
            Layout::Group => {
                let (mut at, n) = (0, document.ids.len());
                while at < n {
                    let take = (n - at).min(self.block_size - self.group.ids.len());
                    self.group.ids.extend_from_slice(&document.ids[at..at + take]);
                    self.group.labels.extend_from_slice(&document.labels[at..at + take]);
                    self.group.source.push(document.source);
                    at += take;
                    if self.group.ids.len() == self.block_size {
                        self.end_group(emit)?;
                    }
                }
                self.n_in_run += 1;
                if self.n_in_run == self.run_length { self.end_run(emit) } else { Ok(()) }
            }
        }
    }

    /// The rows of what is still held back.
    pub(super) fn finish(&mut self, emit: Emit<'_>) -> Result<()> {
        self.pack(emit)?;
        self.end_run(emit)
    }

    fn emit(&mut self, row: Row, emit: Emit<'_>) -> Result<()> {
        self.n_without_targets += usize::from(n_targets(&row.labels) == 0);
        emit(row)
    }

    fn end_group(&mut self, emit: Emit<'_>) -> Result<()> {
        let mut row = std::mem::take(&mut self.group);
        row.spans = vec![row.ids.len() as u32];
        self.emit(row, emit)
    }

    fn end_run(&mut self, emit: Emit<'_>) -> Result<()> {
        self.n_in_run = 0;
        match self.group.ids.len() {
            0 => Ok(()),
            n if self.drop_remainder => {
                self.n_dropped += n;
                self.group = Row::default();
                Ok(())
            }
            _ => self.end_group(emit),
        }
    }

    fn pack(&mut self, emit: Emit<'_>) -> Result<()> {
        let window = std::mem::take(&mut self.window);
        self.window_tokens = 0;
        let lengths: Vec<usize> = window.iter().map(|d| d.ids.len()).collect();
        for row_of in best_fit(&lengths, self.block_size) {
            let mut row = Row::default();
            row_of.iter().for_each(|&i| row.append(&window[i]));
            self.emit(row, emit)?;
        }
        Ok(())
    }
}

/// Which documents share a row, rows and documents in the order of the data.
fn best_fit(lengths: &[usize], block_size: usize) -> Vec<Vec<usize>> {
    let mut by_length: Vec<usize> = (0..lengths.len()).collect();
    by_length.sort_by_key(|&i| (std::cmp::Reverse(lengths[i]), i));
    let mut rows: Vec<Vec<usize>> = vec![];
    // Free room and number of each row that has room.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for i in by_length {
        let n = lengths[i];
        let best = open.range((n, 0)..).next().copied();
        let (room, row) = best.unwrap_or((block_size, rows.len()));
        match best {
            Some(entry) => {
                open.remove(&entry);
            }
            None => rows.push(vec![]),
        }
        rows[row].push(i);
        if room > n {
            open.insert((room - n, row));
        }
    }
    rows.iter_mut().for_each(|row| row.sort_unstable());
    rows.sort_unstable_by_key(|row| row[0]);
    rows
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
