//! The work of each phase: from the phase a node is in to the one that follows.
//!
//! Every phase's work can be done again after a crash, from its beginning. While the engine is down
//! nothing happens here but a stop, a copy if one is wanted, one rename and a start.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use requeen_protocol::Problem;
use tokio::sync::watch;

use super::room::{self, Failed};
use super::unlock::{self, Unlocking};
use super::verify::{self, Unfit};
use crate::clock::{BootTime, Clock};
use crate::effect::{self, Effect};
use crate::engine::api::Api;
use crate::engine::systemd::EngineControl;
use crate::host::HostRoot;
use crate::journal::{Phase, RaftCopy, Work};
use crate::sets::{SetId, Store};
use crate::swap::{self, SwapError, SwapPlan};
use crate::unlock::Keys;
use crate::words::chain;

/// So many lines of the engine's log are reported.
const LOG_LINES: u32 = 20;
/// How often a new engine is asked whether it has joined its swarm.
const JOIN_EVERY: Duration = Duration::from_millis(250);
/// A manager's API can take 20 s.
const API_LIMIT: Duration = Duration::from_secs(60);
/// An old engine that came back has so long to join its swarm before containers are started that need it.
const JOIN_FOR_CONTAINERS: Duration = Duration::from_secs(20);

/// How the work of a phase ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// This phase follows.
    Phase(Phase),
    /// The engine is down since then; the switch follows.
    Down {
        /// When it was told to stop.
        since: BootTime,
        /// What became of the copy that may be wanted.
        raft_copy: RaftCopy,
    },
    /// There is no room for it now: it is tried again, and the operator is told meanwhile.
    Later(Problem),
    /// Nothing is left: every file is what it was before the lease.
    Nothing,
    /// It was interrupted by the host's shutdown, and goes on after its boot.
    HostGoesDown,
}

impl After {
    /// Whether the engine is given up, new or old.
    fn gives_up(&self) -> bool {
        match self {
            After::Phase(Phase::SwitchingBack { .. } | Phase::StartingOld { .. } | Phase::Stuck { .. }) => true,
            After::Phase(_) | After::Down { .. } | After::Later(_) | After::Nothing | After::HostGoesDown => false,
        }
    }
}

/// Work under way.
pub(crate) type Running = Pin<Box<dyn Future<Output = After> + Send>>;

/// What the work needs.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) root: HostRoot,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) control: Arc<dyn EngineControl>,
    /// What a started engine is waited for.
    pub(crate) waiting: watch::Sender<Option<String>>,
    /// What a manager of an autolocked swarm is unlocked with.
    pub(crate) keys: Keys,
    /// When the lease ends, milliseconds of this boot's clock; it may be renewed while the work goes on.
    pub(crate) lease_ends_ms: Arc<AtomicU64>,
}

/// The work of the phase that `work` is in; none where an order is waited for.
pub(crate) fn of(tools: &Tools, work: &Work) -> Option<Running> {
    let Some(plan) = work.plan.clone() else {
        return match work.phase {
            Phase::Unlinking => Some(Box::pin(async { After::Nothing })),
            Phase::Leased
            | Phase::Linking
            | Phase::Linked
            | Phase::Stopping { .. }
            | Phase::Switching
            | Phase::Starting
            | Phase::Verifying
            | Phase::Joining { .. }
            | Phase::Running { .. }
            | Phase::SwitchingBack { .. }
            | Phase::StartingOld { .. }
            | Phase::SettlingNew { .. }
            | Phase::SettlingOld { .. }
            | Phase::Upgraded { .. }
            | Phase::RolledBack { .. }
            | Phase::Stuck { .. } => None,
        };
    };
    let job = Job { tools: tools.clone(), plan, work: work.clone() };
    match work.phase.clone() {
        Phase::Leased
        | Phase::Linked
        | Phase::Running { .. }
        | Phase::Upgraded { .. }
        | Phase::RolledBack { .. }
        | Phase::Stuck { .. } => None,
        Phase::Linking => Some(Box::pin(job.link())),
        Phase::Unlinking => Some(Box::pin(job.unlink())),
        Phase::Stopping { .. } => Some(Box::pin(unless_host_goes_down(tools, job.stop()))),
        Phase::Switching => Some(Box::pin(unless_host_goes_down(tools, job.switch()))),
        Phase::Starting => Some(Box::pin(unless_host_goes_down(tools, job.start()))),
        Phase::Verifying => Some(Box::pin(unless_host_goes_down(tools, job.verify()))),
        Phase::Joining { engine_down_ms } => Some(Box::pin(job.join(engine_down_ms))),
        Phase::SwitchingBack { reason, log } => {
            Some(Box::pin(unless_host_goes_down(tools, job.switch_back(reason, log))))
        }
        Phase::StartingOld { reason, log } => Some(Box::pin(unless_host_goes_down(tools, job.start_old(reason, log)))),
        Phase::SettlingNew { engine_down_ms } => Some(Box::pin(job.settle_new(engine_down_ms))),
        Phase::SettlingOld { reason, engine_down_ms, log } => {
            Some(Box::pin(job.settle_old(reason, engine_down_ms, log)))
        }
    }
}

