//! What the sibling container may do, which is what the executor may do for all its life.
//!
//! Where systemd starts the engine the executor only asks for it. Where an init script does, the engine is a child of the
//! executor's, and has no more rights than that: then they are PID 1's, since an engine that was started with less would be
//! another one.

/// Beyond the engine's default: to enter PID 1's namespaces, to look at them, and to change the root directory.
const TO_ASK: [&str; 3] = ["SYS_ADMIN", "SYS_PTRACE", "SYS_CHROOT"];

/// The default profiles of AppArmor and SELinux keep containers from other processes' namespaces. That of seccomp allows
/// what the capabilities are for.
const UNCONFINED: [&str; 2] = ["apparmor=unconfined", "label=disable"];

/// What an engine's children would otherwise inherit from it.
const UNFILTERED: [&str; 2] = ["seccomp=unconfined", "no-new-privileges=false"];

/// Capabilities in the kernel's order, as far as any engine that runs today knows them. Later ones are parts of `SYS_ADMIN`.
const CAPABILITIES: [&str; 38] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
];

/// Options of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    /// Capabilities beyond the default.
    pub(super) add: Vec<String>,
    /// Capabilities that even so are not given.
    pub(super) drop: Vec<String>,
    /// Security options.
    pub(super) security: Vec<String>,
}

impl Rights {
    /// Enough to get to the host and ask systemd.
    pub(super) fn to_ask() -> Self {
        Self { add: owned(TO_ASK), drop: Vec::new(), security: owned(UNCONFINED) }
    }

    /// As many as PID 1 has, whose `/proc/1/status` this is. What it lacks itself is not asked for: the kernel would refuse.
    pub(super) fn to_start(status: &str) -> Self {
        let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let bits = set.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(u64::MAX);
        let lacking = CAPABILITIES.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 0);
        let mut security = owned(UNCONFINED);
        security.extend(owned(UNFILTERED));
        Self { add: owned(["ALL"]), drop: lacking.map(|(_, name)| (*name).to_owned()).collect(), security }
    }
}

fn owned<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_gets_what_pid_1_has() {
        let rights = Rights::to_start("Name:\tinit\nCapBnd:\t0000003ffeffffff\n");
        assert_eq!((rights.add, rights.drop), (vec!["ALL".to_owned()], vec!["SYS_RESOURCE".to_owned()]));
        assert!(rights.security.iter().any(|option| option == "seccomp=unconfined"));
        let rights = Rights::to_start("CapBnd:\t000001ffffffffff\n");
        assert!(rights.drop.is_empty(), "{:?}", rights.drop);
        assert_eq!(Rights::to_start("CapBnd:\t0000000000000000\n").drop.len(), CAPABILITIES.len());
    }
}
