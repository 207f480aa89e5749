//! What a run is given, and what comes out of it.

use super::metrics::{EvalLine, peak_bytes};
use super::settings::Settings;
use super::state::{Setting, State};
use super::trainee::Trainee;
use crate::data::{Row, RowSet};
use crate::error::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Rows by index.
pub trait Rows {
    /// How many.
    fn n_rows(&self) -> usize;
    /// Tokens of the longest.
    fn longest(&self) -> usize;
    /// One of them.
    ///
    /// # Errors
    /// Rows that cannot be read.
    fn row(&self, index: usize) -> Result<Row>;
    /// Where an instance of [`Row::source`] stands, for people.
    fn place(&self, instance: u32) -> String;
}

/// SHA-256 of rows, and of `more` that belongs to them, in hexadecimal.
///
/// # Errors
/// The first row that cannot be read.
pub fn digest(
    rows: impl Iterator<Item = Result<Row>>,
    more: impl Iterator<Item = u8>,
) -> Result<String> {
    let (mut hash, mut bytes) = (Sha256::new(), vec![]);
    for row in rows {
        let row = row?;
        bytes.clear();
        // The number of documents first, so that no two lists of rows give the same bytes.
        let n_spans = row.spans.len() as u32;
        let words = std::iter::once(&n_spans).chain(&row.spans).chain(&row.ids);
        bytes.extend(words.flat_map(|word| word.to_le_bytes()));
        bytes.extend(row.labels.iter().flat_map(|label| label.to_le_bytes()));
        hash.update(&bytes);
    }
    hash.update(more.collect::<Vec<u8>>());
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Rows on disk, looked through once.
pub struct Measured {
    rows: RowSet,
    longest: usize,
    /// SHA-256 of all rows, in hexadecimal.
    pub digest: String,
}

impl Measured {
    /// Reads every row.
    ///
    /// # Errors
    /// Rows that cannot be read.
    pub fn new(rows: RowSet) -> Result<Measured> {
        let mut longest = 0;
        let read = |index| {
            let row = rows.row(index)?;
            longest = longest.max(row.ids.len());
            Ok(row)
        };
        let digest = digest((0..rows.len()).map(read), std::iter::empty())?;
        Ok(Measured { rows, longest, digest })
    }

    /// Tokens of all rows.
    pub fn n_tokens(&self) -> u64 {
        self.rows.n_tokens()
    }

    /// Scored tokens of all rows.
    pub fn n_scored(&self) -> u64 {
        self.rows.n_scored()
    }
}

impl Rows for Measured {
    fn n_rows(&self) -> usize {
        self.rows.len()
    }

    fn longest(&self) -> usize {
        self.longest
    }

    fn row(&self, index: usize) -> Result<Row> {
        self.rows.row(index)
    }

    fn place(&self, instance: u32) -> String {
        self.rows.place(instance)
    }
}

/// What is to be done.
pub struct Job<'a, M: Trainee> {
    /// The model, as it is before the first step.
    pub model: &'a mut M,
    /// Rows to train on.
    pub train: &'a dyn Rows,
    /// Rows to evaluate on.
    pub eval: Option<&'a dyn Rows>,
    /// How.
    pub settings: &'a Settings,
    /// What decides the numbers beside the settings: model, method, precision, data.
    pub identity: Vec<Setting>,
    /// Name of the run in the report, and all settings that the report shows.
    pub title: String,
    /// See `title`.
    pub shown: Vec<(String, String)>,
    /// Where everything goes.
    pub output: &'a Path,
    /// Set from outside: ends the run after the present step, with a checkpoint.
    pub stop: &'a AtomicBool,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Complete,
    /// Waited long enough for a better evaluation.
    EarlyStop,
    /// Told to stop; a checkpoint is saved.
    Interrupted,
    /// It was done before.
    AlreadyDone,
}

impl End {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            End::Complete => "complete",
            End::EarlyStop => "early_stop",
            End::Interrupted => "interrupted",
            End::AlreadyDone => "already_done",
        }
    }
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// Where it stands.
    pub state: State,
    /// The steps it was planned to have.
    pub total_steps: usize,
    /// The evaluation that was seen last, in this process.
    pub eval: Option<EvalLine>,
    /// Seconds of this process's part.
    pub seconds: f64,
    /// What the run said when it was done, where that was before.
    pub before: Option<Value>,
}

impl Outcome {
    /// The stable JSON of `puna train --json`.
    pub fn json(&self) -> Value {
        if let Some(before) = &self.before {
            let mut value = before.clone();
            value["end"] = json!(self.end.name());
            return value;
        }
        let State { step, epoch, n_scored, n_tokens, loss_sum, best, .. } = &self.state;
        json!({
            "end": self.end.name(),
            "steps": step,
            "total_steps": self.total_steps,
            "epochs": epoch,
            "train_loss": (*step > 0).then(|| loss_sum / *step as f64),
            "tokens": n_scored,
            "tokens_seen": n_tokens,
            "eval_loss": self.eval.as_ref().map(|line| line.eval_loss),
            "eval_accuracy": self.eval.as_ref().map(|line| line.eval_accuracy),
            "eval_ppl": self.eval.as_ref().and_then(|line| line.eval_ppl),
            "best_step": best.seen.map(|seen| seen.step),
            "best_eval_loss": best.seen.map(|seen| seen.loss),
            "seconds": self.seconds,
            "peak_bytes": peak_bytes(),
        })
    }
}
