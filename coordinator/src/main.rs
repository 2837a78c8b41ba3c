//! The coordinator's program: server and command line in one static binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    coordinator::cli::run(std::env::args_os())
}
