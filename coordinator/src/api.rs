//! What the CLI and the server say to each other over the unix socket.
//!
//! HTTP/1.1 with JSON bodies on a socket of mode 0600. An answer that is not a success carries
//! [`Failure`], whose `kind` decides the CLI's exit code. Every request carries [`VERSION_HEADER`]: a CLI of
//! another version than the server is refused.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `PUT /bundle` (query `name`) | the tarball | [`StoredBundle`] |
//! | `POST /fetch` | [`FetchArgs`] | lines of [`Fetching`], and after the last one's end [`Fetched`] |
//! | `POST /plan` | [`UpgradeArgs`] | [`PlanView`], once every agent has answered |
//! | `POST /rollouts` | [`UpgradeArgs`] | [`Started`] |
//! | `POST /rollback` | [`RollbackArgs`] | [`Started`] |
//! | `GET /status` | | [`StatusView`] |
//! | `POST /grant` | [`GrantArgs`] | `{}` |
//! | `POST /pause`, `/resume`, `/abort`, `/take-over` | | [`StatusView`] |
//! | `POST /release` | [`ReleaseArgs`] | [`ReleaseView`] |
//! | `GET /history` | | [`HistoryView`] |
//! | `GET /history/ID` (an ID or the beginning of one) | | [`RolloutHistory`] |
//! | `POST /deploy` | [`DeployArgs`] | [`Deployed`] |
//! | `GET /probe` | | [`crate::probe::ProbeReport`] |
//! | `POST /verify` | | [`VerifyView`], once every agent has looked |
//! | `GET /undeploy` | | [`Deployment`] |
//! | `POST /undeploy` | [`UndeployArgs`] | [`Undeployed`], once every agent has cleaned its host |
//! | `POST /diag` | [`DiagArgs`] | a line of JSON for each [`DiagEvent`]; behind [`DiagEvent::Archive`] the archive |

mod undeploy;
mod verify;

use jiff::Timestamp;
use requeen_protocol::{BundleRef, Digest, NodeState, Problem, RolloutId, Standalone, Target};
use serde::{Deserialize, Serialize};

use crate::bundle::BundleUrl;
use crate::plan::model::{Availability, Phase, Policy, Role, Step};
use crate::plan::reasons::{Refusal, WaitingFor};

pub use undeploy::{CleanedNode, Deployment, ReachedNode, SilentNode, UndeployArgs, Undeployed};
pub use verify::{Compared, DriftedFile, Newest, Verdict, VerifiedNode, VerifyView};

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
    /// The engine, the swarm, the server or a bundle's URL can't be reached (exit code 3).
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

/// What `fetch` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchArgs {
    /// Where the bundle is.
    pub url: BundleUrl,
    /// Which one it is; nothing is fetched that is stored already.
    pub digest: Digest,
    /// Certificates that are trusted like public authorities: DER in base64.
    pub roots: Vec<String>,
}

/// How far a fetch is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetching {
    /// Bytes that are there.
    pub done: u64,
    /// Bytes that the bundle has, where the host says.
    pub total: Option<u64>,
    /// Why the connection broke; until it is taken up again.
    pub trouble: Option<String>,
}

/// How a fetch ended. Its lines began with a status of success, before anybody knew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fetched {
    /// The bundle is stored.
    Stored(StoredBundle),
    /// It is not, and nothing is left of it.
    Failed(Failure),
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
    /// Whether nodes that run the bundle already are left out.
    pub only_outdated: bool,
    /// See [`crate::plan::model::Policy::not_after`].
    pub not_after: Option<Timestamp>,
    /// See [`crate::plan::model::Policy::keep_raft_copy`]. Older commands have no such word.
    #[serde(default)]
    pub keep_raft_copy: bool,
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
    /// Nodes that were left out because they run the target already.
    pub left_out: Vec<LeftOut>,
}

/// A node that [`UpgradeArgs::only_outdated`] leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Node ID.
    pub id: String,
    /// Host name.
    pub hostname: String,
    /// Version that runs.
    pub engine: String,
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
    /// Its containers that are no swarm tasks, and what becomes of each.
    #[serde(default)]
    pub containers: Vec<Standalone>,
}

