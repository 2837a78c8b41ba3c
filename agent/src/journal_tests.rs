use std::collections::BTreeSet;

use requeen_protocol::Digest;

use super::*;
use crate::host::testing::work;

fn host() -> (tempfile::TempDir, HostRoot) {
    let dir = tempfile::tempdir().unwrap();
    let root = HostRoot::new(dir.path());
    (dir, root)
}

fn set() -> SetId {
    SetId(Digest::from_hex(&"a".repeat(64)).unwrap())
}

/// One of each phase.
fn phases() -> Vec<Phase> {
    let (reason, log) = ("silent".to_owned(), vec!["line".to_owned()]);
    vec![
        Phase::Leased,
        Phase::Linking,
        Phase::Linked,
        Phase::Unlinking,
        Phase::Stopping { permit: "p1".into() },
        Phase::Switching,
        Phase::Starting,
        Phase::Verifying,
        Phase::Joining { engine_down_ms: 1_190 },
        Phase::Running { engine_down_ms: 1_190 },
        Phase::SwitchingBack { reason: reason.clone(), log: log.clone() },
        Phase::StartingOld { reason: reason.clone(), log: log.clone() },
        Phase::SettlingNew { engine_down_ms: 1_190 },
        Phase::SettlingOld { reason: reason.clone(), engine_down_ms: 9, log: log.clone() },
        Phase::Upgraded { engine_down_ms: 1_190, set: set() },
        Phase::RolledBack { reason: reason.clone(), engine_down_ms: 9, log: log.clone() },
        Phase::Stuck { reason, hint: "look".to_owned(), log },
    ]
}

#[test]
fn what_is_stored_is_loaded() {
    let (_dir, root) = host();
    assert_eq!(Journal::load(&root).unwrap(), Journal::default());
    for phase in phases() {
        let mut journal = Journal::default();
        let mut begun = work("l1", 3);
        begun.plan = Some(SwapPlan { files: Vec::new(), from: set(), to: set() });
        begun.phase = phase;
        journal.begin(begun).unwrap();
        journal.used_permits.push("p0".into());
        journal.store(&root).unwrap();
        assert_eq!(Journal::load(&root).unwrap(), journal);
    }
}

/// A journal as this version writes it must be read by every later one.
#[test]
fn the_form_on_disk() {
    let text = r#"{
        "schema": 1, "max_epoch": 7, "used_permits": ["p1"],
        "work": {
            "rollout": "r1", "lease": "l1", "epoch": 7, "boot_id": "b", "lease_ends_ms": 5,
            "from_version": "20.10.24", "to_version": "26.1.5", "start_timeout_secs": 90,
            "containerd_restart": false, "plan": null, "stopped_at_ms": 4,
            "phase": {"phase": "stopping", "permit": "p1"}
        }
    }"#;
    let journal = Journal::parse(text.as_bytes()).unwrap();
    assert_eq!(journal.max_epoch, 7);
    assert_eq!(journal.work.unwrap().phase, Phase::Stopping { permit: "p1".into() });
}

