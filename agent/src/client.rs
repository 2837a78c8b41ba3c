//! The agent's side of the wire: HTTPS to a manager of its own swarm.
//!
//! The server must show a certificate that the swarm's root has signed for the node ID of a manager
//! that this node's engine names *now*. The URL's host is that node ID and its address is given by
//! hand, so the ordinary check of a server's name does it: a demoted manager, whose certificate stays
//! valid until it expires, is never asked. The client's certificate is the node's own.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use requeen_protocol::{
    BUNDLE_PATH, Digest, ErrorBody, LONG_POLL_SECS, NodeId, Order, PROTOCOL_HEADER, PROTOCOL_VERSION, REPORT_PATH,
    Report,
};
use reqwest::header::{HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};

use crate::engine::api::{Manager, SwarmFacts};
use crate::host::HostRoot;
use crate::identity::{Files, IdentityError, Stamp};
use crate::words::chain;

/// A manager that does not take a connection within this time is not asked further.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// The server holds an answer for [`LONG_POLL_SECS`]; the rest is for the way.
const REPORT_LIMIT: Duration = Duration::from_secs(LONG_POLL_SECS + 10);
/// A download in which nothing arrives for this long is broken off, and resumed.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// No manager gave an answer.
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
    /// The engine names no manager.
    #[error("the Docker Engine names no manager of its swarm yet")]
    NoManagers,
    /// Every manager was tried.
    #[error("no manager answers as coordinator: {}", join(.0))]
    Unreached(Vec<Tried>),
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

fn join(tried: &[Tried]) -> String {
    let all: Vec<_> = tried.iter().map(Tried::to_string).collect();
    all.join("; ")
}

/// A client that knows which manager answered last.
#[derive(Debug)]
pub struct Client {
    root: HostRoot,
    port: u16,
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
    /// A client for coordinators on `port`.
    pub fn new(root: &HostRoot, port: u16) -> Self {
        Self { root: root.clone(), port, last: None, built: None }
    }

    /// Posts a report and waits for the order. Dropping the future withdraws the report.
    pub async fn report(&mut self, swarm: &SwarmFacts, report: &Report) -> Result<Order, ClientError> {
        let http = self.http(swarm)?;
        let mut tried = Vec::new();
        for manager in order_of(&swarm.managers, self.last.as_ref(), &swarm.node) {
            let url = self.url(manager, REPORT_PATH);
            let request = http.post(url).timeout(REPORT_LIMIT).json(report);
            let answer = async { accepted(request.send().await?).await };
            let why = match answer.await {
                Ok(Ok(response)) => match response.json().await {
                    Ok(order) => {
                        self.last = Some(manager.id.clone());
                        return Ok(order);
                    }
                    Err(error) => chain(&error),
                },
                Ok(Err(refusal)) => refusal,
                Err(error) => chain(&error),
            };
            tried.push(self.tried(manager, why));
        }
        Err(ClientError::Unreached(tried))
    }

    /// Opens a bundle from byte `from` on. The response's status says whether the server did start
    /// there (206) or at the beginning (200).
    pub async fn bundle(&mut self, swarm: &SwarmFacts, digest: &Digest, from: u64) -> Result<Response, ClientError> {
        let http = self.http(swarm)?;
        let mut tried = Vec::new();
        for manager in order_of(&swarm.managers, self.last.as_ref(), &swarm.node) {
            let url = self.url(manager, &format!("{BUNDLE_PATH}{}", digest.hex()));
            let mut request = http.get(url);
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let answer = async { accepted(request.send().await?).await };
            let why = match answer.await {
                Ok(Ok(response)) => {
                    self.last = Some(manager.id.clone());
                    return Ok(response);
                }
                Ok(Err(refusal)) => refusal,
                Err(error) => chain(&error),
            };
            tried.push(self.tried(manager, why));
        }
        Err(ClientError::Unreached(tried))
    }

    fn url(&self, manager: &Manager, path: &str) -> String {
        format!("https://{}:{}{path}", manager.id, self.port)
    }

    fn tried(&self, manager: &Manager, why: String) -> Tried {
        Tried { manager: manager.id.clone(), addr: SocketAddr::new(manager.addr.ip(), self.port), why }
    }

    /// The HTTP client for these managers and today's certificate; built anew when either changes.
    fn http(&mut self, swarm: &SwarmFacts) -> Result<reqwest::Client, ClientError> {
        if swarm.managers.is_empty() {
            return Err(ClientError::NoManagers);
        }
        let files = Files::new(&self.root, &swarm.data_root);
        let stamp = files.stamp();
        if let Some(built) = &self.built
            && built.stamp == stamp
            && built.managers == swarm.managers
        {
            return Ok(built.http.clone());
        }
        let http = build(&files, &swarm.managers, self.port)?;
        self.built = Some(Built { stamp, managers: swarm.managers.clone(), http: http.clone() });
        Ok(http)
    }
}

fn build(files: &Files, managers: &[Manager], port: u16) -> Result<reqwest::Client, ClientError> {
    let material = files.load()?;
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

/// The managers in the order in which they are asked: who answered last, then this node itself (the
/// shortest way), then the others as the engine names them.
fn order_of<'a>(managers: &'a [Manager], last: Option<&NodeId>, own: &NodeId) -> Vec<&'a Manager> {
    let mut order: Vec<_> = managers.iter().collect();
    order.sort_by_key(|manager| (Some(&manager.id) != last, manager.id != *own));
    order
}

/// A successful response, or in words why the server refused.
async fn accepted(response: Response) -> Result<Result<Response, String>, reqwest::Error> {
    let status = response.status();
    if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
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
