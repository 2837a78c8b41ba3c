//! Records in a fake engine that keeps swarmkit's rules.

use std::collections::BTreeMap;

use requeen_protocol::{NodeId, Target};

use super::*;
use crate::observe::docker;
use crate::observe::fake::{Fake, NO_LEADER};
use crate::plan::model::{ManagerPolicy, Owner, Policy, Request, SCHEMA};

fn rollout(id: &str, second: i64, phase: Phase) -> Rollout {
    let at = jiff::Timestamp::from_second(1_700_000_000 + second).unwrap();
    Rollout {
        request: Request {
            schema: SCHEMA,
            id: RolloutId::from(id),
            target: Target::Previous { of: RolloutId::from("before") },
            policy: Policy {
                managers: ManagerPolicy::Rolling,
                workers_at_once: 1,
                manual: false,
                accept_control_plane_outage: false,
                allow_downgrade: false,
                start_timeout_secs: 60,
                join_timeout_secs: 180,
                not_after: None,
                keep_raft_copy: false,
            },
            started_by_uid: 0,
            started_at: at,
            short_services: Vec::new(),
            scope_all: true,
            excluded: Default::default(),
        },
        phase,
        owner: Owner { node: NodeId::from("m1"), epoch: 1, renewed: at, elapsed_ms: None },
        nodes: BTreeMap::new(),
        limit_lifted: false,
    }
}

fn set(phase: Phase) -> impl FnMut(&mut Rollout) -> Result<(), RecordError> {
    move |rollout| {
        rollout.phase = phase.clone();
        Ok(())
    }
}

#[tokio::test]
async fn one_rollout_is_open_at_a_time() {
    let fake = Fake::start(&["m1"], &[]);
    let docker = docker(&fake.socket()).await.unwrap();
    fake.world().configs.insert(
        "requeen-of-bees".to_owned(),
        serde_json::json!({"ID": "x", "Version": {"Index": 1}, "Spec": {"Name": "requeen-of-bees", "Data": "aGk="}}),
    );
    assert!(load_last(&docker).await.unwrap().is_none(), "other people's configs are no records");

    create(&docker, &rollout("r1", 1, Phase::Running)).await.unwrap();
    assert_eq!(load_last(&docker).await.unwrap().unwrap().rollout, rollout("r1", 1, Phase::Running));
    let error = create(&docker, &rollout("r2", 2, Phase::Running)).await.unwrap_err();
    assert!(matches!(&error, RecordError::Open { id, .. } if id.as_str() == "r1"), "{error}");

    update(&docker, set(Phase::Ended { aborted: false })).await.unwrap();
    assert!(matches!(update(&docker, set(Phase::Paused)).await, Err(RecordError::NoneOpen)));
    create(&docker, &rollout("r2", 2, Phase::Running)).await.unwrap();
    assert_eq!(load_last(&docker).await.unwrap().unwrap().rollout.request.id.as_str(), "r2");
}

