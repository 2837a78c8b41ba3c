//! `deploy`: an agent on every node.

use super::args;
use super::error::CliError;
use super::{Context, Exit};
use crate::api::{DeployArgs, Deployed};

pub(crate) async fn run(context: &Context, args: args::Deploy) -> Result<Exit, CliError> {
    let question = DeployArgs { image: args.image, print: args.print };
    let deployed: Deployed = context.client.post("/deploy", &question).await?;
    let printer = &context.printer;
    if context.json {
        printer.json_pretty(&deployed)?;
        return Ok(Exit::Done);
    }
    if args.print {
        printer.out(&deployed.command)?;
        for beyond in &deployed.beyond {
            printer.note(format_args!("note: that command can't express: {beyond}"));
        }
    } else if deployed.changed {
        printer.out(format_args!("the agents' service runs {}", deployed.image))?;
    } else {
        printer.out(format_args!("nothing to do: the agents' service runs {} already", deployed.image))?;
    }
    if !deployed.by_hand.is_empty() {
        printer.note("swarm starts no global task on these nodes, for they are drained or paused; type there:");
        for (node, command) in &deployed.by_hand {
            printer.out(format_args!("# on {node}\n{command}"))?;
        }
    }
    Ok(Exit::Done)
}
