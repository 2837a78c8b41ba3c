//! Starting the executor: a process of the host, outside the engine's control group.
//!
//! Three ways lead there, tried in this order: systemd over the host's system bus, systemd over its
//! private socket, and a sibling container that moves into the host's namespaces. Success is never a
//! reply: it is the executor holding its lock. So a way that was given up may still work later: an
//! executor that finds the lock taken ends at once, and there are never two at work.

mod cgroups;
pub mod on_host;
mod private_socket;
mod rights;
mod sibling;
mod system_bus;
mod unit;

pub(crate) use sibling::LOG;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use requeen_protocol::STATE_DIR;
use tokio::time::Instant;

use crate::host::HostRoot;
use crate::lock::{self, LockError};
use crate::sets::{copy_label, digest_file};
use crate::words::chain;

/// So long the executor may take to hold its lock.
const CALL_HOME: Duration = Duration::from_secs(10);
/// A program of every host that systemd may start.
const LABELLED: &str = "/usr/bin/env";
/// How often the lock is looked at: the kernel tells nobody that a lock was taken.
const LOOK: Duration = Duration::from_millis(50);

/// A way to start a process of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `StartTransientUnit` over the host's system bus.
    SystemBus,
    /// The same over systemd's private socket, where there is no system bus.
    PrivateSocket,
    /// A container in the host's namespaces that detaches, where systemd can't be asked.
    SiblingContainer,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::SystemBus => "systemd over the host's system bus",
            Way::PrivateSocket => "systemd over its private socket",
            Way::SiblingContainer => "a sibling container",
        })
    }
}

impl Way {
    /// Every way, best first: systemd watches over what it starts, and its bus is the one way that is documented.
    pub const ALL: [Way; 3] = [Way::SystemBus, Way::PrivateSocket, Way::SiblingContainer];

    async fn start(self, root: &HostRoot, argv: &[String]) -> Result<(), String> {
        match self {
            Way::SystemBus => system_bus::start(root, argv).await.map_err(|error| chain(&error)),
            Way::PrivateSocket => private_socket::start(root, argv).await.map_err(|error| chain(&error)),
            Way::SiblingContainer => sibling::start(root, argv).await.map_err(|error| chain(&error)),
        }
    }

    /// Where an executor that was started, and did not call home, may have said why.
    fn clue(self, root: &HostRoot) -> String {
        match self {
            Way::SystemBus | Way::PrivateSocket => format!("see `journalctl -u {}` on the node", unit::UNIT),
            Way::SiblingContainer => {
                let words = sibling::last_words(root).unwrap_or_else(|| "nothing".to_owned());
                format!("{} on the node says: {words}", sibling::LOG)
            }
        }
    }
}

/// Which ways are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum HandOver {
    /// Each way in its turn, until one works
    Auto,
    /// systemd over the host's system bus
    SystemBus,
    /// systemd over its private socket
    PrivateSocket,
    /// A container in the host's namespaces that detaches
    SiblingContainer,
}

impl HandOver {
    fn ways(self) -> &'static [Way] {
        match self {
            HandOver::Auto => &Way::ALL,
            HandOver::SystemBus => &[Way::SystemBus],
            HandOver::PrivateSocket => &[Way::PrivateSocket],
            HandOver::SiblingContainer => &[Way::SiblingContainer],
        }
    }
}

/// The executor was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The agent's binary can't be put on the host.
    #[error("the agent's binary can't be copied to {path} of the host")]
    Copy {
        /// Where it should be, as a path of the host.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The lock can't be looked at.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No way worked.
    #[error("the executor can't be started on the host; tried: {}", .0.join("; "))]
    NoWay(Vec<String>),
}

/// Copies this binary to the host, starts the executor from there, and waits until it holds its lock.
pub async fn launch(root: &HostRoot, port: u16, hand_over: HandOver) -> Result<Way, LaunchError> {
    let own = root.clone();
    // A task that panics or is cancelled has no result; neither happens to this one.
    let path = tokio::task::spawn_blocking(move || install(&own)).await.unwrap_or_else(|error| {
        Err(LaunchError::Copy { path: STATE_DIR.to_owned(), source: io::Error::other(error) })
    })?;
    let argv = executor(path, port);
    let mut tried = Vec::new();
    for &way in hand_over.ways() {
        let why = match way.start(root, &argv).await {
            // Nobody keeps at work what the ways after this one start beside it.
            Err(why) if unit::is_there(&why) && holds_within(root, CALL_HOME).await? => {
                tracing::info!(step = "hand-over", "systemd was about to start the executor again: {why}");
                return Ok(way);
            }
            Err(why) => why,
            Ok(()) => {
                if holds_within(root, CALL_HOME).await? {
                    for failed in &tried {
                        tracing::info!(step = "hand-over", "not the way: {failed}");
                    }
                    return Ok(way);
                }
                let secs = CALL_HOME.as_secs();
                format!("accepted, but the executor did not take its lock within {secs} s ({})", way.clue(root))
            }
        };
        tried.push(format!("{way}: {why}"));
    }
    Err(LaunchError::NoWay(tried))
}

