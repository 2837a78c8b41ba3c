use requeen_protocol::{Digest, Preflight, Target};

use super::*;
use crate::journal::RaftCopy;
use crate::sets::SetId;
use crate::staged::Wanted;

const NODE: &str = "n";
const BOOT: &str = "boot-1";

fn lease(id: &str, epoch: u64) -> Lease {
    Lease { id: id.into(), rollout: "r1".into(), node: NODE.into(), epoch, ttl_secs: 60 }
}

fn permit(id: &str) -> StopPermit {
    StopPermit { id: id.into(), lease: lease("l1", 5), valid_secs: 20 }
}

fn staged() -> Staged {
    let set = Digest::from_hex(&"a".repeat(64)).unwrap();
    Staged::new(
        Wanted {
            rollout: "r1".into(),
            target: Target::Previous { of: "r0".into() },
            allow_downgrade: false,
            start_timeout_secs: 60,
            keep_raft_copy: false,
        },
        Outcome::Ready {
            preflight: Box::new(Preflight {
                from: "20.10.24".into(),
                to: "26.1.5".into(),
                set: set.clone(),
                changes: vec![],
                standalone: vec![],
                containers: vec![],
                containers_more: 0,
                raft_copy_bytes: None,
                notes: vec![],
            }),
            old: SetId(set.clone()),
            new: SetId(set),
        },
    )
}

/// A journal whose lease l1 of epoch 5 ends at 100 s.
fn journal(phase: Phase) -> Journal {
    let mut journal = Journal::default();
    journal.max_epoch = 5;
    journal.work = Some(Work {
        rollout: "r1".into(),
        lease: "l1".into(),
        epoch: 5,
        boot_id: BOOT.to_owned(),
        lease_ends_ms: 100_000,
        from_version: "20.10.24".into(),
        to_version: "26.1.5".into(),
        start_timeout_secs: 60,
        containerd_restart: false,
        plan: None,
        stopped_at_ms: None,
        raft_copy: RaftCopy::NotWanted,
        phase,
    });
    journal
}

struct Case {
    journal: Journal,
    boot_id: &'static str,
    tasks: Option<u32>,
    being_demoted: bool,
    sent: u64,
    now: u64,
}

impl Case {
    fn at(phase: Phase) -> Self {
        Self { journal: journal(phase), boot_id: BOOT, tasks: Some(0), being_demoted: false, sent: 50_000, now: 51_000 }
    }

    fn decide(&self, order: Order) -> Decision {
        let view = View {
            node: &NODE.into(),
            boot_id: self.boot_id,
            journal: &self.journal,
            staged: Some(&staged()),
            task_containers: self.tasks,
            being_demoted: self.being_demoted,
        };
        let heard = Heard { sent: BootTime(self.sent), order };
        decide(view, &heard, BootTime(self.now))
    }

    fn act(&self, order: Order) -> Act {
        self.decide(order).act
    }

    fn stop(&self) -> Act {
        self.act(Order::Stop { permit: permit("p1") })
    }
}

fn committed() -> Vec<Phase> {
    vec![
        Phase::Stopping { permit: "p1".into() },
        Phase::Switching,
        Phase::Starting,
        Phase::Verifying,
        Phase::Joining { engine_down_ms: 1 },
        Phase::Running { engine_down_ms: 1 },
        Phase::SwitchingBack { reason: String::new(), log: vec![] },
        Phase::StartingOld { reason: String::new(), log: vec![] },
        Phase::SettlingNew { engine_down_ms: 1 },
        Phase::SettlingOld { reason: String::new(), engine_down_ms: 1, log: vec![] },
    ]
}

#[test]
fn a_lease_counts_from_its_request() {
    let mut case = Case::at(Phase::Leased);
    case.journal.work = None;
    let hold = || Order::Hold { lease: lease("l1", 5), memo: String::new() };
    assert_eq!(case.act(hold()), Act::Begin { lease: lease("l1", 5), ends: BootTime(110_000) });
    // It took longer than its time to live to arrive.
    case.now = 110_000;
    assert_eq!(case.act(hold()), Act::Refuse(Refusal::LeaseOver));
}

