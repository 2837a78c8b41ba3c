//! Containers of a node that are no swarm tasks: what was recorded of them before the engine's stop, and what follows.
//!
//! Draining does not move them, and all of them end with the engine. Those whose restart policy brings them back are left to
//! it: it stops them with their own timeouts and starts them again, even if nobody of ours lives any more. The others would
//! stay down: they are stopped before, the newest first, and started after, the oldest first.
//!
//! The record is on disk before the first stop. Here is what it says and what it means; who stops and starts is the executor.

use std::fs;
use std::io;

use requeen_protocol::{Fate, LeaseId, Problem, STANDALONE_NAMED, Standalone};
use serde::{Deserialize, Serialize};

use crate::host::HostRoot;
use crate::staged::replace;

/// Where the record is, as a path of the host.
pub const CONTAINERS_PATH: &str = "/var/lib/requeen/agent/containers.json";

/// Version of the record's form that this agent reads and writes.
const SCHEMA: u32 = 1;

/// A container that may take longer than this to end is not left to the engine, seconds: systemd kills an engine that takes
/// longer than 90 s to stop, unless its unit says otherwise.
const LEFT_TO_ENGINE_SECS: i64 = 60;

/// The engine's own patience with a container that names none, seconds.
const DEFAULT_TIMEOUT_SECS: i64 = 10;

/// A running container that is no swarm task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Its ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its restart policy.
    pub restart: Restart,
    /// Whether the engine removes it at its end.
    pub auto_remove: bool,
    /// How long it may take to end before it is killed, seconds; never if negative.
    pub timeout_secs: Option<i64>,
    /// Whether it is paused.
    pub paused: bool,
    /// When it was started, RFC 3339 in UTC, as the engine gave it.
    pub started: String,
}

/// When the engine starts a container again by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    No,
    /// When it failed; not reliably after a restart of the engine.
    OnFailure,
    /// Whenever the engine starts.
    Always,
    /// Whenever the engine starts, unless somebody stopped it.
    UnlessStopped,
}

impl Container {
    /// How long it may take to end, seconds; none where it is never killed.
    pub fn patience_secs(&self) -> Option<u64> {
        u64::try_from(self.timeout_secs.unwrap_or(DEFAULT_TIMEOUT_SECS)).ok()
    }

    /// Whether stopping it and starting it again is the engine's.
    pub fn is_left_to_engine(&self) -> bool {
        let comes_back = match self.restart {
            Restart::Always | Restart::UnlessStopped => true,
            Restart::No | Restart::OnFailure => false,
        };
        let timeout = self.timeout_secs.unwrap_or(DEFAULT_TIMEOUT_SECS);
        comes_back && !self.auto_remove && (0..=LEFT_TO_ENGINE_SECS).contains(&timeout)
    }

    /// What an upgrade does to it.
    pub fn fate(&self) -> Fate {
        if self.auto_remove {
            Fate::Lost
        } else if self.paused {
            Fate::PausedAgain
        } else if self.is_left_to_engine() {
            Fate::WithEngine
        } else {
            Fate::StartedAgain
        }
    }

    /// Its start, so that it sorts: the engine leaves zeros at the end of a fraction out.
    fn start(&self) -> (&str, String) {
        let (second, fraction) = self.started.trim_end_matches('Z').split_once('.').unwrap_or((&self.started, ""));
        (second.trim_end_matches('Z'), format!("{fraction:0<9}"))
    }
}

/// What the operator is told of them: as many as are named, and how many more there are.
pub fn fates(containers: &[Container]) -> (Vec<Standalone>, u32) {
    let fate = |container: &Container| Standalone { name: container.name.clone(), fate: container.fate() };
    let more = containers.len().saturating_sub(STANDALONE_NAMED);
    (containers.iter().take(STANDALONE_NAMED).map(fate).collect(), u32::try_from(more).unwrap_or(u32::MAX))
}

