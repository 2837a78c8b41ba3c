//! The meeting place of agents, driver and operator: what agents said last, and what the driver holds
//! for them. In memory only; all of it is rebuilt from the next reports and the record after a restart.
//! No policy: which order a node gets is [`crate::plan::orders`]' choice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use requeen_protocol::{Collect, Digest, NodeId, NodeState, Order, Report, RolloutId, Speaker};
use tokio::sync::watch;

use crate::clocks::Clocks;
use crate::diag::collection::{Collections, OpenCollection};
use crate::plan::errand::{self, Errand};
use crate::plan::model::{AgentView, Rollout};
use crate::plan::orders::{Knows, Staging, order_for};

/// Where a hub reads the time.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// See the module.
pub struct Hub {
    clock: Clock,
    held: Mutex<Held>,
    /// Counts changes, so that a subscriber that was busy misses none.
    changed: watch::Sender<u64>,
    /// What is collected for a bug report, beside all that concerns rollouts.
    pub(crate) collections: Arc<Collections>,
    /// What agents say of the time of day.
    pub(crate) clocks: Clocks,
}

#[derive(Default)]
struct Held {
    agents: BTreeMap<NodeId, Agent>,
    rollout: Option<Driven>,
    /// Rollouts on record that have ended.
    ended: BTreeSet<RolloutId>,
    staging: Option<Staging>,
    /// Whatever was prepared here.
    prepared: BTreeSet<RolloutId>,
    errand: Option<Errand>,
    /// False until somebody has seen one: while there is no leader nothing that is read is news.
    has_leader: bool,
    /// When that was seen.
    leader_seen: Option<Instant>,
    /// The bundle that this coordinator lacks.
    wanted: Option<Wanted>,
}

/// The open rollout, and who drives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Driven {
    /// The rollout as recorded.
    pub rollout: Rollout,
    /// Whether this coordinator drives it.
    pub here: bool,
    /// Host name of the node whose coordinator does.
    pub owner: String,
}

/// A bundle that some agent keeps and this coordinator has to have.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    digest: Digest,
    /// When an agent was asked for it last.
    asked: Option<Instant>,
}

/// How old the word that there is a leader may be. A coordinator that is cut off keeps silent long before another one
/// takes its rollout over.
const LEADER_FOR: Duration = Duration::from_secs(30);

/// How long an agent that was asked for a bundle has before another one is asked.
const ASK_AGAIN: Duration = Duration::from_secs(15);

struct Agent {
    report: Report,
    heard: Instant,
    state_since: Instant,
    /// Requests of this agent that the server holds open now.
    task_polls: u32,
    executor_polls: u32,
}

impl Agent {
    fn polls(&mut self, speaker: Speaker) -> &mut u32 {
        match speaker {
            Speaker::Task => &mut self.task_polls,
            Speaker::Executor => &mut self.executor_polls,
        }
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new(Arc::new(Instant::now))
    }
}

impl Hub {
    /// An empty hub.
    pub fn new(clock: Clock) -> Self {
        let (changed, collections, clocks) = (watch::Sender::new(0), Arc::default(), Clocks::default());
        Self { clock, held: Mutex::default(), changed, collections, clocks }
    }

    /// This moment, by the clock that nobody sets.
    pub(crate) fn now(&self) -> Instant {
        (self.clock)()
    }

    /// Stores an agent's word. A task's word does not replace that of an executor that is connected:
    /// the executor knows more, and both may speak for a moment when one starts the other.
    pub fn report(&self, report: Report) {
        let now = (self.clock)();
        let mut held = self.held();
        let news = match held.agents.get_mut(&report.node) {
            None => {
                let node = report.node.clone();
                let agent = Agent { report, heard: now, state_since: now, task_polls: 0, executor_polls: 0 };
                held.agents.insert(node, agent);
                true
            }
            Some(agent) => {
                agent.heard = now;
                let outranked = report.speaker == Speaker::Task
                    && agent.report.speaker == Speaker::Executor
                    && agent.executor_polls > 0;
                if outranked {
                    false
                } else {
                    if !same_variant(&agent.report.state, &report.state) {
                        agent.state_since = now;
                    }
                    let news = says_more(&agent.report, &report);
                    agent.report = report;
                    news
                }
            }
        };
        drop(held);
        if news {
            self.bump();
        }
    }

