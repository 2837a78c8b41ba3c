//! One node: a container that runs systemd and an engine.

use std::fmt;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::{self, Input, Output, docker};
use crate::wait::{self, Seen};
use crate::{Error, LABEL, Result, network};

/// The label that carries a node's name.
pub(crate) const LABEL_NODE: &str = "io.requeen.lab.node";
/// The label that carries a node's address.
pub(crate) const LABEL_ADDRESS: &str = "io.requeen.lab.address";

/// What a node was made to be. It may have been promoted or demoted since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Named m1, m2, …
    Manager,
    /// Named w1, w2, …
    Worker,
}

impl Role {
    /// The first letter of its nodes' names.
    pub(crate) const fn letter(self) -> char {
        match self {
            Self::Manager => 'm',
            Self::Worker => 'w',
        }
    }
}

/// A node of a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    lab: String,
    name: String,
    role: Role,
    address: Ipv4Addr,
}

impl Node {
    pub(crate) fn new(lab: &str, name: String, role: Role, address: Ipv4Addr) -> Self {
        Self { lab: lab.to_owned(), name, role, address }
    }

    /// Its host name: m1, w2, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was made to be.
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Its address in the lab's network.
    pub const fn ip(&self) -> Ipv4Addr {
        self.address
    }

    /// Its container's name on the machine's engine.
    pub fn container(&self) -> String {
        format!("{}-{}", network::name(&self.lab), self.name)
    }

