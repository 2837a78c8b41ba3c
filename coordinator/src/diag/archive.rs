//! The archive: one folder per node, one of the coordinator's, and a manifest. Nodes sent their parts as tarballs;
//! what they may hold is checked here as if a stranger had made them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use requeen_protocol::NodeId;

use super::collection::Part;
use super::own::Own;

/// The coordinator's folder, and the file that says what is in the archive.
const OWN: &str = "coordinator";
const MANIFEST: &str = "MANIFEST.txt";

/// The file of a part that says what is missing in it.
const PART_MANIFEST: &str = "MANIFEST";

/// So many files are taken of a part, and no longer name.
const FILES: usize = 300;
const NAME: usize = 150;

/// What is never collected, as the manifest says it.
const LEFT_OUT: &str = "\
left out on purpose, by each node before it sent anything:
  certificates and keys, and everything else in the swarm's folder
  join tokens and unlock keys
  values of environment variables, in units and in services, and what files of variables hold
  logs, environments and contents of containers
  users and passwords in addresses, and secret headers
  values of settings whose names speak of a token, password, secret or credential, and options of log drivers
what was left out within a text reads [left-out]

Look through the files before you attach them to a report: only you know what else is nobody's business.
";

/// Everything that goes into an archive.
pub(super) struct Contents {
    pub(super) made: Timestamp,
    /// The first lines of the manifest: names and values.
    pub(super) about: Vec<(&'static str, String)>,
    /// Each node's folder, and its part or why there is none.
    pub(super) nodes: BTreeMap<String, Result<Part, String>>,
    pub(super) own: Own,
}

/// A folder for each node, by its host name as far as that is plain and nobody else's.
pub(super) fn folders(hostnames: &BTreeMap<NodeId, String>) -> BTreeMap<NodeId, String> {
    let plain = |name: &str| -> String {
        name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' }).collect()
    };
    let mut folders: BTreeMap<NodeId, String> = BTreeMap::new();
    for (node, hostname) in hostnames {
        let same = hostnames.values().filter(|other| plain(other) == plain(hostname)).count();
        let name = plain(hostname);
        let own = same == 1 && !matches!(name.as_str(), "" | "." | ".." | OWN | MANIFEST);
        let folder = if own { name } else { format!("{name}-{}", plain(node.as_str())) };
        folders.insert(node.clone(), folder);
    }
    folders
}

/// Writes the archive. Blocks.
pub(super) fn write(out: Box<dyn Write>, contents: Contents) -> io::Result<()> {
    let mut archive = Archive {
        tar: tar::Builder::new(GzEncoder::new(out, Compression::fast())),
        mtime: u64::try_from(contents.made.as_second()).unwrap_or_default(),
    };
    let mut manifest = String::from("what this archive holds\n\n");
    for (name, value) in contents.about {
        line(&mut manifest, format_args!("{name:<12}{value}"));
    }
    manifest.push('\n');
    for (folder, part) in contents.nodes {
        match part {
            Ok(part) => archive.part(&folder, part, &mut manifest)?,
            Err(why) => line(&mut manifest, format_args!("{folder}: nothing: {why}")),
        }
    }
    line(&mut manifest, format_args!("{OWN}: {} files", contents.own.files.len()));
    for (name, text) in &contents.own.files {
        archive.add(&format!("{OWN}/{name}"), text.as_bytes())?;
    }
    for missing in &contents.own.missing {
        line(&mut manifest, format_args!("  {missing}"));
    }
    manifest.push('\n');
    manifest.push_str(LEFT_OUT);
    archive.add(MANIFEST, manifest.as_bytes())?;
    archive.tar.into_inner()?.finish()?.flush()
}

fn line(manifest: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(manifest, "{words}");
}

struct Archive {
    tar: tar::Builder<GzEncoder<Box<dyn Write>>>,
    mtime: u64,
}

impl Archive {
    fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(self.mtime);
        self.tar.append_data(&mut header, name, bytes)
    }

    /// Adds a node's part. What is not as an agent makes it ends it, and is said; only the archive itself may fail.
    fn part(&mut self, folder: &str, part: Part, manifest: &mut String) -> io::Result<()> {
        let mut files = 0;
        let mut remarks = String::new();
        let mut read = Reader { archive: tar::Archive::new(part.file), most: part.bytes };
        let ended = read.each(&mut |name, bytes| {
            if name == PART_MANIFEST {
                remarks = String::from_utf8_lossy(bytes).into_owned();
                return Ok(());
            }
            files += 1;
            self.add(&format!("{folder}/{name}"), bytes)
        })?;
        line(manifest, format_args!("{folder}: {files} files"));
        for remark in remarks.lines().filter(|remark| !remark.is_empty()) {
            line(manifest, format_args!("  {remark}"));
        }
        if let Err(why) = ended {
            line(manifest, format_args!("  the rest was not taken: {why}"));
        }
        Ok(())
    }
}

/// A part as its node sent it.
struct Reader {
    archive: tar::Archive<std::fs::File>,
    /// No file is longer than the whole, bytes.
    most: u64,
}

/// What is done with a file of a part.
type Take<'a> = &'a mut dyn FnMut(&str, &[u8]) -> io::Result<()>;

impl Reader {
    /// Gives each file to `take`, until one is not as it should be: then why. The outer error is `take`'s.
    fn each(&mut self, take: Take<'_>) -> io::Result<Result<(), String>> {
        let entries = match self.archive.entries() {
            Ok(entries) => entries,
            Err(error) => return Ok(Err(error.to_string())),
        };
        for (number, entry) in entries.enumerate() {
            match entry.map_err(|error| error.to_string()).and_then(|entry| file(entry, number, self.most)) {
                Ok((name, bytes)) => take(&name, &bytes)?,
                Err(why) => return Ok(Err(why)),
            }
        }
        Ok(Ok(()))
    }
}

/// Name and content of an entry that may become a file of the archive.
fn file(mut entry: tar::Entry<'_, std::fs::File>, number: usize, most: u64) -> Result<(String, Vec<u8>), String> {
    if number >= FILES {
        return Err(format!("there are more than {FILES} files"));
    }
    let name = entry.path().map_err(|error| error.to_string())?;
    let name = match name.to_str() {
        Some(name) if is_plain(name) => name.to_owned(),
        Some(_) | None => return Err(format!("`{}` is no plain name", name.display().to_string().escape_debug())),
    };
    if entry.header().entry_type() != tar::EntryType::Regular {
        return Err(format!("`{name}` is no regular file"));
    }
    let mut bytes = Vec::new();
    entry.by_ref().take(most).read_to_end(&mut bytes).map_err(|error| format!("`{name}`: {error}"))?;
    if bytes.len() as u64 == entry.size() { Ok((name, bytes)) } else { Err(format!("`{name}` is cut off")) }
}

/// Whether a name stays where it is put, on every system that may unpack it.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    let below = |part: Component<'_>| matches!(part, Component::Normal(_));
    !name.is_empty()
        && name.len() <= NAME
        && name.chars().all(plain)
        && Path::new(name).components().all(below)
        && !name.ends_with('/')
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
