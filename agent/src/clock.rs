//! The clock that leases are counted on: it goes on while a machine is suspended, is never set, and
//! starts anew with every boot, which is why the boot's ID always goes with it.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::host::HostRoot;

/// A moment of this boot, in milliseconds of the kernel's boot-time clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    /// This moment and `secs` seconds more.
    pub fn plus_secs(self, secs: u64) -> Self {
        Self(self.0.saturating_add(secs.saturating_mul(1000)))
    }

    /// Milliseconds from `earlier` to this moment; none if it is later.
    pub fn millis_since(self, earlier: BootTime) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Tells the time. A plain function, so that tests can give another one.
pub type Clock = fn() -> BootTime;

/// The kernel's boot-time clock.
///
/// # Panics
/// Never on Linux since 2.6.39: the clock exists and the call has no other way to fail.
pub fn boot_time() -> BootTime {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has a boot-time clock");
    let secs = u64::try_from(now.tv_sec()).unwrap_or_default();
    let nanos = u64::try_from(now.tv_nsec()).unwrap_or_default();
    BootTime(secs * 1000 + nanos / 1_000_000)
}

/// Tells the time of day, seconds since 1970. Somebody may set it at any time: it is good for being told, and for nothing
/// that is counted.
pub type TimeOfDay = fn() -> u64;

/// The kernel's time of day; 0 before 1970.
pub fn time_of_day() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The ID of the boot that runs.
pub fn boot_id(root: &HostRoot) -> io::Result<String> {
    let text = std::fs::read_to_string(root.join("/proc/sys/kernel/random/boot_id"))?;
    Ok(text.trim().to_owned())
}
