//! A swarm that exists only in memory, driven through whole rollouts in random order.
//!
//! Real swarms are in the end-to-end tests; this one exists for interleavings that no lab can produce in
//! number: every agent, task and raft write may be late, and engines fail. The invariants are checked after
//! every single event.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;
use requeen_protocol::{
    BundleRef, Digest, EngineFacts, LeaseId, NodeId, NodeState, Order, Preflight, Report, RolloutId, Speaker,
    SwapPhase, Target,
};

use super::model::{
    AgentView, Availability, Entry, ManagerPolicy, NodeView, Observed, Outcome, Owner, Phase, Policy, Request, Role,
    Rollout, SCHEMA, Step, TaskView,
};
use super::{Move, freed, orders, owner, plan, rebuild, returning};

pub(crate) fn node(name: &str, role: Role) -> NodeView {
    NodeView {
        id: NodeId(format!("id-{name}")),
        hostname: name.to_owned(),
        role,
        availability: Availability::Active,
        ready: true,
        leader: name == "m1",
        reachable: role == Role::Manager,
        engine_version: "20.10.24".to_owned(),
        addr: String::new(),
        index: 1,
    }
}

pub(crate) fn agent(view: &NodeView, state: NodeState) -> AgentView {
    AgentView {
        report: Report {
            node: view.id.clone(),
            agent_version: "0".to_owned(),
            speaker: Speaker::Task,
            boot_id: "boot".to_owned(),
            engine: Some(EngineFacts {
                version: view.engine_version.clone(),
                api_version: "1.41".to_owned(),
                started_us: 1,
                files: BTreeMap::new(),
            }),
            installed: None,
            state,
            seen: None,
            memo: None,
            unreached: Vec::new(),
        },
        silent_secs: 0,
        state_secs: 0,
    }
}

pub(crate) fn staged(rollout: &RolloutId) -> NodeState {
    NodeState::Staged {
        rollout: rollout.clone(),
        preflight: Preflight {
            from: "20.10.24".to_owned(),
            to: "26.1.5".to_owned(),
            set: digest(),
            changes: vec![requeen_protocol::EngineFile::Dockerd],
            standalone: Vec::new(),
            notes: Vec::new(),
        },
    }
}

pub(crate) fn digest() -> Digest {
    Digest::from_hex(&"0".repeat(64)).expect("a digest")
}

pub(crate) fn rollout(nodes: &[NodeView], policy: Policy) -> Rollout {
    let id = RolloutId("r1".to_owned());
    Rollout {
        request: Request {
            schema: SCHEMA,
            id,
            target: Target::Bundle(BundleRef {
                digest: digest(),
                size: 1,
                version: "26.1.5".to_owned(),
                arch: "x86_64".to_owned(),
                files: BTreeMap::new(),
                unpacked: 1,
            }),
            policy,
            started_by_uid: 0,
            started_at: Timestamp::UNIX_EPOCH,
            short_services: Vec::new(),
            scope_all: true,
            excluded: BTreeSet::new(),
        },
        phase: Phase::Running,
        owner: Owner { node: nodes[0].id.clone(), epoch: 1, renewed: Timestamp::UNIX_EPOCH },
        nodes: nodes
            .iter()
            .map(|view| {
                let entry = Entry {
                    hostname: view.hostname.clone(),
                    role: view.role,
                    from: view.engine_version.clone(),
                    joined: false,
                    step: Step::Waiting { by_hand: false, forced: false },
                    times: Vec::new(),
                };
                (view.id.clone(), entry)
            })
            .collect(),
        limit_lifted: false,
    }
}

pub(crate) fn policy(managers: ManagerPolicy, workers_at_once: u32) -> Policy {
    Policy {
        managers,
        workers_at_once,
        manual: false,
        accept_control_plane_outage: false,
        allow_downgrade: false,
        start_timeout_secs: 120,
        join_timeout_secs: 120,
        not_after: None,
    }
}

/// The service that has a task on every active node.
const GLOBAL: &str = "everywhere";

/// The service whose one task fits on one node alone.
const PINNED: &str = "pinned";

fn task_of_global(id: &NodeId, running: bool) -> TaskView {
    TaskView { service: GLOBAL.to_owned(), node: Some(id.clone()), alive: true, running, wanted: true }
}

