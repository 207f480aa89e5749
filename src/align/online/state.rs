//! Where a run of iterations stands, on the disk and in its result. A checkpoint is numbered by the
//! optimiser steps and iterations before it together: both move it on.

use super::sample::Folder;
use super::{Method, Run};
use crate::align::online::Online;
use crate::data::order::Epochs;
use crate::error::{Error, Result};
use crate::train::job::End;
use crate::train::metrics::{self, Metrics};
use crate::train::saving::{broken_param, read_parts, write_parts};
use crate::train::state::{Setting, State, check_same};
use crate::train::step::Stepper;
use crate::train::watch::Watch;
use crate::train::{checkpoint, output, report};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::Instant;

/// Checkpoints that are kept unless told otherwise.
const KEPT: usize = 2;
const PLACE_NAME: &str = "place.json";
/// What a run was told, beside its answers: they are used again by the same run only.
const SETTINGS_NAME: &str = "settings.json";

/// Where a run stands, beside what every run of training knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Place {
    /// Iterations done.
    pub iteration: usize,
    /// Optimiser steps of the next one that are done.
    pub inside: usize,
    /// What the method keeps.
    pub memory: Vec<f64>,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct OnlineOutcome {
    /// Why it ended.
    pub end: End,
    /// The stable JSON of the command's `--json`.
    pub summary: Value,
}

impl<'a, 'w, M: Method> Run<'a, 'w, M> {
    pub(super) fn new(job: Online<'a, M>, watch: &'w mut dyn Watch) -> Result<Self> {
        let settings = &job.settings.train;
        let stepper = Stepper::new(job.model, settings)?;
        let mut all = job.identity.clone();
        all.extend(job.settings.fingerprint());
        let state = State::new(settings.seed, job.model.device().name(), all);
        let order = Epochs::new(job.prompts.len(), settings.seed, settings.shuffle);
        // Opened as it is: cut only when it is known how much of it stays.
        let metrics = Metrics::open(job.output, u64::MAX)?;
        let at = Place { memory: job.model.memory(), ..Place::default() };
        let start = Instant::now();
        let (saved, last) = (None, None);
        Ok(Run { job, watch, order, stepper, metrics, state, at, saved, last, start })
    }

    fn settings_path(&self) -> std::path::PathBuf {
        self.job.output.join(super::ITERATIONS_NAME).join(SETTINGS_NAME)
    }

