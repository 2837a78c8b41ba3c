//! What an operator asks beside the rollout itself: its history, its time limit, its scope, a lost node's slot.

use super::*;
use crate::api::ReleaseArgs;

fn hint(failure: &Failure) -> &str {
    failure.hint.as_deref().unwrap_or_default()
}

#[tokio::test]
async fn history_is_what_the_swarm_keeps() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    assert_eq!(lab.ops.history().await.unwrap().rollouts, []);
    lab.ops.start(lab.args(), 7).await.unwrap();
    let open = lab.ops.history().await.unwrap();
    assert_eq!((open.rollouts.len(), open.rollouts[0].ended_at), (1, None));
    lab.until_phase(ended).await;

    let history = lab.ops.history().await.unwrap();
    let [rollout] = history.rollouts.as_slice() else { panic!("{history:?}") };
    assert_eq!((rollout.started_by_uid, rollout.upgraded, rollout.nodes), (7, 4, 4));
    assert_eq!(rollout.phase, Phase::Ended { aborted: false });
    let took = rollout.ended_at.unwrap().duration_since(rollout.started_at);
    // Two clocks: one tells the time of day, and one counts.
    assert!(u128::from(rollout.elapsed_ms).abs_diff(took.as_millis().unsigned_abs()) < 1000, "{rollout:?}");

    let whole = lab.ops.rollout_history(&rollout.id.as_str()[..12]).await.unwrap();
    assert_eq!(whole.summary, *rollout);
    let order: Vec<_> = whole.steps.iter().map(|node| node.id.as_str()).collect();
    assert_eq!(order, ["m2", "m3", "m1", "w1"]);
    let names: Vec<_> = whole.steps[0].times.iter().map(|(step, _)| step.as_str()).collect();
    assert_eq!(names.first(), Some(&"waiting"));
    assert_eq!(names.last(), Some(&"upgraded"));
    assert!(whole.steps[0].times.last().unwrap().1 <= rollout.elapsed_ms);
}

#[tokio::test]
async fn a_rollout_is_named_by_the_beginning_of_its_id_and_no_other_way() {
    let lab = Lab::start(&["m1", "m2", "m3"], &[]).await;
    let Started::Rollout { id, .. } = lab.ops.start(lab.args(), 0).await.unwrap() else { panic!() };
    lab.until_phase(ended).await;
    // One that another version left, and the same rollout's day.
    let day = &id.as_str()[..8];
    let name = format!("requeen-{day}-other");
    {
        let mut world = lab.fake.world();
        let mut other = world.configs[&format!("requeen-{id}")].clone();
        other["ID"] = name.clone().into();
        other["Spec"]["Name"] = name.clone().into();
        // {"schema":9}
        other["Spec"]["Data"] = "eyJzY2hlbWEiOjl9".into();
        world.configs.insert(name.clone(), other);
    }
    let history = lab.ops.history().await.unwrap();
    assert_eq!(history.rollouts.len(), 1, "what does not read does not hide what does");
    assert_eq!((history.unreadable[0].config.as_str(), history.unreadable[0].ended), (name.as_str(), true));

    for (wanted, words) in
        [(day, "ambiguous"), ("1999", "no rollout `1999`"), (&name["requeen-".len()..], "its schema is 9")]
    {
        let failure = lab.ops.rollout_history(wanted).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused, "{wanted}");
        assert!(failure.error.contains(words) && failure.hint.is_some(), "{wanted}: {failure:?}");
    }
    assert_eq!(lab.ops.rollout_history(id.as_str()).await.unwrap().summary.id, id);
}

#[tokio::test]
async fn nodes_that_run_the_bundle_are_left_out() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1", "w2"]).await;
    let current = ["m3", "w1"];
    for name in current {
        let mut world = lab.fake.world();
        world.nodes.get_mut(name).unwrap()["Description"]["Engine"]["EngineVersion"] = TO.into();
    }
    lab.current.lock().unwrap().extend(current.map(str::to_owned));
    lab.until("the agents say so", |_| {
        let agents = lab.ops.hub.agents();
        let engine = |name: &str| agents.get(&NodeId::from(name)).and_then(|agent| agent.report.engine.clone());
        current.iter().all(|name| engine(name).is_some_and(|engine| !engine.files.is_empty() && engine.version == TO))
    })
    .await;
    let outdated = || UpgradeArgs { only_outdated: true, ..lab.args() };
    let plan = lab.ops.plan(outdated()).await.unwrap();
    assert_eq!(plan.left_out.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["m3", "w1"]);
    assert_eq!(plan.nodes.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["m2", "m1", "w2"]);
    assert!(!plan.nothing_to_do && plan.refusals.is_empty());
    assert_eq!(lab.ops.plan(lab.args()).await.unwrap().nodes.len(), 5, "unless it is asked for all are in scope");

    let some = |only: &[&str]| UpgradeArgs { only: only.iter().map(|name| (*name).to_owned()).collect(), ..outdated() };
    assert!(lab.ops.plan(some(&["m3", "w1"])).await.unwrap().nothing_to_do);
    assert_eq!(lab.ops.start(some(&["m3", "w1"]), 0).await.unwrap(), Started::NothingToDo);
    lab.ops.start(UpgradeArgs { exclude: vec!["m2".to_owned()], ..some(&["m2", "w1", "w2"]) }, 0).await.unwrap();
    let status = lab.until_phase(ended).await;
    let scope: Vec<_> = status.nodes.iter().filter(|node| node.step.is_some()).map(|node| node.id.as_str()).collect();
    assert_eq!(scope, ["w2"]);
}