#[test]
fn every_order_with_the_lease_renews_it_and_none_revives_it() {
    for order in [Order::Hold { lease: lease("l1", 5), memo: String::new() }, Order::Link { lease: lease("l1", 5) }] {
        let mut case = Case::at(Phase::Linked);
        let decision = case.decide(order.clone());
        assert_eq!(decision, Decision { renewed: Some(BootTime(110_000)), act: Act::Nothing });
        // An answer that was long on its way does not shorten what was given meanwhile.
        case.sent = 10_000;
        assert_eq!(case.decide(order.clone()).renewed, Some(BootTime(100_000)));
        case.now = 100_000;
        case.sent = 99_000;
        assert_eq!(case.act(order), Act::Refuse(Refusal::LeaseOver));
    }
}

#[test]
fn a_lease_is_renewed_until_the_engine_is_stopped_and_no_longer() {
    let hold = || Order::Hold { lease: lease("l1", 5), memo: String::new() };
    for phase in committed() {
        let renewed = matches!(phase, Phase::Stopping { .. }).then_some(BootTime(110_000));
        assert_eq!(Case::at(phase).decide(hold()), Decision { renewed, act: Act::Nothing });
    }
}

#[test]
fn a_lease_ends_with_its_time_or_its_boot_but_never_once_the_engine_is_stopped() {
    let over =
        |phase: Phase, boot: &str, now: u64| lease_is_over(journal(phase).work.as_ref().unwrap(), boot, BootTime(now));
    for phase in [Phase::Leased, Phase::Linking, Phase::Linked] {
        assert!(!over(phase.clone(), BOOT, 99_999));
        assert!(over(phase.clone(), BOOT, 100_000));
        assert!(over(phase, "boot-2", 0));
    }
    for phase in committed() {
        assert!(!over(phase, "boot-2", u64::MAX));
    }
}

#[test]
fn a_lower_epoch_is_refused_in_every_order() {
    for phase in [Phase::Leased, Phase::Linked, Phase::Running { engine_down_ms: 1 }] {
        let case = Case::at(phase);
        let old = || lease("l1", 4);
        for order in [
            Order::Hold { lease: old(), memo: String::new() },
            Order::Link { lease: old() },
            Order::Settle { lease: old() },
            Order::SwitchBack { lease: old(), reason: String::new() },
            Order::Withdraw { lease: old() },
            Order::Hold { lease: lease("l2", 4), memo: String::new() },
        ] {
            assert_eq!(case.act(order), Act::Refuse(Refusal::StaleEpoch { epoch: 4, seen: 5 }));
        }
    }
}

#[test]
fn the_engine_is_stopped_on_a_fresh_unused_permit_of_a_linked_node_without_tasks() {
    assert_eq!(Case::at(Phase::Linked).stop(), Act::Stop { permit: "p1".into() });
    let with = |change: &dyn Fn(&mut Case)| {
        let mut case = Case::at(Phase::Linked);
        change(&mut case);
        case.stop()
    };
    let refused = |refusal| Act::Refuse(refusal);
    assert_eq!(with(&|case| case.tasks = Some(1)), refused(Refusal::TasksRun(1)));
    assert_eq!(with(&|case| case.tasks = None), refused(Refusal::TasksUnknown));
    assert_eq!(with(&|case| case.being_demoted = true), refused(Refusal::BeingDemoted));
    assert_eq!(with(&|case| case.journal.used_permits.push("p1".into())), refused(Refusal::PermitUsed));
    assert_eq!(with(&|case| case.now = 70_000), refused(Refusal::PermitStale(20)));
    assert_eq!(with(&|case| case.now = 100_000), refused(Refusal::LeaseOver));
    assert_eq!(with(&|case| case.boot_id = "boot-2"), refused(Refusal::OtherBoot));
    assert_eq!(with(&|case| case.journal.max_epoch = 6), refused(Refusal::StaleEpoch { epoch: 5, seen: 6 }));
    assert_eq!(Case::at(Phase::Leased).stop(), refused(Refusal::Phase("leased")));
}

#[test]
fn no_permit_is_good_for_more_than_thirty_seconds() {
    let mut case = Case::at(Phase::Linked);
    let order = Order::Stop { permit: StopPermit { valid_secs: 3600, ..permit("p1") } };
    case.now = 79_999;
    assert_eq!(case.act(order.clone()), Act::Stop { permit: "p1".into() });
    case.now = 80_000;
    assert_eq!(case.act(order), Act::Refuse(Refusal::PermitStale(30)));
}

