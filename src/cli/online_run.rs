//! What commands share that learn from a model's own answers: their flags, the prompts, the run.

use super::args::{Common, Threads, model_path, positive};
use super::failure::Failure;
use super::interrupt;
use super::reward_flags::RewardFlags;
use super::session::context_limit;
use super::terminal::{Log, human_count, print_line};
use super::train::{check_output, identity, prepare};
use super::train_args::{
    DataArgs, EvalFlags, Method as MethodFlag, MethodArgs, OptimFlags, SaveFlags, StepArgs,
    TrainArgs, above_zero,
};
use super::train_fit::{self, Sampling};
use super::train_setup::{Setup, usage};
use super::train_watch::Screen;
use crate::align::online::{self, Method, Online, OnlineOutcome, OnlineSettings};
use crate::align::reference::Reference;
use crate::data::{NOT_SCORED, PromptOptions, PromptSet, Row, Rules, prompts};
use crate::error::{Error, Result};
use crate::infer::{GenerateOptions, SamplerConfig};
use crate::model::llama::KvType;
use crate::model::tune::TuneModel;
use crate::train::job::{End, Measured, digest};
use crate::train::state::Setting;
use crate::train::{Rows, output};
use clap::Args;
use serde_json::json;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Longest prompt unless told otherwise, if the model takes it.
const MAX_PROMPT_LENGTH: usize = 512;
/// Longest answer.
const MAX_LENGTH: usize = 128;
/// Sequences at a time.
const WIDTH: usize = 16;
/// The caches of sampling.
const KV: KvType = KvType::F16;
/// Prompts whose answers the report shows.
const N_SHOWN: usize = 4;

/// Flags of a run that learns from its own answers.
#[derive(Args, Clone, Debug)]
pub struct OnlineArgs {
    /// Hugging Face directory or .gguf file
    pub model: Option<PathBuf>,
    /// Prompts and answers.
    #[command(flatten)]
    pub asking: AskingFlags,
    /// Rewards.
    #[command(flatten)]
    pub rewards: RewardFlags,
    /// Method.
    #[command(flatten)]
    pub method: MethodArgs,
    /// Steps.
    #[command(flatten)]
    pub steps: OnlineSteps,
    /// Optimiser.
    #[command(flatten)]
    pub optim: OptimFlags,
    /// What is saved.
    #[command(flatten)]
    pub save: SaveFlags,
    /// Threads.
    #[command(flatten, next_help_heading = "Common")]
    pub threads: Threads,
    /// Common flags.
    #[command(flatten, next_help_heading = "Common")]
    pub common: Common,
}

/// What is asked, and how answers are drawn.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Answers")]
pub struct AskingFlags {
    /// Prompts: *.json, *.jsonl
    #[arg(long, value_name = "DIR", alias = "dataset-path")]
    pub dataset: Option<PathBuf>,
    /// Rows whose perplexity is followed
    #[arg(long, value_name = "DIR", alias = "eval-dataset-path")]
    pub eval_dataset: Option<PathBuf>,
    /// Longer prompts are left out [default: 512]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_prompt_length: Option<usize>,
    /// Tokens of an answer [default: 128]
    #[arg(long, value_name = "N", value_parser = positive, alias = "output-max-length")]
    pub max_new_tokens: Option<usize>,
    /// Sharpness of the draws [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = above_zero)]
    pub temperature: Option<f64>,
    /// The K likeliest tokens; 0: all [default: 0]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Only the likeliest up to P [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = above_zero)]
    pub top_p: Option<f64>,
    /// Answers drawn at a time [default: 16]
    #[arg(
        long,
        value_name = "N",
        value_parser = positive,
        alias = "inference-batch-size-per-device"
    )]
    pub inference_batch_size: Option<usize>,
    /// Preset, not the model's template
    #[arg(long, value_name = "T")]
    pub conversation_template: Option<String>,
    /// Leave out what is no prompt
    #[arg(long)]
    pub skip_bad_instances: bool,
    /// Prompts in the order of the data
    #[arg(long)]
    pub no_shuffle: bool,
}

/// How an iteration's rows are learnt.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Steps")]
pub struct OnlineSteps {
    /// Answers of a micro-batch [default: 8]
    #[arg(long, value_name = "N", value_parser = positive, alias = "per-device-train-batch-size")]
    pub batch_size: Option<usize>,
    /// Micro-batches of a step [default: 1]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub gradient_accumulation_steps: Option<usize>,
    /// Passes over an iteration's answers
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        value_parser = above_zero,
        alias = "num-ppo-epochs"
    )]
    pub num_train_epochs: Option<f64>,
    /// Saves every N iterations [default: 1]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub save_iterations: Option<usize>,
}

