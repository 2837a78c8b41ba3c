//! The ways from the agent's container to a process of the host. Every other scenario takes the first one; here the two
//! others carry a rollout each.

use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use e2e::bundles;
use lab::engines::Bundle;
use lab::{Node, Suite, product, wait};

use crate::faults::runc;
use crate::operator::requeen;
use crate::upgrades::changed;
use crate::world::{World, bundle};

/// How long an executor may take to appear, and the agents to be started anew.
const LIMIT: Duration = Duration::from_secs(120);

/// Takes the system bus away from whoever comes for it, and gives it back.
const HIDE_BUS: &str = "mv /run/dbus/system_bus_socket /run/dbus/system_bus_socket.away";
const SHOW_BUS: &str = "mv /run/dbus/system_bus_socket.away /run/dbus/system_bus_socket";

/// What makes the third way the only one.
const FORCED: &str = "REQUEEN_HAND_OVER=sibling-container";

/// Prints the control groups of PID 1, and after a line those of the executor if there is one.
const GROUPS: &str = "cat /proc/1/cgroup; echo executor; for process in /proc/[0-9]*; do \
                      [ \"$(tr '\\0' '\\n' < $process/cmdline | sed -n 2p)\" = executor ] && cat $process/cgroup; \
                      done 2>/dev/null; true";

/// What the agents of a node said, those that have ended too and that the swarm has not removed yet.
const AGENTS_SAID: &str =
    "for id in $(docker ps --all --quiet --filter name=requeen-agent); do docker logs $id 2>&1; done";

/// One runc there and back again: there without a system bus, back with a container for a way.
pub(crate) fn every_way_of_handing_over_works(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let (target, donor) = installed(worker)?;
    let other_runc = bundles::content(&donor.path, "runc")?;
    let (_folder, other) = changed(&target, "runc", &other_runc)?;
    let place = "/root/runc-by-another-way.tgz";
    first.copy_in(&other.path, place)?;
    let old = runc(worker)?;

    worker.sh(HIDE_BUS)?;
    let there = rollout(first, worker, &["upgrade", "--bundle", place, "--only", "w1"]);
    worker.sh(SHOW_BUS)?;
    let Seen { init, executor, said } = there?;
    ensure!(executor.contains("requeen-executor.service"), "the executor is in no unit:\n{executor}\nPID 1:\n{init}");
    ensure!(runc(worker)? == bundles::sha256(&other_runc), "w1 has not got the other runc");
    for words in ["not the way: systemd over the host's system bus: ", "way=systemd over its private socket"] {
        ensure!(said.contains(words), "{words:?} is not in what the agents of w1 said:\n{said}");
    }

    restart_agents(first, &["--env-add", FORCED])?;
    let back = rollout(first, worker, &["rollback"]);
    restart_agents(first, &["--env-rm", "REQUEEN_HAND_OVER"])?;
    let Seen { init, executor, said } = back?;
    ensure!(executor == init, "the executor is in control groups of its own:\n{executor}\nPID 1:\n{init}");
    ensure!(runc(worker)? == old, "w1 has not got its runc back");
    ensure!(said.contains("way=a sibling container"), "no agent of w1 took the third way:\n{said}");
    let log = worker.sh("cat /var/lib/requeen/agent/executor.log")?.stdout;
    ensure!(log.contains("by permit "), "the executor's log does not tell of its work:\n{log}");
    let left = worker.docker(&["ps", "--all", "--quiet", "--filter", "label=io.requeen.hand-over"])?;
    ensure!(left.trimmed().is_empty(), "the container is still there: {}", left.stdout);
    Ok(())
}

/// The bundle of what a node runs, wherever earlier scenarios took it, and another one that has another runc.
fn installed(node: &Node) -> Result<(Bundle, Bundle)> {
    let version = node.engine_version()?;
    let newer = bundle(Suite::Trixie)?;
    if newer.version == version {
        return Ok((newer, bundle(Suite::Sid)?));
    }
    let own = bundle(Suite::Bookworm)?;
    ensure!(own.version == version, "{node} runs {version}, neither {} nor {}", own.version, newer.version);
    Ok((own, newer))
}

/// What was seen on the worker during a rollout.
struct Seen {
    /// The control groups of PID 1.
    init: String,
    /// Those of the executor.
    executor: String,
    /// All that its agents said.
    said: String,
}

/// Types a command that must succeed, and watches the worker meanwhile.
fn rollout(first: &Node, worker: &Node, args: &[&str]) -> Result<Seen> {
    thread::scope(|scope| {
        let rollout = scope.spawn(|| requeen(first, args));
        let (mut groups, mut said) = (None, String::new());
        let watched = wait::until_true("the rollout's end", LIMIT, || {
            let ended = rollout.is_finished();
            let output = worker.sh(GROUPS)?;
            if let Some((init, executor)) = output.stdout.split_once("executor\n").filter(|(_, it)| !it.is_empty()) {
                groups = Some((init.to_owned(), executor.to_owned()));
            }
            // While its engine is replaced nobody can be asked, and afterwards the first of them may be gone.
            said.extend(worker.exec(&["sh", "-c", AGENTS_SAID]).map(|output| output.stdout));
            Ok(if ended { Ok(()) } else { Err(format!("the executor's groups: {groups:?}")) })
        });
        let output = rollout.join().map_err(|_| anyhow!("the rollout's thread panicked"))??;
        ensure!(output.success(), "exit {}\n{}{}", output.status, output.stdout, output.stderr);
        watched?;
        let (init, executor) = groups.ok_or_else(|| anyhow!("no executor was seen"))?;
        Ok(Seen { init, executor, said })
    })
}

/// Changes the agents' service and waits until every agent is a new one.
fn restart_agents(first: &Node, change: &[&str]) -> Result<()> {
    // The client waits until the update is over: before that, old tasks would be taken for new ones.
    let mut update = vec!["service", "update", "--quiet"];
    update.extend(change);
    update.push(product::AGENTS);
    first.docker(&update)?;
    Ok(product::wait_for_service(first, product::AGENTS, 2, LIMIT)?)
}
