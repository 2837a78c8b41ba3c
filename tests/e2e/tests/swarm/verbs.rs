//! `pause`, `abort`, `rollback` and `grant`, typed in every phase of a node's work: each does what the manual says, or is
//! refused and changes nothing.

use anyhow::{Result, ensure};
use e2e::bundles;
use lab::Node;
use lab::images::PRODUCT;
use serde_json::Value;

use crate::faults::{
    base, engine_start, holding_task, let_go, other_runc, upgraded, wait_for_shown, wait_for_why, wait_for_words,
    waits_for_grant, with_slow_start,
};
use crate::operator::{refused, requeen, requeen_ok, status, wait_for_end};
use crate::power::{begin, is_whole, wait_for_phase};
use crate::small::Small;
use crate::world::World;

/// The worker, by name.
const WORKER: &str = "w1";

/// A service whose only task nobody can place.
const HOMELESS: &str = "homeless";

/// What a verb does in a phase.
enum Then {
    /// It is refused, with these words.
    Refused(&'static [&'static str]),
    /// The rollout stands so afterwards.
    Stands(&'static str),
}

use Then::{Refused, Stands};

/// Types verbs one after the other, and insists on what each does.
fn type_all(first: &Node, phase: &str, verbs: &[(&str, Then)]) -> Result<()> {
    for (line, then) in verbs {
        eprintln!("-- while {phase}: {line}");
        let words: Vec<&str> = line.split(' ').collect();
        let before = standing(first)?;
        let output = requeen(first, &words)?;
        match then {
            Refused(words) => {
                refused(&output, words)?;
                let after = standing(first)?;
                ensure!(
                    before == after,
                    "`{line}` while {phase} was refused, and the rollout is {after}, was {before}"
                );
            }
            Stands(wanted) => {
                ensure!(output.success(), "`{line}` while {phase}: exit {}\n{}", output.status, output.stderr);
                let after = standing(first)?;
                ensure!(after == *wanted, "the rollout is {after} after `{line}` while {phase}, not {wanted}");
            }
        }
    }
    Ok(())
}

/// The rollout's phase.
fn standing(first: &Node) -> Result<String> {
    let status = status(first)?;
    Ok(status.pointer("/rollout/phase").and_then(Value::as_str).unwrap_or("none").to_owned())
}

/// One rollout that is aborted while its node is emptied, and one that is paused and aborted while its engine is down; then
/// the way back, aborted while tasks are waited for.
pub(crate) fn verbs_in_every_phase(world: &World) -> Result<()> {
    let small = world.small()?;
    begin(small, |place, old| {
        before_the_stop(small, place)?;
        is_whole(small, old)?;
        after_the_stop(small, place)?;
        is_whole(small, &bundles::sha256(&other_runc(&base(small.worker()?)?)?))?;
        on_the_way_back(small)?;
        is_whole(small, old)
    })
}

fn before_the_stop(small: &Small, place: &str) -> Result<()> {
    let (first, worker) = (small.first()?, small.worker()?);
    holding_task(first, WORKER)?;
    let started = engine_start(worker)?;
    requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--manual", "--detach"])?;
    wait_for_shown(first, "the node waiting for its grant", WORKER, waits_for_grant)?;
    let verbs = [
        ("rollback", Refused(&["is open"])),
        ("pause", Stands("paused")),
        ("pause", Stands("paused")),
        ("grant w1", Refused(&["the rollout is paused", "requeen resume"])),
        ("resume", Stands("running")),
        ("release w1 --yes", Refused(&["holds no slot: it is waiting"])),
        ("grant w1", Stands("running")),
    ];
    type_all(first, "waiting", &verbs)?;
    wait_for_words(first, r#""work": "emptying""#)?;
    let verbs = [
        ("rollback", Refused(&["is open"])),
        ("grant w1", Refused(&["w1 has a lease already", "tasks to end: ", "stubborn"])),
        ("release w1 --yes", Refused(&["w1 is not silent", "lease held"])),
        ("pause", Stands("paused")),
    ];
    type_all(first, "emptying", &verbs)?;
    wait_for_why(first, WORKER, "stubborn")?;
    // Nobody waits for its tasks: it is given back at once.
    requeen_ok(first, &["abort"])?;
    wait_for_end(first)?;
    let untouched = |shown: &Value| shown["step"]["outcome"] == "untouched" && shown["availability"] == "active";
    wait_for_shown(first, "the untouched worker", WORKER, untouched)?;
    ensure!(engine_start(worker)? == started, "the engine of {worker} was restarted");
    ensure!(status(first)?["rollout"]["aborted"] == true, "the rollout was not aborted");
    let_go(first, worker)
}

fn after_the_stop(small: &Small, place: &str) -> Result<()> {
    let (first, worker) = (small.first()?, small.worker()?);
    with_slow_start(worker, 10, || {
        requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--detach"])?;
        wait_for_phase(worker, "stopping")?;
        let verbs = [
            ("pause", Stands("paused")),
            ("rollback", Refused(&["is open"])),
            ("release w1 --yes", Refused(&["w1 is not silent"])),
            ("grant w1", Refused(&["the rollout is paused"])),
            ("resume", Stands("running")),
            ("grant w1 --force --yes", Refused(&["does not wait for a lease: it is swapping"])),
            ("pause", Stands("paused")),
        ];
        type_all(first, "the engine is down", &verbs)
    })?;
    // A node in work finishes, and the pause stays.
    wait_for_shown(first, "the upgraded worker", WORKER, upgraded)?;
    type_all(first, "done", &[("rollback", Refused(&["is open"])), ("pause", Stands("paused"))])?;
    requeen_ok(first, &["resume"])?;
    wait_for_end(first)?;
    let verbs = [
        ("pause", Refused(&["no rollout is open"])),
        ("resume", Refused(&["no rollout is open"])),
        ("abort", Refused(&["no rollout is open"])),
        ("grant w1", Refused(&["no rollout is open"])),
        ("release w1 --yes", Refused(&["no rollout is open"])),
    ];
    type_all(first, "nothing is open", &verbs)
}

fn on_the_way_back(small: &Small) -> Result<()> {
    let (first, worker) = (small.first()?, small.worker()?);
    with_slow_start(worker, 5, || {
        requeen_ok(first, &["rollback", "--detach"])?;
        wait_for_phase(worker, "stopping")?;
        // From now on a task is missing that was not before.
        let mut service = vec!["service", "create", "--detach", "--no-resolve-image", "--name", HOMELESS];
        service.extend(["--constraint", "node.hostname==nowhere", PRODUCT, "coordinator", "--help"]);
        first.docker(&service)?;
        anyhow::Ok(())
    })?;
    let aborted = (|| {
        wait_for_why(first, WORKER, "tasks to run again: homeless")?;
        type_all(first, "restoring", &[("pause", Stands("paused")), ("rollback", Refused(&["is open"]))])?;
        requeen_ok(first, &["abort"])?;
        wait_for_end(first)
    })();
    first.docker(&["service", "rm", HOMELESS])?;
    aborted?;
    wait_for_shown(first, "the worker with its old engine", WORKER, upgraded)
}
