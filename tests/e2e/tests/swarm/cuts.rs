//! Power cuts that hurt: on machines, whose disks have what was synced and nothing else. The worker ends upgraded or
//! exactly as it was, from one set of files, and says which.
//!
//! Two bundles take turns, which differ in two programs: what a cut left behind is what the next upgrade begins with, and
//! nothing has to be taken back between two cuts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use e2e::bundles;
use lab::figures::Figures;
use lab::{Node, product, wait};
use serde_json::Value;

use crate::faults::{JOURNAL, base};
use crate::operator::{requeen_ok, status, wait_for_end};
use crate::power::is_whole;
use crate::small::Small;
use crate::world::World;

/// How long anything may take on a machine: it is slow, and so is its boot.
const LIMIT: Duration = Duration::from_secs(300);

/// The worker, by name.
pub(crate) const WORKER: &str = "w1";

/// What the other bundle has other files of. Both are run by the engine, and neither is the engine.
const CHANGED: [&str; 2] = ["runc", "docker-init"];

/// The short set: before the engine is stopped, and while it is down. The one ends upgraded, the other rolled back.
const SHORT: [&str; 2] = ["linked", "switching"];

/// Every step of a worker's way to its new engine, as its journal calls them.
const STEPS: [&str; 9] =
    ["leased", "linking", "linked", "stopping", "switching", "starting", "verifying", "running", "settling-new"];

/// The steps after which the engine is not stopped, so that the work begins anew and ends.
const BEFORE_THE_STOP: [&str; 3] = ["leased", "linking", "linked"];

/// How many instants are tried unless [`COUNT`] says otherwise.
const INSTANTS: u32 = 20;

/// The variable that says how many.
const COUNT: &str = "REQUEEN_E2E_CUTS";

/// The variable with the seed of a run that is to be repeated.
const SEED: &str = "REQUEEN_E2E_SEED";

/// The power is cut at some steps of the work.
pub(crate) fn power_cut_at_two_steps(world: &World) -> Result<()> {
    let cuts = Cuts::begin(world)?;
    for step in SHORT {
        cuts.at_step(step)?;
    }
    Ok(())
}

/// The power is cut at every step of the work, one upgrade for each.
pub(crate) fn power_cut_at_every_step(world: &World) -> Result<()> {
    let cuts = Cuts::begin(world)?;
    for step in STEPS {
        cuts.at_step(step)?;
    }
    Ok(())
}

/// The power is cut at instants that a seed names, from the command to some time after the work's usual end.
pub(crate) fn power_cut_at_random_instants(world: &World) -> Result<()> {
    let count: u32 = number(COUNT)?.unwrap_or(INSTANTS);
    let seed: u64 = match number(SEED)? {
        Some(seed) => seed,
        None => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?,
    };
    eprintln!("the seed is {seed}: {SEED}={seed} {COUNT}={count} tries the same instants again");
    Figures { seeds: vec![seed.to_string()], ..Figures::default() }.note()?;
    let cuts = Cuts::begin(world)?;
    let usual = cuts.without_a_cut()?;
    eprintln!("an upgrade takes {:.1} s here", usual.as_secs_f64());
    let mut instants = Instants(seed);
    let mut ends = BTreeMap::new();
    for number in 1..=count {
        let after = instants.next(usual + usual / 4);
        eprintln!("cut {number} of {count}, {} ms after the command", after.as_millis());
        let end = cuts
            .at_instant(after)
            .with_context(|| format!("cut {number}, {} ms after the command, seed {seed}", after.as_millis()))?;
        *ends.entry(end.word()).or_insert(0) += 1;
    }
    eprintln!("{count} cuts, seed {seed}: {ends:?}");
    Ok(())
}

/// How a node's work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Upgraded,
    RolledBack,
}

impl End {
    const fn word(self) -> &'static str {
        match self {
            Self::Upgraded => "upgraded",
            Self::RolledBack => "rolled-back",
        }
    }
}

/// The swarm of machines, both bundles on its manager, and what their files are.
pub(crate) struct Cuts<'a> {
    small: &'a Small,
    /// The bundle of the engine that the machines were made with.
    own: Files,
    /// The one with [`CHANGED`] in it.
    other: Files,
}

/// A bundle on the manager, and the digests of its files.
pub(crate) struct Files {
    pub(crate) place: String,
    pub(crate) digests: BTreeMap<String, String>,
}

impl<'a> Cuts<'a> {
    fn begin(world: &'a World) -> Result<Self> {
        Self::of(world.machines()?)
    }

