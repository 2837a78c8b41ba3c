//! Whole collections against a fake engine and scripted agents.

use std::io::{Read, Seek};

use flate2::read::GzDecoder;
use futures_util::StreamExt;
use requeen_protocol::{NodeState, Report, Speaker};

use super::*;
use crate::hub::Hub;
use crate::observe::fake::Fake;
use crate::ops::Ops;

struct Lab {
    fake: Fake,
    diag: Arc<Diag>,
}

fn lab(patience: Duration) -> Lab {
    let fake = Fake::start(&["m1"], &["w1", "w2"]);
    let ops = Ops::new(Arc::new(Hub::default()), Arc::new(fake.engine()), fake.dir.path().to_owned());
    let diag = Diag {
        ops: Arc::new(ops),
        log: Arc::default(),
        version: "1.2.3",
        proc_self: fake.dir.path().to_owned(),
        patience,
    };
    Lab { fake, diag: Arc::new(diag) }
}

fn all() -> DiagArgs {
    DiagArgs { nodes: Vec::new(), since_unix: Some(1_700_000_000) }
}

fn report(node: &str) -> Report {
    Report {
        node: node.into(),
        agent_version: "1".to_owned(),
        speaker: Speaker::Task,
        boot_id: "b".to_owned(),
        engine: None,
        installed: None,
        state: NodeState::Idle,
        seen: None,
        memo: None,
        unreached: Vec::new(),
        troubles: Vec::new(),
    }
}

fn tarball() -> Part {
    let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    tar.append_data(&mut header, "report.json", &b"{}"[..]).unwrap();
    let mut file = tar.into_inner().unwrap();
    let bytes = file.stream_position().unwrap();
    file.rewind().unwrap();
    Part { file, bytes }
}

/// An agent's answer, as soon as it is asked.
fn answer(lab: &Lab, node: &str) {
    let all = &lab.diag.ops.hub.collections;
    let asked = all.wanted(&node.into(), "none").unwrap();
    assert_eq!(asked.since_unix, 1_700_000_000);
    all.receive(&asked.id, &node.into()).unwrap().arrived(tarball()).unwrap();
}

/// Everything that is said: the events, and the files of the archive.
async fn heard(mut said: Said) -> (Vec<DiagEvent>, BTreeMap<String, String>) {
    let mut bytes = Vec::new();
    while let Some(chunk) = said.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    let mut events = Vec::new();
    let mut rest = bytes.as_slice();
    while events.last() != Some(&DiagEvent::Archive) {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
        events.push(serde_json::from_slice(&rest[..end]).unwrap());
        rest = &rest[end + 1..];
    }
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(GzDecoder::new(rest)).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), text);
    }
    (events, files)
}

#[tokio::test]
async fn every_node_is_in_the_archive() {
    // Longer than any test waits: it ends because all are there.
    let lab = lab(Duration::from_secs(3600));
    let mut changed = lab.diag.ops.hub.changed();
    let said = lab.diag.begin(all()).await.unwrap();
    changed.changed().await.unwrap();
    for node in ["m1", "w1", "w2"] {
        answer(&lab, node);
    }
    let (events, files) = heard(said).await;
    let DiagEvent::Begun { rollout: None, nodes, .. } = &events[0] else { panic!("{events:?}") };
    assert_eq!(nodes, &["host-m1", "host-w1", "host-w2"]);
    for hostname in nodes {
        let here = DiagEvent::Node { hostname: hostname.clone(), collected: true, why: None };
        assert!(events.contains(&here), "{hostname} in {events:?}");
        assert_eq!(files[&format!("{hostname}/report.json")], "{}");
    }
    for name in ["version.json", "status.json", "agents.json", "records.json", "nodes.json", "log.txt"] {
        assert!(files.contains_key(&format!("coordinator/{name}")), "{name} in {:?}", files.keys());
    }
    assert!(files["MANIFEST.txt"].contains("by requeen 1.2.3 on host-m1"), "{}", files["MANIFEST.txt"]);
    assert!(lab.diag.begin(all()).await.is_ok(), "it is over");
}

