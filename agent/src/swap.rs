//! The swap: how a set of engine files takes another's place, in one rename.
//!
//! 1. [`link`], engine running: `current` leads to the set that runs, and each target becomes, by an
//!    atomic rename, a symbolic link through `current`. Nobody can see a difference.
//! 2. [`switch`], engine down: one rename makes `current` lead to the other set. Switching back is
//!    the same rename.
//! 3. [`settle`], engine verified: each link becomes, by an atomic rename, a plain file of the current
//!    set, owned and labelled like the file that it stands for.
//!
//! Everything that changes the disk is a [`Change`], and goes through [`effect::perform`], so a
//! test can stop between every two of them. Each function looks at what is there before each change
//! and does only what is left to do: running it again after a crash ends where one run would have.

pub(crate) mod planning;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use requeen_protocol::{Digest, EngineFile};

use self::planning::digest_at;
pub use self::planning::{Original, SwapFile, SwapPlan, plan};
use crate::effect::disk::Actor;
use crate::effect::{self, Change};
use crate::host::HostRoot;
use crate::sets::{CURRENT, ENGINES_DIR, HISTORY, SetError, SetId, Store};

/// Mode of a program that takes the place of a link, or of nothing.
const PLAIN_MODE: u32 = 0o755;

/// A step of the swap failed. What is on disk is coherent all the same.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// A set can't be used.
    #[error("a set can't be used")]
    Set(#[from] SetError),
    /// A target can't be looked at.
    #[error("`{path}` can't be looked at")]
    Look {
        /// The target.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A target is not what the set that runs holds.
    #[error("`{path}` was changed since the node was staged: expected {expected}, found {found}")]
    Changed {
        /// The target.
        path: String,
        /// What the set holds.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The host's layout has no place for a file.
    #[error("there is no place for `{0}` on this host")]
    NoPlace(EngineFile),
    /// A change of the disk failed.
    #[error("{change:?} failed")]
    Change {
        /// The change.
        change: Box<Change>,
        /// Why.
        source: io::Error,
    },
    /// The set to switch to is neither of the plan's.
    #[error("set {0} is not part of this swap")]
    Stranger(SetId),
    /// `current` leads to neither of the plan's sets.
    #[error("{ENGINES_DIR}/{CURRENT} leads to {}, which is not part of this swap", .0.as_ref().map_or_else(|| "nothing".to_owned(), SetId::to_string))]
    CurrentStranger(Option<SetId>),
    /// A target is no link: it was not linked yet, or is settled.
    #[error("`{0}` is no link through {ENGINES_DIR}/{CURRENT}: a switch would mix two sets")]
    NotLinked(String),
    /// The links can't be taken back while they lead to the new set.
    #[error("the links lead to the new set: switch back first")]
    NotOld,
    /// An attribute in the plan is not hexadecimal.
    #[error("the plan's attribute `{name}` of `{path}` is damaged")]
    Attribute {
        /// Of which target.
        path: String,
        /// Its name.
        name: String,
        /// Why.
        source: hex::FromHexError,
    },
}

/// Puts the links in place, leading to the set that runs. Its engine notices nothing.
pub fn link(root: &HostRoot, store: &Store, plan: &SwapPlan) -> Result<(), SwapError> {
    link_by(root, store, plan, &mut |change| effect::change(root, change))
}

/// Makes `to` (one of the plan's two sets) the current set: one rename.
pub fn switch(root: &HostRoot, store: &Store, plan: &SwapPlan, to: &SetId) -> Result<(), SwapError> {
    switch_by(root, store, plan, to, &mut |change| effect::change(root, change))
}

/// Makes every link a plain file of the current set again. If that is the new set, it goes into the
/// record of installed sets; if it is the old one, every target is again what it was, links included.
pub fn settle(root: &HostRoot, store: &Store, plan: &SwapPlan) -> Result<(), SwapError> {
    settle_by(root, store, plan, &mut |change| effect::change(root, change))
}

/// Takes the links back while the old set is current, as if nothing had been done.
pub fn unlink(root: &HostRoot, store: &Store, plan: &SwapPlan) -> Result<(), SwapError> {
    unlink_by(root, store, plan, &mut |change| effect::change(root, change))
}

pub(crate) fn link_by(root: &HostRoot, store: &Store, plan: &SwapPlan, act: Actor<'_>) -> Result<(), SwapError> {
    // On disk before the first link: a link through a `current` that a power failure took leads nowhere.
    point_current(store, &plan.from, act)?;
    let mut folders = Vec::new();
    for SwapFile { file, target, .. } in &plan.files {
        let at = place(root, target)?;
        remember_folder(&at, &mut folders);
        let temp = temp_beside(&at, *file);
        clear(&temp, act)?;
        if is_link(&at, *file) {
            continue;
        }
        let to = through_current(*file);
        change(act, Change::Symlink { to, at: temp.clone() })?;
        change(act, Change::Rename { from: temp, to: at })?;
    }
    sync_folders(folders, act)
}

pub(crate) fn switch_by(
    root: &HostRoot,
    store: &Store,
    plan: &SwapPlan,
    to: &SetId,
    act: Actor<'_>,
) -> Result<(), SwapError> {
    if *to != plan.from && *to != plan.to {
        return Err(SwapError::Stranger(to.clone()));
    }
    if current_of(store, plan)? != *to {
        // Once a target is a plain file again, another `current` would mix the two sets.
        for SwapFile { file, target, .. } in &plan.files {
            if !is_link(&place(root, target)?, *file) {
                return Err(SwapError::NotLinked(target.clone()));
            }
        }
    }
    point_current(store, to, act)
}

pub(crate) fn settle_by(root: &HostRoot, store: &Store, plan: &SwapPlan, act: Actor<'_>) -> Result<(), SwapError> {
    let current = current_of(store, plan)?;
    let holds = store.manifest(&current)?.files;
    let mut folders = Vec::new();
    for swapped in &plan.files {
        let SwapFile { file, target, original } = swapped;
        let at = place(root, target)?;
        remember_folder(&at, &mut folders);
        let temp = temp_beside(&at, *file);
        clear(&temp, act)?;
        if !is_link(&at, *file) {
            // Settled before a crash, or never linked.
            continue;
        }
        let was_link = original.as_ref().and_then(|original| original.was_symlink_to.as_ref());
        if let Some(led_to) = was_link
            && current == plan.from
        {
            change(act, Change::Symlink { to: led_to.into(), at: temp.clone() })?;
            dress(&temp, swapped, act)?;
        } else if holds.contains_key(file) {
            let from = store.path(&current, *file);
            change(act, Change::Copy { from, to: temp.clone() })?;
            dress(&temp, swapped, act)?;
            change(act, Change::SyncFile { at: temp.clone() })?;
        } else {
            change(act, Change::Remove { at })?;
            continue;
        }
        change(act, Change::Rename { from: temp, to: at })?;
    }
    sync_folders(folders, act)?;
    if current == plan.to {
        record(store, plan, act)?;
    }
    Ok(())
}

pub(crate) fn unlink_by(root: &HostRoot, store: &Store, plan: &SwapPlan, act: Actor<'_>) -> Result<(), SwapError> {
    match store.current()? {
        Some(current) if current == plan.from => {
            // A link that was made for a switch which never came.
            clear(&temp_current(store), act)?;
            settle_by(root, store, plan, act)
        }
        // Without a link it is what an upgrade before this one has left.
        Some(current) if current == plan.to && any_link(root, plan)? => Err(SwapError::NotOld),
        // `link` did not get as far as its own first change, so there is nothing to take back.
        None | Some(_) => match any_link(root, plan)? {
            false => clear(&temp_current(store), act),
            true => Err(SwapError::CurrentStranger(store.current()?)),
        },
    }
}

/// Takes away what a step that failed has left beside the targets: on a full disk it is in everybody's way.
pub fn clear_beside(root: &HostRoot, plan: &SwapPlan) -> Result<(), SwapError> {
    let act: Actor<'_> = &mut |change| effect::change(root, change);
    plan.files.iter().try_for_each(|swapped| clear(&temp_beside(&place(root, &swapped.target)?, swapped.file), act))
}

/// One change, with its name in the error.
fn change(act: Actor<'_>, change: Change) -> Result<(), SwapError> {
    act(&change).map_err(|source| SwapError::Change { change: Box::new(change), source })
}

/// Makes `current` lead to `set`, on disk when this returns.
fn point_current(store: &Store, set: &SetId, act: Actor<'_>) -> Result<(), SwapError> {
    // A set that is not there, or not whole, must never become current.
    store.manifest(set)?;
    let temp = temp_current(store);
    clear(&temp, act)?;
    if store.current()?.as_ref() != Some(set) {
        let to = PathBuf::from(set.0.hex());
        change(act, Change::Symlink { to, at: temp.clone() })?;
        change(act, Change::Rename { from: temp, to: store.dir().join(CURRENT) })?;
    }
    // Also where the rename was done before a crash: it may not have reached the disk.
    change(act, Change::SyncFolder { at: store.dir().to_owned() })
}

/// The current set, which must be one of the plan's.
fn current_of(store: &Store, plan: &SwapPlan) -> Result<SetId, SwapError> {
    match store.current()? {
        Some(current) if current == plan.from || current == plan.to => Ok(current),
        other @ (None | Some(_)) => Err(SwapError::CurrentStranger(other)),
    }
}

/// Gives a temporary file what the original had: owner, mode, attributes.
fn dress(temp: &Path, swapped: &SwapFile, act: Actor<'_>) -> Result<(), SwapError> {
    let at = temp.to_owned();
    let is_link = fs::symlink_metadata(temp).is_ok_and(|meta| meta.is_symlink());
    let (uid, gid, mode, xattrs) = match &swapped.original {
        // The attributes of a link say nothing about a program in its place.
        Some(original) if original.was_symlink_to.is_none() || is_link => {
            (original.uid, original.gid, original.mode, original.xattrs.clone())
        }
        Some(_) | None => (0, 0, PLAIN_MODE, BTreeMap::new()),
    };
    // The owner first: changing it takes set-user-ID bits and capabilities away.
    change(act, Change::Own { at: at.clone(), uid, gid })?;
    if !is_link {
        change(act, Change::Mode { at: at.clone(), mode })?;
    }
    for (name, value) in xattrs {
        let value = hex::decode(value).map_err(|source| SwapError::Attribute {
            path: swapped.target.clone(),
            name: name.clone(),
            source,
        })?;
        change(act, Change::Attribute { at: at.clone(), name, value })?;
    }
    Ok(())
}

/// Writes the new set into the record of installed ones.
fn record(store: &Store, plan: &SwapPlan, act: Actor<'_>) -> Result<(), SwapError> {
    if let Some(bytes) = store.history_with(&plan.from, &plan.to)? {
        let at = store.dir().join(HISTORY);
        let temp = store.dir().join(format!(".{HISTORY}.new"));
        clear(&temp, act)?;
        change(act, Change::Write { bytes, at: temp.clone() })?;
        change(act, Change::SyncFile { at: temp.clone() })?;
        change(act, Change::Rename { from: temp, to: at })?;
    }
    change(act, Change::SyncFolder { at: store.dir().to_owned() })
}

/// What is in the place of a file that a swap is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A link through `current`.
    Link,
    /// What the old set has there, or nothing if it has nothing.
    Old,
    /// What the new set has there, or nothing if it has nothing.
    New,
    /// Something else.
    Stranger,
}

/// Looks at a place. `old` and `new` are what the sets have there, where that is known.
pub(crate) fn place_of(
    root: &HostRoot,
    swapped: &SwapFile,
    old: Option<Option<Digest>>,
    new: Option<Option<Digest>>,
) -> Result<Place, SwapError> {
    if is_link(&place(root, &swapped.target)?, swapped.file) {
        return Ok(Place::Link);
    }
    let look = |source| SwapError::Look { path: swapped.target.clone(), source };
    let found = Some(digest_at(root, &swapped.target).map_err(look)?);
    Ok(if found == old {
        Place::Old
    } else if found == new {
        Place::New
    } else {
        Place::Stranger
    })
}

/// Where a target's link leads, on the host.
fn through_current(file: EngineFile) -> PathBuf {
    PathBuf::from(format!("{ENGINES_DIR}/{CURRENT}/{file}"))
}

/// Whether a target is a link of ours.
fn is_link(at: &Path, file: EngineFile) -> bool {
    fs::read_link(at).is_ok_and(|to| to == through_current(file))
}

/// Whether any target is a link of ours.
fn any_link(root: &HostRoot, plan: &SwapPlan) -> Result<bool, SwapError> {
    for SwapFile { file, target, .. } in &plan.files {
        if is_link(&place(root, target)?, *file) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A target as a path that this process can open: folders resolved, its own name kept.
fn place(root: &HostRoot, target: &str) -> Result<PathBuf, SwapError> {
    root.resolve_parent(target).map_err(|source| SwapError::Look { path: target.to_owned(), source })
}

/// The temporary name of the next `current`.
fn temp_current(store: &Store) -> PathBuf {
    store.dir().join(format!(".{CURRENT}.new"))
}

/// The temporary name beside a target: on its file system, out of everybody's PATH by its dot.
fn temp_beside(at: &Path, file: EngineFile) -> PathBuf {
    at.with_file_name(format!(".{file}.requeen"))
}

/// Removes what a crash left under a temporary name.
fn clear(temp: &Path, act: Actor<'_>) -> Result<(), SwapError> {
    if fs::symlink_metadata(temp).is_ok() {
        change(act, Change::Remove { at: temp.to_owned() })?;
    }
    Ok(())
}

fn remember_folder(at: &Path, folders: &mut Vec<PathBuf>) {
    if let Some(folder) = at.parent()
        && !folders.iter().any(|known| known == folder)
    {
        folders.push(folder.to_owned());
    }
}

fn sync_folders(folders: Vec<PathBuf>, act: Actor<'_>) -> Result<(), SwapError> {
    for at in folders {
        change(act, Change::SyncFolder { at })?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "swap_tests.rs"]
mod tests;
