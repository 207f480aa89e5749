//! Updates of whole sets of parameters, and the sum of squares over all gradients. On the CPU
//! tensors are cut into chunks of one fixed size that the team shares, so the bits never depend on
//! its size.

use super::{Cpu, Device};
use crate::error::{Error, Result};
use crate::tensor::{Halves, Number, Numbers, Values};
use half::bf16;
use puna_cpu::{convert, optim};

#[cfg(feature = "cuda")]
use crate::cuda;

pub use puna_cpu::optim::{AdamW, Sgd};

/// Elements of a chunk: some hundred microseconds of work, and whole blocks of the sum of squares.
const CHUNK: usize = 1 << 16;

/// One tensor of an [`adamw`] step; all numbers have one length and lie where the device computes.
pub struct AdamWTensor<'a> {
    /// The weights.
    pub value: &'a mut Values,
    /// Where their bf16 roundings go, if anywhere.
    pub low: Option<&'a mut Halves>,
    /// First moment.
    pub m: &'a mut Values,
    /// Second moment.
    pub v: &'a mut Values,
    /// Gradient.
    pub grad: &'a Values,
    /// Settings.
    pub hyper: AdamW,
}

/// One tensor of an [`sgd`] step; all numbers have one length and lie where the device computes.
pub struct SgdTensor<'a> {
    /// The weights.
    pub value: &'a mut Values,
    /// Where their bf16 roundings go, if anywhere.
    pub low: Option<&'a mut Halves>,
    /// The momentum, if any.
    pub momentum: Option<&'a mut Values>,
    /// Gradient.
    pub grad: &'a Values,
    /// Settings.
    pub hyper: Sgd,
}

/// One step of AdamW on each tensor (`puna_cpu::optim::adamw`), then `low` = `value` rounded.
///
/// # Errors
/// Numbers of another device, or a device that fails.
///
/// # Panics
/// When the numbers of a tensor differ in length.
pub fn adamw<'a>(
    device: &Device,
    tensors: impl IntoIterator<Item = AdamWTensor<'a>>,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let on_gpu = |tensor: AdamWTensor<'a>| -> Result<_> {
            let AdamWTensor { value, low, m, v, grad, hyper } = tensor;
            Ok(cuda::optim::AdamWTensor {
                value: cuda_mut(value)?,
                low: low.map(cuda_mut).transpose()?,
                m: cuda_mut(m)?,
                v: cuda_mut(v)?,
                grad: grad.cuda().ok_or_else(|| elsewhere("cuda"))?,
                hyper,
            })
        };
        let tensors = tensors.into_iter().map(on_gpu).collect::<Result<Vec<_>>>()?;
        return cuda::optim::adamw(gpu, tensors);
    }
    let mut chunks = vec![];
    for AdamWTensor { value, low, m, v, grad, hyper } in tensors {
        for len in [m.len(), v.len(), grad.len()] {
            assert_eq!(len, value.len(), "adamw: a tensor's numbers differ in length");
        }
        let mut low = low_chunks(low, value.len())?;
        let parts = host_mut(value)?.chunks_mut(CHUNK).zip(host_mut(m)?.chunks_mut(CHUNK));
        let rest = host_mut(v)?.chunks_mut(CHUNK).zip(host(grad)?.chunks(CHUNK));
        for ((value, m), (v, grad)) in parts.zip(rest) {
            chunks.push(AdamWChunk { value, low: low.next(), m, v, grad, hyper });
        }
    }
    let cpu = &device.cpu;
    cpu.team.split_rows(&mut chunks, 1, 2, &|_, chunks| {
        for AdamWChunk { value, low, m, v, grad, hyper } in chunks {
            optim::adamw(cpu.isa, value, m, v, grad, hyper);
            refresh(cpu, low, value);
        }
    });
    Ok(())
}

