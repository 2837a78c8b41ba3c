//! The planner's rules, one by one.

use std::collections::BTreeSet;

use jiff::Timestamp;
use requeen_protocol::{LeaseId, NodeState, Order, Speaker, SwapPhase};

use super::freed::{self, Kept};
use super::model::{
    Availability, LeaseRecord, ManagerPolicy, NodeView, Observed, Outcome, Phase, Role, Rollout, Step, TaskView, Work,
};
use super::reasons::WaitingFor;
use super::simulation::{agent, node, policy, rollout, staged};
use super::{Move, orders, plan, refuse};
use crate::api::PolicyChoice;

pub(super) fn swarm(names: &[&str]) -> (Vec<NodeView>, Observed, Rollout) {
    let nodes: Vec<_> =
        names.iter().map(|name| node(name, if name.starts_with('m') { Role::Manager } else { Role::Worker })).collect();
    let rollout = rollout(&nodes, policy(ManagerPolicy::Rolling, 1));
    let observed = Observed {
        me: nodes[0].id.clone(),
        has_leader: true,
        agents: nodes.iter().map(|view| (view.id.clone(), agent(view, staged(&rollout.request.id)))).collect(),
        autolocked: false,
        nodes: nodes.iter().map(|view| (view.id.clone(), view.clone())).collect(),
        tasks: Vec::new(),
        global_services: Vec::new(),
    };
    (nodes, observed, rollout)
}

pub(super) fn plan_now(rollout: &Rollout, observed: &Observed) -> super::Plan {
    plan(rollout, observed, Timestamp::UNIX_EPOCH)
}

pub(super) fn granted(moves: &[Move]) -> Vec<String> {
    moves
        .iter()
        .filter_map(|step| match step {
            Move::Record { node, step: Step::Working { work: Work::Granted, .. } } => Some(node.to_string()),
            Move::Record { .. } | Move::Join { .. } | Move::SetAvailability { .. } | Move::Phase(_) => None,
        })
        .collect()
}

pub(super) fn lease() -> LeaseRecord {
    LeaseRecord { id: LeaseId("l".to_owned()), epoch: 1, forced: false }
}

pub(super) fn working(work: Work) -> Step {
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
    // Also where a permit was given, and came too late.
    let permitted = Work::Permitted { permit: "l.stop".into(), index: 1 };
    for work in [Work::Emptying, Work::Linking, permitted] {
        let (nodes, mut observed, mut rollout) = swarm(&["m1", "m2", "m3"]);
        let id = nodes[1].id.clone();
        let entry = rollout.nodes.get_mut(&id).unwrap();
        entry.step = working(work);
        entry.times.push(("granted".into(), 0));
        observed.agents.get_mut(&id).unwrap().report.speaker = Speaker::Executor;
        let moves = plan_now(&rollout, &observed).moves;
        let [Move::Record { step: Step::Working { lease, before, work: Work::Granted }, .. }] = &moves[..] else {
            panic!("{moves:?}")
        };
        assert_ne!(lease.id, self::lease().id);
        assert!(lease.id.as_str().ends_with(".2"));
        assert_eq!(*before, Availability::Active);

        rollout.phase = Phase::Aborting;
        let moves = plan_now(&rollout, &observed).moves;
        let withdrawn = Move::Record { node: id.clone(), step: working(Work::Withdrawing) };
        assert!(moves.contains(&withdrawn), "{moves:?}");
    }
}

#[test]
fn it_is_too_late_to_withdraw_from_a_node_that_has_stopped_its_engine() {
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "m2", "m3", "w1"]);
    let id = nodes[3].id.clone();
    rollout.nodes.get_mut(&id).unwrap().step = working(Work::Withdrawing);
    rollout.phase = Phase::Aborting;
    let said = |lease: &str| NodeState::Swapping {
        rollout: rollout.request.id.clone(),
        lease: LeaseId(lease.to_owned()),
        phase: SwapPhase::Stopping,
        waiting: None,
    };
    observed.agents.insert(id.clone(), agent(&nodes[3], said("another")));
    assert_eq!(plan_now(&rollout, &observed).waiting[&id], WaitingFor::Withdrawal);
    observed.agents.insert(id.clone(), agent(&nodes[3], said("l")));
    let moves = plan_now(&rollout, &observed).moves;
    let finishes = |step: &Move| matches!(step, Move::Record { node, step: Step::Working { work: Work::Permitted { .. }, .. } } if *node == id);
    assert!(moves.iter().any(finishes), "{moves:?}");
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

