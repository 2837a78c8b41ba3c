//! The operator's word that nothing is to be in work after some time: which nodes may still be begun.
//!
//! What a node will take is not known, so what others of this rollout took stands in for it. Under
//! hold-drained the managers are begun only if there is time for all of them, and are then gone through with:
//! a manager is never left drained for the sake of the clock.

use std::collections::BTreeMap;

use jiff::Timestamp;
use requeen_protocol::NodeId;

use super::model::{Entry, IN_WORK, ManagerPolicy, Outcome, Policy, Role, Rollout, Step};
use super::reasons::WaitingFor;

/// What a worker takes as long as no node has shown it, seconds: half a minute for tasks that use their grace
/// period, seconds for the engine, and a minute until tasks that pull an image or have a health check run again.
const WORKER_SECS: u64 = 120;

/// The same of a manager: beyond a worker's time an election (10 to 20 s) and first answers as long again, each
/// with a margin.
const MANAGER_SECS: u64 = 180;

/// How many nodes are named.
const NAMED: usize = 5;

/// A time limit and what is to be judged by it.
pub struct Limit<'a> {
    until: Timestamp,
    policy: &'a Policy,
    nodes: &'a BTreeMap<NodeId, Entry>,
}

impl<'a> Limit<'a> {
    /// The rollout's limit, unless it has none or the operator has lifted it.
    pub fn of(rollout: &'a Rollout) -> Option<Self> {
        if rollout.limit_lifted { None } else { Self::new(&rollout.request.policy, &rollout.nodes) }
    }

    /// The limit that `policy` sets to `nodes`.
    pub fn new(policy: &'a Policy, nodes: &'a BTreeMap<NodeId, Entry>) -> Option<Self> {
        policy.not_after.map(|until| Self { until, policy, nodes })
    }

    /// Why the node can't be begun any more.
    pub fn closed(&self, id: &NodeId, now: Timestamp) -> Option<WaitingFor> {
        let role = self.nodes.get(id)?.role;
        let together = role == Role::Manager && self.policy.managers == ManagerPolicy::HoldDrained;
        if together && self.managers_begun() {
            return None;
        }
        let each = self.estimate_secs(role);
        let needs_secs = if together { each.saturating_mul(self.waiting_managers()) } else { each };
        let left = u64::try_from(self.until.duration_since(now).as_secs()).unwrap_or(0);
        (left < needs_secs).then_some(WaitingFor::NotAfter { until: self.until, needs_secs })
    }

    /// Whether no node that waits can be begun any more; in words for the operator. Workers wait for every manager, so
    /// their time is over with the managers'.
    pub fn over(&self, now: Timestamp) -> Option<String> {
        let waiting: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|(id, entry)| match entry.step {
                Step::Waiting { forced, .. } => Some((id, entry, forced)),
                Step::Working { .. } | Step::Held { .. } | Step::Restoring { .. } | Step::Done { .. } => None,
            })
            .collect();
        let managers = self.waiting_managers() > 0;
        let over = waiting.iter().all(|(id, entry, forced)| {
            let behind = managers && entry.role == Role::Worker;
            !forced && (behind || self.closed(id, now).is_some())
        });
        if waiting.is_empty() || !over {
            return None;
        }
        let names: Vec<_> = waiting.iter().take(NAMED).map(|(_, entry, _)| entry.hostname.as_str()).collect();
        let more = if waiting.len() > NAMED { ", …" } else { "" };
        let nodes = if waiting.len() == 1 { "node" } else { "nodes" };
        Some(format!("not after {}: {} {nodes} left ({}{more})", self.until, waiting.len(), names.join(", ")))
    }

    /// Whether a manager is in work or held: then the others follow.
    fn managers_begun(&self) -> bool {
        self.nodes.values().filter(|entry| entry.role == Role::Manager).any(|entry| match entry.step {
            Step::Working { .. } | Step::Held { .. } | Step::Restoring { .. } => true,
            Step::Waiting { .. } | Step::Done { .. } => false,
        })
    }

    fn waiting_managers(&self) -> u64 {
        let waits = |entry: &&Entry| entry.role == Role::Manager && matches!(entry.step, Step::Waiting { .. });
        u64::try_from(self.nodes.values().filter(waits).count()).unwrap_or(u64::MAX)
    }

    /// The longest that a node of this role took; before one has, of any; before any has, what is usual.
    fn estimate_secs(&self, role: Role) -> u64 {
        let usual = match role {
            Role::Manager => MANAGER_SECS,
            Role::Worker => WORKER_SECS,
        };
        let longest = |of: &dyn Fn(Role) -> bool| {
            self.nodes.values().filter(|entry| of(entry.role)).filter_map(took_ms).max().map(|ms| ms.div_ceil(1000))
        };
        longest(&|other| other == role).or_else(|| longest(&|_| true)).unwrap_or(usual)
    }
}

/// How long a finished node was in work, milliseconds. What it spent held is not its own time, and how long a node
/// took that failed or was released tells nothing.
fn took_ms(entry: &Entry) -> Option<u64> {
    match &entry.step {
        Step::Done { outcome: Outcome::Upgraded { .. } | Outcome::RolledBack { .. } } => {}
        Step::Done { outcome: Outcome::Current | Outcome::Untouched | Outcome::Failed { .. } }
        | Step::Waiting { .. }
        | Step::Working { .. }
        | Step::Held { .. }
        | Step::Restoring { .. } => return None,
    }
    let ms: u64 = entry
        .times
        .windows(2)
        .filter(|pair| IN_WORK.contains(&pair[0].0.as_str()))
        .map(|pair| pair[1].1.saturating_sub(pair[0].1))
        .sum();
    (ms > 0).then_some(ms)
}

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;
