//! A machine on a temporary root, for tests that end the executor at any instant: what would go on living beside it, its
//! systemd and its Docker Engine, is in the process of the test. The engine answers on its socket, and is of whatever set of
//! files it finds when it is started.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use requeen_protocol::{EngineFile, LeaseId, Preflight, Target};

use crate::effect::disk;
use crate::engine::api::SOCKET;
use crate::engine::systemd::{ControlError, EngineControl, UnitState};
use crate::host::HostRoot;
use crate::host::layout::Layout;
use crate::host::testing::{OLD_VERSION, SWARM_FOLDER, TestHost};
use crate::raft_copy::{self, COPIES_DIR, CopyOf};
use crate::staged::{Outcome, Staged, Wanted};
use crate::swap::Original;
use crate::swap::planning::original_at;
use crate::{boot, recovery};

/// Where the machine's systemd is asked.
const SYSTEMD: &str = "/run/systemd.sock";
const NEW_VERSION: &str = "26.1.5";
const DPKG: &str = "/var/lib/dpkg/lock-frontend";
pub(super) const ROLLOUT: &str = "r1";

/// Leases of earlier rollouts, of which there are copies of the swarm's folder.
const EARLIER: [&str; raft_copy::KEPT] = ["r0.n1.1", "r0.n1.2", "r0.n1.3"];

fn copy_of(lease: LeaseId) -> CopyOf {
    CopyOf { lease, version: OLD_VERSION.to_owned(), data_root: "/var/lib/docker".to_owned() }
}

type Contents = BTreeMap<EngineFile, String>;

/// Which set of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    Old,
    New,
}

/// The machine.
pub(super) struct Machine {
    // These end first: they are called on sockets below the root.
    systemd: Option<Server>,
    engine: Arc<Mutex<Engine>>,
    pub(super) host: TestHost,
    pub(super) layout: Layout,
    contents: [(Set, Contents); 2],
    originals: BTreeMap<EngineFile, Option<Original>>,
    boots: u32,
    /// The power failed while the container ran.
    container_lost: bool,
}

/// The engine, and what there is to say of its starts.
struct Engine {
    root: HostRoot,
    layout: Layout,
    contents: [(Set, Contents); 2],
    /// Whether the new engine is not what it should be.
    new_fails: bool,
    running: Option<(Set, Server)>,
    /// It was started from files of two sets.
    mixed: Vec<Contents>,
    container: Arc<Mutex<Container>>,
    /// How often it was told to stop.
    stops: u32,
}

impl Machine {
    /// A machine that runs the old engine, with a new one staged: it brings docker-proxy and drops ctr.
    pub(super) fn new(new_fails: bool, keep_raft_copy: bool) -> Self {
        let host = TestHost::new(&[EngineFile::DockerProxy]);
        xattr::set(host.root.join("/usr/sbin/dockerd"), "user.requeen-test", b"kept").unwrap();
        host.write(DPKG, b"", 0o640);
        host.make_manager();
        fs::create_dir_all(host.root.join("/run")).unwrap();
        let (layout, store) = (host.layout(), host.store());
        let old_contents = host.contents(&layout);
        let old = store.capture(&layout, OLD_VERSION).unwrap();
        let files = EngineFile::ALL.iter().filter(|file| **file != EngineFile::Ctr);
        let new_contents: Contents = files.map(|&file| (file, format!("new {file}"))).collect();
        let files: Vec<_> = new_contents.iter().map(|(file, text)| (*file, text.as_str())).collect();
        let new = host.new_set(&files, NEW_VERSION);
        let preflight = Box::new(Preflight {
            from: OLD_VERSION.to_owned(),
            to: NEW_VERSION.to_owned(),
            set: new.0.clone(),
            changes: new_contents.keys().copied().collect(),
            standalone: Vec::new(),
            containers: Vec::new(),
            containers_more: 0,
            raft_copy_bytes: None,
            notes: Vec::new(),
        });
        let wanted = Wanted {
            rollout: ROLLOUT.into(),
            target: Target::Previous { of: "r0".into() },
            allow_downgrade: false,
            start_timeout_secs: 20,
            keep_raft_copy,
        };
        Staged::new(wanted, Outcome::Ready { preflight, old, new }).store(&host.root).unwrap();
        let contents = [(Set::Old, old_contents), (Set::New, new_contents)];
        let engine = Engine {
            root: host.root.clone(),
            layout: layout.clone(),
            contents: contents.clone(),
            new_fails,
            running: None,
            mixed: Vec::new(),
            container: Arc::new(Mutex::new(Container { runs: true, paused: true })),
            stops: 0,
        };
        let originals = looks(&host.root, &layout);
        let engine = Arc::new(Mutex::new(engine));
        let before = EARLIER.map(|lease| copy_of(lease.into()));
        for of in &before {
            raft_copy::keep(&host.root, of, &|| false, &mut disk::make).unwrap();
        }
        let mut machine =
            Self { systemd: None, engine, host, layout, contents, originals, boots: 0, container_lost: false };
        machine.power_on();
        machine.start_engine();
        machine
    }

