//! All policy. `plan` reads the recorded rollout and the swarm as observed, and says what to do next
//! and why every node that does not move waits. No I/O, no clock, no randomness.
//!
//! The order of a rollout is in this file: [`plan`] looks at every node's recorded step, decides by
//! `advance` whether it may go on, and grants new leases by `grant` when nothing forbids it.

pub mod errand;
pub mod freed;
mod gates;
mod joins;
pub mod limit;
pub mod locked;
pub mod model;
pub mod orders;
pub mod owner;
pub mod reasons;
pub mod rebuild;
pub mod refuse;
mod returning;
mod roles;
#[cfg(test)]
pub(crate) mod simulation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use requeen_protocol::{LeaseId, NodeId, NodeState, Order, PermitId, Speaker, SwapPhase};

use gates::Gates;
use limit::Limit;
use model::{
    AgentView, Availability, Entry, LeaseRecord, ManagerPolicy, NodeView, Observed, Outcome, Phase, Role, Rollout,
    Step, Work,
};
use reasons::WaitingFor;

/// An agent that was silent for longer than this, in seconds, is named as silent.
pub const SILENT_SECS: u64 = 30;

/// One thing to do. Each is safe to do twice, and none depends on another of the same plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// Write this step into the node's entry of the record.
    Record {
        /// The node.
        node: NodeId,
        /// Its new step.
        step: Step,
    },
    /// Take this node, which joined the swarm after the rollout had begun, into the record.
    Join {
        /// The node.
        node: NodeId,
        /// Its entry; whoever writes it adds the time.
        entry: Entry,
    },
    /// Make the swarm give the node this availability; name, labels and role stay.
    SetAvailability {
        /// The node.
        node: NodeId,
        /// What it has to be.
        to: Availability,
    },
    /// Write this phase into the record.
    Phase(Phase),
}

/// What to do now, and why the rest waits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What to do, in this order.
    pub moves: Vec<Move>,
    /// For every node of the swarm that is not done: why it does not move.
    pub waiting: BTreeMap<NodeId, WaitingFor>,
}

/// What becomes of one node in this round.
enum Next {
    /// It stays where it is, for this reason.
    Wait(WaitingFor),
    /// Its step changes.
    Record(Step),
    /// The swarm has to be told first.
    Availability(Availability, WaitingFor),
    /// Its step changes and the rollout halts.
    Trouble(Step, String),
}

/// Plans the next moves of `rollout`. `now` is the one clock that a policy may ever read: rules that
/// depend on the time of day take it from here.
pub fn plan(rollout: &Rollout, observed: &Observed, now: Timestamp) -> Plan {
    let rollout = &*roles::as_they_are(rollout, observed);
    let mut plan = Plan::default();
    if matches!(rollout.phase, Phase::Ended { .. }) {
        return plan;
    }
    if !observed.has_leader {
        // The store can't be written and what is read may be old: nothing moves but the nodes
        // that finish alone.
        for (id, entry) in &rollout.nodes {
            match &entry.step {
                Step::Done { .. } => {}
                Step::Waiting { .. } | Step::Working { .. } | Step::Held { .. } | Step::Restoring { .. } => {
                    plan.waiting.insert(id.clone(), WaitingFor::Leader);
                }
            }
        }
        return plan;
    }

    let mut trouble = None;
    for (id, entry) in &rollout.nodes {
        let next = match &entry.step {
            Step::Waiting { .. } => continue,
            Step::Done { outcome } => match freed::heard_again(rollout, observed, id, outcome) {
                Some(step) => Next::Record(step),
                None => continue,
            },
            Step::Working { lease, before, work } => advance(rollout, observed, id, lease, *before, work),
            Step::Held { before, outcome } => release(rollout, *before, outcome),
            Step::Restoring { before, outcome } => restore(rollout, observed, id, *before, outcome),
        };
        match next {
            Next::Wait(why) => {
                plan.waiting.insert(id.clone(), why);
            }
            Next::Record(step) => plan.moves.push(Move::Record { node: id.clone(), step }),
            Next::Availability(to, why) => {
                plan.moves.push(Move::SetAvailability { node: id.clone(), to });
                plan.waiting.insert(id.clone(), why);
            }
            Next::Trouble(step, reason) => {
                plan.moves.push(Move::Record { node: id.clone(), step });
                trouble.get_or_insert(format!("{}: {reason}", entry.hostname));
            }
        }
    }

    let running = rollout.phase == Phase::Running && trouble.is_none();
    if let Some(reason) = trouble
        && matches!(rollout.phase, Phase::Running | Phase::Paused)
    {
        plan.moves.push(Move::Phase(Phase::Halted { reason }));
    }
    joins::come_and_go(rollout, observed, &mut plan);
    // A node that moves in this round is counted by what the record says before the move; a
    // grant is considered only in a round in which nothing else moves, so that it sees the result.
    let quiet = plan.moves.is_empty();
    grant(rollout, observed, running && quiet, now, &mut plan);
    if quiet && plan.moves.is_empty() {
        plan.moves.extend(finish(rollout, now).map(Move::Phase));
    }
    plan
}

