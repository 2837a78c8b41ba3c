//! Rollouts on the large swarm, judged by what the engines tell.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::bundles;
use e2e::state::State;
use e2e::truth::order::{self, Asked};
use e2e::truth::{Availability, Sample, Truth, Watch};
use lab::engines::Bundle;
use lab::{Lab, Node, Suite, product, wait};
use tempfile::TempDir;

use crate::large::{Large, wait_for_services};
use crate::operator::{refused, requeen, requeen_ok, status, wait_for_end};
use crate::world::{World, bundle};

/// How long a rollout may take to touch its first node, or its first worker.
const BEGIN_LIMIT: Duration = Duration::from_secs(300);

/// What was asked of a rollout over a whole swarm.
pub(crate) fn asked(lab: &Lab, target: &Bundle) -> Result<Asked> {
    Ok(Asked {
        scope: lab.nodes().iter().map(|node| node.name().to_owned()).collect(),
        dockerd: bundles::sha256(&bundles::content(&target.path, "dockerd")?),
        version: target.version.clone(),
        workers_at_once: 1,
        hold_drained: false,
    })
}

/// Insists that a rollout kept every rule, and tells how long each engine was down.
pub(crate) fn judge(truth: &Truth, asked: &Asked) -> Result<()> {
    let (began, ended) = (truth.before.at, truth.after.at);
    eprintln!(
        "whole rollout: {:.1} s, {} samples, {} changes",
        seconds(ended.duration_since(began)),
        truth.samples.len(),
        truth.changes.len()
    );
    for (node, stop, start) in truth.outages() {
        let down = start.map_or(f64::NAN, |start| seconds(start.duration_since(stop)));
        eprintln!("engine down: {node} {down:.2} s, from {:.1} s on", seconds(stop.duration_since(began)));
    }
    let breaches = order::breaches(truth, asked);
    ensure!(breaches.is_empty(), "the order was broken:\n{}\nchanges: {:#?}", breaches.join("\n"), truth.changes);
    Ok(())
}

fn seconds(duration: jiff::SignedDuration) -> f64 {
    duration.as_secs_f64()
}

/// Every node's engine files are plain and those of the bundle.
pub(crate) fn files_are_plain(lab: &Lab, target: &Path) -> Result<()> {
    for name in lab::engines::FILES {
        let wanted = bundles::sha256(&bundles::content(target, name)?);
        for node in lab.nodes() {
            let script = format!(
                "path=$(command -v {name} || ls /usr/libexec/docker/{name}); stat -c %F $path; sha256sum < $path | cut -c1-64"
            );
            let said = node.sh(&script)?.stdout;
            ensure!(said == format!("regular file\n{wanted}\n"), "{node}: {name} is {said:?}, not a file of {wanted}");
        }
    }
    Ok(())
}

/// A rollout that waits for an operator's grant keeps others out, and its end leaves everything as it was.
pub(crate) fn a_second_rollout_is_refused(world: &World) -> Result<()> {
    let large = world.large()?;
    let first = large.first()?;
    let place = product::copy_bundle(first, &bundle(Suite::Trixie)?)?;
    let before = State::of(large.lab(), first)?;
    let started = requeen_ok(first, &["upgrade", "--bundle", &place, "--manual", "--detach", "--json"])?;
    let started: serde_json::Value = serde_json::from_str(&started.stdout)?;
    let id = started["id"].as_str().context("the rollout has no ID")?.to_owned();
    let second = requeen(first, &["upgrade", "--bundle", &place]);
    let plan = requeen(first, &["plan", "--bundle", &place]);
    requeen_ok(first, &["abort"])?;
    wait_for_end(first)?;
    refused(&second?, &[&id, "abort"])?;
    refused(&plan?, &[&id])?;
    let changes = before.changes(&State::of(large.lab(), first)?);
    let others: Vec<&String> = changes.iter().filter(|change| !change.starts_with("config ")).collect();
    ensure!(others.is_empty(), "more than the rollout's record has changed: {others:#?}");
    Ok(())
}

