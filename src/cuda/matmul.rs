//! Products of matrices on the device: `out = alpha a b + bias`, factors stored as they are or
//! transposed, in f32 or, on tensor cores, in bf16.
//!
//! Which kernel computes a product is chosen here ([`Kernel`]), from types, alignment and shape;
//! tile sizes come from [`super::tune`]. Sources: `cuda/matmul_*.cu`, `cuda/skinny.cu`,
//! `cuda/matvec.cu`.
//!
//! **What the bits of a result depend on.** An element of `out` is one chain of operations over its
//! inputs in order, and neither tile sizes nor the number of rows are part of it:
//!
//! - [`Precision::Bf16`]: the same bits from every kernel, so a row has the same bits alone, among
//!   16 others and inside a prompt of thousands. (The instruction is the same, `mma.m16n8k16` in
//!   order of its inputs, from zero.)
//! - [`Precision::F32`]: the same bits for any number of rows above [`FEW_ROWS`], and the same bits
//!   for any number up to it; but those differ from each other in the last places, as sums of few
//!   rows are split over threads to reach the memory's speed. Who needs one chain for both forces
//!   [`Kernel::Small`].

mod choose;
mod factor;
mod hopper;

use super::params;
use super::tune::{self, Form};
use super::{Floats, FloatsMut, Function, Gpu, Launch, Modules, arg, expect_len, u32_of};
use crate::{Error, Result};

pub use choose::Kernel;
pub(super) use choose::{Shape, size};
pub use factor::{Factor, Source};

/// Rows of `x` up to which `x wᵀ` is bound by the reading of `w`, and computed by kernels of their
/// own.
pub const FEW_ROWS: usize = params::SKINNY_ROWS as usize;

/// What factors are rounded to before they are multiplied. Sums are f32 in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Nothing: fused multiply-adds in single precision.
    F32,
    /// bf16, to nearest even: tensor cores.
    Bf16,
}

/// One product: `out [m, n] = alpha a b + bias`, with `a` [m, k] and `b` [k, n].
pub struct Product<'a> {
    /// [m, n]; a bf16 result is computed in f32 and rounded once.
    pub out: FloatsMut<'a>,
    /// Adds to `out` instead of overwriting it.
    pub acc: bool,
    /// Factor of the product, not of the bias.
    pub alpha: f32,
    /// [m, k].
    pub a: Factor<'a>,
    /// [k, n].
    pub b: Factor<'a>,
    /// `[n]`, added to every row.
    pub bias: Option<Floats<'a>>,
    /// Of the multiplication.
    pub precision: Precision,
}

impl<'a> Product<'a> {
    /// `out = a b`.
    pub fn new(precision: Precision, out: FloatsMut<'a>, a: Factor<'a>, b: Factor<'a>) -> Self {
        Product { out, acc: false, alpha: 1.0, a, b, bias: None, precision }
    }
}

/// The kernels.
pub(crate) struct Matmul {
    /// By form, see [`Form`].
    large: [Function; 4],
    small: [Function; 4],
    any: [Function; 4],
    /// Large, small.
    two: [Function; 2],
    gated: [Function; 2],
    gated_any: Function,
    f32: [Function; 2],
    /// x in bf16 and in f32; of each wide and narrow.
    skinny: [[Function; 2]; 2],
    skinny_gated: [[Function; 2]; 2],
    /// Weights in f32, bf16 and f16; of each up to 1, 4, 8 and 16 rows.
    matvec: [[Function; 4]; 3],
    /// `None` on devices of another kind.
    hopper: Option<hopper::Hopper>,
}

