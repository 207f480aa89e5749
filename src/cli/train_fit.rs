//! Whether training fits a GPU, before its first step: the plan's bytes beside those that are free. What
//! fits is reserved; what does not is refused, with the first setting that would.

use super::failure::Failure;
use super::terminal::human_bytes;
use super::train_memory::{slice_size, state_bytes};
use super::train_plan::is_even;
use super::train_setup::{LORA_ALPHA, LORA_DROPOUT, LORA_R, Setup};
use crate::error::{Error, Result};
use crate::kernels::GpuMemory;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::Config;
use crate::model::tune::{LoraSpec, Precision, TuneMethod, TuneModel, TuneOptions};
use crate::model::tune_plan::{MemoryPlan, RunSize, WeightBytes, device_plan};
use crate::train::Rows;
use std::path::Path;

/// Tokens that a shorter row is a multiple of.
const BLOCK_STEP: usize = 64;

/// What decides a run's memory on a GPU.
#[derive(Clone, Debug)]
struct Wanted {
    config: Config,
    /// Of the checkpoint; `None` where random weights are trained, which no adapter can be put on.
    weights: Option<WeightBytes>,
    options: TuneOptions,
    batch: usize,
    accumulation: usize,
    longest: usize,
    /// Tokens of a slice, where they are told.
    told: Option<usize>,
    /// Whether all rows are as long as the longest.
    even: bool,
    state_bytes: usize,
}

impl Wanted {
    fn plan(&self) -> MemoryPlan {
        let slice = slice_size(self.batch, self.longest, self.told, self.even);
        let run = RunSize { slice, state_bytes: self.state_bytes, n_tokens: 0 };
        let weights = self.weights.unwrap_or_default();
        device_plan(&self.config, &weights, &self.options, &run)
    }

    /// The flags by which it differs from what was asked for.
    fn flags(&self, asked: &Wanted) -> String {
        let mut flags: Vec<String> = vec![];
        if self.options.gradient_checkpointing != asked.options.gradient_checkpointing {
            flags.push("--gradient-checkpointing".into());
        }
        if self.batch != asked.batch {
            flags.push(format!("--batch-size {}", self.batch));
            let rows = asked.batch * asked.accumulation;
            // The same step, where it can be.
            if rows.is_multiple_of(self.batch) {
                flags.push(format!("--gradient-accumulation-steps {}", rows / self.batch));
            }
        }
        if self.options.precision != asked.options.precision {
            flags.push("--dtype bf16".into());
        }
        match (&self.options.method, &asked.options.method) {
            (TuneMethod::QLora { .. }, TuneMethod::Full | TuneMethod::Lora { .. }) => {
                flags.push("--method qlora".into());
            }
            (TuneMethod::Lora { .. }, TuneMethod::Full) => flags.push("--method lora".into()),
            _ => {}
        }
        if self.longest != asked.longest {
            flags.push(format!("--block-size {}", self.longest));
        }
        flags.join(" ")
    }

    /// What can be asked for instead, each with all before it: the settings that cost time first,
    /// then those that change what is computed.
    fn steps(&self) -> Vec<Wanted> {
        let (mut steps, mut now) = (vec![], self.clone());
        now.options.gradient_checkpointing = true;
        steps.push(now.clone());
        now.options.precision = Precision::Bf16;
        steps.push(now.clone());
        let Some(weights) = &self.weights else { return steps };
        let spec = match now.options.method.adapter() {
            Some((spec, _)) => spec.clone(),
            None => LoraSpec {
                r: LORA_R,
                alpha: LORA_ALPHA as f32,
                dropout: LORA_DROPOUT as f32,
                targets: LoraSpec::DEFAULT_TARGETS.to_vec(),
                use_rslora: false,
            },
        };
        if matches!(now.options.method, TuneMethod::Full) {
            now.options.method = TuneMethod::Lora { spec: spec.clone(), adapter: None };
            steps.push(now.clone());
        }
        if !matches!(now.options.method, TuneMethod::QLora { .. }) && weights.can_be_nf4() {
            now.options.method = TuneMethod::QLora { spec, adapter: None, double_quant: true };
            steps.push(now);
        }
        steps
    }

