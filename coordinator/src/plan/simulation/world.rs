//! What is in the simulated swarm, and what can happen to it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use requeen_protocol::{NodeId, NodeState, Order, SwapPhase};

use super::super::model::{Availability, Entry, Observed, Phase, Policy, Role, Rollout, Step, TaskView};
use super::super::{Move, SILENT_SECS, freed, owner, plan, rebuild};
use super::{agent, node, rollout, staged};

/// The service that has a task on every active node.
pub(super) const GLOBAL: &str = "everywhere";

/// The service whose one task fits on one node alone.
pub(super) const PINNED: &str = "pinned";

pub(super) fn task_of_global(id: &NodeId, running: bool) -> TaskView {
    TaskView { service: GLOBAL.to_owned(), node: Some(id.clone()), alive: true, running, wanted: true }
}

/// A node as it really is, which is not what the swarm says of it at the same moment.
pub(super) struct Host {
    pub(super) state: NodeState,
    pub(super) order: Option<Order>,
    pub(super) upgraded: bool,
    pub(super) engine_up: bool,
    pub(super) used_permits: BTreeSet<String>,
    pub(super) max_epoch: u64,
    pub(super) memo: Option<String>,
    /// Whether an executor speaks for it though it holds no lease.
    pub(super) executor: bool,
}

impl Host {
    pub(super) fn new() -> Self {
        Self {
            state: NodeState::Idle,
            order: None,
            upgraded: false,
            engine_up: true,
            used_permits: BTreeSet::new(),
            max_epoch: 0,
            memo: None,
            executor: false,
        }
    }

    pub(super) fn holds_lease(&self) -> bool {
        matches!(self.state, NodeState::Leased { .. } | NodeState::Linked { .. })
    }
}

pub(super) struct World {
    pub(super) observed: Observed,
    pub(super) hosts: BTreeMap<NodeId, Host>,
    pub(super) rollout: Rollout,
    pub(super) before: BTreeMap<NodeId, Availability>,
    pub(super) faulty: Option<NodeId>,
    /// Where [`PINNED`] fits.
    pub(super) pinned: Option<NodeId>,
    /// The node that nobody hears and on which nothing happens.
    pub(super) lost: Option<NodeId>,
    pub(super) drained_once: bool,
    /// How many nodes have joined.
    pub(super) came: usize,
}

impl World {
    pub(super) fn new(
        managers: usize,
        workers: usize,
        policy: Policy,
        placement: &[u8],
        faulty: Option<usize>,
    ) -> Self {
        let nodes: Vec<_> = (1..=managers)
            .map(|n| node(&format!("m{n}"), Role::Manager))
            .chain((1..=workers).map(|n| node(&format!("w{n}"), Role::Worker)))
            .collect();
        let ids: Vec<_> = nodes.iter().map(|node| node.id.clone()).collect();
        let rollout = rollout(&nodes, policy);
        let everywhere = ids.iter().map(|id| task_of_global(id, true));
        let tasks = placement
            .iter()
            .enumerate()
            .map(|(n, at)| TaskView {
                service: format!("s{}", n % 3),
                node: Some(ids[*at as usize % ids.len()].clone()),
                alive: true,
                running: true,
                wanted: true,
            })
            .chain(everywhere)
            .collect();
        Self {
            hosts: nodes.iter().map(|view| (view.id.clone(), Host::new())).collect(),
            before: nodes.iter().map(|view| (view.id.clone(), view.availability)).collect(),
            faulty: faulty.map(|n| ids[n % ids.len()].clone()),
            observed: Observed {
                me: ids[0].clone(),
                has_leader: true,
                autolocked: false,
                agents: nodes.iter().map(|view| (view.id.clone(), agent(view, NodeState::Idle))).collect(),
                nodes: nodes.into_iter().map(|view| (view.id.clone(), view)).collect(),
                tasks,
                global_services: vec![GLOBAL.to_owned()],
            },
            rollout,
            pinned: None,
            lost: None,
            drained_once: false,
            came: 0,
        }
    }

