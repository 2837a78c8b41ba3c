//! Getting ready: nothing is recorded, let alone drained, before every node in scope has said that it
//! holds the verified target and can install it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use requeen_protocol::{BundleRef, Digest, NodeId, NodeState, Preflight, RolloutId, Target};
use tokio::time::Instant;

use super::failure::{open, refused, refused_by};
use super::{Ops, outdated, standalone, view};
use crate::api::{Failure, FailureKind, PlanView, PolicyChoice, RollbackArgs, Started, UpgradeArgs};
use crate::bundle;
use crate::hub::Hub;
use crate::plan::limit::Limit;
use crate::plan::model::{Entry, Observed, Outcome, Owner, Phase, Policy, Request, Rollout, SCHEMA, Step};
use crate::plan::orders::Staging;
use crate::plan::reasons::Refusal;
use crate::plan::{rebuild, refuse};
use crate::record::{self, Stored, is_open};
use crate::server::store::{self, bundle_path};
use crate::server::words::chain;

/// How long agents that were not heard yet are waited for: they look for a coordinator that has just
/// started with pauses of some seconds.
pub(super) const AGENTS_WITHIN: Duration = Duration::from_secs(12);

/// How long the swarm may take to see an engine that answers locally, seconds: an election takes 10 to
/// 20 s, and a manager's first answers as long again.
const JOIN_TIMEOUT_SECS: u64 = 180;

/// How long an agent may stay stuck in another rollout before that is its answer, seconds: it is told
/// to forget the other one first.
const STUCK_SECS: u64 = 10;

/// What is to be installed, where and how.
struct Wish {
    target: Target,
    /// The version, as far as it is known.
    to: String,
    choice: PolicyChoice,
    workers_at_once: u32,
    manual: bool,
    accept_control_plane_outage: bool,
    allow_downgrade: bool,
    start_timeout_secs: u64,
    stage_timeout: Duration,
    only_outdated: bool,
    not_after: Option<Timestamp>,
    keep_raft_copy: bool,
    /// The nodes left out of a rollout that means all others, those that join later included.
    all_but: Option<BTreeSet<NodeId>>,
}

/// A wish that was staged, or refused.
struct Prepared<'a> {
    id: RolloutId,
    observed: Observed,
    scope: BTreeSet<NodeId>,
    /// Nodes that run the target already and were left out for that.
    left_out: BTreeSet<NodeId>,
    /// The scope's first entries in the record, once all has been staged.
    nodes: BTreeMap<NodeId, Entry>,
    policy: Policy,
    why: String,
    refusals: Vec<Refusal>,
    /// Agents keep what they staged for as long as this lives, or a rollout of the same ID.
    _staging: StagingGuard<'a>,
}

/// Ends the staging when whoever asked for it is gone.
struct StagingGuard<'a>(&'a Hub);

impl Drop for StagingGuard<'_> {
    fn drop(&mut self) {
        self.0.set_staging(None);
    }
}

impl Ops {
    /// What an upgrade would do; changes nothing.
    pub async fn plan(&self, args: UpgradeArgs) -> Result<PlanView, Failure> {
        let _one = self.prepare_alone()?;
        let wish = self.wish(&args).await?;
        let (observed, _) = self.begin().await?;
        let scope = refuse::scope(&observed, &args.only, &args.exclude)?;
        let done = self.prepare(&wish, scope, observed).await?;
        let left_out = view::left_out(&done.observed, &done.left_out);
        let plan = view::plan(&done.observed, &done.scope, &done.id, &wish.to, done.why, done.refusals);
        Ok(PlanView { left_out, ..plan })
    }

    /// Starts a rollout.
    pub async fn start(&self, args: UpgradeArgs, uid: u32) -> Result<Started, Failure> {
        let _one = self.prepare_alone()?;
        let mut wish = self.wish(&args).await?;
        let (observed, earlier) = self.begin().await?;
        let scope = refuse::scope(&observed, &args.only, &args.exclude)?;
        if args.only.is_empty() {
            wish.all_but = Some(observed.nodes.keys().filter(|node| !scope.contains(*node)).cloned().collect());
        }
        self.launch(&wish, scope, observed, &earlier, uid).await
    }

