//! A coordinator killed at every fail point, in memory.
//!
//! One [`story`] is all that an operator does with Requeen, from the first `deploy` to `undeploy`; a coordinator is killed
//! in it once, and either starts again on the same manager or is replaced by another one. The coordinators are the
//! program's own driver, operations, hub and files, over the fake engine. What they speak to is a [`swarm`] of hosts in
//! simulated time, and that is where order is checked: whenever a host obeys and at every beat of the clock.

mod life;
mod story;
mod swarm;

use std::collections::BTreeSet;

use super::kind::{Kind, Side};
use life::{Event, What};
use story::{After, Scope};

const SIDES: [Side; 2] = [Side::Before, Side::After];

/// At how many passings of one point of a whole rollout a coordinator is killed. In so many a manager is upgraded and the
/// next one begun; with one worker, every passing is tried.
const OF_WHOLE: usize = 6;

/// What a rollout of one worker does not come by as often as a whole one does.
const OF_ROLLOUTS: [Kind; 4] = [Kind::GrantLease, Kind::GivePermit, Kind::SetAvailability, Kind::WriteStep];

/// Which points were tried, and how many stories ended well.
#[derive(Default)]
struct Walked {
    at: BTreeSet<(Kind, Side)>,
    kills: usize,
    taken_over: usize,
    ended: usize,
}

fn kill(who: &'static str, kind: Kind, side: Side, nth: usize) -> Event {
    Event { what: What::Killed, who, kind, side, nth }
}

impl Walked {
    fn story(&mut self, scope: Scope, kills: &[Event], after: After) {
        let told = story::tell(scope, kills, after);
        assert_eq!(told.killed, kills.len(), "not killed as it should have been: {kills:?} {after:?}");
        self.at.extend(kills.iter().map(|kill| (kill.kind, kill.side)));
        self.kills += kills.len();
        self.taken_over += told.taken_over;
        self.ended += 1;
    }

    /// The first coordinator, killed at each passing of each point that `chosen` names, up to a limit.
    fn each(&mut self, scope: Scope, after: After, most: usize, chosen: impl Fn(Kind) -> bool) {
        let passed = story::tell(scope, &[], after).passed;
        for (kind, times) in passed.into_iter().filter(|(kind, _)| chosen(*kind)) {
            for nth in 1..=times.min(most) {
                for side in SIDES {
                    self.story(scope, &[kill("m1", kind, side, nth)], after);
                }
            }
        }
    }

    fn everywhere(&mut self, after: After) {
        self.each(Scope::OneWorker, after, usize::MAX, |_| true);
        self.each(Scope::OneSlowWorker, after, usize::MAX, |kind| kind == Kind::RenewRecord);
        self.each(Scope::Everything, after, OF_WHOLE, |kind| OF_ROLLOUTS.contains(&kind));
    }

    /// Every point that there is was tried, but those of `elsewhere`.
    fn check(&self, elsewhere: &[Kind]) {
        for kind in Kind::ALL.iter().filter(|kind| !elsewhere.contains(kind)) {
            for side in SIDES {
                assert!(self.at.contains(&(*kind, side)), "no coordinator was killed at {}", kind.point(side));
            }
        }
    }
}

#[test]
fn killed_at_every_point_and_started_again() {
    let mut walked = Walked::default();
    walked.everywhere(After::StartedAgain);
    // Nobody takes over from itself: that is for the next test.
    walked.check(&[Kind::TakeOver]);
    println!("killed and started again: {} kills tried, {} rollouts ended", walked.kills, walked.ended);
    note(walked.kills);
}

#[test]
fn killed_at_every_point_and_replaced() {
    let mut walked = Walked::default();
    walked.everywhere(After::Replaced);
    // The one that takes over is killed too.
    for side in SIDES {
        let first = kill("m1", Kind::GivePermit, Side::After, 1);
        walked.story(Scope::Everything, &[first, kill("m2", Kind::TakeOver, side, 1)], After::Replaced);
    }
    // So late that the leases of those that were not stopped yet have run out.
    walked.each(Scope::OneWorker, After::ReplacedLate, usize::MAX, |kind| OF_ROLLOUTS.contains(&kind));
    walked.check(&[]);
    assert!(walked.taken_over > walked.ended / 2, "only {} rollouts were taken over", walked.taken_over);
    let Walked { kills, taken_over, ended, .. } = walked;
    println!("killed and replaced: {kills} kills tried, {taken_over} take-overs, {ended} rollouts ended");
    note(kills);
}

/// Adds the kills, whose rollouts have all ended, to the figures of a whole run of the tests, if somebody makes one.
fn note(kills: usize) {
    use std::io::Write;

    let Some(path) = std::env::var_os("REQUEEN_FIGURES") else { return };
    let line = format!("{{\"coordinator_kills\":{kills},\"coordinator_kills_ended\":{kills}}}\n");
    let mut figures = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    figures.write_all(line.as_bytes()).unwrap();
}

#[test]
fn half_a_minute_without_writes_or_leader_is_waited_out() {
    for what in [What::NoWrites, What::NoLeader] {
        for kind in [Kind::CreateRecord, Kind::GrantLease, Kind::SetAvailability, Kind::GivePermit, Kind::WriteStep] {
            let event = Event { what, who: "m1", kind, side: Side::Before, nth: 1 };
            // Nothing halts, and nothing is done twice: the story says so.
            let told = story::tell(Scope::Everything, &[event], After::StartedAgain);
            assert!(what == What::NoLeader || told.refused > 0, "{event:?}: no write was refused");
        }
    }
}