/// An engine that fails while its host shuts down is not judged.
fn unless_host_goes_down(
    tools: &Tools,
    work: impl Future<Output = After> + Send + 'static,
) -> impl Future<Output = After> + Send + 'static {
    let control = Arc::clone(&tools.control);
    async move {
        let after = work.await;
        let down = after.gives_up() && blocking(move || Ok(control.host_goes_down())).await.unwrap_or(false);
        if down { After::HostGoesDown } else { after }
    }
}

struct Job {
    tools: Tools,
    plan: SwapPlan,
    work: Work,
}

impl Job {
    async fn link(self) -> After {
        let (tools, plan) = (self.tools.clone(), self.plan.clone());
        let linked = blocking(move || {
            // Before the stop: whatever dockerd's start would read from the disk is in memory then.
            warm(&tools.store, &plan.to);
            Ok(link_or_not(&mut || swap::link(&tools.root, &tools.store, &plan), &mut || {
                swap::unlink(&tools.root, &tools.store, &plan)
            }))
        })
        .await;
        linked.unwrap_or_else(|why| stuck(why, "abort the rollout, and look at the agent's log", Vec::new()))
    }

    async fn unlink(self) -> After {
        let (tools, plan) = (self.tools.clone(), self.plan.clone());
        match plain(tools, plan, swap::unlink).await {
            Ok(()) => After::Nothing,
            Err(Failed::Full(why)) => After::Later(room::wanted(format!("the links can't be taken back yet: {why}"))),
            Err(Failed::Otherwise(why)) => stuck(
                format!("the links can't be taken back: {why}"),
                "the engine runs and starts through the links; repair the file system, then abort",
                Vec::new(),
            ),
        }
    }

    async fn stop(self) -> After {
        // The journal says `Stopping` until the new engine is started: an executor that is gone may have come that far. What ran
        // was recorded then, and an engine that is starting can't be asked.
        let switched = matches!(self.tools.store.current(), Ok(Some(set)) if set == self.plan.to);
        let up = if switched { Ok(false) } else { self.tools.engine_is_up().await };
        let ready = match up {
            Ok(true) => self.set_aside().await.and_then(|()| self.still_leased()),
            Ok(false) => Ok(()),
            Err(ref why) => Err(why.clone()),
        };
        if let Err(reason) = ready {
            let reason = format!("the engine was not stopped: {reason}");
            return After::Phase(Phase::StartingOld { reason, log: Vec::new() });
        }
        let since = match self.work.stopped_at_ms {
            // An executor before this one has stopped it.
            Some(stopped) if up == Ok(false) => BootTime(stopped),
            Some(_) | None => (self.tools.clock)(),
        };
        let stopped = self.stop_engine().await;
        match stopped {
            Ok(()) => After::Down { since, raft_copy: self.tools.keep_raft_copy(&self.work, switched).await },
            // Whether what runs is the new engine its verification tells, and from there a way leads back.
            Err(reason) if switched => {
                tracing::warn!(lease = %self.work.lease, step = "stop", "the engine can't be stopped again: {reason}");
                After::Phase(Phase::Switching)
            }
            // The old set is current still: what is left is to see its engine run.
            Err(reason) => After::Phase(Phase::StartingOld {
                reason: format!("the engine can't be stopped: {reason}"),
                log: self.log().await,
            }),
        }
    }

