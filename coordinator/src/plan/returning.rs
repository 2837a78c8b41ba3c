//! Managers that are upgraded and active again while the swarm still starts their tasks.
//!
//! What is missing there are tasks of services in global mode: all others ran elsewhere meanwhile. So the next node may
//! be drained beside it, as long as enough of those services' tasks run on other nodes; but no engine is stopped before
//! the manager is *home*, which is when they run there again. A worker keeps its slot until then.

use std::collections::BTreeSet;

use requeen_protocol::NodeId;

use super::model::{Availability, Entry, NodeView, Observed, Outcome, Role, Rollout, Step};

/// Whether it is a manager that the swarm gives tasks again, or is about to.
pub(crate) fn is_restoring_manager(entry: &Entry) -> bool {
    entry.role == Role::Manager && matches!(entry.step, Step::Restoring { .. })
}

/// Whether it is a manager that runs the target and has the availability back that it had.
pub(crate) fn is_returning(observed: &Observed, id: &NodeId, entry: &Entry) -> bool {
    match entry.step {
        Step::Restoring { before, outcome: Outcome::Upgraded { .. } } => {
            let node = observed.nodes.get(id).filter(|_| entry.role == Role::Manager);
            node.is_some_and(|node| node.ready && node.availability == before)
        }
        Step::Restoring { .. }
        | Step::Waiting { .. }
        | Step::Working { .. }
        | Step::Held { .. }
        | Step::Done { .. } => false,
    }
}

/// Global services that ought to have a task on the node, which does not run there yet.
pub(crate) fn not_home<'a>(rollout: &Rollout, observed: &'a Observed, node: &NodeView) -> BTreeSet<&'a str> {
    if node.availability != Availability::Active {
        return BTreeSet::new();
    }
    let here: BTreeSet<&str> = observed
        .tasks
        .iter()
        .filter(|task| task.running && task.node.as_ref() == Some(&node.id))
        .map(|task| task.service.as_str())
        .collect();
    let missing = observed.global_services.iter().map(String::as_str).filter(|service| !here.contains(service));
    missing.filter(|service| !was_short(rollout, service)).collect()
}

/// Whether the service had too few tasks before anything was touched.
pub(crate) fn was_short(rollout: &Rollout, service: &str) -> bool {
    rollout.request.short_services.iter().any(|known| known == service)
}

/// Whether `next` may be drained while those managers are returning: nothing else is missing in the swarm, and of each
/// service that is, at least half of the tasks run on nodes that neither return nor are in work.
pub(crate) fn can_spare(rollout: &Rollout, observed: &Observed, next: &NodeId, returning: &BTreeSet<&NodeId>) -> bool {
    let is_missing_there = |service: &str, node: Option<&NodeId>| {
        observed.global_services.iter().any(|global| global == service)
            && node.is_some_and(|node| returning.contains(node))
    };
    let mut wanted = observed.tasks.iter().filter(|task| task.wanted && !task.running);
    if !wanted.all(|task| is_missing_there(&task.service, task.node.as_ref()) || was_short(rollout, &task.service)) {
        return false;
    }
    let missing: BTreeSet<&str> = returning
        .iter()
        .filter_map(|id| observed.nodes.get(*id))
        .flat_map(|node| not_home(rollout, observed, node))
        .collect();
    let in_work = |id: &NodeId| rollout.nodes.get(id).is_some_and(|entry| entry.step.in_work());
    missing.into_iter().all(|service| {
        let running: BTreeSet<&NodeId> = observed
            .tasks
            .iter()
            .filter(|task| task.running && task.service == service)
            .filter_map(|task| task.node.as_ref())
            .collect();
        let staying = running.iter().filter(|id| **id != next && !in_work(id)).count();
        staying * 2 >= running.union(returning).count()
    })
}

#[cfg(test)]
#[path = "returning_tests.rs"]
mod tests;
