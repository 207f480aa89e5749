//! Learning from one's own answers: RAFT, PPO, GRPO and DPO in iterations are the same loop with
//! another lesson.
//!
//! ```text
//! for every iteration:
//!     infer    draw answers to the next prompts, as serving does: many at a time, prompts shared
//!     reward   score them
//!     learn    take optimiser steps over the rows that the method makes of them
//!     write the iteration's line; save
//! ```
//!
//! Optimiser state goes on from iteration to iteration; the learning rate's schedule counts
//! iterations. Everything drawn or scored is on the disk at once: a run that was killed draws and
//! scores nothing twice, and goes on to the same bits as one that was not.

mod answers;
mod method;
mod sample;
mod state;

pub use method::{Lesson, Method, Online, OnlineSettings, Round, answer_row, train_set};
pub use sample::{ITERATIONS_NAME, Sample};
pub use state::OnlineOutcome;

use crate::align::rewards::Asked;
use crate::data::order::{Epochs, below};
use crate::data::{Prompt, Row, write_atomically};
use crate::error::{Error, Result};
use crate::eval::diversity::diversity;
use crate::infer::{Context, FinishReason, GenerateOptions, Generation, Prompts, generate_batch};
use crate::rng::Rng;
use crate::train::evaluate::evaluate;
use crate::train::job::End;
use crate::train::metrics::{IterationLine, Line, Metrics, StepLine, peak_bytes};
use crate::train::state::{Cursor, State};
use crate::train::step::{Step, Stepper};
use crate::train::watch::Watch;
use crate::train::{budget, checkpoint};
use sample::Folder;
use state::Place;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Random stream of the lengths of answers.
const LENGTH_STREAM: u64 = 1 << 43;

/// Runs the job. Without `resume` the output directory must not hold another run's checkpoints.
///
/// # Errors
/// Settings that make no sense or differ from those that the run was begun with; what the model, the
/// rewards and the system refuse; [`Error::NotFinite`].
pub fn run<M: Method>(
    job: Online<'_, M>,
    resume: bool,
    watch: &mut dyn Watch,
) -> Result<OnlineOutcome> {
    job.settings.train.check(false)?;
    let OnlineSettings { n_prompts, n_samples, width, .. } = *job.settings;
    OnlineSettings::check_sizes(n_prompts, n_samples, width)?;
    fs::create_dir_all(job.output).map_err(|source| Error::io(job.output, source))?;
    checkpoint::clean(job.output)?;
    let mut run = Run::new(job, watch)?;
    if resume {
        if let Some(outcome) = run.already_done()? {
            return Ok(outcome);
        }
        run.resume()?;
    } else {
        run.begin()?;
    }
    run.run()
}

/// A run in progress.
struct Run<'a, 'w, M: Method> {
    job: Online<'a, M>,
    watch: &'w mut dyn Watch,
    order: Epochs,
    stepper: Stepper,
    metrics: Metrics,
    state: State,
    at: Place,
    /// The checkpoint that is whole on the disk.
    saved: Option<usize>,
    last: Option<IterationLine>,
    start: Instant,
}

/// Seconds of the parts of an iteration, as far as this process did them.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    sample_s: f64,
    score_s: f64,
    train_s: f64,
    tokens: usize,
}

impl<'a, 'w, M: Method> Run<'a, 'w, M> {
    fn run(mut self) -> Result<OnlineOutcome> {
        self.metrics = Metrics::open(self.job.output, self.state.metrics_bytes)?;
        self.watch.begin(self.at.iteration, self.job.settings.iterations);
        if self.at.iteration == 0 && self.at.inside == 0 && !self.answers()? {
            return Ok(self.outcome(End::Interrupted));
        }
        let end = loop {
            if self.at.iteration >= self.job.settings.iterations || self.asked().is_empty() {
                break End::Complete;
            }
            if self.stopped() || !self.iteration()? {
                break End::Interrupted;
            }
        };
        match end {
            End::Interrupted => {
                // Between iterations: what was done of one was saved inside it.
                if self.at.inside == 0 && self.at.iteration > 0 {
                    self.save()?;
                }
                self.report();
            }
            _ => self.finish(end)?,
        }
        Ok(self.outcome(end))
    }

    fn stopped(&self) -> bool {
        self.job.stop.load(Ordering::Relaxed)
    }

