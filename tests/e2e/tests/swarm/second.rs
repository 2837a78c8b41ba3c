//! Several coordinators on the large swarm: one drives, the others stand by and take over.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::bundles;
use e2e::truth::{Availability, Watch};
use lab::engines::Bundle;
use lab::{Lab, Node, Suite, product, wait};
use requeen_protocol::DEFAULT_PORT;
use serde_json::Value;

use crate::large::{Large, wait_for_services};
use crate::operator::{refused, requeen, requeen_ok, status, wait_for_end};
use crate::upgrades::{asked, changed, files_are_plain, installed, judge, kill_coordinator};
use crate::world::{World, bundle};

/// How long a node may take to its next step, or a coordinator to notice.
const LIMIT: Duration = Duration::from_secs(120);

/// How long the owner may be silent here: tests don't wait for a minute and a half.
const PATIENCE: &str = "25s";

/// The nodes of these rollouts.
const WORKERS: [&str; 2] = ["w1", "w2"];

/// The owner is killed for good in the middle of a node; it comes back and stands by; both are told to drive; the
/// record is removed in the middle of the next node.
pub(crate) fn a_second_coordinator_takes_over(world: &World) -> Result<()> {
    let large = world.large()?;
    let (lab, first, second) = (large.lab(), large.first()?, large.lab().node("m2")?);
    let target = bundle(Suite::Sid)?;
    installed(large, &target)?;
    let (_folder, other) = changed(&target, "runc", &bundles::content(&bundle(Suite::Trixie)?.path, "runc")?)?;
    stand_by(second)?;
    a_closed_port_is_named(lab, first, second, &other)?;
    let watch = Watch::start(lab)?;
    let id = start(first, &other)?;
    drain(&watch, first, "w1")?;
    first.docker(&["rm", "--force", product::COORDINATOR])?;
    wait_for(second, "another owner", |status| status["rollout"]["owner"] == "m2")?;
    wait_for(second, "w1 done", |status| step(status, "w1") == "done")?;

    product::start_coordinator(first)?;
    wait_for_agents(first)?;
    wait_for_log(first, &["standby", "m2"])?;
    ensure!(status(first)?["rollout"]["owner"] == "m2", "the first one does not name the owner");

    let (one, two) = thread::scope(|scope| {
        let one = scope.spawn(|| requeen(first, &["take-over"]));
        let two = requeen(second, &["take-over"]);
        let one = one.join().map_err(|_| anyhow!("the operator's thread panicked"))?;
        anyhow::Ok((one?, two?))
    })?;
    ensure!(one.success() || two.success(), "nobody took over:\n{}\n{}", one.stderr, two.stderr);
    wait_for(second, "one owner in both words", |seen| {
        status(first).is_ok_and(|other| other["rollout"]["owner"] == seen["rollout"]["owner"])
    })?;

    drain(&watch, first, "w2")?;
    first.docker(&["config", "rm", &format!("requeen-{id}")])?;
    wait_for(first, "the halt", |status| status["rollout"]["phase"] == "halted")?;
    requeen_ok(first, &["resume"])?;
    wait_for_end(first)?;
    second.docker(&["rm", "--force", product::COORDINATOR])?;
    finish(large, watch, &other)
}

/// The owner's node is cut off the network while it drives, and comes back to somebody else's rollout. Then the record is
/// removed and every coordinator is killed: the nodes know enough.
pub(crate) fn an_owner_that_is_cut_off_is_replaced(world: &World) -> Result<()> {
    let large = world.large()?;
    let (lab, first, second) = (large.lab(), large.first()?, large.lab().node("m2")?);
    let target = bundle(Suite::Sid)?;
    stand_by(second)?;
    let watch = Watch::start(lab)?;
    let id = start(first, &target)?;
    drain(&watch, first, "w1")?;
    watch.cut_off(first)?;
    let replaced = (|| {
        wait_for(second, "another owner", |status| status["rollout"]["owner"] == "m2")?;
        wait_for(second, "w1 done", |status| step(status, "w1") == "done")
    })();
    first.connect()?;
    replaced?;
    let recorded = epoch(second, &id)?;
    let journal: Value = serde_json::from_str(&lab.node("w1")?.sh("cat /var/lib/requeen/agent/journal.json")?.stdout)?;
    ensure!(journal["max_epoch"] == recorded, "w1 has not heard of the new owner's epoch {recorded}: {journal}");
    wait_for_log(first, &["standby", "m2", "replaced=true"])?;
    lab.wait_until_ready(second, LIMIT)?;
    watch.hear(first);
    wait_for(first, "the other owner", |status| status["rollout"]["owner"] == "m2")?;

    drain(&watch, first, "w2")?;
    second.docker(&["config", "rm", &format!("requeen-{id}")])?;
    for node in [first, second] {
        kill_coordinator(node)?;
    }
    wait_for(first, "a rollout without a record", |status| status["without_record"][0] == id.as_str())?;
    wait_for_agents(first)?;
    requeen_ok(first, &["resume"])?;
    wait_for_end(first)?;
    second.docker(&["rm", "--force", product::COORDINATOR])?;
    finish(large, watch, &target)
}

