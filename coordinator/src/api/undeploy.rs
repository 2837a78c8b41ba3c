//! What `undeploy` asks, would remove, and has removed.

use requeen_protocol::Left;
use serde::{Deserialize, Serialize};

/// What `undeploy` asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndeployArgs {
    /// Remove the sets that are the way back too.
    pub backups: bool,
}

/// What is deployed, and so would be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Names of the agents' services.
    pub services: Vec<String>,
    /// Names of the swarm configs that are rollouts' records.
    pub records: Vec<String>,
    /// Nodes whose agent answers, and will clean its host.
    pub reached: Vec<ReachedNode>,
    /// Nodes on which agents may have left something, and none answers.
    pub silent: Vec<SilentNode>,
}

impl Deployment {
    /// Whether there is nothing to remove that anybody here knows of.
    pub fn is_nothing(&self) -> bool {
        self.services.is_empty() && self.records.is_empty() && self.reached.is_empty()
    }
}

/// A node whose agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachedNode {
    /// Node ID.
    pub id: String,
    /// Host name.
    pub hostname: String,
    /// Whether its agent is no task of the service: a container that was started by hand, which stays.
    pub by_hand: bool,
}

/// A node whose agent does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentNode {
    /// Host name.
    pub hostname: String,
    /// Why it is not cleaned.
    pub why: String,
    /// What to type there.
    pub command: String,
}

/// What `undeploy` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undeployed {
    /// Whether there was nothing to remove.
    pub nothing: bool,
    /// Names of the services that were removed.
    pub services: Vec<String>,
    /// Names of the records that were removed.
    pub records: Vec<String>,
    /// Nodes that were cleaned.
    pub cleaned: Vec<CleanedNode>,
    /// Nodes that were not.
    pub silent: Vec<SilentNode>,
    /// What the server could not remove of its own.
    pub troubles: Vec<String>,
    /// Host name of the node on which the server runs.
    pub server_node: String,
    /// The server's folder, which goes with its container.
    pub data_dir: String,
}

/// A node that was cleaned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanedNode {
    /// Host name.
    pub hostname: String,
    /// Whether its agent was started by hand: its container is still there.
    pub by_hand: bool,
    /// What is still in the agents' folder, and why.
    pub left: Vec<Left>,
    /// How many things more are still there.
    pub more: u64,
}
