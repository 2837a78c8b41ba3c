//! A coordinator that ends at one fail point after the other, in one rollout: each time another one starts on the same
//! manager and goes on until it comes to the next.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::figures::Figures;
use lab::images::{self, WITH_FAIL_POINTS};
use lab::{Node, product, wait};
use serde_json::Value;

use crate::faults::{and_back, upgraded, wait_for_shown, with_other_runc};
use crate::operator::{requeen, wait_for_end};
use crate::world::World;

/// The worker, by name.
const WORKER: &str = "w1";

/// How long a coordinator may take to come to its end. Agents look for a new one with pauses of some seconds.
const LIMIT: Duration = Duration::from_secs(90);

/// Where the coordinators end, in the order in which a node's work comes by: it is begun, leased, drained, emptied,
/// stopped, settled, made active again, and the rollout has ended.
const POINTS: [&str; 18] = [
    "create-record.before",
    "create-record.after",
    "grant-lease.before",
    "grant-lease.after",
    "set-availability.before",
    "set-availability.after",
    "write-step.before",
    "write-step.after",
    "give-permit.before",
    "give-permit.after",
    "write-step.before",
    "write-step.after",
    "set-availability.before",
    "set-availability.after",
    "write-step.before",
    "write-step.after",
    "write-phase.before",
    "write-phase.after",
];

/// Killed before and after everything that it writes in a worker's upgrade, it ends the rollout all the same.
pub(crate) fn a_coordinator_killed_at_every_fail_point(world: &World) -> Result<()> {
    let small = world.small()?;
    let (lab, first, worker) = (small.lab(), small.first()?, small.worker()?);
    small.with_agents()?;
    let place = with_other_runc(small)?;
    images::product_with_fail_points()?;
    lab.load_image(WITH_FAIL_POINTS)?;
    let version = worker.engine_version()?;
    and_back(small, || {
        let killed = killed_at_each(first, &place);
        // The product again, whatever has become of the others.
        first.docker(&["rm", "--force", product::COORDINATOR])?;
        product::start_coordinator(first)?;
        let killed = killed?;
        wait_for_end(first)?;
        println!("coordinator kills tried: {killed}, rollouts ended: 1");
        Figures { coordinator_kills_ended: killed, ..Figures::default() }.note()?;
        wait_for_shown(first, "the upgraded worker", WORKER, upgraded_once)?;
        ensure!(worker.engine_version()? == version, "{worker} runs another engine");
        Ok(())
    })
}

/// Starts a coordinator for each point, and has the operator begin the rollout where there is none yet.
fn killed_at_each(first: &Node, place: &str) -> Result<u64> {
    let mut killed = 0;
    for point in POINTS {
        first.docker(&["rm", "--force", product::COORDINATOR])?;
        let variable = format!("FAILPOINTS=coordinator.{point}=return");
        product::run_coordinator(first, WITH_FAIL_POINTS, &["--env", &variable], &[])?;
        if point.starts_with("create-record") {
            product::wait_for_coordinator(first, LIMIT)?;
            // It gets no answer: the coordinator ends in the middle of it.
            let output = requeen(first, &["upgrade", "--bundle", place, "--only", WORKER, "--detach"])?;
            ensure!(!output.success(), "{point}: the rollout began as if nothing had happened");
        }
        wait::until_true(&format!("a coordinator that ends at {point}"), LIMIT, || {
            let format = "{{.State.Status}} {{.State.ExitCode}}";
            let state = first.docker(&["inspect", "--format", format, product::COORDINATOR])?.trimmed().to_owned();
            let ended = state.strip_prefix("exited ").is_some_and(|code| code != "0");
            Ok(if ended { Ok(()) } else { Err(state) })
        })?;
        killed += 1;
        Figures { coordinator_kills: 1, ..Figures::default() }.note()?;
        eprintln!("ended at {point}");
    }
    Ok(killed)
}

/// Whether the node is upgraded, after one lease.
fn upgraded_once(shown: &Value) -> bool {
    let times = shown["times"].as_array().map(Vec::as_slice).unwrap_or_default();
    let leases = times.iter().filter(|step| step[0] == "granted").count();
    upgraded(shown) && leases == 1
}
