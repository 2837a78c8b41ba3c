//! Containers of a node that are no swarm tasks: an upgrade and its rollback leave each of them as it was found.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::images::PRODUCT;
use lab::{Node, wait};

use crate::faults::{and_back, runc, with_other_runc};
use crate::operator::{requeen, requeen_ok};
use crate::world::World;

/// How long a container may take to say that it runs.
const LIMIT: Duration = Duration::from_secs(30);

/// What all containers here are labelled with.
const LABEL: &str = "e2e.standalone";

/// Where containers write when they begin and when they have ended by themselves, on the node.
const LOG: &str = "/var/tmp/e2e-containers";

/// A source of a mount: without it the container that wants it can't be started.
const MOUNT: &str = "/var/tmp/e2e-mount";

/// How long the slow one takes to end: longer than engines wait for a container that names no timeout.
const SLOW: &str = "12";

/// Each is what it was, the slow one ended by itself, and who can't be started again is named.
pub(crate) fn standalone_containers_come_back(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let place = with_other_runc(small)?;
    let old = runc(worker)?;
    let ran = and_back(small, || {
        make(worker)?;
        let before = states(worker)?;
        let upgrade = ["--bundle", &place, "--only", "w1"];

        let plan = requeen_ok(first, &[&["plan"], &upgrade[..]].concat())?.stdout;
        for words in [
            "note: w1: containers that are no swarm tasks stop and start with the engine: ",
            "are stopped before the engine and started after it: ",
            "paused again; what is in their memory is lost: asleep",
            "gone once they are stopped: once",
        ] {
            ensure!(plan.contains(words), "{words:?} is not in the plan:\n{plan}");
        }

        worker.sh(&format!("rmdir {MOUNT}"))?;
        let done = requeen_ok(first, &[&["upgrade"], &upgrade[..]].concat())?;
        ensure!(runc(worker)? != old, "{worker} has its old runc");
        ensure!(done.stderr.contains("gone once they are stopped: once"), "its first words:\n{}", done.stderr);
        let status = requeen(first, &["status"])?.stdout;
        let id = requeen_ok(first, &["history", "--json"])?.stdout;
        let id: serde_json::Value = serde_json::from_str(&id)?;
        let id = id["rollouts"][0]["id"].as_str().unwrap_or_default();
        let history = requeen_ok(first, &["history", id])?.stdout;
        for said in [&done.stderr, &status, &history] {
            let whole = said.contains("w1: container mounted: ") && said.contains("hint: `docker start mounted`");
            ensure!(whole, "who was not started again is not named:\n{said}");
        }
        worker.sh(&format!("mkdir {MOUNT} && docker start mounted"))?;
        wait_for_line(worker, "mounted began", 2)?;
        ensure!(states(worker)? == without_once(&before), "after the upgrade:\n{}\nbefore:\n{before}", states(worker)?);

        requeen_ok(first, &["rollback"])?;
        ensure!(runc(worker)? == old, "{worker} has not got its runc back");
        ensure!(
            states(worker)? == without_once(&before),
            "after the rollback:\n{}\nbefore:\n{before}",
            states(worker)?
        );
        in_order(worker)
    });
    let left = worker.sh(&format!(
        "docker rm --force $(docker ps --all --quiet --filter label={LABEL}); rm --recursive --force {LOG} {MOUNT}"
    ));
    ran.and(left.map(drop).map_err(Into::into))
}

/// One of each kind, each started when the one before runs.
fn make(node: &Node) -> Result<()> {
    node.sh(&format!("rm --force {LOG}; mkdir --parents {MOUNT}"))?;
    let mount = format!("type=bind,source={MOUNT},target=/mnt");
    run(node, "asleep", &[], "0")?;
    run(node, "plain", &[], "0")?;
    run(node, "slow", &["--stop-timeout", "20"], SLOW)?;
    run(node, "mounted", &["--mount", &mount], "0")?;
    run(node, "always", &["--restart", "always"], "0")?;
    run(node, "unless", &["--restart", "unless-stopped"], "0")?;
    run(node, "resting", &["--restart", "unless-stopped"], "0")?;
    run(node, "once", &["--rm"], "0")?;
    node.docker(&["stop", "resting"])?;
    node.docker(&["pause", "asleep"])?;
    node.docker(&["create", "--name", "never", "--label", LABEL, PRODUCT, "agent"])?;
    Ok(())
}

/// Starts a container that says when it begins and, some seconds after it was told to end, that it has ended. Its programs
/// are the node's: the product's image has no shell.
fn run(node: &Node, name: &str, options: &[&str], secs: &str) -> Result<()> {
    let script = format!(
        "echo {name} began >> /log/e2e-containers; \
         trap '/usr/bin/sleep {secs}; echo {name} ended >> /log/e2e-containers; exit 0' TERM; \
         /usr/bin/sleep infinity & wait $!"
    );
    let mut args = vec!["run", "--detach", "--name", name, "--label", LABEL, "--network", "none"];
    args.extend(["--volume", "/usr:/usr:ro", "--volume", "/usr/lib:/lib:ro", "--volume", "/usr/lib64:/lib64:ro"]);
    args.extend(["--volume", "/var/tmp:/log", "--entrypoint", "/usr/bin/sh"]);
    args.extend(options);
    args.extend([PRODUCT, "-c", &script]);
    node.docker(&args)?;
    wait_for_line(node, &format!("{name} began"), 1)
}

fn wait_for_line(node: &Node, line: &str, times: usize) -> Result<()> {
    let waited = wait::until_true(&format!("{line:?}, {times} times"), LIMIT, || {
        let log = node.exec(&["cat", LOG])?.stdout;
        Ok(if log.lines().filter(|found| *found == line).count() >= times { Ok(()) } else { Err(log) })
    });
    Ok(waited?)
}

/// How each container stands, by name.
fn states(node: &Node) -> Result<String> {
    let format = "{{.Name}} {{.State.Status}} {{.HostConfig.RestartPolicy.Name}}";
    let script = format!("docker inspect --format '{format}' $(docker ps --all --quiet --filter label={LABEL}) | sort");
    Ok(node.sh(&script)?.stdout)
}

fn without_once(states: &str) -> String {
    states.lines().filter(|line| !line.starts_with("/once ")).map(|line| format!("{line}\n")).collect()
}

/// Twice each was told to end, in order, and had its own time for that; and each was started once, in the other order.
fn in_order(node: &Node) -> Result<()> {
    let log = node.sh(&format!("cat {LOG}"))?.stdout;
    let of = |names: &[&str], word: &str| -> Vec<String> {
        let wanted = |line: &&str| line.split_once(' ').is_some_and(|(name, w)| names.contains(&name) && w == word);
        log.lines().filter(wanted).map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
    };
    let ended = of(&["asleep", "plain", "slow", "mounted"], "ended");
    let down = ["mounted", "slow", "plain", "asleep"];
    ensure!(ended == [down, down].concat(), "they ended in this order: {ended:?}\n{log}");
    let began = of(&["asleep", "plain", "slow"], "began");
    let up = ["asleep", "plain", "slow"];
    ensure!(began == [up, up, up].concat(), "they began in this order: {began:?}\n{log}");
    for name in ["always", "unless"] {
        let (began, ended) = (of(&[name], "began").len(), of(&[name], "ended").len());
        ensure!((began, ended) == (3, 2), "{name} began {began} and ended {ended} times\n{log}");
    }
    let once = (of(&["once"], "began").len(), of(&["once"], "ended").len());
    ensure!(once == (1, 1), "the one with --rm began and ended {once:?} times\n{log}");
    Ok(())
}
