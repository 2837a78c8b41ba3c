//! What a node does when it boots in the middle of its work.
//!
//! While the node is drained the swarm starts no agent on it, and what runs beside its engine ends with the machine. So as
//! soon as it has a lease two units of this program are on the host:
//!
//! - [`RECOVER_UNIT`] runs before the engine's units and is required by them. It puts the files in order: [`recover`]. Until the
//!   node's work is done.
//! - [`RESUME_UNIT`] is the executor again, which goes on from there. Until the rollout ends.
//!
//! Recovery needs neither the network nor an engine. A set of files that was not proved healthy is switched back: whether
//! it would have come up nobody knows. Where the journal can't be trusted nothing is guessed: recovery fails, and the engine
//! stays down until somebody has looked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::layout::Layout;
use crate::host::{HostRoot, files};
use crate::journal::{JOURNAL_PATH, Journal, JournalError, Phase, Work};
use crate::lock::{self, LockError};
use crate::sets::{SetError, Store};
use crate::swap::{self, SwapError, SwapPlan};
use crate::words::chain;

pub use requeen_protocol::{RECOVER_UNIT, RESUME_UNIT};

/// Where an administrator's units are; what is there wins over what packages bring.
pub const UNITS: &str = "/etc/systemd/system";
/// What wants [`RESUME_UNIT`].
const RESUME_WANTED_BY: &str = "multi-user.target.wants";

/// systemd reads all of its units again, or tells of some.
pub(crate) const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(60);

/// What the journal says of a node that was taken back, and the operator reads.
const WENT_DOWN: &str = "the node went down before its new engine was verified";

/// What an operator does who was told that recovery failed.
pub const RECOVERY_HINT: &str = "the engine is kept from starting; look at what is named, and when its files are in order: \
     rm /etc/systemd/system/*.requires/requeen-recover.service; systemctl daemon-reload; systemctl start docker; \
     systemctl reset-failed requeen-recover";

/// The units can't be put on the host, or taken from it.
#[derive(Debug, thiserror::Error)]
#[error("`{path}` can't be changed")]
pub struct UnitError {
    /// Which file or folder, as a path of the host.
    path: String,
    source: io::Error,
}

