//! A walk through all fail points: a whole node's work, from its lease to the rollout's end, is ended at each of them, as by
//! `kill -9` with the host up and as by a power cut, and goes on from there. The executor is a process of its own, and its
//! coordinator lives in it: one that answers reports as the real one does, without the wire between.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::{env, fs};

use requeen_protocol::{Lease, LeaseId, StopPermit};

use super::fake_machine::{Machine, ROLLOUT, Set, control};
use super::*;
use crate::clock::boot_time;
use crate::effect;
use crate::host::testing::folder;
use crate::reporter::Say;
use crate::staged::STAGED_PATH;

/// The walk's settings for the process that is the executor.
const ROOT: &str = "REQUEEN_WALK_ROOT";
const COUNTS: &str = "REQUEEN_WALK_COUNTS";
/// How long a lease is good for, seconds, if not for a minute.
const TTL: &str = "REQUEEN_WALK_TTL";
/// `every` walks through every pass of each fail point, which takes minutes; else the first two and the last.
const PASSES: &str = "REQUEEN_WALK_PASSES";

/// What the coordinator was told in the end; it lives elsewhere, so no power cut of the node's takes that.
const OUTCOME: &str = "/coordinator";
const PROGRAM: &str = "/var/lib/requeen/bin/agent-1-0123456789ab";

/// What happens to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Story {
    /// The new engine is good.
    Upgraded,
    /// The same, and a copy of the swarm's folder is kept.
    Copied,
    /// The new engine is not what it should be.
    RolledBack,
    /// The journal can't be read.
    Damaged,
}

/// What ends the executor, and what follows.
#[derive(Clone, Copy, Debug)]
enum End {
    Killed,
    PowerCut,
}

/// One run: ended at this pass of this point.
#[derive(Clone, Debug)]
struct Case {
    story: Story,
    end: End,
    point: String,
    pass: usize,
}

/// The process that is the executor.
#[test]
#[ignore = "only as the process that the walk starts"]
fn process() {
    let root = HostRoot::new(env::var_os(ROOT).expect("started by the walk"));
    let points = fail::FailScenario::setup();
    let counts = env::var_os(COUNTS).map(|at| (at, count_passes()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = Options { root: root.clone(), port: 9047, clock: boot_time, chance: || 0, control };
        let _lock = hold(&root).await.unwrap().expect("nobody else works here");
        let executor = Executor::begin(&options).unwrap();
        let (tell, heard) = mpsc::channel(1);
        let coordinator = tokio::spawn(coordinate(executor.say.subscribe(), tell, root.join(OUTCOME)));
        tokio::time::timeout(Duration::from_secs(60), executor.live(heard)).await.expect("it hangs").unwrap();
        coordinator.abort();
    });
    if let Some((at, counts)) = counts {
        fs::write(at, serde_json::to_vec(&*counts.lock().unwrap()).unwrap()).unwrap();
    }
    points.teardown();
}

fn points() -> impl Iterator<Item = String> {
    effect::names().flat_map(|name| [format!("before-{name}"), format!("after-{name}")])
}

fn count_passes() -> Arc<Mutex<BTreeMap<String, usize>>> {
    let counts = Arc::new(Mutex::new(BTreeMap::new()));
    for point in points() {
        let (name, counts) = (point.clone(), Arc::clone(&counts));
        fail::cfg_callback(point, move || *counts.lock().unwrap().entry(name.clone()).or_default() += 1).unwrap();
    }
    counts
}

/// Answers reports, until there is nobody who makes any.
async fn coordinate(mut say: watch::Receiver<Option<Say>>, tell: mpsc::Sender<Heard>, outcome: PathBuf) {
    loop {
        let said = say.borrow_and_update().clone();
        if let Some(Say { report, .. }) = said {
            let order = order_for(&report, &outcome);
            if report.seen.as_deref() != order.as_ref()
                && let Some(order) = order
                && tell.send(Heard { sent: boot_time(), order }).await.is_err()
            {
                return;
            }
        }
        if say.changed().await.is_err() {
            return;
        }
    }
}

