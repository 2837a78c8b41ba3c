//! Boots in every phase of a node's work, on a temporary root.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::*;
use crate::effect::disk::{self, Change};
use crate::host::testing::{OLD_VERSION, TestHost, work};
use crate::sets::SetId;
use crate::swap::SwapPlan;

/// Files of the engine, and all of them.
type Contents = BTreeMap<EngineFile, String>;

/// A host on which a new set is staged.
struct Scene {
    host: TestHost,
    plan: SwapPlan,
    old: Contents,
    new: Contents,
}

fn scene() -> Scene {
    let host = TestHost::new(&[]);
    let layout = host.layout();
    let old = host.contents(&layout);
    let from = host.store().capture(&layout, OLD_VERSION).unwrap();
    let new: Contents = EngineFile::ALL.iter().map(|&file| (file, format!("new {file}"))).collect();
    let files: Vec<(EngineFile, &str)> = new.iter().map(|(file, text)| (*file, text.as_str())).collect();
    let to: SetId = host.new_set(&files, "26.1.5");
    let plan = swap::plan(&host.root, &layout, &host.store(), &from, &to).unwrap();
    Scene { host, plan, old, new }
}

impl Scene {
    fn contents(&self) -> Contents {
        self.host.contents(&self.host.layout())
    }

    fn link(&self) {
        swap::link(&self.host.root, &self.host.store(), &self.plan).unwrap();
    }

    fn switch(&self) {
        swap::switch(&self.host.root, &self.host.store(), &self.plan, &self.plan.to).unwrap();
    }

    /// The power fails in this phase.
    fn cut_in(&self, phase: Phase) {
        let mut journal = Journal::default();
        let plan = Some(self.plan.clone());
        journal.work = Some(Work { plan, stopped_at_ms: Some(7), phase, ..work("l1", 1) });
        journal.store(&self.host.root).unwrap();
    }

    /// Boots twice: the second time the power failed just after the first recovery.
    fn boot(&self) -> Option<Work> {
        recover(&self.host.root).unwrap();
        let first = Journal::load(&self.host.root).unwrap();
        let contents = self.contents();
        recover(&self.host.root).unwrap();
        assert_eq!(Journal::load(&self.host.root).unwrap(), first);
        assert_eq!(self.contents(), contents);
        first.work
    }

    fn is_plain(&self) -> bool {
        let link = |file: &swap::SwapFile| file.original.as_ref().is_some_and(|it| it.was_symlink_to.is_some());
        let is_link = |at: PathBuf| fs::symlink_metadata(at).is_ok_and(|meta| meta.is_symlink());
        self.plan.files.iter().all(|file| link(file) == is_link(self.host.root.join(&file.target)))
    }
}

fn permit() -> Phase {
    Phase::Stopping { permit: "p".into() }
}

#[test]
fn before_the_stop_everything_is_as_it_was() {
    for phase in [Phase::Leased, Phase::Linking, Phase::Linked, Phase::Unlinking] {
        let scene = scene();
        if phase != Phase::Leased {
            scene.link();
        }
        scene.cut_in(phase.clone());
        assert_eq!(scene.boot(), None, "{phase:?}");
        assert_eq!(scene.contents(), scene.old, "{phase:?}");
        assert!(scene.is_plain(), "{phase:?}");
    }
}

#[test]
fn a_set_that_was_not_proved_healthy_is_switched_back() {
    for (phase, switched) in [
        (permit(), false),
        (permit(), true),
        (Phase::Switching, true),
        (Phase::Starting, true),
        (Phase::Verifying, true),
    ] {
        let scene = scene();
        scene.link();
        if switched {
            scene.switch();
        }
        scene.cut_in(phase.clone());
        let work = scene.boot().unwrap();
        assert_eq!(work.phase, Phase::StartingOld { reason: WENT_DOWN.to_owned(), log: Vec::new() }, "{phase:?}");
        assert_eq!(work.stopped_at_ms, None, "a time of another boot");
        assert_eq!(scene.contents(), scene.old, "{phase:?}");
    }
}

/// What the executor does to the files in a phase.
#[derive(Clone, Copy, Debug)]
enum Doing {
    Link,
    Switch,
    SwitchBack,
    Settle,
    Unlink,
}

/// An actor that is out of power after so many changes.
fn until(budget: usize) -> impl FnMut(&Change) -> io::Result<()> {
    let mut left = budget;
    move |change| {
        left = left.checked_sub(1).ok_or(io::ErrorKind::Interrupted)?;
        disk::make(change)
    }
}

impl Scene {
    /// Whether it came to its end.
    fn act(&self, doing: Doing, budget: usize) -> bool {
        let (root, store, plan) = (&self.host.root, &self.host.store(), &self.plan);
        let mut act = until(budget);
        match doing {
            Doing::Link => swap::link_by(root, store, plan, &mut act),
            Doing::Switch => swap::switch_by(root, store, plan, &plan.to, &mut act),
            Doing::SwitchBack => swap::switch_by(root, store, plan, &plan.from, &mut act),
            Doing::Settle => swap::settle_by(root, store, plan, &mut act),
            Doing::Unlink => swap::unlink_by(root, store, plan, &mut act),
        }
        .is_ok()
    }
}

