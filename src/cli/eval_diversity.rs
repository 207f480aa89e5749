//! `puna eval diversity`: how varied answers are.

use super::args::{Common, HELP};
use super::failure::Failure;
use super::terminal::print_line;
use crate::data::{Record, Source};
use crate::error::{Error, Result};
use crate::eval::diversity::diversity;
use clap::Args;
use std::path::{Path, PathBuf};

/// Flags of `puna eval diversity`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna eval diversity --dataset DIR [flags]")]
#[command(after_help = "Example: puna eval diversity --dataset answers.json")]
pub struct DiversityArgs {
    /// Answers: lists, text2text, or texts
    #[arg(long, value_name = "DIR", alias = "dataset-path")]
    pub dataset: Option<PathBuf>,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage; data that cannot be read or hold no answers.
pub fn run(args: &DiversityArgs) -> Result<(), Failure> {
    let Some(data) = args.dataset.as_deref() else {
        let hint = "--dataset DIR names answers".to_owned();
        return Err(Failure::Usage("no data named".into(), Some(hint)));
    };
    let found = diversity(answers(data)?.iter());
    let value = found.json();
    if args.common.json {
        return Ok(print_line(&value.to_string())?);
    }
    for (name, number) in value.as_object().into_iter().flatten() {
        let text = match number.as_f64() {
            Some(number) if number.fract() != 0.0 => format!("{number:.5}"),
            Some(number) => number.to_string(),
            None => "none".to_owned(),
        };
        print_line(&format!("{name:<10} {text}"))?;
    }
    Ok(())
}

/// Every answer of a set.
fn answers(data: &Path) -> Result<Vec<String>> {
    let source = Source::open(data)?;
    let mut texts = vec![];
    source.for_each(&mut |instance| {
        match instance.record {
            Record::TextOnly(text) => texts.push(text),
            Record::Text2Text { output, .. } => texts.push(output),
            Record::TextToTextlist(list) => texts.extend(list.output),
            Record::TextToScoredTextlist { output, .. } => {
                texts.extend(output.into_iter().map(|(_, text)| text));
            }
            other => {
                let what = format!(
                    "records of type \"{}\", wanted one of text_only, text2text, text_to_textlist, \
                     text_to_scored_textlist",
                    other.kind().name()
                );
                return Err(Error::Data { place: source.name(instance.place), what });
            }
        }
        Ok(())
    })?;
    Ok(texts)
}
