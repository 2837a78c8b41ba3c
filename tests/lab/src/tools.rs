//! What the lab needs on the machine itself: its engine, and a few Debian packages.

use std::path::Path;
use std::process::Command;

use crate::command::{self, Input};
use crate::{Error, Result, cache};

/// A program the lab runs and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 5] =
    [("mmdebstrap", "mmdebstrap"), ("dpkg-deb", "dpkg"), ("tar", "tar"), ("gzip", "gzip"), ("ip", "iproute2")];

/// What puts an image into a registry: with logins, proxies and retries, and without an engine.
const SKOPEO: [(&str, &str); 1] = [("skopeo", "skopeo")];

/// What nodes that are machines need: the kernel that is a program, its disks, their network, and the way into them.
const MACHINES: [(&str, &str); 7] = [
    ("linux.uml", "user-mode-linux"),
    ("mke2fs", "e2fsprogs"),
    // On which a disk is copied in an instant.
    ("mkfs.xfs", "xfsprogs"),
    ("nsenter", "util-linux"),
    ("setsid", "util-linux"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
];

/// Fails unless the machine's Docker Engine answers; returns its version.
pub fn engine() -> Result<String> {
    let output =
        command::collect(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]), Input::Empty)?;
    if output.success() {
        return Ok(output.trimmed().to_owned());
    }
    Err(Error::NoEngine { said: output.stderr.trim().to_owned() })
}

/// Installs the packages whose programs are missing.
pub fn install() -> Result<()> {
    install_missing(&PROGRAMS)
}

/// Installs what only a release needs, if it is missing.
pub fn install_for_release() -> Result<()> {
    install_missing(&SKOPEO)
}

/// Installs what nodes that are machines need, if it is missing.
pub fn install_for_machines() -> Result<()> {
    install_missing(&MACHINES)
}

fn install_missing(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        programs.iter().filter(|(program, _)| !on_path(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let _lock = cache::lock("tools")?;
    tracing::info!(packages = missing.join(" "), "install Debian packages");
    apt_get(&["update", "--quiet"])?;
    let mut args = vec!["install", "--yes", "--quiet", "--no-install-recommends"];
    args.extend(missing);
    apt_get(&args)
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command::collect(&mut command, Input::Empty)?.ok().map(drop)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Root's PATH lacks the system folders in some sessions; the packages put programs there all the same.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| Path::new(&folder).join(program).is_file())
}
