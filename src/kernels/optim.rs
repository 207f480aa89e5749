//! Updates of whole sets of parameters, and the sum of squares over all gradients. Tensors are cut
//! into chunks of one fixed size that the team shares, so the bits never depend on its size.

use super::Cpu;
use half::bf16;
use puna_cpu::{convert, optim};

pub use puna_cpu::optim::{AdamW, Sgd};

/// Elements of a chunk: some hundred microseconds of work, and whole blocks of the sum of squares.
const CHUNK: usize = 1 << 16;

/// One tensor of an [`adamw`] step; all slices have one length.
pub struct AdamWTensor<'a> {
    /// The weights.
    pub value: &'a mut [f32],
    /// Where their bf16 roundings go, if anywhere.
    pub low: Option<&'a mut [bf16]>,
    /// First moment.
    pub m: &'a mut [f32],
    /// Second moment.
    pub v: &'a mut [f32],
    /// Gradient.
    pub grad: &'a [f32],
    /// Settings.
    pub hyper: AdamW,
}

/// One tensor of an [`sgd`] step; all slices have one length.
pub struct SgdTensor<'a> {
    /// The weights.
    pub value: &'a mut [f32],
    /// Where their bf16 roundings go, if anywhere.
    pub low: Option<&'a mut [bf16]>,
    /// The momentum, if any.
    pub momentum: Option<&'a mut [f32]>,
    /// Gradient.
    pub grad: &'a [f32],
    /// Settings.
    pub hyper: Sgd,
}

/// One step of AdamW on each tensor (`puna_cpu::optim::adamw`), then `low` = `value` rounded.
///
/// # Panics
/// When the slices of a tensor differ in length.
pub fn adamw<'a>(cpu: &Cpu, tensors: impl IntoIterator<Item = AdamWTensor<'a>>) {
    let mut chunks = vec![];
    for AdamWTensor { value, low, m, v, grad, hyper } in tensors {
        for len in [m.len(), v.len(), grad.len()] {
            assert_eq!(len, value.len(), "adamw: a tensor's slices differ in length");
        }
        let mut low = low_chunks(low, value.len());
        let parts = value.chunks_mut(CHUNK).zip(m.chunks_mut(CHUNK));
        let rest = v.chunks_mut(CHUNK).zip(grad.chunks(CHUNK));
        for ((value, m), (v, grad)) in parts.zip(rest) {
            chunks.push(AdamWTensor { value, low: low.next(), m, v, grad, hyper });
        }
    }
    cpu.team.split_rows(&mut chunks, 1, 2, &|_, chunks| {
        for AdamWTensor { value, low, m, v, grad, hyper } in chunks {
            optim::adamw(cpu.isa, value, m, v, grad, hyper);
            refresh(cpu, low, value);
        }
    });
}

/// One step of gradient descent on each tensor (`puna_cpu::optim::sgd`), then `low` = `value`
/// rounded.
///
/// # Panics
/// When the slices of a tensor differ in length.
pub fn sgd<'a>(cpu: &Cpu, tensors: impl IntoIterator<Item = SgdTensor<'a>>) {
    let mut chunks = vec![];
    for SgdTensor { value, low, momentum, grad, hyper } in tensors {
        let momentum_len = momentum.as_ref().map_or(value.len(), |m| m.len());
        for len in [momentum_len, grad.len()] {
            assert_eq!(len, value.len(), "sgd: a tensor's slices differ in length");
        }
        let mut low = low_chunks(low, value.len());
        let mut momentum = momentum.into_iter().flat_map(|m| m.chunks_mut(CHUNK));
        for (value, grad) in value.chunks_mut(CHUNK).zip(grad.chunks(CHUNK)) {
            let (low, momentum) = (low.next(), momentum.next());
            chunks.push(SgdTensor { value, low, momentum, grad, hyper });
        }
    }
    cpu.team.split_rows(&mut chunks, 1, 2, &|_, chunks| {
        for SgdTensor { value, low, momentum, grad, hyper } in chunks {
            optim::sgd(cpu.isa, value, momentum.as_deref_mut(), grad, hyper);
            refresh(cpu, low, value);
        }
    });
}

/// `sum(x^2)` over all tensors: chunk sums in f64, added in order.
pub fn sum_of_squares<'a>(cpu: &Cpu, tensors: impl IntoIterator<Item = &'a [f32]>) -> f64 {
    let chunks = tensors.into_iter().flat_map(|tensor| tensor.chunks(CHUNK));
    let mut sums: Vec<(&[f32], f64)> = chunks.map(|chunk| (chunk, 0.0)).collect();
    cpu.team.split_rows(&mut sums, 1, 2, &|_, sums| {
        for (chunk, sum) in sums {
            *sum = optim::sum_of_squares(cpu.isa, chunk);
        }
    });
    sums.iter().map(|(_, sum)| sum).sum()
}

/// The chunks of the roundings of `len` values, if there are any.
fn low_chunks(low: Option<&mut [bf16]>, len: usize) -> impl Iterator<Item = &mut [bf16]> {
    if let Some(low) = &low {
        assert_eq!(low.len(), len, "an update's low and value differ in length");
    }
    low.into_iter().flat_map(|low| low.chunks_mut(CHUNK))
}

fn refresh(cpu: &Cpu, low: &mut Option<&mut [bf16]>, value: &[f32]) {
    if let Some(low) = low {
        convert::f32_to_bf16(cpu.isa, low, value);
    }
}
