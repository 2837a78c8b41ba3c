//! What stands for the units of [`super`] where there is no systemd.
//!
//! - [`RECOVER_SCRIPT`] runs `recover`. No runlevel starts it: the engine's own script does, each time before it starts the
//!   engine, by a line that is put at the top of the file of settings that it reads, and goes no further if that fails. So there
//!   is no order to be kept at boot, and nobody can start the engine around it.
//! - [`RESUME_SCRIPT`] is started in the runlevels in which the engine is, and starts the executor.
//!
//! The line is put there last and goes first: it means nothing without its script.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use super::{UnitError, failed, place, remove_file};
use crate::host::initscript::DEFAULTS;
use crate::host::manager::DOCKER_SCRIPT;
use crate::host::{HostRoot, files};
use crate::launch::{LOG, kept};

/// Where init scripts are.
pub(crate) const SCRIPTS: &str = "/etc/init.d";
/// Runs the recovery.
pub(crate) const RECOVER_SCRIPT: &str = "/etc/init.d/requeen-recover";
/// Starts the executor at boot.
pub(crate) const RESUME_SCRIPT: &str = "/etc/init.d/requeen-resume";
/// The same as a service.
const RESUME: &str = "requeen-resume";
/// There while the last recovery of this boot has failed.
const FAILED: &str = "/run/requeen-recover.failed";
/// Where a recovery says what it did.
pub(crate) const RECOVERY_LOG: &str = "/var/lib/requeen/agent/recovery.log";
/// Enters scripts into runlevels, for sysvinit and for OpenRC.
const UPDATE_RC: &str = "/usr/sbin/update-rc.d";
/// It may have to read all scripts.
const UPDATE_LIMIT: Duration = Duration::from_secs(60);

/// The line in [`DEFAULTS`]. The script there is a shell's, which has its own arguments, and mostly ends at a failure.
const GUARD: &str = "if [ \"$1\" = start ] && [ -x /etc/init.d/requeen-recover ]; then \
                     /etc/init.d/requeen-recover start || exit 1; fi # requeen: goes with the upgrade\n";
/// Beside it, if the file was not there before.
const OWN_FILE: &str = "# requeen: made for the line above, and goes with it\n";

/// What an operator does who was told that recovery failed.
pub(crate) const RECOVERY_HINT: &str = "the engine is kept from starting; look at what is named, and when its files are in \
     order: rm /etc/init.d/requeen-recover; service docker start";

/// Whether the recovery that ran last since the boot failed, and keeps the engine from starting.
pub(crate) fn recovery_failed(root: &HostRoot) -> bool {
    root.join(FAILED).exists()
}

/// What keeps a boot from being prepared for, if anything does.
pub(crate) fn obstacle(root: &HostRoot) -> Option<String> {
    let script = root.read_to_string(DOCKER_SCRIPT).unwrap_or_default();
    let reads = |line: &str| {
        let mut words = line.split_whitespace();
        let source = words.next().is_some_and(|word| word == "." || word == "source");
        source && words.next().is_some_and(|file| file.trim_matches('"').starts_with("/etc/default/"))
    };
    if !script.lines().any(reads) {
        return Some(format!("{DOCKER_SCRIPT} does not read {DEFAULTS}, which could keep it from starting the engine"));
    }
    if let Err(error) = root.read_to_string(DEFAULTS)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Some(format!("{DEFAULTS} can't be read: {error}"));
    }
    (!root.is_executable(UPDATE_RC)).then(|| format!("there is no {UPDATE_RC}, which enters scripts into runlevels"))
}

/// Puts all of it on the host. When this returns it outlives a power failure. Done twice it ends where once would have.
pub(super) fn install(root: &HostRoot, program: &Path, port: u16) -> Result<(), UnitError> {
    let program = program.to_string_lossy();
    write_script(root, RECOVER_SCRIPT, &recover_script(&program))?;
    write_script(root, RESUME_SCRIPT, &resume_script(&program, port))?;
    update_runlevels(root, &[RESUME, "defaults"])?;
    change_settings(root, |text| match text {
        Some(text) if text.contains(GUARD) => None,
        Some(text) => Some(format!("{GUARD}{text}")),
        None => Some(format!("{GUARD}{OWN_FILE}")),
    })
}

