//! The baseline of a whole swarm: the upgrade by hand, as a script that waits for each step.
//!
//! Managers first, one after the other, the leader last, and all of them stay drained until the last one is done; then
//! they are made active, and the workers follow, each active again before the next is drained. On every node: drain, wait
//! until it is empty, stop, back up binaries and swarm state with `tar`, unpack the bundle over the binaries, start, wait
//! until the swarm sees the new engine. What can be done before is done before the clock starts: the bundle is on every
//! node, and where its files go is known.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use super::by_hand::{self, Place, units};
use super::sample::{Outage, monotonic_ns, seconds_between};
use super::steps::{self, Availability};
use crate::engines::Bundle;
use crate::wait::{self, Seen};
use crate::{Error, Lab, Node, Result, product};

/// Where a node's backup goes.
const BACKUP: &str = "/root/engine-backup.tgz";

/// Where the bundle is unpacked: on the file system of the binaries.
const UNPACKED: &str = "/root/engine-new";

/// How long managers may take to elect another leader.
const ELECTION_LIMIT: Duration = Duration::from_secs(120);

/// What can't be avoided on one node, seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share {
    /// From the drain to no task.
    pub(super) drain: f64,
    /// From the order to stop until systemd says it is done.
    pub(super) stop: f64,
    /// From the order to start until the API answers.
    pub(super) start: f64,
    /// For the leader: from the stop until another manager leads.
    pub(super) election: Option<f64>,
}

/// The floor: what every upgrade of this swarm takes, one node after the other, however it is done.
///
/// An election runs beside the leader's stop and start, and whichever takes longer counts.
pub(super) fn floor(shares: &[Share]) -> f64 {
    shares.iter().map(|share| share.drain + (share.stop + share.start).max(share.election.unwrap_or_default())).sum()
}

/// What the script saw of one node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Work {
    drain: f64,
    stop: f64,
    /// When the start was ordered, on the machine's monotonic clock.
    started_ns: u64,
    election: Option<f64>,
}

impl Work {
    /// With the node's outage, as a sampler saw it.
    pub(super) fn share(&self, outage: &Outage) -> Share {
        let start = seconds_between(self.started_ns, outage.first_good_ns);
        Share { drain: self.drain, stop: self.stop, start, election: self.election }
    }
}

/// The script, ready to run on a swarm.
pub(super) struct Procedure<'a> {
    lab: &'a Lab,
    version: String,
    /// The bundle's path, the same on every node.
    bundle: String,
    places: BTreeMap<String, Vec<Place>>,
}

impl<'a> Procedure<'a> {
    /// Puts the bundle on every node.
    pub(super) fn prepare(lab: &'a Lab, target: &Bundle) -> Result<Self> {
        let mut places = BTreeMap::new();
        let mut bundle = String::new();
        for node in lab.nodes() {
            bundle = product::copy_bundle(node, target)?;
            places.insert(node.name().to_owned(), by_hand::places(node)?);
        }
        Ok(Self { lab, version: target.version.clone(), bundle, places })
    }

    /// Runs it from the first drain to the last worker's tasks; what it saw, by the node's name.
    pub(super) fn run(&self) -> Result<BTreeMap<String, Work>> {
        let mut seen = BTreeMap::new();
        let mut managers: Vec<&Node> = self.lab.managers().collect();
        while !managers.is_empty() {
            let leader = self.leader()?;
            // The leader waits until it is the last one.
            let next = managers.iter().position(|node| node.name() != leader).unwrap_or_default();
            let node = managers.remove(next);
            let asked = self.other_manager(node)?;
            seen.insert(node.name().to_owned(), self.replace(asked, node, node.name() == leader)?);
        }
        let first = self.lab.node("m1")?;
        for node in self.lab.managers() {
            steps::set_availability(first, node, Availability::Active)?;
        }
        for node in self.lab.managers() {
            steps::wait_for_tasks(first, node)?;
        }
        for node in self.lab.workers() {
            seen.insert(node.name().to_owned(), self.replace(first, node, false)?);
            steps::set_availability(first, node, Availability::Active)?;
            steps::wait_for_tasks(first, node)?;
        }
        Ok(seen)
    }

    /// The name of the manager that leads.
    fn leader(&self) -> Result<String> {
        let asked = self.lab.node("m1")?;
        wait::until("the managers' leader", ELECTION_LIMIT, || {
            Ok(steps::leader(asked)?.map_or_else(|| Seen::NotYet("nobody leads".to_owned()), Seen::Done))
        })
    }

