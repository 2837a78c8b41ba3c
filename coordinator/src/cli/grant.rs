//! `grant`: one lease, by hand.

use super::args;
use super::error::CliError;
use super::{Context, Exit};
use crate::api::{GrantArgs, NodeStatus, StatusView};

pub(crate) async fn run(context: &Context, args: args::Grant) -> Result<Exit, CliError> {
    if args.force {
        let status = context.client.status().await?;
        let what = overrides(&status, &args.node);
        context.printer.note(format_args!("note: {what}"));
        if !args.yes && !context.printer.confirm("grant it all the same?")? {
            return Err(CliError::Unconfirmed { what });
        }
    }
    let question = GrantArgs { node: args.node.clone(), force: args.force };
    let answer: serde_json::Value = context.client.post("/grant", &question).await?;
    if context.json {
        context.printer.json(&answer)?;
    } else {
        context.printer.out(format_args!("{} may go", args.node))?;
        context.printer.hint("`requeen status --watch` follows it");
    }
    Ok(Exit::Done)
}

/// What `--force` would override on the node.
fn overrides(status: &StatusView, name: &str) -> String {
    let named = |node: &&NodeStatus| node.hostname == name || node.id == name || node.id.starts_with(name);
    let why = status.nodes.iter().find(named).and_then(|node| node.why.as_deref());
    let why = why.map(|why| format!(" (now: {why})")).unwrap_or_default();
    format!(
        "--force grants {name} its lease whatever the order of nodes, the number of workers in work and the quorum of the managers say{why}"
    )
}

#[cfg(test)]
mod tests {
    use super::super::tracker::tests::{node, status};
    use super::*;
    use crate::plan::model::{Phase, Role};

    #[test]
    fn what_is_overridden_is_named() {
        let mut worker = node("w1", Role::Worker, None, &[]);
        worker.why = Some("managers go first: m1".into());
        let view = status(Some(Phase::Running), vec![worker]);
        assert!(overrides(&view, "w1").ends_with("say (now: managers go first: m1)"));
        assert!(overrides(&view, "id-w").ends_with("say (now: managers go first: m1)"));
        assert!(overrides(&view, "w2").ends_with("say"));
    }
}
