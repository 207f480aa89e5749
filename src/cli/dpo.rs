//! `puna dpo`: tunes a model on preferences. What it shares with `puna train`, flags and files, is
//! `train`'s; here pairs are read, the reference is computed, and the loss is chosen.

use super::args::{Common, Threads, model_path, positive};
use super::failure::Failure;
use super::interrupt;
use super::machine::Machine;
use super::session::context_limit;
use super::terminal::{Log, human_count};
use super::train::{check_output, finish, identity, shown};
use super::train_args::{
    DataArgs, EvalFlags, Method, MethodArgs, OptimFlags, SaveFlags, StepArgs, TrainArgs,
    above_zero, finite, not_negative,
};
use super::train_plan::{self, Load};
use super::train_setup::{Setup, usage};
use super::train_watch::Screen;
use crate::align::dpo::{Dpo, PairRows};
use crate::align::preference::{Loss, Objective};
use crate::data::{Choice, PairOptions, Pairs, pairs};
use crate::error::{Error, Result};
use crate::model::tune::TuneModel;
use crate::train::state::Setting;
use crate::train::{Job, Rows, output, train};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Help of the command: its flags stand under headings.
const HELP: &str = "{about}\n\nUsage: {usage}\n\n{all-args}{after-help}";
/// Rate of full tuning: TRL's.
const LEARNING_RATE: f64 = 1e-6;
/// Rate of an adapter.
const LORA_LEARNING_RATE: f64 = 1e-5;
/// Passes over the data unless told otherwise.
const EPOCHS: f64 = 1.0;
/// Longest prompt with an answer unless told otherwise, if the model takes it.
const MAX_LENGTH: usize = 1024;
/// Sharpness: TRL's.
const BETA: f64 = 0.1;
/// Margin of simpo: TRL's.
const GAMMA: f64 = 0.5;

/// Flags of `puna dpo`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP)]
#[command(override_usage = "puna dpo MODEL --dataset DIR --output DIR [flags]")]
#[command(after_help = "Example: puna dpo tuned --dataset pairs --output better --method lora")]
pub struct DpoArgs {
    /// Hugging Face directory or .gguf file
    pub model: Option<PathBuf>,
    /// Loss.
    #[command(flatten)]
    pub loss: LossFlags,
    /// Pairs.
    #[command(flatten)]
    pub pairs: PairFlags,
    /// Method.
    #[command(flatten)]
    pub method: MethodArgs,
    /// Steps.
    #[command(flatten)]
    pub steps: StepArgs,
    /// Optimiser.
    #[command(flatten)]
    pub optim: OptimFlags,
    /// Evaluation.
    #[command(flatten)]
    pub eval: EvalFlags,
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

/// What a pair costs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Loss")]
pub struct LossFlags {
    /// sigmoid (default), ipo, simpo, orpo, ...
    #[arg(long, value_name = "NAME", value_parser = loss)]
    pub loss: Option<Loss>,
    /// Sharpness; of orpo the odds' weight [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = above_zero)]
    pub beta: Option<f64>,
    /// Share of flipped preferences [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = not_negative)]
    pub label_smoothing: Option<f64>,
    /// Margin of simpo [default: 0.5]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite)]
    pub simpo_gamma: Option<f64>,
    /// Cost of each token more [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    pub length_penalty: Option<f64>,
}

/// Where pairs come from.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Data")]
pub struct PairFlags {
    /// Pairs or scored answers: *.json, *.jsonl
    #[arg(long, value_name = "DIR", alias = "dataset-path")]
    pub dataset: Option<PathBuf>,
    /// Prompt with answer [default: 1024 or less]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_length: Option<usize>,
    /// Prompt of a longer pair [default: half]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_prompt_length: Option<usize>,
    /// Which of scored answers [default: max_min]
    #[arg(
        long,
        value_name = "NAME",
        alias = "sampling-paired-method",
        hide_possible_values = true
    )]
    pub pair_choice: Option<ChoiceFlag>,
    /// Off a score, per character [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite)]
    pub score_penalty: Option<f64>,
    /// Factor of their margins [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = finite)]
    pub margin_scale: Option<f64>,
    /// No EOS after answers
    #[arg(long)]
    pub no_eos: bool,
    /// LMFlow's tokens, and its ipo of sums
    #[arg(long)]
    pub lmflow_compat: bool,
    /// Preset, not the model's template
    #[arg(long, value_name = "T")]
    pub conversation_template: Option<String>,
    /// Leave out what is no pair
    #[arg(long)]
    pub skip_bad_instances: bool,
    /// Pairs in the order of the data
    #[arg(long)]
    pub no_shuffle: bool,
}

