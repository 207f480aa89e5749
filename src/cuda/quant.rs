//! Products with quantised weights, which stay quantised on the device: `out = alpha x wᵀ + bias`, and
//! for the gradient of x `dx = alpha dy w`, in NF4 and every format of GGUF. Sources:
//! `cuda/quant_*.cu`; how the bits lie: `cuda/include/quant_blocks.h`, `planes.rs`.
//!
//! **Bits.** In [`Precision::Bf16`] weights are decoded in f32 as the CPU decodes them, rounded to bf16
//! and multiplied in the order of [`super::matmul`]: from every kernel the bits of the product with the
//! decoded matrix in bf16, so a row has the same bits alone and in any company. In [`Precision::F32`]
//! one kernel computes any number of rows.

mod encode;
mod kernels;
mod matrix;
mod planes;

use super::matmul::{self, FEW_ROWS, Factor, Precision, Shape, Source, flags, size};
use super::params::{self, QuantParams, RoundParams};
use super::tune::{self, Form};
use super::{
    DeviceBuffer, DeviceSlice, Floats, FloatsMut, Function, Gpu, Launch, arg, expect_len, u32_of,
};
use crate::{Error, Result};
pub use encode::Encodable;
use half::bf16;
use kernels::NAMES;
pub(crate) use kernels::Quant;
pub use matrix::QuantMatrix;
pub use planes::Format;

/// A family of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Whichever suits: what everyone but a test asks for.
    Chosen,
    /// Tiles of 128 x 128 outputs, of formats that have them.
    Large,
    /// Tiles of 64 x 64 outputs.
    Small,
    /// Products `x wᵀ` of up to 16 rows.
    Skinny,
}

/// One product with a quantised matrix `w` [n, k].
pub struct Product<'a> {
    /// [m, n], or [m, k]; a bf16 result is computed in f32 and rounded once.
    pub out: FloatsMut<'a>,
    /// Adds to `out` instead of overwriting it.
    pub acc: bool,
    /// Factor of the products, not of the bias.
    pub alpha: f32,
    /// [m, k], or [m, n]; stored plainly.
    pub x: Factor<'a>,
    /// The weights.
    pub w: &'a QuantMatrix,
    /// Whether it is `x wᵀ` (a layer), else `x w` (the gradient of a layer's input).
    pub transposed: bool,
    /// A second product `u b` into the same sums: u [m, k2], and b stored as w is, [n, k2] or
    /// [k2, k].
    pub second: Option<[Factor<'a>; 2]>,
    /// `[n]`, or `[k]`, added to every row.
    pub bias: Option<Floats<'a>>,
    /// Of the multiplication.
    pub precision: Precision,
}

impl<'a> Product<'a> {
    /// `out = x wᵀ`.
    pub fn nt(precision: Precision, out: FloatsMut<'a>, x: Factor<'a>, w: &'a QuantMatrix) -> Self {
        let (second, bias) = (None, None);
        Product { out, acc: false, alpha: 1.0, x, w, transposed: true, second, bias, precision }
    }

    /// `out = dy w`.
    pub fn nn(
        precision: Precision,
        out: FloatsMut<'a>,
        dy: Factor<'a>,
        w: &'a QuantMatrix,
    ) -> Self {
        Product { transposed: false, ..Product::nt(precision, out, dy, w) }
    }

    /// The sizes, compared with each other and with all lengths.
    fn shape(&self) -> Result<Shape> {
        let Product { out, x, w, .. } = self;
        let (n, k) = if self.transposed { (w.n(), w.k()) } else { (w.k(), w.n()) };
        let shape = shape_of(out, x, n, k)?;
        if let Some(bias) = &self.bias {
            expect_len("quantised product", "bias", bias.len(), n)?;
        }
        if let Some([u, b]) = &self.second {
            let right = if self.transposed { b.t() } else { *b };
            let second = Shape::of("second product beside quantised weights", out, u, &right)?;
            if u.transposed || b.transposed || (second.m, second.n) != (shape.m, n) {
                let what = "a second product of other rows or of transposed factors";
                return Err(Error::Unsupported(what.into()));
            }
        }
        Ok(shape)
    }
}

