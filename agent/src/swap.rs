//! The swap: how a set of engine files takes another's place, in one rename.
//!
//! 1. [`link`], engine running: `current` leads to the set that runs, and each target becomes, by an
//!    atomic rename, a symbolic link through `current`. Nobody can see a difference.
//! 2. [`switch`], engine down: one rename makes `current` lead to the other set. Switching back is
//!    the same rename.
//! 3. [`settle`], engine verified: each link becomes, by an atomic rename, a plain file of the current
//!    set, owned and labelled like the file that it stands for.
//!
//! Everything that changes the disk is an [`Effect`], done by [`perform`] and by nothing else, so a
//! test can stop between every two of them. Each function looks at what is there before each effect
//! and does only what is left to do: running it again after a crash ends where one run would have.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use requeen_protocol::{Digest, EngineFile};
use serde::{Deserialize, Serialize};

use crate::host::HostRoot;
use crate::host::files;
use crate::host::layout::Layout;
use crate::sets::{CURRENT, ENGINES_DIR, HISTORY, SetError, SetId, Store};

/// Mode of a program that takes the place of a link, or of nothing.
const PLAIN_MODE: u32 = 0o755;
/// Bits that chmod takes.
const MODE_BITS: u32 = 0o7777;
/// Attributes that sign a file's content or metadata: wrong on another file.
const SIGNATURES: [&str; 2] = ["security.ima", "security.evm"];

/// What a file was before the swap touched it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Original {
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permission bits.
    pub mode: u32,
    /// Its extended attributes, values in hexadecimal; among them the SELinux label.
    pub xattrs: BTreeMap<String, String>,
    /// Where it led, if it was a symbolic link.
    pub was_symlink_to: Option<String>,
}

/// One file to be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwapFile {
    /// Which one.
    pub file: EngineFile,
    /// Where it is, as an absolute path of the host.
    pub target: String,
    /// What was there; nothing if the host had no such file.
    pub original: Option<Original>,
}

/// Everything needed to carry out a swap, to take it back, or to finish it after a crash. It goes into
/// the journal before the first link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwapPlan {
    /// The files that differ between the two sets; the others are not touched.
    pub files: Vec<SwapFile>,
    /// The set that runs.
    pub from: SetId,
    /// The set that will run.
    pub to: SetId,
}

