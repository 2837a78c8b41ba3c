//! `undeploy`: takes away what was deployed, after saying what that is.

use requeen_protocol::{Left, NodeState};

use super::args;
use super::error::CliError;
use super::{Context, Exit, staging};
use crate::api::{CleanedNode, Deployment, ReachedNode, SilentNode, StatusView, UndeployArgs, Undeployed};

/// What an agent removes on its host.
const ON_HOSTS: &str = "agents' programs in /var/lib/requeen/bin; journal, records and bundles in /var/lib/requeen/agent; \
                        sets of engine files in /var/lib/requeen/engines that are no backups";

/// What it removes more with `--backups`.
const BACKUPS: &str = "the backups in /var/lib/requeen/engines and the copies in /var/lib/requeen/raft-copies: nothing is left to \
                       go back to";

pub(crate) async fn run(context: &Context, args: args::Undeploy) -> Result<Exit, CliError> {
    let args::Undeploy { backups, yes } = args;
    let printer = &context.printer;
    if !yes {
        let found: Deployment = context.client.get("/undeploy").await?;
        if found.is_nothing() {
            return nothing(context, &serde_json::json!({ "nothing": true }));
        }
        for line in announced(&found, backups) {
            printer.note(line);
        }
        if !printer.confirm("remove all this?")? {
            return Err(CliError::Unconfirmed { what: "undeploy removes what is listed above".to_owned() });
        }
    }
    let question = UndeployArgs { backups };
    let answer = context.client.post("/undeploy", &question);
    let done: Undeployed = staging::wait_saying(context, progress, answer).await?;
    if done.nothing {
        return nothing(context, &done);
    }
    if context.json {
        printer.json_pretty(&done)?;
    } else {
        for line in report(&done, backups) {
            printer.out(line)?;
        }
    }
    Ok(exit(&done))
}

fn nothing(context: &Context, answer: &impl serde::Serialize) -> Result<Exit, CliError> {
    if context.json {
        context.printer.json_pretty(answer)?;
    } else {
        context.printer.out("nothing is deployed")?;
    }
    Ok(Exit::Done)
}

fn exit(done: &Undeployed) -> Exit {
    let failed = |node: &CleanedNode| node.left.iter().any(|left| matches!(left, Left::Failed { .. }));
    let whole = done.silent.is_empty() && done.troubles.is_empty() && !done.cleaned.iter().any(failed);
    if whole { Exit::Done } else { Exit::Failed }
}

/// How many nodes have been cleaned.
fn progress(status: &StatusView) -> String {
    let cleaned = |state: &NodeState| matches!(state, NodeState::Cleaned { .. });
    let count = status.nodes.iter().filter(|node| node.agent.as_ref().is_some_and(cleaned)).count();
    format!("cleaning: {count} of {} nodes", status.nodes.len())
}

