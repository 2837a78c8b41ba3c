//! The small swarm: one manager and one worker, where a lone manager and a worker in trouble are at home.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::truth::Watch;
use lab::images::PRODUCT;
use lab::{Init, Kind, Lab, Node, Spec, Suite, product, wait};

use crate::operator::{refused, requeen, requeen_ok, wait_for_node};
use crate::upgrades::{asked, files_are_plain, judge};
use crate::world::{World, bundle};

/// The swarm's name.
pub(crate) const NAME: &str = "e2e-b";

/// The name of the one that is made of machines, whatever the others are.
pub(crate) const MACHINES: &str = "e2e-m";

/// The name of the one whose worker's writes are logged.
pub(crate) const RECORDED: &str = "e2e-r";

/// How long a node may take to be seen in another state.
const LIMIT: Duration = Duration::from_secs(90);

/// Starts a node's engine, however often that was done in the last minute.
const START: &str = "systemctl reset-failed docker && systemctl start docker";

/// The swarm, with a coordinator and without agents.
pub(crate) struct Small {
    lab: Lab,
}

impl Small {
    pub(crate) fn make(name: &str, kind: Kind) -> Result<Self> {
        let spec =
            Spec { name: name.to_owned(), managers: 1, workers: 1, suite: Suite::Bookworm, kind, init: Init::Systemd };
        Self::of(Lab::up(&spec)?, kind)
    }

    /// The same of machines, with a log of all that the worker writes to its disk.
    pub(crate) fn recorded(name: &str) -> Result<Self> {
        let (kind, init) = (Kind::Machine, Init::Systemd);
        let spec = Spec { name: name.to_owned(), managers: 1, workers: 1, suite: Suite::Bookworm, kind, init };
        Self::of(Lab::up_recorded(&spec, &["w1"])?, kind)
    }

    fn of(lab: Lab, kind: Kind) -> Result<Self> {
        lab.load_image(PRODUCT)?;
        let first = lab.node("m1")?;
        product::start_coordinator(first)?;
        product::install_cli(first)?;
        match kind {
            Kind::Container => {}
            // A swarm has been there for longer than an instant: what engines don't sync, a kernel has written since.
            Kind::Machine => lab.nodes().iter().try_for_each(|node| node.sh("sync").map(drop))?,
        }
        Ok(Self { lab })
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(crate) fn first(&self) -> Result<&Node> {
        Ok(self.lab.node("m1")?)
    }

    pub(crate) fn worker(&self) -> Result<&Node> {
        Ok(self.lab.node("w1")?)
    }

    /// Puts agents on both nodes, if that has not been done.
    pub(crate) fn with_agents(&self) -> Result<()> {
        Ok(product::deploy_agents(&self.lab, self.first()?)?)
    }
}

/// Nodes without an agent, with another one's name, and down: each is named, with what to do.
pub(crate) fn nodes_that_cannot_follow_are_named(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    let id = worker.node_id()?;
    let place = product::copy_bundle(first, &bundle(Suite::Trixie)?)?;
    let upgrade = ["upgrade", "--bundle", &place, "--accept-control-plane-outage"];
    let more = |words: &[&'static str]| -> Result<lab::command::Output> {
        let args: Vec<&str> = upgrade.iter().copied().chain(words.iter().copied()).collect();
        requeen(first, &args)
    };

    refused(&more(&[])?, &["no agent", "m1", "w1", "--only"])?;
    small.with_agents()?;

    worker.sh("hostname m1 && systemctl reset-failed docker && systemctl restart docker")?;
    wait::until_true("two nodes of one name", LIMIT, || {
        let names = first.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        Ok(if names.stdout == "m1 Ready\nm1 Ready\n" { Ok(()) } else { Err(names.stdout) })
    })?;
    let ambiguous = more(&["--only", "m1"]);
    worker.sh("hostname w1 && systemctl reset-failed docker && systemctl restart docker")?;
    wait::until_true("two nodes of two names", LIMIT, || {
        let names = first.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        let mut lines: Vec<&str> = names.stdout.lines().collect();
        lines.sort_unstable();
        Ok(if lines == ["m1 Ready", "w1 Ready"] { Ok(()) } else { Err(names.stdout) })
    })?;
    refused(&ambiguous?, &["ambiguous", &id])?;

    worker.sh("systemctl stop docker.socket docker")?;
    wait_for_node(small.lab(), first, &id, "down", LIMIT)?;
    let down = more(&[]);
    worker.sh(START)?;
    wait_for_node(small.lab(), first, &id, "ready", LIMIT)?;
    refused(&down?, &["w1", "down", "--exclude w1"])
}

/// Two managers of which one is down: nothing can be recorded, so nothing begins.
pub(crate) fn no_quorum_is_refused(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let id = worker.node_id()?;
    let place = product::copy_bundle(first, &bundle(Suite::Trixie)?)?;
    first.docker(&["node", "promote", "w1"])?;
    wait_for_node(small.lab(), first, &id, "ready reachable", LIMIT)?;
    // The first manager says so before the second one has the raft log; stopped then, it could never join.
    wait::until_true("the second manager's own word", LIMIT, || {
        let list = worker.exec(&["docker", "node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
        let whole = list.stdout.contains("m1 Leader") && list.stdout.contains("w1 Reachable");
        Ok(if whole { Ok(()) } else { Err(format!("{}{}", list.stdout, list.stderr)) })
    })?;
    worker.sh("systemctl stop docker.socket docker")?;
    let lost = wait::until_true("the loss of the quorum", LIMIT, || {
        let list = first.exec(&["timeout", "10", "docker", "node", "ls"])?;
        Ok(if list.stderr.contains("leader") { Ok(()) } else { Err(format!("{}{}", list.stdout, list.stderr)) })
    });
    let output = lost.map(|()| requeen(first, &["upgrade", "--bundle", &place, "--accept-control-plane-outage"]));
    worker.sh(START)?;
    wait_for_node(small.lab(), first, &id, "ready reachable", LIMIT)?;
    first.docker(&["node", "demote", "w1"])?;
    wait_for_node(small.lab(), first, &id, "ready", LIMIT)?;
    refused(&output??, &["leader"])
}

/// A lone manager can't keep a quorum while it restarts: refused, and done with the operator's word.
pub(crate) fn a_lone_manager_needs_a_word(world: &World) -> Result<()> {
    let small = world.small()?;
    let (lab, first) = (small.lab(), small.first()?);
    small.with_agents()?;
    let target = bundle(Suite::Trixie)?;
    let place = product::copy_bundle(first, &target)?;
    refused(&requeen(first, &["upgrade", "--bundle", &place])?, &["quorum", "--accept-control-plane-outage"])?;

    let watch = Watch::start(lab)?;
    let output = requeen(first, &["upgrade", "--bundle", &place, "--accept-control-plane-outage"])?;
    let truth = watch.finish()?;
    ensure!(output.success(), "exit {}", output.status);
    judge(&truth, &asked(lab, &target)?)?;
    files_are_plain(lab, &target.path)?;
    requeen_ok(first, &["status"])?;
    Ok(())
}
