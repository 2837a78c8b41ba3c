//! The rollouts on record: what the swarm keeps of the last ones.

use super::failure::refused;
use super::{Ops, view};
use crate::api::{Failure, HistoryView, NodeHistory, RolloutHistory, RolloutSummary, UnreadableRecord};
use crate::plan::model::{Entry, Outcome, Rollout, Step};
use crate::record::{self, Stored, Unread};

impl Ops {
    /// Every rollout on record, newest first.
    pub async fn history(&self) -> Result<HistoryView, Failure> {
        let (stored, unread) = self.records().await?;
        let summary = |stored: &Stored| summary(&stored.rollout, self.elapsed_ms(&stored.rollout));
        Ok(HistoryView {
            rollouts: stored.iter().rev().map(summary).collect(),
            unreadable: unread.into_iter().map(unreadable).collect(),
        })
    }

    /// One rollout, by its ID or the beginning of it.
    pub async fn rollout_history(&self, wanted: &str) -> Result<RolloutHistory, Failure> {
        let (stored, unread) = self.records().await?;
        let rollout = pick(&stored, &unread, wanted)?;
        Ok(whole(rollout, self.elapsed_ms(rollout)))
    }

    async fn records(&self) -> Result<(Vec<Stored>, Vec<Unread>), Failure> {
        let docker = self.engine.client().await?;
        Ok(record::load_each(&docker).await?)
    }
}

fn unreadable(unread: Unread) -> UnreadableRecord {
    UnreadableRecord {
        id: unread.id().to_owned(),
        why: unread.why.to_string(),
        ended: unread.ended,
        config: unread.name,
    }
}

/// The one rollout whose ID is `wanted` or begins with it.
fn pick<'a>(stored: &'a [Stored], unread: &[Unread], wanted: &str) -> Result<&'a Rollout, Failure> {
    let ids = || stored.iter().map(|stored| stored.rollout.request.id.as_str()).chain(unread.iter().map(Unread::id));
    let found: Vec<&str> = match ids().find(|id| *id == wanted) {
        Some(whole) => vec![whole],
        None => ids().filter(|id| id.starts_with(wanted)).collect(),
    };
    let [id] = found.as_slice() else {
        let error = if found.is_empty() {
            format!("no rollout `{wanted}` is on record")
        } else {
            format!("`{wanted}` is ambiguous: it begins the rollouts {}", found.join(", "))
        };
        return Err(refused(error, "`requeen history` lists those that are on record"));
    };
    let read = stored.iter().map(|stored| &stored.rollout).find(|rollout| rollout.request.id.as_str() == *id);
    read.ok_or_else(|| {
        let why = unread.iter().find(|unread| unread.id() == *id).map(|unread| unread.why.to_string());
        refused(
            format!("the record of rollout {id} can't be read: {}", why.unwrap_or_default()),
            "use the version that wrote it",
        )
    })
}

fn summary(rollout: &Rollout, elapsed_ms: u64) -> RolloutSummary {
    let upgraded = |entry: &&Entry| match &entry.step {
        Step::Held { outcome, .. } | Step::Restoring { outcome, .. } | Step::Done { outcome } => {
            matches!(outcome, Outcome::Upgraded { .. })
        }
        Step::Waiting { .. } | Step::Working { .. } => false,
    };
    RolloutSummary {
        id: rollout.request.id.clone(),
        started_at: rollout.request.started_at,
        started_by_uid: rollout.request.started_by_uid,
        target: rollout.request.target.clone(),
        upgraded: rollout.nodes.values().filter(upgraded).count(),
        nodes: rollout.nodes.len(),
        phase: rollout.phase.clone(),
        ended_at: view::ended_at(rollout),
        elapsed_ms,
    }
}

fn whole(rollout: &Rollout, elapsed_ms: u64) -> RolloutHistory {
    let mut steps: Vec<_> = rollout
        .nodes
        .iter()
        .map(|(id, entry)| NodeHistory {
            id: id.to_string(),
            hostname: entry.hostname.clone(),
            role: entry.role,
            from: entry.from.clone(),
            step: entry.step.clone(),
            times: entry.times.clone(),
            troubles: entry.troubles.clone(),
        })
        .collect();
    let granted = |node: &NodeHistory| node.times.iter().find(|(step, _)| step == "granted").map(|(_, ms)| *ms);
    // Those that never moved come last.
    steps.sort_by_key(|node| (granted(node).unwrap_or(u64::MAX), node.role, node.hostname.clone()));
    RolloutHistory {
        summary: summary(rollout, elapsed_ms),
        policy: rollout.request.policy.clone(),
        limit_lifted: rollout.limit_lifted,
        steps,
    }
}