    /// Starts a rollout that takes the last one back.
    pub async fn rollback(&self, args: RollbackArgs, uid: u32) -> Result<Started, Failure> {
        let _one = self.prepare_alone()?;
        let (observed, earlier) = self.begin().await?;
        let last = earlier.iter().rev().map(|stored| &stored.rollout).find(|rollout| !upgraded(rollout).is_empty());
        let Some(last) = last else {
            return Err(refused("no rollout has upgraded a node", "there is nothing to take back"));
        };
        let scope = if args.nodes.is_empty() {
            upgraded(last).into_keys().filter(|node| observed.nodes.contains_key(node)).collect()
        } else {
            refuse::scope(&observed, &args.nodes, &[])?
        };
        let to = upgraded(last).into_values().next().unwrap_or_default();
        let wish = Wish {
            target: Target::Previous { of: last.request.id.clone() },
            to,
            choice: args.policy,
            workers_at_once: args.workers_at_once,
            manual: false,
            accept_control_plane_outage: args.accept_control_plane_outage,
            allow_downgrade: true,
            start_timeout_secs: args.start_timeout_secs,
            stage_timeout: Duration::from_secs(args.stage_timeout_secs),
            only_outdated: false,
            not_after: None,
            keep_raft_copy: false,
            // A node that joins has no previous engine.
            all_but: None,
        };
        self.launch(&wish, scope, observed, &earlier, uid).await
    }

