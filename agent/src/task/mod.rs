//! The task: the agent's life in a container.
//!
//! It reports, gets targets ready, and starts the executor when the node is granted a lease. From
//! then on the executor speaks for the node, and the task waits for its end.

mod download;
mod orders;
mod staging;

use std::time::Duration;

use requeen_protocol::{
    Cleaning, EngineFacts, Installed, Lease, NodeState, Order, Problem, Progress, Report, RolloutId, Speaker,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::clean;
use crate::client::Client;
use crate::clock::{Clock, boot_id};
use crate::collect::Collector;
use crate::engine::api::{Api, ApiError, SwarmFacts};
use crate::engine::facts::{self, DigestCache};
use crate::host::HostRoot;
use crate::host::layout::{self, Layout};
use crate::installed::{self, Owners};
use crate::journal::Journal;
use crate::launch::{HandOver, launch};
use crate::lock;
use crate::memo;
use crate::memory;
use crate::reporter::{Backoff, Chance, Heard, Say, converse};
use crate::staged::{self, Staged, Wanted};
use crate::unlock::Keys;
use crate::words::chain;
use orders::Act;

/// How long the engine's API may take: a manager's can take 20 s.
const API_LIMIT: Duration = Duration::from_secs(30);
/// The longest pause between two attempts at anything.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How old the engine's word on itself may be: each time it starts two programs to ask them for their versions.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What the task needs from outside.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the host is.
    pub root: HostRoot,
    /// The coordinators' port.
    pub port: u16,
    /// How the executor is started.
    pub hand_over: HandOver,
    /// Tells the time.
    pub clock: Clock,
    /// Spreads the pauses.
    pub chance: Chance,
}

