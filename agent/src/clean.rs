//! Taking away what agents left on a host, and nothing else.
//!
//! All of it is below [`STATE_DIR`], under names that are known, but for the units and scripts of [`boot`]. What has another name there, or is of another kind, is
//! somebody else's: it stays and is told. No symbolic link is followed on the way, and nothing is touched while an executor
//! lives or its work is unfinished.

use std::ffi::{OsStr, OsString};
use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use requeen_protocol::{Cleaning, Digest, EngineFile, Left, Problem, STATE_DIR};

use crate::boot;
use crate::host::{HostRoot, layout};
use crate::journal::{JOURNAL_PATH, Journal};
use crate::lock::{self, Held};
use crate::raft_copy::{self, UNFINISHED};
use crate::sets::{CURRENT, ENGINES_DIR, HISTORY, MANIFEST, SetId, Store, set_named};
use crate::words::chain;

/// So many things that stay are told by name. What is told has to fit into a report.
const NAMED: usize = 50;

/// Folders of [`STATE_DIR`]: the agent's own, its programs, the sets, the bundles of a coordinator, and the copies of the
/// swarm's folder.
const AGENT: &str = "agent";
const PROGRAMS: &str = "bin";
const SETS: &str = "engines";
const BUNDLES: &str = "bundles";
const COPIES: &str = "raft-copies";
/// Where the agent keeps a rollout's bundle.
const STAGED_BUNDLES: &str = "agent/bundles";

/// Sets that are not whole yet, or were never finished.
const IN_THE_MAKING: [&str; 2] = [".capture", ".stage"];
/// Files of the folder [`AGENT`]: each may have a temporary one of its name beside it.
const RECORDS: [&str; 9] = [
    "journal.json",
    "containers.json",
    "staged.json",
    "swarm.json",
    "executor.lock",
    "executor.log",
    "executor.log.old",
    "recovery.log",
    "memo",
];
/// A journal that could not be read and was put aside.
const DAMAGED: &str = "journal.json.damaged";
/// What a coordinator listens on, and under which name it was made.
const SOCKET: &str = "requeen.sock";
const SOCKETS: [&str; 2] = [SOCKET, "requeen.sock.new"];
/// What names of bundles begin with that did not arrive whole.
const RECEIVING: &str = ".receiving-";

/// Removes what agents left on this host; the sets that were installed last, and copies of the swarm's folder, only with
/// `backups`.
pub fn clean(root: &HostRoot, backups: bool) -> Cleaning {
    let base = match root.resolve_parent(STATE_DIR) {
        Ok(base) => base,
        Err(error) => return refused(format!("{STATE_DIR} can't be looked at: {error}"), "look at the file system"),
    };
    let mut sweep = Sweep { base, left: Vec::new(), more: 0 };
    // Held to the end: no executor may begin meanwhile.
    let _lock = match lock_up(root, &sweep) {
        Ok(lock) => lock,
        Err(refused) => return refused,
    };
    // First: they name a program that goes.
    if let Err(error) = boot::remove(root) {
        sweep.leave(Left::Failed { path: boot::UNITS.to_owned(), why: chain(&error) });
    }
    sweep.all(root, backups);
    Cleaning::Done { left: sweep.left, more: sweep.more }
}

fn refused(what: String, hint: &str) -> Cleaning {
    Cleaning::Refused { problem: Problem { what, hint: hint.to_owned() } }
}

/// The executor's lock, if there is a folder for it; or why nothing may be touched.
fn lock_up(root: &HostRoot, sweep: &Sweep) -> Result<Option<Held>, Cleaning> {
    let busy =
        || refused("an executor works on this node".to_owned(), "wait for its end: `journalctl -u requeen-executor`");
    if lock::is_held(root).map_err(|error| refused(chain(&error), "look at the file system"))? {
        return Err(busy());
    }
    let journal = Journal::load(root).map_err(|error| {
        refused(chain(&error), "whether work on the engine is unfinished is not known: look at it, then remove it")
    })?;
    if let Some(work) = journal.work.filter(|work| !work.phase.is_final()) {
        return Err(refused(
            format!("{JOURNAL_PATH} holds unfinished work of lease {}", work.lease),
            "an agent on this node finishes it; see `requeen status`",
        ));
    }
    if !sweep.is_folder(AGENT) {
        return Ok(None);
    }
    match lock::take(root) {
        Ok(Some(held)) => Ok(Some(held)),
        Ok(None) => Err(busy()),
        Err(error) => Err(refused(chain(&error), "look at the file system")),
    }
}

