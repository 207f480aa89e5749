//! `metrics.jsonl`: a line for every step and for every evaluation, appended and flushed as it
//! comes. The file's length at a checkpoint is kept there, so that a resumed run drops the lines
//! of the steps that it takes again.

use super::trainee::Measures;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the file in the output directory.
pub const METRICS_NAME: &str = "metrics.jsonl";

/// One optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    /// Steps done, this one included: counts from 1.
    pub step: usize,
    /// Passes over the data, with the fraction of the present one.
    pub epoch: f64,
    /// Mean loss of a unit before the update: of a scored token its negative log-likelihood, in
    /// nats.
    pub loss: f64,
    /// Learning rate of this update.
    pub lr: f64,
    /// L2 norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Scored tokens of the step.
    pub tokens: usize,
    /// All tokens of the step, scored or not, per second of the whole step.
    pub tok_per_s: f64,
    /// Most memory that the process has held so far; unknown on some systems.
    pub peak_bytes: Option<u64>,
    /// What else the model measures.
    #[serde(flatten)]
    pub measures: Measures,
}

/// One pass over the evaluation set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalLine {
    /// Steps done before it.
    pub step: usize,
    /// Mean loss of a unit: of a scored token its negative log-likelihood, in nats.
    pub eval_loss: f64,
    /// Share of units that were right: of scored tokens those that were the likeliest.
    pub eval_accuracy: f64,
    /// `exp(eval_loss)`, where that is a perplexity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_ppl: Option<f64>,
    /// Scored tokens.
    pub eval_tokens: usize,
    /// What else the model measures, `eval_` before the name.
    #[serde(flatten)]
    pub measures: Measures,
}

/// One iteration of a run that learns from its own answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IterationLine {
    /// Counts from 1.
    pub iteration: usize,
    /// Optimiser steps done with it.
    pub step: usize,
    /// Answers that were drawn.
    pub answers: usize,
    /// Answers that were learnt from.
    pub kept: usize,
    /// Mean reward of all answers.
    pub reward_mean: f64,
    /// Mean reward of each prompt's first answer.
    pub reward_first: f64,
    /// Mean reward of each prompt's best answer.
    pub reward_best: f64,
    /// Mean reward of the answers that were learnt from; none where none was.
    pub reward_selected: Option<f64>,
    /// Mean number of tokens of an answer.
    pub length: f64,
    /// Share of answers that ended by themselves.
    pub ended: f64,
    /// Perplexity: of the evaluation set after the iteration, else of the answers that were learnt
    /// from before it.
    pub ppl: Option<f64>,
    /// Mean share of different words in windows of 100 words of all answers.
    pub msttr_100: Option<f64>,
    /// Different words over words.
    pub distinct_1: Option<f64>,
    /// Different pairs of words over pairs.
    pub distinct_2: Option<f64>,
    /// Words that occur exactly once.
    pub unique_1: usize,
    /// Pairs that occur exactly once.
    pub unique_2: usize,
    /// Seconds of drawing answers.
    pub sample_s: f64,
    /// Seconds of scoring them.
    pub score_s: f64,
    /// Seconds of learning.
    pub train_s: f64,
    /// Tokens drawn a second.
    pub sample_tok_per_s: Option<f64>,
    /// What else was measured.
    #[serde(flatten)]
    pub measures: Measures,
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// A step.
    Step(StepLine),
    /// An evaluation.
    Eval(EvalLine),
    /// An iteration.
    Iteration(IterationLine),
}

/// The file, open for appending.
pub struct Metrics {
    path: PathBuf,
    file: File,
    n_bytes: u64,
}

impl Metrics {
    /// Opens the file in `dir` and cuts it to its first `keep_bytes` bytes (0 starts anew; a
    /// shorter file is kept as it is).
    ///
    /// # Errors
    /// What the system refuses.
    pub fn open(dir: &Path, keep_bytes: u64) -> Result<Metrics> {
        let path = dir.join(METRICS_NAME);
        let open = || -> std::io::Result<(File, u64)> {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            let n_bytes = file.metadata()?.len().min(keep_bytes);
            file.set_len(n_bytes)?;
            Ok((file, n_bytes))
        };
        match open() {
            Ok((file, n_bytes)) => Ok(Metrics { path, file, n_bytes }),
            Err(source) => Err(Error::io(path, source)),
        }
    }

