//! Cross-entropy of rows of logits.

use super::{Cpu, FloatsMut};
use puna_cpu::cross_entropy::cross_entropy_rows;
use puna_cpu::share::share;

/// Values that [`cross_entropy`] writes for each row: the negative log-likelihood of the label, in
/// nats, and 1 where the label was the likeliest token, else 0.
pub const SCORES: usize = 2;

/// Scores `logits` [rows, v] against one label a row; `scores` is [rows, [`SCORES`]]. With
/// `factors`, one a row, the logits become `(softmax - onehot) * factor`, zeros where a row has no
/// label.
///
/// # Panics
/// When lengths do not fit together.
pub fn cross_entropy(
    cpu: &Cpu,
    logits: &mut [f32],
    scores: &mut [f32],
    labels: &[Option<u32>],
    factors: Option<&[f32]>,
) {
    let n = labels.len();
    if n == 0 {
        return;
    }
    let vocab = logits.len() / n;
    assert_eq!(logits.len(), n * vocab, "logits are whole rows");
    assert_eq!(scores.len(), n * SCORES, "scores of each row");
    assert!(factors.is_none_or(|factors| factors.len() == n), "a factor a row");
    let outs = [(FloatsMut::F32(logits), vocab), (FloatsMut::F32(scores), SCORES)];
    share(&cpu.team, n, outs, &|rows, outs| {
        let [FloatsMut::F32(logits), FloatsMut::F32(scores)] = outs else { return };
        let of_rows = rows.clone().zip(logits.chunks_exact_mut(vocab));
        for ((row, logits), scores) in of_rows.zip(scores.chunks_exact_mut(SCORES)) {
            let (mut nll, mut correct) = ([0.0], [false]);
            let (factor, want) = (factors.map_or(0.0, |f| f[row]), factors.is_some());
            let label = &labels[row..row + 1];
            cross_entropy_rows(cpu.isa, logits, label, factor, &mut nll, &mut correct, want);
            scores.copy_from_slice(&[nll[0], if correct[0] { 1.0 } else { 0.0 }]);
        }
    });
}
