//! How long a rollout has run. Somebody may set the machine's clock meanwhile, so it is counted by one that nobody sets;
//! the time of day speaks only for what no coordinator has counted.

use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use requeen_protocol::RolloutId;

use super::{Ops, view};
use crate::plan::model::Rollout;

/// A count that goes on.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    of: RolloutId,
    /// What there was to count before it began, milliseconds.
    before_ms: u64,
    /// When it began.
    since: Instant,
}

impl Counted {
    /// Begins to count: from what the record says, and the time of day says that has passed since.
    fn begin(rollout: &Rollout, today: Timestamp, since: Instant) -> Self {
        let (started, owner) = (rollout.request.started_at, &rollout.owner);
        let before_ms = match owner.elapsed_ms {
            Some(ms) => ms.saturating_add(view::millis_between(owner.renewed, today)),
            None => view::millis_between(started, today),
        };
        Self { of: rollout.request.id.clone(), before_ms, since }
    }

    /// What is recorded has passed: a count that is behind that goes on from there, or it would stand still until it came
    /// by.
    fn not_before(self, recorded_ms: u64, now: Instant) -> Self {
        if self.ms(now) < recorded_ms { Self { before_ms: recorded_ms, since: now, ..self } } else { self }
    }

    fn ms(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.since).as_millis();
        self.before_ms.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

impl Ops {
    /// Milliseconds since the rollout began, or until it ended. Never less than the record says already.
    pub(crate) fn elapsed_ms(&self, rollout: &Rollout) -> u64 {
        if let Some(ms) = view::took_ms(rollout) {
            return ms;
        }
        let now = self.hub.now();
        let mut counted = self.counted();
        let goes_on = counted.take().filter(|counted| counted.of == rollout.request.id);
        let goes_on = goes_on.unwrap_or_else(|| Counted::begin(rollout, (self.world.now)(), now));
        counted.insert(goes_on.not_before(recorded_ms(rollout), now)).ms(now)
    }

    fn counted(&self) -> MutexGuard<'_, Option<Counted>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The latest moment that the record tells of.
fn recorded_ms(rollout: &Rollout) -> u64 {
    let steps = rollout.nodes.values().filter_map(|entry| entry.times.last()).map(|(_, ms)| *ms);
    steps.chain(rollout.owner.elapsed_ms).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plan::model::{ManagerPolicy, Role};
    use crate::plan::simulation;

    fn rollout() -> Rollout {
        let node = simulation::node("m1", Role::Manager);
        simulation::rollout(&[node], simulation::policy(ManagerPolicy::Rolling, 1))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn who_has_not_counted_asks_the_time_of_day() {
        let (mut rollout, now) = (rollout(), Instant::now());
        assert_eq!(Counted::begin(&rollout, at(7), now).ms(now + Duration::from_secs(1)), 8_000);
        assert_eq!(Counted::begin(&rollout, at(-3600), now).ms(now), 0, "the clock was set back meanwhile");
        (rollout.owner.elapsed_ms, rollout.owner.renewed) = (Some(60_000), at(4000));
        assert_eq!(Counted::begin(&rollout, at(4002), now).ms(now), 62_000, "an hour too much was not counted");
    }

    #[test]
    fn a_count_that_is_behind_the_record_goes_on_from_there() {
        let (rollout, now) = (rollout(), Instant::now());
        let count = Counted::begin(&rollout, at(1), now).not_before(3_600_000, now);
        assert_eq!(count.ms(now + Duration::from_secs(10)), 3_610_000);
        let count = count.not_before(5_000, now + Duration::from_secs(10));
        assert_eq!(count.ms(now + Duration::from_secs(20)), 3_620_000, "one that is ahead goes on as it is");
    }

    #[test]
    fn what_is_recorded_has_passed() {
        let mut rollout = rollout();
        assert_eq!(recorded_ms(&rollout), 0);
        rollout.nodes.values_mut().for_each(|entry| entry.times.push(("granted".to_owned(), 5000)));
        assert_eq!(recorded_ms(&rollout), 5000);
        rollout.owner.elapsed_ms = Some(9000);
        assert_eq!(recorded_ms(&rollout), 9000);
    }
}
