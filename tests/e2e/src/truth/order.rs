//! The order of a rollout, judged. Pure: what was seen goes in, every breach comes out in words.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Availability, Truth};

/// The longest time between a permit's use and the stop that it allows, seconds: a permit is good for no longer.
const PERMIT_SECS: i64 = 30;

/// What a rollout was asked to do.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Host names of the nodes that had to be upgraded.
    pub scope: BTreeSet<String>,
    /// The SHA-256 of the target's dockerd, in hexadecimal.
    pub dockerd: String,
    /// The version that the engines tell afterwards.
    pub version: String,
    /// How many workers might be in work at once.
    pub workers_at_once: usize,
    /// Whether managers had to stay drained until the last was upgraded.
    pub hold_drained: bool,
}

/// Everything in which a rollout that succeeded broke the rules. Empty: it kept them all.
pub fn breaches(truth: &Truth, asked: &Asked) -> Vec<String> {
    [
        one_outage_each(truth, asked),
        staged_before_the_first_drain(truth, asked),
        stopped_only_when_empty(truth),
        permitted(truth),
        managers_one_at_a_time(truth),
        managers_before_workers(truth, asked),
        leader_last(truth),
        workers_in_slots(truth, asked.workers_at_once),
        held(truth, asked),
        left_as_before(truth),
    ]
    .concat()
}

/// Every node in scope went down once and came back with the target; no other went down.
pub fn one_outage_each(truth: &Truth, asked: &Asked) -> Vec<String> {
    let mut breaches = Vec::new();
    for (node, log) in &truth.logs {
        let wanted = usize::from(asked.scope.contains(node));
        if log.stops.len() != wanted {
            breaches.push(format!("{node}: its engine was stopped {} times, not {wanted}", log.stops.len()));
        }
        let engine = truth.after.nodes.get(node).map(|seen| seen.engine.as_str());
        if wanted == 1 && engine != Some(asked.version.as_str()) {
            breaches.push(format!("{node}: it runs {engine:?}, not {}", asked.version));
        }
    }
    for (node, stop, start) in truth.outages() {
        if start.is_none() {
            breaches.push(format!("{node}: its engine was stopped at {stop} and never started again"));
        }
    }
    breaches
}

/// The target was on every node's disk before the first node was drained.
pub fn staged_before_the_first_drain(truth: &Truth, asked: &Asked) -> Vec<String> {
    let drained = truth.changes.iter().filter(|change| change.to == Availability::Drain).map(|change| change.at).min();
    let stopped = truth.outages().first().map(|(_, stop, _)| *stop);
    let Some(first) = drained.into_iter().chain(stopped).min() else {
        return vec!["no node was drained or stopped".to_owned()];
    };
    let mut breaches = Vec::new();
    for node in &asked.scope {
        match truth.logs.get(node).and_then(|log| log.sets.get(&asked.dockerd)) {
            None => breaches.push(format!("{node}: the target is not among its sets")),
            Some(at) if *at > first => {
                breaches.push(format!("{node}: staged at {at}, after the first drain at {first}"));
            }
            Some(_) => {}
        }
    }
    breaches
}

/// No engine was stopped while its node was not drained, or while a task lived on it.
pub fn stopped_only_when_empty(truth: &Truth) -> Vec<String> {
    let mut breaches = Vec::new();
    for (node, stop, _) in truth.outages() {
        let availability = truth.availability(node, stop);
        if availability != Some(Availability::Drain) {
            breaches.push(format!("{node}: stopped at {stop} while {availability:?}"));
        }
        for task in alive_at(truth, node, stop) {
            breaches.push(format!("{node}: stopped at {stop} while task {task} lived on it"));
        }
    }
    breaches
}

/// Tasks that may have lived on the node at a time. The sample before it may be a second old: what a later one
/// shows as over since before that time was over.
fn alive_at<'a>(truth: &'a Truth, node: &str, at: Timestamp) -> Vec<&'a str> {
    let later = || truth.samples.iter().chain([&truth.after]).filter(|sample| sample.at > at);
    let over = |id: &str| {
        let words = later().flat_map(|sample| &sample.tasks).find(|task| task.id == id);
        words.is_some_and(|task| !task.life.is_alive() && task.since <= at)
    };
    let before = truth.sample_before(at).tasks.iter();
    let alive = before.filter(|task| task.life.is_alive() && task.node.as_deref() == Some(node));
    alive.map(|task| task.id.as_str()).filter(|id| !over(id)).collect()
}

