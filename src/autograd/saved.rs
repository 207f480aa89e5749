//! What a node keeps of an input: the rows, or how to compute them again.
//!
//! A norm's output and the gated activation are as large as what they are made of, which the tape
//! keeps for their own backward passes, and cost little to make. So they are not kept.

use super::cx::Cx;
use crate::error::Result;
use crate::kernels::rows;
use crate::tensor::{Rows, Vector};

/// An input of a node, for its backward pass.
#[derive(Clone)]
pub enum Saved<'w> {
    /// The rows.
    Rows(Rows),
    /// The norm of `x`.
    RmsNorm {
        /// [m, dim].
        x: Rows,
        /// `[dim]`.
        w: &'w Vector,
        /// Epsilon.
        eps: f32,
    },
    /// `silu(gate) * up`.
    SwiGlu {
        /// [m, hidden].
        gate: Rows,
        /// [m, hidden].
        up: Rows,
    },
}

impl Saved<'_> {
    /// The rows: bit for bit those of the forward pass.
    ///
    /// # Errors
    /// Of the device.
    pub fn rows(&self, cx: &mut Cx<'_, '_>) -> Result<Rows> {
        Ok(match self {
            Saved::Rows(rows) => rows.clone(),
            Saved::RmsNorm { x, w, eps } => {
                let [m, dim] = x.dims2();
                let mut out = cx.take(m, dim)?;
                let w = w.floats(cx.params);
                rows::rms_norm(cx.device, out.floats_mut(), x.floats(), w, *eps)?;
                out
            }
            Saved::SwiGlu { gate, up } => {
                let [m, hidden] = gate.dims2();
                let mut out = cx.take(m, hidden)?;
                rows::swiglu(cx.device, out.floats_mut(), gate.floats(), up.floats(), hidden)?;
                out
            }
        })
    }
}