    /// Adds the service that fits on one node alone.
    pub(super) fn pin(&mut self, at: Option<usize>) {
        let ids: Vec<_> = self.hosts.keys().cloned().collect();
        self.pinned = at.map(|at| ids[at % ids.len()].clone());
        let task = |id: &NodeId| TaskView { service: PINNED.to_owned(), ..task_of_global(id, true) };
        self.observed.tasks.extend(self.pinned.as_ref().map(task));
    }

    pub(super) fn lose(&mut self, id: &NodeId) {
        if let Some(agent) = self.observed.agents.get_mut(id) {
            agent.silent_secs = SILENT_SECS + 1;
        }
        self.lost = Some(id.clone());
        // It is so for longer than the swarm takes to notice.
        self.swarm_hears(id);
    }

    /// The operator's word that the lost node's slot is free, where the planner allows it.
    pub(super) fn release(&mut self, id: &NodeId) {
        let entry = self.rollout.nodes.get_mut(id).expect("a node of the rollout");
        if freed::may_free(entry, &self.observed, id, SILENT_SECS + 1).is_ok() {
            entry.step = freed::freed(entry, self.observed.nodes.get(id), 0);
            entry.times.push((entry.step.name().to_owned(), 0));
        }
    }

    /// The lost node wakes up where it was; a lease that it held before the stop has run out meanwhile.
    pub(super) fn find(&mut self, id: &NodeId) {
        if let Some(agent) = self.observed.agents.get_mut(id) {
            agent.silent_secs = 0;
        }
        self.lost = None;
        let host = self.hosts.get_mut(id).expect("a host");
        let rollout = self.rollout.request.id.clone();
        if host.holds_lease() {
            host.state = staged(&rollout);
        } else if let NodeState::Swapping { lease, phase: SwapPhase::Stopping, .. } = &host.state
            && host.engine_up
        {
            let (lease, reason) = (lease.clone(), "its lease ran out".to_owned());
            host.state = NodeState::RolledBack { rollout, lease, reason, engine_down_ms: 0, log: Vec::new() };
        }
        self.call_home(id);
    }

    pub(super) fn event(&mut self, kind: u8, at: u8) {
        let ids: Vec<_> = self.hosts.keys().cloned().collect();
        let id = &ids[at as usize % ids.len()];
        match kind % 9 {
            0 => self.coordinate(),
            1 => self.call_home(id),
            2 => self.act(id),
            3 => self.swarm_hears(id),
            4 => self.tasks_leave(id, at),
            5 => self.tasks_start(),
            6 => self.take_over(id),
            7 => self.lease_runs_out(id),
            _ => self.lose_record(),
        }
        self.check();
    }

    /// The executor has heard nothing for too long.
    pub(super) fn lease_runs_out(&mut self, id: &NodeId) {
        let host = self.hosts.get_mut(id).expect("a host");
        if host.holds_lease() {
            (host.state, host.executor) = (staged(&self.rollout.request.id), true);
        }
    }

    /// Another coordinator drives from here on; what the one before has said is still under way.
    pub(super) fn take_over(&mut self, id: &NodeId) {
        if self.observed.nodes[id].role == Role::Manager {
            self.rollout = owner::taken_over(&self.rollout, id, Timestamp::UNIX_EPOCH);
            self.observed.me = id.clone();
        }
    }