/// The node's files are not in order, and the engine must not start.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The journal says nothing that can be trusted.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Whether an executor lives is not known.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The sets can't be looked at.
    #[error("the sets of engine files can't be used")]
    Sets(#[from] SetError),
    /// The files can't be put back.
    #[error("the files of the previous engine can't be put in their places")]
    Swap(#[from] SwapError),
}

/// Puts both units on the host. When this returns they outlive a power failure. Done twice it ends where once would have.
pub fn install(root: &HostRoot, layout: &Layout, program: &Path, port: u16) -> Result<(), UnitError> {
    let engine = engine_units(layout);
    let recover = recover_unit(&program.to_string_lossy(), &engine, layout);
    let resume = resume_unit(&program.to_string_lossy(), port, &engine);
    write_unit(root, RECOVER_UNIT, &recover)?;
    write_unit(root, RESUME_UNIT, &resume)?;
    link_unit(root, RESUME_WANTED_BY, RESUME_UNIT)?;
    // Last: what requires it must find it.
    engine.iter().try_for_each(|unit| link_unit(root, &format!("{unit}.requires"), RECOVER_UNIT))
}

/// Takes [`RECOVER_UNIT`] away: the node's work is done.
pub fn remove_recovery(root: &HostRoot) -> Result<(), UnitError> {
    // Whatever requires it is of its making: the engine's unit may have been another one.
    let there = root.resolve(UNITS).and_then(fs::read_dir).into_iter().flatten().flatten();
    let folders = there.filter_map(|entry| entry.file_name().into_string().ok());
    let requiring: Vec<String> = folders.filter_map(|name| Some(name.strip_suffix(".requires")?.to_owned())).collect();
    let known = is_known_to_systemd(root, &requiring);
    // First what requires it: an engine that requires a unit that is gone would not start.
    for unit in requiring {
        unlink_unit(root, &format!("{unit}.requires"), RECOVER_UNIT)?;
    }
    remove_file(root, &format!("{UNITS}/{RECOVER_UNIT}"))?;
    if known && let Err(error) = root.run("systemctl", &["daemon-reload"], SYSTEMCTL_LIMIT) {
        tracing::warn!("systemd still requires {RECOVER_UNIT}, which is gone: {}", chain(&error));
    }
    Ok(())
}

/// Takes both units away: the rollout has ended.
pub fn remove(root: &HostRoot) -> Result<(), UnitError> {
    remove_recovery(root)?;
    // A unit that failed is remembered without its file too, and would be held against the next rollout. Mostly none did.
    let _ = root.run("systemctl", &["reset-failed", RECOVER_UNIT], SYSTEMCTL_LIMIT);
    unlink_unit(root, RESUME_WANTED_BY, RESUME_UNIT)?;
    // systemd may go on wanting it, which is no requirement.
    remove_file(root, &format!("{UNITS}/{RESUME_UNIT}"))
}

/// Whether systemd has read its units since [`install`], at boot or because somebody made it. If it has not, it is spared
/// reading them now: that would also bring in what others have changed and not asked for yet.
fn is_known_to_systemd(root: &HostRoot, units: &[String]) -> bool {
    let mut args = vec!["show", "--property=Requires"];
    args.extend(units.iter().map(String::as_str));
    let asked = root.run("systemctl", &args, SYSTEMCTL_LIMIT);
    !units.is_empty() && asked.is_ok_and(|ran| ran.stdout.contains(RECOVER_UNIT))
}

fn engine_units(layout: &Layout) -> Vec<String> {
    let docker = layout.docker_unit.clone();
    let socket = layout.has_socket_unit.then(|| docker.replace(".service", ".socket"));
    [Some(docker), socket, layout.containerd_unit.clone()].into_iter().flatten().collect()
}

fn recover_unit(program: &str, engine: &[String], layout: &Layout) -> String {
    let mut folders: Vec<&str> =
        layout.targets.values().filter_map(|target| Path::new(target).parent()?.to_str()).collect();
    folders.sort_unstable();
    folders.dedup();
    let (before, mounts) = (engine.join(" "), folders.join(" "));
    format!(
        "[Unit]\n\
         Description=Requeen: puts the files of this node's engine in order before it starts\n\
         DefaultDependencies=no\n\
         Conflicts=shutdown.target\n\
         Before=shutdown.target {before}\n\
         After=local-fs.target\n\
         RequiresMountsFor={state} {mounts} {program}\n\
         # Without the program there is nothing to be done with, and the files are of one set at any time.\n\
         ConditionFileIsExecutable={program}\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         # A disk that hangs must not keep all of the boot waiting for ever, only the engine.\n\
         TimeoutStartSec=300\n\
         ExecStart={program} recover\n",
        state = requeen_protocol::STATE_DIR,
    )
}

fn resume_unit(program: &str, port: u16, engine: &[String]) -> String {
    let after = engine.join(" ");
    format!(
        "[Unit]\n\
         Description=Requeen executor: finishes the work on this node's engine\n\
         # The engine's own start may take long at a boot, and is waited for here: the executor would call it silent.\n\
         After={RECOVER_UNIT} network-online.target {after}\n\
         Wants=network-online.target\n\
         ConditionFileIsExecutable={program}\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=exec\n\
         ExecStart={program} executor --port {port}\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         OOMScoreAdjust=-500\n"
    )
}

fn failed(path: &str) -> impl FnOnce(io::Error) -> UnitError + use<> {
    let path = path.to_owned();
    move |source| UnitError { path, source }
}

fn write_unit(root: &HostRoot, name: &str, text: &str) -> Result<(), UnitError> {
    let path = format!("{UNITS}/{name}");
    let write = || {
        let at = place(root, &path)?;
        if fs::read(&at).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(());
        }
        files::replace(&at, text.as_bytes())
    };
    write().map_err(failed(&path))
}

