//! The way back: derivatives of the loss with respect to the values of a tape.

use super::cx::{Cx, NodeId};
use crate::error::Result;
use crate::kernels::rows;
use crate::tensor::{DType, Rows};

/// The backward pass of an operation, made of what its forward pass kept.
pub trait Backward<'w> {
    /// Takes the derivative with respect to the operation's result, `dout`, and hands derivatives
    /// with respect to its tracked inputs to `adjoints`; adds those of its parameters to
    /// `cx.grads`.
    ///
    /// # Errors
    /// Of running a checkpointed part again.
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        dout: Rows,
    ) -> Result<()>;
}

/// Derivatives with respect to the values of one tape, f32, as far as they are known.
pub struct Adjoints(Vec<Option<Rows>>);

impl Adjoints {
    /// Adds to the derivative of a node's value. Does nothing for an untracked value.
    ///
    /// # Errors
    /// Of the device.
    pub fn add(&mut self, cx: &Cx<'_, '_>, node: Option<NodeId>, d: Rows) -> Result<()> {
        let Some(NodeId(at)) = node else { return Ok(()) };
        let slot = &mut self.0[at as usize];
        let Some(known) = slot.take() else {
            *slot = Some(d);
            return Ok(());
        };
        let mut sum = unique(cx, known)?;
        rows::add_acc(cx.device, sum.floats_mut(), d.floats(), d.width())?;
        *slot = Some(sum);
        Ok(())
    }

    /// The derivative of a node's value, for a kernel that adds to it or overwrites it: memory
    /// [m, width], and whether it holds something to be added to.
    ///
    /// # Errors
    /// Of the device.
    pub fn target(
        &mut self,
        cx: &Cx<'_, '_>,
        node: NodeId,
        m: usize,
        width: usize,
    ) -> Result<(Rows, bool)> {
        Ok(match self.0[node.0 as usize].take() {
            Some(known) => (unique(cx, known)?, true),
            None => (cx.take_f32(m, width)?, false),
        })
    }

    /// Puts back what [`Adjoints::target`] gave.
    pub fn put(&mut self, node: NodeId, d: Rows) {
        self.0[node.0 as usize] = Some(d);
    }

    /// The derivative with respect to a node's value.
    pub(super) fn take(&mut self, node: NodeId) -> Option<Rows> {
        self.0[node.0 as usize].take()
    }
}

/// The rows, or a copy where others hold them too.
fn unique(cx: &Cx<'_, '_>, mut rows: Rows) -> Result<Rows> {
    if rows.is_unique() && rows.dtype() == DType::F32 {
        return Ok(rows);
    }
    let [m, width] = rows.dims2();
    let mut copy = cx.take_f32(m, width)?;
    rows::convert(cx.device, copy.floats_mut(), rows.floats(), width)?;
    Ok(copy)
}

/// Runs the tape of `cx` backward from `seeds` (nodes and the loss's derivatives with respect to
/// their values), last node first, and leaves the tape off. Returns the derivatives of leaves.
///
/// # Errors
/// Of running a checkpointed part again, and of the device.
pub fn sweep(cx: &mut Cx<'_, '_>, seeds: Vec<(NodeId, Rows)>) -> Result<Adjoints> {
    let nodes = cx.tape.take().unwrap_or_default();
    let mut adjoints = Adjoints((0..nodes.len()).map(|_| None).collect());
    for (node, d) in seeds {
        adjoints.add(cx, Some(node), d)?;
    }
    for (at, node) in nodes.into_iter().enumerate().rev() {
        let Some(node) = node else { continue };
        // A node whose value does not reach the loss has nothing to hand on.
        if let Some(dout) = adjoints.take(NodeId(at as u32)) {
            node.backward(cx, &mut adjoints, dout)?;
        }
    }
    Ok(adjoints)
}
