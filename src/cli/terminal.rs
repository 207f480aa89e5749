//! What goes where: results to stdout, everything else to stderr, bars only on a terminal.

use super::failure::STDOUT;
use crate::error::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};

/// Warnings and remarks on stderr, as loud as the user wants.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// No remarks, no bars; errors only.
    pub quiet: bool,
    /// Remarks of detail too.
    pub verbose: bool,
}

impl Log {
    /// Something that the user should know.
    pub fn warn(&self, message: impl AsRef<str>) {
        if !self.quiet {
            self.always(format!("warning: {}", message.as_ref()));
        }
    }

    /// An answer to what the user did.
    pub fn remark(&self, message: impl AsRef<str>) {
        if !self.quiet {
            self.always(message);
        }
    }

    /// The sign that a line is waited for.
    pub fn prompt(&self) {
        let mut err = std::io::stderr();
        let _ = write!(err, "> ").and_then(|()| err.flush());
    }

    /// Detail, shown with `-v`.
    pub fn detail(&self, message: impl AsRef<str>) {
        if self.verbose && !self.quiet {
            self.always(message);
        }
    }

    /// What the user asked for by a flag.
    pub fn always(&self, message: impl AsRef<str>) {
        // Where stderr is closed nobody wants to hear it.
        let _ = writeln!(std::io::stderr(), "{}", message.as_ref());
    }

    /// A bar over `total` units called `unit`; invisible unless stderr is a terminal.
    pub fn bar(&self, total: usize, unit: &str) -> ProgressBar {
        let visible = !self.quiet && std::io::stderr().is_terminal();
        let target =
            if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total as u64), target);
        let template = format!("{{wide_bar}} {{pos}}/{{len}} {unit}  {{per_sec}}  {{eta}} to go");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar
    }
}

/// Writes a piece of the result and flushes it, so that a reader sees it at once.
///
/// # Errors
/// What the system refuses, under the name [`STDOUT`].
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::io(STDOUT, e))
}

/// Writes a line of the result.
///
/// # Errors
/// As `print`.
pub fn print_line(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}

/// A number of bytes for people: `1.5 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// A count for people: `1.10 B`, `134.5 M`.
pub fn human_count(count: u64) -> String {
    let value = count as f64;
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => format!("{:.1} K", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", value / 1e6),
        _ => format!("{:.2} B", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(3 << 30), "3.0 GiB");
        assert_eq!(human_count(9_999), "9999");
        assert_eq!(human_count(134_515_008), "134.5 M");
        assert_eq!(human_count(1_100_048_384), "1.10 B");
    }

    #[test]
    fn bars_are_hidden_where_stderr_is_no_terminal() {
        let log = Log { quiet: true, verbose: false };
        assert!(log.bar(3, "x").is_hidden());
    }
}
