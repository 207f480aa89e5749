//! What `puna train` shows on stderr while it runs: a bar on a terminal, else a line every so many
//! steps.

use super::terminal::{Log, human_bytes};
use crate::train::metrics::{EvalLine, IterationLine, StepLine};
use crate::train::report::accuracy_name;
use crate::train::watch::Watch;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::path::Path;

/// Shows a run.
pub struct Screen {
    log: Log,
    bar: ProgressBar,
    every: usize,
    total: usize,
    /// Whether the bar counts the parts of an iteration, not steps.
    in_iteration: bool,
}

impl Screen {
    /// A line every `every` steps where there is no terminal.
    pub fn new(log: Log, every: usize) -> Screen {
        Screen {
            log,
            bar: ProgressBar::hidden(),
            every: every.max(1),
            total: 0,
            in_iteration: false,
        }
    }

    /// Takes the bar away.
    pub fn close(&self) {
        self.bar.finish_and_clear();
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| self.log.remark(text));
    }
}

/// Speed and memory of a step, for people.
fn pace(line: &StepLine) -> String {
    let memory = line.peak_bytes.map(|bytes| format!("  {}", human_bytes(bytes)));
    format!("{:.0} tok/s{}", line.tok_per_s, memory.unwrap_or_default())
}

impl Watch for Screen {
    fn begin(&mut self, done: usize, total: usize) {
        self.total = total;
        if self.log.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        self.bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
        let template = "{bar:24} {pos}/{len}  {msg}  {eta} to go";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_position(done as u64);
        self.bar.reset_eta();
        self.bar.set_message("first step");
    }

    fn step(&mut self, line: &StepLine) {
        let StepLine { step, loss, lr, .. } = line;
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("loss {loss:.4}  lr {lr:.2e}  {}", pace(line)));
            if !self.in_iteration {
                self.bar.set_position(*step as u64);
            }
        } else if step % self.every == 0 || *step == 1 || *step == self.total {
            let (epoch, norm) = (line.epoch, line.grad_norm);
            let (of, epochs) = match self.in_iteration {
                true => (String::new(), "iteration"),
                false => (format!("/{}", self.total), "epoch"),
            };
            self.log.remark(format!(
                "step {step}{of}  {epochs} {epoch:.2}  loss {loss:.4}  lr {lr:.2e}  grad {norm:.3}  {}",
                pace(line)
            ));
        }
    }

    fn stage(&mut self, what: &str, total: usize) {
        self.in_iteration = true;
        self.bar.set_length(total as u64);
        self.bar.set_position(0);
        self.bar.reset_eta();
        self.bar.set_message(what.to_owned());
    }

    fn progress(&mut self, done: usize) {
        self.bar.set_position(done as u64);
    }

    fn iteration(&mut self, line: &IterationLine) {
        let IterationLine { iteration, reward_mean, reward_best, kept, answers, length, .. } = line;
        let ppl = line.ppl.map_or(String::new(), |ppl| format!("  perplexity {ppl:.3}"));
        let varied = line.distinct_2.map_or(String::new(), |d| format!("  distinct-2 {d:.3}"));
        self.say(&format!(
            "iteration {iteration}/{}: reward {reward_mean:.4}, best answers {reward_best:.4}  \
             learnt {kept} of {answers}  {length:.0} tokens{ppl}{varied}  \
             {:.1} s drawn, {:.1} s scored, {:.1} s learnt",
            self.total, line.sample_s, line.score_s, line.train_s
        ));
    }

    fn evaluating(&mut self, n_rows: usize) {
        self.bar.set_message(format!("evaluating {n_rows} rows"));
        self.bar.tick();
    }

    fn evaluated(&mut self, line: &EvalLine) {
        let ppl = line.eval_ppl.map_or(String::new(), |ppl| format!("perplexity {ppl:.3}, "));
        self.say(&format!(
            "step {}: evaluation loss {:.4}, {ppl}{} {:.1} %",
            line.step,
            line.eval_loss,
            accuracy_name(line.eval_ppl.is_some()),
            100.0 * line.eval_accuracy
        ));
    }

    fn saved(&mut self, dir: &Path) {
        if self.log.verbose {
            self.say(&format!("saved {}", dir.display()));
        }
    }

    fn remark(&mut self, text: &str) {
        self.say(text);
    }

    fn warn(&mut self, text: &str) {
        self.bar.suspend(|| self.log.warn(text));
    }
}
