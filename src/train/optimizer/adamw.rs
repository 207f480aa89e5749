//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with the formulae of PyTorch: the decay
//! takes a part of the weights first and is no part of the moments.

use super::state::State;
use super::{OptimArgs, Optimizer, StateEntry};
use crate::error::Result;
use crate::kernels::Device;
use crate::kernels::optim::{self, AdamW, AdamWTensor};
use crate::tensor::{Grads, Param, Params, Values};

/// AdamW's settings and its two moments for each weight.
pub struct AdamWState {
    args: OptimArgs,
    state: State,
}

impl AdamWState {
    /// Before its first step.
    ///
    /// # Errors
    /// When a GPU has no room for the moments.
    pub fn new(args: &OptimArgs, params: &Params) -> Result<Self> {
        let state = State::new(&["exp_avg", "exp_avg_sq"], params)?;
        Ok(AdamWState { args: args.clone(), state })
    }
}

impl Optimizer for AdamWState {
    fn name(&self) -> &'static str {
        "adamw"
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
        let t = f64::from(self.state.next_step()?);
        let OptimArgs { beta1, beta2, eps, weight_decay, decay_all, .. } = self.args;
        let [first, second] = &mut self.state.moments[..] else {
            unreachable!("`new` made two moments");
        };
        assert_eq!(params.0.len(), first.values.len(), "adamw: other parameters");
        assert_eq!(params.0.len(), grads.0.len(), "adamw: gradients of other parameters");
        let moments = first.values.iter_mut().zip(&mut second.values);
        let tensors = params.0.iter_mut().zip(&grads.0).zip(moments);
        optim::adamw(
            device,
            tensors.map(|((param, grad), (m, v))| {
                let weight_decay = if param.decay || decay_all { weight_decay } else { 0.0 };
                let (value, low) = param.both_mut();
                AdamWTensor {
                    hyper: AdamW {
                        lr: f64::from(lr),
                        beta1,
                        beta2,
                        eps,
                        weight_decay,
                        bias_correction1: 1.0 - beta1.powf(t),
                        bias_correction2: 1.0 - beta2.powf(t),
                        grad_scale,
                    },
                    value,
                    low,
                    m,
                    v,
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
        2 * size_of::<f32>()
    }
}
