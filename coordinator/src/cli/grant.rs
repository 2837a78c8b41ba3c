//! `grant`: one lease, by hand.

use super::args;
use super::error::CliError;
use super::{Context, Exit};
use crate::api::{Failure, FailureKind, GrantArgs};

pub(crate) async fn run(context: &Context, args: args::Grant) -> Result<Exit, CliError> {
    let ask = |force| GrantArgs { node: args.node.clone(), force };
    // What speaks against it, the server says best: where nothing does, nothing has to be forced.
    let mut answer: Result<serde_json::Value, CliError> = context.client.post("/grant", &ask(false)).await;
    if let Err(CliError::Server(Failure { kind: FailureKind::Refused, error, .. })) = &answer
        && args.force
    {
        let what =
            format!("{error}; --force overrides the order of nodes, the number at work, the quorum and `--not-after`");
        context.printer.note(format_args!("note: {what}"));
        if !args.yes && !context.printer.confirm("grant it all the same?")? {
            return Err(CliError::Unconfirmed { what });
        }
        answer = context.client.post("/grant", &ask(true)).await;
    }
    let answer = answer?;
    if context.json {
        context.printer.json(&answer)?;
    } else {
        context.printer.out(format_args!("{} may go", args.node))?;
        context.printer.hint("`requeen status --watch` follows it");
    }
    Ok(Exit::Done)
}
