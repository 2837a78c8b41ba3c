//! The port that agents call: HTTPS, both sides with the certificates that their swarm gave them.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use requeen_protocol::{
    BUNDLE_PATH, Digest, ErrorBody, LONG_POLL_SECS, Order, PROTOCOL_HEADER, PROTOCOL_VERSION, REPORT_PATH, Report,
    WANTED_HEADER,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::download;
use super::refusals::Refusals;
use super::store::{self, bundle_path};
use super::words::chain;
use crate::hub::Hub;
use crate::identity::gate::{Admitted, Gate, Refused};
use crate::identity::peer::{PeerName, PeerNameError};
use crate::identity::swarm::Swarm;

/// How many connections are open at once; later ones wait for the listener.
const MAX_CONNECTIONS: usize = 512;

/// How long a client may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take to send a request's head, and then its body where that is a report.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait before the next try to accept a connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The longest report, bytes.
const MAX_REPORT: usize = 1 << 20;

/// What the port serves from.
pub(crate) struct Agents<S> {
    pub(crate) gate: Gate<S>,
    pub(crate) hub: Arc<Hub>,
    /// The folder of bundles, each named by its digest.
    pub(crate) bundles: PathBuf,
    pub(crate) refusals: Refusals,
    /// How long an answer that would repeat the order seen is held.
    pub(crate) long_poll: Duration,
}

impl<S> Agents<S> {
    /// As it is outside tests.
    pub(crate) fn new(gate: Gate<S>, hub: Arc<Hub>, bundles: PathBuf) -> Self {
        let long_poll = Duration::from_secs(LONG_POLL_SECS);
        Self { gate, hub, bundles, refusals: Refusals::default(), long_poll }
    }
}

/// The client of a connection.
#[derive(Clone)]
struct Peer {
    address: IpAddr,
    name: Arc<PeerName>,
}

/// Why a client never came to its first request.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error("the TLS handshake took too long")]
    Timeout,
    #[error("it has no client certificate")]
    NoCertificate,
    #[error("{0}")]
    Name(PeerNameError),
}

/// Serves until `shutdown`. Requests under way then are dropped: agents ask again.
pub(crate) async fn serve<S: Swarm>(listener: TcpListener, agents: Arc<Agents<S>>, shutdown: impl Future<Output = ()>) {
    let router = router(Arc::clone(&agents));
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        // Room first: what finds none waits in the kernel's queue.
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => return,
            Some(_) = connections.join_next() => {}
            accepted = accepted => match accepted {
                (Ok(permit), Ok((stream, address))) => {
                    connections.spawn(connection(Arc::clone(&agents), router.clone(), stream, address, permit));
                }
                (Err(_closed), _) => return,
                (Ok(_), Err(error)) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "can't accept a connection");
                    // Most likely out of descriptors: nothing tells when there are some again.
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
}

async fn connection<S: Swarm>(
    agents: Arc<Agents<S>>,
    router: Router,
    stream: TcpStream,
    address: SocketAddr,
    _room: OwnedSemaphorePermit,
) {
    let tls = match agents.gate.tls().await {
        Ok(tls) => tls,
        Err(error) => {
            agents.refusals.log(address.ip(), &format!("this node has no certificate to serve with: {error}"));
            return;
        }
    };
    let handshake = timeout(HANDSHAKE_TIMEOUT, handshake(TlsAcceptor::from(tls.config), stream)).await;
    let (stream, name) = match handshake.unwrap_or(Err(ConnectError::Timeout)) {
        Ok(connected) => connected,
        Err(error) => {
            agents.refusals.log(address.ip(), &error.to_string());
            return;
        }
    };
    let peer = Peer { address: address.ip(), name: Arc::new(name) };
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(client = %address, error = &error as &dyn std::error::Error, "connection ended");
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> Result<(TlsStream<TcpStream>, PeerName), ConnectError> {
    let stream = acceptor.accept(stream).await.map_err(ConnectError::Handshake)?;
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(|chain| chain.first()).ok_or(ConnectError::NoCertificate)?;
    let name = PeerName::of(leaf).map_err(ConnectError::Name)?;
    Ok((stream, name))
}

fn router<S: Swarm>(agents: Arc<Agents<S>>) -> Router {
    Router::new()
        .route(REPORT_PATH, post(report::<S>))
        .route(&format!("{BUNDLE_PATH}{{hex}}"), get(bundle::<S>).put(take_bundle::<S>))
        .fallback(async || Answer::new(StatusCode::NOT_FOUND, "there is nothing at this address"))
        .layer(middleware::from_fn_with_state(Arc::clone(&agents), admit::<S>))
        .with_state(agents)
}

/// An answer that is not a success.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    body: ErrorBody,
}

impl Answer {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: ErrorBody { error: error.into(), hint: None } }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

/// Every request passes here: a connection may live longer than its node's membership.
async fn admit<S: Swarm>(
    State(agents): State<Arc<Agents<S>>>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let admitted = match agents.gate.admit(&peer.name).await {
        Ok(admitted) => admitted,
        Err(refused) => {
            agents.refusals.log(peer.address, &refused.to_string());
            if let Refused::NotANode { node } = &refused {
                agents.hub.forget_node(node);
            }
            return Answer::new(StatusCode::FORBIDDEN, refused.to_string()).into_response();
        }
    };
    if let Err(answer) = same_protocol(request.headers()) {
        agents.refusals.log(peer.address, &answer.body.error);
        return answer.into_response();
    }
    request.extensions_mut().insert(admitted);
    next.run(request).await
}

