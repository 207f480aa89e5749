//! What the training loop asks of a model.

use crate::autograd::Dropout;
use crate::error::Result;
use crate::kernels::Device;
use crate::model::tune::{Slice, SliceLoss, TuneModel};
use crate::tensor::{Grads, Params};
use std::collections::BTreeMap;
use std::path::Path;

/// Numbers beside the loss, means over units.
pub type Measures = BTreeMap<String, f64>;

/// What is trained, and where.
pub trait Holder {
    /// Where it computes.
    fn device(&self) -> &Device;
    /// What is trained.
    fn params(&self) -> &Params;
    /// What is trained, to be changed.
    fn params_mut(&mut self) -> &mut Params;
    /// Writes the model, or the adapter, into an empty directory.
    ///
    /// # Errors
    /// What the system refuses.
    fn save(&self, dir: &Path) -> Result<()>;

    /// Hands out device and parameters at once.
    fn with_params<R>(&mut self, work: impl FnOnce(&Device, &mut Params) -> R) -> R
    where
        Self: Sized,
    {
        let mut params = std::mem::take(self.params_mut());
        let result = work(self.device(), &mut params);
        *self.params_mut() = params;
        result
    }
}

/// A LLaMA in training, whatever its loss.
pub trait Tuned {
    /// The model inside.
    fn tuned(&self) -> &TuneModel;
    /// The same, to be run.
    fn tuned_mut(&mut self) -> &mut TuneModel;
}

impl<T: Tuned> Holder for T {
    fn device(&self) -> &Device {
        self.tuned().device()
    }

    fn params(&self) -> &Params {
        self.tuned().params()
    }

    fn params_mut(&mut self) -> &mut Params {
        self.tuned_mut().params_mut()
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.tuned().save(dir)
    }
}

/// A model with a loss.
pub trait Trainee: Holder {
    /// Runs rows packed one after the other. With gradients, adds `scale` times the derivative of
    /// the summed loss to them.
    ///
    /// # Errors
    /// Rows that it cannot take.
    fn run(
        &mut self,
        slice: &Slice<'_>,
        grads: Option<(&mut Grads, f32)>,
        dropout: Dropout,
    ) -> Result<SliceLoss>;
    /// How many losses the mean over these rows is taken of: as many as [`Trainee::run`] scores.
    fn units(&self, slice: &Slice<'_>) -> usize {
        slice.labels.iter().flatten().count()
    }
    /// Rows that go on after the last attention: dropout masks are counted through them.
    fn kept(&self, slice: &Slice<'_>) -> usize {
        slice.labels.iter().flatten().count()
    }
    /// Whether a unit's loss is the negative log-likelihood of a token.
    fn scores_tokens(&self) -> bool {
        true
    }
    /// What the passes since the last call measured beside their loss, by name.
    fn measures(&mut self) -> Measures {
        Measures::new()
    }
}

impl Tuned for TuneModel {
    fn tuned(&self) -> &TuneModel {
        self
    }

    fn tuned_mut(&mut self) -> &mut TuneModel {
        self
    }
}

impl Trainee for TuneModel {
    fn run(
        &mut self,
        slice: &Slice<'_>,
        grads: Option<(&mut Grads, f32)>,
        dropout: Dropout,
    ) -> Result<SliceLoss> {
        TuneModel::run(self, slice, grads, dropout)
    }
}
