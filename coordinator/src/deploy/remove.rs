//! The agents' services, found and removed: the one that `deploy` makes, and those that a stack file or the printed command
//! made in its place.

use bollard::Docker;
use bollard::models::{Service, ServiceSpec};

use super::{DeployError, spec};
use crate::effect::{InSwarm, perform};
use crate::record::Trouble;

/// A service that puts agents on nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentService {
    /// Its ID.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
}

/// Every service of agents.
pub(crate) async fn services(docker: &Docker) -> Result<Vec<AgentService>, DeployError> {
    let all = docker.list_services(None).await.map_err(DeployError::Services)?;
    let mut agents: Vec<AgentService> = all.into_iter().filter_map(agent_service).collect();
    agents.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(agents)
}

fn agent_service(service: Service) -> Option<AgentService> {
    let (id, spec) = (service.id?, service.spec?);
    is_of_agents(&spec).then(|| AgentService { name: spec.name.unwrap_or_else(|| id.clone()), id })
}

/// By our label; or by our name, if it is global as that one always was.
fn is_of_agents(spec: &ServiceSpec) -> bool {
    let labelled = spec.labels.as_ref().is_some_and(|labels| labels.contains_key(spec::LABEL));
    let global = spec.mode.as_ref().is_some_and(|mode| mode.global.is_some());
    labelled || (global && spec.name.as_deref() == Some(spec::NAME))
}

/// Removes a service. One that is gone already is no failure.
pub(crate) async fn remove(docker: &Docker, service: &AgentService) -> Result<(), DeployError> {
    match perform((docker, InSwarm::RemoveService { id: &service.id })).await {
        Err(error) if Trouble::of(&error) == Trouble::NotFound => Ok(()),
        done => done.map_err(|source| DeployError::Remove { name: service.name.clone(), source }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn agents_are_known_by_label_or_name_and_others_are_not() {
        let named = |name: &str, mode: &str, labels: serde_json::Value| {
            let service = json!({"ID": "s1", "Spec": {"Name": name, "Mode": {mode: {}}, "Labels": labels}});
            agent_service(serde_json::from_value(service).unwrap()).map(|service| service.name)
        };
        for (name, mode, labels, ours) in [
            ("requeen-agent", "Global", json!({}), true),
            ("requeen-agent", "Global", json!({"io.requeen.agent": "0.1.0"}), true),
            ("requeen_agent", "Global", json!({"io.requeen.agent": "stack"}), true),
            ("requeen-agent", "Replicated", json!({}), false),
            ("requeen-agent-of-bees", "Global", json!({}), false),
            ("web", "Global", json!({"io.requeen": "x"}), false),
        ] {
            assert_eq!(named(name, mode, labels).is_some(), ours, "{name} {mode}");
        }
    }
}
