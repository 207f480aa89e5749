//! The gated activation of the feed-forward.

use crate::autograd::{Adjoints, Backward, Cx, NodeId, Saved, Var};
use crate::error::Result;
use crate::kernels::linear::derivative_dtype;
use crate::kernels::rows;
use crate::tensor::Rows;

/// `silu(gate) * up`, all [m, hidden].
///
/// # Errors
/// Of the device.
pub fn swiglu<'w>(cx: &mut Cx<'_, 'w>, gate: Var<'w>, up: Var<'w>) -> Result<Var<'w>> {
    let [m, hidden] = gate.rows.dims2();
    let mut out = cx.take(m, hidden)?;
    rows::swiglu(cx.device, out.floats_mut(), gate.rows.floats(), up.rows.floats(), hidden)?;
    if !cx.is_recording() {
        return Ok(Var::fixed(out));
    }
    let again = Saved::SwiGlu { gate: gate.rows.clone(), up: up.rows.clone() };
    let tracked = gate.node.is_some() || up.node.is_some();
    let node = if tracked { cx.push(SwiGlu { gate, up }) } else { None };
    Ok(Var::with_recipe(out, node, again))
}

struct SwiGlu<'w> {
    gate: Var<'w>,
    up: Var<'w>,
}

impl<'w> Backward<'w> for SwiGlu<'w> {
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        dout: Rows,
    ) -> Result<()> {
        let SwiGlu { gate, up } = *self;
        let [m, hidden] = gate.rows.dims2();
        // Only the layers of gate and up read them.
        let dtype = derivative_dtype(cx.device, cx.precision());
        let take = || cx.pool.take(dtype, m, hidden);
        let (mut dgate, mut dup) = (take()?, take()?);
        let outs = [dgate.floats_mut(), dup.floats_mut()];
        let (g, u) = (gate.rows.floats(), up.rows.floats());
        rows::swiglu_bwd(cx.device, outs, dout.floats(), g, u, hidden)?;
        let nodes: [Option<NodeId>; 2] = [gate.node, up.node];
        for (node, d) in nodes.into_iter().zip([dgate, dup]) {
            adjoints.add(cx, node, d)?;
        }
        Ok(())
    }
}
