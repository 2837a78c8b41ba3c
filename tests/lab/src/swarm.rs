//! A lab as a whole: making it, finding it again, removing it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::command::{docker, parallel};
use crate::container::{Container, LABEL_ADDRESS, LABEL_INIT, LABEL_NODE};
use crate::wait;
use crate::{Error, Init, Kind, LABEL, Node, Result, Role, Suite, cache, images, machine, network, tools};

/// How long a node may take from systemd to an engine that answers.
const ENGINE_LIMIT: Duration = Duration::from_secs(120);

/// How long the swarm may take to see all of its nodes ready.
const SWARM_LIMIT: Duration = Duration::from_secs(60);

/// What a lab shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name, part of the name of everything it makes.
    pub name: String,
    /// Managers, at least one.
    pub managers: u8,
    /// Workers.
    pub workers: u8,
    /// Whose engine every node runs.
    pub suite: Suite,
    /// What every node is made of.
    pub kind: Kind,
    /// What every node's PID 1 is. Machines have systemd.
    pub init: Init,
}

/// A swarm of nodes.
#[derive(Clone, Debug)]
pub struct Lab {
    name: String,
    nodes: Vec<Node>,
}

impl Lab {
    /// Makes a lab: nodes with the suite's engine, joined to one swarm, all ready. What is left of a lab of that name
    /// is removed first.
    ///
    /// # Errors
    /// [`Error::SuiteUnavailable`] if the suite can't be had here: skip what needs it, and say so.
    /// [`Error::OnlyContainers`] if machines shall have another PID 1 than systemd.
    pub fn up(spec: &Spec) -> Result<Self> {
        Self::make(spec, &[])
    }

    /// Like [`Lab::up`] of machines, and what is written to the disks of those named in `logged` is noted from their first
    /// boot on, which is their only one; see [`Node::recording`].
    ///
    /// # Errors
    /// As [`Lab::up`]; [`Error::OnlyMachines`] if the nodes are containers.
    pub fn up_recorded(spec: &Spec, logged: &[&str]) -> Result<Self> {
        match spec.kind {
            Kind::Container => Err(Error::OnlyMachines { what: "log of its writes", node: logged.join(", ") }),
            Kind::Machine => Self::make(spec, logged),
        }
    }

    fn make(spec: &Spec, logged: &[&str]) -> Result<Self> {
        check_name(&spec.name)?;
        if !(1..=90).contains(&spec.managers) || spec.workers > 90 {
            return Err(Error::BadSize { managers: spec.managers, workers: spec.workers });
        }
        let image = match (spec.kind, spec.init) {
            (Kind::Container, init) => images::node_image_with(spec.suite, init)?,
            (Kind::Machine, Init::Systemd) => {
                tools::engine()?;
                images::machine_disk(spec.suite)?.display().to_string()
            }
            (Kind::Machine, init @ Init::Sysvinit) => return Err(Error::OnlyContainers { init }),
        };
        let started = Instant::now();
        let _lock = cache::lock(&format!("lab-{}", spec.name))?;
        remove(&spec.name)?;
        let third = match spec.kind {
            Kind::Container => network::create(&spec.name)?,
            // In a network namespace of their own nobody else has addresses.
            Kind::Machine => 0,
        };
        let nodes: Vec<Node> = names(spec)
            .map(|(role, number)| {
                let name = format!("{}{number}", role.letter());
                let address = network::address(third, role, number);
                Node::new(&spec.name, name, role, address, spec.kind).with_init(spec.init)
            })
            .collect();
        let Spec { suite, kind, init, .. } = spec;
        tracing::info!(lab = spec.name, nodes = nodes.len(), %suite, %kind, %init, "boot the nodes");
        match spec.kind {
            Kind::Container => {}
            Kind::Machine => machine::create(&spec.name, spec.suite, &nodes, logged)?,
        }
        parallel("booting a node", &nodes, |node| {
            match spec.kind {
                Kind::Container => Container::of(node).create(node, &image, &nodes)?,
                Kind::Machine => node.start()?,
            }
            node.wait_for_engine(ENGINE_LIMIT)
        })?;
        tracing::info!(seconds = started.elapsed().as_secs(), "form the swarm");
        let lab = Self { name: spec.name.clone(), nodes };
        lab.form_swarm()?;
        tracing::info!(seconds = started.elapsed().as_secs(), "the swarm is ready");
        Ok(lab)
    }

