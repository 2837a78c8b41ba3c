//! Leases and stop permits: a node's right to be worked on, and its right to stop its engine once.

use serde::{Deserialize, Serialize};

use crate::{LeaseId, NodeId, PermitId, RolloutId};

/// The right of one node to be worked on in one rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Names this lease.
    pub id: LeaseId,
    /// The rollout it belongs to.
    pub rollout: RolloutId,
    /// The node that holds it.
    pub node: NodeId,
    /// Fencing token: it only grows, and an executor refuses one lower than any it has seen.
    pub epoch: u64,
    /// Time to live in seconds, counted on the node's boot-time clock from the moment the executor
    /// sent the request that this lease answers. Every order that repeats the lease renews it.
    pub ttl_secs: u64,
}

/// The right to stop the engine: good once, and for a short time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopPermit {
    /// Names this permit; an executor that has used it refuses it the second time.
    pub id: PermitId,
    /// The lease it extends.
    pub lease: Lease,
    /// How long it is good for, in seconds (at most 30), counted like [`Lease::ttl_secs`].
    pub valid_secs: u64,
}