    /// The first of the steps that `fits`, with as many rows at a time as do; if none does even
    /// with one, shorter rows.
    fn first_that(&self, fits: impl Fn(&Wanted) -> bool) -> Option<Wanted> {
        let steps = self.steps();
        for step in &steps {
            // More rows never take less.
            let with = |batch: usize| Wanted { batch, ..step.clone() };
            let (mut least, mut most) = (0, step.batch);
            while least < most {
                let middle = least + (most - least).div_ceil(2);
                match fits(&with(middle)) {
                    true => least = middle,
                    false => most = middle - 1,
                }
            }
            if least > 0 {
                return Some(with(least));
            }
        }
        let last = Wanted { batch: 1, ..steps.last()?.clone() };
        let lens = (1..=self.longest.saturating_sub(1) / BLOCK_STEP).rev();
        let shorter = |n: usize| Wanted { longest: n * BLOCK_STEP, ..last.clone() };
        lens.map(shorter).find(fits)
    }

    /// Says what would fit `room` bytes.
    fn hint(&self, room: usize, bytes: impl Fn(&MemoryPlan) -> u64) -> String {
        match self.first_that(|wanted| bytes(&wanted.plan()) <= room as u64) {
            Some(found) => {
                let takes = human_bytes(bytes(&found.plan()));
                format!("{} would fit, with {takes} in all", found.flags(self))
            }
            None => "no setting makes it fit: a smaller model or a larger device is needed".into(),
        }
    }

    /// The error of a GPU that has no room for what is still to come; `None` where it has.
    fn refusal(&self, gpu: &GpuMemory) -> Option<Error> {
        let plan = self.plan();
        let more = plan.total() - plan.weights();
        if more <= gpu.free as u64 {
            return None;
        }
        Some(Error::DeviceMemory {
            device: gpu.name.clone(),
            asked: usize::try_from(more).unwrap_or(usize::MAX),
            used: gpu.used,
            free: gpu.free,
            total: gpu.total,
            hint: Some(self.hint(gpu.free + gpu.used, MemoryPlan::total)),
        })
    }
}

/// Reserves what training will take on a GPU; on the CPU does nothing.
///
/// # Errors
/// [`Error::DeviceMemory`] with what would fit; what reading the checkpoint's headers returns.
pub fn fit(
    setup: &Setup,
    model: &TuneModel,
    rows: &dyn Rows,
    n_tokens: u64,
) -> Result<(), Failure> {
    let Some(gpu) = model.device().memory()? else { return Ok(()) };
    let settings = &setup.settings;
    let wanted = Wanted {
        config: model.config().clone(),
        weights: weights_of(model.base()),
        options: model.options().clone(),
        batch: settings.batch_size,
        accumulation: settings.accumulation,
        longest: rows.longest(),
        told: settings.slice_tokens,
        even: is_even(rows, n_tokens),
        state_bytes: state_bytes(&settings.optim, &settings.optim_args)?,
    };
    if let Some(error) = wanted.refusal(&gpu) {
        return Err(error.into());
    }
    let plan = wanted.plan();
    let more = plan.total() - plan.weights();
    Ok(model.device().reserve(usize::try_from(more).unwrap_or(usize::MAX))?)
}

/// Adds to the error of a GPU that has no room for a model's weights how they would fit.
pub fn explain(error: Error, path: &Path, options: &TuneOptions) -> Error {
    error.with_hint(|free, used| {
        let checkpoint = Checkpoint::open(path).ok()?;
        let wanted = Wanted {
            weights: WeightBytes::of(&checkpoint).ok(),
            config: checkpoint.config,
            options: options.clone(),
            batch: 1,
            accumulation: 1,
            longest: 1,
            told: None,
            even: true,
            state_bytes: 0,
        };
        let takes = human_bytes(wanted.plan().weights());
        let hint = wanted.hint(free + used, MemoryPlan::weights);
        Some(format!("the weights alone take {takes} as they are asked for; {hint}"))
    })
}

/// Sizes of a checkpoint's weights, if it is one.
fn weights_of(path: &Path) -> Option<WeightBytes> {
    WeightBytes::of(&Checkpoint::open(path).ok()?).ok()
}

#[cfg(test)]
#[path = "train_fit_tests.rs"]
mod tests;
