//! Which rows a step takes: micro-batches of whole rows, steps of micro-batches, and how many
//! steps a run has. As in transformers, an epoch ends with a smaller micro-batch and with a step of
//! fewer micro-batches rather than leaving rows out.

use crate::data::Row;
use crate::data::order::Epochs;
use crate::error::{Error, Result};
use std::ops::Range;

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Passes over the data; a fraction ends within one.
    Epochs(f64),
    /// Optimiser steps.
    Steps(usize),
}

/// The steps of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Rows of the data.
    pub n_rows: usize,
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Micro-batches of an epoch, the last one perhaps smaller.
    pub micros_per_epoch: usize,
    /// Steps of an epoch, the last one perhaps smaller.
    pub steps_per_epoch: usize,
    /// Steps of the run.
    pub total_steps: usize,
}

/// What one step takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Micro-batches of that epoch.
    pub micros: Range<usize>,
}

impl Plan {
    /// Plans a run over `n_rows` rows.
    ///
    /// # Errors
    /// No rows, nothing to do, or more steps than can be counted.
    pub fn new(
        n_rows: usize,
        batch_size: usize,
        accumulation: usize,
        length: Length,
    ) -> Result<Plan> {
        if n_rows == 0 {
            return Err(Error::config("rows", 0, "wanted at least one row to train on"));
        }
        for (name, value) in
            [("batch_size", batch_size), ("gradient_accumulation_steps", accumulation)]
        {
            if value == 0 {
                return Err(Error::config(name, value, "wanted at least 1"));
            }
        }
        let micros_per_epoch = n_rows.div_ceil(batch_size);
        let steps_per_epoch = micros_per_epoch.div_ceil(accumulation);
        let total_steps = match length {
            Length::Steps(0) => return Err(Error::config("max_steps", 0, "wanted at least 1")),
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => {
                let steps = (epochs * steps_per_epoch as f64).ceil();
                if !(epochs > 0.0 && steps < f64::from(u32::MAX)) {
                    let why = "wanted more than 0, and fewer than 2^32 steps";
                    return Err(Error::config("num_train_epochs", epochs, why));
                }
                steps as usize
            }
        };
        Ok(Plan {
            n_rows,
            batch_size,
            accumulation,
            micros_per_epoch,
            steps_per_epoch,
            total_steps,
        })
    }

    /// What step `step` (from 0) takes.
    pub fn place(&self, step: usize) -> Place {
        let first = step % self.steps_per_epoch * self.accumulation;
        let end = (first + self.accumulation).min(self.micros_per_epoch);
        Place { epoch: step / self.steps_per_epoch, micros: first..end }
    }

    /// Positions, in the epoch's order, of a micro-batch's rows.
    pub fn rows(&self, micro: usize) -> Range<usize> {
        let first = micro * self.batch_size;
        first..(first + self.batch_size).min(self.n_rows)
    }

    /// The rows of step `step`, a list a micro-batch, in the order of `epochs`.
    ///
    /// # Errors
    /// What `row` returns.
    pub fn micros(
        &self,
        epochs: &Epochs,
        step: usize,
        mut row: impl FnMut(usize) -> Result<Row>,
    ) -> Result<Vec<Vec<Row>>> {
        let place = self.place(step);
        let mut at = |at| row(epochs.index(place.epoch as u64, at));
        place.micros.map(|micro| self.rows(micro).map(&mut at).collect()).collect()
    }

    /// Passes over the data when `steps` steps are done.
    pub fn epochs_after(&self, steps: usize) -> f64 {
        let within = (steps % self.steps_per_epoch * self.accumulation).min(self.micros_per_epoch);
        let whole = (steps / self.steps_per_epoch) as f64;
        whole + within as f64 / self.micros_per_epoch as f64
    }
}

/// Cuts rows of these lengths, in order, into runs of at most `budget` tokens. A longer row is a
/// run of its own.
pub fn slices(lens: &[usize], budget: usize) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = vec![];
    let mut held = 0;
    for (index, &len) in lens.iter().enumerate() {
        match out.last_mut() {
            Some(last) if held + len <= budget => last.end = index + 1,
            _ => {
                out.push(index..index + 1);
                held = 0;
            }
        }
        held += len;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_takes_every_row_once() {
        for (rows, batch, accumulation) in
            [(10, 3, 2), (8, 8, 1), (8, 2, 4), (7, 1, 3), (1, 8, 4), (12, 4, 3), (13, 4, 3)]
        {
            let plan = Plan::new(rows, batch, accumulation, Length::Epochs(2.0)).unwrap();
            assert_eq!(plan.total_steps, 2 * plan.steps_per_epoch);
            for epoch in 0..2 {
                let steps = epoch * plan.steps_per_epoch..(epoch + 1) * plan.steps_per_epoch;
                let taken: Vec<usize> = steps
                    .flat_map(|step| {
                        let place = plan.place(step);
                        assert_eq!(place.epoch, epoch);
                        assert!(!place.micros.is_empty() && place.micros.len() <= accumulation);
                        place.micros.flat_map(|micro| plan.rows(micro))
                    })
                    .collect();
                assert_eq!(taken, (0..rows).collect::<Vec<_>>(), "{rows} {batch} {accumulation}");
            }
            assert_eq!(plan.epochs_after(plan.total_steps), 2.0);
        }
    }

    #[test]
    fn lengths_are_those_of_transformers() {
        let plan = |length| Plan::new(10, 2, 2, length).map(|plan| plan.total_steps);
        // Five micro-batches, so three steps an epoch.
        let cases = [
            (Length::Epochs(1.0), 3),
            (Length::Epochs(3.0), 9),
            (Length::Epochs(0.5), 2),
            (Length::Epochs(1.1), 4),
            (Length::Steps(7), 7),
        ];
        for (length, wanted) in cases {
            assert_eq!(plan(length).unwrap(), wanted, "{length:?}");
        }
        let plan = Plan::new(10, 2, 2, Length::Steps(4)).unwrap();
        let epochs: Vec<f64> = (0..=4).map(|steps| plan.epochs_after(steps)).collect();
        assert_eq!(epochs, [0.0, 0.4, 0.8, 1.0, 1.4]);
    }

    #[test]
    fn what_cannot_be_planned_is_named() {
        let bad = [
            (Plan::new(0, 1, 1, Length::Steps(1)), "rows"),
            (Plan::new(1, 0, 1, Length::Steps(1)), "batch_size"),
            (Plan::new(1, 1, 0, Length::Steps(1)), "gradient_accumulation_steps"),
            (Plan::new(1, 1, 1, Length::Steps(0)), "max_steps"),
            (Plan::new(1, 1, 1, Length::Epochs(0.0)), "num_train_epochs"),
            (Plan::new(1, 1, 1, Length::Epochs(f64::NAN)), "num_train_epochs"),
            (Plan::new(1, 1, 1, Length::Epochs(1e300)), "num_train_epochs"),
        ];
        for (plan, name) in bad {
            assert!(plan.unwrap_err().to_string().starts_with(name), "{name}");
        }
    }

    #[test]
    fn slices_hold_whole_rows() {
        assert_eq!(slices(&[3, 4, 5, 20, 1, 1], 10), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(slices(&[5, 5, 5], 10), [0..2, 2..3]);
        assert_eq!(slices(&[], 10), Vec::<Range<usize>>::new());
        assert_eq!(slices(&[7, 7], 1), [0..1, 1..2]);
    }
}
