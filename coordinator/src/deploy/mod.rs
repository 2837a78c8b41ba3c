//! Bringing an agent to every node: a global service, made from the image that this server runs.

mod own_image;
mod remove;
mod spec;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::{NodeSpecAvailabilityEnum, Service, ServiceSpec, TaskState};
use bollard::query_parameters::{ListServicesOptionsBuilder, ListTasksOptionsBuilder};

use crate::api::{DeployArgs, Deployed, Failure, FailureKind};
use crate::effect::{InSwarm, perform};
use crate::hub::Hub;
use crate::observe::{Engine, ObserveError};
use crate::server::words::chain;

pub(crate) use own_image::container_id;
pub(crate) use remove::{AgentService, remove, services};
pub(crate) use spec::{NAME, by_hand};

/// How often an update is tried when somebody else changed the service at the same time.
const ATTEMPTS: u32 = 5;

/// An agent that was heard within this time is there, seconds.
const HEARD: u64 = 60;

/// Deploys agents. See the module.
pub(crate) struct Deployer {
    engine: Arc<Engine>,
    hub: Arc<Hub>,
    /// The server's port, which the agents have to know if it is not the default.
    port: u16,
    version: &'static str,
    /// `/proc/self`, where this process learns which container it is.
    proc_self: PathBuf,
}

