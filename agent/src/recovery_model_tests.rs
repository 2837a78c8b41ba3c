//! A node's work is done once, and every change of the disk is noted. For each point of it a [`Model`] says what may be on disk
//! after a power cut there. Each such state is made on a temporary root, the node boots, and its work goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::effect::disk::{self, Change};
use crate::effect::model::{Left, Model, State};
use crate::host::testing::{OLD_VERSION, TestHost, work};

type Contents = BTreeMap<EngineFile, String>;
/// How the work goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    Upgraded,
    RolledBack,
    TakenBack,
}

const STORIES: [Story; 3] = [Story::Upgraded, Story::RolledBack, Story::TakenBack];

/// A node's work, as it was done.
struct Scene {
    host: TestHost,
    plan: SwapPlan,
    old: Contents,
    new: Contents,
    story: Story,
    before: Model,
    tape: Vec<Change>,
    /// Between these two points of the tape the journal comes to say that the new engine was verified.
    proved: (usize, usize),
}

fn scene(story: Story) -> Scene {
    let host = TestHost::new(&[EngineFile::DockerProxy]);
    let (layout, store, root) = (host.layout(), host.store(), host.root.clone());
    let old = host.contents(&layout);
    let from = store.capture(&layout, OLD_VERSION).unwrap();
    let new: Contents = EngineFile::ALL
        .iter()
        .filter(|file| **file != EngineFile::Ctr)
        .map(|&file| (file, format!("new {file}")))
        .collect();
    let files: Vec<_> = new.iter().map(|(file, text)| (*file, text.as_str())).collect();
    let to = host.new_set(&files, "26.1.5");
    let plan = swap::plan(&root, &layout, &store, &from, &to).unwrap();
    fs::create_dir_all(root.join(JOURNAL_PATH).parent().unwrap()).unwrap();

    let folders = ["/usr/bin", "/usr/sbin", crate::sets::ENGINES_DIR, "/var/lib/requeen/agent"].map(|at| root.join(at));
    let before = Model::read(&folders);
    let mut tape = Vec::new();
    let mut proved = (usize::MAX, usize::MAX);
    let mut journal = Journal::default();
    journal.begin(work("l1", 1)).unwrap();
    let (reason, log, engine_down_ms) = (String::new(), Vec::new(), 5);
    let way = match story {
        Story::Upgraded => vec![
            Phase::Joining { engine_down_ms },
            Phase::Running { engine_down_ms },
            Phase::SettlingNew { engine_down_ms },
            Phase::Upgraded { engine_down_ms, set: to.clone() },
        ],
        Story::RolledBack => vec![
            Phase::SwitchingBack { reason: reason.clone(), log: log.clone() },
            Phase::StartingOld { reason: reason.clone(), log: log.clone() },
            Phase::SettlingOld { reason: reason.clone(), engine_down_ms, log: log.clone() },
            Phase::RolledBack { reason, engine_down_ms, log },
        ],
        Story::TakenBack => vec![Phase::Unlinking],
    };
    let begin = [Phase::Leased, Phase::Linking, Phase::Linked];
    let stop = [Phase::Stopping { permit: "p".into() }, Phase::Switching, Phase::Starting, Phase::Verifying];
    let stop = if story == Story::TakenBack { Vec::new() } else { stop.to_vec() };
    for phase in begin.into_iter().chain(stop).chain(way) {
        let mut act = |change: &Change| {
            tape.push(change.clone());
            disk::make(change)
        };
        if phase == Phase::Linking {
            journal.work.as_mut().unwrap().plan = Some(plan.clone());
        }
        journal.advance(phase.clone()).unwrap();
        // As the executor does: these two are not written.
        if !matches!(phase, Phase::Switching | Phase::Starting) {
            journal.store_by(&root, &mut act).unwrap();
        }
        match phase {
            Phase::Linking => swap::link_by(&root, &store, &plan, &mut act).unwrap(),
            Phase::Switching => swap::switch_by(&root, &store, &plan, &to, &mut act).unwrap(),
            Phase::SwitchingBack { .. } => swap::switch_by(&root, &store, &plan, &from, &mut act).unwrap(),
            Phase::Unlinking | Phase::SettlingOld { .. } => swap::unlink_by(&root, &store, &plan, &mut act).unwrap(),
            Phase::SettlingNew { .. } => swap::settle_by(&root, &store, &plan, &mut act).unwrap(),
            Phase::Verifying => proved.0 = tape.len(),
            Phase::Joining { .. } => proved.1 = tape.len(),
            Phase::Leased
            | Phase::Linked
            | Phase::Stopping { .. }
            | Phase::Starting
            | Phase::Running { .. }
            | Phase::StartingOld { .. }
            | Phase::Upgraded { .. }
            | Phase::RolledBack { .. }
            | Phase::Stuck { .. } => {}
        }
    }
    journal.forget().unwrap();
    journal
        .store_by(&root, &mut |change| {
            tape.push(change.clone());
            disk::make(change)
        })
        .unwrap();
    if story != Story::Upgraded {
        proved = (usize::MAX, usize::MAX);
    }
    Scene { host, plan, old, new, story, before, tape, proved }
}