/// Sizes of `out = x w'` for w' [k, n].
pub(super) fn shape_of(out: &FloatsMut<'_>, x: &Factor<'_>, n: usize, k: usize) -> Result<Shape> {
    let fits = x.rows.checked_mul(x.cols) == Some(x.source.len());
    if x.transposed || x.cols != k || x.rows.checked_mul(n) != Some(out.len()) || !fits {
        return Err(Error::Shape {
            op: "quantised product".into(),
            expected: format!("[m, {k}] stored plainly, [m, {n}] results"),
            got: format!("[{}, {}], {} results", x.rows, x.cols, out.len()),
        });
    }
    Ok(Shape { m: x.rows, n, k })
}

/// The kernel for a layer with an adapter of rank `r` whose weight this is, or with `back` for the
/// derivative of its input, and the rank that it has room for.
pub(super) fn adapted<'a>(
    gpu: &'a Gpu,
    w: &QuantMatrix,
    r: usize,
    back: bool,
) -> Result<(&'a Function, u32)> {
    let kernels = gpu.quant.formats[w.format().id()].lora.as_ref();
    match (kernels.map(|kernels| &kernels[usize::from(back)]), r) {
        (Some([low, _]), 0..=16) => Ok((low, params::LORA_RANK_16)),
        (Some([_, high]), 17..=64) => Ok((high, params::LORA_RANK_64)),
        _ => Err(Error::Unsupported(format!("a fused adapter of rank {r} with {w:?}"))),
    }
}

/// Computes a product.
///
/// Overwrites `out`, or with `acc` adds to it; a sum over no inputs is zero. f32 sums; error: a
/// rounding an input, of partial sums (`tests/cuda_vs_cpu/quant.rs`).
///
/// # Errors
/// When shapes do not fit each other or the device's limits, or a launch fails.
pub fn gemm(gpu: &Gpu, product: Product<'_>) -> Result<()> {
    gemm_by(gpu, product, Kernel::Chosen)
}

/// [`gemm`] by a kernel that the caller names, for tests. (In f32 there is one.)
///
/// # Errors
/// As [`gemm`], and when the kernel does not take these factors.
pub fn gemm_by(gpu: &Gpu, mut product: Product<'_>, kernel: Kernel) -> Result<()> {
    let shape = product.shape()?;
    if shape.is_empty() {
        return Ok(());
    }
    let second = product.second;
    let apart = second.filter(|pair| {
        product.precision == Precision::F32 || !pair.iter().all(Factor::is_aligned_bf16)
    });
    if let Some([u, b]) = apart {
        let Product { alpha, transposed, precision, .. } = product;
        let first = Product { out: product.out.reborrow(), second: None, ..product };
        gemm_by(gpu, first, kernel)?;
        let b = if transposed { b.t() } else { b };
        let other = matmul::Product::new(precision, product.out, u, b);
        return matmul::gemm(gpu, matmul::Product { acc: true, alpha, ..other });
    }
    match product.precision {
        Precision::F32 => single(gpu, product, shape),
        Precision::Bf16 => tensor(gpu, product, shape, kernel),
    }
}

/// What the kernels are told of the matrix.
pub(super) fn scalars(w: &QuantMatrix, product: params::MatmulParams) -> Result<QuantParams> {
    let strides = w.strides();
    Ok(QuantParams {
        product,
        rows: size(w.n())?,
        cols: size(w.k())?,
        code_stride: u32_of("bytes of a row's codes", strides.codes)?,
        high_stride: u32_of("bytes of a row's codes", strides.high)?,
        scale_stride: u32_of("bytes of a row's scales", strides.scales)?,
        super_stride: u32_of("bytes of a row's scales", strides.supers)?,
        offset: w.offset(),
        offset3: 0.0,
        format: u32_of("a format", w.format().id())?,
        pad_: 0,
    })
}

