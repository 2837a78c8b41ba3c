//! What the executor does when an order tells it to: each of these ends in a phase of the journal, whose
//! work follows from there, or in the end of its life.

use requeen_protocol::{EngineFile, Lease, PermitId, Problem};

use super::Executor;
use super::work::After;
use crate::clock::BootTime;
use crate::effect::Effect;
use crate::journal::{JOURNAL_PATH, Phase, Work};
use crate::staged::Outcome;
use crate::swap;
use crate::words::chain;

/// So many lines of the engine's log are reported.
const LOG_LINES: u32 = 20;

impl Executor<'_> {
    pub(super) fn take(&mut self, lease: &Lease, ends: BootTime) {
        let work = self.new_work(lease, ends);
        let begun = work.and_then(|work| {
            if self.journal.work.as_ref().is_some_and(|old| !old.phase.is_committed()) {
                self.journal.forget().map_err(|error| chain(&error))?;
            }
            // What it says is of a lease that is over.
            self.perform(Effect::ForgetContainers).map_err(|error| chain(&error))?;
            // At the lease: once the node is drained the swarm starts no agent on it.
            self.prepare_for_boots()?;
            self.keep_packages_out().map_err(|error| chain(&error))?;
            self.journal.begin(work).map_err(|error| chain(&error))
        });
        match begun {
            Ok(()) if self.store("lease") => {
                tracing::info!(node = %lease.node, lease = %lease.id, step = "lease", "lease taken");
                self.hindered = None;
                self.note_troubles();
                self.keep_swarm();
            }
            Ok(()) => {
                self.journal.work = None;
                self.let_packages_in();
                self.not_done();
            }
            Err(why) => {
                tracing::warn!(lease = %lease.id, step = "lease", "lease not taken: {why}");
                let hint = "the node takes it as soon as that is mended".to_owned();
                self.hindered = Some(Problem { what: format!("the lease can't be taken: {why}"), hint });
                if self.journal.work.is_none() {
                    // Those of a lease that this one was to replace.
                    self.let_packages_in();
                }
                self.note_troubles();
                self.not_done();
            }
        }
    }

    fn new_work(&self, lease: &Lease, ends: BootTime) -> Result<Work, String> {
        let (Some(staged), Some(tools)) = (&self.staged, &self.tools) else {
            return Err("nothing is staged".to_owned());
        };
        let Outcome::Ready { preflight, old, new } = &staged.outcome else {
            return Err("what was staged can't be installed".to_owned());
        };
        let manifest = |set| tools.store.manifest(set).map_err(|error| chain(&error));
        let (from, to) = (manifest(old)?, manifest(new)?);
        let changes = |file: &EngineFile| from.files.get(file) != to.files.get(file);
        Ok(Work {
            rollout: lease.rollout.clone(),
            lease: lease.id.clone(),
            epoch: lease.epoch,
            boot_id: self.boot_id.clone(),
            lease_ends_ms: ends.0,
            from_version: preflight.from.clone(),
            to_version: preflight.to.clone(),
            start_timeout_secs: staged.wanted.start_timeout_secs,
            containerd_restart: EngineFile::ALL.iter().any(|file| file.restarts_containerd() && changes(file)),
            plan: None,
            stopped_at_ms: None,
            raft_copy: self.wanted_copy(staged),
            phase: Phase::Leased,
        })
    }

    pub(super) async fn link(&mut self) {
        let planned = self.plan().await;
        let (Some(work), Ok(plan)) = (&mut self.journal.work, &planned) else {
            let why = planned.err().unwrap_or_default();
            self.go(Phase::Stuck {
                reason: format!("the swap can't be planned: {why}"),
                hint: "nothing was touched; abort the rollout and start again".to_owned(),
                log: Vec::new(),
            });
            return;
        };
        work.plan = Some(plan.clone());
        self.go(Phase::Linking);
    }

    async fn plan(&self) -> Result<swap::SwapPlan, String> {
        let (Some(staged), Some(tools), Some(layout)) = (&self.staged, &self.tools, &self.layout) else {
            return Err("nothing is staged".to_owned());
        };
        let Outcome::Ready { old, new, .. } = staged.outcome.clone() else {
            return Err("what was staged can't be installed".to_owned());
        };
        let (tools, layout) = (tools.clone(), layout.clone());
        tokio::task::spawn_blocking(move || {
            swap::plan(&tools.root, &layout, &tools.store, &old, &new).map_err(|error| chain(&error))
        })
        .await
        .unwrap_or_else(|error| Err(error.to_string()))
    }

    pub(super) fn stop(&mut self, permit: PermitId) {
        if let Some(tools) = &self.tools
            && let Err(error) = self.perform(Effect::ResetEngine(tools.control.as_ref()))
        {
            // Only starts that were many in the last minute would suffer.
            tracing::warn!(step = "stop", "{}", chain(&error));
        }
        let now = (self.options.clock)();
        if let Some(work) = &mut self.journal.work {
            work.stopped_at_ms = Some(now.0);
        }
        self.observed.forget_engine();
        self.go(Phase::Stopping { permit });
    }

    pub(super) fn settle(&mut self) {
        if let Some(Work { phase: Phase::Running { engine_down_ms }, .. }) = self.journal.work {
            self.go(Phase::SettlingNew { engine_down_ms });
        }
    }

    pub(super) fn switch_back(&mut self, reason: String) {
        // Dropping the work ends the wait for the swarm; nothing else runs at that point.
        self.work = None;
        let log = self.tools.as_ref().map(|tools| tools.control.log(LOG_LINES));
        self.observed.forget_engine();
        self.go(Phase::SwitchingBack { reason, log: log.unwrap_or_default() });
    }

    /// Gives the lease up before anything was stopped.
    pub(super) fn give_up(&mut self, why: &str) {
        let Some(work) = &self.journal.work else {
            return;
        };
        tracing::info!(lease = %work.lease, step = "unlink", "the lease is given up: {why}");
        match work.phase {
            Phase::Leased => self.advance(After::Nothing),
            // Its thread can't be stopped; the order comes again when it has ended.
            Phase::Linking if self.work.is_some() => self.not_done(),
            Phase::Linking | Phase::Linked => self.go(Phase::Unlinking),
            Phase::Unlinking
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
            | Phase::Stuck { .. } => {}
        }
    }

    /// The rollout has ended: leaves nothing behind that only it needed.
    pub(super) fn clean_up(&mut self) {
        let root = &self.options.root;
        tracing::info!(node = %self.observed.swarm.node, "the rollout has ended");
        self.tidy_raft_copies();
        if self.damaged.is_some() {
            // Kept for whoever looks into it; the next rollout begins with a new one.
            if let Err(error) = self.perform(Effect::SetJournalAside) {
                tracing::warn!("{JOURNAL_PATH}: {error}");
            }
        } else {
            match self.journal.forget() {
                Ok(()) => drop(self.store("forget")),
                Err(error) => tracing::warn!("{}", chain(&error)),
            }
        }
        if let Err(error) = self.perform(Effect::RemoveBootUnits) {
            tracing::warn!("the units for a boot stay: {}", chain(&error));
        }
        if let Err(error) = self.perform(Effect::ForgetContainers) {
            tracing::warn!("{}", chain(&error));
        }
        if let Err(error) = self.perform(Effect::ForgetRollout) {
            tracing::warn!("the rollout's files can't be removed: {error}");
        }
        // Where something went wrong every set stays, for whoever looks into it.
        if self.damaged.is_none()
            && let Some(tools) = &self.tools
            && let Err(error) = self.perform(Effect::Prune { store: &tools.store, keep: &[] })
        {
            tracing::warn!("old sets can't be removed: {}", chain(&error));
        }
        // The next executor is a fresh copy.
        if let Ok(own) = std::env::current_exe()
            && own.starts_with(root.join(requeen_protocol::STATE_DIR))
        {
            let _ = self.perform(Effect::RemoveProgram(&own));
        }
    }
}