/// What a command takes where the flags say nothing.
#[derive(Clone, Copy, Debug)]
pub struct OnlineUsual {
    /// Rate of full tuning.
    pub learning_rate: f64,
    /// Rate of an adapter.
    pub lora_learning_rate: f64,
    /// Passes over an iteration's rows.
    pub epochs: f64,
    /// Of the draws.
    pub temperature: f64,
    /// Longest prompt.
    pub max_prompt_length: usize,
    /// Longest answer.
    pub max_new_tokens: usize,
}

impl OnlineUsual {
    /// With these constants, which are those of all commands.
    pub const fn new(learning_rate: f64, lora_learning_rate: f64, epochs: f64) -> OnlineUsual {
        OnlineUsual {
            learning_rate,
            lora_learning_rate,
            epochs,
            temperature: 1.0,
            max_prompt_length: MAX_PROMPT_LENGTH,
            max_new_tokens: MAX_LENGTH,
        }
    }

    /// The definition of a command, with these in the help of flags that it shares with others.
    pub fn define(&self, command: clap::Command) -> clap::Command {
        let (rate, lora) = (self.learning_rate, self.lora_learning_rate);
        let rates = format!("Highest rate [default: {rate:e}, lora {lora:e}]");
        let epochs = format!("Passes over the answers [default: {}]", self.epochs);
        let sharpness = format!("Sharpness of the draws [default: {}]", self.temperature);
        command
            .mut_arg("learning_rate", |arg| arg.help(rates))
            .mut_arg("num_train_epochs", |arg| arg.help(epochs))
            .mut_arg("temperature", |arg| arg.help(sharpness))
            .mut_arg("lr_scheduler_type", |arg| {
                arg.help("By iterations: constant (default), linear")
            })
            .mut_arg("lora_dropout", |arg| arg.help("Inputs dropped [default: 0]"))
            .mut_arg("warmup_steps", |arg| arg.help("Iterations of rising rate [default: 0]"))
            .mut_arg("warmup_ratio", |arg| arg.help("The same as a share of all iterations"))
    }
}

/// What makes a run one of its kind.
pub struct OnlineRun {
    /// The command's name.
    pub name: &'static str,
    /// What it takes where the flags say nothing.
    pub usual: OnlineUsual,
    /// Iterations.
    pub iterations: usize,
    /// Prompts of an iteration, and answers to each.
    pub sizes: (usize, usize),
    /// Answers get lengths drawn from here.
    pub lengths: Option<Range<usize>>,
    /// Prompts are asked again when all were; else the run ends there.
    pub wrap: bool,
    /// Whether the model gets a value head.
    pub value: bool,
    /// Whether there is a reference.
    pub reference: bool,
    /// The constants of the method, which decide the numbers.
    pub settings: Vec<(&'static str, String)>,
}

impl OnlineArgs {
    /// The same run as `puna train` would be told of it.
    fn as_train(&self, usual: &OnlineUsual) -> TrainArgs {
        let asking = &self.asking;
        let mut method = self.method.clone();
        let mut optim = self.optim.clone();
        let rate = match method.method.unwrap_or(MethodFlag::Full) {
            MethodFlag::Full => usual.learning_rate,
            MethodFlag::Lora | MethodFlag::Qlora => {
                // With dropout a policy would not be the one that drew its answers.
                if method.adapter.is_none() {
                    method.lora_dropout.get_or_insert(0.0);
                }
                usual.lora_learning_rate
            }
        };
        optim.learning_rate.get_or_insert(rate);
        optim.lr_scheduler_type.get_or_insert("constant".into());
        TrainArgs {
            model: self.model.clone(),
            method,
            data: DataArgs {
                dataset: asking.dataset.clone(),
                conversation_template: asking.conversation_template.clone(),
                skip_bad_instances: asking.skip_bad_instances,
                no_shuffle: asking.no_shuffle,
                ..DataArgs::default()
            },
            steps: StepArgs {
                batch_size: self.steps.batch_size,
                gradient_accumulation_steps: self.steps.gradient_accumulation_steps,
                num_train_epochs: Some(self.steps.num_train_epochs.unwrap_or(usual.epochs)),
                max_steps: None,
                dry_run: false,
            },
            optim,
            eval: EvalFlags {
                eval_dataset: asking.eval_dataset.clone(),
                validation_split_percentage: None,
                eval_steps: None,
                eval_on_start: false,
                load_best_model_at_end: false,
                early_stopping_patience: None,
                early_stopping_threshold: None,
            },
            save: self.save.clone(),
            threads: self.threads,
            common: self.common.clone(),
        }
    }

