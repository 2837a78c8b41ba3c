//! The operator's word that a silent node's slot is free: what is known of the node first, then the word.
//! Whether it may be said is [`freed::may_free`]'s to decide.

use requeen_protocol::{NodeId, NodeState};

use super::failure::refused;
use super::{Ops, view};
use crate::api::{Failure, ReleaseArgs, ReleaseView, SeenNode};
use crate::plan::freed::{self, Kept};
use crate::plan::model::{Entry, ManagerPolicy, NodeView, Observed, Role, Rollout, Step, Work};
use crate::plan::reasons::WaitingFor;
use crate::record::{self, RecordError, is_open};

impl Ops {
    /// Shows what is known of a node that holds a slot and is silent, and frees the slot where `args` say so.
    pub async fn release(&self, args: ReleaseArgs, uid: u32) -> Result<ReleaseView, Failure> {
        let seen = self.observe().await?;
        let look = |rollout: &Rollout| {
            // What agents have said since counts.
            let observed = Observed { agents: self.hub.agents(), ..seen.clone() };
            let listening_secs = self.hub.now().saturating_duration_since(self.begun).as_secs();
            let elapsed_ms = self.elapsed_ms(rollout);
            known(rollout, &observed, &args.node, listening_secs, elapsed_ms).map(|(id, view)| (id, view, elapsed_ms))
        };
        let Some(at) = &args.at else {
            let docker = self.engine.client().await?;
            let open = record::load_last(&docker).await?.filter(|stored| is_open(&stored.rollout));
            let stored = open.ok_or(RecordError::NoneOpen)?;
            return look(&stored.rollout).map(|(_, view, _)| view);
        };
        let mut shown = None;
        self.change(|rollout| {
            let (id, view, elapsed_ms) = look(rollout)?;
            if view.step != *at {
                let error = format!("node {} was {at} when it was looked at, and is {} now", view.hostname, view.step);
                return Err(refused(error, "look again: `requeen release` without `--yes`"));
            }
            if let Some(entry) = rollout.nodes.get_mut(&id) {
                entry.step = freed::freed(entry, seen.nodes.get(&id), uid);
                entry.times.push((entry.step.name().to_owned(), elapsed_ms));
                tracing::warn!(
                    rollout = %rollout.request.id, node = entry.hostname, uid, step = at.as_str(),
                    "slot released by the operator"
                );
            }
            shown = Some(ReleaseView { released: true, ..view });
            Ok(())
        })
        .await?;
        shown.ok_or_else(|| refused("nothing was written", "try again"))
    }
}

/// What there is to know before the slot is freed, or why it is not the operator's to free.
fn known(
    rollout: &Rollout,
    observed: &Observed,
    name: &str,
    listening_secs: u64,
    elapsed_ms: u64,
) -> Result<(NodeId, ReleaseView), Failure> {
    let (id, entry) = resolve(rollout, name)?;
    let host = &entry.hostname;
    if rollout.owner.node != observed.me {
        let owner = view::hostname(observed, &rollout.owner.node);
        return Err(refused(
            format!("rollout {} is driven from {owner}: who is silent there is not known here", rollout.request.id),
            format!("type it on {owner}"),
        ));
    }
    let agent = observed.agents.get(id);
    freed::may_free(entry, observed, id, listening_secs).map_err(|kept| match kept {
        Kept::NoSlot => refused(
            format!("node {host} holds no slot: it is {}", entry.step.name()),
            "`requeen status` shows where every node stands",
        ),
        Kept::Heard => {
            let doing = agent.map(|agent| said(&agent.report.state)).unwrap_or_default();
            refused(
                format!("node {host} is not silent: it is {}, and its agent says: {doing}", entry.step.name()),
                "wait for it, or `requeen abort`: both let it finish what it does",
            )
        }
        Kept::TooEarly { left_secs } => refused(
            format!("this coordinator has not listened for long enough to call node {host} silent"),
            format!("try again in {left_secs} s"),
        ),
    })?;
    let node = observed.nodes.get(id);
    // It may have been promoted or demoted since.
    let role = node.map_or(entry.role, |node| node.role);
    let view = ReleaseView {
        rollout: rollout.request.id.clone(),
        id: id.to_string(),
        hostname: host.clone(),
        role,
        swarm: node.map(seen_node),
        before: freed::before(&entry.step),
        step: entry.step.name().to_owned(),
        since_ms: view::since_ms(entry, elapsed_ms),
        agent: agent.map(|agent| agent.report.state.clone()),
        said: agent.map(|agent| said(&agent.report.state)),
        silent_secs: agent.map(|agent| agent.silent_secs),
        meaning: meaning(rollout, entry, role),
        hint: freed::hint(entry, node),
        released: false,
    };
    Ok((id.clone(), view))
}

