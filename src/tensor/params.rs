//! What training changes: parameters, and the gradients of a step.

use super::values::{Halves, Values};
use super::view::FloatsMut;
use crate::error::Result;

/// Index of a parameter in [`Params`] and [`Grads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub u32);

impl ParamId {
    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One trained tensor.
pub struct Param {
    /// The name it is saved under: Hugging Face's for weights, PEFT's for adapters.
    pub name: String,
    /// Sizes, outermost first: [out, in] or `[width]`.
    pub shape: Vec<usize>,
    /// Whether weight decay applies: matrices yes, norms and biases no.
    pub decay: bool,
    /// The values that the optimiser updates.
    pub value: Values,
    /// What products use when training computes in bf16: `value` rounded, and at home where that
    /// is. `None` in f32.
    pub low: Option<Halves>,
}

/// All parameters of a run, in a fixed order.
#[derive(Default)]
pub struct Params(pub Vec<Param>);

impl Params {
    /// Adds a parameter.
    pub fn push(&mut self, param: Param) -> ParamId {
        let id = ParamId(self.0.len() as u32);
        self.0.push(param);
        id
    }

    /// The parameter.
    ///
    /// # Panics
    /// When the id comes from other parameters.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.0[id.index()]
    }

    /// Numbers in all of them.
    pub fn n_elements(&self) -> usize {
        self.0.iter().map(|p| p.value.len()).sum()
    }
}

/// Gradients, f32 numbers for each parameter, in the parameters' order. Backward passes add to
/// them.
pub struct Grads(pub Vec<Values>);

impl Grads {
    /// Zeros for every parameter, each at home where its parameter is.
    ///
    /// # Errors
    /// When a GPU has no room for them.
    pub fn zeros(params: &Params) -> Result<Grads> {
        let zeros = params.0.iter().map(|p| Values::zeros(&p.value.home(), p.value.len()));
        Ok(Grads(zeros.collect::<Result<_>>()?))
    }

    /// The gradient of a parameter.
    ///
    /// # Panics
    /// When the id comes from other parameters.
    pub fn get_mut(&mut self, id: ParamId) -> FloatsMut<'_> {
        self.0[id.index()].floats_mut()
    }

    /// Sets all to zero, for the next step.
    ///
    /// # Errors
    /// When a GPU failed.
    pub fn clear(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(Values::clear)
    }
}
