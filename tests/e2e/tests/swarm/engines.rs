//! New engines that don't come up as they should, and one that only takes its time. All of them pass every check that can
//! be made before the swap.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::bundles::{self, Failing};
use lab::Node;
use lab::figures::Figures;
use serde_json::Value;

use crate::faults::{JOURNAL, and_back, changed, upgraded, wait_for_shown, with_other_runc, with_slow_start};
use crate::operator::{requeen, requeen_ok, wait_for_end};
use crate::world::World;

/// The worker, by name.
const WORKER: &str = "w1";

/// How long a new engine may be silent here.
const START_TIMEOUT: &str = "15s";

/// One engine ends after ten seconds, one never says anything: the old one runs again, from its own files.
pub(crate) fn engines_that_fail_late_are_rolled_back(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let version = worker.engine_version()?;
    let files = files(worker)?;
    for how in [Failing::Late, Failing::Never] {
        let place = changed(small, "dockerd", &bundles::failing_dockerd("99.1.0", how)?)?;
        and_back(small, || {
            let began = Instant::now();
            let output =
                requeen(first, &["upgrade", "--bundle", &place, "--only", WORKER, "--start-timeout", START_TIMEOUT])?;
            ensure!(output.status == 1, "{how:?}: exit {}, not 1\n{}", output.status, output.stderr);
            let said = format!("{}{}", output.stdout, output.stderr);
            for words in ["rolled back", "silent for 15 s", "fails on purpose"] {
                ensure!(said.contains(words), "{how:?}: {words:?} is not in what it said:\n{said}");
            }
            eprintln!("{how:?}: rolled back after {:.1} s", began.elapsed().as_secs_f64());
            wait_for_shown(first, "the worker rolled back", WORKER, rolled_back)?;
            note_time_away(worker)
        })?;
        ensure!(worker.engine_version()? == version, "{how:?}: {worker} runs another engine");
        ensure!(self::files(worker)? == files, "{how:?}: {worker} has other files");
    }
    Ok(())
}

/// An engine that takes a minute to start is waited for.
pub(crate) fn an_engine_that_starts_slowly_is_waited_for(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let place = with_other_runc(small)?;
    and_back(small, || {
        with_slow_start(worker, 60, || requeen_ok(first, &["upgrade", "--bundle", &place, "--only", WORKER]))?;
        wait_for_end(first)?;
        wait_for_shown(first, "the upgraded worker", WORKER, upgraded)
    })
}

/// Tells, and counts, how long the engine was away that is back.
fn note_time_away(node: &Node) -> Result<()> {
    let journal: Value = serde_json::from_str(&node.sh(&format!("cat {JOURNAL}"))?.stdout)?;
    let millis = journal.pointer("/work/phase/engine_down_ms").and_then(Value::as_f64);
    let rollback_worst_s = millis.with_context(|| format!("no time in {journal}"))? / 1000.0;
    eprintln!("{node}: its engine was away for {rollback_worst_s:.1} s");
    Ok(Figures { rollback_worst_s, ..Figures::default() }.note()?)
}

pub(crate) fn rolled_back(shown: &Value) -> bool {
    shown["step"]["step"] == "done" && shown["step"]["outcome"] == "rolled-back"
}

/// Kind and digest of each of the engine's files.
pub(crate) fn files(node: &Node) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for name in lab::engines::FILES {
        let script =
            format!("path=$(command -v {name} || ls /usr/libexec/docker/{name}); stat -c %F $path; sha256sum < $path");
        files.insert(name.to_owned(), node.sh(&script)?.stdout);
    }
    Ok(files)
}
