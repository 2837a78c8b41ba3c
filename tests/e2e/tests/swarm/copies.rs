//! `--keep-raft-copy`: a manager's swarm folder as it was while no engine ran, and a swarm that comes back from it by hand.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::bundles;
use lab::{Node, product, wait};
use serde_json::Value;

use crate::faults::{base, other_runc, runc, upgraded, wait_for_shown, with_other_runc};
use crate::operator::{requeen, requeen_ok, status, wait_for_end, wait_for_node};
use crate::small::Small;
use crate::world::World;

/// How long anything here may take until it is seen.
const LIMIT: Duration = Duration::from_secs(90);

/// Where copies are, and what is copied.
const COPIES: &str = "/var/lib/requeen/raft-copies";
const FOLDER: &str = "/var/lib/docker/swarm";
/// The same while a copy is in its place.
const ASIDE: &str = "/var/lib/docker/swarm.aside";

/// What the folder held when an engine was started last, as `sha256sum` prints it.
const SEEN: &str = "/root/swarm-folder.sums";

/// What makes it: it runs before dockerd, and after whatever the executor does while none runs.
const WITNESS: &str = "/etc/systemd/system/docker.service.d/witness.conf";

/// A config that a swarm has before the copy, and one that it gets after.
const BEFORE: &str = "before-the-copy";
const AFTER: &str = "after-the-copy";

