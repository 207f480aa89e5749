//! Linear layers: dense or quantised weight, bias, low-rank adapters.

use super::add::add;
use super::lora::Lora;
use super::swiglu::swiglu;
use crate::autograd::{Adjoints, Backward, Cx, Dropout, Mode, NodeId, Saved, Var};
use crate::error::Result;
use crate::kernels::linear::{self, Gradients, Served, Training, weight};
use crate::kernels::matmul::{factor, gemm};
use crate::kernels::rows;
use crate::tensor::{DType, Matrix, Rows, Vector};

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

/// [`linear()`] as the last step of a part that may run again for its tape alone: it is not computed
/// then, and its rows hold anything.
///
/// # Errors
/// As [`linear()`].
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
/// As [`linear()`].
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

/// `x` plus the layer's result for `input`: the residual connection around it. While serving, in one
/// kernel where the device has one and nobody else holds `x`.
///
/// # Errors
/// As [`linear()`].
pub fn linear_add<'w>(
    cx: &mut Cx<'_, 'w>,
    x: Var<'w>,
    input: Var<'w>,
    layer: &'w Linear,
) -> Result<Var<'w>> {
    plus(cx, x, input, layer, linear)
}

/// [`linear_add`] with [`last_linear`].
///
/// # Errors
/// As [`linear()`].
pub fn last_linear_add<'w>(
    cx: &mut Cx<'_, 'w>,
    x: Var<'w>,
    input: Var<'w>,
    layer: &'w Linear,
) -> Result<Var<'w>> {
    plus(cx, x, input, layer, last_linear)
}

/// `x` plus what `of` makes of `input`.
fn plus<'w, 'c>(
    cx: &mut Cx<'c, 'w>,
    mut x: Var<'w>,
    input: Var<'w>,
    layer: &'w Linear,
    of: fn(&mut Cx<'c, 'w>, &Var<'w>, &'w Linear) -> Result<Var<'w>>,
) -> Result<Var<'w>> {
    if added(cx, &mut x, &input, layer)? {
        return Ok(x);
    }
    let out = of(cx, &input, layer)?;
    drop(input);
    add(cx, x, out)
}

/// Adds to `x` while serving, if that can be had; else does nothing.
fn added<'w>(
    cx: &mut Cx<'_, 'w>,
    x: &mut Var<'w>,
    input: &Var<'w>,
    layer: &'w Linear,
) -> Result<bool> {
    let Mode::Serve { exact } = cx.mode else { return Ok(false) };
    let can = layer.active(cx).is_empty()
        && x.rows.dtype() == DType::F32
        && x.rows.is_unique()
        && linear::adds(cx.device, cx.params, &layer.w)?;
    if can {
        let bias = layer.bias.as_ref().map(|bias| bias.floats(cx.params));
        let out = x.rows.floats_mut();
        let one = Served { w: &layer.w, bias, adapter: None, out, acc: true };
        let (rows, m) = (input.rows.floats(), input.rows.rows());
        linear::serve(cx.device, cx.scratch, cx.params, rows, m, exact, [one])?;
    }
    Ok(can)
}

