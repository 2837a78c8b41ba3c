//! A disk that is full, at every change that needs room, and a journal that can't be written, at every phase.

use std::fs;
use std::path::Path;

use requeen_protocol::EngineFile;

use super::super::Options;
use super::super::work::{After, link_or_not};
use super::*;
use crate::clock::BootTime;
use crate::effect::disk::{self, Change};
use crate::host::testing::{OLD_VERSION, TestHost, work};
use crate::journal::{JOURNAL_PATH, Journal, JournalError, Work};
use crate::sets::Store;
use crate::swap::{self, SwapError, SwapPlan};

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32)
}

/// A disk with room for so many new files. What does not fit is there in part; what needs no room goes on.
fn room_for(files: usize) -> impl FnMut(&Change) -> io::Result<()> {
    let mut left = files;
    move |effect| {
        let takes = |at: &Path, partly: bool| {
            if partly {
                fs::write(at, "par")?;
            }
            Err(no_space())
        };
        match effect {
            Change::Symlink { at, .. } if left == 0 => return takes(at, false),
            Change::Copy { to, .. } if left == 0 => return takes(to, true),
            Change::Write { at, .. } if left == 0 => return takes(at, true),
            Change::CopyData { to, .. } if left == 0 => return takes(to, true),
            Change::MakeFolder { at } if left == 0 => return takes(at, false),
            Change::Symlink { .. }
            | Change::Copy { .. }
            | Change::Write { .. }
            | Change::CopyData { .. }
            | Change::MakeFolder { .. } => left -= 1,
            Change::Own { .. }
            | Change::Mode { .. }
            | Change::Attribute { .. }
            | Change::SyncFile { .. }
            | Change::SyncFolder { .. }
            | Change::Rename { .. }
            | Change::Remove { .. }
            | Change::RemoveTree { .. } => {}
        }
        disk::make(effect)
    }
}

struct Scene {
    host: TestHost,
    store: Store,
    plan: SwapPlan,
}

fn scene() -> Scene {
    let host = TestHost::new(&[]);
    let layout = host.layout();
    let from = host.store().capture(&layout, OLD_VERSION).unwrap();
    let files: Vec<(EngineFile, String)> = EngineFile::ALL.iter().map(|&file| (file, format!("new {file}"))).collect();
    let files: Vec<(EngineFile, &str)> = files.iter().map(|(file, text)| (*file, text.as_str())).collect();
    let to = host.new_set(&files, "26.1.5");
    let plan = swap::plan(&host.root, &layout, &host.store(), &from, &to).unwrap();
    let store = host.store();
    Scene { host, store, plan }
}

impl Scene {
    fn link(&self, room: usize) -> Result<(), SwapError> {
        swap::link_by(&self.host.root, &self.store, &self.plan, &mut room_for(room))
    }

    fn switch(&self, new: bool, room: usize) -> Result<(), SwapError> {
        let to = if new { &self.plan.to } else { &self.plan.from };
        swap::switch_by(&self.host.root, &self.store, &self.plan, to, &mut room_for(room))
    }

    fn settle(&self, room: usize) -> Result<(), SwapError> {
        swap::settle_by(&self.host.root, &self.store, &self.plan, &mut room_for(room))
    }

    fn unlink(&self, room: usize) -> Result<(), SwapError> {
        swap::unlink_by(&self.host.root, &self.store, &self.plan, &mut room_for(room))
    }

    /// Every target holds the file of that set.
    fn assert_holds(&self, which: &str, at: &str) {
        for (file, text) in self.host.contents(&self.host.layout()) {
            assert_eq!(text, format!("{which} {file}"), "{at}");
        }
        assert_eq!(self.host.contents(&self.host.layout()).len(), EngineFile::ALL.len(), "{at}");
    }

    fn assert_nothing_beside(&self, at: &str) {
        for file in &self.plan.files {
            let target = self.host.root.join(&file.target);
            let names = fs::read_dir(target.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
            let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with('.')).collect();
            assert!(left.is_empty(), "{at}: {left:?}");
        }
    }