    /// Numbers of the iteration's prompts.
    fn asked(&self) -> Vec<usize> {
        let (n, settings) = (self.job.prompts.len(), self.job.settings);
        let first = self.at.iteration * settings.n_prompts;
        let end = first + settings.n_prompts;
        let positions = first..if settings.wrap { end } else { end.min(n) };
        positions.map(|at| self.order.index((at / n) as u64, at % n)).collect()
    }

    /// One iteration; `false` when told to stop meanwhile.
    fn iteration(&mut self) -> Result<bool> {
        let mut clock = Clock::default();
        let all = self.job.prompts;
        let prompts: Vec<&Prompt> = self.asked().into_iter().map(|at| &all[at]).collect();
        let folder = Folder::of(self.job.output, self.at.iteration)?;
        let samples = match folder.scored()? {
            Some(samples) => samples,
            None => {
                let Some(drawn) = self.draw(&folder, &prompts, &mut clock)? else {
                    return Ok(false);
                };
                self.check_samples(&folder.drawn_path(), &prompts, &drawn)?;
                match self.score(&folder, &prompts, drawn, &mut clock)? {
                    Some(samples) => samples,
                    None => return Ok(false),
                }
            }
        };
        self.check_samples(&folder.scored_path(), &prompts, &samples)?;
        let begun = Instant::now();
        let n_samples = self.job.settings.n_samples;
        let iteration = self.at.iteration;
        let round = Round { iteration, prompts: &prompts, samples: &samples, n_samples };
        // Inside its steps the model is no longer the one that the lesson was made with.
        let before = if self.at.inside > 0 { folder.lesson()? } else { None };
        let lesson = match before {
            Some(lesson) => lesson,
            None => {
                let Some(lesson) = self.job.model.lesson(&round, self.job.stop)? else {
                    return Ok(false);
                };
                folder.write_lesson(&lesson)?;
                lesson
            }
        };
        self.job.model.begin(&lesson)?;
        if let Some(set) = &lesson.train_set {
            let path = self.job.output.join(format!("train_set_{iteration}.json"));
            write_atomically(&path, format!("{set:#}\n").as_bytes())?;
        }
        if !self.learn(&lesson.rows, &prompts, &samples)? {
            return Ok(false);
        }
        self.job.model.learnt();
        clock.train_s = begun.elapsed().as_secs_f64();
        self.close(&samples, lesson, clock)
    }