    /// Marks the agent of `report` as connected for as long as the answer lives.
    pub fn connected(self: &Arc<Self>, report: &Report) -> Connected {
        if let Some(agent) = self.held().agents.get_mut(&report.node) {
            *agent.polls(report.speaker) += 1;
        }
        Connected { hub: Arc::clone(self), node: report.node.clone(), speaker: report.speaker }
    }

    /// Every agent's last word.
    pub fn agents(&self) -> BTreeMap<NodeId, AgentView> {
        let now = (self.clock)();
        let secs = |since: Instant| now.saturating_duration_since(since).as_secs();
        let view = |agent: &Agent| AgentView {
            report: agent.report.clone(),
            silent_secs: if agent.task_polls + agent.executor_polls > 0 { 0 } else { secs(agent.heard) },
            state_secs: secs(agent.state_since),
        };
        self.held().agents.iter().map(|(node, agent)| (node.clone(), view(agent))).collect()
    }

    /// Drops what an agent said: its node has left the swarm.
    pub fn forget_node(&self, node: &NodeId) {
        let known = self.held().agents.remove(node).is_some();
        if known {
            self.bump();
        }
    }

    /// Drops what all agents said until now: each has to speak again.
    pub fn forget_reports(&self) {
        self.held().agents.clear();
        self.bump();
    }

    /// Holds the open rollout as recorded, for orders.
    pub fn set_rollout(&self, rollout: Option<Driven>) {
        self.set(|held| &mut held.rollout, rollout);
    }

    /// The open rollout as last set.
    pub fn rollout(&self) -> Option<Rollout> {
        self.held().rollout.as_ref().map(|driven| driven.rollout.clone())
    }

    /// Holds which rollouts on record have ended: agents put away what they hold of them.
    pub fn set_ended(&self, ended: BTreeSet<RolloutId>) {
        self.set(|held| &mut held.ended, ended);
    }

    /// Holds what agents have to stage before a rollout is recorded.
    pub fn set_staging(&self, staging: Option<Staging>) {
        if let Some(staging) = &staging {
            self.held().prepared.insert(staging.id.clone());
        }
        self.set(|held| &mut held.staging, staging);
    }

    /// The staging as last set.
    pub fn staging(&self) -> Option<Staging> {
        self.held().staging.clone()
    }

    /// Holds what every agent is asked while nothing is rolled out. What agents have said before is no answer to it.
    pub fn set_errand(&self, errand: Option<Errand>) {
        for agent in self.held().agents.values_mut() {
            agent.report.seen = None;
        }
        self.set(|held| &mut held.errand, errand);
    }

    /// Holds whether the managers have a leader.
    pub fn set_has_leader(&self, has_leader: bool) {
        if has_leader {
            self.held().leader_seen = Some((self.clock)());
        }
        self.set(|held| &mut held.has_leader, has_leader);
    }

    /// Whether the managers had a leader when last looked at.
    pub fn has_leader(&self) -> bool {
        self.held().has_leader
    }

    /// Asks agents for a bundle from now on, or for none.
    pub fn set_wanted(&self, digest: Option<Digest>) {
        let mut held = self.held();
        if held.wanted.as_ref().map(|wanted| &wanted.digest) != digest.as_ref() {
            held.wanted = digest.map(|digest| Wanted { digest, asked: None });
        }
    }

    /// Whether this bundle is asked for.
    pub fn wants(&self, digest: &Digest) -> bool {
        self.held().wanted.as_ref().is_some_and(|wanted| wanted.digest == *digest)
    }

