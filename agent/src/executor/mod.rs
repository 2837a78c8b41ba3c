//! The executor: the agent's life as a process of the host.
//!
//! It holds the node's lock, speaks for the node, and works from its journal: each phase's work leads
//! to the next phase, and orders only start, withdraw or end it. What an order may do is in
//! [`mod@decide`], what a phase does in [`work`].

mod acts;
mod boots;
mod decide;
mod observe;
mod state;
mod verify;
mod work;

use std::sync::Arc;
use std::time::Duration;

use requeen_protocol::{NodeState, Order, Report, RolloutId, Speaker};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::boot;
use crate::client::Client;
use crate::clock::{BootTime, Clock, boot_id};
use crate::collect::Collector;
use crate::engine::systemd::Systemd;
use crate::host::HostRoot;
use crate::host::layout::{self, Layout};
use crate::journal::{JOURNAL_PATH, Journal, Phase};
use crate::lock::{self, Held};
use crate::memo;
use crate::packages;
use crate::reporter::{Backoff, Chance, Heard, Say, converse};
use crate::sets::Store;
use crate::staged::Staged;
use crate::words::chain;
use decide::{Act, View, decide, lease_is_over};
use observe::Observed;
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
}

/// Lives until the rollout ends or the process is told to end.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Some(lock) = hold(&options.root).await? else {
        tracing::info!("another executor works on this node");
        return Ok(());
    };
    let mut executor = Executor::begin(&options)?;
    executor.resume();
    executor.work_on(lock).await
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
}

/// Why nothing on a host may be touched, and what to do.
struct Damage {
    reason: String,
    hint: String,
}

impl Damage {
    fn new(reason: String) -> Self {
        let hint = format!(
            "look at {JOURNAL_PATH} and /var/lib/requeen/engines on the node; nothing is touched until the rollout is ended"
        );
        Self { reason, hint }
    }
}