/// Which answers of a scored list meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum ChoiceFlag {
    /// Any two.
    Random,
    /// Best and worst.
    MaxMin,
    /// Best and second best.
    MaxMax,
    /// Best and any other.
    MaxRandom,
}

fn loss(text: &str) -> Result<Loss, String> {
    let known = Loss::ALL.into_iter().find(|loss| loss.name() == text);
    known.ok_or_else(|| format!("wanted one of {}", Loss::ALL.map(Loss::name).join(", ")))
}

impl DpoArgs {
    /// The same run as `puna train` would be told of it.
    fn as_train(&self) -> TrainArgs {
        let pairs = &self.pairs;
        let method = self.method.method.unwrap_or(Method::Full);
        let usual = if method == Method::Lora { LORA_LEARNING_RATE } else { LEARNING_RATE };
        let mut optim = self.optim.clone();
        optim.learning_rate.get_or_insert(usual);
        let mut steps = self.steps.clone();
        steps.num_train_epochs.get_or_insert(EPOCHS);
        TrainArgs {
            model: self.model.clone(),
            method: self.method.clone(),
            data: DataArgs {
                dataset: pairs.dataset.clone(),
                no_eos: pairs.no_eos,
                lmflow_compat: pairs.lmflow_compat,
                conversation_template: pairs.conversation_template.clone(),
                skip_bad_instances: pairs.skip_bad_instances,
                no_shuffle: pairs.no_shuffle,
                ..DataArgs::default()
            },
            steps,
            optim,
            eval: self.eval.clone(),
            save: self.save.clone(),
            threads: self.threads.clone(),
            common: self.common.clone(),
        }
    }

    fn objective(&self) -> Objective {
        let flags = &self.loss;
        Objective {
            loss: flags.loss.unwrap_or(Loss::Sigmoid),
            beta: flags.beta.unwrap_or(BETA),
            label_smoothing: flags.label_smoothing.unwrap_or(0.0),
            gamma: flags.simpo_gamma.unwrap_or(GAMMA),
            length_penalty: flags.length_penalty.unwrap_or(0.0),
            ipo_of_sums: self.pairs.lmflow_compat,
        }
    }

    fn pair_options(&self, setup: &Setup, limit: usize) -> PairOptions {
        let flags = &self.pairs;
        let max_length = flags.max_length.unwrap_or(MAX_LENGTH.min(limit));
        PairOptions {
            rules: setup.data.rules.clone(),
            max_length,
            max_prompt_length: flags.max_prompt_length.unwrap_or(max_length / 2),
            choice: match flags.pair_choice.unwrap_or(ChoiceFlag::MaxMin) {
                ChoiceFlag::Random => Choice::Random,
                ChoiceFlag::MaxMin => Choice::MaxMin,
                ChoiceFlag::MaxMax => Choice::MaxMax,
                ChoiceFlag::MaxRandom => Choice::MaxRandom,
            },
            length_penalty: flags.score_penalty.unwrap_or(0.0),
            margin_scale: flags.margin_scale.unwrap_or(1.0),
            seed: self.common.seed,
            skip_bad_instances: flags.skip_bad_instances,
            first: 0,
        }
    }
}

