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

/// Answers that are sampled between steps, from the model that is trained.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampling {
    /// How many at a time.
    pub width: usize,
    /// Tokens of one.
    pub max_new_tokens: usize,
    /// Bytes of the cache of one with its prompt.
    pub cache_bytes: usize,
    /// Bytes that all take beside their caches.
    pub other_bytes: usize,
}

impl Sampling {
    fn bytes(&self) -> u64 {
        self.width.saturating_mul(self.cache_bytes).saturating_add(self.other_bytes) as u64
    }
}

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
    sampling: Sampling,
}

impl Wanted {
    /// Bytes of everything.
    fn total(&self) -> u64 {
        self.plan().total() + self.sampling.bytes()
    }

    /// Bytes of the weights.
    fn weights(&self) -> u64 {
        self.plan().weights()
    }

    /// Bytes that come to the weights.
    fn more(&self) -> u64 {
        self.total() - self.weights()
    }

    fn plan(&self) -> MemoryPlan {
        let slice = slice_size(self.batch, self.longest, self.told, self.even);
        let run = RunSize { slice, state_bytes: self.state_bytes, n_tokens: 0 };
        let weights = self.weights.unwrap_or_default();
        device_plan(&self.config, &weights, &self.options, &run)
    }

    /// The flags by which it differs from what was asked for.
    fn flags(&self, asked: &Wanted) -> String {
        let mut flags: Vec<String> = vec![];
        if self.sampling.width != asked.sampling.width {
            flags.push(format!("--inference-batch-size {}", self.sampling.width));
        }
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
        let shorter = asked.longest - self.longest;
        match asked.sampling.width {
            _ if shorter == 0 => {}
            0 => flags.push(format!("--block-size {}", self.longest)),
            _ => {
                let left = asked.sampling.max_new_tokens - shorter;
                flags.push(format!("--max-new-tokens {left}"));
            }
        }
        flags.join(" ")
    }

    /// What can be asked for instead, each with all before it: the settings that cost time first,
    /// then those that change what is computed.
    fn steps(&self) -> Vec<Wanted> {
        let (mut steps, mut now) = (vec![], self.clone());
        now.sampling.width = self.sampling.width.min(1);
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

    /// With fewer answers at a time, as many as `fits`; then the first of the steps that does, with as
    /// many rows at a time as do; if none does even with one, shorter rows.
    fn first_that(&self, fits: impl Fn(&Wanted) -> bool) -> Option<Wanted> {
        // More never take less.
        let most_of = |with: &dyn Fn(usize) -> Wanted, most: usize| {
            let (mut least, mut most) = (0, most);
            while least < most {
                let middle = least + (most - least).div_ceil(2);
                match fits(&with(middle)) {
                    true => least = middle,
                    false => most = middle - 1,
                }
            }
            (least > 0).then(|| with(least))
        };
        let answers = |width: usize| {
            let sampling = Sampling { width, ..self.sampling };
            Wanted { sampling, ..self.clone() }
        };
        let fewer = most_of(&answers, self.sampling.width);
        if fewer.is_some() {
            return fewer;
        }
        let steps = self.steps();
        let rows = |step: &Wanted| most_of(&|batch| Wanted { batch, ..step.clone() }, step.batch);
        let found = steps.iter().find_map(rows);
        if found.is_some() {
            return found;
        }
        let last = Wanted { batch: 1, ..steps.last()?.clone() };
        // Of sampled rows only the answers can be shorter.
        let least = match self.sampling.width {
            0 => 0,
            _ => self.longest.saturating_sub(self.sampling.max_new_tokens),
        };
        let lens = (1..=self.longest.saturating_sub(1) / BLOCK_STEP).rev().map(|n| n * BLOCK_STEP);
        let shorter = |longest: usize| Wanted { longest, ..last.clone() };
        lens.filter(|&len| len > least).map(shorter).find(fits)
    }

    /// Says what would fit `room` bytes.
    fn hint(&self, room: usize, bytes: impl Fn(&Wanted) -> u64) -> String {
        match self.first_that(|wanted| bytes(wanted) <= room as u64) {
            Some(found) => {
                let takes = human_bytes(bytes(&found));
                format!("{} would fit, with {takes} in all", found.flags(self))
            }
            None => "no setting makes it fit: a smaller model or a larger device is needed".into(),
        }
    }

    /// The error of a GPU that has no room for what is still to come; `None` where it has.
    fn refusal(&self, gpu: &GpuMemory) -> Option<Error> {
        let more = self.more();
        if more <= gpu.free as u64 {
            return None;
        }
        Some(Error::DeviceMemory {
            device: gpu.name.clone(),
            asked: usize::try_from(more).unwrap_or(usize::MAX),
            used: gpu.used,
            free: gpu.free,
            total: gpu.total,
            hint: Some(self.hint(gpu.free + gpu.used, Wanted::total)),
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
    fit_rows(setup, model, rows.longest(), is_even(rows, n_tokens), Sampling::default())
}

/// The same for training on the model's own answers: rows of up to `longest` tokens, and what sampling
/// them takes.
///
/// # Errors
/// As [`fit`].
pub fn fit_sampled(
    setup: &Setup,
    model: &TuneModel,
    longest: usize,
    sampling: Sampling,
) -> Result<(), Failure> {
    fit_rows(setup, model, longest, false, sampling)
}

fn fit_rows(
    setup: &Setup,
    model: &TuneModel,
    longest: usize,
    even: bool,
    sampling: Sampling,
) -> Result<(), Failure> {
    let Some(gpu) = model.device().memory()? else { return Ok(()) };
    let settings = &setup.settings;
    let wanted = Wanted {
        config: model.config().clone(),
        weights: weights_of(model.base()),
        options: model.options().clone(),
        batch: settings.batch_size,
        accumulation: settings.accumulation,
        longest,
        told: settings.slice_tokens,
        even,
        state_bytes: state_bytes(&settings.optim, &settings.optim_args)?,
        sampling,
    };
    if let Some(error) = wanted.refusal(&gpu) {
        return Err(error.into());
    }
    let more = wanted.more();
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
            sampling: Sampling::default(),
        };
        let takes = human_bytes(wanted.weights());
        let hint = wanted.hint(free + used, Wanted::weights);
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