/// Makes `folder/name` lead to the unit.
fn link_unit(root: &HostRoot, folder: &str, name: &str) -> Result<(), UnitError> {
    let path = format!("{UNITS}/{folder}/{name}");
    let link = || {
        let at = place(root, &path)?;
        let to = PathBuf::from(format!("../{name}"));
        if fs::read_link(&at).is_ok_and(|there| there == to) {
            return Ok(());
        }
        let temp = at.with_file_name(format!(".{name}.new"));
        match fs::remove_file(&temp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        std::os::unix::fs::symlink(to, &temp)?;
        fs::rename(temp, &at)?;
        at.parent().map_or(Ok(()), files::sync_dir)
    };
    link().map_err(failed(&path))
}

/// Takes `folder/name` away, and the folder if nothing else is in it.
fn unlink_unit(root: &HostRoot, folder: &str, name: &str) -> Result<(), UnitError> {
    let folder = format!("{UNITS}/{folder}");
    let path = format!("{folder}/{name}");
    if !root.resolve_parent(&path).is_ok_and(|at| fs::symlink_metadata(at).is_ok()) {
        return Ok(());
    }
    remove_file(root, &path)?;
    match root.resolve(&folder).and_then(fs::remove_dir) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(failed(&folder)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove_file(root: &HostRoot, path: &str) -> Result<(), UnitError> {
    let remove = || {
        let at = root.resolve_parent(path)?;
        match fs::remove_file(&at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
        at.parent().map_or(Ok(()), files::sync_dir)
    };
    remove().map_err(failed(path))
}

/// Where a path of the host is, its folder made if need be; when this returns the folder outlives a power failure.
fn place(root: &HostRoot, path: &str) -> io::Result<PathBuf> {
    let at = root.resolve_parent(path)?;
    if let Some(folder) = at.parent()
        && !folder.is_dir()
    {
        fs::create_dir_all(folder)?;
        folder.parent().map_or(Ok(()), files::sync_dir)?;
    }
    Ok(at)
}

/// What has to be done with the files of a node that went down in a phase, before its engine may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// Nothing: they are of one set, and it is the right one.
    Nothing,
    /// The links go: nothing was stopped, and the lease is of another boot.
    Unlink,
    /// The previous set becomes current again: the new one was not proved healthy.
    Back,
}

fn remedy(phase: &Phase) -> Remedy {
    match phase {
        Phase::Leased | Phase::Linking | Phase::Linked | Phase::Unlinking => Remedy::Unlink,
        Phase::Stopping { .. }
        | Phase::Switching
        | Phase::Starting
        | Phase::Verifying
        | Phase::SwitchingBack { .. }
        | Phase::StartingOld { .. } => Remedy::Back,
        // Making files plain goes on with the engine up.
        Phase::Joining { .. }
        | Phase::Running { .. }
        | Phase::SettlingNew { .. }
        | Phase::SettlingOld { .. }
        | Phase::Upgraded { .. }
        | Phase::RolledBack { .. }
        | Phase::Stuck { .. } => Remedy::Nothing,
    }
}

/// Puts the node's files in order before its engine starts. Done twice it ends where once would have.
pub fn recover(root: &HostRoot) -> Result<(), RecoverError> {
    recover_by(root, &mut swap::perform)
}

fn recover_by(root: &HostRoot, act: swap::Actor<'_>) -> Result<(), RecoverError> {
    let Some(_lock) = lock::take(root)? else {
        tracing::info!("an executor is at work: this is no boot");
        return Ok(());
    };
    let mut journal = Journal::load(root)?;
    let Some(Work { lease, phase, plan, .. }) = journal.work.clone() else {
        tracing::info!("{JOURNAL_PATH} holds no work");
        return Ok(());
    };
    let remedy = remedy(&phase);
    match (remedy, &plan) {
        (Remedy::Nothing, _) => {}
        (Remedy::Unlink, plan) => {
            if let Err(error) = taken_back_before_the_stop(root, &mut journal, plan.as_ref(), &phase, act) {
                if !leads_to_old(root, plan.as_ref()) {
                    return Err(error);
                }
                // The engine would start from the very files that ran: a full disk is no reason to keep it down.
                tracing::warn!(%lease, "the links stay for now: {}", chain(&error));
            }
        }
        // Nothing was linked, so nothing can have been switched.
        (Remedy::Back, None) => {}
        (Remedy::Back, Some(plan)) => {
            swap::switch_by(root, &Store::open(root)?, plan, &plan.from, act)?;
            taken_back(&mut journal)?;
            if let Err(error) = journal.store(root) {
                // The files are in order. From what the journal says still, the executor comes to the same end.
                tracing::warn!(%lease, "{}", chain(&error));
            }
        }
    }
    tracing::info!(%lease, ?remedy, "the engine may start");
    Ok(())
}

/// Plain files again, and no work.
fn taken_back_before_the_stop(
    root: &HostRoot,
    journal: &mut Journal,
    plan: Option<&SwapPlan>,
    phase: &Phase,
    act: swap::Actor<'_>,
) -> Result<(), RecoverError> {
    if let Some(plan) = plan {
        swap::unlink_by(root, &Store::open(root)?, plan, act)?;
    }
    if *phase != Phase::Leased {
        journal.advance(Phase::Unlinking)?;
    }
    journal.forget()?;
    journal.store(root)?;
    Ok(())
}

/// Whether whatever is a link leads to the files that ran before the lease, all of them.
fn leads_to_old(root: &HostRoot, plan: Option<&SwapPlan>) -> bool {
    let Some(plan) = plan else { return true };
    let current = Store::existing(root).ok().flatten().and_then(|store| store.current().ok().flatten());
    current.as_ref() == Some(&plan.from)
}

/// The old set is current; what is left is to see its engine run.
fn taken_back(journal: &mut Journal) -> Result<(), JournalError> {
    let Some(work) = &mut journal.work else { return Ok(()) };
    // It is of the clock of a boot that is over.
    work.stopped_at_ms = None;
    let (reason, log) = match &work.phase {
        Phase::SwitchingBack { reason, log } | Phase::StartingOld { reason, log } => (reason.clone(), log.clone()),
        Phase::Leased
        | Phase::Linking
        | Phase::Linked
        | Phase::Unlinking
        | Phase::Stopping { .. }
        | Phase::Switching
        | Phase::Starting
        | Phase::Verifying
        | Phase::Joining { .. }
        | Phase::Running { .. }
        | Phase::SettlingNew { .. }
        | Phase::SettlingOld { .. }
        | Phase::Upgraded { .. }
        | Phase::RolledBack { .. }
        | Phase::Stuck { .. } => (WENT_DOWN.to_owned(), Vec::new()),
    };
    let next = Phase::StartingOld { reason: reason.clone(), log: log.clone() };
    if !work.phase.may_become(&next) {
        journal.advance(Phase::SwitchingBack { reason, log })?;
    }
    journal.advance(next)
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
