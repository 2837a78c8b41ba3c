//! `verify`: each node's engine files against those that were installed.

use super::error::CliError;
use super::print::{Cell, Table, Tone};
use super::view::role;
use super::{Context, Exit, staging};
use crate::api::{Compared, DriftedFile, Newest, StatusView, Verdict, VerifiedNode, VerifyView};

pub(crate) async fn run(context: &Context) -> Result<Exit, CliError> {
    let question = serde_json::json!({});
    let words = |status: &StatusView| format!("{} nodes look at their files", status.nodes.len());
    let view: VerifyView = staging::wait_saying(context, words, context.client.post("/verify", &question)).await?;
    let printer = &context.printer;
    if context.json {
        printer.json_pretty(&view)?;
    } else {
        printer.out(printer.paint(Tone::Strong, headline(&view.newest)))?;
        printer.table(&table(&view))?;
        for line in details(&view) {
            printer.out(line)?;
        }
    }
    Ok(exit(&view))
}

fn exit(view: &VerifyView) -> Exit {
    if view.nodes.iter().any(|node| node.verdict.is_wrong()) {
        Exit::Failed
    } else if view.nodes.iter().any(|node| node.verdict.is_unknown()) {
        Exit::Unreachable
    } else {
        Exit::Done
    }
}

/// What every node is compared with.
fn headline(newest: &Newest) -> String {
    let version = newest.version.as_deref().unwrap_or("a version that no agent remembers");
    match &newest.rollout {
        Some(rollout) => format!("installed last: {version}, by rollout {rollout}"),
        None => format!("installed last: {version}, by a rollout whose record is gone"),
    }
}

fn table(view: &VerifyView) -> Table {
    let mut table = Table::new(&["NODE", "ROLE", "ENGINE", "FILES", "INSTALLED BY"]);
    for node in &view.nodes {
        table.row([
            Cell::new(Tone::Strong, &node.hostname),
            role(node.role, node.leader).into(),
            node.engine.clone().into(),
            Cell::new(tone(&node.verdict), verdict(&node.verdict)),
            node.rollout.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string).into(),
        ]);
    }
    table
}

fn tone(verdict: &Verdict) -> Tone {
    match verdict {
        Verdict::Ok => Tone::Good,
        Verdict::Unknown { .. } => Tone::Busy,
        Verdict::NotUpgraded { .. } if !verdict.is_wrong() => Tone::Plain,
        Verdict::Drifted { .. }
        | Verdict::RestartPending { .. }
        | Verdict::Outdated { .. }
        | Verdict::NotUpgraded { .. } => Tone::Bad,
    }
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Ok => "ok".to_owned(),
        Verdict::Drifted { files, .. } => {
            let names: Vec<_> = files.iter().map(|file| file.file.name()).collect();
            format!("drifted: {}", names.join(", "))
        }
        Verdict::RestartPending { .. } => "ok, restart pending".to_owned(),
        Verdict::Outdated { .. } => "ok, outdated".to_owned(),
        Verdict::NotUpgraded { compared } => format!("not upgraded by requeen, {}", compared_words(*compared)),
        Verdict::Unknown { .. } => "unknown".to_owned(),
    }
}

fn compared_words(compared: Compared) -> &'static str {
    match compared {
        Compared::Outdated => "outdated",
        Compared::Same => "same version",
        Compared::Newer => "newer version",
        Compared::Unknown => "version can't be compared",
    }
}

/// What there is to say of nodes that are not as they should be.
fn details(view: &VerifyView) -> Vec<String> {
    let mut lines = Vec::new();
    for VerifiedNode { hostname, engine, verdict, .. } in &view.nodes {
        match verdict {
            Verdict::Ok | Verdict::NotUpgraded { .. } => {}
            Verdict::Drifted { files, restart_pending } => {
                lines.extend(files.iter().map(|file| format!("{hostname}: {}", drifted(file))));
                if *restart_pending {
                    lines.push(format!(
                        "{hostname}: the engine that runs is still {engine}, as installed; its next start takes the file"
                    ));
                }
            }
            Verdict::RestartPending { installed } => lines.push(format!(
                "{hostname}: its files are {installed}, and {engine} runs, which was started before they came back"
            )),
            Verdict::Outdated { newest } => {
                lines.push(format!("{hostname}: {newest} was installed on other nodes since"));
            }
            Verdict::Unknown { why, hint } => {
                lines.push(format!("{hostname}: {why}"));
                lines.push(format!("  hint: {hint}"));
            }
        }
    }
    lines
}

