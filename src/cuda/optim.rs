//! Updates of the optimisers on the device, one launch for all tensors that share their settings, and
//! the sum of squares over all gradients. Source: `cuda/optim.cu`, twin of `kernels::optim` over
//! `puna_cpu::optim`.

use std::sync::{Mutex, MutexGuard};

use half::bf16;

use super::elements::wide;
use super::params::{
    self, AdamWParams, ELEMENT_LANES, OptimTensor, SgdParams, SquaresParams, TotalParams,
};
use super::{
    DeviceBuffer, DeviceSlice, DeviceSliceMut, Function, Gpu, Launch, Modules, arg, expect_len,
    u32_of,
};
use crate::Result;

pub use puna_cpu::optim::{AdamW, Sgd};

/// The kernels.
pub(crate) struct Optim {
    adamw: Function,
    sgd: Function,
    sum_of_squares: Function,
    total: Function,
    updated: List,
    summed: List,
}

impl Optim {
    pub fn load(modules: &Modules) -> Result<Self> {
        Ok(Optim {
            adamw: modules.function("adamw_f32")?,
            sgd: modules.function("sgd_f32")?,
            sum_of_squares: modules.function("sum_of_squares_f32")?,
            total: modules.function("total_f64")?,
            updated: List::default(),
            summed: List::default(),
        })
    }
}

/// Words of a tensor in a [`List`].
const WORDS: usize = size_of::<OptimTensor>() / size_of::<u64>();

/// What a launch is told of its tensors, on the device. The one of the last call stays: buffers of a
/// training run keep their addresses, so the next step finds the same list and uploads nothing.
#[derive(Default)]
struct List(Mutex<Option<(Vec<u64>, DeviceBuffer<u64>)>>);

/// The device's copy of a list, held until its launches are queued.
struct Listed<'a>(MutexGuard<'a, Option<(Vec<u64>, DeviceBuffer<u64>)>>);

impl List {
    fn put(&self, gpu: &Gpu, tensors: &[OptimTensor]) -> Result<Listed<'_>> {
        let words = tensors.iter().flat_map(|t| [t.n, t.first, t.wide, t.w, t.low, t.m, t.v, t.g]);
        let words: Vec<u64> = words.collect();
        // A panic while it was held left a whole list, or none.
        let mut last = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if last.as_ref().is_none_or(|(known, _)| *known != words) {
            let buffer = gpu.upload(&words)?;
            *last = Some((words, buffer));
        }
        Ok(Listed(last))
    }
}

impl Listed<'_> {
    /// Where the tensors from this one on are listed.
    fn address(&self, first: usize) -> u64 {
        let Some((_, buffer)) = &*self.0 else { return 0 };
        buffer.slice().range(first * WORDS..buffer.len()).address()
    }
}

/// Tensors that one launch works on, each cut into blocks from its own beginning.
#[derive(Default)]
struct Batch {
    tensors: Vec<OptimTensor>,
    blocks: usize,
}

impl Batch {
    /// Adds a tensor, whose blocks have so many elements. Empty ones have none.
    fn push(&mut self, tensor: OptimTensor, of_block: usize) {
        if tensor.n > 0 {
            let first = self.blocks as u64;
            self.blocks += (tensor.n as usize).div_ceil(of_block);
            self.tensors.push(OptimTensor { first, ..tensor });
        }
    }
}

/// Batches by the factors of their update, in the order in which these first came: tensors with and
/// without weight decay, as a rule.
fn batch_of<const N: usize>(batches: &mut Vec<([f32; N], Batch)>, factors: [f32; N]) -> &mut Batch {
    let bits = |factors: &[f32; N]| factors.map(f32::to_bits);
    let found = batches.iter().position(|(known, _)| bits(known) == bits(&factors));
    let at = found.unwrap_or_else(|| {
        batches.push((factors, Batch::default()));
        batches.len() - 1
    });
    &mut batches[at].1
}

/// Elements of a block of the updates.
const OF_BLOCK: usize = (params::OPTIM_THREADS * ELEMENT_LANES) as usize;

