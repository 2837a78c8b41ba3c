//! The record of a rollout: one swarm config, in the raft store that every swarm has.
//!
//! Its data is the immutable request and its labels hold what changes; see [`labels`]. Every write is
//! a compare-and-swap on the object's version. The store can't be written while the managers elect a
//! leader, just when they restart, so every caller has to bear that a write fails and comes later.

mod labels;
mod remove;
mod says;
mod trouble;

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::{Config, ConfigSpec};
use bollard::query_parameters::ListConfigsOptionsBuilder;
use requeen_protocol::RolloutId;

use crate::effect::{InSwarm, perform};
use crate::plan::model::{Phase, Rollout};
pub(crate) use labels::PHASE as MARK;
pub use labels::Unreadable;
pub use remove::{names, remove_all};
pub use trouble::Trouble;

/// What the names of records begin with; the rollout's ID follows.
pub(crate) const PREFIX: &str = "requeen-";

/// How many records of rollouts that have ended are kept.
const KEPT: usize = 10;

/// How often a write is tried again when somebody else was faster, or while there is no leader.
const ATTEMPTS: u32 = 20;

/// The longest pause between two attempts. An election takes 10 to 20 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The record can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// `GET /configs` failed.
    #[error("the records of rollouts can't be listed")]
    List(#[source] DockerError),
    /// `POST /configs/create` failed.
    #[error("the record of rollout {id} can't be created")]
    Create {
        /// Which rollout.
        id: RolloutId,
        /// What the engine said.
        source: DockerError,
    },
    /// `POST /configs/…/update` failed.
    #[error("the record of rollout {id} can't be written")]
    Write {
        /// Which rollout.
        id: RolloutId,
        /// What the engine said.
        source: DockerError,
    },
    /// `DELETE /configs/…` failed.
    #[error("the record of rollout {id} can't be removed")]
    Remove {
        /// Which rollout.
        id: RolloutId,
        /// What the engine said.
        source: DockerError,
    },
    /// A record of a rollout that may be open does not read.
    #[error("the swarm config {name} is a rollout's record that can't be read")]
    Unreadable {
        /// Name of the config.
        name: String,
        /// Why.
        source: Unreadable,
    },
    /// Another rollout is open.
    #[error("rollout {id} is open")]
    Open {
        /// Which.
        id: RolloutId,
        /// How it stands.
        phase: Phase,
    },
    /// No rollout is open.
    #[error("no rollout is open")]
    NoneOpen,
}

impl RecordError {
    /// What the failure means, where the engine said something.
    pub fn trouble(&self) -> Option<Trouble> {
        self.docker().map(Trouble::of)
    }

    /// What the Docker client said, where it said something.
    pub fn docker(&self) -> Option<&DockerError> {
        match self {
            RecordError::List(source)
            | RecordError::Create { source, .. }
            | RecordError::Write { source, .. }
            | RecordError::Remove { source, .. } => Some(source),
            RecordError::Unreadable { .. } | RecordError::Open { .. } | RecordError::NoneOpen => None,
        }
    }
}

/// A rollout as it was read, with what a compare-and-swap needs.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The rollout.
    pub rollout: Rollout,
    config: String,
    version: u64,
    spec: ConfigSpec,
}

/// Whether a rollout has not ended.
pub fn is_open(rollout: &Rollout) -> bool {
    match rollout.phase {
        Phase::Running | Phase::Paused | Phase::Halted { .. } | Phase::Aborting => true,
        Phase::Ended { .. } => false,
    }
}

/// A record that another version wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Name of the config.
    pub name: String,
    /// Whether its rollout has ended, as far as that reads.
    pub ended: bool,
    /// Why it does not read.
    pub why: Unreadable,
}

impl Unread {
    /// ID of its rollout.
    pub fn id(&self) -> &str {
        self.name.strip_prefix(PREFIX).unwrap_or(&self.name)
    }
}

