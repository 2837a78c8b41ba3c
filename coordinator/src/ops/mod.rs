//! What an operator can ask of a rollout. Each method answers one request of [`crate::api`].
//!
//! [`prepare`] has what happens before a rollout is recorded; what is shown is put together in
//! [`view`] and, of rollouts that are over, in [`history`]; how failures are worded is in [`failure`].
//! Which node may move is never decided here.
//! [`verify`] and [`undeploy`] are about what rollouts leave behind.

mod drift;
mod elapsed;
mod errand;
mod failure;
mod history;
mod outdated;
mod prepare;
mod release;
mod standalone;
#[cfg(test)]
mod tests;
mod undeploy;
mod verify;
pub(crate) mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use requeen_protocol::{BundleRef, Digest, NodeId, RolloutId};
use tokio::sync::Notify;

use crate::api::{Failure, GrantArgs, StatusView};
use crate::hub::{Driven, Hub};
use crate::observe::{self, Engine, ObserveError};
use crate::plan::limit::Limit;
use crate::plan::model::{Observed, Phase, Rollout, Step};
use crate::plan::reasons::WaitingFor;
use crate::plan::{self, Move, owner, rebuild, refuse};
use crate::probe::{self, ProbeReport};
use crate::record::{self, is_open};
use failure::{phase_words, refused};

/// How old an observation may be to be shown.
const FRESH: Duration = Duration::from_secs(1);

/// How long a rollout's owner may be silent before another coordinator takes the rollout over, unless `serve` is told
/// otherwise.
pub const TAKE_OVER_AFTER: Duration = Duration::from_secs(90);

/// How long `status` waits for the engine before it shows what was seen last.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// How long `take-over` waits for the driver.
const TAKE_OVER_WITHIN: Duration = Duration::from_secs(30);

/// How often, and with which pauses, a grant is tried while other nodes move.
const GRANT_TRIES: u32 = 20;
const GRANT_PAUSE: Duration = Duration::from_millis(250);

/// Where time and randomness come from.
#[derive(Clone, Copy)]
pub struct World {
    /// The time.
    pub now: fn() -> Timestamp,
    /// What makes an identifier unique.
    pub random: fn() -> Result<[u8; 4], getrandom::Error>,
}

impl World {
    /// The real one.
    pub fn real() -> Self {
        Self {
            now: Timestamp::now,
            random: || {
                let mut bytes = [0; 4];
                getrandom::fill(&mut bytes).map(|()| bytes)
            },
        }
    }
}

/// See the module.
pub struct Ops {
    pub(crate) hub: Arc<Hub>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) world: World,
    /// Since when agents can be heard.
    begun: Instant,
    data_dir: PathBuf,
    /// Held while a plan or a rollout is being prepared, or agents are on an errand: the hub holds one of each.
    preparing: tokio::sync::Mutex<()>,
    /// Held by whoever reads the record and then tells the hub what it says, so that nobody puts an
    /// older word in the place of a newer one: an agent that is told of no rollout forgets its bundle.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Wakes the driver when it has nothing to drive.
    pub(crate) wake: Notify,
    /// How long a rollout's owner may be silent before this coordinator takes the rollout over.
    pub(crate) take_over_after: Duration,
    /// Whether it is to take it over at once.
    take_over: AtomicBool,
    record_read: AtomicBool,
    known: Mutex<Known>,
    /// How long the open rollout has run.
    counted: Mutex<Option<elapsed::Counted>>,
    bundles: Mutex<BTreeMap<Digest, BundleRef>>,
}

/// What was seen last, for `status` and for times without a leader.
#[derive(Default)]
struct Known {
    observed: Option<(Instant, Observed)>,
    /// Whether the last look at the swarm failed.
    blind: bool,
    /// The open rollout, or the last one.
    rollout: Option<Rollout>,
    waiting: BTreeMap<NodeId, WaitingFor>,
    /// Rollouts that nodes hold leases of and of which there is no record.
    orphans: BTreeSet<RolloutId>,
}

