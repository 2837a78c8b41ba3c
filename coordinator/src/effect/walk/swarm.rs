//! The hosts and the swarm around the coordinators: scripted executors over the fake engine, in simulated time. What must
//! hold at every instant is asserted here, by those to whom it would happen.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use requeen_protocol::{
    Cleaning, Digest, EngineFacts, EngineFile, FileFact, Lease, NodeId, NodeState, Order, Preflight, Report, RolloutId,
    Speaker, StopPermit, SwapPhase,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::story;
use crate::hub::Hub;
use crate::observe::Engine;
use crate::observe::fake::Fake;
use crate::plan::model::{Entry, Role, Step};
use crate::server::store::bundle_path;

/// The version that is installed.
pub(super) const TO: &str = "26.1.5";

const FROM: &str = "20.10.24";
const MANAGERS: [&str; 3] = ["m1", "m2", "m3"];
const WORKERS: [&str; 1] = ["w1"];

/// How often anything happens by itself.
const BEAT: Duration = Duration::from_millis(100);

/// How long an engine is down: where one worker is all that is upgraded, longer than the owner may go without a sign of
/// life in the record.
const DOWN: Duration = Duration::from_millis(600);
const LONG_DOWN: Duration = Duration::from_secs(12);

/// How long the managers are without a leader when theirs goes.
const ELECTION: Duration = Duration::from_secs(1);

/// A host as it really is.
struct Host {
    state: NodeState,
    /// Its executor's lease, and when that runs out.
    lease: Option<(Lease, Instant)>,
    /// How many leases have run out.
    lapsed: usize,
    /// Whether an executor speaks for it.
    executor: bool,
    max_epoch: u64,
    used: BTreeSet<String>,
    memo: Option<String>,
    /// When its engine is up again.
    down_until: Option<Instant>,
    upgraded: bool,
}

/// See the module.
pub(super) struct Swarm {
    fake: Fake,
    hosts: Mutex<BTreeMap<String, Host>>,
    /// The hub of each manager's coordinator, for as long as that lives.
    hubs: Mutex<BTreeMap<String, Weak<Hub>>>,
    up: watch::Sender<BTreeSet<String>>,
    election: Mutex<Option<Instant>>,
    /// Until when nothing can be written.
    no_writes: Mutex<Option<Instant>>,
    before: BTreeMap<String, String>,
    /// How long engines are down.
    down: Duration,
}

impl Swarm {
    /// Three managers and a worker that gets no new tasks; a service has a task on each.
    /// Engines are down for a moment or, where `long`, for long.
    pub(super) fn new(long: bool) -> Arc<Self> {
        let fake = Fake::start(&MANAGERS, &WORKERS);
        fake.engine_of("m2");
        let names: Vec<String> = MANAGERS.iter().chain(&WORKERS).map(|name| (*name).to_owned()).collect();
        {
            let mut world = fake.world();
            world.nodes.get_mut("w1").unwrap()["Spec"]["Availability"] = "pause".into();
            let spec = json!({"Name": "web", "Mode": {"Global": {}}});
            world.services.insert("web".to_owned(), json!({"ID": "web", "Version": {"Index": 1}, "Spec": spec}));
            world.tasks = names.iter().map(|node| task(node, "running")).collect();
        }
        let host = || Host {
            state: NodeState::Idle,
            lease: None,
            lapsed: 0,
            executor: false,
            max_epoch: 0,
            used: BTreeSet::new(),
            memo: None,
            down_until: None,
            upgraded: false,
        };
        Arc::new(Self {
            before: names.iter().map(|name| (name.clone(), fake.availability(name))).collect(),
            hosts: Mutex::new(names.iter().map(|name| (name.clone(), host())).collect()),
            hubs: Mutex::default(),
            up: watch::Sender::new(names.into_iter().collect()),
            election: Mutex::default(),
            no_writes: Mutex::default(),
            down: if long { LONG_DOWN } else { DOWN },
            fake,
        })
    }

    /// The folder of the manager's coordinator.
    pub(super) fn data_dir(&self, me: &str) -> PathBuf {
        self.fake.dir.path().join(me)
    }

    /// The manager's engine.
    pub(super) fn engine(&self, me: &str) -> Engine {
        if me == "m1" { self.fake.engine() } else { Engine::new(self.fake.dir.path().join(format!("{me}.sock"))) }
    }

