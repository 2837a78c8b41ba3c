use requeen_protocol::{BundleRef, FileFact, NodeState, RolloutId};

use super::*;
use crate::plan::model::{Entry, ManagerPolicy, Phase, Role};
use crate::plan::simulation::{agent, node, policy, rollout};

fn digest(letter: &str) -> Digest {
    Digest::from_hex(&letter.repeat(64)).unwrap()
}

/// The files of an engine: dockerd and runc by the letters of their digests.
fn files(letters: [&str; 2]) -> BTreeMap<EngineFile, Digest> {
    [EngineFile::Dockerd, EngineFile::Runc].into_iter().zip(letters.map(digest)).collect()
}

fn bundle(version: &str, letters: [&str; 2]) -> Target {
    Target::Bundle(BundleRef {
        digest: digest("0"),
        size: 1,
        version: version.to_owned(),
        arch: "x86_64".to_owned(),
        files: files(letters),
        unpacked: 1,
    })
}

fn installed(version: &str, letters: [&str; 2]) -> Installed {
    Installed { set: digest("5"), version: version.to_owned(), files: files(letters), owners: BTreeMap::new() }
}

/// An ended rollout that left these nodes with these outcomes.
fn ended(id: &str, target: Target, outcomes: &[(&str, Outcome)]) -> Rollout {
    let nodes: Vec<_> = outcomes.iter().map(|(name, _)| node(name, Role::Worker)).collect();
    let mut rollout = rollout(&nodes, policy(ManagerPolicy::Rolling, 1));
    rollout.request.id = RolloutId::from(id);
    rollout.request.target = target;
    rollout.phase = Phase::Ended { aborted: false };
    for (name, outcome) in outcomes {
        let entry: &mut Entry = rollout.nodes.get_mut(&NodeId(format!("id-{name}"))).unwrap();
        entry.step = Step::Done { outcome: outcome.clone() };
    }
    rollout
}

fn upgraded() -> Outcome {
    Outcome::Upgraded { engine_down_ms: 1190 }
}

/// A swarm in which these nodes run these versions of these files, and remember that.
fn swarm(nodes: &[(&str, &str, [&str; 2], Option<Installed>)]) -> Observed {
    let mut observed = Observed {
        me: NodeId::from("id-w1"),
        has_leader: true,
        nodes: BTreeMap::new(),
        tasks: Vec::new(),
        global_services: Vec::new(),
        agents: BTreeMap::new(),
        autolocked: false,
    };
    for (name, version, letters, installed) in nodes {
        let view = node(name, Role::Worker);
        let mut agent = agent(&view, NodeState::Idle);
        let engine = agent.report.engine.as_mut().unwrap();
        engine.version = (*version).to_owned();
        let fact =
            |(file, digest): (EngineFile, Digest)| (file, FileFact { path: format!("/usr/sbin/{file}"), digest });
        engine.files = files(*letters).into_iter().map(fact).collect();
        agent.report.installed = installed.clone();
        observed.agents.insert(view.id.clone(), agent);
        observed.nodes.insert(view.id.clone(), view);
    }
    observed
}

fn judged(observed: &Observed, rollouts: &[&Rollout]) -> BTreeMap<String, Verdict> {
    let view = view(observed, rollouts, &|_| true).unwrap();
    view.nodes.into_iter().map(|node| (node.hostname, node.verdict)).collect()
}

fn only(observed: &Observed, rollouts: &[&Rollout]) -> Verdict {
    judged(observed, rollouts).into_values().next().unwrap()
}

#[test]
fn what_was_installed_and_still_runs_is_ok() {
    let first = ended("r1", bundle("28.5.2", ["a", "b"]), &[("w1", upgraded()), ("w2", Outcome::Current)]);
    let observed = swarm(&[
        ("w1", "28.5.2+dfsg1", ["a", "b"], Some(installed("28.5.2", ["a", "b"]))),
        // It had the files already, so its agent remembers nothing.
        ("w2", "28.5.2", ["a", "b"], None),
    ]);
    let view = view(&observed, &[&first], &|_| true).unwrap();
    assert_eq!(view.newest, Newest { rollout: Some("r1".into()), version: Some("28.5.2".to_owned()) });
    for node in view.nodes {
        assert_eq!((node.verdict, node.rollout), (Verdict::Ok, Some("r1".into())));
    }
}

