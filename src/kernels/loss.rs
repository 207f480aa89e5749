//! Cross-entropy of rows of logits.

use super::{Device, FloatsMut};
use crate::error::Result;
use puna_cpu::cross_entropy::cross_entropy_rows;
use puna_cpu::floats as host;
use puna_cpu::share::share;

#[cfg(feature = "cuda")]
use crate::cuda;

/// Values that [`cross_entropy`] writes for each row: the negative log-likelihood of the label, in
/// nats, and 1 where the label was the likeliest token, else 0.
pub const SCORES: usize = 2;

/// Scores `logits` [rows, v] against one label a row; `scores` is [rows, [`SCORES`]], read by the
/// host. With `factors`, one a row, the logits become `(softmax - onehot) * factor`, zeros where a
/// row has no label.
///
/// # Errors
/// Operands of another device, or one that fails.
///
/// # Panics
/// When lengths do not fit together.
pub fn cross_entropy(
    device: &Device,
    logits: FloatsMut<'_>,
    scores: &mut [f32],
    labels: &[Option<u32>],
    factors: Option<&[f32]>,
) -> Result<()> {
    let n = labels.len();
    if n == 0 {
        return Ok(());
    }
    let vocab = logits.len() / n;
    assert_eq!(logits.len(), n * vocab, "logits are whole rows");
    assert_eq!(scores.len(), n * SCORES, "scores of each row");
    assert!(factors.is_none_or(|factors| factors.len() == n), "a factor a row");
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        return on_gpu(gpu, logits.cuda_f32()?, scores, labels, factors);
    }
    let cpu = &device.cpu;
    let logits = logits.host_f32()?;
    let outs = [(host::FloatsMut::F32(logits), vocab), (host::FloatsMut::F32(scores), SCORES)];
    share(&cpu.team, n, outs, &|rows, outs| {
        let [host::FloatsMut::F32(logits), host::FloatsMut::F32(scores)] = outs else { return };
        let of_rows = rows.clone().zip(logits.chunks_exact_mut(vocab));
        for ((row, logits), scores) in of_rows.zip(scores.chunks_exact_mut(SCORES)) {
            let (mut nll, mut correct) = ([0.0], [false]);
            let (factor, want) = (factors.map_or(0.0, |f| f[row]), factors.is_some());
            let label = &labels[row..row + 1];
            cross_entropy_rows(cpu.isa, logits, label, factor, &mut nll, &mut correct, want);
            scores.copy_from_slice(&[nll[0], if correct[0] { 1.0 } else { 0.0 }]);
        }
    });
    Ok(())
}

#[cfg(feature = "cuda")]
fn on_gpu(
    gpu: &cuda::Gpu,
    logits: cuda::DeviceSliceMut<'_, f32>,
    scores: &mut [f32],
    labels: &[Option<u32>],
    factors: Option<&[f32]>,
) -> Result<()> {
    // A label beyond i32 is beyond every vocabulary: as no label it would be silently unscored.
    let label = |label: &Option<u32>| match label {
        None => -1,
        Some(id) => i32::try_from(*id).unwrap_or(i32::MAX),
    };
    let labels: Vec<i32> = labels.iter().map(label).collect();
    let labels = gpu.upload(&labels)?;
    let factors = factors.map(|factors| gpu.upload(factors)).transpose()?;
    let mut found = gpu.alloc::<f32>(scores.len())?;
    let factors = factors.as_ref().map(cuda::DeviceBuffer::slice);
    cuda::cross_entropy::cross_entropy(gpu, logits, found.slice_mut(), labels.slice(), factors)?;
    gpu.download(&found.slice(), scores)
}