/// One change of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A new symbolic link.
    Symlink {
        /// Where it leads.
        to: PathBuf,
        /// Where it is.
        at: PathBuf,
    },
    /// A new file with another's content.
    Copy {
        /// The other.
        from: PathBuf,
        /// The new one.
        to: PathBuf,
    },
    /// A new file with this content.
    Write {
        /// Its content.
        bytes: Vec<u8>,
        /// Where it is.
        at: PathBuf,
    },
    /// Another owner; of a symbolic link its own.
    Own {
        /// Of what.
        at: PathBuf,
        /// The owner.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// Other permission bits.
    Mode {
        /// Of what.
        at: PathBuf,
        /// The bits.
        mode: u32,
    },
    /// An extended attribute; of a symbolic link its own.
    Attribute {
        /// Of what.
        at: PathBuf,
        /// Its name.
        name: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Content and metadata of a file go to disk.
    SyncFile {
        /// The file.
        at: PathBuf,
    },
    /// Names in a folder go to disk.
    SyncFolder {
        /// The folder.
        at: PathBuf,
    },
    /// One name takes another's place.
    Rename {
        /// The name that goes.
        from: PathBuf,
        /// The name that stays.
        to: PathBuf,
    },
    /// A name goes.
    Remove {
        /// The name.
        at: PathBuf,
    },
}

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
    #[error("{effect:?} failed")]
    Effect {
        /// The change.
        effect: Box<Effect>,
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

/// Makes a change of the disk. The functions below do so through this alone.
pub fn perform(effect: &Effect) -> io::Result<()> {
    match effect {
        Effect::Symlink { to, at } => std::os::unix::fs::symlink(to, at),
        Effect::Copy { from, to } => fs::copy(from, to).map(|_| ()),
        Effect::Write { bytes, at } => fs::write(at, bytes),
        Effect::Own { at, uid, gid } => std::os::unix::fs::lchown(at, Some(*uid), Some(*gid)),
        Effect::Mode { at, mode } => fs::set_permissions(at, Permissions::from_mode(*mode)),
        Effect::Attribute { at, name, value } => xattr::set(at, name, value),
        Effect::SyncFile { at } => fs::File::open(at)?.sync_all(),
        Effect::SyncFolder { at } => files::sync_dir(at),
        Effect::Rename { from, to } => fs::rename(from, to),
        Effect::Remove { at } => fs::remove_file(at),
    }
}

/// What makes the changes: [`perform`], or a test that stops.
pub(crate) type Actor<'a> = &'a mut dyn FnMut(&Effect) -> io::Result<()>;

/// Looks at what is at each target now. Refuses if that is not what `from` holds. Changes nothing.
///
/// Make it while no swap is under way: what a link stands for is known to the plan alone.
pub fn plan(root: &HostRoot, layout: &Layout, store: &Store, from: &SetId, to: &SetId) -> Result<SwapPlan, SwapError> {
    let old = store.manifest(from)?.files;
    let new = store.manifest(to)?.files;
    let mut swapped = Vec::new();
    for &file in EngineFile::ALL {
        let (old, new) = (old.get(&file), new.get(&file));
        if old.map(|entry| &entry.digest) == new.map(|entry| &entry.digest) {
            continue;
        }
        let target = layout.targets.get(&file).ok_or(SwapError::NoPlace(file))?;
        let look = |source| SwapError::Look { path: target.clone(), source };
        let found = digest_at(root, target).map_err(look)?;
        let expected = old.map(|entry| &entry.digest);
        if found.as_ref() != expected {
            let text = |digest: Option<&Digest>| digest.map_or_else(|| "no file".to_owned(), Digest::to_string);
            return Err(SwapError::Changed {
                path: target.clone(),
                expected: text(expected),
                found: text(found.as_ref()),
            });
        }
        swapped.push(SwapFile { file, target: target.clone(), original: original_at(root, target).map_err(look)? });
    }
    Ok(SwapPlan { files: swapped, from: from.clone(), to: to.clone() })
}

/// Puts the links in place, leading to the set that runs. Its engine notices nothing.
pub fn link(root: &HostRoot, store: &Store, plan: &SwapPlan) -> Result<(), SwapError> {
    link_by(root, store, plan, &mut perform)
}

/// Makes `to` (one of the plan's two sets) the current set: one rename.
pub fn switch(root: &HostRoot, store: &Store, plan: &SwapPlan, to: &SetId) -> Result<(), SwapError> {
    switch_by(root, store, plan, to, &mut perform)
}

/// Makes every link a plain file of the current set again. If that is the new set, it goes into the
/// record of installed sets; if it is the old one, every target is again what it was, links included.
pub fn settle(root: &HostRoot, store: &Store, plan: &SwapPlan) -> Result<(), SwapError> {
    settle_by(root, store, plan, &mut perform)
}

/// Takes the links back while the old set is current, as if nothing had been done.
pub fn unlink(root: &HostRoot, store: &Store, plan: &SwapPlan) -> Result<(), SwapError> {
    unlink_by(root, store, plan, &mut perform)
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
        change(act, Effect::Symlink { to, at: temp.clone() })?;
        change(act, Effect::Rename { from: temp, to: at })?;
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
            change(act, Effect::Symlink { to: led_to.into(), at: temp.clone() })?;
            dress(&temp, swapped, act)?;
        } else if holds.contains_key(file) {
            let from = store.path(&current, *file);
            change(act, Effect::Copy { from, to: temp.clone() })?;
            dress(&temp, swapped, act)?;
            change(act, Effect::SyncFile { at: temp.clone() })?;
        } else {
            change(act, Effect::Remove { at })?;
            continue;
        }
        change(act, Effect::Rename { from: temp, to: at })?;
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
        Some(current) if current == plan.to => Err(SwapError::NotOld),
        // `link` did not get as far as its own first effect, so there is nothing to take back.
        None | Some(_) => match any_link(root, plan)? {
            false => clear(&temp_current(store), act),
            true => Err(SwapError::CurrentStranger(store.current()?)),
        },
    }
}

