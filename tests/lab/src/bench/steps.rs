//! What an operator says to a swarm and waits for, one function each, with the swarm's own commands.
//!
//! All of it is asked on a manager that is not in work itself. While its swarm elects a leader it may fail or be slow, so
//! a command that fails is tried again within the limit.

use std::time::Duration;

use crate::{Node, Result, Role, wait};

/// How long a manager may take to do as it was told: an election takes 10 to 20 s.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// How long a drained node may take to lose its tasks: the longest grace period of the probe, and some more.
const DRAIN_LIMIT: Duration = Duration::from_secs(180);

/// How long a node may take to be seen with its new engine.
const JOIN_LIMIT: Duration = Duration::from_secs(180);

/// How long an active node may take to have its tasks back.
const TASKS_LIMIT: Duration = Duration::from_secs(180);

/// States of a task that may have a container.
const ALIVE: [&str; 6] = ["Assigned", "Accepted", "Preparing", "Ready", "Starting", "Running"];

/// Whether a node gets tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Availability {
    /// It does.
    Active,
    /// It does not, and loses those that it has.
    Drain,
}

impl Availability {
    const fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Drain => "drain",
        }
    }
}

/// Sets a node's availability.
pub(super) fn set_availability(manager: &Node, node: &Node, availability: Availability) -> Result<()> {
    let word = availability.word();
    wait::until_true(&format!("{node} set to {word}"), COMMAND_LIMIT, || {
        let set = manager.exec(&["docker", "node", "update", "--availability", word, node.name()])?;
        Ok(if set.success() { Ok(()) } else { Err(set.stderr) })
    })
}

/// Waits until a drained node has no task that lives and no container of one.
pub(super) fn wait_until_empty(manager: &Node, node: &Node) -> Result<()> {
    wait::until_true(&format!("no task on {node}"), DRAIN_LIMIT, || {
        let own = node.exec(&["docker", "ps", "--quiet", "--filter", "label=com.docker.swarm.task.id"])?;
        if !own.success() || !own.trimmed().is_empty() {
            return Ok(Err(format!("containers {}{}", own.trimmed(), own.stderr)));
        }
        let tasks = manager.exec(&["docker", "node", "ps", "--format", "{{.CurrentState}}", node.name()])?;
        let left = alive(&tasks.stdout);
        Ok(if tasks.success() && left == 0 { Ok(()) } else { Err(format!("{left} tasks {}", tasks.stderr)) })
    })
}

/// How many tasks of `docker node ps --format '{{.CurrentState}}'` may have a container.
fn alive(states: &str) -> usize {
    let first = |line: &str| line.split_whitespace().next().is_some_and(|word| ALIVE.contains(&word));
    states.lines().filter(|line| first(line)).count()
}

/// Waits until the swarm sees a node ready with an engine of this version, and reachable if it is a manager.
pub(super) fn wait_until_seen(manager: &Node, node: &Node, version: &str) -> Result<()> {
    let format =
        "{{.Status.State}} {{.Description.Engine.EngineVersion}} {{with .ManagerStatus}}{{.Reachability}}{{end}}";
    let wanted = match node.role() {
        Role::Manager => format!("ready {version} reachable"),
        Role::Worker => format!("ready {version}"),
    };
    wait::until_true(&format!("{node} {wanted}"), JOIN_LIMIT, || {
        let seen = manager.exec(&["docker", "node", "inspect", "--format", format, node.name()])?;
        Ok(if seen.trimmed() == wanted { Ok(()) } else { Err(format!("{}{}", seen.trimmed(), seen.stderr)) })
    })
}

/// Waits until an active node has tasks and all that it should have run.
pub(super) fn wait_for_tasks(manager: &Node, node: &Node) -> Result<()> {
    let format = "{{.CurrentState}}";
    let list = ["docker", "node", "ps", "--filter", "desired-state=running", "--format", format, node.name()];
    wait::until_true(&format!("the tasks of {node}"), TASKS_LIMIT, || {
        let tasks = manager.exec(&list)?;
        Ok(if tasks.success() && all_run(&tasks.stdout) { Ok(()) } else { Err(tasks.stdout + &tasks.stderr) })
    })
}

/// Whether there are tasks, and all of them run.
fn all_run(states: &str) -> bool {
    !states.trim().is_empty() && states.lines().all(|line| line.starts_with("Running"))
}

/// The name of the node that leads the managers, if `manager` knows one.
pub(super) fn leader(manager: &Node) -> Result<Option<String>> {
    let list = ["timeout", "5", "docker", "node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"];
    let nodes = manager.exec(&list)?;
    // What a manager can't tell now it is asked again.
    Ok(leader_of(&nodes.stdout).filter(|_| nodes.success()).map(str::to_owned))
}

fn leader_of(nodes: &str) -> Option<&str> {
    nodes.lines().find_map(|line| line.strip_suffix(" Leader"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tasks_that_may_have_a_container_count() {
        let states = "Running 2 minutes ago\nShutdown 3 seconds ago\nStarting 1 second ago\nComplete 5 hours ago\n\
                      Pending 1 second ago\nRejected 2 seconds ago\nFailed about a minute ago\n";
        assert_eq!(alive(states), 2);
        assert_eq!(alive(""), 0);
    }

    #[test]
    fn a_node_without_tasks_has_not_got_them_back() {
        assert!(all_run("Running 1 second ago\nRunning less than a second ago\n"));
        for states in ["", "\n", "Running 1 second ago\nStarting 1 second ago\n"] {
            assert!(!all_run(states), "{states:?}");
        }
    }

    #[test]
    fn the_leader_is_found_by_its_word() {
        assert_eq!(leader_of("m1 Reachable\nm2 Leader\nw1 \n"), Some("m2"));
        assert_eq!(leader_of("m1 Unreachable\nw1 \n"), None);
    }
}
