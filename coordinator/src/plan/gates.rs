//! The gates that a node passes: before its lease, before its stop, and after its restart. Each says
//! what closes it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use requeen_protocol::{NodeId, NodeState};

use super::limit::Limit;
use super::model::{AgentView, Availability, Entry, LeaseRecord, NodeView, Observed, Phase, Role, Rollout, Step, Work};
use super::reasons::WaitingFor;
use super::returning;

/// Whether losing `one` more manager leaves a majority. Managers outside the rollout count too; those that `may_go`
/// by themselves count as unreachable.
pub(crate) fn quorum_without(
    observed: &Observed,
    one: &NodeId,
    may_go: &dyn Fn(&NodeId) -> bool,
) -> Result<(), (usize, usize)> {
    let managers = observed.nodes.values().filter(|node| node.role == Role::Manager);
    let (mut all, mut reachable, mut lost) = (0, 0, 0);
    for manager in managers {
        all += 1;
        if manager.reachable && !may_go(&manager.id) {
            reachable += 1;
            lost += usize::from(manager.id == *one);
        }
    }
    if reachable - lost > all / 2 { Ok(()) } else { Err((reachable, all)) }
}

/// Host names of the rollout's managers that are neither done nor held.
pub(crate) fn open_managers(rollout: &Rollout) -> Vec<String> {
    rollout
        .nodes
        .values()
        .filter(|entry| entry.role == Role::Manager)
        .filter(|entry| match entry.step {
            Step::Waiting { .. } | Step::Working { .. } => true,
            // A held manager whose availability is being restored does not hold back the others'.
            Step::Held { .. } | Step::Restoring { .. } | Step::Done { .. } => false,
        })
        .map(|entry| entry.hostname.clone())
        .collect()
}

/// Tasks that keep the node from being empty.
pub(crate) fn emptied(observed: &Observed, node: &NodeView, agent: &AgentView) -> Option<WaitingFor> {
    if node.availability != Availability::Drain {
        return Some(WaitingFor::AvailabilityChanged { now: node.availability.to_string() });
    }
    let services: BTreeSet<_> = observed
        .tasks
        .iter()
        .filter(|task| task.alive && task.node.as_ref() == Some(&node.id))
        .map(|task| task.service.clone())
        .collect();
    if !services.is_empty() {
        return Some(WaitingFor::TasksToEnd { services: services.into_iter().collect() });
    }
    match agent.report.state {
        NodeState::Leased { task_containers: count, .. } | NodeState::Linked { task_containers: count, .. }
            if count > 0 =>
        {
            Some(WaitingFor::ContainersToEnd { count })
        }
        NodeState::Idle
        | NodeState::Staging { .. }
        | NodeState::Staged { .. }
        | NodeState::Refused { .. }
        | NodeState::Leased { .. }
        | NodeState::Linked { .. }
        | NodeState::Swapping { .. }
        | NodeState::Running { .. }
        | NodeState::Upgraded { .. }
        | NodeState::RolledBack { .. }
        | NodeState::Stuck { .. }
        | NodeState::Cleaned { .. } => None,
    }
}

/// What the swarm has yet to see of a node whose new engine answers locally.
pub(crate) fn unseen(node: &NodeView, agent: &AgentView, index: u64) -> Option<String> {
    let mut missing = Vec::new();
    if !node.ready {
        missing.push("state ready".to_owned());
    }
    if node.index <= index {
        missing.push("a change of the node since its stop".to_owned());
    }
    match &agent.report.engine {
        Some(engine) if engine.version != node.engine_version => {
            missing.push(format!("version {} (it shows {})", engine.version, node.engine_version));
        }
        Some(_) => {}
        None => missing.push("an engine that answers".to_owned()),
    }
    if node.role == Role::Manager && !node.reachable {
        missing.push("a reachable manager".to_owned());
    }
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// Services whose tasks do not all run again around `node`: those that want a task which does not run
/// yet, and those in global mode that have none on an active node. Beside another node that is in work a manager waits for
/// its own tasks alone: that one's drain may leave some without a place.
pub(crate) fn short_services(rollout: &Rollout, observed: &Observed, node: &NodeView) -> Vec<String> {
    let works = |(id, entry): (&NodeId, &Entry)| *id != node.id && matches!(entry.step, Step::Working { .. });
    let only_own = node.role == Role::Manager && rollout.nodes.iter().any(works);
    let missing = observed.tasks.iter().filter(|task| task.wanted && !task.running);
    let missing = missing.filter(|task| !only_own || task.node.as_ref() == Some(&node.id));
    let mut short: BTreeSet<&str> = missing.map(|task| task.service.as_str()).collect();
    short.retain(|service| !returning::was_short(rollout, service));
    short.extend(returning::not_home(rollout, observed, node));
    short.into_iter().map(str::to_owned).collect()
}

/// The rollout and the swarm, with what several gates need computed once.
pub(crate) struct Gates<'a> {
    rollout: &'a Rollout,
    observed: &'a Observed,
    in_work: Vec<&'a NodeId>,
    /// The managers among them that only wait for their tasks.
    returning: BTreeSet<&'a NodeId>,
    /// Nodes of every service's running tasks.
    running: BTreeMap<&'a str, BTreeSet<&'a NodeId>>,
}

