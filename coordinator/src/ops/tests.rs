//! Whole rollouts against a fake engine and scripted agents.

use std::collections::BTreeMap;

use requeen_protocol::{
    BundleRef, Cleaning, EngineFacts, EngineFile, FileFact, LeaseId, Left, NodeState, Order, Preflight, Problem,
    Report, RolloutId, Speaker, SwapPhase,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::api::{Compared, FailureKind, PolicyChoice, RollbackArgs, Started, UndeployArgs, UpgradeArgs, Verdict};
use crate::drive;
use crate::observe::fake::Fake;
use crate::plan::model::Outcome;

mod clocks;
mod console;

const TO: &str = "26.1.5";

struct Lab {
    fake: Fake,
    ops: Arc<Ops>,
    shutdown: CancellationToken,
    /// Nodes whose new engine fails.
    broken: Arc<Mutex<Vec<String>>>,
    /// Nodes that have the target's files.
    current: Arc<Mutex<Vec<String>>>,
    driver: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// Hubs of other coordinators that agents talk to.
    others: Mutex<Vec<Arc<Hub>>>,
    /// Whether nobody reaches the first coordinator any more.
    cut: std::sync::atomic::AtomicBool,
    /// Nodes that are not heard any more from their stop on.
    lost: Arc<Mutex<Vec<String>>>,
    /// Nodes on which somebody changed the engine's file by hand.
    tampered: Arc<Mutex<Vec<String>>>,
    /// Nodes that can't be cleaned.
    busy: Arc<Mutex<Vec<String>>>,
    /// Nodes whose agent is gone.
    mute: Arc<Mutex<Vec<String>>>,
}

thread_local! {
    /// How far the test's clocks are ahead, seconds. Each test has its own thread.
    static AHEAD: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    /// By how much somebody has set the time of day beside that, seconds.
    static SET_BY: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
}

fn later() -> Timestamp {
    let set_by = jiff::SignedDuration::from_secs(SET_BY.get());
    Timestamp::now().checked_add(ahead()).unwrap().checked_add(set_by).unwrap()
}

fn ahead() -> Duration {
    Duration::from_secs(AHEAD.get())
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn digest() -> Digest {
    Digest::from_hex(&"a".repeat(64)).unwrap()
}

impl Lab {
    async fn start(managers: &[&str], workers: &[&str]) -> Arc<Self> {
        let fake = Fake::start(managers, workers);
        let hub = Hub::new(Arc::new(|| std::time::Instant::now() + ahead()));
        let world = World { now: later, ..World::real() };
        let ops = Ops::in_world(Arc::new(hub), Arc::new(fake.engine()), fake.dir.path().to_owned(), world);
        let ops = Arc::new(ops);
        let bundle = BundleRef {
            digest: digest(),
            size: 1,
            version: TO.to_owned(),
            arch: "x86_64".to_owned(),
            files: [(EngineFile::Dockerd, digest())].into(),
            unpacked: 1,
        };
        ops.bundles().insert(digest(), bundle);
        let lab = Arc::new(Self {
            fake,
            ops,
            shutdown: CancellationToken::new(),
            broken: Arc::default(),
            current: Arc::default(),
            driver: Mutex::default(),
            others: Mutex::default(),
            cut: std::sync::atomic::AtomicBool::new(false),
            lost: Arc::default(),
            tampered: Arc::default(),
            busy: Arc::default(),
            mute: Arc::default(),
        });
        lab.drive();
        tokio::spawn(agents(Arc::downgrade(&lab), lab.shutdown.clone()));
        lab
    }

    /// Starts a driver, as a restarted server does.
    fn drive(&self) {
        let driver = tokio::spawn(drive::run(Arc::clone(&self.ops), self.shutdown.clone()));
        self.driver.lock().unwrap().replace(driver);
    }

    /// Ends the first coordinator's driver where it stands.
    fn shutdown_first(&self) {
        if let Some(driver) = self.driver.lock().unwrap().take() {
            driver.abort();
        }
    }

    fn args(&self) -> UpgradeArgs {
        UpgradeArgs {
            bundle: digest(),
            policy: PolicyChoice::Rolling,
            workers_at_once: 1,
            only: Vec::new(),
            exclude: Vec::new(),
            manual: false,
            accept_control_plane_outage: false,
            allow_downgrade: false,
            start_timeout_secs: 60,
            stage_timeout_secs: 10,
            only_outdated: false,
            not_after: None,
            keep_raft_copy: false,
        }
    }

    /// A coordinator on another manager, which takes over after `patience`.
    fn second(&self, me: &str, patience: Duration) -> Arc<Ops> {
        let hub = Arc::new(Hub::default());
        let mut ops = Ops::new(Arc::clone(&hub), Arc::new(self.fake.engine_of(me)), self.fake.dir.path().join(me));
        ops.take_over_after = patience;
        let ops = Arc::new(ops);
        self.others.lock().unwrap().push(hub);
        tokio::spawn(drive::run(Arc::clone(&ops), self.shutdown.clone()));
        ops
    }

    fn is(&self, list: &Mutex<Vec<String>>, name: &str) -> bool {
        list.lock().unwrap().iter().any(|other| other == name)
    }

    /// Upgrades the whole swarm.
    async fn upgraded(&self) {
        self.ops.start(self.args(), 0).await.unwrap();
        self.until_phase(ended).await;
    }

    /// The service of agents, as `deploy` makes it.
    fn deployed(&self) {
        let spec = serde_json::json!({"Name": "requeen-agent", "Mode": {"Global": {}}});
        let service = serde_json::json!({"ID": "s1", "Version": {"Index": 1}, "Spec": spec});
        self.fake.world().services.insert("s1".to_owned(), service);
    }

    /// How many services and configs there are.
    fn in_the_swarm(&self) -> (usize, usize) {
        let world = self.fake.world();
        (world.services.len(), world.configs.len())
    }

    async fn until(&self, what: &str, reached: impl Fn(&StatusView) -> bool) -> StatusView {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let status = self.ops.status().await.unwrap();
            if reached(&status) {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: {status:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_phase(&self, phase: fn(&Phase) -> bool) -> StatusView {
        self.until("phase", |status| status.rollout.as_ref().is_some_and(|rollout| phase(&rollout.phase))).await
    }
}

/// Every node's agent: does what it is ordered, at once.
async fn agents(lab: std::sync::Weak<Lab>, shutdown: CancellationToken) {
    while let Some(lab) = lab.upgrade() {
        let hub = &lab.ops.hub;
        let known: Vec<String> = lab.fake.world().nodes.keys().cloned().collect();
        for name in known.into_iter().filter(|name| !lab.is(&lab.mute, name)) {
            let node = NodeId(name.clone());
            let said = hub.agents().get(&node).map(|agent| agent.report.clone());
            let is = |list: &Mutex<Vec<String>>| list.lock().unwrap().contains(&name);
            let swapping = |report: &Report| matches!(report.state, NodeState::Swapping { .. });
            if is(&lab.lost) && said.as_ref().is_some_and(swapping) {
                continue;
            }
            let version = lab.fake.world().nodes[&name]["Description"]["Engine"]["EngineVersion"].clone();
            let mut report = said.unwrap_or_else(|| Report {
                node,
                agent_version: "1".to_owned(),
                speaker: Speaker::Task,
                boot_id: "b".to_owned(),
                engine: None,
                installed: None,
                state: NodeState::Idle,
                seen: None,
                memo: None,
                unreached: Vec::new(),
                troubles: Vec::new(),
            });
            let version = version.as_str().unwrap().to_owned();
            let installed = (version == TO || is(&lab.current)) && !is(&lab.tampered);
            let found = if installed { digest() } else { Digest::from_hex(&"b".repeat(64)).unwrap() };
            let dockerd = FileFact { path: "/usr/sbin/dockerd".to_owned(), digest: found };
            report.engine = Some(EngineFacts {
                version,
                api_version: "1.41".to_owned(),
                started_us: 1,
                files: BTreeMap::from([(EngineFile::Dockerd, dockerd)]),
            });
            // Everybody hears everything; orders come from the one that drives.
            let mut hubs = lab.others.lock().unwrap().clone();
            if !lab.cut.load(Ordering::Acquire) {
                hubs.insert(0, Arc::clone(hub));
            }
            for hub in &hubs {
                let order = hub.order_for(&report);
                if let Order::Hold { memo, .. } = &order {
                    report.memo = Some(memo.clone());
                }
                if matches!(order, Order::Forget { .. }) {
                    report.memo = None;
                }
                report.state = obey(&lab, &name, order.clone(), report.state.clone());
                report.seen = Some(Box::new(order));
            }
            hub.report(report.clone());
            hubs.iter().for_each(|hub| hub.report(report.clone()));
        }
        drop(lab);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
}

fn obey(lab: &Lab, name: &str, order: Order, state: NodeState) -> NodeState {
    let current = lab.current.lock().unwrap().iter().any(|other| other == name);
    let leased = |lease: &requeen_protocol::Lease| NodeState::Leased {
        rollout: lease.rollout.clone(),
        lease: lease.id.clone(),
        task_containers: 0,
    };
    match order {
        Order::Wait { .. } | Order::Standby { .. } => state,
        Order::Stage { rollout, .. } => NodeState::Staged {
            rollout,
            preflight: Preflight {
                from: "20.10.24".to_owned(),
                to: TO.to_owned(),
                set: digest(),
                changes: if current { Vec::new() } else { vec![EngineFile::Dockerd] },
                standalone: Vec::new(),
                containers: Vec::new(),
                containers_more: 0,
                raft_copy_bytes: None,
                notes: Vec::new(),
            },
        },
        Order::Hold { lease, .. } => leased(&lease),
        Order::Link { lease } => {
            assert_eq!(lab.fake.availability(name), "drain", "linked before it was drained");
            NodeState::Linked { rollout: lease.rollout, lease: lease.id, task_containers: 0 }
        }
        Order::Stop { permit } if lab.lost.lock().unwrap().iter().any(|other| other == name) => NodeState::Swapping {
            rollout: permit.lease.rollout,
            lease: permit.lease.id,
            phase: SwapPhase::Stopping,
            waiting: None,
        },
        Order::Stop { permit } => restart(lab, name, permit.lease.rollout, permit.lease.id),
        Order::Settle { lease } => {
            NodeState::Upgraded { rollout: lease.rollout, lease: lease.id, engine_down_ms: 1190, set: digest() }
        }
        Order::SwitchBack { .. } => state,
        Order::Withdraw { .. } | Order::Forget { .. } => NodeState::Idle,
        Order::Clean { backups } => NodeState::Cleaned { backups, cleaning: cleaned(lab, name, backups) },
    }
}

fn cleaned(lab: &Lab, name: &str, backups: bool) -> Cleaning {
    if lab.is(&lab.busy, name) {
        let problem = Problem { what: "unfinished work".to_owned(), hint: "finish it".to_owned() };
        return Cleaning::Refused { problem };
    }
    let backup = Left::Backup { path: "/var/lib/requeen/engines/a".to_owned() };
    Cleaning::Done { left: if backups { vec![] } else { vec![backup] }, more: 0 }
}

fn restart(lab: &Lab, name: &str, rollout: RolloutId, lease: LeaseId) -> NodeState {
    assert_eq!(lab.fake.availability(name), "drain", "stopped while not drained");
    if lab.broken.lock().unwrap().iter().any(|other| other == name) {
        let (reason, log) = ("it exits at once".to_owned(), vec!["fatal".to_owned()]);
        return NodeState::RolledBack { rollout, lease, reason, engine_down_ms: 9000, log };
    }
    let mut world = lab.fake.world();
    world.index += 1;
    let index = world.index;
    let node = world.nodes.get_mut(name).unwrap();
    node["Description"]["Engine"]["EngineVersion"] = TO.into();
    node["Version"]["Index"] = index.into();
    NodeState::Running { rollout, lease, engine_down_ms: 1190 }
}

fn ended(phase: &Phase) -> bool {
    matches!(phase, Phase::Ended { .. })
}

#[tokio::test]
async fn a_swarm_is_upgraded_and_left_as_it_was() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1", "w2"]).await;
    lab.fake.world().nodes.get_mut("w2").unwrap()["Spec"]["Availability"] = "pause".into();
    let specs: Vec<_> = lab.fake.world().nodes.values().map(|node| node["Spec"].clone()).collect();

    let plan = lab.ops.plan(lab.args()).await.unwrap();
    assert_eq!(plan.refusals, []);
    let order: Vec<_> = plan.nodes.iter().map(|node| node.id.as_str()).collect();
    assert_eq!(order, ["m2", "m3", "m1", "w1", "w2"]);
    assert!(plan.nodes.iter().all(|node| node.staged && node.from == "20.10.24" && node.to == TO));
    assert_eq!(lab.ops.hub.staging(), None);
    assert!(lab.fake.world().configs.is_empty());

    let Started::Rollout { id, .. } = lab.ops.start(lab.args(), 1000).await.unwrap() else { panic!("nothing to do?") };
    let status = lab.until_phase(ended).await;
    assert_eq!(status.rollout.unwrap().id, id);
    for node in &status.nodes {
        let upgraded = Step::Done { outcome: Outcome::Upgraded { engine_down_ms: 1190 } };
        assert_eq!((node.step.as_ref(), node.engine.as_str()), (Some(&upgraded), TO));
        let steps: Vec<_> = node.times.iter().map(|(step, _)| step.as_str()).collect();
        assert_eq!(steps[..2], ["waiting", "granted"]);
        assert_eq!(steps.last(), Some(&"upgraded"));
        assert!(node.times.is_sorted_by_key(|(_, ms)| *ms));
    }
    let after: Vec<_> = lab.fake.world().nodes.values().map(|node| node["Spec"].clone()).collect();
    assert_eq!(after, specs, "availability, labels, names and roles are what they were");
    let drained: Vec<_> = lab.fake.world().availabilities.iter().filter(|(_, to)| to == "drain").cloned().collect();
    assert_eq!(drained.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>(), ["m2", "m3", "m1", "w1", "w2"]);
}

#[tokio::test]
async fn nodes_that_have_the_files_are_not_touched() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.current.lock().unwrap().extend(["m1", "m2", "m3", "w1"].map(str::to_owned));
    assert!(lab.ops.plan(lab.args()).await.unwrap().nothing_to_do);
    assert_eq!(lab.ops.start(lab.args(), 0).await.unwrap(), Started::NothingToDo);
    assert!(lab.fake.world().configs.is_empty());

    lab.current.lock().unwrap().pop();
    lab.ops.start(lab.args(), 0).await.unwrap();
    lab.until_phase(ended).await;
    assert_eq!(
        lab.fake.world().availabilities,
        [("w1".to_owned(), "drain".to_owned()), ("w1".to_owned(), "active".to_owned())]
    );
}

#[tokio::test]
async fn a_failure_halts_and_an_abort_ends() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.broken.lock().unwrap().push("m3".to_owned());
    lab.ops.start(lab.args(), 0).await.unwrap();
    let status = lab.until_phase(|phase| matches!(phase, Phase::Halted { .. })).await;
    let step = |name: &str| status.nodes.iter().find(|node| node.id == name).unwrap().step.clone().unwrap();
    assert!(matches!(step("w1"), Step::Waiting { .. }));

    let failure = lab.ops.start(lab.args(), 0).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.error.contains("halted: host-m3"), "{}", failure.error);
    let failure = lab.ops.pause().await.unwrap_err();
    assert!(failure.error.contains("halted"), "{}", failure.error);

    lab.ops.abort().await.unwrap();
    let status = lab.until_phase(ended).await;
    let step = |name: &str| status.nodes.iter().find(|node| node.id == name).unwrap().step.clone().unwrap();
    assert_eq!(step("w1"), Step::Done { outcome: Outcome::Untouched });
    assert_eq!(lab.fake.availability("m3"), "active");
    assert_eq!(lab.ops.abort().await.unwrap_err().error, "no rollout is open");

    // What was upgraded can be taken back, and nothing else is in scope.
    let args = RollbackArgs {
        nodes: Vec::new(),
        policy: PolicyChoice::Rolling,
        workers_at_once: 1,
        accept_control_plane_outage: false,
        start_timeout_secs: 60,
        stage_timeout_secs: 10,
    };
    lab.ops.rollback(args, 0).await.unwrap();
    let status = lab.until_phase(ended).await;
    let scope: Vec<_> = status.nodes.iter().filter(|node| node.step.is_some()).map(|node| node.id.as_str()).collect();
    assert_eq!(scope, ["m2"]);
}

#[tokio::test]
async fn leases_are_granted_by_hand() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.ops.start(UpgradeArgs { manual: true, ..lab.args() }, 0).await.unwrap();
    let grant = |node: &str| lab.ops.grant(GrantArgs { node: node.to_owned(), force: false });
    let failure = grant("w1").await.unwrap_err();
    assert!(failure.error.contains("managers go first"), "{}", failure.error);
    assert!(lab.fake.world().availabilities.is_empty());

    grant("host-m2").await.unwrap();
    lab.until("m2 is done", |status| {
        status.nodes.iter().any(|node| node.id == "m2" && matches!(node.step, Some(Step::Done { .. })))
    })
    .await;
    let failure = grant("m2").await.unwrap_err();
    assert!(failure.error.contains("upgraded"), "{}", failure.error);
    assert!(lab.fake.world().availabilities.iter().all(|(node, _)| node == "m2"));

    lab.ops.pause().await.unwrap();
    assert!(grant("m3").await.unwrap_err().error.contains("paused"));
    assert!(grant("m9").await.unwrap_err().error.contains("m9"));
    lab.ops.resume().await.unwrap();
    grant("m3").await.unwrap();
}

/// A worker joins the fake swarm under this name.
fn join(lab: &Lab, name: &str) {
    let mut world = lab.fake.world();
    let mut node = world.nodes["w1"].clone();
    (node["ID"], node["Description"]["Hostname"]) = (name.into(), format!("host-{name}").into());
    node["Description"]["Engine"]["EngineVersion"] = "20.10.24".into();
    world.nodes.insert(name.to_owned(), node);
}

#[tokio::test]
async fn a_node_that_joins_is_upgraded_too_and_one_that_left_is_not_waited_for() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1", "w2"]).await;
    lab.ops.start(UpgradeArgs { exclude: vec!["w2".to_owned()], ..lab.args() }, 0).await.unwrap();
    lab.until("the first drain", |_| !lab.fake.world().availabilities.is_empty()).await;
    join(&lab, "w3");
    lab.fake.world().nodes.remove("w1");
    let status = lab.until_phase(ended).await;
    let shown = |id: &str| status.nodes.iter().find(|node| node.id == id);
    let joined = shown("w3").unwrap();
    let upgraded = Step::Done { outcome: Outcome::Upgraded { engine_down_ms: 1190 } };
    assert_eq!((joined.step.as_ref(), joined.engine.as_str()), (Some(&upgraded), TO));
    assert!(joined.times[0].0 == "waiting" && joined.times[0].1 > 0, "{:?}", joined.times);
    assert!(shown("w1").is_none());
    assert_eq!(shown("w2").unwrap().step, None, "it was left out");
}

