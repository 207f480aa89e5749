//! The command line: reads flags, calls the library, prints. One file a command.
//!
//! Results go to standard output, everything else to standard error. Exit status: 0 done, 1
//! failed, 2 wrong usage, 130 interrupted.

pub mod args;
pub mod bench;
pub mod chat;
pub mod config;
pub mod convert;
pub mod dataset;
pub mod dpo;
pub mod eval;
pub mod eval_accuracy;
pub mod eval_choice;
pub mod eval_diversity;
pub mod eval_nll;
pub mod eval_ppl;
pub mod eval_reward;
pub mod failure;
pub mod generate;
pub mod info;
pub mod instances;
pub mod interrupt;
pub mod iterative_dpo;
pub mod lines;
pub mod machine;
pub mod online_run;
pub mod output;
pub mod pair_run;
pub mod ppo;
pub mod quickstart;
pub mod raft;
pub mod reward;
pub mod reward_flags;
pub mod session;
pub mod terminal;
pub mod train;
pub mod train_args;
mod train_fit;
mod train_memory;
mod train_plan;
mod train_setup;
mod train_watch;
pub mod verify;
pub mod vocab;

use args::{Cli, Command};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use config::Refusal;
use failure::Failure;
use std::ffi::OsString;
use std::process::ExitCode;

/// What `puna` alone says.
const WELCOME: &str = "\
Puna: a LLaMA engine for CPUs.

Begin with

  puna quickstart                      measures, tunes and measures again, in a minute

or with a model of yours, a Hugging Face directory or a .gguf file:

  puna info MODEL                      what it is and the memory it needs
  puna chat MODEL                      talk with it
  puna generate MODEL -p \"Once upon\"   continue a text
  puna eval nll MODEL --text FILE      score a text
  puna train MODEL --dataset DIR       tune it on your data
  puna bench MODEL                     measure its speed
  puna verify A B                      compare the logits of two models
  puna info --machine                  what this machine has

`puna COMMAND --help` shows a command's flags and an example.
";

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match run(std::env::args_os().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Runs a command line, the program's name first.
///
/// # Errors
/// Wrong usage, failure of the command, or its interruption.
pub fn run(args: Vec<OsString>) -> Result<(), Failure> {
    if args.len() < 2 {
        return Ok(terminal::print(WELCOME)?);
    }
    let matches = match config::matches(&mut definition(), args) {
        Ok(matches) => matches,
        Err(Refusal::Config(failure)) => return Err(failure),
        Err(Refusal::Clap(error)) => return refused(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    match &cli.command {
        Command::Info(args) => info::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Train(args) => train::run(args),
        Command::Reward(args) => reward::run(args),
        Command::Dpo(args) => dpo::run(args),
        Command::IterativeDpo(args) => iterative_dpo::run(args),
        Command::Raft(args) => raft::run(args),
        Command::Ppo(args) => ppo::run(args),
        Command::Grpo(args) => ppo::run_grpo(args),
        Command::Bench(args) => bench::run(args),
        Command::Quickstart(args) => quickstart::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Convert(args) => convert::run_convert(args),
        Command::Quantize(args) => convert::run_quantize(args),
        Command::Merge(args) => convert::run_merge(args),
        Command::Vocab(args) => vocab::run(args),
    }
}

/// The commands and their flags.
fn definition() -> clap::Command {
    Cli::command()
        .mut_subcommand("dpo", |command| dpo::USUAL.define(command))
        .mut_subcommand("reward", |command| reward::USUAL.define(command))
        .mut_subcommand("iterative-dpo", |command| iterative_dpo::USUAL.define(command))
        .mut_subcommand("raft", |command| raft::USUAL.define(command))
        .mut_subcommand("ppo", |command| ppo::USUAL.define(command))
        .mut_subcommand("grpo", |command| ppo::GRPO_USUAL.define(command))
}

/// Help and version are results; the rest is wrong usage, in one line with a hint.
fn refused(error: &clap::Error) -> Result<(), Failure> {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Ok(terminal::print(&error.render().to_string())?);
    }
    let suggestion =
        [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue]
            .into_iter()
            .find_map(|kind| match error.get(kind) {
                Some(ContextValue::String(name)) => Some(name.clone()),
                // The likeliest comes last.
                Some(ContextValue::Strings(names)) => names.last().cloned(),
                _ => None,
            });
    let hint = match suggestion {
        Some(name) => format!("did you mean {name}?"),
        None => "puna COMMAND --help shows the flags and an example".to_owned(),
    };
    Err(Failure::Usage(first_line(error), Some(hint)))
}

/// What clap found wrong, without its colours, tips and usage.
fn first_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing".to_owned();
    }
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
