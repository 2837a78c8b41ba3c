//! Running programs: one place that starts them, collects what they say and names them in errors.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use crate::{Error, Result};

/// How much of a program's complaint an error carries, in characters.
const SAID_LIMIT: usize = 2000;

/// What a program said and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit status; 128 + n for a signal n.
    pub status: i32,
    /// Standard output, bytes that are not UTF-8 replaced.
    pub stdout: String,
    /// Standard error, the same.
    pub stderr: String,
    /// The command line, for errors.
    command: String,
}

impl Output {
    /// Whether the status is 0.
    pub const fn success(&self) -> bool {
        self.status == 0
    }

    /// The output if the status is 0, else [`Error::Failed`].
    pub fn ok(self) -> Result<Self> {
        if self.success() {
            return Ok(self);
        }
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        Err(Error::Failed { command: self.command, status: self.status, said: tail(said.trim()) })
    }

    /// Standard output without the white space around it.
    pub fn trimmed(&self) -> &str {
        self.stdout.trim()
    }
}

/// Where a program's standard input comes from.
#[derive(Debug)]
pub enum Input<'a> {
    /// Nothing.
    Empty,
    /// These bytes.
    Bytes(&'a [u8]),
    /// An open file.
    File(File),
}

/// Runs `command` to its end and collects what it says. A status that is not 0 is not an error here: see [`Output::ok`].
pub fn collect(command: &mut Command, input: Input<'_>) -> Result<Output> {
    let line = describe(command);
    tracing::debug!(command = %line, "run");
    let start = |name: String| move |source| Error::Start { program: name, source };
    let (stdin, bytes) = match input {
        Input::Empty => (Stdio::null(), None),
        Input::Bytes(bytes) => (Stdio::piped(), Some(bytes)),
        Input::File(file) => (Stdio::from(file), None),
    };
    let spawned = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(start(program(command)))?;
    let pipe = child.stdin.take();
    let output = thread::scope(|scope| {
        if let (Some(mut pipe), Some(bytes)) = (pipe, bytes) {
            // A program may end without reading all of its input; its status tells whether that was wrong.
            scope.spawn(move || pipe.write_all(bytes).ok());
        }
        child.wait_with_output()
    });
    let output = output.map_err(start(program(command)))?;
    Ok(Output {
        status: number(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        command: line,
    })
}

/// Runs a program and returns what it said, if its status is 0.
pub fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<Output> {
    collect(Command::new(program).args(args), Input::Empty)?.ok()
}

/// Runs a command on the terminal of whoever runs the lab, and returns its status.
pub fn inherit(command: &mut Command) -> Result<i32> {
    let line = describe(command);
    tracing::debug!(command = %line, "run");
    let status = command.status().map_err(|source| Error::Start { program: program(command), source })?;
    Ok(number(status))
}

/// Like [`inherit`], and any status but 0 is [`Error::Failed`].
pub fn inherit_ok(command: &mut Command) -> Result<()> {
    match inherit(command)? {
        0 => Ok(()),
        status => Err(Error::Failed { command: describe(command), status, said: "see its output above".to_owned() }),
    }
}

/// Runs the machine's `docker` client; fails if its status is not 0.
pub fn docker<S: AsRef<OsStr>>(args: &[S]) -> Result<Output> {
    run("docker", args)
}

/// Runs `work` on every item at once, one thread each, and returns the answers in the items' order, or the first error.
pub fn parallel<T: Sync, R: Send>(
    what: &'static str,
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || work(item))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(Error::Panicked { what }))).collect()
    })
}

fn number(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn describe(command: &Command) -> String {
    let mut line = program(command);
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    if line.chars().count() > 200 {
        line = line.chars().take(200).collect();
        line.push('…');
    }
    line
}

fn tail(text: &str) -> String {
    let excess = text.chars().count().saturating_sub(SAID_LIMIT);
    text.chars().skip(excess).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_streams_are_kept_apart() {
        let output =
            collect(Command::new("sh").args(["-c", "cat; echo no >&2; exit 3"]), Input::Bytes(b"in")).expect("sh runs");
        assert_eq!((output.status, output.stdout.as_str(), output.stderr.as_str()), (3, "in", "no\n"));
        let error = output.ok().expect_err("status 3").to_string();
        assert!(error.contains("status 3: no"), "{error}");
    }

    #[test]
    fn a_signal_is_a_status_too() {
        let output = collect(Command::new("sh").args(["-c", "kill -9 $$"]), Input::Empty).expect("sh runs");
        assert_eq!(output.status, 137);
    }

    #[test]
    fn answers_keep_the_items_order() {
        let answers = parallel("counting", &[3_u64, 1, 2], |n| Ok(n * 2)).expect("no errors");
        assert_eq!(answers, [6, 2, 4]);
    }
}