    /// Makes another worker, which may have another PID 1, and joins it to the swarm. Remove it with [`Lab::remove_worker`]:
    /// this lab does not know it, nor wait for it.
    ///
    /// # Errors
    /// As [`Lab::up`]; [`Error::OnlyContainers`] too if this lab is of machines.
    pub fn add_worker(&self, number: u8, suite: Suite, init: Init) -> Result<Node> {
        let first = self.node("m1")?;
        match first.kind() {
            Kind::Container => {}
            Kind::Machine => return Err(Error::OnlyContainers { init }),
        }
        let image = images::node_image_with(suite, init)?;
        let third = first.ip().octets()[2];
        let name = format!("{}{number}", Role::Worker.letter());
        let address = network::address(third, Role::Worker, number);
        let node = Node::new(&self.name, name, Role::Worker, address, Kind::Container).with_init(init);
        let hosts: Vec<Node> = self.nodes.iter().chain([&node]).cloned().collect();
        Container::of(&node).create(&node, &image, &hosts)?;
        node.wait_for_engine(ENGINE_LIMIT)?;
        let token = first.docker(&["swarm", "join-token", "--quiet", "worker"])?;
        let (own, peer) = (node.ip().to_string(), format!("{}:2377", first.ip()));
        node.docker(&["swarm", "join", "--advertise-addr", &own, "--token", token.trimmed(), &peer])?;
        Ok(node)
    }

    /// Takes away what [`Lab::add_worker`] has made: the node, its place in the swarm, and its volumes.
    pub fn remove_worker(&self, node: &Node) -> Result<()> {
        let first = self.node("m1")?;
        let hostname = format!("name={}", node.name());
        let ids = first.docker(&["node", "ls", "--quiet", "--filter", &hostname])?;
        let container = Container::of(node);
        let volumes = container.volumes();
        let inner = inner_containers(&volumes)?;
        docker(&["rm", "--force", "--volumes", container.name()])?;
        for volume in &volumes {
            docker(&["volume", "rm", "--force", volume])?;
        }
        remove_control_groups(&inner);
        for id in ids.stdout.split_whitespace() {
            first.docker(&["node", "rm", "--force", id])?;
        }
        Ok(())
    }

    /// Finds a lab that is there, whether its nodes run or not.
    pub fn attach(name: &str) -> Result<Self> {
        check_name(name)?;
        if machine::exists(name) {
            let nodes = machine::read(name)?.nodes.into_iter();
            let nodes = nodes.map(|node| Node::new(name, node.name, node.role, node.address, Kind::Machine)).collect();
            return Ok(Self { name: name.to_owned(), nodes });
        }
        let filter = format!("label={LABEL}={name}");
        let ids = docker(&["ps", "--all", "--quiet", "--filter", &filter])?;
        let mut args = vec!["inspect", "--format", "{{json .Config.Labels}}"];
        args.extend(ids.stdout.split_whitespace());
        if ids.trimmed().is_empty() {
            return Err(Error::UnknownLab { name: name.to_owned() });
        }
        let mut nodes = Vec::new();
        for line in docker(&args)?.stdout.lines() {
            let labels: BTreeMap<String, String> =
                serde_json::from_str(line).map_err(|source| Error::Json { what: "docker inspect", source })?;
            nodes.extend(node_of(name, &labels));
        }
        nodes.sort_by_key(Node::ip);
        Ok(Self { name: name.to_owned(), nodes })
    }

    /// Removes everything that carries the lab's name; no error if there is nothing.
    pub fn down(name: &str) -> Result<()> {
        check_name(name)?;
        tools::engine()?;
        let _lock = cache::lock(&format!("lab-{name}"))?;
        remove(name)
    }

