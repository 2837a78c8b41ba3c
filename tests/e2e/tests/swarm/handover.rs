//! The ways from the agent's container to a process of the host. Every other scenario takes the first one; here the two
//! others carry a rollout each.

use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use e2e::bundles;
use lab::engines::Bundle;
use lab::wait::Seen;
use lab::{Node, Suite, product, wait};

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

/// What the agents of a node said, those that have ended too.
const AGENTS_SAID: &str =
    "for id in $(docker ps --all --quiet --filter name=requeen-agent); do docker logs $id 2>&1; done";

/// One runc there and back again: there without a system bus, back with a container for a way.
pub(crate) fn every_way_of_handing_over_works(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let (target, donor) = installed(worker)?;
    let runc = bundles::content(&donor.path, "runc")?;
    let (_folder, other) = changed(&target, "runc", &runc)?;
    let place = "/root/runc-by-another-way.tgz";
    first.copy_in(&other.path, place)?;
    let old = runc_of(worker)?;

    worker.sh(HIDE_BUS)?;
    let there = rollout(first, worker, &["upgrade", "--bundle", place, "--only", "w1"]);
    worker.sh(SHOW_BUS)?;
    let (init, executor) = there?;
    ensure!(executor.contains("requeen-executor.service"), "the executor is in no unit:\n{executor}\nPID 1:\n{init}");
    ensure!(runc_of(worker)? == bundles::sha256(&runc), "w1 has not got the other runc");
    let said = worker.sh(AGENTS_SAID)?.stdout;
    for words in ["not the way: systemd over the host's system bus: ", "way=systemd over its private socket"] {
        ensure!(said.contains(words), "{words:?} is not in what the agents of w1 said:\n{said}");
    }

    restart_agents(first, &["--env-add", FORCED])?;
    let back = rollout(first, worker, &["rollback"]);
    restart_agents(first, &["--env-rm", "REQUEEN_HAND_OVER"])?;
    let (init, executor) = back?;
    ensure!(executor == init, "the executor is in control groups of its own:\n{executor}\nPID 1:\n{init}");
    ensure!(runc_of(worker)? == old, "w1 has not got its runc back");
    let said = worker.sh(AGENTS_SAID)?.stdout;
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

fn runc_of(node: &Node) -> Result<String> {
    Ok(node.sh("sha256sum < $(command -v runc) | cut -c1-64")?.trimmed().to_owned())
}

/// Types a command that must succeed; gives the control groups of PID 1 and of the executor that it led to.
fn rollout(first: &Node, worker: &Node, args: &[&str]) -> Result<(String, String)> {
    thread::scope(|scope| {
        let rollout = scope.spawn(|| requeen(first, args));
        let seen = wait::until("an executor", LIMIT, || {
            let output = worker.sh(GROUPS)?;
            let groups = output.stdout.split_once("executor\n").filter(|(_, executor)| !executor.is_empty());
            Ok(match groups {
                Some((init, executor)) => Seen::Done(Some((init.to_owned(), executor.to_owned()))),
                None if rollout.is_finished() => Seen::Done(None),
                None => Seen::NotYet("none".to_owned()),
            })
        });
        let output = rollout.join().map_err(|_| anyhow!("the rollout's thread panicked"))??;
        ensure!(output.success(), "exit {}\n{}{}", output.status, output.stdout, output.stderr);
        seen?.ok_or_else(|| anyhow!("the rollout ended and no executor was seen"))
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
