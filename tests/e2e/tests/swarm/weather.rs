//! Bad weather on machines: a network that is slow and loses a fifth of what is sent. It only takes time, and changes nothing
//! of how a rollout ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::bundles;
use lab::{Node, Weather, product};
use serde_json::Value;

use crate::faults::{base, other_runc, upgraded, wait_for_shown, waits_for_grant};
use crate::operator::{requeen_ok, status};
use crate::power::{begin, is_whole};
use crate::small::Small;
use crate::world::World;

/// The worker, by name.
const WORKER: &str = "w1";

/// The weather: a satellite's way, and a radio's losses.
const BAD: Weather = Weather { delay_ms: 300, loss_percent: 20 };

/// How long the bundle may take to the node in it.
const STAGING: &str = "15m";

/// How long a rollout of one node may take in it.
const LIMIT: Duration = Duration::from_secs(900);

/// The worker is upgraded while what it sends, and then what the manager sends, is late or lost. It takes longer.
pub(crate) fn a_slow_network_only_takes_longer(world: &World) -> Result<()> {
    let small = world.machines()?;
    let (first, worker) = (small.first()?, small.worker()?);
    by_turns(small, |there, back| {
        upgrade_in(small, there, "fair weather", |_, rest| rest())?;
        upgrade_in(small, back, "bad weather at the worker", |part, rest| match part {
            Part::Whole => under(worker, rest),
            Part::FromGrant => rest(),
        })?;
        // With a fifth of the data lost TCP should bring some kilobytes a second, and that is nobody's fault here:
        // the bundle is there before.
        upgrade_in(small, there, "bad weather at the manager", |part, rest| match part {
            Part::Whole => rest(),
            Part::FromGrant => under(first, rest),
        })
    })
}

/// A bundle on the manager, and the digest of its runc.
struct Target {
    place: String,
    runc: String,
}

/// Runs a scenario with two bundles that take turns: one with another runc, and the one that the worker has.
fn by_turns(small: &Small, run: impl FnOnce(&Target, &Target) -> Result<()>) -> Result<()> {
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, old| {
        let base = base(worker)?;
        let there = Target { place: place.to_owned(), runc: bundles::sha256(&other_runc(&base)?) };
        let back = Target { place: product::copy_bundle(first, &base)?, runc: old.to_owned() };
        run(&there, &back)
    })
}

/// A part of an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// All of it, the bundle's way to the node included.
    Whole,
    /// What comes after the operator's grant.
    FromGrant,
}

/// Upgrades the worker, each part of it in the weather that `in_weather` makes.
fn upgrade_in(
    small: &Small,
    target: &Target,
    what: &str,
    in_weather: impl Fn(Part, &mut dyn FnMut() -> Result<()>) -> Result<()>,
) -> Result<()> {
    let first = small.first()?;
    let began = Instant::now();
    let mut granted = began;
    in_weather(Part::Whole, &mut || {
        let upgrade = ["upgrade", "--bundle", &target.place, "--only", WORKER, "--manual", "--detach"];
        requeen_ok(first, &[&upgrade[..], &["--stage-timeout", STAGING]].concat())?;
        granted = Instant::now();
        in_weather(Part::FromGrant, &mut || {
            wait_for_shown(first, "the node waiting for its grant", WORKER, waits_for_grant)?;
            requeen_ok(first, &["grant", WORKER])?;
            let watch = ["timeout", &LIMIT.as_secs().to_string(), "requeen", "status", "--watch"];
            let watched = first.exec(&watch)?;
            ensure!(watched.success(), "exit {}\n{}{}", watched.status, watched.stdout, watched.stderr);
            Ok(())
        })
    })?;
    let (staged, rest) = (granted.duration_since(began), granted.elapsed());
    let node = shown_of(first, WORKER)?;
    ensure!(upgraded(&node), "{node}");
    let leases = steps(&node)?.iter().filter(|(step, _)| step == "granted").count();
    let (staged, rest) = (staged.as_secs_f64(), rest.as_secs_f64());
    eprintln!("{what}: staged in {staged:.0} s, {rest:.0} s from the grant to the end, {leases} leases");
    is_whole(small, &target.runc)
}

/// Runs something while a node's cable is in [`BAD`] weather.
fn under(node: &Node, run: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    node.weather(BAD)?;
    let ran = run();
    node.clear_network()?;
    ran
}

/// What is shown of a node.
fn shown_of(first: &Node, name: &str) -> Result<Value> {
    let status = status(first)?;
    let found = status["nodes"].as_array().into_iter().flatten().find(|node| node["hostname"] == name);
    found.cloned().with_context(|| format!("{name} is not listed"))
}

/// A node's steps, and when each began.
fn steps(node: &Value) -> Result<Vec<(String, u64)>> {
    serde_json::from_value(node["times"].clone()).with_context(|| format!("no times: {node}"))
}
