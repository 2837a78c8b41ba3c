//! `history`: the rollouts on record, and everything that is known of one.

use jiff::Timestamp;
use requeen_protocol::Target;

use super::args;
use super::duration::{rough, seconds};
use super::error::CliError;
use super::print::{Cell, Table, Tone};
use super::tracker::{outcome, phase_words};
use super::upload::escape;
use super::view::{beside, ending, tone, trouble};
use super::{Context, Exit};
use crate::api::{HistoryView, NodeHistory, RolloutHistory, RolloutSummary, UnreadableRecord};
use crate::plan::model::Phase;

pub(crate) async fn run(context: &Context, args: args::History) -> Result<Exit, CliError> {
    match &args.rollout {
        None => all(context).await,
        Some(rollout) => one(context, rollout).await,
    }
}

async fn all(context: &Context) -> Result<Exit, CliError> {
    let printer = &context.printer;
    let history: HistoryView = context.client.get("/history").await?;
    if context.json {
        printer.json_pretty(&history)?;
        return Ok(Exit::Done);
    }
    if history.rollouts.is_empty() {
        printer.out("no rollout is on record")?;
    } else {
        printer.table(&table(&history.rollouts))?;
    }
    for record in &history.unreadable {
        printer.out(unreadable(record))?;
    }
    Ok(Exit::Done)
}

async fn one(context: &Context, rollout: &str) -> Result<Exit, CliError> {
    let printer = &context.printer;
    let history: RolloutHistory = context.client.get(&format!("/history/{}", escape(rollout))).await?;
    if context.json {
        printer.json_pretty(&history)?;
        return Ok(Exit::Done);
    }
    let (first, rest) = headlines(&history);
    printer.out(printer.paint(Tone::Strong, first))?;
    for line in rest {
        printer.out(line)?;
    }
    printer.table(&nodes(&history.steps))?;
    for line in history.steps.iter().flat_map(details) {
        printer.out(line)?;
    }
    Ok(Exit::Done)
}

/// One line per rollout.
fn table(rollouts: &[RolloutSummary]) -> Table {
    let mut table = Table::new(&["ROLLOUT", "STARTED", "BY", "WHAT", "UPGRADED", "TOOK", "END"]);
    for rollout in rollouts {
        table.row([
            Cell::new(Tone::Strong, rollout.id.as_str()),
            to_seconds(rollout.started_at).into(),
            user(rollout.started_by_uid).into(),
            what(&rollout.target).into(),
            format!("{} of {}", rollout.upgraded, rollout.nodes).into(),
            rough(rollout.elapsed_ms).into(),
            Cell::new(phase_tone(&rollout.phase), end(&rollout.phase)),
        ]);
    }
    table
}

/// Where what `--keep-raft-copy` keeps is found. A manager that keeps none says so itself.
const COPIES: &str =
    "copies of the managers' swarm folders: /var/lib/requeen/raft-copies on each manager that was restarted";

/// What is to be said of the whole rollout, and what more.
fn headlines(history: &RolloutHistory) -> (String, Vec<String>) {
    let rollout = &history.summary;
    let limit = match (history.policy.not_after, history.limit_lifted) {
        (None, _) => String::new(),
        (Some(until), false) => format!(", not after {until}"),
        (Some(until), true) => format!(", not after {until} until the operator lifted it"),
    };
    let mut rest = vec![format!(
        "{} of {} nodes upgraded in {}, started {} by {}, managers {}{limit}",
        rollout.upgraded,
        rollout.nodes,
        seconds(rollout.elapsed_ms),
        to_seconds(rollout.started_at),
        user(rollout.started_by_uid),
        history.policy.managers,
    )];
    if history.policy.keep_raft_copy {
        rest.push(COPIES.to_owned());
    }
    (format!("rollout {}: {}, {}", rollout.id, what(&rollout.target), end(&rollout.phase)), rest)
}

/// How every node ended.
fn nodes(steps: &[NodeHistory]) -> Table {
    let mut table = Table::new(&["NODE", "ROLE", "FROM", "OUTCOME", "ENGINE DOWN"]);
    for node in steps {
        let (name, down) = ending(&node.step);
        table.row([
            Cell::new(Tone::Strong, &node.hostname),
            node.role.to_string().into(),
            node.from.clone().into(),
            Cell::new(tone(&node.step), name),
            down.into(),
        ]);
    }
    table
}

