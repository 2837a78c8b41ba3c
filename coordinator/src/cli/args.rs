//! The words of the command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use requeen_protocol::{DEFAULT_PORT, Digest};

use super::duration;
use crate::api::PolicyChoice;

const EXAMPLES: &str = "\
Examples:
  requeen deploy                                  put an agent on every node
  requeen plan --bundle docker-28.5.2.tgz         what would happen; changes nothing
  requeen upgrade --bundle docker-28.5.2.tgz      do it, and show it
  requeen status --watch                          look at it from elsewhere
  requeen rollback                                the previous engines back

Exit codes:
  0  done
  1  failed, halted, rolled back or aborted
  2  refused before anything changed, or wrong usage
  3  the server, the engine or the swarm can't be reached";

const UPGRADE_EXAMPLES: &str = "\
Examples:
  requeen upgrade --bundle docker-28.5.2.tgz
  requeen upgrade --bundle docker-28.5.2.tgz --only worker1,worker2 --workers-at-once 2
  requeen upgrade --bundle docker-28.5.2.tgz --manual --detach
  docker exec -i requeen coordinator upgrade --bundle - < docker-28.5.2.tgz

While it follows the rollout, Ctrl-C detaches: the rollout goes on.

Exit codes:
  0  every node in scope runs the bundle (or did already), or detached
  1  a node failed or was rolled back, or the rollout was halted or aborted
  2  refused before anything changed
  3  the server, the engine or the swarm can't be reached";

const PLAN_EXAMPLES: &str = "\
Examples:
  requeen plan --bundle docker-28.5.2.tgz
  requeen plan --bundle docker-28.5.2.tgz --json | jq -r '.nodes[].hostname'

Exit codes:
  0  the rollout can start, or there is nothing to do
  2  it would be refused: the reasons are in the plan
  3  the server, the engine or the swarm can't be reached";

const STATUS_EXAMPLES: &str = "\
Examples:
  requeen status
  requeen status --watch
  requeen status --json | jq '.nodes[] | {hostname, engine, why}'

With --watch the exit code is that of the rollout watched, as of `requeen upgrade`; Ctrl-C ends it with 0.";

const GRANT_EXAMPLES: &str = "\
Examples:
  requeen grant worker1
  requeen grant worker1 --force --yes

Exit codes:
  0  granted
  2  not safe now (the reason is given), or not confirmed
  3  the server, the engine or the swarm can't be reached";

/// Upgrades Docker Engine on every node of a swarm, in order, without its services noticing.
#[derive(Debug, Parser)]
#[command(name = "requeen", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Unix socket of the server on this manager
    #[arg(long, global = true, env = "REQUEEN_SOCKET", hide_env_values = true, value_name = "PATH")]
    #[arg(default_value = "/var/lib/requeen/requeen.sock")]
    pub(crate) socket: PathBuf,
    /// Print JSON for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print without colours (also: NO_COLOR)
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run the server: on a manager, and on others as standby
    Serve(Serve),
    /// Create or update the global service that puts an agent on every node
    Deploy(Deploy),
    /// Verify a bundle, ask every node, and show what an upgrade would do; changes nothing
    Plan(Plan),
    /// Upgrade the swarm's engines and follow it
    Upgrade(Upgrade),
    /// Grant one node its lease by hand
    Grant(Grant),
    /// Show the rollout and every node: its step, since when, and why it waits
    Status(Status),
    /// Grant no new lease; nodes in work finish
    Pause,
    /// Go on after a pause or a halt
    Resume,
    /// End the rollout: nodes in work finish, drained ones get their availability back
    Abort,
    /// Drive the open rollout from this manager on, whichever coordinator drove it before
    TakeOver,
    /// Put the previous engines back, in the same order
    Rollback(Rollback),
    /// Copy this program to DIR/requeen
    Install(Install),
    /// Test whether the swarm's services notice
    Probe(crate::probe::ProbeArgs),
    /// Print completions for a shell
    Completions(Completions),
    /// Write man pages to DIR
    Man(Man),
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// TCP port for agents
    #[arg(long, env = "REQUEEN_PORT", hide_env_values = true, default_value_t = DEFAULT_PORT)]
    pub(crate) port: u16,
    /// Address for agents instead of the one by which the swarm knows this node
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) bind: Option<IpAddr>,
    /// Folder for bundles and for the socket `requeen.sock`
    #[arg(long, value_name = "DIR", default_value = requeen_protocol::STATE_DIR)]
    pub(crate) data_dir: PathBuf,
    /// Unix socket of this node's engine
    #[arg(long, value_name = "PATH", default_value = "/var/run/docker.sock")]
    pub(crate) docker_socket: PathBuf,
    /// The engine's `swarm` folder, where this node's certificate is
    #[arg(long, value_name = "DIR", default_value = "/var/lib/docker/swarm")]
    pub(crate) swarm_dir: PathBuf,
    /// How long another coordinator that drives a rollout may be silent before this one takes it over
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration::parse)]
    pub(crate) take_over_after: Duration,
    /// Take over an open rollout at once, once
    #[arg(long)]
    pub(crate) take_over: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// Image to use instead of the server's own
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// Only show the command that comes closest, and what it can't express
    #[arg(long)]
    pub(crate) print: bool,
}

