//! `--compare`: the same tests of two runs, and which of them got slower.

use super::report::{Column, column, rounded, table_head, table_row};
use super::stats::{Ratio, mean};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Percent that a test may lose unless told otherwise.
pub const TOLERANCE_PERCENT: f64 = 3.0;

/// Reads a file that `puna bench -o json` wrote.
///
/// # Errors
/// A file that cannot be read, and any other content.
pub fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    let refuse = |found: String| {
        let wanted = "wanted the one object that `puna bench -o json` writes";
        Err(Error::format(path, format!("{found}; {wanted}")))
    };
    let value: Value = match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(error) => return refuse(format!("not JSON: {error}")),
    };
    let found = match &value {
        Value::Object(_) => "an object",
        Value::Array(_) => "an array",
        _ => "a single value",
    };
    if !value["results"].is_array() || !value["program"].is_string() {
        return refuse(format!("{found} without \"program\" and \"results\""));
    }
    match value["schema"].as_u64() {
        Some(super::SCHEMA) => {}
        _ => {
            return refuse(format!(
                "schema {}, this program reads {}",
                value["schema"],
                super::SCHEMA
            ));
        }
    }
    match series(&value) {
        Ok(_) => Ok(value),
        Err(found) => refuse(found),
    }
}

/// The samples of a test.
#[derive(Clone, Debug, PartialEq)]
struct Series {
    /// Model, type, settings, test, threads.
    name: String,
    samples: Vec<f64>,
}

/// All tests of a run; the fault, where one has no samples.
fn series(run: &Value) -> Result<Vec<Series>, String> {
    let rows = run["results"].as_array().map_or(&[][..], Vec::as_slice);
    rows.iter()
        .enumerate()
        .map(|(index, row)| {
            let samples = row["samples_ts"].as_array().into_iter().flatten();
            let samples: Option<Vec<f64>> =
                samples.map(|x| x.as_f64().filter(|x| x.is_finite() && *x > 0.0)).collect();
            match (row["test"].as_str(), samples) {
                (Some(test), Some(samples)) if !samples.is_empty() => {
                    Ok(Series { name: name_of(run, row, test), samples })
                }
                (None, _) => Err(format!("result {index} without a \"test\"")),
                (Some(test), _) => Err(format!(
                    "result {index} ({test}): samples_ts {}, wanted numbers above 0",
                    row["samples_ts"]
                )),
            }
        })
        .collect()
}

/// What must be equal for two results to be of the same test.
fn name_of(run: &Value, row: &Value, test: &str) -> String {
    let text = |key: &str| row[key].as_str().or(run[key].as_str());
    let mut words: Vec<String> = vec![];
    if let Some(model) = text("model") {
        let model = model.trim_end_matches('/');
        words.push(model.rsplit('/').next().unwrap_or(model).to_owned());
    }
    words.extend(text("type").map(str::to_owned));
    // What is as usual goes without saying.
    words.extend(text("kv_type").filter(|kv| *kv != "f16").map(|kv| format!("{kv} cache")));
    if run["exact"] == true {
        words.push("exact".to_owned());
    }
    words.push(test.to_owned());
    format!("{}, {} threads", words.join(" "), row["threads"])
}

/// What became of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Beyond its interval and the tolerance.
    Slower,
    Faster,
    /// Within either.
    Same,
    /// A single repetition on a side.
    Unsure,
}

impl Verdict {
    fn of(ratio: &Ratio, tolerance: f64) -> Verdict {
        match ratio.interval {
            None => Verdict::Unsure,
            Some((_, high)) if high < 1.0 && ratio.ratio < 1.0 - tolerance => Verdict::Slower,
            Some((low, _)) if low > 1.0 && ratio.ratio > 1.0 + tolerance => Verdict::Faster,
            Some(_) => Verdict::Same,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Verdict::Slower => "slower",
            Verdict::Faster => "faster",
            Verdict::Same => "same",
            Verdict::Unsure => "one repetition tells no spread",
        }
    }
}

/// A test that both runs have.
#[derive(Clone, Debug)]
struct Pair {
    name: String,
    old: f64,
    new: f64,
    ratio: Ratio,
    verdict: Verdict,
}