fn same_protocol(headers: &HeaderMap) -> Result<(), Answer> {
    let theirs = headers.get(PROTOCOL_HEADER).and_then(|value| value.to_str().ok());
    if theirs.and_then(|text| text.parse().ok()) == Some(PROTOCOL_VERSION) {
        return Ok(());
    }
    let theirs = theirs.map_or_else(|| "none".to_owned(), |text| format!("version {text:?}"));
    let error = format!("the coordinator speaks version {PROTOCOL_VERSION} of the protocol, the agent {theirs}");
    Err(Answer::new(StatusCode::UPGRADE_REQUIRED, error)
        .hint("bring the agents to the coordinator's version: `requeen deploy` on this manager"))
}

async fn report<S: Swarm>(
    State(agents): State<Arc<Agents<S>>>,
    Extension(peer): Extension<Peer>,
    body: Body,
) -> Result<(HeaderMap, Json<Order>), Answer> {
    let body = timeout(READ_TIMEOUT, axum::body::to_bytes(body, MAX_REPORT))
        .await
        .map_err(|_| Answer::new(StatusCode::REQUEST_TIMEOUT, "the report took too long to arrive"))?
        .map_err(|error| {
            let error = format!("the report can't be read (at most {MAX_REPORT} bytes): {error}");
            Answer::new(StatusCode::PAYLOAD_TOO_LARGE, error)
        })?;
    let report: Report = serde_json::from_slice(&body)
        .map_err(|error| Answer::new(StatusCode::BAD_REQUEST, format!("the body is no report: {error}")))?;
    if report.node != peer.name.node {
        let error = format!("node {} reported for node {}", peer.name.node, report.node);
        agents.refusals.log(peer.address, &error);
        return Err(Answer::new(StatusCode::FORBIDDEN, error));
    }
    let asked = agents.hub.wanted_of(&report).and_then(|digest| HeaderValue::from_str(digest.hex()).ok());
    let headers = asked.into_iter().map(|digest| (HeaderName::from_static(WANTED_HEADER), digest)).collect();
    Ok((headers, Json(order(&agents, report).await)))
}

/// The order for the node, as soon as it is another one than the one it acts on already.
async fn order<S>(agents: &Agents<S>, report: Report) -> Order {
    let mut changed = agents.hub.changed();
    agents.hub.report(report.clone());
    let _connected = agents.hub.connected(&report);
    let until = tokio::time::sleep(agents.long_poll);
    tokio::pin!(until);
    loop {
        changed.mark_unchanged();
        let order = agents.hub.order_for(&report);
        if report.seen.as_deref() != Some(&order) {
            return order;
        }
        tokio::select! {
            () = &mut until => return order,
            gone = changed.changed() => if gone.is_err() {
                return order;
            },
        }
    }
}

async fn bundle<S: Swarm>(
    State(agents): State<Arc<Agents<S>>>,
    Extension(admitted): Extension<Admitted>,
    Path(hex): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Answer> {
    match admitted {
        Admitted::Member(_) => {}
        Admitted::Unconfirmed => {
            let error = "the swarm's managers can't say now who belongs to the swarm";
            return Err(Answer::new(StatusCode::SERVICE_UNAVAILABLE, error).hint("ask again in a few seconds"));
        }
    }
    // Only a digest ever becomes part of a path.
    let digest = Digest::from_hex(&hex).map_err(|error| Answer::new(StatusCode::NOT_FOUND, error.to_string()))?;
    let path = bundle_path(&agents.bundles, &digest);
    download::file(&path, &digest, &headers).await.map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            Answer::new(StatusCode::NOT_FOUND, format!("this coordinator has no bundle {digest}"))
        } else {
            Answer::new(StatusCode::INTERNAL_SERVER_ERROR, format!("can't read bundle {digest}: {error}"))
        }
    })
}

/// An agent brings the bundle that this coordinator lacks. Nothing else is taken.
async fn take_bundle<S: Swarm>(
    State(agents): State<Arc<Agents<S>>>,
    Extension(peer): Extension<Peer>,
    Path(hex): Path<String>,
    body: Body,
) -> Result<StatusCode, Answer> {
    let digest = Digest::from_hex(&hex).map_err(|error| Answer::new(StatusCode::NOT_FOUND, error.to_string()))?;
    if !agents.hub.wants(&digest) {
        let error = format!("node {} sent bundle {digest}, which was not asked for", peer.name.node);
        agents.refusals.log(peer.address, &error);
        return Err(Answer::new(StatusCode::CONFLICT, error));
    }
    store::store(&agents.bundles, body.into_data_stream(), None, Some(&digest)).await.map_err(|error| {
        let why = chain(&error);
        tracing::warn!(node = %peer.name.node, error = why, "the bundle that an agent sent was not taken");
        Answer::new(StatusCode::BAD_REQUEST, why)
    })?;
    agents.hub.set_wanted(None);
    tracing::info!(node = %peer.name.node, %digest, "got the rollout's bundle from an agent");
    Ok(StatusCode::NO_CONTENT)
}
