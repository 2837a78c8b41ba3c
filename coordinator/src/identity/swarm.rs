//! What the gate asks the swarm.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use bollard::models::NodeSpecRoleEnum;
use requeen_protocol::{NodeId, UnlockKey};

use crate::observe::{Engine, ObserveError, RawError};
use crate::plan::model::Role;

/// The cluster as its managers know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// Its ID: the O of every certificate.
    pub(crate) id: String,
    /// PEM of its root certificates.
    pub(crate) trust_root: String,
}

/// The swarm's managers could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody.
    #[error("the engine can't be asked")]
    Engine(#[source] ObserveError),
    /// The cluster.
    #[error("the engine did not describe the swarm")]
    Cluster(#[source] bollard::errors::Error),
    /// The list of nodes.
    #[error("the engine did not list the swarm's nodes")]
    Nodes(#[source] bollard::errors::Error),
    /// The unlock key.
    #[error("the engine did not give the swarm's unlock key")]
    UnlockKey(#[source] RawError),
    /// An answer without what it has to have.
    #[error("the engine described the swarm without its {0}")]
    Missing(&'static str),
    /// Without a leader an engine takes its time.
    #[error("the engine has not answered in time")]
    Timeout,
}

/// Whoever can say what the swarm is and who belongs to it.
pub(crate) trait Swarm: Send + Sync + 'static {
    /// ID and root.
    fn cluster(&self) -> impl Future<Output = Result<Cluster, AskError>> + Send;
    /// The nodes now, with the roles that the swarm gives them now.
    fn nodes(&self) -> impl Future<Output = Result<BTreeMap<NodeId, Role>, AskError>> + Send;
    /// The key with which managers are unlocked; none where the swarm is not autolocked.
    fn unlock_key(&self) -> impl Future<Output = Result<Option<UnlockKey>, AskError>> + Send;
}

/// The managers, through the engine of this node.
pub(crate) struct Managers(pub(crate) Arc<Engine>);

impl Swarm for Managers {
    async fn cluster(&self) -> Result<Cluster, AskError> {
        let client = self.0.client().await.map_err(AskError::Engine)?;
        let swarm = client.inspect_swarm().await.map_err(|error| {
            self.0.renegotiate();
            AskError::Cluster(error)
        })?;
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Cluster {
            id: filled(swarm.id).ok_or(AskError::Missing("ID"))?,
            trust_root: filled(swarm.tls_info.and_then(|tls| tls.trust_root))
                .ok_or(AskError::Missing("root certificate"))?,
        })
    }

    async fn nodes(&self) -> Result<BTreeMap<NodeId, Role>, AskError> {
        let client = self.0.client().await.map_err(AskError::Engine)?;
        let nodes = client.list_nodes(None).await.map_err(|error| {
            self.0.renegotiate();
            AskError::Nodes(error)
        })?;
        let view = |node: bollard::models::Node| {
            let role = match node.spec?.role? {
                NodeSpecRoleEnum::MANAGER => Role::Manager,
                NodeSpecRoleEnum::WORKER | NodeSpecRoleEnum::EMPTY => Role::Worker,
            };
            Some((NodeId(node.id?), role))
        };
        Ok(nodes.into_iter().filter_map(view).collect())
    }

    async fn unlock_key(&self) -> Result<Option<UnlockKey>, AskError> {
        let said = self.0.raw("/swarm/unlockkey").await.map_err(AskError::UnlockKey)?;
        match said["UnlockKey"].as_str() {
            None | Some("") => Ok(None),
            Some(text) => UnlockKey::parse(text).map(Some).map_err(|_| AskError::Missing("unlock key")),
        }
    }
}
