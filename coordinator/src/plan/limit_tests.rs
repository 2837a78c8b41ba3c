//! The time limit, rule by rule.

use requeen_protocol::NodeId;

use super::super::model::{Availability, LeaseRecord, NodeView, Observed, Phase, Work};
use super::super::simulation::{agent, node, policy, rollout, staged};
use super::super::{Move, Plan, plan};
use super::*;

const DONE: Step = Step::Done { outcome: Outcome::Upgraded { engine_down_ms: 1 } };

fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(secs).unwrap()
}

/// These nodes, all staged, in a rollout that has until second 1000.
fn swarm(names: &[&str], managers: ManagerPolicy) -> (Observed, Rollout) {
    let role = |name: &str| if name.starts_with('m') { Role::Manager } else { Role::Worker };
    let nodes: Vec<NodeView> = names.iter().map(|name| node(name, role(name))).collect();
    let mut rollout = rollout(&nodes, policy(managers, 1));
    rollout.request.policy.not_after = Some(at(1000));
    let observed = Observed {
        me: nodes[0].id.clone(),
        has_leader: true,
        agents: nodes.iter().map(|view| (view.id.clone(), agent(view, staged(&rollout.request.id)))).collect(),
        autolocked: false,
        nodes: nodes.into_iter().map(|view| (view.id.clone(), view)).collect(),
        tasks: Vec::new(),
        global_services: Vec::new(),
    };
    (observed, rollout)
}

fn id(name: &str) -> NodeId {
    NodeId(format!("id-{name}"))
}

fn set(rollout: &mut Rollout, name: &str, step: Step, times: &[(&str, u64)]) {
    let entry = rollout.nodes.get_mut(&id(name)).unwrap();
    entry.step = step;
    entry.times = times.iter().map(|(step, ms)| ((*step).to_owned(), *ms)).collect();
}

fn granted(plan: &Plan) -> Vec<&str> {
    plan.moves
        .iter()
        .filter_map(|step| match step {
            Move::Record { node, step: Step::Working { work: Work::Granted, .. } } => Some(node.as_str()),
            Move::Record { .. } | Move::Join { .. } | Move::SetAvailability { .. } | Move::Phase(_) => None,
        })
        .collect()
}

fn halted(plan: &Plan) -> Option<&str> {
    plan.moves.iter().find_map(|step| match step {
        Move::Phase(Phase::Halted { reason }) => Some(reason.as_str()),
        Move::Phase(Phase::Running | Phase::Paused | Phase::Aborting | Phase::Ended { .. })
        | Move::Record { .. }
        | Move::Join { .. }
        | Move::SetAvailability { .. } => None,
    })
}

fn working() -> Step {
    let lease = LeaseRecord { id: "l".into(), epoch: 1, forced: false };
    Step::Working { lease, before: Availability::Active, work: Work::Granted }
}

#[test]
fn a_node_is_begun_to_the_last_second_in_which_it_can_be_done() {
    let (observed, rollout) = swarm(&["m1", "m2", "m3"], ManagerPolicy::Rolling);
    assert_eq!(granted(&plan(&rollout, &observed, at(820))), ["id-m2"]);
    let late = plan(&rollout, &observed, at(821));
    assert_eq!(late.waiting[&id("m2")], WaitingFor::NotAfter { until: at(1000), needs_secs: 180 });
    assert_eq!(halted(&late), Some("not after 1970-01-01T00:16:40Z: 3 nodes left (m1, m2, m3)"));
    assert_eq!(late.moves.len(), 1, "{:?}", late.moves);
    // Long after it is no other.
    assert!(halted(&plan(&rollout, &observed, at(99_999))).is_some());
}