    /// The bundle that the agent of `report` is to be asked for: one at a time is, of those that keep it.
    pub fn wanted_of(&self, report: &Report) -> Option<Digest> {
        let now = (self.clock)();
        let mut held = self.held();
        let keeps = match &report.state {
            NodeState::Idle
            | NodeState::Staging { .. }
            | NodeState::Refused { .. }
            | NodeState::Stuck { .. }
            | NodeState::Cleaned { .. } => false,
            NodeState::Staged { .. }
            | NodeState::Leased { .. }
            | NodeState::Linked { .. }
            | NodeState::Swapping { .. }
            | NodeState::Running { .. }
            | NodeState::Upgraded { .. }
            | NodeState::RolledBack { .. } => {
                report.state.rollout() == held.rollout.as_ref().map(|driven| &driven.rollout.request.id)
            }
        };
        let wanted = held.wanted.as_mut()?;
        let due = wanted.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_AGAIN);
        if !keeps || !due {
            return None;
        }
        wanted.asked = Some(now);
        Some(wanted.digest.clone())
    }

    /// The order for the node that sent `report`, from what is held now.
    pub fn order_for(&self, report: &Report) -> Order {
        let now = (self.clock)();
        let held = self.held();
        let driven = held.rollout.as_ref();
        let since = |seen: Instant| now.saturating_duration_since(seen);
        let knows = Knows {
            rollout: driven.map(|driven| &driven.rollout),
            drives: driven.is_some_and(|driven| driven.here),
            owner: driven.map(|driven| driven.owner.as_str()),
            ended: &held.ended,
            staging: held.staging.as_ref(),
            prepared: &held.prepared,
            has_leader: held.has_leader && held.leader_seen.is_some_and(|seen| since(seen) < LEADER_FOR),
        };
        let state_secs = held.agents.get(&report.node).map_or(0, |agent| since(agent.state_since).as_secs());
        errand::order_for(held.errand.as_ref(), knows.rollout, report, knows.has_leader)
            .unwrap_or_else(|| order_for(knows, report, state_secs))
    }

    /// Opens a collection, unless one is open, and lets every agent know that is waiting for an answer.
    pub(crate) fn collect(&self, collect: Collect, nodes: impl IntoIterator<Item = NodeId>) -> Option<OpenCollection> {
        let open = self.collections.open(collect, nodes)?;
        self.bump();
        Some(open)
    }

    /// Fires on every change of anything held. Subscribe first, look second, then wait: a change
    /// between the two is not missed.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn set<T: PartialEq>(&self, field: impl FnOnce(&mut Held) -> &mut T, value: T) {
        let mut held = self.held();
        let slot = field(&mut held);
        let news = *slot != value;
        *slot = value;
        drop(held);
        if news {
            self.bump();
        }
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing here can panic half-way through a change that matters.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An agent's request that is being held; dropped when it is answered or its connection ends.
pub struct Connected {
    hub: Arc<Hub>,
    node: NodeId,
    speaker: Speaker,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let now = (self.hub.clock)();
        if let Some(agent) = self.hub.held().agents.get_mut(&self.node) {
            let polls = agent.polls(self.speaker);
            *polls = polls.saturating_sub(1);
            agent.heard = now;
        }
    }
}

