//! Why a rollout can't start, found before anything is touched.

use std::collections::{BTreeMap, BTreeSet};

use requeen_protocol::{NodeId, NodeState};

use super::gates::quorum_without;
use super::locked;
use super::model::{AgentView, Availability, ManagerPolicy, NodeView, Observed, Policy, Role};
use super::reasons::Refusal;
use crate::api::PolicyChoice;

/// The release from which every node takes one load-balancer address on each overlay network that it
/// has tasks on (moby 18.06).
const PER_NODE_LOAD_BALANCER: (u64, u64) = (18, 6);

/// The numbers of a version: `20.10.24+dfsg1` is `[20, 10, 24]`.
pub fn version_numbers(version: &str) -> Vec<u64> {
    version
        .trim_start_matches('v')
        .split(['+', '-', '~'])
        .next()
        .unwrap_or_default()
        .split('.')
        .map_while(|part| part.parse().ok())
        .collect()
}

fn before_load_balancers(version: &str) -> bool {
    let numbers = version_numbers(version);
    match (numbers.first(), numbers.get(1)) {
        (Some(&major), Some(&minor)) => (major, minor) < PER_NODE_LOAD_BALANCER,
        (Some(_) | None, Some(_) | None) => false,
    }
}

/// Picks the manager policy for the nodes of `scope`, and says why in a phrase.
pub fn choose_policy(
    choice: PolicyChoice,
    observed: &Observed,
    scope: &BTreeSet<NodeId>,
    to: &str,
) -> (ManagerPolicy, String) {
    match choice {
        PolicyChoice::Rolling => (ManagerPolicy::Rolling, "rolling, as asked".to_owned()),
        PolicyChoice::HoldDrained => (ManagerPolicy::HoldDrained, "hold-drained, as asked".to_owned()),
        PolicyChoice::Auto => {
            let crossing = !before_load_balancers(to)
                && scope
                    .iter()
                    .filter_map(|id| observed.nodes.get(id))
                    .any(|node| before_load_balancers(&node.engine_version));
            if crossing {
                (
                    ManagerPolicy::HoldDrained,
                    "hold-drained: 18.06 changed how nodes take addresses on overlay networks".to_owned(),
                )
            } else {
                (ManagerPolicy::Rolling, "rolling: this pair of versions can be mixed".to_owned())
            }
        }
    }
}

/// Resolves `only` and `exclude` (names, IDs, unique prefixes of IDs) to node IDs.
pub fn scope(observed: &Observed, only: &[String], exclude: &[String]) -> Result<BTreeSet<NodeId>, Refusal> {
    let mut scope: BTreeSet<NodeId> = if only.is_empty() {
        observed.nodes.keys().cloned().collect()
    } else {
        only.iter().map(|name| resolve(observed, name)).collect::<Result<_, _>>()?
    };
    for name in exclude {
        scope.remove(&resolve(observed, name)?);
    }
    if scope.is_empty() {
        return Err(Refusal {
            node: None,
            what: "no node is left to upgrade".to_owned(),
            hint: "check `--only` and `--exclude` against `docker node ls`".to_owned(),
        });
    }
    Ok(scope)
}

/// Resolves one node's name, ID or unique prefix of an ID.
pub fn resolve(observed: &Observed, name: &str) -> Result<NodeId, Refusal> {
    if let Some(node) = observed.nodes.values().find(|node| node.id.as_str() == name) {
        return Ok(node.id.clone());
    }
    let pick = |found: Vec<&NodeView>| match found.as_slice() {
        [] => None,
        [node] => Some(Ok(node.id.clone())),
        [_, ..] => {
            let ids: Vec<_> = found.iter().map(|node| node.id.as_str()).collect();
            Some(Err(Refusal {
                node: Some(name.to_owned()),
                what: format!("`{name}` is ambiguous: it names the nodes {}", ids.join(", ")),
                hint: "give the whole ID, as `docker node ls` prints it".to_owned(),
            }))
        }
    };
    let by_name = observed.nodes.values().filter(|node| node.hostname == name).collect();
    let by_prefix = || {
        let matches = |node: &&NodeView| !name.is_empty() && node.id.as_str().starts_with(name);
        pick(observed.nodes.values().filter(matches).collect())
    };
    pick(by_name).or_else(by_prefix).unwrap_or_else(|| {
        let known: Vec<_> = observed.nodes.values().map(|node| node.hostname.as_str()).collect();
        Err(Refusal {
            node: Some(name.to_owned()),
            what: format!("no node `{name}` is in this swarm"),
            hint: format!("its nodes are {}", known.join(", ")),
        })
    })
}

