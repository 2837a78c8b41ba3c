//! Which nodes still have the files that were installed. Pure.
//!
//! What was installed is told twice: the record of a rollout names its bundle's files, and each agent remembers the whole
//! set. Where they differ the record counts, for a node's memory may be as old as the disk that it was restored from.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use requeen_protocol::{Digest, EngineFacts, EngineFile, Installed, NodeId, Report, Target};

use crate::api::{Compared, DriftedFile, Newest, Verdict, VerifiedNode, VerifyView};
use crate::plan::SILENT_SECS;
use crate::plan::model::{AgentView, NodeView, Observed, Outcome, Rollout, Step};
use crate::plan::reasons::WaitingFor;
use crate::plan::refuse::{self, version_numbers};

/// What to do about an agent that does not answer.
const AGENT_HINT: &str = "`docker service ps requeen-agent` shows why; on a drained or paused node type the `docker run` \
                          that `requeen deploy --print` shows";

/// Judges every node by `rollouts`, oldest first, and by what its agent found. `fresh` says whether a report was made for
/// this question. None: nothing has ever been installed.
pub(super) fn view(observed: &Observed, rollouts: &[&Rollout], fresh: &dyn Fn(&Report) -> bool) -> Option<VerifyView> {
    let newest = newest(observed, rollouts)?;
    let everyone = observed.nodes.keys().cloned().collect();
    let nodes = refuse::order(observed, &everyone).into_iter().filter_map(|id| {
        let node = observed.nodes.get(&id)?;
        let last = rollouts.iter().rev().find(|rollout| installed_on(rollout, &id)).copied();
        let agent = observed.agents.get(&id);
        let runs = agent.and_then(|agent| agent.report.engine.as_ref()).map(|engine| &engine.version);
        Some(VerifiedNode {
            id: id.to_string(),
            hostname: node.hostname.clone(),
            role: node.role,
            leader: node.leader,
            engine: runs.unwrap_or(&node.engine_version).clone(),
            rollout: last.map(|rollout| rollout.request.id.clone()),
            verdict: match answer(node, agent, fresh) {
                Ok((report, engine)) => verdict(report.installed.as_ref(), engine, last, &newest),
                Err(unknown) => unknown,
            },
        })
    });
    Some(VerifyView { nodes: nodes.collect(), newest })
}

/// Whether the rollout left the node with its target's files.
fn installed_on(rollout: &Rollout, node: &NodeId) -> bool {
    rollout.nodes.get(node).is_some_and(|entry| match &entry.step {
        Step::Held { outcome, .. } | Step::Restoring { outcome, .. } | Step::Done { outcome } => match outcome {
            Outcome::Upgraded { .. } | Outcome::Current => true,
            Outcome::RolledBack { .. } | Outcome::Untouched | Outcome::Failed { .. } => false,
        },
        Step::Waiting { .. } | Step::Working { .. } => false,
    })
}

/// What the last rollout that installed anything installed.
fn newest(observed: &Observed, rollouts: &[&Rollout]) -> Option<Newest> {
    let installed = |rollout: &Rollout| rollout.nodes.keys().any(|node| installed_on(rollout, node));
    match rollouts.iter().rev().find(|rollout| installed(rollout)) {
        Some(rollout) => Some(Newest {
            rollout: Some(rollout.request.id.clone()),
            version: match &rollout.request.target {
                Target::Bundle(bundle) => Some(bundle.version.clone()),
                Target::Previous { .. } => remembered(observed, |node| installed_on(rollout, node)),
            },
        }),
        None => remembered(observed, |_| true).map(|version| Newest { rollout: None, version: Some(version) }),
    }
}

/// The highest version that the agents of these nodes remember to have installed.
fn remembered(observed: &Observed, of: impl Fn(&NodeId) -> bool) -> Option<String> {
    let agents = observed.agents.iter().filter(|(node, _)| of(node));
    let installed = agents.filter_map(|(_, agent)| agent.report.installed.as_ref());
    installed.map(|installed| installed.version.clone()).max_by_key(|version| version_numbers(version))
}

