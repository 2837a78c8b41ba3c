//! What becomes of the files of a node that went down in the middle of its work, before its engine starts.
//!
//! [`remedy`] decides, from what the journal says and what is on disk, and does nothing else; [`recover`] reads both, and does it.
//! It needs neither the network nor an engine. A set of files that was not proved healthy is switched back: whether it would
//! have come up nobody knows. Where the journal can't be trusted, or the files are not what it may have left, nothing is
//! guessed: recovery fails, and the engine stays down until somebody has looked.

use std::collections::BTreeMap;

use requeen_protocol::{Digest, EngineFile};

use crate::effect;
use crate::effect::disk::Actor;
use crate::host::HostRoot;
use crate::journal::{JOURNAL_PATH, Journal, JournalError, Phase, Work};
use crate::lock::{self, LockError};
use crate::sets::{SetError, Store};
use crate::swap::{self, Place, SwapError, SwapPlan};
use crate::words::chain;

/// What the journal says of a node that was taken back, and the operator reads.
const WENT_DOWN: &str = "the node went down before its new engine was verified";

/// The node's files are not in order, and the engine must not start.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The journal says nothing that can be trusted.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Whether an executor lives is not known.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The sets can't be looked at.
    #[error("the sets of engine files can't be used")]
    Sets(#[from] SetError),
    /// The files can't be put back.
    #[error("the files of the previous engine can't be put in their places")]
    Swap(#[from] SwapError),
    /// The files are not what the journal's work may have left.
    #[error(transparent)]
    Doubt(#[from] Doubt),
}

/// What is on disk can't have come from what the journal says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The journal lacks what its phase needs.
    #[error("{JOURNAL_PATH} says that links were put in place, but not which")]
    NoPlan,
    /// `current` leads elsewhere.
    #[error("{JOURNAL_PATH} is in phase {phase:?}, but the link `current` leads to {current:?}")]
    Current {
        /// The journal's phase.
        phase: Box<Phase>,
        /// Where it leads.
        current: Current,
    },
    /// A target is not one that can be there.
    #[error("{JOURNAL_PATH} is in phase {phase:?}, but {file} is {found:?}")]
    Target {
        /// The journal's phase.
        phase: Box<Phase>,
        /// Which file.
        file: EngineFile,
        /// What is in its place.
        found: Place,
    },
}

/// Where `current` leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Current {
    /// To the set that ran before.
    Old,
    /// To the set that is to run.
    New,
    /// Nowhere.
    Nothing,
    /// To something else.
    Stranger(String),
}

/// What is on disk of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskState {
    /// Where `current` leads.
    pub current: Current,
    /// What is in the places of the files that the swap is about.
    pub targets: BTreeMap<EngineFile, Place>,
}

impl DiskState {
    /// Looks. A file that is no link of ours is read as a whole.
    pub fn read(root: &HostRoot, plan: &SwapPlan) -> Result<Self, SwapError> {
        let store = Store::existing(root)?;
        let led = store.as_ref().map_or(Ok(None), Store::current);
        let current = match led {
            Ok(Some(set)) if set == plan.from => Current::Old,
            Ok(Some(set)) if set == plan.to => Current::New,
            Ok(Some(set)) => Current::Stranger(format!("set {set}")),
            Ok(None) => Current::Nothing,
            Err(error) => Current::Stranger(chain(&error)),
        };
        // Of a set that can't be read nothing is known to be a file.
        let holds = |set| store.as_ref().and_then(|store| store.manifest(set).ok()).map(|manifest| manifest.files);
        let (old, new) = (holds(&plan.from), holds(&plan.to));
        let mut targets = BTreeMap::new();
        for swapped in &plan.files {
            let digest = |files: &Option<BTreeMap<EngineFile, crate::sets::SetFile>>| -> Option<Option<Digest>> {
                Some(files.as_ref()?.get(&swapped.file).map(|entry| entry.digest.clone()))
            };
            targets.insert(swapped.file, swap::place_of(root, swapped, digest(&old), digest(&new))?);
        }
        Ok(Self { current, targets })
    }
}

