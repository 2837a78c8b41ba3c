//! How the executor's journal reads to the coordinator.

use requeen_protocol::{NodeState, SwapPhase};

use crate::journal::{Journal, Phase};
use crate::staged::Staged;

/// The node's state, as it is reported.
pub(crate) fn node_state(
    journal: &Journal,
    staged: Option<&Staged>,
    task_containers: Option<u32>,
    waiting: Option<&str>,
) -> NodeState {
    let Some(work) = &journal.work else {
        return staged.map_or(NodeState::Idle, Staged::state);
    };
    let (rollout, lease) = (work.rollout.clone(), work.lease.clone());
    // Not known counts as one: the coordinator must not take it for a drained node.
    let task_containers = task_containers.unwrap_or(1);
    let swapping = |phase| NodeState::Swapping {
        rollout: work.rollout.clone(),
        lease: work.lease.clone(),
        phase,
        waiting: waiting.map(str::to_owned),
    };
    match &work.phase {
        Phase::Leased | Phase::Linking => NodeState::Leased { rollout, lease, task_containers },
        Phase::Linked | Phase::Unlinking => NodeState::Linked { rollout, lease, task_containers },
        Phase::Stopping { .. } => swapping(SwapPhase::Stopping),
        Phase::Switching => swapping(SwapPhase::Switching),
        Phase::Starting => swapping(SwapPhase::Starting),
        Phase::Verifying | Phase::Joining { .. } => swapping(SwapPhase::Verifying),
        Phase::SwitchingBack { .. } | Phase::StartingOld { .. } => swapping(SwapPhase::SwitchingBack),
        Phase::SettlingNew { .. } | Phase::SettlingOld { .. } => swapping(SwapPhase::Settling),
        Phase::Running { engine_down_ms } => NodeState::Running { rollout, lease, engine_down_ms: *engine_down_ms },
        Phase::Upgraded { engine_down_ms, set } => {
            NodeState::Upgraded { rollout, lease, engine_down_ms: *engine_down_ms, set: set.0.clone() }
        }
        Phase::RolledBack { reason, engine_down_ms, log } => NodeState::RolledBack {
            rollout,
            lease,
            reason: reason.clone(),
            engine_down_ms: *engine_down_ms,
            log: log.clone(),
        },
        Phase::Stuck { reason, hint, log } => {
            NodeState::Stuck { rollout, reason: reason.clone(), hint: hint.clone(), log: log.clone() }
        }
    }
}
