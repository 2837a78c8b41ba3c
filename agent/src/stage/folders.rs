//! Whether files can be replaced where they are: tried beside each target, and not guessed from device
//! numbers, mount options or attributes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use requeen_protocol::{EngineFile, Problem};

use super::preflight::problem;
use crate::boot::{self, scripts};
use crate::host::HostRoot;
use crate::host::layout::Layout;
use crate::host::manager::ServiceManager;
use crate::sets::Manifest;

/// Left free on every file system, bytes.
const MARGIN: u64 = 64 << 20;

/// The folders of the files that will change, and one such file of each.
fn target_folders(root: &HostRoot, layout: &Layout, changes: &[EngineFile]) -> Vec<(PathBuf, Vec<String>)> {
    let mut folders: Vec<(PathBuf, Vec<String>)> = Vec::new();
    for file in changes {
        let Some(target) = layout.targets.get(file) else {
            continue;
        };
        let parent = Path::new(target).parent().unwrap_or(Path::new("/"));
        let folder = root.resolve(parent).unwrap_or_else(|_| root.join(parent));
        match folders.iter_mut().find(|(known, _)| *known == folder) {
            Some((_, targets)) => targets.push(target.clone()),
            None => folders.push((folder, vec![target.clone()])),
        }
    }
    folders
}