impl Ops {
    /// Operations on the swarm of `engine`. Bundles are in `bundles` below `data_dir`.
    pub fn new(hub: Arc<Hub>, engine: Arc<Engine>, data_dir: PathBuf) -> Self {
        Self::in_world(hub, engine, data_dir, World::real())
    }

    /// [`Self::new`] with another time and randomness.
    pub fn in_world(hub: Arc<Hub>, engine: Arc<Engine>, data_dir: PathBuf, world: World) -> Self {
        let begun = hub.now();
        Self {
            hub,
            engine,
            world,
            begun,
            data_dir,
            preparing: tokio::sync::Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            take_over_after: TAKE_OVER_AFTER,
            take_over: AtomicBool::new(false),
            record_read: AtomicBool::new(false),
            known: Mutex::default(),
            counted: Mutex::default(),
            bundles: Mutex::default(),
        }
    }

    /// Where everything stands. While the managers have no leader: where it stood.
    pub async fn status(&self) -> Result<StatusView, Failure> {
        let now = self.hub.now();
        let fresh = |known: &Known| {
            known.observed.as_ref().is_some_and(|(then, _)| now.saturating_duration_since(*then) < FRESH)
        };
        if !fresh(&self.known())
            && let Err(failure) = self.look().await
            && self.last_observed().is_none()
        {
            return Err(failure);
        }
        let Some(observed) = self.last_observed() else {
            return Err(refused("nothing has been seen of the swarm yet", "try again"));
        };
        let known = self.known();
        let elapsed_ms = known.rollout.as_ref().map_or(0, |rollout| self.elapsed_ms(rollout));
        let mut status = view::status(&observed, known.rollout.as_ref(), &known.waiting, &known.orphans, elapsed_ms);
        view::name_clocks(&mut status, &self.hub.clocks.off());
        Ok(status)
    }

    /// Looks at swarm and record for [`Self::status`], for a bounded time.
    async fn look(&self) -> Result<(), Failure> {
        let look = async {
            self.observe().await?;
            let docker = self.engine.client().await?;
            let last = record::load_last(&docker).await?.map(|stored| stored.rollout);
            let mut known = self.known();
            // An open rollout whose record is gone is not over: the driver says what is the matter.
            let lost = known.rollout.as_ref().filter(|before| is_open(before)).map(|before| before.request.id.clone());
            let news = |last: &Rollout| is_open(last) || lost.as_ref() == Some(&last.request.id);
            if lost.is_none() || last.as_ref().is_some_and(news) {
                known.rollout = last;
            }
            Ok(())
        };
        match tokio::time::timeout(STATUS_PATIENCE, look).await {
            Ok(looked) => looked,
            Err(_) => Err(Failure {
                kind: crate::api::FailureKind::Unreachable,
                error: format!("the engine did not answer within {} s", STATUS_PATIENCE.as_secs()),
                hint: Some("a manager's engine can take 20 s during an election; try again".to_owned()),
            }),
        }
    }

    /// No new lease until [`Self::resume`]; nodes in work finish.
    pub async fn pause(&self) -> Result<StatusView, Failure> {
        self.rephase(|phase| match phase {
            Phase::Running | Phase::Paused => Ok(Phase::Paused),
            Phase::Halted { .. } => {
                Err(refused(phase_refused(phase), "no lease is granted in it; `requeen resume` or `requeen abort`"))
            }
            Phase::Aborting | Phase::Ended { .. } => Err(refused(phase_refused(phase), "it can't be paused any more")),
        })
        .await
    }

    /// Goes on after a pause or a halt. Where the time limit lets no node be begun any more, this is the word that
    /// lifts it; where somebody removed the record, the word that makes it again.
    pub async fn resume(&self) -> Result<StatusView, Failure> {
        if let Some(again) = self.without_record().await? {
            return self.record_again(again).await;
        }
        let now = (self.world.now)();
        self.change(|rollout| {
            match &rollout.phase {
                Phase::Running | Phase::Paused | Phase::Halted { .. } => {}
                phase @ (Phase::Aborting | Phase::Ended { .. }) => {
                    return Err(refused(phase_refused(phase), "start another one with `requeen upgrade`"));
                }
            }
            let id = rollout.request.id.clone();
            if Limit::of(rollout).and_then(|limit| limit.over(now)).is_some() {
                tracing::info!(rollout = %id, "the operator lifts the time limit");
                rollout.limit_lifted = true;
            }
            tracing::info!(rollout = %id, phase = phase_words(&Phase::Running), "the operator's word");
            rollout.phase = Phase::Running;
            Ok(())
        })
        .await?;
        self.status().await
    }

