//! What the executor does to its host, all of it: each kind is a variant of [`Effect`], and [`perform`] does it.
//!
//! To add an effect: add a variant with what it needs, and an arm to [`Effect::apply`]. Its name, its place in the list of
//! kinds and two fail points, `before-NAME` and `after-NAME`, come with the variant. Then `cargo test -p requeen-agent` fails
//! until some run of a node's work passes both: an effect that is never tried is not there. One that consists of others (a
//! journal is written by a few [`Change`]s) passes their fail points too. What the engine itself does for it is an [`Asked`]. What is only looked at is no effect, nor is what it
//! takes to be there at all: the lock, and the folder of sets.
//!
//! A fail point (feature `failpoints`, which nothing that is shipped has) with the action `return` ends the process as
//! `kill -9` or a power cut would: `FAILPOINTS='before-rename=2*off->return' agent executor` at the third rename.

pub mod asked;
pub mod disk;
#[cfg(test)]
pub(crate) mod model;

use std::io;
use std::path::Path;

use strum::{EnumDiscriminants, EnumIter, IntoEnumIterator, IntoStaticStr};

pub(crate) use self::asked::ask;
pub use self::asked::{Asked, AskedKind};
pub use self::disk::{Change, ChangeKind};
use crate::boot::{self, UnitError};
use crate::engine::api::SwarmFacts;
use crate::engine::leftover;
use crate::engine::systemd::{ControlError, EngineControl};
use crate::executor::observe;
use crate::host::HostRoot;
use crate::host::layout::Layout;
use crate::journal::{JOURNAL_PATH, Journal, JournalError};
use crate::memo;
use crate::packages::{self, Kept, Taken};
use crate::raft_copy::{self, CopyError, CopyOf};
use crate::sets::{SetError, SetId, Store};
use crate::staged;
use crate::standalone::{self, Record, RecordError};

