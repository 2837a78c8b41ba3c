//! The benchmark: how long an upgrade takes, how long each engine is down, and whether the load noticed.
//!
//! An engine's time down is read from the node's own journal, from the order to stop it to its word that it is up, so
//! it does not depend on what the product says of itself.

use std::time::Instant;

use serde::Serialize;

use crate::engines::Bundle;
use crate::rig::Rig;
use crate::{Lab, Node, Result, Spec, product};

/// One upgrade, measured.
#[derive(Debug, Serialize)]
pub struct Measurement {
    /// From `requeen upgrade` to its end, in seconds: staging, every drain and every restart.
    pub upgrade_seconds: f64,
    /// The exit status of `requeen upgrade`.
    pub status: i32,
    /// Every node's engine.
    pub nodes: Vec<Engine>,
    /// Requests the connectivity test made.
    pub requests: u64,
    /// Requests that got no good answer.
    pub failed: u64,
}

/// One node's engine, measured.
#[derive(Debug, Serialize)]
pub struct Engine {
    /// The node's name.
    pub node: String,
    /// The version after the upgrade.
    pub version: String,
    /// The longest time between an order to stop and the engine's next word that it is up, in seconds.
    pub down_seconds: Option<f64>,
}

/// Makes a swarm, upgrades it under load, measures, and removes it. The product's image must be on the machine's
/// engine.
pub fn run(spec: &Spec, target: &Bundle) -> Result<Measurement> {
    let rig = Rig::up(spec, target)?;
    let first = rig.first()?;
    let started = Instant::now();
    let upgrade = product::requeen(first, &["upgrade", "--bundle", rig.bundle()])?;
    let upgrade_seconds = started.elapsed().as_secs_f64();
    if !upgrade.success() {
        tracing::warn!(status = upgrade.status, said = upgrade.stderr, "the upgrade did not succeed");
    }
    let nodes = rig.lab().nodes().iter().map(measure).collect::<Result<_>>()?;
    let load = rig.load()?;
    Lab::down(&spec.name)?;
    let status = upgrade.status;
    Ok(Measurement { upgrade_seconds, status, nodes, requests: load.requests_total, failed: load.failed_total })
}

fn measure(node: &Node) -> Result<Engine> {
    let command = ["journalctl", "--no-pager", "--output=short-unix", "--unit", "docker.service"];
    let journal = node.exec(&command)?.ok()?.stdout;
    Ok(Engine { node: node.name().to_owned(), version: node.engine_version()?, down_seconds: longest_gap(&journal) })
}

/// The longest gap between systemd's "Stopping docker.service" and its next "Started docker.service", in seconds.
fn longest_gap(journal: &str) -> Option<f64> {
    let mut stopping = None;
    let mut longest: Option<f64> = None;
    for line in journal.lines().filter(|line| line.contains(" systemd[1]: ")) {
        let Some(time) = line.split_whitespace().next().and_then(|word| word.parse::<f64>().ok()) else { continue };
        if line.contains("]: Stopping docker.service") {
            stopping = stopping.or(Some(time));
        } else if line.contains("]: Started docker.service")
            && let Some(from) = stopping.take()
        {
            longest = Some(longest.map_or(time - from, |gap| gap.max(time - from)));
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_from_the_order_to_the_word() {
        let journal = "100.0 m1 systemd[1]: Started docker.service - Docker Application Container Engine.\n\
                       200.5 m1 systemd[1]: Stopping docker.service - Docker Application Container Engine...\n\
                       200.6 m1 dockerd[7]: Processing signal 'terminated'\n\
                       201.0 m1 systemd[1]: Stopped docker.service - Docker Application Container Engine.\n\
                       202.0 m1 systemd[1]: Started docker.service - Docker Application Container Engine.\n";
        assert_eq!(longest_gap(journal), Some(1.5));
        assert_eq!(longest_gap("100.0 m1 systemd[1]: Started docker.service - X\n"), None);
    }
}