    pub(super) fn prepare_alone(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Failure> {
        self.preparing.try_lock().map_err(|_| {
            refused(
                "another plan, upgrade, verify or undeploy is under way on this manager",
                "wait until it has answered, or end it with Ctrl-C",
            )
        })
    }

    async fn wish(&self, args: &UpgradeArgs) -> Result<Wish, Failure> {
        let now = (self.world.now)();
        if let Some(until) = args.not_after.filter(|until| *until <= now) {
            return Err(refused(format!("`--not-after` is in the past: {until}"), "name a time that is to come"));
        }
        let bundle = self.bundle(&args.bundle).await?;
        Ok(Wish {
            to: bundle.version.clone(),
            target: Target::Bundle(bundle),
            choice: args.policy,
            workers_at_once: args.workers_at_once,
            manual: args.manual,
            accept_control_plane_outage: args.accept_control_plane_outage,
            allow_downgrade: args.allow_downgrade,
            start_timeout_secs: args.start_timeout_secs,
            stage_timeout: Duration::from_secs(args.stage_timeout_secs),
            only_outdated: args.only_outdated,
            not_after: args.not_after,
            keep_raft_copy: args.keep_raft_copy,
            all_but: None,
        })
    }

    /// The stored bundle; read once, since a digest names the same bytes for ever.
    async fn bundle(&self, digest: &Digest) -> Result<BundleRef, Failure> {
        if let Some(known) = self.bundles().get(digest) {
            return Ok(known.clone());
        }
        let path = bundle_path(&self.data_dir.join("bundles"), digest);
        if !path.exists() {
            return Err(refused(
                format!("no bundle {digest} is stored on this manager"),
                "give the file again: `--bundle FILE`",
            ));
        }
        let expected = digest.clone();
        let inspected = tokio::task::spawn_blocking(move || bundle::inspect(&path, Some(&expected)))
            .await
            .map_err(|error| Failure { kind: FailureKind::Failed, error: chain(&error), hint: None })?
            .map_err(|error| refused(chain(&error), error.hint()))?;
        self.bundles().insert(digest.clone(), inspected.bundle.clone());
        Ok(inspected.bundle)
    }

    /// The swarm as it is, and every rollout so far, none of which may be open.
    pub(super) async fn begin(&self) -> Result<(Observed, Vec<Stored>), Failure> {
        let observed = self.observe().await?;
        let docker = self.engine.client().await?;
        let earlier = record::load_all(&docker).await?;
        if let Some(stored) = earlier.iter().find(|stored| is_open(&stored.rollout)) {
            return Err(open(&stored.rollout.request.id, &stored.rollout.phase));
        }
        let known = earlier.iter().map(|stored| stored.rollout.request.id.clone()).collect();
        let mut lost = rebuild::orphans(&observed, &known);
        lost.extend(self.last_open().map(|before| before.request.id).filter(|id| !known.contains(id)));
        match lost.last() {
            Some(lost) => Err(refused(
                format!("rollout {lost} is under way, and its record was removed"),
                "`requeen resume` makes the record again from what the nodes keep; `requeen abort` then ends it",
            )),
            None => Ok((observed, earlier)),
        }
    }

    /// Makes sure that this coordinator, which drives the rollout, can give its bundle to agents: a coordinator that took
    /// over fetches it from this host's agent, or from any other.
    pub(crate) async fn want_bundle(&self, rollout: &Rollout) {
        let Target::Bundle(bundle) = &rollout.request.target else { return self.hub.set_wanted(None) };
        let dir = self.data_dir.join("bundles");
        if bundle_path(&dir, &bundle.digest).exists() {
            return self.hub.set_wanted(None);
        }
        if self.hub.wants(&bundle.digest) {
            return;
        }
        let kept = bundle_path(&self.data_dir.join("agent/bundles"), &bundle.digest);
        match store::adopt(&dir, &kept, &bundle.digest).await {
            Ok(()) => tracing::info!(digest = %bundle.digest, "the rollout's bundle is this host's agent's"),
            Err(error) => {
                tracing::info!(digest = %bundle.digest, why = chain(&error), "asking agents for the rollout's bundle");
                self.hub.set_wanted(Some(bundle.digest.clone()));
            }
        }
    }

    /// Asks every node in scope to stage the target, and waits for their answers.
    async fn prepare(
        &self,
        wish: &Wish,
        scope: BTreeSet<NodeId>,
        mut observed: Observed,
    ) -> Result<Prepared<'_>, Failure> {
        let id = self.fresh_id()?;
        // A node that is down is refused whatever its agent says; nobody waits for it.
        let called = |agents: &BTreeMap<NodeId, _>, node: &NodeId| {
            agents.contains_key(node) || observed.nodes.get(node).is_none_or(|node| !node.ready)
        };
        let within = AGENTS_WITHIN.min(wish.stage_timeout);
        self.until(within, || {
            let agents = self.hub.agents();
            scope.iter().all(|node| called(&agents, node))
        })
        .await;
        observed.agents = self.hub.agents();
        let (scope, left_out) = match &wish.target {
            Target::Bundle(bundle) if wish.only_outdated => outdated::split(&observed, scope, bundle),
            Target::Bundle(_) | Target::Previous { .. } => (scope, BTreeSet::new()),
        };

        let (managers, why) = refuse::choose_policy(wish.choice, &observed, &scope, &wish.to);
        let policy = Policy {
            managers,
            workers_at_once: wish.workers_at_once,
            manual: wish.manual,
            accept_control_plane_outage: wish.accept_control_plane_outage,
            allow_downgrade: wish.allow_downgrade,
            start_timeout_secs: wish.start_timeout_secs,
            join_timeout_secs: JOIN_TIMEOUT_SECS,
            not_after: wish.not_after,
            keep_raft_copy: wish.keep_raft_copy,
        };
        let mut prepared = Prepared {
            id: id.clone(),
            observed,
            scope,
            left_out,
            nodes: BTreeMap::new(),
            policy,
            why,
            refusals: Vec::new(),
            _staging: StagingGuard(&self.hub),
        };
        if prepared.scope.is_empty() {
            return Ok(prepared);
        }
        prepared.refusals = refuse::swarm(&prepared.observed, &prepared.scope, &prepared.policy);
        if !prepared.refusals.is_empty() {
            return Ok(prepared);
        }

        self.hub.set_staging(Some(Staging {
            id: id.clone(),
            target: wish.target.clone(),
            allow_downgrade: wish.allow_downgrade,
            start_timeout_secs: wish.start_timeout_secs,
            keep_raft_copy: wish.keep_raft_copy,
            scope: prepared.scope.clone(),
        }));
        self.until(wish.stage_timeout, || {
            let agents = self.hub.agents();
            prepared
                .scope
                .iter()
                .all(|node| agents.get(node).is_some_and(|agent| answered(&agent.report.state, &id, agent.state_secs)))
        })
        .await;

        // A coordinator may have come up since an agent tried last; it tries again within seconds.
        self.until(AGENTS_WITHIN, || {
            refuse::closed_ports(&Observed { agents: self.hub.agents(), ..prepared.observed.clone() }, &prepared.scope)
                .is_empty()
        })
        .await;

        // Staging took its time: what forbids the rollout now counts, not what did before.
        prepared.observed = self.observe().await?;
        prepared.refusals = refuse::swarm(&prepared.observed, &prepared.scope, &prepared.policy);
        // What a node says of another rollout is no answer to this one.
        for agent in prepared.observed.agents.values_mut() {
            let state = &mut agent.report.state;
            if state.rollout().is_some_and(|other| *other != id) && !matches!(state, NodeState::Stuck { .. }) {
                *state = NodeState::Idle;
            }
        }
        prepared.refusals.extend(refuse::staged(&prepared.observed, &prepared.scope, &prepared.policy));
        prepared.refusals.extend(refuse::closed_ports(&prepared.observed, &prepared.scope));
        let first = |node: &NodeId| Some((node.clone(), first_entry(&prepared.observed, node)?));
        prepared.nodes = prepared.scope.iter().filter_map(first).collect();
        let limit = Limit::new(&prepared.policy, &prepared.nodes);
        prepared.refusals.extend(limit.and_then(|limit| limit.over((self.world.now)())).map(|reason| Refusal {
            node: None,
            what: format!("no node could be done in time: {reason}"),
            hint: "choose a later time with `--not-after`, or leave it out".to_owned(),
        }));
        Ok(prepared)
    }