#[tokio::test]
async fn who_was_not_named_stays_outside() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.ops.start(UpgradeArgs { only: vec!["m1".to_owned()], manual: true, ..lab.args() }, 0).await.unwrap();
    join(&lab, "w3");
    let status =
        lab.until("w3 is seen", |status| status.nodes.iter().any(|node| node.id == "w3" && node.why.is_some())).await;
    for node in status.nodes.iter().filter(|node| node.id != "m1") {
        assert_eq!((&node.step, node.why.as_deref()), (&None, Some("not in the rollout's scope")), "{}", node.id);
    }
}

#[tokio::test]
async fn a_plan_that_nobody_waits_for_ends_its_staging() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    let hub = &lab.ops.hub;
    for start in [false, true] {
        let mut changed = hub.changed();
        {
            let asked = async {
                if start {
                    lab.ops.start(lab.args(), 0).await.map(drop)
                } else {
                    lab.ops.plan(lab.args()).await.map(drop)
                }
            };
            tokio::pin!(asked);
            // Dropped as when the operator's command ends: its connection goes, and the request with it.
            while hub.staging().is_none() {
                tokio::select! {
                    biased;
                    gone = changed.changed() => gone.unwrap(),
                    done = &mut asked => panic!("it did not wait for the agents: {done:?}"),
                }
            }
        }
        assert_eq!(hub.staging(), None);
        assert!(lab.fake.world().configs.is_empty(), "a rollout was recorded");
    }
    assert_eq!(lab.ops.plan(lab.args()).await.unwrap().refusals, [], "the next one is not kept out");
}

