//! Bundles: the `docker-VERSION.tgz` that an upgrade is given, made of a suite's packages.
//!
//! The layout is that of Docker's static tarballs. The binaries are Debian's, so they are linked to shared libraries;
//! the nodes' root carries those of the newest suite. Making a bundle twice of the same packages gives the same bytes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::apt::Archive;
use crate::command::{self, Input};
use crate::{Error, Result, Suite, archive, cache, images, tools};

/// The files of a bundle, in the order they have in Docker's own.
pub const FILES: [&str; 8] =
    ["dockerd", "docker", "docker-init", "docker-proxy", "containerd", "ctr", "containerd-shim-runc-v2", "runc"];

/// Part of the cache's key: raise it when the same packages shall give other bytes.
const RECIPE: &str = "1";

/// Where Debian puts an engine's files.
const FOLDERS: [&str; 4] = ["usr/bin", "usr/sbin", "usr/libexec/docker", "usr/lib/docker"];

/// A bundle of binaries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The file, named `docker-VERSION.tgz` after the version without Debian's suffix.
    pub path: PathBuf,
    /// The version as the engine itself tells it, such as `26.1.5+dfsg1`.
    pub version: String,
    /// The file's SHA-256, in hexadecimal.
    pub sha256: String,
}

impl Bundle {
    /// The file's name, such as `docker-26.1.5.tgz`.
    pub fn file_name(&self) -> String {
        file_name(&self.version)
    }
}

fn file_name(version: &str) -> String {
    format!("docker-{}.tgz", version.split('+').next().unwrap_or(version))
}

/// The suite's engine as a bundle, from the cache if it was made before.
///
/// # Errors
/// [`Error::SuiteUnavailable`] if the suite can't be had here: skip what needs it, and say so.
pub fn bundle(suite: Suite) -> Result<Bundle> {
    tools::install()?;
    let archive = Archive::open(suite)?;
    let _lock = cache::lock(&format!("bundle-{suite}"))?;
    let key = cache::digest_text(&format!("{RECIPE}\n{}", archive.digest()));
    let folder = cache::folder("bundles")?.join(format!("{suite}-{}", cache::short(&key)));
    let record = folder.join("bundle.json");
    if let Ok(text) = fs::read_to_string(&record) {
        return serde_json::from_str(&text).map_err(|source| Error::Json { what: "the bundle's record", source });
    }
    fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    let work = tempfile::tempdir_in(&folder).map_err(Error::file("create a folder in", &folder))?;
    let root = work.path().join("root");
    for package in archive.fetch()? {
        command::run("dpkg-deb", &["--extract".as_ref(), package.as_os_str(), root.as_os_str()])?;
    }
    let set = work.path().join("docker");
    fs::create_dir(&set).map_err(Error::file("create", &set))?;
    for file in FILES {
        collect(suite, &root, file, &set.join(file))?;
    }
    let version = version(suite, &set)?;
    tracing::info!(%suite, version, "make the bundle");
    let made = work.path().join("bundle.tgz");
    pack(work.path(), &made)?;
    let bundle = Bundle { path: folder.join(file_name(&version)), sha256: cache::digest_file(&made)?, version };
    fs::rename(&made, &bundle.path).map_err(Error::file("move a bundle to", &bundle.path))?;
    let text = serde_json::to_string_pretty(&bundle).map_err(|source| Error::Json { what: "the bundle", source })?;
    // Written last: a record means that the bundle beside it is whole.
    fs::write(&record, text).map_err(Error::file("write", &record))?;
    Ok(bundle)
}

/// Moves one file of the unpacked packages into the set, links resolved (`docker-init` is a link to tini).
fn collect(suite: Suite, root: &Path, file: &'static str, destination: &Path) -> Result<()> {
    let found = FOLDERS.iter().find_map(|folder| fs::canonicalize(root.join(folder).join(file)).ok());
    let inside = found.filter(|path| path.starts_with(root));
    let path = inside.ok_or(Error::MissingFile { suite, file })?;
    fs::copy(&path, destination).map_err(Error::file("copy", &path))?;
    fs::set_permissions(destination, fs::Permissions::from_mode(0o755)).map_err(Error::file("change", destination))
}

/// Asks the engine for its version: here if this machine's libraries will do, else in a node's image.
fn version(suite: Suite, set: &Path) -> Result<String> {
    let here = command::collect(Command::new(set.join("dockerd")).arg("--version"), Input::Empty)?;
    let said = if here.success() {
        here.stdout
    } else {
        let mount = format!("{}:/set:ro", set.display());
        let image = images::node_image(suite)?;
        command::docker(&["run", "--rm", "--volume", &mount, &image, "/set/dockerd", "--version"])?.stdout
    };
    parse_version(&said).ok_or(Error::Answer {
        what: "dockerd --version",
        answer: said,
        expected: "Docker version X, build Y",
    })
}

fn parse_version(said: &str) -> Option<String> {
    let (version, _) = said.trim().strip_prefix("Docker version ")?.split_once(',')?;
    Some(version.to_owned())
}

/// Packs `docker/` below `folder` so that the same files always give the same bytes.
fn pack(folder: &Path, destination: &Path) -> Result<()> {
    let tar = folder.join("bundle.tar");
    archive::tar(folder, &FILES.map(|file| format!("docker/{file}")), 0, &tar)?;
    archive::gzip(&tar, destination)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_engine_tells_them() {
        let said = "Docker version 26.1.5+dfsg1, build 411e817\n";
        assert_eq!(parse_version(said).as_deref(), Some("26.1.5+dfsg1"));
        assert_eq!(file_name("26.1.5+dfsg1"), "docker-26.1.5.tgz");
        assert_eq!(parse_version("dockerd: not found"), None);
    }
}
