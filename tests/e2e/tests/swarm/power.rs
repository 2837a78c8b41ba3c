//! The worker's power fails, or somebody reboots it, in the middle of its work: it ends upgraded or exactly as it was, and
//! says which. What is on its disk survives here, written or not: these are about what a boot does, not about lost writes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::bundles;
use lab::figures::Figures;
use lab::{Node, wait};
use serde_json::Value;

use crate::faults::{
    JOURNAL, and_back, base, other_runc, runc, stubborn_task, upgraded, wait_for_shown, wait_for_words,
    with_other_runc, with_slow_start,
};
use crate::operator::{requeen_ok, status, wait_for_end, wait_for_node};
use crate::small::Small;
use crate::world::World;

/// How long a node may take to a phase of its work, or from its boot to a word on it.
const LIMIT: Duration = Duration::from_secs(120);

/// The worker, by name.
const WORKER: &str = "w1";

/// The power fails while tasks are waited for. Nothing was stopped: the lease is granted anew, and the node is upgraded.
pub(crate) fn power_fails_while_a_node_is_emptied(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, _| {
        stubborn_task(first, WORKER)?;
        requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--detach"])?;
        wait_for_words(first, r#""work": "emptying""#)?;
        worker.kill()?;
        worker.start()?;
        recovered(worker, "Unlink")?;
        ends_upgraded(small)
    })
}

/// The power fails while the engine is down: nobody knows whether the new one would have come up, so the old one does.
pub(crate) fn power_fails_while_the_engine_is_replaced(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, old| {
        // The power fails meanwhile, however quick the machine is.
        with_slow_start(worker, 5, || {
            requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--detach"])?;
            wait_for_phase(worker, "stopping")?;
            worker.kill()?;
            Ok(worker.start()?)
        })?;
        recovered(worker, "Back")?;
        wait_for_shown(first, "the worker rolled back", WORKER, rolled_back)?;
        let phase = status(first)?.pointer("/rollout/phase").cloned().unwrap_or_default();
        ensure!(phase == "halted", "the rollout is {phase}");
        requeen_ok(first, &["abort"])?;
        wait_for_end(first)?;
        is_whole(small, old)
    })
}

/// Somebody reboots the node while its engine is replaced. Which of both engines it ends with depends on the instant.
pub(crate) fn a_reboot_while_the_engine_is_replaced(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, old| {
        requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--detach"])?;
        wait_for_phase(worker, "stopping")?;
        worker.reboot()?;
        wait_for_shown(first, "the worker's end", WORKER, |shown| upgraded(shown) || rolled_back(shown))?;
        let status = status(first)?;
        let node = status["nodes"].as_array().into_iter().flatten().find(|node| node["hostname"] == WORKER);
        if rolled_back(node.context("the worker is not listed")?) {
            requeen_ok(first, &["abort"])?;
            wait_for_end(first)?;
            is_whole(small, old)
        } else {
            wait_for_end(first)?;
            is_whole(small, &bundles::sha256(&other_runc(&base(worker)?)?))
        }
    })
}

/// Runs a scenario with the path of a bundle on the manager and the digest of the worker's runc.
pub(crate) fn begin(small: &Small, run: impl FnOnce(&str, &str) -> Result<()>) -> Result<()> {
    small.with_agents()?;
    let place = with_other_runc(small)?;
    let old = runc(small.worker()?)?;
    and_back(small, || run(&place, &old))
}

/// Waits on the node, without a pause to speak of, until its work stands there.
pub(crate) fn wait_for_phase(node: &Node, phase: &str) -> Result<()> {
    let script = format!("until grep --quiet '\"phase\": \"{phase}\"' {JOURNAL}; do sleep 0.01; done");
    let output = node.exec(&["timeout", &LIMIT.as_secs().to_string(), "sh", "-c", &script])?;
    ensure!(output.success(), "{node} never was {phase}: {}", output.stderr);
    Ok(())
}

/// The boot has put the files in order, before the engine was started, and what it had to do was this.
fn recovered(node: &Node, remedy: &str) -> Result<()> {
    node.wait_for_engine(LIMIT)?;
    let said = node.sh("journalctl --boot --no-pager --output cat --unit requeen-recover.service")?.stdout;
    ensure!(said.contains(&format!("remedy={remedy}")), "it did something else than {remedy}:\n{said}");
    let cycles = node.sh("journalctl --boot --no-pager --output cat --grep 'ordering cycle' || true")?.stdout;
    ensure!(!cycles.contains("requeen"), "{cycles}");
    // Asked at once: when the work is done the unit is gone, and has no times any more.
    let times = "for time in ExecMainStartTimestampMonotonic ExecMainExitTimestampMonotonic ActiveEnterTimestampMonotonic; do \
                 systemctl show --property=$time --value requeen-recover.service; done; \
                 systemctl show --property=ExecMainStartTimestampMonotonic --value docker.service";
    let times = node.sh(times)?.stdout;
    let times: Vec<u64> = times.lines().map(str::parse).collect::<std::result::Result<_, _>>()?;
    let [began, ended, recovery, engine] = times[..] else { anyhow::bail!("times: {times:?}") };
    ensure!(recovery <= engine, "the engine was started at {engine} µs, before the recovery's end at {recovery} µs");
    let recovery_boot_s = Duration::from_micros(ended.saturating_sub(began)).as_secs_f64();
    eprintln!("{node}: the recovery took {recovery_boot_s:.3} s");
    Figures { recovery_boot_s, ..Figures::default() }.note()?;
    Ok(())
}

pub(crate) fn rolled_back(shown: &Value) -> bool {
    let reason = shown["step"]["reason"].as_str().unwrap_or_default();
    shown["step"]["step"] == "done"
        && shown["step"]["outcome"] == "rolled-back"
        && reason.contains("went down before its new engine was verified")
}

/// Waits for the rollout's end: the worker is told as upgraded, and is whole with the other runc.
pub(crate) fn ends_upgraded(small: &Small) -> Result<()> {
    let (first, worker) = (small.first()?, small.worker()?);
    wait_for_end(first)?;
    wait_for_shown(first, "the upgraded worker", WORKER, upgraded)?;
    is_whole(small, &bundles::sha256(&other_runc(&base(worker)?)?))
}

/// The rollout has ended: the worker has that runc, plain files, its availability, and nothing for its next boot.
pub(crate) fn is_whole(small: &Small, digest: &str) -> Result<()> {
    let (first, worker) = (small.first()?, small.worker()?);
    worker.wait_for_engine(LIMIT)?;
    ensure!(runc(worker)? == digest, "{worker} has another runc");
    wait_for_node(small.lab(), first, &worker.node_id()?, "ready", LIMIT)?;
    let availability = first.docker(&["node", "inspect", "--format", "{{.Spec.Availability}}", WORKER])?;
    ensure!(availability.trimmed() == "active", "{worker} is {}", availability.trimmed());
    for name in lab::engines::FILES {
        let path = worker.sh(&format!("readlink -f $(command -v {name} || ls /usr/libexec/docker/{name})"))?;
        ensure!(!path.stdout.contains("requeen"), "{name} leads to {}", path.trimmed());
    }
    let left = wait::until_true("the units' end", LIMIT, || {
        let units = worker.sh("find /etc/systemd/system -name 'requeen-*'")?.stdout;
        Ok(if units.is_empty() { Ok(()) } else { Err(units) })
    });
    Ok(left?)
}
