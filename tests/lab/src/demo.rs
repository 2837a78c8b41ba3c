//! The demonstration: a swarm upgraded under load, from nothing, with one command.

use crate::images::Build;
use crate::rig::Rig;
use crate::{Error, Lab, Result, Spec, Suite, engines, product};

/// What the demonstration shall be.
#[derive(Clone, Debug)]
pub struct Demo {
    /// The swarm to make.
    pub spec: Spec,
    /// The engine to upgrade to.
    pub target: Suite,
    /// The engine that is laid ready for whoever wants to go on, if it can be had.
    pub next: Suite,
    /// How the product is built.
    pub build: Build,
}

/// Makes the product, a swarm and a load, upgrades the swarm, and says what the load saw. The swarm stays.
///
/// `say` is told what happens, one line per step. The answer is the status of `requeen upgrade`.
pub fn run(demo: &Demo, say: impl Fn(&str)) -> Result<i32> {
    let Demo { spec, target, next, build } = demo;
    say("building the product's image");
    build.run()?;
    let bundle = engines::bundle(*target)?;
    say(&format!("making {} managers and {} workers with the engine of {}", spec.managers, spec.workers, spec.suite));
    say("  and on them a coordinator, the agents, and the connectivity test");
    let rig = Rig::up(spec, &bundle)?;
    let next = lay_ready(rig.lab(), *next, &say)?;
    say(&format!("requeen upgrade --bundle {}", rig.bundle()));
    let status = product::requeen_on_terminal(rig.first()?, &["upgrade", "--bundle", rig.bundle()])?;
    say("requeen probe report");
    product::requeen_on_terminal(rig.first()?, &["probe", "report"])?;
    if let Some(next) = next {
        say(&format!("next: cargo lab shell m1 --name {}", spec.name));
        say(&format!("      requeen upgrade --bundle {next}"));
    }
    say(&format!("to remove it all: cargo lab down --name {}", spec.name));
    Ok(status)
}

/// Copies the next engine's bundle to m1; a suite that can't be had here is said so and left out.
fn lay_ready(lab: &Lab, suite: Suite, say: impl Fn(&str)) -> Result<Option<String>> {
    match engines::bundle(suite) {
        Ok(bundle) => product::copy_bundle(lab.node("m1")?, &bundle).map(Some),
        Err(error @ Error::SuiteUnavailable { .. }) => {
            say(&format!("SKIPPED: {error}"));
            Ok(None)
        }
        Err(other) => Err(other),
    }
}
