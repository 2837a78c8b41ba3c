use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use super::*;
use crate::effect::disk;
use crate::host::testing::{SWARM_FOLDER, TestHost};

const ROOT: &str = "/var/lib/docker";

fn of(lease: &str) -> CopyOf {
    CopyOf { lease: lease.into(), version: "26.1.5+dfsg1".to_owned(), data_root: ROOT.to_owned() }
}

fn manager() -> TestHost {
    let host = TestHost::new(&[]);
    host.make_manager();
    fs::create_dir_all(host.root.join(STATE_DIR)).unwrap();
    host
}

fn in_time() -> bool {
    false
}

fn copy(host: &TestHost, lease: &str) -> Result<(), CopyError> {
    keep(&host.root, &of(lease), &in_time, &mut disk::make)
}

/// What a whole work does: the copy, and later the end of its rollout.
fn copy_and_tidy(host: &TestHost, lease: &str, act: Actor<'_>) -> Result<(), CopyError> {
    keep(&host.root, &of(lease), &in_time, act)?;
    Ok(tidy(&host.root, Some(&format!("{COPIES_DIR}/{}", of(lease).name())), act)?)
}

/// What is below a folder: content of files, nothing of folders.
fn tree(at: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    fn walk(at: &Path, base: &Path, all: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(base).unwrap().to_owned();
            if path.is_dir() {
                all.insert(name, None);
                walk(&path, base, all);
            } else {
                all.insert(name, Some(fs::read(&path).unwrap()));
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(at, at, &mut all);
    all
}

fn names(host: &TestHost) -> Vec<String> {
    let dir = host.root.join(COPIES_DIR);
    if !dir.exists() {
        return Vec::new();
    }
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn assert_whole(host: &TestHost, lease: &str) {
    let kept = find(&host.root, &of(lease)).unwrap();
    assert_eq!(tree(&host.root.join(&kept).join("swarm")), tree(&host.root.join(SWARM_FOLDER)));
}

#[test]
fn a_copy_has_all_that_a_restored_manager_needs_and_is_roots_alone() {
    let host = manager();
    let key = host.root.join(SWARM_FOLDER).join("certificates/swarm-node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    // Only root may give a file away.
    let others = chown(&key, Some(4711), Some(4712)).is_ok();
    copy(&host, "20261121-2e8b3cc2.n1.1").unwrap();
    let kept = find(&host.root, &of("20261121-2e8b3cc2.n1.1")).unwrap();
    assert_eq!(kept, "/var/lib/requeen/raft-copies/20261121-2e8b3cc2.n1.1_26.1.5+dfsg1");
    assert_whole(&host, "20261121-2e8b3cc2.n1.1");
    let copy = host.root.join(&kept);
    assert_eq!(Record::read(&copy).unwrap().bytes, look(&host.root, ROOT).unwrap());
    for (path, content) in tree(&host.root.join(COPIES_DIR)) {
        let mode = fs::metadata(host.root.join(COPIES_DIR).join(&path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if content.is_some() { 0o600 } else { 0o700 }, "{path:?}");
    }
    if others {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(copy.join("swarm/certificates/swarm-node.key")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (4711, 4712));
    }
    for needed in ["raft/wal-v3-encrypted/0.wal", "certificates/swarm-node.key", "state.json", "docker-state.json"] {
        assert!(copy.join("swarm").join(needed).is_file(), "{needed}");
    }
}

#[test]
fn a_copy_that_is_there_is_not_made_again() {
    let host = manager();
    copy(&host, "l1").unwrap();
    let before = tree(&host.root.join(COPIES_DIR));
    host.write(&format!("{SWARM_FOLDER}/raft/wal-v3-encrypted/0.wal"), b"the new engine wrote", 0o600);
    let mut done = Vec::new();
    let mut act = |change: &Change| {
        done.push(change.clone());
        disk::make(change)
    };
    keep(&host.root, &of("l1"), &in_time, &mut act).unwrap();
    // Its name may have been all that an executor left undone.
    assert_eq!(done, [Change::SyncFolder { at: host.root.join(COPIES_DIR) }]);
    assert_eq!(tree(&host.root.join(COPIES_DIR)), before);
}

/// How many changes a copy takes, when two others have to be kept and one removed.
fn changes(host: &TestHost) -> usize {
    let mut count = 0;
    let mut act = |change: &Change| {
        count += 1;
        disk::make(change)
    };
    copy_and_tidy(host, "new", &mut act).unwrap();
    count
}

fn full() -> TestHost {
    let host = manager();
    for lease in ["old-1", "old-2", "old-3"] {
        copy(&host, lease).unwrap();
    }
    host
}

#[test]
fn stopped_after_each_change_it_is_whole_or_none_and_done_again_it_is_whole() {
    let all = changes(&full());
    assert!(all > 30, "{all}");
    for stopped in 0..all {
        let host = full();
        let mut left = stopped;
        let mut act = |change: &Change| {
            if left == 0 {
                return Err(io::Error::other("stopped"));
            }
            left -= 1;
            disk::make(change)
        };
        copy_and_tidy(&host, "new", &mut act).unwrap_err();
        if find(&host.root, &of("new")).is_some() {
            assert_whole(&host, "new");
        } else {
            assert_eq!(own(&host.root).unwrap().len(), KEPT, "{stopped}: old ones go only for a new one");
        }
        copy_and_tidy(&host, "new", &mut disk::make).unwrap();
        assert_whole(&host, "new");
        assert_eq!(names(&host), ["new", "old-2", "old-3"].map(|lease| of(lease).name()), "{stopped}");
    }
}

#[test]
fn a_disk_that_is_full_gets_its_room_back() {
    let all = changes(&full());
    for failing in 0..all {
        let host = full();
        let mut left = failing;
        let mut act = |change: &Change| {
            let (Change::CopyData { to: at, .. } | Change::Write { at, .. }) = change else {
                return disk::make(change);
            };
            if left == 0 {
                left = usize::MAX;
                fs::write(at, "par")?;
                return Err(io::ErrorKind::StorageFull.into());
            }
            left -= 1;
            disk::make(change)
        };
        match keep(&host.root, &of("new"), &in_time, &mut act) {
            Ok(()) => assert_whole(&host, "new"),
            Err(CopyError::Write(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                assert_eq!(names(&host).len(), KEPT, "nothing half made stays, and nothing else goes");
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn everything_is_on_disk_before_it_has_its_name() {
    let host = manager();
    let mut done = Vec::new();
    let mut act = |change: &Change| {
        done.push(change.clone());
        disk::make(change)
    };
    keep(&host.root, &of("l1"), &in_time, &mut act).unwrap();
    let named = done.iter().position(|change| matches!(change, Change::Rename { .. })).unwrap();
    let Change::Rename { to, .. } = &done[named] else { unreachable!() };
    assert_eq!(done[named + 1..], [Change::SyncFolder { at: to.parent().unwrap().to_owned() }]);
    let synced = |made: usize, by: Change| done[made..named].contains(&by);
    for (made, change) in done[..named].iter().enumerate() {
        match change {
            Change::CopyData { to: at, .. } | Change::Write { at, .. } => {
                assert!(synced(made, Change::SyncFile { at: at.clone() }), "{at:?} may be torn");
                assert!(synced(made, Change::SyncFolder { at: at.parent().unwrap().to_owned() }), "{at:?} may be lost");
            }
            Change::MakeFolder { at } => {
                let above = if at.ends_with(MAKING) { at } else { at.parent().unwrap() };
                assert!(synced(made, Change::SyncFolder { at: above.to_owned() }), "{at:?} may be lost");
            }
            Change::Own { .. } | Change::Mode { .. } | Change::SyncFile { .. } | Change::SyncFolder { .. } => {}
            other @ (Change::Symlink { .. }
            | Change::Copy { .. }
            | Change::Attribute { .. }
            | Change::Rename { .. }
            | Change::Remove { .. }
            | Change::RemoveTree { .. }) => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_oldest_of_our_own_go_and_nobody_elses() {
    let host = manager();
    let at = |name: &str| host.root.join(COPIES_DIR).join(name);
    for lease in ["l1", "l2", "l3"] {
        copy(&host, lease).unwrap();
    }
    // Renamed, looked into, brought here, and a link: not ours any more, or never.
    fs::rename(at(&of("l1").name()), at("before-the-migration")).unwrap();
    fs::write(at(&of("l2").name()).join("swarm/note.txt"), "ours").unwrap();
    host.write(&format!("{COPIES_DIR}/backup/swarm/state.json"), b"theirs", 0o600);
    symlink("backup", at("link")).unwrap();
    let foreign = || names(&host).into_iter().filter(|name| !name.starts_with(['l']) || name == "link").count();
    assert_eq!(foreign(), 3);
    for lease in ["l4", "l5", "l6", "l7"] {
        copy_and_tidy(&host, lease, &mut disk::make).unwrap();
        assert_whole(&host, lease);
    }
    assert_eq!(own(&host.root).unwrap(), ["l5", "l6", "l7"].map(|lease| of(lease).name()));
    assert_eq!(foreign(), 3, "{:?}", names(&host));
    assert!(at(&of("l2").name()).join("swarm/note.txt").exists(), "somebody has put something there");
    assert!(!at(&of("l3").name()).exists());
}

#[test]
fn a_clock_that_was_set_back_takes_no_new_copy() {
    let host = full();
    copy(&host, "new").unwrap();
    let record = host.root.join(COPIES_DIR).join(of("new").name()).join(RECORD);
    fs::File::options().append(true).open(record).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    copy_and_tidy(&host, "new", &mut disk::make).unwrap();
    assert_eq!(names(&host), ["new", "old-2", "old-3"].map(|lease| of(lease).name()));
}

#[test]
fn a_folder_that_is_too_large_is_refused_before_and_left_alone_at_the_moment() {
    let host = manager();
    let log = host.root.join(SWARM_FOLDER).join("raft/wal-v3-encrypted/1.wal");
    let beside = look(&host.root, ROOT).unwrap();
    fs::File::create(&log).unwrap().set_len(MAX_BYTES - beside).unwrap();
    assert_eq!(look(&host.root, ROOT).unwrap(), MAX_BYTES);
    fs::File::options().write(true).open(&log).unwrap().set_len(MAX_BYTES - beside + 1).unwrap();
    for refused in [look(&host.root, ROOT).map(drop), copy(&host, "l1")] {
        let error = refused.unwrap_err();
        assert!(matches!(error, CopyError::TooLarge { bytes, .. } if bytes == MAX_BYTES + 1), "{error}");
        let said = error.problem();
        assert!(said.what.contains("/var/lib/docker/swarm holds 1025 MiB, and at most 1024 MiB"), "{said:?}");
        assert!(said.hint.contains("--keep-raft-copy"), "{said:?}");
    }
    assert_eq!(names(&host), Vec::<String>::new());
}

#[test]
fn a_copy_that_takes_too_long_is_given_up() {
    let host = manager();
    let looks = std::cell::Cell::new(0);
    let late = || looks.replace(looks.get() + 1) == 4;
    let given_up = keep(&host.root, &of("l1"), &late, &mut disk::make);
    assert!(matches!(given_up, Err(CopyError::TooSlow)), "{given_up:?}");
    assert_eq!(names(&host), Vec::<String>::new());
}

#[test]
fn what_changes_meanwhile_is_no_copy() {
    let host = manager();
    let log = host.root.join(SWARM_FOLDER).join("raft/wal-v3-encrypted/0.wal");
    let mut act = |change: &Change| {
        disk::make(change)?;
        if matches!(change, Change::CopyData { from, .. } if *from == log) {
            io::Write::write_all(&mut fs::File::options().append(true).open(&log)?, b"more")?;
        }
        Ok(())
    };
    let changed = keep(&host.root, &of("l1"), &in_time, &mut act);
    assert!(matches!(changed, Err(CopyError::Changed(_))), "{changed:?}");
    assert_eq!(names(&host), Vec::<String>::new());
}

#[test]
fn only_managers_have_something_to_copy_and_links_in_it_are_refused() {
    let host = manager();
    assert!(look(&host.root, ROOT).unwrap() > 0);
    let raft = host.root.join(SWARM_FOLDER).join("raft");
    fs::rename(&raft, host.root.join("/srv-raft")).unwrap();
    symlink("/srv-raft", &raft).unwrap();
    for refused in [look(&host.root, ROOT).map(drop), copy(&host, "l1")] {
        let error = refused.unwrap_err();
        assert!(matches!(&error, CopyError::Odd(path) if path.ends_with("swarm/raft")), "{error}");
    }
    host.certify("swarm-worker");
    assert_eq!(look(&host.root, ROOT).unwrap(), 0);
    fs::remove_file(host.root.join(SWARM_FOLDER).join("certificates/swarm-node.crt")).unwrap();
    assert!(matches!(look(&host.root, ROOT), Err(CopyError::Role(_))));
}

#[test]
fn a_folder_elsewhere_is_copied_from_there() {
    let host = manager();
    let folder = host.root.join(SWARM_FOLDER);
    fs::create_dir(host.root.join("/srv")).unwrap();
    fs::rename(&folder, host.root.join("/srv/swarm")).unwrap();
    symlink("/srv/swarm", &folder).unwrap();
    copy(&host, "l1").unwrap();
    let kept = find(&host.root, &of("l1")).unwrap();
    assert_eq!(tree(&host.root.join(&kept).join("swarm")), tree(&host.root.join("/srv/swarm")));
}
