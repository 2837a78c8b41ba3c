//! A slot that the operator frees, and what its node may say after that. Silence alone frees none.

use requeen_protocol::{NodeId, NodeState};

use super::model::{AgentView, Availability, Entry, NodeView, Observed, Outcome, Rollout, Step, Work};
use super::{SILENT_SECS, gates, grants, numbered_lease};

/// Name of the step of a node that was released or that failed otherwise.
const FAILED: &str = "failed";

/// Why a node's slot is not the operator's to free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It holds none.
    NoSlot,
    /// Its agent is heard.
    Heard,
    /// Nobody has listened for long enough to call it silent.
    TooEarly {
        /// How long one has to go on listening, seconds.
        left_secs: u64,
    },
}

/// Whether the node's slot may be freed: it holds one, and its agent is silent or it has left the swarm. An agent that
/// was never heard is silent only to one who has listened for so long, `listening_secs`.
pub fn may_free(entry: &Entry, observed: &Observed, id: &NodeId, listening_secs: u64) -> Result<(), Kept> {
    if !entry.step.in_work() {
        return Err(Kept::NoSlot);
    }
    if !observed.nodes.contains_key(id) {
        return Ok(());
    }
    match observed.agents.get(id) {
        Some(agent) if agent.silent_secs <= SILENT_SECS => Err(Kept::Heard),
        None if listening_secs <= SILENT_SECS => Err(Kept::TooEarly { left_secs: SILENT_SECS + 1 - listening_secs }),
        Some(_) | None => Ok(()),
    }
}

/// Whether the engine of a node that was removed from the swarm was certainly not stopped under its lease: no permit was
/// given, and its own last word is of no later step, as it may be where the record was made again. It can't get a permit
/// any more, so its slot is free. That is somebody's word, `docker node rm`, and not silence.
pub(super) fn is_untouched(work: &Work, agent: Option<&AgentView>) -> bool {
    let Some(agent) = agent.filter(|_| work.is_before_the_permit()) else {
        return false;
    };
    match agent.report.state {
        NodeState::Idle
        | NodeState::Staging { .. }
        | NodeState::Staged { .. }
        | NodeState::Refused { .. }
        | NodeState::Leased { .. }
        | NodeState::Linked { .. }
        | NodeState::Cleaned { .. } => true,
        NodeState::Swapping { .. }
        | NodeState::Running { .. }
        | NodeState::Upgraded { .. }
        | NodeState::RolledBack { .. }
        | NodeState::Stuck { .. } => false,
    }
}

/// What is recorded of a node whose slot `uid` frees. Its availability stays as it is now.
pub fn freed(entry: &Entry, node: Option<&NodeView>, uid: u32) -> Step {
    let when = match &entry.step {
        Step::Restoring { outcome, .. } => format!("after it was {}", outcome.name()),
        Step::Waiting { .. } | Step::Working { .. } | Step::Held { .. } | Step::Done { .. } => {
            format!("while {}", entry.step.name())
        }
    };
    let reason = format!("released by the operator (uid {uid}) {when}");
    Step::Done { outcome: Outcome::Failed { reason, hint: hint(entry, node) } }
}

/// What is left to do on a node that was released.
pub fn hint(entry: &Entry, node: Option<&NodeView>) -> String {
    let name = &entry.hostname;
    let Some(node) = node else {
        return format!("it has left the swarm; `requeen upgrade --only {name}` once it is back");
    };
    match before(&entry.step) {
        Some(before) if before != node.availability => format!(
            "its availability was left as it is, {}: see which engine runs, then `docker node update --availability \
             {before} {name}`",
            node.availability
        ),
        Some(_) | None => format!("its availability is {}, as before: see which engine runs there", node.availability),
    }
}

/// The availability that the node had before it was drained.
pub fn before(step: &Step) -> Option<Availability> {
    match step {
        Step::Working { before, .. } | Step::Held { before, .. } | Step::Restoring { before, .. } => Some(*before),
        Step::Waiting { .. } | Step::Done { .. } => None,
    }
}

/// The next step of a node that counts as failed and is heard again, by what it says of the lease that it had last. Its
/// own final word is its true outcome. A new engine that runs and that the swarm sees only has its files to put in order;
/// for that it is in work once more, and its availability stays what it is now.
pub(super) fn heard_again(rollout: &Rollout, observed: &Observed, id: &NodeId, outcome: &Outcome) -> Option<Step> {
    match outcome {
        Outcome::Failed { .. } => {}
        Outcome::Upgraded { .. } | Outcome::Current | Outcome::RolledBack { .. } | Outcome::Untouched => return None,
    }
    let (node, agent) = (observed.nodes.get(id)?, observed.agents.get(id)?);
    let number = grants(rollout, id);
    let lease = numbered_lease(rollout, id, number, false);
    if number == 0 || agent.silent_secs > SILENT_SECS || agent.report.state.lease() != Some(&lease.id) {
        return None;
    }
    match &agent.report.state {
        NodeState::Upgraded { engine_down_ms, .. } => {
            Some(Step::Done { outcome: Outcome::Upgraded { engine_down_ms: *engine_down_ms } })
        }
        NodeState::RolledBack { reason, log, .. } => {
            Some(Step::Done { outcome: Outcome::RolledBack { reason: reason.clone(), log: log.clone() } })
        }
        NodeState::Running { .. } if is_seen(node, agent) => {
            Some(Step::Working { lease, before: node.availability, work: Work::Settling })
        }
        NodeState::Idle
        | NodeState::Staging { .. }
        | NodeState::Staged { .. }
        | NodeState::Refused { .. }
        | NodeState::Leased { .. }
        | NodeState::Linked { .. }
        | NodeState::Swapping { .. }
        | NodeState::Running { .. }
        | NodeState::Stuck { .. }
        | NodeState::Cleaned { .. } => None,
    }
}

/// Whether the swarm sees the engine that the agent speaks of. What the node's object was like before the stop is
/// forgotten; a node that was down has changed since.
fn is_seen(node: &NodeView, agent: &AgentView) -> bool {
    gates::unseen(node, agent, 0).is_none()
}

/// Whether the node may yet stop its engine without another word: it was given a permit, counts as failed, and has not
/// said since that it is past that point. The swarm may well see it in full health until then.
pub(super) fn may_restart(rollout: &Rollout, observed: &Observed, id: &NodeId) -> bool {
    let Some(Entry { step: Step::Done { outcome: Outcome::Failed { .. } }, times, .. }) = rollout.nodes.get(id) else {
        return false;
    };
    let last = times.iter().rev().map(|(step, _)| step.as_str()).find(|step| *step != FAILED);
    let heard = observed.agents.get(id).filter(|agent| agent.silent_secs <= SILENT_SECS);
    matches!(last, Some("swapping" | "switching-back"))
        && heard.is_none_or(|agent| matches!(agent.report.state, NodeState::Swapping { .. }))
}

/// Whether the node was heard again after it had counted as failed, and is still drained: nobody but the operator
/// changes that.
pub fn left_drained(entry: &Entry, node: &NodeView) -> bool {
    let failed = |(step, _): &(String, u64)| step == FAILED;
    let heard_again = match &entry.step {
        Step::Done { outcome: Outcome::Failed { .. } }
        | Step::Waiting { .. }
        | Step::Working { .. }
        | Step::Held { .. }
        | Step::Restoring { .. } => false,
        Step::Done {
            outcome: Outcome::Upgraded { .. } | Outcome::Current | Outcome::RolledBack { .. } | Outcome::Untouched,
        } => entry.times.iter().any(failed),
    };
    heard_again && node.availability == Availability::Drain
}
