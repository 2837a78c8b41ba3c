//! What the executor makes of an order: the rules of leases and permits, as pure functions.
//!
//! Until the engine is stopped a node does only what a valid lease allows, and it stops the engine
//! only on a fresh permit of its own. From there on it finishes alone, and orders can only tell it to
//! settle or to go back.

use requeen_protocol::{Lease, LeaseId, NodeId, Order, PermitId, RolloutId, StopPermit};

use crate::clock::BootTime;
use crate::journal::{Journal, Phase, Work};
use crate::reporter::Heard;
use crate::staged::{Outcome, Staged};

/// A permit is good for this long at most, whatever it says, seconds.
const PERMIT_LIMIT_SECS: u64 = 30;

/// What the executor knows when it decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) node: &'a NodeId,
    pub(crate) boot_id: &'a str,
    pub(crate) journal: &'a Journal,
    pub(crate) staged: Option<&'a Staged>,
    /// Containers of swarm tasks that run; none if the engine did not say.
    pub(crate) task_containers: Option<u32>,
    /// Whether the node was a manager until just now, and its certificate still says so.
    pub(crate) being_demoted: bool,
}

/// What follows from an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// The end of the lease held, if the order renews it.
    pub(crate) renewed: Option<BootTime>,
    /// What to do.
    pub(crate) act: Act,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// It is so already, or there is nothing to do.
    Nothing,
    /// Take this lease, which ends then.
    Begin { lease: Lease, ends: BootTime },
    /// Put the links in place.
    Link,
    /// Give the lease up; take the links back.
    Unlink,
    /// Stop the engine and go on.
    Stop { permit: PermitId },
    /// Make the files plain.
    Settle,
    /// Put the old set back.
    SwitchBack { reason: String },
    /// The rollout has ended, and so does the executor.
    End,
    /// The order is refused.
    Refuse(Refusal),
}

/// Why an order is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the lease is for node {0}")]
    OtherNode(NodeId),
    #[error("rollout {0} is not the one staged here")]
    OtherRollout(RolloutId),
    #[error("lease {0} is not the one held here")]
    OtherLease(LeaseId),
    #[error("epoch {epoch} is lower than {seen}, which this node has seen")]
    StaleEpoch { epoch: u64, seen: u64 },
    #[error("the lease was over before its order arrived")]
    LeaseOver,
    #[error("the lease is of another boot")]
    OtherBoot,
    #[error("the permit was used before")]
    PermitUsed,
    #[error("the permit was older than {0} s when it arrived")]
    PermitStale(u64),
    #[error("{0} containers of swarm tasks still run")]
    TasksRun(u32),
    #[error("whether containers of swarm tasks still run is not known")]
    TasksUnknown,
    #[error("the node was demoted, and its certificate is still a manager's")]
    BeingDemoted,
    #[error("the node is not at that point of its work ({0})")]
    Phase(&'static str),
    #[error("the engine is being replaced; the node finishes first")]
    Committed,
}

/// What the executor does on an order heard at `now`.
pub(crate) fn decide(view: View<'_>, heard: &Heard, now: BootTime) -> Decision {
    match decided(view, heard, now) {
        Ok(decision) => decision,
        Err(refusal) => plain(Act::Refuse(refusal)),
    }
}

/// Whether the lease held has run out, or is of another boot, while the engine is still untouched.
pub(crate) fn lease_is_over(work: &Work, boot_id: &str, now: BootTime) -> bool {
    match work.phase {
        Phase::Leased | Phase::Linking | Phase::Linked => {
            work.boot_id != boot_id || now >= BootTime(work.lease_ends_ms)
        }
        Phase::Unlinking
        | Phase::Stopping { .. }
        | Phase::Switching
        | Phase::Starting
        | Phase::Verifying
        | Phase::Joining { .. }
        | Phase::Running { .. }
        | Phase::SwitchingBack { .. }
        | Phase::StartingOld { .. }
        | Phase::SettlingNew { .. }
        | Phase::SettlingOld { .. }
        | Phase::Upgraded { .. }
        | Phase::RolledBack { .. }
        | Phase::Stuck { .. } => false,
    }
}

