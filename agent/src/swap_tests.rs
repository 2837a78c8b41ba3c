//! The swap is stopped between every two changes of the disk, on a real file system. At each instant
//! the targets' paths must lead to exactly the old set or exactly the new one.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;

use super::planning::original_at;
use super::*;
use crate::effect::disk;
use crate::host::layout::Layout;
use crate::host::testing::{OLD_VERSION, TestHost};

const ATTRIBUTE: &str = "user.requeen-test";

/// What the engine's files hold, by file.
type Contents = BTreeMap<EngineFile, String>;

struct Scene {
    host: TestHost,
    layout: Layout,
    store: Store,
    plan: SwapPlan,
    old: Contents,
    new: Contents,
    /// What is at each target before anything is done.
    originals: BTreeMap<EngineFile, Option<Original>>,
}

/// A host without docker-proxy whose dockerd has a mode and an attribute of its own, and a new set
/// that brings docker-proxy, drops ctr, leaves runc as it is and changes the rest.
fn scene() -> Scene {
    let host = TestHost::new(&[EngineFile::DockerProxy]);
    let dockerd = host.root.join("/usr/sbin/dockerd");
    fs::set_permissions(&dockerd, Permissions::from_mode(0o711)).unwrap();
    xattr::set(&dockerd, ATTRIBUTE, b"kept").unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&dockerd, Some(12), Some(34)).unwrap();
        fs::set_permissions(&dockerd, Permissions::from_mode(0o711)).unwrap();
    }
    let layout = host.layout();
    let store = host.store();
    let old = host.contents(&layout);
    let from = store.capture(&layout, OLD_VERSION).unwrap();
    let new: Contents = EngineFile::ALL
        .iter()
        .filter(|file| **file != EngineFile::Ctr)
        .map(|&file| {
            let text = if file == EngineFile::Runc { old[&file].clone() } else { format!("new {file}") };
            (file, text)
        })
        .collect();
    let files: Vec<(EngineFile, &str)> = new.iter().map(|(file, text)| (*file, text.as_str())).collect();
    let to = host.new_set(&files, "26.1.5");
    let plan = plan(&host.root, &layout, &store, &from, &to).unwrap();
    let originals = looks(&host, &layout);
    Scene { host, layout, store, plan, old, new, originals }
}

fn looks(host: &TestHost, layout: &Layout) -> BTreeMap<EngineFile, Option<Original>> {
    let look = |(&file, target): (&EngineFile, &String)| (file, original_at(&host.root, target).unwrap());
    layout.targets.iter().map(look).collect()
}

/// A step of a rollout, as the executor goes through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Link,
    Switch,
    SettleNew,
    SwitchBack,
    SettleOld,
    Done,
}

impl Step {
    fn next(self) -> Self {
        match self {
            Step::Link => Step::Switch,
            Step::Switch => Step::SettleNew,
            Step::SwitchBack => Step::SettleOld,
            Step::SettleNew | Step::SettleOld | Step::Done => Step::Done,
        }
    }

    /// What a node does instead when it is told to go back.
    fn back(self) -> Self {
        match self {
            Step::Link => Step::SettleOld,
            Step::Switch | Step::SwitchBack => Step::SwitchBack,
            Step::SettleOld => Step::SettleOld,
            // The new engine is verified: there is only forward.
            Step::SettleNew => Step::SettleNew,
            Step::Done => Step::Done,
        }
    }
}

impl Scene {
    /// Takes a step with at most `budget` changes of the disk; after each one looks at what can be
    /// read. Gives whether the step came to its end.
    fn take(&self, step: Step, budget: usize) -> bool {
        let mut left = budget;
        let mut stopped = false;
        let mut act = |change: &Change| -> io::Result<()> {
            if left == 0 {
                stopped = true;
                return Err(io::ErrorKind::Interrupted.into());
            }
            left -= 1;
            disk::make(change)?;
            self.assert_coherent(change);
            Ok(())
        };
        let (root, store, plan) = (&self.host.root, &self.store, &self.plan);
        let result = match step {
            Step::Link => link_by(root, store, plan, &mut act),
            Step::Switch => switch_by(root, store, plan, &plan.to, &mut act),
            Step::SwitchBack => switch_by(root, store, plan, &plan.from, &mut act),
            Step::SettleNew => settle_by(root, store, plan, &mut act),
            Step::SettleOld => unlink_by(root, store, plan, &mut act),
            Step::Done => Ok(()),
        };
        match result {
            Ok(()) => true,
            Err(error) => {
                assert!(stopped, "{step:?} failed by itself: {error:?}");
                false
            }
        }
    }