/// What has to be done before the engine may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: the files are of one set, and it is the right one.
    Nothing,
    /// The links go: nothing was stopped, and the lease is of another boot.
    Unlink,
    /// The previous set becomes current again: the new one was not proved healthy.
    Back,
}

/// Decides what has to be done. `disk` is what was read of the work's plan; without a plan there is nothing to read.
pub fn remedy(work: &Work, disk: Option<&DiskState>) -> Result<Remedy, Doubt> {
    let phase = &work.phase;
    let disk = || disk.ok_or(Doubt::NoPlan);
    match phase {
        Phase::Leased => Ok(Remedy::Unlink),
        Phase::Unlinking if work.plan.is_none() => Ok(Remedy::Unlink),
        Phase::Linking | Phase::Linked | Phase::Unlinking => {
            let disk = disk()?;
            // A file that somebody else put there is left to them: the engine ran beside it.
            disk.expect(phase, &[Place::Link, Place::Old, Place::Stranger])?;
            let linked = disk.targets.values().any(|place| *place == Place::Link);
            if linked {
                disk.expect_current(phase, &[Current::Old])?
            }
            Ok(Remedy::Unlink)
        }
        Phase::Stopping { .. }
        | Phase::Switching
        | Phase::Starting
        | Phase::Verifying
        | Phase::SwitchingBack { .. }
        | Phase::StartingOld { .. } => {
            let disk = disk()?;
            disk.expect(phase, &[Place::Link])?;
            disk.expect_current(phase, &[Current::Old, Current::New])?;
            Ok(Remedy::Back)
        }
        // Making files plain goes on with the engine up.
        Phase::Joining { .. } | Phase::Running { .. } | Phase::SettlingNew { .. } => {
            let disk = disk()?;
            disk.expect(phase, &[Place::Link, Place::New])?;
            disk.expect_current(phase, &[Current::New])?;
            Ok(Remedy::Nothing)
        }
        Phase::SettlingOld { .. } => {
            let disk = disk()?;
            disk.expect(phase, &[Place::Link, Place::Old])?;
            disk.expect_current(phase, &[Current::Old])?;
            Ok(Remedy::Nothing)
        }
        // The work is over, and whatever is there now is somebody's wish.
        Phase::Upgraded { .. } | Phase::RolledBack { .. } | Phase::Stuck { .. } => Ok(Remedy::Nothing),
    }
}

impl DiskState {
    fn expect(&self, phase: &Phase, allowed: &[Place]) -> Result<(), Doubt> {
        match self.targets.iter().find(|(_, place)| !allowed.contains(place)) {
            None => Ok(()),
            Some((&file, &found)) => Err(Doubt::Target { phase: Box::new(phase.clone()), file, found }),
        }
    }

    fn expect_current(&self, phase: &Phase, allowed: &[Current]) -> Result<(), Doubt> {
        if allowed.contains(&self.current) {
            return Ok(());
        }
        Err(Doubt::Current { phase: Box::new(phase.clone()), current: self.current.clone() })
    }
}

/// Whether the files can have come from this work; asked by whoever goes on with it.
pub(crate) fn check(root: &HostRoot, work: &Work) -> Result<(), RecoverError> {
    let disk = work.plan.as_ref().map(|plan| DiskState::read(root, plan)).transpose()?;
    remedy(work, disk.as_ref())?;
    Ok(())
}

/// Puts the node's files in order before its engine starts. Done twice it ends where once would have.
pub fn recover(root: &HostRoot) -> Result<(), RecoverError> {
    recover_by(root, &mut |change| effect::change(root, change))
}