#[tokio::test]
async fn an_election_stops_nothing_for_good() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.ops.start(lab.args(), 0).await.unwrap();
    lab.until("the first drain", |_| !lab.fake.world().availabilities.is_empty()).await;
    lab.fake.world().leaderless = true;
    let status = lab.until("no leader", |status| !status.has_leader).await;
    assert_eq!(status.nodes.len(), 4, "what was seen last is still shown");
    let failure = lab.ops.plan(lab.args()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.error.contains("no leader"), "{}", failure.error);
    {
        let mut world = lab.fake.world();
        world.leaderless = false;
        world.rivals = 3;
        world.failing = vec![(500, "rpc error: code = Unknown desc = raft: no elected cluster leader".to_owned()); 3];
    }
    lab.until_phase(ended).await;
    assert_eq!(lab.fake.availability("w1"), "active");
}

#[tokio::test]
async fn a_restarted_server_goes_on() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.ops.start(lab.args(), 0).await.unwrap();
    lab.until("the first drain", |_| !lab.fake.world().availabilities.is_empty()).await;
    // A server that starts again knows nothing; agents must not be told that no rollout is open.
    let hub = Arc::new(Hub::default());
    let again = Ops::new(Arc::clone(&hub), Arc::new(lab.fake.engine()), lab.fake.dir.path().to_owned());
    again.observe().await.unwrap();
    let report = lab.ops.hub.agents()[&NodeId::from("m2")].report.clone();
    assert!(matches!(hub.order_for(&report), Order::Wait { .. }), "{:?}", hub.order_for(&report));
    let shutdown = CancellationToken::new();
    let driver = tokio::spawn(drive::run(Arc::new(again), shutdown.clone()));
    let mut changed = hub.changed();
    while hub.rollout().is_none() {
        changed.changed().await.unwrap();
    }
    assert!(hub.has_leader());
    shutdown.cancel();
    driver.await.unwrap();
    lab.until_phase(ended).await;
}

