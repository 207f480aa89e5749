//! Cross-entropy of rows of logits on the device, fused with its gradient. Source:
//! `cuda/cross_entropy.cu`, twin of `kernels::loss` over `puna_cpu::cross_entropy`.

use super::elements::{wide, width_of};
use super::params::{self, CrossEntropyParams};
use super::{DeviceSlice, DeviceSliceMut, Function, Gpu, Launch, Modules, arg, expect_len, u32_of};
use crate::{Error, Result};

/// The kernels.
pub(crate) struct CrossEntropy {
    score: Function,
    grad: Function,
    log_sum_exp: Function,
}

impl CrossEntropy {
    pub fn load(modules: &Modules) -> Result<Self> {
        Ok(CrossEntropy {
            score: modules.function("cross_entropy_f32")?,
            grad: modules.function("cross_entropy_grad_f32")?,
            log_sum_exp: modules.function("log_sum_exp_f32")?,
        })
    }
}

/// Values that [`cross_entropy`] writes for each row: the negative log-likelihood of the label, in
/// nats, and 1 where the label was the first of the likeliest tokens, else 0.
pub const SCORES: usize = 2;

/// The launch over `rows` rows and its scalars.
fn shape(op: &str, logits: u64, len: usize, rows: usize) -> Result<(CrossEntropyParams, Launch)> {
    let vocab = width_of(op, len, rows)?;
    // Labels are signed.
    if vocab == 0 || vocab > i32::MAX as usize {
        return Err(Error::Shape {
            op: op.to_owned(),
            expected: format!("1 to {} logits a row", i32::MAX),
            got: vocab.to_string(),
        });
    }
    let wide = vocab.is_multiple_of(4) && wide(&[logits]);
    let p = CrossEntropyParams { vocab: vocab as u32, wide: wide.into() };
    let grid = [u32_of("rows of logits", rows)?, 1, 1];
    Ok((p, Launch { grid, block: params::CROSS_ENTROPY_THREADS, shared_bytes: 0 }))
}

/// Scores `logits` [rows, v] with one label a row, -1 for none; `scores` is [rows, [`SCORES`]]. With
/// `factors`, one a row, the logits become `(softmax - onehot) * factor`; else they stay. A row
/// without a label gets zeroes.
///
/// f32; sums of exponentials and the logarithm f64; a row's bits depend on its content and length
/// alone. Error of nll: `16 + 2 |x[l] - max|` epsilons plus one of itself; of a gradient:
/// `(24 + 2 |x - max|)` epsilons of `softmax(x) * factor`, and two of `factor` at the label
/// (`tests/cuda_vs_cpu/cross_entropy.rs`). A NaN, an infinity, nothing but -inf, or a label that is
/// no logit's makes nll and the row's gradient NaN.
///
/// # Errors
/// When lengths do not fit each other, or the launch fails.
pub fn cross_entropy(
    gpu: &Gpu,
    logits: DeviceSliceMut<'_, f32>,
    scores: DeviceSliceMut<'_, f32>,
    labels: DeviceSlice<'_, i32>,
    factors: Option<DeviceSlice<'_, f32>>,
) -> Result<()> {
    let (op, rows) = ("cross_entropy", labels.len());
    expect_len(op, "scores", scores.len(), rows.saturating_mul(SCORES))?;
    if let Some(factors) = &factors {
        expect_len(op, "factors", factors.len(), rows)?;
    }
    if rows == 0 {
        return expect_len(op, "logits", logits.len(), 0);
    }
    let (mut p, shape) = shape(op, logits.address(), logits.len(), rows)?;
    let [mut to, mut x, mut labels] = [scores.address(), logits.address(), labels.address()];
    match factors {
        Some(factors) => {
            let mut factors = factors.address();
            let mut args =
                [arg(&mut to), arg(&mut x), arg(&mut labels), arg(&mut factors), arg(&mut p)];
            // SAFETY: `logits` has `rows` rows of `vocab`, `scores` two and the others one for each
            // row, all checked above; the kernel compares labels with `vocab`; `wide` is set by
            // address and `vocab`.
            unsafe { gpu.launch(&gpu.cross_entropy.grad, shape, &mut args) }
        }
        None => {
            let mut args = [arg(&mut to), arg(&mut x), arg(&mut labels), arg(&mut p)];
            // SAFETY: as above.
            unsafe { gpu.launch(&gpu.cross_entropy.score, shape, &mut args) }
        }
    }
}

/// `out[row] = ln(sum(exp(x)))` of each of `out.len()` rows of `logits`; overwrites. Error: 16
/// epsilons plus one of itself (`tests/cuda_vs_cpu/cross_entropy.rs`).
///
/// # Errors
/// When lengths do not fit each other, or the launch fails.
pub fn log_sum_exp(
    gpu: &Gpu,
    out: DeviceSliceMut<'_, f32>,
    logits: DeviceSlice<'_, f32>,
) -> Result<()> {
    let (op, rows) = ("log_sum_exp", out.len());
    if rows == 0 {
        return expect_len(op, "logits", logits.len(), 0);
    }
    let (mut p, shape) = shape(op, logits.address(), logits.len(), rows)?;
    let [mut to, mut x] = [out.address(), logits.address()];
    let mut args = [arg(&mut to), arg(&mut x), arg(&mut p)];
    // SAFETY: `logits` has `rows` rows of `vocab` and `out` one for each, checked above; `wide` is
    // set by address and `vocab`.
    unsafe { gpu.launch(&gpu.cross_entropy.log_sum_exp, shape, &mut args) }
}