    /// The rollout that is under way and has no record: as this coordinator remembers it, or else as its nodes tell it.
    async fn without_record(&self) -> Result<Option<Rollout>, Failure> {
        let observed = self.observe().await?;
        let docker = self.engine.client().await?;
        let all = record::load_all(&docker).await?;
        if all.iter().any(|stored| is_open(&stored.rollout)) {
            return Ok(None);
        }
        let known: BTreeSet<RolloutId> = all.iter().map(|stored| stored.rollout.request.id.clone()).collect();
        let now = (self.world.now)();
        let remembered = self.last_open().filter(|before| !known.contains(&before.request.id));
        let seen = all.iter().map(|stored| stored.rollout.owner.epoch).max().unwrap_or_default();
        // Higher than any that an executor can have seen: a new rollout's is the time too.
        let epoch = seen.saturating_add(1).max(u64::try_from(now.as_second()).unwrap_or_default());
        if let Some(before) = remembered {
            let epoch = epoch.max(before.owner.epoch.saturating_add(1));
            let next = owner::with_epoch(&before, &observed.me, epoch, now);
            return Ok(Some(Rollout { phase: Phase::Running, ..next }));
        }
        let orphans = rebuild::orphans(&observed, &known);
        Ok(orphans.last().and_then(|id| rebuild::rebuild(&observed, id, epoch, now)))
    }

    async fn record_again(&self, rollout: Rollout) -> Result<StatusView, Failure> {
        let docker = self.engine.client().await?;
        let turn = self.turn.lock().await;
        record::create(&docker, &rollout).await?;
        tracing::warn!(rollout = %rollout.request.id, epoch = rollout.owner.epoch, "the record was made again");
        if self.last_open().is_none() {
            // It says what agents said, and they may be further by now: no step is taken on a word older than the record.
            self.hub.forget_reports();
        }
        self.hold(&rollout);
        drop(turn);
        self.status().await
    }

    /// Drives the open rollout from here on, whoever drove it before.
    pub async fn take_over(&self) -> Result<StatusView, Failure> {
        let observed = self.observe().await?;
        let docker = self.engine.client().await?;
        match record::load_last(&docker).await?.filter(|stored| is_open(&stored.rollout)) {
            None => return Err(refused("no rollout is open", "there is nothing to take over")),
            Some(stored) if stored.rollout.owner.node == observed.me => {
                let id = &stored.rollout.request.id;
                return Err(refused(
                    format!("this coordinator drives rollout {id} already"),
                    "`requeen status` shows it",
                ));
            }
            Some(_) => {}
        }
        self.tell_to_take_over();
        let taken = async {
            loop {
                tokio::time::sleep(GRANT_PAUSE).await;
                if !self.is_told_to_take_over() {
                    return;
                }
            }
        };
        match tokio::time::timeout(TAKE_OVER_WITHIN, taken).await {
            Ok(()) => self.status().await,
            Err(_) => Err(Failure {
                kind: crate::api::FailureKind::Failed,
                error: format!("the rollout could not be taken over within {} s", TAKE_OVER_WITHIN.as_secs()),
                hint: Some("the coordinator keeps trying; `requeen status` shows who drives".to_owned()),
            }),
        }
    }

