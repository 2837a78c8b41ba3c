//! What starts the services of a host, found out and not configured.

use super::HostRoot;

/// Debian's script of the engine. Under OpenRC it is the same one.
pub const DOCKER_SCRIPT: &str = "/etc/init.d/docker";

/// What starts a host's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceManager {
    /// systemd, with its units.
    Systemd,
    /// sysvinit, with the scripts in `/etc/init.d`.
    SysV,
    /// OpenRC, which runs the same scripts.
    OpenRc,
}

impl ServiceManager {
    /// What manages this host now. Where nothing tells, units are looked for, and what is missing is named.
    pub fn of(root: &HostRoot) -> Self {
        if root.join("/run/systemd/system").is_dir() {
            // sd_booted(3) looks for the same.
            Self::Systemd
        } else if root.join("/run/openrc/softlevel").exists() {
            Self::OpenRc
        } else if root.read_to_string("/proc/1/comm").is_ok_and(|name| name.trim_end() == "init")
            && root.is_executable(DOCKER_SCRIPT)
        {
            Self::SysV
        } else {
            Self::Systemd
        }
    }

    /// Whether the engine is started by an init script, and by whoever runs that.
    pub fn runs_scripts(self) -> bool {
        match self {
            Self::Systemd => false,
            Self::SysV | Self::OpenRc => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing::TestHost;

    #[test]
    fn what_manages_a_host_is_found_out() {
        let host = TestHost::new(&[]);
        assert_eq!(ServiceManager::of(&host.root), ServiceManager::Systemd);
        host.write("/proc/1/comm", b"init\n", 0o644);
        assert_eq!(ServiceManager::of(&host.root), ServiceManager::Systemd, "an init without a script of the engine");
        host.write(DOCKER_SCRIPT, b"#!/bin/sh\n", 0o755);
        assert_eq!(ServiceManager::of(&host.root), ServiceManager::SysV);
        host.write("/run/openrc/softlevel", b"default\n", 0o644);
        assert_eq!(ServiceManager::of(&host.root), ServiceManager::OpenRc);
        // Debian's package brings the script to hosts with systemd too.
        std::fs::create_dir_all(host.root.join("/run/systemd/system")).unwrap();
        assert_eq!(ServiceManager::of(&host.root), ServiceManager::Systemd);
    }
}
