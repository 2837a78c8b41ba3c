//! The fastest swap by hand: files staged beside their targets, then stop, one `mv` each, start.
//!
//! What can be prepared is prepared as the product prepares it: the files are on disk and in the page cache, the units'
//! counters are reset, the node is drained and empty. Only files that differ are moved, and containerd is restarted only
//! if its own binary differs.

use std::fmt::Write as _;
use std::time::Duration;

use super::sampler::Sampler;
use super::steps::{self, Availability};
use crate::engines::{Bundle, FILES};
use crate::{Error, Node, Result, product};

/// Prints each engine file's name and where it is, nothing where it is not.
const FIND: &str = "command -v \"$1\" || ls /usr/libexec/docker/\"$1\" /usr/lib/docker/\"$1\" 2>/dev/null";

/// Where a node keeps the files of both engines meanwhile.
const STORE: &str = "/root/by-hand";

/// Which way a swap goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the later engine.
    Up,
    /// Back to the earlier one.
    Back,
}

impl Way {
    /// The folder of the engine that it leads to, below [`STORE`].
    const fn folder(self) -> &'static str {
        match self {
            Self::Up => "new",
            Self::Back => "old",
        }
    }
}

/// An engine file of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its name.
    pub(super) name: &'static str,
    /// Where it is.
    pub(super) path: String,
}

/// Where a node has its engine's files.
pub(super) fn places(node: &Node) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for name in FILES {
        let found = node.exec(&["sh", "-c", FIND, "sh", name])?;
        // A name in two folders is taken from the first, as a shell would.
        let path = found.stdout.lines().next().filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| Error::NoEngineFile { node: node.name().to_owned(), file: name })?.to_owned();
        places.push(Place { name, path });
    }
    Ok(places)
}

/// The units, for `systemctl`, with or without containerd's.
pub(super) const fn units(containerd: bool) -> &'static str {
    if containerd { "docker.socket docker.service containerd.service" } else { "docker.socket docker.service" }
}

/// A worker whose engine is swapped by hand.
pub(super) struct ByHand<'a> {
    manager: &'a Node,
    node: &'a Node,
    /// The files that differ between the two engines.
    changed: Vec<Place>,
}

impl<'a> ByHand<'a> {
    /// Gets a worker ready: both engines' files on its disk. It must run the earlier one, and that must be as its package
    /// installed it.
    pub(super) fn prepare(manager: &'a Node, node: &'a Node, target: &Bundle) -> Result<Self> {
        let bundle = product::copy_bundle(node, target)?;
        let mut places = places(node)?;
        let mut script = format!("set -e; rm -rf {STORE}; mkdir -p {STORE}/old {STORE}/new; ");
        for Place { name, path } in &places {
            // A link is followed: what is kept is a plain file, as the product keeps it.
            let _ = write!(script, "cp --preserve=mode {path} {STORE}/old/{name}; ");
        }
        let _ = write!(script, "tar -xzf {bundle} --strip-components=1 -C {STORE}/new; rm -f {bundle}; cd {STORE}; ");
        script.push_str("for name in $(ls old); do cmp -s old/$name new/$name || echo $name; done");
        let differing = node.sh(&script)?.stdout;
        places.retain(|place| differing.lines().any(|name| name == place.name));
        Ok(Self { manager, node, changed: places })
    }

    /// Drains the node, swaps its engine, and gives the node its tasks back. Returns how long the API was gone, seconds,
    /// as a sampler saw it. `version` is what the engine must tell afterwards.
    pub(super) fn swap(&self, way: Way, version: &str, every: Duration) -> Result<f64> {
        let Self { manager, node, changed } = self;
        node.sh(&stage(changed, way))?;
        steps::set_availability(manager, node, Availability::Drain)?;
        steps::wait_until_empty(manager, node)?;
        node.sh(&warm(changed))?;
        let mut sampler = Sampler::start(node, every)?;
        node.sh(&swap(changed))?;
        // Nothing else runs on the machine for this swap until the API answers.
        sampler.wait_until_back()?;
        let outage = sampler.finish_with_one()?;
        let found = node.engine_version()?;
        if found != version {
            let (node, expected) = (node.name().to_owned(), version.to_owned());
            return Err(Error::WrongEngine { node, found, expected });
        }
        steps::wait_until_seen(manager, node, version)?;
        steps::set_availability(manager, node, Availability::Active)?;
        steps::wait_for_tasks(manager, node)?;
        Ok(outage.seconds())
    }
}

/// The files of the engine that comes, each beside its target and on disk.
fn stage(changed: &[Place], way: Way) -> String {
    let mut script = "set -e; ".to_owned();
    for Place { name, path } in changed {
        let _ = write!(script, "cp --preserve=mode {STORE}/{}/{name} {path}.new; ", way.folder());
    }
    script + "sync"
}

/// Reads them once, as the product reads its own, and clears what systemd counts.
fn warm(changed: &[Place]) -> String {
    let mut script = "set -e; cat".to_owned();
    for Place { path, .. } in changed {
        let _ = write!(script, " {path}.new");
    }
    // Refused where there is nothing to clear.
    let _ = write!(script, " >/dev/null; systemctl reset-failed {} || true", units(true));
    script
}

/// What is done while the engine is down, and no more.
fn swap(changed: &[Place]) -> String {
    let units = units(changed.iter().any(|place| place.name == "containerd"));
    let mut script = format!("systemctl stop {units}");
    for Place { path, .. } in changed {
        let _ = write!(script, " && mv -f {path}.new {path}");
    }
    // Queued, as the product does it: the API is asked by others, and answers before systemd calls the unit started.
    let _ = write!(script, " && systemctl start --no-block {units}");
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(names: &[&'static str]) -> Vec<Place> {
        names.iter().map(|name| Place { name, path: format!("/usr/bin/{name}") }).collect()
    }

    #[test]
    fn nothing_but_the_swap_happens_while_the_engine_is_down() {
        assert_eq!(
            swap(&places(&["dockerd", "runc"])),
            "systemctl stop docker.socket docker.service && mv -f /usr/bin/dockerd.new /usr/bin/dockerd \
             && mv -f /usr/bin/runc.new /usr/bin/runc && systemctl start --no-block docker.socket docker.service"
        );
    }

    #[test]
    fn containerd_is_restarted_only_for_its_own_binary() {
        assert!(
            swap(&places(&["containerd"]))
                .starts_with("systemctl stop docker.socket docker.service containerd.service")
        );
        assert!(!swap(&places(&["containerd-shim-runc-v2", "ctr"])).contains("containerd.service"));
    }

    #[test]
    fn both_ways_stage_their_own_files_beside_the_targets() {
        let files = places(&["dockerd"]);
        assert!(stage(&files, Way::Up).contains("/root/by-hand/new/dockerd /usr/bin/dockerd.new;"));
        assert!(stage(&files, Way::Back).contains("/root/by-hand/old/dockerd /usr/bin/dockerd.new;"));
        assert!(stage(&files, Way::Up).ends_with("; sync"));
        assert!(warm(&files).contains("cat /usr/bin/dockerd.new >/dev/null;"));
    }
}
