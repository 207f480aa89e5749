//! Reports of the experiments in Markdown, from the files that a run leaves in its folder:
//!
//! ```text
//! settings.txt   NAME=value          what it was told
//! paths.txt      NAME=path           what is written as $NAME in commands
//! commands.txt   a command a line    as they were run
//! times.txt      stage TAB seconds   what each took
//! results/       STAGE.json          what each printed
//! ```
//!
//! A result that is not there is shown as `-`.

use crate::read_json;
use puna::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Questions of the domain, with the file of results: those that are chosen, those that are
/// answered in words.
const DOMAIN: [(&str, &str); 7] = [
    ("kind, chosen", "choice-kind"),
    ("word, chosen", "choice-word"),
    ("abstract, chosen", "choice-abstract"),
    ("PubMedQA, chosen", "choice-pubmedqa"),
    ("kind, written", "accuracy-kind"),
    ("abstract, written", "accuracy-abstract"),
    ("PubMedQA, written", "accuracy-pubmedqa"),
];
/// Sets of the instruction experiment with the measure that leader boards show.
const INSTRUCT: [(&str, &str, &str); 5] = [
    ("ARC", "choice-arc", "acc_norm"),
    ("HellaSwag", "choice-hellaswag", "acc_norm"),
    ("MMLU", "choice-mmlu", "value"),
    ("TruthfulQA mc2", "choice-truthfulqa-mc2", "value"),
    ("TruthfulQA mc1", "choice-truthfulqa-mc1", "value"),
];
/// Of these the first four are in the mean, as in the paper's table 4.
const IN_MEAN: usize = 4;
/// Models of the experiment with RAFT.
const MODELS: [(&str, &str); 4] =
    [("base", "base"), ("SFT", "sft"), ("PPO", "ppo"), ("RAFT", "raft")];
/// Measures of diversity with the number of digits.
const DIVERSITY: [(&str, usize); 6] = [
    ("msttr_100", 3),
    ("distinct_1", 3),
    ("distinct_2", 3),
    ("unique_1", 0),
    ("unique_2", 0),
    ("length", 1),
];

/// What a run left.
struct Run<'a> {
    dir: &'a Path,
}

impl Run<'_> {
    /// A file's text; nothing of one that is not there.
    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    /// What a stage printed; null where it did not run.
    fn result(&self, stage: &str) -> Value {
        read_json(&self.dir.join("results").join(format!("{stage}.json"))).unwrap_or(Value::Null)
    }

    /// The lines of a file of JSON lines.
    fn lines(&self, name: &str) -> Vec<Value> {
        self.text(name).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// A number that a stage printed.
    fn number(&self, stage: &str, key: &str) -> Option<f64> {
        self.result(stage)[key].as_f64()
    }

    /// The value of a setting.
    fn setting(&self, name: &str) -> String {
        let settings = self.text("settings.txt");
        let mut pairs = settings.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(own, _)| *own == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
    }
}

/// The report of an experiment.
///
/// # Errors
/// A name that is none of theirs.
pub fn report(experiment: &str, dir: &Path) -> Result<String> {
    let run = Run { dir };
    let (title, found) = match experiment {
        "domain" => ("Domain tuning", domain(&run)),
        "instruct" => ("Instruction tuning", instruct(&run)),
        "raft" => ("SFT, a reward model, RAFT and PPO", raft(&run)),
        other => {
            return Err(Error::config("experiment", other, "wanted domain, instruct or raft"));
        }
    };
    Ok(format!("# {title}\n\n{}{found}{}", head(&run), tail(&run)))
}