/// Whether the rollout is over, or its time is.
fn finish(rollout: &Rollout, now: Timestamp) -> Option<Phase> {
    let steps = || rollout.nodes.values().map(|entry| &entry.step);
    match rollout.phase {
        Phase::Running if steps().all(|step| matches!(step, Step::Done { .. })) => {
            Some(Phase::Ended { aborted: false })
        }
        Phase::Running => {
            let limit = Limit::of(rollout).filter(|_| !steps().any(Step::in_work))?;
            limit.over(now).map(|reason| Phase::Halted { reason })
        }
        Phase::Aborting => (!steps().any(Step::in_work)).then_some(Phase::Ended { aborted: true }),
        Phase::Paused | Phase::Halted { .. } | Phase::Ended { .. } => None,
    }
}

/// Grants at most one lease, to the first node that may have one, and says why the others wait.
fn grant(rollout: &Rollout, observed: &Observed, may_grant: bool, now: Timestamp, plan: &mut Plan) {
    let gates = Gates::new(rollout, observed);
    let mut granted = false;
    for id in refuse::order(observed, &rollout.nodes.keys().cloned().collect()) {
        let Some(entry) = rollout.nodes.get(&id) else { continue };
        let Step::Waiting { by_hand, forced } = entry.step else { continue };
        if rollout.phase == Phase::Aborting {
            plan.moves.push(Move::Record { node: id.clone(), step: Step::Done { outcome: Outcome::Untouched } });
            continue;
        }
        if let Some(reason) = unfit(rollout, observed, &id)
            && rollout.phase == Phase::Running
            && !entry.joined
        {
            plan.moves.push(Move::Phase(Phase::Halted { reason: format!("{}: {reason}", entry.hostname) }));
            return;
        }
        match gates.closed(&id, by_hand, forced, now) {
            None if may_grant && !granted => {
                granted = true;
                plan.moves.push(Move::Record {
                    node: id.clone(),
                    step: Step::Working {
                        lease: next_lease(rollout, &id, forced),
                        before: gates.availability(&id),
                        work: Work::Granted,
                    },
                });
            }
            // Open, but one lease a round: the next round sees what this one did.
            None => {
                plan.waiting.insert(id, WaitingFor::Slot { busy: gates.in_work_names() });
            }
            Some(why) => {
                plan.waiting.insert(id, why);
            }
        }
    }
}

/// Why a node that staged the target once can't take it any more, in its own words.
fn unfit(rollout: &Rollout, observed: &Observed, id: &NodeId) -> Option<String> {
    let state = &observed.agents.get(id)?.report.state;
    if state.rollout() != Some(&rollout.request.id) {
        return None;
    }
    match state {
        NodeState::Stuck { reason, .. } => Some(reason.clone()),
        NodeState::Refused { problems, .. } => problems.first().map(|problem| problem.what.clone()),
        NodeState::Idle
        | NodeState::Staging { .. }
        | NodeState::Staged { .. }
        | NodeState::Leased { .. }
        | NodeState::Linked { .. }
        | NodeState::Swapping { .. }
        | NodeState::Running { .. }
        | NodeState::Upgraded { .. }
        | NodeState::RolledBack { .. }
        | NodeState::Cleaned { .. } => None,
    }
}

