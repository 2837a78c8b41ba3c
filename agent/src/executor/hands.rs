//! The executor's hands: what it does to its host by itself, while no work is under way. All of it is [`crate::effect`]'s.

use super::Executor;
use super::observe::SWARM_PATH;
use crate::effect::{self, Effect, EffectError};
use crate::words::chain;

impl Executor<'_> {
    pub(super) fn perform(&self, effect: Effect<'_>) -> Result<(), EffectError> {
        effect::perform(&self.options.root, effect)
    }

    pub(super) fn keep_packages_out(&mut self) -> Result<(), EffectError> {
        effect::perform(&self.options.root, Effect::LockPackages { kept: &mut self.packages })
    }

    pub(super) fn let_packages_in(&mut self) {
        if let Err(error) = effect::perform(&self.options.root, Effect::ReleasePackages { kept: &mut self.packages }) {
            tracing::warn!("{}", chain(&error));
        }
    }

    pub(super) fn keep_swarm(&self) {
        if let Err(error) = self.perform(Effect::KeepSwarm(&self.observed.swarm)) {
            tracing::warn!("{SWARM_PATH} can't be written: {error}");
        }
    }
}
