//! The journal of one node: which phase it is in, and what is needed to go on from there.
//!
//! One small file, replaced as a whole. What is on disk is believed or refused, never guessed: a
//! journal that can't be read, or was written by a newer agent, stops the node with a typed error.

use std::fs;
use std::io;

use requeen_protocol::{LeaseId, PermitId, RolloutId};
use serde::{Deserialize, Serialize};

use crate::effect;
use crate::effect::disk::{self, Actor};
use crate::host::HostRoot;
use crate::sets::SetId;
use crate::swap::SwapPlan;

/// Where the journal is, as a path of the host.
pub const JOURNAL_PATH: &str = "/var/lib/requeen/agent/journal.json";

/// Version of the journal's form that this agent reads and writes.
pub const SCHEMA: u32 = 1;

/// So many used permits are remembered. A permit is good for 30 s, so the oldest are long dead.
const PERMITS_KEPT: usize = 32;

/// What a node remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    schema: u32,
    /// Highest epoch that this node has seen, in any rollout. It outlives them.
    pub max_epoch: u64,
    /// Permits that were used, newest last.
    pub used_permits: Vec<PermitId>,
    /// The work under way, or the last one done until its rollout is forgotten.
    pub work: Option<Work>,
}

/// One node's part of one rollout, from its lease on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// In which rollout.
    pub rollout: RolloutId,
    /// The lease held or used.
    pub lease: LeaseId,
    /// The lease's epoch.
    pub epoch: u64,
    /// The boot in which the lease was got. Another boot voids it, and every time in this record.
    pub boot_id: String,
    /// When the lease ends unless renewed, milliseconds of the boot-time clock.
    pub lease_ends_ms: u64,
    /// Version of the set that runs, as its API gave it.
    pub from_version: String,
    /// Version of the set that will run.
    pub to_version: String,
    /// How long an engine's API may stay silent after its start, seconds.
    pub start_timeout_secs: u64,
    /// Whether containerd's own binary changes, so that it must be restarted too.
    pub containerd_restart: bool,
    /// The swap; absent until the phase is [`Phase::Linking`].
    pub plan: Option<SwapPlan>,
    /// When the engine was told to stop, milliseconds of the boot-time clock of `boot_id`.
    pub stopped_at_ms: Option<u64>,
    /// What becomes of a copy of the swarm's folder. Journals of earlier versions have no such word.
    #[serde(default, skip_serializing_if = "RaftCopy::is_not_wanted")]
    pub raft_copy: RaftCopy,
    /// Where the work stands.
    pub phase: Phase,
}

/// What becomes of a copy of a manager's swarm folder, kept before its new engine first starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "copy", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RaftCopy {
    /// Nobody asked for one, or the node is a worker.
    #[default]
    NotWanted,
    /// It is made once the engine is stopped.
    Wanted {
        /// The engine's data directory, as a path of the host.
        data_root: String,
    },
    /// It is there.
    Kept {
        /// Where, as a path of the host.
        path: String,
    },
    /// There is none, and the new engine was started nevertheless.
    LeftOut {
        /// Why.
        why: String,
    },
}

impl RaftCopy {
    fn is_not_wanted(&self) -> bool {
        *self == RaftCopy::NotWanted
    }
}

