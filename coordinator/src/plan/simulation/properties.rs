//! How whole rollouts end, whatever happens in whatever order.

use jiff::Timestamp;
use proptest::prelude::*;

use super::super::model::{ManagerPolicy, Outcome, Phase, Role, Step};
use super::super::plan;
use super::checks::host_is_whole;
use super::policy;
use super::world::World;

fn run(world: &mut World, events: &[(u8, u8)]) {
    for &(kind, at) in events {
        world.event(kind, at);
    }
    // Then everything happens in turn, until nothing is left to happen.
    for number in 0..400 {
        round(world, number);
        if matches!(world.rollout.phase, Phase::Ended { .. }) {
            break;
        }
    }
}

/// Everything happens once to every node.
fn round(world: &mut World, number: u32) {
    for kind in 0..6 {
        for at in 0..world.hosts.len() as u8 {
            world.event(kind, at.wrapping_add((number % 7) as u8));
        }
    }
}

/// So many events of such rounds.
fn some(world: &mut World, events: usize) {
    let nodes = world.hosts.len();
    for n in 0..events {
        let (number, kind, at) = (n / nodes / 6, n / nodes % 6, n % nodes);
        world.event(kind as u8, (at + number % 7) as u8);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_interleaving_keeps_the_order(
        workers in 1_usize..4,
        at_once in 1_u32..3,
        hold in any::<bool>(),
        placement in prop::collection::vec(any::<u8>(), 0..8),
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 0..400),
        faulty in prop::option::of(0_usize..6),
        pinned in prop::option::of(0_usize..6),
    ) {
        let managers = if hold { ManagerPolicy::HoldDrained } else { ManagerPolicy::Rolling };
        let mut world = World::new(3, workers, policy(managers, at_once), &placement, faulty);
        world.pin(pinned);
        run(&mut world, &events);
        match &world.rollout.phase {
            Phase::Ended { aborted } => {
                prop_assert!(!aborted);
                prop_assert!(world.faulty.is_none(), "a fault did not halt the rollout");
                for (id, host) in &world.hosts {
                    prop_assert!(host.upgraded);
                    prop_assert_eq!(world.observed.nodes[id].availability, world.before[id]);
                }
            }
            Phase::Halted { .. } => {
                let faulty = world.faulty.clone().expect("a reason to halt");
                for (id, entry) in &world.rollout.nodes {
                    prop_assert!(host_is_whole(&world.hosts[id]), "{} is neither old nor new", id);
                    prop_assert!(!entry.step.in_work(), "{} is still in work", id);
                    if *id == faulty {
                        let rolled_back = match &entry.step {
                            Step::Done { outcome } | Step::Held { outcome, .. } => matches!(outcome, Outcome::RolledBack { .. }),
                            Step::Waiting { .. } | Step::Working { .. } | Step::Restoring { .. } => false,
                        };
                        prop_assert!(rolled_back);
                    }
                }
            }
            other @ (Phase::Running | Phase::Paused | Phase::Aborting) => {
                let waiting = plan(&world.rollout, &world.observed, Timestamp::UNIX_EPOCH).waiting;
                prop_assert!(false, "the rollout is stuck in {:?}: {:?}", other, waiting);
            }
        }
    }

    #[test]
    fn an_abort_restores_what_it_may(
        hold in any::<bool>(),
        placement in prop::collection::vec(any::<u8>(), 0..8),
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 0..400),
        pinned in prop::option::of(0_usize..6),
    ) {
        let managers = if hold { ManagerPolicy::HoldDrained } else { ManagerPolicy::Rolling };
        let mut world = World::new(3, 2, policy(managers, 1), &placement, None);
        world.pin(pinned);
        for (kind, at) in events {
            world.event(kind, at);
        }
        if !matches!(world.rollout.phase, Phase::Ended { .. }) {
            world.rollout.phase = Phase::Aborting;
        }
        run(&mut world, &[]);
        prop_assert!(matches!(world.rollout.phase, Phase::Ended { .. }), "the abort does not end");
        for (id, entry) in &world.rollout.nodes {
            prop_assert!(host_is_whole(&world.hosts[id]));
            if !matches!(entry.step, Step::Held { .. }) {
                prop_assert_eq!(world.observed.nodes[id].availability, world.before[id]);
            }
        }
    }
}

