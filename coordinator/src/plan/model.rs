//! What the planner reads and writes: the swarm as observed, the rollout as recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use requeen_protocol::{Lease, LeaseId, NodeId, PermitId, Problem, Report, RolloutId, Target};
use serde::{Deserialize, Serialize};

/// A node's availability, as `docker node update --availability` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Availability {
    /// Gets tasks.
    Active,
    /// Keeps its tasks and gets no new ones.
    Pause,
    /// Loses its tasks.
    Drain,
}

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Availability::Active => "active",
            Availability::Pause => "pause",
            Availability::Drain => "drain",
        })
    }
}

/// A node's role, as the swarm records it now (not as its certificate says). Who is still a member of raft is a manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Holds the raft log.
    Manager,
    /// Runs tasks only.
    Worker,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Manager => "manager",
            Role::Worker => "worker",
        })
    }
}

/// A node as `/nodes` gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its ID.
    pub id: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Its role.
    pub role: Role,
    /// Its availability.
    pub availability: Availability,
    /// Whether the managers see it as ready.
    pub ready: bool,
    /// Whether it leads the managers.
    pub leader: bool,
    /// Whether it is a manager that the others reach.
    pub reachable: bool,
    /// Version of its engine as the swarm last heard.
    pub engine_version: String,
    /// The address that the swarm knows it by.
    pub addr: String,
    /// Version index of the node object; it grows with every change.
    pub index: u64,
}

/// A task that matters to the rollout: one that lives, or one that ought to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// Name of its service.
    pub service: String,
    /// The node that it is assigned to, if any.
    pub node: Option<NodeId>,
    /// Whether its state is from assigned to running, whatever its desired state: a task with a
    /// health check has a live container while it is still *starting*.
    pub alive: bool,
    /// Whether its state is running.
    pub running: bool,
    /// Whether the swarm wants it running.
    pub wanted: bool,
}

/// An agent's last word.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentView {
    /// What it said.
    pub report: Report,
    /// Seconds since it was last connected or heard.
    pub silent_secs: u64,
    /// Seconds since its state last changed to another variant.
    pub state_secs: u64,
}

/// Everything that the planner may know. Built anew for every round.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The node on which this coordinator runs.
    pub me: NodeId,
    /// Whether the managers have a leader: while not, nothing that is read is news.
    pub has_leader: bool,
    /// The swarm's nodes.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// Tasks that are alive or wanted.
    pub tasks: Vec<TaskView>,
    /// Names of the services in global mode that run on every active node that they fit on.
    pub global_services: Vec<String>,
    /// What agents said.
    pub agents: BTreeMap<NodeId, AgentView>,
    /// Whether managers are locked after each start of their engine.
    pub autolocked: bool,
}

/// How managers' availability is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManagerPolicy {
    /// Each is re-activated when it is done.
    Rolling,
    /// All stay drained until the last is done.
    HoldDrained,
}

impl fmt::Display for ManagerPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ManagerPolicy::Rolling => "rolling",
            ManagerPolicy::HoldDrained => "hold-drained",
        })
    }
}

/// What the operator decided, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How managers' availability is handled.
    pub managers: ManagerPolicy,
    /// How many workers may be in work at once.
    pub workers_at_once: u32,
    /// Whether each lease waits for `grant`.
    pub manual: bool,
    /// The operator's word that the managers may lose quorum while one restarts.
    pub accept_control_plane_outage: bool,
    /// The operator's word that a lower version is wanted.
    pub allow_downgrade: bool,
    /// How long a new engine's API may stay silent, seconds.
    pub start_timeout_secs: u64,
    /// How long the swarm may take to see a new engine that answers locally, seconds.
    pub join_timeout_secs: u64,
    /// No node is begun that could not be done by then. Records of earlier versions have no such word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// Whether each manager keeps a copy of its swarm folder before its new engine first starts. Records of earlier versions have
    /// no such word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_raft_copy: bool,
}

