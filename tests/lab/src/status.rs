//! What a lab is now, for people and for scripts.

use serde::Serialize;

use crate::command::parallel;
use crate::{Kind, Lab, Node, Result, Role};

/// A lab and its nodes.
#[derive(Debug, Serialize)]
pub struct LabStatus {
    /// Its name.
    pub name: String,
    /// Its nodes, managers first.
    pub nodes: Vec<NodeStatus>,
}

/// A node as this machine and its own engine see it.
#[derive(Debug, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// What it was made to be.
    pub role: Role,
    /// What it is made of.
    pub kind: Kind,
    /// Its address in the lab's network.
    pub address: String,
    /// Its state on this machine: running, exited, off, …
    pub state: String,
    /// The version of its engine, if that answers.
    pub engine: Option<String>,
    /// Its swarm state: active, pending, locked, …
    pub swarm: Option<String>,
}

impl LabStatus {
    /// Asks every node at once.
    pub fn of(lab: &Lab) -> Result<Self> {
        let nodes = parallel("asking a node", lab.nodes(), node_status)?;
        Ok(Self { name: lab.name().to_owned(), nodes })
    }
}

fn node_status(node: &Node) -> Result<NodeStatus> {
    let state = node.state()?;
    let asked = node.exec(&["docker", "info", "--format", "{{.ServerVersion}} {{.Swarm.LocalNodeState}}"])?;
    let mut words = asked.stdout.split_whitespace().map(str::to_owned).filter(|_| asked.success());
    Ok(NodeStatus {
        name: node.name().to_owned(),
        role: node.role(),
        kind: node.kind(),
        address: node.ip().to_string(),
        state,
        engine: words.next(),
        swarm: words.next(),
    })
}