/// Every stop was preceded by a permit of its own, and no permit was used twice.
pub fn permitted(truth: &Truth) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut seen = BTreeMap::new();
    for (node, log) in &truth.logs {
        for (_, id) in &log.permits {
            if let Some(other) = seen.insert(id, node) {
                breaches.push(format!("permit {id} was used on {other} and on {node}"));
            }
        }
        let mut free: Vec<Timestamp> = log.permits.iter().map(|(at, _)| *at).collect();
        for stop in &log.stops {
            let good = |at: &Timestamp| *at <= *stop && stop.as_second() - at.as_second() <= PERMIT_SECS;
            match free.iter().position(good) {
                Some(found) => drop(free.remove(found)),
                None => breaches.push(format!("{node}: stopped at {stop} without a permit of its own")),
            }
        }
    }
    breaches
}

/// No two managers were down at the same time, and none was stopped unless enough others were reachable.
pub fn managers_one_at_a_time(truth: &Truth) -> Vec<String> {
    let managers: BTreeSet<&str> = truth.managers().collect();
    let majority = managers.len() / 2 + 1;
    let outages: Vec<_> = truth.outages().into_iter().filter(|(node, ..)| managers.contains(node)).collect();
    let mut breaches = Vec::new();
    for pair in outages.windows(2) {
        let ((first, _, up), (second, stop, _)) = (pair[0], pair[1]);
        if up.is_none_or(|up| up > stop) {
            breaches.push(format!("{second} was stopped at {stop} while {first} was down"));
        }
    }
    // Of two managers neither can be stopped without losing the quorum: that needs an operator's word.
    if managers.len() < 3 {
        return breaches;
    }
    for (node, stop, _) in outages {
        let reachable = |name: &&str| {
            let seen = truth.sample_before(stop).nodes.get(*name);
            seen.and_then(|seen| seen.manager).is_some_and(|manager| manager.reachable)
        };
        let others = managers.iter().filter(|name| **name != node && reachable(name)).count();
        if others < majority {
            breaches.push(format!("{node} was stopped at {stop} while {others} other managers were reachable"));
        }
    }
    for sample in &truth.samples {
        let reachable = sample.nodes.values().filter_map(|node| node.manager).filter(|manager| manager.reachable);
        let reachable = reachable.count();
        if reachable < majority {
            breaches.push(format!("at {} only {reachable} managers were reachable", sample.at));
        }
    }
    breaches
}

/// Every manager's last change came before the first worker's first.
pub fn managers_before_workers(truth: &Truth, asked: &Asked) -> Vec<String> {
    let managers: BTreeSet<&str> = truth.managers().filter(|name| asked.scope.contains(*name)).collect();
    let workers: BTreeSet<&str> = truth.workers().filter(|name| asked.scope.contains(*name)).collect();
    let moves = |nodes: &BTreeSet<&str>| {
        let changes = truth.changes.iter().filter(|change| nodes.contains(change.node.as_str()));
        let outages = truth.outages().into_iter().filter(|(node, ..)| nodes.contains(node));
        let outages = outages.flat_map(|(_, stop, start)| [Some(stop), start]).flatten();
        changes.map(|change| change.at).chain(outages).collect::<BTreeSet<_>>()
    };
    match (moves(&managers).last(), moves(&workers).first()) {
        (Some(last), Some(first)) if first < last => {
            vec![format!("a worker moved at {first}, before the managers were done at {last}")]
        }
        (Some(_) | None, Some(_) | None) => Vec::new(),
    }
}

/// No manager was stopped as the leader while another one had still to be stopped.
pub fn leader_last(truth: &Truth) -> Vec<String> {
    let managers: BTreeSet<&str> = truth.managers().collect();
    let outages: Vec<_> = truth.outages().into_iter().filter(|(node, ..)| managers.contains(node)).collect();
    let Some(((last, ..), earlier)) = outages.split_last() else { return Vec::new() };
    let leads = |node: &str, at: Timestamp| {
        let seen = truth.sample_before(at).nodes.get(node);
        seen.and_then(|seen| seen.manager).is_some_and(|manager| manager.leader)
    };
    let led = earlier.iter().filter(|(node, stop, _)| leads(node, *stop));
    led.map(|(node, stop, _)| format!("{node} was stopped at {stop} as the leader, before {last}")).collect()
}

