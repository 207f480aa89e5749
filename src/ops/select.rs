//! Some rows of a value: after the last attention only rows that are scored or sampled go on.

use crate::autograd::{Adjoints, Backward, Cx, NodeId, Var};
use crate::error::Result;
use crate::kernels::{Floats, FloatsMut};
use crate::tensor::Rows;

/// `x[keep]`, [keep.len(), width]; `keep` is ascending.
///
/// # Panics
/// When an index is outside.
pub fn select<'w>(cx: &mut Cx<'_, 'w>, x: Var<'w>, keep: &[usize]) -> Var<'w> {
    let [m, width] = x.rows.dims2();
    if keep.len() == m {
        return x;
    }
    let mut out = cx.pool.take(x.rows.dtype(), keep.len(), width);
    let at = |row: usize| row * width..(row + 1) * width;
    match (out.floats_mut(), x.rows.floats()) {
        (FloatsMut::F32(out), Floats::F32(x)) => {
            for (to, &from) in keep.iter().enumerate() {
                out[at(to)].copy_from_slice(&x[at(from)]);
            }
        }
        (FloatsMut::Bf16(out), Floats::Bf16(x)) => {
            for (to, &from) in keep.iter().enumerate() {
                out[at(to)].copy_from_slice(&x[at(from)]);
            }
        }
        _ => unreachable!("the result has the type of x"),
    }
    let node = x.node.and_then(|x| cx.push(Select { x, m, keep: keep.to_vec() }));
    Var::new(out, node)
}

struct Select {
    x: NodeId,
    m: usize,
    keep: Vec<usize>,
}

impl<'w> Backward<'w> for Select {
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        dout: Rows,
    ) -> Result<()> {
        let width = dout.width();
        let mut dx = cx.take_f32(self.m, width);
        let (to, from) = (dx.f32_mut(), dout.f32());
        to.fill(0.0);
        for (row, &at) in self.keep.iter().enumerate() {
            to[at * width..(at + 1) * width].copy_from_slice(&from[row * width..(row + 1) * width]);
        }
        adjoints.add(cx, Some(self.x), dx);
        Ok(())
    }
}
