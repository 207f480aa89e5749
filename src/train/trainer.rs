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

use super::batch::{DropoutKey, accumulate, budget, instances};
use super::clip::{clip_factor, global_norm};
use super::evaluate::evaluate;
use super::job::{End, Job, Outcome};
use super::metrics::{self, EvalLine, Line, Metrics, StepLine, peak_bytes};
use super::optimizer::{self, Optimizer};
use super::plan::Plan;
use super::report;
use super::state::{Cursor, State, check_same};
use super::trainee::Trainee;
use super::watch::Watch;
use super::{checkpoint, moments, output, tensors};
use crate::data::Row;
use crate::data::order::Epochs;
use crate::error::{Error, Result};
use crate::tensor::Grads;
use std::fs;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// File of the exact values of what is trained, in a checkpoint.
const PARAMS_NAME: &str = "trained.safetensors";
/// File of the optimiser's state, in a checkpoint.
const OPTIMIZER_NAME: &str = "optimizer.safetensors";

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

struct Trainer<'a, 'w, M: Trainee> {
    job: Job<'a, M>,
    watch: &'w mut dyn Watch,
    plan: Plan,
    epochs: Epochs,
    optimizer: Box<dyn Optimizer>,
    grads: Grads,
    metrics: Metrics,
    state: State,
    /// The step whose checkpoint is whole on the disk.
    saved: Option<usize>,
    eval: Option<EvalLine>,
    start: Instant,
}

impl<'a, 'w, M: Trainee> Trainer<'a, 'w, M> {
    fn new(job: Job<'a, M>, watch: &'w mut dyn Watch) -> Result<Self> {
        let settings = job.settings;
        let plan = settings.plan(job.train.n_rows())?;
        let optimizer = job.model.with_params(|_, params| {
            optimizer::make(&settings.optim, &settings.optim_args, params)
        })?;
        let grads = Grads::zeros(job.model.params());
        let mut all = job.identity.clone();
        all.extend(settings.fingerprint(plan.total_steps));
        let state = State::new(settings.seed, job.model.cpu().isa.to_string(), all);
        let epochs = Epochs::new(plan.n_rows, settings.seed, settings.shuffle);
        let start = Instant::now();
        // Opened as it is: cut only when it is known how much of it stays.
        let metrics = Metrics::open(job.output, u64::MAX)?;
        Ok(Trainer {
            job,
            watch,
            plan,
            epochs,
            optimizer,
            grads,
            metrics,
            state,
            saved: None,
            eval: None,
            start,
        })
    }

    fn already_done(&mut self) -> Result<Option<Outcome>> {
        let Some(done) = output::read_done(self.job.output)? else { return Ok(None) };
        check_same(&done.settings, &self.state.settings)?;
        let outcome = self.outcome(End::AlreadyDone);
        Ok(Some(Outcome { before: Some(done.summary), ..outcome }))
    }

    /// Goes back to the newest checkpoint; without one, to the beginning.
    fn resume(&mut self) -> Result<()> {
        let output = self.job.output;
        let Some(step) = checkpoint::newest(output, |text| self.watch.warn(text))? else {
            self.watch.remark("no checkpoint yet: starting from the beginning");
            return Ok(());
        };
        let dir = checkpoint::dir(output, step);
        let state = State::read(&dir)?;
        check_same(&state.settings, &self.state.settings)?;
        if (&state.isa, &state.puna) != (&self.state.isa, &self.state.puna) {
            self.watch.warn(&format!(
                "{} was written by Puna {} on {}, this is {} on {}: the numbers will differ in \
                 their last bits",
                dir.display(),
                state.puna,
                state.isa,
                self.state.puna,
                self.state.isa
            ));
        }
        tensors::read_params(&dir.join(PARAMS_NAME), self.job.model.params_mut())?;
        let optimizer = &mut self.optimizer;
        moments::read(&dir.join(OPTIMIZER_NAME), optimizer.as_mut())?;
        self.saved = Some(state.step);
        self.state = state;
        self.watch.remark(&format!("going on from {}", dir.display()));
        Ok(())
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
            if self.time_to_evaluate() {
                let Some(best) = self.evaluate()? else { break End::Interrupted };
                is_best = best && self.job.settings.keep_best;
            }
            let early = self.state.best.exhausted(self.job.settings.patience);
            let every = self.job.settings.save_steps;
            let due = every > 0 && step > 0 && step.is_multiple_of(every);
            if due || is_best {
                self.save()?;
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

    /// The rows of the next step.
    fn rows(&self) -> Result<Vec<Vec<Row>>> {
        let place = self.plan.place(self.state.step);
        let row = |at| self.job.train.row(self.epochs.index(place.epoch as u64, at));
        place.micros.map(|micro| self.plan.rows(micro).map(row).collect()).collect()
    }

    fn step(&mut self) -> Result<()> {
        let start = Instant::now();
        let settings = self.job.settings;
        let step = self.state.step;
        let micros = self.rows()?;
        let budget = budget(settings.slice_tokens, self.job.train.longest());
        let key = DropoutKey { seed: settings.seed, step };
        self.grads.clear();
        let total = accumulate(self.job.model, &micros, &mut self.grads, budget, key)?;
        self.insist("the loss", total.nll, &micros)?;
        let norm = global_norm(self.job.model.cpu(), &self.grads);
        self.insist("the gradient's norm", norm, &micros)?;

        let warmup = settings.warmup(self.plan.total_steps);
        let lr =
            settings.schedule.rate(settings.learning_rate, step, warmup, self.plan.total_steps);
        let factor = clip_factor(norm, settings.max_grad_norm);
        let (optimizer, grads) = (&mut self.optimizer, &self.grads);
        self.job
            .model
            .with_params(|cpu, params| optimizer.step(cpu, params, grads, lr as f32, factor));

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
        };
        self.metrics.append(&Line::Step(line.clone()))?;
        self.watch.step(&line);
        Ok(())
    }

    /// Refuses a number that is not finite, and says what led to it.
    fn insist(&mut self, what: &str, value: f64, micros: &[Vec<Row>]) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        self.report();
        Err(self.not_finite(
            self.state.step + 1,
            what,
            value,
            instances(micros, |one| self.job.train.place(one)),
        ))
    }

