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
use super::{Move, orders, owner, plan, rebuild};

pub(super) fn node(name: &str, role: Role) -> NodeView {
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

pub(super) fn agent(view: &NodeView, state: NodeState) -> AgentView {
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
            state,
            seen: None,
            memo: None,
            unreached: Vec::new(),
        },
        silent_secs: 0,
        state_secs: 0,
    }
}

pub(super) fn staged(rollout: &RolloutId) -> NodeState {
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

pub(super) fn digest() -> Digest {
    Digest::from_hex(&"0".repeat(64)).expect("a digest")
}

pub(super) fn rollout(nodes: &[NodeView], policy: Policy) -> Rollout {
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
                    step: Step::Waiting { by_hand: false, forced: false },
                    times: Vec::new(),
                };
                (view.id.clone(), entry)
            })
            .collect(),
    }
}

pub(super) fn policy(managers: ManagerPolicy, workers_at_once: u32) -> Policy {
    Policy {
        managers,
        workers_at_once,
        manual: false,
        accept_control_plane_outage: false,
        allow_downgrade: false,
        start_timeout_secs: 120,
        join_timeout_secs: 120,
    }
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
}

struct World {
    observed: Observed,
    hosts: BTreeMap<NodeId, Host>,
    rollout: Rollout,
    before: BTreeMap<NodeId, Availability>,
    faulty: Option<NodeId>,
    drained_once: bool,
}

impl World {
    fn new(managers: usize, workers: usize, policy: Policy, placement: &[u8], faulty: Option<usize>) -> Self {
        let nodes: Vec<_> = (1..=managers)
            .map(|n| node(&format!("m{n}"), Role::Manager))
            .chain((1..=workers).map(|n| node(&format!("w{n}"), Role::Worker)))
            .collect();
        let ids: Vec<_> = nodes.iter().map(|node| node.id.clone()).collect();
        let rollout = rollout(&nodes, policy);
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
            .collect();
        let host = |_: &NodeView| Host {
            state: NodeState::Idle,
            order: None,
            upgraded: false,
            engine_up: true,
            used_permits: BTreeSet::new(),
            max_epoch: 0,
            memo: None,
        };
        Self {
            hosts: nodes.iter().map(|view| (view.id.clone(), host(view))).collect(),
            before: nodes.iter().map(|view| (view.id.clone(), view.availability)).collect(),
            faulty: faulty.map(|n| ids[n % ids.len()].clone()),
            observed: Observed {
                me: ids[0].clone(),
                has_leader: true,
                agents: nodes.iter().map(|view| (view.id.clone(), agent(view, NodeState::Idle))).collect(),
                nodes: nodes.into_iter().map(|view| (view.id.clone(), view)).collect(),
                tasks,
                global_services: Vec::new(),
            },
            rollout,
            drained_once: false,
        }
    }

    fn event(&mut self, kind: u8, at: u8) {
        let ids: Vec<_> = self.hosts.keys().cloned().collect();
        let id = &ids[at as usize % ids.len()];
        match kind % 8 {
            0 => self.coordinate(),
            1 => self.call_home(id),
            2 => self.act(id),
            3 => self.swarm_hears(id),
            4 => self.tasks_leave(id, at),
            5 => self.tasks_start(),
            6 => self.take_over(id),
            _ => self.lose_record(),
        }
        self.check();
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
        let staged = self.observed.agents.values().all(|agent| agent.report.state.rollout().is_some());
        if self.rollout.phase == Phase::Running && staged {
            let (id, epoch) = (self.rollout.request.id.clone(), self.rollout.owner.epoch + 1);
            if let Some(again) = rebuild::rebuild(&self.observed, &id, epoch, Timestamp::UNIX_EPOCH) {
                assert_eq!(again.nodes.len(), self.rollout.nodes.len(), "a node was lost with the record");
                self.rollout = again;
            }
        }
    }

    fn coordinate(&mut self) {
        for step in plan(&self.rollout, &self.observed, Timestamp::UNIX_EPOCH).moves {
            match step {
                Move::Record { node, step } => {
                    let entry = self.rollout.nodes.get_mut(&node).expect("a node of the rollout");
                    entry.times.push((step.name().to_owned(), 0));
                    entry.step = step;
                }
                Move::SetAvailability { node, to } => {
                    if to == Availability::Drain && !self.drained_once {
                        self.drained_once = true;
                        let all = self.hosts.values().all(|host| !matches!(host.state, NodeState::Idle));
                        assert!(all, "a node was drained before every node had staged");
                    }
                    let view = self.observed.nodes.get_mut(&node).expect("a node");
                    view.availability = to;
                    view.index += 1;
                }
                Move::Phase(phase) => self.rollout.phase = phase,
            }
        }
    }