    /// Runs a command in the node. A status that is not 0 is no error: see [`Output::ok`].
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        command::collect(Command::new("docker").args(["exec", &self.container()]).args(command), Input::Empty)
    }

    /// Like [`Self::exec`] with bytes for the command to read.
    pub fn exec_with_stdin(&self, command: &[&str], stdin: &[u8]) -> Result<Output> {
        let mut docker = Command::new("docker");
        command::collect(docker.args(["exec", "--interactive", &self.container()]).args(command), Input::Bytes(stdin))
    }

    /// A command in the node, not yet started, for whoever wants its pipes or the terminal.
    ///
    /// `terminal` gives it one; only ask for it where there is one.
    pub fn command(&self, command: &[&str], terminal: bool) -> Command {
        let mut docker = Command::new("docker");
        docker.args(["exec", "--interactive"]);
        if terminal {
            docker.arg("--tty");
        }
        docker.arg(self.container()).args(command);
        docker
    }

    /// Runs a shell script in the node; fails if its status is not 0.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.exec(&["sh", "-c", script])?.ok()
    }

    /// Runs the docker client in the node, against the node's engine; fails if its status is not 0.
    pub fn docker(&self, args: &[&str]) -> Result<Output> {
        let mut command = vec!["docker"];
        command.extend(args);
        self.exec(&command)?.ok()
    }

    /// Copies a file of the machine into the node, with its permissions.
    ///
    /// Unlike `docker cp` it writes as the node sees its files, volumes and memory file systems too.
    pub fn copy_in(&self, file: &Path, destination: &str) -> Result<()> {
        let mode = fs::metadata(file).map_err(Error::file("read", file))?.permissions().mode() & 0o7777;
        let script = "cat > \"$1\" && chmod \"$2\" \"$1\"";
        let mode = format!("{mode:o}");
        let mut docker = self.command(&["sh", "-c", script, "sh", destination, &mode], false);
        let input = File::open(file).map_err(Error::file("open", file))?;
        command::collect(&mut docker, Input::File(input))?.ok().map(drop)
    }

    /// Loads an image into the node's engine from a file that `docker save` wrote.
    pub fn load_image(&self, tar: &Path) -> Result<()> {
        let input = File::open(tar).map_err(Error::file("open", tar))?;
        command::collect(&mut self.command(&["docker", "load", "--quiet"], false), Input::File(input))?.ok().map(drop)
    }

    /// Its ID in the swarm now; empty if it is in none.
    pub fn node_id(&self) -> Result<String> {
        Ok(self.docker(&["info", "--format", "{{.Swarm.NodeID}}"])?.trimmed().to_owned())
    }

    /// The version its engine tells.
    pub fn engine_version(&self) -> Result<String> {
        Ok(self.docker(&["version", "--format", "{{.Server.Version}}"])?.trimmed().to_owned())
    }

    /// What a unit wrote to the journal since a time that `journalctl --since` understands.
    pub fn journal(&self, unit: &str, since: &str) -> Result<String> {
        let args = ["journalctl", "--no-pager", "--output=short-precise", "--unit", unit, "--since", since];
        Ok(self.exec(&args)?.ok()?.stdout)
    }

    /// Cuts the power: every process of the node dies at once. Its files stay, written or not, in the machine's cache.
    pub fn kill(&self) -> Result<()> {
        docker(&["kill", "--signal", "KILL", &self.container()]).map(drop)
    }

    /// Gives the power back, and returns when systemd runs; the engine may take longer: see [`Self::wait_for_engine`].
    pub fn start(&self) -> Result<()> {
        docker(&["start", &self.container()])?;
        wait::until_true(&format!("systemd on {}", self.name), Duration::from_secs(60), || {
            let output = self.exec(&["systemctl", "is-system-running"])?;
            // "degraded" is up too: a unit that failed is what some scenarios are about.
            Ok(match output.trimmed() {
                "running" | "degraded" | "starting" => Ok(()),
                other => Err(format!("{other} {}", output.stderr.trim())),
            })
        })
    }

    /// Shuts the node down in order and boots it again.
    pub fn reboot(&self) -> Result<()> {
        docker(&["stop", "--time", "60", &self.container()])?;
        self.start()
    }

    /// Pulls the network cable.
    pub fn disconnect(&self) -> Result<()> {
        docker(&["network", "disconnect", &network::name(&self.lab), &self.container()]).map(drop)
    }

    /// Plugs it in again, at the same address.
    pub fn connect(&self) -> Result<()> {
        let address = self.address.to_string();
        docker(&["network", "connect", "--ip", &address, &network::name(&self.lab), &self.container()]).map(drop)
    }

    /// Waits until its engine answers; returns the version.
    pub fn wait_for_engine(&self, limit: Duration) -> Result<String> {
        wait::until(&format!("the engine of {}", self.name), limit, || {
            let output = self.exec(&["docker", "version", "--format", "{{.Server.Version}}"])?;
            Ok(if output.success() {
                Seen::Done(output.trimmed().to_owned())
            } else {
                Seen::NotYet(output.stderr.trim().to_owned())
            })
        })
    }

    /// Creates and starts the node's container. `hosts` are all nodes of the lab, to be known by name.
    pub(crate) fn create(&self, image: &str, hosts: &[Self]) -> Result<()> {
        let container = self.container();
        let label = format!("{LABEL}={}", self.lab);
        let mut args: Vec<String> =
            ["run", "--detach", "--name", &container, "--hostname", &self.name].map(str::to_owned).to_vec();
        let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
        option("--label", label.clone());
        option("--label", format!("{LABEL_NODE}={}", self.name));
        option("--label", format!("{LABEL_ADDRESS}={}", self.address));
        option("--network", network::name(&self.lab));
        option("--ip", self.address.to_string());
        for host in hosts {
            option("--add-host", format!("{}:{}", host.name, host.address));
        }
        for data in ["docker", "containerd"] {
            let volume = format!("{container}-{data}");
            docker(&["volume", "create", "--label", &label, &volume])?;
            option("--volume", format!("{volume}:/var/lib/{data}"));
        }
        // The nodes know each other from /etc/hosts. A resolver that can't answer would make every task wait for it.
        option("--volume", "/dev/null:/etc/resolv.conf:ro".to_owned());
        args.extend(machine_flags());
        args.push(image.to_owned());
        docker(&args).map(drop)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What makes a container enough of a machine for systemd and an engine.
///
/// Not `--privileged`: where the lab itself runs without CAP_SYS_RESOURCE, as in some virtual machines, that is refused.
fn machine_flags() -> Vec<String> {
    let mut flags = vec!["--cap-add=ALL"];
    if !has_sys_resource(&fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        flags.push("--cap-drop=SYS_RESOURCE");
    }
    flags.extend([
        // What systemd takes for an order to shut down.
        "--stop-signal=SIGRTMIN+3",
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--security-opt=systempaths=unconfined",
        "--device-cgroup-rule=a *:* rwm",
        "--cgroupns=host",
        "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
        "--tmpfs=/run:exec",
        "--tmpfs=/tmp:exec",
    ]);
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        // systemd since 256 refuses control groups of version 1 unless told twice.
        flags.extend([
            "--env=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
            "--env=SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=0",
        ]);
    }
    flags.into_iter().map(str::to_owned).collect()
}

/// Whether the bounding set in a `/proc/PID/status` has CAP_SYS_RESOURCE.
fn has_sys_resource(status: &str) -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bits = set.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(u64::MAX);
    bits >> CAP_SYS_RESOURCE & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounding_set_tells_sys_resource() {
        assert!(!has_sys_resource("Name:\tx\nCapBnd:\t000001fffeffffff\n"));
        assert!(has_sys_resource("Name:\tx\nCapBnd:\t000001ffffffffff\n"));
        assert!(has_sys_resource(""));
    }
}