#[tokio::test]
async fn of_two_that_start_at_once_one_yields() {
    let fake = Fake::start(&["m1"], &[]);
    let docker = docker(&fake.socket()).await.unwrap();
    let (one, two) = (rollout("r1", 1, Phase::Running), rollout("r2", 1, Phase::Running));
    let (one, two) = tokio::join!(create(&docker, &one), create(&docker, &two));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    assert_eq!(load_all(&docker).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_write_comes_through_rivals_and_elections() {
    let fake = Fake::start(&["m1"], &[]);
    let docker = docker(&fake.socket()).await.unwrap();
    fake.world().failing = vec![(503, NO_LEADER.to_owned()); 2];
    create(&docker, &rollout("r1", 1, Phase::Running)).await.unwrap();

    let stale = load_last(&docker).await.unwrap().unwrap();
    fake.world().rivals = 3;
    fake.world().failing = vec![(503, NO_LEADER.to_owned()); 2];
    let ((), written) = update(&docker, set(Phase::Paused)).await.unwrap();
    assert_eq!(written.phase, Phase::Paused);
    let error = write(&docker, &stale, &stale.rollout).await.unwrap_err();
    assert_eq!(error.trouble(), Some(Trouble::OutOfSequence));
    assert_eq!(load_last(&docker).await.unwrap().unwrap().rollout.phase, Phase::Paused);
}

#[tokio::test]
async fn a_refused_change_writes_nothing() {
    let fake = Fake::start(&["m1"], &[]);
    let docker = docker(&fake.socket()).await.unwrap();
    create(&docker, &rollout("r1", 1, Phase::Running)).await.unwrap();
    let before = fake.world().configs["requeen-r1"].clone();
    let refused: Result<((), Rollout), RecordError> = update(&docker, |rollout| {
        rollout.phase = Phase::Paused;
        Err(RecordError::NoneOpen)
    })
    .await;
    assert!(refused.is_err());
    update(&docker, set(Phase::Running)).await.unwrap();
    assert_eq!(fake.world().configs["requeen-r1"], before, "nor does a change that changes nothing");
}

#[tokio::test]
async fn the_last_ten_are_kept() {
    let fake = Fake::start(&["m1"], &[]);
    let docker = docker(&fake.socket()).await.unwrap();
    for n in 0..13 {
        create(&docker, &rollout(&format!("r{n:02}"), n, Phase::Ended { aborted: false })).await.unwrap();
    }
    create(&docker, &rollout("r99", 99, Phase::Running)).await.unwrap();
    let all = load_all(&docker).await.unwrap();
    let kept: Vec<_> = all.iter().map(|stored| stored.rollout.request.id.as_str()).collect();
    assert_eq!(kept, ["r03", "r04", "r05", "r06", "r07", "r08", "r09", "r10", "r11", "r12", "r99"]);
}

#[tokio::test]
async fn a_record_that_does_not_read_is_no_reason_to_go_on() {
    let fake = Fake::start(&["m1"], &[]);
    let docker = docker(&fake.socket()).await.unwrap();
    create(&docker, &rollout("r1", 1, Phase::Running)).await.unwrap();
    fake.world().configs.get_mut("requeen-r1").unwrap()["Spec"]["Data"] = BASE64.encode(r#"{"schema":7}"#).into();
    let error = create(&docker, &rollout("r2", 2, Phase::Running)).await.unwrap_err();
    assert!(matches!(&error, RecordError::Unreadable { name, .. } if name == "requeen-r1"), "{error}");
    let (read, unread) = load_each(&docker).await.unwrap();
    assert!(read.is_empty() && unread[0].id() == "r1" && !unread[0].ended, "{unread:?}");
    assert_eq!(unread[0].why, Unreadable::Schema(7));
    let labels = &mut fake.world().configs.get_mut("requeen-r1").unwrap()["Spec"]["Labels"].clone();
    labels[labels::PHASE] = r#"{"phase":"ended","aborted":false}"#.into();
    fake.world().configs.get_mut("requeen-r1").unwrap()["Spec"]["Labels"] = labels.clone();
    create(&docker, &rollout("r2", 2, Phase::Running)).await.unwrap();
    assert!(load_each(&docker).await.unwrap().1[0].ended);
}

#[tokio::test]
async fn the_last_one_is_told_by_its_epoch_and_not_by_the_time_of_day() {
    let fake = Fake::start(&["m1"], &[]);
    let docker = docker(&fake.socket()).await.unwrap();
    let ended = |id, second, epoch| {
        let mut rollout = rollout(id, second, Phase::Ended { aborted: false });
        rollout.owner.epoch = epoch;
        rollout
    };
    create(&docker, &ended("r1", 3600, 1)).await.unwrap();
    // The manager's clock was set back in between.
    create(&docker, &ended("r0", 60, 2)).await.unwrap();
    assert_eq!(load_last(&docker).await.unwrap().unwrap().rollout.request.id.as_str(), "r0");
}