pub(crate) fn recover_by(root: &HostRoot, act: Actor<'_>) -> Result<(), RecoverError> {
    let Some(_lock) = lock::take(root)? else {
        tracing::info!("an executor is at work: this is no boot");
        return Ok(());
    };
    let mut journal = Journal::load(root)?;
    let Some(work) = journal.work.clone() else {
        tracing::info!("{JOURNAL_PATH} holds no work");
        return Ok(());
    };
    let Work { lease, phase, plan, .. } = &work;
    let disk = plan.as_ref().map(|plan| DiskState::read(root, plan)).transpose()?;
    let remedy = remedy(&work, disk.as_ref())?;
    match (remedy, plan) {
        (Remedy::Nothing, _) => {}
        (Remedy::Unlink, plan) => {
            if let Err(error) = taken_back_before_the_stop(root, &mut journal, plan.as_ref(), phase, act) {
                if !leads_to_old(root, plan.as_ref()) {
                    return Err(error);
                }
                // The engine would start from the very files that ran: a full disk is no reason to keep it down.
                tracing::warn!(%lease, "the links stay for now: {}", chain(&error));
            }
        }
        // Without a plan there is doubt and no remedy.
        (Remedy::Back, None) => return Err(Doubt::NoPlan.into()),
        (Remedy::Back, Some(plan)) => {
            swap::switch_by(root, &Store::open(root)?, plan, &plan.from, act)?;
            taken_back(&mut journal)?;
            if let Err(error) = journal.store_by(root, act) {
                // The files are in order. From what the journal says still, the executor comes to the same end.
                tracing::warn!(%lease, "{}", chain(&error));
            }
        }
    }
    tracing::info!(%lease, ?remedy, "the engine may start");
    Ok(())
}

/// Plain files again, and no work.
fn taken_back_before_the_stop(
    root: &HostRoot,
    journal: &mut Journal,
    plan: Option<&SwapPlan>,
    phase: &Phase,
    act: Actor<'_>,
) -> Result<(), RecoverError> {
    if let Some(plan) = plan {
        swap::unlink_by(root, &Store::open(root)?, plan, act)?;
    }
    if *phase != Phase::Leased {
        journal.advance(Phase::Unlinking)?;
    }
    journal.forget()?;
    journal.store_by(root, act)?;
    Ok(())
}

/// Whether whatever is a link leads to the files that ran before the lease, all of them.
fn leads_to_old(root: &HostRoot, plan: Option<&SwapPlan>) -> bool {
    let Some(plan) = plan else { return true };
    let current = Store::existing(root).ok().flatten().and_then(|store| store.current().ok().flatten());
    current.as_ref() == Some(&plan.from)
}

/// The old set is current; what is left is to see its engine run.
fn taken_back(journal: &mut Journal) -> Result<(), JournalError> {
    let Some(work) = &mut journal.work else { return Ok(()) };
    // It is of the clock of a boot that is over.
    work.stopped_at_ms = None;
    let (reason, log) = match &work.phase {
        Phase::SwitchingBack { reason, log } | Phase::StartingOld { reason, log } => (reason.clone(), log.clone()),
        Phase::Leased
        | Phase::Linking
        | Phase::Linked
        | Phase::Unlinking
        | Phase::Stopping { .. }
        | Phase::Switching
        | Phase::Starting
        | Phase::Verifying
        | Phase::Joining { .. }
        | Phase::Running { .. }
        | Phase::SettlingNew { .. }
        | Phase::SettlingOld { .. }
        | Phase::Upgraded { .. }
        | Phase::RolledBack { .. }
        | Phase::Stuck { .. } => (WENT_DOWN.to_owned(), Vec::new()),
    };
    let next = Phase::StartingOld { reason: reason.clone(), log: log.clone() };
    if !work.phase.may_become(&next) {
        journal.advance(Phase::SwitchingBack { reason, log })?;
    }
    journal.advance(next)
}

#[cfg(test)]
#[path = "recovery_model_tests.rs"]
mod model_tests;
#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
