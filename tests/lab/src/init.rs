//! What a node's PID 1 is: systemd, or sysvinit with init scripts. What differs between the two is here: packages, files of
//! the root, flags of the container, and how one sees that the node is up.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What starts everything else on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// systemd, with the units that the packages bring.
    #[default]
    Systemd,
    /// sysvinit, with the init scripts that the packages bring. The engine has no containerd beside it there: Debian's
    /// containerd has no script, so dockerd starts one of its own.
    Sysvinit,
}

/// What a node with systemd carries beside its engine.
const SYSTEMD_PACKAGES: [&str; 9] =
    ["systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "iptables", "procps", "ca-certificates"];

/// What a node with sysvinit carries beside its engine.
const SYSVINIT_PACKAGES: [&str; 8] =
    ["sysvinit-core", "sysv-rc", "cgroupfs-mount", "kmod", "iproute2", "iptables", "procps", "ca-certificates"];

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

/// Scripts that would mount, check or switch off what is the machine's and not the container's: file systems, swap, the
/// clock, kernel parameters, disks.
const IDLE: [&str; 22] = [
    "brightness",
    "checkfs.sh",
    "checkroot.sh",
    "checkroot-bootclean.sh",
    "halt",
    "hostname.sh",
    "hwclock.sh",
    "kmod",
    "mount-configfs",
    "mountall.sh",
    "mountall-bootclean.sh",
    "mountdevsubfs.sh",
    "mountkernfs.sh",
    "mountnfs.sh",
    "mountnfs-bootclean.sh",
    "procps",
    "reboot",
    "udev",
    "umountfs",
    "umountnfs.sh",
    "umountroot",
    "urandom",
];

/// Without terminals, which a container has none of, and with a way down that touches nothing of the machine.
const INITTAB: &str = "id:2:initdefault:\n\
    si::sysinit:/etc/init.d/rcS\n\
    l0:0:wait:/etc/init.d/rc 0\n\
    h0:0:wait:/sbin/halt -d -f\n\
    l1:1:wait:/etc/init.d/rc 1\n\
    l2:2:wait:/etc/init.d/rc 2\n\
    l3:3:wait:/etc/init.d/rc 3\n\
    l4:4:wait:/etc/init.d/rc 4\n\
    l5:5:wait:/etc/init.d/rc 5\n\
    l6:6:wait:/etc/init.d/rc 6\n\
    r6:6:wait:/sbin/reboot -d -f\n\
    ca:12345:ctrlaltdel:/sbin/shutdown -h now\n";

/// Control groups are the machine's, mounted by whoever made the container. Where fstab names them the package
/// `cgroupfs-mount` and the engine's script leave them alone; otherwise they would mount what is left, for the whole machine.
const FSTAB: &str = "cgroup /sys/fs/cgroup tmpfs noauto 0 0\n";

/// The engine's script raises limits, which a container may not where its machine may not, and ends if it can't.
const DEFAULTS: &str = "\nulimit() { command ulimit \"$@\" || true; }\n";

impl Init {
    /// What a node carries beside its engine.
    pub(crate) fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Systemd => &SYSTEMD_PACKAGES,
            Self::Sysvinit => &SYSVINIT_PACKAGES,
        }
    }

    /// Units that shall not run in a container.
    pub(crate) fn masked(self) -> &'static [&'static str] {
        match self {
            Self::Systemd => &MASKED,
            Self::Sysvinit => &[],
        }
    }

    /// Shell commands that finish the root directory `$1`. `work` is a folder with what [`Self::write_files`] has put there.
    pub(crate) fn hooks(self, work: &Path) -> Vec<String> {
        let work = work.display();
        match self {
            Self::Systemd => {
                vec!["chroot \"$1\" systemctl enable containerd.service docker.service docker.socket".to_owned()]
            }
            Self::Sysvinit => vec![
                format!("cp {work}/inittab \"$1/etc/inittab\" && cat {work}/fstab >> \"$1/etc/fstab\""),
                format!("cat {work}/defaults >> \"$1/etc/default/docker\""),
                // Their headers stay: the order of the others is told by them.
                format!(
                    "cd \"$1/etc/init.d\"; for script in {}; do \
                     [ ! -e $script ] || sed -i '/^### END INIT INFO/a exit 0' $script; done",
                    IDLE.join(" ")
                ),
                "chroot \"$1\" update-rc.d docker defaults".to_owned(),
            ],
        }
    }

    /// Writes what [`Self::hooks`] copies.
    pub(crate) fn write_files(self, work: &Path) -> std::io::Result<()> {
        match self {
            Self::Systemd => Ok(()),
            Self::Sysvinit => {
                std::fs::write(work.join("inittab"), INITTAB)?;
                std::fs::write(work.join("fstab"), FSTAB)?;
                std::fs::write(work.join("defaults"), DEFAULTS)
            }
        }
    }

    /// All that a node's image depends on.
    pub(crate) fn recipe(self) -> String {
        match self {
            Self::Systemd => format!("{SYSTEMD_PACKAGES:?} {MASKED:?}"),
            Self::Sysvinit => {
                format!("{SYSVINIT_PACKAGES:?} {:?} {INITTAB:?} {FSTAB:?} {DEFAULTS:?}", self.hooks(Path::new("")))
            }
        }
    }

    /// What its images' tags have behind the suite.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Systemd => "",
            Self::Sysvinit => "-sysvinit",
        }
    }

    /// Flags for `docker run`. `legacy` is whether the machine's control groups are of version 1.
    pub(crate) fn flags(self, legacy: bool) -> &'static [&'static str] {
        match self {
            // What systemd takes for an order to shut down. Since 256 it refuses control groups of version 1 unless told twice.
            Self::Systemd if legacy => &[
                "--stop-signal=SIGRTMIN+3",
                "--env=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
                "--env=SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=0",
            ],
            Self::Systemd => &["--stop-signal=SIGRTMIN+3"],
            // Ctrl-Alt-Del.
            Self::Sysvinit => &["--stop-signal=SIGINT"],
        }
    }

    /// The command that tells whether a node is up.
    pub(crate) fn question(self) -> &'static [&'static str] {
        match self {
            Self::Systemd => &["systemctl", "is-system-running"],
            Self::Sysvinit => &["runlevel"],
        }
    }

    /// Whether [`Self::question`]'s answer says so.
    pub(crate) fn is_up(self, answer: &str) -> bool {
        match self {
            // "degraded" is up too: a unit that failed is what some scenarios are about.
            Self::Systemd => matches!(answer.trim(), "running" | "degraded" | "starting"),
            Self::Sysvinit => answer.trim().ends_with(" 2"),
        }
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Systemd => "systemd",
            Self::Sysvinit => "sysvinit",
        })
    }
}

/// A name that is no init system's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is neither systemd nor sysvinit")]
pub struct UnknownInit(String);

impl FromStr for Init {
    type Err = UnknownInit;

    fn from_str(text: &str) -> Result<Self, UnknownInit> {
        let known = [Self::Systemd, Self::Sysvinit].into_iter().find(|init| init.to_string() == text);
        known.ok_or_else(|| UnknownInit(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for init in [Init::Systemd, Init::Sysvinit] {
            assert_eq!(init.to_string().parse(), Ok(init));
        }
        assert!("upstart".parse::<Init>().is_err());
    }

    #[test]
    fn a_node_is_up_once_it_is_in_its_runlevel() {
        assert!(Init::Sysvinit.is_up("N 2\n") && Init::Systemd.is_up("degraded\n"));
        assert!(!Init::Sysvinit.is_up("unknown\n") && !Init::Sysvinit.is_up("2 0\n"));
        assert!(!Init::Systemd.is_up("initializing\n"));
    }
}