/// Lives until the process is told to end.
pub async fn run(options: Options) -> std::convert::Infallible {
    let mut backoff = Backoff::new(MAX_PAUSE, options.chance);
    let mut told = String::new();
    loop {
        match one_life(&options).await {
            Ok(()) => {
                backoff.reset();
                told.clear();
            }
            Err(error) => {
                let text = format!("{error:#}");
                if text != told {
                    tracing::info!("waiting: {text}");
                    told = text;
                }
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

/// From one executor's end to the next one's start.
async fn one_life(options: &Options) -> anyhow::Result<()> {
    let root = &options.root;
    if lock::is_held(root)? {
        tracing::info!("the executor speaks for this node; waiting for its end");
        lock::until_free(root).await?;
        tracing::info!("the executor has ended");
    }
    // A damaged journal is the executor's to report: it knows what may still be done.
    if Journal::load(root).map_or(true, |journal| journal.work.is_some()) {
        tracing::info!("work was left unfinished: starting the executor again");
        let way = launch(root, options.port, options.hand_over).await?;
        tracing::info!(%way, "the executor runs");
        return Ok(());
    }
    Task::begin(options).await?.speak().await
}

/// The task while it speaks for its node.
struct Task<'a> {
    options: &'a Options,
    boot_id: String,
    swarm: SwarmFacts,
    layout: Option<Layout>,
    cache: DigestCache,
    engine: Option<EngineFacts>,
    installed: Option<Installed>,
    owners: Owners,
    looked: Option<Instant>,
    state: NodeState,
    seen: Option<Box<Order>>,
    job: Option<Job>,
    /// Staging that was given up: open for as long as a thread of it still writes.
    given_up: Option<watch::Receiver<Progress>>,
    keys: Keys,
    say: watch::Sender<Option<Say>>,
    why: String,
}

/// Staging under way. Its thread is not stopped by dropping this; its result is ignored.
struct Job {
    wanted: Wanted,
    progress: watch::Receiver<Progress>,
    handle: JoinHandle<std::io::Result<Staged>>,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl<'a> Task<'a> {
    async fn begin(options: &'a Options) -> anyhow::Result<Self> {
        let root = &options.root;
        let swarm = observe_swarm(root).await?;
        anyhow::ensure!(
            !swarm.node.as_str().is_empty(),
            "this node's Docker Engine is in no swarm ({})",
            swarm.local_state
        );
        anyhow::ensure!(
            !swarm.managers.is_empty(),
            "the Docker Engine names no manager yet (swarm state {})",
            swarm.local_state
        );
        Ok(Self {
            boot_id: boot_id(root)?,
            layout: layout::discover(root).ok(),
            cache: DigestCache::default(),
            engine: None,
            installed: None,
            owners: Owners::default(),
            looked: None,
            state: Staged::load(root).map_or(NodeState::Idle, |staged| staged.state()),
            seen: None,
            job: None,
            given_up: None,
            keys: Keys::default(),
            say: watch::Sender::new(None),
            why: String::new(),
            swarm,
            options,
        })
    }

    async fn speak(mut self) -> anyhow::Result<()> {
        let (tell, mut heard) = mpsc::channel(1);
        let client = Client::new(&self.options.root, self.options.port, &self.keys);
        let backoff = Backoff::new(MAX_PAUSE, self.options.chance);
        let listen = self.say.subscribe();
        let collector = Collector::new(&self.options.root, self.options.clock);
        let talk = converse(client, self.options.clock, backoff, listen, tell, collector);
        let talk = AbortOnDrop(tokio::spawn(talk));
        tracing::info!(node = %self.swarm.node, "reporting to the swarm's managers");
        loop {
            self.publish().await;
            let (keys, data_root) = (self.keys.clone(), self.swarm.data_root.clone());
            tokio::select! {
                Some(heard) = heard.recv() => {
                    if let Some(lease) = self.obey(heard).await {
                        // Nobody may speak for the node between here and the executor's first word.
                        drop(talk);
                        return self.hand_over(&lease).await;
                    }
                }
                event = event_of(self.job.as_mut()) => match event {
                    JobEvent::Progress => self.progress(),
                    JobEvent::Ended(result) => self.staged(*result),
                },
                () = keys.learned(&self.options.root, &data_root) => {}
            }
        }
    }

    /// Says what is true now, whether or not it is new.
    async fn publish(&mut self) {
        if self.looked.is_none_or(|then| then.elapsed() >= LOOK_EVERY) {
            self.looked = Some(Instant::now());
            self.engine = self.look().await.ok();
        }
        let report = Report {
            node: self.swarm.node.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            speaker: Speaker::Task,
            boot_id: self.boot_id.clone(),
            engine: self.engine.clone(),
            installed: self.installed.clone(),
            state: self.state.clone(),
            seen: self.seen.clone(),
            memo: memo::load(&self.options.root),
            unreached: Vec::new(),
            troubles: Vec::new(),
        };
        self.say.send_replace(Some(Say { swarm: self.swarm.clone(), report }));
        if self.job.is_none() {
            memory::give_back();
        }
    }

    async fn look(&mut self) -> Result<EngineFacts, ApiError> {
        let root = self.options.root.clone();
        let api = Api::connect(&root, API_LIMIT).await?;
        let swarm = api.swarm().await?;
        // An engine that has lost its swarm still tells by its last word where managers are.
        if !swarm.managers.is_empty() {
            self.swarm = swarm;
        }
        let files = facts::read_files(&root, self.layout.as_ref(), &mut self.cache).await;
        self.installed = installed::look(&root, &files, &mut self.owners).await;
        facts::engine(&root, &api, files).await
    }

    /// Acts on an order; gives the lease for which the executor is to be started.
    async fn obey(&mut self, Heard { order, .. }: Heard) -> Option<Lease> {
        let under_way = self.job.as_ref().map(|job| &job.wanted);
        let known = Staged::load(&self.options.root).map(|staged| staged.wanted);
        let act = orders::act(&order, &self.swarm.node, &self.state, under_way.or(known.as_ref()));
        if let Order::Wait { why } = &order
            && *why != self.why
        {
            tracing::info!(node = %self.swarm.node, "waiting: {why}");
            self.why.clone_from(why);
            // New words are answered with what is true now.
            self.look_anew();
        }
        if matches!(self.state, NodeState::Cleaned { .. }) && !matches!(order, Order::Clean { .. }) {
            self.state = NodeState::Idle;
        }
        self.seen = Some(Box::new(order));
        match act {
            Act::Nothing => None,
            Act::Stage(wanted) => {
                self.stage(wanted);
                None
            }
            Act::HandOver(lease) => Some(lease),
            Act::Forget(rollout) => {
                self.forget(&rollout);
                None
            }
            Act::Clean { backups } => {
                self.clean(backups).await;
                None
            }
            Act::Refuse(why) => {
                tracing::warn!(node = %self.swarm.node, "order refused: {why}");
                None
            }
        }
    }

    /// The engine and its files are looked at before the next report.
    fn look_anew(&mut self) {
        self.layout = layout::discover(&self.options.root).ok();
        self.looked = None;
    }

    fn stage(&mut self, wanted: Wanted) {
        tracing::info!(node = %self.swarm.node, rollout = %wanted.rollout, step = "stage", "staging");
        let (tell, progress) = watch::channel(staging::START);
        let job = staging::run(staging::Order {
            root: self.options.root.clone(),
            client: Client::new(&self.options.root, self.options.port, &self.keys),
            backoff: Backoff::new(MAX_PAUSE, self.options.chance),
            swarm: self.swarm.clone(),
            wanted: wanted.clone(),
            progress: tell,
        });
        self.state = NodeState::Staging { rollout: wanted.rollout.clone(), progress: staging::START };
        self.job = Some(Job { wanted, progress, handle: tokio::spawn(job) });
    }

    fn staged(&mut self, ended: std::io::Result<Staged>) {
        self.job = None;
        self.state = match ended {
            Ok(staged) => staged.state(),
            Err(error) => {
                tracing::warn!(node = %self.swarm.node, "staging ended without a result: {}", chain(&error));
                // The order comes again when the server has held its answer, and is acted on anew.
                NodeState::Idle
            }
        };
        if let NodeState::Refused { problems, .. } = &self.state {
            for problem in problems {
                tracing::warn!(node = %self.swarm.node, step = "stage", "{}; hint: {}", problem.what, problem.hint);
            }
        } else {
            tracing::info!(node = %self.swarm.node, step = "stage", "staged");
        }
        // The engine's files may have been found only now.
        self.look_anew();
    }

    fn progress(&mut self) {
        if let Some(job) = &self.job {
            self.state = NodeState::Staging { rollout: job.wanted.rollout.clone(), progress: *job.progress.borrow() };
        }
    }

    fn give_up_staging(&mut self) {
        if let Some(job) = self.job.take() {
            self.given_up = Some(job.progress.clone());
        }
    }

    /// Takes away what agents left here. Nothing is made again before another order wants it.
    async fn clean(&mut self, backups: bool) {
        self.give_up_staging();
        if self.given_up.as_ref().is_some_and(|progress| progress.has_changed().is_ok()) {
            // The order comes again when the server has held its answer.
            tracing::info!(node = %self.swarm.node, step = "clean", "staging that was given up has yet to end");
            return;
        }
        self.given_up = None;
        let root = self.options.root.clone();
        let cleaned = tokio::task::spawn_blocking(move || clean::clean(&root, backups)).await;
        let cleaning = cleaned.unwrap_or_else(|error| Cleaning::Refused {
            problem: Problem { what: error.to_string(), hint: "see the agent's log on this node".to_owned() },
        });
        match &cleaning {
            Cleaning::Done { left, more } => {
                let left = left.len() as u64 + more;
                tracing::info!(node = %self.swarm.node, step = "clean", left, "cleaned");
            }
            Cleaning::Refused { problem } => {
                tracing::warn!(node = %self.swarm.node, step = "clean", "{}; hint: {}", problem.what, problem.hint);
            }
        }
        self.installed = None;
        self.state = NodeState::Cleaned { backups, cleaning };
    }

    fn forget(&mut self, rollout: &RolloutId) {
        self.give_up_staging();
        match staged::forget(&self.options.root) {
            Ok(()) => {
                tracing::info!(node = %self.swarm.node, %rollout, "the rollout has ended");
                self.state = NodeState::Idle;
            }
            Err(error) => {
                tracing::warn!(node = %self.swarm.node, "the rollout's files can't be removed: {error}");
            }
        }
    }

    async fn hand_over(self, lease: &Lease) -> anyhow::Result<()> {
        tracing::info!(node = %self.swarm.node, lease = %lease.id, step = "hand-over", "starting the executor");
        let way = launch(&self.options.root, self.options.port, self.options.hand_over).await?;
        tracing::info!(node = %self.swarm.node, lease = %lease.id, %way, "the executor runs");
        Ok(())
    }
}

async fn observe_swarm(root: &HostRoot) -> Result<SwarmFacts, ApiError> {
    Api::connect(root, API_LIMIT).await?.swarm().await
}

/// What staging does next.
enum JobEvent {
    Progress,
    Ended(Box<std::io::Result<Staged>>),
}

/// Waits until staging has ended or has progress worth telling; for ever if there is none.
async fn event_of(job: Option<&mut Job>) -> JobEvent {
    let Some(job) = job else {
        return std::future::pending().await;
    };
    let progress = async {
        tokio::time::sleep(PROGRESS_EVERY).await;
        if job.progress.changed().await.is_err() {
            // The end itself is what is waited for now.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        ended = &mut job.handle => {
            let result = ended.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            JobEvent::Ended(Box::new(result))
        }
        () = progress => JobEvent::Progress,
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