    /// Draws what is not drawn yet.
    fn draw(
        &mut self,
        folder: &Folder,
        prompts: &[&Prompt],
        clock: &mut Clock,
    ) -> Result<Option<Vec<Sample>>> {
        let begun = Instant::now();
        let mut groups = folder.drawn()?;
        let missing: Vec<usize> =
            (0..prompts.len()).filter(|at| !groups.contains_key(at)).collect();
        let Run { job, watch, at, .. } = self;
        let settings = job.settings;
        let first = at.iteration * settings.n_prompts;
        let ids: Vec<&[u32]> = missing.iter().map(|&at| &prompts[at].ids[..]).collect();
        let numbers: Vec<usize> = missing.iter().map(|at| first + at).collect();
        let length = |&number: &usize| match &settings.lengths {
            Some(range) => {
                let seed = settings.generate.sampler.seed;
                let mut rng = Rng::new(seed, LENGTH_STREAM + number as u64);
                range.start + below(&mut rng, range.len().max(1) as u32) as usize
            }
            None => settings.generate.max_new_tokens,
        };
        let lengths: Vec<usize> = numbers.iter().map(length).collect();
        let options = GenerateOptions { n: settings.n_samples, ..settings.generate.clone() };
        let mut file = folder.appending()?;
        watch.stage("answers", prompts.len() * settings.n_samples);
        let mut n_done = groups.len() * settings.n_samples;
        watch.progress(n_done);
        let has_text = job.model.tuned().text().is_some();
        let mut done = |index: usize, generation: Generation| {
            let prompt = missing[index];
            let group: Vec<Sample> = generation
                .sequences
                .into_iter()
                .map(|one| Sample {
                    prompt,
                    ended: one.finish_reason == FinishReason::Stop,
                    text: if has_text { one.text } else { listed(&one.tokens) },
                    ids: one.tokens,
                    ..Sample::default()
                })
                .collect();
            clock.tokens += group.iter().map(|one| one.ids.len()).sum::<usize>();
            n_done += group.len();
            watch.progress(n_done);
            file.add(&group)?;
            groups.insert(prompt, group);
            Ok(())
        };
        let model = job.model.tuned().model();
        let capacity = capacity(&ids, lengths.iter().copied().max().unwrap_or(0));
        let mut context = Context::new(model, capacity, settings.kv)?;
        let prompts =
            Prompts { ids: &ids, width: settings.width, numbers: &numbers, lengths: &lengths };
        let mut ws = model.workspace();
        let end =
            generate_batch(model, &mut ws, &mut context, &prompts, &options, job.stop, &mut done);
        clock.sample_s = begun.elapsed().as_secs_f64();
        match end {
            Ok(()) => Ok(Some(groups.into_values().flatten().collect())),
            Err(Error::Cancelled) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Scores all answers.
    fn score(
        &mut self,
        folder: &Folder,
        prompts: &[&Prompt],
        mut samples: Vec<Sample>,
        clock: &mut Clock,
    ) -> Result<Option<Vec<Sample>>> {
        let begun = Instant::now();
        self.watch.stage("rewards", samples.len());
        let asked: Vec<Asked<'_>> = samples
            .iter()
            .map(|one| Asked { prompt: prompts[one.prompt], answer: &one.text })
            .collect();
        let scores = match self.job.rewards.scores(&asked, self.job.stop) {
            Ok(scores) => scores,
            Err(Error::Cancelled) => return Ok(None),
            Err(other) => return Err(other),
        };
        for (at, sample) in samples.iter_mut().enumerate() {
            sample.reward = scores.total[at];
            sample.parts = scores.parts.iter().map(|(_, values)| values[at]).collect();
        }
        folder.write_scored(&samples, prompts, &self.job.rewards.names())?;
        clock.score_s = begun.elapsed().as_secs_f64();
        Ok(Some(samples))
    }

    /// Refuses files of answers that are not this iteration's.
    fn check_samples(&self, path: &Path, prompts: &[&Prompt], samples: &[Sample]) -> Result<()> {
        let n = self.job.settings.n_samples;
        let vocab_size = self.job.model.tuned().config().vocab_size;
        let fits = |(at, one): (usize, &Sample)| {
            one.prompt == at / n && one.ids.iter().all(|&id| (id as usize) < vocab_size)
        };
        if samples.len() == prompts.len() * n && samples.iter().enumerate().all(fits) {
            return Ok(());
        }
        let what = format!(
            "{} answers, wanted {n} to each of {} prompts, in order; delete the file to draw them \
             again",
            samples.len(),
            prompts.len()
        );
        Err(Error::format(path, what))
    }

    /// Takes the steps of an iteration, from where it stands; `false` when told to stop.
    fn learn(&mut self, rows: &[Row], prompts: &[&Prompt], samples: &[Sample]) -> Result<bool> {
        let (all, iteration) = (self.job.settings, self.at.iteration);
        if rows.is_empty() {
            let text = format!("iteration {}: no answer is learnt from", iteration + 1);
            self.watch.warn(&text);
            return Ok(true);
        }
        let settings = &all.train;
        let plan = settings.plan(rows.len())?;
        // An order of its own for every iteration.
        let seed = settings.seed ^ ((iteration as u64 + 1) << 32);
        let epochs = Epochs::new(rows.len(), seed, settings.shuffle);
        let longest = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let budget = budget(settings.slice_tokens, longest);
        let warmup = settings.warmup(all.iterations);
        let lr = settings.schedule.rate(settings.learning_rate, iteration, warmup, all.iterations);
        self.watch.stage("steps", plan.total_steps);
        while self.at.inside < plan.total_steps {
            if self.stopped() {
                self.save()?;
                return Ok(false);
            }
            let start = Instant::now();
            let inside = self.at.inside;
            let micros = plan.micros(&epochs, inside, |at| Ok(rows[at].clone()))?;
            let step = self.state.step;
            let (seed, max_grad_norm) = (settings.seed, settings.max_grad_norm);
            let how = Step { step, seed, lr, budget, max_grad_norm };
            let (total, norm) = match self.stepper.step(self.job.model, &micros, &how)? {
                Ok(done) => done,
                Err((what, value)) => {
                    let place = |row: &Row| -> String {
                        let sample = row.source.first().map(|&at| &samples[at as usize]);
                        sample.map_or_else(String::new, |one| prompts[one.prompt].place.clone())
                    };
                    let places: Vec<String> = micros.iter().flatten().map(place).collect();
                    return Err(self.not_finite(step + 1, what, value, places.join("; ")));
                }
            };
            self.at.inside += 1;
            let state = &mut self.state;
            state.step += 1;
            state.epoch = iteration as f64 + self.at.inside as f64 / plan.total_steps as f64;
            state.cursor = Cursor { epoch: iteration, row: self.at.inside };
            state.loss_sum += total.loss();
            state.n_scored += total.n_scored as u64;
            state.n_tokens += total.n_tokens as u64;
            let line = StepLine {
                step: state.step,
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
            self.watch.progress(self.at.inside);
            let every = settings.save_steps;
            if every > 0 && self.state.step.is_multiple_of(every) {
                self.save()?;
            }
        }
        Ok(true)
    }

    /// Writes the iteration's line and saves; `false` when told to stop meanwhile.
    fn close(&mut self, samples: &[Sample], lesson: Lesson, clock: Clock) -> Result<bool> {
        let mut line = line(samples, &lesson, self.job.settings.n_samples, clock);
        line.iteration = self.at.iteration + 1;
        line.step = self.state.step;
        let names = self.job.rewards.names();
        for (at, name) in names.iter().enumerate().filter(|_| names.len() > 1) {
            let mean = mean(samples.iter().filter_map(|one| one.parts.get(at).copied()));
            line.measures.insert(format!("reward_{name}"), mean);
        }
        if let Some(rows) = self.job.eval {
            let budget = budget(self.job.settings.train.slice_tokens, rows.longest());
            self.watch.evaluating(rows.n_rows());
            match evaluate(self.job.model.tuned_mut(), rows, budget, self.job.stop)? {
                Some(total) => line.ppl = Some(total.loss().exp()),
                None => {
                    self.save()?;
                    return Ok(false);
                }
            }
        }
        self.metrics.append(&Line::Iteration(line.clone()))?;
        self.watch.iteration(&line);
        self.last = Some(line);
        self.at.iteration += 1;
        self.at.inside = 0;
        self.at.memory = self.job.model.memory();
        let (done, settings) = (self.at.iteration, self.job.settings);
        let (is_last, every) = (done >= settings.iterations, settings.save_iterations.max(1));
        if done.is_multiple_of(every) && !is_last {
            self.save()?;
            // No checkpoint that is kept is inside an iteration as long ago.
            let before = |n: usize| done.saturating_sub(n * every);
            for old in before(4)..before(3) {
                Folder::of(self.job.output, old)?.close()?;
            }
        }
        // Cut short, it is drawn again after the next one.
        self.answers()?;
        self.report();
        Ok(true)
    }
}

/// Positions that prompts with answers of this length need, at least one.
fn capacity(ids: &[&[u32]], length: usize) -> usize {
    let longest = ids.iter().map(|ids| ids.len()).max().unwrap_or(0);
    longest.saturating_add(length).max(1)
}

/// What stands for the text of a model without a tokenizer: its ids.
fn listed(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (n, sum) = values.fold((0usize, 0.0), |(n, sum), value| (n + 1, sum + value));
    sum / n.max(1) as f64
}

/// What an iteration's answers come to.
fn line(samples: &[Sample], lesson: &Lesson, n_samples: usize, clock: Clock) -> IterationLine {
    let groups = || samples.chunks(n_samples);
    let first = groups().filter_map(|group| Some(group.first()?.reward));
    let best =
        groups().map(|group| group.iter().map(|one| one.reward).fold(f64::NEG_INFINITY, f64::max));
    let varied = diversity(samples.iter().map(|one| one.text.as_str()));
    let selected = mean(lesson.chosen.iter().map(|&at| samples[at].reward));
    IterationLine {
        answers: samples.len(),
        kept: lesson.chosen.len(),
        reward_mean: mean(samples.iter().map(|one| one.reward)),
        reward_first: mean(first),
        reward_best: mean(best),
        reward_selected: (!lesson.chosen.is_empty()).then_some(selected),
        length: mean(samples.iter().map(|one| one.ids.len() as f64)),
        ended: mean(samples.iter().map(|one| f64::from(u8::from(one.ended)))),
        ppl: lesson.ppl,
        msttr_100: varied.msttr_100,
        distinct_1: varied.distinct_1,
        distinct_2: varied.distinct_2,
        unique_1: varied.unique_1,
        unique_2: varied.unique_2,
        sample_s: clock.sample_s,
        score_s: clock.score_s,
        train_s: clock.train_s,
        sample_tok_per_s: (clock.tokens > 0).then(|| clock.tokens as f64 / clock.sample_s),
        measures: lesson.measures.clone(),
        ..IterationLine::default()
    }
}

#[cfg(test)]
mod tests;
