//! The driver: observe, plan, do what the plan says, again and again. It makes no choice of its own and
//! remembers nothing that matters: killed between any two instructions and started again, it finds
//! the record and goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::NodeSpecAvailabilityEnum;
use jiff::Timestamp;
use requeen_protocol::{NodeId, RolloutId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clocks::Told;
use crate::effect::{InSwarm, perform};
use crate::observe::ObserveError;
use crate::ops::Ops;
use crate::plan::model::{Availability, Entry, Observed, Phase, Rollout, Step};
use crate::plan::{self, Move, owner, rebuild};
use crate::record::{self, RecordError, Stored, Trouble, is_open};
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
const RENEW_MS: u64 = 10_000;

/// Why a rollout whose record was removed stands still.
const LOST: &str = "its record, a swarm config, was removed; `requeen resume` makes it again from what the nodes keep";

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
    let mut watch = Watch::default();
    let mut pace = Pace::Idle;
    loop {
        // Before the round, so that what changes during it is not missed.
        let mut changed = ops.hub.changed();
        let begun = Instant::now();
        tokio::select! {
            () = shutdown.cancelled() => return,
            round = round(&ops, &mut log, &mut watch) => match round {
                Ok(next) => {
                    log.worked();
                    pace = next;
                }
                Err(error) => {
                    log.failed(&error);
                    watch.blind();
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
async fn round(ops: &Ops, log: &mut Log, watch: &mut Watch) -> Result<Pace, RoundError> {
    let observed = ops.observe().await?;
    log.clocks.tell(&ops.hub.clocks.off(), &observed);
    let docker = ops.engine.client().await?;
    let _turn = ops.turn.lock().await;
    // While it was waited for, agents may have spoken, or what they had said may have been forgotten.
    let observed = Observed { agents: ops.hub.agents(), ..observed };

    let all = record::load_all(&docker).await?;
    let known: BTreeSet<RolloutId> = all.iter().map(|stored| stored.rollout.request.id.clone()).collect();
    let ended = all.iter().filter(|stored| !is_open(&stored.rollout));
    ops.hub.set_ended(ended.map(|stored| stored.rollout.request.id.clone()).collect());
    let last = record::last(all);
    if let Some(lost) = ops.last_open().filter(|before| !known.contains(&before.request.id))
        && !last.as_ref().is_some_and(|stored| is_open(&stored.rollout))
    {
        return Ok(lost_record(ops, log, &observed, lost));
    }
    ops.orphaned(rebuild::orphans(&observed, &known));
    let Some(stored) = last else {
        log.nothing_open();
        ops.knows(None, BTreeMap::new());
        ops.tell(None, &observed);
        return Ok(Pace::Idle);
    };
    let rollout = &stored.rollout;
    if !is_open(rollout) {
        log.ended(rollout);
        ops.knows(Some(rollout), BTreeMap::new());
        ops.tell(None, &observed);
        return Ok(Pace::Idle);
    }

    let now = (ops.world.now)();
    let plan = plan::plan(rollout, &observed, now);
    ops.knows(Some(rollout), plan.waiting);
    if rollout.owner.node != observed.me {
        // Nothing is decided here, and its agents are told so; but somebody has to drive.
        log.standby(rollout, observed.nodes.get(&rollout.owner.node).map(|node| node.hostname.as_str()));
        ops.tell(Some(rollout.clone()), &observed);
        if !observed.has_leader {
            watch.blind();
        }
        let silent = watch.silent(rollout, Instant::now());
        let told = ops.is_told_to_take_over();
        if told || silent >= ops.take_over_after {
            take_over(ops, &docker, &stored, &observed, told).await?;
        }
        return Ok(Pace::Open);
    }
    ops.took_over();
    log.drives(rollout);

    let next = with_moves(rollout, &plan.moves, &observed, now, ops.elapsed_ms(rollout));
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
    ops.want_bundle(&next).await;
    ops.tell(Some(next), &observed);

    for planned in &plan.moves {
        match planned {
            Move::SetAvailability { node, to } => set_availability(&docker, node, *to).await?,
            Move::Record { .. } | Move::Join { .. } | Move::Phase(_) => {}
        }
    }
    Ok(pace)
}

/// Makes this coordinator the owner, unless somebody else has written since.
async fn take_over(
    ops: &Ops,
    docker: &Docker,
    stored: &Stored,
    observed: &Observed,
    told: bool,
) -> Result<(), RoundError> {
    let rollout = &stored.rollout;
    let mut next = owner::taken_over(rollout, &observed.me, (ops.world.now)());
    // The silence before it has passed too.
    next.owner.elapsed_ms = Some(ops.elapsed_ms(rollout));
    let (id, from, epoch) = (&rollout.request.id, &rollout.owner.node, next.owner.epoch);
    match record::write(docker, stored, &next).await {
        // The owner lives, or another one was faster: the next round sees which.
        Err(error) if error.trouble() == Some(Trouble::OutOfSequence) => {}
        Err(error) => return Err(error.into()),
        Ok(()) => {
            let why = if told { "told to" } else { "its owner was silent" };
            tracing::warn!(rollout = %id, %from, epoch, why, "took the rollout over");
            ops.took_over();
        }
    }
    ops.wake.notify_one();
    Ok(())
}

/// The record of the open rollout is gone: somebody has removed it. Nothing new is begun, and whoever is in work is told
/// what was recorded last.
fn lost_record(ops: &Ops, log: &mut Log, observed: &Observed, lost: Rollout) -> Pace {
    log.lost(&lost);
    let lost = Rollout { phase: Phase::Halted { reason: LOST.to_owned() }, ..lost };
    let waiting = plan::plan(&lost, observed, (ops.world.now)()).waiting;
    ops.knows(Some(&lost), waiting);
    ops.tell(Some(lost), observed);
    Pace::Open
}

/// How long the owner of a rollout was silent, as this coordinator saw it: by its own clock, and only while it saw a
/// leader, since nobody can renew a record without one.
#[derive(Debug, Default)]
struct Watch {
    seen: Option<(RolloutId, Timestamp, Instant)>,
}

impl Watch {
    /// For how long the record has stayed as it is at `now`.
    fn silent(&mut self, rollout: &Rollout, now: Instant) -> Duration {
        match &self.seen {
            Some((id, renewed, since)) if *id == rollout.request.id && *renewed == rollout.owner.renewed => {
                now.saturating_duration_since(*since)
            }
            Some(_) | None => {
                self.seen = Some((rollout.request.id.clone(), rollout.owner.renewed, now));
                Duration::ZERO
            }
        }
    }

    /// Nothing was seen: the count begins anew.
    fn blind(&mut self) {
        self.seen = None;
    }
}

/// Keeps `status` truthful while the swarm can't be seen.
fn show_waiting(ops: &Ops) {
    if let (Some(observed), Some(rollout)) = (ops.last_observed(), ops.last_open()) {
        let plan = plan::plan(&rollout, &observed, (ops.world.now)());
        ops.knows(Some(&rollout), plan.waiting);
    }
}

/// The rollout, which has run for `ms`, with the moves that belong into its record, and a sign of life where one is due.
fn with_moves(rollout: &Rollout, moves: &[Move], observed: &Observed, now: Timestamp, ms: u64) -> Rollout {
    let mut next = rollout.clone();
    for planned in moves {
        match planned {
            Move::Record { node, step } => {
                if let Some(entry) = next.nodes.get_mut(node) {
                    if entry.step.name() != step.name() {
                        entry.times.push((step.name().to_owned(), ms));
                    }
                    entry.step = step.clone();
                    if matches!(step, Step::Held { .. } | Step::Restoring { .. } | Step::Done { .. })
                        && let Some(agent) = observed.agents.get(node)
                        && !agent.report.troubles.is_empty()
                    {
                        entry.troubles = agent.report.troubles.clone();
                    }
                }
            }
            Move::Join { node, entry } => {
                let times = vec![(entry.step.name().to_owned(), ms)];
                next.nodes.entry(node.clone()).or_insert_with(|| Entry { times, ..entry.clone() });
            }
            Move::Phase(phase) => next.phase = phase.clone(),
            Move::SetAvailability { .. } => {}
        }
    }
    // Not by the time of day: set back, it would leave the owner without a sign of life for as long, and another
    // coordinator would take the rollout over.
    let due = rollout.owner.elapsed_ms.is_none_or(|renewed| ms.saturating_sub(renewed) >= RENEW_MS);
    if next != *rollout || due {
        next.owner.renewed = now;
        next.owner.elapsed_ms = Some(ms);
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
    match perform((docker, InSwarm::SetAvailability { node, version, spec })).await {
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
    watched: Option<(RolloutId, u64)>,
    lost: Option<RolloutId>,
    clocks: Told,
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
        self.watched = None;
        self.lost = None;
        if self.driven.as_ref() != Some(id) {
            tracing::info!(rollout = %id, epoch = rollout.owner.epoch, "driving");
            self.driven = Some(id.clone());
        }
    }

    fn standby(&mut self, rollout: &Rollout, owner: Option<&str>) {
        let seen = (rollout.request.id.clone(), rollout.owner.epoch);
        if self.watched.as_ref() != Some(&seen) {
            let id = &rollout.request.id;
            let owner = owner.unwrap_or(rollout.owner.node.as_str());
            let replaced = self.driven.take_if(|driven| driven == id).is_some();
            let epoch = rollout.owner.epoch;
            tracing::info!(rollout = %id, owner, epoch, replaced, "standby: another coordinator drives");
            self.watched = Some(seen);
        }
    }

    fn lost(&mut self, rollout: &Rollout) {
        let id = &rollout.request.id;
        if self.lost.as_ref() != Some(id) {
            tracing::warn!(rollout = %id, "halted: {LOST}");
            self.lost = Some(id.clone());
        }
    }

    /// The rollout's last word is written when it ends; a driver that was away says it too.
    fn ended(&mut self, rollout: &Rollout) {
        let id = &rollout.request.id;
        if self.driven.take_if(|driven| driven == id).is_some()
            || self.watched.take_if(|(seen, _)| seen == id).is_some()
        {
            tracing::info!(rollout = %id, "no rollout is open any more");
        }
    }

    fn nothing_open(&mut self) {
        let clocks = std::mem::take(&mut self.clocks);
        *self = Self { trouble: self.trouble.take(), clocks, ..Self::default() };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::{ManagerPolicy, Role};
    use crate::plan::simulation;

    /// A rollout in which nothing moves, as its owner renewed it after a minute.
    fn renewed() -> Rollout {
        let nodes = [simulation::node("m1", Role::Manager)];
        let mut rollout = simulation::rollout(&nodes, simulation::policy(ManagerPolicy::Rolling, 1));
        (rollout.owner.renewed, rollout.owner.elapsed_ms) = (second(60), Some(60_000));
        rollout
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_owner_gives_signs_of_life_whatever_is_done_to_the_time_of_day() {
        let rollout = renewed();
        let observed = Observed {
            me: "m1".into(),
            has_leader: true,
            nodes: BTreeMap::new(),
            tasks: Vec::new(),
            global_services: Vec::new(),
            agents: BTreeMap::new(),
            autolocked: false,
        };
        let after = |now: i64, ms: u64| with_moves(&rollout, &[], &observed, second(now), ms);
        assert_eq!(after(69, 69_000), rollout, "too early");
        // The others look at whether it changes, not at what it says.
        for now in [70, 70 - 3600, 70 + 3600] {
            let next = after(now, 70_000);
            assert_eq!((next.owner.renewed, next.owner.elapsed_ms), (second(now), Some(70_000)));
        }
        assert_eq!(after(69 + 3600, 69_000), rollout, "an hour on the clock is none");
        let replaced = owner::taken_over(&rollout, &"m2".into(), second(61));
        assert_eq!(replaced.owner.elapsed_ms, Some(60_000), "what has passed has passed");
    }
}
