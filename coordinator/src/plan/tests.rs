//! The planner's rules, one by one.

use std::collections::BTreeSet;

use jiff::Timestamp;
use requeen_protocol::{LeaseId, NodeState, Order, Speaker};

use super::model::{
    Availability, LeaseRecord, ManagerPolicy, NodeView, Observed, Outcome, Phase, Role, Rollout, Step, TaskView, Work,
};
use super::reasons::WaitingFor;
use super::simulation::{agent, node, policy, rollout, staged};
use super::{Move, orders, plan, refuse};
use crate::api::PolicyChoice;

fn swarm(names: &[&str]) -> (Vec<NodeView>, Observed, Rollout) {
    let nodes: Vec<_> =
        names.iter().map(|name| node(name, if name.starts_with('m') { Role::Manager } else { Role::Worker })).collect();
    let rollout = rollout(&nodes, policy(ManagerPolicy::Rolling, 1));
    let observed = Observed {
        me: nodes[0].id.clone(),
        has_leader: true,
        agents: nodes.iter().map(|view| (view.id.clone(), agent(view, staged(&rollout.request.id)))).collect(),
        nodes: nodes.iter().map(|view| (view.id.clone(), view.clone())).collect(),
        tasks: Vec::new(),
        global_services: Vec::new(),
    };
    (nodes, observed, rollout)
}

fn plan_now(rollout: &Rollout, observed: &Observed) -> super::Plan {
    plan(rollout, observed, Timestamp::UNIX_EPOCH)
}

fn granted(moves: &[Move]) -> Vec<String> {
    moves
        .iter()
        .filter_map(|step| match step {
            Move::Record { node, step: Step::Working { work: Work::Granted, .. } } => Some(node.to_string()),
            Move::Record { .. } | Move::SetAvailability { .. } | Move::Phase(_) => None,
        })
        .collect()
}

fn lease() -> LeaseRecord {
    LeaseRecord { id: LeaseId("l".to_owned()), epoch: 1, forced: false }
}

fn working(work: Work) -> Step {
    Step::Working { lease: lease(), before: Availability::Active, work }
}

#[test]
fn managers_come_first_the_leader_last_and_this_node_before_it() {
    let (_, mut observed, _) = swarm(&["w1", "m1", "m2", "m3", "w2"]);
    observed.me = "id-m2".into();
    let all = observed.nodes.keys().cloned().collect();
    let order: Vec<_> = refuse::order(&observed, &all).iter().map(|id| observed.nodes[id].hostname.clone()).collect();
    assert_eq!(order, ["m3", "m2", "m1", "w1", "w2"]);
}

#[test]
fn the_first_lease_goes_to_the_first_manager_alone() {
    let (_, observed, rollout) = swarm(&["m1", "m2", "m3", "w1"]);
    let plan = plan_now(&rollout, &observed);
    assert_eq!(granted(&plan.moves), ["id-m2"]);
    assert_eq!(
        plan.waiting[&"id-w1".into()],
        WaitingFor::Managers { nodes: vec!["m1".into(), "m2".into(), "m3".into()] }
    );
    assert_eq!(plan.waiting[&"id-m3".into()], WaitingFor::PriorManager { node: "m2".into() });
}

#[test]
fn nobody_moves_before_all_have_staged() {
    let (nodes, mut observed, rollout) = swarm(&["m1", "m2", "m3", "w1"]);
    observed.agents.insert(nodes[3].id.clone(), agent(&nodes[3], NodeState::Idle));
    let plan = plan_now(&rollout, &observed);
    assert!(plan.moves.is_empty());
    assert_eq!(plan.waiting[&nodes[1].id], WaitingFor::OthersStaging { nodes: vec!["w1".into()] });
    assert_eq!(plan.waiting[&nodes[3].id], WaitingFor::Staging { progress: None });
}

#[test]
fn a_manager_waits_for_quorum() {
    let (nodes, mut observed, rollout) = swarm(&["m1", "m2", "m3"]);
    observed.nodes.get_mut(&nodes[2].id).unwrap().reachable = false;
    let plan = plan_now(&rollout, &observed);
    assert!(plan.moves.is_empty());
    assert_eq!(plan.waiting[&nodes[1].id], WaitingFor::Quorum { reachable: 2, managers: 3 });
}

#[test]
fn without_a_leader_nothing_moves() {
    let (nodes, mut observed, rollout) = swarm(&["m1", "m2", "m3"]);
    observed.has_leader = false;
    let plan = plan_now(&rollout, &observed);
    assert!(plan.moves.is_empty());
    assert_eq!(plan.waiting[&nodes[0].id], WaitingFor::Leader);
    let report = &observed.agents[&nodes[0].id].report;
    assert!(matches!(orders::order_for(orders::Knows::driving(&rollout, false), report, 0), Order::Wait { .. }));
}

