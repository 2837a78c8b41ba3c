//! How plans, statuses and summaries look. Pure: from the API's types to tables and lines.

use super::duration::{rough, seconds};
use super::print::{Cell, Table, Tone};
use super::tracker::{detail, outcome, phase_words};
use crate::api::{NodeStatus, PlanView, RolloutView, StatusView};
use crate::plan::model::{Outcome, Phase, Role, Step};
use requeen_protocol::Problem;

/// What a role is called, the leader told apart as `docker node ls` does.
pub(crate) fn role(role: Role, leader: bool) -> String {
    if leader { "leader".into() } else { role.to_string() }
}

/// The line above the nodes.
pub(crate) fn headline(status: &StatusView) -> String {
    let leader = if status.has_leader { "" } else { "; the managers have no leader" };
    if let Some(lost) = status.without_record.last() {
        return format!(
            "rollout {lost} has no record any more: `requeen resume` makes it again from what the nodes keep"
        );
    }
    let limit = |rollout: &RolloutView| match &rollout.limit {
        Some(limit) if !limit.lifted => format!(", not after {}", limit.not_after),
        Some(_) | None => String::new(),
    };
    match &status.rollout {
        None => format!("no rollout yet (server {} on {}){leader}", status.server_version, status.server_node),
        Some(rollout) => format!(
            "rollout {} to {}: {}, {}{}, driven from {}{leader}",
            rollout.id,
            rollout.to,
            phase_words(&rollout.phase),
            seconds(rollout.elapsed_ms),
            limit(rollout),
            rollout.owner
        ),
    }
}

/// Every node and why it does not move.
pub(crate) fn status_table(status: &StatusView) -> Table {
    let mut table = Table::new(&["NODE", "ROLE", "AVAILABILITY", "ENGINE", "STEP", "SINCE", "WHY"]);
    for node in &status.nodes {
        let engine = if node.ready { node.engine.clone() } else { format!("{} (down)", node.engine) };
        // When it ended is in the timeline; how long ago that is tells nothing.
        let since = node.since_ms.filter(|_| !matches!(node.step, None | Some(Step::Done { .. })));
        table.row([
            Cell::new(Tone::Strong, &node.hostname),
            role(node.role, node.leader).into(),
            node.availability.to_string().into(),
            Cell::new(if node.ready { Tone::Plain } else { Tone::Bad }, engine),
            node.step.as_ref().map_or("-".into(), |step| Cell::new(tone(step), step.name())),
            since.map_or_else(String::new, rough).into(),
            why(node).into(),
        ]);
    }
    table
}

fn why(node: &NodeStatus) -> String {
    let ended = || node.step.as_ref().and_then(detail);
    let agent = || match (&node.step, node.silent_secs) {
        (Some(_), _) => None,
        (None, None) => Some("no agent has called from this node".to_owned()),
        (None, Some(secs)) if secs > SILENT => Some(format!("its agent has been silent for {}", rough(secs * 1000))),
        (None, Some(_)) => Some("ready".to_owned()),
    };
    node.why.clone().or_else(ended).or_else(agent).unwrap_or_default()
}

/// How long an agent may be quiet before that is worth a word, seconds: twice a long poll.
const SILENT: u64 = 2 * requeen_protocol::LONG_POLL_SECS;

pub(crate) fn tone(step: &Step) -> Tone {
    match step {
        Step::Waiting { .. } => Tone::Faint,
        Step::Working { .. } | Step::Restoring { .. } | Step::Held { .. } => match outcome(step) {
            Some(Outcome::RolledBack { .. } | Outcome::Failed { .. }) => Tone::Bad,
            Some(Outcome::Upgraded { .. } | Outcome::Current | Outcome::Untouched) | None => Tone::Busy,
        },
        Step::Done { outcome } => match outcome {
            Outcome::Upgraded { .. } | Outcome::Current => Tone::Good,
            Outcome::Untouched => Tone::Faint,
            Outcome::RolledBack { .. } | Outcome::Failed { .. } => Tone::Bad,
        },
    }
}

/// Every node in the rollout's scope and how it ended.
pub(crate) fn summary_table(status: &StatusView) -> Table {
    let mut table = Table::new(&["NODE", "ROLE", "ENGINE", "OUTCOME", "ENGINE DOWN"]);
    for node in &status.nodes {
        let Some(step) = &node.step else {
            continue;
        };
        let (name, down) = ending(step);
        table.row([
            Cell::new(Tone::Strong, &node.hostname),
            node.role.to_string().into(),
            node.engine.clone().into(),
            Cell::new(tone(step), name),
            down.into(),
        ]);
    }
    table
}

