//! A row for reading: every token with whether it is scored.
//!
//! Control characters are escaped, so that a row cannot steer the terminal; bytes that are no whole
//! characters are shown in hexadecimal, `<e2 80>`.

use super::rows::{NOT_SCORED, Row};
use crate::error::Result;
use crate::text::Tokenizer;
use std::fmt::Write;

/// Green and bright green for targets, grey and white for the rest; two of each so that
/// neighbouring tokens can be told apart.
const SCORED: [&str; 2] = ["\x1b[32m", "\x1b[92m"];
const PLAIN: [&str; 2] = ["\x1b[90m", "\x1b[37m"];
const RESET: &str = "\x1b[0m";

/// The row's documents, a heading before each. Targets are green with `colour`, and otherwise
/// between `[` and `]` (those of the text are written `\[` and `\]`). The first token of a document
/// is no target. Without a tokenizer the ids are shown.
///
/// # Errors
/// [`crate::Error::Tokenizer`] for an id beyond the tokenizer's vocabulary.
pub fn show(row: &Row, tokenizer: Option<&Tokenizer>, colour: bool) -> Result<String> {
    let mut out = String::new();
    let mut start = 0;
    for (i, &length) in row.spans.iter().enumerate() {
        let end = (start + length as usize).min(row.ids.len());
        let span = start..end;
        let is_target = |at: usize| at > start && row.labels.get(at) != Some(&NOT_SCORED);
        let n_targets = span.clone().filter(|&at| is_target(at)).count();
        let sources = match row.spans.len() == row.source.len() {
            true => &row.source[i..=i],
            false => &row.source[..],
        };
        let names: Vec<String> = sources.iter().map(u32::to_string).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "document {} of {}: {length} tokens, {n_targets} scored, instance {}",
            i + 1,
            row.spans.len(),
            names.join(", ")
        );
        let mut open = false;
        for at in span {
            let token = match tokenizer {
                Some(tokenizer) => text(&tokenizer.token_bytes(row.ids[at])?, !colour),
                None => format!("{} ", row.ids[at]),
            };
            let target = is_target(at);
            if colour {
                out.push_str(if target { SCORED[at % 2] } else { PLAIN[at % 2] });
                out.push_str(&token);
                out.push_str(RESET);
            } else {
                if target != open {
                    out.push(if target { '[' } else { ']' });
                    open = target;
                }
                out.push_str(&token);
            }
        }
        out.push_str(if open { "]\n" } else { "\n" });
        start = end;
    }
    Ok(out)
}

/// A token's bytes as they may be printed.
fn text(bytes: &[u8], escape_brackets: bool) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        return format!("<{}>", bytes.join(" "));
    };
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '[' | ']' if escape_brackets => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || is_invisible(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Marks of direction and width, and separators of lines: they would change how the rest is shown.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_printed_can_steer_a_terminal() {
        assert_eq!(text(b"a\n\t\r\x1b[2J", true), "a\\n\\t\\r\\u{1b}\\[2J");
        assert_eq!(
            text("\u{9b}\u{202e}\u{2028}é🦙\\".as_bytes(), true),
            "\\u{9b}\\u{202e}\\u{2028}é🦙\\\\"
        );
        assert_eq!(text("[x]".as_bytes(), false), "[x]");
        assert_eq!(text(&"🦙".as_bytes()[..2], true), "<f0 9f>");
    }

    #[test]
    fn targets_are_bracketed_and_documents_parted() {
        let row = Row {
            ids: vec![1, 2, 3, 4, 5, 6],
            labels: vec![1, -100, 3, -100, 5, 6],
            spans: vec![3, 3],
            source: vec![8, 9],
        };
        assert_eq!(
            show(&row, None, false).unwrap(),
            "document 1 of 2: 3 tokens, 1 scored, instance 8\n1 2 [3 ]\n\
             document 2 of 2: 3 tokens, 2 scored, instance 9\n4 [5 6 ]\n"
        );
        let coloured = show(&row, None, true).unwrap();
        assert_eq!(coloured.matches("\x1b[32m").count() + coloured.matches("\x1b[92m").count(), 3);
        assert_eq!(coloured.matches(RESET).count(), 6);
        assert!(!coloured.contains('\u{7}'));
    }
}
