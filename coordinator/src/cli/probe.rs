//! `probe`: the connectivity test; its report comes from the server, which knows the rollout's steps.

use std::io;

use super::error::CliError;
use super::serve::told_to_stop;
use super::{Context, Exit};
use crate::probe::{ProbeArgs, ProbeContext, ProbeError, ProbeReport, render_text};

pub(crate) async fn run(context: &Context, args: ProbeArgs) -> Result<Exit, CliError> {
    if let Some(json) = args.report() {
        let report: ProbeReport = context.client.get("/probe").await?;
        if json || context.json {
            context.printer.json_pretty(&report)?;
        } else {
            context.printer.out_bytes(render_text(&report).as_bytes())?;
        }
        return Ok(Exit::Done);
    }
    let hostname = nix::unistd::gethostname().map_err(|errno| CliError::Runtime { source: errno.into() })?;
    let world = ProbeContext {
        hostname: hostname.to_string_lossy().into_owned(),
        clock: jiff::Timestamp::now,
        choose: below,
        stop: told_to_stop().map_err(|source| CliError::Runtime { source })?,
        out: &mut io::stdout(),
    };
    let elsewhere = async || Err::<_, io::Error>(io::Error::other("the report is the server's"));
    let closed =
        |error: &ProbeError| matches!(error, ProbeError::Write(source) if source.kind() == io::ErrorKind::BrokenPipe);
    let ran = crate::probe::run(args, world, elsewhere).await;
    ran.map_err(|error| if closed(&error) { CliError::Closed } else { error.into() })?;
    Ok(Exit::Done)
}

/// An index below `count`, at random.
fn below(count: usize) -> usize {
    // Without the kernel's randomness every worker asks the same server: a poorer probe, no worse.
    let random = getrandom::u32().unwrap_or_default();
    usize::try_from(random).unwrap_or_default() % count.max(1)
}