    fn power_on(&mut self) {
        self.boots += 1;
        self.host.write("/proc/sys/kernel/random/boot_id", format!("boot-{}\n", self.boots).as_bytes(), 0o444);
        let engine = Arc::clone(&self.engine);
        let answer = move |asked: &str| engine.lock().unwrap().command(asked);
        self.systemd = Some(Server::new(&self.host.root.join(SYSTEMD), answer));
    }

    /// The power fails and comes back. What systemd requires of a boot is done before the engine starts.
    pub(super) fn power_cut(&mut self) {
        // All of it ends with the machine. What runs at that instant only its restart policy would bring back.
        self.container_lost |= self.engine.lock().unwrap().container.lock().unwrap().runs;
        assert_eq!(self.engine.lock().unwrap().command("stop"), "");
        self.systemd = None;
        self.power_on();
        let unit = |path: &str| self.host.root.join(format!("{}/{path}", boot::UNITS));
        let required = unit(&format!("{}.requires/{}", self.layout.docker_unit, boot::RECOVER_UNIT));
        if fs::symlink_metadata(required).is_ok() {
            assert!(unit(boot::RECOVER_UNIT).is_file(), "the engine requires a unit that is not there");
            recovery::recover(&self.host.root).unwrap();
        }
        self.start_engine();
    }

    fn start_engine(&self) {
        assert_eq!(self.engine.lock().unwrap().command("start"), "");
    }

    pub(super) fn stops(&self) -> u32 {
        self.engine.lock().unwrap().stops
    }

    /// The set that is seen through the targets; none if they are of two.
    pub(super) fn seen(&self) -> Option<Set> {
        which(&self.contents, &self.host.contents(&self.layout))
    }

    /// Copies of the swarm's folder are whole, of the state in which the old engine left it, and not too many; there is one of
    /// this work if it `must` be, and none unless it `may`.
    pub(super) fn assert_copies(&self, may: bool, must: bool) {
        let mut own = raft_copy::own(&self.host.root).unwrap();
        let all = fs::read_dir(self.host.root.join(COPIES_DIR)).unwrap().count();
        assert_eq!((all, own.len()), (own.len(), raft_copy::KEPT), "all are whole, and as many as are kept: {own:?}");
        own.retain(|name| EARLIER.iter().all(|lease| copy_of((*lease).into()).name() != *name));
        assert!(!must || !own.is_empty(), "the new engine runs, and there is no copy from before");
        assert!(may || own.is_empty(), "nobody wanted a copy: {own:?}");
        for name in own {
            let log = self.host.root.join(COPIES_DIR).join(name).join("swarm/raft/wal-v3-encrypted/0.wal");
            let log = fs::read_to_string(log).unwrap();
            assert!(log.ends_with("Old\n") && !log.contains("New"), "copied after the new engine wrote: {log}");
        }
    }

