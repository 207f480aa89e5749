//! How a command ends when it does not succeed: one line on stderr, a hint, an exit status.

use crate::error::Error;
use std::error::Error as _;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

/// Path under which errors of standard output are reported.
pub const STDOUT: &str = "standard output";

/// The end of a command that did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage, status 2: the message and, where there is one, a hint.
    Usage(String, Option<String>),
    /// The work failed, status 1.
    Failed(Error),
    /// The user interrupted, what was finished is saved: status 130.
    Interrupted,
    /// The reader of our output went away: status 1, silently.
    PipeClosed,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Cancelled => Failure::Interrupted,
            Error::Io { path, source }
                if path == Path::new(STDOUT) && source.kind() == ErrorKind::BrokenPipe =>
            {
                Failure::PipeClosed
            }
            error => Failure::Failed(error),
        }
    }
}

impl Failure {
    /// Wrong usage without a hint.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::Usage(message.into(), None)
    }

    /// The exit status.
    pub const fn status(&self) -> u8 {
        match self {
            Failure::Usage(..) => 2,
            Failure::Failed(_) | Failure::PipeClosed => 1,
            Failure::Interrupted => 130,
        }
    }

    /// What is printed, line by line; nothing where the user knows.
    pub fn lines(&self) -> Vec<String> {
        let (message, hint) = match self {
            Failure::Usage(message, hint) => (message.clone(), hint.clone()),
            Failure::Failed(error) => (chain(error), hint(error).map(str::to_owned)),
            Failure::Interrupted => ("interrupted".to_owned(), None),
            Failure::PipeClosed => return vec![],
        };
        let hint = hint.map(|hint| format!("hint: {hint}"));
        std::iter::once(format!("error: {message}")).chain(hint).collect()
    }

    /// Prints the lines on stderr and gives the exit status.
    pub fn report(&self) -> ExitCode {
        for line in self.lines() {
            // Nothing is left to tell the user with where stderr is closed.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        ExitCode::from(self.status())
    }
}

/// The message with those of its causes that it does not contain already, in one line.
fn chain(error: &Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = inner.source();
    }
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The usual cause or the way out.
fn hint(error: &Error) -> Option<&'static str> {
    match error {
        Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
            Some("check the path; a model is a directory with config.json or a .gguf file")
        }
        Error::Device { .. } => Some("leave --device out, or say --device cpu"),
        Error::Tokenizer(_) => Some("--tokens 1,2,3 or --tokens @FILE.json needs no tokenizer"),
        Error::NotFinite { .. } => Some(
            "a lower --learning-rate or a --max-grad-norm of 1 often helps; --resume goes on from \
             the checkpoint",
        ),
        Error::Template(_) => Some("--conversation-template NAME takes one of the presets instead"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_lines() {
        let io = |path: &str, kind| Error::io(path, std::io::Error::from(kind));
        let missing = Failure::from(io("nowhere", ErrorKind::NotFound));
        assert_eq!(missing.status(), 1);
        let lines = missing.lines();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("error: nowhere: "), "{lines:?}");
        assert!(lines[1].starts_with("hint: check the path"), "{lines:?}");

        let pipe = Failure::from(io(STDOUT, ErrorKind::BrokenPipe));
        assert_eq!((pipe.status(), pipe.lines().len()), (1, 0));
        assert_eq!(Failure::from(Error::Cancelled).status(), 130);
        assert_eq!(Failure::usage("x").status(), 2);
    }

    #[test]
    fn a_message_is_one_line() {
        let error = Error::Template("line one\nline two".into());
        assert_eq!(chain(&error), "chat template: line one line two");
    }
}
