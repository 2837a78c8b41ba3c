//! The driver: observe, plan, do what the plan says, again and again. It makes no choice of its own and
//! remembers nothing that matters: killed between any two instructions and started again, it finds
//! the record and goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::NodeSpecAvailabilityEnum;
use bollard::query_parameters::UpdateNodeOptionsBuilder;
use jiff::Timestamp;
use requeen_protocol::{NodeId, RolloutId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::observe::ObserveError;
use crate::ops::Ops;
use crate::ops::view::millis_between;
use crate::plan::model::{Availability, Phase, Rollout, Step};
use crate::plan::{self, Move};
use crate::record::{self, RecordError, Trouble, is_open};
use crate::server::words::chain;

/// Longest time between two rounds while a node is in work. The swarm tells nobody when a task ends
/// on another node, so it is asked.
const IN_WORK: Duration = Duration::from_millis(250);

/// Longest time between two rounds while a rollout is open.
const OPEN: Duration = Duration::from_millis(500);

/// Longest time between two rounds while there is none.
const IDLE: Duration = Duration::from_secs(2);

/// Shortest time between two rounds; or as long as the last one took, so that a large swarm's
/// managers have as much time for others.
const SHORTEST: Duration = Duration::from_millis(50);

/// How old the owner's last sign of life in the record may become, milliseconds.
const RENEW_MS: u64 = 20_000;

/// A round that did not get to its end. The next one begins anew.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error("the swarm can't be observed")]
    Observe(#[from] ObserveError),
    #[error("the rollout's record can't be used")]
    Record(#[from] RecordError),
    #[error("node {node} can't be read, to make it {to}")]
    ReadNode { node: NodeId, to: Availability, source: DockerError },
    #[error("node {node} can't be made {to}")]
    SetAvailability { node: NodeId, to: Availability, source: DockerError },
}

/// How things stand after a round; it decides when the next one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// No rollout is open.
    Idle,
    /// One is, but no node is in work.
    Open,
    /// A node is in work.
    InWork,
}

impl Pace {
    fn patience(self) -> Duration {
        match self {
            Pace::Idle => IDLE,
            Pace::Open => OPEN,
            Pace::InWork => IN_WORK,
        }
    }

    fn is_open(self) -> bool {
        match self {
            Pace::Idle => false,
            Pace::Open | Pace::InWork => true,
        }
    }
}

/// Drives this node's rollouts until `shutdown`. Nothing that fails ends it.
pub async fn run(ops: Arc<Ops>, shutdown: CancellationToken) {
    let mut log = Log::default();
    let mut pace = Pace::Idle;
    loop {
        // Before the round, so that what changes during it is not missed.
        let mut changed = ops.hub.changed();
        let begun = Instant::now();
        tokio::select! {
            () = shutdown.cancelled() => return,
            round = round(&ops, &mut log) => match round {
                Ok(next) => {
                    log.worked();
                    pace = next;
                }
                Err(error) => {
                    log.failed(&error);
                    show_waiting(&ops);
                }
            }
        }
        let took = begun.elapsed();
        let news = async {
            tokio::select! {
                () = ops.wake.notified() => {}
                _ = changed.changed(), if pace.is_open() => {}
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tokio::time::timeout(pace.patience(), news) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep_until(begun + took + took.max(SHORTEST)) => {}
        }
    }
}

/// One round. Everything that it does is safe to do twice.
async fn round(ops: &Ops, log: &mut Log) -> Result<Pace, RoundError> {
    let observed = ops.observe().await?;
    let docker = ops.engine.client().await?;
    let _turn = ops.turn.lock().await;

    let Some(stored) = record::load_last(&docker).await? else {
        log.nothing_open(ops.last_open().as_ref());
        ops.knows(None, BTreeMap::new());
        ops.tell(None);
        return Ok(Pace::Idle);
    };
    let rollout = &stored.rollout;
    if !is_open(rollout) {
        log.ended(rollout);
        ops.knows(Some(rollout), BTreeMap::new());
        ops.tell(None);
        return Ok(Pace::Idle);
    }

    let now = (ops.world.now)();
    let plan = plan::plan(rollout, &observed, now);
    ops.knows(Some(rollout), plan.waiting);
    if rollout.owner.node != observed.me {
        // Its agents are told what the record says, whoever wrote it; nothing is decided here.
        log.standby(rollout);
        ops.tell(Some(rollout.clone()));
        return Ok(Pace::Open);
    }
    log.drives(rollout);

    let next = with_moves(rollout, &plan.moves, now);
    if next != *rollout {
        match record::write(&docker, &stored, &next).await {
            // Somebody else wrote: what was planned is not so any more.
            Err(error) if error.trouble() == Some(Trouble::OutOfSequence) => {
                ops.wake.notify_one();
                return Ok(Pace::Open);
            }
            done => done?,
        }
        log.steps(rollout, &next);
        ops.knows(Some(&next), plan::plan(&next, &observed, now).waiting);
    }
    let pace = if next.nodes.values().any(|entry| entry.step.in_work()) { Pace::InWork } else { Pace::Open };
    ops.tell(Some(next));

    for planned in &plan.moves {
        match planned {
            Move::SetAvailability { node, to } => set_availability(&docker, node, *to).await?,
            Move::Record { .. } | Move::Phase(_) => {}
        }
    }
    Ok(pace)
}

/// Keeps `status` truthful while the swarm can't be seen.
fn show_waiting(ops: &Ops) {
    if let (Some(observed), Some(rollout)) = (ops.last_observed(), ops.last_open()) {
        let plan = plan::plan(&rollout, &observed, (ops.world.now)());
        ops.knows(Some(&rollout), plan.waiting);
    }
}

/// The rollout with the moves that belong into its record, and a sign of life where one is due.
fn with_moves(rollout: &Rollout, moves: &[Move], now: Timestamp) -> Rollout {
    let mut next = rollout.clone();
    for planned in moves {
        match planned {
            Move::Record { node, step } => {
                if let Some(entry) = next.nodes.get_mut(node) {
                    if entry.step.name() != step.name() {
                        let ms = millis_between(rollout.request.started_at, now);
                        entry.times.push((step.name().to_owned(), ms));
                    }
                    entry.step = step.clone();
                }
            }
            Move::Phase(phase) => next.phase = phase.clone(),
            Move::SetAvailability { .. } => {}
        }
    }
    if next != *rollout || millis_between(rollout.owner.renewed, now) >= RENEW_MS {
        next.owner.renewed = now;
    }
    next
}

/// Gives the node this availability. The whole spec is replaced by an update, so all else in it is
/// sent as it was read.
async fn set_availability(docker: &Docker, node: &NodeId, to: Availability) -> Result<(), RoundError> {
    let read = |source| RoundError::ReadNode { node: node.clone(), to, source };
    let found = docker.inspect_node(node.as_str()).await.map_err(read)?;
    let mut spec = found.spec.unwrap_or_default();
    let wanted = match to {
        Availability::Active => NodeSpecAvailabilityEnum::ACTIVE,
        Availability::Pause => NodeSpecAvailabilityEnum::PAUSE,
        Availability::Drain => NodeSpecAvailabilityEnum::DRAIN,
    };
    if spec.availability == Some(wanted) {
        return Ok(());
    }
    spec.availability = Some(wanted);
    let version = found.version.and_then(|version| version.index).unwrap_or_default();
    let options = UpdateNodeOptionsBuilder::default().version(i64::try_from(version).unwrap_or(i64::MAX)).build();
    match docker.update_node(node.as_str(), spec, options).await {
        // A node's object changes often by itself; the next round tries again.
        Err(error) if Trouble::of(&error) == Trouble::OutOfSequence => Ok(()),
        done => done.map_err(|source| RoundError::SetAvailability { node: node.clone(), to, source }),
    }
}

/// What was logged, so that a loop says everything once.
#[derive(Default)]
struct Log {
    trouble: Option<String>,
    driven: Option<RolloutId>,
    watched: Option<RolloutId>,
}

impl Log {
    fn failed(&mut self, error: &RoundError) {
        let text = chain(error);
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(error = text, "trying again");
            self.trouble = Some(text);
        }
    }

    fn worked(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("the swarm answers again");
        }
    }

    fn drives(&mut self, rollout: &Rollout) {
        let id = &rollout.request.id;
        if self.driven.as_ref() != Some(id) {
            tracing::info!(rollout = %id, epoch = rollout.owner.epoch, "driving");
            self.driven = Some(id.clone());
        }
    }

    fn standby(&mut self, rollout: &Rollout) {
        let id = &rollout.request.id;
        if self.watched.as_ref() != Some(id) {
            tracing::info!(rollout = %id, owner = %rollout.owner.node, "standby: another manager drives");
            self.watched = Some(id.clone());
        }
    }

    /// The rollout's last word is written when it ends; a driver that was away says it too.
    fn ended(&mut self, rollout: &Rollout) {
        let id = &rollout.request.id;
        if self.driven.take_if(|driven| driven == id).is_some() || self.watched.take_if(|seen| seen == id).is_some() {
            tracing::info!(rollout = %id, "no rollout is open any more");
        }
    }

    fn nothing_open(&mut self, before: Option<&Rollout>) {
        if let Some(before) = before {
            tracing::warn!(rollout = %before.request.id, "the record of the open rollout was removed");
        }
        self.driven = None;
        self.watched = None;
    }

    fn steps(&self, before: &Rollout, after: &Rollout) {
        for (node, entry) in &after.nodes {
            let was = before.nodes.get(node).map(|entry| entry.step.name());
            if was != Some(entry.step.name()) {
                let lease = match &entry.step {
                    Step::Working { lease, .. } => Some(lease.id.as_str()),
                    Step::Waiting { .. } | Step::Held { .. } | Step::Restoring { .. } | Step::Done { .. } => None,
                };
                tracing::info!(node = entry.hostname, lease, step = entry.step.name(), "step");
            }
        }
        if before.phase != after.phase {
            let rollout = &after.request.id;
            match &after.phase {
                Phase::Halted { reason } => tracing::warn!(%rollout, reason, "halted"),
                Phase::Ended { aborted } => tracing::info!(%rollout, aborted, "ended"),
                Phase::Running => tracing::info!(%rollout, "running"),
                Phase::Paused => tracing::info!(%rollout, "paused"),
                Phase::Aborting => tracing::info!(%rollout, "aborting"),
            }
        }
    }
}
