//! Linear layers: the product with a weight, and with it bias, adapter (Hu et al. 2021,
//! arXiv 2106.09685), residual and gate. On a GPU what belongs together is one kernel where the
//! weights are stored as that kernel takes them; everywhere else it is one product or row-wise
//! kernel after the other.
//!
//! Which way it is depends on how weights are stored, never on the number of rows: a row has the
//! same bits in any company.

use super::matmul::{self, Factor, Precision, Product, factor, gemm};
use super::{Device, Floats, FloatsMut, Scratch, rows};
use crate::error::Result;
use crate::tensor::{DType, Matrix, Params, Pool, Rows};

#[cfg(feature = "cuda")]
use crate::cuda::lora::Weight;
#[cfg(feature = "cuda")]
use crate::cuda::matmul::{FEW_ROWS, Factor as CudaFactor, Kernel, Source};
#[cfg(feature = "cuda")]
use crate::cuda::{self, DeviceBuffer, Gpu};
#[cfg(feature = "cuda")]
use half::bf16;

/// A low-rank addition to a layer.
#[derive(Clone, Copy)]
pub struct Adapter<'a> {
    /// [r, in].
    pub a: &'a Matrix,
    /// [out, r].
    pub b: &'a Matrix,
    /// Factor of what it adds.
    pub scale: f32,
}

/// What a training pass multiplies with, and how.
pub struct Training<'a> {
    /// Where.
    pub device: &'a Device,
    /// Memory of kernels.
    pub scratch: &'a mut Scratch,
    /// Of the same model as the weights.
    pub params: &'a Params,
    /// Of the products.
    pub precision: Precision,
}

/// A weight [n, k] as a factor of training's products: of a parameter the bf16 copy, where there is
/// one and products would round the value anyway, with the same bits.
///
/// # Errors
/// When the matrix is stored for look-ups only.
pub fn weight<'a>(w: &'a Matrix, params: &'a Params, precision: Precision) -> Result<Factor<'a>> {
    if let (Precision::Bf16, Some(id)) = (precision, w.param())
        && let Some(low) = params.get(id).low()
    {
        return Ok(Factor::plain(low.floats(), w.n, w.k));
    }
    matmul::weight(w, params)
}

/// Makes the bf16 copies of parameters anew that are older than their values: of those that something
/// else than an optimiser's step has changed.
///
/// # Errors
/// Of the device.
pub fn renew_low(device: &Device, params: &mut Params) -> Result<()> {
    for param in &mut params.0 {
        if param.low.is_none() || param.low().is_some() {
            continue;
        }
        let (value, low) = param.both_mut();
        if let Some(low) = low {
            rows::convert(device, low.floats_mut(), value.floats(), value.len())?;
        }
        param.low_is_new();
    }
    Ok(())
}

/// The element type of derivatives that nothing but products reads: what these round them to, on a
/// GPU, where numbers of two bytes reach the tensor cores without passing through registers.
pub fn derivative_dtype(device: &Device, precision: Precision) -> DType {
    #[cfg(feature = "cuda")]
    if device.gpu().is_some() && precision == Precision::Bf16 {
        return DType::Bf16;
    }
    let _ = (device, precision);
    DType::F32
}

/// The derivative of a layer's result as its products are to read it: rounded once for all of them
/// where [`derivative_dtype`] says so, with the bits that each would round to; else as it is.
///
/// # Errors
/// Of the device.
pub fn derivative(device: &Device, pool: &Pool, precision: Precision, dout: Rows) -> Result<Rows> {
    let dtype = derivative_dtype(device, precision);
    if dtype == DType::F32 || dout.dtype() == dtype {
        return Ok(dout);
    }
    let [m, n] = dout.dims2();
    let mut out = pool.take(dtype, m, n)?;
    rows::convert(device, out.floats_mut(), dout.floats(), n)?;
    Ok(out)
}

