//! Rows: what a training step takes, and how rows stand as 32-bit words in a file.
//!
//! ```text
//! word 0       ids of the row, n
//! word 1       documents, s           word 2  sources, c
//! word 3       1: labels are written out; 0: they are the ids where a bit says so
//! n words      ids
//! n words, or ceil(n / 32) words      labels as i32, or bits (bit i % 32 of word i / 32)
//! s words      lengths of the documents
//! c words      instances
//! ```

use serde::{Deserialize, Serialize};

/// The label of what is not scored.
pub const NOT_SCORED: i32 = -100;

/// One row of training data, without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each id the label, [`NOT_SCORED`] for what is not scored. Aligned with `ids`: the label
    /// at position i is the target of position i - 1. The first label of a document other than the
    /// row's first is always [`NOT_SCORED`], so that a plain shift of the row is right.
    pub labels: Vec<i32>,
    /// Lengths of the documents in the row, which do not see each other; they add up to the number
    /// of ids.
    pub spans: Vec<u32>,
    /// The instances that the row comes from, counted over all files of the set: one a document,
    /// except in grouped rows, where one document holds several instances.
    pub source: Vec<u32>,
}

/// Number of labels of a document that are targets: all but the first that are scored.
pub(super) fn n_targets(labels: &[i32]) -> usize {
    labels.iter().skip(1).filter(|&&label| label != NOT_SCORED).count()
}

impl Row {
    /// Number of targets: scored labels of which the model sees something before.
    pub fn n_scored(&self) -> usize {
        n_targets(&self.labels)
    }

    /// Adds a document to the row as one that does not see the others.
    pub(super) fn append(&mut self, document: &Document) {
        let start = self.ids.len();
        self.ids.extend_from_slice(&document.ids);
        self.labels.extend_from_slice(&document.labels);
        if start > 0 && !document.labels.is_empty() {
            self.labels[start] = NOT_SCORED;
        }
        self.spans.push(document.ids.len() as u32);
        self.source.push(document.source);
    }

    /// Appends the row's words.
    pub(super) fn write(&self, words: &mut Vec<u32>) {
        let of_ids = |(&label, &id): (&i32, &u32)| label == NOT_SCORED || label as u32 == id;
        let explicit = !self.labels.iter().zip(&self.ids).all(of_ids);
        words.extend([
            self.ids.len() as u32,
            self.spans.len() as u32,
            self.source.len() as u32,
            u32::from(explicit),
        ]);
        words.extend(&self.ids);
        if explicit {
            words.extend(self.labels.iter().map(|&label| label as u32));
        } else {
            words.extend(self.labels.chunks(32).map(|labels| {
                let bit = |word, (i, &label)| word | u32::from(label != NOT_SCORED) << i;
                labels.iter().enumerate().fold(0u32, bit)
            }));
        }
        words.extend(&self.spans);
        words.extend(&self.source);
    }

    /// The row of these words; `None` where they are no row.
    pub(super) fn read(words: &[u32]) -> Option<Row> {
        let (head, mut rest) = words.split_at_checked(4)?;
        let &[n, n_spans, n_sources, explicit] = head else { return None };
        let mut take = |n: usize| {
            let (part, after) = rest.split_at_checked(n)?;
            rest = after;
            Some(part)
        };
        let ids = take(n as usize)?.to_vec();
        let labels: Vec<i32> = match explicit {
            1 => take(ids.len())?.iter().map(|&word| word as i32).collect(),
            0 => {
                let bits = take(ids.len().div_ceil(32))?;
                let scored = |i: usize| bits[i / 32] >> (i % 32) & 1 == 1;
                let label = |(i, &id)| if scored(i) { id as i32 } else { NOT_SCORED };
                ids.iter().enumerate().map(label).collect()
            }
            _ => return None,
        };
        let spans = take(n_spans as usize)?.to_vec();
        let source = take(n_sources as usize)?.to_vec();
        let sum: u64 = spans.iter().map(|&n| u64::from(n)).sum();
        (rest.is_empty() && sum == ids.len() as u64).then_some(Row { ids, labels, spans, source })
    }
}

/// A rendered instance, or a piece of one: not yet in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) ids: Vec<u32>,
    pub(super) labels: Vec<i32>,
    /// The instance, counted over all files.
    pub(super) source: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(ids: &[u32], labels: &[i32], source: u32) -> Document {
        Document { ids: ids.into(), labels: labels.into(), source }
    }

    #[test]
    fn rows_come_back_from_their_words() {
        let mut packed = Row::default();
        packed.append(&document(&[5, 6, 7], &[-100, 6, 7], 3));
        packed.append(&document(&[8, 9], &[8, 9], 4));
        assert_eq!(packed.labels, [-100, 6, 7, -100, 9]);
        assert_eq!((packed.spans.as_slice(), packed.source.as_slice()), (&[3, 2][..], &[3, 4][..]));
        assert_eq!(packed.n_scored(), 3);
        let long = Row {
            ids: (0..100).collect(),
            labels: (0..100).map(|i| if i % 3 == 0 { i } else { NOT_SCORED }).collect(),
            spans: vec![100],
            source: vec![0, 1, 2],
        };
        let other_labels =
            Row { ids: vec![1, 2], labels: vec![-100, 9], spans: vec![2], source: vec![0] };
        for row in [packed, long, other_labels, Row::default()] {
            let mut words = vec![];
            row.write(&mut words);
            assert_eq!(Row::read(&words), Some(row));
            for n in 0..words.len() {
                assert_eq!(Row::read(&words[..n]), None, "{n} words of {}", words.len());
            }
            words.push(0);
            assert_eq!(Row::read(&words), None);
        }
    }

    #[test]
    fn lengths_that_do_not_add_up_are_no_row() {
        let row = Row { ids: vec![1, 2], labels: vec![1, 2], spans: vec![3], source: vec![] };
        let mut words = vec![];
        row.write(&mut words);
        assert_eq!(Row::read(&words), None);
        assert_eq!(Row::read(&[u32::MAX, u32::MAX, 0, 0]), None);
    }

    #[test]
    fn the_first_label_is_no_target() {
        assert_eq!(n_targets(&[]), 0);
        assert_eq!(n_targets(&[7]), 0);
        assert_eq!(n_targets(&[7, -100]), 0);
        assert_eq!(n_targets(&[-100, 7]), 1);
    }
}