/// One effect, with its name in the error.
fn change(act: Actor<'_>, effect: Effect) -> Result<(), SwapError> {
    act(&effect).map_err(|source| SwapError::Effect { effect: Box::new(effect), source })
}

/// Makes `current` lead to `set`, on disk when this returns.
fn point_current(store: &Store, set: &SetId, act: Actor<'_>) -> Result<(), SwapError> {
    // A set that is not there, or not whole, must never become current.
    store.manifest(set)?;
    let temp = temp_current(store);
    clear(&temp, act)?;
    if store.current()?.as_ref() != Some(set) {
        let to = PathBuf::from(set.0.hex());
        change(act, Effect::Symlink { to, at: temp.clone() })?;
        change(act, Effect::Rename { from: temp, to: store.dir().join(CURRENT) })?;
    }
    // Also where the rename was done before a crash: it may not have reached the disk.
    change(act, Effect::SyncFolder { at: store.dir().to_owned() })
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
    change(act, Effect::Own { at: at.clone(), uid, gid })?;
    if !is_link {
        change(act, Effect::Mode { at: at.clone(), mode })?;
    }
    for (name, value) in xattrs {
        let value = hex::decode(value).map_err(|source| SwapError::Attribute {
            path: swapped.target.clone(),
            name: name.clone(),
            source,
        })?;
        change(act, Effect::Attribute { at: at.clone(), name, value })?;
    }
    Ok(())
}

/// Writes the new set into the record of installed ones.
fn record(store: &Store, plan: &SwapPlan, act: Actor<'_>) -> Result<(), SwapError> {
    if let Some(bytes) = store.history_with(&plan.from, &plan.to)? {
        let at = store.dir().join(HISTORY);
        let temp = store.dir().join(format!(".{HISTORY}.new"));
        clear(&temp, act)?;
        change(act, Effect::Write { bytes, at: temp.clone() })?;
        change(act, Effect::SyncFile { at: temp.clone() })?;
        change(act, Effect::Rename { from: temp, to: at })?;
    }
    change(act, Effect::SyncFolder { at: store.dir().to_owned() })
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
        change(act, Effect::Remove { at: temp.to_owned() })?;
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
        change(act, Effect::SyncFolder { at })?;
    }
    Ok(())
}

/// The digest of what a target leads to; nothing if it leads nowhere.
fn digest_at(root: &HostRoot, target: &str) -> io::Result<Option<Digest>> {
    match root.resolve(target).and_then(|path| files::digest(&path)) {
        Ok((digest, _)) => Ok(Some(digest)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is at a target now.
fn original_at(root: &HostRoot, target: &str) -> io::Result<Option<Original>> {
    let at = root.resolve_parent(target)?;
    let meta = match fs::symlink_metadata(&at) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let was_symlink_to = if meta.is_symlink() {
        let to = fs::read_link(&at)?;
        if to.starts_with(ENGINES_DIR) {
            // Left by a swap whose journal is lost. What it stood for is not known any more.
            return Ok(None);
        }
        Some(to.to_string_lossy().into_owned())
    } else {
        None
    };
    let mut xattrs = BTreeMap::new();
    match xattr::list(&at) {
        Ok(names) => {
            for name in names {
                let name = name.to_string_lossy().into_owned();
                if let Some(value) = xattr::get(&at, &name)?
                    && !SIGNATURES.contains(&name.as_str())
                {
                    xattrs.insert(name, hex::encode(value));
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        Err(error) => return Err(error),
    }
    Ok(Some(Original { uid: meta.uid(), gid: meta.gid(), mode: meta.mode() & MODE_BITS, xattrs, was_symlink_to }))
}

#[cfg(test)]
#[path = "swap_tests.rs"]
mod tests;
