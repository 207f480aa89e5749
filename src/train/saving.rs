//! What a run puts on the disk, and takes up again: checkpoints, the result, the report.

use super::job::{End, Outcome};
use super::state::{State, check_same};
use super::trainee::Trainee;
use super::trainer::Trainer;
use super::{checkpoint, manifest, metrics, moments, output, report, tensors};
use crate::error::Result;
use crate::train::optimizer::Optimizer;
use std::path::Path;

/// File of the exact values of what is trained, in a checkpoint.
const PARAMS_NAME: &str = "trained.safetensors";
/// File of the optimiser's state, in a checkpoint.
const OPTIMIZER_NAME: &str = "optimizer.safetensors";

/// Writes what a run goes on with into a checkpoint's directory: the model or adapter, everything
/// trained, the optimiser, the state.
///
/// # Errors
/// What the system refuses.
pub fn write_parts<M: Trainee>(
    dir: &Path,
    model: &M,
    optimizer: &dyn Optimizer,
    state: &State,
) -> Result<()> {
    model.save(dir)?;
    tensors::write_params(&dir.join(PARAMS_NAME), model.params())?;
    moments::write(&dir.join(OPTIMIZER_NAME), optimizer)?;
    state.write(dir)
}

/// Takes up what [`write_parts`] wrote, for a run that is told `settings`. What is not as it was is
/// told to `warn`.
///
/// # Errors
/// Files that are broken; a run that was begun with other settings.
pub fn read_parts<M: Trainee>(
    dir: &Path,
    model: &mut M,
    optimizer: &mut dyn Optimizer,
    now: &State,
    warn: &mut dyn FnMut(&str),
) -> Result<State> {
    let state = State::read(dir)?;
    check_same(&state.settings, &now.settings)?;
    if (&state.isa, &state.puna) != (&now.isa, &now.puna) {
        warn(&format!(
            "{} was written by Puna {} on {}, this is {} on {}: the numbers will differ in their \
             last bits",
            dir.display(),
            state.puna,
            state.isa,
            now.puna,
            now.isa
        ));
    }
    tensors::read_params(&dir.join(PARAMS_NAME), model.params_mut())?;
    moments::read(&dir.join(OPTIMIZER_NAME), optimizer)?;
    Ok(state)
}

/// The first trained value that is not finite, with its parameter's name.
///
/// # Errors
/// When a GPU failed.
pub fn broken_param<M: Trainee>(model: &M) -> Result<Option<(String, f64)>> {
    for param in &model.params().0 {
        if let Some(value) = param.value.read()?.iter().find(|value| !value.is_finite()) {
            let what = format!("a value of {} after the update", param.name);
            return Ok(Some((what, f64::from(*value))));
        }
    }
    Ok(None)
}

impl<M: Trainee> Trainer<'_, '_, M> {
    /// The end of the run, where it is done already.
    pub(super) fn already_done(&mut self) -> Result<Option<Outcome>> {
        let Some(done) = output::read_done(self.job.output)? else { return Ok(None) };
        check_same(&done.settings, &self.state.settings)?;
        let outcome = self.outcome(End::AlreadyDone);
        Ok(Some(Outcome { before: Some(done.summary), ..outcome }))
    }

    /// Goes back to the newest checkpoint; without one, to the beginning.
    pub(super) fn resume(&mut self) -> Result<()> {
        let output = self.job.output;
        let Some(step) = checkpoint::newest(output, |text| self.watch.warn(text))? else {
            self.watch.remark("no checkpoint yet: starting from the beginning");
            return Ok(());
        };
        let dir = checkpoint::dir(output, step);
        let optimizer = self.stepper.optimizer.as_mut();
        let warn = &mut |text: &str| self.watch.warn(text);
        let state = read_parts(&dir, self.job.model, optimizer, &self.state, warn)?;
        self.saved = Some(state.step);
        self.state = state;
        self.watch.remark(&format!("going on from {}", dir.display()));
        Ok(())
    }

    /// Whether a step has a checkpoint for its number alone.
    pub(super) fn is_due(&self, step: usize) -> bool {
        let every = self.job.settings.save_steps;
        every > 0 && step > 0 && step.is_multiple_of(every)
    }

    /// Deletes the checkpoint that was kept only as the best until now.
    pub(super) fn drop_former_best(&self, former: Option<usize>) -> Result<()> {
        let output = self.job.output;
        match former.filter(|&step| !self.is_due(step)) {
            Some(step) if checkpoint::dir(output, step).exists() => {
                checkpoint::remove(output, step)
            }
            _ => Ok(()),
        }
    }

    /// Saves a checkpoint of this step unless there is one.
    pub(super) fn save(&mut self) -> Result<()> {
        let step = self.state.step;
        if self.saved == Some(step) {
            return Ok(());
        }
        self.insist_on_params()?;
        self.state.metrics_bytes = self.metrics.sync()?;
        let (job, state, optimizer) = (&self.job, &self.state, &self.stepper.optimizer);
        let path = checkpoint::write(job.output, step, |dir| {
            write_parts(dir, &*job.model, optimizer.as_ref(), state)
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
        match broken_param(&*self.job.model)? {
            Some((what, value)) => {
                let step = self.state.step;
                Err(self.not_finite(step, &what, value, "all rows so far".to_owned()))
            }
            None => Ok(()),
        }
    }

    /// Puts result, report and the sign of being done into the output directory.
    pub(super) fn finish(&mut self, end: End) -> Result<()> {
        let best = self.state.best.seen.filter(|_| self.job.settings.keep_best);
        if let Some(seen) = best.filter(|seen| seen.step != self.state.step) {
            let dir = checkpoint::dir(self.job.output, seen.step);
            let path = dir.join(PARAMS_NAME);
            let read = manifest::verify(&dir)
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
    pub(super) fn report(&mut self) {
        let output = self.job.output;
        let written = metrics::read(output).and_then(|lines| {
            report::write(output, &report::render(&self.job.title, &self.job.shown, &lines))
        });
        if let Err(error) = written {
            self.watch.warn(&format!("no report: {error}"));
        }
    }

    /// What to tell the caller.
    pub(super) fn outcome(&self, end: End) -> Outcome {
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