impl<'a> Gates<'a> {
    pub(crate) fn new(rollout: &'a Rollout, observed: &'a Observed) -> Self {
        let in_work = rollout.nodes.iter().filter(|(_, entry)| entry.step.in_work()).map(|(id, _)| id).collect();
        let returns = |id: &NodeId, entry: &Entry| returning::is_returning(observed, id, entry);
        let returning = rollout.nodes.iter().filter(|(id, entry)| returns(id, entry)).map(|(id, _)| id).collect();
        let mut running: BTreeMap<&str, BTreeSet<&NodeId>> = BTreeMap::new();
        for task in observed.tasks.iter().filter(|task| task.running) {
            if let Some(node) = &task.node {
                running.entry(&task.service).or_default().insert(node);
            }
        }
        Self { rollout, observed, in_work, returning, running }
    }

    fn name(&self, id: &NodeId) -> String {
        self.rollout.nodes.get(id).map_or_else(|| id.to_string(), |entry| entry.hostname.clone())
    }

    /// The nodes of that role that `id` has to wait for, as far as slots go.
    fn busy(&self, role: Role, id: &NodeId) -> Vec<&'a NodeId> {
        let spare = returning::can_spare(self.rollout, self.observed, id, &self.returning);
        let busy = self.in_work.iter().filter(|other| !(spare && self.returning.contains(**other)));
        busy.filter(|other| self.rollout.nodes[**other].role == role).copied().collect()
    }

    fn names(&self, ids: &[&NodeId]) -> Vec<String> {
        ids.iter().map(|id| self.name(id)).collect()
    }

    pub(crate) fn in_work_names(&self) -> Vec<String> {
        self.names(&self.in_work)
    }

    pub(crate) fn availability(&self, id: &NodeId) -> Availability {
        self.observed.nodes.get(id).map_or(Availability::Active, |node| node.availability)
    }

    /// What keeps the node from getting a lease now. `forced` opens all gates that an operator may
    /// answer for: order, slots, quorum and the time limit. Staging is none of them.
    pub(crate) fn closed(&self, id: &NodeId, by_hand: bool, forced: bool, now: Timestamp) -> Option<WaitingFor> {
        match self.rollout.phase {
            Phase::Running | Phase::Aborting | Phase::Ended { .. } => {}
            Phase::Paused => return Some(WaitingFor::Paused),
            Phase::Halted { .. } => return Some(WaitingFor::Halted),
        }
        if let Some(why) = self.unstaged(id) {
            return Some(why);
        }
        if !forced && let Some(why) = Limit::of(self.rollout).and_then(|limit| limit.closed(id, now)) {
            return Some(why);
        }
        if self.rollout.request.policy.manual && !by_hand {
            return Some(WaitingFor::Grant);
        }
        if forced {
            return None;
        }
        self.others_unstaged(id).or_else(|| match self.rollout.nodes[id].role {
            Role::Manager => self.manager_closed(id),
            Role::Worker => self.worker_closed(id),
        })
    }

    /// Whether the node itself has staged the target.
    fn unstaged(&self, id: &NodeId) -> Option<WaitingFor> {
        let Some(agent) = self.observed.agents.get(id) else {
            return Some(WaitingFor::Agent);
        };
        if agent.silent_secs > super::SILENT_SECS {
            return Some(WaitingFor::SilentAgent { secs: agent.silent_secs });
        }
        match &agent.report.state {
            NodeState::Staged { rollout, .. } if *rollout == self.rollout.request.id => None,
            NodeState::Staging { rollout, progress } if *rollout == self.rollout.request.id => {
                Some(WaitingFor::Staging { progress: Some(*progress) })
            }
            NodeState::Idle
            | NodeState::Staging { .. }
            | NodeState::Staged { .. }
            | NodeState::Refused { .. }
            | NodeState::Leased { .. }
            | NodeState::Linked { .. }
            | NodeState::Swapping { .. }
            | NodeState::Running { .. }
            | NodeState::Upgraded { .. }
            | NodeState::RolledBack { .. }
            | NodeState::Stuck { .. }
            | NodeState::Cleaned { .. } => Some(WaitingFor::Staging { progress: None }),
        }
    }

    /// Nothing is drained before every node has staged, but for those that joined later.
    fn others_unstaged(&self, id: &NodeId) -> Option<WaitingFor> {
        let nodes: Vec<_> = self
            .rollout
            .nodes
            .iter()
            .filter(|(other, entry)| *other != id && !entry.joined && matches!(entry.step, Step::Waiting { .. }))
            .filter(|(other, _)| self.unstaged(other).is_some())
            .map(|(_, entry)| entry.hostname.clone())
            .collect();
        (!nodes.is_empty()).then_some(WaitingFor::OthersStaging { nodes })
    }

    fn manager_closed(&self, id: &NodeId) -> Option<WaitingFor> {
        if let Some(node) = self.busy(Role::Manager, id).first() {
            return Some(WaitingFor::PriorManager { node: self.name(node) });
        }
        let workers = self.busy(Role::Worker, id);
        if !workers.is_empty() {
            return Some(WaitingFor::Slot { busy: self.names(&workers) });
        }
        let scope = self.rollout.nodes.keys().cloned().collect();
        let prior = super::refuse::order(self.observed, &scope)
            .into_iter()
            .take_while(|other| other != id)
            .find(|other| matches!(self.rollout.nodes[other].step, Step::Waiting { .. }));
        if let Some(prior) = prior
            && !self.rollout.request.policy.manual
        {
            return Some(WaitingFor::PriorManager { node: self.name(&prior) });
        }
        self.quorum(id)
    }

    fn quorum(&self, id: &NodeId) -> Option<WaitingFor> {
        if self.rollout.request.policy.accept_control_plane_outage {
            return None;
        }
        let may_go = |other: &NodeId| super::freed::may_restart(self.rollout, self.observed, other);
        quorum_without(self.observed, id, &may_go)
            .err()
            .map(|(reachable, managers)| WaitingFor::Quorum { reachable, managers })
    }

    fn worker_closed(&self, id: &NodeId) -> Option<WaitingFor> {
        let busy = self.busy(Role::Manager, id);
        let managers: Vec<_> = self
            .rollout
            .nodes
            .iter()
            .filter(|(_, entry)| entry.role == Role::Manager && !matches!(entry.step, Step::Done { .. }))
            .filter(|(other, _)| !self.returning.contains(other) || busy.contains(other))
            .map(|(_, entry)| entry.hostname.clone())
            .collect();
        if !managers.is_empty() {
            return Some(WaitingFor::Managers { nodes: managers });
        }
        let busy = self.busy(Role::Worker, id);
        if busy.len() >= self.rollout.request.policy.workers_at_once as usize {
            return Some(WaitingFor::Slot { busy: self.names(&busy) });
        }
        if busy.is_empty() {
            return None;
        }
        // A batch never holds all running tasks of one service.
        self.running
            .iter()
            .find(|(_, nodes)| nodes.contains(id) && nodes.iter().all(|node| *node == id || busy.contains(node)))
            .map(|(service, _)| WaitingFor::SharedService { service: (*service).to_owned() })
    }

    /// What keeps the engine from being stopped now: everything is looked at once more.
    pub(crate) fn stop_forbidden(&self, node: &NodeView, agent: &AgentView, lease: &LeaseRecord) -> Option<WaitingFor> {
        if !self.observed.has_leader {
            return Some(WaitingFor::Leader);
        }
        if let Some(why) = emptied(self.observed, node, agent) {
            return Some(why);
        }
        let manager = node.role == Role::Manager;
        if manager && let Some(why) = self.another_stops(&node.id) {
            return Some(why);
        }
        if lease.forced {
            return None;
        }
        self.others_tasks().or_else(|| if manager { self.quorum(&node.id) } else { None })
    }

    /// Workers go several at a time, and may have been promoted since: of two that are managers now one stops after the
    /// other, so that each sees what the quorum is without the one before.
    fn another_stops(&self, id: &NodeId) -> Option<WaitingFor> {
        let first = self.in_work.iter().find(|other| {
            let manager = self.observed.nodes.get(**other).is_some_and(|node| node.role == Role::Manager);
            let Step::Working { work, .. } = &self.rollout.nodes[**other].step else { return false };
            manager
                && match work {
                    Work::Linking => **other < id,
                    Work::Permitted { .. } | Work::SwitchingBack { .. } => **other != id,
                    Work::Granted | Work::Draining | Work::Emptying | Work::Settling | Work::Withdrawing => false,
                }
        });
        first.map(|other| WaitingFor::PriorManager { node: self.name(other) })
    }

    /// No engine is stopped before a manager that is active again has its tasks back.
    fn others_tasks(&self) -> Option<WaitingFor> {
        self.rollout.nodes.iter().find_map(|(id, entry)| {
            let (manager, before) = self.observed.nodes.get(id).zip(returning::restoring_manager(entry))?;
            let missing = returning::not_home(self.rollout, self.observed, manager);
            (!returning::is_back(manager, before) || !missing.is_empty()).then(|| WaitingFor::OthersTasks {
                node: entry.hostname.clone(),
                services: missing.into_iter().map(str::to_owned).collect(),
            })
        })
    }
}