#[tokio::test]
async fn agents_that_are_missing_are_named() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.fake.world().nodes.get_mut("w1").unwrap()["Status"]["State"] = "down".into();
    let plan = lab.ops.plan(lab.args()).await.unwrap();
    assert_eq!(plan.refusals.iter().map(|refusal| refusal.node.as_deref()).collect::<Vec<_>>(), [Some("host-w1")]);
    let failure = lab.ops.start(lab.args(), 0).await.unwrap_err();
    assert_eq!((failure.kind, failure.hint.is_some()), (FailureKind::Refused, true));
    assert!(failure.error.contains("host-w1"), "{}", failure.error);
    let without = UpgradeArgs { exclude: vec!["w1".to_owned()], ..lab.args() };
    assert!(matches!(lab.ops.start(without, 0).await.unwrap(), Started::Rollout { .. }));
}

fn epoch(lab: &Lab) -> u64 {
    let world = lab.fake.world();
    let config = world.configs.values().next().expect("a record");
    let owner = config["Spec"]["Labels"]["io.requeen.owner"].as_str().unwrap();
    serde_json::from_str::<serde_json::Value>(owner).unwrap()["epoch"].as_u64().unwrap()
}

#[tokio::test]
async fn a_silent_owner_is_replaced() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    let second = lab.second("m2", Duration::from_millis(1500));
    lab.ops.start(lab.args(), 0).await.unwrap();
    lab.until("the first drain", |_| !lab.fake.world().availabilities.is_empty()).await;
    let before = epoch(&lab);
    // The first one is dead: it drives no more, and agents don't reach it.
    lab.cut.store(true, Ordering::Release);
    lab.shutdown_first();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let rollout = second.status().await.unwrap().rollout;
        if let Some(rollout) = rollout.as_ref().filter(|rollout| ended(&rollout.phase)) {
            assert_eq!(rollout.owner, "host-m2");
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{rollout:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(epoch(&lab), before + 1);
    assert_eq!(lab.fake.availability("w1"), "active");
}

#[tokio::test]
async fn a_live_owner_is_left_alone_until_somebody_says_so() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    let second = lab.second("m2", Duration::from_secs(3600));
    let failure = second.take_over().await.unwrap_err();
    assert!(failure.error.contains("no rollout is open"), "{}", failure.error);
    lab.ops.start(UpgradeArgs { manual: true, ..lab.args() }, 0).await.unwrap();
    let before = epoch(&lab);
    let report = lab.ops.hub.agents()[&NodeId::from("w1")].report.clone();
    let standby = || matches!(second.hub.order_for(&report), Order::Standby { .. });
    lab.until("the second one stands by", |_| standby()).await;
    let status = second.status().await.unwrap();
    assert_eq!(status.rollout.unwrap().owner, "host-m1", "a standby names the owner");

    let status = second.take_over().await.unwrap();
    assert_eq!(status.rollout.unwrap().owner, "host-m2");
    assert_eq!(epoch(&lab), before + 1);
    lab.until("the first one stands by", |_| matches!(lab.ops.hub.order_for(&report), Order::Standby { .. })).await;
    let failure = second.take_over().await.unwrap_err();
    assert!(failure.error.contains("already"), "{}", failure.error);
    // Any of them takes the operator's word.
    lab.ops.abort().await.unwrap();
    lab.until_phase(ended).await;
}

