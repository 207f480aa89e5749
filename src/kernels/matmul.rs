//! Products of rows with weight matrices. Serving: matrices that share their input are computed
//! together, on the CPU quantised ones from int8 activations. Training: one packed product in f32 or
//! bf16, for the forward pass and both gradients.

use super::{Device, Floats, FloatsMut, Scratch};
use crate::error::{Error, Result};
use crate::tensor::{Matrix, MatrixData, Params, Rows};
use puna_cpu::gemm::{self, Source};
use puna_cpu::products::{self, Weights};

#[cfg(feature = "cuda")]
use crate::cuda::{self, Gpu};
#[cfg(feature = "cuda")]
use crate::tensor::OnCuda;

pub use puna_cpu::gemm::Precision;

/// A factor of [`gemm()`] as it is stored, row-major.
#[derive(Clone, Copy)]
pub enum Factor<'a> {
    /// In the machine's memory.
    Host(gemm::Factor<'a>),
    /// On a CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(cuda::matmul::Factor<'a>),
    /// There, quantised: the second factor only.
    #[cfg(feature = "cuda")]
    Quant {
        /// [rows, cols] as it is stored.
        w: &'a cuda::quant::QuantMatrix,
        /// Whether the factor is the transpose of that.
        transposed: bool,
    },
}

impl<'a> Factor<'a> {
    /// The block `x` [rows, cols].
    pub fn plain(x: Floats<'a>, rows: usize, cols: usize) -> Self {
        match x {
            Floats::Host(x) => Factor::Host(gemm::Factor::plain(x, rows, cols)),
            #[cfg(feature = "cuda")]
            Floats::Cuda(x) => Factor::Cuda(cuda::matmul::Factor::plain(x, rows, cols)),
        }
    }

    /// The transpose.
    #[must_use]
    pub fn t(self) -> Self {
        match self {
            Factor::Host(x) => Factor::Host(x.t()),
            #[cfg(feature = "cuda")]
            Factor::Cuda(x) => Factor::Cuda(x.t()),
            #[cfg(feature = "cuda")]
            Factor::Quant { w, transposed } => Factor::Quant { w, transposed: !transposed },
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(self) -> Result<cuda::matmul::Factor<'a>> {
        match self {
            Factor::Cuda(x) => Ok(x),
            Factor::Host(_) => Err(elsewhere("cuda")),
            Factor::Quant { w, .. } => {
                Err(Error::Unsupported(format!("{w:?} as the first factor of a product")))
            }
        }
    }

    fn host(self) -> Result<gemm::Factor<'a>> {
        match self {
            Factor::Host(x) => Ok(x),
            #[cfg(feature = "cuda")]
            Factor::Cuda(_) | Factor::Quant { .. } => Err(elsewhere("cpu")),
        }
    }
}

#[cfg(feature = "cuda")]
pub(super) fn elsewhere(wanted: &str) -> Error {
    let why = "a factor of the product lies in another memory".into();
    Error::Device { wanted: wanted.into(), why }
}

/// A matrix and where its product with shared rows goes: `out` is [m, n].
pub struct Product<'a> {
    /// The weights.
    pub w: &'a Matrix,
    /// Overwritten.
    pub out: FloatsMut<'a>,
}

fn host_product<'a>(one: Product<'a>, params: &'a Params) -> Result<products::Product<'a>> {
    let Product { w, out } = one;
    let weights = match (&w.data, w.dense(params)) {
        (MatrixData::Packed(packed), _) => Weights::Packed(packed),
        (MatrixData::Nf4(nf4), _) => Weights::Nf4(nf4),
        (_, Some(dense)) => Weights::Dense(dense),
        (_, None) => return Err(lookups_only(w)),
    };
    Ok(products::Product { w: weights, out: out.host_f32()? })
}

fn lookups_only(w: &Matrix) -> Error {
    Error::Unsupported(format!("products with {w:?} kept as file blocks"))
}

