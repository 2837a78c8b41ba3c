//! What the executor sees of the engine, kept while it is down.

use std::io;
use std::time::Duration;

use requeen_protocol::EngineFacts;
use tokio::time::Instant;

use crate::engine::api::{Api, ApiError, SwarmFacts};
use crate::engine::facts::{self, DigestCache};
use crate::host::HostRoot;
use crate::host::layout::Layout;
use crate::identity::{Files, Stamp};
use crate::staged::replace;
use crate::unlock::Keys;

/// What the engine said of its swarm, as a path of the host: an executor that starts while the engine
/// is down still finds its managers.
pub(super) const SWARM_PATH: &str = "/var/lib/requeen/agent/swarm.json";

/// Nothing waits for these answers but the next report.
const API_LIMIT: Duration = Duration::from_secs(5);

/// A node whose certificate was replaced may be out of every swarm for long: each look makes its engine start programs.
const AGAIN: Duration = Duration::from_secs(10);

/// Keeps the swarm for an executor that starts while the engine is down.
pub(crate) fn keep(root: &HostRoot, swarm: &SwarmFacts) -> io::Result<()> {
    replace(&root.join(SWARM_PATH), &serde_json::to_vec_pretty(swarm)?)
}

/// The engine from outside, as seen last.
#[derive(Debug)]
pub(crate) struct Observed {
    root: HostRoot,
    layout: Option<Layout>,
    cache: DigestCache,
    keys: Keys,
    /// An open client of the engine that runs: to make one asks for versions, and the engine starts programs for that.
    api: Option<Api>,
    /// The swarm; empty until the engine has answered once.
    pub(crate) swarm: SwarmFacts,
    /// The certificate's files at that time.
    stamp: Option<Stamp>,
    /// When they were last found to be others.
    replaced: Option<Instant>,
    /// The engine; none while it is down.
    pub(crate) engine: Option<EngineFacts>,
    /// Containers of swarm tasks; none if the engine does not say.
    pub(crate) task_containers: Option<u32>,
}

impl Observed {
    /// Starts from what the last executor kept.
    pub(crate) fn new(root: &HostRoot, layout: Option<Layout>, keys: &Keys) -> Self {
        let kept = std::fs::read(root.join(SWARM_PATH)).ok();
        Self {
            root: root.clone(),
            layout,
            cache: DigestCache::default(),
            keys: keys.clone(),
            api: None,
            stamp: None,
            replaced: None,
            swarm: kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_else(SwarmFacts::unknown),
            engine: None,
            task_containers: None,
        }
    }

    /// The engine is about to go, or is another one now.
    pub(crate) fn forget_engine(&mut self) {
        self.engine = None;
        self.api = None;
    }

    async fn api(&mut self) -> Result<Api, ApiError> {
        match &self.api {
            Some(api) => Ok(api.clone()),
            None => Ok(self.api.insert(Api::connect(&self.root, API_LIMIT).await?).clone()),
        }
    }

    /// Looks at the engine again, if `again` or if it was not seen since it came up.
    pub(crate) async fn refresh(&mut self, again: bool) {
        if !again && self.engine.is_some() {
            return;
        }
        self.engine = self.look().await.ok();
        if self.engine.is_none() {
            self.api = None;
        }
    }

    /// Looks at the swarm again if the node's certificate was replaced: a node that leaves its swarm and joins once more is
    /// another one.
    pub(crate) async fn refresh_identity(&mut self) {
        let soon = self.replaced.is_some_and(|at| at.elapsed() < AGAIN);
        if soon || self.stamp.as_ref() == Some(&self.files().stamp()) {
            return;
        }
        self.replaced = Some(Instant::now());
        if let Ok(engine) = self.look().await {
            self.engine = Some(engine);
        }
    }

    fn files(&self) -> Files {
        Files::new(&self.root, &self.swarm.data_root)
    }

    /// Asks the engine for its swarm's unlock key, where one is needed.
    pub(crate) async fn keep_up_keys(&self) {
        self.keys.keep_up(&self.root, &self.swarm.data_root).await;
    }

    async fn look(&mut self) -> Result<EngineFacts, ApiError> {
        let api = self.api().await?;
        let stamp = self.files().stamp();
        let swarm = api.swarm().await?;
        // An engine that has just started may not know its managers yet.
        if !swarm.managers.is_empty() {
            (self.swarm, self.stamp) = (swarm, Some(stamp));
        }
        // While the engine is down nobody else has the key that its manager's files need.
        self.keep_up_keys().await;
        let files = facts::read_files(&self.root, self.layout.as_ref(), &mut self.cache).await;
        facts::engine(&self.root, &api, files).await
    }

    /// Whether the node was demoted and has yet to get a worker's certificate. An engine that is started with the old one
    /// becomes a manager again, which the others then miss.
    pub(crate) async fn is_being_demoted(&mut self) -> bool {
        // What can't be read keeps nothing from being stopped: it says nothing of a role.
        if !self.files().names_a_manager().unwrap_or(false) {
            return false;
        }
        match self.api().await {
            Ok(api) => api.is_manager().await.is_ok_and(|manager| !manager),
            Err(_) => false,
        }
    }

    /// Counts the containers of swarm tasks.
    pub(crate) async fn refresh_tasks(&mut self) {
        self.task_containers = match self.api().await {
            Ok(api) => api.task_containers().await.ok(),
            Err(_) => None,
        };
        if self.task_containers.is_none() {
            self.api = None;
        }
    }
}