/// What would be removed.
fn announced(found: &Deployment, backups: bool) -> Vec<String> {
    let mut lines = vec!["this will be removed:".to_owned()];
    lines.extend(found.services.iter().map(|service| format!("  service {service}")));
    if !found.records.is_empty() {
        lines.push(format!("  {}: swarm configs {}", counted(found.records.len(), "record"), found.records.join(", ")));
    }
    let names: Vec<_> = found.reached.iter().map(|ReachedNode { hostname, .. }| hostname.as_str()).collect();
    if !names.is_empty() {
        lines.push(format!("  on {}: {ON_HOSTS}", names.join(", ")));
        if backups {
            lines.push(format!("  on {}: {BACKUPS}", names.join(", ")));
        }
    }
    lines.push("  on this manager: bundles in the server's folder".to_owned());
    lines.push("engines, their files, and files that are not Requeen's stay as they are".to_owned());
    lines.extend(
        found.silent.iter().map(|SilentNode { hostname, why, .. }| format!("{hostname} is not cleaned: {why}")),
    );
    lines
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// What was removed, what is left and why, and how to remove the rest.
fn report(done: &Undeployed, backups: bool) -> Vec<String> {
    let mut lines: Vec<String> = done.services.iter().map(|name| format!("removed service {name}")).collect();
    if !done.records.is_empty() {
        lines.push(format!("removed {} of rollouts", counted(done.records.len(), "record")));
    }
    if !done.cleaned.is_empty() {
        let names: Vec<_> = done.cleaned.iter().map(|node| node.hostname.as_str()).collect();
        lines.push(format!("cleaned {}", names.join(", ")));
    }
    for node in &done.cleaned {
        lines.extend(left(node));
    }
    lines.extend(done.troubles.iter().map(|trouble| format!("{}: {trouble}", done.server_node)));
    for SilentNode { hostname, why, command } in &done.silent {
        lines.push(format!("{hostname} was not cleaned: {why}; type there:"));
        lines.push(format!("  {command}"));
    }
    let by_hand: Vec<_> = done.cleaned.iter().filter(|node| node.by_hand).map(|node| node.hostname.as_str()).collect();
    if !by_hand.is_empty() {
        lines.push(format!("agents that were started by hand still run on {}; type there:", by_hand.join(", ")));
        lines.push("  docker rm -f requeen-agent".to_owned());
    }
    let dir = &done.data_dir;
    let others = done.cleaned.iter().filter(|node| serves(node) && node.hostname != done.server_node);
    let others: Vec<_> = others.map(|node| node.hostname.as_str()).collect();
    if !others.is_empty() {
        lines.push(format!("coordinators serve on {} too; type there:", others.join(", ")));
        lines.push(format!("  docker rm -f requeen && rm -rf {dir}/bundles {dir}/requeen.sock"));
    }
    lines.push(format!("last the coordinator and the command on {}; type there:", done.server_node));
    // With something in it the folder stays, whatever that is.
    let folder = if backups { format!(" && rmdir {dir}") } else { String::new() };
    lines.push(format!("  docker rm -f requeen && rm -f {dir}/requeen.sock /usr/local/bin/requeen{folder}"));
    lines
}

fn serves(node: &CleanedNode) -> bool {
    node.left.iter().any(|left| matches!(left, Left::Coordinator { .. }))
}

/// What is still on a node, a line for each reason.
fn left(node: &CleanedNode) -> Vec<String> {
    let hostname = &node.hostname;
    let mut lines = Vec::new();
    let kept: Vec<_> = node
        .left
        .iter()
        .filter_map(|left| match left {
            Left::Backup { path } => Some(path.as_str()),
            Left::Coordinator { .. } | Left::Unknown { .. } | Left::Failed { .. } => None,
        })
        .collect();
    if !kept.is_empty() {
        lines.push(format!("{hostname}: kept as the way back: {}", kept.join(" ")));
    }
    for left in &node.left {
        match left {
            Left::Unknown { path } => lines.push(format!("{hostname}: {path} is not Requeen's and was left alone")),
            Left::Failed { path, why } => lines.push(format!("{hostname}: {path} was not removed: {why}")),
            Left::Backup { .. } | Left::Coordinator { .. } => {}
        }
    }
    if node.more > 0 {
        lines.push(format!("{hostname}: and {} more things are left in /var/lib/requeen", node.more));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(hostname: &str, by_hand: bool, left: Vec<Left>) -> CleanedNode {
        CleanedNode { hostname: hostname.to_owned(), by_hand, left, more: 0 }
    }

    fn silent() -> SilentNode {
        SilentNode {
            hostname: "w2".to_owned(),
            why: "its agent has been silent for 99 s".to_owned(),
            command: "rm -rf /var/lib/requeen/agent /var/lib/requeen/bin".to_owned(),
        }
    }

    fn done() -> Undeployed {
        let path = |name: &str| format!("/var/lib/requeen/{name}");
        let backups = || ["a", "b"].map(|set| Left::Backup { path: path(&format!("engines/{set}")) });
        let socket = || Left::Coordinator { path: path("requeen.sock") };
        let mut strange: Vec<Left> = backups().into();
        strange.push(Left::Unknown { path: path("notes.txt") });
        strange.push(Left::Failed { path: path("bin"), why: "Read-only file system".to_owned() });
        Undeployed {
            nothing: false,
            services: vec!["requeen-agent".to_owned()],
            records: vec!["requeen-r1".to_owned(), "requeen-r2".to_owned()],
            cleaned: vec![
                cleaned("m1", false, backups().into_iter().chain([socket()]).collect()),
                cleaned("m2", true, vec![socket()]),
                cleaned("w1", false, strange),
            ],
            silent: vec![silent()],
            troubles: vec![],
            server_node: "m1".to_owned(),
            data_dir: "/var/lib/requeen".to_owned(),
        }
    }

    #[test]
    fn what_is_left_looks_like_this() {
        insta::assert_snapshot!(report(&done(), false).join("\n"), @"
        removed service requeen-agent
        removed 2 records of rollouts
        cleaned m1, m2, w1
        m1: kept as the way back: /var/lib/requeen/engines/a /var/lib/requeen/engines/b
        w1: kept as the way back: /var/lib/requeen/engines/a /var/lib/requeen/engines/b
        w1: /var/lib/requeen/notes.txt is not Requeen's and was left alone
        w1: /var/lib/requeen/bin was not removed: Read-only file system
        w2 was not cleaned: its agent has been silent for 99 s; type there:
          rm -rf /var/lib/requeen/agent /var/lib/requeen/bin
        agents that were started by hand still run on m2; type there:
          docker rm -f requeen-agent
        coordinators serve on m2 too; type there:
          docker rm -f requeen && rm -rf /var/lib/requeen/bundles /var/lib/requeen/requeen.sock
        last the coordinator and the command on m1; type there:
          docker rm -f requeen && rm -f /var/lib/requeen/requeen.sock /usr/local/bin/requeen
        ");
        let last = report(&done(), true).pop().unwrap();
        assert!(last.ends_with("/usr/local/bin/requeen && rmdir /var/lib/requeen"), "{last}");
        assert_eq!(exit(&done()), Exit::Failed);
    }

    #[test]
    fn only_what_should_have_gone_is_a_failure() {
        let unknown = Left::Unknown { path: "/var/lib/requeen/notes.txt".to_owned() };
        let whole =
            || Undeployed { cleaned: vec![cleaned("w1", true, vec![unknown.clone()])], silent: vec![], ..done() };
        assert_eq!(exit(&whole()), Exit::Done);
        let failed = Left::Failed { path: "/x".to_owned(), why: "y".to_owned() };
        assert_eq!(exit(&Undeployed { cleaned: vec![cleaned("w1", true, vec![failed])], ..whole() }), Exit::Failed);
        assert_eq!(exit(&Undeployed { silent: vec![silent()], ..whole() }), Exit::Failed);
        assert_eq!(exit(&Undeployed { troubles: vec!["z".to_owned()], ..whole() }), Exit::Failed);
    }
}
