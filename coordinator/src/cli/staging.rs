//! Waiting for an answer that needs every node: meanwhile, how far they are.

use std::time::Duration;

use requeen_protocol::NodeState;
use tokio::time::{MissedTickBehavior, interval};

use super::Context;
use super::error::CliError;
use super::live::Live;
use crate::api::StatusView;

/// How often the server is asked how far the nodes are.
const EVERY: Duration = Duration::from_millis(500);

/// Waits for `answer`; on a terminal one line says how far the nodes are.
pub(crate) async fn wait<A>(
    context: &Context,
    answer: impl Future<Output = Result<A, CliError>>,
) -> Result<A, CliError> {
    wait_saying(context, progress, answer).await
}

/// [`wait`] with other words for how far the nodes are.
pub(crate) async fn wait_saying<A>(
    context: &Context,
    progress: impl Fn(&StatusView) -> String,
    answer: impl Future<Output = Result<A, CliError>>,
) -> Result<A, CliError> {
    if context.json || !context.printer.live {
        return answer.await;
    }
    let live = Live::new(&context.printer, "asking every node");
    tokio::pin!(answer);
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let result = loop {
        tokio::select! {
            result = &mut answer => break result,
            _ = ticks.tick() => {}
        }
        tokio::select! {
            result = &mut answer => break result,
            // The answer itself brings the error, if it is one that matters.
            status = context.client.status() => if let Ok(status) = status {
                live.say(progress(&status));
            },
        }
    };
    live.clear();
    result
}

/// How many nodes have staged, and what the others do.
fn progress(status: &StatusView) -> String {
    let staged = |state: &NodeState| matches!(state, NodeState::Staged { .. } | NodeState::Refused { .. });
    let ready = status.nodes.iter().filter(|node| node.agent.as_ref().is_some_and(staged)).count();
    let busy: Vec<String> = status
        .nodes
        .iter()
        .filter_map(|node| match &node.agent {
            Some(NodeState::Staging { progress, .. }) if progress.total > 0 => {
                Some(format!("{} {} %", node.hostname, progress.done.min(progress.total) * 100 / progress.total))
            }
            Some(NodeState::Staging { .. }) => Some(node.hostname.clone()),
            Some(
                NodeState::Idle
                | NodeState::Staged { .. }
                | NodeState::Refused { .. }
                | NodeState::Leased { .. }
                | NodeState::Linked { .. }
                | NodeState::Swapping { .. }
                | NodeState::Running { .. }
                | NodeState::Upgraded { .. }
                | NodeState::RolledBack { .. }
                | NodeState::Stuck { .. }
                | NodeState::Cleaned { .. },
            )
            | None => None,
        })
        .collect();
    let all = status.nodes.len();
    if busy.is_empty() {
        format!("asking every node: {ready} of {all} have answered")
    } else {
        format!("staging: {ready} of {all} ready; {}", busy.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use requeen_protocol::{Activity, Progress, RolloutId};

    use super::super::tracker::tests::{node, status};
    use super::*;
    use crate::plan::model::Role;

    #[test]
    fn staging_in_one_line() {
        let mut view = status(None, vec![node("m1", Role::Manager, None, &[]), node("w1", Role::Worker, None, &[])]);
        assert_eq!(progress(&view), "asking every node: 0 of 2 have answered");
        view.nodes[1].agent = Some(NodeState::Staging {
            rollout: RolloutId("r1".into()),
            progress: Progress { activity: Activity::Download, done: 50, total: 200 },
        });
        assert_eq!(progress(&view), "staging: 0 of 2 ready; w1 25 %");
    }
}
