//! Rows of the embedding table.

use crate::autograd::{Adjoints, Backward, Cx, Var};
use crate::error::Result;
use crate::kernels::{Listed, embedding as kernel, rows};
use crate::tensor::{DType, Matrix, ParamId, Rows};

/// `table[ids]`, [ids, dim].
///
/// # Errors
/// When an id is outside the table.
pub fn embedding<'w>(cx: &mut Cx<'_, 'w>, table: &'w Matrix, ids: Listed<'_>) -> Result<Var<'w>> {
    let n = ids.list.len();
    let mut out = cx.take_f32(n, table.k)?;
    kernel::gather(cx.device, out.floats_mut(), table, cx.params, ids)?;
    if cx.dtype() == DType::Bf16 {
        let wide = out;
        out = cx.take(n, table.k)?;
        rows::convert(cx.device, out.floats_mut(), wide.floats(), table.k)?;
    }
    let node = match table.param() {
        Some(param) if cx.is_recording() => cx.push(Embedding { param, ids: ids.list.to_vec() }),
        _ => None,
    };
    Ok(Var::new(out, node))
}

struct Embedding {
    param: ParamId,
    ids: Vec<u32>,
}

impl<'w> Backward<'w> for Embedding {
    fn backward(self: Box<Self>, cx: &mut Cx<'_, 'w>, _: &mut Adjoints, dout: Rows) -> Result<()> {
        if let Some(grads) = cx.grads.as_deref_mut() {
            let dtable = grads.get_mut(self.param);
            kernel::gather_bwd_acc(cx.device, dtable, dout.width(), &self.ids, dout.floats())?;
        }
        Ok(())
    }
}
