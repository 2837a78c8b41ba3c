//! Nodes as machines: User-mode Linux, a kernel that is a program.
//!
//! Each machine has a disk file of its own on top of its suite's (see [`images`]), and two network cards:
//! one in the lab's network, and one that only the lab itself uses, so that a machine can be told things while its cable
//! is out. Both are in a network namespace that the lab has for itself. What is in the machine is done through ssh.
//!
//! All that a lab of machines leaves on this machine is its folder below the cache, its namespace, and the processes in it.

mod network;
mod process;
mod ssh;
mod store;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{self, Input};
use crate::{Error, Node, Result, Suite, cache, images, tools, wait};

pub(crate) use network::Weather;
pub(crate) use store::{Record, exists, names, read};

/// The kernel.
pub(crate) const KERNEL: &str = "/usr/bin/linux.uml";

/// How long a machine may take from its power to systemd; five that boot at once on two processors need most of it.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// How long a machine may take to shut down in order.
const OFF_LIMIT: Duration = Duration::from_secs(120);

/// The memory of one machine.
const MEMORY: &str = "1G";

/// One machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) lab: &'a str,
    pub(crate) name: &'a str,
    pub(crate) address: Ipv4Addr,
}

impl Machine<'_> {
    /// A command in the machine, not yet started.
    pub(crate) fn command(&self, command: &[&str], terminal: bool) -> Command {
        ssh::command(&store::folder(self.lab), self.lab, self.name, command, terminal)
    }

    /// Runs a command in the machine.
    pub(crate) fn exec(&self, command: &[&str], input: Input<'_>) -> Result<command::Output> {
        command::collect(&mut self.command(command, false), input)
    }

    /// Gives it power, and returns when systemd runs.
    pub(crate) fn start(&self) -> Result<()> {
        let folder = store::folder(self.lab);
        if process::running(&folder, self.name)? {
            return Err(Error::HasPower { node: self.name.to_owned() });
        }
        ssh::forget(&folder, self.name)?;
        process::start(&folder, self.lab, self.name, &self.kernel_arguments(&folder)?)?;
        let what =
            format!("systemd on {}; its console is {}", self.name, process::console(&folder, self.name).display());
        wait::until_true(&what, BOOT_LIMIT, || {
            if !process::running(&folder, self.name)? {
                return Err(Error::Died { node: self.name.to_owned(), console: process::console(&folder, self.name) });
            }
            let output = self.exec(&["systemctl", "is-system-running"], Input::Empty)?;
            // "degraded" is up too: a unit that failed is what some scenarios are about.
            Ok(match output.trimmed() {
                "running" | "degraded" | "starting" => Ok(()),
                other => Err(format!("{other} {}", output.stderr.trim())),
            })
        })
    }

    /// Cuts the power: its processes die at once, and with them what its kernel had not yet written to its disk.
    pub(crate) fn kill(&self) -> Result<()> {
        let folder = store::folder(self.lab);
        process::kill(&folder, self.name)?;
        ssh::forget(&folder, self.name)
    }

    /// Shuts it down in order and boots it again.
    pub(crate) fn reboot(&self) -> Result<()> {
        let folder = store::folder(self.lab);
        // The way in goes away before the answer, at times.
        self.exec(&["systemctl", "--no-block", "poweroff"], Input::Empty)?;
        wait::until_true(&format!("the shutdown of {}", self.name), OFF_LIMIT, || {
            let running = process::running(&folder, self.name)?;
            Ok(if running { Err("its kernel runs".to_owned()) } else { Ok(()) })
        })?;
        self.start()
    }

    /// `running` or `off`.
    pub(crate) fn state(&self) -> Result<&'static str> {
        Ok(if process::running(&store::folder(self.lab), self.name)? { "running" } else { "off" })
    }

    /// Pulls the network cable, or plugs it in again.
    pub(crate) fn cable(&self, plugged: bool) -> Result<()> {
        network::cable(self.lab, self.name, plugged)
    }

    /// Makes what the machine sends late, or loses some of it.
    pub(crate) fn weather(&self, weather: Weather) -> Result<()> {
        let arguments = weather.arguments();
        let mut words = vec!["tc", "qdisc"];
        words.extend(arguments.iter().map(String::as_str));
        let output = self.exec(&words, Input::Empty)?;
        match (weather, output.success()) {
            // There is nothing to be cleared where nothing was set.
            (Weather::Clear, false) => {
                let shown = self.exec(&["tc", "qdisc", "show", "dev", "vec0"], Input::Empty)?.ok()?;
                if shown.stdout.contains("netem") { output.ok().map(drop) } else { Ok(()) }
            }
            (Weather::Clear, true) => Ok(()),
            (Weather::Delay(_) | Weather::Loss(_), _) => output.ok().map(drop),
        }
    }

    /// The file on this machine in which its disk's changes are.
    fn disk(folder: &Path, name: &str) -> PathBuf {
        folder.join(format!("{name}.cow"))
    }

    fn kernel_arguments(&self, folder: &Path) -> Result<Vec<String>> {
        let Record { disk, nodes, .. } = store::read(self.lab)?;
        let name = self.name;
        let (own, below) = (Self::disk(folder, name), disk);
        let card = |number: u8, tap: &str| format!("vec{number}:transport=tap,ifname={tap},depth=64,gro=1");
        let id = cache::digest_text(&format!("{} {name}", self.lab));
        let mut arguments = vec![
            format!("mem={MEMORY}"),
            format!("ubd0={},{}", own.display(), below.display()),
            // Nothing reaches the disk but what was synced: not after a while, and not because a file was replaced.
            "root=/dev/ubda rw rootflags=commit=600,noauto_da_alloc".to_owned(),
            "con=null con0=null,fd:1 init=/sbin/init quiet".to_owned(),
            card(0, &network::tap(name)),
            card(1, &network::control_tap(name)),
            format!("systemd.hostname={name} systemd.machine_id={}", id.get(..32).unwrap_or_default()),
            format!("lab.address={} lab.control={}", self.address, network::control(self.address)),
            format!("lab.key={}", ssh::public_key(folder)?),
        ];
        arguments.extend(nodes.iter().map(|node| format!("lab.host={}:{}", node.name, node.address)));
        Ok(arguments.iter().flat_map(|words| words.split(' ')).map(str::to_owned).collect())
    }
}

/// Makes what the nodes need that have not yet been there: their record, their key, their network.
pub(crate) fn create(lab: &str, suite: Suite, nodes: &[Node]) -> Result<()> {
    tools::install_for_machines()?;
    let disk = images::machine_disk(suite)?;
    let folder = store::create(lab, disk, nodes)?;
    ssh::prepare(&folder, nodes)?;
    network::create(lab, nodes)
}

/// Removes everything that machines of a lab of that name have on this machine; no error if there is nothing.
pub(crate) fn remove(lab: &str) -> Result<()> {
    network::end_processes(lab)?;
    network::remove(lab)?;
    store::remove(lab)
}
