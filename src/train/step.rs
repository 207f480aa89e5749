//! One optimiser step: gradient of some micro-batches, clipping, update. What a run of fixed rows and
//! a run that makes its rows on the way have in common.

use super::batch::{Total, accumulate};
use super::clip::{clip_factor, global_norm};
use super::optimizer::{self, Optimizer};
use super::settings::Settings;
use super::trainee::Trainee;
use crate::data::Row;
use crate::error::Result;
use crate::tensor::Grads;

/// An optimiser with the gradients of a step.
pub struct Stepper {
    /// What it keeps for each weight goes on from step to step.
    pub optimizer: Box<dyn Optimizer>,
    grads: Grads,
}

/// Which step it is, and how it is taken.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Steps before it: chooses its dropout masks.
    pub step: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Learning rate.
    pub lr: f64,
    /// Most tokens that run through the model at once.
    pub budget: usize,
    /// Longest gradient; 0: any length.
    pub max_grad_norm: f64,
}

/// What a step came to: its loss and the norm of its gradient before clipping, or the number that is
/// not finite, in which case nothing was updated.
pub type Stepped = std::result::Result<(Total, f64), (&'static str, f64)>;

impl Stepper {
    /// For a model's parameters.
    ///
    /// # Errors
    /// An optimiser that is not known, constants out of range, a GPU without room.
    pub fn new<M: Trainee>(model: &mut M, settings: &Settings) -> Result<Stepper> {
        let optimizer = model.with_params(|_, params| {
            optimizer::make(&settings.optim, &settings.optim_args, params)
        })?;
        Ok(Stepper { optimizer, grads: Grads::zeros(model.params())? })
    }

    /// Takes a step over the rows of some micro-batches.
    ///
    /// # Errors
    /// No scored token; rows that the model cannot take; a device that failed.
    pub fn step<M: Trainee>(
        &mut self,
        model: &mut M,
        micros: &[Vec<Row>],
        how: &Step,
    ) -> Result<Stepped> {
        self.grads.clear()?;
        let total = accumulate(model, micros, &mut self.grads, how.budget, how.seed, how.step)?;
        if !total.sum.is_finite() {
            return Ok(Err(("the loss", total.sum)));
        }
        let norm = global_norm(model.device(), &self.grads)?;
        if !norm.is_finite() {
            return Ok(Err(("the gradient's norm", norm)));
        }
        let factor = clip_factor(norm, how.max_grad_norm);
        let Stepper { optimizer, grads } = self;
        model.with_params(|device, params| {
            optimizer.step(device, params, grads, how.lr as f32, factor)
        })?;
        Ok(Ok((total, norm)))
    }
}
