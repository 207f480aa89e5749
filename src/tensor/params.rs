//! What training changes: parameters, and the gradients of a step.

use half::bf16;
use puna_cpu::buffer::Buffer;

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
    pub value: Buffer<f32>,
    /// What products use when training computes in bf16: `value` rounded. `None` in f32.
    pub low: Option<Buffer<bf16>>,
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

/// Gradients, one f32 buffer a parameter, in the parameters' order. Backward passes add to them.
pub struct Grads(pub Vec<Buffer<f32>>);

impl Grads {
    /// Zeros for every parameter.
    pub fn zeros(params: &Params) -> Grads {
        Grads(params.0.iter().map(|p| Buffer::zeroed(p.value.len())).collect())
    }

    /// The gradient of a parameter.
    ///
    /// # Panics
    /// When the id comes from other parameters.
    pub fn get_mut(&mut self, id: ParamId) -> &mut [f32] {
        &mut self.0[id.index()]
    }

    /// Sets all to zero, for the next step.
    pub fn clear(&mut self) {
        for grad in &mut self.0 {
            grad.fill(0.0);
        }
    }
}
