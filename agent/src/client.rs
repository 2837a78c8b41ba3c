//! The agent's side of the wire: HTTPS to a manager of its own swarm.
//!
//! The server must show a certificate that the swarm's root has signed for the node ID of a manager
//! that this node's engine names *now*. The URL's host is that node ID and its address is given by
//! hand, so the ordinary check of a server's name does it: a demoted manager, whose certificate stays
//! valid until it expires, is never asked. The client's certificate is the node's own.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use requeen_protocol::{
    BUNDLE_PATH, CLOCK_HEADER, COLLECT_HEADER, COLLECT_PATH, COLLECT_SECS, Collect, Digest, ErrorBody, LONG_POLL_SECS,
    NodeId, Order, PROTOCOL_HEADER, PROTOCOL_VERSION, REPORT_PATH, Report, UNLOCK_HEADER, UnlockKey, WANTED_HEADER,
};
use reqwest::Response;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, RANGE};

use crate::clock::{TimeOfDay, time_of_day};
use crate::engine::api::{Manager, SwarmFacts};
use crate::host::HostRoot;
use crate::identity::{Files, IdentityError, Stamp};
use crate::staged::bundle_path;
use crate::unlock::Keys;
use crate::words::chain;

/// A manager that does not take a connection within this time is not asked further.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// The server holds an answer for [`LONG_POLL_SECS`]; the rest is for the way.
const REPORT_LIMIT: Duration = Duration::from_secs(LONG_POLL_SECS + 10);
/// A download in which nothing arrives for this long is broken off, and resumed.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// A manager gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The node's certificate is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The swarm's root or the node's certificate does not make a TLS configuration.
    #[error("the node's certificate can't be used for TLS")]
    Tls(#[source] rustls::Error),
    /// The HTTP client can't be built.
    #[error("the HTTP client can't be built")]
    Build(#[source] reqwest::Error),
    /// The manager did not answer, or refused.
    #[error("no answer from {0}")]
    Unreached(Tried),
    /// Every manager was asked for the bundle.
    #[error("no manager answers as coordinator: {}", join(.0))]
    NoBundle(Vec<Tried>),
}

/// What became of the attempt to reach one manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The manager.
    pub manager: NodeId,
    /// Where it was asked.
    pub addr: SocketAddr,
    /// Why that was no answer.
    pub why: String,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.manager, self.addr, self.why)
    }
}

/// All of them in a line.
pub(crate) fn join(tried: &[Tried]) -> String {
    let all: Vec<_> = tried.iter().map(Tried::to_string).collect();
    all.join("; ")
}

/// What a coordinator answered to a report.
#[derive(Debug)]
pub struct Answer {
    /// What it wants of the node.
    pub order: Order,
    /// What it wants to know beside that, and where that goes.
    pub asked: Option<(Collect, Upload)>,
}

/// The way to the coordinator that asked for this node's part of a collection, and to no other.
#[derive(Clone, Debug)]
pub struct Upload {
    http: reqwest::Client,
    url: String,
}

/// A part did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// It, or its answer, was lost.
    #[error("the node's part of the collection could not be sent")]
    Send(#[source] reqwest::Error),
    /// The coordinator does not want it, or not any more.
    #[error("the coordinator refused the node's part of the collection: {0}")]
    Refused(String),
}

impl Upload {
    /// Posts the part.
    pub async fn send(&self, part: Vec<u8>) -> Result<(), UploadError> {
        let request = self.http.post(&self.url).timeout(Duration::from_secs(COLLECT_SECS)).body(part);
        let answer = async { accepted(request.send().await?).await };
        answer.await.map_err(UploadError::Send)?.map(drop).map_err(UploadError::Refused)
    }
}

/// A client for the coordinators of this node's swarm. Its copies share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    root: HostRoot,
    port: u16,
    keys: Keys,
    time_of_day: TimeOfDay,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Who gave the last order.
    last: Option<NodeId>,
    built: Option<Built>,
}

/// An HTTP client and what it was built from.
#[derive(Debug)]
struct Built {
    stamp: Stamp,
    managers: Vec<Manager>,
    http: reqwest::Client,
}

