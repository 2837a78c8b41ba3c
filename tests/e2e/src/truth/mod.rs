//! The truth about a rollout, as the engines and the nodes' journals tell it.
//!
//! [`Watch`] runs while the rollout does: it samples nodes and tasks on whichever manager answers, and collects the
//! managers' events. [`journal`] holds what each node's systemd and executor wrote. Together they make a [`Truth`], which
//! [`order`] judges. All nodes of a lab share the machine's clock, so their times compare.

pub mod api;
pub mod journal;
pub mod order;
mod watch;

pub use watch::Watch;

use std::collections::BTreeMap;

use jiff::Timestamp;

/// A node's availability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Availability {
    /// Gets tasks.
    Active,
    /// Keeps its tasks and gets no new ones.
    Pause,
    /// Loses its tasks.
    Drain,
}

/// A node as a manager saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    /// Its ID.
    pub id: String,
    /// Its availability.
    pub availability: Availability,
    /// Whether it was ready.
    pub ready: bool,
    /// What kind of manager it was; nothing for a worker.
    pub manager: Option<ManagerSeen>,
    /// The version of its engine.
    pub engine: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A manager as another one saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManagerSeen {
    /// Whether it led.
    pub leader: bool,
    /// Whether it was reachable.
    pub reachable: bool,
}

/// A task as a manager saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSeen {
    /// Its ID.
    pub id: String,
    /// The ID of its service.
    pub service: String,
    /// The host name of its node, once it has one.
    pub node: Option<String>,
    /// What it was doing.
    pub life: Life,
    /// When its node said so.
    pub since: Timestamp,
}

/// The part of a task's life that matters to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// No container yet: new, pending.
    Unborn,
    /// From assigned to starting: it may have a container.
    Starting,
    /// Running.
    Running,
    /// Complete, shut down, failed, rejected, orphaned, to be removed.
    Over,
}

impl Life {
    /// Whether a container of it may run.
    pub fn is_alive(self) -> bool {
        match self {
            Self::Starting | Self::Running => true,
            Self::Unborn | Self::Over => false,
        }
    }
}

/// Nodes and tasks at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was asked for: whatever it says was true no earlier.
    pub at: Timestamp,
    /// Every node by its host name.
    pub nodes: BTreeMap<String, NodeSeen>,
    /// Every task that the swarm remembers.
    pub tasks: Vec<TaskSeen>,
}

/// A change of a node's availability, as a manager's events told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// When.
    pub at: Timestamp,
    /// The node's host name.
    pub node: String,
    /// Its availability from then on.
    pub to: Availability,
}

/// What one node's own journal tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLog {
    /// When docker.service began to stop.
    pub stops: Vec<Timestamp>,
    /// When docker.service had started.
    pub starts: Vec<Timestamp>,
    /// The permits that the executor used, and when.
    pub permits: Vec<(Timestamp, String)>,
    /// When each set of engine files was complete on the node's disk, by the digest of its dockerd.
    pub sets: BTreeMap<String, Timestamp>,
}

/// Everything seen of one rollout.
#[derive(Clone, Debug)]
pub struct Truth {
    /// The nodes just before it.
    pub before: Sample,
    /// The nodes after it.
    pub after: Sample,
    /// What was seen meanwhile, in order of time.
    pub samples: Vec<Sample>,
    /// Changes of availability, in order of time.
    pub changes: Vec<Change>,
    /// Every node's journal since the rollout began.
    pub logs: BTreeMap<String, NodeLog>,
}

impl Truth {
    /// Host names of the managers before the rollout.
    pub fn managers(&self) -> impl Iterator<Item = &str> {
        self.before.nodes.iter().filter(|(_, node)| node.manager.is_some()).map(|(name, _)| name.as_str())
    }

    /// Host names of the workers before the rollout.
    pub fn workers(&self) -> impl Iterator<Item = &str> {
        self.before.nodes.iter().filter(|(_, node)| node.manager.is_none()).map(|(name, _)| name.as_str())
    }

    /// The node's availability at a time, by the last event before it.
    pub fn availability(&self, node: &str, at: Timestamp) -> Option<Availability> {
        let last = self.changes.iter().rev().find(|change| change.node == node && change.at <= at);
        last.map(|change| change.to).or_else(|| self.before.nodes.get(node).map(|seen| seen.availability))
    }

    /// The last sample that was asked for before a time.
    pub fn sample_before(&self, at: Timestamp) -> &Sample {
        self.samples.iter().rev().find(|sample| sample.at <= at).unwrap_or(&self.before)
    }

    /// For each stop of an engine: the node, when it began, and when the engine had started again, if it has.
    pub fn outages(&self) -> Vec<(&str, Timestamp, Option<Timestamp>)> {
        let mut outages: Vec<_> = self
            .logs
            .iter()
            .flat_map(|(node, log)| {
                log.stops
                    .iter()
                    .map(|stop| (node.as_str(), *stop, log.starts.iter().copied().find(|start| start > stop)))
            })
            .collect();
        outages.sort_by_key(|(_, stop, _)| *stop);
        outages
    }
}
