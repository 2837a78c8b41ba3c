//! What befalls other managers while a node is in work: one loses its machine, and the leader's engine is restarted by
//! somebody. Nothing is stopped that the quorum needs, and the rollout goes on by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::bundles;
use lab::Node;

use crate::faults::{
    base, engine_start, holding_task, let_go, other_runc, runc, upgraded, wait_for_shown, wait_for_why, wait_for_words,
};
use crate::large::{Large, wait_for_services};
use crate::operator::{requeen_ok, status, wait_for_end, wait_for_node};
use crate::upgrades::changed;
use crate::world::World;

/// How long a manager may take to be seen in another state.
const LIMIT: Duration = Duration::from_secs(120);

/// The manager and the worker of this rollout.
const MANAGER: &str = "m2";
const WORKER: &str = "w1";

/// The machine of one manager is lost while another one is emptied: its engine is not stopped before that one is back. Then
/// the leader's engine is restarted while the worker is emptied.
pub(crate) fn other_managers_may_fail_in_the_middle(world: &World) -> Result<()> {
    let large = world.large()?;
    let first = large.first()?;
    let target = base(first)?;
    let (_folder, other) = changed(&target, "runc", &other_runc(&target)?)?;
    first.copy_in(&other.path, "/root/next.tgz")?;
    let old = runc(large.lab().node(WORKER)?)?;
    let ran = rollout(large, &bundles::sha256(&other_runc(&target)?));
    // Whether it holds or not, the next scenario finds the swarm as this one did.
    for node in [MANAGER, WORKER] {
        let_go(first, large.lab().node(node)?)?;
    }
    let phase = status(first)?.pointer("/rollout/phase").cloned().unwrap_or_default();
    if phase != "ended" && !phase.is_null() {
        requeen_ok(first, &["abort"])?;
        wait_for_end(first)?;
    }
    if runc(large.lab().node(MANAGER)?)? != old {
        requeen_ok(first, &["rollback"])?;
    }
    ran?;
    for node in [MANAGER, WORKER] {
        ensure!(runc(large.lab().node(node)?)? == old, "{node} has not got its runc back");
    }
    wait_for_services(first)
}

fn rollout(large: &Large, new: &str) -> Result<()> {
    let (lab, first) = (large.lab(), large.first()?);
    let (second, third, worker) = (lab.node(MANAGER)?, lab.node("m3")?, lab.node(WORKER)?);
    holding_task(first, MANAGER)?;
    let (started, id) = (engine_start(second)?, third.node_id()?);
    let only = [MANAGER, WORKER].join(",");
    requeen_ok(first, &["upgrade", "--bundle", "/root/next.tgz", "--only", &only, "--detach"])?;
    wait_for_words(first, r#""work": "emptying""#)?;
    third.kill()?;
    let waited = (|| {
        wait_for_node(lab, first, &id, "down unreachable", LIMIT)?;
        let_go(first, second)?;
        wait_for_why(first, MANAGER, "quorum: 2 of 3 managers are reachable, and 2 must stay")?;
        ensure!(engine_start(second)? == started, "the engine of {second} was restarted");
        // For the node that comes next.
        holding_task(first, WORKER)
    })();
    third.start()?;
    waited?;
    wait_for_shown(first, "the upgraded manager", MANAGER, upgraded)?;
    ensure!(runc(second)? == new, "{second} has not got its runc");

    wait_for_words(first, r#""work": "emptying""#)?;
    let (started, leader) = (engine_start(worker)?, leader(large)?);
    leader.sh("systemctl reset-failed docker && systemctl restart docker")?;
    lab.wait_until_ready(first, LIMIT)?;
    ensure!(engine_start(worker)? == started, "the engine of {worker} was restarted");
    let_go(first, worker)?;
    wait_for_end(first)?;
    wait_for_shown(first, "the upgraded worker", WORKER, upgraded)?;
    ensure!(runc(worker)? == new, "{worker} has not got its runc");
    Ok(())
}

/// The manager that leads now.
fn leader(large: &Large) -> Result<&Node> {
    let list = large.first()?.docker(&["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
    let name = list.stdout.lines().find_map(|line| line.strip_suffix(" Leader")).context("no leader")?;
    Ok(large.lab().node(name)?)
}
