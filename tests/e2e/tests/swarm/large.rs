//! The large swarm: three managers and two workers, prepared as a real one is, with a node drained and one paused.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::command::parallel;
use lab::images::{PRODUCT, repository};
use lab::{Init, Kind, Lab, Node, Spec, Suite, product, wait};
use serde_json::Value;

use crate::operator::requeen_ok;
use crate::world::World;

/// The swarm's name.
pub(crate) const NAME: &str = "e2e-a";

/// The stack of the connectivity test.
const PROBE: &str = "probe";

/// How long services may take until all of their tasks run.
const SERVICES_LIMIT: Duration = Duration::from_secs(120);

/// What the image may weigh, bytes.
const IMAGE_BYTES: u64 = 12_000_000;

/// What an idle agent may keep in memory, KiB.
const AGENT_KIB: u64 = 6 * 1024;

/// The node that is drained for good, and the one that is paused.
const DRAINED: &str = "m3";
const PAUSED: &str = "w2";

/// The swarm, ready for its upgrades.
pub(crate) struct Large {
    lab: Lab,
    /// What `deploy` printed.
    deployed: Value,
}

impl Large {
    pub(crate) fn make(kind: Kind) -> Result<Self> {
        let spec =
            Spec { name: NAME.to_owned(), managers: 3, workers: 2, suite: Suite::Bookworm, kind, init: Init::Systemd };
        let lab = Lab::up(&spec)?;
        lab.load_image(PRODUCT)?;
        let first = lab.node("m1")?;
        for (node, label) in [("m1", "rack=a"), ("w1", "disk=ssd"), ("w2", "disk=hdd")] {
            first.docker(&["node", "update", "--label-add", label, node])?;
        }
        serve(first)?;
        product::deploy_stack(first, &repository().join("compose/probe.yaml"), PROBE)?;
        wait_for_services(first)?;
        // After their tasks were placed: a paused node keeps its own.
        first.docker(&["node", "update", "--availability", "drain", DRAINED])?;
        first.docker(&["node", "update", "--availability", "pause", PAUSED])?;
        wait_for_services(first)?;

        product::start_coordinator(first)?;
        product::install_cli(first)?;
        let output = product::requeen(first, &["deploy", "--image", PRODUCT, "--json"])?.ok()?;
        let deployed: Value = serde_json::from_str(&output.stdout).context("what deploy printed")?;
        let large = Self { lab, deployed };
        for (node, command) in large.by_hand()? {
            large.lab.node(&node)?.sh(&command)?;
        }
        product::wait_for_service(large.first()?, product::AGENTS, 3, SERVICES_LIMIT)?;
        Ok(large)
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The manager on which the coordinator runs.
    pub(crate) fn first(&self) -> Result<&Node> {
        Ok(self.lab.node("m1")?)
    }

    /// The commands that `deploy` printed, by the node on which to type them.
    fn by_hand(&self) -> Result<BTreeMap<String, String>> {
        let pairs = self.deployed.get("by_hand").cloned().unwrap_or_default();
        let pairs: Vec<(String, String)> = serde_json::from_value(pairs)?;
        Ok(pairs.into_iter().collect())
    }

    /// The version that every engine tells, if it is the same one.
    pub(crate) fn version(&self) -> Result<String> {
        let versions = parallel("asking an engine", self.lab.nodes(), Node::engine_version)?;
        let first = versions.first().cloned().unwrap_or_default();
        ensure!(versions.iter().all(|version| *version == first), "the engines differ: {versions:?}");
        Ok(first)
    }

    /// Starts the probe again, so that its logs hold all of the next rollout.
    pub(crate) fn fresh_probe(&self) -> Result<()> {
        let first = self.first()?;
        first.docker(&["stack", "rm", PROBE])?;
        wait::until_true("the probe's end", SERVICES_LIMIT, || {
            let networks = first.docker(&["network", "ls", "--quiet", "--filter", "name=probe_probe"])?;
            let left = first.docker(&["stack", "ps", "--quiet", PROBE]).map(|left| left.stdout).unwrap_or_default();
            let gone = networks.trimmed().is_empty() && left.trim().is_empty();
            Ok(if gone { Ok(()) } else { Err(format!("{}{left}", networks.stdout)) })
        })?;
        product::deploy_stack(first, &repository().join("compose/probe.yaml"), PROBE)?;
        wait_for_services(first)
    }

    /// What the probe saw: it must have asked, and nothing may have failed.
    pub(crate) fn check_probe(&self) -> Result<()> {
        let first = self.first()?;
        requeen_ok(first, &["probe", "report"])?;
        let output = product::requeen(first, &["probe", "report", "--json"])?.ok()?;
        let report: Value = serde_json::from_str(&output.stdout).context("the probe's report")?;
        let count = |name: &str| report.get(name).and_then(Value::as_u64).unwrap_or_default();
        let (requests, failed) = (count("requests_total"), count("failed_total"));
        eprintln!("probe: {failed} of {requests} requests failed");
        ensure!(requests > 500, "the probe made only {requests} requests");
        ensure!(failed == 0, "{failed} of {requests} requests failed: {report:#}");
        Ok(())
    }
}

/// Services of every kind, beside the probe.
fn serve(first: &Node) -> Result<()> {
    let kinds: [(&str, &[&str]); 4] = [
        ("web", &["--replicas", "3"]),
        ("one", &["--replicas", "1"]),
        ("everywhere", &["--mode", "global"]),
        ("pinned", &["--replicas", "2", "--constraint", "node.role==worker"]),
    ];
    for (name, options) in kinds {
        let mut args = vec!["service", "create", "--detach", "--no-resolve-image", "--name", name];
        args.extend(["--endpoint-mode", "dnsrr", "--stop-grace-period", "3s"]);
        args.extend(options);
        args.extend([PRODUCT, "coordinator", "probe", "server"]);
        first.docker(&args)?;
    }
    Ok(())
}

/// Waits until every service has all of its tasks.
pub(crate) fn wait_for_services(manager: &Node) -> Result<()> {
    let waited = wait::until_true("every service's tasks", SERVICES_LIMIT, || {
        let output = manager.exec(&["docker", "service", "ls", "--format", "{{.Name}} {{.Replicas}}"])?;
        let whole = |line: &str| {
            let counts = line.split_whitespace().nth(1).and_then(|text| text.split_once('/'));
            counts.is_some_and(|(running, wanted)| running == wanted && wanted != "0")
        };
        let short: Vec<&str> = output.stdout.lines().filter(|line| !whole(line)).collect();
        let ready = output.success() && !output.stdout.is_empty() && short.is_empty();
        Ok(if ready { Ok(()) } else { Err(format!("{}{}", short.join("\n"), output.stderr)) })
    });
    Ok(waited?)
}

/// The drained and the paused node get their agents by the command that `deploy` prints, all others from the swarm.
pub(crate) fn agents_are_on_every_node(world: &World) -> Result<()> {
    let large = world.large()?;
    let first = large.first()?;
    let by_hand = large.by_hand()?;
    ensure!(by_hand.keys().eq([DRAINED, PAUSED]), "commands for {:?}", by_hand.keys());
    for command in by_hand.values() {
        ensure!(command.starts_with("docker run "), "no docker run: {command}");
    }
    let printed = requeen_ok(first, &["deploy", "--image", PRODUCT, "--print"])?;
    ensure!(printed.stdout.contains("docker service create"), "no command: {}", printed.stdout);
    let again = requeen_ok(first, &["deploy", "--image", PRODUCT])?;
    ensure!(again.stdout.contains("nothing to do"), "deployed twice: {}", again.stdout);

    let limit = Duration::from_secs(60);
    wait::until_true("the word of every agent", limit, || {
        let output = product::requeen(first, &["status", "--json"])?.ok()?;
        let status: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let nodes = status.get("nodes").and_then(Value::as_array).cloned().unwrap_or_default();
        let heard = nodes.iter().filter(|node| !node["agent"].is_null()).count();
        Ok(if heard == 5 { Ok(()) } else { Err(format!("{heard} of {} nodes heard", nodes.len())) })
    })?;
    Ok(())
}

/// Whether this is a build for debugging, several times larger than what users get.
fn for_debugging() -> bool {
    std::env::var("REQUEEN_E2E_PROFILE").is_ok_and(|profile| profile == "dev")
}

/// Every node has to pull the image.
pub(crate) fn the_image_is_small(world: &World) -> Result<()> {
    world.large()?;
    let size = lab::command::docker(&["image", "inspect", "--format", "{{.Size}}", PRODUCT])?;
    let size: u64 = size.trimmed().parse()?;
    eprintln!("the image: {size} bytes");
    ensure!(for_debugging() || size <= IMAGE_BYTES, "the image has {size} bytes, more than {IMAGE_BYTES}");
    Ok(())
}

/// An agent that waits for an order is a guest that takes little room.
pub(crate) fn an_idle_agent_is_small(world: &World) -> Result<()> {
    let large = world.large()?;
    let script = "for pid in $(pgrep --exact agent); do awk '/^VmRSS/ { print $2 }' /proc/$pid/status; done";
    for node in large.lab().nodes() {
        let said = node.sh(script)?;
        let sizes: Vec<u64> = said.stdout.lines().map(str::parse).collect::<Result<_, _>>()?;
        eprintln!("{node}: agent {sizes:?} KiB");
        ensure!(sizes.len() == 1, "{node}: {} agents", sizes.len());
        let small = for_debugging() || sizes.iter().all(|size| *size <= AGENT_KIB);
        ensure!(small, "{node}: {sizes:?} KiB, more than {AGENT_KIB}");
    }
    Ok(())
}
