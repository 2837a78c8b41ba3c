//! What the operator sees, from what was observed and recorded. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use requeen_protocol::{NodeId, NodeState, Problem, RolloutId, Target};

use super::standalone;
use crate::api::{LeftOut, NodeStatus, PlanView, PlannedNode, RolloutView, StatusView, TimeLimit};
use crate::clocks;
use crate::plan::SILENT_SECS;
use crate::plan::freed;
use crate::plan::locked;
use crate::plan::model::{AgentView, Availability, Entry, IN_WORK, Observed, Role, Rollout, Step};
use crate::plan::reasons::{Refusal, WaitingFor};
use crate::plan::refuse;
use crate::probe::StepSpan;
use crate::record::is_open;

/// Milliseconds from `from` to `to`, 0 if `to` is earlier.
pub(crate) fn millis_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

/// The status of everything.
pub(super) fn status(
    observed: &Observed,
    rollout: Option<&Rollout>,
    waiting: &BTreeMap<NodeId, WaitingFor>,
    orphans: &BTreeSet<RolloutId>,
    elapsed_ms: u64,
) -> StatusView {
    let everyone = observed.nodes.keys().cloned().collect();
    let removed = rollout.filter(|rollout| is_open(rollout)).into_iter().flat_map(|rollout| {
        let gone = |(id, entry): &(&NodeId, &Entry)| entry.step.in_work() && !observed.nodes.contains_key(*id);
        rollout
            .nodes
            .iter()
            .filter(gone)
            .map(|(id, entry)| removed_node(observed, rollout, id, entry, waiting, elapsed_ms))
    });
    let nodes = refuse::order(observed, &everyone)
        .into_iter()
        .filter_map(|id| {
            let node = observed.nodes.get(&id)?;
            let entry = rollout.and_then(|rollout| rollout.nodes.get(&id));
            let agent = observed.agents.get(&id);
            let open = rollout.filter(|rollout| is_open(rollout));
            let why = entry.and_then(|entry| match (&entry.step, open) {
                // Nobody but the operator gives these their availability back.
                (Step::Done { .. }, _) => freed::left_drained(entry, node).then_some(WaitingFor::LeftDrained),
                // An abort leaves it so, and the operator has to know for as long as it is so.
                (Step::Held { .. }, None) => Some(WaitingFor::KeptDrained),
                (Step::Waiting { .. } | Step::Working { .. } | Step::Restoring { .. }, None) => None,
                (Step::Waiting { .. } | Step::Working { .. } | Step::Held { .. } | Step::Restoring { .. }, Some(_)) => {
                    waiting.get(&id).cloned()
                }
            });
            // A node outside the rollout may be on its way into it.
            let why = why.or_else(|| waiting.get(&id).filter(|_| entry.is_none() && open.is_some()).cloned());
            // Of all reasons for silence the one that only the operator can end.
            let why = locked::may_be_locked(observed, &id).or(why);
            let troubles = troubles(entry, agent, rollout);
            Some(NodeStatus {
                id: id.to_string(),
                hostname: node.hostname.clone(),
                role: node.role,
                leader: node.leader,
                availability: node.availability,
                ready: node.ready,
                engine: node.engine_version.clone(),
                step: entry.map(|entry| entry.step.clone()),
                times: entry.map(|entry| entry.times.clone()).unwrap_or_default(),
                since_ms: open.and(entry).map(|entry| since_ms(entry, elapsed_ms)),
                agent: agent.map(|agent| agent.report.state.clone()),
                silent_secs: agent.map(|agent| agent.silent_secs),
                why: why.as_ref().map(|why| with_trouble(why, entry, &troubles)),
                waiting: why,
                troubles,
            })
        })
        .chain(removed)
        .collect();
    StatusView {
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        server_node: hostname(observed, &observed.me),
        has_leader: observed.has_leader,
        rollout: rollout.map(|rollout| rollout_view(observed, rollout, elapsed_ms)),
        without_record: orphans.iter().cloned().collect(),
        nodes,
    }
}

/// Adds to what is wrong on each node that its clock is off, as long as it is heard.
pub(super) fn name_clocks(status: &mut StatusView, off: &BTreeMap<NodeId, i64>) {
    let here = status.server_node.clone();
    for node in &mut status.nodes {
        let heard = node.silent_secs.is_some_and(|secs| secs <= SILENT_SECS);
        let ahead = off.get(&NodeId::from(node.id.as_str())).filter(|_| heard);
        node.troubles.extend(ahead.map(|ahead| clocks::trouble(*ahead, &here)));
    }
}

