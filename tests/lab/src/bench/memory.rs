//! What an idle agent keeps in memory, as the kernel counts it.

use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::engine_down::wait_until_idle;
use crate::rig::Rig;
use crate::{Error, Node, Result};

/// Prints the process ID and the resident memory, KiB, of every agent on a node.
const LOOK: &str = "for pid in $(pgrep --exact agent); do \
                    echo \"$pid $(awk '/^VmRSS/ { print $2 }' /proc/$pid/status)\"; done";

/// How long agents are left alone after a staging before their memory is read again.
const AFTER_STAGING: Duration = Duration::from_secs(10);

/// The figure, in bytes, of the node where it is largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AgentRss {
    /// After idle minutes.
    pub agent_idle_rss_bytes: u64,
    /// Idle again after a staging.
    pub agent_staged_rss_bytes: u64,
}

/// An agent's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Agent {
    pid: u32,
    bytes: u64,
}

/// Leaves the agents alone for `idle`, reads, lets them stage, reads again.
pub(super) fn measure(rig: &Rig, idle: Duration) -> Result<AgentRss> {
    let nodes = rig.lab().nodes();
    let first = rig.first()?;
    wait_until_idle(first, nodes.len())?;
    let before = read(nodes)?;
    tracing::info!(seconds = idle.as_secs(), "leave the agents alone");
    // What is measured is what remains after this time; there is no condition to wait for.
    thread::sleep(idle);
    let rested = read(nodes)?;
    same(nodes, &before, &rested)?;
    // Its one manager would refuse to be restarted; nothing is.
    let plan = ["requeen", "plan", "--bundle", rig.bundle(), "--accept-control-plane-outage"];
    first.exec(&[&["timeout", "900"], &plan[..]].concat())?.ok()?;
    wait_until_idle(first, nodes.len())?;
    thread::sleep(AFTER_STAGING);
    let staged = read(nodes)?;
    same(nodes, &before, &staged)?;
    Ok(AgentRss { agent_idle_rss_bytes: largest(&rested), agent_staged_rss_bytes: largest(&staged) })
}

fn largest(agents: &[Agent]) -> u64 {
    agents.iter().map(|agent| agent.bytes).max().unwrap_or_default()
}

/// Insists on the agents that there were: one that was started in between is not the idle one.
fn same(nodes: &[Node], before: &[Agent], after: &[Agent]) -> Result<()> {
    for (node, (before, after)) in nodes.iter().zip(before.iter().zip(after)) {
        tracing::info!(%node, kib = after.bytes / 1024, "agent's memory");
        if before.pid != after.pid {
            return Err(Error::AgentRestarted { node: node.name().to_owned() });
        }
    }
    Ok(())
}

/// The agent of every node, in their order.
fn read(nodes: &[Node]) -> Result<Vec<Agent>> {
    nodes
        .iter()
        .map(|node| {
            let said = node.sh(LOOK)?.stdout;
            agent(&said).ok_or(Error::Answer { what: "the list of agents", answer: said, expected: "exactly one" })
        })
        .collect()
}

/// The one agent of a list.
fn agent(list: &str) -> Option<Agent> {
    let mut lines = list.lines();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    let (pid, kib) = line.split_once(' ')?;
    Some(Agent { pid: pid.parse().ok()?, bytes: kib.parse::<u64>().ok()? * 1024 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_agent_is_read() {
        assert_eq!(agent("812 4096\n"), Some(Agent { pid: 812, bytes: 4_194_304 }));
        for wrong in ["", "812 \n", "812 4096\n813 4096\n", "x 1\n"] {
            assert_eq!(agent(wrong), None, "{wrong:?}");
        }
        assert_eq!(largest(&[Agent { pid: 1, bytes: 5 }, Agent { pid: 2, bytes: 7 }]), 7);
    }
}
