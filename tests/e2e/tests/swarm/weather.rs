//! Bad weather on machines: a network that is slow and loses a fifth of what is sent, and clocks that somebody sets in the
//! middle. Both only take time, and change nothing of how a rollout ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::bundles;
use lab::{Node, Weather, product};
use serde_json::Value;

use crate::faults::{
    base, holding_task, let_go, other_runc, upgraded, wait_for_shown, wait_for_words, waits_for_grant, with_slow_start,
};
use crate::operator::{requeen_ok, status, wait_for_end};
use crate::power::{begin, is_whole, wait_for_phase};
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

/// What a step, a rollout or an engine's absence can't have taken here, milliseconds; far from [`HOUR`].
const ABSURD_MS: u64 = 1_500_000;

/// How long an engine can have been down, milliseconds.
const DOWN_MS: u64 = 300_000;

/// By how much a clock is set, seconds.
const HOUR: i64 = 3600;

/// Where somebody sets a clock: while its node is emptied, while its engine is down, and when the rollout has ended. Each
/// time it ends as it began.
const JUMPS: [[i64; 3]; 2] = [[HOUR, -2 * HOUR, HOUR], [-HOUR, 2 * HOUR, -HOUR]];

/// How old the swarm shall be, seconds: engines trust no root certificate that is of the future, and one that was set back
/// by an hour in a swarm of some minutes could not join it, whoever has restarted it.
const AGE: i64 = 2 * HOUR;

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

/// Somebody sets the worker's clock by an hour, there and back, and then the coordinator's. No lease is lost, and nothing
/// that is told of times is absurd; whose clock is off is named.
pub(crate) fn clocks_that_jump_change_nothing(world: &World) -> Result<()> {
    let small = world.machines()?;
    let everyone = || small.lab().nodes().iter();
    everyone().try_for_each(|node| set_clock(node, AGE))?;
    let ran = by_turns(small, |there, back| {
        for node in [small.worker()?, small.first()?] {
            for (jumps, target) in JUMPS.into_iter().zip([there, back]) {
                upgrade_while_set(small, target, node, jumps)
                    .with_context(|| format!("the clock of {node} jumped by {jumps:?} s"))?;
            }
        }
        Ok(())
    });
    everyone().try_for_each(|node| set_clock(node, -AGE))?;
    ran
}

/// Upgrades the worker while `node`'s clock is set three times.
fn upgrade_while_set(small: &Small, target: &Target, node: &Node, jumps: [i64; 3]) -> Result<()> {
    let (first, worker) = (small.first()?, small.worker()?);
    eprintln!("the clock of {node} jumps by {jumps:?} s");
    let [emptying, down, over] = jumps;
    let mut off = 0;
    let mut jump = |by: i64| {
        off += by;
        set_clock(node, by)
    };
    let ran = (|| {
        holding_task(first, WORKER)?;
        with_slow_start(worker, 5, || {
            requeen_ok(first, &["upgrade", "--bundle", &target.place, "--only", WORKER, "--detach"])?;
            wait_for_words(first, r#""work": "emptying""#)?;
            jump(emptying)?;
            wait_for_shown(first, "the clock that is off", WORKER, names_a_clock)?;
            plausible(first)?;
            let_go(first, worker)?;
            wait_for_phase(worker, "stopping")?;
            jump(down)?;
            plausible(first)?;
            wait_for_end(first)
        })?;
        plausible(first)?;
        jump(over)?;
        let node = plausible(first)?;
        ensure!(upgraded(&node), "{node}");
        let granted = steps(&node)?.iter().filter(|(step, _)| step == "granted").count();
        ensure!(granted == 1, "{granted} leases: {node}");
        let down = node["step"]["engine_down_ms"].as_u64().context("no time without an engine")?;
        ensure!((1..DOWN_MS).contains(&down), "the engine was down for {down} ms");
        eprintln!("engine down: {down} ms");
        wait_for_shown(first, "clocks that agree again", WORKER, |shown| !names_a_clock(shown))?;
        is_whole(small, &target.runc)
    })();
    set_clock(node, -off)?;
    ran
}

/// Sets a node's clock by so many seconds.
fn set_clock(node: &Node, by: i64) -> Result<()> {
    if by != 0 {
        node.sh(&format!("date --set \"$(date --date '{by} seconds')\""))?;
    }
    Ok(())
}

/// Whether `status` says of a node that its clock is not the coordinator's.
fn names_a_clock(shown: &Value) -> bool {
    let troubles = shown["troubles"].as_array().into_iter().flatten();
    troubles.filter_map(|trouble| trouble["what"].as_str()).any(|what| what.contains("its clock"))
}

/// `status` and `history` tell of no time that can't be. Returns what is shown of the worker.
fn plausible(first: &Node) -> Result<Value> {
    let status = status(first)?;
    let elapsed = status.pointer("/rollout/elapsed_ms").and_then(Value::as_u64).context("no rollout")?;
    ensure!(elapsed < ABSURD_MS, "it has taken {elapsed} ms: {status:#}");
    for node in status["nodes"].as_array().into_iter().flatten() {
        let times = steps(node)?;
        ensure!(times.is_sorted_by_key(|(_, ms)| *ms), "{times:?}");
        ensure!(times.iter().all(|(_, ms)| *ms <= elapsed), "later than {elapsed} ms: {times:?}");
        for value in ["since_ms", "silent_secs"] {
            ensure!(node[value].as_u64().unwrap_or_default() < ABSURD_MS, "{value}: {node}");
        }
    }
    let history = product::requeen(first, &["history", "--json"])?.ok()?;
    let history: Value = serde_json::from_str(&history.stdout)?;
    let last = &history["rollouts"][0];
    ensure!(last["id"] == status["rollout"]["id"], "another rollout is the last one: {last}");
    ensure!(last["elapsed_ms"].as_u64().is_some_and(|ms| ms < ABSURD_MS), "{last}");
    shown_of(first, WORKER)
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
