//! `undeploy`: takes away what was deployed. The agents clean their hosts first, for nobody else can; then the swarm's part
//! goes, and last what the server itself has stored.

use std::collections::BTreeSet;
use std::time::Duration;

use requeen_protocol::{Cleaning, NodeId, NodeState, RECOVER_UNIT, RESUME_UNIT, STATE_DIR, Speaker};
use tokio::time::Instant;

use super::Ops;
use super::prepare::AGENTS_WITHIN;
use crate::api::{CleanedNode, Deployment, Failure, FailureKind, ReachedNode, SilentNode, UndeployArgs, Undeployed};
use crate::deploy::{self, AgentService};
use crate::plan::SILENT_SECS;
use crate::plan::errand::{Errand, is_done};
use crate::plan::model::{AgentView, NodeView, Observed};
use crate::plan::reasons::WaitingFor;
use crate::plan::refuse;
use crate::record::{self, Stored};
use crate::server::store;
use crate::server::words::chain;

/// How long agents may take to clean their hosts: as long as staging that was given up takes to end.
const CLEAN_WITHIN: Duration = Duration::from_secs(60);

/// How long the tasks of a service that was removed may take to end: their grace period, and the swarm's own time.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// How often the swarm is asked whether they have: it tells nobody.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What was found before anything is removed.
struct Found {
    observed: Observed,
    services: Vec<AgentService>,
    deployment: Deployment,
}

impl Ops {
    /// What is deployed; refused while a rollout is open or being prepared. Changes nothing.
    pub async fn deployment(&self) -> Result<Deployment, Failure> {
        let _one = self.prepare_alone()?;
        Ok(self.find(false).await?.deployment)
    }

    /// Takes it away.
    pub async fn undeploy(&self, args: UndeployArgs) -> Result<Undeployed, Failure> {
        let _one = self.prepare_alone()?;
        let Found { observed, services, deployment } = self.find(args.backups).await?;
        let mut done = Undeployed {
            nothing: deployment.is_nothing(),
            services: Vec::new(),
            records: Vec::new(),
            cleaned: Vec::new(),
            silent: deployment.silent,
            troubles: Vec::new(),
            server_node: observed.nodes.get(&observed.me).map_or_else(String::new, |node| node.hostname.clone()),
            data_dir: self.data_dir.display().to_string(),
        };
        if done.nothing {
            done.silent.clear();
            return Ok(done);
        }
        let errand = Errand::Clean { backups: args.backups };
        let _under_way = self.send(errand.clone());
        self.until(CLEAN_WITHIN, || {
            let agents = self.hub.agents();
            let waits = |node: &ReachedNode| {
                agents
                    .get(&NodeId(node.id.clone()))
                    .is_some_and(|agent| agent.silent_secs <= SILENT_SECS && !is_done(&errand, &agent.report))
            };
            !deployment.reached.iter().any(waits)
        })
        .await;
        self.judge(&deployment.reached, &errand, args.backups, &mut done)?;

        // What agents did took its time; a rollout that another manager has started since must keep its agents.
        self.begin().await.map_err(midway)?;
        let docker = self.engine.client().await.map_err(|error| midway(error.into()))?;
        for service in &services {
            deploy::remove(&docker, service).await.map_err(|error| midway(error.failure()))?;
            tracing::info!(service = service.name, "removed");
            done.services.push(service.name.clone());
        }
        {
            let _turn = self.turn.lock().await;
            done.records = record::remove_all(&docker).await.map_err(|error| midway(error.into()))?;
        }
        tracing::info!(records = done.records.len(), "removed");
        self.until_gone(&services).await;
        for node in deployment.reached.iter().filter(|node| !node.by_hand) {
            self.hub.forget_node(&NodeId(node.id.clone()));
        }
        self.bundles().clear();
        let removed = store::remove_all(&self.data_dir.join("bundles")).await;
        done.troubles.extend(removed.err().map(|error| chain(&error)));
        Ok(done)
    }

    async fn find(&self, backups: bool) -> Result<Found, Failure> {
        let (observed, earlier) = self.begin().await?;
        let docker = self.engine.client().await?;
        let services = deploy::services(&docker).await.map_err(|error| error.failure())?;
        let tasks_on: BTreeSet<&NodeId> = observed
            .tasks
            .iter()
            .filter(|task| task.running && services.iter().any(|service| service.name == task.service))
            .filter_map(|task| task.node.as_ref())
            .collect();
        // A server that has just started was not called by all of them yet.
        self.until(AGENTS_WITHIN, || {
            let agents = self.hub.agents();
            tasks_on.iter().all(|node| agents.contains_key(node))
        })
        .await;

        let agents = self.hub.agents();
        let everyone = observed.nodes.keys().cloned().collect();
        let mut deployment = Deployment {
            services: services.iter().map(|service| service.name.clone()).collect(),
            records: record::names(&docker).await?,
            ..Deployment::default()
        };
        for node in refuse::order(&observed, &everyone).iter().filter_map(|id| observed.nodes.get(id)) {
            let agent = agents.get(&node.id);
            if agent.is_some_and(|agent| agent.silent_secs <= SILENT_SECS) {
                let by_hand = !tasks_on.contains(&node.id);
                deployment.reached.push(ReachedNode {
                    id: node.id.to_string(),
                    hostname: node.hostname.clone(),
                    by_hand,
                });
            } else if agent.is_some() || tasks_on.contains(&node.id) || was_in_scope(&earlier, &node.id) {
                deployment.silent.push(SilentNode {
                    hostname: node.hostname.clone(),
                    why: silence(node, agent),
                    command: by_hand(backups),
                });
            }
        }
        Ok(Found { services, deployment, observed })
    }

