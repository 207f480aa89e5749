//! Launches of the harness' own test kernels (`cuda/host/planted.cu`).

use super::{DeviceSlice, DeviceSliceMut, Gpu, Launch, arg, expect_len, u32_of};
use crate::{Error, Result};

/// Threads of a block, and elements of both buffers.
pub const PLANTED: usize = 64;

/// Runs a kernel of `cuda/host/planted.cu` with `blocks` blocks of [`PLANTED`] threads, of which each
/// has one f32 of dynamic shared memory. Each has one mistake; on a GPU nobody would say what it does,
/// so this is for [`Gpu::host`] alone, which bounds all of them: buffers have guards behind them.
///
/// # Errors
/// What the harness found.
pub fn launch(
    gpu: &Gpu,
    name: &'static str,
    blocks: u32,
    out: DeviceSliceMut<'_, f32>,
    x: DeviceSlice<'_, f32>,
) -> Result<()> {
    if !gpu.is_host() || !name.starts_with("planted_") {
        return Err(Error::Unsupported(format!("{name} where no harness bounds what it does")));
    }
    expect_len(name, "out", out.len(), PLANTED)?;
    expect_len(name, "x", x.len(), PLANTED)?;
    let function = gpu.host_function(name)?;
    let (mut to, mut from) = (out.address(), x.address());
    let mut n = u32_of("elements", PLANTED)?;
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut n)];
    let shape = Launch { grid: [blocks, 1, 1], block: n, shared_bytes: 4 * n };
    // SAFETY: the arguments are those of every such kernel, and the lengths were compared. What they
    // touch beyond them is at most 16 bytes away, within the guards of the harness' buffers.
    unsafe { gpu.launch(&function, shape, &mut args) }
}

/// Launches a kernel of three arguments with two, which has to be noticed before it starts.
///
/// # Errors
/// What the harness found.
pub fn launch_with_an_argument_too_few(gpu: &Gpu) -> Result<()> {
    let function = gpu.host_function("planted_nothing")?;
    let mut nothing = 0u64;
    let mut args = [arg(&mut nothing), arg(&mut nothing)];
    let shape = Launch { grid: [1, 1, 1], block: 32, shared_bytes: 0 };
    // SAFETY: `host_function` gives kernels of the harness only, which counts the arguments first.
    unsafe { gpu.launch(&function, shape, &mut args) }
}
