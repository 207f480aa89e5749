//! `report.html`: the curves and settings of a run as one page that needs nothing else. A pure
//! function of the metrics and of the answers given; light or dark as the reader's system is.

mod answers;
mod iterations;
mod steps;
#[cfg(test)]
mod tests;

pub use answers::{Shown, ShownAnswer};
pub use steps::accuracy_name;

use super::metrics::{EvalLine, IterationLine, Line, StepLine};
use super::svg::{chart, escape};
use crate::error::{Error, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Name of the file in the output directory.
pub const REPORT_NAME: &str = "report.html";

/// Blue, orange, green and purple differ in blueness or lightness for readers who see few colours,
/// and the last two are broken lines; all are legible on either ground.
const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2024;--soft:#667079;--line:#d8dde2;--ground:#fcfcfb;\
--one:#1f6fb4;--faint:#a9c9e6;--two:#c4570c;--three:#007a5e;--four:#6a1f70}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ea;--soft:#98a2ab;--line:#343b42;\
--ground:#15181b;--one:#6db1ee;--faint:#2d506f;--two:#f0964f;--three:#4fc79c;--four:#eec3ee}}
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
polyline.three{stroke:var(--three);stroke-dasharray:7 3}\
polyline.four{stroke:var(--four);stroke-dasharray:2 3}
circle.one{fill:var(--one)}circle.faint{fill:var(--faint)}circle.two{fill:var(--two)}
circle.three{fill:var(--three)}circle.four{fill:var(--four)}
.key{font-weight:400;margin-left:.9rem}.key::before{content:\"\";display:inline-block;width:1.1rem;\
height:.2rem;margin-right:.35rem;vertical-align:middle;background:var(--one)}
.key.faint::before{background:var(--faint)}.key.two::before{background:var(--two)}
.key.three::before{background:repeating-linear-gradient(90deg,var(--three) 0 7px,\
transparent 7px 10px)}
.key.four::before{background:repeating-linear-gradient(90deg,var(--four) 0 2px,\
transparent 2px 5px)}
table{border-collapse:collapse;width:100%}td,th{padding:.25rem .6rem .25rem 0;text-align:left;\
border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
th{font-weight:400;color:var(--soft);width:15rem}
.answers{table-layout:fixed}.answers th{width:auto}.answers td{white-space:pre-wrap}
.reward{color:var(--soft);margin-top:.3rem}
";

/// The page: `title`, what the run was told (name and value), and its metrics.
pub fn render(title: &str, settings: &[(String, String)], lines: &[Line]) -> String {
    render_with(title, settings, lines, &[])
}

/// The page as [`render`] makes it, with answers at its end.
pub fn render_with(
    title: &str,
    settings: &[(String, String)],
    lines: &[Line],
    shown: &[Shown],
) -> String {
    let mut steps: Vec<&StepLine> = vec![];
    let mut evals: Vec<&EvalLine> = vec![];
    let mut iterations: Vec<&IterationLine> = vec![];
    for line in lines {
        match line {
            Line::Step(step) => steps.push(step),
            Line::Eval(eval) => evals.push(eval),
            Line::Iteration(iteration) => iterations.push(iteration),
        }
    }
    let title = escape(title);
    let headline =
        iterations::headline(&iterations).unwrap_or_else(|| steps::headline(&steps, &evals));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n<p>{}</p>\n",
        escape(&headline)
    );
    for one in iterations::charts(&iterations).into_iter().chain(steps::charts(&steps, &evals)) {
        page += &chart(&one);
    }
    let mut results = iterations::results(&iterations);
    results.extend(steps::results(&steps, &evals));
    page += &table("Result", &results);
    page += &table("Settings", settings);
    page += &answers::table(shown);
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
