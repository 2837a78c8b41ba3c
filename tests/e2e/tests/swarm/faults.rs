//! Faults in the middle of a rollout: a process that dies, a node that comes, agents that are replaced. The rollout goes
//! on by itself.
//!
//! They happen on the small swarm. Its worker gets the engine that it has with another runc, and gives it back, so that
//! every engine is left as it was found.

use std::io::Read;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::bundles;
use lab::engines::Bundle;
use lab::images::PRODUCT;
use lab::{Node, Suite, product, wait};
use serde_json::Value;

use crate::operator::{refused, requeen, requeen_ok, status, wait_for_end, wait_for_node};
use crate::small::Small;
use crate::world::{World, bundle};

/// How long anything here may take until it is seen.
const LIMIT: Duration = Duration::from_secs(90);

/// A service whose task does not end when it is told to: the first process of a container ignores what it has no
/// handler for. Its node is not empty before the grace period is over.
const STUBBORN: &str = "stubborn";

/// See [`STUBBORN`].
const GRACE: &str = "10s";

/// The same for a task that ends when a scenario lets it.
const LONG_GRACE: &str = "10m";

/// Where a node's executor writes where its work stands.
pub(crate) const JOURNAL: &str = "/var/lib/requeen/agent/journal.json";

/// The worker, by name.
const WORKER: &str = "w1";

/// Runs a scenario, and then ends what it left open and takes back what it changed, whether it holds or not.
pub(crate) fn and_back(small: &Small, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let ran = run();
    let back = (|| {
        let (first, worker) = (small.first()?, small.worker()?);
        let_go(first, worker)?;
        let phase = status(first)?.pointer("/rollout/phase").and_then(Value::as_str).map(str::to_owned);
        if phase.is_some_and(|phase| phase != "ended") {
            requeen_ok(first, &["abort"])?;
            wait_for_end(first)?;
        }
        if runc(worker)? == bundles::sha256(&other_runc(&base(worker)?)?) {
            requeen_ok(first, &["rollback"])?;
        }
        anyhow::Ok(())
    })();
    ran.and(back)
}

/// The bundle of the engine that a node runs.
pub(crate) fn base(node: &Node) -> Result<Bundle> {
    let version = node.engine_version()?;
    for suite in [Suite::Trixie, Suite::Bookworm, Suite::Sid] {
        let known = bundle(suite)?;
        if known.version == version {
            return Ok(known);
        }
    }
    Err(anyhow!("{node} runs {version}, of which there is no bundle"))
}

/// A runc that works like the bundle's: what follows a program in its file is nobody's business.
pub(crate) fn other_runc(base: &Bundle) -> Result<Vec<u8>> {
    let mut runc = bundles::content(&base.path, "runc")?;
    runc.extend_from_slice(b"another");
    Ok(runc)
}

/// Puts the bundle of the worker's engine with another file on the manager, and returns its path there.
pub(crate) fn changed(small: &Small, file: &str, content: &[u8]) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("changed.tgz");
    bundles::replaced(&base(small.worker()?)?.path, file, content, &path)?;
    let place = format!("/root/another-{file}.tgz");
    small.first()?.copy_in(&path, &place)?;
    Ok(place)
}

/// The bundle with another runc, on the manager.
pub(crate) fn with_other_runc(small: &Small) -> Result<String> {
    changed(small, "runc", &other_runc(&base(small.worker()?)?)?)
}

/// The digest of a node's runc.
pub(crate) fn runc(node: &Node) -> Result<String> {
    Ok(node.sh("sha256sum < $(command -v runc) | cut -c1-64")?.trimmed().to_owned())
}

/// Runs something while a node's engine takes so many seconds to start.
pub(crate) fn with_slow_start<T>(node: &Node, secs: u32, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let (folder, reload) = ("/etc/systemd/system/docker.service.d", "systemctl daemon-reload");
    let text = format!("[Service]\\nExecStartPre=/bin/sleep {secs}\\n");
    node.sh(&format!("mkdir {folder} && printf '{text}' > {folder}/slow.conf && {reload}"))?;
    let ran = run();
    node.sh(&format!("rm -r {folder} && {reload}"))?;
    ran
}

/// Starts the service [`STUBBORN`] on a node; [`and_back`] removes it.
pub(crate) fn stubborn_task(manager: &Node, node: &str) -> Result<()> {
    stubborn_for(manager, node, GRACE)
}

/// The same with a task that keeps its node from being empty until [`let_go`].
pub(crate) fn holding_task(manager: &Node, node: &str) -> Result<()> {
    stubborn_for(manager, node, LONG_GRACE)
}

