//! Which order a node gets: a function of the record and of what the node reports.

use std::collections::BTreeSet;

use requeen_protocol::{NodeId, NodeState, Order, Report, RolloutId, StopPermit, SwapPhase, Target};

use super::joins;
use super::model::{Availability, PERMIT_SECS, Phase, Rollout, Step, Work};
use super::rebuild::Memo;

/// Staging under way before a rollout is recorded: for `plan`, and for `upgrade` until all agents
/// have answered. A rollout that follows has the same ID, so nothing is staged twice.
#[derive(Clone, Debug, PartialEq)]
pub struct Staging {
    /// The ID.
    pub id: RolloutId,
    /// What to stage.
    pub target: Target,
    /// See [`super::model::Policy::allow_downgrade`].
    pub allow_downgrade: bool,
    /// See [`super::model::Policy::start_timeout_secs`].
    pub start_timeout_secs: u64,
    /// See [`super::model::Policy::keep_raft_copy`].
    pub keep_raft_copy: bool,
    /// The nodes asked.
    pub scope: BTreeSet<NodeId>,
}

impl Staging {
    fn order(&self) -> Order {
        Order::Stage {
            rollout: self.id.clone(),
            target: self.target.clone(),
            allow_downgrade: self.allow_downgrade,
            start_timeout_secs: self.start_timeout_secs,
            keep_raft_copy: self.keep_raft_copy,
        }
    }
}

/// How long a node may hold what it staged for a rollout that nobody knows, seconds. Its coordinator was killed while it
/// prepared; another one that prepares is done long before.
const STRAY_SECS: u64 = 3600;

/// What a coordinator knows when it answers an agent.
#[derive(Clone, Copy, Debug)]
pub struct Knows<'a> {
    /// The open rollout.
    pub rollout: Option<&'a Rollout>,
    /// Whether this coordinator drives it.
    pub drives: bool,
    /// Host name of the node whose coordinator does.
    pub owner: Option<&'a str>,
    /// Rollouts on record that have ended.
    pub ended: &'a BTreeSet<RolloutId>,
    /// What this coordinator prepares.
    pub staging: Option<&'a Staging>,
    /// What it has prepared since it started.
    pub prepared: &'a BTreeSet<RolloutId>,
    /// Whether the managers have a leader, as far as it knows.
    pub has_leader: bool,
}

#[cfg(test)]
impl<'a> Knows<'a> {
    /// What the owner of `rollout` knows.
    pub(crate) fn driving(rollout: &'a Rollout, has_leader: bool) -> Self {
        const NONE: &BTreeSet<RolloutId> = &BTreeSet::new();
        Self {
            rollout: Some(rollout),
            drives: true,
            owner: None,
            ended: NONE,
            staging: None,
            prepared: NONE,
            has_leader,
        }
    }
}

/// The order for the node that sent `report`, whose state has lasted for `state_secs`. While the managers have no leader
/// a report is taken and nothing is granted.
pub fn order_for(knows: Knows<'_>, report: &Report, state_secs: u64) -> Order {
    let open = knows.rollout.filter(|rollout| !matches!(rollout.phase, Phase::Ended { .. }));
    if open.is_some() && !knows.drives {
        return Order::Standby { owner: knows.owner.map(str::to_owned) };
    }
    if !knows.has_leader {
        return wait("the managers have no leader");
    }
    let forget_or_wait = |why| forget_or_wait(knows, report, state_secs, why);
    if let Some(rollout) = open {
        return match rollout.nodes.get(&report.node) {
            Some(entry) => in_rollout(rollout, &entry.step, report),
            // The host may have been in the rollout already, as another node: what it staged then is as good.
            None if joins::takes_in(rollout, &report.node) && report.state.rollout() == Some(&rollout.request.id) => {
                wait("the rollout is about to take this node in")
            }
            None => forget_or_wait("this node is not in the rollout's scope"),
        };
    }
    match knows.staging {
        Some(staging) if staging.scope.contains(&report.node) => match report.state.rollout() {
            // What an earlier rollout left is put away first.
            Some(other) if *other != staging.id => Order::Forget { rollout: other.clone() },
            Some(_) | None => staging.order(),
        },
        Some(_) | None => forget_or_wait("no rollout"),
    }
}

