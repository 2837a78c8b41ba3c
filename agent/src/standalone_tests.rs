use super::*;

fn container(name: &str, restart: Restart, started: &str) -> Container {
    Container {
        id: format!("id-{name}"),
        name: name.to_owned(),
        restart,
        auto_remove: false,
        timeout_secs: None,
        paused: false,
        started: started.to_owned(),
    }
}

fn names<'a>(containers: impl Iterator<Item = &'a Container>) -> Vec<&'a str> {
    containers.map(|container| container.name.as_str()).collect()
}

#[test]
fn what_comes_back_by_itself_in_time_is_left_to_the_engine() {
    use Fate::{Lost, PausedAgain, StartedAgain, WithEngine};
    let started = "2026-11-22T01:00:00Z";
    let of = |restart, timeout_secs, auto_remove, paused| {
        Container { timeout_secs, auto_remove, paused, ..container("c", restart, started) }.fate()
    };
    let cases = [
        (Restart::Always, None, false, false, WithEngine),
        (Restart::UnlessStopped, Some(60), false, false, WithEngine),
        (Restart::Always, Some(61), false, false, StartedAgain),
        (Restart::Always, Some(-1), false, false, StartedAgain),
        (Restart::OnFailure, None, false, false, StartedAgain),
        (Restart::No, Some(20), false, false, StartedAgain),
        (Restart::No, None, true, false, Lost),
        (Restart::No, None, false, true, PausedAgain),
        (Restart::Always, None, false, true, PausedAgain),
    ];
    for (restart, timeout, auto_remove, paused, fate) in cases {
        assert_eq!(of(restart, timeout, auto_remove, paused), fate, "{restart:?} {timeout:?} {auto_remove} {paused}");
    }
}

#[test]
fn the_newest_is_stopped_first_and_the_oldest_started_first() {
    // As texts `.51Z` would come before `.5Z`.
    let all = vec![
        container("third", Restart::No, "2026-11-22T01:00:00.51Z"),
        container("second", Restart::No, "2026-11-22T01:00:00.5Z"),
        container("engine's", Restart::Always, "2026-11-22T01:00:01Z"),
        container("first", Restart::No, "2026-11-22T01:00:00Z"),
        Container { auto_remove: true, ..container("gone", Restart::No, "2026-11-22T00:00:00.000000001Z") },
    ];
    let record = Record::new("lease".into(), all);
    assert_eq!(names(record.to_stop()), ["third", "second", "first", "gone"]);
    assert_eq!(names(record.to_run()), ["first", "second", "third", "engine's"]);
}

#[test]
fn never_killed_has_no_patience_to_end() {
    let with = |timeout_secs| Container { timeout_secs, ..container("c", Restart::No, "") }.patience_secs();
    assert_eq!((with(None), with(Some(0)), with(Some(90)), with(Some(-1))), (Some(10), Some(0), Some(90), None));
}

#[test]
fn a_record_outlives_the_process_and_what_is_no_record_is_not_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let root = HostRoot::new(dir.path());
    assert_eq!(Record::load(&root).unwrap(), None);
    forget(&root).unwrap();
    let mut record = Record::new("lease".into(), vec![container("db", Restart::No, "2026-11-22T01:00:00Z")]);
    record.store(&root).unwrap();
    assert_eq!(Record::load(&root).unwrap(), Some(record.clone()));
    let failure = Failure { name: "db".to_owned(), why: "can't be started".to_owned(), hint: "look".to_owned() };
    record.state = State::Back { failed: vec![failure] };
    record.store(&root).unwrap();
    assert_eq!(Record::load(&root).unwrap(), Some(record));
    let path = root.join(CONTAINERS_PATH);
    fs::write(&path, r#"{"schema":2,"whatever":1}"#).unwrap();
    assert!(matches!(Record::load(&root), Err(RecordError::Schema { found: 2 })));
    fs::write(&path, r#"{"schema":1,"lease":"l","#).unwrap();
    assert!(matches!(Record::load(&root), Err(RecordError::Damaged(_))));
    forget(&root).unwrap();
    assert!(!path.exists());
}

/// The form of today, as the agents of tomorrow find it.
#[test]
fn a_record_that_was_written_before_reads() {
    let dir = tempfile::tempdir().unwrap();
    let root = HostRoot::new(dir.path());
    let text = r#"{"schema":1,"lease":"r.n.1","containers":[{"id":"c1","name":"db","restart":"unless-stopped",
        "auto_remove":false,"timeout_secs":120,"paused":true,"started":"2026-11-22T01:00:00.5Z"}],"state":{"are":"away"}}"#;
    replace(&root.join(CONTAINERS_PATH), text.as_bytes()).unwrap();
    let record = Record::load(&root).unwrap().unwrap();
    assert_eq!((record.lease.as_str(), &record.state), ("r.n.1", &State::Away));
    assert_eq!(record.containers[0].restart, Restart::UnlessStopped);
}

#[test]
fn the_operator_is_told_what_does_not_run() {
    let mut record = Record::new("l".into(), vec![container("db", Restart::No, "2026-11-22T01:00:00Z")]);
    assert_eq!(record.troubles(true), []);
    let down = record.troubles(false);
    assert!(down[0].what.contains("db") && down[0].hint.contains("`docker start db`"), "{down:?}");
    record.state = State::Back { failed: Vec::new() };
    assert_eq!(record.troubles(false), []);
}

#[test]
fn so_many_are_named_and_no_more() {
    let all = vec![container("c", Restart::No, ""); STANDALONE_NAMED + 3];
    let (named, more) = fates(&all);
    assert_eq!((named.len(), more), (STANDALONE_NAMED, 3));
}