impl Scene {
    fn model_at(&self, point: usize) -> Model {
        let mut model = self.before.clone();
        self.tape[..point].iter().for_each(|change| model.make(change));
        model
    }

    /// Puts the state on the temporary root.
    fn put(&self, state: &State) {
        for (folder, names) in state {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                if !entry.file_type().unwrap().is_dir() {
                    fs::remove_file(entry.path()).unwrap();
                }
            }
            for (name, left) in names {
                let at = folder.join(name);
                match left {
                    Left::Link(to) => symlink(to, at).unwrap(),
                    Left::File(bytes) => {
                        fs::write(&at, bytes).unwrap();
                        fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
                    }
                }
            }
        }
    }

    /// The set that is seen through the targets.
    fn seen(&self) -> Result<&'static str, String> {
        let now = self.host.contents(&self.host.layout());
        match now {
            now if now == self.old => Ok("old"),
            now if now == self.new => Ok("new"),
            mixed => Err(format!("files of two sets: {mixed:?}")),
        }
    }

    /// Boots from what is on the root, after a cut at this point, and lets the executor go on; or says what is wrong.
    fn boots(&self, point: usize) -> Result<(), String> {
        let root = &self.host.root;
        let boot = || recover(root).map_err(|error| format!("recovery: {}", chain(&error)));
        boot()?;
        let (first, journal) = (self.seen()?, Journal::load(root).unwrap());
        boot()?;
        if (self.seen()?, Journal::load(root).unwrap()) != (first, journal.clone()) {
            return Err("another boot makes a difference".to_owned());
        }
        let expected = match point {
            point if point >= self.proved.1 => &["new"][..],
            point if point > self.proved.0 => &["old", "new"][..],
            _ => &["old"][..],
        };
        if !expected.contains(&first) {
            return Err(format!("the {first} set after the boot, expected {expected:?}"));
        }
        let store = self.host.store();
        match journal.work.map(|work| work.phase) {
            Some(Phase::Joining { .. } | Phase::Running { .. } | Phase::SettlingNew { .. }) => {
                swap::settle(root, &store, &self.plan).map_err(|error| chain(&error))?;
            }
            Some(Phase::StartingOld { .. } | Phase::SettlingOld { .. }) => {
                swap::unlink(root, &store, &self.plan).map_err(|error| chain(&error))?;
            }
            None | Some(Phase::Upgraded { .. } | Phase::RolledBack { .. }) => {}
            Some(other) => return Err(format!("the journal is in {other:?} after the boot")),
        }
        if self.seen()? != first {
            return Err("another set once the work was ended".to_owned());
        }
        let state = DiskState::read(root, &self.plan).map_err(|error| chain(&error))?;
        match state.targets.iter().find(|(_, place)| **place == Place::Link) {
            Some((file, _)) => Err(format!("{file} is a link in the end")),
            None => Ok(()),
        }
    }

    /// Cuts the power at every point, in every way, until so many boots went wrong. Gives how many states there were, and what
    /// went wrong.
    fn cut_everywhere(&self, enough: usize) -> (usize, Vec<String>) {
        let (mut model, mut tried, mut wrong) = (self.before.clone(), BTreeSet::new(), Vec::new());
        for point in 0..=self.tape.len() {
            if point > 0 {
                model.make(&self.tape[point - 1]);
            }
            for state in model.cuts() {
                // What was right for a state is right until the next thing that is proved.
                let told = (point > self.proved.0, point >= self.proved.1);
                if tried.contains(&(told, state.clone())) {
                    continue;
                }
                self.put(&state);
                if let Err(why) = self.boots(point) {
                    wrong.push(format!("{:?}, after {point} changes: {why}", self.story));
                }
                tried.insert((told, state));
                if wrong.len() == enough {
                    return (tried.len(), wrong);
                }
            }
        }
        (tried.len(), wrong)
    }
}

#[test]
fn whatever_a_power_cut_takes_the_node_boots_whole() {
    let mut states = 0;
    for story in STORIES {
        let (tried, wrong) = scene(story).cut_everywhere(usize::MAX);
        assert!(wrong.is_empty(), "{} of {tried} went wrong:\n{}", wrong.len(), wrong.join("\n"));
        states += tried;
    }
    println!("states that a power cut may leave: {states}, all of them whole after the boot");
    assert!(states > 1000, "only {states}");
}