    /// The names of all labs of this machine, whole or not.
    pub fn names() -> Result<Vec<String>> {
        let filter = format!("label={LABEL}");
        let format = format!("{{{{.Label \"{LABEL}\"}}}}");
        let mut names = machine::names()?;
        for list in [&["ps", "--all"][..], &["network", "ls"], &["volume", "ls"]] {
            let mut args = list.to_vec();
            args.extend(["--filter", &filter, "--format", &format]);
            names.extend(docker(&args)?.stdout.lines().filter(|name| !name.is_empty()).map(str::to_owned));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All nodes, managers first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes that were made managers.
    pub fn managers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.role() == Role::Manager)
    }

    /// The nodes that were made workers.
    pub fn workers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.role() == Role::Worker)
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).ok_or_else(|| Error::UnknownNode {
            lab: self.name.clone(),
            node: name.to_owned(),
            known: self.nodes.iter().map(Node::name).collect::<Vec<_>>().join(", "),
        })
    }

    /// Loads an image of the machine's engine into every node.
    pub fn load_image(&self, image: &str) -> Result<()> {
        let work = tempfile::tempdir().map_err(Error::file("create a folder in", std::env::temp_dir()))?;
        let tar = work.path().join("image.tar");
        docker(&["save", "--output", &tar.display().to_string(), image])?;
        parallel("loading an image", &self.nodes, |node| node.load_image(&tar)).map(drop)
    }

    /// Copies a file of the machine into every node.
    pub fn copy_in(&self, file: &Path, destination: &str) -> Result<()> {
        parallel("copying a file", &self.nodes, |node| node.copy_in(file, destination)).map(drop)
    }

    /// Waits until the swarm sees every node ready and every manager reachable, asked on `from`.
    pub fn wait_until_ready(&self, from: &Node, limit: Duration) -> Result<()> {
        wait::until_true("every node ready", limit, || {
            let output = from.exec(&["docker", "node", "ls", "--format", "{{json .}}"])?;
            if !output.success() {
                return Ok(Err(output.stderr.trim().to_owned()));
            }
            let members = members(&output.stdout)?;
            let ready = members.iter().filter(|member| member.ready()).count();
            let managers = members.iter().filter(|member| member.manages()).count();
            let whole = ready == self.nodes.len() && members.len() == ready && managers == self.managers().count();
            Ok(if whole { Ok(()) } else { Err(format!("{ready} nodes ready, {managers} managers reachable")) })
        })
    }

    fn form_swarm(&self) -> Result<()> {
        let first = self.node("m1")?;
        let address = first.ip().to_string();
        first.docker(&["swarm", "init", "--advertise-addr", &address, "--default-addr-pool", network::OVERLAY_POOL])?;
        let managers = first.docker(&["swarm", "join-token", "--quiet", "manager"])?;
        let workers = first.docker(&["swarm", "join-token", "--quiet", "worker"])?;
        let join = |node: &Node, token: &str| {
            let own = node.ip().to_string();
            let peer = format!("{address}:2377");
            node.docker(&["swarm", "join", "--advertise-addr", &own, "--token", token, &peer]).map(drop)
        };
        // One after the other: a member that joins while another joins may find the raft group without a quorum.
        for node in self.managers().filter(|node| *node != first) {
            join(node, managers.trimmed())?;
        }
        let rest: Vec<&Node> = self.workers().collect();
        parallel("joining a node", &rest, |node| join(node, workers.trimmed()))?;
        self.wait_until_ready(first, SWARM_LIMIT)
    }
}

/// One line of `docker node ls`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Member {
    status: String,
    manager_status: String,
}

impl Member {
    fn ready(&self) -> bool {
        self.status == "Ready"
    }

    fn manages(&self) -> bool {
        self.manager_status == "Leader" || self.manager_status == "Reachable"
    }
}

