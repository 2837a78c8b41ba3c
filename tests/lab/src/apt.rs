//! Debian's archive: any suite's packages, whatever suite the machine itself runs.
//!
//! Each suite has a private apt of its own below the cache (sources, lists, no dpkg status), so asking for sid's engine
//! neither changes the machine's apt nor sees its packages. The archive's address is the one that the machine's own
//! sources name. What a suite offers is looked up once and kept; [`Archive::refresh`] looks again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::command::{self, Input, Output};
use crate::{Error, Result, Suite, cache};

/// Names the address of a Debian archive where the machine's apt has none.
pub const VARIABLE: &str = "REQUEEN_LAB_ARCHIVE";

/// The keys that Debian's suites are signed with, from the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Packages that are wanted together.
#[derive(Debug)]
struct Wanted {
    /// The file that keeps what the suite offers of them.
    record: &'static str,
    /// Those that every suite has.
    required: &'static [&'static str],
    /// Those that only some suites have.
    optional: &'static [&'static str],
}

/// An engine. Some suites split it: the client, and the static tini that `docker-init` is.
const ENGINE: Wanted = Wanted {
    record: "packages.json",
    required: &["docker.io", "containerd", "runc", "tini"],
    optional: &["docker-cli", "tini-static"],
};

/// A registry of images.
const REGISTRY: Wanted = Wanted { record: "registry.json", required: &["docker-registry"], optional: &[] };

/// One package of a suite, named by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The file's name in the archive, which carries the version.
    pub file: String,
    /// The file's digest, from the signed lists.
    pub sha256: String,
}

/// Packages of one suite that are wanted together: its engine's, or its registry's.
#[derive(Debug)]
pub struct Archive {
    suite: Suite,
    folder: PathBuf,
    packages: Vec<Package>,
}

impl Archive {
    /// Finds out what the suite offers, from the cache if it was asked before.
    ///
    /// # Errors
    /// [`Error::SuiteUnavailable`] if the archive does not have the suite or the suite has no engine.
    pub fn open(suite: Suite) -> Result<Self> {
        Self::look_up(suite, &ENGINE, false)
    }

    /// Like [`Archive::open`] for the suite's registry of images instead of its engine.
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub fn registry(suite: Suite) -> Result<Self> {
        Self::look_up(suite, &REGISTRY, false)
    }

    /// Asks the archive anew.
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub fn refresh(suite: Suite) -> Result<Self> {
        Self::look_up(suite, &ENGINE, true)
    }

    /// The packages, by name.
    pub fn packages(&self) -> &[Package] {
        &self.packages
    }

    /// A digest over the packages' digests: the identity of what they make.
    pub fn digest(&self) -> String {
        let digests: Vec<&str> = self.packages.iter().map(|package| package.sha256.as_str()).collect();
        cache::digest_text(&digests.join("\n"))
    }

    /// Fetches the packages that the cache lacks and returns where all of them are, in the order of [`Self::packages`].
    ///
    /// A file is moved to its final place only after its digest was checked, so a cached file is a good file.
    pub fn fetch(&self) -> Result<Vec<PathBuf>> {
        let _lock = cache::lock(&format!("fetch-{}", self.suite))?;
        let store = cache::folder("packages")?;
        let mut paths = Vec::new();
        for package in &self.packages {
            let path = store.join(format!("{}.deb", package.sha256));
            if !path.exists() {
                tracing::info!(package = package.file, "fetch");
                self.download(package, &path)?;
            }
            paths.push(path);
        }
        Ok(paths)
    }

    fn download(&self, package: &Package, path: &Path) -> Result<()> {
        let work = tempfile::tempdir_in(&self.folder).map_err(Error::file("create a folder in", &self.folder))?;
        let got = apt(&self.folder, "apt-get", &["--quiet", "download", &package.name], work.path())?;
        let unavailable = |reason: String| Error::SuiteUnavailable { suite: self.suite, reason };
        if !got.success() {
            return Err(unavailable(format!("{} can't be fetched: {}", package.file, got.stderr.trim())));
        }
        let file = work.path().join(&package.file);
        let digest = cache::digest_file(&file)?;
        if digest != package.sha256 {
            return Err(unavailable(format!("{} has the digest {digest}, not {}", package.file, package.sha256)));
        }
        fs::rename(&file, path).map_err(Error::file("move a package to", path))
    }

    fn look_up(suite: Suite, wanted: &Wanted, anew: bool) -> Result<Self> {
        let _lock = cache::lock(&format!("archive-{suite}"))?;
        let folder = cache::folder(&format!("apt/{suite}"))?;
        let record = folder.join(wanted.record);
        if !anew && let Ok(text) = fs::read_to_string(&record) {
            let packages =
                serde_json::from_str(&text).map_err(|source| Error::Json { what: "the package record", source })?;
            return Ok(Self { suite, folder, packages });
        }
        let packages = update(suite, wanted, &folder)?;
        let text = serde_json::to_string_pretty(&packages)
            .map_err(|source| Error::Json { what: "the package list", source })?;
        fs::write(&record, text).map_err(Error::file("write", &record))?;
        Ok(Self { suite, folder, packages })
    }
}

