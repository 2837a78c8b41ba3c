//! Whether an engine that was just started is the one that should run, seen from its own node.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use requeen_protocol::EngineFile;
use tokio::time::Instant;

use crate::clock::{BootTime, Clock};
use crate::engine::api::{self, Api, ApiError};
use crate::engine::facts::{self, start_ticks};
use crate::engine::leftover::managed_containerd;
use crate::engine::systemd::{EngineControl, UnitState};
use crate::host::HostRoot;
use crate::sets::{SetId, Store, digest_file};
use crate::swap::SwapPlan;

/// How often the API is asked while it is silent.
const PING_EVERY: Duration = Duration::from_millis(20);
/// One attempt may take this long: a connection can be queued by docker.socket while dockerd starts.
const PING_LIMIT: Duration = Duration::from_secs(2);
/// How often systemd is asked meanwhile; each time starts a process, which the engine's start would
/// feel if it were more often.
const UNIT_EVERY: Duration = Duration::from_millis(700);
/// An API call of a running engine; a manager's can take 20 s.
const API_LIMIT: Duration = Duration::from_secs(60);
/// systemd starting the engine again this often is a crash loop.
const CRASH_LOOP: u32 = 3;
/// Inactive without anything queued, seen this often in a row, is a start that was given up.
const GIVEN_UP: u32 = 3;

/// The engine is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("the engine crashes: systemd has started it again {0} times")]
    CrashLoop(u32),
    #[error("the engine's unit has failed")]
    UnitFailed,
    #[error("the engine's unit was not started")]
    NotStarted,
    #[error("the engine's API was silent for {0} s after its start")]
    Silent(u64),
    #[error("the engine says that its version is {found}, expected {expected}")]
    Version { found: String, expected: String },
    #[error("{path} has digest {found}, expected {expected}")]
    File { path: String, found: String, expected: String },
    #[error("{path} can't be read: {why}")]
    Unreadable { path: String, why: String },
    #[error("the set of the engine's files is damaged: {0}")]
    Set(String),
    #[error(
        "the dockerd that runs is not the one at {path}: somebody started the engine while its files were replaced (process {pid})"
    )]
    OtherProcess { path: String, pid: u32 },
    #[error("the engine uses a containerd that was started before it")]
    OldContainerd,
    #[error("the engine's API fails: {0}")]
    Api(String),
}

/// Watches a unit until it has certainly failed.
#[derive(Debug, Default)]
struct Watch {
    idle: u32,
}

impl Watch {
    fn judge(&mut self, state: &UnitState) -> Result<(), Unfit> {
        if state.restarts >= CRASH_LOOP {
            return Err(Unfit::CrashLoop(state.restarts));
        }
        if state.active == "failed" {
            return Err(Unfit::UnitFailed);
        }
        self.idle = if state.active == "inactive" && !state.job { self.idle + 1 } else { 0 };
        if self.idle >= GIVEN_UP {
            return Err(Unfit::NotStarted);
        }
        Ok(())
    }
}

/// Waits for the API's first answer and gives the moment.
pub(crate) async fn answers(
    root: &HostRoot,
    control: &Arc<dyn EngineControl>,
    timeout_secs: u64,
    clock: Clock,
) -> Result<BootTime, Unfit> {
    let silence = async {
        loop {
            if api::ping(root, PING_LIMIT).await.is_ok() {
                return clock();
            }
            tokio::time::sleep(PING_EVERY).await;
        }
    };
    let end = Instant::now() + Duration::from_secs(timeout_secs);
    tokio::select! {
        biased;
        at = silence => Ok(at),
        unfit = failure(control) => Err(unfit),
        () = tokio::time::sleep_until(end) => Err(Unfit::Silent(timeout_secs)),
    }
}

/// Waits until the engine's unit has certainly failed.
async fn failure(control: &Arc<dyn EngineControl>) -> Unfit {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(UNIT_EVERY).await;
        let control = Arc::clone(control);
        // A systemd that is busy is asked again; the time limit ends it if it stays so.
        if let Ok(Ok(state)) = tokio::task::spawn_blocking(move || control.state()).await
            && let Err(unfit) = watch.judge(&state)
        {
            return unfit;
        }
    }
}

/// Checks version and files of the engine that answers.
pub(crate) async fn is_set(
    root: &HostRoot,
    store: &Store,
    set: &SetId,
    plan: &SwapPlan,
    expected_version: &str,
    containerd_restarted: bool,
) -> Result<(), Unfit> {
    let version = async { Api::connect(root, API_LIMIT).await?.version().await };
    let (found, _) = version.await.map_err(|error: ApiError| Unfit::Api(crate::words::chain(&error)))?;
    if !same_version(&found, expected_version) {
        return Err(Unfit::Version { found, expected: expected_version.to_owned() });
    }
    let (root, store, set, plan) = (root.clone(), store.clone(), set.clone(), plan.clone());
    let check = move || {
        files(&root, &store, &set, &plan)?;
        process(&root, &store, &set, &plan)?;
        if containerd_restarted && managed_containerd_is_older(&root) {
            return Err(Unfit::OldContainerd);
        }
        Ok(())
    };
    tokio::task::spawn_blocking(check).await.unwrap_or_else(|error| Err(Unfit::Set(error.to_string())))
}

