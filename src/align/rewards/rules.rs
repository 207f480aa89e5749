//! Rewards that need no model: a rule that an answer keeps or breaks.
//!
//! | rule | score |
//! |---|---|
//! | `length:LOW-HIGH` | 1 from LOW to HIGH words, falling linearly to 0 at none and at 2 HIGH |
//! | `regex:PATTERN` | 1 where the pattern matches anywhere in the answer, else 0 |
//! | `json` | 1 where the answer is one JSON value, else 0 |
//! | `exact` | 1 where the answer is the reference answer, else 0 |
//! | `exact:TYPE` | the same of what LMFlow's rules for TYPE take out of the answer |
//!
//! Words are what white space separates. White space around an answer does not count for `json` and
//! `exact`. Nothing is taken out of reference answers, as in LMFlow's accuracy: data for
//! `exact:gsm8k` have the number alone.

use super::{Asked, Reward};
use crate::error::{Error, Result};
use crate::eval::answers::AnswerType;
use regex::Regex;
use serde::de::IgnoredAny;
use std::sync::atomic::AtomicBool;

/// A rule for answers.
#[derive(Clone, Debug)]
pub enum Rule {
    /// So many words.
    Length {
        /// The fewest that are enough.
        low: usize,
        /// The most that are not too many, at least 1.
        high: usize,
    },
    /// A pattern that is found.
    Regex(Regex),
    /// One JSON value.
    Json,
    /// The reference answer, as it stands or as it is taken out of the answer.
    Exact(Option<AnswerType>),
}

impl Rule {
    /// Reads a rule as it is written in commands.
    ///
    /// # Errors
    /// What was wanted instead, where it is none.
    pub fn parse(text: &str) -> Result<Rule, String> {
        match text.split_once(':') {
            None if text == "json" => Ok(Rule::Json),
            None if text == "exact" => Ok(Rule::Exact(None)),
            Some(("length", range)) => length(range),
            Some(("regex", pattern)) => regex(pattern),
            Some(("exact", name)) => exact(name),
            _ => Err("wanted length:LOW-HIGH, regex:PATTERN, json, exact or exact:TYPE".to_owned()),
        }
    }

    /// The score of an answer, 0 to 1.
    ///
    /// # Errors
    /// A prompt without the reference answer that the rule needs.
    pub fn score(&self, asked: &Asked<'_>) -> Result<f64> {
        let answer = asked.answer;
        let holds = match self {
            Rule::Length { low, high } => {
                let n = answer.split_whitespace().count() as f64;
                return Ok(within(n, *low as f64, *high as f64));
            }
            Rule::Regex(pattern) => pattern.is_match(answer),
            Rule::Json => serde_json::from_str::<IgnoredAny>(answer.trim()).is_ok(),
            Rule::Exact(kind) => {
                let Some(wanted) = &asked.prompt.answer else {
                    let what = format!("no reference answer, which the rule {} needs", self.name());
                    return Err(Error::Data { place: asked.prompt.place.clone(), what });
                };
                match kind {
                    Some(kind) => kind.matches(&kind.extract(answer), wanted),
                    None => answer.trim() == wanted.trim(),
                }
            }
        };
        Ok(f64::from(holds))
    }
}

impl Reward for Rule {
    /// The rule as it is written in commands.
    fn name(&self) -> String {
        match self {
            Rule::Length { low, high } => format!("length:{low}-{high}"),
            Rule::Regex(pattern) => format!("regex:{pattern}"),
            Rule::Json => "json".to_owned(),
            Rule::Exact(None) => "exact".to_owned(),
            Rule::Exact(Some(kind)) => format!("exact:{}", kind.name()),
        }
    }

    fn scores(&mut self, asked: &[Asked<'_>], _: &AtomicBool) -> Result<Vec<f64>> {
        asked.iter().map(|one| self.score(one)).collect()
    }
}

/// 1 from `low` to `high`, falling to 0 at 0 and at twice `high`.
fn within(n: f64, low: f64, high: f64) -> f64 {
    if n < low {
        n / low
    } else if n <= high {
        1.0
    } else {
        (2.0 - n / high).max(0.0)
    }
}

fn length(range: &str) -> Result<Rule, String> {
    let ends = range.split_once('-').and_then(|(low, high)| {
        Some((low.trim().parse::<usize>().ok()?, high.trim().parse::<usize>().ok()?))
    });
    match ends {
        Some((low, high)) if low <= high && high > 0 => Ok(Rule::Length { low, high }),
        _ => Err("wanted length:LOW-HIGH in words, as in length:20-80".to_owned()),
    }
}

fn regex(pattern: &str) -> Result<Rule, String> {
    Regex::new(pattern).map(Rule::Regex).map_err(|error| {
        // Its message draws the pattern over several lines; the last one says what is wrong.
        let message = error.to_string();
        let last = message.lines().last().unwrap_or_default().trim();
        format!("wanted a regular expression: {}", last.trim_start_matches("error: "))
    })
}

fn exact(name: &str) -> Result<Rule, String> {
    let kind = AnswerType::named(name);
    let wanted = || format!("wanted exact or exact: with one of {}", AnswerType::NAMES.join(", "));
    kind.map(|kind| Rule::Exact(Some(kind))).ok_or_else(wanted)
}
