//! What has changed between two looks at the server: from snapshots to events. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Exit;
use super::duration::seconds;
use crate::api::{NodeStatus, RolloutView, StatusView};
use crate::plan::model::{Outcome, Phase, Role, Step};

/// Something that has changed since the last look. As JSON it is one line of `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Change {
    /// A node began another step.
    Step {
        /// Milliseconds since the rollout began.
        elapsed_ms: u64,
        /// Node ID.
        id: String,
        /// Host name.
        node: String,
        /// Role.
        role: Role,
        /// The step's name.
        step: String,
        /// What more there is to say: engine down time, reason.
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The rollout itself stands otherwise.
    Phase {
        /// Milliseconds since the rollout began.
        elapsed_ms: u64,
        /// The rollout's ID.
        rollout: String,
        /// How it stands.
        #[serde(flatten)]
        phase: Phase,
    },
}

impl Change {
    fn elapsed_ms(&self) -> u64 {
        match self {
            Change::Step { elapsed_ms, .. } | Change::Phase { elapsed_ms, .. } => *elapsed_ms,
        }
    }

    /// The change as a line of plain text.
    pub(crate) fn line(&self) -> String {
        let at = seconds(self.elapsed_ms());
        match self {
            Change::Step { node, role, step, detail: None, .. } => format!("{at} {node} {role} {step}"),
            Change::Step { node, role, step, detail: Some(detail), .. } => {
                format!("{at} {node} {role} {step} ({detail})")
            }
            Change::Phase { rollout, phase, .. } => format!("{at} rollout {rollout} {}", phase_words(phase)),
        }
    }
}

/// Remembers what was told already.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    phase: Option<Phase>,
    told: BTreeMap<String, Told>,
}

/// What was told of one node.
#[derive(Debug, Default)]
struct Told {
    /// How many of its [`NodeStatus::times`].
    times: usize,
    /// The name of the last step told.
    step: Option<String>,
}

impl Tracker {
    /// What `status` has that the ones before had not, in the order in which it happened.
    pub(crate) fn changes(&mut self, status: &StatusView) -> Vec<Change> {
        let Some(rollout) = &status.rollout else {
            return Vec::new();
        };
        let mut changes: Vec<Change> =
            status.nodes.iter().flat_map(|node| self.node(rollout.elapsed_ms, node)).collect();
        changes.sort_by_key(Change::elapsed_ms);
        // That it runs is not news at the beginning.
        let known = self.phase.get_or_insert(Phase::Running);
        if *known != rollout.phase {
            known.clone_from(&rollout.phase);
            changes.push(Change::Phase {
                elapsed_ms: rollout.elapsed_ms,
                rollout: rollout.id.to_string(),
                phase: rollout.phase.clone(),
            });
        }
        changes
    }

    fn node(&mut self, now_ms: u64, node: &NodeStatus) -> Vec<Change> {
        let Some(step) = &node.step else {
            return Vec::new();
        };
        let told = self.told.entry(node.id.clone()).or_insert_with(|| Told {
            times: 0,
            // Every node begins by waiting; why is in the status.
            step: Some(INITIAL.to_owned()),
        });
        // Steps shorter than the time between two looks are in the record's times only.
        let mut began: Vec<(&str, u64)> =
            node.times.iter().skip(told.times).map(|(name, ms)| (name.as_str(), *ms)).collect();
        told.times = node.times.len();
        if began.last().map(|(name, _)| *name).or(told.step.as_deref()) != Some(step.name()) {
            began.push((step.name(), now_ms));
        }
        let mut changes = Vec::new();
        for (name, elapsed_ms) in began {
            if told.step.as_deref() == Some(name) {
                continue;
            }
            told.step = Some(name.to_owned());
            changes.push(Change::Step {
                elapsed_ms,
                id: node.id.clone(),
                node: node.hostname.clone(),
                role: node.role,
                step: name.to_owned(),
                detail: if name == step.name() { detail(step) } else { None },
            });
        }
        changes
    }
}

/// Name of the step that every node begins with.
const INITIAL: &str = "waiting";

