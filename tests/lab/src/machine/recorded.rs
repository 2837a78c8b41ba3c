//! A machine whose writes are logged: dm-log-writes of its kernel stands between it and its disk from its first boot on,
//! so that all that was ever written to the disk that it began with is in the log, in the order in which it became durable.
//!
//! The log is a file beside the machine's disk. [`crate::writes`] reads it.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Error, Result, images};

/// The size of the log's disk; what nobody wrote takes no room.
const LOG_SIZE: u64 = 32 << 30;

/// The memory of such a machine: its kernel keeps a copy of every write until it is durable.
const MEMORY: &str = "2G";

/// The log of a machine.
pub(super) fn log(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.writes"))
}

/// Makes the log.
///
/// # Errors
/// [`Error::Logged`] if there is one: the kernel would begin it anew.
pub(super) fn make_log(folder: &Path, name: &str) -> Result<()> {
    let path = log(folder, name);
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file.set_len(LOG_SIZE).map_err(Error::file("write", path)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Error::Logged { node: name.to_owned() }),
        Err(error) => Err(Error::file("create", path)(error)),
    }
}

/// What the kernel is told of its memory and its disks: the shared one, which it boots from and nobody writes to, the
/// machine's own, and the log.
pub(super) fn disks(shared: &Path, own: &Path, log: &Path) -> String {
    format!(
        "mem={MEMORY} ubd0r={shared} ubd1={},{shared} ubd2={} root=/dev/ubda ro init={}",
        own.display(),
        log.display(),
        images::LOGGED_INIT,
        shared = shared.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_never_begun_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        make_log(folder.path(), "w1").expect("the first boot");
        assert!(matches!(make_log(folder.path(), "w1"), Err(Error::Logged { .. })));
        assert_eq!(log(folder.path(), "w1").metadata().expect("the log").len(), LOG_SIZE);
    }
}
