//! What a node does when it boots in the middle of its work.
//!
//! While the node is drained the swarm starts no agent on it, and what runs beside its engine ends with the machine. So as
//! soon as it has a lease two units of this program are on the host:
//!
//! - [`RECOVER_UNIT`] runs before the engine's units and is required by them. It puts the files in order: [`crate::recovery`]. Until the
//!   node's work is done.
//! - [`RESUME_UNIT`] is the executor again, which goes on from there. Until the rollout ends.
//!
//! Where there is no systemd, init scripts do the same: [`scripts`].

pub(crate) mod scripts;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::layout::Layout;
use crate::host::manager::ServiceManager;
use crate::host::{HostRoot, files};
use crate::words::chain;

pub use requeen_protocol::{RECOVER_UNIT, RESUME_UNIT};

/// Where an administrator's units are; what is there wins over what packages bring.
pub const UNITS: &str = "/etc/systemd/system";
/// What wants [`RESUME_UNIT`].
const RESUME_WANTED_BY: &str = "multi-user.target.wants";

/// systemd reads all of its units again, or tells of some.
pub(crate) const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(60);

/// What an operator does who was told that recovery failed.
pub fn recovery_hint(root: &HostRoot) -> &'static str {
    if ServiceManager::of(root).runs_scripts() { scripts::RECOVERY_HINT } else { RECOVERY_HINT }
}

/// The same where units keep the engine from starting.
const RECOVERY_HINT: &str = "the engine is kept from starting; look at what is named, and when its files are in order: \
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

/// Puts both units on the host. When this returns they outlive a power failure. Done twice it ends where once would have.
pub fn install(root: &HostRoot, layout: &Layout, program: &Path, port: u16) -> Result<(), UnitError> {
    if layout.manager.runs_scripts() {
        return scripts::install(root, program, port);
    }
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
    scripts::remove_recovery(root)?;
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
    scripts::remove_resume(root)?;
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

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