#[tokio::test]
async fn a_time_limit_is_refused_where_it_lets_nothing_begin() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    for (secs, words) in [(0, "in the past"), (100, "no node could be done in time")] {
        let not_after = later().checked_add(Duration::from_secs(secs)).ok();
        let failure = lab.ops.start(UpgradeArgs { not_after, ..lab.args() }, 0).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.error.contains(words) && failure.hint.is_some(), "{failure:?}");
    }
    let not_after = later().checked_add(Duration::from_secs(100)).ok();
    let plan = lab.ops.plan(UpgradeArgs { not_after, ..lab.args() }).await.unwrap();
    assert!(plan.refusals[0].what.contains("4 nodes left"), "{:?}", plan.refusals);
    assert!(lab.fake.world().configs.is_empty());
}

#[tokio::test]
async fn a_time_limit_halts_and_the_operator_lifts_it() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    let not_after = later().checked_add(Duration::from_secs(1000)).unwrap();
    lab.ops.start(UpgradeArgs { manual: true, not_after: Some(not_after), ..lab.args() }, 0).await.unwrap();
    let limit = |status: &StatusView| status.rollout.as_ref().and_then(|rollout| rollout.limit.clone()).unwrap();
    // A pause while there is time is no reason to lift it.
    lab.ops.pause().await.unwrap();
    let status = lab.ops.resume().await.unwrap();
    assert_eq!((limit(&status).not_after, limit(&status).lifted), (not_after, false));

    AHEAD.set(900);
    let status = lab.until_phase(|phase| matches!(phase, Phase::Halted { .. })).await;
    let Phase::Halted { reason } = status.rollout.unwrap().phase else { panic!() };
    assert!(reason.starts_with("not after ") && reason.contains("4 nodes left"), "{reason}");
    let status = lab.ops.resume().await.unwrap();
    assert!(limit(&status).lifted);
    let grant = |force| lab.ops.grant(GrantArgs { node: "m2".to_owned(), force });
    // The agents were silent for a moment when the clock was set.
    lab.until("the agents are heard", |_| lab.ops.hub.agents().values().all(|agent| agent.silent_secs == 0)).await;
    grant(false).await.unwrap();
    let status = lab
        .until("m2 is done", |status| {
            status.nodes.iter().any(|node| node.id == "m2" && matches!(node.step, Some(Step::Done { .. })))
        })
        .await;
    assert_eq!(status.rollout.unwrap().phase, Phase::Running);
}

