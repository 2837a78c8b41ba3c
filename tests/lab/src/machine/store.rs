//! A lab of machines has a folder: the record of what it is, its key, and what each machine writes.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Error, Node, Result, Role, cache};

/// The file that says what the lab is.
const RECORD: &str = "lab.json";

/// What a lab is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The disk that its machines share and nobody writes to.
    pub(crate) disk: PathBuf,
    /// Its nodes, managers first.
    pub(crate) nodes: Vec<Recorded>,
}

impl Record {
    /// Whether every write to that machine's disk is logged.
    pub(super) fn logs_writes_of(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| node.name == name && node.writes_logged)
    }
}

/// What a node was made to be.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) address: Ipv4Addr,
    /// Whether every write to its disk is logged; see [`super::recorded`].
    #[serde(default)]
    pub(crate) writes_logged: bool,
}

/// The part of the cache that has the labs' folders.
const LABS: &str = "labs";

/// The folder of a lab.
pub(super) fn folder(lab: &str) -> PathBuf {
    cache::place(LABS).join(lab)
}

/// Makes the folder with its record.
pub(super) fn create(lab: &str, disk: PathBuf, nodes: &[Node], logged: &[&str]) -> Result<PathBuf> {
    let folder = folder(lab);
    fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    let recorded = |node: &Node| Recorded {
        name: node.name().to_owned(),
        role: node.role(),
        address: node.ip(),
        writes_logged: logged.contains(&node.name()),
    };
    let record = Record { disk, nodes: nodes.iter().map(recorded).collect() };
    let text =
        serde_json::to_string_pretty(&record).map_err(|source| Error::Json { what: "a lab's record", source })?;
    let path = folder.join(RECORD);
    fs::write(&path, text).map_err(Error::file("write", &path))?;
    Ok(folder)
}

/// Whether there is a lab of machines of that name, whole or not.
pub(crate) fn exists(lab: &str) -> bool {
    folder(lab).is_dir()
}

/// What the lab is.
///
/// # Errors
/// [`Error::UnknownLab`] if there is none, or a killed run left it without a record.
pub(crate) fn read(lab: &str) -> Result<Record> {
    let path = folder(lab).join(RECORD);
    match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|source| Error::Json { what: "a lab's record", source }),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::UnknownLab { name: lab.to_owned() }),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// The names of all labs of machines, whole or not.
pub(crate) fn names() -> Result<Vec<String>> {
    let labs = cache::folder(LABS)?;
    let entries = fs::read_dir(&labs).map_err(Error::file("read", &labs))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Removes the folder.
pub(super) fn remove(lab: &str) -> Result<()> {
    let folder = folder(lab);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file("remove", folder)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