/// Blocks of square tiles.
fn tiles(shape: Shape, tile: u32) -> Result<[u32; 3]> {
    let tile = tile as usize;
    let count = shape.m.div_ceil(tile) * shape.n.div_ceil(tile);
    Ok([u32_of("tiles of a product", count)?, 1, 1])
}

/// In single precision.
fn single(gpu: &Gpu, product: Product<'_>, shape: Shape) -> Result<()> {
    let Product { out, acc, alpha, x, w, transposed, bias, .. } = product;
    let form = if transposed { params::MATMUL_B_TRANSPOSED } else { 0 };
    let flags = flags(&out, acc, shape.n, Some(&x), None) | matmul::bias_flag(bias.as_ref()) | form;
    let mut p = scalars(w, shape.params(alpha, flags)?)?;
    p.product.a_type = x.source.tag();
    let launch = Launch {
        grid: tiles(shape, params::MATMUL_SMALL)?,
        block: params::MATMUL_F32_SMALL_THREADS,
        shared_bytes: params::QUANT_F32_BYTES,
    };
    let [mut codes, mut high, mut scales, mut supers] = w.addresses();
    let (mut to, mut from) = (out.address(), x.source.address());
    let mut bias = bias.map_or(0, |bias| bias.address());
    let mut args = [
        arg(&mut to),
        arg(&mut from),
        arg(&mut codes),
        arg(&mut high),
        arg(&mut scales),
        arg(&mut supers),
        arg(&mut bias),
        arg(&mut p),
    ];
    // SAFETY: `Product::shape` compared the lengths of out, x and the bias with the sizes in `p`; a
    // `QuantMatrix` has planes of its rows and strides; the arguments are the kernel's, in its order.
    unsafe { gpu.launch(&gpu.quant.f32, launch, &mut args) }
}

/// Rows that tensor cores take: 16-byte aligned, of a multiple of 8 bf16.
struct Aligned {
    /// Where they were copied to, if they were.
    copy: Option<DeviceBuffer<bf16>>,
    cols: usize,
}

impl Aligned {
    /// `x` as it is or, where it is anything else, rounded and filled up with zeros in a copy: beside a
    /// product with many columns that costs little.
    fn of(gpu: &Gpu, x: &Factor<'_>) -> Result<Aligned> {
        if x.is_aligned_bf16() {
            return Ok(Aligned { copy: None, cols: x.cols });
        }
        let cols = x.cols.next_multiple_of(8);
        let copy = gpu.alloc::<bf16>(x.rows.saturating_mul(cols))?;
        if copy.is_empty() {
            return Ok(Aligned { copy: Some(copy), cols });
        }
        let mut p = RoundParams {
            rows: i64::from(size(x.rows)?),
            cols: size(x.cols)?,
            width: size(cols)?,
            type_: x.source.tag(),
            vectors: x.is_aligned().into(),
        };
        let threads = params::QUANT_ROW_THREADS;
        let blocks = copy.len().div_ceil(8 * threads as usize);
        let launch = Launch {
            grid: [u32_of("rows to round", blocks)?, 1, 1],
            block: threads,
            shared_bytes: 0,
        };
        let (mut to, mut from) = (copy.slice().address(), x.source.address());
        let mut args = [arg(&mut to), arg(&mut from), arg(&mut p)];
        // SAFETY: the copy was just made of `rows` times `cols` rounded up; the length of x was
        // compared with `rows` and `cols` by `shape_of`; `vectors` is set by its alignment.
        unsafe { gpu.launch(&gpu.quant.round, launch, &mut args)? };
        Ok(Aligned { copy: Some(copy), cols })
    }

    fn address(&self, x: &Factor<'_>) -> u64 {
        self.copy.as_ref().map_or(x.source.address(), |copy| copy.slice().address())
    }
}

