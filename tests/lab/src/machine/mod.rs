//! Nodes as machines: User-mode Linux, a kernel that is a program.
//!
//! Each machine has a disk file of its own on top of its suite's (see [`images`]), and two network cards:
//! one in the lab's network, and one that only the lab itself uses, so that a machine can be told things while its cable
//! is out. Both are in a network namespace that the lab has for itself. What is in the machine is done through ssh.
//!
//! All that a lab of machines leaves on this machine is its folder below the cache, its namespace, and the processes in it.

mod network;
mod process;
mod recorded;
mod ssh;
mod store;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{self, Input};
use crate::writes::{Log, Recording};
use crate::{Error, Node, Result, Suite, cache, images, tools, wait};

pub use network::Weather;
pub(crate) use store::{Record, exists, names, read};

/// The kernel.
pub(crate) const KERNEL: &str = "/usr/bin/linux.uml";

/// How long a machine may take from its power to systemd; five that boot at once on two processors need most of it.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// How long a machine may take to shut down in order.
const OFF_LIMIT: Duration = Duration::from_secs(120);

/// The memory of one machine.
const MEMORY: &str = "1G";

/// How long a mark may take from the machine to the log.
const MARK_LIMIT: Duration = Duration::from_secs(30);

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
        let record = store::read(self.lab)?;
        if record.logs_writes_of(self.name) {
            recorded::make_log(&folder, self.name)?;
        }
        process::start(&folder, self.lab, self.name, &self.kernel_arguments(&folder, &record)?)?;
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
        if weather != Weather::CLEAR || output.success() {
            return output.ok().map(drop);
        }
        // There is nothing to be cleared where nothing was set.
        let shown = self.exec(&["tc", "qdisc", "show", "dev", "vec0"], Input::Empty)?.ok()?;
        if shown.stdout.contains("netem") { output.ok().map(drop) } else { Ok(()) }
    }

    /// The file on this machine in which its disk's changes are.
    fn disk(folder: &Path, name: &str) -> PathBuf {
        folder.join(format!("{name}.cow"))
    }

    /// Leaves a mark in the log of its disk's writes, and returns when it can be read there.
    pub(crate) fn mark(&self, mark: &str) -> Result<()> {
        self.exec(&["dmsetup", "message", images::LOGGED_DISK, "0", "mark", mark], Input::Empty)?.ok()?;
        let path = recorded::log(&store::folder(self.lab), self.name);
        wait::until_true(&format!("the mark {mark} in {}", path.display()), MARK_LIMIT, || {
            Ok(if Log::read(&path)?.has(mark) { Ok(()) } else { Err("not yet there".to_owned()) })
        })
    }

    /// What was written to its disk since it was made.
    ///
    /// # Errors
    /// [`Error::NotLogged`] if nobody noted it.
    pub(crate) fn recording(&self) -> Result<Recording> {
        let record = store::read(self.lab)?;
        if !record.logs_writes_of(self.name) {
            return Err(Error::NotLogged { node: self.name.to_owned() });
        }
        Ok(Recording { disk: record.disk, log: recorded::log(&store::folder(self.lab), self.name) })
    }

    fn kernel_arguments(&self, folder: &Path, record: &Record) -> Result<Vec<String>> {
        let Record { disk, nodes } = record;
        let name = self.name;
        let own = Self::disk(folder, name);
        let card = |number: u8, tap: &str| format!("vec{number}:transport=tap,ifname={tap},depth=64,gro=1");
        let id = cache::digest_text(&format!("{} {name}", self.lab));
        let mut arguments = vec![
            if record.logs_writes_of(name) {
                recorded::disks(disk, &own, &recorded::log(folder, name))
            } else {
                format!(
                    "mem={MEMORY} ubd0={},{} root=/dev/ubda rw rootflags={} init=/sbin/init",
                    own.display(),
                    disk.display(),
                    images::MOUNT_OPTIONS
                )
            },
            "con=null con0=null,fd:1 quiet".to_owned(),
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
///
/// Of the nodes named in `logged` every write to the disk is noted.
pub(crate) fn create(lab: &str, suite: Suite, nodes: &[Node], logged: &[&str]) -> Result<()> {
    tools::install_for_machines()?;
    let disk = images::machine_disk(suite)?;
    let folder = store::create(lab, disk, nodes, logged)?;
    ssh::prepare(&folder, nodes)?;
    network::create(lab, nodes)
}

/// Removes everything that machines of a lab of that name have on this machine; no error if there is nothing.
pub(crate) fn remove(lab: &str) -> Result<()> {
    network::end_processes(lab)?;
    network::remove(lab)?;
    store::remove(lab)
}