/// The lease that the node gets next. Its ID tells it from those that the node had before.
fn next_lease(rollout: &Rollout, id: &NodeId, forced: bool) -> LeaseRecord {
    numbered_lease(rollout, id, grants(rollout, id) + 1, forced)
}

/// How many leases the node has had.
fn grants(rollout: &Rollout, id: &NodeId) -> usize {
    rollout.nodes[id].times.iter().filter(|(step, _)| step == "granted").count()
}

fn numbered_lease(rollout: &Rollout, id: &NodeId, number: usize, forced: bool) -> LeaseRecord {
    LeaseRecord { id: LeaseId(format!("{}.{}.{number}", rollout.request.id, id)), epoch: rollout.owner.epoch, forced }
}

/// What a node under a lease does next.
fn advance(
    rollout: &Rollout,
    observed: &Observed,
    id: &NodeId,
    lease: &LeaseRecord,
    before: Availability,
    work: &Work,
) -> Next {
    let to = |work: Work| Next::Record(Step::Working { lease: lease.clone(), before, work });
    let agent = observed.agents.get(id);
    let Some(node) = observed.nodes.get(id) else {
        return if freed::is_untouched(work, agent) {
            Next::Record(Step::Done { outcome: Outcome::Untouched })
        } else {
            Next::Wait(WaitingFor::Removed { node: rollout.nodes[id].hostname.clone() })
        };
    };
    let Some(agent) = agent else {
        return Next::Wait(WaitingFor::Agent);
    };
    // Final words of the node count at every step.
    if agent.report.state.lease() == Some(&lease.id) || matches!(agent.report.state, NodeState::Stuck { .. }) {
        match &agent.report.state {
            NodeState::RolledBack { reason, log, .. } => {
                let outcome = Outcome::RolledBack { reason: reason.clone(), log: log.clone() };
                return Next::Trouble(
                    after(rollout, id, before, outcome),
                    format!("the new engine failed and the previous one runs again: {reason}"),
                );
            }
            NodeState::Stuck { rollout: of, reason, hint, .. } if *of == rollout.request.id => {
                let outcome = Outcome::Failed { reason: reason.clone(), hint: hint.clone() };
                // Without a permit its engine was not stopped, so its tasks may come back, whatever the managers' policy: its old
                // engine is among other old ones that are active.
                let step = if work.is_before_the_permit() {
                    Step::Restoring { before, outcome }
                } else {
                    Step::Done { outcome }
                };
                return Next::Trouble(step, reason.clone());
            }
            NodeState::Idle
            | NodeState::Staging { .. }
            | NodeState::Staged { .. }
            | NodeState::Refused { .. }
            | NodeState::Leased { .. }
            | NodeState::Linked { .. }
            | NodeState::Swapping { .. }
            | NodeState::Running { .. }
            | NodeState::Upgraded { .. }
            | NodeState::Stuck { .. }
            | NodeState::Cleaned { .. } => {}
        }
    }
    // Before the stop, an abort takes the lease back.
    let untouched = match work {
        Work::Granted | Work::Draining | Work::Emptying | Work::Linking => true,
        // A permit that never arrived: it is good under its lease alone.
        Work::Permitted { .. } => lapsed(agent),
        Work::Settling | Work::SwitchingBack { .. } | Work::Withdrawing => false,
    };
    // A record that was made again from what nodes said may be behind a node: it is too late for a withdrawal then.
    let state = &agent.report.state;
    let further = matches!(state, NodeState::Swapping { .. } | NodeState::Running { .. } | NodeState::Upgraded { .. });
    if (untouched || *work == Work::Withdrawing) && further && state.lease() == Some(&lease.id) {
        return to(Work::Permitted { permit: PermitId(format!("{}.stop", lease.id)), index: 0 });
    }
    if untouched && rollout.phase == Phase::Aborting {
        return to(Work::Withdrawing);
    }
    // Before the stop, a lease that the executor let run out is granted anew.
    if untouched && !matches!(work, Work::Granted) && lapsed(agent) {
        return Next::Record(Step::Working {
            lease: next_lease(rollout, id, lease.forced),
            before,
            work: Work::Granted,
        });
    }

    match work {
        Work::Granted => match &agent.report.state {
            NodeState::Leased { lease: held, .. } | NodeState::Linked { lease: held, .. } if *held == lease.id => {
                to(Work::Draining)
            }
            NodeState::Idle
            | NodeState::Staging { .. }
            | NodeState::Staged { .. }
            | NodeState::Refused { .. }
            | NodeState::Leased { .. }
            | NodeState::Linked { .. }
            | NodeState::Swapping { .. }
            | NodeState::Running { .. }
            | NodeState::Upgraded { .. }
            | NodeState::RolledBack { .. }
            | NodeState::Stuck { .. }
            | NodeState::Cleaned { .. } => Next::Wait(silent_or(agent, WaitingFor::Executor)),
        },
        Work::Draining if node.availability == Availability::Drain => to(Work::Emptying),
        Work::Draining => Next::Availability(Availability::Drain, WaitingFor::Drain),
        Work::Emptying => match gates::emptied(observed, node, agent) {
            None => to(Work::Linking),
            Some(why) => Next::Wait(why),
        },
        Work::Linking => match &agent.report.state {
            NodeState::Linked { .. } => match Gates::new(rollout, observed).stop_forbidden(node, agent, lease) {
                None => to(Work::Permitted { permit: PermitId(format!("{}.stop", lease.id)), index: node.index }),
                Some(why) => Next::Wait(why),
            },
            NodeState::Idle
            | NodeState::Staging { .. }
            | NodeState::Staged { .. }
            | NodeState::Refused { .. }
            | NodeState::Leased { .. }
            | NodeState::Swapping { .. }
            | NodeState::Running { .. }
            | NodeState::Upgraded { .. }
            | NodeState::RolledBack { .. }
            | NodeState::Stuck { .. }
            | NodeState::Cleaned { .. } => Next::Wait(silent_or(agent, WaitingFor::Links)),
        },
        Work::Permitted { index, .. } => permitted(rollout, agent, node, *index, &to),
        Work::Settling => match &agent.report.state {
            NodeState::Upgraded { engine_down_ms, .. } => {
                let outcome = Outcome::Upgraded { engine_down_ms: *engine_down_ms };
                Next::Record(after(rollout, id, before, outcome))
            }
            NodeState::Idle
            | NodeState::Staging { .. }
            | NodeState::Staged { .. }
            | NodeState::Refused { .. }
            | NodeState::Leased { .. }
            | NodeState::Linked { .. }
            | NodeState::Swapping { .. }
            | NodeState::Running { .. }
            | NodeState::RolledBack { .. }
            | NodeState::Stuck { .. }
            | NodeState::Cleaned { .. } => Next::Wait(silent_or(agent, WaitingFor::Settle)),
        },
        Work::SwitchingBack { .. } => Next::Wait(silent_or(agent, WaitingFor::SwitchBack)),
        Work::Withdrawing => match &agent.report.state {
            NodeState::Idle
            | NodeState::Staging { .. }
            | NodeState::Staged { .. }
            | NodeState::Refused { .. }
            | NodeState::Cleaned { .. } => Next::Record(Step::Restoring { before, outcome: Outcome::Untouched }),
            NodeState::Leased { .. }
            | NodeState::Linked { .. }
            | NodeState::Swapping { .. }
            | NodeState::Running { .. }
            | NodeState::Upgraded { .. }
            | NodeState::RolledBack { .. }
            | NodeState::Stuck { .. } => Next::Wait(silent_or(agent, WaitingFor::Withdrawal)),
        },
    }
}

