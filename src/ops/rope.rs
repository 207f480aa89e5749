//! Rotary position embedding.

use crate::autograd::{Adjoints, Backward, Cx, NodeId, Var};
use crate::error::Result;
use crate::kernels::rows::{self, Pairing, Rotations};
use crate::tensor::Rows;
use std::sync::Arc;

/// Rotates each head of `x` [m, heads * head_dim] by its row's angles; in the memory of `x` where
/// nobody else holds it.
///
/// # Errors
/// Of the device.
pub fn rope<'w>(
    cx: &mut Cx<'_, 'w>,
    x: Var<'w>,
    head_dim: usize,
    angles: &Arc<Rotations>,
    pairing: Pairing,
) -> Result<Var<'w>> {
    let node = match x.node {
        Some(x) => cx.push(Rope { x, head_dim, angles: Arc::clone(angles), pairing }),
        None => None,
    };
    let rows = rotated(cx, x.rows, head_dim, angles, pairing, false)?;
    Ok(Var::new(rows, node))
}

fn rotated(
    cx: &Cx<'_, '_>,
    mut x: Rows,
    head_dim: usize,
    angles: &Rotations,
    pairing: Pairing,
    inverse: bool,
) -> Result<Rows> {
    let [m, width] = x.dims2();
    if !x.is_unique() {
        let mut copy = cx.pool.take(x.dtype(), m, width)?;
        rows::convert(cx.device, copy.floats_mut(), x.floats(), width)?;
        x = copy;
    }
    rows::rope(cx.device, x.floats_mut(), width, head_dim, angles, pairing, inverse)?;
    Ok(x)
}

struct Rope {
    x: NodeId,
    head_dim: usize,
    angles: Arc<Rotations>,
    pairing: Pairing,
}

impl<'w> Backward<'w> for Rope {
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        dout: Rows,
    ) -> Result<()> {
        // A rotation's derivative is the rotation back.
        let dx = rotated(cx, dout, self.head_dim, &self.angles, self.pairing, true)?;
        adjoints.add(cx, Some(self.x), dx)
    }
}