    /// Puts agents and both bundles on a swarm.
    pub(crate) fn of(small: &'a Small) -> Result<Self> {
        let (first, worker) = (small.first()?, small.worker()?);
        small.with_agents()?;
        // Of a scenario that failed in the middle.
        let phase = status(first)?.pointer("/rollout/phase").and_then(Value::as_str).map(str::to_owned);
        if phase.is_some_and(|phase| phase != "ended") {
            requeen_ok(first, &["abort"])?;
            wait_for_end(first)?;
        }
        let base = base(worker)?;
        let own = Files { place: product::copy_bundle(first, &base)?, digests: digests(&base.path)? };
        let folder = tempfile::tempdir()?;
        let (mut from, mut place) = (base.path.clone(), base.path.clone());
        for name in CHANGED {
            let mut content = bundles::content(&from, name)?;
            content.extend_from_slice(b"another");
            place = folder.path().join(format!("{name}.tgz"));
            bundles::replaced(&from, name, &content, &place)?;
            from.clone_from(&place);
        }
        let there = "/root/other.tgz";
        first.copy_in(&place, there)?;
        let other = Files { place: there.to_owned(), digests: digests(&place)? };
        // What an operator has on a manager has been there for longer than an instant.
        first.sh("sync")?;
        Ok(Self { small, own, other })
    }

    /// Upgrades the worker, cuts its power at that step, and returns how it ended.
    fn at_step(&self, step: &str) -> Result<End> {
        eprintln!("cut at {step}");
        let end = self.cut(|worker| {
            // On the machine itself: the executor stands still from there to the end of its power.
            let script = format!(
                "until grep --quiet '\"phase\": \"{step}\"' {JOURNAL} 2>/dev/null; do \
                   grep --quiet '\"phase\": \"upgraded\"' {JOURNAL} 2>/dev/null && [ -e /run/e2e-began ] && exit 9; \
                   [ -e /run/e2e-began ] || grep --quiet '\"phase\": \"leased\"' {JOURNAL} 2>/dev/null && : > /run/e2e-began; \
                 done; \
                 pkill --signal STOP --full 'agent-[^ ]* executor'; grep --only-matching '\"phase\": .*' {JOURNAL}"
            );
            let output = worker.exec(&["timeout", &LIMIT.as_secs().to_string(), "sh", "-c", &script])?;
            ensure!(output.success(), "{worker} never was {step} (status {}): {}", output.status, output.stderr);
            eprintln!("{worker} stands at {}", output.trimmed());
            Ok(output.stdout.contains(&format!("\"{step}\"")))
        });
        let (met, end) = end.with_context(|| format!("the power was cut at {step}"))?;
        if met && BEFORE_THE_STOP.contains(&step) {
            ensure!(end == End::Upgraded, "nothing was stopped at {step}, and yet it is {end:?}");
        }
        Ok(end)
    }

    /// Upgrades the worker, cuts its power so long after the command, and returns how it ended.
    fn at_instant(&self, after: Duration) -> Result<End> {
        let began = Instant::now();
        let (_, end) = self.cut(|worker| {
            let left = after.saturating_sub(began.elapsed());
            // The instant is what is tried: it is no condition.
            worker.exec(&["sleep", &format!("{:.3}", left.as_secs_f64())])?.ok()?;
            Ok(())
        })?;
        Ok(end)
    }

    /// How long an upgrade of the worker takes from the command to its end.
    fn without_a_cut(&self) -> Result<Duration> {
        let (first, worker) = (self.small.first()?, self.small.worker()?);
        let (_, new) = self.sides(worker)?;
        // Once to have it staged, and once more for the time, there and back again.
        requeen_ok(first, &["plan", "--bundle", &new.place, "--only", WORKER])?;
        let began = Instant::now();
        requeen_ok(first, &["upgrade", "--bundle", &new.place, "--only", WORKER])?;
        let took = began.elapsed();
        self.check(End::Upgraded, new)?;
        Ok(took)
    }

    /// The files that a node has, and those that it is to get.
    pub(crate) fn sides(&self, node: &Node) -> Result<(&Files, &Files)> {
        let now = installed(node)?;
        if now == self.own.digests {
            return Ok((&self.own, &self.other));
        }
        ensure!(now == self.other.digests, "{node} has a mixture: {now:?}");
        Ok((&self.other, &self.own))
    }

