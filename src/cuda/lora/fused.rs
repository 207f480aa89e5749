//! The kernels that take a layer and its adapter at once, and how they are launched.

use super::{RowAdapters, Weight};
use crate::cuda::matmul::{self, FEW_ROWS, Factor, Precision, Shape, flags};
use crate::cuda::params::{self, LoraParams};
use crate::cuda::quant::{self, QuantMatrix};
use crate::cuda::{
    DeviceBuffer, DeviceSlice, DeviceSliceMut, Floats, FloatsMut, Gpu, Launch, arg, expect_len,
    tune, u32_of,
};
use crate::{Error, Result};
use half::bf16;

/// Which instance of the fused kernel has room for a rank.
pub(super) fn fused_rank(r: usize) -> Option<(usize, u32)> {
    match r {
        _ if !r.is_multiple_of(8) || r == 0 => None,
        1..=16 => Some((0, params::LORA_RANK_16)),
        17..=32 => Some((1, params::LORA_RANK_32)),
        33..=64 => Some((2, params::LORA_RANK_64)),
        _ => None,
    }
}

/// What the fused kernel takes besides its factors.
pub(super) struct Fused<'a> {
    pub shape: Shape,
    pub r: usize,
    pub bias: Option<Floats<'a>>,
    /// Where `scales` is none.
    pub scale: f32,
    pub scales: Option<DeviceSlice<'a, f32>>,
    pub rows: Option<&'a RowAdapters>,
}