/// A manager that was released while swapping, under the lease of its first grant.
fn released(names: &[&str]) -> (Vec<NodeView>, Observed, Rollout) {
    let (nodes, mut observed, mut rollout) = swarm(names);
    let id = &nodes[1].id;
    observed.agents.get_mut(id).unwrap().silent_secs = 31;
    observed.nodes.get_mut(id).unwrap().availability = Availability::Drain;
    let entry = rollout.nodes.get_mut(id).unwrap();
    entry.times = [("granted".to_owned(), 0), ("swapping".to_owned(), 9)].into();
    entry.step = working(Work::Permitted { permit: requeen_protocol::PermitId("p".into()), index: 1 });
    entry.step = freed::freed(entry, observed.nodes.get(id), 7);
    entry.times.push(("failed".into(), 99));
    (nodes, observed, rollout)
}

#[test]
fn only_a_slot_whose_node_is_silent_or_gone_is_freed() {
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "m2", "m3"]);
    let id = nodes[1].id.clone();
    let may = |rollout: &Rollout, observed: &Observed, listening| {
        freed::may_free(&rollout.nodes[&id], observed, &id, listening)
    };
    observed.agents.get_mut(&id).unwrap().silent_secs = 31;
    assert_eq!(may(&rollout, &observed, 99), Err(Kept::NoSlot));
    rollout.nodes.get_mut(&id).unwrap().step = working(Work::Emptying);
    assert_eq!(may(&rollout, &observed, 0), Ok(()));
    observed.agents.get_mut(&id).unwrap().silent_secs = 30;
    assert_eq!(may(&rollout, &observed, 99), Err(Kept::Heard));
    let agent = observed.agents.remove(&id);
    // A coordinator that has just begun has heard nobody yet.
    assert_eq!(may(&rollout, &observed, 12), Err(Kept::TooEarly { left_secs: 19 }));
    assert_eq!(may(&rollout, &observed, 31), Ok(()));
    observed.agents.extend(agent.map(|agent| (id.clone(), agent)));
    observed.nodes.remove(&id);
    assert_eq!(may(&rollout, &observed, 0), Ok(()));
}

#[test]
fn what_is_left_to_do_on_a_released_node_is_named() {
    let (nodes, observed, mut rollout) = released(&["m1", "m2", "m3"]);
    let entry = rollout.nodes.get_mut(&nodes[1].id).unwrap();
    let words = |step: &Step| {
        let Step::Done { outcome: Outcome::Failed { reason, hint } } = step else { panic!("{step:?}") };
        (reason.clone(), hint.clone())
    };
    let (reason, hint) = words(&entry.step);
    assert_eq!(reason, "released by the operator (uid 7) while swapping");
    assert!(hint.ends_with("`docker node update --availability active m2`"), "{hint}");
    let outcome = Outcome::Upgraded { engine_down_ms: 1 };
    entry.step = Step::Restoring { before: Availability::Drain, outcome };
    let (reason, hint) = words(&freed::freed(entry, observed.nodes.get(&nodes[1].id), 0));
    assert_eq!(reason, "released by the operator (uid 0) after it was upgraded");
    assert!(hint.contains("drain, as before"), "{hint}");
    let (_, hint) = words(&freed::freed(entry, None, 0));
    assert!(hint.contains("left the swarm"), "{hint}");
}

