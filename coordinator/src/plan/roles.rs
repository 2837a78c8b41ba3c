//! Nodes that are promoted or demoted while a rollout is open.
//!
//! The record has the role that a node had when it came into the rollout, and the swarm the one that it has now. What
//! counts for the order, for slots and for the quorum is what it is now: otherwise a worker that became a manager would
//! wait for the managers, and they for it.

use std::borrow::Cow;

use super::model::{Observed, Rollout, Step};

/// The rollout with the role that each node has now, where it is not done. A node that has left the swarm keeps its own.
pub(super) fn as_they_are<'a>(rollout: &'a Rollout, observed: &Observed) -> Cow<'a, Rollout> {
    let mut rollout = Cow::Borrowed(rollout);
    for (id, node) in &observed.nodes {
        let changed = rollout.nodes.get(id).is_some_and(|entry| match entry.step {
            Step::Waiting { .. } | Step::Working { .. } | Step::Held { .. } | Step::Restoring { .. } => {
                entry.role != node.role
            }
            Step::Done { .. } => false,
        });
        if changed && let Some(entry) = rollout.to_mut().nodes.get_mut(id) {
            entry.role = node.role;
        }
    }
    rollout
}