/// After the permit: the node finishes alone, and the swarm has to see what it says.
fn permitted(rollout: &Rollout, agent: &AgentView, node: &NodeView, index: u64, to: &dyn Fn(Work) -> Next) -> Next {
    match &agent.report.state {
        NodeState::Running { .. } => match gates::unseen(node, agent, index) {
            None => to(Work::Settling),
            Some(missing) if agent.state_secs > rollout.request.policy.join_timeout_secs => to(Work::SwitchingBack {
                reason: format!("the swarm, which has a leader, did not see after {} s: {missing}", agent.state_secs),
            }),
            Some(missing) => Next::Wait(WaitingFor::SwarmView { missing }),
        },
        NodeState::Upgraded { .. } => to(Work::Settling),
        NodeState::Swapping { phase, waiting, .. } => {
            Next::Wait(WaitingFor::Engine { phase: Some(*phase), detail: waiting.clone() })
        }
        NodeState::Linked { .. } => match agent.report.seen.as_deref() {
            Some(Order::Wait { why }) => Next::Wait(WaitingFor::StopHeldBack { why: why.clone() }),
            Some(_) | None => Next::Wait(WaitingFor::Engine { phase: Some(SwapPhase::Stopping), detail: None }),
        },
        NodeState::Idle
        | NodeState::Staging { .. }
        | NodeState::Staged { .. }
        | NodeState::Refused { .. }
        | NodeState::Leased { .. }
        | NodeState::RolledBack { .. }
        | NodeState::Stuck { .. }
        | NodeState::Cleaned { .. } => Next::Wait(WaitingFor::Engine { phase: None, detail: None }),
    }
}