/// A phase in words.
pub(crate) fn phase_words(phase: &Phase) -> String {
    match phase {
        Phase::Running => "running".into(),
        Phase::Paused => "paused".into(),
        Phase::Halted { reason } => format!("halted: {reason}"),
        Phase::Aborting => "aborting".into(),
        Phase::Ended { aborted: false } => "ended".into(),
        Phase::Ended { aborted: true } => "aborted".into(),
    }
}

/// How a node's work ended, if it has.
pub(crate) fn outcome(step: &Step) -> Option<&Outcome> {
    match step {
        Step::Waiting { .. } | Step::Working { .. } => None,
        Step::Held { outcome, .. } | Step::Restoring { outcome, .. } | Step::Done { outcome } => Some(outcome),
    }
}

/// What there is to say of a step beyond its name.
pub(crate) fn detail(step: &Step) -> Option<String> {
    match outcome(step)? {
        Outcome::Upgraded { engine_down_ms } => Some(format!("engine down {}", seconds(*engine_down_ms))),
        Outcome::RolledBack { reason, .. } => Some(reason.clone()),
        Outcome::Failed { reason, hint } => Some(format!("{reason}; {hint}")),
        Outcome::Current => Some("it had the bundle's files already".into()),
        Outcome::Untouched => None,
    }
}