/// The agents can't be deployed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeployError {
    /// The engine does not answer.
    #[error("the engine can't be asked")]
    Engine(#[source] ObserveError),
    /// The server is no container, so it has no image.
    #[error("this server does not run in a container, so it can't tell which image to deploy")]
    NoContainer,
    /// Its own container is not the engine's.
    #[error("the engine does not know this server's own container {id}")]
    Container {
        /// The container's ID.
        id: String,
        /// What the engine said.
        source: DockerError,
    },
    /// Its own image.
    #[error("the engine does not know this server's own image {id}")]
    Image {
        /// The image's ID.
        id: String,
        /// What the engine said.
        source: DockerError,
    },
    /// The specification does not fit the engine's types.
    #[error("the service can't be described")]
    Spec(#[source] serde_json::Error),
    /// The lookup of the service.
    #[error("the services can't be listed")]
    Services(#[source] DockerError),
    /// Its creation.
    #[error("service {} can't be created", spec::NAME)]
    Create(#[source] DockerError),
    /// Its update.
    #[error("service {} can't be updated", spec::NAME)]
    Update(#[source] DockerError),
    /// Its removal.
    #[error("service {name} can't be removed")]
    Remove {
        /// Its name.
        name: String,
        /// What the engine said.
        source: DockerError,
    },
    /// A service of that name is there, but of another kind.
    #[error("there is a service {} that is not global", spec::NAME)]
    NotGlobal,
    /// The nodes.
    #[error("the nodes can't be listed")]
    Nodes(#[source] DockerError),
    /// The agents' tasks.
    #[error("the agents' tasks can't be listed")]
    Tasks(#[source] DockerError),
}

impl DeployError {
    /// As the CLI gets it.
    pub(crate) fn failure(&self) -> Failure {
        let (kind, hint) = match self {
            DeployError::NoContainer | DeployError::Container { .. } | DeployError::Image { .. } => {
                (FailureKind::Refused, Some("name it: `requeen deploy --image IMAGE`".to_owned()))
            }
            DeployError::NotGlobal => {
                (FailureKind::Refused, Some(format!("remove it first: `docker service rm {}`", spec::NAME)))
            }
            DeployError::Engine(_) | DeployError::Services(_) | DeployError::Nodes(_) | DeployError::Tasks(_) => (
                FailureKind::Unreachable,
                Some("the managers need a leader and a quorum for this: see `docker node ls`".to_owned()),
            ),
            DeployError::Create(_) | DeployError::Update(_) | DeployError::Remove { .. } | DeployError::Spec(_) => {
                (FailureKind::Failed, None)
            }
        };
        Failure { kind, error: chain(self), hint }
    }
}

impl Deployer {
    /// A deployer of agents that call `port`.
    pub(crate) fn new(
        engine: Arc<Engine>,
        hub: Arc<Hub>,
        port: u16,
        version: &'static str,
        proc_self: PathBuf,
    ) -> Self {
        Self { engine, hub, port, version, proc_self }
    }

    /// Creates or updates the service, and says what swarm itself won't do.
    pub(crate) async fn deploy(&self, args: &DeployArgs) -> Result<Deployed, DeployError> {
        let docker = self.engine.client().await.map_err(DeployError::Engine)?;
        let image = self.image(&docker, args.image.as_deref()).await?;
        let current = find(&docker).await?;
        let changed = if args.print { false } else { self.apply(&docker, &image, current).await? };
        Ok(Deployed {
            command: spec::command(&image, self.port, self.version),
            beyond: vec![spec::BEYOND.to_owned()],
            changed,
            by_hand: self.without_agent(&docker, &image).await?,
            image,
        })
    }

    /// The name under which the nodes get the image.
    async fn image(&self, docker: &Docker, given: Option<&str>) -> Result<String, DeployError> {
        if let Some(given) = given {
            // Pinned to what this engine has under that name; one that it has not, each node looks for.
            return Ok(match docker.inspect_image(given).await {
                Ok(image) => {
                    let digests = image.repo_digests.unwrap_or_default();
                    own_image::best_name(image.id.as_deref().unwrap_or(given), &digests, given)
                }
                Err(_) => given.to_owned(),
            });
        }
        let id = own_image::container_id(&self.proc_self).ok_or(DeployError::NoContainer)?;
        let container = docker.inspect_container(&id, None).await;
        let container = container.map_err(|source| DeployError::Container { id, source })?;
        let id = container.image.unwrap_or_default();
        let named = container.config.and_then(|config| config.image).unwrap_or_default();
        let image = docker.inspect_image(&id).await;
        let image = image.map_err(|source| DeployError::Image { id: id.clone(), source })?;
        Ok(own_image::best_name(&id, &image.repo_digests.unwrap_or_default(), &named))
    }

    async fn apply(&self, docker: &Docker, image: &str, current: Option<Service>) -> Result<bool, DeployError> {
        let wanted =
            |old: Option<&ServiceSpec>| spec::service(image, self.port, self.version, old).map_err(DeployError::Spec);
        let Some(mut service) = current else {
            let made = perform((docker, InSwarm::CreateService { spec: wanted(None)? })).await;
            made.map_err(DeployError::Create)?;
            return Ok(true);
        };
        let mut attempt = 0;
        loop {
            let old = service.spec.unwrap_or_default();
            if old.mode.as_ref().is_none_or(|mode| mode.global.is_none()) {
                return Err(DeployError::NotGlobal);
            }
            let new = wanted(Some(&old))?;
            if spec::has_all(&old, &new).map_err(DeployError::Spec)? {
                return Ok(false);
            }
            let version = service.version.and_then(|version| version.index).unwrap_or_default();
            let id = service.id.unwrap_or_else(|| spec::NAME.to_owned());
            attempt += 1;
            match perform((docker, InSwarm::UpdateService { id: &id, version, spec: new })).await {
                Ok(()) => return Ok(true),
                Err(DockerError::DockerResponseServerError { message, .. })
                    if message.contains("update out of sequence") && attempt < ATTEMPTS =>
                {
                    service = docker.inspect_service(&id, None).await.map_err(DeployError::Update)?;
                }
                Err(error) => return Err(DeployError::Update(error)),
            }
        }
    }

    /// Nodes to which swarm gives no task, and that have no agent: their host names and what to type there.
    async fn without_agent(&self, docker: &Docker, image: &str) -> Result<Vec<(String, String)>, DeployError> {
        let options = ListTasksOptionsBuilder::new().filters(&by_name("service")).build();
        // Before the first `deploy` there is no service, and engines call a filter by its name an error.
        let tasks = match docker.list_tasks(Some(options)).await {
            Ok(tasks) => tasks,
            Err(DockerError::DockerResponseServerError { status_code: 404 | 500, .. }) => Vec::new(),
            Err(error) => return Err(DeployError::Tasks(error)),
        };
        let running = |task: &bollard::models::Task| {
            task.status.as_ref().and_then(|status| status.state) == Some(TaskState::RUNNING)
        };
        let mut reached: BTreeSet<_> = tasks.into_iter().filter(running).filter_map(|task| task.node_id).collect();
        let heard = self.hub.agents().into_iter().filter(|(_, agent)| agent.silent_secs < HEARD);
        reached.extend(heard.map(|(node, _)| node.0));

        let mut missing = Vec::new();
        for node in docker.list_nodes(None).await.map_err(DeployError::Nodes)? {
            let availability = node.spec.and_then(|spec| spec.availability);
            let gets_tasks = match availability {
                Some(NodeSpecAvailabilityEnum::PAUSE | NodeSpecAvailabilityEnum::DRAIN) => false,
                Some(NodeSpecAvailabilityEnum::ACTIVE | NodeSpecAvailabilityEnum::EMPTY) | None => true,
            };
            let id = node.id.unwrap_or_default();
            if !gets_tasks && !reached.contains(&id) {
                let hostname = node.description.and_then(|description| description.hostname).unwrap_or(id);
                missing.push((hostname, by_hand(image, self.port)));
            }
        }
        missing.sort();
        Ok(missing)
    }
}

async fn find(docker: &Docker) -> Result<Option<Service>, DeployError> {
    let options = ListServicesOptionsBuilder::new().filters(&by_name("name")).build();
    let services = docker.list_services(Some(options)).await.map_err(DeployError::Services)?;
    // The filter takes a prefix for a match.
    let named = |service: &Service| service.spec.as_ref().and_then(|spec| spec.name.as_deref()) == Some(spec::NAME);
    Ok(services.into_iter().find(named))
}

fn by_name(key: &'static str) -> HashMap<&'static str, Vec<&'static str>> {
    HashMap::from([(key, vec![spec::NAME])])
}
