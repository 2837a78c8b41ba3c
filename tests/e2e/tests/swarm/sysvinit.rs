//! A worker whose PID 1 is sysvinit joins the small swarm: its engine, which Debian's init script runs, is upgraded as any
//! other, and its boot in the middle of that finds its way without systemd.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::bundles;
use lab::images::PRODUCT;
use lab::{Init, Node, Suite, product, wait};

use crate::faults::{JOURNAL, base, other_runc, runc, upgraded, wait_for_shown};
use crate::operator::{requeen_ok, status, wait_for_end, wait_for_node};
use crate::power::rolled_back;
use crate::small::Small;
use crate::world::World;

/// How long anything here may take until it is seen.
const LIMIT: Duration = Duration::from_secs(120);

/// The number that makes it w2, and its name.
const NUMBER: u8 = 2;
const WORKER: &str = "w2";

/// What the engine's script reads: whoever changes it for a while gives it back as it was.
const SETTINGS: &str = "/etc/default/docker";

/// A line of it that makes the engine's start slow.
const SLOW: &str = "[ \"$1\" != start ] || sleep 5 # slow";

/// What the node says where a scenario fails.
const WORDS: &str = "cd /var/lib/requeen/agent; tail -n 40 executor.log* recovery.log /var/log/docker.log; cat journal.json; \
                     ls -la /etc/init.d /etc/rc2.d; cat /etc/default/docker; ps -ef; docker ps --all; \
                     for id in $(docker ps --all --quiet --filter name=requeen-agent); do docker logs --tail 30 $id; done";

/// All of the product's that may be outside of its folder.
const OUTSIDE: &str =
    "find /etc -name '*requeen-re*'; grep -s requeen /etc/default/docker /etc/inittab /etc/rc.local; true";

pub(crate) fn a_node_with_sysvinit_is_upgraded(world: &World) -> Result<()> {
    let small = world.small()?;
    small.with_agents()?;
    let node = small.lab().add_worker(NUMBER, Suite::Bookworm, Init::Sysvinit)?;
    let ran = on(small, &node);
    if ran.is_err() {
        // The swarm does not know this node as one of its own, and leaves no logs of it.
        let said = node.exec(&["sh", "-c", WORDS]);
        eprintln!("{}", said.map(|output| output.stdout + &output.stderr).unwrap_or_default());
    }
    let closed = close(small);
    let removed = small.lab().remove_worker(&node);
    ran?;
    closed?;
    Ok(removed?)
}

/// Both of its lives: upgraded in peace, and a boot in the middle.
fn on(small: &Small, node: &Node) -> Result<()> {
    let first = small.first()?;
    ensure!(node.sh("cat /proc/1/comm")?.trimmed() == "init", "PID 1 is another one");
    let image = tempfile::tempdir()?;
    let tar = image.path().join("image.tar");
    lab::command::docker(&["save", "--output", &tar.display().to_string(), PRODUCT])?;
    node.load_image(&tar)?;
    product::wait_for_service(first, product::AGENTS, 3, LIMIT)?;
    let settings = node.sh(&format!("sha256sum {SETTINGS}"))?.stdout;
    let old = runc(node)?;
    let another = other_runc(&base(node)?)?;
    let place = "/root/runc-for-sysvinit.tgz";
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("changed.tgz");
    bundles::replaced(&base(node)?.path, "runc", &another, &path)?;
    first.copy_in(&path, place)?;

    let before = pid(node)?;
    requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER])?;
    wait_for_shown(first, "the upgraded worker", WORKER, upgraded)?;
    ensure!(pid(node)? != before, "the engine was not restarted");
    is_whole(small, node, &bundles::sha256(&another), &settings)?;
    let log = node.sh("cat /var/lib/requeen/agent/executor.log")?.stdout;
    ensure!(log.contains("by permit "), "the executor's log does not tell of its work:\n{log}");
    has_all_rights(node)?;

    requeen_ok(first, &["rollback"])?;
    is_whole(small, node, &old, &settings)?;
    the_power_fails(small, node, place, &old, &settings)
}