/// `y = x wᵀ + bias`, and with an adapter `u = x aᵀ` [m, r], f32, and `y += scale u bᵀ`; overwrites.
/// `x` is [m, in] as the adapter sees it.
///
/// # Errors
/// When a matrix is stored for look-ups only; operands of another device, or one that fails.
pub fn forward(
    with: &mut Training<'_>,
    mut y: FloatsMut<'_>,
    x: &Rows,
    w: &Matrix,
    bias: Option<Floats<'_>>,
    adapter: Option<(Adapter<'_>, &mut Rows)>,
) -> Result<()> {
    let Training { device, params, precision, .. } = *with;
    let scratch = &mut *with.scratch;
    let w = weight(w, params, precision)?;
    #[cfg(feature = "cuda")]
    if let (Some(gpu), Some(w), Factor::Cuda(x)) = (device.gpu(), on_cuda(w), factor(x)) {
        let (precision, bias) = (cuda_precision(precision), bias.map(Floats::cuda).transpose()?);
        let Some((adapter, u)) = adapter else {
            return w.product(gpu, precision, y.cuda()?, x, bias);
        };
        if let Some([a, b]) = halves(&adapter, params, with.precision)? {
            let scale = adapter.scale;
            let layer = cuda::lora::Layer { w, bias, a, b, scale, precision };
            let u = u.floats_mut().cuda_f32()?;
            return cuda::lora::forward(gpu, y.cuda()?, u, x, &layer);
        }
        return Err(matmul::elsewhere("cuda"));
    }
    gemm(device, scratch, precision, reborrow(&mut y), false, 1.0, factor(x), w.t())?;
    if let Some(bias) = bias {
        rows::add_bias_acc(device, reborrow(&mut y), bias)?;
    }
    let Some((Adapter { a, b, scale }, u)) = adapter else { return Ok(()) };
    let (a, b) = (weight(a, params, precision)?.t(), weight(b, params, precision)?.t());
    gemm(device, scratch, precision, u.floats_mut(), false, 1.0, factor(x), a)?;
    gemm(device, scratch, precision, y, true, scale, factor(u), b)
}

/// What [`backward`] writes.
pub struct Gradients<'a> {
    /// [r, in], f32; added to.
    pub da: FloatsMut<'a>,
    /// [out, r], f32; added to.
    pub db: FloatsMut<'a>,
    /// [m, in], and whether it is added to; `None` where nobody wants it.
    pub dx: Option<(FloatsMut<'a>, bool)>,
}

/// The gradients of [`forward`] with a trained adapter, from its `x` and `u` and from `dout` as
/// [`derivative`] gives it; `du` [m, r] is room, of [`derivative_dtype`].
///
/// ```text
/// du  = scale dout b      db += scale doutᵀ u
/// da += duᵀ x             dx (+)= dout w + du a
/// ```
///
/// # Errors
/// As [`forward`].
pub fn backward(
    with: &mut Training<'_>,
    grads: Gradients<'_>,
    du: &mut Rows,
    dout: &Rows,
    [x, u]: [&Rows; 2],
    (w, adapter): (&Matrix, Adapter<'_>),
) -> Result<()> {
    let Training { device, params, precision, .. } = *with;
    let scratch = &mut *with.scratch;
    let w = weight(w, params, precision)?;
    #[cfg(feature = "cuda")]
    if let (Some(gpu), Some(w), Factor::Cuda(dy)) = (device.gpu(), on_cuda(w), factor(dout))
        && let (Factor::Cuda(x), Factor::Cuda(u)) = (factor(x), factor(u))
        && let Some([a, b]) = halves(&adapter, params, precision)?
    {
        let (scale, precision) = (adapter.scale, cuda_precision(precision));
        let layer = cuda::lora::Layer { w, bias: None, a, b, scale, precision };
        let (dx, dx_acc) = grads.dx.unzip();
        let grads = cuda::lora::Gradients {
            da: Some(grads.da.cuda_f32()?),
            db: Some(grads.db.cuda_f32()?),
            dx: dx.map(FloatsMut::cuda).transpose()?,
            dx_acc: dx_acc.unwrap_or(false),
        };
        return cuda::lora::backward(gpu, grads, du.floats_mut().cuda()?, dy, x, u, &layer);
    }
    let Gradients { da, db, mut dx } = grads;
    let Adapter { a, b, scale } = adapter;
    let (a, b) = (weight(a, params, precision)?, weight(b, params, precision)?);
    if let Some((dx, acc)) = &mut dx {
        gemm(device, scratch, precision, reborrow(dx), *acc, 1.0, factor(dout), w)?;
    }
    gemm(device, scratch, precision, du.floats_mut(), false, scale, factor(dout), b)?;
    gemm(device, scratch, precision, db, true, scale, factor(dout).t(), factor(u))?;
    gemm(device, scratch, precision, da, true, 1.0, factor(du).t(), factor(x))?;
    match dx {
        Some((dx, _)) => gemm(device, scratch, precision, dx, true, 1.0, factor(du), a),
        None => Ok(()),
    }
}

/// A layer that serves, and where its result goes.
pub struct Served<'a> {
    /// [n, k].
    pub w: &'a Matrix,
    /// `[n]`.
    pub bias: Option<Floats<'a>>,
    /// Only one that [`takes_adapter`] was asked about.
    pub adapter: Option<Adapter<'a>>,
    /// [m, n], f32.
    pub out: FloatsMut<'a>,
    /// Adds to `out`, if [`adds`] says that this can be had; else overwrites it.
    pub acc: bool,
}

/// Whether [`serve`] takes this adapter of a layer into its product: where the adapter is bf16 on a
/// GPU, the weight too or quantised, of a kind and shape that a fused kernel has room for.
///
/// # Errors
/// When a matrix is stored for look-ups only.
pub fn takes_adapter(
    device: &Device,
    params: &Params,
    exact: bool,
    w: &Matrix,
    adapter: &Adapter<'_>,
) -> Result<bool> {
    #[cfg(feature = "cuda")]
    if device.gpu().is_some() && !exact {
        let Some(w) = on_cuda(weight(w, params, Precision::Bf16)?) else { return Ok(false) };
        let Some([a, b]) = halves(adapter, params, Precision::Bf16)? else { return Ok(false) };
        return Ok(cuda::lora::is_fused(&w, &a, &b));
    }
    let _ = (device, params, exact, w, adapter);
    Ok(false)
}

/// Whether [`serve`] can add the product with this weight to what is there.
///
/// # Errors
/// When the matrix is stored for look-ups only.
pub fn adds(device: &Device, params: &Params, w: &Matrix) -> Result<bool> {
    #[cfg(feature = "cuda")]
    if device.gpu().is_some() {
        return Ok(on_cuda(matmul::weight(w, params)?).is_some());
    }
    let _ = (device, params, w);
    Ok(false)
}

/// `out = x wᵀ + bias` of layers that share `x` [m, k], f32; with an adapter
/// `+ scale (x aᵀ) bᵀ`; with `acc` added to `out`. Precision as [`matmul::products`].
///
/// # Errors
/// As [`matmul::products`].
///
/// # Panics
/// When an adapter is given, or `acc`, that cannot be had.
pub fn serve<const N: usize>(
    device: &Device,
    scratch: &mut Scratch,
    params: &Params,
    x: Floats<'_>,
    m: usize,
    exact: bool,
    list: [Served<'_>; N],
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        return on_gpu(gpu, params, x, m, exact, list);
    }
    let mut list = list;
    let products = list.each_mut().map(|one| {
        assert!(one.adapter.is_none() && !one.acc, "what the CPU does in kernels of their own");
        Product { w: one.w, out: reborrow(&mut one.out) }
    });
    matmul::products(device, scratch, params, x, m, exact, products)?;
    for Served { bias, out, .. } in list {
        if let Some(bias) = bias {
            rows::add_bias_acc(device, out, bias)?;
        }
    }
    Ok(())
}

/// Whether [`gated`] can be had for `m` rows and these weights: on a GPU, where both are bf16, or
/// quantised in one format and the rows few. (More rows of those have the same bits from two products
/// in f32 and the activation.)
///
/// # Errors
/// When a matrix is stored for look-ups only.
pub fn gates(
    device: &Device,
    params: &Params,
    exact: bool,
    m: usize,
    [w1, w3]: [&Matrix; 2],
) -> Result<bool> {
    #[cfg(feature = "cuda")]
    if device.gpu().is_some() && !exact {
        let of = |w| Ok::<_, crate::error::Error>(on_cuda(weight(w, params, Precision::Bf16)?));
        return Ok(match [of(w1)?, of(w3)?] {
            [Some(Weight::Stored(w1)), Some(Weight::Stored(w3))] => is_bf16(&w1) && is_bf16(&w3),
            [Some(Weight::Quant(w1)), Some(Weight::Quant(w3))] => cuda::quant::gates(m, w1, w3),
            _ => false,
        });
    }
    let _ = (device, params, exact, m, [w1, w3]);
    Ok(false)
}

/// `out = silu(x w1ᵀ) * (x w3ᵀ)` [m, n] of x [m, k], f32, in bf16 products whose results are not
/// rounded before they meet; overwrites. Where [`gates`] says so.
///
/// # Errors
/// Weights that are none of these, or a device that fails.
pub fn gated(
    device: &Device,
    params: &Params,
    out: FloatsMut<'_>,
    x: Floats<'_>,
    m: usize,
    weights: [&Matrix; 2],
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let [w1, w3] = weights;
        let [w1, w3] = [weight(w1, params, Precision::Bf16)?, weight(w3, params, Precision::Bf16)?];
        let x = x.cuda()?;
        let (w1, w3) = match [on_cuda(w1), on_cuda(w3)] {
            [Some(Weight::Stored(w1)), Some(Weight::Stored(w3))] => (w1, w3),
            [Some(Weight::Quant(w1)), Some(Weight::Quant(w3))] => {
                let x = CudaFactor::plain(x, m, w1.k());
                return cuda::quant::gated(gpu, out.cuda()?, x, w1, w3);
            }
            _ => return Err(matmul::elsewhere("cuda")),
        };
        let low = (m > FEW_ROWS).then(|| rounded(gpu, x)).transpose()?;
        let x = low.as_ref().map_or(x, |low| low.slice().into());
        return cuda::matmul::gated(gpu, out.cuda()?, CudaFactor::plain(x, m, w1.cols), w1, w3);
    }
    let _ = (device, params, out, x, m, weights);
    Err(crate::error::Error::Unsupported("a gated product on the CPU".into()))
}