impl Client {
    /// A client for coordinators on `port`. On a manager of an autolocked swarm it needs a key of `keys`; what coordinators
    /// give, it adds to them.
    pub fn new(root: &HostRoot, port: u16, keys: &Keys) -> Self {
        Self { root: root.clone(), port, keys: keys.clone(), time_of_day, shared: Arc::default() }
    }

    /// Posts a report to a manager and waits for the answer. Dropping the future withdraws the report. `heard_of` is the
    /// last collection that this agent was asked for there.
    pub async fn report(
        &self,
        swarm: &SwarmFacts,
        manager: &Manager,
        report: &Report,
        heard_of: &str,
    ) -> Result<Answer, ClientError> {
        let http = self.http(swarm)?;
        let request = http.post(self.url(manager, REPORT_PATH)).timeout(REPORT_LIMIT);
        let request = request.header(COLLECT_HEADER, heard_of).header(CLOCK_HEADER, (self.time_of_day)()).json(report);
        let answer = async { accepted(request.send().await?).await };
        let why = match answer.await {
            Ok(Ok(response)) => {
                let wanted = wanted(response.headers());
                let collect = collect(response.headers());
                if let Some(key) = unlock_key(response.headers()) {
                    self.keys.learn(key);
                }
                match response.json().await {
                    Ok(order) => {
                        if !matches!(order, Order::Standby { .. }) {
                            self.shared().last = Some(manager.id.clone());
                        }
                        if let Some(digest) = wanted {
                            self.offer(swarm, manager, digest);
                        }
                        let asked = collect.map(|collect| {
                            let url = self.url(manager, &format!("{COLLECT_PATH}{}", collect.id));
                            (collect, Upload { http: http.clone(), url })
                        });
                        return Ok(Answer { order, asked });
                    }
                    Err(error) => chain(&error),
                }
            }
            Ok(Err(refusal)) => refusal,
            Err(error) => chain(&error),
        };
        Err(ClientError::Unreached(self.tried(manager, why)))
    }

    /// Opens a bundle from byte `from` on. The response's status says whether the server did start
    /// there (206) or at the beginning (200).
    pub async fn bundle(&self, swarm: &SwarmFacts, digest: &Digest, from: u64) -> Result<Response, ClientError> {
        let http = self.http(swarm)?;
        let last = self.shared().last.clone();
        let mut tried = Vec::new();
        for manager in order_of(&swarm.managers, last.as_ref(), &swarm.node) {
            let url = self.url(manager, &format!("{BUNDLE_PATH}{}", digest.hex()));
            let mut request = http.get(url);
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let answer = async { accepted(request.send().await?).await };
            let why = match answer.await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(refusal)) => refusal,
                Err(error) => chain(&error),
            };
            tried.push(self.tried(manager, why));
        }
        Err(ClientError::NoBundle(tried))
    }

    /// Sends a coordinator the bundle that it lacks, if this node keeps it. It asks again, or somebody else, if this fails.
    fn offer(&self, swarm: &SwarmFacts, manager: &Manager, digest: Digest) {
        let Ok(http) = self.http(swarm) else { return };
        let path = self.root.join(bundle_path(&digest));
        let url = self.url(manager, &format!("{BUNDLE_PATH}{}", digest.hex()));
        let manager = manager.id.clone();
        tokio::spawn(async move {
            let Ok(file) = tokio::fs::File::open(path).await else { return };
            let Ok(size) = file.metadata().await.map(|metadata| metadata.len()) else { return };
            let body = reqwest::Body::from(file);
            let request = http.put(url).header(CONTENT_LENGTH, size).body(body);
            let answer = async { accepted(request.send().await?).await };
            match answer.await {
                Ok(Ok(_)) => tracing::info!(%manager, %digest, "sent the coordinator its bundle"),
                Ok(Err(why)) => tracing::info!(%manager, %digest, "the coordinator did not take the bundle: {why}"),
                Err(error) => tracing::info!(%manager, %digest, "the bundle was not sent: {}", chain(&error)),
            }
        });
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn url(&self, manager: &Manager, path: &str) -> String {
        format!("https://{}:{}{path}", manager.id, self.port)
    }

    fn tried(&self, manager: &Manager, why: String) -> Tried {
        Tried { manager: manager.id.clone(), addr: SocketAddr::new(manager.addr.ip(), self.port), why }
    }

    /// The HTTP client for these managers and today's certificate; built anew when either changes.
    fn http(&self, swarm: &SwarmFacts) -> Result<reqwest::Client, ClientError> {
        let files = Files::new(&self.root, &swarm.data_root);
        let stamp = files.stamp();
        let mut shared = self.shared();
        if let Some(built) = &shared.built
            && built.stamp == stamp
            && built.managers == swarm.managers
        {
            return Ok(built.http.clone());
        }
        let http = build(&files, &self.keys, &swarm.managers, self.port)?;
        shared.built = Some(Built { stamp, managers: swarm.managers.clone(), http: http.clone() });
        Ok(http)
    }
}