    /// Somebody removes the record, and the operator has it made again.
    pub(super) fn lose_record(&mut self) {
        let all_heard = self.observed.agents.keys().eq(self.hosts.keys());
        let staged = all_heard && self.observed.agents.values().all(|agent| agent.report.state.rollout().is_some());
        // Who was released, has joined or has left is what the operator looks after.
        let same = self.lost.is_none() && self.hosts.keys().eq(self.rollout.nodes.keys());
        let left_alone = |entry: &Entry| entry.joined || entry.times.iter().any(|(step, _)| step == "failed");
        let same = same && !self.rollout.nodes.values().any(left_alone);
        if self.rollout.phase == Phase::Running && staged && same {
            let (id, epoch) = (self.rollout.request.id.clone(), self.rollout.owner.epoch + 1);
            if let Some(again) = rebuild::rebuild(&self.observed, &id, epoch, Timestamp::UNIX_EPOCH) {
                assert_eq!(again.nodes.len(), self.rollout.nodes.len(), "a node was lost with the record");
                self.rollout = again;
                // What they said until now may be older than what they do: each has to speak once more.
                self.observed.agents.clear();
            }
        }
    }

    pub(super) fn coordinate(&mut self) {
        for step in plan(&self.rollout, &self.observed, Timestamp::UNIX_EPOCH).moves {
            match step {
                Move::Record { node, step } => {
                    if step.name() == "granted" {
                        self.check_grant(&node);
                    }
                    if step.name() == "swapping" && self.hosts[&node].holds_lease() {
                        self.check_permit(&node);
                    }
                    let entry = self.rollout.nodes.get_mut(&node).expect("a node of the rollout");
                    entry.times.push((step.name().to_owned(), 0));
                    entry.step = step;
                }
                Move::Join { node, entry } => {
                    let before = self.rollout.nodes.insert(node, entry);
                    assert!(before.is_none(), "a node of the rollout joined it");
                }
                Move::SetAvailability { node, to } => {
                    if to == Availability::Drain && !self.drained_once {
                        self.drained_once = true;
                        let joined = |id| self.rollout.nodes.get(id).is_none_or(|entry| entry.joined);
                        let idle = |host: &Host| matches!(host.state, NodeState::Idle);
                        let late = self.hosts.iter().any(|(id, host)| !joined(id) && idle(host));
                        assert!(!late, "a node was drained before every node had staged");
                    }
                    let view = self.observed.nodes.get_mut(&node).expect("a node");
                    view.availability = to;
                    view.index += 1;
                }
                Move::Phase(phase) => {
                    if phase == (Phase::Ended { aborted: false }) {
                        let all = self.observed.agents.keys().all(|id| self.rollout.nodes.contains_key(id));
                        assert!(all, "it ended without a node that had joined in time");
                    }
                    self.rollout.phase = phase;
                }
            }
        }
    }

    /// A node joins the swarm.
    pub(super) fn join(&mut self, role: Role) {
        self.came += 1;
        let view = node(&format!("j{}", self.came), role);
        self.hosts.insert(view.id.clone(), Host::new());
        self.before.insert(view.id.clone(), view.availability);
        self.observed.nodes.insert(view.id.clone(), view);
    }

    /// A worker without a lease leaves the swarm, if there is one.
    pub(super) fn leave(&mut self, at: u8) {
        let rollout = &self.rollout.nodes;
        let free = |id: &&NodeId| {
            let waits = |entry: &Entry| matches!(entry.step, Step::Waiting { .. });
            self.observed.nodes[*id].role == Role::Worker && rollout.get(*id).is_none_or(waits)
        };
        let free: Vec<_> = self.hosts.keys().filter(free).cloned().collect();
        let Some(id) = free.get(at as usize % free.len().max(1)) else { return };
        self.hosts.remove(id);
        self.observed.nodes.remove(id);
        self.observed.agents.remove(id);
        if self.faulty.as_ref() == Some(id) {
            self.faulty = None;
        }
        for task in self.observed.tasks.iter_mut().filter(|task| task.node.as_ref() == Some(id)) {
            (task.node, task.alive, task.running) = (None, false, false);
        }
        let gone = self.pinned.as_ref() == Some(id);
        self.observed.tasks.retain(|task| task.service != GLOBAL || task.node.is_some());
        self.observed.tasks.retain(|task| task.service != PINNED || !gone);
    }
}
