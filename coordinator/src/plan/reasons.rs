//! Why a node does not move, and why a rollout can't start: as types, with their words.

use std::fmt;

use jiff::Timestamp;
use requeen_protocol::{Progress, SwapPhase};
use serde::{Deserialize, Serialize};

/// Why a node does not move now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "kebab-case")]
pub enum WaitingFor {
    /// Nothing: the rollout leaves it out.
    OutOfScope,
    /// No agent of this node has been heard.
    Agent,
    /// The agent was heard once but not lately.
    SilentAgent {
        /// Seconds since it was heard.
        secs: u64,
    },
    /// The target is being staged here.
    Staging {
        /// How far, once the agent has said.
        progress: Option<Progress>,
    },
    /// The target is being staged on other nodes: nothing is drained before all are ready.
    OthersStaging {
        /// Their host names.
        nodes: Vec<String>,
    },
    /// A manager is in work, and managers go one at a time.
    PriorManager {
        /// Its host name.
        node: String,
    },
    /// Managers go first.
    Managers {
        /// Host names of those that are not done.
        nodes: Vec<String>,
    },
    /// Enough workers are in work.
    Slot {
        /// Their host names.
        busy: Vec<String>,
    },
    /// Together with a node in work it holds all running tasks of a service.
    SharedService {
        /// The service.
        service: String,
    },
    /// One manager less would be too few.
    Quorum {
        /// Managers reachable now.
        reachable: usize,
        /// Managers in all.
        managers: usize,
    },
    /// The managers have no leader.
    Leader,
    /// It could not be done in time.
    NotAfter {
        /// When the time is over.
        until: Timestamp,
        /// How long the node (under hold-drained: all managers) would take, by what others took, seconds.
        needs_secs: u64,
    },
    /// The operator grants each lease.
    Grant,
    /// The rollout is paused.
    Paused,
    /// The rollout is halted.
    Halted,
    /// The executor has to call home.
    Executor,
    /// The swarm has to drain the node.
    Drain,
    /// Tasks on the node have to end.
    TasksToEnd {
        /// Names of their services.
        services: Vec<String>,
    },
    /// Containers of tasks still run although the swarm lists no task.
    ContainersToEnd {
        /// How many.
        count: u32,
    },
    /// It was removed from the swarm after it was told to stop its engine, or nobody knows whether it was.
    Removed {
        /// Its host name.
        node: String,
    },
    /// Somebody changed the node's availability after it was drained.
    AvailabilityChanged {
        /// What it is now.
        now: String,
    },
    /// The links have to be put in place.
    Links,
    /// The permit is given, and the word to stop does not go out yet.
    StopHeldBack {
        /// Why not.
        why: String,
    },
    /// The node finishes alone.
    Engine {
        /// What it does, when it can be heard.
        phase: Option<SwapPhase>,
        /// What it waits for itself.
        detail: Option<String>,
    },
    /// The swarm does not see the new engine yet.
    SwarmView {
        /// What is missing.
        missing: String,
    },
    /// The files have to be made plain.
    Settle,
    /// The old set is being put back.
    SwitchBack,
    /// The lease is being taken back.
    Withdrawal,
    /// Kept drained until all managers are done.
    OtherManagers {
        /// Host names of those that are not done.
        nodes: Vec<String>,
    },
    /// Kept drained after an abort or a halt: re-activating early is what the policy exists to prevent.
    KeptDrained,
    /// Released by the operator while it was drained, and left so although it was heard again.
    LeftDrained,
    /// Tasks have to run again.
    TasksToRun {
        /// Names of their services.
        services: Vec<String>,
    },
    /// Its engine is not stopped before the tasks of a node before it run again.
    OthersTasks {
        /// That node's host name.
        node: String,
        /// Names of their services; none where the node itself is not ready yet.
        services: Vec<String>,
    },
    /// The availability has to be restored.
    Availability,
    /// A manager of an autolocked swarm is out of reach and its agent silent: it may have to be unlocked.
    Unlock {
        /// Seconds since its agent was heard, if it ever was.
        silent_secs: Option<u64>,
    },
}

