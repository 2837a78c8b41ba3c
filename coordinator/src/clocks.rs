//! Whose time of day is another one than this manager's. No lease, permit or step hangs on it: those are counted on clocks
//! that nobody sets. But the swarm's certificates do, so an engine that is started on such a node may not get back into its
//! swarm, and the operator has to know before that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use requeen_protocol::{NodeId, Problem};

use crate::plan::model::Observed;

/// So much is no difference, seconds: a report may have been on its way for as long.
const TOLERATED_SECS: u64 = 60;

/// Once it was more, it has to be less than this, or a node at the edge would be named again and again.
const AGREES_SECS: u64 = 30;

/// What to do about it.
const HINT: &str = "set the one that is wrong (`timedatectl`, `chronyc makestep`): engines trust no certificate that is of \
                    the future or has expired, so one that is started there may not get back into the swarm";

/// By how many seconds each node's clock is ahead of this manager's, as it said last.
#[derive(Debug, Default)]
pub(crate) struct Clocks(Mutex<BTreeMap<NodeId, i64>>);

impl Clocks {
    /// Keeps what a node says of the time of day, with what this manager says; both in seconds since 1970.
    pub(crate) fn heard(&self, node: &NodeId, theirs: i64, ours: i64) {
        let ahead = theirs.saturating_sub(ours);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.unsigned_abs() > TOLERATED_SECS {
            known.insert(node.clone(), ahead);
        } else if ahead.unsigned_abs() <= AGREES_SECS {
            known.remove(node);
        }
    }

    /// The nodes whose clock is off, and by how many seconds each is ahead.
    pub(crate) fn off(&self) -> BTreeMap<NodeId, i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is wrong with a node's clock that is so many seconds ahead of the one on manager `here`.
pub(crate) fn trouble(ahead: i64, here: &str) -> Problem {
    let (secs, side) = (ahead.unsigned_abs(), if ahead < 0 { "behind" } else { "ahead of" });
    Problem { what: format!("its clock is {secs} s {side} the coordinator's on {here}"), hint: HINT.to_owned() }
}

/// Whose clock was logged as off, so that each is named once.
#[derive(Debug, Default)]
pub(crate) struct Told(BTreeSet<NodeId>);

impl Told {
    /// Logs what is news.
    pub(crate) fn tell(&mut self, off: &BTreeMap<NodeId, i64>, observed: &Observed) {
        let name = |id: &NodeId| observed.nodes.get(id).map(|node| node.hostname.clone());
        let here = name(&observed.me).unwrap_or_else(|| observed.me.to_string());
        for (id, ahead) in off {
            if let Some(node) = name(id).filter(|_| self.0.insert(id.clone())) {
                let Problem { what, hint } = trouble(*ahead, &here);
                tracing::warn!(node, hint, "{what}");
            }
        }
        for id in self.0.extract_if(.., |id| !off.contains_key(id)) {
            tracing::info!(node = name(&id), "its clock agrees with this manager's again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::Role;
    use crate::plan::simulation;

    #[test]
    fn a_clock_is_off_by_more_than_a_report_is_on_its_way() {
        let (clocks, node) = (Clocks::default(), NodeId::from("w1"));
        for (theirs, ahead) in [
            (1060, None),
            (1061, Some(61)),
            (1031, Some(61)),
            (970, None),
            (-2600, Some(-3600)),
            (969, Some(-3600)),
            (1000, None),
        ] {
            clocks.heard(&node, theirs, 1000);
            assert_eq!(clocks.off().get(&node).copied(), ahead, "{theirs}");
        }
        clocks.heard(&node, i64::MIN, i64::MAX);
        assert!(trouble(clocks.off()[&node], "m1").what.contains("behind the coordinator's on m1"));
        assert!(trouble(3600, "m1").what.contains("3600 s ahead of the coordinator's on m1"));
    }

    #[test]
    fn each_is_named_once() {
        let nodes = [simulation::node("m1", Role::Manager), simulation::node("w1", Role::Worker)];
        let observed = Observed {
            me: nodes[0].id.clone(),
            has_leader: true,
            nodes: nodes.iter().map(|node| (node.id.clone(), node.clone())).collect(),
            tasks: Vec::new(),
            global_services: Vec::new(),
            agents: BTreeMap::new(),
            autolocked: false,
        };
        let mut told = Told::default();
        let off = BTreeMap::from([(nodes[1].id.clone(), 3600), (NodeId::from("removed"), 3600)]);
        for _ in 0..2 {
            told.tell(&off, &observed);
            assert_eq!(told.0, BTreeSet::from([nodes[1].id.clone()]));
        }
        told.tell(&BTreeMap::new(), &observed);
        assert_eq!(told.0, BTreeSet::new());
    }
}
