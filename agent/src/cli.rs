//! The agent's command line: `agent` is the task, `agent executor` what it starts on the host.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::clock::boot_time;
use crate::engine;
use crate::host::HostRoot;
use crate::launch::{HandOver, on_host};
use crate::reporter::kernel_chance;
use crate::{boot, executor, memory, priority, recovery, task};

const EXAMPLE: &str = "\
Example, on any manager of the swarm:
  docker service create --name requeen-agent --mode global --network host \\
    --mount type=bind,source=/,target=/host REGISTRY/requeen agent

On a node that is drained or paused, where the swarm starts no global task:
  docker run -d --name requeen-agent --restart always --network host -v /:/host REGISTRY/requeen agent";

/// Requeen's agent: gets this node's Docker Engine ready for its upgrade, and carries it out when the
/// swarm's coordinator grants the lease.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLE)]
struct Cli {
    #[command(flatten)]
    common: Common,
    /// Where the host's root directory is mounted
    #[arg(long, env = "REQUEEN_HOST_ROOT", default_value = "/host", value_name = "DIR")]
    host_root: PathBuf,
    /// How work is handed over to a process of the host: all but `auto` is for troubleshooting
    #[arg(long, env = "REQUEEN_HAND_OVER", default_value = "auto", value_name = "WAY")]
    hand_over: HandOver,
    #[command(subcommand)]
    life: Option<Life>,
}

#[derive(Debug, Args)]
struct Common {
    /// TCP port of the coordinator on the swarm's managers
    #[arg(long, env = "REQUEEN_PORT", default_value_t = requeen_protocol::DEFAULT_PORT, global = true)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Form of the log on standard error
    #[arg(long, env = "REQUEEN_LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Debug, Subcommand)]
enum Life {
    /// Works on the host itself and outlives the engine; the task starts it
    #[command(hide = true)]
    Executor,
    /// Puts the files of this node's engine in order before it starts; a unit of the host runs it at boot
    #[command(hide = true)]
    Recover,
    /// Starts a program on the host from inside a container in the host's PID namespace; the task starts it
    #[command(hide = true)]
    LaunchOnHost {
        /// The program, as a path of the host, and its arguments
        #[arg(last = true, required = true, value_name = "ARGV")]
        argv: Vec<String>,
    },
}

/// Runs the agent with the arguments of this process.
pub fn main() -> ExitCode {
    memory::be_frugal();
    #[cfg(feature = "failpoints")]
    let _points = fail::FailScenario::setup();
    let cli = Cli::parse();
    log_to_stderr(cli.common.log_format);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.life {
        None => {
            priority::give_way();
            let options = task::Options {
                root: HostRoot::new(cli.host_root),
                port: cli.common.port,
                hand_over: cli.hand_over,
                clock: boot_time,
                chance: kernel_chance,
            };
            let runtime = runtime()?;
            let ended = runtime.block_on(async {
                let mut end = signal(SignalKind::terminate())?;
                let mut interrupt = signal(SignalKind::interrupt())?;
                tokio::select! {
                    never = task::run(options) => match never {},
                    _ = end.recv() => {}
                    _ = interrupt.recv() => {}
                }
                anyhow::Ok(())
            });
            // A thread that waits or copies is no reason to stay: everything it writes is replaced
            // as a whole.
            runtime.shutdown_background();
            ended
        }
        Some(Life::Executor) => runtime()?.block_on(executor::run(executor::Options {
            root: HostRoot::new("/"),
            port: cli.common.port,
            clock: boot_time,
            chance: kernel_chance,
            control: engine::control,
        })),
        Some(Life::Recover) => {
            let root = HostRoot::new("/");
            recovery::recover(&root).context(boot::recovery_hint(&root))
        }
        Some(Life::LaunchOnHost { argv }) => Ok(on_host::run(&argv)?),
    }
}

/// One thread: an idle agent should cost a node nothing.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn log_to_stderr(format: LogFormat) {
    let filter = std::env::var("RUST_LOG").ok().and_then(|filter| filter.parse().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let log = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.with(lines.with_ansi(false)).init(),
        LogFormat::Json => log.with(lines.json()).init(),
    }
}