#[test]
fn a_released_manager_counts_in_the_quorum_as_it_is() {
    for (reachable, heard) in [
        (false, None),
        // The swarm sees it, but it may still stop its engine.
        (true, None),
        (true, Some(SwapPhase::Stopping)),
        (true, Some(SwapPhase::Starting)),
    ] {
        let (nodes, mut observed, rollout) = released(&["m1", "m2", "m3", "w1"]);
        let id = &nodes[1].id;
        observed.nodes.get_mut(id).unwrap().reachable = reachable;
        if let Some(phase) = heard {
            let rollout = rollout.request.id.clone();
            let state = NodeState::Swapping { rollout, lease: lease().id, phase, waiting: None };
            observed.agents.insert(id.clone(), agent(&nodes[1], state));
        }
        let plan = plan_now(&rollout, &observed);
        let quorum = WaitingFor::Quorum { reachable: 2, managers: 3 };
        assert_eq!(plan.waiting.get(&nodes[2].id), Some(&quorum), "{reachable} {heard:?}");
        assert!(plan.moves.is_empty(), "{:?}", plan.moves);
    }
    // With five the others still are enough.
    let (nodes, mut observed, rollout) = released(&["m1", "m2", "m3", "m4", "m5"]);
    observed.nodes.get_mut(&nodes[1].id).unwrap().reachable = false;
    assert_eq!(granted(&plan_now(&rollout, &observed).moves), ["id-m3"]);
    // Back without ever having used its permit, it can't use it any more.
    let (nodes, mut observed, rollout) = released(&["m1", "m2", "m3"]);
    observed.agents.insert(nodes[1].id.clone(), agent(&nodes[1], staged(&rollout.request.id)));
    assert_eq!(granted(&plan_now(&rollout, &observed).moves), ["id-m3"]);
}

#[test]
fn a_released_node_gets_no_order_to_act_on() {
    let (nodes, _, rollout) = released(&["m1", "m2", "m3"]);
    let id = || rollout.request.id.clone();
    let lease = || LeaseId("r1.id-m2.1".into());
    for state in [
        NodeState::Idle,
        staged(&id()),
        NodeState::Leased { rollout: id(), lease: lease(), task_containers: 0 },
        NodeState::Linked { rollout: id(), lease: lease(), task_containers: 0 },
        NodeState::Swapping { rollout: id(), lease: lease(), phase: SwapPhase::Starting, waiting: None },
        NodeState::Running { rollout: id(), lease: lease(), engine_down_ms: 1 },
    ] {
        let report = agent(&nodes[1], state).report;
        let order = orders::order_for(orders::Knows::driving(&rollout, true), &report, 0);
        assert!(matches!(order, Order::Wait { .. }), "{order:?} for {:?}", report.state);
    }
}

