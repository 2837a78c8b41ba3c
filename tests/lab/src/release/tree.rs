//! The crates that are linked into the binaries, as `cargo tree` tells them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::command::{self, Input};
use crate::{Error, Result};

/// A crate and what it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Crate {
    /// The terms of its use, as an SPDX expression; empty if it names none.
    pub(super) licence: String,
    /// The crates that it uses itself, as `name@version`.
    pub(super) uses: BTreeSet<String>,
}

/// Crates by `name@version`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    /// All of them.
    pub(super) crates: BTreeMap<String, Crate>,
    /// Those that were asked for.
    pub(super) roots: BTreeSet<String>,
}

/// Asks cargo for the crates that are linked into these packages of the workspace for that target: neither those that
/// only tests or build scripts use, nor macros, which run in the compiler.
pub(super) fn of(repository: &Path, packages: &[&str], target: &str) -> Result<Tree> {
    let mut cargo = Command::new("cargo");
    cargo.args(["tree", "--locked", "--quiet", "--edges", "normal,no-proc-macro", "--target", target]);
    cargo.args(["--prefix", "depth", "--charset", "ascii", "--color", "never", "--format", "{p}|{l}"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    let output = command::collect(cargo.current_dir(repository), Input::Empty)?.ok()?;
    parse(&output.stdout).map_err(|line| Error::Answer {
        what: "cargo tree",
        answer: line.to_owned(),
        expected: "a depth, a name, a version, a bar and a licence",
    })
}

/// Reads lines like `2serde_core v1.0.229|MIT OR Apache-2.0 (*)`, each below the last line of one depth less. The star
/// is at a crate whose own lines were there before. The error is the line that is none.
fn parse(text: &str) -> Result<Tree, &str> {
    let mut tree = Tree::default();
    let mut above: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (depth, name, licence) = parse_line(line).ok_or(line)?;
        if depth > above.len() {
            return Err(line);
        }
        above.truncate(depth);
        match above.last() {
            Some(user) => drop(tree.crates.entry(user.clone()).or_default().uses.insert(name.clone())),
            None => drop(tree.roots.insert(name.clone())),
        }
        tree.crates.entry(name.clone()).or_default().licence = licence;
        above.push(name);
    }
    Ok(tree)
}

fn parse_line(line: &str) -> Option<(usize, String, String)> {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let depth = line.strip_suffix(rest)?.parse().ok()?;
    let (package, licence) = rest.split_once('|')?;
    let mut words = package.split_whitespace();
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    let licence = licence.trim_end_matches("(*)").trim();
    // An older form of "or", which is no SPDX expression.
    Some((depth, format!("{name}@{version}"), licence.replace('/', " OR ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_told_from_used() {
        let text = "0own v0.1.0 (/src/own)|MIT\n1a v1.0.0|MIT/Apache-2.0\n2b v2.0.0|\n1c v3.0.0|ISC\n2a v1.0.0|MIT/Apache-2.0 (*)\n\
                    \n0other v0.1.0 (/src/other)|MIT\n1b v2.0.0|\n";
        let tree = parse(text).expect("a tree");
        assert_eq!(tree.roots.iter().map(String::as_str).collect::<Vec<_>>(), ["other@0.1.0", "own@0.1.0"]);
        let uses = |name: &str| tree.crates[name].uses.iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(uses("own@0.1.0"), ["a@1.0.0", "c@3.0.0"]);
        assert_eq!(uses("a@1.0.0"), ["b@2.0.0"]);
        assert_eq!(uses("c@3.0.0"), ["a@1.0.0"]);
        assert_eq!(tree.crates["a@1.0.0"].licence, "MIT OR Apache-2.0");
        assert_eq!(tree.crates["b@2.0.0"].licence, "");
        assert_eq!(tree.crates.len(), 5);
    }

    #[test]
    fn what_is_no_tree_is_named() {
        for bad in ["own v0.1.0|MIT", "0own|MIT", "0own 0.1.0|MIT", "1own v0.1.0|MIT", "0own v0.1.0"] {
            assert_eq!(parse(bad), Err(bad));
        }
    }
}
