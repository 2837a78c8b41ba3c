//! Standalone containers around the engine's stop: recorded and stopped before it, running again after it.
//!
//! Nothing here fails an upgrade but one thing: where what runs can't be recorded, or a container that its owner never wants
//! killed does not end, the engine is not stopped. A container that does not run again is reported, and how to start it.

use std::collections::BTreeMap;
use std::time::Duration;

use requeen_protocol::{LeaseId, Problem};

use super::room;
use super::work::{Tools, blocking};
use crate::effect::{self, Asked, Effect, EffectError};
use crate::engine::api::{self, Api};
use crate::engine::containers;
use crate::host::HostRoot;
use crate::journal::{Phase, Work};
use crate::standalone::{CONTAINERS_PATH, Container, Failure, Record, RecordError, State};
use crate::words::chain;

/// A container that is never to be killed is waited for this long before the node is given up, seconds.
const NEVER_KILLED_SECS: u64 = 600;

/// An engine that does not answer this soon is not asked to stop containers one by one.
const PING_LIMIT: Duration = Duration::from_secs(2);

impl Tools {
    /// Whether the engine is up, or about to be. One whose stop is under way takes along what runs.
    pub(super) async fn engine_is_up(&self) -> Result<bool, String> {
        let control = std::sync::Arc::clone(&self.control);
        let unit = blocking(move || control.state().map_err(|error| chain(&error))).await?;
        Ok(matches!(unit.active.as_str(), "active" | "reloading" | "activating"))
    }

    /// Records what runs beside the swarm's tasks, and stops what would not come back by itself. Done again after a crash
    /// it goes on where it was.
    pub(super) async fn set_aside(&self, lease: &LeaseId) -> Result<(), String> {
        let known = Record::load(&self.root).map_err(|error| chain(&error))?.filter(|record| record.lease == *lease);
        let record = match known {
            Some(record) if record.state == State::Away => record,
            before => {
                let before = before.map(|record| record.containers).unwrap_or_default();
                let Some(record) = self.look(lease, before).await? else { return Ok(()) };
                let mut stored = self.remember(&record);
                if stored.as_ref().is_err_and(|error| room::is_full(error)) && room::make(&self.root) {
                    stored = self.remember(&record);
                }
                stored.map_err(|error| chain(&error))?;
                record
            }
        };
        for container in record.to_stop() {
            self.stop(lease, container).await?;
        }
        self.waiting.send_replace(None);
        Ok(())
    }

    /// The same before the way back, as far as the new engine is well enough to be asked.
    pub(super) async fn set_aside_again(&self, lease: &LeaseId) {
        let ours = || Record::load(&self.root).ok().flatten().filter(|record| record.lease == *lease);
        if ours().is_none() {
            return;
        }
        if self.engine_is_up().await.unwrap_or(false)
            && api::ping(&self.root, PING_LIMIT).await.is_ok()
            && let Err(why) = self.set_aside(lease).await
        {
            tracing::warn!(%lease, step = "switch-back", "containers are left to the engine's stop: {why}");
        }
        // Whatever came of it, the stop that follows ends what runs.
        if let Some(mut record) = ours().filter(|record| record.state != State::Away) {
            record.state = State::Away;
            if let Err(error) = self.remember(&record) {
                tracing::warn!(%lease, step = "switch-back", "{}", chain(&error));
            }
        }
    }

    fn remember(&self, record: &Record) -> Result<(), EffectError> {
        effect::perform(&self.root, Effect::RecordContainers(record))
    }

    /// What runs now, and what ran when the work began.
    async fn look(&self, lease: &LeaseId, before: Vec<Container>) -> Result<Option<Record>, String> {
        let running = async { containers::connect(&self.root).await?.standalone().await };
        let mut all =
            running.await.map_err(|error| format!("what runs beside tasks is not known: {}", chain(&error)))?;
        for container in before {
            if all.iter().all(|running| running.id != container.id) {
                all.push(container);
            }
        }
        Ok((!all.is_empty()).then(|| Record::new(lease.clone(), all)))
    }

    async fn stop(&self, lease: &LeaseId, container: &Container) -> Result<(), String> {
        let name = &container.name;
        self.waiting.send_replace(Some(format!("container {name} to end")));
        let patience = container.patience_secs();
        let limit = Duration::from_secs(patience.unwrap_or(NEVER_KILLED_SECS));
        let stop = Asked::StopContainer { id: &container.id, patience: limit };
        match (effect::ask(&self.root, stop).await, patience) {
            (Ok(()), _) => tracing::info!(%lease, step = "containers", "container {name} has ended"),
            (Err(error), Some(_)) => {
                // The engine's own stop ends it, or kills it.
                tracing::warn!(%lease, step = "containers", "container {name} is left to the engine: {}", chain(&error));
            }
            (Err(error), None) => {
                self.waiting.send_replace(None);
                return Err(format!(
                    "container {name}, which is never to be killed, has not ended: {}; stop it, then start again",
                    chain(&error)
                ));
            }
        }
        Ok(())
    }

