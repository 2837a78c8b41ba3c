//! The engine's API, through the host's own socket.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::ListContainersOptions;
use bollard::{API_DEFAULT_VERSION, Docker};
use requeen_protocol::NodeId;
use serde::{Deserialize, Serialize};

use crate::host::HostRoot;

/// The socket, as a path of the host (`/var/run` is a link to `/run`, which must not be followed out
/// of the host's root).
pub const SOCKET: &str = "/run/docker.sock";

/// The label that the engine gives to the containers of swarm tasks.
pub const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// The label of the container that takes an executor to its host.
pub const HAND_OVER_LABEL: &str = "io.requeen.hand-over";

/// The engine's API failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nothing answers on the socket.
    #[error("the Docker Engine does not answer on {SOCKET}")]
    Connect(#[source] bollard::errors::Error),
    /// A request failed.
    #[error("the Docker Engine refused {what}")]
    Request {
        /// What was asked for.
        what: &'static str,
        /// Why it failed.
        source: bollard::errors::Error,
    },
    /// It did not answer in time.
    #[error("the Docker Engine did not answer {what} in time")]
    Silent {
        /// What was asked for.
        what: &'static str,
    },
}

/// The engine's own words on the swarm it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmFacts {
    /// Its node ID; empty outside a swarm.
    pub node: NodeId,
    /// `active`, `pending`, `locked`, `inactive` or `error`.
    pub local_state: String,
    /// What is wrong, where the engine says so.
    pub error: Option<String>,
    /// The managers that it knows, itself included where it is one.
    pub managers: Vec<Manager>,
    /// The engine's data directory, as a path of the host.
    pub data_root: String,
}

impl SwarmFacts {
    /// Nothing known yet: no node, no manager.
    pub fn unknown() -> Self {
        Self {
            node: NodeId(String::new()),
            local_state: String::new(),
            error: None,
            managers: Vec::new(),
            data_root: String::new(),
        }
    }

    /// Whether the engine waits for its swarm's unlock key.
    pub fn is_locked(&self) -> bool {
        self.local_state == "locked"
    }

    /// Whether the node takes part in its swarm.
    pub fn is_active(&self) -> bool {
        self.local_state == "active"
    }
}

/// A manager, as the node's own engine names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Manager {
    /// Its node ID.
    pub id: NodeId,
    /// Its address in the swarm; the port is the swarm's.
    pub addr: SocketAddr,
}

/// An open client.
#[derive(Clone, Debug)]
pub struct Api {
    pub(super) docker: Docker,
}

impl Api {
    /// The only place where a client is made: always with the version negotiated, since an engine may
    /// be older or newer than what this was built against.
    pub async fn connect(root: &HostRoot, timeout: Duration) -> Result<Self, ApiError> {
        let socket = root.join(SOCKET);
        let client =
            Docker::connect_with_unix(&socket.to_string_lossy(), timeout.as_secs().max(1), API_DEFAULT_VERSION)
                .map_err(ApiError::Connect)?;
        let docker = limit("its version", timeout, client.negotiate_version()).await?.map_err(ApiError::Connect)?;
        Ok(Self { docker })
    }

    /// Version and highest API version of the engine.
    pub async fn version(&self) -> Result<(String, String), ApiError> {
        let version = self.docker.version().await.map_err(request("its version"))?;
        Ok((version.version.unwrap_or_default(), version.api_version.unwrap_or_default()))
    }

    /// What the engine says of its swarm.
    pub async fn swarm(&self) -> Result<SwarmFacts, ApiError> {
        let info = self.docker.info().await.map_err(request("its state"))?;
        let swarm = info.swarm.unwrap_or_default();
        let managers = swarm.remote_managers.unwrap_or_default();
        Ok(SwarmFacts {
            node: NodeId(swarm.node_id.unwrap_or_default()),
            local_state: swarm.local_node_state.map(|state| state.to_string()).unwrap_or_default(),
            error: swarm.error.filter(|text| !text.is_empty()),
            managers: managers
                .into_iter()
                .filter_map(|peer| Some(Manager { id: NodeId(peer.node_id?), addr: peer.addr?.parse().ok()? }))
                .collect(),
            data_root: info.docker_root_dir.unwrap_or_else(|| "/var/lib/docker".to_owned()),
        })
    }

    /// Whether the engine is a manager of its swarm now.
    pub async fn is_manager(&self) -> Result<bool, ApiError> {
        let info = self.docker.info().await.map_err(request("its role"))?;
        Ok(info.swarm.and_then(|swarm| swarm.control_available).unwrap_or(false))
    }

    /// How many containers of swarm tasks run now.
    pub async fn task_containers(&self) -> Result<u32, ApiError> {
        let filters = HashMap::from([("label".to_owned(), vec![TASK_LABEL.to_owned()])]);
        let options = ListContainersOptions { filters: Some(filters), ..ListContainersOptions::default() };
        let running = self.docker.list_containers(Some(options)).await.map_err(request("its containers"))?;
        Ok(u32::try_from(running.len()).unwrap_or(u32::MAX))
    }

    /// The ID of the image of the running container whose own ID `is_it` recognises.
    pub async fn image_of(&self, is_it: &(dyn Fn(&str) -> bool + Sync)) -> Result<Option<String>, ApiError> {
        let running = self.docker.list_containers(None).await.map_err(request("its containers"))?;
        let found = running.into_iter().find(|container| container.id.as_deref().is_some_and(is_it));
        Ok(found.and_then(|container| container.image_id))
    }

    /// Creates a container and starts it.
    pub async fn run(&self, container: ContainerCreateBody) -> Result<(), ApiError> {
        let created = self.docker.create_container(None, container).await.map_err(request("a new container"))?;
        self.docker.start_container(&created.id, None).await.map_err(request("the new container's start"))
    }
}

/// Whether the API answers at all. One attempt.
pub async fn ping(root: &HostRoot, timeout: Duration) -> Result<(), ApiError> {
    let socket = root.join(SOCKET);
    let client = Docker::connect_with_unix(&socket.to_string_lossy(), timeout.as_secs().max(1), API_DEFAULT_VERSION)
        .map_err(ApiError::Connect)?;
    limit("a ping", timeout, client.ping()).await?.map_err(ApiError::Connect)?;
    Ok(())
}

pub(super) fn request(what: &'static str) -> impl FnOnce(bollard::errors::Error) -> ApiError {
    move |source| ApiError::Request { what, source }
}

async fn limit<F: Future>(what: &'static str, timeout: Duration, call: F) -> Result<F::Output, ApiError> {
    tokio::time::timeout(timeout, call).await.map_err(|_| ApiError::Silent { what })
}
