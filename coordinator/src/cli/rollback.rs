//! `rollback`: the previous engines back, in the same order and under the same leases.

use super::args;
use super::error::CliError;
use super::upgrade::{OUTAGE, begun, confirm_risks};
use super::{Context, Exit, staging};
use crate::api::RollbackArgs;

pub(crate) async fn run(context: &Context, args: args::Rollback) -> Result<Exit, CliError> {
    let args::Rollback { nodes, how, start } = args;
    let risks: &[&str] = if how.accept_control_plane_outage { &[OUTAGE] } else { &[] };
    confirm_risks(context, risks, &start)?;
    let question = RollbackArgs {
        nodes,
        policy: how.policy.into(),
        workers_at_once: how.workers_at_once,
        accept_control_plane_outage: how.accept_control_plane_outage,
        start_timeout_secs: how.start_timeout.as_secs(),
        stage_timeout_secs: how.stage_timeout.as_secs(),
    };
    let started = staging::wait(context, context.client.post("/rollback", &question)).await?;
    begun(context, started, &start).await
}