/// Whether the executor says that it holds no lease any more.
fn lapsed(agent: &AgentView) -> bool {
    agent.silent_secs <= SILENT_SECS
        && agent.report.speaker == Speaker::Executor
        && matches!(agent.report.state, NodeState::Staged { .. })
}

fn silent_or(agent: &AgentView, why: WaitingFor) -> WaitingFor {
    if agent.silent_secs > SILENT_SECS { WaitingFor::SilentAgent { secs: agent.silent_secs } } else { why }
}

/// Where a node goes when its work has ended.
fn after(rollout: &Rollout, id: &NodeId, before: Availability, outcome: Outcome) -> Step {
    let held = rollout.request.policy.managers == ManagerPolicy::HoldDrained && rollout.nodes[id].role == Role::Manager;
    if held { Step::Held { before, outcome } } else { Step::Restoring { before, outcome } }
}

/// Whether a manager that is kept drained may become active.
fn release(rollout: &Rollout, before: Availability, outcome: &Outcome) -> Next {
    let open = gates::open_managers(rollout);
    if !open.is_empty() {
        return Next::Wait(WaitingFor::OtherManagers { nodes: open });
    }
    let failed = rollout.nodes.values().any(|entry| {
        entry.role == Role::Manager
            && match &entry.step {
                Step::Held { outcome, .. } | Step::Restoring { outcome, .. } | Step::Done { outcome } => {
                    match outcome {
                        Outcome::RolledBack { .. } | Outcome::Failed { .. } | Outcome::Untouched => true,
                        Outcome::Upgraded { .. } | Outcome::Current => false,
                    }
                }
                Step::Waiting { .. } | Step::Working { .. } => true,
            }
    });
    if failed {
        return Next::Wait(WaitingFor::KeptDrained);
    }
    Next::Record(Step::Restoring { before, outcome: outcome.clone() })
}

/// Restores the availability, then waits until tasks run again.
fn restore(rollout: &Rollout, observed: &Observed, id: &NodeId, before: Availability, outcome: &Outcome) -> Next {
    let done = || Next::Record(Step::Done { outcome: outcome.clone() });
    let Some(node) = observed.nodes.get(id) else {
        return done();
    };
    if node.availability != before {
        return Next::Availability(before, WaitingFor::Availability);
    }
    if matches!(outcome, Outcome::Failed { .. }) {
        // It needs an operator, whatever becomes of its tasks.
        return done();
    }
    if !node.ready {
        return Next::Wait(WaitingFor::SwarmView { missing: "state ready".to_owned() });
    }
    if rollout.phase == Phase::Aborting {
        // Nobody comes after it: what is missing is the operator's to look at.
        return done();
    }
    let services = gates::short_services(rollout, observed, node);
    if services.is_empty() { done() } else { Next::Wait(WaitingFor::TasksToRun { services }) }
}