/// The model sees a sync that is missing: of files, and of each folder.
#[test]
fn a_sync_that_was_forgotten_is_found() {
    for forgotten in ["files", "/usr/bin", crate::sets::ENGINES_DIR, "/var/lib/requeen/agent"] {
        let mut scene = scene(Story::Upgraded);
        let folder = scene.host.root.join(forgotten);
        let is_kept = |change: &Change| {
            let file = matches!(change, Change::SyncFile { .. }) && forgotten == "files";
            !file && !matches!(change, Change::SyncFolder { at } if *at == folder)
        };
        let kept_before = |point: usize| scene.tape[..point].iter().filter(|change| is_kept(change)).count();
        let proved = (kept_before(scene.proved.0), kept_before(scene.proved.1));
        let before = scene.tape.len();
        scene.tape.retain(is_kept);
        scene.proved = proved;
        assert!(scene.tape.len() < before, "{forgotten}: never synced");
        let (tried, wrong) = scene.cut_everywhere(1);
        assert!(!wrong.is_empty(), "nothing goes wrong in {tried} states without syncs of {forgotten}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Any changes may be lost, and the power may fail again in the recovery, whose changes may be lost too.
    #[test]
    fn any_changes_may_be_lost_and_again_in_the_recovery(
        story in 0..STORIES.len(),
        at in any::<prop::sample::Index>(),
        kept in any::<u64>(),
        torn: bool,
        again in 0_usize..40,
        kept_again in any::<u64>(),
    ) {
        let scene = scene(STORIES[story]);
        let point = at.index(scene.tape.len() + 1);
        let choice = |kept: u64| move |folder: usize, change: usize| kept >> ((folder * 17 + change) % 64) & 1 == 1;
        let folders: Vec<PathBuf> = scene.before.folders.keys().cloned().collect();
        scene.put(&scene.model_at(point).cut(choice(kept), torn));

        let mut model = Model::read(&folders);
        let mut left = again;
        let mut act = |change: &Change| {
            left = left.checked_sub(1).ok_or(std::io::ErrorKind::Interrupted)?;
            model.make(change);
            disk::make(change)
        };
        // Without power it may end in an error, or have been over.
        let _ = recover_by(&scene.host.root, &mut act);
        scene.put(&model.cut(choice(kept_again), torn));
        prop_assert_eq!(scene.boots(point), Ok(()), "{:?} after {} changes", scene.story, point);
    }
}

/// Every phase with everything that may be found on disk: what is decided ends in one set, the right one, and deciding again
/// decides nothing else; or it is a doubt.
#[test]
fn every_decision_ends_in_one_set() {
    const PLACES: [Place; 4] = [Place::Link, Place::Old, Place::New, Place::Stranger];
    const FILES: [EngineFile; 3] = [EngineFile::Dockerd, EngineFile::Runc, EngineFile::Containerd];
    let currents = [Current::Old, Current::New, Current::Nothing, Current::Stranger("elsewhere".to_owned())];
    let (reason, log, engine_down_ms) = (String::new(), Vec::new(), 5);
    let phases = [
        Phase::Linking,
        Phase::Linked,
        Phase::Unlinking,
        Phase::Stopping { permit: "p".into() },
        Phase::Switching,
        Phase::Starting,
        Phase::Verifying,
        Phase::SwitchingBack { reason: reason.clone(), log: log.clone() },
        Phase::StartingOld { reason: reason.clone(), log: log.clone() },
        Phase::SettlingOld { reason, engine_down_ms, log },
        Phase::Joining { engine_down_ms },
        Phase::Running { engine_down_ms },
        Phase::SettlingNew { engine_down_ms },
    ];
    let plan = scene(Story::TakenBack).plan;
    let (mut decided, mut doubts) = (0, 0);
    for phase in phases {
        let proved = matches!(phase, Phase::Joining { .. } | Phase::Running { .. } | Phase::SettlingNew { .. });
        let of = Work { plan: Some(plan.clone()), phase: phase.clone(), ..work("l1", 1) };
        assert_eq!(remedy(&of, None), Err(Doubt::NoPlan));
        for (current, number) in currents.iter().flat_map(|current| (0..64).map(move |number| (current, number))) {
            let places = [number % 4, number / 4 % 4, number / 16].map(|place| PLACES[place]);
            let mut disk = DiskState { current: current.clone(), targets: FILES.into_iter().zip(places).collect() };
            let Ok(what) = remedy(&of, Some(&disk)) else {
                doubts += 1;
                continue;
            };
            decided += 1;
            match what {
                Remedy::Nothing => {}
                Remedy::Back => disk.current = Current::Old,
                Remedy::Unlink => {
                    disk.targets
                        .values_mut()
                        .filter(|place| **place == Place::Link)
                        .for_each(|place| *place = Place::Old);
                }
            }
            let shows = |place: &Place| match (place, &disk.current) {
                (Place::Link, Current::Old) | (Place::Old, _) => "old",
                (Place::Link, Current::New) | (Place::New, _) => "new",
                // Somebody else's, from before the stop: the engine ran beside it.
                (Place::Stranger, _) if what == Remedy::Unlink => "old",
                (Place::Link, _) | (Place::Stranger, _) => "nothing that is known",
            };
            let expected = if proved { "new" } else { "old" };
            let shown: Vec<&str> = disk.targets.values().map(shows).collect();
            assert!(shown.iter().all(|set| *set == expected), "{phase:?}, {current:?}, {places:?}: {shown:?}");
            assert_eq!(remedy(&of, Some(&disk)), Ok(what), "{phase:?}, {current:?}, {places:?}: again");
        }
    }
    println!("states of phase and disk: {decided} decided, {doubts} in doubt");
    assert!(decided > 100 && doubts > 100, "{decided} decided, {doubts} in doubt");
}
