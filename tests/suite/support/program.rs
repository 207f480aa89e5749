//! The `puna` program as a user runs it.

use serde_json::Value;
use std::io::Write;
use std::process::{Command, Stdio};

/// What a run left.
pub struct Run {
    /// Exit status; `None` where a signal ended it.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Run {
    /// Insists on status 0.
    pub fn done(self) -> Run {
        assert_eq!(self.status, Some(0), "{}", self.stderr);
        self
    }

    /// The lines of standard output, each a JSON value.
    pub fn json(&self) -> Vec<Value> {
        let value = |line: &str| serde_json::from_str(line).expect("every line is JSON");
        self.stdout.lines().map(value).collect()
    }
}

/// The program, with a machine-independent environment.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_puna"));
    command.args(args).env_remove("PUNA_ISA").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn finish(mut command: Command) -> Run {
    let output = command.output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("the program writes UTF-8");
    Run { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs it with these arguments.
pub fn puna(args: &[&str]) -> Run {
    finish(command(args))
}

/// Runs it with this standard input.
pub fn puna_with_input(args: &[&str], input: &str) -> Run {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(input.as_bytes()).expect("it takes the input");
    std::io::Seek::rewind(&mut file).expect("it goes back");
    let mut command = command(args);
    command.stdin(file);
    finish(command)
}
