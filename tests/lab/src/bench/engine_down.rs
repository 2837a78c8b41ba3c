//! Engine down: one worker's engine, from the API's last answer to its next, by the product and by hand.
//!
//! One manager and two workers. In each round one worker goes up and back by the product, the other by hand, step by
//! step in turns, and the workers change sides from round to round: whatever the machine is doing, it does it to both.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::by_hand::{ByHand, Way};
use super::sampler::{self, Sampler};
use super::spread::Pair;
use super::{Settings, steps};
use crate::engines::Bundle;
use crate::rig::Rig;
use crate::{Error, Node, Result, product, wait};

/// How often a sampler asks.
const EVERY: Duration = Duration::from_millis(5);

/// How long a rollout of one node may take, in seconds for `timeout`.
const ROLLOUT_SECONDS: &str = "900";

/// How long agents may take to be idle again after a rollout.
const AGENTS_LIMIT: Duration = Duration::from_secs(120);

/// The figure. Times in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EngineDown {
    /// The larger one of the two ways' ratios.
    pub engine_down_ratio: f64,
    /// The product's median on that way.
    pub engine_down_ours: f64,
    /// The hand's median on that way.
    pub engine_down_theirs: f64,
    /// To the later engine.
    pub engine_down_up: Pair,
    /// Back to the earlier one.
    pub engine_down_back: Pair,
}

impl EngineDown {
    /// Of both ways: the figure is the worse one.
    pub(super) fn of(up: Pair, back: Pair) -> Self {
        let worse = if back.ratio() > up.ratio() { back } else { up };
        Self {
            engine_down_ratio: worse.ratio(),
            engine_down_ours: worse.ours.median,
            engine_down_theirs: worse.theirs.median,
            engine_down_up: up,
            engine_down_back: back,
        }
    }
}

/// What was measured on one way, seconds.
#[derive(Debug, Default)]
struct Times {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// Measures on the rig's two workers.
pub(super) fn measure(rig: &Rig, target: &Bundle, settings: &Settings) -> Result<EngineDown> {
    let lab = rig.lab();
    let manager = rig.first()?;
    let workers = [lab.node("w1")?, lab.node("w2")?];
    let earlier = workers[0].engine_version()?;
    sampler::install(lab.nodes(), &settings.program)?;
    let hands = [ByHand::prepare(manager, workers[0], target)?, ByHand::prepare(manager, workers[1], target)?];
    let (mut up, mut back) = (Times::default(), Times::default());
    for round in 1..=settings.rounds {
        let (ours, theirs) = if round % 2 == 1 { (0, 1) } else { (1, 0) };
        for (way, version, times) in [(Way::Up, &target.version, &mut up), (Way::Back, &earlier, &mut back)] {
            settled(rig)?;
            times.ours.push(by_product(rig, workers[ours], way, version)?);
            settled(rig)?;
            times.theirs.push(hands[theirs].swap(way, version, EVERY)?);
            tracing::info!(round, ?way, ours = times.ours.last(), theirs = times.theirs.last(), "engine down, seconds");
        }
    }
    let pair = |times: &Times| Pair::of("engine down", &times.ours, &times.theirs);
    Ok(EngineDown::of(pair(&up)?, pair(&back)?))
}

/// Takes a worker's engine up or back by the product; how long its API was gone, seconds.
fn by_product(rig: &Rig, node: &Node, way: Way, version: &str) -> Result<f64> {
    let first = rig.first()?;
    let words = match way {
        Way::Up => vec!["upgrade", "--bundle", rig.bundle(), "--only", node.name()],
        Way::Back => vec!["rollback", node.name()],
    };
    let sampler = Sampler::start(node, EVERY)?;
    let mut line = vec!["timeout", ROLLOUT_SECONDS, "requeen"];
    line.extend(words);
    first.exec(&line)?.ok()?;
    let outage = sampler.finish_with_one()?;
    let found = node.engine_version()?;
    if found == version {
        return Ok(outage.seconds());
    }
    Err(Error::WrongEngine { node: node.name().to_owned(), found, expected: version.to_owned() })
}

/// Waits until nothing is left of the swap before: every node ready, with an agent that has nothing to do.
fn settled(rig: &Rig) -> Result<()> {
    let first = rig.first()?;
    rig.lab().wait_until_ready(first, AGENTS_LIMIT)?;
    for node in rig.lab().nodes() {
        steps::wait_for_tasks(first, node)?;
    }
    wait_until_idle(first, rig.lab().nodes().len())
}

/// Waits until the agents of all nodes say that they are in no rollout.
pub(super) fn wait_until_idle(first: &Node, nodes: usize) -> Result<()> {
    wait::until_true("idle agents", AGENTS_LIMIT, || {
        let said = product::requeen(first, &["status", "--json"])?;
        if !said.success() {
            return Ok(Err(said.stderr));
        }
        let status =
            serde_json::from_str(&said.stdout).map_err(|source| Error::Json { what: "requeen status", source })?;
        let idle = idle(&status);
        Ok(if idle == nodes { Ok(()) } else { Err(format!("{idle} of {nodes} agents are idle")) })
    })
}

/// How many agents are idle, by `requeen status --json`.
fn idle(status: &Value) -> usize {
    let nodes = status.get("nodes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let state = |node: &&Value| node.pointer("/agent/state").and_then(Value::as_str) == Some("idle");
    nodes.iter().filter(state).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_the_worse_way() {
        let pair = |ours: f64, theirs: f64| Pair::of("x", &[ours], &[theirs]).expect("values");
        let figure = EngineDown::of(pair(1.0, 1.0), pair(3.0, 2.0));
        assert!((figure.engine_down_ratio - 1.5).abs() < 1e-9);
        assert_eq!((figure.engine_down_ours, figure.engine_down_theirs), (3.0, 2.0));
        let figure = EngineDown::of(pair(3.0, 2.0), pair(1.0, 1.0));
        assert_eq!(figure.engine_down_ours, 3.0);
    }

    #[test]
    fn agents_that_are_silent_or_at_work_are_not_idle() {
        let status = serde_json::json!({"nodes": [
            {"agent": {"state": "idle"}}, {"agent": null}, {"agent": {"state": "staged", "rollout": "x"}}, {},
        ]});
        assert_eq!(idle(&status), 1);
        assert_eq!(idle(&Value::Null), 0);
    }
}