/// Two runs side by side.
#[derive(Clone, Debug)]
pub struct Comparison {
    tolerance_percent: f64,
    pairs: Vec<Pair>,
    only_old: Vec<String>,
    only_new: Vec<String>,
}

impl Comparison {
    /// Pairs the tests of two runs.
    ///
    /// # Errors
    /// Results without samples.
    pub fn new(old: &Value, new: &Value, tolerance_percent: f64) -> Result<Comparison> {
        let read = |run| {
            series(run).map_err(|what| Error::Data { place: "results to compare".into(), what })
        };
        let (old, mut new) = (read(old)?, read(new)?);
        let (mut pairs, mut only_old) = (vec![], vec![]);
        for Series { name, samples } in old {
            let Some(at) = new.iter().position(|one| one.name == name) else {
                only_old.push(name);
                continue;
            };
            let now = new.remove(at).samples;
            let ratio = Ratio::new(&samples, &now);
            let verdict = Verdict::of(&ratio, tolerance_percent / 100.0);
            pairs.push(Pair { name, old: mean(&samples), new: mean(&now), ratio, verdict });
        }
        let only_new = new.into_iter().map(|one| one.name).collect();
        Ok(Comparison { tolerance_percent, pairs, only_old, only_new })
    }

    /// What makes the two runs hard to compare.
    pub fn warning(&self, old: &Value, new: &Value) -> Option<String> {
        let differs =
            ["cpu", "isa"].into_iter().find(|key| old["machine"][key] != new["machine"][key])?;
        let (was, is) = (&old["machine"][differs], &new["machine"][differs]);
        Some(format!("the older run had another {differs}: {was}, now {is}"))
    }

    fn row(pair: &Pair) -> Value {
        let (low, high) = pair.ratio.interval.unzip();
        json!({
            "test": pair.name,
            "old": rounded(Some(pair.old)),
            "new": rounded(Some(pair.new)),
            "ratio": rounded(Some(pair.ratio.ratio)),
            "low": rounded(low),
            "high": rounded(high),
            "verdict": pair.verdict.name(),
        })
    }

    /// As an object.
    pub fn json(&self) -> Value {
        json!({
            "tolerance_percent": self.tolerance_percent,
            "tests": self.pairs.iter().map(Comparison::row).collect::<Vec<Value>>(),
            "only_old": self.only_old,
            "only_new": self.only_new,
        })
    }

    /// As a table for people.
    pub fn table(&self) -> String {
        const COLUMNS: [Column; 7] = [
            column("test", "test", 0),
            column("old", "old", 2),
            column("new", "new", 2),
            column("new / old", "ratio", 3),
            column("from", "low", 3),
            column("to (95 %)", "high", 3),
            column("verdict", "verdict", 0),
        ];
        let mut lines = vec![String::new(), table_head(&COLUMNS)];
        lines.extend(self.pairs.iter().map(|pair| table_row(&COLUMNS, &Comparison::row(pair))));
        let missing = [("older run", &self.only_old), ("newer run", &self.only_new)];
        for (run, names) in missing.iter().filter(|(_, names)| !names.is_empty()) {
            lines.push(format!("\nOnly in the {run}: {}.", names.join("; ")));
        }
        lines.join("\n")
    }

