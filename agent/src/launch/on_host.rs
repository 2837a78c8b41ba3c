//! The third way, inside the sibling container: from there to the host, and the executor's start there.
//!
//! The container's first process opens what it needs of PID 1, enters its namespaces and its root directory, joins its
//! control groups, and starts the executor as a session of its own. Then it ends, and with it the container. The executor
//! has nothing of the container any more: its parent is gone, its files, groups and namespaces are the host's. What stays
//! are the limits of the container's capabilities and system calls.
//!
//! Nothing watches over an executor that was started like this. If it dies, the agent's task starts another one from the
//! journal, as soon as the engine runs and with it the task.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{chdir, chroot, dup2_stderr, fchdir, setsid};

use super::cgroups::{self, CgroupError};
use super::sibling::LOG;
use crate::host::DEFAULT_PATH;

/// The kinds of namespaces to enter: that of the control groups first, since their paths are told by it. Users have the
/// host's already; where an engine gives them others the agent itself is nobody on the host.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "uts", "net", "pid", "mnt"];

/// PID 1's root directory.
const ROOT: &str = "/proc/1/root";

/// The executor was not started.
#[derive(Debug, thiserror::Error)]
pub enum OnHostError {
    /// There is nothing to start.
    #[error("no program is named")]
    NoProgram,
    /// The log can't be written.
    #[error("{LOG} can't be opened")]
    Log(#[source] io::Error),
    /// The log can't be made standard error.
    #[error("{LOG} can't be written to as standard error")]
    Stderr(#[source] Errno),
    /// Something of PID 1's can't be opened.
    #[error("{path} can't be opened")]
    Open {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not let this process into a namespace.
    #[error("PID 1's {0} namespace can't be entered")]
    Enter(&'static str, #[source] Errno),
    /// Nor into its root directory.
    #[error("PID 1's root directory can't be entered")]
    Root(#[source] Errno),
    /// The container's control groups can't be left.
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
    /// The program does not start.
    #[error("{program} can't be started on the host")]
    Start {
        /// Its path.
        program: String,
        /// Why.
        source: io::Error,
    },
}

/// Starts `argv` on the host. Only for a process of one thread: the kernel moves no other into another mount namespace.
pub fn run(argv: &[String]) -> Result<(), OnHostError> {
    let (program, args) = argv.split_first().ok_or(OnHostError::NoProgram)?;
    // Still the container's way to it; from here on what goes wrong is told there.
    dup2_stderr(log()?).map_err(OnHostError::Stderr)?;
    enter()?;
    cgroups::join_init()?;
    let log = log()?;
    let failed = |source| OnHostError::Start { program: program.clone(), source };
    let mut command = Command::new(program);
    command.args(args).env_clear().env("PATH", DEFAULT_PATH).stdin(Stdio::null());
    command.stdout(log.try_clone().map_err(OnHostError::Log)?).stderr(log);
    // SAFETY: between fork and exec the closure makes one system call; it takes no lock and touches no memory.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Ok(())
        });
    }
    let executor = command.spawn().map_err(failed)?;
    tracing::info!(pid = executor.id(), "the executor was started");
    Ok(())
}

fn log() -> Result<File, OnHostError> {
    OpenOptions::new().create(true).append(true).open(LOG).map_err(OnHostError::Log)
}

/// Makes PID 1's namespaces and root directory this process's own.
fn enter() -> Result<(), OnHostError> {
    // All of them first: in its namespaces `/proc` is another one.
    let mut namespaces = Vec::new();
    for name in NAMESPACES {
        let path = format!("/proc/1/ns/{name}");
        match File::open(&path) {
            Ok(file) => namespaces.push((name, file)),
            // An older kernel, whose processes all share what this one would keep apart.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(OnHostError::Open { path, source }),
        }
    }
    let root = File::open(ROOT).map_err(|source| OnHostError::Open { path: ROOT.to_owned(), source })?;
    for (name, file) in namespaces {
        setns(file, CloneFlags::empty()).map_err(|errno| OnHostError::Enter(name, errno))?;
    }
    let enter_root = || {
        fchdir(root)?;
        chroot(".")?;
        chdir("/")
    };
    enter_root().map_err(OnHostError::Root)
}