/// Ends the service [`STUBBORN`], and its tasks on a node at once, where there are any.
pub(crate) fn let_go(manager: &Node, node: &Node) -> Result<()> {
    let waited = wait::until_true("the end of the stubborn tasks", LIMIT, || {
        // Most scenarios have made none.
        manager.exec(&["docker", "service", "rm", STUBBORN])?;
        let service = manager.exec(&["docker", "service", "ls", "--quiet", "--filter", &format!("name={STUBBORN}")])?;
        if !service.success() || !service.stdout.is_empty() {
            return Ok(Err(format!("{}{}", service.stdout, service.stderr)));
        }
        let ours = format!("docker ps --quiet --filter name='^{STUBBORN}[.]'");
        node.exec(&["sh", "-c", &format!("{ours} | xargs --no-run-if-empty docker kill")])?;
        let left = node.exec(&["sh", "-c", &ours])?;
        Ok(if left.success() && left.stdout.is_empty() {
            Ok(())
        } else {
            Err(format!("{}{}", left.stdout, left.stderr))
        })
    });
    Ok(waited?)
}

fn stubborn_for(manager: &Node, node: &str, grace: &str) -> Result<()> {
    let place = format!("node.hostname=={node}");
    let mut service = vec!["service", "create", "--detach", "--no-resolve-image", "--name", STUBBORN];
    service.extend(["--constraint", &place, "--stop-grace-period", grace]);
    service.extend([PRODUCT, "coordinator", "--socket", "/nowhere", "status", "--watch"]);
    manager.docker(&service)?;
    Ok(product::wait_for_service(manager, STUBBORN, 1, LIMIT)?)
}

/// The process of the agent's task on a node; none while there is none.
fn agent(node: &Node) -> Result<String> {
    Ok(node.exec(&["pgrep", "--exact", "agent"])?.trimmed().to_owned())
}

/// When a node's engine was started.
pub(crate) fn engine_start(node: &Node) -> Result<String> {
    Ok(node.sh("systemctl show --property ExecMainStartTimestampMonotonic --value docker")?.trimmed().to_owned())
}

/// The executor's process on a node; 0 while there is none.
pub(crate) fn executor(node: &Node) -> Result<u32> {
    let pid = node.sh("systemctl show --property MainPID --value requeen-executor.service")?;
    Ok(pid.trimmed().parse()?)
}

/// Waits on a manager, without a pause to speak of, until what `status --json` prints has this in it.
pub(crate) fn wait_for_words(manager: &Node, words: &str) -> Result<()> {
    let script = format!("until requeen status --json | grep --quiet --fixed-strings '{words}'; do sleep 0.05; done");
    let limit = LIMIT.as_secs().to_string();
    let output = manager.exec(&["timeout", &limit, "sh", "-c", &script])?;
    ensure!(output.success(), "{words} was never seen: {}", output.stderr);
    Ok(())
}

/// Waits until the node of this ID or name is shown like that.
pub(crate) fn wait_for_shown(manager: &Node, what: &str, node: &str, seen: impl Fn(&Value) -> bool) -> Result<()> {
    let waited = wait::until_true(what, LIMIT, || {
        let output = product::requeen(manager, &["status", "--json"])?;
        let status: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let found = nodes.into_iter().find(|shown| shown["id"] == node || shown["hostname"] == node);
        Ok(match found {
            Some(shown) if seen(&shown) => Ok(()),
            Some(shown) => Err(shown.to_string()),
            None => Err(format!("{node} is not listed; {}", output.stderr)),
        })
    });
    Ok(waited?)
}

/// Waits until `status` says of a node why it does not move, with these words in it.
pub(crate) fn wait_for_why(manager: &Node, node: &str, words: &str) -> Result<()> {
    let says = |shown: &Value| shown["why"].as_str().is_some_and(|why| why.contains(words));
    wait_for_shown(manager, &format!("`{words}`"), node, says)
}

/// Staged, and waiting for the operator's word.
pub(crate) fn waits_for_grant(shown: &Value) -> bool {
    let why = shown["why"].as_str().unwrap_or_default();
    shown["step"]["step"] == "waiting" && shown["agent"]["state"] == "staged" && why.contains("grant")
}

pub(crate) fn upgraded(shown: &Value) -> bool {
    shown["step"]["step"] == "done" && shown["step"]["outcome"] == "upgraded"
}

