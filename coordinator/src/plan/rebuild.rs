//! Making a rollout's record again from what the nodes keep, when somebody has removed it.
//!
//! Every node that was granted a lease keeps a [`Memo`], which has what no node could know by itself: the request, and
//! the availability before the drain. Where the node stands it says with every report. What is lost is when things
//! happened.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use requeen_protocol::{LeaseId, NodeId, NodeState, PermitId, RolloutId};
use serde::{Deserialize, Serialize};

use super::model::{
    AgentView, Availability, Entry, LeaseRecord, NodeView, Observed, Outcome, Owner, Phase, Request, Role, Rollout,
    Step, Work,
};

/// Name of the step that a grant begins.
const GRANTED: &str = "granted";

/// What a node under a lease keeps for the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memo {
    /// The rollout's request.
    pub request: Request,
    /// The node's host name when the rollout started.
    pub hostname: String,
    /// Its engine's version then.
    pub from: String,
    /// Its availability before the drain.
    pub before: Availability,
    /// How many leases it had been granted, this one included.
    pub leases: usize,
}

impl Memo {
    /// As it is kept.
    pub fn to_text(&self) -> String {
        // No key of it is anything but a string, so it always serializes.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The memo of an agent, if it keeps one that this version reads.
    fn of(agent: &AgentView) -> Option<Self> {
        serde_json::from_str(agent.report.memo.as_deref()?).ok()
    }
}

/// Rollouts that nodes hold leases of and that are not among `known`, the records that there are.
pub fn orphans(observed: &Observed, known: &BTreeSet<RolloutId>) -> BTreeSet<RolloutId> {
    let memos = observed.agents.values().filter_map(Memo::of);
    memos.map(|memo| memo.request.id).filter(|id| !known.contains(id)).collect()
}

/// The rollout `id` as its nodes tell it, driven by this coordinator in `epoch`; none if no node keeps its memo.
pub fn rebuild(observed: &Observed, id: &RolloutId, epoch: u64, now: Timestamp) -> Option<Rollout> {
    let memos: BTreeMap<&NodeId, Memo> = observed
        .agents
        .iter()
        .filter_map(|(node, agent)| Some((node, Memo::of(agent)?)))
        .filter(|(_, memo)| memo.request.id == *id)
        .collect();
    let request = memos.values().next()?.request.clone();
    let mut nodes = BTreeMap::new();
    for (node, agent) in &observed.agents {
        let Some(view) = observed.nodes.get(node) else { continue };
        let memo = memos.get(node);
        let state = &agent.report.state;
        let (Some(step), from) = (match memo {
            Some(memo) => (step_under_lease(state, view, memo, epoch), memo.from.clone()),
            None => (step_without(state, id), view.engine_version.clone()),
        }) else {
            continue;
        };
        let hostname = memo.map_or_else(|| view.hostname.clone(), |memo| memo.hostname.clone());
        let since = u64::try_from(now.duration_since(request.started_at).as_millis()).unwrap_or_default();
        // Leases are numbered by how often one was granted.
        let again = usize::from(step.name() == GRANTED);
        let mut times = vec![(GRANTED.to_owned(), since); memo.map_or(0, |memo| memo.leases + again)];
        if step.name() != GRANTED {
            times.push((step.name().to_owned(), since));
        }
        let troubles = Vec::new();
        nodes.insert(node.clone(), Entry { hostname, role: view.role, from, step, times, joined: false, troubles });
    }
    let owner = Owner { node: observed.me.clone(), epoch, renewed: now, elapsed_ms: None };
    Some(Rollout { request, phase: Phase::Running, owner, nodes, limit_lifted: false })
}

/// Where a node goes on that was granted a lease.
fn step_under_lease(state: &NodeState, node: &NodeView, memo: &Memo, epoch: u64) -> Option<Step> {
    let working = |id: LeaseId, work: Work| {
        let lease = LeaseRecord { id, epoch, forced: false };
        Some(Step::Working { lease, before: memo.before, work })
    };
    // The node object has changed since its stop, or will: any index is older than that.
    let permitted = |lease: &LeaseId| Work::Permitted { permit: PermitId(format!("{lease}.stop")), index: 0 };
    match state {
        // Its lease is over; it may be drained still.
        NodeState::Idle
        | NodeState::Staging { .. }
        | NodeState::Staged { .. }
        | NodeState::Refused { .. }
        | NodeState::Cleaned { .. } => {
            working(LeaseId(format!("{}.{}.{}", memo.request.id, node.id, memo.leases + 1)), Work::Granted)
        }
        // The stop's conditions are all looked at again.
        NodeState::Leased { lease, .. } | NodeState::Linked { lease, .. } => working(lease.clone(), Work::Draining),
        NodeState::Swapping { lease, .. } | NodeState::Running { lease, .. } | NodeState::RolledBack { lease, .. } => {
            working(lease.clone(), permitted(lease))
        }
        NodeState::Upgraded { engine_down_ms, .. } if node.availability == memo.before => {
            let outcome = Outcome::Upgraded { engine_down_ms: *engine_down_ms };
            // Whether a manager's tasks run again was not waited for before another node was drained.
            Some(match node.role {
                Role::Manager => Step::Restoring { before: memo.before, outcome },
                Role::Worker => Step::Done { outcome },
            })
        }
        NodeState::Upgraded { lease, .. } => working(lease.clone(), Work::Settling),
        NodeState::Stuck { reason, hint, .. } => {
            Some(Step::Done { outcome: Outcome::Failed { reason: reason.clone(), hint: hint.clone() } })
        }
    }
}

/// Where a node goes on that holds what the rollout staged and was granted nothing.
fn step_without(state: &NodeState, id: &RolloutId) -> Option<Step> {
    match state {
        NodeState::Staged { rollout, preflight } if rollout == id => Some(if preflight.changes.is_empty() {
            Step::Done { outcome: Outcome::Current }
        } else {
            Step::Waiting { by_hand: false, forced: false }
        }),
        NodeState::Staging { rollout, .. } | NodeState::Refused { rollout, .. } if rollout == id => {
            Some(Step::Waiting { by_hand: false, forced: false })
        }
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
    }
}
