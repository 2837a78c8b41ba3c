//! Nodes that come and go while a rollout is open.
//!
//! A rollout of all nodes takes in one that joins the swarm: it is listed, stages the target, and gets its lease in its
//! turn. Others do not wait for it to stage: that rule keeps a rollout from beginning in vain, and this one has begun.
//! A node that can't take the target halts nothing, as nothing was touched. One that was removed from the swarm before
//! it got a lease has nothing left to do; that is an operator's word, and not silence.

use requeen_protocol::{NodeId, NodeState};

use super::model::{AgentView, Entry, NodeView, Observed, Outcome, Phase, Rollout, Step};
use super::reasons::WaitingFor;
use super::{Move, Plan, SILENT_SECS};

/// Adds what has to be recorded of nodes that came or went, and why others stay outside.
pub(super) fn come_and_go(rollout: &Rollout, observed: &Observed, plan: &mut Plan) {
    match rollout.phase {
        Phase::Running | Phase::Paused | Phase::Halted { .. } => {}
        Phase::Aborting | Phase::Ended { .. } => return,
    }
    for (id, entry) in &rollout.nodes {
        if let Some(outcome) = over(rollout, observed, id, entry) {
            plan.moves.push(Move::Record { node: id.clone(), step: Step::Done { outcome } });
        }
    }
    for (id, node) in observed.nodes.iter().filter(|(id, _)| !rollout.nodes.contains_key(*id)) {
        match outside(rollout, observed.agents.get(id), node) {
            Some(why) => {
                plan.waiting.insert(id.clone(), why);
            }
            None => plan.moves.push(Move::Join { node: id.clone(), entry: first_entry(node) }),
        }
    }
}

/// How a node that waits has ended, if it has.
fn over(rollout: &Rollout, observed: &Observed, id: &NodeId, entry: &Entry) -> Option<Outcome> {
    match entry.step {
        Step::Waiting { .. } => {}
        Step::Working { .. } | Step::Held { .. } | Step::Restoring { .. } | Step::Done { .. } => return None,
    }
    if !observed.nodes.contains_key(id) {
        return Some(Outcome::Untouched);
    }
    // Of the others this was asked before the rollout began.
    let agent = observed.agents.get(id).filter(|_| entry.joined)?;
    let state = &agent.report.state;
    if state.rollout() != Some(&rollout.request.id) {
        return None;
    }
    match state {
        NodeState::Staged { preflight, .. } => preflight.changes.is_empty().then_some(Outcome::Current),
        NodeState::Refused { problems, .. } => {
            let problem = problems.first()?;
            Some(Outcome::Failed { reason: problem.what.clone(), hint: problem.hint.clone() })
        }
        NodeState::Stuck { reason, hint, .. } => Some(Outcome::Failed { reason: reason.clone(), hint: hint.clone() }),
        NodeState::Idle
        | NodeState::Staging { .. }
        | NodeState::Leased { .. }
        | NodeState::Linked { .. }
        | NodeState::Swapping { .. }
        | NodeState::Running { .. }
        | NodeState::Upgraded { .. }
        | NodeState::RolledBack { .. }
        | NodeState::Cleaned { .. } => None,
    }
}

/// Whether the rollout is for any node that joins, this one included.
pub(super) fn takes_in(rollout: &Rollout, id: &NodeId) -> bool {
    rollout.request.scope_all && !rollout.request.excluded.contains(id)
}

/// Why a node of the swarm is not taken into the rollout, unless it is.
fn outside(rollout: &Rollout, agent: Option<&AgentView>, node: &NodeView) -> Option<WaitingFor> {
    if !takes_in(rollout, &node.id) {
        return Some(WaitingFor::OutOfScope);
    }
    match agent {
        None => Some(WaitingFor::Agent),
        Some(agent) if agent.silent_secs > SILENT_SECS => Some(WaitingFor::SilentAgent { secs: agent.silent_secs }),
        Some(_) => None,
    }
}

fn first_entry(node: &NodeView) -> Entry {
    Entry {
        hostname: node.hostname.clone(),
        role: node.role,
        from: node.engine_version.clone(),
        joined: true,
        step: Step::Waiting { by_hand: false, forced: false },
        times: Vec::new(),
        troubles: Vec::new(),
    }
}