#[tokio::test]
async fn a_removed_record_halts_and_is_made_again() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.ops.start(lab.args(), 0).await.unwrap();
    lab.until("the first drain", |_| !lab.fake.world().availabilities.is_empty()).await;
    lab.fake.world().configs.clear();
    let status = lab.until_phase(|phase| matches!(phase, Phase::Halted { .. })).await;
    let Phase::Halted { reason } = status.rollout.unwrap().phase else { panic!("halted") };
    assert!(reason.contains("requeen resume"), "{reason}");
    let failure = lab.ops.start(lab.args(), 0).await.unwrap_err();
    assert!(failure.error.contains("removed"), "{}", failure.error);
    lab.ops.resume().await.unwrap();
    lab.until_phase(ended).await;
    assert!(lab.fake.world().nodes.values().all(|node| node["Spec"]["Availability"] == "active"));
}

#[tokio::test]
async fn a_coordinator_that_knows_nothing_makes_the_record_again() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.ops.start(lab.args(), 0).await.unwrap();
    lab.until("the first drain", |_| !lab.fake.world().availabilities.is_empty()).await;
    lab.cut.store(true, Ordering::Release);
    lab.shutdown_first();
    lab.fake.world().configs.clear();
    let second = lab.second("m2", Duration::from_secs(3600));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while second.status().await.unwrap().without_record.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "nobody noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    second.resume().await.unwrap();
    while !second.status().await.unwrap().rollout.is_some_and(|rollout| ended(&rollout.phase)) {
        assert!(tokio::time::Instant::now() < deadline, "{:#?}", second.status().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(lab.fake.world().nodes.values().all(|node| node["Spec"]["Availability"] == "active"));
    let all = lab.fake.world().nodes.values().all(|node| node["Description"]["Engine"]["EngineVersion"] == TO);
    assert!(all, "every node was upgraded");
}

#[tokio::test]
async fn a_closed_port_is_named_with_both_ends() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    let mut observed = lab.ops.observe().await.unwrap();
    lab.until("every agent", |status| status.nodes.iter().all(|node| node.agent.is_some())).await;
    observed.agents = lab.ops.hub.agents();
    let miss = |manager: &str| requeen_protocol::Unreached {
        manager: manager.into(),
        at: "10.0.0.2:9047".to_owned(),
        why: "timed out".to_owned(),
    };
    let scope = observed.nodes.keys().cloned().collect();
    for agent in observed.agents.values_mut() {
        agent.report.unreached = vec![miss("m3")];
    }
    assert_eq!(refuse::closed_ports(&observed, &scope), [], "nobody reaches m3: none runs there");
    observed.agents.get_mut(&NodeId::from("m2")).unwrap().report.unreached.clear();
    observed.agents.get_mut(&NodeId::from("m3")).unwrap().report.unreached = vec![miss("m1")];
    let found = refuse::closed_ports(&observed, &scope);
    let words: Vec<_> = found.iter().map(|refusal| refusal.what.as_str()).collect();
    assert_eq!(words.len(), 3, "m1 and w1 don't reach m3, m3 does not reach m1: {words:?}");
    assert!(words.iter().any(|what| what.contains("host-m3") && what.contains("host-m1")), "{words:?}");
    assert!(found[0].hint.contains("TCP"));
}