/// Every record, oldest first. One that has ended and does not read (another version wrote it) is
/// left out.
pub async fn load_all(docker: &Docker) -> Result<Vec<Stored>, RecordError> {
    let (all, unread) = load_each(docker).await?;
    match unread.into_iter().find(|unread| !unread.ended) {
        Some(open) => Err(RecordError::Unreadable { name: open.name, source: open.why }),
        None => Ok(all),
    }
}

/// Every record that reads, oldest first, and every one that doesn't.
pub async fn load_each(docker: &Docker) -> Result<(Vec<Stored>, Vec<Unread>), RecordError> {
    let filters = HashMap::from([("name".to_owned(), vec![PREFIX.to_owned()])]);
    let options = ListConfigsOptionsBuilder::default().filters(&filters).build();
    let configs = docker.list_configs(Some(options)).await.map_err(RecordError::List)?;
    let (mut all, mut unread) = (Vec::new(), Vec::new());
    for config in configs {
        match read(config) {
            Some(Ok(stored)) => all.push(stored),
            Some(Err(other)) => unread.push(other),
            None => {}
        }
    }
    all.sort_by(|a, b| age(a).cmp(&age(b)));
    unread.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((all, unread))
}

/// What orders records. Epochs grow from rollout to rollout, whatever is done to the clocks of managers.
fn age(stored: &Stored) -> (u64, jiff::Timestamp, &RolloutId) {
    let Rollout { request, owner, .. } = &stored.rollout;
    (owner.epoch, request.started_at, &request.id)
}

fn read(config: Config) -> Option<Result<Stored, Unread>> {
    let (Some(id), Some(mut spec)) = (config.id, config.spec) else { return None };
    let all_labels = spec.labels.take().unwrap_or_default();
    // The prefix is a plain word: other people's configs may begin with it too.
    if !all_labels.contains_key(labels::PHASE) {
        return None;
    }
    let data = spec.data.as_deref().and_then(|data| BASE64.decode(data).ok()).unwrap_or_default();
    Some(match labels::rollout(&data, &all_labels) {
        Ok(rollout) => Ok(Stored {
            rollout,
            config: id,
            version: config.version.and_then(|version| version.index).unwrap_or_default(),
            spec,
        }),
        Err(why) => Err(Unread {
            ended: matches!(labels::phase(&all_labels), Ok(Phase::Ended { .. })),
            name: spec.name.unwrap_or(id),
            why,
        }),
    })
}

/// The rollout that is open, or else the one that ended last.
pub async fn load_last(docker: &Docker) -> Result<Option<Stored>, RecordError> {
    Ok(last(load_all(docker).await?))
}

/// See [`load_last`].
pub fn last(all: Vec<Stored>) -> Option<Stored> {
    let open = all.iter().position(|stored| is_open(&stored.rollout));
    match open {
        Some(open) => all.into_iter().nth(open),
        None => all.into_iter().next_back(),
    }
}

/// Records a new rollout, unless one is open, and forgets the oldest of those that ended.
///
/// A call whose answer was lost may have been carried out, so what is there is looked at before it is
/// repeated.
pub async fn create(docker: &Docker, rollout: &Rollout) -> Result<(), RecordError> {
    let id = &rollout.request.id;
    let spec = ConfigSpec {
        name: Some(format!("{PREFIX}{id}")),
        labels: Some(labels::labels(rollout)),
        data: Some(BASE64.encode(labels::data(&rollout.request))),
        templating: None,
    };
    let mut pauses = Pauses::new();
    loop {
        match create_once(docker, rollout, &spec).await {
            Err(error) if error.trouble().is_some_and(Trouble::passes) && pauses.pause().await => {}
            done => return done,
        }
    }
}