/// Takes the recovery away. Nothing if there is none.
pub(super) fn remove_recovery(root: &HostRoot) -> Result<(), UnitError> {
    // Settings that are no text never had the line; one that stays without its script means nothing.
    if root.read_to_string(DEFAULTS).is_ok_and(|text| text.contains(GUARD)) {
        change_settings(root, |text| Some(text?.replace(GUARD, "")))?;
    }
    // Its word on this boot is of no use any more.
    remove_file(root, FAILED)?;
    remove_file(root, RECOVER_SCRIPT)
}

/// Takes away what starts the executor at boot. Nothing if it is not there.
pub(super) fn remove_resume(root: &HostRoot) -> Result<(), UnitError> {
    if !root.join(RESUME_SCRIPT).exists() {
        return Ok(());
    }
    update_runlevels(root, &["-f", RESUME, "remove"])?;
    // Last: while it is there what is left of its links is found again.
    remove_file(root, RESUME_SCRIPT)
}

/// Changes the settings that the engine's script reads, if there is a change; an own file with nothing else in it goes.
fn change_settings(root: &HostRoot, change: impl Fn(Option<&str>) -> Option<String>) -> Result<(), UnitError> {
    let change = || -> io::Result<()> {
        let there = match root.read_to_string(DEFAULTS) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let Some(text) = change(there.as_deref()) else {
            return Ok(());
        };
        place(root, DEFAULTS)?;
        // What a link leads to is what is changed.
        let at = root.resolve(DEFAULTS)?;
        let folder = at.parent().ok_or(io::ErrorKind::InvalidInput)?;
        if text == OWN_FILE {
            fs::remove_file(&at)?;
            return files::sync_dir(folder);
        }
        let temp = folder.join(".docker.requeen-new");
        files::write_synced(&temp, text.as_bytes())?;
        if let Ok(meta) = fs::metadata(&at) {
            fs::set_permissions(&temp, meta.permissions())?;
            std::os::unix::fs::chown(&temp, Some(meta.uid()), Some(meta.gid()))?;
            crate::sets::copy_label(&at, &temp)?;
            fs::File::open(&temp)?.sync_all()?;
        }
        fs::rename(&temp, &at)?;
        files::sync_dir(folder)
    };
    change().map_err(failed(DEFAULTS))
}

/// Writes a script, ready to be run under its name.
fn write_script(root: &HostRoot, path: &str, text: &str) -> Result<(), UnitError> {
    let write = || -> io::Result<()> {
        let at = place(root, path)?;
        if fs::read(&at).is_ok_and(|there| there == text.as_bytes()) && root.is_executable(path) {
            return Ok(());
        }
        // Under a name that no init takes for a script's.
        let temp = at.with_file_name(format!(".{}.new", at.file_name().unwrap_or_default().to_string_lossy()));
        let mut file = fs::File::create(&temp)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        file.sync_all()?;
        fs::rename(&temp, &at)?;
        at.parent().map_or(Ok(()), files::sync_dir)
    };
    write().map_err(failed(path))
}

/// Enters a script into runlevels, or takes it from them, and sees to it that this outlives a power failure.
fn update_runlevels(root: &HostRoot, args: &[&str]) -> Result<(), UnitError> {
    let update = || -> io::Result<()> {
        let ran = root.run(UPDATE_RC, args, UPDATE_LIMIT).map_err(io::Error::other)?;
        if !ran.status.success() {
            return Err(io::Error::other(format!("update-rc.d {}: {}", args.join(" "), ran.stderr.trim())));
        }
        // The links, OpenRC's too, and the order in which insserv put everything.
        let folders = fs::read_dir(root.resolve("/etc")?)?.flatten().filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name == "init.d" || name.starts_with("rc") && name.ends_with(".d")
        });
        for folder in folders.map(|entry| entry.path()).filter(|path| path.is_dir()) {
            for file in fs::read_dir(&folder)?.flatten() {
                if file.file_name().to_string_lossy().starts_with(".depend") {
                    fs::File::open(file.path())?.sync_all()?;
                }
            }
            files::sync_dir(&folder)?;
        }
        let levels = root.join("/etc/runlevels/default");
        if levels.is_dir() { files::sync_dir(&levels) } else { Ok(()) }
    };
    update().map_err(failed(UPDATE_RC))
}

