//! The executor: the agent's life as a process of the host.
//!
//! It holds the node's lock, speaks for the node, and works from its journal: each phase's work leads
//! to the next phase, and orders only start, withdraw or end it. What an order may do is in
//! [`mod@decide`], what a phase does in [`work`].

mod acts;
mod boots;
mod containers;
mod decide;
mod hands;
pub(crate) mod observe;
mod raft;
mod room;
mod say;
mod state;
mod unlock;
mod verify;
mod work;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use requeen_protocol::{Order, Problem};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::boot;
use crate::client::Client;
use crate::clock::{BootTime, Clock, boot_id};
use crate::collect::Collector;
use crate::effect::Effect;
use crate::engine::systemd::EngineControl;
use crate::host::HostRoot;
use crate::host::layout::{self, Layout};
use crate::journal::{Journal, Phase};
use crate::lock::{self, Held};
use crate::memo;
use crate::packages;
use crate::recovery;
use crate::reporter::{Backoff, Chance, Heard, Say, converse};
use crate::sets::Store;
use crate::staged::Staged;
use crate::unlock::Keys;
use crate::words::chain;
use decide::{Act, View, decide, lease_is_over};
use observe::Observed;
use say::{Damage, note};
use work::{After, Running, Tools};

/// How often what can change by itself is looked at: containers, the lease's end.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A node whose engine was just replaced is waited for: the pauses stay short.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// The task looks at the lock too, for an instant each time.
const LOCK_LIMIT: Duration = Duration::from_secs(3);

/// What the executor needs from outside.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the host is: `/`, but in tests.
    pub root: HostRoot,
    /// The coordinators' port.
    pub port: u16,
    /// Tells the time.
    pub clock: Clock,
    /// Spreads the pauses.
    pub chance: Chance,
    /// What runs the engine of such a host.
    pub control: fn(&HostRoot, &Layout) -> Arc<dyn EngineControl>,
}

/// Lives until the rollout ends or the process is told to end.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Some(lock) = hold(&options.root).await? else {
        tracing::info!("another executor works on this node");
        return Ok(());
    };
    let executor = Executor::begin(&options)?;
    let (tell, heard) = mpsc::channel(1);
    let client = Client::new(&options.root, options.port, &executor.keys);
    let backoff = Backoff::new(MAX_PAUSE, options.chance);
    let collector = Collector::new(&options.root, options.clock);
    let talk = tokio::spawn(converse(client, options.clock, backoff, executor.say.subscribe(), tell, collector));
    let ended = executor.live(heard).await;
    talk.abort();
    drop(lock);
    ended
}