/// Something that the executor does to its host.
#[derive(EnumDiscriminants)]
#[strum_discriminants(name(EffectKind), doc = "The name of an effect, without its data.")]
#[strum_discriminants(derive(EnumIter, IntoStaticStr), strum(serialize_all = "kebab-case"))]
pub enum Effect<'a> {
    /// A change of the disk. Its name is the change's own.
    Disk(&'a Change),
    /// The journal on disk becomes this one.
    StoreJournal(&'a Journal),
    /// A journal that can't be read makes way for the next rollout's, and is kept.
    SetJournalAside,
    /// The units are put on the host by which a boot finds its way.
    InstallBootUnits {
        /// Where the engine is.
        layout: &'a Layout,
        /// The program that the units run, as a path of the host.
        program: &'a Path,
        /// The coordinators' port.
        port: u16,
    },
    /// The unit that puts files in order goes.
    RemoveRecovery,
    /// All of our units go.
    RemoveBootUnits,
    /// Package managers are kept out. Nothing is done if they are already.
    LockPackages {
        /// Where the locks are kept.
        kept: &'a mut Option<Kept>,
    },
    /// Package managers may go on.
    ReleasePackages {
        /// Where the locks were kept.
        kept: &'a mut Option<Kept>,
    },
    /// Failed starts are forgotten.
    ResetEngine(&'a dyn EngineControl),
    /// The engine stops.
    StopEngine {
        /// What runs it.
        control: &'a dyn EngineControl,
        /// Whether containerd stops too.
        containerd: bool,
    },
    /// A containerd of dockerd's own that has outlived it ends.
    EndLeftover,
    /// The engine is told to start.
    StartEngine(&'a dyn EngineControl),
    /// A copy of the swarm's folder is kept, while no engine runs.
    KeepRaftCopy {
        /// Which.
        of: &'a CopyOf,
        /// When it has taken too long.
        late: &'a dyn Fn() -> bool,
    },
    /// What the engine said of its swarm is kept.
    KeepSwarm(&'a SwarmFacts),
    /// What runs beside the swarm's tasks is kept in mind.
    RecordContainers(&'a Record),
    /// It is forgotten.
    ForgetContainers,
    /// The coordinator's memo is kept.
    KeepMemo(&'a str),
    /// Sets that nobody needs go.
    Prune {
        /// Where they are.
        store: &'a Store,
        /// Sets that stay beside the last ones installed.
        keep: &'a [SetId],
    },
    /// Copies of the swarm's folder that are too many, or not whole, go.
    TidyRaftCopies {
        /// Where the one is that was made last, if one was.
        newest: Option<&'a str>,
    },
    /// What a rollout left that nobody needs after its end goes.
    ForgetRollout,
    /// The executor's own copy on the host goes.
    RemoveProgram(&'a Path),
}

/// An effect failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum EffectError {
    /// A file can't be changed.
    File(#[from] io::Error),
    /// The journal can't be written.
    Journal(#[from] JournalError),
    /// The engine's units can't be commanded.
    Control(#[from] ControlError),
    /// Our units can't be changed.
    Units(#[from] UnitError),
    /// Package managers can't be kept out.
    Packages(#[from] Taken),
    /// Sets can't be removed.
    Sets(#[from] SetError),
    /// The record of containers can't be written.
    Containers(#[from] RecordError),
    /// No copy of the swarm's folder was kept.
    Copy(#[from] CopyError),
}

/// Does an effect: everything that the executor does to its host comes through here.
pub fn perform(root: &HostRoot, effect: Effect<'_>) -> Result<(), EffectError> {
    let name = effect.name();
    fail_point("before", name);
    let done = effect.apply(root);
    fail_point("after", name);
    done
}

/// [`perform`] for what is made of changes of the disk alone.
pub(crate) fn change(root: &HostRoot, change: &Change) -> io::Result<()> {
    perform(root, Effect::Disk(change)).map_err(|error| match error {
        EffectError::File(source) => source,
        other @ (EffectError::Journal(_)
        | EffectError::Control(_)
        | EffectError::Units(_)
        | EffectError::Packages(_)
        | EffectError::Sets(_)
        | EffectError::Containers(_)
        | EffectError::Copy(_)) => io::Error::other(other),
    })
}

/// The names of all effects.
pub fn names() -> impl Iterator<Item = &'static str> {
    let effects = EffectKind::iter().filter(|kind| *kind != EffectKind::Disk).map(<&str>::from);
    effects.chain(AskedKind::iter().map(<&str>::from)).chain(ChangeKind::iter().map(<&str>::from))
}

impl Effect<'_> {
    fn name(&self) -> &'static str {
        if let Effect::Disk(change) = self { ChangeKind::from(*change).into() } else { EffectKind::from(self).into() }
    }

    fn apply(self, root: &HostRoot) -> Result<(), EffectError> {
        match self {
            Effect::Disk(change) => disk::make(change)?,
            Effect::StoreJournal(journal) => journal.store(root)?,
            Effect::SetJournalAside => {
                let path = root.join(JOURNAL_PATH);
                std::fs::rename(&path, path.with_extension("json.damaged"))?;
            }
            Effect::InstallBootUnits { layout, program, port } => boot::install(root, layout, program, port)?,
            Effect::RemoveRecovery => boot::remove_recovery(root)?,
            Effect::RemoveBootUnits => boot::remove(root)?,
            Effect::LockPackages { kept } => {
                if kept.is_none() {
                    *kept = Some(packages::keep(root)?);
                }
            }
            Effect::ReleasePackages { kept } => *kept = None,
            Effect::ResetEngine(control) => control.reset()?,
            Effect::StopEngine { control, containerd } => control.stop(containerd)?,
            Effect::EndLeftover => leftover::end(root)?,
            Effect::StartEngine(control) => control.start()?,
            Effect::KeepRaftCopy { of, late } => {
                raft_copy::keep(root, of, late, &mut |made| change(root, made))?;
            }
            Effect::KeepSwarm(swarm) => observe::keep(root, swarm)?,
            Effect::RecordContainers(record) => record.store(root)?,
            Effect::ForgetContainers => standalone::forget(root)?,
            Effect::KeepMemo(memo) => memo::store(root, memo)?,
            Effect::Prune { store, keep } => store.prune(keep)?,
            Effect::TidyRaftCopies { newest } => raft_copy::tidy(root, newest, &mut |made| change(root, made))?,
            Effect::ForgetRollout => staged::forget(root)?,
            Effect::RemoveProgram(program) => std::fs::remove_file(program)?,
        }
        Ok(())
    }
}

/// With the action `return` this is where the process ends, at once and without a word.
#[cfg(feature = "failpoints")]
fn fail_point(when: &str, name: &str) {
    use nix::sys::signal::{Signal, kill};
    fail::fail_point!(&format!("{when}-{name}"), |_| {
        // Returns only if the kernel refuses, which it does not.
        let _ = kill(nix::unistd::Pid::this(), Signal::SIGKILL);
        std::process::abort()
    });
}

#[cfg(not(feature = "failpoints"))]
fn fail_point(_when: &str, _name: &str) {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_effect_has_a_name_of_its_own() {
        let all: Vec<&str> = names().collect();
        assert_eq!(all.len(), EffectKind::iter().len() - 1 + AskedKind::iter().len() + ChangeKind::iter().len());
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
        let change = Change::SyncFile { at: "/a".into() };
        assert_eq!(Effect::Disk(&change).name(), "sync-file");
        assert_eq!(Effect::RemoveRecovery.name(), "remove-recovery");
    }

    /// The feature brings a crate with it; what is shipped is made of these packages with these features.
    #[test]
    fn what_is_shipped_has_no_fail_points() {
        let has_them = |package: &str, features: &str| {
            let mut tree = std::process::Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
            tree.args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none"]);
            let tree = tree.args(["--package", package, "--features", features]).output().unwrap();
            assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
            String::from_utf8_lossy(&tree.stdout).lines().any(|line| line.starts_with("fail v"))
        };
        assert!(!has_them("requeen-agent", ""));
        assert!(!has_them("requeen-coordinator", "with-agent"));
        assert!(has_them("requeen-agent", "failpoints"), "or they would not be seen here");
    }
}