#[tokio::test]
async fn files_that_were_changed_are_found() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1", "w2"]).await;
    let failure = lab.ops.verify().await.unwrap_err();
    assert_eq!(
        (failure.kind, failure.error.as_str()),
        (FailureKind::Refused, "nothing has been installed by requeen yet")
    );

    let args = UpgradeArgs { exclude: vec!["w2".to_owned()], manual: true, ..lab.args() };
    let Started::Rollout { id, .. } = lab.ops.start(args, 0).await.unwrap() else { panic!("nothing to do?") };
    let failure = lab.ops.verify().await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{}", failure.error);
    assert!(failure.error.contains("is open"), "{}", failure.error);
    for node in ["m2", "m3", "m1", "w1"] {
        lab.ops.grant(GrantArgs { node: node.to_owned(), force: false }).await.unwrap();
        let done = |status: &StatusView| {
            status.nodes.iter().any(|other| other.id == node && matches!(other.step, Some(Step::Done { .. })))
        };
        lab.until(node, done).await;
    }
    lab.until_phase(ended).await;

    lab.tampered.lock().unwrap().push("m2".to_owned());
    let view = lab.ops.verify().await.unwrap();
    assert_eq!((view.newest.rollout.as_ref(), view.newest.version.as_deref()), (Some(&id), Some(TO)));
    let verdict = |name: &str| view.nodes.iter().find(|node| node.id == name).unwrap().verdict.clone();
    for node in ["m1", "m3", "w1"] {
        assert_eq!(verdict(node), Verdict::Ok, "{node}");
    }
    let Verdict::Drifted { files, restart_pending } = verdict("m2") else { panic!("{:?}", verdict("m2")) };
    assert!(restart_pending, "the engine that runs is still the installed one");
    assert_eq!(files.len(), 1);
    assert_eq!((files[0].file, &files[0].installed), (EngineFile::Dockerd, &digest()));
    assert_ne!(files[0].found.as_ref(), Some(&digest()));
    assert_eq!(verdict("w2"), Verdict::NotUpgraded { compared: Compared::Outdated });
    assert_eq!(
        lab.ops.hub.order_for(&lab.ops.hub.agents()[&NodeId::from("m1")].report),
        Order::Wait { why: "no rollout".to_owned() }
    );
}