#[test]
fn a_paused_or_halted_rollout_grants_nothing() {
    for phase in [Phase::Paused, Phase::Halted { reason: "x".into() }] {
        let (_, observed, mut rollout) = swarm(&["m1", "m2", "m3"]);
        rollout.phase = phase;
        assert!(plan_now(&rollout, &observed).moves.is_empty());
    }
}

#[test]
fn two_nodes_never_hold_all_tasks_of_a_service() {
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "w1", "w2", "w3"]);
    rollout.request.policy.workers_at_once = 2;
    rollout.nodes.get_mut(&nodes[0].id).unwrap().step = Step::Done { outcome: Outcome::Current };
    rollout.nodes.get_mut(&nodes[1].id).unwrap().step = working(Work::Granted);
    for at in [1, 2] {
        observed.tasks.push(TaskView {
            service: "web".into(),
            node: Some(nodes[at].id.clone()),
            alive: true,
            running: true,
            wanted: true,
        });
    }
    let plan = plan_now(&rollout, &observed);
    assert_eq!(plan.waiting[&nodes[2].id], WaitingFor::SharedService { service: "web".into() });
    assert_eq!(granted(&plan.moves), ["id-w3"]);
}

#[test]
fn a_stop_needs_a_drained_and_empty_node() {
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "m2", "m3"]);
    let id = nodes[1].id.clone();
    rollout.nodes.get_mut(&id).unwrap().step = working(Work::Linking);
    let linked =
        |task_containers| NodeState::Linked { rollout: rollout.request.id.clone(), lease: lease().id, task_containers };
    observed.agents.insert(id.clone(), agent(&nodes[1], linked(1)));
    // Somebody re-activated it.
    assert_eq!(plan_now(&rollout, &observed).waiting[&id], WaitingFor::AvailabilityChanged { now: "active".into() });
    observed.nodes.get_mut(&id).unwrap().availability = Availability::Drain;
    assert_eq!(plan_now(&rollout, &observed).waiting[&id], WaitingFor::ContainersToEnd { count: 1 });
    observed.agents.insert(id.clone(), agent(&nodes[1], linked(0)));
    observed.tasks.push(TaskView {
        service: "slow".into(),
        node: Some(id.clone()),
        alive: true,
        running: false,
        wanted: false,
    });
    assert_eq!(plan_now(&rollout, &observed).waiting[&id], WaitingFor::TasksToEnd { services: vec!["slow".into()] });
    observed.tasks.clear();
    let moves = plan_now(&rollout, &observed).moves;
    assert!(
        matches!(&moves[..], [Move::Record { step: Step::Working { work: Work::Permitted { .. }, .. }, .. }]),
        "{moves:?}"
    );
}

#[test]
fn a_lapsed_lease_is_granted_anew_under_another_name() {
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "m2", "m3"]);
    let id = nodes[1].id.clone();
    let entry = rollout.nodes.get_mut(&id).unwrap();
    entry.step = working(Work::Emptying);
    entry.times.push(("granted".into(), 0));
    observed.agents.get_mut(&id).unwrap().report.speaker = Speaker::Executor;
    let moves = plan_now(&rollout, &observed).moves;
    let [Move::Record { step: Step::Working { lease, before, work: Work::Granted }, .. }] = &moves[..] else {
        panic!("{moves:?}")
    };
    assert_ne!(lease.id, self::lease().id);
    assert!(lease.id.as_str().ends_with(".2"));
    assert_eq!(*before, Availability::Active);
}

#[test]
fn a_node_that_the_swarm_does_not_see_is_switched_back_in_time() {
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "m2", "m3"]);
    let id = nodes[1].id.clone();
    rollout.nodes.get_mut(&id).unwrap().step =
        working(Work::Permitted { permit: requeen_protocol::PermitId("p".into()), index: 1 });
    let state = NodeState::Running { rollout: rollout.request.id.clone(), lease: lease().id, engine_down_ms: 1 };
    observed.agents.insert(id.clone(), agent(&nodes[1], state));
    assert!(matches!(plan_now(&rollout, &observed).waiting[&id], WaitingFor::SwarmView { .. }));
    observed.agents.get_mut(&id).unwrap().state_secs = 121;
    let moves = plan_now(&rollout, &observed).moves;
    assert!(matches!(&moves[..], [Move::Record { step: Step::Working { work: Work::SwitchingBack { .. }, .. }, .. }]));
}