/// What the node's agent says of its engine now, or why that is not known.
fn answer<'a>(
    node: &NodeView,
    agent: Option<&'a AgentView>,
    fresh: &dyn Fn(&Report) -> bool,
) -> Result<(&'a Report, &'a EngineFacts), Verdict> {
    let unknown = |why: &str, hint: &str| Verdict::Unknown { why: why.to_owned(), hint: hint.to_owned() };
    if !node.ready {
        return Err(unknown("the node is down", "bring it back"));
    }
    let Some(agent) = agent else {
        return Err(unknown(&WaitingFor::Agent.to_string(), AGENT_HINT));
    };
    if !fresh(&agent.report) {
        let silent = WaitingFor::SilentAgent { secs: agent.silent_secs }.to_string();
        let why = if agent.silent_secs > SILENT_SECS { silent } else { "its agent has not looked in time".to_owned() };
        return Err(unknown(&why, AGENT_HINT));
    }
    match &agent.report.engine {
        None => Err(unknown("its engine does not answer", "`systemctl status docker` on the node")),
        Some(engine) if engine.files.is_empty() => {
            Err(unknown("its engine's files can't be found", "is docker.service still there? `systemctl cat docker`"))
        }
        Some(engine) => Ok((&agent.report, engine)),
    }
}

/// What should be on the node.
fn expected(installed: Option<&Installed>, last: Option<&Rollout>) -> Option<(BTreeMap<EngineFile, Digest>, String)> {
    let bundle = last.and_then(|rollout| match &rollout.request.target {
        Target::Bundle(bundle) => Some(bundle),
        Target::Previous { .. } => None,
    });
    let version = bundle.map(|bundle| &bundle.version).or(installed.map(|installed| &installed.version))?;
    let mut files = installed.map(|installed| installed.files.clone()).unwrap_or_default();
    files.extend(bundle.into_iter().flat_map(|bundle| bundle.files.clone()));
    Some((files, version.clone()))
}

fn verdict(installed: Option<&Installed>, engine: &EngineFacts, last: Option<&Rollout>, newest: &Newest) -> Verdict {
    let compared = compared(&engine.version, newest.version.as_deref());
    let Some((files, version)) = expected(installed, last) else {
        return match last {
            None => Verdict::NotUpgraded { compared },
            Some(_) => Verdict::Unknown {
                why: "a rollback put its files there, and the node does not remember which".to_owned(),
                hint: "roll a bundle out again".to_owned(),
            },
        };
    };
    let runs_installed = same(&engine.version, &version);
    let drifted: Vec<DriftedFile> = files
        .into_iter()
        .filter_map(|(file, digest)| {
            let found = engine.files.get(&file);
            (found.map(|fact| &fact.digest) != Some(&digest)).then(|| DriftedFile {
                file,
                path: found.map(|fact| fact.path.clone()),
                installed: digest,
                found: found.map(|fact| fact.digest.clone()),
                owner: installed.and_then(|installed| installed.owners.get(&file).cloned()),
            })
        })
        .collect();
    if !drifted.is_empty() {
        let dockerd = drifted.iter().any(|drifted| drifted.file == EngineFile::Dockerd);
        return Verdict::Drifted { files: drifted, restart_pending: dockerd && runs_installed };
    }
    if !runs_installed {
        return Verdict::RestartPending { installed: version };
    }
    match (compared, &newest.version) {
        (Compared::Outdated, Some(newest)) => Verdict::Outdated { newest: newest.clone() },
        (Compared::Outdated | Compared::Same | Compared::Newer | Compared::Unknown, _) => Verdict::Ok,
    }
}

/// Whether two versions may be the same one: what a package adds to their numbers is not compared, since the files'
/// digests are.
fn same(one: &str, other: &str) -> bool {
    matches!(compared(one, Some(other)), Compared::Same | Compared::Unknown)
}

fn compared(version: &str, newest: Option<&str>) -> Compared {
    let (version, newest) = (version_numbers(version), version_numbers(newest.unwrap_or_default()));
    if version.is_empty() || newest.is_empty() {
        return Compared::Unknown;
    }
    match version.cmp(&newest) {
        Ordering::Less => Compared::Outdated,
        Ordering::Equal => Compared::Same,
        Ordering::Greater => Compared::Newer,
    }
}

#[cfg(test)]
#[path = "drift_tests.rs"]
mod tests;
