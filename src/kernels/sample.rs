//! Choosing tokens from logits that lie on a GPU, without bringing them to the host.

use super::Device;
use crate::error::Result;
use crate::tensor::Rows;

/// How the token of one row is chosen: a sampler's settings, in its meanings, and one of its draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Divides the logits; 0 takes the most likely token (greedy).
    pub temperature: f32,
    /// Keep only this many most likely tokens; 0: all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens with at least this probability; 1: all.
    pub top_p: f32,
    /// Drop tokens less likely than this fraction of the most likely one; 0: none.
    pub min_p: f32,
    /// Logits of ids that were seen: divided by it if positive, else multiplied; 1: off.
    pub repetition_penalty: f32,
    /// Uniform in [0, 1): which token. Not used by a greedy choice.
    pub uniform: f64,
}

/// A row of logits, its choice, and which ids were seen, where the choice has a penalty (else no
/// matter what).
pub type Wanted<'a> = (usize, Choice, &'a [bool]);

/// The token of each wanted row of `logits` [rows, vocab], into `tokens`; `false` where the logits are
/// the host's, who chooses by itself.
///
/// # Errors
/// Logits that are not numbers, or nothing but minus infinity; a GPU that failed.
pub fn sample(
    device: &Device,
    tokens: &mut Vec<u32>,
    logits: &Rows,
    wanted: &[Wanted<'_>],
) -> Result<bool> {
    tokens.clear();
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu()
        && logits.width() <= crate::cuda::sample::MOST_TOKENS
    {
        on_gpu(gpu, tokens, logits, wanted)?;
        return Ok(true);
    }
    let _ = (device, logits, wanted);
    Ok(false)
}

#[cfg(feature = "cuda")]
fn on_gpu(
    gpu: &crate::cuda::Gpu,
    tokens: &mut Vec<u32>,
    logits: &Rows,
    wanted: &[Wanted<'_>],
) -> Result<()> {
    use crate::cuda::sample;
    let vocab = logits.width();
    let all = logits.floats().cuda_f32()?;
    // Neighbouring rows share a launch.
    for run in wanted.chunk_by(|(a, ..), (b, ..)| a + 1 == *b) {
        let first = run[0].0;
        let choices: Vec<_> = run.iter().map(|(_, choice, _)| of(choice)).collect();
        let penalty = choices.iter().any(|choice| choice.repetition_penalty != 1.0);
        let seen = match penalty {
            true => {
                let mut marks = vec![0u8; run.len() * vocab];
                for (marks, (_, _, seen)) in marks.chunks_mut(vocab).zip(run) {
                    marks.iter_mut().zip(*seen).for_each(|(mark, &seen)| *mark = seen.into());
                }
                Some(gpu.upload(&marks)?)
            }
            false => None,
        };
        let mut ids = gpu.alloc::<u32>(run.len())?;
        let rows = all.range(first * vocab..(first + run.len()) * vocab);
        sample::sample(gpu, ids.slice_mut(), rows, seen.as_ref().map(|s| s.slice()), &choices)?;
        let at = tokens.len();
        tokens.resize(at + run.len(), 0);
        gpu.download(&ids.slice(), &mut tokens[at..])?;
    }
    tokens.iter_mut().try_for_each(|id| {
        *id = sample::chosen(*id)?;
        Ok(())
    })
}

#[cfg(feature = "cuda")]
fn of(choice: &Choice) -> crate::cuda::sample::Choice {
    let Choice { temperature, top_k, top_p, min_p, repetition_penalty, uniform } = *choice;
    crate::cuda::sample::Choice { temperature, top_k, top_p, min_p, repetition_penalty, uniform }
}
