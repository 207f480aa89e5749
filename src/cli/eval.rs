//! `puna eval`: which metric, and how several of them show means over instances and compare two
//! models.

use super::args::HELP_OF_GROUP;
use super::eval_accuracy::{self, AccuracyArgs};
use super::eval_choice::{self, ChoiceArgs};
use super::eval_diversity::{self, DiversityArgs};
use super::eval_nll::{self, NllArgs};
use super::eval_ppl::{self, PplArgs};
use super::eval_reward::{self, RewardEvalArgs};
use super::failure::Failure;
use crate::eval::bootstrap::{interval, paired};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

pub use super::eval_nll::TextSource;

/// Flags of `puna eval`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP_OF_GROUP, override_usage = "puna eval METRIC MODEL [flags]")]
#[command(disable_help_subcommand = true)]
#[command(after_help = "Example: puna eval nll smollm2.gguf --text book.txt")]
pub struct EvalArgs {
    /// The metric.
    #[command(subcommand)]
    pub metric: Metric,
}

/// What to measure.
#[derive(Clone, Debug, Subcommand)]
pub enum Metric {
    /// Negative log-likelihood of a text, or of the samples of a set
    Nll(Box<NllArgs>),
    /// Perplexity of the texts of a set, as LMFlow takes its mean
    Ppl(Box<PplArgs>),
    /// Answers to questions, as LMFlow extracts and compares them
    Accuracy(Box<AccuracyArgs>),
    /// Multiple choice, as lm-evaluation-harness scores it
    Choice(Box<ChoiceArgs>),
    /// How varied answers are: distinct and unique words, msttr-100
    Diversity(Box<DiversityArgs>),
    /// Scores of answers, or accuracy on pairs, under a reward model
    Reward(Box<RewardEvalArgs>),
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and what loading and scoring return.
pub fn run(args: &EvalArgs) -> Result<(), Failure> {
    match &args.metric {
        Metric::Nll(args) => eval_nll::run(args),
        Metric::Ppl(args) => eval_ppl::run(args),
        Metric::Accuracy(args) => eval_accuracy::run(args),
        Metric::Choice(args) => eval_choice::run(args),
        Metric::Diversity(args) => eval_diversity::run(args),
        Metric::Reward(args) => eval_reward::run(args),
    }
}

/// Which of two values of an instance is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The higher one.
    Higher,
    /// The lower one.
    Lower,
}

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Puts the 95 % interval of the mean of `values` into `value` as `low` and `high`. Fewer than two
/// values have none.
pub fn put_interval(value: &mut Value, values: &[f64], seed: u64) {
    if let Some(found) = interval(values, seed) {
        value["low"] = json!(found.low);
        value["high"] = json!(found.high);
    }
}

/// The other model's `value`, and the paired test of the first one's instances and its own: the
/// first one's mean less the other's, and how often the first is the better one. Lists of
/// different lengths are not compared.
pub fn against(value: f64, [first, other]: [&[f64]; 2], better: Better, seed: u64) -> Value {
    let mut out = json!({"value": value});
    if let Some(test) = paired(first, other, seed) {
        let (wins, losses) = match better {
            Better::Higher => (test.wins, test.losses),
            Better::Lower => (test.losses, test.wins),
        };
        out["difference"] = json!(test.difference);
        out["low"] = json!(test.interval.low);
        out["high"] = json!(test.interval.high);
        out["p_value"] = json!(test.p_value);
        out["wins"] = json!(wins);
        out["losses"] = json!(losses);
        out["ties"] = json!(test.ties);
    }
    out
}

/// A number of a summary.
pub fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// The interval for people, with a blank before it; empty where there is none.
pub fn range(value: &Value) -> String {
    match (value["low"].as_f64(), value["high"].as_f64()) {
        (Some(low), Some(high)) => format!(" ({low:.4} to {high:.4})"),
        _ => String::new(),
    }
}

/// What [`against`] found, for people, as a line of its own; empty without another model. `unit`
/// is that of the difference.
pub fn shown_against(against: &Value, unit: &str) -> String {
    if !against.is_object() {
        return String::new();
    }
    let mut out = format!("\nthe other {:.4}", number(&against["value"]));
    if let Some(difference) = against["difference"].as_f64() {
        let p = number(&against["p_value"]);
        out += &format!(": difference {difference:.4}{}{unit}, p = {p:.4}", range(against));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wins_depends_on_what_is_better() {
        let (first, other) = ([1.0, 2.0, 3.0, 5.0], [1.0, 1.0, 1.0, 6.0]);
        let of = |better| against(7.0, [&first, &other], better, 1);
        let (higher, lower) = (of(Better::Higher), of(Better::Lower));
        assert_eq!((&higher["wins"], &higher["losses"]), (&json!(2), &json!(1)));
        assert_eq!((&lower["wins"], &lower["losses"]), (&json!(1), &json!(2)));
        assert_eq!((&lower["ties"], &lower["difference"]), (&json!(1), &json!(0.5)));
        let text = shown_against(&lower, " nats");
        assert!(text.starts_with("\nthe other 7.0000: difference 0.5000 ("), "{text}");
        assert!(text.contains(") nats, p = "), "{text}");
    }

    #[test]
    fn what_cannot_be_compared_has_only_its_value() {
        let found = against(2.0, [&[1.0, 2.0], &[]], Better::Higher, 1);
        assert_eq!(found, json!({"value": 2.0}));
        assert_eq!(shown_against(&found, ""), "\nthe other 2.0000");
        assert_eq!(shown_against(&Value::Null, ""), "");
        let mut one = json!({"value": 3.0});
        put_interval(&mut one, &[3.0], 1);
        assert_eq!((range(&one), one), (String::new(), json!({"value": 3.0})));
        assert_eq!((mean(&[]), mean(&[1.0, 2.0])), (0.0, 1.5));
    }
}
