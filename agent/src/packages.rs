//! The locks of the host's package managers.
//!
//! A package of the engine that is installed while its files are links, or while the engine is down, would mix its files
//! with the set's. So nothing begins while a package manager is at work, and none begins while the node is: its lock is held
//! from the lease to the end of the work. `apt` waits meanwhile, `apt-get` and `dpkg` name this process and give up.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::host::HostRoot;

/// Debian's since dpkg 1.19, and rpm's. Both are POSIX record locks on the whole file.
const LOCKS: [&str; 2] = ["/var/lib/dpkg/lock-frontend", "/var/lib/rpm/.rpm.lock"];

/// The locks, held until this is dropped.
#[derive(Debug)]
pub struct Kept(#[expect(dead_code, reason = "held, never looked at")] Vec<File>);

/// Why they can't be held.
#[derive(Debug, thiserror::Error)]
pub enum Taken {
    /// Somebody has one.
    #[error("a package manager is at work: it holds {0}")]
    Busy(&'static str),
    /// One can't be looked at.
    #[error("{path} can't be locked")]
    Failed {
        /// Which, as a path of the host.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Takes the locks of all package managers that the host has. A process takes them once: closing any file of theirs would
/// give them back.
pub fn keep(root: &HostRoot) -> Result<Kept, Taken> {
    let mut files = Vec::new();
    for (path, file) in there(root) {
        let file = file.map_err(|source| Taken::Failed { path, source })?;
        match fcntl(&file, FcntlArg::F_SETLK(&whole())) {
            Ok(_) => files.push(file),
            Err(Errno::EACCES | Errno::EAGAIN) => return Err(Taken::Busy(path)),
            Err(errno) => return Err(Taken::Failed { path, source: errno.into() }),
        }
    }
    Ok(Kept(files))
}

/// Whether somebody has one of them; takes none.
pub fn look(root: &HostRoot) -> Result<(), Taken> {
    for (path, file) in there(root) {
        let file = file.map_err(|source| Taken::Failed { path, source })?;
        let mut lock = whole();
        fcntl(&file, FcntlArg::F_GETLK(&mut lock)).map_err(|errno| Taken::Failed { path, source: errno.into() })?;
        if i32::from(lock.l_type) != libc::F_UNLCK {
            return Err(Taken::Busy(path));
        }
    }
    Ok(())
}

fn there(root: &HostRoot) -> impl Iterator<Item = (&'static str, io::Result<File>)> {
    LOCKS.into_iter().filter_map(|path| {
        let open = |at: &Path| OpenOptions::new().read(true).write(true).open(at);
        match root.resolve(path).and_then(|at| open(&at)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            file => Some((path, file)),
        }
    })
}

/// A write lock on a whole file.
pub(crate) fn whole() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_somebody_holds_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        drop(keep(&root).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a host without package managers stays as it is");

        let [dpkg, _] = LOCKS;
        let at = root.join(dpkg);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        let file = File::create(&at).unwrap();
        look(&root).unwrap();
        // A lock of the open file and not of the process stands for another process's.
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole())).unwrap();
        for taken in [keep(&root).map(drop), look(&root)] {
            let Err(Taken::Busy(path)) = taken else { panic!("{taken:?}") };
            assert_eq!(path, dpkg);
        }
        drop(file);
        let kept = keep(&root).unwrap();
        let other = OpenOptions::new().write(true).open(&at).unwrap();
        assert_eq!(fcntl(&other, FcntlArg::F_OFD_SETLK(&whole())), Err(Errno::EAGAIN));
        drop(kept);
        fcntl(&other, FcntlArg::F_OFD_SETLK(&whole())).unwrap();
    }
}
