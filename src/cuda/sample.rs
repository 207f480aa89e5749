//! Choosing tokens from logits that stay on the device. Source: `cuda/sample.cu`, twin of
//! `infer::sampler`.

use super::elements::width_of;
use super::params::{self, SampleObserveParams, SampleParams, SampleRow};
use super::{DeviceSlice, DeviceSliceMut, Function, Gpu, Launch, Modules, arg, expect_len, u32_of};
use crate::{Error, Result};

/// The kernels.
pub(crate) struct Sample {
    sample: Function,
    observe: Function,
}

impl Sample {
    pub fn load(modules: &Modules) -> Result<Self> {
        Ok(Sample {
            sample: modules.function("sample_f32")?,
            observe: modules.function("sample_observe")?,
        })
    }
}

/// The longest vocabulary that is sampled from: candidates' sort keys have so much room for an id.
pub const MOST_TOKENS: usize = 1 << params::SAMPLE_ID_BITS;

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

impl Choice {
    fn row(&self) -> SampleRow {
        SampleRow {
            uniform: self.uniform,
            temperature: self.temperature,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            // As many as there can be keep all.
            top_k: self.top_k.min(MOST_TOKENS) as u32,
            pad_: 0,
        }
    }
}

/// `tokens[row]` = the token that the row's choice takes from `logits` [rows, vocab]; overwrites.
/// `seen` [rows, vocab] has 1 for the ids of prompt and output; it may be left out where no choice has
/// a penalty.
///
/// The token is the one that `infer::Sampler` chooses for the same uniform number, but for exponentials
/// that differ in their last place (`tests/cuda_vs_cpu/sample.rs`). Where it finds none, the number is
/// one that [`chosen`] refuses.
///
/// # Errors
/// When lengths do not fit each other, the vocabulary is longer than [`MOST_TOKENS`], a uniform number
/// is not in [0, 1), a penalty lacks `seen`, or the launch fails.
pub fn sample(
    gpu: &Gpu,
    tokens: DeviceSliceMut<'_, u32>,
    logits: DeviceSlice<'_, f32>,
    seen: Option<DeviceSlice<'_, u8>>,
    choices: &[Choice],
) -> Result<()> {
    let op = "sample";
    expect_len(op, "tokens", tokens.len(), choices.len())?;
    if choices.is_empty() {
        return expect_len(op, "logits", logits.len(), 0);
    }
    let vocab = width_of(op, logits.len(), choices.len())?;
    if !(1..=MOST_TOKENS).contains(&vocab) {
        return Err(Error::Shape {
            op: op.into(),
            expected: format!("1 to {MOST_TOKENS} logits a row"),
            got: vocab.to_string(),
        });
    }
    if let Some(choice) = choices.iter().find(|choice| !(0.0..1.0).contains(&choice.uniform)) {
        return Err(Error::config("uniform", choice.uniform, "wanted at least 0 and less than 1"));
    }
    let penalty = choices.iter().any(|choice| choice.repetition_penalty != 1.0);
    match &seen {
        Some(seen) => expect_len(op, "seen", seen.len(), logits.len())?,
        None if penalty => expect_len(op, "seen", 0, logits.len())?,
        None => {}
    }
    let most = params::SAMPLE_ROWS as usize;
    for (part, choices) in choices.chunks(most).enumerate() {
        let first = part * most;
        let rows = first..first + choices.len();
        let of_rows = rows.start * vocab..rows.end * vocab;
        let mut p = SampleParams {
            rows: [Choice::NONE.row(); params::SAMPLE_ROWS as usize],
            vocab: vocab as u32,
            pad_: 0,
        };
        for (row, choice) in p.rows.iter_mut().zip(choices) {
            *row = choice.row();
        }
        let mut to = tokens.as_slice().range(rows).address();
        let mut from = logits.range(of_rows.clone()).address();
        // Null where no row has a penalty: then nothing is read.
        let mut seen = seen.map_or(0, |seen| seen.range(of_rows).address());
        let mut args = [arg(&mut to), arg(&mut from), arg(&mut seen), arg(&mut p)];
        let grid = [u32_of("rows of sample", choices.len())?, 1, 1];
        let shape = Launch { grid, block: params::SAMPLE_THREADS, shared_bytes: 0 };
        // SAFETY: the addresses are those of as many tokens, and rows of `vocab`, as the grid has
        // blocks, by the ranges; `p` has a choice for each; `seen` is there where one reads it.
        unsafe { gpu.launch(&gpu.sample.sample, shape, &mut args) }?;
    }
    Ok(())
}

impl Choice {
    /// What rows that are not launched have.
    const NONE: Choice = Choice {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        uniform: 0.0,
    };
}

/// The token that [`sample`] wrote.
///
/// # Errors
/// A NaN or plus infinity among the logits, or nothing but minus infinity.
pub fn chosen(token: u32) -> Result<u32> {
    let what = match token {
        params::SAMPLE_NOTHING_LEFT => "every token has minus infinity".to_owned(),
        bad if bad & params::SAMPLE_BAD_LOGIT != 0 => {
            let id = bad ^ params::SAMPLE_BAD_LOGIT;
            format!("token {id} has NaN or plus infinity, wanted a finite number")
        }
        token => return Ok(token),
    };
    Err(Error::Data { place: "logits".into(), what })
}

/// Notes each row's token as seen: `seen[row, tokens[row]] = 1`; `seen` is [rows, vocab]. What is no
/// id is passed over.
///
/// # Errors
/// When lengths do not fit each other, or the launch fails.
pub fn observe(
    gpu: &Gpu,
    seen: DeviceSliceMut<'_, u8>,
    tokens: DeviceSlice<'_, u32>,
) -> Result<()> {
    let (op, rows) = ("observe", tokens.len());
    if rows == 0 {
        return expect_len(op, "seen", seen.len(), 0);
    }
    let vocab = width_of(op, seen.len(), rows)?;
    let block = params::SAMPLE_OBSERVE_THREADS;
    let mut p = SampleObserveParams {
        rows: u32_of("rows of observe", rows)?,
        vocab: u32_of("tokens of observe", vocab)?,
    };
    let [mut to, mut from] = [seen.address(), tokens.address()];
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut p)];
    let shape = Launch { grid: [p.rows.div_ceil(block), 1, 1], block, shared_bytes: 0 };
    // SAFETY: `seen` has `rows` rows of `vocab` and `tokens` one for each row, as counted above; the
    // kernel compares tokens with `vocab`.
    unsafe { gpu.launch(&gpu.sample.observe, shape, &mut args) }
}
