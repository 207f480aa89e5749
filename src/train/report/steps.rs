//! What the page shows of steps and evaluations.

use super::rounded;
use crate::train::metrics::{EvalLine, StepLine};
use crate::train::svg::{Chart, Series, number};
use std::fmt::Write;

/// The smoothed loss is an exponential mean; a curve of n steps gets a window of n / 40 of them,
/// but no shorter than this.
const SHORTEST_WINDOW: f64 = 5.0;

/// What became of the loss, in a line.
pub(super) fn headline(steps: &[&StepLine], evals: &[&EvalLine]) -> String {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
        return "No step was taken.".to_owned();
    };
    let mut text = format!(
        "{} steps, {} epochs; loss {} to {}",
        last.step,
        number(last.epoch),
        number(rounded(first.loss)),
        number(rounded(last.loss))
    );
    if let (Some(first), Some(last)) = (evals.first(), evals.last()) {
        let (from, to) = (number(rounded(first.eval_loss)), number(rounded(last.eval_loss)));
        let _ = write!(text, "; evaluation loss {from} to {to}");
    }
    text
}

/// The curves over steps; those of what the run has not are empty.
pub(super) fn charts(steps: &[&StepLine], evals: &[&EvalLine]) -> Vec<Chart> {
    let scores_tokens = evals.iter().all(|line| line.eval_ppl.is_some())
        && steps.iter().all(|line| line.measures.is_empty());
    let of_step = |value: fn(&StepLine) -> f64| -> Vec<(f64, f64)> {
        steps.iter().map(|line| (line.step as f64, value(line))).collect()
    };
    let of_eval = |value: fn(&EvalLine) -> f64| -> Vec<(f64, f64)> {
        evals.iter().map(|line| (line.step as f64, value(line))).collect()
    };
    let line = |name, class, points| Series { name, class, marked: false, points };
    let marked = |name, class, points| Series { name, class, marked: true, points };
    let ppl: Vec<(f64, f64)> =
        evals.iter().filter_map(|line| Some((line.step as f64, line.eval_ppl?))).collect();
    let loss = of_step(|line| line.loss);
    let smooth = smoothed(&loss);
    let mut charts = vec![
        Chart {
            title: "Loss".into(),
            y_label: if scores_tokens { "nats per token" } else { "loss" },
            series: vec![
                line("each step", "faint", loss),
                line("smoothed", "one", smooth),
                marked("evaluation", "two", of_eval(|line| line.eval_loss)),
            ],
            ..Chart::default()
        },
        Chart {
            title: format!("Evaluation: {}", accuracy_name(scores_tokens)),
            y_label: "%",
            series: vec![marked("accuracy", "two", of_eval(|line| 100.0 * line.eval_accuracy))],
            ..Chart::default()
        },
        Chart {
            title: "Evaluation: perplexity".into(),
            y_label: "perplexity",
            series: vec![marked("perplexity", "two", ppl)],
            ..Chart::default()
        },
        Chart {
            title: "Learning rate".into(),
            y_label: "rate",
            series: vec![line("rate of the update", "one", of_step(|line| line.lr))],
            ..Chart::default()
        },
        Chart {
            title: "Gradient norm".into(),
            y_label: "L2 norm",
            series: vec![line("before clipping", "one", of_step(|line| line.grad_norm))],
            ..Chart::default()
        },
        Chart {
            title: "Speed".into(),
            y_label: "tokens per second",
            series: vec![line("each step", "one", of_step(|line| line.tok_per_s))],
            ..Chart::default()
        },
    ];
    charts.splice(3..3, measures(steps, evals));
    charts
}

/// What the model measures beside the loss, a chart each.
fn measures(steps: &[&StepLine], evals: &[&EvalLine]) -> Vec<Chart> {
    let names = steps.first().map(|line| line.measures.keys()).into_iter().flatten();
    let chart = |name: &String| {
        let at = |step: usize, value: Option<&f64>| Some((step as f64, *value?));
        let of_eval = format!("eval_{name}");
        let steps = steps.iter().filter_map(|l| at(l.step, l.measures.get(name))).collect();
        let evals = evals.iter().filter_map(|l| at(l.step, l.measures.get(&of_eval))).collect();
        let series = vec![
            Series { name: "each step", class: "one", marked: false, points: steps },
            Series { name: "evaluation", class: "two", marked: true, points: evals },
        ];
        Chart { title: name.replace('_', " "), y_label: "mean", series, ..Chart::default() }
    };
    names.map(chart).collect()
}

/// What is right or wrong about a unit.
pub fn accuracy_name(scores_tokens: bool) -> &'static str {
    if scores_tokens { "next-token accuracy" } else { "accuracy" }
}

/// Exponential mean, begun without bias: the weights of what came so far are made to sum to one.
pub(super) fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let window = (points.len() as f64 / 40.0).max(SHORTEST_WINDOW);
    let keep = 1.0 - 1.0 / window;
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut next = |&(x, y): &(f64, f64)| {
        sum = keep * sum + y;
        weight = keep * weight + 1.0;
        (x, sum / weight)
    };
    points.iter().map(&mut next).collect()
}

/// Where the run ended, for a table.
pub(super) fn results(steps: &[&StepLine], evals: &[&EvalLine]) -> Vec<(String, String)> {
    let mut rows = vec![];
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    if let Some(last) = steps.last() {
        let tokens: usize = steps.iter().map(|line| line.tokens).sum();
        let mean = steps.iter().map(|line| line.tok_per_s).sum::<f64>() / steps.len() as f64;
        row("steps", last.step.to_string());
        row("scored tokens", tokens.to_string());
        row("last loss", number(rounded(last.loss)));
        row("tokens per second, mean", number(mean.round()));
        if let Some(peak) = steps.iter().filter_map(|line| line.peak_bytes).max() {
            row("peak memory", format!("{} MiB", peak >> 20));
        }
    }
    let best = evals.iter().min_by(|a, b| a.eval_loss.total_cmp(&b.eval_loss));
    if let Some(best) = best {
        row("best evaluation loss", number(rounded(best.eval_loss)));
        row("at step", best.step.to_string());
        if let Some(ppl) = best.eval_ppl {
            row("its perplexity", number(rounded(ppl)));
        }
        let name = accuracy_name(best.eval_ppl.is_some());
        row(&format!("its {name}"), format!("{:.1} %", 100.0 * best.eval_accuracy));
    }
    rows
}
