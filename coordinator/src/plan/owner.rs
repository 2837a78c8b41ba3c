//! Who drives a rollout, and how another coordinator takes it over.
//!
//! The owner renews its record; the others watch. All of it is in the record, so that of two that want it one wins: the
//! write is a compare-and-swap. The epoch grows with every take-over and goes out with every lease, and an executor refuses
//! one lower than it has seen: what a replaced owner still says is refused by everybody who has heard of its successor.

use jiff::Timestamp;
use requeen_protocol::NodeId;

use super::model::{LeaseRecord, Owner, Rollout, Step};

/// The rollout as `by` takes it over: with the next epoch, in which every lease is held from now on.
pub fn taken_over(rollout: &Rollout, by: &NodeId, now: Timestamp) -> Rollout {
    with_epoch(rollout, by, rollout.owner.epoch.saturating_add(1), now)
}

/// The rollout with `by` as its owner, in this epoch.
pub(crate) fn with_epoch(rollout: &Rollout, by: &NodeId, epoch: u64, now: Timestamp) -> Rollout {
    let mut next = rollout.clone();
    next.owner = Owner { node: by.clone(), epoch, renewed: now, elapsed_ms: rollout.owner.elapsed_ms };
    for entry in next.nodes.values_mut() {
        match &mut entry.step {
            Step::Working { lease: LeaseRecord { epoch: of_lease, .. }, .. } => *of_lease = epoch,
            Step::Waiting { .. } | Step::Held { .. } | Step::Restoring { .. } | Step::Done { .. } => {}
        }
    }
    next
}