#[tokio::test]
async fn a_lost_nodes_slot_is_freed_by_the_operator_alone() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1", "w2"]).await;
    let release = |node: &str, at: Option<&str>| {
        lab.ops.release(ReleaseArgs { node: node.to_owned(), at: at.map(str::to_owned) }, 5)
    };
    let failure = release("w1", None).await.unwrap_err();
    assert_eq!((failure.kind, failure.error.as_str()), (FailureKind::Refused, "no rollout is open"));

    lab.lost.lock().unwrap().push("w1".to_owned());
    lab.ops.start(lab.args(), 0).await.unwrap();
    let step = |status: &StatusView, name: &str| {
        status.nodes.iter().find(|node| node.id == name).and_then(|node| node.step.clone()).unwrap()
    };
    let said = || lab.ops.hub.agents()[&NodeId::from("w1")].report.state.clone();
    lab.until("w1 is swapping", |_| matches!(said(), NodeState::Swapping { .. })).await;
    for (node, words, remedy) in [
        ("w1", "is not silent", "requeen abort"),
        ("m2", "holds no slot: it is upgraded", "requeen status"),
        ("w2", "holds no slot: it is waiting", "requeen status"),
        ("w9", "not in the scope", "requeen status"),
    ] {
        let failure = release(node, None).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused, "{node}");
        assert!(failure.error.contains(words) && hint(&failure).contains(remedy), "{node}: {failure:?}");
    }
    assert!(release("w1", Some("swapping")).await.is_err(), "the word alone is not enough");

    AHEAD.set(40);
    let view = release("host-w1", None).await.unwrap();
    assert_eq!((view.step.as_str(), view.said.as_deref(), view.released), ("swapping", Some("engine stopping"), false));
    assert!(view.silent_secs.unwrap() >= 40 && view.meaning[0].contains("anywhere"), "{view:?}");
    assert!(matches!(step(&lab.ops.status().await.unwrap(), "w1"), Step::Working { .. }), "looking changes nothing");
    let failure = release("w1", Some("draining")).await.unwrap_err();
    assert!(failure.error.contains("was draining") && failure.error.contains("is swapping now"), "{failure:?}");

    let view = release("w1", Some("swapping")).await.unwrap();
    assert!(view.released && view.hint.contains("--availability active host-w1"), "{view:?}");
    let status = lab.until_phase(ended).await;
    assert!(matches!(step(&status, "w2"), Step::Done { outcome: Outcome::Upgraded { .. } }));
    let Step::Done { outcome: Outcome::Failed { reason, .. } } = step(&status, "w1") else { panic!("{status:?}") };
    assert_eq!(reason, "released by the operator (uid 5) while swapping");
    assert_eq!(lab.fake.availability("w1"), "drain", "it is the operator's to change");
    let history = lab.ops.history().await.unwrap();
    assert_eq!((history.rollouts[0].upgraded, history.rollouts[0].nodes), (4, 5));
}

#[tokio::test]
async fn who_does_not_drive_can_not_say_who_is_silent() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.lost.lock().unwrap().push("m2".to_owned());
    lab.ops.start(lab.args(), 0).await.unwrap();
    let said = || lab.ops.hub.agents().get(&NodeId::from("m2")).map(|agent| agent.report.state.clone());
    lab.until("m2 is swapping", |_| matches!(said(), Some(NodeState::Swapping { .. }))).await;
    lab.shutdown.cancel();
    let docker = lab.ops.engine.client().await.unwrap();
    let to_m3 = |rollout: &mut Rollout| -> Result<(), record::RecordError> {
        assert!(is_open(rollout));
        rollout.owner.node = NodeId::from("m3");
        Ok(())
    };
    record::update(&docker, to_m3).await.unwrap();
    AHEAD.set(40);
    let failure = lab.ops.release(ReleaseArgs { node: "m2".to_owned(), at: None }, 0).await.unwrap_err();
    assert!(failure.error.contains("driven from host-m3") && hint(&failure).contains("on host-m3"), "{failure:?}");
}

#[test]
fn a_lease_that_is_held_can_be_forced_until_its_permit() {
    use crate::plan::model::{Availability, LeaseRecord, ManagerPolicy, Role, Work};
    use crate::plan::simulation::{node, policy, rollout};
    let nodes = [node("m1", Role::Manager), node("w1", Role::Worker)];
    let observed = Observed {
        me: nodes[0].id.clone(),
        has_leader: true,
        autolocked: false,
        nodes: nodes.iter().map(|view| (view.id.clone(), view.clone())).collect(),
        tasks: Vec::new(),
        global_services: Vec::new(),
        agents: BTreeMap::new(),
    };
    let id = &nodes[1].id;
    let grant = |work: Work, forced: bool, force: bool| {
        let mut rollout = rollout(&nodes, policy(ManagerPolicy::Rolling, 1));
        let lease = LeaseRecord { id: "l".into(), epoch: 1, forced };
        rollout.nodes.get_mut(id).unwrap().step = Step::Working { lease, before: Availability::Active, work };
        let args = GrantArgs { node: "w1".to_owned(), force };
        super::super::granted_by_hand(&rollout, id, &args, &observed, Timestamp::UNIX_EPOCH)
            .map_err(|closed| closed.why)
            .map(|rollout| rollout.nodes[id].step.clone())
    };
    let step = grant(Work::Linking, false, true).unwrap();
    assert!(
        matches!(step, Step::Working { lease: LeaseRecord { forced: true, .. }, work: Work::Linking, .. }),
        "{step:?}"
    );
    let failure = grant(Work::Linking, false, false).unwrap_err();
    assert!(failure.error.starts_with("node w1 has a lease already, and is linking"), "{}", failure.error);
    assert!(hint(&failure).contains("--force"), "{failure:?}");
    for (work, forced) in [(Work::Settling, false), (Work::Linking, true)] {
        let failure = grant(work, forced, true).unwrap_err();
        assert!(failure.error.contains("does not wait for a lease"), "{}", failure.error);
    }
}