    /// Waits until `reached` holds, for `limit` at most.
    pub(super) async fn until(&self, limit: Duration, reached: impl Fn() -> bool) {
        let now = Instant::now();
        // What is longer than the clock can tell is for ever; a day is as good.
        let deadline = now.checked_add(limit).unwrap_or(now + Duration::from_secs(24 * 60 * 60));
        let mut changed = self.hub.changed();
        while !reached() && Instant::now() < deadline {
            // How long a state has lasted changes without a report, so look again after a second.
            let look_again = deadline.min(Instant::now() + Duration::from_secs(1));
            let _ = tokio::time::timeout_at(look_again, changed.changed()).await;
        }
    }

    async fn launch(
        &self,
        wish: &Wish,
        scope: BTreeSet<NodeId>,
        observed: Observed,
        earlier: &[Stored],
        uid: u32,
    ) -> Result<Started, Failure> {
        let prepared = self.prepare(wish, scope, observed).await?;
        if let Some(failure) = refused_by(&prepared.refusals) {
            return Err(failure);
        }
        let now = (self.world.now)();
        let nodes = prepared.nodes.clone();
        if nodes.values().all(|entry| matches!(entry.step, Step::Done { .. })) {
            return Ok(Started::NothingToDo);
        }
        // Executors refuse an epoch that is lower than one they have seen, and records can be removed:
        // the seconds since 1970 keep growing without them.
        let before = earlier.iter().map(|stored| stored.rollout.owner.epoch).max().unwrap_or_default();
        let epoch = before.saturating_add(1).max(u64::try_from(now.as_second()).unwrap_or_default());
        let rollout = Rollout {
            request: Request {
                schema: SCHEMA,
                id: prepared.id.clone(),
                target: wish.target.clone(),
                policy: prepared.policy.clone(),
                started_by_uid: uid,
                started_at: now,
                short_services: short_services(&prepared.observed),
                scope_all: wish.all_but.is_some(),
                excluded: wish.all_but.clone().unwrap_or_default(),
            },
            phase: Phase::Running,
            owner: Owner { node: prepared.observed.me.clone(), epoch, renewed: now, elapsed_ms: Some(0) },
            nodes,
            limit_lifted: false,
        };
        let notes = standalone_notes(&prepared.observed, &rollout);
        let docker = self.engine.client().await?;
        let turn = self.turn.lock().await;
        record::create(&docker, &rollout).await?;
        tracing::info!(rollout = %rollout.request.id, uid, to = wish.to, why = prepared.why, "rollout started");
        self.hold(&rollout);
        drop(turn);
        Ok(Started::Rollout { id: rollout.request.id, notes })
    }

    pub(super) fn fresh_id(&self) -> Result<RolloutId, Failure> {
        let random = (self.world.random)().map_err(|error| Failure {
            kind: FailureKind::Failed,
            error: format!("the kernel gives no random bytes: {error}"),
            hint: None,
        })?;
        let day = (self.world.now)().to_string();
        let day: String = day.chars().take_while(|&c| c != 'T').filter(char::is_ascii_digit).collect();
        Ok(RolloutId(format!("{day}-{}", hex::encode(random))))
    }
}

