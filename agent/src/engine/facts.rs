//! What runs on a node: version, start time, and the digest of every file of the engine.
//!
//! Same version is not same engine, so the files' content counts. Reading 200 MB for every report
//! would not do: a digest is kept as long as its file has the same inode, size and time.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use requeen_protocol::{Digest, EngineFacts, EngineFile, FileFact};

use super::api::{Api, ApiError};
use crate::host::HostRoot;
use crate::host::layout::Layout;
use crate::sets::digest_file;

/// Clock ticks per second in `/proc/PID/stat`: `USER_HZ`, 100 on every architecture that Linux has
/// had since 2.6.
const TICKS_PER_SECOND: u64 = 100;

/// What a file was like when its digest was computed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        Ok(Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// Digests of files that have not changed since they were read.
#[derive(Clone, Debug, Default)]
pub struct DigestCache {
    known: BTreeMap<PathBuf, (Stamp, Digest)>,
}

impl DigestCache {
    /// The digest of a file, read only if it is not the file that it was.
    pub fn digest(&mut self, path: &Path) -> io::Result<Digest> {
        let stamp = Stamp::of(path)?;
        if let Some((known, digest)) = self.known.get(path)
            && *known == stamp
        {
            return Ok(digest.clone());
        }
        let digest = digest_file(path)?;
        self.known.insert(path.to_owned(), (stamp, digest.clone()));
        Ok(digest)
    }
}

/// Digests of the engine's files that are on the host. A file that can't be read is left out: the
/// checks that need it name it.
pub fn files(root: &HostRoot, layout: &Layout, cache: &mut DigestCache) -> BTreeMap<EngineFile, FileFact> {
    let mut facts = BTreeMap::new();
    for (&file, target) in &layout.targets {
        let digest = root.resolve(target).and_then(|path| cache.digest(&path));
        if let Ok(digest) = digest {
            facts.insert(file, FileFact { path: target.clone(), digest });
        }
    }
    facts
}

/// [`files`] on a thread that may take its time: reading 200 MB takes a while the first time.
pub async fn read_files(
    root: &HostRoot,
    layout: Option<&Layout>,
    cache: &mut DigestCache,
) -> BTreeMap<EngineFile, FileFact> {
    let Some(layout) = layout.cloned() else {
        return BTreeMap::new();
    };
    let (root, mut taken) = (root.clone(), std::mem::take(cache));
    let read = tokio::task::spawn_blocking(move || (files(&root, &layout, &mut taken), taken));
    let (files, taken) = read.await.unwrap_or_default();
    *cache = taken;
    files
}

/// Everything about the engine that runs.
pub async fn engine(
    root: &HostRoot,
    api: &Api,
    files: BTreeMap<EngineFile, FileFact>,
) -> Result<EngineFacts, ApiError> {
    let (version, api_version) = api.version().await?;
    Ok(EngineFacts { version, api_version, started_us: started_us(root).unwrap_or_default(), files })
}

/// When dockerd started, microseconds of the boot-time clock: the kernel's own record, which a
/// container sees too through the host's `/proc`.
pub fn started_us(root: &HostRoot) -> Option<u64> {
    let pid = dockerd_pid(root)?;
    let stat = std::fs::read_to_string(root.join(format!("/proc/{pid}/stat"))).ok()?;
    Some(start_ticks(&stat)? * (1_000_000 / TICKS_PER_SECOND))
}

/// The running dockerd: its PID file's word if that process is one, else the oldest of that name.
pub fn dockerd_pid(root: &HostRoot) -> Option<u32> {
    let is_dockerd = |pid: u32| {
        std::fs::read_to_string(root.join(format!("/proc/{pid}/comm"))).is_ok_and(|comm| comm.trim_end() == "dockerd")
    };
    let from_file = std::fs::read_to_string(root.join("/run/docker.pid"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .filter(|&pid| is_dockerd(pid));
    from_file.or_else(|| {
        std::fs::read_dir(root.join("/proc"))
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|&pid| is_dockerd(pid))
            .min()
    })
}

/// The start time in a line of `/proc/PID/stat`, in clock ticks since the boot. The command's name
/// may hold blanks and parentheses, so fields are counted from its last one: proc_pid_stat(5) has
/// `starttime` as field 22.
pub(crate) fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        for name in ["dockerd", "a b", "a) R (b"] {
            assert_eq!(start_ticks(&format!("77 ({name}) {tail}")), Some(4242));
        }
        assert_eq!(start_ticks("77 dockerd"), None);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runc");
        let mut cache = DigestCache::default();
        std::fs::write(&path, "one").unwrap();
        let one = cache.digest(&path).unwrap();
        assert_eq!(cache.digest(&path).unwrap(), one);
        // A replacement by rename, as packages do it: same size, another inode.
        let new = dir.path().join("new");
        std::fs::write(&new, "two").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_ne!(cache.digest(&path).unwrap(), one);
    }
}
