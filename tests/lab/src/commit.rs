//! What a release says of where it came from: the workspace's version, the commit, and the commit's time.

use std::path::Path;
use std::process::Command;

use jiff::Timestamp;

use crate::command::{self, Input};
use crate::{Error, Result};

/// The time of a release where there is no git, in seconds since 1970: <https://reproducible-builds.org/specs/source-date-epoch/>.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Where a release came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The workspace's version.
    pub version: String,
    /// The commit, with `-dirty` behind it if files differ; `unknown` where there is no git.
    pub revision: String,
    /// The commit's time.
    pub created: Timestamp,
    /// Where the source can be had, if the one who releases says so.
    pub source: Option<String>,
    /// The files that differ from the commit: with any, nobody else can make this release again.
    pub changed: Vec<String>,
}

impl Release {
    /// What the repository tells.
    pub fn of(repository: &Path) -> Result<Self> {
        let commit = git(repository, &["rev-parse", "HEAD"]);
        let changed = git(repository, &["status", "--porcelain"]).unwrap_or_default();
        let changed: Vec<String> = changed.lines().filter_map(|line| line.get(3..)).map(str::to_owned).collect();
        let revision = match commit {
            Some(commit) if changed.is_empty() => commit,
            Some(commit) => format!("{commit}-dirty"),
            None => "unknown".to_owned(),
        };
        let time = git(repository, &["log", "-1", "--format=%ct"]).or_else(|| std::env::var(EPOCH).ok());
        let created = time.map_or(Ok(Timestamp::UNIX_EPOCH), |text| parse_time(&text))?;
        Ok(Self { version: env!("CARGO_PKG_VERSION").to_owned(), revision, created, source: None, changed })
    }
}

fn parse_time(text: &str) -> Result<Timestamp> {
    let seconds = text.trim().parse().ok();
    seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).ok_or_else(|| Error::Answer {
        what: "git, or SOURCE_DATE_EPOCH,",
        answer: text.to_owned(),
        expected: "seconds since 1970",
    })
}

/// What git says, or nothing where there is no git or no commit.
fn git(repository: &Path, args: &[&str]) -> Option<String> {
    let output = command::collect(Command::new("git").args(args).current_dir(repository), Input::Empty).ok()?;
    // Not trimmed in front: a line of `git status` may begin with a space.
    output.success().then(|| output.stdout.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn run(repository: &Path, args: &[&str]) {
        git(repository, args).unwrap_or_else(|| panic!("git {args:?}"));
    }

    #[test]
    fn a_commit_tells_its_time_and_what_differs_from_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let repository = folder.path();
        run(repository, &["init", "--quiet"]);
        fs::write(repository.join("a"), "1").expect("written");
        run(repository, &["add", "a"]);
        let identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"];
        run(repository, &[&identity[..], &["commit", "--quiet", "--message", "a"]].concat());
        let clean = Release::of(repository).expect("a release");
        assert_eq!(clean.revision.len(), 40);
        assert!(clean.changed.is_empty(), "{:?}", clean.changed);
        let seconds = git(repository, &["log", "-1", "--format=%ct"]).expect("a commit");
        assert_eq!(clean.created.as_second().to_string(), seconds);

        fs::write(repository.join("a"), "2").expect("written");
        fs::write(repository.join("b"), "2").expect("written");
        let dirty = Release::of(repository).expect("a release");
        assert_eq!(dirty.changed, ["a", "b"]);
        assert_eq!(dirty.revision, format!("{}-dirty", clean.revision));
    }

    #[test]
    fn a_time_is_seconds() {
        assert_eq!(parse_time("1700000000\n").expect("a time").to_string(), "2023-11-14T22:13:20Z");
        assert!(parse_time("yesterday").is_err());
    }
}
