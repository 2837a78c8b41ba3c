//! An autolocked swarm: its manager gets another engine and is unlocked by its executor, which forgets the key. After a
//! power cut in between nobody has it: the manager stays locked, and says what to type.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::bundles;
use lab::{Node, product, wait};
use serde_json::Value;

use crate::faults::{base, other_runc, runc, upgraded, wait_for_shown, with_other_runc, with_slow_start};
use crate::operator::{requeen, requeen_ok, status, wait_for_end, wait_for_node, write};
use crate::power::{rolled_back, wait_for_phase};
use crate::small::Small;
use crate::world::World;

/// How long anything here may take until it is seen.
const LIMIT: Duration = Duration::from_secs(120);

/// The manager, by name.
const MANAGER: &str = "m1";

/// A lone manager can't be upgraded without the operator's word.
const ALONE: &str = "--accept-control-plane-outage";

/// Where the keys are that must be nowhere else, and the archive for a bug report.
const SECRETS: &str = "/root/unlock-keys";
const ARCHIVE: &str = "/root/unlock-diag.tgz";

/// See the module.
pub(crate) fn an_autolocked_manager_is_unlocked(world: &World) -> Result<()> {
    let small = world.small()?;
    let first = small.first()?;
    small.with_agents()?;
    let place = with_other_runc(small)?;
    let old = runc(first)?;
    let ran = scenario(small, &place, &old);
    ran.and(back(first, &old))
}

fn scenario(small: &Small, place: &str, old: &str) -> Result<()> {
    let first = small.first()?;
    let new = bundles::sha256(&other_runc(&base(small.worker()?)?)?);
    first.docker(&["swarm", "update", "--autolock=true"])?;
    wait_for_key(first, true)?;
    let mut keys = vec![unlock_key(first)?];

    let with = |verb| [verb, "--bundle", place, "--only", MANAGER, ALONE];
    let plan = requeen_ok(first, &with("plan"))?.stdout;
    ensure!(plan.contains("autolocked"), "the plan does not say that the swarm is autolocked:\n{plan}");
    requeen_ok(first, &with("upgrade"))?;
    ensure!(runc(first)? == new, "{first} has not got its runc");
    is_unlocked(small)?;
    wait_for_shown(first, "the upgraded manager", MANAGER, upgraded)?;

    first.docker(&["swarm", "unlock-key", "--rotate"])?;
    keys.push(unlock_key(first)?);
    ensure!(keys[0] != keys[1], "the key was not rotated");
    // The power fails meanwhile, however quick the machine is.
    with_slow_start(first, 5, || {
        requeen_ok(first, &["rollback", ALONE, "--detach"])?;
        wait_for_phase(first, "stopping")?;
        first.kill()?;
        Ok(first.start()?)
    })?;
    // The executor ends its work alone, without a key.
    wait_for_phase(first, "rolled-back")?;
    ensure!(swarm_state(first)? == "locked", "{first} is {}", swarm_state(first)?);
    let said = first.sh("journalctl --boot --no-pager --output cat --unit requeen-resume.service")?.stdout;
    ensure!(said.contains("docker swarm unlock"), "the executor does not say what to type:\n{said}");
    let told = wait::until_true("the locked coordinator's word", LIMIT, || {
        let output = product::requeen(first, &["status"])?;
        Ok(if output.stderr.contains("locked") { Ok(()) } else { Err(output.stderr) })
    });
    told?;
    let told = requeen(first, &["status"])?;
    let words = ["this manager is locked", "docker swarm unlock"];
    ensure!(told.status == 3 && words.iter().all(|word| told.stderr.contains(word)), "said instead: {}", told.stderr);

    // What the power cut has left of the work, and nothing has been put away yet.
    node_has_none(first, &keys)?;

    unlock(first, &keys[1])?;
    wait_for_shown(first, "the manager rolled back", MANAGER, |shown| {
        let reason = shown["step"]["reason"].as_str().unwrap_or_default();
        rolled_back(shown) && reason.contains("docker swarm unlock")
    })?;
    let phase = status(first)?.pointer("/rollout/phase").cloned().unwrap_or_default();
    ensure!(phase == "halted", "the rollout is {phase}");
    ensure!(runc(first)? == new, "{first} has another runc than before the power cut");
    requeen_ok(first, &["abort"])?;
    wait_for_end(first)?;

    requeen_ok(first, &["rollback", ALONE])?;
    ensure!(runc(first)? == old, "{first} has not got its old runc back");
    is_unlocked(small)?;
    keys_are_nowhere(small, &keys)
}

