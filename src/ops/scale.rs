//! A value times a constant.

use crate::autograd::{Adjoints, Backward, Cx, NodeId, Var};
use crate::error::Result;
use crate::kernels::rows;
use crate::tensor::{DType, Rows};

/// `factor * x`, f32 rows.
///
/// # Errors
/// Of the device.
///
/// # Panics
/// When the rows are not f32.
pub fn scale<'w>(cx: &mut Cx<'_, 'w>, x: Var<'w>, factor: f32) -> Result<Var<'w>> {
    let node = x.node.and_then(|x| cx.push(Scale { x, factor }));
    Ok(Var::new(scaled(cx, x.rows, factor)?, node))
}

fn scaled(cx: &Cx<'_, '_>, mut rows: Rows, factor: f32) -> Result<Rows> {
    assert_eq!(rows.dtype(), DType::F32, "scale works on f32 rows");
    if !rows.is_unique() {
        let [m, width] = rows.dims2();
        let mut copy = cx.take_f32(m, width)?;
        rows::convert(cx.device, copy.floats_mut(), rows.floats(), width)?;
        rows = copy;
    }
    rows::scale(cx.device, rows.floats_mut(), factor)?;
    Ok(rows)
}

struct Scale {
    x: NodeId,
    factor: f32,
}

impl<'w> Backward<'w> for Scale {
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        dout: Rows,
    ) -> Result<()> {
        let dx = scaled(cx, dout, self.factor)?;
        adjoints.add(cx, Some(self.x), dx)
    }
}
