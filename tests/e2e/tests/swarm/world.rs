//! What scenarios share: the product's image, the bundles and the two swarms, each made when the first one asks for it.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab::engines::{self, Bundle};
use lab::images::{self, Build, PRODUCT};
use lab::{Error, Kind, Lab, Node, Suite};
use libtest_mimic::{Completion, Failed, Trial};

use crate::large::Large;
use crate::small::Small;

/// How long a swarm may take to be whole before a scenario begins.
const SETTLE_LIMIT: Duration = Duration::from_secs(180);

/// What is made once, or the words with which it failed.
type Once<T> = OnceLock<std::result::Result<T, String>>;

/// See the module.
#[derive(Default)]
pub(crate) struct World {
    image: Once<()>,
    large: Once<Large>,
    small: Once<Small>,
    machines: Once<Small>,
    recorded: Once<Small>,
}

impl World {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A scenario as a test: it is ignored where a suite can't be had, and leaves its logs where it fails.
    pub(crate) fn scenario(self: &Arc<Self>, name: &'static str, run: fn(&World) -> Result<()>) -> Trial {
        let world = Arc::clone(self);
        Trial::ignorable_test(name, move || {
            eprintln!("── {name}");
            let began = Instant::now();
            let result = run(&world);
            eprintln!("── {name}: {:.0} s", began.elapsed().as_secs_f64());
            match result {
                Ok(()) => Ok(Completion::Completed),
                Err(error) => match error.downcast_ref::<Error>() {
                    Some(reason @ Error::SuiteUnavailable { .. }) => {
                        eprintln!("SKIPPED {name}: {reason}");
                        Ok(Completion::ignored_with(reason))
                    }
                    Some(_) | None => {
                        let logs = world.dump(name);
                        Err(Failed::from(format!("{error:?}\nlogs: {}", logs.display())))
                    }
                },
            }
        })
    }

    /// Three managers and two workers of bookworm, with agents, services and the probe.
    pub(crate) fn large(&self) -> Result<&Large> {
        self.image()?;
        let large = once(&self.large, "the large swarm", || Large::make(kind()?))?;
        settled(large.lab(), large.first()?)?;
        Ok(large)
    }

    /// One manager and one worker of bookworm, with a coordinator.
    pub(crate) fn small(&self) -> Result<&Small> {
        self.image()?;
        let small = once(&self.small, "the small swarm", || Small::make(crate::small::NAME, kind()?))?;
        settled(small.lab(), small.first()?)?;
        Ok(small)
    }

    /// One manager and one worker of bookworm, with a coordinator, which are machines whatever the others are made of.
    pub(crate) fn machines(&self) -> Result<&Small> {
        self.image()?;
        let make = || Small::make(crate::small::MACHINES, Kind::Machine);
        let machines = once(&self.machines, "the swarm of machines", make)?;
        settled(machines.lab(), machines.first()?)?;
        Ok(machines)
    }

    /// The same with a log of all that the worker has written to its disk since its first boot, which is its only one.
    pub(crate) fn recorded(&self) -> Result<&Small> {
        self.image()?;
        let recorded = once(&self.recorded, "the swarm with a log", || Small::recorded(crate::small::RECORDED))?;
        settled(recorded.lab(), recorded.first()?)?;
        Ok(recorded)
    }

    pub(crate) fn image(&self) -> Result<&()> {
        once(&self.image, "the product's image", || {
            build().run()?;
            eprintln!("the image: {PRODUCT}");
            Ok(())
        })
    }

    /// Writes what the nodes know into a folder, and returns it.
    fn dump(&self, name: &str) -> PathBuf {
        let folder = images::repository().join("target/e2e-logs").join(name);
        let large = self.large.get().and_then(|made| made.as_ref().ok()).map(Large::lab);
        let small = self.small.get().and_then(|made| made.as_ref().ok()).map(Small::lab);
        // A swarm that could not be made whole may have nodes to look at.
        let machines = self.machines.get().and_then(|made| made.as_ref().ok()).map(Small::lab);
        let recorded = self.recorded.get().and_then(|made| made.as_ref().ok()).map(Small::lab);
        let names =
            [crate::large::NAME, crate::small::NAME, crate::small::MACHINES, crate::small::RECORDED, crate::vips::NAME];
        let half = names.map(|name| Lab::attach(name).ok());
        for lab in [large, small, machines, recorded].into_iter().flatten().chain(half.iter().flatten()) {
            if let Err(error) = dump(lab, &folder.join(lab.name())) {
                eprintln!("the logs of {} can't be written: {error:#}", lab.name());
            }
        }
        folder
    }

