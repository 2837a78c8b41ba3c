//! A node as a container on the machine's engine, which runs an init system and an engine of its own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command::{self, Input, Output, docker};
use crate::{Init, LABEL, Node, Result, network, wait};

/// The label that carries a node's name.
pub(crate) const LABEL_NODE: &str = "io.requeen.lab.node";
/// The label that carries a node's address.
pub(crate) const LABEL_ADDRESS: &str = "io.requeen.lab.address";

/// The label that says what its PID 1 is.
pub(crate) const LABEL_INIT: &str = "io.requeen.lab.init";

/// Folders of `/var/lib` that are volumes.
const DATA: [&str; 2] = ["docker", "containerd"];

/// A node's container, by its name.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    lab: String,
    name: String,
    init: Init,
}

impl Container {
    pub(crate) fn of(node: &Node) -> Self {
        let lab = node.lab().to_owned();
        Self { name: format!("{}-{}", network::name(&lab), node.name()), lab, init: node.init() }
    }

    /// Its name on the machine's engine.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A command in the container, not yet started. `terminal` gives it one.
    pub(crate) fn command(&self, command: &[&str], terminal: bool) -> Command {
        let mut docker = Command::new("docker");
        docker.args(["exec", "--interactive"]);
        if terminal {
            docker.arg("--tty");
        }
        docker.arg(&self.name).args(command);
        docker
    }

    /// Runs a command in the container.
    pub(crate) fn exec(&self, command: &[&str], input: Input<'_>) -> Result<Output> {
        match input {
            Input::Empty => {
                command::collect(Command::new("docker").args(["exec", &self.name]).args(command), Input::Empty)
            }
            Input::Bytes(_) | Input::File(_) => command::collect(&mut self.command(command, false), input),
        }
    }

    /// Kills every process of it.
    pub(crate) fn kill(&self) -> Result<()> {
        docker(&["kill", "--signal", "KILL", &self.name]).map(drop)
    }

    /// Starts it, and returns when PID 1 has begun with everything else.
    pub(crate) fn start(&self) -> Result<()> {
        docker(&["start", &self.name])?;
        wait::until_true(&format!("{} in {}", self.init, self.name), Duration::from_secs(60), || {
            let output = self.exec(self.init.question(), Input::Empty)?;
            let up = self.init.is_up(&output.stdout);
            Ok(if up { Ok(()) } else { Err(format!("{} {}", output.trimmed(), output.stderr.trim())) })
        })
    }

    /// Shuts it down in order and boots it again.
    pub(crate) fn reboot(&self) -> Result<()> {
        docker(&["stop", "--time", "60", &self.name])?;
        self.start()
    }

    /// Takes it out of the lab's network.
    pub(crate) fn disconnect(&self) -> Result<()> {
        docker(&["network", "disconnect", &network::name(&self.lab), &self.name]).map(drop)
    }

    /// Puts it there again, at the same address; no error if it is there.
    pub(crate) fn connect(&self, address: &str) -> Result<()> {
        let networks = docker(&["inspect", "--format", "{{json .NetworkSettings.Networks}}", &self.name])?;
        if networks.stdout.contains(&format!("\"{}\"", network::name(&self.lab))) {
            return Ok(());
        }
        docker(&["network", "connect", "--ip", address, &network::name(&self.lab), &self.name]).map(drop)
    }

    /// running, exited, …
    pub(crate) fn state(&self) -> Result<String> {
        Ok(docker(&["inspect", "--format", "{{.State.Status}}", &self.name])?.trimmed().to_owned())
    }

    /// The volumes that hold what its engine keeps.
    pub(crate) fn volumes(&self) -> Vec<String> {
        DATA.iter().map(|data| format!("{}-{data}", self.name)).collect()
    }

    /// Makes and starts a node's container. `hosts` are all nodes of the lab, to be known by name.
    pub(crate) fn create(&self, node: &Node, image: &str, hosts: &[Node]) -> Result<()> {
        let label = format!("{LABEL}={}", self.lab);
        let mut args: Vec<String> =
            ["run", "--detach", "--name", &self.name, "--hostname", node.name()].map(str::to_owned).to_vec();
        let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
        option("--label", label.clone());
        option("--label", format!("{LABEL_NODE}={}", node.name()));
        option("--label", format!("{LABEL_ADDRESS}={}", node.ip()));
        option("--label", format!("{LABEL_INIT}={}", self.init));
        option("--network", network::name(&self.lab));
        option("--ip", node.ip().to_string());
        for host in hosts {
            option("--add-host", format!("{}:{}", host.name(), host.ip()));
        }
        for (data, volume) in DATA.iter().zip(self.volumes()) {
            docker(&["volume", "create", "--label", &label, &volume])?;
            option("--volume", format!("{volume}:/var/lib/{data}"));
        }
        // The nodes know each other from /etc/hosts. A resolver that can't answer would make every task wait for it.
        option("--volume", "/dev/null:/etc/resolv.conf:ro".to_owned());
        args.extend(machine_flags(self.init));
        args.push(image.to_owned());
        docker(&args).map(drop)
    }
}

/// What makes a container enough of a machine for an init system and an engine.
///
/// Not `--privileged`: where the lab itself runs without CAP_SYS_RESOURCE, as in some virtual machines, that is refused.
fn machine_flags(init: Init) -> Vec<String> {
    let mut flags = vec!["--cap-add=ALL"];
    if !has_sys_resource(&fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        flags.push("--cap-drop=SYS_RESOURCE");
    }
    flags.extend([
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--security-opt=systempaths=unconfined",
        "--device-cgroup-rule=a *:* rwm",
        "--cgroupns=host",
        "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
        "--tmpfs=/run:exec",
        "--tmpfs=/tmp:exec",
    ]);
    flags.extend(init.flags(!Path::new("/sys/fs/cgroup/cgroup.controllers").exists()));
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