/// Tries a link and a rename beside each target.
pub(super) fn check(root: &HostRoot, layout: &Layout, changes: &[EngineFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (folder, targets) in target_folders(root, layout, changes) {
        let shown = Path::new(&targets[0]).parent().unwrap_or(Path::new("/"));
        match try_folder(&folder) {
            Err(error) => problems.push(refused_folder(shown, &error)),
            Ok(links) => problems.extend(targets.iter().filter_map(|target| try_target(root, &folder, target, links))),
        }
    }
    problems
}

/// Tries the same where the units for a boot go; a folder that is missing is made when they are.
pub(super) fn check_units(root: &HostRoot) -> Option<Problem> {
    if ServiceManager::of(root).runs_scripts() {
        return check_scripts(root);
    }
    let folder = root.resolve(boot::UNITS).ok().filter(|folder| folder.is_dir())?;
    let error = try_folder(&folder).err()?;
    Some(problem(
        format!("{} takes no files: {error}", boot::UNITS),
        "what puts the engine's files in order after a power failure goes there: make it writable, or exclude the node",
    ))
}

/// The same where init scripts stand for the units.
fn check_scripts(root: &HostRoot) -> Option<Problem> {
    let hint = "what puts the engine's files in order after a power failure needs that: see to it, or exclude the node";
    if let Some(obstacle) = scripts::obstacle(root) {
        return Some(problem(obstacle, hint));
    }
    ["/etc/default", scripts::SCRIPTS].into_iter().find_map(|shown| {
        let folder = root.resolve(shown).ok().filter(|folder| folder.is_dir())?;
        let error = try_folder(&folder).err()?;
        Some(problem(format!("{shown} takes no files: {error}"), hint))
    })
}

/// Makes a file and a symbolic link, renames the one over the other. Gives whether a hard link could
/// be made as well, which the swap does not need.
fn try_folder(folder: &Path) -> io::Result<bool> {
    let [plain, link, hard] = ["plain", "link", "hard"].map(|name| folder.join(format!(".requeen-try-{name}")));
    let forget = || -> io::Result<()> {
        for path in [&plain, &link, &hard] {
            match fs::remove_file(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    forget()?;
    let attempt = || -> io::Result<bool> {
        fs::write(&plain, b"")?;
        let links = fs::hard_link(&plain, &hard).is_ok();
        std::os::unix::fs::symlink("nowhere", &link)?;
        fs::rename(&link, &plain)?;
        Ok(links)
    };
    let result = attempt();
    let forgotten = forget();
    // What the attempt itself met says more.
    let links = result?;
    forgotten?;
    Ok(links)
}

/// Whether a target can be replaced at all. A hard link to it fails where its own name could not be
/// renamed over: it is immutable, or a mount point.
fn try_target(root: &HostRoot, folder: &Path, target: &str, links: bool) -> Option<Problem> {
    let name = Path::new(target).file_name()?;
    let at = folder.join(name);
    if !links || fs::symlink_metadata(&at).is_err() {
        return None;
    }
    let trial = folder.join(".requeen-try-target");
    // A leftover of a crash would look like a refusal.
    let _ = fs::remove_file(&trial);
    match fs::hard_link(&at, &trial) {
        Ok(()) => match fs::remove_file(&trial) {
            Ok(()) => None,
            Err(error) => Some(refused_folder(&root.join(target), &error)),
        },
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(problem(
            format!("{target} may not be replaced: it is immutable"),
            format!("`chattr -i {target}`, or exclude the node"),
        )),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => Some(problem(
            format!("{target} may not be replaced: it is a mount of its own"),
            format!("unmount {target}, or exclude the node"),
        )),
        // Too many links to it, for instance: no obstacle to a rename.
        Err(_) => None,
    }
}

fn refused_folder(folder: &Path, error: &io::Error) -> Problem {
    let folder = folder.display();
    if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
        problem(
            format!("{folder} is on a read-only file system"),
            "remount it writable, or exclude the node: an image-based host gets its engine with its image",
        )
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        problem(
            format!("files in {folder} may not be replaced: {error}"),
            format!("look at `lsattr -d {folder}` and the host's security module"),
        )
    } else {
        problem(format!("files in {folder} can't be replaced: {error}"), "look at the file system")
    }
}

/// Room for the new files beside their targets: the old ones' blocks stay in use by the old set.
pub(super) fn room_beside(
    root: &HostRoot,
    layout: &Layout,
    incoming: &Manifest,
    changes: &[EngineFile],
) -> Vec<Problem> {
    let needed = changes.iter().filter_map(|file| Some(incoming.files.get(file)?.len)).sum();
    let dirs: BTreeSet<&Path> =
        changes.iter().filter_map(|file| Path::new(layout.targets.get(file)?).parent()).collect();
    dirs.into_iter().filter_map(|dir| room(root, dir, needed)).collect()
}

/// Says so if the file system of a folder has no room for `needed` bytes and the margin.
pub(crate) fn room(root: &HostRoot, dir: &Path, needed: u64) -> Option<Problem> {
    let needed = needed.saturating_add(MARGIN);
    let shown = dir.display();
    match free_at(root, dir) {
        Ok(free) if free >= needed => None,
        Ok(free) => Some(problem(
            format!("{shown} has {} MiB free, {} MiB are needed", free >> 20, needed.div_ceil(1 << 20)),
            format!("make room on the file system of {shown}"),
        )),
        Err(error) => {
            Some(problem(format!("the free space of {shown} can't be found out: {error}"), "look at the file system"))
        }
    }
}

/// Bytes free for root on the file system of a folder, or of the nearest one above it that exists.
fn free_at(root: &HostRoot, dir: &Path) -> io::Result<u64> {
    let path = root.resolve(dir)?;
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(&path);
    let stat = statvfs(existing)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_named() {
        for (errno, expected) in [
            (nix::errno::Errno::EROFS, "read-only file system"),
            (nix::errno::Errno::EPERM, "may not be replaced"),
            (nix::errno::Errno::EACCES, "may not be replaced"),
            (nix::errno::Errno::ENOSPC, "can't be replaced"),
        ] {
            let error = io::Error::from_raw_os_error(errno as i32);
            let problem = refused_folder(Path::new("/usr/bin"), &error);
            assert!(problem.what.contains(expected), "{}", problem.what);
            assert!(problem.what.contains("/usr/bin"));
        }
    }

    #[test]
    fn a_folder_that_takes_no_files_is_refused() {
        // A folder of the kernel's, where nobody may make a file.
        assert!(try_folder(Path::new("/proc/self")).is_err());
        let dir = tempfile::tempdir().unwrap();
        assert!(try_folder(dir.path()).unwrap(), "a hard link works too");
        fs::write(dir.path().join(".requeen-try-plain"), "left by a crash").unwrap();
        try_folder(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