#[test]
fn once_committed_nothing_is_stopped_again_withdrawn_or_forgotten() {
    for phase in committed() {
        let mut case = Case::at(phase);
        assert_eq!(case.stop(), Act::Refuse(Refusal::Committed));
        case.journal.used_permits.push("p1".into());
        assert_eq!(case.stop(), Act::Nothing);
        let refused = Act::Refuse(Refusal::Committed);
        assert_eq!(case.act(Order::Withdraw { lease: lease("l1", 5) }), refused);
        // A rollout that ended without this node leaves it the engine that it has proved.
        let proved = matches!(case.journal.work.as_ref().unwrap().phase, Phase::Running { .. });
        let expected = if proved { Act::Settle } else { refused };
        assert_eq!(case.act(Order::Forget { rollout: "r1".into() }), expected);
    }
}

#[test]
fn settling_and_going_back_have_their_moments() {
    let settle = || Order::Settle { lease: lease("l1", 5) };
    let back = || Order::SwitchBack { lease: lease("l1", 5), reason: "x".into() };
    let going_back = Act::SwitchBack { reason: "x".into() };
    let running = Case::at(Phase::Running { engine_down_ms: 1 });
    assert_eq!(running.act(settle()), Act::Settle);
    assert_eq!(running.act(back()), going_back);
    let verifying = Case::at(Phase::Verifying);
    assert_eq!(verifying.act(settle()), Act::Refuse(Refusal::Phase("verifying")));
    assert_eq!(verifying.act(back()), going_back);
    let joining = Case::at(Phase::Joining { engine_down_ms: 1 });
    assert_eq!(joining.act(settle()), Act::Refuse(Refusal::Phase("joining")));
    assert_eq!(joining.act(back()), going_back);
    for phase in [Phase::Leased, Phase::Linked, Phase::Switching, Phase::Starting] {
        let case = Case::at(phase.clone());
        assert_eq!(case.act(settle()), Act::Refuse(Refusal::Phase(name(&phase))));
        assert_eq!(case.act(back()), Act::Refuse(Refusal::Phase(name(&phase))));
    }
}

#[test]
fn links_come_back_before_the_executor_ends() {
    let forget = || Order::Forget { rollout: "r1".into() };
    let withdraw = || Order::Withdraw { lease: lease("l1", 5) };
    for phase in [Phase::Leased, Phase::Linked] {
        let case = Case::at(phase);
        assert_eq!(case.act(forget()), Act::Unlink);
        assert_eq!(case.act(withdraw()), Act::Unlink);
    }
    let mut case = Case::at(Phase::Leased);
    case.journal.work = None;
    assert_eq!(case.act(forget()), Act::End);
    assert_eq!(case.act(withdraw()), Act::Nothing);
    let other = Order::Forget { rollout: "r2".into() };
    assert_eq!(case.act(other), Act::Refuse(Refusal::OtherRollout("r2".into())));
}

#[test]
fn an_executor_makes_way_for_cleaning_when_nothing_is_left_to_do() {
    let clean = || Order::Clean { backups: true };
    for phase in committed().into_iter().filter(|phase| !phase.is_final()) {
        let running = matches!(phase, Phase::Running { .. });
        let expected = if running { Act::Settle } else { Act::Refuse(Refusal::Committed) };
        assert_eq!(Case::at(phase).act(clean()), expected);
    }
    assert_eq!(Case::at(Phase::Linked).act(clean()), Act::Unlink);
    let mut case =
        Case::at(Phase::Upgraded { engine_down_ms: 1, set: SetId(Digest::from_hex(&"a".repeat(64)).unwrap()) });
    assert_eq!(case.act(clean()), Act::End);
    case.journal.work = None;
    assert_eq!(case.act(clean()), Act::End);
}