async fn hold(root: &HostRoot) -> anyhow::Result<Option<Held>> {
    let end = Instant::now() + LOCK_LIMIT;
    loop {
        if let Some(lock) = lock::take(root)? {
            return Ok(Some(lock));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Executor<'a> {
    options: &'a Options,
    boot_id: String,
    journal: Journal,
    staged: Option<Staged>,
    /// Where the engine is; what can't be found is a reason to stay away.
    layout: Option<Layout>,
    tools: Option<Tools>,
    observed: Observed,
    /// What opens this node's TLS key and its engine, where the swarm is autolocked.
    keys: Keys,
    work: Option<Running>,
    waiting: watch::Receiver<Option<String>>,
    seen: Option<Box<Order>>,
    memo: Option<String>,
    say: watch::Sender<Option<Say>>,
    /// Something is to be said even if it is not new.
    due: bool,
    /// An order was refused: the next report waits for the next look, or each would call for the other.
    quiet: bool,
    /// The locks of package managers, for as long as there is work.
    packages: Option<packages::Kept>,
    /// The host was seen shutting down, or its systemd gone: what was under way waits.
    going_down: bool,
    /// Why nothing on this host may be touched, if so.
    damaged: Option<Damage>,
    /// What the operator has to know beside that.
    troubles: Vec<Problem>,
    /// What the journal on disk does not say yet, and why not.
    unwritten: Option<Problem>,
    /// What keeps the work from going on now.
    hindered: Option<Problem>,
    /// When work that is hindered is tried again.
    again: Option<Instant>,
}

impl<'a> Executor<'a> {
    fn begin(options: &'a Options) -> anyhow::Result<Self> {
        let root = &options.root;
        let (tell, waiting) = watch::channel(None);
        let keys = Keys::default();
        let mut damaged = None;
        let journal = Journal::load(root).unwrap_or_else(|error| {
            damaged = Some(Damage::new(chain(&error)));
            Journal::default()
        });
        if let Some(Err(doubt)) = journal.work.as_ref().map(|work| recovery::check(root, work)) {
            damaged = Some(Damage::new(chain(&doubt)));
        }
        let layout = layout::discover(root).map_err(|problems| {
            let all: Vec<_> = problems.into_iter().map(|problem| problem.what).collect();
            all.join("; ")
        });
        let store = Store::open(root).map_err(|error| chain(&error));
        let (layout, tools) = match (layout, store) {
            (Ok(layout), Ok(store)) => {
                let tools = Tools {
                    root: root.clone(),
                    clock: options.clock,
                    store,
                    control: (options.control)(root, &layout),
                    waiting: tell,
                    keys: keys.clone(),
                    lease_ends_ms: Arc::default(),
                };
                (Some(layout), Some(tools))
            }
            (Err(why), _) | (_, Err(why)) => {
                damaged.get_or_insert(Damage::new(why));
                (None, None)
            }
        };
        if boots::recovery_failed(root) {
            let reason = boots::recovery_said(root);
            damaged = Some(Damage { reason, hint: boot::recovery_hint(root).to_owned() });
        }
        Ok(Self {
            boot_id: boot_id(root)?,
            staged: Staged::load(root),
            observed: Observed::new(root, layout.clone(), &keys),
            keys,
            options,
            journal,
            layout,
            tools,
            work: None,
            waiting,
            seen: None,
            memo: memo::load(root),
            say: watch::Sender::new(None),
            due: true,
            quiet: false,
            packages: None,
            going_down: false,
            damaged,
            troubles: Vec::new(),
            unwritten: None,
            hindered: None,
            again: None,
        })
    }

    /// Goes on where the last executor of this node ended.
    fn resume(&mut self) {
        self.note_troubles();
        if self.damaged.is_some() {
            return;
        }
        if let Some(work) = self.journal.work.clone() {
            tracing::info!(lease = %work.lease, step = decide::name(&work.phase), "going on");
            if !work.phase.is_final() {
                self.prepare_again(&work);
                if let Err(error) = self.keep_packages_out() {
                    tracing::warn!("{}", chain(&error));
                }
            }
            if lease_is_over(&work, &self.boot_id, (self.options.clock)()) {
                self.give_up("its lease is over");
                return;
            }
        }
        self.start_work();
    }

    /// Goes on where the last executor ended, and does what it hears, until the rollout's end.
    async fn live(mut self, mut heard: mpsc::Receiver<Heard>) -> anyhow::Result<()> {
        self.resume();
        let mut end = signal(SignalKind::terminate())?;
        let mut leaving = false;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = loop {
            if leaving && (self.work.is_none() || self.host_goes_down().await) {
                break false;
            }
            tokio::select! {
                // Work first: its next step may be the engine's start.
                biased;
                after = ended(&mut self.work) => {
                    self.work = None;
                    self.advance(after);
                    self.note_troubles();
                }
                _ = end.recv() => leaving = true,
                Some(heard) = heard.recv() => {
                    if self.obey(heard).await {
                        break true;
                    }
                }
                _ = look.tick() => self.look().await,
                Ok(()) = self.waiting.changed() => {}
            }
            self.publish().await;
        };
        if ended {
            self.clean_up();
        }
        Ok(())
    }

    fn engine_is_left_alone(&self) -> bool {
        self.journal.work.as_ref().is_none_or(|work| !work.phase.moves_engine())
    }

    /// Looks at what changes by itself.
    async fn look(&mut self) {
        self.quiet = false;
        if self.engine_is_left_alone() {
            self.observed.refresh_tasks().await;
            self.observed.refresh_identity().await;
            if self.keys.is_missing() {
                self.observed.keep_up_keys().await;
            }
        }
        if self.going_down && !self.host_goes_down().await {
            self.going_down = false;
            // An order may have begun something else meanwhile.
            if self.work.is_none() {
                self.start_work();
            }
        }
        self.write_again();
        // Somebody may have come in between two executors.
        if self.packages.is_none()
            && self.damaged.is_none()
            && self.journal.work.as_ref().is_some_and(|work| !work.phase.is_final())
        {
            let _ = self.keep_packages_out();
        }
        let now = (self.options.clock)();
        if let Some(work) = &self.journal.work
            && self.work.is_none()
            && lease_is_over(work, &self.boot_id, now)
        {
            self.give_up("its lease has run out");
        }
    }

    /// Acts on an order; true if the executor's life is over.
    async fn obey(&mut self, heard: Heard) -> bool {
        self.due = true;
        if self.damaged.is_some() {
            self.seen = Some(Box::new(heard.order.clone()));
            return matches!(heard.order, Order::Forget { .. });
        }
        let mut being_demoted = false;
        if matches!(heard.order, Order::Stop { .. }) && self.engine_is_left_alone() {
            // What was seen a second ago is not good enough for this one.
            self.observed.refresh_tasks().await;
            being_demoted = self.observed.is_being_demoted().await;
        }
        let view = View {
            node: &self.observed.swarm.node,
            boot_id: &self.boot_id,
            journal: &self.journal,
            staged: self.staged.as_ref(),
            task_containers: self.observed.task_containers,
            being_demoted,
        };
        let decision = decide(view, &heard, (self.options.clock)());
        if let (Some(ends), Some(work)) = (decision.renewed, &mut self.journal.work) {
            work.lease_ends_ms = ends.0;
        }
        self.tell_lease();
        if !matches!(decision.act, Act::Refuse(_)) {
            self.heed(&heard.order);
        }
        self.seen = Some(Box::new(heard.order));
        match decision.act {
            Act::Nothing => self.keep_renewal(decision.renewed),
            Act::Begin { lease, ends } => self.take(&lease, ends),
            Act::Link => self.link().await,
            Act::Unlink => self.give_up("told to"),
            Act::Stop { permit } => self.stop(permit),
            Act::Settle => self.settle(),
            Act::SwitchBack { reason } => self.switch_back(reason),
            Act::End => return true,
            Act::Refuse(refusal) => {
                tracing::warn!(node = %self.observed.swarm.node, "order refused: {refusal}");
                self.not_done();
            }
        }
        false
    }

    /// Keeps what an order says beside what is to be done: a coordinator's epoch, before anything is done in its name, and
    /// its memo.
    fn heed(&mut self, order: &Order) {
        if let Some(lease) = order.lease()
            && lease.epoch > self.journal.max_epoch
        {
            self.journal.max_epoch = lease.epoch;
            self.store("epoch");
        }
        if let Order::Hold { memo, .. } = order
            && self.memo.as_ref() != Some(memo)
        {
            match self.perform(Effect::KeepMemo(memo)) {
                Ok(()) => self.memo = Some(memo.clone()),
                Err(error) => tracing::warn!("the coordinator's memo can't be kept: {error}"),
            }
        }
    }

    /// The order was not acted on: it may come again, but not at once.
    fn not_done(&mut self) {
        self.seen = None;
        self.quiet = true;
    }

    fn keep_renewal(&mut self, renewed: Option<BootTime>) {
        // Nothing is written while the engine is on its way down; who finds less there gives the lease up sooner.
        if renewed.is_some() && self.engine_is_left_alone() {
            self.store("renew");
        }
    }

    fn advance(&mut self, after: After) {
        match after {
            After::Phase(phase) => {
                self.hindered = None;
                self.go(phase);
            }
            After::Later(why) => {
                if self.hindered.as_ref() != Some(&why) {
                    tracing::warn!("{}; hint: {}", why.what, why.hint);
                }
                self.hindered = Some(why);
                self.again = Some(Instant::now() + room::AGAIN_AFTER);
            }
            After::Down { since, raft_copy } => {
                self.is_down(since, raft_copy);
                self.go(Phase::Switching);
            }
            After::Nothing => {
                self.hindered = None;
                if let Err(error) = self.journal.forget() {
                    tracing::warn!("{}", chain(&error));
                }
                self.let_packages_in();
                if self.store("unlink") {
                    self.no_more_recovery();
                }
            }
            After::HostGoesDown => {
                tracing::info!("the host goes down, or its systemd is out of reach; the work goes on when it is back");
                self.going_down = true;
            }
        }
    }

    /// Enters a phase: into the journal first, then to work.
    fn go(&mut self, phase: Phase) {
        let before = self.journal.clone();
        if let Err(error) = self.journal.advance(phase) {
            tracing::error!("{}", chain(&error));
            self.damaged = Some(Damage::new(chain(&error)));
            return;
        }
        let Some(work) = &self.journal.work else {
            return;
        };
        tracing::info!(
            node = %self.observed.swarm.node,
            lease = %work.lease,
            step = decide::name(&work.phase),
            "{}", note(&work.phase)
        );
        let work_phase = work.phase.clone();
        let on_disk = match work.phase {
            // What is on disk says `Stopping`, and going on from there does these again. Two writes
            // less while the engine is down.
            Phase::Switching | Phase::Starting => true,
            Phase::Leased
            | Phase::Linking
            | Phase::Linked
            | Phase::Unlinking
            | Phase::Stopping { .. }
            | Phase::Verifying
            | Phase::Joining { .. }
            | Phase::Running { .. }
            | Phase::SwitchingBack { .. }
            | Phase::StartingOld { .. }
            | Phase::SettlingNew { .. }
            | Phase::SettlingOld { .. }
            | Phase::Upgraded { .. }
            | Phase::RolledBack { .. }
            | Phase::Stuck { .. } => self.store(decide::name(&work.phase)),
        };
        // The same for what a verified engine may be taken back by: on disk it still counts as the one to keep.
        let proved = before.work.as_ref().is_some_and(|work| work.phase.is_proved());
        if !on_disk && (room::waits_for_disk(&work_phase) || proved) {
            return;
        }
        let entering_swap = before.work.as_ref().is_some_and(|work| !work.phase.is_committed());
        if !on_disk && entering_swap {
            // Nothing is begun that a crash would not find in the journal.
            self.journal = before;
            self.not_done();
            return;
        }
        if self.journal.work.as_ref().is_some_and(|work| work.phase.is_final()) {
            self.let_packages_in();
            if on_disk {
                self.no_more_recovery();
            }
        }
        self.start_work();
    }

    /// Work under way learns until when its lease is good.
    fn tell_lease(&self) {
        if let (Some(tools), Some(work)) = (&self.tools, &self.journal.work) {
            let ends = if work.boot_id == self.boot_id { work.lease_ends_ms } else { 0 };
            tools.lease_ends_ms.store(ends, Ordering::Relaxed);
        }
    }

    fn start_work(&mut self) {
        self.tell_lease();
        if let (Some(tools), Some(work)) = (&self.tools, &self.journal.work) {
            self.work = work::of(tools, work);
        }
    }
}

/// The end of the work under way; for ever if there is none.
async fn ended(work: &mut Option<Running>) -> After {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

#[cfg(all(test, feature = "failpoints"))]
mod fake_machine;
#[cfg(all(test, feature = "failpoints"))]
mod walk_tests;