/// On tensor cores.
fn tensor(gpu: &Gpu, product: Product<'_>, shape: Shape, kernel: Kernel) -> Result<()> {
    let few = shape.m <= FEW_ROWS && product.transposed;
    let of_format = &gpu.quant.formats[product.w.format().id()];
    match (kernel, &of_format.skinny) {
        (Kernel::Chosen | Kernel::Skinny, Some([plain, _])) if few => {
            return skinny(gpu, product, shape, plain);
        }
        (Kernel::Skinny, _) => {
            let w = product.w;
            let what = format!("a skinny product of {} rows with {w:?}", shape.m);
            return Err(Error::Unsupported(what));
        }
        _ => {}
    }
    let form = if product.transposed { Form::Nt } else { Form::Nn };
    let large = match kernel {
        Kernel::Small => None,
        Kernel::Large => match &of_format.large {
            None => {
                let what = format!("large tiles of a product with {:?}", product.w);
                return Err(Error::Unsupported(what));
            }
            large => large.as_ref(),
        },
        _ => {
            let wanted = tune::is_large(gpu.sm(), form, shape.m, shape.n);
            of_format.large.as_ref().filter(|_| wanted)
        }
    };
    let (functions, tile, shared_bytes) = match large {
        Some(large) => (large, params::MATMUL_LARGE, params::QUANT_LARGE_BYTES),
        None => (&of_format.small, params::MATMUL_SMALL, params::QUANT_SMALL_BYTES),
    };
    let launch = Launch { grid: tiles(shape, tile)?, block: params::MATMUL_THREADS, shared_bytes };
    let Product { out, acc, alpha, x, w, transposed, second, bias, .. } = product;
    let rows = Aligned::of(gpu, &x)?;
    let flags = flags(&out, acc, shape.n, None, None) | matmul::bias_flag(bias.as_ref());
    let shape = Shape { k: rows.cols, ..shape };
    let mut p = scalars(w, shape.params(alpha, flags)?)?;
    p.product.k2 = size(second.map_or(0, |[u, _]| u.cols))?;
    let operands = Operands { out, x: rows.address(&x), w, second, bias };
    // SAFETY: `Product::shape` compared the lengths of out, x, the second pair and the bias with the
    // sizes in `p`; x is aligned bf16 or was copied to such rows, the second pair was found to be.
    unsafe { operands.launch(gpu, &functions[usize::from(!transposed)], launch, p) }
}

/// What the tiled and the skinny kernels read and write.
struct Operands<'a> {
    out: FloatsMut<'a>,
    /// Address of the rows.
    x: u64,
    w: &'a QuantMatrix,
    second: Option<[Factor<'a>; 2]>,
    bias: Option<Floats<'a>>,
}

impl Operands<'_> {
    /// # Safety
    /// All have the sizes in `p`, and the types and alignment that the kernel takes.
    unsafe fn launch(
        self,
        gpu: &Gpu,
        function: &Function,
        launch: Launch,
        mut p: QuantParams,
    ) -> Result<()> {
        let Operands { out, x: mut from, w, second, bias } = self;
        let [mut codes, mut high, mut scales, mut supers] = w.addresses();
        let [mut u, mut b] = second.map_or([0, 0], |pair| pair.map(|f| f.source.address()));
        let (mut to, mut bias) = (out.address(), bias.map_or(0, |bias| bias.address()));
        let mut args = [
            arg(&mut to),
            arg(&mut from),
            arg(&mut codes),
            arg(&mut high),
            arg(&mut scales),
            arg(&mut supers),
            arg(&mut u),
            arg(&mut b),
            arg(&mut bias),
            arg(&mut p),
        ];
        // SAFETY: the caller's word; a `QuantMatrix` has planes of its rows and strides; the arguments
        // are those of both kinds of kernels, in their order.
        unsafe { gpu.launch(function, launch, &mut args) }
    }
}