/// Leaves the swarm as it was found, whatever has happened.
fn back(first: &Node, old: &str) -> Result<()> {
    first.wait_for_engine(LIMIT)?;
    first.sh(&format!("rm -rf {SECRETS} {ARCHIVE}"))?;
    ensure!(swarm_state(first)? != "locked", "{first} is locked still, and its key is not known any more");
    let phase = status(first)?.pointer("/rollout/phase").and_then(Value::as_str).map(str::to_owned);
    if phase.is_some_and(|phase| phase != "ended") {
        requeen_ok(first, &["abort"])?;
        wait_for_end(first)?;
    }
    if runc(first)? != old {
        requeen_ok(first, &["rollback", ALONE])?;
    }
    first.docker(&["swarm", "update", "--autolock=false"])?;
    wait_for_key(first, false)?;
    // Coordinator and agents read the key that is plain again.
    wait_for_shown(first, "an agent that speaks", MANAGER, |shown| {
        shown["silent_secs"].as_u64().is_some_and(|secs| secs < 10)
    })
}

/// The state of a node's swarm, as its engine tells it.
fn swarm_state(node: &Node) -> Result<String> {
    Ok(node.docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?.trimmed().to_owned())
}

fn unlock_key(manager: &Node) -> Result<String> {
    let key = manager.docker(&["swarm", "unlock-key", "--quiet"])?.trimmed().to_owned();
    ensure!(key.starts_with("SWMKEY-1-"), "no unlock key");
    Ok(key)
}

/// What the operator does.
fn unlock(manager: &Node, key: &str) -> Result<()> {
    manager.exec_with_stdin(&["docker", "swarm", "unlock"], format!("{key}\n").as_bytes())?.ok()?;
    Ok(())
}

/// Waits until the manager's engine keeps its own key encrypted, or does not.
fn wait_for_key(manager: &Node, encrypted: bool) -> Result<()> {
    let waited = wait::until_true("the key on the manager's disk", LIMIT, || {
        let found = manager.exec(&["grep", "ENCRYPTED", "/var/lib/docker/swarm/certificates/swarm-node.key"])?;
        Ok(if found.success() == encrypted { Ok(()) } else { Err(format!("encrypted: {}", !encrypted)) })
    });
    Ok(waited?)
}

/// The manager is back in its swarm, ready, active, and nobody has typed anything.
fn is_unlocked(small: &Small) -> Result<()> {
    let first = small.first()?;
    ensure!(swarm_state(first)? == "active", "{first} is {}", swarm_state(first)?);
    wait_for_node(small.lab(), first, &first.node_id()?, "ready reachable", LIMIT)?;
    let availability = first.docker(&["node", "inspect", "--format", "{{.Spec.Availability}}", MANAGER])?;
    ensure!(availability.trimmed() == "active", "{first} is {}", availability.trimmed());
    wait_for_key(first, true)
}

/// No key is in any file of the product's or of systemd's, in any log, in a record, or in the archive for a bug report.
fn keys_are_nowhere(small: &Small, keys: &[String]) -> Result<()> {
    let first = small.first()?;
    let parts: Vec<&str> = keys.iter().filter_map(|key| key.strip_prefix("SWMKEY-1-")).collect();
    requeen_ok(first, &["diag", "-o", ARCHIVE])?;
    let records = first.sh("docker config ls --quiet | xargs docker config inspect --pretty")?.stdout;
    let archive = first.sh(&format!("tar -xzOf {ARCHIVE}"))?.stdout;
    // What is searched is what it is meant to be.
    ensure!(records.contains("requeen") && archive.contains("dockerd"), "nothing to search:\n{records}");
    for part in &parts {
        ensure!(!records.contains(part), "a key is in a rollout's record");
        ensure!(!archive.contains(part), "a key is in the archive for a bug report");
    }
    for node in small.lab().nodes() {
        node_has_none(node, keys)?;
    }
    first.sh(&format!("rm {ARCHIVE}")).context("the archive")?;
    Ok(())
}

/// No key is in a node's logs, nor in a file of the product's or of systemd's.
fn node_has_none(node: &Node, keys: &[String]) -> Result<()> {
    let parts: Vec<&str> = keys.iter().filter_map(|key| key.strip_prefix("SWMKEY-1-")).collect();
    write(node, SECRETS, parts.join("\n").as_bytes())?;
    let logs =
        "{ journalctl --no-pager --output=cat; for id in $(docker ps --all --quiet); do docker logs $id 2>&1; done; }";
    node.sh(&format!("{logs} | grep -q -F 'Docker Application Container Engine'"))?;
    let told = node.exec(&["sh", "-c", &format!("{logs} | grep -c -F -f {SECRETS}")])?;
    ensure!(told.trimmed() == "0", "{node}: a key is in the logs, {} times", told.trimmed());
    let search = |how: &str| format!("grep -r {how} /var/lib/requeen /etc/systemd /run/systemd /var/log");
    node.sh(&search("-q -F systemd"))?;
    if node.name() == MANAGER {
        node.sh("grep -r -q -F dockerd /var/lib/requeen")?;
    }
    let files = node.exec(&["sh", "-c", &search(&format!("-l -F -f {SECRETS}"))])?;
    ensure!(files.stdout.is_empty(), "{node}: a key is in {}", files.stdout);
    node.sh(&format!("rm {SECRETS}"))?;
    Ok(())
}