    /// What runs beside tasks ends, and takes its time: no task may have come meanwhile.
    async fn set_aside(&self) -> Result<(), String> {
        self.tools.set_aside(&self.work.lease).await?;
        let tasks = async { Api::connect(&self.tools.root, API_LIMIT).await?.task_containers().await };
        match tasks.await {
            Ok(0) => Ok(()),
            Ok(running) => Err(format!("{running} containers of swarm tasks run again")),
            // An engine that does not answer is as it was when the permit was taken.
            Err(error) => {
                tracing::warn!(lease = %self.work.lease, step = "stop", "{}", chain(&error));
                Ok(())
            }
        }
    }

    /// A machine that was frozen, or whose containers took their time while nobody renewed its lease, may have been given up
    /// for somebody else.
    fn still_leased(&self) -> Result<(), String> {
        let ends = BootTime(self.tools.lease_ends_ms.load(Ordering::Relaxed));
        let now = (self.tools.clock)();
        if now < ends { Ok(()) } else { Err("its lease ran out before that".to_owned()) }
    }

    async fn switch(self) -> After {
        match self.switch_to(self.plan.to.clone()).await {
            Ok(()) => After::Phase(Phase::Starting),
            Err(why) => self.back(format!("the new files can't be switched to: {why}")).await,
        }
    }

    async fn start(self) -> After {
        match self.perform(|tools| Effect::StartEngine(tools.control.as_ref())).await {
            Ok(()) => After::Phase(Phase::Verifying),
            Err(why) => self.back(format!("the new engine can't be started: {why}")).await,
        }
    }

    async fn verify(self) -> After {
        match self.verified(&self.plan.to, &self.work.to_version).await {
            Ok(up) => After::Phase(Phase::Joining { engine_down_ms: self.down_until(up) }),
            Err(unfit) => self.back(unfit.to_string()).await,
        }
    }

    async fn join(self, engine_down_ms: u64) -> After {
        let lease = &self.work.lease;
        let all = self.tools.bring_back(lease).await;
        self.joined().await;
        if !all {
            // Some may need a network of the swarm.
            self.tools.bring_back(lease).await;
        }
        After::Phase(Phase::Running { engine_down_ms })
    }

    async fn switch_back(self, reason: String, log: Vec<String>) -> After {
        self.tools.set_aside_again(&self.work.lease).await;
        // A unit that is failing may refuse to stop cleanly; the start that follows tells.
        if let Err(why) = self.stop_engine().await {
            tracing::warn!(lease = %self.work.lease, step = "switch-back", "stop: {why}");
        }
        let mut switched = self.switch_to(self.plan.from.clone()).await;
        if switched.is_err() && room::make(&self.tools.root) {
            switched = self.switch_to(self.plan.from.clone()).await;
        }
        match switched {
            Ok(()) => After::Phase(Phase::StartingOld { reason, log }),
            Err(why) => stuck(
                format!("{reason}; the old files can't be switched to: {why}"),
                "the old files are in /var/lib/requeen/engines: repair the file system, point `current` to them, start docker",
                log,
            ),
        }
    }

