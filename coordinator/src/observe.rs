//! What is true in the swarm now: one read of the engine and of every list that the planner needs.
//!
//! Only lists are read, one per kind, so that the cost of a round does not grow with the number of
//! nodes in calls. The one function that makes a Docker client lives here too.

#[cfg(test)]
pub(crate) mod fake;
mod raw;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bollard::errors::Error as DockerError;
use bollard::models::{
    LocalNodeState, Node, NodeSpecAvailabilityEnum, NodeSpecRoleEnum, NodeState as SwarmNodeState, Reachability,
    Service, Task, TaskState,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::future::BoxFuture;
use requeen_protocol::NodeId;

pub(crate) use raw::RawError;

use crate::hub::Hub;
use crate::plan::model::{Availability, NodeView, Observed, Role, TaskView};

/// How long one answer of the engine may take, seconds: a manager's API can take 20 s while the
/// managers elect a leader.
const ANSWER_SECS: u64 = 30;

/// Makes a client of the engine behind `socket`, at the highest API version that both know.
///
/// # Errors
///
/// [`ObserveError::Connect`] when there is no socket or nobody answers on it.
pub async fn docker(socket: &Path) -> Result<Docker, ObserveError> {
    let failed = |source| ObserveError::Connect { socket: socket.to_owned(), source };
    Docker::connect_with_unix(&socket.to_string_lossy(), ANSWER_SECS, API_DEFAULT_VERSION)
        .map_err(failed)?
        .negotiate_version()
        .await
        .map_err(failed)
}

/// The engine of this host, of which the version can change while the coordinator runs.
pub struct Engine {
    socket: PathBuf,
    held: Mutex<Held>,
}

/// What stays true until a call fails.
#[derive(Default)]
struct Held {
    client: Option<Docker>,
    manager: Option<NodeId>,
}

impl Engine {
    /// An engine that is connected to when it is first needed.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, held: Mutex::default() }
    }

    /// A client, negotiated again after [`Self::renegotiate`].
    ///
    /// # Errors
    ///
    /// See [`docker`].
    pub async fn client(&self) -> Result<Docker, ObserveError> {
        if let Some(client) = self.held().client.clone() {
            return Ok(client);
        }
        let client = docker(&self.socket).await?;
        self.held().client = Some(client.clone());
        Ok(client)
    }

    /// This node, which is a manager. Asked once per connection: the engine starts programs to answer `/info`, and a node
    /// that is a manager no longer is noticed by its lists, which fail.
    async fn manager(&self, docker: &Docker) -> Result<NodeId, ObserveError> {
        if let Some(me) = self.held().manager.clone() {
            return Ok(me);
        }
        let info = docker.info().await.map_err(ObserveError::Info)?;
        let swarm = info.swarm.unwrap_or_default();
        let state = swarm.local_node_state.unwrap_or(LocalNodeState::EMPTY);
        if state != LocalNodeState::ACTIVE {
            let state = match state.to_string() {
                empty if empty.is_empty() => "inactive".to_owned(),
                state => state,
            };
            return Err(ObserveError::NotActive { state });
        }
        let me = NodeId(swarm.node_id.unwrap_or_default());
        if !swarm.control_available.unwrap_or(false) {
            return Err(ObserveError::NotManager { node: me });
        }
        self.held().manager = Some(me.clone());
        Ok(me)
    }

    /// Says that a call failed: the engine may come back as another version, with other limits.
    pub fn renegotiate(&self) {
        *self.held() = Held::default();
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The swarm can't be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The engine does not answer.
    #[error("no Docker Engine answers on {}", socket.display())]
    Connect {
        /// Path of the socket.
        socket: PathBuf,
        /// What the client said.
        source: DockerError,
    },
    /// `GET /info` failed.
    #[error("the engine does not say what it is (GET /info)")]
    Info(#[source] DockerError),
    /// The engine is in no swarm, or not yet again.
    #[error("the engine's swarm state is `{state}`, not active")]
    NotActive {
        /// Local state of the swarm: `inactive`, `pending`, `locked`, `error`.
        state: String,
    },
    /// The engine is a worker's.
    #[error("node {node} is not a manager")]
    NotManager {
        /// Its node.
        node: NodeId,
    },
    /// `GET /nodes` failed.
    #[error("the nodes can't be listed")]
    Nodes(#[source] DockerError),
    /// `GET /tasks` failed.
    #[error("the tasks can't be listed")]
    Tasks(#[source] DockerError),
    /// `GET /services` failed.
    #[error("the services can't be listed")]
    Services(#[source] DockerError),
}

impl ObserveError {
    /// What the Docker client said, where it said something.
    pub fn docker(&self) -> Option<&DockerError> {
        match self {
            ObserveError::Connect { source, .. } => Some(source),
            ObserveError::Info(source)
            | ObserveError::Nodes(source)
            | ObserveError::Tasks(source)
            | ObserveError::Services(source) => Some(source),
            ObserveError::NotActive { .. } | ObserveError::NotManager { .. } => None,
        }
    }
}

/// Reads the swarm once. The agents' words come from `hub`.
///
/// # Errors
///
/// One variant per read. A missing leader shows as a failure of one of the lists.
pub fn observe<'a>(engine: &'a Engine, hub: &'a Hub) -> BoxFuture<'a, Result<Observed, ObserveError>> {
    // Boxed: inlined into each of its callers it keeps the compiler busy for minutes.
    Box::pin(look(engine, hub))
}

async fn look(engine: &Engine, hub: &Hub) -> Result<Observed, ObserveError> {
    let docker = engine.client().await?;
    let me = engine.manager(&docker).await?;
    let (nodes, tasks, services, autolocked) = tokio::try_join!(
        async { docker.list_nodes(None).await.map_err(ObserveError::Nodes) },
        async { docker.list_tasks(None).await.map_err(ObserveError::Tasks) },
        async { docker.list_services(None).await.map_err(ObserveError::Services) },
        async { Ok(is_autolocked(&docker).await) },
    )?;
    let nodes: BTreeMap<NodeId, NodeView> =
        nodes.into_iter().filter_map(node_view).map(|node| (node.id.clone(), node)).collect();
    Ok(Observed {
        me,
        has_leader: nodes.values().any(|node| node.leader),
        tasks: task_views(&tasks, &service_names(&services)),
        global_services: global_services(&services),
        nodes,
        agents: hub.agents(),
        autolocked,
    })
}

/// Whether managers are locked after each start of their engine. It is for words alone, so not to know is no failure.
async fn is_autolocked(docker: &Docker) -> bool {
    let spec = docker.inspect_swarm().await.ok().and_then(|swarm| swarm.spec);
    spec.and_then(|spec| spec.encryption_config?.auto_lock_managers).unwrap_or(false)
}

fn node_view(node: Node) -> Option<NodeView> {
    let id = NodeId(node.id?);
    let spec = node.spec.unwrap_or_default();
    let description = node.description.unwrap_or_default();
    let status = node.status.unwrap_or_default();
    // A node that was demoted counts for the quorum until it has left raft, some seconds later.
    let in_raft = node.manager_status.is_some();
    let manager = node.manager_status.unwrap_or_default();
    // A leader that was the first manager knows itself as 0.0.0.0; the raft address is always one
    // that others reach.
    let told = status.addr.filter(|addr| !addr.is_empty() && addr != "0.0.0.0" && addr != "::");
    let raft = manager.addr.as_deref().and_then(|addr| addr.rsplit_once(':')).map(|(host, _)| host);
    let addr = told.unwrap_or_else(|| raft.unwrap_or_default().trim_matches(['[', ']']).to_owned());
    Some(NodeView {
        hostname: description.hostname.filter(|name| !name.is_empty()).unwrap_or_else(|| id.to_string()),
        role: match spec.role {
            Some(NodeSpecRoleEnum::MANAGER) => Role::Manager,
            Some(NodeSpecRoleEnum::WORKER | NodeSpecRoleEnum::EMPTY) | None if in_raft => Role::Manager,
            Some(NodeSpecRoleEnum::WORKER | NodeSpecRoleEnum::EMPTY) | None => Role::Worker,
        },
        availability: match spec.availability {
            Some(NodeSpecAvailabilityEnum::DRAIN) => Availability::Drain,
            Some(NodeSpecAvailabilityEnum::PAUSE) => Availability::Pause,
            Some(NodeSpecAvailabilityEnum::ACTIVE | NodeSpecAvailabilityEnum::EMPTY) | None => Availability::Active,
        },
        ready: status.state == Some(SwarmNodeState::READY),
        leader: manager.leader.unwrap_or(false),
        reachable: manager.reachability == Some(Reachability::REACHABLE),
        engine_version: description.engine.and_then(|engine| engine.engine_version).unwrap_or_default(),
        addr,
        index: node.version.and_then(|version| version.index).unwrap_or_default(),
        id,
    })
}

fn service_names(services: &[Service]) -> HashMap<&str, &str> {
    services
        .iter()
        .filter_map(|service| Some((service.id.as_deref()?, service.spec.as_ref()?.name.as_deref()?)))
        .collect()
}

/// Global services that every active node gets a task of. Where one may run under constraints is the
/// scheduler's to say, so those are left out.
fn global_services(services: &[Service]) -> Vec<String> {
    let mut names: Vec<String> = services
        .iter()
        .filter_map(|service| service.spec.as_ref())
        .filter(|spec| spec.mode.as_ref().is_some_and(|mode| mode.global.is_some()))
        .filter(|spec| {
            let placement = spec.task_template.as_ref().and_then(|task| task.placement.as_ref());
            placement.and_then(|placement| placement.constraints.as_ref()).is_none_or(Vec::is_empty)
        })
        .filter_map(|spec| spec.name.clone())
        .collect();
    names.sort();
    names
}

/// Tasks of services that live or ought to. A container that was attached to a swarm network by hand
/// has a task too, without a service; draining does not move it, so it is left out like every
/// standalone container.
fn task_views(tasks: &[Task], names: &HashMap<&str, &str>) -> Vec<TaskView> {
    tasks
        .iter()
        .filter_map(|task| {
            let service = task.service_id.as_deref().filter(|id| !id.is_empty())?;
            let state = task.status.as_ref().and_then(|status| status.state);
            let view = TaskView {
                // The tasks of a service that was removed outlive it.
                service: (*names.get(service).unwrap_or(&service)).to_owned(),
                node: task.node_id.clone().filter(|id| !id.is_empty()).map(NodeId),
                alive: state.is_some_and(alive),
                running: state == Some(TaskState::RUNNING),
                wanted: matches!(task.desired_state, Some(TaskState::RUNNING | TaskState::READY)),
            };
            (view.alive || view.wanted).then_some(view)
        })
        .collect()
}

fn alive(state: TaskState) -> bool {
    match state {
        TaskState::ASSIGNED
        | TaskState::ACCEPTED
        | TaskState::PREPARING
        | TaskState::READY
        | TaskState::STARTING
        | TaskState::RUNNING => true,
        TaskState::NEW
        | TaskState::ALLOCATED
        | TaskState::PENDING
        | TaskState::COMPLETE
        | TaskState::SHUTDOWN
        | TaskState::FAILED
        | TaskState::REJECTED
        | TaskState::REMOVE
        | TaskState::ORPHANED => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(json: serde_json::Value) -> Task {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_task_lives_until_its_state_says_so() {
        let tasks = [
            task(serde_json::json!({"ServiceID": "s1", "NodeID": "n1", "DesiredState": "shutdown",
                "Status": {"State": "starting"}})),
            task(serde_json::json!({"ServiceID": "s1", "NodeID": "n1", "DesiredState": "shutdown",
                "Status": {"State": "shutdown"}})),
            task(serde_json::json!({"ServiceID": "s1", "DesiredState": "running", "Status": {"State": "pending"}})),
            task(serde_json::json!({"ServiceID": "gone", "NodeID": "n2", "DesiredState": "remove",
                "Status": {"State": "running"}})),
            task(serde_json::json!({"NodeID": "n2", "DesiredState": "running", "Status": {"State": "running"}})),
        ];
        let views = task_views(&tasks, &HashMap::from([("s1", "web")]));
        let brief: Vec<_> =
            views.iter().map(|t| (t.service.as_str(), t.node.is_some(), t.alive, t.running, t.wanted)).collect();
        assert_eq!(
            brief,
            [("web", true, true, false, false), ("web", false, false, false, true), ("gone", true, true, true, false)]
        );
    }

    #[test]
    fn a_node_is_read_as_the_swarm_records_it() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "ID": "n1", "Version": {"Index": 42},
            "Spec": {"Role": "manager", "Availability": "pause", "Labels": {}},
            "Description": {"Hostname": "m1", "Engine": {"EngineVersion": "20.10.24"}},
            "Status": {"State": "ready", "Addr": "0.0.0.0"},
            "ManagerStatus": {"Leader": true, "Reachability": "reachable", "Addr": "[fd00::7]:2377"}
        }))
        .unwrap();
        let view = node_view(node).unwrap();
        assert_eq!((view.addr.as_str(), view.index, view.hostname.as_str()), ("fd00::7", 42, "m1"));
        assert_eq!((view.role, view.availability), (Role::Manager, Availability::Pause));
        assert!(view.ready && view.leader && view.reachable);
    }

    #[test]
    fn a_demoted_manager_is_one_until_it_has_left_raft() {
        let role = |manager_status: serde_json::Value| {
            let node = serde_json::json!({"ID": "n1", "Spec": {"Role": "worker"}, "ManagerStatus": manager_status});
            node_view(serde_json::from_value(node).unwrap()).unwrap().role
        };
        assert_eq!(role(serde_json::json!({"Reachability": "reachable"})), Role::Manager);
        assert_eq!(role(serde_json::Value::Null), Role::Worker);
    }

    #[test]
    fn global_services_are_named() {
        let services: Vec<Service> = serde_json::from_value(serde_json::json!([
            {"ID": "1", "Spec": {"Name": "web", "Mode": {"Global": {}}}},
            {"ID": "3", "Spec": {"Name": "some", "Mode": {"Global": {}},
                "TaskTemplate": {"Placement": {"Constraints": ["node.role==worker"]}}}},
            {"ID": "2", "Spec": {"Name": "db", "Mode": {"Replicated": {"Replicas": 1}}}},
        ]))
        .unwrap();
        assert_eq!(global_services(&services), ["web"]);
    }
}