/// A node that the swarm does not list any more and that holds a slot all the same: the operator has to know.
fn removed_node(
    observed: &Observed,
    rollout: &Rollout,
    id: &NodeId,
    entry: &Entry,
    waiting: &BTreeMap<NodeId, WaitingFor>,
    elapsed_ms: u64,
) -> NodeStatus {
    let (agent, why) = (observed.agents.get(id), waiting.get(id).cloned());
    NodeStatus {
        id: id.to_string(),
        hostname: entry.hostname.clone(),
        role: entry.role,
        leader: false,
        availability: Availability::Drain,
        ready: false,
        engine: entry.from.clone(),
        step: Some(entry.step.clone()),
        times: entry.times.clone(),
        since_ms: Some(since_ms(entry, elapsed_ms)),
        agent: agent.map(|agent| agent.report.state.clone()),
        silent_secs: agent.map(|agent| agent.silent_secs),
        why: why.as_ref().map(ToString::to_string),
        waiting: why,
        troubles: troubles(Some(entry), agent, Some(rollout)),
    }
}

/// Why a node does not move, in words, with what is wrong on it while it works.
fn with_trouble(why: &WaitingFor, entry: Option<&Entry>, troubles: &[Problem]) -> String {
    match (entry.map(|entry| &entry.step), troubles.last()) {
        (Some(Step::Working { .. }), Some(trouble)) => format!("{why}; {}", trouble.what),
        (Some(_) | None, _) => why.to_string(),
    }
}

/// What is wrong on a node beside what its step says: as its agent says it now, else as it was when its work ended.
fn troubles(entry: Option<&Entry>, agent: Option<&AgentView>, rollout: Option<&Rollout>) -> Vec<Problem> {
    let Some(entry) = entry else { return Vec::new() };
    let report = agent.map(|agent| &agent.report);
    let now = report.filter(|report| report.state.rollout() == rollout.map(|rollout| &rollout.request.id));
    let now = now.map(|report| report.troubles.clone()).unwrap_or_default();
    if now.is_empty() { entry.troubles.clone() } else { now }
}

/// How long a node's step has lasted in a rollout that has run for so long, milliseconds.
pub(super) fn since_ms(entry: &Entry, elapsed_ms: u64) -> u64 {
    elapsed_ms.saturating_sub(entry.times.last().map_or(0, |(_, began)| *began))
}

fn rollout_view(observed: &Observed, rollout: &Rollout, elapsed_ms: u64) -> RolloutView {
    RolloutView {
        id: rollout.request.id.clone(),
        to: target_words(&rollout.request.target),
        phase: rollout.phase.clone(),
        owner: hostname(observed, &rollout.owner.node),
        started_at: rollout.request.started_at.to_string(),
        elapsed_ms,
        limit: rollout.request.policy.not_after.map(|not_after| TimeLimit { not_after, lifted: rollout.limit_lifted }),
    }
}

/// How long a rollout took that has ended, milliseconds.
pub(super) fn took_ms(rollout: &Rollout) -> Option<u64> {
    let ended = ended_at(rollout)?;
    Some(rollout.owner.elapsed_ms.unwrap_or_else(|| millis_between(rollout.request.started_at, ended)))
}

/// When the rollout ended: the last write of a record that has ended is its end.
pub(super) fn ended_at(rollout: &Rollout) -> Option<Timestamp> {
    (!is_open(rollout)).then_some(rollout.owner.renewed)
}

fn target_words(target: &Target) -> String {
    match target {
        Target::Bundle(bundle) => bundle.version.clone(),
        Target::Previous { of } => format!("the engine before rollout {of}"),
    }
}

/// A node's host name, or its ID where the swarm knows it no longer.
pub(super) fn hostname(observed: &Observed, node: &NodeId) -> String {
    observed.nodes.get(node).map_or_else(|| node.to_string(), |node| node.hostname.clone())
}