    fn links(&self) -> usize {
        let is_link = |file: &&swap::SwapFile| {
            let through = fs::read_link(self.host.root.join(&file.target));
            through.is_ok_and(|to| to.to_string_lossy().contains("/current/"))
        };
        self.plan.files.iter().filter(is_link).count()
    }
}

/// Takes a step with room for none, one, two … new files until it comes to its end, which it must not at once.
fn at_every_room(mut step: impl FnMut(usize) -> Result<(), SwapError>) {
    for room in 0.. {
        match step(room) {
            Ok(()) => {
                assert!(room > 0, "nothing needed room");
                return;
            }
            Err(error) => assert!(is_full(&error), "{error:?}"),
        }
    }
}

#[test]
fn links_that_find_no_room_leave_the_old_files_and_the_reason() {
    let (mut back, mut later) = (0, 0);
    for (room, room_back) in (0..40).flat_map(|room| [(room, 0), (room, usize::MAX)]) {
        let scene = scene();
        let at = format!("room for {room}, then for {room_back}");
        match link_or_not(&mut || scene.link(room), &mut || scene.unlink(room_back)) {
            After::Phase(Phase::Linked) => assert_eq!(scene.links(), scene.plan.files.len(), "{at}"),
            After::Phase(Phase::RolledBack { reason, .. }) => {
                assert!(reason.contains("No space left on device"), "{reason}");
                assert_eq!(scene.links(), 0, "{at}");
                back += 1;
            }
            After::Later(why) => {
                assert!(why.what.contains("No space left on device") && why.hint.contains("make room"), "{why:?}");
                later += 1;
                scene.link(usize::MAX).unwrap();
            }
            other @ (After::Phase(_) | After::Down { .. } | After::Nothing | After::HostGoesDown) => {
                panic!("{at}: {other:?}")
            }
        }
        scene.assert_holds("old", &at);
    }
    assert!(back > 5 && later > 5, "{back} went back, {later} wait");
}

#[test]
fn a_switch_that_finds_no_room_leaves_the_old_set_and_the_way_back_needs_none() {
    at_every_room(|room| {
        let scene = scene();
        scene.link(usize::MAX).unwrap();
        let switched = scene.switch(true, room);
        if switched.is_err() {
            scene.assert_holds("old", "not switched");
            scene.switch(false, 0).unwrap();
            scene.assert_holds("old", "back");
        }
        switched
    });
    at_every_room(|room| {
        let scene = scene();
        scene.link(usize::MAX).unwrap();
        scene.switch(true, usize::MAX).unwrap();
        let back = scene.switch(false, room);
        scene.assert_holds(if back.is_ok() { "old" } else { "new" }, "on the way back");
        back
    });
}

#[test]
fn files_that_find_no_room_to_be_plain_are_of_one_set_and_nothing_half_made_stays() {
    for new in [true, false] {
        at_every_room(|room| {
            let scene = scene();
            let (which, at) = (if new { "new" } else { "old" }, format!("room for {room}"));
            scene.link(usize::MAX).unwrap();
            if new {
                scene.switch(true, usize::MAX).unwrap();
            }
            let plain = |room| if new { scene.settle(room) } else { scene.unlink(room) };
            let settled = plain(room);
            scene.assert_holds(which, &at);
            if settled.is_err() {
                swap::clear_beside(&scene.host.root, &scene.plan).unwrap();
                scene.assert_holds(which, &at);
                scene.assert_nothing_beside(&at);
                plain(usize::MAX).unwrap();
            }
            scene.assert_holds(which, &at);
            scene.assert_nothing_beside(&at);
            assert_eq!(scene.links(), 0, "{at}");
            settled
        });
    }
}

#[test]
fn what_is_full_is_told_from_what_is_broken() {
    let write = |errno: nix::errno::Errno| JournalError::Write(io::Error::from_raw_os_error(errno as i32));
    assert!(is_full(&write(nix::errno::Errno::ENOSPC)) && is_full(&write(nix::errno::Errno::EDQUOT)));
    assert!(!is_full(&write(nix::errno::Errno::EIO)) && !is_full(&JournalError::NoWork));
}

