//! Products by the warp groups of compute capability 9.0: `cuda/matmul_sm90a.cu` and
//! `cuda/matmul_tma_sm90a.cu`, where the device has them.
//!
//! **None of these has run on a GPU yet.** Callers and tests may name them; [`Kernel::Chosen`] takes
//! them only where `PUNA_CUDA_WGMMA=1` says so, for comparisons. A row's bits are then not known to
//! be those that [`Kernel::Skinny`] gives it.
//!
//! [`Kernel::Chosen`]: super::Kernel::Chosen
//! [`Kernel::Skinny`]: super::Kernel::Skinny

use super::super::params::{self, MatmulParams};
use super::super::tensor_map::{TensorMap, tensor_map};
use super::super::tune::{self, Form};
use super::super::{FloatsMut, Function, Gpu, Launch, Modules, aligned, arg, u32_of};
use super::{Factor, Shape, Source};
use crate::{Error, Result};

/// The kernels.
pub(super) struct Hopper {
    /// x wᵀ, copied by cp.async.
    pub wgmma: Function,
    /// By form, copied in bulk.
    tma: [Function; 4],
    /// Whether [`super::Kernel::Chosen`] may choose the latter.
    pub chosen: bool,
}

impl Hopper {
    /// `None` on devices of another kind.
    pub fn load(modules: &Modules) -> Result<Option<Self>> {
        let Some(wgmma) = modules.find("matmul_nt_bf16_wgmma")? else { return Ok(None) };
        let tma = super::named(
            modules,
            [
                "matmul_nn_bf16_tma",
                "matmul_nt_bf16_tma",
                "matmul_tn_bf16_tma",
                "matmul_tt_bf16_tma",
            ],
        )?;
        Ok(Some(Hopper { wgmma, tma, chosen: tune::groups_are_chosen() }))
    }
}

/// The device's kernels.
///
/// # Errors
/// When it has none.
pub(super) fn of(gpu: &Gpu) -> Result<&Hopper> {
    let why = || {
        let properties = gpu.properties();
        let (major, minor) = properties.capability;
        Error::Unsupported(format!(
            "products of warp groups (Wgmma, Tma) on {}, of compute capability {major}.{minor}: \
             they are for 9.0 alone",
            properties.name
        ))
    };
    gpu.matmul.hopper.as_ref().ok_or_else(why)
}

/// Whether 16 bytes of a row of the output may be moved at once.
pub(super) fn chunks(out: &FloatsMut<'_>, n: usize) -> u32 {
    if aligned(out.address(), n * out.element_bytes()) { params::MATMUL_CHUNKS } else { 0 }
}

/// Tiles of the output.
fn tiles(shape: Shape) -> Result<u32> {
    let rows = shape.m.div_ceil(params::WGMMA_BM as usize);
    let tiles = rows * shape.n.div_ceil(params::WGMMA_BN as usize);
    u32_of("tiles of a product", tiles)
}

/// A block a tile.
pub(super) fn launch(shape: Shape) -> Result<Launch> {
    Ok(Launch {
        grid: [tiles(shape)?, 1, 1],
        block: params::WGMMA_THREADS,
        shared_bytes: params::WGMMA_BYTES,
    })
}

/// The map of a factor, of whose rows (of a) or columns (of b) a tile has `lanes`. `along`: inputs
/// run along what is stored.
fn map(gpu: &Gpu, factor: &Factor<'_>, along: bool, lanes: u32) -> Result<TensorMap> {
    let Source::Bf16(x) = factor.source else {
        return Err(Error::Unsupported("bulk copies of factors that are not bf16".into()));
    };
    let box_rows = if along { lanes } else { params::WGMMA_BK };
    tensor_map(gpu, x, [factor.rows, factor.cols], factor.cols, box_rows)
}

/// The product by bulk copies: `out` and `bias` are addresses, of as many elements and of the types
/// that `p` says.
///
/// # Errors
/// When the device has no such kernels or refuses the launch.
///
/// # Safety
/// `out` and `bias` are as said, `out` borrowed mutably; `a` and `b` have the shapes in `p`.
pub(super) unsafe fn launch_tma(
    gpu: &Gpu,
    shape: Shape,
    mut out: u64,
    [a, b]: [&Factor<'_>; 2],
    mut bias: u64,
    mut p: MatmulParams,
) -> Result<()> {
    let kernels = of(gpu)?;
    let mut from_a = map(gpu, a, !a.transposed, params::WGMMA_BM)?;
    let mut from_b = map(gpu, b, b.transposed, params::WGMMA_BN)?;
    // No more blocks than run at one time: each takes tile after tile.
    let blocks = tiles(shape)?.min(gpu.properties().n_multiprocessors);
    let launch = Launch { grid: [blocks, 1, 1], ..launch(shape)? };
    let form = Form::of(a.transposed, b.transposed);
    let mut args = [arg(&mut out), arg(&mut from_a), arg(&mut from_b), arg(&mut bias), arg(&mut p)];
    // SAFETY: the caller's promise; copies stay within the maps' matrices, which `tensor_map` held
    // against their buffers.
    unsafe { gpu.launch(&kernels.tma[form as usize], launch, &mut args) }
}