fn order_for(report: &requeen_protocol::Report, outcome: &Path) -> Option<Order> {
    use requeen_protocol::NodeState;

    let own = |prefix: &str| format!("{prefix}-{}", std::process::id());
    let ttl_secs = env::var(TTL).ok().and_then(|secs| secs.parse().ok()).unwrap_or(60);
    let lease = |id: LeaseId| Lease { id, rollout: ROLLOUT.into(), node: report.node.clone(), epoch: 1, ttl_secs };
    let over = |how: String| {
        fs::write(outcome, how).unwrap();
        Some(Order::Forget { rollout: ROLLOUT.into() })
    };
    match report.state.clone() {
        NodeState::Idle | NodeState::Staged { .. } if outcome.exists() => {
            Some(Order::Forget { rollout: ROLLOUT.into() })
        }
        NodeState::Staged { .. } => {
            Some(Order::Hold { lease: lease(own("l").as_str().into()), memo: "memo".to_owned() })
        }
        NodeState::Leased { lease: id, .. } => Some(Order::Link { lease: lease(id) }),
        NodeState::Linked { lease: id, .. } => {
            let permit = StopPermit { id: own("p").as_str().into(), lease: lease(id), valid_secs: 20 };
            Some(Order::Stop { permit })
        }
        NodeState::Swapping { .. } => None,
        NodeState::Running { lease: id, .. } => Some(Order::Settle { lease: lease(id) }),
        NodeState::Upgraded { .. } => over("upgraded".to_owned()),
        NodeState::RolledBack { .. } => over("rolled back".to_owned()),
        NodeState::Stuck { reason, .. } => over(format!("stuck: {reason}")),
        state @ (NodeState::Idle
        | NodeState::Cleaned { .. }
        | NodeState::Staging { .. }
        | NodeState::Refused { .. }) => panic!("{state:?}"),
    }
}

/// A machine, and the program that its executor is.
struct Run {
    machine: Machine,
    program: PathBuf,
    log: tempfile::TempDir,
}

impl Run {
    fn new(story: Story, program: &Path) -> Self {
        let machine = Machine::new(story == Story::RolledBack, story == Story::Copied);
        if story == Story::Damaged {
            machine.host.write(crate::journal::JOURNAL_PATH, b"{\"schema\":1", 0o600);
        }
        Self { machine, program: program.to_owned(), log: folder() }
    }

    /// An executor's life.
    fn live<const N: usize>(&self, variables: [(&str, &str); N]) -> ExitStatus {
        let at = self.machine.host.root.join(PROGRAM);
        if !at.exists() {
            // As the task on the node does.
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::hard_link(&self.program, &at).unwrap();
        }
        let log = fs::File::options().create(true).append(true).open(self.log.path().join("log")).unwrap();
        Command::new(at)
            .args(["executor::walk_tests::process", "--exact", "--ignored", "--nocapture"])
            .env(ROOT, self.machine.host.root.prefix())
            .envs(variables)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .status()
            .unwrap()
    }

    fn said(&self) -> String {
        fs::read_to_string(self.log.path().join("log")).unwrap_or_default()
    }

    fn outcome(&self) -> String {
        self.machine.host.root.read_to_string(OUTCOME).unwrap_or_default()
    }

    fn assert_ended(&self, story: Story, end: End) {
        let outcome = self.outcome();
        let set = match (story, end, outcome.as_str()) {
            (Story::Upgraded | Story::Copied, _, "upgraded") => Set::New,
            // Its power failed before it was verified.
            (Story::Upgraded | Story::Copied, End::PowerCut, "rolled back") | (Story::RolledBack, _, "rolled back") => {
                Set::Old
            }
            (Story::Damaged, _, stuck) if stuck.starts_with("stuck: ") => Set::Old,
            (Story::Upgraded | Story::Copied | Story::RolledBack | Story::Damaged, End::Killed | End::PowerCut, _) => {
                panic!("the coordinator was told `{outcome}`")
            }
        };
        self.machine.assert_ended_with(set);
        let may = story == Story::Copied;
        self.machine.assert_copies(may, may && set == Set::New);
        let root = &self.machine.host.root;
        assert_eq!(Journal::load(root).unwrap().work, None);
        packages::look(root).unwrap();
        for gone in [STAGED_PATH, "/var/lib/requeen/agent/memo", PROGRAM] {
            assert!(!root.join(gone).exists(), "{gone} was left behind");
        }
        for unit in [boot::RECOVER_UNIT, boot::RESUME_UNIT] {
            assert!(!root.join(format!("{}/{unit}", boot::UNITS)).exists(), "{unit} was left behind");
        }
    }
}

/// How often each point is passed when nothing goes wrong.
fn passes(story: Story, program: &Path) -> BTreeMap<String, usize> {
    let run = Run::new(story, program);
    let counts = run.log.path().join("counts");
    let status = run.live([(COUNTS, &*counts.to_string_lossy())]);
    assert!(status.success(), "{story:?}, undisturbed: {status}\n{}", run.said());
    run.assert_ended(story, End::Killed);
    serde_json::from_slice(&fs::read(counts).unwrap()).unwrap()
}

