//! What the page shows of a run that learns from its own answers: curves over its iterations.

use super::rounded;
use crate::train::metrics::IterationLine;
use crate::train::svg::{Chart, Series, number};
use std::collections::BTreeSet;

/// The points of longer curves are not marked.
const MOST_MARKED: usize = 100;

/// What became of the reward, in a line; none where there was no iteration.
pub(super) fn headline(lines: &[&IterationLine]) -> Option<String> {
    let (first, last) = (lines.first()?, lines.last()?);
    let (from, to) = (number(rounded(first.reward_mean)), number(rounded(last.reward_mean)));
    Some(format!("{} iterations, {} steps; reward {from} to {to}", last.iteration, last.step))
}

/// The curves over iterations; those of what the run has not are empty.
pub(super) fn charts(lines: &[&IterationLine]) -> Vec<Chart> {
    let curve = |name, class, value: fn(&IterationLine) -> Option<f64>| {
        let points = lines.iter().filter_map(|l| Some((l.iteration as f64, value(l)?))).collect();
        Series { name, class, marked: lines.len() <= MOST_MARKED, points }
    };
    let reward = vec![
        curve("all", "one", |line| Some(line.reward_mean)),
        curve("first", "three", |line| Some(line.reward_first)),
        curve("best", "two", |line| Some(line.reward_best)),
        curve("selected", "four", |line| line.reward_selected),
    ];
    let diversity = vec![
        curve("distinct-1", "one", |line| line.distinct_1),
        curve("distinct-2", "two", |line| line.distinct_2),
        curve("msttr-100", "three", |line| line.msttr_100),
    ];
    let length = vec![curve("mean of an answer", "one", |line| Some(line.length))];
    let perplexity = vec![curve("perplexity", "two", |line| line.ppl)];
    let time = vec![
        curve("sampling", "one", |line| Some(line.sample_s)),
        curve("scoring", "three", |line| Some(line.score_s)),
        curve("learning", "two", |line| Some(line.train_s)),
    ];
    let mut charts = vec![
        over_iterations("Reward", "mean reward", reward),
        over_iterations("Diversity", "share", diversity),
        over_iterations("Length", "tokens", length),
        over_iterations("Perplexity", "perplexity", perplexity),
    ];
    charts.extend(measures(lines));
    charts.push(over_iterations("Time", "seconds", time));
    charts
}

/// What else was measured, a chart each.
fn measures(lines: &[&IterationLine]) -> Vec<Chart> {
    let names: BTreeSet<&String> = lines.iter().flat_map(|line| line.measures.keys()).collect();
    let chart = |name: &String| {
        let at = |l: &&IterationLine| Some((l.iteration as f64, *l.measures.get(name)?));
        let points = lines.iter().filter_map(at).collect();
        let marked = lines.len() <= MOST_MARKED;
        let series = Series { name: "each iteration", class: "one", marked, points };
        over_iterations(&name.replace('_', " "), "value", vec![series])
    };
    names.into_iter().map(chart).collect()
}

/// A chart whose x counts iterations.
fn over_iterations(title: &str, y_label: &'static str, series: Vec<Series>) -> Chart {
    Chart { title: title.to_owned(), x_label: "iteration", y_label, series }
}

/// Where the run ended and what took its time, for a table.
pub(super) fn results(lines: &[&IterationLine]) -> Vec<(String, String)> {
    let mut rows = vec![];
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
        return rows;
    };
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    let count = |value: fn(&IterationLine) -> usize| lines.iter().map(|l| value(l)).sum::<usize>();
    row("iterations", last.iteration.to_string());
    row("answers", count(|line| line.answers).to_string());
    row("answers learnt from", count(|line| line.kept).to_string());
    row("last reward", number(rounded(last.reward_mean)));
    row("last reward, best of a prompt", number(rounded(last.reward_best)));
    row("reward gain", number(rounded(last.reward_mean - first.reward_mean)));
    let speeds: Vec<f64> = lines.iter().filter_map(|line| line.sample_tok_per_s).collect();
    if !speeds.is_empty() {
        let mean = speeds.iter().sum::<f64>() / speeds.len() as f64;
        row("sampled tokens per second, mean", number(mean.round()));
    }
    let seconds = |value: fn(&IterationLine) -> f64| lines.iter().map(|l| value(l)).sum::<f64>();
    let (sampling, scoring) = (seconds(|line| line.sample_s), seconds(|line| line.score_s));
    let learning = seconds(|line| line.train_s);
    let total = sampling + scoring + learning;
    if total > 0.0 {
        for (name, part) in [("sampling", sampling), ("scoring", scoring), ("learning", learning)] {
            row(&format!("share of time, {name}"), format!("{:.1} %", 100.0 * part / total));
        }
    }
    rows
}
