//! Cross-entropy of rows of logits.

use super::{Device, FloatsMut};
use crate::error::Result;
use puna_cpu::cross_entropy::cross_entropy_rows;
use puna_cpu::floats as host;
use puna_cpu::share::share;
use std::ops::Range;

#[cfg(feature = "cuda")]
use crate::cuda::{self, DeviceBuffer};

/// Bytes of logits that a pass holds at a time on the CPU.
pub const HOST_LOGIT_BYTES: usize = 24 << 20;

/// Bytes of logits that a pass holds at a time: on a GPU so many that the products with the head
/// occupy it, some hundred rows of the largest vocabularies.
pub fn logit_bytes(device: &Device) -> usize {
    #[cfg(feature = "cuda")]
    if device.gpu().is_some() {
        return 256 << 20;
    }
    let _ = device;
    HOST_LOGIT_BYTES
}

/// Values that [`cross_entropy`] finds for each row.
pub const SCORES: usize = 2;

/// What the rows of a pass are scored against, and their scores: on a GPU copied to it once and read
/// back once, however many chunks the rows are scored in.
pub struct Targets<'a> {
    labels: &'a [Option<u32>],
    factors: Option<&'a [f32]>,
    /// [rows, [`SCORES`]].
    scores: Vec<f32>,
    #[cfg(feature = "cuda")]
    on_gpu: Option<OnGpu>,
}

#[cfg(feature = "cuda")]
struct OnGpu {
    labels: DeviceBuffer<i32>,
    factors: Option<DeviceBuffer<f32>>,
    scores: DeviceBuffer<f32>,
}

impl<'a> Targets<'a> {
    /// A label for each row, or none. With `factors`, one a row, logits are to become derivatives.
    ///
    /// # Errors
    /// When a GPU has no room, or failed.
    ///
    /// # Panics
    /// When there are not as many factors as labels.
    pub fn new(
        device: &Device,
        labels: &'a [Option<u32>],
        factors: Option<&'a [f32]>,
    ) -> Result<Targets<'a>> {
        assert!(factors.is_none_or(|factors| factors.len() == labels.len()), "a factor a row");
        let _ = device;
        Ok(Targets {
            labels,
            factors,
            scores: vec![0.0; labels.len() * SCORES],
            #[cfg(feature = "cuda")]
            on_gpu: device.gpu().map(|gpu| OnGpu::new(gpu, labels, factors)).transpose()?,
        })
    }

    /// The scores of all rows, two a row: the negative log-likelihood of its label, in nats, and 1
    /// where the label was the likeliest token, else 0. Waits for a GPU.
    ///
    /// # Errors
    /// When a GPU failed.
    pub fn read(&mut self, device: &Device) -> Result<&[f32]> {
        let _ = device;
        #[cfg(feature = "cuda")]
        if let (Some(gpu), Some(on_gpu)) = (device.gpu(), &self.on_gpu) {
            gpu.download(&on_gpu.scores.slice(), &mut self.scores)?;
        }
        Ok(&self.scores)
    }
}

/// Scores `logits` [rows.len(), v] against the targets of `rows`. With factors, the logits become
/// `(softmax - onehot) * factor`, zeros where a row has no label.
///
/// # Errors
/// Operands of another device, or one that fails.
///
/// # Panics
/// When lengths do not fit together.
pub fn cross_entropy(
    device: &Device,
    logits: FloatsMut<'_>,
    targets: &mut Targets<'_>,
    rows: Range<usize>,
) -> Result<()> {
    let n = rows.len();
    if n == 0 {
        return Ok(());
    }
    let vocab = logits.len() / n;
    assert_eq!(logits.len(), n * vocab, "logits are whole rows");
    #[cfg(feature = "cuda")]
    if let (Some(gpu), Some(on_gpu)) = (device.gpu(), &mut targets.on_gpu) {
        let factors = on_gpu.factors.as_ref().map(|factors| factors.slice().range(rows.clone()));
        let labels = on_gpu.labels.slice().range(rows.clone());
        let scores = on_gpu.scores.slice_mut().range_mut(rows.start * SCORES..rows.end * SCORES);
        return cuda::cross_entropy::cross_entropy(
            gpu,
            logits.cuda_f32()?,
            scores,
            labels,
            factors,
        );
    }
    let cpu = &device.cpu;
    let logits = logits.host_f32()?;
    let Targets { labels, factors, scores, .. } = targets;
    let (labels, factors) = (&labels[rows.clone()], factors.map(|all| &all[rows.clone()]));
    let scores = &mut scores[rows.start * SCORES..rows.end * SCORES];
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
impl OnGpu {
    fn new(gpu: &cuda::Gpu, labels: &[Option<u32>], factors: Option<&[f32]>) -> Result<OnGpu> {
        // A label beyond i32 is beyond every vocabulary: as no label it would be silently unscored.
        let label = |label: &Option<u32>| match label {
            None => -1,
            Some(id) => i32::try_from(*id).unwrap_or(i32::MAX),
        };
        let numbers: Vec<i32> = labels.iter().map(label).collect();
        Ok(OnGpu {
            labels: gpu.upload(&numbers)?,
            factors: factors.map(|factors| gpu.upload(factors)).transpose()?,
            scores: gpu.alloc(labels.len() * SCORES)?,
        })
    }
}
