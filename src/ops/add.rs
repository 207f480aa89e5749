//! The sum of two values: the residual connection.

use crate::autograd::{Adjoints, Backward, Cx, NodeId, Var};
use crate::error::Result;
use crate::kernels::rows::{add_acc, convert};
use crate::tensor::Rows;

/// `x + y`, both [m, width]; computed in the memory of one of them where nobody else holds it.
///
/// # Errors
/// Of the device.
pub fn add<'w>(cx: &mut Cx<'_, 'w>, mut x: Var<'w>, mut y: Var<'w>) -> Result<Var<'w>> {
    let (x_node, y_node) = (x.node, y.node);
    x.again = None;
    y.again = None;
    let width = x.rows.width();
    let sum = if y.rows.is_unique() {
        add_acc(cx.device, y.rows.floats_mut(), x.rows.floats(), width)?;
        y.rows
    } else if x.rows.is_unique() {
        add_acc(cx.device, x.rows.floats_mut(), y.rows.floats(), width)?;
        x.rows
    } else {
        let mut sum = cx.take(x.rows.rows(), width)?;
        convert(cx.device, sum.floats_mut(), x.rows.floats(), width)?;
        add_acc(cx.device, sum.floats_mut(), y.rows.floats(), width)?;
        sum
    };
    let tracked = x_node.is_some() || y_node.is_some();
    let node = if tracked { cx.push(Add { x: x_node, y: y_node }) } else { None };
    Ok(Var::new(sum, node))
}

struct Add {
    x: Option<NodeId>,
    y: Option<NodeId>,
}

impl<'w> Backward<'w> for Add {
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        dout: Rows,
    ) -> Result<()> {
        adjoints.add(cx, self.x, dout.clone())?;
        adjoints.add(cx, self.y, dout)
    }
}