/// In the way of every journal that is to be written.
struct Obstacle(std::path::PathBuf);

impl Obstacle {
    fn new(host: &TestHost) -> Self {
        let journal = host.root.join(JOURNAL_PATH);
        let at = journal.with_file_name(".journal.json.new");
        fs::create_dir_all(at.join("in the way")).unwrap();
        Self(at)
    }

    fn remove(self) {
        fs::remove_dir_all(self.0).unwrap();
    }
}

/// An executor whose work stands at `phase`, on disk too.
fn with_executor(phase: Phase, run: impl FnOnce(&Scene, &mut Executor<'_>)) {
    let scene = scene();
    if phase != Phase::Leased {
        scene.link(usize::MAX).unwrap();
    }
    if matches!(phase, Phase::Starting | Phase::Verifying | Phase::Running { .. }) {
        scene.switch(true, usize::MAX).unwrap();
    }
    scene.host.write("/proc/sys/kernel/random/boot_id", b"boot\n", 0o644);
    let mut journal = Journal::default();
    journal.work = Some(Work { plan: Some(scene.plan.clone()), phase, ..work("l1", 1) });
    journal.store(&scene.host.root).unwrap();
    let control = crate::engine::control;
    let options = Options { root: scene.host.root.clone(), port: 1, clock: || BootTime(0), chance: || 0, control };
    let mut executor = Executor::begin(&options).unwrap();
    assert!(executor.damaged.is_none());
    run(&scene, &mut executor);
}

fn on_disk(scene: &Scene) -> Phase {
    Journal::load(&scene.host.root).unwrap().work.unwrap().phase
}

#[test]
fn before_the_stop_nothing_is_begun_that_the_journal_does_not_say() {
    for (phase, next) in [
        (Phase::Leased, Phase::Linking),
        (Phase::Linked, Phase::Stopping { permit: "p".into() }),
        (Phase::Linked, Phase::Unlinking),
    ] {
        with_executor(phase.clone(), |scene, executor| {
            let obstacle = Obstacle::new(&scene.host);
            executor.go(next.clone());
            assert_eq!(executor.journal.work.as_ref().unwrap().phase, phase, "{next:?}");
            assert!(executor.work.is_none(), "{next:?} was begun");
            assert!(executor.troubles.iter().any(|trouble| trouble.what.contains("journal")), "nobody is told");
            obstacle.remove();
            executor.write_again();
            assert_eq!((executor.troubles.len(), on_disk(scene)), (0, phase.clone()));
            executor.go(next.clone());
            assert!(executor.work.is_some() && on_disk(scene) == next, "{next:?}");
        });
    }
}

#[test]
fn after_the_stop_the_engine_comes_first_and_plain_files_wait_for_the_journal() {
    let (reason, log, engine_down_ms) = ("exit 1".to_owned(), Vec::new(), 5);
    let starting_old = Phase::StartingOld { reason: reason.clone(), log: log.clone() };
    let settling_old = Phase::SettlingOld { reason: reason.clone(), engine_down_ms, log: log.clone() };
    for (phase, next, waits) in [
        (Phase::Starting, Phase::Verifying, false),
        (Phase::Verifying, Phase::Joining { engine_down_ms }, false),
        (Phase::Verifying, Phase::SwitchingBack { reason, log }, false),
        (Phase::Running { engine_down_ms }, Phase::SettlingNew { engine_down_ms }, true),
        (starting_old, settling_old, true),
    ] {
        with_executor(phase.clone(), |scene, executor| {
            let obstacle = Obstacle::new(&scene.host);
            executor.go(next.clone());
            assert_eq!(executor.journal.work.as_ref().unwrap().phase, next);
            assert_eq!(executor.work.is_none(), waits, "{next:?}");
            assert_eq!((executor.troubles.len(), on_disk(scene)), (1, phase));
            executor.write_again();
            assert_eq!(executor.work.is_none(), waits, "{next:?} before there was room");
            obstacle.remove();
            executor.write_again();
            assert!(executor.work.is_some(), "{next:?} never goes on");
            assert_eq!((executor.troubles.len(), on_disk(scene)), (0, next));
        });
    }
}