/// The agent is killed while it stages; the swarm starts another one, which goes on where the first one was.
pub(crate) fn an_agent_killed_while_staging(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    // Not what others have staged: that would be done in an instant.
    let mut content = other_runc(&base(worker)?)?;
    content.extend_from_slice(b" again");
    let place = changed(small, "runc", &content)?;
    let before = agent(worker)?;
    ensure!(!before.is_empty(), "there is no agent on {worker}");
    let output = thread::scope(|scope| {
        let plan = scope.spawn(|| requeen(first, &["plan", "--bundle", &place, "--only", WORKER]));
        let killed =
            wait_for_words(first, r#""state": "staging""#).and_then(|()| Ok(worker.sh(&format!("kill -9 {before}"))?));
        let output = plan.join().map_err(|_| anyhow!("the plan's thread panicked"))?;
        killed?;
        output
    })?;
    ensure!(output.success(), "exit {}", output.status);
    ensure!(output.stdout.contains("runc"), "the plan does not name what changes:\n{}", output.stdout);
    let after = agent(worker)?;
    ensure!(!after.is_empty() && after != before, "the agent was not killed: {before}, now {after}");
    Ok(())
}

/// The executor is killed while its node is being emptied; systemd starts another one, which still holds the lease.
pub(crate) fn an_executor_killed_before_the_permit(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let place = with_other_runc(small)?;
    and_back(small, || {
        stubborn_task(first, WORKER)?;
        let (started, old) = (engine_start(worker)?, runc(worker)?);

        requeen_ok(first, &["upgrade", "--bundle", &place, "--only", WORKER, "--detach"])?;
        wait_for_words(first, r#""work": "emptying""#)?;
        let killed = executor(worker)?;
        ensure!(killed != 0, "there is no executor on {worker}");
        worker.sh(&format!("kill -9 {killed}"))?;
        ensure!(engine_start(worker)? == started && runc(worker)? == old, "it was killed too late");
        wait::until_true("another executor", LIMIT, || {
            let now = executor(worker).unwrap_or_default();
            Ok(if now != 0 && now != killed { Ok(()) } else { Err(format!("process {now}, killed was {killed}")) })
        })?;

        wait_for_end(first)?;
        wait_for_shown(first, "the upgraded worker", WORKER, upgraded)?;
        ensure!(runc(worker)? == bundles::sha256(&other_runc(&base(worker)?)?), "{worker} has not got its runc");
        ensure!(engine_start(worker)? != started, "the engine was not restarted");
        Ok(())
    })
}

/// Phases of a node's work in which its executor is killed, one after the other, and what its journal calls them.
const PHASES: [&str; 6] = ["leased", "linked", "stopping", "verifying", "running", "settling-new"];

/// The executor is killed in each phase of one and the same work, wherever it can be met there: each time systemd starts
/// another one, and in the end the node is upgraded.
pub(crate) fn an_executor_killed_in_every_phase(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let place = with_other_runc(small)?;
    and_back(small, || {
        // On the node itself, which is the only one that is quick enough. A phase that was over too soon is passed by.
        let script = format!(
            "for phase in {}; do \
               for look in $(seq 3000); do \
                 grep --quiet \"\\\"phase\\\": \\\"$phase\\\"\" {JOURNAL} 2>/dev/null && break; \
                 grep --quiet '\"phase\": \"upgraded\"' {JOURNAL} 2>/dev/null && break; \
                 sleep 0.01; \
               done; \
               pkill --signal KILL --full 'agent-[^ ]* executor' && echo $phase; \
               until [ \"$(systemctl is-active requeen-executor)\" = active ]; do sleep 0.05; done; \
             done",
            PHASES.join(" ")
        );
        let killed = thread::scope(|scope| {
            let limit = LIMIT.as_secs().to_string();
            let killer = scope.spawn(move || worker.exec(&["timeout", &limit, "sh", "-c", &script]));
            requeen_ok(first, &["upgrade", "--bundle", &place, "--only", WORKER, "--detach"])?;
            killer.join().map_err(|_| anyhow!("the killer's thread panicked"))?.map_err(anyhow::Error::from)
        })?;
        ensure!(killed.stdout.lines().count() >= 4, "killed in {:?} only: {}", killed.stdout, killed.stderr);
        wait_for_end(first)?;
        wait_for_shown(first, "the upgraded worker", WORKER, upgraded)?;
        ensure!(runc(worker)? == bundles::sha256(&other_runc(&base(worker)?)?), "{worker} has not got its runc");
        Ok(())
    })
}

/// Holds the lock of Debian's package managers until its standard input ends, as `apt-get install` would.
const LOCKED: &str = r#"perl -e 'use Fcntl qw(:DEFAULT :flock :seek); $| = 1;
    open(my $file, "+<", "/var/lib/dpkg/lock-frontend") or die $!;
    my $whole = pack("s s x4 l! l! i x4", F_WRLCK, SEEK_SET, 0, 0, 0);
    fcntl($file, F_SETLK, $whole) or die $!;
    print "held\n"; <STDIN>'"#;

/// While a package manager is at work on a node its upgrade is refused, and while its engine is replaced none begins.
pub(crate) fn package_managers_and_upgrades_take_turns(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let place = with_other_runc(small)?;
    let upgrade = ["upgrade", "--bundle", &place, "--only", WORKER, "--detach"];
    and_back(small, || {
        let mut apt =
            worker.command(&["sh", "-c", LOCKED], false).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut word = [0; 4];
        let held = apt.stdout.as_mut().context("its output")?.read_exact(&mut word);
        let answer = requeen(first, &upgrade);
        drop(apt.stdin.take());
        apt.wait()?;
        held?;
        refused(&answer?, &[WORKER, "a package manager is at work", "lock-frontend"])?;

        stubborn_task(first, WORKER)?;
        requeen_ok(first, &upgrade)?;
        wait_for_words(first, r#""work": "emptying""#)?;
        let dpkg = worker.exec(&["dpkg", "--configure", "--pending"])?;
        ensure!(!dpkg.success() && dpkg.stderr.contains("lock"), "dpkg was let in: {}{}", dpkg.stdout, dpkg.stderr);
        wait_for_end(first)?;
        wait_for_shown(first, "the upgraded worker", WORKER, upgraded)?;
        worker.exec(&["dpkg", "--configure", "--pending"])?.ok()?;
        Ok(())
    })
}

/// A node leaves before its lease, and comes back as another one: the rollout takes it in.
pub(crate) fn a_node_that_joins_in_the_middle(world: &World) -> Result<()> {
    let small = world.small()?;
    let (lab, first, worker) = (small.lab(), small.first()?, small.worker()?);
    small.with_agents()?;
    let place = with_other_runc(small)?;
    and_back(small, || {
        let old = worker.node_id()?;
        let upgrade = ["upgrade", "--bundle", &place, "--manual", "--detach", "--accept-control-plane-outage"];
        requeen_ok(first, &upgrade)?;
        wait_for_shown(first, "the old node waiting for its grant", &old, waits_for_grant)?;

        let token = first.docker(&["swarm", "join-token", "--quiet", "worker"])?;
        worker.docker(&["swarm", "leave"])?;
        wait_for_node(lab, first, &old, "down", LIMIT)?;
        first.docker(&["node", "rm", "--force", &old])?;
        let (own, peer) = (worker.ip().to_string(), format!("{}:2377", first.ip()));
        worker.docker(&["swarm", "join", "--advertise-addr", &own, "--token", token.trimmed(), &peer])?;
        let new = worker.node_id()?;
        ensure!(new != old, "{worker} is still {old}");

        wait_for_shown(first, "the new node waiting for its grant", &new, waits_for_grant)?;
        // Managers go first, unless an operator says otherwise; here nobody is there to be asked.
        refused(&requeen(first, &["grant", WORKER])?, &[WORKER, "m1"])?;
        refused(&requeen(first, &["grant", WORKER, "--force"])?, &["the order of nodes", "m1", "--yes"])?;
        requeen_ok(first, &["grant", WORKER, "--force", "--yes"])?;
        wait_for_shown(first, "the new node upgraded", &new, upgraded)?;
        ensure!(runc(worker)? == bundles::sha256(&other_runc(&base(worker)?)?), "{worker} has not got its runc");
        let shown = status(first)?;
        let nodes = shown["nodes"].as_array().context("no nodes")?;
        ensure!(nodes.iter().all(|node| node["id"] != old.as_str()), "{old} is still listed: {shown}");
        Ok(())
    })
}

/// The agents are replaced while a node waits for its lease: the new one knows what the old one has staged.
pub(crate) fn agents_updated_in_the_middle(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let place = with_other_runc(small)?;
    and_back(small, || {
        let before = agent(worker)?;
        requeen_ok(first, &["upgrade", "--bundle", &place, "--only", WORKER, "--manual", "--detach"])?;
        wait_for_shown(first, "the node waiting for its grant", WORKER, waits_for_grant)?;
        first.docker(&["service", "update", "--detach", "--force", product::AGENTS])?;
        wait::until_true("another agent", LIMIT, || {
            let now = agent(worker).unwrap_or_default();
            Ok(if !now.is_empty() && now != before { Ok(()) } else { Err(format!("process {now:?}")) })
        })?;
        wait_for_shown(first, "the new agent's word", WORKER, |shown| {
            waits_for_grant(shown) && shown["silent_secs"] == 0
        })?;

        requeen_ok(first, &["grant", WORKER])?;
        wait_for_end(first)?;
        wait_for_shown(first, "the upgraded worker", WORKER, upgraded)?;
        ensure!(runc(worker)? == bundles::sha256(&other_runc(&base(worker)?)?), "{worker} has not got its runc");
        Ok(())
    })
}
