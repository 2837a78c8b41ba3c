//! `upgrade`: starts a rollout and follows it.

use super::args;
use super::error::CliError;
use super::follow::{Interrupt, What, follow};
use super::upload::upload;
use super::{Context, Exit, plan, staging};
use crate::api::Started;

pub(crate) async fn run(context: &Context, args: args::Upgrade) -> Result<Exit, CliError> {
    let args::Upgrade { plan: wanted, dry_run, start } = args;
    if dry_run {
        return plan::run(context, wanted).await;
    }
    let mut risks = Vec::new();
    if wanted.how.accept_control_plane_outage {
        risks.push(OUTAGE);
    }
    if wanted.scope.allow_downgrade {
        risks.push("a lower version is installed; Docker does not promise that it reads what a newer one wrote");
    }
    confirm_risks(context, &risks, &start)?;
    let stored = upload(context, &wanted.bundle).await?;
    let question = plan::to_request(wanted, stored.bundle.digest, (context.now)());
    let started = staging::wait(context, context.client.post("/rollouts", &question)).await?;
    begun(context, started, &start).await
}

/// What `--accept-control-plane-outage` accepts.
pub(crate) const OUTAGE: &str = "the managers have no quorum while one of them restarts: nothing can be changed, \
                                 and failed tasks are not replaced meanwhile";

/// Asks once where flags accept a risk and somebody is there to be asked. A script has said it by
/// the flag itself.
pub(crate) fn confirm_risks(context: &Context, risks: &[&str], start: &args::Start) -> Result<(), CliError> {
    if risks.is_empty() || start.yes || !context.printer.can_ask() {
        return Ok(());
    }
    for risk in risks {
        context.printer.note(format_args!("note: {risk}"));
    }
    if context.printer.confirm("go on?")? { Ok(()) } else { Err(CliError::Unconfirmed { what: risks.join("; ") }) }
}

/// What follows the server's word that a rollout has begun, or that none is needed.
pub(crate) async fn begun(context: &Context, started: Started, start: &args::Start) -> Result<Exit, CliError> {
    let printer = &context.printer;
    if context.json {
        printer.json(&started)?;
    }
    match started {
        Started::NothingToDo => {
            if !context.json {
                printer.out("nothing to do: every node in scope has these files already")?;
            }
            Ok(Exit::Done)
        }
        Started::Rollout { id, notes } if start.detach => {
            if !context.json {
                printer.out(format_args!("rollout {id} has begun"))?;
                say(context, &notes);
                printer.hint("`requeen status --watch` follows it");
            }
            Ok(Exit::Done)
        }
        Started::Rollout { id, notes } => {
            // First: whoever reads that Ctrl-C detaches may press it at once.
            let interrupt = Interrupt::listen()?;
            if !context.json {
                printer.note(format_args!("rollout {id} has begun; Ctrl-C detaches"));
                say(context, &notes);
            }
            follow(context, What::Rollout(id), interrupt).await
        }
    }
}

fn say(context: &Context, notes: &[String]) {
    for note in notes {
        context.printer.note(format_args!("note: {note}"));
    }
}