/// A node as it really is, which is not what the swarm says of it at the same moment.
struct Host {
    state: NodeState,
    order: Option<Order>,
    upgraded: bool,
    engine_up: bool,
    used_permits: BTreeSet<String>,
    max_epoch: u64,
    memo: Option<String>,
    /// Whether an executor speaks for it though it holds no lease.
    executor: bool,
}

impl Host {
    fn new() -> Self {
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

    fn holds_lease(&self) -> bool {
        matches!(self.state, NodeState::Leased { .. } | NodeState::Linked { .. })
    }
}

struct World {
    observed: Observed,
    hosts: BTreeMap<NodeId, Host>,
    rollout: Rollout,
    before: BTreeMap<NodeId, Availability>,
    faulty: Option<NodeId>,
    /// Where [`PINNED`] fits.
    pinned: Option<NodeId>,
    /// The node that nobody hears and on which nothing happens.
    lost: Option<NodeId>,
    drained_once: bool,
    /// How many nodes have joined.
    came: usize,
}

impl World {
    fn new(managers: usize, workers: usize, policy: Policy, placement: &[u8], faulty: Option<usize>) -> Self {
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
    fn pin(&mut self, at: Option<usize>) {
        let ids: Vec<_> = self.hosts.keys().cloned().collect();
        self.pinned = at.map(|at| ids[at % ids.len()].clone());
        let task = |id: &NodeId| TaskView { service: PINNED.to_owned(), ..task_of_global(id, true) };
        self.observed.tasks.extend(self.pinned.as_ref().map(task));
    }

    fn lose(&mut self, id: &NodeId) {
        if let Some(agent) = self.observed.agents.get_mut(id) {
            agent.silent_secs = super::SILENT_SECS + 1;
        }
        self.lost = Some(id.clone());
        // It is so for longer than the swarm takes to notice.
        self.swarm_hears(id);
    }

    /// The operator's word that the lost node's slot is free, where the planner allows it.
    fn release(&mut self, id: &NodeId) {
        let entry = self.rollout.nodes.get_mut(id).expect("a node of the rollout");
        if freed::may_free(entry, &self.observed, id, super::SILENT_SECS + 1).is_ok() {
            entry.step = freed::freed(entry, self.observed.nodes.get(id), 0);
            entry.times.push((entry.step.name().to_owned(), 0));
        }
    }

    /// The lost node wakes up where it was; a lease that it held before the stop has run out meanwhile.
    fn find(&mut self, id: &NodeId) {
        if let Some(agent) = self.observed.agents.get_mut(id) {
            agent.silent_secs = 0;
        }
        self.lost = None;
        let host = self.hosts.get_mut(id).expect("a host");
        if matches!(host.state, NodeState::Leased { .. } | NodeState::Linked { .. }) {
            host.state = staged(&self.rollout.request.id);
        }
        self.call_home(id);
    }

    fn event(&mut self, kind: u8, at: u8) {
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
    fn lease_runs_out(&mut self, id: &NodeId) {
        let host = self.hosts.get_mut(id).expect("a host");
        if host.holds_lease() {
            (host.state, host.executor) = (staged(&self.rollout.request.id), true);
        }
    }

    /// Another coordinator drives from here on; what the one before has said is still under way.
    fn take_over(&mut self, id: &NodeId) {
        if self.observed.nodes[id].role == Role::Manager {
            self.rollout = owner::taken_over(&self.rollout, id, Timestamp::UNIX_EPOCH);
            self.observed.me = id.clone();
        }
    }

    /// Somebody removes the record, and the operator has it made again.
    fn lose_record(&mut self) {
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

    fn coordinate(&mut self) {
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

    /// A lease is about to be recorded.
    fn check_grant(&self, id: &NodeId) {
        assert!(self.observed.nodes.contains_key(id), "a lease for {id}, which has left the swarm");
        assert!(!matches!(self.hosts[id].state, NodeState::Idle), "a lease for {id}, which has not staged");
        let open = |(id, entry): (&NodeId, &Entry)| entry.role == Role::Manager && !self.is_through(id, entry);
        let before_managers = self.rollout.nodes[id].role == Role::Worker && self.rollout.nodes.iter().any(open);
        assert!(!before_managers, "{id} before a manager that was known");
        let steps = || self.rollout.nodes.iter().filter(|(_, entry)| entry.step.in_work());
        let serves = |id: &&NodeId| self.runs_global(id) && steps().all(|(other, _)| other != *id);
        let stays = self.observed.nodes.keys().filter(|other| *other != id).filter(serves).count();
        let returns = steps().any(|(other, entry)| self.is_through(other, entry) && !self.runs_global(other));
        assert!(!returns || stays > 0, "a lease for {id}, on which the last task of {GLOBAL} runs");
    }

    /// A permit is about to be recorded.
    fn check_permit(&self, id: &NodeId) {
        let late = |other: &NodeId, entry: &Entry| {
            let Step::Restoring { before, .. } = entry.step else { return false };
            let needs_none = before != Availability::Active || self.runs_global(other);
            let home = |node: &NodeView| node.availability == before && needs_none;
            entry.role == Role::Manager && !self.observed.nodes.get(other).is_none_or(home)
        };
        let late = self.rollout.nodes.iter().find(|(other, entry)| late(other, entry));
        assert!(late.is_none(), "{id} is stopped while the tasks of {late:?} don't run");
    }

    fn runs_global(&self, id: &NodeId) -> bool {
        let here = |task: &TaskView| task.service == GLOBAL && task.running && task.node.as_ref() == Some(id);
        self.observed.tasks.iter().any(here)
    }

    /// Whether nothing is left to do on the node itself: at most its tasks have to start.
    fn is_through(&self, id: &NodeId, entry: &Entry) -> bool {
        matches!(entry.step, Step::Done { .. }) || returning::is_returning(&self.observed, id, entry)
    }

    /// A node joins the swarm.
    fn join(&mut self, role: Role) {
        self.came += 1;
        let view = node(&format!("j{}", self.came), role);
        self.hosts.insert(view.id.clone(), Host::new());
        self.before.insert(view.id.clone(), view.availability);
        self.observed.nodes.insert(view.id.clone(), view);
    }

    /// A worker without a lease leaves the swarm, if there is one.
    fn leave(&mut self, at: u8) {
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

    fn call_home(&mut self, id: &NodeId) {
        if self.lost.as_ref() == Some(id) {
            return;
        }
        let host = self.hosts.get_mut(id).expect("a host");
        let new = || agent(&self.observed.nodes[id], NodeState::Idle);
        let view = self.observed.agents.entry(id.clone()).or_insert_with(new);
        view.report.state = host.state.clone();
        view.report.memo = host.memo.clone();
        view.report.speaker = match host.state {
            NodeState::Staged { .. } if host.executor => Speaker::Executor,
            NodeState::Idle
            | NodeState::Staging { .. }
            | NodeState::Staged { .. }
            | NodeState::Refused { .. }
            | NodeState::Cleaned { .. } => Speaker::Task,
            NodeState::Leased { .. }
            | NodeState::Linked { .. }
            | NodeState::Swapping { .. }
            | NodeState::Running { .. }
            | NodeState::Upgraded { .. }
            | NodeState::RolledBack { .. }
            | NodeState::Stuck { .. } => Speaker::Executor,
        };
        view.report.engine.as_mut().expect("facts").version =
            if host.upgraded { "26.1.5".to_owned() } else { "20.10.24".to_owned() };
        host.order = Some(orders::order_for(orders::Knows::driving(&self.rollout, true), &view.report, 0));
    }

    fn tasks_on(&self, id: &NodeId) -> u32 {
        self.observed.tasks.iter().filter(|task| task.alive && task.node.as_ref() == Some(id)).count() as u32
    }

    fn act(&mut self, id: &NodeId) {
        if self.lost.as_ref() == Some(id) {
            return;
        }
        let rollout = self.rollout.request.id.clone();
        let tasks = self.tasks_on(id);
        let drained = self.observed.nodes[id].availability == Availability::Drain;
        let faulty = self.faulty.as_ref() == Some(id);
        let host = self.hosts.get_mut(id).expect("a host");
        let held = |lease: &LeaseId| lease.clone();
        if let NodeState::Swapping { lease, phase, .. } = &host.state {
            // The node finishes alone.
            let (lease, engine_down_ms) = (held(lease), 1000);
            host.state = match (phase, faulty) {
                (SwapPhase::Stopping, _) => {
                    host.engine_up = false;
                    NodeState::Swapping { rollout, lease, phase: SwapPhase::Starting, waiting: None }
                }
                (_, false) => {
                    host.engine_up = true;
                    host.upgraded = true;
                    NodeState::Running { rollout, lease, engine_down_ms }
                }
                (_, true) => {
                    host.engine_up = true;
                    NodeState::RolledBack {
                        rollout,
                        lease,
                        reason: "exit 1".to_owned(),
                        engine_down_ms,
                        log: Vec::new(),
                    }
                }
            };
            return;
        }
        let Some(order) = host.order.take() else { return };
        if let Some(lease) = order.lease() {
            if lease.epoch < host.max_epoch {
                return;
            }
            host.max_epoch = lease.epoch;
        }
        match order {
            Order::Wait { .. } | Order::Standby { .. } | Order::Forget { .. } => {}
            Order::Clean { .. } => panic!("{id}: cleaned in the middle of a rollout"),
            Order::Stage { rollout, .. } if matches!(host.state, NodeState::Idle) => host.state = staged(&rollout),
            // Nothing renews the lease of an executor that holds one: it runs out.
            Order::Stage { rollout, .. } if host.holds_lease() => {
                (host.state, host.executor) = (staged(&rollout), true);
            }
            Order::Withdraw { .. } if host.holds_lease() => host.state = staged(&rollout),
            // It is so already, or the node is further and refuses.
            Order::Stage { .. } | Order::Withdraw { .. } => {}
            Order::Hold { lease, memo } => {
                host.memo = Some(memo);
                if matches!(host.state, NodeState::Staged { .. } | NodeState::Leased { .. }) {
                    host.state = NodeState::Leased { rollout, lease: lease.id, task_containers: tasks };
                }
            }
            Order::Link { lease } if host.holds_lease() => {
                host.state = NodeState::Linked { rollout, lease: lease.id, task_containers: tasks }
            }
            Order::Stop { permit } if matches!(host.state, NodeState::Linked { .. }) => {
                assert!(drained, "{id}: a stop was permitted though the node was not drained");
                assert_eq!(tasks, 0, "{id}: a stop was permitted though tasks ran");
                assert!(host.used_permits.insert(permit.id.0), "{id}: a permit was used twice");
                host.state =
                    NodeState::Swapping { rollout, lease: permit.lease.id, phase: SwapPhase::Stopping, waiting: None };
            }
            // The node is further and refuses. Where it is back at its beginning, an executor is started and says so.
            Order::Link { .. } | Order::Stop { .. } => {
                host.executor = host.executor || matches!(host.state, NodeState::Staged { .. });
            }
            Order::Settle { lease } => {
                host.state = NodeState::Upgraded { rollout, lease: lease.id, engine_down_ms: 1000, set: digest() };
            }
            Order::SwitchBack { lease, reason } => {
                host.upgraded = false;
                host.state =
                    NodeState::RolledBack { rollout, lease: lease.id, reason, engine_down_ms: 1000, log: Vec::new() };
            }
        }
    }

    /// The swarm's view of a node follows the truth some time later.
    fn swarm_hears(&mut self, id: &NodeId) {
        let host = &self.hosts[id];
        let view = self.observed.nodes.get_mut(id).expect("a node");
        let version = if host.upgraded { "26.1.5" } else { "20.10.24" };
        if view.ready != host.engine_up || view.engine_version != version {
            view.index += 1;
        }
        view.ready = host.engine_up;
        view.reachable = host.engine_up && view.role == Role::Manager;
        view.engine_version = version.to_owned();
    }

    fn tasks_leave(&mut self, id: &NodeId, seed: u8) {
        if self.observed.nodes[id].availability != Availability::Drain {
            return;
        }
        let homes: Vec<_> = self
            .observed
            .nodes
            .values()
            .filter(|node| node.availability == Availability::Active && node.ready)
            .map(|node| node.id.clone())
            .collect();
        // Without a home it ends all the same, and another one is pending.
        let home = homes.get(seed as usize % homes.len().max(1));
        if let Some(task) = self.observed.tasks.iter_mut().find(|task| task.node.as_ref() == Some(id)) {
            (task.node, task.alive, task.running) = (home.cloned(), home.is_some(), false);
            if [GLOBAL, PINNED].contains(&task.service.as_str()) {
                (task.node, task.alive) = (None, false);
            }
        }
        self.observed.tasks.retain(|task| task.service != GLOBAL || task.node.is_some());
    }

    fn tasks_start(&mut self) {
        let fits_again = |id: &&NodeId| {
            self.observed.nodes.get(*id).is_some_and(|node| node.availability == Availability::Active && node.ready)
        };
        let place = self.pinned.as_ref().filter(fits_again).cloned();
        for task in &mut self.observed.tasks {
            if task.service == PINNED && task.node.is_none() {
                (task.node, task.alive) = (place.clone(), place.is_some());
            }
            task.running = task.wanted && (task.service != PINNED || task.node.is_some());
        }
        let has_one = |id: &NodeId| {
            self.observed.tasks.iter().any(|task| task.service == GLOBAL && task.node.as_ref() == Some(id))
        };
        let fits = |node: &&NodeView| node.availability == Availability::Active && node.ready && !has_one(&node.id);
        let new: Vec<_> =
            self.observed.nodes.values().filter(fits).map(|node| task_of_global(&node.id, false)).collect();
        self.observed.tasks.extend(new);
    }

    fn check(&self) {
        let down = |role: Role| {
            self.hosts.iter().filter(|(id, host)| !host.engine_up && self.observed.nodes[*id].role == role).count()
        };
        let managers = self.observed.nodes.values().filter(|node| node.role == Role::Manager).count();
        assert!(down(Role::Manager) <= 1, "two managers are down");
        assert!(managers - down(Role::Manager) > managers / 2, "quorum is lost");
        let at_once = self.rollout.request.policy.workers_at_once as usize;
        // A node that was released and is heard again takes its slot back only to put its files in order.
        let released = |entry: &Entry| entry.times.iter().any(|(step, _)| step == "failed");
        let takes_a_slot = |(id, entry): &(&NodeId, &Entry)| {
            entry.role == Role::Worker && entry.step.in_work() && !released(entry) && !self.is_through(id, entry)
        };
        let working = self.rollout.nodes.iter().filter(takes_a_slot).count();
        assert!(working <= at_once, "{working} workers in work, {at_once} allowed");
        let leased = |entry: &Entry| entry.times.iter().any(|(step, _)| step == "granted");
        let first_worker = self.rollout.nodes.values().any(|entry| entry.role == Role::Worker && leased(entry));
        let managers_done = self
            .rollout
            .nodes
            .iter()
            .filter(|(_, entry)| entry.role == Role::Manager && !entry.joined)
            .all(|(id, entry)| self.is_through(id, entry) || released(entry));
        assert!(!first_worker || managers_done, "a worker moved before all managers were done");
        for (id, host) in &self.hosts {
            if !host.engine_up {
                assert_eq!(self.observed.nodes[id].availability, Availability::Drain, "{id} is down but not drained");
                assert_eq!(self.tasks_on(id), 0, "{id} is down with tasks on it");
            }
        }
        if self.rollout.request.policy.managers == ManagerPolicy::HoldDrained {
            let done = |role| self.rollout.nodes.iter().filter(move |(_, e)| e.role == role && !e.joined);
            let all = done(Role::Manager).all(|(id, _)| self.hosts[id].upgraded);
            for (id, entry) in done(Role::Manager) {
                if self.hosts[id].upgraded && !all && entry.times.len() > 4 {
                    assert_eq!(self.observed.nodes[id].availability, Availability::Drain, "{id} was activated early");
                }
            }
        }
    }
}

fn run(world: &mut World, events: &[(u8, u8)]) {
    for &(kind, at) in events {
        world.event(kind, at);
    }
    // Then everything happens in turn, until nothing is left to happen.
    for number in 0..400 {
        round(world, number);
        if matches!(world.rollout.phase, Phase::Ended { .. }) {
            break;
        }
    }
}

/// Everything happens once to every node.
fn round(world: &mut World, number: u32) {
    for kind in 0..6 {
        for at in 0..world.hosts.len() as u8 {
            world.event(kind, at.wrapping_add((number % 7) as u8));
        }
    }
}

/// So many events of such rounds.
fn some(world: &mut World, events: usize) {
    let nodes = world.hosts.len();
    for n in 0..events {
        let (number, kind, at) = (n / nodes / 6, n / nodes % 6, n % nodes);
        world.event(kind as u8, (at + number % 7) as u8);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_interleaving_keeps_the_order(
        workers in 1_usize..4,
        at_once in 1_u32..3,
        hold in any::<bool>(),
        placement in prop::collection::vec(any::<u8>(), 0..8),
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 0..400),
        faulty in prop::option::of(0_usize..6),
        pinned in prop::option::of(0_usize..6),
    ) {
        let managers = if hold { ManagerPolicy::HoldDrained } else { ManagerPolicy::Rolling };
        let mut world = World::new(3, workers, policy(managers, at_once), &placement, faulty);
        world.pin(pinned);
        run(&mut world, &events);
        match &world.rollout.phase {
            Phase::Ended { aborted } => {
                prop_assert!(!aborted);
                prop_assert!(world.faulty.is_none(), "a fault did not halt the rollout");
                for (id, host) in &world.hosts {
                    prop_assert!(host.upgraded);
                    prop_assert_eq!(world.observed.nodes[id].availability, world.before[id]);
                }
            }
            Phase::Halted { .. } => {
                let faulty = world.faulty.clone().expect("a reason to halt");
                for (id, entry) in &world.rollout.nodes {
                    prop_assert!(host_is_whole(&world.hosts[id]), "{} is neither old nor new", id);
                    prop_assert!(!entry.step.in_work(), "{} is still in work", id);
                    if *id == faulty {
                        let rolled_back = match &entry.step {
                            Step::Done { outcome } | Step::Held { outcome, .. } => matches!(outcome, Outcome::RolledBack { .. }),
                            Step::Waiting { .. } | Step::Working { .. } | Step::Restoring { .. } => false,
                        };
                        prop_assert!(rolled_back);
                    }
                }
            }
            other @ (Phase::Running | Phase::Paused | Phase::Aborting) => {
                let waiting = plan(&world.rollout, &world.observed, Timestamp::UNIX_EPOCH).waiting;
                prop_assert!(false, "the rollout is stuck in {:?}: {:?}", other, waiting);
            }
        }
    }

    #[test]
    fn an_abort_restores_what_it_may(
        hold in any::<bool>(),
        placement in prop::collection::vec(any::<u8>(), 0..8),
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 0..400),
        pinned in prop::option::of(0_usize..6),
    ) {
        let managers = if hold { ManagerPolicy::HoldDrained } else { ManagerPolicy::Rolling };
        let mut world = World::new(3, 2, policy(managers, 1), &placement, None);
        world.pin(pinned);
        for (kind, at) in events {
            world.event(kind, at);
        }
        if !matches!(world.rollout.phase, Phase::Ended { .. }) {
            world.rollout.phase = Phase::Aborting;
        }
        run(&mut world, &[]);
        prop_assert!(matches!(world.rollout.phase, Phase::Ended { .. }), "the abort does not end");
        for (id, entry) in &world.rollout.nodes {
            prop_assert!(host_is_whole(&world.hosts[id]));
            if !matches!(entry.step, Step::Held { .. }) {
                prop_assert_eq!(world.observed.nodes[id].availability, world.before[id]);
            }
        }
    }
}

/// After so many rounds nothing is left to happen: a node takes ten, and one more for each task that leaves it.
const ENOUGH: u32 = 120;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_released_node_strands_nobody(
        hold in any::<bool>(),
        placement in prop::collection::vec(any::<u8>(), 0..8),
        first in 0_usize..1500,
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 0..60),
        lost in prop::option::weighted(0.2, 0_usize..5),
        meanwhile in prop::option::weighted(0.7, 0_usize..500),
    ) {
        let managers = if hold { ManagerPolicy::HoldDrained } else { ManagerPolicy::Rolling };
        let mut world = World::new(3, 2, policy(managers, 1), &placement, None);
        some(&mut world, first);
        for (kind, at) in events {
            world.event(kind, at);
        }
        // Mostly one that is in work.
        let in_work = world.rollout.nodes.iter().find(|(_, entry)| entry.step.in_work()).map(|(id, _)| id);
        let any = world.hosts.keys().nth(lost.unwrap_or_default()).expect("a node");
        let lost = in_work.filter(|_| lost.is_none()).unwrap_or(any).clone();
        world.lose(&lost);
        (0..ENOUGH).for_each(|number| round(&mut world, number));
        let held_a_slot = world.rollout.nodes[&lost].step.in_work();
        let availability = world.observed.nodes[&lost].availability;
        world.release(&lost);
        match meanwhile {
            // It comes back while others are at work.
            Some(events) => some(&mut world, events),
            None => {
                (0..ENOUGH).for_each(|number| round(&mut world, number));
                for (id, entry) in &world.rollout.nodes {
                    prop_assert!(!entry.step.in_work(), "{} is in work though the slot is free", id);
                }
            }
        }
        if held_a_slot {
            prop_assert_eq!(world.observed.nodes[&lost].availability, availability, "it is the operator's to change");
        }
        world.find(&lost);
        (0..ENOUGH).for_each(|number| round(&mut world, number));
        // It may have ended before the node said how its work did: then nobody asks any more.
        let ended_without_it = matches!(world.rollout.phase, Phase::Ended { .. });
        for (id, host) in &world.hosts {
            prop_assert!(host_is_whole(host), "{} is neither old nor new", id);
            let entry = &world.rollout.nodes[id];
            prop_assert!(!entry.step.in_work(), "{} is still in work", id);
            let upgraded = match &entry.step {
                Step::Held { outcome, .. } | Step::Done { outcome } => matches!(outcome, Outcome::Upgraded { .. }),
                Step::Waiting { .. } | Step::Working { .. } | Step::Restoring { .. } => false,
            };
            prop_assert!(!upgraded || host.upgraded, "{} counts as upgraded and is not", id);
            prop_assert!(upgraded || !host.upgraded || ended_without_it, "{} is upgraded and does not count", id);
        }
        // Held managers stay so where one of them was released and not upgraded; all else comes to its end.
        let ended = matches!(world.rollout.phase, Phase::Ended { .. });
        let kept = world.rollout.nodes.values().any(|entry| matches!(entry.step, Step::Held { .. }));
        prop_assert!(ended || kept, "{:?} {:?}", world.rollout.phase, world.rollout.nodes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn nodes_may_come_and_go(
        hold in any::<bool>(),
        placement in prop::collection::vec(any::<u8>(), 0..8),
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 0..400),
        faulty in prop::option::of(0_usize..6),
        changes in prop::collection::vec((0_usize..400, 0_u8..5, any::<u8>()), 0..6),
    ) {
        let managers = if hold { ManagerPolicy::HoldDrained } else { ManagerPolicy::Rolling };
        let mut world = World::new(3, 3, policy(managers, 2), &placement, faulty);
        let last = events.len();
        for (n, (kind, at)) in events.into_iter().enumerate() {
            for (_, change, at) in changes.iter().filter(|(when, ..)| *when == n || (n + 1 == last && *when > n)) {
                match change {
                    0 => world.join(Role::Manager),
                    1 | 2 => world.join(Role::Worker),
                    _ => world.leave(*at),
                }
                world.check();
            }
            world.event(kind, at);
        }
        run(&mut world, &[]);
        match &world.rollout.phase {
            Phase::Ended { aborted } => {
                prop_assert!(!aborted);
                for (id, entry) in &world.rollout.nodes {
                    let Some(host) = world.hosts.get(id) else {
                        let untouched = Step::Done { outcome: Outcome::Untouched };
                        prop_assert_eq!(&entry.step, &untouched, "{} has left", id);
                        continue;
                    };
                    prop_assert!(host.upgraded, "{} is not upgraded: {:?}", id, entry);
                    prop_assert_eq!(world.observed.nodes[id].availability, world.before[id]);
                }
            }
            Phase::Halted { .. } => prop_assert!(world.faulty.is_some(), "no reason to halt"),
            other @ (Phase::Running | Phase::Paused | Phase::Aborting) => {
                let waiting = plan(&world.rollout, &world.observed, Timestamp::UNIX_EPOCH).waiting;
                prop_assert!(false, "the rollout is stuck in {:?}: {:?}", other, waiting);
            }
        }
    }
}

fn host_is_whole(host: &Host) -> bool {
    host.engine_up && !matches!(host.state, NodeState::Swapping { .. })
}
