//! What must hold at every instant.

use requeen_protocol::{NodeId, NodeState};

use super::super::model::{Availability, Entry, ManagerPolicy, NodeView, Role, Step, TaskView};
use super::super::returning;
use super::world::{GLOBAL, Host, World};

impl World {
    /// A lease is about to be recorded.
    pub(super) fn check_grant(&self, id: &NodeId) {
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
    pub(super) fn check_permit(&self, id: &NodeId) {
        let late = |other: &NodeId, entry: &Entry| {
            let Step::Restoring { before, .. } = entry.step else { return false };
            let needs_none = before != Availability::Active || self.runs_global(other);
            let home = |node: &NodeView| node.availability == before && needs_none;
            entry.role == Role::Manager && !self.observed.nodes.get(other).is_none_or(home)
        };
        let late = self.rollout.nodes.iter().find(|(other, entry)| late(other, entry));
        assert!(late.is_none(), "{id} is stopped while the tasks of {late:?} don't run");
    }

    pub(super) fn runs_global(&self, id: &NodeId) -> bool {
        let here = |task: &TaskView| task.service == GLOBAL && task.running && task.node.as_ref() == Some(id);
        self.observed.tasks.iter().any(here)
    }

    /// Whether nothing is left to do on the node itself: at most its tasks have to start.
    pub(super) fn is_through(&self, id: &NodeId, entry: &Entry) -> bool {
        matches!(entry.step, Step::Done { .. }) || returning::is_returning(&self.observed, id, entry)
    }

    pub(super) fn check(&self) {
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

pub(super) fn host_is_whole(host: &Host) -> bool {
    host.engine_up && !matches!(host.state, NodeState::Swapping { .. })
}