    /// Clears what an earlier run drew, and notes what this one was told.
    pub(super) fn begin(&self) -> Result<()> {
        let dir = self.job.output.join(super::ITERATIONS_NAME);
        match fs::remove_dir_all(&dir) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(dir, source));
            }
            _ => {}
        }
        fs::create_dir_all(&dir).map_err(|source| Error::io(&dir, source))?;
        checkpoint::clean(&dir)?;
        let text = json!(self.state.settings).to_string();
        crate::data::write_atomically(&self.settings_path(), text.as_bytes())
    }

    pub(super) fn already_done(&self) -> Result<Option<OnlineOutcome>> {
        let Some(done) = output::read_done(self.job.output)? else { return Ok(None) };
        check_same(&done.settings, &self.state.settings)?;
        let mut summary = done.summary;
        summary["end"] = json!(End::AlreadyDone.name());
        Ok(Some(OnlineOutcome { end: End::AlreadyDone, summary }))
    }

    /// Goes on from the newest checkpoint, or from the answers that were drawn before the first.
    pub(super) fn resume(&mut self) -> Result<()> {
        let path = self.settings_path();
        match fs::read(&path) {
            Ok(bytes) => {
                let then: Vec<Setting> = serde_json::from_slice(&bytes)
                    .map_err(|error| Error::format(&path, error.to_string()))?;
                check_same(&then, &self.state.settings)?;
            }
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => self.begin()?,
            Err(source) => return Err(Error::io(path, source)),
        }
        let output = self.job.output;
        let Some(number) = checkpoint::newest(output, |text| self.watch.warn(text))? else {
            self.watch.remark("no checkpoint yet: starting from the beginning");
            return Ok(());
        };
        let dir = checkpoint::dir(output, number);
        let optimizer = self.stepper.optimizer.as_mut();
        let warn = &mut |text: &str| self.watch.warn(text);
        self.state = read_parts(&dir, self.job.model, optimizer, &self.state, warn)?;
        let path = dir.join(PLACE_NAME);
        let text = fs::read(&path).map_err(|source| Error::io(&path, source))?;
        self.at = serde_json::from_slice(&text)
            .map_err(|error| Error::format(&path, error.to_string()))?;
        self.job.model.remember(&self.at.memory);
        self.saved = Some(number);
        self.watch.remark(&format!("going on from {}", dir.display()));
        Ok(())
    }

    pub(super) fn save(&mut self) -> Result<()> {
        let number = self.state.step + self.at.iteration;
        if self.saved == Some(number) {
            return Ok(());
        }
        if let Some((what, value)) = broken_param(&*self.job.model)? {
            let step = self.state.step;
            return Err(self.not_finite(step, &what, value, "all answers so far".into()));
        }
        self.state.metrics_bytes = self.metrics.sync()?;
        let (job, state, at) = (&self.job, &self.state, &self.at);
        let optimizer = self.stepper.optimizer.as_ref();
        let path = checkpoint::write(job.output, number, |dir| {
            write_parts(dir, &*job.model, optimizer, state)?;
            let path = dir.join(PLACE_NAME);
            fs::write(&path, json!(at).to_string()).map_err(|source| Error::io(&path, source))
        })?;
        self.saved = Some(number);
        self.watch.saved(&path);
        let limit = self.job.settings.train.save_total_limit.unwrap_or(KEPT).max(1);
        checkpoint::prune(self.job.output, limit, None)
    }

    pub(super) fn finish(&mut self, end: End) -> Result<()> {
        if let Some((what, value)) = broken_param(&*self.job.model)? {
            let step = self.state.step;
            return Err(self.not_finite(step, &what, value, "all answers so far".into()));
        }
        let (job, every) = (&self.job, self.job.settings.save_iterations.max(1));
        output::publish(job.output, |dir| job.model.save(dir))?;
        for old in self.at.iteration.saturating_sub(4 * every)..self.at.iteration {
            Folder::of(job.output, old)?.close()?;
        }
        self.metrics.sync()?;
        self.report();
        let summary = self.outcome(end).summary;
        let done = output::Done { summary, settings: self.state.settings.clone() };
        output::write_done(self.job.output, &done)?;
        self.watch.saved(self.job.output);
        Ok(())
    }

    /// The error about a number that is not finite.
    pub(super) fn not_finite(&self, step: usize, what: &str, value: f64, batch: String) -> Error {
        let checkpoint = match self.saved {
            Some(number) => checkpoint::dir(self.job.output, number).display().to_string(),
            None => "none".to_owned(),
        };
        Error::NotFinite { step, what: what.to_owned(), value, batch, checkpoint }
    }

    pub(super) fn report(&mut self) {
        let output = self.job.output;
        let page = |output: &Path| -> Result<String> {
            let (lines, shown) = (metrics::read(output)?, super::answers::read(output)?);
            Ok(report::render_with(&self.job.title, &self.job.shown, &lines, &shown))
        };
        let written = page(output).and_then(|page| report::write(output, &page));
        if let Err(error) = written {
            self.watch.warn(&format!("no report: {error}"));
        }
    }

    pub(super) fn outcome(&self, end: End) -> OnlineOutcome {
        let line = |value: fn(&metrics::IterationLine) -> f64| self.last.as_ref().map(value);
        let State { step, n_scored, n_tokens, loss_sum, .. } = &self.state;
        let summary = json!({
            "end": end.name(),
            "iterations": self.at.iteration,
            "total_iterations": self.job.settings.iterations,
            "steps": step,
            "train_loss": (*step > 0).then(|| loss_sum / *step as f64),
            "tokens": n_scored,
            "tokens_seen": n_tokens,
            "reward_mean": line(|line| line.reward_mean),
            "reward_best": line(|line| line.reward_best),
            "kept": self.last.as_ref().map(|line| line.kept),
            "ppl": self.last.as_ref().and_then(|line| line.ppl),
            "seconds": self.start.elapsed().as_secs_f64(),
            "peak_bytes": metrics::peak_bytes(),
        });
        OnlineOutcome { end, summary }
    }
}