/// The power fails between every two changes of each phase, and fails again between every two changes of the recovery.
#[test]
fn the_power_fails_at_any_instant_and_again_in_the_recovery() {
    let (reason, log, engine_down_ms) = ("exit 1".to_owned(), Vec::new(), 5);
    let switching_back = Phase::SwitchingBack { reason: reason.clone(), log: log.clone() };
    let settling_old = Phase::SettlingOld { reason, engine_down_ms, log };
    let settling_new = Phase::SettlingNew { engine_down_ms };
    let mut boots = 0;
    for (phase, before, doing, is_new) in [
        (Phase::Linking, &[][..], Doing::Link, false),
        (Phase::Unlinking, &[Doing::Link][..], Doing::Unlink, false),
        (permit(), &[Doing::Link], Doing::Switch, false),
        (switching_back, &[Doing::Link, Doing::Switch], Doing::SwitchBack, false),
        (settling_old, &[Doing::Link], Doing::Unlink, false),
        (settling_new, &[Doing::Link, Doing::Switch], Doing::Settle, true),
    ] {
        let cut = |budget| {
            let scene = scene();
            assert!(before.iter().all(|&done| scene.act(done, usize::MAX)));
            scene.cut_in(phase.clone());
            let ended = scene.act(doing, budget);
            (scene, ended)
        };
        for budget in 0.. {
            let (_, ended) = cut(budget);
            for again in 0.. {
                let (scene, _) = cut(budget);
                let mut act = until(again);
                let mut all = true;
                // Out of power, it may go on with what it can do without another change: that counts too.
                let _ = recover_by(&scene.host.root, &mut |change| act(change).inspect_err(|_| all = false));
                let at = format!("{phase:?}, stopped after {budget} changes, its recovery after {again}");
                let expected = if is_new { &scene.new } else { &scene.old };
                let work = scene.boot();
                assert_eq!(scene.contents(), *expected, "{at}");
                let left = if is_new { Doing::Settle } else { Doing::Unlink };
                assert!(work.is_none() || scene.act(left, usize::MAX), "{at}: the executor can't go on");
                assert_eq!(scene.contents(), *expected, "{at}, in the end");
                assert!(is_new || scene.is_plain(), "{at}: links are left");
                boots += 1;
                if all {
                    break;
                }
            }
            if ended {
                break;
            }
        }
    }
    assert!(boots > 500, "only {boots} boots: nothing was done");
}

#[test]
fn the_reason_to_go_back_is_kept() {
    let (reason, log) = ("exit 1".to_owned(), vec!["it failed".to_owned()]);
    let old = Phase::StartingOld { reason: reason.clone(), log: log.clone() };
    for phase in [Phase::SwitchingBack { reason, log }, old.clone()] {
        let scene = scene();
        scene.link();
        scene.cut_in(phase);
        assert_eq!(scene.boot().unwrap().phase, old);
        assert_eq!(scene.contents(), scene.old);
    }
}

#[test]
fn a_set_that_was_proved_healthy_stays() {
    for phase in [
        Phase::Joining { engine_down_ms: 5 },
        Phase::Running { engine_down_ms: 5 },
        Phase::SettlingNew { engine_down_ms: 5 },
    ] {
        let scene = scene();
        scene.link();
        scene.switch();
        scene.cut_in(phase.clone());
        assert_eq!(scene.boot().unwrap().phase, phase);
        assert_eq!(scene.contents(), scene.new);
    }
}

#[test]
fn a_journal_that_cannot_be_trusted_keeps_the_engine_down() {
    let scene = scene();
    scene.link();
    for text in ["{\"schema\":1", "{\"schema\":2}", ""] {
        scene.host.write(JOURNAL_PATH, text.as_bytes(), 0o600);
        assert!(matches!(recover(&scene.host.root), Err(RecoverError::Journal(_))), "{text:?}");
        assert_eq!(scene.contents(), scene.old);
        assert_eq!(fs::read_to_string(scene.host.root.join(JOURNAL_PATH)).unwrap(), text);
    }
    assert!(crate::boot::recovery_hint(&scene.host.root).contains(crate::boot::RECOVER_UNIT));
}

#[test]
fn a_current_that_is_neither_set_keeps_the_engine_down() {
    let scene = scene();
    scene.link();
    let current = scene.host.store().dir().join(crate::sets::CURRENT);
    fs::remove_file(&current).unwrap();
    scene.cut_in(permit());
    assert!(matches!(recover(&scene.host.root), Err(RecoverError::Doubt(Doubt::Current { .. }))));
}

#[test]
fn a_living_executor_is_left_alone() {
    let scene = scene();
    scene.link();
    scene.switch();
    scene.cut_in(Phase::Verifying);
    let lock = lock::take(&scene.host.root).unwrap();
    recover(&scene.host.root).unwrap();
    assert_eq!(scene.contents(), scene.new);
    drop(lock);
    recover(&scene.host.root).unwrap();
    assert_eq!(scene.contents(), scene.old);
}

#[test]
fn a_host_without_work_just_boots() {
    let host = TestHost::new(&[]);
    recover(&host.root).unwrap();
}
