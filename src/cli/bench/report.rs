//! Results on their way out, one row a test: a Markdown table, CSV, JSON, JSON lines or SQL.
//! Rows are JSON objects that all have the same keys; every format shows the same rows.

use crate::cli::terminal::print_line;
use crate::error::Result;
use clap::ValueEnum;
use serde_json::{Number, Value};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A Markdown table.
    Md,
    /// Comma-separated values with a line of names.
    Csv,
    /// One object.
    Json,
    /// An object a line.
    Jsonl,
    /// Statements that make a table and fill it.
    Sql,
}

/// A column of the Markdown table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    /// Where a row has it: a key, or keys with a slash between.
    key: &'static str,
    digits: usize,
    /// Numbers are shown in units of this.
    unit: f64,
}

/// A column of numbers with some digits, or of text.
pub const fn column(title: &'static str, key: &'static str, digits: usize) -> Column {
    Column { title, key, digits, unit: 1.0 }
}

impl Column {
    /// Shown in units of `unit`.
    pub const fn per(self, unit: f64) -> Column {
        Column { unit, ..self }
    }

    /// Where a row has it.
    pub const fn key(&self) -> &'static str {
        self.key
    }

    fn cell(&self, row: &Value) -> String {
        let Column { key, digits, unit, .. } = *self;
        let number = |key: &str| row.pointer(&format!("/{key}")).and_then(Value::as_f64);
        match (row.pointer(&format!("/{key}")), number(key)) {
            (_, Some(x)) if key == "avg_ts" => {
                let spread = number("stddev_ts").unwrap_or(0.0);
                format!("{x:.digits$} ± {spread:.digits$}")
            }
            (_, Some(x)) => format!("{:.digits$}", x / unit),
            (Some(Value::String(text)), _) => text.clone(),
            _ => String::new(),
        }
    }
}

/// Rows in the making.
pub struct Report {
    format: Format,
    /// The table's name in SQL.
    name: &'static str,
    columns: Vec<Column>,
    /// What formats without a head put before each row.
    common: Vec<(&'static str, Value)>,
    rows: Vec<Value>,
}

impl Report {
    /// Nothing yet.
    pub fn new(format: Format, name: &'static str, columns: Vec<Column>) -> Report {
        Report { format, name, columns, common: vec![], rows: vec![] }
    }

    /// Sets what all rows have in common and, in Markdown, prints `intro` and the table's head.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn begin(&mut self, intro: &str, common: Vec<(&'static str, Value)>) -> Result<()> {
        self.common = common;
        if self.format != Format::Md {
            return Ok(());
        }
        print_line(&format!("{intro}\n\n{}", table_head(&self.columns)))
    }

    /// Takes a row; prints it unless all are printed together.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn row(&mut self, row: Value) -> Result<()> {
        let first = self.rows.is_empty();
        let lines = match self.format {
            Format::Json => vec![],
            Format::Md => vec![table_row(&self.columns, &row)],
            Format::Csv => {
                let (names, cells): (Vec<String>, Vec<String>) =
                    self.flat(&row).into_iter().map(|(name, value)| (name, csv(&value))).unzip();
                let head = first.then(|| names.join(","));
                head.into_iter().chain([cells.join(",")]).collect()
            }
            Format::Jsonl => vec![Value::Object(self.flat(&row).into_iter().collect()).to_string()],
            Format::Sql => {
                let flat = self.flat(&row);
                let head = first.then(|| create_table(self.name, &flat));
                head.into_iter().chain([insert(self.name, &flat)]).collect()
            }
        };
        for line in lines {
            print_line(&line)?;
        }
        self.rows.push(row);
        Ok(())
    }

    /// In Markdown, prints a paragraph behind the table.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn note(&self, text: &str) -> Result<()> {
        if self.format == Format::Md && !text.is_empty() {
            print_line(&format!("\n{text}"))?;
        }
        Ok(())
    }

    /// All rows.
    pub fn into_rows(self) -> Value {
        Value::Array(self.rows)
    }

    /// A row with what is common, without objects: percentiles become columns of their own, lists
    /// become their JSON text.
    fn flat(&self, row: &Value) -> Vec<(String, Value)> {
        let common = self.common.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let mut flat: Vec<(String, Value)> = common.collect();
        for (name, value) in row.as_object().into_iter().flatten() {
            match value {
                _ if name == "token_ms" || name == "step_ms" => {
                    for part in ["p50", "p99", "p999", "max"] {
                        flat.push((format!("{name}_{part}"), value[part].clone()));
                    }
                }
                Value::Array(_) if self.format != Format::Jsonl => {
                    flat.push((name.clone(), value.to_string().into()));
                }
                _ => flat.push((name.clone(), value.clone())),
            }
        }
        flat
    }
}

/// Head of a Markdown table: titles and alignment.
pub fn table_head(columns: &[Column]) -> String {
    let titles: Vec<&str> = columns.iter().map(|column| column.title).collect();
    let sides: Vec<&str> =
        (0..columns.len()).map(|at| if at == 0 { ":--" } else { "--:" }).collect();
    format!("| {} |\n| {} |", titles.join(" | "), sides.join(" | "))
}

