//! What can go wrong in the lab, one variant per kind of operation.

use std::path::PathBuf;
use std::time::Duration;

use crate::{Init, Suite};

/// The lab's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation of the lab that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read, written or locked.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried, as a verb: "read", "create", "lock".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program could not be started or its pipes broke.
    #[error("cannot run {program}")]
    Start {
        /// The program's name.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// A program ran and said no.
    #[error("`{command}` ended with status {status}: {said}")]
    Failed {
        /// The command line, shortened.
        command: String,
        /// Its exit status; 128 + n for a signal n.
        status: i32,
        /// The end of what it wrote to standard error, or to standard output if that was empty.
        said: String,
    },
    /// A program's answer was not the JSON it promises.
    #[error("cannot understand the answer of {what}")]
    Json {
        /// Whose answer.
        what: &'static str,
        /// Where it broke.
        source: serde_json::Error,
    },
    /// A program's answer lacks what it should name.
    #[error("{what} answered {answer:?}, expected {expected}")]
    Answer {
        /// Whose answer.
        what: &'static str,
        /// The answer.
        answer: String,
        /// What was expected in it.
        expected: &'static str,
    },
    /// The packages of this suite can't be had here: scenarios that need them are to be skipped, loudly.
    #[error("the packages of Debian {suite} can't be had here: {reason}")]
    SuiteUnavailable {
        /// The suite.
        suite: Suite,
        /// Why.
        reason: String,
    },
    /// The machine's apt names no Debian archive.
    #[error("apt's sources on this machine name no Debian archive; set {variable} to one")]
    NoArchive {
        /// The environment variable that names one.
        variable: &'static str,
    },
    /// The machine's own Docker Engine does not answer.
    #[error("the Docker Engine of this machine does not answer: {said}")]
    NoEngine {
        /// What its client said.
        said: String,
    },
    /// Something that should have become true did not.
    #[error("waited {} s for {what}; last seen: {last}", waited.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// What was seen last.
        last: String,
    },
    /// There is no lab of that name.
    #[error("there is no lab named {name}")]
    UnknownLab {
        /// The name asked for.
        name: String,
    },
    /// The lab has no node of that name.
    #[error("lab {lab} has no node named {node}; it has {known}")]
    UnknownNode {
        /// The lab.
        lab: String,
        /// The name asked for.
        node: String,
        /// The nodes it has.
        known: String,
    },
    /// A name that is not made of lower-case letters, digits and dashes.
    #[error("{name:?} can't name a lab: use lower-case letters, digits and dashes")]
    BadName {
        /// The name.
        name: String,
    },
    /// A swarm needs at least one manager, and the lab's addresses carry at most 90 nodes of each role.
    #[error("a lab of {managers} managers and {workers} workers can't be made: 1 to 90 managers, 0 to 90 workers")]
    BadSize {
        /// Managers asked for.
        managers: u8,
        /// Workers asked for.
        workers: u8,
    },
    /// What only a machine can do was asked of a container.
    #[error("{node} is a container, which has no {what}: make the lab with --kind machine")]
    OnlyMachines {
        /// What was asked for.
        what: &'static str,
        /// The node.
        node: String,
    },
    /// Machines were to have what only containers can.
    #[error("{init} is for nodes that are containers: machines have systemd")]
    OnlyContainers {
        /// What was asked for.
        init: Init,
    },
    /// Power was to be given to a machine that has it.
    #[error("{node} runs already")]
    HasPower {
        /// The node.
        node: String,
    },
    /// Something was to be done to a node that has no power.
    #[error("{node} does not run (it is {state}): boot it first")]
    NoPower {
        /// The node.
        node: String,
        /// Its state.
        state: String,
    },
    /// A machine ended while it should have booted.
    #[error("{node} ended while it booted; what it said is in {}", console.display())]
    Died {
        /// The node.
        node: String,
        /// The file with its words.
        console: PathBuf,
    },
    /// A machine was to be booted again whose log of writes would begin anew.
    #[error("the writes of {node} are logged since its first boot, and another one would lose them: make the lab anew")]
    Logged {
        /// The node.
        node: String,
    },
    /// What was written to a disk was asked for, and nobody has noted it.
    #[error("nobody has noted what {node} writes: make the lab with `Lab::up_recorded`")]
    NotLogged {
        /// The node.
        node: String,
    },
    /// A log of writes is none, or ends too early.
    #[error("{} is no log of writes: {reason}, at byte {at}", path.display())]
    NoLog {
        /// The log.
        path: PathBuf,
        /// Where in it.
        at: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A mark was looked for that nobody made.
    #[error("{} has no mark {mark:?} any more", path.display())]
    NoMark {
        /// The log.
        path: PathBuf,
        /// The mark.
        mark: String,
    },
    /// This thread can't get mounts of its own.
    #[error("no mounts that nobody else sees can be made here")]
    Mounts(#[source] std::io::Error),
    /// A process would not be killed.
    #[error("the process group {pid} can't be killed")]
    Kill {
        /// The group.
        pid: i32,
        /// Why.
        source: std::io::Error,
    },
    /// Every subnet the lab may use is taken.
    #[error("no free subnet among 10.201.0.0/24 to 10.201.255.0/24")]
    NoSubnet,
    /// A thread of the lab ended by a panic.
    #[error("a thread of the lab that did {what} panicked")]
    Panicked {
        /// What it did.
        what: &'static str,
    },
    /// A measurement without a value.
    #[error("nothing was measured of {what}")]
    NothingMeasured {
        /// What should have been.
        what: &'static str,
    },
    /// The machine has no monotonic clock.
    #[error("the machine's monotonic clock can't be read")]
    Clock(#[source] std::io::Error),
    /// A swap in which an engine did not go away exactly once measures nothing.
    #[error("the engine of {node} went away {count} times in one swap, not once")]
    Outages {
        /// The node.
        node: String,
        /// How often.
        count: usize,
    },
    /// A swap ended with another engine than it was for.
    #[error("the engine of {node} is {found}, not {expected}")]
    WrongEngine {
        /// The node.
        node: String,
        /// The version that it tells.
        found: String,
        /// The version that it should tell.
        expected: String,
    },
    /// A node lacks a file of its engine.
    #[error("{node} has no {file} where engines have theirs")]
    NoEngineFile {
        /// The node.
        node: String,
        /// The file's name.
        file: &'static str,
    },
    /// An agent that should have been left alone is another process now.
    #[error("the agent of {node} was started again while its memory was measured")]
    AgentRestarted {
        /// The node.
        node: String,
    },
    /// The package of an engine lacks one of its files.
    #[error("the packages of Debian {suite} hold no {file}")]
    MissingFile {
        /// The suite.
        suite: Suite,
        /// The file's name.
        file: &'static str,
    },
    /// A file that must not be in the product's image.
    #[error("{} can't be in the image: {reason}", file.display())]
    Unfit {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Turns an I/O error into [`Error::File`], for `map_err`.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