async fn create_once(docker: &Docker, rollout: &Rollout, spec: &ConfigSpec) -> Result<(), RecordError> {
    let id = &rollout.request.id;
    let mine = |stored: &Stored| stored.rollout.request.id == *id;
    let before = load_all(docker).await?;
    if let Some(open) = before.iter().find(|stored| is_open(&stored.rollout) && !mine(stored)) {
        return Err(opened(open));
    }
    if !before.iter().any(mine) {
        let made = perform((docker, InSwarm::CreateRecord { spec: spec.clone() })).await;
        made.map_err(|source| RecordError::Create { id: id.clone(), source })?;
    }
    // Two coordinators may have looked at the same time. Both look again, and the higher ID yields.
    let after = load_all(docker).await?;
    let rival = after.iter().find(|stored| is_open(&stored.rollout) && stored.rollout.request.id < *id);
    if let (Some(rival), Some(own)) = (rival, after.iter().find(|stored| mine(stored))) {
        remove(docker, own).await?;
        return Err(opened(rival));
    }
    let ended: Vec<&Stored> = after.iter().filter(|stored| !is_open(&stored.rollout)).collect();
    for old in &ended[..ended.len().saturating_sub(KEPT)] {
        // It does no harm; the next rollout tries again.
        if let Err(error) = remove(docker, old).await {
            tracing::debug!(%error, "an old record stays");
        }
    }
    Ok(())
}

fn opened(stored: &Stored) -> RecordError {
    RecordError::Open { id: stored.rollout.request.id.clone(), phase: stored.rollout.phase.clone() }
}

async fn remove(docker: &Docker, stored: &Stored) -> Result<(), RecordError> {
    perform((docker, InSwarm::RemoveRecord { config: &stored.config }))
        .await
        .map_err(|source| RecordError::Remove { id: stored.rollout.request.id.clone(), source })
}

/// Writes `rollout` in the place of what was read as `stored`, if nobody has written since.
///
/// # Errors
///
/// [`RecordError::Write`], with [`Trouble::OutOfSequence`] where somebody has.
pub async fn write(docker: &Docker, stored: &Stored, rollout: &Rollout) -> Result<(), RecordError> {
    let failed = |source| RecordError::Write { id: rollout.request.id.clone(), source };
    // The rest of the object is sent as it was read: only labels may change.
    let spec = ConfigSpec { labels: Some(labels::labels(rollout)), ..stored.spec.clone() };
    let says = says::says(&stored.rollout, rollout);
    let change = InSwarm::WriteRecord { config: &stored.config, version: stored.version, spec, says };
    perform((docker, change)).await.map_err(failed)
}

/// Changes the open rollout, and reads and changes it again for as long as somebody else is faster or
/// the managers have no leader, within limits. Gives what `change` gave, and the rollout as written.
///
/// # Errors
///
/// What `change` refuses, [`RecordError::NoneOpen`], or what the engine said last.
pub async fn update<T, E: From<RecordError>>(
    docker: &Docker,
    mut change: impl FnMut(&mut Rollout) -> Result<T, E>,
) -> Result<(T, Rollout), E> {
    let mut pauses = Pauses::new();
    loop {
        let error = match load_last(docker).await {
            Ok(Some(stored)) if is_open(&stored.rollout) => {
                let mut rollout = stored.rollout.clone();
                let given = change(&mut rollout)?;
                if rollout == stored.rollout {
                    return Ok((given, rollout));
                }
                match write(docker, &stored, &rollout).await {
                    Ok(()) => return Ok((given, rollout)),
                    Err(error) => error,
                }
            }
            Ok(Some(_) | None) => return Err(RecordError::NoneOpen.into()),
            Err(error) => error,
        };
        let again = error.trouble().is_some_and(|trouble| trouble == Trouble::OutOfSequence || trouble.passes());
        if !again || !pauses.pause().await {
            return Err(error.into());
        }
    }
}

/// The pauses between attempts: they double up to [`LONGEST_PAUSE`], and end.
struct Pauses {
    left: u32,
    next: Duration,
}

impl Pauses {
    fn new() -> Self {
        Self { left: ATTEMPTS, next: Duration::from_millis(20) }
    }

    /// Waits, unless there have been enough.
    async fn pause(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        true
    }
}

#[cfg(test)]
mod tests;
