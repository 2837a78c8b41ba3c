//! `completions` and `man`: what packagers and shells want to know of the command line.

use clap::CommandFactory;

use super::args::{self, Cli};
use super::error::CliError;
use super::{Context, Exit};

pub(crate) fn completions(context: &Context, args: &args::Completions) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    // Completions are for hosts, where the program has its own name.
    clap_complete::generate(args.shell, &mut Cli::command(), "requeen", &mut script);
    context.printer.out_bytes(&script)?;
    Ok(Exit::Done)
}

pub(crate) fn man(context: &Context, args: &args::Man) -> Result<Exit, CliError> {
    if !args.dir.is_dir() {
        return Err(CliError::NotAFolder { path: args.dir.clone() });
    }
    clap_mangen::generate_to(Cli::command(), &args.dir)
        .map_err(|source| CliError::Write { path: args.dir.clone(), source })?;
    context.printer.out(format_args!("wrote the man pages to {}", args.dir.display()))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