/// Everything about the swarm that forbids the rollout before any agent is asked: quorum, leader, nodes
/// that are down, agents that are missing.
pub fn swarm(observed: &Observed, scope: &BTreeSet<NodeId>, policy: &Policy) -> Vec<Refusal> {
    if !observed.has_leader {
        return vec![Refusal {
            node: None,
            what: "the swarm's managers have no leader".to_owned(),
            hint: "bring a majority of the managers back first: `docker node ls` on a manager tells".to_owned(),
        }];
    }
    let nodes: Vec<_> = scope.iter().filter_map(|id| observed.nodes.get(id)).collect();
    let mut refusals = Vec::new();
    for node in &nodes {
        if !node.ready {
            refusals.push(Refusal {
                node: Some(node.hostname.clone()),
                what: format!("node {} is down", node.hostname),
                hint: match locked::may_be_locked(observed, &node.id) {
                    Some(_) => format!("{}; or leave it out with `--exclude {}`", locked::HINT, node.hostname),
                    None => format!("bring it back, or leave it out with `--exclude {}`", node.hostname),
                },
            });
        } else if observed.agents.get(&node.id).is_none_or(|agent| agent.silent_secs > super::SILENT_SECS) {
            refusals.push(missing_agent(node));
        }
    }
    let managers: Vec<_> = nodes.iter().filter(|node| node.role == Role::Manager).collect();
    let short = managers.iter().find_map(|node| quorum_without(observed, &node.id, &|_| false).err());
    if let Some((reachable, all)) = short
        && !policy.accept_control_plane_outage
    {
        refusals.push(Refusal {
            node: None,
            what: format!(
                "quorum would be lost: {reachable} of {all} managers are reachable, and while one restarts {} must stay",
                all / 2 + 1
            ),
            hint: "add managers, or accept that the swarm can't be managed while each restarts: \
                   `--accept-control-plane-outage` (tasks keep running)"
                .to_owned(),
        });
    }
    if policy.managers == ManagerPolicy::HoldDrained && !managers.is_empty() {
        refusals.extend(nowhere_to_go(observed, scope));
    }
    refusals
}

fn missing_agent(node: &NodeView) -> Refusal {
    let hint = match node.availability {
        Availability::Active => format!(
            "deploy the agents with `requeen deploy` and see why with `docker service ps requeen-agent`, or leave the \
             node out with `--exclude {}`, or name the others with `--only`",
            node.hostname
        ),
        Availability::Pause | Availability::Drain => format!(
            "swarm starts no task on a node whose availability is {}: type there the `docker run` that `requeen deploy \
             --print` shows, or leave it out with `--exclude {}`",
            node.availability, node.hostname
        ),
    };
    Refusal {
        node: Some(node.hostname.clone()),
        what: format!("no agent has called from node {}", node.hostname),
        hint,
    }
}

/// Under hold-drained every manager is drained at the same time: somebody else must carry the tasks.
fn nowhere_to_go(observed: &Observed, scope: &BTreeSet<NodeId>) -> Option<Refusal> {
    let stays = |node: &NodeView| {
        let held = node.role == Role::Manager && scope.contains(&node.id);
        node.availability == Availability::Active && node.ready && !held
    };
    if observed.nodes.values().any(stays) {
        return None;
    }
    Some(Refusal {
        node: None,
        what:
            "hold-drained keeps every manager drained at the same time, and no other active node could carry the tasks"
                .to_owned(),
        hint: "add a worker, or choose `--policy rolling`".to_owned(),
    })
}