/// What is to become of something in a folder.
enum Fate {
    /// It goes.
    Remove,
    /// Its turn is another one.
    Pass,
    /// It is nobody's of Requeen's.
    Unknown,
}

impl Fate {
    fn remove_if(ours: bool) -> Self {
        if ours { Fate::Remove } else { Fate::Unknown }
    }
}

struct Sweep {
    /// [`STATE_DIR`], as a path that this process can open.
    base: PathBuf,
    left: Vec<Left>,
    more: u64,
}

impl Sweep {
    fn all(&mut self, root: &HostRoot, backups: bool) {
        match fs::symlink_metadata(&self.base) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.failed("", &error),
            Ok(meta) if !meta.is_dir() => return self.leave(Left::Unknown { path: shown("") }),
            Ok(_) => {}
        }
        self.folder(PROGRAMS, |name, kind| Fate::remove_if(kind.is_file() && name.starts_with("agent-")));
        self.folder(STAGED_BUNDLES, |name, kind| Fate::remove_if(kind.is_file() && is_bundle(name)));
        self.folder(AGENT, |name, kind| match name {
            "bundles" if kind.is_dir() => Fate::Pass,
            _ => Fate::remove_if(kind.is_file() && (name == DAMAGED || is_record(name))),
        });
        self.sets(root, backups);
        self.copies(root, backups);
        let serves = self.coordinator();
        self.folder("", |name, kind| match name {
            AGENT | PROGRAMS | SETS | BUNDLES | COPIES if kind.is_dir() => Fate::Pass,
            _ if serves && SOCKETS.contains(&name) => Fate::Pass,
            _ => Fate::remove_if(kind.is_socket() && SOCKETS.contains(&name)),
        });
    }

    /// The sets of engine files, but for the way back unless that is to go too.
    fn sets(&mut self, root: &HostRoot, backups: bool) {
        if !self.is_folder(SETS) {
            return;
        }
        let keep = if backups { in_use(root).map(|()| Vec::new()) } else { backups_of(root) };
        let keep = match keep {
            Ok(keep) => keep,
            Err(why) => return self.leave(Left::Failed { path: shown(SETS), why }),
        };
        let mut kept = false;
        for (name, kind) in self.entries(SETS) {
            let path = format!("{SETS}/{}", name.to_string_lossy());
            if !kind.is_dir() {
                continue;
            }
            match set_named(&name) {
                Some(set) if keep.contains(&set) => {
                    kept = true;
                    self.leave(Left::Backup { path: shown(&path) });
                }
                Some(_) => self.set(&path),
                None if IN_THE_MAKING.iter().any(|known| name == *known) => self.set(&path),
                None => {}
            }
        }
        self.folder(SETS, |name, kind| {
            let set = kind.is_dir() && (set_named(OsStr::new(name)).is_some() || IN_THE_MAKING.contains(&name));
            let link = kind.is_symlink() && name == CURRENT;
            let record = kind.is_file() && name == HISTORY;
            let temporary = [CURRENT, HISTORY].iter().any(|name_of| is_temporary(name, name_of)) && !kind.is_dir();
            if set || ((link || record) && kept) { Fate::Pass } else { Fate::remove_if(link || record || temporary) }
        });
    }

    /// The copies of the swarm's folder: the way back too, and whole folders. One that is not as it was made is somebody else's.
    fn copies(&mut self, root: &HostRoot, backups: bool) {
        if !self.is_folder(COPIES) {
            return;
        }
        let own = raft_copy::own(root).unwrap_or_else(|error| {
            self.failed(COPIES, &error);
            Vec::new()
        });
        for (name, kind) in self.entries(COPIES) {
            let name = name.to_string_lossy();
            let path = format!("{COPIES}/{name}");
            let whole = own.iter().any(|own| *own == name);
            if kind.is_dir() && (whole && backups || UNFINISHED.contains(&&*name)) {
                if let Err(error) = fs::remove_dir_all(self.at(&path)) {
                    self.failed(&path, &error);
                }
            } else {
                let path = shown(&path);
                self.leave(if whole { Left::Backup { path } } else { Left::Unknown { path } });
            }
        }
        // What is in it was told.
        self.folder(COPIES, |_, _| Fate::Pass);
    }

    fn set(&mut self, path: &str) {
        self.folder(path, |name, kind| {
            Fate::remove_if(kind.is_file() && (name == MANIFEST || EngineFile::from_name(name).is_some()))
        });
    }

    /// What a coordinator has here goes with the coordinator; of one that is gone, now. Gives whether one serves.
    fn coordinator(&mut self) -> bool {
        let socket = self.base.join(SOCKET);
        let is_socket = fs::symlink_metadata(&socket).is_ok_and(|meta| meta.file_type().is_socket());
        let serves = is_socket && UnixStream::connect(&socket).is_ok();
        if serves {
            self.leave(Left::Coordinator { path: shown(SOCKET) });
        } else {
            self.folder(BUNDLES, |name, kind| {
                Fate::remove_if(kind.is_file() && (is_bundle(name) || name.starts_with(RECEIVING)))
            });
        }
        serves
    }

    /// Deals with everything in a folder, and removes it if nothing is left in it. What is no folder is not entered.
    fn folder(&mut self, path: &str, fate: impl Fn(&str, FileType) -> Fate) {
        if !self.is_folder(path) {
            return;
        }
        for (name, kind) in self.entries(path) {
            let text = name.to_string_lossy();
            let inside = if path.is_empty() { text.to_string() } else { format!("{path}/{text}") };
            match fate(&text, kind) {
                Fate::Pass => {}
                Fate::Unknown => self.leave(Left::Unknown { path: shown(&inside) }),
                Fate::Remove => {
                    if let Err(error) = fs::remove_file(self.at(path).join(&name)) {
                        self.failed(&inside, &error);
                    }
                }
            }
        }
        match fs::remove_dir(self.at(path)) {
            // What is in it was told; a mount point stays, and nothing is in it.
            Err(error) if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy) => {
                self.failed(path, &error);
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Whether a path leads to a folder through folders only.
    fn is_folder(&self, path: &str) -> bool {
        let mut parts = Path::new(path).ancestors().map(|part| self.at(part));
        parts.all(|part| fs::symlink_metadata(part).is_ok_and(|meta| meta.is_dir()))
    }

    fn entries(&mut self, path: &str) -> Vec<(OsString, FileType)> {
        list(&self.at(path)).unwrap_or_else(|error| {
            self.failed(path, &error);
            Vec::new()
        })
    }

    /// A path below the folder. Never with a slash at its end, through which the kernel would follow a link.
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        if path.as_os_str().is_empty() { self.base.clone() } else { self.base.join(path) }
    }

    fn failed(&mut self, path: &str, error: &io::Error) {
        self.leave(Left::Failed { path: shown(path), why: error.to_string() });
    }

    fn leave(&mut self, left: Left) {
        if self.left.len() < NAMED { self.left.push(left) } else { self.more += 1 }
    }
}