/// Starts a program again until it has ended well, or is gone: what systemd does for its unit.
const KEEP: &str = "until \"$@\" || [ ! -x \"$1\" ]; do sleep 2; done";

/// A command line that keeps another one at work, where systemd doesn't.
pub(crate) fn kept(argv: &[String]) -> Vec<String> {
    let keep = ["/bin/sh", "-c", KEEP, "requeen-executor"].map(str::to_owned);
    keep.into_iter().chain(argv.iter().cloned()).collect()
}

/// The executor's command line on the host.
fn executor(path: String, port: u16) -> [String; 4] {
    [path, "executor".to_owned(), "--port".to_owned(), port.to_string()]
}

async fn holds_within(root: &HostRoot, limit: Duration) -> Result<bool, LockError> {
    let end = Instant::now() + limit;
    loop {
        if lock::is_held(root)? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Puts this binary on the host, named by its content; gives its path there.
fn install(root: &HostRoot) -> Result<String, LaunchError> {
    let source = std::path::Path::new("/proc/self/exe");
    let failed = |path: &str| {
        let path = path.to_owned();
        move |source| LaunchError::Copy { path, source }
    };
    let dir = format!("{STATE_DIR}/bin");
    let digest = digest_file(source).map_err(failed(&dir))?;
    let path = format!("{dir}/agent-{}-{}", env!("CARGO_PKG_VERSION"), digest.short());
    let target = root.join(&path);
    let copy = || -> io::Result<()> {
        if target.exists() && digest_file(&target)? == digest {
            return Ok(());
        }
        let dir = root.join(&dir);
        std::fs::create_dir_all(&dir)?;
        // A running binary can't be written to, but its name can be given to another file.
        let temp = target.with_extension("new");
        std::fs::copy(source, &temp)?;
        let file = File::open(&temp)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        file.sync_all()?;
        std::fs::rename(&temp, &target)?;
        File::open(&dir)?.sync_all()
    };
    copy().map_err(failed(&path))?;
    // Where files have such labels, systemd may not start a program with the one of its folder.
    if let Ok(program) = root.resolve(LABELLED)
        && let Err(error) = copy_label(&program, &target)
    {
        tracing::warn!("{path} can't get the SELinux label of {LABELLED}: {error}");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_in_its_turn_or_one_alone() {
        assert_eq!(HandOver::Auto.ways(), [Way::SystemBus, Way::PrivateSocket, Way::SiblingContainer]);
        let alone = [HandOver::SystemBus, HandOver::PrivateSocket, HandOver::SiblingContainer];
        assert_eq!(alone.map(HandOver::ways).concat(), Way::ALL);
        assert_eq!(executor("/x".to_owned(), 9999), ["/x", "executor", "--port", "9999"]);
    }

    #[tokio::test]
    async fn what_was_tried_is_told() {
        // A host with nothing to ask.
        let dir = tempfile::tempdir().unwrap();
        let error = launch(&HostRoot::new(dir.path()), 9047, HandOver::Auto).await.unwrap_err().to_string();
        for said in ["system_bus_socket can't be reached", "/run/systemd/private can't be reached", "docker.sock"] {
            assert!(error.contains(said), "{said}: {error}");
        }
        for way in Way::ALL {
            assert!(error.contains(&format!("{way}: ")), "{way}: {error}");
        }
    }

    #[test]
    fn the_copy_is_this_binary() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        let path = install(&root).unwrap();
        assert!(path.starts_with("/var/lib/requeen/bin/agent-"));
        let copy = root.join(&path);
        assert_eq!(digest_file(&copy).unwrap(), digest_file(&std::env::current_exe().unwrap()).unwrap());
        let mode = std::fs::metadata(&copy).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        // A torn copy is replaced, not trusted for its name.
        std::fs::write(&copy, "torn").unwrap();
        assert_eq!(install(&root).unwrap(), path);
        assert!(std::fs::metadata(&copy).unwrap().len() > 4);
    }
}