    /// See [`Self::take_over`]: the driver does it in its next round.
    pub(crate) fn tell_to_take_over(&self) {
        self.take_over.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    pub(crate) fn is_told_to_take_over(&self) -> bool {
        self.take_over.load(Ordering::Acquire)
    }

    /// This coordinator drives.
    pub(crate) fn took_over(&self) {
        self.take_over.store(false, Ordering::Release);
    }

    /// Ends the rollout: nodes in work finish, drained ones get their availability back.
    pub async fn abort(&self) -> Result<StatusView, Failure> {
        self.rephase(|phase| match phase {
            Phase::Running | Phase::Paused | Phase::Halted { .. } | Phase::Aborting => Ok(Phase::Aborting),
            Phase::Ended { .. } => Err(refused(phase_refused(phase), "it has ended already")),
        })
        .await
    }

    async fn rephase(&self, next: impl Fn(&Phase) -> Result<Phase, Failure>) -> Result<StatusView, Failure> {
        self.change(|rollout| {
            let phase = next(&rollout.phase)?;
            tracing::info!(rollout = %rollout.request.id, phase = phase_words(&phase), "the operator's word");
            rollout.phase = phase;
            Ok(())
        })
        .await?;
        self.status().await
    }

    /// Grants one lease by hand, or says why it would not be safe now.
    pub async fn grant(&self, args: GrantArgs) -> Result<(), Failure> {
        let mut left = GRANT_TRIES;
        loop {
            let observed = self.observe().await?;
            let node = refuse::resolve(&observed, &args.node)?;
            let now = (self.world.now)();
            let mut others_move = false;
            let granted = self
                .change(|rollout| {
                    let hand = if args.force { "forced" } else { "by hand" };
                    *rollout = granted_by_hand(rollout, &node, &args, &observed, now).map_err(|closed| {
                        others_move = closed.others_move;
                        closed.why
                    })?;
                    tracing::info!(rollout = %rollout.request.id, node = args.node, hand, "lease granted by the operator");
                    Ok(())
                })
                .await;
            match granted {
                // A lease is granted in a round in which nothing else happens: it comes soon.
                Err(_) if others_move && left > 0 => {
                    left -= 1;
                    tokio::time::sleep(GRANT_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// What the probe's clients saw, placed against the steps of every rollout on record.
    pub async fn probe(&self) -> Result<ProbeReport, Failure> {
        let docker = self.engine.client().await?;
        let rollouts = record::load_all(&docker).await?;
        let spans: Vec<_> = rollouts.iter().flat_map(|stored| view::spans(&stored.rollout)).collect();
        Ok(probe::collect(&docker, &spans).await?)
    }

    /// Changes the open rollout's record and tells hub and driver.
    async fn change(&self, change: impl FnMut(&mut Rollout) -> Result<(), Failure>) -> Result<(), Failure> {
        let docker = self.engine.client().await?;
        let _turn = self.turn.lock().await;
        let ((), rollout) = record::update(&docker, change).await?;
        self.hold(&rollout);
        Ok(())
    }

    /// Tells hub, driver and `status` what was written.
    fn hold(&self, rollout: &Rollout) {
        self.known().rollout = Some(rollout.clone());
        if let Some(observed) = self.last_observed() {
            self.tell(Some(rollout.clone()), &observed);
        }
        self.wake.notify_one();
    }

    /// Observes the swarm, and keeps what it saw.
    pub(crate) async fn observe(&self) -> Result<Observed, ObserveError> {
        let seen = observe::observe(&self.engine, &self.hub).await;
        match &seen {
            Ok(observed) => {
                // Until the record was read nobody knows whether a rollout is open, and an agent that is
                // told of none would forget what it holds.
                self.hub.set_has_leader(observed.has_leader && self.record_read.load(Ordering::Acquire));
                let mut known = self.known();
                known.observed = Some((self.hub.now(), observed.clone()));
                known.blind = false;
            }
            Err(_) => {
                self.hub.set_has_leader(false);
                self.known().blind = true;
                self.engine.renegotiate();
            }
        }
        seen
    }

    /// What was seen last, with what agents have said since; without a leader if that is so now.
    pub(crate) fn last_observed(&self) -> Option<Observed> {
        let known = self.known();
        let (_, last) = known.observed.clone()?;
        Some(Observed { has_leader: last.has_leader && !known.blind, agents: self.hub.agents(), ..last })
    }

    /// Tells agents what the record says, now that it was read. Only while holding [`Self::turn`].
    pub(crate) fn tell(&self, open: Option<Rollout>, observed: &Observed) {
        self.hub.set_rollout(open.map(|rollout| Driven {
            here: rollout.owner.node == observed.me,
            owner: view::hostname(observed, &rollout.owner.node),
            rollout,
        }));
        if !self.record_read.swap(true, Ordering::AcqRel) {
            self.hub.set_has_leader(true);
        }
    }

    /// Keeps the rollout (the open one, or the last) and why its nodes wait, for `status`.
    pub(crate) fn knows(&self, rollout: Option<&Rollout>, waiting: BTreeMap<NodeId, WaitingFor>) {
        let mut known = self.known();
        known.rollout = rollout.cloned();
        known.waiting = waiting;
    }

    /// Keeps which rollouts nodes hold leases of without a record, for `status`.
    pub(crate) fn orphaned(&self, orphans: BTreeSet<RolloutId>) {
        self.known().orphans = orphans;
    }

    /// The open rollout as it was seen last.
    pub(crate) fn last_open(&self) -> Option<Rollout> {
        self.known().rollout.clone().filter(is_open)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bundles(&self) -> MutexGuard<'_, BTreeMap<Digest, BundleRef>> {
        self.bundles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn phase_refused(phase: &Phase) -> String {
    format!("the rollout is {}", phase_words(phase))
}

/// Why a lease can't be granted by hand.
struct Closed {
    why: Failure,
    /// Whether anything else moves now, so that the answer may be another one soon.
    others_move: bool,
}

impl From<Failure> for Closed {
    fn from(why: Failure) -> Self {
        Self { why, others_move: false }
    }
}

/// The rollout with the node's lease granted by hand. Whether it may be is the planner's to say.
fn granted_by_hand(
    rollout: &Rollout,
    node: &NodeId,
    args: &GrantArgs,
    observed: &Observed,
    now: Timestamp,
) -> Result<Rollout, Closed> {
    let mut trial = rollout.clone();
    let Some(entry) = trial.nodes.get_mut(node) else {
        let error = format!("node {} is not in the scope of rollout {}", args.node, rollout.request.id);
        return Err(refused(error, "`requeen status` shows which nodes are").into());
    };
    match rollout.phase {
        Phase::Running => {}
        Phase::Paused | Phase::Halted { .. } => {
            return Err(refused(phase_refused(&rollout.phase), "`requeen resume` it first").into());
        }
        Phase::Aborting | Phase::Ended { .. } => {
            return Err(refused(phase_refused(&rollout.phase), "no lease is granted any more").into());
        }
    }
    match entry.step {
        Step::Waiting { .. } => entry.step = Step::Waiting { by_hand: true, forced: args.force },
        // The node has its lease; what may hold back its stop is the operator's to override as well.
        Step::Working { ref mut lease, ref work, .. } if work.is_before_the_permit() && !lease.forced => {
            if !args.force {
                let why = plan::plan(rollout, observed, now).waiting.remove(node);
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                let error = format!("node {} has a lease already, and is {}{why}", entry.hostname, entry.step.name());
                let hint =
                    "`requeen grant --force` overrides the quorum and the tasks of nodes before it, and nothing else";
                return Err(refused(error, hint).into());
            }
            lease.forced = true;
        }
        Step::Working { .. } | Step::Held { .. } | Step::Restoring { .. } | Step::Done { .. } => {
            let error = format!("node {} does not wait for a lease: it is {}", entry.hostname, entry.step.name());
            return Err(refused(error, "`requeen status` shows which nodes wait").into());
        }
    }
    let hostname = entry.hostname.clone();
    if args.force {
        return Ok(trial);
    }
    let plan = plan::plan(&trial, observed, now);
    let moves = |moved: &Move| match moved {
        Move::Record { node: other, step: Step::Working { .. } } => other == node,
        Move::Record { .. } | Move::Join { .. } | Move::SetAvailability { .. } | Move::Phase(_) => false,
    };
    if plan.moves.iter().any(moves) {
        return Ok(trial);
    }
    let why = plan.waiting.get(node).map_or_else(|| "another node moves first".to_owned(), ToString::to_string);
    let hint = "`requeen grant --force` overrides order, slots, quorum and `--not-after`";
    Err(Closed {
        why: refused(format!("node {hostname} can't have a lease now: {why}"), hint),
        others_move: !plan.moves.is_empty(),
    })
}
