//! Updates of the optimisers on the device, one launch a tensor, and the sum of squares over all
//! gradients. Source: `cuda/optim.cu`, twin of `kernels::optim` over `puna_cpu::optim`.

use half::bf16;

use super::elements::{Pair, by_elements, pair, wide};
use super::params::{self, AdamWParams, SgdParams, SquaresParams};
use super::{DeviceSlice, DeviceSliceMut, Function, Gpu, Launch, Modules, arg, expect_len, u32_of};
use crate::Result;

pub use puna_cpu::optim::{AdamW, Sgd};

/// The kernels; in pairs without and with `low`.
pub(crate) struct Optim {
    adamw: Pair,
    sgd: Pair,
    sgd_momentum: Pair,
    sum_of_squares: Function,
    total: Function,
}

impl Optim {
    pub fn load(modules: &Modules) -> Result<Self> {
        Ok(Optim {
            adamw: pair(modules, ["adamw_f32", "adamw_low_bf16"])?,
            sgd: pair(modules, ["sgd_f32", "sgd_low_bf16"])?,
            sgd_momentum: pair(modules, ["sgd_momentum_f32", "sgd_momentum_low_bf16"])?,
            sum_of_squares: modules.function("sum_of_squares_f32")?,
            total: modules.function("total_f64")?,
        })
    }
}

/// One tensor of an [`adamw`] step; all slices have one length.
#[derive(Debug)]
pub struct AdamWTensor<'a> {
    /// The weights.
    pub value: DeviceSliceMut<'a, f32>,
    /// Where their bf16 roundings go, if anywhere.
    pub low: Option<DeviceSliceMut<'a, bf16>>,
    /// First moment.
    pub m: DeviceSliceMut<'a, f32>,
    /// Second moment.
    pub v: DeviceSliceMut<'a, f32>,
    /// Gradient.
    pub grad: DeviceSlice<'a, f32>,
    /// Settings.
    pub hyper: AdamW,
}

/// One tensor of an [`sgd`] step; all slices have one length.
#[derive(Debug)]
pub struct SgdTensor<'a> {
    /// The weights.
    pub value: DeviceSliceMut<'a, f32>,
    /// Where their bf16 roundings go, if anywhere.
    pub low: Option<DeviceSliceMut<'a, bf16>>,
    /// The momentum, if any.
    pub momentum: Option<DeviceSliceMut<'a, f32>>,
    /// Gradient.
    pub grad: DeviceSlice<'a, f32>,
    /// Settings.
    pub hyper: Sgd,
}

/// One step of AdamW on each tensor (`puna_cpu::optim::adamw`), then `low` = `value` rounded.
///
/// f32; factors are formed in f64 and rounded once. Error: as on the CPU (`tests/cuda_vs_cpu/optim.rs`).
///
/// # Errors
/// When the slices of a tensor differ in length, or a launch fails.
pub fn adamw<'a>(gpu: &Gpu, tensors: impl IntoIterator<Item = AdamWTensor<'a>>) -> Result<()> {
    for tensor in tensors {
        let AdamWTensor { value, low, m, v, grad, hyper } = tensor;
        let n = value.len();
        let lengths = [("m", m.len()), ("v", v.len()), ("grad", grad.len())];
        for (name, len) in lengths {
            expect_len("adamw", name, len, n)?;
        }
        expect_len("adamw", "low", low.as_ref().map_or(n, |low| low.len()), n)?;
        if n == 0 {
            continue;
        }
        let [mut w, mut g] = [value.address(), grad.address()];
        let [mut m, mut v] = [m.address(), v.address()];
        // Where there is none: an address that is aligned and never used.
        let mut to_low = low.as_ref().map_or(0, |low| low.address());
        let mut p = AdamWParams {
            n: n as u64,
            grad_scale: hyper.grad_scale,
            keep: (1.0 - hyper.lr * hyper.weight_decay) as f32,
            new1: (1.0 - hyper.beta1) as f32,
            beta2: hyper.beta2 as f32,
            new2: (1.0 - hyper.beta2) as f32,
            root: (1.0 / hyper.bias_correction2.sqrt()) as f32,
            eps: hyper.eps as f32,
            step: (-hyper.lr / hyper.bias_correction1) as f32,
            wide: wide(&[w, g, m, v, to_low]).into(),
            pad_: 0,
        };
        let shape = by_elements("elements of a tensor", n, params::OPTIM_THREADS)?;
        let function = &gpu.optim.adamw[usize::from(low.is_some())];
        let all = [arg(&mut w), arg(&mut to_low), arg(&mut m), arg(&mut v), arg(&mut g)];
        let mut args = with_low(low.is_some(), all);
        args.push(arg(&mut p));
        // SAFETY: all arrays have `n` elements, compared above; `low` is a parameter of the instance
        // that was chosen where there is one; `wide` is set by the addresses.
        unsafe { gpu.launch(function, shape, &mut args) }?;
    }
    Ok(())
}