#[test]
fn changed_and_missing_files_are_named() {
    let first = ended("r1", bundle("28.5.2", ["a", "b"]), &[("w1", upgraded())]);
    let mut memory = installed("28.5.2", ["a", "b"]);
    memory.owners.insert(EngineFile::Runc, "runc".to_owned());
    let mut observed = swarm(&[("w1", "28.5.2", ["a", "c"], Some(memory))]);
    let runc = |path: Option<&str>, found: Option<&str>, owner: Option<&str>| DriftedFile {
        file: EngineFile::Runc,
        path: path.map(str::to_owned),
        installed: digest("b"),
        found: found.map(digest),
        owner: owner.map(str::to_owned),
    };
    let changed = vec![runc(Some("/usr/sbin/runc"), Some("c"), Some("runc"))];
    assert_eq!(only(&observed, &[&first]), Verdict::Drifted { files: changed, restart_pending: false });

    let agent = observed.agents.values_mut().next().unwrap();
    agent.report.engine.as_mut().unwrap().files.remove(&EngineFile::Runc);
    agent.report.installed.as_mut().unwrap().owners.clear();
    let gone = vec![runc(None, None, None)];
    assert_eq!(only(&observed, &[&first]), Verdict::Drifted { files: gone, restart_pending: false });
}

#[test]
fn an_engine_that_was_not_started_again_is_noticed() {
    let first = ended("r1", bundle("28.5.2", ["a", "b"]), &[("w1", upgraded())]);
    // A package brought its dockerd, and the installed one still runs; then the package's was started.
    for (runs, pending) in [("28.5.2", true), ("26.1.5", false)] {
        let observed = swarm(&[("w1", runs, ["c", "b"], Some(installed("28.5.2", ["a", "b"])))]);
        let verdict = only(&observed, &[&first]);
        let Verdict::Drifted { restart_pending, .. } = verdict else { panic!("{verdict:?}") };
        assert_eq!(restart_pending, pending, "{runs}");
    }
    // The files were put back, and the package's engine still runs.
    let observed = swarm(&[("w1", "26.1.5", ["a", "b"], Some(installed("28.5.2", ["a", "b"])))]);
    assert_eq!(only(&observed, &[&first]), Verdict::RestartPending { installed: "28.5.2".to_owned() });
}

#[test]
fn nodes_that_no_rollout_upgraded_are_compared_by_version() {
    let back = Outcome::RolledBack { reason: String::new(), log: vec![] };
    let first = ended("r1", bundle("28.5.2", ["a", "b"]), &[("w1", upgraded()), ("w2", back)]);
    let observed = swarm(&[
        ("w1", "28.5.2", ["a", "b"], None),
        ("w2", "26.1.5", ["c", "d"], None),
        ("w3", "28.5.2", ["c", "d"], None),
        ("w4", "29.0.0", ["c", "d"], None),
        ("w5", "dev", ["c", "d"], None),
    ]);
    let judged = judged(&observed, &[&first]);
    let compared = |name: &str| {
        let Verdict::NotUpgraded { compared } = &judged[name] else { panic!("{name}: {:?}", judged[name]) };
        *compared
    };
    assert_eq!(judged["w1"], Verdict::Ok, "the record knows what the node has forgotten");
    assert_eq!(
        ["w2", "w3", "w4", "w5"].map(compared),
        [Compared::Outdated, Compared::Same, Compared::Newer, Compared::Unknown]
    );
    assert_eq!(judged.values().map(Verdict::is_wrong).collect::<Vec<_>>(), [false, true, false, false, false]);
}

#[test]
fn a_node_that_a_later_rollout_left_out_is_outdated() {
    let first = ended("r1", bundle("26.1.5", ["a", "b"]), &[("w1", upgraded()), ("w2", upgraded())]);
    let second = ended("r2", bundle("28.5.2", ["c", "d"]), &[("w1", upgraded())]);
    let nothing = ended("r3", bundle("29.0.0", ["e", "f"]), &[("w1", Outcome::Untouched)]);
    let observed = swarm(&[
        ("w1", "28.5.2", ["c", "d"], Some(installed("28.5.2", ["c", "d"]))),
        ("w2", "26.1.5", ["a", "b"], Some(installed("26.1.5", ["a", "b"]))),
    ]);
    let judged = judged(&observed, &[&first, &second, &nothing]);
    assert_eq!(judged["w1"], Verdict::Ok);
    assert_eq!(judged["w2"], Verdict::Outdated { newest: "28.5.2".to_owned() });
}

