use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::*;
use crate::effect::disk;
use crate::host::files;
use crate::host::testing::{OLD_VERSION, TestHost};
use crate::journal::{Phase, RaftCopy, Work};
use crate::raft_copy::CopyOf;
use crate::swap;

/// A host on which agents have done everything they ever do, and the sets that are its way back.
struct Used {
    host: TestHost,
    backups: Vec<SetId>,
}

/// Bytes that only stay what they are if nobody touches them.
const PRECIOUS: &[u8] = b"somebody else's";

impl Used {
    fn new() -> Self {
        let host = TestHost::new(&[]);
        let store = host.store();
        let old = host.new_set(&[(EngineFile::Dockerd, "older")], "20.10.5");
        let now = store.capture(&host.layout(), OLD_VERSION).unwrap();
        let history = store.history_with(&old, &now).unwrap().unwrap();
        files::replace(&store.dir().join(HISTORY), &history).unwrap();
        symlink(now.0.hex(), store.dir().join(CURRENT)).unwrap();
        host.new_set(&[(EngineFile::Dockerd, "staged and never installed")], "26.1.5");
        let hex = "a".repeat(64);
        for path in [
            "bin/agent-0.1.0-0123456789ab",
            "bin/agent-0.1.new",
            "agent/staged.json",
            "agent/swarm.json",
            "agent/.swarm.json.new",
            "agent/memo",
            "agent/executor.log",
            "agent/executor.log.old",
            "agent/journal.json.damaged",
            &format!("agent/bundles/{hex}.tgz"),
            &format!("agent/bundles/{hex}.part"),
            "engines/.stage/dockerd",
            "engines/.history.json.new",
        ] {
            host.write(&shown(path), b"x", 0o644);
        }
        symlink("nowhere", store.dir().join(".current.new")).unwrap();
        Journal::default().store(&host.root).unwrap();
        drop(lock::take(&host.root).unwrap());
        Self { host, backups: vec![old, now] }
    }

    fn put(&self, path: &str) {
        self.host.write(path, PRECIOUS, 0o644);
    }

    fn clean(&self, backups: bool) -> Vec<Left> {
        let cleaning = clean(&self.host.root, backups);
        let Cleaning::Done { left, more: 0 } = cleaning else { panic!("{cleaning:?}") };
        left
    }

    /// Every path of the host, with what is there.
    fn tree(&self) -> Vec<String> {
        tree(&self.host)
    }

    /// Paths below the agent's folder.
    fn remains(&self) -> Vec<String> {
        let ours = self.tree().into_iter().filter_map(|line| Some(line.strip_prefix("/var/lib/requeen")?.to_owned()));
        ours.filter(|path| !path.is_empty()).collect()
    }
}

fn tree(host: &TestHost) -> Vec<String> {
    fn walk(host: &TestHost, dir: &Path, all: &mut Vec<String>) {
        for (name, kind) in list(dir).unwrap() {
            let path = dir.join(name);
            let told = Path::new("/").join(path.strip_prefix(host.root.prefix()).unwrap()).display().to_string();
            if kind.is_dir() {
                all.push(told);
                walk(host, &path, all);
            } else if kind.is_file() {
                all.push(format!("{told} {:?}", fs::read(&path).unwrap()));
            } else {
                all.push(format!("{told} {kind:?} {:?}", fs::read_link(&path).ok()));
            }
        }
    }
    let mut all = Vec::new();
    walk(host, host.root.prefix(), &mut all);
    all
}

fn unknown(path: &str) -> Left {
    Left::Unknown { path: path.to_owned() }
}

fn engine(host: &TestHost) -> Vec<String> {
    tree(host).into_iter().filter(|path| path.starts_with("/usr")).collect()
}