    /// Whether all is well; `file` is where the older run stands.
    ///
    /// # Errors
    /// A test that got slower, or no test that both runs have.
    pub fn verdict(&self, file: &Path) -> Result<()> {
        let fail = |what: String| Err(Error::Data { place: file.display().to_string(), what });
        if self.pairs.is_empty() {
            let name =
                |names: &[String]| names.first().map_or("no test", String::as_str).to_owned();
            let (old, new) = (name(&self.only_old), name(&self.only_new));
            return fail(format!("no test in common: {old} there, {new} here"));
        }
        let slower: Vec<&Pair> =
            self.pairs.iter().filter(|pair| pair.verdict == Verdict::Slower).collect();
        if slower.is_empty() {
            return Ok(());
        }
        let names: Vec<String> =
            slower.iter().map(|pair| format!("{} ({:.2}x)", pair.name, pair.ratio.ratio)).collect();
        fail(format!(
            "{} of {} tests slower than there by more than {} %: {}",
            slower.len(),
            self.pairs.len(),
            self.tolerance_percent,
            names.join("; ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rows: &[(&str, u64, &[f64])]) -> Value {
        let row = |(test, threads, samples): &(&str, u64, &[f64])| json!({"test": test, "threads": threads, "samples_ts": samples});
        json!({
            "program": "puna 0", "schema": 1, "model": "dir/m.gguf", "type": "Q4_0",
            "kv_type": "f16", "exact": false, "machine": {"cpu": "c", "isa": "i"},
            "results": rows.iter().map(row).collect::<Vec<Value>>(),
        })
    }

    #[test]
    fn verdicts() {
        let old = [100.0, 101.0, 99.0, 100.0];
        // New samples, tolerance in percent, verdict.
        let cases: [(&[f64], f64, &str); 8] = [
            (&[80.0, 81.0, 79.0, 80.0], 3.0, "slower"),
            (&[80.0, 81.0, 79.0, 80.0], 25.0, "same"),
            (&[120.0, 121.0, 119.0, 120.0], 3.0, "faster"),
            (&[99.0, 100.0, 101.0, 100.0], 3.0, "same"),
            (&[98.0, 98.1, 97.9, 98.0], 3.0, "same"),
            (&[98.0, 98.1, 97.9, 98.0], 1.0, "slower"),
            (&[60.0, 140.0, 90.0, 70.0], 3.0, "same"),
            (&[80.0], 3.0, "one repetition tells no spread"),
        ];
        for (new, tolerance, want) in cases {
            let (a, b) = (run(&[("tg8", 2, &old)]), run(&[("tg8", 2, new)]));
            let comparison = Comparison::new(&a, &b, tolerance).unwrap();
            assert_eq!(comparison.json()["tests"][0]["verdict"], want, "{new:?} {tolerance}");
            let failed = comparison.verdict(Path::new("old.json"));
            assert_eq!(failed.is_err(), want == "slower", "{new:?}");
            if let Err(error) = failed {
                let text = error.to_string();
                for part in ["old.json", "1 of 1", "m.gguf Q4_0 tg8, 2 threads", "%"] {
                    assert!(text.contains(part), "{text}");
                }
            }
        }
    }

    #[test]
    fn tests_are_matched_by_all_that_matters() {
        let one: &[f64] = &[1.0, 1.0];
        let old = run(&[("pp8", 1, one), ("pp8", 2, one), ("tg8", 1, one)]);
        let mut new = run(&[("tg8", 1, one), ("pp8", 1, one), ("tg9", 1, one)]);
        new["model"] = json!("elsewhere/m.gguf");
        let comparison = Comparison::new(&old, &new, 3.0).unwrap();
        let json = comparison.json();
        assert_eq!(json["tests"].as_array().unwrap().len(), 2);
        assert_eq!(json["only_old"], json!(["m.gguf Q4_0 pp8, 2 threads"]));
        assert_eq!(json["only_new"], json!(["m.gguf Q4_0 tg9, 1 threads"]));
        let table = comparison.table();
        assert!(table.contains("Only in the older run: m.gguf Q4_0 pp8, 2 threads."), "{table}");
        assert!(comparison.verdict(Path::new("f")).is_ok());
        assert_eq!(comparison.warning(&old, &new), None);
        new["machine"]["isa"] = json!("other");
        assert!(comparison.warning(&old, &new).unwrap().contains("another isa"));

        for (key, value) in
            [("type", json!("Q8_0")), ("kv_type", json!("f32")), ("exact", json!(true))]
        {
            let mut other = run(&[("pp8", 1, one)]);
            other[key] = value;
            let comparison = Comparison::new(&old, &other, 3.0).unwrap();
            let error = comparison.verdict(Path::new("f")).unwrap_err().to_string();
            assert!(error.contains("no test in common"), "{key}: {error}");
        }
    }
}
