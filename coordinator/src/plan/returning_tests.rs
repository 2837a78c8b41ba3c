//! What may begin while an upgraded node's tasks are still being started.

use requeen_protocol::NodeState;

use super::super::model::{Availability, NodeView, Observed, Outcome, Phase, Rollout, Step, TaskView, Work};
use super::super::reasons::WaitingFor;
use super::super::simulation::agent;
use super::super::tests::{granted, lease, plan_now, swarm, working};
use super::super::{Move, Plan};

const SWARM: [&str; 5] = ["m1", "m2", "m3", "w1", "w2"];

fn restoring() -> Step {
    Step::Restoring { before: Availability::Active, outcome: Outcome::Upgraded { engine_down_ms: 1 } }
}

fn task(service: &str, node: &NodeView, running: bool) -> TaskView {
    TaskView { service: service.to_owned(), node: Some(node.id.clone()), alive: true, running, wanted: true }
}

/// A swarm with a service everywhere, of which the task on `late` does not run yet.
fn returning(late: usize) -> (Vec<NodeView>, Observed, Rollout) {
    let (nodes, mut observed, mut rollout) = swarm(&SWARM);
    observed.global_services = vec!["web".to_owned()];
    observed.tasks = nodes.iter().enumerate().map(|(n, node)| task("web", node, n != late)).collect();
    rollout.nodes.get_mut(&nodes[late].id).unwrap().step = restoring();
    (nodes, observed, rollout)
}

/// The same with `next` drained, empty and linked.
fn with_next_linked(late: usize, next: usize) -> (Vec<NodeView>, Observed, Rollout) {
    let (nodes, mut observed, mut rollout) = returning(late);
    let view = observed.nodes.get_mut(&nodes[next].id).unwrap();
    view.availability = Availability::Drain;
    observed.tasks.retain(|task| task.node.as_ref() != Some(&nodes[next].id));
    let linked = NodeState::Linked { rollout: rollout.request.id.clone(), lease: lease().id, task_containers: 0 };
    observed.agents.insert(nodes[next].id.clone(), agent(&nodes[next], linked));
    rollout.nodes.get_mut(&nodes[next].id).unwrap().step = working(Work::Linking);
    (nodes, observed, rollout)
}

fn run_all(observed: &mut Observed) {
    observed.tasks.iter_mut().for_each(|task| task.running = true);
}

fn permits(plan: &Plan) -> bool {
    plan.moves
        .iter()
        .any(|step| matches!(step, Move::Record { step: Step::Working { work: Work::Permitted { .. }, .. }, .. }))
}

#[test]
fn the_next_drain_begins_while_tasks_start() {
    let (nodes, mut observed, rollout) = returning(1);
    let plan = plan_now(&rollout, &observed);
    assert_eq!(granted(&plan.moves), ["id-m3"]);
    assert_eq!(plan.waiting[&nodes[1].id], WaitingFor::TasksToRun { services: vec!["web".into()] });

    // Not before the swarm sees it active and ready.
    observed.nodes.get_mut(&nodes[1].id).unwrap().availability = Availability::Drain;
    assert!(granted(&plan_now(&rollout, &observed).moves).is_empty());
}

#[test]
fn what_is_short_elsewhere_holds_the_next_drain_up() {
    let (nodes, mut observed, mut rollout) = returning(1);
    observed.tasks.push(TaskView { node: None, ..task("db", &nodes[3], false) });
    let plan = plan_now(&rollout, &observed);
    assert!(granted(&plan.moves).is_empty());
    assert_eq!(plan.waiting[&nodes[2].id], WaitingFor::PriorManager { node: "m2".into() });
    // It was so before anything was touched.
    rollout.request.short_services = vec!["db".to_owned()];
    assert_eq!(granted(&plan_now(&rollout, &observed).moves), ["id-m3"]);
}

#[test]
fn half_of_a_services_tasks_stay() {
    let (nodes, mut observed, rollout) = returning(1);
    // Of m1 and m3 one would stay, and three nodes count.
    observed.tasks.retain(|task| nodes[..3].iter().any(|node| task.node.as_ref() == Some(&node.id)));
    assert!(granted(&plan_now(&rollout, &observed).moves).is_empty());
    run_all(&mut observed);
    let done = |step: &Move| matches!(step, Move::Record { node, step: Step::Done { .. } } if *node == nodes[1].id);
    assert!(plan_now(&rollout, &observed).moves.iter().any(done));
}

#[test]
fn no_engine_is_stopped_before_the_last_nodes_tasks_run() {
    for (late, next) in [(1, 2), (0, 3)] {
        let (nodes, mut observed, mut rollout) = with_next_linked(late, next);
        for node in &nodes[..3] {
            let entry = rollout.nodes.get_mut(&node.id).unwrap();
            if next > 2 && entry.step != restoring() {
                entry.step = Step::Done { outcome: Outcome::Current };
            }
        }
        let plan = plan_now(&rollout, &observed);
        assert!(!permits(&plan), "{next} beside {late}");
        let why = WaitingFor::OthersTasks { node: SWARM[late].into(), services: vec!["web".into()] };
        assert_eq!(plan.waiting[&nodes[next].id], why);
        run_all(&mut observed);
        assert!(permits(&plan_now(&rollout, &observed)), "{next} after {late}");
    }
}

