//! Optimisers: what turns gradients into updates, and the registry that the command line picks
//! from. A new one is a file here, a name in [`NAMES`] and an arm in [`make`].

mod adamw;
mod sgd;
mod state;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::tensor::{Grads, Params, Values};

/// The names that [`make`] knows; `adamw_torch` is another name of `adamw`.
pub const NAMES: &[&str] = &["adamw", "adamw_torch", "sgd"];

/// Settings of all optimisers; each takes what it knows.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimArgs {
    /// Decay of AdamW's first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of AdamW's second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of AdamW's second moment.
    pub eps: f64,
    /// Momentum of SGD, in [0, 1); 0 keeps no state.
    pub momentum: f64,
    /// Weight decay: decoupled in AdamW, added to the gradient in SGD.
    pub weight_decay: f64,
    /// Applies the decay to every parameter, not only to those marked for it.
    pub decay_all: bool,
}

impl Default for OptimArgs {
    /// PyTorch's defaults, but without weight decay.
    fn default() -> Self {
        OptimArgs {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            momentum: 0.0,
            weight_decay: 0.0,
            decay_all: false,
        }
    }
}

/// One entry of an optimiser's state: its name, the index of its parameter, its numbers.
pub type StateEntry<T> = (String, usize, T);

/// Updates parameters from gradients and keeps what it needs from step to step.
pub trait Optimizer: Send {
    /// Its name in [`NAMES`].
    fn name(&self) -> &'static str;

    /// The names of its state's entries; each has one entry for each parameter, but for `step`,
    /// which has one for all.
    fn state_names(&self) -> Vec<&'static str>;

    /// Takes one step with the rate `lr` and gradients multiplied by `grad_scale`; then renews the
    /// parameters' bf16 copies.
    ///
    /// # Errors
    /// When the parameters live where `device` does not compute, or the device failed.
    ///
    /// # Panics
    /// When the parameters are not those that the optimiser was made for.
    fn step(
        &mut self,
        device: &Device,
        params: &mut Params,
        grads: &Grads,
        lr: f32,
        grad_scale: f32,
    ) -> Result<()>;

    /// Everything that a later run needs to go on with the same bits, wherever it lives: who writes
    /// it reads one entry after the other.
    fn state(&self) -> Vec<StateEntry<&Values>>;

    /// Takes over the state of an earlier run, in any order.
    ///
    /// # Errors
    /// When an entry is missing, unknown, doubled or of the wrong length; then nothing changes. When
    /// a GPU failed; then anything may have changed.
    fn load_state(&mut self, state: Vec<StateEntry<Vec<f32>>>) -> Result<()>;

    /// Bytes of state for each number that is trained.
    fn state_bytes_per_element(&self) -> usize;
}

/// The optimiser of this name for these parameters; what it keeps of each lives beside it.
///
/// # Errors
/// When the name is not one of [`NAMES`], a setting is out of its range, or a GPU has no room.
pub fn make(name: &str, args: &OptimArgs, params: &Params) -> Result<Box<dyn Optimizer>> {
    for (field, value) in
        [("adam_beta1", args.beta1), ("adam_beta2", args.beta2), ("momentum", args.momentum)]
    {
        if !(0.0..1.0).contains(&value) {
            return Err(Error::config(field, value, "wanted a number from 0 to below 1"));
        }
    }
    for (field, value) in [("adam_epsilon", args.eps), ("weight_decay", args.weight_decay)] {
        if !(value >= 0.0 && value.is_finite()) {
            return Err(Error::config(field, value, "wanted a number from 0 on"));
        }
    }
    match name {
        "adamw" | "adamw_torch" => Ok(Box::new(adamw::AdamWState::new(args, params)?)),
        "sgd" => Ok(Box::new(sgd::SgdState::new(args, params)?)),
        _ => Err(Error::config("optim", name, format!("wanted one of {}", NAMES.join(", ")))),
    }
}
