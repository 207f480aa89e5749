//! Renders a model's own Jinja template with bounded work: a step limit, an output limit, no
//! loader, no file or network access, and of Python only the string and mapping methods that chat
//! templates use.
//!
//! The surroundings are those of transformers: block newlines and indentation are trimmed,
//! `raise_exception`, `strftime_now`, a `tojson` without HTML escapes, and the `generation` block
//! that marks what the assistant says.

use super::template::Message;
use crate::error::{Error, Result};
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::Formatter;
use std::borrow::Cow;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// Template instructions that one rendering may run.
const MAX_STEPS: u64 = 5_000_000;

/// Longest rendered conversation, in bytes.
const MAX_OUTPUT_BYTES: usize = 64 << 20;

/// Longest template, in bytes.
pub(super) const MAX_SOURCE_BYTES: usize = 1 << 20;

/// What a rendering is given.
pub(super) struct Vars<'v> {
    pub(super) messages: &'v [Message],
    pub(super) add_generation_prompt: bool,
    pub(super) bos: &'v str,
    pub(super) eos: &'v str,
    /// Written before and after what a `generation` block holds.
    pub(super) marks: (&'v str, &'v str),
}

/// Collects the output up to its limit.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("output limit"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The rendered text.
///
/// # Errors
/// [`Error::Template`] with the line, for a fault in the template, for what it raises itself, and
/// for one that runs or writes without end.
pub(super) fn render(source: &str, vars: &Vars<'_>) -> Result<String> {
    let source = rewrite_generation(source);
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_fuel(Some(MAX_STEPS));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: &str| strftime(format, now_s()));
    env.add_filter("tojson", to_json);
    env.add_template("chat", &source).map_err(|e| fault(&e))?;
    let template = env.get_template("chat").map_err(|e| fault(&e))?;
    let values = context! {
        messages => vars.messages,
        tools => Value::from(()),
        documents => Value::from(()),
        add_generation_prompt => vars.add_generation_prompt,
        bos_token => vars.bos,
        eos_token => vars.eos,
        puna_generation_begin => vars.marks.0,
        puna_generation_end => vars.marks.1,
    };
    let mut out = Bounded(Vec::new());
    template.render_captured_to(values, &mut out).map_err(|e| fault(&e))?;
    String::from_utf8(out.0).map_err(|_| Error::Template("the output is not UTF-8".into()))
}

/// One line that says what went wrong and where in the template.
fn fault(error: &minijinja::Error) -> Error {
    let place = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::OutOfFuel => format!("runs for more than {MAX_STEPS} steps"),
        ErrorKind::WriteFailure => format!("writes more than {MAX_OUTPUT_BYTES} bytes"),
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    Error::Template(format!("{place}{what}"))
}

/// Whether the template says itself what the assistant's part is.
pub(super) fn marks_generation(source: &str) -> bool {
    matches!(rewrite_generation(source), Cow::Owned(_))
}

/// Replaces transformers' `generation` blocks by what minijinja knows: the block's ends become
/// output of two variables, inside of tags that keep the trimming of the original ones.
fn rewrite_generation(source: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut done = 0;
    let mut at = 0;
    while let Some(open) = source[at..].find("{%").map(|i| at + i) {
        let Some(close) = source[open..].find("%}").map(|i| open + i) else { break };
        at = close + 2;
        let inner = &source[open + 2..close];
        let left = inner.strip_prefix(['-', '+']).map_or("", |_| &inner[..1]);
        let inner = &inner[left.len()..];
        let right = inner.strip_suffix(['-', '+']).map_or("", |_| &inner[inner.len() - 1..]);
        let (first, mark, last) = match inner[..inner.len() - right.len()].trim() {
            "generation" => ("if true", "puna_generation_begin", "if true"),
            "endgeneration" => ("endif", "puna_generation_end", "endif"),
            _ => continue,
        };
        out.push_str(&source[done..open]);
        out.push_str(&format!("{{%{left} {first} %}}{{{{ {mark} }}}}{{% {last} {right}%}}"));
        done = at;
    }
    if done == 0 {
        return Cow::Borrowed(source);
    }
    out.push_str(&source[done..]);
    Cow::Owned(out)
}

/// JSON with Python's separators (`", "` and `": "`).
struct PythonStyle;

impl Formatter for PythonStyle {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// `tojson` as transformers has it: no HTML escapes, Unicode as it is, `indent` if given.
fn to_json(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let failed = |e: String| minijinja::Error::new(ErrorKind::InvalidOperation, e);
    let indent: Option<usize> = options.get("indent")?;
    // Python's other options (ensure_ascii, separators, sort_keys) are accepted; these are its
    // values as transformers passes them.
    for name in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = options.get(name)?;
    }
    options.assert_all_used()?;
    let mut out = Vec::new();
    match indent {
        Some(n) if n > 64 => return Err(failed(format!("tojson indent {n}, at most 64"))),
        Some(n) => {
            let spaces = " ".repeat(n);
            let style = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut out, style))
                .map_err(|e| failed(e.to_string()))?;
        }
        None => value
            .serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonStyle))
            .map_err(|e| failed(e.to_string()))?,
    }
    String::from_utf8(out).map(Value::from_safe_string).map_err(|e| failed(e.to_string()))
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

/// The directives of `strftime` that chat templates use, for a time in UTC.
fn strftime(format: &str, unix_s: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let days = unix_s / 86_400;
    let second = unix_s % 86_400;
    let (mut year, mut day_of_year) = (1970u64, days);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    while day_of_year >= 365 + u64::from(leap(year)) {
        day_of_year -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let (mut month, mut day) = (0, day_of_year);
    while month < 11 && day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let weekday = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{:02}", month + 1)),
            Some('d') => out.push_str(&format!("{:02}", day + 1)),
            Some('e') => out.push_str(&format!("{:2}", day + 1)),
            Some('j') => out.push_str(&format!("{:03}", day_of_year + 1)),
            Some('B') => out.push_str(MONTHS[month]),
            Some('b' | 'h') => out.push_str(&MONTHS[month][..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&format!("{:02}", second / 3600)),
            Some('M') => out.push_str(&format!("{:02}", second / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", second % 60)),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        // 2024-02-29 13:05:09 UTC, a Thursday.
        let t = 1_709_211_909;
        assert_eq!(
            strftime("%d %b %Y|%A %a|%H:%M:%S|%j %y %B %m %%", t),
            "29 Feb 2024|Thursday Thu|13:05:09|060 24 February 02 %"
        );
        assert_eq!(strftime("%Y-%m-%d %A", 0), "1970-01-01 Thursday");
    }

    #[test]
    fn generation_tags_keep_their_trimming() {
        let marks = ("<", ">");
        let vars = Vars { messages: &[], add_generation_prompt: false, bos: "B", eos: "E", marks };
        for (source, want) in [
            ("a {% generation %}b{% endgeneration %} c", "a <b> c"),
            ("a {%- generation -%} b {%- endgeneration -%} c", "a<b>c"),
            ("a\n  {% generation %}\nb\n  {% endgeneration %}\nc", "a\n<b\n>c"),
        ] {
            assert_eq!(render(source, &vars).unwrap(), want, "{source:?}");
        }
        assert!(!marks_generation("{% if generation %}{% endif %}"));
    }
}