/// Whether the executor came to the pass at which it is ended.
fn walk(case: &Case, program: &Path) -> Result<bool, String> {
    let Case { story, end, point, pass } = case;
    let mut run = Run::new(*story, program);
    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let ended = run.live([("FAILPOINTS", &*format!("{point}={}*off->return", pass - 1))]);
        let reached = ended.signal() == Some(nix::libc::SIGKILL);
        assert!(reached || ended.success(), "{ended}");
        if reached {
            assert!(run.machine.seen().is_some(), "files of two sets are in place");
            match end {
                End::Killed => {}
                End::PowerCut => run.machine.power_cut(),
            }
            let ended = run.live([]);
            assert!(ended.success(), "the next executor: {ended}");
        }
        run.assert_ended(*story, *end);
        reached
    }));
    tried.map_err(|panic| {
        let why = panic.downcast_ref::<String>().cloned();
        let why = why.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        format!("{case:?}: {why}\n{}", run.said())
    })
}

/// A machine that stands still between its permit and its stop, for longer than its lease is good for.
fn frozen_before_the_stop(program: &Path) {
    let run = Run::new(Story::RolledBack, program);
    let ended = run.live([("FAILPOINTS", "before-stop-container=sleep(3000)"), (TTL, "2")]);
    assert!(ended.success(), "{ended}\n{}", run.said());
    run.assert_ended(Story::RolledBack, End::Killed);
    assert_eq!(run.machine.stops(), 0, "the engine was stopped under a lease that was over\n{}", run.said());
}

/// The passes at which a point is walked through.
fn chosen(count: usize) -> Vec<usize> {
    if env::var(PASSES).is_ok_and(|passes| passes == "every") {
        return (1..=count).collect();
    }
    let mut passes = vec![1, 2, count];
    passes.retain(|&pass| pass <= count);
    passes.dedup();
    passes
}

/// A process of its own: each executor that it starts has for an instant every file that it has open, and of other tests those
/// would be locks and sockets that they have just let go.
#[test]
fn a_nodes_work_ended_at_every_fail_point_ends_whole() {
    let mut walk = Command::new(env::current_exe().unwrap());
    let walk = walk.args(["executor::walk_tests::whole_walk", "--exact", "--ignored", "--nocapture"]).output().unwrap();
    let said = String::from_utf8_lossy(&walk.stdout);
    let figures: Vec<&str> = said.lines().filter(|line| line.starts_with("fail points: ")).collect();
    assert!(walk.status.success() && figures.len() == 1, "{said}\n{}", String::from_utf8_lossy(&walk.stderr));
    println!("{}", figures[0]);
}

#[test]
#[ignore = "only as the process that the test above starts"]
fn whole_walk() {
    let folder = folder();
    let program = folder.path().join("program");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    frozen_before_the_stop(&program);

    let mut cases = Vec::new();
    let mut never: Vec<String> = points().collect();
    let plain = passes(Story::Upgraded, &program);
    for story in [Story::Upgraded, Story::Copied, Story::RolledBack, Story::Damaged] {
        for (point, count) in passes(story, &program) {
            never.retain(|unpassed| *unpassed != point);
            // What is the same with a copy was walked through without one.
            if story == Story::Copied && plain.get(&point) == Some(&count) {
                continue;
            }
            for pass in chosen(count) {
                for end in [End::Killed, End::PowerCut] {
                    cases.push(Case { story, end, point: point.clone(), pass });
                }
            }
        }
    }
    assert_eq!(never, Vec::<String>::new(), "no run of a node's work passes these");

    let (next, walked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    match walk(case, &program) {
                        Ok(true) => drop(walked.fetch_add(1, Ordering::SeqCst)),
                        // A report more or less, and a point may have a pass more or less.
                        Ok(false) if case.pass > 1 => {}
                        Ok(false) => failed.lock().unwrap().push(format!("{case:?}: never reached")),
                        Err(why) => failed.lock().unwrap().push(why),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let walked = walked.into_inner();
    let points = points().count();
    println!("fail points: {points}; ends tried: {}, whole after: {walked}", walked + failed.len());
    if let Some(path) = env::var_os("REQUEEN_FIGURES") {
        // Of a whole run of the tests.
        let line = format!("{{\"fail_points\":{},\"fail_points_passed\":{walked}}}\n", walked + failed.len());
        let mut figures = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        std::io::Write::write_all(&mut figures, line.as_bytes()).unwrap();
    }
    assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), cases.len(), failed.join("\n\n"));
    assert!(walked >= 2 * points, "only {walked} of {} ends were come to", cases.len());
}