/// Blocks and shared memory of a skinny kernel; `None` where a block has no room for x.
fn skinny_launch(
    gpu: &Gpu,
    shape: Shape,
    f32: bool,
    format: Format,
    products: u32,
) -> Result<Option<Launch>> {
    let x_row = match f32 {
        true => 4 * (params::QUANT_UNIT + params::QUANT_SKINNY_PAD),
        false => 2 * params::QUANT_UNIT,
    };
    let of_warp = products * NAMES[format.id()].skinny_bytes.unwrap_or(0);
    // At most 16 rows, so far below 32 bits.
    let x_bytes = u32_of("rows of a skinny product", shape.m)? * x_row;
    let wide = tune::is_wide(gpu.sm(), shape.n);
    let mut warps = if wide { params::QUANT_SKINNY_WARPS } else { 1 };
    while warps > 0 {
        let shared_bytes = params::QUANT_TABLE_BYTES
            + params::QUANT_SKINNY_ZEROS
            + params::QUANT_SKINNY_STAGES * (x_bytes + warps * of_warp);
        if shared_bytes <= gpu.properties().shared_bytes {
            let columns = (warps * params::SKINNY_COLS) as usize;
            let grid = [u32_of("blocks of a product", shape.n.div_ceil(columns))?, 1, 1];
            return Ok(Some(Launch { grid, block: 32 * warps, shared_bytes }));
        }
        warps /= 2;
    }
    Ok(None)
}

/// x of a skinny product and how it is launched: as it lies where copies can bring it and there is
/// room for f32, else rounded.
fn skinny_rows(
    gpu: &Gpu,
    shape: Shape,
    x: &Factor<'_>,
    format: Format,
    products: u32,
) -> Result<(Aligned, u32, Launch)> {
    if x.is_aligned()
        && matches!(x.source, Source::F32(_))
        && let Some(launch) = skinny_launch(gpu, shape, true, format, products)?
    {
        return Ok((Aligned { copy: None, cols: x.cols }, params::MATMUL_F32, launch));
    }
    let launch = skinny_launch(gpu, shape, false, format, products)?;
    let launch = launch.ok_or_else(|| {
        let shared = gpu.properties().shared_bytes;
        Error::Unsupported(format!("skinny products with {shared} bytes of shared memory a block"))
    })?;
    Ok((Aligned::of(gpu, x)?, params::MATMUL_BF16, launch))
}

fn skinny(gpu: &Gpu, product: Product<'_>, shape: Shape, function: &Function) -> Result<()> {
    let Product { out, acc, alpha, x, w, second, bias, .. } = product;
    let (rows, a_type, launch) = skinny_rows(gpu, shape, &x, w.format(), 1)?;
    let flags = flags(&out, acc, shape.n, None, None) | matmul::bias_flag(bias.as_ref());
    let shape = Shape { k: rows.cols, ..shape };
    let mut p = scalars(w, shape.params(alpha, flags)?)?;
    p.product.a_type = a_type;
    p.product.k2 = size(second.map_or(0, |[u, _]| u.cols))?;
    let operands = Operands { out, x: rows.address(&x), w, second, bias };
    // SAFETY: as in `tensor`; x is aligned f32 or bf16, as `a_type` says, and of at most 16 rows; the
    // shared memory is what `skinny_launch` counts for these sizes.
    unsafe { operands.launch(gpu, function, launch, p) }
}

/// Whether [`gated`] takes `m` rows with these weights.
pub fn gates(m: usize, w1: &QuantMatrix, w3: &QuantMatrix) -> bool {
    let same = (w1.format(), w1.n(), w1.k()) == (w3.format(), w3.n(), w3.k());
    same && m <= FEW_ROWS && NAMES[w1.format().id()].skinny_bytes.is_some()
}

