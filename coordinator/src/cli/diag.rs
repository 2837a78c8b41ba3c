//! `diag`: an archive of what every node knows, for a bug report.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use indicatif::ProgressBar;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::args;
use super::client::Streamed;
use super::error::CliError;
use super::serve::told_to_stop;
use super::{Context, Exit};
use crate::api::{DiagArgs, DiagEvent};

pub(crate) async fn run(context: &Context, args: args::Diag) -> Result<Exit, CliError> {
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    if to_stdout && io::stdout().is_terminal() {
        return Err(CliError::NoStdout { why: "it is a terminal" });
    }
    if to_stdout && context.json {
        return Err(CliError::NoStdout { why: "--json goes there" });
    }
    // Before anybody is asked; the file itself is made when there is something to be written.
    if let Some(path) = args.output.as_deref().filter(|_| !to_stdout) {
        free(path)?;
    }
    let since_unix = args.since.map(|since| since.unix(Timestamp::now()));
    let question = DiagArgs { nodes: args.nodes, since_unix };
    let mut answer = context.client.stream("/diag", &question).await?;
    let DiagEvent::Begun { rollout, made, nodes } = answer.line().await? else {
        return Err(no_event());
    };
    let path = if to_stdout {
        None
    } else {
        let name = || file_name(rollout.as_ref().map_or(made.as_str(), |rollout| rollout.as_str()));
        let path = args.output.unwrap_or_else(name);
        free(&path)?;
        Some(path)
    };
    let seen = collect(context, &mut answer, &nodes).await?;
    match &path {
        Some(path) => save(&mut answer, path).await?,
        None => {
            while let Some(bytes) = answer.bytes().await? {
                context.printer.out_bytes(&bytes)?;
            }
        }
    }
    say(context, path.as_deref(), &nodes, &seen)?;
    Ok(Exit::Done)
}

/// The answer is of another version's.
fn no_event() -> CliError {
    let source = serde::de::Error::custom("it does not begin with what is collected");
    CliError::Answer { request: "POST /diag".to_owned(), status: 200, source }
}

/// Whether a file may be made there.
fn free(path: &Path) -> Result<(), CliError> {
    // A link that leads nowhere is in the way too.
    if fs::symlink_metadata(path).is_ok() { Err(CliError::Exists { path: path.to_owned() }) } else { Ok(()) }
}

/// The archive's name in this folder, by the rollout or the time.
fn file_name(of: &str) -> PathBuf {
    let plain: String = of.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    PathBuf::from(format!("requeen-diag-{plain}.tar.gz"))
}

/// A node that was asked.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    hostname: String,
    collected: bool,
    why: Option<String>,
}

/// Shows which nodes have answered, until the archive follows.
async fn collect(context: &Context, answer: &mut Streamed, nodes: &[String]) -> Result<Vec<Seen>, CliError> {
    let live = context.printer.live && !context.json;
    let line = if live { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    if live {
        line.enable_steady_tick(Duration::from_millis(120));
    }
    let mut seen = Vec::new();
    loop {
        line.set_message(progress(nodes, &seen));
        match answer.line().await {
            Ok(DiagEvent::Node { hostname, collected, why }) => {
                if collected && !live && !context.json {
                    context.printer.note(format_args!("{hostname}: collected"));
                }
                seen.push(Seen { hostname, collected, why });
            }
            Ok(DiagEvent::Archive) => break,
            Ok(DiagEvent::Begun { .. }) => {}
            Err(error) => {
                line.finish_and_clear();
                return Err(error);
            }
        }
    }
    line.finish_and_clear();
    Ok(seen)
}

/// How many nodes have answered, and who has not.
fn progress(nodes: &[String], seen: &[Seen]) -> String {
    let mut left: Vec<&str> = nodes.iter().map(String::as_str).collect();
    for node in seen {
        // One at a time: two nodes may have one name.
        if let Some(at) = left.iter().position(|name| *name == node.hostname) {
            left.remove(at);
        }
    }
    let words = format!("collecting: {} of {} nodes", nodes.len() - left.len(), nodes.len());
    if left.is_empty() { words } else { format!("{words}; waiting for {}", left.join(", ")) }
}

/// Writes what comes into a new file; of one that does not become whole nothing is left.
async fn save(answer: &mut Streamed, path: &Path) -> Result<(), CliError> {
    let write = |source| CliError::Write { path: path.to_owned(), source };
    // Only its owner may read it: what is in it is nobody else's business.
    let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(CliError::Exists { path: path.to_owned() });
        }
        file => file.map_err(write)?,
    };
    let mut half = Half { path, file, whole: false };
    let stop = told_to_stop().map_err(|source| CliError::Runtime { source })?;
    tokio::pin!(stop);
    loop {
        let bytes: Option<Bytes> = tokio::select! {
            () = &mut stop => return Err(CliError::Interrupted { path: path.to_owned() }),
            bytes = answer.bytes() => bytes?,
        };
        let Some(bytes) = bytes else { break };
        half.file.write_all(&bytes).map_err(write)?;
    }
    half.file.sync_all().map_err(write)?;
    half.whole = true;
    Ok(())
}

