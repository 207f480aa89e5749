//! The `puna` command: hands its arguments to [`puna::cli`] and returns its exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    puna::cli::main()
}
