//! The types that cross the wire between the coordinator and its agents, and nothing else.
//!
//! One exchange carries everything: an agent posts a [`Report`] (what is true on its node) to
//! [`REPORT_PATH`] and gets an [`Order`] back (what the coordinator wants true next). Both sides can
//! repeat theirs at any time; neither needs to remember what it said before. The server holds the
//! answer until the order differs from the one the agent names in [`Report::seen`], or for
//! [`LONG_POLL_SECS`] at most.
//!
//! An agent talks to every manager of its swarm that runs a coordinator, so each of them knows all that is true. Only
//! one gives orders: the owner of the open rollout, or whoever prepares one. The others answer [`Order::Standby`].
//!
//! For a bug report an answer may also ask for what the node knows of itself ([`Collect`]); no order is
//! touched by that, and [`redact`] takes the secrets out.
//!
//! Here live plain data and their parsers. No I/O, no clock, no randomness.

mod clean;
mod collect;
mod engine;
mod ids;
mod lease;
pub mod node_key;
mod order;
pub mod redact;
mod report;
mod standalone;
mod unlock;

pub use clean::{Cleaning, Left};
pub use collect::{Collect, InvalidCollect};
pub use engine::{BundleRef, EngineFacts, EngineFile, FileFact, Installed, Target};
pub use ids::{CollectionId, Digest, InvalidDigest, LeaseId, NodeId, PermitId, RolloutId};
pub use lease::{Lease, StopPermit};
pub use order::Order;
pub use report::{Activity, ErrorBody, NodeState, Preflight, Problem, Progress, Report, Speaker, SwapPhase, Unreached};
pub use standalone::{Fate, STANDALONE_NAMED, Standalone};
pub use unlock::{InvalidUnlockKey, KeyRing, UnlockKey};

/// Version of this protocol. Both sides send it in [`PROTOCOL_HEADER`]; the server refuses another
/// one with status 426 and an [`ErrorBody`].
pub const PROTOCOL_VERSION: u32 = 1;

/// HTTP header that carries [`PROTOCOL_VERSION`] as a decimal number.
pub const PROTOCOL_HEADER: &str = "requeen-protocol";

/// TCP port of the coordinator on a manager, unless the operator chooses another.
pub const DEFAULT_PORT: u16 = 9047;

/// `POST`: a [`Report`] as JSON, answered by an [`Order`] as JSON.
pub const REPORT_PATH: &str = "/v1/report";

/// `GET` with the digest's hexadecimal part appended: the bundle's bytes; `Range` is honoured. `PUT`: the bytes of the
/// bundle that [`WANTED_HEADER`] asked for.
pub const BUNDLE_PATH: &str = "/v1/bundles/";

/// Header of an answer to a report: the digest's hexadecimal part of a bundle that the coordinator lacks. An agent that
/// keeps it answers with a `PUT` to [`BUNDLE_PATH`].
pub const WANTED_HEADER: &str = "requeen-wanted-bundle";

/// Header of an answer that carries [`Order::Stop`] to a manager of an autolocked swarm: the swarm's unlock key as it is
/// now. The order, which agents repeat and both sides keep, never has it.
pub const UNLOCK_HEADER: &str = "requeen-unlock-key";

/// HTTP header of reports and their answers. In an answer: a [`Collect`], what the coordinator wants to know for
/// a bug report. In a report: the ID of the collection that the agent heard of last, or [`NO_COLLECTION`].
pub const COLLECT_HEADER: &str = "requeen-collect";

/// Value of [`COLLECT_HEADER`] in a report of an agent that has heard of none.
pub const NO_COLLECTION: &str = "none";

/// Header of reports: the sender's time of day, seconds since 1970. It is compared with the coordinator's and used for
/// nothing else; agents of earlier versions do not say it.
pub const CLOCK_HEADER: &str = "requeen-clock";

/// `POST` with a collection's ID appended: the sender's part of it, a tarball of at most
/// [`MAX_COLLECTED`] bytes.
pub const COLLECT_PATH: &str = "/v1/collect/";

/// The largest part of a collection, bytes.
pub const MAX_COLLECTED: u64 = 16 << 20;

/// How long a collection waits for its parts, seconds.
pub const COLLECT_SECS: u64 = 20;

/// How long, in seconds, the server holds an answer that would repeat the order already seen.
pub const LONG_POLL_SECS: u64 = 15;

/// Where both sides keep their files on a host.
pub const STATE_DIR: &str = "/var/lib/requeen";

/// The unit of a host that puts the files of its engine in order before it starts.
pub const RECOVER_UNIT: &str = "requeen-recover.service";
/// The unit of a host that goes on with the work on its engine after a boot.
pub const RESUME_UNIT: &str = "requeen-resume.service";
