//! Cross-entropy fused with the output head. The logits of a batch never exist whole: a chunk of
//! rows is multiplied, scored, turned into derivatives and multiplied back before the next.

use crate::autograd::{Adjoints, Backward, Cx, NodeId, Var};
use crate::error::Result;
use crate::kernels::linear::{derivative, weight};
use crate::kernels::loss::{SCORES, Targets, cross_entropy as score, logit_bytes};
use crate::kernels::matmul::{Factor, gemm};
use crate::tensor::{Matrix, Rows};

/// Rows of a chunk at least: fewer would make the products with a large head slow.
const LEAST_ROWS: usize = 64;

/// What a batch scored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of the negative log-likelihoods, in nats.
    pub nll: f64,
    /// Rows with a label.
    pub scored: usize,
    /// Rows whose label was the likeliest token.
    pub correct: usize,
}

/// Rows of a chunk, for a vocabulary, whose logits take about so many bytes.
pub fn chunk_rows(logit_bytes: usize, vocab: usize) -> usize {
    (logit_bytes / (4 * vocab.max(1))).max(LEAST_ROWS)
}

/// Scores `x` [m, dim] through `head` [vocab, dim]. With the tape on, the derivative of
/// `scale * nll` flows into `x` and `head`: [`crate::autograd::sweep`] is to start from the
/// returned node with a derivative of 1 [1, 1].
///
/// # Errors
/// When the head is stored for look-ups only.
pub fn cross_entropy<'w>(
    cx: &mut Cx<'_, 'w>,
    x: &Var<'w>,
    head: &'w Matrix,
    labels: &[Option<u32>],
    scale: f32,
) -> Result<(Loss, Option<NodeId>)> {
    let mut loss = Loss::default();
    let factors = cx.is_recording().then(|| vec![scale; labels.len()]);
    let node = scores(cx, x, head, labels, factors.as_deref(), &mut |row, nll, correct| {
        let has_label = labels[row].is_some();
        loss.nll += f64::from(nll);
        loss.scored += usize::from(has_label);
        loss.correct += usize::from(has_label && correct);
    })?;
    Ok((loss, node))
}

/// Logarithms of the probabilities that `x` [m, dim] gives the labels through `head`; nothing is
/// recorded.
///
/// # Errors
/// As [`cross_entropy`].
pub fn log_probs<'w>(
    cx: &mut Cx<'_, 'w>,
    x: &Var<'w>,
    head: &'w Matrix,
    labels: &[u32],
) -> Result<Vec<f32>> {
    let labels: Vec<Option<u32>> = labels.iter().map(|&label| Some(label)).collect();
    let mut out = vec![0.0; labels.len()];
    scores(cx, x, head, &labels, None, &mut |row, nll, _| out[row] = -nll)?;
    Ok(out)
}

/// The node through which the derivatives `d` of a loss with respect to [`log_probs`] flow into `x`
/// and `head`; [`crate::autograd::sweep`] is to start from it with 1 [1, 1]. The logits are computed
/// again: `d` depends on all of them, and they are too large to keep.
///
/// # Errors
/// As [`cross_entropy`].
pub fn log_probs_backward<'w>(
    cx: &mut Cx<'_, 'w>,
    x: &Var<'w>,
    head: &'w Matrix,
    labels: &[u32],
    d: &[f32],
) -> Result<Option<NodeId>> {
    let labels: Vec<Option<u32>> = labels.iter().map(|&label| Some(label)).collect();
    // The kernel differentiates the negative logarithm.
    let factors: Vec<f32> = d.iter().map(|d| -d).collect();
    scores(cx, x, head, &labels, Some(&factors), &mut |_, _, _| ())
}

/// Scores all rows, chunk by chunk: `each(row, nll, whether the label was the likeliest)`. With
/// `factors` and the tape on, the derivatives of `factor * nll` flow.
fn scores<'w>(
    cx: &mut Cx<'_, 'w>,
    x: &Var<'w>,
    head: &'w Matrix,
    labels: &[Option<u32>],
    factors: Option<&[f32]>,
    each: &mut dyn FnMut(usize, f32, bool),
) -> Result<Option<NodeId>> {
    let [m, dim] = x.rows.dims2();
    assert_eq!(m, labels.len(), "a label a row");
    let param = head.param();
    let factors = factors.filter(|_| cx.is_recording());
    let wants_dx = factors.is_some() && x.node.is_some();
    let factors = factors.filter(|_| wants_dx || param.is_some());
    let precision = cx.precision();
    let chunk = chunk_rows(logit_bytes(cx.device), head.n).min(m.max(1));
    let mut dx = wants_dx.then(|| cx.take_f32(m, dim)).transpose()?;
    let mut logits = cx.take_f32(chunk, head.n)?;
    let mut targets = Targets::new(cx.device, labels, factors)?;
    for first in (0..m).step_by(chunk) {
        let rows = first..(first + chunk).min(m);
        let n = rows.len();
        let of_x = rows.start * dim..rows.end * dim;
        let x = || Factor::plain(x.rows.floats().slice(of_x.clone()), n, dim);
        let mut all = logits.floats_mut();
        let w = weight(head, cx.params, precision)?.t();
        let out = all.slice_mut(0..n * head.n);
        gemm(cx.device, cx.scratch, precision, out, false, 1.0, x(), w)?;
        score(cx.device, all.slice_mut(0..n * head.n), &mut targets, rows)?;
        if factors.is_none() {
            continue;
        }
        let rounded = derivative(cx.device, cx.pool, precision, logits.clone())?;
        let dlogits = || Factor::plain(rounded.floats().slice(0..n * head.n), n, head.n);
        if let Some(dx) = &mut dx {
            let mut dx = dx.floats_mut();
            let (dx, w) = (dx.slice_mut(of_x.clone()), weight(head, cx.params, precision)?);
            gemm(cx.device, cx.scratch, precision, dx, false, 1.0, dlogits(), w)?;
        }
        if let (Some(id), Some(grads)) = (param, cx.grads.as_deref_mut()) {
            let dw = grads.get_mut(id);
            gemm(cx.device, cx.scratch, precision, dw, true, 1.0, dlogits().t(), x())?;
        }
    }
    for (row, score) in targets.read(cx.device)?.chunks_exact(SCORES).enumerate() {
        each(row, score[0], score[1] == 1.0);
    }
    Ok(match (x.node, dx) {
        (Some(x), Some(dx)) => cx.push(Given { x, dx }),
        _ => None,
    })
}

/// The end of a tape: a value whose derivative is known already.
pub(super) struct Given {
    pub(super) x: NodeId,
    pub(super) dx: Rows,
}

impl<'w> Backward<'w> for Given {
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        _: Rows,
    ) -> Result<()> {
        adjoints.add(cx, Some(self.x), self.dx)
    }
}
