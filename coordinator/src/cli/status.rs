//! `status`: where everything stands, once or until the rollout ends.

use super::args;
use super::error::CliError;
use super::follow::{Interrupt, What, follow};
use super::print::Tone;
use super::view::{headline, status_table, troubles};
use super::{Context, Exit};
use crate::api::StatusView;

pub(crate) async fn run(context: &Context, args: args::Status) -> Result<Exit, CliError> {
    if args.watch {
        return follow(context, What::Any, Interrupt::listen()?).await;
    }
    let status = context.client.status().await?;
    show(context, &status)?;
    Ok(Exit::Done)
}

/// Prints `status` once.
pub(crate) fn show(context: &Context, status: &StatusView) -> Result<(), CliError> {
    let printer = &context.printer;
    if context.json {
        return printer.json_pretty(status);
    }
    printer.out(printer.paint(Tone::Strong, headline(status)))?;
    printer.table(&status_table(status))?;
    for line in troubles(status) {
        printer.out(line)?;
    }
    Ok(())
}
