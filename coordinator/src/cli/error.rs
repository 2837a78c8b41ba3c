//! Everything that can go wrong for the person at the keyboard, with the exit code and the hint.

use std::io;
use std::path::{Path, PathBuf};

use requeen_protocol::RolloutId;

use super::Exit;
use super::source::SourceError;
use crate::api::{Failure, FailureKind};
use crate::bundle::BundleError;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Nobody listens on the server's socket.
    #[error("can't reach the server at {}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    /// The connection ended before the answer did.
    #[error("the server broke off while answering {request}")]
    Talk { request: String, source: hyper::Error },
    /// The answer is not what the API promises.
    #[error("can't read the server's answer to {request} (status {status})")]
    Answer { request: String, status: u16, source: serde_json::Error },
    /// The server's own word.
    #[error("{}", .0.error)]
    Server(Failure),
    /// The bundle is none.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The flags of the bundle are wrong.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The bundle can't be opened for sending.
    #[error("can't read the bundle {path}")]
    OpenBundle { path: PathBuf, source: io::Error },
    /// The bundle can't be read twice.
    #[error("the bundle {path} is {kind}, not a regular file")]
    NotAFile { path: PathBuf, kind: &'static str },
    /// A folder of the operator's is none.
    #[error("{} is not a folder", path.display())]
    NotAFolder { path: PathBuf },
    /// `-`, and nobody pipes anything.
    #[error("`--bundle -` reads the bundle from stdin, and stdin is a terminal")]
    StdinTerminal,
    /// Nobody said yes.
    #[error("not confirmed: {what}")]
    Unconfirmed { what: String },
    /// The followed rollout is gone.
    #[error("the server does not know rollout {id} any more")]
    Lost { id: RolloutId },
    /// A file of the operator's is in the way.
    #[error("{} is there already", path.display())]
    Exists { path: PathBuf },
    /// Stdout is wanted for an archive, and can't have it.
    #[error("the archive can't go to stdout: {why}")]
    NoStdout { why: &'static str },
    /// Somebody ended it before its end.
    #[error("interrupted: nothing is left of {}", path.display())]
    Interrupted { path: PathBuf },
    /// Something in a folder of the operator's can't be written.
    #[error("can't write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// The answer to a question can't be read.
    #[error("can't read the answer from stdin")]
    Stdin { source: io::Error },
    /// Stdout can't be written.
    #[error("can't write to stdout")]
    Stdout { source: io::Error },
    /// Whoever read stdout has left: what was asked is done, and the rest of the answer is not wanted.
    #[error("stdout is closed")]
    Closed,
    /// The program's own machinery can't start.
    #[error("can't start the runtime")]
    Runtime { source: io::Error },
    /// The server ended with an error.
    #[error(transparent)]
    Serve(Box<crate::server::ServeError>),
    /// The probe ended with an error.
    #[error("the probe failed")]
    Probe(#[from] crate::probe::ProbeError),
}

fn of_kind(kind: FailureKind) -> Exit {
    match kind {
        FailureKind::Failed => Exit::Failed,
        FailureKind::Refused => Exit::Refused,
        FailureKind::Unreachable => Exit::Unreachable,
    }
}

fn connect_hint(socket: &Path, kind: io::ErrorKind) -> String {
    if kind == io::ErrorKind::PermissionDenied {
        "run it as root".to_owned()
    } else if kind == io::ErrorKind::ConnectionRefused {
        "the server has stopped: see `docker logs requeen`, then `docker start requeen`".to_owned()
    } else {
        format!(
            "is the server running on this manager (`docker ps --filter name=requeen`)? \
             Its socket is {} unless --socket or REQUEEN_SOCKET says otherwise",
            socket.display()
        )
    }
}

/// What was printed, if anybody still read it: a reader that has left does not change how things ended.
pub(crate) fn if_read(printed: Result<(), CliError>) -> Result<(), CliError> {
    match printed {
        Err(CliError::Closed) => Ok(()),
        printed => printed,
    }
}

impl CliError {
    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            CliError::Connect { .. } | CliError::Talk { .. } | CliError::Answer { .. } => Exit::Unreachable,
            CliError::Server(failure) => of_kind(failure.kind),
            CliError::Bundle(_)
            | CliError::Source(_)
            | CliError::OpenBundle { .. }
            | CliError::NotAFile { .. }
            | CliError::NotAFolder { .. }
            | CliError::StdinTerminal
            | CliError::Exists { .. }
            | CliError::NoStdout { .. }
            | CliError::Unconfirmed { .. } => Exit::Refused,
            CliError::Closed => Exit::Done,
            CliError::Lost { .. }
            | CliError::Interrupted { .. }
            | CliError::Write { .. }
            | CliError::Stdin { .. }
            | CliError::Stdout { .. }
            | CliError::Runtime { .. }
            | CliError::Probe(_) => Exit::Failed,
            CliError::Serve(error) => of_kind(error.kind()),
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            CliError::Connect { socket, source } => Some(connect_hint(socket, source.kind())),
            CliError::Talk { .. } => {
                Some("see where things stand with `requeen status`; the server's words are in `docker logs requeen`".into())
            }
            CliError::Answer { .. } => Some(
                "the server is of another version: install its own CLI with `docker run --rm -v /usr/local/bin:/out IMAGE \
                 coordinator install /out`"
                    .into(),
            ),
            CliError::Server(failure) => failure.hint.clone(),
            CliError::Bundle(error) => Some(error.hint()),
            CliError::Source(error) => Some(error.hint()),
            CliError::OpenBundle { .. } => Some("give the path of a tarball that this user may read".into()),
            CliError::NotAFile { .. } => {
                Some("give the tarball itself; what comes through a pipe is read by `--bundle -`".into())
            }
            CliError::NotAFolder { .. } => Some("give the path of a folder that is there".into()),
            CliError::StdinTerminal => Some("redirect a file to it: `--bundle - < FILE`".into()),
            CliError::Unconfirmed { .. } => Some("say yes on a terminal, or give --yes".into()),
            CliError::Lost { .. } => {
                Some("was its record removed (`docker config ls`)? `requeen status` shows what the server sees now".into())
            }
            CliError::Serve(error) => error.hint(),
            CliError::Exists { .. } => Some("remove it, or name another file: `-o FILE`".into()),
            CliError::NoStdout { .. } => Some("redirect it: `-o - > FILE`, or name a file: `-o FILE`".into()),
            CliError::Interrupted { .. }
            | CliError::Write { .. }
            | CliError::Stdin { .. }
            | CliError::Stdout { .. }
            | CliError::Closed
            | CliError::Runtime { .. }
            | CliError::Probe(_) => None,
        }
    }
}
