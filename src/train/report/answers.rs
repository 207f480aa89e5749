//! Answers to the same prompts at several iterations, side by side.

use super::rounded;
use crate::train::svg::{escape, number};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Columns of answers at most: beside the prompt the first, the middle and the last.
const MAX_COLUMNS: usize = 3;
/// Longer texts are cut to so many characters.
const MAX_CHARS: usize = 600;

/// A prompt and what the model made of it as it learnt.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Shown {
    /// The prompt.
    pub prompt: String,
    /// Its answers, one an iteration at most.
    pub answers: Vec<ShownAnswer>,
}

/// An answer.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ShownAnswer {
    /// Iterations done before it: 0 is the model as it was given.
    pub iteration: usize,
    /// The answer.
    pub text: String,
    /// Its reward, where it has one.
    pub reward: Option<f64>,
}

/// A row for each prompt, a column for each of a few iterations; empty where there is no answer.
pub(super) fn table(shown: &[Shown]) -> String {
    let iterations = columns(shown);
    if iterations.is_empty() {
        return String::new();
    }
    let mut out = "<h2>Answers</h2>\n<table class=\"answers\">\n<tr><th>prompt</th>".to_owned();
    for &iteration in &iterations {
        let _ = write!(out, "<th>{}</th>", column_name(iteration));
    }
    out += "</tr>\n";
    for one in shown {
        let _ = write!(out, "<tr><td>{}</td>", escape(&cut(&one.prompt)));
        for &iteration in &iterations {
            let answer = one.answers.iter().find(|answer| answer.iteration == iteration);
            let _ = write!(out, "<td>{}</td>", answer.map(cell).unwrap_or_default());
        }
        out += "</tr>\n";
    }
    out + "</table>\n"
}

/// Iterations that have a column: all, or as many as there is room for, evenly chosen.
fn columns(shown: &[Shown]) -> Vec<usize> {
    let answers = shown.iter().flat_map(|one| &one.answers);
    let all: BTreeSet<usize> = answers.map(|answer| answer.iteration).collect();
    let all: Vec<usize> = all.into_iter().collect();
    if all.len() <= MAX_COLUMNS {
        return all;
    }
    let gaps = MAX_COLUMNS - 1;
    (0..=gaps).map(|i| all[(i * (all.len() - 1) + gaps / 2) / gaps]).collect()
}

fn column_name(iteration: usize) -> String {
    if iteration == 0 { "before".to_owned() } else { format!("iteration {iteration}") }
}

/// An answer's text with its reward under it.
fn cell(answer: &ShownAnswer) -> String {
    let mut out = escape(&cut(&answer.text));
    if let Some(reward) = answer.reward {
        let reward = number(rounded(reward));
        let _ = write!(out, "<div class=\"reward\">reward {reward}</div>");
    }
    out
}

/// The text, or its beginning where it is long.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
