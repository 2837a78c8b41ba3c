//! What a write of a record says, by which its fail points are named. Pure.

use crate::effect::Says;
use crate::plan::model::{Entry, Rollout, Step, Work};

/// The weightiest of what `after` says and `before` does not.
pub(super) fn says(before: &Rollout, after: &Rollout) -> Says {
    let further = |entry: &Entry, was: Option<&Entry>| was.is_none_or(|was| was.step != entry.step);
    let news: Vec<&Step> = after
        .nodes
        .iter()
        .filter(|(node, entry)| further(entry, before.nodes.get(*node)))
        .map(|(_, entry)| &entry.step)
        .collect();
    let any = |is: fn(&Work) -> bool| news.iter().any(|step| matches!(step, Step::Working { work, .. } if is(work)));
    // A new owner's epoch is in every lease too.
    if before.owner.epoch != after.owner.epoch {
        Says::Owner
    } else if any(|work| matches!(work, Work::Permitted { .. })) {
        Says::Permit
    } else if any(|work| matches!(work, Work::Granted)) {
        Says::Lease
    } else if before.phase != after.phase {
        Says::Phase
    } else if !news.is_empty() {
        Says::Step
    } else {
        Says::Renewal
    }
}