    fn assert_coherent(&self, after: &Change) {
        let now = self.host.contents(&self.layout);
        assert!(now == self.old || now == self.new, "after {after:?} neither the old nor the new set: {now:#?}");
    }

    /// Goes on without a limit until there is nothing left to do.
    fn finish(&self, mut step: Step) {
        while step != Step::Done {
            assert!(self.take(step, usize::MAX));
            step = step.next();
        }
    }

    fn assert_no_leftovers(&self) {
        for folder in ["/usr/bin", "/usr/sbin", ENGINES_DIR] {
            for entry in fs::read_dir(self.host.root.join(folder)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(!name.starts_with('.'), "{folder}/{name} was left behind");
            }
        }
    }

    /// Exactly what was there before the swap, links, owners, modes and attributes included.
    fn assert_old(&self) {
        assert_eq!(self.host.contents(&self.layout), self.old);
        assert_eq!(looks(&self.host, &self.layout), self.originals);
        self.assert_no_leftovers();
    }

    /// Plain files of the new set, dressed like those that they replaced.
    fn assert_new(&self) {
        assert_eq!(self.host.contents(&self.layout), self.new);
        let now = looks(&self.host, &self.layout);
        for (&file, look) in &now {
            let was = self.originals[&file].clone();
            match file {
                EngineFile::Ctr => assert_eq!(*look, None),
                EngineFile::DockerInit | EngineFile::DockerProxy => {
                    let look = look.as_ref().unwrap();
                    assert_eq!((look.mode, &look.was_symlink_to), (0o755, &None), "{file}");
                }
                EngineFile::Dockerd
                | EngineFile::Docker
                | EngineFile::Containerd
                | EngineFile::ContainerdShimRuncV2
                | EngineFile::Runc => assert_eq!(*look, was, "{file}"),
            }
        }
        let tini = self.host.root.read_to_string("/usr/bin/tini-static").unwrap();
        assert_eq!(tini, "old docker-init", "another package's file");
        assert_eq!(self.store.previous(&self.plan.to).unwrap(), Some(self.plan.from.clone()));
        self.store.verify(&self.plan.from).unwrap();
        self.store.verify(&self.plan.to).unwrap();
        self.assert_no_leftovers();
    }
}

#[test]
fn a_plan_holds_what_differs_and_what_was_there() {
    let scene = scene();
    let files: Vec<EngineFile> = scene.plan.files.iter().map(|swapped| swapped.file).collect();
    assert!(!files.contains(&EngineFile::Runc), "the same in both sets");
    assert_eq!(files.len(), EngineFile::ALL.len() - 1);
    let original = |file| scene.originals[&file].clone();
    let init = original(EngineFile::DockerInit).unwrap();
    assert_eq!(init.was_symlink_to.as_deref(), Some("tini-static"));
    let dockerd = original(EngineFile::Dockerd).unwrap();
    assert_eq!(dockerd.mode, 0o711);
    assert_eq!(dockerd.xattrs[ATTRIBUTE], hex::encode("kept"));
    for swapped in &scene.plan.files {
        assert_eq!(swapped.original, scene.originals[&swapped.file]);
    }
    let json = serde_json::to_string(&scene.plan).unwrap();
    assert_eq!(serde_json::from_str::<SwapPlan>(&json).unwrap(), scene.plan);
}

#[test]
fn a_changed_target_is_refused() {
    let scene = scene();
    scene.host.write("/usr/bin/docker.new", b"of an upgraded package", 0o755);
    fs::rename(scene.host.root.join("/usr/bin/docker.new"), scene.host.root.join("/usr/bin/docker")).unwrap();
    let again = plan(&scene.host.root, &scene.layout, &scene.store, &scene.plan.from, &scene.plan.to);
    assert!(matches!(again, Err(SwapError::Changed { path, .. }) if path == "/usr/bin/docker"));
}