/// One step of gradient descent on each tensor (`puna_cpu::optim::sgd`), then `low` = `value`
/// rounded. Error: as on the CPU (`tests/cuda_vs_cpu/optim.rs`).
///
/// # Errors
/// When the slices of a tensor differ in length, or a launch fails.
pub fn sgd<'a>(gpu: &Gpu, tensors: impl IntoIterator<Item = SgdTensor<'a>>) -> Result<()> {
    for tensor in tensors {
        let SgdTensor { value, low, momentum, grad, hyper } = tensor;
        let n = value.len();
        expect_len("sgd", "grad", grad.len(), n)?;
        expect_len("sgd", "low", low.as_ref().map_or(n, |low| low.len()), n)?;
        expect_len("sgd", "momentum", momentum.as_ref().map_or(n, |x| x.len()), n)?;
        if n == 0 {
            continue;
        }
        let [mut w, mut g] = [value.address(), grad.address()];
        // Where there is none: an address that is aligned and never used.
        let mut to_low = low.as_ref().map_or(0, |low| low.address());
        let mut moved = momentum.as_ref().map_or(0, |x| x.address());
        let mut p = SgdParams {
            n: n as u64,
            grad_scale: hyper.grad_scale,
            decay: hyper.weight_decay as f32,
            momentum: hyper.momentum as f32,
            step: -hyper.lr as f32,
            wide: wide(&[w, g, to_low, moved]).into(),
            pad_: 0,
        };
        let shape = by_elements("elements of a tensor", n, params::OPTIM_THREADS)?;
        let of = if momentum.is_some() { &gpu.optim.sgd_momentum } else { &gpu.optim.sgd };
        let function = &of[usize::from(low.is_some())];
        let mut args = with_low(low.is_some(), [arg(&mut w), arg(&mut to_low)]);
        if momentum.is_some() {
            args.push(arg(&mut moved));
        }
        args.extend([arg(&mut g), arg(&mut p)]);
        // SAFETY: all arrays have `n` elements, compared above; `low` and the momentum are parameters
        // of the instance that was chosen where there are such; `wide` is set by the addresses.
        unsafe { gpu.launch(function, shape, &mut args) }?;
    }
    Ok(())
}

/// A kernel's arguments, the second of which is `low`: left out where there is none.
fn with_low<T, const N: usize>(has_low: bool, args: [T; N]) -> Vec<T> {
    let kept = args.into_iter().enumerate().filter(|(i, _)| has_low || *i != 1);
    kept.map(|(_, arg)| arg).collect()
}

/// `sum(x^2)` over all tensors; waits for it.
///
/// Chunks of `SQUARES_CHUNK` elements are summed apart, eight squares at a time in f32 and those in
/// f64, then the chunks' sums in f64: the bits depend on the tensors' lengths alone. Error: 8 epsilons
/// of f32 (`tests/cuda_vs_cpu/optim.rs`).
///
/// # Errors
/// When a launch fails, or the device's memory is full.
pub fn sum_of_squares(gpu: &Gpu, tensors: &[DeviceSlice<'_, f32>]) -> Result<f64> {
    let chunk = params::SQUARES_CHUNK as usize;
    let n_chunks: usize = tensors.iter().map(|x| x.len().div_ceil(chunk)).sum();
    let mut sums = gpu.alloc::<f64>(n_chunks)?;
    let mut first = 0;
    for x in tensors.iter().filter(|x| !x.is_empty()) {
        let blocks = x.len().div_ceil(chunk);
        let own = sums.slice_mut().range_mut(first..first + blocks);
        first += blocks;
        let [mut to, mut from] = [own.address(), x.address()];
        let mut p = SquaresParams { n: x.len() as u64, wide: wide(&[from]).into(), pad_: 0 };
        let mut args = [arg(&mut to), arg(&mut from), arg(&mut p)];
        // SAFETY: `own` has an element for each chunk of `x`, as counted above; `wide` is set by the
        // address.
        unsafe { gpu.launch(&gpu.optim.sum_of_squares, squares(blocks)?, &mut args) }?;
    }
    if n_chunks == 0 {
        return Ok(0.0);
    }
    let total = gpu.alloc::<f64>(1)?;
    let [mut to, mut from] = [total.slice().address(), sums.slice().address()];
    let mut p = SquaresParams { n: n_chunks as u64, wide: 0, pad_: 0 };
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut p)];
    // SAFETY: `sums` has `n_chunks` elements and `total` one, as allocated above.
    unsafe { gpu.launch(&gpu.optim.total, squares(1)?, &mut args) }?;
    let mut sum = [0.0];
    gpu.download(&total.slice(), &mut sum)?;
    Ok(sum[0])
}

fn squares(blocks: usize) -> Result<Launch> {
    let grid = [u32_of("chunks of a tensor", blocks)?, 1, 1];
    Ok(Launch { grid, block: params::SQUARES_THREADS, shared_bytes: 0 })
}