pub(crate) fn a_managers_swarm_folder_is_copied(world: &World) -> Result<()> {
    let small = world.small()?;
    let first = small.first()?;
    small.with_agents()?;
    let place = with_other_runc(small)?;
    witness(first)?;
    let ran = (|| {
        let plan = ["plan", "--bundle", &place, "--accept-control-plane-outage", "--keep-raft-copy"];
        let plan = requeen_ok(first, &plan)?.stdout;
        ensure!(plan.contains("/var/lib/docker/swarm are copied to /var/lib/requeen/raft-copies"), "{plan}");
        ensure!(names(first)?.is_empty(), "a plan has made a copy");

        create(first, BEFORE)?;
        let copy = kept(small, &place, &[])?;
        create(first, AFTER)?;
        let worker = small.worker()?.exec(&["ls", COPIES])?;
        ensure!(!worker.success(), "the worker has copies: {}", worker.stdout);
        comes_back(small, &copy)?;

        // Older ones, by their records: the oldest goes for a new one.
        for (lease, date) in [("20200101-aaaaaaaa.n.1", "2020-01-01"), ("20200102-aaaaaaaa.n.1", "2020-01-02")] {
            let (_, version) = copy.rsplit_once('_').context("the copy's name has no version")?;
            let to = format!("{COPIES}/{lease}_{version}");
            let record = format!(r#"s/"lease": "[^"]*"/"lease": "{lease}"/"#);
            first.sh(&format!(
                "cp -a {COPIES}/{copy} {to} && sed -i '{record}' {to}/copy.json && touch -d {date} {to}/copy.json"
            ))?;
        }
        requeen_ok(first, &["rollback", "--accept-control-plane-outage"])?;
        let newer = kept(small, &place, &["--only", "m1"])?;
        ensure!(newer != copy, "two rollouts have one copy");
        // The oldest goes with the rollout's end, when the executor hears of it.
        wait::until_true("three copies", LIMIT, || {
            let mut left = names(first)?;
            left.retain(|name| *name != copy && *name != newer);
            let [other] = left.as_slice() else { return Ok(Err(format!("kept beside the new ones: {left:?}"))) };
            Ok(if other.starts_with("20200102") { Ok(()) } else { Err(format!("{other} is kept")) })
        })?;
        Ok(())
    })();
    ran.and(back(small))
}

/// Leaves the swarm as it was found.
fn back(small: &Small) -> Result<()> {
    let (first, worker) = (small.first()?, small.worker()?);
    first.sh(&format!("rm -rf $(dirname {WITNESS}) {SEEN} && systemctl daemon-reload"))?;
    let phase = status(first)?.pointer("/rollout/phase").and_then(Value::as_str).map(str::to_owned);
    if phase.is_some_and(|phase| phase != "ended") {
        requeen_ok(first, &["abort"])?;
        wait_for_end(first)?;
    }
    let other = bundles::sha256(&other_runc(&base(worker)?)?);
    if runc(first)? == other || runc(worker)? == other {
        requeen_ok(first, &["rollback", "--accept-control-plane-outage"])?;
    }
    first.sh(&format!("rm -rf {COPIES}; docker config rm {BEFORE} {AFTER}"))?;
    Ok(())
}

/// Writes down what is in the folder before each start of an engine.
fn witness(node: &Node) -> Result<()> {
    let look = format!("cd {FOLDER} && find . -type f | LC_ALL=C sort | xargs sha256sum > {SEEN}");
    let unit = format!("[Service]\\nExecStartPre=/bin/sh -c \"{look}\"\\n");
    node.sh(&format!("mkdir -p $(dirname {WITNESS}) && printf '{unit}' > {WITNESS} && systemctl daemon-reload"))?;
    Ok(())
}

fn create(manager: &Node, config: &str) -> Result<()> {
    Ok(manager.sh(&format!("echo {config} | docker config create {config} -")).map(drop)?)
}

/// The names of the copies.
fn names(node: &Node) -> lab::Result<Vec<String>> {
    let said = node.sh(&format!("ls -A {COPIES} 2>/dev/null || true"))?;
    Ok(said.stdout.lines().map(str::to_owned).collect())
}

/// Upgrades, and gives the name of the new copy: whole, of the moment at which no engine ran, and root's alone.
fn kept(small: &Small, place: &str, more: &[&str]) -> Result<String> {
    let first = small.first()?;
    let before = names(first)?;
    let version = first.engine_version()?;
    let upgrade = ["upgrade", "--bundle", place, "--accept-control-plane-outage", "--keep-raft-copy"];
    let output = requeen(first, &[&upgrade, more].concat())?;
    ensure!(output.success(), "exit {}: {}", output.status, output.stderr);
    wait_for_shown(first, "the upgraded manager", "m1", upgraded)?;

    let new: Vec<String> = names(first)?.into_iter().filter(|name| !before.contains(name)).collect();
    let [copy] = new.as_slice() else { anyhow::bail!("new copies: {new:?}") };
    ensure!(copy.ends_with(&format!("_{version}")), "{copy} does not name {version}");
    let sums =
        first.sh(&format!("cd {COPIES}/{copy}/swarm && find . -type f | LC_ALL=C sort | xargs sha256sum"))?.stdout;
    let seen = first.sh(&format!("cat {SEEN}"))?.stdout;
    ensure!(sums == seen, "the copy is\n{sums}\nand the folder was\n{seen}");
    ensure!(sums.contains("raft/wal-v3-encrypted/") && sums.contains("certificates/swarm-node.key"), "{sums}");
    let open = first.sh(&format!("find {COPIES} -perm /077 -o ! -user root"))?.stdout;
    ensure!(open.is_empty(), "others than root can read or own {open}");
    let took = first.sh("journalctl --unit requeen-executor --output cat | grep took_ms | tail -n 1")?.stdout;
    let size = first.sh(&format!("du -sm --apparent-size {COPIES}/{copy} && du -sm {COPIES}/{copy}"))?.stdout;
    eprintln!("copied: {}; MiB in all, and on the disk: {}", took.trim(), size.replace('\n', " "));
    Ok(copy.clone())
}

/// As the manual says it is done by hand; and then the present state again.
fn comes_back(small: &Small, copy: &str) -> Result<()> {
    let first = small.first()?;
    first.sh("docker stop requeen && systemctl stop docker.socket docker")?;
    first.sh(&format!("mv {FOLDER} {ASIDE} && cp -a {COPIES}/{copy}/swarm {FOLDER}"))?;
    let restored = (|| {
        start(first)?;
        let address = first.sh("ip -4 -o addr show eth0 | awk '{print $4}' | cut -d/ -f1")?;
        first.docker(&["swarm", "init", "--force-new-cluster", "--advertise-addr", address.trimmed()])?;
        wait::until_true("the swarm of the copy", LIMIT, || {
            let configs = first.exec(&["docker", "config", "ls", "--format", "{{.Name}}"])?;
            Ok(if configs.stdout.lines().any(|name| name == BEFORE) { Ok(()) } else { Err(configs.stderr) })
        })?;
        let configs = first.docker(&["config", "ls", "--format", "{{.Name}}"])?.stdout;
        ensure!(!configs.lines().any(|name| name == AFTER), "this is no state of before: {configs}");
        Ok(())
    })();
    first.sh("systemctl stop docker.socket docker")?;
    first.sh(&format!("rm -r {FOLDER} && mv {ASIDE} {FOLDER}"))?;
    start(first)?;
    first.sh("docker start requeen")?;
    product::wait_for_coordinator(first, LIMIT)?;
    for node in small.lab().nodes() {
        let state = if node.name() == first.name() { "ready reachable" } else { "ready" };
        wait_for_node(small.lab(), first, &node.node_id()?, state, LIMIT)?;
    }
    restored
}

fn start(node: &Node) -> Result<()> {
    node.sh("systemctl reset-failed docker && systemctl start docker")?;
    node.wait_for_engine(LIMIT).map(drop).context("the engine")
}