    /// The node ended with this set, and nothing tells of the way there.
    pub(super) fn assert_ended_with(&self, set: Set) {
        assert_eq!(self.seen(), Some(set), "the files");
        let now = looks(&self.host.root, &self.layout);
        match set {
            Set::Old => assert_eq!(now, self.originals, "not exactly what it was"),
            Set::New => {
                for (file, look) in &now {
                    let link = look.as_ref().and_then(|look| look.was_symlink_to.as_ref());
                    assert!(link.is_none(), "{file} is a link");
                    assert_eq!(look.is_none(), *file == EngineFile::Ctr, "{file}");
                }
            }
        }
        let engine = self.engine.lock().unwrap();
        assert_eq!(engine.running.as_ref().map(|(runs, _)| *runs), Some(set), "the engine that runs");
        let container = engine.container.lock().unwrap();
        assert!(
            self.container_lost || container.runs && container.paused,
            "the container beside the tasks is not as it was"
        );
        assert!(engine.mixed.is_empty(), "an engine was started from files of two sets: {:?}", engine.mixed);
        for folder in ["/usr/bin", "/usr/sbin", crate::sets::ENGINES_DIR] {
            for entry in fs::read_dir(self.host.root.join(folder)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(!name.starts_with('.'), "{folder}/{name} was left behind");
            }
        }
    }
}

fn looks(root: &HostRoot, layout: &Layout) -> BTreeMap<EngineFile, Option<Original>> {
    layout.targets.iter().map(|(&file, target)| (file, original_at(root, target).unwrap())).collect()
}

fn which(sets: &[(Set, Contents)], seen: &Contents) -> Option<Set> {
    sets.iter().find(|(_, contents)| contents == seen).map(|(set, _)| *set)
}

impl Engine {
    /// What systemd is told to do with it.
    fn command(&mut self, asked: &str) -> String {
        match asked {
            "stop" => {
                self.stops += 1;
                self.running = None;
                *self.container.lock().unwrap() = Container { runs: false, paused: false };
            }
            "start" if self.running.is_none() => self.start(),
            "start" | "reset" => {}
            "state" => return if self.running.is_some() { "active" } else { "inactive" }.to_owned(),
            other => return format!("what is `{other}`?"),
        }
        String::new()
    }

    fn start(&mut self) {
        let seen = self.layout.targets.iter().filter_map(|(&file, target)| {
            let text = self.root.read_to_string(target).ok()?;
            Some((file, text))
        });
        let seen: Contents = seen.collect();
        let Some(set) = which(&self.contents, &seen) else {
            self.mixed.push(seen);
            return;
        };
        let log = self.root.join(SWARM_FOLDER).join("raft/wal-v3-encrypted/0.wal");
        writeln!(fs::File::options().append(true).open(log).unwrap(), "{set:?}").unwrap();
        let version = match set {
            Set::Old => OLD_VERSION,
            Set::New if self.new_fails => "0.0.0",
            Set::New => NEW_VERSION,
        };
        let container = Arc::clone(&self.container);
        let answer = move |asked: &str| answer(asked, version, &mut container.lock().unwrap());
        self.running = Some((set, Server::new(&self.root.join(SOCKET), answer)));
    }
}

/// A container that is no swarm task, and that no restart policy brings back.
struct Container {
    runs: bool,
    paused: bool,
}

/// Its ID and its name.
const CONTAINER: &str = "c1";