    async fn start_old(self, reason: String, log: Vec<String>) -> After {
        // Its failed starts count against the unit's limit, not against the old engine.
        // Refused where there is nothing to clear.
        let _ = self.perform(|tools| Effect::ResetEngine(tools.control.as_ref())).await;
        let started = self.perform(|tools| Effect::StartEngine(tools.control.as_ref())).await;
        let verified = match started {
            Ok(()) => self.verified(&self.plan.from, &self.work.from_version).await.map_err(|unfit| unfit.to_string()),
            Err(why) => Err(why),
        };
        match verified {
            Ok(up) => {
                let engine_down_ms = self.down_until(up);
                let reason = match unlock::old_engine(&self.tools.root, &self.tools.keys).await {
                    None => reason,
                    Some(locked) => format!("{reason}; its manager was left {locked}"),
                };
                After::Phase(Phase::SettlingOld { reason, engine_down_ms, log })
            }
            Err(why) => {
                let log = self.log().await;
                stuck(
                    format!("{reason}; then the old engine did not start either: {why}"),
                    "look at `journalctl -u docker` on the node, without systemd at /var/log/docker.log; its old files are in place",
                    log,
                )
            }
        }
    }

    async fn settle_new(self, engine_down_ms: u64) -> After {
        let (tools, plan) = (self.tools.clone(), self.plan.clone());
        let settled = plain(tools, plan, |root, store, plan| {
            swap::settle(root, store, plan)?;
            // Old sets take space and nothing else: they are tried again after the next swap.
            let prune = Effect::Prune { store, keep: &[plan.from.clone(), plan.to.clone()] };
            if let Err(error) = effect::perform(root, prune) {
                tracing::warn!(step = "settle", "old sets can't be removed: {}", chain(&error));
            }
            Ok(())
        });
        match settled.await {
            Ok(()) => After::Phase(Phase::Upgraded { engine_down_ms, set: self.plan.to.clone() }),
            Err(Failed::Full(why)) => {
                After::Later(room::wanted(format!("the new engine runs, and its files can't be made plain yet: {why}")))
            }
            Err(Failed::Otherwise(why)) => stuck(
                format!("the new engine runs, but its files can't be made plain: {why}"),
                "the engine starts through links into /var/lib/requeen/engines/current: keep that folder, repair the file system",
                Vec::new(),
            ),
        }
    }

    async fn settle_old(self, reason: String, engine_down_ms: u64, log: Vec<String>) -> After {
        if !self.tools.bring_back(&self.work.lease).await {
            // Some may need a network of the swarm; an engine that does not join keeps nothing else waiting.
            let _ = tokio::time::timeout(JOIN_FOR_CONTAINERS, self.joined()).await;
            self.tools.waiting.send_replace(None);
            self.tools.bring_back(&self.work.lease).await;
        }
        let (tools, plan) = (self.tools.clone(), self.plan.clone());
        match plain(tools, plan, swap::unlink).await {
            Ok(()) => After::Phase(Phase::RolledBack { reason, engine_down_ms, log }),
            Err(Failed::Full(why)) => After::Later(room::wanted(format!(
                "{reason}; the old engine runs, and its files can't be made plain yet: {why}"
            ))),
            Err(Failed::Otherwise(why)) => stuck(
                format!("{reason}; the old engine runs, but its files can't be made plain: {why}"),
                "the engine starts through links into /var/lib/requeen/engines/current: keep that folder, repair the file system",
                log,
            ),
        }
    }

    /// Gives up on the new engine.
    async fn back(&self, reason: String) -> After {
        After::Phase(Phase::SwitchingBack { reason, log: self.log().await })
    }

    async fn stop_engine(&self) -> Result<(), String> {
        let containerd = self.work.containerd_restart;
        self.perform(move |tools| Effect::StopEngine { control: tools.control.as_ref(), containerd }).await?;
        if containerd { self.perform(|_| Effect::EndLeftover).await } else { Ok(()) }
    }

    async fn switch_to(&self, set: SetId) -> Result<(), String> {
        let (tools, plan) = (self.tools.clone(), self.plan.clone());
        blocking(move || swap::switch(&tools.root, &tools.store, &plan, &set).map_err(|error| chain(&error))).await
    }

    /// The moment at which the API of the engine answered first; an error if it isn't `set`'s.
    async fn verified(&self, set: &SetId, version: &str) -> Result<BootTime, Unfit> {
        let Tools { root, clock, store, control, .. } = &self.tools;
        let up = verify::answers(root, control, self.work.start_timeout_secs, *clock).await?;
        let containerd = self.work.containerd_restart;
        verify::is_set(root, store, set, &self.plan, version, containerd).await?;
        Ok(up)
    }

