//! Linear layers: dense or quantised weight, bias, low-rank adapters.

use super::lora::Lora;
use crate::autograd::{Adjoints, Backward, Cx, Dropout, Mode, NodeId, Saved, Var};
use crate::error::Result;
use crate::kernels::matmul::{Product, factor, gemm, products, weight};
use crate::kernels::rows;
use crate::tensor::{Matrix, Rows, Vector};

/// A linear layer: `y = x wᵀ + bias`, plus what its adapters add.
pub struct Linear {
    /// [out, in].
    pub w: Matrix,
    /// `[out]`.
    pub bias: Option<Vector>,
    /// In the order in which they are added.
    pub loras: Vec<Lora>,
}

impl Linear {
    /// A layer without adapters.
    pub fn new(w: Matrix, bias: Option<Vector>) -> Self {
        Linear { w, bias, loras: Vec::new() }
    }

    /// The adapters that take part in a pass.
    fn active(&self, cx: &Cx<'_, '_>) -> &[Lora] {
        if cx.adapters { &self.loras } else { &[] }
    }

    /// Whether its weight, its bias or an adapter is trained.
    fn is_trained(&self) -> bool {
        self.w.param().is_some()
            || self.bias.as_ref().is_some_and(|b| b.param().is_some())
            || self.loras.iter().any(Lora::is_trained)
    }
}

/// `x wᵀ + bias + adapters`, [m, out].
///
/// # Errors
/// When shapes do not fit or the weight is stored for look-ups only.
pub fn linear<'w>(cx: &mut Cx<'_, 'w>, x: &Var<'w>, layer: &'w Linear) -> Result<Var<'w>> {
    let [y] = linears(cx, x, [layer])?;
    Ok(y)
}

/// [`linear`] as the last step of a part that may run again for its tape alone: it is not computed
/// then, and its rows hold anything.
///
/// # Errors
/// As [`linear`].
pub fn last_linear<'w>(cx: &mut Cx<'_, 'w>, x: &Var<'w>, layer: &'w Linear) -> Result<Var<'w>> {
    if !cx.replaying {
        return linear(cx, x, layer);
    }
    let out = cx.take(x.rows.rows(), layer.w.n)?;
    let loras = layer.active(cx).iter();
    let us = loras.map(|lora| lora.inner(cx, &x.rows)).collect::<Result<_>>()?;
    let node = record(cx, x, layer, us);
    Ok(Var::new(out, node))
}

/// Layers that share their input; at inference their weights are read in one go.
///
/// # Errors
/// As [`linear`].
pub fn linears<'w, const N: usize>(
    cx: &mut Cx<'_, 'w>,
    x: &Var<'w>,
    layers: [&'w Linear; N],
) -> Result<[Var<'w>; N]> {
    let m = x.rows.rows();
    let mut fault = None;
    let outs = layers.map(|layer| cx.take(m, layer.w.n).map_err(|error| fault = Some(error)).ok());
    if let Some(error) = fault {
        return Err(error);
    }
    let mut outs = outs.map(|out| out.expect("every fault was returned"));
    match cx.mode {
        Mode::Serve { exact } => {
            serve(cx, &x.rows, &layers, &mut outs, exact)?;
            Ok(outs.map(Var::fixed))
        }
        Mode::Train(_) => {
            let mut nodes = [None; N];
            for ((node, layer), out) in nodes.iter_mut().zip(layers).zip(&mut outs) {
                *node = train(cx, x, layer, out)?;
            }
            let mut nodes = nodes.into_iter();
            Ok(outs.map(|out| Var::new(out, nodes.next().flatten())))
        }
    }
}

/// A layer's product, to go into `out`.
fn of<'a>(layer: &'a Linear, out: &'a mut Rows) -> Product<'a> {
    Product { w: &layer.w, out: out.floats_mut() }
}

