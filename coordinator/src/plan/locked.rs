//! Managers that may be locked. In an autolocked swarm one whose engine was started without its key says nothing: its
//! agent can't read the node's key either. So the silence itself has to be explained.

use requeen_protocol::NodeId;

use super::SILENT_SECS;
use super::model::{NodeView, Observed, Role};
use super::reasons::WaitingFor;

/// What to do on a manager that may be locked, beside all else that brings a node back.
pub const HINT: &str = "this swarm is autolocked: if its engine runs, type `docker swarm unlock` on it";

/// Whether the manager may be locked: the others do not reach it, and its agent is silent.
pub fn may_be_locked(observed: &Observed, id: &NodeId) -> Option<WaitingFor> {
    let out_of_reach = |node: &&NodeView| node.role == Role::Manager && !node.reachable;
    observed.nodes.get(id).filter(out_of_reach).filter(|_| observed.autolocked)?;
    let secs = observed.agents.get(id).map(|agent| agent.silent_secs);
    secs.is_none_or(|secs| secs > SILENT_SECS).then_some(WaitingFor::Unlock { silent_secs: secs })
}

#[cfg(test)]
mod tests {
    use super::super::tests::swarm;
    use super::*;

    #[test]
    fn only_a_silent_manager_out_of_reach_of_an_autolocked_swarm_may_be_locked() {
        let (_, mut observed, _) = swarm(&["m1", "m2", "w1"]);
        let (manager, worker) = (NodeId::from("id-m2"), NodeId::from("id-w1"));
        observed.autolocked = true;
        assert_eq!(may_be_locked(&observed, &manager), None, "it is reachable");
        observed.nodes.get_mut(&manager).unwrap().reachable = false;
        assert_eq!(may_be_locked(&observed, &manager), None, "its agent speaks, and would say so");
        for id in [&manager, &worker] {
            observed.agents.get_mut(id).unwrap().silent_secs = SILENT_SECS + 1;
        }
        let words = may_be_locked(&observed, &manager).unwrap().to_string();
        assert!(words.contains("31 s") && words.contains("docker swarm unlock"), "{words}");
        assert_eq!(may_be_locked(&observed, &worker), None, "workers have no lock");
        observed.agents.remove(&manager);
        assert_eq!(may_be_locked(&observed, &manager), Some(WaitingFor::Unlock { silent_secs: None }));
        observed.autolocked = false;
        assert_eq!(may_be_locked(&observed, &manager), None);
    }
}
