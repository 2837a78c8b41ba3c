//! The containerd that dockerd starts itself where no unit runs one. It can outlive its dockerd, and the next dockerd would take
//! it up, old binary and all.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::systemd::ControlError;
use crate::host::HostRoot;

/// It has so long to end before it is killed.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(10);

/// The containerd that dockerd started itself, if one lives.
pub(crate) fn managed_containerd(root: &HostRoot) -> Option<u32> {
    let pid: u32 =
        std::fs::read_to_string(root.join("/run/docker/containerd/containerd.pid")).ok()?.trim().parse().ok()?;
    let comm = std::fs::read_to_string(root.join(format!("/proc/{pid}/comm"))).ok()?;
    comm.trim_end().ends_with("containerd").then_some(pid)
}

/// Ends one that lives. Blocks until it is gone.
pub(crate) fn end(root: &HostRoot) -> Result<(), ControlError> {
    let end = Instant::now() + LEFTOVER_LIMIT;
    while let Some(pid) = managed_containerd(root) {
        let late = Instant::now() >= end;
        let signal = if late { Signal::SIGKILL } else { Signal::SIGTERM };
        // Gone in this instant is what is wanted.
        let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        if late && managed_containerd(root).is_some() {
            return Err(ControlError::Leftover(pid));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
