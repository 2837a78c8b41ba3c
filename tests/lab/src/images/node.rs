//! The image that a node runs: Debian 13 with one of its init systems, and one suite's engine; and the root that machines share with it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::apt::{self, Archive};
use crate::command::{self, Input};
use crate::{Error, Init, Result, Suite, cache, tools};

use super::{LABEL, exists};

/// Part of the tag's digest: raise it when the same packages shall give another image.
const RECIPE: &str = "1";

/// The suite of everything but the engine. The engines of later suites need its C library.
const ROOT: Suite = Suite::Trixie;

/// The node's image for a suite, made if the machine's engine does not have it.
///
/// # Errors
/// [`Error::SuiteUnavailable`] if the suite can't be had here.
pub fn node_image(suite: Suite) -> Result<String> {
    node_image_with(suite, Init::default())
}

/// The same for nodes with another PID 1.
///
/// # Errors
/// As [`node_image`].
pub fn node_image_with(suite: Suite, init: Init) -> Result<String> {
    tools::install()?;
    tools::engine()?;
    let archive = Archive::open(suite)?;
    let recipe = recipe(&archive, init);
    let name = format!("requeen-lab-node:{suite}{}", init.suffix());
    let tag = format!("{name}-{}", cache::short(&cache::digest_text(&recipe)));
    let _lock = cache::lock(&format!("node-image-{suite}{}", init.suffix()))?;
    if !exists(&tag)? {
        tracing::info!(%suite, %init, tag, "make the nodes' image; this takes about a minute");
        make(suite, init, &archive, &tag)?;
    }
    // A name that compose/lab.yaml can know.
    command::docker(&["tag", &tag, &name])?;
    Ok(tag)
}

/// What a root is made of, for the digest of what is made of it.
pub(super) fn recipe(archive: &Archive, init: Init) -> String {
    format!("{RECIPE} {ROOT} {} {}", init.recipe(), archive.digest())
}

/// What differs between the roots of containers and of machines, and of one init system and another.
pub(super) struct Root<'a> {
    /// `tar` or `directory`.
    pub(super) format: &'a str,
    /// What its PID 1 is.
    pub(super) init: Init,
    /// Packages beside those that every node has.
    pub(super) packages: &'a [&'a str],
    /// Units that shall not run.
    pub(super) masked: &'a [&'a str],
    /// More arguments for mmdebstrap.
    pub(super) hooks: &'a [&'a str],
}

fn make(suite: Suite, init: Init, archive: &Archive, tag: &str) -> Result<()> {
    let work =
        tempfile::tempdir_in(cache::folder("images")?).map_err(Error::file("create a folder in", "the cache"))?;
    let tar = work.path().join("root.tar");
    let root = Root { format: "tar", init, packages: &[], masked: init.masked(), hooks: &[] };
    make_root(suite, archive, work.path(), &root, &tar)?;
    let label = format!("LABEL {LABEL}=node {LABEL}.suite={suite}");
    let tar = tar.display().to_string();
    let changes = ["CMD [\"/sbin/init\"]", "ENV container=docker", label.as_str()];
    let mut args = vec!["import"];
    for change in changes {
        args.extend(["--change", change]);
    }
    args.extend([tar.as_str(), tag]);
    command::docker(&args).map(drop)
}

/// Makes a root of a suite at `destination`; `work` is for what is needed meanwhile.
pub(super) fn make_root(
    suite: Suite,
    archive: &Archive,
    work: &Path,
    root: &Root<'_>,
    destination: &Path,
) -> Result<()> {
    let preferences = work.join("preferences");
    fs::write(&preferences, preferences_of(suite, archive)).map_err(Error::file("write", &preferences))?;
    // apt takes a package from its own cache if the digest is right, so nothing is fetched twice.
    let cached = work.join("archives");
    fs::create_dir(&cached).map_err(Error::file("create", &cached))?;
    for (package, path) in archive.packages().iter().zip(archive.fetch()?) {
        let place = cached.join(&package.file);
        fs::copy(&path, &place).map_err(Error::file("copy", &path))?;
    }
    root.init.write_files(work).map_err(Error::file("write files in", work))?;
    bootstrap(suite, archive, work, root, destination)
}

/// The engine's packages from their suite, whatever else from the root's.
fn preferences_of(suite: Suite, archive: &Archive) -> String {
    let names: Vec<&str> = archive.packages().iter().map(|package| package.name.as_str()).collect();
    format!(
        "Package: {}\nPin: release n={suite}\nPin-Priority: 1001\n\nPackage: *\nPin: release n={suite}\nPin-Priority: {}\n",
        names.join(" "),
        if suite == ROOT { 500 } else { 100 },
    )
}

fn bootstrap(suite: Suite, archive: &Archive, work: &Path, root: &Root<'_>, destination: &Path) -> Result<()> {
    let mut include: Vec<&str> = root.init.packages().to_vec();
    include.push("curl");
    include.extend(root.packages);
    include.extend(archive.packages().iter().map(|package| package.name.as_str()));
    let mut sources = vec![apt::source(ROOT)?];
    if suite != ROOT {
        sources.push(apt::source(suite)?);
    }
    let hooks = root.init.hooks(work);
    let work = work.display();
    let mask = |unit: &&str| format!("--customize-hook=ln -sf /dev/null \"$1/etc/systemd/system/{unit}\"");
    let masks = root.masked.iter().map(mask);
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=minbase", &format!("--format={}", root.format)])
        .arg(format!("--include={}", include.join(",")))
        .args(["man", "doc", "locale", "info"].map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")))
        .arg("--aptopt=Acquire::Languages none")
        .arg("--aptopt=Acquire::Check-Valid-Until false")
        .arg("--setup-hook=mkdir -p \"$1/etc/apt/preferences.d\" \"$1/var/cache/apt/archives\"")
        .arg(format!("--setup-hook=cp {work}/preferences \"$1/etc/apt/preferences.d/requeen-lab\""))
        .arg(format!("--setup-hook=cp {work}/archives/*.deb \"$1/var/cache/apt/archives/\""))
        .arg("--skip=download/empty")
        .args(masks)
        .args(hooks.iter().map(|hook| format!("--customize-hook={hook}")))
        // What apt needs only to fetch; what dpkg knows about the engine's packages stays.
        .arg("--customize-hook=rm -f \"$1/etc/apt/sources.list\" \"$1\"/etc/apt/sources.list.d/*")
        // Empty, not absent: each node gets its own at boot, and no boot counts as the first, which would preset units.
        .arg("--customize-hook=: > \"$1/etc/machine-id\"")
        .arg("--customize-hook=rm -rf \"$1\"/usr/lib/udev/hwdb* \"$1\"/var/cache/apt/archives/*.deb \"$1\"/var/log/*")
        .args(root.hooks)
        .arg(ROOT.name())
        .arg(destination)
        .args(&sources)
        .stderr(Stdio::piped());
    let output = command::collect(&mut command, Input::Empty)?;
    match output.ok() {
        Ok(_) => Ok(()),
        Err(Error::Failed { said, .. }) => Err(Error::SuiteUnavailable { suite, reason: said }),
        Err(other) => Err(other),
    }
}