/// The whole swarm from one engine to the next, under load, with the defaults.
pub(crate) fn a_swarm_is_upgraded_under_load(world: &World) -> Result<()> {
    let large = world.large()?;
    let (lab, first) = (large.lab(), large.first()?);
    let target = bundle(Suite::Trixie)?;
    let place = product::copy_bundle(first, &target)?;
    large.fresh_probe()?;
    let watch = Watch::start(lab)?;
    let output = requeen(first, &["upgrade", "--bundle", &place])?;
    let truth = watch.finish()?;
    large.check_probe()?;
    ensure!(output.success(), "exit {}\n{}{}", output.status, output.stdout, output.stderr);
    judge(&truth, &asked(lab, &target)?)?;
    files_are_plain(lab, &target.path)?;
    engine_down_is_told(first)?;
    history_knows_it(first, &target)?;
    wait_for_services(first)
}

/// `history` lists the rollout as its last one, and tells who started it and every node's steps.
fn history_knows_it(first: &Node, target: &Bundle) -> Result<()> {
    let all: serde_json::Value = serde_json::from_str(&requeen_ok(first, &["history", "--json"])?.stdout)?;
    let last = &all["rollouts"][0];
    let counts = (last["upgraded"].as_u64(), last["nodes"].as_u64(), last["started_by_uid"].as_u64());
    ensure!(counts == (Some(5), Some(5), Some(0)), "upgraded, nodes, user: {last}");
    ensure!(last["phase"] == "ended" && last["aborted"] == false, "how it ended: {last}");
    let id = last["id"].as_str().context("the rollout has no ID")?;
    let shown = requeen_ok(first, &["history", id])?.stdout;
    for word in ["m1", "m2", "m3", "w1", "w2", "uid 0", &target.version] {
        ensure!(shown.contains(word), "{word:?} is missing in:\n{shown}");
    }
    let one: serde_json::Value = serde_json::from_str(&requeen_ok(first, &["history", id, "--json"])?.stdout)?;
    let steps = one["steps"].as_array().context("no steps")?;
    for node in steps {
        let names: Vec<&str> = node["times"].as_array().into_iter().flatten().filter_map(|at| at[0].as_str()).collect();
        let whole = names.first() == Some(&"waiting") && names.contains(&"granted") && names.contains(&"swapping");
        ensure!(whole && names.last() == Some(&"upgraded"), "{}: {names:?}", node["hostname"]);
    }
    ensure!(steps.len() == 5, "{} nodes have steps", steps.len());
    Ok(())
}

/// `status` tells for every node how long its engine was gone.
fn engine_down_is_told(first: &Node) -> Result<()> {
    let status = status(first)?;
    for node in status["nodes"].as_array().context("no nodes")? {
        let down = node["step"]["engine_down_ms"].as_u64();
        eprintln!("engine down, as the product says: {} {down:?} ms", node["hostname"]);
        ensure!(down.is_some_and(|ms| ms > 0), "{} is not upgraded: {}", node["hostname"], node["step"]);
    }
    Ok(())
}

pub(crate) fn the_same_bundle_again_is_nothing_to_do(world: &World) -> Result<()> {
    let large = world.large()?;
    let first = large.first()?;
    let target = bundle(Suite::Trixie)?;
    installed(large, &target)?;
    let place = product::copy_bundle(first, &target)?;
    let before = State::of(large.lab(), first)?;
    let output = requeen_ok(first, &["upgrade", "--bundle", &place])?;
    ensure!(output.stdout.contains("nothing to do"), "{}", output.stdout);
    let script = format!("docker exec -i requeen coordinator upgrade --bundle - < {place}");
    ensure!(first.sh(&script)?.stdout.contains("nothing to do"), "streamed into the container it is another bundle");
    let changes = before.changes(&State::of(large.lab(), first)?);
    ensure!(changes.is_empty(), "it changed:\n{}", changes.join("\n"));
    Ok(())
}