#[test]
fn a_new_lease_replaces_one_that_did_nothing_and_no_other() {
    let hold = || Order::Hold { lease: lease("l2", 6), memo: String::new() };
    let begin = Act::Begin { lease: lease("l2", 6), ends: BootTime(110_000) };
    assert_eq!(Case::at(Phase::Leased).act(hold()), begin);
    assert_eq!(Case::at(Phase::Linked).act(hold()), Act::Unlink);
    for phase in committed() {
        assert_eq!(Case::at(phase).act(hold()), Act::Refuse(Refusal::OtherLease("l2".into())));
    }
}

#[test]
fn what_is_for_another_node_or_rollout_is_refused() {
    let mut case = Case::at(Phase::Leased);
    case.journal.work = None;
    let stranger = Lease { node: "m".into(), ..lease("l1", 5) };
    assert_eq!(
        case.act(Order::Hold { lease: stranger, memo: String::new() }),
        Act::Refuse(Refusal::OtherNode("m".into()))
    );
    let other = Lease { rollout: "r2".into(), ..lease("l1", 5) };
    assert_eq!(
        case.act(Order::Hold { lease: other, memo: String::new() }),
        Act::Refuse(Refusal::OtherRollout("r2".into()))
    );
}

/// Every order of a coordinator that holds this lease.
fn orders(lease: &Lease) -> Vec<Order> {
    vec![
        Order::Hold { lease: lease.clone(), memo: String::new() },
        Order::Link { lease: lease.clone() },
        Order::Stop { permit: StopPermit { id: "p1".into(), lease: lease.clone(), valid_secs: 20 } },
        Order::Settle { lease: lease.clone() },
        Order::SwitchBack { lease: lease.clone(), reason: String::new() },
        Order::Withdraw { lease: lease.clone() },
    ]
}

fn every_phase() -> Vec<Phase> {
    let set = Digest::from_hex(&"b".repeat(64)).unwrap();
    let mut phases = committed();
    phases.extend([
        Phase::Leased,
        Phase::Linking,
        Phase::Linked,
        Phase::Unlinking,
        Phase::Upgraded { engine_down_ms: 1, set: SetId(set) },
        Phase::RolledBack { reason: String::new(), engine_down_ms: 1, log: vec![] },
        Phase::Stuck { reason: String::new(), hint: String::new(), log: vec![] },
    ]);
    phases
}

#[test]
fn another_nodes_lease_is_refused_in_every_order_at_every_phase() {
    for phase in every_phase() {
        let case = Case::at(phase.clone());
        // The very lease that is held here, and one that is not, made out to somebody else.
        for id in ["l1", "l2"] {
            for order in orders(&Lease { node: "m".into(), ..lease(id, 5) }) {
                let act = case.act(order.clone());
                let refused = matches!(act, Act::Refuse(Refusal::OtherNode(_) | Refusal::OtherLease(_)));
                assert!(refused, "{phase:?} {order:?}: {act:?}");
            }
        }
    }
}

#[test]
fn an_old_epochs_lease_is_refused_in_every_order_at_every_phase() {
    for phase in every_phase() {
        let mut case = Case::at(phase.clone());
        // A coordinator has taken over since the lease was given, and its predecessor does not know.
        case.journal.max_epoch = 6;
        for order in orders(&lease("l1", 5)) {
            let act = case.act(order.clone());
            assert_eq!(act, Act::Refuse(Refusal::StaleEpoch { epoch: 5, seen: 6 }), "{phase:?} {order:?}");
        }
        // One that is not held at all names itself as such, if it is not found out to be old before.
        for order in orders(&lease("l0", 5)) {
            let act = case.act(order.clone());
            let refused = matches!(act, Act::Refuse(Refusal::StaleEpoch { .. } | Refusal::OtherLease(_)));
            assert!(refused, "{phase:?} {order:?}: {act:?}");
        }
    }
}

#[test]
fn a_higher_epoch_goes_on_with_the_lease() {
    let mut case = Case::at(Phase::Linked);
    assert_eq!(case.act(Order::Hold { lease: lease("l1", u64::MAX), memo: String::new() }), Act::Nothing);
    let taken_over = StopPermit { lease: lease("l1", 7), ..permit("p1") };
    assert_eq!(case.act(Order::Stop { permit: taken_over }), Act::Stop { permit: "p1".into() });
    case.journal.work = None;
    assert!(matches!(case.act(Order::Hold { lease: lease("l2", 7), memo: String::new() }), Act::Begin { .. }));
}