/// `out [m, n] = silu(x w1ᵀ) * (x w3ᵀ)` with `silu(v) = v / (1 + e^-v)`, in bf16, for at most
/// [`FEW_ROWS`] rows: both weights [n, k] of one format whose rows are whole blocks.
///
/// f32 sums; the two products are not rounded before they meet. Overwrites. The bits are those of two
/// products in f32 and [`swiglu`](super::swiglu), but for the sign of a zero.
///
/// # Errors
/// When shapes or formats do not fit, there are more rows, or a launch fails.
pub fn gated(
    gpu: &Gpu,
    out: FloatsMut<'_>,
    x: Factor<'_>,
    w1: &QuantMatrix,
    w3: &QuantMatrix,
) -> Result<()> {
    let shape = shape_of(&out, &x, w1.n(), w1.k())?;
    let function = match &gpu.quant.formats[w1.format().id()].skinny {
        Some([_, gated]) if gates(shape.m, w1, w3) => gated,
        _ => {
            let what = format!("a gated product of {} rows with {w1:?} and {w3:?}", shape.m);
            return Err(Error::Unsupported(what));
        }
    };
    if shape.is_empty() {
        return Ok(());
    }
    let (rows, a_type, launch) = skinny_rows(gpu, shape, &x, w1.format(), 2)?;
    let flags = flags(&out, false, shape.n, None, None);
    let shape = Shape { k: rows.cols, ..shape };
    let mut p = scalars(w1, shape.params(1.0, flags)?)?;
    (p.product.a_type, p.offset3) = (a_type, w3.offset());
    let [mut codes, mut high, mut scales, mut supers] = w1.addresses();
    let [mut codes3, mut high3, mut scales3, mut supers3] = w3.addresses();
    let (mut to, mut from) = (out.address(), rows.address(&x));
    let mut args = [
        arg(&mut to),
        arg(&mut from),
        arg(&mut codes),
        arg(&mut high),
        arg(&mut scales),
        arg(&mut supers),
        arg(&mut codes3),
        arg(&mut high3),
        arg(&mut scales3),
        arg(&mut supers3),
        arg(&mut p),
    ];
    // SAFETY: as in `skinny`; the second matrix has the first's format and sizes, so its strides.
    unsafe { gpu.launch(function, launch, &mut args) }
}

/// `out[i] = w[ids[i]]`, rows of `w.k()` elements; overwrites. In f32 the CPU's numbers, in bf16 those
/// rounded.
///
/// Ids are not looked at before the device does: the row of an id outside of the table is NaN.
///
/// # Errors
/// When lengths do not fit each other, or the launch fails.
pub fn gather(
    gpu: &Gpu,
    out: FloatsMut<'_>,
    w: &QuantMatrix,
    ids: DeviceSlice<'_, u32>,
) -> Result<()> {
    let k = w.k();
    expect_len("gather of quantised rows", "out", out.len(), ids.len().saturating_mul(k))?;
    if out.is_empty() {
        return Ok(());
    }
    let shape = Shape { m: ids.len(), n: k, k: 0 };
    let mut p = scalars(w, shape.params(1.0, flags(&out, false, k, None, None))?)?;
    let threads = params::QUANT_ROW_THREADS;
    // A thread has 8 weights of a chunk.
    let of_row = (4 * k.div_ceil(planes::CHUNK)).div_ceil(threads as usize);
    let launch = Launch {
        grid: [u32_of("rows of gather", ids.len())?, u32_of("blocks of a row", of_row)?, 1],
        block: threads,
        shared_bytes: params::QUANT_TABLE_BYTES,
    };
    let function = &gpu.quant.gather[usize::from(matches!(out, FloatsMut::Bf16(_)))];
    let [mut codes, mut high, mut scales, mut supers] = w.addresses();
    let (mut to, mut rows) = (out.address(), ids.address());
    let mut args = [
        arg(&mut to),
        arg(&mut codes),
        arg(&mut high),
        arg(&mut scales),
        arg(&mut supers),
        arg(&mut rows),
        arg(&mut p),
    ];
    // SAFETY: `out` has a row of k for each id, checked above; the kernel compares each id with the
    // matrix' rows, whose planes it has; pairs are stored where `flags` found them aligned.
    unsafe { gpu.launch(function, launch, &mut args) }
}