    /// A manager to ask while `node` is in work.
    fn other_manager(&self, node: &Node) -> Result<&'a Node> {
        let lab = self.lab;
        lab.managers().find(|other| *other != node).ok_or_else(|| Error::UnknownNode {
            lab: lab.name().to_owned(),
            node: "another manager".to_owned(),
            known: node.name().to_owned(),
        })
    }

    /// Drains a node and replaces its engine; the node stays drained.
    fn replace(&self, asked: &Node, node: &Node, leads: bool) -> Result<Work> {
        let places = self.places.get(node.name()).map(Vec::as_slice).unwrap_or_default();
        let began = Instant::now();
        steps::set_availability(asked, node, Availability::Drain)?;
        steps::wait_until_empty(asked, node)?;
        let drain = began.elapsed().as_secs_f64();
        let (stop, started_ns, election) = thread::scope(|scope| {
            let election = leads.then(|| scope.spawn(|| election(asked, node)));
            let stopped = self.stop_and_start(node, places);
            let election =
                election.map(|thread| thread.join().unwrap_or(Err(Error::Panicked { what: "watching the election" })));
            let (stop, started_ns) = stopped?;
            Ok::<_, Error>((stop, started_ns, election.transpose()?))
        })?;
        steps::wait_until_seen(asked, node, &self.version)?;
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!(%node, seconds, drain, stop, ?election, "replaced by the procedure");
        Ok(Work { drain, stop, started_ns, election })
    }

    /// The work on the node itself: how long the stop took, seconds, and when the start was ordered.
    fn stop_and_start(&self, node: &Node, places: &[Place]) -> Result<(f64, u64)> {
        let units = units(true);
        let began = Instant::now();
        node.sh(&format!("systemctl stop {units}"))?;
        let stop = began.elapsed().as_secs_f64();
        node.sh(&backup(places))?;
        node.sh(&unpack(places, &self.bundle))?;
        let started_ns = monotonic_ns()?;
        node.sh(&format!("systemctl start {units}"))?;
        Ok((stop, started_ns))
    }
}

/// Waits until the managers have elected a leader after `old` went away; how long that took, seconds.
fn election(asked: &Node, old: &Node) -> Result<f64> {
    let began = Instant::now();
    let mut leaderless = false;
    wait::until_true("another leader", ELECTION_LIMIT, || {
        let Some(leader) = steps::leader(asked)? else {
            leaderless = true;
            return Ok(Err("nobody leads".to_owned()));
        };
        // One that came back in time may have been elected again.
        let elected = leaderless || leader != old.name();
        Ok(if elected { Ok(()) } else { Err(leader) })
    })?;
    Ok(began.elapsed().as_secs_f64())
}

/// The binaries and the swarm's state, packed.
fn backup(places: &[Place]) -> String {
    let mut script = format!("tar -czf {BACKUP} -C /");
    for Place { path, .. } in places {
        let _ = write!(script, " {}", path.trim_start_matches('/'));
    }
    script + " var/lib/docker/swarm"
}

/// The bundle over the binaries, inflated once whatever folders they are in.
fn unpack(places: &[Place], bundle: &str) -> String {
    let mut script =
        format!("set -e; rm -rf {UNPACKED}; mkdir {UNPACKED}; tar -xzf {bundle} --strip-components=1 -C {UNPACKED}");
    for Place { name, path } in places {
        let _ = write!(script, "; mv -f {UNPACKED}/{name} {path}");
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_counts_an_election_beside_the_leaders_restart() {
        let share = Share { drain: 5.0, stop: 1.0, start: 2.0, election: None };
        let leader = Share { election: Some(12.0), ..share };
        let quick = Share { election: Some(0.5), ..share };
        assert!((floor(&[share, leader, quick]) - (8.0 + 17.0 + 8.0)).abs() < 1e-9);
        assert!(floor(&[]).abs() < 1e-9);
    }

    #[test]
    fn a_start_lasts_until_the_first_answer() {
        let work = Work { drain: 5.0, stop: 1.0, started_ns: 2_000_000_000, election: None };
        let share = work.share(&Outage { last_good_ns: 0, first_good_ns: 4_500_000_000 });
        assert!((share.start - 2.5).abs() < 1e-9);
    }

    #[test]
    fn binaries_and_swarm_are_backed_up_before_the_bundle_goes_over_them() {
        let places = [
            Place { name: "dockerd", path: "/usr/sbin/dockerd".to_owned() },
            Place { name: "runc", path: "/usr/bin/runc".to_owned() },
        ];
        assert_eq!(
            backup(&places),
            "tar -czf /root/engine-backup.tgz -C / usr/sbin/dockerd usr/bin/runc var/lib/docker/swarm"
        );
        let script = unpack(&places, "/root/docker-1.tgz");
        assert!(script.contains("tar -xzf /root/docker-1.tgz --strip-components=1 -C /root/engine-new;"), "{script}");
        assert!(script.ends_with("mv -f /root/engine-new/runc /usr/bin/runc"), "{script}");
    }
}
