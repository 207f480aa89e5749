//! Attention: over the packed sequences of a training pass, or over the caches of an inference
//! pass.

use crate::autograd::{Adjoints, Backward, Cx, Var};
use crate::error::Result;
#[cfg(feature = "cuda")]
use crate::kernels::attention::Pass;
use crate::kernels::attention::{AttentionArgs, Cache, append, attention as over_cache};
use crate::kernels::flash::{self, Forward, Shape};
use crate::tensor::Rows;
use std::sync::Arc;

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// A position sees this many positions, itself included; `None`: all before it.
    pub window: Option<usize>,
}

impl Heads {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn shape<'a>(&self, spans: &'a [usize]) -> Shape<'a> {
        Shape {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            scale: self.scale(),
            window: self.window,
            spans,
        }
    }
}

/// Causal attention inside each of the sequences packed one after the other, `spans` long.
/// `q` is [t, n_heads * head_dim], `k` and `v` [t, n_kv_heads * head_dim]. Memory grows linearly
/// with t: the backward pass computes the probabilities again, tile by tile.
///
/// # Errors
/// Of the device.
pub fn attention<'w>(
    cx: &mut Cx<'_, 'w>,
    heads: Heads,
    [q, k, v]: [Var<'w>; 3],
    spans: &Arc<[usize]>,
) -> Result<Var<'w>> {
    let [t, width] = q.rows.dims2();
    let mut out = cx.take(t, width)?;
    // [n_heads, t]; taken with t rows, like all blocks whose size depends on t.
    let mut lse = cx.take_f32(t, heads.n_heads)?;
    let inputs = [&q.rows, &k.rows, &v.rows];
    flash::forward(cx.device, cx.scratch, &heads.shape(spans), &mut out, &mut lse, inputs)?;
    let tracked = [&q, &k, &v].iter().any(|x| x.node.is_some());
    if !tracked || !cx.is_recording() {
        return Ok(Var::fixed(out));
    }
    let spans = Arc::clone(spans);
    let node = cx.push(Attention { heads, q, k, v, out: out.clone(), lse, spans });
    Ok(Var::new(out, node))
}

struct Attention<'w> {
    heads: Heads,
    q: Var<'w>,
    k: Var<'w>,
    v: Var<'w>,
    out: Rows,
    lse: Rows,
    spans: Arc<[usize]>,
}

impl<'w> Backward<'w> for Attention<'w> {
    fn backward(
        self: Box<Self>,
        cx: &mut Cx<'_, 'w>,
        adjoints: &mut Adjoints,
        dout: Rows,
    ) -> Result<()> {
        let Attention { heads, q, k, v, out, lse, spans } = *self;
        let like = |x: &Rows| cx.take_f32(x.rows(), x.width());
        let (mut dq, mut dk, mut dv) = (like(&q.rows)?, like(&k.rows)?, like(&v.rows)?);
        let saved = Forward { q: &q.rows, k: &k.rows, v: &v.rows, out: &out, lse: &lse };
        let outs = [&mut dq, &mut dk, &mut dv];
        flash::backward(cx.device, cx.scratch, &heads.shape(&spans), outs, &dout, &saved)?;
        for (node, d) in [(q.node, dq), (k.node, dk), (v.node, dv)] {
            adjoints.add(cx, node, d)?;
        }
        Ok(())
    }
}

/// Rows of a batch that belong to one sequence, and that sequence's cache of one layer.
pub struct CachedRows<'c> {
    /// Keys and values of the positions before; the rows' own are appended.
    pub kv: &'c mut Cache,
    /// Position of the first row.
    pub first_pos: usize,
    /// How many rows.
    pub n_rows: usize,
}

/// Appends keys and values to the caches and attends over them; `parts` cover the rows of `q`
/// [m, n_heads * head_dim] in order. Not differentiable: what comes in must not be tracked.
///
/// # Errors
/// Of the device.
pub fn attention_cached<'w, 'c>(
    cx: &mut Cx<'_, 'w>,
    heads: Heads,
    [q, k, v]: [Var<'w>; 3],
    parts: impl Iterator<Item = CachedRows<'c>>,
) -> Result<Var<'w>> {
    let [m, width] = q.rows.dims2();
    let kv_width = k.rows.width();
    let mut out = cx.take_f32(m, width)?;
    let mut row = 0;
    let (to, q) = (out.floats_mut().host_f32()?, q.rows.floats().host_f32()?);
    let (k, v) = (k.rows.floats().host_f32()?, v.rows.floats().host_f32()?);
    for CachedRows { kv, first_pos, n_rows } in parts {
        let kv = kv.host_mut()?;
        let new = row * kv_width..(row + n_rows) * kv_width;
        append(cx.device, kv, first_pos, &k[new.clone()], &v[new]);
        let args = AttentionArgs {
            kv,
            n_heads: heads.n_heads,
            scale: heads.scale(),
            window: heads.window,
            first_pos,
        };
        let at = row * width..(row + n_rows) * width;
        over_cache(cx.device, cx.scratch, &args, &mut to[at.clone()], &q[at]);
        row += n_rows;
    }
    assert_eq!(row, m, "parts cover the rows");
    Ok(Var::fixed(out))
}

/// Likewise on a GPU, where `pass` was told before which rows there are and where their caches lie.
///
/// # Errors
/// Of the device.
#[cfg(feature = "cuda")]
pub fn attention_prepared<'w>(
    cx: &mut Cx<'_, 'w>,
    heads: Heads,
    [q, k, v]: [Var<'w>; 3],
    pass: &mut Pass,
    layer: usize,
) -> Result<Var<'w>> {
    let [m, width] = q.rows.dims2();
    let mut out = cx.take_f32(m, width)?;
    let Some(gpu) = cx.device.gpu() else {
        let why = "attention over caches of a GPU".into();
        return Err(crate::Error::Device { wanted: "cuda".into(), why });
    };
    let inputs = [&q.rows, &k.rows, &v.rows];
    pass.attend(gpu, layer, heads.scale(), heads.window, &mut out, inputs)?;
    Ok(Var::fixed(out))
}