    fn sampler(&self, usual: &OnlineUsual) -> Result<SamplerConfig> {
        let asking = &self.asking;
        let config = SamplerConfig {
            temperature: asking.temperature.unwrap_or(usual.temperature) as f32,
            top_k: asking.top_k.unwrap_or(0),
            top_p: asking.top_p.unwrap_or(1.0) as f32,
            seed: self.common.seed,
            ..SamplerConfig::GREEDY
        };
        config.validate()?;
        Ok(config)
    }
}

/// Runs a command; `make` puts the opened model into training.
///
/// # Errors
/// Wrong usage, and what loading, reading data, rewards and training return;
/// [`Failure::Interrupted`] once all that was done is saved.
pub fn run<M: Method>(
    args: &OnlineArgs,
    kind: &OnlineRun,
    make: impl FnOnce(TuneModel, Option<Reference>) -> Result<M>,
) -> Result<(), Failure> {
    let usual = &kind.usual;
    let as_train = args.as_train(usual);
    let mut setup = Setup::new(&as_train)?;
    setup.tune.value = kind.value;
    args.rewards.check()?;
    let width = args.asking.inference_batch_size.unwrap_or(WIDTH);
    OnlineSettings::check_sizes(kind.sizes.0, kind.sizes.1, width).map_err(usage)?;
    let sampler = args.sampler(usual).map_err(usage)?;
    let path = model_path(args.model.as_deref());
    args.common.device.check_build()?;
    let log = args.common.log();
    let Some(output) = setup.output.clone() else {
        return Err(Failure::usage("no output named"));
    };
    check_output(&output, path, &as_train)?;
    for data in std::iter::once(&setup.dataset).chain(&args.asking.eval_dataset) {
        std::fs::metadata(data).map_err(|source| Error::io(data, source))?;
    }
    let device = args.common.device.open(setup.tune.threads)?;
    let model = TuneModel::open_on(path, &setup.tune, device)
        .map_err(|error| train_fit::explain(error, path, &setup.tune))?;
    let max_new_tokens = args.asking.max_new_tokens.unwrap_or(usual.max_new_tokens);
    let set = read_prompts(args, &setup, &model, usual, max_new_tokens, log)?;
    let eval = match &args.asking.eval_dataset {
        Some(path) => Some(Measured::new(prepare(path, &model, &setup.data, log, &[])?.train)?),
        None => None,
    };
    if let Some(rule) = args.rewards.needs_answers()
        && let Some(one) = set.prompts.iter().find(|one| one.answer.is_none())
    {
        let what = format!("no reference answer, which the rule {rule} compares with");
        return Err(Error::Data { place: one.place.clone(), what }.into());
    }
    let mut rewards = args.rewards.rewards(model.model(), &Rules::default())?;
    let adapter = setup.tune.method.adapter().and_then(|(_, adapter)| adapter);
    let reference = match kind.reference {
        true => Some(Reference::of(&model, path, adapter)?),
        false => None,
    };
    let longest_prompt = set.prompts.iter().map(|one| one.ids.len()).max().unwrap_or(0);
    let longest = longest_prompt + max_new_tokens;
    train_fit::fit_sampled(
        &setup,
        &model,
        longest,
        sampling(&model, longest, max_new_tokens, width)?,
    )?;
    let mut end_ids = model.model().end_ids();
    end_ids.extend(&set.stop_ids);
    end_ids.sort_unstable();
    end_ids.dedup();
    let settings = OnlineSettings {
        iterations: kind.iterations,
        n_prompts: kind.sizes.0,
        n_samples: kind.sizes.1,
        generate: GenerateOptions {
            sampler,
            max_new_tokens,
            stop: vec![],
            end_ids,
            ignore_eos: false,
            n: 1,
            logprobs: None,
        },
        lengths: kind.lengths.clone(),
        width,
        kv: KV,
        wrap: kind.wrap,
        n_shown: N_SHOWN,
        save_iterations: args.steps.save_iterations.unwrap_or(1),
        train: setup.settings.clone(),
    };
    if args.save.overwrite {
        output::wipe(&output)?;
    }
    let of_eval = eval.as_ref().map(|rows| rows.digest.as_str());
    let mut identity = identity(path, &setup, model.config(), &digest_of(&set)?, of_eval)?;
    let own = kind.settings.iter().cloned().chain(args.rewards.settings());
    identity.extend(own.map(|(name, value)| -> Setting { (name.to_owned(), value) }));
    let n_trained = model.params().n_elements();
    let shown = shown(path, &setup, &settings, &identity, set.prompts.len(), n_trained);
    log.detail(format!("{} parameters are trained", human_count(n_trained as u64)));
    let mut trainee = make(model, reference)?;
    let job = Online {
        model: &mut trainee,
        prompts: &set.prompts,
        rewards: &mut rewards,
        eval: eval.as_ref().map(|rows| rows as &dyn Rows),
        settings: &settings,
        identity,
        title: format!("puna {} {}", kind.name, path.display()),
        shown,
        output: &output,
        stop: interrupt::flag_or_exit(),
    };
    let mut screen = Screen::new(log, args.save.logging_steps.unwrap_or(10));
    let outcome = online::run(job, args.save.resume, &mut screen);
    screen.close();
    finish(outcome?, args, &output, n_trained, log)
}

/// What sampling `width` answers of up to `longest` tokens with their prompts takes.
fn sampling(
    model: &TuneModel,
    longest: usize,
    max_new_tokens: usize,
    width: usize,
) -> Result<Sampling> {
    let memory = model.model().memory(longest, KV)?;
    let logits = width.saturating_mul(4 * model.config().vocab_size);
    Ok(Sampling {
        width,
        max_new_tokens,
        cache_bytes: memory.cache_bytes,
        other_bytes: memory.workspace_bytes.saturating_add(logits),
    })
}

/// The prompts, and what the user should know of them.
fn read_prompts(
    args: &OnlineArgs,
    setup: &Setup,
    model: &TuneModel,
    usual: &OnlineUsual,
    max_new_tokens: usize,
    log: Log,
) -> Result<PromptSet, Failure> {
    let limit = context_limit(model.config());
    if max_new_tokens >= limit {
        return Err(Failure::usage(format!(
            "--max-new-tokens {max_new_tokens}: wanted less than the {limit} positions that the \
             model was made for"
        )));
    }
    let wanted = args.asking.max_prompt_length.unwrap_or(usual.max_prompt_length);
    let max_length = wanted.min(limit - max_new_tokens);
    let options = PromptOptions {
        rules: setup.data.rules.clone(),
        max_length,
        skip_bad_instances: args.asking.skip_bad_instances,
    };
    let (text, vocab_size) = (model.text(), model.config().vocab_size);
    let set = prompts(&setup.dataset, text, vocab_size, &options).map_err(usage)?;
    if let (n, Some(first)) = &set.too_long {
        log.warn(format!(
            "{n} prompts of more than {max_length} tokens are left out; the first: {first}"
        ));
    }
    if let (n, Some(first)) = &set.skipped {
        log.warn(format!("{n} instances left out; the first: {first}"));
    }
    log.remark(format!("{}: {} prompts", setup.dataset.display(), set.prompts.len()));
    Ok(set)
}

/// SHA-256 of the prompts' ids and answers.
fn digest_of(set: &PromptSet) -> Result<String> {
    let row = |one: &crate::data::Prompt| {
        let (ids, n) = (one.ids.clone(), one.ids.len());
        Ok(Row { ids, labels: vec![NOT_SCORED; n], spans: vec![n as u32], source: vec![] })
    };
    let answers = set.prompts.iter().flat_map(|one| one.answer.iter());
    let bytes = answers.flat_map(|answer| answer.bytes().chain([0]));
    digest(set.prompts.iter().map(row), bytes)
}

/// The settings of the report.
fn shown(
    path: &Path,
    setup: &Setup,
    settings: &OnlineSettings,
    identity: &[Setting],
    n_prompts: usize,
    n_trained: usize,
) -> Vec<(String, String)> {
    let digest = |name: &str| matches!(name, "model_files" | "adapter" | "data" | "eval_data");
    let mut list = vec![
        ("model_path".to_owned(), path.display().to_string()),
        ("dataset".to_owned(), setup.dataset.display().to_string()),
        ("prompts".to_owned(), n_prompts.to_string()),
        ("trained_parameters".to_owned(), n_trained.to_string()),
    ];
    list.extend(identity.iter().filter(|(name, _)| !digest(name)).cloned());
    list.extend(settings.fingerprint());
    list.push(("threads".to_owned(), setup.tune.threads.to_string()));
    list
}

/// Prints what came out.
fn finish(
    outcome: OnlineOutcome,
    args: &OnlineArgs,
    output: &Path,
    n_trained: usize,
    log: Log,
) -> Result<(), Failure> {
    let OnlineOutcome { end, mut summary } = outcome;
    let text = |name: &str| summary[name].as_f64().map_or("none".into(), |x| format!("{x:.4}"));
    let said = match end {
        End::AlreadyDone => format!("{}: this run is done already", output.display()),
        _ => format!(
            "{} iterations, {} steps in {} s; reward of the last {}, best answers {}; in {}",
            summary["iterations"],
            summary["steps"],
            summary["seconds"].as_f64().unwrap_or(0.0).round(),
            text("reward_mean"),
            text("reward_best"),
            output.display()
        ),
    };
    if args.common.json {
        summary["trained_parameters"] = json!(n_trained);
        summary["output"] = json!(output);
        print_line(&summary.to_string())?;
    } else if end != End::Interrupted {
        print_line(&said)?;
    }
    if end == End::Interrupted {
        let done = &summary["iterations"];
        log.remark(format!("stopped after {done} iterations; the same with --resume goes on"));
        return Err(Failure::Interrupted);
    }
    Ok(())
}