/// `silu(gate x) * (up x)`, [m, hidden]: while serving in one kernel where the device has one for
/// these weights, which rounds neither product.
///
/// # Errors
/// As [`linear()`].
pub fn gated<'w>(cx: &mut Cx<'_, 'w>, x: Var<'w>, [gate, up]: [&'w Linear; 2]) -> Result<Var<'w>> {
    if let Mode::Serve { exact } = cx.mode {
        let plain = |layer: &Linear| layer.bias.is_none() && layer.active(cx).is_empty();
        let weights = [&gate.w, &up.w];
        let m = x.rows.rows();
        if plain(gate) && plain(up) && linear::gates(cx.device, cx.params, exact, m, weights)? {
            let mut out = cx.take(m, gate.w.n)?;
            let (to, rows) = (out.floats_mut(), x.rows.floats());
            linear::gated(cx.device, cx.params, to, rows, m, weights)?;
            return Ok(Var::fixed(out));
        }
    }
    let [gate, up] = linears(cx, &x, [gate, up])?;
    drop(x);
    swiglu(cx, gate, up)
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
        // The first adapter of a layer, if its product takes it along.
        let mut adapters = [None; 3];
        for (adapter, layer) in adapters.iter_mut().zip(layers) {
            let first = layer.active(cx).first().map(Lora::adapter);
            if let Some(first) = first
                && linear::takes_adapter(cx.device, cx.params, exact, &layer.w, &first)?
            {
                *adapter = Some(first);
            }
        }
        let (device, params, scratch) = (cx.device, cx.params, &mut *cx.scratch);
        let rows = x.floats();
        let of = |at: usize, out| {
            let Linear { w, bias, .. } = layers[at];
            let bias = bias.as_ref().map(|bias| bias.floats(params));
            Served { w, bias, adapter: adapters[at], out, acc: false }
        };
        match &mut outs[..] {
            [a] => {
                let list = [of(0, a.floats_mut())];
                linear::serve(device, scratch, params, rows, m, exact, list)?;
            }
            [a, b] => {
                let list = [of(0, a.floats_mut()), of(1, b.floats_mut())];
                linear::serve(device, scratch, params, rows, m, exact, list)?;
            }
            [a, b, c] => {
                let list = [of(0, a.floats_mut()), of(1, b.floats_mut()), of(2, c.floats_mut())];
                linear::serve(device, scratch, params, rows, m, exact, list)?;
            }
            _ => {}
        }
        for ((layer, out), adapter) in layers.iter().zip(outs).zip(adapters) {
            for lora in &layer.active(cx)[usize::from(adapter.is_some())..] {
                lora.serve(cx, out, x, exact)?;
            }
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
    let (precision, loras) = (cx.precision(), layer.active(cx));
    // An adapter that drops inputs sees other rows than the weight.
    let first = loras.first().filter(|lora| !lora.drops(cx));
    let mut us = Vec::new();
    if let Some(lora) = first {
        us.push(cx.take_f32(x.rows.rows(), lora.a.n)?);
    }
    let (device, params) = (cx.device, cx.params);
    let mut with = Training { device, scratch: cx.scratch, params, precision };
    let bias = layer.bias.as_ref().map(|bias| bias.floats(params));
    let adapter = first.map(Lora::adapter).zip(us.first_mut());
    linear::forward(&mut with, out.floats_mut(), &x.rows, &layer.w, bias, adapter)?;
    for lora in &loras[us.len()..] {
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
        let precision = cx.precision();
        if let Some(id) = layer.bias.as_ref().and_then(Vector::param)
            && let Some(grads) = cx.grads.as_deref_mut()
        {
            rows::bias_bwd_acc(cx.device, grads.get_mut(id), dout.floats())?;
        }
        let x = kept.map(|kept| kept.rows(cx)).transpose()?;
        let dout = linear::derivative(cx.device, cx.pool, precision, dout)?;
        if let (Some(id), Some(x)) = (layer.w.param(), &x)
            && let Some(grads) = cx.grads.as_deref_mut()
        {
            // dw += doutᵀ x
            let dw = grads.get_mut(id);
            gemm(cx.device, cx.scratch, precision, dw, true, 1.0, factor(&dout).t(), factor(x))?;
        }
        let outer = std::mem::replace(&mut cx.dropout, dropout);
        let done = backward(cx, adjoints, layer, &dout, x.as_ref(), &us, node);
        cx.dropout = outer;
        done
    }
}

/// The derivatives of a layer's input and of its adapters.
fn backward(
    cx: &mut Cx<'_, '_>,
    adjoints: &mut Adjoints,
    layer: &Linear,
    dout: &Rows,
    x: Option<&Rows>,
    us: &[Rows],
    node: Option<NodeId>,
) -> Result<()> {
    let (m, precision, k) = (dout.rows(), cx.precision(), layer.w.k);
    if let ([lora], [u], Some(x)) = (&layer.loras[..], us, x)
        && let Some(ids) = lora.params()
        && !lora.drops(cx)
        && cx.grads.is_some()
    {
        let mut dx = node.map(|node| adjoints.target(cx, node, m, k)).transpose()?;
        let mut du = lora.inner_derivative(cx, m)?;
        if let Some(grads) = cx.grads.as_deref_mut() {
            let [da, db] = grads.pair_mut(ids);
            let dx = dx.as_mut().map(|(dx, acc)| (dx.floats_mut(), *acc));
            let (device, params) = (cx.device, cx.params);
            let mut with = Training { device, scratch: cx.scratch, params, precision };
            let grads = Gradients { da, db, dx };
            let of = (&layer.w, lora.adapter());
            linear::backward(&mut with, grads, &mut du, dout, [x, u], of)?;
        }
        if let (Some(node), Some((dx, _))) = (node, dx) {
            adjoints.put(node, dx);
        }
        return Ok(());
    }
    if let Some(node) = node {
        // dx += dout w
        let (mut dx, acc) = adjoints.target(cx, node, m, k)?;
        let w = weight(&layer.w, cx.params, precision)?;
        gemm(cx.device, cx.scratch, precision, dx.floats_mut(), acc, 1.0, factor(dout), w)?;
        adjoints.put(node, dx);
    }
    // An adapter that is not trained still passes the derivative of its input on.
    for (lora, u) in layer.loras.iter().zip(us) {
        lora.backward(cx, adjoints, dout, x, u, node)?;
    }
    Ok(())
}
