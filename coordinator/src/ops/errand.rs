//! Sending every agent on an errand, for as long as whoever asked for it waits.

use super::Ops;
use crate::hub::Hub;
use crate::plan::errand::Errand;

/// The errand ends when this is dropped.
pub(super) struct UnderWay<'a>(&'a Hub);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set_errand(None);
    }
}

impl Ops {
    /// Asks every agent. Only while holding [`Ops::prepare_alone`]'s guard: the hub holds one errand.
    pub(super) fn send(&self, errand: Errand) -> UnderWay<'_> {
        self.hub.set_errand(Some(errand));
        UnderWay(&self.hub)
    }
}