#[test]
fn all_but_the_way_back_goes() {
    let used = Used::new();
    let engine_before = engine(&used.host);
    let mut paths: Vec<_> = used.backups.iter().map(|set| shown(&format!("{SETS}/{}", set.0.hex()))).collect();
    paths.sort();
    let backups: Vec<_> = paths.into_iter().map(|path| Left::Backup { path }).collect();
    boot::install(&used.host.root, &used.host.layout(), Path::new("/gone"), 9047).unwrap();
    assert_eq!(used.clean(false), backups);
    assert!(!used.tree().iter().any(|path| path.starts_with(boot::UNITS) && path.contains("requeen")));
    let top: Vec<_> = list(&used.host.root.join(STATE_DIR)).unwrap();
    assert_eq!(top.iter().map(|(name, _)| name.to_str().unwrap()).collect::<Vec<_>>(), [SETS]);
    let store = used.host.store();
    for set in &used.backups {
        store.verify(set).unwrap();
    }
    assert_eq!(list(store.dir()).unwrap().len(), 4, "two sets, `current` and the record of installed sets");
    assert_eq!(store.previous(&used.backups[1]).unwrap().as_ref(), Some(&used.backups[0]), "there is a way back");
    assert_eq!(engine(&used.host), engine_before);
    assert_eq!(used.clean(false), backups, "twice the same");
}

#[test]
fn with_the_backups_nothing_is_left() {
    let used = Used::new();
    let engine_before = engine(&used.host);
    assert_eq!(used.clean(true), []);
    assert!(!used.host.root.join(STATE_DIR).exists());
    assert_eq!(engine(&used.host), engine_before, "the engine's files are nobody's links or copies of what went");
    assert_eq!(used.clean(true), []);
    assert!(!used.host.root.join(STATE_DIR).exists(), "nothing is made either");
}

#[test]
fn copies_of_the_swarms_folder_are_a_way_back() {
    for backups in [false, true] {
        let used = Used::new();
        used.host.make_manager();
        let of = |lease: &str| CopyOf {
            lease: lease.into(),
            version: OLD_VERSION.to_owned(),
            data_root: "/var/lib/docker".to_owned(),
        };
        for lease in ["l1", "l2"] {
            raft_copy::keep(&used.host.root, &of(lease), &|| false, &mut disk::make).unwrap();
        }
        let at = |name: &str| shown(&format!("{COPIES}/{name}"));
        used.put(&at(".making/swarm/state.json"));
        used.put(&at("mine/swarm/state.json"));
        used.put(&at(&format!("{}/swarm/note", of("l2").name())));
        let left = used.clean(backups);
        let strange = [at("mine"), at(&of("l2").name())];
        assert!(strange.iter().all(|path| left.contains(&unknown(path))), "{left:?}");
        let kept = Left::Backup { path: at(&of("l1").name()) };
        assert_eq!(left.contains(&kept), !backups, "{left:?}");
        assert_eq!(used.host.root.join(at(&of("l1").name())).exists(), !backups);
        assert!(!used.host.root.join(at(".making")).exists());
        assert!(strange.iter().all(|path| used.host.root.join(path).join("swarm").exists()));
    }
}

#[test]
fn what_nobody_knows_stays_and_is_named() {
    for backups in [false, true] {
        let used = Used::new();
        let set = &used.backups[0].0;
        let kept_set = shown(&format!("{SETS}/{}/notes", set.hex()));
        let strangers = [
            "/var/lib/requeen/agent/bundles/docker.iso",
            "/var/lib/requeen/agent/key.pem",
            "/var/lib/requeen/bin/requeen",
            "/var/lib/requeen/engines/current.bak",
            "/var/lib/requeen/notes.txt",
            "/var/lib/requeen/data",
        ];
        for path in &strangers[..5] {
            used.put(path);
        }
        used.put("/var/lib/requeen/data/db/file");
        used.put(&kept_set);
        used.put("/srv/data/file");
        let before: Vec<_> = used.tree().into_iter().filter(|line| line.contains(&format!("{PRECIOUS:?}"))).collect();
        assert_eq!(before.len(), 8);

        let left = used.clean(backups);
        for path in strangers {
            assert!(left.contains(&unknown(path)), "{path} is not named: {left:?}");
        }
        // A set that stays is looked into by nobody.
        assert_eq!(left.contains(&unknown(&kept_set)), backups, "{left:?}");
        let after: Vec<_> = used.tree().into_iter().filter(|line| line.contains(&format!("{PRECIOUS:?}"))).collect();
        assert_eq!(after, before);
    }
}

