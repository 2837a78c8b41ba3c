//! One node, whatever it is made of: what scenarios do to it.

use std::fmt;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::{Input, Output};
use crate::container::Container;
use crate::machine::{Machine, Weather};
use crate::wait::{self, Seen};
use crate::writes::Recording;
use crate::{Error, Init, Kind, Result};

/// What a node was made to be. It may have been promoted or demoted since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Named m1, m2, …
    Manager,
    /// Named w1, w2, …
    Worker,
}

impl Role {
    /// The first letter of its nodes' names.
    pub(crate) const fn letter(self) -> char {
        match self {
            Self::Manager => 'm',
            Self::Worker => 'w',
        }
    }
}

/// A node of a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    lab: String,
    name: String,
    role: Role,
    address: Ipv4Addr,
    kind: Kind,
    init: Init,
}

impl Node {
    pub(crate) fn new(lab: &str, name: String, role: Role, address: Ipv4Addr, kind: Kind) -> Self {
        Self { lab: lab.to_owned(), name, role, address, kind, init: Init::default() }
    }

    /// The same node with another PID 1.
    pub(crate) fn with_init(self, init: Init) -> Self {
        Self { init, ..self }
    }

    /// The lab's name.
    pub(crate) fn lab(&self) -> &str {
        &self.lab
    }

