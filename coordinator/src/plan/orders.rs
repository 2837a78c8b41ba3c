//! Which order a node gets: a function of the record and of what the node reports.

use std::collections::BTreeSet;

use requeen_protocol::{NodeId, NodeState, Order, Report, RolloutId, StopPermit, Target};

use super::model::{PERMIT_SECS, Phase, Rollout, Step, Work};

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
        }
    }
}

/// The order for the node that sent `report`. While the managers have no leader a report is taken and
/// nothing is granted.
pub fn order_for(rollout: Option<&Rollout>, staging: Option<&Staging>, report: &Report, has_leader: bool) -> Order {
    let open = rollout.filter(|rollout| !matches!(rollout.phase, Phase::Ended { .. }));
    if !has_leader {
        return wait("the managers have no leader");
    }
    if let Some(rollout) = open {
        return match rollout.nodes.get(&report.node) {
            Some(entry) => in_rollout(rollout, &entry.step, report),
            None => forget_or_wait(report, "this node is not in the rollout's scope"),
        };
    }
    match staging {
        Some(staging) if staging.scope.contains(&report.node) => match report.state.rollout() {
            // What an earlier rollout left is put away first.
            Some(other) if *other != staging.id => Order::Forget { rollout: other.clone() },
            Some(_) | None => staging.order(),
        },
        Some(_) | None => forget_or_wait(report, "no rollout"),
    }
}

fn wait(why: &str) -> Order {
    Order::Wait { why: why.to_owned() }
}

/// A node that still holds something of a rollout that is over puts it away.
fn forget_or_wait(report: &Report, why: &str) -> Order {
    match report.state.rollout() {
        Some(rollout) => Order::Forget { rollout: rollout.clone() },
        None => wait(why),
    }
}

fn in_rollout(rollout: &Rollout, step: &Step, report: &Report) -> Order {
    let request = &rollout.request;
    let stage = || Order::Stage {
        rollout: request.id.clone(),
        target: request.target.clone(),
        allow_downgrade: request.policy.allow_downgrade,
        start_timeout_secs: request.policy.start_timeout_secs,
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
        Step::Working { lease, work, .. } => {
            let lease = lease.to_wire(&request.id, &report.node);
            match work {
                Work::Granted | Work::Draining | Work::Emptying => match report.state {
                    NodeState::Idle | NodeState::Staging { .. } => stage(),
                    NodeState::Staged { .. }
                    | NodeState::Refused { .. }
                    | NodeState::Leased { .. }
                    | NodeState::Linked { .. }
                    | NodeState::Swapping { .. }
                    | NodeState::Running { .. }
                    | NodeState::Upgraded { .. }
                    | NodeState::RolledBack { .. }
                    | NodeState::Stuck { .. } => Order::Hold { lease },
                },
                Work::Linking => Order::Link { lease },
                Work::Permitted { permit, .. } => match report.state {
                    // The permit is for a node that stands ready; the time it is good for is
                    // counted from this request of the executor's.
                    NodeState::Linked { .. } => {
                        Order::Stop { permit: StopPermit { id: permit.clone(), lease, valid_secs: PERMIT_SECS } }
                    }
                    NodeState::Idle
                    | NodeState::Staging { .. }
                    | NodeState::Staged { .. }
                    | NodeState::Refused { .. }
                    | NodeState::Leased { .. }
                    | NodeState::Swapping { .. }
                    | NodeState::Running { .. }
                    | NodeState::Upgraded { .. }
                    | NodeState::RolledBack { .. }
                    | NodeState::Stuck { .. } => wait("the swarm has to see the new engine"),
                },
                Work::Settling => Order::Settle { lease },
                Work::SwitchingBack { reason } => Order::SwitchBack { lease, reason: reason.clone() },
                Work::Withdrawing => Order::Withdraw { lease },
            }
        }
    }
}