/// A worker that does not reach the second coordinator is found before anything begins, and told with both ends.
fn a_closed_port_is_named(lab: &Lab, first: &Node, second: &Node, target: &Bundle) -> Result<()> {
    let (place, worker) = ("/root/next.tgz", lab.node("w1")?);
    first.copy_in(&target.path, place)?;
    let plan = ["plan", "--bundle", place, "--only", "w1"];
    requeen_ok(first, &plan)?;
    let upgrade = ["upgrade", "--bundle", place, "--only", "w1"];
    let at = format!("{}:{DEFAULT_PORT}", second.ip());
    let rule = format!("OUTPUT --protocol tcp --destination {} --dport {DEFAULT_PORT} --jump REJECT", second.ip());
    worker.sh(&format!("iptables --insert {rule}"))?;
    let closed = requeen(first, &upgrade);
    worker.sh(&format!("iptables --delete {rule}"))?;
    refused(&closed?, &["w1", &worker.ip().to_string(), "m2", &at])?;
    requeen_ok(first, &plan)?;
    Ok(())
}

/// Starts a coordinator that loses patience soon, and the CLI beside it.
fn stand_by(node: &Node) -> Result<()> {
    // What a scenario before may have left.
    node.exec(&["docker", "rm", "--force", product::COORDINATOR])?;
    product::start_coordinator_with(node, &[], &["--take-over-after", PATIENCE])?;
    product::install_cli(node)?;
    wait_for_agents(node)
}

/// Every agent finds a coordinator by itself.
fn wait_for_agents(node: &Node) -> Result<()> {
    wait_for(node, "the word of every agent", |status| {
        let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        nodes.len() == 5 && nodes.iter().all(|node| !node["agent"].is_null())
    })
}

/// Starts a rollout over the workers that waits for grants, and returns its ID.
fn start(first: &Node, target: &Bundle) -> Result<String> {
    let place = "/root/next.tgz";
    first.copy_in(&target.path, place)?;
    let only = WORKERS.join(",");
    let started =
        requeen_ok(first, &["upgrade", "--bundle", place, "--only", &only, "--manual", "--detach", "--json"])?;
    let started: Value = serde_json::from_str(&started.stdout)?;
    Ok(started["id"].as_str().context("the rollout has no ID")?.to_owned())
}

/// Grants a node its lease and waits until it is drained.
fn drain(watch: &Watch, first: &Node, node: &str) -> Result<()> {
    requeen_ok(first, &["grant", node])?;
    watch.wait_for_change(&format!("{node} drained"), LIMIT, |sample| {
        sample.nodes.get(node).is_some_and(|node| node.availability == Availability::Drain)
    })
}

fn wait_for(node: &Node, what: &str, reached: impl Fn(&Value) -> bool) -> Result<()> {
    let waited = wait::until_true(what, LIMIT, || {
        let output = product::requeen(node, &["status", "--json"])?;
        let status: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        Ok(if reached(&status) { Ok(()) } else { Err(format!("{} {}", status["rollout"], output.stderr)) })
    });
    Ok(waited?)
}

fn wait_for_log(node: &Node, words: &[&str]) -> Result<()> {
    let waited = wait::until_true(&format!("{words:?} in the log of {node}'s coordinator"), LIMIT, || {
        let log = node.exec(&["docker", "logs", product::COORDINATOR])?;
        let all = format!("{}{}", log.stdout, log.stderr);
        let said = all.lines().any(|line| words.iter().all(|word| line.contains(word)));
        let last: Vec<&str> = all.lines().rev().take(3).collect();
        Ok(if said { Ok(()) } else { Err(last.join("\n")) })
    });
    Ok(waited?)
}

fn step(status: &Value, node: &str) -> String {
    let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let node = nodes.iter().find(|other| other["hostname"] == node);
    node.and_then(|node| node["step"]["step"].as_str()).unwrap_or_default().to_owned()
}

/// The epoch of the rollout's record.
fn epoch(manager: &Node, id: &str) -> Result<u64> {
    let labels =
        manager.docker(&["config", "inspect", "--format", "{{json .Spec.Labels}}", &format!("requeen-{id}")])?;
    let labels: Value = serde_json::from_str(&labels.stdout)?;
    let owner: Value = serde_json::from_str(labels["io.requeen.owner"].as_str().context("no owner")?)?;
    owner["epoch"].as_u64().context("no epoch")
}

/// Everything was as it has to be, whoever drove.
fn finish(large: &Large, watch: Watch, target: &Bundle) -> Result<()> {
    let lab: &Lab = large.lab();
    let truth = watch.finish()?;
    let mut asked = asked(lab, target)?;
    asked.scope = WORKERS.map(str::to_owned).into_iter().collect();
    judge(&truth, &asked)?;
    let runc = bundles::sha256(&bundles::content(&target.path, "runc")?);
    for node in WORKERS {
        let found = lab.node(node)?.sh("sha256sum < $(command -v runc) | cut -c1-64")?;
        ensure!(found.trimmed() == runc, "{node} has another runc");
    }
    if target.path == bundle(Suite::Sid)?.path {
        files_are_plain(lab, &target.path)?;
    }
    wait_for_services(large.first()?)
}
