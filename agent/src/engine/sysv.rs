//! Stopping and starting an engine that an init script runs: sysvinit, or OpenRC with the same script.
//!
//! The script is run as an administrator would. What it does not promise is seen to here: that an engine gets the time that
//! it needs to end, as long as systemd would give it, and that it is gone when the stop is over. Nobody starts such an engine
//! again when it ends, so one that is not there any more has failed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::systemd::{ControlError, EngineControl, UnitState};
use crate::host::HostRoot;
use crate::host::layout::Layout;
use crate::host::manager::ServiceManager;

/// How long an engine may take to end before its script, which is less patient, is let loose on it: as long as systemd waits.
const STOP_PATIENCE: Duration = Duration::from_secs(90);
/// A script may take this long.
const SCRIPT_LIMIT: Duration = Duration::from_secs(60);
/// What is left of an engine after its script has ended, killed as it is, may take so long to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// How often what ends is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Any other command only asks.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// Where dockerd keeps its process ID, and where its script keeps that of what it has started, before that is dockerd. No
/// other dockerd is looked for: there may be some in containers.
const PID_FILES: [&str; 2] = ["/run/docker.pid", "/run/docker-ssd.pid"];
/// So much of the log's end is looked at, bytes.
const LOG_END: u64 = 64 << 10;

/// Init scripts.
#[derive(Clone, Debug)]
pub struct Scripts {
    root: HostRoot,
    manager: ServiceManager,
    docker: String,
    containerd: Option<String>,
    log_file: Option<String>,
}

impl Scripts {
    /// The scripts that `layout` found.
    pub fn new(root: &HostRoot, layout: &Layout) -> Self {
        Self {
            root: root.clone(),
            manager: layout.manager,
            docker: layout.docker_unit.clone(),
            containerd: layout.containerd_unit.clone(),
            log_file: layout.log_file.clone(),
        }
    }

    fn run(&self, service: &str, action: &str) -> Result<(), ControlError> {
        let program = match self.manager {
            ServiceManager::OpenRc => "rc-service",
            ServiceManager::SysV | ServiceManager::Systemd => "service",
        };
        let command = format!("{program} {service} {action}");
        let ran = self.root.run(program, &[service, action], SCRIPT_LIMIT)?;
        if ran.status.success() {
            return Ok(());
        }
        let said = if ran.stderr.trim().is_empty() { ran.stdout } else { ran.stderr };
        Err(ControlError::Script { command, said: said.trim().to_owned() })
    }

    /// The engine, or what becomes it.
    fn process(&self) -> Option<u32> {
        PID_FILES.iter().find_map(|file| {
            let pid: u32 = self.root.read_to_string(file).ok()?.trim().parse().ok()?;
            let name = self.root.read_to_string(format!("/proc/{pid}/comm")).ok()?;
            // Process IDs come again. The kernel cuts names.
            matches!(name.trim_end(), "dockerd" | "start-stop-daem").then_some(pid)
        })
    }

    fn gone_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.process().is_some() {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

impl EngineControl for Scripts {
    fn reset(&self) -> Result<(), ControlError> {
        // Nothing counts starts here.
        Ok(())
    }

    fn stop(&self, containerd: bool) -> Result<(), ControlError> {
        // Debian's script kills what has not ended after 10 s, and containers may take longer than that.
        if let Some(pid) = self.process()
            && kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).is_ok()
            && !self.gone_within(STOP_PATIENCE)
        {
            tracing::warn!("dockerd (pid {pid}) has not ended by itself; its script kills it");
        }
        // It forgets what it has started. That it finds nothing to stop is no failure here.
        let stopped = self.run(&self.docker, "stop");
        if !self.gone_within(GONE_LIMIT) {
            stopped?;
            return Err(ControlError::Survived { service: self.docker.clone() });
        }
        match self.containerd.as_deref().filter(|_| containerd) {
            Some(service) => self.run(service, "stop"),
            None => Ok(()),
        }
    }

    fn start(&self) -> Result<(), ControlError> {
        if self.process().is_some() {
            // Some scripts call that a failure. Which engine it is its verification tells.
            return Ok(());
        }
        if let Some(service) = &self.containerd {
            self.run(service, "start")?;
        }
        self.run(&self.docker, "start")
    }

    fn state(&self) -> Result<UnitState, ControlError> {
        let active = if self.process().is_some() { "active" } else { "failed" };
        Ok(UnitState { active: active.to_owned(), restarts: 0, job: false })
    }

    fn host_goes_down(&self) -> bool {
        let ran = self.root.run::<&str>("runlevel", &[], COMMAND_LIMIT);
        ran.is_ok_and(|ran| is_going_down(&ran.stdout))
    }

    fn log(&self, lines: u32) -> Vec<String> {
        // The log only explains; without one the report is still true.
        self.log_file.as_deref().and_then(|path| last_lines(&self.root, path, lines)).unwrap_or_default()
    }
}

/// Reads what `runlevel` prints, the one before and the one now: 0 is off, 6 is a reboot. An init that was asked for neither
/// is taken to stay.
fn is_going_down(text: &str) -> bool {
    matches!(text.split_whitespace().nth(1), Some("0" | "6"))
}

/// The last lines of a file of the host.
pub(crate) fn last_lines(root: &HostRoot, path: &str, lines: u32) -> Option<Vec<String>> {
    let mut file = File::open(root.resolve(path).ok()?).ok()?;
    let skipped = file.metadata().ok()?.len().saturating_sub(LOG_END);
    file.seek(SeekFrom::Start(skipped)).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_END).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().skip(usize::from(skipped > 0)).collect();
    let first = all.len().saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX));
    Some(all[first..].iter().map(|line| (*line).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::manager::DOCKER_SCRIPT;
    use crate::host::testing::TestHost;

    fn scripts(host: &TestHost) -> Scripts {
        host.write("/proc/1/comm", b"init\n", 0o644);
        host.write(DOCKER_SCRIPT, b"#!/bin/sh\nDOCKERD=/usr/sbin/dockerd\n", 0o755);
        Scripts::new(&host.root, &host.layout())
    }

    #[test]
    fn runlevels_are_read() {
        assert!(is_going_down("2 0\n") && is_going_down("N 6\n"));
        assert!(!is_going_down("N 2\n") && !is_going_down("unknown\n") && !is_going_down(""));
    }

    #[test]
    fn what_was_started_lives_before_it_is_dockerd() {
        let host = TestHost::new(&[]);
        let scripts = scripts(&host);
        assert_eq!(scripts.state().unwrap().active, "failed");
        host.write("/run/docker-ssd.pid", b"77\n", 0o644);
        host.write("/proc/77/comm", b"start-stop-daem\n", 0o644);
        assert_eq!(scripts.state().unwrap().active, "active");
        host.write("/proc/77/comm", b"dockerd\n", 0o644);
        assert_eq!(scripts.state().unwrap().active, "active");
        // Another process's by now.
        host.write("/proc/77/comm", b"cron\n", 0o644);
        assert_eq!(scripts.state().unwrap().active, "failed");
    }

    #[test]
    fn the_logs_end_is_read() {
        let host = TestHost::new(&[]);
        let scripts = scripts(&host);
        assert!(scripts.log(2).is_empty());
        host.write("/var/log/docker.log", b"one\ntwo\nthree\n", 0o644);
        assert_eq!(scripts.log(2), ["two", "three"]);
        let long = format!("{}\nthe end\n", "x".repeat(usize::try_from(LOG_END).unwrap()));
        host.write("/var/log/docker.log", long.as_bytes(), 0o644);
        assert_eq!(scripts.log(20), ["the end"]);
    }
}