#[tokio::test]
async fn nodes_that_do_not_answer_are_named() {
    let lab = lab(Duration::from_millis(300));
    lab.diag.ops.hub.report(report("w2"));
    let said = lab.diag.begin(all()).await.unwrap();
    answer(&lab, "m1");
    let collections = &lab.diag.ops.hub.collections;
    let late = collections.wanted(&"w1".into(), "none").unwrap();
    let (events, files) = heard(said).await;
    assert_eq!(collections.receive(&late.id, &"w1".into()).err(), Some(collection::Unwanted::Closed), "too late");
    let missing: Vec<(&str, &str)> = events
        .iter()
        .filter_map(|event| match event {
            DiagEvent::Node { hostname, collected: false, why: Some(why) } => Some((hostname.as_str(), why.as_str())),
            DiagEvent::Node { .. } | DiagEvent::Begun { .. } | DiagEvent::Archive => None,
        })
        .collect();
    assert_eq!((missing.len(), missing[0].0, missing[1].0), (2, "host-w1", "host-w2"));
    assert!(missing[0].1.contains("was asked") && missing[1].1.contains("last heard"), "{missing:?}");
    for (hostname, why) in missing {
        assert!(files["MANIFEST.txt"].contains(&format!("{hostname}: nothing: {why}\n")), "{}", files["MANIFEST.txt"]);
    }
}

#[tokio::test]
async fn one_at_a_time_and_only_while_somebody_listens() {
    let lab = lab(Duration::from_secs(3600));
    let said = lab.diag.begin(all()).await.unwrap();
    let refused = lab.diag.begin(all()).await.err().unwrap();
    assert_eq!((refused.kind, refused.hint.is_some()), (FailureKind::Refused, true));
    drop(said);
    let collections = Arc::clone(&lab.diag.ops.hub.collections);
    while collections.wanted(&"w1".into(), "none").is_some() {
        tokio::task::yield_now().await;
    }
    assert!(lab.diag.begin(all()).await.is_ok());
}

#[tokio::test]
async fn some_nodes_are_asked_by_name() {
    let lab = lab(Duration::from_secs(3600));
    let args = |name: &str| DiagArgs { nodes: vec![name.to_owned()], ..all() };
    let refused = lab.diag.begin(args("nobody")).await.err().unwrap();
    assert!(refused.kind == FailureKind::Refused && refused.error.contains("nobody"), "{}", refused.error);
    let said = lab.diag.begin(args("host-w1")).await.unwrap();
    assert!(lab.diag.ops.hub.collections.wanted(&"w2".into(), "none").is_none());
    answer(&lab, "w1");
    let (_, files) = heard(said).await;
    assert!(files.contains_key("host-w1/report.json"));
    assert!(!files["MANIFEST.txt"].contains("host-w2"));
}

#[tokio::test]
async fn without_a_leader_those_who_call_are_asked() {
    let lab = lab(Duration::from_secs(3600));
    lab.fake.world().leaderless = true;
    lab.diag.ops.hub.report(report("w1"));
    let said = lab.diag.begin(all()).await.unwrap();
    answer(&lab, "w1");
    let (_, files) = heard(said).await;
    assert!(files.contains_key("w1/report.json"), "by its ID, for nothing else is known: {:?}", files.keys());
    assert!(!files.contains_key("coordinator/nodes.json"));
    assert!(files["MANIFEST.txt"].contains("nodes.json: ") && files["MANIFEST.txt"].contains("leader"));
}

#[test]
fn logs_are_wanted_since_the_last_rollout_or_a_day() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let now = at(1_000_000);
    assert_eq!(since(Some(5), Some(at(7)), now), at(5));
    assert_eq!(since(None, Some(at(7)), now), at(7));
    assert_eq!(since(None, Some(at(999_999)), now), at(1_000_000 - 86_400), "what came before it matters too");
    assert_eq!(since(None, None, now), at(1_000_000 - 86_400));
}