/// Whether there is nothing more to follow, and how it ended.
pub(crate) fn verdict(rollout: &RolloutView, nodes: &[NodeStatus]) -> Option<Exit> {
    let steps = || nodes.iter().filter_map(|node| node.step.as_ref());
    match &rollout.phase {
        Phase::Running | Phase::Paused | Phase::Aborting => None,
        // Nodes in work finish; after that somebody has to decide.
        Phase::Halted { .. } if steps().any(Step::in_work) => None,
        Phase::Halted { .. } | Phase::Ended { aborted: true } => Some(Exit::Failed),
        Phase::Ended { aborted: false } => {
            let well = steps().all(|step| match step {
                Step::Done { outcome: Outcome::Upgraded { .. } | Outcome::Current } => true,
                Step::Done { outcome: Outcome::RolledBack { .. } | Outcome::Untouched | Outcome::Failed { .. } }
                | Step::Waiting { .. }
                | Step::Working { .. }
                | Step::Held { .. }
                | Step::Restoring { .. } => false,
            });
            Some(if well { Exit::Done } else { Exit::Failed })
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::model::{Availability, LeaseRecord, Work};
    use requeen_protocol::{LeaseId, RolloutId};

    /// A node of a status, at `step`.
    pub(crate) fn node(hostname: &str, role: Role, step: Option<Step>, times: &[(&str, u64)]) -> NodeStatus {
        NodeStatus {
            id: format!("id-{hostname}"),
            hostname: hostname.into(),
            role,
            leader: hostname == "m1",
            availability: Availability::Active,
            ready: true,
            engine: "20.10.24".into(),
            step,
            times: times.iter().map(|(name, ms)| ((*name).into(), *ms)).collect(),
            since_ms: Some(1500),
            agent: None,
            silent_secs: Some(0),
            waiting: None,
            why: None,
            troubles: vec![],
        }
    }

    /// A status of these nodes.
    pub(crate) fn status(phase: Option<Phase>, nodes: Vec<NodeStatus>) -> StatusView {
        StatusView {
            server_version: "0.1.0".into(),
            server_node: "m1".into(),
            has_leader: true,
            rollout: phase.map(|phase| RolloutView {
                id: RolloutId("r1".into()),
                to: "26.1.5".into(),
                phase,
                owner: "m1".into(),
                started_at: "2026-11-21T12:00:00Z".into(),
                elapsed_ms: 12_345,
                limit: None,
            }),
            without_record: Vec::new(),
            nodes,
        }
    }

    /// A step of a node in work.
    pub(crate) fn working(work: Work) -> Step {
        let lease = LeaseRecord { id: LeaseId("l1".into()), epoch: 1, forced: false };
        Step::Working { lease, before: Availability::Active, work }
    }

    /// The step of a node that has ended so.
    pub(crate) fn done(outcome: Outcome) -> Step {
        Step::Done { outcome }
    }

    const WAITING: Step = Step::Waiting { by_hand: false, forced: false };

    fn lines(tracker: &mut Tracker, status: &StatusView) -> Vec<String> {
        tracker.changes(status).iter().map(Change::line).collect()
    }

    #[test]
    fn each_step_is_told_once_and_none_is_lost() {
        let mut tracker = Tracker::default();
        let m2 = |step, times: &[_]| status(Some(Phase::Running), vec![node("m2", Role::Manager, Some(step), times)]);
        assert_eq!(lines(&mut tracker, &m2(WAITING, &[("waiting", 0)])), Vec::<String>::new());
        let draining = m2(working(Work::Draining), &[("waiting", 0), ("granted", 900), ("draining", 1000)]);
        assert_eq!(lines(&mut tracker, &draining), ["0.9s m2 manager granted", "1.0s m2 manager draining"]);
        assert_eq!(lines(&mut tracker, &draining), Vec::<String>::new());
        // The record's times have not been written yet: the status' own clock stands in.
        let emptying = m2(working(Work::Emptying), &[("waiting", 0), ("granted", 900), ("draining", 1000)]);
        assert_eq!(lines(&mut tracker, &emptying), ["12.3s m2 manager emptying"]);
        let upgraded = m2(
            done(Outcome::Upgraded { engine_down_ms: 1234 }),
            &[("waiting", 0), ("granted", 900), ("draining", 1000), ("emptying", 1100), ("upgraded", 9000)],
        );
        assert_eq!(lines(&mut tracker, &upgraded), ["9.0s m2 manager upgraded (engine down 1.2s)"]);
    }

    #[test]
    fn nodes_are_told_in_the_order_of_time() {
        let view = status(
            Some(Phase::Halted { reason: "w1 was rolled back".into() }),
            vec![
                node("w2", Role::Worker, Some(working(Work::Granted)), &[("granted", 700)]),
                node("w1", Role::Worker, Some(working(Work::Granted)), &[("granted", 300)]),
            ],
        );
        assert_eq!(
            lines(&mut Tracker::default(), &view),
            ["0.3s w1 worker granted", "0.7s w2 worker granted", "12.3s rollout r1 halted: w1 was rolled back"]
        );
    }

    #[test]
    fn changes_as_json() {
        let view = status(
            Some(Phase::Ended { aborted: false }),
            vec![node("m2", Role::Manager, Some(working(Work::Draining)), &[("draining", 1000)])],
        );
        let json: Vec<_> =
            Tracker::default().changes(&view).iter().map(|c| serde_json::to_string(c).unwrap()).collect();
        assert_eq!(
            json,
            [
                r#"{"event":"step","elapsed_ms":1000,"id":"id-m2","node":"m2","role":"manager","step":"draining"}"#,
                r#"{"event":"phase","elapsed_ms":12345,"rollout":"r1","phase":"ended","aborted":false}"#,
            ]
        );
    }

    #[test]
    fn verdicts() {
        let upgraded = || done(Outcome::Upgraded { engine_down_ms: 1 });
        let back = || done(Outcome::RolledBack { reason: "x".into(), log: vec![] });
        let ended = Phase::Ended { aborted: false };
        let halted = Phase::Halted { reason: "x".into() };
        for (phase, steps, expected) in [
            (Phase::Running, vec![upgraded()], None),
            (ended.clone(), vec![upgraded(), done(Outcome::Current)], Some(Exit::Done)),
            (ended.clone(), vec![upgraded(), back()], Some(Exit::Failed)),
            (ended.clone(), vec![done(Outcome::Untouched)], Some(Exit::Failed)),
            (ended, vec![upgraded(), WAITING], Some(Exit::Failed)),
            (Phase::Ended { aborted: true }, vec![upgraded()], Some(Exit::Failed)),
            (halted.clone(), vec![back(), working(Work::Granted)], None),
            (halted, vec![back(), WAITING], Some(Exit::Failed)),
        ] {
            let nodes = steps.into_iter().map(|step| node("w1", Role::Worker, Some(step), &[])).collect();
            let view = status(Some(phase.clone()), nodes);
            assert_eq!(verdict(view.rollout.as_ref().unwrap(), &view.nodes), expected, "{phase:?}");
        }
    }
}