    /// Removes what was made.
    pub(crate) fn close(&self) {
        if std::env::var_os("REQUEEN_E2E_KEEP").is_some() {
            return;
        }
        for (made, name) in [
            (self.large.get().is_some(), crate::large::NAME),
            (self.small.get().is_some(), crate::small::NAME),
            (self.machines.get().is_some(), crate::small::MACHINES),
            (self.recorded.get().is_some(), crate::small::RECORDED),
            (Lab::attach(crate::vips::NAME).is_ok(), crate::vips::NAME),
        ] {
            if made && let Err(error) = Lab::down(name) {
                eprintln!("{name} can't be removed: {error}");
            }
        }
    }
}

/// What a scenario before did to a swarm, or to the machine, is not the next one's concern.
fn settled(lab: &Lab, first: &Node) -> Result<()> {
    Ok(lab.wait_until_ready(first, SETTLE_LIMIT)?)
}

fn once<'a, T>(cell: &'a Once<T>, what: &str, make: impl FnOnce() -> Result<T>) -> Result<&'a T> {
    let mut skipped = None;
    let made = cell.get_or_init(|| {
        make().map_err(|error| {
            let text = format!("{error:?}");
            skipped = error.downcast::<Error>().ok().filter(|error| matches!(error, Error::SuiteUnavailable { .. }));
            text
        })
    });
    match (made, skipped) {
        (Ok(made), _) => Ok(made),
        (Err(_), Some(skipped)) => Err(skipped.into()),
        (Err(text), None) => Err(anyhow!("{text}")).with_context(|| format!("{what} could not be made")),
    }
}

/// How the product's image is made here.
pub(crate) fn build() -> Build {
    match std::env::var("REQUEEN_E2E_PROFILE") {
        Ok(profile) => Build::Machine { profile },
        Err(_) => Build::Dockerfile,
    }
}

/// What the nodes of the swarms are made of that can be of either.
fn kind() -> Result<Kind> {
    match std::env::var("REQUEEN_E2E_KIND") {
        Ok(kind) => kind.parse().context("REQUEEN_E2E_KIND"),
        Err(_) => Ok(Kind::default()),
    }
}

/// The bundle of a suite.
pub(crate) fn bundle(suite: Suite) -> Result<Bundle> {
    Ok(engines::bundle(suite)?)
}

/// What is asked of every node for the logs: a file's name and a shell script.
const ASKED: [(&str, &str); 6] = [
    ("coordinator.log", "docker logs requeen 2>&1"),
    ("status.txt", "timeout 20 requeen status 2>&1; timeout 20 docker node ls 2>&1; timeout 20 docker ps --all 2>&1"),
    (
        "agent.log",
        "for id in $(docker ps --all --quiet --filter name=requeen-agent); do echo \"== $id\"; docker logs $id 2>&1; done",
    ),
    (
        "executor.log",
        "journalctl --no-pager --output=short-precise --unit requeen-executor.service; cat /var/lib/requeen/agent/executor.log*",
    ),
    (
        "engine.log",
        "journalctl --no-pager --output=short-precise --unit docker.service --unit docker.socket --unit containerd.service | tail -3000",
    ),
    (
        "files.txt",
        "ls -laR /var/lib/requeen --ignore=bundles; cat /var/lib/requeen/agent/*.json; ls -la /usr/sbin/dockerd /usr/bin/dockerd 2>/dev/null",
    ),
];

fn dump(lab: &Lab, folder: &std::path::Path) -> Result<()> {
    for node in lab.nodes() {
        let place = folder.join(node.name());
        fs::create_dir_all(&place)?;
        for (file, script) in ASKED {
            let output = node.exec(&["timeout", "60", "sh", "-c", script])?;
            fs::write(place.join(file), format!("{}{}", output.stdout, output.stderr))?;
        }
    }
    Ok(())
}