/// Runs `launch` for each batch: its factors, where its tensors are listed, their number, its blocks.
fn each_batch<const N: usize>(
    gpu: &Gpu,
    batches: &[([f32; N], Batch)],
    mut launch: impl FnMut(&[f32; N], u64, u32, Launch) -> Result<()>,
) -> Result<()> {
    let all: Vec<_> = batches.iter().flat_map(|(_, batch)| &batch.tensors).copied().collect();
    if all.is_empty() {
        return Ok(());
    }
    let listed = gpu.optim.updated.put(gpu, &all)?;
    let mut first = 0;
    for (factors, Batch { tensors, blocks }) in batches.iter().filter(|(_, b)| b.blocks > 0) {
        let grid = [u32_of("blocks of an update", *blocks)?, 1, 1];
        let shape = Launch { grid, block: params::OPTIM_THREADS, shared_bytes: 0 };
        let count = u32_of("tensors of an update", tensors.len())?;
        launch(factors, listed.address(first), count, shape)?;
        first += tensors.len();
    }
    Ok(())
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
/// When the slices of a tensor differ in length, the device has no memory, or a launch fails.
pub fn adamw<'a>(gpu: &Gpu, tensors: impl IntoIterator<Item = AdamWTensor<'a>>) -> Result<()> {
    let mut batches = vec![];
    // Borrowed until all is queued.
    let tensors: Vec<AdamWTensor<'a>> = tensors.into_iter().collect();
    for AdamWTensor { value, low, m, v, grad, hyper } in &tensors {
        let n = value.len();
        let lengths = [("m", m.len()), ("v", v.len()), ("grad", grad.len())];
        for (name, len) in lengths {
            expect_len("adamw", name, len, n)?;
        }
        expect_len("adamw", "low", low.as_ref().map_or(n, |low| low.len()), n)?;
        let factors = [
            hyper.grad_scale,
            (1.0 - hyper.lr * hyper.weight_decay) as f32,
            (1.0 - hyper.beta1) as f32,
            hyper.beta2 as f32,
            (1.0 - hyper.beta2) as f32,
            (1.0 / hyper.bias_correction2.sqrt()) as f32,
            hyper.eps as f32,
            (-hyper.lr / hyper.bias_correction1) as f32,
        ];
        let [w, m, v, g] = [value.address(), m.address(), v.address(), grad.address()];
        // Where there is none: an address that is aligned and never used.
        let low = low.as_ref().map_or(0, |low| low.address());
        let wide = wide(&[w, low, m, v, g]).into();
        let tensor = OptimTensor { n: n as u64, first: 0, wide, w, low, m, v, g };
        batch_of(&mut batches, factors).push(tensor, OF_BLOCK);
    }
    each_batch(gpu, &batches, |factors, mut list, tensors, shape| {
        let &[grad_scale, keep, new1, beta2, new2, root, eps, step] = factors;
        let mut p =
            AdamWParams { tensors, grad_scale, keep, new1, beta2, new2, root, eps, step, pad_: 0 };
        // SAFETY: all arrays of a tensor have the `n` elements that its entry says, compared above,
        // `low` where its address is not 0; `wide` is set by the addresses; the list at `list` has
        // `tensors` entries, whose blocks are the grid's.
        unsafe { gpu.launch(&gpu.optim.adamw, shape, &mut [arg(&mut list), arg(&mut p)]) }
    })
}

