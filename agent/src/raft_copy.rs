//! Copies of a manager's swarm folder, made while no engine runs: what `--keep-raft-copy` keeps before a new engine first
//! writes to the raft store.
//!
//! The whole folder `swarm` below the engine's data directory, since the store alone can't be read: it is encrypted with a key
//! that is in the head of the node's TLS key. A copy is made under the name [`MAKING`], synced, and gets its own name then:
//! whatever has that name is whole. Nobody here ever reads a copy back into an engine.

pub(crate) mod survey;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use requeen_protocol::{LeaseId, Problem, STATE_DIR};
use serde::{Deserialize, Serialize};

use self::survey::{Entry, Kind};
use crate::effect::disk::{Actor, Change};
use crate::host::HostRoot;
use crate::identity::{Files, IdentityError};
use crate::stage::folders;
use crate::words::chain;

/// Where copies are kept, as a path of the host.
pub const COPIES_DIR: &str = "/var/lib/requeen/raft-copies";
/// A folder that is larger is not copied, bytes: the engine is down meanwhile.
pub const MAX_BYTES: u64 = 1 << 30;
/// So long a copy may take before it is given up, seconds: the engine is down meanwhile.
pub const MAX_SECS: u64 = 60;
/// Room that a copy leaves beside itself, bytes: the engine's files, old or new, are made plain after it.
const LEFT_FREE: u64 = 512 << 20;
/// So many copies are kept on a node.
pub const KEPT: usize = 3;

/// The name of a copy that is not whole yet.
pub(crate) const MAKING: &str = ".making";
/// The name of a copy that is being removed.
pub(crate) const REMOVING: &str = ".removing";
/// Names of what nobody needs, whatever is in it.
pub(crate) const UNFINISHED: [&str; 2] = [MAKING, REMOVING];
/// What a copy is of: beside the folder that was copied.
const RECORD: &str = "copy.json";
/// The folder that is copied: its name below the data directory, and in a copy.
const SWARM: &str = "swarm";
/// Version of the record's form.
const SCHEMA: u32 = 1;

/// Which copy is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOf {
    /// The lease under which the engine is replaced: there is one copy of each.
    pub lease: LeaseId,
    /// Version of the engine that wrote what is copied.
    pub version: String,
    /// That engine's data directory, as a path of the host.
    pub data_root: String,
}

/// What a copy says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    schema: u32,
    lease: LeaseId,
    version: String,
    /// The folder that was copied, as a path of the host.
    of: PathBuf,
    bytes: u64,
    /// Every name in it, relative to the copy: one that has others as well is somebody's else's too.
    names: BTreeSet<PathBuf>,
}

/// There is no copy, and why.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Whether the node is a manager is not known.
    #[error("whether this node is a manager can't be found out")]
    Role(#[from] IdentityError),
    /// A file or a folder can't be read.
    #[error("{} can't be read", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The copy can't be written.
    #[error("a copy in {COPIES_DIR} can't be written")]
    Write(#[from] io::Error),
    /// Something in it is neither a file nor a folder.
    #[error("{} is neither a file nor a folder, and a copy would not have what it stands for", .0.display())]
    Odd(PathBuf),
    /// It is larger than may be copied.
    #[error("{} holds {} MiB, and at most {} MiB are copied", .path.display(), .bytes.div_ceil(1 << 20), MAX_BYTES >> 20)]
    TooLarge {
        /// The folder.
        path: PathBuf,
        /// What it holds.
        bytes: u64,
    },
    /// There is no room for it.
    #[error("{0}")]
    NoRoom(String),
    /// It took too long.
    #[error("it was not done within {MAX_SECS} s, and the engine is not kept down for longer")]
    TooSlow,
    /// Something wrote while it was copied.
    #[error("{} changed while it was copied: something else than the engine writes there", .0.display())]
    Changed(PathBuf),
}

impl CopyError {
    fn hint(&self) -> &'static str {
        match self {
            CopyError::TooLarge { .. } => {
                "leave `--keep-raft-copy` out, and back the folder up by other means while that engine is stopped"
            }
            CopyError::NoRoom(_) => "make room there, or leave `--keep-raft-copy` out",
            CopyError::Role(_)
            | CopyError::Read { .. }
            | CopyError::Write(_)
            | CopyError::Odd(_)
            | CopyError::TooSlow
            | CopyError::Changed(_) => "look at that folder, or leave `--keep-raft-copy` out",
        }
    }

    /// What the operator is told of it before anything is touched.
    pub fn problem(&self) -> Problem {
        let what = format!("no copy of the swarm's folder could be kept: {}", chain(self));
        Problem { what, hint: self.hint().to_owned() }
    }
}

