//! Each rule with a rollout that keeps it, and the same one bent until it breaks that rule.

use super::*;
use crate::truth::{Change, Life, ManagerSeen, NodeLog, NodeSeen, Sample, TaskSeen};

const DOCKERD: &str = "d1";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).expect("a time")
}

fn asked() -> Asked {
    Asked {
        scope: ["m1", "m2", "m3", "w1", "w2"].map(str::to_owned).into(),
        dockerd: DOCKERD.to_owned(),
        version: "2".to_owned(),
        workers_at_once: 1,
        hold_drained: false,
    }
}

fn sample(second: i64, leader: &str, engine: &str) -> Sample {
    let node = |name: &str| NodeSeen {
        id: format!("id-{name}"),
        availability: Availability::Active,
        ready: true,
        manager: name.starts_with('m').then(|| ManagerSeen { leader: name == leader, reachable: true }),
        engine: engine.to_owned(),
        labels: BTreeMap::new(),
    };
    let nodes = ["m1", "m2", "m3", "w1", "w2"].map(|name| (name.to_owned(), node(name)));
    Sample { at: at(second), nodes: nodes.into(), tasks: Vec::new() }
}

fn task(id: &str, node: &str, life: Life, since: i64) -> TaskSeen {
    TaskSeen { id: id.to_owned(), service: "s".to_owned(), node: Some(node.to_owned()), life, since: at(since) }
}

/// A rollout that keeps every rule: each node takes ten seconds, m1 leads and goes last of the managers.
fn good() -> Truth {
    let order = ["m2", "m3", "m1", "w1", "w2"];
    let mut changes = Vec::new();
    let mut logs = BTreeMap::new();
    for (number, node) in (0..).zip(order) {
        let begin = 10 + 10 * number;
        let change = |second, to| Change { at: at(second), node: node.to_owned(), to };
        changes.extend([change(begin, Availability::Drain), change(begin + 9, Availability::Active)]);
        let log = NodeLog {
            stops: vec![at(begin + 4)],
            starts: vec![at(begin + 6)],
            permits: vec![(at(begin + 3), format!("p-{node}"))],
            sets: [(DOCKERD.to_owned(), at(5))].into(),
        };
        logs.insert(node.to_owned(), log);
    }
    let samples = (1..60).map(|second| sample(second, "m1", "1")).collect();
    Truth { before: sample(0, "m1", "1"), after: sample(70, "m2", "2"), samples, changes, logs }
}

#[test]
fn a_good_rollout_breaks_no_rule() {
    assert_eq!(breaches(&good(), &asked()), Vec::<String>::new());
}

#[test]
fn an_engine_that_stopped_twice_or_not_at_all_is_found() {
    let mut truth = good();
    truth.logs.get_mut("w1").expect("w1").stops.push(at(48));
    truth.logs.get_mut("w2").expect("w2").stops.clear();
    truth.after.nodes.get_mut("m2").expect("m2").engine = "1".to_owned();
    assert_eq!(one_outage_each(&truth, &asked()).len(), 4, "{:?}", one_outage_each(&truth, &asked()));
    let mut only = asked();
    only.scope.remove("m1");
    assert_eq!(one_outage_each(&good(), &only), ["m1: its engine was stopped 1 times, not 0"]);
}

#[test]
fn late_or_missing_staging_is_found() {
    let mut truth = good();
    truth.logs.get_mut("w2").expect("w2").sets.insert(DOCKERD.to_owned(), at(11));
    truth.logs.get_mut("w1").expect("w1").sets.clear();
    assert_eq!(staged_before_the_first_drain(&truth, &asked()).len(), 2);
    truth.changes.clear();
    truth.logs.values_mut().for_each(|log| log.stops.clear());
    assert_eq!(staged_before_the_first_drain(&truth, &asked()), ["no node was drained or stopped"]);
}

#[test]
fn a_stop_of_an_active_or_busy_node_is_found() {
    let mut truth = good();
    truth.changes.retain(|change| change.node != "w1");
    assert_eq!(stopped_only_when_empty(&truth).len(), 1);

    // Stopped at 14: a task that ran in the last sample before it is a breach, unless it was over by then.
    let mut truth = good();
    let before = truth.samples.iter_mut().find(|sample| sample.at == at(14)).expect("a sample");
    before.tasks.push(task("t", "m2", Life::Starting, 8));
    assert_eq!(stopped_only_when_empty(&truth).len(), 1);
    let later = truth.samples.iter_mut().find(|sample| sample.at == at(15)).expect("a sample");
    later.tasks.push(task("t", "m2", Life::Over, 14));
    assert_eq!(stopped_only_when_empty(&truth), Vec::<String>::new());
    let later = truth.samples.iter_mut().find(|sample| sample.at == at(15)).expect("a sample");
    later.tasks[0].since = at(15);
    assert_eq!(stopped_only_when_empty(&truth).len(), 1);
}