/// One step of gradient descent on each tensor (`puna_cpu::optim::sgd`), then `low` = `value`
/// rounded. Error: as on the CPU (`tests/cuda_vs_cpu/optim.rs`).
///
/// # Errors
/// When the slices of a tensor differ in length, the device has no memory, or a launch fails.
pub fn sgd<'a>(gpu: &Gpu, tensors: impl IntoIterator<Item = SgdTensor<'a>>) -> Result<()> {
    let mut batches = vec![];
    // Borrowed until all is queued.
    let tensors: Vec<SgdTensor<'a>> = tensors.into_iter().collect();
    for SgdTensor { value, low, momentum, grad, hyper } in &tensors {
        let n = value.len();
        expect_len("sgd", "grad", grad.len(), n)?;
        expect_len("sgd", "low", low.as_ref().map_or(n, |low| low.len()), n)?;
        expect_len("sgd", "momentum", momentum.as_ref().map_or(n, |x| x.len()), n)?;
        let factors =
            [hyper.grad_scale, hyper.weight_decay as f32, hyper.momentum as f32, -hyper.lr as f32];
        let [w, g] = [value.address(), grad.address()];
        // Where there is none: an address that is aligned and never used.
        let low = low.as_ref().map_or(0, |low| low.address());
        let m = momentum.as_ref().map_or(0, |x| x.address());
        let wide = wide(&[w, g, low, m]).into();
        let tensor = OptimTensor { n: n as u64, first: 0, wide, w, low, m, v: 0, g };
        batch_of(&mut batches, factors).push(tensor, OF_BLOCK);
    }
    each_batch(gpu, &batches, |factors, mut list, tensors, shape| {
        let &[grad_scale, decay, momentum, step] = factors;
        let mut p = SgdParams { tensors, grad_scale, decay, momentum, step, pad_: 0 };
        // SAFETY: all arrays of a tensor have the `n` elements that its entry says, compared above,
        // `low` and momentum where their addresses are not 0; `wide` is set by the addresses; the
        // list at `list` has `tensors` entries, whose blocks are the grid's.
        unsafe { gpu.launch(&gpu.optim.sgd, shape, &mut [arg(&mut list), arg(&mut p)]) }
    })
}

/// `sum(x^2)` over all tensors, in two launches; waits for it.
///
/// Chunks of `SQUARES_CHUNK` elements are summed apart, eight squares at a time in f32 and those in
/// f64, then the chunks' sums in f64: the bits depend on the tensors' lengths alone. Error: 8 epsilons
/// of f32 (`tests/cuda_vs_cpu/optim.rs`).
///
/// # Errors
/// When a launch fails, or the device's memory is full.
pub fn sum_of_squares(gpu: &Gpu, tensors: &[DeviceSlice<'_, f32>]) -> Result<f64> {
    let mut batch = Batch::default();
    for x in tensors {
        let (n, g) = (x.len() as u64, x.address());
        let wide = wide(&[g]).into();
        let tensor = OptimTensor { n, first: 0, wide, w: 0, low: 0, m: 0, v: 0, g };
        batch.push(tensor, params::SQUARES_CHUNK as usize);
    }
    let Batch { tensors, blocks } = batch;
    if tensors.is_empty() {
        return Ok(0.0);
    }
    let (sums, total) = (gpu.alloc::<f64>(blocks)?, gpu.alloc::<f64>(1)?);
    let listed = gpu.optim.summed.put(gpu, &tensors)?;
    let [mut to, mut list] = [sums.slice().address(), listed.address(0)];
    let mut p = SquaresParams { tensors: u32_of("tensors of a sum", tensors.len())?, pad_: 0 };
    let mut args = [arg(&mut to), arg(&mut list), arg(&mut p)];
    // SAFETY: an entry says the length of its tensor, `wide` is set by its address; `sums` has an
    // element for each chunk, which are the grid's blocks.
    unsafe { gpu.launch(&gpu.optim.sum_of_squares, squares(blocks)?, &mut args) }?;
    let [mut to, mut from] = [total.slice().address(), sums.slice().address()];
    let mut p = TotalParams { n: blocks as u64 };
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut p)];
    // SAFETY: `sums` has `blocks` elements and `total` one, as allocated above.
    unsafe { gpu.launch(&gpu.optim.total, squares(1)?, &mut args) }?;
    let mut sum = [0.0];
    gpu.download(&total.slice(), &mut sum)?;
    Ok(sum[0])
}

fn squares(blocks: usize) -> Result<Launch> {
    let grid = [u32_of("chunks of a tensor", blocks)?, 1, 1];
    Ok(Launch { grid, block: params::SQUARES_THREADS, shared_bytes: 0 })
}