/// How a node ended, or where it stands, and how long its engine was down.
pub(crate) fn ending(step: &Step) -> (&'static str, String) {
    match outcome(step) {
        Some(outcome @ Outcome::Upgraded { engine_down_ms }) => (outcome.name(), seconds(*engine_down_ms)),
        Some(
            outcome @ (Outcome::Current | Outcome::RolledBack { .. } | Outcome::Untouched | Outcome::Failed { .. }),
        ) => (outcome.name(), "-".to_owned()),
        None => (step.name(), "-".to_owned()),
    }
}

/// The last words of a summary: how many, how long, and why it ended early.
pub(crate) fn total(status: &StatusView) -> String {
    let steps = || status.nodes.iter().filter_map(|node| node.step.as_ref());
    let all = steps().count();
    let upgraded = |step: &&Step| matches!(outcome(step), Some(Outcome::Upgraded { .. }));
    let changed = steps().filter(upgraded).count();
    match &status.rollout {
        None => format!("{changed} of {all} nodes changed"),
        Some(rollout) => {
            let reason = match &rollout.phase {
                Phase::Halted { reason } => format!("\nhalted: {reason}"),
                Phase::Running | Phase::Paused | Phase::Aborting | Phase::Ended { .. } => String::new(),
            };
            format!(
                "{changed} of {all} nodes changed to {} in {} (rollout {}){reason}",
                rollout.to,
                seconds(rollout.elapsed_ms),
                rollout.id
            )
        }
    }
}

/// What went wrong on nodes, with the words of their engines.
pub(crate) fn troubles(status: &StatusView) -> Vec<String> {
    let of = |node: &NodeStatus| {
        let ended = node.step.as_ref().and_then(outcome);
        let mut lines = ended.map(|outcome| trouble(&node.hostname, outcome)).unwrap_or_default();
        lines.extend(beside(&node.hostname, &node.troubles));
        lines
    };
    status.nodes.iter().flat_map(of).collect()
}

/// What is wrong on a node and changes nothing of how its work ends.
pub(crate) fn beside(node: &str, troubles: &[Problem]) -> Vec<String> {
    let lines = |trouble: &Problem| [format!("{node}: {}", trouble.what), format!("  hint: {}", trouble.hint)];
    troubles.iter().flat_map(lines).collect()
}

/// What went wrong on one node.
pub(crate) fn trouble(node: &str, outcome: &Outcome) -> Vec<String> {
    match outcome {
        Outcome::RolledBack { reason, log } => {
            let mut lines = vec![format!("{node}: rolled back: {reason}")];
            lines.extend(log.iter().map(|line| format!("  {line}")));
            lines
        }
        Outcome::Failed { reason, hint } => vec![format!("{node}: {reason}"), format!("  hint: {hint}")],
        Outcome::Upgraded { .. } | Outcome::Current | Outcome::Untouched => Vec::new(),
    }
}

/// Nodes in the order in which they would move.
pub(crate) fn plan_table(plan: &PlanView) -> Table {
    let mut table = Table::new(&["#", "NODE", "ROLE", "AVAILABILITY", "ENGINE", "CHANGES"]);
    for (place, node) in plan.nodes.iter().enumerate() {
        let changes = match (node.staged, node.changes.is_empty()) {
            (false, _) => Cell::new(Tone::Bad, "not staged"),
            (true, true) => Cell::new(Tone::Good, "none: it has the bundle's files already"),
            (true, false) => node.changes.join(", ").into(),
        };
        table.row([
            (place + 1).to_string().into(),
            Cell::new(Tone::Strong, &node.hostname),
            role(node.role, node.leader).into(),
            node.availability.to_string().into(),
            format!("{} → {}", node.from, node.to).into(),
            changes,
        ]);
    }
    table
}

/// Which nodes a plan leaves out because they run the target already.
pub(crate) fn left_out(plan: &PlanView) -> String {
    let nodes: Vec<_> = plan.left_out.iter().map(|node| format!("{} ({})", node.hostname, node.engine)).collect();
    format!("left out, as they run the bundle already: {}", nodes.join(", "))
}

