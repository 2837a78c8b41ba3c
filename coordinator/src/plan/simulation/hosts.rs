//! What agents, executors and the swarm itself do, each in its own time.

use requeen_protocol::{LeaseId, NodeId, NodeState, Order, Speaker, SwapPhase};

use super::super::model::{Availability, NodeView, Role};
use super::super::orders;
use super::world::{GLOBAL, PINNED, World, task_of_global};
use super::{agent, digest, staged};

impl World {
    pub(super) fn call_home(&mut self, id: &NodeId) {
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

    pub(super) fn tasks_on(&self, id: &NodeId) -> u32 {
        self.observed.tasks.iter().filter(|task| task.alive && task.node.as_ref() == Some(id)).count() as u32
    }

    pub(super) fn act(&mut self, id: &NodeId) {
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
    pub(super) fn swarm_hears(&mut self, id: &NodeId) {
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

    pub(super) fn tasks_leave(&mut self, id: &NodeId, seed: u8) {
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

    pub(super) fn tasks_start(&mut self) {
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
}
