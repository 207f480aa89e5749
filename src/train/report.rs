//! `report.html`: the curves and settings of a run as one page that needs nothing else. A pure
//! function of the metrics; light or dark as the reader's system is.

use super::metrics::{EvalLine, Line, StepLine};
use super::svg::{Chart, Series, chart, escape, number};
use crate::error::{Error, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Name of the file in the output directory.
pub const REPORT_NAME: &str = "report.html";

/// The smoothed loss is an exponential mean; a curve of n steps gets a window of n / 40 of them,
/// but no shorter than this.
const SHORTEST_WINDOW: f64 = 5.0;

/// Blue and orange are told apart by readers who see few colours; both are legible on either
/// ground.
const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2024;--soft:#667079;--line:#d8dde2;--ground:#fcfcfb;\
--one:#1f6fb4;--faint:#a9c9e6;--two:#c4570c}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ea;--soft:#98a2ab;--line:#343b42;\
--ground:#15181b;--one:#6db1ee;--faint:#2d506f;--two:#f0964f}}
body{margin:2rem auto;max-width:52rem;padding:0 1rem;background:var(--ground);color:var(--ink);\
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.4rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}
p{color:var(--soft);margin-top:0}
figure{margin:1.5rem 0}figcaption{font-weight:600;margin-bottom:.3rem}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--soft);font:12px system-ui,sans-serif}
.grid{stroke:var(--line);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1;fill:none}
polyline{fill:none;stroke-width:1.75;stroke-linejoin:round}
polyline.one{stroke:var(--one)}polyline.faint{stroke:var(--faint);stroke-width:1}\
polyline.two{stroke:var(--two)}
circle.one{fill:var(--one)}circle.faint{fill:var(--faint)}circle.two{fill:var(--two)}
.key{font-weight:400;margin-left:.9rem}.key::before{content:\"\";display:inline-block;width:1.1rem;\
height:.2rem;margin-right:.35rem;vertical-align:middle;background:var(--one)}
.key.faint::before{background:var(--faint)}.key.two::before{background:var(--two)}
table{border-collapse:collapse;width:100%}td,th{padding:.25rem .6rem .25rem 0;text-align:left;\
border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
th{font-weight:400;color:var(--soft);width:15rem}
";

/// The page: `title`, what the run was told (name and value), and its metrics.
pub fn render(title: &str, settings: &[(String, String)], lines: &[Line]) -> String {
    let mut steps: Vec<&StepLine> = vec![];
    let mut evals: Vec<&EvalLine> = vec![];
    for line in lines {
        match line {
            Line::Step(step) => steps.push(step),
            Line::Eval(eval) => evals.push(eval),
        }
    }
    let title = escape(title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n<p>{}</p>\n",
        escape(&headline(&steps, &evals))
    );
    for one in charts(&steps, &evals) {
        page += &chart(&one);
    }
    page += &table("Result", &results(&steps, &evals));
    page += &table("Settings", settings);
    page + "</body>\n</html>\n"
}

/// Puts a page into `dir`, whole or not at all. It is not synced: it can be made again.
///
/// # Errors
/// What the system refuses.
pub fn write(dir: &Path, page: &str) -> Result<()> {
    let path = dir.join(REPORT_NAME);
    let temporary = dir.join(format!(".{REPORT_NAME}.{}.tmp", std::process::id()));
    let written = fs::write(&temporary, page).and_then(|()| fs::rename(&temporary, &path));
    written.map_err(|source| {
        // The first error is the one to report; the temporary file may not even exist.
        let _ = fs::remove_file(&temporary);
        Error::io(&path, source)
    })
}

fn headline(steps: &[&StepLine], evals: &[&EvalLine]) -> String {
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

fn charts(steps: &[&StepLine], evals: &[&EvalLine]) -> Vec<Chart> {
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
        },
        Chart {
            title: format!("Evaluation: {}", accuracy_name(scores_tokens)),
            y_label: "%",
            series: vec![marked("accuracy", "two", of_eval(|line| 100.0 * line.eval_accuracy))],
        },
        Chart {
            title: "Evaluation: perplexity".into(),
            y_label: "perplexity",
            series: vec![marked("perplexity", "two", ppl)],
        },
        Chart {
            title: "Learning rate".into(),
            y_label: "rate",
            series: vec![line("rate of the update", "one", of_step(|line| line.lr))],
        },
        Chart {
            title: "Gradient norm".into(),
            y_label: "L2 norm",
            series: vec![line("before clipping", "one", of_step(|line| line.grad_norm))],
        },
        Chart {
            title: "Speed".into(),
            y_label: "tokens per second",
            series: vec![line("each step", "one", of_step(|line| line.tok_per_s))],
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
        Chart { title: name.replace('_', " "), y_label: "mean", series }
    };
    names.map(chart).collect()
}

/// What is right or wrong about a unit.
pub fn accuracy_name(scores_tokens: bool) -> &'static str {
    if scores_tokens { "next-token accuracy" } else { "accuracy" }
}

/// Exponential mean, begun without bias: the weights of what came so far are made to sum to one.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
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

fn results(steps: &[&StepLine], evals: &[&EvalLine]) -> Vec<(String, String)> {
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

/// To four places, for people.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn table(title: &str, rows: &[(String, String)]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut out = format!("<h2>{}</h2>\n<table>\n", escape(title));
    for (name, value) in rows {
        let _ = writeln!(out, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
    }
    out + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::trainee::Measures;

    fn step(step: usize, loss: f64) -> Line {
        Line::Step(StepLine {
            step,
            epoch: step as f64 / 10.0,
            loss,
            lr: 5e-5 / step as f64,
            grad_norm: 1.0 + step as f64,
            tokens: 10,
            tok_per_s: 100.0,
            peak_bytes: Some(5 << 20),
            measures: Measures::new(),
        })
    }

    fn eval(step: usize, loss: f64) -> Line {
        Line::Eval(EvalLine {
            step,
            eval_loss: loss,
            eval_accuracy: 0.25,
            eval_ppl: Some(loss.exp()),
            eval_tokens: 9,
            measures: Measures::new(),
        })
    }

    /// Every tag is closed in order: what a strict reader of XML insists on.
    fn assert_well_formed(page: &str) {
        let body = page.strip_prefix("<!DOCTYPE html>\n").expect("the document type comes first");
        let (mut open, mut rest) = (Vec::<&str>::new(), body);
        while let Some(start) = rest.find('<') {
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                let name = tag.split_whitespace().next().expect("a tag has a name");
                open.push(name);
                assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            }
        }
        assert!(open.is_empty(), "left open: {open:?}");
    }

    #[test]
    fn a_page_is_well_formed_and_needs_nothing_else() {
        let lines: Vec<Line> = (1..=40)
            .flat_map(|i| {
                let eval = (i % 10 == 0).then(|| eval(i, 3.0 - i as f64 / 40.0));
                std::iter::once(step(i, 4.0 / i as f64)).chain(eval)
            })
            .collect();
        let settings = [("learning_rate".to_owned(), "5e-5".to_owned())];
        let page = render("run", &settings, &lines);
        assert_well_formed(&page);
        for part in ["Loss", "Learning rate", "Gradient norm", "Evaluation", "prefers-color-scheme"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(page.contains("<td>5e-5</td>") && page.contains("evaluation loss 2.75 to 2"));
        for part in ["http", "<script", "src=", "url("] {
            assert!(!page.contains(part), "{part}");
        }
        assert_eq!(page.matches("<figure>").count(), 6);
    }

    #[test]
    fn text_cannot_break_out() {
        let settings = [("a<b>\"'&".to_owned(), "</td><script>alert(1)</script>".to_owned())];
        let page = render("<i>&\"x\"</i>", &settings, &[step(1, 1.0)]);
        assert_well_formed(&page);
        assert!(!page.contains("<script") && !page.contains("<i>"));
        assert!(page.contains("&lt;i&gt;&amp;&quot;x&quot;&lt;/i&gt;"));
    }

    #[test]
    fn runs_of_any_length_have_a_page() {
        for lines in [vec![], vec![step(1, 2.0)], vec![eval(0, 2.0)]] {
            assert_well_formed(&render("r", &[], &lines));
        }
        assert!(render("r", &[], &[]).contains("No step was taken."));
        // No evaluation, no chart of it.
        assert_eq!(render("r", &[], &[step(1, 2.0)]).matches("<figure>").count(), 4);
    }

    #[test]
    fn smoothing_is_a_mean_of_what_came() {
        assert_eq!(smoothed(&[(1.0, 3.0), (2.0, 3.0)]), [(1.0, 3.0), (2.0, 3.0)]);
        let noisy: Vec<_> = (0..100).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let last = smoothed(&noisy)[99].1;
        assert!((0.3..0.7).contains(&last), "{last}");
    }
}