/// The command's definition, with its own defaults in the help of flags that it shares.
pub fn define(command: clap::Command) -> clap::Command {
    let rates = format!("Highest rate [default: {LEARNING_RATE:e}, lora {LORA_LEARNING_RATE:e}]");
    let epochs = format!("Passes over the data [default: {EPOCHS}]");
    let pairs = "Pairs of a micro-batch [default: 8]";
    command
        .mut_arg("learning_rate", |arg| arg.help(rates))
        .mut_arg("num_train_epochs", |arg| arg.help(epochs))
        .mut_arg("batch_size", |arg| arg.help(pairs))
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and what loading, reading data and training return; [`Failure::Interrupted`] once a
/// checkpoint is saved.
pub fn run(args: &DpoArgs) -> Result<(), Failure> {
    let as_train = args.as_train();
    let setup = Setup::new(&as_train)?;
    let objective = args.objective();
    objective.check().map_err(usage)?;
    let path = model_path(args.model.as_deref());
    args.common.device.check()?;
    let log = args.common.log();
    if let Some(output) = &setup.output {
        check_output(output, path, &as_train)?;
    }
    for data in std::iter::once(&setup.dataset).chain(&args.eval.eval_dataset) {
        std::fs::metadata(data).map_err(|source| Error::io(data, source))?;
    }
    let model = TuneModel::open(path, &setup.tune)?;
    let limit = context_limit(&model.config);
    let mut options = args.pair_options(&setup, limit);
    if options.max_length > limit {
        let length = options.max_length;
        log.warn(format!("--max-length {length}: the model was made for {limit} positions"));
    }
    if options.max_prompt_length >= options.max_length {
        let message = format!(
            "--max-prompt-length {}: wanted less than the {} tokens of prompt and answer",
            options.max_prompt_length, options.max_length
        );
        return Err(Failure::usage(message));
    }
    let mut rows = read(&setup.dataset, &model, &options, log)?;
    let eval = match (&args.eval.eval_dataset, args.eval.validation_split_percentage) {
        (Some(path), _) => {
            options.first = rows.rows.len() as u32;
            Some(read(path, &model, &options, log)?)
        }
        (None, Some(percent)) => Some(rows.hold_out(percent, args.common.seed)?),
        (None, None) => None,
    };
    let (rows, eval) = (PairRows(rows), eval.map(PairRows));
    let sets: Vec<&PairRows> = std::iter::once(&rows).chain(&eval).collect();
    let config = model.config.clone();
    let mut dpo = Dpo::new(model, objective.clone(), &sets)?;
    if args.steps.dry_run {
        let load = Load {
            rows: &rows,
            n_tokens: rows.n_tokens() as u64,
            n_scored: rows.n_scored() as u64,
            n_eval: eval.as_ref().map(|rows| rows.n_rows()),
        };
        let machine = Machine::detect()?;
        let plan = train_plan::plan(&setup, &mut dpo, Dpo::model, &load, &machine)?;
        train_plan::items(&plan).iter().for_each(|line| log.detail(line));
        return Ok(train_plan::print(&plan, args.common.json)?);
    }
    let Some(output) = &setup.output else {
        return Err(Failure::usage("no output named"));
    };
    if args.save.overwrite {
        output::wipe(output)?;
    }
    let of_eval = eval.as_ref().map(PairRows::digest).transpose()?;
    let mut identity = identity(path, &setup, &config, &rows.digest()?, of_eval.as_deref())?;
    identity.extend(settings(&objective));
    let n_trained = dpo.model().params.n_elements();
    let shown = shown(path, &setup, n_trained, &identity, rows.n_rows())?;
    let stop = interrupt::flag_or_exit();
    let n_pairs: usize = sets.iter().map(|set| set.n_rows()).sum();
    let bar = log.bar(n_pairs, "pairs under the reference");
    let slice_tokens = setup.settings.slice_tokens;
    let known = dpo.refer(&sets, slice_tokens, stop, &mut |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    if !known? {
        return Err(Failure::Interrupted);
    }
    let job = Job {
        model: &mut dpo,
        train: &rows,
        eval: eval.as_ref().map(|rows| rows as &dyn Rows),
        settings: &setup.settings,
        identity,
        title: format!("puna dpo {}", path.display()),
        shown,
        output,
        stop,
    };
    let mut screen = Screen::new(log, args.save.logging_steps.unwrap_or(10));
    let outcome = train(job, args.save.resume, &mut screen);
    screen.close();
    finish(&outcome?, &as_train, setup.method, output, n_trained, log)
}

/// The constants of the loss, which decide the numbers.
fn settings(objective: &Objective) -> Vec<Setting> {
    let list = [
        ("loss", objective.loss.name().to_owned()),
        ("beta", objective.beta.to_string()),
        ("label_smoothing", objective.label_smoothing.to_string()),
        ("simpo_gamma", objective.gamma.to_string()),
        ("length_penalty", objective.length_penalty.to_string()),
        ("ipo_of_sums", objective.ipo_of_sums.to_string()),
    ];
    list.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The pairs of a data set, and what the user should know of them.
fn read(path: &Path, model: &TuneModel, options: &PairOptions, log: Log) -> Result<Pairs, Failure> {
    let text = model.text.as_ref();
    let found = pairs(path, text, model.config.vocab_size, options).map_err(usage)?;
    let (n, first) = &found.skipped;
    if let Some(first) = first {
        log.warn(format!("{n} instances left out; the first: {first}"));
    }
    if found.truncated > 0 {
        let (n, length) = (found.truncated, options.max_length);
        log.warn(format!("{n} pairs are longer than {length} tokens and lost some"));
    }
    let tokens: usize = found.rows.iter().map(|row| row.ids.len()).sum();
    let (n, tokens) = (found.rows.len(), human_count(tokens as u64));
    log.remark(format!("{}: {n} pairs, {tokens} tokens", path.display()));
    Ok(found)
}