/// The rollout's node of that host name, ID, or unique beginning of an ID. The swarm may have forgotten it.
fn resolve<'a>(rollout: &'a Rollout, name: &str) -> Result<(&'a NodeId, &'a Entry), Failure> {
    let matching = |fits: &dyn Fn(&NodeId, &Entry) -> bool| -> Vec<_> {
        rollout.nodes.iter().filter(|(id, entry)| fits(id, entry)).collect()
    };
    let mut found = matching(&|id, _| id.as_str() == name);
    if found.is_empty() {
        found = matching(&|_, entry| entry.hostname == name);
    }
    if found.is_empty() && !name.is_empty() {
        found = matching(&|id, _| id.as_str().starts_with(name));
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(refused(
            format!("node {name} is not in the scope of rollout {}", rollout.request.id),
            "`requeen status` shows which nodes are",
        )),
        [_, ..] => {
            let ids: Vec<_> = found.iter().map(|(id, _)| id.as_str()).collect();
            Err(refused(
                format!("`{name}` is ambiguous: it names the nodes {}", ids.join(", ")),
                "give the whole ID, as `docker node ls` prints it",
            ))
        }
    }
}

fn seen_node(node: &NodeView) -> SeenNode {
    SeenNode {
        availability: node.availability,
        ready: node.ready,
        reachable: (node.role == Role::Manager).then_some(node.reachable),
    }
}

/// What the node's step means for its engine, and what freeing its slot means for the others.
fn meaning(rollout: &Rollout, entry: &Entry, role: Role) -> Vec<String> {
    const UNTOUCHED: &str = "its engine was not stopped: no permit was given. An executor that lives drops its lease by \
                             itself and takes its links back";
    const ANYWHERE: &str = "the permit to stop its engine was given: the node may be anywhere between the old and the new \
                            engine. If its executor lives it finishes alone, now or when the machine comes back, and \
                            its own word on how that ended will count";
    let mut words = vec![match &entry.step {
        Step::Working { work, .. } => match work {
            Work::Granted | Work::Draining | Work::Emptying | Work::Linking | Work::Withdrawing => UNTOUCHED.to_owned(),
            Work::Permitted { .. } => ANYWHERE.to_owned(),
            Work::Settling => "the new engine ran and the swarm saw it; its files may still be links, which work as well \
                               and are made plain when it is heard again"
                .to_owned(),
            Work::SwitchingBack { .. } => {
                "the swarm did not see its new engine and the previous one was to be put back: which one runs is not known"
                    .to_owned()
            }
        },
        Step::Restoring { outcome, .. } => {
            format!("its work has ended ({}); only its availability or tasks were waited for", outcome.name())
        }
        Step::Waiting { .. } | Step::Held { .. } | Step::Done { .. } => String::new(),
    }];
    words.push("the rollout takes it for failed and goes on with others".to_owned());
    if role == Role::Manager {
        words.push(
            "as a manager it still counts: others are stopped only while a majority without it is reachable".to_owned(),
        );
        if rollout.request.policy.managers == ManagerPolicy::HoldDrained {
            words.push(
                "under hold-drained the managers that are done stay drained unless it is upgraded too".to_owned(),
            );
        }
    }
    words
}

/// An agent's word in the operator's.
fn said(state: &NodeState) -> String {
    match state {
        NodeState::Idle => "idle".to_owned(),
        NodeState::Staging { .. } => "staging".to_owned(),
        NodeState::Staged { .. } => "staged, no lease held".to_owned(),
        NodeState::Refused { .. } => "refused".to_owned(),
        NodeState::Leased { .. } => "lease held".to_owned(),
        NodeState::Linked { .. } => "links in place".to_owned(),
        NodeState::Swapping { phase, waiting, .. } => {
            WaitingFor::Engine { phase: Some(*phase), detail: waiting.clone() }.to_string()
        }
        NodeState::Running { .. } => "new engine running".to_owned(),
        NodeState::Upgraded { .. } => "upgraded".to_owned(),
        NodeState::RolledBack { reason, .. } => format!("rolled back: {reason}"),
        NodeState::Stuck { reason, .. } => format!("stuck: {reason}"),
        NodeState::Cleaned { .. } => "cleaned".to_owned(),
    }
}
