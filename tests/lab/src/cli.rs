//! The command line: what can be asked.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use lab::bench::Figure;
use lab::images::Build;
use lab::{Init, Kind, Suite};

/// Swarms of real Docker Engines on this machine.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the lab can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a swarm (again, if there is one of that name).
    Up(Up),
    /// Remove a swarm and everything that was made for it.
    Down(Down),
    /// Tell what there is.
    Status {
        /// As JSON, on one line.
        #[arg(long)]
        json: bool,
    },
    /// Open a shell on a node, or run a command there.
    Shell {
        /// The node: m1, w2, …
        node: String,
        /// The lab.
        #[arg(long, default_value = DEFAULT)]
        name: String,
        /// What to run instead of a shell.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Cut a node's power: its processes die at once. A machine has on its disk what was synced; a container keeps all.
    Cut(At),
    /// Give a node its power back, and wait for its engine.
    Boot(At),
    /// Do something to a node's network.
    Net {
        #[command(flatten)]
        at: At,
        /// What happens to it.
        #[command(subcommand)]
        what: Net,
    },
    /// Make the bundle of a suite's engine and print its path.
    Bundle {
        /// bullseye, bookworm, trixie or sid.
        suite: Suite,
    },
    /// Make a node's image of a suite and print its tag.
    Image {
        /// bullseye, bookworm, trixie or sid.
        suite: Suite,
        /// What the nodes' PID 1 is: systemd or sysvinit.
        #[arg(long, default_value_t = Init::default())]
        init: Init,
    },
    /// Build the product's image and print its tag.
    Product(Product),
    /// Make the release: an image that is the same for everyone who builds the commit, its bill of materials,
    /// completions and man pages. Push the image, and print its reference by digest.
    Publish(Publish),
    /// Upgrade a swarm under load: the product in one command.
    Demo(Demo),
    /// Check form, lints, documentation and dependencies, then run every test, the scenarios on real swarms last.
    Test(Test),
    /// Measure the project's figures, each beside what it is compared with; docs/benchmarks.md says how.
    Bench(Bench),
    /// What `bench` runs on a node: ask the engine's API until standard input ends, and tell when it was gone.
    #[command(hide = true)]
    SampleApi {
        /// The engine's socket.
        #[arg(long, default_value = "/run/docker.sock")]
        socket: PathBuf,
        /// Milliseconds between two questions.
        #[arg(long, default_value_t = 5)]
        every_ms: u64,
    },
    /// Remove every lab and every image that the lab made; the cached packages and bundles stay.
    Cleanup,
}

/// A node of a lab.
#[derive(Debug, Args)]
pub(crate) struct At {
    /// The node: m1, w2, …
    pub(crate) node: String,
    /// The lab.
    #[arg(long, global = true, default_value = DEFAULT)]
    pub(crate) name: String,
}

/// What happens to a node's network.
#[derive(Debug, Subcommand)]
pub(crate) enum Net {
    /// Pull the cable.
    Off,
    /// Plug it in again, and end delay and loss.
    On,
    /// Make all that the node sends late, and lose some of it too if told so; machines only.
    Delay {
        /// Milliseconds.
        #[arg(default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=60_000))]
        milliseconds: u32,
        /// How many of a hundred packets are lost beside that.
        #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
        loss: u8,
    },
    /// Lose some of the packets that the node sends, none of which is late; machines only.
    Loss {
        /// How many of a hundred.
        #[arg(default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=100))]
        percent: u8,
    },
}