    /// Puts what became of every node that was reached into `done`. Fails where a node can't do without its agent: then
    /// nothing of the swarm's part was touched.
    fn judge(
        &self,
        reached: &[ReachedNode],
        errand: &Errand,
        backups: bool,
        done: &mut Undeployed,
    ) -> Result<(), Failure> {
        let agents = self.hub.agents();
        let mut busy = Vec::new();
        for ReachedNode { id, hostname, by_hand: by_hand_there } in reached {
            let agent = agents.get(&NodeId(id.clone()));
            let state = agent.filter(|agent| is_done(errand, &agent.report)).map(|agent| &agent.report.state);
            if let Some(NodeState::Cleaned { cleaning, .. }) = state {
                match cleaning.clone() {
                    Cleaning::Done { left, more } => done.cleaned.push(CleanedNode {
                        hostname: hostname.clone(),
                        by_hand: *by_hand_there,
                        left,
                        more,
                    }),
                    Cleaning::Refused { problem } => {
                        busy.push(format!("{hostname}: {} ({})", problem.what, problem.hint));
                    }
                }
            } else if agent.is_some_and(|agent| agent.report.speaker == Speaker::Executor) {
                busy.push(format!("{hostname}: an executor works on it"));
            } else {
                done.silent.push(SilentNode {
                    hostname: hostname.clone(),
                    why: format!("its agent has not cleaned within {} s", CLEAN_WITHIN.as_secs()),
                    command: by_hand(backups),
                });
            }
        }
        if busy.is_empty() {
            return Ok(());
        }
        Err(Failure {
            kind: FailureKind::Failed,
            error: format!("nodes have work that an agent has to finish, so the agents stay:\n{}", busy.join("\n")),
            hint: Some("other nodes may have been cleaned; let these finish, then type it again".to_owned()),
        })
    }

    /// Waits until the removed services' tasks have ended: until then their agents still call.
    async fn until_gone(&self, services: &[AgentService]) {
        let deadline = Instant::now() + GONE_WITHIN;
        while !services.is_empty() && Instant::now() < deadline {
            let of = |name: &str| services.iter().any(|service| service.id == name || service.name == name);
            match self.observe().await {
                Ok(seen) if !seen.tasks.iter().any(|task| task.alive && of(&task.service)) => return,
                Ok(_) | Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }
}

/// A failure after something was changed already: not a refusal, whatever it would be otherwise.
fn midway(failure: Failure) -> Failure {
    let kind = match failure.kind {
        FailureKind::Refused | FailureKind::Failed => FailureKind::Failed,
        FailureKind::Unreachable => FailureKind::Unreachable,
    };
    let again = "hosts were cleaned; type it again when that is settled, and it goes on";
    let hint = failure.hint.map_or_else(|| again.to_owned(), |hint| format!("{hint}; {again}"));
    Failure { kind, hint: Some(hint), ..failure }
}

fn was_in_scope(earlier: &[Stored], node: &NodeId) -> bool {
    earlier.iter().any(|stored| stored.rollout.nodes.contains_key(node))
}

fn silence(node: &NodeView, agent: Option<&AgentView>) -> String {
    match agent {
        _ if !node.ready => "the node is down".to_owned(),
        Some(agent) => WaitingFor::SilentAgent { secs: agent.silent_secs }.to_string(),
        None => WaitingFor::Agent.to_string(),
    }
}

/// What removes on a node what its agent would have removed, but for copies of its swarm folder: which of those are the
/// operator's, only the agent tells. Without `backups` all sets stay; with them an engine that
/// starts through links into them keeps them.
fn by_hand(backups: bool) -> String {
    let folders = ["agent", "bin"].map(|folder| format!("{STATE_DIR}/{folder}")).join(" ");
    let units = [RECOVER_UNIT, RESUME_UNIT].map(|unit| format!("-name {unit}")).join(" -o ");
    let units = format!("find /etc/systemd/system \\( {units} \\) -delete");
    let sets = format!(" && [ -z \"$(find /usr -lname '{STATE_DIR}/*')\" ] && rm -rf {STATE_DIR}/engines");
    if backups { format!("{units}; rm -rf {folders}{sets}") } else { format!("{units}; rm -rf {folders}") }
}