/// At most so many workers were in work at once, and several never held all running tasks of a service.
pub fn workers_in_slots(truth: &Truth, slots: usize) -> Vec<String> {
    let mut breaches = Vec::new();
    let workers: Vec<(&str, Timestamp, Timestamp)> =
        truth.workers().filter_map(|node| work(truth, node).map(|(from, to)| (node, from, to))).collect();
    for (node, from, _) in &workers {
        let busy: Vec<&str> =
            workers.iter().filter(|(_, began, ended)| began <= from && from < ended).map(|(name, ..)| *name).collect();
        if busy.len() > slots {
            breaches.push(format!("{} were in work at {from}, more than {slots}", busy.join(", ")));
        }
        if busy.len() > 1 {
            let services = running_nowhere_else(truth, &busy, *from);
            breaches.extend(services.map(|service| {
                format!("{} held all running tasks of service {service} when {node} began at {from}", busy.join(", "))
            }));
        }
    }
    breaches
}

/// From a worker's first change or stop to its last.
fn work(truth: &Truth, node: &str) -> Option<(Timestamp, Timestamp)> {
    let changes = truth.changes.iter().filter(|change| change.node == node).map(|change| change.at);
    let outages = truth.outages().into_iter().filter(|(name, ..)| *name == node);
    let times: BTreeSet<_> =
        changes.chain(outages.flat_map(|(_, stop, start)| [Some(stop), start]).flatten()).collect();
    Some((*times.first()?, *times.last()?))
}

fn running_nowhere_else<'a>(truth: &'a Truth, nodes: &'a [&str], at: Timestamp) -> impl Iterator<Item = &'a str> {
    let mut places: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for task in truth.sample_before(at).tasks.iter().filter(|task| task.life == super::Life::Running) {
        places.entry(&task.service).or_default().extend(task.node.as_deref());
    }
    // One node that holds all of them by itself can't be helped: it has to be upgraded too.
    let joint = |places: &BTreeSet<&str>| places.len() > 1 && places.iter().all(|place| nodes.contains(place));
    places.into_iter().filter(move |(_, places)| joint(places)).map(|(service, _)| service)
}

/// With hold-drained no manager left the drain before the last manager's new engine had started.
pub fn held(truth: &Truth, asked: &Asked) -> Vec<String> {
    if !asked.hold_drained {
        return Vec::new();
    }
    let managers: BTreeSet<&str> = truth.managers().collect();
    let outages = truth.outages();
    let starts = outages.iter().filter(|(node, ..)| managers.contains(node)).filter_map(|(_, _, start)| *start);
    let Some(last) = starts.max() else { return vec!["no manager's engine was started".to_owned()] };
    let early = truth.changes.iter().filter(|change| {
        managers.contains(change.node.as_str()) && change.to != Availability::Drain && change.at < last
    });
    early.map(|change| format!("{} left the drain at {}, before {last}", change.node, change.at)).collect()
}

/// Every node has the availability, the labels and the role that it had before.
pub fn left_as_before(truth: &Truth) -> Vec<String> {
    let mut breaches = Vec::new();
    for (name, before) in &truth.before.nodes {
        let Some(after) = truth.after.nodes.get(name) else {
            breaches.push(format!("{name} is not in the swarm any more"));
            continue;
        };
        if !after.ready {
            breaches.push(format!("{name} is not ready"));
        }
        let role = |manager: bool| if manager { "manager" } else { "worker" };
        let kept = [
            ("availability", format!("{:?}", before.availability), format!("{:?}", after.availability)),
            ("labels", format!("{:?}", before.labels), format!("{:?}", after.labels)),
            ("role", role(before.manager.is_some()).to_owned(), role(after.manager.is_some()).to_owned()),
        ];
        let changed = kept.into_iter().filter(|(_, before, after)| before != after);
        breaches.extend(changed.map(|(what, before, after)| format!("{name}: its {what} was {before}, is {after}")));
    }
    breaches
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