/// When each of a node's steps began, and what went wrong.
fn details(node: &NodeHistory) -> Vec<String> {
    let steps: Vec<_> = node.times.iter().map(|(step, ms)| format!("{} {step}", seconds(*ms))).collect();
    let mut lines = vec![format!("{}: {}", node.hostname, steps.join(", "))];
    lines.extend(outcome(&node.step).into_iter().flat_map(|outcome| trouble(&node.hostname, outcome)));
    lines.extend(beside(&node.hostname, &node.troubles));
    lines
}

fn unreadable(record: &UnreadableRecord) -> String {
    let open = if record.ended { "" } else { ", and it may be open" };
    format!("{} can't be read: {}{open} (docker config inspect {})", record.id, record.why, record.config)
}

fn what(target: &Target) -> String {
    match target {
        Target::Bundle(bundle) => format!("{} (sha256:{}…)", bundle.version, bundle.digest.short()),
        Target::Previous { of } => format!("rollback of {of}"),
    }
}

fn end(phase: &Phase) -> String {
    match phase {
        Phase::Ended { .. } => phase_words(phase),
        Phase::Running | Phase::Paused | Phase::Halted { .. } | Phase::Aborting => {
            format!("open ({})", phase_words(phase))
        }
    }
}

fn phase_tone(phase: &Phase) -> Tone {
    match phase {
        Phase::Running | Phase::Paused | Phase::Aborting => Tone::Busy,
        Phase::Halted { .. } | Phase::Ended { aborted: true } => Tone::Bad,
        Phase::Ended { aborted: false } => Tone::Plain,
    }
}

/// Names are the host's and may mean others elsewhere, but for root's.
fn user(uid: u32) -> String {
    if uid == 0 { "root (uid 0)".to_owned() } else { format!("uid {uid}") }
}

