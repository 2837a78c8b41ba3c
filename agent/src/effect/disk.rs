//! Changes of the disk, each one system call or as good as one: what the swap, the journal and the recovery are made of.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use strum::{EnumDiscriminants, EnumIter, IntoStaticStr};

use crate::host::files;

/// One change of the disk.
#[derive(Clone, Debug, PartialEq, Eq, EnumDiscriminants)]
#[strum_discriminants(name(ChangeKind), doc = "The name of a change, without its data.")]
#[strum_discriminants(derive(EnumIter, IntoStaticStr), strum(serialize_all = "kebab-case"))]
pub enum Change {
    /// A new symbolic link.
    Symlink {
        /// Where it leads.
        to: PathBuf,
        /// Where it is.
        at: PathBuf,
    },
    /// A new file with another's content.
    Copy {
        /// The other.
        from: PathBuf,
        /// The new one.
        to: PathBuf,
    },
    /// A new file with another's content, nobody else's to read. What holds nothing there takes no room here.
    CopyData {
        /// The other.
        from: PathBuf,
        /// The new one.
        to: PathBuf,
    },
    /// A new folder, nobody else's to enter.
    MakeFolder {
        /// Where it is.
        at: PathBuf,
    },
    /// A new file with this content.
    Write {
        /// Its content.
        bytes: Vec<u8>,
        /// Where it is.
        at: PathBuf,
    },
    /// Another owner; of a symbolic link its own.
    Own {
        /// Of what.
        at: PathBuf,
        /// The owner.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// Other permission bits.
    Mode {
        /// Of what.
        at: PathBuf,
        /// The bits.
        mode: u32,
    },
    /// An extended attribute; of a symbolic link its own.
    Attribute {
        /// Of what.
        at: PathBuf,
        /// Its name.
        name: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Content and metadata of a file go to disk.
    SyncFile {
        /// The file.
        at: PathBuf,
    },
    /// Names in a folder go to disk.
    SyncFolder {
        /// The folder.
        at: PathBuf,
    },
    /// One name takes another's place.
    Rename {
        /// The name that goes.
        from: PathBuf,
        /// The name that stays.
        to: PathBuf,
    },
    /// A name goes.
    Remove {
        /// The name.
        at: PathBuf,
    },
    /// A folder goes with all that is in it. Its name says already that it is none to be used.
    RemoveTree {
        /// The folder.
        at: PathBuf,
    },
}

/// What makes changes: [`super::change`], or a test that stops or takes notes.
pub(crate) type Actor<'a> = &'a mut dyn FnMut(&Change) -> io::Result<()>;

/// Makes a change. Only [`super::perform`] and tests do so.
pub(crate) fn make(change: &Change) -> io::Result<()> {
    match change {
        Change::Symlink { to, at } => std::os::unix::fs::symlink(to, at),
        Change::Copy { from, to } => fs::copy(from, to).map(drop),
        Change::CopyData { from, to } => files::copy_data(from, to),
        Change::MakeFolder { at } => fs::DirBuilder::new().mode(0o700).create(at),
        Change::Write { bytes, at } => fs::write(at, bytes),
        Change::Own { at, uid, gid } => std::os::unix::fs::lchown(at, Some(*uid), Some(*gid)),
        Change::Mode { at, mode } => fs::set_permissions(at, Permissions::from_mode(*mode)),
        Change::Attribute { at, name, value } => xattr::set(at, name, value),
        Change::SyncFile { at } => fs::File::open(at)?.sync_all(),
        Change::SyncFolder { at } => files::sync_dir(at),
        Change::Rename { from, to } => fs::rename(from, to),
        Change::Remove { at } => fs::remove_file(at),
        Change::RemoveTree { at } => fs::remove_dir_all(at),
    }
}

/// Replaces a file as a whole, through a temporary one beside it. When this returns the new content outlives a power failure.
pub(crate) fn replace(path: &Path, bytes: Vec<u8>, act: Actor<'_>) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let temp = folder.join(format!(".{}.new", name.to_string_lossy()));
    act(&Change::Write { bytes, at: temp.clone() })?;
    act(&Change::SyncFile { at: temp.clone() })?;
    act(&Change::Rename { from: temp, to: path.to_owned() })?;
    act(&Change::SyncFolder { at: folder.to_owned() })
}
