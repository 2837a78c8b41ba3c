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
//! Here live plain data and their parsers. No I/O, no clock, no randomness.

mod engine;
mod ids;
mod lease;
mod order;
mod report;

pub use engine::{BundleRef, EngineFacts, EngineFile, FileFact, Target};
pub use ids::{Digest, InvalidDigest, LeaseId, NodeId, PermitId, RolloutId};
pub use lease::{Lease, StopPermit};
pub use order::Order;
pub use report::{Activity, ErrorBody, NodeState, Preflight, Problem, Progress, Report, Speaker, SwapPhase, Unreached};

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

/// How long, in seconds, the server holds an answer that would repeat the order already seen.
pub const LONG_POLL_SECS: u64 = 15;

/// Where both sides keep their files on a host.
pub const STATE_DIR: &str = "/var/lib/requeen";