/// A rollout has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "started", rename_all = "kebab-case")]
pub enum Started {
    /// Its ID.
    Rollout {
        /// Its ID.
        id: RolloutId,
        /// What the operator has to know of nodes before they move, each with its name.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
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
    /// Its time limit, if it was given one.
    pub limit: Option<TimeLimit>,
}

/// A rollout's time limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeLimit {
    /// See [`crate::plan::model::Policy::not_after`].
    pub not_after: Timestamp,
    /// Whether the operator has lifted it.
    pub lifted: bool,
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
    /// What is wrong there beside that: it changes nothing of how its work ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<Problem>,
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

/// What `release` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseArgs {
    /// The node, by name or ID.
    pub node: String,
    /// Name of the step at which the operator saw it and frees its slot; none: only show it.
    pub at: Option<String>,
}

/// What is known of a node that holds a slot and is silent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseView {
    /// The rollout.
    pub rollout: RolloutId,
    /// Node ID.
    pub id: String,
    /// Host name.
    pub hostname: String,
    /// Role.
    pub role: Role,
    /// What the swarm says of it, unless it has left.
    pub swarm: Option<SeenNode>,
    /// Availability before it was drained.
    pub before: Option<Availability>,
    /// Name of its step.
    pub step: String,
    /// Milliseconds since that began.
    pub since_ms: u64,
    /// What its agent said last to this coordinator.
    pub agent: Option<NodeState>,
    /// [`Self::agent`] in words.
    pub said: Option<String>,
    /// Seconds since that was heard.
    pub silent_secs: Option<u64>,
    /// What it means to free its slot, in words.
    pub meaning: Vec<String>,
    /// What is left to do on the node, in words.
    pub hint: String,
    /// Whether its slot is free now.
    pub released: bool,
}

/// What the swarm says of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenNode {
    /// Availability now.
    pub availability: Availability,
    /// Whether the managers see it ready.
    pub ready: bool,
    /// For a manager: whether the others reach it.
    pub reachable: Option<bool>,
}

/// The rollouts on record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryView {
    /// Newest first.
    pub rollouts: Vec<RolloutSummary>,
    /// Records that another version wrote.
    pub unreadable: Vec<UnreadableRecord>,
}

/// One rollout in a [`HistoryView`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutSummary {
    /// Its ID.
    pub id: RolloutId,
    /// When it began.
    pub started_at: Timestamp,
    /// Who started it: user ID of the peer on the unix socket.
    pub started_by_uid: u32,
    /// What it installs.
    pub target: Target,
    /// How many nodes it upgraded.
    pub upgraded: usize,
    /// Of how many.
    pub nodes: usize,
    /// How it stands, or ended.
    #[serde(flatten)]
    pub phase: Phase,
    /// When it ended; none while it is open.
    pub ended_at: Option<Timestamp>,
    /// Milliseconds since it began, or until it ended.
    pub elapsed_ms: u64,
}

/// A record that another version wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableRecord {
    /// ID of its rollout.
    pub id: String,
    /// Name of its swarm config.
    pub config: String,
    /// Whether it has ended, as far as that reads.
    pub ended: bool,
    /// Why it does not read.
    pub why: String,
}

/// Everything on record of one rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutHistory {
    /// The rollout.
    #[serde(flatten)]
    pub summary: RolloutSummary,
    /// How it was to be done.
    pub policy: Policy,
    /// Whether the operator lifted its time limit.
    pub limit_lifted: bool,
    /// Every node in its scope, in the order in which they moved.
    pub steps: Vec<NodeHistory>,
}

/// One node in a [`RolloutHistory`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeHistory {
    /// Node ID.
    pub id: String,
    /// Host name when the rollout started.
    pub hostname: String,
    /// Role when the rollout started.
    pub role: Role,
    /// Engine version when the rollout started.
    pub from: String,
    /// Where it stands, or how it ended.
    pub step: Step,
    /// Its steps: name and milliseconds since the rollout's start.
    pub times: Vec<(String, u64)>,
    /// What was wrong there when its work ended, and changed nothing of how it ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<Problem>,
}

/// What `diag` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiagArgs {
    /// Names or IDs of the only nodes to ask; empty means all.
    pub nodes: Vec<String>,
    /// From when on logs are wanted, seconds since 1970-01-01T00:00:00Z, if it is not left to the server.
    pub since_unix: Option<i64>,
}

/// What `diag` says while it collects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum DiagEvent {
    /// The nodes are asked.
    Begun {
        /// The open rollout, or the last one.
        rollout: Option<RolloutId>,
        /// When, RFC 3339.
        made: String,
        /// Host names of the nodes.
        nodes: Vec<String>,
    },
    /// A node's part is here, or will not come.
    Node {
        /// Its host name.
        hostname: String,
        /// Whether it is in the archive.
        collected: bool,
        /// Why not.
        why: Option<String>,
    },
    /// The archive follows, until the end of the answer.
    Archive,
}