fn decided(view: View<'_>, heard: &Heard, now: BootTime) -> Result<Decision, Refusal> {
    let work = view.journal.work.as_ref();
    match &heard.order {
        Order::Wait { .. } | Order::Standby { .. } => Ok(plain(Act::Nothing)),
        Order::Stage { rollout, .. } => stage(view, rollout),
        Order::Forget { rollout } => forget(view, rollout),
        Order::Hold { lease, .. } => hold(view, heard.sent, lease, now),
        // Cleaning is the task's work; an executor that has nothing left to do makes way for it.
        Order::Clean { .. } => Ok(plain(end(work)?)),
        Order::Link { lease } => {
            let renewed = renewed(view, lease, heard.sent, now)?;
            let phase = &held(view, lease)?.phase;
            let act = if *phase == Phase::Leased {
                Act::Link
            } else if matches!(phase, Phase::Linking | Phase::Linked) {
                Act::Nothing
            } else {
                return Err(not_at_that_point(phase));
            };
            Ok(Decision { renewed, act })
        }
        Order::Stop { permit } => stop(view, heard.sent, permit, now),
        Order::Settle { lease } => {
            known(view, lease)?;
            let phase = &held(view, lease)?.phase;
            if matches!(phase, Phase::Running { .. }) {
                Ok(plain(Act::Settle))
            } else if matches!(phase, Phase::SettlingNew { .. } | Phase::Upgraded { .. }) {
                Ok(plain(Act::Nothing))
            } else {
                Err(not_at_that_point(phase))
            }
        }
        Order::SwitchBack { lease, reason } => {
            known(view, lease)?;
            let phase = &held(view, lease)?.phase;
            if matches!(phase, Phase::Verifying | Phase::Joining { .. } | Phase::Running { .. }) {
                Ok(plain(Act::SwitchBack { reason: reason.clone() }))
            } else if is_going_back(phase) {
                Ok(plain(Act::Nothing))
            } else {
                Err(not_at_that_point(phase))
            }
        }
        Order::Withdraw { lease } => {
            known(view, lease)?;
            match work {
                None => Ok(plain(Act::Nothing)),
                Some(_) => withdraw(held(view, lease)?),
            }
        }
    }
}

fn stage(view: View<'_>, rollout: &RolloutId) -> Result<Decision, Refusal> {
    if view.staged.is_some_and(|staged| staged.wanted.rollout == *rollout) {
        return Ok(plain(Act::Nothing));
    }
    // Another rollout: this one is over, and staging is the task's work.
    Ok(plain(end(view.journal.work.as_ref())?))
}

fn forget(view: View<'_>, rollout: &RolloutId) -> Result<Decision, Refusal> {
    let work = view.journal.work.as_ref();
    let ours = work.map(|work| &work.rollout);
    let ours = ours.or(view.staged.map(|staged| &staged.wanted.rollout));
    if ours.is_some_and(|ours| ours != rollout) {
        return Err(Refusal::OtherRollout(rollout.clone()));
    }
    Ok(plain(end(work)?))
}

/// The way to the executor's end: links first go back, and a swap is finished. A new engine that was proved here and of
/// which the rollout knows nothing any more stays: its files are made plain.
fn end(work: Option<&Work>) -> Result<Act, Refusal> {
    match work {
        None => Ok(Act::End),
        Some(work) if work.phase.is_final() => Ok(Act::End),
        Some(work) if matches!(work.phase, Phase::Running { .. }) => Ok(Act::Settle),
        Some(work) if work.phase.is_committed() => Err(Refusal::Committed),
        Some(_) => Ok(Act::Unlink),
    }
}

fn withdraw(work: &Work) -> Result<Decision, Refusal> {
    if work.phase.is_committed() {
        return Err(Refusal::Committed);
    }
    Ok(plain(Act::Unlink))
}

fn hold(view: View<'_>, sent: BootTime, lease: &Lease, now: BootTime) -> Result<Decision, Refusal> {
    if let Some(work) = &view.journal.work {
        if work.lease == lease.id {
            // Its engine is stopped once the containers beside it have ended: under a lease still.
            let renewed = if work.phase.is_committed() && !matches!(work.phase, Phase::Stopping { .. }) {
                known(view, lease)?;
                None
            } else {
                renewed(view, lease, sent, now)?
            };
            return Ok(Decision { renewed, act: Act::Nothing });
        }
        known(view, lease)?;
        match work.phase {
            // A new lease in place of one that did nothing yet, or of one that ended where it began.
            Phase::Leased | Phase::RolledBack { .. } => {}
            Phase::Linking | Phase::Linked => return Ok(plain(Act::Unlink)),
            Phase::Unlinking
            | Phase::Stopping { .. }
            | Phase::Switching
            | Phase::Starting
            | Phase::Verifying
            | Phase::Joining { .. }
            | Phase::Running { .. }
            | Phase::SwitchingBack { .. }
            | Phase::StartingOld { .. }
            | Phase::SettlingNew { .. }
            | Phase::SettlingOld { .. }
            | Phase::Upgraded { .. }
            | Phase::Stuck { .. } => return Err(Refusal::OtherLease(lease.id.clone())),
        }
    }
    known(view, lease)?;
    let ready = view.staged.is_some_and(|staged| {
        staged.wanted.rollout == lease.rollout && matches!(staged.outcome, Outcome::Ready { .. })
    });
    if !ready {
        return Err(Refusal::OtherRollout(lease.rollout.clone()));
    }
    let ends = sent.plus_secs(lease.ttl_secs);
    if now >= ends {
        return Err(Refusal::LeaseOver);
    }
    Ok(plain(Act::Begin { lease: lease.clone(), ends }))
}

