//! From the flags of `puna train` to settings of the library, with everything refused that can be
//! refused before a model is loaded.

use super::failure::Failure;
use super::train_args::{DTypeFlag, Method, Side, TrainArgs};
use crate::data::{DataOptions, Holdout, Layout, Rules, TruncationSide};
use crate::error::Error;
use crate::format::peft::read_spec;
use crate::model::tune::{LoraSpec, LoraTarget, Precision, TuneMethod, TuneOptions};
use crate::tensor::Params;
use crate::text::ChatTemplate;
use crate::train::optimizer::{OptimArgs, make};
use crate::train::schedule::Schedule;
use crate::train::{Length, Settings};
use std::path::{Path, PathBuf};

/// Rate of full tuning: transformers'.
const LEARNING_RATE: f64 = 5e-5;
/// Rate of an adapter: LMFlow's.
const LORA_LEARNING_RATE: f64 = 1e-4;
/// LMFlow's adapter.
pub(super) const LORA_R: usize = 8;
pub(super) const LORA_ALPHA: f64 = 32.0;
pub(super) const LORA_DROPOUT: f64 = 0.1;

/// What the flags say.
pub struct Setup {
    /// What is trained.
    pub method: Method,
    /// How the model is opened.
    pub tune: TuneOptions,
    /// How it is trained.
    pub settings: Settings,
    /// How data become rows.
    pub data: DataOptions,
    /// The data.
    pub dataset: PathBuf,
    /// Where everything goes; `None` where nothing is written.
    pub output: Option<PathBuf>,
}

/// A fault in a setting is wrong usage here, as it comes from a flag.
pub fn usage(error: Error) -> Failure {
    match error {
        Error::Config { .. } => Failure::usage(error.to_string()),
        error => error.into(),
    }
}

fn refuse<T>(message: impl Into<String>, hint: &str) -> Result<T, Failure> {
    Err(Failure::Usage(message.into(), Some(hint.to_owned())))
}

impl Setup {
    /// Reads the flags.
    ///
    /// # Errors
    /// Flags that are missing, out of range or contradict each other.
    pub fn new(args: &TrainArgs) -> Result<Setup, Failure> {
        let method = args.method.method.unwrap_or(Method::Full);
        let Some(dataset) = args.data.dataset.clone() else {
            return refuse("no data named", "--dataset DIR names a directory of LMFlow's *.json");
        };
        let writes = !args.steps.dry_run && args.data.show_batch.is_none();
        if writes && args.save.output.is_none() {
            return refuse("no output named", "--output DIR says where the result goes");
        }
        let settings = settings(args, method)?;
        let evaluates =
            args.eval.eval_dataset.is_some() || args.eval.validation_split_percentage.is_some();
        settings.check(evaluates).map_err(usage)?;
        // Made for nothing: it checks the name and the numbers.
        make(&settings.optim, &settings.optim_args, &Params::default()).map_err(usage)?;
        if let Some(name) = &args.data.conversation_template {
            ChatTemplate::resolve(Some(name), ChatTemplate::preset("empty").ok()).map_err(usage)?;
        }
        let tune = TuneOptions {
            threads: args.threads.count(),
            precision: match args.method.dtype.unwrap_or(DTypeFlag::F32) {
                DTypeFlag::F32 => Precision::F32,
                DTypeFlag::Bf16 => Precision::Bf16,
            },
            method: tune_method(args, method)?,
            gradient_checkpointing: args.method.gradient_checkpointing,
            score: false,
            value: false,
            seed: args.common.seed,
        };
        let output = args.save.output.clone();
        let data = data_options(args, output.as_deref());
        Ok(Setup { method, tune, settings, data, dataset, output })
    }
}

fn tune_method(args: &TrainArgs, method: Method) -> Result<TuneMethod, Failure> {
    let flags = &args.method;
    let own = [
        ("--lora-r", flags.lora_r.is_some()),
        ("--lora-alpha", flags.lora_alpha.is_some()),
        ("--lora-dropout", flags.lora_dropout.is_some()),
        ("--lora-target-modules", flags.lora_target_modules.is_some()),
        ("--use-rslora", flags.use_rslora),
    ];
    let given = own.iter().find(|(_, given)| *given).map(|(name, _)| *name);
    let adapter = flags.adapter.clone();
    if flags.double_quant.is_some() && method != Method::Qlora {
        let message = format!("--double-quant with --method {}", method.name());
        return refuse(message, "--method qlora holds the weights in NF4");
    }
    let (spec, adapter) = match (method, given, adapter) {
        (Method::Full, Some(name), _) => {
            let hint = "--method lora trains an adapter";
            return refuse(format!("{name} with --method full"), hint);
        }
        (Method::Full, None, Some(_)) => {
            let hint = "--method lora goes on with an adapter";
            return refuse("--adapter with --method full", hint);
        }
        (Method::Full, None, None) => return Ok(TuneMethod::Full),
        (_, Some(name), Some(_)) => {
            return refuse(format!("{name} with --adapter"), "an adapter brings its own settings");
        }
        (_, None, Some(dir)) => (read_spec(&dir)?, Some(dir)),
        (_, _, None) => {
            let targets = match &flags.lora_target_modules {
                Some(names) => LoraTarget::parse_list(names).map_err(usage)?,
                None => LoraSpec::DEFAULT_TARGETS.to_vec(),
            };
            let spec = LoraSpec {
                r: flags.lora_r.unwrap_or(LORA_R),
                alpha: flags.lora_alpha.unwrap_or(LORA_ALPHA) as f32,
                dropout: flags.lora_dropout.unwrap_or(LORA_DROPOUT) as f32,
                targets,
                use_rslora: flags.use_rslora,
            };
            spec.check("--lora-").map_err(usage)?;
            (spec, None)
        }
    };
    Ok(match method {
        Method::Qlora => {
            let double_quant = flags.double_quant.unwrap_or(true);
            TuneMethod::QLora { spec, adapter, double_quant }
        }
        _ => TuneMethod::Lora { spec, adapter },
    })
}