    /// Begins an upgrade, waits for `instant`, cuts the power, gives it back, and waits for the end of it all.
    fn cut<T>(&self, instant: impl FnOnce(&Node) -> Result<T>) -> Result<(T, End)> {
        let (first, worker) = (self.small.first()?, self.small.worker()?);
        let (old, new) = self.sides(worker)?;
        requeen_ok(first, &["upgrade", "--bundle", &new.place, "--only", WORKER, "--detach"])?;
        let met = instant(worker)?;
        worker.kill()?;
        Figures { power_cuts: 1, ..Figures::default() }.note()?;
        worker.start()?;
        let version = worker.wait_for_engine(LIMIT)?;
        let recovery = worker.sh("journalctl --boot --no-pager --output cat --unit requeen-recover.service")?.stdout;
        eprintln!("{worker}: engine {version}; {}", words_of(&recovery));
        let cycles = worker.sh("journalctl --boot --no-pager --output cat --grep 'ordering cycle' || true")?.stdout;
        ensure!(!cycles.contains("requeen"), "{cycles}");
        let end = self.end()?;
        self.check(end, if end == End::Upgraded { new } else { old })?;
        eprintln!("{worker} ended {}", end.word());
        Figures { power_cuts_coherent: 1, ..Figures::default() }.note()?;
        Ok((met, end))
    }

    /// Waits until the worker's work has ended, ends the rollout, and returns how it went.
    fn end(&self) -> Result<End> {
        let first = self.small.first()?;
        let mut end = None;
        wait::until_true("the end of the worker's work", LIMIT, || {
            let output = product::requeen(first, &["status", "--json"])?;
            let status: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
            let shown = status["nodes"].as_array().into_iter().flatten().find(|node| node["hostname"] == WORKER);
            let step = shown.map(|shown| &shown["step"]).cloned().unwrap_or_default();
            end = match (step["step"].as_str(), step["outcome"].as_str()) {
                (Some("done"), Some("upgraded")) => Some(End::Upgraded),
                (Some("done"), Some("rolled-back")) => Some(End::RolledBack),
                _ => None,
            };
            Ok(if end.is_some() { Ok(()) } else { Err(format!("{step} {}", output.stderr)) })
        })?;
        let end = end.context("an end")?;
        if end == End::RolledBack {
            let phase = status(first)?.pointer("/rollout/phase").cloned().unwrap_or_default();
            ensure!(phase == "halted", "the rollout is {phase}, although the worker was rolled back");
            requeen_ok(first, &["abort"])?;
        }
        wait_for_end(first)?;
        Ok(end)
    }

    /// The worker is whole, with these files and no other.
    pub(crate) fn check(&self, end: End, files: &Files) -> Result<()> {
        let worker = self.small.worker()?;
        let runc = files.digests.get("runc").context("no runc")?;
        is_whole(self.small, runc)?;
        let now = installed(worker)?;
        ensure!(now == files.digests, "{worker} is {end:?} with {now:?}, not with {:?}", files.digests);
        // What comes next is not what this was about; what other programs had not synced is none of it either.
        worker.sh("sync")?;
        Ok(())
    }
}

/// The digests of a bundle's files, by name.
fn digests(bundle: &std::path::Path) -> Result<BTreeMap<String, String>> {
    let digest = |name: &str| Ok((name.to_owned(), bundles::sha256(&bundles::content(bundle, name)?)));
    lab::engines::FILES.iter().map(|name| digest(name)).collect()
}

/// The digests of a node's engine's files, by name.
fn installed(node: &Node) -> Result<BTreeMap<String, String>> {
    Ok(pairs(&node.sh(&digests_script())?.stdout))
}

/// Says the name and the digest of each of an engine's files, where the engine finds them.
pub(crate) fn digests_script() -> String {
    format!(
        "for name in {}; do echo $name $(sha256sum < $(command -v $name || ls /usr/libexec/docker/$name)); done",
        lab::engines::FILES.join(" ")
    )
}

/// What [`digests_script`] said.
pub(crate) fn pairs(lines: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        Some((words.next()?, words.next()?))
    };
    lines.lines().filter_map(pair).collect()
}

/// What the recovery said it had to do, in one line.
fn words_of(recovery: &str) -> String {
    let said = recovery.lines().find(|line| line.contains("remedy="));
    said.map_or_else(|| "no recovery".to_owned(), |line| line.trim().to_owned())
}

/// A number from the environment.
fn number<T: std::str::FromStr>(variable: &str) -> Result<Option<T>> {
    match std::env::var(variable) {
        Ok(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => bail!("{variable} is {text:?}, which is no number"),
        },
        Err(_) => Ok(None),
    }
}

/// Instants that only a seed decides (SplitMix64).
struct Instants(u64);

impl Instants {
    /// The next one below `limit`, to the millisecond.
    fn next(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(mixed % limit)
    }
}
