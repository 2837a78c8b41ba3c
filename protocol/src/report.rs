//! What a node says of itself.

use serde::{Deserialize, Serialize};

use crate::{Cleaning, Digest, EngineFacts, EngineFile, Installed, LeaseId, NodeId, RolloutId, Standalone};

/// An agent's word on its node, complete every time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The node it is about; the coordinator compares it with the client certificate.
    pub node: NodeId,
    /// Version of the agent's binary.
    pub agent_version: String,
    /// Which of the agent's lives speaks.
    pub speaker: Speaker,
    /// The kernel's boot ID: a change voids every lease.
    pub boot_id: String,
    /// The engine that runs; absent while it is down or does not answer.
    pub engine: Option<EngineFacts>,
    /// What the agent remembers to have installed; absent where nothing was, or while an executor speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<Installed>,
    /// Where the node stands.
    pub state: NodeState,
    /// The order that this agent already acts on; the server holds its answer while it is the same.
    pub seen: Option<Box<crate::Order>>,
    /// What [`crate::Order::Hold`] gave to keep, until the rollout is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memo: Option<String>,
    /// Managers on which this agent reaches no coordinator now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreached: Vec<Unreached>,
    /// What is wrong on the node and changes nothing of how its work ends: the operator has to know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<Problem>,
}

/// A manager whose coordinator an agent does not reach; most managers run none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreached {
    /// The manager.
    pub manager: NodeId,
    /// Where it was asked: address and port.
    pub at: String,
    /// Why there was no answer.
    pub why: String,
}

/// Which of the agent's lives speaks for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Speaker {
    /// The task of the global service, or a container started by hand.
    Task,
    /// The host process that outlives the engine.
    Executor,
}

/// Where a node stands in a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum NodeState {
    /// In no rollout.
    Idle,
    /// Getting the target ready; nothing that runs is touched.
    Staging {
        /// For which rollout.
        rollout: RolloutId,
        /// How far.
        progress: Progress,
    },
    /// Everything slow is done; the node waits for a lease. Also the state to which a node returns
    /// when its lease ran out or was withdrawn before the engine was stopped.
    Staged {
        /// For which rollout.
        rollout: RolloutId,
        /// What was found.
        preflight: Preflight,
    },
    /// The target can't be installed here. Nothing was touched.
    Refused {
        /// For which rollout.
        rollout: RolloutId,
        /// Every reason found.
        problems: Vec<Problem>,
    },
    /// The executor has called home and holds the lease; the engine is untouched.
    Leased {
        /// In which rollout.
        rollout: RolloutId,
        /// The lease held.
        lease: LeaseId,
        /// Containers of swarm tasks that run on the node now.
        task_containers: u32,
    },
    /// The links are in place and lead to the running set.
    Linked {
        /// In which rollout.
        rollout: RolloutId,
        /// The lease held.
        lease: LeaseId,
        /// Containers of swarm tasks that run on the node now.
        task_containers: u32,
    },
    /// The permit is used; the node finishes alone.
    Swapping {
        /// In which rollout.
        rollout: RolloutId,
        /// The lease held.
        lease: LeaseId,
        /// What is being done.
        phase: SwapPhase,
        /// Local swarm state when it is not active yet (`pending`, `locked`), else what is waited for.
        waiting: Option<String>,
    },
    /// The new engine runs and is verified locally; the links are still there.
    Running {
        /// In which rollout.
        rollout: RolloutId,
        /// The lease held.
        lease: LeaseId,
        /// How long the engine's API was gone, milliseconds.
        engine_down_ms: u64,
    },
    /// The node is done: new engine verified, files plain.
    Upgraded {
        /// In which rollout.
        rollout: RolloutId,
        /// The lease that was used.
        lease: LeaseId,
        /// How long the engine's API was gone, milliseconds.
        engine_down_ms: u64,
        /// The set that is installed now.
        set: Digest,
    },
    /// The new engine failed; the old one runs again, verified, files plain.
    RolledBack {
        /// In which rollout.
        rollout: RolloutId,
        /// The lease that was used.
        lease: LeaseId,
        /// What failed.
        reason: String,
        /// How long the engine's API was gone, milliseconds.
        engine_down_ms: u64,
        /// The last lines of the failed engine's log.
        log: Vec<String>,
    },
    /// Hands off: the state can't be trusted or neither engine starts. An operator must look.
    Stuck {
        /// In which rollout.
        rollout: RolloutId,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: String,
        /// The last lines of the engine's log, where there are any.
        log: Vec<String>,
    },
    /// In no rollout, and the order to clean was carried out or refused. The next other order ends it.
    Cleaned {
        /// Whether the backups were to go too.
        backups: bool,
        /// How it ended.
        cleaning: Cleaning,
    },
}