#[test]
fn links_are_not_followed() {
    let used = Used::new();
    let hex = "b".repeat(64);
    let precious = [format!("/srv/bundles/{hex}.tgz"), "/srv/programs/agent-1".to_owned()];
    for path in &precious {
        used.put(path);
    }
    used.put(&format!("/srv/engines/{hex}/dockerd"));
    let state = used.host.root.join(STATE_DIR);
    fs::remove_dir_all(state.join(STAGED_BUNDLES)).unwrap();
    fs::remove_dir_all(state.join(PROGRAMS)).unwrap();
    // By paths that lead outside for the kernel and for the host's own root alike.
    symlink("../../../../srv/bundles", state.join(STAGED_BUNDLES)).unwrap();
    symlink("../../../srv/programs", state.join(PROGRAMS)).unwrap();
    symlink(format!("../../../../srv/engines/{hex}"), state.join(SETS).join(&hex)).unwrap();
    symlink("../../../../srv/programs/agent-1", state.join("agent/executor.lock.link")).unwrap();
    let outside = |used: &Used| used.tree().into_iter().filter(|path| path.starts_with("/srv")).collect::<Vec<_>>();
    let before = outside(&used);
    let left = used.clean(true);
    assert_eq!(outside(&used), before);
    for path in ["agent/bundles", "bin", &format!("engines/{hex}"), "agent/executor.lock.link"] {
        assert!(left.contains(&unknown(&shown(path))), "{path} is not named: {left:?}");
        assert!(fs::symlink_metadata(state.join(path)).unwrap().is_symlink());
    }
    assert_eq!(left.len(), 4);
}

#[test]
fn a_folder_that_is_itself_a_link_is_left_alone() {
    let used = Used::new();
    let state = used.host.root.join(STATE_DIR);
    fs::create_dir_all(used.host.root.join("/srv")).unwrap();
    fs::rename(&state, used.host.root.join("/srv/requeen")).unwrap();
    symlink("../../srv/requeen", &state).unwrap();
    let before = used.tree();
    assert_eq!(used.clean(true), [unknown(STATE_DIR)]);
    assert_eq!(used.tree(), before);
}

#[test]
fn an_engine_that_starts_through_links_keeps_its_sets() {
    let used = Used::new();
    let (layout, store) = (used.host.layout(), used.host.store());
    let new = used.host.new_set(&[(EngineFile::Dockerd, "new")], "26.1.5");
    let plan = swap::plan(&used.host.root, &layout, &store, &used.backups[1], &new).unwrap();
    swap::link(&used.host.root, &store, &plan).unwrap();
    let before = used.host.contents(&layout);
    let left = used.clean(true);
    let [Left::Failed { path, why }] = left.as_slice() else { panic!("{left:?}") };
    assert_eq!(path, "/var/lib/requeen/engines");
    assert!(why.contains("is a link into it"), "{why}");
    assert_eq!(used.host.contents(&layout), before);

    // Nor where nobody can tell.
    swap::unlink(&used.host.root, &store, &plan).unwrap();
    let unit = used.host.root.join("/usr/lib/systemd/system/docker.service");
    let hidden = unit.with_extension("hidden");
    fs::rename(&unit, &hidden).unwrap();
    assert!(matches!(used.clean(true).as_slice(), [Left::Failed { .. }]));
    store.verify(&used.backups[1]).unwrap();
    fs::rename(&hidden, &unit).unwrap();
    assert_eq!(used.clean(true), []);
}

