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
    /// `value` rounded to bf16, beside it, for products on a GPU that would round it every time;
    /// `None` where products do that by themselves, or compute in f32.
    pub low: Option<Low>,
}

/// A parameter's bf16 copy, and of which content.
#[derive(Debug)]
pub struct Low {
    halves: Halves,
    /// [`Values::version`] of what was rounded.
    of: u64,
}

impl Low {
    /// Room for a copy, which is none yet.
    ///
    /// # Errors
    /// When a GPU has no room.
    pub fn new(value: &Values) -> Result<Low> {
        Ok(Low { halves: Halves::zeros(&value.home(), value.len())?, of: u64::MAX })
    }
}

impl Param {
    /// The value rounded to bf16, unless there is no such copy or the value has changed since.
    pub fn low(&self) -> Option<&Halves> {
        let low = self.low.as_ref()?;
        (low.of == self.value.version()).then_some(&low.halves)
    }

    /// The value, and where its roundings go: for a kernel that writes both, after which it says
    /// [`Param::low_is_new`].
    pub fn both_mut(&mut self) -> (&mut Values, Option<&mut Halves>) {
        (&mut self.value, self.low.as_mut().map(|low| &mut low.halves))
    }

    /// The copy, if there is one, was just made of the value as it is.
    pub fn low_is_new(&mut self) {
        if let Some(low) = &mut self.low {
            low.of = self.value.version();
        }
    }
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

    /// The gradients of two parameters.
    ///
    /// # Panics
    /// When an id comes from other parameters, or both are one.
    pub fn pair_mut(&mut self, [a, b]: [ParamId; 2]) -> [FloatsMut<'_>; 2] {
        let both = self.0.get_disjoint_mut([a.index(), b.index()]);
        both.expect("ids of two of these parameters").map(Values::floats_mut)
    }

    /// Sets all to zero, for the next step.
    ///
    /// # Errors
    /// When a GPU failed.
    pub fn clear(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(Values::clear)
    }
}