/// After so many rounds nothing is left to happen: a node takes ten, and one more for each task that leaves it.
const ENOUGH: u32 = 120;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_released_node_strands_nobody(
        hold in any::<bool>(),
        placement in prop::collection::vec(any::<u8>(), 0..8),
        first in 0_usize..1500,
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 0..60),
        lost in prop::option::weighted(0.2, 0_usize..5),
        meanwhile in prop::option::weighted(0.7, 0_usize..500),
    ) {
        let managers = if hold { ManagerPolicy::HoldDrained } else { ManagerPolicy::Rolling };
        let mut world = World::new(3, 2, policy(managers, 1), &placement, None);
        some(&mut world, first);
        for (kind, at) in events {
            world.event(kind, at);
        }
        // Mostly one that is in work.
        let in_work = world.rollout.nodes.iter().find(|(_, entry)| entry.step.in_work()).map(|(id, _)| id);
        let any = world.hosts.keys().nth(lost.unwrap_or_default()).expect("a node");
        let lost = in_work.filter(|_| lost.is_none()).unwrap_or(any).clone();
        world.lose(&lost);
        (0..ENOUGH).for_each(|number| round(&mut world, number));
        let held_a_slot = world.rollout.nodes[&lost].step.in_work();
        let availability = world.observed.nodes[&lost].availability;
        world.release(&lost);
        match meanwhile {
            // It comes back while others are at work.
            Some(events) => some(&mut world, events),
            None => {
                (0..ENOUGH).for_each(|number| round(&mut world, number));
                for (id, entry) in &world.rollout.nodes {
                    prop_assert!(!entry.step.in_work(), "{} is in work though the slot is free", id);
                }
            }
        }
        if held_a_slot {
            prop_assert_eq!(world.observed.nodes[&lost].availability, availability, "it is the operator's to change");
        }
        world.find(&lost);
        (0..ENOUGH).for_each(|number| round(&mut world, number));
        // It may have ended before the node said how its work did: then nobody asks any more.
        let ended_without_it = matches!(world.rollout.phase, Phase::Ended { .. });
        for (id, host) in &world.hosts {
            prop_assert!(host_is_whole(host), "{} is neither old nor new", id);
            let entry = &world.rollout.nodes[id];
            prop_assert!(!entry.step.in_work(), "{} is still in work", id);
            let upgraded = match &entry.step {
                Step::Held { outcome, .. } | Step::Done { outcome } => matches!(outcome, Outcome::Upgraded { .. }),
                Step::Waiting { .. } | Step::Working { .. } | Step::Restoring { .. } => false,
            };
            prop_assert!(!upgraded || host.upgraded, "{} counts as upgraded and is not", id);
            prop_assert!(upgraded || !host.upgraded || ended_without_it, "{} is upgraded and does not count", id);
        }
        // Held managers stay so where one of them was released and not upgraded; all else comes to its end.
        let ended = matches!(world.rollout.phase, Phase::Ended { .. });
        let kept = world.rollout.nodes.values().any(|entry| matches!(entry.step, Step::Held { .. }));
        prop_assert!(ended || kept, "{:?} {:?}", world.rollout.phase, world.rollout.nodes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn nodes_may_come_and_go(
        hold in any::<bool>(),
        placement in prop::collection::vec(any::<u8>(), 0..8),
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 0..400),
        faulty in prop::option::of(0_usize..6),
        changes in prop::collection::vec((0_usize..400, 0_u8..5, any::<u8>()), 0..6),
    ) {
        let managers = if hold { ManagerPolicy::HoldDrained } else { ManagerPolicy::Rolling };
        let mut world = World::new(3, 3, policy(managers, 2), &placement, faulty);
        let last = events.len();
        for (n, (kind, at)) in events.into_iter().enumerate() {
            for (_, change, at) in changes.iter().filter(|(when, ..)| *when == n || (n + 1 == last && *when > n)) {
                match change {
                    0 => world.join(Role::Manager),
                    1 | 2 => world.join(Role::Worker),
                    _ => world.leave(*at),
                }
                world.check();
            }
            world.event(kind, at);
        }
        run(&mut world, &[]);
        match &world.rollout.phase {
            Phase::Ended { aborted } => {
                prop_assert!(!aborted);
                for (id, entry) in &world.rollout.nodes {
                    let Some(host) = world.hosts.get(id) else {
                        let untouched = Step::Done { outcome: Outcome::Untouched };
                        prop_assert_eq!(&entry.step, &untouched, "{} has left", id);
                        continue;
                    };
                    prop_assert!(host.upgraded, "{} is not upgraded: {:?}", id, entry);
                    prop_assert_eq!(world.observed.nodes[id].availability, world.before[id]);
                }
            }
            Phase::Halted { .. } => prop_assert!(world.faulty.is_some(), "no reason to halt"),
            other @ (Phase::Running | Phase::Paused | Phase::Aborting) => {
                let waiting = plan(&world.rollout, &world.observed, Timestamp::UNIX_EPOCH).waiting;
                prop_assert!(false, "the rollout is stuck in {:?}: {:?}", other, waiting);
            }
        }
    }
}