fn serve(
    cx: &mut Cx<'_, '_>,
    x: &Rows,
    layers: &[&Linear],
    outs: &mut [Rows],
    exact: bool,
) -> Result<()> {
    let m = x.rows();
    for (layers, outs) in layers.chunks(3).zip(outs.chunks_mut(3)) {
        let (device, params, scratch) = (cx.device, cx.params, &mut *cx.scratch);
        let x = x.floats();
        match (layers, &mut outs[..]) {
            ([a], [x0]) => {
                let list = [of(a, x0)];
                products(device, scratch, params, x, m, exact, list)?;
            }
            ([a, b], [x0, x1]) => {
                let list = [of(a, x0), of(b, x1)];
                products(device, scratch, params, x, m, exact, list)?;
            }
            ([a, b, c], [x0, x1, x2]) => {
                let list = [of(a, x0), of(b, x1), of(c, x2)];
                products(device, scratch, params, x, m, exact, list)?;
            }
            _ => {}
        }
    }
    for (layer, out) in layers.iter().zip(outs) {
        if let Some(bias) = &layer.bias {
            rows::add_bias_acc(cx.device, out.floats_mut(), bias.floats(cx.params))?;
        }
        for lora in layer.active(cx) {
            lora.serve(cx, out, x, exact)?;
        }
    }
    Ok(())
}

/// Computes one layer into `out` in a training pass and records it.
fn train<'w>(
    cx: &mut Cx<'_, 'w>,
    x: &Var<'w>,
    layer: &'w Linear,
    out: &mut Rows,
) -> Result<Option<NodeId>> {
    let (precision, w) = (cx.precision(), weight(&layer.w, cx.params)?.t());
    gemm(cx.device, cx.scratch, precision, out.floats_mut(), false, 1.0, factor(&x.rows), w)?;
    if let Some(bias) = &layer.bias {
        rows::add_bias_acc(cx.device, out.floats_mut(), bias.floats(cx.params))?;
    }
    let mut us = Vec::new();
    for lora in layer.active(cx) {
        let u = lora.inner(cx, &x.rows)?;
        lora.add(cx, out, &u)?;
        if cx.is_recording() {
            us.push(u);
        }
    }
    Ok(record(cx, x, layer, us))
}

/// Puts a layer on the tape where a derivative passes it.
fn record<'w>(
    cx: &mut Cx<'_, 'w>,
    x: &Var<'w>,
    layer: &'w Linear,
    us: Vec<Rows>,
) -> Option<NodeId> {
    if !cx.is_recording() || !(x.node.is_some() || layer.is_trained()) {
        return None;
    }
    // The input is kept only where a weight that meets it is trained.
    let needs_x = layer.w.param().is_some() || layer.loras.iter().any(Lora::is_trained);
    let kept = needs_x.then(|| x.save());
    cx.push(LinearNode { layer, x: x.node, kept, us, dropout: cx.dropout })
}

struct LinearNode<'w> {
    layer: &'w Linear,
    x: Option<NodeId>,
    kept: Option<Saved<'w>>,
    /// Per adapter, `dropout(x) aᵀ` [m, r].
    us: Vec<Rows>,
    /// The masks of the forward pass.
    dropout: Option<Dropout>,
}

impl<'w> Backward<'w> for LinearNode<'w> {
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        dout: Rows,
    ) -> Result<()> {
        let LinearNode { layer, x: node, kept, us, dropout } = *self;
        let (m, precision) = (dout.rows(), cx.precision());
        if let Some(id) = layer.bias.as_ref().and_then(Vector::param)
            && let Some(grads) = cx.grads.as_deref_mut()
        {
            rows::bias_bwd_acc(cx.device, grads.get_mut(id), dout.floats())?;
        }
        let x = kept.map(|kept| kept.rows(cx)).transpose()?;
        if let (Some(id), Some(x)) = (layer.w.param(), &x)
            && let Some(grads) = cx.grads.as_deref_mut()
        {
            // dw += doutᵀ x
            let dw = grads.get_mut(id);
            gemm(cx.device, cx.scratch, precision, dw, true, 1.0, factor(&dout).t(), factor(x))?;
        }
        if let Some(node) = node {
            // dx += dout w
            let (mut dx, acc) = adjoints.target(cx, node, m, layer.w.k)?;
            let w = weight(&layer.w, cx.params)?;
            gemm(cx.device, cx.scratch, precision, dx.floats_mut(), acc, 1.0, factor(&dout), w)?;
            adjoints.put(node, dx);
        }
        // An adapter that is not trained still passes the derivative of its input on.
        let outer = std::mem::replace(&mut cx.dropout, dropout);
        for (lora, u) in layer.loras.iter().zip(&us) {
            lora.backward(cx, adjoints, &dout, x.as_ref(), u, node)?;
        }
        cx.dropout = outer;
        Ok(())
    }
}
