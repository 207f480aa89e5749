//! Some rows of a value: after the last attention only rows that are scored or sampled go on.

use crate::autograd::{Adjoints, Backward, Cx, NodeId, Var};
use crate::error::Result;
use crate::kernels::rows::{self, Selection};
use crate::tensor::Rows;
use std::sync::Arc;

/// `x[keep]`, [keep.len(), width].
///
/// # Errors
/// Of the device.
///
/// # Panics
/// When an index is outside.
pub fn select<'w>(cx: &mut Cx<'_, 'w>, x: Var<'w>, keep: &Arc<Selection>) -> Result<Var<'w>> {
    let [m, width] = x.rows.dims2();
    if keep.len() == m {
        return Ok(x);
    }
    let mut out = cx.pool.take(x.rows.dtype(), keep.len(), width)?;
    rows::select(cx.device, out.floats_mut(), x.rows.floats(), keep, width)?;
    let node = x.node.and_then(|x| cx.push(Select { x, m, keep: Arc::clone(keep) }));
    Ok(Var::new(out, node))
}

struct Select {
    x: NodeId,
    m: usize,
    keep: Arc<Selection>,
}

impl<'w> Backward<'w> for Select {
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        dout: Rows,
    ) -> Result<()> {
        let width = dout.width();
        let mut dx = cx.take_f32(self.m, width)?;
        rows::select_bwd(cx.device, dx.floats_mut(), dout.floats(), &self.keep, width)?;
        adjoints.add(cx, Some(self.x), dx)
    }
}