/// The immutable part of a rollout's record: the data of its swarm config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Version of this structure.
    pub schema: u32,
    /// The rollout's ID.
    pub id: RolloutId,
    /// What is installed.
    pub target: Target,
    /// How.
    pub policy: Policy,
    /// Who started it, as the kernel told: user ID of the peer on the unix socket.
    pub started_by_uid: u32,
    /// When.
    pub started_at: Timestamp,
    /// Services that had fewer tasks running than wanted before anything was touched: they are not
    /// waited for.
    pub short_services: Vec<String>,
    /// Whether all nodes were meant, so that one that joins the swarm later is taken in too.
    #[serde(default)]
    pub scope_all: bool,
    /// The nodes that the operator left out nevertheless.
    #[serde(default)]
    pub excluded: BTreeSet<NodeId>,
}

/// [`Request::schema`] of this version.
pub const SCHEMA: u32 = 1;

/// The life of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum Phase {
    /// Leases are granted.
    Running,
    /// No new lease until the operator resumes; nodes in work finish.
    Paused,
    /// Trouble: no new lease; nodes in work finish.
    Halted {
        /// What happened, where.
        reason: String,
    },
    /// The operator ends it: leases not used yet are withdrawn, availability is restored.
    Aborting,
    /// Over.
    Ended {
        /// Whether it was aborted.
        aborted: bool,
    },
}

/// The coordinator that drives a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its node.
    pub node: NodeId,
    /// Distinguishes owners: grows with every take-over, and is the leases' fencing token.
    pub epoch: u64,
    /// When it last renewed the record.
    pub renewed: Timestamp,
    /// How long the rollout had run then, milliseconds, by a clock that nobody sets. Records of earlier versions have no such word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
}

/// How a node ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It runs the target.
    Upgraded {
        /// How long its engine's API was gone, milliseconds.
        engine_down_ms: u64,
    },
    /// It had the target's files already and was not touched.
    Current,
    /// The target failed there and the set before runs again.
    RolledBack {
        /// Why.
        reason: String,
        /// Last lines of the failed engine's log.
        log: Vec<String>,
    },
    /// It was drained at most; its engine was never stopped.
    Untouched,
    /// It needs an operator.
    Failed {
        /// Why.
        reason: String,
        /// What to do.
        hint: String,
    },
}

/// What is under way on a node that holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "kebab-case")]
pub enum Work {
    /// The executor has to call home.
    Granted,
    /// The swarm has to be told to drain the node.
    Draining,
    /// The node was seen drained; its tasks have to end.
    Emptying,
    /// The executor may put the links in place, then waits for the permit.
    Linking,
    /// The permit is given: the node finishes alone, and the swarm has to see its new engine.
    Permitted {
        /// The permit.
        permit: PermitId,
        /// The node object's version index when it was given.
        index: u64,
    },
    /// The swarm sees the new engine; the files have to become plain.
    Settling,
    /// The swarm does not see the new engine: the node goes back.
    SwitchingBack {
        /// What was expected and not seen.
        reason: String,
    },
    /// The lease is being taken back before the engine was stopped.
    Withdrawing,
}

/// Where a node stands, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// No lease yet.
    Waiting {
        /// Whether the operator granted a lease by hand.
        by_hand: bool,
        /// Whether the grant overrides order, slots and quorum.
        forced: bool,
    },
    /// In work, under a lease.
    Working {
        /// The lease.
        lease: LeaseRecord,
        /// Availability before the drain, to be restored.
        before: Availability,
        /// What is under way.
        #[serde(flatten)]
        work: Work,
    },
    /// Finished but kept drained, by [`ManagerPolicy::HoldDrained`].
    Held {
        /// Availability before the drain.
        before: Availability,
        /// How the work ended.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// Its availability is being restored, and its tasks are waited for.
    Restoring {
        /// Availability before the drain.
        before: Availability,
        /// How the work ended.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// Nothing more happens here.
    Done {
        /// How the work ended.
        #[serde(flatten)]
        outcome: Outcome,
    },
}

/// A lease as recorded; [`Lease`] adds what the record has elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Its ID.
    pub id: LeaseId,
    /// Its fencing token.
    pub epoch: u64,
    /// Whether the operator forced it over order, slots and quorum.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
}