impl<'a> Executor<'a> {
    fn begin(options: &'a Options) -> anyhow::Result<Self> {
        let root = &options.root;
        let (tell, waiting) = watch::channel(None);
        let mut damaged = None;
        let journal = Journal::load(root).unwrap_or_else(|error| {
            damaged = Some(Damage::new(chain(&error)));
            Journal::default()
        });
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
                    control: Arc::new(Systemd::new(root, &layout)),
                    waiting: tell,
                };
                (Some(layout), Some(tools))
            }
            (Err(why), _) | (_, Err(why)) => {
                damaged.get_or_insert(Damage::new(why));
                (None, None)
            }
        };
        if boots::recovery_failed(root) {
            let reason = format!("{} failed: `journalctl -u {}` says why", boot::RECOVER_UNIT, boot::RECOVER_UNIT);
            damaged = Some(Damage { reason, hint: boot::RECOVERY_HINT.to_owned() });
        }
        Ok(Self {
            boot_id: boot_id(root)?,
            staged: Staged::load(root),
            observed: Observed::new(root, layout.clone()),
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
        })
    }

    /// Goes on where the last executor of this node ended.
    fn resume(&mut self) {
        if self.damaged.is_some() {
            return;
        }
        let root = &self.options.root;
        if let Some(work) = &self.journal.work {
            tracing::info!(lease = %work.lease, step = decide::name(&work.phase), "going on");
            if !work.phase.is_final() {
                self.prepare_again(work);
                let kept = packages::keep(root).inspect_err(|taken| tracing::warn!("{}", chain(taken)));
                self.packages = kept.ok();
            }
            if lease_is_over(work, &self.boot_id, (self.options.clock)()) {
                self.give_up("its lease is over");
                return;
            }
        }
        self.start_work();
    }

    async fn work_on(mut self, lock: Held) -> anyhow::Result<()> {
        let mut end = signal(SignalKind::terminate())?;
        let mut leaving = false;
        let (tell, mut heard) = mpsc::channel(1);
        let client = Client::new(&self.options.root, self.options.port);
        let backoff = Backoff::new(MAX_PAUSE, self.options.chance);
        let collector = Collector::new(&self.options.root, self.options.clock);
        let talk = tokio::spawn(converse(client, self.options.clock, backoff, self.say.subscribe(), tell, collector));
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
        talk.abort();
        if ended {
            self.clean_up();
        }
        drop(lock);
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
        }
        if self.going_down && !self.host_goes_down().await {
            self.going_down = false;
            self.start_work();
        }
        // Somebody may have come in between two executors.
        if self.packages.is_none()
            && self.damaged.is_none()
            && self.journal.work.as_ref().is_some_and(|work| !work.phase.is_final())
        {
            self.packages = packages::keep(&self.options.root).ok();
        }
        let now = (self.options.clock)();
        if let Some(work) = &self.journal.work
            && self.work.is_none()
            && lease_is_over(work, &self.boot_id, now)
        {
            self.give_up("its lease has run out");
        }
    }

    /// Says what is true, if it is new or something is due.
    async fn publish(&mut self) {
        if self.quiet {
            return;
        }
        if self.engine_is_left_alone() {
            self.observed.refresh(self.due).await;
        }
        let report = Report {
            node: self.observed.swarm.node.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            speaker: Speaker::Executor,
            boot_id: self.boot_id.clone(),
            engine: self.observed.engine.clone(),
            installed: None,
            state: self.state(),
            seen: self.seen.clone(),
            memo: self.memo.clone(),
            unreached: Vec::new(),
        };
        let new = Some(Say { swarm: self.observed.swarm.clone(), report });
        let due = std::mem::take(&mut self.due);
        self.say.send_if_modified(|said| {
            let changed = due || *said != new;
            *said = new;
            changed
        });
    }

    fn state(&self) -> NodeState {
        if let Some(Damage { reason, hint }) = &self.damaged {
            return NodeState::Stuck {
                rollout: self.rollout(),
                reason: reason.clone(),
                hint: hint.clone(),
                log: Vec::new(),
            };
        }
        state::node_state(
            &self.journal,
            self.staged.as_ref(),
            self.observed.task_containers,
            self.waiting.borrow().as_deref(),
        )
    }

    fn rollout(&self) -> RolloutId {
        let work = self.journal.work.as_ref().map(|work| work.rollout.clone());
        work.or_else(|| Some(self.staged.as_ref()?.wanted.rollout.clone())).unwrap_or_else(|| "unknown".into())
    }

    /// Acts on an order; true if the executor's life is over.
    async fn obey(&mut self, heard: Heard) -> bool {
        self.due = true;
        if self.damaged.is_some() {
            self.seen = Some(Box::new(heard.order.clone()));
            return matches!(heard.order, Order::Forget { .. });
        }
        if matches!(heard.order, Order::Stop { .. }) && self.engine_is_left_alone() {
            // What was seen a second ago is not good enough for this one.
            self.observed.refresh_tasks().await;
        }
        let view = View {
            node: &self.observed.swarm.node,
            boot_id: &self.boot_id,
            journal: &self.journal,
            staged: self.staged.as_ref(),
            task_containers: self.observed.task_containers,
        };
        let decision = decide(view, &heard, (self.options.clock)());
        if let (Some(ends), Some(work)) = (decision.renewed, &mut self.journal.work) {
            work.lease_ends_ms = ends.0;
        }
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
            match memo::store(&self.options.root, memo) {
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
        if renewed.is_some() {
            self.store("renew");
        }
    }

    fn advance(&mut self, after: After) {
        match after {
            After::Phase(phase) => self.go(phase),
            After::Nothing => {
                if let Err(error) = self.journal.forget() {
                    tracing::warn!("{}", chain(&error));
                }
                self.packages = None;
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
        let entering_swap = before.work.as_ref().is_some_and(|work| !work.phase.is_committed());
        if !on_disk && entering_swap {
            // Nothing is begun that a crash would not find in the journal.
            self.journal = before;
            self.not_done();
            return;
        }
        if self.journal.work.as_ref().is_some_and(|work| work.phase.is_final()) {
            self.packages = None;
            if on_disk {
                self.no_more_recovery();
            }
        }
        self.start_work();
    }

    fn start_work(&mut self) {
        if let (Some(tools), Some(work)) = (&self.tools, &self.journal.work) {
            self.work = work::of(tools, work);
        }
    }

    fn store(&self, step: &str) -> bool {
        match self.journal.store(&self.options.root) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(step, "{}", chain(&error));
                false
            }
        }
    }
}

fn note(phase: &Phase) -> String {
    match phase {
        Phase::Stopping { permit } => format!("stopping the engine, by permit {permit}"),
        Phase::Running { engine_down_ms } => {
            format!("the new engine runs; its API was gone for {engine_down_ms} ms")
        }
        Phase::SwitchingBack { reason, .. } => format!("back to the old engine: {reason}"),
        Phase::RolledBack { reason, .. } => format!("the old engine runs again: {reason}"),
        Phase::Stuck { reason, hint, .. } => format!("{reason}; hint: {hint}"),
        Phase::Leased
        | Phase::Linking
        | Phase::Linked
        | Phase::Unlinking
        | Phase::Switching
        | Phase::Starting
        | Phase::Verifying
        | Phase::Joining { .. }
        | Phase::StartingOld { .. }
        | Phase::SettlingNew { .. }
        | Phase::SettlingOld { .. }
        | Phase::Upgraded { .. } => decide::name(phase).to_owned(),
    }
}

/// The end of the work under way; for ever if there is none.
async fn ended(work: &mut Option<Running>) -> After {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}