/// Where a node's work stands. Written before the work of the phase begins, so that after a crash the
/// phase's work is done again: each is idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Phase {
    /// The lease is held; nothing was touched.
    Leased,
    /// The links are being put in place.
    Linking,
    /// The links are in place and lead to the set that runs.
    Linked,
    /// The links are being taken back before any stop; afterwards there is no work.
    Unlinking,
    /// The permit is used; the engine is being stopped.
    Stopping {
        /// The permit.
        permit: PermitId,
    },
    /// The engine is down; the one rename.
    Switching,
    /// The new engine is being started.
    Starting,
    /// The new engine was started and is being verified.
    Verifying,
    /// The new engine is verified; it has yet to join its swarm, however long that takes.
    Joining {
        /// How long the engine's API was gone, milliseconds.
        engine_down_ms: u64,
    },
    /// The new engine is verified and has joined its swarm; the links are still there.
    Running {
        /// How long the engine's API was gone, milliseconds.
        engine_down_ms: u64,
    },
    /// The old set is being put back: stop, one rename.
    SwitchingBack {
        /// What failed.
        reason: String,
        /// Last lines of the failed engine's log.
        log: Vec<String>,
    },
    /// The old set is current again, and its engine is being started and verified.
    StartingOld {
        /// What failed.
        reason: String,
        /// Last lines of the failed engine's log.
        log: Vec<String>,
    },
    /// The new set's files are being made plain.
    SettlingNew {
        /// How long the engine's API was gone, milliseconds.
        engine_down_ms: u64,
    },
    /// The old set's files are being made plain.
    SettlingOld {
        /// What failed.
        reason: String,
        /// How long the engine's API was gone, milliseconds.
        engine_down_ms: u64,
        /// Last lines of the failed engine's log.
        log: Vec<String>,
    },
    /// Done: the new engine runs from plain files.
    Upgraded {
        /// How long the engine's API was gone, milliseconds.
        engine_down_ms: u64,
        /// The set that is installed.
        set: SetId,
    },
    /// Done: the old engine runs from plain files.
    RolledBack {
        /// What failed.
        reason: String,
        /// How long the engine's API was gone, milliseconds.
        engine_down_ms: u64,
        /// Last lines of the failed engine's log.
        log: Vec<String>,
    },
    /// Hands off until an operator has looked.
    Stuck {
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: String,
        /// Last lines of the engine's log.
        log: Vec<String>,
    },
}

/// The name of a phase, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Leased,
    Linking,
    Linked,
    Unlinking,
    Stopping,
    Switching,
    Starting,
    Verifying,
    Joining,
    Running,
    SwitchingBack,
    StartingOld,
    SettlingNew,
    SettlingOld,
    Upgraded,
    RolledBack,
    Stuck,
}

impl Kind {
    /// The phases that may follow, besides itself and `Stuck`.
    fn next(self) -> &'static [Kind] {
        match self {
            Kind::Leased => &[Kind::Linking],
            // Back: the links could not be made, and every file is what it was.
            Kind::Linking => &[Kind::Linked, Kind::Unlinking, Kind::RolledBack],
            Kind::Linked => &[Kind::Stopping, Kind::Unlinking],
            // Its end is the end of the work, not a phase.
            Kind::Unlinking => &[],
            // Back to Linked: a task's container ran, so the engine was not stopped after all.
            Kind::Stopping => &[Kind::Linked, Kind::Switching, Kind::StartingOld],
            Kind::Switching => &[Kind::Starting, Kind::SwitchingBack],
            Kind::Starting => &[Kind::Verifying, Kind::SwitchingBack],
            Kind::Verifying => &[Kind::Joining, Kind::SwitchingBack],
            Kind::Joining => &[Kind::Running, Kind::SwitchingBack],
            Kind::Running => &[Kind::SettlingNew, Kind::SwitchingBack],
            Kind::SwitchingBack => &[Kind::StartingOld],
            Kind::StartingOld => &[Kind::SettlingOld],
            Kind::SettlingNew => &[Kind::Upgraded],
            Kind::SettlingOld => &[Kind::RolledBack],
            Kind::Upgraded | Kind::RolledBack | Kind::Stuck => &[],
        }
    }
}

impl Phase {
    fn kind(&self) -> Kind {
        match self {
            Phase::Leased => Kind::Leased,
            Phase::Linking => Kind::Linking,
            Phase::Linked => Kind::Linked,
            Phase::Unlinking => Kind::Unlinking,
            Phase::Stopping { .. } => Kind::Stopping,
            Phase::Switching => Kind::Switching,
            Phase::Starting => Kind::Starting,
            Phase::Verifying => Kind::Verifying,
            Phase::Joining { .. } => Kind::Joining,
            Phase::Running { .. } => Kind::Running,
            Phase::SwitchingBack { .. } => Kind::SwitchingBack,
            Phase::StartingOld { .. } => Kind::StartingOld,
            Phase::SettlingNew { .. } => Kind::SettlingNew,
            Phase::SettlingOld { .. } => Kind::SettlingOld,
            Phase::Upgraded { .. } => Kind::Upgraded,
            Phase::RolledBack { .. } => Kind::RolledBack,
            Phase::Stuck { .. } => Kind::Stuck,
        }
    }

