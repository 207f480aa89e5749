//! The one training loop.
//!
//! ```text
//! after every step, and before the first:
//!     evaluate, if it is time and not done yet for this step; note the best; stop if waited enough
//!     save a checkpoint, if it is time or this is the best; leave here when told to stop
//!     take a step: count the scored tokens of all its rows, add up the gradient slice by slice,
//!         clip, update; write its line
//! at the end: the best weights, if wanted; the result, the report, the sign that the run is done
//! ```
//!
//! A step depends on the seed and its number alone, never on what happened between: that makes a
//! resumed run give the same bits. Numbers that are not finite end the run before anything that
//! they touched is saved.

use super::batch::{budget, instances};
use super::checkpoint;
use super::evaluate::evaluate;
use super::job::{End, Job, Outcome};
use super::metrics::{EvalLine, Line, Metrics, StepLine, peak_bytes};
use super::plan::Plan;
use super::settings::Settings;
use super::state::{Cursor, State};
use super::step::{Step, Stepper};
use super::trainee::Trainee;
use super::watch::Watch;

use crate::data::order::Epochs;
use crate::error::{Error, Result};
use std::fs;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Runs the job. Without `resume` the output directory must not hold another run's checkpoints.
///
/// # Errors
/// Settings that make no sense or differ from those that the run was begun with; rows that cannot
/// be read; what the model and the system refuse; [`Error::NotFinite`].
pub fn train<M: Trainee>(job: Job<'_, M>, resume: bool, watch: &mut dyn Watch) -> Result<Outcome> {
    job.settings.check(job.eval.is_some())?;
    fs::create_dir_all(job.output).map_err(|source| Error::io(job.output, source))?;
    checkpoint::clean(job.output)?;
    let mut trainer = Trainer::new(job, watch)?;
    if resume {
        if let Some(outcome) = trainer.already_done()? {
            return Ok(outcome);
        }
        trainer.resume()?;
    }
    trainer.run()
}

/// A run in progress.
pub(super) struct Trainer<'a, 'w, M: Trainee> {
    pub(super) job: Job<'a, M>,
    pub(super) watch: &'w mut dyn Watch,
    pub(super) plan: Plan,
    epochs: Epochs,
    pub(super) stepper: Stepper,
    pub(super) metrics: Metrics,
    pub(super) state: State,
    /// The step whose checkpoint is whole on the disk.
    pub(super) saved: Option<usize>,
    pub(super) eval: Option<EvalLine>,
    pub(super) start: Instant,
}

impl<'a, 'w, M: Trainee> Trainer<'a, 'w, M> {
    fn new(job: Job<'a, M>, watch: &'w mut dyn Watch) -> Result<Self> {
        let settings = job.settings;
        let plan = settings.plan(job.train.n_rows())?;
        let stepper = Stepper::new(job.model, settings)?;
        let mut all = job.identity.clone();
        all.extend(settings.fingerprint(plan.total_steps));
        let state = State::new(settings.seed, job.model.device().name(), all);
        let epochs = Epochs::new(plan.n_rows, settings.seed, settings.shuffle);
        let start = Instant::now();
        // Opened as it is: cut only when it is known how much of it stays.
        let metrics = Metrics::open(job.output, u64::MAX)?;
        Ok(Trainer {
            job,
            watch,
            plan,
            epochs,
            stepper,
            metrics,
            state,
            saved: None,
            eval: None,
            start,
        })
    }

    fn run(mut self) -> Result<Outcome> {
        self.metrics = Metrics::open(self.job.output, self.state.metrics_bytes)?;
        self.watch.begin(self.state.step, self.plan.total_steps);
        let end = loop {
            let step = self.state.step;
            if self.stopped() && step < self.plan.total_steps {
                break End::Interrupted;
            }
            let mut is_best = false;
            let former = self.state.best.seen.map(|seen| seen.step);
            if self.time_to_evaluate() {
                let Some(best) = self.evaluate()? else { break End::Interrupted };
                is_best = best && self.job.settings.keep_best;
            }
            let early = self.state.best.exhausted(self.job.settings.patience);
            if self.is_due(step) || is_best {
                self.save()?;
            }
            if is_best {
                self.drop_former_best(former)?;
            }
            if step >= self.plan.total_steps {
                break End::Complete;
            }
            if early {
                break End::EarlyStop;
            }
            self.step()?;
        };
        match end {
            End::Interrupted => {
                self.save()?;
                self.report();
            }
            _ => self.finish(end)?,
        }
        Ok(self.outcome(end))
    }