/// A row of it.
pub fn table_row(columns: &[Column], row: &Value) -> String {
    let cells: Vec<String> = columns.iter().map(|column| column.cell(row)).collect();
    format!("| {} |", cells.join(" | "))
}

/// A cell as RFC 4180 has it.
fn csv(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

fn create_table(name: &str, row: &[(String, Value)]) -> String {
    let sql_type = |value: &Value| match value {
        Value::String(_) => "TEXT",
        Value::Bool(_) => "INTEGER",
        Value::Number(n) if !n.is_f64() => "INTEGER",
        // What is null here is a number elsewhere.
        _ => "REAL",
    };
    let columns: Vec<String> =
        row.iter().map(|(name, value)| format!("  {name} {}", sql_type(value))).collect();
    format!("CREATE TABLE IF NOT EXISTS {name} (\n{}\n);\n", columns.join(",\n"))
}

fn insert(name: &str, row: &[(String, Value)]) -> String {
    let names: Vec<&str> = row.iter().map(|(name, _)| name.as_str()).collect();
    let values: Vec<String> = row
        .iter()
        .map(|(_, value)| match value {
            Value::Null => "NULL".to_owned(),
            Value::Bool(yes) => u8::from(*yes).to_string(),
            Value::String(text) => format!("'{}'", text.replace('\'', "''")),
            other => other.to_string(),
        })
        .collect();
    format!("INSERT INTO {name} ({}) VALUES ({});", names.join(", "), values.join(", "))
}

/// A number rounded to what a measurement is worth; null for none, or what is no number.
pub fn rounded(value: Option<f64>) -> Value {
    let round = |x: f64| {
        let digits = (5 - x.abs().max(1e-12).log10().floor() as i32).clamp(0, 12);
        let factor = 10f64.powi(digits);
        (x * factor).round() / factor
    };
    value.map(round).and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row() -> Value {
        json!({
            "test": "it's, \"x\"", "threads": 2, "avg_ts": 11.0, "stddev_ts": 1.414,
            "samples_ts": [10.0, 12.0], "token_ms": null, "exact": false, "peak_bytes": 2_500_000,
        })
    }

    fn report(format: Format) -> Report {
        let mut report = Report::new(format, "bench", vec![]);
        report.common = vec![("model", json!("m"))];
        report
    }

    #[test]
    fn cells_of_the_table() {
        let columns = [
            column("test", "test", 0),
            column("tok/s", "avg_ts", 2),
            column("p50", "token_ms/p50", 3),
            column("MB", "peak_bytes", 1).per(1e6),
        ];
        assert_eq!(table_row(&columns, &row()), "| it's, \"x\" | 11.00 ± 1.41 |  | 2.5 |");
        let head = table_head(&columns);
        assert_eq!(head, "| test | tok/s | p50 | MB |\n| :-- | --: | --: | --: |");
        let with = json!({"token_ms": {"p50": 1.25}});
        assert_eq!(columns[2].cell(&with), "1.250");
    }

    #[test]
    fn every_row_is_flat_and_has_the_same_columns() {
        let names = |row: &Value| -> Vec<String> {
            report(Format::Csv).flat(row).into_iter().map(|(name, _)| name).collect()
        };
        let mut tokens = row();
        tokens["token_ms"] = json!({"p50": 1.0, "p99": 2.0, "p999": 3.0, "max": 4.0});
        assert_eq!(names(&row()), names(&tokens));
        assert_eq!(names(&row())[0], "model");
        assert!(names(&row()).contains(&"token_ms_p999".to_owned()));
    }

    #[test]
    fn text_is_quoted_where_it_must_be() {
        assert_eq!(csv(&json!("a,\"b\"")), "\"a,\"\"b\"\"\"");
        assert_eq!(
            (csv(&json!("ab")), csv(&Value::Null), csv(&json!(1.5))),
            ("ab".into(), String::new(), "1.5".into())
        );
        let flat = report(Format::Sql).flat(&row());
        let made = create_table("bench", &flat);
        for part in [
            "model TEXT",
            "threads INTEGER",
            "avg_ts REAL",
            "samples_ts TEXT",
            "token_ms_p50 REAL",
            "exact INTEGER",
        ] {
            assert!(made.contains(part), "{made}");
        }
        let filled = insert("bench", &flat);
        assert!(filled.contains("'it''s, \"x\"'") && filled.contains("NULL"), "{filled}");
        assert!(filled.contains("'[10.0,12.0]'"), "{filled}");
    }

    #[test]
    fn numbers_are_rounded_to_six_digits() {
        assert_eq!(rounded(Some(123.456_789_12)), json!(123.457));
        assert_eq!(rounded(Some(0.001_234_567_89)), json!(0.001_234_57));
        assert_eq!(rounded(Some(0.0)), json!(0.0));
        assert_eq!((rounded(None), rounded(Some(f64::NAN))), (Value::Null, Value::Null));
    }
}
