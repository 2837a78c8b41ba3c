//! A model of a file system that keeps as little through a power cut as one may: of the changes of a folder that was not synced
//! since, none, some or all, in whatever combination over the folders; of a file that was not synced, nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::disk::Change;

/// A name, and what it leads to from now on.
type Entry = (OsString, Option<Node>);

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Link(PathBuf),
    /// By its number.
    File(usize),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Folder {
    on_disk: BTreeMap<OsString, Node>,
    /// Changes that no sync has followed, oldest first; each is done as a whole or not at all.
    pending: Vec<Vec<Entry>>,
}

impl Folder {
    fn with(&self, kept: impl Fn(usize) -> bool) -> BTreeMap<OsString, Node> {
        let mut names = self.on_disk.clone();
        for (_, change) in self.pending.iter().enumerate().filter(|(at, _)| kept(*at)) {
            for (name, node) in change.iter().cloned() {
                match node {
                    Some(node) => drop(names.insert(name, node)),
                    None => drop(names.remove(&name)),
                }
            }
        }
        names
    }
}

/// The file system.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) folders: BTreeMap<PathBuf, Folder>,
    /// Content of each file, and whether it is on disk.
    files: Vec<(Vec<u8>, bool)>,
}

/// What is on disk after a power cut.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Left {
    Link(PathBuf),
    File(Vec<u8>),
}

/// By folder.
pub(crate) type State = BTreeMap<PathBuf, BTreeMap<OsString, Left>>;

impl Model {
    /// What is there now, all of it on disk.
    pub(crate) fn read(folders: &[PathBuf]) -> Self {
        let mut model = Self { folders: BTreeMap::new(), files: Vec::new() };
        for at in folders {
            let mut folder = Folder::default();
            for entry in fs::read_dir(at).unwrap().map(Result::unwrap) {
                let kind = entry.file_type().unwrap();
                if kind.is_symlink() {
                    folder.on_disk.insert(entry.file_name(), Node::Link(fs::read_link(entry.path()).unwrap()));
                } else if kind.is_file() {
                    let node = model.file(fs::read(entry.path()).unwrap(), true);
                    folder.on_disk.insert(entry.file_name(), node);
                }
            }
            model.folders.insert(at.clone(), folder);
        }
        model
    }

    fn file(&mut self, bytes: Vec<u8>, on_disk: bool) -> Node {
        self.files.push((bytes, on_disk));
        Node::File(self.files.len() - 1)
    }

    fn folder(&mut self, at: &Path) -> &mut Folder {
        self.folders.get_mut(at.parent().unwrap()).unwrap_or_else(|| panic!("{} is not watched", at.display()))
    }

    fn node(&mut self, at: &Path) -> Node {
        self.folder(at).with(|_| true)[at.file_name().unwrap()].clone()
    }

    fn put(&mut self, at: &Path, node: Node) {
        self.folder(at).pending.push(vec![(at.file_name().unwrap().to_owned(), Some(node))]);
    }

    /// A change is made.
    pub(crate) fn make(&mut self, change: &Change) {
        match change {
            Change::Symlink { to, at } => self.put(at, Node::Link(to.clone())),
            Change::Copy { from, to } => {
                let node = self.file(fs::read(from).unwrap(), false);
                self.put(to, node);
            }
            Change::Write { bytes, at } => {
                let node = self.file(bytes.clone(), false);
                self.put(at, node);
            }
            // Of files that are synced after.
            Change::Own { .. } | Change::Mode { .. } | Change::Attribute { .. } => {}
            Change::SyncFile { at } => {
                let Node::File(file) = self.node(at) else { panic!("{} is no file", at.display()) };
                self.files[file].1 = true;
            }
            Change::SyncFolder { at } => {
                let folder = self.folders.get_mut(at).unwrap();
                folder.on_disk = folder.with(|_| true);
                folder.pending.clear();
            }
            Change::Rename { from, to } => {
                let node = self.node(from);
                let names = [(from, None), (to, Some(node))];
                let change = names.map(|(at, node)| (at.file_name().unwrap().to_owned(), node));
                self.folder(to).pending.push(change.into());
            }
            Change::Remove { at } => {
                let name = at.file_name().unwrap().to_owned();
                self.folder(at).pending.push(vec![(name, None)]);
            }
            Change::CopyData { .. } | Change::MakeFolder { .. } | Change::RemoveTree { .. } => {
                panic!("{change:?} is of no file that an engine starts from")
            }
        }
    }

    /// The power is cut: of each folder's pending changes those stay that `kept` says, of files that are not synced nothing
    /// if they are `torn`.
    pub(crate) fn cut(&self, kept: impl Fn(usize, usize) -> bool, torn: bool) -> State {
        let left = |node| match node {
            Node::Link(to) => Left::Link(to),
            Node::File(file) => match &self.files[file] {
                (_, false) if torn => Left::File(Vec::new()),
                (bytes, _) => Left::File(bytes.clone()),
            },
        };
        let folders = self.folders.iter().enumerate().map(|(number, (at, folder))| {
            let names = folder.with(|change| kept(number, change));
            (at.clone(), names.into_iter().map(|(name, node)| (name, left(node))).collect())
        });
        folders.collect()
    }

    /// Every state in which each folder has kept its first changes, however many, and in which just one of its changes was
    /// lost, or kept.
    pub(crate) fn cuts(&self) -> BTreeSet<State> {
        let pending: Vec<usize> = self.folders.values().map(|folder| folder.pending.len()).collect();
        let mut firsts: Vec<Vec<usize>> = vec![Vec::new()];
        for &count in &pending {
            let longer =
                |kept: &Vec<usize>| (0..=count).map(|first| [&kept[..], &[first]].concat()).collect::<Vec<_>>();
            firsts = firsts.iter().flat_map(longer).collect();
        }
        let mut states = BTreeSet::new();
        for torn in [false, true] {
            states.extend(firsts.iter().map(|first| self.cut(|folder, change| change < first[folder], torn)));
            for (number, count) in pending.iter().enumerate() {
                for one in 0..*count {
                    states.insert(self.cut(|folder, change| (folder, change) == (number, one), torn));
                    states.insert(self.cut(|folder, change| (folder, change) != (number, one), torn));
                }
            }
        }
        states
    }
}