/// The lab's name where none is given.
const DEFAULT: &str = "default";

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[arg(long, default_value = DEFAULT)]
    pub(crate) name: String,
    /// How many managers.
    #[arg(long, default_value_t = 3)]
    pub(crate) managers: u8,
    /// How many workers.
    #[arg(long, default_value_t = 2)]
    pub(crate) workers: u8,
    /// The suite whose engine the nodes run.
    #[arg(long, default_value_t = Suite::Bookworm)]
    pub(crate) engine: Suite,
    /// What the nodes are made of: container, or machine (slower; each with its own kernel and disk).
    #[arg(long, default_value_t = Kind::Container)]
    pub(crate) kind: Kind,
    /// What the nodes' PID 1 is: systemd or sysvinit.
    #[arg(long, default_value_t = Init::default())]
    pub(crate) init: Init,
    /// Images of this machine to load on every node.
    #[arg(long = "image")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    #[arg(long, default_value = DEFAULT)]
    pub(crate) name: String,
    /// Every lab of this machine.
    #[arg(long, conflicts_with = "name")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    #[arg(long, default_value = "demo")]
    pub(crate) name: String,
    /// How many managers.
    #[arg(long, default_value_t = 3)]
    pub(crate) managers: u8,
    /// How many workers.
    #[arg(long, default_value_t = 2)]
    pub(crate) workers: u8,
    /// The suite whose engine the nodes start with.
    #[arg(long, default_value_t = Suite::Bookworm)]
    pub(crate) engine: Suite,
    /// The suite whose engine they are upgraded to.
    #[arg(long, default_value_t = Suite::Trixie)]
    pub(crate) target: Suite,
    #[command(flatten)]
    pub(crate) product: Product,
}

#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Also what takes long: many power cuts, every kill of a coordinator.
    #[arg(long)]
    pub(crate) long: bool,
    /// The figures of the run as one JSON object, the last thing on standard output; all else goes to standard error.
    #[arg(long)]
    pub(crate) json: bool,
    /// Arguments for `cargo test`; with any, nothing is checked before.
    #[arg(last = true)]
    pub(crate) args: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// The first part of the names of its swarms.
    #[arg(long, default_value = "bench")]
    pub(crate) name: String,
    /// The suite whose engine the nodes start with.
    #[arg(long, default_value_t = Suite::Bookworm)]
    pub(crate) engine: Suite,
    /// The suite whose engine they are upgraded to.
    #[arg(long, default_value_t = Suite::Trixie)]
    pub(crate) target: Suite,
    /// Only this figure (repeatable): engine-down, swarm, agent-rss, image, verify-unpack.
    #[arg(long, value_name = "FIGURE")]
    pub(crate) only: Vec<Figure>,
    /// How often each side takes a worker's engine up and back [default: 10].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: Option<u32>,
    /// How many whole swarms each side upgrades.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) swarms: u32,
    /// Seconds for which agents are left alone before their memory is read [default: 300].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) idle: Option<u64>,
    /// Try it out: few repetitions, agents idle for seconds only, the image built on this machine.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Take the product's image that is there instead of building it.
    #[arg(long)]
    pub(crate) no_build: bool,
    /// Leave the swarm of a measurement that failed, to be looked at.
    #[arg(long)]
    pub(crate) keep: bool,
    /// The figures as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The registry to push to; without one nothing is pushed.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) registry: Option<String>,
    /// The registry's own root certificate, if it is none that everybody knows.
    #[arg(long, value_name = "FILE", requires = "registry")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Push to the registry of a lab, which is started on its m1 if it does not run.
    #[arg(long, value_name = "NAME", conflicts_with = "registry")]
    pub(crate) lab: Option<String>,
    /// The image's name in the registry.
    #[arg(long, default_value = "requeen")]
    pub(crate) name: String,
    /// Where the source can be had: goes into the image, and so into its digest.
    #[arg(long, value_name = "URL")]
    pub(crate) source: Option<String>,
    /// Make it although files differ from the commit: nobody else can make the same.
    #[arg(long)]
    pub(crate) allow_dirty: bool,
    #[command(flatten)]
    pub(crate) product: Product,
}

/// How the product is built.
#[derive(Debug, Args)]
pub(crate) struct Product {
    /// Build on this machine instead of with the Dockerfile: faster.
    #[arg(long)]
    pub(crate) quick: bool,
    /// With --quick, cargo's profile.
    #[arg(long, default_value = "release", requires = "quick")]
    pub(crate) profile: String,
}

impl From<Product> for Build {
    fn from(product: Product) -> Self {
        if product.quick { Self::Machine { profile: product.profile } } else { Self::Dockerfile }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
