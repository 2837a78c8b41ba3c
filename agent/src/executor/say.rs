//! What the executor says: its reports to the coordinator, and the lines of its log.

use requeen_protocol::{NodeState, Report, RolloutId, Speaker};

use super::{Executor, decide, state};
use crate::journal::{JOURNAL_PATH, Phase};
use crate::reporter::Say;

/// Why nothing on a host may be touched, and what to do.
pub(super) struct Damage {
    pub(super) reason: String,
    pub(super) hint: String,
}

impl Damage {
    pub(super) fn new(reason: String) -> Self {
        let hint = format!(
            "look at {JOURNAL_PATH} and /var/lib/requeen/engines on the node; nothing is touched until the rollout is ended"
        );
        Self { reason, hint }
    }
}

impl Executor<'_> {
    /// Says what is true, if it is new or something is due.
    pub(super) async fn publish(&mut self) {
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
            troubles: self.troubles.clone(),
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
}

/// A phase's line in the log.
pub(super) fn note(phase: &Phase) -> String {
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