#[tokio::test]
async fn undeploy_takes_everything_and_nothing_else() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.deployed();
    let other = serde_json::json!({"ID": "s2", "Spec": {"Name": "web", "Mode": {"Global": {}}}});
    lab.fake.world().services.insert("s2".to_owned(), other);
    let bees =
        serde_json::json!({"ID": "x", "Version": {"Index": 1}, "Spec": {"Name": "requeen-of-bees", "Data": "aGk="}});
    lab.fake.world().configs.insert("requeen-of-bees".to_owned(), bees);
    lab.upgraded().await;
    let bundles = lab.fake.dir.path().join("bundles");
    std::fs::create_dir(&bundles).unwrap();
    std::fs::write(bundles.join(format!("{}.tgz", "a".repeat(64))), "x").unwrap();

    let found = lab.ops.deployment().await.unwrap();
    assert_eq!((found.services.as_slice(), found.records.len()), (["requeen-agent".to_owned()].as_slice(), 1));
    assert_eq!(found.reached.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["m2", "m3", "m1", "w1"]);
    assert_eq!(found.silent, []);
    assert_eq!(lab.fake.world().services.len(), 2, "to ask removes nothing");

    let done = lab.ops.undeploy(UndeployArgs { backups: false }).await.unwrap();
    assert!(!done.nothing);
    assert_eq!((&done.services, &done.records), (&found.services, &found.records));
    assert_eq!((done.cleaned.len(), done.silent.len(), done.troubles.len()), (4, 0, 0));
    assert!(done.cleaned.iter().all(|node| node.by_hand && matches!(node.left.as_slice(), [Left::Backup { .. }])));
    assert_eq!(done.server_node, "host-m1");
    assert!(!bundles.exists());
    let world = lab.fake.world();
    assert_eq!(world.services.keys().collect::<Vec<_>>(), ["s2"]);
    assert_eq!(world.configs.keys().collect::<Vec<_>>(), ["requeen-of-bees"]);
}