/// The containers that ran before an engine was stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    schema: u32,
    /// Under which lease.
    pub lease: LeaseId,
    /// Oldest first.
    pub containers: Vec<Container>,
    /// Where they are.
    pub state: State,
}

/// Where recorded containers are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "are", rename_all = "kebab-case", deny_unknown_fields)]
pub enum State {
    /// On their way down or down: they have to run again.
    Away,
    /// What can run again does.
    Back {
        /// Those that do not.
        failed: Vec<Failure>,
    },
}

/// A container that could not be made what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Its name.
    pub name: String,
    /// What was tried, and what the engine said.
    pub why: String,
    /// What the operator types.
    pub hint: String,
}

/// The record can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file is there and can't be read.
    #[error("the record of containers {CONTAINERS_PATH} can't be read")]
    Read(#[source] io::Error),
    /// Its content is no record: torn, or changed by hand.
    #[error("the record of containers {CONTAINERS_PATH} is damaged")]
    Damaged(#[source] serde_json::Error),
    /// It was written by another version of the agent.
    #[error("the record of containers {CONTAINERS_PATH} has schema {found}, this agent reads schema {SCHEMA}")]
    Schema {
        /// The version it has.
        found: u64,
    },
    /// The file can't be replaced or removed.
    #[error("the record of containers {CONTAINERS_PATH} can't be written")]
    Write(#[source] io::Error),
}

impl Record {
    /// A record of containers that run.
    pub fn new(lease: LeaseId, mut containers: Vec<Container>) -> Self {
        containers.sort_by(|one, other| one.start().cmp(&other.start()).then_with(|| one.id.cmp(&other.id)));
        Self { schema: SCHEMA, lease, containers, state: State::Away }
    }

    /// Reads the record, if there is one.
    pub fn load(root: &HostRoot) -> Result<Option<Self>, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            schema: u64,
        }
        let bytes = match root.resolve(CONTAINERS_PATH).and_then(fs::read) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RecordError::Read(error)),
        };
        let Versioned { schema } = serde_json::from_slice(&bytes).map_err(RecordError::Damaged)?;
        if schema != u64::from(SCHEMA) {
            return Err(RecordError::Schema { found: schema });
        }
        serde_json::from_slice(&bytes).map(Some).map_err(RecordError::Damaged)
    }

    /// Replaces the record on disk. When this returns it outlives a power failure.
    pub fn store(&self, root: &HostRoot) -> Result<(), RecordError> {
        let write = || -> io::Result<()> {
            let bytes = serde_json::to_vec_pretty(self)?;
            replace(&root.resolve(CONTAINERS_PATH)?, &bytes)
        };
        write().map_err(RecordError::Write)
    }

    /// Those to be stopped before the engine, in order.
    pub fn to_stop(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().rev().filter(|container| !container.is_left_to_engine())
    }

    /// Those that have to run once the engine is up, in order. The engine may have started some of them.
    pub fn to_run(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|container| !container.auto_remove)
    }

    /// What the operator has to know; `engine_up` is false where neither engine runs.
    pub fn troubles(&self, engine_up: bool) -> Vec<Problem> {
        match &self.state {
            State::Back { failed } => failed
                .iter()
                .map(|failure| Problem {
                    what: format!("container {}: {}", failure.name, failure.why),
                    hint: failure.hint.clone(),
                })
                .collect(),
            State::Away if engine_up => Vec::new(),
            State::Away => {
                let names: Vec<&str> = self.to_run().map(|container| container.name.as_str()).collect();
                let names = names.join(" ");
                let what = format!("containers that ran before and do not run now: {names}");
                vec![Problem { what, hint: format!("when the engine runs again: `docker start {names}`") }]
            }
        }
    }
}

/// Removes the record.
pub fn forget(root: &HostRoot) -> Result<(), RecordError> {
    let removed = root.resolve(CONTAINERS_PATH).and_then(fs::remove_file);
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RecordError::Write(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[path = "standalone_tests.rs"]
mod tests;