    /// All agents hear this hub from now on, until it is dropped.
    pub(super) fn meets(&self, me: &str, hub: &Arc<Hub>) {
        self.hubs.lock().unwrap().insert(me.to_owned(), Arc::downgrade(hub));
    }

    /// From now on the raft store takes no writes, for so long.
    pub(super) fn refuses_writes(&self, long: Duration) {
        self.fake.world().read_only = true;
        *self.no_writes.lock().unwrap() = Some(Instant::now() + long);
    }

    /// From now on the managers have no leader, for so long.
    pub(super) fn loses_leader(&self, long: Duration) {
        self.fake.world().leaderless = true;
        *self.election.lock().unwrap() = Some(Instant::now() + long);
    }

    /// How many writes were refused.
    pub(super) fn refused(&self) -> u32 {
        self.fake.world().refused
    }

    /// Waits until the node's engine is up, or down.
    pub(super) async fn until_up(&self, node: &str, up: bool) {
        let mut seen = self.up.subscribe();
        seen.wait_for(|all| all.contains(node) == up).await.expect("the swarm outlives its coordinators");
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<String, Host>> {
        self.hosts.lock().unwrap()
    }

    /// Everything that happens by itself, for ever.
    pub(super) async fn lives(&self) -> Infallible {
        loop {
            self.beat();
            sleep(BEAT).await;
        }
    }

    fn beat(&self) {
        let now = Instant::now();
        self.elect(now);
        self.tasks_move();
        let names: Vec<String> = self.hosts().keys().cloned().collect();
        for name in &names {
            self.time_passes(name, now);
            self.check_hosts();
            self.reports(name, now);
            self.check_hosts();
        }
        self.check_record();
    }

    /// The managers choose a leader among those that are up, after a while without one.
    fn elect(&self, now: Instant) {
        if self.no_writes.lock().unwrap().take_if(|until| now >= *until).is_some() {
            self.fake.world().read_only = false;
        }
        let mut election = self.election.lock().unwrap();
        if election.is_none_or(|until| now < until) {
            return;
        }
        *election = None;
        let mut world = self.fake.world();
        world.leaderless = false;
        let leader = MANAGERS.into_iter().find(|name| world.nodes[*name]["Status"]["State"] == "ready").unwrap();
        for name in MANAGERS {
            world.nodes.get_mut(name).unwrap()["ManagerStatus"]["Leader"] = (name == leader).into();
        }
    }

    /// Tasks leave nodes that are drained, and come to those that are active.
    fn tasks_move(&self) {
        let mut world = self.fake.world();
        if world.leaderless {
            return;
        }
        let is = |node: &Value, availability: &str| node["Spec"]["Availability"] == availability;
        let ready = |node: &Value| node["Status"]["State"] == "ready";
        let nodes = world.nodes.clone();
        world.tasks.retain(|task| !is(&nodes[task["NodeID"].as_str().unwrap()], "drain"));
        for task in &mut world.tasks {
            task["Status"]["State"] = "running".into();
        }
        for (name, _) in nodes.iter().filter(|(_, node)| is(node, "active") && ready(node)) {
            if !world.tasks.iter().any(|task| task["NodeID"] == name.as_str()) {
                world.tasks.push(task(name, "starting"));
            }
        }
    }

    /// What the host does alone: its lease runs out, its engine comes back.
    fn time_passes(&self, name: &str, now: Instant) {
        let mut hosts = self.hosts();
        let host = hosts.get_mut(name).unwrap();
        match &host.state {
            NodeState::Leased { rollout, .. } | NodeState::Linked { rollout, .. }
                if host.lease.as_ref().is_some_and(|(_, until)| now >= *until) =>
            {
                host.state = staged(rollout);
                (host.lease, host.executor) = (None, true);
                host.lapsed += 1;
            }
            NodeState::Swapping { rollout, lease, .. } => match host.down_until {
                None => {
                    host.down_until = Some(now + self.down);
                    self.goes_down(name, now);
                }
                Some(until) if now >= until => {
                    host.state =
                        NodeState::Running { rollout: rollout.clone(), lease: lease.clone(), engine_down_ms: 1000 };
                    (host.down_until, host.upgraded) = (None, true);
                    self.comes_up(name);
                }
                Some(_) => {}
            },
            NodeState::Idle
            | NodeState::Staging { .. }
            | NodeState::Staged { .. }
            | NodeState::Refused { .. }
            | NodeState::Leased { .. }
            | NodeState::Linked { .. }
            | NodeState::Running { .. }
            | NodeState::Upgraded { .. }
            | NodeState::RolledBack { .. }
            | NodeState::Stuck { .. }
            | NodeState::Cleaned { .. } => {}
        }
    }

    fn goes_down(&self, name: &str, now: Instant) {
        let mut world = self.fake.world();
        let node = world.nodes.get_mut(name).unwrap();
        node["Status"]["State"] = "down".into();
        if MANAGERS.contains(&name) {
            node["ManagerStatus"]["Reachability"] = "unreachable".into();
            if node["ManagerStatus"]["Leader"] == true {
                node["ManagerStatus"]["Leader"] = false.into();
                world.leaderless = true;
                *self.election.lock().unwrap() = Some(now + ELECTION);
            }
        }
        self.up.send_if_modified(|up| up.remove(name));
    }

    fn comes_up(&self, name: &str) {
        let mut world = self.fake.world();
        world.index += 1;
        let index = world.index;
        let node = world.nodes.get_mut(name).unwrap();
        node["Status"]["State"] = "ready".into();
        node["Description"]["Engine"]["EngineVersion"] = TO.into();
        node["Version"]["Index"] = index.into();
        if MANAGERS.contains(&name) {
            node["ManagerStatus"]["Reachability"] = "reachable".into();
        }
        self.up.send_if_modified(|up| up.insert(name.to_owned()));
    }

    /// The host's agent speaks to every coordinator that it reaches, and does what it is told.
    fn reports(&self, name: &str, now: Instant) {
        let hubs: Vec<(String, Weak<Hub>)> =
            self.hubs.lock().unwrap().iter().map(|(me, hub)| (me.clone(), hub.clone())).collect();
        for (me, hub) in hubs {
            let up = self.up.borrow().contains(&me);
            if let Some(hub) = hub.upgrade().filter(|_| up) {
                let report = self.report(name);
                hub.report(report.clone());
                let order = hub.order_for(&report);
                self.obeys(name, order.clone(), now);
                let seen = Report { seen: Some(Box::new(order)), ..self.report(name) };
                hub.report(seen);
            }
        }
    }

    fn report(&self, name: &str) -> Report {
        let hosts = self.hosts();
        let host = &hosts[name];
        let digest = Digest::from_hex(&if host.upgraded { "a" } else { "b" }.repeat(64)).unwrap();
        let dockerd = FileFact { path: "/usr/bin/dockerd".to_owned(), digest };
        Report {
            node: NodeId::from(name),
            agent_version: "1".to_owned(),
            speaker: if host.executor { Speaker::Executor } else { Speaker::Task },
            boot_id: "b".to_owned(),
            engine: Some(EngineFacts {
                version: if host.upgraded { TO } else { FROM }.to_owned(),
                api_version: "1.41".to_owned(),
                started_us: 1,
                files: [(EngineFile::Dockerd, dockerd)].into(),
            }),
            installed: None,
            state: host.state.clone(),
            seen: None,
            memo: host.memo.clone(),
            unreached: Vec::new(),
            troubles: Vec::new(),
        }
    }

    fn obeys(&self, name: &str, order: Order, now: Instant) {
        let emptied = self.emptied(name);
        let mut hosts = self.hosts();
        let host = hosts.get_mut(name).unwrap();
        if let Some(lease) = order.lease() {
            if lease.epoch < host.max_epoch {
                return;
            }
            host.max_epoch = lease.epoch;
        }
        let until = |lease: &Lease| now + Duration::from_secs(lease.ttl_secs);
        // Every answer under its lease renews it.
        if let (Some(lease), Some((held, left))) = (order.lease(), &mut host.lease)
            && held.id == lease.id
        {
            *left = until(lease);
        }
        let rollout = order.lease().map(|lease| lease.rollout.clone());
        match (order, &host.state) {
            (Order::Stage { rollout, .. }, NodeState::Idle | NodeState::Cleaned { .. }) => {
                host.state = staged(&rollout);
                self.keeps_bundle();
            }
            (Order::Hold { lease, memo }, NodeState::Staged { .. }) => {
                assert!(host.lease.is_none(), "{name}: a lease in a state that knows none");
                host.state = leased(&lease);
                host.lease = Some((lease.clone(), until(&lease)));
                (host.memo, host.executor) = (Some(memo), true);
            }
            (Order::Hold { lease, memo }, NodeState::Leased { .. } | NodeState::Linked { .. }) => {
                let held = host.lease.as_ref().map(|(held, _)| held.id.clone());
                assert_eq!(held, Some(lease.id), "{name}: a second lease while the first one lives");
                host.memo = Some(memo);
            }
            (Order::Link { lease }, NodeState::Leased { .. }) if held(host, &lease) => {
                assert_eq!(emptied, Ok(()), "{name}: links");
                host.state = NodeState::Linked { rollout: lease.rollout, lease: lease.id, task_containers: 0 };
            }
            (Order::Stop { permit }, NodeState::Linked { .. }) => {
                let StopPermit { id, lease, .. } = permit;
                assert!(held(host, &lease), "{name}: a permit under another lease than its own");
                assert_eq!(emptied, Ok(()), "{name}: stopped");
                assert!(host.used.insert(id.0), "{name}: a permit given twice");
                host.state = NodeState::Swapping {
                    rollout: lease.rollout,
                    lease: lease.id,
                    phase: SwapPhase::Stopping,
                    waiting: None,
                };
                host.lease = None;
                drop(hosts);
                self.check_quorum(name);
            }
            (Order::Settle { lease }, NodeState::Running { lease: held, .. }) if *held == lease.id => {
                let set = Digest::from_hex(&"a".repeat(64)).unwrap();
                host.state = NodeState::Upgraded { rollout: lease.rollout, lease: lease.id, engine_down_ms: 1000, set };
            }
            (Order::SwitchBack { reason, .. }, _) => panic!("{name}: switched back: {reason}"),
            (Order::Withdraw { .. }, _) => panic!("{name}: withdrawn from {rollout:?}"),
            (Order::Forget { .. }, _) => {
                (host.state, host.executor, host.memo) = (NodeState::Idle, false, None);
            }
            (Order::Clean { backups }, _) => {
                let cleaning = Cleaning::Done { left: Vec::new(), more: 0 };
                host.state = NodeState::Cleaned { backups, cleaning };
            }
            // Nothing to do, done already, or the host is further and refuses.
            (
                Order::Wait { .. }
                | Order::Standby { .. }
                | Order::Stage { .. }
                | Order::Hold { .. }
                | Order::Link { .. }
                | Order::Stop { .. }
                | Order::Settle { .. },
                _,
            ) => {}
        }
    }

    /// What an agent stages it keeps, where a coordinator of its host finds it.
    fn keeps_bundle(&self) {
        let bytes = story::bundle();
        for me in MANAGERS {
            let kept = self.data_dir(me).join("agent/bundles");
            std::fs::create_dir_all(&kept).unwrap();
            std::fs::write(
                bundle_path(&kept, &crate::bundle::to_digest(sha2::Digest::new_with_prefix(&bytes))),
                &bytes,
            )
            .unwrap();
        }
    }

    /// Whether the node is drained and no task of it lives.
    fn emptied(&self, name: &str) -> Result<(), String> {
        let world = self.fake.world();
        let availability = &world.nodes[name]["Spec"]["Availability"];
        let tasks = world.tasks.iter().filter(|task| task["NodeID"] == name).count();
        match availability.as_str() {
            Some("drain") if tasks == 0 => Ok(()),
            other => Err(format!("while {other:?} with {tasks} tasks")),
        }
    }

    /// Whether the managers can do without this one.
    fn check_quorum(&self, name: &str) {
        if MANAGERS.contains(&name) {
            let down = self.managers_down();
            let left = MANAGERS.len() - down.len();
            assert!(left > MANAGERS.len() / 2 && down == [name], "{name} is stopped while {down:?} are");
        }
    }

    fn managers_down(&self) -> Vec<String> {
        let hosts = self.hosts();
        let down = |name: &&str| matches!(hosts[*name].state, NodeState::Swapping { .. });
        MANAGERS.into_iter().filter(down).map(str::to_owned).collect()
    }

    /// What holds on the hosts at every instant.
    fn check_hosts(&self) {
        let down = self.managers_down();
        assert!(down.len() <= 1, "{down:?} are down");
        let hosts = self.hosts();
        let busy: Vec<&String> = hosts.iter().filter(|(_, host)| busy(&host.state)).map(|(name, _)| name).collect();
        assert!(busy.len() <= 1, "{busy:?} hold leases at once");
        for (name, host) in hosts.iter().filter(|(_, host)| host.down_until.is_some()) {
            assert_eq!(self.emptied(name), Ok(()), "{name} is down ({:?})", host.state);
        }
    }

    /// What holds in the record at every instant.
    fn check_record(&self) {
        let hosts = self.hosts();
        let entries = self.entries();
        for (name, entry) in &entries {
            let granted = entry.times.iter().filter(|(step, _)| step == "granted").count();
            assert!(granted <= 1 + hosts[name].lapsed, "{name} was granted {granted} leases");
        }
        let working = |role: Role| {
            let working = |entry: &&Entry| entry.role == role && matches!(entry.step, Step::Working { .. });
            entries.values().filter(working).count()
        };
        let (managers, workers) = (working(Role::Manager), working(Role::Worker));
        assert!(managers + workers <= 1, "{managers} managers and {workers} workers are recorded with leases");
    }

    /// The nodes in the swarm's record, if there is one.
    fn entries(&self) -> BTreeMap<String, Entry> {
        let world = self.fake.world();
        let mut entries = BTreeMap::new();
        for labels in world.configs.values().filter_map(|config| config["Spec"]["Labels"].as_object()) {
            for (key, value) in labels {
                if let Some(node) = key.strip_prefix("io.requeen.node.") {
                    let entry = serde_json::from_str(value.as_str().unwrap()).unwrap();
                    assert!(entries.insert(node.to_owned(), entry).is_none(), "two records of {node}");
                }
            }
        }
        entries
    }

    /// What holds when the story is over.
    pub(super) fn check_end(&self, everything: bool) {
        for (name, host) in self.hosts().iter() {
            assert_eq!(host.upgraded, everything || name == "w1", "{name}: upgraded");
            assert!(host.down_until.is_none(), "{name} is down");
            assert_eq!(self.fake.availability(name), self.before[name], "{name}: availability");
            let world = self.fake.world();
            let set: Vec<_> = world.availabilities.iter().filter(|(node, _)| node == name).map(|(_, to)| to).collect();
            let once = if host.upgraded { vec!["drain", &self.before[name]] } else { Vec::new() };
            assert_eq!(set, once, "{name}: every availability that was set");
        }
        let world = self.fake.world();
        assert_eq!(world.services.keys().collect::<Vec<_>>(), ["web"], "services");
        assert!(world.configs.is_empty(), "{:?}", world.configs.keys());
    }

    /// How it stands, for whoever looks for the fault.
    pub(super) fn words(&self) -> String {
        let states: Vec<_> = self.hosts().iter().map(|(name, host)| format!("{name}: {:?}", host.state)).collect();
        let steps: Vec<_> = self.entries().iter().map(|(name, entry)| format!("{name}: {:?}", entry.step)).collect();
        format!("{}\n{}", states.join("\n"), steps.join("\n"))
    }
}

fn task(node: &str, state: &str) -> Value {
    json!({"ID": format!("web.{node}"), "ServiceID": "web", "NodeID": node, "DesiredState": "running",
        "Status": {"State": state}})
}

/// Whether the host holds this lease.
fn held(host: &Host, lease: &Lease) -> bool {
    host.lease.as_ref().is_some_and(|(held, _)| held.id == lease.id)
}

fn leased(lease: &Lease) -> NodeState {
    NodeState::Leased { rollout: lease.rollout.clone(), lease: lease.id.clone(), task_containers: 0 }
}

fn staged(rollout: &RolloutId) -> NodeState {
    NodeState::Staged {
        rollout: rollout.clone(),
        preflight: Preflight {
            from: FROM.to_owned(),
            to: TO.to_owned(),
            set: Digest::from_hex(&"a".repeat(64)).unwrap(),
            changes: vec![EngineFile::Dockerd],
            standalone: Vec::new(),
            containers: Vec::new(),
            containers_more: 0,
            raft_copy_bytes: None,
            notes: Vec::new(),
        },
    }
}

/// Whether the host's work under a lease is not over.
fn busy(state: &NodeState) -> bool {
    match state {
        NodeState::Leased { .. }
        | NodeState::Linked { .. }
        | NodeState::Swapping { .. }
        | NodeState::Running { .. } => true,
        NodeState::Idle
        | NodeState::Staging { .. }
        | NodeState::Staged { .. }
        | NodeState::Refused { .. }
        | NodeState::Upgraded { .. }
        | NodeState::RolledBack { .. }
        | NodeState::Stuck { .. }
        | NodeState::Cleaned { .. } => false,
    }
}