/// A file that goes unless it becomes whole.
struct Half<'a> {
    path: &'a Path,
    file: File,
    whole: bool,
}

impl Drop for Half<'_> {
    fn drop(&mut self) {
        if !self.whole {
            // The error that brought us here is the one that matters.
            let _ = fs::remove_file(self.path);
        }
    }
}

/// The last words: the file, and who is missing in it.
fn say(context: &Context, path: Option<&Path>, nodes: &[String], seen: &[Seen]) -> Result<(), CliError> {
    let printer = &context.printer;
    let missing: Vec<&Seen> = seen.iter().filter(|node| !node.collected).collect();
    for node in &missing {
        let why = node.why.as_deref().unwrap_or("for no reason given");
        printer.note(format_args!("warning: {} is missing in the archive: {why}", node.hostname));
    }
    match path {
        Some(path) if context.json => printer.json_pretty(&summary(path, seen))?,
        Some(path) => printer.out(path.display())?,
        None => {}
    }
    if !context.json {
        printer.note(format_args!("{} of {} nodes are in the archive", nodes.len() - missing.len(), nodes.len()));
        printer.hint("look through it before you attach it to a report; its MANIFEST.txt says what was left out");
    }
    Ok(())
}

fn summary(path: &Path, seen: &[Seen]) -> Value {
    let node = |node: &Seen| json!({ "hostname": node.hostname, "collected": node.collected, "why": node.why });
    json!({ "file": path.display().to_string(), "nodes": seen.iter().map(node).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(hostname: &str) -> Seen {
        Seen { hostname: hostname.to_owned(), collected: true, why: None }
    }

    #[test]
    fn progress_names_who_is_waited_for() {
        let nodes = ["m1", "w1", "w1"].map(str::to_owned);
        assert_eq!(progress(&nodes, &[]), "collecting: 0 of 3 nodes; waiting for m1, w1, w1");
        assert_eq!(progress(&nodes, &[seen("w1")]), "collecting: 1 of 3 nodes; waiting for m1, w1");
        assert_eq!(progress(&nodes, &[seen("w1"), seen("m1"), seen("w1")]), "collecting: 3 of 3 nodes");
    }

    #[test]
    fn the_file_is_named_by_the_rollout_or_the_time() {
        assert_eq!(file_name("20261121-2e8b3cc2"), Path::new("requeen-diag-20261121-2e8b3cc2.tar.gz"));
        assert_eq!(file_name("2026-11-21T12:00:00.5Z"), Path::new("requeen-diag-2026-11-21T1200005Z.tar.gz"));
        assert_eq!(file_name("../x/y"), Path::new("requeen-diag-xy.tar.gz"));
    }

    #[test]
    fn half_an_archive_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        drop(Half { path: &path, file: File::create(&path).unwrap(), whole: false });
        assert!(!path.exists());
        drop(Half { path: &path, file: File::create(&path).unwrap(), whole: true });
        assert!(path.exists());
        assert!(matches!(free(&path), Err(CliError::Exists { .. })));
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert!(matches!(free(&dir.path().join("link")), Err(CliError::Exists { .. })));
    }
}