    /// Waits until the engine has joined its swarm. However long: no manager, no quorum or a locked
    /// swarm is no fault of the engine's.
    async fn joined(&self) {
        let mut unlocking = Unlocking::default();
        loop {
            let asked = async { Api::connect(&self.tools.root, API_LIMIT).await?.swarm().await };
            let text = match asked.await {
                Ok(swarm) if swarm.is_active() => break,
                Ok(swarm) if swarm.is_locked() => unlocking.attempt(&self.tools.root, &self.tools.keys).await,
                Ok(swarm) => match swarm.error {
                    Some(error) => format!("{}: {error}", swarm.local_state),
                    None => swarm.local_state,
                },
                Err(error) => chain(&error),
            };
            self.tools.waiting.send_if_modified(|waiting| {
                let changed = waiting.as_ref() != Some(&text);
                *waiting = Some(text);
                changed
            });
            tokio::time::sleep(JOIN_EVERY).await;
        }
        self.tools.waiting.send_replace(None);
    }

    /// How long the engine's API was gone, until `up`.
    fn down_until(&self, up: BootTime) -> u64 {
        self.work.stopped_at_ms.map_or(0, |stopped| up.millis_since(BootTime(stopped)))
    }

    async fn log(&self) -> Vec<String> {
        let control = Arc::clone(&self.tools.control);
        blocking(move || Ok(control.log(LOG_LINES))).await.unwrap_or_default()
    }

    /// An effect, on a thread that may take its time.
    async fn perform(&self, effect: impl FnOnce(&Tools) -> Effect<'_> + Send + 'static) -> Result<(), String> {
        let tools = self.tools.clone();
        blocking(move || effect::perform(&tools.root, effect(&tools)).map_err(|error| chain(&error))).await
    }
}

/// Puts the links in place, or leaves every file as it was.
pub(super) fn link_or_not(
    link: &mut dyn FnMut() -> Result<(), SwapError>,
    unlink: &mut dyn FnMut() -> Result<(), SwapError>,
) -> After {
    let Err(error) = link() else { return After::Phase(Phase::Linked) };
    let why = format!("the links can't be put in place: {}", chain(&error));
    match unlink().map_err(|error| Failed::of(&error)) {
        Ok(()) => After::Phase(Phase::RolledBack {
            reason: format!("the engine was not stopped: {why}; the files are as they were"),
            engine_down_ms: 0,
            log: Vec::new(),
        }),
        // They lead to the files that run.
        Err(Failed::Full(back)) => After::Later(room::wanted(format!("{why}; nor taken back yet: {back}"))),
        Err(Failed::Otherwise(back)) => stuck(
            format!("{why}; nor taken back: {back}"),
            "the engine was not touched and runs; abort the rollout, look at the folders of its files",
            Vec::new(),
        ),
    }
}

/// Makes files plain by `way`, leaving nothing half made where there is no room.
async fn plain(
    tools: Tools,
    plan: SwapPlan,
    way: impl FnOnce(&HostRoot, &Store, &SwapPlan) -> Result<(), SwapError> + Send + 'static,
) -> Result<(), Failed> {
    let work = move || {
        way(&tools.root, &tools.store, &plan).map_err(|error| {
            if let Err(error) = swap::clear_beside(&tools.root, &plan) {
                tracing::warn!("{}", chain(&error));
            }
            Failed::of(&error)
        })
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Failed::Otherwise(error.to_string())))
}

fn stuck(reason: String, hint: &str, log: Vec<String>) -> After {
    After::Phase(Phase::Stuck { reason, hint: hint.to_owned(), log })
}

/// Reads the files of a set once, so that they are in the page cache. Failing to changes nothing.
fn warm(store: &Store, set: &SetId) {
    let Ok(manifest) = store.manifest(set) else {
        return;
    };
    for file in manifest.files.keys() {
        if let Ok(mut file) = std::fs::File::open(store.path(set, *file)) {
            let _ = std::io::copy(&mut file, &mut std::io::sink());
        }
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}
