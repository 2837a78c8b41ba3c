//! A rollout as a swarm config: the request is the data, and the labels are what changes. Pure.

use std::collections::{BTreeMap, HashMap};

use requeen_protocol::{NodeId, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::plan::model::{Entry, Outcome, Phase, Request, Rollout, SCHEMA, Step, Work};

/// Label that holds the phase; a config without it is no record.
pub(crate) const PHASE: &str = "io.requeen.phase";
const OWNER: &str = "io.requeen.owner";
const NODE: &str = "io.requeen.node.";
/// Label that is there once the operator has lifted the time limit.
const LIFTED: &str = "io.requeen.limit-lifted";

/// Name of the step that a grant begins.
const GRANTED: &str = "granted";

/// The most that all labels together may take, bytes. A raft transaction holds 1.5 MB, and the data
/// of the config shares it.
const MAX_LABELS: usize = 900_000;

/// How much of other people's words is kept.
struct Limits {
    reason_chars: usize,
    log_lines: usize,
    line_chars: usize,
    times: usize,
    troubles: usize,
}

const ROOMY: Limits = Limits { reason_chars: 300, log_lines: 10, line_chars: 200, times: 40, troubles: 10 };
const TIGHT: Limits = Limits { reason_chars: 100, log_lines: 0, line_chars: 0, times: 12, troubles: 1 };

/// A record can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A label is missing.
    #[error("label {0} is missing")]
    Missing(String),
    /// Not the JSON that this version writes.
    #[error("{part} does not read as what this version writes: {why}")]
    Invalid {
        /// Which label, or `data`.
        part: String,
        /// What the parser said.
        why: String,
    },
    /// Written by another version.
    #[error("its schema is {0}, and this version knows {SCHEMA}")]
    Schema(u32),
}

/// The data of the config.
pub(super) fn data(request: &Request) -> Vec<u8> {
    json(request).into_bytes()
}

/// The labels of the config, within [`MAX_LABELS`].
pub(super) fn labels(rollout: &Rollout) -> HashMap<String, String> {
    let labels = labels_within(rollout, &ROOMY);
    let size: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size <= MAX_LABELS { labels } else { labels_within(rollout, &TIGHT) }
}

fn labels_within(rollout: &Rollout, limits: &Limits) -> HashMap<String, String> {
    let mut labels = HashMap::from([
        (PHASE.to_owned(), json(&phase_within(&rollout.phase, limits))),
        (OWNER.to_owned(), json(&rollout.owner)),
    ]);
    if rollout.limit_lifted {
        labels.insert(LIFTED.to_owned(), json(&true));
    }
    for (node, entry) in &rollout.nodes {
        labels.insert(format!("{NODE}{node}"), json(&entry_within(entry, limits)));
    }
    labels
}

/// The rollout that `data` and `labels` hold.
pub(super) fn rollout(data: &[u8], labels: &HashMap<String, String>) -> Result<Rollout, Unreadable> {
    let invalid = |why: serde_json::Error| Unreadable::Invalid { part: "data".to_owned(), why: why.to_string() };
    // The schema first: the rest of another one need not read.
    let raw: serde_json::Value = serde_json::from_slice(data).map_err(invalid)?;
    let schema = raw.get("schema").and_then(serde_json::Value::as_u64).unwrap_or_default();
    if schema != u64::from(SCHEMA) {
        return Err(Unreadable::Schema(u32::try_from(schema).unwrap_or(u32::MAX)));
    }
    let mut nodes = BTreeMap::new();
    for key in labels.keys() {
        if let Some(node) = key.strip_prefix(NODE) {
            nodes.insert(NodeId::from(node), label(labels, key)?);
        }
    }
    Ok(Rollout {
        request: serde_json::from_value(raw).map_err(invalid)?,
        phase: phase(labels)?,
        owner: label(labels, OWNER)?,
        nodes,
        limit_lifted: labels.contains_key(LIFTED),
    })
}

/// The phase alone.
pub(super) fn phase(labels: &HashMap<String, String>) -> Result<Phase, Unreadable> {
    label(labels, PHASE)
}

fn label<T: DeserializeOwned>(labels: &HashMap<String, String>, key: &str) -> Result<T, Unreadable> {
    let text = labels.get(key).ok_or_else(|| Unreadable::Missing(key.to_owned()))?;
    serde_json::from_str(text).map_err(|why| Unreadable::Invalid { part: key.to_owned(), why: why.to_string() })
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("the model has string keys only")
}