fn same_variant(a: &NodeState, b: &NodeState) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// Whether `new` tells something that `old` did not; which order the agent has seen is no news.
fn says_more(old: &Report, new: &Report) -> bool {
    let Report { node, agent_version, speaker, boot_id, engine, installed, state, seen: _, memo, unreached, troubles } =
        new;
    old.node != *node
        || old.agent_version != *agent_version
        || old.speaker != *speaker
        || old.boot_id != *boot_id
        || old.engine != *engine
        || old.installed != *installed
        || old.state != *state
        || old.memo != *memo
        || old.unreached != *unreached
        || old.troubles != *troubles
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use requeen_protocol::{Cleaning, RolloutId};

    use super::*;

    fn report(speaker: Speaker, state: NodeState) -> Report {
        Report {
            node: NodeId::from("n1"),
            agent_version: "1".to_owned(),
            speaker,
            boot_id: "b".to_owned(),
            engine: None,
            installed: None,
            state,
            seen: None,
            memo: None,
            unreached: Vec::new(),
            troubles: Vec::new(),
        }
    }

    fn stuck(reason: &str) -> NodeState {
        NodeState::Stuck {
            rollout: RolloutId::from("r"),
            reason: reason.to_owned(),
            hint: String::new(),
            log: Vec::new(),
        }
    }

    fn hub() -> (Arc<Hub>, Arc<AtomicU64>) {
        let secs = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let clock = {
            let secs = Arc::clone(&secs);
            Arc::new(move || start + Duration::from_secs(secs.load(Ordering::SeqCst)))
        };
        (Arc::new(Hub::new(clock)), secs)
    }

    #[test]
    fn silence_counts_only_while_nobody_is_connected() {
        let (hub, secs) = hub();
        let said = report(Speaker::Task, NodeState::Idle);
        hub.report(said.clone());
        let open = hub.connected(&said);
        secs.store(10, Ordering::SeqCst);
        assert_eq!(hub.agents()[&said.node].silent_secs, 0);
        drop(open);
        assert_eq!(hub.agents()[&said.node].silent_secs, 0, "heard until the request ended");
        secs.store(17, Ordering::SeqCst);
        assert_eq!(hub.agents()[&said.node].silent_secs, 7);
    }

    #[test]
    fn what_was_forgotten_has_to_be_said_again() {
        let (hub, secs) = hub();
        let said = report(Speaker::Executor, NodeState::Idle);
        hub.report(said.clone());
        let open = hub.connected(&said);
        hub.forget_reports();
        assert!(hub.agents().is_empty());
        drop(open);
        assert!(hub.agents().is_empty(), "the end of a request is no word");
        hub.report(said.clone());
        secs.store(3, Ordering::SeqCst);
        assert_eq!(hub.agents()[&said.node].silent_secs, 3);
    }

    #[test]
    fn a_state_is_as_old_as_its_variant() {
        let (hub, secs) = hub();
        hub.report(report(Speaker::Task, stuck("one")));
        secs.store(5, Ordering::SeqCst);
        hub.report(report(Speaker::Task, stuck("two")));
        assert_eq!(hub.agents()[&NodeId::from("n1")].state_secs, 5);
        hub.report(report(Speaker::Task, NodeState::Idle));
        assert_eq!(hub.agents()[&NodeId::from("n1")].state_secs, 0);
    }

    #[test]
    fn only_news_wakes() {
        let (hub, _) = hub();
        let mut changed = hub.changed();
        hub.report(report(Speaker::Task, NodeState::Idle));
        assert!(changed.has_changed().unwrap());
        changed.mark_unchanged();

        let mut again = report(Speaker::Task, NodeState::Idle);
        again.seen = Some(Box::new(Order::Wait { why: "x".to_owned() }));
        hub.report(again);
        assert!(!changed.has_changed().unwrap(), "the same word is no news");

        hub.set_has_leader(false);
        assert!(!changed.has_changed().unwrap(), "the same value is no news");
        hub.set_has_leader(true);
        assert!(changed.has_changed().unwrap());
        changed.mark_unchanged();

        hub.report(report(Speaker::Task, stuck("one")));
        assert!(changed.has_changed().unwrap());
        changed.mark_unchanged();
        hub.forget_node(&NodeId::from("n1"));
        assert!(changed.has_changed().unwrap());
        assert!(hub.agents().is_empty());
    }

    #[test]
    fn an_errand_is_not_answered_by_what_was_said_before() {
        let (hub, _) = hub();
        let clean = Errand::Clean { backups: true };
        let mut said = report(
            Speaker::Task,
            NodeState::Cleaned { backups: true, cleaning: Cleaning::Done { left: Vec::new(), more: 0 } },
        );
        said.seen = Some(Box::new(Order::Clean { backups: true }));
        hub.report(said.clone());
        let done = |hub: &Hub| errand::is_done(&clean, &hub.agents()[&NodeId::from("n1")].report);
        assert!(done(&hub));
        hub.set_errand(Some(clean.clone()));
        assert!(!done(&hub));
        hub.report(said);
        assert!(done(&hub));
    }

    #[test]
    fn a_connected_executor_outranks_the_task() {
        let (hub, _) = hub();
        let executor = report(Speaker::Executor, stuck("one"));
        hub.report(executor.clone());
        let open = hub.connected(&executor);
        hub.report(report(Speaker::Task, NodeState::Idle));
        assert_eq!(hub.agents()[&executor.node].report, executor);
        drop(open);
        hub.report(report(Speaker::Task, NodeState::Idle));
        assert_eq!(hub.agents()[&executor.node].report.state, NodeState::Idle);
    }
}