#[test]
fn a_released_nodes_own_word_counts_when_it_is_heard_again() {
    let (nodes, mut observed, mut rollout) = released(&["m1", "m2", "m3", "m4", "m5"]);
    let id = nodes[1].id.clone();
    let (r, lease) = (rollout.request.id.clone(), LeaseId("r1.id-m2.1".into()));
    let upgraded = NodeState::Upgraded {
        rollout: r.clone(),
        lease: lease.clone(),
        engine_down_ms: 5,
        set: super::simulation::digest(),
    };
    let back = NodeState::RolledBack {
        rollout: r.clone(),
        lease: lease.clone(),
        reason: "x".into(),
        engine_down_ms: 5,
        log: vec!["y".into()],
    };
    let running = |lease| NodeState::Running { rollout: r.clone(), lease, engine_down_ms: 5 };
    let step_on = |rollout: &Rollout, observed: &Observed| {
        plan_now(rollout, observed).moves.into_iter().find_map(|step| match step {
            Move::Record { node, step } if node == id => Some(step),
            Move::Record { .. } | Move::Join { .. } | Move::SetAvailability { .. } | Move::Phase(_) => None,
        })
    };
    let mut says = |state: NodeState, silent_secs| {
        let view = agent(&nodes[1], state);
        observed.agents.insert(id.clone(), super::model::AgentView { silent_secs, ..view });
        step_on(&rollout, &observed)
    };
    // What it said before it fell silent is no news, and neither is another lease.
    assert_eq!(says(upgraded.clone(), 31), None);
    assert_eq!(says(running("r1.id-m2.2".into()), 0), None);
    let done = |outcome| Some(Step::Done { outcome });
    assert_eq!(says(upgraded.clone(), 0), done(Outcome::Upgraded { engine_down_ms: 5 }));
    assert_eq!(says(back, 0), done(Outcome::RolledBack { reason: "x".into(), log: vec!["y".into()] }));
    let settling = says(running(lease.clone()), 0);
    let record = LeaseRecord { id: lease.clone(), epoch: 1, forced: false };
    let expected = Step::Working { lease: record, before: Availability::Drain, work: Work::Settling };
    assert_eq!(settling, Some(expected));
    // Nobody puts files in order for an engine that the swarm does not see.
    observed.nodes.get_mut(&id).unwrap().ready = false;
    assert_eq!(step_on(&rollout, &observed), None);
    observed.nodes.remove(&id);
    assert_eq!(step_on(&rollout, &observed), None);

    // From then on the operator is reminded of what nobody else does.
    let entry = rollout.nodes.get_mut(&id).unwrap();
    let drained = NodeView { availability: Availability::Drain, ..nodes[1].clone() };
    assert!(!freed::left_drained(entry, &drained), "the hint of the failure says it");
    entry.step = Step::Done { outcome: Outcome::Upgraded { engine_down_ms: 5 } };
    assert!(freed::left_drained(entry, &drained));
    assert!(!freed::left_drained(entry, &nodes[1]));
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
fn agents_that_keep_no_copy_are_told_before_anything_is_touched() {
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "w1"]);
    let all = observed.nodes.keys().cloned().collect();
    assert_eq!(refuse::staged(&observed, &all, &rollout.request.policy), []);
    rollout.request.policy.keep_raft_copy = true;
    let order = orders::order_for(orders::Knows::driving(&rollout, true), &observed.agents[&nodes[0].id].report, 0);
    assert!(matches!(order, Order::Stage { keep_raft_copy: true, .. }), "{order:?}");
    let refusals = refuse::staged(&observed, &all, &rollout.request.policy);
    let named: Vec<_> = refusals.iter().filter_map(|refusal| refusal.node.as_deref()).collect();
    assert_eq!(named, ["m1", "w1"]);
    assert!(refusals.iter().all(|refusal| refusal.hint.contains("requeen deploy")), "{refusals:?}");
    // Nothing, on a worker, is an answer too.
    for (node, bytes) in nodes.iter().zip([1 << 20, 0]) {
        let Some(NodeState::Staged { preflight, .. }) =
            observed.agents.get_mut(&node.id).map(|agent| &mut agent.report.state)
        else {
            panic!("{node:?} has not staged");
        };
        preflight.raft_copy_bytes = Some(bytes);
    }
    assert_eq!(refuse::staged(&observed, &all, &rollout.request.policy), []);
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

/// A worker `name` that is not in the rollout yet.
fn newcomer(observed: &mut Observed, name: &str) -> NodeView {
    let view = node(name, Role::Worker);
    observed.nodes.insert(view.id.clone(), view.clone());
    view
}

#[test]
fn a_node_that_joins_is_taken_in_once_its_agent_has_called() {
    let (_, mut observed, rollout) = swarm(&["m1", "m2", "m3", "w1"]);
    let new = newcomer(&mut observed, "w2");
    let outside = plan_now(&rollout, &observed);
    assert_eq!(outside.waiting[&new.id], WaitingFor::Agent);
    assert_eq!(granted(&outside.moves), ["id-m2"], "nobody waits for it");

    observed.agents.insert(new.id.clone(), agent(&new, NodeState::Idle));
    let moves = plan_now(&rollout, &observed).moves;
    let [Move::Join { node, entry }] = &moves[..] else { panic!("{moves:?}") };
    assert_eq!((node, entry.hostname.as_str(), entry.role, entry.joined), (&new.id, "w2", Role::Worker, true));
    assert_eq!(entry.step, Step::Waiting { by_hand: false, forced: false });

    // In the record it has to stage, and the others still do not wait for it.
    let mut rollout = rollout;
    rollout.nodes.insert(node.clone(), entry.clone());
    let report = &observed.agents[&new.id].report;
    assert!(matches!(orders::order_for(orders::Knows::driving(&rollout, true), report, 0), Order::Stage { .. }));
    let inside = plan_now(&rollout, &observed);
    assert_eq!(inside.waiting[&new.id], WaitingFor::Staging { progress: None });
    assert_eq!(granted(&inside.moves), ["id-m2"]);
}