/// Remarks of the agents, each with its node.
pub(crate) fn plan_notes(plan: &PlanView) -> Vec<String> {
    let notes = |node: &crate::api::PlannedNode| {
        node.notes.iter().map(|note| format!("{}: {note}", node.hostname)).collect::<Vec<_>>()
    };
    plan.nodes.iter().flat_map(notes).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tracker::tests::{done, node, status, working};
    use super::*;
    use crate::api::{LeftOut, PlannedNode, TimeLimit};
    use crate::plan::model::{Availability, Work};

    fn halted() -> StatusView {
        let log = vec!["level=fatal msg=broken".to_owned()];
        let mut waiting = node("w2", Role::Worker, Some(Step::Waiting { by_hand: false, forced: false }), &[]);
        waiting.why = Some("managers go first: m1".into());
        let mut down = node("w3", Role::Worker, None, &[]);
        down.ready = false;
        down.silent_secs = None;
        down.since_ms = None;
        status(
            Some(Phase::Halted { reason: "w1 was rolled back".into() }),
            vec![
                node("m1", Role::Manager, Some(done(Outcome::Upgraded { engine_down_ms: 1230 })), &[]),
                node("m2", Role::Manager, Some(working(Work::Draining)), &[]),
                node("w1", Role::Worker, Some(done(Outcome::RolledBack { reason: "it crashed".into(), log })), &[]),
                waiting,
                down,
            ],
        )
    }

    #[test]
    fn status_looks_like_this() {
        let status = halted();
        insta::assert_snapshot!(format!("{}\n{}", headline(&status), status_table(&status)), @"
        rollout r1 to 26.1.5: halted: w1 was rolled back, 12.3s, driven from m1
        NODE  ROLE     AVAILABILITY  ENGINE           STEP         SINCE  WHY
        m1    leader   active        20.10.24         upgraded            engine down 1.2s
        m2    manager  active        20.10.24         draining     1s
        w1    worker   active        20.10.24         rolled-back         it crashed
        w2    worker   active        20.10.24         waiting      1s     managers go first: m1
        w3    worker   active        20.10.24 (down)  -                   no agent has called from this node
        ");
    }

    #[test]
    fn a_time_limit_is_shown_until_it_is_lifted() {
        let mut status = halted();
        let not_after = "2026-11-22T06:00:00Z".parse().unwrap();
        let mut line = |lifted| {
            status.rollout.as_mut().unwrap().limit = Some(TimeLimit { not_after, lifted });
            headline(&status)
        };
        assert!(line(false).ends_with(", 12.3s, not after 2026-11-22T06:00:00Z, driven from m1"));
        assert!(line(true).ends_with(", 12.3s, driven from m1"));
    }

    #[test]
    fn summary_looks_like_this() {
        let status = halted();
        let text = format!("{}{}\n{}", summary_table(&status), total(&status), troubles(&status).join("\n"));
        insta::assert_snapshot!(text, @"
        NODE  ROLE     ENGINE    OUTCOME      ENGINE DOWN
        m1    manager  20.10.24  upgraded     1.2s
        m2    manager  20.10.24  draining     -
        w1    worker   20.10.24  rolled-back  -
        w2    worker   20.10.24  waiting      -
        1 of 4 nodes changed to 26.1.5 in 12.3s (rollout r1)
        halted: w1 was rolled back
        w1: rolled back: it crashed
          level=fatal msg=broken
        ");
    }

    #[test]
    fn plan_looks_like_this() {
        let planned = |hostname: &str, leader, changes: &[&str], staged| PlannedNode {
            id: format!("id-{hostname}"),
            hostname: hostname.into(),
            role: if hostname.starts_with('m') { Role::Manager } else { Role::Worker },
            leader,
            availability: Availability::Active,
            from: "20.10.24".into(),
            to: "26.1.5".into(),
            changes: changes.iter().map(|name| (*name).into()).collect(),
            staged,
            notes: if leader { vec!["docker.io owns dockerd".into()] } else { vec![] },
            containers: vec![],
        };
        let plan = PlanView {
            to: "26.1.5".into(),
            policy: "rolling".into(),
            nodes: vec![
                planned("m1", true, &["dockerd", "runc"], true),
                planned("w1", false, &[], true),
                planned("w2", false, &[], false),
            ],
            refusals: vec![],
            nothing_to_do: false,
            left_out: [("w3", "26.1.5"), ("w4", "26.1.5+dfsg1")]
                .map(|(name, engine)| LeftOut {
                    id: format!("id-{name}"),
                    hostname: name.into(),
                    engine: engine.into(),
                })
                .into(),
        };
        let text = format!("{}{}\n{}", plan_table(&plan), left_out(&plan), plan_notes(&plan).join("\n"));
        insta::assert_snapshot!(text, @"
        #  NODE  ROLE    AVAILABILITY  ENGINE             CHANGES
        1  m1    leader  active        20.10.24 → 26.1.5  dockerd, runc
        2  w1    worker  active        20.10.24 → 26.1.5  none: it has the bundle's files already
        3  w2    worker  active        20.10.24 → 26.1.5  not staged
        left out, as they run the bundle already: w3 (26.1.5), w4 (26.1.5+dfsg1)
        m1: docker.io owns dockerd
        ");
    }
}