/// Whether every target leads to the file that the set has there.
fn files(root: &HostRoot, store: &Store, set: &SetId, plan: &SwapPlan) -> Result<(), Unfit> {
    let damaged = |error| Unfit::Set(crate::words::chain(&error));
    store.verify(set).map_err(damaged)?;
    let manifest = store.manifest(set).map_err(damaged)?;
    let targets: BTreeMap<EngineFile, &str> = plan.files.iter().map(|file| (file.file, file.target.as_str())).collect();
    for (file, path) in targets {
        let Some(expected) = manifest.files.get(&file) else {
            continue;
        };
        let found = root.resolve(path).and_then(|path| digest_file(&path));
        match found {
            Ok(found) if found == expected.digest => {}
            Ok(found) => {
                return Err(Unfit::File {
                    path: path.to_owned(),
                    found: found.to_string(),
                    expected: expected.digest.to_string(),
                });
            }
            Err(error) => {
                return Err(Unfit::Unreadable { path: path.to_owned(), why: error.to_string() });
            }
        }
    }
    Ok(())
}

/// Whether the dockerd that runs is the set's. Whoever starts the engine between its stop and the switch starts the other
/// one, and a version alone does not tell two builds of it apart.
fn process(root: &HostRoot, store: &Store, set: &SetId, plan: &SwapPlan) -> Result<(), Unfit> {
    let damaged = |error| Unfit::Set(crate::words::chain(&error));
    let manifest = store.manifest(set).map_err(damaged)?;
    let swapped = plan.files.iter().find(|swapped| swapped.file == EngineFile::Dockerd);
    let expected = manifest.files.get(&EngineFile::Dockerd);
    // One that ended just now is the next question's concern.
    let (Some(swapped), Some(expected), Some(pid)) = (swapped, expected, facts::dockerd_pid(root)) else {
        return Ok(());
    };
    let exe = root.join(format!("/proc/{pid}/exe"));
    let same_file = |one: &Path, other: &Path| -> std::io::Result<bool> {
        let (one, other) = (std::fs::metadata(one)?, std::fs::metadata(other)?);
        Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
    };
    // It was started through the link, so in nearly every case this is the very file, and nothing has to be read.
    if same_file(&exe, &store.path(set, EngineFile::Dockerd)).unwrap_or(false) {
        return Ok(());
    }
    match digest_file(&exe) {
        Ok(found) if found != expected.digest => Err(Unfit::OtherProcess { path: swapped.target.clone(), pid }),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether a containerd of dockerd's own was left over from the engine before: dockerd takes up one
/// that it finds running.
fn managed_containerd_is_older(root: &HostRoot) -> bool {
    let start = |pid: u32| {
        let stat = std::fs::read_to_string(root.join(format!("/proc/{pid}/stat"))).ok()?;
        start_ticks(&stat)
    };
    let containerd = managed_containerd(root).and_then(start);
    let dockerd = facts::dockerd_pid(root).and_then(start);
    matches!((containerd, dockerd), (Some(containerd), Some(dockerd)) if containerd < dockerd)
}

/// Whether two versions are the same but for what a package added: `26.1.5+dfsg1` is `26.1.5`. The
/// files' digests tell builds of one version apart.
pub(crate) fn same_version(one: &str, other: &str) -> bool {
    fn core(version: &str) -> &str {
        let end = version.find(['+', '~']).unwrap_or(version.len());
        version[..end].trim_start_matches('v')
    }
    core(one) == core(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(active: &str, restarts: u32, job: bool) -> UnitState {
        UnitState { active: active.to_owned(), restarts, job }
    }

    #[test]
    fn a_slow_start_is_no_failure_and_a_crash_loop_is() {
        let mut watch = Watch::default();
        for _ in 0..100 {
            watch.judge(&state("activating", 2, true)).unwrap();
            watch.judge(&state("inactive", 0, true)).unwrap();
        }
        assert!(matches!(watch.judge(&state("activating", 3, true)), Err(Unfit::CrashLoop(3))));
        assert!(matches!(watch.judge(&state("failed", 0, false)), Err(Unfit::UnitFailed)));
    }

    #[test]
    fn a_start_that_was_given_up_is_noticed() {
        let mut watch = Watch::default();
        watch.judge(&state("inactive", 0, false)).unwrap();
        watch.judge(&state("inactive", 0, false)).unwrap();
        assert!(matches!(watch.judge(&state("inactive", 0, false)), Err(Unfit::NotStarted)));
    }

    #[test]
    fn versions_are_compared_without_a_packages_suffix() {
        assert!(same_version("26.1.5+dfsg1", "26.1.5"));
        assert!(same_version("17.06.2-ce", "17.06.2-ce"));
        assert!(!same_version("26.1.5", "26.1.50"));
        assert!(!same_version("28.0.0-rc.1", "28.0.0"));
    }
}