#[test]
fn a_host_that_comes_back_as_another_node_keeps_what_it_staged() {
    let (_, mut observed, mut rollout) = swarm(&["m1", "m2", "m3", "w1"]);
    let view = newcomer(&mut observed, "w9");
    let id = rollout.request.id.clone();
    // The rollout was prepared by this very coordinator.
    let prepared = BTreeSet::from([id.clone()]);
    let order = |rollout: &Rollout| {
        let knows = orders::Knows { prepared: &prepared, ..orders::Knows::driving(rollout, true) };
        orders::order_for(knows, &agent(&view, staged(&id)).report, 0)
    };
    assert!(matches!(order(&rollout), Order::Wait { .. }), "{:?}", order(&rollout));
    rollout.request.excluded.insert(view.id.clone());
    assert_eq!(order(&rollout), Order::Forget { rollout: id.clone() });
}

#[test]
fn a_node_that_joins_stays_outside_where_the_operator_said_so() {
    let said: [fn(&mut Rollout, &NodeView); 2] = [
        |rollout, _| rollout.request.scope_all = false,
        |rollout, new| assert!(rollout.request.excluded.insert(new.id.clone())),
    ];
    for change in said {
        let (_, mut observed, mut rollout) = swarm(&["m1", "m2", "m3"]);
        let new = newcomer(&mut observed, "w2");
        observed.agents.insert(new.id.clone(), agent(&new, NodeState::Idle));
        change(&mut rollout, &new);
        let plan = plan_now(&rollout, &observed);
        assert_eq!(plan.waiting[&new.id], WaitingFor::OutOfScope);
        assert_eq!(granted(&plan.moves), ["id-m2"]);
    }
    // A rollout that is being ended takes nobody in.
    let (_, mut observed, mut rollout) = swarm(&["m1", "m2", "m3"]);
    let new = newcomer(&mut observed, "w2");
    observed.agents.insert(new.id.clone(), agent(&new, NodeState::Idle));
    rollout.phase = Phase::Aborting;
    assert!(!plan_now(&rollout, &observed).moves.iter().any(|step| matches!(step, Move::Join { .. })));
}

#[test]
fn a_node_that_joins_and_needs_nothing_or_can_not_follow_is_done() {
    let (_, mut observed, mut rollout) = swarm(&["m1", "m2", "m3"]);
    let new = newcomer(&mut observed, "w2");
    let mut entry = rollout.nodes[&"id-m3".into()].clone();
    (entry.role, entry.joined) = (Role::Worker, true);
    rollout.nodes.insert(new.id.clone(), entry);
    let NodeState::Staged { rollout: id, mut preflight } = staged(&rollout.request.id) else { unreachable!() };
    preflight.changes.clear();
    let problem = requeen_protocol::Problem { what: "another machine".into(), hint: "leave it".into() };
    for (state, expected) in [
        (NodeState::Staged { rollout: id.clone(), preflight }, Outcome::Current),
        (
            NodeState::Refused { rollout: id, problems: vec![problem] },
            Outcome::Failed { reason: "another machine".into(), hint: "leave it".into() },
        ),
    ] {
        observed.agents.insert(new.id.clone(), agent(&new, state));
        let moves = plan_now(&rollout, &observed).moves;
        assert_eq!(moves, [Move::Record { node: new.id.clone(), step: Step::Done { outcome: expected } }]);
    }
}

#[test]
fn a_node_that_was_removed_before_its_lease_is_no_reason_to_wait() {
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "m2", "m3", "w1"]);
    observed.nodes.remove(&nodes[3].id);
    observed.agents.get_mut(&nodes[3].id).unwrap().silent_secs = 999;
    let step = Step::Done { outcome: Outcome::Untouched };
    assert_eq!(plan_now(&rollout, &observed).moves, [Move::Record { node: nodes[3].id.clone(), step: step.clone() }]);
    rollout.nodes.get_mut(&nodes[3].id).unwrap().step = step;
    assert_eq!(granted(&plan_now(&rollout, &observed).moves), ["id-m2"]);
}

