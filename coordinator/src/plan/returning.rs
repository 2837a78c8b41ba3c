//! Managers that are upgraded and active again while the swarm still starts their tasks.
//!
//! What is missing there are tasks of services in global mode: all others ran elsewhere meanwhile. So the next node may
//! be drained beside it, as long as enough of those services' tasks run on other nodes; but no engine is stopped before
//! the manager is *home*, which is when they run there again. A worker keeps its slot until then.

use std::collections::{BTreeMap, BTreeSet};

use requeen_protocol::NodeId;

use super::model::{Availability, Entry, NodeView, Observed, Outcome, Role, Rollout, Step};

/// The availability that a manager has to have back, where that is under way.
pub(crate) fn restoring_manager(entry: &Entry) -> Option<Availability> {
    match entry.step {
        Step::Restoring { before, .. } if entry.role == Role::Manager => Some(before),
        Step::Restoring { .. }
        | Step::Waiting { .. }
        | Step::Working { .. }
        | Step::Held { .. }
        | Step::Done { .. } => None,
    }
}

/// Whether it is a manager that runs the target and has the availability back that it had.
pub(crate) fn is_returning(observed: &Observed, id: &NodeId, entry: &Entry) -> bool {
    let upgraded = matches!(entry.step, Step::Restoring { outcome: Outcome::Upgraded { .. }, .. });
    let node = observed.nodes.get(id).filter(|_| upgraded);
    node.zip(restoring_manager(entry)).is_some_and(|(node, before)| is_back(node, before))
}

/// Whether the swarm sees the node as it was before its drain.
pub(crate) fn is_back(node: &NodeView, before: Availability) -> bool {
    node.ready && node.availability == before
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

/// Whether `next` may be drained while those managers are returning: nobody else is in work, nothing else is missing in
/// the swarm, `next` does not carry all of another service, and of each service that is missing at least half of the tasks
/// run on nodes that neither return nor are in work.
pub(crate) fn can_spare(rollout: &Rollout, observed: &Observed, next: &NodeId, returning: &BTreeSet<&NodeId>) -> bool {
    let in_work = |id: &NodeId| rollout.nodes.get(id).is_some_and(|entry| entry.step.in_work());
    if rollout.nodes.keys().any(|id| in_work(id) && !returning.contains(id)) {
        return false;
    }
    let is_global = |service: &str| observed.global_services.iter().any(|global| global == service);
    let is_missing_there =
        |service: &str, node: Option<&NodeId>| is_global(service) && node.is_some_and(|node| returning.contains(node));
    let mut wanted = observed.tasks.iter().filter(|task| task.wanted && !task.running);
    if !wanted.all(|task| is_missing_there(&task.service, task.node.as_ref()) || was_short(rollout, &task.service)) {
        return false;
    }
    let missing: BTreeSet<&str> = returning
        .iter()
        .filter_map(|id| observed.nodes.get(*id))
        .flat_map(|node| not_home(rollout, observed, node))
        .collect();
    let mut places: BTreeMap<&str, BTreeSet<&NodeId>> = BTreeMap::new();
    // On a node that is down a task says for a day that it runs.
    let runs = |node: &NodeId| observed.nodes.get(node).is_some_and(|node| node.ready);
    for task in observed.tasks.iter().filter(|task| task.running && task.wanted) {
        if let Some(node) = task.node.as_ref().filter(|node| runs(node)) {
            places.entry(&task.service).or_default().insert(node);
        }
    }
    // What is missing may need it to come up, and it only comes back with `next`.
    if places.iter().any(|(service, nodes)| !is_global(service) && nodes.iter().all(|node| *node == next)) {
        return false;
    }
    missing.into_iter().all(|service| {
        let running = places.get(service).cloned().unwrap_or_default();
        let staying = running.iter().filter(|id| **id != next && !in_work(id)).count();
        staying * 2 >= running.union(returning).count()
    })
}

#[cfg(test)]
#[path = "returning_tests.rs"]
mod tests;
