//! From rows to a gradient: whole rows packed side by side into slices, and the loss of a step as
//! one sum divided once by its scored tokens, so that the cut into micro-batches changes nothing.

use super::plan::slices;
use super::trainee::Trainee;
use crate::autograd::Dropout;
use crate::data::{NOT_SCORED, Row};
use crate::error::{Error, Result};
use crate::model::tune::{Slice, SliceLoss};
use crate::tensor::Grads;

/// A slice takes rows up to this many tokens, or one row that is longer: enough for the products
/// to run at full speed, few enough to keep activations small.
const SLICE_TOKENS: usize = 512;

/// Instances named in an error before it says how many more there are.
const NAMED_INSTANCES: usize = 12;

/// Rows packed for one run of the model.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Token ids of all rows.
    pub ids: Vec<u32>,
    /// For each position the token that follows it in its document, where that is scored.
    pub labels: Vec<Option<u32>>,
    /// Lengths of the documents.
    pub spans: Vec<usize>,
    /// The instances of the rows, in order.
    pub sources: Vec<u32>,
}

impl Packed {
    /// Rows side by side. No document sees another.
    pub fn new(rows: &[Row]) -> Packed {
        let mut packed = Packed::default();
        for row in rows {
            packed.ids.extend_from_slice(&row.ids);
            packed.sources.extend_from_slice(&row.source);
            let mut rest = row.labels.as_slice();
            for &len in &row.spans {
                let (document, after) = rest.split_at((len as usize).min(rest.len()));
                rest = after;
                let next = |label: &i32| (*label != NOT_SCORED).then_some(*label as u32);
                packed.labels.extend(document.iter().skip(1).map(next));
                if !document.is_empty() {
                    packed.labels.push(None);
                    packed.spans.push(document.len());
                }
            }
        }
        packed
    }

    /// As the model takes it.
    pub fn slice(&self) -> Slice<'_> {
        let Packed { ids, labels, spans, sources } = self;
        Slice { ids, labels, spans, sources }
    }

    /// Positions whose next token is scored.
    pub fn n_scored(&self) -> usize {
        self.labels.iter().filter(|label| label.is_some()).count()
    }
}

/// The key of a step's dropout masks; steps count from 0.
pub fn dropout_key(seed: u64, step: usize) -> u64 {
    mix(mix(seed) ^ step as u64)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014) after one step of its counter: each bit of
/// the input changes every bit of the output with probability one half.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Loss of a whole step or evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// Sum of the losses of all units: of tokens negative log-likelihoods, in nats.
    pub sum: f64,
    /// What the loss is a mean over: scored tokens, or pairs.
    pub n_units: usize,
    /// Units that the model got right: tokens that were the likeliest.
    pub n_correct: usize,
    /// Scored tokens.
    pub n_scored: usize,
    /// All tokens.
    pub n_tokens: usize,
}

impl Total {
    /// Adds a slice.
    pub fn add(&mut self, loss: &SliceLoss, packed: &Packed) {
        self.sum += loss.nll;
        self.n_units += loss.scored;
        self.n_correct += loss.correct;
        self.n_scored += packed.n_scored();
        self.n_tokens += packed.ids.len();
    }

    /// Mean loss of a unit.
    pub fn loss(&self) -> f64 {
        self.sum / self.n_units as f64
    }
}

/// Tokens of a slice: as told, else `SLICE_TOKENS`, but never less than the longest row.
pub fn budget(told: Option<usize>, longest: usize) -> usize {
    told.unwrap_or(SLICE_TOKENS).max(longest)
}

/// The slices of a micro-batch.
pub fn pack(rows: &[Row], budget: usize) -> Vec<Packed> {
    let lens: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
    slices(&lens, budget).into_iter().map(|range| Packed::new(&rows[range])).collect()
}

/// Adds the gradient of the step's mean loss to `grads`.
///
/// # Errors
/// A step without a scored token; rows that the model cannot take; a loss that is not finite.
pub fn accumulate<M: Trainee>(
    model: &mut M,
    micros: &[Vec<Row>],
    grads: &mut Grads,
    budget: usize,
    seed: u64,
    step: usize,
) -> Result<Total> {
    let packed: Vec<Vec<Packed>> = micros.iter().map(|rows| pack(rows, budget)).collect();
    let n_units: usize = packed.iter().flatten().map(|one| model.units(&one.slice())).sum();
    if n_units == 0 {
        let what = "no scored token in the whole step, wanted at least one".to_owned();
        return Err(Error::Data { place: format!("step {}", step + 1), what });
    }
    let scale = 1.0 / n_units as f32;
    let mut total = Total::default();
    let mut dropout = Dropout { key: dropout_key(seed, step), ..Dropout::default() };
    for one in packed.iter().flatten() {
        let loss = model.run(&one.slice(), Some((&mut *grads, scale)), dropout)?;
        total.add(&loss, one);
        if !loss.nll.is_finite() {
            // The rest of the step would only take time.
            return Ok(total);
        }
        dropout.first_row += one.ids.len() as u64;
        dropout.first_kept += model.kept(&one.slice()) as u64;
    }
    Ok(total)
}

/// The instances of a step's rows, for people; `place` tells where one stands.
pub fn instances(micros: &[Vec<Row>], place: impl Fn(u32) -> String) -> String {
    let mut all: Vec<u32> = micros.iter().flatten().flat_map(|row| row.source.clone()).collect();
    all.dedup();
    let named: Vec<String> = all.iter().take(NAMED_INSTANCES).map(|&one| place(one)).collect();
    let more = match all.len().saturating_sub(NAMED_INSTANCES) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    named.join("; ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn row(ids: &[u32], labels: &[i32], spans: &[u32]) -> Row {
        Row { ids: ids.into(), labels: labels.into(), spans: spans.into(), source: vec![ids[0]] }
    }

    #[test]
    fn labels_move_to_the_position_that_predicts_them() {
        let rows = [
            row(&[1, 2, 3, 4, 5], &[1, -100, 3, -100, 5], &[3, 2]),
            row(&[6, 7], &[6, 9], &[2]),
            row(&[8], &[8], &[1]),
        ];
        let packed = Packed::new(&rows);
        assert_eq!(packed.ids, [1, 2, 3, 4, 5, 6, 7, 8]);
        let wanted = [None, Some(3), None, Some(5), None, Some(9), None, None];
        assert_eq!(packed.labels, wanted);
        assert_eq!(packed.spans, [3, 2, 2, 1]);
        assert_eq!(packed.n_scored(), 3);
        assert_eq!(packed.n_scored(), rows.iter().map(Row::n_scored).sum::<usize>());
    }

    #[test]
    fn the_budget_holds_the_longest_row() {
        assert_eq!(budget(None, 100), 512);
        assert_eq!(budget(None, 1000), 1000);
        assert_eq!(budget(Some(64), 30), 64);
    }

    #[test]
    fn keys_differ_everywhere() {
        let mut seen = HashSet::new();
        for seed in 0..3 {
            for step in 0..100 {
                assert!(seen.insert(dropout_key(seed, step)));
            }
        }
    }

    #[test]
    fn instances_are_named_up_to_a_limit() {
        let rows: Vec<Row> = (0..20).map(|i| row(&[i], &[-100], &[1])).collect();
        let place = |one| format!("f {one}");
        let text = instances(&[rows[..2].to_vec(), rows[2..].to_vec()], place);
        assert!(text.starts_with("f 0; f 1; f 2") && text.ends_with("f 11 and 8 more"), "{text}");
        assert_eq!(instances(&[rows[3..5].to_vec()], place), "f 3; f 4");
    }
}