/// Whether a node in this state has said what there is to say about staging `id`.
fn answered(state: &NodeState, id: &RolloutId, state_secs: u64) -> bool {
    match state {
        NodeState::Staged { rollout, .. } | NodeState::Refused { rollout, .. } => rollout == id,
        NodeState::Stuck { rollout, .. } => rollout == id || state_secs > STUCK_SECS,
        NodeState::Idle
        | NodeState::Staging { .. }
        | NodeState::Leased { .. }
        | NodeState::Linked { .. }
        | NodeState::Swapping { .. }
        | NodeState::Running { .. }
        | NodeState::Upgraded { .. }
        | NodeState::RolledBack { .. }
        | NodeState::Cleaned { .. } => false,
    }
}

fn preflight<'a>(observed: &'a Observed, node: &NodeId) -> Option<&'a Preflight> {
    match &observed.agents.get(node)?.report.state {
        NodeState::Staged { preflight, .. } => Some(preflight),
        NodeState::Idle
        | NodeState::Staging { .. }
        | NodeState::Refused { .. }
        | NodeState::Leased { .. }
        | NodeState::Linked { .. }
        | NodeState::Swapping { .. }
        | NodeState::Running { .. }
        | NodeState::Upgraded { .. }
        | NodeState::RolledBack { .. }
        | NodeState::Stuck { .. }
        | NodeState::Cleaned { .. } => None,
    }
}

/// What becomes of containers that are no tasks on the nodes that will move.
fn standalone_notes(observed: &Observed, rollout: &Rollout) -> Vec<String> {
    let moves = rollout.nodes.iter().filter(|(_, entry)| !matches!(entry.step, Step::Done { .. }));
    let notes = |(id, entry): (&NodeId, &Entry)| {
        let notes = preflight(observed, id).map(standalone::notes).unwrap_or_default();
        notes.into_iter().map(|note| format!("{}: {note}", entry.hostname)).collect::<Vec<_>>()
    };
    moves.flat_map(notes).collect()
}

/// A node's entry at the start; one whose files are the target's already is done.
fn first_entry(observed: &Observed, node: &NodeId) -> Option<Entry> {
    let view = observed.nodes.get(node)?;
    let found = preflight(observed, node);
    let step = if found.is_some_and(|found| found.changes.is_empty()) {
        Step::Done { outcome: Outcome::Current }
    } else {
        Step::Waiting { by_hand: false, forced: false }
    };
    Some(Entry {
        hostname: view.hostname.clone(),
        role: view.role,
        from: found.map_or_else(|| view.engine_version.clone(), |found| found.from.clone()),
        joined: false,
        times: vec![(step.name().to_owned(), 0)],
        troubles: Vec::new(),
        step,
    })
}

/// Services that want more than what runs, and those in global mode that an active node lacks: however
/// it comes, it was so before.
fn short_services(observed: &Observed) -> Vec<String> {
    let waiting = observed.tasks.iter().filter(|task| task.wanted && !task.running).map(|task| task.service.as_str());
    let mut short: BTreeSet<&str> = waiting.collect();
    let active: Vec<_> = observed
        .nodes
        .values()
        .filter(|node| node.ready && node.availability == crate::plan::model::Availability::Active)
        .map(|node| &node.id)
        .collect();
    for service in &observed.global_services {
        let on = |node: &&NodeId| {
            let runs = |task: &crate::plan::model::TaskView| {
                task.running && task.service == *service && task.node.as_ref() == Some(*node)
            };
            observed.tasks.iter().any(runs)
        };
        if !active.iter().all(on) {
            short.insert(service);
        }
    }
    short.into_iter().map(str::to_owned).collect()
}

/// The nodes that the rollout upgraded, with the versions that they had before.
fn upgraded(rollout: &Rollout) -> BTreeMap<NodeId, String> {
    let was = |step: &Step| match step {
        Step::Held { outcome, .. } | Step::Restoring { outcome, .. } | Step::Done { outcome } => match outcome {
            Outcome::Upgraded { .. } => true,
            Outcome::Current | Outcome::RolledBack { .. } | Outcome::Untouched | Outcome::Failed { .. } => false,
        },
        Step::Waiting { .. } | Step::Working { .. } => false,
    };
    let nodes = rollout.nodes.iter().filter(|(_, entry)| was(&entry.step));
    nodes.map(|(node, entry)| (node.clone(), entry.from.clone())).collect()
}