#[test]
fn a_lease_of_another_boot_is_good_for_nothing() {
    for phase in [Phase::Leased, Phase::Linking, Phase::Linked] {
        let mut case = Case::at(phase.clone());
        case.boot_id = "boot-2";
        for order in orders(&lease("l1", 5)).into_iter().take(3) {
            assert_eq!(case.act(order.clone()), Act::Refuse(Refusal::OtherBoot), "{phase:?} {order:?}");
        }
        assert_eq!(case.act(Order::Withdraw { lease: lease("l1", 5) }), Act::Unlink, "{phase:?}");
    }
}

#[test]
fn a_permit_is_good_for_its_own_lease_and_once() {
    let refused = |permit: StopPermit, refusal: Refusal| {
        let case = Case::at(Phase::Linked);
        assert_eq!(case.act(Order::Stop { permit }), Act::Refuse(refusal));
    };
    let of = |lease| StopPermit { lease, ..permit("p1") };
    refused(of(lease("l0", 5)), Refusal::OtherLease("l0".into()));
    refused(of(Lease { rollout: "r0".into(), ..lease("l1", 5) }), Refusal::OtherLease("l1".into()));
    refused(of(Lease { node: "m".into(), ..lease("l1", 5) }), Refusal::OtherNode("m".into()));
    refused(of(Lease { ttl_secs: 0, ..lease("l1", 5) }), Refusal::LeaseOver);
    refused(StopPermit { valid_secs: 0, ..permit("p1") }, Refusal::PermitStale(0));

    // Used, and the node is back where it was: rolled back, or linked anew under another lease.
    let mut case = Case::at(Phase::Linked);
    case.journal.used_permits.push("p1".into());
    assert_eq!(case.stop(), Act::Refuse(Refusal::PermitUsed));
    assert_eq!(case.act(Order::Stop { permit: permit("p2") }), Act::Stop { permit: "p2".into() });
    for phase in every_phase().into_iter().filter(|phase| !phase.is_committed() && *phase != Phase::Linked) {
        let mut case = Case::at(phase.clone());
        for permits in [vec![], vec!["p1".into()]] {
            case.journal.used_permits = permits;
            let act = case.stop();
            assert!(matches!(act, Act::Refuse(_)), "{phase:?}: {act:?}");
        }
    }
}

#[test]
fn without_work_only_a_new_lease_begins_any() {
    let mut case = Case::at(Phase::Leased);
    case.journal.work = None;
    for order in orders(&lease("l1", 5)) {
        let act = case.act(order.clone());
        match order {
            Order::Hold { .. } => assert!(matches!(act, Act::Begin { .. }), "{act:?}"),
            Order::Withdraw { .. } => assert_eq!(act, Act::Nothing),
            Order::Link { .. } | Order::Stop { .. } | Order::Settle { .. } | Order::SwitchBack { .. } => {
                assert_eq!(act, Act::Refuse(Refusal::OtherLease("l1".into())), "{order:?}");
            }
            Order::Wait { .. }
            | Order::Standby { .. }
            | Order::Stage { .. }
            | Order::Forget { .. }
            | Order::Clean { .. } => unreachable!("no lease in it"),
        }
    }
    // Times that no clock reaches do not wrap around.
    case.sent = u64::MAX;
    let act = case.act(Order::Hold { lease: Lease { ttl_secs: u64::MAX, ..lease("l1", 5) }, memo: String::new() });
    assert_eq!(act, Act::Begin { lease: Lease { ttl_secs: u64::MAX, ..lease("l1", 5) }, ends: BootTime(u64::MAX) });
}

#[test]
fn an_order_for_another_rollout_touches_nothing() {
    for phase in every_phase() {
        let case = Case::at(phase.clone());
        for order in orders(&Lease { rollout: "r2".into(), ..lease("l9", 5) }) {
            let act = case.act(order.clone());
            // A new lease may take back what one before it has linked; nothing else is done for it.
            let holds = matches!(order, Order::Hold { .. });
            let harmless = matches!(act, Act::Refuse(_)) || (holds && act == Act::Unlink);
            assert!(harmless, "{phase:?} {order:?}: {act:?}");
        }
    }
}
