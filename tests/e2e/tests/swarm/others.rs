//! What others do to a node while it is in work: they change its availability, promote, rename or remove it, or replace the
//! swarm's certificates. No engine is stopped that should not be, and the rollout goes on when all is right again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::bundles;
use lab::{Node, product, wait};
use serde_json::Value;

use crate::faults::{
    JOURNAL, and_back, base, engine_start, holding_task, let_go, other_runc, runc, upgraded, wait_for_shown,
    wait_for_why, wait_for_words, waits_for_grant, with_other_runc, with_slow_start,
};
use crate::operator::{refused, requeen, requeen_ok, status, wait_for_end, wait_for_node};
use crate::power::{begin, ends_upgraded, is_whole, wait_for_phase};
use crate::small::Small;
use crate::world::World;

/// How long anything here may take until it is seen.
const LIMIT: Duration = Duration::from_secs(90);

/// The worker, by name.
const WORKER: &str = "w1";

/// A node in work is activated, promoted, and gets another certificate. As long as it is not drained, or its stop would take
/// the quorum, its engine is not stopped; then it is upgraded after all.
pub(crate) fn a_node_that_others_change_is_not_stopped(world: &World) -> Result<()> {
    let small = world.small()?;
    let (lab, first, worker) = (small.lab(), small.first()?, small.worker()?);
    let id = worker.node_id()?;
    begin(small, |place, _| {
        holding_task(first, WORKER)?;
        let started = engine_start(worker)?;
        requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--detach"])?;
        wait_for_words(first, r#""work": "emptying""#)?;
        let changed = (|| {
            make(first, "active")?;
            wait_for_why(first, WORKER, "somebody made it active after it was drained")?;
            make(first, "drain")?;
            wait_for_why(first, WORKER, "stubborn")?;

            first.docker(&["node", "promote", WORKER])?;
            wait_for_node(lab, first, &id, "ready reachable", LIMIT)?;
            let_go(first, worker)?;
            let quorum = "quorum: 2 of 2 managers are reachable, and 2 must stay";
            wait_for_why(first, WORKER, quorum)?;
            wait_for_phase(worker, "linked")?;
            // The links are there, and all that is missing is the permit.
            make(first, "active")?;
            wait_for_why(first, WORKER, "somebody made it active after it was drained")?;
            make(first, "drain")?;
            wait_for_why(first, WORKER, quorum)?;
            refused(&requeen(first, &["grant", WORKER])?, &[WORKER, "has a lease already", quorum, "--force"])?;
            new_certificates(first, worker)?;
            wait_for_why(first, WORKER, quorum)?;
            ensure!(engine_start(worker)? == started, "the engine of {worker} was restarted");
            anyhow::Ok(())
        })();
        // Whether it holds or not: no scenario expects two managers.
        if first.docker(&["node", "inspect", "--format", "{{.Spec.Role}}", WORKER])?.trimmed() == "manager" {
            first.docker(&["node", "demote", WORKER])?;
            wait_for_node(lab, first, &id, "ready", LIMIT)?;
        }
        changed?;
        ends_upgraded(small)
    })
}

/// Gives the worker another availability, as somebody would who does not know of the rollout.
fn make(manager: &Node, availability: &str) -> Result<()> {
    manager.docker(&["node", "update", "--availability", availability, WORKER]).map(drop).map_err(Into::into)
}

/// Replaces the swarm's authority, and with it every node's certificate; returns when the worker has its own.
fn new_certificates(manager: &Node, worker: &Node) -> Result<()> {
    let digest = || worker.sh("sha256sum /var/lib/docker/swarm/certificates/swarm-node.crt");
    let before = digest()?.stdout;
    manager.docker(&["swarm", "ca", "--rotate", "--quiet"])?;
    let waited = wait::until_true("another certificate", LIMIT, || {
        let now = digest()?.stdout;
        Ok(if now == before { Err(now) } else { Ok(()) })
    });
    Ok(waited?)
}

/// A node that was removed while it is emptied keeps no slot: without a permit it can't stop its engine, and it does not.
/// Removed while its engine is down it keeps the slot, and `status` says what to type; it finishes alone.
pub(crate) fn a_node_removed_in_the_middle_is_told_of(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let place = with_other_runc(small)?;
    let old = runc(worker)?;
    and_back(small, || {
        holding_task(first, WORKER)?;
        let started = engine_start(worker)?;
        requeen_ok(first, &["upgrade", "--bundle", &place, "--only", WORKER, "--detach"])?;
        wait_for_words(first, r#""work": "emptying""#)?;
        remove(first, worker)?;
        let ended = wait_for_end(first);
        let untouched = engine_start(worker)? == started && runc(worker)? == old;
        join_again(small)?;
        ended?;
        ensure!(untouched, "the engine of {worker} was touched");
        // Its files, plain, and nothing of the executor's.
        is_whole(small, &old)
    })?;
    and_back(small, || {
        let removed = with_slow_start(worker, 5, || {
            requeen_ok(first, &["upgrade", "--bundle", &place, "--only", WORKER, "--detach"])?;
            wait_for_phase(worker, "stopping")?;
            remove(first, worker)?;
            wait_for_why(first, WORKER, "it was removed from the swarm, and its engine may have been stopped")?;
            wait_for_why(first, WORKER, "requeen release w1")?;
            requeen_ok(first, &["release", WORKER, "--yes"])?;
            wait_for_end(first)
        });
        join_again(small)?;
        removed?;
        is_whole(small, &bundles::sha256(&other_runc(&base(worker)?)?))?;
        // What the record knows of it is that it failed, so the way back is another rollout.
        let place = product::copy_bundle(first, &base(worker)?)?;
        requeen_ok(first, &["upgrade", "--bundle", &place, "--only", WORKER])?;
        is_whole(small, &old)
    })
}

/// Takes the worker out of the swarm, as one does with a machine that was given up.
fn remove(manager: &Node, worker: &Node) -> Result<()> {
    let id = manager.docker(&["node", "inspect", "--format", "{{.ID}}", worker.name()])?;
    manager.docker(&["node", "rm", "--force", id.trimmed()])?;
    Ok(())
}

/// Brings the worker back as a new node of the swarm, and waits until its executor and its agent know.
fn join_again(small: &Small) -> Result<()> {
    let (lab, first, worker) = (small.lab(), small.first()?, small.worker()?);
    worker.wait_for_engine(LIMIT)?;
    // The engine leaves only when the containers of its tasks have ended.
    let_go(first, worker)?;
    let token = first.docker(&["swarm", "join-token", "--quiet", "worker"])?;
    worker.docker(&["swarm", "leave", "--force"])?;
    let (own, peer) = (worker.ip().to_string(), format!("{}:2377", first.ip()));
    worker.docker(&["swarm", "join", "--advertise-addr", &own, "--token", token.trimmed(), &peer])?;
    wait_for_node(lab, first, &worker.node_id()?, "ready", LIMIT)?;
    small.with_agents()?;
    let waited = wait::until_true("the executor's end", LIMIT, || {
        let state = worker.exec(&["systemctl", "is-active", "requeen-executor.service"])?;
        let gone = matches!(state.trimmed(), "inactive" | "failed");
        Ok(if gone {
            Ok(())
        } else {
            Err(format!("{} {}", state.trimmed(), worker.sh(&format!("cat {JOURNAL}"))?.stdout))
        })
    });
    Ok(waited?)
}

/// A node gets another host name while it waits for its lease: it is the same node.
pub(crate) fn a_node_renamed_in_the_middle_is_the_same(world: &World) -> Result<()> {
    const NEW: &str = "w9";
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, _| {
        requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--manual", "--detach"])?;
        wait_for_shown(first, "the node waiting for its grant", WORKER, waits_for_grant)?;
        let renamed = (|| {
            rename(first, worker, NEW)?;
            wait_for_shown(first, "the node of another name waiting", NEW, |shown| {
                waits_for_grant(shown) && shown["silent_secs"] == 0
            })?;
            requeen_ok(first, &["grant", NEW])?;
            wait_for_end(first)?;
            wait_for_shown(first, "the upgraded worker", NEW, upgraded)
        })();
        rename(first, worker, WORKER)?;
        renamed?;
        is_whole(small, &bundles::sha256(&other_runc(&base(worker)?)?))
    })
}

/// Gives the worker a host name, which the swarm hears when its engine is started again.
fn rename(manager: &Node, worker: &Node, name: &str) -> Result<()> {
    worker.sh(&format!("hostname {name} && systemctl reset-failed docker && systemctl restart docker"))?;
    let waited = wait::until_true(&format!("a node {name}"), LIMIT, || {
        let list = manager.exec(&["docker", "node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        let seen = list.stdout.lines().any(|line| line == format!("{name} Ready"));
        Ok(if seen { Ok(()) } else { Err(list.stdout) })
    });
    Ok(waited?)
}

/// The lone manager's engine is restarted by somebody while the worker is emptied: its coordinator comes back with it, and the
/// rollout goes on.
pub(crate) fn a_manager_restarted_in_the_middle_is_waited_for(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, _| {
        holding_task(first, WORKER)?;
        let started = engine_start(worker)?;
        requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--detach"])?;
        wait_for_words(first, r#""work": "emptying""#)?;
        first.sh("systemctl reset-failed docker && systemctl restart docker")?;
        // Heard again by the coordinator that came back.
        wait_for_shown(first, "the word of the worker", WORKER, |shown| shown["agent"]["state"] == "leased")?;
        let phase = status(first)?.pointer("/rollout/phase").cloned().unwrap_or_default();
        ensure!(phase == "running", "the rollout is {phase}");
        ensure!(engine_start(worker)? == started, "the engine of {worker} was restarted");
        let_go(first, worker)?;
        ends_upgraded(small)
    })
}

/// The network between a node and the coordinator fails after the stop: the node finishes alone, and says so later.
pub(crate) fn a_node_cut_off_after_its_stop_finishes_alone(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, _| {
        let cut = with_slow_start(worker, 5, || {
            requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--detach"])?;
            wait_for_phase(worker, "stopping")?;
            without_network(first, worker, || {
                wait_for_phase(worker, "running")?;
                let shown = status(first)?;
                let node = shown["nodes"].as_array().into_iter().flatten().find(|node| node["hostname"] == WORKER);
                let node = node.context("the worker is not listed")?;
                ensure!(node["step"]["work"] == "permitted", "it was heard: {node}");
                Ok(())
            })
        });
        cut?;
        ends_upgraded(small)
    })
}

/// It fails before the stop and for good: the operator frees the slot, and the node gives its lease up by itself.
pub(crate) fn a_node_cut_off_before_its_stop_is_released(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, old| {
        holding_task(first, WORKER)?;
        let started = engine_start(worker)?;
        requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--detach"])?;
        wait_for_words(first, r#""work": "emptying""#)?;
        without_network(first, worker, || {
            refused(&requeen(first, &["release", WORKER, "--yes"])?, &[WORKER, "is not silent"])?;
            wait_for_shown(first, "the silent worker", WORKER, |shown| shown["silent_secs"].as_u64() > Some(30))?;
            requeen_ok(first, &["release", WORKER, "--yes"])?;
            wait_for_end(first)?;
            lease_is_over(worker)
        })?;
        ensure!(engine_start(worker)? == started, "the engine of {worker} was restarted");
        let failed = |shown: &Value| shown["step"]["outcome"] == "failed" && shown["availability"] == "drain";
        wait_for_shown(first, "the released worker", WORKER, failed)?;
        let_go(first, worker)?;
        make(first, "active")?;
        is_whole(small, old)
    })
}

/// It fails before the stop for longer than a lease: nothing is touched, and the node gets another lease when it is heard.
pub(crate) fn a_node_cut_off_for_a_while_gets_another_lease(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, _| {
        holding_task(first, WORKER)?;
        let started = engine_start(worker)?;
        requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--detach"])?;
        wait_for_words(first, r#""work": "emptying""#)?;
        without_network(first, worker, || lease_is_over(worker))?;
        ensure!(engine_start(worker)? == started, "the engine of {worker} was restarted");
        wait_for_shown(first, "another lease", WORKER, |shown| {
            shown["step"]["lease"]["id"].as_str().is_some_and(|lease| lease.ends_with(".2"))
                && shown["agent"]["state"] == "leased"
        })?;
        let_go(first, worker)?;
        ends_upgraded(small)
    })
}

/// Runs something while nothing of the coordinator's port reaches it from the worker.
fn without_network<T>(manager: &Node, worker: &Node, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let port = requeen_protocol::DEFAULT_PORT;
    let rule = format!("OUTPUT --protocol tcp --destination {} --dport {port} --jump DROP", manager.ip());
    worker.sh(&format!("iptables --insert {rule}"))?;
    let ran = run();
    worker.sh(&format!("iptables --delete {rule}"))?;
    ran
}

/// Waits until the node's journal knows of no lease any more.
fn lease_is_over(worker: &Node) -> Result<()> {
    let waited = wait::until_true("the end of the lease", LIMIT, || {
        let journal = worker.sh(&format!("cat {JOURNAL}"))?.stdout;
        Ok(if journal.contains("\"phase\"") { Err(journal) } else { Ok(()) })
    });
    Ok(waited?)
}
