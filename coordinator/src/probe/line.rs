//! What a client writes on its output, one JSON object a line: the whole interface between the
//! clients and the report, which reads it back from the service's logs.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One line of a client's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Line {
    /// A request failed.
    Failure(Failure),
    /// The counts so far, written each second and once more at the end.
    Summary(Summary),
}

/// A request that got no answer, or another one than 200.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The client that sent it.
    pub client: String,
    /// When it was sent.
    pub time: Timestamp,
    /// The address it was sent to; absent where the name could not be resolved.
    pub target: Option<IpAddr>,
    /// What went wrong, with its causes.
    pub error: String,
    /// From the beginning of the name's resolution to the failure, milliseconds.
    pub took_ms: u64,
}

/// What a client has counted since it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The client that counted.
    pub client: String,
    /// When this line was written.
    pub time: Timestamp,
    /// When counting began: at the first answer, and until there is one, at the client's start.
    pub since: Timestamp,
    /// Requests ended since then.
    pub requests_total: u64,
    /// How many of them failed.
    pub failed_total: u64,
    /// Failed requests that began before the first answer. They are counted apart: a client that
    /// starts before its servers says nothing about the servers.
    pub before_first_answer: u64,
    /// Why there is no answer yet; absent from the first answer on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// Whether the client was told to stop: nothing follows.
    pub last: bool,
}
