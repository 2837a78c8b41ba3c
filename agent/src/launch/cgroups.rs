//! Where a process is among the control groups, and how it gets to where PID 1 is.
//!
//! That place is right for a process of the host whatever the host is: groups of version 1, 2 or both, with systemd or
//! without, a machine or itself a container. The root of version 2 would not be: where it is not the machine's own, it
//! takes no process beside groups that have controllers.

use std::io;
use std::path::{Path, PathBuf};

/// This process stays in groups that are not PID 1's.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel's word can't be read.
    #[error("{path} can't be read")]
    Read {
        /// The file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// PID 1 is in a group that no mount shows.
    #[error("PID 1's control group {0} is not mounted")]
    NotMounted(String),
    /// The kernel does not take this process there.
    #[error("this process can't be moved into control group {}", .path.display())]
    Move {
        /// The group's folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was moved, and is still elsewhere.
    #[error("this process is still in the container's control groups: {0}")]
    Stayed(String),
}

/// Moves this process to where PID 1 is, in every hierarchy. Nothing less will do: an engine ends whatever it finds in a
/// group of a container that is over, and fails to remove one that is not empty.
pub(super) fn join_init() -> Result<(), CgroupError> {
    let read = |path| std::fs::read_to_string(path).map_err(|source| CgroupError::Read { path, source });
    let init = read("/proc/1/cgroup")?;
    for path in ways(&read("/proc/self/cgroup")?, &init, &read("/proc/1/mountinfo")?)? {
        // 0 is whoever writes it.
        std::fs::write(path.join("cgroup.procs"), "0").map_err(|source| CgroupError::Move { path, source })?;
    }
    let own = read("/proc/self/cgroup")?;
    match elsewhere(&own, &init).next() {
        None => Ok(()),
        Some(_) => Err(CgroupError::Stayed(own.trim_end().replace('\n', ", "))),
    }
}

/// The folders of the groups that a process in `own` has to join to be where `init` is. Both are the text of a
/// `/proc/PID/cgroup`, `mounts` that of PID 1's mountinfo.
fn ways(own: &str, init: &str, mounts: &str) -> Result<Vec<PathBuf>, CgroupError> {
    elsewhere(own, init)
        .map(|(controllers, path)| {
            let found = mounts.lines().find_map(|mount| folder(mount, controllers, path));
            found.ok_or_else(|| CgroupError::NotMounted(format!("{controllers}:{path}")))
        })
        .collect()
}

/// Controllers and path of each of `init`'s groups that `own` is not in.
fn elsewhere<'a>(own: &'a str, init: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    groups(init).filter(move |group| !groups(own).any(|other| other == *group))
}

/// Controllers and path of each line `ID:CONTROLLERS:PATH`. Version 2 has no controllers there, a hierarchy of version 1
/// without any has its name.
fn groups(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'))
}

/// The folder of a group, if this line of a mountinfo is a mount of its hierarchy that shows it.
fn folder(mount: &str, controllers: &str, path: &str) -> Option<PathBuf> {
    let (place, kind) = mount.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (name, options) = (kind.next()?, kind.nth(1)?);
    let shown = if controllers.is_empty() {
        name == "cgroup2"
    } else {
        name == "cgroup" && controllers.split(',').all(|one| options.split(',').any(|option| option == one))
    };
    let mut place = place.split(' ').skip(3);
    let (root, point) = (place.next()?, place.next()?);
    let below = Path::new(path).strip_prefix(root).ok().filter(|_| shown)?;
    Some(Path::new(point).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,size=4096k,mode=755
32 31 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
34 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
35 31 0:30 / /sys/fs/cgroup/memory rw,nosuid shared:13 - cgroup cgroup rw,memory
36 31 0:31 / /sys/fs/cgroup/pids rw,nosuid shared:14 - cgroup cgroup rw,pids
";

    fn paths(own: &str, init: &str, mounts: &str) -> Vec<String> {
        ways(own, init, mounts).unwrap().iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn version_2_is_one_step() {
        let mounts = "31 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "0::/system.slice/docker-0123.scope\n";
        assert_eq!(paths(own, "0::/init.scope\n", mounts), ["/sys/fs/cgroup/init.scope"]);
        // Without systemd PID 1 is at the root.
        assert_eq!(paths("0::/docker/0123\n", "0::/\n", mounts), ["/sys/fs/cgroup/"]);
        assert!(paths("0::/init.scope\n", "0::/init.scope\n", mounts).is_empty());
    }

    #[test]
    fn version_1_is_a_step_for_each_hierarchy() {
        let own = "13:hugetlb:/\n9:name=systemd:/docker/0123\n5:pids:/docker/0123\n4:memory:/docker/0123\n\
                   2:cpu,cpuacct:/docker/0123\n0::/docker/0123\n";
        let init = "13:hugetlb:/\n9:name=systemd:/init.scope\n5:pids:/init.scope\n4:memory:/\n2:cpu,cpuacct:/\n0::/init.scope\n";
        // Nobody mounts hugetlb, but both are in the same place of it.
        assert_eq!(
            paths(own, init, MOUNTS),
            [
                "/sys/fs/cgroup/systemd/init.scope",
                "/sys/fs/cgroup/pids/init.scope",
                "/sys/fs/cgroup/memory/",
                "/sys/fs/cgroup/cpu,cpuacct/",
                "/sys/fs/cgroup/unified/init.scope",
            ]
        );
    }

    #[test]
    fn a_host_that_is_a_container_sees_its_part_only() {
        let mounts = "35 31 0:30 /docker/node /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let own = "4:memory:/docker/node/docker/0123\n";
        assert_eq!(paths(own, "4:memory:/docker/node/init.scope\n", mounts), ["/sys/fs/cgroup/memory/init.scope"]);
        assert_eq!(paths(own, "4:memory:/docker/node\n", mounts), ["/sys/fs/cgroup/memory/"]);
        // Not by its letters: this is another group.
        let error = ways(own, "4:memory:/docker/node-2\n", mounts).unwrap_err();
        assert!(error.to_string().contains("memory:/docker/node-2"), "{error}");
    }

    #[test]
    fn a_hierarchy_that_can_not_be_left_is_an_error() {
        let error = ways("3:freezer:/docker/0123\n", "3:freezer:/\n", MOUNTS).unwrap_err();
        assert_eq!(error.to_string(), "PID 1's control group freezer:/ is not mounted");
    }
}
