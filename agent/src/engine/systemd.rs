//! Stopping and starting the engine's units.
//!
//! `systemctl` of the host does it: it is there wherever these units are, and it waits for a stop to
//! be over. The seam is [`EngineControl`], for hosts that run their engine some other way.

use std::time::Duration;

use crate::host::layout::Layout;
use crate::host::{HostRoot, RunError};

/// A stop may take this long: systemd's own patience (90 s) for each of two services, and some more.
const STOP_LIMIT: Duration = Duration::from_secs(240);
/// Every other command only queues or asks.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// The engine's units could not be commanded.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// `systemctl`, or an init script, did not run to its end.
    #[error("what runs the engine could not be commanded")]
    Run(#[from] RunError),
    /// `systemctl` said no.
    #[error("`systemctl {command}` failed: {stderr}")]
    Refused {
        /// Its arguments.
        command: String,
        /// What it printed.
        stderr: String,
    },
    /// A containerd of dockerd's own lives on.
    #[error("containerd (pid {0}) does not end")]
    Leftover(u32),
    /// An init script failed.
    #[error("`{command}` failed: {said}")]
    Script {
        /// How it was run.
        command: String,
        /// What it printed.
        said: String,
    },
    /// Something of it is still there after its init script has stopped it.
    #[error("{service} was stopped and does not end")]
    Survived {
        /// The script's name.
        service: String,
    },
}

/// How docker.service stands, as systemd sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitState {
    /// `active`, `activating`, `failed`, `inactive`, …
    pub active: String,
    /// How often systemd has started it again by itself since the last reset.
    pub restarts: u32,
    /// Whether systemd has something queued for it.
    pub job: bool,
}

/// What the executor asks of whatever runs the engine. Every call blocks.
pub trait EngineControl: Send + Sync {
    /// Clears counters and failed states, so that starts are not refused for having been many.
    fn reset(&self) -> Result<(), ControlError>;
    /// Stops the engine, and containerd where `containerd` is true; returns when they are gone.
    fn stop(&self, containerd: bool) -> Result<(), ControlError>;
    /// Queues the start of everything and returns at once.
    fn start(&self) -> Result<(), ControlError>;
    /// How the engine's unit stands.
    fn state(&self) -> Result<UnitState, ControlError>;
    /// Whether the host is shutting down, or whatever runs the engine is out of reach.
    fn host_goes_down(&self) -> bool;
    /// The last lines that the engine logged, oldest first.
    fn log(&self, lines: u32) -> Vec<String>;
}

/// Units of systemd.
#[derive(Clone, Debug)]
pub struct Systemd {
    root: HostRoot,
    docker: String,
    socket: Option<String>,
    containerd: Option<String>,
}

impl Systemd {
    /// The units that `layout` found.
    pub fn new(root: &HostRoot, layout: &Layout) -> Self {
        let socket = layout.has_socket_unit.then(|| layout.docker_unit.replace(".service", ".socket"));
        Self {
            root: root.clone(),
            docker: layout.docker_unit.clone(),
            socket,
            containerd: layout.containerd_unit.clone(),
        }
    }

    fn systemctl(&self, args: &[&str], limit: Duration) -> Result<String, ControlError> {
        let ran = self.root.run("systemctl", args, limit)?;
        if ran.status.success() {
            Ok(ran.stdout)
        } else {
            Err(ControlError::Refused { command: args.join(" "), stderr: ran.stderr.trim().to_owned() })
        }
    }
}

impl EngineControl for Systemd {
    fn reset(&self) -> Result<(), ControlError> {
        let mut args = vec!["reset-failed", &self.docker];
        args.extend(self.socket.as_deref());
        args.extend(self.containerd.as_deref());
        self.systemctl(&args, COMMAND_LIMIT).map(drop)
    }

    fn stop(&self, containerd: bool) -> Result<(), ControlError> {
        // The socket first and in the same transaction: left armed, the next client would start the
        // engine again in the middle of the swap.
        let mut args = vec!["stop"];
        args.extend(self.socket.as_deref());
        args.push(&self.docker);
        if containerd {
            args.extend(self.containerd.as_deref());
        }
        self.systemctl(&args, STOP_LIMIT).map(drop)
    }

    fn start(&self) -> Result<(), ControlError> {
        // One transaction; systemd orders it. Not waited for: the API is asked instead, and it
        // answers before systemd calls the unit started.
        let mut args = vec!["start", "--no-block"];
        args.extend(self.containerd.as_deref());
        args.extend(self.socket.as_deref());
        args.push(&self.docker);
        self.systemctl(&args, COMMAND_LIMIT).map(drop)
    }

    fn state(&self) -> Result<UnitState, ControlError> {
        let args = ["show", "-p", "ActiveState,NRestarts,Job", &self.docker];
        Ok(parse_show(&self.systemctl(&args, COMMAND_LIMIT)?))
    }

    fn host_goes_down(&self) -> bool {
        let ran = self.root.run("systemctl", &["is-system-running"], COMMAND_LIMIT);
        !ran.is_ok_and(|ran| is_up(&ran.stdout))
    }

    fn log(&self, lines: u32) -> Vec<String> {
        let lines = lines.to_string();
        let args = ["-u", &self.docker, "-n", &lines, "--no-pager", "--quiet", "-o", "cat"];
        // The log only explains; without one the report is still true.
        let read = |args: &[&str]| -> Vec<String> {
            let ran = self.root.run("journalctl", args, COMMAND_LIMIT);
            ran.map(|ran| ran.stdout.lines().map(str::to_owned).collect()).unwrap_or_default()
        };
        // The engine's own words; what systemd says of it only where it said nothing itself.
        let own = read(&[&args[..], &["_TRANSPORT=stdout"]].concat());
        if own.is_empty() { read(&args) } else { own }
    }
}

/// Reads what `systemctl is-system-running` prints: of a host that is up, in order or not. The others are `stopping`, and
/// `offline` and `unknown` where systemd does not answer.
fn is_up(text: &str) -> bool {
    matches!(text.trim(), "initializing" | "starting" | "running" | "degraded" | "maintenance")
}

/// Reads what `systemctl show` prints. A property that is missing has its zero value.
fn parse_show(text: &str) -> UnitState {
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
    UnitState {
        active: value("ActiveState").to_owned(),
        restarts: value("NRestarts").parse().unwrap_or_default(),
        job: !matches!(value("Job"), "" | "0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_up_or_goes_down() {
        assert!(["running\n", "degraded\n", "starting\n"].into_iter().all(is_up));
        assert!(!["stopping\n", "offline\n", "unknown\n", ""].into_iter().any(is_up));
    }

    #[test]
    fn show_is_read() {
        let state = parse_show("NRestarts=3\nActiveState=activating\nJob=812\n");
        assert_eq!(state, UnitState { active: "activating".to_owned(), restarts: 3, job: true });
        assert_eq!(parse_show("ActiveState=failed\n").restarts, 0);
        assert!(!parse_show("Job=0\n").job);
    }
}
