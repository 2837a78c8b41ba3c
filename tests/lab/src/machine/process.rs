//! The processes that a machine is: its kernel, and one for each of its address spaces.
//!
//! The kernel writes its own process ID to a file below the lab's folder. It leads a process group of its own, so that
//! all of them die by one signal, at one instant, as by a power cut.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill as send, killpg};
use nix::unistd::Pid;

use crate::command;
use crate::{Error, Result, wait};

use super::{KERNEL, network};

/// How long processes may take to be gone after the signal.
const GONE_LIMIT: Duration = Duration::from_secs(30);

/// How long a kernel may take to write its ID.
const BEGIN_LIMIT: Duration = Duration::from_secs(30);

/// Runs its arguments with no file open but the first three: a machine outlives whoever started it, and with it would live
/// a lock of that one's, or the end of a pipe that others wait for.
const ALONE: &str =
    r#"for file in /proc/$$/fd/*; do n=${file##*/}; [ "$n" -le 2 ] || eval "exec $n>&-"; done; exec "$@""#;

/// What a machine says as long as nobody can come in.
pub(super) fn console(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.console"))
}

/// Starts a machine's kernel, which lives on when this process ends.
pub(super) fn start(folder: &Path, lab: &str, name: &str, arguments: &[String]) -> Result<()> {
    let own = own(folder, name);
    if own.exists() {
        // Of a kernel that was killed; it would be asked whether it lives, and by now its ID may be somebody else's.
        fs::remove_dir_all(&own).map_err(Error::file("remove", &own))?;
    }
    let path = console(folder, name);
    let open = || -> Result<File> {
        OpenOptions::new().create(true).append(true).open(&path).map_err(Error::file("open", &path))
    };
    let mut kernel = network::inside(lab, "bash");
    kernel.args(["-c", ALONE, "bash", "setsid", "--fork", KERNEL]).args(identity(folder, name)).args(arguments);
    kernel.stdin(Stdio::null()).stdout(Stdio::from(open()?)).stderr(Stdio::from(open()?));
    command::inherit_ok(&mut kernel)?;
    wait::until_true(&format!("the kernel of {name}; its console is {}", path.display()), BEGIN_LIMIT, || {
        Ok(if running(folder, name)? { Ok(()) } else { Err("not started".to_owned()) })
    })
}

/// Whether a machine has power.
pub(super) fn running(folder: &Path, name: &str) -> Result<bool> {
    Ok(pid(folder, name).is_some())
}

/// Kills every process of a machine at once; no error if it has none.
pub(super) fn kill(folder: &Path, name: &str) -> Result<()> {
    let Some(kernel) = pid(folder, name) else {
        return Ok(());
    };
    let group = Pid::from_raw(kernel);
    killpg(group, Signal::SIGKILL).map_err(|errno| Error::Kill { pid: kernel, source: errno.into() })?;
    end(|| Ok(members(kernel)))
}

/// Kills the processes that `list` finds until it finds none.
pub(super) fn end(mut list: impl FnMut() -> Result<Vec<i32>>) -> Result<()> {
    wait::until_true("the end of processes", GONE_LIMIT, || {
        let living: Vec<i32> = list()?.into_iter().filter(|pid| stat(*pid).is_some()).collect();
        for pid in &living {
            // One that has just ended is what was wanted.
            send(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        Ok(if living.is_empty() { Ok(()) } else { Err(format!("{living:?}")) })
    })
}

/// The process of a machine's kernel, if it lives.
fn pid(folder: &Path, name: &str) -> Option<i32> {
    let pid: i32 = fs::read_to_string(own(folder, name).join("pid")).ok()?.trim().parse().ok()?;
    // The file outlives its kernel, and its number may be another program's.
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let ours = identity(folder, name).iter().all(|word| words.contains(&word.as_bytes()));
    (ours && stat(pid)? == pid).then_some(pid)
}

/// The words of the command line that no other process has.
fn identity(folder: &Path, name: &str) -> [String; 2] {
    [format!("uml_dir={}", folder.join("uml").display()), format!("umid={name}")]
}

/// Where the kernel puts what is about itself.
fn own(folder: &Path, name: &str) -> PathBuf {
    folder.join("uml").join(name)
}

/// The living processes of a group.
fn members(group: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid) == Some(group)).collect()
}

/// The group of a process that lives: one that nobody has waited for is dead all the same.
fn stat(pid: i32) -> Option<i32> {
    group(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads `PID (NAME) STATE PARENT GROUP …`; the name may have blanks and brackets in it.
fn group(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    let state = words.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_in_no_group() {
        assert_eq!(group("12 (linux.uml) S 1 11 11 0"), Some(11));
        assert_eq!(group("12 (a ) Z 1 b) R 1 7 7 0"), Some(7));
        assert_eq!(group("12 (linux.uml) Z 1 11 11 0"), None);
    }

    #[test]
    fn no_file_of_whoever_starts_it_stays_open() {
        let script = format!("exec 7</dev/null 13</dev/null; exec bash -c '{ALONE}' bash ls /proc/self/fd");
        let output = command::run("bash", &["-c", &script]).expect("bash runs");
        // The fourth is the folder that `ls` reads.
        assert_eq!(output.stdout.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    }

    #[test]
    fn another_programs_number_is_no_machine() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = own(folder.path(), "w1");
        fs::create_dir_all(&own).expect("a folder");
        fs::write(own.join("pid"), format!("{}\n", std::process::id())).expect("written");
        assert_eq!(pid(folder.path(), "w1"), None);
    }
}