/// One line of a sources.list for a suite, at the archive that the machine uses.
pub fn source(suite: Suite) -> Result<String> {
    let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    Ok(format!("deb {signed}{} {suite} main", address()?))
}

/// The address of the archive: the one from which the machine gets the main component of its own Debian.
fn address() -> Result<String> {
    if let Ok(address) = std::env::var(VARIABLE) {
        return Ok(address);
    }
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let targets = command::run("apt-get", &["indextargets", "--format", format, "Identifier: Packages"])?;
    choose_address(&targets.stdout).ok_or(Error::NoArchive { variable: VARIABLE })
}

/// Takes the first address that serves a plain suite (not security, not updates) and whose path says it is Debian's.
fn choose_address(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (address, release, component) = (words.next()?, words.next()?, words.next()?);
        let plain = component == "main" && !release.contains('-') && address.trim_end_matches('/').ends_with("/debian");
        plain.then(|| address.to_owned())
    })
}

/// Fetches the suite's lists and returns the packages that are wanted.
fn update(suite: Suite, wanted: &Wanted, folder: &Path) -> Result<Vec<Package>> {
    let unavailable = |reason: &str| Error::SuiteUnavailable { suite, reason: reason.trim().to_owned() };
    for name in ["lists/partial", "cache/archives/partial"] {
        let path = folder.join(name);
        fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
    }
    let sources = folder.join("sources.list");
    fs::write(&sources, source(suite)? + "\n").map_err(Error::file("write", &sources))?;
    tracing::info!(%suite, "ask Debian's archive");
    let updated = apt(folder, "apt-get", &["--quiet", "--error-on=any", "update"], folder)?;
    if !updated.success() {
        return Err(unavailable(&updated.stderr));
    }
    let mut names: Vec<&str> = wanted.required.to_vec();
    for name in wanted.optional {
        if apt(folder, "apt-cache", &["show", name], folder)?.success() {
            names.push(name);
        }
    }
    let mut args = vec!["--print-uris", "download"];
    args.extend(&names);
    let uris = apt(folder, "apt-get", &args, folder)?;
    if !uris.success() {
        return Err(unavailable(&uris.stderr));
    }
    let mut packages = parse_uris(&uris.stdout);
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    match names.iter().find(|name| !packages.iter().any(|package| package.name == **name)) {
        Some(name) => Err(unavailable(&format!("its lists name no digest of {name}"))),
        None => Ok(packages),
    }
}

/// Reads lines like `'http://…/tini_0.19_amd64.deb' tini_0.19_amd64.deb 10284 SHA256:e007…`.
fn parse_uris(text: &str) -> Vec<Package> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let file = words.next()?;
            let sha256 = words.nth(1)?.strip_prefix("SHA256:")?;
            let name = file.split('_').next()?;
            Some(Package { name: name.to_owned(), file: file.to_owned(), sha256: sha256.to_owned() })
        })
        .collect()
}

/// Runs an apt program on the suite's private state.
fn apt(folder: &Path, program: &str, args: &[&str], current: &Path) -> Result<Output> {
    let settings = [
        format!("Dir::Etc::SourceList={}/sources.list", folder.display()),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        "Dir::Etc::Preferences=/dev/null".to_owned(),
        "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
        format!("Dir::State::Lists={}/lists", folder.display()),
        "Dir::State::Status=/dev/null".to_owned(),
        format!("Dir::Cache={}/cache", folder.display()),
        "Dir::Cache::PkgCache=packages.bin".to_owned(),
        "Dir::Cache::SrcPkgCache=sources.bin".to_owned(),
        // The lists of a suite that has ended are as good as ever here.
        "Acquire::Check-Valid-Until=false".to_owned(),
        "Acquire::Languages=none".to_owned(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        // The machine's own hooks have no business with this state, and some delete the cache.
        "APT::Update::Post-Invoke::=true".to_owned(),
    ];
    let mut command = Command::new(program);
    for setting in &settings {
        command.args(["-o", setting]);
    }
    command::collect(command.args(args).current_dir(current).env("LC_ALL", "C"), Input::Empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_the_one_of_the_machines_own_suite() {
        let targets = "http://security.example/debian-security/ bookworm-security main\n\
                       http://mirror.example/debian/ bookworm-updates main\n\
                       http://other.example/apt/ stable main\n\
                       http://mirror.example/debian/ bookworm main\n";
        assert_eq!(choose_address(targets).as_deref(), Some("http://mirror.example/debian/"));
        assert_eq!(choose_address("http://ubuntu.example/ubuntu/ noble main\n"), None);
    }

    #[test]
    fn packages_are_read_with_their_digests() {
        let text = "'http://mirror.example/pool/t/tini_0.19.0-6%2bb2_amd64.deb' tini_0.19.0-6+b2_amd64.deb 10284 SHA256:e007\n\
                    'http://mirror.example/x' x_1_amd64.deb 1\n";
        let expected = Package {
            name: "tini".to_owned(),
            file: "tini_0.19.0-6+b2_amd64.deb".to_owned(),
            sha256: "e007".to_owned(),
        };
        assert_eq!(parse_uris(text), [expected]);
    }
}