impl CopyOf {
    /// The copy's name: rollout (which begins with its date), node and how often it was tried, version.
    pub(crate) fn name(&self) -> String {
        let plain = |text: &str| -> String {
            text.chars().map(|c| if c.is_ascii_alphanumeric() || ".+~-".contains(c) { c } else { '-' }).collect()
        };
        format!("{}_{}", plain(self.lease.as_str()).trim_start_matches('.'), plain(&self.version))
    }

    fn folder(&self) -> PathBuf {
        Path::new(&self.data_root).join(SWARM)
    }
}

/// How much there will be to copy on this node, bytes; nothing on a worker. To be asked while its engine runs.
pub fn look(root: &HostRoot, data_root: &str) -> Result<u64, CopyError> {
    if !is_manager(root, data_root)? {
        return Ok(0);
    }
    let folder = Path::new(data_root).join(SWARM);
    let bytes = survey::bytes(&survey::of(root, &folder)?);
    fits(root, &folder, bytes)?;
    Ok(bytes)
}

/// Whether there is anything to copy: workers have no raft store.
pub fn is_manager(root: &HostRoot, data_root: &str) -> Result<bool, CopyError> {
    Ok(Files::new(root, data_root).names_a_manager()?)
}

fn fits(root: &HostRoot, folder: &Path, bytes: u64) -> Result<(), CopyError> {
    if bytes > MAX_BYTES {
        return Err(CopyError::TooLarge { path: folder.to_owned(), bytes });
    }
    match folders::room(root, COPIES_DIR.as_ref(), bytes.saturating_add(LEFT_FREE)) {
        Some(problem) => Err(CopyError::NoRoom(problem.what)),
        None => Ok(()),
    }
}

/// Makes the copy that is asked for, unless it is there. No engine may run. `late` says when it has taken too long; it is asked
/// before each file. Old copies stay: to remove them takes time too, and an engine is waited for.
pub(crate) fn keep(root: &HostRoot, of: &CopyOf, late: &dyn Fn() -> bool, act: Actor<'_>) -> Result<(), CopyError> {
    if find(root, of).is_some() {
        // Whoever made it may have ended before its name was on the disk.
        return Ok(act(&Change::SyncFolder { at: root.resolve(COPIES_DIR)? })?);
    }
    sweep(root, act)?;
    let found = survey::of(root, &of.folder())?;
    fits(root, &of.folder(), survey::bytes(&found))?;
    let made = make(root, of, &found, late, act);
    if made.is_err()
        && let Err(error) = sweep(root, act)
    {
        tracing::warn!("{}", chain(&error));
    }
    made
}

fn make(
    root: &HostRoot,
    of: &CopyOf,
    found: &[Entry],
    late: &dyn Fn() -> bool,
    act: Actor<'_>,
) -> Result<(), CopyError> {
    let (from, dir) = (root.resolve(of.folder())?, root.resolve(COPIES_DIR)?);
    if !dir.exists() {
        act(&Change::MakeFolder { at: dir.clone() })?;
        act(&Change::SyncFolder { at: root.resolve(STATE_DIR)? })?;
    }
    let temp = dir.join(MAKING);
    act(&Change::MakeFolder { at: temp.clone() })?;
    for entry in found {
        if late() {
            return Err(CopyError::TooSlow);
        }
        let at = temp.join(SWARM).join(&entry.path);
        match entry.kind {
            Kind::Folder => act(&Change::MakeFolder { at: at.clone() })?,
            Kind::File => act(&Change::CopyData { from: from.join(&entry.path), to: at.clone() })?,
        }
        act(&Change::Own { at: at.clone(), uid: entry.uid, gid: entry.gid })?;
        if entry.kind == Kind::File {
            act(&Change::SyncFile { at })?;
        }
    }
    for folder in found.iter().rev().filter(|entry| entry.kind == Kind::Folder) {
        act(&Change::SyncFolder { at: temp.join(SWARM).join(&folder.path) })?;
    }
    if survey::of(root, &of.folder())? != found {
        return Err(CopyError::Changed(of.folder()));
    }
    let record = temp.join(RECORD);
    act(&Change::Write { bytes: Record::new(of, found).to_json()?, at: record.clone() })?;
    act(&Change::Mode { at: record.clone(), mode: 0o600 })?;
    act(&Change::SyncFile { at: record })?;
    act(&Change::SyncFolder { at: temp.clone() })?;
    act(&Change::Rename { from: temp, to: dir.join(of.name()) })?;
    Ok(act(&Change::SyncFolder { at: dir })?)
}

