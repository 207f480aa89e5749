//! What commands share that train on pairs of answers: their flags, reading the pairs, the run.

use super::args::{Common, Threads, model_path, positive};
use super::failure::Failure;
use super::interrupt;
use super::machine::Machine;
use super::session::context_limit;
use super::terminal::{Log, human_count};
use super::train::{check_output, finish, identity, shown};
use super::train_args::{
    DataArgs, EvalFlags, Method, MethodArgs, OptimFlags, SaveFlags, StepArgs, TrainArgs, finite,
};
use super::train_fit;
use super::train_plan::{self, Load};
use super::train_setup::{Setup, usage};
use super::train_watch::Screen;
use crate::align::pairs::{PairRows, PairTrainee};
use crate::data::{Choice, PairOptions, Pairs, pairs};
use crate::error::{Error, Result};
use crate::model::tune::TuneModel;
use crate::train::state::Setting;
use crate::train::{Job, Rows, output, train};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Longest prompt with an answer unless told otherwise, if the model takes it.
const MAX_LENGTH: usize = 1024;

/// Flags of a run on pairs.
#[derive(Args, Clone, Debug)]
pub struct PairArgs {
    /// Hugging Face directory or .gguf file
    pub model: Option<PathBuf>,
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

impl ChoiceFlag {
    /// As the library names it.
    pub fn choice(self) -> Choice {
        match self {
            ChoiceFlag::Random => Choice::Random,
            ChoiceFlag::MaxMin => Choice::MaxMin,
            ChoiceFlag::MaxMax => Choice::MaxMax,
            ChoiceFlag::MaxRandom => Choice::MaxRandom,
        }
    }
}

/// What a command takes where the flags say nothing.
#[derive(Clone, Copy, Debug)]
pub struct Usual {
    /// Rate of full tuning.
    pub learning_rate: f64,
    /// Rate of an adapter.
    pub lora_learning_rate: f64,
    /// Passes over the data.
    pub epochs: f64,
}

impl Usual {
    /// The definition of a command, with these in the help of flags that it shares with `train`.
    pub fn define(&self, command: clap::Command) -> clap::Command {
        let (rate, lora) = (self.learning_rate, self.lora_learning_rate);
        let rates = format!("Highest rate [default: {rate:e}, lora {lora:e}]");
        let epochs = format!("Passes over the data [default: {}]", self.epochs);
        command
            .mut_arg("learning_rate", |arg| arg.help(rates))
            .mut_arg("num_train_epochs", |arg| arg.help(epochs))
            .mut_arg("batch_size", |arg| arg.help("Pairs of a micro-batch [default: 8]"))
    }
}

impl PairArgs {
    /// The same run as `puna train` would be told of it.
    fn as_train(&self, usual: Usual) -> TrainArgs {
        let pairs = &self.pairs;
        let rate = match self.method.method.unwrap_or(Method::Full) {
            Method::Full => usual.learning_rate,
            Method::Lora | Method::Qlora => usual.lora_learning_rate,
        };
        let mut optim = self.optim.clone();
        optim.learning_rate.get_or_insert(rate);
        let mut steps = self.steps.clone();
        steps.num_train_epochs.get_or_insert(usual.epochs);
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
            threads: self.threads,
            common: self.common.clone(),
        }
    }

    fn options(&self, setup: &Setup, limit: usize, log: Log) -> Result<PairOptions, Failure> {
        let flags = &self.pairs;
        let max_length = flags.max_length.unwrap_or(MAX_LENGTH.min(limit));
        let max_prompt_length = flags.max_prompt_length.unwrap_or(max_length / 2);
        if max_length > limit {
            log.warn(format!(
                "--max-length {max_length}: the model was made for {limit} positions"
            ));
        }
        if max_length < 2 {
            let what = "--max-length 1: wanted at least 2, a token and one that it predicts";
            return Err(Failure::usage(what));
        }
        if max_prompt_length >= max_length {
            let message = format!(
                "--max-prompt-length {max_prompt_length}: wanted less than the {max_length} tokens \
                 of prompt and answer"
            );
            return Err(Failure::usage(message));
        }
        Ok(PairOptions {
            rules: setup.data.rules.clone(),
            max_length,
            max_prompt_length,
            choice: flags.pair_choice.unwrap_or(ChoiceFlag::MaxMin).choice(),
            length_penalty: flags.score_penalty.unwrap_or(0.0),
            margin_scale: flags.margin_scale.unwrap_or(1.0),
            seed: self.common.seed,
            skip_bad_instances: flags.skip_bad_instances,
            first: 0,
        })
    }
}