    /// Whether `next` may follow this phase. A phase may follow itself: work is done again after a
    /// crash. Everything but a finished phase may end in [`Phase::Stuck`].
    pub fn may_become(&self, next: &Phase) -> bool {
        let (from, to) = (self.kind(), next.kind());
        from == to || from.next().contains(&to) || (to == Kind::Stuck && !self.is_final())
    }

    /// Whether nothing is left to do.
    pub fn is_final(&self) -> bool {
        match self.kind() {
            Kind::Upgraded | Kind::RolledBack | Kind::Stuck => true,
            Kind::Leased
            | Kind::Linking
            | Kind::Linked
            | Kind::Unlinking
            | Kind::Stopping
            | Kind::Switching
            | Kind::Starting
            | Kind::Verifying
            | Kind::Joining
            | Kind::Running
            | Kind::SwitchingBack
            | Kind::StartingOld
            | Kind::SettlingNew
            | Kind::SettlingOld => false,
        }
    }

    /// Whether the engine is being stopped or started. Nobody else may call it then: a call to the socket of
    /// a stopped engine would start it.
    pub fn moves_engine(&self) -> bool {
        match self.kind() {
            Kind::Stopping
            | Kind::Switching
            | Kind::Starting
            | Kind::Verifying
            | Kind::Joining
            | Kind::SwitchingBack
            | Kind::StartingOld => true,
            Kind::Leased
            | Kind::Linking
            | Kind::Linked
            | Kind::Unlinking
            | Kind::Running
            | Kind::SettlingNew
            | Kind::SettlingOld
            | Kind::Upgraded
            | Kind::RolledBack
            | Kind::Stuck => false,
        }
    }

    /// Whether the new engine was verified and its files are links still: what a boot finds then it leaves to the executor.
    pub fn is_proved(&self) -> bool {
        match self.kind() {
            Kind::Joining | Kind::Running => true,
            Kind::Leased
            | Kind::Linking
            | Kind::Linked
            | Kind::Unlinking
            | Kind::Stopping
            | Kind::Switching
            | Kind::Starting
            | Kind::Verifying
            | Kind::SwitchingBack
            | Kind::StartingOld
            | Kind::SettlingNew
            | Kind::SettlingOld
            | Kind::Upgraded
            | Kind::RolledBack
            | Kind::Stuck => false,
        }
    }

    /// Whether the engine may be down: from here on the node finishes alone. Its lease is looked at once more, right before the stop.
    pub fn is_committed(&self) -> bool {
        match self.kind() {
            Kind::Leased | Kind::Linking | Kind::Linked | Kind::Unlinking => false,
            Kind::Stopping
            | Kind::Switching
            | Kind::Starting
            | Kind::Verifying
            | Kind::Joining
            | Kind::Running
            | Kind::SwitchingBack
            | Kind::StartingOld
            | Kind::SettlingNew
            | Kind::SettlingOld
            | Kind::Upgraded
            | Kind::RolledBack
            | Kind::Stuck => true,
        }
    }
}

