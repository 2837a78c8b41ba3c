//! The copy of a manager's swarm folder, made between the old engine's stop and the new one's start.
//!
//! It never keeps an engine down: whatever goes wrong with it is told, and the work goes on.

use requeen_protocol::Problem;

use super::work::{Tools, blocking};
use crate::clock::BootTime;
use crate::effect::{self, Effect};
use crate::journal::{RaftCopy, Work};
use crate::raft_copy::{self, COPIES_DIR, CopyOf, MAX_SECS};
use crate::staged::Staged;
use crate::words::chain;

impl Tools {
    /// Keeps the copy that `work` wants. The engine is down; `switched` says whether the next one to start is, or may have been,
    /// the new one.
    pub(super) async fn keep_raft_copy(&self, work: &Work, switched: bool) -> RaftCopy {
        let data_root = match work.raft_copy.clone() {
            RaftCopy::Wanted { data_root } => data_root,
            known @ (RaftCopy::NotWanted | RaftCopy::Kept { .. } | RaftCopy::LeftOut { .. }) => return known,
        };
        let of = CopyOf { lease: work.lease.clone(), version: work.from_version.clone(), data_root };
        let tools = self.clone();
        let began = (self.clock)();
        let kept = blocking(move || tools.copy(&of, switched)).await;
        match kept {
            Ok(Some(path)) => {
                let took_ms = (self.clock)().millis_since(began);
                tracing::info!(lease = %work.lease, step = "copy", took_ms, "the swarm's folder was copied to {path}");
                RaftCopy::Kept { path }
            }
            Ok(None) => RaftCopy::NotWanted,
            Err(why) => {
                tracing::warn!(lease = %work.lease, step = "copy", "no copy of the swarm's folder is kept: {why}");
                RaftCopy::LeftOut { why }
            }
        }
    }

    /// Where the copy is; nothing on a worker.
    fn copy(&self, of: &CopyOf, switched: bool) -> Result<Option<String>, String> {
        if !raft_copy::is_manager(&self.root, &of.data_root).map_err(|error| chain(&error))? {
            return Ok(None);
        }
        if switched {
            // By an executor that has ended since: the new engine may have been started too.
            let kept = raft_copy::find(&self.root, of);
            return kept.map(Some).ok_or_else(|| "nor was it before the new files were switched to".to_owned());
        }
        let end = (self.clock)().plus_secs(MAX_SECS);
        let late = || (self.clock)() >= end;
        effect::perform(&self.root, Effect::KeepRaftCopy { of, late: &late }).map_err(|error| chain(&error))?;
        let kept = raft_copy::find(&self.root, of);
        kept.map(Some).ok_or_else(|| format!("it is not in {COPIES_DIR} after all"))
    }
}

impl super::Executor<'_> {
    /// What is journaled with the lease: while the engine is down, nobody says where its data directory is.
    pub(super) fn wanted_copy(&self, staged: &Staged) -> RaftCopy {
        let data_root = self.observed.swarm.data_root.clone();
        if staged.wanted.keep_raft_copy { RaftCopy::Wanted { data_root } } else { RaftCopy::NotWanted }
    }

    /// The engine is down.
    pub(super) fn is_down(&mut self, since: BootTime, raft_copy: RaftCopy) {
        if let Some(work) = &mut self.journal.work {
            work.stopped_at_ms = Some(since.0);
            work.raft_copy = raft_copy;
        }
    }

    /// Leaves as many copies as are kept.
    pub(super) fn tidy_raft_copies(&self) {
        let newest = match self.journal.work.as_ref().map(|work| &work.raft_copy) {
            Some(RaftCopy::Kept { path }) => Some(path.as_str()),
            Some(RaftCopy::NotWanted | RaftCopy::Wanted { .. } | RaftCopy::LeftOut { .. }) | None => None,
        };
        if let Err(error) = self.perform(Effect::TidyRaftCopies { newest }) {
            tracing::warn!("old copies in {COPIES_DIR} can't be removed: {}", chain(&error));
        }
    }
}

/// What the operator has to know of the copy of this work.
pub(super) fn trouble(work: Option<&Work>) -> Option<Problem> {
    match &work?.raft_copy {
        RaftCopy::NotWanted | RaftCopy::Wanted { .. } | RaftCopy::Kept { .. } => None,
        RaftCopy::LeftOut { why } => Some(Problem {
            what: format!("its swarm folder was not copied before the new engine was started: {why}"),
            hint: "the engine was replaced without; what there is to go back to is your own backup of that folder"
                .to_owned(),
        }),
    }
}