#[test]
fn what_others_took_counts_and_the_same_role_first() {
    let (observed, mut rollout) = swarm(&["m1", "w1", "w2", "w3"], ManagerPolicy::Rolling);
    let needs = |rollout: &Rollout| {
        let closed = Limit::of(rollout).unwrap().closed(&id("w3"), at(2000));
        let Some(WaitingFor::NotAfter { needs_secs, .. }) = closed else { panic!("{closed:?}") };
        needs_secs
    };
    assert_eq!(needs(&rollout), 120);
    // Waiting before and being held in between is no work.
    let held = [("waiting", 0), ("granted", 10_000), ("held", 60_000), ("restoring", 500_000), ("upgraded", 501_500)];
    set(&mut rollout, "m1", DONE, &held);
    assert_eq!(needs(&rollout), 52);
    set(&mut rollout, "w1", DONE, &[("granted", 510_000), ("restoring", 520_000), ("upgraded", 530_001)]);
    assert_eq!(needs(&rollout), 21);
    // One that was released had its slot for as long as nobody looked.
    let failed = Step::Done { outcome: Outcome::Failed { reason: String::new(), hint: String::new() } };
    set(&mut rollout, "w2", failed, &[("granted", 0), ("failed", 9_000_000)]);
    assert_eq!(needs(&rollout), 21);
    assert_eq!(granted(&plan(&rollout, &observed, at(979))), ["id-w3"]);
}

#[test]
fn what_is_in_work_is_waited_for_before_the_rollout_halts() {
    let (mut observed, mut rollout) = swarm(&["m1", "w1", "w2"], ManagerPolicy::Rolling);
    set(&mut rollout, "m1", DONE, &[]);
    set(&mut rollout, "w1", working(), &[]);
    let busy = plan(&rollout, &observed, at(999));
    assert_eq!((halted(&busy), busy.moves.len()), (None, 0));
    assert_eq!(busy.waiting[&id("w2")], WaitingFor::NotAfter { until: at(1000), needs_secs: 120 });
    set(&mut rollout, "w1", DONE, &[]);
    observed.agents.remove(&id("w2"));
    let over = plan(&rollout, &observed, at(999));
    assert_eq!(halted(&over), Some("not after 1970-01-01T00:16:40Z: 1 node left (w2)"));
    // When all are done there is nothing to be late for.
    set(&mut rollout, "w2", DONE, &[]);
    assert_eq!(plan(&rollout, &observed, at(2000)).moves, [Move::Phase(Phase::Ended { aborted: false })]);
}

#[test]
fn the_operator_lifts_it_and_force_overrides_it() {
    let (observed, mut rollout) = swarm(&["m1", "m2", "m3"], ManagerPolicy::Rolling);
    rollout.limit_lifted = true;
    assert_eq!(granted(&plan(&rollout, &observed, at(2000))), ["id-m2"]);
    rollout.limit_lifted = false;
    set(&mut rollout, "m3", Step::Waiting { by_hand: true, forced: true }, &[]);
    assert_eq!(granted(&plan(&rollout, &observed, at(2000))), ["id-m3"]);
    set(&mut rollout, "m3", Step::Waiting { by_hand: true, forced: false }, &[]);
    assert_eq!(granted(&plan(&rollout, &observed, at(2000))), [""; 0]);
}

#[test]
fn held_managers_are_begun_together_or_not_at_all() {
    let (observed, mut rollout) = swarm(&["m1", "m2", "m3", "w1"], ManagerPolicy::HoldDrained);
    assert_eq!(granted(&plan(&rollout, &observed, at(1000 - 3 * 180))), ["id-m2"]);
    let late = plan(&rollout, &observed, at(1000 - 3 * 180 + 1));
    assert_eq!(late.waiting[&id("m2")], WaitingFor::NotAfter { until: at(1000), needs_secs: 540 });
    assert!(halted(&late).is_some(), "a worker alone would have the time, but never its turn: {:?}", late.waiting);
    // Once one is held nothing but the others' end frees it, whatever the time.
    let held = Step::Held { before: Availability::Active, outcome: Outcome::Upgraded { engine_down_ms: 1 } };
    set(&mut rollout, "m2", held.clone(), &[("granted", 0), ("held", 400_000)]);
    assert_eq!(granted(&plan(&rollout, &observed, at(5000))), ["id-m3"]);
    set(&mut rollout, "m3", held.clone(), &[]);
    assert_eq!(granted(&plan(&rollout, &observed, at(5000))), ["id-m1"]);
    set(&mut rollout, "m1", held, &[]);
    let all = plan(&rollout, &observed, at(5000));
    assert_eq!(all.moves.len(), 3, "all are restored: {:?}", all.moves);
    for manager in ["m1", "m2", "m3"] {
        set(&mut rollout, manager, DONE, &[]);
    }
    assert!(halted(&plan(&rollout, &observed, at(5000))).is_some());
}