fn recover_script(program: &str) -> String {
    format!(
        "#!/bin/sh\n\
         ### BEGIN INIT INFO\n\
         # Provides:          requeen-recover\n\
         # Required-Start:    $local_fs\n\
         # Required-Stop:\n\
         # X-Start-Before:    docker containerd\n\
         # Default-Start:\n\
         # Default-Stop:\n\
         # Short-Description: Requeen: puts the files of this node's engine in order before it starts\n\
         # Description:       {DEFAULTS} runs it before each start of the engine.\n\
         ### END INIT INFO\n\
         \n\
         program={program}\n\
         [ \"$1\" = start ] || exit 0\n\
         # Without the program there is nothing to be done with, and the files are of one set at any time.\n\
         [ -x $program ] || exit 0\n\
         # What it says is worth less than the engine.\n\
         log={RECOVERY_LOG}\n\
         true 2> /dev/null >> $log || log=/dev/null\n\
         if $program recover >> $log 2>&1; then\n\
         \trm -f {FAILED}\n\
         else\n\
         \ttrue > {FAILED}\n\
         \techo \"requeen-recover: the engine is kept from starting: {RECOVERY_LOG} says why\" >&2\n\
         \texit 1\n\
         fi\n"
    )
}

fn resume_script(program: &str, port: u16) -> String {
    let argv = kept(&[program, "executor", "--port", &port.to_string()].map(str::to_owned));
    let line: Vec<String> = argv.iter().map(|word| format!("'{word}'")).collect();
    format!(
        "#!/bin/sh\n\
         ### BEGIN INIT INFO\n\
         # Provides:          {RESUME}\n\
         # Required-Start:    $local_fs $remote_fs\n\
         # Required-Stop:\n\
         # Should-Start:      docker $network\n\
         # Default-Start:     2 3 4 5\n\
         # Default-Stop:\n\
         # Short-Description: Requeen executor: finishes the work on this node's engine\n\
         ### END INIT INFO\n\
         \n\
         [ \"$1\" = start ] && [ -x {program} ] || exit 0\n\
         setsid {} < /dev/null >> {LOG} 2>&1 &\n",
        line.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing::TestHost;

    const PROGRAM: &str = "/var/lib/requeen/bin/agent-1";

    /// A host with Debian's script, and an `update-rc.d` that does nothing.
    fn host() -> TestHost {
        let host = TestHost::new(&[]);
        host.write(DOCKER_SCRIPT, b"#!/bin/sh\n\t. /etc/default/$BASE\n", 0o755);
        host.write(UPDATE_RC, b"#!/bin/sh\n", 0o755);
        host
    }

    fn guard(root: &HostRoot) -> Result<(), UnitError> {
        change_settings(root, |text| match text {
            Some(text) if text.contains(GUARD) => None,
            Some(text) => Some(format!("{GUARD}{text}")),
            None => Some(format!("{GUARD}{OWN_FILE}")),
        })
    }

    #[test]
    fn settings_are_as_they_were_afterwards() {
        let host = host();
        let own = "# mine\nDOCKER_OPTS=--debug";
        let at = host.write(DEFAULTS, own.as_bytes(), 0o640);
        for _ in 0..2 {
            guard(&host.root).unwrap();
            assert_eq!(fs::read_to_string(&at).unwrap(), format!("{GUARD}{own}"));
        }
        assert_eq!(fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o640);
        for _ in 0..2 {
            remove_recovery(&host.root).unwrap();
            assert_eq!(fs::read_to_string(&at).unwrap(), own);
        }
        assert_eq!(fs::read_dir(at.parent().unwrap()).unwrap().count(), 1, "no leftovers");
    }

    #[test]
    fn settings_that_were_not_there_go_again() {
        let host = host();
        guard(&host.root).unwrap();
        assert!(host.root.read_to_string(DEFAULTS).unwrap().starts_with(GUARD));
        remove_recovery(&host.root).unwrap();
        assert!(!host.root.join(DEFAULTS).exists());
        // But for what somebody has added meanwhile.
        guard(&host.root).unwrap();
        let at = host.root.join(DEFAULTS);
        fs::write(&at, format!("{}DOCKER_OPTS=\n", fs::read_to_string(&at).unwrap())).unwrap();
        remove_recovery(&host.root).unwrap();
        assert_eq!(fs::read_to_string(&at).unwrap(), format!("{OWN_FILE}DOCKER_OPTS=\n"));
    }

    #[test]
    fn what_keeps_a_boot_from_being_prepared_for_is_named() {
        let host = host();
        assert_eq!(obstacle(&host.root), None);
        fs::remove_file(host.root.join(UPDATE_RC)).unwrap();
        assert!(obstacle(&host.root).unwrap().contains(UPDATE_RC));
        host.write(DEFAULTS, b"DOCKER_OPTS=--label=\xff\n", 0o644);
        assert!(obstacle(&host.root).unwrap().contains("can't be read"));
        remove_recovery(&host.root).unwrap();
        host.write(DOCKER_SCRIPT, b"#!/bin/sh\n# . /etc/default/docker\n", 0o755);
        assert!(obstacle(&host.root).unwrap().contains(DEFAULTS));
    }

    /// Runs a shell, as the host's scripts would, with everything of the host in `dir`.
    fn shell(script: &str, dir: &Path) -> std::process::ExitStatus {
        let script = script.replace("/etc/", &format!("{}/etc/", dir.display()));
        let script = script.replace("/run/", &format!("{}/run/", dir.display()));
        let script = script.replace("/var/", &format!("{}/var/", dir.display()));
        let at = dir.join("script");
        fs::write(&at, script).unwrap();
        std::process::Command::new("/bin/sh").arg(at).arg("start").status().unwrap()
    }

    #[test]
    fn an_engine_starts_only_where_its_files_are_in_order() {
        let host = host();
        let dir = host.root.prefix().to_owned();
        fs::create_dir_all(dir.join("run")).unwrap();
        let engine = format!("set -e\n{GUARD}exit 7\n");
        let program = |code: u8| host.write(PROGRAM, format!("#!/bin/sh\nexit {code}\n").as_bytes(), 0o755);
        assert_eq!(shell(&engine, &dir).code(), Some(7), "no recovery is in place");

        let recover = recover_script(PROGRAM).replace("/var/", &format!("{}/var/", dir.display()));
        let recover = recover.replace("/run/", &format!("{}/run/", dir.display()));
        host.write(RECOVER_SCRIPT, recover.as_bytes(), 0o755);
        assert_eq!(shell(&engine, &dir).code(), Some(7), "there is no program");
        program(1);
        assert_eq!(shell(&engine, &dir).code(), Some(1), "recovery fails");
        assert!(recovery_failed(&host.root));
        program(0);
        assert_eq!(shell(&engine, &dir).code(), Some(7), "and there is no folder for its words");
        assert!(!recovery_failed(&host.root));
        fs::create_dir_all(dir.join("var/lib/requeen/agent")).unwrap();
        host.write(PROGRAM, b"#!/bin/sh\necho said >&2\n", 0o755);
        assert_eq!(shell(&engine, &dir).code(), Some(7));
        assert_eq!(host.root.read_to_string(RECOVERY_LOG).unwrap(), "said\n");
    }

    #[test]
    fn an_executor_is_kept_at_work() {
        let text = resume_script(PROGRAM, 9047);
        let last = text.lines().last().unwrap();
        assert!(last.contains("'/var/lib/requeen/bin/agent-1' 'executor' '--port' '9047' < /dev/null"), "{last}");
        assert!(!last.contains("''"), "{last}");
    }
}