/// The bundle of a plan or an upgrade.
#[derive(Debug, Args)]
pub(crate) struct Bundle {
    /// Docker's static tarball, or one like it; `-` reads it from stdin
    #[arg(long = "bundle", value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Digest that the bundle has to have
    #[arg(long, value_name = "sha256:…")]
    pub(crate) digest: Option<Digest>,
}

/// What a plan and an upgrade have in common.
#[derive(Debug, Args)]
pub(crate) struct Scope {
    /// Only these nodes, by name or ID (repeatable, or separated by commas)
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// All but these nodes
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub(crate) exclude: Vec<String>,
    /// Grant each lease by hand, with `requeen grant`
    #[arg(long)]
    pub(crate) manual: bool,
    /// Install a lower version than the running one
    #[arg(long)]
    pub(crate) allow_downgrade: bool,
}

/// What all rollouts have in common.
#[derive(Debug, Args)]
pub(crate) struct How {
    /// Whether managers are re-activated one by one or all at the end
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) policy: PolicyWord,
    /// How many workers may be in work at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) workers_at_once: u32,
    /// Go on although the managers lose quorum while one restarts (swarms of one or two managers)
    #[arg(long)]
    pub(crate) accept_control_plane_outage: bool,
    /// How long a new engine's API may stay silent before it is switched back
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = duration::parse)]
    pub(crate) start_timeout: Duration,
    /// How long the nodes may take to answer and stage
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse)]
    pub(crate) stage_timeout: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PolicyWord {
    /// Picked by the pair of versions
    Auto,
    /// Each manager is re-activated when it is done
    Rolling,
    /// All managers stay drained until the last is done
    HoldDrained,
}

impl From<PolicyWord> for PolicyChoice {
    fn from(word: PolicyWord) -> Self {
        match word {
            PolicyWord::Auto => PolicyChoice::Auto,
            PolicyWord::Rolling => PolicyChoice::Rolling,
            PolicyWord::HoldDrained => PolicyChoice::HoldDrained,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = PLAN_EXAMPLES)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) bundle: Bundle,
    #[command(flatten)]
    pub(crate) scope: Scope,
    #[command(flatten)]
    pub(crate) how: How,
}

#[derive(Debug, Args)]
#[command(after_help = UPGRADE_EXAMPLES)]
pub(crate) struct Upgrade {
    #[command(flatten)]
    pub(crate) plan: Plan,
    /// Show the plan and stop there, like `requeen plan`
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) start: Start,
}

/// How a rollout is started.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Start it and return at once
    #[arg(long)]
    pub(crate) detach: bool,
    /// Don't ask, even where a flag accepts a risk
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = GRANT_EXAMPLES)]
pub(crate) struct Grant {
    /// The node, by name or ID
    pub(crate) node: String,
    /// Override order, slots and quorum; says what it overrides and asks
    #[arg(long)]
    pub(crate) force: bool,
    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub(crate) struct Status {
    /// Keep showing it until the rollout ends
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// Only these nodes, by name or ID; otherwise all that the last rollout changed
    #[arg(value_name = "NODE", value_delimiter = ',')]
    pub(crate) nodes: Vec<String>,
    #[command(flatten)]
    pub(crate) how: How,
    #[command(flatten)]
    pub(crate) start: Start,
}

#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Folder that gets the program, as `requeen`
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Folder that gets the pages
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}
