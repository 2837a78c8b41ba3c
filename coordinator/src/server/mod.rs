//! `serve`: the port for agents, the socket for the operator, and the driver, from one process.
//!
//! All that they share is in memory and rebuilt after a restart: what must survive is in the swarm's raft
//! store, in the bundles' folder, or on the nodes themselves.

mod agents;
mod collect;
mod descriptors;
mod doors;
mod download;
mod fetch;
pub(crate) mod operator;
mod refusals;
pub(crate) mod store;
mod unlock;
mod waiting;
pub(crate) mod words;

#[cfg(test)]
mod strangers_tests;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bollard::models::LocalNodeState;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::api::{Failure, FailureKind};
use crate::deploy::Deployer;
use crate::diag::Diag;
use crate::diag::log::LogTail;
use crate::drive;
use crate::hub::{Clock, Hub};
use crate::identity::files::{CertificateFiles, FilesError};
use crate::identity::gate::Gate;
use crate::identity::swarm::{Managers, Swarm};
use crate::observe::{Engine, ObserveError};
use crate::ops::Ops;
use operator::{Operator, SocketError, VERSION};
use words::chain;

/// Name of the operator's socket in the data folder.
pub const SOCKET: &str = "requeen.sock";

/// How often the engine is asked while its swarm is not up yet.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What `serve` is told.
#[derive(Clone, Debug)]
pub struct ServeArgs {
    /// TCP port for agents.
    pub port: u16,
    /// Where bundles and the socket are: `/var/lib/requeen`.
    pub data_dir: PathBuf,
    /// The engine's socket.
    pub docker_socket: PathBuf,
    /// The engine's swarm folder, with its certificates: `/var/lib/docker/swarm`.
    pub swarm_dir: PathBuf,
    /// Address to listen on instead of the one by which the swarm knows this node.
    pub bind: Option<IpAddr>,
    /// How long the owner of a rollout may be silent before this coordinator takes the rollout over.
    pub take_over_after: Duration,
    /// Whether it takes over an open rollout at once.
    pub take_over: bool,
    /// What is logged, for `diag`.
    pub log: Arc<LogTail>,
}

