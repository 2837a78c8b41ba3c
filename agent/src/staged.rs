//! What a node has staged, remembered on disk: a restarted task, and the executor, know it without
//! doing it again.

use std::io;
use std::path::Path;

use requeen_protocol::{Digest, NodeState, Preflight, Problem, RolloutId, Target};
use serde::{Deserialize, Serialize};

use crate::host::{HostRoot, files};
use crate::memo;
use crate::sets::SetId;

/// The record, as a path of the host.
pub const STAGED_PATH: &str = "/var/lib/requeen/agent/staged.json";

/// Version of the record's form.
const SCHEMA: u32 = 1;

/// What a rollout wants staged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Which rollout.
    pub rollout: RolloutId,
    /// What it puts on the nodes.
    pub target: Target,
    /// Whether a lower version is wanted on purpose.
    pub allow_downgrade: bool,
    /// How long an engine's API may stay silent after its start, seconds.
    pub start_timeout_secs: u64,
    /// Whether a manager keeps a copy of its swarm folder. Records of earlier versions have no such word.
    #[serde(default)]
    pub keep_raft_copy: bool,
}

/// How staging ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// The target is ready.
    Ready {
        /// What was found.
        preflight: Box<Preflight>,
        /// The set that runs.
        old: SetId,
        /// The set that will run.
        new: SetId,
    },
    /// The target can't be installed here.
    Refused {
        /// Every reason found.
        problems: Vec<Problem>,
    },
}

/// A finished staging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    schema: u32,
    /// What was wanted.
    pub wanted: Wanted,
    /// How it ended.
    pub outcome: Outcome,
}

impl Staged {
    /// A record of this form.
    pub fn new(wanted: Wanted, outcome: Outcome) -> Self {
        Self { schema: SCHEMA, wanted, outcome }
    }

    /// The record on disk. One that is damaged or of another form counts as none: staging is done
    /// again, which is always safe.
    pub fn load(root: &HostRoot) -> Option<Self> {
        let bytes = std::fs::read(root.join(STAGED_PATH)).ok()?;
        let staged: Self = serde_json::from_slice(&bytes).ok()?;
        (staged.schema == SCHEMA).then_some(staged)
    }

    /// Replaces the record on disk.
    pub fn store(&self, root: &HostRoot) -> io::Result<()> {
        replace(&root.join(STAGED_PATH), &serde_json::to_vec_pretty(self)?)
    }

    /// How the node reports it.
    pub fn state(&self) -> NodeState {
        let rollout = self.wanted.rollout.clone();
        match &self.outcome {
            Outcome::Ready { preflight, .. } => NodeState::Staged { rollout, preflight: (**preflight).clone() },
            Outcome::Refused { problems } => NodeState::Refused { rollout, problems: problems.clone() },
        }
    }
}

/// Where bundles are kept until their rollout ends, as a path of the host. Not the coordinator's
/// folder: that one is its own to clean.
pub const BUNDLES_DIR: &str = "/var/lib/requeen/agent/bundles";

/// Removes what a rollout left that nobody needs after its end: the record, the memo, and bundles whole or not.
pub fn forget(root: &HostRoot) -> io::Result<()> {
    memo::forget(root)?;
    match std::fs::remove_dir_all(root.join(BUNDLES_DIR)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    gone(&root.join(STAGED_PATH))
}

/// Where a bundle is kept, as a path of the host.
pub fn bundle_path(digest: &Digest) -> String {
    format!("{BUNDLES_DIR}/{}.tgz", digest.hex())
}

fn gone(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Replaces a file as a whole, its folder made if need be. When this returns it outlives a power
/// failure.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(dir)?;
    files::replace(path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Staged {
        let wanted = Wanted {
            rollout: "r1".into(),
            target: Target::Previous { of: "r0".into() },
            allow_downgrade: false,
            start_timeout_secs: 60,
            keep_raft_copy: true,
        };
        Staged::new(wanted, Outcome::Refused { problems: vec![] })
    }

    #[test]
    fn a_record_that_knew_of_no_copies_reads() {
        let mut older = serde_json::to_value(record()).unwrap();
        assert_eq!(older["wanted"].as_object_mut().unwrap().remove("keep_raft_copy"), Some(true.into()));
        let read: Staged = serde_json::from_value(older).unwrap();
        assert_eq!(read.wanted, Wanted { keep_raft_copy: false, ..record().wanted });
    }

    #[test]
    fn a_record_outlives_the_process_and_a_damaged_one_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        assert_eq!(Staged::load(&root), None);
        record().store(&root).unwrap();
        assert_eq!(Staged::load(&root), Some(record()));
        let other = Staged { schema: SCHEMA + 1, ..record() };
        other.store(&root).unwrap();
        assert_eq!(Staged::load(&root), None);
        std::fs::write(root.join(STAGED_PATH), "{").unwrap();
        assert_eq!(Staged::load(&root), None);
        forget(&root).unwrap();
        forget(&root).unwrap();
        assert!(!root.join(STAGED_PATH).exists());
    }
}
