//! What the coordinator wants kept on this node until the rollout is forgotten: from it, and from what the nodes report, the
//! rollout's record can be made again. The agent does not look into it.

use std::io;

use crate::host::{HostRoot, files};

/// The file, as a path of the host.
const MEMO_PATH: &str = "/var/lib/requeen/agent/memo";

/// The memo kept, if there is one.
pub fn load(root: &HostRoot) -> Option<String> {
    std::fs::read_to_string(root.join(MEMO_PATH)).ok()
}

/// Keeps a memo in the place of the one before.
pub fn store(root: &HostRoot, memo: &str) -> io::Result<()> {
    files::replace(&root.join(MEMO_PATH), memo.as_bytes())
}

/// Removes the memo; no error if there is none.
pub fn forget(root: &HostRoot) -> io::Result<()> {
    match std::fs::remove_file(root.join(MEMO_PATH)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memo_is_kept_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        std::fs::create_dir_all(root.join("/var/lib/requeen/agent")).unwrap();
        assert_eq!(load(&root), None);
        store(&root, "one").unwrap();
        store(&root, "two").unwrap();
        assert_eq!(load(&root).as_deref(), Some("two"));
        forget(&root).unwrap();
        forget(&root).unwrap();
        assert_eq!(load(&root), None);
    }
}
