//! Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): keep a part's input only, run the
//! part again in the backward pass.

use super::adjoint::{Adjoints, Backward, sweep};
use super::cx::{Cx, NodeId};
use super::var::Var;
use crate::error::Result;
use crate::tensor::Rows;

/// A part of a forward pass: one value in, one value out, the same whenever it runs.
type Part<'w> = Box<dyn for<'a> Fn(&mut Cx<'a, 'w>, Var<'w>) -> Result<Var<'w>> + 'w>;

/// `part(x)`; of it the tape keeps `x` only. The same bits, forward and backward, as without.
///
/// # Errors
/// Those of the part.
pub fn checkpoint<'w>(cx: &mut Cx<'_, 'w>, x: Var<'w>, part: Part<'w>) -> Result<Var<'w>> {
    let Some(tape) = cx.tape.take() else { return part(cx, x) };
    let input = x.rows.clone();
    let out = part(cx, Var::fixed(x.rows));
    cx.tape = Some(tape);
    let out = out?;
    let node = cx.push(Checkpoint { part, input, x: x.node });
    Ok(Var::new(out.rows, node))
}

struct Checkpoint<'w> {
    part: Part<'w>,
    input: Rows,
    x: Option<NodeId>,
}

impl<'w> Backward<'w> for Checkpoint<'w> {
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        dout: Rows,
    ) -> Result<()> {
        let Checkpoint { part, input, x } = *self;
        // Its own tape, with the input as a leaf where a gradient of it is wanted.
        cx.tape = Some(Vec::new());
        let leaf = x.and_then(|_| cx.leaf());
        cx.replaying = true;
        let out = part(cx, Var::new(input, leaf));
        cx.replaying = false;
        let out = out?;
        let seeds = out.node.map(|node| (node, dout));
        drop(out.rows);
        let mut inner = sweep(cx, seeds.into_iter().collect())?;
        if let Some(dx) = leaf.and_then(|leaf| inner.take(leaf)) {
            adjoints.add(cx, x, dx)?;
        }
        Ok(())
    }
}
