//! A disk that is full in the middle of a node's work: the node waits with its engine up, says why, and goes on once there is
//! room.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::bundles;
use lab::Node;
use serde_json::Value;

use crate::faults::{
    and_back, base, engine_start, other_runc, runc, stubborn_task, upgraded, wait_for_shown, with_other_runc,
    with_slow_start,
};
use crate::hosts::another_agent;
use crate::operator::{requeen, requeen_ok, wait_for_end};
use crate::power::wait_for_phase;
use crate::world::World;

/// How long an engine may take to answer.
const LIMIT: Duration = Duration::from_secs(90);

/// The folder with a node's journal, and what fills its disk.
const FOLDER: &str = "/var/lib/requeen/agent";
const FILLER: &str = "/var/lib/requeen/agent/fill";

pub(crate) fn a_full_disk_is_waited_for(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let place = with_other_runc(small)?;
    worker.sh(&format!("mkdir -p {FOLDER}; mount -t tmpfs -o size=200m,mode=0700 tmpfs {FOLDER}"))?;
    let ran = and_back(small, || {
        another_agent(worker)?;
        let (started, old) = (engine_start(worker)?, runc(worker)?);

        // Before the stop: nothing is begun.
        stubborn_task(first, "w1")?;
        requeen_ok(first, &["upgrade", "--bundle", &place, "--only", "w1", "--detach"])?;
        crate::faults::wait_for_words(first, r#""work": "emptying""#)?;
        fill(worker)?;
        wait_for_shown(first, "the full disk before the stop", "w1", |shown| {
            shown["step"]["work"] == "linking" && is_full(shown)
        })?;
        let status = requeen(first, &["status"])?.stdout;
        ensure!(status.contains("No space left on device") && status.contains("hint: make room"), "{status}");
        ensure!(engine_start(worker)? == started && runc(worker)? == old, "the engine was touched");
        worker.sh(&format!("rm {FILLER}"))?;
        wait_for_end(first)?;
        wait_for_shown(first, "the upgraded worker", "w1", upgraded)?;
        let new = bundles::sha256(&other_runc(&base(worker)?)?);
        ensure!(runc(worker)? == new, "{worker} has not got its runc");

        // While the engine is down: it comes up, and its files stay links until the journal says that it did.
        with_slow_start(worker, 6, || {
            requeen_ok(first, &["rollback", "--detach"])?;
            wait_for_phase(worker, "stopping")?;
            fill(worker)?;
            worker.wait_for_engine(LIMIT)?;
            wait_for_shown(first, "the full disk after the start", "w1", |shown| {
                shown["step"]["work"] == "settling" && is_full(shown)
            })?;
            wait_for_phase(worker, "stopping")?;
            ensure!(
                runc(worker)? == old && leads_to_a_set(worker)?,
                "its files are not those of the one set, by links"
            );
            worker.sh(&format!("rm {FILLER}"))?;
            wait_for_end(first)?;
            wait_for_shown(first, "the worker taken back", "w1", upgraded)
        })?;
        ensure!(runc(worker)? == old && !leads_to_a_set(worker)?, "its files are not plain");
        Ok(())
    });
    let left = worker.sh(&format!("rm --force {FILLER}; umount --lazy {FOLDER}"));
    ran.and(left.map_err(Into::into)).and_then(|_| another_agent(worker))
}

/// Leaves no room at all.
fn fill(node: &Node) -> Result<()> {
    let said = node.exec(&["sh", "-c", &format!("cat /dev/zero > {FILLER}")])?;
    ensure!(said.stderr.contains("No space left"), "the disk is not full: {}", said.stderr);
    Ok(())
}

fn is_full(shown: &Value) -> bool {
    let what = |trouble: &Value| trouble["what"].as_str().unwrap_or_default().contains("No space left on device");
    shown["troubles"].as_array().is_some_and(|troubles| troubles.iter().any(what))
}

fn leads_to_a_set(node: &Node) -> Result<bool> {
    Ok(node.sh("readlink -f $(command -v runc)")?.stdout.contains("/var/lib/requeen/engines/"))
}