    fn call_home(&mut self, id: &NodeId) {
        let host = self.hosts.get_mut(id).expect("a host");
        let view = self.observed.agents.get_mut(id).expect("an agent");
        view.report.state = host.state.clone();
        view.report.memo = host.memo.clone();
        view.report.speaker = match host.state {
            NodeState::Idle | NodeState::Staging { .. } | NodeState::Staged { .. } | NodeState::Refused { .. } => {
                Speaker::Task
            }
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
            Order::Stage { rollout, .. } => host.state = staged(&rollout),
            Order::Hold { lease, memo } => {
                host.memo = Some(memo);
                if matches!(host.state, NodeState::Staged { .. } | NodeState::Leased { .. }) {
                    host.state = NodeState::Leased { rollout, lease: lease.id, task_containers: tasks };
                }
            }
            Order::Link { lease } => {
                host.state = NodeState::Linked { rollout, lease: lease.id, task_containers: tasks }
            }
            Order::Stop { permit } => {
                assert!(drained, "{id}: a stop was permitted though the node was not drained");
                assert_eq!(tasks, 0, "{id}: a stop was permitted though tasks ran");
                assert!(host.used_permits.insert(permit.id.0), "{id}: a permit was used twice");
                host.state =
                    NodeState::Swapping { rollout, lease: permit.lease.id, phase: SwapPhase::Stopping, waiting: None };
            }
            Order::Settle { lease } => {
                host.state = NodeState::Upgraded { rollout, lease: lease.id, engine_down_ms: 1000, set: digest() };
            }
            Order::SwitchBack { lease, reason } => {
                host.upgraded = false;
                host.state =
                    NodeState::RolledBack { rollout, lease: lease.id, reason, engine_down_ms: 1000, log: Vec::new() };
            }
            Order::Withdraw { .. } => host.state = staged(&rollout),
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
        let Some(home) = homes.get(seed as usize % homes.len().max(1)) else { return };
        if let Some(task) = self.observed.tasks.iter_mut().find(|task| task.node.as_ref() == Some(id)) {
            task.node = Some(home.clone());
            task.running = false;
        }
    }

    fn tasks_start(&mut self) {
        for task in &mut self.observed.tasks {
            task.running = task.wanted;
        }
    }

    fn check(&self) {
        let down = |role: Role| {
            self.hosts.iter().filter(|(id, host)| !host.engine_up && self.observed.nodes[*id].role == role).count()
        };
        let managers = self.observed.nodes.values().filter(|node| node.role == Role::Manager).count();
        assert!(down(Role::Manager) <= 1, "two managers are down");
        assert!(managers - down(Role::Manager) > managers / 2, "quorum is lost");
        let at_once = self.rollout.request.policy.workers_at_once as usize;
        let working = self.rollout.nodes.values().filter(|e| e.role == Role::Worker && e.step.in_work()).count();
        assert!(working <= at_once, "{working} workers in work, {at_once} allowed");
        let leased = |entry: &Entry| entry.times.iter().any(|(step, _)| step == "granted");
        let first_worker = self.rollout.nodes.values().any(|entry| entry.role == Role::Worker && leased(entry));
        let managers_done = self
            .rollout
            .nodes
            .values()
            .filter(|entry| entry.role == Role::Manager)
            .all(|entry| matches!(entry.step, Step::Done { .. }));
        assert!(!first_worker || managers_done, "a worker moved before all managers were done");
        for (id, host) in &self.hosts {
            if !host.engine_up {
                assert_eq!(self.observed.nodes[id].availability, Availability::Drain, "{id} is down but not drained");
                assert_eq!(self.tasks_on(id), 0, "{id} is down with tasks on it");
            }
        }
        if self.rollout.request.policy.managers == ManagerPolicy::HoldDrained {
            let done = |role| self.rollout.nodes.iter().filter(move |(_, e)| e.role == role);
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
    for round in 0..400_u32 {
        for kind in 0..6 {
            for at in 0..world.hosts.len() as u8 {
                world.event(kind, at.wrapping_add((round % 7) as u8));
            }
        }
        if matches!(world.rollout.phase, Phase::Ended { .. }) {
            break;
        }
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
    ) {
        let managers = if hold { ManagerPolicy::HoldDrained } else { ManagerPolicy::Rolling };
        let mut world = World::new(3, workers, policy(managers, at_once), &placement, faulty);
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
    ) {
        let managers = if hold { ManagerPolicy::HoldDrained } else { ManagerPolicy::Rolling };
        let mut world = World::new(3, 2, policy(managers, 1), &placement, None);
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

fn host_is_whole(host: &Host) -> bool {
    host.engine_up && !matches!(host.state, NodeState::Swapping { .. })
}