    /// Appends a line in one write.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn append(&mut self, line: &Line) -> Result<()> {
        let io = |source| Error::io(&self.path, source);
        let mut text = serde_json::to_string(line).map_err(|e| io(e.into()))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush()).map_err(io)?;
        self.n_bytes += text.len() as u64;
        Ok(())
    }

    /// Brings everything written to the disk; gives the length in bytes.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn sync(&self) -> Result<u64> {
        self.file.sync_data().map_err(|source| Error::io(&self.path, source))?;
        Ok(self.n_bytes)
    }
}

/// The lines of the file in `dir`; a last line that was cut off by a kill is left out.
///
/// # Errors
/// A file that cannot be read, or a whole line that is none of ours.
pub fn read(dir: &Path) -> Result<Vec<Line>> {
    let path = dir.join(METRICS_NAME);
    let text = fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |(index, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|error| Error::format(&path, format!("line {}: {error}", index + 1)))
    };
    whole.lines().enumerate().map(parse).collect()
}

/// Most memory that this process has held, from the kernel's own count.
pub fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize) -> Line {
        Line::Step(StepLine {
            step,
            epoch: 0.5,
            loss: 2.25,
            lr: 5e-5,
            grad_norm: 1.5,
            tokens: 44,
            tok_per_s: 100.0,
            peak_bytes: Some(1 << 20),
            measures: Measures::new(),
        })
    }

    fn eval(step: usize) -> Line {
        Line::Eval(EvalLine {
            step,
            eval_loss: 1.0,
            eval_accuracy: 0.5,
            eval_ppl: Some(std::f64::consts::E),
            eval_tokens: 7,
            measures: Measures::from([("eval_margin".into(), 0.25)]),
        })
    }

    #[test]
    fn lines_come_back_and_have_the_promised_keys() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path(), 0).unwrap();
        for line in [step(1), eval(1), step(2)] {
            metrics.append(&line).unwrap();
        }
        assert_eq!(read(dir.path()).unwrap(), [step(1), eval(1), step(2)]);
        let keys = |line: &Line| {
            let value = serde_json::to_value(line).unwrap();
            value.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
        };
        let wanted =
            ["step", "epoch", "loss", "lr", "grad_norm", "tokens", "tok_per_s", "peak_bytes"];
        assert_eq!(keys(&step(1)), wanted);
        let wanted =
            ["step", "eval_loss", "eval_accuracy", "eval_ppl", "eval_tokens", "eval_margin"];
        assert_eq!(keys(&eval(1)), wanted);
    }

    #[test]
    fn reopening_cuts_what_came_after_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path(), 0).unwrap();
        metrics.append(&step(1)).unwrap();
        let kept = metrics.sync().unwrap();
        metrics.append(&step(2)).unwrap();
        let path = dir.path().join(METRICS_NAME);
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"step\": 3, \"lo").unwrap();
        assert_eq!(read(dir.path()).unwrap(), [step(1), step(2)]);

        let mut metrics = Metrics::open(dir.path(), kept).unwrap();
        metrics.append(&eval(1)).unwrap();
        assert_eq!(read(dir.path()).unwrap(), [step(1), eval(1)]);
        assert_eq!(metrics.sync().unwrap(), fs::metadata(&path).unwrap().len());
        // A file that lost its tail is taken as it is.
        let metrics = Metrics::open(dir.path(), 1 << 40).unwrap();
        assert_eq!(metrics.sync().unwrap(), fs::metadata(&path).unwrap().len());
        Metrics::open(dir.path(), 0).unwrap();
        assert_eq!(read(dir.path()).unwrap(), []);
    }

    #[test]
    fn faults_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path()), Err(Error::Io { .. })));
        fs::write(dir.path().join(METRICS_NAME), "{\"step\": 1}\n").unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_held_some_memory() {
        assert!(peak_bytes().is_some_and(|bytes| bytes > 100_000));
    }
}