/// The engine that the executor has started may do what the one of the boot may: the rights of both are PID 1's.
fn has_all_rights(node: &Node) -> Result<()> {
    let limits = "grep -E '^(Cap(Prm|Bnd)|Seccomp|NoNewPrivs):' /proc/$1/status";
    let of = |pid: &str| Ok::<_, lab::Error>(node.exec(&["sh", "-c", limits, "sh", pid])?.ok()?.stdout);
    let (engine, init) = (of(&pid(node)?)?, of("1")?);
    ensure!(engine == init, "the engine may:\n{engine}PID 1:\n{init}");
    Ok(())
}

/// The power fails while the engine is down: its script puts the old files in their places before it starts it.
fn the_power_fails(small: &Small, node: &Node, place: &str, old: &str, settings: &str) -> Result<()> {
    let first = small.first()?;
    // The power fails meanwhile, however quick the machine is.
    node.sh(&format!("echo '{SLOW}' >> {SETTINGS}"))?;
    let cut = (|| {
        requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--detach"])?;
        let script = format!("until grep --quiet '\"phase\": \"stopping\"' {JOURNAL}; do sleep 0.01; done");
        let output = node.exec(&["timeout", &LIMIT.as_secs().to_string(), "sh", "-c", &script])?;
        ensure!(output.success(), "{node}'s engine was never stopped: {}", output.stderr);
        node.kill()?;
        node.start()?;
        node.wait_for_engine(LIMIT)?;
        let said = node.sh("cat /var/lib/requeen/agent/recovery.log")?.stdout;
        ensure!(said.contains("remedy=Back"), "the recovery did something else:\n{said}");
        // It is drained, and the swarm starts no agent on it: this is the word of the executor that the boot has started.
        wait_for_shown(first, "the worker rolled back", WORKER, rolled_back)?;
        let phase = status(first)?.pointer("/rollout/phase").cloned().unwrap_or_default();
        ensure!(phase == "halted", "the rollout is {phase}");
        requeen_ok(first, &["abort"])?;
        wait_for_end(first)
    })();
    node.sh(&format!("sed -i '/# slow$/d' {SETTINGS}"))?;
    cut?;
    is_whole(small, node, old, settings)
}

/// Ends what a scenario that failed has left open.
fn close(small: &Small) -> Result<()> {
    let first = small.first()?;
    let phase = status(first)?.pointer("/rollout/phase").and_then(serde_json::Value::as_str).map(str::to_owned);
    if phase.is_some_and(|phase| phase != "ended") {
        requeen_ok(first, &["abort"])?;
        wait_for_end(first)?;
    }
    Ok(())
}

/// The node's dockerd.
fn pid(node: &Node) -> Result<String> {
    Ok(node.sh("cat /run/docker.pid")?.trimmed().to_owned())
}

/// The node has that runc, plain files, its availability, the settings that it had, and nothing for its next boot.
fn is_whole(small: &Small, node: &Node, digest: &str, settings: &str) -> Result<()> {
    let first = small.first()?;
    node.wait_for_engine(LIMIT)?;
    ensure!(runc(node)? == digest, "{node} has another runc");
    wait_for_node(small.lab(), first, &node.node_id()?, "ready", LIMIT)?;
    let availability = first.docker(&["node", "inspect", "--format", "{{.Spec.Availability}}", WORKER])?;
    ensure!(availability.trimmed() == "active", "{node} is {}", availability.trimmed());
    for name in lab::engines::FILES {
        let path = node.sh(&format!("readlink -f $(command -v {name} || ls /usr/libexec/docker/{name})"))?;
        ensure!(!path.stdout.contains("requeen"), "{name} leads to {}", path.trimmed());
    }
    wait::until_true("the scripts' end", LIMIT, || {
        let left = node.sh(OUTSIDE)?.stdout;
        Ok(if left.is_empty() { Ok(()) } else { Err(left) })
    })?;
    ensure!(node.sh(&format!("sha256sum {SETTINGS}"))?.stdout == settings, "{SETTINGS} has changed");
    Ok(())
}
