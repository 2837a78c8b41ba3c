//! Which nodes run a bundle's files already, by what their agents report. Pure.
//!
//! The same comparison as an agent's own when it stages: files that a bundle lacks stay as they are and do not count.

use std::collections::BTreeSet;

use requeen_protocol::{BundleRef, EngineFacts, NodeId};

use crate::plan::SILENT_SECS;
use crate::plan::model::Observed;

/// `scope` in two: nodes that are outdated or that nobody can speak for, and nodes that run the bundle.
pub(super) fn split(
    observed: &Observed,
    scope: BTreeSet<NodeId>,
    bundle: &BundleRef,
) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    scope.into_iter().partition(|node| {
        let agent = observed.agents.get(node).filter(|agent| agent.silent_secs <= SILENT_SECS);
        !agent.and_then(|agent| agent.report.engine.as_ref()).is_some_and(|engine| runs(engine, bundle))
    })
}

/// Whether every file of the bundle is on the node, and the engine that runs is of its version: one that was not
/// restarted since its files were replaced is outdated.
fn runs(engine: &EngineFacts, bundle: &BundleRef) -> bool {
    !bundle.files.is_empty()
        && without_package(&engine.version) == without_package(&bundle.version)
        && bundle.files.iter().all(|(file, digest)| engine.files.get(file).is_some_and(|fact| fact.digest == *digest))
}

/// The version without what a package added: `26.1.5` of `26.1.5+dfsg1`. The digests tell builds apart.
fn without_package(version: &str) -> &str {
    version.split(['+', '~']).next().unwrap_or_default().trim_start_matches('v')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use requeen_protocol::{Digest, EngineFile, FileFact, NodeState, Report, Speaker};

    use super::*;
    use crate::plan::model::AgentView;

    fn digest(letter: &str) -> Digest {
        Digest::from_hex(&letter.repeat(64)).unwrap()
    }

    fn bundle() -> BundleRef {
        BundleRef {
            digest: digest("f"),
            size: 1,
            version: "26.1.5".to_owned(),
            arch: "x86_64".to_owned(),
            files: [(EngineFile::Dockerd, digest("a")), (EngineFile::Runc, digest("b"))].into(),
            unpacked: 1,
        }
    }

    fn facts(version: &str, files: &[(EngineFile, &str)]) -> EngineFacts {
        let fact = |letter| FileFact { path: "/usr/bin/x".to_owned(), digest: digest(letter) };
        EngineFacts {
            version: version.to_owned(),
            api_version: "1.45".to_owned(),
            started_us: 1,
            files: files.iter().map(|(file, letter)| (*file, fact(letter))).collect(),
        }
    }

    #[test]
    fn a_node_is_current_by_every_file_and_the_version_that_runs() {
        use EngineFile::{Ctr, Dockerd, Runc};
        for (version, files, current) in [
            ("26.1.5", &[(Dockerd, "a"), (Runc, "b")][..], true),
            ("26.1.5+dfsg1", &[(Dockerd, "a"), (Runc, "b"), (Ctr, "c")], true),
            // One file is another one, or is not there.
            ("26.1.5", &[(Dockerd, "a"), (Runc, "c")], false),
            ("26.1.5", &[(Dockerd, "a")], false),
            ("26.1.5", &[], false),
            // Replaced and not restarted.
            ("26.1.4", &[(Dockerd, "a"), (Runc, "b")], false),
            ("26.1.5-rc.1", &[(Dockerd, "a"), (Runc, "b")], false),
        ] {
            assert_eq!(runs(&facts(version, files), &bundle()), current, "{version} {files:?}");
        }
        let empty = BundleRef { files: BTreeMap::new(), ..bundle() };
        assert!(!runs(&facts("26.1.5", &[]), &empty), "a bundle of nothing proves nothing");
    }

    #[test]
    fn who_can_not_be_asked_stays_in_scope() {
        let whole = facts("26.1.5", &[(EngineFile::Dockerd, "a"), (EngineFile::Runc, "b")]);
        let agent = |node: &str, engine: Option<&EngineFacts>, silent_secs| {
            let report = Report {
                node: node.into(),
                agent_version: "1".to_owned(),
                speaker: Speaker::Task,
                boot_id: "b".to_owned(),
                engine: engine.cloned(),
                installed: None,
                state: NodeState::Idle,
                seen: None,
                memo: None,
                unreached: Vec::new(),
                troubles: Vec::new(),
            };
            (NodeId::from(node), AgentView { report, silent_secs, state_secs: 0 })
        };
        let observed = Observed {
            me: "here".into(),
            has_leader: true,
            nodes: BTreeMap::new(),
            tasks: Vec::new(),
            global_services: Vec::new(),
            agents: [
                agent("current", Some(&whole), 0),
                agent("silent", Some(&whole), SILENT_SECS + 1),
                agent("restarting", None, 0),
            ]
            .into(),
            autolocked: false,
        };
        let scope = ["current", "silent", "restarting", "never-heard"].map(NodeId::from).into();
        let (outdated, left_out) = split(&observed, scope, &bundle());
        assert_eq!(left_out, [NodeId::from("current")].into());
        assert_eq!(outdated, ["never-heard", "restarting", "silent"].map(NodeId::from).into());
    }
}