/// Nodes that run the target already, in the order in which they would move.
pub(super) fn left_out(observed: &Observed, nodes: &std::collections::BTreeSet<NodeId>) -> Vec<LeftOut> {
    refuse::order(observed, nodes)
        .into_iter()
        .filter_map(|id| {
            let node = observed.nodes.get(&id)?;
            Some(LeftOut { id: id.to_string(), hostname: node.hostname.clone(), engine: node.engine_version.clone() })
        })
        .collect()
}

/// The plan of a rollout that has been staged as `id`, or was refused before.
pub(super) fn plan(
    observed: &Observed,
    scope: &BTreeSet<NodeId>,
    id: &RolloutId,
    to: &str,
    policy: String,
    refusals: Vec<Refusal>,
) -> PlanView {
    let nodes: Vec<PlannedNode> = refuse::order(observed, scope)
        .into_iter()
        .filter_map(|node| {
            let view = observed.nodes.get(&node)?;
            let preflight = observed.agents.get(&node).and_then(|agent| match &agent.report.state {
                NodeState::Staged { rollout, preflight } if rollout == id => Some(preflight),
                NodeState::Idle
                | NodeState::Staging { .. }
                | NodeState::Staged { .. }
                | NodeState::Refused { .. }
                | NodeState::Leased { .. }
                | NodeState::Linked { .. }
                | NodeState::Swapping { .. }
                | NodeState::Running { .. }
                | NodeState::Upgraded { .. }
                | NodeState::RolledBack { .. }
                | NodeState::Stuck { .. }
                | NodeState::Cleaned { .. } => None,
            });
            let mut notes = preflight.map(|found| found.notes.clone()).unwrap_or_default();
            notes.extend(preflight.into_iter().flat_map(standalone::notes));
            if observed.autolocked && view.role == Role::Manager {
                notes.push(
                    "the swarm is autolocked: this manager is unlocked after the restart, with the key that is fetched \
                     just before; after a power cut in between type `docker swarm unlock` on it"
                        .to_owned(),
                );
            }
            Some(PlannedNode {
                id: node.to_string(),
                hostname: view.hostname.clone(),
                role: view.role,
                leader: view.leader,
                availability: view.availability,
                from: preflight.map_or_else(|| view.engine_version.clone(), |found| found.from.clone()),
                to: preflight.map_or_else(|| to.to_owned(), |found| found.to.clone()),
                changes: preflight
                    .map(|found| found.changes.iter().map(ToString::to_string).collect())
                    .unwrap_or_default(),
                staged: preflight.is_some(),
                notes,
                containers: preflight.map(|found| found.containers.clone()).unwrap_or_default(),
            })
        })
        .collect();
    PlanView {
        to: to.to_owned(),
        policy,
        nothing_to_do: refusals.is_empty() && nodes.iter().all(|node| node.staged && node.changes.is_empty()),
        nodes,
        refusals,
        left_out: Vec::new(),
    }
}

