//! The head of a reward model: one number a row.

use super::cross_entropy::Given;
use crate::autograd::{Cx, NodeId, Var};
use crate::error::Result;
use crate::kernels::linear::weight;
use crate::kernels::matmul::{Factor, factor, gemm};
use crate::tensor::Matrix;

/// `x headᵀ` of `x` [m, dim] and `head` [1, dim], one number a row; nothing is recorded.
///
/// # Errors
/// When the head is stored for look-ups only.
pub fn score<'w>(cx: &mut Cx<'_, 'w>, x: &Var<'w>, head: &'w Matrix) -> Result<Vec<f32>> {
    let [m, dim] = x.rows.dims2();
    let precision = cx.precision();
    let mut out = cx.take_f32(m, 1)?;
    let (rows, w) =
        (Factor::plain(x.rows.floats(), m, dim), weight(head, cx.params, precision)?.t());
    gemm(cx.device, cx.scratch, precision, out.floats_mut(), false, 1.0, rows, w)?;
    Ok(out.read(&mut vec![])?.to_vec())
}

/// The node through which the derivatives `d` of a loss with respect to [`score`] flow into `x` and
/// `head`; [`crate::autograd::sweep`] is to start from it with 1 [1, 1].
///
/// # Errors
/// As [`score`].
pub fn score_backward<'w>(
    cx: &mut Cx<'_, 'w>,
    x: &Var<'w>,
    head: &'w Matrix,
    d: &[f32],
) -> Result<Option<NodeId>> {
    let [m, dim] = x.rows.dims2();
    assert_eq!(m, d.len(), "a derivative a row");
    let precision = cx.precision();
    let mut dout = cx.take_f32(m, 1)?;
    dout.write(d)?;
    if let (Some(id), Some(grads)) = (head.param(), cx.grads.as_deref_mut()) {
        // dw += dᵀ x
        let dw = grads.get_mut(id);
        let rows = Factor::plain(x.rows.floats(), m, dim);
        gemm(cx.device, cx.scratch, precision, dw, true, 1.0, factor(&dout).t(), rows)?;
    }
    let Some(node) = x.node.filter(|_| cx.is_recording()) else { return Ok(None) };
    let mut dx = cx.take_f32(m, dim)?;
    let w = weight(head, cx.params, precision)?;
    gemm(cx.device, cx.scratch, precision, dx.floats_mut(), false, 1.0, factor(&dout), w)?;
    Ok(cx.push(Given { x: node, dx }))
}