fn reborrow<'a>(x: &'a mut FloatsMut<'_>) -> FloatsMut<'a> {
    let len = x.len();
    x.slice_mut(0..len)
}

#[cfg(feature = "cuda")]
fn cuda_precision(precision: Precision) -> cuda::matmul::Precision {
    match precision {
        Precision::F32 => cuda::matmul::Precision::F32,
        Precision::Bf16 => cuda::matmul::Precision::Bf16,
    }
}

/// A weight as the kernels of layers take it, if it is on a GPU.
#[cfg(feature = "cuda")]
fn on_cuda(w: Factor<'_>) -> Option<Weight<'_>> {
    match w {
        Factor::Cuda(w) => Some(Weight::Stored(w)),
        Factor::Quant { w, transposed: false } => Some(Weight::Quant(w)),
        Factor::Quant { .. } | Factor::Host(_) => None,
    }
}

#[cfg(feature = "cuda")]
fn is_bf16(w: &CudaFactor<'_>) -> bool {
    matches!(w.source, Source::Bf16(_))
}

/// Both matrices of an adapter, if they are plain ones of a GPU.
#[cfg(feature = "cuda")]
fn halves<'a>(
    adapter: &Adapter<'a>,
    params: &'a Params,
    precision: Precision,
) -> Result<Option<[CudaFactor<'a>; 2]>> {
    let both = [weight(adapter.a, params, precision)?, weight(adapter.b, params, precision)?];
    Ok(match both {
        [Factor::Cuda(a), Factor::Cuda(b)] => Some([a, b]),
        _ => None,
    })
}