fn members(text: &str) -> Result<Vec<Member>> {
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().map_err(|source| Error::Json { what: "docker node ls", source })
}

/// Roles and numbers of a lab's nodes, managers first.
fn names(spec: &Spec) -> impl Iterator<Item = (Role, u8)> {
    let managers = (1..=spec.managers).map(|number| (Role::Manager, number));
    managers.chain((1..=spec.workers).map(|number| (Role::Worker, number)))
}

/// The node that a container's labels describe, or nothing if they are incomplete.
fn node_of(lab: &str, labels: &BTreeMap<String, String>) -> Option<Node> {
    let name = labels.get(LABEL_NODE)?;
    let address = labels.get(LABEL_ADDRESS)?.parse().ok()?;
    let role = if name.starts_with(Role::Manager.letter()) { Role::Manager } else { Role::Worker };
    let init = labels.get(LABEL_INIT).and_then(|init| init.parse().ok()).unwrap_or_default();
    Some(Node::new(lab, name.clone(), role, address, Kind::Container).with_init(init))
}

fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.is_empty()
        && name.len() <= 32
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(good)
    {
        return Ok(());
    }
    Err(Error::BadName { name: name.to_owned() })
}

/// Removes the containers, volumes and networks that carry the lab's label, and its machines, and nothing else.
fn remove(lab: &str) -> Result<()> {
    machine::remove(lab)?;
    let filter = format!("label={LABEL}={lab}");
    let list = |args: &[&str]| -> Result<Vec<String>> {
        let mut args = args.to_vec();
        args.extend(["--quiet", "--filter", &filter]);
        Ok(docker(&args)?.stdout.split_whitespace().map(str::to_owned).collect())
    };
    let containers = list(&["ps", "--all", "--no-trunc"])?;
    let volumes = list(&["volume", "ls"])?;
    let inner = inner_containers(&volumes)?;
    parallel("removing a node", &containers, |id| docker(&["rm", "--force", "--volumes", id]))?;
    parallel("removing a volume", &volumes, |name| docker(&["volume", "rm", "--force", name]))?;
    for id in list(&["network", "ls"])? {
        docker(&["network", "rm", &id])?;
    }
    remove_control_groups(&inner);
    Ok(())
}

/// The IDs of the containers that the nodes' engines have, read from their volumes.
fn inner_containers(volumes: &[String]) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for volume in volumes.iter().filter(|name| name.ends_with("-docker")) {
        let mount = docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", volume])?;
        // Absent if the machine's engine is elsewhere or the node never booted: then there is nothing to tidy.
        let entries = fs::read_dir(Path::new(mount.trimmed()).join("containers")).into_iter().flatten();
        ids.extend(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()));
    }
    Ok(ids)
}

/// Removes the empty control groups that containers inside a node leave when the node's power is cut: with version 1
/// they are the machine's own, and would pile up.
fn remove_control_groups(containers: &[String]) {
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        for id in containers {
            // Only an empty group can be removed, so this can't harm; one that is not there needs no word.
            fs::remove_dir(hierarchy.path().join("docker").join(id)).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_escape_are_refused() {
        for good in ["default", "e2e-3", "7"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-x", "A", "a b", "a/b", "a=b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn managers_come_first() {
        let spec = Spec {
            name: "x".to_owned(),
            managers: 2,
            workers: 1,
            suite: Suite::Sid,
            kind: Kind::Container,
            init: Init::Systemd,
        };
        let got: Vec<_> = names(&spec).collect();
        assert_eq!(got, [(Role::Manager, 1), (Role::Manager, 2), (Role::Worker, 1)]);
    }

    #[test]
    fn members_are_read_from_the_clients_lines() {
        let text = r#"{"Hostname":"m1","ManagerStatus":"Leader","Status":"Ready"}
{"Hostname":"w1","ManagerStatus":"","Status":"Down"}"#;
        let members = members(text).expect("two lines");
        assert!(members[0].ready() && members[0].manages());
        assert!(!members[1].ready() && !members[1].manages());
    }
}