    /// Runs again what ran before and does not run. True if nothing is left to do; else it may be tried once more.
    pub(super) async fn bring_back(&self, lease: &LeaseId) -> bool {
        let mut record = match Record::load(&self.root) {
            Ok(Some(record)) if record.lease == *lease => record,
            Ok(Some(_) | None) => return true,
            Err(error) => {
                tracing::warn!(%lease, step = "containers", "{}", chain(&error));
                return true;
            }
        };
        let still: Vec<&Container> = match &record.state {
            State::Away => record.to_run().collect(),
            State::Back { failed } => record
                .to_run()
                .filter(|container| failed.iter().any(|failure| failure.name == container.name))
                .collect(),
        };
        if still.is_empty() && record.state != State::Away {
            return true;
        }
        let failed = self.run(lease, &still).await;
        self.waiting.send_replace(None);
        let done = failed.is_empty();
        record.state = State::Back { failed };
        if let Err(error) = self.remember(&record) {
            // Found as it was it is only looked at once more.
            tracing::warn!(%lease, step = "containers", "{}", chain(&error));
        }
        done
    }

    async fn run(&self, lease: &LeaseId, wanted: &[&Container]) -> Vec<Failure> {
        let asked = async {
            let api = containers::connect(&self.root).await?;
            let running = api.standalone().await?;
            Ok::<_, api::ApiError>((api, running))
        };
        let (api, running) = match asked.await {
            Ok(asked) => asked,
            Err(error) => {
                let why = chain(&error);
                return wanted.iter().map(|container| not_started(container, &why)).collect();
            }
        };
        let running: BTreeMap<&str, bool> =
            running.iter().map(|container| (container.id.as_str(), container.paused)).collect();
        let mut failed = Vec::new();
        for container in wanted {
            self.waiting.send_replace(Some(format!("container {} to start", container.name)));
            failed
                .extend(run_one(&self.root, &api, container, running.get(container.id.as_str()).copied()).await.err());
        }
        for failure in &failed {
            tracing::warn!(%lease, step = "containers", "container {}: {}; hint: {}", failure.name, failure.why, failure.hint);
        }
        failed
    }
}

/// Makes a container what it was; `paused` is what it is, if it runs.
async fn run_one(root: &HostRoot, api: &Api, container: &Container, paused: Option<bool>) -> Result<(), Failure> {
    let id = &container.id;
    if paused.is_none() {
        effect::ask(root, Asked::StartContainer { api, id })
            .await
            .map_err(|error| not_started(container, &chain(&error)))?;
        tracing::info!(step = "containers", "container {} runs again", container.name);
    }
    if container.paused && paused != Some(true) {
        effect::ask(root, Asked::PauseContainer { api, id }).await.map_err(|error| Failure {
            name: container.name.clone(),
            why: format!("it was paused, runs now, and can't be paused: {}", chain(&error)),
            hint: format!("`docker pause {}` on the node", container.name),
        })?;
    }
    Ok(())
}

fn not_started(container: &Container, why: &str) -> Failure {
    Failure {
        name: container.name.clone(),
        why: format!("it ran before the engine was stopped, and can't be started again: {why}"),
        hint: format!("`docker start {}` on the node", container.name),
    }
}

/// What the operator has to know of the containers of this work.
pub(super) fn troubles(root: &HostRoot, work: Option<&Work>) -> Vec<Problem> {
    let Some(work) = work else { return Vec::new() };
    match Record::load(root) {
        Ok(Some(record)) if record.lease == work.lease => record.troubles(!matches!(work.phase, Phase::Stuck { .. })),
        Ok(Some(_) | None) => Vec::new(),
        Err(error @ (RecordError::Read(_) | RecordError::Damaged(_) | RecordError::Schema { .. })) => vec![Problem {
            what: chain(&error),
            hint: format!(
                "see with `docker ps --all` on the node what does not run that should; then remove {CONTAINERS_PATH}"
            ),
        }],
        Err(error @ RecordError::Write(_)) => {
            vec![Problem { what: chain(&error), hint: "look at the file system".to_owned() }]
        }
    }
}
