//! `--config FILE`: flags from a JSON or YAML file, under their names in snake_case.
//!
//! The command line is read twice. The first pass finds the file and which flags the user gave;
//! the file's other keys are then put behind the command's name as if they had been typed, so
//! that they are checked exactly as flags are. A flag wins over the file, and so does any member
//! of a group of flags that exclude each other (a prompt on the command line over one in the file).

use super::failure::Failure;
use crate::error::{Error, Result};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Matches of `args` (the program's name first) for `command`, with a config file merged in.
///
/// # Errors
/// Wrong usage (help counts as such: it is an error of clap's), and files that cannot be used.
pub fn matches(command: &mut Command, args: Vec<OsString>) -> Result<ArgMatches, Refusal> {
    let first = command.try_get_matches_from_mut(&args)?;
    let (leaf, leaf_matches, depth) = leaf(command, &first);
    let file = leaf_matches.try_get_one::<PathBuf>("config").ok().flatten();
    let Some(file) = file else { return Ok(first) };
    let values = read(file).map_err(Failure::from)?;
    let extra = flags(file, &values, leaf, leaf_matches).map_err(Failure::from)?;
    let file = file.clone();
    let mut merged = args;
    let at = (1 + depth).min(merged.len());
    merged.splice(at..at, extra);
    command.try_get_matches_from_mut(merged).map_err(|error| {
        let message = super::first_line(&error);
        let message = format!("{message} (flags from {} included)", file.display());
        Failure::usage(message).into()
    })
}

/// Why there are no matches.
#[derive(Debug)]
pub enum Refusal {
    /// Help, version, or wrong usage as clap words it.
    Clap(Box<clap::Error>),
    /// The config file is at fault.
    Config(Failure),
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Refusal {
        Refusal::Clap(Box::new(error))
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal::Config(failure)
    }
}

/// The innermost command that was named, its matches, and how many names lead to it.
fn leaf<'a>(command: &'a Command, matches: &'a ArgMatches) -> (&'a Command, &'a ArgMatches, usize) {
    let (mut command, mut matches, mut depth) = (command, matches, 0);
    while let Some((name, inner)) = matches.subcommand() {
        let Some(next) = command.find_subcommand(name) else { break };
        (command, matches, depth) = (next, inner, depth + 1);
    }
    (command, matches, depth)
}

fn read(file: &Path) -> Result<Map<String, Value>> {
    let text = fs::read_to_string(file).map_err(|source| Error::io(file, source))?;
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let value: Value = match extension {
        "yaml" | "yml" => serde_norway::from_str(&text)
            .map_err(|error| Error::format(file, format!("not YAML: {error}")))?,
        "json" => serde_json::from_str(&text)
            .map_err(|error| Error::format(file, format!("not JSON: {error}")))?,
        _ => return Err(Error::config("config", file.display(), "wanted a .json or .yaml file")),
    };
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        _ => Err(Error::format(file, "wanted an object of flags and their values")),
    }
}

/// The file's keys as command-line arguments, without those that the command line overrules.
fn flags(
    file: &Path,
    values: &Map<String, Value>,
    command: &Command,
    given: &ArgMatches,
) -> Result<Vec<OsString>> {
    let typed = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
    let overruled = |arg: &Arg| {
        let id = arg.get_id();
        typed(id.as_str())
            || command
                .get_groups()
                .cloned()
                .filter_map(|mut group| (!group.is_multiple()).then_some(group))
                .filter(|group| group.get_args().any(|a| a == id))
                .any(|group| group.get_args().any(|a| typed(a.as_str())))
    };
    let mut extra = vec![];
    for (key, value) in values {
        let known = |arg: &&Arg| is_name_of(arg, key) && settable(arg);
        let Some(arg) = command.get_arguments().find(known) else {
            return Err(unknown(file, key, command));
        };
        if !value.is_null() && !overruled(arg) {
            extra.extend(words(file, key, value, arg)?);
        }
    }
    Ok(extra)
}

/// Whether a flag goes by this name in a file: its own or another that it is known by.
fn is_name_of(arg: &Arg, key: &str) -> bool {
    let aliases = arg.get_all_aliases().unwrap_or_default();
    arg.get_id() == key || aliases.iter().any(|alias| alias.replace('-', "_") == key)
}

/// Flags that make sense in a file.
fn settable(arg: &Arg) -> bool {
    !matches!(arg.get_id().as_str(), "config" | "help" | "version")
}

fn unknown(file: &Path, key: &str, command: &Command) -> Error {
    let names =
        command.get_arguments().filter(|arg| settable(arg)).map(|arg| arg.get_id().as_str());
    let nearest = names.min_by_key(|name| edit_distance(key, name));
    let nearest =
        nearest.map(|name| format!("; the nearest name is \"{name}\"")).unwrap_or_default();
    let what = format!("unknown key \"{key}\" for `puna {}`{nearest}", command.get_name());
    Error::format(file, what)
}

