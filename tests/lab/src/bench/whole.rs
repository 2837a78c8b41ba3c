//! A whole swarm: from typing `requeen upgrade` to its end, against the procedure by hand, under the connectivity test.
//!
//! Each side has a swarm of its own, made anew, one after the other. Samplers run on all nodes of both.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Settings;
use super::procedure::{Procedure, Share, floor};
use super::sample::Outage;
use super::sampler::{self, Samplers};
use super::spread::{Pair, Spread};
use crate::engines::Bundle;
use crate::images::PRODUCT;
use crate::rig::{self, Load, Rig};
use crate::{Error, Lab, Node, Result, product};

/// How often a sampler asks: seldom, as it does so on every node for all of the time.
const EVERY: Duration = Duration::from_millis(50);

/// How long a rollout may take, in seconds for `timeout`.
const ROLLOUT_SECONDS: &str = "3600";

/// The figure. Times in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Whole {
    /// The product's time as a part of the procedure's.
    pub swarm_ratio: f64,
    /// The product's median.
    pub swarm_ours: f64,
    /// The procedure's median.
    pub swarm_theirs: f64,
    /// What can't be avoided, whoever does it: the median.
    pub swarm_floor: f64,
    /// Requests of the connectivity test during all upgrades, of both sides.
    pub probe_requests: u64,
    /// Those that got no good answer.
    pub probe_failed: u64,
}

/// Measures as often as the settings say.
pub(super) fn measure(settings: &Settings, target: &Bundle) -> Result<Whole> {
    let (mut ours, mut theirs, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    let mut load = Load::default();
    for _ in 0..settings.swarms {
        let spec = settings.spec("ours", 3, 2);
        let (seconds, seen) = settings.on_swarm(&spec, || by_product(&Rig::up(&spec, target)?, settings, target))?;
        tracing::info!(seconds, requests = seen.requests_total, failed = seen.failed_total, "the product");
        ours.push(seconds);
        load = load.and(seen);

        let spec = settings.spec("theirs", 3, 2);
        let (seconds, floor, seen) = settings.on_swarm(&spec, || {
            let lab = Lab::up(&spec)?;
            by_procedure(&lab, settings, target)
        })?;
        tracing::info!(seconds, floor, requests = seen.requests_total, failed = seen.failed_total, "the procedure");
        theirs.push(seconds);
        floors.push(floor);
        load = load.and(seen);
    }
    let pair = Pair::of("whole swarms", &ours, &theirs)?;
    Ok(Whole {
        swarm_ratio: pair.ratio(),
        swarm_ours: pair.ours.median,
        swarm_theirs: pair.theirs.median,
        swarm_floor: Spread::of("the floor", &floors)?.median,
        probe_requests: load.requests_total,
        probe_failed: load.failed_total,
    })
}

/// Upgrades by the product: seconds, and what the connectivity test saw.
fn by_product(rig: &Rig, settings: &Settings, target: &Bundle) -> Result<(f64, Load)> {
    let first = rig.first()?;
    let samplers = samplers(rig.lab(), settings)?;
    let began = Instant::now();
    let upgrade = first.exec(&["timeout", ROLLOUT_SECONDS, "requeen", "upgrade", "--bundle", rig.bundle()])?;
    let seconds = began.elapsed().as_secs_f64();
    upgrade.ok()?;
    tell(&samplers.finish()?);
    all_run(rig.lab(), target)?;
    Ok((seconds, rig.load()?))
}

/// Upgrades by the procedure, on a swarm that has the connectivity test and nothing of the product: seconds, the floor,
/// and what the test saw.
fn by_procedure(lab: &Lab, settings: &Settings, target: &Bundle) -> Result<(f64, f64, Load)> {
    let first = lab.node("m1")?;
    lab.load_image(PRODUCT)?;
    rig::deploy_probe(first)?;
    let procedure = Procedure::prepare(lab, target)?;
    let samplers = samplers(lab, settings)?;
    let began = Instant::now();
    let work = procedure.run()?;
    let seconds = began.elapsed().as_secs_f64();
    let outages = samplers.finish()?;
    tell(&outages);
    all_run(lab, target)?;
    let shares: Vec<Share> = outages.iter().filter_map(|(node, outage)| Some(work.get(node)?.share(outage))).collect();
    // The report is the coordinator's to make, so now there is one.
    product::start_coordinator(first)?;
    product::install_cli(first)?;
    Ok((seconds, floor(&shares), rig::load(first)?))
}

fn samplers(lab: &Lab, settings: &Settings) -> Result<Samplers> {
    sampler::install(lab.nodes(), &settings.program)?;
    Samplers::start(lab.nodes(), EVERY)
}

fn tell(outages: &BTreeMap<String, Outage>) {
    for (node, outage) in outages {
        tracing::info!(node, seconds = outage.seconds(), "engine down");
    }
}

/// Insists on the target's engine on every node.
fn all_run(lab: &Lab, target: &Bundle) -> Result<()> {
    lab.nodes().iter().try_for_each(|node: &Node| {
        let found = node.engine_version()?;
        if found == target.version {
            return Ok(());
        }
        Err(Error::WrongEngine { node: node.name().to_owned(), found, expected: target.version.clone() })
    })
}
