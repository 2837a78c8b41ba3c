//! What becomes of work for which a file system has no room.
//!
//! Before the stop nothing is begun that is not in the journal. After it the engine comes first: the work goes on with what
//! the journal says still, as long as it could be done again from there. Making the files plain could not: it waits until the
//! journal is written, with the engine up. What is missing is named until there is room, and then the node goes on by itself.

use std::error::Error;
use std::io;
use std::time::Duration;

use requeen_protocol::Problem;
use tokio::time::Instant;

use super::{Executor, containers, raft};
use crate::effect::Effect;
use crate::host::HostRoot;
use crate::journal::Phase;
use crate::staged::BUNDLES_DIR;
use crate::words::chain;

/// Work for which there was no room is tried again after this.
pub(super) const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Whether a file system without room is the reason.
pub(super) fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Why a piece of work failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// There is no room for it: it may be done later.
    Full(String),
    /// Something else.
    Otherwise(String),
}

impl Failed {
    pub(super) fn of(error: &(dyn Error + 'static)) -> Self {
        let why = chain(error);
        if is_full(error) { Failed::Full(why) } else { Failed::Otherwise(why) }
    }
}

/// What the operator is told of work that waits for room.
pub(super) fn wanted(why: String) -> Problem {
    Problem { what: why, hint: "make room on that file system, or repair it; the node goes on by itself".to_owned() }
}

/// Gives up what the node keeps for others' convenience: the rollout's bundle is unpacked here, and other nodes have it too.
/// True if that may have made room.
pub(super) fn make(root: &HostRoot) -> bool {
    let removed = root.resolve(BUNDLES_DIR).and_then(std::fs::remove_dir_all);
    if removed.is_ok() {
        tracing::warn!("{BUNDLES_DIR} was removed to make room for the journal");
    }
    removed.is_ok()
}

/// Whether the work of a phase begins only when the journal on disk says that it has. From an earlier phase it could not be
/// done again: no link would be left that leads back.
pub(super) fn waits_for_disk(phase: &Phase) -> bool {
    match phase {
        Phase::SettlingNew { .. } | Phase::SettlingOld { .. } => true,
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
        | Phase::SwitchingBack { .. }
        | Phase::StartingOld { .. }
        | Phase::Upgraded { .. }
        | Phase::RolledBack { .. }
        | Phase::Stuck { .. } => false,
    }
}

impl Executor<'_> {
    /// What there is beside the node's state that an operator has to know.
    pub(super) fn note_troubles(&mut self) {
        self.troubles = containers::troubles(&self.options.root, self.journal.work.as_ref());
        self.troubles.extend(raft::trouble(self.journal.work.as_ref()));
        self.troubles.extend(self.unwritten.iter().chain(&self.hindered).cloned());
    }

    /// Writes the journal; false if that failed, and then the operator is told why.
    pub(super) fn store(&mut self, step: &str) -> bool {
        let write = |executor: &Self| executor.perform(Effect::StoreJournal(&executor.journal));
        let mut stored = write(self);
        let committed = self.journal.work.as_ref().is_some_and(|work| work.phase.is_committed());
        if committed && stored.as_ref().is_err_and(|error| is_full(error)) && make(&self.options.root) {
            stored = write(self);
        }
        let unwritten = stored.as_ref().err().map(|error| wanted(chain(error)));
        if let Some(why) = unwritten.as_ref().filter(|why| self.unwritten.as_ref() != Some(why)) {
            tracing::error!(step, "{}", why.what);
        }
        if self.unwritten.is_some() && unwritten.is_none() && self.again.is_none() {
            // Whoever wrote it: what waited for that goes on.
            self.again = Some(Instant::now());
        }
        self.unwritten = unwritten;
        self.note_troubles();
        stored.is_ok()
    }

    /// Tries again what could not be written, and goes on with what waited for that.
    pub(super) fn write_again(&mut self) {
        if self.damaged.is_some() {
            return;
        }
        if self.unwritten.is_some()
            && self.store("again")
            && self.journal.work.as_ref().is_none_or(|work| work.phase.is_final())
        {
            self.no_more_recovery();
        }
        let due = self.again.is_some_and(|at| Instant::now() >= at);
        if due && self.work.is_none() && self.unwritten.is_none() && !self.going_down {
            self.again = None;
            self.start_work();
        }
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
