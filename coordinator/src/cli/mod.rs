//! The command line: one file per verb, one place that prints ([`mod@print`]).
//!
//! Data goes to stdout and words to stderr. Verbs return an [`Exit`] or a [`CliError`]; nothing but
//! [`run`] turns them into an exit code. What the verbs know they ask of the server over its unix
//! socket ([`client`]); they never touch the swarm themselves.

mod args;
mod client;
mod control;
mod deploy;
mod diag;
mod duration;
mod error;
mod fetch;
mod follow;
mod grant;
mod history;
mod install;
mod live;
mod plan;
mod print;
mod probe;
mod release;
mod rollback;
mod serve;
mod shell;
mod source;
mod staging;
mod status;
mod tracker;
mod undeploy;
mod until;
mod upgrade;
mod upload;
mod verify;
mod view;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{ColorChoice, CommandFactory, FromArgMatches};

use args::{Cli, Verb};
use client::Client;
use error::CliError;
use print::Printer;

/// How a verb ended that met no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything that was asked is done.
    Done,
    /// Something failed, halted or was rolled back.
    Failed,
    /// Refused before anything changed.
    Refused,
    /// The server, the engine or the swarm can't be reached.
    Unreachable,
}

impl Exit {
    /// The exit code, as every help text documents it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Refused => 2,
            Exit::Unreachable => 3,
        }
    }
}

/// What every verb needs.
pub(crate) struct Context {
    client: Client,
    printer: Printer,
    json: bool,
    /// Tells the time.
    now: fn() -> jiff::Timestamp,
}

/// Runs the command line `args`, the program's own name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // Help and usage errors are printed before any flag is known.
    let plain = args.iter().any(|arg| arg == "--no-color");
    let color = if plain { ColorChoice::Never } else { ColorChoice::Auto };
    let command = Cli::command().name(own_name(args.first())).color(color);
    let parsed = command.try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(usage) => {
            // A reader that left early does not change what the outcome was.
            let _ = usage.print();
            return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(Exit::Refused.code()));
        }
    };
    let printer = Printer::new(cli.global.no_color);
    let client = Client::new(cli.global.socket);
    let context = Context { client, json: cli.global.json, printer, now: jiff::Timestamp::now };
    let exit = dispatch(&context, cli.verb).unwrap_or_else(|error| {
        context.printer.error(&error);
        error.exit()
    });
    ExitCode::from(exit.code())
}

/// In the image the program is called `coordinator`, on hosts `requeen`.
fn own_name(argv0: Option<&OsString>) -> &'static str {
    let called = argv0.and_then(|path| Path::new(path).file_name());
    if called.is_some_and(|name| name == "coordinator") { "coordinator" } else { "requeen" }
}

fn dispatch(context: &Context, verb: Verb) -> Result<Exit, CliError> {
    match verb {
        Verb::Serve(args) => block_on(serve::run(context, args)),
        Verb::Deploy(args) => block_on(deploy::run(context, args)),
        Verb::Plan(args) => block_on(plan::run(context, args)),
        Verb::Upgrade(args) => block_on(upgrade::run(context, args)),
        Verb::Grant(args) => block_on(grant::run(context, args)),
        Verb::Release(args) => block_on(release::run(context, args)),
        Verb::Status(args) => block_on(status::run(context, args)),
        Verb::History(args) => block_on(history::run(context, args)),
        Verb::Pause => block_on(control::pause(context)),
        Verb::Resume => block_on(control::resume(context)),
        Verb::Abort => block_on(control::abort(context)),
        Verb::TakeOver => block_on(control::take_over(context)),
        Verb::Rollback(args) => block_on(rollback::run(context, args)),
        Verb::Diag(args) => block_on(diag::run(context, args)),
        Verb::Verify(args::Verify {}) => block_on(verify::run(context)),
        Verb::Undeploy(args) => block_on(undeploy::run(context, args)),
        Verb::Install(args) => install::run(context, &args),
        Verb::Probe(args) => block_on(probe::run(context, args)),
        Verb::Completions(args) => shell::completions(context, &args),
        Verb::Man(args) => shell::man(context, &args),
    }
}

fn block_on(verb: impl Future<Output = Result<Exit, CliError>>) -> Result<Exit, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::Runtime { source })?;
    let result = runtime.block_on(verb);
    // A read of stdin that nobody waits for any more must not keep the program alive.
    runtime.shutdown_background();
    result
}
