//! The third way, the agent's side: a container beside the agent's own, in which [`on_host`](super::on_host) goes to the
//! host and starts the executor there.
//!
//! The container runs the very file that the executor will be, from the host's disk, so of its image nothing is needed
//! but that it exists. The agent's own image does on every node: the engine can't lose it while the agent's container
//! runs, and it has no health check, volume or entry point of its own.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};
use requeen_protocol::STATE_DIR;

use super::kept;
use super::rights::Rights;
use crate::engine::api::{Api, ApiError, HAND_OVER_LABEL};
use crate::host::HostRoot;
use crate::host::manager::ServiceManager;

/// What the executor and what starts it write, as a path of the host: no journal belongs to a process that detached
/// itself.
pub(crate) const LOG: &str = "/var/lib/requeen/agent/executor.log";

/// Where the kernel says what PID 1 may do.
const INIT_STATUS: &str = "/proc/1/status";

/// Where the engine mounts files of the container's own folder, `<data-root>/containers/<ID>/`.
const OWN_FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// A busy engine takes its time to start a container.
const API_LIMIT: Duration = Duration::from_secs(30);

/// The container was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SiblingError {
    /// The log can't be begun.
    #[error("{LOG} can't be moved aside")]
    Log(#[source] io::Error),
    /// The kernel does not tell where this process is.
    #[error("{path} can't be read")]
    Proc {
        /// The file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The engine did not do it.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// No container of the engine's is the one that this process is in.
    #[error("none of the engine's containers is the agent's own, so its image can't be told")]
    NoImage,
}

/// Asks the engine for the container.
pub(crate) async fn start(root: &HostRoot, argv: &[String]) -> Result<(), SiblingError> {
    begin_log(root).map_err(SiblingError::Log)?;
    let read = |path| std::fs::read_to_string(path).map_err(|source| SiblingError::Proc { path, source });
    let (mounts, cgroups) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
    let api = Api::connect(root, API_LIMIT).await?;
    let image = api.image_of(&|id| is_own(id, &mounts, &cgroups)).await?.ok_or(SiblingError::NoImage)?;
    let program = argv.first().cloned().unwrap_or_default();
    let body = if ServiceManager::of(root).runs_scripts() {
        let status = root.read_to_string(INIT_STATUS);
        let status = status.map_err(|source| SiblingError::Proc { path: INIT_STATUS, source })?;
        container(image, program, &kept(argv), Rights::to_start(&status))
    } else {
        container(image, program, argv, Rights::to_ask())
    };
    Ok(api.run(body).await?)
}

/// What was written last into the log of the container that was started last.
pub(crate) fn last_words(root: &HostRoot) -> Option<String> {
    let text = std::fs::read_to_string(root.join(LOG)).ok()?;
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

/// Begins a new log and keeps the one before: it may tell why there has to be another executor.
fn begin_log(root: &HostRoot) -> io::Result<()> {
    let log = root.join(LOG);
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::rename(&log, log.with_extension("log.old")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether the container `id` is the one whose `/proc/self/mountinfo` and `/proc/self/cgroup` these are. The host name is
/// no help: with the host's network it is the host's. Inside a cgroup namespace the second one tells nothing.
fn is_own(id: &str, mounts: &str, cgroups: &str) -> bool {
    let folder = format!("/containers/{id}/");
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(3);
        let (Some(source), Some(point)) = (fields.next(), fields.next()) else {
            return false;
        };
        // Only there: the host's own mounts, and with them those of other containers, are below the host's root.
        OWN_FILES.contains(&point) && source.contains(&folder)
    });
    mounted || cgroups.lines().any(|line| line.contains(id))
}

/// The container in which the agent, `program`, starts `argv` on the host.
fn container(image: String, program: String, argv: &[String], rights: Rights) -> ContainerCreateBody {
    let mut command = vec!["launch-on-host".to_owned(), "--".to_owned()];
    command.extend_from_slice(argv);
    ContainerCreateBody {
        image: Some(image),
        user: Some("0".to_owned()),
        entrypoint: Some(vec![program]),
        cmd: Some(command),
        labels: Some(HashMap::from([(HAND_OVER_LABEL.to_owned(), env!("CARGO_PKG_VERSION").to_owned())])),
        host_config: Some(HostConfig {
            pid_mode: Some("host".to_owned()),
            network_mode: Some("host".to_owned()),
            cap_add: Some(rights.add),
            cap_drop: Some(rights.drop).filter(|drop| !drop.is_empty()),
            security_opt: Some(rights.security),
            // The program and its log.
            binds: Some(vec![format!("{STATE_DIR}:{STATE_DIR}")]),
            // What it says is in the log; a logging driver of the node's may depend on others.
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            auto_remove: Some(true),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn other() -> String {
        "f".repeat(64)
    }

    #[test]
    fn its_own_container_is_told_by_its_mounts() {
        let other = other();
        let mounts = format!(
            "621 602 0:40 / / rw,relatime master:251 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/X\n\
             630 621 8:1 /var/lib/docker/containers/{ID}/resolv.conf /etc/resolv.conf rw - ext4 /dev/sda1 rw\n\
             631 621 8:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n\
             640 621 8:1 / /host rw - ext4 /dev/sda1 rw\n\
             641 640 0:50 / /host/var/lib/docker/containers/{other}/mounts/shm rw - tmpfs shm rw,size=65536k\n\
             642 640 8:1 /var/lib/docker/containers/{other}/hostname /host/etc/hostname rw - ext4 /dev/sda1 rw\n"
        );
        assert!(is_own(ID, &mounts, "0::/\n"));
        assert!(!is_own(&other, &mounts, "0::/\n"));
        // A data root of its own file system, and one of an engine that remaps users.
        for source in [format!("/containers/{ID}/hosts"), format!("/docker/100000.100000/containers/{ID}/hosts")] {
            let mounts = format!("7 6 8:2 {source} /etc/hosts rw,relatime - xfs /dev/sdb1 rw\n");
            assert!(is_own(ID, &mounts, ""), "{source}");
        }
        assert!(!is_own(ID, "7 6 8:1 /etc/hosts /etc/hosts rw - ext4 /dev/sda1 rw\nnonsense\n", ""));
    }

    #[test]
    fn its_own_container_is_told_by_its_cgroups() {
        let (first, other) = (format!("12:pids:/docker/{ID}\n0::/\n"), other());
        assert!(is_own(ID, "", &first));
        assert!(is_own(ID, "", &format!("0::/system.slice/docker-{ID}.scope\n")));
        // A node that is itself a container of another engine.
        assert!(is_own(ID, "", &format!("4:memory:/docker/{other}/docker/{ID}\n")));
        assert!(!is_own(&other, "", &first));
        assert!(!is_own(ID, "", "0::/user.slice/session-3.scope\n"));
    }

    #[test]
    fn the_container_has_what_it_needs_and_no_more() {
        let argv = ["/var/lib/requeen/bin/agent-1", "executor", "--port", "9047"].map(str::to_owned);
        let body =
            serde_json::to_value(container("sha256:1".to_owned(), argv[0].clone(), &argv, Rights::to_ask())).unwrap();
        let wanted = json!({
            "Image": "sha256:1",
            "User": "0",
            "Entrypoint": ["/var/lib/requeen/bin/agent-1"],
            "Cmd": ["launch-on-host", "--", "/var/lib/requeen/bin/agent-1", "executor", "--port", "9047"],
            "Labels": { "io.requeen.hand-over": env!("CARGO_PKG_VERSION") },
            "HostConfig": {
                "PidMode": "host",
                "NetworkMode": "host",
                "CapAdd": ["SYS_ADMIN", "SYS_PTRACE", "SYS_CHROOT"],
                "SecurityOpt": ["apparmor=unconfined", "label=disable"],
                "Binds": ["/var/lib/requeen:/var/lib/requeen"],
                "LogConfig": { "Type": "none" },
                "AutoRemove": true,
            },
        });
        assert_eq!(body, wanted);
    }

    #[test]
    fn the_log_begins_anew_and_its_last_words_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        begin_log(&root).unwrap();
        assert_eq!(last_words(&root), None);
        std::fs::write(root.join(LOG), "one\nERROR two\n\n").unwrap();
        assert_eq!(last_words(&root).as_deref(), Some("ERROR two"));
        begin_log(&root).unwrap();
        assert_eq!(last_words(&root), None);
        let old = std::fs::read_to_string(root.join("/var/lib/requeen/agent/executor.log.old")).unwrap();
        assert!(old.starts_with("one"));
    }
}
