//! The host as the agent sees it: a root directory and the programs inside it.
//!
//! The task sees the host at `/host`, the executor at `/`, a test in a temporary directory. Every
//! path that the agent handles is the host's own (`/usr/bin/dockerd`); this module turns it into one
//! that the process can open. Nothing here knows what an upgrade is.

pub mod files;
pub(crate) mod initscript;
pub mod layout;
pub mod manager;
#[cfg(test)]
pub(crate) mod testing;
pub mod units;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// More symbolic links than this on one path are a loop (the kernel's own limit).
const MAX_LINKS: usize = 40;

/// Where systemd's services look for programs, unless their unit says otherwise. (Without the last
/// two where `/usr` is merged; there they are the same folders.)
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the host's root directory is for this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoot {
    prefix: PathBuf,
}

/// What a program printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, as text.
    pub stdout: String,
    /// Its standard error, as text.
    pub stderr: String,
}

/// A program could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started.
    #[error("`{program}` could not be started")]
    Start {
        /// The program, as a path of the host.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Its end could not be waited for.
    #[error("`{program}` could not be waited for")]
    Wait {
        /// The program, as a path of the host.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It ran longer than it may, and was killed.
    #[error("`{program}` did not end within {} s", .limit.as_secs())]
    Timeout {
        /// The program, as a path of the host.
        program: String,
        /// The limit.
        limit: Duration,
    },
}

impl HostRoot {
    /// The host whose `/` is at `prefix`.
    pub fn new(prefix: impl Into<PathBuf>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// Where the host's `/` is.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Whether this process lives in the host's root itself.
    pub fn is_own(&self) -> bool {
        self.prefix == Path::new("/")
    }

    /// The host's path `path` as one that this process can open. Symbolic links are left to the
    /// kernel, which follows absolute ones in this process's root: use it for paths without any.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.prefix.join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()))
    }

    /// Like [`HostRoot::join`], with every symbolic link followed as the host would follow it,
    /// never out of the prefix. The last component, and any after a missing one, need not exist.
    pub fn resolve(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        Ok(self.join(self.walk(path.as_ref())?))
    }

    /// Like [`HostRoot::resolve`], but the last component is left as it is: the path of a symbolic
    /// link and not of what it leads to.
    pub fn resolve_parent(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let path = path.as_ref();
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(self.resolve(parent)?.join(name)),
            (None, _) | (_, None) => Ok(self.prefix.clone()),
        }
    }

    /// The host's own name of a path: links followed, prefix taken off.
    pub fn canonical(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        self.walk(path.as_ref())
    }

    /// Reads a file of the host as text, links followed inside the root.
    pub fn read_to_string(&self, path: impl AsRef<Path>) -> io::Result<String> {
        std::fs::read_to_string(self.resolve(path)?)
    }

    /// Whether `path` leads to a regular file that somebody may execute.
    pub fn is_executable(&self, path: impl AsRef<Path>) -> bool {
        use std::os::unix::fs::PermissionsExt;
        self.resolve(path)
            .and_then(std::fs::metadata)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    }

    /// A command that runs `program` (a path of the host) in the host's root, from `/`.
    pub fn command<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Command {
        let mut command = Command::new(program);
        // The container's own PATH says nothing about the host.
        command.args(args).env("PATH", DEFAULT_PATH);
        if self.is_own() {
            command.current_dir("/");
        } else {
            // systemd's private socket does not answer a container; its bus does.
            command.env("SYSTEMCTL_FORCE_BUS", "1");
            let prefix = self.prefix.clone();
            // SAFETY: between fork and exec the closure makes two system calls on a path that was
            // allocated before; it takes no lock. (nix copies short paths to the stack.)
            unsafe {
                command.pre_exec(move || {
                    nix::unistd::chroot(&prefix)?;
                    nix::unistd::chdir("/")?;
                    Ok(())
                });
            }
        }
        command
    }

    /// Runs a program of the host to its end and takes what it prints. After `limit` it is killed.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, args: &[S], limit: Duration) -> Result<Ran, RunError> {
        self.run_head(program, args, limit, u64::MAX)
    }

    /// Like [`HostRoot::run`], with at most `bytes` of what it prints on each of its outputs: one that prints
    /// more finds its output closed.
    pub fn run_head<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: &[S],
        limit: Duration,
        bytes: u64,
    ) -> Result<Ran, RunError> {
        let mut command = self.command(program, args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| RunError::Start { program: program.to_owned(), source })?;
        let stdout = collect(child.stdout.take(), bytes);
        let stderr = collect(child.stderr.take(), bytes);
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        let (ended, wait) = std::sync::mpsc::channel();
        // The waiting thread owns the child: it is reaped whichever way this ends.
        let waiter = std::thread::spawn(move || {
            // The receiver is gone after a time-out; the child was reaped all the same.
            let _ = ended.send(child.wait());
        });
        let status = match wait.recv_timeout(limit) {
            Ok(status) => status.map_err(|source| RunError::Wait { program: program.to_owned(), source })?,
            Err(_) => {
                // The child may have ended in this instant; then there is nobody to kill.
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                return Err(RunError::Timeout { program: program.to_owned(), limit });
            }
        };
        // Only a panic in the thread makes these fail, and it has nothing to panic about.
        let _ = waiter.join();
        Ok(Ran { status, stdout: stdout.join().unwrap_or_default(), stderr: stderr.join().unwrap_or_default() })
    }

    /// Follows every link of `path` inside the root; gives the host's absolute path.
    fn walk(&self, path: &Path) -> io::Result<PathBuf> {
        let mut todo: VecDeque<OsString> = parts(path).collect();
        let mut done = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&part);
            match std::fs::read_link(self.join(&next)) {
                Ok(to) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(io::Error::from_raw_os_error(nix::errno::Errno::ELOOP as i32));
                    }
                    if to.is_absolute() {
                        done = PathBuf::from("/");
                    }
                    for part in parts(&to).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(part);
                    }
                }
                // EINVAL: it is there and no link. Not there: nothing to follow.
                Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                    done = next;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

/// The names on a path; `..` is kept, `/` and `.` are not.
fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Reads a pipe to its end, or until it gave `limit` bytes, on a thread, so that a talkative program never
/// blocks on it.
fn collect(pipe: Option<impl Read + Send + 'static>, limit: u64) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.take(limit).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