#[test]
fn a_failed_node_halts_the_rollout() {
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "m2", "m3", "w1"]);
    let id = nodes[1].id.clone();
    rollout.nodes.get_mut(&id).unwrap().step =
        working(Work::Permitted { permit: requeen_protocol::PermitId("p".into()), index: 1 });
    let state = NodeState::RolledBack {
        rollout: rollout.request.id.clone(),
        lease: lease().id,
        reason: "dockerd exits with 1".into(),
        engine_down_ms: 1,
        log: Vec::new(),
    };
    observed.agents.insert(id.clone(), agent(&nodes[1], state));
    let moves = plan_now(&rollout, &observed).moves;
    assert!(matches!(
        &moves[0],
        Move::Record { step: Step::Restoring { outcome: Outcome::RolledBack { .. }, .. }, .. }
    ));
    let Move::Phase(Phase::Halted { reason }) = &moves[1] else { panic!("{moves:?}") };
    assert!(reason.starts_with("m2: "));
}

#[test]
fn the_policy_follows_the_versions() {
    let (_, mut observed, _) = swarm(&["m1", "w1"]);
    let all: BTreeSet<_> = observed.nodes.keys().cloned().collect();
    for (from, to, expected) in [
        ("20.10.24+dfsg1", "26.1.5", ManagerPolicy::Rolling),
        ("17.06.2-ce", "20.10.24", ManagerPolicy::HoldDrained),
        ("18.03.1-ce", "18.06.0-ce", ManagerPolicy::HoldDrained),
        ("18.06.0-ce", "18.09.9", ManagerPolicy::Rolling),
        ("17.06.2-ce", "17.12.1-ce", ManagerPolicy::Rolling),
    ] {
        for node in observed.nodes.values_mut() {
            node.engine_version = from.to_owned();
        }
        let (policy, why) = refuse::choose_policy(PolicyChoice::Auto, &observed, &all, to);
        assert_eq!(policy, expected, "{from} to {to}: {why}");
    }
}

#[test]
fn one_or_two_managers_are_refused_unless_accepted() {
    for names in [&["m1", "w1"][..], &["m1", "m2", "w1"][..]] {
        let (_, observed, rollout) = swarm(names);
        let all = observed.nodes.keys().cloned().collect();
        let mut policy = rollout.request.policy.clone();
        let refusals = refuse::swarm(&observed, &all, &policy);
        assert_eq!(refusals.len(), 1);
        assert!(refusals[0].hint.contains("--accept-control-plane-outage"));
        policy.accept_control_plane_outage = true;
        assert!(refuse::swarm(&observed, &all, &policy).is_empty());
        // Workers alone need no quorum.
        let workers = observed.nodes.values().filter(|n| n.role == Role::Worker).map(|n| n.id.clone()).collect();
        policy.accept_control_plane_outage = false;
        assert!(refuse::swarm(&observed, &workers, &policy).is_empty());
    }
}

#[test]
fn hold_drained_needs_somewhere_to_go() {
    let (_, observed, _) = swarm(&["m1", "m2", "m3"]);
    let all = observed.nodes.keys().cloned().collect();
    let refusals = refuse::swarm(&observed, &all, &policy(ManagerPolicy::HoldDrained, 1));
    assert!(refusals.iter().any(|refusal| refusal.hint.contains("--policy rolling")), "{refusals:?}");
}

#[test]
fn nodes_are_named_by_name_id_and_prefix() {
    let (_, mut observed, _) = swarm(&["m1", "w1", "w2"]);
    assert_eq!(refuse::resolve(&observed, "w1").unwrap().as_str(), "id-w1");
    assert_eq!(refuse::resolve(&observed, "id-w2").unwrap().as_str(), "id-w2");
    assert!(refuse::resolve(&observed, "id-w").unwrap_err().what.contains("ambiguous"));
    assert!(refuse::resolve(&observed, "w9").unwrap_err().what.contains("no node `w9`"));
    assert!(refuse::resolve(&observed, "").is_err());
    observed.nodes.get_mut(&"id-w2".into()).unwrap().hostname = "w1".into();
    assert!(refuse::resolve(&observed, "w1").unwrap_err().what.contains("ambiguous"));
}

#[test]
fn a_missing_agent_and_a_node_that_is_down_are_named() {
    let (nodes, mut observed, rollout) = swarm(&["m1", "m2", "m3", "w1", "w2"]);
    observed.agents.remove(&nodes[3].id);
    observed.nodes.get_mut(&nodes[4].id).unwrap().ready = false;
    let all = observed.nodes.keys().cloned().collect();
    let refusals = refuse::swarm(&observed, &all, &rollout.request.policy);
    assert_eq!(refusals.len(), 2);
    assert!(refusals[0].what.contains("w1") && refusals[0].hint.contains("--only"));
    assert!(refusals[1].what.contains("w2 is down") && refusals[1].hint.contains("--exclude w2"));
}