fn wait(why: &str) -> Order {
    Order::Wait { why: why.to_owned() }
}

/// A node that still holds something of a rollout that is over puts it away. What nobody here knows may be what another
/// coordinator prepares, or a rollout whose record was removed: that is left alone.
fn forget_or_wait(knows: Knows<'_>, report: &Report, state_secs: u64, why: &str) -> Order {
    let Some(rollout) = report.state.rollout() else { return wait(why) };
    let stray = report.memo.is_none() && state_secs > STRAY_SECS;
    if knows.ended.contains(rollout) || knows.prepared.contains(rollout) || stray {
        Order::Forget { rollout: rollout.clone() }
    } else {
        wait(&format!("rollout {rollout} is not on record here"))
    }
}

/// What the node keeps of the rollout: see [`super::rebuild`].
fn memo(rollout: &Rollout, report: &Report, before: Availability) -> String {
    let entry = rollout.nodes.get(&report.node);
    Memo {
        request: rollout.request.clone(),
        hostname: entry.map(|entry| entry.hostname.clone()).unwrap_or_default(),
        from: entry.map(|entry| entry.from.clone()).unwrap_or_default(),
        before,
        leases: super::grants(rollout, &report.node),
    }
    .to_text()
}

fn in_rollout(rollout: &Rollout, step: &Step, report: &Report) -> Order {
    let request = &rollout.request;
    let stage = || Order::Stage {
        rollout: request.id.clone(),
        target: request.target.clone(),
        allow_downgrade: request.policy.allow_downgrade,
        start_timeout_secs: request.policy.start_timeout_secs,
        keep_raft_copy: request.policy.keep_raft_copy,
    };
    match report.state.rollout() {
        Some(other) if *other != request.id => return Order::Forget { rollout: other.clone() },
        Some(_) | None => {}
    }
    match step {
        Step::Waiting { .. } => stage(),
        Step::Held { .. } | Step::Restoring { .. } | Step::Done { .. } => {
            wait("this node is done; the rollout goes on")
        }
        Step::Working { lease, before, work } => {
            let lease = lease.to_wire(&request.id, &report.node);
            let hold = |lease| Order::Hold { lease, memo: memo(rollout, report, *before) };
            match work {
                Work::Granted | Work::Draining | Work::Emptying => match report.state {
                    NodeState::Idle | NodeState::Staging { .. } | NodeState::Cleaned { .. } => stage(),
                    NodeState::Staged { .. }
                    | NodeState::Refused { .. }
                    | NodeState::Leased { .. }
                    | NodeState::Linked { .. }
                    | NodeState::Swapping { .. }
                    | NodeState::Running { .. }
                    | NodeState::Upgraded { .. }
                    | NodeState::RolledBack { .. }
                    | NodeState::Stuck { .. } => hold(lease),
                },
                Work::Linking => Order::Link { lease },
                Work::Permitted { permit, .. } => match report.state {
                    // The permit is for a node that stands ready; the time it is good for is
                    // counted from this request of the executor's.
                    NodeState::Linked { .. } => {
                        Order::Stop { permit: StopPermit { id: permit.clone(), lease, valid_secs: PERMIT_SECS } }
                    }
                    // The containers beside the tasks end first, which may take longer than a lease is good for.
                    NodeState::Swapping { phase: SwapPhase::Stopping, .. } => hold(lease),
                    NodeState::Idle
                    | NodeState::Staging { .. }
                    | NodeState::Staged { .. }
                    | NodeState::Refused { .. }
                    | NodeState::Leased { .. }
                    | NodeState::Swapping { .. }
                    | NodeState::Running { .. }
                    | NodeState::Upgraded { .. }
                    | NodeState::RolledBack { .. }
                    | NodeState::Stuck { .. }
                    | NodeState::Cleaned { .. } => wait("the swarm has to see the new engine"),
                },
                Work::Settling => Order::Settle { lease },
                Work::SwitchingBack { reason } => Order::SwitchBack { lease, reason: reason.clone() },
                Work::Withdrawing => Order::Withdraw { lease },
            }
        }
    }
}
