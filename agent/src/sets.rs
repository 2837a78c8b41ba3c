//! Sets of engine files: one folder per set, named by what it holds.
//!
//! The engine that runs becomes a set, and so does a staged bundle; `current` is a symbolic link to one
//! of them while a swap is under way. A set is made in a temporary folder and appears by one rename,
//! whole and on disk, so a folder with a digest for a name is either complete or was damaged later,
//! which [`Store::verify`] finds out. What is done with sets is [`crate::swap`]'s.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use requeen_protocol::{BundleRef, Digest, EngineFile};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::host::HostRoot;
use crate::host::files;
use crate::host::layout::Layout;
use crate::stage::bundle::{self, BundleError};

/// Where sets are kept, as a path of the host.
pub const ENGINES_DIR: &str = "/var/lib/requeen/engines";

/// The symbolic link to the set in use, inside [`ENGINES_DIR`].
pub(crate) const CURRENT: &str = "current";
/// The record of installed sets, inside [`ENGINES_DIR`].
pub(crate) const HISTORY: &str = "history.json";
/// What a set holds, inside its folder.
pub(crate) const MANIFEST: &str = "set.json";
const MANIFEST_SCHEMA: u32 = 1;
const HISTORY_SCHEMA: u32 = 1;
/// So many installed sets are remembered by name; only the last two are kept on disk.
const HISTORY_KEPT: usize = 16;
/// So many of the sets installed last are kept on disk.
const SETS_KEPT: usize = 2;
const SELINUX_LABEL: &str = "security.selinux";

/// Names a set by its content: the digest of its files' names and digests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SetId(pub Digest);

impl SetId {
    /// The set of these files: SHA-256 over the lines `NAME sha256:…`, sorted by name.
    pub fn of(files: &BTreeMap<EngineFile, SetFile>) -> Self {
        let mut lines: Vec<String> = files.iter().map(|(file, entry)| format!("{file} {}\n", entry.digest)).collect();
        lines.sort();
        let mut hasher = Sha256::new();
        for line in lines {
            hasher.update(line);
        }
        Self(files::finish(hasher))
    }
}

impl std::fmt::Display for SetId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A file of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetFile {
    /// Digest of its content.
    pub digest: Digest,
    /// Its length, bytes.
    pub len: u64,
}

/// What a set holds (`set.json` in its folder).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this form.
    pub schema: u32,
    /// Version of the engine, as its own API or its bundle gives it.
    pub version: String,
    /// Its files.
    pub files: BTreeMap<EngineFile, SetFile>,
}

/// The sets that were installed, newest last.
#[derive(Debug, Serialize, Deserialize)]
struct History {
    schema: u32,
    installed: Vec<SetId>,
}

/// The sets of one host.
#[derive(Clone, Debug)]
pub struct Store {
    root: HostRoot,
    dir: PathBuf,
}

