//! The network of a lab's machines: a namespace of its own, in it a bridge for the nodes and another one for the lab.
//!
//! What dockerd and others do to this machine's own network does not reach it, and with the namespace all of it is gone.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use crate::command::{self, Input};
use crate::{Node, Result};

use super::process;

/// The bridge that the nodes see each other through.
const BRIDGE: &str = "nodes";

/// The bridge through which the lab comes in.
const CONTROL: &str = "control";

/// What happens to what a machine sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// All of it is so many milliseconds late.
    pub delay_ms: u32,
    /// So many of a hundred packets are lost.
    pub loss_percent: u8,
}

impl Weather {
    /// Nothing happens to it.
    pub const CLEAR: Self = Self { delay_ms: 0, loss_percent: 0 };

    /// For `tc qdisc` in the machine: its kernel has netem, this machine's may not.
    pub(super) fn arguments(self) -> Vec<String> {
        let Self { delay_ms, loss_percent } = self;
        let words = if self == Self::CLEAR {
            "delete dev vec0 root".to_owned()
        } else {
            // What is delayed is queued meanwhile: the default limit would lose what nobody asked to lose.
            format!("replace dev vec0 root netem limit 10000 delay {delay_ms}ms loss {loss_percent}%")
        };
        words.split(' ').map(str::to_owned).collect()
    }
}

/// The name of a lab's namespace.
fn namespace(lab: &str) -> String {
    crate::network::name(lab)
}

fn namespace_file(lab: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(namespace(lab))
}

/// The end of a machine's cable.
pub(super) fn tap(name: &str) -> String {
    name.to_owned()
}

/// The end of the cable that only the lab uses.
pub(super) fn control_tap(name: &str) -> String {
    format!("{name}-control")
}

/// The address at which only the lab itself finds a node.
pub(super) fn control(address: Ipv4Addr) -> Ipv4Addr {
    let [_, _, _, last] = address.octets();
    Ipv4Addr::new(10, 203, 0, last)
}

/// A program in the lab's namespace.
pub(super) fn inside(lab: &str, program: &str) -> Command {
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", namespace_file(lab).display())).arg(program);
    nsenter
}

/// Makes the namespace with bridges and cables.
pub(super) fn create(lab: &str, nodes: &[Node]) -> Result<()> {
    command::run("ip", &["netns", "add", &namespace(lab)])?;
    let mut batch = format!(
        "link add {BRIDGE} type bridge\nlink add {CONTROL} type bridge\naddress add 10.203.0.1/24 dev {CONTROL}\n\
         link set lo up\nlink set {BRIDGE} up\nlink set {CONTROL} up\n"
    );
    for node in nodes {
        for (tap, bridge) in [(tap(node.name()), BRIDGE), (control_tap(node.name()), CONTROL)] {
            // Writing to a string can't fail.
            writeln!(batch, "tuntap add dev {tap} mode tap\nlink set {tap} master {bridge} up").ok();
        }
    }
    command::collect(
        Command::new("ip").args(["-netns", &namespace(lab), "-batch", "-"]),
        Input::Bytes(batch.as_bytes()),
    )?
    .ok()
    .map(drop)
}

/// Pulls a machine's cable out of the bridge, or plugs it in again.
pub(super) fn cable(lab: &str, name: &str, plugged: bool) -> Result<()> {
    let (namespace, tap) = (namespace(lab), tap(name));
    let mut words = vec!["-netns", &namespace, "link", "set", &tap];
    words.extend(if plugged { &["master", BRIDGE][..] } else { &["nomaster"] });
    command::run("ip", &words).map(drop)
}

/// Ends every process in the lab's namespace: nobody but the lab starts any there.
pub(super) fn end_processes(lab: &str) -> Result<()> {
    if !namespace_file(lab).exists() {
        return Ok(());
    }
    process::end(|| {
        let pids = command::run("ip", &["netns", "pids", &namespace(lab)])?.stdout;
        Ok(pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
    })
}

/// Removes the namespace with all that is in it.
pub(super) fn remove(lab: &str) -> Result<()> {
    if !namespace_file(lab).exists() {
        return Ok(());
    }
    command::run("ip", &["netns", "delete", &namespace(lab)]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cables_have_names_that_the_kernel_takes() {
        // IFNAMSIZ, with its end.
        assert!(control_tap("w90").len() < 16);
    }

    #[test]
    fn weather_is_said_in_words_of_tc() {
        let both = Weather { delay_ms: 300, loss_percent: 20 };
        assert_eq!(both.arguments().join(" "), "replace dev vec0 root netem limit 10000 delay 300ms loss 20%");
        assert_eq!(Weather::CLEAR.arguments().join(" "), "delete dev vec0 root");
    }
}
