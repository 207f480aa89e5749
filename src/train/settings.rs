//! What a run is told, beside model and data.

use super::optimizer::OptimArgs;
use super::plan::{Length, Plan};
use super::schedule::{Schedule, warmup_steps};
use super::state::Setting;
use crate::error::{Error, Result};

/// How a run trains, evaluates and saves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// How long.
    pub length: Length,
    /// Name of the optimiser.
    pub optim: String,
    /// Its constants.
    pub optim_args: OptimArgs,
    /// Rate at the schedule's top.
    pub learning_rate: f64,
    /// The curve of the rate.
    pub schedule: Schedule,
    /// Warm-up in steps, else by `warmup_ratio`.
    pub warmup_steps: usize,
    /// Warm-up as a share of all steps, where `warmup_steps` is 0.
    pub warmup_ratio: f64,
    /// Longest gradient; 0: any length.
    pub max_grad_norm: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// Most tokens that run through the model at once; `None`: as suits it.
    pub slice_tokens: Option<usize>,
    /// Evaluates every so many steps; `None`: at the end of each epoch. The end of the run always.
    pub eval_steps: Option<usize>,
    /// Evaluates before the first step too.
    pub eval_on_start: bool,
    /// Ends with the weights of the best evaluation instead of the last ones.
    pub keep_best: bool,
    /// Stops after so many evaluations without a better one.
    pub patience: Option<usize>,
    /// How much lower a loss must be to count as better for `patience`.
    pub threshold: f64,
    /// Saves a checkpoint every so many steps; 0: only when interrupted, and the best.
    pub save_steps: usize,
    /// Most checkpoints to keep.
    pub save_total_limit: Option<usize>,
}

impl Settings {
    /// The steps of a run over `n_rows` rows.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn plan(&self, n_rows: usize) -> Result<Plan> {
        Plan::new(n_rows, self.batch_size, self.accumulation, self.length)
    }

    /// Steps of warm-up in a run of `total` steps.
    pub fn warmup(&self, total: usize) -> usize {
        match self.warmup_steps {
            0 => warmup_steps(self.warmup_ratio, total),
            steps => steps,
        }
    }

    /// Refuses what makes no sense together.
    ///
    /// # Errors
    /// The first fault: name, value, what was wanted.
    pub fn check(&self, has_eval: bool) -> Result<()> {
        let needs_eval = [
            ("load_best_model_at_end", self.keep_best),
            ("early_stopping_patience", self.patience.is_some()),
            ("eval_steps", self.eval_steps.is_some()),
            ("eval_on_start", self.eval_on_start),
        ];
        if let Some((name, _)) = needs_eval.iter().find(|(_, told)| *told && !has_eval) {
            let why = "wanted with something to evaluate on: eval_dataset or \
                       validation_split_percentage";
            return Err(Error::config(*name, "set", why));
        }
        self.schedule.check(self.learning_rate)?;
        let ranges = [
            ("learning_rate", self.learning_rate, 0.0, f64::MAX),
            ("warmup_ratio", self.warmup_ratio, 0.0, 1.0),
            ("max_grad_norm", self.max_grad_norm, 0.0, f64::MAX),
            ("early_stopping_threshold", self.threshold, 0.0, f64::MAX),
        ];
        for (name, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                let wanted = if high == 1.0 { "wanted 0 to 1" } else { "wanted at least 0" };
                return Err(Error::config(name, value, wanted));
            }
        }
        Ok(())
    }

    /// The settings that decide which weights come out of a run over `total` steps.
    pub fn fingerprint(&self, total: usize) -> Vec<Setting> {
        let mut list: Vec<Setting> = vec![];
        let mut add = |name: &str, value: String| list.push((name.to_owned(), value));
        add("batch_size", self.batch_size.to_string());
        add("gradient_accumulation_steps", self.accumulation.to_string());
        add("optim", self.optim.clone());
        add("optimizer_settings", format!("{:?}", self.optim_args));
        add("learning_rate", self.learning_rate.to_string());
        add("lr_scheduler", format!("{:?}", self.schedule));
        add("warmup_steps", self.warmup(total).to_string());
        add("steps", total.to_string());
        add("max_grad_norm", self.max_grad_norm.to_string());
        add("seed", self.seed.to_string());
        add("shuffle", self.shuffle.to_string());
        if self.keep_best || self.patience.is_some() {
            let eval = self.eval_steps.map_or("each epoch".to_owned(), |n| n.to_string());
            add("eval_steps", eval);
            add("eval_on_start", self.eval_on_start.to_string());
            add("load_best_model_at_end", self.keep_best.to_string());
            let patience = self.patience.map_or("none".to_owned(), |n| n.to_string());
            add("early_stopping_patience", patience);
            add("early_stopping_threshold", self.threshold.to_string());
        }
        list
    }
}