#[test]
fn a_stop_without_its_own_permit_is_found() {
    let mut truth = good();
    truth.logs.get_mut("w1").expect("w1").permits[0].1 = "p-w2".to_owned();
    assert_eq!(permitted(&truth), ["permit p-w2 was used on w1 and on w2"]);
    let mut truth = good();
    truth.logs.get_mut("w1").expect("w1").permits[0].0 = at(45);
    assert_eq!(permitted(&truth).len(), 1, "a permit that came after the stop");
    let mut truth = good();
    truth.logs.get_mut("w1").expect("w1").permits[0].0 = at(0);
    assert_eq!(permitted(&truth).len(), 1, "a permit that was too old");
}

#[test]
fn two_managers_down_at_once_are_found() {
    let mut truth = good();
    truth.logs.get_mut("m2").expect("m2").starts = vec![at(25)];
    assert_eq!(managers_one_at_a_time(&truth).len(), 1);
    let mut truth = good();
    let before = truth.samples.iter_mut().find(|sample| sample.at == at(24)).expect("a sample");
    before.nodes.get_mut("m2").expect("m2").manager = Some(ManagerSeen { leader: false, reachable: false });
    assert_eq!(managers_one_at_a_time(&truth).len(), 1, "m3 was stopped while m2 was out of reach");
}

#[test]
fn a_worker_that_moved_early_is_found() {
    let mut truth = good();
    truth.changes.insert(0, Change { at: at(38), node: "w1".to_owned(), to: Availability::Drain });
    assert_eq!(managers_before_workers(&truth, &asked()).len(), 1);
}

#[test]
fn a_leader_that_was_not_last_is_found() {
    let mut truth = good();
    for sample in &mut truth.samples {
        for (name, node) in &mut sample.nodes {
            if let Some(manager) = &mut node.manager {
                manager.leader = name == "m3";
            }
        }
    }
    assert_eq!(leader_last(&truth).len(), 1);
}

#[test]
fn too_many_workers_at_once_are_found() {
    let mut truth = good();
    for change in truth.changes.iter_mut().filter(|change| change.node == "w2") {
        change.at = at(45);
    }
    assert_eq!(workers_in_slots(&truth, 1).len(), 1);
    assert_eq!(workers_in_slots(&truth, 2), Vec::<String>::new());
    for sample in &mut truth.samples {
        sample.tasks = vec![task("t1", "w1", Life::Running, 1), task("t2", "w2", Life::Running, 1)];
    }
    assert_eq!(workers_in_slots(&truth, 2).len(), 1, "both hold all tasks of s");
    for sample in &mut truth.samples {
        sample.tasks.push(task("t3", "m1", Life::Running, 1));
    }
    assert_eq!(workers_in_slots(&truth, 2), Vec::<String>::new());
}

#[test]
fn a_manager_that_left_the_drain_early_is_found() {
    let mut held = asked();
    held.hold_drained = true;
    let mut truth = good();
    assert_eq!(super::held(&truth, &held).len(), 2, "m2 and m3 are active before m1 is upgraded");
    for change in truth.changes.iter_mut().filter(|change| change.to == Availability::Active) {
        change.at = at(39);
    }
    assert_eq!(super::held(&truth, &held), Vec::<String>::new());
}

#[test]
fn a_node_that_is_not_as_before_is_found() {
    let mut truth = good();
    let node = |truth: &mut Truth, name: &str| truth.after.nodes.remove(name).expect("a node");
    let mut w1 = node(&mut truth, "w1");
    w1.labels.insert("x".to_owned(), "y".to_owned());
    w1.availability = Availability::Drain;
    truth.after.nodes.insert("w1".to_owned(), w1);
    let mut m3 = node(&mut truth, "m3");
    m3.manager = None;
    truth.after.nodes.insert("m3".to_owned(), m3);
    node(&mut truth, "w2");
    assert_eq!(left_as_before(&truth).len(), 4);
}
