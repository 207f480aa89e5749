//! Gradient descent with momentum (not Nesterov's) and weight decay added to the gradient, as
//! PyTorch's `SGD`.

use super::state::State;
use super::{OptimArgs, Optimizer, StateEntry};
use crate::error::Result;
use crate::kernels::Device;
use crate::kernels::optim::{self, Sgd, SgdTensor};
use crate::tensor::{Grads, Param, Params, Values};

/// The settings, and the momentum of each weight unless its factor is 0.
pub struct SgdState {
    args: OptimArgs,
    state: State,
}

impl SgdState {
    /// Before its first step.
    ///
    /// # Errors
    /// When a GPU has no room for the momentum.
    pub fn new(args: &OptimArgs, params: &Params) -> Result<Self> {
        let names: &[&str] = if args.momentum > 0.0 { &["momentum_buffer"] } else { &[] };
        Ok(SgdState { args: args.clone(), state: State::new(names, params)? })
    }
}

impl Optimizer for SgdState {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn state_names(&self) -> Vec<&'static str> {
        self.state.names()
    }

    fn step(
        &mut self,
        device: &Device,
        params: &mut Params,
        grads: &Grads,
        lr: f32,
        grad_scale: f32,
    ) -> Result<()> {
        self.state.next_step()?;
        let OptimArgs { momentum, weight_decay, decay_all, .. } = self.args;
        assert_eq!(params.0.len(), grads.0.len(), "sgd: gradients of other parameters");
        let mut buffers = self.state.moments.first_mut().map(|moment| {
            assert_eq!(params.0.len(), moment.values.len(), "sgd: other parameters");
            moment.values.iter_mut()
        });
        let tensors = params.0.iter_mut().zip(&grads.0);
        optim::sgd(
            device,
            tensors.map(|(param, grad)| {
                let weight_decay = if param.decay || decay_all { weight_decay } else { 0.0 };
                let (value, low) = param.both_mut();
                SgdTensor {
                    hyper: Sgd { lr: f64::from(lr), momentum, weight_decay, grad_scale },
                    value,
                    low,
                    momentum: buffers.as_mut().and_then(|all| all.next()),
                    grad,
                }
            }),
        )?;
        params.0.iter_mut().for_each(Param::low_is_new);
        Ok(())
    }

    fn state(&self) -> Vec<StateEntry<&Values>> {
        self.state.entries()
    }

    fn load_state(&mut self, state: Vec<StateEntry<Vec<f32>>>) -> Result<()> {
        self.state.load(state)
    }

    fn state_bytes_per_element(&self) -> usize {
        self.state.moments.len() * size_of::<f32>()
    }
}
