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
    },
    /// The node holds this lease: start the executor if none runs, and keep the lease alive. The
    /// node is being drained, or about to be.
    Hold {
        /// The lease granted or renewed.
        lease: Lease,
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
}