/// What makes a run on pairs one of its kind.
pub struct PairRun {
    /// The command's name.
    pub name: &'static str,
    /// What it takes where the flags say nothing.
    pub usual: Usual,
    /// Whether a reward model is trained.
    pub score: bool,
    /// Whether the pairs of a micro-batch are one row, which the loss looks at as a whole.
    pub grouped: bool,
    /// The constants of the loss, which decide the numbers.
    pub settings: Vec<(&'static str, String)>,
}

/// Runs a command on pairs; `make` puts the opened model and all sets of pairs into training.
///
/// # Errors
/// Wrong usage, and what loading, reading data and training return; [`Failure::Interrupted`] once a
/// checkpoint is saved.
pub fn run<M: PairTrainee>(
    args: &PairArgs,
    kind: &PairRun,
    make: impl FnOnce(TuneModel, &[&PairRows]) -> Result<M>,
) -> Result<(), Failure> {
    let as_train = args.as_train(kind.usual);
    let mut setup = Setup::new(&as_train)?;
    setup.tune.score = kind.score;
    let path = model_path(args.model.as_deref());
    args.common.device.check_build()?;
    let log = args.common.log();
    if let Some(output) = &setup.output {
        check_output(output, path, &as_train)?;
    }
    for data in std::iter::once(&setup.dataset).chain(&args.eval.eval_dataset) {
        std::fs::metadata(data).map_err(|source| Error::io(data, source))?;
    }
    let device = args.common.device.open(setup.tune.threads)?;
    let model = TuneModel::open_on(path, &setup.tune, device)
        .map_err(|error| train_fit::explain(error, path, &setup.tune))?;
    let (mut rows, mut eval) = read_sets(args, &setup, &model, log)?;
    if kind.grouped {
        // A row is a micro-batch now.
        let n = std::mem::replace(&mut setup.settings.batch_size, 1);
        rows = rows.grouped(n)?;
        eval = eval.map(|rows| rows.grouped(n)).transpose()?;
    }
    let sets: Vec<&PairRows> = std::iter::once(&rows).chain(&eval).collect();
    train_fit::fit(&setup, &model, &rows, rows.n_tokens() as u64)?;
    let config = model.config().clone();
    let mut trainee = make(model, &sets)?;
    if args.steps.dry_run {
        let load = Load {
            rows: &rows,
            n_tokens: rows.n_tokens() as u64,
            n_scored: rows.n_scored() as u64,
            n_eval: eval.as_ref().map(|rows| rows.n_rows()),
        };
        let machine = Machine::detect()?;
        let plan = train_plan::plan(&setup, &mut trainee, M::tuned, &load, &machine)?;
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
    let own = kind.settings.iter();
    identity.extend(own.map(|(name, value)| -> Setting { ((*name).to_owned(), value.clone()) }));
    let n_trained = trainee.params().n_elements();
    let shown = shown(path, &setup, n_trained, &identity, rows.n_rows())?;
    let stop = interrupt::flag_or_exit();
    let n_pairs: usize = sets.iter().map(|set| set.n_rows()).sum();
    let bar = log.bar(n_pairs, "pairs under the reference");
    let told = &mut |done: usize| bar.set_position(done as u64);
    let ready = trainee.prepare(&sets, setup.settings.slice_tokens, stop, told);
    bar.finish_and_clear();
    if !ready? {
        return Err(Failure::Interrupted);
    }
    let job = Job {
        model: &mut trainee,
        train: &rows,
        eval: eval.as_ref().map(|rows| rows as &dyn Rows),
        settings: &setup.settings,
        identity,
        title: format!("puna {} {}", kind.name, path.display()),
        shown,
        output,
        stop,
    };
    let mut screen = Screen::new(log, args.save.logging_steps.unwrap_or(10));
    let outcome = train(job, args.save.resume, &mut screen);
    screen.close();
    finish(&outcome?, &as_train, setup.method, output, n_trained, log)
}

/// The pairs to train on, and those to evaluate on.
fn read_sets(
    args: &PairArgs,
    setup: &Setup,
    model: &TuneModel,
    log: Log,
) -> Result<(PairRows, Option<PairRows>), Failure> {
    let mut options = args.options(setup, context_limit(model.config()), log)?;
    let mut rows = read(&setup.dataset, model, &options, log)?;
    let eval = match (&args.eval.eval_dataset, args.eval.validation_split_percentage) {
        (Some(path), _) => {
            options.first = rows.rows.len() as u32;
            Some(read(path, model, &options, log)?)
        }
        (None, Some(percent)) => Some(rows.hold_out(percent, args.common.seed)?),
        (None, None) => None,
    };
    Ok((PairRows(rows), eval.map(PairRows)))
}

/// The pairs of a data set, and what the user should know of them.
fn read(path: &Path, model: &TuneModel, options: &PairOptions, log: Log) -> Result<Pairs, Failure> {
    let text = model.text();
    let found = pairs(path, text, model.config().vocab_size, options).map_err(usage)?;
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