impl fmt::Display for WaitingFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitingFor::OutOfScope => f.write_str("not in the rollout's scope"),
            WaitingFor::Agent => f.write_str("no agent has called from this node"),
            WaitingFor::SilentAgent { secs } => write!(f, "its agent has been silent for {secs} s"),
            WaitingFor::Staging { progress: None } => f.write_str("its agent starts staging"),
            WaitingFor::Staging { progress: Some(p) } if p.total > 0 => {
                write!(f, "staging: {} {} %", activity(p), p.done * 100 / p.total)
            }
            WaitingFor::Staging { progress: Some(p) } => write!(f, "staging: {}", activity(p)),
            WaitingFor::OthersStaging { nodes } => write!(f, "{} still staging", nodes.join(", ")),
            WaitingFor::PriorManager { node } => write!(f, "manager {node} is in work, and managers go one at a time"),
            WaitingFor::Managers { nodes } => write!(f, "managers go first: {}", nodes.join(", ")),
            WaitingFor::Slot { busy } => write!(f, "{} in work", busy.join(", ")),
            WaitingFor::SharedService { service } => {
                write!(f, "the nodes in work and this one hold all running tasks of service {service}")
            }
            WaitingFor::Quorum { reachable, managers } => write!(
                f,
                "quorum: {reachable} of {managers} managers are reachable, and {} must stay",
                managers / 2 + 1
            ),
            WaitingFor::Leader => f.write_str("the managers have no leader"),
            WaitingFor::NotAfter { until, needs_secs } => {
                write!(f, "not after {until}: it would take about {needs_secs} s")
            }
            WaitingFor::Grant => f.write_str("its lease is granted by hand (`requeen grant`)"),
            WaitingFor::Paused => f.write_str("the rollout is paused (`requeen resume`)"),
            WaitingFor::Halted => f.write_str("the rollout is halted (`requeen resume` or `requeen abort`)"),
            WaitingFor::Executor => f.write_str("its executor has to call home"),
            WaitingFor::Drain => f.write_str("being drained"),
            WaitingFor::TasksToEnd { services } => write!(f, "tasks to end: {}", services.join(", ")),
            WaitingFor::ContainersToEnd { count } => write!(f, "{count} containers of tasks to end"),
            WaitingFor::AvailabilityChanged { now } => {
                write!(f, "somebody made it {now} after it was drained; drain it again or `requeen abort`")
            }
            WaitingFor::Removed { node } => write!(
                f,
                "it was removed from the swarm, and its engine may have been stopped: see there, then `requeen release {node}`"
            ),
            WaitingFor::Links => f.write_str("links are put in place"),
            WaitingFor::StopHeldBack { why } => write!(f, "engine not stopped yet: {why}"),
            WaitingFor::Engine { phase, detail } => {
                match phase {
                    None => f.write_str("engine restarting, node out of reach")?,
                    Some(SwapPhase::Stopping) => f.write_str("engine stopping")?,
                    Some(SwapPhase::Switching) => f.write_str("switching")?,
                    Some(SwapPhase::Starting) => f.write_str("engine starting")?,
                    Some(SwapPhase::Verifying) => f.write_str("verifying the new engine")?,
                    Some(SwapPhase::SwitchingBack) => f.write_str("switching back")?,
                    Some(SwapPhase::Settling) => f.write_str("settling")?,
                }
                detail.as_ref().map_or(Ok(()), |detail| write!(f, ": {detail}"))
            }
            WaitingFor::SwarmView { missing } => write!(f, "new engine runs; the swarm has yet to see: {missing}"),
            WaitingFor::Settle => f.write_str("files are made plain"),
            WaitingFor::SwitchBack => f.write_str("the previous engine is put back"),
            WaitingFor::Withdrawal => f.write_str("its lease is being taken back"),
            WaitingFor::OtherManagers { nodes } => {
                write!(f, "kept drained until all managers are done: {}", nodes.join(", "))
            }
            WaitingFor::KeptDrained => f.write_str(
                "kept drained: activate it once every manager runs the same version (`docker node update --availability active`)",
            ),
            WaitingFor::LeftDrained => f.write_str(
                "released while it was drained, and left so (`docker node update --availability active`)",
            ),
            WaitingFor::TasksToRun { services } => write!(f, "tasks to run again: {}", services.join(", ")),
            WaitingFor::OthersTasks { node, services } if services.is_empty() => write!(f, "{node} has to be back first"),
            WaitingFor::OthersTasks { node, services } => {
                write!(f, "tasks to run again on {node} first: {}", services.join(", "))
            }
            WaitingFor::Availability => f.write_str("its availability is being restored"),
            WaitingFor::Unlock { silent_secs } => {
                match silent_secs {
                    Some(secs) => write!(f, "out of reach, and its agent has been silent for {secs} s")?,
                    None => f.write_str("out of reach, and no agent has called from this node")?,
                }
                write!(f, "; {}", super::locked::HINT)
            }
        }
    }
}

fn activity(progress: &Progress) -> &'static str {
    match progress.activity {
        requeen_protocol::Activity::Inspect => "inspecting",
        requeen_protocol::Activity::Download => "downloading",
        requeen_protocol::Activity::Unpack => "unpacking",
        requeen_protocol::Activity::Check => "checking",
    }
}

/// Why a rollout can't start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Host name of the node that it concerns, if one.
    pub node: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}
