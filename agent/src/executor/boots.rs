//! What the executor does so that a boot in the middle of its work finds its way: see [`crate::boot`].

use std::sync::Arc;

use super::Executor;
use crate::boot::{self, scripts};
use crate::effect::Effect;
use crate::host::HostRoot;
use crate::host::manager::ServiceManager;
use crate::journal::Work;
use crate::words::chain;

/// Whether the recovery that ran when this host booted failed, and keeps the engine from starting.
pub(super) fn recovery_failed(root: &HostRoot) -> bool {
    if ServiceManager::of(root).runs_scripts() {
        return scripts::recovery_failed(root);
    }
    let ran = root.run("systemctl", &["is-failed", boot::RECOVER_UNIT], boot::SYSTEMCTL_LIMIT);
    ran.is_ok_and(|ran| ran.stdout.trim() == "failed")
}

/// Where that recovery said why.
pub(super) fn recovery_said(root: &HostRoot) -> String {
    if ServiceManager::of(root).runs_scripts() {
        return format!("requeen-recover failed: {} says why", scripts::RECOVERY_LOG);
    }
    format!("{} failed: `journalctl -u {}` says why", boot::RECOVER_UNIT, boot::RECOVER_UNIT)
}

impl Executor<'_> {
    /// Puts on the host what a boot needs, before there is any work that it could interrupt.
    pub(super) fn prepare_for_boots(&self) -> Result<(), String> {
        let layout = self.layout.as_ref().ok_or("where the engine's files are is not known")?;
        let program = std::env::current_exe().map_err(|error| format!("this program can't be found: {error}"))?;
        let install = Effect::InstallBootUnits { layout, program: &program, port: self.options.port };
        self.perform(install).map_err(|error| chain(&error))
    }

    /// The node's files are in order, and no boot has to see to that any more.
    pub(super) fn no_more_recovery(&self) {
        if let Err(error) = self.perform(Effect::RemoveRecovery) {
            // It finds nothing to do, and goes with the rollout.
            tracing::warn!("{} stays for now: {}", boot::RECOVER_UNIT, chain(&error));
        }
    }

    /// Work that was found unfinished is prepared for by this program: the one that began it may be gone.
    pub(super) fn prepare_again(&self, work: &Work) {
        if let Err(why) = self.prepare_for_boots() {
            tracing::warn!(lease = %work.lease, "the next boot may not find its way: {why}");
        }
    }

    /// Whether the host is shutting down: it takes the engine along, which is no fault of the engine's.
    pub(super) async fn host_goes_down(&self) -> bool {
        let Some(tools) = &self.tools else { return false };
        let control = Arc::clone(&tools.control);
        tokio::task::spawn_blocking(move || control.host_goes_down()).await.unwrap_or(false)
    }
}