#[test]
fn every_step_twice() {
    let scene = scene();
    for step in [Step::Link, Step::Switch, Step::SwitchBack, Step::Switch, Step::SettleNew] {
        assert!(scene.take(step, usize::MAX));
        assert!(scene.take(step, usize::MAX));
        let now = scene.host.contents(&scene.layout);
        let expected = match step {
            Step::Link | Step::SwitchBack | Step::SettleOld => &scene.old,
            Step::Switch | Step::SettleNew | Step::Done => &scene.new,
        };
        assert_eq!(now, *expected, "{step:?}");
    }
    scene.assert_new();
}

#[test]
fn stopped_between_every_two_changes_and_finished() {
    crash_everywhere(false, |step| step);
}

#[test]
fn stopped_between_every_two_changes_and_taken_back() {
    crash_everywhere(true, Step::back);
}

/// For each step and each number of changes in it: stops there and goes on as `then` says.
fn crash_everywhere(back: bool, then: impl Fn(Step) -> Step) {
    let mut stops = 0;
    for crashing in [Step::Link, Step::Switch, Step::SettleNew] {
        for budget in 0.. {
            let scene = scene();
            let mut step = Step::Link;
            while step != crashing {
                assert!(scene.take(step, usize::MAX));
                step = step.next();
            }
            let ended = scene.take(step, budget);
            stops += 1;
            scene.finish(then(step));
            if back && crashing != Step::SettleNew {
                scene.assert_old();
            } else {
                scene.assert_new();
            }
            if ended {
                break;
            }
        }
    }
    // Seven files, each linked and settled with two changes at the very least.
    assert!(stops > 28, "only {stops} stops: the steps did nothing");
}

/// What a power failure may take is never relied on: content is on disk before its name is, `current`
/// before the links through it, and every folder before a step is over.
#[test]
fn everything_is_on_disk_before_it_counts() {
    let scene = scene();
    let current = scene.store.dir().join(CURRENT);
    for step in [Step::Link, Step::Switch, Step::SettleNew] {
        let mut done: Vec<Change> = Vec::new();
        let mut act = |change: &Change| {
            done.push(change.clone());
            disk::make(change)
        };
        let (root, store, plan) = (&scene.host.root, &scene.store, &scene.plan);
        match step {
            Step::Link => link_by(root, store, plan, &mut act),
            Step::Switch => switch_by(root, store, plan, &plan.to, &mut act),
            Step::SettleNew => settle_by(root, store, plan, &mut act),
            Step::SwitchBack | Step::SettleOld | Step::Done => unreachable!("not in the list"),
        }
        .unwrap();
        let synced_after = |at: usize, folder: &Path| {
            done[at..]
                .iter()
                .position(|change| matches!(change, Change::SyncFolder { at } if at == folder))
                .map(|found| at + found)
        };
        for (at, change) in done.iter().enumerate() {
            match change {
                Change::Rename { from, to } => {
                    let synced = synced_after(at, to.parent().unwrap());
                    assert!(synced.is_some(), "{step:?}: {to:?} may be lost");
                    let next = done[at + 1..].iter().position(|later| matches!(later, Change::Rename { .. }));
                    if *to == current {
                        assert!(next.is_none_or(|next| synced < Some(at + 1 + next)), "{step:?}: links before current");
                    }
                    let written = |earlier: &&Change| matches!(earlier, Change::Copy { to, .. } | Change::Write { at: to, .. } if to == from);
                    if done[..at].iter().any(|earlier| written(&earlier)) {
                        assert_eq!(done[at - 1], Change::SyncFile { at: from.clone() }, "{step:?}: {to:?} may be torn");
                    }
                }
                Change::Remove { at: gone } => {
                    assert!(synced_after(at, gone.parent().unwrap()).is_some(), "{step:?}: {gone:?} may come back");
                }
                Change::Symlink { .. }
                | Change::Copy { .. }
                | Change::Write { .. }
                | Change::Own { .. }
                | Change::Mode { .. }
                | Change::Attribute { .. }
                | Change::SyncFile { .. }
                | Change::SyncFolder { .. }
                | Change::CopyData { .. }
                | Change::MakeFolder { .. }
                | Change::RemoveTree { .. } => {}
            }
        }
    }
    scene.assert_new();
}

