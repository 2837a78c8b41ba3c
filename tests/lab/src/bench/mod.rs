//! The benchmark: the project's figures, each beside what it is compared with, in one run.
//!
//! `docs/benchmarks.md` says what each figure is. [`engine_down`] and [`whole`] make swarms of their own and measure
//! from outside; [`by_hand`] and [`procedure`] are what a careful operator would do without the product; [`unpack`] runs
//! the agent's own code on this machine. [`report`] holds the numbers, what they must be, and how they are shown.

mod by_hand;
mod engine_down;
mod memory;
mod procedure;
pub mod report;
pub mod sample;
mod sampler;
pub mod spread;
mod steps;
mod unpack;
mod whole;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::command::docker;
use crate::engines::Bundle;
use crate::images::PRODUCT;
use crate::rig::Rig;
use crate::{Error, Init, Kind, Lab, Result, Spec, Suite};

use report::{Image, Report};

/// A figure that can be asked for alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// How long a worker's engine is down.
    EngineDown,
    /// How long a whole swarm takes, and what the connectivity test sees of it.
    Swarm,
    /// What an idle agent keeps in memory.
    AgentRss,
    /// What the image weighs.
    Image,
    /// Verifying and unpacking a bundle.
    VerifyUnpack,
}

impl Figure {
    /// Every figure.
    pub const ALL: [Self; 5] = [Self::EngineDown, Self::Swarm, Self::AgentRss, Self::Image, Self::VerifyUnpack];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EngineDown => "engine-down",
            Self::Swarm => "swarm",
            Self::AgentRss => "agent-rss",
            Self::Image => "image",
            Self::VerifyUnpack => "verify-unpack",
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no [`Figure`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no figure: use engine-down, swarm, agent-rss, image or verify-unpack")]
pub struct UnknownFigure(String);

impl FromStr for Figure {
    type Err = UnknownFigure;

    fn from_str(text: &str) -> Result<Self, UnknownFigure> {
        Self::ALL.into_iter().find(|figure| figure.name() == text).ok_or_else(|| UnknownFigure(text.to_owned()))
    }
}

/// What shall be measured, and how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The first part of its swarms' names.
    pub name: String,
    /// The suite whose engine the nodes start with.
    pub from: Suite,
    /// The figures.
    pub figures: Vec<Figure>,
    /// How often each side takes a worker's engine up and back again.
    pub rounds: u32,
    /// How many whole swarms each side upgrades.
    pub swarms: u32,
    /// How often each side unpacks.
    pub unpacks: u32,
    /// How long agents are left alone before their memory is read.
    pub idle: Duration,
    /// Whether the swarm of a measurement that failed stays, to be looked at.
    pub keep: bool,
    /// Whether this is less than the figures ask for, to try the benchmark out.
    pub quick: bool,
    /// The lab's own program, which the nodes run as their sampler.
    pub program: PathBuf,
}

impl Settings {
    fn wants(&self, figure: Figure) -> bool {
        self.figures.contains(&figure)
    }

    /// A swarm of the benchmark.
    fn spec(&self, part: &str, managers: u8, workers: u8) -> Spec {
        Spec {
            name: format!("{}-{part}", self.name),
            managers,
            workers,
            suite: self.from,
            kind: Kind::Container,
            init: Init::Systemd,
        }
    }

    /// Measures on a swarm and removes it, unless the measurement failed and it shall stay then.
    fn on_swarm<T>(&self, spec: &Spec, measure: impl FnOnce() -> Result<T>) -> Result<T> {
        let measured = measure();
        if measured.is_err() && self.keep {
            tracing::warn!(lab = spec.name, "the swarm stays; remove it: cargo lab down --name {}", spec.name);
            return measured;
        }
        let removed = Lab::down(&spec.name);
        let measured = measured?;
        removed.map(|()| measured)
    }
}

/// Measures. The product's image must be on the machine's engine.
///
/// What runs on this machine alone comes first, so that nothing is compiled beside a swarm.
pub fn run(settings: &Settings, target: &Bundle) -> Result<Report> {
    let mut report = Report::new(settings.from, &target.version, settings.quick);
    if settings.wants(Figure::Image) {
        report.image = Some(Image { image_bytes: image_bytes()? });
    }
    if settings.wants(Figure::VerifyUnpack) {
        report.verify_unpack = Some(unpack::measure(settings.unpacks, target)?);
    }
    if settings.wants(Figure::AgentRss) || settings.wants(Figure::EngineDown) {
        let spec = settings.spec("small", 1, 2);
        settings.on_swarm(&spec, || {
            let rig = Rig::without_load(&spec, target)?;
            // In this order: an agent that has upgraded its node is not the idle one of the figure.
            if settings.wants(Figure::AgentRss) {
                report.agent_rss = Some(memory::measure(&rig, settings.idle)?);
            }
            if settings.wants(Figure::EngineDown) {
                report.engine_down = Some(engine_down::measure(&rig, target, settings)?);
            }
            Ok(())
        })?;
    }
    if settings.wants(Figure::Swarm) {
        report.swarm = Some(whole::measure(settings, target)?);
    }
    Ok(report)
}

/// The size of the product's image, bytes.
fn image_bytes() -> Result<u64> {
    let said = docker(&["image", "inspect", "--format", "{{.Size}}", PRODUCT])?;
    said.trimmed().parse().map_err(|_| Error::Answer {
        what: "docker image inspect",
        answer: said.trimmed().to_owned(),
        expected: "a size in bytes",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_reads_back() {
        for figure in Figure::ALL {
            assert_eq!(figure.to_string().parse::<Figure>().expect("its own name"), figure);
        }
        assert!("probe".parse::<Figure>().is_err());
    }
}