/// What is in a folder, by name.
fn list(dir: &Path) -> io::Result<Vec<(OsString, FileType)>> {
    let entries = fs::read_dir(dir)?.map(|entry| {
        let entry = entry?;
        Ok((entry.file_name(), entry.file_type()?))
    });
    let mut entries: Vec<_> = entries.collect::<io::Result<_>>()?;
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(entries)
}

/// A path below [`STATE_DIR`] as the host names it.
fn shown(path: &str) -> String {
    if path.is_empty() { STATE_DIR.to_owned() } else { format!("{STATE_DIR}/{path}") }
}

/// `.NAME.new`, as files are called until they take their place.
fn is_temporary(name: &str, of: &str) -> bool {
    name.strip_prefix('.').and_then(|name| name.strip_suffix(".new")) == Some(of)
}

fn is_record(name: &str) -> bool {
    RECORDS.iter().any(|record| name == *record || is_temporary(name, record))
}

fn is_bundle(name: &str) -> bool {
    name.strip_suffix(".tgz").or_else(|| name.strip_suffix(".part")).is_some_and(|hex| Digest::from_hex(hex).is_ok())
}

/// The sets that are the way back. A record that can't be read is no reason to remove anything.
fn backups_of(root: &HostRoot) -> Result<Vec<SetId>, String> {
    let store = Store::existing(root).map_err(|error| chain(&error))?;
    store.map_or_else(|| Ok(Vec::new()), |store| store.backups().map_err(|error| chain(&error)))
}

/// Refuses where the engine starts through links into the sets, as it does until a swap is settled.
fn in_use(root: &HostRoot) -> Result<(), String> {
    let layout = layout::discover(root).map_err(|problems| {
        let all: Vec<_> = problems.into_iter().map(|problem| problem.what).collect();
        format!("whether the engine's files are links into it can't be found out: {}", all.join("; "))
    })?;
    let engines = root.canonical(ENGINES_DIR).map_err(|error| error.to_string())?;
    match layout.targets.values().find(|target| root.canonical(target).is_ok_and(|to| to.starts_with(&engines))) {
        Some(target) => Err(format!("{target} is a link into it, and the engine would not start without")),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "clean_tests.rs"]
mod tests;
