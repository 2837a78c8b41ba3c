//! The one lock of a node: whoever holds it is the executor and speaks for the node.
//!
//! It is a lock of the kernel on an open file, so it ends with the process that holds it, however
//! that process ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::host::HostRoot;

/// The lock file, as a path of the host.
pub const LOCK_PATH: &str = "/var/lib/requeen/agent/executor.lock";

/// The lock can't be taken or looked at.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file can't be opened.
    #[error("{LOCK_PATH} can't be opened")]
    Open(#[source] io::Error),
    /// The kernel refused for another reason than that somebody holds it.
    #[error("{LOCK_PATH} can't be locked")]
    Lock(#[source] Errno),
}

/// The lock, held until this is dropped.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "held, never looked at")] Flock<File>);

fn open(root: &HostRoot) -> Result<File, LockError> {
    let path: PathBuf = root.join(LOCK_PATH);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(LockError::Open)?;
    }
    OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(LockError::Open)
}

/// Takes the lock if nobody has it.
pub fn take(root: &HostRoot) -> Result<Option<Held>, LockError> {
    match Flock::lock(open(root)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(Held(lock))),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(LockError::Lock(errno)),
    }
}

/// Whether an executor lives. Looks with a shared lock that is given back at once, and makes no file: on a host that was
/// cleaned a look leaves nothing.
pub fn is_held(root: &HostRoot) -> Result<bool, LockError> {
    let file = match OpenOptions::new().write(true).open(root.join(LOCK_PATH)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(LockError::Open)?,
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(LockError::Lock(errno)),
    }
}

/// Waits until no executor lives, on a thread of its own: the wait can take as long as a rollout.
pub async fn until_free(root: &HostRoot) -> Result<(), LockError> {
    let file = open(root)?;
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let result = match Flock::lock(file, FlockArg::LockShared) {
            Ok(_) => Ok(()),
            Err((_, errno)) => Err(LockError::Lock(errno)),
        };
        // Whoever waited may have gone.
        let _ = tell.send(result);
    });
    // The thread always tells; it can only be gone together with the process.
    told.await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_holds_it_and_its_end_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        assert!(!is_held(&root).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a look leaves nothing");
        let held = take(&root).unwrap().expect("free");
        assert!(is_held(&root).unwrap());
        assert!(take(&root).unwrap().is_none());
        drop(held);
        until_free(&root).await.unwrap();
        assert!(take(&root).unwrap().is_some());
    }
}
