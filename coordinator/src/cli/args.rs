//! The words of the command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use requeen_protocol::{DEFAULT_PORT, Digest};

use super::duration;
use super::until::{self, Until};
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
  3  the server, the engine, the swarm or a bundle's URL can't be reached";

const UPGRADE_EXAMPLES: &str = "\
Examples:
  requeen upgrade --bundle docker-28.5.2.tgz
  requeen upgrade --bundle docker-28.5.2.tgz --only worker1,worker2 --workers-at-once 2
  requeen upgrade --bundle docker-28.5.2.tgz --only-outdated --not-after 06:00
  requeen upgrade --bundle docker-28.5.2.tgz --manual --detach
  requeen upgrade --bundle docker-28.5.2.tgz --keep-raft-copy
  requeen upgrade --bundle https://example.com/docker-28.5.2.tgz --digest sha256:…
  docker exec -i requeen coordinator upgrade --bundle - < docker-28.5.2.tgz

While it follows the rollout, Ctrl-C detaches: the rollout goes on.

Exit codes:
  0  every node in scope runs the bundle (or did already), or detached
  1  a node failed or was rolled back, or the rollout was halted (by --not-after too) or aborted
  2  refused before anything changed
  3  the server, the engine, the swarm or a bundle's URL can't be reached";

const PLAN_EXAMPLES: &str = "\
Examples:
  requeen plan --bundle docker-28.5.2.tgz
  requeen plan --bundle docker-28.5.2.tgz --json | jq -r '.nodes[].hostname'

Exit codes:
  0  the rollout can start, or there is nothing to do
  2  it would be refused: the reasons are in the plan
  3  the server, the engine, the swarm or a bundle's URL can't be reached";

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

const RELEASE_EXAMPLES: &str = "\
Examples:
  requeen release worker1
  requeen release worker1 --yes

For a node whose machine is gone: the rollout counts it as failed and goes on. Silence alone frees no slot.

Exit codes:
  0  released
  2  not confirmed, or nothing to release: no rollout is open, or the node holds no slot or is not silent
  3  the server, the engine or the swarm can't be reached";

const HISTORY_EXAMPLES: &str = "\
Examples:
  requeen history
  requeen history 20261121-2e8b3cc2
  requeen history --json | jq -r '.rollouts[0].id'

Exit codes:
  0  shown
  2  no rollout of that ID is on record, or several begin so
  3  the server, the engine or the swarm can't be reached";

const VERIFY_EXAMPLES: &str = "\
Examples:
  requeen verify
  requeen verify --json | jq -r '.nodes[] | select(.verdict == \"drifted\") | .hostname'

Exit codes:
  0  every node has the files that were installed, and none is outdated
  1  files have changed, an engine was not started again, or a node is outdated
  2  refused: nothing has been installed yet, or a rollout is open
  3  a node's agent does not answer, so that it can't be told; or the server, the engine or the swarm can't be reached";

const UNDEPLOY_EXAMPLES: &str = "\
Examples:
  requeen undeploy                 asks first
  requeen undeploy --yes           the sets of engine files that are the way back stay
  requeen undeploy --backups --yes

Engines, their files and whatever is not Requeen's are not touched.

Exit codes:
  0  done, or nothing is deployed
  1  something could not be removed, or a node is silent: it is named, with what to type there
  2  refused before anything changed: a rollout is open or being prepared, or it was not confirmed
  3  the server, the engine or the swarm can't be reached";

const DIAG_EXAMPLES: &str = "\
Examples:
  requeen diag
  requeen diag --nodes worker1,worker2 --since 2h
  requeen diag -o - | tar -tz

Secrets are left out, and the archive's MANIFEST.txt says what that means; look through it before you attach it.
It may be asked for at any time, while a rollout is open too: none is touched or delayed.

