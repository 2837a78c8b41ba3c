//! The image that a node runs: Debian 13 with systemd, and one suite's engine.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::apt::{self, Archive};
use crate::command::{self, Input};
use crate::{Error, Result, Suite, cache, tools};

use super::{LABEL, exists};

/// Part of the tag's digest: raise it when the same packages shall give another image.
const RECIPE: &str = "1";

/// The suite of everything but the engine. The engines of later suites need its C library.
const ROOT: Suite = Suite::Trixie;

/// What a node carries beside its engine.
const PACKAGES: [&str; 9] =
    ["systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "iptables", "procps", "ca-certificates"];

/// Units that do nothing useful in a container, and timers that would wake up in the middle of a measurement.
const MASKED: [&str; 13] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "ldconfig.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "getty.target",
];

/// The node's image for a suite, made if the machine's engine does not have it.
///
/// # Errors
/// [`Error::SuiteUnavailable`] if the suite can't be had here.
pub fn node_image(suite: Suite) -> Result<String> {
    tools::install()?;
    tools::engine()?;
    let archive = Archive::open(suite)?;
    let recipe = format!("{RECIPE} {ROOT} {PACKAGES:?} {MASKED:?} {}", archive.digest());
    let tag = format!("requeen-lab-node:{suite}-{}", cache::short(&cache::digest_text(&recipe)));
    let _lock = cache::lock(&format!("node-image-{suite}"))?;
    if !exists(&tag)? {
        tracing::info!(%suite, tag, "make the nodes' image; this takes about a minute");
        make(suite, &archive, &tag)?;
    }
    // A name that compose/lab.yaml can know.
    command::docker(&["tag", &tag, &format!("requeen-lab-node:{suite}")])?;
    Ok(tag)
}

fn make(suite: Suite, archive: &Archive, tag: &str) -> Result<()> {
    let work =
        tempfile::tempdir_in(cache::folder("images")?).map_err(Error::file("create a folder in", "the cache"))?;
    let preferences = work.path().join("preferences");
    fs::write(&preferences, preferences_of(suite, archive)).map_err(Error::file("write", &preferences))?;
    // apt takes a package from its own cache if the digest is right, so nothing is fetched twice.
    let cached = work.path().join("archives");
    fs::create_dir(&cached).map_err(Error::file("create", &cached))?;
    for (package, path) in archive.packages().iter().zip(archive.fetch()?) {
        let place = cached.join(&package.file);
        fs::copy(&path, &place).map_err(Error::file("copy", &path))?;
    }
    let tar = work.path().join("root.tar");
    bootstrap(suite, archive, work.path(), &tar)?;
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

/// The engine's packages from their suite, whatever else from the root's.
fn preferences_of(suite: Suite, archive: &Archive) -> String {
    let names: Vec<&str> = archive.packages().iter().map(|package| package.name.as_str()).collect();
    format!(
        "Package: {}\nPin: release n={suite}\nPin-Priority: 1001\n\nPackage: *\nPin: release n={suite}\nPin-Priority: {}\n",
        names.join(" "),
        if suite == ROOT { 500 } else { 100 },
    )
}

fn bootstrap(suite: Suite, archive: &Archive, work: &Path, tar: &Path) -> Result<()> {
    let mut include: Vec<&str> = PACKAGES.to_vec();
    include.push("curl");
    include.extend(archive.packages().iter().map(|package| package.name.as_str()));
    let mut sources = vec![apt::source(ROOT)?];
    if suite != ROOT {
        sources.push(apt::source(suite)?);
    }
    let work = work.display();
    let masks = MASKED.map(|unit| format!("ln -sf /dev/null \"$1/etc/systemd/system/{unit}\"")).join("; ");
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=minbase", "--format=tar"])
        .arg(format!("--include={}", include.join(",")))
        .args(["man", "doc", "locale", "info"].map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")))
        .arg("--aptopt=Acquire::Languages none")
        .arg("--aptopt=Acquire::Check-Valid-Until false")
        .arg("--setup-hook=mkdir -p \"$1/etc/apt/preferences.d\" \"$1/var/cache/apt/archives\"")
        .arg(format!("--setup-hook=cp {work}/preferences \"$1/etc/apt/preferences.d/requeen-lab\""))
        .arg(format!("--setup-hook=cp {work}/archives/*.deb \"$1/var/cache/apt/archives/\""))
        .arg("--skip=download/empty")
        .arg(format!("--customize-hook={masks}"))
        .arg("--customize-hook=chroot \"$1\" systemctl enable containerd.service docker.service docker.socket")
        // What apt needs only to fetch; what dpkg knows about the engine's packages stays.
        .arg("--customize-hook=rm -f \"$1/etc/apt/sources.list\" \"$1\"/etc/apt/sources.list.d/*")
        // Empty, not absent: each node gets its own at boot, and no boot counts as the first, which would preset units.
        .arg("--customize-hook=: > \"$1/etc/machine-id\"")
        .arg("--customize-hook=rm -rf \"$1\"/usr/lib/udev/hwdb* \"$1\"/var/cache/apt/archives/*.deb \"$1\"/var/log/*")
        .arg(ROOT.name())
        .arg(tar)
        .args(&sources)
        .stderr(Stdio::piped());
    let output = command::collect(&mut command, Input::Empty)?;
    match output.ok() {
        Ok(_) => Ok(()),
        Err(Error::Failed { said, .. }) => Err(Error::SuiteUnavailable { suite, reason: said }),
        Err(other) => Err(other),
    }
}