#[tokio::test]
async fn undeploy_waits_for_rollouts_and_for_nodes_that_need_their_agent() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.deployed();
    let args = UndeployArgs { backups: true };
    lab.ops.start(UpgradeArgs { manual: true, ..lab.args() }, 0).await.unwrap();
    for failure in [lab.ops.undeploy(args).await.unwrap_err(), lab.ops.deployment().await.unwrap_err()] {
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.error.contains("is open"), "{}", failure.error);
    }
    lab.ops.abort().await.unwrap();
    lab.until_phase(ended).await;

    lab.busy.lock().unwrap().push("w1".to_owned());
    let failure = lab.ops.undeploy(args).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Failed);
    assert!(failure.error.contains("host-w1: unfinished work"), "{}", failure.error);
    assert_eq!(lab.in_the_swarm(), (1, 1), "the agents stay");

    lab.busy.lock().unwrap().clear();
    let preparing = lab.ops.prepare_alone().unwrap();
    assert_eq!(lab.ops.undeploy(args).await.unwrap_err().kind, FailureKind::Refused);
    drop(preparing);
    let done = lab.ops.undeploy(args).await.unwrap();
    assert!(done.cleaned.iter().all(|node| node.left.is_empty()));
    assert_eq!(lab.in_the_swarm(), (0, 0));
}

#[tokio::test]
async fn nodes_that_nobody_cleans_are_named_with_what_to_type() {
    let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
    lab.deployed();
    lab.upgraded().await;
    lab.mute.lock().unwrap().push("w1".to_owned());
    lab.ops.hub.forget_node(&NodeId::from("w1"));
    let done = lab.ops.undeploy(UndeployArgs { backups: true }).await.unwrap();
    assert_eq!(done.cleaned.len(), 3);
    let [silent] = done.silent.as_slice() else { panic!("{:?}", done.silent) };
    assert_eq!(silent.hostname, "host-w1");
    let words =
        ["-name requeen-recover.service -o -name requeen-resume.service", "-delete; rm -rf /var/lib/requeen/agent "];
    assert!(words.iter().all(|words| silent.command.contains(words)), "{}", silent.command);
    // Those that are gone with the service are not asked again; the ones here were started by hand and stay.
    lab.mute.lock().unwrap().extend(["m1", "m2", "m3"].map(str::to_owned));
    for node in ["m1", "m2", "m3"] {
        lab.ops.hub.forget_node(&NodeId::from(node));
    }
    let again = lab.ops.undeploy(UndeployArgs { backups: true }).await.unwrap();
    assert!(again.nothing && again.silent.is_empty());
}
