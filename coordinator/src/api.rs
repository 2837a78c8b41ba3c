//! What the CLI and the server say to each other over the unix socket.
//!
//! HTTP/1.1 with JSON bodies on a socket of mode 0600. An answer that is not a success carries
//! [`Failure`], whose `kind` decides the CLI's exit code. Every request carries [`VERSION_HEADER`]: a CLI of
//! another version than the server is refused.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `PUT /bundle` (query `name`) | the tarball | [`StoredBundle`] |
//! | `POST /plan` | [`UpgradeArgs`] | [`PlanView`], once every agent has answered |
//! | `POST /rollouts` | [`UpgradeArgs`] | [`Started`] |
//! | `POST /rollback` | [`RollbackArgs`] | [`Started`] |
//! | `GET /status` | | [`StatusView`] |
//! | `POST /grant` | [`GrantArgs`] | `{}` |
//! | `POST /pause`, `/resume`, `/abort`, `/take-over` | | [`StatusView`] |
//! | `POST /deploy` | [`DeployArgs`] | [`Deployed`] |
//! | `GET /probe` | | [`crate::probe::ProbeReport`] |

use requeen_protocol::{BundleRef, Digest, NodeState, RolloutId};
use serde::{Deserialize, Serialize};

use crate::plan::model::{Availability, Phase, Role, Step};
use crate::plan::reasons::{Refusal, WaitingFor};

/// Header that names the CLI's version.
pub const VERSION_HEADER: &str = "requeen-version";

/// What went wrong, in kinds that scripts can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Something failed or halted after it began (exit code 1).
    Failed,
    /// Refused before anything changed (exit code 2).
    Refused,
    /// The engine, the swarm or the server can't be reached (exit code 3).
    Unreachable,
}

/// Body of an answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which kind.
    pub kind: FailureKind,
    /// What, where.
    pub error: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// A bundle that the server has verified and stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBundle {
    /// What it is.
    pub bundle: BundleRef,
    /// Names of entries that are left out because they are no engine file.
    pub ignored: Vec<String>,
}

/// The operator's choice of manager policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyChoice {
    /// Picked by the pair of versions.
    #[default]
    Auto,
    /// Each manager is re-activated when it is done.
    Rolling,
    /// All managers stay drained until the last is done.
    HoldDrained,
}

/// What `plan` and `upgrade` ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeArgs {
    /// A bundle that was stored before.
    pub bundle: Digest,
    /// Which manager policy.
    pub policy: PolicyChoice,
    /// How many workers at once.
    pub workers_at_once: u32,
    /// Names or IDs (or unique prefixes of IDs) of the only nodes to touch; empty means all.
    pub only: Vec<String>,
    /// Names or IDs of nodes to leave out.
    pub exclude: Vec<String>,
    /// Whether each lease is granted by hand.
    pub manual: bool,
    /// See [`crate::plan::model::Policy::accept_control_plane_outage`].
    pub accept_control_plane_outage: bool,
    /// See [`crate::plan::model::Policy::allow_downgrade`].
    pub allow_downgrade: bool,
    /// See [`crate::plan::model::Policy::start_timeout_secs`].
    pub start_timeout_secs: u64,
    /// How long agents may take to answer and stage, seconds.
    pub stage_timeout_secs: u64,
}

/// What `rollback` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackArgs {
    /// Nodes; empty means all that the last rollout changed.
    pub nodes: Vec<String>,
    /// Which manager policy.
    pub policy: PolicyChoice,
    /// How many workers at once.
    pub workers_at_once: u32,
    /// See [`UpgradeArgs::accept_control_plane_outage`].
    pub accept_control_plane_outage: bool,
    /// See [`UpgradeArgs::start_timeout_secs`].
    pub start_timeout_secs: u64,
    /// See [`UpgradeArgs::stage_timeout_secs`].
    pub stage_timeout_secs: u64,
}

/// A plan, for people and scripts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// The version that is installed.
    pub to: String,
    /// The policy chosen and why.
    pub policy: String,
    /// Nodes in the order in which they would move.
    pub nodes: Vec<PlannedNode>,
    /// Why the rollout can't start. Empty: it can.
    pub refusals: Vec<Refusal>,
    /// Whether every node in scope has the target's files already.
    pub nothing_to_do: bool,
}

/// One node of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedNode {
    /// Node ID.
    pub id: String,
    /// Host name.
    pub hostname: String,
    /// Role.
    pub role: Role,
    /// Whether it leads the managers now.
    pub leader: bool,
    /// Availability.
    pub availability: Availability,
    /// Version that runs.
    pub from: String,
    /// Version that would.
    pub to: String,
    /// Names of the files whose content would change; empty with `staged`: nothing to do.
    pub changes: Vec<String>,
    /// Whether its agent has staged the target.
    pub staged: bool,
    /// Remarks of its agent.
    pub notes: Vec<String>,
}

/// A rollout has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "started", rename_all = "kebab-case")]
pub enum Started {
    /// Its ID.
    Rollout {
        /// Its ID.
        id: RolloutId,
    },
    /// Every node has the target's files already.
    NothingToDo,
}

/// What `grant` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantArgs {
    /// The node, by name or ID.
    pub node: String,
    /// Grant although order, slots or quorum speak against it.
    pub force: bool,
}

/// Where everything stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// Version of the server.
    pub server_version: String,
    /// Node on which it runs, by host name.
    pub server_node: String,
    /// Whether the managers have a leader.
    pub has_leader: bool,
    /// The open rollout, or the last one.
    pub rollout: Option<RolloutView>,
    /// Rollouts of which nodes hold leases, but no record: somebody removed it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without_record: Vec<RolloutId>,
    /// Every node of the swarm.
    pub nodes: Vec<NodeStatus>,
}

/// A rollout in [`StatusView`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Its ID.
    pub id: RolloutId,
    /// Version that it installs.
    pub to: String,
    /// How it stands.
    #[serde(flatten)]
    pub phase: Phase,
    /// Host name of the node whose coordinator drives it.
    pub owner: String,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// Milliseconds since it began, or until it ended.
    pub elapsed_ms: u64,
}

/// One node in [`StatusView`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Node ID.
    pub id: String,
    /// Host name.
    pub hostname: String,
    /// Role.
    pub role: Role,
    /// Whether it leads the managers.
    pub leader: bool,
    /// Availability.
    pub availability: Availability,
    /// Whether the managers see it ready.
    pub ready: bool,
    /// Engine version as the swarm knows it.
    pub engine: String,
    /// Its step in the rollout, if it is in its scope.
    pub step: Option<Step>,
    /// Its steps so far: name and milliseconds since the rollout's start.
    pub times: Vec<(String, u64)>,
    /// Milliseconds since its step began.
    pub since_ms: Option<u64>,
    /// What its agent said last.
    pub agent: Option<NodeState>,
    /// Seconds since its agent was heard.
    pub silent_secs: Option<u64>,
    /// Why it does not move now.
    pub waiting: Option<WaitingFor>,
    /// [`Self::waiting`] in words.
    pub why: Option<String>,
}

/// What `deploy` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployArgs {
    /// Image to use instead of the server's own.
    pub image: Option<String>,
    /// Only show what would be done.
    pub print: bool,
}

/// What `deploy` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// The image, by digest or image ID.
    pub image: String,
    /// The `docker service create` that comes closest.
    pub command: String,
    /// What that command can't express.
    pub beyond: Vec<String>,
    /// Whether a service was created or updated (neither with `print`).
    pub changed: bool,
    /// For each node that swarm gives no global task: its host name and the `docker run` to type there.
    pub by_hand: Vec<(String, String)>,
}
