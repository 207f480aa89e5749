//! `puna vocab train`: a tokenizer from a corpus.

use super::args::{Common, HELP, HELP_OF_GROUP, positive};
use super::failure::Failure;
use super::terminal::print_line;
use crate::data::{Record, read, write_atomically};
use crate::error::{Error, Result};
use crate::text::train_vocab;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Tokens unless told otherwise.
const VOCAB_SIZE: usize = 8192;

/// Flags of `puna vocab`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP_OF_GROUP, override_usage = "puna vocab train [flags]")]
#[command(disable_help_subcommand = true)]
#[command(
    after_help = "Example: puna vocab train --dataset corpus.txt --vocab-size 4096 --output tok"
)]
pub struct VocabArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with a vocabulary.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Train a byte-level BPE tokenizer on a corpus
    Train(Box<TrainArgs>),
}

/// Flags of `puna vocab train`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna vocab train --dataset PATH --output DIR")]
#[command(
    after_help = "Example: puna vocab train --dataset corpus.txt --vocab-size 4096 --output tok"
)]
pub struct TrainArgs {
    /// Data set, or a .txt file
    #[arg(long, value_name = "PATH")]
    pub dataset: Option<PathBuf>,
    /// Tokens to end up with [default: 8192]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub vocab_size: Option<usize>,
    /// Where tokenizer.json and its configuration go
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Replace a tokenizer that is there
    #[arg(long)]
    pub overwrite: bool,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, a corpus that cannot be used, and what writing returns.
pub fn run(args: &VocabArgs) -> Result<(), Failure> {
    match &args.action {
        Action::Train(args) => train(args),
    }
}

fn train(args: &TrainArgs) -> Result<(), Failure> {
    let missing = |what: &str| {
        let hint = "puna vocab train --dataset PATH --output DIR".to_owned();
        Err(Failure::Usage(format!("{what} is missing"), Some(hint)))
    };
    let Some(dataset) = &args.dataset else { return missing("--dataset") };
    let Some(output) = &args.output else { return missing("--output") };
    let json_path = output.join("tokenizer.json");
    if json_path.exists() && !args.overwrite {
        let why = "it holds a tokenizer.json already; --overwrite replaces it";
        return Err(Error::config("output", output.display(), why).into());
    }
    let texts = corpus(dataset)?;
    let n_bytes: usize = texts.iter().map(String::len).sum();
    let pieces: Vec<&str> = texts.iter().map(String::as_str).collect();
    let wanted = args.vocab_size.unwrap_or(VOCAB_SIZE);
    let files = train_vocab(&pieces, wanted)?;
    std::fs::create_dir_all(output).map_err(|source| Error::io(output, source))?;
    write(&json_path, &files.tokenizer)?;
    write(&output.join("tokenizer_config.json"), &files.config)?;
    let n_tokens = files.n_tokens;
    if n_tokens < wanted {
        let log = args.common.log();
        log.warn(format!(
            "{n_tokens} tokens, not {wanted}: nothing else stands twice in the corpus"
        ));
    }
    let line = match args.common.json {
        true => json!({"vocab_size": n_tokens, "texts": texts.len(), "bytes": n_bytes}).to_string(),
        false => format!("{n_tokens} tokens from {n_bytes} bytes of text in {}", output.display()),
    };
    Ok(print_line(&line)?)
}

fn write(path: &Path, value: &Value) -> Result<()> {
    write_atomically(path, format!("{value:#}\n").as_bytes())
}

/// All texts of a data set; of a .txt file, its lines.
fn corpus(path: &Path) -> Result<Vec<String>> {
    if path.extension().is_some_and(|extension| extension == "txt") {
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let text = String::from_utf8(bytes).map_err(|fault| {
            let at = fault.utf8_error().valid_up_to() as u64;
            Error::format_at(path, at, "not UTF-8")
        })?;
        return Ok(text.split_inclusive('\n').map(str::to_owned).collect());
    }
    let set = read(path)?;
    let mut texts = Vec::with_capacity(set.records.len());
    for record in set.records {
        match record {
            Record::TextOnly(text) => texts.push(text),
            Record::Text2Text { input, output } => texts.extend([input, output]),
            Record::Conversation(conversation) => {
                texts.extend(conversation.with_system().into_iter().map(|m| m.content));
            }
            _ => {
                let what = format!(
                    "type \"{}\", wanted text_only, text2text or conversation",
                    set.kind.name()
                );
                return Err(Error::Data { place: path.display().to_string(), what });
            }
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_is_every_text_of_a_data_set_or_the_lines_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let cases: [(&str, &str, &[&str]); 4] = [
            ("a.txt", "one\n\ntwo", &["one\n", "\n", "two"]),
            ("a.jsonl", "{\"text\":\"x\"}\n{\"text\":\"y\"}\n", &["x", "y"]),
            ("b.jsonl", "{\"input\":\"q\",\"output\":\"a\"}\n", &["q", "a"]),
            (
                "c.jsonl",
                r#"{"system":"s","messages":[{"role":"user","content":"u"}]}"#,
                &["s", "u"],
            ),
        ];
        for (name, content, wanted) in cases {
            assert_eq!(corpus(&file(name, content.as_bytes())).unwrap(), wanted, "{name}");
        }
        let error = corpus(&file("bad.txt", b"ab\xffc")).unwrap_err().to_string();
        assert!(error.contains("bad.txt") && error.contains("byte 2"), "{error}");
        let error = corpus(&file("d.jsonl", b"{\"value\":1.5}\n")).unwrap_err().to_string();
        assert!(error.contains("float_only"), "{error}");
    }
}