/// The engine's API, as far as it is asked.
fn answer(request: &str, version: &str, container: &mut Container) -> String {
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    // Below the version of the API.
    let asked: Vec<&str> = path.split('/').skip_while(|part| part.is_empty() || part.starts_with("v1.")).collect();
    let body = match (method, asked.as_slice()) {
        (_, ["_ping"]) => "OK".to_owned(),
        ("GET", ["version"]) => format!(r#"{{"Version":"{version}","ApiVersion":"1.41","MinAPIVersion":"1.12"}}"#),
        ("GET", ["info"]) => r#"{"DockerRootDir":"/var/lib/docker","Swarm":{"NodeID":"n1","LocalNodeState":"active","ControlAvailable":true,
            "RemoteManagers":[{"NodeID":"m1","Addr":"127.0.0.1:2377"}]}}"#
            .to_owned(),
        // Of swarm tasks there are none.
        ("GET", ["containers", "json"]) if container.runs && !query.contains("com.docker.swarm.task.id") => {
            format!(r#"[{{"Id":"{CONTAINER}","Labels":{{}}}}]"#)
        }
        ("GET", ["containers", "json"]) => "[]".to_owned(),
        ("GET", ["containers", CONTAINER, "json"]) => format!(
            r#"{{"Id":"{CONTAINER}","Name":"/{CONTAINER}","State":{{"Running":{},"Paused":{},"StartedAt":"2026-01-01T00:00:00Z"}}}}"#,
            container.runs, container.paused
        ),
        ("POST", ["containers", CONTAINER, act]) => {
            match *act {
                "stop" => *container = Container { runs: false, paused: false },
                "start" => *container = Container { runs: true, paused: false },
                "pause" => container.paused = container.runs,
                other => panic!("the container is told to {other}"),
            }
            return "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n".to_owned();
        }
        (method, asked) => panic!("the engine is asked to {method} {asked:?}"),
    };
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Answers each line that begins a connection, on a thread, until it is dropped.
struct Server {
    at: std::path::PathBuf,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(at: &Path, answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = UnixListener::bind(at).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let serve = move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                // Whoever asks may be gone at any instant: that is what is tried here.
                let _ = stream.and_then(|stream| talk(stream, &answer));
            }
        };
        Self { at: at.to_owned(), over, thread: Some(std::thread::spawn(serve)) }
    }
}

fn talk(mut stream: UnixStream, answer: &dyn Fn(&str) -> String) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let Some(asked) = lines.next().transpose()? else { return Ok(()) };
    if asked.contains(" HTTP/") {
        // The rest of a request's head.
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    }
    stream.write_all(answer(&asked).as_bytes())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.at);
        let _ = fs::remove_file(&self.at);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the server at {} panicked", self.at.display());
        }
    }
}

/// How the executor commands the engine of such a machine.
pub(super) fn control(root: &HostRoot, _layout: &Layout) -> Arc<dyn EngineControl> {
    Arc::new(Asked(root.clone()))
}

struct Asked(HostRoot);

impl Asked {
    fn said(&self, what: &str) -> Result<String, ControlError> {
        let ask = || {
            let mut stream = UnixStream::connect(self.0.join(SYSTEMD))?;
            writeln!(stream, "{what}")?;
            std::io::read_to_string(stream)
        };
        ask().map_err(|error| ControlError::Refused { command: what.to_owned(), stderr: error.to_string() })
    }

    fn ask(&self, what: &str) -> Result<(), ControlError> {
        let stderr = self.said(what)?;
        if stderr.is_empty() { Ok(()) } else { Err(ControlError::Refused { command: what.to_owned(), stderr }) }
    }
}

impl EngineControl for Asked {
    fn reset(&self) -> Result<(), ControlError> {
        self.ask("reset")
    }

    fn stop(&self, _containerd: bool) -> Result<(), ControlError> {
        self.ask("stop")
    }

    fn start(&self) -> Result<(), ControlError> {
        self.ask("start")
    }

    fn state(&self) -> Result<UnitState, ControlError> {
        Ok(UnitState { active: self.said("state")?, restarts: 0, job: true })
    }

    fn host_goes_down(&self) -> bool {
        false
    }

    fn log(&self, _lines: u32) -> Vec<String> {
        Vec::new()
    }
}