#[test]
fn a_record_of_sets_that_does_not_read_is_no_reason_to_remove_any() {
    let used = Used::new();
    fs::write(used.host.store().dir().join(HISTORY), b"{").unwrap();
    let left = used.clean(false);
    let [Left::Failed { path, why }] = left.as_slice() else { panic!("{left:?}") };
    assert_eq!(path, "/var/lib/requeen/engines");
    assert!(why.contains("damaged"), "{why}");
    used.host.store().verify(&used.backups[0]).unwrap();
    assert_eq!(used.clean(true), []);
}

#[test]
fn nothing_is_touched_while_work_is_unfinished() {
    fn refused(used: &Used) -> Problem {
        let before = used.tree();
        let Cleaning::Refused { problem } = clean(&used.host.root, true) else { panic!("not refused") };
        assert_eq!(used.tree(), before);
        problem
    }
    let used = Used::new();
    let held = lock::take(&used.host.root).unwrap().unwrap();
    assert!(refused(&used).what.contains("executor"));
    drop(held);

    let mut journal = Journal::default();
    let work = |phase| Work {
        rollout: "r1".into(),
        lease: "l1".into(),
        epoch: 1,
        boot_id: "b".to_owned(),
        lease_ends_ms: 0,
        from_version: "20.10.24".to_owned(),
        to_version: "26.1.5".to_owned(),
        start_timeout_secs: 60,
        containerd_restart: false,
        plan: None,
        stopped_at_ms: None,
        raft_copy: RaftCopy::NotWanted,
        phase,
    };
    journal.begin(work(Phase::Switching)).unwrap();
    journal.store(&used.host.root).unwrap();
    assert!(refused(&used).what.contains("l1"));

    fs::write(used.host.root.join(JOURNAL_PATH), b"{").unwrap();
    assert!(refused(&used).what.contains("damaged"));

    let mut journal = Journal::default();
    journal.begin(work(Phase::RolledBack { reason: String::new(), engine_down_ms: 1, log: vec![] })).unwrap();
    journal.store(&used.host.root).unwrap();
    assert_eq!(used.clean(true), [], "work that has ended is over");
}

#[test]
fn a_coordinator_that_serves_keeps_what_is_its_own() {
    let used = Used::new();
    let hex = "c".repeat(64);
    let bundle = format!("{BUNDLES}/{hex}.tgz");
    used.host.write(&shown(&bundle), b"x", 0o644);
    used.host.write(&shown(&format!("{BUNDLES}/{RECEIVING}1")), b"x", 0o644);
    let socket = used.host.root.join(shown(SOCKET));
    let listener = UnixListener::bind(&socket).unwrap();
    assert_eq!(used.clean(true), [Left::Coordinator { path: shown(SOCKET) }]);
    assert_eq!(used.remains().iter().filter(|path| path.starts_with("/bundles")).count(), 3);
    assert!(UnixStream::connect(&socket).is_ok());

    drop(listener);
    assert_eq!(used.clean(true), [], "of a dead one nothing is needed");
    assert_eq!(used.remains(), Vec::<String>::new());
}

#[test]
fn what_is_told_fits_into_a_report() {
    let used = Used::new();
    for n in 0..NAMED + 7 {
        used.put(&shown(&format!("note-{n:03}")));
    }
    let Cleaning::Done { left, more } = clean(&used.host.root, true) else { panic!("refused") };
    assert_eq!((left.len(), more), (NAMED, 7));
}

#[test]
fn where_nothing_was_nothing_is_made() {
    let host = TestHost::new(&[]);
    let before = tree(&host);
    for backups in [false, true] {
        assert_eq!(clean(&host.root, backups), Cleaning::Done { left: vec![], more: 0 });
    }
    assert_eq!(tree(&host), before);
}