#[test]
fn a_node_that_was_removed_under_a_lease_is_free_only_where_it_can_not_stop_its_engine() {
    let permit = || Work::Permitted { permit: requeen_protocol::PermitId("p".into()), index: 1 };
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "m2", "m3", "w1"]);
    let id = nodes[3].id.clone();
    observed.nodes.remove(&id);
    let leased = NodeState::Leased { rollout: rollout.request.id.clone(), lease: lease().id, task_containers: 2 };
    let swapping = NodeState::Swapping {
        rollout: rollout.request.id.clone(),
        lease: lease().id,
        phase: SwapPhase::Stopping,
        waiting: None,
    };
    let mut said = agent(&nodes[3], leased);
    said.silent_secs = 999;
    let mut further = said.clone();
    further.report.state = swapping;
    let switching_back = || Work::SwitchingBack { reason: "x".into() };
    for (work, said, free) in [
        (Work::Granted, Some(&said), true),
        (Work::Draining, Some(&said), true),
        (Work::Emptying, Some(&said), true),
        (Work::Linking, Some(&said), true),
        (Work::Withdrawing, Some(&said), true),
        // Its engine may be down: that is not over by a word to the swarm.
        (permit(), Some(&said), false),
        (Work::Settling, Some(&said), false),
        (switching_back(), Some(&said), false),
        // A record that was made again may be behind the node.
        (Work::Linking, Some(&further), false),
        (Work::Linking, None, false),
    ] {
        observed.agents.remove(&id);
        observed.agents.extend(said.map(|said| (id.clone(), said.clone())));
        rollout.nodes.get_mut(&id).unwrap().step = working(work.clone());
        let plan = plan_now(&rollout, &observed);
        let untouched = Move::Record { node: id.clone(), step: Step::Done { outcome: Outcome::Untouched } };
        assert_eq!(plan.moves.contains(&untouched), free, "{work:?}: {:?}", plan.moves);
        let why = plan.waiting.get(&id);
        assert_eq!(why == Some(&WaitingFor::Removed { node: "w1".into() }), !free, "{work:?}: {why:?}");
    }
}

#[test]
fn a_node_that_was_promoted_or_demoted_takes_its_place_among_the_others() {
    // w1 waits as what it is now; otherwise it would wait for the managers, and the leader for it.
    let (nodes, mut observed, rollout) = swarm(&["m1", "m2", "m3", "w1", "w2"]);
    observed.nodes.get_mut(&nodes[3].id).unwrap().role = Role::Manager;
    let rollout = done(rollout, &["m2", "m3"]);
    assert_eq!(granted(&plan_now(&rollout, &observed).moves), ["id-w1"]);
    // A manager whose name comes last, and which is a worker now, waits for the managers alone.
    let (nodes, mut observed, rollout) = swarm(&["m1", "m2", "m3", "m9", "w1"]);
    let demoted = observed.nodes.get_mut(&nodes[3].id).unwrap();
    (demoted.role, demoted.hostname) = (Role::Worker, "z".into());
    let rollout = done(rollout, &["m2", "m3"]);
    assert_eq!(granted(&plan_now(&rollout, &observed).moves), ["id-m1"]);
    assert_eq!(granted(&plan_now(&done(rollout, &["m1"]), &observed).moves), ["id-w1"]);
}

fn done(mut rollout: Rollout, names: &[&str]) -> Rollout {
    for entry in rollout.nodes.values_mut().filter(|entry| names.contains(&entry.hostname.as_str())) {
        entry.step = Step::Done { outcome: Outcome::Upgraded { engine_down_ms: 1 } };
    }
    rollout
}

#[test]
fn of_workers_that_were_promoted_one_stops_after_the_other() {
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "w1", "w2"]);
    for view in &nodes[1..] {
        let linked = NodeState::Linked { rollout: rollout.request.id.clone(), lease: lease().id, task_containers: 0 };
        observed.agents.insert(view.id.clone(), agent(view, linked));
        let node = observed.nodes.get_mut(&view.id).unwrap();
        (node.role, node.availability, node.reachable) = (Role::Manager, Availability::Drain, true);
        rollout.nodes.get_mut(&view.id).unwrap().step = working(Work::Linking);
    }
    let plan = plan_now(&rollout, &observed);
    let permitted: Vec<_> = plan
        .moves
        .iter()
        .filter(|step| matches!(step, Move::Record { step: Step::Working { work: Work::Permitted { .. }, .. }, .. }))
        .collect();
    assert_eq!(permitted.len(), 1, "{:?}", plan.moves);
    assert_eq!(plan.waiting[&nodes[2].id], WaitingFor::PriorManager { node: "w1".into() });
}

