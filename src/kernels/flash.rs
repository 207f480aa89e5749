//! Attention inside packed sequences, forward and backward: what training uses.

use super::{Device, Scratch};
use crate::error::Result;
use crate::tensor::Rows;

#[cfg(feature = "cuda")]
use crate::cuda;
#[cfg(feature = "cuda")]
use crate::tensor::DType;

pub use puna_cpu::flash::Shape;

/// How a GPU cuts the rows of a pass into blocks, the same for each of its layers, forward and
/// backward: kept until a pass of another shape comes.
#[cfg(feature = "cuda")]
pub(super) struct Planned {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    scale: f32,
    window: Option<usize>,
    spans: Vec<usize>,
    as_bf16: bool,
    plan: cuda::flash::Plan,
}

#[cfg(feature = "cuda")]
impl Planned {
    fn is_of(&self, shape: &Shape<'_>, as_bf16: bool) -> bool {
        let &Shape { n_heads, n_kv_heads, head_dim, scale, window, spans } = shape;
        let heads = (self.n_heads, self.n_kv_heads, self.head_dim, self.window, self.as_bf16);
        heads == (n_heads, n_kv_heads, head_dim, window, as_bf16)
            && self.scale.to_bits() == scale.to_bits()
            && self.spans == spans
    }

    /// The plan for this shape: `kept`, or a new one in its place.
    fn find<'a>(
        kept: &'a mut Option<Planned>,
        gpu: &cuda::Gpu,
        shape: &Shape<'_>,
        as_bf16: bool,
    ) -> Result<&'a cuda::flash::Plan> {
        if !kept.as_ref().is_some_and(|kept| kept.is_of(shape, as_bf16)) {
            let &Shape { n_heads, n_kv_heads, head_dim, scale, window, spans } = shape;
            let plan = cuda::flash::Plan::new(gpu, shape, as_bf16)?;
            let spans = spans.to_vec();
            *kept = Some(Planned {
                n_heads,
                n_kv_heads,
                head_dim,
                scale,
                window,
                spans,
                as_bf16,
                plan,
            });
        }
        Ok(&kept.as_ref().expect("put there just before").plan)
    }
}

/// Causal attention of every row over its own sequence. `out` and `q` are
/// [t, n_heads * head_dim], `k` and `v` [t, n_kv_heads * head_dim], `lse` [n_heads, t].
///
/// # Errors
/// Operands of another device, or one that fails.
pub fn forward(
    device: &Device,
    scratch: &mut Scratch,
    shape: &Shape<'_>,
    out: &mut Rows,
    lse: &mut Rows,
    [q, k, v]: [&Rows; 3],
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let as_bf16 = q.dtype() == DType::Bf16;
        let plan = Planned::find(&mut scratch.flash_plan, gpu, shape, as_bf16)?;
        let (out, lse) = (out.floats_mut().cuda()?, lse.floats_mut().cuda_f32()?);
        let inputs = [q.floats().cuda()?, k.floats().cuda()?, v.floats().cuda()?];
        return cuda::flash::forward(gpu, plan, out, lse, inputs);
    }
    let cpu = &device.cpu;
    puna_cpu::flash::forward(
        cpu.isa,
        &cpu.team,
        shape,
        out.floats_mut().host()?,
        lse.f32_mut(),
        q.floats().host()?,
        k.floats().host()?,
        v.floats().host()?,
        &mut scratch.flash,
    );
    Ok(())
}

/// What the backward pass of attention reads.
pub struct Forward<'a> {
    /// Queries.
    pub q: &'a Rows,
    /// Keys.
    pub k: &'a Rows,
    /// Values.
    pub v: &'a Rows,
    /// The result.
    pub out: &'a Rows,
    /// Logarithms of the sums of exponentials.
    pub lse: &'a Rows,
}

/// Gradients of queries, keys and values; overwrites.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    device: &Device,
    scratch: &mut Scratch,
    shape: &Shape<'_>,
    [dq, dk, dv]: [&mut Rows; 3],
    dout: &Rows,
    saved: &Forward<'_>,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let as_bf16 = saved.q.dtype() == DType::Bf16;
        let plan = Planned::find(&mut scratch.flash_plan, gpu, shape, as_bf16)?;
        let outs =
            [dq.floats_mut().cuda_f32()?, dk.floats_mut().cuda_f32()?, dv.floats_mut().cuda_f32()?];
        let saved = cuda::flash::Saved {
            q: saved.q.floats().cuda()?,
            k: saved.k.floats().cuda()?,
            v: saved.v.floats().cuda()?,
            out: saved.out.floats().cuda()?,
            lse: saved.lse.floats().cuda_f32()?,
        };
        return cuda::flash::backward(gpu, plan, outs, dout.floats().cuda()?, saved);
    }
    let cpu = &device.cpu;
    puna_cpu::flash::backward(
        cpu.isa,
        &cpu.team,
        shape,
        dq.floats_mut().host()?,
        dk.floats_mut().host()?,
        dv.floats_mut().host()?,
        dout.floats().host()?,
        saved.q.floats().host()?,
        saved.k.floats().host()?,
        saved.v.floats().host()?,
        saved.out.floats().host()?,
        saved.lse.f32(),
        &mut scratch.flash,
    );
    Ok(())
}
