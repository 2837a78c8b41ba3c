//! The work of each phase: from the phase a node is in to the one that follows.
//!
//! Every phase's work can be done again after a crash, from its beginning. While the engine is down
//! nothing happens here but a stop, one rename and a start.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::verify::{self, Unfit, managed_containerd};
use crate::clock::{BootTime, Clock};
use crate::engine::api::Api;
use crate::engine::systemd::EngineControl;
use crate::host::HostRoot;
use crate::journal::{Phase, Work};
use crate::sets::{SetId, Store};
use crate::swap::{self, SwapPlan};
use crate::words::chain;

/// So many lines of the engine's log are reported.
const LOG_LINES: u32 = 20;
/// How often a new engine is asked whether it has joined its swarm.
const JOIN_EVERY: Duration = Duration::from_millis(250);
/// A manager's API can take 20 s.
const API_LIMIT: Duration = Duration::from_secs(60);
/// A containerd that dockerd left over has so long to end before it is killed.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(10);

/// How the work of a phase ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// This phase follows.
    Phase(Phase),
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
            After::Phase(_) | After::Nothing | After::HostGoesDown => false,
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
            swap::link(&tools.root, &tools.store, &plan).map_err(|error| {
                let why = chain(&error);
                match swap::unlink(&tools.root, &tools.store, &plan) {
                    Ok(()) => format!("the links can't be put in place: {why}; the files are as they were"),
                    Err(error) => format!("the links can't be put in place: {why}; nor taken back: {}", chain(&error)),
                }
            })
        })
        .await;
        match linked {
            Ok(()) => After::Phase(Phase::Linked),
            Err(reason) => stuck(
                reason,
                "the engine was not touched and runs; abort the rollout, look at the folders of its files",
                Vec::new(),
            ),
        }
    }

    async fn unlink(self) -> After {
        let (tools, plan) = (self.tools.clone(), self.plan.clone());
        let result = blocking(move || swap::unlink(&tools.root, &tools.store, &plan).map_err(|error| chain(&error)));
        match result.await {
            Ok(()) => After::Nothing,
            Err(why) => stuck(
                format!("the links can't be taken back: {why}"),
                "the engine runs and starts through the links; repair the file system, then abort",
                Vec::new(),
            ),
        }
    }

    async fn stop(self) -> After {
        let stopped = self.stop_engine().await;
        match stopped {
            Ok(()) => After::Phase(Phase::Switching),
            // The old set is current still: what is left is to see its engine run.
            Err(reason) => After::Phase(Phase::StartingOld {
                reason: format!("the engine can't be stopped: {reason}"),
                log: self.log().await,
            }),
        }
    }

    async fn switch(self) -> After {
        match self.switch_to(self.plan.to.clone()).await {
            Ok(()) => After::Phase(Phase::Starting),
            Err(why) => self.back(format!("the new files can't be switched to: {why}")).await,
        }
    }

    async fn start(self) -> After {
        match self.control(|control| control.start()).await {
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
        self.joined().await;
        After::Phase(Phase::Running { engine_down_ms })
    }

    async fn switch_back(self, reason: String, log: Vec<String>) -> After {
        // A unit that is failing may refuse to stop cleanly; the start that follows tells.
        if let Err(why) = self.stop_engine().await {
            tracing::warn!(lease = %self.work.lease, step = "switch-back", "stop: {why}");
        }
        match self.switch_to(self.plan.from.clone()).await {
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
        let started = self
            .control(|control| {
                // Refused where there is nothing to clear.
                let _ = control.reset();
                control.start()
            })
            .await;
        let verified = match started {
            Ok(()) => self.verified(&self.plan.from, &self.work.from_version).await.map_err(|unfit| unfit.to_string()),
            Err(why) => Err(why),
        };
        match verified {
            Ok(up) => After::Phase(Phase::SettlingOld { reason, engine_down_ms: self.down_until(up), log }),
            Err(why) => {
                let log = self.log().await;
                stuck(
                    format!("{reason}; then the old engine did not start either: {why}"),
                    "look at `journalctl -u docker` on the node; its old files are in place",
                    log,
                )
            }
        }
    }

    async fn settle_new(self, engine_down_ms: u64) -> After {
        let (tools, plan) = (self.tools.clone(), self.plan.clone());
        let settled = blocking(move || {
            swap::settle(&tools.root, &tools.store, &plan).map_err(|error| chain(&error))?;
            // Old sets take space and nothing else: they are tried again after the next swap.
            if let Err(error) = tools.store.prune(&[plan.from, plan.to]) {
                tracing::warn!(step = "settle", "old sets can't be removed: {}", chain(&error));
            }
            Ok(())
        });
        match settled.await {
            Ok(()) => After::Phase(Phase::Upgraded { engine_down_ms, set: self.plan.to.clone() }),
            Err(why) => stuck(
                format!("the new engine runs, but its files can't be made plain: {why}"),
                "the engine starts through links into /var/lib/requeen/engines/current: keep that folder, repair the file system",
                Vec::new(),
            ),
        }
    }

    async fn settle_old(self, reason: String, engine_down_ms: u64, log: Vec<String>) -> After {
        let (tools, plan) = (self.tools.clone(), self.plan.clone());
        let settled = blocking(move || swap::unlink(&tools.root, &tools.store, &plan).map_err(|error| chain(&error)));
        match settled.await {
            Ok(()) => After::Phase(Phase::RolledBack { reason, engine_down_ms, log }),
            Err(why) => stuck(
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
        self.control(move |control| control.stop(containerd)).await?;
        if containerd {
            let root = self.tools.root.clone();
            blocking(move || end_leftover(&root)).await?;
        }
        Ok(())
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
        loop {
            let asked = async { Api::connect(&self.tools.root, API_LIMIT).await?.swarm().await };
            let text = match asked.await {
                Ok(swarm) if swarm.is_active() => break,
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

    async fn control(
        &self,
        call: impl FnOnce(&dyn EngineControl) -> Result<(), crate::engine::systemd::ControlError> + Send + 'static,
    ) -> Result<(), String> {
        let control = Arc::clone(&self.tools.control);
        blocking(move || call(control.as_ref()).map_err(|error| chain(&error))).await
    }
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

/// Ends a containerd of dockerd's own that has outlived it: the next dockerd would take it up, old
/// binary and all.
fn end_leftover(root: &HostRoot) -> Result<(), String> {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let end = std::time::Instant::now() + LEFTOVER_LIMIT;
    while let Some(pid) = managed_containerd(root) {
        let late = std::time::Instant::now() >= end;
        let signal = if late { Signal::SIGKILL } else { Signal::SIGTERM };
        // Gone in this instant is what is wanted.
        let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        if late && managed_containerd(root).is_some() {
            return Err(format!("containerd (pid {pid}) does not end"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}