fn to_seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use requeen_protocol::{BundleRef, Digest, RolloutId};

    use super::super::tracker::tests::{done, working};
    use super::*;
    use crate::plan::model::{ManagerPolicy, Outcome, Policy, Role, Step, Work};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn bundle() -> Target {
        Target::Bundle(BundleRef {
            digest: Digest::from_hex(&"0123456789abcdef".repeat(4)).unwrap(),
            size: 1,
            version: "26.1.5".into(),
            arch: "x86_64".into(),
            files: BTreeMap::new(),
            unpacked: 1,
        })
    }

    fn summary(id: &str, phase: Phase, target: Target) -> RolloutSummary {
        RolloutSummary {
            id: RolloutId::from(id),
            started_at: at("2026-11-21T12:00:00.123456Z"),
            started_by_uid: 0,
            target,
            upgraded: 1,
            nodes: 3,
            ended_at: matches!(phase, Phase::Ended { .. }).then(|| at("2026-11-21T12:01:42Z")),
            phase,
            elapsed_ms: 102_345,
        }
    }

    #[test]
    fn the_list_looks_like_this() {
        let back = Target::Previous { of: RolloutId::from("20261120-2e8b3cc2") };
        let rollouts = [
            summary("20261122-0a1b2c3d", Phase::Halted { reason: "w1: it crashed".into() }, bundle()),
            RolloutSummary { started_by_uid: 1000, ..summary("20261121-9f8e7d6c", Phase::Running, bundle()) },
            summary("20261121-aaaaaaaa", Phase::Ended { aborted: true }, back),
            summary("20261120-2e8b3cc2", Phase::Ended { aborted: false }, bundle()),
        ];
        let other = |ended| UnreadableRecord {
            id: "20261119-cccccccc".into(),
            config: "requeen-20261119-cccccccc".into(),
            ended,
            why: "its schema is 2, and this version knows 1".into(),
        };
        let text = format!("{}{}\n{}", table(&rollouts), unreadable(&other(true)), unreadable(&other(false)));
        insta::assert_snapshot!(text, @"
        ROLLOUT            STARTED               BY            WHAT                           UPGRADED  TOOK   END
        20261122-0a1b2c3d  2026-11-21T12:00:00Z  root (uid 0)  26.1.5 (sha256:0123456789ab…)  1 of 3    1m42s  open (halted: w1: it crashed)
        20261121-9f8e7d6c  2026-11-21T12:00:00Z  uid 1000      26.1.5 (sha256:0123456789ab…)  1 of 3    1m42s  open (running)
        20261121-aaaaaaaa  2026-11-21T12:00:00Z  root (uid 0)  rollback of 20261120-2e8b3cc2  1 of 3    1m42s  aborted
        20261120-2e8b3cc2  2026-11-21T12:00:00Z  root (uid 0)  26.1.5 (sha256:0123456789ab…)  1 of 3    1m42s  ended
        20261119-cccccccc can't be read: its schema is 2, and this version knows 1 (docker config inspect requeen-20261119-cccccccc)
        20261119-cccccccc can't be read: its schema is 2, and this version knows 1, and it may be open (docker config inspect requeen-20261119-cccccccc)
        ");
    }

    #[test]
    fn one_rollout_looks_like_this() {
        let node = |hostname: &str, role, step, times: &[(&str, u64)]| NodeHistory {
            id: format!("id-{hostname}"),
            hostname: hostname.into(),
            role,
            from: "20.10.24".into(),
            step,
            times: times.iter().map(|(step, ms)| ((*step).into(), *ms)).collect(),
            troubles: vec![],
        };
        let log = vec!["level=fatal msg=broken".to_owned()];
        let steps = vec![
            node(
                "m1",
                Role::Manager,
                done(Outcome::Upgraded { engine_down_ms: 1230 }),
                &[("waiting", 0), ("granted", 120), ("swapping", 4000), ("upgraded", 9050)],
            ),
            node(
                "w1",
                Role::Worker,
                done(Outcome::RolledBack { reason: "it crashed".into(), log }),
                &[("waiting", 0), ("granted", 9100), ("rolled-back", 19_000)],
            ),
            node("w2", Role::Worker, working(Work::Draining), &[("waiting", 0), ("draining", 20_000)]),
            node("w3", Role::Worker, Step::Waiting { by_hand: false, forced: false }, &[("waiting", 0)]),
        ];
        let policy = Policy {
            managers: ManagerPolicy::Rolling,
            workers_at_once: 1,
            manual: false,
            accept_control_plane_outage: false,
            allow_downgrade: false,
            start_timeout_secs: 60,
            join_timeout_secs: 180,
            not_after: Some(at("2026-11-21T13:00:00Z")),
            keep_raft_copy: false,
        };
        let phase = Phase::Halted { reason: "w1: it crashed".into() };
        let mut history = RolloutHistory {
            summary: summary("20261121-0a1b2c3d", phase, bundle()),
            policy,
            limit_lifted: false,
            steps,
        };
        let details: Vec<_> = history.steps.iter().flat_map(details).collect();
        let (first, rest) = headlines(&history);
        let text = format!("{first}\n{}\n{}{}", rest.join("\n"), nodes(&history.steps), details.join("\n"));
        insta::assert_snapshot!(text, @"
        rollout 20261121-0a1b2c3d: 26.1.5 (sha256:0123456789ab…), open (halted: w1: it crashed)
        1 of 3 nodes upgraded in 102.3s, started 2026-11-21T12:00:00Z by root (uid 0), managers rolling, not after 2026-11-21T13:00:00Z
        NODE  ROLE     FROM      OUTCOME      ENGINE DOWN
        m1    manager  20.10.24  upgraded     1.2s
        w1    worker   20.10.24  rolled-back  -
        w2    worker   20.10.24  draining     -
        w3    worker   20.10.24  waiting      -
        m1: 0.0s waiting, 0.1s granted, 4.0s swapping, 9.1s upgraded
        w1: 0.0s waiting, 9.1s granted, 19.0s rolled-back
        w1: rolled back: it crashed
          level=fatal msg=broken
        w2: 0.0s waiting, 20.0s draining
        w3: 0.0s waiting
        ");
        history.policy.keep_raft_copy = true;
        assert_eq!(headlines(&history).1[1..], [COPIES]);
        history.limit_lifted = true;
        assert!(headlines(&history).1[0].ends_with("not after 2026-11-21T13:00:00Z until the operator lifted it"));
    }

    #[test]
    fn what_was_wrong_beside_the_work_is_told() {
        let trouble = requeen_protocol::Problem { what: "container db: no".into(), hint: "`docker start db`".into() };
        let node = NodeHistory {
            id: "id".into(),
            hostname: "w1".into(),
            role: Role::Worker,
            from: "1".into(),
            step: done(Outcome::Upgraded { engine_down_ms: 1 }),
            times: vec![("upgraded".into(), 1000)],
            troubles: vec![trouble],
        };
        assert_eq!(details(&node), ["w1: 1.0s upgraded", "w1: container db: no", "  hint: `docker start db`"]);
    }
}