/// Time to live of a lease, seconds; every answer to its executor renews it.
pub const LEASE_TTL_SECS: u64 = 60;

/// How long a stop permit is good for, seconds.
pub const PERMIT_SECS: u64 = 20;

impl LeaseRecord {
    /// The lease as it goes to the node.
    pub fn to_wire(&self, rollout: &RolloutId, node: &NodeId) -> Lease {
        Lease {
            id: self.id.clone(),
            rollout: rollout.clone(),
            node: node.clone(),
            epoch: self.epoch,
            ttl_secs: LEASE_TTL_SECS,
        }
    }
}

/// One node's part of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Host name when it came into the rollout.
    pub hostname: String,
    /// Role when it came into the rollout.
    pub role: Role,
    /// Engine version when it came into the rollout.
    pub from: String,
    /// Whether it joined the swarm after the rollout had begun.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joined: bool,
    /// Where it stands.
    #[serde(flatten)]
    pub step: Step,
    /// When each step began: name and milliseconds since the rollout's start.
    pub times: Vec<(String, u64)>,
    /// What was wrong on the node when its work ended, and changed nothing of how it ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<Problem>,
}

/// A rollout: the immutable request and the mutable record.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// What was asked.
    pub request: Request,
    /// Where it stands.
    pub phase: Phase,
    /// Who drives it.
    pub owner: Owner,
    /// Every node in its scope.
    pub nodes: BTreeMap<NodeId, Entry>,
    /// Whether the operator has lifted [`Policy::not_after`].
    pub limit_lifted: bool,
}

/// Names of the steps in which a node holds a lease or its tasks are waited for: those that take its time.
pub const IN_WORK: &[&str] = &[
    "granted",
    "draining",
    "emptying",
    "linking",
    "swapping",
    "settling",
    "switching-back",
    "withdrawing",
    "restoring",
];

impl Step {
    /// The step's name, as people and timelines see it.
    pub fn name(&self) -> &'static str {
        match self {
            Step::Waiting { .. } => "waiting",
            Step::Working { work, .. } => match work {
                Work::Granted => "granted",
                Work::Draining => "draining",
                Work::Emptying => "emptying",
                Work::Linking => "linking",
                Work::Permitted { .. } => "swapping",
                Work::Settling => "settling",
                Work::SwitchingBack { .. } => "switching-back",
                Work::Withdrawing => "withdrawing",
            },
            Step::Held { .. } => "held",
            Step::Restoring { .. } => "restoring",
            Step::Done { outcome } => outcome.name(),
        }
    }

    /// Whether the node takes a slot: its engine, its availability or its tasks are in motion.
    pub fn in_work(&self) -> bool {
        match self {
            Step::Working { .. } | Step::Restoring { .. } => true,
            Step::Waiting { .. } | Step::Held { .. } | Step::Done { .. } => false,
        }
    }
}

impl Work {
    /// Whether no permit was given under the lease, so that the node's engine can't have been stopped by it.
    pub fn is_before_the_permit(&self) -> bool {
        match self {
            Work::Granted | Work::Draining | Work::Emptying | Work::Linking | Work::Withdrawing => true,
            Work::Permitted { .. } | Work::Settling | Work::SwitchingBack { .. } => false,
        }
    }
}

impl Outcome {
    /// The outcome's name.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Upgraded { .. } => "upgraded",
            Outcome::Current => "current",
            Outcome::RolledBack { .. } => "rolled-back",
            Outcome::Untouched => "untouched",
            Outcome::Failed { .. } => "failed",
        }
    }
}