/// Rows rounded to bf16, as each product would round them.
#[cfg(feature = "cuda")]
fn rounded(gpu: &Gpu, x: cuda::Floats<'_>) -> Result<DeviceBuffer<bf16>> {
    let mut low = gpu.alloc::<bf16>(x.len())?;
    cuda::elementwise::convert(gpu, low.slice_mut().into(), x)?;
    Ok(low)
}

/// [`serve`] on a GPU: weights of bf16 and quantised ones meet bf16 activations unless `exact`, all
/// others f32 ones.
#[cfg(feature = "cuda")]
fn on_gpu<const N: usize>(
    gpu: &Gpu,
    params: &Params,
    x: Floats<'_>,
    m: usize,
    exact: bool,
    list: [Served<'_>; N],
) -> Result<()> {
    let of = if exact { Precision::F32 } else { Precision::Bf16 };
    let of_one = |w| -> Result<(Weight<'_>, bool)> {
        let w = on_cuda(weight(w, params, of)?).ok_or_else(|| matmul::elsewhere("cuda"))?;
        let is_low = match &w {
            Weight::Stored(w) => is_bf16(w),
            Weight::Quant(_) => true,
        };
        Ok((w, is_low && !exact))
    };
    // Few rows are rounded by the kernel that reads them, but for an adapter's; many once for all.
    let mut low = None;
    for one in &list {
        if low.is_none() && (m > FEW_ROWS || one.adapter.is_some()) && of_one(one.w)?.1 {
            low = Some(rounded(gpu, x.cuda()?)?);
        }
    }
    for one in list {
        let (weight, is_low) = of_one(one.w)?;
        let Served { w, bias, adapter, out, acc } = one;
        let (bias, out) = (bias.map(Floats::cuda).transpose()?, out.cuda()?);
        let precision =
            if is_low { cuda::matmul::Precision::Bf16 } else { cuda::matmul::Precision::F32 };
        let x = match &low {
            Some(low) if is_low => CudaFactor::plain(cuda::Floats::from(low.slice()), m, w.k),
            _ => CudaFactor::plain(x.cuda()?, m, w.k),
        };
        if let Some(adapter) = adapter {
            assert!(is_low && !acc, "an adapter that the fused kernel takes");
            let Some([a, b]) = halves(&adapter, params, of)? else {
                return Err(matmul::elsewhere("cuda"));
            };
            let mut u = gpu.alloc::<f32>(m * a.rows)?;
            let scale = adapter.scale;
            let layer = cuda::lora::Layer { w: weight, bias, a, b, scale, precision };
            cuda::lora::forward(gpu, out, u.slice_mut(), x, &layer)?;
            continue;
        }
        match weight {
            Weight::Stored(factor) => {
                // In f32 few and many rows have two orders of summation unless one kernel computes
                // both.
                let kernel = if is_low { Kernel::Chosen } else { Kernel::Small };
                let product = cuda::matmul::Product::new(precision, out, x, factor.t());
                let product = cuda::matmul::Product { acc, bias, ..product };
                cuda::matmul::gemm_by(gpu, product, kernel)?;
            }
            Weight::Quant(w) => {
                let product = cuda::quant::Product::nt(precision, out, x, w);
                cuda::quant::gemm(gpu, cuda::quant::Product { acc, bias, ..product })?;
            }
        }
    }
    Ok(())
}