/// Where the copy is that is asked for, as a path of the host, if it is there.
pub fn find(root: &HostRoot, of: &CopyOf) -> Option<String> {
    let name = of.name();
    Record::read(&root.resolve(COPIES_DIR).ok()?.join(&name))?;
    Some(format!("{COPIES_DIR}/{name}"))
}

/// Removes what is not whole: nobody but the holder of the node's lock makes or removes copies.
pub(crate) fn sweep(root: &HostRoot, act: Actor<'_>) -> io::Result<()> {
    let dir = root.resolve(COPIES_DIR)?;
    for at in UNFINISHED.map(|name| dir.join(name)) {
        if fs::symlink_metadata(&at).is_ok() {
            act(&Change::RemoveTree { at })?;
        }
    }
    Ok(())
}

/// Removes what is not whole, and the oldest of our own copies, as many as there are too many. Never the one at `newest`, whatever
/// the clock said when it was made.
pub(crate) fn tidy(root: &HostRoot, newest: Option<&str>, act: Actor<'_>) -> io::Result<()> {
    sweep(root, act)?;
    let dir = root.resolve(COPIES_DIR)?;
    let own = own(root)?;
    let is_newest = |name: &String| newest.and_then(|path| path.rsplit('/').next()) == Some(name);
    let removing = dir.join(REMOVING);
    for name in own.iter().filter(|name| !is_newest(name)).take(own.len().saturating_sub(KEPT)) {
        act(&Change::Rename { from: dir.join(name), to: removing.clone() })?;
        act(&Change::SyncFolder { at: dir.clone() })?;
        act(&Change::RemoveTree { at: removing.clone() })?;
    }
    Ok(())
}

/// The names of the copies that are whole and as they were made, the oldest first. One that was renamed, or in which somebody
/// has put something, is not ours any more.
pub(crate) fn own(root: &HostRoot) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(root.resolve(COPIES_DIR)?) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if entry.file_type()?.is_dir()
            && let Some(made) = made(root, &name)
        {
            found.push((made, name));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

/// When a copy was made, if it is one.
fn made(root: &HostRoot, name: &str) -> Option<SystemTime> {
    let at = Path::new(COPIES_DIR).join(name);
    let copy = root.resolve(&at).ok()?;
    let record = Record::read(&copy)?;
    let seen: BTreeSet<PathBuf> = survey::of(root, &at).ok()?.into_iter().map(|entry| entry.path).collect();
    let as_made = record.copy_of().name() == name && record.names == seen;
    if as_made { fs::metadata(copy.join(RECORD)).ok()?.modified().ok() } else { None }
}

impl Record {
    fn new(of: &CopyOf, found: &[Entry]) -> Self {
        let copied = found.iter().map(|entry| Path::new(SWARM).join(&entry.path));
        Self {
            schema: SCHEMA,
            lease: of.lease.clone(),
            version: of.version.clone(),
            of: of.folder(),
            bytes: survey::bytes(found),
            names: copied.map(survey::plain).chain(["".into(), RECORD.into()]).collect(),
        }
    }

    fn to_json(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }

    fn read(copy: &Path) -> Option<Self> {
        let record: Self = serde_json::from_slice(&fs::read(copy.join(RECORD)).ok()?).ok()?;
        (record.schema == SCHEMA).then_some(record)
    }

    fn copy_of(&self) -> CopyOf {
        CopyOf { lease: self.lease.clone(), version: self.version.clone(), data_root: String::new() }
    }
}

#[cfg(test)]
#[path = "raft_copy_tests.rs"]
mod tests;
