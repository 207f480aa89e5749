//! How long a run will take: a few slices and one update, timed, on a model that is not kept.

use super::batch::{budget, pack};
use super::job::Rows;
use super::optimizer;
use super::plan::Plan;
use super::settings::Settings;
use super::trainee::Trainee;
use crate::autograd::Dropout;
use crate::data::order::Epochs;
use crate::error::Result;
use crate::tensor::Grads;
use std::time::{Duration, Instant};

/// No further slice is begun after this time.
const ENOUGH: Duration = Duration::from_secs(2);

/// What the probe measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Tokens per second, forward and backward.
    pub tok_per_s: f64,
    /// Seconds of an optimiser update.
    pub update_s: f64,
}

impl Speed {
    /// Seconds of a run over `n_tokens` tokens in `n_steps` steps, evaluations not counted.
    pub fn seconds(&self, n_tokens: f64, n_steps: usize) -> f64 {
        n_tokens / self.tok_per_s + n_steps as f64 * self.update_s
    }
}

/// Takes slices of the first steps' rows, and one update of rate 0. The first slice warms up and is
/// not counted unless it is the only one.
///
/// # Errors
/// Rows that the model cannot take; a device that failed.
pub fn speed<M: Trainee>(
    model: &mut M,
    rows: &dyn Rows,
    settings: &Settings,
    plan: &Plan,
) -> Result<Speed> {
    let budget = budget(settings.slice_tokens, rows.longest());
    let epochs = Epochs::new(plan.n_rows, settings.seed, settings.shuffle);
    let mut grads = Grads::zeros(model.params())?;
    let start = Instant::now();
    let mut timed: Vec<(usize, f64)> = vec![];
    'steps: for step in 0..plan.total_steps.min(plan.steps_per_epoch) {
        let place = plan.place(step);
        for micro in place.micros {
            let index = |at| epochs.index(place.epoch as u64, at);
            let micro_rows: Result<Vec<_>> =
                plan.rows(micro).map(|at| rows.row(index(at))).collect();
            for packed in pack(&micro_rows?, budget) {
                let begun = Instant::now();
                model.run(&packed.slice(), Some((&mut grads, 1.0)), Dropout::default())?;
                model.device().sync()?;
                timed.push((packed.ids.len(), begun.elapsed().as_secs_f64()));
                if start.elapsed() > ENOUGH {
                    break 'steps;
                }
            }
        }
    }
    let counted = if timed.len() > 1 { &timed[1..] } else { &timed[..] };
    let n_tokens: usize = counted.iter().map(|(n, _)| n).sum();
    let seconds: f64 = counted.iter().map(|(_, s)| s).sum();
    let update_s = model.with_params(|device, params| -> Result<f64> {
        let mut optimizer = optimizer::make(&settings.optim, &settings.optim_args, params)?;
        let begun = Instant::now();
        optimizer.step(device, params, &grads, 0.0, 1.0)?;
        device.sync()?;
        Ok(begun.elapsed().as_secs_f64())
    })?;
    Ok(Speed { tok_per_s: n_tokens as f64 / seconds.max(1e-9), update_s })
}