/// When which step was under way where, for the probe's report. Waiting and being done or held is no
/// step that could disturb anything.
pub(super) fn spans(rollout: &Rollout) -> Vec<StepSpan> {
    let at = |ms: u64| {
        let since = jiff::SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX));
        rollout.request.started_at.checked_add(since).unwrap_or(Timestamp::MAX)
    };
    let mut spans = Vec::new();
    for entry in rollout.nodes.values() {
        for (n, (step, began)) in entry.times.iter().enumerate() {
            if IN_WORK.contains(&step.as_str()) {
                spans.push(StepSpan {
                    node: entry.hostname.clone(),
                    step: step.clone(),
                    from: at(*began),
                    to: entry.times.get(n + 1).map(|(_, ended)| at(*ended)),
                });
            }
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use requeen_protocol::{LeaseId, Report, Speaker, Target};

    use super::*;
    use crate::plan::model::{
        Availability, LeaseRecord, ManagerPolicy, NodeView, Outcome, Owner, Phase, Policy, Request, SCHEMA, Work,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn swarm() -> Observed {
        let node = |id: &str| NodeView {
            id: NodeId::from(id),
            hostname: format!("host-{id}"),
            role: Role::Manager,
            availability: Availability::Drain,
            ready: true,
            leader: false,
            reachable: true,
            engine_version: "26.1.5".to_owned(),
            addr: String::new(),
            index: 1,
        };
        Observed {
            me: NodeId::from("m1"),
            has_leader: true,
            nodes: ["m1", "m2"].map(|id| (NodeId::from(id), node(id))).into(),
            tasks: Vec::new(),
            global_services: Vec::new(),
            agents: BTreeMap::new(),
            autolocked: false,
        }
    }

    fn rollout(phase: Phase, steps: [Step; 2]) -> Rollout {
        let entry = |step| Entry {
            hostname: "host".to_owned(),
            role: Role::Manager,
            from: "20.10.24".to_owned(),
            joined: false,
            step,
            times: vec![("waiting".to_owned(), 0), ("draining".to_owned(), 1000), ("emptying".to_owned(), 3000)],
            troubles: Vec::new(),
        };
        Rollout {
            request: Request {
                schema: SCHEMA,
                id: RolloutId::from("r"),
                target: Target::Previous { of: RolloutId::from("q") },
                policy: Policy {
                    managers: ManagerPolicy::HoldDrained,
                    workers_at_once: 1,
                    manual: false,
                    accept_control_plane_outage: false,
                    allow_downgrade: false,
                    start_timeout_secs: 60,
                    join_timeout_secs: 180,
                    not_after: None,
                    keep_raft_copy: false,
                },
                started_by_uid: 0,
                started_at: at(0),
                short_services: Vec::new(),
                scope_all: true,
                excluded: Default::default(),
            },
            phase,
            owner: Owner { node: NodeId::from("m1"), epoch: 1, renewed: at(60), elapsed_ms: None },
            nodes: ["m1", "m2"].map(NodeId::from).into_iter().zip(steps.map(entry)).collect(),
            limit_lifted: false,
        }
    }

    fn held() -> Step {
        Step::Held { before: Availability::Active, outcome: Outcome::Upgraded { engine_down_ms: 1 } }
    }

    fn shown<'a>(view: &'a StatusView, id: &str) -> &'a NodeStatus {
        view.nodes.iter().find(|node| node.id == id).unwrap()
    }

    #[test]
    fn managers_that_an_abort_leaves_drained_are_named() {
        let done = Step::Done { outcome: Outcome::Untouched };
        let mut aborted = rollout(Phase::Ended { aborted: true }, [held(), done]);
        let view = status(&swarm(), Some(&aborted), &BTreeMap::new(), &BTreeSet::new(), 100_000);
        let (kept, other) = (shown(&view, "m1"), shown(&view, "m2"));
        assert_eq!((&kept.waiting, &other.waiting), (&Some(WaitingFor::KeptDrained), &None));
        assert!(kept.why.as_ref().unwrap().contains("docker node update --availability active"));
        assert_eq!(kept.since_ms, None);
        assert_eq!(took_ms(&aborted), Some(60_000), "the clock stops with the last write");
        aborted.owner.elapsed_ms = Some(50_000);
        assert_eq!(took_ms(&aborted), Some(50_000), "somebody set the time of day meanwhile");
    }

    #[test]
    fn a_node_that_came_back_after_its_release_is_named_while_it_is_drained() {
        let done = || Step::Done { outcome: Outcome::Upgraded { engine_down_ms: 1 } };
        let mut rollout = rollout(Phase::Ended { aborted: false }, [done(), done()]);
        let entry = rollout.nodes.get_mut(&NodeId::from("m1")).unwrap();
        entry.times.extend([("failed".to_owned(), 9000), ("upgraded".to_owned(), 9900)]);
        let view = status(&swarm(), Some(&rollout), &BTreeMap::new(), &BTreeSet::new(), 100_000);
        assert_eq!(shown(&view, "m1").waiting, Some(WaitingFor::LeftDrained));
        assert_eq!(shown(&view, "m2").waiting, None);
    }

    #[test]
    fn an_open_rollout_shows_since_when_and_why() {
        let lease = LeaseRecord { id: LeaseId::from("l"), epoch: 1, forced: false };
        let working = Step::Working { lease, before: Availability::Active, work: Work::Emptying };
        let open = rollout(Phase::Running, [held(), working]);
        let waiting = BTreeMap::from([(NodeId::from("m2"), WaitingFor::Drain)]);
        let view = status(&swarm(), Some(&open), &waiting, &BTreeSet::new(), 100_000);
        let drained = shown(&view, "m2");
        assert_eq!(drained.since_ms, Some(97_000));
        assert_eq!(drained.why.as_deref(), Some("being drained"));
        let view = view.rollout.unwrap();
        assert_eq!((view.elapsed_ms, view.owner.as_str()), (100_000, "host-m1"));
        assert_eq!(view.to, "the engine before rollout q");
    }

    #[test]
    fn in_an_autolocked_swarm_managers_are_unlocked_and_the_plan_says_so() {
        let scope = ["m1", "m2"].map(NodeId::from).into();
        let of = |observed: &Observed| {
            plan(observed, &scope, &RolloutId::from("r"), "26.1.5", "rolling".to_owned(), Vec::new()).nodes
        };
        let mut observed = swarm();
        assert!(of(&observed).iter().all(|node| node.notes.is_empty()));
        observed.autolocked = true;
        observed.nodes.get_mut(&NodeId::from("m2")).unwrap().role = Role::Worker;
        for node in of(&observed) {
            let told = node.notes.iter().any(|note| note.contains("docker swarm unlock"));
            assert_eq!(told, node.role == Role::Manager, "{}: {:?}", node.hostname, node.notes);
        }
    }

    #[test]
    fn a_removed_node_is_shown_as_long_as_it_holds_a_slot() {
        let lease = || LeaseRecord { id: LeaseId::from("l"), epoch: 1, forced: false };
        let working = Step::Working { lease: lease(), before: Availability::Active, work: Work::Settling };
        let mut open = rollout(Phase::Running, [held(), working]);
        let removed = WaitingFor::Removed { node: "host".to_owned() };
        let waiting = BTreeMap::from([(NodeId::from("m2"), removed)]);
        let mut swarm = swarm();
        swarm.nodes.remove(&NodeId::from("m2"));
        let view = status(&swarm, Some(&open), &waiting, &BTreeSet::new(), 100_000);
        let gone = shown(&view, "m2");
        assert_eq!((gone.hostname.as_str(), gone.ready), ("host", false));
        assert!(gone.why.as_ref().unwrap().ends_with("then `requeen release host`"), "{:?}", gone.why);
        open.nodes.get_mut(&NodeId::from("m2")).unwrap().step = Step::Done { outcome: Outcome::Untouched };
        let view = status(&swarm, Some(&open), &BTreeMap::new(), &BTreeSet::new(), 100_000);
        assert!(view.nodes.iter().all(|node| node.id != "m2"), "{:?}", view.nodes);
    }

    #[test]
    fn what_is_wrong_beside_the_work_is_shown_and_outlives_the_executor() {
        let trouble = |what: &str| Problem { what: what.to_owned(), hint: "make room".to_owned() };
        let lease = LeaseRecord { id: LeaseId::from("l"), epoch: 1, forced: false };
        let working = Step::Working { lease, before: Availability::Active, work: Work::Linking };
        let mut open = rollout(Phase::Running, [held(), working]);
        open.nodes.get_mut(&NodeId::from("m1")).unwrap().troubles = vec![trouble("container db")];
        let mut observed = swarm();
        let state = NodeState::Leased { rollout: RolloutId::from("r"), lease: LeaseId::from("l"), task_containers: 0 };
        let report = Report {
            node: NodeId::from("m2"),
            agent_version: "0".to_owned(),
            speaker: Speaker::Executor,
            boot_id: "b".to_owned(),
            engine: None,
            installed: None,
            state,
            seen: None,
            memo: None,
            unreached: Vec::new(),
            troubles: vec![trouble("no space left")],
        };
        observed.agents.insert(NodeId::from("m2"), AgentView { report, silent_secs: 0, state_secs: 0 });
        let waiting = BTreeMap::from([(NodeId::from("m2"), WaitingFor::Links)]);
        let view = status(&observed, Some(&open), &waiting, &BTreeSet::new(), 100_000);
        assert_eq!(shown(&view, "m1").troubles, [trouble("container db")], "as it was when its work ended");
        let working = shown(&view, "m2");
        assert_eq!(working.troubles, [trouble("no space left")]);
        assert!(working.why.as_ref().unwrap().ends_with("; no space left"), "{:?}", working.why);
    }

    #[test]
    fn spans_are_the_steps_that_disturb() {
        let spans = spans(&rollout(Phase::Running, [held(), held()]));
        let brief: Vec<_> = spans.iter().take(2).map(|span| (span.step.as_str(), span.from, span.to)).collect();
        assert_eq!(brief, [("draining", at(1), Some(at(3))), ("emptying", at(3), None)]);
        assert_eq!(spans.len(), 4);
    }
}