fn settings(args: &TrainArgs, method: Method) -> Result<Settings, Failure> {
    let (steps, optim, eval, save) = (&args.steps, &args.optim, &args.eval, &args.save);
    let defaults = OptimArgs::default();
    let scheduler = optim.lr_scheduler_type.as_deref().unwrap_or("linear");
    let schedule =
        Schedule::parse(scheduler, optim.lr_scheduler_kwargs.as_deref()).map_err(usage)?;
    let length = match steps.max_steps.filter(|&steps| steps > 0) {
        Some(steps) => Length::Steps(steps as usize),
        None => Length::Epochs(steps.num_train_epochs.unwrap_or(3.0)),
    };
    let usual = match method {
        Method::Full => LEARNING_RATE,
        Method::Lora | Method::Qlora => LORA_LEARNING_RATE,
    };
    Ok(Settings {
        batch_size: steps.batch_size.unwrap_or(8),
        accumulation: steps.gradient_accumulation_steps.unwrap_or(1),
        length,
        optim: optim.optim.clone().unwrap_or_else(|| "adamw".to_owned()),
        optim_args: OptimArgs {
            beta1: optim.adam_beta1.unwrap_or(defaults.beta1),
            beta2: optim.adam_beta2.unwrap_or(defaults.beta2),
            eps: optim.adam_epsilon.unwrap_or(defaults.eps),
            momentum: optim.momentum.unwrap_or(defaults.momentum),
            weight_decay: optim.weight_decay.unwrap_or(defaults.weight_decay),
            decay_all: optim.decay_all,
        },
        learning_rate: optim.learning_rate.unwrap_or(usual),
        schedule,
        warmup_steps: optim.warmup_steps.unwrap_or(0),
        warmup_ratio: optim.warmup_ratio.unwrap_or(0.0),
        max_grad_norm: optim.max_grad_norm.unwrap_or(1.0),
        seed: args.common.seed,
        shuffle: !args.data.no_shuffle,
        slice_tokens: None,
        eval_steps: eval.eval_steps,
        eval_on_start: eval.eval_on_start,
        keep_best: eval.load_best_model_at_end,
        patience: eval.early_stopping_patience,
        threshold: eval.early_stopping_threshold.unwrap_or(0.0),
        save_steps: save.save_steps.unwrap_or(500),
        save_total_limit: save.save_total_limit,
    })
}

fn data_options(args: &TrainArgs, output: Option<&Path>) -> DataOptions {
    let data = &args.data;
    let defaults = DataOptions::default();
    DataOptions {
        rules: Rules {
            no_eos: data.no_eos,
            lmflow_compat: data.lmflow_compat,
            train_on_prompt: data.train_on_prompt,
            conversation_template: data.conversation_template.clone(),
        },
        layout: match (data.no_packing, data.group_texts) {
            (true, _) => Layout::Blocks,
            (_, true) => Layout::Group,
            _ => Layout::Packed,
        },
        block_size: data.block_size,
        truncate_to_model_max_length: data
            .truncate_to_model_max_length
            .unwrap_or(defaults.truncate_to_model_max_length),
        truncation_side: match data.truncation_side.unwrap_or(Side::Right) {
            Side::Right => TruncationSide::Right,
            Side::Left => TruncationSide::Left,
        },
        group_texts_batch_size: data
            .group_texts_batch_size
            .unwrap_or(defaults.group_texts_batch_size),
        drop_remainder: data.drop_remainder,
        skip_bad_instances: data.skip_bad_instances,
        holdout: args.eval.validation_split_percentage.map(Holdout::Percent),
        seed: args.common.seed,
        output_dir: output.map(Path::to_owned),
        overwrite_cache: data.overwrite_cache,
        ..defaults
    }
}
