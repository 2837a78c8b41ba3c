//! A swarm with everything in place for an upgrade under load: what the demonstration and the benchmark begin with.

use std::time::Duration;

use serde::Deserialize;

use crate::engines::Bundle;
use crate::images::{PRODUCT, repository};
use crate::{Error, Lab, Node, Result, Spec, product, wait};

/// The stack of the connectivity test.
const PROBE: &str = "probe";

/// How long the connectivity test may take until all of its tasks run.
const PROBE_LIMIT: Duration = Duration::from_secs(90);

/// A lab whose m1 runs a coordinator and has the CLI, with an agent and the connectivity test on every node.
#[derive(Debug)]
pub struct Rig {
    lab: Lab,
    /// The bundle's path on m1.
    bundle: String,
}

/// What the connectivity test saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Load {
    /// Requests that were made.
    pub requests_total: u64,
    /// Requests that got no good answer.
    pub failed_total: u64,
}

impl Load {
    /// Both together.
    pub const fn and(self, other: Self) -> Self {
        Self {
            requests_total: self.requests_total + other.requests_total,
            failed_total: self.failed_total + other.failed_total,
        }
    }
}

impl Rig {
    /// Makes the lab and starts everything. The product's image must be on the machine's engine.
    pub fn up(spec: &Spec, bundle: &Bundle) -> Result<Self> {
        let rig = Self::without_load(spec, bundle)?;
        deploy_probe(rig.first()?)?;
        Ok(rig)
    }

    /// The same without the connectivity test.
    pub fn without_load(spec: &Spec, bundle: &Bundle) -> Result<Self> {
        let lab = Lab::up(spec)?;
        lab.load_image(PRODUCT)?;
        let first = lab.node("m1")?;
        product::start_coordinator(first)?;
        product::install_cli(first)?;
        product::deploy_agents(&lab, first)?;
        let bundle = product::copy_bundle(first, bundle)?;
        Ok(Self { lab, bundle })
    }

    /// The lab.
    pub const fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The bundle's path on m1.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// The manager that has the coordinator, the CLI and the bundle.
    pub fn first(&self) -> Result<&Node> {
        self.lab.node("m1")
    }

    /// What the connectivity test saw so far.
    pub fn load(&self) -> Result<Load> {
        load(self.first()?)
    }
}

/// What the connectivity test saw so far, asked on a manager that has a coordinator and the CLI.
pub(crate) fn load(node: &Node) -> Result<Load> {
    let report = product::requeen(node, &["probe", "report", "--json"])?.ok()?;
    serde_json::from_str(&report.stdout).map_err(|source| Error::Json { what: "requeen probe report", source })
}

/// Starts the connectivity test and waits for it. The product's image must be on every node.
pub(crate) fn deploy_probe(node: &Node) -> Result<()> {
    product::deploy_stack(node, &repository().join("compose/probe.yaml"), PROBE)?;
    wait_for_probe(node)
}

/// Waits until every service of the connectivity test has all of its tasks.
fn wait_for_probe(node: &Node) -> Result<()> {
    wait::until_true("the tasks of the connectivity test", PROBE_LIMIT, || {
        let output = node.exec(&["docker", "stack", "services", "--format", "{{.Name}} {{.Replicas}}", PROBE])?;
        let short: Vec<&str> = output.stdout.lines().filter(|line| !complete(line)).collect();
        let none = output.stdout.trim().is_empty();
        Ok(if none || !short.is_empty() { Err(format!("{}{}", short.join("\n"), output.stderr)) } else { Ok(()) })
    })
}

/// Whether a line like `probe_server 3/3` tells of all tasks running.
fn complete(line: &str) -> bool {
    let replicas = line.split_whitespace().nth(1).and_then(|text| text.split_once('/'));
    replicas.is_some_and(|(running, wanted)| running == wanted && wanted != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_complete_with_all_of_its_tasks() {
        assert!(complete("probe_server 3/3"));
        assert!(complete("probe_client 2/2 (max 1 per node)"));
        for line in ["probe_server 2/3", "probe_server 0/0", "probe_server", ""] {
            assert!(!complete(line), "{line}");
        }
    }
}
