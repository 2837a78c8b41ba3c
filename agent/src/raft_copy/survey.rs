//! What is in a folder: looked at before it is copied, and again after.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::CopyError;
use crate::host::HostRoot;

/// What something in the folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Folder,
    File,
}

/// A file or a folder, and all that a write to it would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative to the folder that was looked at; empty for that one itself.
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    /// Its length, bytes; of a folder none.
    pub(crate) len: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Its last change: seconds, nanoseconds.
    modified: (i64, i64),
}

/// How long the files are in all, bytes: at least what a copy takes.
pub(crate) fn bytes(entries: &[Entry]) -> u64 {
    entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.len))
}

/// Everything in a folder of the host, itself first, each folder before what is in it. Links at its own path are followed; one
/// that is inside is an error, like all that is neither a file nor a folder.
pub(crate) fn of(root: &HostRoot, folder: &Path) -> Result<Vec<Entry>, CopyError> {
    let unread = |source| CopyError::Read { path: folder.to_owned(), source };
    let base = root.resolve(folder).map_err(unread)?;
    let meta = fs::symlink_metadata(&base).map_err(unread)?;
    if !meta.is_dir() {
        return Err(CopyError::Odd(folder.to_owned()));
    }
    let mut entries = vec![entry(PathBuf::new(), Kind::Folder, &meta)];
    let mut next = 0;
    while let Some(Entry { path, kind, .. }) = entries.get(next).cloned() {
        next += 1;
        if kind == Kind::Folder {
            entries.extend(inside(&base, &path, folder)?);
        }
    }
    Ok(entries)
}

fn inside(base: &Path, path: &Path, folder: &Path) -> Result<Vec<Entry>, CopyError> {
    let unread = |path: &Path| {
        let path = plain(folder.join(path));
        move |source| CopyError::Read { path, source }
    };
    let mut names = Vec::new();
    for name in fs::read_dir(plain(base.join(path))).map_err(unread(path))? {
        names.push(name.map_err(unread(path))?.file_name());
    }
    names.sort();
    let mut entries = Vec::new();
    for name in names {
        let path = path.join(name);
        match fs::symlink_metadata(base.join(&path)) {
            Ok(meta) if meta.is_dir() => entries.push(entry(path, Kind::Folder, &meta)),
            Ok(meta) if meta.is_file() => entries.push(entry(path, Kind::File, &meta)),
            Ok(_) => return Err(CopyError::Odd(folder.join(path))),
            // An engine that runs removes what it no longer needs.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unread(&path)(error)),
        }
    }
    Ok(entries)
}

fn entry(path: PathBuf, kind: Kind, meta: &fs::Metadata) -> Entry {
    let len = match kind {
        Kind::Folder => 0,
        Kind::File => meta.len(),
    };
    Entry { path, kind, len, uid: meta.uid(), gid: meta.gid(), modified: (meta.mtime(), meta.mtime_nsec()) }
}

/// A path without a slash at its end, which a join with nothing leaves there.
pub(crate) fn plain(path: PathBuf) -> PathBuf {
    path.components().collect()
}