#[test]
fn no_switch_once_a_file_is_plain() {
    let scene = scene();
    for step in [Step::Link, Step::Switch] {
        assert!(scene.take(step, usize::MAX));
    }
    let mut renames = 0;
    let mut act = |change: &Change| {
        if matches!(change, Change::Rename { .. }) {
            renames += 1;
            if renames > 1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        disk::make(change)
    };
    settle_by(&scene.host.root, &scene.store, &scene.plan, &mut act).unwrap_err();
    let back = switch(&scene.host.root, &scene.store, &scene.plan, &scene.plan.from);
    assert!(matches!(back, Err(SwapError::NotLinked(_))), "{back:?}");
    let unlinked = unlink(&scene.host.root, &scene.store, &scene.plan);
    assert!(matches!(unlinked, Err(SwapError::NotOld)), "{unlinked:?}");
    assert_eq!(scene.host.contents(&scene.layout), scene.new);
}

#[test]
fn strangers_are_refused() {
    let scene = scene();
    let other = scene.host.new_set(&[(EngineFile::Dockerd, "other")], "1.0");
    let switched = switch(&scene.host.root, &scene.store, &scene.plan, &other);
    assert!(matches!(switched, Err(SwapError::Stranger(set)) if set == other));
    let nothing = settle(&scene.host.root, &scene.store, &scene.plan);
    assert!(matches!(nothing, Err(SwapError::CurrentStranger(None))), "{nothing:?}");
    unlink(&scene.host.root, &scene.store, &scene.plan).unwrap();
    scene.assert_old();
}

/// The journal of a lost swap is gone: what a link stood for is not guessed to be a link.
#[test]
fn links_of_a_lost_swap_become_plain_files() {
    let scene = scene();
    assert!(scene.take(Step::Link, usize::MAX));
    let again = plan(&scene.host.root, &scene.layout, &scene.store, &scene.plan.from, &scene.plan.to).unwrap();
    assert!(again.files.iter().all(|swapped| swapped.original.is_none()));
    unlink(&scene.host.root, &scene.store, &again).unwrap();
    assert_eq!(scene.host.contents(&scene.layout), scene.old);
    let look = looks(&scene.host, &scene.layout);
    assert!(look.values().flatten().all(|look| look.was_symlink_to.is_none()));
}

/// What a crash may leave under the temporary names: anything.
fn litter(scene: &Scene) {
    for swapped in &scene.plan.files {
        let at = place(&scene.host.root, &swapped.target).unwrap();
        let temp = temp_beside(&at, swapped.file);
        let _ = fs::remove_file(&temp);
        fs::write(&temp, b"torn").unwrap();
    }
    let temp = temp_current(&scene.store);
    let _ = fs::remove_file(&temp);
    symlink("nowhere", temp).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any sequence of crashes, retries and changes of mind ends whole.
    #[test]
    fn random_crashes_and_retries(
        runs in prop::collection::vec((0_usize..40, prop::bool::weighted(0.15), prop::bool::ANY), 1..14)
    ) {
        let scene = scene();
        let mut step = Step::Link;
        for (budget, back, dirty) in runs {
            if back {
                step = step.back();
            }
            if scene.take(step, budget) {
                step = step.next();
            } else if dirty && step != Step::SettleNew && step != Step::SettleOld {
                litter(&scene);
            }
        }
        let forward = matches!(step, Step::Link | Step::Switch | Step::SettleNew);
        let done = step == Step::Done;
        scene.finish(step);
        if done {
            prop_assert!([&scene.old, &scene.new].contains(&&scene.host.contents(&scene.layout)));
        } else if forward {
            scene.assert_new();
        } else {
            scene.assert_old();
        }
    }
}
