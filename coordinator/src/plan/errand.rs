//! What every agent is asked on the operator's word while no rollout is open, and whether one has done it. Pure.

use requeen_protocol::{NodeState, Order, Report};

use super::model::{Phase, Rollout};

/// Something that agents are asked besides a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Report what is true now. An agent looks at its node anew before it answers words that are new to it.
    Look {
        /// The words.
        words: String,
    },
    /// Remove what agents left on the host.
    Clean {
        /// The backups too.
        backups: bool,
    },
}

/// The order for the node that sent `report`; none if it is not the errand's turn.
pub fn order_for(
    errand: Option<&Errand>,
    rollout: Option<&Rollout>,
    report: &Report,
    has_leader: bool,
) -> Option<Order> {
    let errand = errand?;
    let open = rollout.is_some_and(|rollout| !matches!(rollout.phase, Phase::Ended { .. }));
    if open || !has_leader {
        return None;
    }
    // What an earlier rollout left is put away first.
    Some(match report.state.rollout() {
        Some(rollout) => Order::Forget { rollout: rollout.clone() },
        None => order(errand),
    })
}

fn order(errand: &Errand) -> Order {
    match errand {
        Errand::Look { words } => Order::Wait { why: words.clone() },
        Errand::Clean { backups } => Order::Clean { backups: *backups },
    }
}

/// Whether the node that sent `report` has done the errand.
pub fn is_done(errand: &Errand, report: &Report) -> bool {
    if report.seen.as_deref() != Some(&order(errand)) {
        return false;
    }
    match errand {
        Errand::Look { .. } => report.state.rollout().is_none(),
        Errand::Clean { backups } => {
            matches!(&report.state, NodeState::Cleaned { backups: theirs, .. } if theirs == backups)
        }
    }
}

#[cfg(test)]
mod tests {
    use requeen_protocol::{Cleaning, NodeId};

    use super::super::model::{ManagerPolicy, Role};
    use super::super::simulation::{agent, node, policy, rollout, staged};
    use super::*;

    fn report(state: NodeState) -> Report {
        agent(&node("w1", Role::Worker), state).report
    }

    fn look() -> Errand {
        Errand::Look { words: "the operator asks".to_owned() }
    }

    #[test]
    fn an_errand_waits_for_rollouts_and_leaders() {
        let mut open = rollout(&[node("m1", Role::Manager)], policy(ManagerPolicy::Rolling, 1));
        let idle = report(NodeState::Idle);
        assert_eq!(idle.node, NodeId::from("id-w1"));
        let clean = Errand::Clean { backups: true };
        assert_eq!(order_for(None, None, &idle, true), None);
        assert_eq!(order_for(Some(&clean), Some(&open), &idle, true), None);
        assert_eq!(order_for(Some(&clean), None, &idle, false), None);
        assert_eq!(order_for(Some(&clean), None, &idle, true), Some(Order::Clean { backups: true }));
        open.phase = Phase::Ended { aborted: false };
        assert_eq!(order_for(Some(&clean), Some(&open), &idle, true), Some(Order::Clean { backups: true }));
        let words = Order::Wait { why: "the operator asks".to_owned() };
        assert_eq!(order_for(Some(&look()), None, &idle, true), Some(words));
        let left = report(staged(&open.request.id));
        let forget = Order::Forget { rollout: open.request.id.clone() };
        for errand in [look(), clean] {
            assert_eq!(order_for(Some(&errand), None, &left, true).as_ref(), Some(&forget));
        }
    }

    #[test]
    fn only_an_answer_to_these_words_counts() {
        let mut answer = report(NodeState::Idle);
        assert!(!is_done(&look(), &answer));
        answer.seen = Some(Box::new(Order::Wait { why: "something else".to_owned() }));
        assert!(!is_done(&look(), &answer));
        answer.seen = Some(Box::new(order(&look())));
        assert!(is_done(&look(), &answer));

        let clean = |backups| Errand::Clean { backups };
        answer.seen = Some(Box::new(order(&clean(true))));
        assert!(!is_done(&clean(true), &answer), "it has heard and not done it");
        answer.state = NodeState::Cleaned { backups: true, cleaning: Cleaning::Done { left: vec![], more: 0 } };
        assert!(is_done(&clean(true), &answer));
        assert!(!is_done(&clean(false), &answer));
    }
}
