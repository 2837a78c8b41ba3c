//! Carrying a log out: the disk after one flush, after the next, and so on, and what a kernel finds on each.
//!
//! The disk is on an XFS in memory, where a copy shares what it has in common and takes an instant: what mounting and
//! whoever looks write goes to a copy that is thrown away. All of it is mounted where only one thread sees it, so nothing
//! is left when that thread ends, however it ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::{Log, Recording, What};
use crate::{Error, Result, command, images, tools};

/// The size of the XFS; what nobody wrote takes no memory.
const ROOM: u64 = 24 << 30;

/// How much is copied at once from the log to the disk.
const PIECE: u64 = 1 << 20;

/// A disk, and how far the log was carried out on it.
#[derive(Debug)]
pub struct Replay {
    log: Log,
    /// The next entry.
    next: usize,
    disk: File,
    /// Where the disk's file is.
    place: PathBuf,
    /// The copy that is looked at.
    copy: PathBuf,
    /// Where the copy is mounted.
    root: PathBuf,
}

/// Gives a disk as it was before the first write of a recording to `run`, in a thread whose mounts nobody else sees: only
/// what `run` starts itself can look at the disk.
///
/// # Errors
/// What `run` says; [`Error::Mounts`] if this process may not mount.
pub fn replay<T: Send, E: From<Error> + Send>(
    recording: &Recording,
    run: impl FnOnce(&mut Replay) -> Result<T, E> + Send,
) -> Result<T, E> {
    tools::install_for_machines()?;
    let folder = tempfile::tempdir().map_err(Error::file("create a folder in", std::env::temp_dir()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut replay = Replay::begin(recording, folder.path())?;
            run(&mut replay)
        });
        thread.join().unwrap_or_else(|_| Err(Error::Panicked { what: "the replay of a log" }.into()))
    })
}

impl Replay {
    fn begin(recording: &Recording, folder: &Path) -> Result<Self> {
        own_mounts()?;
        let [memory, ground, root] = ["memory", "ground", "root"].map(|name| folder.join(name));
        for place in [&memory, &ground, &root] {
            fs::create_dir(place).map_err(Error::file("create", place))?;
        }
        command::run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "tmpfs".as_ref(), memory.as_os_str()])?;
        let file = memory.join("xfs");
        let made = File::create(&file).and_then(|made| made.set_len(ROOM));
        made.map_err(Error::file("create", &file))?;
        command::run("mkfs.xfs", &["-q".as_ref(), "-m".as_ref(), "reflink=1".as_ref(), file.as_os_str()])?;
        command::run("mount", &["-o".as_ref(), "loop".as_ref(), file.as_os_str(), ground.as_os_str()])?;
        let place = ground.join("disk");
        command::run("cp", &["--sparse=always".as_ref(), recording.disk.as_os_str(), place.as_os_str()])?;
        let disk = OpenOptions::new().write(true).open(&place).map_err(Error::file("open", &place))?;
        Ok(Self { log: Log::read(&recording.log)?, next: 0, disk, copy: ground.join("copy"), place, root })
    }

    /// Carries out everything before a mark.
    ///
    /// # Errors
    /// [`Error::NoMark`] if it comes no more.
    pub fn to_mark(&mut self, mark: &str) -> Result<()> {
        while self.step()? {
            if self.log.entries.get(self.next - 1).is_some_and(|entry| entry.is_mark(mark)) {
                return Ok(());
            }
        }
        Err(Error::NoMark { path: self.log.path.clone(), mark: mark.to_owned() })
    }

    /// Carries out everything up to the next flush after which the disk is another one than before; returns the number of
    /// its entry, or nothing if `mark` came before.
    ///
    /// # Errors
    /// [`Error::NoMark`] if neither comes.
    pub fn to_flush(&mut self, mark: &str) -> Result<Option<usize>> {
        let mut changed = false;
        while self.step()? {
            let number = self.next - 1;
            let Some(entry) = self.log.entries.get(number) else { break };
            if entry.is_mark(mark) {
                return Ok(None);
            }
            changed |= match entry.what {
                What::Write { .. } | What::Discard { .. } => true,
                What::Nothing | What::Mark(_) => false,
            };
            if changed && entry.durable {
                return Ok(Some(number));
            }
        }
        Err(Error::NoMark { path: self.log.path.clone(), mark: mark.to_owned() })
    }

    /// Mounts the disk as a machine that boots from it would, and gives `look` the root. What either writes is lost.
    ///
    /// # Errors
    /// What `look` says; [`Error::Failed`] if it can't be mounted.
    pub fn found<T, E: From<Error>>(&self, look: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E> {
        let (place, copy, root) = (self.place.as_os_str(), self.copy.as_os_str(), self.root.as_os_str());
        command::run("cp", &["--reflink=always".as_ref(), place, copy])?;
        let options = format!("loop,{}", images::MOUNT_OPTIONS);
        command::run("mount", &["-t".as_ref(), "ext4".as_ref(), "-o".as_ref(), options.as_ref(), copy, root])?;
        let looked = look(&self.root);
        command::run("umount", &[root])?;
        looked
    }

    /// Carries out one entry; false if there is none.
    fn step(&mut self) -> Result<bool> {
        let Some(entry) = self.log.entries.get(self.next) else { return Ok(false) };
        let done = match entry.what {
            What::Write { to, from, length } => self.copy_bytes(from, to, length),
            What::Discard { at, length } => self.discard(at, length),
            What::Nothing | What::Mark(_) => Ok(()),
        };
        done.map_err(Error::file("write", &self.place))?;
        self.next += 1;
        Ok(true)
    }

    fn copy_bytes(&self, from: u64, to: u64, length: u64) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let piece = PIECE.min(length - done);
            let mut bytes = vec![0; usize::try_from(piece).map_err(io::Error::other)?];
            self.log.file.read_exact_at(&mut bytes, from + done)?;
            self.disk.write_all_at(&bytes, to + done)?;
            done += piece;
        }
        Ok(())
    }

    /// What a disk gives back for what was discarded is its own affair; here it is nothing, the worst that it may be.
    fn discard(&self, at: u64, length: u64) -> io::Result<()> {
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let number = |number: u64| i64::try_from(number).map_err(io::Error::other);
        Ok(fallocate(&self.disk, how, number(at)?, number(length)?)?)
    }
}

