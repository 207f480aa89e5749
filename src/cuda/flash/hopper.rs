//! Attention by the warp groups of compute capability 9.0: `cuda/flash_fwd_sm90a.cu`, where the
//! device has it, for heads of 64 and 128.
//!
//! **It has not run on a GPU yet**: as in `matmul::hopper`, [`super::Forward::Chosen`] takes it only
//! where `PUNA_CUDA_WGMMA=1` says so.

use super::super::params;
use super::super::tensor_map::tensor_map;
use super::super::{DeviceSlice, Floats, Gpu, Launch, Modules, arg, tune};
use super::{Kernel, Plan};
use crate::{Error, Result};

/// Which kernel computes a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Whichever suits: what everyone but a test asks for.
    Chosen,
    /// That of every device.
    Mma,
    /// That of compute capability 9.0, for bf16 heads of 64 and 128.
    Wgmma,
}

/// The kernels.
pub(super) struct Hopper {
    /// With the widths of their heads.
    forward: [(usize, Kernel); 2],
    /// Whether [`super::Forward::Chosen`] may choose them.
    chosen: bool,
}

impl Hopper {
    /// `None` on devices of another kind.
    pub fn load(modules: &Modules) -> Result<Option<Self>> {
        let Some(narrow) = modules.find("flash_fwd_bf16_64_wgmma")? else { return Ok(None) };
        let wide = modules.function("flash_fwd_bf16_128_wgmma")?;
        let rows = params::FLASH_GROUP_ROWS;
        let kernel = |function, shared_bytes| Kernel { function, rows, shared_bytes };
        Ok(Some(Hopper {
            forward: [
                (64, kernel(narrow, params::FLASH_GROUP_BYTES_64)),
                (128, kernel(wide, params::FLASH_GROUP_BYTES_128)),
            ],
            chosen: tune::groups_are_chosen(),
        }))
    }
}

/// The kernel of these that is to compute a plan's forward pass, if one is.
///
/// # Errors
/// When it is asked for by name and the device has none.
pub(super) fn kernel<'g>(gpu: &'g Gpu, plan: &Plan, by: Forward) -> Result<Option<&'g Kernel>> {
    let kernels = gpu.flash.hopper.as_ref().filter(|kernels| match by {
        Forward::Chosen => kernels.chosen,
        Forward::Mma => false,
        Forward::Wgmma => true,
    });
    let takes = |width: usize| plan.dtype == "bf16" && width == plan.head_dim;
    let found = kernels.and_then(|kernels| kernels.forward.iter().find(|(w, _)| takes(*w)));
    if found.is_none() && by == Forward::Wgmma {
        return Err(refusal(gpu, plan));
    }
    Ok(found.map(|(_, kernel)| kernel))
}

/// What a caller that asked for a kernel by name is told where there is none.
fn refusal(gpu: &Gpu, plan: &Plan) -> Error {
    let (major, minor) = gpu.properties().capability;
    Error::Unsupported(format!(
        "attention of warp groups on {}, of compute capability {major}.{minor}, for {} heads of {}: \
         it is for 9.0 alone and bf16 heads of 64 or 128",
        gpu.properties().name,
        plan.dtype,
        plan.head_dim
    ))
}

/// `forward` by this kernel, of a plan that it was found for and that has rows.
///
/// # Errors
/// When the launch fails.
///
/// # Safety
/// `out` is the address of as many elements of the plan's type as q has, and borrowed mutably.
pub(super) unsafe fn forward(
    gpu: &Gpu,
    plan: &Plan,
    kernel: &Kernel,
    mut out: u64,
    lse: DeviceSlice<'_, f32>,
    rows: [Floats<'_>; 3],
) -> Result<()> {
    let map = |x: Floats<'_>, heads: usize| match x {
        Floats::Bf16(x) => {
            let cols = heads * plan.head_dim;
            tensor_map(gpu, x, [plan.t, cols], cols, kernel.rows)
        }
        Floats::F32(_) => Err(refusal(gpu, plan)),
    };
    let [q, k, v] = rows;
    let (mut q, mut k, mut v) =
        (map(q, plan.n_heads)?, map(k, plan.n_kv_heads)?, map(v, plan.n_kv_heads)?);
    let mut lse = lse.address();
    let mut tiles = plan.forward.buffer.slice().address();
    let mut p = plan.params;
    let mut args = [
        arg(&mut out),
        arg(&mut lse),
        arg(&mut q),
        arg(&mut k),
        arg(&mut v),
        arg(&mut tiles),
        arg(&mut p),
    ];
    let block = params::FLASH_GROUP_THREADS;
    let launch = Launch { block, ..plan.launch(kernel, &plan.forward, p.n_heads, 1) };
    // SAFETY: the caller's promise for `out`; the tiles cover the plan's rows, and tiles of its
    // forward pass have as many rows as a block of this kernel; copies stay within the maps'
    // matrices, which `tensor_map` held against their buffers.
    unsafe { gpu.launch(&kernel.function, launch, &mut args) }
}

// A block's rows are those of the plan's forward tiles.
const _: () = assert!(params::FLASH_GROUP_ROWS == params::FLASH_FWD_ROWS);
