//! `verify`: every agent looks at its node now, and what it finds is compared with what was installed ([`drift`]).

use std::time::Duration;

use requeen_protocol::NodeId;

use super::failure::refused;
use super::prepare::AGENTS_WITHIN;
use super::{Ops, drift};
use crate::api::{Failure, VerifyView};
use crate::plan::SILENT_SECS;
use crate::plan::errand::{Errand, is_done};

/// How long an agent that is connected may take to look: where files have changed it reads them.
const LOOK_WITHIN: Duration = Duration::from_secs(30);

impl Ops {
    /// Compares every node's files with those that were installed; changes nothing.
    pub async fn verify(&self) -> Result<VerifyView, Failure> {
        let _one = self.prepare_alone()?;
        let (observed, earlier) = self.begin().await?;
        let errand = Errand::Look { words: format!("the operator verifies this node's files ({})", self.fresh_id()?) };
        let _under_way = self.send(errand.clone());

        let ready: Vec<NodeId> =
            observed.nodes.values().filter(|node| node.ready).map(|node| node.id.clone()).collect();
        self.until(AGENTS_WITHIN, || {
            let agents = self.hub.agents();
            ready.iter().all(|node| agents.get(node).is_some_and(|agent| is_done(&errand, &agent.report)))
        })
        .await;
        // Those that were never heard have had their time; those that are connected get more.
        self.until(LOOK_WITHIN, || {
            let agents = self.hub.agents();
            let waits = |node: &NodeId| {
                agents
                    .get(node)
                    .is_some_and(|agent| agent.silent_secs <= SILENT_SECS && !is_done(&errand, &agent.report))
            };
            !ready.iter().any(waits)
        })
        .await;

        let observed = self.observe().await?;
        let rollouts: Vec<_> = earlier.iter().map(|stored| &stored.rollout).collect();
        drift::view(&observed, &rollouts, &|report| is_done(&errand, report)).ok_or_else(|| {
            refused(
                "nothing has been installed by requeen yet",
                "`requeen upgrade` installs; `requeen status` shows what runs",
            )
        })
    }
}