/// `out = x wᵀ` for each product; `x` is [m, k]. With `exact`, weights meet the f32 activations
/// unrounded; without it quantised weights meet int8 activations, and BF16 weights BF16 ones
/// where the device multiplies those; on the CPU NF4 weights meet the f32 activations in any case.
///
/// # Errors
/// When a shape does not fit, a matrix is stored for look-ups only, or the device fails.
pub fn products<const N: usize>(
    device: &Device,
    scratch: &mut Scratch,
    params: &Params,
    x: Floats<'_>,
    m: usize,
    exact: bool,
    list: [Product<'_>; N],
) -> Result<()> {
    for Product { w, out } in &list {
        if x.len() != m * w.k || out.len() != m * w.n {
            return Err(Error::Shape {
                op: "product".into(),
                expected: format!("x [{m}, {}], out [{m}, {}]", w.k, w.n),
                got: format!("{} and {} values", x.len(), out.len()),
            });
        }
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        return list.into_iter().try_for_each(|one| on_gpu(gpu, params, x, m, exact, one));
    }
    let x = x.host_f32()?;
    let mut fault = None;
    let list = list.map(|one| host_product(one, params).map_err(|error| fault = Some(error)).ok());
    if let Some(error) = fault {
        return Err(error);
    }
    let mut list = list.map(|one| one.expect("every fault was returned"));
    let cpu = &device.cpu;
    products::products(cpu.isa, &cpu.team, &mut scratch.matmul, x, m, exact, &mut list);
    Ok(())
}

/// Serving on a GPU: quantised weights and those of two bytes meet bf16 activations unless `exact`.
#[cfg(feature = "cuda")]
fn on_gpu(
    gpu: &Gpu,
    params: &Params,
    x: Floats<'_>,
    m: usize,
    exact: bool,
    one: Product<'_>,
) -> Result<()> {
    use cuda::matmul::{Kernel, Precision, Source};
    let x = Factor::plain(x, m, one.w.k).cuda()?;
    let w = match weight(one.w, params)? {
        Factor::Quant { w, .. } => {
            let precision = if exact { Precision::F32 } else { Precision::Bf16 };
            return cuda::quant::gemm(
                gpu,
                cuda::quant::Product::nt(precision, one.out.cuda()?, x, w),
            );
        }
        w => w.cuda()?,
    };
    let precision = match w.source {
        Source::Bf16(_) if !exact => Precision::Bf16,
        _ => Precision::F32,
    };
    // In f32 few and many rows have two orders of summation unless one kernel computes both.
    let kernel = match precision {
        Precision::F32 => Kernel::Small,
        Precision::Bf16 => Kernel::Chosen,
    };
    let product = cuda::matmul::Product::new(precision, one.out.cuda()?, x, w.t());
    cuda::matmul::gemm_by(gpu, product, kernel)
}

/// A weight [n, k] as a factor of [`gemm()`]; quantised weights are decoded tile by tile.
///
/// # Errors
/// When the matrix is stored for look-ups only.
pub fn weight<'a>(w: &'a Matrix, params: &'a Params) -> Result<Factor<'a>> {
    #[cfg(feature = "cuda")]
    match w.on_cuda(params)? {
        Some(OnCuda::Dense(factor)) => return Ok(Factor::Cuda(factor)),
        Some(OnCuda::Quant(w)) => return Ok(Factor::Quant { w, transposed: false }),
        None => {}
    }
    let source = match (&w.data, w.dense(params)) {
        (MatrixData::Packed(packed), _) => Source::Packed(packed),
        (MatrixData::Nf4(nf4), _) => Source::Nf4(nf4),
        (_, Some(dense)) => Source::Dense(dense),
        (_, None) => return Err(lookups_only(w)),
    };
    Ok(Factor::Host(gemm::Factor { source, rows: w.n, cols: w.k, transposed: false }))
}

/// Rows as a factor of [`gemm()`].
pub fn factor(rows: &Rows) -> Factor<'_> {
    let [m, n] = rows.dims2();
    Factor::plain(rows.floats(), m, n)
}

/// `out = alpha a b`, or `out += alpha a b` with `acc`. On the CPU the same bits for any number of
/// threads.
///
/// # Errors
/// Operands of another device, or one that fails.
///
/// # Panics
/// When the shapes do not fit.
#[allow(clippy::too_many_arguments)]
pub fn gemm(
    device: &Device,
    scratch: &mut Scratch,
    precision: Precision,
    out: FloatsMut<'_>,
    acc: bool,
    alpha: f32,
    a: Factor<'_>,
    b: Factor<'_>,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let precision = match precision {
            Precision::F32 => cuda::matmul::Precision::F32,
            Precision::Bf16 => cuda::matmul::Precision::Bf16,
        };
        let (a, out) = (a.cuda()?, out.cuda()?);
        if let Factor::Quant { w, transposed } = b {
            let product = cuda::quant::Product::nt(precision, out, a, w);
            let product = cuda::quant::Product { acc, alpha, transposed, ..product };
            return cuda::quant::gemm(gpu, product);
        }
        let product = cuda::matmul::Product::new(precision, out, a, b.cuda()?);
        return cuda::matmul::gemm(gpu, cuda::matmul::Product { acc, alpha, ..product });
    }
    let (cpu, out, a, b) = (&device.cpu, out.host()?, a.host()?, b.host()?);
    gemm::gemm(cpu.isa, &cpu.team, &mut scratch.gemm, precision, out, acc, alpha, a, b);
    Ok(())
}
