//! The end of all records, when everything is taken away.

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::Config;
use bollard::query_parameters::ListConfigsOptionsBuilder;
use requeen_protocol::RolloutId;

use super::{PREFIX, Pauses, RecordError, Trouble, labels, load_all, opened};
use crate::effect::{InSwarm, perform};
use crate::record::is_open;

/// Names of all records, the unreadable ones too, sorted. Other people's configs are none.
pub async fn names(docker: &Docker) -> Result<Vec<String>, RecordError> {
    let filters = HashMap::from([("name".to_owned(), vec![PREFIX.to_owned()])]);
    let options = ListConfigsOptionsBuilder::default().filters(&filters).build();
    let configs = docker.list_configs(Some(options)).await.map_err(RecordError::List)?;
    let mut names: Vec<String> = configs.into_iter().filter_map(record_name).collect();
    names.sort();
    Ok(names)
}

fn record_name(config: Config) -> Option<String> {
    let spec = config.spec?;
    let name = spec.name.filter(|name| name.starts_with(PREFIX))?;
    spec.labels.is_some_and(|all| all.contains_key(labels::PHASE)).then_some(name)
}

/// Removes all records, and gives their names. Refuses while a rollout is open.
///
/// # Errors
///
/// [`RecordError::Open`], or what the engine said last when it had no leader for long.
pub async fn remove_all(docker: &Docker) -> Result<Vec<String>, RecordError> {
    if let Some(open) = load_all(docker).await?.iter().find(|stored| is_open(&stored.rollout)) {
        return Err(opened(open));
    }
    let names = names(docker).await?;
    let mut pauses = Pauses::new();
    for name in &names {
        let id = || RolloutId::from(name.strip_prefix(PREFIX).unwrap_or(name));
        loop {
            match perform((docker, InSwarm::RemoveRecord { config: name })).await {
                Err(error) if Trouble::of(&error) == Trouble::NotFound => break,
                Err(error) if Trouble::of(&error).passes() && pauses.pause().await => {}
                done => {
                    done.map_err(|source| RecordError::Remove { id: id(), source })?;
                    break;
                }
            }
        }
    }
    Ok(names)
}