    /// What it is made of.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    fn machine(&self) -> Machine<'_> {
        Machine { lab: &self.lab, name: &self.name, address: self.address }
    }

    /// Its host name: m1, w2, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was made to be.
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Its address in the lab's network.
    pub const fn ip(&self) -> Ipv4Addr {
        self.address
    }

    /// What its PID 1 is.
    pub const fn init(&self) -> Init {
        self.init
    }

    /// Runs a command in the node. A status that is not 0 is no error: see [`Output::ok`].
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        self.exec_with(command, Input::Empty)
    }

    /// Like [`Self::exec`] with bytes for the command to read.
    pub fn exec_with_stdin(&self, command: &[&str], stdin: &[u8]) -> Result<Output> {
        self.exec_with(command, Input::Bytes(stdin))
    }

    fn exec_with(&self, command: &[&str], input: Input<'_>) -> Result<Output> {
        match self.kind {
            Kind::Container => Container::of(self).exec(command, input),
            Kind::Machine => self.machine().exec(command, input),
        }
    }

    /// A command in the node, not yet started, for whoever wants its pipes or the terminal.
    ///
    /// `terminal` gives it one; only ask for it where there is one.
    pub fn command(&self, command: &[&str], terminal: bool) -> Command {
        match self.kind {
            Kind::Container => Container::of(self).command(command, terminal),
            Kind::Machine => self.machine().command(command, terminal),
        }
    }

    /// Runs a shell script in the node; fails if its status is not 0.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.exec(&["sh", "-c", script])?.ok()
    }

    /// Runs the docker client in the node, against the node's engine; fails if its status is not 0.
    pub fn docker(&self, args: &[&str]) -> Result<Output> {
        let mut command = vec!["docker"];
        command.extend(args);
        self.exec(&command)?.ok()
    }

    /// Copies a file of the machine into the node, with its permissions.
    ///
    /// Unlike `docker cp` it writes as the node sees its files, volumes and memory file systems too.
    pub fn copy_in(&self, file: &Path, destination: &str) -> Result<()> {
        let mode = fs::metadata(file).map_err(Error::file("read", file))?.permissions().mode() & 0o7777;
        let script = "cat > \"$1\" && chmod \"$2\" \"$1\"";
        let mode = format!("{mode:o}");
        let input = File::open(file).map_err(Error::file("open", file))?;
        self.exec_with(&["sh", "-c", script, "sh", destination, &mode], Input::File(input))?.ok().map(drop)
    }

    /// Loads an image into the node's engine from a file that `docker save` wrote.
    pub fn load_image(&self, tar: &Path) -> Result<()> {
        let input = File::open(tar).map_err(Error::file("open", tar))?;
        self.exec_with(&["docker", "load", "--quiet"], Input::File(input))?.ok().map(drop)
    }

    /// Its ID in the swarm now; empty if it is in none.
    pub fn node_id(&self) -> Result<String> {
        Ok(self.docker(&["info", "--format", "{{.Swarm.NodeID}}"])?.trimmed().to_owned())
    }

    /// The version its engine tells.
    pub fn engine_version(&self) -> Result<String> {
        Ok(self.docker(&["version", "--format", "{{.Server.Version}}"])?.trimmed().to_owned())
    }

    /// What a unit wrote to the journal since a time that `journalctl --since` understands.
    pub fn journal(&self, unit: &str, since: &str) -> Result<String> {
        let args = ["journalctl", "--no-pager", "--output=short-precise", "--unit", unit, "--since", since];
        Ok(self.exec(&args)?.ok()?.stdout)
    }

    /// Cuts the power: every process of the node dies at once.
    ///
    /// A container's files stay, written or not, in the machine's cache. A machine has on its disk what was synced.
    pub fn kill(&self) -> Result<()> {
        match self.kind {
            Kind::Container => Container::of(self).kill(),
            Kind::Machine => self.machine().kill(),
        }
    }

    /// Gives the power back, and returns when PID 1 has begun with everything else; the engine may take longer: see [`Self::wait_for_engine`].
    pub fn start(&self) -> Result<()> {
        match self.kind {
            Kind::Container => Container::of(self).start(),
            Kind::Machine => self.machine().start(),
        }
    }

    /// Shuts the node down in order and boots it again.
    pub fn reboot(&self) -> Result<()> {
        match self.kind {
            Kind::Container => Container::of(self).reboot(),
            Kind::Machine => self.machine().reboot(),
        }
    }

    /// Pulls the network cable.
    pub fn disconnect(&self) -> Result<()> {
        match self.kind {
            Kind::Container => Container::of(self).disconnect(),
            Kind::Machine => self.machine().cable(false),
        }
    }

    /// Plugs it in again, at the same address.
    pub fn connect(&self) -> Result<()> {
        match self.kind {
            Kind::Container => Container::of(self).connect(&self.address.to_string()),
            Kind::Machine => self.machine().cable(true),
        }
    }

    /// Makes everything late that the node sends from now on, or loses some of it, or both; what was before is over.
    ///
    /// # Errors
    /// [`Error::OnlyMachines`] if it is no machine.
    pub fn weather(&self, weather: Weather) -> Result<()> {
        match self.kind {
            Kind::Container => Err(Error::OnlyMachines { what: "delay and loss", node: self.name.clone() }),
            Kind::Machine => self.machine().weather(weather),
        }
    }

    /// Ends what [`Self::weather`] began, if it did.
    pub fn clear_network(&self) -> Result<()> {
        match self.kind {
            Kind::Container => Ok(()),
            Kind::Machine => self.machine().weather(Weather::CLEAR),
        }
    }

    /// Writes a mark between the writes to its disk; returns when it can be read on this machine.
    ///
    /// # Errors
    /// [`Error::OnlyMachines`] if it is no machine; the machine's own words if its writes are not logged.
    pub fn mark(&self, mark: &str) -> Result<()> {
        match self.kind {
            Kind::Container => Err(Error::OnlyMachines { what: "log of its writes", node: self.name.clone() }),
            Kind::Machine => self.machine().mark(mark),
        }
    }

    /// What was written to its disk since it was made.
    ///
    /// # Errors
    /// [`Error::OnlyMachines`] if it is no machine, [`Error::NotLogged`] if it is one whose writes nobody noted.
    pub fn recording(&self) -> Result<Recording> {
        match self.kind {
            Kind::Container => Err(Error::OnlyMachines { what: "log of its writes", node: self.name.clone() }),
            Kind::Machine => self.machine().recording(),
        }
    }

    /// Its state on this machine: running, exited, off, …
    pub fn state(&self) -> Result<String> {
        match self.kind {
            Kind::Container => Container::of(self).state(),
            Kind::Machine => Ok(self.machine().state()?.to_owned()),
        }
    }

    /// Waits until its engine answers; returns the version.
    pub fn wait_for_engine(&self, limit: Duration) -> Result<String> {
        wait::until(&format!("the engine of {}", self.name), limit, || {
            let output = self.exec(&["docker", "version", "--format", "{{.Server.Version}}"])?;
            Ok(if output.success() {
                Seen::Done(output.trimmed().to_owned())
            } else {
                Seen::NotYet(output.stderr.trim().to_owned())
            })
        })
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