/// Functions of these names.
fn named<const N: usize>(modules: &Modules, names: [&'static str; N]) -> Result<[Function; N]> {
    let found: Vec<Function> =
        names.iter().map(|name| modules.function(name)).collect::<Result<_>>()?;
    found.try_into().map_err(|_| Error::Unsupported("a list of kernels of another length".into()))
}

impl Matmul {
    #[rustfmt::skip]
    pub fn load(modules: &Modules) -> Result<Self> {
        Ok(Matmul {
            large: named(modules, [
                "matmul_nn_bf16_large", "matmul_nt_bf16_large",
                "matmul_tn_bf16_large", "matmul_tt_bf16_large",
            ])?,
            small: named(modules, [
                "matmul_nn_bf16_small", "matmul_nt_bf16_small",
                "matmul_tn_bf16_small", "matmul_tt_bf16_small",
            ])?,
            any: named(modules, [
                "matmul_nn_any", "matmul_nt_any", "matmul_tn_any", "matmul_tt_any",
            ])?,
            two: named(modules, ["matmul_nn_two_bf16_large", "matmul_nn_two_bf16_small"])?,
            gated: named(modules, ["matmul_gated_bf16_large", "matmul_gated_bf16_small"])?,
            gated_any: modules.function("matmul_gated_any")?,
            f32: named(modules, ["matmul_f32_large", "matmul_f32_small"])?,
            skinny: [
                named(modules, ["skinny_bf16_wide", "skinny_bf16_narrow"])?,
                named(modules, ["skinny_f32_wide", "skinny_f32_narrow"])?,
            ],
            skinny_gated: [
                named(modules, ["skinny_gated_bf16_wide", "skinny_gated_bf16_narrow"])?,
                named(modules, ["skinny_gated_f32_wide", "skinny_gated_f32_narrow"])?,
            ],
            matvec: [
                named(modules, [
                    "matvec_f32_1", "matvec_f32_4", "matvec_f32_8", "matvec_f32_16",
                ])?,
                named(modules, [
                    "matvec_bf16_1", "matvec_bf16_4", "matvec_bf16_8", "matvec_bf16_16",
                ])?,
                named(modules, [
                    "matvec_f16_1", "matvec_f16_4", "matvec_f16_8", "matvec_f16_16",
                ])?,
            ],
            hopper: hopper::Hopper::load(modules)?,
        })
    }
}

/// Compute capability of the device, times ten.
pub(super) fn sm(gpu: &Gpu) -> u32 {
    let (major, minor) = gpu.properties().capability;
    10 * major + minor
}

/// Computes a product.
///
/// Overwrites `out`, or with `acc` adds to it; a sum over no inputs is zero. f32 sums; error: a
/// rounding an input, of partial sums (`tests/cuda_vs_cpu/matmul.rs`).
///
/// # Errors
/// When shapes do not fit each other or the device's limits, or a launch fails.
pub fn gemm(gpu: &Gpu, product: Product<'_>) -> Result<()> {
    gemm_by(gpu, product, Kernel::Chosen)
}

/// [`gemm`] by a kernel that the caller names: for tests, and for [`Precision::F32`] where few and
/// many rows have to have the same bits.
///
/// # Errors
/// As [`gemm`], and when the kernel does not take these factors.
pub fn gemm_by(gpu: &Gpu, product: Product<'_>, kernel: Kernel) -> Result<()> {
    let Product { out, acc, alpha, a, b, bias, precision } = product;
    let shape = Shape::of("product", &out, &a, &b)?;
    if let Some(bias) = &bias {
        expect_len("product", "bias", bias.len(), shape.n)?;
    }
    if shape.is_empty() {
        return Ok(());
    }
    let kernel = kernel.resolve(gpu, precision, shape, &a, &b)?;
    let flags = flags(&out, acc, shape.n, Some(&a), Some(&b)) | bias_flag(bias.as_ref());
    let mut p = shape.params(alpha, flags)?;
    (p.a_type, p.b_type) = (a.source.tag(), b.source.tag());
    let form = Form::of(a.transposed, b.transposed);
    let kernels = &gpu.matmul;
    let (function, launch) = match (kernel, precision) {
        (Kernel::Large, Precision::Bf16) => (&kernels.large[form as usize], large(shape)?),
        (Kernel::Small, Precision::Bf16) => (&kernels.small[form as usize], small(shape)?),
        (Kernel::Large, Precision::F32) => {
            p.flags |= transposed(&a, &b);
            (&kernels.f32[0], f32_tile(shape, true)?)
        }
        (Kernel::Small, Precision::F32) => {
            p.flags |= transposed(&a, &b);
            (&kernels.f32[1], f32_tile(shape, false)?)
        }
        (Kernel::Skinny, _) => {
            let wide = tune::is_wide(sm(gpu), shape.n);
            let f32 = matches!(a.source, Source::F32(_));
            (&kernels.skinny[usize::from(f32)][usize::from(!wide)], skinny(shape, wide, f32, 1)?)
        }
        (Kernel::Matvec, _) => {
            let (rows, cols) = match shape.m {
                ..=1 => (0, params::MATVEC_COLS_1),
                2..=4 => (1, params::MATVEC_COLS_4),
                5..=8 => (2, params::MATVEC_COLS_8),
                _ => (3, params::MATVEC_COLS_16),
            };
            let launch = Launch {
                grid: [blocks(shape.n, cols)?, 1, 1],
                block: params::MATVEC_THREADS,
                shared_bytes: 0,
            };
            (&kernels.matvec[b.source.tag() as usize][rows], launch)
        }
        (Kernel::Wgmma, _) => {
            p.flags |= hopper::chunks(&out, shape.n);
            (&hopper::of(gpu)?.wgmma, hopper::launch(shape)?)
        }
        (Kernel::Tma, _) => {
            p.flags |= hopper::chunks(&out, shape.n);
            let bias = bias.map_or(0, |bias| bias.address());
            // SAFETY: as below.
            return unsafe { hopper::launch_tma(gpu, shape, out.address(), [&a, &b], bias, p) };
        }
        (Kernel::Any | Kernel::Chosen, _) => (&kernels.any[form as usize], any(shape)?),
    };
    let (mut to, mut from_a, mut from_b) = (out.address(), a.address(), b.address());
    let mut bias = bias.map_or(0, |bias| bias.address());
    let mut args = [arg(&mut to), arg(&mut from_a), arg(&mut from_b), arg(&mut bias), arg(&mut p)];
    // SAFETY: `Shape::of` compared the lengths of out, a and b, and `expect_len` that of the bias,
    // with the sizes in `p`; `resolve` gives a kernel that takes these types and alignments; the
    // arguments are the kernel's, in its order.
    unsafe { gpu.launch(function, launch, &mut args) }
}

/// `out = alpha (a b + a2 b2)`, or with `acc` `out += ...`: two products in one chain of sums, in
/// bf16. Factors are stored plainly: `a` [m, k], `b` [k, n], `a2` [m, k2], `b2` [k2, n].
///
/// One kernel where all factors are bf16 in aligned rows of a multiple of 8; two products in a row
/// otherwise, of which the first is rounded to `out`'s type in between.
///
/// # Errors
/// When shapes do not fit each other, a factor is transposed, or a launch fails.
pub fn gemm_two(
    gpu: &Gpu,
    mut out: FloatsMut<'_>,
    acc: bool,
    alpha: f32,
    first: [Factor<'_>; 2],
    second: [Factor<'_>; 2],
) -> Result<()> {
    let ([a, b], [a2, b2]) = (first, second);
    let shape = Shape::of("first of two products", &out, &a, &b)?;
    let shape2 = Shape::of("second of two products", &out, &a2, &b2)?;
    if [a, b, a2, b2].iter().any(|f| f.transposed) {
        return Err(Error::Unsupported("two products in one of transposed factors".into()));
    }
    if shape.is_empty() {
        return Ok(());
    }
    if ![a, b, a2, b2].iter().all(Factor::is_aligned_bf16) {
        let one = Product::new(Precision::Bf16, out.reborrow(), a, b);
        gemm(gpu, Product { acc, alpha, ..one })?;
        let other = Product::new(Precision::Bf16, out, a2, b2);
        return gemm(gpu, Product { acc: true, alpha, ..other });
    }
    let mut p = shape.params(alpha, flags(&out, acc, shape.n, None, None))?;
    p.k2 = size(shape2.k)?;
    let big = tune::is_large(sm(gpu), Form::Nn, shape.m, shape.n);
    let launch = if big { large(shape)? } else { small(shape)? };
    let (mut to, mut a, mut b) = (out.address(), a.address(), b.address());
    let (mut a2, mut b2) = (a2.address(), b2.address());
    let mut args =
        [arg(&mut to), arg(&mut a), arg(&mut b), arg(&mut a2), arg(&mut b2), arg(&mut p)];
    // SAFETY: both `Shape::of` compared the lengths of out and the factors with the sizes in `p`;
    // all factors were just found to be bf16 and aligned; the arguments are the kernel's.
    unsafe { gpu.launch(&gpu.matmul.two[usize::from(!big)], launch, &mut args) }
}

/// `out [m, n] = silu(x w1ᵀ) * (x w3ᵀ)` with `silu(v) = v / (1 + e^-v)`, in bf16: x [m, k], w1
/// (gate) and w3 (up) [n, k], all stored plainly.
///
/// f32 sums; the two products are not rounded before they meet. Overwrites.
///
/// # Errors
/// When shapes or the weights' types do not fit each other, or a launch fails.
pub fn gated(
    gpu: &Gpu,
    out: FloatsMut<'_>,
    x: Factor<'_>,
    w1: Factor<'_>,
    w3: Factor<'_>,
) -> Result<()> {
    gated_by(gpu, out, x, w1, w3, Kernel::Chosen)
}

/// [`gated`] by a kernel that the caller names, for tests.
///
/// # Errors
/// As [`gated`], and when the kernel does not take these factors.
pub fn gated_by(
    gpu: &Gpu,
    out: FloatsMut<'_>,
    x: Factor<'_>,
    w1: Factor<'_>,
    w3: Factor<'_>,
    kernel: Kernel,
) -> Result<()> {
    let (w1, w3) = (w1.t(), w3.t());
    let shape = Shape::of("gated product", &out, &x, &w1)?;
    Shape::of("gated product", &out, &x, &w3)?;
    if x.transposed || !w1.transposed || !w3.transposed || w1.source.tag() != w3.source.tag() {
        let what = "a gated product of transposed factors, or of weights of two types";
        return Err(Error::Unsupported(what.into()));
    }
    if shape.is_empty() {
        return Ok(());
    }
    // One flag says of both weights whether they are aligned.
    let w = if w3.is_aligned() { w1 } else { w3 };
    let kernel = kernel.resolve_gated(gpu, shape, &x, &w)?;
    let mut p = shape.params(1.0, flags(&out, false, shape.n, Some(&x), Some(&w)))?;
    (p.a_type, p.b_type) = (x.source.tag(), w.source.tag());
    let kernels = &gpu.matmul;
    // A tile's columns are half gate, half up.
    let doubled = Shape { n: shape.n * 2, ..shape };
    let (function, launch) = match kernel {
        Kernel::Large => (&kernels.gated[0], large(doubled)?),
        Kernel::Small => (&kernels.gated[1], small(doubled)?),
        Kernel::Skinny => {
            let wide = tune::is_wide(sm(gpu), shape.n);
            let f32 = matches!(x.source, Source::F32(_));
            let function = &kernels.skinny_gated[usize::from(f32)][usize::from(!wide)];
            (function, skinny(shape, wide, f32, 2)?)
        }
        Kernel::Any | Kernel::Chosen => (&kernels.gated_any, any(doubled)?),
        Kernel::Matvec | Kernel::Wgmma | Kernel::Tma => {
            return Err(Error::Unsupported(format!("a gated product by {kernel:?} kernels")));
        }
    };
    let (mut to, mut x) = (out.address(), x.address());
    let (mut w1, mut w3) = (w1.address(), w3.address());
    let mut args = [arg(&mut to), arg(&mut x), arg(&mut w1), arg(&mut w3), arg(&mut p)];
    // SAFETY: both `Shape::of` compared the lengths of out, x, w1 and w3 with the sizes in `p`;
    // `resolve` was asked about the less aligned of the weights, which are of one type; the
    // arguments are the kernel's.
    unsafe { gpu.launch(function, launch, &mut args) }
}

/// What kernels are told of a bias.
pub(super) fn bias_flag(bias: Option<&Floats<'_>>) -> u32 {
    if matches!(bias, Some(Floats::Bf16(_))) { params::MATMUL_BIAS_BF16 } else { 0 }
}

/// Whether 2 neighbouring results may be stored at once, which type they are of, and what may be
/// read 8 at a time.
pub(super) fn flags(
    out: &FloatsMut<'_>,
    acc: bool,
    n: usize,
    a: Option<&Factor<'_>>,
    b: Option<&Factor<'_>>,
) -> u32 {
    let (bf16, pair_bytes) = match out {
        FloatsMut::F32(_) => (0, 8),
        FloatsMut::Bf16(_) => (params::MATMUL_OUT_BF16, 4),
    };
    let pairs = n.is_multiple_of(2) && out.address().is_multiple_of(pair_bytes);
    let when = |yes: bool, flag: u32| if yes { flag } else { 0 };
    bf16 | when(acc, params::MATMUL_ACC)
        | when(pairs, params::MATMUL_PAIRS)
        | when(a.is_some_and(Factor::is_aligned), params::MATMUL_A_VECTORS)
        | when(b.is_some_and(Factor::is_aligned), params::MATMUL_B_VECTORS)
}

fn transposed(a: &Factor<'_>, b: &Factor<'_>) -> u32 {
    let when = |yes: bool, flag: u32| if yes { flag } else { 0 };
    when(a.transposed, params::MATMUL_A_TRANSPOSED)
        | when(b.transposed, params::MATMUL_B_TRANSPOSED)
}

/// Blocks of `per` each.
fn blocks(n: usize, per: u32) -> Result<u32> {
    u32_of("blocks of a product", n.div_ceil(per as usize))
}

/// Blocks of square tiles.
fn tiles(shape: Shape, tile: u32) -> Result<[u32; 3]> {
    let tile = tile as usize;
    let count = shape.m.div_ceil(tile) * shape.n.div_ceil(tile);
    Ok([u32_of("tiles of a product", count)?, 1, 1])
}

fn large(shape: Shape) -> Result<Launch> {
    Ok(Launch {
        grid: tiles(shape, params::MATMUL_LARGE)?,
        block: params::MATMUL_THREADS,
        shared_bytes: params::MATMUL_LARGE_BYTES,
    })
}

fn small(shape: Shape) -> Result<Launch> {
    Ok(Launch {
        grid: tiles(shape, params::MATMUL_SMALL)?,
        block: params::MATMUL_THREADS,
        shared_bytes: params::MATMUL_SMALL_BYTES,
    })
}

fn any(shape: Shape) -> Result<Launch> {
    Ok(Launch { shared_bytes: params::MATMUL_ANY_BYTES, ..small(shape)? })
}

fn f32_tile(shape: Shape, large: bool) -> Result<Launch> {
    let (tile, block, shared_bytes) = if large {
        (params::MATMUL_LARGE, params::MATMUL_F32_LARGE_THREADS, params::MATMUL_F32_LARGE_BYTES)
    } else {
        (params::MATMUL_SMALL, params::MATMUL_F32_SMALL_THREADS, params::MATMUL_F32_SMALL_BYTES)
    };
    Ok(Launch { grid: tiles(shape, tile)?, block, shared_bytes })
}

/// `products` of the same rows.
pub(super) fn skinny(shape: Shape, wide: bool, f32: bool, products: u32) -> Result<Launch> {
    let warps = if wide { params::SKINNY_WIDE } else { params::SKINNY_NARROW };
    let cols = warps * params::SKINNY_COLS;
    let x_row =
        if f32 { 4 * (params::SKINNY_BK + params::SKINNY_PAD) } else { 2 * params::SKINNY_BK };
    let stage = params::SKINNY_ROWS * x_row + products * cols * params::SKINNY_BK * 2;
    Ok(Launch {
        grid: [blocks(shape.n, cols)?, 1, 1],
        block: 32 * warps,
        shared_bytes: params::SKINNY_STAGES * stage,
    })
}