/// Insists on the engine that an earlier scenario should have installed.
pub(crate) fn installed(large: &Large, target: &Bundle) -> Result<()> {
    let version = large.version()?;
    ensure!(
        version == target.version,
        "the engines are {version}: run the scenario that installs {} before",
        target.version
    );
    Ok(())
}

/// A bundle with one file replaced, in a folder of its own.
pub(crate) fn changed(target: &Bundle, file: &str, content: &[u8]) -> Result<(TempDir, Bundle)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(format!("changed-{file}.tgz"));
    bundles::replaced(&target.path, file, content, &path)?;
    Ok((folder, Bundle { path, ..target.clone() }))
}

/// One file changes and no version; one node takes it, and gives it back.
pub(crate) fn another_runc(world: &World) -> Result<()> {
    let large = world.large()?;
    let (lab, first, worker) = (large.lab(), large.first()?, large.lab().node("w1")?);
    let target = bundle(Suite::Trixie)?;
    installed(large, &target)?;
    let runc = bundles::content(&bundle(Suite::Sid)?.path, "runc")?;
    let (_folder, other) = changed(&target, "runc", &runc)?;
    let place = "/root/another-runc.tgz";
    first.copy_in(&other.path, place)?;
    let digest = |node: &Node| -> Result<String> {
        Ok(node.sh("sha256sum < $(command -v runc) | cut -c1-64")?.trimmed().to_owned())
    };
    let old = digest(worker)?;

    let watch = Watch::start(lab)?;
    let output = requeen(first, &["upgrade", "--bundle", place, "--only", "w1"])?;
    let truth = watch.finish()?;
    ensure!(output.success(), "exit {}", output.status);
    let mut asked = asked(lab, &target)?;
    asked.scope = BTreeSet::from(["w1".to_owned()]);
    judge(&truth, &asked)?;
    ensure!(digest(worker)? == bundles::sha256(&runc), "w1 has another runc");
    ensure!(digest(lab.node("w2")?)? == old, "w2 was not in scope");

    let watch = Watch::start(lab)?;
    let output = requeen(first, &["rollback"])?;
    let truth = watch.finish()?;
    ensure!(output.success(), "exit {}", output.status);
    judge(&truth, &asked)?;
    ensure!(digest(worker)? == old, "w1 has not got its runc back");
    wait_for_services(first)
}

