//! Staging: everything slow, while the engine runs and nothing is touched.

use std::fs::File;
use std::io;

use requeen_protocol::{Activity, Problem, Progress, Target};
use tokio::sync::watch;

use super::API_LIMIT;
use super::download;
use crate::client::Client;
use crate::engine::api::{Api, ApiError, SwarmFacts};
use crate::host::HostRoot;
use crate::host::layout;
use crate::reporter::Backoff;
use crate::sets::{SetId, Store};
use crate::stage::preflight::{self, PreflightInput};
use crate::staged::{Outcome, Staged, Wanted};
use crate::standalone::Container;
use crate::words::chain;

/// Nothing done yet.
pub(crate) const START: Progress = Progress { activity: Activity::Inspect, done: 0, total: 0 };

/// What staging needs. As long as anything of it works, however it was told to end, a sender of its progress lives.
pub(crate) struct Order {
    pub(crate) root: HostRoot,
    pub(crate) client: Client,
    pub(crate) backoff: Backoff,
    pub(crate) swarm: SwarmFacts,
    pub(crate) wanted: Wanted,
    pub(crate) progress: watch::Sender<Progress>,
}

/// What is known of the engine before the host's files are looked at.
struct Engine {
    version: String,
    standalone: Vec<Container>,
}

/// Stages to the end and remembers the result on disk. Problems of the host are a result; an error
/// is a failure to find out.
pub(crate) async fn run(mut order: Order) -> io::Result<Staged> {
    let engine = engine(&order.root).await.map_err(io::Error::other)?;
    let outcome = match prepare(&mut order, engine).await {
        Ok(outcome) => outcome,
        Err(problems) => Outcome::Refused { problems },
    };
    let staged = Staged::new(order.wanted.clone(), outcome);
    staged.store(&order.root)?;
    Ok(staged)
}

async fn engine(root: &HostRoot) -> Result<Engine, ApiError> {
    let api = Api::connect(root, API_LIMIT).await?;
    let (version, _) = api.version().await?;
    let standalone = api.standalone().await?;
    Ok(Engine { version, standalone })
}

async fn prepare(order: &mut Order, engine: Engine) -> Result<Outcome, Vec<Problem>> {
    let root = order.root.clone();
    let target = order.wanted.target.clone();
    let version = engine.version.clone();
    let allow_downgrade = order.wanted.allow_downgrade;
    let alive = order.progress.clone();
    let (layout, store, old) = blocking(&alive, move || {
        let layout = layout::discover(&root)?;
        if let Target::Bundle(bundle) = &target {
            preflight::before_fetching(&root, bundle, &version, allow_downgrade)?;
        }
        let store = Store::open(&root).map_err(|error| problem(&error))?;
        let old = store.capture(&layout, &version).map_err(|error| problem(&error))?;
        Ok((layout, store, old))
    })
    .await?;

    let new = match order.wanted.target.clone() {
        Target::Bundle(bundle) => {
            let tell = |done| {
                order.progress.send_replace(Progress { activity: Activity::Download, done, total: bundle.size });
            };
            tell(0);
            let path = download::fetch(&order.root, &order.client, &mut order.backoff, &order.swarm, &bundle, &tell)
                .await
                .map_err(|error| vec![error.into()])?;
            let (store, base, progress) = (store.clone(), old.clone(), order.progress.clone());
            blocking(&alive, move || {
                let mut tell = |done| {
                    progress.send_replace(Progress { activity: Activity::Unpack, done, total: bundle.size });
                };
                tell(0);
                if let Some(set) = store.staged(&bundle, &base).map_err(|error| problem(&error))? {
                    return Ok(set);
                }
                let file = File::open(&path).map_err(|error| problem(&error))?;
                store.stage(file, &bundle, &base, &mut tell).map_err(|error| problem(&error))
            })
            .await?
        }
        Target::Previous { .. } => previous(&store, &old)?,
    };

    order.progress.send_replace(Progress { activity: Activity::Check, done: 0, total: 0 });
    let root = order.root.clone();
    let input = PreflightInput {
        running_version: engine.version,
        allow_downgrade: order.wanted.allow_downgrade,
        arch: machine(),
        standalone: engine.standalone,
        copy_from: order.wanted.keep_raft_copy.then(|| order.swarm.data_root.clone()),
    };
    blocking(&alive, move || {
        let preflight = Box::new(preflight::check(&root, &layout, &store, &new, &old, &input)?);
        Ok(Outcome::Ready { preflight, old, new })
    })
    .await
}

fn previous(store: &Store, running: &SetId) -> Result<SetId, Vec<Problem>> {
    store.previous(running).map_err(|error| problem(&error))?.ok_or_else(|| {
        vec![Problem {
            what: "this node keeps no previous set of engine files".to_owned(),
            hint: "leave the node out, or give a bundle of the wanted version".to_owned(),
        }]
    })
}

/// The host's machine: a container shares the kernel that names it.
fn machine() -> String {
    nix::sys::utsname::uname().map(|name| name.machine().to_string_lossy().into_owned()).unwrap_or_default()
}

fn problem(error: &dyn std::error::Error) -> Vec<Problem> {
    vec![Problem { what: chain(error), hint: "see the agent's log on this node, then start again".to_owned() }]
}

/// Works on a thread, which holds `alive` to its end even if nobody waits for it any more.
async fn blocking<T: Send + 'static>(
    alive: &watch::Sender<Progress>,
    work: impl FnOnce() -> Result<T, Vec<Problem>> + Send + 'static,
) -> Result<T, Vec<Problem>> {
    let alive = alive.clone();
    let work = move || {
        let result = work();
        drop(alive);
        result
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(problem(&error)))
}
