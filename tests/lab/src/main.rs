//! `cargo lab`: swarms of real engines on this machine, from the command line.

mod cli;
mod commands;
mod test;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing::Level;

fn main() -> ExitCode {
    let level = std::env::var("REQUEEN_LAB_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(Level::INFO);
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    match commands::run(cli::Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