/// Machine, settings and data.
fn head(run: &Run<'_>) -> String {
    let machine = run.result("machine");
    let machine = &machine["machine"];
    let text = |key: &str| machine[key].as_str().unwrap_or("-").to_owned();
    let cores = machine["physical_cores"].as_u64().unwrap_or_default();
    let mut rows = vec![vec![
        "machine".to_owned(),
        format!("{}, {cores} cores, {}", text("cpu"), text("isa")),
    ]];
    for (name, value) in run.text("settings.txt").lines().filter_map(|line| line.split_once('=')) {
        rows.push(vec![name.to_owned(), value.to_owned()]);
    }
    for stage in ["data", "pairs"] {
        for (name, value) in run.result(stage).as_object().into_iter().flatten() {
            let value = match value {
                Value::Number(number) if number.is_f64() => shown(number.as_f64(), 3),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            rows.push(vec![name.clone(), value]);
        }
    }
    format!("## Settings and data\n\n{}\n", table(&["", ""], &rows))
}

/// What each part took, and the commands.
fn tail(run: &Run<'_>) -> String {
    let mut parts: Vec<(String, f64, usize)> = vec![];
    for line in run.text("times.txt").lines() {
        let Some((stage, seconds)) = line.split_once('\t') else { continue };
        let part = stage.split('-').next().unwrap_or(stage);
        let seconds = seconds.parse().unwrap_or(0.0);
        match parts.iter_mut().find(|(own, _, _)| own == part) {
            Some((_, sum, n)) => {
                *sum += seconds;
                *n += 1;
            }
            None => parts.push((part.to_owned(), seconds, 1)),
        }
    }
    let all: f64 = parts.iter().map(|(_, seconds, _)| seconds).sum();
    let runs: usize = parts.iter().map(|(_, _, n)| n).sum();
    parts.push(("all".to_owned(), all, runs));
    let row = |(part, seconds, n): &(String, f64, usize)| {
        vec![part.clone(), n.to_string(), format!("{seconds:.0}")]
    };
    let rows: Vec<Vec<String>> = parts.iter().map(row).collect();
    let times = table(&["part", "commands", "seconds"], &rows);
    format!("## Times\n\n{times}\n## Commands\n\n```sh\n{}```\n", commands(run))
}

/// The commands, each once, with names in place of paths.
fn commands(run: &Run<'_>) -> String {
    let paths = run.text("paths.txt");
    let mut names: Vec<(&str, &str)> = paths
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(_, path)| !path.is_empty())
        .collect();
    // One path may be the beginning of another.
    names.sort_by_key(|(_, path)| std::cmp::Reverse(path.len()));
    let (mut seen, mut out) = (BTreeSet::new(), String::new());
    for line in run.text("commands.txt").lines() {
        let mut line = line.to_owned();
        for (name, path) in &names {
            line = line.replace(path, &format!("${name}"));
        }
        if seen.insert(line.clone()) {
            out += &format!("{line}\n");
        }
    }
    out
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let rule = vec!["---"; head.len()].join("|");
    let mut out = format!("| {} |\n|{rule}|\n", head.join(" | "));
    for row in rows {
        out += &format!("| {} |\n", row.join(" | "));
    }
    out
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

fn percent(value: Option<f64>) -> String {
    shown(value.map(|value| 100.0 * value), 1)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard deviation of a sample.
fn deviation(values: &[f64]) -> Option<f64> {
    let middle = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - middle).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// `mean ± deviation`, the mean alone of one value.
fn spread(values: &[f64], digits: usize) -> String {
    match deviation(values) {
        Some(deviation) => format!("{} ± {deviation:.digits$}", shown(mean(values), digits)),
        None => shown(mean(values), digits),
    }
}

/// The tests of a tuned model against the base, a row each.
fn tests(run: &Run<'_>, stages: &[(&str, &str)]) -> String {
    let mut rows = vec![];
    for (title, stage) in stages {
        let value = run.result(stage);
        let against = &value["against"];
        if !against.is_object() {
            continue;
        }
        let of = |key: &str| percent(against[key].as_f64());
        rows.push(vec![
            (*title).to_owned(),
            value["n"].to_string(),
            of("value"),
            percent(value["value"].as_f64()),
            of("difference"),
            format!("{} to {}", of("low"), of("high")),
            shown(against["p_value"].as_f64(), 4),
        ]);
    }
    let head = ["%", "questions", "base", "tuned", "difference", "95 % interval", "p"];
    table(&head, &rows)
}

fn domain(run: &Run<'_>) -> String {
    let there: Vec<(&str, &str)> =
        DOMAIN.into_iter().filter(|(_, stage)| run.result(stage).is_object()).collect();
    let base: Vec<f64> = there
        .iter()
        .filter_map(|(_, stage)| run.result(stage)["against"]["value"].as_f64())
        .collect();
    let tuned: Vec<f64> =
        there.iter().filter_map(|(_, stage)| run.number(stage, "value")).collect();
    let row = |name: &str, values: &[f64]| -> Vec<String> {
        let cells = values.iter().map(|&value| percent(Some(value)));
        std::iter::once(name.to_owned()).chain(cells).chain([percent(mean(values))]).collect()
    };
    let rows = [row("base", &base), row("tuned", &tuned)];
    let mut names = vec!["accuracy, %"];
    names.extend(there.iter().map(|(title, _)| *title));
    names.push("mean");
    let mut out = String::from("## Questions of the domain, on words held out\n\n");
    out += "In the layout of the paper's tables 2 and 3. Chosen: the likeliest answer, as \
            lm-evaluation-harness scores it. Written: the model's own words, with LMFlow's \
            extraction of the answer.\n\n";
    out += &format!("{}\n{}\n", table(&names, &rows), tests(run, &there));
    out += "## Other questions\n\nOf the same form, about nothing medical.\n\n";
    out += &format!("{}\n", tests(run, &[("word, chosen", "choice-other")]));
    out += "## Perplexity\n\nDefinitions of the words held out, and a text of another domain. The \
            difference is that of the means of windows, in nats.\n\n";
    let mut rows = vec![];
    for (title, stage) in [("definitions", "ppl-definitions"), ("other text", "ppl-out")] {
        let value = run.result(stage);
        let against = &value["against"];
        let of = |key: &str, digits| shown(against[key].as_f64(), digits);
        rows.push(vec![
            title.to_owned(),
            value["tokens"].to_string(),
            of("value", 3),
            shown(value["value"].as_f64(), 3),
            of("ppl_token", 3),
            shown(value["ppl_token"].as_f64(), 3),
            of("difference", 4),
            format!("{} to {}", of("low", 4), of("high", 4)),
        ]);
    }
    let head = [
        "text",
        "tokens",
        "base",
        "tuned",
        "base, by token",
        "tuned, by token",
        "difference",
        "95 % interval",
    ];
    out + &format!("{}\n", table(&head, &rows))
}

fn instruct(run: &Run<'_>) -> String {
    let mut rows = vec![];
    for (name, end) in [("base", "base"), ("tuned", "tuned")] {
        let mut row = vec![name.to_owned()];
        let mut values = vec![];
        for (_, stage, key) in INSTRUCT {
            values.push(run.number(&format!("{stage}-{end}"), key));
        }
        row.extend(values.iter().map(|value| percent(*value)));
        let known: Vec<f64> = values[..IN_MEAN].iter().copied().flatten().collect();
        row.push(percent(mean(&known)));
        rows.push(row);
    }
    let mut names = vec!["%"];
    names.extend(INSTRUCT.iter().map(|(title, _, _)| *title));
    names.push("mean");
    let stages: Vec<(&str, String)> =
        INSTRUCT.iter().map(|(title, stage, _)| (*title, format!("{stage}-tuned"))).collect();
    let stages: Vec<(&str, &str)> =
        stages.iter().map(|(title, stage)| (*title, stage.as_str())).collect();
    format!(
        "## Multiple choice before and after\n\nIn the layout of the paper's table 4: acc_norm of ARC \
         and HellaSwag, acc of MMLU, mc2 of TruthfulQA; mc1 is not in the mean.\n\n{}\n## Paired \
         tests\n\nOf acc, and of mc2.\n\n{}\n",
        table(&names, &rows),
        tests(run, &stages)
    )
}

fn raft(run: &Run<'_>) -> String {
    let seeds = run.setting("SEEDS");
    let seeds: Vec<&str> = seeds.split_whitespace().collect();
    let mut out = String::from("## The reward model\n\n");
    let pairs = run.result("pairs");
    let rule = |name: &str| percent(pairs[format!("right by \"{name}\"")].as_f64());
    out += &format!(
        "On pairs held out it prefers what really follows to the SFT model's answer in {} % ({} \
         pairs). Without reading, \"the longer one\" is right in {} %, \"the one that ends a sentence\" \
         in {} %. What really follows has a mean reward of {}.\n\n",
        percent(run.number("reward-accuracy", "value")),
        run.result("reward-accuracy")["n"],
        rule("the longer one"),
        rule("the one that ends a sentence"),
        shown(run.number("reward-real", "value"), 3),
    );
    out += &format!(
        "## Table 5\n\nOn prompts held out; mean ± deviation over the seeds {}.\n\n",
        seeds.join(", ")
    );
    out += &format!("{}\n", table_5(run, &seeds));
    out += &differences(run, &seeds);
    out += "## Iterations\n\nMeans over the seeds: of all answers drawn in an iteration, and the \
            perplexity of watched passages after it.\n\n";
    for (title, name) in &MODELS[2..] {
        out += &format!("{title}:\n\n{}\n", iterations(run, name, &seeds));
    }
    out + &format!("## Where the time goes\n\n{}\n{}", parts(run, &seeds), decode(run))
}

/// A row a model. The paper's table 5 has these columns.
fn table_5(run: &Run<'_>, seeds: &[&str]) -> String {
    let of = |name: &str, what: &str, key: &str| -> Vec<f64> {
        seeds.iter().filter_map(|seed| run.number(&format!("{what}-{name}-{seed}"), key)).collect()
    };
    let mut rows = vec![];
    for (title, name) in MODELS {
        // Base and SFT are the same for all seeds.
        let ppl = match run.number(&format!("ppl-{name}"), "value") {
            Some(value) => vec![value],
            None => of(name, "ppl", "value"),
        };
        let mut row =
            vec![title.to_owned(), spread(&of(name, "reward", "value"), 3), spread(&ppl, 3)];
        row.extend(DIVERSITY.iter().map(|(key, n)| spread(&of(name, "diversity", key), *n)));
        rows.push(row);
    }
    let real = run.result("diversity-real");
    let reward = shown(run.number("reward-real", "value"), 3);
    let mut row = vec!["(the text itself)".to_owned(), reward, "-".to_owned()];
    row.extend(DIVERSITY.iter().map(|(key, n)| shown(real[*key].as_f64(), *n)));
    rows.push(row);
    let mut names = vec!["model", "reward", "perplexity"];
    names.extend(["msttr-100", "distinct-1", "distinct-2", "unique-1", "unique-2", "length"]);
    table(&names, &rows)
}

/// Rewards less those of SFT with the same seed.
fn differences(run: &Run<'_>, seeds: &[&str]) -> String {
    let mut out = String::from("Reward less that of SFT, seed by seed:\n\n");
    for (title, name) in [MODELS[0], MODELS[2], MODELS[3]] {
        let of = |name: &str, seed: &str| run.number(&format!("reward-{name}-{seed}"), "value");
        let found: Vec<f64> =
            seeds.iter().filter_map(|seed| Some(of(name, seed)? - of("sft", seed)?)).collect();
        let above = found.iter().filter(|value| **value > 0.0).count();
        out +=
            &format!("- {title}: {}, above 0 in {above} of {}\n", spread(&found, 3), found.len());
    }
    out + "\n"
}

/// The lines of the iterations of all seeds' runs.
fn lines_of(run: &Run<'_>, name: &str, seeds: &[&str]) -> Vec<Value> {
    let all = seeds.iter().flat_map(|seed| run.lines(&format!("{name}-{seed}/metrics.jsonl")));
    all.filter(|line| line["iteration"].is_u64()).collect()
}

fn iterations(run: &Run<'_>, name: &str, seeds: &[&str]) -> String {
    let lines = lines_of(run, name, seeds);
    let last = lines.iter().filter_map(|line| line["iteration"].as_u64()).max().unwrap_or(0);
    let keys = [
        ("reward_mean", 3),
        ("reward_best", 3),
        ("reward_selected", 3),
        ("ppl", 3),
        ("distinct_2", 3),
        ("length", 1),
        ("ended", 2),
    ];
    let mut rows = vec![];
    for iteration in 1..=last {
        let own = || lines.iter().filter(move |line| line["iteration"].as_u64() == Some(iteration));
        let mut row = vec![iteration.to_string()];
        for (key, digits) in keys {
            let values: Vec<f64> = own().filter_map(|line| line[key].as_f64()).collect();
            row.push(spread(&values, digits));
        }
        rows.push(row);
    }
    let head = [
        "iteration",
        "reward",
        "of the best",
        "of those learnt",
        "perplexity",
        "distinct-2",
        "tokens",
        "ended",
    ];
    table(&head, &rows)
}

/// Seconds of drawing, scoring and learning, and tokens drawn a second.
fn parts(run: &Run<'_>, seeds: &[&str]) -> String {
    let mut rows = vec![];
    for (title, name) in &MODELS[2..] {
        let lines = lines_of(run, name, seeds);
        let sum = |key: &str| lines.iter().filter_map(|line| line[key].as_f64()).sum::<f64>();
        let seconds = ["sample_s", "score_s", "train_s"].map(sum);
        let all: f64 = seconds.iter().sum();
        let tokens: f64 = lines
            .iter()
            .filter_map(|line| {
                Some(line["sample_tok_per_s"].as_f64()? * line["sample_s"].as_f64()?)
            })
            .sum();
        let mut row = vec![(*title).to_owned(), seeds.len().to_string()];
        row.extend(
            seconds.map(|part| format!("{part:.0} ({:.0} %)", 100.0 * part / all.max(1e-9))),
        );
        row.push(format!("{tokens:.0}"));
        row.push(format!("{:.0}", tokens / seconds[0].max(1e-9)));
        rows.push(row);
    }
    let head = [
        "all seeds",
        "runs",
        "sampling, s",
        "scoring, s",
        "training, s",
        "tokens drawn",
        "tokens a second",
    ];
    table(&head, &rows)
}

/// What `puna bench` says of drawing tokens, one sequence at a time and many.
fn decode(run: &Run<'_>) -> String {
    let mut rows = vec![];
    for line in run.lines("results/bench.json") {
        let text = line["test"].as_str().unwrap_or("-").to_owned();
        rows.push(vec![text, line["batch"].to_string(), shown(line["avg_ts"].as_f64(), 0)]);
    }
    let head = ["puna bench, the same adapter", "sequences", "tokens a second"];
    format!("{}\n", table(&head, &rows))
}
