//! The connectivity test: a web service on every node, clients that ask it without a pause and
//! remember each failure, and the report that places failures against a rollout's steps.
//!
//! `compose/probe.yaml` runs servers and clients. They know nothing of a rollout: all they give is
//! their log, one [`mod@line`] at a time, and only the [`report`] brings the two together.

pub mod client;
mod collect;
pub mod line;
pub mod report;
pub mod request;
pub mod server;

use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::pin::pin;
use std::time::Duration;

use bollard::Docker;
use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use jiff::Timestamp;
use tokio::net::TcpListener;

pub use collect::{PROBE_LABEL, collect};
pub use report::{ProbeReport, StepSpan, render_json, render_text};
use request::{Limits, Target};

/// Limits of each request.
const LIMITS: Limits = Limits { connect: Duration::from_secs(2), total: Duration::from_secs(5) };

/// How long each worker of a client rests between two requests.
const PAUSE: Duration = Duration::from_millis(50);

/// How a server ends. The name service's changes reach other nodes within a second or two, so two
/// seconds without a request mean that none will come. A change that is lost reaches them when nodes
/// next compare everything, every 30 s; the bound lies above that, and below the stop grace period of
/// `compose/probe.yaml`.
const FAREWELL: server::Farewell = server::Farewell { idle: Duration::from_secs(2), bound: Duration::from_secs(35) };

/// The connectivity test: a service on every node, clients that never stop asking it.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    #[command(subcommand)]
    command: ProbeCommand,
}

impl ProbeArgs {
    /// Whether the report is asked for, and if so, whether as JSON.
    pub fn report(&self) -> Option<bool> {
        match &self.command {
            ProbeCommand::Report(args) => Some(args.json),
            ProbeCommand::Server(_) | ProbeCommand::Client(_) | ProbeCommand::Check(_) => None,
        }
    }
}

#[derive(Debug, clap::Subcommand)]
enum ProbeCommand {
    /// Answer every request with 200 and this server's name
    Server(ServerArgs),
    /// Send requests without end, and log each failure and, every second, the counts
    Client(ClientArgs),
    /// Send one request; exit 0 if it was answered (the servers' health check)
    Check(CheckArgs),
    /// Count the clients' failures and place each against the rollout's steps
    Report(ReportArgs),
}

#[derive(Debug, clap::Args)]
struct ServerArgs {
    /// TCP port to listen on
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Name in every answer, after the hostname
    #[arg(long, env = "REQUEEN_PROBE_NAME")]
    name: Option<String>,
}

#[derive(Debug, clap::Args)]
struct ClientArgs {
    /// Address to ask; its name is resolved anew for each request
    #[arg(long, default_value = "http://probe-server:8080/")]
    target: Target,
    /// Requests under way at once
    #[arg(long, default_value = "5")]
    concurrency: NonZeroUsize,
    /// Name in every line; the hostname if absent
    #[arg(long, env = "REQUEEN_PROBE_NAME")]
    name: Option<String>,
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// Address to ask
    #[arg(long, default_value = "http://127.0.0.1:8080/health")]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct ReportArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Why the probe failed (not: why a request did; those are its results).
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The server's socket.
    #[error("listening on port {port}")]
    Listen {
        /// The TCP port.
        port: u16,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The server's work.
    #[error("serving requests")]
    Serve(#[source] std::io::Error),
    /// Where the name servers are.
    #[error("reading /etc/resolv.conf")]
    Resolver(#[source] NetError),
    /// Standard output.
    #[error("writing the output")]
    Write(#[source] std::io::Error),
    /// The health check's request; the text says why.
    #[error("no answer: {0}")]
    Check(String),
    /// The caller's word on the rollout.
    #[error("finding the rollout's steps")]
    Steps(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The lookup of the clients' service.
    #[error("listing the swarm's services")]
    ListServices(#[source] bollard::errors::Error),
    /// The probe is not deployed.
    #[error("no service has the label {PROBE_LABEL}=client\nhint: docker stack deploy -c compose/probe.yaml probe")]
    NoClients,
    /// The clients' logs.
    #[error("reading the logs of service {service}")]
    ReadLogs {
        /// The service's ID.
        service: String,
        /// What the engine said.
        source: bollard::errors::Error,
    },
    /// The report as JSON.
    #[error("making JSON of the report")]
    Json(#[source] serde_json::Error),
}

/// What the probe takes from the world.
pub struct ProbeContext<'a, C, R, S> {
    /// The machine's hostname.
    pub hostname: String,
    /// The wall clock.
    pub clock: C,
    /// An index below its argument, at random.
    pub choose: R,
    /// Ends when the process is told to stop.
    pub stop: S,
    /// Standard output.
    pub out: &'a mut dyn Write,
}

/// Runs one of the probe's commands. `rollout` is called by the report alone: it gives a manager's
/// engine and the steps of the rollout to place failures against.
pub async fn run<C, R, S, F, E>(
    args: ProbeArgs,
    context: ProbeContext<'_, C, R, S>,
    rollout: F,
) -> Result<(), ProbeError>
where
    C: Fn() -> Timestamp,
    R: Fn(usize) -> usize,
    S: Future<Output = ()>,
    F: AsyncFnOnce() -> Result<(Docker, Vec<StepSpan>), E>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let ProbeContext { hostname, clock, choose, stop, mut out } = context;
    match args.command {
        ProbeCommand::Server(ServerArgs { port, name }) => {
            // One socket for both families; the kernel maps IPv4 into it.
            let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            let listener = match TcpListener::bind(address).await {
                Ok(listener) => Ok(listener),
                // Without IPv6 in the kernel.
                Err(_) => TcpListener::bind(("0.0.0.0", port)).await,
            };
            let listener = listener.map_err(|source| ProbeError::Listen { port, source })?;
            let name = [Some(hostname), name].into_iter().flatten().collect::<Vec<_>>().join(" ");
            server::serve(listener, &name, FAREWELL, stop).await.map_err(ProbeError::Serve)
        }
        ProbeCommand::Client(ClientArgs { target, concurrency, name }) => {
            let settings =
                client::Settings { name: name.unwrap_or(hostname), target, concurrency, pause: PAUSE, limits: LIMITS };
            client::run(settings, &resolver()?, choose, clock, &mut out, stop).await.map_err(ProbeError::Write)?;
            Ok(())
        }
        ProbeCommand::Check(CheckArgs { target }) => {
            let resolver = resolver()?;
            let check = pin!(request::send(&target, LIMITS, &resolver, &choose));
            let (_, result) = check.await;
            result.map_err(|error| ProbeError::Check(request::in_one_line(&error)))
        }
        ProbeCommand::Report(ReportArgs { json }) => {
            let (docker, steps) = rollout().await.map_err(|e| ProbeError::Steps(e.into()))?;
            let report = collect(&docker, &steps).await?;
            let text = match json {
                true => render_json(&report).map_err(ProbeError::Json)?,
                false => render_text(&report),
            };
            out.write_all(text.as_bytes()).map_err(ProbeError::Write)
        }
    }
}

/// A resolver by /etc/resolv.conf: in a container the engine's own name service.
fn resolver() -> Result<TokioResolver, ProbeError> {
    let mut builder = TokioResolver::builder_tokio().map_err(ProbeError::Resolver)?;
    request::uncached(builder.options_mut(), LIMITS.connect);
    builder.build().map_err(ProbeError::Resolver)
}

#[cfg(test)]
mod tests;
