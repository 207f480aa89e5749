//! Root-mean-square normalisation.

use crate::autograd::{Adjoints, Backward, Cx, NodeId, Saved, Var};
use crate::error::Result;
use crate::kernels::rows;
use crate::tensor::{Rows, Vector};

/// `w * x / sqrt(mean(x²) + eps)` for each row of `x` [m, dim].
///
/// # Errors
/// Of the device.
pub fn rms_norm<'w>(cx: &mut Cx<'_, 'w>, x: &Var<'w>, w: &'w Vector, eps: f32) -> Result<Var<'w>> {
    let [m, dim] = x.rows.dims2();
    let mut out = cx.take(m, dim)?;
    rows::rms_norm(cx.device, out.floats_mut(), x.rows.floats(), w.floats(cx.params), eps)?;
    if !cx.is_recording() {
        return Ok(Var::fixed(out));
    }
    let tracked = x.node.is_some() || w.param().is_some();
    let saved = x.rows.clone();
    let node = if tracked { cx.push(RmsNorm { x: saved, node: x.node, w, eps }) } else { None };
    Ok(Var::with_recipe(out, node, Saved::RmsNorm { x: x.rows.clone(), w, eps }))
}

struct RmsNorm<'w> {
    x: Rows,
    node: Option<NodeId>,
    w: &'w Vector,
    eps: f32,
}

impl<'w> Backward<'w> for RmsNorm<'w> {
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        dout: Rows,
    ) -> Result<()> {
        let [m, dim] = self.x.dims2();
        let (mut dx, acc) = match self.node {
            Some(node) => adjoints.target(cx, node, m, dim)?,
            None => (cx.take_f32(m, dim)?, false),
        };
        let grads = cx.grads.as_deref_mut();
        let dw = self.w.param().zip(grads).map(|(id, grads)| grads.get_mut(id));
        let (x, w) = (self.x.floats(), self.w.floats(cx.params));
        let out = dx.floats_mut();
        rows::rms_norm_bwd(cx.device, cx.scratch, out, acc, dw, dout.floats(), x, w, self.eps)?;
        if let Some(node) = self.node {
            adjoints.put(node, dx);
        }
        Ok(())
    }
}