#[test]
fn after_a_rollback_the_nodes_memory_counts() {
    let first = ended("r1", bundle("28.5.2", ["a", "b"]), &[("w1", upgraded())]);
    let back = ended("r2", Target::Previous { of: "r1".into() }, &[("w1", upgraded())]);
    let memory = installed("26.1.5", ["c", "d"]);
    let observed = swarm(&[("w1", "26.1.5", ["c", "d"], Some(memory.clone()))]);
    let seen = view(&observed, &[&first, &back], &|_| true).unwrap();
    assert_eq!(seen.newest, Newest { rollout: Some("r2".into()), version: Some("26.1.5".to_owned()) });
    assert_eq!(seen.nodes[0].verdict, Verdict::Ok);

    let drifted = swarm(&[("w1", "26.1.5", ["a", "b"], Some(memory))]);
    assert!(matches!(only(&drifted, &[&first, &back]), Verdict::Drifted { .. }));
    let forgotten = swarm(&[("w1", "26.1.5", ["c", "d"], None)]);
    assert!(only(&forgotten, &[&first, &back]).is_unknown());
}

#[test]
fn a_disk_that_was_restored_does_not_pass_for_upgraded() {
    let first = ended("r1", bundle("26.1.5", ["a", "b"]), &[("w1", upgraded())]);
    let second = ended("r2", bundle("28.5.2", ["c", "d"]), &[("w1", upgraded())]);
    let observed = swarm(&[("w1", "26.1.5", ["a", "b"], Some(installed("26.1.5", ["a", "b"])))]);
    let verdict = only(&observed, &[&first, &second]);
    let Verdict::Drifted { files, .. } = verdict else { panic!("{verdict:?}") };
    assert_eq!(files.iter().map(|file| &file.installed).collect::<Vec<_>>(), [&digest("c"), &digest("d")]);
}

#[test]
fn without_records_agents_remember_and_without_both_there_is_nothing() {
    let untouched = ended("r1", bundle("28.5.2", ["a", "b"]), &[("w1", Outcome::Untouched)]);
    let fresh = |_: &Report| true;
    let nothing = swarm(&[("w1", "26.1.5", ["c", "d"], None)]);
    assert_eq!(view(&nothing, &[], &fresh), None);
    assert_eq!(view(&nothing, &[&untouched], &fresh), None);
    let observed = swarm(&[
        ("w1", "28.5.2", ["a", "b"], Some(installed("28.5.2", ["a", "b"]))),
        ("w2", "26.1.5", ["c", "d"], None),
    ]);
    let seen = view(&observed, &[], &fresh).unwrap();
    assert_eq!(seen.newest, Newest { rollout: None, version: Some("28.5.2".to_owned()) });
    let judged = judged(&observed, &[]);
    assert_eq!((&judged["w1"], judged["w2"].is_wrong()), (&Verdict::Ok, true));
}

#[test]
fn what_nobody_can_tell_says_why() {
    let first = ended("r1", bundle("28.5.2", ["a", "b"]), &[("w1", upgraded())]);
    let good = || swarm(&[("w1", "28.5.2", ["a", "b"], None)]);
    let id = NodeId::from("id-w1");
    let why = |change: &dyn Fn(&mut Observed), fresh: bool| {
        let mut observed = good();
        change(&mut observed);
        let verdict = view(&observed, &[&first], &|_| fresh).unwrap().nodes.remove(0).verdict;
        let Verdict::Unknown { why, hint } = verdict else { panic!("{verdict:?}") };
        assert!(!hint.is_empty());
        why
    };
    assert!(why(&|seen| seen.agents.clear(), true).contains("no agent has called"));
    assert!(why(&|seen| seen.agents.get_mut(&id).unwrap().silent_secs = 99, false).contains("silent for 99 s"));
    assert!(why(&|_| {}, false).contains("not looked in time"));
    assert!(why(&|seen| seen.nodes.get_mut(&id).unwrap().ready = false, true).contains("down"));
    assert!(why(&|seen| seen.agents.get_mut(&id).unwrap().report.engine = None, true).contains("engine"));
    let no_files =
        |seen: &mut Observed| seen.agents.get_mut(&id).unwrap().report.engine.as_mut().unwrap().files.clear();
    assert!(why(&no_files, true).contains("files"));
}