/// What an answer asks for beside its order. What another version asks for in another way is not for this one.
fn collect(headers: &HeaderMap) -> Option<Collect> {
    headers.get(COLLECT_HEADER)?.to_str().ok()?.parse().ok()
}

/// The bundle that an answer asks for.
fn wanted(headers: &HeaderMap) -> Option<Digest> {
    Digest::from_hex(headers.get(WANTED_HEADER)?.to_str().ok()?).ok()
}

/// The unlock key that goes with an answer.
fn unlock_key(headers: &HeaderMap) -> Option<UnlockKey> {
    UnlockKey::parse(headers.get(UNLOCK_HEADER)?.to_str().ok()?).ok()
}

fn build(files: &Files, keys: &Keys, managers: &[Manager], port: u16) -> Result<reqwest::Client, ClientError> {
    let material = files.load(keys)?;
    let mut roots = rustls::RootCertStore::empty();
    for root in material.roots {
        roots.add(root).map_err(ClientError::Tls)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ClientError::Tls)?
        .with_root_certificates(roots)
        .with_client_auth_cert(material.chain, material.key)
        .map_err(ClientError::Tls)?;
    let mut headers = HeaderMap::new();
    headers.insert(PROTOCOL_HEADER, HeaderValue::from(PROTOCOL_VERSION));
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        // The swarm's managers are asked directly; proxies are for bundles from elsewhere.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(1)
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(READ_LIMIT)
        .default_headers(headers);
    for manager in managers {
        let addr = SocketAddr::new(manager.addr.ip(), port);
        builder = builder.resolve(manager.id.as_str(), addr);
    }
    builder.build().map_err(ClientError::Build)
}

/// The managers in the order in which they are asked for a bundle: who gave the last order, then this node itself (the
/// shortest way), then the others as the engine names them.
fn order_of<'a>(managers: &'a [Manager], last: Option<&NodeId>, own: &NodeId) -> Vec<&'a Manager> {
    let mut order: Vec<_> = managers.iter().collect();
    order.sort_by_key(|manager| (Some(&manager.id) != last, manager.id != *own));
    order
}

/// A successful response, or in words why the server refused.
async fn accepted(response: Response) -> Result<Result<Response, String>, reqwest::Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(Ok(response));
    }
    let body = response.bytes().await?;
    Ok(Err(match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(ErrorBody { error, hint: Some(hint) }) => format!("{status}: {error} (hint: {hint})"),
        Ok(ErrorBody { error, hint: None }) => format!("{status}: {error}"),
        Err(_) => status.to_string(),
    }))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod strangers;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answered_last_is_asked_first() {
        let manager = |id: &str| Manager { id: id.into(), addr: "10.0.0.1:2377".parse().unwrap() };
        let all = [manager("a"), manager("b"), manager("c")];
        let ids = |last: Option<&str>, own: &str| -> Vec<String> {
            order_of(&all, last.map(NodeId::from).as_ref(), &own.into())
                .into_iter()
                .map(|manager| manager.id.to_string())
                .collect()
        };
        assert_eq!(ids(None, "worker"), ["a", "b", "c"]);
        assert_eq!(ids(Some("c"), "b"), ["c", "b", "a"]);
        assert_eq!(ids(Some("demoted"), "b"), ["b", "a", "c"]);
    }
}
