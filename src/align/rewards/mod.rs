//! What answers are worth: under a reward model, a program, rules, or a weighted sum of these.
//!
//! Every source gives one finite number an answer. Anything else ends the run: training on it would
//! spoil a model in silence.

mod judge;
mod program;
mod rules;

pub use judge::Judge;
pub use program::Program;
pub use rules::Rule;

use crate::data::Prompt;
use crate::error::{Error, Result};
use std::sync::atomic::AtomicBool;

/// An answer to be scored.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What was asked.
    pub prompt: &'a Prompt,
    /// What a model answered.
    pub answer: &'a str,
}

/// What gives scores to answers.
pub trait Reward {
    /// Its name, for people and for columns of measures.
    fn name(&self) -> String;

    /// The score of each answer; higher is better. Work that lasts looks at `cancel`.
    ///
    /// # Errors
    /// What cannot be scored, and [`Error::Cancelled`].
    fn scores(&mut self, asked: &[Asked<'_>], cancel: &AtomicBool) -> Result<Vec<f64>>;

    /// How many answers were cut before they were scored, since the last call.
    fn take_cut(&mut self) -> usize {
        0
    }
}

/// Sources with their weights; a score is the weighted sum.
pub struct Rewards {
    /// At least one, weights finite.
    parts: Vec<(Box<dyn Reward>, f64)>,
}

/// The scores of some answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The weighted sum, one an answer.
    pub total: Vec<f64>,
    /// Name and scores of each source, unweighted, in the order of the sources.
    pub parts: Vec<(String, Vec<f64>)>,
}

impl Rewards {
    /// The sum of these.
    ///
    /// # Errors
    /// No source; a weight that is not finite.
    pub fn new(parts: Vec<(Box<dyn Reward>, f64)>) -> Result<Rewards> {
        if parts.is_empty() {
            return Err(Error::config("rewards", "none", "wanted at least one"));
        }
        for (source, weight) in &parts {
            if !weight.is_finite() {
                let field = format!("weight of the reward {}", source.name());
                return Err(Error::config(field, weight, "wanted a finite number"));
            }
        }
        Ok(Rewards { parts })
    }

    /// The names of the sources, in their order.
    pub fn names(&self) -> Vec<String> {
        self.parts.iter().map(|(source, _)| source.name()).collect()
    }

    /// The score of each answer.
    ///
    /// # Errors
    /// Those of the sources; a source that does not give one finite number an answer.
    pub fn scores(&mut self, asked: &[Asked<'_>], cancel: &AtomicBool) -> Result<Scores> {
        let mut total = vec![0.0; asked.len()];
        let mut parts = Vec::with_capacity(self.parts.len());
        for (source, weight) in &mut self.parts {
            let name = source.name();
            let scores = source.scores(asked, cancel)?;
            check(&format!("the reward {name}"), &scores, asked)?;
            total.iter_mut().zip(&scores).for_each(|(sum, score)| *sum += *weight * score);
            parts.push((name, scores));
        }
        // Weights can make too much of finite numbers.
        check("the sum of the rewards", &total, asked)?;
        Ok(Scores { total, parts })
    }

    /// How many answers the sources cut, since the last call.
    pub fn take_cut(&mut self) -> usize {
        self.parts.iter_mut().map(|(source, _)| source.take_cut()).sum()
    }
}

fn check(what: &str, scores: &[f64], asked: &[Asked<'_>]) -> Result<()> {
    if scores.len() != asked.len() {
        let found = format!("{} scores, wanted {}, one an answer", scores.len(), asked.len());
        return Err(Error::Data { place: what.to_owned(), what: found });
    }
    match scores.iter().zip(asked).find(|(score, _)| !score.is_finite()) {
        Some((score, one)) => {
            let what = format!("{what} is {score}, wanted a finite number");
            Err(Error::Data { place: one.prompt.place.clone(), what })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
