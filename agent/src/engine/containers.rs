//! Standalone containers, through the engine's API: which run, and to stop, start and pause one.

use std::time::Duration;

use bollard::models::{ContainerInspectResponse, RestartPolicyNameEnum};

use super::api::{Api, ApiError, HAND_OVER_LABEL, TASK_LABEL, request};
use crate::host::HostRoot;
use crate::standalone::{Container, Restart};

/// An answer of the engine that takes no waiting.
const API_LIMIT: Duration = Duration::from_secs(60);
/// What the engine may take beyond a container's own timeout to kill it and to answer.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// The status with which the engine answers that there is no such container.
const NO_SUCH: u16 = 404;

impl Api {
    /// The containers that run and are no swarm tasks, paused ones included.
    pub async fn standalone(&self) -> Result<Vec<Container>, ApiError> {
        let running = self.docker.list_containers(None).await.map_err(request("its containers"))?;
        let mut found = Vec::new();
        for summary in running {
            let labels = summary.labels.unwrap_or_default();
            // Those of a hand-over are gone after a second.
            if labels.contains_key(TASK_LABEL) || labels.contains_key(HAND_OVER_LABEL) {
                continue;
            }
            let id = summary.id.unwrap_or_default();
            match self.docker.inspect_container(&id, None).await {
                Ok(inspected) => found.push(container(id, inspected)),
                // It ended in this instant.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(request("one of its containers")(error)),
            }
        }
        Ok(found)
    }

    /// Starts a container that does not run; one that runs is left as it is.
    pub async fn start_container(&self, id: &str) -> Result<(), ApiError> {
        self.docker.start_container(id, None).await.map_err(request("the container's start"))
    }

    /// Pauses a container.
    pub async fn pause_container(&self, id: &str) -> Result<(), ApiError> {
        self.docker.pause_container(id).await.map_err(request("the container's pause"))
    }
}

/// A client for calls that take no waiting.
pub async fn connect(root: &HostRoot) -> Result<Api, ApiError> {
    Api::connect(root, API_LIMIT).await
}

/// Stops a container as it is configured to be stopped, its own signal and its own timeout; one that does not run, or is
/// gone, is left as it is. Returns when it has ended, `patience` and half a minute later at the latest.
pub async fn stop(root: &HostRoot, id: &str, patience: Duration) -> Result<(), ApiError> {
    // A client of its own: the engine answers when the container has ended.
    let limit = patience.saturating_add(KILL_LIMIT);
    let api = Api::connect(root, limit).await?;
    match api.docker.stop_container(id, None).await {
        Err(error) if !is_gone(&error) => Err(request("the container's stop")(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_gone(error: &bollard::errors::Error) -> bool {
    matches!(error, bollard::errors::Error::DockerResponseServerError { status_code: NO_SUCH, .. })
}

fn container(id: String, inspected: ContainerInspectResponse) -> Container {
    let state = inspected.state.unwrap_or_default();
    let host = inspected.host_config.unwrap_or_default();
    let name = inspected.name.unwrap_or_default();
    let restart = match host.restart_policy.and_then(|policy| policy.name) {
        None | Some(RestartPolicyNameEnum::EMPTY | RestartPolicyNameEnum::NO) => Restart::No,
        Some(RestartPolicyNameEnum::ON_FAILURE) => Restart::OnFailure,
        Some(RestartPolicyNameEnum::ALWAYS) => Restart::Always,
        Some(RestartPolicyNameEnum::UNLESS_STOPPED) => Restart::UnlessStopped,
    };
    Container {
        name: if name.is_empty() { id.clone() } else { name.trim_start_matches('/').to_owned() },
        id,
        restart,
        auto_remove: host.auto_remove.unwrap_or_default(),
        timeout_secs: inspected.config.and_then(|config| config.stop_timeout),
        paused: state.paused.unwrap_or_default(),
        started: state.started_at.unwrap_or_default(),
    }
}
