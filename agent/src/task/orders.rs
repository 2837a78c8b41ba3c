//! What the task makes of an order: a pure function of what it knows.

use requeen_protocol::{Lease, NodeId, NodeState, Order, RolloutId};

use crate::staged::Wanted;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// It is so already, or there is nothing to do.
    Nothing,
    /// Get this ready.
    Stage(Wanted),
    /// Start the executor.
    HandOver(Lease),
    /// Remove what the rollout left.
    Forget(RolloutId),
    /// Remove everything that agents left here.
    Clean {
        /// The backups too.
        backups: bool,
    },
    /// The order does not fit this node; why.
    Refuse(String),
}

/// What the task does on `order`. `wanted` is what is being staged or was staged last.
pub(crate) fn act(order: &Order, node: &NodeId, state: &NodeState, wanted: Option<&Wanted>) -> Act {
    match order {
        Order::Wait { .. } | Order::Standby { .. } | Order::Withdraw { .. } => Act::Nothing,
        Order::Stage { rollout, target, allow_downgrade, start_timeout_secs, keep_raft_copy } => {
            let asked = Wanted {
                rollout: rollout.clone(),
                target: target.clone(),
                allow_downgrade: *allow_downgrade,
                start_timeout_secs: *start_timeout_secs,
                keep_raft_copy: *keep_raft_copy,
            };
            if *state != NodeState::Idle && wanted == Some(&asked) { Act::Nothing } else { Act::Stage(asked) }
        }
        Order::Hold { lease, .. } => hand_over(lease, node, state),
        // The executor that these are for has died or was never started: a new one reads the journal.
        Order::Link { lease } | Order::Settle { lease } | Order::SwitchBack { lease, .. } => {
            hand_over(lease, node, state)
        }
        Order::Stop { permit } => hand_over(&permit.lease, node, state),
        Order::Forget { rollout } => {
            if state.rollout() == Some(rollout) {
                Act::Forget(rollout.clone())
            } else {
                Act::Nothing
            }
        }
        Order::Clean { backups } => match state {
            NodeState::Cleaned { backups: done, .. } if done == backups => Act::Nothing,
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
            | NodeState::Cleaned { .. } => Act::Clean { backups: *backups },
        },
    }
}

fn hand_over(lease: &Lease, node: &NodeId, state: &NodeState) -> Act {
    if lease.node != *node {
        return Act::Refuse(format!("lease {} is for node {}", lease.id, lease.node));
    }
    match state {
        NodeState::Staged { rollout, .. } if *rollout == lease.rollout => Act::HandOver(lease.clone()),
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
        | NodeState::Cleaned { .. } => {
            Act::Refuse(format!("lease {} is for rollout {}, which is not staged here", lease.id, lease.rollout))
        }
    }
}

#[cfg(test)]
mod tests {
    use requeen_protocol::{Cleaning, Digest, Preflight, Target};

    use super::*;

    fn wanted(rollout: &str) -> Wanted {
        Wanted {
            rollout: rollout.into(),
            target: Target::Previous { of: "r0".into() },
            allow_downgrade: true,
            start_timeout_secs: 60,
            keep_raft_copy: false,
        }
    }

    fn stage(wanted: &Wanted) -> Order {
        Order::Stage {
            rollout: wanted.rollout.clone(),
            target: wanted.target.clone(),
            allow_downgrade: wanted.allow_downgrade,
            start_timeout_secs: wanted.start_timeout_secs,
            keep_raft_copy: wanted.keep_raft_copy,
        }
    }

    fn staged(rollout: &str) -> NodeState {
        NodeState::Staged {
            rollout: rollout.into(),
            preflight: Preflight {
                from: "20.10.24".into(),
                to: "26.1.5".into(),
                set: Digest::from_hex(&"a".repeat(64)).unwrap(),
                changes: vec![],
                standalone: vec![],
                containers: vec![],
                containers_more: 0,
                raft_copy_bytes: None,
                notes: vec![],
            },
        }
    }

    fn lease(rollout: &str, node: &str) -> Lease {
        Lease { id: "l1".into(), rollout: rollout.into(), node: node.into(), epoch: 1, ttl_secs: 60 }
    }

    #[test]
    fn staging_happens_once_per_rollout() {
        let node = NodeId::from("n");
        let (one, two) = (wanted("r1"), wanted("r2"));
        let act = |order: &Order, state: &NodeState, wanted| act(order, &node, state, wanted);
        assert_eq!(act(&stage(&one), &NodeState::Idle, None), Act::Stage(one.clone()));
        assert_eq!(act(&stage(&one), &staged("r1"), Some(&one)), Act::Nothing);
        assert_eq!(act(&stage(&two), &staged("r1"), Some(&one)), Act::Stage(two));
        let refused = NodeState::Refused { rollout: "r1".into(), problems: vec![] };
        assert_eq!(act(&stage(&one), &refused, Some(&one)), Act::Nothing);
        let changed = Wanted { allow_downgrade: false, ..one.clone() };
        assert_eq!(act(&stage(&changed), &refused, Some(&one)), Act::Stage(changed));
    }

    #[test]
    fn a_lease_needs_its_rollout_staged_and_its_own_node() {
        let hold = |rollout, node| Order::Hold { lease: lease(rollout, node), memo: String::new() };
        let act = |order: Order, state: NodeState| act(&order, &"n".into(), &state, None);
        assert_eq!(act(hold("r1", "n"), staged("r1")), Act::HandOver(lease("r1", "n")));
        for (order, state) in
            [(hold("r1", "other"), staged("r1")), (hold("r2", "n"), staged("r1")), (hold("r1", "n"), NodeState::Idle)]
        {
            assert!(matches!(act(order, state), Act::Refuse(_)));
        }
    }

    #[test]
    fn cleaning_is_done_once_per_order() {
        let act = |backups: bool, state: &NodeState| act(&Order::Clean { backups }, &"n".into(), state, None);
        let cleaned = |backups| NodeState::Cleaned { backups, cleaning: Cleaning::Done { left: vec![], more: 0 } };
        assert_eq!(act(false, &NodeState::Idle), Act::Clean { backups: false });
        assert_eq!(act(false, &cleaned(false)), Act::Nothing);
        assert_eq!(act(true, &cleaned(false)), Act::Clean { backups: true });
    }

    #[test]
    fn another_nodes_lease_starts_no_executor() {
        let stolen = || lease("r1", "other");
        let permit = requeen_protocol::StopPermit { id: "p".into(), lease: stolen(), valid_secs: 20 };
        for order in [
            Order::Hold { lease: stolen(), memo: String::new() },
            Order::Link { lease: stolen() },
            Order::Stop { permit },
            Order::Settle { lease: stolen() },
            Order::SwitchBack { lease: stolen(), reason: String::new() },
        ] {
            let act = act(&order, &"n".into(), &staged("r1"), None);
            assert!(matches!(&act, Act::Refuse(why) if why.contains("other")), "{order:?}: {act:?}");
        }
    }

    #[test]
    fn only_the_rollout_at_hand_is_forgotten() {
        let forget = |rollout: &str| Order::Forget { rollout: rollout.into() };
        let act = |order: Order| act(&order, &"n".into(), &staged("r1"), None);
        assert_eq!(act(forget("r1")), Act::Forget("r1".into()));
        assert_eq!(act(forget("r0")), Act::Nothing);
    }
}