/// An operation on sets failed.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// The store's folder can't be made or listed.
    #[error("the folder {ENGINES_DIR} can't be used")]
    Folder(#[source] io::Error),
    /// A file of the installed engine can't be taken into a set.
    #[error("`{path}` can't be taken into a set")]
    Capture {
        /// The file, as a path of the host.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file can't be taken over from another set.
    #[error("`{file}` of set {set} can't be taken over")]
    TakeOver {
        /// The other set.
        set: SetId,
        /// The file.
        file: EngineFile,
        /// Why.
        source: io::Error,
    },
    /// A bundle was refused.
    #[error("the bundle can't be staged")]
    Bundle(#[from] BundleError),
    /// A file can't get the SELinux label of the one it will replace.
    #[error("`{file}` can't get the SELinux label of the file it replaces")]
    Label {
        /// The file.
        file: EngineFile,
        /// Why.
        source: io::Error,
    },
    /// There is no dockerd in it.
    #[error("the set has no dockerd")]
    NoEngine,
    /// A finished set can't be put into its place.
    #[error("set {set} can't be put into its place")]
    Publish {
        /// The set.
        set: SetId,
        /// Why.
        source: io::Error,
    },
    /// A set's manifest can't be read.
    #[error("the manifest of set {set} can't be read")]
    Manifest {
        /// The set.
        set: SetId,
        /// Why.
        source: io::Error,
    },
    /// A set's manifest is not one.
    #[error("the manifest of set {set} is damaged")]
    ManifestDamaged {
        /// The set.
        set: SetId,
        /// Why.
        source: serde_json::Error,
    },
    /// A set's manifest does not name what its folder's name says.
    #[error("the manifest of set {set} belongs to another set or another version of this program")]
    ManifestForeign {
        /// The set.
        set: SetId,
    },
    /// A set's file can't be read.
    #[error("`{file}` of set {set} can't be read")]
    Verify {
        /// The set.
        set: SetId,
        /// The file.
        file: EngineFile,
        /// Why.
        source: io::Error,
    },
    /// A set's file is not what its manifest says.
    #[error("`{file}` of set {set} was changed: its digest is {got}")]
    Changed {
        /// The set.
        set: SetId,
        /// The file.
        file: EngineFile,
        /// What is there.
        got: Digest,
    },
    /// `current` can't be read.
    #[error("the link {ENGINES_DIR}/{CURRENT} can't be read")]
    Current(#[source] io::Error),
    /// `current` leads to something that is no set.
    #[error("the link {ENGINES_DIR}/{CURRENT} leads to `{0}`, which is no set")]
    CurrentForeign(PathBuf),
    /// The record of installed sets can't be read.
    #[error("the record {ENGINES_DIR}/{HISTORY} can't be read")]
    History(#[source] io::Error),
    /// The record of installed sets is not one.
    #[error("the record {ENGINES_DIR}/{HISTORY} is damaged")]
    HistoryDamaged(#[source] serde_json::Error),
    /// The record was written by another version of this program.
    #[error("the record {ENGINES_DIR}/{HISTORY} has schema {0}, this agent reads schema {HISTORY_SCHEMA}")]
    HistorySchema(u32),
    /// An old set can't be removed.
    #[error("`{path}` can't be removed")]
    Prune {
        /// What was to be removed.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Store {
    /// Opens the store of a host, and makes its folder if there is none.
    pub fn open(root: &HostRoot) -> Result<Self, SetError> {
        let dir = root.resolve(ENGINES_DIR).map_err(SetError::Folder)?;
        if !dir.is_dir() {
            fs::create_dir_all(&dir).map_err(SetError::Folder)?;
            // Programs will be links into this folder: it must be there after a power failure.
            for above in dir.ancestors().take_while(|above| above.starts_with(root.prefix())) {
                files::sync_dir(above).map_err(SetError::Folder)?;
            }
        }
        Ok(Self { root: root.clone(), dir })
    }

    /// The store of a host that has one. Makes nothing.
    pub fn existing(root: &HostRoot) -> Result<Option<Self>, SetError> {
        let dir = root.resolve(ENGINES_DIR).map_err(SetError::Folder)?;
        Ok(dir.is_dir().then(|| Self { root: root.clone(), dir }))
    }

    /// The store's folder, as a path that this process can open.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a set's file is, as a path of the host.
    pub fn host_path(&self, set: &SetId, file: EngineFile) -> String {
        format!("{ENGINES_DIR}/{}/{file}", set.0.hex())
    }

    /// Where a set's file is, as a path that this process can open.
    pub fn path(&self, set: &SetId, file: EngineFile) -> PathBuf {
        self.set_dir(set).join(file.name())
    }

    /// Makes the engine that is installed a set, by hard links where that works. `version` is what the
    /// running engine's API gives.
    pub fn capture(&self, layout: &Layout, version: &str) -> Result<SetId, SetError> {
        if let Some(set) = self.linked(layout) {
            return Ok(set);
        }
        let temp = self.temp(".capture")?;
        let mut found = BTreeMap::new();
        for &file in &layout.present {
            let target = &layout.targets[&file];
            let entry = self
                .root
                .resolve(target)
                .and_then(|source| take(&source, &temp.join(file.name())))
                .map_err(|source| SetError::Capture { path: target.clone(), source })?;
            found.insert(file, entry);
        }
        self.publish(&temp, version, found)
    }

    /// A good set of which every file is the very file that is installed. To find it costs one reading, and changes nothing
    /// of the files, so that whoever remembers their digests need not read them again.
    fn linked(&self, layout: &Layout) -> Option<SetId> {
        let inode = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let sets = fs::read_dir(&self.dir).ok()?.filter_map(|entry| set_named(&entry.ok()?.file_name()));
        for set in sets {
            let Ok(manifest) = self.manifest(&set) else { continue };
            let same = |file: &EngineFile| {
                let installed = self.root.resolve(&layout.targets[file]).ok().and_then(|path| inode(&path));
                installed.is_some() && installed == inode(&self.path(&set, *file))
            };
            if manifest.files.keys().eq(&layout.present) && layout.present.iter().all(same) && self.verify(&set).is_ok()
            {
                return Some(set);
            }
        }
        None
    }

    /// Makes a bundle a set. Files that it lacks are taken from `base`. `progress` gets the
    /// compressed bytes read so far.
    pub fn stage(
        &self,
        reader: impl Read,
        bundle: &BundleRef,
        base: &SetId,
        progress: &mut dyn FnMut(u64),
    ) -> Result<SetId, SetError> {
        let base_files = self.manifest(base)?.files;
        let temp = self.temp(".stage")?;
        let mut found = bundle::unpack(reader, bundle, &temp, progress)?;
        for &file in found.keys() {
            // While the swap is under way systemd starts dockerd from this folder, so it needs the
            // label of a program that systemd may start.
            let like = if base_files.contains_key(&file) { file } else { EngineFile::Dockerd };
            copy_label(&self.path(base, like), &temp.join(file.name()))
                .map_err(|source| SetError::Label { file, source })?;
        }
        for &file in base_files.keys() {
            if let Entry::Vacant(place) = found.entry(file) {
                let entry = take(&self.path(base, file), &temp.join(file.name()))
                    .map_err(|source| SetError::TakeOver { set: base.clone(), file, source })?;
                place.insert(entry);
            }
        }
        self.publish(&temp, &bundle.version, found)
    }

    /// The set that [`Self::stage`] would make, if it is there already and nothing of it was changed.
    pub fn staged(&self, bundle: &BundleRef, base: &SetId) -> Result<Option<SetId>, SetError> {
        let mut wanted = self.manifest(base)?.files;
        for (&file, digest) in &bundle.files {
            // A set's name does not depend on the lengths.
            wanted.insert(file, SetFile { digest: digest.clone(), len: 0 });
        }
        let set = SetId::of(&wanted);
        Ok(self.verify(&set).is_ok().then_some(set))
    }

    /// What a set holds.
    pub fn manifest(&self, set: &SetId) -> Result<Manifest, SetError> {
        let bytes = fs::read(self.set_dir(set).join(MANIFEST))
            .map_err(|source| SetError::Manifest { set: set.clone(), source })?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|source| SetError::ManifestDamaged { set: set.clone(), source })?;
        if manifest.schema != MANIFEST_SCHEMA || SetId::of(&manifest.files) != *set {
            return Err(SetError::ManifestForeign { set: set.clone() });
        }
        Ok(manifest)
    }

    /// Computes every digest of a set again.
    pub fn verify(&self, set: &SetId) -> Result<(), SetError> {
        for (file, entry) in self.manifest(set)?.files {
            let (got, _) = files::digest(&self.path(set, file)).map_err(|source| SetError::Verify {
                set: set.clone(),
                file,
                source,
            })?;
            if got != entry.digest {
                return Err(SetError::Changed { set: set.clone(), file, got });
            }
        }
        Ok(())
    }

    /// The set that `current` leads to; none before the first swap.
    pub fn current(&self) -> Result<Option<SetId>, SetError> {
        match fs::read_link(self.dir.join(CURRENT)) {
            Ok(to) => match set_named(to.as_os_str()) {
                Some(set) => Ok(Some(set)),
                None => Err(SetError::CurrentForeign(to)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SetError::Current(error)),
        }
    }

    /// The set to go back to from `running`: the one that was installed before it or, if `running`
    /// was not installed by a swap, the one installed last. Only if it is still kept.
    pub fn previous(&self, running: &SetId) -> Result<Option<SetId>, SetError> {
        let mut installed = self.history()?.installed;
        if installed.last() == Some(running) {
            installed.pop();
        }
        Ok(installed.pop().filter(|set| self.set_dir(set).join(MANIFEST).is_file()))
    }

    /// The set that a swap installed last; none before the first one.
    pub fn installed(&self) -> Result<Option<SetId>, SetError> {
        Ok(self.history()?.installed.pop())
    }

    /// The record of installed sets with `to` added as what replaced `from`; nothing if it says so
    /// already.
    pub(crate) fn history_with(&self, from: &SetId, to: &SetId) -> Result<Option<Vec<u8>>, SetError> {
        let mut history = self.history()?;
        if history.installed.ends_with(&[from.clone(), to.clone()]) {
            return Ok(None);
        }
        if history.installed.last() != Some(from) {
            history.installed.push(from.clone());
        }
        history.installed.push(to.clone());
        let extra = history.installed.len().saturating_sub(HISTORY_KEPT);
        history.installed.drain(..extra);
        serde_json::to_vec_pretty(&history).map(Some).map_err(SetError::HistoryDamaged)
    }

    /// The sets that stay whatever goes: the last two installed and the current one.
    pub(crate) fn backups(&self) -> Result<Vec<SetId>, SetError> {
        let installed = self.history()?.installed;
        let mut kept: Vec<SetId> = installed.into_iter().rev().take(SETS_KEPT).collect();
        kept.extend(self.current()?);
        Ok(kept)
    }

    /// Removes every set but the [`Self::backups`] and those named.
    pub fn prune(&self, keep: &[SetId]) -> Result<(), SetError> {
        let mut kept = self.backups()?;
        kept.extend_from_slice(keep);
        for entry in fs::read_dir(&self.dir).map_err(SetError::Folder)? {
            let entry = entry.map_err(SetError::Folder)?;
            // What has no digest for a name is not ours to judge.
            if let Some(set) = set_named(&entry.file_name())
                && !kept.contains(&set)
            {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(|source| SetError::Prune { path, source })?;
            }
        }
        Ok(())
    }

    fn history(&self) -> Result<History, SetError> {
        let bytes = match fs::read(self.dir.join(HISTORY)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(History { schema: HISTORY_SCHEMA, installed: Vec::new() });
            }
            Err(error) => return Err(SetError::History(error)),
        };
        let history: History = serde_json::from_slice(&bytes).map_err(SetError::HistoryDamaged)?;
        if history.schema != HISTORY_SCHEMA {
            return Err(SetError::HistorySchema(history.schema));
        }
        Ok(history)
    }

    pub(crate) fn set_dir(&self, set: &SetId) -> PathBuf {
        self.dir.join(set.0.hex())
    }

    /// An empty folder for a set in the making; what a crash left there goes.
    fn temp(&self, name: &str) -> Result<PathBuf, SetError> {
        let temp = self.dir.join(name);
        match fs::remove_dir_all(&temp) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(SetError::Folder(error)),
        }
        fs::create_dir(&temp).map_err(SetError::Folder)?;
        Ok(temp)
    }

    /// Gives a finished folder its name. A good set of that name stays, a damaged one is replaced.
    fn publish(&self, temp: &Path, version: &str, found: BTreeMap<EngineFile, SetFile>) -> Result<SetId, SetError> {
        if !found.contains_key(&EngineFile::Dockerd) {
            return Err(SetError::NoEngine);
        }
        let set = SetId::of(&found);
        let manifest = Manifest { schema: MANIFEST_SCHEMA, version: version.to_owned(), files: found };
        let good = self.verify(&set).is_ok();
        let publish = || -> io::Result<()> {
            if good {
                return fs::remove_dir_all(temp);
            }
            files::write_synced(&temp.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)?;
            files::sync_dir(temp)?;
            let place = self.set_dir(&set);
            if place.exists() {
                // In one step: `current` may lead there.
                renameat2(AT_FDCWD, temp, AT_FDCWD, &place, RenameFlags::RENAME_EXCHANGE)?;
                fs::remove_dir_all(temp)?;
            } else {
                fs::rename(temp, &place)?;
            }
            files::sync_dir(&self.dir)
        };
        publish().map_err(|source| SetError::Publish { set: set.clone(), source })?;
        Ok(set)
    }
}

/// The digest of a file; links are followed by the kernel.
pub fn digest_file(path: &Path) -> io::Result<Digest> {
    files::digest(path).map(|(digest, _)| digest)
}

/// The set whose folder has this name.
pub(crate) fn set_named(name: &OsStr) -> Option<SetId> {
    Some(SetId(Digest::from_hex(name.to_str()?).ok()?))
}

/// Brings a file into a set: a hard link, or a copy where there can't be one. It is on disk then.
fn take(source: &Path, to: &Path) -> io::Result<SetFile> {
    // Whatever the reason (another file system, another mount of the same one), a copy will do.
    if fs::hard_link(source, to).is_err() {
        fs::copy(source, to)?;
        copy_label(source, to)?;
    }
    File::open(to)?.sync_all()?;
    let (digest, len) = files::digest(to)?;
    Ok(SetFile { digest, len })
}

/// Gives `to` the SELinux label of `from`, where files have any.
pub(crate) fn copy_label(from: &Path, to: &Path) -> io::Result<()> {
    match xattr::get(from, SELINUX_LABEL) {
        Ok(Some(label)) if xattr::get(to, SELINUX_LABEL)?.as_ref() != Some(&label) => {
            xattr::set(to, SELINUX_LABEL, &label)
        }
        Ok(Some(_) | None) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "sets_tests.rs"]
mod tests;