fn stop(view: View<'_>, sent: BootTime, permit: &StopPermit, now: BootTime) -> Result<Decision, Refusal> {
    let work = held(view, &permit.lease)?;
    if work.phase.is_committed() {
        // The coordinator may not have heard yet that this very permit was used.
        known(view, &permit.lease)?;
        return if view.journal.used_permits.contains(&permit.id) {
            Ok(plain(Act::Nothing))
        } else {
            Err(Refusal::Committed)
        };
    }
    let renewed = renewed(view, &permit.lease, sent, now)?;
    if work.phase != Phase::Linked {
        return Err(not_at_that_point(&work.phase));
    }
    if view.journal.used_permits.contains(&permit.id) {
        return Err(Refusal::PermitUsed);
    }
    let valid = permit.valid_secs.min(PERMIT_LIMIT_SECS);
    if now >= sent.plus_secs(valid) {
        return Err(Refusal::PermitStale(valid));
    }
    if view.being_demoted {
        return Err(Refusal::BeingDemoted);
    }
    match view.task_containers {
        Some(0) => Ok(Decision { renewed, act: Act::Stop { permit: permit.id.clone() } }),
        Some(running) => Err(Refusal::TasksRun(running)),
        None => Err(Refusal::TasksUnknown),
    }
}

/// Refuses a lease for somebody else, or from a coordinator that was replaced.
fn known(view: View<'_>, lease: &Lease) -> Result<(), Refusal> {
    if lease.node != *view.node {
        return Err(Refusal::OtherNode(lease.node.clone()));
    }
    if lease.epoch < view.journal.max_epoch {
        return Err(Refusal::StaleEpoch { epoch: lease.epoch, seen: view.journal.max_epoch });
    }
    Ok(())
}

/// The work that the lease is for.
fn held<'a>(view: View<'a>, lease: &Lease) -> Result<&'a Work, Refusal> {
    match &view.journal.work {
        Some(work) if work.lease == lease.id && work.rollout == lease.rollout => Ok(work),
        Some(_) | None => Err(Refusal::OtherLease(lease.id.clone())),
    }
}

/// The new end of a lease that is held and still runs. A lease that has run out is not revived: its
/// links are on the way back.
fn renewed(view: View<'_>, lease: &Lease, sent: BootTime, now: BootTime) -> Result<Option<BootTime>, Refusal> {
    known(view, lease)?;
    let work = held(view, lease)?;
    if work.boot_id != view.boot_id {
        return Err(Refusal::OtherBoot);
    }
    let ends = sent.plus_secs(lease.ttl_secs);
    if lease_is_over(work, view.boot_id, now) || now >= ends {
        return Err(Refusal::LeaseOver);
    }
    Ok(Some(ends.max(BootTime(work.lease_ends_ms))))
}

fn is_going_back(phase: &Phase) -> bool {
    matches!(
        phase,
        Phase::SwitchingBack { .. } | Phase::StartingOld { .. } | Phase::SettlingOld { .. } | Phase::RolledBack { .. }
    )
}

fn plain(act: Act) -> Decision {
    Decision { renewed: None, act }
}

fn not_at_that_point(phase: &Phase) -> Refusal {
    Refusal::Phase(name(phase))
}

/// A phase in words.
pub(crate) fn name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Leased => "leased",
        Phase::Linking => "linking",
        Phase::Linked => "linked",
        Phase::Unlinking => "unlinking",
        Phase::Stopping { .. } => "stopping",
        Phase::Switching => "switching",
        Phase::Starting => "starting",
        Phase::Verifying => "verifying",
        Phase::Joining { .. } => "joining",
        Phase::Running { .. } => "running",
        Phase::SwitchingBack { .. } => "switching back",
        Phase::StartingOld { .. } => "starting the old engine",
        Phase::SettlingNew { .. } | Phase::SettlingOld { .. } => "settling",
        Phase::Upgraded { .. } => "upgraded",
        Phase::RolledBack { .. } => "rolled back",
        Phase::Stuck { .. } => "stuck",
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