/// Everything that agents reported about the staged target that forbids it: refusals, failures.
pub fn staged(observed: &Observed, scope: &BTreeSet<NodeId>, policy: &Policy) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for id in scope {
        let (Some(node), Some(agent)) = (observed.nodes.get(id), observed.agents.get(id)) else {
            continue;
        };
        let name = &node.hostname;
        match &agent.report.state {
            NodeState::Staged { preflight, .. } if policy.keep_raft_copy && preflight.raft_copy_bytes.is_none() => {
                refusals.push(knows_no_copies(name));
            }
            NodeState::Staged { .. } => {}
            NodeState::Refused { problems, .. } => refusals.extend(problems.iter().map(|problem| Refusal {
                node: Some(name.clone()),
                what: format!("node {name}: {}", problem.what),
                hint: problem.hint.clone(),
            })),
            NodeState::Stuck { reason, hint, .. } => refusals.push(Refusal {
                node: Some(name.clone()),
                what: format!("node {name}: {reason}"),
                hint: hint.clone(),
            }),
            NodeState::Idle
            | NodeState::Staging { .. }
            | NodeState::Leased { .. }
            | NodeState::Linked { .. }
            | NodeState::Swapping { .. }
            | NodeState::Running { .. }
            | NodeState::Upgraded { .. }
            | NodeState::RolledBack { .. }
            | NodeState::Cleaned { .. } => refusals.push(Refusal {
                node: Some(name.clone()),
                what: format!("node {name} has not staged the target in time"),
                hint: format!("give it more time with `--stage-timeout`, or leave it out with `--exclude {name}`"),
            }),
        }
    }
    refusals
}

/// An agent that was asked whether it can keep a copy, and has not understood.
fn knows_no_copies(name: &str) -> Refusal {
    Refusal {
        node: Some(name.to_owned()),
        what: format!("node {name}: its agent is of a version that keeps no copy of the swarm's folder"),
        hint: "replace the agents with `requeen deploy`, or leave `--keep-raft-copy` out".to_owned(),
    }
}

/// Coordinators that some nodes of `scope` don't reach and others do: a firewall is in between. Where no agent reaches a
/// manager no coordinator runs, which is as it should be on most.
pub fn closed_ports(observed: &Observed, scope: &BTreeSet<NodeId>) -> Vec<Refusal> {
    let speaks = |agent: &&AgentView| agent.silent_secs <= super::SILENT_SECS;
    let agents: Vec<(&NodeId, &AgentView)> = observed.agents.iter().filter(|(_, agent)| speaks(agent)).collect();
    let mut refusals = Vec::new();
    for manager in observed.nodes.values().filter(|node| node.role == Role::Manager) {
        let missed = |agent: &AgentView| {
            let report = &agent.report;
            report.unreached.iter().find(|missed| missed.manager == manager.id).cloned()
        };
        let runs = manager.id == observed.me || agents.iter().any(|(_, agent)| missed(agent).is_none());
        if !runs {
            continue;
        }
        for (id, agent) in agents.iter().filter(|(id, _)| scope.contains(*id)) {
            let (Some(node), Some(missed)) = (observed.nodes.get(*id), missed(agent)) else { continue };
            refusals.push(Refusal {
                node: Some(node.hostname.clone()),
                what: format!(
                    "node {} ({}) does not reach the coordinator on {} ({}): {}",
                    node.hostname, node.addr, manager.hostname, missed.at, missed.why
                ),
                hint: format!(
                    "open TCP {} from every node to every manager that runs a coordinator, or stop the one on {}",
                    missed.at, manager.hostname
                ),
            });
        }
    }
    refusals
}

/// The order in which nodes would move: managers first (the leader last, `me` before it), then workers;
/// by host name among equals.
pub fn order(observed: &Observed, scope: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let mut keyed: BTreeMap<_, NodeId> = BTreeMap::new();
    for id in scope {
        let key = match observed.nodes.get(id) {
            Some(node) => {
                let manager = node.role == Role::Manager;
                (node.role, manager && node.leader, manager && *id == observed.me, node.hostname.clone(), id.clone())
            }
            // A node that the swarm no longer lists comes last.
            None => (Role::Worker, true, true, String::new(), id.clone()),
        };
        keyed.insert(key, id.clone());
    }
    keyed.into_values().collect()
}