    fn not_finite(&self, step: usize, what: &str, value: f64, batch: String) -> Error {
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
        let line = EvalLine {
            step,
            eval_loss: loss,
            eval_accuracy: total.n_correct as f64 / total.n_scored as f64,
            eval_ppl: loss.exp(),
            eval_tokens: total.n_scored,
        };
        self.metrics.append(&Line::Eval(line.clone()))?;
        self.watch.evaluated(&line);
        self.eval = Some(line);
        self.state.evaluated = Some(step);
        Ok(Some(self.state.best.update(step, loss, self.job.settings.threshold)))
    }

    /// Saves a checkpoint of this step unless there is one.
    fn save(&mut self) -> Result<()> {
        let step = self.state.step;
        if self.saved == Some(step) {
            return Ok(());
        }
        self.insist_on_params()?;
        self.state.metrics_bytes = self.metrics.sync()?;
        let (job, state, optimizer) = (&self.job, &self.state, &self.optimizer);
        let path = checkpoint::write(job.output, step, |dir| {
            job.model.save(dir)?;
            tensors::write_params(&dir.join(PARAMS_NAME), job.model.params())?;
            moments::write(&dir.join(OPTIMIZER_NAME), optimizer.as_ref())?;
            state.write(dir)
        })?;
        self.saved = Some(step);
        self.watch.saved(&path);
        if let Some(limit) = self.job.settings.save_total_limit {
            let best = self.state.best.seen.filter(|_| self.job.settings.keep_best);
            checkpoint::prune(self.job.output, limit.max(1), best.map(|seen| seen.step))?;
        }
        self.report();
        Ok(())
    }

    /// An update may overflow where the gradient did not.
    fn insist_on_params(&mut self) -> Result<()> {
        for param in &self.job.model.params().0 {
            if let Some(value) = param.value.iter().find(|value| !value.is_finite()) {
                let (step, value) = (self.state.step, f64::from(*value));
                let what = format!("a value of {} after the update", param.name);
                return Err(self.not_finite(step, &what, value, "all rows so far".to_owned()));
            }
        }
        Ok(())
    }

    /// Puts result, report and the sign of being done into the output directory.
    fn finish(&mut self, end: End) -> Result<()> {
        let best = self.state.best.seen.filter(|_| self.job.settings.keep_best);
        if let Some(seen) = best.filter(|seen| seen.step != self.state.step) {
            let dir = checkpoint::dir(self.job.output, seen.step);
            let path = dir.join(PARAMS_NAME);
            let read = super::manifest::verify(&dir)
                .and_then(|()| tensors::read_params(&path, self.job.model.params_mut()));
            match read {
                Ok(()) => self.watch.remark(&format!("the result is that of step {}", seen.step)),
                Err(error) => {
                    self.watch
                        .warn(&format!("the last weights are the result, not the best: {error}"));
                }
            }
        }
        self.insist_on_params()?;
        let job = &self.job;
        output::publish(job.output, |dir| job.model.save(dir))?;
        self.metrics.sync()?;
        self.report();
        let done = output::Done {
            summary: self.outcome(end).json(),
            settings: self.state.settings.clone(),
        };
        output::write_done(self.job.output, &done)?;
        self.watch.saved(self.job.output);
        Ok(())
    }

    /// Writes the report; a run does not fail for want of one.
    fn report(&mut self) {
        let output = self.job.output;
        let written = metrics::read(output).and_then(|lines| {
            report::write(output, &report::render(&self.job.title, &self.job.shown, &lines))
        });
        if let Err(error) = written {
            self.watch.warn(&format!("no report: {error}"));
        }
    }

    fn outcome(&self, end: End) -> Outcome {
        Outcome {
            end,
            state: self.state.clone(),
            total_steps: self.plan.total_steps,
            eval: self.eval.clone(),
            seconds: self.start.elapsed().as_secs_f64(),
            before: None,
        }
    }
}

#[cfg(test)]
#[path = "trainer_tests.rs"]
mod tests;