impl NodeState {
    /// The rollout that the state belongs to.
    pub fn rollout(&self) -> Option<&RolloutId> {
        match self {
            NodeState::Idle | NodeState::Cleaned { .. } => None,
            NodeState::Staging { rollout, .. }
            | NodeState::Staged { rollout, .. }
            | NodeState::Refused { rollout, .. }
            | NodeState::Leased { rollout, .. }
            | NodeState::Linked { rollout, .. }
            | NodeState::Swapping { rollout, .. }
            | NodeState::Running { rollout, .. }
            | NodeState::Upgraded { rollout, .. }
            | NodeState::RolledBack { rollout, .. }
            | NodeState::Stuck { rollout, .. } => Some(rollout),
        }
    }

    /// The lease that the node holds or has used.
    pub fn lease(&self) -> Option<&LeaseId> {
        match self {
            NodeState::Idle
            | NodeState::Staging { .. }
            | NodeState::Staged { .. }
            | NodeState::Refused { .. }
            | NodeState::Stuck { .. }
            | NodeState::Cleaned { .. } => None,
            NodeState::Leased { lease, .. }
            | NodeState::Linked { lease, .. }
            | NodeState::Swapping { lease, .. }
            | NodeState::Running { lease, .. }
            | NodeState::Upgraded { lease, .. }
            | NodeState::RolledBack { lease, .. } => Some(lease),
        }
    }
}

/// How far staging is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub activity: Activity,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A part of staging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// Looking at the host.
    Inspect,
    /// Fetching the bundle; its digest is computed while it is read.
    Download,
    /// Unpacking, with a digest of every file.
    Unpack,
    /// Trying links and renames, running the new binaries' `--version` and `--validate`.
    Check,
}

/// What staging found on a node that can be upgraded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// Version of the engine that runs.
    pub from: String,
    /// Version of the staged one.
    pub to: String,
    /// The staged set.
    pub set: Digest,
    /// Files whose content will change. Empty: the node has the target already.
    pub changes: Vec<EngineFile>,
    /// Names of running containers that are not swarm tasks: draining does not move them, the restart stops them. At
    /// most [`crate::STANDALONE_NAMED`].
    pub standalone: Vec<String>,
    /// The same containers, with what becomes of each; empty from agents that do not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Standalone>,
    /// How many more there are than are named.
    #[serde(default)]
    pub containers_more: u32,
    /// How much of the swarm's folder there is to copy, bytes; nothing on a worker. Absent where no copy is wanted, and from
    /// agents that keep none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft_copy_bytes: Option<u64>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// A reason why a node can't be upgraded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, naming the thing.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

/// What an executor does between the permit and the local verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwapPhase {
    /// The engine is being stopped.
    Stopping,
    /// The one rename.
    Switching,
    /// The engine is being started.
    Starting,
    /// API, version, digests and the local swarm state are being checked.
    Verifying,
    /// The old set is being put back.
    SwitchingBack,
    /// The files are being made plain again.
    Settling,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong, naming the thing.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_an_agent_that_knows_of_no_installed_set_reads() {
        let older = r#"{"node":"n","agent_version":"0","speaker":"task","boot_id":"b","engine":null,
            "state":{"state":"idle"},"seen":null}"#;
        let report: Report = serde_json::from_str(older).unwrap();
        assert_eq!((report.state, report.installed), (NodeState::Idle, None));
        assert_eq!(report.troubles, []);
    }

    #[test]
    fn what_an_agent_staged_that_knew_only_names_of_containers_reads() {
        let older = r#"{"from":"26.1.4","to":"26.1.5","set":
            "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","changes":["runc"],"standalone":["db"],"notes":[]}"#;
        let found: Preflight = serde_json::from_str(older).unwrap();
        assert_eq!(found.standalone, ["db"]);
        assert_eq!((found.containers, found.containers_more, found.raft_copy_bytes), (vec![], 0, None));
    }
}