/// The server can't run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No socket of an engine.
    #[error("there is no Docker Engine's socket at {}", socket.display())]
    NoSocket {
        /// Where it should be.
        socket: PathBuf,
    },
    /// The engine does not answer on it.
    #[error("the engine on {} does not answer", socket.display())]
    Engine {
        /// Its socket.
        socket: PathBuf,
        /// What the client said.
        source: ObserveError,
    },
    /// The engine is in no swarm.
    #[error("this engine is in no swarm (its state is `{state}`{})", detail(error))]
    NoSwarm {
        /// Local state.
        state: String,
        /// What the engine says of it.
        error: String,
    },
    /// The engine is a worker's.
    #[error("this node is not a manager")]
    NotManager,
    /// The certificates can't be used.
    #[error("this node's swarm certificate can't be used")]
    Certificates {
        /// What to do.
        hint: Option<String>,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The swarm gives no address for this node.
    #[error("the engine names no address of this node (`docker info`, Node Address: `{address}`)")]
    NoAddress {
        /// What it gave.
        address: String,
    },
    /// Somebody listens there.
    #[error("{address} is taken by another process")]
    PortTaken {
        /// Where.
        address: SocketAddr,
    },
    /// Nobody can listen there.
    #[error("can't listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The data folder can't be used.
    #[error("can't use the folder {}", dir.display())]
    DataDir {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another server runs here.
    #[error("another coordinator serves on {} already", socket.display())]
    SocketTaken {
        /// Where.
        socket: PathBuf,
    },
    /// The operator's socket broke.
    #[error("the operator's socket failed")]
    Socket(#[source] io::Error),
}

fn detail(error: &str) -> String {
    if error.is_empty() { String::new() } else { format!(": {error}") }
}

impl ServeError {
    /// Which kind; it decides the exit code.
    pub fn kind(&self) -> FailureKind {
        match self {
            ServeError::NoSocket { .. } | ServeError::Engine { .. } => FailureKind::Unreachable,
            ServeError::NoSwarm { .. }
            | ServeError::NotManager
            | ServeError::Certificates { .. }
            | ServeError::NoAddress { .. }
            | ServeError::PortTaken { .. }
            | ServeError::Listen { .. }
            | ServeError::DataDir { .. }
            | ServeError::SocketTaken { .. } => FailureKind::Refused,
            ServeError::Socket(_) => FailureKind::Failed,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            ServeError::NoSocket { .. } => "mount it: `-v /var/run/docker.sock:/var/run/docker.sock`",
            ServeError::Engine { .. } => "is the engine running (`systemctl status docker`)?",
            ServeError::NoSwarm { .. } => "run it on a manager of the swarm",
            ServeError::NotManager => "run it on a manager; `docker node ls` there names them all",
            ServeError::Certificates { hint, .. } => return hint.clone(),
            ServeError::NoAddress { .. } => "choose one: `--bind ADDRESS`",
            ServeError::PortTaken { .. } => {
                "`ss -ltnp` shows who it is; choose another port with `--port`, then `requeen deploy` tells the agents"
            }
            ServeError::Listen { .. } => "the container needs `--network host`; or choose an address with `--bind`",
            ServeError::DataDir { .. } => "mount it: `-v /var/lib/requeen:/var/lib/requeen`",
            ServeError::SocketTaken { .. } => "one coordinator per node: `docker ps --filter name=requeen`",
            ServeError::Socket(_) => return None,
        };
        Some(hint.to_owned())
    }

    /// Kind, words and hint together.
    pub fn failure(&self) -> Failure {
        Failure { kind: self.kind(), error: chain(self), hint: self.hint() }
    }
}

/// Serves until `shutdown`.
///
/// # Errors
///
/// Before anything is served: the engine, the swarm, the certificates, the folder, the port or the socket
/// can't be used. Later only [`ServeError::Socket`].
pub async fn serve(args: ServeArgs, shutdown: CancellationToken) -> Result<(), ServeError> {
    let clock: Clock = Arc::new(Instant::now);
    let engine = Arc::new(Engine::new(args.docker_socket.clone()));
    let Some((node_addr, console)) = until_manager(&engine, &args, &shutdown).await? else { return Ok(()) };

    let gate = Gate::new(Managers(Arc::clone(&engine)), CertificateFiles::new(&args.swarm_dir), Arc::clone(&clock));
    if !until_readable(&gate, &shutdown).await? {
        return Ok(());
    }
    let bundles = args.data_dir.join("bundles");
    store::prepare(&bundles).await.map_err(|error| data_dir(&args, error))?;
    let address = address(&args, &node_addr)?;
    let listener = listen(address).await?;
    let socket = args.data_dir.join(SOCKET);
    let console = match console {
        Some(console) => console,
        None => listen_to_operator(&args).await?,
    };

    match descriptors::raise() {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files, and so of nodes, stays as it is"),
    }

    let hub = Arc::new(Hub::new(Arc::clone(&clock)));
    let mut ops = Ops::new(Arc::clone(&hub), Arc::clone(&engine), args.data_dir.clone());
    ops.take_over_after = args.take_over_after;
    if args.take_over {
        ops.tell_to_take_over();
    }
    let ops = Arc::new(ops);
    let agents = Arc::new(agents::Agents::new(gate, Arc::clone(&hub), bundles.clone()));
    let deployer = Deployer::new(engine, hub, args.port, VERSION, PathBuf::from("/proc/self"));
    let fetcher = Arc::new(fetch::Fetcher::new(bundles.clone()));
    let diag = Arc::new(Diag::new(Arc::clone(&ops), args.log, VERSION));
    let operator = Arc::new(Operator { ops: Arc::clone(&ops), deployer, fetcher, diag, bundles });
    tracing::info!(%address, socket = %socket.display(), version = VERSION, "serving");

    let (_, served, _) = tokio::join!(
        agents::serve(listener, agents, shutdown.clone().cancelled_owned()),
        // If the socket breaks nobody could tell this server anything any more: all ends.
        async {
            let served = operator::serve(console, operator, shutdown.clone().cancelled_owned()).await;
            shutdown.cancel();
            served
        },
        drive::run(ops, shutdown.clone()),
    );
    served.map_err(ServeError::Socket)
}

/// Waits until the engine is a manager again, as after its own restart, and gives its address, with the operator's socket
/// if that was opened meanwhile. `None`: told to stop meanwhile.
async fn until_manager(
    engine: &Engine,
    args: &ServeArgs,
    shutdown: &CancellationToken,
) -> Result<Option<(String, Option<UnixListener>)>, ServeError> {
    let mut said = String::new();
    let mut console = None;
    let why = Arc::new(Mutex::new(waiting::failure(LocalNodeState::PENDING)));
    loop {
        let socket = || args.docker_socket.clone();
        if !args.docker_socket.exists() {
            return Err(ServeError::NoSocket { socket: socket() });
        }
        let client = engine.client().await.map_err(|source| ServeError::Engine { socket: socket(), source })?;
        let info = client
            .info()
            .await
            .map_err(|source| ServeError::Engine { socket: socket(), source: ObserveError::Info(source) })?;
        let swarm = info.swarm.unwrap_or_default();
        let state = swarm.local_node_state.unwrap_or(LocalNodeState::EMPTY);
        match state {
            LocalNodeState::ACTIVE if swarm.control_available == Some(true) => {
                return Ok(Some((swarm.node_addr.unwrap_or_default(), console)));
            }
            LocalNodeState::ACTIVE => return Err(ServeError::NotManager),
            LocalNodeState::PENDING | LocalNodeState::LOCKED => {
                let now = state.to_string();
                let failure = waiting::failure(state);
                if said != now {
                    let hint = failure.hint.as_deref();
                    tracing::info!(state = now, hint, "waiting for this engine's swarm to become active");
                    said = now;
                }
                *why.lock().unwrap_or_else(PoisonError::into_inner) = failure;
                if console.is_none() {
                    console = Some(listen_to_operator(args).await?);
                }
            }
            LocalNodeState::EMPTY | LocalNodeState::INACTIVE | LocalNodeState::ERROR => {
                let error = swarm.error.unwrap_or_default();
                return Err(ServeError::NoSwarm { state: state.to_string(), error });
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            // The engine has no event for this.
            () = tokio::time::sleep(ASK_AGAIN) => {}
            never = turn_away(console.as_ref(), Arc::clone(&why)) => match never {},
        }
    }
}

async fn turn_away(console: Option<&UnixListener>, why: Arc<Mutex<Failure>>) -> Infallible {
    match console {
        Some(console) => waiting::turn_away(console, why).await,
        None => std::future::pending().await,
    }
}

async fn listen_to_operator(args: &ServeArgs) -> Result<UnixListener, ServeError> {
    operator::listen(&args.data_dir.join(SOCKET)).await.map_err(|error| match error {
        SocketError::Taken { path } => ServeError::SocketTaken { socket: path },
        error @ SocketError::Make { .. } => data_dir(args, error),
    })
}

/// Waits until this manager's certificate can be served with: in an autolocked swarm its key is read with the unlock key,
/// which the engine gives once the managers have a leader. False: told to stop meanwhile.
async fn until_readable<S: Swarm>(gate: &Gate<S>, shutdown: &CancellationToken) -> Result<bool, ServeError> {
    let mut said = false;
    loop {
        let error = match gate.tls().await {
            Ok(_) => return Ok(true),
            Err(error @ FilesError::Encrypted { .. }) => error,
            Err(error) => return Err(ServeError::Certificates { hint: error.hint(), source: Box::new(error) }),
        };
        if !said {
            tracing::info!(hint = error.hint(), "waiting: {}", chain(&error));
            said = true;
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(false),
            () = tokio::time::sleep(ASK_AGAIN) => {}
        }
    }
}

fn address(args: &ServeArgs, node_addr: &str) -> Result<SocketAddr, ServeError> {
    let ip = match args.bind {
        Some(ip) => ip,
        None => node_addr.parse().map_err(|_| ServeError::NoAddress { address: node_addr.to_owned() })?,
    };
    Ok(SocketAddr::new(ip, args.port))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            ServeError::PortTaken { address }
        } else {
            ServeError::Listen { address, source }
        }
    })
}

fn data_dir(args: &ServeArgs, error: impl std::error::Error + Send + Sync + 'static) -> ServeError {
    ServeError::DataDir { dir: args.data_dir.clone(), source: Box::new(error) }
}