/// For up to [`FEW_ROWS`] rows `us = bf16(s x aᵀ)` [m, r], and u if it is wanted, by the rows'
/// adapters.
fn shrink(
    gpu: &Gpu,
    us: &DeviceBuffer<bf16>,
    u: Option<DeviceSliceMut<'_, f32>>,
    [x, a]: [Factor<'_>; 2],
    job: &Fused<'_>,
    mut p: LoraParams,
) -> Result<()> {
    let &Fused { shape, r, scales, rows, .. } = job;
    let cols = params::SKINNY_NARROW * params::SKINNY_COLS;
    let n_adapters = rows.map_or(1, |rows| rows.n_adapters);
    let narrow = matmul::skinny(Shape { n: r, ..shape }, false, false, 1)?;
    let blocks = u32_of("blocks of adapters", n_adapters * r.div_ceil(cols as usize))?;
    let launch = Launch { grid: [blocks, 1, 1], ..narrow };
    let (mut us, mut to_u) = (us.slice().address(), u.map_or(0, |u| u.address()));
    let [mut x, mut a] = [x, a].map(|f| f.source.address());
    let mut scales = scales.map_or(0, |scales| scales.address());
    let mut adapter_of = rows.map_or(0, |rows| rows.adapter_of.slice().address());
    let mut args = [
        arg(&mut us),
        arg(&mut to_u),
        arg(&mut x),
        arg(&mut a),
        arg(&mut scales),
        arg(&mut adapter_of),
        arg(&mut p),
    ];
    // SAFETY: `fused` and `fused_quant`, the only callers but for `few`, have their callers' word for
    // the lengths of x, a, u and the list, which are the sizes in `p`; `us` is as large as u; the
    // arguments are the kernel's.
    unsafe { gpu.launch(&gpu.lora.skinny_shrink, launch, &mut args) }
}

/// [`fused`] for up to [`FEW_ROWS`] rows, with the same bits.
fn few(
    gpu: &Gpu,
    y: FloatsMut<'_>,
    u: Option<DeviceSliceMut<'_, f32>>,
    [x, w, a, b]: [Factor<'_>; 4],
    job: &Fused<'_>,
    mut p: LoraParams,
) -> Result<()> {
    let &Fused { shape, r, bias, rows, .. } = job;
    let us = gpu.alloc::<bf16>(shape.m * r)?;
    shrink(gpu, &us, u, [x, a], job, p)?;
    let wide = tune::is_wide(matmul::sm(gpu), shape.n);
    let [mut x, mut w, mut b] = [x, w, b].map(|f| f.source.address());
    let mut us = us.slice().address();
    let mut adapter_of = rows.map_or(0, |rows| rows.adapter_of.slice().address());
    let (mut to, mut bias) = (y.address(), bias.map_or(0, |bias| bias.address()));
    let mut args = [
        arg(&mut to),
        arg(&mut us),
        arg(&mut x),
        arg(&mut w),
        arg(&mut b),
        arg(&mut adapter_of),
        arg(&mut bias),
        arg(&mut p),
    ];
    let launch = matmul::skinny(shape, wide, false, 1)?;
    // SAFETY: as in `shrink`, for y, w, b and the bias; rows of `us` that nothing wrote have no
    // adapter, and are not read.
    unsafe { gpu.launch(&gpu.lora.skinny[usize::from(!wide)], launch, &mut args) }
}

/// Scalars of a fused kernel, but for its tiles of rows.
fn scalars(y: &FloatsMut<'_>, job: &Fused<'_>) -> Result<LoraParams> {
    let &Fused { shape, r, bias, scale, .. } = job;
    let flags = flags(y, false, shape.n, None, None) | matmul::bias_flag(bias.as_ref());
    let product = shape.params(1.0, flags)?;
    Ok(LoraParams { product, r: matmul::size(r)?, tiles: 0, scale, pad_: 0 })
}

/// How a fused kernel of tiles is launched, with room for rank `room`.
fn launch_of(tiles: usize, shape: Shape, room: u32, behind: u32) -> Result<Launch> {
    let tile = params::LORA_TILE as usize;
    let ring = params::MATMUL_STAGES * (2 * params::LORA_TILE + room) * params::MATMUL_BK * 2;
    Ok(Launch {
        grid: [u32_of("tiles of an adapted layer", tiles * shape.n.div_ceil(tile))?, 1, 1],
        block: params::LORA_THREADS,
        shared_bytes: ring + behind,
    })
}

/// Quantised w [n, k] of a common format, x [m, k], a [r, k] and b [n, r], aligned bf16; one adapter.
pub(super) fn fused_quant(
    gpu: &Gpu,
    y: FloatsMut<'_>,
    u: DeviceSliceMut<'_, f32>,
    w: &QuantMatrix,
    [x, a, b]: [Factor<'_>; 3],
    job: &Fused<'_>,
) -> Result<()> {
    let &Fused { shape, r, bias, .. } = job;
    if shape.is_empty() {
        return Ok(());
    }
    let mut p = scalars(&y, job)?;
    if shape.m <= FEW_ROWS {
        let us = gpu.alloc::<bf16>(shape.m * r)?;
        shrink(gpu, &us, Some(u), [x, a], job, p)?;
        let us = Factor::plain(Floats::Bf16(us.slice()), shape.m, r);
        let product = quant::Product::nt(Precision::Bf16, y, x, w);
        return quant::gemm(gpu, quant::Product { bias, second: Some([us, b]), ..product });
    }
    let tiles = shape.m.div_ceil(params::LORA_TILE as usize);
    p.tiles = matmul::size(tiles)?;
    let (function, room) = quant::adapted(gpu, w, r, false)?;
    let launch = launch_of(tiles, shape, room, params::QUANT_TABLE_BYTES)?;
    let mut q = quant::scalars(w, p.product)?;
    let [mut codes, mut high, mut scales, mut supers] = w.addresses();
    let [mut x, mut a, mut b] = [x, a, b].map(|f| f.source.address());
    let (mut to, mut to_u) = (y.address(), u.address());
    let mut bias = bias.map_or(0, |bias| bias.address());
    let mut args = [
        arg(&mut to),
        arg(&mut to_u),
        arg(&mut x),
        arg(&mut codes),
        arg(&mut high),
        arg(&mut scales),
        arg(&mut supers),
        arg(&mut a),
        arg(&mut b),
        arg(&mut bias),
        arg(&mut p),
        arg(&mut q),
    ];
    // SAFETY: `forward`, the only caller, compared the lengths of y, u, x, a, b and the bias with the
    // sizes in `p` and found x, a and b to be aligned bf16; a `QuantMatrix` has planes of its rows and
    // strides; the arguments are the kernel's.
    unsafe { gpu.launch(function, launch, &mut args) }
}

/// Factors x [m, k], w [n, k], a [adapters * r, k] and b [adapters * n, r], aligned bf16.
pub(super) fn fused(
    gpu: &Gpu,
    y: FloatsMut<'_>,
    u: Option<DeviceSliceMut<'_, f32>>,
    [x, w, a, b]: [Factor<'_>; 4],
    job: &Fused<'_>,
) -> Result<()> {
    let &Fused { shape, r, bias, scales, rows, .. } = job;
    let Some((instance, room)) = fused_rank(r) else {
        return Err(Error::Unsupported(format!("a fused adapter of rank {r}")));
    };
    if shape.is_empty() {
        return Ok(());
    }
    let mut p = scalars(&y, job)?;
    if shape.m <= FEW_ROWS {
        return few(gpu, y, u, [x, w, a, b], job, p);
    }
    let one = shape.m.div_ceil(params::LORA_TILE as usize);
    let tiles = rows.map_or(one, |rows| rows.tiles.len() / 4);
    p.tiles = matmul::size(tiles)?;
    let launch = launch_of(tiles, shape, room, 0)?;
    let mut to = y.address();
    let mut to_u = u.map_or(0, |u| u.address());
    let [mut x, mut w, mut a, mut b] = [x, w, a, b].map(|f| f.source.address());
    let mut scales = scales.map_or(0, |scales| scales.address());
    let mut list = rows.map_or(0, |rows| rows.rows.slice().address());
    let mut tiles = rows.map_or(0, |rows| rows.tiles.slice().address());
    let mut bias = bias.map_or(0, |bias| bias.address());
    let mut args = [
        arg(&mut to),
        arg(&mut to_u),
        arg(&mut x),
        arg(&mut w),
        arg(&mut a),
        arg(&mut b),
        arg(&mut scales),
        arg(&mut list),
        arg(&mut tiles),
        arg(&mut bias),
        arg(&mut p),
    ];
    // SAFETY: both callers compared the lengths of y, u and the factors with the sizes in `p`, and
    // found the factors to be aligned bf16; `grouped` made tiles of rows and adapters that exist;
    // the arguments are the kernel's.
    unsafe { gpu.launch(&gpu.lora.fused[instance], launch, &mut args) }
}

/// What the derivative of a layer's input is made of.
pub(super) struct Back<'a> {
    pub dy: Factor<'a>,
    pub w: Weight<'a>,
    pub a: Factor<'a>,
    pub b: Factor<'a>,
    pub scale: f32,
}

impl Back<'_> {
    /// Whether a fused kernel takes them and gives this `du`.
    pub fn fits(&self, du: &FloatsMut<'_>) -> bool {
        let Back { dy, w, a, b, .. } = self;
        let low = matches!(du, FloatsMut::Bf16(_)) && du.address().is_multiple_of(4);
        low && fused_rank(a.rows).is_some()
            && w.is_fused()
            && [dy, a, b].iter().all(|f| f.is_aligned_bf16() && !f.transposed)
    }

    /// `du = scale dy b` and `dx (+)= dy w + du a`.
    ///
    /// # Errors
    /// When shapes do not fit, or a launch fails.
    pub fn input(&self, gpu: &Gpu, dx: FloatsMut<'_>, acc: bool, du: FloatsMut<'_>) -> Result<()> {
        let &Back { dy, w, a, b, scale } = self;
        let shape = w.shape_back("derivative of an adapted layer", &dx, &dy)?;
        let (m, n, k, r) = (shape.m, shape.k, shape.n, a.rows);
        expect_len("adapted layer", "du", du.len(), m * r)?;
        if (a.cols, b.rows, b.cols) != (k, n, r) {
            return Err(Error::Shape {
                op: "adapter".into(),
                expected: format!("a [{r}, {k}], b [{n}, {r}]"),
                got: format!("a [{}, {}], b [{}, {}]", a.rows, a.cols, b.rows, b.cols),
            });
        }
        let Some((instance, room)) = fused_rank(r) else {
            return Err(Error::Unsupported(format!("a fused adapter of rank {r}")));
        };
        if shape.m == 0 || shape.n == 0 {
            return Ok(());
        }
        let tiles = m.div_ceil(params::LORA_TILE as usize);
        let product = shape.params(1.0, flags(&dx, acc, shape.n, None, None))?;
        let (rank, tiles_of) = (matmul::size(r)?, matmul::size(tiles)?);
        let mut p = LoraParams { product, r: rank, tiles: tiles_of, scale, pad_: 0 };
        let (mut to, mut to_du) = (dx.address(), du.address());
        let [mut dy, mut a, mut b] = [dy, a, b].map(|f| f.source.address());
        match w {
            Weight::Stored(w) => {
                let mut w = w.source.address();
                let mut args = [
                    arg(&mut to),
                    arg(&mut to_du),
                    arg(&mut dy),
                    arg(&mut w),
                    arg(&mut b),
                    arg(&mut a),
                    arg(&mut p),
                ];
                let launch = launch_of(tiles, shape, room, 0)?;
                // SAFETY: the lengths of dx, du and the factors were compared with the sizes in `p`,
                // and `fits`, which the caller asked, found them to be aligned bf16; the arguments are
                // the kernel's.
                unsafe { gpu.launch(&gpu.lora.back[instance], launch, &mut args) }
            }
            Weight::Quant(w) => {
                let (function, room) = quant::adapted(gpu, w, r, true)?;
                let launch = launch_of(tiles, shape, room, params::QUANT_TABLE_BYTES)?;
                let mut q = quant::scalars(w, p.product)?;
                let [mut codes, mut high, mut scales, mut supers] = w.addresses();
                let mut args = [
                    arg(&mut to),
                    arg(&mut to_du),
                    arg(&mut dy),
                    arg(&mut codes),
                    arg(&mut high),
                    arg(&mut scales),
                    arg(&mut supers),
                    arg(&mut b),
                    arg(&mut a),
                    arg(&mut p),
                    arg(&mut q),
                ];
                // SAFETY: as above; a `QuantMatrix` has planes of its rows and strides.
                unsafe { gpu.launch(function, launch, &mut args) }
            }
        }
    }
}