#[test]
fn a_node_that_went_away_again_holds_the_stop_up() {
    let (nodes, mut observed, rollout) = with_next_linked(1, 2);
    run_all(&mut observed);
    observed.nodes.get_mut(&nodes[1].id).unwrap().ready = false;
    let plan = plan_now(&rollout, &observed);
    assert!(!permits(&plan));
    let why = &plan.waiting[&nodes[2].id];
    assert_eq!(*why, WaitingFor::OthersTasks { node: "m2".into(), services: vec![] });
    assert_eq!(why.to_string(), "m2 has to be back first");
}

#[test]
fn a_worker_keeps_its_slot_until_its_tasks_run() {
    let (nodes, observed, mut rollout) = returning(3);
    for node in &nodes[..3] {
        rollout.nodes.get_mut(&node.id).unwrap().step = Step::Done { outcome: Outcome::Current };
    }
    let plan = plan_now(&rollout, &observed);
    assert!(granted(&plan.moves).is_empty());
    assert_eq!(plan.waiting[&nodes[4].id], WaitingFor::Slot { busy: vec!["w1".into()] });
    rollout.request.policy.workers_at_once = 2;
    assert_eq!(granted(&plan_now(&rollout, &observed).moves), ["id-w2"]);
}

#[test]
fn the_first_worker_is_drained_while_the_last_managers_tasks_start() {
    let (nodes, observed, mut rollout) = returning(0);
    for node in &nodes[1..3] {
        rollout.nodes.get_mut(&node.id).unwrap().step = Step::Done { outcome: Outcome::Current };
    }
    assert_eq!(granted(&plan_now(&rollout, &observed).moves), ["id-w1"]);
}

#[test]
fn a_node_that_carries_all_of_a_service_waits() {
    let (nodes, mut observed, rollout) = returning(1);
    observed.tasks.push(task("db", &nodes[2], true));
    let plan = plan_now(&rollout, &observed);
    assert!(granted(&plan.moves).is_empty());
    assert_eq!(plan.waiting[&nodes[2].id], WaitingFor::PriorManager { node: "m2".into() });
    observed.tasks.push(task("db", &nodes[3], true));
    assert_eq!(granted(&plan_now(&rollout, &observed).moves), ["id-m3"]);
}

#[test]
fn tasks_on_nodes_that_are_down_run_nowhere() {
    let (nodes, mut observed, rollout) = returning(1);
    for node in &nodes[3..] {
        observed.nodes.get_mut(&node.id).unwrap().ready = false;
    }
    // m1 would be the only one of three that stays.
    assert!(granted(&plan_now(&rollout, &observed).moves).is_empty());
}

#[test]
fn one_drain_at_a_time_runs_beside_tasks_that_start() {
    let (nodes, observed, mut rollout) = returning(0);
    rollout.request.policy.workers_at_once = 2;
    for node in &nodes[1..3] {
        rollout.nodes.get_mut(&node.id).unwrap().step = Step::Done { outcome: Outcome::Current };
    }
    rollout.nodes.get_mut(&nodes[3].id).unwrap().step = working(Work::Granted);
    assert!(granted(&plan_now(&rollout, &observed).moves).is_empty());
}

#[test]
fn a_manager_does_not_wait_for_what_the_next_drain_took_away() {
    let (nodes, mut observed, mut rollout) = with_next_linked(1, 2);
    run_all(&mut observed);
    observed.tasks.push(TaskView { node: None, ..task("db", &nodes[2], false) });
    let done = |step: &Move| matches!(step, Move::Record { node, step: Step::Done { .. } } if *node == nodes[1].id);
    assert!(plan_now(&rollout, &observed).moves.iter().any(done));
    // Nobody else is in work: then it does.
    rollout.nodes.get_mut(&nodes[2].id).unwrap().step = Step::Waiting { by_hand: false, forced: false };
    let why = WaitingFor::TasksToRun { services: vec!["db".into()] };
    assert_eq!(plan_now(&rollout, &observed).waiting[&nodes[1].id], why);
    rollout.phase = Phase::Aborting;
    assert!(plan_now(&rollout, &observed).moves.iter().any(done), "an abort has to end");
}

#[test]
fn a_manager_that_was_rolled_back_and_is_home_holds_nobody_up() {
    let (nodes, mut observed, mut rollout) = with_next_linked(1, 2);
    let outcome = Outcome::RolledBack { reason: "exit 1".into(), log: vec![] };
    rollout.nodes.get_mut(&nodes[1].id).unwrap().step = Step::Restoring { before: Availability::Active, outcome };
    assert!(!permits(&plan_now(&rollout, &observed)));
    run_all(&mut observed);
    assert!(permits(&plan_now(&rollout, &observed)));
}