/// The journal can't be read, written or changed that way.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file is there and can't be read.
    #[error("the journal {JOURNAL_PATH} can't be read")]
    Read(#[source] io::Error),
    /// The file's content is no journal: torn, or changed by hand.
    #[error("the journal {JOURNAL_PATH} is damaged")]
    Damaged(#[source] serde_json::Error),
    /// The file was written by another version of the agent.
    #[error("the journal {JOURNAL_PATH} has schema {found}, this agent reads schema {SCHEMA}")]
    Schema {
        /// The version it has.
        found: u64,
    },
    /// The file can't be replaced.
    #[error("the journal {JOURNAL_PATH} can't be written")]
    Write(#[source] io::Error),
    /// There is no work that could change its phase.
    #[error("there is no work in the journal")]
    NoWork,
    /// There is other work that has not ended.
    #[error("the journal holds unfinished work of lease {0}")]
    Busy(LeaseId),
    /// The epoch is lower than one that was seen.
    #[error("epoch {epoch} is lower than {seen}, which this node has seen")]
    StaleEpoch {
        /// The epoch offered.
        epoch: u64,
        /// The highest seen.
        seen: u64,
    },
    /// The permit was used before.
    #[error("permit {0} was used before")]
    PermitUsed(PermitId),
    /// The one phase can't follow the other.
    #[error("a node can't go from {from:?} to {to:?}")]
    Transition {
        /// The phase it is in.
        from: Box<Phase>,
        /// The phase asked for.
        to: Box<Phase>,
    },
}

impl Default for Journal {
    fn default() -> Self {
        Self { schema: SCHEMA, max_epoch: 0, used_permits: Vec::new(), work: None }
    }
}

impl Journal {
    /// Reads the journal; an empty one if the host has none yet.
    pub fn load(root: &HostRoot) -> Result<Self, JournalError> {
        match root.resolve(JOURNAL_PATH).and_then(fs::read) {
            Ok(bytes) => Self::parse(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(JournalError::Read(error)),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, JournalError> {
        #[derive(Deserialize)]
        struct Versioned {
            schema: u64,
        }
        // The version first: a newer form need not have any field that this one knows.
        let Versioned { schema } = serde_json::from_slice(bytes).map_err(JournalError::Damaged)?;
        if schema != u64::from(SCHEMA) {
            return Err(JournalError::Schema { found: schema });
        }
        serde_json::from_slice(bytes).map_err(JournalError::Damaged)
    }

    /// Replaces the journal on disk as a whole. When this returns it outlives a power failure.
    pub fn store(&self, root: &HostRoot) -> Result<(), JournalError> {
        self.store_by(root, &mut |change| effect::change(root, change))
    }

    pub(crate) fn store_by(&self, root: &HostRoot, act: Actor<'_>) -> Result<(), JournalError> {
        let mut write = || -> io::Result<()> {
            let path = root.resolve(JOURNAL_PATH)?;
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            disk::replace(&path, serde_json::to_vec_pretty(self)?, act)
        };
        write().map_err(JournalError::Write)
    }

    /// Takes note of an epoch, or refuses one lower than any seen.
    pub fn see_epoch(&mut self, epoch: u64) -> Result<(), JournalError> {
        if epoch < self.max_epoch {
            return Err(JournalError::StaleEpoch { epoch, seen: self.max_epoch });
        }
        self.max_epoch = epoch;
        Ok(())
    }

    /// Begins new work. Refused while other work is unfinished, and for a stale epoch.
    pub fn begin(&mut self, work: Work) -> Result<(), JournalError> {
        if let Some(old) = &self.work
            && !old.phase.is_final()
            && old.lease != work.lease
        {
            return Err(JournalError::Busy(old.lease.clone()));
        }
        self.see_epoch(work.epoch)?;
        self.work = Some(work);
        Ok(())
    }

    /// Changes the phase of the work. Entering [`Phase::Stopping`] uses its permit up.
    pub fn advance(&mut self, next: Phase) -> Result<(), JournalError> {
        let work = self.work.as_mut().ok_or(JournalError::NoWork)?;
        if !work.phase.may_become(&next) {
            return Err(JournalError::Transition { from: Box::new(work.phase.clone()), to: Box::new(next) });
        }
        if let Phase::Stopping { permit } = &next
            && work.phase != next
        {
            if self.used_permits.contains(permit) {
                return Err(JournalError::PermitUsed(permit.clone()));
            }
            self.used_permits.push(permit.clone());
            let extra = self.used_permits.len().saturating_sub(PERMITS_KEPT);
            self.used_permits.drain(..extra);
        }
        work.phase = next;
        Ok(())
    }

    /// Ends work that left nothing behind: never begun, taken back, or finished and reported. Epochs
    /// and permits stay.
    pub fn forget(&mut self) -> Result<(), JournalError> {
        if let Some(work) = &self.work {
            match work.phase.kind() {
                Kind::Leased | Kind::Unlinking | Kind::Upgraded | Kind::RolledBack | Kind::Stuck => {}
                Kind::Linking
                | Kind::Linked
                | Kind::Stopping
                | Kind::Switching
                | Kind::Starting
                | Kind::Verifying
                | Kind::Joining
                | Kind::Running
                | Kind::SwitchingBack
                | Kind::StartingOld
                | Kind::SettlingNew
                | Kind::SettlingOld => return Err(JournalError::Busy(work.lease.clone())),
            }
        }
        self.work = None;
        Ok(())
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