/// One key as it would be typed.
fn words(file: &Path, key: &str, value: &Value, arg: &Arg) -> Result<Vec<OsString>> {
    let wrong =
        |wanted: &str| Err(Error::format(file, format!("key \"{key}\": {value}, wanted {wanted}")));
    let Some(long) = arg.get_long() else {
        // Positional: the model.
        return match value {
            Value::String(text) => Ok(vec![text.into()]),
            _ => wrong("a string"),
        };
    };
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match value {
            Value::Bool(true) => Ok(vec![format!("--{long}").into()]),
            Value::Bool(false) => Ok(vec![]),
            _ => wrong("true or false"),
        };
    }
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let typed = |text: String| OsString::from(format!("--{long}={text}"));
    match value {
        Value::Array(list) => {
            let Some(texts) = list.iter().map(scalar).collect::<Option<Vec<_>>>() else {
                return wrong("a list of strings or numbers");
            };
            let repeatable = matches!(arg.get_action(), ArgAction::Append);
            if repeatable && arg.get_value_delimiter().is_none() {
                Ok(texts.into_iter().map(typed).collect())
            } else {
                Ok(vec![typed(texts.join(","))])
            }
        }
        _ => match scalar(value) {
            Some(text) => Ok(vec![typed(text)]),
            None => wrong("a string or a number"),
        },
    }
}

/// Levenshtein's distance: insertions, deletions and replacements between two names.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command as Puna};
    use crate::cli::generate::GenerateArgs;
    use clap::{CommandFactory, FromArgMatches};

    /// `puna generate ARGS --config FILE` with a file of this text.
    fn parse(name: &str, text: &str, args: &[&str]) -> Result<GenerateArgs, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        let mut all: Vec<OsString> =
            ["puna", "generate"].iter().chain(args).map(Into::into).collect();
        all.extend(["--config".into(), file.into_os_string()]);
        let matches = matches(&mut Cli::command(), all).map_err(|refusal| match refusal {
            Refusal::Clap(error) => error.to_string(),
            Refusal::Config(failure) => failure.lines().join("\n"),
        })?;
        match Cli::from_arg_matches(&matches).unwrap().command {
            Puna::Generate(args) => Ok(*args),
            _ => Err("another command".into()),
        }
    }

    const FILE: &str = r#"{"model": "m", "prompt": "from file", "top_k": 7, "temperature": 0.5,
        "stop": ["a", "b"], "ignore_eos": true, "json": false, "seed": null}"#;

    #[test]
    fn the_file_fills_what_was_not_given() {
        let args = parse("c.json", FILE, &[]).unwrap();
        assert_eq!(args.model.model, Some("m".into()));
        assert_eq!(args.source.prompt.as_deref(), Some("from file"));
        assert_eq!((args.sampling.top_k, args.sampling.temperature), (Some(7), Some(0.5)));
        assert_eq!(args.sampling.stop, ["a", "b"]);
        assert!(args.sampling.ignore_eos && !args.common.json);
        assert_eq!(args.common.seed, 0);
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let given = ["other", "-p", "typed", "--top-k", "3", "--stop", "z"];
        let args = parse("c.json", FILE, &given).unwrap();
        assert_eq!(args.model.model, Some("other".into()));
        assert_eq!(args.source.prompt.as_deref(), Some("typed"));
        assert_eq!(args.sampling.top_k, Some(3));
        assert_eq!(args.sampling.stop, ["z"]);
        assert_eq!(args.sampling.temperature, Some(0.5));
    }

    #[test]
    fn a_flag_wins_over_another_of_its_group() {
        let args = parse("c.json", FILE, &["--tokens", "1,2"]).unwrap();
        assert_eq!((args.source.prompt, args.source.tokens.as_deref()), (None, Some("1,2")));
    }

    #[test]
    fn yaml_and_lists_of_ids() {
        let text = "model: m\ntokens: [1, 2, 3]\ntop_p: 0.9\n";
        let args = parse("c.yaml", text, &[]).unwrap();
        assert_eq!(args.source.tokens.as_deref(), Some("1,2,3"));
        assert_eq!(args.sampling.top_p, Some(0.9));
        assert!(parse("empty.yml", "", &["-p", "x"]).is_ok());
    }

    #[test]
    fn values_that_look_like_flags_stay_values() {
        let args = parse("c.json", r#"{"prompt": "--json", "stop": ["-x"]}"#, &[]).unwrap();
        assert_eq!(args.source.prompt.as_deref(), Some("--json"));
        assert_eq!(args.sampling.stop, ["-x"]);
    }

    #[test]
    fn faults_name_the_file_the_key_and_the_nearest_name() {
        let cases = [
            ("c.json", r#"{"temprature": 1}"#, "unknown key \"temprature\""),
            ("c.json", r#"{"temprature": 1}"#, "nearest name is \"temperature\""),
            ("c.json", r#"{"max-new-tokens": 1}"#, "nearest name is \"max_new_tokens\""),
            ("c.json", r#"{"config": "x"}"#, "unknown key \"config\""),
            ("c.json", r#"{"json": 1}"#, "wanted true or false"),
            ("c.json", r#"{"top_k": {}}"#, "\"top_k\": {}, wanted a string or a number"),
            ("c.json", r#"{"top_k": "many"}"#, "--top-k"),
            ("c.json", r#"{"model": 3}"#, "\"model\": 3, wanted a string"),
            ("c.json", "{", "not JSON"),
            ("c.yaml", "a: [", "not YAML"),
            ("c.json", "[1]", "wanted an object"),
            ("c.toml", "", "wanted a .json or .yaml file"),
        ];
        for (name, text, part) in cases {
            let error = parse(name, text, &[]).unwrap_err();
            assert!(error.contains(part) && error.contains(name), "{text}: {error}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, wanted) in [("", "abc", 3), ("kitten", "sitting", 3), ("top_k", "top_k", 0)] {
            assert_eq!(edit_distance(a, b), wanted);
            assert_eq!(edit_distance(b, a), wanted);
        }
    }
}