fn drifted(DriftedFile { file, path, installed, found, owner }: &DriftedFile) -> String {
    let name = path.clone().unwrap_or_else(|| file.to_string());
    let owner = owner.as_ref().map(|owner| format!("; package {owner} owns it")).unwrap_or_default();
    match found {
        Some(found) => format!("{name} is {}, installed was {}{owner}", found.short(), installed.short()),
        None => format!("{name} is gone, installed was {}{owner}", installed.short()),
    }
}

#[cfg(test)]
mod tests {
    use requeen_protocol::{Digest, EngineFile};

    use super::*;
    use crate::plan::model::Role;

    fn node(hostname: &str, engine: &str, verdict: Verdict) -> VerifiedNode {
        VerifiedNode {
            id: format!("id-{hostname}"),
            hostname: hostname.to_owned(),
            role: if hostname.starts_with('m') { Role::Manager } else { Role::Worker },
            leader: hostname == "m1",
            engine: engine.to_owned(),
            rollout: (verdict == Verdict::Ok).then(|| "r1".into()),
            verdict,
        }
    }

    fn view(nodes: Vec<VerifiedNode>) -> VerifyView {
        VerifyView { newest: Newest { rollout: Some("r1".into()), version: Some("28.5.2".to_owned()) }, nodes }
    }

    fn unknown() -> Verdict {
        Verdict::Unknown { why: "its agent has been silent for 99 s".to_owned(), hint: "look there".to_owned() }
    }

    #[test]
    fn a_verified_swarm_looks_like_this() {
        let digest = |letter: &str| Digest::from_hex(&letter.repeat(64)).unwrap();
        let file = |file: EngineFile, found: Option<&str>, owner: Option<&str>| DriftedFile {
            file,
            path: found.map(|_| format!("/usr/sbin/{file}")),
            installed: digest("a"),
            found: found.map(digest),
            owner: owner.map(str::to_owned),
        };
        let files = vec![file(EngineFile::Dockerd, Some("b"), Some("docker.io")), file(EngineFile::Runc, None, None)];
        let view = view(vec![
            node("m1", "28.5.2", Verdict::Ok),
            node("w1", "28.5.2", Verdict::Drifted { files, restart_pending: true }),
            node("w2", "26.1.5", Verdict::NotUpgraded { compared: Compared::Outdated }),
            node("w3", "26.1.5", Verdict::RestartPending { installed: "28.5.2".to_owned() }),
            node("w4", "26.1.5", Verdict::Outdated { newest: "28.5.2".to_owned() }),
            node("w5", "28.5.2", unknown()),
        ]);
        let text = format!("{}\n{}{}", headline(&view.newest), table(&view), details(&view).join("\n"));
        insta::assert_snapshot!(text, @"
        installed last: 28.5.2, by rollout r1
        NODE  ROLE    ENGINE  FILES                              INSTALLED BY
        m1    leader  28.5.2  ok                                 r1
        w1    worker  28.5.2  drifted: dockerd, runc             -
        w2    worker  26.1.5  not upgraded by requeen, outdated  -
        w3    worker  26.1.5  ok, restart pending                -
        w4    worker  26.1.5  ok, outdated                       -
        w5    worker  28.5.2  unknown                            -
        w1: /usr/sbin/dockerd is bbbbbbbbbbbb, installed was aaaaaaaaaaaa; package docker.io owns it
        w1: runc is gone, installed was aaaaaaaaaaaa
        w1: the engine that runs is still 28.5.2, as installed; its next start takes the file
        w3: its files are 28.5.2, and 26.1.5 runs, which was started before they came back
        w4: 28.5.2 was installed on other nodes since
        w5: its agent has been silent for 99 s
          hint: look there
        ");
    }

    #[test]
    fn what_is_wrong_counts_more_than_what_is_not_known() {
        let same = || Verdict::NotUpgraded { compared: Compared::Same };
        let old = || Verdict::NotUpgraded { compared: Compared::Outdated };
        for (verdicts, expected) in [
            (vec![Verdict::Ok, same()], Exit::Done),
            (vec![Verdict::Ok, unknown()], Exit::Unreachable),
            (vec![old(), unknown()], Exit::Failed),
            (vec![Verdict::Drifted { files: vec![], restart_pending: false }], Exit::Failed),
        ] {
            let nodes = verdicts.into_iter().map(|verdict| node("w1", "28.5.2", verdict)).collect();
            assert_eq!(exit(&view(nodes)), expected);
        }
    }
}