/// A target that passes every check and fails as an engine: the node goes back, and nobody else is touched.
pub(crate) fn an_engine_that_fails_is_rolled_back(world: &World) -> Result<()> {
    let large = world.large()?;
    let (lab, first) = (large.lab(), large.first()?);
    let target = bundle(Suite::Trixie)?;
    installed(large, &target)?;
    let (_folder, failing) =
        changed(&target, "dockerd", &bundles::failing_dockerd("26.1.6", bundles::Failing::AtOnce)?)?;
    let place = "/root/failing.tgz";
    first.copy_in(&failing.path, place)?;
    let files = State::of(lab, first)?;

    let watch = Watch::start(lab)?;
    let output = requeen(first, &["upgrade", "--bundle", place, "--start-timeout", "30s"])?;
    let shown = status(first)?;
    let truth = watch.finish()?;
    // Before anything is insisted on: the next scenario needs the way free.
    requeen_ok(first, &["abort"])?;
    ensure!(output.status == 1, "exit {}, not 1", output.status);
    let stopped: BTreeSet<&str> = truth.outages().into_iter().map(|(node, ..)| node).collect();
    ensure!(stopped.len() == 1, "the engines of {stopped:?} were stopped, not one");
    let node = stopped.into_iter().next().context("no engine was stopped")?;
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure!(said.contains(node) && said.contains("rolled back"), "{node} is not named as rolled back:\n{said}");
    ensure!(said.contains("fails on purpose"), "the failed engine's log is not shown:\n{said}");
    ensure!(shown["rollout"]["phase"] == "halted", "the rollout is {}", shown["rollout"]);
    let broken = [order::stopped_only_when_empty(&truth), order::managers_one_at_a_time(&truth)].concat();
    ensure!(broken.is_empty(), "{broken:#?}");

    wait_for_end(first)?;
    lab.wait_until_ready(first, BEGIN_LIMIT)?;
    let left = wait::until_true("availability as before", Duration::from_secs(60), || {
        let watch = Watch::start(lab).and_then(Watch::finish);
        let after = match watch {
            Ok(truth) => truth.after,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        let breaches = order::left_as_before(&Truth { after, ..truth.clone() });
        Ok(if breaches.is_empty() { Ok(()) } else { Err(breaches.join("\n")) })
    });
    left?;
    installed(large, &target)?;
    files_are_plain(lab, &target.path)?;
    let changes = files.changes(&State::of(lab, first)?);
    let others: Vec<&String> = changes
        .iter()
        .filter(|change| !change.starts_with("config ") && !change.starts_with(&format!("{node} engine's start")))
        .collect();
    ensure!(others.is_empty(), "more than one engine's start has changed: {others:#?}");
    wait_for_services(first)
}

/// The coordinator is killed in the middle of a manager and in the middle of a worker; the managers stay drained until
/// the last of them is done.
pub(crate) fn held_drained_while_killed(world: &World) -> Result<()> {
    let large = world.large()?;
    let (lab, first) = (large.lab(), large.first()?);
    let target = bundle(Suite::Sid)?;
    let place = product::copy_bundle(first, &target)?;
    large.fresh_probe()?;
    let watch = Watch::start(lab)?;
    let args = ["upgrade", "--bundle", &place, "--policy", "hold-drained", "--workers-at-once", "2"];
    let output = thread::scope(|scope| {
        let rollout = scope.spawn(|| requeen(first, &args));
        let killed = (|| {
            for (what, letter) in [("a manager in work", 'm'), ("a worker in work", 'w')] {
                watch.wait_for_change(what, BEGIN_LIMIT, |sample| drained(watch.before(), sample, letter))?;
                eprintln!("{what}: kill the coordinator");
                kill_coordinator(first)?;
            }
            anyhow::Ok(())
        })();
        let output = rollout.join().map_err(|_| anyhow!("the rollout's thread panicked"))?;
        killed?;
        output
    })?;
    let truth = watch.finish()?;
    large.check_probe()?;
    ensure!(output.success(), "exit {}\n{}{}", output.status, output.stdout, output.stderr);
    let asked = Asked { workers_at_once: 2, hold_drained: true, ..asked(lab, &target)? };
    judge(&truth, &asked)?;
    files_are_plain(lab, &target.path)?;
    wait_for_services(first)
}

/// Whether a node of that letter is drained and was not before.
fn drained(before: &Sample, now: &Sample, letter: char) -> bool {
    let is = |sample: &Sample, name: &str| {
        sample.nodes.get(name).is_some_and(|node| node.availability == Availability::Drain)
    };
    now.nodes.keys().any(|name| name.starts_with(letter) && is(now, name) && !is(before, name))
}

/// Kills the process itself: the engine takes `docker kill` for a wish that it stay dead.
pub(crate) fn kill_coordinator(first: &Node) -> Result<()> {
    // Its own engine may be the one that is just being replaced; then there is nothing to kill until it is back.
    let waited = wait::until_true("a coordinator to kill", BEGIN_LIMIT, || {
        let killed = first.exec(&["sh", "-c", "kill -9 $(docker inspect --format '{{.State.Pid}}' requeen)"])?;
        Ok(if killed.success() { Ok(()) } else { Err(killed.stderr) })
    });
    Ok(waited?)
}