#[test]
fn a_node_that_got_stuck_before_its_permit_gets_its_availability_back() {
    for managers in [ManagerPolicy::Rolling, ManagerPolicy::HoldDrained] {
        let (nodes, mut observed, mut rollout) = swarm(&["m1", "m2", "m3"]);
        rollout.request.policy.managers = managers;
        let id = &nodes[1].id;
        let stuck = NodeState::Stuck {
            rollout: rollout.request.id.clone(),
            reason: "the swap can't be planned".into(),
            hint: "look".into(),
            log: Vec::new(),
        };
        observed.agents.insert(id.clone(), agent(&nodes[1], stuck));
        observed.nodes.get_mut(id).unwrap().availability = Availability::Drain;
        rollout.nodes.get_mut(id).unwrap().step = working(Work::Linking);
        let moves = plan_now(&rollout, &observed).moves;
        let [Move::Record { step, .. }, Move::Phase(Phase::Halted { .. })] = &moves[..] else { panic!("{moves:?}") };
        assert!(matches!(step, Step::Restoring { outcome: Outcome::Failed { .. }, .. }), "{step:?}");
        (rollout.nodes.get_mut(id).unwrap().step, rollout.phase) =
            (step.clone(), Phase::Halted { reason: "m2: the swap can't be planned".into() });
        let back = Move::SetAvailability { node: id.clone(), to: Availability::Active };
        assert_eq!(plan_now(&rollout, &observed).moves, [back]);
        let node = observed.nodes.get_mut(id).unwrap();
        (node.availability, node.ready) = (Availability::Active, false);
        let moves = plan_now(&rollout, &observed).moves;
        assert!(matches!(&moves[..], [Move::Record { step: Step::Done { outcome: Outcome::Failed { .. } }, .. }]));
    }
}

#[test]
fn a_stop_that_is_held_back_says_why() {
    let (nodes, mut observed, mut rollout) = swarm(&["m1", "m2", "m3"]);
    let id = nodes[1].id.clone();
    rollout.nodes.get_mut(&id).unwrap().step =
        working(Work::Permitted { permit: requeen_protocol::PermitId("p".into()), index: 1 });
    let state = NodeState::Linked { rollout: rollout.request.id.clone(), lease: lease().id, task_containers: 0 };
    let mut says = agent(&nodes[1], state);
    observed.agents.insert(id.clone(), says.clone());
    assert_eq!(plan_now(&rollout, &observed).waiting[&id].to_string(), "engine stopping");
    says.report.seen = Some(Box::new(Order::Wait { why: "no key".to_owned() }));
    observed.agents.insert(id.clone(), says);
    assert_eq!(plan_now(&rollout, &observed).waiting[&id].to_string(), "engine not stopped yet: no key");
}

#[test]
fn a_permitted_node_keeps_its_lease_while_its_containers_end() {
    let (nodes, _, mut rollout) = swarm(&["m1", "w1"]);
    let id = nodes[1].id.clone();
    rollout.nodes.get_mut(&id).unwrap().step =
        working(Work::Permitted { permit: requeen_protocol::PermitId("p".into()), index: 1 });
    let order = |phase, waiting: Option<&str>| {
        let waiting = waiting.map(str::to_owned);
        let state = NodeState::Swapping { rollout: rollout.request.id.clone(), lease: lease().id, phase, waiting };
        orders::order_for(orders::Knows::driving(&rollout, true), &agent(&nodes[1], state).report, 0)
    };
    let container = Some("container c to end");
    for waiting in [container, None] {
        let order = order(SwapPhase::Stopping, waiting);
        assert!(matches!(&order, Order::Hold { lease: held, .. } if held.id == lease().id), "{order:?}");
    }
    // From there on the node finishes alone.
    assert!(matches!(order(SwapPhase::Verifying, container), Order::Wait { .. }));
}