fn phase_within(phase: &Phase, limits: &Limits) -> Phase {
    match phase {
        Phase::Halted { reason } => Phase::Halted { reason: cut(reason, limits.reason_chars) },
        Phase::Running | Phase::Paused | Phase::Aborting | Phase::Ended { .. } => phase.clone(),
    }
}

fn entry_within(entry: &Entry, limits: &Limits) -> Entry {
    let step = match entry.step.clone() {
        Step::Waiting { by_hand, forced } => Step::Waiting { by_hand, forced },
        Step::Working { lease, before, work: Work::SwitchingBack { reason } } => {
            let work = Work::SwitchingBack { reason: cut(&reason, limits.reason_chars) };
            Step::Working { lease, before, work }
        }
        Step::Working { lease, before, work } => Step::Working { lease, before, work },
        Step::Held { before, outcome } => Step::Held { before, outcome: outcome_within(outcome, limits) },
        Step::Restoring { before, outcome } => Step::Restoring { before, outcome: outcome_within(outcome, limits) },
        Step::Done { outcome } => Step::Done { outcome: outcome_within(outcome, limits) },
    };
    // The planner numbers leases by the grants so far, so those stay.
    let skip = entry.times.len().saturating_sub(limits.times);
    let kept = |&(n, (step, _)): &(usize, &(String, u64))| n >= skip || step == GRANTED;
    let times = entry.times.iter().enumerate().filter(kept).map(|(_, time)| time.clone()).collect();
    let cut = |text: &str| cut(text, limits.reason_chars);
    let troubles = entry.troubles.iter().take(limits.troubles);
    let troubles = troubles.map(|trouble| Problem { what: cut(&trouble.what), hint: cut(&trouble.hint) }).collect();
    Entry { step, times, troubles, ..entry.clone() }
}

fn outcome_within(outcome: Outcome, limits: &Limits) -> Outcome {
    match outcome {
        Outcome::RolledBack { reason, log } => {
            // The last lines are those that say what went wrong.
            let skipped = log.len().saturating_sub(limits.log_lines);
            let log = log[skipped..].iter().map(|line| cut(line, limits.line_chars)).collect();
            Outcome::RolledBack { reason: cut(&reason, limits.reason_chars), log }
        }
        Outcome::Failed { reason, hint } => {
            Outcome::Failed { reason: cut(&reason, limits.reason_chars), hint: cut(&hint, limits.reason_chars) }
        }
        Outcome::Upgraded { .. } | Outcome::Current | Outcome::Untouched => outcome,
    }
}

fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::{Availability, LeaseRecord, ManagerPolicy, Owner, Policy, Role};
    use requeen_protocol::{LeaseId, PermitId, RolloutId, Target};

    fn rollout_of(steps: impl IntoIterator<Item = Step>) -> Rollout {
        let entry = |step| Entry {
            hostname: "worker-with-a-name-as-clouds-give-it-0123456789".to_owned(),
            role: Role::Worker,
            from: "20.10.24+dfsg1".to_owned(),
            joined: true,
            step,
            times: [
                "waiting",
                "granted",
                "draining",
                "emptying",
                "linking",
                "swapping",
                "settling",
                "restoring",
                "upgraded",
            ]
            .iter()
            .map(|name| ((*name).to_owned(), 123_456_789))
            .collect(),
            troubles: Vec::new(),
        };
        Rollout {
            request: Request {
                schema: SCHEMA,
                id: RolloutId::from("20261121-0a1b2c3d"),
                target: Target::Previous { of: RolloutId::from("20261120-aaaaaaaa") },
                policy: Policy {
                    managers: ManagerPolicy::Rolling,
                    workers_at_once: 2,
                    manual: false,
                    accept_control_plane_outage: false,
                    allow_downgrade: true,
                    start_timeout_secs: 60,
                    join_timeout_secs: 180,
                    not_after: Some("2026-11-21T13:00:00Z".parse().unwrap()),
                    keep_raft_copy: true,
                },
                started_by_uid: 0,
                started_at: "2026-11-21T12:00:00Z".parse().unwrap(),
                short_services: vec!["db".to_owned()],
                scope_all: true,
                excluded: [NodeId::from("w9")].into(),
            },
            phase: Phase::Halted { reason: "w1: rolled back".to_owned() },
            owner: Owner {
                node: NodeId::from("m1"),
                epoch: u64::MAX,
                renewed: "2026-11-21T12:00:20.123456Z".parse().unwrap(),
                elapsed_ms: Some(20_123),
            },
            nodes: steps
                .into_iter()
                .enumerate()
                .map(|(n, step)| (NodeId(format!("mcx4qxvdl7igjeoz2nn7q{n:04}")), entry(step)))
                .collect(),
            limit_lifted: true,
        }
    }

    fn every_step() -> Vec<Step> {
        let works = [
            Work::Granted,
            Work::Draining,
            Work::Emptying,
            Work::Linking,
            Work::Permitted { permit: PermitId::from("p"), index: 77 },
            Work::Settling,
            Work::SwitchingBack { reason: "not seen".to_owned() },
            Work::Withdrawing,
        ];
        let outcomes = [
            Outcome::Upgraded { engine_down_ms: 1190 },
            Outcome::Current,
            Outcome::RolledBack { reason: "crash loop".to_owned(), log: vec!["fatal: \"x\"".to_owned()] },
            Outcome::Untouched,
            Outcome::Failed { reason: "neither starts".to_owned(), hint: "look".to_owned() },
        ];
        let lease = LeaseRecord { id: LeaseId::from("l"), epoch: 3, forced: true };
        let mut steps = vec![Step::Waiting { by_hand: true, forced: false }];
        steps.extend(works.map(|work| Step::Working { lease: lease.clone(), before: Availability::Pause, work }));
        for outcome in outcomes {
            steps.push(Step::Held { before: Availability::Active, outcome: outcome.clone() });
            steps.push(Step::Restoring { before: Availability::Drain, outcome: outcome.clone() });
            steps.push(Step::Done { outcome });
        }
        steps
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let written = rollout_of(every_step());
        let read = rollout(&data(&written.request), &labels(&written)).unwrap();
        assert_eq!(read, written);
        for phase in [Phase::Running, Phase::Paused, Phase::Aborting, Phase::Ended { aborted: true }] {
            let written = Rollout { phase, ..written.clone() };
            assert_eq!(rollout(&data(&written.request), &labels(&written)).unwrap().phase, written.phase);
        }
    }

    #[test]
    fn a_record_from_before_the_time_limit_reads() {
        let mut written = rollout_of(every_step());
        written.request.policy.not_after = None;
        written.limit_lifted = false;
        let mut request: serde_json::Value = serde_json::from_slice(&data(&written.request)).unwrap();
        assert_eq!(
            request["policy"].as_object_mut().unwrap().remove("not_after"),
            None,
            "absent where it says nothing"
        );
        let labels = labels(&written);
        assert!(!labels.contains_key(LIFTED));
        assert_eq!(rollout(request.to_string().as_bytes(), &labels).unwrap(), written);
    }

    #[test]
    fn a_record_of_a_version_that_knew_no_copies_reads() {
        let mut written = rollout_of(every_step());
        let mut request: serde_json::Value = serde_json::from_slice(&data(&written.request)).unwrap();
        assert_eq!(request["policy"].as_object_mut().unwrap().remove("keep_raft_copy"), Some(true.into()));
        written.request.policy.keep_raft_copy = false;
        assert_eq!(rollout(request.to_string().as_bytes(), &labels(&written)).unwrap(), written);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&data(&written.request)).unwrap(), request);
    }

    #[test]
    fn a_record_of_a_version_that_did_not_count_reads() {
        let mut written = rollout_of(every_step());
        let mut labels = labels(&written);
        let mut owner: serde_json::Value = label(&labels, OWNER).unwrap();
        assert_eq!(owner.as_object_mut().unwrap().remove("elapsed_ms"), Some(20_123.into()));
        labels.insert(OWNER.to_owned(), owner.to_string());
        written.owner.elapsed_ms = None;
        assert_eq!(rollout(&data(&written.request), &labels).unwrap(), written);
    }

    #[test]
    fn a_record_of_a_version_that_knew_no_joins_reads() {
        let mut written = rollout_of(every_step());
        written.request.scope_all = false;
        written.request.excluded.clear();
        written.nodes.values_mut().for_each(|entry| entry.joined = false);
        let mut older: serde_json::Value = serde_json::from_slice(&data(&written.request)).unwrap();
        let fields = older.as_object_mut().unwrap();
        assert!(fields.remove("scope_all").is_some() && fields.remove("excluded").is_some());
        let labels = labels(&written);
        assert!(labels.values().all(|label| !label.contains("joined")), "left out where it says nothing");
        assert_eq!(rollout(older.to_string().as_bytes(), &labels).unwrap(), written);
    }

    #[test]
    fn words_are_cut_and_the_last_lines_kept() {
        let log = (0..50).map(|n| format!("{n:02}{}", "x".repeat(500))).collect();
        let written = rollout_of([Step::Done { outcome: Outcome::RolledBack { reason: "ä".repeat(999), log } }]);
        let read = rollout(&data(&written.request), &labels(&written)).unwrap();
        let step = read.nodes.into_values().next().unwrap().step;
        let Step::Done { outcome: Outcome::RolledBack { reason, log } } = step else { panic!("{step:?}") };
        assert_eq!(reason.chars().count(), 300);
        assert_eq!((log.len(), log[0].len(), &log[9][..2]), (10, 200, "49"));
    }

    #[test]
    fn no_grant_is_forgotten() {
        let mut written = rollout_of([Step::Done { outcome: Outcome::Untouched }]);
        let entry = written.nodes.values_mut().next().unwrap();
        entry.times = (0..100).map(|n| (if n % 10 == 0 { GRANTED } else { "draining" }.to_owned(), n)).collect();
        let read = rollout(&data(&written.request), &labels(&written)).unwrap();
        let times = &read.nodes.values().next().unwrap().times;
        assert_eq!(times.iter().filter(|(step, _)| step == GRANTED).count(), 10);
        assert!(times.len() < 60, "{}", times.len());
        assert_eq!(times.last().unwrap().1, 99);
    }

    #[test]
    fn five_hundred_nodes_fit_whatever_happened() {
        let worst = Outcome::RolledBack { reason: "r".repeat(1000), log: vec!["\"".repeat(1000); 100] };
        for outcome in [Outcome::Upgraded { engine_down_ms: 1190 }, worst] {
            let written = rollout_of((0..500).map(|_| Step::Done { outcome: outcome.clone() }));
            let labels = labels(&written);
            // Phase, owner and the word on the time limit beside the nodes.
            assert_eq!(labels.len(), 503);
            let size: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
            assert!(size < 1_000_000, "{size}");
        }
    }

    #[test]
    fn what_can_not_be_read_says_why() {
        let written = rollout_of(every_step());
        let good = labels(&written);
        let other = br#"{"schema": 2, "something": "else"}"#;
        assert_eq!(rollout(other, &good), Err(Unreadable::Schema(2)));
        let mut bad = good.clone();
        bad.remove(OWNER);
        assert_eq!(rollout(&data(&written.request), &bad), Err(Unreadable::Missing(OWNER.to_owned())));
        let mut bad = good;
        bad.insert(PHASE.to_owned(), "{\"phase\":\"dancing\"}".to_owned());
        let error = rollout(&data(&written.request), &bad).unwrap_err();
        assert!(matches!(&error, Unreadable::Invalid { part, .. } if part == PHASE), "{error}");
    }

    #[test]
    fn what_was_wrong_beside_the_work_is_kept_and_older_records_have_none() {
        let trouble = Problem { what: "x".repeat(1000), hint: "`docker start db`".to_owned() };
        let mut rollout = rollout_of([Step::Done { outcome: Outcome::Upgraded { engine_down_ms: 1 } }]);
        let (node, entry) = rollout.nodes.iter_mut().next().unwrap();
        entry.troubles = vec![trouble; 20];
        let (key, labels) = (format!("{NODE}{node}"), labels(&rollout));
        let entry: Entry = label(&labels, &key).unwrap();
        assert_eq!((entry.troubles.len(), entry.troubles[0].what.len()), (10, 300));
        assert_eq!(entry.troubles[0].hint, "`docker start db`");
        let older = r#"{"hostname":"w1","role":"worker","from":"1","step":"done","outcome":"upgraded","engine_down_ms":1,"times":[]}"#;
        let older: Entry = serde_json::from_str(older).unwrap();
        assert_eq!(older.troubles, []);
    }
}