Exit codes:
  0  the archive is written; nodes that are missing in it are named
  1  it can't be written
  2  refused: the file is there already, or no such node
  3  the server can't be reached";

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
    /// Free the slot of a node in work that is silent, after showing what is known of it
    Release(Release),
    /// Show the rollout and every node: its step, since when, and why it waits
    Status(Status),
    /// Show the last rollouts, or everything on record of one
    History(History),
    /// Grant no new lease; nodes in work finish
    Pause,
    /// Go on after a pause or a halt; lifts a time limit that is reached
    Resume,
    /// End the rollout: nodes in work finish, drained ones get their availability back
    Abort,
    /// Drive the open rollout from this manager on, whichever coordinator drove it before
    TakeOver,
    /// Put the previous engines back, in the same order
    Rollback(Rollback),
    /// Compare every node's engine files with those that were installed; changes nothing
    Verify(Verify),
    /// Take the agents away, with their service, the records and what they left on hosts
    Undeploy(Undeploy),
    /// Put what every node knows into one archive, for a bug report
    Diag(Diag),
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
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
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
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration::patience)]
    pub(crate) take_over_after: Duration,
    /// Take over an open rollout at once, once
    #[arg(long)]
    pub(crate) take_over: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// Image to use instead of the server's own
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) image: Option<String>,
    /// Only show the command that comes closest, and what it can't express
    #[arg(long)]
    pub(crate) print: bool,
}

/// The bundle of a plan or an upgrade.
#[derive(Debug, Args)]
pub(crate) struct Bundle {
    /// Docker's static tarball, or one like it; `-` reads it from stdin; https://HOST/PATH is fetched by the server
    #[arg(long = "bundle", value_name = "FILE|URL")]
    pub(crate) file: PathBuf,
    /// Digest that the bundle has to have; required with a URL
    #[arg(long, value_name = "sha256:…")]
    pub(crate) digest: Option<Digest>,
    /// Certificates (PEM) to trust besides the public authorities' when a URL is fetched
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
}

/// What a plan and an upgrade have in common.
#[derive(Debug, Args)]
pub(crate) struct Scope {
    /// Only these nodes, by name or ID (repeatable, or separated by commas)
    #[arg(long, value_name = "NODE", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    pub(crate) only: Vec<String>,
    /// All but these nodes
    #[arg(long, value_name = "NODE", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    pub(crate) exclude: Vec<String>,
    /// Grant each lease by hand, with `requeen grant`
    #[arg(long)]
    pub(crate) manual: bool,
    /// Install a lower version than the running one
    #[arg(long)]
    pub(crate) allow_downgrade: bool,
    /// Leave out nodes that run the bundle already
    #[arg(long)]
    pub(crate) only_outdated: bool,
    /// Begin no node that could not be done by then: `2026-11-22T06:00:00+01:00`, `06:00` (UTC, the next one), or `2h` from
    /// now
    #[arg(long, value_name = "TIME", value_parser = until::parse)]
    pub(crate) not_after: Option<Until>,
    /// Copy each manager's swarm folder, certificates and keys included, to /var/lib/requeen/raft-copies on it before its new
    /// engine first starts. Its engine is down for that much longer (0.002 s per MiB on a fast disk, at most 1 GiB); the
    /// last 3 copies are kept
    #[arg(long)]
    pub(crate) keep_raft_copy: bool,
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
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) node: String,
    /// Override order, slots, quorum and --not-after; says what it overrides and asks
    #[arg(long)]
    pub(crate) force: bool,
    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = RELEASE_EXAMPLES)]
pub(crate) struct Release {
    /// The node, by name or ID
    pub(crate) node: String,
    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = HISTORY_EXAMPLES)]
pub(crate) struct History {
    /// Only this rollout, with every node's steps: its ID or the beginning of it
    #[arg(value_name = "ROLLOUT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) rollout: Option<String>,
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
    #[arg(value_name = "NODE", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    pub(crate) nodes: Vec<String>,
    #[command(flatten)]
    pub(crate) how: How,
    #[command(flatten)]
    pub(crate) start: Start,
}

#[derive(Debug, Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub(crate) struct Verify {}

#[derive(Debug, Args)]
#[command(after_help = UNDEPLOY_EXAMPLES)]
pub(crate) struct Undeploy {
    /// Remove the sets of engine files that are the way back too
    #[arg(long)]
    pub(crate) backups: bool,
    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = DIAG_EXAMPLES)]
pub(crate) struct Diag {
    /// The archive, otherwise `requeen-diag-ROLLOUT.tar.gz` or with the time; `-` writes it to stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Ask only these nodes, by name or ID (repeatable, or separated by commas)
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub(crate) nodes: Vec<String>,
    /// Logs since then: `2h` ago, or a time such as `2026-11-21T12:00:00Z`; otherwise a day, or since the last rollout
    /// began if that is longer
    #[arg(long, value_name = "TIME", value_parser = duration::parse_since)]
    pub(crate) since: Option<duration::Since>,
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