/// One step of gradient descent on each tensor (`puna_cpu::optim::sgd`), then `low` = `value`
/// rounded.
///
/// # Errors
/// Numbers of another device, or a device that fails.
///
/// # Panics
/// When the numbers of a tensor differ in length.
pub fn sgd<'a>(device: &Device, tensors: impl IntoIterator<Item = SgdTensor<'a>>) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let on_gpu = |tensor: SgdTensor<'a>| -> Result<_> {
            let SgdTensor { value, low, momentum, grad, hyper } = tensor;
            Ok(cuda::optim::SgdTensor {
                value: cuda_mut(value)?,
                low: low.map(cuda_mut).transpose()?,
                momentum: momentum.map(cuda_mut).transpose()?,
                grad: grad.cuda().ok_or_else(|| elsewhere("cuda"))?,
                hyper,
            })
        };
        let tensors = tensors.into_iter().map(on_gpu).collect::<Result<Vec<_>>>()?;
        return cuda::optim::sgd(gpu, tensors);
    }
    let mut chunks = vec![];
    for SgdTensor { value, low, momentum, grad, hyper } in tensors {
        let momentum_len = momentum.as_ref().map_or(value.len(), |m| m.len());
        for len in [momentum_len, grad.len()] {
            assert_eq!(len, value.len(), "sgd: a tensor's numbers differ in length");
        }
        let mut low = low_chunks(low, value.len())?;
        let momentum = momentum.map(host_mut).transpose()?;
        let mut momentum = momentum.into_iter().flat_map(|m| m.chunks_mut(CHUNK));
        for (value, grad) in host_mut(value)?.chunks_mut(CHUNK).zip(host(grad)?.chunks(CHUNK)) {
            let (low, momentum) = (low.next(), momentum.next());
            chunks.push(SgdChunk { value, low, momentum, grad, hyper });
        }
    }
    let cpu = &device.cpu;
    cpu.team.split_rows(&mut chunks, 1, 2, &|_, chunks| {
        for SgdChunk { value, low, momentum, grad, hyper } in chunks {
            optim::sgd(cpu.isa, value, momentum.as_deref_mut(), grad, hyper);
            refresh(cpu, low, value);
        }
    });
    Ok(())
}

/// `sum(x^2)` over all tensors: chunk sums in f64, added in order.
///
/// # Errors
/// Numbers of another device, or a device that fails.
pub fn sum_of_squares(device: &Device, tensors: &[Values]) -> Result<f64> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let on_gpu = tensors.iter().map(|tensor| tensor.floats().cuda_f32());
        return cuda::optim::sum_of_squares(gpu, &on_gpu.collect::<Result<Vec<_>>>()?);
    }
    let mut sums: Vec<(&[f32], f64)> = vec![];
    for tensor in tensors {
        sums.extend(host(tensor)?.chunks(CHUNK).map(|chunk| (chunk, 0.0)));
    }
    let cpu = &device.cpu;
    cpu.team.split_rows(&mut sums, 1, 2, &|_, sums| {
        for (chunk, sum) in sums {
            *sum = optim::sum_of_squares(cpu.isa, chunk);
        }
    });
    Ok(sums.iter().map(|(_, sum)| sum).sum())
}

/// Part of an [`AdamWTensor`] in the machine's memory.
struct AdamWChunk<'a> {
    value: &'a mut [f32],
    low: Option<&'a mut [bf16]>,
    m: &'a mut [f32],
    v: &'a mut [f32],
    grad: &'a [f32],
    hyper: AdamW,
}

/// Part of an [`SgdTensor`] in the machine's memory.
struct SgdChunk<'a> {
    value: &'a mut [f32],
    low: Option<&'a mut [bf16]>,
    momentum: Option<&'a mut [f32]>,
    grad: &'a [f32],
    hyper: Sgd,
}

fn elsewhere(wanted: &str) -> Error {
    let why = "numbers of the update lie in another memory".into();
    Error::Device { wanted: wanted.into(), why }
}

fn host<T: Number>(x: &Numbers<T>) -> Result<&[T]> {
    x.host().ok_or_else(|| elsewhere("cpu"))
}

fn host_mut<T: Number>(x: &mut Numbers<T>) -> Result<&mut [T]> {
    x.host_mut().ok_or_else(|| elsewhere("cpu"))
}

#[cfg(feature = "cuda")]
fn cuda_mut<T: Number>(x: &mut Numbers<T>) -> Result<cuda::DeviceSliceMut<'_, T>> {
    x.cuda_mut().ok_or_else(|| elsewhere("cuda"))
}

/// The chunks of the roundings of `len` values, if there are any.
fn low_chunks(low: Option<&mut Halves>, len: usize) -> Result<impl Iterator<Item = &mut [bf16]>> {
    if let Some(low) = &low {
        assert_eq!(low.len(), len, "an update's low and value differ in length");
    }
    let low = low.map(host_mut).transpose()?;
    Ok(low.into_iter().flat_map(|low| low.chunks_mut(CHUNK)))
}

fn refresh(cpu: &Cpu, low: &mut Option<&mut [bf16]>, value: &[f32]) {
    if let Some(low) = low {
        convert::f32_to_bf16(cpu.isa, low, value);
    }
}
