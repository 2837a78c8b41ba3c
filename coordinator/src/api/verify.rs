//! What `verify` answers: each node's files against those that were installed.

use requeen_protocol::{Digest, EngineFile, RolloutId};
use serde::{Deserialize, Serialize};

use crate::plan::model::Role;

/// Every node's files against those that were installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyView {
    /// What was installed last, anywhere in the swarm.
    pub newest: Newest,
    /// Every node of the swarm.
    pub nodes: Vec<VerifiedNode>,
}

/// What was installed last, anywhere in the swarm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newest {
    /// By which rollout; absent where its record is gone and only agents remember.
    pub rollout: Option<RolloutId>,
    /// Its version; absent where no agent could tell what a rollback brought back.
    pub version: Option<String>,
}

/// One node in [`VerifyView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedNode {
    /// Node ID.
    pub id: String,
    /// Host name.
    pub hostname: String,
    /// Role.
    pub role: Role,
    /// Whether it leads the managers.
    pub leader: bool,
    /// Version of the engine that runs.
    pub engine: String,
    /// The rollout that installed its files, where the record of one says so.
    pub rollout: Option<RolloutId>,
    /// What was found.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What was found on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// All files are those that were installed.
    Ok,
    /// Files are others than were installed.
    Drifted {
        /// Which.
        files: Vec<DriftedFile>,
        /// Whether the engine that runs is still the installed one although dockerd's file is another: its next start
        /// takes the file.
        restart_pending: bool,
    },
    /// The files are those that were installed, and another engine runs: it was started before.
    RestartPending {
        /// Version of the files.
        installed: String,
    },
    /// The files are those that were installed, and a later rollout installed a newer version elsewhere.
    Outdated {
        /// The newer version.
        newest: String,
    },
    /// No rollout has installed anything here: it joined since, or was never in scope.
    NotUpgraded {
        /// Its engine, compared with [`VerifyView::newest`].
        compared: Compared,
    },
    /// It can't be told.
    Unknown {
        /// Why.
        why: String,
        /// What to do about it.
        hint: String,
    },
}

impl Verdict {
    /// Whether the node is not as the last rollout wanted the swarm.
    pub fn is_wrong(&self) -> bool {
        match self {
            Verdict::Drifted { .. } | Verdict::RestartPending { .. } | Verdict::Outdated { .. } => true,
            Verdict::NotUpgraded { compared } => *compared == Compared::Outdated,
            Verdict::Ok | Verdict::Unknown { .. } => false,
        }
    }

    /// Whether it could not be told.
    pub fn is_unknown(&self) -> bool {
        match self {
            Verdict::Unknown { .. } => true,
            Verdict::Ok
            | Verdict::Drifted { .. }
            | Verdict::RestartPending { .. }
            | Verdict::Outdated { .. }
            | Verdict::NotUpgraded { .. } => false,
        }
    }
}

/// A version compared with the one that was installed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compared {
    /// Lower.
    Outdated,
    /// The same.
    Same,
    /// Higher.
    Newer,
    /// The one that was installed last is not known.
    Unknown,
}

/// A file that is another one than was installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftedFile {
    /// Which.
    pub file: EngineFile,
    /// Where it is; absent if it is gone.
    pub path: Option<String>,
    /// What was installed.
    pub installed: Digest,
    /// What is there; absent if it is gone.
    pub found: Option<Digest>,
    /// The package that owns the path, where one does.
    pub owner: Option<String>,
}
