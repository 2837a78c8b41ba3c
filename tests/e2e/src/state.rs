//! What a refusal, a plan or a test must leave as it was.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use lab::{Lab, Node};
use serde_json::Value;

/// The files of an engine on a node, wherever the packages put them.
const FILES: &str = "for name in dockerd docker docker-init docker-proxy containerd ctr containerd-shim-runc-v2 runc; do \
                     path=$(command -v $name || ls /usr/libexec/docker/$name 2>/dev/null) || continue; \
                     echo \"$path $(stat -c '%F %a %U' $path) $(sha256sum < $path)\"; done";

/// Everything of a swarm that is not supposed to change by itself, in words that compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State(BTreeMap<String, String>);

impl State {
    /// Reads it, the swarm's part on `manager`.
    pub fn of(lab: &Lab, manager: &Node) -> Result<Self> {
        let mut state = BTreeMap::new();
        for kind in ["node", "service", "config"] {
            for (name, spec) in specs(manager, kind)? {
                state.insert(format!("{kind} {name}"), spec);
            }
        }
        for node in lab.nodes() {
            for line in node.sh(FILES)?.stdout.lines() {
                let (path, what) = line.split_once(' ').with_context(|| format!("no file and its digest: {line}"))?;
                state.insert(format!("{node} {path}"), what.to_owned());
            }
            let started = node.sh("systemctl show --property ExecMainStartTimestampMonotonic docker")?;
            state.insert(format!("{node} engine's start"), started.trimmed().to_owned());
        }
        Ok(Self(state))
    }

    /// What differs, one line each.
    pub fn changes(&self, later: &Self) -> Vec<String> {
        let keys = self.0.keys().chain(later.0.keys().filter(|key| !self.0.contains_key(*key)));
        let differs = keys.filter(|key| self.0.get(*key) != later.0.get(*key));
        differs.map(|key| format!("{key}: was {:?}, is {:?}", self.0.get(key), later.0.get(key))).collect()
    }
}

/// Every object of a kind: its ID and its specification.
fn specs(manager: &Node, kind: &str) -> Result<Vec<(String, String)>> {
    let ids = manager.docker(&[kind, "ls", "--quiet"])?.stdout;
    if ids.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut args = vec![kind, "inspect"];
    args.extend(ids.split_whitespace());
    let list: Vec<Value> = serde_json::from_str(&manager.docker(&args)?.stdout)?;
    let mut specs = Vec::new();
    for object in list {
        let id = object.get("ID").and_then(Value::as_str).context("an object without an ID")?;
        specs.push((id.to_owned(), object.get("Spec").map(Value::to_string).unwrap_or_default()));
    }
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_went_and_changed_is_told() {
        let state = |pairs: &[(&str, &str)]| {
            State(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        let (old, new) = (state(&[("a", "1"), ("b", "1"), ("c", "1")]), state(&[("a", "1"), ("b", "2"), ("d", "1")]));
        assert_eq!(old.changes(&old), Vec::<String>::new());
        assert_eq!(old.changes(&new).len(), 3);
    }
}
