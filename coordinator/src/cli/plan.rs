//! `plan`: what an upgrade would do. Changes nothing.

use super::args;
use super::error::{CliError, if_read};
use super::print::Tone;
use super::upload::upload;
use super::view::{left_out, plan_notes, plan_table};
use super::{Context, Exit, staging};
use crate::api::{PlanView, UpgradeArgs};
use jiff::Timestamp;
use requeen_protocol::Digest;

pub(crate) async fn run(context: &Context, args: args::Plan) -> Result<Exit, CliError> {
    let stored = upload(context, &args.bundle).await?;
    let question = to_request(args, stored.bundle.digest, (context.now)());
    let plan: PlanView = staging::wait(context, context.client.post("/plan", &question)).await?;
    show(context, &plan)
}

/// The flags as the server wants them, given at `now`.
pub(crate) fn to_request(args: args::Plan, bundle: Digest, now: Timestamp) -> UpgradeArgs {
    let args::Plan { bundle: _, scope, how } = args;
    UpgradeArgs {
        bundle,
        policy: how.policy.into(),
        workers_at_once: how.workers_at_once,
        only: scope.only,
        exclude: scope.exclude,
        manual: scope.manual,
        accept_control_plane_outage: how.accept_control_plane_outage,
        allow_downgrade: scope.allow_downgrade,
        start_timeout_secs: how.start_timeout.as_secs(),
        stage_timeout_secs: how.stage_timeout.as_secs(),
        only_outdated: scope.only_outdated,
        not_after: scope.not_after.map(|until| until.seen_from(now)),
        keep_raft_copy: scope.keep_raft_copy,
    }
}

fn show(context: &Context, plan: &PlanView) -> Result<Exit, CliError> {
    if_read(print(context, plan))?;
    Ok(if plan.refusals.is_empty() { Exit::Done } else { Exit::Refused })
}

fn print(context: &Context, plan: &PlanView) -> Result<(), CliError> {
    let printer = &context.printer;
    if context.json {
        return printer.json_pretty(plan);
    }
    printer.out(printer.paint(Tone::Strong, format_args!("to {}, managers: {}", plan.to, plan.policy)))?;
    printer.table(&plan_table(plan))?;
    if !plan.left_out.is_empty() {
        printer.out(left_out(plan))?;
    }
    for note in plan_notes(plan) {
        printer.out(format_args!("note: {note}"))?;
    }
    for refusal in &plan.refusals {
        // Which node it is, it says itself.
        printer.out(format_args!("{} {}", printer.paint(Tone::Bad, "refused:"), refusal.what))?;
        printer.out(format_args!("  hint: {}", refusal.hint))?;
    }
    if plan.nothing_to_do {
        printer.out("nothing to do: every node in scope has the bundle's files already")?;
    } else if plan.refusals.is_empty() {
        printer.note("nothing was changed; `requeen upgrade` with the same flags does it");
    }
    Ok(())
}
