//! What an operation needs besides its inputs.

use super::adjoint::Backward;
use crate::error::Result;
use crate::kernels::matmul::Precision;
use crate::kernels::{Device, Scratch};
use crate::tensor::{DType, Grads, Params, Pool, Rows};

/// How products are computed and activations stored.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// Inference: f32 rows; quantised weights meet int8 activations unless `exact`.
    Serve {
        /// Multiply with f32 activations, unrounded.
        exact: bool,
    },
    /// Training in f32 or bf16.
    Train(Precision),
}

/// Which dropout masks a pass takes. Masks belong to rows of a whole optimiser step, so that its cut
/// into passes changes none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropout {
    /// Chooses the masks of the step.
    pub key: u64,
    /// Rows of the step before this pass.
    pub first_row: u64,
    /// The same, of the rows that go on after the last attention.
    pub first_kept: u64,
}

/// Place of a node on its tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId(pub(super) u32);

/// The context of a forward pass. `'w` is the life of the weights, which nodes of the tape refer
/// to until they have run backward.
pub struct Cx<'a, 'w> {
    /// The device.
    pub device: &'a Device,
    /// Memory for activations.
    pub pool: &'a Pool,
    /// What training changes; empty for inference.
    pub params: &'w Params,
    /// Memory of kernels.
    pub scratch: &'a mut Scratch,
    /// How to compute.
    pub mode: Mode,
    /// Whether adapters take part; without them a model with an adapter is its base.
    pub adapters: bool,
    /// This pass's dropout masks; `None` where nothing is dropped.
    pub dropout: Option<Dropout>,
    /// Whether a part runs again for its tape alone: nobody reads its result.
    pub replaying: bool,
    /// Where gradients of parameters are summed; `None` with the tape off.
    pub grads: Option<&'a mut Grads>,
    /// Nodes in the order they ran; `None` stands for a leaf.
    pub(super) tape: Option<Vec<Option<Box<dyn Backward<'w> + 'w>>>>,
}

impl<'a, 'w> Cx<'a, 'w> {
    /// A context with the tape off.
    pub fn new(
        device: &'a Device,
        pool: &'a Pool,
        params: &'w Params,
        scratch: &'a mut Scratch,
        mode: Mode,
    ) -> Self {
        Cx {
            device,
            pool,
            params,
            scratch,
            mode,
            adapters: true,
            dropout: None,
            replaying: false,
            grads: None,
            tape: None,
        }
    }

    /// Switches the tape on: operations are recorded, and [`super::sweep`] adds to `grads`.
    pub fn record(&mut self, grads: &'a mut Grads) {
        self.grads = Some(grads);
        self.tape = Some(Vec::new());
    }

    /// Whether the tape is on.
    pub fn is_recording(&self) -> bool {
        self.tape.is_some()
    }

    /// Puts a node on the tape; `None` with the tape off.
    pub fn push(&mut self, node: impl Backward<'w> + 'w) -> Option<NodeId> {
        let tape = self.tape.as_mut()?;
        tape.push(Some(Box::new(node)));
        Some(NodeId(tape.len() as u32 - 1))
    }

    /// A place on the tape for a value that comes from outside; its derivative stays in what
    /// [`super::sweep`] returns.
    pub fn leaf(&mut self) -> Option<NodeId> {
        let tape = self.tape.as_mut()?;
        tape.push(None);
        Some(NodeId(tape.len() as u32 - 1))
    }

    /// The element type of activations.
    pub fn dtype(&self) -> DType {
        match self.mode {
            Mode::Train(Precision::Bf16) => DType::Bf16,
            _ => DType::F32,
        }
    }

    /// The precision of training's products.
    pub fn precision(&self) -> Precision {
        match self.mode {
            Mode::Train(precision) => precision,
            Mode::Serve { .. } => Precision::F32,
        }
    }

    /// Memory for activations [rows, width], to be overwritten.
    ///
    /// # Errors
    /// When a GPU has no room.
    pub fn take(&self, rows: usize, width: usize) -> Result<Rows> {
        self.pool.take(self.dtype(), rows, width)
    }

    /// Memory for f32 rows, to be overwritten.
    ///
    /// # Errors
    /// When a GPU has no room.
    pub fn take_f32(&self, rows: usize, width: usize) -> Result<Rows> {
        self.pool.take(DType::F32, rows, width)
    }
}
