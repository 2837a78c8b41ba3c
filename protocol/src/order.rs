//! What the coordinator wants of a node.

use serde::{Deserialize, Serialize};

use crate::{Lease, RolloutId, StopPermit, Target};

/// The coordinator's answer to a report: what it wants true on that node next.
///
/// Orders describe a goal, not an event: a node that has reached it already reports so again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Nothing to do now.
    Wait {
        /// What the coordinator waits for, in words, for the agent's log.
        why: String,
    },
    /// Another coordinator drives, or may: it gives the orders. An agent talks to every manager that runs a
    /// coordinator and obeys the one that does not say this.
    Standby {
        /// Host name of the node whose coordinator drives the open rollout, if one is open.
        owner: Option<String>,
    },
    /// Fetch, verify, unpack and check the target; change nothing that runs.
    Stage {
        /// The rollout that wants it. A plan that changes nothing has an ID of its own.
        rollout: RolloutId,
        /// What to stage.
        target: Target,
        /// Whether a lower version than the running one is wanted on purpose.
        allow_downgrade: bool,
        /// How long the new engine's API may stay silent after its start, seconds.
        start_timeout_secs: u64,
        /// Whether a manager keeps a copy of its swarm folder before its new engine first starts. Older coordinators and agents
        /// have no such word.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep_raft_copy: bool,
    },
    /// The node holds this lease: start the executor if none runs, and keep the lease alive. The
    /// node is being drained, or about to be.
    Hold {
        /// The lease granted or renewed.
        lease: Lease,
        /// What the coordinator wants kept on the node until the rollout is forgotten, and repeated in
        /// [`crate::Report::memo`]: from it the rollout's record can be made again. Opaque to the agent.
        memo: String,
    },
    /// The node is drained: put the links in place. The running engine notices nothing.
    Link {
        /// The lease renewed.
        lease: Lease,
    },
    /// Stop the engine, switch, start it again, verify.
    Stop {
        /// The one-use permit for it.
        permit: StopPermit,
    },
    /// The swarm sees the new engine: make the files plain again.
    Settle {
        /// The lease renewed.
        lease: Lease,
    },
    /// The swarm does not see the new engine although it has a leader: switch back.
    SwitchBack {
        /// The lease renewed.
        lease: Lease,
        /// What was expected and not seen.
        reason: String,
    },
    /// The lease is withdrawn before the engine was stopped: take the links back, stay staged.
    Withdraw {
        /// The lease that ends.
        lease: Lease,
    },
    /// The rollout has ended: remove the bundle, end the executor.
    Forget {
        /// The rollout that has ended.
        rollout: RolloutId,
    },
    /// Everything is being taken away: remove what agents left on the host.
    Clean {
        /// Whether the backups go too: the sets of engine files that were installed last.
        backups: bool,
    },
}

impl Order {
    /// The lease that the order is about.
    pub fn lease(&self) -> Option<&Lease> {
        match self {
            Order::Wait { .. }
            | Order::Standby { .. }
            | Order::Stage { .. }
            | Order::Forget { .. }
            | Order::Clean { .. } => None,
            Order::Hold { lease, .. }
            | Order::Link { lease }
            | Order::Settle { lease }
            | Order::SwitchBack { lease, .. }
            | Order::Withdraw { lease } => Some(lease),
            Order::Stop { permit } => Some(&permit.lease),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_to_stage_that_wants_no_copy_is_what_it_always_was() {
        let older = r#"{"order":"stage","rollout":"r1","target":{"kind":"previous","of":"r0"},"allow_downgrade":false,"start_timeout_secs":60}"#;
        let order: Order = serde_json::from_str(older).unwrap();
        assert!(matches!(order, Order::Stage { keep_raft_copy: false, .. }));
        assert_eq!(serde_json::to_string(&order).unwrap(), older);
        let newer = older.replace("60}", "60,\"keep_raft_copy\":true}");
        let order: Order = serde_json::from_str(&newer).unwrap();
        assert!(matches!(order, Order::Stage { keep_raft_copy: true, .. }));
        assert_eq!(serde_json::to_string(&order).unwrap(), newer);
    }
}