    fn stopped(&self) -> bool {
        self.job.stop.load(Ordering::Relaxed)
    }

    fn time_to_evaluate(&self) -> bool {
        let step = self.state.step;
        if self.job.eval.is_none() || self.state.evaluated == Some(step) {
            return false;
        }
        if step == 0 {
            return self.job.settings.eval_on_start;
        }
        let every = self.job.settings.eval_steps.unwrap_or(self.plan.steps_per_epoch);
        step.is_multiple_of(every.max(1)) || step == self.plan.total_steps
    }

    fn step(&mut self) -> Result<()> {
        let start = Instant::now();
        let settings = self.job.settings;
        let step = self.state.step;
        let micros = self.plan.micros(&self.epochs, step, |at| self.job.train.row(at))?;
        let budget = budget(settings.slice_tokens, self.job.train.longest());
        let warmup = settings.warmup(self.plan.total_steps);
        let lr =
            settings.schedule.rate(settings.learning_rate, step, warmup, self.plan.total_steps);
        let Settings { seed, max_grad_norm, .. } = *settings;
        let how = Step { step, seed, lr, budget, max_grad_norm };
        let (total, norm) = match self.stepper.step(self.job.model, &micros, &how)? {
            Ok(done) => done,
            Err((what, value)) => {
                self.report();
                let batch = instances(&micros, |one| self.job.train.place(one));
                return Err(self.not_finite(step + 1, what, value, batch));
            }
        };

        let done = step + 1;
        let place = self.plan.place(done);
        let state = &mut self.state;
        state.step = done;
        state.epoch = self.plan.epochs_after(done);
        state.cursor =
            Cursor { epoch: place.epoch, row: place.micros.start * self.plan.batch_size };
        state.loss_sum += total.loss();
        state.n_scored += total.n_scored as u64;
        state.n_tokens += total.n_tokens as u64;
        let line = StepLine {
            step: done,
            epoch: state.epoch,
            loss: total.loss(),
            lr,
            grad_norm: norm,
            tokens: total.n_scored,
            tok_per_s: total.n_tokens as f64 / start.elapsed().as_secs_f64().max(1e-9),
            peak_bytes: peak_bytes(),
            measures: self.job.model.measures(),
        };
        self.metrics.append(&Line::Step(line.clone()))?;
        self.watch.step(&line);
        Ok(())
    }

    /// The error about a number that is not finite.
    pub(super) fn not_finite(&self, step: usize, what: &str, value: f64, batch: String) -> Error {
        let checkpoint = match self.saved {
            Some(step) => checkpoint::dir(self.job.output, step).display().to_string(),
            None => "none".to_owned(),
        };
        Error::NotFinite { step, what: what.to_owned(), value, batch, checkpoint }
    }

    /// Runs the evaluation set; whether it is the best. `None` when told to stop meanwhile.
    fn evaluate(&mut self) -> Result<Option<bool>> {
        let Some(rows) = self.job.eval else { return Ok(Some(false)) };
        self.watch.evaluating(rows.n_rows());
        let budget = budget(self.job.settings.slice_tokens, rows.longest());
        let total = evaluate(self.job.model, rows, budget, self.job.stop)?;
        let Some(total) = total else { return Ok(None) };
        let loss = total.loss();
        let step = self.state.step;
        if !loss.is_finite() {
            self.report();
            let batch = "the evaluation set".to_owned();
            return Err(self.not_finite(step, "the evaluation loss", loss, batch));
        }
        let measures = self.job.model.measures().into_iter();
        let line = EvalLine {
            step,
            eval_loss: loss,
            eval_accuracy: total.n_correct as f64 / total.n_units as f64,
            eval_ppl: self.job.model.scores_tokens().then(|| loss.exp()),
            eval_tokens: total.n_scored,
            measures: measures.map(|(name, value)| (format!("eval_{name}"), value)).collect(),
        };
        self.metrics.append(&Line::Eval(line.clone()))?;
        self.watch.evaluated(&line);
        self.eval = Some(line);
        self.state.evaluated = Some(step);
        Ok(Some(self.state.best.update(step, loss, self.job.settings.threshold)))
    }
}

#[cfg(test)]
#[path = "trainer_tests.rs"]
mod tests;
