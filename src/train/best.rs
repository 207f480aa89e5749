//! The best evaluation so far, and when to stop waiting for a better one.

use super::exact;
use serde::{Deserialize, Serialize};

/// Evaluations so far, as far as they decide anything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The lowest loss and the step after which it was seen.
    pub seen: Option<Seen>,
    /// Evaluations in a row that were not better by more than the threshold.
    pub n_waited: usize,
}

/// An evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Steps done before it.
    pub step: usize,
    /// Its loss.
    #[serde(with = "exact")]
    pub loss: f64,
}

impl Best {
    /// Takes note of an evaluation; whether it is the best. As in transformers, a loss that is lower
    /// by no more than `threshold` is the best all the same, but waiting goes on.
    pub fn update(&mut self, step: usize, loss: f64, threshold: f64) -> bool {
        let gain = self.seen.map_or(f64::INFINITY, |seen| seen.loss - loss);
        let better = gain > 0.0;
        self.n_waited = if better && gain > threshold { 0 } else { self.n_waited + 1 };
        if better {
            self.seen = Some(Seen { step, loss });
        }
        better
    }

    /// Whether `patience` evaluations in a row brought nothing.
    pub fn exhausted(&self, patience: Option<usize>) -> bool {
        patience.is_some_and(|patience| self.n_waited >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends() {
        let mut best = Best::default();
        let series =
            [(3.0, true, 0), (2.0, true, 0), (2.0, false, 1), (1.95, true, 2), (1.5, true, 0)];
        for (i, (loss, better, waited)) in series.into_iter().enumerate() {
            assert_eq!(best.update(10 * i, loss, 0.1), better, "{loss}");
            assert_eq!(best.n_waited, waited, "{loss}");
        }
        assert_eq!(best.seen, Some(Seen { step: 40, loss: 1.5 }));
        best.update(50, 9.0, 0.0);
        best.update(60, 9.0, 0.0);
        assert!(best.exhausted(Some(2)) && !best.exhausted(Some(3)) && !best.exhausted(None));
    }
}