/// From here on what this thread and its children mount is theirs alone.
fn own_mounts() -> Result<()> {
    let wrong = |errno: nix::Error| Error::Mounts(errno.into());
    unshare(CloneFlags::CLONE_NEWNS).map_err(wrong)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writes::log::tests::{SECTOR, made};

    fn replay_on(disk: &[u8], log: &[u8]) -> (tempfile::TempDir, Replay) {
        let folder = tempfile::tempdir().expect("a folder");
        let [place, path] = ["disk", "log"].map(|name| folder.path().join(name));
        fs::write(&place, disk).expect("a disk");
        fs::write(&path, log).expect("a log");
        let disk = OpenOptions::new().write(true).open(&place).expect("the disk");
        let log = Log::read(&path).expect("the log");
        let replay = Replay { log, next: 0, disk, copy: folder.path().join("copy"), root: folder.path().into(), place };
        (folder, replay)
    }

    #[test]
    fn a_disk_has_what_was_written_up_to_a_flush_and_no_more() {
        const FLUSH: u64 = 1;
        const FUA: u64 = 2;
        const MARK: u64 = 8;
        let [one, two, three] = [[1; SECTOR], [2; SECTOR], [3; SECTOR]];
        let log = made(&[
            (0, 0, &one, ""),
            (MARK, 0, &[], "begin"),
            (FLUSH, 0, &[], ""),
            (0, 1, &two, ""),
            (FLUSH, 0, &[], ""),
            (FLUSH, 0, &[], ""),
            (FUA, 2, &three, ""),
            (0, 0, &three, ""),
            (MARK, 0, &[], "end"),
        ]);
        let (_folder, mut replay) = replay_on(&[0; 3 * SECTOR], &log);
        let found = |replay: &Replay| {
            let disk = fs::read(&replay.place).expect("the disk");
            disk.chunks(SECTOR).map(|sector| sector[0]).collect::<Vec<u8>>()
        };
        replay.to_mark("begin").expect("the mark");
        assert_eq!(found(&replay), [1, 0, 0]);
        // The first flush after the mark has nothing new, and neither has the third.
        assert_eq!(replay.to_flush("end").expect("a flush"), Some(4));
        assert_eq!(found(&replay), [1, 2, 0]);
        assert_eq!(replay.to_flush("end").expect("a write that forces its way"), Some(6));
        assert_eq!(found(&replay), [1, 2, 3]);
        assert_eq!(replay.to_flush("end").expect("the end"), None);
        assert!(matches!(replay.to_mark("begin"), Err(Error::NoMark { .. })));
    }

    #[test]
    fn what_was_discarded_is_gone() {
        const DISCARD: u64 = 4;
        let mut log = made(&[(DISCARD, 1, &[], ""), (8, 0, &[], "end")]);
        log[SECTOR + 8] = 2;
        let (_folder, mut replay) = replay_on(&[9; 4 * SECTOR], &log);
        replay.to_mark("end").expect("the mark");
        let disk = fs::read(&replay.place).expect("the disk");
        assert_eq!(disk.chunks(SECTOR).map(|sector| sector[0]).collect::<Vec<u8>>(), [9, 0, 0, 9]);
    }
}