#[test]
fn only_work_that_has_to_do_with_a_copy_says_so() {
    let text = |raft_copy| {
        let begun = Work { raft_copy, ..work("l1", 3) };
        let mut journal = Journal::default();
        journal.begin(begun).unwrap();
        let text = serde_json::to_string(&journal).unwrap();
        assert_eq!(Journal::parse(text.as_bytes()).unwrap(), journal);
        text
    };
    assert!(!text(RaftCopy::NotWanted).contains("copy"), "an agent that knows of no copies reads it");
    for (raft_copy, said) in [
        (RaftCopy::Wanted { data_root: "/d".to_owned() }, r#""raft_copy":{"copy":"wanted","data_root":"/d"}"#),
        (RaftCopy::Kept { path: "/c".to_owned() }, r#""raft_copy":{"copy":"kept","path":"/c"}"#),
        (RaftCopy::LeftOut { why: "w".to_owned() }, r#""raft_copy":{"copy":"left-out","why":"w"}"#),
    ] {
        assert!(text(raft_copy).contains(said), "{said}");
    }
}

#[test]
fn damage_is_never_guessed_around() {
    let (_dir, root) = host();
    let path = root.join(JOURNAL_PATH);
    let mut journal = Journal::default();
    journal.begin(work("l1", 3)).unwrap();
    journal.store(&root).unwrap();
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let torn = Journal::load(&root);
        assert!(matches!(torn, Err(JournalError::Damaged(_))), "{len} bytes: {torn:?}");
    }
    fs::write(&path, br#"{"schema":2,"anything":{}}"#).unwrap();
    assert!(matches!(Journal::load(&root), Err(JournalError::Schema { found: 2 })));
    let extra = String::from_utf8(whole).unwrap().replacen('{', "{\"more\":1,", 1);
    fs::write(&path, extra).unwrap();
    assert!(matches!(Journal::load(&root), Err(JournalError::Damaged(_))));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(Journal::load(&root), Err(JournalError::Read(_))));
    assert!(matches!(journal.store(&root), Err(JournalError::Write(_))));
}

#[test]
fn a_torn_write_leaves_the_old_journal() {
    let (_dir, root) = host();
    let journal = Journal::default();
    journal.store(&root).unwrap();
    let temp = root.join(JOURNAL_PATH).with_file_name(".journal.json.new");
    fs::write(&temp, b"{\"schema").unwrap();
    assert_eq!(Journal::load(&root).unwrap(), journal);
    journal.store(&root).unwrap();
    assert!(!temp.exists());
}

#[test]
fn the_whole_way_and_the_ways_back() {
    let all = phases();
    let [
        leased,
        linking,
        linked,
        unlinking,
        stopping,
        switching,
        starting,
        verifying,
        joining,
        running,
        back,
        old,
        settle_new,
        settle_old,
        upgraded,
        rolled_back,
        stuck,
    ] = &all[..]
    else {
        panic!("a phase is missing above");
    };
    let edges = [
        (leased, linking),
        (linking, linked),
        (linking, unlinking),
        (linking, rolled_back),
        (linked, unlinking),
        (linked, stopping),
        (stopping, linked),
        (stopping, switching),
        (stopping, old),
        (switching, starting),
        (switching, back),
        (starting, verifying),
        (starting, back),
        (verifying, joining),
        (verifying, back),
        (joining, running),
        (joining, back),
        (running, settle_new),
        (running, back),
        (back, old),
        (old, settle_old),
        (settle_new, upgraded),
        (settle_old, rolled_back),
    ];
    for from in &all {
        for to in &all {
            let allowed =
                from == to || edges.contains(&(from, to)) || (to == stuck && from != upgraded && from != rolled_back);
            assert_eq!(from.may_become(to), allowed, "{from:?} to {to:?}");
        }
    }
    // Whatever may be down ends in one of the three.
    for start in all.iter().filter(|phase| phase.is_committed()) {
        let mut reached = BTreeSet::new();
        let mut todo = vec![start];
        while let Some(phase) = todo.pop() {
            for (at, next) in all.iter().enumerate() {
                if phase.may_become(next) && reached.insert(at) {
                    todo.push(next);
                }
            }
        }
        assert!(reached.iter().any(|&at| all[at].is_final()), "{start:?}");
    }
}

#[test]
fn a_permit_is_good_once() {
    let mut journal = Journal::default();
    assert!(matches!(journal.advance(Phase::Linking), Err(JournalError::NoWork)));
    journal.begin(work("l1", 1)).unwrap();
    let stop = Phase::Stopping { permit: "p1".into() };
    assert!(matches!(journal.advance(stop.clone()), Err(JournalError::Transition { .. })));
    for phase in [Phase::Linking, Phase::Linked, stop.clone(), stop.clone(), Phase::Linked] {
        journal.advance(phase).unwrap();
    }
    assert!(matches!(journal.advance(stop), Err(JournalError::PermitUsed(_))));
    for n in 0..40 {
        let permit = PermitId(format!("q{n}"));
        journal.advance(Phase::Stopping { permit }).unwrap();
        journal.advance(Phase::Linked).unwrap();
    }
    assert_eq!(journal.used_permits.len(), PERMITS_KEPT);
    assert_eq!(journal.used_permits.last(), Some(&"q39".into()));
}

#[test]
fn epochs_only_grow_and_outlive_rollouts() {
    let mut journal = Journal::default();
    journal.begin(work("l1", 5)).unwrap();
    journal.forget().unwrap();
    assert_eq!((journal.max_epoch, &journal.work), (5, &None));
    let stale = journal.begin(work("l2", 4));
    assert!(matches!(stale, Err(JournalError::StaleEpoch { epoch: 4, seen: 5 })));
    assert_eq!(journal.work, None);
    journal.begin(work("l2", 5)).unwrap();
}

#[test]
fn unfinished_work_is_not_replaced_or_forgotten() {
    let mut journal = Journal::default();
    for phase in phases() {
        let mut begun = work("l1", 1);
        begun.phase = phase.clone();
        journal.work = Some(begun);
        let over = phase.is_final();
        assert_eq!(journal.clone().begin(work("l2", 1)).is_ok(), over, "{phase:?}");
        let nothing_left = over || matches!(phase, Phase::Leased | Phase::Unlinking);
        assert_eq!(journal.clone().forget().is_ok(), nothing_left, "{phase:?}");
    }
}
