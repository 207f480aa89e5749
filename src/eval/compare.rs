//! Two models on the same text: how far apart are their logits.

use crate::error::{Error, Result};
use crate::model::llama::{KvType, LogitsFor, Model, Segment};
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows of logits that one forward pass asks for.
const ROWS: usize = 64;

/// How two models differ, over all positions of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Largest difference of two logits.
    pub max_difference: f64,
    /// Mean difference of two logits.
    pub mean_difference: f64,
    /// Largest logit of the first model: what the differences are to be seen against.
    pub largest_logit: f64,
    /// Mean over positions of the divergence KL(first || second) of the next token's distribution,
    /// in nats.
    pub kl: f64,
    /// Largest such divergence.
    pub max_kl: f64,
    /// Share of positions at which both find the same token likeliest.
    pub agreement: f64,
    /// Positions compared.
    pub positions: usize,
}

/// Runs both models over `tokens`, in windows of `window` tokens, and compares their logits at
/// every position. `progress` hears how many positions are done; `cancel` is looked at between
/// passes.
///
/// # Errors
/// Models with vocabularies of different sizes, no tokens, ids outside the vocabulary,
/// [`Error::Cancelled`], and what the models return.
pub fn compare(
    models: [&Model; 2],
    tokens: &[u32],
    window: usize,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize),
) -> Result<Comparison> {
    let vocab = models[0].config.vocab_size;
    if models[1].config.vocab_size != vocab {
        return Err(Error::Shape {
            op: "comparison of two models".into(),
            expected: format!("a vocabulary of {vocab} tokens, as the first has"),
            got: models[1].config.vocab_size.to_string(),
        });
    }
    if tokens.is_empty() {
        return Err(Error::Data { place: "text".into(), what: "no tokens to compare on".into() });
    }
    let window = window.clamp(1, tokens.len());
    let mut workspaces = models.map(Model::workspace);
    let mut found = Comparison::default();
    let (mut differences, mut agreed) = (0.0, 0usize);
    for window in tokens.chunks(window) {
        let mut caches = [
            models[0].new_cache(window.len(), KvType::F32)?,
            models[1].new_cache(window.len(), KvType::F32)?,
        ];
        for rows in window.chunks(ROWS) {
            for ((model, ws), cache) in models.iter().zip(&mut workspaces).zip(&mut caches) {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                let (logits, rope_len) = (LogitsFor::All, Some(window.len()));
                model.forward(ws, &mut [Segment { tokens: rows, cache, logits, rope_len }])?;
            }
            for row in 0..rows.len() {
                let at = compare_row(workspaces[0].logits(row)?, workspaces[1].logits(row)?);
                differences += at.mean_difference;
                agreed += usize::from(at.agreement == 1.0);
                found.max_difference = larger(found.max_difference, at.max_difference);
                found.largest_logit = larger(found.largest_logit, at.largest_logit);
                found.max_kl = larger(found.max_kl, at.kl);
                found.kl += at.kl;
                found.positions += 1;
            }
            progress(found.positions);
        }
    }
    let n = found.positions as f64;
    found.mean_difference = differences / n;
    found.kl /= n;
    found.agreement = agreed as f64 / n;
    Ok(found)
}

/// The larger one; NaN where either is, so that a broken model is not overlooked.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn compare_row(a: &[f32], b: &[f32]) -> Comparison {
    let mut row = Comparison { positions: 1, ..Comparison::default() };
    for (&a, &b) in a.iter().zip(b) {
        let difference = (f64::from(a) - f64::from(b)).abs();
        row.max_difference = larger(row.max_difference, difference);
        row.mean_difference += difference;
        row.largest_logit = larger(row.largest_logit, f64::from(a).abs());
    }
    row.mean_difference /= a.len() as f64;
    let (log_a, log_b) = (log_sum_exp(a), log_sum_exp(b));
    for (&a, &b) in a.iter().zip(b) {
        let (p, q) = (f64::from(a) - log_a, f64::from(b) - log_b);
        row.kl += p.exp() * (p - q);
    }
    // Rounding may leave the divergence of equal distributions just below zero.
    row.kl = larger(row.kl, 0.0);
    row.agreement = if argmax(a) == argmax(b) { 1.0 } else { 0.0 };
    row
}

fn log_sum_exp(x: &[f32]) -> f64 {
    let max = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + x.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}

fn argmax(x: &[f32]) -> usize {
    let mut best = 0;
    for (i, &value) in x.iter().enumerate() {
        if value > x[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_equal_shifted_or_different() {
        let a = [1.0, 2.0, 0.5];
        assert_eq!(compare_row(&a, &a).kl, 0.0);
        let shifted = a.map(|x| x + 3.0);
        let row = compare_row(&a, &shifted);
        assert!(row.kl < 1e-12 && row.agreement == 1.0 && row.max_difference == 3.0);
        // p = (1/4, 3/4) against q = (3/4, 1/4): KL = 1/2 ln 3.
        let row = compare_row(&[0.0, 3f32.ln()], &[3f32.ln(), 0.0]);
        assert!((row.kl - 0.5 * 3f64.ln()).abs() < 1e-7, "{}", row.kl);
        assert_eq!(row.agreement, 0.0);
        assert!(compare_row(&a, &[1.0, f32::NAN, 0.0]).max_difference.is_nan());
    }
}
